//! Whole playbooks: what good ones mean, and what bad ones are told.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::{cell::Cell, fmt::Write as _, path::Path};

use proptest::test_runner::TestRunner;
use rollcall_engine::{
    diag::{Diagnostics, Sources},
    node::Node,
    playbook::{
        Loaded, Loader,
        model::{Action, Bundle, Item, SearchKind, Task},
        select_tags,
    },
    project::Project,
    roles::NoRoles,
    vars::Vars,
};

#[path = "../src/fuzz.rs"]
mod fuzz;

const GOOD: &str = "tests/fixtures/playbooks/good";

fn load(project: &str, playbook: &str) -> (Sources, Result<Loaded, Diagnostics>) {
    let sources = Sources::default();
    let loaded = Project::find(&sources, Path::new(project)).and_then(|found| {
        let loader = Loader { sources: &sources, project: &found, embedded_roles: &NoRoles, extra: &Vars::new() };
        loader.load(&[Path::new(project).join(playbook)])
    });
    (sources, loaded)
}

fn rendered(sources: &Sources, wrong: &Diagnostics) -> String {
    wrong.0.iter().map(|d| sources.render(d)).collect()
}

fn good() -> Loaded {
    let (sources, loaded) = load(GOOD, "site.yaml");
    loaded.unwrap_or_else(|wrong| panic!("{}", rendered(&sources, &wrong)))
}

/// One line for each task: where it comes from, what it does, what it inherited.
fn outline(bundle: &Bundle, items: &[Item], depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    for item in items {
        match item {
            Item::Block(block) => {
                let _ = writeln!(out, "{pad}block {}", block.name.as_deref().unwrap_or("-"));
                outline(bundle, &block.block, depth + 1, out);
                let _ = writeln!(out, "{pad}rescue");
                outline(bundle, &block.rescue, depth + 1, out);
                let _ = writeln!(out, "{pad}always");
                outline(bundle, &block.always, depth + 1, out);
            }
            Item::Task(task) => {
                let _ = writeln!(out, "{pad}{}", line(bundle, task));
                for tasks in task.action.role_tasks() {
                    outline(bundle, tasks, depth + 1, out);
                }
            }
        }
    }
}

fn line(bundle: &Bundle, task: &Task) -> String {
    let mut text = String::new();
    if let Some(role) = task.role {
        let _ = write!(text, "[{}] ", bundle.roles[role.0 as usize].name);
    }
    let _ = match &task.action {
        Action::Module { name, args } => write!(text, "{name} {}", args.to_value()),
        Action::IncludeTasks { file, .. } => write!(text, "include_tasks {}", file.as_str().unwrap_or("?")),
        Action::IncludeVars { file, .. } => write!(text, "include_vars {}", file.as_str().unwrap_or("?")),
        Action::IncludeRole { .. } => write!(text, "include_role"),
        other => write!(text, "{other:?}"),
    };
    if !task.when.is_empty() {
        let _ = write!(text, " when {}", task.when.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join(" AND "));
    }
    if !task.tags.is_empty() {
        let _ = write!(text, " tags {}", task.tags.join(","));
    }
    if let Some(enabled) = task.become_.enabled {
        let _ = write!(text, " become {enabled}");
    }
    if let Some(looped) = &task.loop_ {
        let _ = write!(text, " loop {} over {}", looped.var, looped.items.to_value());
    }
    text
}

fn sections(bundle: &Bundle) -> String {
    let mut out = String::new();
    for play in &bundle.plays {
        let _ = writeln!(out, "PLAY {} on {}", play.name, play.hosts.as_str().unwrap_or("?"));
        for (name, items) in [("pre", &play.pre_tasks), ("tasks", &play.tasks), ("post", &play.post_tasks)] {
            let _ = writeln!(out, " {name}:");
            outline(bundle, items, 1, &mut out);
        }
        for handler in &play.handlers {
            let name = handler.task.name.as_ref().and_then(|n| n.as_str()).unwrap_or("-");
            let _ = writeln!(
                out,
                " handler {name} {:?} {:?} {:?} {}",
                handler.serial,
                handler.gate,
                handler.after.as_ref().map(Node::to_value),
                line(bundle, &handler.task)
            );
        }
    }
    out
}

