//! Rules of policies: a text in the product's own language (HCL or JSON), or a mapping. What they are about is checked, for the
//! products take any name and then allow nothing.

use serde_json::{Map, Value};

use crate::diag::nearest;

/// What an argument with rules takes.
pub(super) const KIND: &str = "rules: a text or a mapping";

/// Reads rules of a product that can be about these resources. The text that the product gets.
pub(super) fn read(value: &Value, resources: &[&'static str], product: &str) -> Result<String, String> {
    let known = |names: &[String]| known(names, resources, product);
    match value {
        Value::String(text) => {
            let names = if text.trim_start().starts_with('{') {
                let map: Map<String, Value> =
                    serde_json::from_str(text).map_err(|e| format!("the rules are no JSON: {e}"))?;
                map.keys().cloned().collect()
            } else {
                hcl_names(text)?
            };
            known(&names)?;
            Ok(text.clone())
        }
        Value::Object(map) => {
            known(&map.keys().cloned().collect::<Vec<_>>())?;
            Ok(value.to_string())
        }
        Value::Null => Err(format!("expected {KIND}, found nothing")),
        Value::Array(_) => Err(format!("expected {KIND}, found a list")),
        other => Err(format!("expected {KIND}, found {other}")),
    }
}

fn known(names: &[String], resources: &[&'static str], product: &str) -> Result<(), String> {
    match names.iter().find(|name| !resources.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let near = nearest(name, resources.iter().copied());
            let near = near.map(|near| format!(" (did you mean '{near}'?)")).unwrap_or_default();
            Err(format!("rules cannot be about '{name}'{near}: {product} would take it, and allow nothing"))
        }
    }
}

/// The names at the outermost level of a text in HCL.
fn hcl_names(text: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut rest = text.char_indices().peekable();
    // After `=` stands a value, not a name.
    let mut value = false;
    while let Some((at, c)) = rest.next() {
        let line = || text[..at].matches('\n').count() + 1;
        match c {
            '#' => while rest.next_if(|(_, c)| *c != '\n').is_some() {},
            '/' if rest.next_if(|(_, c)| *c == '/').is_some() => while rest.next_if(|(_, c)| *c != '\n').is_some() {},
            '/' if rest.next_if(|(_, c)| *c == '*').is_some() => {
                let mut star = false;
                if !rest.any(|(_, c)| std::mem::replace(&mut star, c == '*') && c == '/') {
                    return Err(format!("line {}: a comment does not end", line()));
                }
            }
            '"' => {
                let mut escaped = false;
                let ended = rest.any(|(_, c)| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                if !ended {
                    return Err(format!("line {}: a quoted text does not end", line()));
                }
                value = false;
            }
            '{' | '[' => (depth, value) = (depth + 1, false),
            '}' | ']' => {
                depth = depth.checked_sub(1).ok_or_else(|| format!("line {}: '{c}' closes nothing", line()))?;
            }
            '=' => value = true,
            '\n' => value = false,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let mut word = String::from(c);
                while let Some((_, c)) = rest.next_if(|(_, c)| c.is_ascii_alphanumeric() || *c == '_' || *c == '-') {
                    word.push(c);
                }
                if depth == 0 && !value {
                    names.push(word);
                }
            }
            _ => {}
        }
    }
    if depth > 0 { Err("a '{' is not closed".into()) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #![proptest_config(crate::fuzz::cases(20_000))]

        /// Whatever stands there, reading ends.
        #[test]
        fn random_rules_never_panic(text in "[acl=\"{}\\[\\]#/*\\\\\n _ä]{0,40}") {
            let _ = hcl_names(&text);
        }
    }
}
