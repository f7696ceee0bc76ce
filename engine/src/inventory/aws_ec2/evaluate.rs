//! From instances to hosts, groups and variables.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use indexmap::IndexMap;
use regex::Regex;
use serde_json::Value;

use super::{
    Answer,
    config::{Condition, Config, Expression, KeyedGroup},
    hostnames,
    query::Instance,
};
use crate::{
    diag::{Diagnostic, Diagnostics, Severity, Span},
    inventory::{Options, model::Builder, model::InstanceRef, pytext},
    template::{self, EvalError},
    vars::{Layer, Scope, Var, Vars},
};

static UNSAFE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{Nd}|[^\p{L}\p{N}_]").ok());

/// The name as a group: what is neither letter, digit nor `_` becomes `_`, and so does a first digit.
pub(super) fn group_name(name: &str) -> String {
    match UNSAFE.as_ref() {
        Some(pattern) => pattern.replace_all(name, "_").into_owned(),
        None => name.to_owned(),
    }
}

/// Which names the instances of each answer get. Instances that would share a name both get their id appended: also
/// across files, regions and accounts.
pub(super) fn names(answers: &[(&Config, &Answer)], out: &mut Diagnostics) -> Vec<Vec<(String, usize)>> {
    let mut plans: Vec<Vec<(String, usize)>> = Vec::new();
    let mut holders: HashMap<String, HashSet<&str>> = HashMap::new();
    for (config, answer) in answers {
        let mut plan = Vec::new();
        let mut nameless: Vec<&str> = Vec::new();
        for (index, instance) in answer.instances.iter().enumerate() {
            let mut names = hostnames::names(&config.hostnames, instance, config.allow_duplicated_hosts);
            if names.is_empty() {
                nameless.push(&instance.id);
                names.push(instance.id.clone());
            }
            for name in names {
                holders.entry(name.clone()).or_default().insert(&instance.id);
                plan.push((name, index));
            }
        }
        if !nameless.is_empty() {
            out.push(nameless_warning(config, &nameless));
        }
        plans.push(plan);
    }
    for ((_, answer), plan) in answers.iter().zip(&mut plans) {
        for (name, index) in plan {
            if holders.get(name.as_str()).is_some_and(|ids| ids.len() > 1) {
                *name = format!("{name}-{}", answer.instances[*index].id);
            }
        }
    }
    plans
}

fn nameless_warning(config: &Config, ids: &[&str]) -> Diagnostic {
    let shown: Vec<&str> = ids.iter().copied().take(5).collect();
    let more = if ids.len() > shown.len() { format!(" and {} more", ids.len() - shown.len()) } else { String::new() };
    Diagnostic::warning(
        Span { line: 0, ..config.account_span },
        format!("none of 'hostnames' names {}{more}: they are known by their ids", shown.join(", ")),
    )
    .hint("add instance-id or private-ip-address at the end of 'hostnames'")
}

/// Failures of one expression.
struct Failure {
    what: String,
    count: usize,
    first_host: String,
    first_error: Diagnostic,
}

struct Evaluator<'a> {
    config: &'a Config,
    builder: &'a mut Builder,
    extra: std::sync::Arc<Vars>,
    failures: IndexMap<Span, Failure>,
}

/// Adds the instances of one file under the names that were chosen.
pub(super) fn add(
    config: &Config,
    answer: &Answer,
    names: &[(String, usize)],
    options: &Options,
    builder: &mut Builder,
) {
    let group = builder.add_group("aws_ec2");
    let extra = if config.use_extra_vars { options.extra.clone() } else { std::sync::Arc::default() };
    let mut evaluator = Evaluator { config, builder, extra, failures: IndexMap::new() };
    for (name, index) in names {
        let instance = &answer.instances[*index];
        let host = evaluator.builder.add_host(name, group);
        evaluator.builder.set_instance(
            host,
            InstanceRef {
                id: instance.id.clone(),
                region: instance.region.clone(),
                account: config.query.account.clone(),
            },
        );
        evaluator.host(host, name, instance);
    }
    let (failures, hosts) = (evaluator.failures, names.len());
    for (span, failure) in failures {
        builder.diagnostics.push(report(config.strict, span, &failure, hosts));
    }
}

fn report(strict: bool, span: Span, failure: &Failure, hosts: usize) -> Diagnostic {
    let severity = if strict { Severity::Error } else { Severity::Warning };
    let message = format!(
        "{} cannot be evaluated for {} of {hosts} host(s), first for '{}': {}",
        failure.what, failure.count, failure.first_host, failure.first_error.message
    );
    let hint = failure
        .first_error
        .hint
        .clone()
        .unwrap_or_else(|| "where an instance may lack a tag, write tags.NAME | default('')".to_owned());
    Diagnostic { severity, ..Diagnostic::error(span, message).hint(hint) }
}

