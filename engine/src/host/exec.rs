//! Running programs: no shell, a process group of its own, output read to the end.

use std::{
    io::{self, Read, Write as _},
    os::{
        fd::AsFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::{AccessFlags, Pid, access},
};

use super::{Command, Output};
use crate::modules::Failure;

/// Folders that are always searched, after those of the inherited PATH: a login without sbin must still find `ip`.
const STANDARD_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How long output is awaited after the program itself has ended: a daemon that it left behind may hold the pipes
/// open for ever.
const PIPE_GRACE: Duration = Duration::from_secs(1);

/// Between two looks whether a program has ended that says nothing, and whose pipes stay open; and whose pipes are closed.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_AT_CLOSED: Duration = Duration::from_millis(1);

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
    let mut child = spawn(program, command).map_err(|e| not_started(program, &e))?;
    let mut pipes = Pipes::of(&mut child, command.stdin.as_deref());
    let status = pipes.until_end(&mut child, command.timeout);
    let Pipes { out: stdout, err: stderr, .. } = pipes;
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

/// Starts the program. Where a name alone is to be searched, the standard library makes a copy of this process for that, which costs more
/// than most programs; so that it is searched here.
fn spawn(program: &str, command: &Command) -> io::Result<Child> {
    if let Some(path) = located(program, command) {
        match prepare(path.as_ref(), command).arg0(program).spawn() {
            // A script that does not say by whom it is to be read: whoever searches has the shell read it.
            Err(error) if error.raw_os_error() == Some(Errno::ENOEXEC as i32) => {}
            started => return started,
        }
    }
    prepare(program.as_ref(), command).spawn()
}

/// The first program of that name in the folders that the command searches; `None`: it is a path, or there is none.
fn located(program: &str, command: &Command) -> Option<PathBuf> {
    if program.contains('/') {
        return None;
    }
    let own = command.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    let folders = own.unwrap_or_else(search_path);
    // A folder that is not absolute is one of the place where the command runs.
    let mut folders = folders.split(':').map(Path::new).take_while(|folder| folder.is_absolute());
    let is_program = |path: &PathBuf| access(path, AccessFlags::X_OK).is_ok() && path.is_file();
    folders.find_map(|folder| Some(folder.join(program)).filter(is_program))
}

fn prepare(program: &Path, command: &Command) -> std::process::Command {
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

/// The three pipes to a program, and what went through them.
struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    /// What it has not taken yet.
    input: &'a [u8],
    stdout: Option<ChildStdout>,
    out: Vec<u8>,
    stderr: Option<ChildStderr>,
    err: Vec<u8>,
}

impl<'a> Pipes<'a> {
    fn of(child: &mut Child, input: Option<&'a [u8]>) -> Self {
        let stdin = child.stdin.take().filter(|pipe| {
            // Who cannot be asked to take no more than it can is not waited for.
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok()
        });
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Self { stdin, input: input.unwrap_or_default(), stdout, out: Vec::new(), stderr, err: Vec::new() }
    }

    /// Whether nothing can come out of it any more.
    fn are_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Until the program and its outputs have ended; `None` after the timeout.
    fn until_end(&mut self, child: &mut Child, timeout: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        let mut deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let (mut status, mut killed) = (None, false);
        loop {
            if status.is_none() {
                status =
                    if self.are_closed() && deadline.is_none() { Some(child.wait()?) } else { child.try_wait()? };
                if status.is_some() {
                    let grace = Instant::now() + PIPE_GRACE;
                    deadline = Some(deadline.filter(|_| !killed).map_or(grace, |d| d.min(grace)));
                }
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if status.is_some() && (self.are_closed() || left.is_some_and(|left| left.is_zero())) {
                return Ok(status.filter(|_| !killed));
            }
            if left.is_some_and(|left| left.is_zero()) {
                killed = true;
                // Gone already: its end is about to be told.
                let _ = killpg(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)), Signal::SIGKILL);
                deadline = None;
                continue;
            }
            self.step(left.unwrap_or(LOOK).min(LOOK))?;
        }
    }

    /// Moves what can be moved, and waits for it at most for so long.
    fn step(&mut self, patience: Duration) -> io::Result<()> {
        if self.are_closed() {
            thread::sleep(patience.min(LOOK_AT_CLOSED));
            return Ok(());
        }
        let mut asked: Vec<PollFd<'_>> = Vec::with_capacity(3);
        asked.extend(self.stdout.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        asked.extend(self.stderr.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        asked.extend(self.stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX).max(1);
        match poll(&mut asked, PollTimeout::from(millis)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = asked.iter().map(|one| one.any().unwrap_or(true)).collect::<Vec<_>>().into_iter();
        if self.stdout.is_some() && ready.next() == Some(true) {
            take(&mut self.stdout, &mut self.out);
        }
        if self.stderr.is_some() && ready.next() == Some(true) {
            take(&mut self.stderr, &mut self.err);
        }
        if self.stdin.is_some() && ready.next() == Some(true) {
            self.give();
        }
        Ok(())
    }

    /// A program may end without reading its input: a broken pipe is its business.
    fn give(&mut self) {
        let written = match self.stdin.as_mut().map(|pipe| pipe.write(self.input)) {
            Some(Ok(written)) => written,
            Some(Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return;
            }
            _ => self.input.len(),
        };
        self.input = &self.input[written..];
        if self.input.is_empty() {
            self.stdin = None;
        }
    }
}

/// Takes what is there; a pipe that has come to its end is dropped.
fn take(pipe: &mut Option<impl Read>, all: &mut Vec<u8>) {
    let mut chunk = [0; 16 * 1024];
    match pipe.as_mut().map(|pipe| pipe.read(&mut chunk)) {
        Some(Ok(length @ 1..)) => all.extend_from_slice(&chunk[..length]),
        Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
        _ => *pipe = None,
    }
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
    fn names_are_searched_as_a_shell_does() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let write = |at: &str, text: &str, mode: u32| {
            let path = folder.path().join(at);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("a/one", "#!/bin/sh\necho not executable", 0o644);
        std::fs::create_dir_all(folder.path().join("a/two")).unwrap();
        write("b/one", "#!/bin/sh\necho one \"$0\"", 0o755);
        write("b/two", "echo two: it names no interpreter", 0o755);
        let said = |program: &str| {
            let mut command = Command::new([program]);
            let at = folder.path().display();
            command.env.push(("PATH".into(), format!("{at}/a:{at}/b:/usr/bin:/bin")));
            String::from_utf8(run(&command).unwrap().stdout).unwrap()
        };
        assert!(said("one").starts_with("one /") && said("one").ends_with("/b/one\n"), "{}", said("one"));
        assert_eq!(said("two"), "two: it names no interpreter\n");
        // It is called by the name that was asked for.
        assert_eq!(run(&Command::new(["sh", "-c", "echo $0"])).unwrap().stdout, b"sh\n");
    }

    #[test]
    fn a_program_that_closes_its_outputs_is_awaited_all_the_same() {
        let mut command = sh("exec > /dev/null 2>&1; sleep 0.3; exit 4");
        assert_eq!(run(&command).unwrap().code, 4);
        command.timeout = Some(Duration::from_secs(5));
        assert_eq!(run(&command).unwrap().code, 4);
        command.timeout = Some(Duration::from_millis(50));
        assert!(run(&command).unwrap_err().message.contains("was killed"));
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
