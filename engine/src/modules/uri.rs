//! `uri`: a request by HTTP or HTTPS.

use std::{path::PathBuf, time::Duration};

use reqwest::{
    Certificate, Client, Identity, Method, Url,
    header::{HeaderName, HeaderValue},
    redirect,
};
use serde_json::{Map, Value};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan,
    args::Mode,
    steps::{exists, file_diff, hinted, text},
};
use crate::{
    args, choice,
    host::{Attrs, Read, Write},
};

choice!(
    /// How `body` is written.
    BodyFormat { Raw = "raw", Json = "json", Form = "form" | "form-urlencoded" }
);
choice!(
    /// Which redirections are followed.
    Follow { Safe = "safe", All = "all" | "yes", None = "none" | "no" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// The address.
        url []: String, required;
        /// `GET`, `POST`, `PUT` … Only `GET` and `HEAD` are sent in check mode too.
        method []: String = "GET".to_owned();
        /// What is sent.
        body []: Option<Value>;
        /// Send `body` as it is (`raw`), as JSON, or as a form.
        body_format []: BodyFormat = BodyFormat::Raw;
        /// Header lines.
        headers []: Option<Map<String, Value>>;
        /// Codes that count as success.
        status_code []: Vec<Status>;
        /// Put the answer's text into the result.
        return_content []: bool = false;
        /// How many seconds the whole request may take.
        timeout []: Duration = Duration::from_secs(30);
        /// Follow redirections of `GET` and `HEAD` (`safe`), all, or none.
        follow_redirects []: Follow = Follow::Safe;
        /// Check the server's certificate.
        validate_certs []: bool = true;
        /// Certificates of authorities that are trusted, instead of the system's.
        ca_path []: Option<PathBuf>;
        /// The client's certificate (PEM).
        client_cert []: Option<PathBuf>;
        /// Its key, where it is not in the same file.
        client_key []: Option<PathBuf>;
        /// User name.
        url_username ["user"]: Option<String>;
        /// Password.
        url_password ["password"]: Option<String>;
        /// Write the answer to this file.
        dest []: Option<PathBuf>;
        /// The file's mode.
        mode []: Option<Mode>;
        /// Its owner.
        owner []: Option<String>;
        /// Its group.
        group []: Option<String>;
        /// If this path exists, nothing is done.
        creates []: Option<PathBuf>;
    }
}

/// An HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16);

impl FromArg for Status {
    fn kind() -> String {
        "an HTTP status like 200".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        u16::from_arg(value)
            .ok()
            .filter(|code| (100..600).contains(code))
            .map(Self)
            .ok_or_else(|| super::args::expected::<Self>(value))
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "uri",
    aliases: &[],
    summary: "Sends a request by HTTP or HTTPS and reads the answer",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    example: "- name: wait for a leader\n  uri:\n    url: http://127.0.0.1:8500/v1/status/leader\n    return_content: true\n  register: leader\n  until: leader.json != ''\n  retries: 30\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let hints = [("src", "read the file by the `file` lookup and give it as `body`")];
    let args = hinted(Args::parse(&inv.args), &hints)?;
    let request = Request::new(&args, cx.host)?;
    if let Some(path) = &args.creates
        && exists(cx.host, path)?
    {
        return Ok(Plan::Unchanged(Outcome::unchanged().msg(format!("not sent: {} exists", path.display()))));
    }
    let looks = [Method::GET, Method::HEAD].contains(&request.method);
    if !looks {
        return Ok(Plan::Change(Box::new(Send { args, request })));
    }
    let answer = match send(&request) {
        Ok(answer) if request.accepted.contains(&answer.status) => answer,
        Ok(answer) if !cx.host.is_overlay() => return Err(answer.refused(&request)),
        Err(failure) if !cx.host.is_overlay() => return Err(failure),
        // What would answer may be something that the run starts first.
        Ok(answer) => return Ok(may_change(answer.refused(&request))),
        Err(failure) => return Ok(may_change(failure)),
    };
    let outcome = answer.outcome(&args);
    let Some(dest) = &args.dest else { return Ok(Plan::Unchanged(outcome)) };
    let before = cx.host.read(dest).ok();
    if before.as_ref() == Some(&answer.body) {
        return Ok(Plan::Unchanged(outcome.with("path", dest.to_string_lossy().into_owned())));
    }
    let attrs = attrs(&args, cx.host)?;
    let before = before.as_deref().map(text).unwrap_or_default();
    let mut diff = file_diff(inv, dest, &before, &text(&answer.body));
    if attrs.mode.is_some_and(|mode| mode & 0o004 == 0) {
        diff = Diff { before: String::new(), after: String::new(), hidden: true, ..diff };
    }
    Ok(Plan::Change(Box::new(Save { dest: dest.clone(), body: answer.body, attrs, outcome, diff })))
}

fn may_change(failure: Failure) -> Plan {
    Plan::Unchanged(Outcome { data: failure.data, ..Outcome::unknown(format!("not yet: {}", failure.message)) })
}

fn attrs(args: &Args, host: &dyn Read) -> Result<Attrs, Failure> {
    let current = match &args.dest {
        Some(dest) => host.meta(dest).map_err(|e| Failure::io("look at", dest, &e))?.map_or(0o644, |meta| meta.mode),
        None => 0o644,
    };
    let mode = args.mode.as_ref().map(|mode| mode.resolve(current, 0o644, false));
    Ok(Attrs { mode, owner: args.owner.clone(), group: args.group.clone() })
}

/// Everything that is needed to send it, checked.
struct Request {
    url: Url,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Vec<u8>>,
    login: Option<(String, Option<String>)>,
    accepted: Vec<u16>,
    timeout: Duration,
    follow: Follow,
    validate: bool,
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, shown(&self.url))
    }
}

