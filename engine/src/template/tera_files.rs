//! Our own templates (`*.tera`).
//!
//! Tera takes an undefined name in a condition as false, so every top-level name of a template must be defined before
//! it is rendered; optional ones get `null` in the role's defaults.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::OnceLock,
};

use tera::{Context, ErrorKind, Kwargs, State, Tera};

use super::{
    EvalError, HostReferences, Loader, References, Rendered, TemplateSource,
    filters::{self, Args},
    limits,
    session::{Failed, Session},
    values,
};
use crate::{
    diag::{Diagnostic, FileId, Span, nearest},
    vars::{Binding, Scope, hosts::Found},
};

/// Templates that one template may draw in.
const MAX_TEMPLATES: usize = 200;

/// Hosts whose missing results are told.
const MAX_REASONS: usize = 5;

/// Names that Tera itself sets.
const BUILT_IN: &[&str] = &["loop", "__tera_context", "__tera"];

fn base() -> &'static Tera {
    static BASE: OnceLock<Tera> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut tera = Tera::default();
        tera.autoescape_on(Vec::<&'static str>::new());
        for filter in filters::all() {
            for name in filter.names.iter().filter(|n| !TERA_OWN.contains(n)) {
                let name = *name;
                tera.register_filter(name, move |value: &tera::Value, kwargs: Kwargs, _: &State| {
                    call(filter, name, value, &kwargs)
                });
            }
        }
        tera
    })
}

/// Filters that Tera brings along keep Tera's meaning and its named arguments.
const TERA_OWN: &[&str] = &[
    "default", "join", "split", "unique", "first", "last", "length", "replace", "title", "trim", "indent", "truncate",
];

/// The names of all filters of a template.
fn base_filters() -> Vec<&'static str> {
    const BUILT_IN_FILTERS: &[&str] = &[
        "safe",
        "upper",
        "lower",
        "wordcount",
        "escape",
        "trim_start",
        "trim_end",
        "capitalize",
        "str",
        "int",
        "float",
        "reverse",
        "abs",
        "round",
        "nth",
        "sort",
        "get",
        "values",
        "keys",
        "pairs",
        "group_by",
    ];
    let ours = filters::all().flat_map(|f| f.names.iter().copied());
    ours.chain(TERA_OWN.iter().copied()).chain(BUILT_IN_FILTERS.iter().copied()).collect()
}

fn call(
    filter: &'static filters::Filter,
    name: &'static str,
    value: &tera::Value,
    kwargs: &Kwargs,
) -> tera::TeraResult<tera::Value> {
    let plain = |v: &tera::Value| serde_json::to_value(v).map_err(|e| tera::Error::message(e.to_string()));
    if value.is_undefined() {
        return Err(tera::Error::message(format!("{name}: the value is undefined")));
    }
    let mut named = serde_json::Map::new();
    for (key, value) in kwargs.iter() {
        named.insert(key.to_string(), plain(value)?);
    }
    // Tera has no positional arguments: what is positional in an expression is named `other` (or `pattern`) here.
    let positional = if filter.rest {
        ["other", "pattern"].iter().filter_map(|key| named.shift_remove(*key)).collect()
    } else {
        Vec::new()
    };
    let value = plain(value)?;
    let result = Args::bind(filter, name, positional, named).and_then(|mut args| filter.call(value, &mut args));
    match result {
        Ok(value) => tera::Value::try_from_serializable(&value),
        Err(message) => Err(tera::Error::message(message)),
    }
}

/// A set of templates in which every name that they use is there.
struct Set<'a> {
    tera: Tera,
    files: HashMap<String, (FileId, String)>,
    main: &'a TemplateSource<'a>,
}

