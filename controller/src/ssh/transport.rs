//! Opens connections, directly or through jump hosts, and shares what a run needs only once.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use russh::client::{self, Handle};
use russh::{ChannelOpenFailure, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

use super::algorithms::Algorithms;
use super::auth::Login;
use super::channel::Channel;
use super::config::{ConfigError, SshConfig};
use super::error::{ConnectError, SshError, Stage};
use super::handler::{Handler, HandlerError, Shared, describe};
use super::hostkeys::HostCheck;
use super::identities::Identities;
use super::jumps::Hop;
use super::known_hosts::KnownHosts;
use super::settings::{Settings, Target, TargetSpec};

/// Keepalives without an answer before a host counts as dead.
const KEEPALIVES_LOST: u32 = 3;
/// Packets for a host behind a jump host that wait for its connection to read them: as many as come. That connection reads nothing
/// while it writes, and if the jump host's waited for it then, no news of more room for its writing could pass: all hosts behind that
/// jump host would stand still for ever. How much can wait is limited by the windows of the host's own channels.
const HOP_PACKETS: usize = tokio::sync::Semaphore::MAX_PERMITS;

type Jump = Arc<OnceCell<Result<Arc<Connection>, Arc<ConnectError>>>>;

/// Everything that the connections of one run share: keys and known_hosts read once, one
/// connection per jump host.
pub struct Transport {
    settings: Settings,
    config: SshConfig,
    algorithms: Algorithms,
    identities: Identities,
    known: Mutex<HashMap<Vec<PathBuf>, Arc<RwLock<KnownHosts>>>>,
    /// By the whole way there: `a`, then `a > b`.
    jumps: Mutex<HashMap<String, Jump>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("settings", &self.settings).finish_non_exhaustive()
    }
}

struct Connection {
    handle: Handle<Handler>,
    shared: Arc<Shared>,
    name: String,
    limit: Duration,
    /// How long it took to be heard at all: about a round trip.
    way: Duration,
    /// The jump host's connection lives as long as those that pass through it.
    _via: Option<Arc<Connection>>,
}

/// A connection to a host, logged in.
pub struct Session {
    connection: Connection,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("name", &self.connection.name).finish_non_exhaustive()
    }
}

impl Session {
    /// The host's name in messages.
    pub fn name(&self) -> &str {
        &self.connection.name
    }

    /// About the time of a round trip to the host.
    pub(super) fn way(&self) -> Duration {
        self.connection.way
    }

    #[cfg(test)]
    /// `SHA256:…` of the key that the host proved to hold.
    pub fn host_key_fingerprint(&self) -> String {
        self.connection.shared.host_key().map(|key| key.fingerprint()).unwrap_or_default()
    }

    /// Starts `command` with the login shell of the user. Whether the host takes it is told by
    /// [`Channel::exit`]: waiting for its answer would cost a round trip.
    pub async fn exec(&self, command: &str) -> Result<Channel, SshError> {
        let connection = &self.connection;
        let name = || connection.name.clone();
        let opening = timeout(connection.limit, connection.handle.channel_open_session()).await;
        let channel = match opening {
            Err(_) => {
                return Err(SshError::Timeout { name: name(), stage: Stage::Channel, limit: connection.limit });
            }
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => {
                return Err(SshError::ChannelRefused { name: name(), reason: open_failure(&reason).to_owned() });
            }
            Ok(Err(error)) => return Err(connection.lost(&error)),
            Ok(Ok(channel)) => channel,
        };
        let (reader, writer) = channel.split();
        writer.exec(true, command).await.map_err(|error| connection.lost(&error))?;
        Ok(Channel::new(Box::pin(writer.make_writer()), reader, connection.shared.clone()))
    }

    /// Says goodbye. Dropping the session closes it too, without a word.
    pub async fn close(self) {
        let goodbye = self.connection.handle.disconnect(Disconnect::ByApplication, "", "");
        // A host that is gone needs no goodbye.
        let _ = timeout(Duration::from_secs(1), goodbye).await;
    }
}

impl Connection {
    fn lost(&self, error: &russh::Error) -> SshError {
        SshError::Lost { name: self.name.clone(), reason: self.shared.lost().unwrap_or_else(|| describe(error)) }
    }
}

