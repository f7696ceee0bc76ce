//! Reads ssh configuration files into a flat list of lines, each with the `Host` conditions that
//! it stands under.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::known_hosts::{Place, match_list, wildcard};

/// Included files may include others this deep; OpenSSH's limit.
const MAX_DEPTH: usize = 16;

/// Why a configuration cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConfigError {
    #[error("{place}: {what}\n    {text}\nhint: {hint}")]
    Line { place: Place, text: String, what: String, hint: String },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("{0}")]
    Setting(String),
}

/// One directive.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Lists of patterns; the line counts for a name that all of them match.
    pub(super) conditions: Vec<Vec<String>>,
    /// In lower case.
    pub(super) keyword: String,
    /// At least one, unquoted.
    pub(super) words: Vec<String>,
    pub(super) place: Place,
    pub(super) text: String,
}

impl Line {
    pub(super) fn applies_to(&self, name: &str) -> bool {
        self.conditions.iter().all(|list| match_list(list.iter().map(String::as_str), name))
    }

    pub(super) fn error(&self, what: impl Into<String>, hint: impl Into<String>) -> ConfigError {
        ConfigError::Line { place: self.place.clone(), text: self.text.clone(), what: what.into(), hint: hint.into() }
    }
}

/// Reads `path` and what it includes. `home` is the user's home folder.
pub(super) fn read(path: &Path, home: &Path) -> Result<Vec<Line>, ConfigError> {
    let mut reader = Reader { home, lines: Vec::new() };
    reader.file(path, &[], 0)?;
    Ok(reader.lines)
}

/// Replaces a leading `~` by the home folder.
pub(super) fn expand_home(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

struct Reader<'a> {
    home: &'a Path,
    lines: Vec<Line>,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, outer: &[Vec<String>], depth: usize) -> Result<(), ConfigError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(ConfigError::Read { path: path.to_owned(), source: Arc::new(error) }),
        };
        let mut conditions = outer.to_vec();
        for (index, text) in text.lines().enumerate() {
            let place = Place { file: path.to_owned(), line: index + 1 };
            let mut line = Line {
                conditions: conditions.clone(),
                keyword: String::new(),
                words: Vec::new(),
                place,
                text: text.trim().to_owned(),
            };
            let Some((keyword, words)) = split(text)
                .map_err(|what| line.error(what, "write Keyword value, or Keyword \"a value with blanks\""))?
            else {
                continue;
            };
            if words.is_empty() {
                return Err(line.error(format!("{keyword} has no value"), "give it one or remove the line"));
            }
            line.keyword = keyword;
            line.words = words;
            match line.keyword.as_str() {
                "host" => {
                    conditions = outer.to_vec();
                    conditions.push(line.words);
                }
                "match" => {
                    conditions = outer.to_vec();
                    if !line.words.iter().all(|word| word.eq_ignore_ascii_case("all")) {
                        tracing::debug!(target: "rollcall::ssh", "{}: ignored: {}", line.place, line.text);
                        // Matches no name.
                        conditions.push(Vec::new());
                    }
                }
                "include" => self.include(&line, depth)?,
                _ => self.lines.push(line),
            }
        }
        Ok(())
    }

    fn include(&mut self, line: &Line, depth: usize) -> Result<(), ConfigError> {
        if depth >= MAX_DEPTH {
            return Err(line.error("files include one another too deeply", "look for a file that includes itself"));
        }
        for pattern in &line.words {
            let pattern = expand_home(pattern, self.home);
            // OpenSSH's rule for a user's file, whichever folder that lies in.
            let pattern = self.home.join(".ssh").join(pattern);
            for path in glob(&pattern) {
                self.file(&path, &line.conditions, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// Files that match `*` and `?` in any part of the path, sorted.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        if !name.contains(['*', '?']) {
            for path in &mut found {
                path.push(part);
            }
            continue;
        }
        let mut next = Vec::new();
        for folder in &found {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in entries {
                let file_name = entry.file_name();
                let text = file_name.to_string_lossy();
                if wildcard(name.as_bytes(), text.as_bytes()) && (name.starts_with('.') || !text.starts_with('.')) {
                    next.push(folder.join(&file_name));
                }
            }
        }
        next.sort();
        found = next;
    }
    found
}

/// `Keyword value…`, `Keyword=value`, quotes around values, `#` comments. `None`: nothing there.
fn split(line: &str) -> Result<Option<(String, Vec<String>)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=' || c == '"').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let mut rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let keyword = keyword.to_ascii_lowercase();
    // A command is the rest of its line, as it stands.
    if keyword == "proxycommand" && !rest.starts_with('"') {
        return Ok(Some((keyword, if rest.is_empty() { vec![] } else { vec![rest.to_owned()] })));
    }
    let mut words = Vec::new();
    while !rest.is_empty() && !rest.starts_with('#') {
        let word;
        if let Some(quoted) = rest.strip_prefix('"') {
            (word, rest) = quoted.split_once('"').ok_or("a quote is not closed")?;
        } else {
            (word, rest) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        }
        words.push(word.to_owned());
        rest = rest.trim_start();
    }
    Ok(Some((keyword, words)))
}
