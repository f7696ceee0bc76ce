//! The lab that tests run on, seen through its program.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::{Said, program, run, setting};

/// Most verbs take seconds; this is for a machine that does much else.
const LIMIT: Duration = Duration::from_mins(2);

/// A lab by its name.
#[derive(Debug, Clone)]
pub struct Lab {
    /// Its name.
    pub name: String,
}

/// What `lab status --json` tells, as far as tests ask.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Status {
    /// `up`, or on the way there.
    pub state: String,
    /// Its network, such as `10.77.1.0/24`.
    pub subnet: String,
    /// The lab's own address in it.
    pub gateway: String,
    /// The network namespace.
    pub namespace: String,
    /// The base of the release mirror's addresses.
    pub mirror: String,
    /// The file of all hosts' keys.
    pub known_hosts: String,
    /// The private key's file of each key pair.
    pub keys: BTreeMap<String, String>,
    /// Hosts, by name.
    pub hosts: Vec<Host>,
}

/// A host of a lab.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Host {
    /// The `Name` tag.
    pub name: String,
    /// The instance id.
    pub id: String,
    /// The private address.
    pub address: String,
    /// `up`, `killed`, …
    pub state: String,
    /// The availability zone.
    pub zone: String,
    /// All tags.
    pub tags: BTreeMap<String, String>,
    /// Public host keys, as known_hosts has them.
    pub host_keys: Vec<String>,
}

impl Lab {
    /// The lab that was booted for the tests.
    pub fn shared() -> Self {
        Self { name: setting("ROLLCALL_TEST_LAB") }
    }

    /// A `lab` command for this lab.
    pub fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(program("lab"));
        command.args(["--name", &self.name]).args(words);
        command
    }

    /// Runs a verb.
    #[track_caller]
    pub fn lab<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Said {
        run(&mut self.command(words), LIMIT)
    }

    /// Its state.
    #[track_caller]
    pub fn status(&self) -> Status {
        let said = self.lab(["status", "--json"]).ok();
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}\n{}", said.report()))
    }

    /// One of its hosts now.
    #[track_caller]
    pub fn host(&self, name: &str) -> Host {
        let hosts = self.status().hosts;
        hosts
            .into_iter()
            .find(|host| host.name == name)
            .unwrap_or_else(|| panic!("lab '{}' has no host '{name}'", self.name))
    }

    /// A line for the host's shell, over SSH as the login user.
    #[track_caller]
    pub fn exec(&self, host: &str, line: &str) -> Said {
        self.lab(["exec", host, "--", line])
    }

    /// A line for the host's shell as root, past SSH: tests look at hosts this way without a word to the thing they test.
    #[track_caller]
    pub fn root(&self, host: &str, line: &str) -> Said {
        self.lab(["exec", "--direct", host, "--", line])
    }

    /// The content of a file on a host.
    #[track_caller]
    pub fn read(&self, host: &str, path: &str) -> String {
        self.root(host, &format!("cat '{path}'")).ok().out
    }

    /// A line for the shell in the lab's network, with its AWS settings.
    #[track_caller]
    pub fn shell(&self, line: &str) -> Said {
        self.lab(["shell", "--", "bash", "-c", line])
    }

    /// Calls the EC2 API as a client does: `Action=StopInstances&InstanceId.1=…`. Its answer is XML.
    #[track_caller]
    pub fn ec2(&self, query: &str) -> Said {
        // Signatures are not checked; the service is read from the header's scope.
        self.shell(&format!(
            "curl --silent --show-error --fail-with-body \"$AWS_ENDPOINT_URL/\" \
             --header \"Authorization: AWS4-HMAC-SHA256 Credential=lab/20260101/$AWS_REGION/ec2/aws4_request, SignedHeaders=host, Signature=0\" \
             --data 'Version=2016-11-15&{query}'"
        ))
    }
}

/// A lab that one test boots for itself. Dropped, it is taken down.
#[derive(Debug)]
pub struct OwnLab {
    lab: Lab,
}

impl OwnLab {
    /// Boots a lab file under a name of its own.
    #[track_caller]
    pub fn boot(file: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // `tests/run` takes down what begins with the shared lab's name if this process is killed.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", setting("ROLLCALL_TEST_LAB"), std::process::id());
        let own = Self { lab: Lab { name } };
        let file = file.to_str().expect("paths of tests are text");
        run(&mut own.lab.command(["up", file]), Duration::from_mins(5)).ok();
        own
    }

    /// Boots a lab from the text of a lab file.
    #[track_caller]
    pub fn boot_text(text: &str) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        std::fs::write(file.path(), text).expect("it can be written");
        Self::boot(file.path())
    }
}

impl std::ops::Deref for OwnLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for OwnLab {
    fn drop(&mut self) {
        // A panic here, while another is on its way, would hide that one.
        let _ = self.lab.command(["down"]).output();
    }
}
