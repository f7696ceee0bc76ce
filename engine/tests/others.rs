//! What tasks ask of other hosts, and roles that the host picks: found when playbooks are read.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::{collections::BTreeMap, sync::Arc};

use rollcall_engine::{
    diag::{Diagnostics, Sources},
    node::Node,
    playbook::{
        Blob, Loaded, Loader,
        model::{Action, Item, Task},
        note_others, select_tags,
    },
    project::Project,
    roles::NoRoles,
    vars::{Layer, Var, Vars},
};
use serde_json::json;

fn read(files: &[(&str, &str)]) -> (Sources, Result<Loaded, Diagnostics>) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let sources = Sources::default();
    let project = Project::find(&sources, dir.path()).unwrap();
    let loader = Loader { sources: &sources, project: &project, embedded_roles: &NoRoles, extra: &Vars::new() };
    let mut loaded = loader.load(&[dir.path().join("site.yaml")]);
    if let Ok(loaded) = &mut loaded {
        select_tags(&mut loaded.bundle, &[], &[]).unwrap();
        // The folder is gone when the test looks.
        for blob in loaded.contents.values_mut() {
            if let Blob::File(path) = blob {
                *blob = Blob::Bytes(std::fs::read(path).unwrap().into());
            }
        }
    }
    (sources, loaded)
}

fn tasks<'a>(items: &'a [Item], out: &mut Vec<&'a Task>) {
    for item in items {
        match item {
            Item::Task(task) => {
                out.push(task);
                task.action.role_tasks().for_each(|list| tasks(list, out));
            }
            Item::Block(block) => {
                for part in [&block.block, &block.rescue, &block.always] {
                    tasks(part, out);
                }
            }
        }
    }
}

/// What each named task asks for; names of tasks that ask for nothing are not there.
fn asked(files: &[(&str, &str)], inventory: &[(&str, &str)]) -> BTreeMap<String, String> {
    let (sources, loaded) = read(files);
    let mut loaded =
        loaded.unwrap_or_else(|wrong| panic!("{:?}", wrong.0.iter().map(|d| sources.render(d)).collect::<Vec<_>>()));
    let raw =
        |text: &str| Var::raw(Node::from_value(&json!(text), rollcall_engine::diag::Span::NONE), Layer::InventoryHost);
    let layer: Vars = inventory.iter().map(|(name, text)| ((*name).to_owned(), raw(text))).collect();
    let contents = loaded.contents.clone();
    note_others(&mut loaded.bundle, &[Arc::new(layer)], &|entry| match &contents[&entry.hash] {
        Blob::Bytes(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
        Blob::File(_) => None,
    });
    let bundle = &loaded.bundle;
    let mut all = Vec::new();
    for play in &bundle.plays {
        for section in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
            tasks(section, &mut all);
        }
        all.extend(play.handlers.iter().map(|handler| &handler.task));
    }
    bundle.task_files.values().for_each(|items| tasks(items, &mut all));
    let mut out = BTreeMap::new();
    let join = |names: &std::collections::BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(" ");
    for task in all {
        let name = task.name.as_ref().and_then(Node::as_str).unwrap_or("?").to_owned();
        if let Some(names) = bundle.others.inside.get(&task.id) {
            out.insert(format!("in {name}"), join(names));
        }
        if let Some(names) = bundle.others.by_task.get(&task.id) {
            out.insert(name, join(names));
        }
    }
    out
}

const SET: &str = "- hosts: all\n  tasks:\n    - {name: set, command: ls, register: token}\n    - {name: set too, set_fact: {number: 1, x-y: 2}}\n";

/// A playbook whose second play has these lines.
fn site(play: &str) -> String {
    format!("{}- hosts: all\n{play}", SET.replace(", x-y: 2", ""))
}

