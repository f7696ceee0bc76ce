//! The stores of secrets, each on its real server: what all of them promise, and what each does when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_secretsmanager::config::Credentials;
use rollcall_engine::secrets::{
    Created, MAX_VALUE, Name, Secret, SecretStore, StoreError,
    aws::AwsStore,
    file::{FileStore, Places},
    ownership::{Role, TABLE},
    policies::{self, Audience},
    settings,
    vault::VaultStore,
};
use rollcall_tests::servers::{Consul, Proxy, SecretsManager, Vault, Way, free_address};
use serde_json::{Value, json};

const RACERS: usize = 50;

fn name(text: &str) -> Name {
    Name::new(text).expect("tests have good names")
}

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

async fn read(store: &dyn SecretStore, text: &str) -> Option<String> {
    store.get(&name(text)).await.unwrap_or_else(|e| panic!("{text}: {e:?}")).map(|s| s.expose().to_owned())
}

/// An error as a person sees it.
fn told(error: &StoreError) -> String {
    let chain = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{error}{chain}; hint: {}", error.hint().unwrap_or("none"))
}

/// What every store promises. `open` opens it anew, as another process does; `reuses`: a deleted name can be created again.
async fn conforms(open: impl Fn() -> Arc<dyn SecretStore>, reuses: bool) {
    let store = open();
    store.probe().await.unwrap_or_else(|e| panic!("{}", told(&e)));
    assert_eq!(store.list("").await.unwrap(), [], "a probe leaves nothing");
    assert_eq!(read(&*store, "consul/gossip").await, None);
    store.delete(&name("consul/gossip")).await.expect("what is not there is deleted already");

    one_of_many_makes_it(&open).await;

    assert_eq!(store.create(&name("b/first"), &secret("1")).await.unwrap(), Created::New);
    assert_eq!(store.create(&name("b/first"), &secret("2")).await.unwrap(), Created::Exists);
    assert_eq!(read(&*store, "b/first").await.as_deref(), Some("1"));
    store.put(&name("b/first"), &secret("3")).await.unwrap();
    store.put(&name("b/second"), &secret("4")).await.unwrap();
    store.put(&name("b/second"), &secret("4")).await.unwrap();
    let other = open();
    assert_eq!(read(&*other, "b/first").await.as_deref(), Some("3"));
    assert_eq!(read(&*other, "b/second").await.as_deref(), Some("4"));

    let texts = ["  spaces  ", "line\nend\n", "ü ☃ 🦀 \u{202e}", "\"quotes\" \\ {{ x }} <>&%", "\u{1}\u{7f}"];
    for text in texts.iter().map(|t| (*t).to_owned()).chain([String::from_utf8(vec![b'x'; MAX_VALUE]).unwrap()]) {
        store.put(&name("b/text"), &secret(&text)).await.unwrap_or_else(|e| panic!("{} bytes: {e:?}", text.len()));
        assert!(read(&*other, "b/text").await.as_deref() == Some(&*text), "{} bytes", text.len());
    }
    for (value, said) in [("x".repeat(MAX_VALUE + 1), "more than 65536"), (String::new(), "is empty")] {
        let put = store.put(&name("b/large"), &secret(&value)).await.unwrap_err();
        let made = store.create(&name("b/large"), &secret(&value)).await.unwrap_err();
        assert!(matches!(put, StoreError::Impossible { .. }) && told(&put).contains(said), "{put}");
        assert_eq!(told(&put), told(&made));
    }
    assert_eq!(read(&*store, "b/large").await, None);

    for more in ["b/deep/er/name", "a.dot_under-dash", "c"] {
        store.put(&name(more), &secret("x")).await.unwrap();
    }
    let names = |list: Vec<Name>| list.iter().map(|n| n.as_str().to_owned()).collect::<Vec<_>>();
    let all = ["a.dot_under-dash", "b/deep/er/name", "b/first", "b/second", "b/text", "c", "race"];
    assert_eq!(names(store.list("").await.unwrap()), all);
    assert_eq!(names(store.list("b/").await.unwrap()), all[1..5]);
    assert_eq!(names(store.list("b/se").await.unwrap()), ["b/second"]);
    assert_eq!(names(store.list("b/deep/").await.unwrap()), ["b/deep/er/name"]);
    assert_eq!(names(store.list("nothing/").await.unwrap()), [""; 0]);

    store.delete(&name("b/first")).await.unwrap();
    store.delete(&name("b/first")).await.unwrap();
    assert_eq!(read(&*other, "b/first").await, None);
    assert_eq!(names(store.list("b/f").await.unwrap()), [""; 0]);
    if reuses {
        assert_eq!(store.create(&name("b/first"), &secret("again")).await.unwrap(), Created::New);
        assert_eq!(read(&*other, "b/first").await.as_deref(), Some("again"));
    }
    store.probe().await.unwrap();
}

