//! Lists as sequences and as sets.

use serde_json::Value;

use super::{Args, Filter, attribute, kind, list_of, text_of};

/// Items that one filter may make: products grow fast.
const MAX_ITEMS: usize = 1_000_000;

pub(super) const FILTERS: &[Filter] = &[
    Filter::new(&["flatten"], &["levels", "skip_nulls"], flatten),
    Filter::new(&["unique"], &["case_sensitive", "attribute"], unique),
    Filter::new(&["union"], &["other"], |v, a| Ok(set(v, a)?.union())),
    Filter::new(&["intersect"], &["other"], |v, a| Ok(set(v, a)?.intersect())),
    Filter::new(&["difference"], &["other"], |v, a| Ok(set(v, a)?.difference())),
    Filter::new(&["symmetric_difference"], &["other"], |v, a| Ok(set(v, a)?.symmetric())),
    Filter::new(&["join"], &["d", "attribute"], join),
    Filter::variadic(&["zip_longest"], &["fillvalue"], zip_longest),
    Filter::variadic(&["product"], &["repeat"], product),
    Filter::new(&["combinations"], &["size"], combinations),
];

fn flatten(value: Value, args: &mut Args) -> Result<Value, String> {
    let levels = args.int("levels")?.unwrap_or(i64::MAX);
    let skip_nulls = args.flag("skip_nulls")?.unwrap_or(true);
    let mut out = Vec::new();
    flatten_into(&mut out, list_of(value)?, levels, skip_nulls);
    Ok(out.into())
}

fn flatten_into(out: &mut Vec<Value>, items: Vec<Value>, levels: i64, skip_nulls: bool) {
    for item in items {
        match item {
            Value::Null if skip_nulls => {}
            Value::Array(inner) if levels > 0 => flatten_into(out, inner, levels - 1, skip_nulls),
            other => out.push(other),
        }
    }
}

/// The items without repetitions, in order. A set of their text keeps this linear.
fn distinct(items: Vec<Value>) -> Vec<Value> {
    let mut seen = std::collections::HashSet::new();
    items.into_iter().filter(|item| seen.insert(identity(item))).collect()
}

/// Equal values have equal text: keys sorted, whole floats as integers.
fn identity(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", Value::String(k.clone()), identity(v))).collect();
            entries.sort_unstable();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(identity).collect::<Vec<_>>().join(",")),
        Value::Number(n) => match n.as_f64() {
            Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 1e15 => format!("{f:.0}"),
            _ => n.to_string(),
        },
        other => other.to_string(),
    }
}

fn unique(value: Value, args: &mut Args) -> Result<Value, String> {
    let case_sensitive = args.flag("case_sensitive")?.unwrap_or(true);
    let path = args.text("attribute")?;
    let mut seen = std::collections::HashSet::new();
    let mut out = Vec::new();
    for item in list_of(value)? {
        let key = match &path {
            Some(path) => identity(attribute(&item, path).ok_or_else(|| format!("an item has no attribute '{path}'"))?),
            None => identity(&item),
        };
        if seen.insert(if case_sensitive { key } else { key.to_lowercase() }) {
            out.push(item);
        }
    }
    Ok(out.into())
}

struct Sets {
    left: Vec<Value>,
    right: Vec<Value>,
}

fn set(value: Value, args: &mut Args) -> Result<Sets, String> {
    Ok(Sets { left: distinct(list_of(value)?), right: distinct(list_of(args.need("other")?)?) })
}

impl Sets {
    fn keys(items: &[Value]) -> std::collections::HashSet<String> {
        items.iter().map(identity).collect()
    }

    fn union(self) -> Value {
        distinct(self.left.into_iter().chain(self.right).collect()).into()
    }

    fn intersect(self) -> Value {
        let right = Self::keys(&self.right);
        self.left.into_iter().filter(|i| right.contains(&identity(i))).collect()
    }

    fn difference(self) -> Value {
        let right = Self::keys(&self.right);
        self.left.into_iter().filter(|i| !right.contains(&identity(i))).collect()
    }

    fn symmetric(self) -> Value {
        let (left, right) = (Self::keys(&self.left), Self::keys(&self.right));
        let only_left = self.left.into_iter().filter(|i| !right.contains(&identity(i)));
        only_left.chain(self.right.into_iter().filter(|i| !left.contains(&identity(i)))).collect()
    }
}

fn join(value: Value, args: &mut Args) -> Result<Value, String> {
    let separator = args.text("d")?.unwrap_or_default();
    let path = args.text("attribute")?;
    let items = match value {
        Value::Array(items) => items,
        Value::Object(map) => map.into_iter().map(|(k, _)| Value::String(k)).collect(),
        Value::String(text) => text.chars().map(|c| Value::String(c.to_string())).collect(),
        other => return Err(format!("a list is needed, not {}", kind(&other))),
    };
    let mut parts = Vec::with_capacity(items.len());
    for item in &items {
        let item = match &path {
            Some(path) => attribute(item, path).ok_or_else(|| format!("an item has no attribute '{path}'"))?,
            None => item,
        };
        parts.push(super::super::values::python_text(item));
    }
    Ok(parts.join(&separator).into())
}

fn zip_longest(value: Value, args: &mut Args) -> Result<Value, String> {
    let fill = args.get("fillvalue").unwrap_or(Value::Null);
    let mut lists = vec![list_of(value)?];
    for other in std::mem::take(&mut args.rest) {
        lists.push(list_of(other)?);
    }
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let row = |i: usize| lists.iter().map(|l| l.get(i).cloned().unwrap_or_else(|| fill.clone())).collect::<Value>();
    Ok((0..longest).map(row).collect())
}

fn product(value: Value, args: &mut Args) -> Result<Value, String> {
    let repeat = usize::try_from(args.int("repeat")?.unwrap_or(1)).map_err(|_| "'repeat' must not be negative")?;
    let mut lists = vec![list_of(value)?];
    for other in std::mem::take(&mut args.rest) {
        lists.push(list_of(other)?);
    }
    let mut rows: Vec<Vec<Value>> = vec![Vec::new()];
    for _ in 0..repeat {
        for list in &lists {
            if rows.len().saturating_mul(list.len()) > MAX_ITEMS {
                return Err(format!("more than {MAX_ITEMS} items"));
            }
            rows = rows
                .iter()
                .flat_map(|row| list.iter().map(move |item| row.iter().cloned().chain([item.clone()]).collect()))
                .collect();
        }
    }
    Ok(rows.into_iter().map(Value::Array).collect())
}

fn combinations(value: Value, args: &mut Args) -> Result<Value, String> {
    let size = usize::try_from(args.int("size")?.ok_or("the argument 'size' is missing")?)
        .map_err(|_| "'size' must not be negative")?;
    let items = list_of(value)?;
    let mut rows: Vec<(usize, Vec<Value>)> = vec![(0, Vec::new())];
    for _ in 0..size {
        let next = rows.iter().flat_map(|(start, row)| {
            (*start..items.len()).map(|i| (i + 1, row.iter().cloned().chain([items[i].clone()]).collect()))
        });
        rows = next.take(MAX_ITEMS + 1).collect();
        if rows.len() > MAX_ITEMS {
            return Err(format!("more than {MAX_ITEMS} items"));
        }
    }
    Ok(rows.into_iter().map(|(_, row)| Value::Array(row)).collect())
}

/// The text of each item of a list: for filters that take one text or several.
pub(super) fn texts(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(items) => items.iter().map(text_of).collect(),
        other => Ok(vec![text_of(other)?]),
    }
}
