//! What EC2 says of an instance, under the names that the amazon.aws collection gives it.

use aws_sdk_ec2::{
    primitives::{DateTime, DateTimeFormat},
    types,
};
use serde_json::{Map, Value};

use super::query::Instance;

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
pub(super) fn from_sdk(i: &types::Instance, reservation: &types::Reservation, region: &str) -> Option<Instance> {
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
