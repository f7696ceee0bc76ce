//! What a container should be, the call that makes one, and both sides of a comparison in one form.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    super::{
        Failure, Invocation,
        docker::{MANAGED_LABEL, at, docker, reference, texts},
    },
    Args, Restart,
};
use crate::{host::Command, secrets::redact};

/// How many bytes a line of the environment may have: Docker's program reads no longer ones.
const LONGEST_LINE: usize = 60_000;

/// The arguments, checked and in the engine's terms.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) image: String,
    command: Option<Vec<String>>,
    env: Vec<(String, String)>,
    ports: BTreeSet<Publish>,
    volumes: Vec<String>,
    pub(super) networks: Vec<String>,
    restart: &'static str,
    /// Bytes.
    memory: u64,
    /// Billionths of a processor.
    nanocpus: u64,
    user: Option<String>,
    labels: Vec<(String, String)>,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Publish {
    address: String,
    /// Empty: one that the engine chooses.
    outside: String,
    /// With the protocol: `80/tcp`.
    inside: String,
}

impl Publish {
    fn parse(text: &str) -> Result<Self, Failure> {
        let bad = || {
            Failure::new(format!("argument 'ports': '{}' is no published port", text.escape_debug()))
                .hint("OUTSIDE:INSIDE, ADDRESS:OUTSIDE:INSIDE or INSIDE, with /udp if it is not TCP; one port each")
        };
        let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let (rest, inside) = ports.rsplit_once(':').map_or((None, ports), |(rest, inside)| (Some(rest), inside));
        let (address, outside) = match rest {
            None => ("", ""),
            Some(rest) => rest.rsplit_once(':').unwrap_or(("", rest)),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
        let good = ["tcp", "udp", "sctp"].contains(&protocol)
            && port(inside)
            && (port(outside) || (outside.is_empty() && rest.is_none()))
            && (address.is_empty() || address.parse::<std::net::IpAddr>().is_ok());
        if !good {
            return Err(bad());
        }
        let inside = format!("{inside}/{protocol}");
        Ok(Self { address: address.to_owned(), outside: outside.to_owned(), inside })
    }

    /// As Docker's program takes it.
    fn word(&self) -> String {
        let address = match self.address.as_str() {
            "" => String::new(),
            v6 if v6.contains(':') => format!("[{v6}]:"),
            v4 => format!("{v4}:"),
        };
        let outside = if self.outside.is_empty() { String::new() } else { format!("{}:", self.outside) };
        format!("{address}{outside}{}", self.inside)
    }

    fn all(container: &Value) -> BTreeSet<Self> {
        let bindings = container.pointer("/HostConfig/PortBindings").and_then(Value::as_object);
        let one = |inside: &String, binding: &Value| Self {
            address: at(binding, "/HostIp").to_owned(),
            outside: at(binding, "/HostPort").to_owned(),
            inside: inside.clone(),
        };
        bindings
            .into_iter()
            .flatten()
            .flat_map(|(inside, list)| list.as_array().into_iter().flatten().map(move |binding| one(inside, binding)))
            .collect()
    }
}

impl Wanted {
    pub(super) fn new(args: &Args) -> Result<Self, Failure> {
        let image = args.image.as_deref().ok_or_else(|| Failure::new("argument 'image' is missing"))?;
        let image =
            reference(image).map_err(|e| Failure { message: e.message.replacen("'name'", "'image'", 1), ..e })?;
        let wanted = Self {
            image,
            command: args.command.as_ref().map(words).transpose()?,
            env: environment(&args.env)?,
            ports: args.ports.iter().map(|port| Publish::parse(port)).collect::<Result<_, _>>()?,
            volumes: args.volumes.iter().map(|volume| check_volume(volume)).collect::<Result<_, _>>()?,
            networks: args.networks.clone(),
            restart: match args.restart {
                Restart::No => "no",
                Restart::Always => "always",
                Restart::UnlessStopped => "unless-stopped",
                Restart::OnFailure => "on-failure",
            },
            memory: args.memory.as_deref().map(bytes).transpose()?.unwrap_or_default(),
            nanocpus: args.cpus.as_deref().map(nanocpus).transpose()?.unwrap_or_default(),
            user: args.user.clone(),
            labels: texts_of("labels", &args.labels)?,
        };
        if let Some(bad) = wanted.networks.iter().find(|name| name.is_empty() || name.starts_with('-')) {
            return Err(Failure::new(format!("argument 'networks': '{bad}' is no name of a network")));
        }
        if wanted.networks.iter().any(|name| name == "host" || name == "none") {
            if wanted.networks.len() > 1 {
                return Err(Failure::new("argument 'networks': host and none stand alone"));
            }
            if !wanted.ports.is_empty() {
                return Err(Failure::new(format!(
                    "a container with the network '{}' publishes no ports",
                    wanted.networks[0]
                ))
                .hint("leave 'ports' out: with host it listens on the host's own"));
            }
        }
        wanted.no_secret_in_words()?;
        Ok(wanted)
    }

