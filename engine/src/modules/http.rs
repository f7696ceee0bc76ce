//! HTTP for modules and facts, from code that does not wait: addresses, headers, logins, clients, and why a request failed.

use std::{
    error::Error,
    fmt,
    future::Future,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use reqwest::{
    Certificate, Client, ClientBuilder, NoProxy, Proxy, RequestBuilder, Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Map, Value};
use tokio::runtime::{Builder, Runtime};

use super::{Failure, FromArg, args::expected};
use crate::host::{Read, atomic::explain};

/// An `http://` or `https://` URL.
#[derive(Clone, PartialEq, Eq)]
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

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Web {
    /// For people: without the login that it may hold.
    pub(crate) fn shown(&self) -> String {
        shown(&self.0)
    }

    /// The last part of the path, empty where it ends with `/`.
    pub(super) fn file_name(&self) -> &str {
        self.0.path_segments().and_then(|mut s| s.next_back()).unwrap_or_default()
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }
}

/// An address without what may be secret in it.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for addresses that cannot have a login.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.to_string()
}

/// A name and a password for basic authentication.
#[derive(Clone)]
pub(super) struct Login {
    user: String,
    password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Login {
    /// From the two arguments, each with the name that it has in its module.
    pub(super) fn read(user: (&str, Option<&str>), password: (&str, Option<&str>)) -> Result<Option<Self>, Failure> {
        match (user, password) {
            ((_, Some(user)), (_, password)) => {
                Ok(Some(Self { user: user.to_owned(), password: password.map(str::to_owned) }))
            }
            ((user, None), (password, Some(_))) => Err(Failure::new(format!("argument '{password}' needs '{user}'"))),
            _ => Ok(None),
        }
    }

    pub(super) fn put(&self, request: RequestBuilder) -> RequestBuilder {
        request.basic_auth(&self.user, self.password.as_ref())
    }
}

/// The argument `headers`. No value of it is ever shown.
pub(super) fn headers(map: &Map<String, Value>) -> Result<HeaderMap, Failure> {
    let bad = |what: String| Failure::new(format!("argument 'headers': {what}"));
    let mut headers = HeaderMap::new();
    for (name, value) in map {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| bad(format!("'{}' is no name for a header", name.escape_debug())))?;
        let value = String::from_arg(value).map_err(|e| bad(format!("{name}: {e}")))?;
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| bad(format!("the value of {name} holds characters that a header cannot have")))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

/// Whose certificates count.
#[derive(Clone, Debug, Default)]
pub(crate) enum Trust {
    /// Those that the system's authorities signed.
    #[default]
    System,
    /// Those that one of these signed.
    Only(Vec<Certificate>),
    /// All.
    All,
}

impl Trust {
    /// The argument `ca_path`: a file of the host with certificates (PEM).
    pub(crate) fn read(ca_path: Option<&PathBuf>, host: &dyn Read) -> Result<Self, Failure> {
        let Some(path) = ca_path else { return Ok(Self::System) };
        let pem = read(path, host)?;
        let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(Failure::new(format!("argument 'ca_path': {} holds no certificate (PEM)", path.display())));
        }
        Ok(Self::Only(certificates))
    }
}

/// `Bearer TOKEN` as a header's value that is shown nowhere; `None` where it holds what a header cannot.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A file of the host that a request needs.
pub(super) fn read(path: &Path, host: &dyn Read) -> Result<Vec<u8>, Failure> {
    host.read(path).map_err(|e| explain("read", path, &e))
}

/// How a server is reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    pub(crate) trust: Trust,
    /// Go through the proxies of the environment.
    pub(crate) use_proxy: bool,
    /// The task's, which has its proxies.
    pub(crate) environment: Vec<(String, String)>,
}

