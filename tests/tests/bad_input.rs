//! Bad input is refused before any host is touched: exit code, place, and what would be right.

use rollcall_tests::{Borrowed, Lab, Project, Said};

/// What a host would show if anything had been done: everything but what logging in leaves.
const LOOK: &str = "find / -xdev \\( -path /var/log -o -path /var/lib/systemd -o -path /tmp -o -path /var/tmp -o -path /usr/local/lib/rollcall \
                    -o -path '/var/lib/sudo' -o -path /var/lib/chrony \\) -prune -o -type f -printf '%p %s %m %T@\\n' | sort | sha256sum; ls -a /srv /home/admin";

/// The begin of every playbook here: a task that would leave its mark. Seven lines.
const BEGIN: &str = "- name: Marked\n  hosts: all\n  become: true\n  tasks:\n    - name: Mark\n      file: {path: /srv/mark, state: directory}\n\n";

struct Ground {
    hosts: Borrowed,
    project: Project,
    before: String,
}

impl Ground {
    fn new(count: usize) -> Self {
        let hosts = Lab::shared().borrow(count, "");
        let project = Project::new(&hosts.lab, hosts.hosts());
        // The agent is there before the look.
        project.controller(["exec", "all", "--", "true"]).ok();
        let before = Self::look(&hosts);
        Self { hosts, project, before }
    }

    fn look(hosts: &Borrowed) -> String {
        (0..hosts.hosts().count()).map(|index| hosts.root(index, LOOK).ok().out).collect()
    }

    /// Nothing was changed anywhere since the beginning.
    #[track_caller]
    fn untouched(&self) {
        assert_eq!(Self::look(&self.hosts), self.before, "a host was touched");
    }

    /// A playbook that is refused, by these texts.
    #[track_caller]
    fn refused(&self, playbook: &str, texts: &[&str]) -> Said {
        self.project.write("site.yaml", playbook);
        let mut said = self.project.controller(["run", "site.yaml"]).ends(3);
        for text in texts {
            said = said.says(text);
        }
        said
    }
}

