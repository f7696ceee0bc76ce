//! `hostnames`: which attribute or tag names an instance.

use serde_json::Value;

use super::query::Instance;
use crate::{
    diag::{Diagnostic, Diagnostics, Span, nearest},
    inventory::pytext,
    node::{Fields, Kind, Node},
    template,
    vars::{Layer, Scope, Var, Vars},
};

/// The words of DescribeInstances' filters, and where the attribute stands.
pub(super) const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("affinity", &["placement", "affinity"]),
    ("architecture", &["architecture"]),
    ("availability-zone", &["placement", "availability_zone"]),
    ("block-device-mapping.attach-time", &["block_device_mappings", "ebs", "attach_time"]),
    ("block-device-mapping.delete-on-termination", &["block_device_mappings", "ebs", "delete_on_termination"]),
    ("block-device-mapping.device-name", &["block_device_mappings", "device_name"]),
    ("block-device-mapping.status", &["block_device_mappings", "ebs", "status"]),
    ("block-device-mapping.volume-id", &["block_device_mappings", "ebs", "volume_id"]),
    ("client-token", &["client_token"]),
    ("dns-name", &["public_dns_name"]),
    ("host-id", &["placement", "host_id"]),
    ("hypervisor", &["hypervisor"]),
    ("iam-instance-profile.arn", &["iam_instance_profile", "arn"]),
    ("image-id", &["image_id"]),
    ("instance-id", &["instance_id"]),
    ("instance-lifecycle", &["instance_lifecycle"]),
    ("instance-state-code", &["state", "code"]),
    ("instance-state-name", &["state", "name"]),
    ("instance-type", &["instance_type"]),
    ("instance.group-id", &["security_groups", "group_id"]),
    ("instance.group-name", &["security_groups", "group_name"]),
    ("ip-address", &["public_ip_address"]),
    ("kernel-id", &["kernel_id"]),
    ("key-name", &["key_name"]),
    ("launch-index", &["ami_launch_index"]),
    ("launch-time", &["launch_time"]),
    ("monitoring-state", &["monitoring", "state"]),
    ("network-interface.addresses.private-ip-address", &["network_interfaces", "private_ip_address"]),
    ("network-interface.addresses.primary", &["network_interfaces", "private_ip_addresses", "primary"]),
    (
        "network-interface.addresses.association.public-ip",
        &["network_interfaces", "private_ip_addresses", "association", "public_ip"],
    ),
    (
        "network-interface.addresses.association.ip-owner-id",
        &["network_interfaces", "private_ip_addresses", "association", "ip_owner_id"],
    ),
    ("network-interface.association.public-ip", &["network_interfaces", "association", "public_ip"]),
    ("network-interface.association.ip-owner-id", &["network_interfaces", "association", "ip_owner_id"]),
    ("network-interface.attachment.attachment-id", &["network_interfaces", "attachment", "attachment_id"]),
    ("network-interface.attachment.instance-id", &["instance_id"]),
    ("network-interface.attachment.instance-owner-id", &["owner_id"]),
    ("network-interface.attachment.device-index", &["network_interfaces", "attachment", "device_index"]),
    ("network-interface.attachment.status", &["network_interfaces", "attachment", "status"]),
    ("network-interface.attachment.attach-time", &["network_interfaces", "attachment", "attach_time"]),
    (
        "network-interface.attachment.delete-on-termination",
        &["network_interfaces", "attachment", "delete_on_termination"],
    ),
    ("network-interface.availability-zone", &["placement", "availability_zone"]),
    ("network-interface.description", &["network_interfaces", "description"]),
    ("network-interface.group-id", &["network_interfaces", "groups", "group_id"]),
    ("network-interface.group-name", &["network_interfaces", "groups", "group_name"]),
    ("network-interface.ipv6-addresses.ipv6-address", &["network_interfaces", "ipv6_addresses", "ipv6_address"]),
    ("network-interface.mac-address", &["network_interfaces", "mac_address"]),
    ("network-interface.network-interface-id", &["network_interfaces", "network_interface_id"]),
    ("network-interface.owner-id", &["network_interfaces", "owner_id"]),
    ("network-interface.private-dns-name", &["network_interfaces", "private_dns_name"]),
    ("network-interface.source-dest-check", &["network_interfaces", "source_dest_check"]),
    ("network-interface.status", &["network_interfaces", "status"]),
    ("network-interface.subnet-id", &["network_interfaces", "subnet_id"]),
    ("network-interface.vpc-id", &["network_interfaces", "vpc_id"]),
    ("owner-id", &["owner_id"]),
    ("placement-group-name", &["placement", "group_name"]),
    ("platform", &["platform"]),
    ("private-dns-name", &["private_dns_name"]),
    ("private-ip-address", &["private_ip_address"]),
    ("product-code", &["product_codes", "product_code_id"]),
    ("product-code.type", &["product_codes", "product_code_type"]),
    ("ramdisk-id", &["ramdisk_id"]),
    ("reason", &["state_transition_reason"]),
    ("requester-id", &["requester_id"]),
    ("reservation-id", &["reservation_id"]),
    ("root-device-name", &["root_device_name"]),
    ("root-device-type", &["root_device_type"]),
    ("source-dest-check", &["source_dest_check"]),
    ("spot-instance-request-id", &["spot_instance_request_id"]),
    ("state-reason-code", &["state_reason", "code"]),
    ("state-reason-message", &["state_reason", "message"]),
    ("subnet-id", &["subnet_id"]),
    ("tenancy", &["placement", "tenancy"]),
    ("virtualization-type", &["virtualization_type"]),
    ("vpc-id", &["vpc_id"]),
];

