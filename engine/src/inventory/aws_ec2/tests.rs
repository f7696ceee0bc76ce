use serde_json::{Value, json};

use super::*;
use crate::{
    diag::Sources,
    inventory::{Inventory, model::Builder},
    vars::Scope,
    yaml,
};

fn fleet() -> Vec<Instance> {
    let host = |id: &str, name: &str, address: &str, tags: Value| {
        let mut tags = tags;
        if !name.is_empty() {
            tags["Name"] = name.into();
        }
        hostnames::instance(
            id,
            &json!({"private_ip_address": address, "tags": tags, "instance_type": "t3.small",
                "ami_launch_index": 0, "ebs_optimized": true,
                "placement": {"availability_zone": "eu-west-1a", "region": "eu-west-1"},
                "security_groups": [{"group_id": "sg-1", "group_name": "base"}]}),
        )
    };
    vec![
        host("i-01", "consul-1", "10.0.0.1", json!({"Role": "consul_server", "9x": "1"})),
        host("i-02", "consul-2", "10.0.0.2", json!({"Role": "consul_server"})),
        host("i-03", "edge-1", "10.0.0.3", json!({"Role": "nomad_client", "Edge": "true"})),
        host("i-04", "jump", "10.0.0.4", json!({})),
    ]
}

/// A configuration with its warnings, or what is wrong with it.
type Configured = Result<(Config, Vec<Diagnostic>), Diagnostics>;

fn read(text: &str) -> (std::sync::Arc<Sources>, Configured) {
    let sources = std::sync::Arc::new(Sources::default());
    let file = sources.add("aws_ec2.yaml", text);
    let config = match yaml::parse(&sources, file) {
        Ok(node) => Config::read(&node, &Scope::new()),
        Err(e) => Err(e.into()),
    };
    (sources, config)
}

/// Evaluates a file on instances, without any cloud.
fn evaluate(text: &str, instances: Vec<Instance>) -> Result<Inventory, String> {
    let (sources, config) = read(text);
    let shown = |d: &Diagnostics| d.0.iter().map(|d| sources.render(d)).collect::<String>();
    let (config, warnings) = config.map_err(|e| shown(&e))?;
    let mut builder = Builder::new(sources.clone());
    builder.diagnostics.0.extend(warnings);
    builder.start_source(None);
    let answer = Answer { instances };
    let names = evaluate::names(&[(&config, &answer)], &mut builder.diagnostics).remove(0);
    evaluate::add(&config, &answer, &names, &Options { sources: sources.clone(), ..Options::default() }, &mut builder);
    builder.finish(&[], &std::sync::Arc::default()).map_err(|e| shown(&e))
}

fn graph(text: &str) -> String {
    evaluate(text, fleet()).unwrap_or_else(|e| panic!("{e}")).graph("all", false, None).unwrap()
}

#[test]
fn instances_become_hosts_groups_and_variables() {
    let found = evaluate(
        "
plugin: amazon.aws.aws_ec2
hostnames: [tag:Name]
compose:
  ansible_host: private_ip_address
  twice: ansible_host
groups:
  consul: tags.Role == 'consul_server'
  composed: ansible_host == '10.0.0.3'
  always: true
  never: tags.get('Role', '') == 'x'
keyed_groups:
  - {key: tags.Role | default(''), prefix: role, default_value: none, parent_group: roles}
  - {key: placement.region, prefix: aws}
  - {key: security_groups | map(attribute='group_name') | list, prefix: sg}
",
        fleet(),
    )
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        found.graph("all", false, None).unwrap(),
        "@all:
  |--@ungrouped:
  |--@aws_ec2:
  |  |--consul-1
  |  |--consul-2
  |  |--edge-1
  |  |--jump
  |--@consul:
  |  |--consul-1
  |  |--consul-2
  |--@always:
  |  |--consul-1
  |  |--consul-2
  |  |--edge-1
  |  |--jump
  |--@roles:
  |  |--@role_consul_server:
  |  |  |--consul-1
  |  |  |--consul-2
  |  |--@role_nomad_client:
  |  |  |--edge-1
  |  |--@role_none:
  |  |  |--jump
  |--@aws_eu_west_1:
  |  |--consul-1
  |  |--consul-2
  |  |--edge-1
  |  |--jump
  |--@sg_base:
  |  |--consul-1
  |  |--consul-2
  |  |--edge-1
  |  |--jump
  |--@composed:
  |  |--edge-1"
    );
    let edge = found.host("edge-1").unwrap();
    assert_eq!(edge.instance.as_ref().unwrap().id, "i-03");
    assert_eq!(found.connection(edge, &found.scope(edge)).unwrap().host, "10.0.0.3");
    assert_eq!(found.host_json("edge-1").unwrap()["tags"]["Edge"], "true");
    // Composed variables do not see each other; a tag that is missing leaves its condition out: both are told.
    let messages: Vec<&str> = found.warnings.iter().map(|w| w.message.as_str()).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[0].starts_with("variable 'twice' cannot be evaluated for 4 of 4 host(s), first for 'consul-1': "));
    assert!(
        messages[1]
            .starts_with("the condition of group 'consul' cannot be evaluated for 1 of 4 host(s), first for 'jump': ")
    );
}

