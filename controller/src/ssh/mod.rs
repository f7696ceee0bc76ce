//! SSH: connections to hosts, and the agent that is put and started there.
//!
//! The only importer of `russh`. In the order in which a connection needs them:
//! - [`config`], [`jumps`]: what `~/.ssh/config` and `ansible_ssh_common_args` say about a host;
//! - [`transport`]: opens connections, shares those to jump hosts, names the stage that failed;
//! - [`hostkeys`], [`known_hosts`], [`pins`], [`console`]: is this the host that we think it is;
//! - [`auth`], [`identities`]: key files, certificates, ssh-agent;
//! - [`channel`]: one command's stdin, stdout, stderr and exit;
//! - [`agents`], [`agent_cache`], [`push`], [`sudo`]: the agent's binary on the host, and its start.

#![allow(unreachable_pub, reason = "a program has no API: `pub` marks what its other rooms may use")]

mod agent_cache;
mod agents;
mod algorithms;
mod auth;
mod channel;
mod config;
mod config_parse;
mod console;
mod error;
mod flow;
mod handler;
mod hostkeys;
mod identities;
mod jumps;
mod known_hosts;
mod openssh;
mod pins;
mod public_key;
mod push;
mod push_script;
mod settings;
mod sudo;
mod transport;

#[cfg(test)]
mod tests;

pub use agents::{Agents, INSTALL_DIR, find_agents};
pub use error::ConnectError;
pub use hostkeys::ConsoleSource;
pub use jumps::jumps_from_ssh_args;
pub use push::{AgentError, start_agent_with};
pub use settings::{HostKeyPolicy, Secret, Settings, Target, TargetSpec, ask_on_terminal};
pub use sudo::Elevation;
pub use transport::Transport;
#[cfg(test)]
pub use {
    agents::AgentBinary,
    channel::Exit,
    error::{SshError, Stage},
    jumps::Hop,
    push::{RunningAgent, start_agent},
    sudo::SudoError,
    transport::Session,
};
