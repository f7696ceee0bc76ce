//! The lab file: what a user writes, checked and expanded to what the cloud starts.
//!
//! Every mistake is told with file, line, column and the line itself; nothing has been started by then.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::cloud::{InstanceSpec, KeySpec};
use crate::failure::nearest;
use crate::programs;

/// Images that hosts can be made of.
pub(crate) const IMAGES: [&str; 1] = ["debian-12"];
/// The most hosts that a lab's subnet has addresses for, services and gateway taken off.
const MOST_INSTANCES: usize = 200;
/// A host's disk where the file does not say: 4 GiB. It is a limit, nothing is set aside.
const DISK_BYTES: u64 = 4 << 30;

/// A checked lab file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Name of the lab, `default` where the file has none.
    pub(crate) name: String,
    pub(crate) region: String,
    /// Name of the only instance whose SSH port answers from outside the hosts.
    pub(crate) jump_host: Option<String>,
    /// The size that each host's disk has, in bytes.
    pub(crate) disk_bytes: u64,
    /// Programs beside those of every lab.
    pub(crate) programs: Vec<String>,
    /// Debian packages that hosts can install, beside those of every lab.
    pub(crate) packages: Vec<String>,
    pub(crate) keys: Vec<KeySpec>,
    pub(crate) instances: Vec<InstanceSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpec {
    name: Option<Spanned<String>>,
    region: Option<Spanned<String>>,
    jump_host: Option<Spanned<String>>,
    disk: Option<Spanned<String>>,
    #[serde(default)]
    programs: Vec<Spanned<String>>,
    #[serde(default)]
    packages: Vec<Spanned<String>>,
    #[serde(default)]
    keys: Vec<RawKey>,
    instances: Spanned<Vec<RawInstance>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    name: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInstance {
    name: Spanned<String>,
    count: Option<Spanned<u32>>,
    #[serde(rename = "type")]
    instance_type: Option<Spanned<String>>,
    image: Option<Spanned<String>>,
    zone: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    address: Option<Spanned<String>>,
    #[serde(default)]
    tags: IndexMap<String, String>,
    user_data: Option<String>,
}

/// A mistake in a lab file, shown with its place.
#[derive(Debug)]
pub(crate) struct SpecError {
    file: String,
    /// Line and column, from 1.
    place: Option<(u64, u64)>,
    message: String,
    hint: Option<String>,
    /// The line of the mistake.
    line: Option<String>,
}

impl std::fmt::Display for SpecError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.file)?;
        if let Some((line, column)) = self.place {
            write!(out, ":{line}:{column}")?;
        }
        write!(out, ": {}", self.message)?;
        if let (Some((number, column)), Some(line)) = (self.place, &self.line) {
            let width = number.to_string().len();
            let before = usize::try_from(column.saturating_sub(1)).unwrap_or(0);
            write!(out, "\n  {:width$} |\n  {number} | {line}\n  {:width$} | {}^", "", "", " ".repeat(before))?;
        }
        if let Some(hint) = &self.hint {
            write!(out, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecError {}

/// A text with the name under which errors speak of it.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, place: Option<(u64, u64)>, message: impl Into<String>, hint: Option<String>) -> SpecError {
        let line = place
            .and_then(|(line, _)| usize::try_from(line).ok()?.checked_sub(1))
            .and_then(|index| self.text.lines().nth(index))
            .map(|line| line.chars().take(160).collect());
        SpecError { file: self.file.to_owned(), place, message: message.into(), hint, line }
    }

    fn at<T>(&self, value: &Spanned<T>, message: impl Into<String>, hint: Option<String>) -> SpecError {
        self.error(Some((value.referenced.line(), value.referenced.column())), message, hint)
    }

    fn parse_error(&self, error: &serde_saphyr::Error) -> SpecError {
        let place = error.location().map(|at| (at.line(), at.column())).filter(|(line, _)| *line > 0);
        let plain = error.without_snippet();
        if let serde_saphyr::Error::SerdeUnknownField { field, expected, .. } = plain {
            let hint = match nearest(field, expected.iter().copied()) {
                Some(name) => format!("did you mean '{name}'?"),
                None => format!("known here: {}", expected.join(", ")),
            };
            return self.error(place, format!("unknown key '{field}'"), Some(hint));
        }
        if let serde_saphyr::Error::SerdeMissingField { field, .. } = plain {
            return self.error(place, format!("the key '{field}' is missing"), None);
        }
        let text = plain.to_string();
        let first = text.lines().next().unwrap_or("not a lab file");
        // The place stands in front already.
        let first = first.split_once(" at line ").map_or(first, |(message, _)| message).to_owned();
        let hint = self.text.contains('\t').then(|| "YAML does not allow tabs for indentation".to_owned());
        self.error(place, first, hint)
    }
}

