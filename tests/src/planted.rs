//! The search for secrets that are known: over whole hosts, over what the controller keeps, and in what it says.

use std::fmt::Write as _;

use rollcall_engine::secrets::{
    Name,
    ownership::{Reader, Role, Rule},
};

use crate::{Borrowed, Project};

/// Values to look for, by name. Each is looked for as it is and in base64.
#[derive(Debug, Default)]
pub struct Wanted {
    /// What stands in files, and the name of the secret that it is a form of.
    forms: Vec<(String, String)>,
}

/// A value that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The secret's name.
    pub name: String,
    /// A file's path; `journal`; `/proc/PID/environ`; or what was told.
    pub place: String,
    /// A file's permission bits; 0 for what is no file.
    pub mode: u32,
    /// Everybody on the machine can read it.
    pub is_open: bool,
}

/// Where secrets of one line of the ownership table may lie on a host that may read them: in whose memory they are is not looked at.
/// A folder ends with a slash. The second list is for servers of the product alone: there it is the product itself that keeps them.
fn places(rule: &Rule) -> (&'static [&'static str], &'static [&'static str]) {
    const CONSULS: &[&str] = &["/var/lib/consul/raft/"];
    const NOMADS: &[&str] = &["/var/lib/nomad/server/raft/"];
    match rule.pattern {
        "consul/gossip" => (
            &["/etc/consul.d/gossip.json", "/var/lib/consul/serf/local.keyring", "/var/lib/consul/serf/remote.keyring"],
            &[],
        ),
        "consul/token/agent/*" | "consul/token/dns" => (&["/var/lib/consul/acl-tokens.json"], CONSULS),
        // Consul's agent writes down by what token each service was registered.
        "consul/token/nomad/*" => {
            (&["/etc/nomad.d/consul.json", "/var/lib/consul/services/", "/var/lib/consul/checks/"], CONSULS)
        }
        "consul/management" | "consul/token/operator/*" => (&[], CONSULS),
        "nomad/gossip" => (&["/etc/nomad.d/gossip.json", "/var/lib/nomad/server/serf.keyring"], &[]),
        "nomad/management" | "nomad/token/server" | "nomad/token/operator/*" => (&[], NOMADS),
        _ => (&[], &[]),
    }
}

impl Found {
    /// It lies where the table lets it, and nobody reads it there who may not.
    pub fn belongs(&self, reader: Reader<'_>) -> bool {
        let Ok(name) = Name::new(&self.name) else { return false };
        let Some(rule) = Rule::of(&name) else { return false };
        let is_in = |places: &[&str]| {
            let fits =
                |place: &&str| if place.ends_with('/') { self.place.starts_with(place) } else { self.place == *place };
            places.iter().any(fits)
        };
        let server = if self.name.starts_with("nomad/") { Role::NomadServer } else { Role::ConsulServer };
        let is_server = reader.groups.iter().any(|group| group == server.group());
        let (own, servers) = places(rule);
        // What others than the product wrote is closed by itself, what the product wrote may be so by its folder.
        let is_closed = |by_itself: bool| !self.is_open && (!by_itself || self.mode & !0o640 == 0);
        // A server may read every node's token; in the file of an agent is its own only.
        let is_own = rule.node(&name).is_none_or(|node| node == reader.host.to_ascii_lowercase());
        rule.grants(&name, reader) && is_own && is_in(own) && is_closed(true)
            || is_server && is_in(servers) && is_closed(false)
    }
}

/// Looks through a machine; the patterns are in `$at/patterns`, as hexadecimal digits in the line itself so that neither the search nor
/// the shell that it comes in is found. A line for each thing found: place, mode, whether it is open, and what was found.
const SEARCH: &str = r#"
export LC_ALL=C at=/dev/shm/wanted
umask 077; mkdir -p $at
perl -e 'print pack "H*", shift' PATTERNS > $at/patterns
awk '$3 ~ /^(overlay|tmpfs|ramfs|ext4|xfs|btrfs)$/ { print $2 }' /proc/mounts | sort -u | while read -r mount; do
  find "$mount" -xdev -path $at -prune -o -type f -size +0 -print0 2> /dev/null
done | sort -zu | xargs -0 grep -laFf $at/patterns 2> /dev/null > $at/files
while read -r file; do
  open=closed; setpriv --reuid 65534 --regid 65534 --clear-groups test -r "$file" 2> /dev/null && open=open
  mode=$(stat --format %a "$file") || continue
  grep -oaFf $at/patterns "$file" | sort -u | while read -r what; do printf '%s\t%s\t%s\t%s\n' "$file" "$mode" $open "$what"; done
