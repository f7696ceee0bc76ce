//! One evaluation: what names mean, which values were rendered already, and what went wrong first.
//!
//! Names are looked up when an expression asks for them. A person's text is rendered then, once per evaluation; data is
//! handed over as it is, without a copy of the whole. The first failure decides: whatever the rest of the expression
//! makes of the missing value is not looked at.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use minijinja::{Error, ErrorKind, Value};

use super::{
    EvalError, env,
    explain::{self, Origin},
    limits,
    place::Place,
    values::{self, NodeRef},
};
use crate::{
    diag::{Diagnostic, Span},
    node::{Kind, Node},
    vars::{Binding, Scope},
};

/// Variables that need each other in a row. A level costs stack, so the limit stands far below a thread's end.
const MAX_DEPTH: usize = 40;

/// The evaluation failed; why stands in the session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed;

/// What is being evaluated.
#[derive(Debug)]
struct Frame {
    /// Address of the node; 0 for what the caller handed in.
    node: usize,
    /// `consul.dir`, or nothing for what the caller handed in.
    label: String,
    span: Span,
}

#[derive(Debug)]
struct Failure {
    error: EvalError,
    /// The places of use say nothing new (a cycle names them all).
    complete: bool,
    /// It is about this name of another host, and where exactly in the text is still to be found.
    about: Option<String>,
}

/// One evaluation.
#[derive(Debug)]
pub(super) struct Session {
    /// What names mean.
    pub(super) scope: Scope,
    memo: Mutex<HashMap<usize, Value>>,
    stack: Mutex<Vec<Frame>>,
    failure: Mutex<Option<Failure>>,
    /// See [`Session::absent`].
    absent: Mutex<Option<String>>,
    secret: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Runs one evaluation of something at `span`. A failure anywhere in it is the result, whatever `work` made of it.
    pub(super) fn run<T>(
        scope: &Scope,
        span: Span,
        work: impl FnOnce(&Arc<Self>) -> Result<T, Failed>,
    ) -> Result<T, EvalError> {
        let session = Arc::new(Self {
            scope: scope.clone(),
            memo: Mutex::default(),
            stack: Mutex::new(vec![Frame { node: 0, label: String::new(), span }]),
            failure: Mutex::default(),
            absent: Mutex::default(),
            secret: AtomicBool::new(false),
        });
        let result = work(&session);
        // Memoised values hold the session: without this the two would keep each other alive.
        lock(&session.memo).clear();
        let failure = lock(&session.failure).take();
        match (failure, result) {
            (Some(failure), _) => Err(failure.error),
            (None, Ok(value)) => Ok(value),
            (None, Err(Failed)) => Err(Diagnostic::error(span, "the evaluation failed").into()),
        }
    }

    /// Records a failure; only the first counts.
    pub(super) fn fail(&self, error: impl Into<EvalError>) -> Failed {
        self.record(error.into(), false);
        Failed
    }

