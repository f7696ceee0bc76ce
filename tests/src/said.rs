//! A program that is run, and what it said.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// The command line, for errors.
    pub shown: String,
    /// The exit code; that of a shell (128 + N) for one that signal N ended.
    pub code: i32,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Said {
    /// It must have ended well.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.ends(0)
    }

    /// It must have ended with this exit code.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert!(self.code == code, "exit code {code} was expected\n{}", self.report());
        self
    }

    /// Stdout or stderr must contain this.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.out.contains(text) || self.err.contains(text), "{text:?} was expected\n{}", self.report());
        self
    }

    /// Neither stdout nor stderr may contain this.
    #[track_caller]
    pub fn never_says(self, text: &str) -> Self {
        assert!(!self.out.contains(text) && !self.err.contains(text), "{text:?} must not be told\n{}", self.report());
        self
    }

    /// What the recap of a run with `--json` counts under a name, by host; `None` where the run came to no recap.
    pub fn try_counts(&self, name: &str) -> Option<Vec<u64>> {
        let mut events = self.out.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let recap = events.rfind(|event| event["event"] == "recap")?;
        recap["hosts"].as_object()?.values().map(|counts| counts[name].as_u64()).collect()
    }

    /// The same where there must be a recap.
    #[track_caller]
    pub fn counts(&self, name: &str) -> Vec<u64> {
        self.try_counts(name).unwrap_or_else(|| panic!("there is no recap that counts '{name}'\n{}", self.report()))
    }

    /// What the recap counts, of all hosts.
    #[track_caller]
    pub fn counted(&self, name: &str) -> u64 {
        self.counts(name).iter().sum()
    }

    /// Stdout without white space around it.
    pub fn text(&self) -> &str {
        self.out.trim()
    }

    /// Stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("stdout is no JSON ({error})\n{}", self.report()))
    }

    /// All of it, for an error.
    pub fn report(&self) -> String {
        let Self { shown, code, out, err, took } = self;
        format!("command: {shown}\nexit code {code} after {took:.1?}\n--- stdout\n{out}\n--- stderr\n{err}")
    }
}

/// Runs a command to its end, without stdin. One that takes longer than the limit is killed, and the test fails.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Said {
    Running::start(command).wait(limit)
}

/// A program that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    begin: Instant,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
    ended: bool,
}

impl Running {
    /// Starts it without stdin.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let shown = shown(command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        let out = collect(child.stdout.take());
        let err = collect(child.stderr.take());
        Self { child, shown, begin: Instant::now(), out, err, ended: false }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name: `INT`, `KILL`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{name} to {}", self.shown);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Said {
        let status = self.end_within(limit);
        let took = self.begin.elapsed();
        if status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.ended = true;
        // A grandchild that lives on may hold the pipes: what came until now is enough then.
        let grace = Duration::from_secs(30);
        let said = Said {
            shown: self.shown.clone(),
            code: status.map_or(-1, exit_code),
            out: self.out.recv_timeout(grace).unwrap_or_else(|_| "(stdout is still open)".to_owned()),
            err: self.err.recv_timeout(grace).unwrap_or_else(|_| "(stderr is still open)".to_owned()),
            took,
        };
        assert!(status.is_some(), "it did not end within {limit:?}\n{}", said.report());
        said
    }

    fn end_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = self.begin + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked for its end") {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
