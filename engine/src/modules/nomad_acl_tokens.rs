//! `nomad_acl_tokens`: the tokens of Nomad's ACLs, without their secrets.

use serde_json::{Value, json};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    nomad_api::{self as api, Opened, api_args},
};
use crate::cluster::nomad::{Nomad, Token};

api_args! {
    /// Arguments.
    pub struct Args {
        /// Only those whose name begins so. Names of tokens are Nomad's descriptions.
        description []: String = String::new();
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_acl_tokens",
    aliases: &[],
    summary: "Lists the tokens of Nomad's ACLs, without their secrets",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[(
        "tokens",
        "For each, in the order of their names: `accessor_id`, `description` (its name), `policies`, `roles`, `management`, `made`, `expires` (empty: never), `ours`.",
    )]],
    example: "- name: which tokens there are\n  nomad_acl_tokens:\n    token_secret: nomad/management\n  register: found\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let nomad: Nomad = match api::open(&args.access(), cx)? {
        Opened::Client(nomad) => *nomad,
        Opened::Later(plan) => return Ok(plan),
    };
    let mut tokens = match api::first_look(args.wait, cx, || nomad.tokens()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    tokens.retain(|token| token.name.starts_with(&args.description));
    tokens.sort_by(|a, b| (&a.name, &a.accessor).cmp(&(&b.name, &b.accessor)));
    let shown: Vec<Value> = tokens.iter().map(shown).collect();
    Ok(Plan::Unchanged(Outcome::unchanged().with("tokens", shown)))
}

fn shown(token: &Token) -> Value {
    json!({
        "accessor_id": token.accessor,
        "description": token.name,
        "policies": token.policies,
        "roles": token.roles,
        "management": token.management,
        "made": token.made,
        "expires": token.expires.as_deref().unwrap_or_default(),
        "ours": api::is_ours(&token.name),
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
            {"AccessorID": "b", "SecretID": "hunter22", "Name": "Made by Rollcall: operator ann", "Type": "client",
             "Policies": ["reads"], "CreateTime": "2026-01-02T03:04:05Z", "ExpirationTime": "2026-01-02T11:04:05Z"},
            {"AccessorID": "c", "Name": "Bootstrap Token", "Type": "management"},
        ])
        .to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        let args = serde_json::json!({"url": Server::new([&answer]).url(""), "token": "management"});
        let all = go(&mut Fake::new(), "nomad_acl_tokens", args).unwrap();
        assert!(!serde_json::to_string(&all.data).unwrap().contains("hunter2"), "{all:?}");
        assert_eq!(all.data["tokens"][0]["management"], true);
        assert_eq!(
            all.data["tokens"][1],
            serde_json::json!({"accessor_id": "b", "description": "Made by Rollcall: operator ann", "policies": ["reads"],
                "roles": [], "management": false, "made": "2026-01-02T03:04:05Z", "expires": "2026-01-02T11:04:05Z", "ours": true})
        );
    }
}
