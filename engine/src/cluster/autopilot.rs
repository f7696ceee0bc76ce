//! How servers look after each other: the settings of autopilot. A product reads them from its configuration when its cluster is formed,
//! and never again; from then on they live in Raft, and only this API changes them.

use serde_json::{Map, Value};

use super::{consul, error::ApiError};

/// Where the settings are, below `/v1`.
pub(super) const PATH: &[&str] = &["operator", "autopilot", "configuration"];
/// What both products say while a new leader has not begun its work: it writes the settings after much else.
pub(super) const UNSETTLED: &str = "autopilot config not initialized yet";
/// What the product counts with them.
const INDEXES: [&str; 2] = ["CreateIndex", "ModifyIndex"];

/// Settings by the API's names (`MinQuorum`), and the index at which they were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The settings.
    pub values: Map<String, Value>,
    /// For [`Autopilot::set_autopilot`].
    pub index: u64,
}

impl Settings {
    pub(super) fn read(mut values: Map<String, Value>) -> Self {
        let index = values.get("ModifyIndex").and_then(Value::as_u64).unwrap_or_default();
        values.retain(|name, _| !INDEXES.contains(&name.as_str()));
        Self { values, index }
    }
}

/// A product whose servers look after each other.
pub trait Autopilot {
    /// The settings that count.
    fn autopilot(&self) -> Result<Settings, ApiError>;
    /// Writes all of them if nobody has since `index`. False: somebody has.
    fn set_autopilot(&self, settings: &Settings) -> Result<bool, ApiError>;
}

/// The API's name of a setting: `min_quorum` is `MinQuorum`.
pub fn api_name(setting: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    setting.split('_').map(word).collect()
}

/// Two values mean the same: times may be written in several ways, `60s` and `1m0s`.
pub fn same(one: &Value, other: &Value) -> bool {
    let time = |value: &Value| value.as_str().filter(|text| !text.is_empty()).and_then(consul::duration);
    one == other || time(one).is_some_and(|one| time(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{error::Kind, nomad},
        *,
    };

    #[test]
    fn names_are_those_of_the_api() {
        assert_eq!(api_name("cleanup_dead_servers"), "CleanupDeadServers");
        assert_eq!(api_name("min_quorum"), "MinQuorum");
        assert_eq!(api_name(""), "");
    }

    #[test]
    fn a_leader_that_is_not_ready_is_waited_for() {
        let said = "rpc error making call: autopilot config not initialized yet";
        assert_eq!(consul::kind(500, said), Kind::NoLeader);
        assert_eq!(nomad::kind(500, said), Kind::NoLeader);
    }

    #[test]
    fn times_are_the_same_however_they_are_written() {
        assert!(same(&json!("60s"), &json!("1m0s")) && same(&json!("0.2s"), &json!("200ms")));
        assert!(!same(&json!("10s"), &json!("11s")) && !same(&json!("10s"), &json!("")));
        assert!(same(&json!(3), &json!(3)) && !same(&json!(3), &json!(5)) && !same(&json!(true), &json!("true")));
        assert!(same(&json!("zone"), &json!("zone")) && !same(&json!("zone"), &json!("az")));
    }
}
