//! Inventories from files: what they give, and how what is wrong with them is told.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::{collections::HashSet, fs, path::Path, sync::Arc};

use rollcall_engine::{
    diag::Sources,
    inventory::{self, Inventory, Options, SourceSpec, connection::Way, output::json_text},
    vars::Layer,
};
use tempfile::TempDir;

#[path = "../src/fuzz.rs"]
mod fuzz;

/// A folder with these files.
fn project(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn options(playbook_dirs: &[&Path]) -> Options {
    Options {
        sources: Arc::new(Sources::default()),
        playbook_dirs: playbook_dirs.iter().map(|p| p.to_path_buf()).collect(),
        ..Options::default()
    }
}

fn load(dir: &TempDir, sources: &[&str]) -> Inventory {
    let options = options(&[]);
    let specs: Vec<SourceSpec> = sources.iter().map(|s| spec(dir, s)).collect();
    run(inventory::load(&specs, &options)).unwrap_or_else(|e| {
        panic!("{}", e.0.iter().map(|d| options.sources.render(d)).collect::<String>());
    })
}

fn spec(dir: &TempDir, source: &str) -> SourceSpec {
    if source.contains(',') { SourceSpec::parse(source) } else { SourceSpec::Path(dir.path().join(source)) }
}

/// The findings of a load that must fail, with the folder's name taken out.
fn errors(files: &[(&str, &str)], source: &str) -> String {
    let dir = project(files);
    let options = options(&[]);
    let found = run(inventory::load(&[spec(&dir, source)], &options)).expect_err("this inventory is wrong");
    let text: String = found.0.iter().map(|d| options.sources.render(d)).collect();
    text.replace(&format!("{}/", dir.path().display()), "").replace(&dir.path().display().to_string(), "DIR")
}

fn names<'a>(hosts: impl IntoIterator<Item = &'a inventory::Host>) -> Vec<String> {
    hosts.into_iter().map(|h| h.name.clone()).collect()
}

const FLEET: &str = "
all:
  vars: {site: one}
  children:
    web:
      hosts:
        web[1:3]:
        web-eu:
          ansible_host: 10.0.0.9
    db:
      hosts:
        db-a: {role: primary}
        db-b:
      vars: {engine: pg}
    backend:
      children: {web: , db: }
  hosts:
    lone.example.com:2222:
";

#[test]
fn a_static_inventory_gives_hosts_groups_and_variables() {
    let dir = project(&[("hosts.yaml", FLEET)]);
    let found = load(&dir, &["hosts.yaml"]);
    assert_eq!(names(found.hosts()), ["web1", "web2", "web3", "web-eu", "db-a", "db-b", "lone.example.com"]);
    assert_eq!(
        found.graph("all", false, None).unwrap(),
        "@all:
  |--@ungrouped:
  |  |--lone.example.com
  |--@web:
  |  |--web1
  |  |--web2
  |  |--web3
  |  |--web-eu
  |--@db:
  |  |--db-a
  |  |--db-b
  |--@backend:
  |  |--@web:
  |  |  |--web1
  |  |  |--web2
  |  |  |--web3
  |  |  |--web-eu
  |  |--@db:
  |  |  |--db-a
  |  |  |--db-b"
    );
    let db = found.host("db-a").unwrap();
    assert_eq!(found.group_names(db), ["backend", "db"]);
    let order: Vec<&str> = found.groups_of(db).map(|g| g.name.as_str()).collect();
    assert_eq!(order, ["all", "backend", "db"]);
    let lone = found.host("lone.example.com").unwrap();
    let connection = found.connection(lone, &found.scope(lone)).unwrap();
    assert_eq!((connection.host.as_str(), connection.port, connection.way), ("lone.example.com", Some(2222), Way::Ssh));
    let eu = found.host("web-eu").unwrap();
    assert_eq!(found.connection(eu, &found.scope(eu)).unwrap().host, "10.0.0.9");
    assert_eq!(
        found.graph("db", true, None).unwrap(),
        "@db:\n  |--db-a\n  |  |--{engine = pg}\n  |  |--{role = primary}\n  |  |--{site = one}\n  |--db-b\n  |  |--{engine = pg}\n  |  |--{site = one}\n  |--{engine = pg}"
    );
}

