//! `command`: runs a program, without a shell.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::SystemTime,
};

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    steps::{ended, text},
};
use crate::{
    args,
    host::{Command, FileKind, Output, Ran, Read, Write},
};

args! {
    /// Arguments.
    pub struct Args {
        /// The program and its arguments as a list; each is passed as it is.
        argv []: Vec<String>;
        /// The program and its arguments as text, split at spaces; quotes hold words together. Nothing is expanded.
        cmd ["_raw", "free_form"]: Option<String>;
        /// The folder in which it runs.
        chdir []: Option<PathBuf>;
        /// If this path (or pattern with `*`, `?`, `[`) exists, the command has been run: nothing is done.
        creates []: Option<PathBuf>;
        /// If this path (or pattern) does not exist, there is nothing to do.
        removes []: Option<PathBuf>;
        /// Given on standard input.
        stdin []: Option<String>;
        /// End standard input with a line break.
        stdin_add_newline []: bool = true;
        /// Take the line breaks off the end of the output.
        strip_empty_ends []: bool = true;
    }
}

/// Results of a command's end.
pub(super) const RESULTS: &super::Results = &[
    ("rc", "The exit code; -N for death by signal N."),
    ("cmd", "What was run."),
    ("stdout", "What it said."),
    ("stderr", "What it complained of."),
    ("stdout_lines", "`stdout`, line by line."),
    ("stderr_lines", "`stderr`, line by line."),
    ("start", "When it began."),
    ("end", "When it ended."),
    ("delta", "How long it took."),
];

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "command",
    aliases: &[],
    summary: "Runs a program, without a shell",
    args: ARGS,
    free_form: FreeForm::Arg("cmd"),
    needs: Needs::Nothing,
    results: &[RESULTS],
    example: "- name: unpack the data once\n  command:\n    argv: [tar, -xf, /srv/data.tar, -C, /srv]\n    creates: /srv/data\n",
    plan,
};

/// What `command` and `shell` have in common.
pub(super) struct Call {
    pub(super) command: Command,
    /// How the result `cmd` shows it.
    pub(super) shown: Value,
    pub(super) creates: Option<PathBuf>,
    pub(super) removes: Option<PathBuf>,
    pub(super) strip: bool,
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let argv = match (args.cmd, args.argv.is_empty()) {
        (Some(_), false) => return Err(Failure::new("'cmd' and 'argv' exclude each other").hint("give one of them")),
        (Some(text), true) => shell_words::split(&text).map_err(|e| {
            Failure::new(format!("cannot split the command into words: {e}")).hint("give the words as a list: argv")
        })?,
        (None, _) => args.argv,
    };
    if argv.first().is_none_or(String::is_empty) {
        return Err(Failure::new("no command given").hint("write `command: PROGRAM ARGUMENTS`, or argv: [PROGRAM, …]"));
    }
    let operator = |word: &&String| ["|", ">", ">>", "<", "&&", "||", ";", "&"].contains(&word.as_str());
    if let Some(word) = argv.iter().find(operator).filter(|_| !inv.args.contains_key("argv")) {
        return Err(Failure::new(format!("'{word}' would be an argument: the command module has no shell"))
            .hint("use the shell module, or give the words as a list: argv"));
    }
    inline_arguments(argv.iter().map(String::as_str))?;
    let command = build(argv.clone(), inv, args.chdir, stdin(args.stdin, args.stdin_add_newline));
    plan_call(
        Call {
            command,
            shown: json!(argv),
            creates: args.creates,
            removes: args.removes,
            strip: args.strip_empty_ends,
        },
        cx,
    )
}

pub(super) fn build(argv: Vec<String>, inv: &Invocation, chdir: Option<PathBuf>, stdin: Option<Vec<u8>>) -> Command {
    Command { argv, chdir, env: inv.environment.clone(), stdin, timeout: None }
}

pub(super) fn stdin(text: Option<String>, newline: bool) -> Option<Vec<u8>> {
    text.map(|mut text| {
        if newline && !text.ends_with('\n') {
            text.push('\n');
        }
        text.into_bytes()
    })
}

/// `command: make creates=/x` is an old way to write arguments; it would reach the program as a word.
pub(super) fn inline_arguments<'a>(words: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    for word in words {
        if let Some((name @ ("creates" | "removes" | "chdir" | "stdin" | "executable"), value)) = word.split_once('=') {
            return Err(Failure::new(format!("'{word}' inside the command is not read as an argument"))
                .hint(format!("write it beside the command: {{cmd: …, {name}: {value}}}")));
        }
    }
    Ok(())
}

