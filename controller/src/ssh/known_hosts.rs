//! known_hosts files, as sshd(8) describes them: plain and hashed names, patterns, `[host]:port`,
//! `@cert-authority` and `@revoked`.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use nix::fcntl::{Flock, FlockArg};
use sha1::Sha1;

use super::public_key::PublicKey;

/// A line of a known_hosts file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Host,
    CertAuthority,
    Revoked,
}

#[derive(Debug)]
enum Names {
    /// `pattern,pattern,!pattern`, in lower case.
    Patterns(Vec<String>),
    /// `|1|salt|hash`: HMAC-SHA1 of one name.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

#[derive(Debug)]
struct Entry {
    marker: Marker,
    names: Names,
    key: PublicKey,
    place: Place,
}

/// What the files say about the key that a host offers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Recorded.
    Known,
    /// The host is recorded with other keys, all of which are listed.
    Changed(Vec<(Place, PublicKey)>),
    /// Nothing is recorded for the host.
    Unknown,
    Revoked(Place),
}

/// The entries of several files, in their order.
#[derive(Debug, Default)]
pub(super) struct KnownHosts {
    entries: Vec<Entry>,
    /// Lines that say nothing that we understand, for the errors of hosts that are not found.
    pub(super) problems: Vec<String>,
}

/// The name under which a host's key is filed: the alias, `host`, or `[host]:port`.
pub(super) fn lookup_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

impl KnownHosts {
    /// Reads the files; one that does not exist is empty.
    pub(super) fn load(paths: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let mut known = Self::default();
        for path in paths {
            match fs::read(path) {
                Ok(bytes) => known.add_text(path, &String::from_utf8_lossy(&bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err((path.clone(), error)),
            }
        }
        Ok(known)
    }

    pub(super) fn add_text(&mut self, file: &Path, text: &str) {
        for (index, line) in text.lines().enumerate() {
            let place = Place { file: file.to_owned(), line: index + 1 };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((marker, names, key)) => self.entries.push(Entry { marker, names, key, place }),
                Err(what) => {
                    tracing::debug!(target: "rollcall::ssh", "{place}: ignored: {what}");
                    self.problems.push(format!("{place}: {what}"));
                }
            }
        }
    }

    /// Is `key` the recorded key of the host? `names` are tried in turn: the name with its port,
    /// then, as OpenSSH does, the name alone, which may vouch for a key but not against it.
    pub(super) fn check(&self, names: &[String], key: &PublicKey) -> Verdict {
        if let Some(place) = self.revoked(names, key) {
            return Verdict::Revoked(place);
        }
        let mut others = Vec::new();
        for (rank, name) in names.iter().enumerate() {
            for entry in self.matching(name, Marker::Host) {
                if entry.key == *key {
                    return Verdict::Known;
                }
                if rank == 0 {
                    others.push((entry.place.clone(), entry.key.clone()));
                }
            }
        }
        if others.is_empty() { Verdict::Unknown } else { Verdict::Changed(others) }
    }

    /// The line that revokes `key` for the host, if one does.
    pub(super) fn revoked(&self, names: &[String], key: &PublicKey) -> Option<Place> {
        names
            .iter()
            .flat_map(|name| self.matching(name, Marker::Revoked))
            .find(|entry| entry.key == *key)
            .map(|entry| entry.place.clone())
    }

    /// Keys recorded for the host, in file order, each once.
    pub(super) fn keys(&self, names: &[String]) -> Vec<PublicKey> {
        self.collect(names, Marker::Host)
    }

    /// Keys that may sign the host's certificate.
    pub(super) fn authorities(&self, names: &[String]) -> Vec<PublicKey> {
        self.collect(names, Marker::CertAuthority)
    }

    fn collect(&self, names: &[String], marker: Marker) -> Vec<PublicKey> {
        let mut keys = Vec::new();
        for entry in names.iter().flat_map(|name| self.matching(name, marker)) {
            if !keys.contains(&entry.key) {
                keys.push(entry.key.clone());
            }
        }
        keys
    }

    fn matching<'a>(&'a self, name: &'a str, marker: Marker) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.marker == marker && entry.names.contain(name))
    }
}

impl Names {
    fn contain(&self, name: &str) -> bool {
        match self {
            Self::Patterns(patterns) => match_list(patterns.iter().map(String::as_str), name),
            Self::Hashed { salt, hash } => Hmac::<Sha1>::new_from_slice(salt).is_ok_and(|mut mac| {
                mac.update(name.as_bytes());
                mac.verify_slice(hash).is_ok()
            }),
        }
    }
}

