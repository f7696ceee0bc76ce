//! Puts the lab file into the API: VPC, one subnet per zone, key pairs, images, instances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use indexmap::IndexMap;
use ipnet::Ipv4Net;

use super::moto::{Api, ApiError};
use super::{CloudConfig, InstanceSpec, Owner};
use crate::failure::Failure;

/// Instances without a fixed address get the addresses from this one of their zone's subnet on.
const FIRST_HOST: u32 = 10;
/// EC2 keeps the first four addresses of a subnet, and the last.
const RESERVED_HOSTS: u32 = 4;
/// EC2's smallest subnet.
const SMALLEST_SUBNET: u8 = 28;

/// Why a lab file cannot become instances.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PlanError {
    #[error(
        "instance `{instance}`: `{zone}` is no availability zone (expected a region and a letter, such as us-west-2a)"
    )]
    Zone { instance: String, zone: String },
    #[error("{count} zones do not fit into {subnet}: at most {most}")]
    TooManyZones { count: usize, subnet: Ipv4Net, most: usize },
    #[error(
        "instance `{instance}`: {address} is not in {subnet}, the part of its zone {zone} (from {first} to {last})"
    )]
    Outside { instance: String, address: Ipv4Addr, zone: String, subnet: Ipv4Net, first: Ipv4Addr, last: Ipv4Addr },
    #[error("instances `{first}` and `{second}` both want the address {address}")]
    Taken { first: String, second: String, address: Ipv4Addr },
    #[error("instance `{instance}`: no address is left in {subnet}, the part of its zone {zone}")]
    Full { instance: String, zone: String, subnet: Ipv4Net },
    #[error("instance `{instance}`: there is no key `{key}` under `keys`{}", nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default())]
    Key { instance: String, key: String, nearest: Option<String> },
    #[error("key `{0}`: a name may have letters, digits, `.`, `_` and `-`, and does not begin with `.` or `-`")]
    KeyName(String),
}

/// Who gets which address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Subnet by zone, in the order of first use.
    pub(crate) zones: IndexMap<String, Ipv4Net>,
    /// One for each instance, in their order.
    pub(crate) addresses: Vec<Ipv4Addr>,
}

/// The region of a zone: `us-west-2` of `us-west-2a`.
pub(crate) fn region_of(zone: &str) -> Option<&str> {
    let region = zone.strip_suffix(|letter: char| letter.is_ascii_lowercase())?;
    let parts: Vec<&str> = region.split('-').collect();
    let (number, names) = parts.split_last()?;
    let proper = names.len() >= 2
        && names.iter().all(|name| !name.is_empty() && name.chars().all(|letter| letter.is_ascii_lowercase()))
        && !number.is_empty()
        && number.chars().all(|digit| digit.is_ascii_digit());
    proper.then_some(region)
}

/// Divides the lab's range among the zones that are used, and gives every instance an address.
pub(crate) fn plan(
    subnet: Ipv4Net,
    region: &str,
    keys: &[&str],
    instances: &[InstanceSpec],
) -> Result<Plan, PlanError> {
    for key in keys {
        let plain = key.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
        if key.is_empty() || !plain || key.starts_with(['.', '-']) {
            return Err(PlanError::KeyName((*key).to_owned()));
        }
    }
    for instance in instances {
        if region_of(&instance.zone).is_none() {
            return Err(PlanError::Zone { instance: instance.name.clone(), zone: instance.zone.clone() });
        }
        if let Some(key) = instance.key.as_ref().filter(|key| !keys.contains(&key.as_str())) {
            let nearest = keys
                .iter()
                .find(|known| known.eq_ignore_ascii_case(key))
                .or_else(|| keys.first().filter(|_| keys.len() == 1));
            return Err(PlanError::Key {
                instance: instance.name.clone(),
                key: key.clone(),
                nearest: nearest.map(|name| (*name).to_owned()),
            });
        }
    }
    let zones = divide(subnet, region, instances)?;
    let mut taken: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
    for instance in instances {
        let Some(address) = instance.address else { continue };
        let part = zones[&instance.zone];
        let (first, last) = usable(part);
        if address < first || address > last {
            return Err(PlanError::Outside {
                instance: instance.name.clone(),
                zone: instance.zone.clone(),
                subnet: part,
                address,
                first,
                last,
            });
        }
        if let Some(other) = taken.insert(address, &instance.name) {
            return Err(PlanError::Taken { first: other.to_owned(), second: instance.name.clone(), address });
        }
    }
    let mut addresses = Vec::with_capacity(instances.len());
    for instance in instances {
        let part = zones[&instance.zone];
        let address = match instance.address {
            Some(address) => address,
            None => {
                let from = u32::from(part.network()) + FIRST_HOST;
                let to = u32::from(part.broadcast());
                let free = (from..to).map(Ipv4Addr::from).find(|address| !taken.contains_key(address));
                free.ok_or_else(|| PlanError::Full {
                    instance: instance.name.clone(),
                    zone: instance.zone.clone(),
                    subnet: part,
                })?
            }
        };
        taken.insert(address, &instance.name);
        addresses.push(address);
    }
    Ok(Plan { zones, addresses })
}

