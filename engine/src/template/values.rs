//! Values as expressions see them, without copies: data and unrendered trees behind minijinja's object trait.

use std::sync::Arc;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};
use serde_json::{Map, Number, Value as Json};

use super::session::Session;
use crate::node::{Kind, Node};

/// Nesting of one value.
const MAX_DEPTH: usize = 100;

/// The name under which functions find the session; no expression can spell it.
const SESSION: &str = " session";

/// What an argument is set to so that it counts as not given (`default(omit)`).
#[derive(Debug)]
pub(super) struct Omit;

impl Object for Omit {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// True for `omit`.
pub(super) fn is_omit(value: &Value) -> bool {
    value.downcast_object_ref::<Omit>().is_some()
}

/// The names of a session as the root of an evaluation.
pub(super) fn scope(session: &Arc<Session>) -> Value {
    Value::from_object(ScopeObject(session.clone()))
}

#[derive(Debug)]
struct ScopeObject(Arc<Session>);

impl Object for ScopeObject {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        if key == SESSION {
            return Some(Value::from_object(Handle(self.0.clone())));
        }
        self.0.lookup(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.scope.names().map(Value::from).collect())
    }
}

#[derive(Debug)]
struct Handle(Arc<Session>);

impl Object for Handle {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// The session in which a function is called.
pub(super) fn session(state: &minijinja::State) -> Result<Arc<Session>, Error> {
    let handle = state.lookup(SESSION).and_then(|v| v.downcast_object_ref::<Handle>().map(|h| h.0.clone()));
    handle.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "this cannot be called inside of a macro"))
}

/// Data as a value; containers are not copied.
pub(super) fn data(root: &Arc<Json>) -> Value {
    DataRef::wrap(root, &[], root)
}

/// What stands under two keys of data, as a value.
pub(super) fn below(root: &Arc<Json>, outer: &str, inner: &str) -> Option<Value> {
    let value = root.get(outer)?.get(inner)?;
    Some(DataRef::wrap(root, &[Step::Key(Arc::from(outer)), Step::Key(Arc::from(inner))], value))
}

/// A result as a value.
pub(super) fn owned(value: Json) -> Value {
    match value {
        Json::Array(_) | Json::Object(_) => data(&Arc::new(value)),
        Json::String(text) => Value::from(text),
        other => scalar(&other),
    }
}

fn scalar(value: &Json) -> Value {
    match value {
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => number(n),
        Json::String(s) => Value::from(s.as_str()),
        Json::Null | Json::Array(_) | Json::Object(_) => Value::from(()),
    }
}

fn number(n: &Number) -> Value {
    if let Some(i) = n.as_i64() {
        Value::from(i)
    } else if let Some(u) = n.as_u64() {
        Value::from(u)
    } else {
        Value::from(n.as_f64().unwrap_or(f64::NAN))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Key(Arc<str>),
    Index(usize),
}

/// A container inside of data.
#[derive(Debug)]
pub(super) struct DataRef {
    root: Arc<Json>,
    path: Vec<Step>,
}

impl DataRef {
    fn wrap(root: &Arc<Json>, path: &[Step], value: &Json) -> Value {
        match value {
            Json::Array(_) | Json::Object(_) => Value::from_object(Self { root: root.clone(), path: path.to_vec() }),
            other => scalar(other),
        }
    }

    fn resolve(&self) -> &Json {
        let found = self.path.iter().try_fold(&*self.root, |value, step| match step {
            Step::Key(key) => value.get(&**key),
            Step::Index(index) => value.get(*index),
        });
        found.unwrap_or(&Json::Null)
    }

    fn child(&self, step: Step, value: &Json) -> Value {
        if !matches!(value, Json::Array(_) | Json::Object(_)) {
            return scalar(value);
        }
        let mut path = Vec::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(step);
        Value::from_object(Self { root: self.root.clone(), path })
    }
}

impl Object for DataRef {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.resolve().is_array() { ObjectRepr::Seq } else { ObjectRepr::Map }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match self.resolve() {
            Json::Array(items) => {
                let index = index(key, items.len())?;
                Some(self.child(Step::Index(index), items.get(index)?))
            }
            Json::Object(map) => {
                let key = text_key(key)?;
                Some(self.child(Step::Key(Arc::from(&*key)), map.get(&*key)?))
            }
            _ => None,
        }
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let value = self.resolve().as_object()?.get(key)?;
        Some(self.child(Step::Key(Arc::from(key)), value))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.resolve() {
            Json::Array(items) => Enumerator::Seq(items.len()),
            Json::Object(map) => Enumerator::Values(map.keys().map(|k| Value::from(k.as_str())).collect()),
            _ => Enumerator::Empty,
        }
    }
}

/// A container inside of what a person wrote: its text is rendered when it is asked for.
#[derive(Debug)]
pub(super) struct NodeRef {
    session: Arc<Session>,
    name: Arc<str>,
    root: Arc<Node>,
    path: Vec<usize>,
}

impl NodeRef {
    pub(super) fn new(session: Arc<Session>, name: Arc<str>, root: Arc<Node>, path: Vec<usize>) -> Self {
        Self { session, name, root, path }
    }

    fn resolve(&self) -> &Node {
        self.path.iter().try_fold(&*self.root, |node, step| child(node, *step)).unwrap_or(&self.root)
    }

