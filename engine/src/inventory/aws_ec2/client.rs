//! EC2 through its SDK. The only file that names `aws-sdk-ec2`.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client,
    config::ProvideCredentials as _,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    primitives::{DateTime, DateTimeFormat},
    types::{self, Filter},
};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::query::{Account, Ec2Error, FilterSet, Found, Instance, Query};

/// Attempts per call. The waits between them double, with jitter, from half a second up to [`MAX_BACKOFF`].
const ATTEMPTS: u32 = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);
/// Calls in flight over all regions.
const PARALLEL_CALLS: usize = 16;
/// Where regions are asked for when nothing says another one.
const FIRST_REGION: &str = "us-east-1";

static CALLS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(PARALLEL_CALLS));

/// Finds instances: the same code for inventory files and for an agent that looks for its peers. Regions and filter
/// sets are asked in parallel, page by page; throttled calls wait and try again.
pub async fn discover(query: &Query) -> Result<Found, Ec2Error> {
    let config = sdk_config(&query.account, "DescribeInstances").await?;
    discover_with(&config, query).await
}

async fn discover_with(config: &SdkConfig, query: &Query) -> Result<Found, Ec2Error> {
    let regions =
        if query.regions.is_empty() { all_regions(config, &query.account).await? } else { query.regions.clone() };
    let mut tasks = tokio::task::JoinSet::new();
    let everything = vec![FilterSet::new()];
    let include = if query.include.is_empty() { &everything } else { &query.include };
    let account = Arc::new(query.account.clone());
    for region in &regions {
        let client = client(config, region);
        for (set, excluded) in include.iter().map(|set| (set, false)).chain(query.exclude.iter().map(|set| (set, true)))
        {
            let (client, region, set, account) = (client.clone(), region.clone(), set.clone(), account.clone());
            tasks.spawn(async move {
                let _slot = CALLS.acquire().await;
                (region.clone(), excluded, describe(&client, &region, &set, &account).await)
            });
        }
    }
    let mut found = Found::default();
    let mut wanted: BTreeMap<String, Instance> = BTreeMap::new();
    let mut unwanted: HashSet<String> = HashSet::new();
    while let Some(done) = tasks.join_next().await {
        let (region, excluded, result) = done.map_err(|e| Ec2Error::Unreachable {
            call: "DescribeInstances".into(),
            region: "some region".into(),
            message: e.to_string(),
        })?;
        match result {
            Ok(instances) if excluded => unwanted.extend(instances.into_iter().map(|i| i.id)),
            Ok(instances) => wanted.extend(instances.into_iter().map(|i| (i.id.clone(), i))),
            Err(e @ Ec2Error::Denied { .. }) if !query.strict_permissions => {
                found.warnings.push(format!("{region} is left out: {e}"));
            }
            Err(e) => return Err(e),
        }
    }
    found.warnings.sort();
    found.warnings.dedup();
    found.instances = wanted.into_values().filter(|i| !unwanted.contains(&i.id)).collect();
    Ok(found)
}

/// What an instance has printed to its console so far; none where it has not printed (or AWS has not stored) any yet.
pub async fn console_output(account: &Account, region: &str, instance_id: &str) -> Result<Option<String>, Ec2Error> {
    use base64::Engine as _;
    let call = "GetConsoleOutput";
    let config = sdk_config(account, call).await?;
    let output = client(&config, region)
        .get_console_output()
        .instance_id(instance_id)
        .send()
        .await
        .map_err(|e| failed(call, region, account, &e))?;
    let Some(text) = output.output() else { return Ok(None) };
    let compact: String = text.split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(compact).map_err(|e| Ec2Error::Api {
        call: call.into(),
        region: region.into(),
        account: account.to_string(),
        code: "InvalidOutput".into(),
        message: format!("the console output is not base64: {e}"),
    })?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|s| !s.is_empty()))
}

