//! Through jump hosts.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::sshd::{Sshd, free_port, user};
use crate::ssh::{ConnectError, Exit, Hop, Target, Transport};

fn hop(sshd: &Sshd) -> Hop {
    Hop { user: Some(user()), host: "127.0.0.1".to_owned(), port: Some(sshd.port), identity_file: None }
}

/// A transport that trusts all of these, let into all of them by the first one's key.
fn transport(all: &[&Sshd]) -> Transport {
    let entries: Vec<String> =
        all.iter().map(|sshd| format!("[127.0.0.1]:{} {}\n", sshd.port, sshd.host_key("ed25519"))).collect();
    all[0].known_hosts(&entries.concat());
    for sshd in &all[1..] {
        sshd.authorize(&all[0].path("user_ed25519"));
    }
    Transport::new(all[0].settings()).expect("good settings")
}

#[tokio::test]
async fn a_bastions_connection_is_opened_once_and_shared() {
    let (bastion, host) = (Sshd::start(), Sshd::start());
    let transport = Arc::new(transport(&[&bastion, &host]));
    let target = Target { jumps: vec![hop(&bastion)], ..host.target() };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (transport, target) = (transport.clone(), target.clone());
        tasks.spawn(async move {
            let session = transport.connect(&target).await.expect("connected");
            session.exec("exit 5").await.expect("started").collect(0).await.2
        });
    }
    assert!(tasks.join_all().await.iter().all(|exit| *exit == Exit::Code(5)));
    assert_eq!(bastion.log().matches("Accepted publickey").count(), 1, "{}", bastion.log());
    assert_eq!(host.log().matches("Accepted publickey").count(), 8);
    assert_eq!(bastion.sessions(), 0, "no command runs on the bastion");
}

#[tokio::test]
async fn a_chain_of_two() {
    let (a, b, host) = (Sshd::start(), Sshd::start(), Sshd::start());
    let transport = transport(&[&a, &b, &host]);
    let target = Target { jumps: vec![hop(&a), hop(&b)], ..host.target() };
    let session = transport.connect(&target).await.expect("connected");
    let (out, _, _) = session.exec("echo $SSH_CONNECTION").await.expect("started").collect(100).await;
    assert!(String::from_utf8_lossy(&out).contains(&format!("127.0.0.1 {}", host.port)));
    assert!(a.log().contains("Accepted publickey") && b.log().contains("Accepted publickey"));
}

#[tokio::test]
async fn a_new_connection_replaces_a_bastions_dead_one() {
    let (bastion, host) = (Sshd::start(), Sshd::start());
    let transport = transport(&[&bastion, &host]);
    let target = Target { jumps: vec![hop(&bastion)], ..host.target() };
    let session = transport.connect(&target).await.expect("connected");
    let pid = bastion.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("read");
    for child in children.split_whitespace() {
        super::sshd::run("kill", &[child]);
    }
    // The end may be noticed before the command goes out.
    if let Ok(mut channel) = session.exec("sleep 60").await {
        assert!(matches!(channel.exit().await, Exit::Lost(_)));
    }
    transport.connect(&target).await.expect("connected anew");
}

#[tokio::test]
async fn every_hops_host_key_is_checked() {
    let (bastion, host) = (Sshd::start(), Sshd::start());
    bastion.trust("ed25519");
    let transport = Transport::new(bastion.settings()).expect("good settings");
    let through = Target { jumps: vec![hop(&bastion)], ..host.target() };
    let error = transport.connect(&through).await.expect_err("the host is unknown");
    assert!(matches!(error, ConnectError::HostKeyUnknown { .. }), "{error}");
    let unknown_hop = Target { jumps: vec![hop(&host)], ..bastion.target() };
    let error = transport.connect(&unknown_hop).await.expect_err("the hop is unknown");
    assert!(error.is_host_key(), "{error}");
    let ConnectError::Jump { hop, source } = &error else { panic!("{error:?}") };
    assert!(hop.contains(&host.port.to_string()));
    assert!(matches!(**source, ConnectError::HostKeyUnknown { .. }), "{source}");
}