pub(super) fn plan_call(call: Call, cx: &Cx<'_>) -> Result<Plan, Failure> {
    if let Some(word) = call.command.argv.iter().find(|word| word.contains('\0')) {
        return Err(Failure::new(format!("an argument holds a NUL byte: '{}'", word.escape_debug())));
    }
    let host = cx.host;
    let nothing = |why: String| {
        Ok(Plan::Unchanged(
            Outcome::unchanged()
                .msg(why)
                .with("rc", 0)
                .with("cmd", call.shown.clone())
                .with("stdout", "")
                .with("stderr", "")
                .with("stdout_lines", json!([]))
                .with("stderr_lines", json!([])),
        ))
    };
    if let Some(path) = &call.creates
        && matches(host, path)?
    {
        return nothing(format!("not run: {} exists", path.display()));
    }
    if let Some(path) = &call.removes
        && !matches(host, path)?
    {
        return nothing(format!("not run: {} does not exist", path.display()));
    }
    if let Some(folder) = &call.command.chdir {
        let meta = host.meta_follow(folder).map_err(|e| Failure::io("look at", folder, &e))?;
        match meta {
            Some(meta) if meta.kind == FileKind::Directory => {}
            Some(_) => return Err(Failure::new(format!("chdir: {} is no folder", folder.display()))),
            None if host.is_uncertain() => {}
            None => return Err(Failure::new(format!("chdir: {} does not exist", folder.display()))),
        }
    }
    Ok(Plan::Change(Box::new(Execute(call))))
}

/// True if the path, which may hold patterns, names something.
fn matches(host: &dyn Read, path: &Path) -> Result<bool, Failure> {
    let look = |path: &Path| host.meta_follow(path).map_err(|e| Failure::io("look at", path, &e));
    let Some(text) = path.to_str().filter(|text| text.contains(['*', '?', '['])) else {
        return look(path).map(|meta| meta.is_some());
    };
    let mut found = vec![PathBuf::from("/")];
    for part in text.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        if part.contains(['*', '?', '[']) {
            let glob =
                globset::Glob::new(part).map_err(|e| Failure::new(format!("bad pattern '{text}': {}", e.kind())))?;
            let glob = glob.compile_matcher();
            for folder in &found {
                // A file in the place of a folder holds nothing that could match.
                let names = host.list(folder).unwrap_or_default();
                let visible = |name: &Path| part.starts_with('.') || !name.to_string_lossy().starts_with('.');
                next.extend(
                    names.iter().map(Path::new).filter(|n| visible(n) && glob.is_match(n)).map(|n| folder.join(n)),
                );
            }
        } else {
            for folder in &found {
                let path = folder.join(part);
                if look(&path)?.is_some() {
                    next.push(path);
                }
            }
        }
        found = next;
    }
    Ok(!found.is_empty())
}

struct Execute(Call);

impl std::fmt::Debug for Execute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Arguments may hold secrets; the program is enough.
        f.debug_tuple("Execute").field(&self.0.command.argv.first()).finish()
    }
}

impl Change for Execute {
    fn diffs(&self) -> Vec<Diff> {
        Vec::new()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let call = self.0;
        let start = host.now();
        match host.run(&call.command, &[])? {
            Ran::Done(output) => finish(&call, &output, start, host.now()),
            Ran::Planned | Ran::Unknown => {
                Ok(Outcome::unknown("commands are not run in check mode").with("cmd", call.shown))
            }
        }
    }
}

fn finish(call: &Call, output: &Output, start: SystemTime, end: SystemTime) -> Result<Outcome, Failure> {
    let clean = |bytes: &[u8]| {
        let text = text(bytes);
        if call.strip { text.trim_end_matches(['\r', '\n']).to_owned() } else { text }
    };
    let (stdout, stderr) = (clean(&output.stdout), clean(&output.stderr));
    let outcome = Outcome::changed()
        .with("rc", output.code)
        .with("cmd", call.shown.clone())
        .with("stdout_lines", json!(stdout.lines().collect::<Vec<_>>()))
        .with("stderr_lines", json!(stderr.lines().collect::<Vec<_>>()))
        .with("stdout", stdout.clone())
        .with("stderr", stderr.clone())
        .with("start", clock(start))
        .with("end", clock(end))
        .with("delta", delta(end.duration_since(start).unwrap_or_default()));
    if output.code == 0 {
        return Ok(outcome);
    }
    let words = if stderr.trim().is_empty() { stdout } else { stderr };
    let last = words.trim().lines().last().map(|line| format!(": {line}")).unwrap_or_default();
    Err(Failure {
        message: format!("the command {}{last}", ended(output.code)),
        hint: None,
        data: outcome.data,
        changed: true,
    })
}

/// This machine's time zone, read once. The library's own way walks the whole folder of zones for the name, which costs
/// more than the commands whose times are told.
fn local_zone() -> TimeZone {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    let read = || {
        if std::env::var_os("TZ").is_some() {
            return TimeZone::system();
        }
        let bytes = std::fs::read("/etc/localtime").ok();
        bytes.and_then(|bytes| TimeZone::tzif("", &bytes).ok()).unwrap_or_else(TimeZone::system)
    };
    ZONE.get_or_init(read).clone()
}

fn clock(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(
        |_| String::new(),
        |time| time.to_zoned(local_zone()).strftime("%Y-%m-%d %H:%M:%S%.6f").to_string(),
    )
}

