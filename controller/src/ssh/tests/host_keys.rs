//! Known, new, changed, revoked and certified hosts; EC2 instances and their consoles.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::sshd::{Sshd, fingerprint, keygen, public, run, text};
use crate::ssh::{ConnectError, ConsoleSource, HostKeyPolicy, Settings, Target, Transport};

async fn connect(settings: &Settings, target: &Target) -> Result<String, ConnectError> {
    let transport = Transport::new(settings.clone()).expect("good settings");
    transport.connect(target).await.map(|session| session.host_key_fingerprint().clone())
}

fn entry(sshd: &Sshd, key: &str) -> String {
    format!("[127.0.0.1]:{} {key}\n", sshd.port)
}

/// Another host's key, of the same kind.
fn other_key(sshd: &Sshd) -> String {
    let path = sshd.path("other");
    if !path.exists() {
        keygen(sshd.folder.path(), "other", "ed25519", "");
    }
    public(&path)
}

#[tokio::test]
async fn an_unknown_host_is_refused_with_its_fingerprint() {
    let sshd = Sshd::start();
    let error = connect(&sshd.settings(), &sshd.target()).await.expect_err("unknown");
    let shown = error.to_string();
    assert!(error.is_host_key());
    assert!(shown.contains(&fingerprint(&sshd.path("host_ed25519"))), "{shown}");
    assert!(shown.contains("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"), "{shown}");
    assert!(shown.contains(&format!("ssh-keyscan -p {} 127.0.0.1", sshd.port)), "{shown}");
    assert!(!sshd.log().contains("Accepted"), "no key was offered: {}", sshd.log());
}

#[tokio::test]
async fn an_unknown_host_shows_lines_that_could_not_be_read() {
    let sshd = Sshd::start();
    sshd.known_hosts(&format!("[127.0.0.1]:{} ssh-ed25519 AAAAcut\n", sshd.port));
    let shown = connect(&sshd.settings(), &sshd.target()).await.expect_err("unknown").to_string();
    assert!(shown.contains("known_hosts:1: the key is cut off"), "{shown}");
}

#[tokio::test]
async fn accept_new_records_and_then_holds_to_it() {
    let sshd = Sshd::start();
    let mut settings = sshd.settings();
    settings.accept = HostKeyPolicy::AcceptNew;
    connect(&settings, &sshd.target()).await.expect("taken");
    let recorded = fs::read_to_string(sshd.path("known_hosts")).expect("written");
    assert_eq!(recorded, entry(&sshd, &sshd.host_key("ed25519")));
    settings.accept = HostKeyPolicy::Strict;
    connect(&settings, &sshd.target()).await.expect("known");
    sshd.known_hosts(&entry(&sshd, &other_key(&sshd)));
    settings.accept = HostKeyPolicy::AcceptNew;
    let error = connect(&settings, &sshd.target()).await.expect_err("changed");
    assert!(matches!(error, ConnectError::HostKeyChanged { .. }), "{error}");
}

#[tokio::test]
async fn many_connections_at_once_record_a_new_host_once() {
    let sshd = Sshd::start();
    let mut settings = sshd.settings();
    settings.accept = HostKeyPolicy::AcceptNew;
    let transport = Arc::new(Transport::new(settings).expect("good settings"));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (transport, target) = (transport.clone(), sshd.target());
        tasks.spawn(async move { transport.connect(&target).await.map(drop) });
    }
    for result in tasks.join_all().await {
        result.expect("connected");
    }
    let recorded = fs::read_to_string(sshd.path("known_hosts")).expect("written");
    assert_eq!(recorded.lines().count(), 1, "{recorded}");
}

#[tokio::test]
async fn a_changed_key_is_loud_and_names_the_line() {
    let sshd = Sshd::start();
    sshd.known_hosts(&format!("# mine\n{}", entry(&sshd, &other_key(&sshd))));
    let shown = connect(&sshd.settings(), &sshd.target()).await.expect_err("changed").to_string();
    assert!(shown.contains("HAS CHANGED"), "{shown}");
    assert!(shown.contains(&format!("{}:2", sshd.path("known_hosts").display())), "{shown}");
    assert!(shown.contains(&fingerprint(&sshd.path("other"))), "{shown}");
    assert!(shown.contains(&fingerprint(&sshd.path("host_ed25519"))), "{shown}");
    assert!(shown.contains(&format!("ssh-keygen -R '[127.0.0.1]:{}'", sshd.port)), "{shown}");
    assert!(!sshd.log().contains("Accepted"), "{}", sshd.log());
}