/// A subnet lies in one zone: as many equal parts as there are zones.
fn divide(subnet: Ipv4Net, region: &str, instances: &[InstanceSpec]) -> Result<IndexMap<String, Ipv4Net>, PlanError> {
    let mut names: Vec<String> = Vec::new();
    for instance in instances {
        if !names.contains(&instance.zone) {
            names.push(instance.zone.clone());
        }
    }
    if names.is_empty() {
        names.push(format!("{region}a"));
    }
    names.sort();
    let bits = names.len().next_power_of_two().trailing_zeros() as u8;
    let too_many = || PlanError::TooManyZones {
        count: names.len(),
        subnet,
        most: 1_usize << SMALLEST_SUBNET.saturating_sub(subnet.prefix_len()),
    };
    let prefix = subnet.prefix_len() + bits;
    if prefix > SMALLEST_SUBNET {
        return Err(too_many());
    }
    let parts = subnet.subnets(prefix).map_err(|_| too_many())?;
    Ok(names.into_iter().zip(parts).collect())
}

/// The first and the last address that an instance may have.
fn usable(part: Ipv4Net) -> (Ipv4Addr, Ipv4Addr) {
    let first = u32::from(part.network()) + RESERVED_HOSTS;
    (first.into(), (u32::from(part.broadcast()) - 1).into())
}

/// Every region that the lab file uses.
pub(crate) fn regions(config: &CloudConfig) -> BTreeSet<String> {
    let used = config.instances.iter().filter_map(|instance| region_of(&instance.zone));
    used.chain([config.region.as_str()]).map(str::to_owned).collect()
}

/// Writes everything into the API. Call it once, on a fresh server.
pub(crate) async fn seed(api: &Api, config: &CloudConfig) -> anyhow::Result<()> {
    let names: Vec<&str> = config.keys.iter().map(|key| key.name.as_str()).collect();
    let plan = plan(config.subnet, &config.region, &names, &config.instances)?;
    let mut public_keys = Vec::new();
    for key in &names {
        public_keys.push((*key, key_pair(&config.dir.join("keys"), key, &config.name, &config.owner).await?));
    }
    let mut subnets: BTreeMap<String, String> = BTreeMap::new();
    for region in regions(config) {
        check_zones(api, &region, plan.zones.keys()).await?;
        remove_default_network(api, &region).await?;
        let vpc = api
            .ec2_field(&region, "CreateVpc", &[("CidrBlock", &config.subnet.to_string())], &["vpc", "vpcId"])
            .await?;
        tag(api, &region, &vpc, &config.name).await?;
        for (zone, part) in plan.zones.iter().filter(|(zone, _)| region_of(zone) == Some(region.as_str())) {
            let asked = [("VpcId", vpc.as_str()), ("CidrBlock", &part.to_string()), ("AvailabilityZone", zone)];
            let id = api.ec2_field(&region, "CreateSubnet", &asked, &["subnet", "subnetId"]).await?;
            tag(api, &region, &id, &format!("{}-{zone}", config.name)).await?;
            // The server holds them for default subnets, and would make up public addresses that lead nowhere.
            let private = [("SubnetId", id.as_str()), ("MapPublicIpOnLaunch.Value", "false")];
            api.ec2(&region, "ModifySubnetAttribute", &private).await?;
            subnets.insert(zone.clone(), id);
        }
        for (name, line) in &public_keys {
            let material = base64::engine::general_purpose::STANDARD.encode(line);
            api.ec2(&region, "ImportKeyPair", &[("KeyName", name), ("PublicKeyMaterial", &material)]).await?;
        }
    }
    let mut images: BTreeMap<(String, String), String> = BTreeMap::new();
    for (instance, address) in config.instances.iter().zip(&plan.addresses) {
        // Both were checked by `plan`.
        let region = region_of(&instance.zone).unwrap_or(&config.region);
        let subnet = subnets.get(&instance.zone).map(String::as_str).unwrap_or_default();
        let image = match images.get(&(region.to_owned(), instance.image.clone())) {
            Some(image) => image.clone(),
            None => {
                let image = register_image(api, region, &instance.image).await?;
                images.insert((region.to_owned(), instance.image.clone()), image.clone());
                image
            }
        };
        run(api, region, subnet, &image, *address, instance)
            .await
            .with_context(|| format!("cannot launch the instance `{}`", instance.name))?;
    }
    Ok(())
}