#[test]
fn the_list_is_ansibles_json() {
    let dir = project(&[("hosts.yaml", "web: {hosts: {w1: {n: 1, t: '{{ x }}'}}}\nempty:\n")]);
    let found = load(&dir, &["hosts.yaml"]);
    assert_eq!(
        json_text(&found.list_json(None)),
        r#"{
    "_meta": {
        "hostvars": {
            "w1": {
                "n": 1,
                "t": "{{ x }}"
            }
        },
        "profile": "inventory_legacy"
    },
    "all": {
        "children": [
            "ungrouped",
            "web",
            "empty"
        ]
    },
    "web": {
        "hosts": [
            "w1"
        ]
    }
}"#
    );
    let nobody = HashSet::new();
    assert!(!json_text(&found.list_json(Some(&nobody))).contains("w1"));
    // What we print as YAML, we read again.
    let again = project(&[("again.yaml", &rollcall_engine::yaml::to_string(&found.list_yaml(None)).unwrap())]);
    let again = load(&again, &["again.yaml"]);
    assert_eq!(again.graph("all", true, None).unwrap(), found.graph("all", true, None).unwrap());
}

#[test]
fn sources_merge_in_order() {
    let dir = project(&[
        ("inv/b.yaml", "web: {hosts: {w1: {v: b}, w2: }}"),
        ("inv/a.yaml", "web: {hosts: {w1: {v: a, only_a: 1}}}"),
        ("inv/sub/c.yml", "db: {hosts: {d1: }}"),
        ("inv/.hidden.yaml", "x: ["),
        ("inv/notes.md", "x: ["),
        ("inv/old.yaml~", "x: ["),
        ("inv/group_vars/all.yaml", "g: 1"),
    ]);
    let found = load(&dir, &["inv", "extra-1,extra-2:2200,"]);
    assert_eq!(names(found.hosts()), ["w1", "w2", "d1", "extra-1", "extra-2"]);
    let host = found.host("w1").unwrap();
    let scope = found.scope(host);
    let values: Vec<_> = scope.history("v").map(|v| format!("{:?}", v.binding)).collect();
    assert!(values[0].contains("\"b\"") && values[1].contains("\"a\""), "{values:?}");
    assert!(scope.get("only_a").is_some() && scope.get("g").is_some());
    let extra = found.host("extra-2").unwrap();
    assert_eq!(found.connection(extra, &found.scope(extra)).unwrap().port, Some(2200));
    assert_eq!(found.group_names(extra), ["ungrouped"]);
}

#[test]
fn precedence_is_ansibles() {
    // Each place sets its own name and all stronger ones: the winner of the n-th name is the n-th place.
    let places = [
        ("inv/hosts.yaml", Layer::InventoryGroup),
        ("inv/group_vars/all.yaml", Layer::InventoryAllVars),
        ("play/group_vars/all/x.yml", Layer::PlaybookAllVars),
        ("inv/group_vars/web.yml", Layer::InventoryGroupVars),
        ("play/group_vars/web.yaml", Layer::PlaybookGroupVars),
        ("hostline", Layer::InventoryHost),
        ("inv/host_vars/w1.yaml", Layer::InventoryHostVars),
        ("play/host_vars/w1", Layer::PlaybookHostVars),
    ];
    let line = |place: usize| -> Vec<String> { (place..places.len()).map(|n| format!("v{n}: p{place}")).collect() };
    let mut files: Vec<(String, String)> = places
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| name.contains("_vars"))
        .map(|(n, (name, _))| ((*name).to_owned(), line(n).join("\n")))
        .collect();
    files.push((
        "inv/hosts.yaml".to_owned(),
        format!("web: {{vars: {{{}}}, hosts: {{w1: {{{}}}}}}}", line(0).join(", "), line(5).join(", ")),
    ));
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let dir = project(&files);
    let options = options(&[&dir.path().join("play")]);
    let found = run(inventory::load(&[spec(&dir, "inv")], &options)).unwrap();
    let host = found.host("w1").unwrap();
    let scope = found.scope(host);
    for (n, (name, layer)) in places.iter().enumerate() {
        let winner = scope.get(&format!("v{n}")).unwrap();
        assert_eq!(winner.layer, *layer, "v{n} of {name}");
        assert!(format!("{:?}", winner.binding).contains(&format!("\"p{n}\"")), "v{n}: {:?}", winner.binding);
    }
    let text = found.explain("w1", "v3", &options.sources).unwrap();
    let text = text.replace(&format!("{}/", dir.path().display()), "");
    assert_eq!(
        text,
        "v3 of w1
  wins  group_vars (inventory)           inv/group_vars/web.yml:1:5
          p3
        group_vars/all (playbook)        play/group_vars/all/x.yml:2:5
          p2
        group_vars/all (inventory)       inv/group_vars/all.yaml:3:5
          p1
        group in the inventory           inv/hosts.yaml:1:42
          p0
value: \"p3\"
"
    );
}

