//! `controller token` and `controller forget` on a real cluster.

use std::time::{Duration, Instant};

use rollcall_tests::{Operated, Said, until};
use serde_json::Value;

const CLIENT: usize = Operated::SERVERS;

/// A secret that a verb printed, and nothing else.
#[track_caller]
fn printed(said: Said) -> String {
    let said = said.ok();
    let secret = said.out.trim_end().to_owned();
    assert!(secret.len() == 36 && !secret.contains(char::is_whitespace), "{}", said.report());
    assert!(!said.err.contains(&secret), "the secret is in the notes: {}", said.report());
    secret
}

fn create(cluster: &Operated, name: &str, more: &[&str]) -> Said {
    let words: Vec<&str> =
        ["token", "create", name, "--product", "consul"].into_iter().chain(more.iter().copied()).collect();
    cluster.say(&words)
}

#[test]
fn operators_have_tokens_of_their_own_and_nodes_that_are_gone_have_none() {
    let cluster = Operated::new();
    cluster.is_silent();
    printed_ones_are_kept_nowhere(&cluster);
    kept_ones_are_in_the_store(&cluster);
    wrong_words_are_told(&cluster);
    a_token_is_not_lost_with_the_connection(&cluster);
    another_takes_the_management_tokens_place(&cluster);
    a_node_is_forgotten(&cluster);
    cluster.is_silent();
}

fn printed_ones_are_kept_nowhere(cluster: &Operated) {
    let read = ["--policy", "rollcall-operator-read", "--ttl", "8h"];
    let secret = printed(create(cluster, "ann", &read));
    assert!(cluster.secrets("consul/token/operator/").is_empty());
    cluster.request(CLIENT, &secret, "catalog/nodes").ok();
    cluster.request(CLIENT, &secret, "kv/x --request PUT --data 1").ends(22);
    let look = format!(
        "grep --recursive --files-with-matches --binary-files=text '{secret}' /etc /run /var/lib /var/log /tmp /root /home || true"
    );
    assert_eq!(cluster.hosts.root(CLIENT, &look).ok().text(), "");
    // On servers it is where Consul keeps its tokens, and nowhere else.
    for file in cluster.hosts.root(0, &look).ok().out.lines() {
        assert!(file.starts_with("/var/lib/consul/"), "{file}");
    }
    // What the list tells: all but the secret.
    let list = cluster
        .say(&["token", "list", "--product", "consul"])
        .ok()
        .says("ann")
        .says("rollcall-operator-read")
        .never_says(&secret);
    assert_eq!(list.out.lines().count(), 2, "{}", list.report());
    let json = cluster.say(&["token", "list", "--product", "consul", "--json"]).ok().never_says(&secret).json();
    let (made, ends) = (json[0]["made"].as_str().expect("a time"), json[0]["expires"].as_str().expect("a time"));
    let hours = |text: &str| text[11..13].parse::<i32>().expect("an hour");
    assert_eq!((hours(ends) - hours(made)).rem_euclid(24), 8, "{json}");
    assert!(
        json[0]["description"].as_str().is_some_and(|d| d.starts_with("Made by Rollcall: operator ann, for ")),
        "{json}"
    );
    let all = cluster.say(&["token", "list", "--product", "consul", "--all"]).ok();
    assert!(all.out.lines().count() > 6, "{}", all.report());
    // Its secret is lost: the same name again is another secret, and the first is worth nothing.
    let again = printed(create(cluster, "ann", &["--policy", "rollcall-operator"]));
    assert_ne!(secret, again);
    cluster.request(0, &secret, "catalog/nodes").ends(22);
    cluster.request(CLIENT, &again, "kv/x --request PUT --data 1").ok();
    // It cannot give itself more.
    cluster.request(0, &again, "acl/tokens").ok().never_says(&again);
    cluster.request(0, &again, "acl/policy --request PUT --data '{\"Name\": \"x\", \"Rules\": \"\"}'").ends(22);
    cluster.say(&["token", "revoke", "ann", "--product", "consul"]).ok().says("'ann' of consul").says("is revoked");
    cluster.request(0, &again, "catalog/nodes").ends(22);
    cluster.say(&["token", "revoke", "ann", "--product", "consul"]).ok().says("has no operator's token 'ann'");
}

