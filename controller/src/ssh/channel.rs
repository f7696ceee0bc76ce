//! One command on a host: its three streams and its end.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use russh::{ChannelMsg, ChannelReadHalf};
#[cfg(test)]
use tokio::io::AsyncReadExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};

use super::handler::Shared;

/// Bytes of stderr that are kept for a reader that lags; more is dropped, so that a chatty
/// command whose stderr nobody reads cannot stop its stdout.
const STDERR_KEPT_BYTES: usize = 1 << 20;
/// Packets of stdout that wait for the reader before the host is slowed down.
const STDOUT_PACKETS: usize = 16;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    Code(u32),
    /// Ended by a signal, named without SIG.
    Signal {
        name: String,
        core_dumped: bool,
        message: String,
    },
    /// The connection ended before the command did: what it did is unknown.
    Lost(String),
    /// The host would not start it at all (a forced command, no shell).
    Refused,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal { name, core_dumped, message } => {
                write!(f, "killed by signal {name}")?;
                if *core_dumped {
                    f.write_str(" (core dumped)")?;
                }
                if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
            }
            Self::Lost(reason) => write!(f, "connection lost: {reason}"),
            Self::Refused => f.write_str("the host refused to start the command"),
        }
    }
}

/// A command that runs on a host. stdin ends when it is shut down (`AsyncWriteExt::shutdown`);
/// dropping everything closes the channel.
pub struct Channel {
    pub stdin: Pin<Box<dyn AsyncWrite + Send>>,
    pub stdout: Output,
    pub stderr: Output,
    exit: watch::Receiver<Option<Exit>>,
    /// How many bytes the host can take, each time it says so.
    pub(super) window: watch::Receiver<u32>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("exit", &*self.exit.borrow()).finish_non_exhaustive()
    }
}

impl Channel {
    pub(super) fn new(
        stdin: Pin<Box<dyn AsyncWrite + Send>>,
        reader: ChannelReadHalf,
        connection: Arc<Shared>,
    ) -> Self {
        let (stdout, stdout_rx) = mpsc::channel(STDOUT_PACKETS);
        let (stderr, stderr_rx) = mpsc::unbounded_channel();
        let (exit, exit_rx) = watch::channel(None);
        let (window, window_rx) = watch::channel(0);
        let waiting = Arc::new(AtomicUsize::new(0));
        let stderr = Stderr { sender: stderr, waiting: waiting.clone() };
        tokio::spawn(pump(reader, stdout, stderr, (exit, window), connection));
        Self {
            stdin,
            stdout: Output::new(Source::Bounded(stdout_rx)),
            stderr: Output::new(Source::Counted(stderr_rx, waiting)),
            exit: exit_rx,
            window: window_rx,
        }
    }

    /// Waits for the command's end.
    pub async fn exit(&mut self) -> Exit {
        wait_exit(&mut self.exit).await
    }

    /// A handle on the end of the command that can be waited for apart from the streams.
    pub fn exit_handle(&self) -> ExitHandle {
        ExitHandle(self.exit.clone())
    }

    #[cfg(test)]
    /// Reads both outputs to their ends, at most `limit` bytes of each (more is thrown away), and
    /// waits for the end of the command.
    pub async fn collect(mut self, limit: usize) -> (Vec<u8>, Vec<u8>, Exit) {
        let (out, err) = tokio::join!(drain(&mut self.stdout, limit), drain(&mut self.stderr, limit));
        let exit = wait_exit(&mut self.exit).await;
        (out, err, exit)
    }
}

/// Waits for a command's end, whoever holds its streams.
#[derive(Debug, Clone)]
pub struct ExitHandle(watch::Receiver<Option<Exit>>);

impl ExitHandle {
    pub async fn wait(&mut self) -> Exit {
        wait_exit(&mut self.0).await
    }
}

async fn wait_exit(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
        Ok(Some(exit)) => exit,
        _ => Exit::Lost("the connection was closed".to_owned()),
    }
}