#[tokio::test]
async fn a_bastion_that_is_down_or_does_not_forward() {
    let (bastion, host) = (Sshd::with(&["ed25519"], "AllowTcpForwarding no"), Sshd::start());
    let transport = transport(&[&bastion, &host]);
    let target = Target { jumps: vec![hop(&bastion)], ..host.target() };
    let error = transport.connect(&target).await.expect_err("forbidden").to_string();
    assert!(error.contains("from jump host") && error.contains("AllowTcpForwarding"), "{error}");
    let down = Hop { port: Some(free_port()), ..hop(&bastion) };
    let target = Target { jumps: vec![down.clone()], ..host.target() };
    let error = transport.connect(&target).await.expect_err("down");
    assert_eq!(error.to_string(), format!("jump host {down}"));
    let ConnectError::Jump { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, ConnectError::Unreachable { .. }), "{source}");
}

#[tokio::test]
async fn a_host_that_the_bastion_cannot_reach() {
    let bastion = Sshd::start();
    let transport = transport(&[&bastion]);
    let target = Target { jumps: vec![hop(&bastion)], port: free_port(), ..bastion.target() };
    let error = transport.connect(&target).await.expect_err("refused there").to_string();
    assert!(error.contains("no connection from there"), "{error}");
}

#[tokio::test]
async fn jumps_from_the_ssh_configuration() {
    let (bastion, host) = (Sshd::start(), Sshd::start());
    host.authorize(&bastion.path("user_ed25519"));
    let config = bastion.path("ssh_config");
    std::fs::write(
        &config,
        format!(
            "Host web*\n  HostName 127.0.0.1\n  Port {}\n  ProxyJump gate\n  UserKnownHostsFile {known}\n\
         Host gate\n  HostName 127.0.0.1\n  Port {}\n  UserKnownHostsFile {known}\n\
         Host *\n  IdentityFile {}\n",
            host.port,
            bastion.port,
            bastion.path("user_ed25519").display(),
            known = bastion.path("known").display(),
        ),
    )
    .expect("written");
    std::fs::write(
        bastion.path("known"),
        format!(
            "[127.0.0.1]:{} {}\n[127.0.0.1]:{} {}\n",
            bastion.port,
            bastion.host_key("ed25519"),
            host.port,
            host.host_key("ed25519")
        ),
    )
    .expect("written");
    let mut settings = bastion.settings();
    settings.identity_files.clear();
    settings.ssh_config = Some(config);
    let transport = Transport::new(settings).expect("good settings");
    let target = transport.target(&crate::ssh::TargetSpec { name: "web1".into(), ..Default::default() });
    transport.connect(&target.expect("a target")).await.expect("connected");
    assert_eq!(bastion.log().matches("Accepted publickey").count(), 1);
}

/// The jump host's connection must not wait for that of a host behind it: all that pass through it would stand still, for ever where
/// that host's connection waits for it to take what it writes.
#[tokio::test]
async fn a_host_that_is_not_listened_to_blocks_nobody() {
    let (bastion, talker, host) = (Sshd::start(), Sshd::start(), Sshd::start());
    let transport = transport(&[&bastion, &talker, &host]);
    let through = |sshd: &Sshd| Target { jumps: vec![hop(&bastion)], ..sshd.target() };
    let session = transport.connect(&through(&talker)).await.expect("connected");
    // In small pieces, so that many wait.
    let talk = "i=0; while [ $i -lt 500000 ]; do echo y; i=$((i+1)); done";
    let mut unheard = session.exec(talk).await.expect("started");
    for _ in 0..5 {
        let session = transport.connect(&through(&host)).await.expect("connected");
        assert_eq!(session.exec("exit 5").await.expect("started").collect(0).await.2, Exit::Code(5));
    }
    let mut said = Vec::new();
    let read = unheard.stdout.read_to_end(&mut said);
    tokio::time::timeout(Duration::from_mins(1), read).await.expect("it goes on").expect("read");
    assert!(said.len() == 1_000_000 && said.chunks(2).all(|line| line == b"y\n"), "{} bytes", said.len());
}