/// The address without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for addresses that cannot have a login.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.to_string()
}

impl Request {
    fn new(args: &Args, host: &dyn Read) -> Result<Self, Failure> {
        let bad = |name: &str, what: String| Failure::new(format!("argument '{name}': {what}"));
        let url = Url::parse(&args.url).map_err(|e| bad("url", format!("expected an address like http://…: {e}")))?;
        if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
            return Err(bad("url", format!("expected http:// or https://, found '{}:'", url.scheme())));
        }
        let method = Method::from_bytes(args.method.to_uppercase().as_bytes())
            .map_err(|_| bad("method", format!("'{}' is no method", args.method.escape_debug())))?;
        let (kind, body) = body(args)?;
        let mut headers = Vec::new();
        for (name, value) in args.headers.iter().flatten() {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| bad("headers", format!("'{}' is no name for a header", name.escape_debug())))?;
            let value = String::from_arg(value).map_err(|e| bad("headers", format!("{name}: {e}")))?;
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                bad("headers", format!("the value of {name} holds characters that a header cannot have"))
            })?;
            value.set_sensitive(true);
            headers.push((header, value));
        }
        if let Some(kind) = kind
            && !headers.iter().any(|(name, _)| name == "content-type")
        {
            headers.push((HeaderName::from_static("content-type"), HeaderValue::from_static(kind)));
        }
        let read = |name: &str, path: &PathBuf| {
            host.read(path).map_err(|e| bad(name, format!("cannot read {}: {e}", path.display())))
        };
        let authorities = args
            .ca_path
            .as_ref()
            .map(|path| {
                let pem = read("ca_path", path)?;
                let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
                if certificates.is_empty() {
                    return Err(bad("ca_path", format!("{} holds no certificate (PEM)", path.display())));
                }
                Ok(certificates)
            })
            .transpose()?;
        let identity = match (&args.client_cert, &args.client_key) {
            (None, None) => None,
            (None, Some(_)) => return Err(Failure::new("'client_key' needs 'client_cert'")),
            (Some(cert), key) => {
                let mut pem = read("client_cert", cert)?;
                if let Some(key) = key {
                    pem.push(b'\n');
                    pem.extend(read("client_key", key)?);
                }
                let identity = Identity::from_pem(&pem);
                Some(identity.map_err(|_| bad("client_cert", "expected a certificate and its key (PEM)".into()))?)
            }
        };
        let accepted =
            if args.status_code.is_empty() { vec![200] } else { args.status_code.iter().map(|s| s.0).collect() };
        Ok(Self {
            url,
            method,
            headers,
            body,
            login: args.url_username.clone().map(|user| (user, args.url_password.clone())),
            accepted,
            timeout: args.timeout,
            follow: args.follow_redirects,
            validate: args.validate_certs,
            authorities,
            identity,
        })
    }
}

