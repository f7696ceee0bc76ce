//! YAML, read as Ansible's users write it. The only file that names the YAML crate for what people write.
//!
//! YAML 1.1 booleans (`yes`, `on`) and octal (`0644`) are understood, as in the files that exist; duplicate keys,
//! tabs and unknown tags are errors with their place; merge keys and aliases are resolved under a budget.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span as YamlSpan, Tag};

use crate::{
    diag::{Diagnostic, FileId, Sources, Span},
    node::{Key, Kind, Node},
};

/// Nodes that one document may expand to: an alias bomb is stopped here.
const MAX_NODES: usize = 1_000_000;
/// Nesting of collections.
const MAX_DEPTH: usize = 128;

/// Parses one document. An empty file is a null node.
pub fn parse(sources: &Sources, file: FileId) -> Result<Node, Diagnostic> {
    let text = sources.get(file).map(|s| s.text.clone()).unwrap_or_default();
    parse_text(file, &text)
}

/// Parses text that belongs to `file`.
pub fn parse_text(file: FileId, text: &str) -> Result<Node, Diagnostic> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder { file, parser: Parser::new_from_str(text), anchors: HashMap::new(), count: 0 };
    builder.document().map_err(|e| explain(e, file, text))
}

/// Writes a value as YAML.
pub fn to_string(value: &serde_json::Value) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|e| e.to_string())
}

/// Adds what the scanner cannot know: a tab is the usual reason of its more puzzling messages.
fn explain(diagnostic: Diagnostic, file: FileId, text: &str) -> Diagnostic {
    // It points to where the value began whose next line has the tab.
    let reach = if diagnostic.message.ends_with("found a tab") { usize::MAX } else { 1 };
    let lines = text.lines().zip(1..).skip((diagnostic.span.line as usize).saturating_sub(1)).take(reach);
    let tab = |(line, number): (&str, u32)| {
        let mut indent = line.chars().take_while(|c| c.is_whitespace());
        indent.position(|c| c == '\t').map(|at| (number, u32::try_from(at + 1).unwrap_or(1)))
    };
    if let Some((line, column)) = lines.into_iter().find_map(tab) {
        return Diagnostic::error(Span { file, line, column }, "a tab cannot indent YAML").hint("indent with spaces");
    }
    diagnostic
}

struct Builder<'i> {
    file: FileId,
    parser: Parser<'i, serde_saphyr::granit_parser::StrInput<'i>>,
    anchors: HashMap<usize, Node>,
    count: usize,
}

impl<'i> Builder<'i> {
    fn next(&mut self) -> Result<(Event<'i>, YamlSpan), Diagnostic> {
        loop {
            match self.parser.next() {
                Some(Ok((Event::StreamStart | Event::Anchor(..) | Event::Comment(..), _))) => {}
                Some(Ok(event)) => return Ok(event),
                Some(Err(e)) => return Err(self.scan_error(&e)),
                None => return Err(Diagnostic::error(Span::whole(self.file), "the document ends too early")),
            }
        }
    }

    fn scan_error(&self, e: &ScanError) -> Diagnostic {
        let mark = e.marker();
        let span = Span {
            file: self.file,
            line: u32::try_from(mark.line()).unwrap_or(0),
            column: u32::try_from(mark.col() + 1).unwrap_or(0),
        };
        Diagnostic::error(span, format!("invalid YAML: {}", e.info()))
    }

    fn span(&self, at: &YamlSpan) -> Span {
        Span {
            file: self.file,
            line: u32::try_from(at.start.line()).unwrap_or(0),
            column: u32::try_from(at.start.col() + 1).unwrap_or(0),
        }
    }

