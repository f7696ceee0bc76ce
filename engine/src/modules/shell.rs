//! `shell`: runs a command line by a shell.

use std::path::PathBuf;

use serde_json::json;

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    command::{Call, build, inline_arguments, plan_call, stdin},
};
use crate::args;

args! {
    /// Arguments.
    pub struct Args {
        /// The command line, or a script of several lines.
        cmd ["_raw", "free_form"]: String, required;
        /// The folder in which it runs.
        chdir []: Option<PathBuf>;
        /// If this path (or pattern with `*`, `?`, `[`) exists, the command has been run: nothing is done.
        creates []: Option<PathBuf>;
        /// If this path (or pattern) does not exist, there is nothing to do.
        removes []: Option<PathBuf>;
        /// The shell.
        executable []: PathBuf = PathBuf::from("/bin/sh");
        /// Given on standard input.
        stdin []: Option<String>;
        /// End standard input with a line break.
        stdin_add_newline []: bool = true;
        /// Take the line breaks off the end of the output.
        strip_empty_ends []: bool = true;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "shell",
    aliases: &[],
    summary: "Runs a command line by a shell: pipes, redirections, variables",
    args: ARGS,
    free_form: FreeForm::Arg("cmd"),
    needs: Needs::Nothing,
    results: &[super::command::RESULTS],
    example: "- name: a gossip key\n  shell:\n    cmd: consul keygen > /etc/consul.d/key\n    creates: /etc/consul.d/key\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    if args.cmd.trim().is_empty() {
        return Err(Failure::new("no command given").hint("write `shell: COMMAND LINE`"));
    }
    // Only at the ends, where Ansible's old form has them: inside a script `chdir=x` is a variable.
    let line = args.cmd.trim();
    if !line.contains('\n') {
        inline_arguments(line.split_whitespace().next().into_iter().chain(line.split_whitespace().next_back()))?;
    }
    let argv = vec![args.executable.to_string_lossy().into_owned(), "-c".to_owned(), args.cmd.clone()];
    let call = Call {
        command: build(argv, inv, args.chdir, stdin(args.stdin, args.stdin_add_newline)),
        shown: json!(args.cmd),
        creates: args.creates,
        removes: args.removes,
        strip: args.strip_empty_ends,
    };
    plan_call(call, cx)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::modules::fake::{Fake, call, go, plan};
    use crate::modules::{Cx, Plan, find};

    #[test]
    fn the_line_goes_to_the_shell_as_it_is() {
        let mut fake = Fake::new();
        let outcome = go(&mut fake, "shell", json!({"cmd": "a | b > $X", "executable": "/bin/bash"})).unwrap();
        assert_eq!((fake.ran[0].as_str(), &outcome.data["cmd"]), ("/bin/bash -c a | b > $X", &json!("a | b > $X")));
    }

    #[test]
    fn pipes_and_the_environment_work_here() {
        let mut real = crate::host::real::Real::new();
        let mut inv = call("shell", json!({"cmd": "printf \"$GREETING\" | tr a-z A-Z; exit 4"}));
        inv.environment = vec![("GREETING".into(), "hello".into())];
        let facts = json!({});
        let plan = (find("shell").unwrap().plan)(
            &inv,
            &Cx { host: &real, facts: &facts, secrets: crate::secrets::grants::nobody() },
        )
        .unwrap();
        let Plan::Change(change) = plan else { panic!() };
        let failure = change.apply(&mut real).unwrap_err();
        assert_eq!((&failure.data["stdout"], &failure.data["rc"]), (&json!("HELLO"), &json!(4)));
    }

    #[test]
    fn bad_calls_are_refused() {
        let fake = Fake::new();
        assert!(plan(&fake, "shell", json!({"cmd": " "})).unwrap_err().message.contains("no command"));
        assert!(plan(&fake, "shell", json!({"cmd": "make chdir=/x"})).is_err());
        assert!(plan(&fake, "shell", json!({"cmd": "chdir=/x; ls $chdir"})).is_err());
        assert!(plan(&fake, "shell", json!({"cmd": "set -e\nchdir=/x\nls $chdir"})).is_ok());
    }
}