    /// What everyone on the machine can read must not hold a secret.
    fn no_secret_in_words(&self) -> Result<(), Failure> {
        let secret = |text: &str| redact::text(text) != text;
        let labels = self.labels.iter().map(|(_, value)| value);
        let places = [
            ("command", self.command.iter().flatten().any(|word| secret(word))),
            ("labels", labels.into_iter().any(|value| secret(value))),
            ("volumes", self.volumes.iter().any(|volume| secret(volume))),
        ];
        match places.iter().find(|(_, bad)| *bad) {
            None => Ok(()),
            Some((name, _)) => {
                Err(Failure::new(format!("argument '{name}' holds a secret, which everyone on the host could read"))
                    .hint("give it in 'env', or in a file that a volume brings in"))
            }
        }
    }

    /// The call that makes the container, stopped. The environment comes by standard input.
    pub(super) fn create(&self, inv: &Invocation, name: &str) -> Command {
        let mut words: Vec<String> = ["create", "--name", name].map(str::to_owned).into();
        let mut option = |name: &str, value: String| words.push(format!("--{name}={value}"));
        option("label", format!("{MANAGED_LABEL}=true"));
        option("restart", self.restart.to_owned());
        for (name, value) in &self.labels {
            option("label", format!("{name}={value}"));
        }
        for port in &self.ports {
            option("publish", port.word());
        }
        for volume in &self.volumes {
            option("volume", volume.clone());
        }
        if let Some(network) = self.networks.first() {
            option("network", network.clone());
        }
        if self.memory > 0 {
            option("memory", self.memory.to_string());
        }
        if self.nanocpus > 0 {
            option("cpus", format!("{}.{:09}", self.nanocpus / 1_000_000_000, self.nanocpus % 1_000_000_000));
        }
        if let Some(user) = &self.user {
            option("user", user.clone());
        }
        if !self.env.is_empty() {
            option("env-file", "/dev/stdin".to_owned());
        }
        words.push(self.image.clone());
        words.extend(self.command.iter().flatten().cloned());
        let mut command = docker(inv, words);
        if !self.env.is_empty() {
            let lines: Vec<String> = self.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            command.stdin = Some(lines.concat().into_bytes());
        }
        command
    }

    /// As it will look, made from this image.
    pub(super) fn view(&self, image: &Value) -> View {
        let mut env = texts(image, "/Config/Env");
        // The image's own variables are replaced.
        env.retain(|line| !self.env.iter().any(|(name, _)| line.split('=').next() == Some(name)));
        let given = self.env.iter().map(|(name, value)| format!("{name}={value}"));
        let env: BTreeSet<String> = env.into_iter().chain(given).collect();
        let networks = if self.networks.is_empty() { vec!["bridge".to_owned()] } else { self.networks.clone() };
        View {
            image: format!("{} {}", self.image, at(image, "/Id")),
            command: self.command.clone().unwrap_or_else(|| texts(image, "/Config/Cmd")),
            env,
            ports: self.ports.clone(),
            volumes: self.volumes.iter().cloned().collect(),
            networks: networks.into_iter().collect(),
            restart: self.restart.to_owned(),
            memory: self.memory,
            nanocpus: self.nanocpus,
            user: self.user.clone().unwrap_or_else(|| at(image, "/Config/User").to_owned()),
            labels: self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        }
    }
}

/// What is compared: a container as it is, or as it will be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Name and id.
    pub(super) image: String,
    command: Vec<String>,
    env: BTreeSet<String>,
    ports: BTreeSet<Publish>,
    volumes: BTreeSet<String>,
    networks: BTreeSet<String>,
    restart: String,
    memory: u64,
    nanocpus: u64,
    user: String,
    /// Without ours and the image's.
    labels: BTreeSet<String>,
}

impl View {
    /// Of a container, and the image that it was made from.
    pub(super) fn found(container: &Value, image: &Value) -> Self {
        let number = |pointer: &str| container.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        let labels = |value: &Value| -> BTreeSet<String> {
            let map = value.pointer("/Config/Labels").and_then(Value::as_object);
            map.into_iter()
                .flatten()
                .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
                .collect()
        };
        let mut own = labels(container);
        let inherited = labels(image);
        own.retain(|line| !inherited.contains(line) && !line.starts_with(&format!("{MANAGED_LABEL}=")));
        let networks = container.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
        let restart = at(container, "/HostConfig/RestartPolicy/Name");
        let name = at(container, "/Config/Image");
        Self {
            image: format!("{} {}", reference(name).unwrap_or_else(|_| name.to_owned()), at(container, "/Image")),
            command: texts(container, "/Config/Cmd"),
            env: texts(container, "/Config/Env").into_iter().collect(),
            ports: Publish::all(container),
            volumes: texts(container, "/HostConfig/Binds").into_iter().collect(),
            networks: networks.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
            restart: if restart.is_empty() { "no" } else { restart }.to_owned(),
            memory: number("/HostConfig/Memory"),
            nanocpus: number("/HostConfig/NanoCpus"),
            user: at(container, "/Config/User").to_owned(),
            labels: own,
        }
    }
}

