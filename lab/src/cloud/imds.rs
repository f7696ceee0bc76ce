//! The instance metadata service, version 2 only: a session token first, 401 without one.
//!
//! The caller's source address tells which instance asks; nobody gets the words of another. What AWS refuses is
//! refused in the same way: a token request through a proxy (`X-Forwarded-For`) gets 403, one without a proper
//! lifetime 400. Tags are always offered (`InstanceMetadataTags` on).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE, SERVER};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use axum::response::IntoResponse as _;

use super::Instance;
use super::state::Shared;

const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TTL_SECONDS: std::ops::RangeInclusive<u32> = 1..=21_600;
/// Versions of the paths; all answer alike.
const VERSIONS: [&str; 6] = ["1.0", "2009-04-04", "2018-09-24", "2021-03-23", "2021-07-15", "latest"];
/// The account that the API server plays.
const ACCOUNT: &str = "123456789012";

/// Who asks: a source of instances by address. The lab's cloud, or a test's list.
pub(crate) trait Callers: Send + Sync + 'static {
    fn instance(&self, address: Ipv4Addr) -> Option<Instance>;
}

impl Callers for Shared {
    fn instance(&self, address: Ipv4Addr) -> Option<Instance> {
        self.by_address(address)
    }
}

struct Imds {
    callers: Arc<dyn Callers>,
    tokens: Mutex<HashMap<String, Token>>,
    now: fn() -> Instant,
}

struct Token {
    /// The instance that asked for it.
    instance: String,
    ends: Instant,
    ttl: u32,
}

/// The service; serve it with `into_make_service_with_connect_info::<SocketAddr>()`.
pub(crate) fn router(callers: Arc<dyn Callers>) -> Router {
    with_clock(callers, Instant::now)
}

fn with_clock(callers: Arc<dyn Callers>, now: fn() -> Instant) -> Router {
    Router::new().fallback(handle).with_state(Arc::new(Imds { callers, tokens: Mutex::default(), now }))
}

async fn handle(
    State(imds): State<Arc<Imds>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response<Body> {
    let mut response = imds.answer(from.ip(), &request);
    response.headers_mut().insert(SERVER, HeaderValue::from_static("EC2ws"));
    response
}

impl Imds {
    fn answer(&self, from: IpAddr, request: &Request) -> Response<Body> {
        let IpAddr::V4(address) = from.to_canonical() else {
            return status(StatusCode::NOT_FOUND);
        };
        let Some(instance) = self.callers.instance(address) else {
            tracing::debug!(%address, "no running instance has this address");
            return status(StatusCode::NOT_FOUND);
        };
        let path = request.uri().path();
        if path.trim_end_matches('/').ends_with("/api/token") {
            return match *request.method() {
                Method::PUT => self.give_token(&instance, request.headers()),
                _ => (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "OPTIONS, PUT")]).into_response(),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")]).into_response();
        }
        let Some(ttl) = self.lifetime(&instance, request.headers()) else {
            return status(StatusCode::UNAUTHORIZED);
        };
        let Some(body) = Tree::of(&instance).get(path) else {
            return status(StatusCode::NOT_FOUND);
        };
        ([(CONTENT_TYPE.as_str(), "text/plain".to_owned()), (TTL_HEADER, ttl.to_string())], body).into_response()
    }

    fn give_token(&self, instance: &Instance, headers: &HeaderMap) -> Response<Body> {
        if headers.contains_key("x-forwarded-for") {
            return status(StatusCode::FORBIDDEN);
        }
        let wanted =
            headers.get(TTL_HEADER).and_then(|value| value.to_str().ok()).and_then(|value| value.trim().parse().ok());
        let Some(ttl) = wanted.filter(|ttl| TTL_SECONDS.contains(ttl)) else {
            return status(StatusCode::BAD_REQUEST);
        };
        let name = format!("{}{}==", uuid::Uuid::new_v4().simple(), &uuid::Uuid::new_v4().simple().to_string()[..22]);
        let now = (self.now)();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, token| token.ends > now);
        let ends = now + Duration::from_secs(u64::from(ttl));
        tokens.insert(name.clone(), Token { instance: instance.id.clone(), ends, ttl });
        ([(CONTENT_TYPE.as_str(), "text/plain".to_owned()), (TTL_HEADER, ttl.to_string())], name).into_response()
    }

    /// Seconds that the request's token was given for, if it is this instance's and still good.
    fn lifetime(&self, instance: &Instance, headers: &HeaderMap) -> Option<u32> {
        let name = headers.get(TOKEN_HEADER)?.to_str().ok()?;
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.get(name)?;
        (token.instance == instance.id && token.ends > (self.now)()).then_some(token.ttl)
    }
}