/// Regions, credentials and retries as the account wants them. Credentials are asked for at once, so that what is
/// wrong with them is told as such.
async fn sdk_config(account: &Account, call: &str) -> Result<SdkConfig, Ec2Error> {
    let retry = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(FIRST_BACKOFF)
        .with_max_backoff(MAX_BACKOFF);
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).retry_config(retry).timeout_config(timeouts);
    if let Some(profile) = &account.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(url) = &account.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    let mut config = loader.load().await;
    let missing =
        |reason: String| Ec2Error::NoCredentials { call: call.to_owned(), account: account.to_string(), reason };
    let provider = config.credentials_provider().ok_or_else(|| missing("nothing provides them".into()))?;
    provider.provide_credentials().await.map_err(|e| missing(no_credentials(&e)))?;
    if let Some(role) = &account.assume_role_arn {
        let region = config.region().cloned().unwrap_or(Region::from_static(FIRST_REGION));
        let provider = aws_config::sts::AssumeRoleProvider::builder(role)
            .session_name("rollcall-inventory")
            .region(region)
            .configure(&config)
            .build()
            .await;
        provider.provide_credentials().await.map_err(|e| Ec2Error::AssumeRole {
            role: role.clone(),
            account: Account { assume_role_arn: None, ..account.clone() }.to_string(),
            message: innermost(&e),
        })?;
        config = config
            .into_builder()
            .credentials_provider(aws_sdk_ec2::config::SharedCredentialsProvider::new(provider))
            .build();
    }
    Ok(config)
}

fn client(config: &SdkConfig, region: &str) -> Client {
    let config = aws_sdk_ec2::config::Builder::from(config).region(Region::new(region.to_owned())).build();
    Client::from_conf(config)
}

async fn all_regions(config: &SdkConfig, account: &Account) -> Result<Vec<String>, Ec2Error> {
    let first = config.region().map_or(FIRST_REGION, Region::as_ref).to_owned();
    let answer = client(config, &first)
        .describe_regions()
        .send()
        .await
        .map_err(|e| failed("DescribeRegions", &first, account, &e))?;
    let mut regions: Vec<String> = answer.regions().iter().filter_map(|r| r.region_name()).map(str::to_owned).collect();
    regions.sort();
    Ok(regions)
}

async fn describe(
    client: &Client,
    region: &str,
    set: &FilterSet,
    account: &Account,
) -> Result<Vec<Instance>, Ec2Error> {
    let mut filters: Vec<Filter> = set
        .iter()
        .map(|(name, values)| Filter::builder().name(name).set_values(Some(values.clone())).build())
        .collect();
    if !set.iter().any(|(name, _)| name == "instance-state-name") {
        let mut living = Filter::builder().name("instance-state-name");
        for state in ["running", "pending", "stopping", "stopped"] {
            living = living.values(state);
        }
        filters.push(living.build());
    }
    let mut pages = client.describe_instances().set_filters(Some(filters)).into_paginator().page_size(1000).send();
    let mut instances = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed("DescribeInstances", region, account, &e))?;
        for reservation in page.reservations() {
            instances.extend(reservation.instances().iter().filter_map(|i| from_sdk(i, reservation, region)));
        }
    }
    Ok(instances)
}

/// What went wrong, by kind.
fn failed<E, R>(call: &str, region: &str, account: &Account, error: &SdkError<E, R>) -> Ec2Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let (call, region, name) = (call.to_owned(), region.to_owned(), account.to_string());
    let SdkError::ServiceError(service) = error else {
        let message = innermost(error);
        let chain = DisplayErrorContext(error).to_string();
        if chain.contains("credentials") {
            return Ec2Error::NoCredentials { call, account: name, reason: message };
        }
        return Ec2Error::Unreachable { call, region, message };
    };
    let code = service.err().code().unwrap_or("unknown error").to_owned();
    let message = service.err().message().unwrap_or("no message").to_owned();
    match code.as_str() {
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            let permission = permission_in(&message).unwrap_or_else(|| format!("ec2:{call}"));
            Ec2Error::Denied { permission, call, region, account: name, message }
        }
        "RequestExpired"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "AuthFailure"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "OptInRequired" => Ec2Error::Refused { call, region, account: name, code, message },
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "TooManyRequestsException" => {
            Ec2Error::Throttled { call, region, account: name, attempts: ATTEMPTS }
        }
        _ => Ec2Error::Api { call, region, account: name, code, message },
    }
}

