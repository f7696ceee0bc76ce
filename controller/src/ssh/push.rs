//! The agent on a host: started where it is, put there where it is not.
//!
//! One channel tries `INSTALL_DIR/agent-HASH`. A host that lacks it says so, with its architecture;
//! a second channel then carries the compressed binary to a script that installs it as root and
//! becomes it. So a host sees one session, or two when it is pushed to.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::agents::{AgentBinary, Agents};
use super::channel::{Channel, Exit};
use super::error::SshError;
use super::flow::{Flow, PATIENCE};
use super::push_script::{Codec, MARK, install, start};
use super::sudo::{Elevation, PROMPT, SudoError, complaint};
use super::transport::Session;

/// A host that neither takes nor says anything for so long does not get there any more.
const SILENCE: Duration = Duration::from_mins(1);
/// Of what a host prints before the agent runs, more is not kept.
const CHATTER_BYTES: usize = 64 * 1024;
/// The SSH library holds about ten of them at once, in two or three forms, for each host.
const CHUNK_BYTES: usize = 16 * 1024;

/// Why there is no agent on a host.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(
        "no agent found in {}; expected a file `agent` or `agent-ARCH-linux`\nhint: make install puts it beside the controller",
        dirs_text(dirs)
    )]
    NoAgents { dirs: Vec<PathBuf> },
    #[error("{}: {reason}", path.display())]
    NotAnAgent { path: PathBuf, reason: String },
    #[error("cannot read the agent {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error(
        "{host} is {os} on {arch}, and there is no agent for it; there is one for Linux on {have}\n\
             hint: put agent-{arch}-linux beside the controller"
    )]
    MissingArch { host: String, os: String, arch: String, have: String },
    #[error("{host}: cannot become root{}", if *installing { " to install the agent" } else { "" })]
    Sudo {
        host: String,
        installing: bool,
        #[source]
        source: SudoError,
    },
    #[error("{host}: the agent could not be installed in {folder}: {what}{}", said(stderr))]
    Install { host: String, folder: String, what: &'static str, stderr: String },
    /// Neither started nor refused in a way that we know.
    #[error("{host}: the agent did not start: {exit}{}", said(stderr))]
    NotStarted { host: String, exit: Exit, stderr: String },
    #[error("{host}: nothing moved for {} s while the agent was {doing}{}", SILENCE.as_secs(), said(stderr))]
    Silent { host: String, doing: &'static str, stderr: String },
    #[error(transparent)]
    Ssh(#[from] SshError),
}

/// An agent that runs on a host.
#[derive(Debug)]
pub struct RunningAgent {
    /// stdin and stdout are the protocol's, from its first byte on.
    pub channel: Channel,
    /// Was it put there just now?
    pub pushed: bool,
}

#[cfg(test)]
/// Starts the agent with `args`, putting it there first where it is missing.
pub async fn start_agent(
    session: &Session,
    agents: &Agents,
    elevation: &Elevation,
    args: &[&str],
) -> Result<RunningAgent, AgentError> {
    start_agent_with(session, agents, elevation, args, &[]).await
}

/// The same, with the first bytes for the agent's stdin: they travel with the command instead of
/// after its answer, which saves a round trip.
pub async fn start_agent_with(
    session: &Session,
    agents: &Agents,
    elevation: &Elevation,
    args: &[&str],
    first: &[u8],
) -> Result<RunningAgent, AgentError> {
    let (sudo, password) = match elevation {
        Elevation::None => (None, None),
        Elevation::Sudo { password } => (Some(password.is_some()), password.as_ref()),
    };
    let binaries: Vec<&AgentBinary> = agents.binaries().iter().collect();
    let host = session.name();
    let command = start(&agents.folder, &binaries, sudo, args);
    let mut talk = Talk::new(session, "started", session.exec(&command).await?);
    talk.installing = false;
    if let Some(password) = password {
        talk.password(password.expose()).await?;
    }
    let missing = match talk.until_answer(first).await? {
        Answer::Ready => {
            // The answer may overtake what was still to be sent with the command.
            let rest = first.get(talk.sent..).unwrap_or_default();
            if !rest.is_empty() {
                // As below: an agent that dies at once is told by its exit.
                let _ = talk.channel.stdin.write_all(rest).await;
            }
            return Ok(RunningAgent { channel: talk.into_channel(), pushed: false });
        }
        Answer::Missing(missing) => missing,
        Answer::Failed(_) | Answer::Begin => return Err(talk.not_started().await),
    };
    drop(talk);
    let agent = missing.pick(host, agents.binaries())?;
    let packed = agents.packed(agent, missing.codec).await?;
    tracing::debug!(
        target: "rollcall::ssh",
        "{host}: pushing agent {} ({} bytes, {:?})", agent.hash, packed.len(), missing.codec
    );
    let command = install(&agents.folder, agent, missing.codec, packed.len(), sudo, missing.root, args);
    let mut talk = Talk::new(session, "being installed", session.exec(&command).await?);
    if let Some(password) = password {
        talk.password(password.expose()).await?;
    }
    loop {
        match talk.until_answer(&packed).await? {
            Answer::Begin => {}
            Answer::Ready => break,
            Answer::Failed(step) => return Err(talk.failed(&agents.folder, &step).await),
            Answer::Missing(_) => return Err(talk.not_started().await),
        }
    }
    if !first.is_empty() {
        // An agent that dies at once is told by its exit, which its user waits for anyway.
        let _ = talk.channel.stdin.write_all(first).await;
    }
    Ok(RunningAgent { channel: talk.into_channel(), pushed: true })
}

#[derive(Debug)]
struct Missing {
    os: String,
    arch: String,
    root: bool,
    codec: Codec,
}

impl Missing {
    fn parse(words: &str) -> Option<Self> {
        let mut words = words.split(' ');
        let (os, arch, uid, codec) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Self { os: os.to_owned(), arch: arch.to_owned(), root: uid == "0", codec: Codec::from_word(codec)? })
    }

    fn pick<'a>(&self, host: &str, agents: &'a [AgentBinary]) -> Result<&'a AgentBinary, AgentError> {
        let fits = |agent: &&AgentBinary| self.os == "Linux" && agent.arch == self.arch;
        agents.iter().find(fits).ok_or_else(|| AgentError::MissingArch {
            host: host.to_owned(),
            os: self.os.clone(),
            arch: self.arch.clone(),
            have: agents.iter().map(|agent| agent.arch.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}

enum Answer {
    Begin,
    Ready,
    Missing(Missing),
    Failed(String),
}

/// The talk with our script on a host, until the agent has taken over.
struct Talk<'a> {
    host: &'a str,
    doing: &'static str,
    installing: bool,
    channel: Channel,
    out: Vec<u8>,
    err: Vec<u8>,
    sent: usize,
    flow: Flow,
    out_ended: bool,
    err_ended: bool,
}

impl<'a> Talk<'a> {
    fn new(session: &'a Session, doing: &'static str, channel: Channel) -> Self {
        Self {
            host: session.name(),
            doing,
            installing: true,
            channel,
            out: Vec::new(),
            err: Vec::new(),
            sent: 0,
            flow: Flow::new(session.way()),
            out_ended: false,
            err_ended: false,
        }
    }

    /// Waits for sudo's question and answers it. sudo may not ask at all; then the script speaks.
    async fn password(&mut self, password: &str) -> Result<(), AgentError> {
        while self.prompts() == 0 {
            if find(&self.out, MARK.as_bytes()).is_some() {
                return Ok(());
            }
            if !self.step(&[]).await? {
                return Err(self.not_started().await);
            }
        }
        let line = format!("{password}\n");
        let sent = timeout(SILENCE, self.channel.stdin.write_all(line.as_bytes())).await;
        if !matches!(sent, Ok(Ok(()))) {
            return Err(self.not_started().await);
        }
        Ok(())
    }

    /// Sends `data` while it waits for the script's next word.
    async fn until_answer(&mut self, data: &[u8]) -> Result<Answer, AgentError> {
        loop {
            if let Some(line) = self.next_word() {
                return match Self::answer(&line) {
                    Some(answer) => Ok(answer),
                    None => Err(self.not_started().await),
                };
            }
            // Asked again: the first answer was wrong. sudo would wait for another one for ever.
            if self.prompts() > 1 {
                return Err(self.sudo(SudoError::WrongPassword));
            }
            if !self.step(data).await? {
                return Err(self.not_started().await);
            }
        }
    }

    fn answer(line: &str) -> Option<Answer> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "begin" => Some(Answer::Begin),
            "ready" => Some(Answer::Ready),
            "missing" => Missing::parse(rest).map(Answer::Missing),
            "failed" => Some(Answer::Failed(rest.to_owned())),
            _ => None,
        }
    }

    /// Takes the next line for us off what was read; what stands before it is chatter.
    fn next_word(&mut self) -> Option<String> {
        let at = find(&self.out, MARK.as_bytes())?;
        let end = at + self.out[at..].iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&self.out[at + MARK.len()..end]).trim().to_owned();
        if at > 0 {
            let chatter = String::from_utf8_lossy(&self.out[..at]).into_owned();
            tracing::debug!(target: "rollcall::ssh", "{}: printed at login: {}", self.host, chatter.trim_end());
        }
        self.out.drain(..=end);
        Some(line)
    }

    /// Moves something in one direction. `false`: both outputs have ended.
    async fn step(&mut self, data: &[u8]) -> Result<bool, AgentError> {
        if self.out_ended && self.err_ended {
            return Ok(false);
        }
        let (mut out, mut err) = ([0u8; 2048], [0u8; 2048]);
        let Channel { stdin, stdout, stderr, window, .. } = &mut self.channel;
        let rest = &data[self.sent.min(data.len())..];
        let chunk = &rest[..rest.len().min(CHUNK_BYTES)];
        let (more, has_room) = (!chunk.is_empty(), self.flow.has_room());
        let moved = timeout(SILENCE, async {
            tokio::select! {
                length = stdout.read(&mut out), if !self.out_ended => {
                    let length = length.unwrap_or(0);
                    self.out_ended = length == 0;
                    self.out.extend_from_slice(&out[..length]);
                }
                length = stderr.read(&mut err), if !self.err_ended => {
                    let length = length.unwrap_or(0);
                    self.err_ended = length == 0;
                    self.err.extend_from_slice(&err[..length]);
                }
                length = stdin.write(chunk), if more && has_room => {
                    // A closed stdin is explained by what the host says next.
                    let length = length.unwrap_or(data.len());
                    self.sent += length;
                    self.flow.sent(length);
                }
                Ok(()) = window.changed(), if more => self.flow.told(*window.borrow_and_update()),
                () = sleep(PATIENCE), if more && !has_room => self.flow.silent(),
            }
        });
        if moved.await.is_err() {
            return Err(AgentError::Silent { host: self.host.to_owned(), doing: self.doing, stderr: self.stderr() });
        }
        for kept in [&mut self.out, &mut self.err] {
            let over = kept.len().saturating_sub(CHATTER_BYTES);
            kept.drain(..over);
        }
        Ok(true)
    }

    fn prompts(&self) -> usize {
        String::from_utf8_lossy(&self.err).matches(PROMPT).count()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.err).replace(PROMPT, "").trim().to_owned()
    }

    /// Reads what is left and waits for the end, both for a short while.
    async fn finish(&mut self) -> Exit {
        let rest = async {
            while matches!(self.step(&[]).await, Ok(true)) {}
            self.channel.exit().await
        };
        timeout(Duration::from_secs(5), rest).await.unwrap_or_else(|_| Exit::Lost("it does not end".to_owned()))
    }

    fn sudo(&self, source: SudoError) -> AgentError {
        AgentError::Sudo { host: self.host.to_owned(), installing: self.installing, source }
    }

    async fn not_started(&mut self) -> AgentError {
        let exit = self.finish().await;
        if let Exit::Lost(reason) = exit {
            return AgentError::Ssh(SshError::Lost { name: self.host.to_owned(), reason });
        }
        match complaint(&self.stderr()) {
            Some(source) => self.sudo(source),
            None => AgentError::NotStarted { host: self.host.to_owned(), exit, stderr: self.stderr() },
        }
    }

    async fn failed(&mut self, folder: &str, step: &str) -> AgentError {
        self.finish().await;
        let what = match step {
            "folder" => "the folder cannot be made",
            "write" => "it cannot be written",
            "hash" => "what arrived is not what was sent",
            "run" if self.stderr().contains("Permission denied") => {
                "it cannot run there (is the file system mounted noexec?)"
            }
            "run" => "it cannot run there",
            "rename" => "it cannot be put in place",
            _ => "its mode cannot be set",
        };
        AgentError::Install { host: self.host.to_owned(), folder: folder.to_owned(), what, stderr: self.stderr() }
    }

    /// The agent has taken over: what was read beyond our script's words is its own.
    fn into_channel(self) -> Channel {
        let mut channel = self.channel;
        channel.stdout.unread(&self.out);
        let err = String::from_utf8_lossy(&self.err);
        let err = err.rsplit(PROMPT).next().unwrap_or_default();
        channel.stderr.unread(err.as_bytes());
        channel
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

fn dirs_text(dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    if dirs.is_empty() { "no folder at all".to_owned() } else { dirs.join(", ") }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("\n    {}", stderr.replace('\n', "\n    ")) }
}