impl Evaluator<'_> {
    fn host(&mut self, host: usize, name: &str, instance: &Instance) {
        let mut vars = Vars::with_capacity(instance.attributes.len());
        for (attribute, value) in &instance.attributes {
            let full = format!("{}{attribute}{}", self.config.prefix, self.config.suffix);
            let var = Var::data(value.clone(), Layer::InventoryHost);
            self.builder.set_host_var(host, &full, var.clone());
            vars.insert(full, var);
        }
        let base = Scope::of(vars).with_lookups(crate::inventory::host_vars::lookups());
        // Composed variables do not see each other; groups see them all.
        let visible = base.with(self.extra.clone());
        let mut composed = Vars::new();
        let config = self.config;
        for (key, expression) in &config.compose {
            if let Some(value) = self.eval(expression, &format!("variable '{}'", key.name), name, &visible) {
                let mut var = Var::data(value, Layer::InventoryHost);
                var.origin = key.span;
                self.builder.set_host_var(host, &key.name, var.clone());
                composed.insert(key.name.clone(), var);
            }
        }
        for (what, value) in [
            ("inventory_hostname", Value::String(name.to_owned())),
            ("inventory_hostname_short", Value::String(name.split('.').next().unwrap_or(name).to_owned())),
            ("group_names", self.builder.group_names(host).into()),
        ] {
            composed.insert(what.to_owned(), Var::data(value, Layer::Magic));
        }
        let scope = base.with(composed).with(self.extra.clone());
        self.groups(name, &scope);
        for keyed in &config.keyed_groups {
            self.keyed(keyed, name, &scope);
        }
    }

    fn groups(&mut self, name: &str, scope: &Scope) {
        let config = self.config;
        for (key, condition) in &config.groups {
            let is_member = match condition {
                Condition::Always(always) => *always,
                Condition::When(expression) => {
                    let what = format!("the condition of group '{}'", key.name);
                    match self.eval(expression, &what, name, scope) {
                        Some(Value::Bool(b)) => b,
                        Some(other) => {
                            let error = Diagnostic::error(
                                expression.span,
                                format!("a condition must give true or false, this gives {other}"),
                            )
                            .hint("compare it with something: tags.Role == 'web'");
                            self.fail(expression.span, &what, name, error);
                            false
                        }
                        None => false,
                    }
                }
            };
            if is_member {
                let group = self.builder.add_group(&group_name(&key.name));
                self.builder.add_host(name, group);
            }
        }
    }

    fn keyed(&mut self, keyed: &KeyedGroup, name: &str, scope: &Scope) {
        let what = "the key of a keyed group";
        let Some(key) = self.eval(&keyed.key, what, name, scope) else { return };
        let use_default = is_empty(&key) && keyed.default_value.is_some();
        if !use_default && !pytext::truthy(&key) {
            let nothing = matches!(&key, Value::Array(_) | Value::Object(_));
            if self.config.strict && !nothing {
                let error = Diagnostic::error(keyed.key.span, "the key is empty");
                self.fail(keyed.key.span, what, name, error);
            }
            return;
        }
        let Some(bare) = bare_names(keyed, &key, use_default) else {
            self.builder.diagnostics.push(
                Diagnostic::error(
                    keyed.key.span,
                    format!("a keyed group needs a text, a list or a mapping; for '{name}' this gives {key}"),
                )
                .hint("turn it into text: (EXPRESSION) | string"),
            );
            return;
        };
        let Ok(parent) = self.parent(keyed, name, scope) else { return };
        let prefix = pytext::text(&keyed.prefix);
        let bare_prefix = keyed.prefix == Value::String(String::new());
        let separator =
            if bare_prefix && !self.config.leading_separator { String::new() } else { pytext::text(&keyed.separator) };
        for bare in bare {
            let group = self.builder.add_group(&group_name(&format!("{prefix}{separator}{bare}")));
            self.builder.add_host(name, group);
            if let Some(parent) = &parent {
                let parent = self.builder.add_group(&group_name(parent));
                if let Err(e) = self.builder.add_child(parent, group, keyed.key.span) {
                    self.builder.diagnostics.push(e);
                }
            }
        }
    }

    fn parent(&mut self, keyed: &KeyedGroup, name: &str, scope: &Scope) -> Result<Option<String>, ()> {
        let Some(node) = &keyed.parent else { return Ok(None) };
        match template::render(node, scope) {
            Ok(value) if pytext::truthy(&value) => Ok(Some(pytext::text(&value))),
            Ok(_) => Ok(None),
            Err(e) => {
                self.fail(node.span, "the parent of a keyed group", name, explain(e, node.span));
                Err(())
            }
        }
    }

    fn eval(&mut self, expression: &Expression, what: &str, host: &str, scope: &Scope) -> Option<Value> {
        match template::eval(&expression.text, expression.span, scope) {
            Ok(value) => Some(value),
            Err(e) => {
                self.fail(expression.span, what, host, explain(e, expression.span));
                None
            }
        }
    }

    fn fail(&mut self, span: Span, what: &str, host: &str, error: Diagnostic) {
        self.failures.entry(span).and_modify(|f| f.count += 1).or_insert_with(|| Failure {
            what: what.to_owned(),
            count: 1,
            first_host: host.to_owned(),
            first_error: error,
        });
    }
}

fn explain(error: EvalError, span: Span) -> Diagnostic {
    match error {
        EvalError::Wrong(e) => e,
        EvalError::Unknown(why) => Diagnostic::error(span, format!("it depends on {why}")),
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value == &Value::String(String::new())
}

/// The names behind prefix and separator; none where the key is neither text nor list nor mapping.
fn bare_names(keyed: &KeyedGroup, key: &Value, use_default: bool) -> Option<Vec<String>> {
    let default = || pytext::text(keyed.default_value.as_ref().unwrap_or(&Value::Null));
    if use_default {
        return Some(vec![default()]);
    }
    match key {
        Value::String(s) => Some(vec![s.clone()]),
        Value::Array(items) => Some(
            items
                .iter()
                .map(
                    |item| {
                        if is_empty(item) && keyed.default_value.is_some() { default() } else { pytext::text(item) }
                    },
                )
                .collect(),
        ),
        Value::Object(map) => {
            let separator = pytext::text(&keyed.separator);
            Some(
                map.iter()
                    .map(|(name, value)| match (is_empty(value), &keyed.default_value) {
                        (true, Some(_)) => format!("{name}{separator}{}", default()),
                        (true, None) if !keyed.trailing_separator => name.clone(),
                        _ => format!("{name}{separator}{}", pytext::text(value)),
                    })
                    .collect(),
            )
        }
        _ => None,
    }
}
