//! The address that `AWS_ENDPOINT_URL` names. It forwards every call to the API server and makes the server's
//! words true: after a call that changed something, hosts have followed before the caller gets the answer.
//!
//! Calls are not interpreted (a new one needs no code here), with two exceptions: GetConsoleOutput is answered
//! with what the host printed, and RebootInstances, which leaves no trace in the API, is done.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRANSFER_ENCODING};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::response::IntoResponse as _;
use base64::Engine as _;

use super::moto;
use super::state::Shared;
use super::xml::{Element, escape};

/// The largest request: S3 uploads pass through here.
const BODY_LIMIT_BYTES: usize = 512 << 20;
/// EC2 keeps the last 64 KiB of a console.
const CONSOLE_LIMIT_BYTES: usize = 64 << 10;
/// How long a caller that only reads waits for changes of others that are under way. Bounded, because a host
/// that is being shut down may itself read from the API.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

struct Proxy {
    shared: Arc<Shared>,
    http: reqwest::Client,
    upstream: String,
}

/// The proxy as a service; `upstream` is the API server's address.
pub(crate) fn router(shared: Arc<Shared>, upstream: std::net::SocketAddr) -> anyhow::Result<Router> {
    let proxy = Proxy { shared, http: moto::plain_client()?, upstream: format!("http://{upstream}") };
    Ok(Router::new().fallback(handle).with_state(Arc::new(proxy)))
}

/// What one request asks for, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Call {
    /// From the signature's scope; empty in an unsigned call.
    service: String,
    region: String,
    /// Only of the query protocol (EC2, Auto Scaling, STS, IAM).
    action: Option<String>,
    parameters: Vec<(String, String)>,
}

impl Call {
    fn read(method: &Method, query: Option<&str>, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (region, service) = scope(header(AUTHORIZATION)).unwrap_or_default();
        let form = header(CONTENT_TYPE).starts_with("application/x-www-form-urlencoded");
        let parameters = match (*method == Method::POST && form, std::str::from_utf8(body)) {
            (true, Ok(text)) => moto::decode(text),
            _ => query.map(moto::decode).unwrap_or_default(),
        };
        let action = parameters.iter().find(|(key, _)| key == "Action").map(|(_, value)| value.clone());
        Self { service, region, action, parameters }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether instances may be concerned at all.
    fn compute(&self) -> bool {
        self.action.is_some() && matches!(self.service.as_str(), "ec2" | "autoscaling" | "")
    }

    /// Whether instances may be different after it.
    fn mutates(&self) -> bool {
        let reads = |action: &str| ["Describe", "Get", "List", "Search"].iter().any(|verb| action.starts_with(verb));
        self.compute() && !self.action.as_deref().is_some_and(reads)
    }
}

/// Region and service of `AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/SERVICE/aws4_request, …`.
fn scope(authorization: &str) -> Option<(String, String)> {
    let credential = authorization.split_once("Credential=")?.1;
    let mut parts = credential.split([',', ' ']).next()?.split('/').skip(2);
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}

async fn handle(State(proxy): State<Arc<Proxy>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, BODY_LIMIT_BYTES).await {
        Ok(body) => body,
        Err(error) => return plain(StatusCode::PAYLOAD_TOO_LARGE, &format!("cannot read the request: {error}\n")),
    };
    let call = Call::read(&parts.method, parts.uri.query(), &parts.headers, &body);
    if call.compute() && !call.mutates() {
        // An answer that already names what is not yet so would be a lie.
        let _ = tokio::time::timeout(SETTLE_LIMIT, proxy.shared.settled()).await;
    }
    let before = proxy.shared.standing();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let answer = match proxy.forward(parts.method.clone(), path, &parts.headers, body).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::error!(%error, "the API server does not answer");
            return failure(
                &call,
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                &format!("the API server does not answer: {error}"),
            );
        }
    };
    if !answer.status.is_success() {
        return answer.into_response(&parts.method);
    }
    if call.compute() && call.action.as_deref() == Some("GetConsoleOutput") {
        return proxy.console(&call);
    }
    if call.mutates() {
        if !call.region.is_empty() {
            proxy.shared.watch(&call.region);
        }
        let afresh =
            call.action.as_deref().is_some_and(|action| action.starts_with("Modify") || action.starts_with("Reset"));
        if let Err(error) = proxy.follow(&call, afresh).await {
            let message = format!("{error:#}");
            if before.as_deref() == Some(message.as_str()) {
                // It stood there before this call, which is not to blame.
                return answer.into_response(&parts.method);
            }
            tracing::error!(action = call.action, "{message}");
            // A client error: the SDKs would repeat the call on a server error, and start a second instance.
            return failure(&call, StatusCode::BAD_REQUEST, "LabHostFailed", &message);
        }
    }
    answer.into_response(&parts.method)
}

