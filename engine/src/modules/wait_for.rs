//! `wait_for`: waits until a port answers, a file appears, a text stands in it, or these are gone.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan, steps::text};
use crate::{
    args, choice,
    host::{Read, Write},
};

choice!(
    /// What is waited for.
    State { Started = "started", Present = "present", Stopped = "stopped", Absent = "absent" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// The host whose port it is: a name or an address.
        host []: String = "127.0.0.1".to_owned();
        /// The port.
        port []: Option<u16>;
        /// A file or folder.
        path []: Option<PathBuf>;
        /// `started` and `present`: the port answers, the path exists; `stopped` and `absent`: they do not.
        state []: State = State::Started;
        /// A regular expression that must stand in the file, or in what the port says first.
        search_regex []: Option<regex::Regex>;
        /// How long to wait in all, in seconds.
        timeout []: Duration = Duration::from_mins(5);
        /// How long to wait before the first look, in seconds.
        delay []: Duration = Duration::ZERO;
        /// The pause between two looks, in seconds.
        sleep []: Duration = Duration::from_secs(1);
        /// How long one attempt to connect may take, in seconds.
        connect_timeout []: Duration = Duration::from_secs(5);
        /// Said when the time is over.
        msg []: Option<String>;
    }
}

impl super::FromArg for regex::Regex {
    fn kind() -> String {
        "a regular expression".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| super::args::expected::<Self>(value))?;
        // As in Python with MULTILINE: ^ and $ are those of lines.
        regex::RegexBuilder::new(text).multi_line(true).build().map_err(|e| {
            let last = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
            format!("'{text}' is no regular expression: {last}")
        })
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "wait_for",
    aliases: &[],
    summary: "Waits for a port, a file, or a text in one",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("elapsed", "Seconds that it took."),
        ("state", "As the argument says."),
        ("match_groups", "What the groups of `search_regex` met, in order."),
        ("port", "The port, where one was waited for."),
        ("path", "The path, where one was waited for."),
    ]],
    example: "- name: Consul's port\n  wait_for:\n    port: 8500\n    timeout: 60\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    if inv.args.get("state").and_then(Value::as_str) == Some("drained") {
        return Err(Failure::new("argument 'state': 'drained' is not supported").hint("wait for 'stopped'"));
    }
    let args = Args::parse(&inv.args)?;
    match (args.port, &args.path) {
        (Some(_), Some(_)) => return Err(Failure::new("'port' and 'path' exclude each other").hint("write two tasks")),
        (None, None) if args.search_regex.is_some() => {
            return Err(Failure::new("'search_regex' needs a 'port' or a 'path'"));
        }
        (None, None) if args.delay.is_zero() && !inv.args.contains_key("timeout") => {
            return Err(
                Failure::new("nothing to wait for").hint("give a `port`, a `path`, or only a `timeout` to pause")
            );
        }
        (Some(0), _) => return Err(Failure::new("argument 'port': expected 1 to 65535, found 0")),
        _ => {}
    }
    // A first look here lets check mode say "ok" where it is so.
    if args.delay.is_zero()
        && (args.port.is_some() || args.path.is_some())
        && let Seen::Yes(groups) = look(&args, cx.host, args.connect_timeout.min(args.timeout))?
    {
        return Ok(Plan::Unchanged(outcome(&args, groups, Duration::ZERO)));
    }
    Ok(Plan::Change(Box::new(Wait(args))))
}

fn outcome(args: &Args, groups: Vec<Option<String>>, elapsed: Duration) -> Outcome {
    let outcome = Outcome::unchanged()
        .with("elapsed", elapsed.as_secs())
        .with(
            "state",
            match args.state {
                State::Started => "started",
                State::Present => "present",
                State::Stopped => "stopped",
                State::Absent => "absent",
            },
        )
        .with("match_groups", json!(groups));
    match (args.port, &args.path) {
        (Some(port), _) => outcome.with("port", port),
        (_, Some(path)) => outcome.with("path", path.to_string_lossy().into_owned()),
        _ => outcome,
    }
}

#[derive(Debug)]
struct Wait(Args);

