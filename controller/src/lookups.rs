//! `lookup('env', …)` and `lookup('file', …)` are about the machine of who runs the controller: variables that hold one are
//! settled here, before they travel. A host that meets one refuses it. Passwords of logins do not travel at all.

use std::{path::Path, sync::Arc};

use rollcall_engine::{
    diag::Diagnostic,
    inventory::stays_here,
    node::{Kind, Node},
    template::{self, EvalError},
    vars::{Binding, LocalLookups, Scope, Var, Vars},
};

/// Layers with every variable that holds a lookup replaced by its value in this scope. One that cannot be evaluated stays
/// as it is, and what is wrong with it is returned: it does no harm where nothing asks for it.
pub(crate) fn settle(layers: Vec<Arc<Vars>>, scope: &Scope) -> (Vec<Arc<Vars>>, Vec<Diagnostic>) {
    let mut wrong = Vec::new();
    let settled = layers.into_iter().map(|layer| settle_layer(layer, scope, &mut wrong)).collect();
    (settled, wrong)
}

/// A layer that belongs to no host: a play's variables, `-e`. What depends on a host is left for it to refuse.
pub(crate) fn settle_alone(layer: Arc<Vars>, extra: &Arc<Vars>, dir: &Path) -> Arc<Vars> {
    let lookups = Arc::new(LocalLookups::new(dir));
    let scope = Scope::of(Arc::clone(&layer)).with(Arc::clone(extra)).with_lookups(lookups);
    settle_layer(layer, &scope, &mut Vec::new())
}

fn settle_layer(layer: Arc<Vars>, scope: &Scope, wrong: &mut Vec<Diagnostic>) -> Arc<Vars> {
    let mut settled: Option<Vars> = None;
    for (name, var) in layer.iter() {
        if stays_here(name) {
            settled.get_or_insert_with(|| (*layer).clone()).shift_remove(name);
            continue;
        }
        let Binding::Raw(node) = &var.binding else { continue };
        if !holds_lookup(node) {
            continue;
        }
        match template::render(node, scope) {
            Ok(value) => {
                let var = Var { binding: Binding::Data(Arc::new(value)), origin: var.origin, layer: var.layer };
                settled.get_or_insert_with(|| (*layer).clone()).insert(name.clone(), var);
            }
            Err(EvalError::Wrong(diagnostic)) => wrong.push(diagnostic),
            Err(EvalError::Unknown(_)) => {}
        }
    }
    settled.map_or(layer, Arc::new)
}

fn holds_lookup(node: &Node) -> bool {
    match &node.kind {
        Kind::Str(text) => text.contains("{{") && ["lookup(", "query(", "q("].iter().any(|call| text.contains(call)),
        Kind::List(items) => items.iter().any(holds_lookup),
        Kind::Map(entries) => entries.iter().any(|(_, value)| holds_lookup(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rollcall_engine::{diag::Span, vars::Layer};
    use serde_json::{Value, json};

    use super::*;

    fn layer(values: Value) -> Arc<Vars> {
        let raw = |v: &Value| Var::raw(Node::from_value(v, Span::NONE), Layer::Play);
        Arc::new(values.as_object().unwrap().iter().map(|(k, v)| (k.clone(), raw(v))).collect())
    }

    fn data(vars: &Vars, name: &str) -> Option<Value> {
        match &vars[name].binding {
            Binding::Data(value) => Some((**value).clone()),
            _ => None,
        }
    }

    #[test]
    fn what_holds_a_lookup_is_settled_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("motd"), "{{ hello }}").unwrap();
        let vars = layer(json!({
            "home": "{{ lookup('env', 'PATH') }}", "deep": {"list": [1, "{{ lookup('file', name) }}"]}, "name": "motd",
            "later": "{{ facts.hostname }}", "both": "{{ lookup('env', facts.hostname) }}", "text": "how to look up (q(x)",
        }));
        let settled = settle_alone(vars, &Arc::default(), folder.path());
        assert_eq!(data(&settled, "home"), Some(json!(std::env::var("PATH").unwrap())));
        // Data is never rendered again, whatever it looks like.
        assert_eq!(data(&settled, "deep"), Some(json!({"list": [1, "{{ hello }}"]})));
        for name in ["name", "later", "both", "text"] {
            assert_eq!(data(&settled, name), None, "{name}");
        }
    }

    #[test]
    fn passwords_of_logins_stay_here() {
        let vars =
            layer(json!({"ansible_become_password": "{{ lookup('env', 'PATH') }}", "ansible_sudo_pass": "x", "b": 1}));
        let settled = settle_alone(vars, &Arc::default(), Path::new("."));
        assert_eq!(settled.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn what_cannot_be_evaluated_is_told() {
        let vars = layer(json!({"a": "{{ lookup('file', 'nosuch') }}"}));
        let scope = Scope::of(Arc::clone(&vars)).with_lookups(Arc::new(LocalLookups::new("/nowhere")));
        let (settled, wrong) = settle(vec![vars], &scope);
        assert!(data(&settled[0], "a").is_none() && wrong.len() == 1, "{wrong:?}");
    }
}
