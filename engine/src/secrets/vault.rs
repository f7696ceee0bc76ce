//! The `vault` store: a KV engine of version 2, of Vault or OpenBao.
//!
//! Over `reqwest`, not over a client library: those at hand tell every missing name as an error of the log, do not mark the
//! token as sensitive, panic on a token with a line end, and drop the body of a 404, which is where a deleted key says so.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::{
    Created, Name, Secret, SecretStore, Stamp, StoreError, check_value,
    settings::{Vault, VaultAuth},
};
use crate::modules::http::cause;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Where a server tells how it is, and where it keeps its data.
const SEAL_STATUS: &str = "sys/seal-status";
/// Tries of a `put` where others write the same name, and the engine wants every write to name the version before it.
const PUT_TRIES: usize = 10;

/// The store.
pub struct VaultStore {
    store: String,
    address: String,
    settings: Vault,
    /// Below the mount, without a slash at the end.
    base: String,
    http: OnceCell<reqwest::Client>,
    /// It was asked where it keeps its data, and the engine whether it is of version 2.
    checked: OnceCell<()>,
    token: RwLock<Option<Arc<Secret>>>,
}

impl std::fmt::Debug for VaultStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VaultStore").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What a call may do, for what a lost answer means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Write,
}

/// An answer that the server gave.
struct Answer {
    status: StatusCode,
    body: Value,
    retry_after: Option<String>,
}

impl Answer {
    /// What the server says is wrong.
    fn errors(&self) -> String {
        let errors = self.body["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let text = errors.map(|e| e.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("; ");
        if text.is_empty() { format!("status {}", self.status) } else { text }
    }

    fn says(&self, text: &str) -> bool {
        self.errors().contains(text)
    }

    /// The latest version of a key; also of one that was deleted, whose 404 has it.
    fn version(&self) -> Option<u64> {
        self.body["data"]["metadata"]["version"].as_u64()
    }
}

impl VaultStore {
    /// The store of a cluster. Nothing is asked before it is used. `address` is that of the settings or of the environment.
    pub fn new(cluster: &str, address: &str, settings: Vault) -> Self {
        let base = format!("{}/{cluster}", settings.prefix);
        Self {
            store: format!("the vault store {address} ({}/{base})", settings.mount),
            address: address.to_owned(),
            settings,
            base,
            http: OnceCell::new(),
            checked: OnceCell::new(),
            token: RwLock::new(None),
        }
    }

    /// The path of a name in one of the engine's two trees, `data` and `metadata`.
    fn path(&self, tree: &str, name: &str) -> String {
        format!("{}/{tree}/{}/{name}", self.settings.mount, self.base)
    }

    /// Calls the API. Answers that mean the same for every call become errors here; 400 and 404 are the caller's.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        effect: Effect,
    ) -> Result<Answer, StoreError> {
        let http = self.http.get_or_try_init(async || self.client()).await?;
        self.checked
            .get_or_try_init(async || {
                self.check_storage(http).await?;
                self.check_engine(http).await
            })
            .await?;
        let token = self.token(http).await?;
        let answer = self.send(http, method.clone(), path, body, Some(&token), effect).await?;
        if answer.status != StatusCode::FORBIDDEN {
            return self.sort_out(answer, &method, path, effect);
        }
        // The token may have expired, and there may be a new one. What was refused has not happened.
        let renewed = self.log_in(http).await?;
        if renewed == *token {
            return self.sort_out(answer, &method, path, effect);
        }
        let answer = self.send(http, method.clone(), path, body, Some(&renewed), effect).await?;
        self.keep(renewed);
        self.sort_out(answer, &method, path, effect)
    }

