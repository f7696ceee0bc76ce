//! Options that several verbs share. Short ones mean what they mean in Ansible.

use std::path::PathBuf;

use clap::Args;

/// Which hosts there are, and which of them count.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Hosts {
    /// Inventory file, folder, or list of hosts (`host,`). May be repeated; wins over rollcall.yaml.
    #[arg(short = 'i', long = "inventory", value_name = "SOURCE")]
    pub(crate) inventory: Vec<String>,
    /// Only these hosts: names, groups, globs, `a:&b:!c`, `~regex`, `group[0:2]`, `@file`.
    ///
    /// An unknown name and an empty match are errors. Templates still see the hosts that are left out.
    #[arg(short = 'l', long, value_name = "PATTERN", global = false)]
    pub(crate) limit: Option<String>,
    /// A variable that wins over all others: `name=value`, JSON or YAML text, or `@file`. May be repeated.
    #[arg(short = 'e', long = "extra-vars", value_name = "VARS")]
    pub(crate) extra: Vec<String>,
    /// Ask the cloud again even where a cached answer is young enough.
    #[arg(long)]
    pub(crate) refresh_cache: bool,
}

/// How hosts are reached, and as whom.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Connect {
    /// Log in as this user; the host's `ansible_user` wins.
    #[arg(short = 'u', long = "user", value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Log in with this key; the host's `ansible_ssh_private_key_file` wins.
    #[arg(long = "private-key", visible_alias = "key-file", value_name = "FILE")]
    pub(crate) private_key: Option<PathBuf>,
    /// Tasks run as root where nothing else is said.
    #[arg(short = 'b', long = "become")]
    pub(crate) become_root: bool,
    /// Ask for sudo's password once, and give it to every host through its standard input.
    #[arg(short = 'K', long = "ask-become-pass")]
    pub(crate) ask_become_pass: bool,
    /// Connections that are opened at once; open ones do not count.
    #[arg(short = 'f', long, value_name = "N")]
    pub(crate) forks: Option<usize>,
    /// Write the key of a host that no known_hosts file knows down, instead of refusing it. A changed key is refused
    /// all the same.
    #[arg(long)]
    pub(crate) accept_new: bool,
    /// Seconds for each stage of connecting.
    #[arg(short = 'T', long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Show {
    /// Show more: `-v` what did not change, `-vv` results, `-vvv` the SSH negotiation.
    #[arg(short = 'v', long = "verbose", action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Show only changes, failures and the recap.
    #[arg(short = 'q', long, global = true)]
    pub(crate) quiet: bool,
}