#[test]
fn a_good_playbook_is_read() {
    let loaded = good();
    let text = sections(&loaded.bundle);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write("tests/fixtures/playbooks/good.txt", &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string("tests/fixtures/playbooks/good.txt").unwrap());
}

#[test]
fn bad_playbooks_are_refused_with_exactly_this() {
    let folder = Path::new("tests/fixtures/playbooks/bad");
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| Path::new(n).extension().is_some_and(|e| e == "yaml") && n != "rollcall.yaml")
        .collect();
    names.sort();
    assert!(names.len() >= 25);
    let mut wrong = Vec::new();
    for name in names {
        let (sources, loaded) = load("tests/fixtures/playbooks/bad", &name);
        let Err(found) = loaded else {
            wrong.push(format!("{name} was taken"));
            continue;
        };
        let text = rendered(&sources, &found);
        let expected = folder.join(&name).with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&expected, &text).unwrap();
        }
        if std::fs::read_to_string(&expected).unwrap_or_default() != text {
            wrong.push(format!("{name}:\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A seeded xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (below.max(1) as u64)).unwrap()
    }
}

/// Changes some bytes, lines or words of a text.
fn mutate(text: &str, random: &mut Random) -> String {
    const PIECES: &[&str] = &[
        "{{",
        "}}",
        "{%",
        "- ",
        ": ",
        "\n",
        "'",
        "\"",
        "[",
        "]",
        "{",
        "}",
        "\t",
        "&a ",
        "*a",
        "<<: ",
        "!x ",
        "|\n",
        "> ",
        "when",
        "loop",
        "block",
        "hosts",
        "include_tasks",
        "ä\u{0}",
        "0",
        "-1",
        "~",
        "yes",
        "..",
        "{{ a }}",
        "#",
        "%",
        "\\",
    ];
    let mut text: Vec<char> = text.chars().collect();
    for _ in 0..=random.next(4) {
        let at = random.next(text.len() + 1);
        match random.next(5) {
            0 => drop(text.splice(at..at, PIECES[random.next(PIECES.len())].chars()).collect::<Vec<_>>()),
            1 => drop(text.drain(at..(at + random.next(12)).min(text.len()))),
            2 => text.truncate(at),
            3 => {
                let to = (at + random.next(40)).min(text.len());
                let piece: Vec<char> = text[at..to].to_vec();
                let there = random.next(text.len() + 1);
                drop(text.splice(there..there, piece).collect::<Vec<_>>());
            }
            _ => {
                let lines: Vec<String> = text.iter().collect::<String>().lines().map(str::to_owned).collect();
                if !lines.is_empty() {
                    let mut lines = lines;
                    let (a, b) = (random.next(lines.len()), random.next(lines.len()));
                    lines.swap(a, b);
                    text = lines.join("\n").chars().collect();
                }
            }
        }
    }
    text.into_iter().collect()
}

#[test]
fn mutated_playbooks_never_panic() {
    let mut seeds = Vec::new();
    for folder in [GOOD, "tests/fixtures/playbooks/bad"] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "yaml") && !path.ends_with("rollcall.yaml") {
                seeds.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    seeds.sort();
    let dir = tempfile::tempdir().unwrap();
    for role in ["fine", "other"] {
        std::fs::create_dir_all(dir.path().join("roles").join(role).join("tasks")).unwrap();
        std::fs::write(dir.path().join("roles").join(role).join("tasks/main.yml"), "- debug: {msg: x}\n").unwrap();
    }
    let project = Project::without_file(dir.path());
    let path = dir.path().join("site.yaml");
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let case = |seed: u64| {
        let mut random = Random(seed | 1);
        let text = mutate(&seeds[random.next(seeds.len())], &mut random);
        std::fs::write(&path, &text).unwrap();
        let sources = Sources::default();
        let loader = Loader { sources: &sources, project: &project, embedded_roles: &NoRoles, extra: &Vars::new() };
        match loader.load(std::slice::from_ref(&path)) {
            Ok(mut loaded) => {
                taken.set(taken.get() + 1);
                select_tags(&mut loaded.bundle, &[], &[]).unwrap();
            }
            Err(wrong) => {
                refused.set(refused.get() + 1);
                assert!(wrong.has_errors(), "{text}");
                assert!(!rendered(&sources, &wrong).is_empty(), "{text}");
            }
        }
        Ok(())
    };
    TestRunner::new(fuzz::cases(3000)).run(&proptest::num::u64::ANY, case).unwrap();
    // Both ways out are met: else the mutations would be too weak or too strong to say anything.
    assert!(taken.get() > 50 && refused.get() > 500, "{taken:?} taken, {refused:?} refused");
}

#[test]
fn files_of_the_project_count_for_playbooks_that_lie_elsewhere() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let put = |dir: &Path, name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put(
        ours.path(),
        "all.yaml",
        "- hosts: all\n  tasks:\n    - copy: {src: both, dest: /a}\n    - copy: {src: theirs, dest: /b}\n",
    );
    put(ours.path(), "files/both", "beside the playbook");
    for name in ["rollcall.yaml", "files/both", "files/theirs", "templates/late.j2"] {
        put(theirs.path(), name, if name == "rollcall.yaml" { "" } else { "of the project" });
    }
    let load = |project: &Project| {
        let sources = Sources::default();
        let loader = Loader { sources: &sources, project, embedded_roles: &NoRoles, extra: &Vars::new() };
        loader
            .load(&[ours.path().join("all.yaml")])
            .map(|loaded| loaded.bundle)
            .map_err(|wrong| rendered(&sources, &wrong))
    };
    let found = Project { file: Some(theirs.path().join("rollcall.yaml")), ..Project::without_file(theirs.path()) };
    let bundle = load(&found).unwrap();
    let play = bundle.plays[0].span;
    for (kind, name, dir) in [
        (SearchKind::Files, "both", ours.path().join("files")),
        (SearchKind::Files, "theirs", theirs.path().join("files")),
        (SearchKind::Templates, "late.j2", theirs.path().join("templates")),
    ] {
        let (path, _) = bundle.find_file(&bundle.search(None, play, kind), name).unwrap();
        assert_eq!(*path, dir.join(name));
    }
    let wrong = load(&Project::without_file(theirs.path())).unwrap_err();
    assert!(wrong.contains("file 'theirs' does not exist"), "{wrong}");
}

