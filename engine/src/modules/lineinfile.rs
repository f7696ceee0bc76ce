//! `lineinfile`: one line in a text file.

use std::path::PathBuf;

use fancy_regex::{Captures, Regex};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    args::Mode,
    place::{self, Perms, Planner, Put, followed, planned},
};
use crate::{
    args, choice,
    host::{FileKind, Read as _, atomic::explain},
};

choice!(
    /// Whether the line is to be there.
    State { Present = "present", Absent = "absent" }
);

args! {
    /// Arguments of `lineinfile`.
    pub struct Args {
        /// The file.
        path ["dest", "destfile", "name"]: PathBuf, required;
        /// The line, without its end.
        line ["value"]: Option<String>;
        /// Replace the last line that matches (with `absent`: remove all that do).
        regexp ["regex"]: Option<String>;
        /// Like `regexp`, for a piece of text that is taken as it is.
        search_string []: Option<String>;
        /// Where no line matches: put the line behind the last one that matches this; `EOF`, the default, or `BOF`.
        insertafter []: Option<String>;
        /// Where no line matches: put the line before the last one that matches this; or `BOF`.
        insertbefore []: Option<String>;
        /// Whether the line is to be there.
        state []: State = State::Present;
        /// In `line`, `\1` and `\g<name>` stand for what `regexp` captured; where nothing matches, nothing is done.
        backrefs []: bool = false;
        /// Make the file where it is missing.
        create []: bool = false;
        /// Take the first match instead of the last.
        firstmatch []: bool = false;
        /// Permission bits, as "0644" or `u=rw,go=r`.
        mode []: Option<Mode>;
        /// Owner, a name or a number.
        owner []: Option<String>;
        /// Group, a name or a number.
        group []: Option<String>;
        /// Keep a copy of the file that was there, with the time in its name.
        backup []: bool = false;
        /// A command that checks the new file before it replaces the old one; `%s` stands for it. There is no shell.
        validate []: Option<String>;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "lineinfile",
    aliases: &[],
    summary: "Makes sure that a line is in a file, or is not",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[place::RESULTS, place::BACKUP, &[("found", "How many lines `regexp`, `search_string` or `line` met.")]],
    example: "- name: no root login by password\n  lineinfile:\n    path: /etc/ssh/sshd_config\n    regexp: '^#?PermitRootLogin'\n    line: PermitRootLogin prohibit-password\n    validate: sshd -t -f %s\n",
    plan,
};

/// Patterns, compiled.
struct Patterns {
    regexp: Option<Regex>,
    after: Option<Regex>,
    before: Option<Regex>,
}

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
    let patterns = check(&args)?;
    let perms = Perms { mode: args.mode.clone(), owner: args.owner.clone(), group: args.group.clone() };
    perms.refuse_preserve("'lineinfile' has none")?;
    planned(cx, || {
        let mut planner = Planner::new(cx, call.diff);
        // A file that is a link is edited where it is, as an editor does.
        let path = followed(&planner.host, &args.path)?;
        let shown = args.path.display();
        let text = match planner.meta(&path)?.map(|m| m.kind) {
            Some(FileKind::Directory) => return Err(Failure::new(format!("{shown} is a folder, not a file"))),
            Some(_) => {
                let bytes = planner.host.read(&path).map_err(|e| explain("read", &path, &e))?;
                String::from_utf8(bytes).map_err(|e| {
                    let at = e.utf8_error().valid_up_to();
                    Failure::new(format!("cannot edit {shown}: it is not UTF-8 text (byte {at})"))
                })?
            }
            None if args.state == State::Absent => {
                return Ok(Plan::Unchanged(
                    Outcome::unchanged().msg(format!("{shown} does not exist")).with("found", 0),
                ));
            }
            None if args.create => String::new(),
            None => return Err(Failure::new(format!("{shown} does not exist")).hint("create: true makes it")),
        };
        let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        let (msg, found) = match args.state {
            State::Present => (present(&args, &patterns, &mut lines)?, None),
            State::Absent => {
                let removed = absent(&args, &patterns, &mut lines)?;
                let msg = if removed == 0 { String::new() } else { format!("{removed} line(s) removed") };
                (msg, Some(removed))
            }
        };
        let put = Put { validate: args.validate.clone(), backup: args.backup, ..Put::default() };
        planner.file(&path, lines.concat().as_bytes(), &perms, &put)?;
        let mut outcome = planner.results(Outcome::unchanged().msg(msg), &path)?;
        if let Some(found) = found {
            outcome = outcome.with("found", found);
        }
        Ok(planner.finish(outcome))
    })
}

