//! Text, paths, sizes, versions.

use std::cmp::Ordering;

use serde_json::{Value, json};

use super::{Args, Filter, kind, list_of, text_of};

/// Characters that one filter may add around a text.
const MAX_WIDTH: i64 = 1_000_000;

pub(super) const FILTERS: &[Filter] = &[
    Filter::new(&["quote"], &[], |v, _| Ok(quote(&text_of(&v)?).into())),
    Filter::new(&["split"], &["sep", "maxsplit"], split),
    Filter::new(&["splitlines"], &[], |v, _| Ok(text_of(&v)?.lines().collect())),
    Filter::new(&["basename"], &[], |v, _| Ok(split_path(&text_of(&v)?).1.into())),
    Filter::new(&["dirname"], &[], |v, _| Ok(split_path(&text_of(&v)?).0.into())),
    Filter::new(&["splitext"], &[], splitext),
    Filter::new(&["path_join"], &[], path_join),
    Filter::new(&["relpath"], &["start"], relpath),
    Filter::new(&["comment"], &["style", "decoration", "prefix", "postfix", "beginning", "end"], comment),
    Filter::new(&["human_readable"], &["isbits", "unit"], human_readable),
    Filter::new(&["human_to_bytes"], &["default_unit", "isbits"], human_to_bytes),
    Filter::new(&["wordwrap"], &["width"], wordwrap),
    Filter::new(&["wordcount"], &[], |v, _| Ok(text_of(&v)?.split_whitespace().count().into())),
    Filter::new(&["center"], &["width"], |v, a| pad(v, a, Side::Both)),
    Filter::new(&["ljust"], &["width"], |v, a| pad(v, a, Side::Right)),
    Filter::new(&["rjust"], &["width"], |v, a| pad(v, a, Side::Left)),
    Filter::new(&["truncate"], &["length", "killwords", "end", "leeway"], truncate),
    Filter::new(&["urldecode"], &[], urldecode),
];

fn quote(text: &str) -> String {
    // NUL cannot stand on any command line; it is left to the module that runs the command to say so.
    let safe = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\"'\"'"))
}

fn split(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let limit = match args.int("maxsplit")?.filter(|n| *n >= 0) {
        Some(limit) => usize::try_from(limit).map_err(|_| "'maxsplit' is too large")?.saturating_add(1),
        None => usize::MAX,
    };
    match args.text("sep")? {
        Some(separator) if separator.is_empty() => Err("the separator is empty".to_owned()),
        Some(separator) => Ok(text.splitn(limit, separator.as_str()).collect()),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim();
            while !rest.is_empty() {
                match rest.find(char::is_whitespace).filter(|_| parts.len() + 1 < limit) {
                    Some(at) => {
                        parts.push(Value::from(&rest[..at]));
                        rest = rest[at..].trim_start();
                    }
                    None => {
                        parts.push(Value::from(rest));
                        rest = "";
                    }
                }
            }
            Ok(parts.into())
        }
    }
}

/// As Python's os.path.split.
fn split_path(path: &str) -> (String, String) {
    let (head, tail) = path.rfind('/').map_or(("", path), |at| path.split_at(at + 1));
    let trimmed = head.trim_end_matches('/');
    let head = if trimmed.is_empty() { head } else { trimmed };
    (head.to_owned(), tail.to_owned())
}

fn splitext(value: Value, _: &mut Args) -> Result<Value, String> {
    let path = text_of(&value)?;
    let name = path.rfind('/').map_or(0, |at| at + 1);
    let leading = path[name..].len() - path[name..].trim_start_matches('.').len();
    let dot = path[name + leading..].rfind('.').map(|at| name + leading + at);
    let (root, extension) = dot.map_or((path.as_str(), ""), |at| path.split_at(at));
    Ok(json!([root, extension]))
}