    async fn send(
        &self,
        http: &reqwest::Client,
        method: Method,
        path: &str,
        body: Option<&Value>,
        token: Option<&Secret>,
        effect: Effect,
    ) -> Result<Answer, StoreError> {
        let mut request = http.request(method.clone(), format!("{}/v1/{path}", self.address));
        if let Some(token) = token {
            request = request.header(HeaderName::from_static("x-vault-token"), self.header(token)?);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if path == SEAL_STATUS {
            // It is about the server: a namespace has none.
            request = request.header(NAMESPACE, HeaderValue::from_static(""));
        }
        let lost = |error: reqwest::Error| self.lost(error.without_url(), &method, path, effect);
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let bytes = Zeroizing::new(response.bytes().await.map_err(lost)?.to_vec());
        // An answer without JSON comes from something in between; its status is all that counts.
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status, body, retry_after })
    }

    /// An answer that did not come.
    fn lost(&self, error: reqwest::Error, method: &Method, path: &str, effect: Effect) -> StoreError {
        let store = self.store.clone();
        if effect == Effect::Write && !error.is_connect() && !error.is_builder() {
            return StoreError::Unknown { store, call: format!("{method} {path}"), source: Box::new(error) };
        }
        let why = format!("{method} {path}: {}", cause(&error));
        let hint = error.is_connect().then(|| format!("is Vault up at {}, and its certificate trusted?", self.address));
        StoreError::Unavailable { store, why, hint }
    }

    /// What an answer means where it means the same for every call.
    fn sort_out(&self, answer: Answer, method: &Method, path: &str, effect: Effect) -> Result<Answer, StoreError> {
        let (store, call) = (self.store.clone(), format!("{method} {path}"));
        let unavailable = |why: String, hint: Option<&str>| {
            Err(StoreError::Unavailable { store: store.clone(), why, hint: hint.map(str::to_owned) })
        };
        match answer.status.as_u16() {
            400 if answer.says("Upgrading from non-versioned") => {
                unavailable("its engine has just been made, and is not ready yet".to_owned(), None)
            }
            200..=299 | 400 => Ok(answer),
            404 if answer.says("no handler for route") => Err(StoreError::Impossible {
                store,
                why: format!("there is no engine at '{}'", self.settings.mount),
                hint: Some(format!("vault secrets enable -path={} -version=2 kv", self.settings.mount)),
            }),
            404 => Ok(answer),
            403 => {
                let right = match (method.as_str(), path.contains("/metadata/")) {
                    ("POST", _) => "create or update",
                    ("DELETE", _) => "delete",
                    (_, true) => "list",
                    _ => "read",
                };
                let why = format!(
                    "{}: its token lacks '{right}' on '{}', or has expired",
                    answer.errors(),
                    path.split('?').next().unwrap_or(path)
                );
                Err(StoreError::Denied { store, call, why })
            }
            413 => Err(StoreError::Impossible { store, why: format!("{call}: {}", answer.errors()), hint: None }),
            429 => {
                let wait = answer.retry_after.as_ref().map(|s| format!("it wants a pause of {s} s"));
                unavailable(format!("it takes no more calls now ({})", answer.errors()), wait.as_deref())
            }
            503 if answer.says("sealed") => unavailable(
                answer.errors(),
                Some("unseal it: vault operator unseal; nothing was lost, and the run can be repeated"),
            ),
            412 => unavailable(answer.errors(), None),
            _ if effect == Effect::Write => {
                let source = format!("{} ({})", answer.errors(), answer.status).into();
                Err(StoreError::Unknown { store, call, source })
            }
            _ => unavailable(format!("{call}: {} ({})", answer.errors(), answer.status), None),
        }
    }

    /// Asks where Vault keeps its data. In the Consul of the cluster that is managed here, Consul's bootstrap token would lie behind a
    /// Consul that needs it.
    async fn check_storage(&self, http: &reqwest::Client) -> Result<(), StoreError> {
        if self.settings.other_consul {
            return Ok(());
        }
        // Whoever asks may know it, also of one that is sealed.
        let path = SEAL_STATUS;
        let answer = self.send(http, Method::GET, path, None, None, Effect::None).await?;
        match (answer.status.as_u16(), answer.body["storage_type"].as_str()) {
            (200, Some("consul")) => Err(StoreError::Impossible {
                store: self.store.clone(),
                why: "it keeps its data in a Consul: if that is this cluster's, all secrets are lost with the cluster, and the \
                      cluster cannot be brought back without them"
                    .to_owned(),
                hint: Some(
                    "let Vault keep its data elsewhere (its own storage 'raft'); or, where it is another cluster's Consul: \
                     `other_consul: true` of the store"
                        .to_owned(),
                ),
            }),
            // Who does not tell it (a proxy in between, a namespace that may not ask) is taken as it is: the manual says so.
            (200..=299 | 400..=404, _) => Ok(()),
            _ => self.sort_out(answer, &Method::GET, path, Effect::None).map(drop),
        }
    }

    /// Asks whether the engine is what it is taken for: one of version 1 knows no create-only writes.
    async fn check_engine(&self, http: &reqwest::Client) -> Result<(), StoreError> {
        let token = self.token(http).await?;
        let path = format!("sys/internal/ui/mounts/{}", self.settings.mount);
        let answer = self.send(http, Method::GET, &path, None, Some(&token), Effect::None).await?;
        let hint = || Some(format!("vault secrets enable -path={} -version=2 kv", self.settings.mount));
        let impossible = |why: String| StoreError::Impossible { store: self.store.clone(), why, hint: hint() };
        match (answer.status.as_u16(), answer.body["data"]["type"].as_str()) {
            (200, Some("kv")) if answer.body["data"]["options"]["version"] == "2" => Ok(()),
            (200, Some(kind)) => {
                let version = answer.body["data"]["options"]["version"].as_str().unwrap_or("1");
                Err(impossible(format!(
                    "the engine at '{}' is of the kind {kind}, version {version}, not kv, version 2",
                    self.settings.mount
                )))
            }
            // Who may not ask finds out by the first call.
            (200 | 403 | 404, _) => Ok(()),
            _ => self.sort_out(answer, &Method::GET, &path, Effect::None).map(drop),
        }
    }

    fn client(&self) -> Result<reqwest::Client, StoreError> {
        let impossible = |why: String| StoreError::Impossible { store: self.store.clone(), why, hint: None };
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(namespace) = &self.settings.namespace {
            let value = HeaderValue::from_str(namespace).map_err(|e| impossible(format!("namespace: {e}")))?;
            headers.insert(NAMESPACE, value);
        }
        let mut builder = reqwest::Client::builder()
            .timeout(self.settings.timeout)
            .connect_timeout(CONNECT_TIMEOUT.min(self.settings.timeout))
            // A standby leads to the active server; never to one in the clear.
            .redirect(reqwest::redirect::Policy::limited(3))
            .https_only(self.address.starts_with("https:"))
            .default_headers(headers);
        if let Some(file) = &self.settings.ca_file {
            let pem = std::fs::read(file).map_err(|e| impossible(format!("cannot read {}: {e}", file.display())))?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|e| impossible(format!("{} holds no certificates: {e}", file.display())))?;
            if authorities.is_empty() {
                return Err(impossible(format!("{} holds no certificates", file.display())));
            }
            builder = builder.tls_certs_only(authorities);
        } else if self.address.starts_with("http:") {
            // Without TLS no authorities are needed, and a machine without any would be refused.
            builder = builder.tls_certs_only([]);
        }
        builder.build().map_err(|e| impossible(format!("cannot make an HTTP client: {}", cause(&e))))
    }

    async fn token(&self, http: &reqwest::Client) -> Result<Arc<Secret>, StoreError> {
        match self.kept() {
            Some(token) => Ok(token),
            None => Ok(self.keep(self.log_in(http).await?)),
        }
    }

    fn kept(&self) -> Option<Arc<Secret>> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, token: Secret) -> Arc<Secret> {
        super::redact::register(&token);
        let token = Arc::new(token);
        self.token.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&token));
        token
    }

    /// A token: the one that is given, or a new one for the role.
    async fn log_in(&self, http: &reqwest::Client) -> Result<Secret, StoreError> {
        let denied = |why: String| StoreError::Denied { store: self.store.clone(), call: "log in".to_owned(), why };
        match &self.settings.auth {
            VaultAuth::Environment => match std::env::var("VAULT_TOKEN") {
                Ok(token) if !token.trim().is_empty() => Ok(Secret::new(token.trim())),
                _ => {
                    Err(denied("VAULT_TOKEN is not set, and the store has no 'token_file' and no 'approle'".to_owned()))
                }
            },
            VaultAuth::TokenFile(file) => self.line(file),
            VaultAuth::AppRole { mount, role_id_file, secret_id_file } => {
                let (role, secret) = (self.line(role_id_file)?, self.line(secret_id_file)?);
                super::redact::register(&secret);
                let body = json!({"role_id": role.expose(), "secret_id": secret.expose()});
                let path = format!("auth/{mount}/login");
                let answer = self.send(http, Method::POST, &path, Some(&body), None, Effect::None).await?;
                match answer.body["auth"]["client_token"].as_str() {
                    Some(token) => Ok(Secret::new(token)),
                    None if matches!(answer.status.as_u16(), 400 | 403 | 404) => {
                        Err(denied(format!("the AppRole at '{mount}': {}", answer.errors())))
                    }
                    None => {
                        let status = answer.status;
                        self.sort_out(answer, &Method::POST, &path, Effect::None)?;
                        Err(denied(format!("the AppRole at '{mount}' gave no token ({status})")))
                    }
                }
            }
        }
    }

    /// What stands in a file, as one word.
    fn line(&self, file: &Path) -> Result<Secret, StoreError> {
        let impossible = |why: String| StoreError::Impossible { store: self.store.clone(), why, hint: None };
        let text = std::fs::read_to_string(file).map(Zeroizing::new);
        let text = text.map_err(|e| impossible(format!("cannot read {}: {e}", file.display())))?;
        match text.trim() {
            "" => Err(impossible(format!("{} is empty", file.display()))),
            word => Ok(Secret::new(word)),
        }
    }

    fn header(&self, token: &Secret) -> Result<HeaderValue, StoreError> {
        let mut value = HeaderValue::from_str(token.expose()).map_err(|_| StoreError::Impossible {
            store: self.store.clone(),
            why: "its token is none: it has a line end or another byte that no token has".to_owned(),
            hint: None,
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// A 400: what it says decides.
    fn refused(&self, name: &Name, answer: &Answer) -> StoreError {
        StoreError::Impossible {
            store: self.store.clone(),
            why: format!("it does not take '{name}': {}", answer.errors()),
            hint: None,
        }
    }

    async fn write(&self, name: &Name, value: &Secret, cas: Option<u64>) -> Result<Answer, StoreError> {
        let mut body = json!({"data": {"value": value.expose()}});
        if let Some(version) = cas {
            body["options"] = json!({"cas": version});
        }
        self.call(Method::POST, &self.path("data", name.as_str()), Some(&body), Effect::Write).await
    }

    async fn read(&self, name: &Name) -> Result<Answer, StoreError> {
        self.call(Method::GET, &self.path("data", name.as_str()), None, Effect::None).await
    }

    /// Why a create-only write did not find the name free.
    async fn taken(&self, name: &Name) -> Result<Created, StoreError> {
        let there = self.read(name).await?;
        if there.status.is_success() {
            return Ok(Created::Exists);
        }
        let path = format!("-mount={} {}/{name}", self.settings.mount, self.base);
        match there.version() {
            Some(version) => Err(StoreError::Impossible {
                store: self.store.clone(),
                why: format!("'{name}' was deleted, but not for good, so that it cannot be created"),
                hint: Some(format!(
                    "bring it back: vault kv undelete -versions={version} {path}, or free the name: vault kv metadata delete {path}"
                )),
            }),
            None => Err(StoreError::Unavailable {
                store: self.store.clone(),
                why: format!("somebody deletes '{name}' while it is being created"),
                hint: None,
            }),
        }
    }

    /// The names below a folder; `folder` ends with a slash or is empty.
    async fn keys(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let path = format!("{}?list=true", self.path("metadata", folder));
        let answer = self.call(Method::GET, &path, None, Effect::None).await?;
        let keys = answer.body["data"]["keys"].as_array().into_iter().flatten();
        Ok(keys.filter_map(Value::as_str).map(|key| format!("{folder}{key}")).collect())
    }
}

/// What a create-only write says where there is a version already.
const MISMATCH: &str = "check-and-set parameter did not match";
/// What a write says where the engine, or the key, wants the version before it.
const REQUIRED: &str = "check-and-set parameter required";

#[async_trait::async_trait]
impl SecretStore for VaultStore {
    fn describe(&self) -> String {
        self.store.clone()
    }

    fn patience(&self) -> Duration {
        self.settings.patience
    }

    async fn create(&self, name: &Name, value: &Secret) -> Result<Created, StoreError> {
        check_value(&self.store, name, value)?;
        let answer = match self.write(name, value, Some(0)).await {
            Ok(answer) => answer,
            // Who may create, but not update, is refused where there is a value.
            Err(denied @ StoreError::Denied { .. }) => {
                let there = self.read(name).await.is_ok_and(|there| there.status.is_success());
                return if there { Ok(Created::Exists) } else { Err(denied) };
            }
            Err(error) => return Err(error),
        };
        if answer.status.is_success() {
            return Ok(Created::New);
        }
        if answer.says(MISMATCH) { self.taken(name).await } else { Err(self.refused(name, &answer)) }
    }

    async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError> {
        Ok(self.get_dated(name).await?.map(|(value, _)| value))
    }

    async fn get_dated(&self, name: &Name) -> Result<Option<(Secret, Option<Stamp>)>, StoreError> {
        let answer = self.read(name).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(self.refused(name, &answer));
        }
        let made = answer.body["data"]["metadata"]["created_time"].as_str().and_then(|time| time.parse().ok());
        let stamp = made.map(|time: jiff::Timestamp| Stamp { made: time.as_millisecond(), version: answer.version() });
        match answer.body["data"]["data"]["value"].as_str() {
            Some(value) => Ok(Some((Secret::new(value), stamp))),
            None => Err(StoreError::Impossible {
                store: self.store.clone(),
                why: format!("'{name}' has no field 'value' with a text in it"),
                hint: Some(format!("somebody else wrote it; write it anew: controller secret put {name}")),
            }),
        }
    }

    async fn put(&self, name: &Name, value: &Secret) -> Result<(), StoreError> {
        check_value(&self.store, name, value)?;
        let mut answer = self.write(name, value, None).await?;
        for _ in 0..PUT_TRIES {
            if answer.status.is_success() {
                return Ok(());
            }
            if !answer.says(REQUIRED) && !answer.says(MISMATCH) {
                break;
            }
            let version = self.read(name).await?.version().unwrap_or(0);
            answer = self.write(name, value, Some(version)).await?;
        }
        if answer.status.is_success() { Ok(()) } else { Err(self.refused(name, &answer)) }
    }

    async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        // All versions: a name of which only the latest is deleted could never be created again.
        let path = self.path("metadata", name.as_str());
        let answer = self.call(Method::DELETE, &path, None, Effect::Write).await?;
        match answer.status.as_u16() {
            400 => Err(self.refused(name, &answer)),
            _ => Ok(()),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Name>, StoreError> {
        let start = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
        let mut folders = vec![start.to_owned()];
        let mut names = Vec::new();
        while let Some(folder) = folders.pop() {
            for key in self.keys(&folder).await? {
                if key.ends_with('/') {
                    // On the way to the prefix, or below it.
                    if key.starts_with(prefix) || prefix.starts_with(&key) {
                        folders.push(key);
                    }
                } else if key.starts_with(prefix) {
                    // What has another name was not written by us, and cannot be asked for.
                    names.extend(Name::new(&key));
                }
            }
        }
        names.sort();
        Ok(names)
    }

    async fn probe(&self) -> Result<(), StoreError> {
        super::probe::probe(self).await
    }
}
