//! `user`: users of /etc/passwd, and their groups.

use std::path::{Path, PathBuf};

use super::{
    Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    group::{check_name, groups},
    steps::{Step, Steps, read_text},
};
use crate::{
    args, choice,
    host::{Attrs, Command, Effect, Group, Read, User},
};

choice!(
    /// Whether it is there.
    State { Present = "present", Absent = "absent" }
);
choice!(
    /// When the password is set.
    UpdatePassword { Always = "always", OnCreate = "on_create" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// The login name.
        name ["user"]: String, required;
        /// Its number.
        uid []: Option<u32>;
        /// The primary group, a name or a number. New users without it get a group of their own name.
        group []: Option<String>;
        /// Further groups; an empty list takes it out of all, unless `append`.
        groups []: Option<Vec<String>>;
        /// Only add the user to `groups`.
        append []: bool = false;
        /// The home folder.
        home []: Option<PathBuf>;
        /// Make the home folder: for new users unless `false`; for an existing user only if said.
        create_home ["createhome"]: Option<bool>;
        /// The login shell.
        shell []: Option<PathBuf>;
        /// The comment, mostly the full name.
        comment []: Option<String>;
        /// Take the number from the range of system users (new users only).
        system []: bool = false;
        /// The hash of the password, as in /etc/shadow; `!` and `*` lock it.
        password []: Option<String>;
        /// Set the password of an existing user too (`always`), or of new ones only (`on_create`).
        update_password []: UpdatePassword = UpdatePassword::Always;
        /// Whether it is there.
        state []: State = State::Present;
        /// With `absent`: remove the home folder and mail too.
        remove []: bool = false;
        /// With `absent`: remove the user even while it is logged in.
        force []: bool = false;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "user",
    aliases: &[],
    summary: "Makes, changes or removes a user",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("name", "The login name."),
        ("uid", "Its number; not there where it is only planned."),
        ("group", "The number of its primary group; likewise."),
        ("home", "The home folder."),
        ("shell", "The login shell."),
        ("comment", "The comment."),
        ("state", "`present`; not there where the user was removed."),
        ("remove", "As the argument says, where the user was removed."),
    ]],
    example: "- name: Consul's user\n  user:\n    name: consul\n    group: consul\n    system: true\n    home: /opt/consul\n    create_home: false\n    shell: /bin/false\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check_name("user", &args.name)?;
    check_fields(&args)?;
    let users = cx.host.users().map_err(|e| Failure::io("read", Path::new("/etc/passwd"), &e))?;
    let current = users.iter().find(|u| u.name == args.name);
    match (args.state, current) {
        (State::Absent, None) => Ok(Plan::Unchanged(Outcome::unchanged().with("name", args.name))),
        (State::Absent, Some(user)) => Ok(absent(&args, user, &groups(cx.host)?)),
        (State::Present, current) => {
            if let Some(uid) = args.uid
                && let Some(other) = users.iter().find(|u| u.uid == Some(uid) && u.name != args.name)
            {
                return Err(Failure::new(format!("uid {uid} is taken by user {}", other.name)));
            }
            present(&args, current, cx.host)
        }
    }
}

fn check_fields(args: &Args) -> Result<(), Failure> {
    let paths = [("home", &args.home), ("shell", &args.shell)];
    let texts =
        paths.iter().filter_map(|(name, path)| path.as_ref().map(|p| (*name, p.to_string_lossy().into_owned())));
    for (name, text) in texts.chain(args.comment.iter().map(|text| ("comment", text.clone()))) {
        if text.contains([':', '\n', '\0']) {
            return Err(Failure::new(format!(
                "argument '{name}' holds a colon, line break or NUL: /etc/passwd cannot hold it"
            )));
        }
    }
    if let Some(password) = &args.password {
        let hash = password.starts_with(['$', '!', '*']) || password.is_empty();
        if !hash || password.contains([':', '\n', '\0']) {
            return Err(Failure::new("argument 'password': expected a hash as in /etc/shadow, found something else")
                .hint("make one with `openssl passwd -6`; a plain password would be stored unusable"));
        }
    }
    Ok(())
}