/// Of any number that race, one makes the value, and all read that one.
async fn one_of_many_makes_it(open: &impl Fn() -> Arc<dyn SecretStore>) {
    let shared = open();
    let racers: Vec<_> = (0..RACERS)
        .map(|number| {
            // Some through one store, some as processes of their own do.
            let store = if number % 2 == 0 { Arc::clone(&shared) } else { open() };
            tokio::spawn(async move {
                let made = store.create(&name("race"), &secret(&format!("value {number}"))).await;
                (made.unwrap_or_else(|e| panic!("{}", told(&e))), read(&*store, "race").await)
            })
        })
        .collect();
    let (mut new, mut values) = (0, BTreeSet::new());
    for racer in racers {
        let (made, value) = racer.await.expect("no racer panics");
        new += usize::from(made == Created::New);
        values.insert(value.expect("it has a value now"));
    }
    assert_eq!((new, values.len()), (1, 1), "{values:?}");
}

/// A write whose answer is lost: unknown, done all the same, and no harm when it is done again.
async fn lost_answers_are_unknown(store: &dyn SecretStore, proxy: &Proxy) {
    store.put(&name("lost/warm"), &secret("x")).await.unwrap();
    proxy.set(Way::LoseAnswer);
    let created = store.create(&name("lost/create"), &secret("mine")).await.unwrap_err();
    let put = store.put(&name("lost/warm"), &secret("new")).await.unwrap_err();
    let deleted = store.delete(&name("lost/gone")).await.unwrap_err();
    let got = store.get(&name("lost/create")).await.unwrap_err();
    proxy.set(Way::Pass);
    for error in [&created, &put, &deleted] {
        assert!(matches!(error, StoreError::Unknown { .. }), "{error:?}");
        assert!(error.is_passing() && !told(error).contains("mine"), "{}", told(error));
    }
    assert!(matches!(got, StoreError::Unavailable { .. }), "{got:?}");
    // The same again, then the truth is read.
    assert_eq!(store.create(&name("lost/create"), &secret("mine")).await.unwrap(), Created::Exists);
    assert_eq!(read(store, "lost/create").await.as_deref(), Some("mine"));
    assert_eq!(read(store, "lost/warm").await.as_deref(), Some("new"));
}

