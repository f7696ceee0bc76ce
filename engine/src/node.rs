//! The tree of a YAML document, each node with its place.
//!
//! Everything that a person writes is parsed to this tree ([`crate::yaml`]) and then read with [`Fields`], which
//! finds unknown keys and wrong types and says where. The tree also travels to the host: values are rendered there.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::diag::{Diagnostic, Diagnostics, Span};

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// YAML 1.1 booleans, as Ansible reads them (`yes`, `on`, `true`).
    Bool(bool),
    /// Whole numbers; `0644` is octal.
    Int(i64),
    /// Other numbers.
    Float(f64),
    /// Text; may hold expressions.
    Str(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in file order; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The key as text.
    pub name: String,
    /// Where it stands.
    pub span: Span,
}

impl Node {
    /// A node without a place, from plain data. Strings in it are text like any other: whoever builds one from data
    /// of hosts or clouds must keep it as data ([`crate::vars::Binding::Data`]), not as a node.
    pub fn from_value(value: &Value, span: Span) -> Self {
        let kind = match value {
            Value::Null => Kind::Null,
            Value::Bool(b) => Kind::Bool(*b),
            Value::Number(n) => match n.as_i64() {
                Some(i) => Kind::Int(i),
                None => Kind::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(s) => Kind::Str(s.clone()),
            Value::Array(items) => Kind::List(items.iter().map(|v| Self::from_value(v, span)).collect()),
            Value::Object(map) => {
                Kind::Map(map.iter().map(|(k, v)| (Key { name: k.clone(), span }, Self::from_value(v, span))).collect())
            }
        };
        Self { span, kind }
    }

    /// The plain value, expressions unrendered.
    pub fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Int(i) => Value::from(*i),
            Kind::Float(f) => serde_json::Number::from_f64(*f).map_or(Value::Null, Value::Number),
            Kind::Str(s) => Value::String(s.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Kind::Map(entries) => Value::Object(entries.iter().map(|(k, v)| (k.name.clone(), v.to_value())).collect()),
        }
    }

    /// `a string`, `a list`: for messages.
    pub fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a boolean",
            Kind::Int(_) | Kind::Float(_) => "a number",
            Kind::Str(_) => "a string",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }

    /// The text of a string node.
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::Str(s) => Some(s),
            _ => None,
        }
    }

    /// True for `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// The value under a key of a mapping.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(k, _)| k.name == name).map(|(_, v)| v),
            _ => None,
        }
    }

    /// `expected WHAT, found a list`, at this node.
    pub fn expected(&self, what: &str) -> Diagnostic {
        Diagnostic::error(self.span, format!("expected {what}, found {}", self.describe()))
    }

    /// Text; numbers and booleans are not taken for it.
    pub fn string(&self) -> Result<&str, Diagnostic> {
        self.as_str().ok_or_else(|| self.expected("a string"))
    }

    /// Text, or a scalar written without quotes (`name: 8080`).
    pub fn scalar_text(&self) -> Result<String, Diagnostic> {
        match &self.kind {
            Kind::Str(s) => Ok(s.clone()),
            Kind::Int(i) => Ok(i.to_string()),
            Kind::Float(f) => Ok(f.to_string()),
            Kind::Bool(b) => Ok(b.to_string()),
            _ => Err(self.expected("a string")),
        }
    }

    /// A boolean.
    pub fn boolean(&self) -> Result<bool, Diagnostic> {
        match self.kind {
            Kind::Bool(b) => Ok(b),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A list.
    pub fn list(&self) -> Result<&[Node], Diagnostic> {
        match &self.kind {
            Kind::List(items) => Ok(items),
            _ => Err(self.expected("a list")),
        }
    }

    /// A mapping.
    pub fn map(&self) -> Result<&[(Key, Node)], Diagnostic> {
        match &self.kind {
            Kind::Map(entries) => Ok(entries),
            _ => Err(self.expected("a mapping")),
        }
    }

    /// A list, or a single value taken for a list of one; null is empty.
    pub fn one_or_many(&self) -> Vec<&Node> {
        match &self.kind {
            Kind::List(items) => items.iter().collect(),
            Kind::Null => Vec::new(),
            _ => vec![self],
        }
    }
}

/// Reads a mapping key by key, and reports what nobody asked for.
#[derive(Debug)]
pub struct Fields<'a> {
    /// What is being read, for messages: `play`, `task`, `aws_ec2 inventory`.
    what: &'static str,
    /// The place of the mapping.
    pub span: Span,
    rest: IndexMap<&'a str, (&'a Key, &'a Node)>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Starts reading; an error if the node is no mapping.
    pub fn new(what: &'static str, node: &'a Node) -> Result<Self, Diagnostic> {
        let Kind::Map(entries) = &node.kind else {
            return Err(node.expected(&format!("{} (a mapping)", with_article(what))));
        };
        Ok(Self {
            what,
            span: node.span,
            rest: entries.iter().map(|(k, v)| (k.name.as_str(), (k, v))).collect(),
            known: Vec::new(),
        })
    }

    /// Takes a key; it is known from now on. A null value counts as absent.
    pub fn take(&mut self, name: &'static str) -> Option<&'a Node> {
        self.take_entry(name).map(|(_, v)| v).filter(|v| !v.is_null())
    }

    /// Takes a key with its place, null values too.
    pub fn take_entry(&mut self, name: &'static str) -> Option<(&'a Key, &'a Node)> {
        self.known.push(name);
        self.rest.shift_remove(name)
    }

    /// Takes a key that must be there.
    pub fn require(&mut self, name: &'static str) -> Result<&'a Node, Diagnostic> {
        let (what, span) = (self.what, self.span);
        self.take(name).ok_or_else(|| Diagnostic::error(span, format!("{what} needs '{name}'")))
    }

    /// Keys that nobody took yet, in file order.
    pub fn rest(&self) -> impl Iterator<Item = (&'a Key, &'a Node)> + '_ {
        self.rest.values().copied()
    }

    /// Takes a key by a name known only now (a module's).
    pub fn take_dynamic(&mut self, name: &str) -> Option<(&'a Key, &'a Node)> {
        self.rest.shift_remove(name)
    }

    /// Ends reading: each key that is left is an error with the nearest known name.
    pub fn finish(self, out: &mut Diagnostics) {
        for (key, _) in self.rest.values() {
            out.push(
                Diagnostic::error(key.span, format!("unknown key '{}' in {}", key.name, with_article(self.what)))
                    .nearest(&key.name, self.known.iter().copied()),
            );
        }
    }
}

fn with_article(what: &str) -> String {
    let article = if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {what}")
}
