//! Host patterns: names, groups, globs, regular expressions, unions, `&` intersections, `!` exclusions, subscripts.
//!
//! Regular terms come first, then `&`, then `!`, wherever they stand; terms of `&` and `!` alone start from `all`.
//! Terms are parted by commas or by colons, never by both. A name that nobody has, a term that matches nothing, and a
//! selection that comes out empty are errors.

use std::{collections::HashSet, path::Path};

use indexmap::IndexSet;

use super::{
    address,
    glob::Glob,
    model::{Host, Inventory},
};
use crate::diag::{Diagnostic, Span, suggest};

/// How a term works on the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Adds its hosts.
    Add,
    /// Keeps only its hosts (`&`).
    Keep,
    /// Takes its hosts away (`!`).
    Remove,
}

/// `[n]` or `[a:b]` at the end of a term, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscript {
    /// `[n]`, negative from the end.
    One(i64),
    /// `[a:b]`; without an end to the last.
    Range(usize, Option<usize>),
}

/// One term of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The term as written, without `&` and `!`.
    pub text: String,
    /// How it works.
    pub action: Action,
    /// The term without its subscript.
    pub name: String,
    /// Its subscript.
    pub subscript: Option<Subscript>,
}

/// Takes a pattern apart; terms are in order of application. Messages are lowercase fragments.
pub fn parse(pattern: &str) -> Result<Vec<Term>, String> {
    let mut terms = split(pattern)?.iter().map(|text| term(text)).collect::<Result<Vec<_>, _>>()?;
    if terms.is_empty() {
        return Err("the pattern is empty".to_owned());
    }
    if terms.iter().all(|t| t.action != Action::Add) {
        terms.insert(0, Term { text: "all".into(), action: Action::Add, name: "all".into(), subscript: None });
    }
    terms.sort_by_key(|t| t.action);
    Ok(terms)
}

/// The texts of the terms, in the order written.
fn split(pattern: &str) -> Result<Vec<String>, String> {
    let parts: Vec<String> = if pattern.contains(',') {
        pattern.split(',').map(str::to_owned).collect()
    } else if address::parse(pattern.trim()).is_some() {
        vec![pattern.to_owned()]
    } else {
        split_colons(pattern)?
    };
    Ok(parts.into_iter().map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect())
}

