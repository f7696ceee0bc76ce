//! `debug`: shows a message or a variable.

use serde_json::{Map, Value};

use super::{Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan, args::expected};
use crate::args;

args! {
    /// Arguments.
    pub struct Args {
        /// What is shown: text, or any value.
        msg []: Option<Value>;
        /// The name of a variable, or an expression, whose value is shown.
        var []: Option<Shown>;
    }
}

/// A variable to be shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// As people write it; the executor looks it up.
    Name(String),
    /// As the executor hands it over.
    Values(Map<String, Value>),
}

impl FromArg for Shown {
    fn kind() -> String {
        "the name of a variable".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(name) => Ok(Self::Name(name.clone())),
            Value::Object(values) => Ok(Self::Values(values.clone())),
            _ => Err(expected::<Self>(value)),
        }
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "debug",
    aliases: &[],
    summary: "Shows a message or the value of a variable",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("value", "What `msg` gave, where it is no text."), ("NAME", "Each variable that `var` names.")]],
    example: "- name: say who this is\n  debug:\n    msg: this is {{ facts.hostname }}\n",
    plan,
};

fn plan(inv: &Invocation, _: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let outcome = Outcome::unchanged();
    Ok(Plan::Unchanged(match (args.msg, args.var) {
        (Some(_), Some(_)) => return Err(Failure::new("'msg' and 'var' exclude each other").hint("give one of them")),
        (None, Some(Shown::Name(name))) => return Err(Failure::new(format!("the variable was not looked up: {name}"))),
        (None, Some(Shown::Values(vars))) => {
            let lines: Vec<String> = vars.iter().map(|(name, value)| format!("{name}: {}", shown(value))).collect();
            Outcome { data: vars, ..outcome }.msg(lines.join("\n"))
        }
        (Some(Value::String(text)), None) => outcome.msg(text),
        (Some(other), None) => outcome.msg(shown(&other)).with("value", other),
        (None, None) => outcome.msg("Hello world!"),
    }))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => serde_json::to_string_pretty(other).unwrap_or_else(|_| other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::modules::fake::{Fake, go};

    #[test]
    fn messages_and_variables() {
        let mut fake = Fake::new();
        assert_eq!(go(&mut fake, "debug", json!({"msg": "hi"})).unwrap().msg.unwrap(), "hi");
        assert_eq!(go(&mut fake, "debug", json!({"msg": [1]})).unwrap().data["value"], json!([1]));
        let outcome = go(&mut fake, "debug", json!({"var": {"port": 8500}})).unwrap();
        assert_eq!((outcome.msg.as_deref(), &outcome.data["port"]), (Some("port: 8500"), &json!(8500)));
        assert!(go(&mut fake, "debug", json!({"var": "port"})).unwrap_err().message.contains("not looked up"));
        assert!(go(&mut fake, "debug", json!({"var": 7})).unwrap_err().message.contains("the name of a variable"));
        assert!(go(&mut fake, "debug", json!({"msg": "a", "var": {"b": 1}})).unwrap_err().message.contains("exclude"));
    }
}
