//! Hosts that cannot be reached, or are not what they seem.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::sshd::{Sshd, free_port, keep, server};
use crate::ssh::{ConnectError, Stage, Transport};

fn transport(sshd: &Sshd, limit: Duration) -> Transport {
    sshd.trust("ed25519");
    let mut settings = sshd.settings();
    settings.connect_timeout = limit;
    Transport::new(settings).expect("good settings")
}

#[tokio::test]
async fn a_refused_port_is_unreachable() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.port = free_port();
    let error = transport(&sshd, Duration::from_secs(5)).connect(&target).await.expect_err("refused");
    assert!(matches!(&error, ConnectError::Unreachable { stage: Stage::Tcp, .. }), "{error:?}");
    assert!(error.to_string().starts_with(&format!("cannot reach 127.0.0.1:{} (TCP connect): ", target.port)));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_unreachable() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.host = "no-such-host.invalid".to_owned();
    let error = transport(&sshd, Duration::from_secs(5)).connect(&target).await.expect_err("no such name");
    assert!(
        matches!(
            &error,
            ConnectError::Unreachable { stage: Stage::Resolve, .. }
                | ConnectError::Timeout { stage: Stage::Resolve, .. }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_silent_port_times_out_and_names_the_stage() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.port = server("", keep());
    let start = Instant::now();
    let error = transport(&sshd, Duration::from_millis(500)).connect(&target).await.expect_err("silent");
    assert!(matches!(&error, ConnectError::Timeout { stage: Stage::KeyExchange, .. }), "{error:?}");
    assert!(error.to_string().contains("did not answer within 0.5 s (SSH greeting and key exchange)"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_host_that_closes_at_once() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.port = server("", drop);
    let error = transport(&sshd, Duration::from_secs(5)).connect(&target).await.expect_err("closed");
    assert!(matches!(&error, ConnectError::Protocol { .. }), "{error:?}");
    let greeting_only = server("SSH-2.0-x\r\n", drop);
    target.port = greeting_only;
    let error = transport(&sshd, Duration::from_secs(5)).connect(&target).await.expect_err("closed");
    assert!(matches!(&error, ConnectError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_no_ssh_server() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    for greeting in
        ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-1.5-old\r\n", "SSH-2.0-x\r\ngarbage garbage garbage garbage"]
    {
        target.port = server(greeting, drop);
        let error = transport(&sshd, Duration::from_secs(2)).connect(&target).await.expect_err(greeting);
        assert!(
            matches!(&error, ConnectError::Protocol { .. } | ConnectError::Timeout { .. }),
            "{greeting}: {error:?}"
        );
    }
}

/// Passes bytes on in both directions.
fn relay(to: u16) -> impl Fn(TcpStream) + Send + 'static {
    move |near| {
        let far = TcpStream::connect(("127.0.0.1", to)).expect("connected");
        for (mut from, mut to) in [(near.try_clone().expect("cloned"), far.try_clone().expect("cloned")), (far, near)] {
            std::thread::spawn(move || {
                let mut buffer = [0u8; 4096];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    }
}

#[tokio::test]
async fn lines_before_the_greeting_and_a_banner_are_passed_over() {
    let sshd = Sshd::with(&["ed25519"], "Banner /etc/passwd");
    sshd.known_hosts(&format!("127.0.0.1 {}\n", sshd.host_key("ed25519")));
    let mut target = sshd.target();
    target.port = server("Welcome to the lab\r\nauthorised use only\r\n", relay(sshd.port));
    let transport = Transport::new(sshd.settings()).expect("good settings");
    transport.connect(&target).await.expect("connected");
}

#[tokio::test]
async fn a_login_shell_that_is_none() {
    let sshd = Sshd::with(&["ed25519"], "ForceCommand echo go away; exit 3");
    let session = sshd.transport().connect(&sshd.target()).await.expect("connected");
    let (out, _, exit) = session.exec("true").await.expect("started").collect(100).await;
    assert_eq!((out.as_slice(), exit), (&b"go away\n"[..], crate::ssh::Exit::Code(3)));
}
