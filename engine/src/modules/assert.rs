//! `assert`: conditions that must hold.

use serde_json::{Value, json};

use super::{Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan, args::expected};

/// A condition, as the executor found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The expression as written.
    pub expr: String,
    /// What it gave; `None` before the executor has evaluated it.
    pub ok: Option<bool>,
}

impl FromArg for Condition {
    fn kind() -> String {
        "a condition".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        // Text is what people write, and what is checked before the run; the executor evaluates it.
        match (value, value.get("expr").and_then(Value::as_str), value.get("ok").and_then(Value::as_bool)) {
            (Value::String(expr), ..) => Ok(Self { expr: expr.clone(), ok: None }),
            (Value::Bool(ok), ..) => Ok(Self { expr: ok.to_string(), ok: Some(*ok) }),
            (_, Some(expr), Some(ok)) => Ok(Self { expr: expr.into(), ok: Some(ok) }),
            _ => Err(expected::<Self>(value)),
        }
    }
}
use crate::args;

args! {
    /// Arguments.
    pub struct Args {
        /// Conditions, expressions without `{{ }}`; all must be true.
        that []: Vec<Condition>, required;
        /// Said when one is not.
        fail_msg ["msg"]: Option<String>;
        /// Said when all are.
        success_msg []: Option<String>;
        /// Say nothing when all are.
        quiet []: bool = false;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "assert",
    aliases: &[],
    summary: "Fails unless all conditions hold",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("that", "How many conditions held."),
        ("assertion", "Of a failure: the condition that did not hold."),
        ("evaluated_to", "Of a failure: what it gave instead."),
    ]],
    example: "- name: what this role needs\n  assert:\n    that:\n      - facts.memory.total_mib >= 512\n      - facts.os.family == 'debian'\n    fail_msg: this role needs Debian and half a gigabyte\n",
    plan,
};

/// What rendered arguments fail with, where that is known without the host.
pub(crate) fn refusal(args: &serde_json::Map<String, serde_json::Value>) -> Option<Failure> {
    Args::parse(args).and_then(|args| judge(&args)).err()
}

fn judge(args: &Args) -> Result<(), Failure> {
    if args.that.is_empty() {
        return Err(Failure::new("argument 'that': expected at least one condition, found an empty list"));
    }
    if let Some(open) = args.that.iter().find(|c| c.ok.is_none()) {
        return Err(Failure::new(format!("the condition was not evaluated: {}", open.expr)));
    }
    if let Some(false_one) = args.that.iter().find(|c| c.ok == Some(false)) {
        let message = args.fail_msg.clone().unwrap_or_else(|| format!("assertion failed: {}", false_one.expr));
        return Err(Failure::new(message).with("assertion", false_one.expr.clone()).with("evaluated_to", false));
    }
    Ok(())
}

fn plan(inv: &Invocation, _: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    judge(&args)?;
    let outcome = Outcome::unchanged();
    Ok(Plan::Unchanged(if args.quiet {
        outcome
    } else {
        outcome
            .msg(args.success_msg.unwrap_or_else(|| "all assertions passed".into()))
            .with("that", json!(args.that.len()))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::fake::{Fake, go};

    #[test]
    fn the_first_false_condition_is_named() {
        let mut fake = Fake::new();
        let that = json!([{"expr": "a == 1", "ok": true}, {"expr": "b == 2", "ok": false}]);
        let failure = go(&mut fake, "assert", json!({"that": that})).unwrap_err();
        assert_eq!(failure.message, "assertion failed: b == 2");
        assert_eq!(failure.data["assertion"], "b == 2");
        let failure = go(&mut fake, "assert", json!({"that": that, "msg": "no b"})).unwrap_err();
        assert_eq!(failure.message, "no b");
    }

    #[test]
    fn all_true_passes() {
        let mut fake = Fake::new();
        let that = json!({"expr": "a == 1", "ok": true});
        let outcome = go(&mut fake, "assert", json!({"that": that, "success_msg": "fine"})).unwrap();
        assert_eq!((outcome.changed, outcome.msg.as_deref()), (false, Some("fine")));
        assert_eq!(go(&mut fake, "assert", json!({"that": that, "quiet": true})).unwrap().msg, None);
    }

    #[test]
    fn a_condition_that_nobody_evaluated_is_refused() {
        let mut fake = Fake::new();
        assert!(go(&mut fake, "assert", json!({"that": ["a == 1"]})).unwrap_err().message.contains("not evaluated"));
        assert!(go(&mut fake, "assert", json!({"that": [7]})).unwrap_err().message.contains("a condition"));
        assert!(go(&mut fake, "assert", json!({"that": []})).unwrap_err().message.contains("at least one"));
    }
}