/// Reads and checks a lab file. `file` is the name that errors show.
pub(crate) fn parse(file: &str, text: &str) -> Result<Spec, SpecError> {
    let source = Source { file, text };
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let raw: RawSpec = serde_saphyr::from_str_with_options(text, options).map_err(|e| source.parse_error(&e))?;
    let keys = check_keys(&source, &raw.keys)?;
    let region = region(&source, raw.region.as_ref(), &raw.instances.value)?;
    let instances = expand(&source, &raw, &region, &keys)?;
    let name = match &raw.name {
        Some(name) => {
            check_lab_name(&name.value).map_err(|message| source.at(name, message, None))?;
            name.value.clone()
        }
        None => "default".to_owned(),
    };
    if let Some(jump) = &raw.jump_host
        && !instances.iter().any(|instance| instance.name == jump.value)
    {
        let hint = nearest(&jump.value, instances.iter().map(|i| i.name.as_str()));
        let hint = hint.map(|name| format!("did you mean '{name}'?"));
        return Err(source.at(jump, format!("no instance is called '{}'", jump.value), hint));
    }
    let disk_bytes = match &raw.disk {
        Some(disk) => parse_size(&disk.value).ok_or_else(|| {
            let hint = "a whole number with MiB or GiB, at least 64MiB, for example 4GiB";
            source.at(disk, format!("'{}' is no size of a disk", disk.value), Some(hint.to_owned()))
        })?,
        None => DISK_BYTES,
    };
    let programs = check_programs(&source, &raw.programs)?;
    let packages = check_packages(&source, &raw.packages)?;
    let jump_host = raw.jump_host.map(|jump| jump.value);
    Ok(Spec { name, region, jump_host, disk_bytes, programs, packages, keys, instances })
}

/// Reads a lab file from disk. The text is returned too: it tells whether a running lab is of the same file.
pub(crate) fn load(path: &Path) -> anyhow::Result<(Spec, String)> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| anyhow::Error::new(error).context(format!("cannot read lab file {}", path.display())))?;
    Ok((parse(&path.display().to_string(), &text)?, text))
}

/// Names of labs become parts of namespaces, folders and sockets.
pub(crate) fn check_lab_name(name: &str) -> Result<(), String> {
    let fine = (1..=32).contains(&name.len()) && is_label(name);
    fine.then_some(()).ok_or_else(|| {
        format!("'{name}' cannot name a lab: 1 to 32 small letters, digits and '-', first and last no '-'")
    })
}

fn is_label(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.is_empty()
}

fn check_programs(source: &Source<'_>, raw: &[Spanned<String>]) -> Result<Vec<String>, SpecError> {
    for name in raw {
        if !programs::names().any(|known| known == name.value) {
            let hint = match nearest(&name.value, programs::names()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("there are: {}", programs::names().collect::<Vec<_>>().join(", ")),
            };
            return Err(source.at(name, format!("the lab has no program '{}'", name.value), Some(hint)));
        }
    }
    Ok(raw.iter().map(|name| name.value.clone()).collect())
}

/// Names as Debian has them; whether there is such a package, the making of the repository tells.
fn check_packages(source: &Source<'_>, raw: &[Spanned<String>]) -> Result<Vec<String>, SpecError> {
    for name in raw {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
        let first = name.value.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if name.value.len() < 2 || !first || !name.value.bytes().all(good) {
            let hint = "small letters, digits and '+', '-', '.', for example docker.io";
            return Err(source.at(name, format!("'{}' is no name of a package", name.value), Some(hint.to_owned())));
        }
    }
    Ok(raw.iter().map(|name| name.value.clone()).collect())
}

fn check_keys(source: &Source<'_>, raw: &[RawKey]) -> Result<Vec<KeySpec>, SpecError> {
    let mut seen = BTreeSet::new();
    for key in raw {
        let name = &key.name.value;
        // It becomes a file's name.
        let fine = !name.is_empty()
            && name.len() <= 64
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !fine {
            let message = format!("'{name}' cannot name a key: 1 to 64 letters, digits, '-', '_', '.'");
            return Err(source.at(&key.name, message, None));
        }
        if !seen.insert(name) {
            return Err(source.at(&key.name, format!("the key '{name}' is there twice"), None));
        }
    }
    Ok(raw.iter().map(|key| KeySpec { name: key.name.value.clone() }).collect())
}

