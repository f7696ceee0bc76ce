//! What turns a proof of identity into a token: auth methods, and the rules that say what who logs in gets.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{ApiError, Consul};

/// An auth method: whose proofs count.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AuthMethod {
    /// Its name, by which it is also known to Consul.
    pub name: String,
    /// `jwt` and the like.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What people are shown for the name.
    pub display_name: String,
    /// For people; says whose it is.
    pub description: String,
    /// How long its tokens count; nothing: until they are given back.
    #[serde(rename = "MaxTokenTTL", deserialize_with = "written_duration")]
    pub max_token_ttl: Option<Duration>,
    /// `local` or `global`.
    pub token_locality: String,
    /// The method's own settings, as Consul names them.
    pub config: Map<String, Value>,
    /// Consul has it.
    #[serde(skip)]
    pub exists: bool,
}

/// A rule: what who logs in with a method gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindingRule {
    /// Its id; empty before it is made.
    #[serde(rename = "ID", skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// For people; says whose it is, and which.
    pub description: String,
    /// The method.
    pub auth_method: String,
    /// For whom it holds; empty: for all.
    pub selector: String,
    /// `service`, `role`, …
    pub bind_type: String,
    /// What is given: a name, in which `${value.NAME}` stands for what the proof says.
    pub bind_name: String,
    /// Ids of others that were made under the same description: Consul has nothing against it.
    #[serde(skip)]
    pub twins: Vec<String>,
}

impl BindingRule {
    /// Whether it can give the `role` or `policy` of this name: `tasks-${value.nomad_namespace}` gives any `tasks-…`.
    pub fn gives(&self, kind: &str, name: &str) -> bool {
        self.bind_type == kind && fits(&self.bind_name, name)
    }
}

/// Whether a text is what a pattern becomes in which each `${…}` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let parts = pattern.split_once("${").and_then(|(before, rest)| Some((before, rest.split_once('}')?.1)));
    let Some((before, after)) = parts else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| fits(after, rest))
}

impl Consul {
    /// An auth method by its name.
    pub fn auth_method(&self, name: &str) -> Result<Option<AuthMethod>, ApiError> {
        let found: Option<AuthMethod> = self.0.found(&["acl", "auth-method", name], &[])?;
        Ok(found.map(|method| AuthMethod { exists: true, ..method }))
    }

    /// Makes an auth method, or changes the one that is there.
    pub fn write_auth_method(&self, method: &AuthMethod) -> Result<(), ApiError> {
        let mut body = json!({
            "Name": method.name,
            "Type": method.kind,
            "DisplayName": method.display_name,
            "Description": method.description,
            "TokenLocality": method.token_locality,
            "Config": method.config,
        });
        if let Some(ttl) = method.max_token_ttl {
            body["MaxTokenTTL"] = format!("{}ns", ttl.as_nanos()).into();
        }
        let mut path = vec!["acl", "auth-method"];
        if method.exists {
            path.push(&method.name);
        }
        self.put(&path, &body)
    }

    /// Names of all methods.
    pub fn auth_methods(&self) -> Result<Vec<String>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            name: String,
        }
        let all: Vec<Listed> = self.0.get(&["acl", "auth-methods"], &[])?;
        Ok(all.into_iter().map(|method| method.name).collect())
    }

    /// Whether there are tokens that were got with a method.
    pub fn has_tokens_of(&self, method: &str) -> Result<bool, ApiError> {
        let all: Vec<Value> = self.0.get(&["acl", "tokens"], &[("authmethod", method)])?;
        Ok(!all.is_empty())
    }

    /// Takes an auth method away; with it go its rules, and the tokens that it gave.
    pub fn delete_auth_method(&self, name: &str) -> Result<(), ApiError> {
        self.0.delete(&["acl", "auth-method", name], &[])
    }

    /// The rules of a method.
    pub fn binding_rules(&self, method: &str) -> Result<Vec<BindingRule>, ApiError> {
        self.0.get(&["acl", "binding-rules"], &[("authmethod", method)])
    }

    /// The rules of all methods.
    pub fn all_binding_rules(&self) -> Result<Vec<BindingRule>, ApiError> {
        self.0.get(&["acl", "binding-rules"], &[])
    }

    /// Makes a rule, or changes the one that has the id.
    pub fn write_binding_rule(&self, rule: &BindingRule) -> Result<(), ApiError> {
        let mut path = vec!["acl", "binding-rule"];
        if !rule.id.is_empty() {
            path.push(&rule.id);
        }
        self.put(&path, &json!(rule))
    }

    /// Takes a rule away.
    pub fn delete_binding_rule(&self, id: &str) -> Result<(), ApiError> {
        self.0.delete(&["acl", "binding-rule", id], &[])
    }
}

/// Durations are written as `1h2m3.5s`; what has no meaning is none, and is written anew.
fn written_duration<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(d)?.unwrap_or_default();
    Ok(duration(&text).filter(|duration| !duration.is_zero()))
}

/// A time as Go writes it.
pub(in crate::cluster) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[number..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| number + at);
        let one = match &rest[number..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" | "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += rest[..number].parse::<f64>().ok()? * one;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_they_are_written() {
        assert_eq!(duration("1h2m3s"), Some(Duration::from_secs(3723)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration(""), Some(Duration::ZERO));
        for wrong in ["1", "h", "1x", "1h2"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_rule_gives_what_its_name_can_become() {
        let rule = |bind_name: &str| BindingRule {
            bind_type: "role".into(),
            bind_name: bind_name.into(),
            ..BindingRule::default()
        };
        for (pattern, name, gives) in [
            ("tasks-${value.nomad_namespace}", "tasks-shop", true),
            ("tasks-${value.nomad_namespace}", "tasks-", true),
            ("tasks-${value.nomad_namespace}", "jobs-shop", false),
            ("${value.a}-of-${value.b}", "x-of-y-of-z", true),
            ("${value.a}-of-${value.b}", "x-y", false),
            ("${value.a}s", "übers", true),
            ("shop", "shop", true),
            ("shop", "shops", false),
            ("shop-${value", "shop-x", false),
        ] {
            assert_eq!(rule(pattern).gives("role", name), gives, "{pattern} {name}");
        }
        assert!(!rule("shop").gives("policy", "shop"));
    }

    #[test]
    fn a_method_is_read_whether_or_not_it_says_all() {
        let given = json!({"Name": "a", "Type": "jwt", "MaxTokenTTL": "10m0s", "Config": {"JWKSURL": "https://a"}, "CreateIndex": 4});
        let method: AuthMethod = serde_json::from_value(given).unwrap();
        assert_eq!(method.max_token_ttl, Some(Duration::from_mins(10)));
        assert_eq!(method.config["JWKSURL"], "https://a");
        let bare: AuthMethod = serde_json::from_value(json!({"Name": "a", "Type": "jwt", "Config": {}})).unwrap();
        assert_eq!((bare.max_token_ttl, bare.description.as_str()), (None, ""));
    }
}
