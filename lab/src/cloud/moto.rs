//! The API server behind our proxy: `moto_server` from a pinned virtual environment, and a client for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Url;
use tokio::process::{Child, Command};

use super::xml::{Element, XmlError};

/// How long a cold start of the server may take; it imports a few hundred Python modules.
const START_LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);
/// Lines of its log that an error shows.
const LOG_LINES: usize = 12;

/// The server's process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Moto {
    child: Child,
    log: PathBuf,
}

impl Moto {
    /// Starts the server and waits until it answers.
    ///
    /// `program` is the environment's `moto_server`; its output goes to `log`.
    pub(crate) async fn start(program: &Path, listen: SocketAddr, log: &Path) -> anyhow::Result<Self> {
        let output = std::fs::File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().with_context(|| format!("cannot share {}", log.display()))?;
        let child = Command::new(program)
            .args(["-H", &listen.ip().to_string(), "-p", &listen.port().to_string()])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            // It knows only the images that the lab file names.
            .env("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut moto = Self { child, log: log.to_owned() };
        let api = Api::new(listen)?;
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = moto.ended()? {
                anyhow::bail!("moto_server ended at once ({status}){}", moto.last_words());
            }
            if api.ready().await {
                return Ok(moto);
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "moto_server does not answer on {listen} after {} s{}",
                START_LIMIT.as_secs(),
                moto.last_words()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// How the process ended, if it has.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot ask for the state of moto_server")
    }

    /// Kills the server and waits for its end.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot end moto_server")
    }

    /// The end of its log, on lines of their own, with the file's name.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("\nend of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

/// What a call can come to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{action} in {region} was not answered")]
    Transport {
        action: String,
        region: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{action} in {region} was refused: {code}: {message}")]
    Refused { action: String, region: String, code: String, message: String },
    #[error("the answer to {action} in {region} cannot be read")]
    Malformed {
        action: String,
        region: String,
        #[source]
        source: XmlError,
    },
    #[error("the answer to {action} in {region} has no `{field}`")]
    Missing { action: String, region: String, field: &'static str },
}

/// A client of the query API, for EC2 only. Calls are signed with a dummy: the server does not check.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    base: String,
    http: reqwest::Client,
}

impl Api {
    pub(crate) fn new(server: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { base: format!("http://{server}/"), http: plain_client()? })
    }

    async fn ready(&self) -> bool {
        let answer = self.http.get(format!("{}moto-api/", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// One EC2 call; returns the root of the answer.
    pub(crate) async fn ec2(
        &self,
        region: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Result<Element, ApiError> {
        let transport = |source| ApiError::Transport { action: action.to_owned(), region: region.to_owned(), source };
        let body =
            encode([("Action", action), ("Version", "2016-11-15")].into_iter().chain(parameters.iter().copied()));
        let answer = self
            .http
            .post(&self.base)
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential=lab/20200101/{region}/ec2/aws4_request, SignedHeaders=host, Signature=0"),
            )
            .body(body)
            .send()
            .await
            .map_err(transport)?;
        let status = answer.status();
        let text = answer.text().await.map_err(transport)?;
        let root = match Element::parse(&text) {
            Ok(root) => root,
            Err(source) if status.is_success() => {
                return Err(ApiError::Malformed { action: action.to_owned(), region: region.to_owned(), source });
            }
            // The page that a web server makes of a crash.
            Err(_) => Element::default(),
        };
        if status.is_success() {
            return Ok(root);
        }
        let part = |name: &str| root.find(name).map(|found| found.text.clone());
        Err(ApiError::Refused {
            action: action.to_owned(),
            region: region.to_owned(),
            code: part("Code").unwrap_or_else(|| status.to_string()),
            message: part("Message").unwrap_or_else(|| "the server says no more".to_owned()),
        })
    }

    /// Like [`Api::ec2`], and returns one text of the answer.
    pub(crate) async fn ec2_field(
        &self,
        region: &str,
        action: &str,
        parameters: &[(&str, &str)],
        path: &[&'static str],
    ) -> Result<String, ApiError> {
        let root = self.ec2(region, action, parameters).await?;
        root.at(path).map(str::to_owned).ok_or_else(|| ApiError::Missing {
            action: action.to_owned(),
            region: region.to_owned(),
            field: path.last().copied().unwrap_or("answer"),
        })
    }
}

/// A client for plain HTTP inside the lab: no proxy, and no look at the machine's certificates (without any it
/// would refuse to be built).
pub(crate) fn plain_client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_certs_only([])
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("cannot make an HTTP client")
}

/// Form encoding.
fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    // A URL's query is encoded in the same way.
    let Ok(mut url) = Url::parse("http://form/") else { return String::new() };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

/// The pairs of a form.
pub(crate) fn decode(form: &str) -> Vec<(String, String)> {
    let Ok(mut url) = Url::parse("http://form/") else { return Vec::new() };
    url.set_query(Some(form));
    url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_survive_encoding() {
        let pairs = [("Action", "RunInstances"), ("UserData", "a+b/=& ü\n")];
        let decoded = decode(&encode(pairs.into_iter()));
        assert_eq!(decoded, pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert!(decode("").is_empty());
    }

    #[tokio::test]
    async fn a_server_that_dies_is_told_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("moto_server");
        std::fs::write(&program, "#!/bin/sh\necho no module named moto >&2\nexit 3\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = Moto::start(&program, "127.0.0.1:1".parse().unwrap(), &folder.path().join("log"))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("no module named moto"), "{error}");
    }
}
