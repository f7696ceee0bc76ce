//! Regular expressions in Python's dialect: look-around, `(?P<name>)`, `\1` and `\g<name>` in replacements.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use fancy_regex::{Captures, Regex, RegexBuilder};
use serde_json::Value;

use super::{Args, Filter, text_of};

pub(super) const FILTERS: &[Filter] = &[
    Filter::new(
        &["regex_replace"],
        &["pattern", "replacement", "ignorecase", "multiline", "count", "mandatory_count"],
        replace,
    ),
    Filter::variadic(&["regex_search"], &["ignorecase", "multiline"], search),
    Filter::new(&["regex_findall"], &["regex", "multiline", "ignorecase"], find_all),
    Filter::new(&["regex_escape"], &["re_type"], escape),
];

/// Steps that one match may take back: a bad pattern ends in an error instead of a standstill.
const BACKTRACKS: usize = 1_000_000;
/// Compiled patterns that are kept.
const CACHE: usize = 512;

fn compile(pattern: &str, ignore_case: bool, multiline: bool) -> Result<Arc<Regex>, String> {
    type Cache = Mutex<HashMap<String, Arc<Regex>>>;
    static CACHED: OnceLock<Cache> = OnceLock::new();
    let flags = format!("{}{}", if ignore_case { "i" } else { "" }, if multiline { "m" } else { "" });
    let full = if flags.is_empty() { pattern.to_owned() } else { format!("(?{flags}){pattern}") };
    let cache = || CACHED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = cache().get(&full) {
        return Ok(found.clone());
    }
    // Python writes the end of the text as \Z, and escapes that need none.
    let translated = full.replace("\\Z", "\\z");
    let compiled = RegexBuilder::new(&translated)
        .backtrack_limit(BACKTRACKS)
        .build()
        .map_err(|e| format!("the pattern '{pattern}' cannot be read: {e}"))?;
    let compiled = Arc::new(compiled);
    let mut cache = cache();
    if cache.len() >= CACHE {
        cache.clear();
    }
    cache.insert(full, compiled.clone());
    Ok(compiled)
}

fn failed(e: fancy_regex::Error) -> String {
    format!("the pattern is too expensive for this text: {e}")
}

fn flags(args: &mut Args) -> Result<(bool, bool), String> {
    Ok((args.flag("ignorecase")?.unwrap_or(false), args.flag("multiline")?.unwrap_or(false)))
}

/// A part of a replacement.
enum Part {
    Text(String),
    Number(usize),
    Name(String),
}

/// Reads `\1`, `\g<1>`, `\g<name>`, `\n` and `\\`.
fn replacement(template: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut chars = template.chars().peekable();
    let part = |text: &mut String, parts: &mut Vec<Part>, part: Part| {
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(text)));
        }
        parts.push(part);
    };
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('g') if chars.peek() == Some(&'<') => {
                chars.next();
                let mut name = String::new();
                loop {
                    match chars.next() {
                        Some('>') => break,
                        Some(c) => name.push(c),
                        None => return Err("the replacement has a \\g< without >".to_owned()),
                    }
                }
                let reference = name.parse().map_or(Part::Name(name), Part::Number);
                part(&mut text, &mut parts, reference);
            }
            Some(digit) if digit.is_ascii_digit() => {
                let mut number = digit.to_digit(10).unwrap_or(0) as usize;
                if let Some(next) = chars.peek().and_then(|c| c.to_digit(10)) {
                    chars.next();
                    number = number * 10 + next as usize;
                }
                part(&mut text, &mut parts, Part::Number(number));
            }
            Some('n') => text.push('\n'),
            Some('t') => text.push('\t'),
            Some('r') => text.push('\r'),
            Some('\\') => text.push('\\'),
            Some(other) => {
                text.push('\\');
                text.push(other);
            }
            None => text.push('\\'),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