    fn document(&mut self) -> Result<Node, Diagnostic> {
        let mut node = None;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(..) => {
                    if node.is_some() {
                        return Err(Diagnostic::error(self.span(&at), "a second YAML document in one file")
                            .hint("split it into two files"));
                    }
                }
                Event::DocumentEnd => {}
                other => node = Some(self.node(other, &at, 0)?),
            }
        }
        Ok(node.unwrap_or(Node { span: Span::whole(self.file), kind: Kind::Null }))
    }

    fn node(&mut self, event: Event<'i>, at: &YamlSpan, depth: usize) -> Result<Node, Diagnostic> {
        let span = self.span(at);
        self.charge(span, 1)?;
        if depth > MAX_DEPTH {
            return Err(Diagnostic::error(span, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (Node { span, kind: scalar(&text, style, tag.as_deref(), span)? }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), "seq", span)?;
                (self.sequence(span, depth)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), "map", span)?;
                (self.mapping(span, depth)?, anchor)
            }
            Event::Alias(id) => {
                let target = self.anchors.get(&id).cloned();
                let target = target.ok_or_else(|| Diagnostic::error(span, "an alias inside its own anchor"))?;
                self.charge(span, size(&target))?;
                (target, 0)
            }
            _ => return Err(Diagnostic::error(span, "a value is missing here")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn charge(&mut self, span: Span, nodes: usize) -> Result<(), Diagnostic> {
        self.count = self.count.saturating_add(nodes);
        if self.count > MAX_NODES {
            return Err(Diagnostic::error(span, format!("the document expands to more than {MAX_NODES} values")));
        }
        Ok(())
    }

    fn sequence(&mut self, span: Span, depth: usize) -> Result<Node, Diagnostic> {
        let mut items = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Node { span, kind: Kind::List(items) });
            }
            items.push(self.node(event, &at, depth + 1)?);
        }
    }

    fn mapping(&mut self, span: Span, depth: usize) -> Result<Node, Diagnostic> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen: HashMap<String, Span> = HashMap::new();
        let mut merges = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, _) if text == "<<");
            let key = self.node(event, &at, depth + 1)?;
            let (event, at) = self.next()?;
            let value = self.node(event, &at, depth + 1)?;
            if is_merge {
                merges.push(value);
                continue;
            }
            let name = key.scalar_text().map_err(|_| {
                Diagnostic::error(key.span, format!("a key must be text, found {}", key.describe()))
                    .hint("quote a value that starts with '{{': \"{{ name }}\"")
            })?;
            if let Some(first) = seen.insert(name.clone(), key.span) {
                return Err(
                    Diagnostic::error(key.span, format!("duplicate key '{name}'")).note(first, "first given here")
                );
            }
            entries.push((Key { name, span: key.span }, value));
        }
        for merge in merges {
            merge_into(&mut entries, merge)?;
        }
        Ok(Node { span, kind: Kind::Map(entries) })
    }
}

/// `<<`: keys of the merged mapping come in where the mapping has none of its own.
fn merge_into(entries: &mut Vec<(Key, Node)>, merge: Node) -> Result<(), Diagnostic> {
    match merge.kind {
        Kind::Map(more) => {
            for (key, value) in more {
                if !entries.iter().any(|(k, _)| k.name == key.name) {
                    entries.push((key, value));
                }
            }
            Ok(())
        }
        Kind::List(items) => items.into_iter().try_for_each(|item| merge_into(entries, item)),
        _ => Err(merge.expected("a mapping to merge under '<<'")),
    }
}

fn size(node: &Node) -> usize {
    match &node.kind {
        Kind::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Kind::Map(entries) => 1 + entries.iter().map(|(_, v)| size(v)).sum::<usize>(),
        _ => 1,
    }
}

fn tag_name(tag: Option<&Tag>) -> Option<String> {
    tag.map(ToString::to_string)
}

fn check_tag(tag: Option<&Tag>, wanted: &str, span: Span) -> Result<(), Diagnostic> {
    match tag_name(tag) {
        None => Ok(()),
        Some(name) if name.ends_with(&format!(":{wanted}")) || name == format!("!!{wanted}") => Ok(()),
        Some(name) => Err(unknown_tag(&name, span)),
    }
}

