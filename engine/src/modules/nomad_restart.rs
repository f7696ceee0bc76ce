//! `nomad_restart`: restarts a server of Nomad, and has another one lead before.
//!
//! Only a token that may do everything can hand the leadership over, and such a one lies in no file of a host: so it is not the
//! unit that does it when it stops, but this task, which asks for the token by its name.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    http::Web,
    nomad_api::{self as api, Access, Hidden, Opened, SecretName},
    service,
};
use crate::{args, cluster::nomad::Nomad, host::Write};

args! {
    /// Arguments.
    pub struct Args {
        /// The unit.
        name []: String = "nomad".to_owned();
        /// This server's API.
        url []: Web = api::url("http://127.0.0.1:4646");
        /// Certificates (PEM) of who signed the server's, for `https`.
        ca_file []: Option<PathBuf>;
        /// The secret of a token that may do everything, where ACLs are on.
        token []: Option<Hidden>;
        /// The name of that secret instead: `nomad/management`.
        token_secret []: Option<SecretName>;
        /// For how many seconds to wait until another one leads.
        wait []: Duration = Duration::from_secs(10);
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_restart",
    aliases: &[],
    summary: "Restarts a server of Nomad; one that leads has another one lead before",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("leader", "The server that leads in this one's place; not there where this one did not lead."),
        ("name", "The unit, with its suffix."),
        ("state", "`started`."),
        ("active", "systemd's `ActiveState` afterwards."),
        ("sub", "systemd's `SubState` afterwards."),
        ("main_pid", "Its main process afterwards."),
    ]],
    example: "- name: restart nomad server\n  nomad_restart:\n    token_secret: nomad/management\n  serial: 1\n  gate: nomad\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let inner = match service::restarting(&args.name, cx.host)? {
        Plan::Change(inner) => inner,
        plan @ Plan::Unchanged(_) => return Ok(plan),
    };
    let (token, token_secret) = (args.token.as_ref(), args.token_secret.as_ref());
    let access = Access { url: &args.url, ca_file: args.ca_file.as_ref(), token, token_secret };
    // On a first start there is nobody to ask.
    let runs = cx.host.unit(&service::unit_name(&args.name)?)?.active == "active";
    let nomad = if runs && !cx.host.is_overlay() { client(&access, cx).map(Some) } else { Ok(None) };
    Ok(Plan::Change(Box::new(Restart { nomad, inner, wait: args.wait })))
}

/// Who is asked to step down; or why nobody can be. That is no reason not to restart.
fn client(access: &Access<'_>, cx: &Cx<'_>) -> Result<Nomad, String> {
    match api::open::<Nomad>(access, cx) {
        Ok(Opened::Client(nomad)) => Ok(*nomad),
        Ok(Opened::Later(_)) => Err("the token is not there yet".to_owned()),
        Err(failure) => Err(failure.message),
    }
}

#[derive(Debug)]
struct Restart {
    /// `None`: nobody is asked.
    nomad: Result<Option<Nomad>, String>,
    inner: Box<dyn Change>,
    wait: Duration,
}

impl Change for Restart {
    fn diffs(&self) -> Vec<Diff> {
        self.inner.diffs()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        if host.is_overlay() {
            return self.inner.apply(host);
        }
        let left = self.nomad.and_then(|nomad| nomad.map_or(Ok(None), |nomad| step_down(&nomad, self.wait)));
        let outcome = self.inner.apply(host)?;
        Ok(match left {
            Ok(Some(leader)) => outcome.with("leader", leader),
            Ok(None) => outcome,
            Err(why) => {
                let warning =
                    format!("whether this server led was not to be learned, so that no other was asked to: {why}");
                Outcome { warnings: [outcome.warnings, vec![warning]].concat(), ..outcome }
            }
        })
    }
}

/// Hands the leadership over, and waits until another one has it. Who that is.
fn step_down(nomad: &Nomad, wait: Duration) -> Result<Option<String>, String> {
    let before = nomad.leader().map_err(|e| e.to_string())?;
    let Some(chosen) = nomad.step_down().map_err(|e| e.to_string())? else { return Ok(None) };
    let begun = Instant::now();
    while begun.elapsed() < wait {
        match nomad.leader() {
            Ok(leader) if !leader.is_empty() && leader != before => return Ok(Some(chosen)),
            _ => thread::sleep(Duration::from_millis(100)),
        }
    }
    Err(format!("{chosen} was asked to lead, and does not after {} s", wait.as_secs()))
}

#[cfg(test)]
mod tests;
