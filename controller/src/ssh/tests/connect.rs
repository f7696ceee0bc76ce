//! Commands and their streams.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::sshd::Sshd;
use crate::ssh::{Exit, Session, SshError, Transport};

#[tokio::test]
async fn output_errors_and_exit_codes() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let session = transport.connect(&sshd.target()).await.expect("connected");
    assert_eq!(session.host_key_fingerprint(), super::sshd::fingerprint(&sshd.path("host_ed25519")));
    let channel = session.exec("echo out; echo err >&2; exit 7").await.expect("started");
    let (out, err, exit) = channel.collect(1024).await;
    assert_eq!((out.as_slice(), err.as_slice(), exit), (&b"out\n"[..], &b"err\n"[..], Exit::Code(7)));
    let channel = session.exec("kill -TERM $$").await.expect("started");
    let (_, _, exit) = channel.collect(1024).await;
    assert!(matches!(&exit, Exit::Signal { name, .. } if name == "TERM"), "{exit:?}");
    assert_eq!(exit.to_string(), "killed by signal TERM");
    session.close().await;
}

#[tokio::test]
async fn megabytes_travel_both_ways() {
    let sshd = Sshd::start();
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    let mut channel = session.exec("cat").await.expect("started");
    let sent: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut received = Vec::new();
    let (stdin, stdout) = (&mut channel.stdin, &mut channel.stdout);
    let writing = async {
        stdin.write_all(&sent).await.expect("written");
        stdin.shutdown().await.expect("ended");
    };
    let ((), read) = tokio::join!(writing, stdout.read_to_end(&mut received));
    assert_eq!(read.expect("read"), sent.len());
    assert!(received == sent);
    assert_eq!(channel.exit().await, Exit::Code(0));
}

#[tokio::test]
async fn stderr_that_nobody_reads_does_not_stop_stdout() {
    let sshd = Sshd::start();
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    let mut channel = session.exec("head -c 8000000 /dev/zero >&2; echo done").await.expect("started");
    let mut out = String::new();
    let read = tokio::time::timeout(Duration::from_secs(20), channel.stdout.read_to_string(&mut out));
    read.await.expect("in time").expect("read");
    assert_eq!(out, "done\n");
    let mut err = Vec::new();
    channel.stderr.read_to_end(&mut err).await.expect("read");
    assert!((1 << 20..(1 << 20) + 200_000).contains(&err.len()), "{} bytes kept", err.len());
}

#[tokio::test]
async fn forty_at_once_share_keys_and_files() {
    let sshd = Sshd::start();
    let transport = std::sync::Arc::new(sshd.transport());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (transport, target) = (transport.clone(), sshd.target());
        tasks.spawn(async move {
            let session = transport.connect(&target).await.expect("connected");
            session.exec("true").await.expect("started").collect(0).await.2
        });
    }
    let ends = tasks.join_all().await;
    assert_eq!(ends.len(), 40);
    assert!(ends.iter().all(|exit| *exit == Exit::Code(0)));
}

#[tokio::test]
async fn the_exchange_is_ours_or_the_users() {
    let sshd = Sshd::with(&["ed25519"], "LogLevel DEBUG1");
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    drop(session);
    assert!(sshd.log().contains("kex: algorithm: curve25519-sha256 [preauth]"), "{}", sshd.log());
    let mut settings = sshd.settings();
    settings.kex = Some(vec!["ecdh-sha2-nistp384".to_owned()]);
    Transport::new(settings).expect("good").connect(&sshd.target()).await.expect("connected");
    assert!(sshd.log().contains("kex: algorithm: ecdh-sha2-nistp384"), "{}", sshd.log());
}

#[tokio::test]
async fn an_exchange_that_the_host_lacks_is_named() {
    let sshd = Sshd::with(&["ed25519"], "KexAlgorithms diffie-hellman-group14-sha256");
    sshd.trust("ed25519");
    let mut settings = sshd.settings();
    settings.kex = Some(vec!["mlkem768x25519-sha256".to_owned()]);
    let transport = Transport::new(settings).expect("good");
    let error = transport.connect(&sshd.target()).await.expect_err("nothing in common").to_string();
    assert!(error.contains("no common Kex algorithm; ours: mlkem768x25519-sha256"), "{error}");
    assert!(error.contains("diffie-hellman-group14-sha256"), "{error}");
}

/// The session processes of an sshd, which its listener has started.
fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn signal_children(pid: u32, name: &str) {
    let mut all = children(pid);
    for pid in all.clone() {
        all.extend(children(pid));
    }
    for pid in all {
        let _ = std::process::Command::new("kill").args([name, &pid.to_string()]).output();
    }
}

const SILENT: &str = "the host stopped answering (keepalive)";

/// A session that probes twice a second.
async fn probing(sshd: &Sshd) -> Session {
    sshd.trust("ed25519");
    let mut settings = sshd.settings();
    settings.keepalive = Duration::from_millis(500);
    settings.connect_timeout = Duration::from_secs(5);
    Transport::new(settings).expect("good").connect(&sshd.target()).await.expect("connected")
}

#[tokio::test]
async fn a_host_that_falls_silent_is_noticed() {
    let sshd = Sshd::start();
    let session = probing(&sshd).await;
    let mut channel = session.exec("sleep 60").await.expect("started");
    signal_children(sshd.pid(), "-STOP");
    let exit = tokio::time::timeout(Duration::from_secs(20), channel.exit()).await.expect("noticed");
    assert_eq!(exit, Exit::Lost(SILENT.to_owned()));
    let error = session.exec("true").await.expect_err("gone");
    assert!(matches!(&error, SshError::Lost { .. }), "{error}");
    signal_children(sshd.pid(), "-CONT");
}

/// Nothing is read, and no clock looked at, while something is written.
#[tokio::test]
async fn a_host_that_falls_silent_while_it_is_sent_to_is_noticed() {
    let sshd = Sshd::start();
    let session = probing(&sshd).await;
    // Many commands, since each one's window is smaller than what the way to the host holds.
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(session.exec("cat > /dev/null").await.expect("started"));
    }
    signal_children(sshd.pid(), "-STOP");
    let mut ends = tokio::task::JoinSet::new();
    for channel in channels {
        let mut exit = channel.exit_handle();
        let mut stdin = channel.stdin;
        // Who writes waits for room, also when there is none to come: the end is told by the exit.
        tokio::spawn(async move { stdin.write_all(&vec![b'x'; 2 << 20]).await });
        ends.spawn(async move { tokio::time::timeout(Duration::from_secs(20), exit.wait()).await.expect("noticed") });
    }
    let ends = ends.join_all().await;
    assert!(ends.iter().all(|end| *end == Exit::Lost(SILENT.to_owned())), "{ends:?}");
    signal_children(sshd.pid(), "-CONT");
}

#[tokio::test]
async fn a_host_without_further_sessions_says_so() {
    let sshd = Sshd::with(&["ed25519"], "MaxSessions 1");
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    let first = session.exec("sleep 60").await.expect("started");
    let error = session.exec("true").await.expect_err("only one").to_string();
    assert!(error.contains("web1: the host opens no further channel"), "{error}");
    drop(first);
}
