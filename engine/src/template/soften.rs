//! What is rewritten in a text before it is compiled.
//!
//! `a.b.c | default(x)` and `a.b.c is defined` where `a.b` is missing too: Ansible lets every step of a guarded name be
//! missing. A strict minijinja fails at the first attribute of something undefined, so `a.b.c` becomes
//! `(a|__soft('b','c'))`.
//!
//! `[a, b] | length` where `a` is missing: nothing reads the item, so that nothing would fail. `[a, b]` becomes
//! `([a, b]|__whole)`, which looks at every item.

use std::{borrow::Cow, ops::Range};

use super::refs::{self, Analysis, Chain, Step};

/// A text after the rewriting, and how to find a place in the text before it.
#[derive(Clone, Debug)]
pub(super) struct Softened<'a> {
    text: Cow<'a, str>,
    /// Where in the new text stands what replaces which part of the old one, in order.
    edits: Vec<(Range<usize>, Range<usize>)>,
}

impl<'a> Softened<'a> {
    /// A text that needs no rewriting.
    pub(super) fn same(text: &'a str) -> Self {
        Self { text: Cow::Borrowed(text), edits: Vec::new() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn into_owned(self) -> Softened<'static> {
        Softened { text: Cow::Owned(self.text.into_owned()), edits: self.edits }
    }

    /// The offset in the text as it was written.
    pub(super) fn original(&self, offset: usize) -> usize {
        let (mut old_end, mut new_end) = (0, 0);
        for (new, old) in &self.edits {
            if offset < new.start {
                break;
            }
            if offset < new.end {
                return old.start;
            }
            (old_end, new_end) = (old.end, new.end);
        }
        old_end + (offset - new_end)
    }
}

/// Rewrites an expression.
pub(super) fn expression(text: &str) -> Softened<'_> {
    rewrite(text, refs::expression)
}

/// Rewrites a template.
pub(super) fn template(text: &str) -> Softened<'_> {
    rewrite(text, refs::template)
}

fn rewrite(text: &str, analyse: impl FnOnce(&str) -> Result<Analysis, minijinja::Error>) -> Softened<'_> {
    if !["defined", "default", "d("].iter().any(|word| text.contains(word)) && !may_have_literals(text) {
        return Softened::same(text);
    }
    // What does not parse is reported when it is compiled.
    let Ok(analysis) = analyse(text) else { return Softened::same(text) };
    let mut parts: Vec<(Range<usize>, String)> = Vec::new();
    for chain in analysis.chains.iter().filter(|c| c.guarded && !c.steps.is_empty()) {
        parts.extend(replacement(text, chain).map(|new| (chain.range.clone(), new)));
    }
    for literal in analysis.literals.iter().filter(|range| is_bracketed(text, range)) {
        parts.push((literal.start..literal.start, "(".to_owned()));
        parts.push((literal.end..literal.end, "|__whole)".to_owned()));
    }
    parts.sort_by_key(|(old, _)| (old.start, old.end));
    let (mut out, mut edits, mut copied) = (String::with_capacity(text.len() + 32), Vec::new(), 0);
    for (old, new) in parts {
        // A literal inside of a chain's own brackets is part of what replaces the chain.
        let Some(before) = text.get(copied..old.start) else { continue };
        out.push_str(before);
        let start = out.len();
        out.push_str(&new);
        edits.push((start..out.len(), old.clone()));
        copied = old.end;
    }
    out.push_str(&text[copied..]);
    Softened { text: Cow::Owned(out), edits }
}

/// True where a list or mapping may be written in the text: a quick look that spares most texts the analysis.
fn may_have_literals(text: &str) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find(['[', '{']) {
        rest = &rest[at..];
        if rest.starts_with('[') {
            return true;
        }
        let braces = rest.bytes().take_while(|b| *b == b'{').count();
        rest = &rest[braces..];
        if braces != 2 && !(braces == 1 && rest.starts_with(['%', '#'])) {
            return true;
        }
    }
    // A tuple that is a parenthesis with a comma.
    text.contains('(') && text.contains(',')
}

fn is_bracketed(text: &str, range: &Range<usize>) -> bool {
    let Some(literal) = text.get(range.clone()) else { return false };
    [('[', ']'), ('{', '}'), ('(', ')')]
        .iter()
        .any(|(open, close)| literal.starts_with(*open) && literal.ends_with(*close))
}

fn replacement(text: &str, chain: &Chain) -> Option<String> {
    if !text.get(chain.range.clone())?.starts_with(&chain.root) {
        return None;
    }
    let mut out = format!("({}|__soft(", chain.root);
    for step in &chain.steps {
        match step {
            Step::Name(name) => {
                out.push('\'');
                out.push_str(&name.replace('\\', "\\\\").replace('\'', "\\'"));
                out.push('\'');
            }
            Step::Dynamic(range) => out.push_str(text.get(range.clone())?),
        }
        out.push(',');
    }
    out.push_str("))");
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_chains_are_rewritten_and_places_survive() {
        let text = "x.y + (a.b['c'][k].d | default(z.w))";
        let soft = expression(text);
        assert_eq!(soft.text(), "x.y + ((a|__soft('b','c',k,'d',)) | default(z.w))");
        let new = soft.text().find("z.w").unwrap();
        assert_eq!(Some(soft.original(new)), text.find("z.w"));
        assert_eq!(soft.original(0), 0);
        assert_eq!(soft.original(8), 7);
        assert_eq!(expression("a is defined and a.b").text(), "a is defined and a.b");
        assert_eq!(template("{{ a.b is not defined }}").text(), "{{ (a|__soft('b',)) is not defined }}");
    }

    #[test]
    fn literals_are_looked_at_and_places_survive() {
        let text = "[a, [1, 2], {'k': [b.c]}] | length + x.y";
        let soft = expression(text);
        assert_eq!(soft.text(), "([a, [1, 2], ({'k': ([b.c]|__whole)}|__whole)]|__whole) | length + x.y");
        for word in ["a,", "b.c", "x.y"] {
            let new = soft.text().find(word).unwrap();
            assert_eq!(Some(soft.original(new)), text.find(word), "{word}");
        }
        assert_eq!(expression("(a, 1)").text(), "((a, 1)|__whole)");
        assert_eq!(expression("[a.b | default(1)]").text(), "([(a|__soft('b',)) | default(1)]|__whole)");
        assert_eq!(expression("[a.b, c] | select('defined')").text(), "[(a|__soft('b',)), c] | select('defined')");
        for same in ["a[0]", "[1, 'x']", "f(a, b)", "x in (1, 2)"] {
            assert_eq!(expression(same).text(), same);
        }
        assert_eq!(template("{% for [a, b] in c %}{{a}}{% endfor %}").text(), "{% for [a, b] in c %}{{a}}{% endfor %}");
    }
}