/// Where one name comes from.
#[derive(Clone, Debug)]
enum Origin {
    /// Values of tags; with a value given, `Name_Value` where the tag has it.
    Tags(Vec<(String, Option<String>)>),
    /// An attribute.
    Attribute(&'static [&'static str]),
    /// The word itself.
    Literal(String),
}

/// A word, with filters behind a `|`.
#[derive(Clone, Debug)]
struct Part {
    origin: Origin,
    filter: Option<(String, Span)>,
}

/// One entry of `hostnames`.
#[derive(Clone, Debug)]
pub(super) struct Preference {
    name: Part,
    prefix: Option<Part>,
    separator: String,
}

/// What Ansible takes where the file says nothing.
pub(super) fn defaults() -> Vec<Preference> {
    let part = |path| Part { origin: Origin::Attribute(path), filter: None };
    [&["public_dns_name"] as &'static [&'static str], &["private_dns_name"]]
        .into_iter()
        .map(|path| Preference { name: part(path), prefix: None, separator: "_".into() })
        .collect()
}

/// Reads the list: words, or mappings of `name`, `prefix`, `separator`. Plain text may hold several, parted by commas.
pub(super) fn read(node: &Node, out: &mut Diagnostics) -> Vec<Preference> {
    let mut found = Vec::new();
    if let Kind::Str(text) = &node.kind {
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match part(word, node.span, out) {
                Ok(name) => found.push(Preference { name, prefix: None, separator: "_".into() }),
                Err(e) => out.push(e),
            }
        }
        return found;
    }
    let items = match node.list() {
        Ok(items) => items,
        Err(e) => {
            out.push(e.hint("hostnames is a list: [tag:Name, private-ip-address]"));
            return found;
        }
    };
    for item in items {
        match entry(item, out) {
            Ok(preference) => found.push(preference),
            Err(e) => out.push(e),
        }
    }
    found
}

fn entry(item: &Node, out: &mut Diagnostics) -> Result<Preference, Diagnostic> {
    if let Kind::Str(word) = &item.kind {
        return Ok(Preference { name: part(word, item.span, out)?, prefix: None, separator: "_".into() });
    }
    let mut fields = Fields::new("hostname", item)
        .map_err(|e| e.hint("an entry is a word (tag:Name) or a mapping with 'name', 'prefix', 'separator'"))?;
    let name = fields.require("name")?;
    let prefix = fields.take("prefix");
    let separator = fields.take("separator");
    fields.finish(out);
    Ok(Preference {
        name: part(&name.scalar_text()?, name.span, out)?,
        prefix: prefix.map(|p| part(&p.scalar_text()?, p.span, out)).transpose()?,
        separator: separator.map(Node::scalar_text).transpose()?.unwrap_or_else(|| "_".into()),
    })
}