#[test]
fn groups_merge_by_depth_priority_and_name() {
    let dir = project(&[(
        "h.yaml",
        "
a: {hosts: {x: }, vars: {v: a, w: a}}
z: {hosts: {x: }, vars: {v: z, w: z}}
b: {hosts: {x: }, vars: {v: b, w: b, ansible_group_priority: 10}}
deep: {children: {inner: {hosts: {x: }, vars: {w: inner}}}}
",
    )]);
    let found = load(&dir, &["h.yaml"]);
    let host = found.host("x").unwrap();
    let order: Vec<&str> = found.groups_of(host).map(|g| g.name.as_str()).collect();
    assert_eq!(order, ["all", "a", "deep", "z", "b", "inner"]);
    let scope = found.scope(host);
    assert!(format!("{:?}", scope.get("v").unwrap().binding).contains("\"b\""));
    assert!(format!("{:?}", scope.get("w").unwrap().binding).contains("\"inner\""));
}

#[test]
fn other_hosts_are_seen_without_circles() {
    let dir = project(&[
        ("h.yaml", "jump: {hosts: {j: {ansible_host: 10.0.0.1}}}\nweb: {hosts: {w: }}"),
        (
            "group_vars/web.yaml",
            "ansible_user: admin\nansible_ssh_common_args: \"{{ '-J admin@' ~ hostvars[groups['jump'][0]].ansible_host }}\"\nfacty: \"{{ facts.os.family }}\"\nansible_become: yes\nansible_become_password: s3cret\n",
        ),
    ]);
    let found = load(&dir, &["h.yaml"]);
    let host = found.host("w").unwrap();
    let connection = found.connection(host, &found.scope(host)).unwrap();
    assert_eq!(connection.ssh_args, "-J admin@10.0.0.1");
    assert_eq!((connection.user.as_deref(), connection.r#become), (Some("admin"), Some(true)));
    assert_eq!(connection.become_password.as_deref(), Some("s3cret"));
    assert!(!format!("{connection:?}").contains("s3cret"));
    let others = found.hostvars_json();
    assert_eq!(others["w"]["ansible_ssh_common_args"], "-J admin@10.0.0.1");
    assert_eq!(others["w"]["group_names"], serde_json::json!(["web"]));
    assert!(others["w"].get("facty").is_none());
    assert!(others["w"].get("ansible_become_password").is_none(), "it would travel to every host");
    assert_eq!(found.groups_json()["jump"], serde_json::json!(["j"]));
}

#[test]
fn patterns_choose_as_documented() {
    let dir = project(&[("hosts.yaml", FLEET)]);
    let found = load(&dir, &["hosts.yaml"]);
    let cases: &[(&str, &[&str])] = &[
        ("all", &["web1", "web2", "web3", "web-eu", "db-a", "db-b", "lone.example.com"]),
        ("*", &["lone.example.com", "web1", "web2", "web3", "web-eu", "db-a", "db-b"]),
        ("web", &["web1", "web2", "web3", "web-eu"]),
        ("web1", &["web1"]),
        ("db:web1", &["db-a", "db-b", "web1"]),
        ("db,web1", &["db-a", "db-b", "web1"]),
        ("backend:!web", &["db-a", "db-b"]),
        ("!web:backend", &["db-a", "db-b"]),
        ("!web", &["db-a", "db-b", "lone.example.com"]),
        ("backend:&db", &["db-a", "db-b"]),
        ("&db", &["db-a", "db-b"]),
        ("backend:&web:!web-eu", &["web1", "web2", "web3"]),
        ("web[0]", &["web1"]),
        ("web[-1]", &["web-eu"]),
        ("web[1:2]", &["web2", "web3"]),
        ("web[1-2]", &["web2", "web3"]),
        ("web[2:]", &["web3", "web-eu"]),
        ("web[1:99]", &["web2", "web3", "web-eu"]),
        ("~db-[ab]", &["db-a", "db-b"]),
        ("~(?!web).*[0-9a-z]$:!backend:!ungrouped[5:9]", &["lone.example.com"]),
        ("web?", &["web1", "web2", "web3"]),
        ("*.example.com", &["lone.example.com"]),
        ("web[12]", &[]),
        ("localhost", &["localhost"]),
        ("all:!localhos*", &["web1", "web2", "web3", "web-eu", "db-a", "db-b", "lone.example.com"]),
        ("web1 , db-a", &["web1", "db-a"]),
    ];
    for (pattern, expected) in cases {
        match found.select(pattern, None) {
            Ok(hosts) => {
                let (mut got, mut expected) =
                    (names(hosts), expected.iter().map(ToString::to_string).collect::<Vec<_>>());
                if *pattern == "*" || *pattern == "all" {
                    got.sort();
                    expected.sort();
                }
                assert_eq!(got, expected, "{pattern}");
            }
            Err(e) => assert!(expected.is_empty(), "{pattern}: {}", e.message),
        }
    }
}

#[test]
fn a_limit_narrows_and_its_file_is_read() {
    let dir = project(&[("hosts.yaml", FLEET), ("retry", "web1\n\n  db-a\n"), ("none", "\n")]);
    let found = load(&dir, &["hosts.yaml"]);
    let file = format!("@{}", dir.path().join("retry").display());
    assert_eq!(names(found.select("backend", Some(&file)).unwrap()), ["web1", "db-a"]);
    assert_eq!(names(found.select("db", Some(&format!("{file},!db-a"))).unwrap()), Vec::<String>::new());
    assert_eq!(names(found.select("all", Some("!backend")).unwrap()), ["lone.example.com"]);
    let none = format!("@{}", dir.path().join("none").display());
    assert!(found.select("all", Some(&none)).unwrap_err().message.ends_with("names no host"));
}

#[test]
fn bad_patterns_are_refused_with_the_nearest_name() {
    let dir = project(&[("hosts.yaml", FLEET), ("more.yaml", "hollow:")]);
    let found = load(&dir, &["hosts.yaml", "more.yaml"]);
    let cases = [
        ("wbe", None, "there is no group and no host 'wbe'", Some("did you mean 'web'?")),
        ("all", Some("db-c"), "there is no group and no host 'db-c'", Some("did you mean 'db-a'?")),
        ("web:!bd", None, "there is no group and no host 'bd'", Some("did you mean 'db'?")),
        ("hollow", None, "group 'hollow' has no hosts", None),
        ("web:hollow", None, "group 'hollow' has no hosts", None),
        (
            "web:&db",
            None,
            "the pattern 'web:&db' matches no host",
            Some("see what there is: controller inventory --graph"),
        ),
        ("nope*", None, "'nope*' matches no group and no host", None),
        (
            "db[7]",
            None,
            "'db[7]' matches no host: 'db' has 2",
            Some("subscripts count from 0, and both ends are included"),
        ),
        (
            "db[1:0]",
            None,
            "'db[1:0]' matches no host: 'db' has 2",
            Some("subscripts count from 0, and both ends are included"),
        ),
        ("web[1", None, "'[' is opened and not closed in 'web[1'", None),
        ("~(", None, "'~(' is no regular expression: ", None),
        ("", None, "the pattern is empty", None),
        ("web:!", None, "'!' names nothing", None),
        ("a,b:c", None, "there is no group and no host 'a'", None),
        (
            "web,db:web1",
            None,
            "there is no group and no host 'db:web1'",
            Some("part terms by commas or by colons, not by both"),
        ),
        ("@file", None, "there is no group and no host '@file'", Some("@FILE is understood in --limit only")),
        (
            "all",
            Some("@/nowhere/x"),
            "cannot read the limit file /nowhere/x: No such file or directory (os error 2)",
            None,
        ),
        ("all", Some("@/"), "the limit file / is a folder", None),
        ("all", Some(","), "the limit ',' is empty", None),
    ];
    for (pattern, limit, message, hint) in cases {
        let error = found.select(pattern, limit).expect_err(pattern);
        assert!(error.message.starts_with(message), "{pattern}: {}", error.message);
        if hint.is_some() {
            assert_eq!(error.hint.as_deref(), hint, "{pattern}");
        }
    }
}

#[test]
fn bad_inventories_are_told_with_their_place() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "h.yaml",
            "web:\n  host:\n    a:\n",
            "error: unknown key 'host' in group 'web'\n  --> h.yaml:2:3\n   |\n 2 |   host:\n   |   ^\n  hint: did you mean 'hosts'?\n",
        ),
        (
            "h.yaml",
            "web:\n  hosts:\n    - a\n",
            "error: 'hosts' of group 'web' must be a mapping, found a list\n  --> h.yaml:3:5\n   |\n 3 |     - a\n   |     ^\n  hint: write one 'name:' per line, without a dash; its variables go below it\n",
        ),
        (
            "h.yaml",
            "web:\n  hosts:\n    a: 1\n",
            "error: the variables of host 'a' must be a mapping, found a number\n  --> h.yaml:3:8\n   |\n 3 |     a: 1\n   |        ^\n  hint: write them below the host, one 'name: value' per line\n",
        ),
        (
            "h.yaml",
            "- a\n",
            "error: expected a mapping, found a list\n  --> h.yaml:1:1\n   |\n 1 | - a\n   | ^\n  hint: an inventory is a mapping of groups: all: {hosts: {web-1: {}}}\n",
        ),
        (
            "h.yaml",
            "",
            "error: the inventory file is empty\n  --> h.yaml\n  hint: start with: all: {hosts: {web-1: {ansible_host: 10.0.0.1}}}\n",
        ),
        (
            "h.yaml",
            "web:\n\thosts:\n",
            "error: a tab cannot indent YAML\n  --> h.yaml:2:1\n   |\n 2 |  hosts:\n   | ^\n  hint: indent with spaces\n",
        ),
        (
            "h.yaml",
            "web: {hosts: {a: }}\nweb: {}\n",
            "error: duplicate key 'web'\n  --> h.yaml:2:1\n   |\n 2 | web: {}\n   | ^\n  note: first given here (h.yaml:1:1)\n",
        ),
        (
            "h.yaml",
            "a: {children: {b: {children: {a: }}}}\n",
            "error: group 'b' cannot be a child of 'a': that closes a circle\n  --> h.yaml:1:16\n   |\n 1 | a: {children: {b: {children: {a: }}}}\n   |                ^\n",
        ),
        (
            "h.yaml",
            "web: {hosts: {'w[1:': }}\n",
            "error: 'w[1:' opens a range and does not close it\n  --> h.yaml:1:15\n   |\n 1 | web: {hosts: {'w[1:': }}\n   |               ^\n",
        ),
        (
            "h.yaml",
            "web: yes\n",
            "error: group 'web' must be a mapping, found a boolean\n  --> h.yaml:1:6\n   |\n 1 | web: yes\n   |      ^\n  hint: a group has 'hosts', 'children' and 'vars', each a mapping\n",
        ),
        (
            "h.yaml",
            "'a:b': {hosts: {x: }}\n",
            "error: 'a:b' cannot be the name of a group\n  --> h.yaml:1:1\n   |\n 1 | 'a:b': {hosts: {x: }}\n   | ^\n  hint: use letters, digits and '_': no pattern could ask for this name\n",
        ),
        (
            "h.yaml",
            "web: {vars: {ansible_group_priority: high}, hosts: {a: }}\n",
            "error: expected a whole number for 'ansible_group_priority', found a string\n  --> h.yaml:1:38\n   |\n 1 | web: {vars: {ansible_group_priority: high}, hosts: {a: }}\n   |                                      ^\n",
        ),
        (
            "hosts",
            "[web]\na\n",
            "error: INI inventories are not read\n  --> hosts\n  hint: convert it: ansible-inventory -i hosts --list --yaml > hosts.yaml\n",
        ),
        (
            "hosts",
            "a ansible_host=1.2.3.4\n",
            "error: INI inventories are not read\n  --> hosts\n  hint: convert it: ansible-inventory -i hosts --list --yaml > hosts.yaml\n",
        ),
        (
            "x.ini",
            "[web]\na\n",
            "error: INI inventories are not read\n  --> x.ini\n  hint: convert it: ansible-inventory -i x.ini --list --yaml > x.yaml\n",
        ),
        (
            "inv.sh",
            "#!/bin/sh\necho {}\n",
            "error: inventory scripts are not read\n  --> inv.sh\n  hint: convert it: ansible-inventory -i inv.sh --list --yaml > inv.yaml\n",
        ),
        (
            "gcp.yml",
            "plugin: gcp_compute\n",
            "error: the inventory plugin 'gcp_compute' is not known\n  --> gcp.yml:1:9\n   |\n 1 | plugin: gcp_compute\n   |         ^\n  hint: convert it: ansible-inventory -i gcp.yml --list --yaml > gcp.yaml\n",
        ),
        (
            "e.yml",
            "plugin: aws_ecc2\n",
            "error: the inventory plugin 'aws_ecc2' is not known\n  --> e.yml:1:9\n   |\n 1 | plugin: aws_ecc2\n   |         ^\n  hint: did you mean 'aws_ec2'?\n",
        ),
        (
            "h.yaml",
            "web:\n",
            "error: the inventory has no hosts (h.yaml)\n  hint: look at its filters, or at the account and the regions that it asks\n",
        ),
    ];
    for (name, text, expected) in cases {
        assert_eq!(errors(&[(name, text)], name), *expected, "{name}: {text}");
    }
    assert_eq!(
        errors(&[("hosts.yaml", "a:")], "host.yaml"),
        "error: there is no inventory host.yaml\n  hint: did you mean 'hosts.yaml'?\n"
    );
    assert_eq!(
        errors(&[("inv/group_vars/all.yml", "a: 1")], "inv"),
        "error: the inventory folder inv holds no inventory\n  hint: put a hosts.yaml or an aws_ec2.yaml into it\n"
    );
}