impl<'a> Set<'a> {
    /// Reads the template and those that it names; `loader` answers for the latter.
    fn read(main: &'a TemplateSource<'a>, loader: Loader<'_>) -> Result<Self, Diagnostic> {
        let mut set = Self { tera: base().clone(), files: HashMap::new(), main };
        loop {
            for (file, text) in set.files.values().map(|(f, t)| (*f, t.as_str())).chain([(main.file, main.text)]) {
                limits::tera(text).map_err(|message| Diagnostic::error(Span::whole(file), message))?;
            }
            let texts: Vec<(&str, &str)> = set
                .files
                .iter()
                .map(|(name, (_, text))| (name.as_str(), text.as_str()))
                .chain([(main.name, main.text)])
                .collect();
            let mut tera = base().clone();
            let Err(error) = tera.add_raw_templates(texts) else {
                set.tera = tera;
                return Ok(set);
            };
            let missing = missing_template(error.kind(), |name| set.files.contains_key(name) || name == main.name);
            let found = missing.as_deref().and_then(|name| loader(name).map(|found| (name.to_owned(), found)));
            match found {
                Some((name, found)) if set.files.len() < MAX_TEMPLATES => {
                    set.files.insert(name, found);
                }
                _ => return Err(set.finding(&error)),
            }
        }
    }

    fn finding(&self, error: &tera::Error) -> Diagnostic {
        match error.kind() {
            ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => {
                let at = report.span();
                self.report(report.message(), report.filename(), (at.start_line, at.start_col + 1))
            }
            ErrorKind::Msg(message) => {
                let mut found = reports(message).map(|(text, name, place)| self.report(text, name, place));
                let whole = || Diagnostic::error(Span::whole(self.main.file), lower(message));
                let first = found.next().unwrap_or_else(whole);
                found.fold(first, |first, more| first.note(more.span, more.message))
            }
            other => Diagnostic::error(Span::whole(self.main.file), lower(&other.to_string())),
        }
    }

    fn report(&self, message: &str, name: &str, (line, column): (usize, usize)) -> Diagnostic {
        let file = self.files.get(name).map_or(self.main.file, |(file, _)| *file);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let message = lower(message).replace('`', "'");
        let error = Diagnostic::error(Span { file, line: number(line), column: number(column) }, message.clone());
        let quoted = message.split('\'').nth(1).unwrap_or_default();
        if message.starts_with("unknown filter") {
            return error.nearest(quoted, base_filters().iter().copied());
        }
        error
    }