/// `ec2:DescribeInstances` out of AWS's `… is not authorized to perform: ec2:DescribeInstances because …`.
fn permission_in(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("perform: ")?;
    let word = rest.split_whitespace().next()?.trim_end_matches(['.', ',']);
    word.contains(':').then(|| word.to_owned())
}

/// Why no provider had any, in a few words: the SDK lists all it has tried, over several lines.
fn no_credentials(error: &dyn std::error::Error) -> String {
    let chain = DisplayErrorContext(error).to_string();
    let line = |part: &str| chain.contains(part);
    if line("was not defined") {
        "the AWS configuration has no such profile".to_owned()
    } else if line("no credentials found in chain") {
        "neither the environment nor a profile nor this machine's role has any".to_owned()
    } else if chain.to_lowercase().contains("sso") || line("cached token") {
        format!("the SSO session is not logged in, or has expired ({})", innermost(error))
    } else {
        innermost(error)
    }
}

/// The deepest cause: the SDK's outer texts say only that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    // A last text of a word or two needs the one above it.
    match texts.as_slice() {
        [.., above, last] if last.len() < 25 && !above.contains(last.as_str()) => format!("{above}: {last}"),
        [.., last] => last.clone(),
        [] => String::new(),
    }
}

/// A mapping under construction: what AWS did not say is not in it.
#[derive(Default)]
struct Attributes(Map<String, Value>);

impl Attributes {
    fn text(mut self, name: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), Value::String(value.to_owned()));
        }
        self
    }

    fn flag(mut self, name: &str, value: Option<bool>) -> Self {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), Value::Bool(value));
        }
        self
    }

    fn number(mut self, name: &str, value: Option<i32>) -> Self {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), Value::from(value));
        }
        self
    }

    fn time(self, name: &str, value: Option<&DateTime>) -> Self {
        let text = value.and_then(|t| t.fmt(DateTimeFormat::DateTimeWithOffset).ok()).map(|t| t.replace('Z', "+00:00"));
        self.text(name, text.as_deref())
    }

    fn map<T>(mut self, name: &str, value: Option<&T>, convert: impl Fn(&T) -> Self) -> Self {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), Value::Object(convert(value).0));
        }
        self
    }

    fn list<T>(mut self, name: &str, value: Option<&Vec<T>>, convert: impl Fn(&T) -> Self) -> Self {
        if let Some(items) = value {
            let items = items.iter().map(|item| Value::Object(convert(item).0)).collect();
            self.0.insert(name.to_owned(), Value::Array(items));
        }
        self
    }
}

/// The instance under the names that the amazon.aws collection gives its attributes.
fn from_sdk(i: &types::Instance, reservation: &types::Reservation, region: &str) -> Option<Instance> {
    let id = i.instance_id()?.to_owned();
    let mut attributes = hardware(i, identity(i, Attributes::default()))
        .list("network_interfaces", i.network_interfaces.as_ref(), interface)
        .list("security_groups", i.security_groups.as_ref(), security_group)
        .text("owner_id", reservation.owner_id())
        .text("requester_id", Some(reservation.requester_id().unwrap_or_default()))
        .text("reservation_id", reservation.reservation_id())
        .0;
    let tags: Map<String, Value> = i
        .tags()
        .iter()
        .filter_map(|t| Some((t.key()?.to_owned(), Value::String(t.value().unwrap_or_default().to_owned()))))
        .collect();
    attributes.insert("tags".to_owned(), Value::Object(tags));
    let placement = placement(i, region);
    attributes.insert("placement".to_owned(), Value::Object(placement.0));
    attributes.sort_keys();
    Some(Instance { id, region: region.to_owned(), attributes })
}

