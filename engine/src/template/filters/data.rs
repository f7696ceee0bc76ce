//! Formats, digests, mappings, and choices.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::{Args, Filter, kind, list_of, map_of, text_of};
use crate::{digest::hex, template::truthy};

pub(super) const FILTERS: &[Filter] = &[
    Filter::new(&["to_json"], &["ensure_ascii", "sort_keys", "indent"], to_json),
    Filter::new(&["to_nice_json"], &["indent", "sort_keys", "ensure_ascii"], to_nice_json),
    Filter::new(&["from_json"], &[], from_json),
    Filter::new(&["to_yaml", "to_nice_yaml"], &["indent", "sort_keys", "width", "explicit_start"], to_yaml),
    Filter::new(&["from_yaml"], &[], from_yaml),
    Filter::new(&["b64encode"], &["encoding"], |v, _| Ok(STANDARD.encode(text_of(&v)?).into())),
    Filter::new(&["b64decode"], &["encoding"], b64decode),
    Filter::new(&["hash"], &["hashtype"], hash),
    Filter::new(&["checksum", "sha1"], &[], |v, _| digest("sha1", &v)),
    Filter::new(&["md5"], &[], |v, _| digest("md5", &v)),
    Filter::new(&["bool"], &[], boolean),
    Filter::new(&["ternary"], &["true_val", "false_val", "none_val"], ternary),
    Filter::new(&["type_debug"], &[], type_debug),
    Filter::variadic(&["combine"], &["recursive", "list_merge"], combine),
    Filter::new(&["dict2items"], &["key_name", "value_name"], dict2items),
    Filter::new(&["items2dict"], &["key_name", "value_name"], items2dict),
    Filter::new(&["dict_keys"], &[], |v, _| Ok(map_of(v)?.into_iter().map(|(k, _)| Value::String(k)).collect())),
    Filter::new(&["dict_values"], &[], |v, _| Ok(map_of(v)?.into_iter().map(|(_, v)| v).collect())),
];

fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        other => other,
    }
}

/// Writes JSON as Python's json.dumps does, so that files come out as Ansible writes them.
struct Writer {
    ascii: bool,
    /// Width of a level; `None` writes one line.
    indent: Option<usize>,
}

impl Writer {
    fn write(&self, out: &mut String, value: &Value, level: usize) {
        match value {
            Value::Array(items) => {
                self.collection(out, ('[', ']'), items.len(), level, |out, i| self.write(out, &items[i], level + 1));
            }
            Value::Object(map) => {
                let entries: Vec<(&String, &Value)> = map.iter().collect();
                self.collection(out, ('{', '}'), entries.len(), level, |out, i| {
                    self.string(out, entries[i].0);
                    out.push_str(": ");
                    self.write(out, entries[i].1, level + 1);
                });
            }
            Value::String(text) => self.string(out, text),
            other => {
                let _ = write!(out, "{other}");
            }
        }
    }

    fn collection(
        &self,
        out: &mut String,
        (open, close): (char, char),
        len: usize,
        level: usize,
        mut item: impl FnMut(&mut String, usize),
    ) {
        out.push(open);
        for i in 0..len {
            match self.indent {
                Some(width) => {
                    out.push_str(if i == 0 { "\n" } else { ",\n" });
                    out.push_str(&" ".repeat(width * (level + 1)));
                }
                None if i > 0 => out.push_str(", "),
                None => {}
            }
            item(out, i);
        }
        if let (Some(width), true) = (self.indent, len > 0) {
            out.push('\n');
            out.push_str(&" ".repeat(width * level));
        }
        out.push(close);
    }

