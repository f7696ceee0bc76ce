//! A play that a verb makes by itself, carried out as one that a person wrote.

use std::path::PathBuf;

use rollcall_engine::{inventory::Inventory, playbook::Loader, project::Project, roles::Embedded};
use serde_json::{Value, json};

use crate::{
    context::{Context, Wrong},
    exit::Exit,
    options::{Connect, Hosts},
    run::events::Sink,
};

/// With which options of the command line.
pub(crate) struct Options<'a> {
    pub(crate) hosts: &'a Hosts,
    pub(crate) connect: &'a Connect,
    pub(crate) agents: Option<&'a PathBuf>,
    pub(crate) json: bool,
}

/// Carries one play out, on hosts of these names. The play's own `hosts` must be `all`.
pub(crate) async fn carry_out(
    context: &Context,
    inventory: &Inventory,
    (play, names): (&Value, Vec<String>),
    options: &Options<'_>,
    sinks: Vec<Box<dyn Sink>>,
) -> anyhow::Result<Exit> {
    // It stays until the run is over: the loaded play knows its file by its path.
    let folder = tempfile::tempdir()?;
    let playbook = folder.path().join("play.yaml");
    std::fs::write(&playbook, serde_json::to_vec(&json!([play]))?)?;
    // A play of our own asks for none of the project's files: they are not read for it.
    let project = Project { file: None, ..context.project.clone() };
    let loader =
        Loader { sources: &context.sources, project: &project, embedded_roles: &Embedded, extra: &context.extra };
    let loaded = loader.load(std::slice::from_ref(&playbook)).map_err(Wrong)?;
    let run = super::run::Args {
        playbooks: vec![playbook],
        hosts: options.hosts.clone(),
        connect: options.connect.clone(),
        tags: Vec::new(),
        skip_tags: Vec::new(),
        check: false,
        diff: false,
        list_hosts: false,
        list_tasks: false,
        list_tags: false,
        json: options.json,
        agents: options.agents.cloned(),
    };
    let prepared = super::run::prepare(context, inventory, loaded, vec![names], &run)?;
    super::run::carry_out(prepared, sinks).await
}

/// Text in which nothing is an expression.
pub(crate) fn raw(word: &str) -> String {
    if word.contains("{{") || word.contains("{%") || word.contains("{#") {
        format!("{{% raw %}}{word}{{% endraw %}}")
    } else {
        word.to_owned()
    }
}

/// A value in whose texts nothing is an expression.
pub(crate) fn literal(value: &Value) -> Value {
    match value {
        Value::String(text) => raw(text).into(),
        Value::Array(items) => items.iter().map(literal).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), literal(value))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_no_expression() {
        let value = json!({"a": ["{{ x }}", "plain", 1], "{{ key }}": null});
        let expected = json!({"a": ["{% raw %}{{ x }}{% endraw %}", "plain", 1], "{{ key }}": null});
        assert_eq!(literal(&value), expected);
    }
}
