//! Whole playbooks: what good ones mean, and what bad ones are told.

use std::{
    fmt::Write as _,
    path::Path,
};

use rollcall_engine::{
    diag::{Diagnostics, Sources},
    playbook::{
        Loaded, Loader,
        model::{Action, Bundle, Item, Task},
        select_tags,
    },
    project::Project,
    roles::NoRoles,
    vars::Vars,
};

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
                if let Action::IncludeRole { tasks, .. } = &task.action {
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
            let _ = writeln!(out, " handler {name} {:?} {:?} {}", handler.serial, handler.gate, line(bundle, &handler.task));
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