fn placement(i: &types::Instance, region: &str) -> Attributes {
    let attributes = match i.placement() {
        None => Attributes::default(),
        Some(p) => Attributes::default()
            .text("affinity", p.affinity())
            .text("availability_zone", p.availability_zone())
            .text("availability_zone_id", p.availability_zone_id())
            .text("group_id", p.group_id())
            .text("group_name", p.group_name())
            .text("host_id", p.host_id())
            .text("host_resource_group_arn", p.host_resource_group_arn())
            .number("partition_number", p.partition_number())
            .text("spread_domain", p.spread_domain())
            .text("tenancy", p.tenancy().map(types::Tenancy::as_str)),
    };
    attributes.text("region", Some(region))
}

fn identity(i: &types::Instance, attributes: Attributes) -> Attributes {
    attributes
        .number("ami_launch_index", i.ami_launch_index())
        .text("client_token", i.client_token())
        .map("iam_instance_profile", i.iam_instance_profile(), |p| {
            Attributes::default().text("arn", p.arn()).text("id", p.id())
        })
        .text("image_id", i.image_id())
        .text("instance_id", i.instance_id())
        .text("instance_lifecycle", i.instance_lifecycle().map(types::InstanceLifecycleType::as_str))
        .text("instance_type", i.instance_type().map(types::InstanceType::as_str))
        .text("ipv6_address", i.ipv6_address())
        .text("key_name", i.key_name())
        .time("launch_time", i.launch_time())
        .text("outpost_arn", i.outpost_arn())
        .text("platform", i.platform().map(types::PlatformValues::as_str))
        .text("platform_details", i.platform_details())
        .text("private_dns_name", i.private_dns_name())
        .map("private_dns_name_options", i.private_dns_name_options(), |o| {
            Attributes::default()
                .text("hostname_type", o.hostname_type().map(types::HostnameType::as_str))
                .flag("enable_resource_name_dns_a_record", o.enable_resource_name_dns_a_record())
                .flag("enable_resource_name_dns_aaaa_record", o.enable_resource_name_dns_aaaa_record())
        })
        .text("private_ip_address", i.private_ip_address())
        .list("product_codes", i.product_codes.as_ref(), |c| {
            Attributes::default()
                .text("product_code_id", c.product_code_id())
                .text("product_code_type", c.product_code_type().map(types::ProductCodeValues::as_str))
        })
        .text("public_dns_name", i.public_dns_name())
        .text("public_ip_address", i.public_ip_address())
        .map("state", i.state(), |s| {
            Attributes::default().number("code", s.code()).text("name", s.name().map(types::InstanceStateName::as_str))
        })
        .map("state_reason", i.state_reason(), |r| {
            Attributes::default().text("code", r.code()).text("message", r.message())
        })
        .text("state_transition_reason", i.state_transition_reason())
        .text("subnet_id", i.subnet_id())
        .text("vpc_id", i.vpc_id())
}

