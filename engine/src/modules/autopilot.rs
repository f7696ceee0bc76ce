//! What `consul_autopilot` and `nomad_autopilot` share.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    Cx, Failure, Outcome, Plan,
    api::{self, Access, Act, Client, Opened},
};
use crate::{
    cluster::{
        autopilot::{Autopilot, Settings, api_name, same},
        error::ApiError,
    },
    diag::nearest,
};

/// The plan that leads to these settings of a product (its name in small letters); those that are not named, or null, stay as they are.
pub(super) fn plan<C: Client + Autopilot + Send + 'static>(
    product: &str,
    mut wanted: Map<String, Value>,
    (access, wait): (&Access<'_>, Duration),
    cx: &Cx<'_>,
) -> Result<Plan, Failure> {
    wanted.retain(|_, value| !value.is_null());
    let client: C = match api::open(access, cx)? {
        Opened::Client(client) => *client,
        Opened::Later(plan) => return Ok(plan),
    };
    let found = match api::first_look(wait, cx, || client.autopilot()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    known(&wanted, &found)?;
    let differing = differing(&wanted, &found);
    if differing.is_empty() {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), &found)));
    }
    let (mut before, mut after) = (String::new(), String::new());
    for (setting, value) in differing {
        before.push_str(&format!("{setting}: {}\n", found.values[&api_name(setting)]));
        after.push_str(&format!("{setting}: {value}\n"));
    }
    let diff = api::diff(format!("{product} autopilot"), &before, &after);
    Ok(Act::plan(diff, told(Outcome::changed(), &found), move |_| write(&client, &wanted, wait)))
}

/// The product tells all that it knows.
fn known(wanted: &Map<String, Value>, found: &Settings) -> Result<(), Failure> {
    let Some(unknown) = wanted.keys().find(|setting| !found.values.contains_key(&api_name(setting))) else {
        return Ok(());
    };
    let failure = Failure::new(format!("argument 'settings': autopilot has no '{unknown}' here"));
    let near = nearest(&api_name(unknown), found.values.keys().map(String::as_str));
    Err(match near {
        Some(near) => failure.hint(format!("did you mean {near}, as the API calls it?")),
        None => failure,
    })
}

fn differing<'w>(wanted: &'w Map<String, Value>, found: &Settings) -> Vec<(&'w String, &'w Value)> {
    let differs =
        |(setting, value): &(&String, &Value)| found.values.get(&api_name(setting)).is_none_or(|now| !same(value, now));
    wanted.iter().filter(differs).collect()
}

fn write<C: Autopilot>(client: &C, wanted: &Map<String, Value>, wait: Duration) -> Result<Outcome, Failure> {
    let settled = api::settle(
        wait,
        || client.autopilot().map(Some),
        |found| found.is_some_and(|found| differing(wanted, found).is_empty()),
        |found| {
            let Some(mut settings) = found.cloned() else { return Ok(()) };
            settings.values.extend(wanted.iter().map(|(setting, value)| (api_name(setting), value.clone())));
            if client.set_autopilot(&settings)? {
                Ok(())
            } else {
                Err(ApiError::overtaken("the settings of autopilot"))
            }
        },
    )?;
    let outcome = api::outcome(settled.changed);
    Ok(match &settled.now {
        Some(now) => told(outcome, now),
        None => outcome,
    })
}

fn told(outcome: Outcome, settings: &Settings) -> Outcome {
    outcome.with("index", settings.index)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::modules::{
        fake::{Fake, go, plan},
        http::tests::{Server, answer},
    };

    fn stored(index: u64, quorum: u64) -> String {
        let settings = json!({"CleanupDeadServers": true, "LastContactThreshold": "200ms", "MinQuorum": quorum,
            "ServerStabilizationTime": "1m0s", "CreateIndex": 4, "ModifyIndex": index});
        answer("200 OK", &settings.to_string())
    }

    #[test]
    fn what_is_named_is_written_and_the_rest_stays() {
        for module in ["consul_autopilot", "nomad_autopilot"] {
            let args = |server: &Server| json!({"settings": {"min_quorum": 5, "cleanup_dead_servers": null, "server_stabilization_time": "60s"}, "url": server.url(""), "wait": 0});
            let server = Server::new([&stored(7, 5)]);
            assert!(!go(&mut Fake::new(), module, args(&server)).unwrap().changed);
            let server = Server::new([&stored(7, 3), &stored(7, 3), &answer("200 OK", "true"), &stored(9, 5)]);
            let outcome = go(&mut Fake::new(), module, args(&server)).unwrap();
            assert!(outcome.changed);
            assert_eq!(outcome.data["index"], 9);
            let written = server.requests()[2].clone();
            assert!(written.starts_with("PUT /v1/operator/autopilot/configuration?cas=7 "), "{written}");
            let body: serde_json::Value = serde_json::from_str(written.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            let wanted = json!({"CleanupDeadServers": true, "LastContactThreshold": "200ms", "MinQuorum": 5, "ServerStabilizationTime": "60s"});
            assert_eq!(body, wanted);
        }
    }

    #[test]
    fn another_who_writes_is_seen() {
        let server = Server::new([&stored(7, 3), &stored(7, 3), &answer("200 OK", "false"), &stored(8, 5)]);
        let args = json!({"settings": {"min_quorum": 5}, "url": server.url(""), "wait": 0});
        assert!(!go(&mut Fake::new(), "consul_autopilot", args).unwrap().changed);
    }

    #[test]
    fn bad_input_is_refused() {
        let server = Server::new([&stored(7, 3)]);
        let args = json!({"settings": {"min_qourum": 5}, "url": server.url(""), "wait": 0});
        let failure = plan(&Fake::new(), "consul_autopilot", args).unwrap_err();
        assert!(failure.message.contains("autopilot has no 'min_qourum' here"), "{failure}");
        assert!(failure.hint.as_ref().unwrap().contains("did you mean MinQuorum"), "{failure}");
        let failure = plan(&Fake::new(), "consul_autopilot", json!({})).unwrap_err();
        assert!(failure.message.contains("settings"), "{failure}");
    }
}