fn body(args: &Args) -> Result<(Option<&'static str>, Option<Vec<u8>>), Failure> {
    let Some(body) = &args.body else { return Ok((None, None)) };
    Ok(match (args.body_format, body) {
        // A string is JSON already: that is how Ansible's users write it.
        (BodyFormat::Json, Value::String(text)) => (Some("application/json"), Some(text.clone().into_bytes())),
        (BodyFormat::Json, value) => (Some("application/json"), Some(value.to_string().into_bytes())),
        (BodyFormat::Form, Value::String(text)) => {
            (Some("application/x-www-form-urlencoded"), Some(text.clone().into_bytes()))
        }
        (BodyFormat::Form, Value::Object(fields)) => {
            let mut url = Url::parse("http://form/").map_err(|e| Failure::new(e.to_string()))?;
            for (name, value) in fields {
                let values = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
                for value in values {
                    let text =
                        String::from_arg(value).map_err(|e| Failure::new(format!("argument 'body': {name}: {e}")))?;
                    url.query_pairs_mut().append_pair(name, &text);
                }
            }
            (Some("application/x-www-form-urlencoded"), Some(url.query().unwrap_or_default().as_bytes().to_vec()))
        }
        (BodyFormat::Form, _) => return Err(Failure::new("argument 'body': expected a mapping for a form")),
        (BodyFormat::Raw, Value::String(text)) => (None, Some(text.clone().into_bytes())),
        (BodyFormat::Raw, Value::Object(_) | Value::Array(_)) => {
            return Err(
                Failure::new("argument 'body': a mapping or list needs 'body_format'").hint("give `body_format: json`")
            );
        }
        (BodyFormat::Raw, value) => (None, Some(value.to_string().into_bytes())),
    })
}

#[derive(Debug)]
struct Answer {
    status: u16,
    reason: String,
    url: String,
    headers: Map<String, Value>,
    body: Vec<u8>,
}

impl Answer {
    fn outcome(&self, args: &Args) -> Outcome {
        let size = self.body.len();
        let mut outcome = Outcome::unchanged()
            .msg(format!("{} {} ({size} bytes)", self.status, self.reason))
            .with("status", self.status)
            .with("url", self.url.clone())
            .with("headers", Value::Object(self.headers.clone()));
        // Ansible has each header as a result of its own.
        for (name, value) in &self.headers {
            let name = name.replace('-', "_");
            if !["status", "url", "headers", "content", "json", "msg", "changed", "failed"].contains(&name.as_str()) {
                outcome = outcome.with(&name, value.clone());
            }
        }
        let content = text(&self.body);
        let kind = self.headers.get("content-type").and_then(Value::as_str).unwrap_or_default();
        if (kind.contains("/json") || kind.contains("+json"))
            && let Ok(value) = serde_json::from_str::<Value>(&content)
        {
            outcome = outcome.with("json", value);
        }
        if args.return_content { outcome.with("content", content) } else { outcome }
    }

    fn refused(&self, request: &Request) -> Failure {
        let wanted: Vec<String> = request.accepted.iter().map(u16::to_string).collect();
        let said: String = text(&self.body).trim().chars().take(300).collect();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        Failure::new(format!(
            "{} {}: status {} {}, expected {}{said}",
            request.method,
            shown(&request.url),
            self.status,
            self.reason,
            wanted.join(" or ")
        ))
        .with("status", self.status)
        .with("url", self.url.clone())
        .with("content", text(&self.body))
        .with("headers", Value::Object(self.headers.clone()))
    }
}

fn send(request: &Request) -> Result<Answer, Failure> {
    let what = || format!("{} {}", request.method, shown(&request.url));
    super::http::block_on(async {
        let response = async {
            let mut call = client(request)?.request(request.method.clone(), request.url.clone());
            for (name, value) in &request.headers {
                call = call.header(name, value);
            }
            if let Some((user, password)) = &request.login {
                call = call.basic_auth(user, password.as_ref());
            }
            if let Some(body) = &request.body {
                call = call.body(body.clone());
            }
            let response = call.send().await?;
            let status = response.status();
            let url = shown(response.url());
            let mut headers = Map::new();
            for (name, value) in response.headers() {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                match headers.get_mut(name.as_str()) {
                    Some(Value::String(text)) => text.push_str(&format!(", {value}")),
                    _ => {
                        headers.insert(name.as_str().to_owned(), value.into());
                    }
                }
            }
            let body = response.bytes().await?.to_vec();
            let reason = status.canonical_reason().unwrap_or_default().to_owned();
            Ok::<_, reqwest::Error>(Answer { status: status.as_u16(), reason, url, headers, body })
        };
        response.await.map_err(|e| {
            let failure = Failure::new(format!("{}: {}", what(), super::http::reason(e, request.timeout)));
            // As Ansible: a request without an answer has this status.
            failure.with("status", -1).with("url", shown(&request.url))
        })
    })?
}

