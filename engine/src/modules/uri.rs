//! `uri`: a request by HTTP or HTTPS.

use std::{path::PathBuf, time::Duration};

use reqwest::{
    Client, ClientBuilder, Identity, Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
    redirect,
};
use serde_json::{Map, Value};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan,
    args::Mode,
    http::{self, Login, Reach, Trust, Web, shown},
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
        url []: Web, required;
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
        /// Go through the proxies of the environment.
        use_proxy []: bool = true;
        /// Certificates (PEM) to trust instead of the system's.
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
    results: &[&[
        ("status", "The code of the answer; -1 where none came."),
        ("url", "The address that answered, after redirections."),
        ("headers", "All headers of the answer, names in lower case."),
        ("HEADER", "Each header once more under its own name, `-` as `_`: `content_type`."),
        ("json", "The body, where the answer says that it is JSON."),
        ("content", "The body as text, with `return_content` and in failures."),
        ("path", "The file that was written, with `dest`."),
    ]],
    example: "- name: wait for a leader\n  uri:\n    url: http://127.0.0.1:8500/v1/status/leader\n    return_content: true\n  register: leader\n  until: leader.json != ''\n  retries: 30\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let hints = [("src", "read the file by the `file` lookup and give it as `body`")];
    let args = hinted(Args::parse(&inv.args), &hints)?;
    let request = Request::new(&args, &inv.environment, cx.host)?;
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
    url: Web,
    method: Method,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
    login: Option<Login>,
    accepted: Vec<u16>,
    timeout: Duration,
    follow: Follow,
    reach: Reach,
    identity: Option<Identity>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.url.shown())
    }
}

impl Request {
    fn new(args: &Args, environment: &[(String, String)], host: &dyn Read) -> Result<Self, Failure> {
        let method = Method::from_bytes(args.method.to_uppercase().as_bytes())
            .map_err(|_| Failure::new(format!("argument 'method': '{}' is no method", args.method.escape_debug())))?;
        let (kind, body) = body(args)?;
        let mut headers = args.headers.as_ref().map(http::headers).transpose()?.unwrap_or_default();
        if let Some(kind) = kind {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(kind));
        }
        let user = ("url_username", args.url_username.as_deref());
        let login = Login::read(user, ("url_password", args.url_password.as_deref()))?;
        let trust = Trust::read(args.ca_path.as_ref(), host)?;
        let trust = if args.validate_certs { trust } else { Trust::All };
        let accepted =
            if args.status_code.is_empty() { vec![200] } else { args.status_code.iter().map(|s| s.0).collect() };
        Ok(Self {
            url: args.url.clone(),
            method,
            headers,
            body,
            login,
            accepted,
            timeout: args.timeout,
            follow: args.follow_redirects,
            reach: Reach { trust, use_proxy: args.use_proxy, environment: environment.to_vec() },
            identity: identity(args, host)?,
        })
    }

    fn shown(&self) -> String {
        format!("{} {}", self.method, self.url.shown())
    }

    /// What a client needs for this request beside the way to its server.
    fn set(&self, client: ClientBuilder) -> ClientBuilder {
        let redirects = match (self.follow, &self.method) {
            (Follow::All, _) | (Follow::Safe, &Method::GET | &Method::HEAD) => redirect::Policy::limited(10),
            _ => redirect::Policy::none(),
        };
        let client = client.timeout(self.timeout).redirect(redirects).referer(false);
        match &self.identity {
            Some(identity) => client.identity(identity.clone()),
            None => client,
        }
    }
}

/// The client's certificate with its key.
fn identity(args: &Args, host: &dyn Read) -> Result<Option<Identity>, Failure> {
    let Some(cert) = &args.client_cert else {
        return match args.client_key {
            Some(_) => Err(Failure::new("argument 'client_key' needs 'client_cert'")),
            None => Ok(None),
        };
    };
    let mut pem = http::read(cert, host)?;
    if let Some(key) = &args.client_key {
        pem.push(b'\n');
        pem.extend(http::read(key, host)?);
    }
    let identity = Identity::from_pem(&pem);
    identity.map(Some).map_err(|_| Failure::new("argument 'client_cert': expected a certificate and its key (PEM)"))
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
            "{}: status {} {}, expected {}{said}",
            request.shown(),
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
    let client = http::client(&request.url, &request.reach, |builder| request.set(builder))?;
    http::block_on(async {
        ask(request, &client).await.map_err(|e| {
            let failure = Failure::new(format!("{}: {}", request.shown(), http::reason(e, request.timeout)));
            // As Ansible: a request without an answer has this status.
            failure.with("status", -1).with("url", request.url.shown())
        })
    })?
}

async fn ask(request: &Request, client: &Client) -> Result<Answer, reqwest::Error> {
    let mut call = client.request(request.method.clone(), request.url.url().clone()).headers(request.headers.clone());
    if let Some(login) = &request.login {
        call = login.put(call);
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
    Ok(Answer { status: status.as_u16(), reason, url, headers, body })
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
mod tests;
