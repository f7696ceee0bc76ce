//! `fail`: ends with a message.

use super::{Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan};
use crate::args;

args! {
    /// Arguments.
    pub struct Args {
        /// The message.
        msg []: String = "failed as requested".to_owned();
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "fail",
    aliases: &[],
    summary: "Fails with a message",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[],
    example: "- name: no disk\n  fail:\n    msg: this host has no data disk\n",
    plan,
};

fn plan(inv: &Invocation, _: &Cx<'_>) -> Result<Plan, Failure> {
    Err(Failure::new(Args::parse(&inv.args)?.msg))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::modules::fake::{Fake, go};

    #[test]
    fn it_fails_with_its_message() {
        let mut fake = Fake::new();
        assert_eq!(go(&mut fake, "fail", json!({"msg": "no disk"})).unwrap_err().message, "no disk");
        assert_eq!(go(&mut fake, "fail", json!({})).unwrap_err().message, "failed as requested");
        assert_eq!(go(&mut fake, "fail", json!({"mgs": "x"})).unwrap_err().hint.unwrap(), "did you mean 'msg'?");
    }
}
