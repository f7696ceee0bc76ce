//! Facts: what the agent finds out about its host, without starting a program.
//!
//! Every key stands in `docs/facts.md`; a test compares the two. What cannot be found out is `null`: nothing is guessed.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::host::Read;

mod ec2;
mod machine;
mod network;

pub use ec2::{IMDS, ec2};

/// How long the metadata service is waited for when facts are gathered.
const EC2_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether EC2's metadata service is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AskEc2 {
    /// Where the machine looks like an instance.
    #[default]
    IfLikely,
    /// Always: the caller knows that this is an instance.
    Yes,
    /// Never.
    No,
}

/// All facts, as the value of the variable `facts`. EC2's metadata service is asked only where the machine looks like an
/// instance.
pub fn gather(host: &dyn Read) -> Value {
    gather_with(host, AskEc2::default(), IMDS)
}

/// Like [`gather`], for callers that know whether this is an instance. `base` is [`IMDS`] except in tests. Where the
/// service is asked and does not answer, `ec2` is null and `ec2_error` says why.
pub fn gather_with(host: &dyn Read, ask: AskEc2, base: &str) -> Value {
    let asked = ask == AskEc2::Yes || (ask == AskEc2::IfLikely && machine::looks_like_ec2(host));
    let (ec2, ec2_error) = if asked {
        match ec2::ec2(base, EC2_TIMEOUT) {
            Ok(found) => (found, Value::Null),
            Err(failure) => (Value::Null, Value::String(failure.message)),
        }
    } else {
        (Value::Null, Value::Null)
    };
    let arch = machine::arch();
    let hostname = hostname(host);
    let addresses = network::addresses();
    let route = network::default_route(host);
    json!({
        "os": machine::os(host),
        "arch": arch,
        "deb_arch": machine::deb_arch(&arch),
        "cores": machine::cores(host),
        "memory": machine::memory(host),
        "fqdn": network::fqdn(host, &hostname),
        "hostname": hostname,
        "default_ipv4": network::default_ipv4(route.as_ref(), &addresses),
        "default_gateway": route.map(|route| route.gateway.to_string()),
        "addresses": addresses,
        "mounts": machine::mounts(host),
        "init": machine::init(host),
        "virtualization": machine::virtualization(host),
        "security": machine::security(host),
        "machine_id": line(host, "/etc/machine-id"),
        "boot_id": line(host, "/proc/sys/kernel/random/boot_id"),
        "time": time(host),
        "ec2": ec2,
        "ec2_error": ec2_error,
    })
}

/// The first line of a file, `None` where it is missing or empty.
fn line(host: &dyn Read, path: &str) -> Option<String> {
    let text = String::from_utf8_lossy(&host.read(Path::new(path)).ok()?).into_owned();
    text.lines().next().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned)
}

