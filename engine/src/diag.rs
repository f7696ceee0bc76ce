//! Diagnostics: what is wrong, where it stands, and what would be right.
//!
//! Everything that a person writes is read with spans. A [`Diagnostic`] carries the span; only the side that holds
//! the text (the controller) renders it with a snippet, through [`Sources`].

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use serde::{Deserialize, Serialize};

/// Index of a file in [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId(pub u32);

impl FileId {
    /// What was not read from a file (built-in values, data from a cloud).
    pub const NONE: Self = Self(u32::MAX);
}

/// A place in a file. Lines and columns count from 1, columns in characters; line 0 means the whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// Line, from 1; 0 for the whole file.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Span {
    /// No place at all.
    pub const NONE: Self = Self { file: FileId::NONE, line: 0, column: 0 };

    /// The whole of a file.
    pub const fn whole(file: FileId) -> Self {
        Self { file, line: 0, column: 0 }
    }

    /// True where there is no file to point into.
    pub fn is_none(&self) -> bool {
        self.file == FileId::NONE
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing stops.
    Warning,
    /// Nothing is started, or the task fails.
    Error,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// A lowercase fragment: `unknown keyword 'becom'`.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What would be right: `did you mean 'become'?`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Further places and facts, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(Span, String)>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), span, hint: None, notes: Vec::new() }
    }

    /// A warning at a place.
    pub fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// Adds what would be right.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what would be right, where that is known.
    pub fn hint_if(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// Adds the nearest known name as the hint, or the list of all where none is near.
    pub fn nearest<'a>(self, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        self.hint_if(suggest(name, known))
    }

    /// Adds a further place.
    pub fn note(mut self, span: Span, text: impl Into<String>) -> Self {
        self.notes.push((span, text.into()));
        self
    }
}

/// `did you mean 'x'?`, or `known: a, b, c` where nothing is near and the list is short.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(near) = nearest(name, known.iter().copied()) {
        return Some(format!("did you mean '{near}'?"));
    }
    if known.is_empty() || known.len() > 40 {
        return None;
    }
    Some(format!("known: {}", known.join(", ")))
}

/// The nearest of the known names, where one is near enough to be a misspelling.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .filter(|candidate| *candidate != name)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.chars().count().max(name.chars().count()) / 3))
        // Of two at the same distance the one that begins alike: 'taks' means 'tasks', not 'tags'.
        .min_by(|(d1, c1), (d2, c2)| {
            let alike = |c: &str| strsim::jaro_winkler(&lower, &c.to_lowercase());
            d1.cmp(d2).then_with(|| alike(c2).total_cmp(&alike(c1)))
        })
        .map(|(_, candidate)| candidate)
}

/// A list of findings, as the error of everything that reads what people write.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{} problem(s)", .0.len())]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// True if one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|d| d.severity == Severity::Error)
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

/// A file that was read.
#[derive(Debug)]
pub struct Source {
    /// As the user knows it (relative to the working directory where it can be).
    pub path: PathBuf,
    /// The text as read.
    pub text: Arc<str>,
}

/// Every file read in this run. Cheap to share: all methods take `&self`.
#[derive(Debug, Default)]
pub struct Sources(RwLock<Vec<Arc<Source>>>);

impl Sources {
    /// Registers a file and its text.
    pub fn add(&self, path: impl Into<PathBuf>, text: impl Into<Arc<str>>) -> FileId {
        let mut files = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        files.push(Arc::new(Source { path: path.into(), text: text.into() }));
        FileId(u32::try_from(files.len() - 1).unwrap_or(u32::MAX - 1))
    }

    /// Reads and registers a file.
    pub fn read(&self, path: &Path) -> Result<FileId, Diagnostic> {
        let bytes = std::fs::read(path)
            .map_err(|e| Diagnostic::error(Span::NONE, format!("cannot read {}: {e}", path.display())))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Diagnostic::error(Span::NONE, format!("{} is not UTF-8 (byte {at})", path.display()))
        })?;
        Ok(self.add(path, text))
    }

    /// The file behind an id.
    pub fn get(&self, id: FileId) -> Option<Arc<Source>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(id.0 as usize).cloned()
    }

    /// Paths of all files, by id: what travels to a host so that it can name places.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).iter().map(|s| s.path.clone()).collect()
    }

    /// `file:line:column`, or nothing for [`Span::NONE`].
    pub fn place(&self, span: Span) -> Option<String> {
        let source = self.get(span.file)?;
        Some(if span.line == 0 {
            source.path.display().to_string()
        } else {
            format!("{}:{}:{}", source.path.display(), span.line, span.column)
        })
    }

    /// The finding as text: message, place, snippet with a caret, notes, hint. Ends with a newline.
    pub fn render(&self, diagnostic: &Diagnostic) -> String {
        let mut out = String::new();
        let label = match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let _ = writeln!(out, "{label}: {}", diagnostic.message);
        self.render_place(&mut out, diagnostic.span);
        for (span, text) in &diagnostic.notes {
            match self.place(*span) {
                Some(place) => {
                    let _ = writeln!(out, "  note: {text} ({place})");
                }
                None => {
                    let _ = writeln!(out, "  note: {text}");
                }
            }
        }
        if let Some(hint) = &diagnostic.hint {
            let _ = writeln!(out, "  hint: {hint}");
        }
        out
    }

    fn render_place(&self, out: &mut String, span: Span) {
        let Some(place) = self.place(span) else { return };
        let _ = writeln!(out, "  --> {place}");
        let Some(source) = self.get(span.file) else { return };
        let Some(line) = (span.line as usize).checked_sub(1).and_then(|n| source.text.lines().nth(n)) else { return };
        let number = span.line.to_string();
        let pad = " ".repeat(number.len());
        // A long line is cut around the place, so that one error never fills the screen.
        let column = (span.column as usize).saturating_sub(1);
        let start = column.saturating_sub(60);
        let shown: String = line.chars().skip(start).take(120).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(out, " {pad} |\n {number} | {shown}\n {pad} | {}^", " ".repeat(column - start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_misspellings_only() {
        assert_eq!(nearest("filtres", ["regions", "filters"]), Some("filters"));
        assert_eq!(nearest("becom", ["become", "when"]), Some("become"));
        assert_eq!(nearest("zzz", ["become", "when"]), None);
        assert_eq!(nearest("taks", ["tags", "tasks"]), Some("tasks"));
    }

    #[test]
    fn rendering_points_at_the_column() {
        let sources = Sources::default();
        let file = sources.add("site.yaml", "- hosts: all\n  taks: []\n");
        let text = sources.render(
            &Diagnostic::error(Span { file, line: 2, column: 3 }, "unknown keyword 'taks'").nearest("taks", ["tasks"]),
        );
        assert_eq!(
            text,
            "error: unknown keyword 'taks'\n  --> site.yaml:2:3\n   |\n 2 |   taks: []\n   |   ^\n  hint: did you mean 'tasks'?\n"
        );
    }
}