fn absent(args: &Args, user: &User, groups: &[Group]) -> Plan {
    let mut argv = vec!["userdel".to_owned()];
    argv.extend(args.force.then(|| "--force".to_owned()));
    argv.extend(args.remove.then(|| "--remove".to_owned()));
    argv.extend(["--".into(), args.name.clone()]);
    let mut effects = vec![Effect::NoUser(args.name.clone())];
    for group in groups {
        // userdel takes the user's own group along where nobody else is in it.
        if group.name == args.name && group.gid == user.gid && group.members.iter().all(|m| *m == args.name) {
            effects.push(Effect::NoGroup(group.name.clone()));
        } else if group.members.contains(&args.name) {
            effects.push(Effect::Group(without(group, &args.name)));
        }
    }
    let outcome = Outcome::changed().with("name", args.name.clone()).with("remove", args.remove);
    Steps::new(outcome)
        .diff(format!("user {}", args.name), format!("uid: {}\nhome: {}\n", number(user.uid), user.home.display()), "")
        .step(Step::Run(Command::new(argv), effects))
        .into_plan()
}

fn without(group: &Group, name: &str) -> Group {
    Group { members: group.members.iter().filter(|m| *m != name).cloned().collect(), ..group.clone() }
}

/// A difference that is found: the program's option, and lines for the diff.
struct Found {
    argv: Vec<String>,
    before: String,
    after: String,
}

impl Found {
    fn add(&mut self, option: &str, what: &str, before: &str, after: &str) {
        self.argv.extend([option.to_owned(), after.to_owned()]);
        if !before.is_empty() {
            self.before.push_str(&format!("{what}: {before}\n"));
        }
        self.after.push_str(&format!("{what}: {after}\n"));
    }
}

fn present(args: &Args, current: Option<&User>, host: &dyn Read) -> Result<Plan, Failure> {
    let groups = groups(host)?;
    let mut found = Found { argv: Vec::new(), before: String::new(), after: String::new() };
    let mut user = current.cloned().unwrap_or_else(|| new_user(args, host));
    let mut effects = Vec::new();
    if let Some(uid) = args.uid.filter(|uid| current.and_then(|u| u.uid) != Some(*uid)) {
        found.add("--uid", "uid", &current.map(|u| number(u.uid)).unwrap_or_default(), &uid.to_string());
        user.uid = Some(uid);
    }
    primary_group(args, current, &groups, &mut user, &mut found, &mut effects)?;
    if let Some(comment) = args.comment.as_ref().filter(|c| current.is_none_or(|u| u.gecos != **c)) {
        found.add("--comment", "comment", current.map_or("", |u| &u.gecos), comment);
        user.gecos.clone_from(comment);
    }
    let path = |path: &Path| path.to_string_lossy().into_owned();
    if let Some(home) = args.home.as_ref().filter(|h| current.is_none_or(|u| u.home != **h)) {
        found.add("--home-dir", "home", &current.map(|u| path(&u.home)).unwrap_or_default(), &path(home));
        user.home.clone_from(home);
    }
    if let Some(shell) = args.shell.as_ref().filter(|s| current.is_none_or(|u| u.shell != **s)) {
        found.add("--shell", "shell", &current.map(|u| path(&u.shell)).unwrap_or_default(), &path(shell));
        user.shell.clone_from(shell);
    }
    further_groups(args, &groups, current.is_some(), &mut found, &mut effects)?;
    effects.insert(0, Effect::User(user.clone()));
    assemble(args, current, &user, found, effects, host)
}

fn new_user(args: &Args, host: &dyn Read) -> User {
    let defaults = read_text(host, Path::new("/etc/default/useradd")).ok().flatten().unwrap_or_default();
    let default = |name: &str| defaults.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
    User {
        name: args.name.clone(),
        uid: None,
        gid: None,
        gecos: String::new(),
        home: Path::new(default("HOME").unwrap_or("/home")).join(&args.name),
        shell: default("SHELL").unwrap_or("/bin/sh").into(),
    }
}

fn primary_group(
    args: &Args,
    current: Option<&User>,
    groups: &[Group],
    user: &mut User,
    found: &mut Found,
    effects: &mut Vec<Effect>,
) -> Result<(), Failure> {
    match (&args.group, current) {
        (Some(name), _) => {
            let group = group_of(groups, name)?;
            // A planned group has no number yet; then a planned user in it has none either.
            let same = current.is_some_and(|u| u.gid == group.gid);
            if !same {
                let before = current.map(|u| group_name(groups, u.gid)).unwrap_or_default();
                found.add("--gid", "group", &before, &group.name);
                user.gid = group.gid;
            }
        }
        (None, None) => match groups.iter().find(|g| g.name == args.name) {
            // useradd would refuse to make it a second time.
            Some(own) => {
                found.add("--gid", "group", "", &own.name);
                user.gid = own.gid;
            }
            None => {
                found.argv.push("--user-group".into());
                effects.push(Effect::Group(Group { name: args.name.clone(), gid: None, members: Vec::new() }));
            }
        },
        (None, Some(_)) => {}
    }
    Ok(())
}