fn delta(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}.{:06}", seconds / 3600, seconds / 60 % 60, seconds % 60, time.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::fake::{Fake, go, plan};

    #[test]
    fn results_have_ansibles_names() {
        let mut fake = Fake::new().answers("echo", 0, "a\nb\n\n", "w\n");
        let outcome = go(&mut fake, "command", json!({"cmd": "echo 'a b' $HOME ~"})).unwrap();
        assert!(outcome.changed);
        assert_eq!(outcome.data["cmd"], json!(["echo", "a b", "$HOME", "~"]));
        assert_eq!((&outcome.data["stdout"], &outcome.data["stderr"]), (&json!("a\nb"), &json!("w")));
        assert_eq!(outcome.data["stdout_lines"], json!(["a", "b"]));
        assert_eq!((&outcome.data["rc"], &outcome.data["delta"]), (&json!(0), &json!("0:00:00.000000")));
        assert!(outcome.data["start"].as_str().unwrap().starts_with("1970-01-1"));
        for name in ["end", "stderr_lines"] {
            assert!(outcome.data.contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_bad_end_is_a_failure_with_its_results() {
        let mut fake = Fake::new().answers("false", 3, "", "one\ntwo\n").answers("kill", -9, "", "");
        let failure = go(&mut fake, "command", json!({"argv": ["false"]})).unwrap_err();
        assert_eq!((failure.message.as_str(), &failure.data["rc"]), ("the command ended with code 3: two", &json!(3)));
        assert!(failure.changed);
        let failure = go(&mut fake, "command", json!({"argv": ["kill"]})).unwrap_err();
        assert_eq!(failure.message, "the command was killed by signal 9");
    }

    #[test]
    fn creates_and_removes_decide() {
        let mut fake = Fake::new().file("/srv/a/x.tar", "").file("/srv/.hidden", "");
        let mut changed = |args| go(&mut fake, "command", args).unwrap();
        let outcome = changed(json!({"cmd": "true", "creates": "/srv/a/x.tar"}));
        assert_eq!((outcome.changed, outcome.msg.as_deref()), (false, Some("not run: /srv/a/x.tar exists")));
        assert!(!changed(json!({"cmd": "true", "creates": "/srv/*/x.*"})).changed);
        assert!(changed(json!({"cmd": "true", "creates": "/srv/*/y"})).changed);
        assert!(changed(json!({"cmd": "true", "creates": "/srv/?hidden"})).changed);
        assert!(!changed(json!({"cmd": "true", "removes": "/srv/b"})).changed);
        assert!(changed(json!({"cmd": "true", "removes": "/srv/a"})).changed);
    }

    #[test]
    fn bad_calls_are_refused() {
        let fake = Fake::new().file("/file", "");
        let error = |args| plan(&fake, "command", args).unwrap_err();
        assert!(error(json!({})).message.contains("no command"));
        assert!(error(json!({"cmd": "a 'b"})).message.contains("split"));
        assert!(error(json!({"cmd": "a", "argv": ["b"]})).message.contains("exclude"));
        assert!(error(json!({"argv": ["a", "b\u{0}c"]})).message.contains("NUL"));
        assert!(error(json!({"cmd": "make creates=/x"})).hint.unwrap().contains("creates: /x"));
        assert!(error(json!({"cmd": "cat /etc/passwd | wc"})).hint.unwrap().contains("shell module"));
        assert!(error(json!({"cmd": "a", "chdir": "/nowhere"})).message.contains("does not exist"));
        assert!(error(json!({"cmd": "a", "chdir": "/file"})).message.contains("is no folder"));
        assert!(error(json!({"cmd": "a", "executable": "/bin/sh"})).hint.unwrap().contains("shell module"));
        assert!(plan(&fake, "command", json!({"argv": ["a", "|", "b"]})).is_ok());
    }

    #[test]
    fn check_mode_does_not_know() {
        let fake = Fake::new();
        let mut overlay = crate::host::overlay::Overlay::new(&fake);
        let outcome = go(&mut overlay, "command", json!({"cmd": "true"})).unwrap();
        assert!(outcome.unknown && !outcome.changed);
        assert!(overlay.is_uncertain());
    }

    #[test]
    fn it_runs_programs_of_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let mut real = crate::host::real::Real::new();
        let args = json!({"argv": ["sh", "-c", "cat; pwd; echo made > made"], "chdir": folder.path(), "stdin": "in",
            "creates": folder.path().join("made")});
        let outcome = go(&mut real, "command", args.clone()).unwrap();
        let shown = folder.path().canonicalize().unwrap();
        assert_eq!(outcome.data["stdout_lines"], json!(["in", shown]));
        assert!(!go(&mut real, "command", args).unwrap().changed);
        let failure = go(&mut real, "command", json!({"cmd": "no-such-program-here"})).unwrap_err();
        assert!(failure.message.contains("no-such-program-here"), "{failure}");
    }
}
