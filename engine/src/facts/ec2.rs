//! The instance's identity from EC2's metadata service: version 2 only, a token first, never a fallback.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::modules::{Failure, http};

/// Where the metadata service is.
pub const IMDS: &str = "http://169.254.169.254";

/// How long a token holds, in seconds: only as long as these few requests.
const TOKEN_TTL: &str = "60";

/// First pause after an answer that asks for patience; it doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// The facts `ec2`: identity, place, addresses and tags of this instance. `base` is [`IMDS`] except in tests. All requests
/// together take at most `timeout`. An empty or missing answer is an error; only what an instance may lack is null (public
/// address, tags that are not shown to the instance).
pub fn ec2(base: &str, timeout: Duration) -> Result<Value, Failure> {
    http::block_on(async {
        match tokio::time::timeout(timeout, gather(base, timeout)).await {
            Ok(found) => found,
            Err(_) => Err(no_answer(&format!("no answer within {} s", timeout.as_secs_f64()))),
        }
    })?
}

fn no_answer(why: &str) -> Failure {
    Failure::new(format!("EC2 metadata service: {why}"))
        .hint("the instance needs the metadata service switched on, version 2, and a hop limit that reaches it")
}

async fn gather(base: &str, timeout: Duration) -> Result<Value, Failure> {
    // Never through a proxy: the address is this machine's own.
    let client = Client::builder().no_proxy().timeout(timeout).tls_certs_only([]).build();
    let client = client.map_err(|e| no_answer(&http::reason(e, timeout)))?;
    let mut session = Session {
        client,
        base: base.trim_end_matches('/'),
        token: String::new(),
        end: Instant::now() + timeout,
        timeout,
    };
    session.renew().await?;
    let tags = session.tags().await?;
    Ok(json!({
        "instance_id": session.need("instance-id").await?,
        "instance_type": session.need("instance-type").await?,
        "region": session.need("placement/region").await?,
        "zone": session.need("placement/availability-zone").await?,
        "private_ipv4": session.need("local-ipv4").await?,
        "public_ipv4": session.get("public-ipv4").await?,
        "local_hostname": session.get("local-hostname").await?,
        "mac": session.get("mac").await?,
        "ami_id": session.get("ami-id").await?,
        "tags": tags,
    }))
}

struct Session<'a> {
    client: Client,
    base: &'a str,
    token: String,
    end: Instant,
    timeout: Duration,
}