fn further_groups(
    args: &Args,
    groups: &[Group],
    exists: bool,
    found: &mut Found,
    effects: &mut Vec<Effect>,
) -> Result<(), Failure> {
    let Some(wanted) = &args.groups else { return Ok(()) };
    let wanted: Vec<&Group> =
        wanted.iter().filter(|name| !name.is_empty()).map(|name| group_of(groups, name)).collect::<Result<_, _>>()?;
    let is_in = |group: &&Group| group.members.contains(&args.name);
    let current: Vec<&Group> = groups.iter().filter(is_in).collect();
    let names = |groups: &[&Group]| {
        let mut names: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.join(",")
    };
    let keep = if args.append { current.clone() } else { Vec::new() };
    let after: Vec<&Group> = wanted.into_iter().chain(keep).collect();
    if names(&after) == names(&current) {
        return Ok(());
    }
    // usermod takes the whole list: with `append` the groups that are there stand in it.
    let before = if exists { names(&current) } else { String::new() };
    found.add("--groups", "groups", &before, &names(&after));
    for group in &after {
        let mut group = without(group, &args.name);
        group.members.push(args.name.clone());
        effects.push(Effect::Group(group));
    }
    for group in current.iter().filter(|group| !after.iter().any(|g| g.name == group.name)) {
        effects.push(Effect::Group(without(group, &args.name)));
    }
    Ok(())
}

fn assemble(
    args: &Args,
    current: Option<&User>,
    user: &User,
    found: Found,
    effects: Vec<Effect>,
    host: &dyn Read,
) -> Result<Plan, Failure> {
    let outcome = Outcome::unchanged()
        .with("name", args.name.clone())
        .with("home", user.home.to_string_lossy().into_owned())
        .with("shell", user.shell.to_string_lossy().into_owned())
        .with("comment", user.gecos.clone())
        .with("state", "present");
    let outcome = [("uid", user.uid), ("group", user.gid)]
        .into_iter()
        .filter_map(|(name, id)| id.map(|id| (name, id)))
        .fold(outcome, |outcome, (name, id)| outcome.with(name, id));
    let mut steps = Steps::new(Outcome { changed: true, ..outcome.clone() });
    let home_attrs = Attrs { mode: Some(0o700), owner: Some(user.name.clone()), group: None };
    if current.is_none() {
        let mut argv = vec!["useradd".to_owned()];
        argv.extend(args.system.then(|| "--system".to_owned()));
        let make_home = args.create_home.unwrap_or(true);
        argv.push(if make_home { "--create-home" } else { "--no-create-home" }.into());
        argv.extend(found.argv);
        argv.extend(["--".into(), args.name.clone()]);
        steps = steps.step(Step::Run(Command::new(argv), effects));
        if make_home {
            steps = steps.step(Step::PlannedDirectory(user.home.clone(), home_attrs));
        }
    } else {
        if !found.argv.is_empty() {
            let argv = std::iter::once("usermod".to_owned())
                .chain(found.argv.into_iter().map(|a| if a == "--home-dir" { "--home".into() } else { a }))
                .chain(["--".into(), args.name.clone()]);
            steps = steps.step(Step::Run(Command::new(argv), effects));
        }
        let home = host.meta(&user.home).map_err(|e| Failure::io("look at", &user.home, &e))?;
        if args.create_home == Some(true) && home.is_none() {
            let what = user.home.display().to_string();
            let group = user.gid.map(|gid| gid.to_string());
            steps =
                steps.diff(what, "", "a folder\n").step(Step::Mkdir(user.home.clone(), Attrs { group, ..home_attrs }));
        }
    }
    if let Some(step) = password(args, current.is_some(), host)? {
        steps = steps.step(step);
        steps.diffs.push(Diff {
            what: format!("password of {}", args.name),
            before: String::new(),
            after: String::new(),
            hidden: true,
        });
    }
    if !found.after.is_empty() || current.is_none() {
        let after = if current.is_none() { format!("name: {}\n{}", args.name, found.after) } else { found.after };
        let what = format!("user {}", args.name);
        steps.diffs.insert(0, Diff { what, before: found.before, after, hidden: false });
    }
    steps.finish = Some(numbers);
    Ok(if steps.list.is_empty() { Plan::Unchanged(outcome) } else { steps.into_plan() })
}