#[tokio::test]
async fn a_revoked_key_is_refused_though_it_is_known() {
    let sshd = Sshd::start();
    let key = sshd.host_key("ed25519");
    sshd.known_hosts(&format!("{}@revoked * {key}\n", entry(&sshd, &key)));
    for accept in [HostKeyPolicy::Strict, HostKeyPolicy::AcceptNew] {
        let mut settings = sshd.settings();
        settings.accept = accept;
        let error = connect(&settings, &sshd.target()).await.expect_err("revoked");
        assert!(matches!(&error, ConnectError::HostKeyRevoked { place, .. } if place.line == 2), "{error:?}");
    }
}

#[tokio::test]
async fn the_kind_of_key_that_is_recorded_is_asked_for() {
    let sshd = Sshd::with(&["ed25519", "rsa", "ecdsa"], "");
    for kind in ["rsa", "ecdsa", "ed25519"] {
        sshd.trust(kind);
        let shown = connect(&sshd.settings(), &sshd.target()).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(shown, fingerprint(&sshd.path(&format!("host_{kind}"))), "{kind}");
    }
}

#[tokio::test]
async fn a_host_that_hides_its_recorded_key_is_refused_even_by_accept_new() {
    let sshd = Sshd::with(&["ecdsa"], "");
    sshd.known_hosts(&entry(&sshd, &other_key(&sshd)));
    let mut settings = sshd.settings();
    settings.accept = HostKeyPolicy::AcceptNew;
    let error = connect(&settings, &sshd.target()).await.expect_err("another kind of key");
    assert!(matches!(error, ConnectError::HostKeyChanged { .. }), "{error}");
}

#[tokio::test]
async fn hashed_entries_and_an_alias() {
    let sshd = Sshd::start();
    sshd.trust("ed25519");
    run("ssh-keygen", &["-q", "-H", "-f", text(&sshd.path("known_hosts"))]);
    connect(&sshd.settings(), &sshd.target()).await.expect("known by its hash");
    sshd.known_hosts(&format!("fleet-7 {}\n", sshd.host_key("ed25519")));
    let mut target = sshd.target();
    connect(&sshd.settings(), &target).await.expect_err("unknown by its address");
    target.host_key_alias = Some("fleet-7".to_owned());
    connect(&sshd.settings(), &target).await.expect("known by its alias");
}

/// An sshd with a host certificate that `sign` made, and its authority's public key.
fn certified(sign: &[&str]) -> (Sshd, String, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let ca = keygen(folder.path(), "ca", "ed25519", "");
    let host = keygen(folder.path(), "cert_host", "ed25519", "");
    let public_file = format!("{}.pub", host.display());
    let mut args = vec!["-q", "-s", text(&ca), "-I", "web1"];
    args.extend_from_slice(sign);
    args.push(&public_file);
    run("ssh-keygen", &args);
    let more = format!("HostKey {0}\nHostCertificate {0}-cert.pub", host.display());
    let sshd = Sshd::with(&["ed25519"], &more);
    let authority = public(&ca);
    (sshd, authority, folder)
}

#[tokio::test]
async fn a_host_certificate_of_a_known_authority() {
    let (sshd, authority, _folder) = certified(&["-h", "-n", "127.0.0.1"]);
    sshd.known_hosts(&format!("@cert-authority * {authority}\n"));
    connect(&sshd.settings(), &sshd.target()).await.expect("vouched for");
    sshd.known_hosts(&format!("@cert-authority * {authority}\n@revoked * {authority}\n"));
    let error = connect(&sshd.settings(), &sshd.target()).await.expect_err("revoked authority");
    assert!(matches!(error, ConnectError::HostKeyRevoked { .. }), "{error}");
}