#[test]
fn keyed_groups_are_named_as_ansible_names_them() {
    // One instance's tags are looked at; each entry gives these groups.
    let cases: &[(&str, &[&str])] = &[
        ("{key: tags.Role}", &["_consul_server"]),
        ("{key: tags.Role, separator: ''}", &["consul_server"]),
        ("{key: tags.Role, prefix: a-b, separator: '-'}", &["a_b_consul_server"]),
        ("{key: tags.Role, prefix: }", &["None_consul_server"]),
        ("{key: tags, prefix: tag}", &["tag_Name_consul_1", "tag_Role_consul_server", "tag_9x_1"]),
        ("{key: \"'9x'\", separator: ''}", &["_x"]),
        ("{key: \"'é ü'\", separator: ''}", &["é_ü"]),
        ("{key: \"['a', 1, none, true]\", prefix: p}", &["p_a", "p_1", "p_None", "p_True"]),
        ("{key: \"''\", prefix: p}", &[]),
        ("{key: \"''\", prefix: p, default_value: d}", &["p_d"]),
        ("{key: \"{'k': ''}\", prefix: p}", &["p_k_"]),
        ("{key: \"{'k': ''}\", prefix: p, trailing_separator: false}", &["p_k"]),
        ("{key: \"{'k': ''}\", prefix: p, default_value: d}", &["p_k_d"]),
        ("{key: \"[]\", prefix: p}", &[]),
        ("{key: \"false\", prefix: p}", &[]),
        ("{key: security_groups, prefix: p}", &["p___group_id____sg_1____group_name____base__"]),
    ];
    for (entry, expected) in cases {
        let text = format!("hostnames: [tag:Name]\nkeyed_groups: [{entry}]\n");
        let found = evaluate(&text, fleet()[..1].to_vec()).unwrap_or_else(|e| panic!("{entry}: {e}"));
        let mut groups: Vec<&str> =
            found.groups().map(|g| g.name.as_str()).filter(|n| !["all", "ungrouped", "aws_ec2"].contains(n)).collect();
        let mut expected = expected.to_vec();
        groups.sort_unstable();
        expected.sort_unstable();
        assert_eq!(groups, expected, "{entry}");
    }
    let leading = graph("hostnames: [tag:Name]\nleading_separator: false\nkeyed_groups: [{key: instance_type}]\n");
    assert!(leading.contains("  |--@t3_small:\n"), "{leading}");
}

#[test]
fn instances_never_merge() {
    let mut instances = fleet();
    instances[1].attributes["tags"]["Name"] = "consul-1".into();
    instances[3].attributes["tags"] = json!({});
    let found = evaluate("hostnames: [tag:Name]\n", instances).unwrap();
    let names: Vec<&str> = found.hosts().map(|h| h.name.as_str()).collect();
    assert_eq!(names, ["consul-1-i-01", "consul-1-i-02", "edge-1", "i-04"]);
    assert_eq!(found.warnings[0].message, "none of 'hostnames' names i-04: they are known by their ids");
    // The same word for all of them.
    let found = evaluate("hostnames: [fleet]\n", fleet()).unwrap();
    assert_eq!(found.hosts().count(), 4);
}

#[test]
fn names_of_variables_can_be_set_apart() {
    let text = "hostnames: [tag:Name]\nhostvars_prefix: aws_\nhostvars_suffix: _x\ncompose: {ansible_host: aws_private_ip_address_x}\n";
    let found = evaluate(text, fleet()).unwrap();
    let vars = found.host_json("jump").unwrap();
    assert_eq!((&vars["ansible_host"], &vars["aws_instance_type_x"]), (&json!("10.0.0.4"), &json!("t3.small")));
    assert!(vars.get("tags").is_none());
}

