//! How a host is reached, from Ansible's names: `ansible_host`, `ansible_user`, `ansible_become` and the like.

use std::path::PathBuf;

use serde_json::Value;

use super::{
    host_vars::value_of,
    model::{Host, Inventory},
};
use crate::{
    diag::{Diagnostic, Span},
    template::EvalError,
    vars::Scope,
};

/// By what way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over SSH.
    Ssh,
    /// In this process, on this machine.
    Local,
}

/// How a host is reached. What a variable does not say is `None`: then options, the project file and the SSH
/// configuration decide.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// SSH or this machine (`ansible_connection`).
    pub way: Way,
    /// Address or name (`ansible_host`); the host's own name where nothing is said.
    pub host: String,
    /// `ansible_port`.
    pub port: Option<u16>,
    /// `ansible_user`.
    pub user: Option<String>,
    /// `ansible_ssh_private_key_file`.
    pub identity_file: Option<PathBuf>,
    /// `ansible_ssh_common_args` and `ansible_ssh_extra_args`, as one command line; may be empty. Jump hosts are in it.
    pub ssh_args: String,
    /// Where `ssh_args` stands, for messages.
    pub ssh_args_span: Span,
    /// `ansible_become`.
    pub r#become: Option<bool>,
    /// `ansible_become_user`.
    pub become_user: Option<String>,
    /// `ansible_become_password`: never shown.
    pub become_password: Option<String>,
    /// The EC2 instance behind it: its host key is pinned to this id.
    pub instance_id: Option<String>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("way", &self.way)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("identity_file", &self.identity_file)
            .field("ssh_args", &self.ssh_args)
            .field("become", &self.r#become)
            .field("become_user", &self.become_user)
            .field("become_password", &self.become_password.as_ref().map(|_| "hidden"))
            .field("instance_id", &self.instance_id)
            .finish_non_exhaustive()
    }
}

/// Of several names for one thing the last that is set wins, as in Ansible.
const BECOME_PASSWORDS: [&str; 3] = ["ansible_become_password", "ansible_become_pass", "ansible_sudo_pass"];
const LOGIN_PASSWORDS: [&str; 3] = ["ansible_password", "ansible_ssh_pass", "ansible_ssh_password"];

/// Whether a variable of that name is for whoever connects, and travels to no host: not to its own, and not to others as one
/// of `hostvars`.
pub fn stays_here(name: &str) -> bool {
    BECOME_PASSWORDS.contains(&name) || LOGIN_PASSWORDS.contains(&name)
}

impl Inventory {
    /// How to reach a host. `scope` is what the caller sees for it: [`Inventory::scope`], with what a play adds.
    pub fn connection(&self, host: &Host, scope: &Scope) -> Result<Connection, Diagnostic> {
        let vars = Reader { scope };
        let common = vars.text(&["ansible_ssh_common_args"])?;
        let more = vars.text(&["ansible_ssh_extra_args"])?;
        let span = common.as_ref().or(more.as_ref()).map_or(Span::NONE, |(_, span)| *span);
        let args: Vec<String> =
            [common, more].into_iter().flatten().map(|(t, _)| t.trim().to_owned()).filter(|t| !t.is_empty()).collect();
        for name in LOGIN_PASSWORDS {
            if let Some(var) = scope.get(name) {
                return Err(Diagnostic::error(var.origin, format!("'{name}': logging in by password is not taken"))
                    .hint("use a key: ansible_ssh_private_key_file, or an SSH agent"));
            }
        }
        if let Some((method, span)) = vars.text(&["ansible_become_method"])?
            && !matches!(method.as_str(), "sudo" | "ansible.builtin.sudo")
        {
            return Err(Diagnostic::error(span, format!("'{method}' is no way to become another user here"))
                .hint("only sudo is known"));
        }
        for name in ["ansible_host_key_checking", "ansible_ssh_host_key_checking"] {
            if vars.boolean(name)? == Some(false) {
                let span = scope.get(name).map_or(Span::NONE, |v| v.origin);
                return Err(Diagnostic::error(
                    span,
                    format!("'{name}' cannot be turned off: host keys are always checked"),
                )
                .hint("run with --accept-new where hosts are new"));
            }
        }
        let host_name = match vars.text(&["ansible_host", "ansible_ssh_host"])? {
            Some((text, span)) if text.trim().is_empty() => {
                return Err(Diagnostic::error(span, format!("the address of host '{}' is empty", host.name))
                    .hint("an instance may lack this address: choose another attribute for ansible_host"));
            }
            Some((text, _)) => text.trim().to_owned(),
            None => host.name.clone(),
        };
        Ok(Connection {
            way: vars.way()?,
            host: host_name,
            port: vars.port()?,
            user: vars.text(&["ansible_user", "ansible_ssh_user"])?.map(|(t, _)| t),
            identity_file: vars
                .text(&["ansible_private_key_file", "ansible_ssh_private_key_file"])?
                .map(|(t, _)| home(&t)),
            ssh_args: args.join(" "),
            ssh_args_span: span,
            r#become: vars.boolean("ansible_become")?,
            become_user: vars.text(&["ansible_become_user", "ansible_sudo_user"])?.map(|(t, _)| t),
            become_password: vars.text(&BECOME_PASSWORDS)?.map(|(t, _)| t),
            instance_id: host.instance.as_ref().map(|i| i.id.clone()),
        })
    }
}

