//! The agent on a host: found, pushed, refused. Fake agents are scripts; the hosts' programs are
//! replaced where they must fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::sshd::{Sshd, run, script_file, text};
use crate::ssh::agents::hash_file;
use crate::ssh::{
    AgentBinary, AgentError, Agents, Elevation, Exit, RunningAgent, Secret, Session, SudoError, find_agents,
    start_agent, start_agent_with,
};

/// Says its arguments, then echoes its stdin.
const ECHO: &str = "#!/bin/sh\ncase $1 in --version) echo 0.1;; *) echo \"args: $*\"; cat; exit 4;; esac\n";

fn arch() -> String {
    run("uname", &["-m"]).trim().to_owned()
}

fn agent(sshd: &Sshd, script: &str, arch: &str) -> AgentBinary {
    let path = sshd.path("agent-here");
    script_file(&path, script);
    AgentBinary { arch: arch.to_owned(), hash: hash_file(&path).expect("read"), path }
}

fn folder(sshd: &Sshd) -> PathBuf {
    sshd.path("lib/rollcall")
}

fn agents(sshd: &Sshd, script: &str) -> Agents {
    Agents::new(vec![agent(sshd, script, &arch())]).in_folder(text(&folder(sshd)))
}

/// sudo that runs the command as it is: the tests may run as anybody.
const SUDO: &str = "#!/bin/sh\nwhile test $# -gt 0; do case $1 in --) shift; exec \"$@\";; esac; shift; done\n";
const NO_PASSWORD: Elevation = Elevation::Sudo { password: None };

fn password(text: &str) -> Elevation {
    Elevation::Sudo { password: Some(Secret::new(text)) }
}

/// An sshd with a sudo, and a session in it.
async fn session(sudo: &str) -> (Sshd, Session) {
    let sshd = Sshd::start();
    sshd.program("sudo", sudo);
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    (sshd, session)
}

async fn echo(mut agent: RunningAgent, send: &str) -> (String, Exit) {
    agent.channel.stdin.write_all(send.as_bytes()).await.expect("sent");
    agent.channel.stdin.shutdown().await.expect("ended");
    let mut out = String::new();
    agent.channel.stdout.read_to_string(&mut out).await.expect("read");
    (out, agent.channel.exit().await)
}

