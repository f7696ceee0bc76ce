use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use super::*;
use crate::{
    modules::fake::{Fake, call, go},
    secrets::grants::{Issued, SignRequest},
};

/// What a Nomad knows of tokens: accessor, secret, body.
type Tokens = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A Nomad that keeps tokens, and nothing else.
#[derive(Clone, Debug)]
struct Server {
    url: String,
    tokens: Tokens,
    made: Arc<AtomicUsize>,
    /// So many answers to a creation are lost after it.
    lost: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, tokens: Tokens::default(), made: Arc::default(), lost: Arc::default() };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, serving) = (stream.unwrap(), serving.clone());
                std::thread::spawn(move || {
                    let request = request(&mut stream);
                    let (status, body) = serving.answer(&request);
                    if status == 0 {
                        return;
                    }
                    let text = format!(
                        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = stream.write_all(text.as_bytes());
                });
            }
        });
        server
    }

    fn answer(&self, request: &str) -> (u16, String) {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let token = request.lines().find_map(|l| l.strip_prefix("x-nomad-token: ")).unwrap_or_default().to_owned();
        let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap_or(Value::Null);
        let mut tokens = self.tokens.lock().unwrap();
        let shown = |(accessor, secret, body): &(String, String, Value), with: bool| {
            let mut shown = body.clone();
            shown["AccessorID"] = json!(accessor);
            if with {
                shown["SecretID"] = json!(secret);
            }
            shown
        };
        if path == "/v1/acl/token/self" {
            return match tokens.iter().find(|(_, secret, _)| *secret == token) {
                Some(found) => (200, shown(found, true).to_string()),
                None => (403, "Permission denied".into()),
            };
        }
        if token != "management" {
            return (403, "Permission denied".into());
        }
        let accessor = path.strip_prefix("/v1/acl/token/").unwrap_or_default().to_owned();
        match (method, path) {
            ("GET", "/v1/acl/tokens") => (200, tokens.iter().map(|t| shown(t, false)).collect::<Value>().to_string()),
            ("PUT", "/v1/acl/token") => {
                let number = self.made.fetch_add(1, Ordering::SeqCst);
                tokens.push((format!("accessor-{number}"), format!("secret-{number}"), body));
                if self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                    return (0, String::new());
                }
                (200, shown(tokens.last().unwrap(), true).to_string())
            }
            ("PUT", _) => {
                let found = tokens.iter_mut().find(|(known, ..)| *known == accessor).unwrap();
                found.2 = body;
                (200, shown(found, true).to_string())
            }
            _ => {
                let before = tokens.len();
                tokens.retain(|(known, ..)| *known != accessor);
                if tokens.len() < before {
                    (200, String::new())
                } else {
                    (400, "Cannot delete nonexistent tokens: x".into())
                }
            }
        }
    }

    fn secrets(&self) -> Vec<String> {
        self.tokens.lock().unwrap().iter().map(|(_, secret, _)| secret.clone()).collect()
    }

    fn has(&self, secret: &str, name: &str) {
        let body = json!({"Name": name, "Type": "client", "Policies": ["p"], "Global": false});
        self.tokens.lock().unwrap().push((format!("of-{secret}"), secret.to_owned(), body));
    }
}

fn request(stream: &mut std::net::TcpStream) -> String {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        all.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let head = text.split_once("\r\n\r\n");
        let length =
            |head: &str| head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if count == 0 || head.is_some_and(|(head, body)| body.len() >= length(&head.to_lowercase())) {
            return text;
        }
    }
}

/// A store of one name.
#[derive(Debug, Default)]
struct Store {
    value: Mutex<Option<Secret>>,
    /// So many values are not kept.
    away: AtomicUsize,
}

impl Grants for Store {
    fn secret(&self, _: &Name) -> Result<Secret, GrantError> {
        self.value.lock().unwrap().clone().ok_or_else(|| GrantError::NotYet("not there".into()))
    }
    fn keep(&self, _: &Name, value: &Secret, in_place_of: Option<&Secret>) -> Result<Secret, GrantError> {
        if self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(GrantError::refused("the store is away"));
        }
        let mut stands = self.value.lock().unwrap();
        if stands.is_none() || (stands.as_ref() == in_place_of) {
            *stands = Some(value.clone());
        }
        Ok(stands.clone().unwrap())
    }
    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("no"))
    }
}

impl Store {
    fn with(value: &str) -> Arc<Self> {
        Arc::new(Self { value: Mutex::new(Some(Secret::new(value))), away: AtomicUsize::default() })
    }

    fn value(&self) -> Option<String> {
        self.value.lock().unwrap().as_ref().map(|secret| secret.expose().to_owned())
    }
}

const NAME: &str = "Made by Rollcall: servers";

fn args(server: &Server) -> Value {
    json!({"purpose": "servers", "secret_from": "nomad/token/server", "policies": ["p"], "token": "management",
        "url": server.url, "wait": 0})
}

