//! Bounds on what is parsed. The parser, the compiler and we recurse over the syntax tree: its depth is bounded before
//! there is one, so that no text can end a thread's stack.

use minijinja::{
    Error, ErrorKind,
    machinery::{Token, tokenize},
};

/// Depth of the tree of one expression: operators, attributes, filters and brackets inside of each other.
const MAX_DEPTH: usize = 120;
/// `elif` after one `if`, and blocks inside of each other.
const MAX_BLOCKS: usize = 60;

/// Checks an expression.
pub(super) fn expression(text: &str) -> Result<(), Error> {
    // Each step takes a character at least.
    if text.len() <= MAX_DEPTH { Ok(()) } else { check(text, true) }
}

/// Checks a template.
pub(super) fn template(text: &str) -> Result<(), Error> {
    check(text, false)
}

fn too_deep(what: &str, limit: usize, line: u16) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("{what}: more than {limit} levels (line {line})"))
}

/// Checks a template of Tera's, whose lexer is another one: what stands in its tags is read by character.
pub(super) fn tera(text: &str) -> Result<(), String> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let inside = &rest[start + 2..];
        if rest[start..].starts_with("{%") {
            let word = inside.trim_start_matches(['-', ' ', '\t', '\n']);
            let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
            nest(&mut blocks, &word[..end]);
        }
        let used = tag(inside)?;
        rest = &inside[used..];
        if blocks.iter().sum::<usize>() > MAX_BLOCKS {
            return Err(format!("blocks are nested too deeply: more than {MAX_BLOCKS} levels"));
        }
    }
    Ok(())
}

/// Reads a tag up to its end; the bytes that it takes.
fn tag(text: &str) -> Result<usize, String> {
    let mut depth = Depth::default();
    let mut quote = None;
    let mut word = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) => {
                if c == open {
                    quote = None;
                }
                continue;
            }
            (None, '\'' | '"' | '`') => quote = Some(c),
            (None, '(' | '[' | '{') => depth.open(),
            (None, '}' | '%') if text[at..].starts_with("}}") || text[at..].starts_with("%}") => return Ok(at + 2),
            (None, ')' | ']' | '}') => depth.close(),
            (None, ',') => depth.comma(),
            (None, c) if c.is_alphanumeric() || c == '_' => {
                if !word {
                    depth.step();
                }
                word = true;
                continue;
            }
            (None, c) if c.is_whitespace() => {}
            _ => depth.step(),
        }
        word = false;
        if depth.total > 2 * MAX_DEPTH {
            return Err(format!("the expression is nested too deeply: more than {MAX_DEPTH} levels"));
        }
    }
    Ok(text.len())
}

/// How deep the tree of an expression can be at most.
struct Depth {
    /// Steps of each open bracket: a comma ends those of its own bracket.
    open: Vec<usize>,
    total: usize,
}

impl Default for Depth {
    fn default() -> Self {
        Self { open: vec![0], total: 0 }
    }
}

impl Depth {
    fn step(&mut self) {
        if let Some(steps) = self.open.last_mut() {
            *steps += 1;
            self.total += 1;
        }
    }

    fn open(&mut self) {
        self.open.push(1);
        self.total += 1;
    }

    fn close(&mut self) {
        if self.open.len() > 1 {
            self.total -= self.open.pop().unwrap_or(0);
        }
        // What was in brackets is one step of what is around them.
        self.step();
    }

    fn comma(&mut self) {
        // The bracket itself stays.
        let keep = usize::from(self.open.len() > 1);
        if let Some(steps) = self.open.last_mut() {
            self.total -= steps.saturating_sub(keep);
            *steps = keep.min(*steps);
        }
    }
}

fn check(text: &str, in_expression: bool) -> Result<(), Error> {
    let mut depth = Depth::default();
    let mut blocks: Vec<usize> = Vec::new();
    let mut block_start = false;
    for token in tokenize(text, in_expression, super::env::syntax()) {
        // What is no token is the parser's to report.
        let Ok((token, span)) = token else { return Ok(()) };
        let first = std::mem::take(&mut block_start);
        match token {
            Token::VariableStart | Token::VariableEnd | Token::BlockEnd | Token::TemplateData(_) => {
                depth = Depth::default();
            }
            Token::BlockStart => {
                depth = Depth::default();
                block_start = true;
            }
            Token::Ident(word) if first => nest(&mut blocks, word),
            Token::BracketOpen | Token::ParenOpen | Token::BraceOpen => depth.open(),
            Token::BracketClose | Token::ParenClose | Token::BraceClose => depth.close(),
            Token::Comma => depth.comma(),
            Token::Ident("and" | "or" | "not" | "if" | "else" | "is" | "in") => depth.step(),
            Token::Ident(_) | Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => {
            }
            _ => depth.step(),
        }
        if depth.total > MAX_DEPTH {
            return Err(too_deep("the expression is nested too deeply", MAX_DEPTH, span.start_line));
        }
        if blocks.iter().sum::<usize>() > MAX_BLOCKS {
            return Err(too_deep("blocks are nested too deeply", MAX_BLOCKS, span.start_line));
        }
    }
    Ok(())
}

fn nest(blocks: &mut Vec<usize>, word: &str) {
    match word {
        "elif" => {
            if let Some(branches) = blocks.last_mut() {
                *branches += 1;
            }
        }
        "else" => {}
        word if word.starts_with("end") => {
            blocks.pop();
        }
        "if" | "for" | "with" | "macro" | "call" | "filter" | "block" | "autoescape" | "component" => blocks.push(1),
        // `{% set x %}…{% endset %}` is told from `{% set x = 1 %}` only later; the parser's own limit holds for it.
        _ => {}
    }
}