impl Transport {
    /// Reads ssh configuration and checks the settings. Nothing is connected yet.
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        let config = SshConfig::load(settings.ssh_config.as_deref(), &settings.home)?;
        let algorithms = Algorithms::new(settings.kex.as_deref()).map_err(ConfigError::Setting)?;
        Ok(Self {
            config,
            algorithms,
            identities: Identities::new(&settings),
            known: Mutex::default(),
            jumps: Mutex::default(),
            settings,
        })
    }

    /// What it was made with.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The target of an inventory's host, completed from the ssh configuration.
    pub fn target(&self, spec: &TargetSpec) -> Result<Target, ConfigError> {
        self.config.target(spec, &self.settings.local_user)
    }

    /// Connects and logs in.
    pub async fn connect(&self, target: &Target) -> Result<Session, ConnectError> {
        let via = self.via(target).await?;
        let connection = self.open(target, via, false).await?;
        Ok(Session { connection })
    }

    /// The shared connection to the last jump host of the list, opening those before it first.
    async fn via(&self, target: &Target) -> Result<Option<Arc<Connection>>, ConnectError> {
        let mut via: Option<Arc<Connection>> = None;
        let mut way = String::new();
        for hop in &target.jumps {
            way += &format!("{hop} > ");
            let cell = self.jump(&way);
            let before = via.take();
            let opened = cell.get_or_init(|| async move {
                match self.hop_target(hop, target) {
                    // Boxed: this future would contain itself otherwise.
                    Ok(target) => Box::pin(self.open(&target, before, true)).await.map(Arc::new),
                    Err(error) => Err(error),
                }
                .map_err(Arc::new)
            });
            match opened.await {
                Ok(connection) => via = Some(connection.clone()),
                Err(source) => {
                    return Err(ConnectError::Jump { hop: hop.to_string(), source: source.clone() });
                }
            }
        }
        Ok(via)
    }

    /// A jump host on the way to `target`: an EC2 instance is known by its id, and one for which nobody names a key
    /// is offered the key of the host behind it.
    pub(super) fn hop_target(&self, hop: &Hop, target: &Target) -> Result<Target, ConnectError> {
        let mut hop = self
            .config
            .hop_target(hop, &self.settings.local_user)
            .map_err(|error| ConnectError::Config { reason: error.to_string() })?;
        if hop.instance_id.is_none() && hop.host_key_alias.is_none() {
            hop.instance_id = self.settings.instances.get(&hop.host).cloned();
        }
        if hop.identity_files.is_empty() && self.settings.identity_files.is_empty() {
            hop.identity_files.clone_from(&target.identity_files);
        }
        Ok(hop)
    }

    /// The place of a jump host's connection; a fresh one when the connection has died meanwhile.
    fn jump(&self, way: &str) -> Jump {
        let mut jumps = self.jumps.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = jumps.entry(way.to_owned()).or_default();
        if let Some(Ok(connection)) = cell.get()
            && connection.handle.is_closed()
        {
            *cell = Jump::default();
        }
        cell.clone()
    }

    /// `is_hop`: it carries connections to other hosts, and no command of its own.
    async fn open(
        &self,
        target: &Target,
        via: Option<Arc<Connection>>,
        is_hop: bool,
    ) -> Result<Connection, ConnectError> {
        let limit = self.settings.connect_timeout;
        let address = address_text(&target.host, target.port);
        let known = self.known_hosts(target)?;
        let check = Arc::new(HostCheck::prepare(&self.settings, target, known).await?);
        let shared = Arc::new(Shared::default());
        let config = Arc::new(client::Config {
            client_id: russh::SshId::Standard(concat!("SSH-2.0-rollcall_", env!("CARGO_PKG_VERSION")).into()),
            preferred: self.algorithms.preferred(&check.algorithms(), !check.authorities().is_empty()),
            keepalive_interval: Some(self.settings.keepalive).filter(|interval| !interval.is_zero()),
            keepalive_max: KEEPALIVES_LOST as usize,
            nodelay: true,
            channel_buffer_size: if is_hop { HOP_PACKETS } else { client::Config::default().channel_buffer_size },
            ..client::Config::default()
        });
        let handler = Handler { check, shared: shared.clone() };
        let (mut handle, way) = match &via {
            None => {
                let (stream, way) = tcp(&target.host, target.port, &address, limit).await?;
                (handshake(config, stream, handler, &address, limit).await?, way)
            }
            Some(jump) => {
                let begun = Instant::now();
                let stream = forward(jump, target, &address, limit).await?;
                let way = begun.elapsed();
                (handshake(config, stream, handler, &address, limit).await?, way)
            }
        };
        Login { handle: &mut handle, identities: &self.identities, user: &target.user, address: &address, limit }
            .run(&target.identity_files)
            .await?;
        Ok(Connection { handle, shared, name: target.name.clone(), limit, way, _via: via })
    }

    fn known_hosts(&self, target: &Target) -> Result<Arc<RwLock<KnownHosts>>, ConnectError> {
        let files = target.known_hosts.as_ref().unwrap_or(&self.settings.known_hosts);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(files) {
            return Ok(known.clone());
        }
        let loaded = KnownHosts::load(files)
            .map_err(|(path, source)| ConnectError::HostKeyFile { path, source: Arc::new(source) })?;
        let loaded = Arc::new(RwLock::new(loaded));
        known.insert(files.clone(), loaded.clone());
        Ok(loaded)
    }
}

