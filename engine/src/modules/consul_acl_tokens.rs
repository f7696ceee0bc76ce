//! `consul_acl_tokens`: the tokens of Consul's ACLs, without their secrets.

use serde_json::{Value, json};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_api::{self as api, Opened, api_args},
};
use crate::cluster::consul::Token;

api_args! {
    /// Arguments.
    pub struct Args {
        /// Only those whose description begins so.
        description []: String = String::new();
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_tokens",
    aliases: &[],
    summary: "Lists the tokens of Consul's ACLs, without their secrets",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[(
        "tokens",
        "For each, in the order of their descriptions: `accessor_id`, `description`, `policies`, `roles`, `management`, `made`, `expires` (empty: never), `ours`.",
    )]],
    example: "- name: which tokens there are\n  consul_acl_tokens:\n    token_secret: consul/management\n  register: found\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let mut tokens = match api::first_look(args.wait, cx, || consul.tokens()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    tokens.retain(|token| token.description.starts_with(&args.description));
    tokens.sort_by(|a, b| (&a.description, &a.accessor).cmp(&(&b.description, &b.accessor)));
    let shown: Vec<Value> = tokens.iter().map(shown).collect();
    Ok(Plan::Unchanged(Outcome::unchanged().with("tokens", shown)))
}

fn shown(token: &Token) -> Value {
    json!({
        "accessor_id": token.accessor,
        "description": token.description,
        "policies": token.rights.policies,
        "roles": token.rights.roles,
        "management": token.management,
        "made": token.made,
        "expires": token.expires,
        "ours": api::is_ours(&token.description),
    })
}

#[cfg(test)]
mod tests {
    use crate::modules::{
        fake::{Fake, go},
        http::tests::Server,
    };

    #[test]
    fn secrets_are_not_told() {
        let body = serde_json::json!([
            {"AccessorID": "b", "SecretID": "hunter22", "Description": "Made by Rollcall: operator ann",
             "Policies": [{"ID": "1", "Name": "reads"}], "CreateTime": "2026-01-02T03:04:05Z", "ExpirationTime": "2026-01-02T11:04:05Z"},
            {"AccessorID": "c", "SecretID": "hunter23", "Description": "by hand"},
        ])
        .to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        let server = Server::new([&answer, &answer]);
        let args = serde_json::json!({"url": server.url(""), "token": "management"});
        let all = go(&mut Fake::new(), "consul_acl_tokens", args.clone()).unwrap();
        let told = serde_json::to_string(&all.data).unwrap();
        assert!(!told.contains("hunter2"), "{told}");
        assert!(!all.changed && all.data["tokens"][0]["ours"] == true && all.data["tokens"][1]["ours"] == false);
        let mut some = args;
        some["description"] = "Made by Rollcall: operator".into();
        let some = go(&mut Fake::new(), "consul_acl_tokens", some).unwrap();
        assert_eq!(
            some.data["tokens"],
            serde_json::json!([{"accessor_id": "b", "description": "Made by Rollcall: operator ann", "policies": ["reads"],
                "roles": [], "management": false, "made": "2026-01-02T03:04:05Z", "expires": "2026-01-02T11:04:05Z", "ours": true}])
        );
    }
}
