//! Logging in with every kind of key.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::sshd::{Sshd, fingerprint, keygen, run, text, user};
use crate::ssh::{ConnectError, Secret, Settings, Transport};

async fn connect(settings: Settings, sshd: &Sshd) -> Result<(), ConnectError> {
    let transport = Transport::new(settings).expect("good settings");
    transport.connect(&sshd.target()).await.map(drop)
}

fn sshd() -> Sshd {
    let sshd = Sshd::start();
    sshd.trust("ed25519");
    sshd
}

fn settings_with(sshd: &Sshd, key: &Path) -> Settings {
    let mut settings = sshd.settings();
    settings.identity_files = vec![key.to_owned()];
    settings
}

#[tokio::test]
async fn rsa_and_ecdsa_keys() {
    let sshd = sshd();
    for kind in ["rsa", "ecdsa"] {
        let key = keygen(sshd.folder.path(), kind, kind, "");
        sshd.authorize(&key);
        connect(settings_with(&sshd, &key), &sshd).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    let log = sshd.log();
    assert!(
        log.contains("Accepted publickey for") && log.contains(": RSA SHA256:") && log.contains(": ECDSA SHA256:"),
        "{log}"
    );
}

#[tokio::test]
async fn an_rsa_key_in_pem_form() {
    let sshd = sshd();
    let key = sshd.path("pem");
    run("ssh-keygen", &["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f", text(&key)]);
    sshd.authorize(&key);
    connect(settings_with(&sshd, &key), &sshd).await.expect("connected");
}

#[tokio::test]
async fn the_wrong_key_is_told_with_what_was_tried() {
    let sshd = sshd();
    let wrong = keygen(sshd.folder.path(), "wrong", "ed25519", "");
    let error = connect(settings_with(&sshd, &wrong), &sshd).await.expect_err("refused");
    let ConnectError::AuthFailed { tried, .. } = &error else { panic!("{error:?}") };
    assert_eq!(tried, &[text(&wrong).to_owned()]);
    assert!(error.to_string().contains(&format!("lets {} not in; tried: {}", user(), wrong.display())), "{error}");
}

#[tokio::test]
async fn no_key_at_all_is_told() {
    let sshd = sshd();
    let mut settings = sshd.settings();
    settings.identity_files.clear();
    let error = connect(settings, &sshd).await.expect_err("nothing to offer").to_string();
    assert!(error.contains("tried: nothing, there is no key to offer"), "{error}");
}

#[tokio::test]
async fn a_passphrase_is_asked_for_once() {
    let sshd = sshd();
    let key = keygen(sshd.folder.path(), "locked", "ed25519", "secret words");
    sshd.authorize(&key);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let mut settings = settings_with(&sshd, &key);
    settings.passphrase = Some(Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Some(Secret::new("secret words"))
    }));
    let transport = Transport::new(settings).expect("good settings");
    let target = sshd.target();
    let (a, b, c) = tokio::join!(transport.connect(&target), transport.connect(&target), transport.connect(&target));
    for session in [a, b, c] {
        session.expect("connected");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn passphrases_that_are_missing_or_wrong() {
    let sshd = sshd();
    let key = keygen(sshd.folder.path(), "locked", "ed25519", "right");
    sshd.authorize(&key);
    let error = connect(settings_with(&sshd, &key), &sshd).await.expect_err("no terminal").to_string();
    assert!(error.contains("no terminal to ask for it; hint: ssh-add"), "{error}");
    let mut settings = settings_with(&sshd, &key);
    settings.passphrase = Some(Arc::new(|_| Some(Secret::new("wrong"))));
    let error = connect(settings, &sshd).await.expect_err("wrong passphrase").to_string();
    assert_eq!(error, format!("{}: wrong passphrase", key.display()));
}

#[tokio::test]
async fn key_files_that_cannot_be_used() {
    let sshd = sshd();
    let open = keygen(sshd.folder.path(), "open", "ed25519", "");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).expect("set");
    let cut = sshd.path("cut");
    fs::write(&cut, "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n").expect("written");
    fs::set_permissions(&cut, fs::Permissions::from_mode(0o600)).expect("set");
    let public = sshd.path("public");
    fs::copy(sshd.path("user_ed25519.pub"), &public).expect("copied");
    fs::set_permissions(&public, fs::Permissions::from_mode(0o600)).expect("set");
    for (path, part) in [
        (open, "may be read by others (mode 0644); hint: chmod 600"),
        (cut, "not a private key that can be read"),
        (public, "this is a public key; hint: name the private one"),
        (sshd.path("missing"), "No such file"),
        (sshd.folder.path().to_owned(), "Is a directory"),
    ] {
        let error = connect(settings_with(&sshd, &path), &sshd).await.expect_err(part).to_string();
        assert!(error.contains(part) && error.contains(text(&path)), "{error}");
    }
}