fn names(bundle: &Bundle) -> Vec<String> {
    fn walk(items: &[Item], out: &mut Vec<String>) {
        for item in items {
            match item {
                Item::Block(block) => [&block.block, &block.rescue, &block.always].iter().for_each(|l| walk(l, out)),
                Item::Task(task) => {
                    out.extend(task.name.as_ref().and_then(|n| n.as_str()).map(str::to_owned));
                    for tasks in task.action.role_tasks() {
                        walk(tasks, out);
                    }
                }
            }
        }
    }
    let mut out = Vec::new();
    for play in &bundle.plays {
        for list in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
            walk(list, &mut out);
        }
    }
    out
}

/// Loads a playbook written into a folder of its own, with further files.
fn written(playbook: &str, files: &[(&str, &str)]) -> (Sources, Result<Loaded, Diagnostics>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files.iter().chain([&("site.yaml", playbook)]) {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let (sources, loaded) = load(dir.path().to_str().unwrap(), "site.yaml");
    (sources, loaded, dir)
}

fn taken(playbook: &str, files: &[(&str, &str)]) -> (Loaded, tempfile::TempDir) {
    let (sources, loaded, dir) = written(playbook, files);
    (loaded.unwrap_or_else(|wrong| panic!("{}", rendered(&sources, &wrong))), dir)
}

fn selected(loaded: &Loaded, tags: &[&str], skip: &[&str]) -> Vec<String> {
    let mut bundle = loaded.bundle.clone();
    let list = |l: &[&str]| l.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    select_tags(&mut bundle, &list(tags), &list(skip)).unwrap();
    names(&bundle)
}

#[test]
fn tags_select_as_in_ansible() {
    let (loaded, _dir) = taken(
        "- hosts: all\n  tasks:\n    - {name: plain, debug: {msg: x}}\n    - {name: a, debug: {msg: x}, tags: a}\n    \
         - {name: ab, debug: {msg: x}, tags: 'a, b'}\n    - {name: always, debug: {msg: x}, tags: always}\n    \
         - {name: never, debug: {msg: x}, tags: [never, n]}\n    - {name: both, debug: {msg: x}, tags: [always, a]}\n    \
         - tags: c\n      block:\n        - {name: inner, debug: {msg: x}}\n      always:\n        - {name: end, debug: {msg: x}}\n",
        &[],
    );
    let all = |tags: &[&str], skip: &[&str]| selected(&loaded, tags, skip).join(" ");
    assert_eq!(all(&[], &[]), "plain a ab always both inner end");
    assert_eq!(all(&["all"], &[]), "plain a ab always both inner end");
    assert_eq!(all(&["a"], &[]), "a ab always both");
    assert_eq!(all(&["b,c"], &[]), "ab always both inner end");
    assert_eq!(all(&["n"], &[]), "always never both");
    assert_eq!(all(&["never"], &[]), "always never both");
    assert_eq!(all(&["tagged"], &[]), "a ab always both inner end");
    assert_eq!(all(&["untagged"], &[]), "plain always both");
    assert_eq!(all(&[], &["a"]), "plain always inner end");
    assert_eq!(all(&[], &["always"]), "plain a ab inner end");
    assert_eq!(all(&["a"], &["b"]), "a always both");
    assert_eq!(all(&[], &["all"]), "always both");
    assert_eq!(all(&[], &["tagged"]), "plain");
    assert_eq!(all(&[], &["untagged"]), "a ab always both inner end");
    let wrong = select_tags(&mut loaded.bundle.clone(), &["cc".into()], &["nope".into()]).unwrap_err();
    assert_eq!(wrong.0[0].message, "no task carries the tag 'cc' of --tags");
    assert_eq!(wrong.0[0].hint.as_deref(), Some("did you mean 'c'?"));
    assert_eq!(wrong.0[1].message, "no task carries the tag 'nope' of --skip-tags");
}

#[test]
fn a_role_runs_once_with_the_same_parameters() {
    let roles = [
        ("roles/base/tasks/main.yml", "- {name: 'base', debug: {msg: x}}\n"),
        ("roles/a/tasks/main.yml", "- {name: a, debug: {msg: x}}\n"),
        ("roles/a/meta/main.yml", "dependencies: [base]\n"),
        ("roles/b/tasks/main.yml", "- {name: b, debug: {msg: x}}\n"),
        ("roles/b/meta/main.yml", "dependencies: [base]\n"),
        ("roles/many/tasks/main.yml", "- {name: many, debug: {msg: x}}\n"),
        ("roles/many/meta/main.yml", "allow_duplicates: true\n"),
    ];
    let (loaded, _dir) = taken(
        "- hosts: all\n  roles:\n    - {role: a, tags: a}\n    - {role: b, tags: b}\n    - {role: a, size: 1}\n    - {role: a, size: 1}\n    \
         - many\n    - many\n    - {role: base, when: x is defined}\n",
        &roles,
    );
    assert_eq!(selected(&loaded, &[], &[]).join(" "), "base a b a many many base");
    // The use that stays is the first one that the tags leave.
    assert_eq!(selected(&loaded, &["b"], &[]).join(" "), "base b");
    let (imported, _dir) = taken(
        "- hosts: all\n  tasks:\n    - import_role: {name: many}\n    - include_role: {name: a}\n    - include_role: {name: a}\n",
        &roles,
    );
    assert_eq!(selected(&imported, &[], &[]).join(" "), "many base a base a");
}

#[test]
fn an_included_file_inherits_from_its_surroundings() {
    let (mut loaded, dir) = taken(
        "- hosts: all\n  become: true\n  environment: {A: 1}\n  tasks:\n    - when: outer is defined\n      tags: outer\n      vars: {v: 1}\n      block:\n        \
         - include_tasks: {file: more.yaml, apply: {tags: applied, become_user: bob}}\n          when: own is defined\n          tags: own\n          vars: {who: me}\n",
        &[(
            "more.yaml",
            "- {name: one, debug: {msg: x}, tags: one}\n- {name: two, debug: {msg: x}, become: false, tags: never}\n",
        )],
    );
    select_tags(&mut loaded.bundle, &[], &[]).unwrap();
    let Item::Task(include) = &loaded.bundle.plays[0].tasks[0] else { panic!("a task") };
    assert_eq!(
        include.when.iter().map(|e| e.text.as_str()).collect::<Vec<_>>(),
        ["outer is defined", "own is defined"]
    );
    assert_eq!(include.tags, ["outer", "own"]);
    let path = loaded.bundle.task_files.keys().next().unwrap().clone();
    assert_eq!(path, dir.path().join("more.yaml"));
    let items = loaded.bundle.included(include, &path).unwrap();
    let [Item::Task(one)] = &items[..] else { panic!("'never' is left out: {items:?}") };
    assert_eq!(one.when.iter().map(|e| e.text.as_str()).collect::<Vec<_>>(), ["outer is defined"]);
    assert_eq!(one.tags, ["outer", "applied", "one"]);
    assert_eq!((one.become_.enabled, one.become_.user.as_ref().and_then(|n| n.as_str())), (Some(true), Some("bob")));
    assert_eq!(one.environment.len(), 1);
    let vars: Vec<_> = one.vars.iter().flat_map(|v| v.iter().map(|(k, v)| (k.as_str(), v.layer))).collect();
    use rollcall_engine::vars::Layer;
    assert_eq!(vars, [("v", Layer::Block), ("who", Layer::IncludeParams)]);
    assert!(loaded.bundle.included(include, Path::new("none.yaml")).is_none());
}

#[test]
fn ids_grow_and_are_unique() {
    fn ids(items: &[Item], out: &mut Vec<u32>) {
        for item in items {
            match item {
                Item::Block(block) => [&block.block, &block.rescue, &block.always].iter().for_each(|l| ids(l, out)),
                Item::Task(task) => {
                    out.push(task.id);
                    for tasks in task.action.role_tasks() {
                        ids(tasks, out);
                    }
                }
            }
        }
    }
    let loaded = good();
    let mut all = Vec::new();
    for play in &loaded.bundle.plays {
        for list in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
            ids(list, &mut all);
        }
        all.extend(play.handlers.iter().map(|h| h.task.id));
    }
    let first_play: Vec<u32> = {
        let mut out = Vec::new();
        ids(&loaded.bundle.plays[0].pre_tasks, &mut out);
        out
    };
    assert_eq!(first_play, [1]);
    for items in loaded.bundle.task_files.values() {
        ids(items, &mut all);
    }
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(unique.len(), all.len());
}