/// The API knows which zones exist.
async fn check_zones(api: &Api, region: &str, wanted: impl Iterator<Item = &String>) -> anyhow::Result<()> {
    let answer = api
        .ec2(region, "DescribeAvailabilityZones", &[])
        .await
        .with_context(|| format!("cannot use the region `{region}`"))?;
    let known: Vec<&str> = answer.items("availabilityZoneInfo").filter_map(|zone| zone.at(&["zoneName"])).collect();
    for zone in wanted.filter(|zone| region_of(zone) == Some(region)) {
        if !known.contains(&zone.as_str()) {
            let hint = format!("{region} has {}", known.join(", "));
            return Err(Failure::new(format!("there is no availability zone `{zone}`"), hint).into());
        }
    }
    Ok(())
}

/// Without a default VPC, an instance that names no subnet is refused, as in an AWS account without one: in the
/// default VPC it would have an address that no host can have.
async fn remove_default_network(api: &Api, region: &str) -> Result<(), ApiError> {
    let vpcs =
        api.ec2(region, "DescribeVpcs", &[("Filter.1.Name", "is-default"), ("Filter.1.Value.1", "true")]).await?;
    for vpc in vpcs.items("vpcSet").filter_map(|vpc| vpc.at(&["vpcId"])) {
        let subnets =
            api.ec2(region, "DescribeSubnets", &[("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", vpc)]).await?;
        for subnet in subnets.items("subnetSet").filter_map(|subnet| subnet.at(&["subnetId"])) {
            api.ec2(region, "DeleteSubnet", &[("SubnetId", subnet)]).await?;
        }
        api.ec2(region, "DeleteVpc", &[("VpcId", vpc)]).await?;
    }
    Ok(())
}

async fn tag(api: &Api, region: &str, resource: &str, name: &str) -> Result<(), ApiError> {
    let asked = [("ResourceId.1", resource), ("Tag.1.Key", "Name"), ("Tag.1.Value", name)];
    api.ec2(region, "CreateTags", &asked).await.map(drop)
}

async fn register_image(api: &Api, region: &str, name: &str) -> Result<String, ApiError> {
    let asked =
        [("Name", name), ("Architecture", "x86_64"), ("VirtualizationType", "hvm"), ("RootDeviceName", "/dev/xvda")];
    api.ec2_field(region, "RegisterImage", &asked, &["imageId"]).await
}

