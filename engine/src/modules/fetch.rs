//! Fetching over HTTP, piece by piece, with retries.

use std::{error::Error as _, path::PathBuf, sync::mpsc, thread, time::Duration};

use reqwest::{
    Certificate, Client, NoProxy, Proxy, StatusCode, Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Map, Value};

use super::{Failure, FromArg, args::expected};
use crate::host::atomic::explain;

/// The first pause between attempts; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// An `http://` or `https://` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web(Url);

impl FromArg for Web {
    fn kind() -> String {
        "an http:// or https:// URL".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let url = value.as_str().and_then(|text| Url::parse(text).ok());
        url.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host())
            .map(Self)
            .ok_or_else(|| expected::<Self>(value))
    }
}

impl Web {
    /// For people: without the password that it may hold.
    pub(super) fn shown(&self) -> String {
        let mut url = self.0.clone();
        if url.password().is_some() {
            // Only URLs without a host refuse a password, and those are none of ours.
            let _ = url.set_password(Some("hidden"));
        }
        url.to_string()
    }

    /// The last part of the path, empty where it ends with `/`.
    pub(super) fn file_name(&self) -> &str {
        self.0.path_segments().and_then(|mut s| s.next_back()).unwrap_or_default()
    }
}

/// How to ask.
#[derive(Clone, Debug, Default)]
pub(super) struct Manner {
    pub(super) headers: Map<String, Value>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    /// For the connection, and for each silence.
    pub(super) timeout: Duration,
    pub(super) retries: u32,
    pub(super) use_proxy: bool,
    pub(super) ca_path: Option<PathBuf>,
    /// The task's, for its proxies.
    pub(super) environment: Vec<(String, String)>,
}

/// How an attempt failed.
#[derive(Debug)]
enum Fault {
    /// Another attempt may do better.
    Passing(Failure),
    /// It will be the same again.
    Lasting(Failure),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Lasting(failure)
    }
}

/// Gets the body of a URL: `attempt` is called once for each attempt, with a function that fetches into a sink.
///
/// Errors that may pass (no connection, 429, 5xx, a body that is cut) are tried again, with growing pauses.
pub(super) fn get<T>(
    url: &Web,
    manner: &Manner,
    mut attempt: impl FnMut(&mut dyn FnMut(Sink<'_>) -> Result<(), Failure>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let client = client(url, manner)?;
    let headers = headers(&manner.headers)?;
    let mut tries = 0;
    loop {
        let mut passing = false;
        let result = attempt(&mut |sink| match once(&client, url, manner, &headers, sink) {
            Ok(()) => Ok(()),
            Err(Fault::Passing(failure)) => {
                passing = true;
                Err(failure)
            }
            Err(Fault::Lasting(failure)) => Err(failure),
        });
        match result {
            Err(_) if passing && tries < manner.retries => {
                thread::sleep(pause(tries));
                tries += 1;
            }
            Err(failure) if passing && tries > 0 => {
                return Err(Failure {
                    message: format!("{} (after {} attempts)", failure.message, tries + 1),
                    ..failure
                });
            }
            other => return other,
        }
    }
}

/// Takes the body, piece by piece.
pub(super) type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<(), Failure>;

/// Between half of the doubled pause and one and a half of it, so that many hosts do not come back at once.
fn pause(tries: u32) -> Duration {
    let base = FIRST_PAUSE.saturating_mul(1 << tries.min(10)).min(LONGEST_PAUSE);
    let share = (uuid::Uuid::new_v4().as_u128() % 1000) as u32;
    base / 2 + base * share / 1000
}

fn headers(map: &Map<String, Value>) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for (name, value) in map {
        let key = HeaderName::try_from(name)
            .map_err(|_| Failure::new(format!("argument 'headers': '{name}' is no header name")))?;
        let text = String::from_arg(value).map_err(|e| Failure::new(format!("argument 'headers': {name}: {e}")))?;
        let text = HeaderValue::try_from(text)
            .map_err(|_| Failure::new(format!("argument 'headers': the value of {name} holds a control character")))?;
        headers.insert(key, text);
    }
    Ok(headers)
}

fn client(url: &Web, manner: &Manner) -> Result<Client, Failure> {
    let build = |bare: bool| -> Result<Client, Failure> {
        let mut builder = Client::builder()
            .connect_timeout(manner.timeout)
            .read_timeout(manner.timeout)
            .user_agent(concat!("rollcall/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(0);
        if !manner.use_proxy {
            builder = builder.no_proxy();
        }
        for proxy in proxies(manner)? {
            builder = builder.proxy(proxy);
        }
        if let Some(path) = &manner.ca_path {
            let pem = std::fs::read(path).map_err(|e| explain("read", path, &e))?;
            let certs = Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if certs.is_empty() {
                return Err(Failure::new(format!("{} holds no certificate (PEM)", path.display())));
            }
            builder = builder.tls_certs_only(certs);
        } else if bare {
            builder = builder.tls_certs_only([]);
        }
        builder.build().map_err(|e| Failure::new(format!("cannot make an HTTP client: {}", chain(&e))))
    };
    // A host without any certificates cannot build a client that verifies; plain HTTP needs none.
    match build(false) {
        Err(_) if url.0.scheme() == "http" && manner.ca_path.is_none() => build(true),
        Err(failure) if manner.ca_path.is_none() => {
            Err(failure.hint("install the package ca-certificates by an earlier task, or name a file in ca_path"))
        }
        other => other,
    }
}

/// The proxies of the task's environment; those of the process are known to the client itself.
fn proxies(manner: &Manner) -> Result<Vec<Proxy>, Failure> {
    if !manner.use_proxy {
        return Ok(Vec::new());
    }
    let value =
        |name: &str| manner.environment.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    let except = value("no_proxy").and_then(NoProxy::from_string);
    let mut proxies = Vec::new();
    for name in ["http_proxy", "https_proxy"] {
        if let Some(text) = value(name).filter(|t| !t.is_empty()) {
            let proxy = if name == "http_proxy" { Proxy::http(text) } else { Proxy::https(text) };
            let proxy = proxy.map_err(|e| Failure::new(format!("environment: {name} is no proxy: {}", chain(&e))))?;
            proxies.push(proxy.no_proxy(except.clone()));
        }
    }
    Ok(proxies)
}

/// One attempt. The network runs in a thread of its own: the caller may be inside a runtime already.
fn once(client: &Client, url: &Web, manner: &Manner, headers: &HeaderMap, sink: Sink<'_>) -> Result<(), Fault> {
    thread::scope(|scope| {
        let (tell, told) = mpsc::sync_channel::<Vec<u8>>(16);
        let worker = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Failure::new(format!("cannot start the network: {e}")))?;
            runtime.block_on(body(client, url, manner, headers, &tell))
        });
        let mut stored = Ok(());
        for piece in &told {
            stored = sink(&piece);
            if stored.is_err() {
                break;
            }
        }
        // The worker ends at its next piece where nobody takes it.
        drop(told);
        let fetched = worker.join().unwrap_or_else(|_| Err(Fault::Lasting(Failure::new("the HTTP client broke down"))));
        stored?;
        fetched
    })
}