/// The region of the file, or that of its zones.
fn region(source: &Source<'_>, given: Option<&Spanned<String>>, raw: &[RawInstance]) -> Result<String, SpecError> {
    if let Some(region) = given {
        let fine = region.value.ends_with(|c: char| c.is_ascii_digit()) && is_label(&region.value);
        if !fine || region.value.matches('-').count() < 2 {
            let message = format!("'{}' is no region", region.value);
            return Err(source.at(region, message, Some("for example us-west-2".to_owned())));
        }
        return Ok(region.value.clone());
    }
    match raw.iter().find_map(|instance| instance.zone.as_ref()) {
        Some(zone) => region_of(&zone.value)
            .map(str::to_owned)
            .ok_or_else(|| source.at(zone, format!("'{}' is no zone", zone.value), Some(ZONE_HINT.to_owned()))),
        None => Ok("us-west-2".to_owned()),
    }
}

const ZONE_HINT: &str = "a zone is a region and a letter, for example us-west-2a";

/// `us-west-2` of `us-west-2a`.
fn region_of(zone: &str) -> Option<&str> {
    let region = zone.strip_suffix(|c: char| c.is_ascii_lowercase())?;
    (is_label(region) && region.ends_with(|c: char| c.is_ascii_digit()) && region.matches('-').count() >= 2)
        .then_some(region)
}

/// All instances of the file, counts expanded, in the file's order.
fn expand(source: &Source<'_>, raw: &RawSpec, region: &str, keys: &[KeySpec]) -> Result<Vec<InstanceSpec>, SpecError> {
    let mut instances: Vec<InstanceSpec> = Vec::new();
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for one in &raw.instances.value {
        let address = check_instance(source, one, keys)?;
        if let (Some(address), Some(given)) = (address, &one.address)
            && !addresses.insert(address)
        {
            return Err(source.at(given, format!("the address {address} is there twice"), None));
        }
        let count = one.count.as_ref().map(|count| count.value);
        for number in 1..=count.unwrap_or(1) {
            let base = &one.name.value;
            let name = if count.is_some() { format!("{base}-{number}") } else { base.clone() };
            if !names.insert(name.clone()) {
                let message = format!("an instance called '{name}' is there already");
                return Err(source.at(&one.name, message, None));
            }
            instances.push(InstanceSpec {
                name,
                instance_type: one.instance_type.as_ref().map_or("t3.micro", |t| &t.value).to_owned(),
                image: one.image.as_ref().map_or(IMAGES[0], |image| &image.value).to_owned(),
                zone: one.zone.as_ref().map_or_else(|| format!("{region}a"), |zone| zone.value.clone()),
                // A lab with one key has no question which.
                key: match (&one.key, keys) {
                    (Some(key), _) => Some(key.value.clone()),
                    (None, [only]) => Some(only.name.clone()),
                    (None, _) => None,
                },
                tags: one.tags.clone(),
                user_data: one.user_data.clone(),
                address,
            });
        }
    }
    if instances.is_empty() {
        return Err(source.at(&raw.instances, "a lab needs at least one instance", None));
    }
    if instances.len() > MOST_INSTANCES {
        let message = format!("{} instances do not fit: a lab has addresses for {MOST_INSTANCES}", instances.len());
        return Err(source.at(&raw.instances, message, None));
    }
    Ok(instances)
}

