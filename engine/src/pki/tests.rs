//! Certificates as Consul's and Nomad's own library, and OpenSSL, would judge them.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use super::{
    authority::Certificate,
    issuer::{self, Host, Issuer},
    *,
};
use crate::secrets::{
    Created, Name, Secret, SecretStore, StoreError,
    grants::{GrantError, Issued, Product, SignRequest, Wish},
    issuer as secrets,
    ownership::Reader,
};

/// A store in memory. The next calls that it is told to lose happen, and their answers do not come.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) values: Mutex<BTreeMap<Name, Secret>>,
    pub(crate) lose: Mutex<usize>,
    /// Reads are refused, and counted.
    refuse: Mutex<Option<usize>>,
}

impl Memory {
    fn lost(&self, call: &str) -> Result<(), StoreError> {
        let mut lose = self.lose.lock().unwrap();
        if *lose == 0 {
            return Ok(());
        }
        *lose -= 1;
        let source = std::io::Error::other("cut").into();
        Err(StoreError::Unknown { store: self.describe(), call: call.into(), source })
    }
}

#[async_trait::async_trait]
impl SecretStore for Memory {
    fn describe(&self) -> String {
        "the store in memory".into()
    }
    async fn create(&self, name: &Name, value: &Secret) -> Result<Created, StoreError> {
        let created = {
            let mut values = self.values.lock().unwrap();
            match values.get(name) {
                Some(_) => Created::Exists,
                None => {
                    values.insert(name.clone(), value.clone());
                    Created::New
                }
            }
        };
        self.lost("create")?;
        Ok(created)
    }
    async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError> {
        let refused = self.refuse.lock().unwrap().as_mut().map(|count| *count += 1).is_some();
        if refused {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return Err(StoreError::Denied { store: self.describe(), call: name.to_string(), why: "no right".into() });
        }
        Ok(self.values.lock().unwrap().get(name).cloned())
    }
    async fn put(&self, name: &Name, value: &Secret) -> Result<(), StoreError> {
        self.values.lock().unwrap().insert(name.clone(), value.clone());
        self.lost("put")
    }
    async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        self.values.lock().unwrap().remove(name);
        Ok(())
    }
    async fn list(&self, _: &str) -> Result<Vec<Name>, StoreError> {
        Ok(self.values.lock().unwrap().keys().cloned().collect())
    }
    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

const DAY: Duration = Duration::from_hours(24);

fn now() -> SystemTime {
    SystemTime::now()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn consul(server: bool) -> Holder<'static> {
    let (place, domain) = ("dc1", "consul");
    Holder { product: Product::Consul, server, client: !server, place, domain, node: "web-1", address: "10.0.0.7" }
}

fn shown(holder: &Holder<'_>) -> Vec<String> {
    holder.names().unwrap().iter().map(ToString::to_string).collect()
}

fn wish(csr: &str) -> SignRequest {
    let (place, domain) = ("dc1".to_owned(), "consul".to_owned());
    SignRequest { product: Product::Consul, place, domain, lifetime: 365 * 86_400, csr: csr.to_owned() }
}

fn sign(issuer: &Issuer, name: &str, groups: &[&str], request: &SignRequest) -> Result<Issued, GrantError> {
    let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
    let host = Host { reader: Reader { host: name, groups: &groups }, address: "10.0.0.7" };
    run(issuer.sign(host, request, now(), &|_| {}))
}

fn leaf(authority: &Authority, holder: &Holder<'_>, lifetime: Duration, at: SystemTime) -> (request::Made, Leaf) {
    let made = request::make().unwrap();
    let key = request::public_key(&made.csr).unwrap();
    let pem = authority.sign(&key, holder, lifetime, at).unwrap();
    (made, Leaf::read(&pem).unwrap())
}

