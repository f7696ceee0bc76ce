//! Asking the real cluster. Thin typed clients: only the endpoints that are used.

use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::{modules::http, playbook::model::Gate, secrets::Secret};
use error::Kind;

mod api;
/// How servers look after each other.
pub mod autopilot;
/// Bootstrapping ACLs.
pub mod bootstrap;
/// Consul's HTTP API.
pub mod consul;
/// What answers mean that are no success.
pub mod error;
/// Rings, members and keys.
pub mod gossip;
/// Nomad's HTTP API.
pub mod nomad;

/// Between two polls.
const POLL: Duration = Duration::from_millis(500);
/// The cluster must be whole for this long: autopilot looks at its servers every two seconds, so that a shorter time
/// could still show the state of before a restart.
const SETTLE: Duration = Duration::from_secs(5);

/// For one request.
const LOOK: Duration = Duration::from_secs(5);

/// A server that has found its leader may not have read yet what tokens there are. When it knows none for this long, there is none.
const UNKNOWN: Duration = Duration::from_secs(3);

/// What a gate asks.
#[derive(Clone, Debug)]
pub struct Question {
    /// The product's HTTP address on this host.
    pub url: String,
    /// After this long without a whole cluster the gate refuses.
    pub timeout: Duration,
    /// How many voters there should be; `None`: as many as autopilot knows.
    pub voters: Option<usize>,
    /// The tokens to ask with, where ACLs are on: the first that the cluster knows. If it knows none, the question is asked without.
    pub tokens: Vec<Secret>,
    /// Who signed the server's certificate (PEM), where it is asked by `https`.
    pub ca: Option<Vec<u8>>,
}

/// The answer of `/v1/operator/autopilot/health`, Consul's and Nomad's (HTTP 200 when healthy, 429 when not).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AutopilotHealth {
    /// All servers are.
    pub healthy: bool,
    /// Servers that may fail before quorum is lost.
    pub failure_tolerance: usize,
    /// The servers.
    #[serde(default)]
    pub servers: Vec<ServerHealth>,
}

/// One server.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServerHealth {
    /// Node name.
    pub name: String,
    /// `alive`, `left`, `failed`.
    pub serf_status: String,
    /// It votes.
    pub voter: bool,
    /// Autopilot's opinion.
    pub healthy: bool,
}

impl AutopilotHealth {
    /// A server of this name is a healthy voter.
    fn votes(&self, name: &str) -> bool {
        self.servers.iter().any(|s| s.name == name && s.voter && s.healthy && s.serf_status == "alive")
    }

    /// `Ok` where all voters are healthy and the failure tolerance of their number is there; else what is missing.
    pub fn whole(&self, voters: Option<usize>) -> Result<(), String> {
        let sick: Vec<&str> =
            self.servers.iter().filter(|s| !s.healthy || s.serf_status != "alive").map(|s| s.name.as_str()).collect();
        if !sick.is_empty() {
            return Err(format!("not healthy: {}", sick.join(", ")));
        }
        let have = self.servers.iter().filter(|s| s.voter).count();
        let want = voters.unwrap_or(have);
        if have < want || have == 0 {
            return Err(format!("{have} of {want} voters"));
        }
        let tolerance = have.saturating_sub(1) / 2;
        if !self.healthy || self.failure_tolerance < tolerance {
            return Err(format!("failure tolerance {} of {tolerance}", self.failure_tolerance));
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
struct AgentSelf {
    #[serde(rename = "Stats", alias = "stats", default)]
    stats: indexmap::IndexMap<String, indexmap::IndexMap<String, String>>,
    #[serde(rename = "Member", alias = "member", default)]
    member: Member,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Member {
    #[serde(rename = "Name")]
    name: String,
}

/// Why the cluster is not known to be whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotWhole {
    /// Someone asked to stop the wait; why.
    Stopped(String),
    /// The server on this host is what is missing, or it cannot see the cluster.
    Here(String),
    /// The server on this host is a healthy voter; others are not.
    Elsewhere(String),
    /// It could not be asked.
    Broken(String),
}

/// One look's finding: what is missing, and whether it is this host's server.
#[derive(Debug)]
struct Missing {
    why: String,
    here: bool,
    /// What the answer means, where there was one.
    kind: Option<Kind>,
}

impl From<String> for Missing {
    fn from(why: String) -> Self {
        Self { why, here: true, kind: None }
    }
}

/// Blocks until the cluster is whole, seen from this host, for [`SETTLE`]; else says what was missing last.
pub fn wait_healthy(
    gate: Gate,
    question: &Question,
    stopped: &dyn Fn() -> Option<String>,
    waiting: &dyn Fn(&str),
) -> Result<(), NotWhole> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| NotWhole::Broken(format!("cannot start a runtime: {e}")))?;
    let client = client(question.ca.as_deref()).map_err(NotWhole::Broken)?;
    let deadline = Instant::now() + question.timeout;
    let mut whole_since: Option<Instant> = None;
    let mut unknown_since = None;
    let mut said = Missing::from(String::new());
    loop {
        if let Some(why) = stopped() {
            return Err(NotWhole::Stopped(why));
        }
        match runtime.block_on(look(&client, gate, question, &mut unknown_since)) {
            Ok(()) => {
                let since = *whole_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SETTLE {
                    return Ok(());
                }
            }
            Err(missing) => {
                whole_since = None;
                if missing.why != said.why {
                    waiting(&format!("{} ({})", product(gate), missing.why));
                }
                said = missing;
            }
        }
        if Instant::now() > deadline {
            let why = if said.why.is_empty() { "not whole for long enough" } else { &said.why };
            let why = format!("{} is not whole after {} s: {why}", product(gate), question.timeout.as_secs());
            return Err(if said.here { NotWhole::Here(why) } else { NotWhole::Elsewhere(why) });
        }
        std::thread::sleep(POLL);
    }
}

fn product(gate: Gate) -> &'static str {
    match gate {
        Gate::Consul => "consul",
        Gate::Nomad => "nomad",
    }
}

