//! `controller rotate` on a real cluster, under a writer: killed at each of its steps, and ended by the same command.
//!
//! `make test-faults` (`ROLLCALL_TEST_KILLS` is set) kills each rotation, of keys and of tokens, after each of its steps; otherwise it is
//! some of them.

use std::time::Duration;

use rollcall_tests::{Borrowed, Lab, Operated, Project, Said, kill_after, killed, kills, say};
use serde_json::Value;

const CLIENT: usize = Operated::SERVERS;
const GOSSIP: [&str; 2] = ["rotate", "gossip"];
const TOKENS: [&str; 2] = ["rotate", "tokens"];

/// Writes twice a second until it is stopped, through the client's agent, and notes what failed.
struct Writer<'a>(&'a Operated);

impl<'a> Writer<'a> {
    fn start(cluster: &'a Operated) -> Self {
        let said =
            cluster.say(&["token", "create", "writer", "--product", "consul", "--policy", "rollcall-operator"]).ok();
        let token = said.out.trim_end().to_owned();
        let line = format!(
            "umask 077; echo 'header = \"X-Consul-Token: {token}\"' > /run/writer.curl; rm -f /run/writer.failed /run/writer.done; \
             systemd-run --quiet --unit writer sh -c 'n=0; while sleep 0.5; do n=$((n + 1)); \
             curl --silent --show-error --fail --max-time 10 --config /run/writer.curl --request PUT --data $n http://127.0.0.1:8500/v1/kv/writer \
             >> /run/writer.done 2>> /run/writer.failed; done'"
        );
        cluster.hosts.root(CLIENT, &line).ok();
        Self(cluster)
    }

    /// No write failed, and there were some.
    #[track_caller]
    fn end(self) {
        self.0.hosts.root(CLIENT, "systemctl stop writer").ok();
        assert_eq!(self.0.hosts.read(CLIENT, "/run/writer.failed"), "");
        assert!(self.0.hosts.read(CLIENT, "/run/writer.done").matches("true").count() > 10);
        self.0.say(&["token", "revoke", "writer", "--product", "consul"]).ok();
    }
}

#[test]
fn a_rotation_that_is_killed_anywhere_is_ended_by_the_same_command() {
    let cluster = Operated::new();
    let since = cluster.running_since();
    let writer = Writer::start(&cluster);
    gossip(&cluster);
    tokens(&cluster);
    writer.end();
    cluster.is_silent();
    assert_eq!(cluster.running_since(), since, "something restarted");
    whoever_is_away_stops_it(&cluster);
    what_the_store_has_lost_comes_back(&cluster);
}