#[test]
fn files_travel_under_the_names_that_tasks_find() {
    use rollcall_engine::playbook::{Blob, model::SearchKind};
    let loaded = good();
    let bundle = &loaded.bundle;
    let play = &bundle.plays[0];
    let web = bundle.roles.iter().position(|r| r.name == "web").unwrap();
    let id = rollcall_engine::playbook::model::RoleId(u32::try_from(web).unwrap());
    let search = bundle.search(Some(id), play.span, SearchKind::Templates);
    let (path, entry) = bundle.find_file(&search, "web.conf.j2").unwrap();
    assert_eq!(path, Path::new("tests/fixtures/playbooks/good/roles/web/templates/web.conf.j2"));
    let Blob::File(on_disk) = &loaded.contents[&entry.hash] else { panic!("a file") };
    assert_eq!(std::fs::read(on_disk).unwrap().len() as u64, entry.size);
    let search = bundle.search(None, play.span, SearchKind::Files);
    assert_eq!(bundle.find_file(&search, "motd").unwrap().1.size, 8);
    assert!(bundle.files.keys().any(|p| p.ends_with("roles/web/files/site/index.html")));
    let used: Vec<_> = loaded.roles_used.iter().map(|r| (r.name.as_str(), r.embedded)).collect();
    assert_eq!(used, [("common", false), ("web", false), ("users", false)]);
}

