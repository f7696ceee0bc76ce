use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;

use super::*;
use crate::cloud::State as InstanceState;
use crate::cloud::moto::plain_client;

/// One instance, whatever the address; or none.
struct One(Mutex<Option<Instance>>);

impl Callers for One {
    fn instance(&self, _: Ipv4Addr) -> Option<Instance> {
        self.0.lock().unwrap().clone()
    }
}

/// Two instances, at 127.0.0.2 and 127.0.0.3.
struct Two;

impl Callers for Two {
    fn instance(&self, address: Ipv4Addr) -> Option<Instance> {
        let id = match address.octets()[3] {
            2 => "i-0000000000000000a",
            3 => "i-0000000000000000b",
            _ => return None,
        };
        Some(Instance { id: id.to_owned(), address, ..instance() })
    }
}

fn instance() -> Instance {
    let tags =
        [("Name", "consul-server-1"), ("Cluster", "kraken"), ("with space", "no"), ("a/b", "no"), ("ü:x", "yes")];
    Instance {
        id: "i-0123456789abcdef0".to_owned(),
        name: "consul-server-1".to_owned(),
        state: InstanceState::Running,
        address: Ipv4Addr::new(10, 77, 1, 10),
        zone: "us-west-2b".to_owned(),
        region: "us-west-2".to_owned(),
        instance_type: "t3.micro".to_owned(),
        image: "debian-12".to_owned(),
        image_id: "ami-0123456789abcdef0".to_owned(),
        tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect::<IndexMap<_, _>>(),
        key_name: Some("kraken".to_owned()),
        public_keys: vec!["ssh-ed25519 AAAA kraken".to_owned()],
        user_data: Some(b"#!/bin/sh\n\x00\xff".to_vec()),
        launch_time: "2026-01-01T00:00:00.000Z".to_owned(),
    }
}

async fn served(callers: impl Callers) -> String {
    served_with(router(Arc::new(callers))).await
}

async fn served_with(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    format!("http://{address}")
}

async fn one() -> (String, reqwest::Client) {
    (served(One(Mutex::new(Some(instance())))).await, plain_client().unwrap())
}

async fn token(client: &reqwest::Client, base: &str, ttl: &str) -> String {
    let answer = client.put(format!("{base}/latest/api/token")).header(TTL_HEADER, ttl).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()[TTL_HEADER], ttl);
    answer.text().await.unwrap()
}

