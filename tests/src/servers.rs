//! Real servers of secrets on this machine's loopback, and a proxy that loses what they say. All end with the test.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{program, run};

/// How long a server may take until it answers, on a machine that does much else.
const START: Duration = Duration::from_mins(2);

/// Where a program of the lab is. It is built if need be, which takes minutes once.
#[track_caller]
pub fn lab_program(name: &str) -> PathBuf {
    let said = run(Command::new(program("lab")).args(["program", name]), Duration::from_mins(30)).ok();
    PathBuf::from(said.text())
}

/// An address that nobody listens on now.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it has an address")
}

/// A server's process. It dies with the thread that started it: also with a test that is killed.
#[derive(Debug)]
struct Server(Child);

impl Server {
    fn start(program: &Path, words: &[&str], log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("a log can be made");
        let errors = log.try_clone().expect("it can be shared");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().tls_certs_only([]).no_proxy().build().expect("a plain client needs nothing")
}

/// Waits until a server answers at all.
async fn wait_for(url: &str, log: &Path) {
    let begin = Instant::now();
    while client().get(url).send().await.is_err() {
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(begin.elapsed() < START, "{url} does not answer: {}", log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A Consul of one server, without ACLs, that keeps everything in memory.
#[derive(Debug)]
pub struct Consul {
    _server: Server,
    _dir: tempfile::TempDir,
    /// Where its HTTP API listens.
    pub listen: SocketAddr,
}

impl Consul {
    /// Starts it, and waits until it leads.
    pub async fn start() -> Self {
        let program = lab_program("consul");
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let listen = free_address();
        let port = || free_address().port();
        let config = json!({"ports": {
            "http": listen.port(), "server": port(), "serf_lan": port(), "serf_wan": -1, "dns": -1, "grpc": -1, "grpc_tls": -1,
        }});
        let (file, log) = (dir.path().join("consul.json"), dir.path().join("consul.log"));
        std::fs::write(&file, config.to_string()).expect("the configuration can be written");
        let words = ["agent", "-dev", "-bind=127.0.0.1", &format!("-config-file={}", file.display())];
        let server = Server::start(&program, &words, &log);
        let consul = Self { _server: server, _dir: dir, listen };
        let begin = Instant::now();
        while !consul.get("status/leader").await.is_ok_and(|leader| leader.as_str().is_some_and(|at| !at.is_empty())) {
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(begin.elapsed() < START, "Consul has no leader: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        consul
    }

    async fn get(&self, path: &str) -> Result<Value, reqwest::Error> {
        client().get(format!("http://{}/v1/{path}", self.listen)).send().await?.json().await
    }

    /// How many keys of a Vault's it holds.
    pub async fn keys(&self) -> usize {
        let keys = self.get("kv/vault/logical?keys").await.expect("Vault has keys in it");
        keys.as_array().map_or(0, Vec::len)
    }
}

/// A real Vault: initialised, unsealed, with a KV engine of version 2 at `secret`.
#[derive(Debug)]
pub struct Vault {
    _server: Server,
    dir: tempfile::TempDir,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    /// The same server over TLS, with the certificate of [`Vault::ca_file`].
    pub tls_address: String,
    /// Where it listens.
    pub listen: SocketAddr,
    root: String,
    key: String,
}

impl Vault {
    /// Starts one that keeps everything in memory.
    pub async fn start() -> Self {
        Self::start_on(json!({"inmem": {}})).await
    }

    /// Starts one that keeps everything in a Consul.
    pub async fn in_consul(consul: &Consul) -> Self {
        Self::start_on(json!({"consul": {"address": consul.listen.to_string(), "path": "vault/", "service": "vault"}}))
            .await
    }

    async fn start_on(storage: Value) -> Self {
        let program = lab_program("vault");
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let (listen, tls) = (free_address(), free_address());
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate can be made");
        let (certificate, key) = (dir.path().join("ca.pem"), dir.path().join("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).expect("the certificate can be written");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("its key can be written");
        let config = json!({
            "storage": storage,
            "listener": [
                {"tcp": {"address": listen.to_string(), "tls_disable": true}},
                {"tcp": {"address": tls.to_string(), "tls_cert_file": certificate, "tls_key_file": key}},
            ],
            "disable_mlock": true,
            "disable_clustering": true,
            "api_addr": format!("http://{listen}"),
        });
        let (file, log) = (dir.path().join("vault.json"), dir.path().join("vault.log"));
        std::fs::write(&file, config.to_string()).expect("the configuration can be written");
        let server = Server::start(&program, &["server", &format!("-config={}", file.display())], &log);
        let address = format!("http://{listen}");
        wait_for(&format!("{address}/v1/sys/seal-status"), &log).await;
        let (tls_address, root, key) = (format!("https://{tls}"), String::new(), String::new());
        let mut vault = Self { _server: server, dir, address, tls_address, listen, root, key };
        let made = vault.api("PUT", "sys/init", &json!({"secret_shares": 1, "secret_threshold": 1})).await;
        vault.root = made["root_token"].as_str().expect("it gives a token").to_owned();
        vault.key = made["keys"][0].as_str().expect("it gives a key").to_owned();
        vault.file("root", &vault.root);
        vault.unseal().await;
        vault.api("POST", "sys/mounts/secret", &json!({"type": "kv", "options": {"version": "2"}})).await;
        // A new engine upgrades itself first.
        let begin = Instant::now();
        while vault.try_api("GET", "secret/config", &Value::Null).await.0 != 200 {
            assert!(begin.elapsed() < START, "the engine is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        vault
    }

    /// A call with all rights: status and body.
    pub async fn try_api(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let method = method.parse().expect("it is a method");
        let mut request = client().request(method, format!("{}/v1/{path}", self.address));
        request = request.header("x-vault-token", &self.root);
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    /// A call that must go well.
    pub async fn api(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, body) = self.try_api(method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {body}");
        body
    }

    /// Closes it.
    pub async fn seal(&self) {
        self.api("PUT", "sys/seal", &Value::Null).await;
    }

    /// Opens it.
    pub async fn unseal(&self) {
        self.api("PUT", "sys/unseal", &json!({"key": self.key})).await;
        let begin = Instant::now();
        while self.try_api("GET", "sys/health", &Value::Null).await.0 != 200 {
            assert!(begin.elapsed() < START, "it does not become active");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A file with the token of all rights.
    pub fn root_file(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The certificate that it shows, as its own authority.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A file with a token of one policy.
    pub async fn token_file(&self, policy: &str, hcl: &str) -> PathBuf {
        self.api("PUT", &format!("sys/policies/acl/{policy}"), &json!({"policy": hcl})).await;
        let made = self.api("POST", "auth/token/create", &json!({"policies": [policy]})).await;
        self.file(policy, made["auth"]["client_token"].as_str().expect("it gives a token"))
    }

    /// A file of this server's folder that only its owner reads.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let mut file = std::fs::File::create(&path).expect("a file can be made");
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).expect("it has a mode");
        writeln!(file, "{text}").expect("it can be written");
        path
    }
}

/// A Secrets Manager: the API server of the lab's cloud.
#[derive(Debug)]
pub struct SecretsManager {
    _server: Server,
    _dir: tempfile::TempDir,
    /// Where it listens.
    pub listen: SocketAddr,
}

impl SecretsManager {
    /// Starts it.
    pub async fn start() -> Self {
        let program = lab_program("moto_server");
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let listen = free_address();
        let log = dir.path().join("moto.log");
        let server = Server::start(&program, &["-H", "127.0.0.1", "-p", &listen.port().to_string()], &log);
        wait_for(&format!("http://{listen}/moto-api/"), &log).await;
        Self { _server: server, _dir: dir, listen }
    }
}

/// What the proxy does with a call.
#[derive(Clone, Debug)]
pub enum Way {
    /// It goes through.
    Pass,
    /// It goes through, and the answer is lost.
    LoseAnswer,
    /// It goes nowhere, and this is answered.
    Answer(String),
}

/// Between a client and a server.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub listen: SocketAddr,
    way: Arc<Mutex<Way>>,
}

impl Proxy {
    /// Starts it, in front of a server.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let listen = listener.local_addr().expect("it has an address");
        let way = Arc::new(Mutex::new(Way::Pass));
        let shared = Arc::clone(&way);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, Arc::clone(&shared)));
            }
        });
        Self { listen, way }
    }

    /// From now on.
    pub fn set(&self, way: Way) {
        *self.way.lock().expect("nobody panics with it") = way;
    }
}

/// One connection, until either side ends it or an answer is lost.
async fn serve(mut client: tokio::net::TcpStream, server: SocketAddr, way: Arc<Mutex<Way>>) {
    let now = || way.lock().expect("nobody panics with it").clone();
    let Ok(mut server) = tokio::net::TcpStream::connect(server).await else { return };
    let (mut asked, mut answered) = (vec![0; 128 * 1024], vec![0; 128 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    if let Way::Answer(answer) = now() {
                        // The end of a long body may still be on its way; the client hears the answer all the same.
                        let _ = client.write_all(answer.as_bytes()).await;
                        return;
                    }
                    if server.write_all(&asked[..length]).await.is_err() {
                        return;
                    }
                }
            },
            read = server.read(&mut answered) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    // The server has done what it was asked for: its answer ends here.
                    if matches!(now(), Way::LoseAnswer) || client.write_all(&answered[..length]).await.is_err() {
                        return;
                    }
                }
            },
        }
    }
}