/// The numbers that a new user has got.
fn numbers(host: &dyn Read, outcome: Outcome) -> Result<Outcome, Failure> {
    let users = host.users().map_err(|e| Failure::io("read", Path::new("/etc/passwd"), &e))?;
    let Some(user) = users.iter().find(|u| outcome.data.get("name").is_some_and(|name| *name == u.name)) else {
        return Err(Failure { changed: true, ..Failure::new("the user was made, but is not in /etc/passwd") });
    };
    let ids = [("uid", user.uid), ("group", user.gid)];
    Ok(ids.into_iter().filter_map(|(name, id)| Some((name, id?))).fold(outcome, |o, (name, id)| o.with(name, id)))
}

/// Sets the password by standard input: arguments of programs are seen by everyone on the machine.
fn password(args: &Args, exists: bool, host: &dyn Read) -> Result<Option<Step>, Failure> {
    let Some(hash) = &args.password else { return Ok(None) };
    if exists {
        if args.update_password == UpdatePassword::OnCreate {
            return Ok(None);
        }
        let shadow = read_text(host, Path::new("/etc/shadow"))?.unwrap_or_default();
        let is = shadow.lines().find_map(|line| line.strip_prefix(&args.name)?.strip_prefix(':')?.split(':').next());
        if is == Some(hash) {
            return Ok(None);
        }
    }
    let mut command = Command::new(["chpasswd", "-e"]);
    command.stdin = Some(format!("{}:{hash}\n", args.name).into_bytes());
    Ok(Some(Step::Run(command, vec![Effect::Other])))
}

fn group_of<'a>(groups: &'a [Group], name: &str) -> Result<&'a Group, Failure> {
    let by_number = |g: &&Group| name.parse::<u32>().is_ok_and(|gid| g.gid == Some(gid));
    groups.iter().find(|g| g.name == name).or_else(|| groups.iter().find(by_number)).ok_or_else(|| {
        let failure = Failure::new(format!("group '{}' does not exist", name.escape_debug()));
        match crate::diag::nearest(name, groups.iter().map(|g| g.name.as_str())) {
            Some(near) => failure.hint(format!("did you mean '{near}'?")),
            None => failure.hint("make it first, with the group module"),
        }
    })
}

fn group_name(groups: &[Group], gid: Option<u32>) -> String {
    groups.iter().find(|g| g.gid == gid).map_or_else(|| number(gid), |g| g.name.clone())
}