#[test]
fn text_of_tags_is_never_an_expression() {
    let mut instances = fleet();
    instances[0].attributes["tags"]["Note"] = "{{ 1 + 1 }}".into();
    let found = evaluate("hostnames: [tag:Name]\ncompose: {note: tags.Note | default('')}\n", instances).unwrap();
    assert_eq!(found.host_json("consul-1").unwrap()["note"], json!({"__ansible_unsafe": "{{ 1 + 1 }}"}));
    assert_eq!(found.hostvars_json()["consul-1"]["note"], "{{ 1 + 1 }}");
}

#[test]
fn filters_are_read_as_ansible_reads_them() {
    let (_, config) = read(
        "
regions: eu-west-1, eu-west-2
filters: {'tag:Cluster': kraken, 'tag:On': true, instance-state-code: 16}
include_filters: [{'tag:Role': [web, db]}]
exclude_filters: [{'tag:Role': jump}]
profile: prod
cache: yes
cache_timeout: 60
strict_permissions: no
",
    );
    let (config, warnings) = config.unwrap();
    assert_eq!(warnings, []);
    let pair = |name: &str, values: &[&str]| (name.to_owned(), values.iter().map(ToString::to_string).collect());
    assert_eq!(
        config.query,
        Query {
            account: Account { profile: Some("prod".into()), ..Account::default() },
            regions: vec!["eu-west-1".into(), "eu-west-2".into()],
            include: vec![
                vec![pair("tag:Cluster", &["kraken"]), pair("tag:On", &["true"]), pair("instance-state-code", &["16"])],
                vec![pair("tag:Role", &["web", "db"])],
            ],
            exclude: vec![vec![pair("tag:Role", &["jump"])]],
            strict_permissions: false,
        }
    );
    assert_eq!(config.cache, Some(60));
}