fn hardware(i: &types::Instance, attributes: Attributes) -> Attributes {
    attributes
        .text("architecture", i.architecture().map(types::ArchitectureValues::as_str))
        .list("block_device_mappings", i.block_device_mappings.as_ref(), disk)
        .text("boot_mode", i.boot_mode().map(types::BootModeValues::as_str))
        .text("capacity_reservation_id", i.capacity_reservation_id())
        .map("cpu_options", i.cpu_options(), |c| {
            Attributes::default().number("core_count", c.core_count()).number("threads_per_core", c.threads_per_core())
        })
        .text("current_instance_boot_mode", i.current_instance_boot_mode().map(types::InstanceBootModeValues::as_str))
        .flag("ebs_optimized", i.ebs_optimized())
        .flag("ena_support", i.ena_support())
        .map("enclave_options", i.enclave_options(), |e| Attributes::default().flag("enabled", e.enabled()))
        .map("hibernation_options", i.hibernation_options(), |h| {
            Attributes::default().flag("configured", h.configured())
        })
        .text("hypervisor", i.hypervisor().map(types::HypervisorType::as_str))
        .text("kernel_id", i.kernel_id())
        .map("metadata_options", i.metadata_options(), |m| {
            Attributes::default()
                .text("state", m.state().map(types::InstanceMetadataOptionsState::as_str))
                .text("http_endpoint", m.http_endpoint().map(types::InstanceMetadataEndpointState::as_str))
                .text("http_protocol_ipv6", m.http_protocol_ipv6().map(types::InstanceMetadataProtocolState::as_str))
                .number("http_put_response_hop_limit", m.http_put_response_hop_limit())
                .text("http_tokens", m.http_tokens().map(types::HttpTokensState::as_str))
                .text(
                    "instance_metadata_tags",
                    m.instance_metadata_tags().map(types::InstanceMetadataTagsState::as_str),
                )
        })
        .map("monitoring", i.monitoring(), |m| {
            Attributes::default().text("state", m.state().map(types::MonitoringState::as_str))
        })
        .text("ramdisk_id", i.ramdisk_id())
        .text("root_device_name", i.root_device_name())
        .text("root_device_type", i.root_device_type().map(types::DeviceType::as_str))
        .flag("source_dest_check", i.source_dest_check())
        .text("spot_instance_request_id", i.spot_instance_request_id())
        .text("sriov_net_support", i.sriov_net_support())
        .text("tpm_support", i.tpm_support())
        .text("usage_operation", i.usage_operation())
        .text("virtualization_type", i.virtualization_type().map(types::VirtualizationType::as_str))
}

fn security_group(group: &types::GroupIdentifier) -> Attributes {
    Attributes::default().text("group_id", group.group_id()).text("group_name", group.group_name())
}

fn disk(disk: &types::InstanceBlockDeviceMapping) -> Attributes {
    Attributes::default().text("device_name", disk.device_name()).map("ebs", disk.ebs(), |ebs| {
        Attributes::default()
            .time("attach_time", ebs.attach_time())
            .flag("delete_on_termination", ebs.delete_on_termination())
            .text("status", ebs.status().map(types::AttachmentStatus::as_str))
            .text("volume_id", ebs.volume_id())
    })
}

fn association(a: &types::InstanceNetworkInterfaceAssociation) -> Attributes {
    Attributes::default()
        .text("carrier_ip", a.carrier_ip())
        .text("ip_owner_id", a.ip_owner_id())
        .text("public_dns_name", a.public_dns_name())
        .text("public_ip", a.public_ip())
}

fn interface(n: &types::InstanceNetworkInterface) -> Attributes {
    Attributes::default()
        .map("association", n.association(), association)
        .map("attachment", n.attachment(), |a| {
            Attributes::default()
                .time("attach_time", a.attach_time())
                .text("attachment_id", a.attachment_id())
                .flag("delete_on_termination", a.delete_on_termination())
                .number("device_index", a.device_index())
                .number("network_card_index", a.network_card_index())
                .text("status", a.status().map(types::AttachmentStatus::as_str))
        })
        .text("description", n.description())
        .list("groups", n.groups.as_ref(), security_group)
        .text("interface_type", n.interface_type())
        .list("ipv6_addresses", n.ipv6_addresses.as_ref(), |a| {
            Attributes::default().text("ipv6_address", a.ipv6_address()).flag("is_primary_ipv6", a.is_primary_ipv6())
        })
        .text("mac_address", n.mac_address())
        .text("network_interface_id", n.network_interface_id())
        .text("owner_id", n.owner_id())
        .text("private_dns_name", n.private_dns_name())
        .text("private_ip_address", n.private_ip_address())
        .list("private_ip_addresses", n.private_ip_addresses.as_ref(), |a| {
            Attributes::default()
                .map("association", a.association(), association)
                .flag("primary", a.primary())
                .text("private_dns_name", a.private_dns_name())
                .text("private_ip_address", a.private_ip_address())
        })
        .flag("source_dest_check", n.source_dest_check())
        .text("status", n.status().map(types::NetworkInterfaceStatus::as_str))
        .text("subnet_id", n.subnet_id())
        .text("vpc_id", n.vpc_id())
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
