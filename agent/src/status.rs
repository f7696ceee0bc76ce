use std::{io::Write as _, process::ExitCode};

use rollcall_engine::{facts, host::real::Real, run::Ledger};
use serde_json::json;

use crate::{lock, paths::Paths};

/// `agent facts`.
pub(crate) fn facts() -> anyhow::Result<ExitCode> {
    let facts = facts::gather(&Real::new());
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&facts)?)?;
    Ok(ExitCode::SUCCESS)
}

/// `agent status`.
pub(crate) fn run(as_json: bool) -> anyhow::Result<ExitCode> {
    let paths = Paths::of_this_process();
    let ledger = Ledger::open(&paths.state, false).map_err(|f| anyhow::anyhow!("{}", f.message))?;
    let holder = lock::holder(&paths.run);
    let mut out = std::io::stdout().lock();
    if as_json {
        let debts: Vec<_> = ledger
            .debts()
            .iter()
            .map(|d| json!({"handler": d.handler, "role": d.role, "run_id": d.run_id, "since": d.since}))
            .collect();
        let status = json!({"version": env!("CARGO_PKG_VERSION"), "lock": holder, "owed": debts});
        writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        match holder {
            Some(h) => writeln!(out, "at work   {} (run {}, for {} s)", h.owner, h.run_id, h.age_s())?,
            None => writeln!(out, "at work   nobody")?,
        }
        for debt in ledger.debts() {
            let age = lock::now().saturating_sub(debt.since);
            writeln!(out, "owed      {} (since run {}, {age} s ago)", debt.handler, debt.run_id)?;
        }
        if ledger.debts().is_empty() {
            writeln!(out, "owed      nothing")?;
        }
    }
    Ok(if ledger.debts().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
