//! A node that EC2 has terminated, and one that is made anew under its name: tokens of old, of its Consul agent and of its Nomad agent, are
//! revoked because EC2 says so, and never go over to another machine.

use rollcall_tests::{OwnLab, Project, Said};
use serde_json::{Value, json};

const LAB: &str = "name: forget\nkeys: [{name: k}]\ninstances:\n\
                   \x20 - {name: server, key: k, tags: {Role: consul_servers, Runs: nomad_servers}}\n\
                   \x20 - {name: web, key: k, tags: {Role: consul_clients, Runs: nomad_clients}}\n";
const INVENTORY: &str = "plugin: amazon.aws.aws_ec2\nregions: [us-west-2]\nhostnames: [tag:Name]\n\
                         keyed_groups:\n  - {key: tags.Role, prefix: '', separator: ''}\n\
                         \x20 - {key: tags.Runs, prefix: '', separator: ''}\n\
                         compose: {ansible_host: private_ip_address}\n";

#[test]
fn a_terminated_instance_is_forgotten_and_its_name_gets_tokens_of_its_own() {
    let lab = OwnLab::boot_text(LAB);
    let status = lab.status();
    // Consul and Nomad have their one server in common, so that Consul finds the keys without names.
    let vars = format!(
        "consul_mirror: {mirror}\nconsul_bind_cidr: {subnet}\nbase_time_sync: chrony\nconsul_acl: true\n\
         nomad_mirror: {mirror}\nnomad_bind_cidr: {subnet}\nnomad_acl: true\nnomad_consul: true\n\
         nomad_jwks_url: http://127.0.0.1:4646/.well-known/jwks.json\n",
        mirror = status.mirror,
        subnet = status.subnet
    );
    let project =
        Project::new(&lab, &status.hosts).file("inventory.aws_ec2.yaml", INVENTORY).file("group_vars/all.yaml", &vars);
    let settings = project.settings().replace("[inventory.yaml]", "[inventory.aws_ec2.yaml]");
    project.write("rollcall.yaml", &format!("cluster: test\n{settings}  host_keys: accept-new\n"));
    let plays = ["consul", "nomad"]
        .map(|role| format!("- hosts: {role}_servers:{role}_clients\n  become: true\n  roles: [{role}]\n"));
    project.write("both.yaml", &plays.concat());
    let run = |playbook: &str| project.controller(["run", playbook, "--json"]);
    run("both.yaml").ok();
    is_silent(&run("both.yaml").ok());
    let secrets = || {
        ["agent", "nomad"]
            .map(|of| project.controller(["secret", "get", &format!("consul/token/{of}/web")]).ok().text().to_owned())
    };
    let (old, first) = (secrets(), lab.host("web"));
    let knows = |token: &str| {
        let line =
            format!("curl --silent --fail --header 'X-Consul-Token: {token}' http://127.0.0.1:8500/v1/acl/token/self");
        lab.exec("server", &line).code == 0
    };
    assert!(old.iter().all(|token| knows(token)));
    tokens_of_before_learn_their_machine(&lab, &project, &first.id);
    assert_eq!(secrets(), old, "with the secrets that they had");
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
         &TagSpecification.1.Tag.2.Key=Role&TagSpecification.1.Tag.2.Value=consul_clients\
         &TagSpecification.1.Tag.3.Key=Runs&TagSpecification.1.Tag.3.Value=nomad_clients"
    ))
    .ok();
    lab.lab(["start", "web"]).ok();
    let second = lab.host("web");
    assert_ne!(first.id, second.id);
    // The same name is not the same node, whichever of its agents comes first.
    for playbook in ["consul.yaml", "nomad.yaml"] {
        run(playbook)
            .ends(4)
            .says(&format!("was made for the instance {}, and this is {}", first.id, second.id))
            .says("controller forget --terminated");
        let files =
            lab.root("web", "cat /etc/nomad.d/consul.json /var/lib/consul/acl-tokens.json 2> /dev/null || true");
        assert!(old.iter().all(|token| !files.out.contains(token.as_str())), "it got a token of the one before");
    }
    assert!(old.iter().all(|token| knows(token)) && secrets() == old);
    project.controller(["forget", "--terminated"]).ok().says(&first.id).says("'web' is forgotten");
    assert!(!old.iter().any(|token| knows(token)));
    run("both.yaml").ok();
    let new = secrets();
    assert!(new.iter().zip(&old).all(|(new, old)| new != old) && new.iter().all(|token| knows(token)));
    is_silent(&run("both.yaml").ok());
    // EC2 still tells of the first, and nobody has its tokens.
    project.controller(["forget", "--terminated"]).ok().says("none terminated");
}

#[track_caller]
fn is_silent(said: &Said) {
    assert_eq!(said.counted("changed"), 0, "{}", said.report());
}

/// A token of a Nomad agent that says nothing of a machine, as they were made once: a run writes it down, and nothing else.
fn tokens_of_before_learn_their_machine(lab: &OwnLab, project: &Project, id: &str) {
    let management = project.controller(["secret", "get", "consul/management"]).ok().text().to_owned();
    let ask = |more: &str| {
        let api = "http://127.0.0.1:8500/v1/acl";
        lab.exec("server", &format!("curl --silent --fail --header 'X-Consul-Token: {management}' {api}/{more}")).ok()
    };
    let find = || {
        let tokens = ask("tokens").json();
        let all = tokens.as_array().expect("it is a list").iter();
        let found: Vec<Value> = all
            .filter(|token| token["Description"].as_str().is_some_and(|said| said.contains(": nomad web")))
            .cloned()
            .collect();
        assert_eq!(found.len(), 1, "{tokens}");
        found[0].clone()
    };
    let token = find();
    let accessor = token["AccessorID"].as_str().expect("it has one");
    assert_eq!(token["Description"], format!("Made by Rollcall: nomad web ({id})"));
    let policy = token["Policies"][0]["Name"].as_str().expect("it has one");
    let of_old = json!({"Description": "Made by Rollcall: nomad web", "Policies": [{"Name": policy}]});
    ask(&format!("token/{accessor} --request PUT --data '{of_old}'"));
    let run = project.controller(["run", "nomad.yaml", "--json"]).ok();
    assert_eq!(run.counted("changed"), 1, "{}", run.report());
    assert_eq!(find()["Description"], token["Description"]);
}