/// Checks one entry; returns its fixed address.
fn check_instance(source: &Source<'_>, one: &RawInstance, keys: &[KeySpec]) -> Result<Option<Ipv4Addr>, SpecError> {
    let name = &one.name;
    if name.value.len() > 50 || !is_label(&name.value) {
        let message = format!(
            "'{}' cannot name an instance: 1 to 50 small letters, digits and '-', first and last no '-'",
            name.value
        );
        return Err(source.at(name, message, None));
    }
    if let Some(count) = &one.count
        && !(1..=200).contains(&count.value)
    {
        return Err(source.at(count, format!("count is {}: it must be 1 to {MOST_INSTANCES}", count.value), None));
    }
    if let (Some(count), Some(address)) = (&one.count, &one.address)
        && count.value > 1
    {
        return Err(source.at(address, format!("one address cannot be that of {} instances", count.value), None));
    }
    if let Some(kind) = &one.instance_type
        && !kind.value.split_once('.').is_some_and(|(family, size)| is_label(family) && is_label(size))
    {
        let message = format!("'{}' is no instance type", kind.value);
        return Err(source.at(kind, message, Some("for example t3.micro".to_owned())));
    }
    if let Some(image) = &one.image
        && !IMAGES.contains(&image.value.as_str())
    {
        let hint = format!("there is: {}", IMAGES.join(", "));
        return Err(source.at(image, format!("no image is called '{}'", image.value), Some(hint)));
    }
    if let Some(zone) = &one.zone
        && region_of(&zone.value).is_none()
    {
        return Err(source.at(zone, format!("'{}' is no zone", zone.value), Some(ZONE_HINT.to_owned())));
    }
    if let Some(key) = &one.key
        && !keys.iter().any(|known| known.name == key.value)
    {
        let known: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        let hint = match (nearest(&key.value, known.iter().copied()), known.is_empty()) {
            (Some(near), _) => format!("did you mean '{near}'?"),
            (None, true) => format!("add it at the top: keys: [{{name: {}}}]", key.value),
            (None, false) => format!("the file's keys: {}", known.join(", ")),
        };
        return Err(source.at(key, format!("no key is called '{}'", key.value), Some(hint)));
    }
    check_tags(source, one)?;
    one.address
        .as_ref()
        .map(|address| {
            address
                .value
                .parse()
                .map_err(|_| source.at(address, format!("'{}' is no IPv4 address", address.value), None))
        })
        .transpose()
}

/// EC2's own limits, told before EC2 would.
fn check_tags(source: &Source<'_>, one: &RawInstance) -> Result<(), SpecError> {
    for (tag, value) in &one.tags {
        let wrong = if tag == "Name" {
            Some("is made from the instance's name".to_owned())
        } else if tag.is_empty() || tag.chars().count() > 128 {
            Some("has a name that EC2 refuses: 1 to 128 letters".to_owned())
        } else if tag.to_ascii_lowercase().starts_with("aws:") {
            Some("starts with 'aws:', which is reserved for AWS".to_owned())
        } else if value.chars().count() > 256 {
            Some("has a value that EC2 refuses: at most 256 letters".to_owned())
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let mut message = String::new();
            let _ = write!(message, "the tag '{tag}' of instance '{}' {wrong}", one.name.value);
            return Err(source.at(&one.name, message, None));
        }
    }
    Ok(())
}