async fn run(
    api: &Api,
    region: &str,
    subnet: &str,
    image: &str,
    address: Ipv4Addr,
    spec: &InstanceSpec,
) -> Result<(), ApiError> {
    let mut asked: Vec<(String, String)> = [
        ("ImageId", image),
        ("InstanceType", &spec.instance_type),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("SubnetId", subnet),
        ("PrivateIpAddress", &address.to_string()),
        // What the metadata service of the lab does.
        ("MetadataOptions.HttpTokens", "required"),
        ("MetadataOptions.InstanceMetadataTags", "enabled"),
        ("TagSpecification.1.ResourceType", "instance"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if let Some(key) = &spec.key {
        asked.push(("KeyName".to_owned(), key.clone()));
    }
    if let Some(data) = &spec.user_data {
        asked.push(("UserData".to_owned(), base64::engine::general_purpose::STANDARD.encode(data)));
    }
    let mut tags = spec.tags.clone();
    tags.shift_remove("Name");
    tags.shift_insert(0, "Name".to_owned(), spec.name.clone());
    for (index, (key, value)) in tags.into_iter().enumerate() {
        asked.push((format!("TagSpecification.1.Tag.{}.Key", index + 1), key));
        asked.push((format!("TagSpecification.1.Tag.{}.Value", index + 1), value));
    }
    let asked: Vec<(&str, &str)> = asked.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    api.ec2(region, "RunInstances", &asked).await.map(drop)
}

/// Makes the key pair if the lab has none of that name yet. Returns the public line.
async fn key_pair(folder: &Path, name: &str, lab: &str, owner: &Owner) -> anyhow::Result<String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let private = folder.join(name);
    let public = folder.join(format!("{name}.pub"));
    if !private.exists() {
        let made = tokio::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", &format!("{name}@lab-{lab}"), "-f"])
            .arg(&private)
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .context("cannot start ssh-keygen (Debian package openssh-client)")?;
        anyhow::ensure!(
            made.status.success(),
            "ssh-keygen ended with {}: {}",
            made.status,
            String::from_utf8_lossy(&made.stderr).trim()
        );
    }
    for path in [folder, &private, &public] {
        chown(path, Some(owner.uid), Some(owner.gid))
            .with_context(|| format!("cannot give {} to its owner", path.display()))?;
    }
    read_line(&public)
}

fn read_line(public: &PathBuf) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(public).with_context(|| format!("cannot read {}", public.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, zone: &str, address: Option<&str>) -> InstanceSpec {
        InstanceSpec {
            name: name.to_owned(),
            instance_type: "t3.micro".to_owned(),
            image: "debian-12".to_owned(),
            zone: zone.to_owned(),
            key: None,
            tags: IndexMap::new(),
            user_data: None,
            address: address.map(|address| address.parse().unwrap()),
        }
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn one_zone_counts_from_ten_in_file_order_around_fixed_addresses() {
        let instances =
            [spec("a", "us-west-2a", None), spec("b", "us-west-2a", Some("10.77.3.11")), spec("c", "us-west-2a", None)];
        let plan = plan(net("10.77.3.0/24"), "us-west-2", &[], &instances).unwrap();
        assert_eq!(
            plan.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.77.3.10", "10.77.3.11", "10.77.3.12"]
        );
        assert_eq!(plan.zones["us-west-2a"], net("10.77.3.0/24"));
    }

    #[test]
    fn every_zone_has_a_subnet_of_its_own() {
        let instances =
            [spec("a", "us-west-2c", None), spec("b", "us-west-2a", None), spec("c", "eu-central-1b", None)];
        let plan = plan(net("10.77.3.0/24"), "us-west-2", &[], &instances).unwrap();
        assert_eq!(plan.zones["eu-central-1b"], net("10.77.3.0/26"));
        assert_eq!(plan.zones["us-west-2a"], net("10.77.3.64/26"));
        assert_eq!(plan.zones["us-west-2c"], net("10.77.3.128/26"));
        assert_eq!(
            plan.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.77.3.138", "10.77.3.74", "10.77.3.10"]
        );
    }

    #[test]
    fn no_instances_still_give_a_zone() {
        let plan = plan(net("10.77.3.0/24"), "us-west-2", &[], &[]).unwrap();
        assert_eq!(plan.zones.keys().collect::<Vec<_>>(), ["us-west-2a"]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let subnet = net("10.77.3.0/24");
        let refused =
            |instances: &[InstanceSpec]| plan(subnet, "us-west-2", &["kraken"], instances).unwrap_err().to_string();
        assert!(refused(&[spec("a", "us-west-2", None)]).contains("instance `a`: `us-west-2` is no availability zone"));
        assert!(refused(&[spec("a", "", None)]).contains("is no availability zone"));
        assert!(refused(&[spec("a", "us-west-2a", Some("10.77.4.10"))]).contains("10.77.4.10 is not in 10.77.3.0/24"));
        let gateway = refused(&[spec("a", "us-west-2a", Some("10.77.3.1"))]);
        assert!(gateway.contains("from 10.77.3.4 to 10.77.3.254"), "{gateway}");
        let twice = [spec("a", "us-west-2a", Some("10.77.3.20")), spec("b", "us-west-2a", Some("10.77.3.20"))];
        assert!(refused(&twice).contains("`a` and `b` both want the address 10.77.3.20"));
        let keyed = InstanceSpec { key: Some("Kraken".to_owned()), ..spec("a", "us-west-2a", None) };
        assert!(refused(&[keyed]).contains("there is no key `Kraken` under `keys` (did you mean `kraken`?)"));
        assert!(matches!(plan(subnet, "us-west-2", &["../x"], &[]), Err(PlanError::KeyName(name)) if name == "../x"));
    }

    #[test]
    fn a_range_can_be_full_or_too_small() {
        let crowd: Vec<_> = (0..6).map(|number| spec(&format!("h{number}"), "us-west-2a", None)).collect();
        let full = plan(net("10.77.3.0/28"), "us-west-2", &[], &crowd).unwrap_err();
        assert!(matches!(full, PlanError::Full { instance, .. } if instance == "h5"));
        let zones = [spec("a", "us-west-2a", None), spec("b", "us-west-2b", None)];
        let error = plan(net("10.77.3.0/28"), "us-west-2", &[], &zones).unwrap_err();
        assert_eq!(error.to_string(), "2 zones do not fit into 10.77.3.0/28: at most 1");
    }

    #[tokio::test]
    async fn a_key_pair_is_made_once_and_private() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let folder = tempfile::tempdir().unwrap();
        let here = std::fs::metadata(folder.path()).unwrap();
        let owner = Owner { uid: here.uid(), gid: here.gid(), home: folder.path().to_owned() };
        let keys = folder.path().join("keys");
        let first = key_pair(&keys, "kraken", "demo", &owner).await.unwrap();
        assert!(first.starts_with("ssh-ed25519 ") && first.ends_with(" kraken@lab-demo"), "{first}");
        assert_eq!(key_pair(&keys, "kraken", "demo", &owner).await.unwrap(), first);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&keys), mode(&keys.join("kraken"))), (0o700, 0o600));
    }
}