#[test]
fn playbooks_that_are_wrong_are_refused_with_place_and_hint() {
    let ground = Ground::new(1);
    let task = |text: &str| format!("{BEGIN}{text}");
    let cases: Vec<(String, &[&str])> = vec![
        ("- hosts: all\n  tasks: [a, {b\n".into(), &["site.yaml:"]),
        ("- hosts: all\n\ttasks: []\n".into(), &["site.yaml:2:1", "tab"]),
        (task("    - name: a\n      name: b\n      debug: {msg: x}\n"), &["site.yaml:9:7", "name"]),
        ("- hosts: all\n  taks: []\n".into(), &["site.yaml:2:3", "taks", "did you mean 'tasks'"]),
        (task("    - copi: {content: x, dest: /srv/x}\n"), &["site.yaml:8:7", "copi", "did you mean 'copy'"]),
        (task("    - copy: {contents: x, dest: /srv/x}\n"), &["site.yaml:8:14", "contents", "did you mean 'content'"]),
        (task("    - copy: {content: x, dest: /srv/x, mode: [1]}\n"), &["site.yaml:8:", "mode"]),
        (task("    - file: {path: /srv/x, state: directroy}\n"), &["site.yaml:8:", "directroy", "directory"]),
        (task("    - command: echo x\n      becom: true\n"), &["site.yaml:9:7", "becom", "did you mean 'become'"]),
        (task("    - service: {name: x, enabled: maybe}\n"), &["site.yaml:8:", "enabled"]),
        (task("    - template: {src: nothing.j2, dest: /srv/x}\n"), &["site.yaml:8:", "nothing.j2"]),
        (task("    - copy: {src: nothing.txt, dest: /srv/x}\n"), &["site.yaml:8:", "nothing.txt"]),
        (task("    - import_tasks: nothing.yaml\n"), &["site.yaml:8:", "nothing.yaml"]),
        (task("    - copy: {content: x, dest: /srv/x}\n      notify: nobody\n"), &["site.yaml:9:", "nobody"]),
        ("- hosts: all\n  roles: [base, nothing_like_it]\n".into(), &["site.yaml:2:", "nothing_like_it"]),
        (task("    - debug: {msg: x}\n      when: 1 +\n"), &["site.yaml:9:"]),
        (task("    - debug: {msg: x}\n      when: inventory_hostname\n"), &["site.yaml:9:", "true or false"]),
        (
            task("    - debug: {msg: '{{ undefind }}'}\n  vars: {undefined_: 1}\n"),
            &["site.yaml:8:", "undefind", "undefined_"],
        ),
        (task("    - copy: {content: \"a\\0b\", dest: \"/srv/a\\0b\"}\n"), &["site.yaml:8:", "NUL"]),
        ("- hosts: nobody_like_it\n  tasks: []\n".into(), &["site.yaml:1:", "nobody_like_it"]),
        ("hosts: all\n".into(), &["site.yaml:1:1", "list"]),
        (String::new(), &["site.yaml"]),
        (task("    - debug: {msg: x}\n      async: 10\n"), &["site.yaml:9:7", "async", "timeout"]),
        (task("    - get_url: {url: 'http://x/y', dest: /srv/y}\n"), &["site.yaml:8:", "checksum"]),
        (task("    - debug: {msg: '{{ ansible_os_family }}'}\n"), &["site.yaml:8:", "facts.os.family"]),
    ];
    // All of them, so that one that fails does not hide the others.
    let mut wrong = Vec::new();
    for (text, expected) in &cases {
        ground.project.write("site.yaml", text);
        let said = ground.project.controller(["run", "site.yaml"]);
        let missing: Vec<&&str> =
            expected.iter().filter(|text| !said.out.contains(**text) && !said.err.contains(**text)).collect();
        if said.code != 3 || !missing.is_empty() {
            wrong.push(format!("{text}\nlacks {missing:?}\n{}", said.report()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    // Everything that is wrong is told at once.
    ground.refused(
        &task("    - copi: {content: x}\n    - command: echo\n      becom: true\n    - copy: {content: x, dset: /srv/x}\n"),
        &["copi", "becom", "dset"],
    );
    ground.project.controller(["run", "nothing.yaml"]).ends(3).says("nothing.yaml");
    ground.project.controller(["run", "site.yaml", "--no-such-option"]).ends(2);
    ground.untouched();
}

#[test]
fn inventories_and_patterns_that_are_wrong_are_refused() {
    let ground = Ground::new(1);
    let site = format!("{BEGIN}    - debug: {{msg: x}}\n");
    ground.project.write("site.yaml", &site);
    let name = ground.hosts.name(0).to_owned();
    let nearly = format!("{name}x");
    ground.project.controller(["run", "site.yaml", "--limit", &nearly]).ends(3).says(&nearly).says(&name);
    ground.project.controller(["run", "site.yaml", "--limit", &format!("all:!{name}")]).ends(3);
    ground.project.controller(["run", "site.yaml", "--limit", "@nothing.txt"]).ends(3).says("nothing.txt");
    ground.project.controller(["run", "site.yaml", "--tags", "nothing_like_it"]).ends(3).says("nothing_like_it");
    ground.project.controller(["run", "site.yaml", "-e", "@nothing.yaml"]).ends(3).says("nothing.yaml");
    ground.project.controller(["run", "site.yaml", "-i", "nothing.yaml"]).ends(3).says("nothing.yaml");

    // A group without hosts.
    ground.project.write("more.yaml", &format!("all:\n  hosts: {{{name}: {{}}}}\n  children: {{empty: {{}}}}\n"));
    ground.project.write("empty.yaml", &site.replace("hosts: all", "hosts: empty"));
    ground.project.controller(["run", "empty.yaml", "-i", "more.yaml"]).ends(3).says("empty.yaml:2:").says("empty");

    ground.project.write("bad.yaml", "all:\n  hots:\n    a: {}\n");
    ground
        .project
        .controller(["run", "site.yaml", "-i", "bad.yaml"])
        .ends(3)
        .says("bad.yaml:2:3")
        .says("hots")
        .says("hosts");
    ground.project.write("bad.yaml", "all:\n  hosts:\n\ta: {}\n");
    ground.project.controller(["run", "site.yaml", "-i", "bad.yaml"]).ends(3).says("bad.yaml:3:");
    ground.project.write("x.aws_ec2.yaml", "plugin: amazon.aws.aws_ec2\nregions: [us-west-2]\nfiltres: {}\n");
    ground
        .project
        .controller(["run", "site.yaml", "-i", "x.aws_ec2.yaml"])
        .ends(3)
        .says("x.aws_ec2.yaml:3:1")
        .says("filters");
    ground.project.write("group_vars/all.yaml", "a: 1\na: 2\n");
    ground.project.controller(["run", "site.yaml"]).ends(3).says("all.yaml:2:1");
    ground.untouched();
}

#[test]
fn the_cloud_without_credentials_or_with_bad_ones_is_told() {
    let ground = Ground::new(1);
    ground.project.write("x.aws_ec2.yaml", "plugin: amazon.aws.aws_ec2\nregions: [us-west-2]\n");
    ground.project.write("site.yaml", BEGIN);
    let controller = rollcall_tests::program("controller");
    let line = |settings: &str| {
        let line = format!(
            "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE; {settings} exec {} run site.yaml -i x.aws_ec2.yaml",
            controller.display()
        );
        ground.project.shell(&line)
    };
    line("export AWS_EC2_METADATA_DISABLED=true;").ends(3).says("credentials");
    line("export AWS_EC2_METADATA_DISABLED=true AWS_PROFILE=nothing;").ends(3).says("nothing");
    ground.untouched();
}

#[test]
fn a_variable_that_is_undefined_only_on_the_last_host_is_told_before_the_first_is_touched() {
    let ground = Ground::new(2);
    let first = ground.hosts.name(0).to_owned();
    ground.project.write(&format!("host_vars/{first}.yaml"), "port: 80\n");
    ground.refused(
        &format!("{BEGIN}    - copy: {{content: 'port {{{{ port }}}}', dest: /srv/port}}\n"),
        &["site.yaml:8:", "'port' is undefined", ground.hosts.name(1)],
    );
    // The same in a template.
    ground.project.write("templates/port.j2", "first line\nport {{ port }}\n");
    ground.refused(
        &format!("{BEGIN}    - template: {{src: port.j2, dest: /srv/port}}\n"),
        &["port.j2:2:", "port", ground.hosts.name(1)],
    );
    ground.untouched();
}

#[test]
fn odd_values_arrive_as_they_are() {
    let hosts = Lab::shared().borrow(1, "");
    let odd = "ü ✓ 'q' \"d\" $(touch /srv/owned) `touch /srv/owned` ; | & > < \\ * ? ~ # % {x} \u{7}end";
    let project = Project::new(&hosts.lab, hosts.hosts())
        .file("vars.json", &serde_json::json!({"odd": odd, "big": "x".repeat(1 << 20)}).to_string())
        .file(
            "site.yaml",
            "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: '{{ odd }}', dest: /srv/odd}\n    \
             - copy: {content: '{{ big }}', dest: /srv/big}\n    \
             - command: {argv: [printf, '%s', '{{ odd }}']}\n      register: said\n      changed_when: false\n    \
             - assert: {that: [said.stdout == odd]}\n    \
             - shell: printf %s {{ odd | quote }} > /srv/quoted\n",
        );
    project.controller(["run", "site.yaml", "-e", "@vars.json"]).ok();
    assert_eq!(hosts.read(0, "/srv/odd"), odd);
    assert_eq!(hosts.read(0, "/srv/quoted"), odd);
    assert_eq!(hosts.root(0, "stat --format %s /srv/big").text(), (1 << 20).to_string());
    hosts.root(0, "test ! -e /srv/owned").ok();
}