impl Session<'_> {
    async fn renew(&mut self) -> Result<(), Failure> {
        self.token.clear();
        let answer = self.send(Method::PUT, "/latest/api/token").await?;
        self.token = answer.filter(|token| !token.is_empty()).ok_or_else(|| no_answer("it gave no token"))?;
        Ok(())
    }

    /// A value that every instance has.
    async fn need(&mut self, path: &str) -> Result<String, Failure> {
        self.get(path).await?.ok_or_else(|| no_answer(&format!("it has no '{path}'")))
    }

    /// A value; `None` for 404.
    async fn get(&mut self, path: &str) -> Result<Option<String>, Failure> {
        let answer = self.send(Method::GET, &format!("/latest/meta-data/{path}")).await?;
        if answer.as_ref().is_some_and(String::is_empty) {
            return Err(no_answer(&format!("its answer for '{path}' is empty")));
        }
        Ok(answer)
    }

    /// Tags, or null where the instance is not allowed to see them.
    async fn tags(&mut self) -> Result<Value, Failure> {
        let Some(names) = self.send(Method::GET, "/latest/meta-data/tags/instance").await? else {
            return Ok(Value::Null);
        };
        let mut tags = Map::new();
        for name in names.lines().filter(|name| !name.is_empty()) {
            // An empty value is a value here; a tag that has just been removed is not.
            if let Some(value) = self.send(Method::GET, &format!("/latest/meta-data/tags/instance/{name}")).await? {
                tags.insert(name.to_owned(), value.into());
            }
        }
        Ok(Value::Object(tags))
    }

    async fn send(&mut self, method: Method, path: &str) -> Result<Option<String>, Failure> {
        let mut pause = PAUSE;
        let mut renewed = false;
        loop {
            let request = self.client.request(method.clone(), format!("{}{path}", self.base));
            let request = if method == Method::PUT {
                request.header("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_TTL)
            } else {
                request.header("X-aws-ec2-metadata-token", &self.token)
            };
            let answer = request.send().await.map_err(|e| no_answer(&http::reason(e, self.timeout)))?;
            let status = answer.status();
            if status == StatusCode::NOT_FOUND && method == Method::GET {
                return Ok(None);
            }
            if status.is_success() {
                let text = answer.text().await.map_err(|e| no_answer(&http::reason(e, self.timeout)))?;
                return Ok(Some(text.trim().to_owned()));
            }
            if status == StatusCode::UNAUTHORIZED && method == Method::GET && !renewed {
                renewed = true;
                Box::pin(self.renew()).await?;
                continue;
            }
            let patient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            if !patient || Instant::now() + pause >= self.end {
                return Err(no_answer(&format!("{method} {path}: status {status}")));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::http::tests::Server;

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    fn ok(bodies: &[&str]) -> Vec<String> {
        bodies.iter().map(|body| answer("200 OK", body)).collect()
    }

    const REST: [&str; 9] = [
        "i-0abc",
        "t3.small",
        "eu-central-1",
        "eu-central-1a",
        "10.0.0.7",
        "3.4.5.6",
        "ip-10-0-0-7",
        "02:00:00:00:00:01",
        "ami-1",
    ];

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn an_instance_knows_itself() {
        let mut answers = ok(&["TOKEN", "Name\nrole\nempty", "consul-1", "consul server", ""]);
        answers.extend(ok(&REST));
        let server = Server::new(&answers);
        let found = ec2(&server.url(""), LONG).unwrap();
        assert_eq!(found["instance_id"], "i-0abc");
        assert_eq!((&found["region"], &found["zone"]), (&json!("eu-central-1"), &json!("eu-central-1a")));
        assert_eq!(found["tags"], json!({"Name": "consul-1", "role": "consul server", "empty": ""}));
        let requests = server.requests();
        assert!(requests[0].starts_with("PUT /latest/api/token") && requests[0].contains("ttl-seconds: 60"));
        assert!(requests[1..].iter().all(|r| r.contains("x-aws-ec2-metadata-token: TOKEN")));
        let documented = include_str!("../../../docs/facts.md");
        for name in found.as_object().unwrap().keys() {
            assert!(documented.contains(&format!("| `facts.ec2.{name}")), "{name}");
        }
    }

    #[test]
    fn what_an_instance_may_lack_is_null() {
        let mut answers = ok(&["TOKEN"]);
        answers.push(answer("404 Not Found", "no"));
        answers.extend(ok(&REST));
        answers[7] = answer("404 Not Found", "");
        let found = ec2(&Server::new(&answers).url(""), LONG).unwrap();
        assert_eq!((&found["tags"], &found["public_ipv4"]), (&Value::Null, &Value::Null));
        assert_eq!(found["private_ipv4"], "10.0.0.7");
    }

    #[test]
    fn a_busy_service_and_an_old_token_are_tried_again() {
        let mut answers = vec![answer("503 Busy", ""), answer("200 OK", "OLD"), answer("401 Unauthorized", "")];
        answers.extend(ok(&["NEW", ""]));
        answers.extend(ok(&REST));
        let server = Server::new(&answers);
        ec2(&server.url(""), LONG).unwrap();
        let requests = server.requests();
        assert_eq!(requests.iter().filter(|r| r.starts_with("PUT")).count(), 3);
        assert!(requests[4].contains("token: NEW"));
    }

    #[test]
    fn there_is_no_fallback_to_version_1() {
        let server = Server::new(&[answer("403 Forbidden", ""), answer("200 OK", "i-0abc")]);
        let failure = ec2(&server.url(""), LONG).unwrap_err();
        assert!(failure.message.contains("PUT /latest/api/token: status 403"), "{failure}");
        assert_eq!(server.requests().len(), 1);
    }

    #[test]
    fn an_empty_answer_and_silence_are_errors() {
        let mut answers = ok(&["TOKEN", ""]);
        answers.push(answer("200 OK", ""));
        let failure = ec2(&Server::new(&answers).url(""), LONG).unwrap_err();
        assert!(failure.message.contains("'instance-id' is empty"), "{failure}");
        let failure = ec2(&Server::new(["SLEEP"]).url(""), Duration::from_millis(100)).unwrap_err();
        assert!(failure.message.contains("no answer within 0.1 s"), "{failure}");
    }
}
