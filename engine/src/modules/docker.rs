//! What the modules `docker_*` share: asking the engine by Docker's own program, and changes that are calls of it.

use serde_json::Value;

use super::{
    Change, Diff, Failure, Invocation, Outcome, Plan, place,
    steps::{failed, text},
};
use crate::host::{Command, Effect, Output, Ran, Read, Write};

/// Label of an image that we built: what it was built from.
pub(super) const SOURCE_LABEL: &str = "rollcall.source";
/// Label of a container that we made.
pub(super) const MANAGED_LABEL: &str = "rollcall.managed";

/// A call of Docker's program, with the task's environment (`DOCKER_HOST`).
pub(super) fn docker<S: Into<String>>(inv: &Invocation, words: impl IntoIterator<Item = S>) -> Command {
    let argv = std::iter::once("docker".to_owned()).chain(words.into_iter().map(Into::into));
    Command { env: inv.environment.clone(), ..Command::new(argv) }
}

/// What the engine says of an image or a container.
#[derive(Debug)]
pub(super) enum Looked {
    /// There is none.
    Nothing,
    /// The whole description.
    Found(Value),
    /// Check mode, and the engine cannot be asked: an earlier task may install or start it.
    Unknown(String),
}

/// Looks at `image NAME` or `container NAME`.
pub(super) fn look(inv: &Invocation, host: &dyn Read, kind: &str, name: &str) -> Result<Looked, Failure> {
    let command = docker(inv, [kind, "inspect", name]);
    let failure = match host.query(&command) {
        Ok(output) if output.code == 0 => {
            let all: Vec<Value> = serde_json::from_slice(&output.stdout)
                .map_err(|e| Failure::new(format!("docker {kind} inspect {name} gave no JSON: {e}")))?;
            return Ok(all.into_iter().next().map_or(Looked::Nothing, Looked::Found));
        }
        Ok(output) if text(&output.stderr).to_lowercase().contains(&format!("no such {kind}")) => {
            return Ok(Looked::Nothing);
        }
        Ok(output) => explained(&command, &output),
        Err(failure) => absent(failure),
    };
    if host.is_overlay() { Ok(Looked::Unknown(failure.message)) } else { Err(failure) }
}

/// The plan where an engine cannot be asked yet.
pub(super) fn unknown(why: &str) -> Plan {
    place::unforeseen(format!("may change: {why}, which an earlier task may mend"))
}

/// Docker's program is not there.
fn absent(failure: Failure) -> Failure {
    if failure.message.contains("no such program") {
        return Failure::new("docker is not installed on this host").hint("role docker installs it");
    }
    failure
}

/// A call that ended badly, in words that lead on.
pub(super) fn explained(command: &Command, output: &Output) -> Failure {
    let said = text(&output.stderr);
    let plain = failed(command, output);
    if said.contains("Cannot connect to the Docker daemon") || said.contains("Is the docker daemon running") {
        let hint = "is its service running: systemctl status docker; role docker starts it";
        return Failure { message: "the Docker engine of this host does not answer".into(), ..plain }.hint(hint);
    }
    if said.contains("permission denied") && said.contains("docker.sock") {
        let message = "this user may not talk to the Docker engine".into();
        return Failure { message, ..plain }
            .hint("only root may, as everyone who may is as good as root: become: true");
    }
    if said.contains("no space left on device") {
        return plain.hint("the disk of /var/lib/docker is full: docker system df shows what takes it");
    }
    // The program's own name says little: `docker create`.
    let verb: Vec<&str> = command.argv.iter().take(2).map(String::as_str).collect();
    let message = plain.message.replacen("docker", &verb.join(" "), 1);
    Failure { message, ..plain }
}

/// See [`Calls::finish`].
type Finish = Box<dyn FnOnce(&mut dyn Write, Outcome) -> Result<Outcome, Failure> + Send>;

/// Calls of Docker's program, one after the other; the first that fails ends them.
pub(super) struct Calls {
    pub(super) diffs: Vec<Diff>,
    pub(super) list: Vec<Command>,
    pub(super) outcome: Outcome,
    /// Looks at what came of it, and tidies up (not in check mode).
    pub(super) finish: Finish,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not what goes in by standard input: it may be secret.
        f.debug_list().entries(self.list.iter().map(|command| command.argv.join(" "))).finish()
    }
}

impl Change for Calls {
    fn diffs(&self) -> Vec<Diff> {
        self.diffs.clone()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let Self { list, outcome, finish, .. } = *self;
        if host.is_overlay() {
            return Ok(outcome);
        }
        for (index, command) in list.iter().enumerate() {
            run(host, command).map_err(|bad| Failure { changed: bad.changed || index > 0, ..bad })?;
        }
        finish(host, outcome).map_err(|failure| Failure { changed: true, ..failure })
    }
}

/// Calls Docker's program; it must end well.
pub(super) fn run(host: &mut dyn Write, command: &Command) -> Result<(), Failure> {
    // Nobody asks the engine through the host's files or units.
    match host.run(command, &[Effect::Other]).map_err(absent)? {
        Ran::Done(output) if output.code != 0 => Err(explained(command, &output)),
        _ => Ok(()),
    }
}

/// The text at a path of a description, empty where there is none.
pub(super) fn at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list of texts at a path of a description.
pub(super) fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// An image's name with its tag, as the engine lists it: `web` is `web:latest`.
pub(super) fn reference(name: &str) -> Result<String, Failure> {
    let bad = |hint: &str| {
        Failure::new(format!("argument 'name': '{}' is no name for an image", name.escape_debug()))
            .hint(hint.to_owned())
    };
    if name.contains('@') {
        return Err(bad("name it by a tag: a digest is known only when the image is there"));
    }
    let short = name.strip_prefix("docker.io/library/").or_else(|| name.strip_prefix("docker.io/")).unwrap_or(name);
    let (path, tag) = match short.rsplit_once(':') {
        // The colon of a registry's port stands before a slash.
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (short, "latest"),
    };
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let (host, rest) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, path),
    };
    let ends = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let good_path = rest.split('/').all(|part| !part.is_empty() && part.chars().all(word) && ends(part));
    let good_host =
        host.is_none_or(|host| ends(host) && host.chars().all(|c| c.is_ascii_alphanumeric() || ".:-".contains(c)));
    let good_tag = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag.len() <= 128
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !(good_path && good_host && good_tag) {
        return Err(bad("small letters, digits and ._-/, then :TAG, for example web-service:v0.1"));
    }
    Ok(format!("{path}:{tag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_get_their_tag() {
        assert_eq!(reference("web").unwrap(), "web:latest");
        assert_eq!(reference("docker.io/library/web:v1").unwrap(), "web:v1");
        assert_eq!(reference("localhost:5000/team/web").unwrap(), "localhost:5000/team/web:latest");
        for bad in
            ["", "Web", "web:", "web:a b", "-web", "a//b", "web:v1:v2", "web\n", "../x", "x@sha256:00", "--force"]
        {
            assert!(reference(bad).is_err(), "{bad}");
        }
    }
}