/// Arguments that do not go together, and patterns that are none.
fn check(args: &Args) -> Result<Patterns, Failure> {
    if args.regexp.is_some() && args.search_string.is_some() {
        return Err(Failure::new("arguments 'regexp' and 'search_string' exclude each other"));
    }
    if args.insertafter.is_some() && args.insertbefore.is_some() {
        return Err(Failure::new("arguments 'insertafter' and 'insertbefore' exclude each other"));
    }
    if args.backrefs && args.regexp.is_none() {
        return Err(Failure::new("argument 'backrefs' needs 'regexp'"));
    }
    match args.state {
        State::Present if args.line.is_none() => return Err(Failure::new("argument 'line' is missing")),
        State::Absent if args.line.is_none() && args.regexp.is_none() && args.search_string.is_none() => {
            return Err(Failure::new("one of 'line', 'regexp' and 'search_string' is needed to remove lines"));
        }
        _ => {}
    }
    if args.line.as_deref().is_some_and(|l| l.contains('\n')) && !args.backrefs {
        return Err(Failure::new("argument 'line' holds a line end: a second run would not find it")
            .hint("use one task for each line, or copy or template for the whole file"));
    }
    let anchor = |text: &Option<String>, words: &[&str], name| match text.as_deref() {
        Some(text) if !words.contains(&text) => compile(name, text).map(Some),
        _ => Ok(None),
    };
    Ok(Patterns {
        regexp: args.regexp.as_deref().map(|r| compile("regexp", r)).transpose()?,
        after: anchor(&args.insertafter, &["EOF", "BOF"], "insertafter")?,
        before: anchor(&args.insertbefore, &["BOF"], "insertbefore")?,
    })
}

fn compile(name: &str, text: &str) -> Result<Regex, Failure> {
    Regex::new(text).map_err(|e| Failure::new(format!("argument '{name}': '{text}' is no regular expression: {e}")))
}

