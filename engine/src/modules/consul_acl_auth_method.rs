//! `consul_acl_auth_method`: whose proofs of identity Consul takes for tokens.

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    consul_api::{self as api, State, api_args},
    http::Web,
    object::{self, Object},
    steps::read_text,
};
use crate::{
    choice,
    cluster::consul::{ApiError, AuthMethod, Consul},
};

choice!(
    /// Where the tokens of a method are known.
    Locality { Local = "local", Global = "global" }
);

api_args! {
    /// Arguments.
    pub struct Args {
        /// Its name: letters, digits, `-` and `_`.
        name []: String, required;
        /// What kind of proof it takes: `jwt`, or another of Consul's kinds with all settings in `config`.
        r#type []: String = "jwt".to_owned();
        /// What it is for. Consul shows `Made by Rollcall: …`.
        description []: String = String::new();
        /// What people are shown for its name.
        display_name []: String = String::new();
        /// Where the keys are that proofs are signed with. Consul's servers fetch them themselves: a new method is refused until they
        /// can, for which the call waits (`wait`).
        jwks_url []: Option<Web>;
        /// The certificate (PEM) of who signed the one of that address.
        jwks_ca []: Option<String>;
        /// The file that has it, on the host instead.
        jwks_ca_file []: Option<PathBuf>;
        /// A proof must be made for one of these.
        bound_audiences []: Vec<String>;
        /// The algorithms that signatures may have.
        supported_algs []: Vec<String>;
        /// Claims of the proof that rules may use, and under which names.
        claim_mappings []: Map<String, Value> = Map::new();
        /// The same for claims that are lists.
        list_claim_mappings []: Map<String, Value> = Map::new();
        /// Other settings of the method, as Consul names them: `{BoundIssuer: nomad}`.
        config []: Map<String, Value> = Map::new();
        /// Whether tokens are known in their own datacenter or in all.
        token_locality []: Locality = Locality::Local;
        /// How many seconds its tokens count. Without it until they are given back, which is what Nomad needs.
        max_token_ttl []: Option<Duration>;
        /// `absent` removes it, its rules and its tokens, if Rollcall made it.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_auth_method",
    aliases: &[],
    summary: "Makes, changes or removes an auth method of Consul's ACLs",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("id", "The method's name.")]],
    example: "- name: jobs prove who they are\n  consul_acl_auth_method:\n    name: nomad-workloads\n    jwks_url: https://nomad.service.consul:4646/.well-known/jwks.json\n    jwks_ca_file: /etc/consul.d/tls/ca.pem\n    bound_audiences: [consul.io]\n    supported_algs: [RS256]\n    claim_mappings: {nomad_service: nomad_service}\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check_name(&args.name)?;
    let wanted = if args.state == State::Present {
        let config = match config(&args, cx)? {
            Ok(config) => config,
            Err(plan) => return Ok(plan),
        };
        Some(AuthMethod {
            name: args.name.clone(),
            kind: args.r#type.clone(),
            display_name: args.display_name.clone(),
            description: api::ours(&args.description),
            max_token_ttl: args.max_token_ttl.filter(|ttl| !ttl.is_zero()),
            token_locality: match args.token_locality {
                Locality::Local => "local",
                Locality::Global => "global",
            }
            .to_owned(),
            config,
            exists: false,
        })
    } else {
        None
    };
    object::plan(args.name.clone(), wanted, (&args.access(), args.wait), cx)
}

/// Consul's rule for names of methods.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=128).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(Failure::new(format!("'{name}' is no name for an auth method"))
        .hint("Consul takes 1 to 128 letters, digits, '-' and '_'"))
}

/// The settings as Consul names them. The inner error is the plan of a check that cannot read the certificate yet.
fn config(args: &Args, cx: &Cx<'_>) -> Result<Result<Map<String, Value>, Plan>, Failure> {
    let authority = match (&args.jwks_ca, &args.jwks_ca_file) {
        (Some(_), Some(_)) => return Err(Failure::new("'jwks_ca' and 'jwks_ca_file' exclude each other")),
        (Some(text), None) => Some(text.clone()),
        (None, Some(path)) => match read_text(cx.host, path)? {
            Some(text) => Some(text),
            None if cx.host.is_overlay() => {
                return Ok(Err(api::may_change(format!("{} is not there", path.display()))));
            }
            None => {
                return Err(Failure::new(format!("argument 'jwks_ca_file': there is no file {}", path.display())));
            }
        },
        (None, None) => None,
    };
    if authority.as_ref().is_some_and(|text| !text.contains("-----BEGIN CERTIFICATE-----")) {
        return Err(Failure::new("what 'jwks_ca' or 'jwks_ca_file' names is no certificate in PEM"));
    }
    let mut config = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            config.insert(key.to_owned(), value);
        }
    };
    let list = |list: &Vec<String>| (!list.is_empty()).then(|| json!(list));
    let map = |map: &Map<String, Value>| (!map.is_empty()).then(|| json!(map));
    put("JWKSURL", args.jwks_url.as_ref().map(|url| url.url().as_str().into()));
    put("JWKSCACert", authority.map(Value::from));
    put("BoundAudiences", list(&args.bound_audiences));
    put("JWTSupportedAlgs", list(&args.supported_algs));
    put("ClaimMappings", map(&args.claim_mappings));
    put("ListClaimMappings", map(&args.list_claim_mappings));
    if let Some(key) = args.config.keys().find(|key| config.contains_key(*key)) {
        return Err(Failure::new(format!("'config' sets {key}, which an argument of its own sets too")));
    }
    config.extend(args.config.clone());
    Ok(Ok(config))
}

impl Object for AuthMethod {
    type Api = Consul;
    const PRODUCT: &'static str = "Consul";
    const KIND: &'static str = "auth method";

    fn id(&self) -> &str {
        if self.exists { &self.name } else { "" }
    }

    fn with_id(self, id: String) -> Self {
        Self { exists: !id.is_empty(), ..self }
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn same(&self, other: &Self) -> bool {
        fn locality(method: &AuthMethod) -> &str {
            if method.token_locality.is_empty() { "local" } else { &method.token_locality }
        }
        (&self.kind, &self.display_name, &self.description, self.max_token_ttl, &self.config)
            == (&other.kind, &other.display_name, &other.description, other.max_token_ttl, &other.config)
            && locality(self) == locality(other)
    }

    fn lines(&self) -> String {
        let mut lines = format!("type: {}\ndescription: {}\n", self.kind, self.description);
        if !self.display_name.is_empty() {
            lines.push_str(&format!("display name: {}\n", self.display_name));
        }
        if let Some(ttl) = self.max_token_ttl {
            lines.push_str(&format!("tokens count for {} s\n", ttl.as_secs_f64()));
        }
        if self.token_locality == "global" {
            lines.push_str("tokens are known in all datacenters\n");
        }
        let mut keys: Vec<&String> = self.config.keys().collect();
        keys.sort();
        for key in keys {
            match &self.config[key] {
                Value::String(text) if text.contains('\n') => {
                    lines.push_str(&format!("{key}:\n"));
                    lines.extend(text.lines().map(|line| format!("  {line}\n")));
                }
                Value::String(text) => lines.push_str(&format!("{key}: {text}\n")),
                value => lines.push_str(&format!("{key}: {value}\n")),
            }
        }
        lines
    }

    fn find(consul: &Consul, name: &str) -> Result<Option<Self>, ApiError> {
        consul.auth_method(name)
    }

    fn write(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.write_auth_method(self)
    }

    fn delete(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.delete_auth_method(&self.name)
    }
}

#[cfg(test)]
mod tests;