#[test]
fn bad_files_of_variables_are_told() {
    let hosts = ("h.yaml", "web: {hosts: {w: }}");
    let cases: &[(&str, &str, &str)] = &[
        (
            "group_vars/web.yaml",
            "- a\n",
            "error: expected a mapping of variables, found a list\n  --> group_vars/web.yaml:1:1\n   |\n 1 | - a\n   | ^\n  hint: a file of variables has one 'name: value' per line\n",
        ),
        (
            "host_vars/w.yml",
            "a: 1\na: 2\n",
            "error: duplicate key 'a'\n  --> host_vars/w.yml:2:1\n   |\n 2 | a: 2\n   | ^\n  note: first given here (host_vars/w.yml:1:1)\n",
        ),
        (
            "group_vars/all",
            "$ANSIBLE_VAULT;1.1;AES256\n61\n",
            "error: files encrypted by Ansible Vault are not read\n  --> group_vars/all:1:1\n   |\n 1 | $ANSIBLE_VAULT;1.1;AES256\n   | ^\n  hint: keep secrets in the secrets store, or decrypt the file: ansible-vault decrypt FILE\n",
        ),
        ("group_vars", "x", "error: group_vars must be a folder\n"),
    ];
    for (name, text, expected) in cases {
        assert_eq!(errors(&[hosts, (name, text)], "h.yaml"), *expected, "{name}");
    }
    // Of two files for one name one is read, and that is told.
    let dir = project(&[hosts, ("group_vars/web.yml", "a: 1"), ("group_vars/web.yaml", "b: 1")]);
    let found = load(&dir, &["h.yaml"]);
    assert!(found.warnings[0].message.contains("web.yaml is not read"), "{:?}", found.warnings);
}

