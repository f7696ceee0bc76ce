//! A small reader for the answers of the EC2 query API: elements and text, no attributes, no namespaces.

use xmlparser::{ElementEnd, Token, Tokenizer};

/// One element. `text` holds its own character data, entities resolved, without surrounding white space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) children: Vec<Element>,
}

/// Why a text is not what an API answers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XmlError {
    #[error("not well-formed XML")]
    Syntax(#[from] xmlparser::Error),
    #[error("the document ends inside <{0}>")]
    Unclosed(String),
    #[error("</{found}> closes <{expected}>")]
    Mismatch { expected: String, found: String },
    #[error("the document has no root element")]
    Empty,
    #[error("unknown entity `&{0};`")]
    Entity(String),
}

impl Element {
    /// Reads a document and returns its root.
    pub(crate) fn parse(text: &str) -> Result<Self, XmlError> {
        let mut stack: Vec<Self> = Vec::new();
        let mut root = None;
        for token in Tokenizer::from(text) {
            match token? {
                Token::ElementStart { local, .. } => {
                    stack.push(Self { name: local.as_str().to_owned(), ..Self::default() });
                }
                Token::ElementEnd { end, .. } => {
                    let expected = match end {
                        ElementEnd::Open => continue,
                        ElementEnd::Empty => None,
                        ElementEnd::Close(_, local) => Some(local),
                    };
                    let Some(mut done) = stack.pop() else { continue };
                    if let Some(found) = expected.filter(|found| found.as_str() != done.name) {
                        return Err(XmlError::Mismatch { expected: done.name, found: found.as_str().to_owned() });
                    }
                    done.text = done.text.trim().into();
                    match stack.last_mut() {
                        Some(parent) => parent.children.push(done),
                        None => root = Some(done),
                    }
                }
                Token::Text { text } => {
                    if let Some(open) = stack.last_mut() {
                        resolve(text.as_str(), &mut open.text)?;
                    }
                }
                Token::Cdata { text, .. } => {
                    if let Some(open) = stack.last_mut() {
                        open.text.push_str(text.as_str());
                    }
                }
                _ => {}
            }
        }
        match (stack.pop(), root) {
            (Some(open), _) => Err(XmlError::Unclosed(open.name)),
            (None, Some(root)) => Ok(root),
            (None, None) => Err(XmlError::Empty),
        }
    }

    /// The first child of that name.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text at a path of child names, if it is there and not empty.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&str> {
        let mut here = self;
        for name in path {
            here = here.child(name)?;
        }
        (!here.text.is_empty()).then_some(here.text.as_str())
    }

    /// The `item`s of a list element, none where the list is missing.
    pub(crate) fn items(&self, list: &str) -> impl Iterator<Item = &Self> {
        self.child(list).into_iter().flat_map(|list| list.children.iter()).filter(|child| child.name == "item")
    }

    /// The first descendant of that name, depth first.
    pub(crate) fn find(&self, name: &str) -> Option<&Self> {
        self.children.iter().find_map(|child| if child.name == name { Some(child) } else { child.find(name) })
    }
}

/// Appends `raw` with its entities resolved.
fn resolve(raw: &str, into: &mut String) -> Result<(), XmlError> {
    let mut rest = raw;
    while let Some(start) = rest.find('&') {
        into.push_str(&rest[..start]);
        let after = &rest[start + 1..];
        let end = after.find(';').ok_or_else(|| XmlError::Entity(after.chars().take(12).collect()))?;
        let name = &after[..end];
        let resolved = match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => name
                .strip_prefix("#x")
                .map(|hex| u32::from_str_radix(hex, 16))
                .or_else(|| name.strip_prefix('#').map(str::parse))
                .and_then(Result::ok)
                .and_then(char::from_u32),
        };
        into.push(resolved.ok_or_else(|| XmlError::Entity(name.to_owned()))?);
        rest = &after[end + 1..];
    }
    into.push_str(rest);
    Ok(())
}

/// `text` as it may stand between tags.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_api_answers() {
        let root = Element::parse(
            "<?xml version=\"1.0\"?><R xmlns=\"http://x/\"><set>\n <item><k>Na&amp;me</k><v>&#x61;&#98;</v></item>\n\
             <item><k/></item></set><empty></empty></R>",
        )
        .unwrap();
        let items: Vec<_> = root.items("set").collect();
        assert_eq!(items.len(), 2);
        assert_eq!(items[0].at(&["k"]), Some("Na&me"));
        assert_eq!(items[0].at(&["v"]), Some("ab"));
        assert_eq!(items[1].at(&["k"]), None);
        assert_eq!(root.at(&["empty"]), None);
        assert_eq!(root.items("missing").count(), 0);
        assert_eq!(root.find("v").map(|found| found.text.as_str()), Some("ab"));
    }

    #[test]
    fn refuses_what_is_no_document() {
        assert!(matches!(Element::parse(""), Err(XmlError::Empty)));
        assert!(matches!(Element::parse("<a><b></b>"), Err(XmlError::Unclosed(name)) if name == "a"));
        assert!(matches!(Element::parse("<a></b>"), Err(XmlError::Mismatch { .. })));
        assert!(matches!(Element::parse("<a>&nbsp;</a>"), Err(XmlError::Entity(name)) if name == "nbsp"));
        assert!(matches!(Element::parse("<a>&#xD800;</a>"), Err(XmlError::Entity(_))));
        assert!(Element::parse("Internal Server Error").is_err());
    }
}
