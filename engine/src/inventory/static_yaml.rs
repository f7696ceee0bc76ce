//! YAML inventories: groups with `hosts`, `children` and `vars`.

use super::{address, model::Builder};
use crate::{
    diag::{Diagnostic, Span},
    node::{Key, Kind, Node},
    vars::{Layer, Var},
};

const SECTIONS: [&str; 3] = ["hosts", "children", "vars"];
/// Groups inside groups; more is a mistake.
const MAX_DEPTH: usize = 64;

/// Adds the groups of one file. Whatever is wrong goes to the builder's findings.
pub(super) fn load(root: &Node, builder: &mut Builder) {
    if root.is_null() {
        builder.diagnostics.push(
            Diagnostic::error(root.span, "the inventory file is empty")
                .hint("start with: all: {hosts: {web-1: {ansible_host: 10.0.0.1}}}"),
        );
        return;
    }
    let entries = match root.map() {
        Ok(entries) => entries,
        Err(e) => {
            builder.diagnostics.push(e.hint("an inventory is a mapping of groups: all: {hosts: {web-1: {}}}"));
            return;
        }
    };
    for (key, value) in entries {
        group(key, value, builder, 0);
    }
}

/// Reads one group; gives its index, so that its parent can take it in.
fn group(key: &Key, node: &Node, builder: &mut Builder, depth: usize) -> Option<usize> {
    if depth > MAX_DEPTH {
        builder.diagnostics.push(Diagnostic::error(key.span, format!("groups nest more than {MAX_DEPTH} levels deep")));
        return None;
    }
    if key.name.is_empty() {
        builder.diagnostics.push(Diagnostic::error(key.span, "a group without a name"));
        return None;
    }
    check_group_name(key, builder);
    let index = builder.add_group(&key.name);
    let entries = match &node.kind {
        Kind::Null => return Some(index),
        Kind::Map(entries) => entries,
        _ => {
            let found = node.describe();
            builder.diagnostics.push(
                Diagnostic::error(node.span, format!("group '{}' must be a mapping, found {found}", key.name))
                    .hint("a group has 'hosts', 'children' and 'vars', each a mapping"),
            );
            return None;
        }
    };
    for (section, value) in entries {
        match section.name.as_str() {
            "vars" => vars(&key.name, index, value, builder),
            "children" => children(&key.name, index, value, builder, depth),
            "hosts" => hosts(&key.name, index, value, builder),
            other => {
                let error = Diagnostic::error(section.span, format!("unknown key '{other}' in group '{}'", key.name));
                builder.diagnostics.push(match crate::diag::nearest(other, SECTIONS) {
                    Some(near) => error.hint(format!("did you mean '{near}'?")),
                    None => error.hint(format!(
                        "a group has 'hosts', 'children' and 'vars'; if '{other}' is a group, put it under 'children'"
                    )),
                });
            }
        }
    }
    Some(index)
}

fn check_group_name(key: &Key, builder: &mut Builder) {
    let sound = key.name.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !key.name.starts_with(|c: char| c.is_ascii_digit());
    if sound {
        return;
    }
    let breaks = key.name.contains([':', ',', '[', ']', '!', '&', '*', '?']) || key.name.contains(char::is_whitespace);
    if breaks {
        builder.diagnostics.push(
            Diagnostic::error(key.span, format!("'{}' cannot be the name of a group", key.name))
                .hint("use letters, digits and '_': no pattern could ask for this name"),
        );
    }
}

/// A section as its entries: a mapping, or one name.
fn section<'a>(
    group: &str,
    what: &str,
    node: &'a Node,
    builder: &mut Builder,
) -> Vec<(std::borrow::Cow<'a, Key>, Option<&'a Node>)> {
    match &node.kind {
        Kind::Null => Vec::new(),
        Kind::Map(entries) => entries.iter().map(|(k, v)| (std::borrow::Cow::Borrowed(k), Some(v))).collect(),
        Kind::Str(name) if what != "vars" => {
            vec![(std::borrow::Cow::Owned(Key { name: name.clone(), span: node.span }), None)]
        }
        _ => {
            let hint = match what {
                "vars" => "write one 'name: value' per line",
                _ => "write one 'name:' per line, without a dash; its variables go below it",
            };
            builder.diagnostics.push(
                Diagnostic::error(
                    node.span,
                    format!("'{what}' of group '{group}' must be a mapping, found {}", node.describe()),
                )
                .hint(hint),
            );
            Vec::new()
        }
    }
}

fn vars(group: &str, index: usize, node: &Node, builder: &mut Builder) {
    for (key, value) in section(group, "vars", node, builder) {
        let Some(value) = value else { continue };
        if let Err(e) = builder.set_group_var(index, &key.name, value) {
            builder.diagnostics.push(e);
        }
    }
}

fn children(group_name: &str, index: usize, node: &Node, builder: &mut Builder, depth: usize) {
    for (key, value) in section(group_name, "children", node, builder) {
        let nothing = Node { span: key.span, kind: Kind::Null };
        let child = group(&key, value.unwrap_or(&nothing), builder, depth + 1);
        if let Some(child) = child
            && let Err(e) = builder.add_child(index, child, key.span)
        {
            builder.diagnostics.push(e);
        }
    }
}

fn hosts(group: &str, index: usize, node: &Node, builder: &mut Builder) {
    for (key, value) in section(group, "hosts", node, builder) {
        let vars: &[(Key, Node)] = match value.map(|v| (&v.kind, v)) {
            None | Some((Kind::Null, _)) => &[],
            Some((Kind::Map(entries), _)) => entries,
            Some((_, value)) => {
                builder.diagnostics.push(
                    Diagnostic::error(
                        value.span,
                        format!("the variables of host '{}' must be a mapping, found {}", key.name, value.describe()),
                    )
                    .hint("write them below the host, one 'name: value' per line"),
                );
                continue;
            }
        };
        let names = match host_names(&key.name, key.span) {
            Ok(names) => names,
            Err(e) => {
                builder.diagnostics.push(e);
                continue;
            }
        };
        // One allocation per variable, however many hosts the range names.
        let vars: Vec<(&str, Var)> =
            vars.iter().map(|(k, v)| (k.name.as_str(), Var::raw(v.clone(), Layer::InventoryHost))).collect();
        for (name, port) in names {
            let host = builder.add_host(&name, index);
            if let Some(port) = port {
                let port = Node { span: key.span, kind: Kind::Int(i64::from(port)) };
                builder.set_host_var(host, "ansible_port", Var::raw(port, Layer::InventoryHost));
            }
            for (name, var) in &vars {
                builder.set_host_var(host, name, var.clone());
            }
        }
    }
}

/// Names and the port behind one key under `hosts:`, or one item of a host list.
pub(super) fn host_names(text: &str, span: Span) -> Result<Vec<(String, Option<u16>)>, Diagnostic> {
    if text.is_empty() {
        return Err(Diagnostic::error(span, "a host without a name"));
    }
    if text.chars().any(char::is_control) {
        return Err(Diagnostic::error(span, "the name of a host holds a control character"));
    }
    if text.contains("{{") {
        return Err(Diagnostic::error(span, "the name of a host cannot be an expression")
            .hint("keep the name plain, and put the expression into ansible_host"));
    }
    let (pattern, port) = address::parse(text).unwrap_or((text, None));
    let names = address::expand(pattern).map_err(|e| Diagnostic::error(span, e))?;
    Ok(names.into_iter().map(|name| (name, port)).collect())
}