fn vault_settings(token: std::path::PathBuf) -> settings::Vault {
    settings::Vault {
        address: None,
        mount: "secret".into(),
        prefix: "rollcall".into(),
        namespace: None,
        ca_file: None,
        other_consul: false,
        auth: settings::VaultAuth::TokenFile(token),
        timeout: Duration::from_secs(30),
        patience: Duration::from_mins(1),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_conforms() {
    let vault = Vault::start().await;
    let open = || -> Arc<dyn SecretStore> {
        Arc::new(VaultStore::new("kraken", &vault.address, vault_settings(vault.root_file())))
    };
    conforms(open, true).await;
    let over_tls = || -> Arc<dyn SecretStore> {
        let settings = settings::Vault { ca_file: Some(vault.ca_file()), ..vault_settings(vault.root_file()) };
        Arc::new(VaultStore::new("tls", &vault.tls_address, settings))
    };
    conforms(over_tls, true).await;
    // An engine that wants every write to name the version before it.
    vault.api("POST", "secret/config", &json!({"cas_required": true})).await;
    let other = || -> Arc<dyn SecretStore> {
        Arc::new(VaultStore::new("other", &vault.address, vault_settings(vault.root_file())))
    };
    conforms(other, true).await;
    assert_eq!(read(&*open(), "b/second").await.as_deref(), Some("4"), "clusters are apart");
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_tells_what_is_wrong() {
    let vault = Vault::start().await;
    let proxy = Proxy::before(vault.listen).await;
    let through = format!("http://{}", proxy.listen);
    let store = VaultStore::new("kraken", &through, vault_settings(vault.root_file()));
    lost_answers_are_unknown(&store, &proxy).await;
    let wrong = async |store: &VaultStore| {
        let begin = Instant::now();
        let (got, put) = (store.get(&name("x")).await, store.put(&name("x"), &secret("hidden")).await);
        assert!(begin.elapsed() < Duration::from_secs(20), "it must be told soon");
        let (got, put) = (got.unwrap_err(), put.unwrap_err());
        assert!(!told(&put).contains("hidden"));
        (got, put)
    };

    // Deleted with Vault's own command, which keeps the versions.
    store.put(&name("soft"), &secret("1")).await.unwrap();
    vault.api("DELETE", "secret/data/rollcall/kraken/soft", &Value::Null).await;
    assert_eq!(read(&store, "soft").await, None);
    let said = told(&store.create(&name("soft"), &secret("2")).await.unwrap_err());
    for part in ["not for good", "vault kv undelete -versions=1 -mount=secret rollcall/kraken/soft", "metadata delete"]
    {
        assert!(said.contains(part), "{said}");
    }
    store.delete(&name("soft")).await.unwrap();
    assert_eq!(store.create(&name("soft"), &secret("2")).await.unwrap(), Created::New);

    vault.api("POST", "secret/data/rollcall/kraken/foreign", &json!({"data": {"password": "x"}})).await;
    let said = told(&store.get(&name("foreign")).await.unwrap_err());
    assert!(said.contains("no field 'value'") && said.contains("controller secret put foreign"), "{said}");

    vault.seal().await;
    let (got, put) = wrong(&store).await;
    for error in [got, put] {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        assert!(told(&error).contains("sealed") && told(&error).contains("vault operator unseal"), "{}", told(&error));
    }
    vault.unseal().await;
    assert_eq!(read(&store, "soft").await.as_deref(), Some("2"), "the same store goes on after it");

    let closed = format!("http://{}", free_address());
    let (got, put) = wrong(&VaultStore::new("kraken", &closed, vault_settings(vault.root_file()))).await;
    for error in [got, put] {
        assert!(
            matches!(error, StoreError::Unavailable { .. }),
            "a call that was never sent is not unknown: {error:?}"
        );
        assert!(told(&error).contains("Connection refused"), "{}", told(&error));
    }

    vault.api("POST", "sys/quotas/rate-limit/slow", &json!({"rate": 1, "interval": "60s", "path": "secret"})).await;
    let throttled = async {
        for _ in 0..10 {
            if let Err(error) = store.put(&name("x"), &secret("y")).await {
                return error;
            }
        }
        panic!("the quota does not hold")
    };
    let error = throttled.await;
    assert!(matches!(error, StoreError::Unavailable { .. }) && told(&error).contains("no more calls"), "{error:?}");
    vault.api("DELETE", "sys/quotas/rate-limit/slow", &Value::Null).await;

    let unknown_ca = VaultStore::new("kraken", &vault.tls_address, vault_settings(vault.root_file()));
    let (got, put) = wrong(&unknown_ca).await;
    for error in [got, put] {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        assert!(told(&error).contains("its certificate trusted?"), "{}", told(&error));
    }
    let no_ca = settings::Vault { ca_file: Some(vault.file("no-ca", "x")), ..vault_settings(vault.root_file()) };
    let (got, _) = wrong(&VaultStore::new("kraken", &vault.tls_address, no_ca)).await;
    assert!(told(&got).contains("no-ca holds no certificates"), "{}", told(&got));

    let nowhere = settings::Vault { mount: "nowhere".into(), ..vault_settings(vault.root_file()) };
    let (got, put) = wrong(&VaultStore::new("kraken", &vault.address, nowhere)).await;
    assert_eq!(told(&got), told(&put));
    assert!(told(&got).contains("there is no engine at 'nowhere'"), "{}", told(&got));
    vault.api("POST", "sys/mounts/old", &json!({"type": "kv", "options": {"version": "1"}})).await;
    let old = settings::Vault { mount: "old".into(), ..vault_settings(vault.root_file()) };
    let (_, put) = wrong(&VaultStore::new("kraken", &vault.address, old)).await;
    assert!(told(&put).contains("version 1, not kv, version 2"), "{}", told(&put));

    for (text, said) in [("s.wrong", "permission denied"), ("a\u{e4}\nb", "its token is none"), ("", "is empty")] {
        let (got, _) = wrong(&VaultStore::new("kraken", &vault.address, vault_settings(vault.file("t", text)))).await;
        assert!(told(&got).contains(said), "{}", told(&got));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_policies_keep_each_from_what_is_not_its_own() {
    let vault = Vault::start().await;
    let settings = vault_settings(vault.root_file());
    let root = VaultStore::new("kraken", &vault.address, settings.clone());
    let client = Audience::Hosts(Role::ConsulClient);
    // For every name of the table: what Vault gives to a client `a` is what the table says.
    let file = vault.token_file("client", &policies::vault(&settings, "kraken", client, Some("a"))).await;
    let store = VaultStore::new("kraken", &vault.address, vault_settings(file));
    for rule in TABLE {
        for node in ["a", "b"] {
            let text = rule.pattern.replace('*', node);
            root.put(&name(&text), &secret("value")).await.unwrap();
            let groups = ["consul_clients".to_owned()];
            let reader = rollcall_engine::secrets::ownership::Reader { host: "a", groups: &groups };
            match store.get(&name(&text)).await {
                Ok(value) => assert!(value.is_some() && rule.grants(&name(&text), reader), "{text} is given"),
                Err(error) => {
                    assert!(!rule.grants(&name(&text), reader), "{text}: {error}");
                    assert!(
                        told(&error).contains(&format!("'read' on 'secret/data/rollcall/kraken/{text}'")),
                        "{error}"
                    );
                }
            }
            for refused in [store.put(&name(&text), &secret("mine")).await, store.delete(&name(&text)).await] {
                assert!(matches!(refused, Err(StoreError::Denied { .. })), "{text}: {refused:?}");
            }
        }
    }
    for secret in ["ca/key", "consul/management", "nomad/management", "consul/token/agent/b", "consul/token/nomad/a"] {
        assert!(matches!(store.get(&name(secret)).await, Err(StoreError::Denied { .. })), "{secret}");
    }

    // Logged in with an AppRole, the policy without a node is that of the entity.
    let role = settings::VaultAuth::AppRole {
        mount: "approle".into(),
        role_id_file: vault
            .file("role-id", &approle(&vault, &policies::vault(&settings, "kraken", client, None)).await),
        secret_id_file: vault.file(
            "secret-id",
            vault.api("POST", "auth/approle/role/node/secret-id", &json!({})).await["data"]["secret_id"]
                .as_str()
                .expect("it gives an id"),
        ),
    };
    let store = VaultStore::new("kraken", &vault.address, settings::Vault { auth: role, ..settings.clone() });
    assert_eq!(read(&store, "consul/token/agent/a").await.as_deref(), Some("value"));
    assert!(matches!(store.get(&name("consul/token/agent/b")).await, Err(StoreError::Denied { .. })));
    // A token that was revoked is renewed by logging in again.
    let tokens = vault.api("GET", "auth/token/accessors?list=true", &Value::Null).await;
    for accessor in tokens["data"]["keys"].as_array().expect("a list") {
        let looked = vault.api("POST", "auth/token/lookup-accessor", &json!({"accessor": accessor})).await;
        if looked["data"]["path"] == "auth/approle/login" {
            vault.api("POST", "auth/token/revoke-accessor", &json!({"accessor": accessor})).await;
        }
    }
    assert_eq!(read(&store, "consul/gossip").await.as_deref(), Some("value"));

    // A server makes what is not there yet, once, and changes nothing.
    let server = Audience::Hosts(Role::ConsulServer);
    let file = vault.token_file("server", &policies::vault(&settings, "fresh", server, Some("s"))).await;
    let store = VaultStore::new("fresh", &vault.address, vault_settings(file));
    assert_eq!(store.create(&name("consul/management"), &secret("1")).await.unwrap(), Created::New);
    assert_eq!(store.create(&name("consul/management"), &secret("2")).await.unwrap(), Created::Exists);
    assert_eq!(read(&store, "consul/management").await.as_deref(), Some("1"));
    assert!(matches!(store.put(&name("consul/management"), &secret("3")).await, Err(StoreError::Denied { .. })));
    assert!(matches!(store.create(&name("ca/key"), &secret("x")).await, Err(StoreError::Denied { .. })));
    assert!(matches!(store.create(&name("nomad/gossip"), &secret("x")).await, Err(StoreError::Denied { .. })));

    let file = vault.token_file("all", &policies::vault(&settings, "whole", Audience::Controller, None)).await;
    let open =
        || -> Arc<dyn SecretStore> { Arc::new(VaultStore::new("whole", &vault.address, vault_settings(file.clone()))) };
    conforms(open, true).await;
}

/// An AppRole whose entity is the node `a`; its id.
async fn approle(vault: &Vault, hcl: &str) -> String {
    vault.api("PUT", "sys/policies/acl/any-client", &json!({"policy": hcl})).await;
    vault.api("POST", "sys/auth/approle", &json!({"type": "approle"})).await;
    vault.api("POST", "auth/approle/role/node", &json!({"token_policies": ["any-client"]})).await;
    let id = vault.api("GET", "auth/approle/role/node/role-id", &Value::Null).await;
    let id = id["data"]["role_id"].as_str().expect("it has an id").to_owned();
    let methods = vault.api("GET", "sys/auth", &Value::Null).await;
    let accessor = &methods["data"]["approle/"]["accessor"];
    let entity = vault.api("POST", "identity/entity", &json!({"name": "a"})).await;
    let alias = json!({"name": id, "canonical_id": entity["data"]["id"], "mount_accessor": accessor});
    vault.api("POST", "identity/entity-alias", &alias).await;
    id
}

/// A Vault that keeps its data in a Consul is no store for that Consul's secrets; for another one's it is as good as any.
#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_lives_in_consul_is_refused() {
    let consul = Consul::start().await;
    let vault = Vault::in_consul(&consul).await;
    let store = VaultStore::new("kraken", &vault.address, vault_settings(vault.root_file()));
    let refused = [
        store.get(&name("consul/management")).await.map(drop),
        store.create(&name("consul/management"), &secret("value-1")).await.map(drop),
        store.put(&name("app/password"), &secret("value-1")).await,
        store.probe().await,
    ];
    for error in refused.map(|done| done.unwrap_err()) {
        assert!(matches!(error, StoreError::Impossible { .. }), "{error:?}");
        for part in ["keeps its data in a Consul", "`other_consul: true` of the store"] {
            assert!(told(&error).contains(part), "{}", told(&error));
        }
    }

    let other = settings::Vault { other_consul: true, ..vault_settings(vault.root_file()) };
    let other = VaultStore::new("kraken", &vault.address, other);
    assert_eq!(other.list("").await.unwrap(), [], "nothing was written");
    let held = consul.keys().await;
    other.probe().await.unwrap_or_else(|e| panic!("{}", told(&e)));
    assert_eq!(other.create(&name("consul/management"), &secret("value-1")).await.unwrap(), Created::New);
    assert_eq!(read(&other, "consul/management").await.as_deref(), Some("value-1"));
    assert!(consul.keys().await > held, "its data lies in Consul");

    // Also while it is sealed this is what is told: unsealing it would not help.
    vault.seal().await;
    let store = VaultStore::new("kraken", &vault.address, vault_settings(vault.root_file()));
    let error = store.get(&name("consul/management")).await.unwrap_err();
    assert!(told(&error).contains("keeps its data in a Consul"), "{}", told(&error));
}

fn aws_settings(recovery_days: i64) -> settings::Aws {
    settings::Aws {
        region: Some("eu-west-1".into()),
        profile: None,
        endpoint: None,
        prefix: "rollcall".into(),
        kms_key: None,
        recovery_days,
        timeout: Duration::from_mins(1),
        patience: Duration::from_mins(1),
    }
}

async fn aws(cluster: &str, at: std::net::SocketAddr, recovery_days: i64) -> AwsStore {
    let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .credentials_provider(Credentials::new("lab", "lab", None, None, "tests"))
        .region(aws_config::Region::new("eu-west-1"))
        .endpoint_url(format!("http://{at}"))
        .load()
        .await;
    AwsStore::with_config(cluster, aws_settings(recovery_days), config)
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_secrets_manager_conforms() {
    let server = SecretsManager::start().await;
    for (cluster, days) in [("kraken", 0), ("other", 7)] {
        let template = Arc::new(aws(cluster, server.listen, days).await);
        let runtime = tokio::runtime::Handle::current();
        let open = || -> Arc<dyn SecretStore> {
            tokio::task::block_in_place(|| Arc::new(runtime.block_on(aws(cluster, server.listen, days))))
        };
        conforms(open, days == 0).await;
        if days > 0 {
            template.put(&name("kept"), &secret("1")).await.unwrap();
            template.delete(&name("kept")).await.unwrap();
            template.delete(&name("kept")).await.unwrap();
            assert_eq!(read(&*template, "kept").await, None);
            let error = template.create(&name("kept"), &secret("2")).await.unwrap_err();
            assert!(matches!(error, StoreError::Impossible { .. }), "{error:?}");
            assert!(told(&error).contains("restore-secret --secret-id rollcall/other/kept"), "{}", told(&error));
            what_is_made_again_by_name_goes_at_once(&template).await;
        }
    }
}

/// Whatever the recovery time: a second rotation, the same operator's token, a node that comes back.
async fn what_is_made_again_by_name_goes_at_once(store: &AwsStore) {
    for rule in TABLE {
        let name = name(&rule.pattern.replace('*', "web-1"));
        for value in ["first value", "second value"] {
            match store.create(&name, &secret(value)).await {
                Ok(made) => {
                    assert_eq!(made, Created::New, "{name}");
                    assert_eq!(read(store, name.as_str()).await.as_deref(), Some(value));
                    assert!(rule.remade || value == "first value", "'{name}' cannot be brought back");
                }
                Err(error) => {
                    assert!(!rule.remade && value == "second value", "{}", told(&error));
                    assert!(told(&error).contains(&format!("restore-secret --secret-id rollcall/other/{name}")));
                }
            }
            store.delete(&name).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_tells_what_is_wrong() {
    let server = SecretsManager::start().await;
    let proxy = Proxy::before(server.listen).await;
    let store = aws("kraken", proxy.listen, 7).await;
    lost_answers_are_unknown(&store, &proxy).await;

    let answer = |status: u16, kind: &str, message: &str| {
        let body = json!({"__type": kind, "message": message}).to_string();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\nconnection: close");
        Way::Answer(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    };
    proxy.set(answer(400, "ThrottlingException", "Rate exceeded"));
    let error = store.create(&name("x"), &secret("hidden")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }) && told(&error).contains("no more calls"), "{error:?}");

    let said = "User: arn:aws:sts::1:assumed-role/web/i-1 is not authorized to perform: secretsmanager:CreateSecret \
                on resource: arn:aws:secretsmanager:eu-west-1:1:secret:rollcall/kraken/x because no policy allows it";
    proxy.set(answer(400, "AccessDeniedException", said));
    let error = store.create(&name("x"), &secret("hidden")).await.unwrap_err();
    let wanted = "lacks secretsmanager:CreateSecret on arn:aws:secretsmanager:eu-west-1:1:secret:rollcall/kraken/x";
    assert!(matches!(error, StoreError::Denied { .. }) && told(&error).contains(wanted), "{}", told(&error));
    let error = store.get(&name("x")).await.unwrap_err();
    assert!(told(&error).contains("secretsmanager:GetSecretValue"), "{}", told(&error));

    proxy.set(answer(500, "InternalServiceError", "sorry"));
    let error = store.put(&name("x"), &secret("hidden")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }) && !format!("{error:?}").contains("hidden"), "{error:?}");
    // As AWS itself says it, which the lab's does not.
    let said = "You can't perform this operation on the secret because it was marked for deletion.";
    proxy.set(answer(400, "InvalidRequestException", said));
    let error = store.put(&name("x"), &secret("hidden")).await.unwrap_err();
    assert!(told(&error).contains("restore-secret --secret-id rollcall/kraken/x"), "{}", told(&error));
    assert!(store.get(&name("x")).await.unwrap().is_none());
    let said = "You can't create this secret because a secret with this name is already scheduled for deletion.";
    proxy.set(answer(400, "InvalidRequestException", said));
    let error = store.create(&name("x"), &secret("hidden")).await.unwrap_err();
    assert!(told(&error).contains("scheduled for deletion"), "{}", told(&error));
    // A name that is freed at once is so a moment later.
    proxy.set(answer(400, "InvalidRequestException", said));
    let (next, hidden) = (name("consul/gossip-next"), secret("hidden"));
    let (made, ()) = tokio::join!(store.create(&next, &hidden), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        proxy.set(Way::Pass);
    });
    assert_eq!(made.unwrap(), Created::New);
    proxy.set(answer(400, "DecryptionFailure", "the key is disabled"));
    let error = store.get(&name("x")).await.unwrap_err();
    assert!(told(&error).contains("kms:Decrypt"), "{}", told(&error));
    proxy.set(Way::Pass);

    let gone = aws("kraken", free_address(), 7).await;
    for error in [
        gone.get(&name("x")).await.map(drop).unwrap_err(),
        gone.create(&name("x"), &secret("1")).await.map(drop).unwrap_err(),
    ] {
        assert!(
            matches!(error, StoreError::Unavailable { .. }),
            "a call that was never sent is not unknown: {error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_store_conforms() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let open = || -> Arc<dyn SecretStore> {
        let places = Places {
            path: dir.path().join("kraken.age"),
            identity: dir.path().join("identity.txt"),
            seen: Some(dir.path().join("seen")),
            recipients: Vec::new(),
            lock_timeout: Duration::from_mins(1),
            makes_folder: false,
        };
        Arc::new(FileStore::new("kraken", places))
    };
    conforms(open, true).await;
}
