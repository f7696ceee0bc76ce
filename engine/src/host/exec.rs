//! Running programs: no shell, a process group of its own, output read to the end.

use std::{
    io::Write as _,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{Command, Output};
use crate::modules::Failure;

/// Folders that are always searched, after those of the inherited PATH: a login without sbin must still find `ip`.
const STANDARD_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How long output is awaited after the program itself has ended: a daemon that it left behind may hold the pipes
/// open for ever.
const PIPE_GRACE: Duration = Duration::from_secs(1);

/// Runs a command to its end.
///
/// Any exit code is a success here; failures are: an empty command, a missing program or working directory, a
/// program that may not be executed, and the timeout (then the whole process group is killed, and what was
/// written so far stands in the failure's `stdout` and `stderr`).
pub fn run(command: &Command) -> Result<Output, Failure> {
    let program = command.argv.first().filter(|p| !p.is_empty()).ok_or_else(|| Failure::new("the command is empty"))?;
    if let Some(word) = command.argv.iter().find(|w| w.contains('\0')) {
        let shown: String = word.replace('\0', "\\0").chars().take(60).collect();
        return Err(Failure::new(format!("an argument of '{program}' holds a NUL byte: {shown}")));
    }
    if let Some(folder) = &command.chdir
        && !folder.is_dir()
    {
        return Err(Failure::new(format!("cannot run '{program}': the folder {} does not exist", folder.display())));
    }
    let mut child = prepare(program, command).spawn().map_err(|e| not_started(program, &e))?;
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));

    let (tell, told) = mpsc::channel();
    let stdout = child.stdout.take().map(|pipe| collect(pipe, Ended::Pipe, &tell));
    let stderr = child.stderr.take().map(|pipe| collect(pipe, Ended::Pipe, &tell));
    if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), command.stdin.clone()) {
        // A program may end without reading its input: a broken pipe is its business.
        thread::spawn(move || drop(pipe.write_all(&bytes)));
    }
    let waiter = tell.clone();
    thread::spawn(move || waiter.send(Ended::Program(child.wait())));
    drop(tell);

    let status = wait(&told, command.timeout, group);
    let take = |buffer: Option<Buffer>| {
        buffer.map(|b| std::mem::take(&mut *b.lock().unwrap_or_else(PoisonError::into_inner))).unwrap_or_default()
    };
    let (stdout, stderr) = (take(stdout), take(stderr));
    match status {
        Ok(Some(status)) => Ok(Output { code: code(status), stdout, stderr }),
        Ok(None) => Err(Failure::new(format!(
            "'{program}' did not end within {} s and was killed",
            command.timeout.unwrap_or_default().as_secs_f64()
        ))
        .with("rc", -(Signal::SIGKILL as i32))
        .with("stdout", String::from_utf8_lossy(&stdout).into_owned())
        .with("stderr", String::from_utf8_lossy(&stderr).into_owned())),
        Err(e) => Err(Failure::new(format!("cannot wait for '{program}': {e}"))),
    }
}

fn prepare(program: &str, command: &Command) -> std::process::Command {
    let mut process = std::process::Command::new(program);
    process.args(&command.argv[1..]).process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    process.stdin(if command.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("LC_") || n == "LANGUAGE") {
            process.env_remove(name);
        }
    }
    process.env("LANG", "C.UTF-8").env("PATH", search_path()).env("HOME", home());
    for (name, value) in &command.env {
        process.env(name, value);
    }
    if let Some(folder) = &command.chdir {
        process.current_dir(folder);
    }
    process
}

/// The inherited PATH with the standard folders added.
fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    let mut folders: Vec<&str> = inherited.split(':').filter(|f| f.starts_with('/')).collect();
    for folder in STANDARD_PATH {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders.join(":")
}

fn home() -> PathBuf {
    if let Some(home) = std::env::var_os("HOME").filter(|h| !h.is_empty()) {
        return home.into();
    }
    let uid = nix::unistd::geteuid().as_raw();
    let users = std::fs::read("/etc/passwd").map(|t| super::real::parse_passwd(&t)).unwrap_or_default();
    users.into_iter().find(|u| u.uid == Some(uid)).map_or_else(|| PathBuf::from("/"), |u| u.home)
}

fn not_started(program: &str, error: &std::io::Error) -> Failure {
    // A folder of the PATH that this user may not enter turns "not found" into "permission denied".
    let absent = !program.contains('/') && !search_path().split(':').any(|f| Path::new(f).join(program).exists());
    let kind = if absent { std::io::ErrorKind::NotFound } else { error.kind() };
    match kind {
        std::io::ErrorKind::NotFound if program.contains('/') => {
            Failure::new(format!("cannot run '{program}': no such program (or its interpreter is missing)"))
        }
        std::io::ErrorKind::NotFound => Failure::new(format!("cannot run '{program}': no such program"))
            .hint(format!("looked in {}; an earlier task must install it", search_path())),
        std::io::ErrorKind::PermissionDenied => Failure::new(format!("cannot run '{program}': permission denied"))
            .hint("is the file executable, and the user allowed to?"),
        std::io::ErrorKind::ArgumentListTooLong => {
            Failure::new(format!("cannot run '{program}': its arguments are too long"))
                .hint("pass long values through stdin or a file")
        }
        _ => Failure::new(format!("cannot run '{program}': {error}")),
    }
}