struct Reader<'a> {
    scope: &'a Scope,
}

impl Reader<'_> {
    fn value(&self, name: &str) -> Result<Option<(Value, Span)>, Diagnostic> {
        let Some(var) = self.scope.get(name) else { return Ok(None) };
        match value_of(var, self.scope) {
            Ok(Value::Null) => Ok(None),
            Ok(value) => Ok(Some((value, var.origin))),
            Err(EvalError::Wrong(e)) => Err(if e.span.is_none() { Diagnostic { span: var.origin, ..e } } else { e }),
            Err(EvalError::Unknown(why)) => {
                Err(Diagnostic::error(var.origin, format!("'{name}' is not known yet: it depends on {why}")))
            }
        }
    }

    fn text(&self, names: &[&str]) -> Result<Option<(String, Span)>, Diagnostic> {
        for name in names.iter().rev() {
            match self.value(name)? {
                None => {}
                Some((Value::String(s), span)) => return Ok(Some((s, span))),
                Some((Value::Number(n), span)) => return Ok(Some((n.to_string(), span))),
                Some((_, span)) => return Err(Diagnostic::error(span, format!("'{name}' must be a string"))),
            }
        }
        Ok(None)
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, Diagnostic> {
        match self.value(name)? {
            None => Ok(None),
            Some((Value::Bool(b), _)) => Ok(Some(b)),
            Some((Value::String(s), span)) => match s.to_lowercase().as_str() {
                "yes" | "true" | "on" | "1" => Ok(Some(true)),
                "no" | "false" | "off" | "0" => Ok(Some(false)),
                _ => Err(Diagnostic::error(span, format!("'{name}' must be true or false, not '{s}'"))),
            },
            Some((_, span)) => Err(Diagnostic::error(span, format!("'{name}' must be true or false"))),
        }
    }

    fn port(&self) -> Result<Option<u16>, Diagnostic> {
        let Some((text, span)) = self.text(&["ansible_port", "ansible_ssh_port"])? else { return Ok(None) };
        let port = text.trim().parse::<u16>().ok().filter(|p| *p > 0);
        port.map(Some).ok_or_else(|| Diagnostic::error(span, format!("'{text}' is no port (1 to 65535)")))
    }

    fn way(&self) -> Result<Way, Diagnostic> {
        match self.text(&["ansible_connection"])? {
            None => Ok(Way::Ssh),
            Some((text, span)) => match text.as_str() {
                "ssh" | "smart" | "paramiko" | "paramiko_ssh" | "ansible.builtin.ssh" => Ok(Way::Ssh),
                "local" | "ansible.builtin.local" => Ok(Way::Local),
                _ => Err(Diagnostic::error(span, format!("hosts are not reached by '{text}'"))
                    .hint("ansible_connection is 'ssh' or 'local'")),
            },
        }
    }
}

fn home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}