    fn child(&self, step: usize, node: &Node) -> Value {
        let mut path = Vec::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(step);
        self.session.node(&self.name, &self.root, &path, node)
    }
}

fn child(node: &Node, step: usize) -> Option<&Node> {
    match &node.kind {
        Kind::List(items) => items.get(step),
        Kind::Map(entries) => entries.get(step).map(|(_, v)| v),
        _ => None,
    }
}

/// `consul.ports.http`: the name of a node of a variable.
pub(super) fn label(name: &str, root: &Node, path: &[usize]) -> String {
    let mut label = name.to_owned();
    let mut node = Some(root);
    for step in path {
        match node.map(|n| &n.kind) {
            Some(Kind::Map(entries)) => {
                label.push('.');
                label.push_str(entries.get(*step).map_or("?", |(k, _)| k.name.as_str()));
            }
            _ => label.push_str(&format!("[{step}]")),
        }
        node = node.and_then(|n| child(n, *step));
    }
    label
}

impl Object for NodeRef {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if matches!(self.resolve().kind, Kind::List(_)) { ObjectRepr::Seq } else { ObjectRepr::Map }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match &self.resolve().kind {
            Kind::List(items) => {
                let index = index(key, items.len())?;
                Some(self.child(index, items.get(index)?))
            }
            Kind::Map(_) => self.get_value_by_str(&text_key(key)?),
            _ => None,
        }
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let Kind::Map(entries) = &self.resolve().kind else { return None };
        let index = entries.iter().position(|(k, _)| k.name == key)?;
        let value = self.child(index, &entries[index].1);
        // A key that is to be left out is not there.
        (!is_omit(&value)).then_some(value)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match &self.resolve().kind {
            Kind::List(items) => Enumerator::Seq(items.len()),
            Kind::Map(entries) => {
                let omitted = |index: usize, node: &Node| {
                    matches!(&node.kind, Kind::Str(text) if super::has_markup(text))
                        && is_omit(&self.child(index, node))
                };
                Enumerator::Values(
                    entries
                        .iter()
                        .enumerate()
                        .filter(|(i, (_, node))| !omitted(*i, node))
                        .map(|(_, (key, _))| Value::from(key.name.as_str()))
                        .collect(),
                )
            }
            _ => Enumerator::Empty,
        }
    }
}

fn index(key: &Value, len: usize) -> Option<usize> {
    if !key.is_integer() {
        return None;
    }
    let index = key.as_i64()?;
    if index < 0 { len.checked_sub(usize::try_from(index.unsigned_abs()).ok()?) } else { usize::try_from(index).ok() }
}

/// Keys of mappings are text: `ports[8500]` finds what YAML wrote as `8500:`.
fn text_key(key: &Value) -> Option<std::borrow::Cow<'_, str>> {
    match key.as_str() {
        Some(text) => Some(text.into()),
        None if key.is_integer() => Some(key.to_string().into()),
        None => None,
    }
}

/// The plain value of a result. Undefined parts are errors.
pub(super) fn to_json(value: &Value) -> Result<Json, Error> {
    plain(value, 0)
}

fn plain(value: &Value, depth: usize) -> Result<Json, Error> {
    let wrong = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    if depth > MAX_DEPTH {
        return Err(wrong(format!("a value nested deeper than {MAX_DEPTH} levels")));
    }
    if let Some(data) = value.downcast_object_ref::<DataRef>() {
        return Ok(data.resolve().clone());
    }
    Ok(match value.kind() {
        ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => Json::Number(
            plain_number(value)
                .ok_or_else(|| wrong(format!("the number {value} cannot be kept: it is too large, or no number")))?,
        ),
        ValueKind::String => Json::String(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Bytes => Json::String(
            String::from_utf8(value.as_bytes().unwrap_or_default().to_vec())
                .map_err(|_| wrong("these bytes are no text".to_owned()))?,
        ),
        ValueKind::Seq | ValueKind::Iterable => {
            Json::Array(value.try_iter()?.map(|item| plain(&item, depth + 1)).collect::<Result<_, _>>()?)
        }
        ValueKind::Map => {
            let mut map = Map::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                map.insert(plain_key(&key)?, plain(&item, depth + 1)?);
            }
            Json::Object(map)
        }
        ValueKind::Plain if is_omit(value) => {
            return Err(wrong("'omit' can only be the whole value of an argument or of a key".to_owned()));
        }
        ValueKind::Plain => return Err(wrong("a function is no value: call it with ()".to_owned())),
        _ => return Err(wrong("a variable could not be rendered".to_owned())),
    })
}

fn plain_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number => Ok(key.to_string()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        kind => Err(Error::new(ErrorKind::NonKey, format!("a {kind} cannot be a key"))),
    }
}

fn plain_number(value: &Value) -> Option<Number> {
    if value.is_integer() {
        return match value.as_i64() {
            Some(i) => Some(Number::from(i)),
            None => u64::try_from(value.clone()).ok().map(Number::from),
        };
    }
    Number::from_f64(f64::try_from(value.clone()).ok()?)
}

/// Python's truth.
pub(crate) fn truthy(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Bool(b) => *b,
        Json::Number(n) => n.as_f64() != Some(0.0),
        Json::String(s) => !s.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(map) => !map.is_empty(),
    }
}

/// Text as Python writes it, as in Ansible: `True`, `['a', 1]`; nothing for `null`.
pub(super) fn python_text(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        other => owned(other.clone()).to_string(),
    }
}
