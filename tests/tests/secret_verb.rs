//! `controller secret` and `controller policies`, as an operator runs them.

use std::process::Command;
use std::time::Duration;

use rollcall_tests::servers::{SecretsManager, Vault};
use rollcall_tests::{Said, program, run};

/// A folder for a file store, and the controller as its user.
struct Ground {
    dir: tempfile::TempDir,
    /// Said before every line.
    setup: &'static str,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::create_dir(dir.path().join("disk")).expect("a folder in it too");
        let settings = "cluster: kraken\nstore: {type: file, path: disk/kraken.age, identity: identity.txt}\n";
        std::fs::write(dir.path().join("rollcall.yaml"), settings).expect("a file too");
        Self { dir, setup: "" }
    }

    /// A line for the shell with `$controller`.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .arg("-euc")
            .arg(format!("{}{line}", self.setup))
            .env("controller", program("controller"))
            .env("HOME", self.dir.path().join("home"));
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if ["XDG_", "AWS_", "VAULT_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(&variable);
            }
        }
        command.current_dir(self.dir.path());
        command
    }

    #[track_caller]
    fn shell(&self, line: &str) -> Said {
        run(&mut self.command(line), Duration::from_mins(2))
    }
}

#[test]
fn processes_that_write_at_once_lose_nothing() {
    let ground = Ground::new();
    let line = "for n in $(seq 20); do echo value-$n | \"$controller\" secret put app/$n > /dev/null & jobs+=($!); done
        for job in ${jobs[@]}; do wait $job; done; \"$controller\" secret list app/ | wc -l
        for n in $(seq 20); do [ \"$(\"$controller\" secret get app/$n)\" = value-$n ]; done";
    assert_eq!(ground.shell(&format!("jobs=(); {line}")).ok().text(), "20");
}

#[test]
fn a_writer_that_is_killed_leaves_the_old_or_the_new_value() {
    let ground = Ground::new();
    ground.shell("echo old-value | \"$controller\" secret put app/a").ok();
    // At every call by which the store touches the disk: before it, and after it.
    let (mut old, mut new) = (0, 0);
    for call in ["openat", "write", "fsync", "rename,renameat,renameat2", "flock", "ftruncate", "unlink,unlinkat"] {
        for when in ["1", "2", "3", "last"] {
            // Calls are counted from the lock on: those before it are the program's start.
            let at = if when == "last" { "9" } else { when };
            let line = format!(
                "echo new-value | setsid strace -f -qq -o trace -P \"$PWD/disk\" -P \"$PWD/disk/kraken.age\" \
                 -P \"$PWD/disk/kraken.age.lock\" -e inject={call}:signal=KILL:when={at} \"$controller\" secret put app/a"
            );
            let ended = ground.shell(&format!("({line}) > said 2>&1 && echo done || echo killed"));
            let value = ground.shell("\"$controller\" secret get app/a").ok();
            match value.text() {
                "old-value" => old += 1,
                "new-value" => new += 1,
                other => panic!("{call} {when}: '{other}': {}", ended.report()),
            }
            ground.shell("echo old-value | \"$controller\" secret put app/a").ok();
        }
    }
    assert!(old > 0 && new > 0, "the kills must come before and after the change: {old} {new}");
    // The next writer removed what they left.
    let left = ground.shell("ls -A disk").ok();
    assert_eq!(left.text(), "kraken.age\nkraken.age.lock");
}

#[test]
fn a_full_disk_leaves_the_store_as_it_was() {
    let ground = Ground::new();
    let line = "mount -t tmpfs -o size=64k none disk
        echo first-value | \"$controller\" secret put app/a
        head -c 1M /dev/zero > disk/filler || true
        head -c 9000 /dev/urandom | base64 -w 0 | \"$controller\" secret put app/b && exit 9
        \"$controller\" secret get app/a; ls -A disk; rm disk/filler
        echo second-value | \"$controller\" secret put app/b; \"$controller\" secret get app/b";
    let said = ground.shell(&format!("export line='{line}'; unshare --mount bash -euc \"$line\"")).ok();
    let said = said.says("No space left on device").says("nothing was replaced");
    let (kept, after) = ("first-valuefiller\nkraken.age\nkraken.age.lock\n'app/b'", "second-value");
    assert!(said.out.contains(kept) && said.text().ends_with(after), "{}", said.report());
}

#[test]
fn a_store_that_is_destroyed_leaves_room_for_a_new_one() {
    let ground = Ground::new();
    ground
        .shell("echo value-1 | \"$controller\" secret put app/a; echo value-2 | \"$controller\" secret put app/b")
        .ok();
    ground.shell("\"$controller\" secret destroy other").ends(1).says("'kraken', not of 'other'").says("nothing was");
    assert_eq!(ground.shell("\"$controller\" secret list").ok().out, "app/a\napp/b\n");
    ground.shell("\"$controller\" secret destroy kraken").ok().says("2 secrets of kraken are deleted");
    ground.shell("\"$controller\" secret destroy kraken").ok().says("0 secrets of kraken");
    ground.shell("echo value-3 | \"$controller\" secret put app/c").ok();
    assert_eq!(ground.shell("\"$controller\" secret list").ok().out, "app/c\n");
}

/// The key that opens the store, to its owner and to somebody else.
#[test]
fn a_lost_or_a_leaked_key_is_replaced() {
    let ground = Ground::new();
    // A key in a safe, made by the store of another project.
    let safe = "mkdir safe; cp rollcall.yaml safe; mkdir safe/disk; cd safe; echo value-0 | \"$controller\" secret put app/x; cd ..
        sed -n 's/.*public key: *//p' safe/identity.txt";
    let public = ground.shell(safe).ok().text().lines().last().unwrap_or_default().to_owned();
    assert!(public.starts_with("age1"), "{public}");
    let with = |more: &str| {
        let settings =
            format!("cluster: kraken\nstore: {{type: file, path: disk/kraken.age, identity: identity.txt{more}}}\n");
        std::fs::write(ground.dir.path().join("rollcall.yaml"), settings).expect("it can be written");
    };
    with(&format!(", recipients: [{public}]"));
    ground.shell("echo value-1 | \"$controller\" secret put app/a").ok();
    let get = "\"$controller\" secret get app/a";

    // Lost: another one of the recipients opens it, and what is written then is for that key.
    ground.shell(&format!("rm identity.txt; {get}")).ends(1).says("identity.txt");
    with("");
    ground
        .shell(&format!("cp safe/identity.txt identity.txt; [ \"$({get})\" = value-1 ]; \"$controller\" secret probe"))
        .ok();
    ground.shell(&format!("[ \"$({get})\" = value-1 ]")).ok();

    // Leaked: a second key beside it, a change, without the first, a change. What the first one opened before, it opens no more.
    let second = "mkdir second; cp rollcall.yaml second; mkdir second/disk; cd second; echo value-0 | \"$controller\" secret put app/x; cd ..
        cp identity.txt leaked.txt; cat second/identity.txt >> identity.txt; \"$controller\" secret probe
        cp second/identity.txt identity.txt";
    ground.shell(second).ok();
    ground
        .shell(&format!("[ \"$({get})\" = value-1 ]; cp disk/kraken.age between.age; \"$controller\" secret probe"))
        .ok();
    let stolen = |file: &str| {
        let line = format!(
            "rm -rf thief; mkdir -p thief/disk; cp leaked.txt thief/identity.txt; chmod 600 thief/identity.txt
             cp {file} thief/disk/kraken.age; cp rollcall.yaml thief; cd thief; HOME=$PWD {get}"
        );
        ground.shell(&line)
    };
    stolen("disk/kraken.age").ends(1).says("encrypted to another key");
    assert_eq!(stolen("between.age").ok().text(), "value-1", "a copy from before stays readable");
    assert_eq!(ground.shell(get).ok().text(), "value-1");
}

/// The file is put back from an older copy, or is gone.
#[test]
fn an_old_copy_of_the_file_is_refused_until_it_is_wanted() {
    let ground = Ground::new();
    ground.shell("echo value-1 | \"$controller\" secret put app/a; cp disk/kraken.age old.age").ok();
    ground.shell("echo value-2 | \"$controller\" secret put app/a; cp disk/kraken.age new.age").ok();
    let get = "\"$controller\" secret get app/a";
    let refused = ground.shell(&format!("cp old.age disk/kraken.age; {get}")).ends(1).says("it is an old copy").err;
    ground.shell("echo value-3 | \"$controller\" secret put app/b").ends(1).says("it is an old copy");
    ground.shell(&format!("rm disk/kraken.age; {get}")).ends(1).says("it is gone").says("put it back from a backup");
    assert_eq!(ground.shell(&format!("cp new.age disk/kraken.age; {get}")).ok().text(), "value-2");
    // There is no newer one: what the message names is removed.
    let file =
        refused.split_whitespace().find(|word| word.contains("/stores/")).expect("the message names a file").to_owned();
    let accepted = ground.shell(&format!("cp old.age disk/kraken.age; rm '{file}'; {get}")).ok();
    assert_eq!(accepted.text(), "value-1");
    ground.shell("echo value-2 | \"$controller\" secret put app/a").ok();
}

#[test]
fn the_controllers_verbs_teach() {
    let ground = Ground::new();
    ground.shell("\"$controller\" secret list").ok();
    ground.shell("\"$controller\" secret get app/a").ends(1).says("has no 'app/a'").says("controller secret list");
    ground
        .shell("printf 'two\\nlines\\n' | \"$controller\" secret put app/a")
        .ok()
        .says("is written to the file store");
    assert_eq!(ground.shell("\"$controller\" secret get app/a").ok().out, "two\nlines");
    ground.shell("printf 'exactly\\n' | \"$controller\" secret put app/a --exact").ok().never_says("exactly");
    assert_eq!(ground.shell("\"$controller\" secret get app/a").ok().out, "exactly\n");
    ground.shell("echo hunter22 | \"$controller\" secret put consul/gossip").ends(1).says("gossip key").says("--force");
    ground.shell("echo hunter22 | \"$controller\" secret put consul/typo").ends(1).says("is none of them");
    ground.shell("echo hunter22 | \"$controller\" secret put consul/gossip --force").ok();
    ground.shell("\"$controller\" secret delete consul/gossip").ends(1).says("--force");
    ground.shell("echo hunter22 | \"$controller\" secret put App/a").ends(1).says("no name of a secret");
    ground.shell("echo 12345 | \"$controller\" secret put app/b").ends(1).says("too short");
    ground.shell("printf '\\377' | \"$controller\" secret put app/b").ends(1).says("not UTF-8");
    ground.shell("head -c 70000 /dev/zero | tr '\\0' x | \"$controller\" secret put app/b").ends(1).says("65536");
    assert_eq!(ground.shell("\"$controller\" secret list").ok().out, "app/a\nconsul/gossip\n");
    ground.shell("\"$controller\" secret delete app/a").ok().says("is deleted from");
    ground.shell("\"$controller\" secret delete app/a").ok().says("was not in");
    ground.shell("\"$controller\" secret probe").ok().says("can be written");
    ground.shell("echo 'store: file' > rollcall.yaml; \"$controller\" secret list").ends(1).says("cluster: NAME");
    let wrong = "echo 'store: {type: vault, adress: x}' > rollcall.yaml; \"$controller\" secret list";
    ground.shell(wrong).ends(3).says("did you mean 'address'").says("rollcall.yaml:1:");

    std::fs::write(ground.dir.path().join("rollcall.yaml"), "cluster: kraken\n").expect("it can be written");
    ground
        .shell("echo hunter22 | \"$controller\" secret put app/a; ls -A $HOME/.local/share/rollcall $HOME/.config/rollcall")
        .ok()
        .says("kraken.age")
        .says("identity.txt");
    let hcl = ground.shell("\"$controller\" policies --store vault --role consul_clients --node Web-1").ok();
    hcl.says("secret/data/rollcall/kraken/consul/token/agent/web-1").never_says("management");
    let all = ground.shell("\"$controller\" policies --store aws").ok().json();
    assert_eq!(all["nomad_servers"]["Version"], "2012-10-17");
    ground.shell("\"$controller\" policies --store aws --role consul_client").ends(1).says("did you mean");
}

/// Puts a value, reads it, lists, deletes it, with everything logged that can be.
#[track_caller]
fn nothing_is_logged(ground: &Ground, hidden: &[&str]) {
    let value = "canary-3f1c\\nsecond \"line\" of it";
    let log = "export ROLLCALL_LOG=trace; ";
    let put = ground.shell(&format!("{log} printf '{value}' | \"$controller\" -vvv secret put app/canary")).ok();
    let got = ground.shell(&format!("{log} \"$controller\" -vvv secret get app/canary")).ok();
    assert_eq!(got.out, "canary-3f1c\nsecond \"line\" of it");
    let listed = ground.shell(&format!("{log} \"$controller\" secret list")).ok();
    assert_eq!(listed.out, "app/canary\n");
    let deleted = ground.shell(&format!("{log} \"$controller\" secret delete app/canary")).ok();
    let refused = ground.shell(&format!("{log} printf '{value}' | \"$controller\" secret put App/canary")).ends(1);
    // The same search finds what is there to be found.
    assert!(got.err.contains("app/canary") || got.err.contains("connect"), "nothing was logged: {}", got.report());
    for said in [&put.out, &put.err, &got.err, &listed.err, &deleted.err, &refused.err] {
        for text in hidden.iter().chain(&["canary-3f1c", "of it"]) {
            assert!(!said.contains(text), "'{text}' was logged: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_secret_is_logged_on_its_way_to_vault() {
    let vault = Vault::start().await;
    let ground = Ground::new();
    let token = std::fs::read_to_string(vault.root_file()).expect("it is there");
    let settings = format!(
        "cluster: kraken\nstore: {{type: vault, address: '{}', token_file: {}}}\n",
        vault.address,
        vault.root_file().display()
    );
    std::fs::write(ground.dir.path().join("rollcall.yaml"), settings).expect("it can be written");
    ground.shell("\"$controller\" secret probe").ok().says("the vault store").says("can be written");
    nothing_is_logged(&ground, &[token.trim()]);

    a_deleted_value_is_brought_back(&ground, &vault).await;
    an_old_backup_is_noticed(&ground, &vault).await;

    // As every Vault program is told where to go.
    std::fs::write(ground.dir.path().join("rollcall.yaml"), "cluster: kraken\nstore: vault\n")
        .expect("it can be written");
    ground.shell("\"$controller\" secret probe").ends(3).says("needs the server's address").says("rollcall.yaml:2:");
    let address = format!("export VAULT_ADDR={}", vault.address);
    ground.shell(&format!("{address}; \"$controller\" secret probe")).ends(1).says("VAULT_TOKEN is not set");
    let both = format!("{address} VAULT_TOKEN={}", token.trim());
    ground.shell(&format!("{both}; \"$controller\" secret probe")).ok().says("can be written");
    let clear = "VAULT_ADDR=http://10.0.0.1:8200 \"$controller\" secret probe";
    ground.shell(clear).ends(3).says("in the clear");
}

/// Deleted with Vault's own command, and undeleted as the message says.
async fn a_deleted_value_is_brought_back(ground: &Ground, vault: &Vault) {
    let data = "secret/data/rollcall/kraken/consul/gossip";
    ground.shell("echo value-1 | \"$controller\" secret put consul/gossip --force").ok();
    vault.api("DELETE", data, &serde_json::Value::Null).await;
    ground.shell("\"$controller\" secret get consul/gossip").ends(1).says("has no 'consul/gossip'");
    let undelete = data.replace("/data/", "/undelete/");
    vault.api("PUT", &undelete, &serde_json::json!({"versions": [1]})).await;
    assert_eq!(ground.shell("\"$controller\" secret get consul/gossip").ok().text(), "value-1");
}

/// What this machine saw of the store is newer than what the store has.
async fn an_old_backup_is_noticed(ground: &Ground, vault: &Vault) {
    let get = "\"$controller\" secret get consul/gossip";
    // Gone, though nobody deleted it from here.
    vault.api("DELETE", "secret/metadata/rollcall/kraken/consul/gossip", &serde_json::Value::Null).await;
    let gone = ground.shell(get).ends(1).says("'consul/gossip' is gone").err;
    let file = gone.split_whitespace().find(|word| word.ends_with("consul+gossip")).expect("the message names a file");
    // What the cluster knows is put in its place.
    ground.shell("echo value-1 | \"$controller\" secret put consul/gossip --force").ok();
    assert_eq!(ground.shell(get).ok().text(), "value-1");
    // As if a later one had been seen here.
    let later = "{\"made\":32503680000000,\"version\":9}";
    ground.shell(&format!("echo '{later}' > '{file}'")).ok();
    ground.shell(get).ends(1).says("'consul/gossip' is an old one").says("version 1").says("3000-01-01").says(file);
    ground.shell(&format!("rm '{file}'")).ok();
    assert_eq!(ground.shell(get).ok().text(), "value-1");
    ground.shell("\"$controller\" secret delete consul/gossip --force").ok();
    ground.shell(get).ends(1).says("has no 'consul/gossip'");
}

/// Deleted by somebody else, and restored as AWS's own command does.
fn a_deleted_secret_is_restored(ground: &Ground, listen: std::net::SocketAddr) {
    let call = |action: &str, body: &str| {
        ground
            .shell(&format!(
                "curl --silent --show-error --fail-with-body http://{listen}/ --header 'X-Amz-Target: secretsmanager.{action}' \
                 --header 'Content-Type: application/x-amz-json-1.1' --data '{body}' --header 'Authorization: AWS4-HMAC-SHA256 \
                 Credential=lab/20260101/eu-west-1/secretsmanager/aws4_request, SignedHeaders=host, Signature=0'"
            ))
            .ok();
    };
    let get = "\"$controller\" secret get app/a";
    ground.shell("echo value-1 | \"$controller\" secret put app/a").ok();
    assert_eq!(ground.shell(get).ok().text(), "value-1");
    call("DeleteSecret", "{\"SecretId\": \"rollcall/kraken/app/a\", \"RecoveryWindowInDays\": 7}");
    ground.shell(get).ends(1).says("has no 'app/a'");
    call("RestoreSecret", "{\"SecretId\": \"rollcall/kraken/app/a\"}");
    assert_eq!(ground.shell(get).ok().text(), "value-1");
    // As if a later one had been seen here.
    let seen = ground.shell("ls $HOME/.local/state/rollcall/stores/*/app+a").ok();
    ground.shell(&format!("echo '{{\"made\":32503680000000,\"version\":null}}' > '{}'", seen.text())).ok();
    ground.shell(get).ends(1).says("'app/a' is an old one");
    ground.shell(&format!("rm '{}'; \"$controller\" secret delete app/a", seen.text())).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_secret_is_logged_on_its_way_to_aws() {
    let server = SecretsManager::start().await;
    let ground = Ground::new();
    let settings = format!(
        "cluster: kraken\nstore: {{type: aws-secretsmanager, region: eu-west-1, endpoint: 'http://{}', recovery_days: 0}}\n",
        server.listen
    );
    std::fs::write(ground.dir.path().join("rollcall.yaml"), settings).expect("it can be written");
    let alone = "AWS_EC2_METADATA_DISABLED=true \"$controller\" secret list";
    ground.shell(alone).ends(1).says("there are no AWS credentials");
    let keys = "export AWS_ACCESS_KEY_ID=lab AWS_SECRET_ACCESS_KEY=key-9a7d AWS_SESSION_TOKEN=session-5e2b; ";
    let ground = Ground { setup: keys, ..ground };
    ground.shell("\"$controller\" secret probe").ok().says("AWS Secrets Manager in eu-west-1").says("can be written");
    nothing_is_logged(&ground, &["key-9a7d", "session-5e2b"]);
    a_deleted_secret_is_restored(&ground, server.listen);
}