fn ending(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

fn matches(regex: &Regex, line: &str) -> Result<bool, Failure> {
    regex.is_match(ending(line)).map_err(|e| Failure::new(format!("the expression '{}' fails: {e}", regex.as_str())))
}

/// The last line that meets a condition, or the first.
fn position(
    lines: &[String],
    first: bool,
    test: impl Fn(&str) -> Result<bool, Failure>,
) -> Result<Option<usize>, Failure> {
    let mut found = None;
    for (i, line) in lines.iter().enumerate() {
        if test(line)? {
            found = Some(i);
            if first {
                break;
            }
        }
    }
    Ok(found)
}

/// Edits the lines; says what was done.
fn present(args: &Args, patterns: &Patterns, lines: &mut Vec<String>) -> Result<String, Failure> {
    let line = args.line.as_deref().unwrap_or_default();
    let matched = match (&patterns.regexp, &args.search_string) {
        (Some(regex), _) => position(lines, args.firstmatch, |l| matches(regex, l))?,
        (_, Some(text)) => position(lines, args.firstmatch, |l| Ok(l.contains(text.as_str())))?,
        _ => None,
    };
    let exact = position(lines, false, |l| Ok(ending(l) == line))?;
    if let Some(at) = matched.or(exact) {
        let new = match &patterns.regexp {
            Some(regex) if args.backrefs && matched.is_some() => expand(line, regex, ending(&lines[at]))?,
            _ => line.to_owned(),
        };
        let new = if new.ends_with('\n') { new } else { new + "\n" };
        if lines[at] == new {
            return Ok(String::new());
        }
        lines[at] = new;
        return Ok("line replaced".into());
    }
    if args.backrefs {
        return Ok(String::new());
    }
    let at = insertion(args, patterns, lines)?;
    // What stands at the place already is not put there again.
    let beside = if patterns.before.is_some() { at.checked_sub(1) } else { Some(at) };
    if beside.and_then(|i| lines.get(i)).is_some_and(|l| ending(l) == line) {
        return Ok(String::new());
    }
    if at > 0
        && let Some(before) = lines.get_mut(at - 1)
        && !before.ends_with('\n')
    {
        before.push('\n');
    }
    lines.insert(at, format!("{line}\n"));
    Ok("line added".into())
}

/// The index at which a new line goes.
fn insertion(args: &Args, patterns: &Patterns, lines: &[String]) -> Result<usize, Failure> {
    if args.insertbefore.as_deref() == Some("BOF") || args.insertafter.as_deref() == Some("BOF") {
        return Ok(0);
    }
    let anchor = match (&patterns.after, &patterns.before) {
        (Some(regex), _) => position(lines, args.firstmatch, |l| matches(regex, l))?.map(|i| i + 1),
        (_, Some(regex)) => position(lines, args.firstmatch, |l| matches(regex, l))?,
        _ => None,
    };
    Ok(anchor.unwrap_or(lines.len()))
}

fn absent(args: &Args, patterns: &Patterns, lines: &mut Vec<String>) -> Result<usize, Failure> {
    let mut kept = Vec::with_capacity(lines.len());
    for line in lines.drain(..) {
        let goes = match (&patterns.regexp, &args.search_string, &args.line) {
            (Some(regex), ..) => matches(regex, &line)?,
            (_, Some(text), _) => line.contains(text.as_str()),
            (_, _, wanted) => wanted.as_deref() == Some(ending(&line)),
        };
        kept.push((line, goes));
    }
    let removed = kept.iter().filter(|(_, goes)| *goes).count();
    lines.extend(kept.into_iter().filter(|(_, goes)| !goes).map(|(line, _)| line));
    Ok(removed)
}

/// Puts captures into the line: `\1`, `\g<1>`, `\g<name>`; `\n`, `\t` and `\\` too.
fn expand(line: &str, regex: &Regex, text: &str) -> Result<String, Failure> {
    let captures = regex.captures(text).ok().flatten();
    let Some(captures) = captures else { return Ok(line.to_owned()) };
    let (mut out, mut rest) = (String::new(), line);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let digits = after.chars().take(2).take_while(char::is_ascii_digit).count();
        if digits > 0 {
            out.push_str(group(&captures, &after[..digits])?);
            rest = &after[digits..];
        } else if let Some((name, tail)) = after.strip_prefix("g<").and_then(|t| t.split_once('>')) {
            out.push_str(group(&captures, name)?);
            rest = tail;
        } else {
            let known = after.chars().next();
            match known {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('\\') => out.push('\\'),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            }
            rest = &after[known.map_or(0, char::len_utf8)..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What a group captured, empty where it took no part; a group that the expression lacks is an error.
fn group<'t>(captures: &Captures<'t>, name: &str) -> Result<&'t str, Failure> {
    let found = match name.parse::<usize>() {
        Ok(number) if number < captures.len() => captures.get(number),
        Ok(_) => return Err(Failure::new(format!("argument 'line': 'regexp' has no group {name}"))),
        Err(_) => match captures.name(name) {
            None => return Err(Failure::new(format!("argument 'line': 'regexp' has no group '{name}'"))),
            found => found,
        },
    };
    Ok(found.map_or("", |m| m.as_str()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::{super::place::testing, *};

    /// Runs on a file with this text, twice, and gives back the text.
    fn edit(text: &str, args: Value) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, text).unwrap();
        let mut args = args;
        args["path"] = json!(path);
        let (outcome, _) = testing::run_twice(&DEFINITION, &testing::call(&DEFINITION, args, None));
        let new = fs::read_to_string(&path).unwrap();
        assert_eq!(outcome.changed, new != text);
        new
    }

    fn fails(args: Value) -> Failure {
        testing::run(&DEFINITION, &testing::call(&DEFINITION, args, None)).unwrap_err()
    }

    #[test]
    fn lines_are_replaced_added_and_kept() {
        assert_eq!(edit("a=1\nb=2\n", json!({"line": "b=2"})), "a=1\nb=2\n");
        assert_eq!(edit("a=1\nb=2\na=3\n", json!({"regexp": "^a=", "line": "a=9"})), "a=1\nb=2\na=9\n");
        assert_eq!(
            edit("a=1\nb=2\na=3\n", json!({"regexp": "^a=", "line": "a=9", "firstmatch": true})),
            "a=9\nb=2\na=3\n"
        );
        assert_eq!(edit("a=1\nb=2", json!({"line": "c=3"})), "a=1\nb=2\nc=3\n");
        assert_eq!(edit("", json!({"line": "c=3"})), "c=3\n");
        assert_eq!(edit("x.y\nxzy\n", json!({"search_string": "x.y", "line": "new"})), "new\nxzy\n");
        assert_eq!(edit("a\nnew\n", json!({"regexp": "^zzz$", "line": "new"})), "a\nnew\n");
        assert_eq!(edit("a\r\nb\r\n", json!({"regexp": "^b$", "line": "c"})), "a\r\nc\n");
    }

    #[test]
    fn lines_are_put_at_their_place() {
        assert_eq!(edit("a\nb\nc\n", json!({"line": "x", "insertafter": "^a"})), "a\nx\nb\nc\n");
        assert_eq!(edit("a\nb\na\n", json!({"line": "x", "insertafter": "^a"})), "a\nb\na\nx\n");
        assert_eq!(edit("a\nb\na", json!({"line": "x", "insertafter": "^a", "firstmatch": true})), "a\nx\nb\na");
        assert_eq!(edit("a\nb\na", json!({"line": "x", "insertafter": "^a"})), "a\nb\na\nx\n");
        assert_eq!(edit("a\nb\n", json!({"line": "x", "insertbefore": "^b"})), "a\nx\nb\n");
        assert_eq!(edit("a\nb\n", json!({"line": "x", "insertbefore": "BOF"})), "x\na\nb\n");
        assert_eq!(edit("a\nb\n", json!({"line": "x", "insertbefore": "nowhere"})), "a\nb\nx\n");
    }

    #[test]
    fn captures_and_removal() {
        let line = json!({"regexp": r"^(?P<key>\w+)=(\d+)$", "line": r"\g<key> := \2\t\\", "backrefs": true});
        assert_eq!(edit("a=1\nb\n", line), "a := 1\t\\\nb\n");
        assert_eq!(edit("a\n", json!({"regexp": "^x(.)", "line": r"y\1", "backrefs": true})), "a\n");
        assert_eq!(edit("a\nb\na\n", json!({"line": "a", "state": "absent"})), "b\n");
        assert_eq!(edit("a1\nb\na2\n", json!({"regexp": "^a", "state": "absent"})), "b\n");
        assert_eq!(edit("(?=x)\nb\n", json!({"regexp": r"^\(\?(?==)", "state": "absent"})), "b\n");
    }

    #[test]
    fn bad_calls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        assert!(fails(json!({"path": path, "line": "a"})).hint.unwrap().contains("create"));
        assert!(fails(json!({"path": folder.path(), "line": "a"})).message.contains("is a folder"));
        assert!(fails(json!({"path": path})).message.contains("'line' is missing"));
        assert!(fails(json!({"path": path, "line": "a", "regexp": "("})).message.contains("no regular expression"));
        assert!(
            fails(json!({"path": path, "line": "a", "regexp": "a", "search_string": "a"})).message.contains("exclude")
        );
        assert!(fails(json!({"path": path, "line": "a\nb"})).message.contains("line end"));
        assert!(
            fails(json!({"path": path, "line": "a", "insertafter": "a", "insertbefore": "b"}))
                .message
                .contains("exclude")
        );
        fs::write(&path, b"\xff\xfe").unwrap();
        assert!(fails(json!({"path": path, "line": "a"})).message.contains("not UTF-8"));
        fs::write(&path, "ab\n").unwrap();
        assert!(
            fails(json!({"path": path, "regexp": "a(b)", "line": r"\2", "backrefs": true}))
                .message
                .contains("no group 2")
        );
        let validate = json!({"path": path, "line": "new", "validate": "grep -q old %s"});
        assert!(fails(validate).message.contains("validation"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "ab\n");
        let made = folder.path().join("made");
        let call = testing::call(&DEFINITION, json!({"path": made, "line": "a", "create": true, "mode": "0600"}), None);
        testing::run_twice(&DEFINITION, &call);
        assert_eq!(fs::read_to_string(&made).unwrap(), "a\n");
    }
}