done < $at/files
for process in /proc/[0-9]*; do
  for part in cmdline environ; do
    { tr '\0' '\n' < $process/$part; } 2> /dev/null | grep -oaFf $at/patterns | sort -u |
      while read -r what; do printf '%s\t0\tclosed\t%s\n' $process/$part "$what"; done
  done
done
journalctl --quiet --no-pager --output export | grep -oaFf $at/patterns | sort -u |
  while read -r what; do printf 'journal\t0\tclosed\t%s\n' "$what"; done
rm -r $at
"#;

impl Wanted {
    /// Adds a secret. Of one of several lines, each that is long enough to be nothing else is looked for.
    pub fn add(&mut self, name: &str, value: &str) {
        // The frame of a key says nothing, and a certificate beside it is no secret.
        let key = value.split("-----").skip_while(|part| !part.ends_with("PRIVATE KEY")).nth(1);
        for line in key.unwrap_or(value).lines().map(str::trim).filter(|line| line.len() >= 16) {
            let encoded = encode(line);
            // Its end depends on what follows.
            let whole = line.len() / 3 * 4;
            for form in [line, &encoded[..whole]] {
                if !self.forms.iter().any(|(known, _)| known == form) {
                    self.forms.push((form.to_owned(), name.to_owned()));
                }
            }
        }
    }

    /// Names of what is looked for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.forms.iter().map(|(_, name)| name.as_str())
    }

    /// Everything on a host: files of all its file systems, arguments and environments of all processes, the journal.
    #[track_caller]
    pub fn on_host(&self, hosts: &Borrowed, host: usize) -> Vec<Found> {
        let mut digits = String::new();
        for byte in self.forms.iter().flat_map(|(form, _)| form.bytes().chain([b'\n'])) {
            write!(digits, "{byte:02x}").expect("text can be written");
        }
        let said = hosts.root(host, &SEARCH.replace("PATTERNS", &digits)).ok();
        said.out.lines().filter_map(|line| self.found(line)).collect()
    }

    fn found(&self, line: &str) -> Option<Found> {
        let mut words = line.split('\t');
        let (place, mode, open, what) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let (_, name) = self.forms.iter().find(|(form, _)| form == what)?;
        let mode = u32::from_str_radix(mode, 8).ok()?;
        Some(Found { name: name.clone(), place: place.to_owned(), mode, is_open: open == "open" })
    }

    /// In the project's folder, and in the home folder of who runs the controller. Names of secrets, and files.
    #[track_caller]
    pub fn on_controller(&self, project: &Project) -> Vec<Found> {
        let mut found = Vec::new();
        let mut folders = vec![project.path(), project.home()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder of the test's can be read") {
                let path = entry.expect("it can be read to its end").path();
                let Ok(kind) = std::fs::symlink_metadata(&path).map(|about| about.file_type()) else { continue };
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() {
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    found.extend(self.in_bytes(&path.display().to_string(), &bytes));
                }
            }
        }
        found
    }

    /// In what was told.
    pub fn in_text(&self, what: &str, text: &str) -> Vec<Found> {
        self.in_bytes(what, text.as_bytes())
    }

    fn in_bytes(&self, place: &str, bytes: &[u8]) -> Vec<Found> {
        let any: Vec<String> = self.forms.iter().map(|(form, _)| regex::escape(form)).collect();
        let any = regex::bytes::Regex::new(&any.join("|")).expect("escaped texts are a pattern");
        let mut names: Vec<&str> = any
            .find_iter(bytes)
            .filter_map(|hit| self.forms.iter().find(|(form, _)| form.as_bytes() == hit.as_bytes()))
            .map(|(_, name)| name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        let found = |name: &str| Found { name: name.to_owned(), place: place.to_owned(), mode: 0, is_open: false };
        names.into_iter().map(found).collect()
    }
}

/// Base64.
pub fn encode(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in text.as_bytes().chunks(3) {
        let bytes = [group[0], *group.get(1).unwrap_or(&0), *group.get(2).unwrap_or(&0)];
        let bits = u32::from(bytes[0]) << 16 | u32::from(bytes[1]) << 8 | u32::from(bytes[2]);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            out.push(if digit > group.len() { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    out
}
