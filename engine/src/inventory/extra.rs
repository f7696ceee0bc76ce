//! `-e`: `name=value`, a mapping as YAML or JSON, or `@file`.

use std::path::Path;

use super::vars_files::parse_vars_file;
use crate::{
    diag::{Diagnostic, Sources, Span},
    node::{Kind, Node},
    vars::{Layer, Var, Vars},
    yaml,
};

/// Reads all `-e` options in order; the last one of a name wins. `name=value` gives text, as in Ansible.
pub fn read(options: &[String], sources: &Sources) -> Result<Vars, Diagnostic> {
    let mut vars = Vars::new();
    for option in options {
        let text = option.trim();
        if let Some(path) = text.strip_prefix('@') {
            let file = sources.read(Path::new(path))?;
            insert(parse_vars_file(sources, file)?, &mut vars);
        } else if text.starts_with(['{', '[']) {
            let file = sources.add("-e", text);
            let node = yaml::parse(sources, file)?;
            node.map().map_err(|_| node.expected("a mapping of variables"))?;
            insert(node, &mut vars);
        } else {
            pairs(text, sources, &mut vars)?;
        }
    }
    Ok(vars)
}

fn insert(node: Node, vars: &mut Vars) {
    if let Kind::Map(entries) = node.kind {
        vars.extend(entries.into_iter().map(|(k, v)| (k.name, Var::raw(v, Layer::Extra))));
    }
}

fn pairs(text: &str, sources: &Sources, vars: &mut Vars) -> Result<(), Diagnostic> {
    let file = sources.add("-e", text);
    let span = Span { file, line: 1, column: 1 };
    let words = shell_words::split(text)
        .map_err(|_| Diagnostic::error(span, "a quote is opened and not closed").hint("write name='some text'"))?;
    for word in words {
        let (name, value) = word.split_once('=').filter(|(name, _)| is_name(name)).ok_or_else(|| {
            Diagnostic::error(span, format!("'{word}' is no variable"))
                .hint("write name=value, '{\"name\": value}', or @FILE")
        })?;
        vars.insert(name.to_owned(), Var::raw(Node { span, kind: Kind::Str(value.to_owned()) }, Layer::Extra));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(options: &[&str]) -> Result<serde_json::Value, Diagnostic> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let vars = read(&options, &Sources::default())?;
        Ok(vars
            .iter()
            .map(|(name, var)| match &var.binding {
                crate::vars::Binding::Raw(node) => (name.clone(), node.to_value()),
                other => panic!("{other:?}"),
            })
            .collect::<serde_json::Map<_, _>>()
            .into())
    }

    #[test]
    fn all_forms_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.yml");
        std::fs::write(&file, "c: [1, yes]\n").unwrap();
        assert_eq!(
            values(&["a=1 b='x y'", "{\"a\": 2}", &format!("@{}", file.display())]).unwrap(),
            serde_json::json!({"a": 2, "b": "x y", "c": [1, true]})
        );
    }

    #[test]
    fn bad_options_are_refused() {
        assert_eq!(values(&["web"]).unwrap_err().message, "'web' is no variable");
        assert_eq!(values(&["a='x"]).unwrap_err().message, "a quote is opened and not closed");
        assert!(values(&["{a: 1"]).unwrap_err().message.starts_with("invalid YAML"));
        assert!(values(&["@/nowhere/x"]).unwrap_err().message.starts_with("cannot read /nowhere/x"));
        assert_eq!(values(&["[1]"]).unwrap_err().message, "expected a mapping of variables, found a list");
    }
}
