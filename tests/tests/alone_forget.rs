//! A node that EC2 has terminated, and one that is made anew under its name: tokens of old are revoked because EC2 says so, and never go
//! over to another machine.

use rollcall_tests::{OwnLab, Project};

const LAB: &str = "name: forget\nkeys: [{name: k}]\ninstances:\n\
                   \x20 - {name: server, key: k, tags: {Role: consul_servers}}\n\
                   \x20 - {name: web, key: k, tags: {Role: consul_clients}}\n";
const INVENTORY: &str = "plugin: amazon.aws.aws_ec2\nregions: [us-west-2]\nhostnames: [tag:Name]\n\
                         keyed_groups:\n  - {key: tags.Role, prefix: '', separator: ''}\n\
                         compose: {ansible_host: private_ip_address}\n";

#[test]
fn a_terminated_instance_is_forgotten_and_its_name_gets_tokens_of_its_own() {
    let lab = OwnLab::boot_text(LAB);
    let status = lab.status();
    let vars = format!(
        "consul_mirror: {}\nconsul_bind_cidr: {}\nbase_time_sync: chrony\nconsul_acl: true\n",
        status.mirror, status.subnet
    );
    let project =
        Project::new(&lab, &status.hosts).file("inventory.aws_ec2.yaml", INVENTORY).file("group_vars/all.yaml", &vars);
    let settings = project.settings().replace("[inventory.yaml]", "[inventory.aws_ec2.yaml]");
    project.write("rollcall.yaml", &format!("cluster: test\n{settings}  host_keys: accept-new\n"));
    let run = || project.controller(["run", "consul.yaml", "--json"]);
    run().ok();
    assert_eq!(run().ok().counted("changed"), 0);
    let secret = || project.controller(["secret", "get", "consul/token/agent/web"]).ok().out;
    let (old, first) = (secret(), lab.host("web"));
    let knows = |token: &str| {
        let line =
            format!("curl --silent --fail --header 'X-Consul-Token: {token}' http://127.0.0.1:8500/v1/acl/token/self");
        lab.exec("server", &line).code == 0
    };
    assert!(knows(&old));
    // All are alive: nothing is forgotten.
    project.controller(["forget", "--terminated"]).ok().says("of 2 nodes with an instance EC2 calls none terminated");

    let said = lab.ec2(&format!("Action=DescribeInstances&InstanceId.1={}", first.id)).ok();
    let of = |tag: &str| {
        let part = said.out.split(&format!("<{tag}>")).nth(1).and_then(|rest| rest.split('<').next());
        part.unwrap_or_else(|| panic!("{tag}")).to_owned()
    };
    let (image, subnet) = (of("imageId"), of("subnetId"));
    lab.ec2(&format!("Action=TerminateInstances&InstanceId.1={}", first.id)).ok();
    lab.ec2(&format!(
        "Action=RunInstances&ImageId={image}&InstanceType=t3.micro&MinCount=1&MaxCount=1&KeyName=k&SubnetId={subnet}\
         &TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=web\
         &TagSpecification.1.Tag.2.Key=Role&TagSpecification.1.Tag.2.Value=consul_clients"
    ))
    .ok();
    lab.lab(["start", "web"]).ok();
    let second = lab.host("web");
    assert_ne!(first.id, second.id);
    // The same name is not the same node.
    let refused = run().ends(4);
    refused
        .says(&format!("was made for the instance {}, and this is {}", first.id, second.id))
        .says("controller forget --terminated");
    assert!(knows(&old) && secret() == old);
    project.controller(["forget", "--terminated"]).ok().says(&first.id).says("'web' is forgotten");
    assert!(!knows(&old));
    run().ok();
    let new = secret();
    assert!(new != old && knows(&new));
    assert_eq!(run().ok().counted("changed"), 0);
    // EC2 still tells of the first, and nobody has its tokens.
    project.controller(["forget", "--terminated"]).ok().says("none terminated");
}