fn path_join(value: Value, _: &mut Args) -> Result<Value, String> {
    let parts = match value {
        Value::Array(_) => list_of(value)?,
        other => vec![other],
    };
    let mut path = String::new();
    for part in parts {
        let part = text_of(&part)?;
        if part.starts_with('/') {
            path.clear();
        } else if !path.is_empty() && !path.ends_with('/') {
            path.push('/');
        }
        path.push_str(&part);
    }
    Ok(path.into())
}

fn relpath(value: Value, args: &mut Args) -> Result<Value, String> {
    let (path, start) = (text_of(&value)?, args.text("start")?.ok_or("the argument 'start' is missing")?);
    if path.starts_with('/') != start.starts_with('/') {
        return Err("both paths must be absolute, or both relative".to_owned());
    }
    let parts = |p: &str| {
        let mut out: Vec<String> = Vec::new();
        for part in p.split('/').filter(|p| !p.is_empty() && *p != ".") {
            match part {
                ".." if out.last().is_some_and(|last| last != "..") => {
                    out.pop();
                }
                part => out.push(part.to_owned()),
            }
        }
        out
    };
    let (path, start) = (parts(&path), parts(&start));
    let common = path.iter().zip(&start).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", start.len() - common);
    let joined = up.chain(path[common..].iter().map(String::as_str)).collect::<Vec<_>>().join("/");
    Ok(if joined.is_empty() { ".".into() } else { joined.into() })
}

fn comment(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let style = args.text("style")?.unwrap_or_else(|| "plain".to_owned());
    let (beginning, decoration, end) = match style.as_str() {
        "plain" => ("", "# ", ""),
        "erlang" => ("", "% ", ""),
        "c" => ("", "// ", ""),
        "cblock" => ("/*", " * ", " */"),
        "xml" => ("<!--", " - ", "-->"),
        other => return Err(format!("unknown style '{other}' (known: plain, erlang, c, cblock, xml)")),
    };
    let mut take = |name: &str, default: &str| Ok::<_, String>(args.text(name)?.unwrap_or_else(|| default.to_owned()));
    let decoration = take("decoration", decoration)?;
    let frame = decoration.trim_end().to_owned();
    let (beginning, end) = (take("beginning", beginning)?, take("end", end)?);
    let (prefix, postfix) = (take("prefix", &frame)?, take("postfix", &frame)?);
    let mut lines = Vec::new();
    lines.extend((!beginning.is_empty()).then_some(beginning));
    lines.push(prefix);
    lines.extend(text.split('\n').map(|line| format!("{decoration}{line}").trim_end().to_owned()));
    lines.push(postfix);
    lines.extend((!end.is_empty()).then_some(end));
    Ok(lines.join("\n").into())
}

const UNITS: &[(&str, u32)] = &[("Y", 80), ("Z", 70), ("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];

fn human_readable(value: Value, args: &mut Args) -> Result<Value, String> {
    let size = match &value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    let size: f64 = size.ok_or_else(|| format!("a number is needed, not {}", kind(&value)))?;
    let suffix = if args.flag("isbits")?.unwrap_or(false) { "b" } else { "B" };
    let wanted = args.text("unit")?.map(|u| u.to_uppercase());
    for (letter, power) in UNITS {
        let unit = 2_f64.powi(i32::try_from(*power).unwrap_or(0));
        let fits = match &wanted {
            Some(wanted) => wanted.starts_with(letter),
            None => size >= unit,
        };
        if fits {
            return Ok(format!("{:.2} {letter}{suffix}", size / unit).into());
        }
    }
    let word = if suffix == "b" { "bits" } else { "Bytes" };
    Ok(format!("{size:.2} {word}").into())
}

fn human_to_bytes(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("'{text}' is no size (such as 10M or 1.5 GB)"))?;
    let default = args.text("default_unit")?.unwrap_or_default();
    let bits = args.flag("isbits")?.unwrap_or(false);
    let unit = if unit.trim().is_empty() { default.trim() } else { unit.trim() };
    let upper = unit.to_uppercase();
    let base = upper.trim_end_matches('B').trim_end_matches('I');
    let power = match base {
        "" | "BYTES" | "BITS" => 0,
        letter => match UNITS.iter().find(|(known, _)| *known == letter) {
            Some((_, power)) => *power,
            None => return Err(format!("unknown unit '{unit}' (known: B, K, M, G, T, P, E, Z, Y)")),
        },
    };
    if bits && unit.ends_with('B') && unit.len() > 1 {
        return Err(format!("'{unit}' counts bytes, bits were asked for"));
    }
    let bytes = number * 2_f64.powi(i32::try_from(power).unwrap_or(0));
    if !bytes.is_finite() || bytes >= 9.2e18 {
        return Err(format!("'{text}' is too large"));
    }
    Ok((bytes.round() as i64).into())
}

fn wordwrap(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let width = args.int("width")?.unwrap_or(79);
    let width = usize::try_from(width).ok().filter(|w| *w > 0).ok_or("'width' must be positive")?;
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let mut current = String::new();
        for word in line.split_whitespace() {
            let used = current.chars().count();
            if used > 0 && used + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
        }
        lines.push(current);
    }
    Ok(lines.join("\n").into())
}