async fn get(client: &reqwest::Client, base: &str, token: &str, path: &str) -> (u16, String) {
    let answer = client.get(format!("{base}/{path}")).header(TOKEN_HEADER, token).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn an_instance_reads_itself() {
    let (base, client) = one().await;
    let token = token(&client, &base, "21600").await;
    for (path, value) in [
        ("meta-data/instance-id", "i-0123456789abcdef0"),
        ("meta-data/instance-type", "t3.micro"),
        ("meta-data/ami-id", "ami-0123456789abcdef0"),
        ("meta-data/placement/availability-zone", "us-west-2b"),
        ("meta-data/placement/region", "us-west-2"),
        ("meta-data/local-ipv4", "10.77.1.10"),
        ("meta-data/local-hostname", "ip-10-77-1-10.us-west-2.compute.internal"),
        ("meta-data/public-keys/", "0=kraken"),
        ("meta-data/public-keys", "0=kraken"),
        ("meta-data/public-keys/0/", "openssh-key"),
        ("meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA kraken"),
        ("meta-data/placement/", "availability-zone\nregion"),
        ("meta-data/tags/instance/", "Cluster\nName\nü:x"),
        ("meta-data/tags/instance/Cluster", "kraken"),
        ("meta-data/tags/instance/%C3%BC%3Ax", "yes"),
        ("", "dynamic/\nmeta-data/\nuser-data"),
    ] {
        assert_eq!(get(&client, &base, &token, &format!("latest/{path}")).await, (200, value.to_owned()), "{path}");
    }
    let data = client.get(format!("{base}/2021-07-15/user-data")).header(TOKEN_HEADER, &token).send().await.unwrap();
    assert_eq!(data.bytes().await.unwrap().as_ref(), b"#!/bin/sh\n\x00\xff");
    let (_, text) = get(&client, &base, &token, "latest/dynamic/instance-identity/document").await;
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["region"], &document["privateIp"]), (&"us-west-2".into(), &"10.77.1.10".into()));
    let (_, listing) = get(&client, &base, &token, "latest/meta-data/").await;
    assert!(
        listing.lines().any(|line| line == "public-keys/") && listing.lines().any(|line| line == "ami-id"),
        "{listing}"
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (base, client) = one().await;
    let token = token(&client, &base, "60").await;
    for path in [
        "latest/meta-data/nothing",
        "latest/meta-data/public-ipv4",
        "1999-01-01/meta-data/",
        "latest/meta-data/tags/instance/Nope",
        "latest/%zz",
    ] {
        assert_eq!(get(&client, &base, &token, path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn nothing_without_a_good_token() {
    let (base, client) = one().await;
    let url = format!("{base}/latest/meta-data/instance-id");
    let plain = client.get(&url).send().await.unwrap();
    assert_eq!((plain.status().as_u16(), plain.headers()["server"].to_str().unwrap()), (401, "EC2ws"));
    assert_eq!(get(&client, &base, "AQAAA", "latest/meta-data/instance-id").await.0, 401);
    assert_eq!(client.post(&url).send().await.unwrap().status(), 405);
}

#[tokio::test]
async fn tokens_are_given_as_aws_gives_them() {
    let (base, client) = one().await;
    let url = format!("{base}/latest/api/token");
    assert_eq!(client.put(&url).send().await.unwrap().status(), 400);
    for ttl in ["0", "21601", "-1", "1.5", "abc", ""] {
        assert_eq!(client.put(&url).header(TTL_HEADER, ttl).send().await.unwrap().status(), 400, "{ttl}");
    }
    let proxied = client.put(&url).header(TTL_HEADER, "60").header("X-Forwarded-For", "10.0.0.1").send().await.unwrap();
    assert_eq!(proxied.status(), 403);
    assert_eq!(client.get(&url).send().await.unwrap().status(), 405);
}

#[tokio::test]
async fn a_token_ends() {
    static LATER_SECONDS: AtomicU64 = AtomicU64::new(0);
    let now = || Instant::now() + Duration::from_secs(LATER_SECONDS.load(Ordering::SeqCst));
    let base = served_with(with_clock(Arc::new(One(Mutex::new(Some(instance())))), now)).await;
    let client = plain_client().unwrap();
    let short = token(&client, &base, "1").await;
    let long = token(&client, &base, "60").await;
    LATER_SECONDS.store(2, Ordering::SeqCst);
    assert_eq!(get(&client, &base, &short, "latest/meta-data/instance-id").await.0, 401);
    assert_eq!(get(&client, &base, &long, "latest/meta-data/instance-id").await.0, 200);
}

#[tokio::test]
async fn each_caller_sees_itself_and_tokens_do_not_travel() {
    let base = served(Two).await;
    let from = |last: u8| {
        reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .local_address(IpAddr::from([127, 0, 0, last]))
            .build()
            .unwrap()
    };
    let (second, third, stranger) = (from(2), from(3), from(9));
    let token_of_second = token(&second, &base, "60").await;
    let token_of_third = token(&third, &base, "60").await;
    let path = "latest/meta-data/instance-id";
    assert_eq!(get(&second, &base, &token_of_second, path).await.1, "i-0000000000000000a");
    assert_eq!(get(&third, &base, &token_of_third, path).await.1, "i-0000000000000000b");
    assert_eq!(get(&third, &base, &token_of_second, path).await.0, 401);
    let refused = stranger.put(format!("{base}/latest/api/token")).header(TTL_HEADER, "60").send().await.unwrap();
    assert_eq!(refused.status(), 404);
}

#[tokio::test]
async fn without_key_and_user_data_those_paths_are_missing() {
    let bare =
        Instance { key_name: None, public_keys: Vec::new(), user_data: None, tags: IndexMap::new(), ..instance() };
    let base = served(One(Mutex::new(Some(bare)))).await;
    let client = plain_client().unwrap();
    let token = token(&client, &base, "60").await;
    for path in ["user-data", "meta-data/public-keys/", "meta-data/tags/instance/"] {
        assert_eq!(get(&client, &base, &token, &format!("latest/{path}")).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn the_aws_sdks_own_client_understands_it() {
    let (base, _) = one().await;
    let client = aws_config::imds::Client::builder().endpoint(&base).unwrap().build();
    let id = client.get("/latest/meta-data/instance-id").await.unwrap();
    assert_eq!(id.as_ref(), "i-0123456789abcdef0");
    let tag = client.get("/latest/meta-data/tags/instance/Cluster").await.unwrap();
    assert_eq!(tag.as_ref(), "kraken");
    let missing = client.get("/latest/meta-data/public-ipv4").await.unwrap_err();
    assert!(matches!(missing, aws_config::imds::client::error::ImdsError::ErrorResponse(_)), "{missing:?}");
    let region = aws_config::imds::region::ImdsRegionProvider::builder()
        .configure(&aws_config::provider_config::ProviderConfig::default())
        .imds_client(client)
        .build()
        .region()
        .await;
    assert_eq!(region.map(|region| region.to_string()).as_deref(), Some("us-west-2"));
}