enum Ended {
    Program(std::io::Result<ExitStatus>),
    Pipe,
}

type Buffer = Arc<Mutex<Vec<u8>>>;

fn collect(mut pipe: impl std::io::Read + Send + 'static, end: Ended, tell: &mpsc::Sender<Ended>) -> Buffer {
    let buffer = Buffer::default();
    let (shared, tell) = (Arc::clone(&buffer), tell.clone());
    thread::spawn(move || {
        let mut chunk = [0; 16 * 1024];
        loop {
            match pipe.by_ref().read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Nobody listens any more where the call has returned already.
        drop(tell.send(end));
    });
    buffer
}

/// Waits for the program and its two pipes; `None` after the timeout.
fn wait(told: &mpsc::Receiver<Ended>, timeout: Option<Duration>, group: Pid) -> std::io::Result<Option<ExitStatus>> {
    let mut deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    let (mut status, mut open, mut killed) = (None, 2, false);
    while status.is_none() || open > 0 {
        let message = match deadline {
            Some(at) => told.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => told.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        };
        match message {
            Ok(Ended::Pipe) => open -= 1,
            Ok(Ended::Program(end)) => {
                status = Some(end?);
                let grace = Instant::now() + PIPE_GRACE;
                deadline = Some(deadline.filter(|_| !killed).map_or(grace, |d| d.min(grace)));
            }
            Err(mpsc::RecvTimeoutError::Timeout) if status.is_none() && !killed => {
                killed = true;
                // Gone already: its end is about to be told.
                let _ = killpg(group, Signal::SIGKILL);
                deadline = None;
            }
            Err(_) => break,
        }
    }
    Ok(if killed { None } else { status })
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        Command::new(["/bin/sh", "-c", script])
    }

    #[test]
    fn output_codes_signals_and_environment() {
        let output = run(&sh("printf a; printf b >&2; exit 3")).unwrap();
        assert_eq!(output, Output { code: 3, stdout: b"a".to_vec(), stderr: b"b".to_vec() });
        assert_eq!(run(&sh("kill -TERM $$")).unwrap().code, -15);
        let mut command = sh("echo \"$LANG|$X|$HOME|$PATH\"; cat");
        command.env.push(("X".into(), "y z".into()));
        command.stdin = Some(b"input".to_vec());
        let text = String::from_utf8(run(&command).unwrap().stdout).unwrap();
        assert!(text.starts_with("C.UTF-8|y z|/"), "{text}");
        assert!(text.contains("/usr/sbin") && text.ends_with("input"), "{text}");
    }

    #[test]
    fn big_input_and_output_do_not_deadlock() {
        let mut command = sh("cat; cat /dev/zero | head -c 1000000 >&2");
        command.stdin = Some(vec![b'x'; 3_000_000]);
        let output = run(&command).unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 1_000_000));
        let mut ignored = sh("exit 0");
        ignored.stdin = Some(vec![b'x'; 3_000_000]);
        assert_eq!(run(&ignored).unwrap().code, 0);
    }

    #[test]
    fn a_timeout_kills_the_whole_group() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let mut command = sh(&format!("echo before; (sleep 1.2; touch {}) & wait", mark.display()));
        command.timeout = Some(Duration::from_millis(200));
        let start = Instant::now();
        let failure = run(&command).unwrap_err();
        assert!(failure.message.contains("did not end within 0.2 s"), "{failure}");
        assert_eq!(failure.data["stdout"], "before\n");
        assert!(start.elapsed() < Duration::from_secs(1));
        thread::sleep(Duration::from_millis(1300));
        assert!(!mark.exists(), "the child of the killed shell went on");
    }

    #[test]
    fn a_daemon_that_keeps_the_pipes_is_not_awaited() {
        let start = Instant::now();
        let output = run(&sh("echo up; sleep 5 &")).unwrap();
        assert_eq!(output.stdout, b"up\n");
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn what_cannot_start_says_why() {
        let message = |command: &Command| run(command).unwrap_err().message;
        assert_eq!(
            message(&Command::new(["no-such-program-here"])),
            "cannot run 'no-such-program-here': no such program"
        );
        assert_eq!(message(&Command::new(Vec::<String>::new())), "the command is empty");
        assert!(message(&Command::new(["echo", "a\0b"])).contains("NUL"));
        assert!(message(&Command::new(["/etc/passwd"])).contains("permission denied"));
        let lost = Command { chdir: Some("/no/such/folder".into()), ..Command::new(["true"]) };
        assert!(message(&lost).contains("/no/such/folder does not exist"));
    }
}