/// A client for one address and where it leads to. `more` sets what is the module's own.
pub(crate) fn client(
    url: &Web,
    reach: &Reach,
    more: impl Fn(ClientBuilder) -> ClientBuilder,
) -> Result<Client, Failure> {
    let proxies = proxies(reach)?;
    let build = |bare: bool| {
        let mut builder = Client::builder().user_agent(concat!("rollcall/", env!("CARGO_PKG_VERSION")));
        if !reach.use_proxy {
            builder = builder.no_proxy();
        }
        for proxy in &proxies {
            builder = builder.proxy(proxy.clone());
        }
        let builder = match &reach.trust {
            Trust::System if !bare => builder,
            Trust::System => builder.tls_certs_only([]),
            Trust::Only(certificates) => builder.tls_certs_only(certificates.clone()),
            Trust::All => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
        };
        more(builder).build()
    };
    let system = matches!(reach.trust, Trust::System);
    // A host without any certificates cannot build a client that verifies; plain HTTP needs none.
    let client = match build(false) {
        Err(_) if system && url.0.scheme() == "http" => build(true),
        built => built,
    };
    client.map_err(|e| {
        let failure = Failure::new(format!("cannot make an HTTP client: {}", cause(&e)));
        if system {
            failure.hint("install the package ca-certificates by an earlier task, or name a file in ca_path")
        } else {
            failure
        }
    })
}

/// The proxies of the task's environment; those of the process are known to the client itself.
fn proxies(reach: &Reach) -> Result<Vec<Proxy>, Failure> {
    if !reach.use_proxy {
        return Ok(Vec::new());
    }
    let value =
        |name: &str| reach.environment.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    let except = value("no_proxy").and_then(NoProxy::from_string);
    let mut proxies = Vec::new();
    for name in ["http_proxy", "https_proxy"] {
        if let Some(text) = value(name).filter(|t| !t.is_empty()) {
            let proxy = if name == "http_proxy" { Proxy::http(text) } else { Proxy::https(text) };
            let proxy = proxy.map_err(|e| Failure::new(format!("environment: {name} is no proxy: {}", cause(&e))))?;
            proxies.push(proxy.no_proxy(except.clone()));
        }
    }
    Ok(proxies)
}

/// The runtime of one request.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::new(format!("cannot start a runtime: {e}")))
}

/// Runs a future to its end on a thread of its own: the caller may itself be part of a runtime.
pub(crate) fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> Result<T, Failure> {
    thread::scope(|scope| {
        let run = || runtime().map(|runtime| runtime.block_on(future));
        scope.spawn(run).join().unwrap_or_else(|_| Err(Failure::new("the request ended by a defect of this program")))
    })
}

/// Why a request failed, without the address (it may hold a password).
pub(crate) fn reason(error: reqwest::Error, timeout: Duration) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return format!("no answer within {} s", timeout.as_secs_f64());
    }
    if error.is_redirect() {
        return "too many redirections".into();
    }
    let what = if error.is_body() || error.is_decode() {
        "the answer ended before it was whole"
    } else if error.is_connect() {
        "cannot connect"
    } else {
        "the request failed"
    };
    if error.source().is_some() { format!("{what}: {}", cause(&error)) } else { what.to_owned() }
}

/// The deepest cause of an error: the outer texts of a client's errors say only that something failed.
pub(crate) fn cause(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    // A last text of a word or two needs the one above it.
    match texts.as_slice() {
        [.., above, last] if last.len() < 25 && !above.contains(last.as_str()) => format!("{above}: {last}"),
        [.., last] => last.clone(),
        [] => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpListener, TcpStream},
        sync::{Arc, Mutex},
        time::Duration,
    };

    /// A server on this machine that gives these answers, one for each connection, and keeps the requests.
    #[derive(Debug)]
    pub(crate) struct Server {
        address: SocketAddr,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        pub(crate) fn new<'a>(answers: impl IntoIterator<Item = &'a (impl AsRef<str> + ?Sized + 'a)>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let requests = Arc::new(Mutex::new(Vec::new()));
            let kept = Arc::clone(&requests);
            let answers: Vec<String> = answers.into_iter().map(|a| a.as_ref().to_owned()).collect();
            std::thread::spawn(move || {
                for answer in answers {
                    let Ok((mut stream, _)) = listener.accept() else { return };
                    kept.lock().unwrap().push(request(&mut stream));
                    if answer == "SLEEP" {
                        std::thread::sleep(Duration::from_secs(2));
                    } else {
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                }
            });
            Self { address, requests }
        }

        pub(crate) fn url(&self, path: &str) -> String {
            format!("http://{}{path}", self.address)
        }

        pub(crate) fn requests(&self) -> Vec<String> {
            self.requests.lock().unwrap().clone()
        }
    }

    /// An answer as it goes over the wire.
    pub(crate) fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    fn request(stream: &mut TcpStream) -> String {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).unwrap();
            all.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&all).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    return text;
                }
            }
            if count == 0 {
                return text;
            }
        }
    }
}