fn number(id: Option<u32>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::modules::fake::{Fake, converges, go, plan};

    fn consul() -> serde_json::Value {
        json!({"name": "consul", "group": "consul", "system": true, "home": "/opt/consul", "create_home": false,
            "shell": "/bin/false"})
    }

    #[test]
    fn a_system_user_is_made_once() {
        let mut fake = Fake::new();
        converges(&mut fake, "group", json!({"name": "consul", "system": true}));
        let outcome = converges(&mut fake, "user", consul());
        assert_eq!(
            fake.ran[1],
            "useradd --system --no-create-home --gid consul --home-dir /opt/consul --shell /bin/false -- consul"
        );
        assert_eq!((&outcome.data["home"], &outcome.data["uid"]), (&json!("/opt/consul"), &json!(900)));
        let gid = fake.groups.iter().find(|g| g.name == "consul").unwrap().gid;
        assert_eq!(fake.users.iter().find(|u| u.name == "consul").unwrap().gid, gid);
    }

    #[test]
    fn check_sees_a_planned_group() {
        let fake = Fake::new();
        let mut overlay = crate::host::overlay::Overlay::new(&fake);
        assert!(go(&mut overlay, "user", consul()).unwrap_err().message.contains("does not exist"));
        go(&mut overlay, "group", json!({"name": "consul"})).unwrap();
        assert!(go(&mut overlay, "user", consul()).unwrap().changed);
        assert!(!go(&mut overlay, "user", consul()).unwrap().changed);
        assert!(fake.ran.is_empty());
    }

    #[test]
    fn an_existing_user_is_changed_where_it_differs() {
        let mut fake = Fake::new();
        converges(&mut fake, "user", json!({"name": "ann"}));
        assert_eq!(fake.ran, ["useradd --create-home --user-group -- ann"]);
        converges(&mut fake, "user", json!({"name": "ann", "comment": "Ann", "shell": "/bin/zsh", "home": "/srv/ann"}));
        assert_eq!(fake.ran[1], "usermod --comment Ann --home /srv/ann --shell /bin/zsh -- ann");
        assert!(!go(&mut fake, "user", json!({"name": "ann"})).unwrap().changed);
    }

    #[test]
    fn further_groups_are_set_or_added() {
        let mut fake = Fake::new();
        for name in ["a", "b", "c"] {
            go(&mut fake, "group", json!({"name": name})).unwrap();
        }
        converges(&mut fake, "user", json!({"name": "ann", "groups": ["b", "a"]}));
        converges(&mut fake, "user", json!({"name": "ann", "groups": "c", "append": true}));
        assert_eq!(fake.ran.last().unwrap(), "usermod --groups a,b,c -- ann");
        assert!(!go(&mut fake, "user", json!({"name": "ann", "groups": ["a"], "append": true})).unwrap().changed);
        converges(&mut fake, "user", json!({"name": "ann", "groups": ["a"]}));
        converges(&mut fake, "user", json!({"name": "ann", "groups": []}));
        assert!(fake.groups.iter().all(|g| g.members.is_empty()));
    }

    #[test]
    fn a_password_never_stands_in_arguments() {
        let mut fake = Fake::new().file("/etc/shadow", "ann:$6$old$x:1:0:9:7:::\n");
        go(&mut fake, "user", json!({"name": "ann", "password": "$6$s$h"})).unwrap();
        assert_eq!(fake.stdin, ["ann:$6$s$h\n"]);
        assert!(fake.ran.iter().all(|line| !line.contains("$6$s$h")));
        let Plan::Change(change) = plan(&fake, "user", json!({"name": "ann", "password": "$6$s$h"})).unwrap() else {
            panic!()
        };
        let diff = &change.diffs()[0];
        assert!(diff.hidden && diff.after.is_empty() && !format!("{diff:?}").contains("$6$"));
        let same = json!({"name": "ann", "password": "$6$old$x"});
        assert!(!go(&mut fake, "user", same).unwrap().changed);
        let kept = json!({"name": "ann", "password": "$6$s$h", "update_password": "on_create"});
        assert!(!go(&mut fake, "user", kept).unwrap().changed);
        let plain = plan(&fake, "user", json!({"name": "ann", "password": "secret"})).unwrap_err();
        assert!(plain.message.contains("a hash") && !plain.message.contains("secret"));
    }

    #[test]
    fn users_are_removed_with_their_own_group() {
        let mut fake = Fake::new();
        go(&mut fake, "user", json!({"name": "ann"})).unwrap();
        let args = json!({"name": "ann", "state": "absent", "remove": true});
        converges(&mut fake, "user", args);
        assert_eq!(fake.ran.last().unwrap(), "userdel --remove -- ann");
        assert!(!fake.groups.iter().any(|g| g.name == "ann"));
    }

    #[test]
    fn the_home_of_an_existing_user_is_made_only_if_said() {
        let mut fake = Fake::new();
        go(&mut fake, "user", json!({"name": "ann", "create_home": false})).unwrap();
        assert!(!go(&mut fake, "user", json!({"name": "ann"})).unwrap().changed);
        converges(&mut fake, "user", json!({"name": "ann", "create_home": true}));
        assert!(fake.folders.contains(Path::new("/home/ann")));
    }

    #[test]
    fn bad_input_is_refused() {
        let fake = Fake::new();
        let error = |args| plan(&fake, "user", args).unwrap_err();
        assert_eq!(error(json!({"name": "x", "uid": 0})).message, "uid 0 is taken by user root");
        assert_eq!(error(json!({"name": "x", "group": "deamon"})).hint.unwrap(), "did you mean 'daemon'?");
        assert!(error(json!({"name": "x", "comment": "a:b"})).message.contains("colon"));
        assert!(error(json!({"name": "x", "home": "home"})).message.contains("absolute path"));
        assert!(error(json!({"name": "x", "move_home": true})).hint.unwrap().contains("`home` only"));
        assert!(error(json!({"name": "x", "uid": -1})).message.contains("whole number"));
        assert!(error(json!({"name": "../x"})).message.contains("is no name for a user"));
    }
}