/// Does a list of patterns name it? One that matches behind `!` rules it out.
pub(super) fn match_list<'a>(patterns: impl Iterator<Item = &'a str>, name: &str) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if wildcard(pattern.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => found = found || wildcard(pattern.as_bytes(), name.as_bytes()),
        }
    }
    found
}

/// `*` and `?`, nothing else. Linear in practice: a later `*` never needs an earlier one again.
pub(super) fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

fn parse_line(line: &str) -> Result<(Marker, Names, PublicKey), &'static str> {
    let mut words = line.split_whitespace();
    let mut first = words.next().unwrap_or_default();
    let mut marker = Marker::Host;
    if first.starts_with('@') {
        marker = match first {
            "@cert-authority" => Marker::CertAuthority,
            "@revoked" => Marker::Revoked,
            _ => return Err("unknown marker; @cert-authority and @revoked are known"),
        };
        first = words.next().ok_or("nothing follows the marker")?;
    }
    let names = parse_names(first)?;
    let algorithm = words.next().ok_or("expected NAMES ALGORITHM KEY")?;
    let data = words.next().ok_or("expected NAMES ALGORITHM KEY")?;
    let key = PublicKey::from_words(algorithm, data)
        .ok_or("the key is cut off, or is not of the algorithm named before it")?;
    Ok((marker, names, key))
}

fn parse_names(word: &str) -> Result<Names, &'static str> {
    let Some(hashed) = word.strip_prefix("|1|") else {
        if word.starts_with('|') {
            return Err("unknown hash of a host name; |1| is known");
        }
        return Ok(Names::Patterns(word.split(',').map(str::to_ascii_lowercase).collect()));
    };
    let (salt, hash) = hashed.split_once('|').ok_or("expected |1|SALT|HASH")?;
    match (STANDARD.decode(salt), STANDARD.decode(hash)) {
        (Ok(salt), Ok(hash)) if hash.len() == 20 => Ok(Names::Hashed { salt, hash }),
        _ => Err("salt or hash of the host name is not base64 of the right length"),
    }
}