fn unknown_tag(name: &str, span: Span) -> Diagnostic {
    let hint = match name {
        "!vault" => "Ansible Vault values are not read; keep secrets in the secrets store and use secret('name')",
        "!unsafe" => "write the text between {% raw %} and {% endraw %}",
        _ => "tags are not used here; remove it",
    };
    Diagnostic::error(span, format!("unknown YAML tag '{name}'")).hint(hint)
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<Kind, Diagnostic> {
    if let Some(name) = tag_name(tag) {
        let short = name.rsplit([':', '!']).next().unwrap_or_default();
        return match short {
            "str" => Ok(Kind::Str(text.to_owned())),
            "int" | "float" | "bool" | "null" => match plain(text) {
                Kind::Str(_) => Err(Diagnostic::error(span, format!("'{text}' is no {short}"))),
                kind => Ok(kind),
            },
            _ if name == "!" => Ok(Kind::Str(text.to_owned())),
            _ => Err(unknown_tag(&name, span)),
        };
    }
    Ok(if style == ScalarStyle::Plain { plain(text) } else { Kind::Str(text.to_owned()) })
}

/// The type of a plain scalar.
fn plain(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Kind::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Kind::Bool(false),
        ".inf" | ".Inf" | "+.inf" | "-.inf" | ".nan" | ".NaN" => return Kind::Str(text.to_owned()),
        _ => {}
    }
    integer(text).map(Kind::Int).or_else(|| float(text).map(Kind::Float)).unwrap_or_else(|| Kind::Str(text.to_owned()))
}

fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', rest @ ..] if !rest.is_empty() => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || digits.starts_with('_') || !digits.chars().all(|c| c.is_digit(radix) || c == '_') {
        return None;
    }
    let value = i64::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    Some(if negative { -value } else { value })
}

fn float(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let starts = digits.starts_with(|c: char| c.is_ascii_digit()) || digits.starts_with('.');
    if !starts || !digits.contains('.') || !digits.chars().any(|c| c.is_ascii_digit()) {
        return None;
    }
    if !digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-')) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Node, Diagnostic> {
        parse_text(FileId(0), text)
    }

    #[test]
    fn scalars_are_read_as_ansible_reads_them() {
        let node = read("a: yes\nb: 0644\nc: 'no'\nd: 1.5\ne: 1.22.2\nf:\ng: 10.0.0.1\nh: 12_000\ni: 08\n").unwrap();
        assert_eq!(
            node.to_value(),
            serde_json::json!({"a": true, "b": 420, "c": "no", "d": 1.5, "e": "1.22.2", "f": null, "g": "10.0.0.1",
                "h": 12000, "i": "08"})
        );
    }

    #[test]
    fn places_are_kept() {
        let node = read("- hosts: all\n  tasks:\n    - name: x\n").unwrap();
        let play = &node.list().unwrap()[0];
        let tasks = play.get("tasks").unwrap();
        assert_eq!((tasks.list().unwrap()[0].span.line, tasks.list().unwrap()[0].span.column), (3, 7));
        let (key, _) = &play.map().unwrap()[1];
        assert_eq!((key.span.line, key.span.column), (2, 3));
    }

    #[test]
    fn bad_documents_are_refused_with_their_place() {
        let duplicate = read("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!((duplicate.span.line, duplicate.message.as_str()), (3, "duplicate key 'a'"));
        let tab = read("a:\n\tb: 1\n").unwrap_err();
        assert_eq!((tab.span.line, tab.message.as_str()), (2, "a tab cannot indent YAML"));
        let tab = read("- a: all\n\tb: 1\n").unwrap_err();
        assert_eq!((tab.span.line, tab.span.column, tab.message.as_str()), (2, 1, "a tab cannot indent YAML"));
        assert!(read("a: !vault x\n").unwrap_err().message.contains("!vault"));
        assert!(read("a: {{ b }}\n").unwrap_err().hint.unwrap().contains("quote"));
        assert!(read("a: [1, 2\n").is_err());
        assert!(read("a: 1\n---\nb: 2\n").unwrap_err().message.contains("second"));
    }

    #[test]
    fn an_alias_bomb_is_stopped() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(read(&text).unwrap_err().message.contains("expands"));
    }

    #[test]
    fn comments_may_stand_anywhere() {
        let node = read("# top\na: 1 # side\n# between\nb:\n  # inside\n  - x # y\n  # end\n# last\n").unwrap();
        assert_eq!(node.to_value(), serde_json::json!({"a": 1, "b": ["x"]}));
    }

    #[test]
    fn merge_keys_fill_in() {
        let node = read("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n").unwrap();
        assert_eq!(node.get("use").unwrap().to_value(), serde_json::json!({"y": 3, "x": 1}));
    }
}