    fn record(&self, error: EvalError, complete: bool) {
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            *failure = Some(Failure { error, complete, about: None });
        }
    }

    /// Records that a name of another host may not be asked for like this.
    pub(super) fn fail_about(&self, name: &str, message: String, hint: String) {
        let span = lock(&self.stack).last().map_or(Span::NONE, |frame| frame.span);
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            let error = Diagnostic::error(span, message).hint(hint).into();
            *failure = Some(Failure { error, complete: false, about: Some(name.to_owned()) });
        }
    }

    /// The text that is being evaluated when a failure has been recorded: where in it the name of another host stands.
    pub(super) fn place(&self, origin: &Origin<'_>) {
        let mut failure = lock(&self.failure);
        let Some(failure) = failure.as_mut() else { return };
        if let (Some(name), EvalError::Wrong(error)) = (&failure.about, &mut failure.error)
            && let Some(span) = explain::place_of_host_name(origin, name)
        {
            error.span = span;
            failure.about = None;
        }
    }

    /// Notes why a name of another host is not there, should that turn out to be what is wrong.
    pub(super) fn note_absent(&self, message: String) {
        *lock(&self.absent) = Some(message);
    }

    /// Why the name of another host that was asked for last is not there.
    pub(super) fn absent(&self) -> Option<String> {
        lock(&self.absent).clone()
    }

    /// True once something failed.
    pub(super) fn failed(&self) -> bool {
        lock(&self.failure).is_some()
    }

    /// Something secret was asked for.
    pub(super) fn taint(&self) {
        self.scope.taint();
        self.secret.store(true, Ordering::Relaxed);
    }

    /// True if something secret was asked for.
    pub(super) fn tainted(&self) -> bool {
        self.secret.load(Ordering::Relaxed)
    }

    /// The value of a name; `None` where there is none, an invalid value where it failed.
    pub(super) fn lookup(self: &Arc<Self>, name: &str) -> Option<Value> {
        let var = self.scope.get(name)?;
        Some(match &var.binding {
            Binding::Data(data) => values::data(data),
            Binding::Secret(data) => {
                self.taint();
                values::data(data)
            }
            Binding::Unknown(why) => {
                self.fail(EvalError::Unknown(why.clone()));
                invalid()
            }
            Binding::Raw(node) => self.node(&Arc::from(name), node, &[], node),
            Binding::Hosts(all) => super::hosts::value(self, all),
        })
    }

    /// The value of a node of a variable: containers stay lazy, text is rendered.
    pub(super) fn node(self: &Arc<Self>, name: &Arc<str>, root: &Arc<Node>, path: &[usize], node: &Node) -> Value {
        match &node.kind {
            Kind::Null => Value::from(()),
            Kind::Bool(b) => Value::from(*b),
            Kind::Int(i) => Value::from(*i),
            Kind::Float(f) => Value::from(*f),
            Kind::Str(text) if !super::has_markup(text) => Value::from(text.as_str()),
            Kind::Str(text) => {
                let label = || values::label(name, root, path);
                self.memoised(label, node, text).unwrap_or_else(|Failed| invalid())
            }
            Kind::List(_) | Kind::Map(_) => {
                Value::from_object(NodeRef::new(self.clone(), name.clone(), root.clone(), path.to_vec()))
            }
        }
    }

    fn memoised(self: &Arc<Self>, label: impl FnOnce() -> String, node: &Node, text: &str) -> Result<Value, Failed> {
        // The node lives in the scope, which the session holds: its address is its name for as long as that matters.
        let address = std::ptr::from_ref(node) as usize;
        if let Some(value) = lock(&self.memo).get(&address) {
            return Ok(value.clone());
        }
        self.enter(address, label(), node.span)?;
        let result = self.text(text, node.span);
        let frame = lock(&self.stack).pop();
        match (&result, frame) {
            (Ok(value), _) => {
                lock(&self.memo).insert(address, value.clone());
            }
            (Err(Failed), Some(frame)) => self.note_use(&frame.label),
            (Err(Failed), None) => {}
        }
        result
    }

    fn enter(&self, address: usize, label: String, span: Span) -> Result<(), Failed> {
        let mut stack = lock(&self.stack);
        if let Some(first) = stack.iter().position(|f| f.node == address) {
            let chain: Vec<&str> = stack[first..].iter().map(|f| f.label.as_str()).chain([label.as_str()]).collect();
            let mut error = Diagnostic::error(span, format!("variables depend on each other: {}", chain.join(" -> ")));
            for frame in &stack[first + 1..] {
                error = error.note(frame.span, format!("'{}' stands here", frame.label));
            }
            drop(stack);
            self.record(error.into(), true);
            return Err(Failed);
        }
        if stack.len() > MAX_DEPTH {
            drop(stack);
            let message = format!("more than {MAX_DEPTH} variables in a row need each other, '{label}' is the last");
            self.record(Diagnostic::error(span, message).into(), true);
            return Err(Failed);
        }
        stack.push(Frame { node: address, label, span });
        Ok(())
    }

    /// Adds to the failure where the variable was used.
    fn note_use(&self, label: &str) {
        let place = lock(&self.stack).last().map(|f| f.span);
        if let (Some(place), Some(Failure { error: EvalError::Wrong(error), complete: false, .. })) =
            (place, lock(&self.failure).as_mut())
            && !place.is_none()
        {
            error.notes.push((place, format!("'{label}' is used here")));
        }
    }

    /// Renders a person's text: exactly one `{{ … }}` keeps its type, anything else is a string.
    pub(super) fn text(self: &Arc<Self>, text: &str, span: Span) -> Result<Value, Failed> {
        if let Some((offset, inner)) = super::single(text)
            && env::compile(inner).is_ok()
        {
            return self.expression(inner, Place::Scalar { span, text, offset });
        }
        let origin = Origin { source: text, place: Place::Scalar { span, text, offset: 0 }, files: None };
        let source = super::soften::template(text);
        let result = limits::template(text)
            .and_then(|()| env::inline().template_from_named_str("text", source.text()))
            .and_then(|template| template.render(values::scope(self)));
        self.place(&origin);
        match result {
            _ if self.failed() => Err(Failed),
            Ok(text) => Ok(Value::from(text)),
            Err(error) => Err(explain::fail(self, &error, &origin, &source)),
        }
    }

    /// Evaluates an expression. A value that is undefined is an error.
    pub(super) fn expression(self: &Arc<Self>, text: &str, place: Place<'_>) -> Result<Value, Failed> {
        let origin = Origin { source: text, place, files: None };
        let compiled = match env::compile(text) {
            Ok(compiled) => compiled,
            Err(error) => return Err(explain::fail(self, &error, &origin, &super::soften::Softened::same(text))),
        };
        let result = compiled.expression.eval(values::scope(self));
        self.place(&origin);
        match result {
            _ if self.failed() => Err(Failed),
            Ok(value) if value.is_undefined() => Err(explain::bare_undefined(self, &origin)),
            Ok(value) => Ok(value),
            Err(error) => Err(explain::fail(self, &error, &origin, &compiled.source)),
        }
    }
}

/// A value that stops the evaluation that touches it.
pub(super) fn invalid() -> Value {
    Value::from(Error::new(ErrorKind::InvalidOperation, "a variable could not be rendered"))
}