#[tokio::test]
async fn a_bad_key_does_not_hide_a_good_one() {
    let sshd = sshd();
    let mut settings = sshd.settings();
    settings.identity_files.insert(0, sshd.path("missing"));
    connect(settings, &sshd).await.expect("the second key works");
}

#[tokio::test]
async fn a_hosts_own_key_is_the_only_file_offered() {
    let sshd = sshd();
    let own = keygen(sshd.folder.path(), "own", "ed25519", "");
    let transport = Transport::new(sshd.settings()).expect("good settings");
    let mut target = sshd.target();
    target.identity_files = vec![own.clone()];
    let error = transport.connect(&target).await.expect_err("not let in");
    assert!(matches!(&error, ConnectError::AuthFailed { tried, .. } if tried.len() == 1), "{error:?}");
    sshd.authorize(&own);
    transport.connect(&target).await.expect("connected");
}

struct Agent(Child);

impl Agent {
    fn start(socket: &Path) -> Self {
        let child = Command::new("ssh-agent").args(["-D", "-a", text(socket)]).stdout(Stdio::null()).spawn();
        let agent = Self(child.expect("ssh-agent starts"));
        while !socket.exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn keys_in_an_ssh_agent() {
    let sshd = sshd();
    let socket = sshd.path("agent.sock");
    let _agent = Agent::start(&socket);
    for kind in ["rsa", "ed25519", "ecdsa"] {
        let key = keygen(sshd.folder.path(), &format!("agent_{kind}"), kind, "");
        sshd.authorize(&key);
        let add = |args: &[&str]| {
            let done = Command::new("ssh-add").env("SSH_AUTH_SOCK", &socket).args(args).output();
            assert!(done.expect("ssh-add runs").status.success());
        };
        add(&["-q", text(&key)]);
        let mut settings = sshd.settings();
        settings.identity_files.clear();
        settings.agent_socket = Some(socket.clone());
        connect(settings, &sshd).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!(sshd.log().contains(&fingerprint(&key)), "{kind}");
        add(&["-q", "-d", text(&key)]);
    }
}

#[tokio::test]
async fn a_locked_file_is_signed_for_by_the_agent() {
    let sshd = sshd();
    let socket = sshd.path("agent.sock");
    let _agent = Agent::start(&socket);
    let key = keygen(sshd.folder.path(), "locked", "ed25519", "right");
    sshd.authorize(&key);
    let plain = sshd.path("plain");
    fs::copy(&key, &plain).expect("copied");
    run("ssh-keygen", &["-q", "-p", "-P", "right", "-N", "", "-f", text(&plain)]);
    let done = Command::new("ssh-add").env("SSH_AUTH_SOCK", &socket).args(["-q", text(&plain)]).output();
    assert!(done.expect("ssh-add runs").status.success());
    let mut settings = settings_with(&sshd, &key);
    settings.agent_socket = Some(socket);
    connect(settings, &sshd).await.expect("no passphrase is needed");
}

#[tokio::test]
async fn an_agent_that_is_gone_is_named_and_files_still_work() {
    let sshd = sshd();
    let mut settings = sshd.settings();
    settings.agent_socket = Some(sshd.path("gone.sock"));
    connect(settings.clone(), &sshd).await.expect("the file works");
    settings.identity_files = vec![keygen(sshd.folder.path(), "wrong", "ed25519", "")];
    let error = connect(settings, &sshd).await.expect_err("refused").to_string();
    assert!(error.contains("ssh-agent at ") && error.contains("gone.sock"), "{error}");
}

#[tokio::test]
async fn certificates_beside_keys() {
    for kind in ["ed25519", "rsa"] {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = keygen(folder.path(), "ca", "ed25519", "");
        let sshd = Sshd::with(&["ed25519"], &format!("TrustedUserCAKeys {}.pub", ca.display()));
        sshd.trust("ed25519");
        let key = keygen(sshd.folder.path(), "certified", kind, "");
        let error = connect(settings_with(&sshd, &key), &sshd).await.expect_err("not let in");
        assert!(matches!(error, ConnectError::AuthFailed { .. }), "{error}");
        let public = format!("{}.pub", key.display());
        run("ssh-keygen", &["-q", "-s", text(&ca), "-I", "me", "-n", &user(), text(Path::new(&public))]);
        connect(settings_with(&sshd, &key), &sshd).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}