#[test]
fn links_that_lead_out_are_left_out() {
    let (_, loaded, dir) = written("- hosts: all\n", &[("files/a", "x"), ("secret", "y")]);
    loaded.unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("files/out")).unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("files/in")).unwrap();
    std::os::unix::fs::symlink(".", dir.path().join("files/circle")).unwrap();
    let (_, loaded) = load(dir.path().to_str().unwrap(), "site.yaml");
    let loaded = loaded.unwrap();
    let names: Vec<_> = loaded.bundle.files.keys().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a", "in"]);
    assert!(loaded.warnings[0].message.contains("leads out of its folder"), "{:?}", loaded.warnings);
}

struct Ours;

impl rollcall_engine::roles::EmbeddedRoles for Ours {
    fn get(&self, name: &str) -> Option<Vec<(std::path::PathBuf, Vec<u8>, u32)>> {
        (name == "base").then(|| {
            vec![
                (
                    "tasks/main.yml".into(),
                    b"- {name: ours, template: {src: a.tera, dest: /a}, notify: again}\n".to_vec(),
                    0o644,
                ),
                ("handlers/main.yml".into(), b"- {name: again, debug: {msg: x}}\n".to_vec(), 0o644),
                ("templates/a.tera".into(), b"{{ cluster }}\n".to_vec(), 0o644),
                ("files/run.sh".into(), b"#!/bin/sh\n".to_vec(), 0o755),
            ]
        })
    }
    fn names(&self) -> Vec<String> {
        vec!["base".into()]
    }
    fn playbook(&self, name: &str) -> Option<Vec<u8>> {
        match name {
            "base.yaml" => Some(b"- {hosts: all, roles: [base]}\n".to_vec()),
            "site.yaml" => Some(b"- import_playbook: base.yaml\n".to_vec()),
            _ => None,
        }
    }
    fn playbooks(&self) -> Vec<String> {
        vec!["base.yaml".into(), "site.yaml".into()]
    }
}