/// Appends `name key` unless the file, as it is now, already says something about the host.
/// Under a lock of the file, in one write, on disk when it returns: two programs that meet the
/// host at once cannot record two keys for it.
///
/// What the file says now is returned: `Known` (recorded now, or meanwhile by another), `Changed`
/// or `Revoked` (recorded differently meanwhile).
pub(super) fn append(path: &Path, name: &str, key: &PublicKey) -> io::Result<Verdict> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut now = KnownHosts::default();
    now.add_text(path, &String::from_utf8_lossy(&bytes));
    match now.check(&[name.to_owned()], key) {
        Verdict::Unknown => {}
        verdict => return Ok(verdict),
    }
    // A file whose last line was never ended must not swallow ours.
    let newline = if bytes.last().is_none_or(|byte| *byte == b'\n') { "" } else { "\n" };
    file.write_all(format!("{newline}{name} {key}\n").as_bytes())?;
    file.sync_all()?;
    Ok(Verdict::Known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::public_key::tests::sample;

    fn known(text: &str) -> KnownHosts {
        let mut known = KnownHosts::default();
        known.add_text(Path::new("kh"), text);
        known
    }

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    fn hashed(name: &str) -> String {
        let salt = [7u8; 20];
        let mut mac = Hmac::<Sha1>::new_from_slice(&salt).expect("any length will do");
        mac.update(name.as_bytes());
        format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(mac.finalize().into_bytes()))
    }

    #[test]
    fn plain_names_ports_and_comments() {
        let known =
            known(&format!("# comment\n\n  web1,10.0.0.1 {} me@laptop\n[web1]:2222 {}\n", sample(1), sample(2)));
        assert_eq!(known.check(&names(&["web1"]), &sample(1)), Verdict::Known);
        assert_eq!(known.check(&names(&["10.0.0.1"]), &sample(1)), Verdict::Known);
        assert_eq!(known.check(&names(&[&lookup_name("WEB1", 2222)]), &sample(2)), Verdict::Known);
        assert_eq!(known.check(&names(&["web2"]), &sample(1)), Verdict::Unknown);
        let place = Place { file: "kh".into(), line: 3 };
        assert_eq!(known.check(&names(&["web1"]), &sample(9)), Verdict::Changed(vec![(place, sample(1))]));
        assert!(known.problems.is_empty());
    }

    #[test]
    fn the_name_without_port_vouches_but_does_not_accuse() {
        let known = known(&format!("web1 {}", sample(1)));
        let both = names(&["[web1]:2222", "web1"]);
        assert_eq!(known.check(&both, &sample(1)), Verdict::Known);
        assert_eq!(known.check(&both, &sample(2)), Verdict::Unknown);
    }

    #[test]
    fn hashed_names() {
        let known = known(&format!("{} {}\n{} {}", hashed("db"), sample(1), hashed("[db]:99"), sample(2)));
        assert_eq!(known.check(&names(&["db"]), &sample(1)), Verdict::Known);
        assert_eq!(known.check(&names(&["[db]:99"]), &sample(2)), Verdict::Known);
        assert!(matches!(known.check(&names(&["db"]), &sample(2)), Verdict::Changed(_)));
        assert_eq!(known.check(&names(&["dc"]), &sample(1)), Verdict::Unknown);
    }

    #[test]
    fn a_name_hashed_by_ssh_keygen() {
        // ssh-keygen -H on "example.org ssh-ed25519 …".
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kh");
        fs::write(&path, format!("example.org {}\n", sample(1))).expect("written");
        let done = std::process::Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&path).output();
        assert!(done.expect("ssh-keygen runs").status.success());
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.starts_with("|1|"), "{text}");
        assert_eq!(known(&text).check(&names(&["example.org"]), &sample(1)), Verdict::Known);
    }

    #[test]
    fn patterns_and_negation() {
        let known = known(&format!("*.example.org,!bad.example.org {}", sample(1)));
        assert_eq!(known.check(&names(&["a.example.org"]), &sample(1)), Verdict::Known);
        assert_eq!(known.check(&names(&["bad.example.org"]), &sample(1)), Verdict::Unknown);
        assert!(wildcard(b"a*b?d", b"axxbcd") && !wildcard(b"a*b?d", b"axxbd"));
        assert!(wildcard(b"**", b"") && !wildcard(b"?", b""));
    }

    #[test]
    fn revoked_wins_over_known() {
        let known = known(&format!("h {}\n@revoked * {}\n", sample(1), sample(1)));
        let place = Place { file: "kh".into(), line: 2 };
        assert_eq!(known.check(&names(&["h"]), &sample(1)), Verdict::Revoked(place));
    }

    #[test]
    fn an_authority_is_no_host_key() {
        let known = known(&format!("@cert-authority *.prod {}", sample(1)));
        assert_eq!(known.check(&names(&["a.prod"]), &sample(1)), Verdict::Unknown);
        assert_eq!(known.authorities(&names(&["a.prod"])), vec![sample(1)]);
        assert!(known.authorities(&names(&["a.test"])).is_empty());
    }

    #[test]
    fn bad_lines_are_kept_as_problems() {
        let text = format!(
            "h\nh ssh-ed25519\nh ssh-rsa {0}\n@what h {1}\n|2|a|b {1}\n|1|x {1}\n@revoked",
            &sample(1).to_string()[12..],
            sample(1)
        );
        let known = known(&text);
        assert_eq!(known.problems.len(), 7, "{:?}", known.problems);
        assert!(known.problems[0].starts_with("kh:1: expected NAMES ALGORITHM KEY"));
        assert!(known.problems[3].contains("@cert-authority and @revoked"));
    }

    #[test]
    fn append_records_once_and_mends_a_missing_newline() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/known_hosts");
        assert_eq!(append(&path, "a", &sample(1)).expect("written"), Verdict::Known);
        fs::write(&path, fs::read_to_string(&path).expect("read").trim_end()).expect("written");
        assert_eq!(append(&path, "b", &sample(2)).expect("written"), Verdict::Known);
        assert_eq!(append(&path, "a", &sample(1)).expect("written"), Verdict::Known);
        assert!(matches!(append(&path, "a", &sample(3)).expect("read"), Verdict::Changed(_)));
        let text = fs::read_to_string(&path).expect("read");
        assert_eq!(text, format!("a {}\nb {}\n", sample(1), sample(2)));
    }

    #[test]
    fn concurrent_appends_keep_every_line_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("known_hosts");
        std::thread::scope(|scope| {
            for seed in 0..32u8 {
                let path = &path;
                scope.spawn(move || append(path, &format!("h{seed}"), &sample(seed)).expect("written"));
            }
        });
        let known = KnownHosts::load(std::slice::from_ref(&path)).expect("read");
        assert!(known.problems.is_empty(), "{:?}", known.problems);
        for seed in 0..32 {
            assert_eq!(known.check(&[format!("h{seed}")], &sample(seed)), Verdict::Known);
        }
    }

    #[test]
    fn an_unreadable_file_is_an_error_and_a_missing_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(KnownHosts::load(&[folder.path().join("none")]).is_ok());
        let (path, _) = KnownHosts::load(&[folder.path().to_owned()]).expect_err("a folder is no file");
        assert_eq!(path, folder.path());
    }
}