/// A whole file as text, empty where there is none.
fn read(host: &dyn Read, path: &str) -> String {
    host.read(Path::new(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn exists(host: &dyn Read, path: &str) -> bool {
    host.meta_follow(Path::new(path)).is_ok_and(|meta| meta.is_some())
}

/// The name that the kernel has: the one that programs see now.
fn hostname(host: &dyn Read) -> String {
    let fixed = || host.hostname().unwrap_or_default().trim().to_owned();
    // Check mode may have planned another name.
    if host.is_overlay() { fixed() } else { line(host, "/proc/sys/kernel/hostname").unwrap_or_else(fixed) }
}

fn time(host: &dyn Read) -> Value {
    let now = host.now();
    let epoch = now.duration_since(SystemTime::UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default();
    let iso8601 = Timestamp::try_from(now).map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).ok();
    json!({"iso8601": iso8601, "epoch": epoch, "zone": zone(host)})
}

/// The name behind /etc/localtime, as systemd keeps it; Debian's /etc/timezone where that is a plain file. Asking the time
/// library instead costs a walk through the whole folder of zones, a thousand calls, before anything else happens.
fn zone(host: &dyn Read) -> Option<String> {
    let link = host.read_link(Path::new("/etc/localtime")).ok();
    let named = link.and_then(|to| to.to_str()?.split_once("/zoneinfo/").map(|(_, name)| name.to_owned()));
    named.filter(|name| !name.is_empty()).or_else(|| line(host, "/etc/timezone"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::real::Real,
        modules::{fake::Fake, http::tests::Server},
    };

    /// `os.family` → its value; `NAME` stands for any key, `[]` for any item.
    fn find<'a>(value: &'a Value, path: &str) -> Result<Option<&'a Value>, String> {
        let mut value = value;
        for part in path.split('.') {
            if value.is_null() {
                return Ok(None);
            }
            let (name, list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
            let next = if name == "NAME" { value.as_object().and_then(|o| o.values().next()) } else { value.get(name) };
            value = next.ok_or_else(|| format!("no {part} of {path} in {value}"))?;
            if list && !value.is_null() {
                let items = value.as_array().ok_or_else(|| format!("{path}: {part} is no list"))?;
                let Some(first) = items.first() else { return Ok(None) };
                value = first;
            }
        }
        Ok(Some(value))
    }

    fn documented() -> Vec<&'static str> {
        let text = include_str!("../../docs/facts.md");
        text.lines().filter_map(|line| line.strip_prefix("| `facts.")?.split('`').next()).collect()
    }

    #[test]
    fn every_documented_fact_is_there_and_every_fact_is_documented() {
        let facts = gather(&Real::new());
        let documented = documented();
        assert!(documented.len() > 40, "{documented:?}");
        for path in &documented {
            find(&facts, path).unwrap();
        }
        for (name, value) in facts.as_object().unwrap() {
            let inner = value.as_object().filter(|_| !["addresses", "ec2"].contains(&name.as_str()));
            let paths =
                inner.map_or_else(|| vec![name.clone()], |map| map.keys().map(|k| format!("{name}.{k}")).collect());
            for path in paths {
                let found = documented
                    .iter()
                    .any(|d| *d == path || d.starts_with(&format!("{path}.")) || d.starts_with(&format!("{path}[]")));
                assert!(found, "facts.{path} is not documented");
            }
        }
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = gather(&Real::new());
        assert!(facts["cores"].as_u64().unwrap() >= 1);
        assert!(facts["memory"]["total_mib"].as_u64().unwrap() > 100);
        assert!(["x86_64", "aarch64"].contains(&facts["arch"].as_str().unwrap()));
        assert_eq!(facts["os"]["kernel"].as_str().unwrap(), read(&Real::new(), "/proc/sys/kernel/osrelease").trim());
        assert!(facts["addresses"]["by_interface"]["lo"]["ipv4"][0]["cidr"] == "127.0.0.0/8");
        assert!(!facts["hostname"].as_str().unwrap().is_empty());
        assert!(facts["time"]["epoch"].as_u64().unwrap() > 1_700_000_000);
    }

    #[test]
    fn a_metadata_service_that_refuses_is_told() {
        let server = Server::new(["HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]);
        let facts = gather_with(&Fake::new(), AskEc2::Yes, &server.url(""));
        assert!(facts["ec2"].is_null() && facts["ec2_error"].as_str().unwrap().contains("status 403"));
        assert!(gather_with(&Fake::new(), AskEc2::No, &server.url(""))["ec2_error"].is_null());
    }

    #[test]
    fn the_zone_is_the_one_behind_localtime_or_debians_word() {
        assert_eq!(zone(&Fake::new()), None);
        assert_eq!(zone(&Fake::new().file("/etc/timezone", "Europe/Berlin\n")).as_deref(), Some("Europe/Berlin"));
        let real = Real::new();
        let expected = std::fs::canonicalize("/etc/localtime").ok();
        let expected = expected.and_then(|to| Some(to.to_str()?.split_once("/zoneinfo/")?.1.to_owned()));
        if let Some(expected) = expected {
            let found = zone(&real).expect("a zone where /etc/localtime is a link");
            let file = |name: &str| std::fs::read(format!("/usr/share/zoneinfo/{name}")).unwrap();
            assert_eq!(file(&found), file(&expected), "{found} is not {expected}");
        }
    }

    #[test]
    fn a_bare_machine_has_nulls_and_no_guesses() {
        let facts = gather(&Fake::new());
        for path in
            ["os.id", "memory.total_mib", "default_ipv4", "default_gateway", "machine_id", "boot_id", "init", "ec2"]
        {
            let value = find(&facts, path).unwrap();
            assert!(value.is_none_or(Value::is_null), "{path}: {value:?}");
        }
        assert_eq!(facts["hostname"], "old");
    }
}