async fn body(
    client: &Client,
    url: &Web,
    manner: &Manner,
    headers: &HeaderMap,
    tell: &mpsc::SyncSender<Vec<u8>>,
) -> Result<(), Fault> {
    let shown = url.shown();
    let mut request = client.get(url.0.clone()).headers(headers.clone());
    if let Some(user) = &manner.username {
        request = request.basic_auth(user, manner.password.as_ref());
    }
    let mut response = request.send().await.map_err(|e| Fault::Passing(unreachable(&shown, manner, e)))?;
    let status = response.status();
    if status != StatusCode::OK {
        let failure = Failure::new(format!("GET {shown} answered {status}")).with("status_code", status.as_u16());
        return Err(match status.as_u16() {
            408 | 425 | 429 | 500..=599 => Fault::Passing(failure.hint("the server may be busy: try again later")),
            401 | 403 | 407 => Fault::Lasting(failure.hint("are username, password or headers right?")),
            404 | 410 => Fault::Lasting(failure.hint("is there a file of that name and version on the server?")),
            _ => Fault::Lasting(failure),
        });
    }
    let (whole, mut got) = (response.content_length(), 0_u64);
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                got += piece.len() as u64;
                if tell.send(piece.to_vec()).is_err() {
                    return Ok(());
                }
            }
            Ok(None) => break,
            Err(e) => {
                let of = whole.map_or_else(String::new, |w| format!(" of {w}"));
                let why = if e.is_timeout() { "nothing came for too long".to_owned() } else { chain(&e.without_url()) };
                return Err(Fault::Passing(Failure::new(format!(
                    "GET {shown} broke off after {got}{of} bytes: {why}"
                ))));
            }
        }
    }
    match whole {
        Some(whole) if whole != got => {
            Err(Fault::Passing(Failure::new(format!("GET {shown} gave {got} bytes, and {whole} were announced"))))
        }
        _ => Ok(()),
    }
}

fn unreachable(shown: &str, manner: &Manner, error: reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::new(format!("GET {shown} was not answered within {} s", manner.timeout.as_secs_f64()));
    }
    let what = if error.is_connect() { "cannot connect for" } else { "no answer to" };
    Failure::new(format!("{what} GET {shown}: {}", chain(&error.without_url())))
}

/// An error with all its causes: the first of them alone says nothing (`error sending request`).
fn chain(error: &reqwest::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        source = cause.source();
    }
    parts.join(": ")
}