#[tokio::test]
async fn host_certificates_that_prove_nothing() {
    for (sign, part) in [
        (&["-h", "-n", "elsewhere"][..], "it is made out to"),
        (&["-n", "127.0.0.1"][..], "it is a user's certificate"),
        (&["-h", "-n", "127.0.0.1", "-V", "20200101:20200102"][..], "it is not valid at this time"),
    ] {
        let (sshd, authority, _folder) = certified(sign);
        sshd.known_hosts(&format!("@cert-authority * {authority}\n"));
        let error = connect(&sshd.settings(), &sshd.target()).await.expect_err(part).to_string();
        // sshd itself does not load a user's certificate: then a bare, unknown key is what is left.
        assert!(error.contains(part) || error.contains("is not known"), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (sshd, _, _folder) = certified(&["-h", "-n", "127.0.0.1"]);
    sshd.known_hosts(&format!("@cert-authority * {}\n", other_key(&sshd)));
    let error = connect(&sshd.settings(), &sshd.target()).await.expect_err("a stranger's");
    assert!(
        matches!(&error, ConnectError::HostCertificate { reason, .. } if reason.contains("its authority")),
        "{error}"
    );
}

/// A console that says each of these in turn, and the last one from then on.
struct Console {
    says: Vec<Result<Option<String>, String>>,
    asked: AtomicUsize,
}

impl Console {
    fn new(says: Vec<Result<Option<String>, String>>) -> Arc<Self> {
        Arc::new(Self { says, asked: AtomicUsize::new(0) })
    }

    fn printing(keys: &[String]) -> Arc<Self> {
        Self::new(vec![Ok(Some(block(keys)))])
    }
}

fn block(keys: &[String]) -> String {
    let lines = keys.iter().map(|key| format!("{key} root@ip\r\n")).collect::<Vec<_>>().concat();
    format!("boot\r\n-----BEGIN SSH HOST KEY KEYS-----\r\n{lines}-----END SSH HOST KEY KEYS-----\r\n")
}

impl ConsoleSource for Console {
    fn console<'a>(
        &'a self,
        _instance_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<String>, String>> + Send + 'a>> {
        let turn = self.asked.fetch_add(1, Ordering::SeqCst);
        let said = self.says[turn.min(self.says.len() - 1)].clone();
        Box::pin(async move { said })
    }
}

fn instance(sshd: &Sshd, id: &str) -> Target {
    Target { instance_id: Some(id.to_owned()), ..sshd.target() }
}

fn pins(sshd: &Sshd, id: &str) -> std::path::PathBuf {
    sshd.path("state").join("known_hosts.d").join(id)
}

fn with_console(sshd: &Sshd, console: &Arc<Console>) -> Settings {
    let mut settings = sshd.settings();
    settings.console = Some(console.clone());
    settings
}

#[tokio::test]
async fn first_contact_learns_from_the_console_and_pins() {
    let sshd = Sshd::with(&["ed25519", "ecdsa"], "");
    let keys = [sshd.host_key("ecdsa"), sshd.host_key("ed25519")];
    let console = Console::printing(&keys);
    let settings = with_console(&sshd, &console);
    connect(&settings, &instance(&sshd, "i-0a")).await.expect("learnt");
    let pinned = fs::read_to_string(pins(&sshd, "i-0a")).expect("pinned");
    assert_eq!(pinned, format!("i-0a {}\ni-0a {}\n", keys[0], keys[1]));
    connect(&settings, &instance(&sshd, "i-0a")).await.expect("pinned");
    assert_eq!(console.asked.load(Ordering::SeqCst), 1, "the console is read at first contact only");
    assert!(!sshd.path("known_hosts").exists(), "addresses are not recorded");
}

#[tokio::test]
async fn a_new_instance_on_an_old_address_is_understood() {
    let sshd = Sshd::start();
    // The address is recorded with the key of whoever had it before.
    sshd.known_hosts(&entry(&sshd, &other_key(&sshd)));
    let console = Console::printing(&[sshd.host_key("ed25519")]);
    let settings = with_console(&sshd, &console);
    connect(&settings, &instance(&sshd, "i-new")).await.expect("a new host");
}

#[tokio::test]
async fn a_changed_key_of_the_same_instance_is_refused() {
    let sshd = Sshd::start();
    fs::create_dir_all(sshd.path("state/known_hosts.d")).expect("made");
    fs::write(pins(&sshd, "i-0a"), format!("i-0a {}\n", other_key(&sshd))).expect("written");
    // Neither the console nor known_hosts nor accept-new may overrule the pin.
    sshd.trust("ed25519");
    let console = Console::printing(&[sshd.host_key("ed25519")]);
    let mut settings = with_console(&sshd, &console);
    settings.accept = HostKeyPolicy::AcceptNew;
    let error = connect(&settings, &instance(&sshd, "i-0a")).await.expect_err("changed");
    assert!(matches!(error, ConnectError::HostKeyChanged { .. }), "{error}");
    let shown = error.to_string();
    assert!(shown.contains("HAS CHANGED") && shown.contains("web1 (i-0a)"), "{shown}");
    assert!(shown.contains(&format!("rm {}", pins(&sshd, "i-0a").display())), "{shown}");
}

#[tokio::test]
async fn a_host_that_is_not_the_one_on_the_console_is_refused() {
    let sshd = Sshd::start();
    let console = Console::printing(&[other_key(&sshd)]);
    let error = connect(&with_console(&sshd, &console), &instance(&sshd, "i-0a")).await.expect_err("another machine");
    assert!(error.to_string().contains("the console of i-0a printed other keys"), "{error}");
    assert!(!pins(&sshd, "i-0a").exists());
}

#[tokio::test]
async fn a_console_that_lags_is_waited_for_and_not_for_ever() {
    let sshd = Sshd::start();
    let whole = block(&[sshd.host_key("ed25519")]);
    let cut = whole[..whole.len() - 50].to_owned();
    let console = Console::new(vec![Ok(None), Ok(Some(cut.clone())), Ok(Some(whole))]);
    let mut settings = with_console(&sshd, &console);
    settings.console_wait = Duration::from_secs(20);
    connect(&settings, &instance(&sshd, "i-0a")).await.expect("learnt in the end");
    let console = Console::new(vec![Ok(Some(cut))]);
    let mut settings = with_console(&sshd, &console);
    settings.console_wait = Duration::from_millis(300);
    let error = connect(&settings, &instance(&sshd, "i-0b")).await.expect_err("never complete").to_string();
    assert!(error.contains("no host key of i-0b in its console output"), "{error}");
    assert!(error.contains("it holds no complete block of host keys"), "{error}");
    assert!(error.contains("lags by up to a few minutes"), "{error}");
}

#[tokio::test]
async fn a_console_that_may_not_be_read_ends_at_once() {
    let sshd = Sshd::start();
    let console = Console::new(vec![Err("ec2:GetConsoleOutput is denied".to_owned())]);
    let start = std::time::Instant::now();
    let error =
        connect(&with_console(&sshd, &console), &instance(&sshd, "i-0a")).await.expect_err("denied").to_string();
    assert!(error.contains("ec2:GetConsoleOutput is denied"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    // An entry for the address vouches for it all the same, and is pinned.
    sshd.trust("ed25519");
    connect(&with_console(&sshd, &console), &instance(&sshd, "i-0a")).await.expect("known by address");
    assert!(pins(&sshd, "i-0a").exists());
}

#[tokio::test]
async fn without_a_console_an_instance_follows_the_policy() {
    let sshd = Sshd::start();
    let mut settings = sshd.settings();
    let error = connect(&settings, &instance(&sshd, "i-0a")).await.expect_err("strict").to_string();
    assert!(error.contains(&format!("> {}", pins(&sshd, "i-0a").display())), "{error}");
    settings.accept = HostKeyPolicy::AcceptNew;
    connect(&settings, &instance(&sshd, "i-0a")).await.expect("taken");
    assert!(Path::new(&pins(&sshd, "i-0a")).exists());
}

#[tokio::test]
async fn an_instance_id_that_is_a_path_is_refused() {
    let sshd = Sshd::start();
    let error = connect(&sshd.settings(), &instance(&sshd, "../x")).await.expect_err("no id").to_string();
    assert!(error.contains("\"../x\" is no instance id"), "{error}");
}