#[test]
fn every_place_of_a_task_counts() {
    let found = asked(
        &[
            (
                "site.yaml",
                &site(
                    r#"
  vars:
    direct: "{{ hostvars['a'].token.stdout }}"
    through: "x {{ direct }}"
    all_of: "{{ hostvars[peer] }}"
    address: "{{ hostvars['a'].ansible_host }}"
  tasks:
    - {name: argument, debug: {msg: "{{ hostvars[groups['all'][0]]['token'].rc }}"}}
    - {name: condition, command: ls, when: hostvars.a.number > 1}
    - {name: bare expressions, assert: {that: ["hostvars['a'].number == 1"]}}
    - {name: shown, debug: {var: "hostvars['a'].facts.arch"}}
    - {name: own variable, debug: {msg: "{{ mine }}"}, vars: {mine: "{{ hostvars['a'].number }}"}}
    - {name: variable of a variable, debug: {msg: "{{ through }}"}}
    - {name: handed on, debug: {msg: "{{ all_of.number }}"}}
    - {name: extracted, debug: {msg: "{{ ['a'] | map('extract', hostvars, ['token', 'stdout']) | list }}"}}
    - {name: gotten, debug: {msg: "{{ hostvars['a'].get('number') }}"}}
    - {name: looped, debug: {msg: "{{ item.value.number }}"}, loop: "{{ hostvars | dict2items }}"}
    - {name: in a loop of its own, debug: {msg: "{% for h in hostvars %}{{ hostvars[h].token }}{% endfor %}"}}
    - {name: of the inventory, debug: {msg: "{{ of_inventory }}"}}
    - {name: jinja, template: {src: t.j2, dest: /t}}
    - {name: drawn in, template: {src: outer.j2, dest: /t}}
    - {name: tera, template: {src: "{{ kind }}.tera", dest: /t}}
    - {name: none, debug: {msg: "{{ address }} {{ token }} {{ hostvars['a'].ip }} {{ number }}"}}
    - {name: none of a computed name, debug: {msg: "{{ hostvars['a'][address] }}"}}
    - {name: none of a template, template: {src: plain.j2, dest: /t}}
    - name: block
      when: hostvars['a'].token is defined
      block:
        - {name: of a block, command: ls}
        - {name: include, include_tasks: more.yaml}
  handlers:
    - {name: handler, debug: {msg: "{{ hostvars['a'].token }}"}}
"#,
                ),
            ),
            ("more.yaml", "- {name: included, debug: {msg: \"{{ hostvars['a'].number }}\"}}\n"),
            ("templates/t.j2", "{{ hostvars['a'].token.stdout }}"),
            ("templates/outer.j2", "{% include 't.j2' %}"),
            ("templates/plain.j2", "{{ token }} hostvars"),
            ("templates/kind.tera", "{% for h in hosts %}{{ hostvars[h].number }}{% endfor %}"),
        ],
        &[("of_inventory", "{{ hostvars['a'].token.stdout }}"), ("peer", "a")],
    );
    let expected = [
        ("argument", "token"),
        ("bare expressions", "number"),
        ("condition", "number"),
        ("drawn in", "token"),
        ("extracted", "token"),
        ("gotten", "number"),
        ("handed on", "number"),
        ("handler", "token"),
        ("in a loop of its own", "token"),
        ("in include", "token"),
        ("include", "token"),
        ("included", "number"),
        ("jinja", "token"),
        ("looped", "number"),
        ("of a block", "token"),
        ("of the inventory", "token"),
        ("own variable", "number"),
        ("shown", "facts"),
        ("tera", "number"),
        ("variable of a variable", "token"),
    ];
    assert_eq!(found, expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
}

#[test]
fn nothing_is_asked_for_where_nothing_refers_to_it() {
    let play = "  tasks:\n    - {name: own, debug: {msg: \"{{ token.stdout }} {{ hostvars['a'].ansible_host }} {{ groups['all'] }}\"}}\n";
    assert_eq!(asked(&[("site.yaml", &site(play))], &[("jump", "{{ hostvars['j'].ip }}")]), BTreeMap::new());
}

fn wrong(files: &[(&str, &str)]) -> String {
    let (sources, loaded) = read(files);
    loaded.map(|_| ()).unwrap_err().0.iter().map(|d| sources.render(d)).collect()
}

fn include(role: &str) -> String {
    format!("- hosts: all\n  tasks:\n    - include_role: {role}\n")
}

#[test]
fn every_role_that_a_name_can_mean_is_read() {
    let roles = [
        ("roles/os_a/tasks/main.yaml", "- {name: of a, command: ls}\n"),
        ("roles/os_a/tasks/more.yaml", "- {name: more of a, command: ls}\n"),
        // One that picks among all: itself is no choice.
        ("roles/os_b/tasks/main.yaml", "- {name: of b, include_role: {name: \"os_{{ facts.x }}\"}}\n"),
        ("roles/other/tasks/main.yaml", "- {name: other, command: ls}\n"),
        ("roles/no_role/readme", ""),
    ];
    let choices = |include: &str| {
        let site = format!("- hosts: all\n  tasks:\n    - include_role: {include}\n");
        let files: Vec<(&str, &str)> = roles.iter().copied().chain([("site.yaml", site.as_str())]).collect();
        let (sources, loaded) = read(&files);
        let loaded = loaded
            .unwrap_or_else(|wrong| panic!("{:?}", wrong.0.iter().map(|d| sources.render(d)).collect::<Vec<_>>()));
        let Item::Task(task) = &loaded.bundle.plays[0].tasks[0] else { panic!("a task") };
        let Action::IncludeRole { name, choices } = &task.action else { panic!("an include") };
        let names: Vec<String> = choices.iter().map(|c| format!("{} {}", c.name, c.tasks.len())).collect();
        (name.is_some(), names.join(", "), loaded.roles_used.iter().filter(|r| r.possible).count())
    };
    assert_eq!(choices("{name: \"os_{{ facts.os.id }}\"}"), (true, "os_a 1, os_b 1".into(), 2));
    assert_eq!(choices("{name: \"{{ item }}\"}"), (true, "os_a 1, os_b 1, other 1".into(), 3));
    assert_eq!(choices("{name: \"{{ x }}\", tasks_from: more}"), (true, "os_a 1".into(), 1));
    assert_eq!(choices("{name: os_a}"), (false, "os_a 1".into(), 0));

    let with = |name: &str| wrong(&[("site.yaml", &include(name)), roles[0]]);
    assert!(with("{name: \"nix_{{ x }}\"}").contains("no role can be meant by 'nix_{{ x }}'"));
    assert!(with("{name: \"os_{{ x }}\", public: true}").contains("'public' needs a role's name"));
    let broken =
        wrong(&[("site.yaml", &include("{name: \"os_{{ x }}\"}")), ("roles/os_c/tasks/main.yaml", "- comand: ls\n")]);
    assert!(broken.contains("comand"), "{broken}");
    let imported = include("{name: \"os_{{ x }}\"}").replace("include_role", "import_role");
    assert!(wrong(&[("site.yaml", &imported), roles[0]]).contains("must be known before the run"));
}