#[test]
fn our_roles_and_playbooks_are_found_by_name_and_replaced_whole() {
    use rollcall_engine::playbook::Blob;
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str| {
        let sources = Sources::default();
        let project = Project::find(&sources, dir.path()).unwrap();
        let extra = Vars::new();
        let loader = Loader { sources: &sources, project: &project, embedded_roles: &Ours, extra: &extra };
        loader.load(&[name.into()]).map_err(|wrong| rendered(&sources, &wrong))
    };
    let ours = load("site").unwrap();
    assert_eq!(names(&ours.bundle), ["ours"]);
    assert!(ours.roles_used[0].embedded);
    let script = &ours.bundle.files[Path::new("<embedded>/base/files/run.sh")];
    assert_eq!(script.mode, 0o755);
    assert_eq!(ours.contents[&script.hash], Blob::Bytes(b"#!/bin/sh\n".to_vec().into()));
    assert_eq!(ours.bundle.plays[0].handlers.len(), 1);
    std::fs::create_dir_all(dir.path().join("roles/base/tasks")).unwrap();
    std::fs::write(dir.path().join("roles/base/tasks/main.yml"), "- {name: mine, debug: {msg: x}}\n").unwrap();
    let mine = load("base.yaml").unwrap();
    assert_eq!(names(&mine.bundle), ["mine"]);
    assert!(!mine.roles_used[0].embedded && mine.bundle.files.is_empty());
    std::fs::create_dir_all(dir.path().join("playbooks")).unwrap();
    std::fs::write(dir.path().join("playbooks/site.yaml"), "- hosts: all\n  tasks: [{name: own, debug: {msg: x}}]\n")
        .unwrap();
    assert_eq!(names(&load("site").unwrap().bundle), ["own"]);
    assert_eq!(
        load("bsae.yaml").unwrap_err(),
        "error: playbook bsae.yaml does not exist\n  hint: did you mean 'base.yaml'?\n"
    );
}

#[test]
fn names_may_be_made_of_extra_variables() {
    use rollcall_engine::vars::{Layer, Var};
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b.yaml"), "- {name: chosen, debug: {msg: x}}\n").unwrap();
    let path = dir.path().join("site.yaml");
    std::fs::write(
        &path,
        "- hosts: all\n  vars: {which: a}\n  become: '{{ root }}'\n  serial: '{{ batch }}'\n  tasks:\n    - import_tasks: '{{ which }}.yaml'\n",
    )
    .unwrap();
    let mut extra = Vars::new();
    for (name, value) in [("which", serde_json::json!("b")), ("root", true.into()), ("batch", 2.into())] {
        extra.insert(name.into(), Var::data(value, Layer::Extra));
    }
    let sources = Sources::default();
    let project = Project::without_file(dir.path());
    let loader = Loader { sources: &sources, project: &project, embedded_roles: &NoRoles, extra: &extra };
    let loaded = loader.load(&[path]).unwrap_or_else(|wrong| panic!("{}", rendered(&sources, &wrong)));
    assert_eq!(names(&loaded.bundle), ["chosen"]);
    use rollcall_engine::playbook::model::BatchSize;
    assert_eq!(loaded.bundle.plays[0].serial, [BatchSize::Count(2)]);
    let Item::Task(task) = &loaded.bundle.plays[0].tasks[0] else { panic!("a task") };
    assert_eq!(task.become_.enabled, Some(true));
}

