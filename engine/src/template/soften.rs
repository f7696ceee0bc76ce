//! `a.b.c | default(x)` and `a.b.c is defined` where `a.b` is missing too.
//!
//! Ansible lets every step of a guarded name be missing. A strict minijinja fails at the first attribute of something
//! undefined, so such chains are rewritten before they are compiled: `a.b.c` becomes `(a|__soft('b','c'))`.

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
    if !["defined", "default", "d("].iter().any(|word| text.contains(word)) {
        return Softened::same(text);
    }
    // What does not parse is reported when it is compiled.
    let Ok(analysis) = analyse(text) else { return Softened::same(text) };
    let mut chains: Vec<&Chain> = analysis.chains.iter().filter(|c| c.guarded && !c.steps.is_empty()).collect();
    chains.sort_by_key(|c| c.range.start);
    let (mut out, mut edits, mut copied) = (String::with_capacity(text.len() + 32), Vec::new(), 0);
    for chain in chains {
        let replacement = replacement(text, chain);
        let (Some(before), Some(replacement)) = (text.get(copied..chain.range.start), replacement) else { continue };
        out.push_str(before);
        let start = out.len();
        out.push_str(&replacement);
        edits.push((start..out.len(), chain.range.clone()));
        copied = chain.range.end;
    }
    out.push_str(&text[copied..]);
    Softened { text: Cow::Owned(out), edits }
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
}
