//! A real sshd in a temporary folder.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ssh::{HostKeyPolicy, Settings, Target, Transport};

/// A program's folder of files, and sshd if it was started.
pub(super) struct Sshd {
    pub(super) folder: tempfile::TempDir,
    pub(super) port: u16,
    child: Child,
}

/// Runs a command that must succeed; gives its output.
pub(super) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Makes a key pair and gives the private file's path.
pub(super) fn keygen(folder: &Path, name: &str, kind: &str, passphrase: &str) -> PathBuf {
    let path = folder.join(name);
    let bits = if kind == "rsa" { "2048" } else { "256" };
    run("ssh-keygen", &["-q", "-t", kind, "-b", bits, "-N", passphrase, "-C", name, "-f", text(&path)]);
    path
}

pub(super) fn public(private: &Path) -> String {
    let path = format!("{}.pub", private.display());
    let line = fs::read_to_string(path).expect("a public key");
    line.split(' ').take(2).collect::<Vec<_>>().join(" ").trim().to_owned()
}

pub(super) fn fingerprint(private: &Path) -> String {
    run("ssh-keygen", &["-lf", &format!("{}.pub", private.display())])
        .split(' ')
        .nth(1)
        .expect("a fingerprint")
        .to_owned()
}

pub(super) fn user() -> String {
    run("id", &["-un"]).trim().to_owned()
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port()
}

impl Sshd {
    /// With an ed25519 host key and `user_ed25519` let in.
    pub(super) fn start() -> Self {
        Self::with(&["ed25519"], "")
    }

    /// With host keys of these kinds and more lines of configuration.
    pub(super) fn with(kinds: &[&str], more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for kind in kinds {
            keygen(folder.path(), &format!("host_{kind}"), kind, "");
        }
        let user = keygen(folder.path(), "user_ed25519", "ed25519", "");
        fs::write(folder.path().join("authorized_keys"), public(&user) + "\n").expect("written");
        fs::create_dir(folder.path().join("bin")).expect("made");
        Self::spawn(folder, kinds, more)
    }

    fn spawn(folder: tempfile::TempDir, kinds: &[&str], more: &str) -> Self {
        let (port, dir) = (free_port(), text(folder.path()).to_owned());
        let keys = kinds.iter().map(|kind| format!("HostKey {dir}/host_{kind}\n")).collect::<Vec<_>>().concat();
        let config = format!(
            "{more}\nListenAddress 127.0.0.1:{port}\n{keys}AuthorizedKeysFile {dir}/authorized_keys\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             UsePAM no\nUseDNS no\nStrictModes no\nPidFile none\nLogLevel VERBOSE\nMaxStartups 200\n\
             SetEnv PATH={dir}/bin:/usr/local/bin:/usr/bin:/bin\n"
        );
        fs::write(folder.path().join("sshd_config"), config).expect("written");
        if user() == "root" {
            // Where root's sshd locks itself in; a system without a running sshd lacks it.
            fs::create_dir_all("/run/sshd").expect("made");
        }
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &format!("{dir}/sshd_config")])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd starts: is openssh-server installed?");
        let sshd = Self { folder, port, child };
        let start = Instant::now();
        while !sshd.log().contains("Server listening") {
            assert!(start.elapsed() < Duration::from_secs(10), "sshd does not listen: {}", sshd.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        sshd
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many commands were started in it.
    pub(super) fn sessions(&self) -> usize {
        self.log().matches("Starting session: ").count()
    }

    pub(super) fn host_key(&self, kind: &str) -> String {
        public(&self.path(&format!("host_{kind}")))
    }

    /// Puts a program in front of the hosts' own.
    pub(super) fn program(&self, name: &str, script: &str) {
        script_file(&self.path("bin").join(name), script);
    }

    pub(super) fn authorize(&self, private: &Path) {
        let path = self.path("authorized_keys");
        let all = fs::read_to_string(&path).expect("read") + &public(private) + "\n";
        fs::write(path, all).expect("written");
    }

    pub(super) fn known_hosts(&self, text: &str) {
        fs::write(self.path("known_hosts"), text).expect("written");
    }

    /// Records all host keys of this sshd under its address.
    pub(super) fn trust(&self, kind: &str) {
        self.known_hosts(&format!("[127.0.0.1]:{} {}\n", self.port, self.host_key(kind)));
    }

    pub(super) fn settings(&self) -> Settings {
        let mut settings = Settings::for_user(self.path("home"), self.path("state"), &user());
        settings.known_hosts = vec![self.path("known_hosts")];
        settings.identity_files = vec![self.path("user_ed25519")];
        settings.connect_timeout = Duration::from_secs(10);
        settings.accept = HostKeyPolicy::Strict;
        settings
    }

    pub(super) fn target(&self) -> Target {
        Target {
            name: "web1".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: self.port,
            user: user(),
            ..Target::default()
        }
    }

    /// A transport that trusts and is let in.
    pub(super) fn transport(&self) -> Transport {
        self.trust("ed25519");
        Transport::new(self.settings()).expect("good settings")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Only the listener: sessions end with their connections.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn script_file(path: &Path, script: &str) {
    fs::write(path, script).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

/// A TCP server that says `greeting` to each caller and then lets `then` have the stream.
pub(super) fn server(greeting: &'static str, then: impl Fn(TcpStream) + Send + 'static) -> u16 {
    use std::io::Write as _;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            if stream.write_all(greeting.as_bytes()).is_ok() {
                then(stream);
            }
        }
    });
    port
}

/// Streams that stay open until the test is over.
pub(super) fn keep() -> impl Fn(TcpStream) + Send + 'static {
    let kept = Arc::new(Mutex::new(Vec::new()));
    move |stream| kept.lock().expect("the lock").push(stream)
}
