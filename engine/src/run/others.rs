//! Results of other hosts: where this host waits for them, what it tells them.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use serde_json::Value;

use super::{Context, Runner, task::conditions};
use crate::{
    diag::Span,
    modules::Failure,
    node::{Kind, Node},
    playbook::model::{Action, AskedOfOthers, Task},
    protocol::{Answer, Ask, EventKind, unpack},
    template::{self, EvalError},
    vars::{
        Binding, Layer, Scope, Var,
        hosts::{HostVars, Known, Others},
    },
};

/// Stands in a place for what comes after the last task of a section.
pub(super) const END: u32 = u32::MAX;

/// What a task needed before it could begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// Nothing of other hosts.
    Nothing,
    /// It asked, which may have taken long.
    Waited,
}

/// Other hosts, as the task at hand sees them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Names that some task of some host asks for.
    wanted: BTreeSet<String>,
    /// Where in the play this host is: section, tasks and turns of loops, outermost first.
    place: Vec<u32>,
    /// What the includes around the task ask for in each of their tasks.
    inside: BTreeSet<String>,
    /// What the task asks for.
    asked: Arc<BTreeSet<String>>,
    /// What the controller answered.
    answered: Option<Arc<Others>>,
    /// Names that hold something secret.
    secret: HashSet<String>,
}

impl Seen {
    pub(super) fn new(others: &AskedOfOthers) -> Self {
        Self { wanted: others.names(), ..Self::default() }
    }

    /// A section of a play begins.
    pub(super) fn section(&mut self, number: u32) {
        self.place = vec![number];
    }

    pub(super) fn enter(&mut self, step: u32) {
        self.place.push(step);
    }

    pub(super) fn place(&self) -> &[u32] {
        &self.place
    }

    pub(super) fn leave(&mut self) {
        self.place.pop();
    }

    /// An include begins; returns what is to be given to [`Seen::outside`] at its end.
    pub(super) fn inside(&mut self, names: Option<&BTreeSet<String>>) -> BTreeSet<String> {
        let outer = self.inside.clone();
        self.inside.extend(names.into_iter().flatten().cloned());
        outer
    }

    pub(super) fn outside(&mut self, outer: BTreeSet<String>) {
        self.inside = outer;
    }
}

/// `hostvars` before the run.
pub(super) fn before(context: &Context, asked: &Arc<BTreeSet<String>>) -> Var {
    var(known_before(context, asked))
}

fn known_before(context: &Context, asked: &Arc<BTreeSet<String>>) -> HostVars {
    HostVars {
        inventory: Arc::clone(&context.shared.hostvars),
        taking_part: Arc::clone(&context.shared.taking_part),
        set_by: Arc::clone(&context.bundle.others.set_by),
        host: Arc::from(context.init.host.as_str()),
        own: Arc::default(),
        facts: Arc::clone(&context.facts),
        asked: Arc::clone(asked),
        others: None,
        running: false,
    }
}

fn var(hosts: HostVars) -> Var {
    Var { binding: Binding::Hosts(Arc::new(hosts)), origin: Span::NONE, layer: Layer::Magic }
}