fn part(text: &str, span: Span, out: &mut Diagnostics) -> Result<Part, Diagnostic> {
    let (word, filter) = match text.split_once('|') {
        Some((word, filter)) => (word.trim_end(), Some((format!("value |{filter}"), span))),
        None => (text, None),
    };
    if let Some((expression, span)) = &filter {
        template::check_expression(expression, *span)?;
    }
    if let Some(tags) = word.strip_prefix("tag:") {
        let tags = tags.split(',').map(|tag| match tag.split_once('=') {
            Some((_, value)) if value.contains('=') => {
                Err(Diagnostic::error(span, format!("'{tag}' holds more than one '='")))
            }
            Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
            None => Ok((tag.to_owned(), None)),
        });
        return Ok(Part { origin: Origin::Tags(tags.collect::<Result<_, _>>()?), filter });
    }
    if let Some((_, path)) = ATTRIBUTES.iter().find(|(name, _)| *name == word) {
        return Ok(Part { origin: Origin::Attribute(path), filter });
    }
    let names = || ATTRIBUTES.iter().map(|(name, _)| *name);
    let unknown = |hint: String| {
        Err(Diagnostic::error(span, format!("'{word}' is no attribute of an instance"))
            .hint(hint)
            .note(Span::NONE, "an unknown word would be the name of every instance"))
    };
    if let Some(tag) = word.strip_prefix("tag-").or_else(|| word.strip_prefix("tag_")) {
        return unknown(format!("did you mean 'tag:{tag}'?"));
    }
    let dashed = word.replace('_', "-");
    if names().any(|name| name == dashed) {
        return unknown(format!("did you mean '{dashed}'?"));
    }
    if let Some((name, _)) = ATTRIBUTES.iter().find(|(_, path)| path.len() == 1 && path[0] == word) {
        return unknown(format!("did you mean '{name}'?"));
    }
    if let Some(near) = nearest(word, names()) {
        out.push(
            Diagnostic::warning(span, format!("'{word}' is no attribute of an instance: it is taken as it is"))
                .hint(format!("did you mean '{near}'?")),
        );
    }
    Ok(Part { origin: Origin::Literal(word.to_owned()), filter })
}

