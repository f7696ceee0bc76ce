//! How the verbs talk to a lab's supervisor: one JSON object per line over a socket that only root and the lab's
//! owner can open. One request per connection; progress lines, then one answer.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use indexmap::IndexMap;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::output;
use crate::paths::LabPaths;

/// What a verb asks for. `host` is a name, an instance id, an address or a host name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Answers when every host that runs answers on SSH.
    Ready,
    Status,
    Find {
        host: String,
    },
    Kill {
        host: String,
    },
    Start {
        host: String,
    },
    Reset {
        host: String,
    },
    Console {
        host: String,
    },
    Partition {
        a: Vec<String>,
        b: Vec<String>,
    },
    Heal,
    Fault {
        host: String,
        fault: Option<Fault>,
    },
}

/// What can be broken in a host that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    DiskFull,
    ReadOnly,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DiskFull => "disk-full",
            Self::ReadOnly => "read-only",
        }
    }
}

/// A line from the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    Progress(String),
    Done(Answer),
    Failed { message: String, hint: Option<String> },
}

/// What a request was answered with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// One line about what was done.
    Text(String),
    Status(Box<Status>),
    Host(Box<HostStatus>),
    Console(String),
}

/// A lab as `lab status --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    /// `starting` or `up`; `crashed` is told by who cannot reach the supervisor.
    pub(crate) state: String,
    pub(crate) file: String,
    pub(crate) region: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) namespace: String,
    pub(crate) aws_endpoint: String,
    pub(crate) mirror: String,
    pub(crate) ssh_config: String,
    pub(crate) known_hosts: String,
    /// Name of each key pair of the lab file, and the file of its private key.
    pub(crate) keys: IndexMap<String, String>,
    pub(crate) jump_host: Option<String>,
    /// Folders of the programs that were built for it.
    pub(crate) path: Vec<String>,
    /// From the start of the supervisor until every host answered; missing until then.
    pub(crate) up_seconds: Option<f64>,
    /// Of the supervisor and its services, in bytes.
    pub(crate) services_memory: Option<u64>,
    pub(crate) partitions: Vec<(String, String)>,
    pub(crate) hosts: Vec<HostStatus>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostStatus {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) hostname: String,
    /// `booting`, `up`, `stopped` (by the EC2 API), `killed`, `off` (by itself), `crashed`.
    pub(crate) state: String,
    /// From power on until SSH answered, in seconds; missing until then.
    pub(crate) boot_seconds: Option<f64>,
    pub(crate) zone: String,
    pub(crate) instance_type: String,
    pub(crate) key: Option<String>,
    pub(crate) tags: IndexMap<String, String>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) host_keys: Vec<String>,
    /// Processes and files in memory, in bytes.
    pub(crate) memory: Option<u64>,
}

/// Asks a lab's supervisor, shows its progress, and returns its answer.
pub(crate) fn ask(paths: &LabPaths, request: &Request) -> Result<Answer> {
    let mut stream = connect(paths)?;
    let mut line = serde_json::to_vec(request).context("cannot write the request")?;
    line.push(b'\n');
    stream.write_all(&line).context("cannot write to the lab's supervisor")?;
    for line in BufReader::new(stream).lines() {
        let line = line.context("the connection to the lab's supervisor broke")?;
        match serde_json::from_str(&line)
            .context("the lab's supervisor answers something else: is it of another version?")?
        {
            Reply::Progress(text) => output::note(text),
            Reply::Done(answer) => return Ok(answer),
            Reply::Failed { message, hint } => return Err(Failure { message, hint }.into()),
        }
    }
    Err(crashed(paths))
}

/// The same for a verb that answers with a line of text, which is shown.
pub(crate) fn ask_and_tell(paths: &LabPaths, request: &Request) -> Result<()> {
    match ask(paths, request)? {
        Answer::Text(text) => output::note(text),
        other => anyhow::bail!("the lab's supervisor answers something else: {other:?}"),
    }
    Ok(())
}

/// Its state.
pub(crate) fn status(paths: &LabPaths) -> Result<Status> {
    match ask(paths, &Request::Status)? {
        Answer::Status(status) => Ok(*status),
        other => anyhow::bail!("the lab's supervisor answers something else: {other:?}"),
    }
}

/// One host of it.
pub(crate) fn find_host(paths: &LabPaths, host: &str) -> Result<HostStatus> {
    match ask(paths, &Request::Find { host: host.to_owned() })? {
        Answer::Host(host) => Ok(*host),
        other => anyhow::bail!("the lab's supervisor answers something else: {other:?}"),
    }
}

/// Connects to a lab that runs.
pub(crate) fn connect(paths: &LabPaths) -> Result<UnixStream> {
    UnixStream::connect(paths.socket()).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(format!("lab '{}' belongs to another user", paths.name), "run it again with sudo").into()
        }
        _ if paths.dir().is_dir() => crashed(paths),
        _ => Failure::new(format!("no lab '{}' is up", paths.name), "lab up FILE").into(),
    })
}

fn crashed(paths: &LabPaths) -> anyhow::Error {
    let said = std::fs::read_to_string(paths.log()).unwrap_or_default();
    let mut message = format!("lab '{}' has crashed, its hosts are gone", paths.name);
    // The log of a supervisor that was killed ends with something that has nothing to do with it.
    if let Some(last) = said.lines().rfind(|line| line.starts_with("error:") || line.contains(" ERROR ")) {
        message.push_str(&format!(": {last}"));
    }
    Failure::new(message, format!("lab down --name {0}, then lab up again", paths.name)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        for request in [
            Request::Status,
            Request::Fault { host: "a".into(), fault: Some(Fault::DiskFull) },
            Request::Partition { a: vec!["a".into()], b: vec!["b".into(), "c".into()] },
        ] {
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
        assert!(serde_json::from_str::<Request>(r#"{"verb":"explode"}"#).is_err());
    }
}