fn done(server: &Server, store: &Arc<Store>, more: Value) -> Result<Outcome, Failure> {
    let mut args = args(server);
    for (key, value) in more.as_object().unwrap() {
        args[key] = value.clone();
    }
    let (mut host, facts) = (Fake::new(), json!({}));
    let grants = Arc::clone(store) as Arc<dyn Grants>;
    let planned = plan(&call("nomad_acl_token", args), &Cx { host: &host, facts: &facts, secrets: &grants })?;
    match planned {
        Plan::Unchanged(outcome) => Ok(outcome),
        Plan::Change(change) => change.apply(&mut host),
    }
}

#[test]
fn it_is_made_once_and_found_again() {
    let (server, store) = (Server::start(), Arc::new(Store::default()));
    let made = done(&server, &store, json!({})).unwrap();
    assert!(made.changed && made.data["accessor_id"] == "accessor-0", "{made:?}");
    assert_eq!((server.secrets(), store.value()), (vec!["secret-0".to_owned()], Some("secret-0".into())));
    let again = done(&server, &store, json!({})).unwrap();
    assert!(!again.changed && again.data["accessor_id"] == "accessor-0");
    // Other rights are given to the same token; another kind is another token.
    assert!(done(&server, &store, json!({"policies": ["q"]})).unwrap().changed);
    assert_eq!((server.secrets(), store.value()), (vec!["secret-0".to_owned()], Some("secret-0".into())));
    let other = done(&server, &store, json!({"policies": [], "management": true})).unwrap();
    assert!(other.changed && other.data["accessor_id"] == "accessor-1");
    assert_eq!((server.secrets(), store.value()), (vec!["secret-1".to_owned()], Some("secret-1".into())));
    // And gone.
    assert!(done(&server, &store, json!({"state": "absent"})).unwrap().changed);
    assert!(server.secrets().is_empty());
    assert!(!done(&server, &store, json!({"state": "absent"})).unwrap().changed);
}

#[test]
fn what_somebody_deleted_is_made_anew_and_what_nobody_kept_is_removed() {
    let (server, store) = (Server::start(), Store::with("dead-secret"));
    server.has("orphan", NAME);
    server.has("somebody-elses", "Made by Rollcall: server");
    assert!(done(&server, &store, json!({})).unwrap().changed);
    assert_eq!(server.secrets(), ["somebody-elses", "secret-0"]);
    assert_eq!(store.value().as_deref(), Some("secret-0"));
    // A lost answer leaves one that nobody has: it is gone when this is over.
    let (server, store) = (Server::start(), Arc::new(Store::default()));
    server.lost.store(1, Ordering::SeqCst);
    assert!(done(&server, &store, json!({})).unwrap().changed);
    assert_eq!((server.secrets(), store.value().as_deref()), (vec!["secret-1".to_owned()], Some("secret-1")));
}

#[test]
fn what_cannot_be_kept_is_not_left_behind() {
    let (server, store) = (Server::start(), Arc::new(Store::default()));
    store.away.store(1, Ordering::SeqCst);
    let failure = done(&server, &store, json!({})).unwrap_err();
    assert!(failure.message.contains("the store is away") && !failure.changed, "{failure}");
    assert_eq!((server.secrets().len(), store.value()), (0, None));
    assert!(done(&server, &store, json!({})).unwrap().changed);
}

#[test]
fn of_any_number_that_make_it_at_once_one_stays() {
    for dead in [false, true] {
        let server = Server::start();
        let store = if dead { Store::with("dead-secret") } else { Arc::new(Store::default()) };
        std::thread::scope(|scope| {
            let racers: Vec<_> = (0..6).map(|_| scope.spawn(|| done(&server, &store, json!({})))).collect();
            for racer in racers {
                racer.join().unwrap().unwrap();
            }
        });
        assert_eq!(server.secrets(), [store.value().unwrap()]);
        assert!(!done(&server, &store, json!({})).unwrap().changed);
    }
}

#[test]
fn the_secret_of_another_token_is_refused() {
    let (server, store) = (Server::start(), Store::with("foreign"));
    server.has("foreign", "an operator's");
    let failure = done(&server, &store, json!({})).unwrap_err();
    assert_eq!(failure.message, "the secret 'nomad/token/server' belongs to another token: 'an operator's'");
    assert_eq!(server.secrets(), ["foreign"]);
}

#[test]
fn bad_arguments_are_told_before_anything_is_asked() {
    for (args, why) in [
        (json!({"purpose": "", "secret_from": "a/b", "policies": ["p"]}), "expected 1 to 238 characters"),
        (json!({"purpose": "x".repeat(239), "secret_from": "a/b", "policies": ["p"]}), "expected 1 to 238 characters"),
        (json!({"purpose": "x", "secret_from": "a/b"}), "the token may do nothing"),
        (json!({"purpose": "x", "secret_from": "a/b", "policies": ["p"], "management": true}), "has no policies"),
        (json!({"purpose": "x", "secret_from": "A", "policies": ["p"]}), "is no name of a secret"),
        (json!({"purpose": "x", "secret_from": "a/b", "policies": ["p"], "ttl": 0}), "at least 1"),
    ] {
        let failure = go(&mut Fake::new(), "nomad_acl_token", args.clone()).unwrap_err();
        assert!(failure.message.contains(why), "{args}: {failure}");
    }
}