fn check_parts(parts: &[Part], regex: &Regex) -> Result<(), String> {
    for part in parts {
        match part {
            Part::Number(n) if *n >= regex.captures_len() => {
                return Err(format!("the replacement names group {n}, the pattern has {}", regex.captures_len() - 1));
            }
            Part::Name(name) if !regex.capture_names().flatten().any(|known| known == name) => {
                return Err(format!("the replacement names group '{name}', the pattern has none of that name"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn expand(parts: &[Part], captures: &Captures<'_>, out: &mut String) {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Number(n) => out.push_str(captures.get(*n).map_or("", |m| m.as_str())),
            Part::Name(name) => out.push_str(captures.name(name).map_or("", |m| m.as_str())),
        }
    }
}

fn replace(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let pattern = args.text("pattern")?.ok_or("the argument 'pattern' is missing")?;
    let with = args.text("replacement")?.unwrap_or_default();
    let count = usize::try_from(args.int("count")?.unwrap_or(0)).map_err(|_| "'count' must not be negative")?;
    let mandatory = args.int("mandatory_count")?.unwrap_or(0);
    let (ignore_case, multiline) = flags(args)?;
    let regex = compile(&pattern, ignore_case, multiline)?;
    let parts = replacement(&with)?;
    check_parts(&parts, &regex)?;
    let (mut out, mut copied, mut done) = (String::with_capacity(text.len()), 0, 0);
    for captures in regex.captures_iter(&text) {
        let captures = captures.map_err(failed)?;
        let Some(found) = captures.get(0) else { continue };
        out.push_str(&text[copied..found.start()]);
        expand(&parts, &captures, &mut out);
        copied = found.end();
        done += 1;
        if count > 0 && done == count {
            break;
        }
    }
    out.push_str(&text[copied..]);
    if mandatory > 0 && i64::try_from(done) != Ok(mandatory) {
        return Err(format!("'{pattern}' was found {done} times, not {mandatory}"));
    }
    Ok(out.into())
}

fn search(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let mut positional = std::mem::take(&mut args.rest).into_iter();
    let pattern = text_of(&positional.next().ok_or("the pattern is missing")?)?;
    let (ignore_case, multiline) = flags(args)?;
    let regex = compile(&pattern, ignore_case, multiline)?;
    let Some(captures) = regex.captures(&text).map_err(failed)? else { return Ok(Value::Null) };
    let mut groups = Vec::new();
    for group in positional {
        let parts = replacement(&text_of(&group)?)?;
        check_parts(&parts, &regex)?;
        let mut out = String::new();
        expand(&parts, &captures, &mut out);
        groups.push(Value::from(out));
    }
    Ok(if groups.is_empty() { captures.get(0).map_or("", |m| m.as_str()).into() } else { groups.into() })
}

fn find_all(value: Value, args: &mut Args) -> Result<Value, String> {
    let text = text_of(&value)?;
    let pattern = args.text("regex")?.ok_or("the pattern is missing")?;
    let (ignore_case, multiline) = flags(args)?;
    let regex = compile(&pattern, ignore_case, multiline)?;
    let mut found = Vec::new();
    for captures in regex.captures_iter(&text) {
        let captures = captures.map_err(failed)?;
        let group = |n: usize| Value::from(captures.get(n).map_or("", |m| m.as_str()));
        found.push(match regex.captures_len() {
            1 => group(0),
            2 => group(1),
            n => (1..n).map(group).collect(),
        });
    }
    Ok(found.into())
}

fn escape(value: Value, args: &mut Args) -> Result<Value, String> {
    let special = match args.text("re_type")?.as_deref() {
        None | Some("python") => r"\.^$*+?()[]{}|-&~# ",
        Some("posix_basic") => r"\.^$*[]",
        Some(other) => return Err(format!("unknown re_type '{other}' (known: python, posix_basic)")),
    };
    let mut out = String::new();
    for c in text_of(&value)?.chars() {
        if special.contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    Ok(out.into())
}

/// The tests `match` (at the start), `search` (anywhere) and `regex` (anywhere, or as `match_type` says).
pub(in crate::template) fn test(value: &Value, args: &mut Args, how: &str) -> Result<bool, String> {
    let text = text_of(value)?;
    let pattern = args.text("pattern")?.ok_or("the pattern is missing")?;
    let how = args.text("match_type")?.unwrap_or_else(|| how.to_owned());
    let (ignore_case, multiline) = flags(args)?;
    let pattern = match how.as_str() {
        "match" => format!("\\A(?:{pattern})"),
        "fullmatch" => format!("\\A(?:{pattern})\\z"),
        "search" | "regex" => pattern,
        other => return Err(format!("unknown match_type '{other}' (known: match, search, fullmatch)")),
    };
    compile(&pattern, ignore_case, multiline)?.is_match(&text).map_err(failed)
}