impl Change for Wait {
    fn diffs(&self) -> Vec<Diff> {
        Vec::new()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let args = self.0;
        if host.is_overlay() {
            return Ok(Outcome::unknown(format!("{}: check mode does not wait", goal(&args))));
        }
        let start = Instant::now();
        let left = || args.timeout.checked_sub(start.elapsed());
        thread::sleep(args.delay.min(args.timeout));
        if args.port.is_none() && args.path.is_none() {
            thread::sleep(left().unwrap_or_default());
            return Ok(outcome(&args, Vec::new(), start.elapsed()));
        }
        let mut last = String::new();
        while let Some(time) = left() {
            match look(&args, host.as_read(), args.connect_timeout.min(time).max(Duration::from_millis(10)))? {
                Seen::Yes(groups) => return Ok(outcome(&args, groups, start.elapsed())),
                Seen::No(why) => last = why,
            }
            let Some(time) = left() else { break };
            thread::sleep(args.sleep.min(time));
        }
        let last = if last.is_empty() { String::new() } else { format!(" (last: {last})") };
        let seconds = args.timeout.as_secs_f64();
        let message =
            args.msg.clone().unwrap_or_else(|| format!("{} was waited for {seconds} s in vain{last}", goal(&args)));
        Err(Failure::new(message).with("elapsed", start.elapsed().as_secs()))
    }
}

fn goal(args: &Args) -> String {
    let what = match (args.port, &args.path) {
        (Some(port), _) => format!("port {port} of {}", args.host),
        (_, Some(path)) => path.display().to_string(),
        _ => "the time".to_owned(),
    };
    match (&args.search_regex, args.state) {
        (Some(regex), State::Started | State::Present) => format!("'{regex}' in {what}"),
        (Some(regex), _) => format!("no '{regex}' in {what}"),
        (None, State::Stopped) => format!("a closed {what}"),
        (None, State::Absent) => format!("the absence of {what}"),
        (None, _) => what,
    }
}

enum Seen {
    Yes(Vec<Option<String>>),
    No(String),
}

fn look(args: &Args, host: &dyn Read, connect: Duration) -> Result<Seen, Failure> {
    let wants = matches!(args.state, State::Started | State::Present);
    let found = match (args.port, &args.path) {
        (Some(port), _) => port_answers(args, port, connect),
        (_, Some(path)) => {
            let meta = host.meta_follow(path).map_err(|e| Failure::io("look at", path, &e))?;
            match (meta, &args.search_regex) {
                (None, _) => Err("it does not exist".to_owned()),
                (Some(_), None) => Ok(Vec::new()),
                (Some(_), Some(regex)) => match host.read(path) {
                    Ok(bytes) => groups(regex, &text(&bytes)).ok_or_else(|| "the text is not in it".to_owned()),
                    Err(e) if e.kind() == ErrorKind::NotFound => Err("it does not exist".to_owned()),
                    Err(e) if host.is_overlay() => Err(e.to_string()),
                    Err(e) => return Err(Failure::io("read", path, &e)),
                },
            }
        }
        _ => Err(String::new()),
    };
    Ok(match (found, wants) {
        (Ok(groups), true) => Seen::Yes(groups),
        (Err(why), true) => Seen::No(why),
        (Ok(_), false) => Seen::No("it is still there".into()),
        (Err(_), false) => Seen::Yes(Vec::new()),
    })
}

fn groups(regex: &regex::Regex, text: &str) -> Option<Vec<Option<String>>> {
    let found = regex.captures(text)?;
    Some(found.iter().skip(1).map(|group| group.map(|g| g.as_str().to_owned())).collect())
}

fn port_answers(args: &Args, port: u16, connect: Duration) -> Result<Vec<Option<String>>, String> {
    let addresses = addresses(&args.host, port)?;
    let mut why = format!("{} has no address", args.host);
    for address in addresses {
        match TcpStream::connect_timeout(&address, connect) {
            Ok(stream) => match &args.search_regex {
                None => return Ok(Vec::new()),
                Some(regex) => match greeting(stream, regex, connect) {
                    Some(groups) => return Ok(groups),
                    None => why = "it did not say the text".into(),
                },
            },
            Err(e) => why = e.to_string(),
        }
    }
    Err(why)
}

/// Literal addresses never reach the resolver.
fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    (host, port).to_socket_addrs().map(Iterator::collect).map_err(|e| e.to_string())
}