impl Part {
    /// All values; empty where there is none.
    fn values(&self, instance: &Instance) -> Vec<String> {
        let raw = match &self.origin {
            Origin::Literal(word) => Some(Value::String(word.clone())),
            Origin::Attribute(path) => {
                path.iter().try_fold(Value::Object(instance.attributes.clone()), |value, name| step(&value, name))
            }
            Origin::Tags(tags) => {
                let found: Vec<Value> = tags
                    .iter()
                    .filter_map(|(name, wanted)| match (instance.tag(name), wanted) {
                        (Some(value), Some(wanted)) => (value == wanted).then(|| format!("{name}_{value}")),
                        (Some(value), None) => (!value.is_empty()).then(|| value.to_owned()),
                        (None, _) => None,
                    })
                    .map(Value::String)
                    .collect();
                if let [one] = found.as_slice() { Some(one.clone()) } else { Some(Value::Array(found)) }
            }
        };
        let Some(raw) = raw.filter(pytext::truthy) else { return Vec::new() };
        let value = match &self.filter {
            None => raw,
            Some((expression, span)) => {
                let scope = Scope::of(Vars::from([("value".to_owned(), Var::data(raw, Layer::InventoryHost))]));
                match template::eval(expression, *span, &scope) {
                    Ok(value) => value,
                    // A filter that cannot take this value gives no name, and the next entry is asked.
                    Err(_) => return Vec::new(),
                }
            }
        };
        match value {
            Value::Array(items) => items.iter().filter_map(scalar).collect(),
            other => scalar(&other).into_iter().collect(),
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        other if !pytext::truthy(other) => None,
        other => Some(pytext::text(other)),
    }
}

/// The attribute of a map, or of every map of a list; a list of one is that one.
fn step(value: &Value, name: &str) -> Option<Value> {
    let found = match value {
        Value::Array(items) => {
            Value::Array(items.iter().filter_map(|item| step(item, name)).filter(pytext::truthy).collect())
        }
        Value::Object(map) => map.get(name)?.clone(),
        _ => return None,
    };
    match found {
        Value::Array(mut items) if items.len() == 1 => items.pop(),
        other => Some(other),
    }
}

/// The names of an instance: the first that is found, or all of them.
pub(super) fn names(preferences: &[Preference], instance: &Instance, all: bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for preference in preferences {
        let mut values = preference.name.values(instance);
        let prefix = preference.prefix.as_ref().and_then(|p| p.values(instance).into_iter().next());
        if let Some(prefix) = prefix {
            values.truncate(1);
            for value in &mut values {
                *value = format!("{prefix}{}{value}", preference.separator);
            }
        }
        for value in values {
            let name = if value.contains(':') { super::evaluate::group_name(&value) } else { value };
            if !found.contains(&name) {
                found.push(name);
            }
            if !all {
                return found;
            }
        }
    }
    found
}

/// An empty map of attributes with tags, for tests of other modules.
#[cfg(test)]
pub(super) fn instance(id: &str, attributes: &Value) -> Instance {
    let mut map: serde_json::Map<String, Value> = attributes.as_object().cloned().unwrap_or_default();
    map.insert("instance_id".into(), Value::String(id.into()));
    Instance { id: id.into(), region: "eu-west-1".into(), attributes: map }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{diag::FileId, yaml};

    fn preferences(text: &str) -> (Vec<Preference>, Diagnostics) {
        let node = yaml::parse_text(FileId(0), text).unwrap();
        let mut out = Diagnostics::default();
        (read(&node, &mut out), out)
    }

    #[test]
    fn names_come_from_tags_attributes_and_words() {
        let web = instance(
            "i-1",
            &json!({"private_ip_address": "10.0.0.1", "public_dns_name": "", "tags": {"Name": "web:1", "Env": "prod"},
                "security_groups": [{"group_name": "a"}, {"group_name": "b"}], "placement": {"availability_zone": "eu-west-1a"}}),
        );
        let cases: &[(&str, bool, &[&str])] = &[
            ("[tag:Name]", false, &["web_1"]),
            ("[tag:Nope, private-ip-address]", false, &["10.0.0.1"]),
            ("tag:Nope,private-ip-address", false, &["tag:Nope"]),
            ("[dns-name, availability-zone]", false, &["eu-west-1a"]),
            ("[instance.group-name]", false, &["a"]),
            ("[instance.group-name]", true, &["a", "b"]),
            ("['tag:Env=prod']", false, &["Env_prod"]),
            ("['tag:Env=dev', instance-id]", false, &["i-1"]),
            ("['tag:Nope,Env']", false, &["prod"]),
            ("[{name: private-ip-address, prefix: 'tag:Env', separator: '-'}]", false, &["prod-10.0.0.1"]),
            ("[{name: private-ip-address, prefix: 'tag:Nope'}]", false, &["10.0.0.1"]),
            ("[{name: fixed, prefix: aws, separator: '-'}]", false, &["aws-fixed"]),
            ("[tag:Env, private-ip-address]", true, &["prod", "10.0.0.1"]),
            ("[\"tag:Env | upper\"]", false, &["PROD"]),
            ("[tag:Nope]", false, &[]),
        ];
        for (text, all, expected) in cases {
            // Plain text with commas is a list of words.
            let expected: &[&str] = if *text == "tag:Nope,private-ip-address" { &["10.0.0.1"] } else { expected };
            let (found, out) = preferences(text);
            assert_eq!(out.0, [], "{text}");
            assert_eq!(names(&found, &web, *all), expected, "{text}");
        }
    }

    #[test]
    fn words_that_would_name_every_instance_are_refused() {
        let cases = [
            ("[private_ip_address]", "did you mean 'private-ip-address'?"),
            ("[public_dns_name]", "did you mean 'dns-name'?"),
            ("[tag-Name]", "did you mean 'tag:Name'?"),
        ];
        for (text, hint) in cases {
            let (_, out) = preferences(text);
            assert_eq!(out.0[0].hint.as_deref(), Some(hint), "{text}");
            assert!(out.has_errors());
        }
        let (_, out) = preferences("[{nam: x}]");
        assert_eq!(out.0[0].message, "hostname needs 'name'");
        let (_, out) = preferences("[{name: dns-name, prefx: x}]");
        assert_eq!(out.0[0].message, "unknown key 'prefx' in a hostname");
    }
}