/// The keys of all rings.
fn keys(cluster: &Operated) -> Vec<String> {
    let rings = cluster.list("operator/keyring");
    let mut keys: Vec<String> =
        rings.iter().flat_map(|ring| ring["Keys"].as_object().expect("a mapping").keys().cloned()).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn gossip(cluster: &Operated) {
    const FEW: [(usize, u64); 4] = [(2, 400), (3, 700), (5, 500), (6, 200)];
    let old = cluster.secret("consul/gossip").expect("it was made with the cluster");
    assert_eq!(keys(cluster), [old.as_str()]);
    let mut next: Option<String> = None;
    // While members get the key, use it, have it in their files, and lose the old one.
    for (lines, delay) in FEW {
        let begun = next.is_some();
        // One that goes on says so first.
        let lines = lines + usize::from(begun);
        let said = cluster.kill_after(&GOSSIP, lines, Duration::from_millis(delay));
        assert_eq!((said.len(), said[0].contains("was begun before")), (lines, begun), "{said:?}");
        let now = cluster.secret("consul/gossip-next");
        if let (Some(next), Some(now)) = (&next, &now) {
            assert_eq!(next, now, "it goes on with its key");
        }
        // None: the kill came when all was done, and what follows is another rotation.
        next = now;
    }
    let said = gossip_ends(cluster, next);
    assert_ne!(cluster.secret("consul/gossip").as_deref(), Some(old.as_str()));
    cluster.is_silent();
    let steps = said.out.lines().filter(|line| !line.contains("was begun before")).count();
    let each = kills(steps, &[], [0, 300, 800]);
    for &(line, delay) in &each {
        cluster.kill_after(&GOSSIP, line, delay);
        gossip_ends(cluster, cluster.secret("consul/gossip-next"));
    }
    killed("`rotate gossip` of Consul", FEW.len() + each.len());
}

/// The same command again: the cluster has the next key where one was made, otherwise another, and no other key.
#[track_caller]
fn gossip_ends(cluster: &Operated, next: Option<String>) -> Said {
    let before = cluster.secret("consul/gossip").expect("it has one");
    let said = cluster.say(&GOSSIP).ok().never_says(&before);
    let now = cluster.secret("consul/gossip").expect("it has one");
    if let Some(next) = next {
        let said = said.clone().says("goes on with its key").never_says(&next);
        assert_eq!(now, next, "{}", said.report());
    } else {
        assert_ne!(now, before, "{}", said.report());
    }
    assert_eq!(keys(cluster), [now.as_str()]);
    assert_eq!(cluster.secret("consul/gossip-next"), None);
    for host in 0..=CLIENT {
        let file: Value = serde_json::from_str(&cluster.hosts.read(host, "/etc/consul.d/gossip.json")).expect("JSON");
        assert_eq!(file["encrypt"], now.as_str());
    }
    said
}

/// Each agent uses the token of the store, which works; there are as many tokens as before, and nothing is left over.
#[track_caller]
fn all_is_right(cluster: &Operated, tokens: usize) {
    let dns = cluster.secret("consul/token/dns").expect("it is there");
    for host in 0..=CLIENT {
        let name = format!("consul/token/agent/{}", cluster.hosts.name(host));
        let own = cluster.secret(&name).expect("it is there");
        let has = cluster.agent_tokens(host);
        assert_eq!((has["agent"].as_str(), has["dns"].as_str()), (Some(own.as_str()), Some(dns.as_str())), "{name}");
        cluster.request(host, &own, "agent/self").ok();
    }
    let all = cluster.list("acl/tokens");
    assert_eq!(all.len(), tokens, "{all:?}");
    let names = cluster.secrets("consul/");
    assert!(!names.iter().any(|name| name.contains("-next")), "{names:?}");
}

fn tokens(cluster: &Operated) {
    let count = cluster.list("acl/tokens").len();
    let values = || -> Vec<(String, Option<String>)> {
        let names =
            cluster.secrets("consul/").into_iter().filter(|n| n.contains("/token/") || n.ends_with("/management"));
        names.map(|name| (name.clone(), cluster.secret(&name))).collect()
    };
    let before = values();
    let whole = cluster.say(&TOKENS).ok();
    for (name, value) in &before {
        whole.clone().says(&format!("rotated: {name}\n")).never_says(value.as_deref().expect("it has a value"));
        assert_ne!(&cluster.secret(name), value, "{name}");
    }
    all_is_right(cluster, count);
    // One alone.
    let name = format!("consul/token/agent/{}", cluster.hosts.name(CLIENT));
    cluster.say(&["rotate", "tokens", "--only", &name]).ok();
    all_is_right(cluster, count);
    let wrong = cluster.say(&["rotate", "tokens", "--only", "consul/token/agent/nobody"]).ends(1);
    wrong.says("is none of the tokens that are rotated");
    // Before the first step, while tokens are made, when the store has them, when the old ones go; the same with the management token.
    let lines = whole.out.lines().count();
    let each = kills(lines, &[1, 3, lines - 3], [0, 900, 2500]);
    for &(line, delay) in &each {
        let said = cluster.kill_after(&TOKENS, line, delay);
        // Whatever was killed: every agent's token works.
        for host in 0..=CLIENT {
            let has = cluster.agent_tokens(host);
            cluster.request(host, has["agent"].as_str().expect("it has one"), "agent/self").ok();
        }
        let next: Vec<(String, Option<String>)> = cluster
            .secrets("consul/")
            .into_iter()
            .filter(|name| name.contains("-next"))
            .map(|name| (name.replace("-next", ""), cluster.secret(&name)))
            .collect();
        let ended = cluster.say(&TOKENS).ok();
        for (name, value) in next {
            assert_eq!(cluster.secret(&name), value, "{name}, killed after {said:?}: {}", ended.report());
        }
        all_is_right(cluster, count);
    }
    killed("`rotate tokens` of Consul", each.len());
}

fn whoever_is_away_stops_it(cluster: &Operated) {
    let name = cluster.hosts.name(CLIENT).to_owned();
    let (key, dns) = (cluster.secret("consul/gossip"), cluster.secret("consul/token/dns"));
    let own = cluster.secret(&format!("consul/token/agent/{name}"));
    cluster.hosts.root(CLIENT, "systemctl stop consul").ok();
    cluster.say(&GOSSIP).ends(4).says(&name).says("nothing was changed");
    assert_eq!((cluster.secret("consul/gossip"), cluster.secret("consul/gossip-next")), (key, None));
    // Its token and that of DNS stay as they are; the others are rotated.
    let part = cluster.say(&TOKENS).ends(4).says(&name);
    part.says(&format!("rotated: consul/token/agent/{}", cluster.hosts.name(0)));
    assert_eq!((cluster.secret("consul/token/dns"), cluster.secret(&format!("consul/token/agent/{name}"))), (dns, own));
    cluster.hosts.root(CLIENT, "systemctl start consul").ok();
    let rest = cluster.say(&TOKENS).ok().says("was begun before");
    rest.says(&format!("rotated: consul/token/agent/{name}")).says("rotated: consul/token/dns");
    cluster.is_silent();
}

/// As docs/rotation.md says it, line by line; operators' tokens and the management token are lost in tokens.rs.
fn what_the_store_has_lost_comes_back(cluster: &Operated) {
    let count = cluster.list("acl/tokens").len();
    let name = format!("consul/token/agent/{}", cluster.hosts.name(CLIENT));
    let lose = |name: &str| {
        let old = cluster.secret(name).expect("it is there");
        cluster.say(&["secret", "delete", name, "--force"]).ok();
        old
    };
    // Tokens of agents are made anew, and the mark.
    let (own, dns) = (lose(&name), lose("consul/token/dns"));
    lose("consul/formed");
    cluster.run(&[]).ok().never_says(&own).never_says(&dns);
    assert!(
        cluster.secret(&name).is_some_and(|new| new != own)
            && cluster.secret("consul/token/dns").is_some_and(|new| new != dns)
    );
    assert!(cluster.secret("consul/formed").is_some());
    all_is_right(cluster, count);
    // The gossip key is where members keep it, and nothing is written meanwhile.
    let key = lose("consul/gossip");
    let before = cluster.hosts.read(CLIENT, "/etc/consul.d/gossip.json");
    cluster.run(&[]).ends(4).says("the store has lost the cluster's key").never_says(&key);
    assert_eq!(cluster.hosts.read(CLIENT, "/etc/consul.d/gossip.json"), before);
    let ring: Vec<String> =
        serde_json::from_str(&cluster.hosts.read(0, "/var/lib/consul/serf/local.keyring")).expect("a list");
    assert_eq!(ring[0], key);
    cluster.project.put("consul/gossip", &ring[0]);
    cluster.is_silent();
}

const NOMAD: &str = "nomad_tls: true\nnomad_encrypt: true\nnomad_acl: true\n";

/// Three servers of Nomad, secured. Their store is AWS's, which keeps what was deleted for as long as it does by default.
struct Nomads {
    hosts: Borrowed,
    project: Project,
    /// A cluster of its own each time: the cloud of a lab that stays up remembers the one before.
    cluster: String,
}

impl Nomads {
    fn new() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(3, "");
        let status = lab.status();
        let vars = format!(
            "nomad_mirror: {}\nnomad_bind_cidr: {}\nbase_time_sync: chrony\n{NOMAD}",
            status.mirror, status.subnet
        );
        let project = Project::new(&lab, hosts.hosts())
            .file("inventory.yaml", &hosts.inventory(&[("nomad_servers", 3)]))
            .file("group_vars/all.yaml", &vars)
            .file("servers.yaml", "- hosts: nomad_servers\n  become: true\n  roles: [nomad]\n");
        let cluster = format!("nomads-{}", std::process::id());
        project.add_settings(&format!("cluster: {cluster}\nstore: aws-secretsmanager\n"));
        let nomads = Self { hosts, project, cluster };
        nomads.project.controller(["run", "servers.yaml"]).ok();
        nomads
    }

    fn say(&self, words: &[&str]) -> Said {
        say(&self.project, words)
    }

    fn secret(&self, name: &str) -> Option<String> {
        let said = self.project.controller(["secret", "get", name]);
        (said.code == 0).then_some(said.out)
    }

    /// The store loses a secret for good.
    #[track_caller]
    fn lose(&self, name: &str) -> String {
        let old = self.secret(name).expect("it is there");
        self.say(&["secret", "delete", name, "--force"]).ok();
        let body = format!(r#"{{"SecretId": "rollcall/{}/{name}", "ForceDeleteWithoutRecovery": true}}"#, self.cluster);
        let call = format!(
            "curl --silent --show-error --fail-with-body \"$AWS_ENDPOINT_URL/\" --header 'X-Amz-Target: secretsmanager.DeleteSecret' \
             --header 'Content-Type: application/x-amz-json-1.1' --data '{body}' --header \"Authorization: AWS4-HMAC-SHA256 \
             Credential=lab/20260101/$AWS_REGION/secretsmanager/aws4_request, SignedHeaders=host, Signature=0\""
        );
        self.project.shell(&call).ok();
        old
    }

    fn request(&self, host: usize, token: &str, more: &str) -> Said {
        let line = format!(
            "curl --silent --show-error --fail --cacert /etc/nomad.d/tls/ca.pem --header 'X-Nomad-Token: {token}' https://127.0.0.1:4646/v1/{more}"
        );
        self.hosts.root(host, &line)
    }

    #[track_caller]
    fn list(&self, path: &str) -> Value {
        self.request(0, &self.secret("nomad/management").expect("it is there"), path).ok().json()
    }

    #[track_caller]
    fn is_silent(&self) {
        let again = self.project.controller(["run", "servers.yaml", "--json"]).ok();
        assert_eq!(again.counted("changed") + again.counted("failed"), 0, "{}", again.report());
    }
}

#[test]
fn nomads_keys_and_tokens_are_rotated_and_its_operators_have_tokens() {
    let nomads = Nomads::new();
    nomads.is_silent();
    let servers: Vec<String> =
        (0..3).map(|host| nomads.hosts.root(host, "systemctl show --property MainPID nomad").ok().out).collect();

    // Tokens of people.
    let create = ["token", "create", "ann", "--product", "nomad", "--ttl", "8h", "--policy"];
    let said = nomads.say(&[&create[..], &["rollcall-operator-read"]].concat()).ok();
    let ann = said.out.trim_end().to_owned();
    assert!(ann.len() == 36 && !said.err.contains(&ann), "{}", said.report());
    nomads.request(1, &ann, "jobs").ok();
    nomads.request(1, &ann, "acl/tokens").ends(22);
    assert_eq!(nomads.secret("nomad/token/operator/ann"), None);
    nomads
        .say(&["token", "list", "--product", "nomad"])
        .ok()
        .says("ann")
        .says("rollcall-operator-read")
        .never_says(&ann);
    nomads.say(&[&create[..], &["nope"]].concat()).ends(4).says("nope");
    nomads
        .say(&["token", "create", "all", "--product", "nomad", "--management", "--store"])
        .ok()
        .says("nomad/token/operator/all");
    let all = nomads.secret("nomad/token/operator/all").expect("it is kept");
    nomads.request(2, &all, "acl/tokens").ok();
    // One that the store has lost goes on counting, and can be revoked.
    nomads.say(&["secret", "delete", "nomad/token/operator/all", "--force"]).ok();
    nomads.request(2, &all, "acl/tokens").ok();
    for (name, secret) in [("ann", &ann), ("all", &all)] {
        nomads.say(&["token", "revoke", name, "--product", "nomad"]).ok().says("is revoked");
        nomads.request(0, secret, "jobs").ends(22);
    }
    assert_eq!(nomads.secret("nomad/token/operator/all"), None);

    nomads_gossip(&nomads);
    nomads_tokens(&nomads);
    nomads.is_silent();
    let since: Vec<String> =
        (0..3).map(|host| nomads.hosts.root(host, "systemctl show --property MainPID nomad").ok().out).collect();
    assert_eq!(since, servers, "something restarted");
    what_nomads_store_has_lost_comes_back(&nomads);
}

/// The gossip key, killed while servers get it, and while the old one goes.
fn nomads_gossip(nomads: &Nomads) {
    const FEW: [usize; 2] = [2, 4];
    let mut next = None;
    for lines in FEW {
        kill_after(&nomads.project, &GOSSIP, lines, Duration::from_millis(1500));
        let now = nomads.secret("nomad/gossip-next").expect("it is not done");
        assert_eq!(*next.get_or_insert_with(|| now.clone()), now);
    }
    nomads_gossip_ends(nomads, next);
    // Another rotation makes another key under the name that was deleted.
    let whole = nomads_gossip_ends(nomads, None);
    nomads.is_silent();
    let each = kills(whole.out.lines().count(), &[], [0, 1500, 600]);
    for &(line, delay) in &each {
        kill_after(&nomads.project, &GOSSIP, line, delay);
        nomads_gossip_ends(nomads, nomads.secret("nomad/gossip-next"));
    }
    killed("`rotate gossip` of Nomad", FEW.len() + each.len());
}

/// The same command again: the servers have the next key where one was made, otherwise another, and no other key.
#[track_caller]
fn nomads_gossip_ends(nomads: &Nomads, next: Option<String>) -> Said {
    let before = nomads.secret("nomad/gossip").expect("it has one");
    let said = nomads.say(&GOSSIP).ok().never_says(&before);
    let key = nomads.secret("nomad/gossip").expect("it has one");
    if let Some(next) = next {
        assert_eq!(key, next, "{}", said.report());
    } else {
        assert_ne!(key, before, "{}", said.report());
    }
    assert_eq!(nomads.secret("nomad/gossip-next"), None);
    let ring = nomads.list("agent/keyring/list");
    assert_eq!(ring["Keys"].as_object().expect("a mapping").keys().collect::<Vec<_>>(), [&key]);
    for host in 0..3 {
        let kept: Vec<String> =
            serde_json::from_str(&nomads.hosts.read(host, "/var/lib/nomad/server/serf.keyring")).expect("a list");
        assert_eq!(kept, [key.as_str()]);
        assert!(nomads.hosts.read(host, "/etc/nomad.d/gossip.json").contains(&key));
    }
    said
}

/// Tokens, as a whole, and killed at moments of each half.
fn nomads_tokens(nomads: &Nomads) {
    let names = ["nomad/token/server", "nomad/management"];
    let values = || names.map(|name| nomads.secret(name));
    let count = nomads.list("acl/tokens").as_array().map(Vec::len);
    let ends = |before: [Option<String>; 2]| {
        let ended = nomads.say(&TOKENS).ok();
        assert!(values() != before, "{}", ended.report());
        let tokens = nomads.list("acl/tokens");
        assert_eq!(tokens.as_array().map(Vec::len), count, "{tokens}");
        assert!(!tokens.to_string().contains("in place of"), "{tokens}");
        let own = nomads.secret("nomad/token/server").expect("it has one");
        (0..3).for_each(|host| drop(nomads.request(host, &own, "agent/members").ok()));
        nomads.project.controller(["secret", "list", "nomad/"]).ok().never_says("-next");
        ended
    };
    let whole = ends(values());
    let each = kills(whole.out.lines().count(), &[1, 3, 5], [1200, 0, 2500]);
    for &(line, delay) in &each {
        let before = values();
        kill_after(&nomads.project, &TOKENS, line, delay);
        ends(before);
    }
    killed("`rotate tokens` of Nomad", each.len());
}

/// As docs/rotation.md says it, line by line.
fn what_nomads_store_has_lost_comes_back(nomads: &Nomads) {
    let lose = |name: &str| nomads.lose(name);
    let count = |tokens: Value| tokens.as_array().map(Vec::len);
    let tokens = count(nomads.list("acl/tokens"));
    let (server, key) = (lose("nomad/token/server"), lose("nomad/gossip"));
    lose("nomad/formed");
    nomads.project.controller(["run", "servers.yaml"]).ok().never_says(&server).never_says(&key);
    // A token and the mark are made anew; the token of before is worth nothing.
    let anew = nomads.secret("nomad/token/server").expect("a run makes it");
    assert_ne!(anew, server);
    nomads.request(1, &anew, "agent/members").ok();
    nomads.request(1, &server, "agent/members").ends(22);
    assert_eq!(count(nomads.list("acl/tokens")), tokens);
    assert!(nomads.secret("nomad/formed").is_some());
    // The key is where servers keep it, and they go on with it.
    let members = nomads.list("agent/members");
    let alive = members["Members"].as_array().expect("a list").iter().filter(|m| m["Status"] == "alive").count();
    assert_eq!(alive, 3, "{members}");
    let ring: Vec<String> =
        serde_json::from_str(&nomads.hosts.read(1, "/var/lib/nomad/server/serf.keyring")).expect("a list");
    assert_eq!(ring[0], key);
    nomads.project.put("nomad/gossip", &ring[0]);
    // A token of all rights takes the management token's place.
    let spare = nomads.say(&["token", "create", "spare", "--product", "nomad", "--management"]).ok();
    lose("nomad/management");
    nomads.project.controller(["run", "servers.yaml"]).ends(8).says("someone else bootstrapped this cluster");
    nomads.project.put("nomad/management", spare.out.trim_end());
    nomads.project.controller(["run", "servers.yaml"]).ok();
    for host in 0..3 {
        assert!(nomads.hosts.read(host, "/etc/nomad.d/gossip.json").contains(&key));
    }
    nomads.is_silent();
}
