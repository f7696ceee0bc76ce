//! One host's connection for a whole run: one SSH connection, one `agent exec`, messages on it.

use std::{process::Stdio, sync::Arc, time::Instant};

use rollcall_engine::protocol::{Answer, Frame, FromAgent};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Semaphore, mpsc},
};

use crate::ssh::{AgentError, Agents, ConnectError, Elevation, INSTALL_DIR, Target, Transport};

/// Bytes on their way to an agent; shared where all hosts get the same.
pub(crate) type Bytes = Arc<Vec<u8>>;

/// How to get at a host.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Over SSH.
    Ssh { target: Box<Target>, elevation: Elevation },
    /// A process on this machine.
    Local { elevated: bool },
}

/// Something from a host.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The agent runs; `pushed`: it was put there just now.
    Started { pushed: bool, millis: u64 },
    /// From the agent.
    Agent(Box<FromAgent>),
    /// What it asked for takes long.
    Waiting(String),
    /// What it asked for has come.
    Answered { id: u64, answer: Answer },
    /// It could not be reached, or no agent could be started there.
    Unreachable(String),
    /// It was there and is gone.
    Lost(String),
}

/// What every connection of a run shares.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) transport: Arc<Transport>,
    pub(crate) agents: Arc<Agents>,
    /// Limits handshakes and uploads in flight, not open connections.
    pub(crate) forks: Arc<Semaphore>,
    pub(crate) incoming: mpsc::UnboundedSender<(usize, Incoming)>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

/// Opens a host's connection in the background. What is sent goes to the agent; dropping the sender ends its input.
pub(crate) fn dial(dialer: &Dialer, host: usize, way: Way, first: Vec<Bytes>) -> mpsc::UnboundedSender<Bytes> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let dialer = dialer.clone();
    tokio::spawn(async move {
        let told = dialer.incoming.clone();
        let end = match way {
            Way::Ssh { target, elevation } => over_ssh(&dialer, host, &target, &elevation, first, receiver).await,
            Way::Local { elevated } => locally(&dialer, host, elevated, first, receiver).await,
        };
        // The dispatcher is gone only when the run is over.
        let _ = told.send((host, end));
    });
    sender
}

async fn over_ssh(
    dialer: &Dialer,
    host: usize,
    target: &Target,
    elevation: &Elevation,
    first: Vec<Bytes>,
    outgoing: mpsc::UnboundedReceiver<Bytes>,
) -> Incoming {
    let started = Instant::now();
    let permit = dialer.forks.acquire().await;
    let session = match dialer.transport.connect(target).await {
        Ok(session) => session,
        Err(error) => return Incoming::Unreachable(explain(&error)),
    };
    let first: Vec<u8> = first.iter().flat_map(|b| b.iter().copied()).collect();
    let agent = crate::ssh::start_agent_with(&session, &dialer.agents, elevation, &["exec"], &first).await;
    drop(first);
    drop(permit);
    let agent = match agent {
        Ok(agent) => agent,
        Err(error) => return Incoming::Unreachable(explain_agent(&error)),
    };
    let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let _ = dialer.incoming.send((host, Incoming::Started { pushed: agent.pushed, millis }));
    let mut channel = agent.channel;
    let mut exit = channel.exit_handle();
    let mut stderr = channel.stderr;
    let complaint = tokio::spawn(async move { last_words(&mut stderr).await });
    let (heard, why) = converse(dialer, host, &mut channel.stdout, &mut channel.stdin, outgoing).await;
    let words = complaint.await.unwrap_or_default();
    let ended = exit.wait().await;
    drop(channel.stdin);
    session.close().await;
    let mut text = lost(why, &ended.to_string(), &words);
    if !heard && !agent.pushed {
        text.push_str(&format!(
            "\nhint: it said nothing that an agent says: what stands in {INSTALL_DIR} of that host may be damaged; remove it, \
             and the next run puts it there again"
        ));
    }
    Incoming::Lost(text)
}

async fn locally(
    dialer: &Dialer,
    host: usize,
    elevated: bool,
    first: Vec<Bytes>,
    outgoing: mpsc::UnboundedReceiver<Bytes>,
) -> Incoming {
    let started = Instant::now();
    let Some(agent) = dialer.agents.binaries().iter().find(|a| a.arch == std::env::consts::ARCH) else {
        return Incoming::Unreachable(format!("no agent for {} beside the controller", std::env::consts::ARCH));
    };
    let mut command = if elevated && !nix::unistd::geteuid().is_root() {
        let mut command = tokio::process::Command::new("sudo");
        command.args(["-n", "--"]).arg(&agent.path);
        command
    } else {
        tokio::process::Command::new(&agent.path)
    };
    command.arg("exec").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Ctrl-C is the controller's to handle: the agent must finish its task.
    command.process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Incoming::Unreachable(format!("cannot start {}: {error}", agent.path.display())),
    };
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Incoming::Unreachable("the agent has no pipes".into());
    };
    for bytes in first {
        if let Err(error) = stdin.write_all(&bytes).await {
            return Incoming::Unreachable(format!("the agent ended at once: {error}"));
        }
    }
    let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let _ = dialer.incoming.send((host, Incoming::Started { pushed: false, millis }));
    let complaint = tokio::spawn(async move { last_words(&mut stderr).await });
    let (_, why) = converse(dialer, host, &mut stdout, &mut stdin, outgoing).await;
    drop(stdin);
    let words = complaint.await.unwrap_or_default();
    let ended = child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
    Incoming::Lost(lost(why, &ended, &words))
}

/// Both directions until the agent's end. Returns whether any message came, and why it ended, where that is not the plain end
/// of its output.
async fn converse(
    dialer: &Dialer,
    host: usize,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut outgoing: mpsc::UnboundedReceiver<Bytes>,
) -> (bool, Option<String>) {
    let write = async {
        while let Some(bytes) = outgoing.recv().await {
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
        // The end of writing is not the end of the conversation: reading decides that.
        std::future::pending::<()>().await;
    };
    let mut heard = false;
    let read = async {
        loop {
            match read_frame(from).await {
                Ok(None) => return None,
                Ok(Some(message)) => {
                    heard = true;
                    if dialer.incoming.send((host, Incoming::Agent(Box::new(message)))).is_err() {
                        return None;
                    }
                }
                Err(why) => return Some(why),
            }
        }
    };
    let why = tokio::select! {
        why = read => why,
        () = write => None,
    };
    (heard, why)
}

async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<FromAgent>, String> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let length = Frame::check_length(length).map_err(|e| e.to_string())?;
    let mut body = Vec::new();
    let got = from.take(length as u64).read_to_end(&mut body).await.map_err(|e| e.to_string())?;
    if got < length {
        return Err("the connection ended in the middle of a message".into());
    }
    Frame::decode(&body).and_then(|frame| frame.message()).map(Some).map_err(|e| e.to_string())
}

/// The end of what was said on standard error: the agent says nothing there unless it dies.
async fn last_words(from: &mut (impl AsyncRead + Unpin)) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..n]);
        let surplus = kept.len().saturating_sub(2000);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

fn lost(why: Option<String>, ended: &str, words: &str) -> String {
    let mut text = why.unwrap_or_else(|| format!("the agent ended ({ended})"));
    if !words.is_empty() {
        text.push_str(": ");
        text.push_str(words);
    }
    text
}

fn explain(error: &ConnectError) -> String {
    chain(error)
}

fn explain_agent(error: &AgentError) -> String {
    chain(error)
}

/// An error and its causes, one after the other.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