#[test]
fn variables_of_an_import_win_and_are_known_in_its_plays() {
    let (loaded, _dir) = taken(
        "- hosts: all\n  vars: {inner: wrong}\n- import_playbook: '{{ \"mid\" }}.yaml'\n  vars: {which: outer}\n",
        &[
            ("mid.yaml", "- import_playbook: last.yaml\n  vars: {which: inner, size: 1}\n"),
            ("last.yaml", "- hosts: all\n  vars: {which: own}\n  tasks: [{import_tasks: '{{ which }}.yaml'}]\n"),
            ("outer.yaml", "- {name: outer, debug: {msg: x}}\n"),
        ],
    );
    assert_eq!(names(&loaded.bundle), ["outer"]);
    assert_eq!(loaded.bundle.plays[1].vars.keys().collect::<Vec<_>>(), ["which", "size"]);
}

#[test]
fn imports_that_double_at_each_level_are_stopped() {
    let files: Vec<(String, String)> = (0..30)
        .map(|n| (format!("f{n}.yaml"), format!("- import_tasks: f{0}.yaml\n- import_tasks: f{0}.yaml\n", n + 1)))
        .chain([("f30.yaml".into(), "[]\n".into())])
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let (_, loaded, _dir) = written("- hosts: all\n  tasks: [{import_tasks: f0.yaml}]\n", &files);
    assert!(loaded.unwrap_err().0[0].message.contains("unfold to more than"));
}

#[test]
fn warnings_do_not_stop() {
    let (loaded, _dir) = taken(
        "- hosts: all\n  strategy: linear\n  collections: [a.b]\n  tasks:\n    - debug: {msg: x}\n      when: \"{{ x is defined }}\"\n      ignore_unreachable: true\n",
        &[],
    );
    let told: Vec<_> = loaded.warnings.iter().map(|w| (w.span.line, w.message.as_str())).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told[0], (2, "hosts do not wait for each other after each task here"));
    assert_eq!(told[1].0, 3);
    assert_eq!(told[2], (6, "'when' is an expression already: the braces are not needed"));
    let Item::Task(task) = &loaded.bundle.plays[0].tasks[0] else { panic!("a task") };
    assert_eq!(task.when[0].text, "x is defined");
}