    /// Top-level names that must be defined, in order.
    fn names(&self) -> Result<Vec<String>, Diagnostic> {
        let names = self.tera.get_template_variables(self.main.name).map_err(|e| self.finding(&e))?;
        let mut names: Vec<String> = names.into_iter().filter(|n| !BUILT_IN.contains(n)).map(str::to_owned).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Where a name stands first in the template.
    fn place(&self, name: &str) -> Span {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let texts = std::iter::once((self.main.file, self.main.text))
            .chain(self.files.values().map(|(file, text)| (*file, text.as_str())));
        for (file, text) in texts {
            let hit = text.match_indices(name).find(|(at, _)| {
                let (before, after) = (&text[..*at], &text[at + name.len()..]);
                let inside = before.rfind("{{").max(before.rfind("{%")) > before.rfind("}}").max(before.rfind("%}"));
                inside && !before.ends_with(word) && !before.ends_with('.') && !after.starts_with(word)
            });
            if let Some((at, _)) = hit {
                return super::place::Place::File(file).at(text, at);
            }
        }
        Span::whole(self.main.file)
    }
}

fn lower(message: &str) -> String {
    let mut chars = message.chars();
    match chars.next() {
        Some(first) if !chars.as_str().starts_with(char::is_uppercase) => first.to_lowercase().chain(chars).collect(),
        _ => message.to_owned(),
    }
}

/// The reports inside of a message that holds several: text, template, line and column.
fn reports(message: &str) -> impl Iterator<Item = (&str, &str, (usize, usize))> {
    message.split("\n\n").filter_map(|block| {
        let mut lines = block.lines();
        let text = lines.next()?.strip_prefix("error: ")?;
        let place = lines.next()?.trim_start().strip_prefix("--> ")?;
        let mut parts = place.rsplitn(3, ':');
        let (column, line) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some((text, parts.next()?, (line, column)))
    })
}

/// The template that an error says is missing.
fn missing_template(kind: &ErrorKind, known: impl Fn(&str) -> bool) -> Option<String> {
    let name = match kind {
        ErrorKind::MissingParent { parent, .. } => parent.as_str(),
        ErrorKind::TemplateNotFound(name) => name.as_str(),
        ErrorKind::Msg(message) => {
            reports(message).find_map(|(text, _, _)| text.strip_prefix("Unknown template `")?.strip_suffix('`'))?
        }
        _ => return None,
    };
    (!known(name)).then(|| name.to_owned())
}

pub(super) fn check(source: &TemplateSource<'_>) -> Result<References, Diagnostic> {
    // Only this file is checked: those that it names are taken as empty.
    let set = Set::read(source, &|_| Some((FileId::NONE, String::new())))?;
    Ok(References { required: set.names()?.into_iter().collect(), ..References::default() })
}

/// What the template asks of other hosts. Tera does not give its syntax tree: every word may be a name.
pub(super) fn host_references(text: &str) -> HostReferences {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let named = |part: &&str| Path::new(part).extension().is_some_and(|ending| ending == "tera");
    let quoted = text.split(['"', '\'', '`']).filter(named);
    let words: BTreeSet<String> = text.split(|c| !word(c)).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    HostReferences {
        names: BTreeSet::new(),
        open: words.contains("hostvars"),
        templates: quoted.map(str::to_owned).collect(),
        variables: words.clone(),
        words,
    }
}

/// Adds what is not there of other hosts, where the line that failed names it.
fn about_hosts(session: &Session, set: &Set<'_>, error: Diagnostic) -> Diagnostic {
    let Some(Binding::Hosts(hosts)) = session.scope.get("hostvars").map(|var| &var.binding) else { return error };
    let mut error = error;
    let text = set.files.values().find(|(file, _)| *file == error.span.file).map_or(set.main.text, |(_, text)| text);
    let line = (error.span.line as usize).checked_sub(1).and_then(|at| text.lines().nth(at)).unwrap_or_default();
    let named: Vec<&String> = hosts.asked.iter().filter(|name| line.contains(name.as_str())).collect();
    let missing = hosts.hosts().flat_map(|host| named.iter().map(move |name| (host, *name)));
    let reasons = missing.filter_map(|(host, name)| match hosts.find(host, name) {
        Found::Nothing => Some(hosts.absent(host, name).message),
        Found::Refused { message, .. } => Some(message),
        _ => None,
    });
    error.notes.extend(reasons.take(MAX_REASONS).map(|reason| (Span::NONE, reason)));
    error
}

pub(super) fn render(source: &TemplateSource<'_>, scope: &Scope, loader: Loader<'_>) -> Result<Rendered, EvalError> {
    Session::run(scope, Span::whole(source.file), |session| {
        let set = Set::read(source, loader).map_err(|e| session.fail(e))?;
        let mut context = Context::new();
        let mut missing = Vec::new();
        for name in set.names().map_err(|e| session.fail(e))? {
            match session.lookup(&name) {
                Some(value) => {
                    let value = values::to_json(&value).map_err(|e| {
                        let message = e.detail().unwrap_or("a part of this value is undefined");
                        session.fail(Diagnostic::error(set.place(&name), format!("'{name}': {message}")))
                    })?;
                    context.insert(name, &value);
                }
                None => missing.push(name),
            }
        }
        if let Some(first) = missing.first() {
            return Err(session.fail(undefined(&set, scope, first, &missing)));
        }
        let text = set
            .tera
            .render(source.name, &context)
            .map_err(|e| session.fail(about_hosts(session, &set, set.finding(&e))))?;
        if session.failed() {
            return Err(Failed);
        }
        Ok(Rendered { text, secret: session.tainted() })
    })
}

fn undefined(set: &Set<'_>, scope: &Scope, first: &str, missing: &[String]) -> Diagnostic {
    let mut error = Diagnostic::error(set.place(first), format!("'{first}' is undefined"));
    for name in &missing[1..] {
        error = error.note(set.place(name), format!("'{name}' is undefined too"));
    }
    match nearest(first, scope.names()) {
        Some(near) => error.hint(format!("did you mean '{near}'?")),
        None => {
            error.hint("every name of a .tera template must be defined: give optional ones null in the role's defaults")
        }
    }
}