/// A refusal with the page that AWS sends.
fn status(code: StatusCode) -> Response<Body> {
    let title = format!("{} - {}", code.as_u16(), code.canonical_reason().unwrap_or_default());
    let page = format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
         \t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n<html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
         <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    );
    (code, [(CONTENT_TYPE, "text/html")], page).into_response()
}

/// All that one instance may read: values by path below a version.
struct Tree(BTreeMap<String, Vec<u8>>);

impl Tree {
    fn of(instance: &Instance) -> Self {
        let mut values: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let address = instance.address.to_string();
        let host = format!("ip-{}.{}.compute.internal", address.replace('.', "-"), instance.region);
        let mut put = |path: &str, value: &str| values.insert(path.to_owned(), value.as_bytes().to_vec());
        for (path, value) in [
            ("ami-id", instance.image_id.as_str()),
            ("ami-launch-index", "0"),
            ("hostname", &host),
            ("instance-action", "none"),
            ("instance-id", &instance.id),
            ("instance-life-cycle", "on-demand"),
            ("instance-type", &instance.instance_type),
            ("local-hostname", &host),
            ("local-ipv4", &address),
            ("placement/availability-zone", &instance.zone),
            ("placement/region", &instance.region),
            ("profile", "default-hvm"),
            ("services/domain", "amazonaws.com"),
            ("services/partition", "aws"),
        ] {
            put(&format!("meta-data/{path}"), value);
        }
        for (index, key) in instance.public_keys.iter().enumerate() {
            put(&format!("meta-data/public-keys/{index}/openssh-key"), key.trim());
        }
        for (key, value) in &instance.tags {
            // AWS does not let such a tag be set while tags are offered here.
            if !key.contains(['/', ' ']) {
                put(&format!("meta-data/tags/instance/{key}"), value);
            }
        }
        put("dynamic/instance-identity/document", &identity(instance));
        if let Some(data) = &instance.user_data {
            values.insert("user-data".to_owned(), data.clone());
        }
        if let Some(name) = instance.key_name.as_ref().filter(|_| !instance.public_keys.is_empty()) {
            // AWS lists keys as `0=name`; that is a listing, not a value.
            values.insert("meta-data/public-keys/".to_owned(), format!("0={name}").into_bytes());
        }
        Self(values)
    }

    /// The value or the listing at a request's path.
    fn get(&self, path: &str) -> Option<Vec<u8>> {
        let path = percent_decoded(path)?;
        let path = path.trim_start_matches('/');
        if path.is_empty() {
            return Some(VERSIONS.join("\n").into_bytes());
        }
        let (version, rest) = path.split_once('/').unwrap_or((path, ""));
        if !VERSIONS.contains(&version) {
            return None;
        }
        if let Some(value) = self.0.get(rest) {
            return Some(value.clone());
        }
        let folder = rest.trim_end_matches('/');
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        if let Some(listing) = self.0.get(&prefix) {
            return Some(listing.clone());
        }
        let names: BTreeSet<String> = self
            .0
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix))
            .map(|below| below.split_once('/').map_or_else(|| below.to_owned(), |(child, _)| format!("{child}/")))
            .collect();
        (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join("\n").into_bytes())
    }
}

/// Tag keys may hold any character. None for a broken escape or what is no UTF-8.
pub(crate) fn percent_decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let hex = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The instance identity document.
fn identity(instance: &Instance) -> String {
    let document = serde_json::json!({
        "accountId": ACCOUNT,
        "architecture": "x86_64",
        "availabilityZone": instance.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": instance.image_id,
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "kernelId": null,
        "pendingTime": instance.launch_time,
        "privateIp": instance.address.to_string(),
        "ramdiskId": null,
        "region": instance.region,
        "version": "2017-09-30",
    });
    format!("{document:#}")
}

#[cfg(test)]
mod tests;