#[test]
fn bad_files_are_refused_with_their_place() {
    let cases: &[(&str, &str)] = &[
        (
            "plugin: aws_ec2\nfiltres:\n  tag:x: y\n",
            "error: unknown key 'filtres' in an aws_ec2 inventory\n  --> aws_ec2.yaml:2:1\n   |\n 2 | filtres:\n   | ^\n  hint: did you mean 'filters'?\n",
        ),
        (
            "region: eu-west-1\n",
            "error: unknown key 'region' in an aws_ec2 inventory\n  --> aws_ec2.yaml:1:1\n   |\n 1 | region: eu-west-1\n   | ^\n  hint: did you mean 'regions'?\n",
        ),
        (
            "keyed_groups: [{keyy: x}]\n",
            "error: keyed group needs 'key'\n  --> aws_ec2.yaml:1:16\n   |\n 1 | keyed_groups: [{keyy: x}]\n   |                ^\n",
        ),
        (
            "keyed_groups: [{key: x, seperator: ''}]\n",
            "error: unknown key 'seperator' in a keyed group\n  --> aws_ec2.yaml:1:25\n   |\n 1 | keyed_groups: [{key: x, seperator: ''}]\n   |                         ^\n  hint: did you mean 'separator'?\n",
        ),
        (
            "keyed_groups: {key: x}\n",
            "error: expected a list, found a mapping\n  --> aws_ec2.yaml:1:15\n   |\n 1 | keyed_groups: {key: x}\n   |               ^\n  hint: write a list: [{key: tags.Role, prefix: role}]\n",
        ),
        (
            "hostnames: [private_ip_address]\n",
            "error: 'private_ip_address' is no attribute of an instance\n  --> aws_ec2.yaml:1:13\n   |\n 1 | hostnames: [private_ip_address]\n   |             ^\n  note: an unknown word would be the name of every instance\n  hint: did you mean 'private-ip-address'?\n",
        ),
        (
            "aws_access_key: AKIA\n",
            "error: 'aws_access_key' is not taken here\n  --> aws_ec2.yaml:1:1\n   |\n 1 | aws_access_key: AKIA\n   | ^\n  hint: keys do not belong into a file: put them into a profile (aws configure --profile NAME) and write profile: NAME\n",
        ),
        (
            "use_contrib_script_compatible_sanitization: true\n",
            "error: 'use_contrib_script_compatible_sanitization' is not taken here\n  --> aws_ec2.yaml:1:1\n   |\n 1 | use_contrib_script_compatible_sanitization: true\n   | ^\n  hint: such group names cannot be used in patterns; write the new names\n",
        ),
        (
            "filters: [a]\n",
            "error: expected a mapping, found a list\n  --> aws_ec2.yaml:1:10\n   |\n 1 | filters: [a]\n   |          ^\n  hint: filters are a mapping: {tag:Role: web, instance-state-name: running}\n",
        ),
        (
            "filters: {'tag:x': }\n",
            "error: filter 'tag:x' needs a text or a list of texts\n  --> aws_ec2.yaml:1:18\n   |\n 1 | filters: {'tag:x': }\n   |                  ^\n  hint: to ask for any value of a tag, write tag-key: NAME\n",
        ),
        (
            "filters: {'tag:x': []}\n",
            "error: filter 'tag:x' has no value\n  --> aws_ec2.yaml:1:20\n   |\n 1 | filters: {'tag:x': []}\n   |                    ^\n",
        ),
        (
            "groups: {web: [a]}\n",
            "error: expected a condition (an expression that gives true or false), found a list\n  --> aws_ec2.yaml:1:15\n   |\n 1 | groups: {web: [a]}\n   |               ^\n",
        ),
        (
            "regions: {a: 1}\n",
            "error: expected a list of regions, found a mapping\n  --> aws_ec2.yaml:1:10\n   |\n 1 | regions: {a: 1}\n   |          ^\n",
        ),
        (
            "strict: maybe\n",
            "error: expected true or false, found a string\n  --> aws_ec2.yaml:1:9\n   |\n 1 | strict: maybe\n   |         ^\n",
        ),
        (
            "profile: a\naws_profile: b\n",
            "error: 'aws_profile' and 'profile' say the same thing\n  --> aws_ec2.yaml:2:14\n   |\n 2 | aws_profile: b\n   |              ^\n  note: the other one is here (aws_ec2.yaml:1:10)\n",
        ),
        (
            "cache_timeout: soon\n",
            "error: expected a number of seconds, found a string\n  --> aws_ec2.yaml:1:16\n   |\n 1 | cache_timeout: soon\n   |                ^\n",
        ),
        (
            "cache_plugin: redis\n",
            "error: the cache is always kept in files\n  --> aws_ec2.yaml:1:15\n   |\n 1 | cache_plugin: redis\n   |               ^\n  hint: leave 'cache_plugin' out, or write jsonfile\n",
        ),
    ];
    for (text, expected) in cases {
        let (sources, config) = read(text);
        let found = config.err().map(|e| e.0.iter().map(|d| sources.render(d)).collect::<String>());
        assert_eq!(found.as_deref(), Some(*expected), "{text}");
    }
}

#[test]
fn wrong_expressions_are_errors_at_once() {
    for text in [
        "compose: {a: 'x ='}\n",
        "groups: {a: 'x ==='}\n",
        "keyed_groups: [{key: 'a | nofilter'}]\n",
        "hostnames: ['tag:Name | nofilter']\n",
    ] {
        let (_, config) = read(text);
        let errors = config.expect_err(text);
        assert!(errors.has_errors() && errors.0[0].span.line == 1, "{text}: {errors:?}");
    }
    let strict = evaluate("strict: true\nhostnames: [tag:Name]\ncompose: {a: tags.Nope}\n", fleet()).unwrap_err();
    assert!(
        strict.starts_with("error: variable 'a' cannot be evaluated for 4 of 4 host(s), first for 'consul-1': "),
        "{strict}"
    );
    let number = evaluate("hostnames: [tag:Name]\nkeyed_groups: [{key: ami_launch_index + 1}]\n", fleet()).unwrap_err();
    assert!(
        number.starts_with("error: a keyed group needs a text, a list or a mapping; for 'consul-1' this gives 1\n"),
        "{number}"
    );
    let unquoted = evaluate("hostnames: [tag:Name]\ncompose: {ansible_port: 22}\n", fleet()).unwrap();
    assert_eq!(unquoted.warnings[0].message, "'ansible_port' is not set: a number is no expression");
    assert!(unquoted.host_json("jump").unwrap().get("ansible_port").is_none());
    let text = evaluate("hostnames: [tag:Name]\ngroups: {x: private_ip_address}\n", fleet()).unwrap();
    assert!(text.warnings[0].message.contains("a condition must give true or false"), "{:?}", text.warnings);
}
