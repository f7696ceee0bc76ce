//! The commands of the manual: its fenced blocks, and the comment before each that says where it runs.

use std::path::{Path, PathBuf};

/// The pages (`*.md`) in some folders of a tree and below them, with those that are named themselves, by name.
pub fn pages(root: &Path, named: &[&str], folders: &[&str]) -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = named.iter().map(|name| root.join(name)).collect();
    let mut folders: Vec<PathBuf> = folders.iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// Where a block of commands runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a shell at the root of the repository.
    Machine,
    /// In `make demo-shell`.
    DemoShell,
    /// Nowhere, for this reason.
    Nowhere(String),
}

/// A fenced block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The line of its fence, counted from 1.
    pub line: usize,
    /// Where it runs.
    pub place: Place,
    /// The commands.
    pub text: String,
}

/// The blocks of a page that hold commands: those marked `sh`, `bash`, `shell` or `console`. The last line before the
/// fence that is not empty may be `<!-- not run: REASON -->` or `<!-- in make demo-shell -->`. An error names the line.
pub fn blocks(page: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String, Option<Place>, String)> = None;
    let mut before = String::new();
    for (index, line) in page.lines().enumerate() {
        let number = index + 1;
        match &mut open {
            Some((begin, fence, place, text)) => {
                if line.trim() != fence.as_str() {
                    text.push_str(line);
                    text.push('\n');
                    continue;
                }
                if let Some(place) = place.take() {
                    blocks.push(Block { line: *begin, place, text: std::mem::take(text) });
                }
                open = None;
                before.clear();
            }
            None if line.trim_start().starts_with("```") => {
                let trimmed = line.trim();
                let fence: String = trimmed.chars().take_while(|c| *c == '`').collect();
                let language = trimmed[fence.len()..].trim();
                let place = match language {
                    "sh" | "bash" | "shell" | "console" => {
                        Some(place(&before).map_err(|wrong| format!("line {number}: {wrong}"))?)
                    }
                    _ => None,
                };
                open = Some((number, fence, place, String::new()));
            }
            None if line.trim().is_empty() => {}
            None => line.trim().clone_into(&mut before),
        }
    }
    match open {
        Some((begin, ..)) => Err(format!("line {begin}: the block has no end")),
        None => Ok(blocks),
    }
}

fn place(before: &str) -> Result<Place, String> {
    let Some(comment) = before.strip_prefix("<!--").and_then(|text| text.strip_suffix("-->")) else {
        return Ok(Place::Machine);
    };
    let comment = comment.trim();
    if comment == "in make demo-shell" {
        return Ok(Place::DemoShell);
    }
    match comment.strip_prefix("not run") {
        Some(reason) => match reason.strip_prefix(':').map(str::trim) {
            Some(reason) if !reason.is_empty() => Ok(Place::Nowhere(reason.to_owned())),
            _ => Err("a block that is not run needs the reason: <!-- not run: REASON -->".to_owned()),
        },
        None => Ok(Place::Machine),
    }
}