/// Colons and blanks part terms, but not inside brackets.
fn split_colons(pattern: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut inside = false;
    for c in pattern.chars() {
        match c {
            '[' if !inside => inside = true,
            ']' if inside => inside = false,
            ']' => return Err(format!("']' without '[' in '{pattern}'")),
            ':' if !inside => {
                parts.push(String::new());
                continue;
            }
            c if c.is_whitespace() && !inside => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    if inside {
        return Err(format!("'[' is opened and not closed in '{pattern}'"));
    }
    Ok(parts)
}

fn term(text: &str) -> Result<Term, String> {
    let (action, rest) = match text.chars().next() {
        Some('&') => (Action::Keep, &text[1..]),
        Some('!') => (Action::Remove, &text[1..]),
        _ => (Action::Add, text),
    };
    if rest.is_empty() {
        return Err(format!("'{text}' names nothing"));
    }
    let (name, subscript) = split_subscript(rest);
    Ok(Term { text: rest.to_owned(), action, name: name.to_owned(), subscript })
}

/// `x[0]`, `x[-1]`, `x[1:3]`, `x[1-3]`, `x[2:]` at the end. In a regular expression brackets are its own.
fn split_subscript(text: &str) -> (&str, Option<Subscript>) {
    let none = (text, None);
    if text.starts_with('~') {
        return none;
    }
    let Some(inner) = text.strip_suffix(']') else { return none };
    let Some(at) = inner.rfind('[') else { return none };
    let (name, inner) = (&text[..at], &inner[at + 1..]);
    if name.is_empty() {
        return none;
    }
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if digits(inner.strip_prefix('-').unwrap_or(inner)) {
        return inner.parse().map_or(none, |n| (name, Some(Subscript::One(n))));
    }
    let Some((from, to)) = inner.split_once([':', '-']) else { return none };
    if !digits(from) || !(to.is_empty() || digits(to)) {
        return none;
    }
    let (Ok(from), to) = (from.parse(), to.parse().ok()) else { return none };
    (name, Some(Subscript::Range(from, to)))
}

/// What a term found.
struct Found {
    hosts: IndexSet<usize>,
    /// It is the name of a group or a host, or a glob or regular expression that matched a group.
    known: bool,
}

/// The index of the implicit `localhost`, which is in no list.
const LOCALHOST: usize = usize::MAX;

impl Inventory {
    /// The hosts of a pattern that are also in the limit, each once, in order. Both must match something by
    /// themselves; that a limit leaves none of a play's hosts is no error, the list is empty then.
    ///
    /// `@FILE` in the limit names a file with one pattern per line.
    pub fn select(&self, pattern: &str, limit: Option<&str>) -> Result<Vec<&Host>, Diagnostic> {
        let mut hosts = self.evaluate(pattern, &[pattern.to_owned()], false)?;
        if let Some(limit) = limit {
            let kept = self.limit_indices(limit)?;
            hosts.retain(|h| kept.contains(h));
        }
        Ok(hosts.into_iter().filter_map(|h| self.by_index(h)).collect())
    }

    /// The hosts of a limit alone.
    pub fn select_limit(&self, limit: &str) -> Result<Vec<&Host>, Diagnostic> {
        Ok(self.limit_indices(limit)?.into_iter().filter_map(|h| self.by_index(h)).collect())
    }

    fn by_index(&self, index: usize) -> Option<&Host> {
        if index == LOCALHOST { self.localhost.as_ref() } else { self.hosts.get_index(index).map(|(_, h)| h) }
    }

    fn limit_indices(&self, limit: &str) -> Result<IndexSet<usize>, Diagnostic> {
        let mut patterns = Vec::new();
        for part in split(limit).map_err(wrong)? {
            match part.strip_prefix('@') {
                Some(path) => patterns.extend(limit_file(Path::new(path))?),
                None => patterns.push(part),
            }
        }
        self.evaluate(limit, &patterns, true)
    }

    /// `patterns` are split unless they are the terms of a limit already.
    fn evaluate(&self, whole: &str, patterns: &[String], split_already: bool) -> Result<IndexSet<usize>, Diagnostic> {
        let mut terms = Vec::new();
        if split_already {
            for pattern in patterns {
                terms.push(term(pattern).map_err(wrong)?);
            }
            if terms.is_empty() {
                return Err(wrong(format!("the limit '{whole}' is empty")));
            }
            if terms.iter().all(|t| t.action != Action::Add) {
                terms.push(Term { text: "all".into(), action: Action::Add, name: "all".into(), subscript: None });
            }
            terms.sort_by_key(|t| t.action);
        } else {
            for pattern in patterns {
                terms.extend(parse(pattern).map_err(wrong)?);
            }
        }
        let mut selected: IndexSet<usize> = IndexSet::new();
        for term in &terms {
            let hosts = self.term_hosts(term)?;
            match term.action {
                Action::Add => selected.extend(hosts),
                Action::Keep => selected.retain(|h| hosts.contains(h)),
                Action::Remove => selected.retain(|h| !hosts.contains(h)),
            }
        }
        if selected.is_empty() {
            return Err(wrong(format!("the pattern '{whole}' matches no host"))
                .hint("see what there is: controller inventory --graph"));
        }
        Ok(selected)
    }

    fn term_hosts(&self, term: &Term) -> Result<IndexSet<usize>, Diagnostic> {
        // A host of exactly that name wins over everything, where the term has no sign.
        if term.action == Action::Add
            && let Some(host) = self.hosts.get_index_of(&term.text)
        {
            return Ok(IndexSet::from([host]));
        }
        let found = self.matches(&term.name)?;
        // A glob that takes nothing away does no harm; a name that nobody has is a misprint.
        let harmless = term.action == Action::Remove && is_glob(&term.name);
        if !(found.known || harmless) {
            return Err(self.unknown(term));
        }
        let whole = found.hosts.len();
        let hosts = match term.subscript {
            Some(subscript) => apply(subscript, found.hosts),
            None => found.hosts,
        };
        if hosts.is_empty() && term.action == Action::Add {
            return Err(match term.subscript {
                Some(_) if whole > 0 => wrong(format!("'{}' matches no host: '{}' has {whole}", term.text, term.name))
                    .hint("subscripts count from 0, and both ends are included"),
                _ if is_glob(&term.name) => wrong(format!("'{}' matches no host", term.text)),
                _ => wrong(format!("group '{}' has no hosts", term.name)),
            });
        }
        Ok(hosts)
    }

    fn matches(&self, name: &str) -> Result<Found, Diagnostic> {
        let mut found = Found { hosts: IndexSet::new(), known: false };
        let regex = name
            .strip_prefix('~')
            .map(|text| {
                fancy_regex::Regex::new(&format!("^(?:{text})"))
                    .map_err(|e| wrong(format!("'{name}' is no regular expression: {e}")))
            })
            .transpose()?;
        let glob = Glob::new(name);
        let matching = |text: &str| -> Result<bool, Diagnostic> {
            match &regex {
                Some(regex) => regex
                    .is_match(text)
                    .map_err(|e| wrong(format!("the regular expression '{name}' cannot be applied: {e}"))),
                None => Ok(glob.matches(text)),
            }
        };
        if regex.is_none() && !is_glob(name) {
            // A plain word: no need to look at every name.
            if let Some(group) = self.groups.get(name) {
                found.known = true;
                found.hosts.extend(self.group_hosts(group).iter().filter_map(|h| self.hosts.get_index_of(&h.name)));
            }
        } else {
            for group in self.groups.values() {
                if matching(&group.name)? {
                    found.known = true;
                    found.hosts.extend(self.group_hosts(group).iter().filter_map(|h| self.hosts.get_index_of(&h.name)));
                }
            }
        }
        if !found.known || regex.is_some() || name.contains(['.', '?', '*', '[']) {
            if regex.is_none() && !is_glob(name) {
                found.hosts.extend(self.hosts.get_index_of(name));
            } else {
                for (index, host) in self.hosts.keys().enumerate() {
                    if matching(host)? {
                        found.hosts.insert(index);
                    }
                }
            }
        }
        found.known |= !found.hosts.is_empty();
        if !found.known && self.localhost.is_some() && matches!(name, "localhost" | "127.0.0.1" | "::1") {
            found.hosts.insert(LOCALHOST);
            found.known = true;
        }
        Ok(found)
    }

    fn unknown(&self, term: &Term) -> Diagnostic {
        let name = &term.name;
        if is_glob(name) {
            return wrong(format!("'{}' matches no group and no host", term.text));
        }
        let error = wrong(format!("there is no group and no host '{name}'"));
        if name.starts_with('@') {
            return error.hint("@FILE is understood in --limit only");
        }
        if name.contains(':') {
            return error.hint("part terms by commas or by colons, not by both");
        }
        if term.subscript.is_some() {
            return error.hint(format!(
                "brackets at the end choose from a group's hosts; for names write '{name}*' or list them with commas"
            ));
        }
        let known: Vec<&str> = self.groups.keys().chain(self.hosts.keys()).map(String::as_str).collect();
        match suggest(name, known) {
            Some(hint) => error.hint(hint),
            None => error.hint("see what there is: controller inventory --graph"),
        }
    }
}

fn is_glob(name: &str) -> bool {
    name.starts_with('~') || name.contains(['?', '*', '['])
}

fn apply(subscript: Subscript, hosts: IndexSet<usize>) -> IndexSet<usize> {
    let count = hosts.len();
    let (from, to) = match subscript {
        Subscript::One(n) => {
            let at = if n < 0 { i64::try_from(count).unwrap_or(i64::MAX) + n } else { n };
            match usize::try_from(at) {
                Ok(at) if at < count => (at, at + 1),
                _ => return IndexSet::new(),
            }
        }
        Subscript::Range(from, to) => (from, to.map_or(count, |to| to.saturating_add(1)).min(count)),
    };
    hosts.into_iter().skip(from).take(to.saturating_sub(from)).collect()
}

/// Lines of a limit file: one pattern each, blank ones are skipped.
fn limit_file(path: &Path) -> Result<Vec<String>, Diagnostic> {
    let shown = path.display();
    if path.is_dir() {
        return Err(wrong(format!("the limit file {shown} is a folder")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read the limit file {shown}: {e}")))?;
    let lines: Vec<String> = text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() {
        return Err(wrong(format!("the limit file {shown} names no host")));
    }
    let mut seen = HashSet::new();
    Ok(lines.into_iter().filter(|l| seen.insert(l.clone())).collect())
}

fn wrong(message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Span::NONE, message)
}