#[test]
fn each_node_gets_its_names_and_no_others() {
    assert_eq!(
        shown(&consul(true)),
        ["localhost", "server.dc1.consul", "web-1", "web-1.server.dc1.consul", "10.0.0.7", "127.0.0.1", "::1"]
    );
    assert_eq!(shown(&consul(false)), ["client.dc1.consul", "localhost", "web-1", "10.0.0.7", "127.0.0.1", "::1"]);
    let nomad = Holder { product: Product::Nomad, place: "eu", domain: "", client: true, ..consul(true) };
    assert_eq!(
        shown(&nomad),
        ["client.eu.nomad", "localhost", "server.eu.nomad", "web-1", "10.0.0.7", "127.0.0.1", "::1"]
    );
    // Consul knows the servers by a name; clients get none.
    let known = Holder { domain: "Corp.Example.", ..nomad };
    assert!(shown(&known).contains(&"nomad.service.corp.example".into()));
    assert!(!shown(&Holder { server: false, ..known }).iter().any(|name| name.contains("service")));
    assert!(Holder { domain: "a..b", ..nomad }.names().is_err());
    assert_eq!(consul(true).title().unwrap(), "server.dc1.consul");
    // Names in capitals, with a dot at the end, as addresses, and such as no host can have.
    let odd = Holder { domain: "Corp.Example.", node: "10.9.8.7", address: "WEB-1.Corp.Example", ..consul(true) };
    let names = shown(&odd);
    assert!(names.contains(&"server.dc1.corp.example".into()) && names.contains(&"web-1.corp.example".into()));
    assert!(names.contains(&"10.9.8.7".into()) && !names.iter().any(|n| n.starts_with("10.9.8.7.")));
    let plain = Holder { node: "web 1", address: "0.0.0.0", ..consul(false) };
    assert_eq!(shown(&plain), ["client.dc1.consul", "localhost", "127.0.0.1", "::1"]);
}

#[test]
fn a_client_gets_no_name_of_a_server_whatever_it_is_called() {
    for node in ["server.dc1.consul", "x.server.dc1.consul", "SERVER.dc1.consul", "server"] {
        for (node, address) in [(node, "10.0.0.7"), ("web-1", node)] {
            let names = shown(&Holder { node, address, ..consul(false) });
            assert!(!names.iter().any(|name| name.contains("server")), "{names:?}");
        }
    }
    // What the host says of its place cannot make one either.
    for (place, domain) in [
        ("dc1.consul", "consul"),
        ("server.dc1", "consul"),
        ("", "consul"),
        ("*", "consul"),
        ("dc1", "*"),
        ("dc1", ""),
        ("dc1", "a..b"),
        ("dc1", "."),
        ("dc1\0", "consul"),
        ("dc1,DNS:server", "consul"),
        ("-dc1", "consul"),
        (&"a".repeat(64), "consul"),
        ("dc1", &["a"; 120].join(".")),
    ] {
        assert!(Holder { place, domain, ..consul(false) }.names().is_err(), "{place:?} {domain:?}");
    }
}