fn installed(sshd: &Sshd) -> Vec<String> {
    let entries = fs::read_dir(folder(sshd)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn pushed_once_in_two_sessions_and_then_started_in_one() {
    let (sshd, session) = session(SUDO).await;
    let agents = agents(&sshd, ECHO);
    let first = start_agent(&session, &agents, &NO_PASSWORD, &["exec", "it's $HOME"]).await.expect("started");
    assert!(first.pushed);
    assert_eq!(echo(first, "hello").await, ("args: exec it's $HOME\nhello".to_owned(), Exit::Code(4)));
    assert_eq!(sshd.sessions(), 2, "{}", sshd.log());
    assert_eq!(installed(&sshd), [format!("agent-{}", agents.binaries()[0].hash)]);
    let mode = run("stat", &["-c", "%a %a", text(&folder(&sshd))]);
    assert_eq!(mode.trim(), "755 755");
    let again = start_agent(&session, &agents, &NO_PASSWORD, &["exec"]).await.expect("started");
    assert!(!again.pushed);
    assert_eq!(echo(again, "x").await.0, "args: exec\nx");
    assert_eq!(sshd.sessions(), 3);
}

#[tokio::test]
async fn first_bytes_travel_with_the_command_and_survive_a_push() {
    let (sshd, session) = session(SUDO).await;
    let agents = agents(&sshd, ECHO);
    for pushed in [true, false] {
        let agent = start_agent_with(&session, &agents, &NO_PASSWORD, &["exec"], b"one ").await.expect("started");
        assert_eq!(agent.pushed, pushed);
        assert_eq!(echo(agent, "two").await.0, "args: exec\none two");
    }
}

#[tokio::test]
async fn a_large_agent_by_every_codec() {
    // Not compressible, so that it fills every window on the way.
    let mut noise = String::from(ECHO) + "exit\n# ";
    let mut state = 1u64;
    for _ in 0..3_000_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.push(char::from(b'0' + (state >> 59) as u8));
    }
    for missing in [&["zstd", "gzip"][..], &["zstd", "openssl"], &[]] {
        let (sshd, session) = session(SUDO).await;
        // Behind sudo only these are there.
        let tools = sshd.path("tools");
        fs::create_dir(&tools).expect("made");
        for tool in [
            "sh",
            "env",
            "uname",
            "id",
            "head",
            "cat",
            "mkdir",
            "chmod",
            "chown",
            "rm",
            "mv",
            "ls",
            "sync",
            "sha256sum",
            "openssl",
            "gzip",
            "zstd",
        ] {
            if !missing.contains(&tool)
                && let Ok(path) = which(tool)
            {
                std::os::unix::fs::symlink(path, tools.join(tool)).expect("linked");
            }
        }
        sshd.program("sudo", &format!("#!/bin/sh\nPATH={}\n{}", tools.display(), &SUDO[10..]));
        let agents = agents(&sshd, &noise);
        let agent = start_agent(&session, &agents, &NO_PASSWORD, &["exec"]).await;
        let agent = agent.unwrap_or_else(|error| panic!("without {missing:?}: {error}"));
        assert!(agent.pushed);
        // The agent itself needs cat, which the narrow PATH has.
        assert_eq!(echo(agent, "x").await.0, "args: exec\nx", "without {missing:?}");
    }
}

fn which(tool: &str) -> Result<PathBuf, ()> {
    ["/usr/bin", "/bin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(tool))
        .find(|path| path.exists())
        .ok_or(())
}

#[tokio::test]
async fn login_scripts_that_print_do_no_harm() {
    let (sshd, session) =
        session(&format!("#!/bin/sh\necho 'welcome to sudo'\necho 'lecture' >&2\n{}", &SUDO[10..])).await;
    let agents = agents(&sshd, ECHO);
    for _ in 0..2 {
        let agent = start_agent(&session, &agents, &NO_PASSWORD, &["exec"]).await.expect("started");
        assert_eq!(echo(agent, "x").await.0, "args: exec\nx");
    }
}

#[tokio::test]
async fn an_architecture_without_an_agent_is_named_before_anything_changes() {
    let (sshd, session) = session(SUDO).await;
    sshd.program("uname", "#!/bin/sh\ncase $1 in -sm) echo Linux riscv64;; *) echo riscv64;; esac\n");
    for agents in [
        agents(&sshd, ECHO),
        Agents::new(vec![agent(&sshd, ECHO, "x86_64"), agent(&sshd, ECHO, "aarch64")]).in_folder(text(&folder(&sshd))),
    ] {
        let error = start_agent(&session, &agents, &NO_PASSWORD, &[]).await.expect_err("no agent").to_string();
        assert!(error.contains("web1 is Linux on riscv64"), "{error}");
        assert!(error.contains("agent-riscv64-linux"), "{error}");
        assert!(!folder(&sshd).exists());
    }
}

/// Fails the push and gives its error, having checked that nothing was left behind.
async fn refused(sshd: &Sshd, session: &Session, agents: &Agents) -> String {
    let error = start_agent(session, agents, &NO_PASSWORD, &["exec"]).await.expect_err("refused");
    assert!(matches!(error, AgentError::Install { .. }), "{error:?}");
    assert_eq!(installed(sshd), Vec::<String>::new(), "nothing is left behind");
    error.to_string()
}

#[tokio::test]
async fn a_disk_that_is_full() {
    let (sshd, session) = session(SUDO).await;
    for tool in ["gzip", "zstd"] {
        sshd.program(tool, "#!/bin/sh\nhead -c 10\necho 'write error: No space left on device' >&2\nexit 1\n");
    }
    let error = refused(&sshd, &session, &agents(&sshd, ECHO)).await;
    assert!(error.contains("it cannot be written\n    write error: No space left on device"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made() {
    let (sshd, session) = session(SUDO).await;
    sshd.program("mkdir", "#!/bin/sh\necho 'mkdir: cannot create directory: Read-only file system' >&2\nexit 1\n");
    let error = refused(&sshd, &session, &agents(&sshd, ECHO)).await;
    assert!(error.contains("the folder cannot be made") && error.contains("Read-only file system"), "{error}");
}

#[tokio::test]
async fn a_file_where_the_folder_should_be() {
    let (sshd, session) = session(SUDO).await;
    fs::create_dir_all(sshd.path("lib")).expect("made");
    fs::write(folder(&sshd), "in the way").expect("written");
    let error = refused(&sshd, &session, &agents(&sshd, ECHO)).await;
    assert!(error.contains("the folder cannot be made") && error.contains("File exists"), "{error}");
    assert_eq!(fs::read_to_string(folder(&sshd)).expect("read"), "in the way");
}

#[tokio::test]
async fn bytes_that_change_on_the_way() {
    let (sshd, session) = session(SUDO).await;
    for tool in ["gzip", "zstd"] {
        sshd.program(tool, "#!/bin/sh\ncat >/dev/null\necho something else\n");
    }
    let error = refused(&sshd, &session, &agents(&sshd, ECHO)).await;
    assert!(error.contains("what arrived is not what was sent"), "{error}");
}

#[tokio::test]
async fn an_agent_that_cannot_run_there() {
    let (sshd, session) = session(SUDO).await;
    let script = "#!/bin/sh\necho \"agent: /lib/libc.so.6: version GLIBC_2.34 not found\" >&2\nexit 1\n";
    let error = refused(&sshd, &session, &agents(&sshd, script)).await;
    assert!(error.contains("it cannot run there") && error.contains("GLIBC_2.34 not found"), "{error}");
    let error = refused(&sshd, &session, &agents(&sshd, "#!/no/such/interpreter\n")).await;
    assert!(error.contains("it cannot run there"), "{error}");
}

#[tokio::test]
async fn an_upload_that_is_cut_leaves_nothing_under_the_final_name() {
    let (sshd, session) = session(SUDO).await;
    let agents = agents(&sshd, ECHO);
    // A decompressor that never ends: the upload hangs in the middle.
    for tool in ["gzip", "zstd"] {
        sshd.program(tool, "#!/bin/sh\nhead -c 10\nexec sleep 2\n");
    }
    let appears = async {
        while installed(&sshd).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = start_agent(&session, &agents, &NO_PASSWORD, &["exec"]) => panic!("it should hang: {done:?}"),
        () = appears => {}
    }
    assert_eq!(installed(&sshd).len(), 1, "the file under its temporary name");
    assert!(installed(&sshd)[0].starts_with(".agent-"));
    session.close().await;
    let gone = std::time::Instant::now();
    while !installed(&sshd).is_empty() {
        assert!(gone.elapsed() < Duration::from_secs(10), "{:?}", installed(&sshd));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn old_agents_and_abandoned_files_are_pruned() {
    let (sshd, session) = session(SUDO).await;
    fs::create_dir_all(folder(&sshd)).expect("made");
    for (name, age) in [("agent-1", 4), ("agent-2", 3), ("agent-3", 2), ("agent-4", 1), ("notes", 9)] {
        let path = folder(&sshd).join(name);
        fs::write(&path, "").expect("written");
        run("touch", &["-d", &format!("{age} hours ago"), text(&path)]);
    }
    // Of a process that is gone, and of one that lives.
    fs::write(folder(&sshd).join(".agent-x.4194399"), "").expect("written");
    let living = format!(".agent-x.{}", std::process::id());
    fs::write(folder(&sshd).join(&living), "").expect("written");
    let agents = agents(&sshd, ECHO);
    start_agent(&session, &agents, &NO_PASSWORD, &["exec"]).await.expect("started");
    let mut expected = vec![
        living,
        "agent-3".into(),
        "agent-4".into(),
        format!("agent-{}", agents.binaries()[0].hash),
        "notes".into(),
    ];
    expected.sort();
    assert_eq!(installed(&sshd), expected);
}

/// sudo that asks as sudo does: prompt on stderr, one line of stdin, three attempts.
const ASKING: &str = "#!/bin/sh\nP=\nwhile test $# -gt 0; do case $1 in -n) echo 'sudo: a password is required' >&2; exit 1;; \
    -p) P=$2; shift;; --) shift; break;; esac; shift; done\n\
    for try in 1 2 3; do printf %s \"$P\" >&2; read -r answer || { echo 'sudo: no password was provided' >&2; exit 1; }\n\
    test \"$answer\" = 'p w\\d' && exec \"$@\"; echo 'Sorry, try again.' >&2; done\n\
    echo 'sudo: 3 incorrect password attempts' >&2; exit 1\n";

#[tokio::test]
async fn a_sudo_password_goes_through_stdin_before_the_protocol() {
    let (sshd, session) = session(ASKING).await;
    let agents = agents(&sshd, ECHO);
    for pushed in [true, false] {
        let started = start_agent_with(&session, &agents, &password(r"p w\d"), &["exec"], b"one ").await;
        let agent = started.expect("started");
        assert_eq!(agent.pushed, pushed);
        assert_eq!(echo(agent, "two").await.0, "args: exec\none two");
    }
    assert!(!sshd.log().contains(r"p w\d"));
}

#[tokio::test]
async fn a_password_that_sudo_does_not_ask_for_stays_here() {
    let (sshd, session) = session(SUDO).await;
    let agents = agents(&sshd, ECHO);
    for _ in 0..2 {
        let agent = start_agent(&session, &agents, &password("secret"), &["exec"]).await.expect("started");
        assert_eq!(echo(agent, "x").await.0, "args: exec\nx");
    }
}

#[tokio::test]
async fn sudo_that_refuses() {
    let says = |text: &str| format!("#!/bin/sh\necho '{text}' >&2\nexit 1\n");
    for (sudo, elevation, expected) in [
        (ASKING.to_owned(), password("wrong"), SudoError::WrongPassword),
        (ASKING.to_owned(), NO_PASSWORD, SudoError::PasswordNeeded),
        (says("web is not in the sudoers file."), NO_PASSWORD, SudoError::NotAllowed),
        (says("sudo: sorry, you must have a tty to run sudo"), NO_PASSWORD, SudoError::TtyRequired),
        (says("web is not in the sudoers file."), password("x"), SudoError::NotAllowed),
    ] {
        let (sshd, session) = session(&sudo).await;
        let error = start_agent(&session, &agents(&sshd, ECHO), &elevation, &[]).await.expect_err("refused");
        assert!(matches!(&error, AgentError::Sudo { source, .. } if *source == expected), "{error:?}");
        assert!(!folder(&sshd).exists());
    }
}

#[tokio::test]
async fn a_host_without_sudo() {
    let sshd = Sshd::start();
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    sshd.program("env", "#!/bin/sh\necho \"env: 'sudo': No such file or directory\" >&2\nexit 127\n");
    let error = start_agent(&session, &agents(&sshd, ECHO), &NO_PASSWORD, &[]).await.expect_err("no sudo");
    assert!(matches!(&error, AgentError::Sudo { source: SudoError::Missing, .. }), "{error:?}");
}

#[tokio::test]
async fn without_elevation_root_installs_all_the_same() {
    let (sshd, session) = session(SUDO).await;
    sshd.program("id", "#!/bin/sh\necho 1000\n");
    let agents = agents(&sshd, ECHO);
    for pushed in [true, false] {
        let agent = start_agent(&session, &agents, &Elevation::None, &["exec", "a b"]).await.expect("started");
        assert_eq!(agent.pushed, pushed);
        assert_eq!(echo(agent, "x").await.0, "args: exec a b\nx");
    }
    sshd.program("sudo", "#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n");
    let other = Agents::new(vec![agent(&sshd, &format!("{ECHO}# other\n"), &arch())]).in_folder(text(&folder(&sshd)));
    let error = start_agent(&session, &other, &Elevation::None, &[]).await.expect_err("no root");
    assert!(
        matches!(&error, AgentError::Sudo { installing: true, source: SudoError::PasswordNeeded, .. }),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "web1: cannot become root to install the agent");
}

#[tokio::test]
async fn a_host_that_runs_something_else_instead() {
    let sshd = Sshd::with(&["ed25519"], "ForceCommand echo no; echo go away >&2; exit 3");
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    let error = start_agent(&session, &agents(&sshd, ECHO), &Elevation::None, &[]).await.expect_err("refused");
    assert!(matches!(&error, AgentError::NotStarted { exit: Exit::Code(3), .. }), "{error:?}");
    assert!(error.to_string().contains("go away"), "{error}");
}

#[test]
fn agents_are_found_by_name_and_header() {
    let dir = tempfile::tempdir().expect("a folder");
    let elf = |machine: u8| {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
        bytes.extend([machine, 0, 0, 0]);
        bytes
    };
    let dirs = [dir.path().join("absent"), dir.path().to_owned()];
    let error = find_agents(&dirs, None).expect_err("none").to_string();
    assert!(error.contains("no agent found in") && error.contains("agent-ARCH-linux"), "{error}");
    fs::write(dir.path().join("agent"), elf(62)).expect("written");
    fs::write(dir.path().join("agent-aarch64-linux"), elf(183)).expect("written");
    fs::write(dir.path().join("agent.d"), "not ours").expect("written");
    let found = find_agents(&dirs, None).expect("two");
    let mut arches: Vec<&str> = found.binaries().iter().map(|agent| agent.arch.as_str()).collect();
    arches.sort_unstable();
    assert_eq!(arches, ["aarch64", "x86_64"]);
    let sum = run("sha256sum", &[text(&dir.path().join("agent"))]);
    assert!(found.binaries().iter().any(|agent| sum.starts_with(&agent.hash)));
    fs::write(dir.path().join("agent-x86_64-linux"), elf(183)).expect("written");
    let error = find_agents(&dirs, None).expect_err("misnamed").to_string();
    assert!(error.contains("named for x86_64 and built for aarch64"), "{error}");
    fs::write(dir.path().join("agent-x86_64-linux"), "#!/bin/sh\n").expect("written");
    let error = find_agents(&dirs, None).expect_err("no program").to_string();
    assert!(error.contains("not a Linux program"), "{error}");
}