/// An answer of the API server.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn into_response(mut self, method: &Method) -> Response<Body> {
        for name in [CONNECTION, TRANSFER_ENCODING] {
            self.headers.remove(name);
        }
        if *method != Method::HEAD {
            // Set anew from the body. In the answer to HEAD it is the only place that tells the size.
            self.headers.remove(CONTENT_LENGTH);
        }
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

impl Proxy {
    async fn forward(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, reqwest::Error> {
        let mut headers = headers.clone();
        // `Host` stays: S3 reads the bucket from it.
        for name in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH, EXPECT] {
            headers.remove(name);
        }
        let answer =
            self.http.request(method, format!("{}{path}", self.upstream)).headers(headers).body(body).send().await?;
        Ok(Answer { status: answer.status(), headers: answer.headers().clone(), body: answer.bytes().await? })
    }

    async fn follow(&self, call: &Call, afresh: bool) -> anyhow::Result<()> {
        if call.action.as_deref() == Some("RebootInstances") {
            let named = call.parameters.iter().filter(|(key, _)| key.starts_with("InstanceId."));
            let ids: Vec<String> = named.map(|(_, id)| id.clone()).collect();
            self.shared.reboot(&ids).await?;
        }
        self.shared.refresh(afresh).await
    }

    fn console(&self, call: &Call) -> Response<Body> {
        let id = call.parameter("InstanceId").unwrap_or_default();
        let text = match self.shared.console(id) {
            Ok(text) => text,
            Err(error) => return failure(call, StatusCode::BAD_REQUEST, "LabHostFailed", &format!("{error:#}")),
        };
        let tail = &text.as_bytes()[text.len().saturating_sub(CONSOLE_LIMIT_BYTES)..];
        let answer = format!(
            "<GetConsoleOutputResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{}</requestId>\
             <instanceId>{}</instanceId><timestamp>{}</timestamp><output>{}</output></GetConsoleOutputResponse>",
            uuid::Uuid::new_v4(),
            escape(id),
            jiff::Timestamp::now(),
            base64::engine::general_purpose::STANDARD.encode(tail)
        );
        ([(CONTENT_TYPE, "text/xml;charset=UTF-8")], answer).into_response()
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    (status, [(CONTENT_TYPE, "text/plain")], text.to_owned()).into_response()
}

/// An error in the form of the called service.
fn failure(call: &Call, status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let (id, message) = (uuid::Uuid::new_v4(), escape(message));
    let answer = if call.service == "autoscaling" {
        format!(
            "<ErrorResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>{message}</Message></Error><RequestId>{id}</RequestId></ErrorResponse>"
        )
    } else if call.action.is_some() {
        format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
             <RequestID>{id}</RequestID></Response>"
        )
    } else {
        format!("{{\"__type\":\"{code}\",\"message\":{}}}", serde_json::Value::String(message))
    };
    debug_assert!(call.action.is_none() || Element::parse(&answer).is_ok());
    (status, [(CONTENT_TYPE, "text/xml;charset=UTF-8")], answer).into_response()
}

#[cfg(test)]
mod tests;
