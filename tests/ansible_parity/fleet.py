"""A fleet in an EC2 API on loopback: names, tags and states that make inventory files stumble."""

import boto3

REGIONS = ("us-west-2", "eu-west-1")


def tags(values):
    return [{"Key": key, "Value": value} for key, value in values.items()]


def start(ec2, subnet, values, count=1):
    return ec2.run_instances(
        ImageId=ec2.images[0], MinCount=count, MaxCount=count, SubnetId=subnet, InstanceType="t3.small",
        KeyName="fleet", TagSpecifications=[{"ResourceType": "instance", "Tags": tags(values)}] if values else [],
    )["Instances"]


def region(name):
    ec2 = boto3.client("ec2", region_name=name)
    ec2.images = [image["ImageId"] for image in ec2.describe_images()["Images"][:1]]
    ec2.create_key_pair(KeyName="fleet")
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.1.0/24", AvailabilityZone=name + "a")["Subnet"]["SubnetId"]
    return ec2, subnet


def main():
    ec2, subnet = region("us-west-2")
    roles = {"consul-server": "consul_server", "nomad-server": "nomad_server", "nomad-client": "nomad_client"}
    for prefix, role in roles.items():
        for number in range(1, 4):
            start(ec2, subnet, {"Name": f"{prefix}-{number}", "Cluster": "kraken", "Role": role, "Env": "prod"})
    for number in (1, 2):
        start(ec2, subnet, {"Name": f"nomad-edge-{number}", "Cluster": "kraken", "Role": "nomad_client",
                            "Edge": "true", "Env": "dev"})
    start(ec2, subnet, {"Name": "jump", "Cluster": "kraken", "Role": "jump"})
    # Names and values that are no identifiers.
    start(ec2, subnet, {"Name": "odd name", "Role": "9lives", "Empty": "", "a-b:c/d": "x y"})
    start(ec2, subnet, {"Name": "ünïcode", "Role": "größe", "Env": "prod,dev"})
    start(ec2, subnet, {"Name": "with:colon", "Env": "a'b\"c"})
    start(ec2, subnet, {"Name": "templated", "Note": "{{ 1 + 1 }} {% raw %}"})
    stopped = start(ec2, subnet, {"Name": "stopped-1", "Role": "web", "Weight": "10"})[0]
    ec2.stop_instances(InstanceIds=[stopped["InstanceId"]])
    gone = start(ec2, subnet, {"Name": "gone-1", "Role": "web"})[0]
    ec2.terminate_instances(InstanceIds=[gone["InstanceId"]])
    other, subnet = region("eu-west-1")
    start(other, subnet, {"Name": "eu-web-1", "Role": "web", "Env": "prod", "Tier": "1"})
    start(other, subnet, {"Name": "eu-web-2", "Role": "web", "Env": "dev", "Tier": "2"})


if __name__ == "__main__":
    main()