#[cfg(test)]
async fn drain(from: &mut Output, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0u8; 4096];
    // An Output has no errors, only an end.
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let room = limit.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&buffer[..room]);
    }
    kept
}

struct Stderr {
    sender: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

async fn pump(
    mut reader: ChannelReadHalf,
    stdout: mpsc::Sender<Vec<u8>>,
    stderr: Stderr,
    (exit, window): (watch::Sender<Option<Exit>>, watch::Sender<u32>),
    connection: Arc<Shared>,
) {
    let mut stdout = Some(stdout);
    let mut stderr = Some(stderr);
    let mut end = None;
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                // A reader that is gone only loses its own bytes; the exit still matters.
                if let Some(sender) = &stdout
                    && sender.send(data.into()).await.is_err()
                {
                    stdout = None;
                }
            }
            ChannelMsg::ExtendedData { data, ext: 1 } => {
                if let Some(stderr) = &stderr
                    && stderr.waiting.load(Ordering::Relaxed) < STDERR_KEPT_BYTES
                {
                    stderr.waiting.fetch_add(data.len(), Ordering::Relaxed);
                    // Nobody reads any more: nothing is lost that anybody wants.
                    let _ = stderr.sender.send(data.into());
                }
            }
            ChannelMsg::Eof => {
                stdout = None;
                stderr = None;
            }
            ChannelMsg::ExitStatus { exit_status } => end = Some(Exit::Code(exit_status)),
            ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, .. } => {
                let name = match signal_name {
                    russh::Sig::Custom(name) => name,
                    known => format!("{known:?}"),
                };
                end = Some(Exit::Signal { name, core_dumped, message: error_message });
            }
            ChannelMsg::WindowAdjusted { new_size } => {
                window.send_replace(new_size);
            }
            ChannelMsg::Failure => end = Some(Exit::Refused),
            ChannelMsg::Close => break,
            _ => {}
        }
        // The host closes the channel only when background children have let go of it too; the
        // command itself has ended.
        if end.is_some() {
            exit.send_if_modified(|value| {
                let new = value.is_none();
                if new {
                    value.clone_from(&end);
                }
                new
            });
        }
    }
    drop((stdout, stderr));
    exit.send_if_modified(|value| {
        let new = value.is_none();
        if new {
            let reason = connection.lost().unwrap_or_else(|| "the connection was closed".to_owned());
            *value = Some(Exit::Lost(reason));
        }
        new
    });
}

#[derive(Debug)]
enum Source {
    Bounded(mpsc::Receiver<Vec<u8>>),
    /// With the number of bytes that wait.
    Counted(mpsc::UnboundedReceiver<Vec<u8>>, Arc<AtomicUsize>),
}

/// A command's stdout or stderr. It ends, without an error, also when the connection is lost:
/// [`Channel::exit`] tells the difference.
#[derive(Debug)]
pub struct Output {
    source: Source,
    current: Vec<u8>,
    at: usize,
}

impl Output {
    fn new(source: Source) -> Self {
        Self { source, current: Vec::new(), at: 0 }
    }

    /// Puts bytes back in front of what is still to come.
    pub(super) fn unread(&mut self, bytes: &[u8]) {
        let mut all = bytes.to_vec();
        all.extend_from_slice(&self.current[self.at..]);
        self.current = all;
        self.at = 0;
    }
}

impl AsyncRead for Output {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.at == this.current.len() {
            let next = match &mut this.source {
                Source::Bounded(receiver) => ready!(receiver.poll_recv(cx)),
                Source::Counted(receiver, waiting) => {
                    let next = ready!(receiver.poll_recv(cx));
                    waiting.fetch_sub(next.as_ref().map_or(0, Vec::len), Ordering::Relaxed);
                    next
                }
            };
            match next {
                Some(bytes) => (this.current, this.at) = (bytes, 0),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = buffer.remaining().min(this.current.len() - this.at);
        buffer.put_slice(&this.current[this.at..this.at + length]);
        this.at += length;
        Poll::Ready(Ok(()))
    }
}
