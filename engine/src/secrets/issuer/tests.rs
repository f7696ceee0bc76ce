use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{super::Created, *};

/// A store in memory that fails as it is told to.
#[derive(Debug, Default)]
struct Memory {
    values: Mutex<BTreeMap<String, Secret>>,
    gets: AtomicUsize,
    creates: AtomicUsize,
    /// So many answers to `create` are lost after the write, so many before it.
    lost: AtomicUsize,
    away: AtomicUsize,
    /// So many reads fail.
    sealed: AtomicUsize,
}

fn take(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl Memory {
    fn unknown(call: &str) -> StoreError {
        StoreError::Unknown { store: "memory".into(), call: call.into(), source: "reset by peer".into() }
    }

    fn value(&self, name: &str) -> Option<String> {
        self.values.lock().unwrap().get(name).map(|s| s.expose().to_owned())
    }

    fn set(&self, name: &str, value: &str) {
        self.values.lock().unwrap().insert(name.into(), Secret::new(value));
    }
}

#[async_trait::async_trait]
impl SecretStore for Memory {
    fn describe(&self) -> String {
        "the store in memory".into()
    }

    async fn create(&self, name: &Name, value: &Secret) -> Result<Created, StoreError> {
        self.creates.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        if take(&self.away) {
            return Err(Self::unknown("create"));
        }
        let created = {
            let mut values = self.values.lock().unwrap();
            if values.contains_key(name.as_str()) {
                Created::Exists
            } else {
                values.insert(name.to_string(), value.clone());
                Created::New
            }
        };
        if take(&self.lost) { Err(Self::unknown("create")) } else { Ok(created) }
    }

    async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        if take(&self.sealed) {
            let hint = Some("unseal it".to_owned());
            return Err(StoreError::Unavailable { store: "memory".into(), why: "it is sealed".into(), hint });
        }
        Ok(self.values.lock().unwrap().get(name.as_str()).cloned())
    }

    async fn put(&self, name: &Name, value: &Secret) -> Result<(), StoreError> {
        self.set(name.as_str(), value.expose());
        Ok(())
    }

    async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        self.values.lock().unwrap().remove(name.as_str());
        Ok(())
    }

    async fn list(&self, _: &str) -> Result<Vec<Name>, StoreError> {
        Ok(Vec::new())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn issuer(store: &Arc<Memory>) -> Issuer {
    let (store, mut own) = (Arc::clone(store) as Arc<dyn SecretStore>, Own::default());
    own.grant("app/*", vec!["web".into()]).unwrap();
    let open = move || Ok(Arc::clone(&store));
    Issuer { patience: Some(Duration::from_millis(1200)), ..Issuer::new(Box::new(open), own) }
}

async fn ask(issuer: &Issuer, groups: &[&str], name: &str, wish: Wish) -> Result<String, GrantError> {
    let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
    let got = issuer.secret(Reader { host: "h1", groups: &groups }, name, wish, &|_| ()).await;
    got.map(|secret| secret.expose().to_owned())
}

const SERVER: &[&str] = &["all", "consul_servers"];

fn refused(result: Result<String, GrantError>) -> (String, String) {
    match result {
        Err(GrantError::Refused { why, hint }) => (why, hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_rollcall_makes_is_made_once_and_read_back() {
    let store = Arc::new(Memory::default());
    let first = ask(&issuer(&store), SERVER, "consul/gossip", Wish::Make).await.unwrap();
    assert_eq!(BASE64_STANDARD.decode(&first).unwrap().len(), 32);
    assert_eq!(store.value("consul/gossip"), Some(first.clone()));
    // Another run, another controller: the same value.
    assert_eq!(ask(&issuer(&store), SERVER, "consul/gossip", Wish::Make).await.unwrap(), first);
    let token = ask(&issuer(&store), SERVER, "consul/management", Wish::Make).await.unwrap();
    assert_eq!(uuid::Uuid::parse_str(&token).unwrap().get_version_num(), 4);
    assert_eq!(store.creates.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn fifty_hosts_ask_at_once_and_the_store_is_asked_once() {
    let store = Arc::new(Memory::default());
    let issuer = Arc::new(issuer(&store));
    let asked = (0..50).map(|_| {
        let issuer = Arc::clone(&issuer);
        tokio::spawn(async move { ask(&issuer, SERVER, "consul/gossip", Wish::Make).await.unwrap() })
    });
    let mut values = std::collections::HashSet::new();
    for asked in asked.collect::<Vec<_>>() {
        values.insert(asked.await.unwrap());
    }
    assert_eq!(values.len(), 1);
    assert_eq!((store.creates.load(Ordering::SeqCst), store.gets.load(Ordering::SeqCst)), (1, 2));
}

#[tokio::test]
async fn issuers_that_race_end_with_one_value() {
    let store = Arc::new(Memory::default());
    let (a, b) = (issuer(&store), issuer(&store));
    let (a, b) =
        tokio::join!(ask(&a, SERVER, "consul/gossip", Wish::Make), ask(&b, SERVER, "consul/gossip", Wish::Make));
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(store.creates.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_lost_answer_is_asked_again_with_the_same_value() {
    for (lost, away) in [(1, 0), (0, 1), (2, 0)] {
        let store = Arc::new(Memory { lost: lost.into(), away: away.into(), ..Memory::default() });
        let issuer = issuer(&store);
        let told = Mutex::new(Vec::new());
        let groups = vec!["consul_servers".to_owned()];
        let reader = Reader { host: "h1", groups: &groups };
        let got = issuer.secret(reader, "consul/gossip", Wish::Make, &|what| told.lock().unwrap().push(what)).await;
        assert_eq!(got.ok().map(|s| s.expose().to_owned()), store.value("consul/gossip"));
        assert_eq!(store.creates.load(Ordering::SeqCst), 1 + lost + away);
        let told = told.into_inner().unwrap();
        assert_eq!(told.len(), lost + away);
        assert!(told[0].contains("nobody knows whether it happened: reset by peer"), "{told:?}");
    }
}

#[tokio::test]
async fn a_store_that_comes_back_is_waited_for_and_one_that_does_not_is_told_once() {
    let store = Arc::new(Memory { sealed: 2.into(), ..Memory::default() });
    store.set("app/db", "swordfish");
    assert_eq!(ask(&issuer(&store), &["web"], "app/db", Wish::Look).await.unwrap(), "swordfish");

    let store = Arc::new(Memory { sealed: 1000.into(), ..Memory::default() });
    let issuer = Arc::new(issuer(&store));
    let begun = Instant::now();
    let asked = (0..5).map(|_| {
        let issuer = Arc::clone(&issuer);
        tokio::spawn(async move { ask(&issuer, &["web"], "app/db", Wish::Look).await })
    });
    for asked in asked.collect::<Vec<_>>() {
        let (why, hint) = refused(asked.await.unwrap());
        assert!(why.contains("it is sealed") && hint == "unseal it", "{why} {hint}");
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "those who waited were made to wait again");
    // It is back: a failure is not for ever.
    store.sealed.store(0, Ordering::SeqCst);
    store.set("app/db", "swordfish");
    assert!(ask(&issuer, &["web"], "app/db", Wish::Look).await.is_ok());
}

#[tokio::test]
async fn who_may_not_read_is_told_who_may_and_the_store_is_not_asked() {
    let store = Arc::new(Memory::default());
    let issuer = issuer(&store);
    let (why, hint) = refused(ask(&issuer, &["all", "consul_clients"], "consul/management", Wish::Make).await);
    assert_eq!(
        why,
        "'h1' may not read the secret 'consul/management' (Consul's bootstrap token: may do everything): it is read by consul_servers"
    );
    assert!(hint.starts_with("its groups are all, consul_clients"), "{hint}");
    let (why, hint) = refused(ask(&issuer, &["all", "db"], "app/key", Wish::Look).await);
    assert!(why.contains("it is granted to web; its groups are all, db"), "{why}");
    assert_eq!(hint, "grant it in rollcall.yaml, under 'store:': `grants: {app/key: [db]}`");
    assert!(
        refused(ask(&issuer, &[], "other", Wish::Look).await).0.contains("no group is granted it; it is in no group")
    );
    let (why, hint) = refused(ask(&issuer, SERVER, "consul/gosip", Wish::Make).await);
    assert!(why.contains("there is no secret 'consul/gosip'") && hint.contains("consul/gossip"), "{why} {hint}");
    assert!(refused(ask(&issuer, SERVER, "ca/key", Wish::Look).await).0.contains("it is read by no host"));
    assert!(refused(ask(&issuer, SERVER, "../x", Wish::Look).await).0.contains("no name of a secret"));
    assert_eq!(store.gets.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn looking_makes_nothing() {
    let store = Arc::new(Memory::default());
    let issuer = issuer(&store);
    let not_yet = ask(&issuer, SERVER, "consul/gossip", Wish::Look).await.unwrap_err();
    assert!(matches!(not_yet, GrantError::NotYet(_)), "{not_yet:?}");
    assert!(store.values.lock().unwrap().is_empty());
    assert!(ask(&issuer, SERVER, "consul/gossip", Wish::Make).await.is_ok(), "a look does not stand in the way");
    let (why, hint) = refused(ask(&issuer, &["web"], "app/db", Wish::Make).await);
    assert_eq!(why, "there is no secret 'app/db' in the store in memory");
    assert_eq!(hint, "put it there: controller secret put app/db");
}

#[tokio::test]
async fn a_mark_is_written_once() {
    let store = Arc::new(Memory::default());
    for wish in [Wish::Look, Wish::Make] {
        assert!(matches!(ask(&issuer(&store), SERVER, "consul/formed", wish).await, Err(GrantError::NotYet(_))));
    }
    let formed = ask(&issuer(&store), SERVER, "consul/formed", Wish::Mark).await.unwrap();
    assert!(formed.parse::<jiff::Timestamp>().is_ok());
    assert_eq!(ask(&issuer(&store), SERVER, "consul/formed", Wish::Mark).await.unwrap(), formed);
}

const NOMAD: &[&str] = &["all", "nomad_servers"];

async fn keep(issuer: &Issuer, name: &str, value: &str, instead: Option<&str>) -> Result<String, GrantError> {
    let groups: Vec<String> = NOMAD.iter().map(|g| (*g).to_owned()).collect();
    let (reader, instead) = (Reader { host: "h1", groups: &groups }, instead.map(Secret::new));
    let kept = issuer.keep(reader, name, &Secret::new(value), instead.as_ref(), &|_| ()).await;
    kept.map(|secret| secret.expose().to_owned())
}

#[tokio::test]
async fn what_the_product_made_is_kept_once() {
    let store = Arc::new(Memory::default());
    let name = "nomad/token/server";
    for wish in [Wish::Look, Wish::Make] {
        assert!(
            matches!(ask(&issuer(&store), NOMAD, name, wish).await, Err(GrantError::NotYet(_))),
            "nobody chooses it"
        );
    }
    // Ten hosts at once, over one issuer and over ten: one wins, and all hear who.
    let one = issuer(&store);
    let mut heard = Vec::new();
    for batch in [true, false] {
        let turns = (0..5).map(|turn| {
            let (one, store) = (&one, &store);
            async move {
                let value = format!("value-{batch}-{turn}");
                if batch { keep(one, name, &value, None).await } else { keep(&issuer(store), name, &value, None).await }
            }
        });
        for turn in futures_join(turns).await {
            heard.push(turn.unwrap());
        }
    }
    let stands = store.value(name).unwrap();
    assert!(heard.iter().all(|value| *value == stands), "{heard:?}");
    assert_eq!(ask(&one, NOMAD, name, Wish::Look).await.unwrap(), stands);
    // One that is of no use is replaced, by who knows it; nobody else's is.
    assert_eq!(keep(&one, name, "value-new", Some("another")).await.unwrap(), stands);
    assert_eq!(keep(&one, name, "value-new", Some(&stands)).await.unwrap(), "value-new");
    assert_eq!(keep(&one, name, "value-later", Some(&stands)).await.unwrap(), "value-new");
    assert_eq!(ask(&one, NOMAD, name, Wish::Make).await.unwrap(), "value-new");
}

async fn futures_join<T>(turns: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = turns.map(|turn| Box::pin(async move { Some(turn.await) })).collect();
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (turn, done) in all.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            match turn.as_mut().poll(cx) {
                std::task::Poll::Ready(value) => *done = value,
                std::task::Poll::Pending => waiting = true,
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    done.into_iter().map(Option::unwrap).collect()
}

#[tokio::test]
async fn hosts_write_nothing_else() {
    let store = Arc::new(Memory::default());
    for (name, why) in [
        ("nomad/management", "is not for hosts to write"),
        ("nomad/gossip", "is not for hosts to write"),
        ("nomad/formed", "is not for hosts to write"),
        ("ca/certificate", "is not for hosts to write"),
        ("consul/management", "may not read the secret"),
        ("app/key", "it is granted to web"),
        ("../x", "no name of a secret"),
    ] {
        let (found, _) = refused(keep(&issuer(&store), name, "value-a", None).await);
        assert!(found.contains(why), "{name}: {found}");
    }
    assert!(store.values.lock().unwrap().is_empty());
    let client: Vec<String> = ["nomad_clients".to_owned()].into();
    let reader = Reader { host: "h2", groups: &client };
    let kept = issuer(&store).keep(reader, "nomad/token/server", &Secret::new("value-a"), None, &|_| ()).await;
    assert!(refused(kept.map(|_| String::new())).0.contains("it is read by nomad_servers"));
    // A lost answer to the write, and a store that is away for a moment.
    store.lost.store(1, Ordering::SeqCst);
    store.sealed.store(1, Ordering::SeqCst);
    assert_eq!(keep(&issuer(&store), "nomad/token/server", "value-a", None).await.unwrap(), "value-a");
}

#[tokio::test]
async fn a_value_that_could_not_be_hidden_is_refused() {
    let store = Arc::new(Memory::default());
    store.set("app/pin", "1234");
    assert!(refused(ask(&issuer(&store), &["web"], "app/pin", Wish::Look).await).0.contains("fewer than 6 bytes"));
}

#[test]
fn grants_are_checked() {
    let mut own = Own::default();
    let groups = || vec!["web".to_owned()];
    assert!(own.grant("consul/*", groups()).unwrap_err().contains("Rollcall's own"));
    assert!(own.grant("a[", groups()).unwrap_err().contains("is no pattern"));
    assert!(own.grant("a", Vec::new()).is_err());
    own.grant("app/**", groups()).unwrap();
    let reader = Reader { host: "h", groups: &groups() };
    assert!(own.grants(&Name::new("app/a/b").unwrap(), reader));
    assert!(!own.grants(&Name::new("application").unwrap(), reader));
}