impl Runner<'_> {
    /// Waits for the other hosts where a task asks for what they have, and fetches it.
    pub(super) fn meet(&mut self, task: &Task) -> Result<Met, Failure> {
        let seen = &mut self.state.others;
        let own = self.context.bundle.others.by_task.get(&task.id);
        seen.answered = None;
        if own.is_none() && seen.inside.is_empty() {
            seen.asked = Arc::default();
            return Ok(Met::Nothing);
        }
        seen.asked = Arc::new(own.into_iter().flatten().chain(&seen.inside).cloned().collect());
        let ask = Ask::Others { place: seen.place.clone(), names: (*seen.asked).clone() };
        let names: Vec<&str> = seen.asked.iter().map(String::as_str).collect();
        let what = format!("other hosts: the task asks for their {}", names.join(", "));
        self.emit(task.id, EventKind::Waiting { what });
        match self.link.ask(ask)? {
            Answer::Others(packed) => {
                let read = |bytes: &[u8]| serde_json::from_slice::<Others>(bytes).map_err(|e| e.to_string());
                let others = unpack(&packed.0).map_err(|e| e.to_string()).and_then(|bytes| read(&bytes));
                let broken = |e: String| Failure::new(format!("the results of other hosts cannot be read: {e}"));
                self.state.others.answered = Some(Arc::new(others.map_err(broken)?));
                Ok(Met::Waited)
            }
            Answer::Refused(why) => Err(Failure::new(why)),
            _ => Err(Failure::new("an answer of the wrong kind")),
        }
    }

    /// `hostvars` for the task at hand; `None` where nothing refers to it.
    pub(super) fn hostvars(&self) -> Option<Var> {
        self.context.init.shared.as_ref()?;
        let seen = &self.state.others;
        let own = Arc::clone(&self.state.registered);
        let before = known_before(self.context, &seen.asked);
        Some(var(HostVars { own, others: seen.answered.clone(), running: true, ..before }))
    }

    /// Something was set: other hosts may ask for it.
    pub(super) fn tell_others(&mut self, name: &str, var: &Var, secret: bool) {
        if secret {
            self.state.others.secret.insert(name.to_owned());
        } else {
            self.state.others.secret.remove(name);
        }
        if !self.state.others.wanted.contains(name) {
            return;
        }
        let known = match &var.binding {
            _ if secret => Known::Hidden,
            Binding::Data(value) => Known::Value(Arc::clone(value)),
            Binding::Secret(_) => Known::Hidden,
            Binding::Unknown(why) => Known::Unknown(why.clone()),
            Binding::Raw(_) | Binding::Hosts(_) => return,
        };
        self.link.keep(name, known);
    }

    /// In check mode a `set_fact` may depend on what was not done: what it would set is unknown from here on.
    pub(super) fn unsettle(&mut self, task: &Task, scope: &Scope, why: &str) {
        let Action::Module { name, args } = &task.action else { return };
        if name != "set_fact" {
            return;
        }
        let runs = task.loop_.is_none() && conditions(&task.when, scope).is_ok_and(|unmet| unmet.is_none());
        let secret = task.no_log || self.sets_secret(task, scope);
        for (key, node) in args.map().unwrap_or_default() {
            let var = match template::render_optional(node, scope) {
                Ok(Some(value)) if runs => Var::data_of(value, Layer::Registered, scope.tainted()),
                Err(EvalError::Unknown(why)) => unknown(why, task),
                _ => unknown(why.to_owned(), task),
            };
            self.register(&key.name, var, secret);
        }
    }

    /// The same for a task that another host has carried out: what that one could not know came without a value.
    pub(super) fn unsettle_once(&mut self, task: &Task, scope: &Scope, result: &Value, facts: &Value) {
        let why = format!("the result of '{}' is not known in check mode", Self::name(task, scope));
        if let (Some(name), true) = (&task.register, result.is_null()) {
            self.register(name, unknown(why.clone(), task), task.no_log);
        }
        let Action::Module { name, args } = &task.action else { return };
        if name != "set_fact" || result.get("skipped").is_some_and(|skipped| *skipped == Value::Bool(true)) {
            return;
        }
        for (key, _) in args.map().unwrap_or_default() {
            if facts.get(&key.name).is_none() && !self.state.registered.contains_key(&key.name) {
                self.register(&key.name, unknown(why.clone(), task), task.no_log);
            }
        }
    }

    /// True for a `set_fact` that is made of something secret.
    pub(super) fn sets_secret(&self, task: &Task, scope: &Scope) -> bool {
        let Action::Module { name, args } = &task.action else { return false };
        let secret = &self.state.others.secret;
        name == "set_fact" && !secret.is_empty() && mentions(args, secret, scope, &mut HashSet::new())
    }
}

fn unknown(why: String, task: &Task) -> Var {
    Var { binding: Binding::Unknown(why), origin: task.span, layer: Layer::Registered }
}

/// True if a value is made of one of these names, also through other variables.
fn mentions(node: &Node, names: &HashSet<String>, scope: &Scope, open: &mut HashSet<String>) -> bool {
    match &node.kind {
        Kind::Str(text) => {
            let Ok(found) = template::text_references(text, node.span) else { return false };
            found.all().any(|path| {
                let name = path.split('.').next().unwrap_or(path);
                names.contains(name)
                    || open.insert(name.to_owned())
                        && match scope.get(name).map(|var| &var.binding) {
                            Some(Binding::Raw(node)) => mentions(node, names, scope, open),
                            _ => false,
                        }
            })
        }
        Kind::List(items) => items.iter().any(|item| mentions(item, names, scope, open)),
        Kind::Map(entries) => entries.iter().any(|(_, value)| mentions(value, names, scope, open)),
        _ => false,
    }
}