fn client(ca: Option<&[u8]>) -> Result<reqwest::Client, String> {
    let trusted = ca.map(reqwest::Certificate::from_pem_bundle).transpose();
    let trusted = trusted.map_err(|e| format!("the gate's authority is no certificate: {}", http::cause(&e)))?;
    reqwest::Client::builder()
        .timeout(LOOK)
        .no_proxy()
        // Nobody else's certificates count; and over plain HTTP a host without a CA store must not fail here.
        .tls_certs_only(trusted.unwrap_or_default())
        .build()
        .map_err(|e| format!("cannot make an HTTP client: {e}"))
}

/// One look. `unknown_since` is for the next one: since when the server knows a leader, and none of the tokens.
async fn look(
    client: &reqwest::Client,
    gate: Gate,
    question: &Question,
    unknown_since: &mut Option<Instant>,
) -> Result<(), Missing> {
    let before = unknown_since.take();
    let look = async |token: Option<&Secret>| look_with(client, gate, question, token).await;
    // Nomad says the same of a token that it does not know and of one without the right.
    let denies = |kind: Option<Kind>| gate == Gate::Nomad && kind == Some(Kind::Denied);
    let (mut unknown, mut denied) = (false, None);
    for token in &question.tokens {
        match look(Some(token)).await {
            Err(Missing { kind: Some(Kind::NotBootstrapped), .. }) => {
                return look_without_rights(client, gate, question).await;
            }
            // Before its first use, and while ACLs let everybody in, a token may not be there.
            Err(Missing { kind: Some(Kind::UnknownToken), .. }) => unknown = true,
            Err(missing) if denies(missing.kind) => denied = denied.or(Some(missing)),
            answer => return answer,
        }
    }
    // A server that has just started knows no token: whoever asks it without one would be told that he may not.
    if unknown {
        has_leader(client, gate, question).await?;
        let since = *unknown_since.insert(before.unwrap_or_else(Instant::now));
        if since.elapsed() < UNKNOWN {
            return Err("this server knows none of the tokens yet".to_owned().into());
        }
    }
    match look(None).await {
        Err(missing) if denies(missing.kind) => {
            if is_fresh_nomad(client, question).await? {
                return look_without_rights(client, gate, question).await;
            }
            Err(denied.unwrap_or(missing))
        }
        answer => answer,
    }
}

