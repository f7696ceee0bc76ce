//! `set_fact`: variables of this host for the rest of the run.
//!
//! The executor keeps them; here they are only checked and handed on as the result `facts`.

use serde_json::Value;

use super::{Arg, Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan};

/// Any name: see [`super::args::check_names`].
pub const ARGS: &[Arg] = &[Arg {
    name: "*",
    aliases: &[],
    kind: <Value as FromArg>::kind,
    required: false,
    default: "",
    doc: " Each argument is a variable and its value.",
    check: |_| Ok(()),
}];

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "set_fact",
    aliases: &[],
    summary: "Sets variables of this host for the rest of the run",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("facts", "The variables that were set.")]],
    example: "- name: the address to bind\n  set_fact:\n    consul_address: \"{{ facts.addresses.ipv4[0] }}\"\n",
    plan,
};

fn plan(inv: &Invocation, _: &Cx<'_>) -> Result<Plan, Failure> {
    if inv.args.contains_key("cacheable") {
        return Err(Failure::new(
            "'cacheable' is not supported: facts are gathered anew in each run, nothing is cached",
        )
        .hint("set the variable in each run, or put it in host_vars"));
    }
    if inv.args.is_empty() {
        return Err(Failure::new("no variable given").hint("write `set_fact: {name: value}`"));
    }
    for name in inv.args.keys() {
        let mut chars = name.chars();
        let starts_well = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        if !starts_well || !chars.all(|c| c.is_alphanumeric() || c == '_') {
            return Err(Failure::new(format!("'{}' is no name for a variable", name.escape_debug()))
                .hint("names are letters, digits and _, and do not start with a digit"));
        }
    }
    Ok(Plan::Unchanged(Outcome::unchanged().with("facts", Value::Object(inv.args.clone()))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::modules::{
        args::check_names,
        fake::{Fake, go},
    };

    #[test]
    fn any_name_is_taken_and_handed_on() {
        let args = json!({"a": 1, "b_2": [true]});
        check_names(args.as_object().unwrap(), ARGS).unwrap();
        assert_eq!(go(&mut Fake::new(), "set_fact", args.clone()).unwrap().data["facts"], args);
    }

    #[test]
    fn bad_names_and_caching_are_refused() {
        let message = |args| go(&mut Fake::new(), "set_fact", args).unwrap_err().message;
        assert!(message(json!({"a": 1, "cacheable": true})).contains("not supported"));
        assert!(message(json!({"2a": 1})).contains("'2a' is no name"));
        assert!(message(json!({"a-b": 1})).contains("is no name"));
        assert!(message(json!({})).contains("no variable"));
    }
}