fn kept_ones_are_in_the_store(cluster: &Operated) {
    let said = create(cluster, "deploy", &["--management", "--store"]).ok();
    assert_eq!(said.out, "consul/token/operator/deploy\n");
    let secret = cluster.secret("consul/token/operator/deploy").expect("it is kept");
    cluster.request(1, &secret, "acl/tokens").ok();
    assert!(!said.err.contains(&secret));
    // The same again changes nothing.
    create(cluster, "deploy", &["--management", "--store"]).ok();
    assert_eq!(cluster.secret("consul/token/operator/deploy").as_deref(), Some(secret.as_str()));
    let tokens = cluster.list("acl/tokens");
    let of = |description: &str| {
        let found = tokens.iter().find(|t| t["Description"].as_str().is_some_and(|d| d.starts_with(description)));
        found.unwrap_or_else(|| panic!("{description}"))["AccessorID"].as_str().expect("a text").to_owned()
    };
    // A node's token is not an operator's, whoever asks.
    let agent = of("Made by Rollcall: agent");
    cluster.say(&["token", "revoke", &agent, "--product", "consul"]).ends(1).says("is no operator's");
    // When the store has lost it, it goes on counting; revoked and made again it is there.
    cluster.say(&["secret", "delete", "consul/token/operator/deploy", "--force"]).ok();
    cluster.request(1, &secret, "acl/tokens").ok();
    cluster.say(&["token", "revoke", "deploy", "--product", "consul"]).ok().says("is revoked");
    cluster.request(1, &secret, "acl/tokens").ends(22);
    create(cluster, "deploy", &["--management", "--store"]).ok();
    let lost = secret;
    let secret = cluster.secret("consul/token/operator/deploy").expect("it is kept");
    assert_ne!(secret, lost);
    let tokens = cluster.list("acl/tokens");
    let deploy = |token: &&Value| {
        token["Description"].as_str().is_some_and(|d| d.starts_with("Made by Rollcall: operator deploy"))
    };
    let accessor = tokens.iter().find(deploy).expect("it is made")["AccessorID"].as_str().expect("a text").to_owned();
    cluster.say(&["token", "revoke", &accessor, "--product", "consul"]).ok();
    cluster.request(1, &secret, "acl/tokens").ends(22);
    assert!(cluster.secrets("consul/token/operator/").is_empty());
}

fn wrong_words_are_told(cluster: &Operated) {
    create(cluster, "bob", &["--policy", "nope"]).ends(4).says("nope");
    assert!(cluster.secrets("consul/token/operator/").is_empty(), "what was not made is not kept");
    create(cluster, "{{ bob }}", &["--management"]).ends(1).says("is no name for a token");
    create(cluster, "bob", &["--management", "--ttl", "25h"]).ends(2).says("from a minute to a day");
    create(cluster, "bob", &[]).ends(2).says("--management");
    create(cluster, "bob", &["--policy", "x", "--management"]).ends(2).says("cannot be used with");
    create(cluster, "bob", &["--policy", "x", "--print", "--store"]).ends(2).says("cannot be used with");
    create(cluster, "bob", &["--policy", "x", "--limit", "y"]).ends(1).says("takes no --limit");
    let settings = cluster.project.settings();
    cluster.project.write("rollcall.yaml", &settings.replace("cluster: test\n", ""));
    create(cluster, "bob", &["--policy", "x"]).ends(1).says("does not say which cluster it is");
    cluster.project.write("rollcall.yaml", &format!("{settings}\nstore: {{type: file, path: nowhere/secrets.age}}\n"));
    create(cluster, "bob", &["--policy", "x"]).ends(1).says("nowhere");
    cluster.project.write("rollcall.yaml", &settings);
}

/// Before Consul's agent on this host: what is asked is done, but of some requests the answer is lost, and with it our agent on that host.
const CUTS: &str = r#"
use IO::Socket::INET;
$SIG{PIPE} = "IGNORE";
my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 8599, Listen => 9, ReuseAddr => 1) or die;
while (my $client = $server->accept) {
  my $asked = "";
  while ($asked !~ /\r\n\r\n/) { sysread($client, $asked, 65536, length $asked) or last }
  next unless $asked =~ /\r\n\r\n/;
  my ($head, $body) = split /\r\n\r\n/, $asked, 2;
  my $length = $head =~ /content-length: *(\d+)/i ? $1 : 0;
  while (length $body < $length) { sysread($client, $body, 65536, length $body) or last }
  my $consul = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => 8500) or die;
  print $consul "$head\r\nConnection: close\r\n\r\n$body";
  my $answer = join "", <$consul>;
  if ($head =~ m{$ARGV[0]}) {
    for (glob "/proc/[0-9]*/cmdline") {
      open my $line, "<", $_ or next;
      kill 9, m{(\d+)} if (<$line> // "") =~ m{^/usr/local/lib/rollcall/agent-};
    }
    next;
  }
  print $client $answer;
  close $client;
}
"#;

