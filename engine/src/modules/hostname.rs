//! `hostname`: the machine's name.

use std::path::Path;

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    steps::{Step, Steps, exists, read_text},
};
use crate::{
    args,
    host::{Attrs, Command, Effect},
};

args! {
    /// Arguments.
    pub struct Args {
        /// The name: letters, digits and hyphens, with dots between, 64 characters at most.
        name []: String, required;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "hostname",
    aliases: &[],
    summary: "Sets the machine's name, now and for the next start",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("name", "The name.")]],
    example: "- name: name\n  hostname:\n    name: consul-1\n",
    plan,
};

/// The name that the kernel has now.
const KERNEL: &str = "/proc/sys/kernel/hostname";

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check(&args.name)?;
    let fixed = match cx.host.hostname() {
        Ok(name) => name.trim().to_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Failure::io("read", Path::new("/etc/hostname"), &e)),
    };
    // A name that only the kernel has (set by DHCP, or by hand) is one that the next start loses.
    let kernel = read_text(cx.host, Path::new(KERNEL))?.map(|name| name.trim().to_owned());
    let has_kernel = kernel.is_some();
    let done = Outcome::unchanged().with("name", args.name.clone());
    if fixed == args.name && kernel.as_ref().is_none_or(|name| *name == args.name) {
        return Ok(Plan::Unchanged(done));
    }
    let before = if fixed == args.name { kernel.unwrap_or_default() } else { fixed };
    let effects = vec![Effect::Hostname(args.name.clone())];
    let steps = Steps::new(Outcome { changed: true, ..done }).diff("hostname", before, &*args.name);
    let text = format!("{}\n", args.name);
    let steps = if exists(cx.host, Path::new("/run/systemd/system"))? {
        steps.step(Step::Run(Command::new(["hostnamectl", "set-hostname", &args.name]), effects))
    } else {
        let attrs = Attrs { mode: Some(0o644), ..Attrs::default() };
        steps
            .step(Step::Write("/etc/hostname".into(), text.clone().into_bytes(), attrs))
            .step(Step::Run(Command::new(["hostname", &args.name]), effects))
    };
    let steps = if has_kernel { steps.step(Step::PlannedFile(KERNEL.into(), text.into_bytes())) } else { steps };
    Ok(steps.into_plan())
}

fn check(name: &str) -> Result<(), Failure> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if name.len() <= 64 && name.split('.').all(label) {
        return Ok(());
    }
    let failure = Failure::new(format!("'{}' is no host name", name.escape_debug()));
    Err(failure.hint("letters, digits and hyphens, parts of at most 63 characters with dots between, 64 in all"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::modules::fake::{Fake, converges, go};

    #[test]
    fn the_name_is_set_once() {
        let mut fake = Fake::new().file("/run/systemd/system/x", "");
        assert!(converges(&mut fake, "hostname", json!({"name": "consul-1"})).changed);
        assert_eq!(fake.ran, ["hostnamectl set-hostname consul-1"]);
        assert_eq!(fake.hostname, "consul-1");
    }

    #[test]
    fn without_systemd_the_file_is_written() {
        let mut fake = Fake::new();
        go(&mut fake, "hostname", json!({"name": "a.example.org"})).unwrap();
        assert_eq!(fake.files[Path::new("/etc/hostname")], b"a.example.org\n");
        assert_eq!(fake.ran, ["hostname a.example.org"]);
    }

    #[test]
    fn a_name_that_only_the_file_has_is_set_in_the_kernel() {
        let mut fake = Fake::new().file("/run/systemd/system/x", "").file(KERNEL, "ip-10-0-0-1\n");
        assert!(go(&mut fake, "hostname", json!({"name": "old"})).unwrap().changed);
    }

    #[test]
    fn bad_names_are_refused() {
        for name in
            ["", "a_b", "-a", "a b", "a..b", "a;reboot", "é", &"a".repeat(64), &format!("{0}.{0}", "a".repeat(40))]
        {
            let failure = go(&mut Fake::new(), "hostname", json!({"name": name})).unwrap_err();
            assert!(failure.message.contains("is no host name"), "{name}");
        }
    }
}