/// Reads until the text has come, the other side ends, or the time is over.
fn greeting(mut stream: TcpStream, regex: &regex::Regex, time: Duration) -> Option<Vec<Option<String>>> {
    /// More than any greeting, and a bound for one that never ends.
    const MOST: usize = 1 << 20;
    let end = Instant::now() + time;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    // Some servers speak only when spoken to; an empty write tells a closed connection from a silent one.
    stream.flush().ok()?;
    while said.len() < MOST {
        stream.set_read_timeout(Some(end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())?)).ok()?;
        let count = stream.read(&mut buffer).ok()?;
        if count == 0 {
            return groups(regex, &text(&said));
        }
        said.extend_from_slice(&buffer[..count]);
        if let Some(found) = groups(regex, &text(&said)) {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::modules::fake::{Fake, go};

    #[test]
    fn an_open_port_is_found_at_once_and_a_closed_one_in_vain() {
        let mut fake = Fake::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let outcome = go(&mut fake, "wait_for", json!({"port": port})).unwrap();
        assert_eq!((outcome.changed, &outcome.data["port"]), (false, &json!(port)));
        let args = json!({"port": port, "state": "stopped", "timeout": 0.05, "sleep": 0.01});
        assert!(go(&mut fake, "wait_for", args.clone()).unwrap_err().message.contains("still there"));
        drop(listener);
        assert!(go(&mut fake, "wait_for", args).is_ok());
        let failure = go(&mut fake, "wait_for", json!({"port": port, "timeout": 0.05, "sleep": 0.01})).unwrap_err();
        assert!(
            failure.message.starts_with(&format!("port {port} of 127.0.0.1 was waited for 0.05 s in vain (last: "))
        );
        let args = json!({"port": port, "timeout": 0.01, "msg": "no consul"});
        assert_eq!(go(&mut fake, "wait_for", args).unwrap_err().message, "no consul");
    }

    #[test]
    fn a_port_that_opens_later_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let later = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            let listener = TcpListener::bind(address).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"SSH-2.0-Open").unwrap();
            thread::sleep(Duration::from_millis(20));
            stream.write_all(b"SSH_9\r\n").unwrap();
        });
        let args = json!({"port": address.port(), "search_regex": "^SSH-2.0-(\\w+_\\d)", "timeout": 10, "sleep": 0.02});
        let outcome = go(&mut Fake::new(), "wait_for", args).unwrap();
        assert_eq!(outcome.data["match_groups"], json!(["OpenSSH_9"]));
        later.join().unwrap();
    }

    #[test]
    fn files_and_texts() {
        let mut fake = Fake::new().file("/var/log/x", "one\nready: 7\n");
        let mut ok = |args| go(&mut fake, "wait_for", args);
        assert!(ok(json!({"path": "/var/log/x"})).is_ok());
        let outcome = ok(json!({"path": "/var/log/x", "search_regex": "^ready: (\\d)"})).unwrap();
        assert_eq!(outcome.data["match_groups"], json!(["7"]));
        assert!(ok(json!({"path": "/var/log/y", "state": "absent"})).is_ok());
        let failure = ok(json!({"path": "/var/log/x", "search_regex": "never", "timeout": 0.01})).unwrap_err();
        assert!(failure.message.starts_with("'never' in /var/log/x was waited for"));
    }

    #[test]
    fn check_mode_does_not_wait() {
        let fake = Fake::new().file("/x", "");
        let mut overlay = crate::host::overlay::Overlay::new(&fake);
        assert!(go(&mut overlay, "wait_for", json!({"path": "/y"})).unwrap().unknown);
        assert!(!go(&mut overlay, "wait_for", json!({"path": "/x"})).unwrap().unknown);
    }

    #[test]
    fn bad_input_is_refused() {
        let mut fake = Fake::new();
        let mut error = |args| go(&mut fake, "wait_for", args).unwrap_err().message;
        assert!(error(json!({})).contains("nothing to wait for"));
        assert!(error(json!({"port": 1, "path": "/x"})).contains("exclude"));
        assert!(error(json!({"port": 70000})).contains("whole number"));
        assert!(error(json!({"path": "/x", "search_regex": "("})).contains("no regular expression"));
        assert!(error(json!({"port": 1, "state": "drained"})).contains("not supported"));
    }
}