fn a_token_is_not_lost_with_the_connection(cluster: &Operated) {
    let made = "^PUT /v1/acl/token";
    let cuts = |server: usize, requests: &str| {
        let line = format!(
            "cat > /run/cuts.pl << 'END'{CUTS}END\nsystemctl stop cuts 2> /dev/null; systemd-run --quiet --unit cuts perl /run/cuts.pl '{requests}'\n\
             for i in $(seq 100); do bash -c ': < /dev/tcp/127.0.0.1/8599' 2> /dev/null && exit 0; sleep 0.1; done; exit 1"
        );
        cluster.hosts.root(server, &line).ok();
    };
    let read = ["--policy", "rollcall-operator-read"];
    let cut = [&read[..], &["-e", "consul_http_url=http://127.0.0.1:8599"]].concat();
    // The server that made it is gone: the next one finds it made.
    (0..Operated::SERVERS).for_each(|server| cuts(server, made));
    let secret = printed(create(cluster, "fay", &cut));
    cluster.request(CLIENT, &secret, "catalog/nodes").ok();
    cluster.say(&["token", "revoke", "fay", "--product", "consul"]).ok();
    // All of them are gone, one after the other.
    (1..Operated::SERVERS).for_each(|server| cuts(server, "."));
    for name in ["eve", "dan"] {
        let said = create(cluster, name, &cut).ends(5);
        assert_eq!(said.out, "", "{}", said.report());
        let said =
            said.says(&format!("nobody knows whether the token '{name}' was made")).says("the same call goes on");
        let secret = cluster.secret(&format!("consul/token/operator/{name}")).expect("it is kept");
        said.never_says(&secret);
        cluster.request(CLIENT, &secret, "catalog/nodes").ok();
        if name == "eve" {
            // The same call ends it.
            assert_eq!(printed(create(cluster, name, &read)), secret);
            cluster.request(CLIENT, &secret, "catalog/nodes").ok();
        }
        cluster.say(&["token", "revoke", name, "--product", "consul"]).ok().says("is revoked");
        cluster.request(CLIENT, &secret, "catalog/nodes").ends(22);
        assert!(cluster.secrets("consul/token/operator/").is_empty());
    }
    for server in 0..Operated::SERVERS {
        cluster.hosts.root(server, "systemctl stop cuts; rm /run/cuts.pl").ok();
    }
}

/// The store has lost it: a token of all rights is put there instead.
fn another_takes_the_management_tokens_place(cluster: &Operated) {
    let spare = printed(create(cluster, "spare", &["--management"]));
    cluster.say(&["secret", "delete", "consul/management", "--force"]).ok();
    // A client would wait for its token of a server that has given up.
    cluster.run(&["-e", "consul_acl_wait=5"]).ends(8).says("someone else bootstrapped this cluster");
    cluster.project.put("consul/management", &spare);
    cluster.is_silent();
}

fn a_node_is_forgotten(cluster: &Operated) {
    let name = cluster.hosts.name(CLIENT).to_owned();
    let secret = format!("consul/token/agent/{name}");
    let old = cluster.secret(&secret).expect("it was made with the cluster");
    cluster.say(&["forget", &name]).ends(4).says("is alive");
    assert_eq!(cluster.secret(&secret).as_deref(), Some(old.as_str()));
    cluster.hosts.root(CLIENT, "systemctl kill --signal KILL consul; systemctl stop consul").ok();
    let end = Instant::now() + Duration::from_mins(2);
    let forgotten = loop {
        let said = cluster.say(&["forget", &name]);
        // Until the others have missed it, it is alive.
        if said.code == 0 || Instant::now() > end {
            break said.ok();
        }
    };
    forgotten.says("is forgotten").says("is in the inventory");
    assert_eq!(cluster.secret(&secret), None);
    cluster.request(0, &old, "acl/token/self").ends(22);
    // Who leads takes it out of the catalog, as soon as it has heard of it.
    let is_listed = || cluster.list("catalog/nodes").iter().any(|node| node["Node"] == name.as_str());
    until(Duration::from_secs(30), "the node is in the catalog", || !is_listed());
    assert!(!cluster.list("acl/policies").iter().any(|policy| policy["Name"] == format!("rollcall-node-{name}")));
    cluster.say(&["forget", &name]).ok().says("it was no member; 0 secrets left the store");
    cluster.say(&["forget", "Nobody/There"]).ends(1).says("is no name of a node");
    cluster.say(&["forget", "--terminated"]).ends(1).says("no host of the inventory is an EC2 instance");
    // It comes back under its name, with a token of its own.
    cluster.run(&[]).ok();
    let new = cluster.secret(&secret).expect("a run makes it");
    assert_ne!(new, old);
    assert_eq!(cluster.agent_tokens(CLIENT)["agent"], new.as_str());
    cluster.request(CLIENT, &new, "agent/self").ok();
}