    fn string(&self, out: &mut String, text: &str) {
        let quoted = Value::String(text.to_owned()).to_string();
        if !self.ascii || quoted.is_ascii() {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

fn dump(value: Value, args: &mut Args, indent: Option<i64>, sort: bool) -> Result<Value, String> {
    let indent = args.int("indent")?.or(indent);
    let indent = match indent {
        Some(width) => Some(usize::try_from(width).ok().filter(|w| *w <= 16).ok_or("'indent' must be from 0 to 16")?),
        None => None,
    };
    let ascii = args.flag("ensure_ascii")?.unwrap_or(true);
    let value = if args.flag("sort_keys")?.unwrap_or(sort) { sorted(value) } else { value };
    let mut out = String::new();
    Writer { ascii, indent }.write(&mut out, &value, 0);
    Ok(out.into())
}

fn to_json(value: Value, args: &mut Args) -> Result<Value, String> {
    dump(value, args, None, false)
}

fn to_nice_json(value: Value, args: &mut Args) -> Result<Value, String> {
    dump(value, args, Some(4), true)
}

fn from_json(value: Value, _: &mut Args) -> Result<Value, String> {
    match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|e| format!("this is no JSON: {e}")),
        other => Err(format!("text is needed, not {}", kind(&other))),
    }
}

fn to_yaml(value: Value, args: &mut Args) -> Result<Value, String> {
    let value = if args.flag("sort_keys")?.unwrap_or(true) { sorted(value) } else { value };
    let start = if args.flag("explicit_start")?.unwrap_or(false) { "---\n" } else { "" };
    let text = crate::yaml::to_string(&value)?;
    Ok(format!("{start}{}\n", text.trim_end_matches('\n')).into())
}

fn from_yaml(value: Value, _: &mut Args) -> Result<Value, String> {
    match value {
        Value::String(text) => crate::yaml::parse_text(crate::diag::FileId::NONE, &text)
            .map(|node| node.to_value())
            .map_err(|e| format!("line {}: {}", e.span.line, e.message)),
        other => Err(format!("text is needed, not {}", kind(&other))),
    }
}

fn b64decode(value: Value, _: &mut Args) -> Result<Value, String> {
    let text: String = text_of(&value)?.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes = STANDARD.decode(text).map_err(|e| format!("this is no base64: {e}"))?;
    String::from_utf8(bytes).map(Value::from).map_err(|_| "the decoded bytes are no UTF-8 text".to_owned())
}

fn digest(algorithm: &str, value: &Value) -> Result<Value, String> {
    use sha2::Digest as _;
    let text = text_of(value)?;
    let bytes = text.as_bytes();
    let sum = match algorithm {
        "md5" => hex(&md5::Md5::digest(bytes)),
        "sha1" => hex(&sha1::Sha1::digest(bytes)),
        "sha224" => hex(&sha2::Sha224::digest(bytes)),
        "sha256" => hex(&sha2::Sha256::digest(bytes)),
        "sha384" => hex(&sha2::Sha384::digest(bytes)),
        "sha512" => hex(&sha2::Sha512::digest(bytes)),
        other => {
            return Err(format!("unknown algorithm '{other}' (known: md5, sha1, sha224, sha256, sha384, sha512)"));
        }
    };
    Ok(sum.into())
}

fn hash(value: Value, args: &mut Args) -> Result<Value, String> {
    let algorithm = args.text("hashtype")?.unwrap_or_else(|| "sha1".to_owned());
    digest(&algorithm, &value)
}

fn boolean(value: Value, _: &mut Args) -> Result<Value, String> {
    let known = match &value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) if n.as_f64() == Some(1.0) => Some(true),
        Value::Number(n) if n.as_f64() == Some(0.0) => Some(false),
        Value::String(text) => match text.trim().to_lowercase().as_str() {
            "yes" | "y" | "on" | "1" | "true" | "t" => Some(true),
            "no" | "n" | "off" | "0" | "false" | "f" => Some(false),
            _ => None,
        },
        _ => None,
    };
    known.map(Value::Bool).ok_or_else(|| {
        let shown: String = value.to_string().chars().take(60).collect();
        format!("{shown} is neither true nor false (known: yes, no, on, off, true, false, 1, 0)")
    })
}

fn ternary(value: Value, args: &mut Args) -> Result<Value, String> {
    let none = args.get("none_val");
    let (yes, no) = (args.need("true_val")?, args.need("false_val")?);
    Ok(match (&value, none) {
        (Value::Null, Some(none)) => none,
        _ if truthy(&value) => yes,
        _ => no,
    })
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of the table")]
fn type_debug(value: Value, _: &mut Args) -> Result<Value, String> {
    Ok(match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
    .into())
}

fn combine(value: Value, args: &mut Args) -> Result<Value, String> {
    let recursive = args.flag("recursive")?.unwrap_or(false);
    let lists = args.text("list_merge")?.unwrap_or_else(|| "replace".to_owned());
    let known = ["replace", "keep", "append", "prepend", "append_rp", "prepend_rp"];
    if !known.contains(&lists.as_str()) {
        return Err(format!("unknown list_merge '{lists}' (known: {})", known.join(", ")));
    }
    let mut merged = Map::new();
    for part in std::iter::once(value).chain(std::mem::take(&mut args.rest)) {
        // A list of mappings stands for its items, as in Ansible.
        let parts = match part {
            Value::Array(items) => items,
            other => vec![other],
        };
        for part in parts {
            merge(&mut merged, map_of(part)?, recursive, &lists);
        }
    }
    Ok(Value::Object(merged))
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>, recursive: bool, lists: &str) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) if recursive => merge(old, new, recursive, lists),
            (Some(Value::Array(old)), Value::Array(new)) => merge_lists(old, new, lists),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn merge_lists(old: &mut Vec<Value>, new: Vec<Value>, how: &str) {
    match how {
        "keep" => {}
        "append" => old.extend(new),
        "prepend" => *old = new.into_iter().chain(std::mem::take(old)).collect(),
        "append_rp" => {
            old.retain(|item| !new.contains(item));
            old.extend(new);
        }
        "prepend_rp" => {
            let kept: Vec<Value> = std::mem::take(old).into_iter().filter(|item| !new.contains(item)).collect();
            *old = new.into_iter().chain(kept).collect();
        }
        _ => *old = new,
    }
}

fn names(args: &mut Args) -> Result<(String, String), String> {
    Ok((
        args.text("key_name")?.unwrap_or_else(|| "key".to_owned()),
        args.text("value_name")?.unwrap_or_else(|| "value".to_owned()),
    ))
}

fn dict2items(value: Value, args: &mut Args) -> Result<Value, String> {
    let (key_name, value_name) = names(args)?;
    let items = map_of(value)?.into_iter().map(|(k, v)| json!({ key_name.as_str(): k, value_name.as_str(): v }));
    Ok(items.collect())
}

fn items2dict(value: Value, args: &mut Args) -> Result<Value, String> {
    let (key_name, value_name) = names(args)?;
    let mut map = Map::new();
    for item in list_of(value)? {
        let mut item = map_of(item)?;
        let mut take = |name: &str| item.remove(name).ok_or_else(|| format!("an item has no '{name}'"));
        let (key, value) = (take(&key_name)?, take(&value_name)?);
        map.insert(text_of(&key)?, value);
    }
    Ok(Value::Object(map))
}
