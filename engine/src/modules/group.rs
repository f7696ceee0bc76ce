//! `group`: groups of /etc/group.

use std::path::Path;

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    steps::{Step, Steps},
};
use crate::{
    args, choice,
    host::{Command, Effect, Group, Read},
};

choice!(
    /// Whether it is there.
    State { Present = "present", Absent = "absent" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// The group's name.
        name []: String, required;
        /// Its number.
        gid []: Option<u32>;
        /// Take the number from the range of system groups.
        system []: bool = false;
        /// Whether it is there.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "group",
    aliases: &[],
    summary: "Makes, changes or removes a group",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("name", "Its name."),
        ("state", "`present`; not there where it was removed."),
        ("system", "As the argument says."),
        ("gid", "Its number; not there where it is only planned."),
    ]],
    example: "- name: Consul's group\n  group:\n    name: consul\n    system: true\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check_name("group", &args.name)?;
    let groups = groups(cx.host)?;
    let current = groups.iter().find(|g| g.name == args.name);
    let what = format!("group {}", args.name);
    let done = |outcome: Outcome| outcome.with("name", args.name.clone());
    match (args.state, current) {
        (State::Absent, None) => Ok(Plan::Unchanged(done(Outcome::unchanged()))),
        (State::Absent, Some(group)) => {
            refuse_primary(cx.host, group)?;
            let command = Command::new(["groupdel", "--", &args.name]);
            Ok(Steps::new(done(Outcome::changed()))
                .diff(what, describe(group), "")
                .step(Step::Run(command, vec![Effect::NoGroup(args.name.clone())]))
                .into_plan())
        }
        (State::Present, current) => {
            if let Some(gid) = args.gid
                && let Some(other) = groups.iter().find(|g| g.gid == Some(gid) && g.name != args.name)
            {
                return Err(Failure::new(format!("gid {gid} is taken by group {}", other.name)));
            }
            let wanted = Group {
                name: args.name.clone(),
                gid: args.gid.or(current.and_then(|g| g.gid)),
                members: current.map(|g| g.members.clone()).unwrap_or_default(),
            };
            let outcome = |outcome: Outcome| {
                let outcome = done(outcome).with("state", "present").with("system", args.system);
                match wanted.gid {
                    Some(gid) => outcome.with("gid", gid),
                    None => outcome,
                }
            };
            let mut argv = vec![if current.is_some() { "groupmod" } else { "groupadd" }.to_owned()];
            match current {
                Some(group) if args.gid.is_none() || group.gid == args.gid => {
                    return Ok(Plan::Unchanged(outcome(Outcome::unchanged())));
                }
                None if args.system => argv.push("--system".into()),
                _ => {}
            }
            if let Some(gid) = args.gid {
                argv.extend(["--gid".into(), gid.to_string()]);
            }
            argv.extend(["--".into(), args.name.clone()]);
            let mut steps = Steps::new(outcome(Outcome::changed()))
                .diff(what, current.map(describe).unwrap_or_default(), describe(&wanted))
                .step(Step::Run(Command::new(argv), vec![Effect::Group(wanted)]));
            steps.finish = Some(number);
            Ok(steps.into_plan())
        }
    }
}

/// The number that a new group has got.
fn number(host: &dyn Read, outcome: Outcome) -> Result<Outcome, Failure> {
    let groups = groups(host)?;
    let found = groups.iter().find(|g| outcome.data.get("name").is_some_and(|name| *name == g.name));
    match found.map(|group| group.gid) {
        Some(Some(gid)) => Ok(outcome.with("gid", gid)),
        Some(None) => Ok(outcome),
        None => Err(Failure { changed: true, ..Failure::new("the group was made, but is not in /etc/group") }),
    }
}

pub(super) fn groups(host: &dyn Read) -> Result<Vec<Group>, Failure> {
    host.groups().map_err(|e| Failure::io("read", Path::new("/etc/group"), &e))
}

fn refuse_primary(host: &dyn Read, group: &Group) -> Result<(), Failure> {
    let users = host.users().map_err(|e| Failure::io("read", Path::new("/etc/passwd"), &e))?;
    match users.iter().find(|user| user.gid.is_some() && user.gid == group.gid) {
        Some(user) => Err(Failure::new(format!("group {} is the primary group of user {}", group.name, user.name))
            .hint("remove the user first, or give it another group")),
        None => Ok(()),
    }
}

/// Names as useradd and groupadd of Debian take them, less what breaks /etc/passwd.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Failure> {
    let good = |c: char| !c.is_whitespace() && !c.is_control() && !":,/\"'\\".contains(c);
    let starts_well = !name.starts_with(['-', '+', '~']) && !name.is_empty();
    if starts_well && name.len() <= 32 && name.chars().all(good) && !name.chars().all(|c| c.is_ascii_digit()) {
        return Ok(());
    }
    Err(Failure::new(format!("'{}' is no name for a {what}", name.escape_debug()))
        .hint("at most 32 characters; no spaces, colons, commas or slashes; not a number; no leading - + ~"))
}

fn describe(group: &Group) -> String {
    group.gid.map_or_else(|| format!("name: {}\n", group.name), |gid| format!("name: {}\ngid: {gid}\n", group.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::modules::fake::{Fake, converges, go, plan};

    #[test]
    fn groups_come_change_and_go() {
        let mut fake = Fake::new();
        let made = converges(&mut fake, "group", json!({"name": "consul", "system": true}));
        assert_eq!(made.data["gid"], 901);
        converges(&mut fake, "group", json!({"name": "consul", "gid": 4000}));
        converges(&mut fake, "group", json!({"name": "consul", "state": "absent"}));
        assert_eq!(fake.ran, ["groupadd --system -- consul", "groupmod --gid 4000 -- consul", "groupdel -- consul"]);
    }

    #[test]
    fn bad_input_is_refused() {
        let fake = Fake::new();
        let error = |args| plan(&fake, "group", args).unwrap_err().message;
        assert_eq!(error(json!({"name": "x", "gid": 1})), "gid 1 is taken by group daemon");
        assert!(error(json!({"name": "daemon", "state": "absent"})).contains("primary group of user daemon"));
        for name in ["", "a b", "a:b", "-r", "1000", "a\nb", "a\u{0}b", &"x".repeat(33)] {
            assert!(error(json!({"name": name})).contains("is no name for a group"), "{name:?}");
        }
    }

    #[test]
    fn a_failing_program_is_a_failure() {
        let mut fake = Fake::new().answers("groupadd", 10, "", "groupadd: cannot lock /etc/group\n");
        let failure = go(&mut fake, "group", json!({"name": "x"})).unwrap_err();
        assert_eq!(failure.message, "groupadd ended with code 10: groupadd: cannot lock /etc/group");
    }
}