fn client(request: &Request) -> Result<Client, reqwest::Error> {
    let redirects = match (request.follow, &request.method) {
        (Follow::All, _) | (Follow::Safe, &Method::GET | &Method::HEAD) => redirect::Policy::limited(10),
        _ => redirect::Policy::none(),
    };
    let mut client = Client::builder().timeout(request.timeout).redirect(redirects).referer(false);
    if let Some(authorities) = &request.authorities {
        client = client.tls_certs_only(authorities.clone());
    } else if request.url.scheme() == "http" || !request.validate {
        // A host without certificates of authorities cannot build the default client, not even for plain HTTP.
        client = client.tls_certs_only([]);
    }
    if !request.validate {
        client = client.tls_danger_accept_invalid_certs(true);
    }
    if let Some(identity) = &request.identity {
        client = client.identity(identity.clone());
    }
    client.build()
}

#[derive(Debug)]
struct Send {
    args: Args,
    request: Request,
}

impl Change for Send {
    fn diffs(&self) -> Vec<Diff> {
        Vec::new()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        if host.is_overlay() {
            return Ok(Outcome::unknown(format!("{} is not sent in check mode", self.request.method)));
        }
        let answer = send(&self.request)?;
        if !self.request.accepted.contains(&answer.status) {
            return Err(answer.refused(&self.request));
        }
        let mut outcome = answer.outcome(&self.args);
        if let Some(dest) = &self.args.dest
            && host.read(dest).ok().as_ref() != Some(&answer.body)
        {
            let attrs = attrs(&self.args, host.as_read())?;
            host.write(dest, &answer.body, &attrs, None)?;
            outcome.changed = true;
            outcome = outcome.with("path", dest.to_string_lossy().into_owned());
        }
        Ok(outcome)
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.args.dest.iter().cloned().collect()
    }
}

/// An answer that is written to a file.
#[derive(Debug)]
struct Save {
    dest: PathBuf,
    body: Vec<u8>,
    attrs: Attrs,
    outcome: Outcome,
    diff: Diff,
}

impl Change for Save {
    fn diffs(&self) -> Vec<Diff> {
        vec![self.diff.clone()]
    }