#[test]
fn bad_connection_variables_are_told() {
    let cases = [
        ("ansible_port: 99999", "'99999' is no port (1 to 65535)"),
        ("ansible_port: [1]", "'ansible_port' must be a string"),
        ("ansible_connection: winrm", "hosts are not reached by 'winrm'"),
        ("ansible_become: maybe", "'ansible_become' must be true or false, not 'maybe'"),
        ("ansible_become_method: doas", "'doas' is no way to become another user here"),
        ("ansible_password: x", "'ansible_password': logging in by password is not taken"),
        (
            "ansible_host_key_checking: no",
            "'ansible_host_key_checking' cannot be turned off: host keys are always checked",
        ),
        ("ansible_host: ''", "the address of host 'w' is empty"),
    ];
    for (line, message) in cases {
        let dir = project(&[("h.yaml", &format!("web: {{hosts: {{w: {{{line}}}}}}}"))]);
        let found = load(&dir, &["h.yaml"]);
        let host = found.host("w").unwrap();
        let error = found.connection(host, &found.scope(host)).expect_err(line);
        assert_eq!(error.message, message);
        assert_eq!(error.span.line, 1, "{line}");
    }
}

#[test]
fn a_thousand_hosts_are_no_work() {
    let mut text = String::from("all:\n  vars: {site: one}\nweb:\n  hosts:\n");
    for n in 0..1000 {
        text.push_str(&format!("    web-{n}: {{ansible_host: 10.0.{}.{}, n: {n}}}\n", n / 250, n % 250));
    }
    text.push_str("even:\n  hosts:\n");
    for n in (0..1000).step_by(2) {
        text.push_str(&format!("    web-{n}:\n"));
    }
    let dir = project(&[("h.yaml", &text), ("group_vars/all.yaml", "a: 1\nb: '{{ a }}'\n")]);
    let start = std::time::Instant::now();
    let found = load(&dir, &["h.yaml"]);
    assert_eq!(found.graph("all", false, None).unwrap().lines().count(), 1504);
    assert_eq!(found.select("web:&even", None).unwrap().len(), 500);
    assert!(found.list_json(None).to_string().len() > 10_000);
    // A bound for an unoptimised build on a busy machine; what is quadratic takes minutes.
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

fn small() -> &'static Inventory {
    static SMALL: std::sync::OnceLock<Inventory> = std::sync::OnceLock::new();
    SMALL.get_or_init(|| load(&project(&[("h.yaml", "a: {hosts: {'b[1:3]': , c: }}")]), &["h.yaml"]))
}