#[test]
fn openssl_takes_what_the_authority_signs() {
    let authority = Authority::make("kraken", now()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("ca.pem"), &authority.certificate().pem).unwrap();
    let made = request::make().unwrap();
    let key = request::public_key(&made.csr).unwrap();
    std::fs::write(at("leaf.pem"), authority.sign(&key, &consul(true), DAY, now()).unwrap()).unwrap();
    std::fs::write(at("key.pem"), made.key.as_bytes()).unwrap();
    std::fs::write(at("csr.pem"), &made.csr).unwrap();
    let openssl = |words: &[&str]| {
        let out = Command::new("openssl").args(words).output().expect("the program openssl is there");
        (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let (ca, leaf) = (at("ca.pem"), at("leaf.pem"));
    for purpose in ["sslserver", "sslclient"] {
        for name in ["server.dc1.consul", "web-1.server.dc1.consul", "localhost"] {
            let said = openssl(&[
                "verify",
                "-x509_strict",
                "-CAfile",
                &ca,
                "-purpose",
                purpose,
                "-verify_hostname",
                name,
                &leaf,
            ]);
            assert!(said.0, "{purpose} {name}: {}", said.1);
        }
    }
    let said = openssl(&["verify", "-CAfile", &ca, "-verify_ip", "10.0.0.7", &leaf]);
    assert!(said.0, "{}", said.1);
    assert!(!openssl(&["verify", "-CAfile", &ca, "-verify_hostname", "server.dc2.consul", &leaf]).0);
    let (_, text) = openssl(&["x509", "-in", &ca, "-noout", "-text"]);
    for part in ["CA:TRUE, pathlen:0", "Certificate Sign", "prime256v1", "CN = kraken certificate authority"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (_, public) = openssl(&["pkey", "-in", &at("key.pem"), "-pubout"]);
    assert_eq!(openssl(&["x509", "-in", &leaf, "-noout", "-pubkey"]).1, public);
    assert!(openssl(&["req", "-in", &at("csr.pem"), "-noout", "-verify"]).0);
}

#[test]
fn an_authority_that_somebody_brings_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, words: &str| {
        let at = |end: &str| folder.path().join(format!("{name}.{end}")).display().to_string();
        let line = format!("req -x509 -nodes -days 30 -keyout {} -out {} {words}", at("key"), at("pem"));
        let out = Command::new("openssl").args(line.split(' ')).output().expect("the program openssl is there");
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        (std::fs::read_to_string(at("key")).unwrap(), std::fs::read_to_string(at("pem")).unwrap())
    };
    let ca = "-addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign -subj";
    for (name, words) in [
        ("ec", format!("-newkey ec -pkeyopt ec_paramgen_curve:P-384 {ca} /CN=corp")),
        ("rsa", format!("-newkey rsa:2048 {ca} /C=DE/O=Corp/CN=corp")),
        ("ed", format!("-newkey ed25519 {ca} /O=Corp/CN=corp")),
    ] {
        let (key, pem) = make(name, &words);
        let authority = Authority::read(&key, &pem).unwrap_or_else(|e| panic!("{name}: {e}"));
        authority.usable(now()).unwrap_or_else(|e| panic!("{name}: {}", e.chain()));
        let again = Authority::from_record(authority.record()).unwrap();
        assert_eq!(again.certificate(), authority.certificate());
        let (made, leaf) = leaf(&again, &consul(true), DAY, now());
        assert!(leaf.fits(&made.key).unwrap() && leaf.is_signed_by(authority.certificate()), "{name}");
    }
    let (key, pem) = make("good", &format!("-newkey rsa:2048 {ca} /CN=corp"));
    let (other, _) = make("other", &format!("-newkey rsa:2048 {ca} /CN=corp"));
    let (plain_key, plain) = make("plain", "-newkey rsa:2048 -addext basicConstraints=critical,CA:FALSE -subj /CN=web");
    let (weak_key, weak) = make("weak", &format!("-newkey rsa:1024 {ca} /CN=corp"));
    let (mute_key, mute) =
        make("mute", "-newkey rsa:2048 -addext basicConstraints=CA:TRUE -addext keyUsage=cRLSign -subj /CN=c");
    let says = |key: &str, pem: &str, part: &str| {
        let error = Authority::read(key, pem).unwrap_err().chain();
        assert!(error.contains(part), "{part}: {error}");
    };
    says(&other, &pem, "belongs to another certificate");
    says(&plain_key, &plain, "lack CA:TRUE");
    says(&mute_key, &mute, "lacks keyCertSign");
    says(&weak_key, &weak, "RSA of 1024 bits");
    says(&key, &format!("{pem}{plain}"), "2 blocks");
    says(&key, "", "no block '-----BEGIN CERTIFICATE-----'");
    says("", &pem, "no block '-----BEGIN PRIVATE KEY-----'");
    says(&format!("{key}{other}"), &pem, "2 private keys");
    says("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", &pem, "passphrase");
    says("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &pem, "no private key of a kind");
    says(&key, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "X.509");
    says(&key, &"x".repeat(MAX_PEM + 1), "more than");
    // The key is in none of the messages.
    for line in key.lines().filter(|line| !line.starts_with('-')) {
        assert!(!format!("{:?}", Authority::read(&key, &pem).unwrap()).contains(line));
    }
    // One that ended, and one that has not begun.
    let authority = Authority::read(&key, &pem).unwrap();
    let later = now() + 31 * DAY;
    assert!(authority.usable(later).unwrap_err().to_string().contains("ended on"));
    assert!(authority.usable(now() - 2 * DAY).unwrap_err().to_string().contains("counts from"));
}

#[test]
fn requests_prove_a_strong_key_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |words: &str| {
        let out = folder.path().join("csr.pem").display().to_string();
        let key = folder.path().join("key.pem").display().to_string();
        let line = format!("req -new -nodes -keyout {key} -out {out} {words}");
        let ran = Command::new("openssl").args(line.split(' ')).output().expect("the program openssl is there");
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        std::fs::read_to_string(out).unwrap()
    };
    // Names and uses of a request are not taken over.
    let wanting = openssl(
        "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=server.dc1.consul -addext subjectAltName=DNS:server.dc1.consul \
         -addext basicConstraints=critical,CA:TRUE",
    );
    let authority = Authority::make("kraken", now()).unwrap();
    let key = request::public_key(&wanting).unwrap();
    let pem = authority.sign(&key, &consul(false), DAY, now()).unwrap();
    assert_eq!(Leaf::read(&pem).unwrap().names, consul(false).names().unwrap());
    assert!(Certificate::read(&pem).unwrap_err().to_string().contains("CA:TRUE"));
    for good in ["-newkey ed25519 -subj /CN=a", "-newkey rsa:3072 -subj /CN=a"] {
        request::public_key(&openssl(good)).unwrap();
    }
    let refused = |csr: &str, part: &str| {
        let error = request::public_key(csr).unwrap_err().chain();
        assert!(error.contains(part), "{part}: {error}");
    };
    refused(&openssl("-newkey rsa:1024 -subj /CN=a"), "RSA of 1024 bits");
    refused(&openssl("-newkey ec -pkeyopt ec_paramgen_curve:secp256k1 -subj /CN=a"), "1.3.132.0.10");
    refused("", "no block");
    refused("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "PKCS #10");
    refused(&format!("{wanting}{}", " ".repeat(20_000)), "more than");
    refused(&format!("{wanting}{wanting}"), "2 blocks");
    // Somebody else's key under a signature: every changed byte of the body is found.
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body: String = wanting.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(body).unwrap();
    for at in (0..der.len()).step_by(7) {
        let mut changed = der.clone();
        changed[at] ^= 1;
        let label = "CERTIFICATE REQUEST";
        let pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(&changed));
        assert!(request::public_key(&pem).is_err(), "byte {at}");
    }
}

#[test]
fn a_leaf_is_replaced_for_a_reason_only() {
    let (authority, other) = (Authority::make("a", now()).unwrap(), Authority::make("a", now()).unwrap());
    let ca = authority.certificate();
    let (made, leaf) = leaf(&authority, &consul(true), 90 * DAY, now());
    let wanted = consul(true).names().unwrap();
    let due = |key: &str, ca: &Certificate, names: &BTreeSet<AltName>, days: i64, before: Option<Duration>| {
        leaf.due(key, ca, names, seconds(now()) + days * 86_400, before)
    };
    assert_eq!(due(&made.key, ca, &wanted, 0, None), None);
    assert_eq!(due(&made.key, ca, &wanted, 59, None), None);
    assert!(matches!(due(&made.key, ca, &wanted, 61, None), Some(Reason::Ends(_))));
    assert!(matches!(due(&made.key, ca, &wanted, 90, None), Some(Reason::Ended(_))));
    assert!(matches!(due(&made.key, ca, &wanted, -1, None), Some(Reason::Early(_))));
    assert_eq!(due(&made.key, ca, &wanted, 61, Some(10 * DAY)), None);
    assert!(matches!(due(&made.key, ca, &wanted, 81, Some(10 * DAY)), Some(Reason::Ends(_))));
    assert_eq!(due(&request::make().unwrap().key, ca, &wanted, 0, None), Some(Reason::Key));
    assert!(matches!(due("junk", ca, &wanted, 0, None), Some(Reason::Unusable(_))));
    // The same name, another key.
    assert_eq!(other.certificate().subject, ca.subject);
    assert_eq!(due(&made.key, other.certificate(), &wanted, 0, None), Some(Reason::Authority));
    let said = due(&made.key, ca, &consul(false).names().unwrap(), 0, None).unwrap().to_string();
    assert_eq!(said, "it lacks client.dc1.consul, and is good for server.dc1.consul, web-1.server.dc1.consul as well");
}

#[test]
fn a_leaf_never_outlives_its_authority() {
    let made = now() - 3_640 * DAY;
    let authority = Authority::make("old", made).unwrap();
    let (key, leaf) = leaf(&authority, &consul(true), 365 * DAY, now());
    assert_eq!(leaf.not_after, authority.certificate().not_after);
    assert!(leaf.life() < 13 * 86_400);
    // Nothing better is to be had: it is not renewed at each run of its last days.
    let wanted = consul(true).names().unwrap();
    let at = leaf.not_after - 60;
    assert_eq!(leaf.due(&key.key, authority.certificate(), &wanted, at, None), None);
    assert!(matches!(leaf.due(&key.key, authority.certificate(), &wanted, at + 60, None), Some(Reason::Ended(_))));
    // Short lives are not over at once because of the time before.
    let (key, short) = super::tests::leaf(&authority, &consul(true), Duration::from_mins(1), now());
    assert_eq!(short.due(&key.key, authority.certificate(), &wanted, seconds(now()), None), None);
    let serials: BTreeSet<String> =
        (0..20).map(|_| super::tests::leaf(&authority, &consul(true), DAY, now()).1.serial).collect();
    assert_eq!(serials.len(), 20);
    assert!(serials.iter().all(|s| s.len() == 32));
}

#[test]
fn the_issuer_decides_who_gets_what() {
    let store = Arc::new(Memory::default());
    let issuer = Issuer::new(store.clone(), "kraken");
    let made = request::make().unwrap();
    let given = sign(&issuer, "s-1", &["all", "consul_servers", "consul_clients"], &wish(&made.csr)).unwrap();
    let server = Leaf::read(&given.certificate).unwrap();
    let dns = |name: &str| AltName::Dns(name.into());
    assert!(server.names.contains(&dns("server.dc1.consul")) && server.names.contains(&dns("s-1")));
    let client = Leaf::read(&sign(&issuer, "c-1", &["consul_clients"], &wish(&made.csr)).unwrap().certificate).unwrap();
    assert!(client.names.contains(&dns("client.dc1.consul")) && !client.names.contains(&dns("server.dc1.consul")));
    let nomad = SignRequest { product: Product::Nomad, domain: String::new(), ..wish(&made.csr) };
    for (groups, request, part) in [
        (&["all"][..], wish(&made.csr), "neither in consul_servers nor in consul_clients"),
        (&["consul_servers"], nomad, "it gets no certificate of Nomad"),
        (&["consul_servers"], SignRequest { place: "a.b".into(), ..wish(&made.csr) }, "the datacenter 'a.b'"),
        (&["consul_servers"], SignRequest { lifetime: 59, ..wish(&made.csr) }, "a minute to ten years"),
        (&["consul_servers"], SignRequest { lifetime: u64::MAX, ..wish(&made.csr) }, "a minute to ten years"),
        (&["consul_servers"], wish("junk"), "no block"),
    ] {
        let Err(GrantError::Refused { why, .. }) = sign(&issuer, "h", groups, &request) else { panic!("{part}") };
        assert!(why.contains(part), "{part}: {why}");
    }
    // The record holds both, the certificate stands beside it, and is what hosts get.
    let values = store.values.lock().unwrap();
    let value = |name: &str| values[&Name::new(name).unwrap()].expose().to_owned();
    assert!(value("ca/key").contains("PRIVATE KEY") && value("ca/key").ends_with(&given.authority));
    assert_eq!(value("ca/certificate"), given.authority);
}

#[test]
fn of_many_that_make_an_authority_all_use_one() {
    let store = Arc::new(Memory::default());
    *store.lose.lock().unwrap() = 3;
    let issuers: Vec<Issuer> = (0..20).map(|_| Issuer::new(store.clone(), "kraken")).collect();
    let found = run(async {
        let mut found = BTreeSet::new();
        let asked = issuers.iter().map(|issuer| issuer.certificate(true, now(), &|_| {}));
        for certificate in asked.map(Box::pin).collect::<Vec<_>>() {
            found.insert(certificate.await.unwrap().expose().to_owned());
        }
        found
    });
    assert_eq!(found.len(), 1);
    // A check makes none, and says so.
    let empty = Arc::new(Memory::default());
    let checked = run(Issuer::new(empty.clone(), "k").certificate(false, now(), &|_| {}));
    assert!(matches!(checked, Err(GrantError::NotYet(_))) && empty.values.lock().unwrap().is_empty());
    // A certificate without its key: nobody makes another authority unasked.
    let lost = Arc::new(Memory::default());
    let left = Secret::new(found.first().unwrap().clone());
    lost.values.lock().unwrap().insert(Name::new(issuer::CERTIFICATE).unwrap(), left);
    for make in [true, false] {
        let said = run(Issuer::new(lost.clone(), "k").certificate(make, now(), &|_| {}));
        let Err(GrantError::Refused { why, .. }) = said else { panic!("{make}") };
        assert!(why.contains("has 'ca/certificate' and no 'ca/key'"), "{why}");
    }
    assert_eq!(lost.values.lock().unwrap().len(), 1);
    let back = Authority::make("a", now()).unwrap();
    assert!(!run(issuer::import(&*lost, &back, false, now(), &|_| {})).unwrap());
    let there = run(Issuer::new(lost.clone(), "k").certificate(true, now(), &|_| {})).unwrap();
    assert_eq!(there.expose(), back.certificate().pem);
    // A record that is damaged is never written over.
    let name = Name::new(issuer::KEY).unwrap();
    empty.values.lock().unwrap().insert(name.clone(), Secret::new("a record that is damaged"));
    assert!(matches!(
        run(Issuer::new(empty.clone(), "k").certificate(true, now(), &|_| {})),
        Err(GrantError::Refused { .. })
    ));
    assert_eq!(empty.values.lock().unwrap()[&name].expose(), "a record that is damaged");
}

#[test]
fn hosts_that_ask_at_once_share_one_answer() {
    let store = Arc::new(Memory::default());
    *store.refuse.lock().unwrap() = Some(0);
    let shared: Arc<dyn SecretStore> = store.clone();
    let office = secrets::Issuer::new(Box::new(move || Ok(Arc::clone(&shared))), secrets::Own::default());
    let office = Arc::new(office.of_cluster("kraken"));
    let made = Arc::new(request::make().unwrap());
    let ask = || {
        run(async {
            let asking = (0..20).map(|n| {
                let (office, made) = (Arc::clone(&office), Arc::clone(&made));
                tokio::spawn(async move {
                    let groups = ["consul_servers".to_owned()];
                    let reader = Reader { host: "s-1", groups: &groups };
                    if n % 2 == 0 {
                        return office.secret(reader, issuer::CERTIFICATE, Wish::Make, &|_| {}).await.map(drop);
                    }
                    office.sign(Host { reader, address: "10.0.0.7" }, &wish(&made.csr), &|_| {}).await.map(drop)
                })
            });
            let mut answers = Vec::new();
            for answer in asking.collect::<Vec<_>>() {
                answers.push(answer.await.unwrap());
            }
            answers
        })
    };
    for answer in ask() {
        assert!(answer.unwrap_err().to_string().contains("no right"));
    }
    assert_eq!(*store.refuse.lock().unwrap(), Some(1), "one conversation with the store for all");
    // The next one who asks is not told of a failure that is past.
    *store.refuse.lock().unwrap() = None;
    for answer in ask() {
        answer.unwrap();
    }
    let certificates = |name: &str| store.values.lock().unwrap().contains_key(&Name::new(name).unwrap());
    assert!(certificates(issuer::KEY) && certificates(issuer::CERTIFICATE));
    let client = ["consul_clients".to_owned()];
    let reader = Reader { host: "c-1", groups: &client };
    assert!(run(office.secret(reader, issuer::KEY, Wish::Look, &|_| {})).is_err(), "no host reads the key");
}

#[test]
fn an_authority_is_brought_once_and_replaced_only_on_demand() {
    let store = Memory::default();
    let (first, second) = (Authority::make("a", now()).unwrap(), Authority::make("b", now()).unwrap());
    assert!(!run(issuer::import(&store, &first, false, now(), &|_| {})).unwrap());
    assert!(!run(issuer::import(&store, &first, false, now(), &|_| {})).unwrap());
    let Err(GrantError::Refused { why, hint }) = run(issuer::import(&store, &second, false, now(), &|_| {})) else {
        panic!()
    };
    assert!(why.contains("has a certificate authority already") && hint.unwrap().contains("--replace"));
    assert_eq!(run(issuer::find(&store, &|_| {})).unwrap().unwrap().certificate(), first.certificate());
    assert!(run(issuer::import(&store, &second, true, now(), &|_| {})).unwrap());
    assert_eq!(run(issuer::find(&store, &|_| {})).unwrap().unwrap().certificate(), second.certificate());
    let certificate = run(store.get(&Name::new(issuer::CERTIFICATE).unwrap())).unwrap().unwrap();
    assert_eq!(certificate.expose(), second.certificate().pem);
    let old = Authority::make("c", now() - 4_000 * DAY).unwrap();
    assert!(run(issuer::import(&store, &old, true, now(), &|_| {})).is_err());
}