    fn paths(&self) -> Vec<PathBuf> {
        vec![self.dest.clone()]
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        host.write(&self.dest, &self.body, &self.attrs, None)?;
        let path = self.dest.to_string_lossy().into_owned();
        Ok(Outcome { changed: true, ..self.outcome }.with("path", path))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::modules::{
        fake::{Fake, go, plan},
        http::tests::Server,
    };

    const JSON: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Index: 7\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{\"a\": 1}\n";

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    #[test]
    fn an_answer_has_its_results() {
        let server = Server::new([JSON]);
        let args = json!({"url": server.url("/v1/x"), "return_content": true, "headers": {"X-Token": 7}});
        let outcome = go(&mut Fake::new(), "uri", args).unwrap();
        assert_eq!((&outcome.data["status"], &outcome.data["json"]), (&json!(200), &json!({"a": 1})));
        assert_eq!((&outcome.data["content"], &outcome.data["x_index"]), (&json!("{\"a\": 1}\n"), &json!("7")));
        assert!(!outcome.changed && outcome.data["url"].as_str().unwrap().ends_with("/v1/x"));
        assert!(server.requests()[0].contains("x-token: 7"));
    }

    #[test]
    fn bodies_are_written_as_asked() {
        let (ok, fine) = (answer("200 OK", ""), answer("201 Created", "x"));
        let server = Server::new([&ok, &fine, &ok]);
        let url = server.url("/");
        let call = |args: Value| {
            let mut all = json!({"url": url, "method": "PUT"});
            all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
            go(&mut Fake::new(), "uri", all)
        };
        call(json!({"body": {"n": 1}, "body_format": "json", "url_username": "u", "url_password": "p"})).unwrap();
        call(json!({"body": {"a": "1 2&", "b": [1, 2]}, "body_format": "form", "status_code": [200, 201]})).unwrap();
        call(json!({"body": "text", "method": "post"})).unwrap();
        let requests = server.requests();
        assert!(requests[0].ends_with("\r\n\r\n{\"n\":1}") && requests[0].contains("content-type: application/json"));
        assert!(requests[0].contains("authorization: Basic dTpw"));
        assert!(requests[1].ends_with("\r\n\r\na=1+2%26&b=1&b=2"), "{}", requests[1]);
        assert!(requests[2].starts_with("POST / ") && requests[2].ends_with("\r\n\r\ntext"));
    }

    #[test]
    fn another_status_is_a_failure_with_what_was_said() {
        let refused = answer("403 Forbidden", "ACL not found");
        let server = Server::new([&refused]);
        let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/x")})).unwrap_err();
        assert!(failure.message.ends_with("/x: status 403 Forbidden, expected 200: ACL not found"), "{failure}");
        assert_eq!((&failure.data["status"], &failure.data["content"]), (&json!(403), &json!("ACL not found")));
    }

    #[test]
    fn nobody_there_is_a_clear_failure_and_unknown_in_check_mode() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let args = json!({"url": format!("http://user:secret@127.0.0.1:{port}/")});
        let mut fake = Fake::new();
        let failure = go(&mut fake, "uri", args.clone()).unwrap_err();
        assert!(failure.message.contains("refused") && !failure.message.contains("secret"), "{failure}");
        assert_eq!(failure.data["status"], -1);
        let mut overlay = crate::host::overlay::Overlay::new(&fake);
        assert!(go(&mut overlay, "uri", args).unwrap().unknown);
    }

    #[test]
    fn slow_and_cut_answers_are_failures() {
        let server = Server::new(["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"]);
        let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/")})).unwrap_err();
        assert!(failure.message.contains("ended before"), "{failure}");
        let server = Server::new(["SLEEP"]);
        let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/"), "timeout": 0.1})).unwrap_err();
        assert!(failure.message.contains("no answer within 0.1 s"), "{failure}");
    }

    #[test]
    fn redirects_are_followed_for_reading_only() {
        let redirect = "HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let ok = answer("200 OK", "there");
        let server = Server::new([redirect, &ok, redirect]);
        let outcome = go(&mut Fake::new(), "uri", json!({"url": server.url("/"), "return_content": true})).unwrap();
        assert_eq!(outcome.data["content"], "there");
        let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/"), "method": "POST"})).unwrap_err();
        assert!(failure.message.contains("302"));
    }

    #[test]
    fn an_answer_is_written_once() {
        let server = Server::new([JSON, JSON, JSON, JSON]);
        let mut fake = Fake::new();
        fake.folders.insert("/srv".into());
        let args = json!({"url": server.url("/"), "dest": "/srv/x.json", "mode": "0600"});
        let outcome = crate::modules::fake::converges(&mut fake, "uri", args.clone());
        assert_eq!(outcome.data["path"], "/srv/x.json");
        assert_eq!(fake.files[Path::new("/srv/x.json")], b"{\"a\": 1}\n");
        let args = json!({"url": "http://127.0.0.1:1/", "creates": "/srv/x.json"});
        assert!(go(&mut fake, "uri", args).unwrap().msg.unwrap().contains("exists"));
    }

    #[test]
    fn check_mode_sends_nothing_that_changes() {
        let server = Server::new([""; 0]);
        let fake = Fake::new();
        let mut overlay = crate::host::overlay::Overlay::new(&fake);
        assert!(go(&mut overlay, "uri", json!({"url": server.url("/"), "method": "DELETE"})).unwrap().unknown);
        assert!(server.requests().is_empty());
    }

    #[test]
    fn bad_input_is_refused() {
        let fake = Fake::new().file("/etc/hosts", "");
        let error = |args| plan(&fake, "uri", args).unwrap_err();
        assert!(error(json!({"url": "consul:8500"})).message.contains("http://"));
        assert!(error(json!({"url": "/v1"})).message.contains("argument 'url'"));
        let url = "http://127.0.0.1:1/";
        assert!(error(json!({"url": url, "method": "G T"})).message.contains("is no method"));
        assert!(error(json!({"url": url, "headers": {"a b": 1}})).message.contains("is no name for a header"));
        assert!(error(json!({"url": url, "headers": {"a": "x\ny"}})).message.contains("cannot have"));
        assert!(error(json!({"url": url, "status_code": 7})).message.contains("HTTP status"));
        assert!(error(json!({"url": url, "body": {"a": 1}})).hint.unwrap().contains("body_format"));
        assert!(error(json!({"url": url, "ca_path": "/etc/hosts"})).message.contains("no certificate"));
        assert!(error(json!({"url": url, "client_key": "/k"})).message.contains("client_cert"));
        assert!(error(json!({"url": url, "src": "x"})).hint.unwrap().contains("lookup"));
    }
}