proptest::proptest! {
    #![proptest_config(fuzz::cases(1000))]
    #[test]
    fn random_patterns_never_panic(text in ".{0,60}", marks in "[a-c\\[\\]:,!&~*0-9-]{0,30}") {
        let _ = (inventory::patterns::parse(&text), inventory::patterns::parse(&marks));
        let _ = (inventory::address::parse(&text), inventory::address::parse(&marks));
        let _ = (inventory::address::expand(&text), inventory::address::expand(&marks));
        let found = small();
        for pattern in [&text, &marks] {
            // What is selected exists, and is selected once.
            if let Ok(hosts) = found.select(pattern, None) {
                let all: HashSet<&str> = hosts.iter().map(|h| h.name.as_str()).collect();
                assert_eq!(all.len(), hosts.len());
                assert!(!all.is_empty());
            }
            let _ = found.select("all", Some(pattern));
        }
    }
}

/// An inventory, or the settings of an `aws_ec2` file, with characters changed, dropped and doubled.
fn mutated(seed: u64) -> String {
    let ec2 = "plugin: none\nregions: [a]\nfilters: {tag:x: [y, 1]}\nhostnames: [tag:Name, {name: x, prefix: y}]\n\
               keyed_groups: [{key: tags.x, prefix: p, separator: ''}]\ngroups: {a: b == 'c'}\ncompose: {d: e | upper}\n";
    let mut state = seed | 1;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let marks: Vec<char> = "{}[]:,-'\"|&*!#%@\t\n \u{e9}0a".chars().collect();
    let mut text: Vec<char> = if random(2) == 0 { FLEET } else { ec2 }.chars().collect();
    for _ in 0..=random(4) {
        let at = random(text.len());
        match random(3) {
            0 => text[at] = marks[random(marks.len())],
            1 => drop(text.remove(at)),
            _ => text.insert(at, marks[random(marks.len())]),
        }
    }
    text.into_iter().collect()
}

proptest::proptest! {
    #![proptest_config(fuzz::cases(1500))]

    /// Whatever comes out, nothing panics, and every refusal says something.
    #[test]
    fn mutated_inventories_never_panic(seed: u64) {
        let text = mutated(seed);
        let dir = project(&[("h.yaml", &text)]);
        let options = options(&[]);
        match run(inventory::load(&[spec(&dir, "h.yaml")], &options)) {
            Ok(found) => assert!(found.graph("all", true, None).unwrap().starts_with("@all:")),
            Err(e) => assert!(e.has_errors(), "{text}"),
        }
        // The settings of an aws_ec2 file, without asking any cloud.
        if let Ok(node) = rollcall_engine::yaml::parse_text(rollcall_engine::diag::FileId(0), &text) {
            let _ = inventory::aws_ec2::Config::read(&node, &rollcall_engine::vars::Scope::new());
        }
    }
}