/// One line for each thing, for a difference that people read.
impl std::fmt::Display for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut line = |name: &str, value: &str| {
            if value.is_empty() { Ok(()) } else { writeln!(f, "{name}: {value}") }
        };
        line("image", &self.image)?;
        line("command", &shell_words::join(&self.command))?;
        for value in &self.env {
            line("env", value)?;
        }
        for port in &self.ports {
            line("port", &port.word())?;
        }
        for volume in &self.volumes {
            line("volume", volume)?;
        }
        line("networks", &self.networks.iter().cloned().collect::<Vec<_>>().join(", "))?;
        line("restart", &self.restart)?;
        line("memory", &if self.memory == 0 { String::new() } else { format!("{} bytes", self.memory) })?;
        let cpus = format!("{}.{:03}", self.nanocpus / 1_000_000_000, self.nanocpus % 1_000_000_000 / 1_000_000);
        line("cpus", if self.nanocpus == 0 { "" } else { &cpus })?;
        line("user", &self.user)?;
        for label in &self.labels {
            line("label", label)?;
        }
        Ok(())
    }
}

/// A line, or a list of words.
fn words(value: &Value) -> Result<Vec<String>, Failure> {
    let bad = || Failure::new("argument 'command': expected a line or a list of words");
    match value {
        Value::String(line) => {
            shell_words::split(line).map_err(|e| Failure::new(format!("argument 'command': {e} in '{line}'")))
        }
        Value::Array(list) => list
            .iter()
            .map(|word| match word {
                Value::String(word) => Ok(word.clone()),
                Value::Number(_) | Value::Bool(_) => Ok(word.to_string()),
                _ => Err(bad()),
            })
            .collect(),
        _ => Err(bad()),
    }
}

/// A map of names to texts, sorted.
fn texts_of(argument: &str, map: &Map<String, Value>) -> Result<Vec<(String, String)>, Failure> {
    let mut list = Vec::new();
    for (name, value) in map {
        if name.is_empty() || name.contains(|c: char| c == '=' || c == '#' || c.is_whitespace() || c.is_control()) {
            return Err(Failure::new(format!("argument '{argument}': '{}' is no name", name.escape_debug())));
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => {
                return Err(Failure::new(format!("argument '{argument}': the value of {name} is no text"))
                    .hint("a list or a mapping is given as JSON: \"{{ value | to_json }}\""));
            }
        };
        list.push((name.clone(), text));
    }
    list.sort();
    Ok(list)
}

fn environment(map: &Map<String, Value>) -> Result<Vec<(String, String)>, Failure> {
    let list = texts_of("env", map)?;
    for (name, value) in &list {
        if value.contains(['\n', '\r', '\0']) || name.len() + value.len() > LONGEST_LINE {
            return Err(Failure::new(format!(
                "argument 'env': the value of {name} is no line of less than {LONGEST_LINE} bytes"
            ))
            .hint("Docker takes variables of one line: put the text into a file, and bring it in by 'volumes'"));
        }
    }
    Ok(list)
}

fn check_volume(text: &str) -> Result<String, Failure> {
    let mut parts = text.split(':');
    let (source, target, options, more) = (parts.next(), parts.next(), parts.next(), parts.next());
    let name = |source: &str| {
        source.starts_with(|c: char| c.is_ascii_alphanumeric())
            && source.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    let good = source.is_some_and(|source| source.starts_with('/') || name(source))
        && target.is_some_and(|target| target.starts_with('/'))
        && options.is_none_or(|options| !options.is_empty())
        && more.is_none();
    if good {
        return Ok(text.to_owned());
    }
    Err(Failure::new(format!("argument 'volumes': '{}' is no volume", text.escape_debug()))
        .hint("FOLDER:INSIDE or NAME:INSIDE, both absolute paths, with :ro to read only"))
}

/// `64m` in bytes.
fn bytes(text: &str) -> Result<u64, Failure> {
    let text = text.trim();
    let (number, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 'b' | 'B')) => (&text[..at], 0),
        _ => (text, 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    // Less than this the engine refuses.
    bytes.filter(|bytes| *bytes >= 6 << 20).ok_or_else(|| {
        Failure::new(format!("argument 'memory': '{text}' is no size of memory"))
            .hint("a whole number with k, m or g, at least 6m: 256m")
    })
}

/// `0.5` in billionths.
fn nanocpus(text: &str) -> Result<u64, Failure> {
    let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    let digits = |text: &str| (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits(whole) && digits(part) {
        let billionths = format!("{whole}{part:0<9}").parse::<u64>().ok();
        // A hundredth is the least that the engine takes, and no machine has more than this.
        billionths.filter(|number| (10_000_000..=4_096_000_000_000).contains(number))
    } else {
        None
    };
    number.ok_or_else(|| {
        Failure::new(format!("argument 'cpus': '{text}' is no number of processors")).hint("for example 0.5, or 2")
    })
}