/// Whether Nomad's ACLs are on, and nobody has bootstrapped them: the same question as
/// [`Nomad::is_bootstrapped`](nomad::Nomad::is_bootstrapped).
async fn is_fresh_nomad(client: &reqwest::Client, question: &Question) -> Result<bool, Missing> {
    let request = client.put(format!("{}/v1/acl/bootstrap", question.url.trim_end_matches('/')));
    match send(Gate::Nomad, request.body(nomad::probe().to_string()), "/v1/acl/bootstrap").await {
        Err(missing) if matches!(missing.kind, Some(Kind::Bootstrapped | Kind::ResetFile)) => Ok(false),
        // The leader's ACLs are still off.
        Err(missing) if missing.kind == Some(Kind::AclOff) || nomad::takes_no_probe(&missing.why) => Ok(true),
        Err(missing) => Err(missing),
        Ok(_) => Err("the servers are too old for these ACLs".to_owned().into()),
    }
}

async fn look_with(
    client: &reqwest::Client,
    gate: Gate,
    question: &Question,
    token: Option<&Secret>,
) -> Result<(), Missing> {
    // This server first: autopilot may still hold the state of before its restart.
    let body = get(client, gate, question, "/v1/agent/self", token).await?;
    let agent: AgentSelf = serde_json::from_slice(&body).map_err(|e| format!("/v1/agent/self: {e}"))?;
    if let Some(raft) = agent.stats.get("raft") {
        let state = raft.get("state").map_or("", String::as_str);
        if !matches!(state, "Leader" | "Follower") {
            return Err(format!("this server is {}", if state.is_empty() { "starting" } else { state }).into());
        }
        let index = |name: &str| raft.get(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        if index("applied_index") < index("commit_index") {
            return Err("this server is catching up".to_owned().into());
        }
    }
    let body = get(client, gate, question, "/v1/operator/autopilot/health", token).await?;
    let health: AutopilotHealth =
        serde_json::from_slice(&body).map_err(|e| format!("/v1/operator/autopilot/health: {e}"))?;
    let why = health.whole(question.voters);
    why.map_err(|why| Missing { why, here: !health.votes(&agent.member.name), kind: None })
}

/// ACLs are on and not bootstrapped yet: no token gives the right to ask for health. What needs none must do: a leader, and
/// all voters.
async fn look_without_rights(client: &reqwest::Client, gate: Gate, question: &Question) -> Result<(), Missing> {
    has_leader(client, gate, question).await?;
    let body = get(client, gate, question, "/v1/status/peers", None).await?;
    let peers: Vec<String> = serde_json::from_slice(&body).map_err(|e| format!("/v1/status/peers: {e}"))?;
    match question.voters {
        Some(voters) if peers.len() < voters => Err(format!("{} of {voters} voters", peers.len()).into()),
        _ => Ok(()),
    }
}

/// Whether this server knows a leader, which it tells everybody.
async fn has_leader(client: &reqwest::Client, gate: Gate, question: &Question) -> Result<(), Missing> {
    let body = get(client, gate, question, "/v1/status/leader", None).await?;
    match serde_json::from_slice::<String>(&body) {
        Ok(leader) if !leader.is_empty() => Ok(()),
        _ => Err("there is no leader".to_owned().into()),
    }
}

async fn get(
    client: &reqwest::Client,
    gate: Gate,
    question: &Question,
    path: &str,
    token: Option<&Secret>,
) -> Result<Vec<u8>, Missing> {
    let url = question.url.trim_end_matches('/');
    let mut request = client.get(format!("{url}{path}"));
    if let Some(value) = token.and_then(|token| http::bearer(token.expose())) {
        // Each product takes its own; both take this one.
        request = request.header("Authorization", value);
    }
    send(gate, request, path).await
}

async fn send(gate: Gate, request: reqwest::RequestBuilder, path: &str) -> Result<Vec<u8>, Missing> {
    let answer = request.send().await.map_err(unanswered)?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|e| format!("{path}: {}", http::reason(e, LOOK)))?;
    // 429 is autopilot's way to say that it is not healthy, with the same body.
    if status.is_success() || status.as_u16() == 429 {
        return Ok(body.to_vec());
    }
    let text = String::from_utf8_lossy(&body);
    let said: String = text.trim().chars().take(200).collect();
    let why = format!("{path}: HTTP {}: {said}", status.as_u16());
    let kind = match gate {
        Gate::Consul => consul::kind(status.as_u16(), &text),
        Gate::Nomad => nomad::kind(status.as_u16(), &text),
    };
    Err(Missing { why, here: true, kind: Some(kind) })
}