#[test]
fn a_second_play_hears_handlers_of_files_that_the_first_one_included() {
    let (loaded, _dir) = taken(
        "- hosts: a\n  tasks: [{include_tasks: more.yaml}]\n- hosts: b\n  tasks: [{include_tasks: more.yaml}]\n",
        &[
            ("more.yaml", "- include_role: {name: r}\n"),
            ("roles/r/tasks/main.yml", "- {debug: {msg: x}, notify: go}\n"),
            ("roles/r/handlers/main.yml", "- {name: go, debug: {msg: y}}\n"),
        ],
    );
    assert_eq!(loaded.bundle.plays.iter().map(|p| p.handlers.len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_role_sees_the_variables_of_those_that_need_it_and_of_what_it_needs() {
    let (loaded, _dir) = taken(
        "- hosts: all\n  roles: [{role: top, given: 1, vars: {own: 3}}]\n",
        &[
            ("roles/top/meta/main.yml", "dependencies: [{role: low, deep: 2}]\n"),
            ("roles/top/tasks/main.yml", "- debug: {msg: x}\n"),
            ("roles/top/vars/main.yml", "own: 1\n"),
            ("roles/low/tasks/main.yml", "- debug: {msg: x}\n"),
            ("roles/low/defaults/main.yml", "shared: 1\n"),
        ],
    );
    let roles = &loaded.bundle.roles;
    let (top, low) = (&roles[0], &roles[1]);
    assert_eq!((top.name.as_str(), low.name.as_str()), ("top", "low"));
    assert_eq!(low.parents.iter().map(|p| p.0).collect::<Vec<_>>(), [0]);
    assert!(low.params.contains_key("deep") && top.params.contains_key("given"));
    let seen = &roles[top.parents[0].0 as usize];
    assert!(seen.defaults.contains_key("shared") && seen.params.is_empty());
    let rollcall_engine::vars::Binding::Raw(own) = &top.vars["own"].binding else { panic!("raw") };
    assert_eq!(own.to_value(), 3);
}

#[test]
fn the_manual_knows_every_keyword_where_it_stands() {
    use rollcall_engine::playbook::{On, Status, keywords};
    let manual = std::fs::read_to_string("../docs/playbooks.md").unwrap();
    let place = |on: &On| match on {
        On::Play => "play",
        On::ImportPlaybook => "import_playbook",
        On::Role => "role entry",
        On::Block => "block",
        On::Task => "task",
        On::Include => "include",
        On::Handler => "handler",
        On::LoopControl => "loop_control",
    };
    let rows: Vec<&str> = manual.lines().filter(|l| l.starts_with("| `")).collect();
    for keyword in keywords() {
        let places: Vec<&str> = keyword.on.iter().map(place).collect();
        let row = format!("| `{}` | {} | {} |", keyword.name, places.join(", "), keyword.doc.replace('|', "\\|"));
        assert!(rows.contains(&row.as_str()), "docs/playbooks.md lacks this row:\n{row}");
    }
    // And it names no keyword that is gone; the first table is about actions.
    let known = |row: &str| keywords().iter().any(|k| row.starts_with(&format!("| `{}` | ", k.name)));
    let of_keywords = rows.iter().filter(|r| r.matches(" | ").count() == 2);
    for row in of_keywords {
        assert!(known(row), "docs/playbooks.md names a keyword that is not taken: {row}");
    }
    assert!(keywords().iter().any(|k| matches!(k.status, Status::NotYet(_))));
}

#[test]
fn the_examples_of_the_manual_are_read() {
    let manual = std::fs::read_to_string("../docs/playbooks.md").unwrap();
    let example = manual.split("```yaml\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
    let roles = [("roles/common/tasks/main.yml", "[]\n"), ("roles/web/defaults/main.yml", "http_port: 80\n")];
    taken(example, &roles);
    let manual = std::fs::read_to_string("../docs/roles.md").unwrap();
    let blocks: Vec<&str> = manual.split("```yaml\n").skip(1).filter_map(|t| t.split("```").next()).collect();
    let [usage, meta, specs] = blocks[..] else { panic!("three examples: {blocks:?}") };
    taken(
        usage,
        &[
            ("roles/common/tasks/main.yml", "[]\n"),
            ("roles/web/meta/main.yml", &meta.replace("- common", "- again")),
            ("roles/web/meta/argument_specs.yml", specs),
            ("roles/again/tasks/main.yml", "[]\n"),
            ("roles/users/tasks/main.yml", "[]\n"),
        ],
    );
    let manual = std::fs::read_to_string("../docs/project.md").unwrap();
    let example = manual.split("```yaml\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rollcall.yaml"), example).unwrap();
    let project = Project::find(&Sources::default(), dir.path()).unwrap();
    assert_eq!((project.forks, project.ssh.kex.len(), project.roles.len()), (Some(50), 2, 2));
}

#[test]
fn strange_values_come_through_unchanged() {
    let strange = format!("\u{0}$(id) `id` ; ' \" \\ ä 漢 \u{1f600}{}", "x".repeat(1 << 20));
    let playbook =
        serde_json::json!([{"hosts": "all", "tasks": [{"copy": {"content": strange, "dest": "/a b;c"}}]}]).to_string();
    let (loaded, _dir) = taken(&playbook, &[]);
    let Item::Task(task) = &loaded.bundle.plays[0].tasks[0] else { panic!("a task") };
    let Action::Module { args, .. } = &task.action else { panic!("a module") };
    assert_eq!(args.to_value(), serde_json::json!({"content": strange, "dest": "/a b;c"}));
    let travelled: Bundle = serde_json::from_slice(&serde_json::to_vec(&loaded.bundle).unwrap()).unwrap();
    assert_eq!(format!("{:?}", travelled.plays), format!("{:?}", loaded.bundle.plays));
}