/// Bytes of `512MiB` or `4GiB`.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix("MiB") {
        Some(number) => (number, 1_u64 << 20),
        None => (text.strip_suffix("GiB")?, 1 << 30),
    };
    number.trim_end().parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| (64 << 20..=1 << 40).contains(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(text: &str, place: &str, parts: &[&str]) {
        let error = parse("lab.yaml", text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("lab.yaml:{place}: ")), "{error}");
        for part in parts {
            assert!(error.contains(part), "'{part}' is not in: {error}");
        }
    }

    #[test]
    fn counts_expand_and_defaults_fill_in() {
        let text = "name: two\nkeys: [{name: k}]\ninstances:\n  - {name: web, count: 2, tags: {Role: web, Edge: true}}\n  - {name: db, zone: eu-west-1c, address: 10.77.1.9}\n";
        let spec = parse("lab.yaml", text).unwrap();
        let names: Vec<_> = spec.instances.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["web-1", "web-2", "db"]);
        assert_eq!(spec.region, "eu-west-1");
        assert_eq!(spec.instances[0].zone, "eu-west-1a");
        assert_eq!(spec.instances[0].key.as_deref(), Some("k"));
        assert_eq!(spec.instances[0].tags["Edge"], "true");
        assert_eq!(spec.instances[0].image, "debian-12");
        assert_eq!(spec.instances[2].address, Some(Ipv4Addr::new(10, 77, 1, 9)));
        assert_eq!(spec.disk_bytes, 4 << 30);
    }

    #[test]
    fn count_one_is_numbered_too() {
        let spec = parse("lab.yaml", "instances: [{name: a, count: 1}]").unwrap();
        assert_eq!(spec.instances[0].name, "a-1");
    }

    #[test]
    fn the_labs_that_come_with_it_are_right() {
        let kraken = parse("kraken.yaml", include_str!("../kraken.yaml")).unwrap();
        assert_eq!(kraken.instances.len(), 11);
        let edges = kraken.instances.iter().filter(|i| i.tags.get("Edge").is_some_and(|edge| edge == "true"));
        assert_eq!(edges.count(), 2);
        assert_eq!(kraken.jump_host.as_deref(), Some("jump"));
        assert_eq!(parse("small.yaml", include_str!("../small.yaml")).unwrap().instances.len(), 3);
    }

    #[test]
    fn a_misspelt_key_is_told_with_its_line_and_the_nearest_one() {
        fails(
            "name: x\ninstances:\n  - name: a\n    tgas: {}\n",
            "4:5",
            &["unknown key 'tgas'", "did you mean 'tags'?", "4 |     tgas: {}"],
        );
        fails("instnaces: []\n", "1:1", &["unknown key 'instnaces'", "did you mean 'instances'?"]);
        fails("colour: red\ninstances: []\n", "1:1", &["known here: name, region"]);
    }

    #[test]
    fn malformed_yaml_tabs_and_duplicate_keys_are_told() {
        fails("name: x\nname: y\ninstances: [{name: a}]\n", "2:1", &["name"]);
        fails("instances:\n\t- name: a\n", "2:2", &["tabs disallowed"]);
        assert!(parse("lab.yaml", "instances: [\n").is_err());
        assert!(parse("lab.yaml", "").is_err());
        assert!(parse("lab.yaml", "- a\n- b\n").is_err());
    }

    #[test]
    fn wrong_values_are_told_where_they_stand() {
        fails("name: Big Lab\ninstances: [{name: a}]", "1:7", &["'Big Lab' cannot name a lab"]);
        fails("instances: []", "1:12", &["at least one instance"]);
        fails("instances: [{name: a, count: 0}]", "1:30", &["count is 0"]);
        fails("instances: [{name: a, count: many}]", "1:30", &[]);
        fails("instances: [{name: a_b}]", "1:20", &["cannot name an instance"]);
        fails("instances: [{name: a}, {name: a}]", "1:31", &["there already"]);
        fails("instances: [{name: a, count: 2}, {name: a-2}]", "1:41", &["'a-2' is there already"]);
        fails("instances: [{name: a, image: debain-12}]", "1:30", &["no image", "there is: debian-12"]);
        fails("instances: [{name: a, type: micro}]", "1:29", &["no instance type"]);
        fails("instances: [{name: a, zone: us-west-2}]", "1:29", &["no zone", "us-west-2a"]);
        fails("instances: [{name: a, key: k}]", "1:28", &["no key is called 'k'", "keys: [{name: k}]"]);
        fails("keys: [{name: main}]\ninstances: [{name: a, key: mian}]", "2:28", &["did you mean 'main'?"]);
        fails("keys: [{name: ../x}]\ninstances: [{name: a}]", "1:15", &["cannot name a key"]);
        fails("instances: [{name: a, address: 10.77.1.400}]", "1:32", &["no IPv4 address"]);
        fails("instances: [{name: a, tags: {Name: b}}]", "1:20", &["is made from the instance's name"]);
        fails("instances: [{name: a, tags: {'aws:x': b}}]", "1:20", &["reserved"]);
        fails("jump_host: jmup\ninstances: [{name: jump}]", "1:12", &["did you mean 'jump'?"]);
        fails("disk: 3\ninstances: [{name: a}]", "1:7", &["no size", "4GiB"]);
        fails("programs: [valt]\ninstances: [{name: a}]", "1:12", &["no program 'valt'", "did you mean 'vault'?"]);
        fails("packages: [Docker]\ninstances: [{name: a}]", "1:12", &["'Docker' is no name of a package", "docker.io"]);
        fails("packages: ['x; y']\ninstances: [{name: a}]", "1:12", &["is no name of a package"]);
        fails("region: west\ninstances: [{name: a}]", "1:9", &["no region"]);
    }

    #[test]
    fn sizes_have_units_and_limits() {
        assert_eq!(parse_size("512MiB"), Some(512 << 20));
        assert_eq!(parse_size("2 GiB"), Some(2 << 30));
        assert_eq!(parse_size("1MiB"), None);
        assert_eq!(parse_size("99999999999999999999GiB"), None);
        assert_eq!(parse_size("GiB"), None);
    }
}
