//! Entering a lab: its network, its AWS settings, its programs, as the invoking user.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cgroup::Cgroups;
use crate::failure::Failure;
use crate::paths::{self, LabPaths};
use crate::socket::{self, HostStatus, Status};
use crate::{net, run};

/// Settings of the caller's own cloud, which would win over the lab's.
const UNSET: [&str; 6] = [
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ENDPOINT_URL_EC2",
];

/// The variables of a lab, in the order in which they are shown.
pub(crate) fn environment(status: &Status) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        (crate::record::VARIABLE, status.name.clone()),
        ("LAB_GATEWAY", status.gateway.to_string()),
        ("AWS_ENDPOINT_URL", status.aws_endpoint.clone()),
        // The lab's API takes any.
        ("AWS_ACCESS_KEY_ID", "lab".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "lab".to_owned()),
        ("AWS_REGION", status.region.clone()),
        ("AWS_DEFAULT_REGION", status.region.clone()),
        ("ROLLCALL_MIRROR", status.mirror.clone()),
        ("ROLLCALL_LAB_SSH_CONFIG", status.ssh_config.clone()),
        ("ROLLCALL_LAB_KNOWN_HOSTS", status.known_hosts.clone()),
    ];
    if let Some(key) = status.keys.values().next() {
        variables.push(("ROLLCALL_LAB_KEY", key.clone()));
    }
    variables
}

/// PATH with the lab's programs first: this one's folder, then those that were built.
pub(crate) fn path(status: &Status) -> String {
    let here = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.display().to_string()));
    let before = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    let mut folders: Vec<String> = Vec::new();
    for folder in here.into_iter().chain(status.path.clone()).chain(before.split(':').map(str::to_owned)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders.join(":")
}

/// `lab env`: lines for a shell's `eval`.
pub(crate) fn export_lines(status: &Status) -> String {
    let mut lines: Vec<String> = environment(status)
        .iter()
        .map(|(name, value)| format!("export {name}={}", shell_words::quote(value)))
        .collect();
    lines.push(format!("export PATH={}", shell_words::quote(&path(status))));
    lines.push(format!("unset {}", UNSET.join(" ")));
    lines.join("\n")
}

/// A command that runs in the lab's network as the invoking user.
fn inside(paths: &LabPaths, program: &str) -> Result<Command> {
    let owner = paths::owner()?;
    let me = nix::unistd::geteuid();
    let mut words: Vec<String> = Vec::new();
    if !net::is_inside(paths) {
        run::require_root("entering a lab's network from outside")?;
        words.extend(["nsenter".to_owned(), format!("--net={}", paths.namespace_file().display())]);
    }
    if me.is_root() && owner.uid != 0 {
        words.extend([
            "setpriv".to_owned(),
            format!("--reuid={}", owner.uid),
            format!("--regid={}", owner.gid),
            "--init-groups".to_owned(),
        ]);
    }
    words.push(program.to_owned());
    let mut command = run::command(&words[0]);
    command.args(&words[1..]);
    if me.is_root() && owner.uid != 0 {
        command.env("HOME", &owner.home);
        if let Ok(Some(user)) = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(owner.uid)) {
            command.env("USER", &user.name).env("LOGNAME", &user.name);
        }
    }
    Ok(command)
}

/// `lab shell [-- CMD]`. Replaces this process.
pub(crate) fn shell(paths: &LabPaths, words: &[String]) -> Result<()> {
    let status = socket::status(paths)?;
    let shell =
        || std::env::var("SHELL").ok().filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/bash".to_owned());
    let path = path(&status);
    let program = match words.first() {
        Some(word) => found(word, &path),
        None => shell(),
    };
    let mut command = inside(paths, &program)?;
    command.args(words.get(1..).unwrap_or_default()).env("PATH", path).envs(environment(&status));
    for name in UNSET {
        command.env_remove(name);
    }
    Err(command.exec()).with_context(|| format!("cannot start {program}"))
}

/// The program in the lab's PATH, which `nsenter` would look up in the caller's.
fn found(word: &str, path: &str) -> String {
    if word.contains('/') {
        return word.to_owned();
    }
    let candidates = path.split(':').map(|folder| PathBuf::from(folder).join(word));
    candidates
        .into_iter()
        .find(|file| file.is_file())
        .map_or_else(|| word.to_owned(), |file| file.display().to_string())
}

/// `lab ssh HOST [ARGS]` and `lab exec HOST -- CMD`: the system's SSH client with the lab's files. Replaces this process.
pub(crate) fn ssh(paths: &LabPaths, host: &str, options: &[&str], words: &[String]) -> Result<()> {
    let host = socket::find_host(paths, host)?;
    require_up(&host)?;
    // The way leads through it: without this, a dead one would only be a timeout.
    if let Some(jump) = socket::status(paths)?.jump_host {
        require_up(&socket::find_host(paths, &jump)?)?;
    }
    let mut command = inside(paths, "ssh")?;
    command.arg("-F").arg(paths.ssh_config()).args(options).arg(&host.id);
    if !words.is_empty() {
        command.arg("--").arg(remote_command(words));
    }
    Err(command.exec()).context("cannot start ssh")
}

fn require_up(host: &HostStatus) -> Result<()> {
    if host.state == "up" {
        return Ok(());
    }
    Err(Failure::new(format!("{} is not up: {}", host.name, host.state), format!("lab start {}", host.name)).into())
}

/// One word is a line for the host's shell; several are a program and its arguments, handed over as they are.
fn remote_command(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => shell_words::join(words),
    }
}

/// `lab exec --direct`: as root in the host's own namespaces, past sshd and network. Replaces this process.
pub(crate) fn direct(paths: &LabPaths, host: &str, words: &[String]) -> Result<()> {
    run::require_root("entering a host directly")?;
    let host = socket::find_host(paths, host)?;
    let init = Cgroups::find()?.init_of(&paths.name, &host.id).ok_or_else(|| {
        Failure::new(format!("{} is not up: {}", host.name, host.state), format!("lab start {}", host.name))
    })?;
    let mut command = run::command("nsenter");
    command
        .arg(format!("--target={init}"))
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"])
        .args(["/bin/sh", "-c", &remote_command(words)])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned()));
    Err(command.exec()).context("cannot start nsenter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_words_reach_the_host_as_they_are_and_one_is_a_line() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(remote_command(&words(&["echo a | wc -l"])), "echo a | wc -l");
        assert_eq!(remote_command(&words(&["ls", "a b", "$HOME"])), "ls 'a b' '$HOME'");
    }
}