enum Side {
    Left,
    Right,
    Both,
}

fn pad(value: Value, args: &mut Args, side: Side) -> Result<Value, String> {
    let text = text_of(&value)?;
    let width = args.int("width")?.unwrap_or(80);
    if width > MAX_WIDTH {
        return Err(format!("'width' is more than {MAX_WIDTH}"));
    }
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    let (left, right) = match side {
        Side::Left => (missing, 0),
        Side::Right => (0, missing),
        Side::Both => (missing / 2, missing - missing / 2),
    };
    Ok(format!("{}{text}{}", " ".repeat(left), " ".repeat(right)).into())
}

fn truncate(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let length = usize::try_from(args.int("length")?.unwrap_or(255)).map_err(|_| "'length' must not be negative")?;
    let kill = args.flag("killwords")?.unwrap_or(false);
    let end = args.text("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = usize::try_from(args.int("leeway")?.unwrap_or(5)).map_err(|_| "'leeway' must not be negative")?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.into());
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = if kill { kept.as_str() } else { kept.rfind(' ').map_or(kept.as_str(), |at| &kept[..at]) };
    Ok(format!("{kept}{end}").into())
}

fn urldecode(value: Value, _: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map(Value::from).map_err(|_| "the decoded bytes are no UTF-8 text".to_owned())
}

/// Compares versions as Ansible's loose versions do: numbers by size, text by letters; a pre-release (`-rc1`, `~beta`)
/// comes before its release.
pub(in crate::template) fn compare_versions(left: &str, right: &str) -> Ordering {
    let (left, right) = (parts(left), parts(right));
    for index in 0..left.len().max(right.len()) {
        let order = match (left.get(index), right.get(index)) {
            (Some(a), Some(b)) => a.cmp(b),
            (Some(a), None) => a.against_end(),
            (None, Some(b)) => b.against_end().reverse(),
            (None, None) => Ordering::Equal,
        };
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// Text before numbers: `1.0rc1` < `1.0.1`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Text(String),
    Number(u128),
}

impl Part {
    /// How a version with this further part compares to one that ends here.
    fn against_end(&self) -> Ordering {
        match self {
            Self::Number(0) => Ordering::Equal,
            Self::Number(_) => Ordering::Greater,
            Self::Text(_) => Ordering::Less,
        }
    }
}

fn parts(version: &str) -> Vec<Part> {
    // Build metadata says nothing about the order.
    let version = version.split('+').next().unwrap_or(version).trim_start_matches(['v', 'V']);
    let mut parts = Vec::new();
    let mut rest = version;
    while let Some(c) = rest.chars().next() {
        let number = c.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != number || !c.is_alphanumeric()).unwrap_or(rest.len());
        if end == 0 {
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (part, after) = rest.split_at(end);
        parts.push(match part.parse() {
            Ok(n) if number => Part::Number(n),
            _ => Part::Text(part.to_lowercase()),
        });
        rest = after;
    }
    parts
}