fn address_text(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A connection, and how long it took to make it once the address was known: a round trip.
async fn tcp(host: &str, port: u16, address: &str, limit: Duration) -> Result<(TcpStream, Duration), ConnectError> {
    let late = |stage| ConnectError::Timeout { address: address.to_owned(), stage, limit };
    let failed = |stage, error: std::io::Error| ConnectError::Unreachable {
        address: address.to_owned(),
        stage,
        reason: error.to_string(),
    };
    let found = timeout(limit, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<SocketAddr> =
        found.map_err(|_| late(Stage::Resolve))?.map_err(|error| failed(Stage::Resolve, error))?.collect();
    let begun = Instant::now();
    let stream = timeout(limit, TcpStream::connect(&addresses[..])).await;
    let stream = stream.map_err(|_| late(Stage::Tcp))?.map_err(|error| failed(Stage::Tcp, error))?;
    let way = begun.elapsed();
    stream.set_nodelay(true).map_err(|error| failed(Stage::Tcp, error))?;
    Ok((stream, way))
}

/// A stream to the target through the jump host's connection.
async fn forward(
    jump: &Connection,
    target: &Target,
    address: &str,
    limit: Duration,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, ConnectError> {
    let open = jump.handle.channel_open_direct_tcpip(&target.host, u32::from(target.port), "127.0.0.1", 0);
    let reason = match timeout(limit, open).await {
        Err(_) => {
            return Err(ConnectError::Timeout { address: address.to_owned(), stage: Stage::Tcp, limit });
        }
        Ok(Ok(channel)) => return Ok(channel.into_stream()),
        Ok(Err(russh::Error::ChannelOpenFailure(reason))) => open_failure(&reason).to_owned(),
        Ok(Err(error)) => jump.shared.lost().unwrap_or_else(|| describe(&error)),
    };
    Err(ConnectError::Unreachable {
        address: address.to_owned(),
        stage: Stage::Tcp,
        reason: format!("from jump host {}: {reason}", jump.name),
    })
}

async fn handshake<R>(
    config: Arc<client::Config>,
    stream: R,
    handler: Handler,
    address: &str,
    limit: Duration,
) -> Result<Handle<Handler>, ConnectError>
where
    R: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stage = Stage::KeyExchange;
    // The library sends no probes while it waits for a host to take what it writes. It gives up one interval after the last.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(config.keepalive_interval.map(|interval| interval * (KEEPALIVES_LOST + 1)));
    match timeout(limit, client::connect_stream(config, Box::pin(stream), handler)).await {
        Err(_) => Err(ConnectError::Timeout { address: address.to_owned(), stage, limit }),
        Ok(Ok(handle)) => Ok(handle),
        Ok(Err(HandlerError::Refused(error))) => Err(*error),
        Ok(Err(HandlerError::Ssh(error))) => {
            Err(ConnectError::Protocol { address: address.to_owned(), stage, reason: describe(&error) })
        }
    }
}

fn open_failure(reason: &ChannelOpenFailure) -> &'static str {
    match reason {
        ChannelOpenFailure::AdministrativelyProhibited => "it is forbidden there (AllowTcpForwarding, MaxSessions)",
        ChannelOpenFailure::ConnectFailed => "no connection from there (refused, or no route)",
        ChannelOpenFailure::UnknownChannelType => "it does not know this kind of channel",
        ChannelOpenFailure::ResourceShortage => "it is out of resources",
        ChannelOpenFailure::Other { .. } => "it gave no reason",
    }
}
