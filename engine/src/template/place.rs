//! From an offset in a text to a place in a file.

use crate::diag::{FileId, Span};

/// Where an expression or a template stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// In a scalar of a YAML file: `text` is the whole scalar, at `span`; the expression starts at `offset` in it.
    Scalar { span: Span, text: &'a str, offset: usize },
    /// It is a whole file.
    File(FileId),
}

impl Place<'_> {
    /// The place of the byte `offset` of `source`.
    pub(super) fn at(&self, source: &str, offset: usize) -> Span {
        match *self {
            Place::File(file) => in_text(file, source, offset),
            Place::Scalar { span, text, offset: start } => in_scalar(span, text, start + offset),
        }
    }
}

fn in_text(file: FileId, source: &str, offset: usize) -> Span {
    let before = &source[..floor(source, offset)];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span {
        file,
        line: number(before.matches('\n').count() + 1),
        column: number(before[line_start..].chars().count() + 1),
    }
}

/// The column is known for scalars of one line. How they were quoted is not kept: it is guessed from what YAML demands.
fn in_scalar(span: Span, text: &str, offset: usize) -> Span {
    if span.line == 0 || text.contains('\n') {
        return span;
    }
    let before = text[..floor(text, offset)].chars().count();
    let quote = u32::from(needs_quotes(text));
    Span { column: span.column + quote + u32::try_from(before).unwrap_or(0), ..span }
}

fn needs_quotes(text: &str) -> bool {
    text.starts_with(|c: char| "{}[],&*#?|-<>=!%@\"'`".contains(c))
        || text.starts_with(' ')
        || text.ends_with(' ')
        || text.contains(": ")
        || text.contains(" #")
}

/// The offset itself, or the start of the character that it would cut.
pub(super) fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}