/// Nobody answered. A server that is about to start need not say more; one whose certificate is not taken must.
fn unanswered(error: reqwest::Error) -> String {
    let at = error.url().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    let cause = http::cause(&error);
    if cause.contains("certificate") { format!("no answer from {at}: {cause}") } else { format!("no answer from {at}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(json: serde_json::Value) -> AutopilotHealth {
        serde_json::from_value(json).unwrap()
    }

    fn server(name: &str, healthy: bool, voter: bool) -> serde_json::Value {
        serde_json::json!({"Name": name, "SerfStatus": "alive", "Voter": voter, "Healthy": healthy, "ID": "x"})
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let question = Question {
            url: "http://127.0.0.1:9".into(),
            timeout: Duration::from_mins(1),
            voters: Some(3),
            tokens: Vec::new(),
            ca: None,
        };
        let stopped = || Some("interrupted".to_owned());
        let ended = wait_healthy(Gate::Consul, &question, &stopped, &|_| {});
        assert_eq!(ended, Err(NotWhole::Stopped("interrupted".into())));
        // A server that does not answer is this host's own affair.
        let question = Question { timeout: Duration::ZERO, ..question };
        let ended = wait_healthy(Gate::Consul, &question, &|| None, &|_| {});
        let NotWhole::Here(why) = ended.unwrap_err() else { panic!("it is here") };
        assert!(why.contains("no answer from http://127.0.0.1:9"), "{why}");
    }

    #[test]
    fn a_leader_is_not_enough() {
        let three = health(serde_json::json!({"Healthy": true, "FailureTolerance": 1, "Servers":
            [server("a", true, true), server("b", true, true), server("c", true, true)]}));
        assert_eq!(three.whole(Some(3)), Ok(()));
        assert_eq!(three.whole(Some(5)), Err("3 of 5 voters".into()));
        let sick = health(serde_json::json!({"Healthy": false, "FailureTolerance": 0, "Servers":
            [server("a", true, true), server("b", false, true), server("c", true, true)]}));
        assert_eq!(sick.whole(Some(3)), Err("not healthy: b".into()));
        // Whose fault it is decides whether a server that was restarted goes back to its old files.
        assert_eq!(["a", "b", "c", "", "d"].map(|name| sick.votes(name)), [true, false, true, false, false]);
        let joining = health(serde_json::json!({"Healthy": true, "FailureTolerance": 0, "Servers":
            [server("a", true, true), server("b", true, true), server("c", true, false)]}));
        assert_eq!(joining.whole(Some(3)), Err("2 of 3 voters".into()));
        assert!(!joining.votes("c"));
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    /// Looks once with two tokens at a server that gives these answers; its requests, and what the look found.
    fn looked(gate: Gate, answers: &[String]) -> (Vec<String>, Result<(), Missing>) {
        looked_again(gate, None, answers)
    }

    /// The same, of a server that has not known the tokens for a while.
    fn looked_again(
        gate: Gate,
        unknown_for: Option<Duration>,
        answers: &[String],
    ) -> (Vec<String>, Result<(), Missing>) {
        let server = http::tests::Server::new(answers.iter());
        let tokens = vec![Secret::new("own"), Secret::new("management")];
        let question = Question { url: server.url(""), timeout: Duration::ZERO, voters: Some(3), tokens, ca: None };
        let mut unknown = unknown_for.and_then(|time| Instant::now().checked_sub(time));
        let found =
            http::block_on(async { look(&client(None).unwrap(), gate, &question, &mut unknown).await }).unwrap();
        let asked = |request: &String| {
            let token = request.lines().find_map(|line| line.strip_prefix("authorization: Bearer "));
            format!("{} {}", request.split(' ').nth(1).unwrap(), token.unwrap_or("-"))
        };
        (server.requests().iter().map(asked).collect(), found)
    }

    #[test]
    fn the_first_token_that_is_known_asks() {
        let unknown = answer("403 Forbidden", "rpc error making call: ACL not found");
        let agent = answer("200 OK", r#"{"Stats": {"raft": {"state": "Leader"}}, "Member": {"Name": "a"}}"#);
        let whole = serde_json::json!({"Healthy": true, "FailureTolerance": 1, "Servers":
            [server("a", true, true), server("b", true, true), server("c", true, true)]});
        let whole = answer("200 OK", &whole.to_string());
        let (asked, found) = looked(Gate::Consul, &[unknown.clone(), agent.clone(), whole.clone()]);
        assert!(found.is_ok(), "{found:?}");
        assert_eq!(
            asked,
            ["/v1/agent/self own", "/v1/agent/self management", "/v1/operator/autopilot/health management"]
        );
        // While everything is allowed none need be known.
        let (leader, none) = (answer("200 OK", "\"10.0.0.1:8300\""), answer("200 OK", "\"\""));
        let answers = [unknown.clone(), unknown.clone(), leader.clone(), agent, whole];
        let (asked, found) = looked_again(Gate::Consul, Some(Duration::from_secs(4)), &answers);
        let without = ["/v1/status/leader -", "/v1/agent/self -", "/v1/operator/autopilot/health -"];
        assert!(found.is_ok() && asked[2..] == without, "{asked:?}");
        // A server that has just started knows none either.
        let (asked, found) = looked(Gate::Consul, &[unknown.clone(), unknown.clone(), none]);
        assert_eq!((found.unwrap_err().why.as_str(), asked.len()), ("there is no leader", 3));
        for unknown_for in [None, Some(Duration::from_secs(1))] {
            let answers = [unknown.clone(), unknown.clone(), leader.clone()];
            let (asked, found) = looked_again(Gate::Consul, unknown_for, &answers);
            let said = found.unwrap_err().why;
            assert_eq!((said.as_str(), asked.len()), ("this server knows none of the tokens yet", 3));
        }
        let (_, found) =
            looked(Gate::Consul, &[answer("403 Forbidden", "Permission denied: lacks permission 'agent:read'")]);
        assert!(found.unwrap_err().why.contains("Permission denied"));
    }

    #[test]
    fn before_the_bootstrap_a_leader_and_all_voters_must_do() {
        let fresh =
            answer("403 Forbidden", "ACL system must be bootstrapped before making any requests that …: ACL not found");
        let (leader, none) = (answer("200 OK", "\"10.0.0.1:8300\""), answer("200 OK", "\"\""));
        let peers = |count: usize| answer("200 OK", &serde_json::json!(vec!["10.0.0.1:8300"; count]).to_string());
        let (asked, found) = looked(Gate::Consul, &[fresh.clone(), leader.clone(), peers(3)]);
        assert!(found.is_ok(), "{found:?}");
        assert_eq!(asked[1..], ["/v1/status/leader -", "/v1/status/peers -"]);
        assert_eq!(looked(Gate::Consul, &[fresh.clone(), none]).1.unwrap_err().why, "there is no leader");
        assert_eq!(looked(Gate::Consul, &[fresh, leader, peers(2)]).1.unwrap_err().why, "2 of 3 voters");
    }

    #[test]
    fn nomad_says_the_same_of_unknown_tokens_and_of_rights() {
        let denied = answer("403 Forbidden", "Permission denied");
        let agent = answer("200 OK", r#"{"stats": {"raft": {"state": "Leader"}}, "member": {"Name": "a"}}"#);
        let whole = serde_json::json!({"Healthy": true, "FailureTolerance": 1, "Servers":
            [server("a", true, true), server("b", true, true), server("c", true, true)]});
        let whole = answer("200 OK", &whole.to_string());
        let (asked, found) = looked(Gate::Nomad, &[denied.clone(), agent, whole]);
        assert!(found.is_ok(), "{found:?}");
        assert_eq!(asked[1..], ["/v1/agent/self management", "/v1/operator/autopilot/health management"]);
        // Nobody may ask: whether that is so because nobody has bootstrapped, the bootstrap tells without being done.
        let (leader, peers) = (answer("200 OK", "\"10.0.0.1:4647\""), answer("200 OK", r#"["a", "b", "c"]"#));
        for fresh in [answer("400 Bad Request", "invalid acl token"), answer("400 Bad Request", "ACL support disabled")]
        {
            let answers = [denied.clone(), denied.clone(), denied.clone(), fresh, leader.clone(), peers.clone()];
            let (asked, found) = looked(Gate::Nomad, &answers);
            assert!(found.is_ok(), "{found:?}");
            assert_eq!(asked[3..], ["/v1/acl/bootstrap -", "/v1/status/leader -", "/v1/status/peers -"]);
        }
        let done = answer("400 Bad Request", "ACL bootstrap already done (reset index: 8)");
        let (_, found) = looked(Gate::Nomad, &[denied.clone(), denied.clone(), denied, done]);
        assert!(found.unwrap_err().why.contains("Permission denied"));
    }
}
