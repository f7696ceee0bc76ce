//! The same way to a host for the system's `ssh`: a configuration file made of what we know.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::error::ConnectError;
use super::pins;
use super::settings::Target;
use super::transport::Transport;

impl Transport {
    /// An OpenSSH configuration in which `target.name` is the host, with its jump hosts and the keys that we checked.
    ///
    /// Connects once before, so that a first contact is settled by our rules.
    pub async fn openssh_config(&self, target: &Target) -> Result<String, ConnectError> {
        self.connect(target).await?.close().await;
        let mut text = String::new();
        let mut before: Option<String> = None;
        for (n, hop) in target.jumps.iter().enumerate() {
            let hop = self.hop_target(hop, target)?;
            let name = format!("jump-{}", n + 1);
            self.block(&mut text, &name, &hop, before.as_deref());
            before = Some(name);
        }
        self.block(&mut text, &target.name, target, before.as_deref());
        Ok(text)
    }

    fn block(&self, text: &mut String, name: &str, target: &Target, jump: Option<&str>) {
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "  {key} {value}");
        };
        line("\nHost", name);
        line("HostName", &target.host);
        line("Port", &target.port.to_string());
        line("User", &target.user);
        for file in &target.identity_files {
            line("IdentityFile", &quoted(&file.display().to_string()));
        }
        match target.instance_id.as_deref().and_then(|id| Some((id, pins::path(&self.settings().pins, id)?))) {
            Some((id, path)) => {
                line("HostKeyAlias", id);
                line("UserKnownHostsFile", &quoted(&path.display().to_string()));
            }
            None => {
                if let Some(alias) = &target.host_key_alias {
                    line("HostKeyAlias", alias);
                }
                let files: &Vec<PathBuf> = target.known_hosts.as_ref().unwrap_or(&self.settings().known_hosts);
                let files: Vec<String> = files.iter().map(|f| quoted(&f.display().to_string())).collect();
                line("UserKnownHostsFile", &files.join(" "));
            }
        }
        line("StrictHostKeyChecking", "yes");
        if let Some(jump) = jump {
            line("ProxyJump", jump);
        }
    }
}

fn quoted(path: &str) -> String {
    format!("\"{path}\"")
}
