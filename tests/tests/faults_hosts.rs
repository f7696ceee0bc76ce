//! Hosts that are ill: full and read-only disks, folders where files should be, mirrors that fail, agents that cannot run,
//! hosts that are down. Each is told on its own host, with a reason; the others finish; and the next run repairs.

use std::process::Command;
use std::time::Duration;

use rollcall_tests::{Borrowed, Lab, Project, Said, program, run};

const LIMIT: Duration = Duration::from_mins(2);

/// A project in which hosts that are gone are noticed after seconds.
fn project(hosts: &Borrowed) -> Project {
    let project = Project::new(&hosts.lab, hosts.hosts());
    project.add_settings("  keepalive: 2\n  connect_timeout: 20\n");
    project
}

/// The recap's failed and unreachable counts of a host.
#[track_caller]
fn bad(said: &Said, host: &str) -> (u32, u32) {
    let pattern = regex::Regex::new(&format!(r"(?m)^{host} +: ok=\d+ +changed=\d+ +failed=(\d+) +unreachable=(\d+)"))
        .expect("a pattern");
    let found = pattern.captures(&said.out).unwrap_or_else(|| panic!("no recap of {host}\n{}", said.report()));
    (found[1].parse().expect("digits"), found[2].parse().expect("digits"))
}

const LEFT: &str = "find / -xdev \\( -name '.rollcall-*' -o -name '.half-*' \\) -print";

#[test]
fn a_full_disk_on_one_host_is_told_and_loses_nothing() {
    let hosts = Lab::shared().borrow(2, "");
    let project = project(&hosts).file(
        "site.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: \"{{ ('line ' ~ text ~ '\\n') * 5000 }}\", dest: /srv/large}\n      notify: told\n  \
         handlers:\n    - name: told\n      shell: sha256sum < /srv/large > /srv/sum\n",
    );
    project.controller(["run", "site.yaml", "-e", "text=old"]).ok();
    let before = hosts.root(0, "cat /srv/large /srv/sum | sha256sum").ok().out;
    hosts.lab.lab(["fault", hosts.name(0), "disk-full"]).ok();
    let said = project.controller(["run", "site.yaml", "-e", "text=new"]);
    hosts.lab.lab(["fault", hosts.name(0), "clear"]).ok();
    let said = said.ends(4).says("No space left on device");
    assert_eq!((bad(&said, hosts.name(0)), bad(&said, hosts.name(1))), ((1, 0), (0, 0)), "{}", said.report());
    assert_eq!(
        hosts.root(0, "cat /srv/large /srv/sum | sha256sum").ok().out,
        before,
        "the old file stands there whole"
    );
    assert_eq!(hosts.root(0, LEFT).ok().out, "");
    project.controller(["run", "site.yaml", "-e", "text=new"]).ok();
    let both = |line: &str| (hosts.root(0, line).ok().out, hosts.root(1, line).ok().out);
    let (one, other) = both("cat /srv/large /srv/sum | sha256sum");
    assert_eq!(one, other);
    assert_ne!(one, before);
}

#[test]
fn a_read_only_disk_on_one_host_is_told_and_the_other_goes_on() {
    let hosts = Lab::shared().borrow(2, "");
    let project = project(&hosts).file(
        "site.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: '{{ text }}', dest: /srv/file}\n",
    );
    project.controller(["run", "site.yaml", "-e", "text=old"]).ok();
    hosts.lab.lab(["fault", hosts.name(0), "read-only"]).ok();
    let unchanged = project.controller(["run", "site.yaml", "-e", "text=old"]);
    let said = project.controller(["run", "site.yaml", "-e", "text=new"]);
    hosts.lab.lab(["fault", hosts.name(0), "clear"]).ok();
    unchanged.ok();
    let said = said.ends(4).says("Read-only file system").says("read-only");
    assert_eq!((bad(&said, hosts.name(0)), bad(&said, hosts.name(1))), ((1, 0), (0, 0)), "{}", said.report());
    assert_eq!((hosts.read(0, "/srv/file").as_str(), hosts.read(1, "/srv/file").as_str()), ("old", "new"));
    project.controller(["run", "site.yaml", "-e", "text=new"]).ok();
    assert_eq!(hosts.read(0, "/srv/file"), "new");
}

#[test]
fn what_stands_in_the_way_is_told_and_stays() {
    let hosts = Lab::shared().borrow(1, "");
    let task = |text: &str| format!("- hosts: all\n  become: true\n  tasks:\n    - {text}\n");
    let project = project(&hosts);
    hosts.root(0, "mkdir -p /srv/folder/inside; echo file > /srv/file").ok();
    // All of them, so that one that fails does not hide the others.
    let mut wrong = Vec::new();
    for (text, expected) in [
        ("copy: {content: x, dest: /srv/folder}", "it is a folder"),
        ("file: {path: /srv/file, state: directory}", "/srv/file"),
        ("copy: {content: x, dest: /srv/file/below}", "/srv/file is not a folder"),
        ("copy: {content: x, dest: /srv/nowhere/file}", "/srv/nowhere does not exist"),
        ("lineinfile: {path: /srv/none, line: x}", "/srv/none"),
        ("copy: {content: x, dest: /srv/x, owner: nobody_like_it}", "nobody_like_it"),
        ("copy: {content: x, dest: /srv/x, validate: 'false %s'}", "validation"),
        ("service: {name: none-like-it, state: started}", "none-like-it"),
        ("command: /srv/no-program", "/srv/no-program"),
        ("command: {argv: [sleep, '30'], timeout: 1}", "timeout"),
    ] {
        project.write("site.yaml", &task(text));
        let said = project.controller(["run", "site.yaml"]);
        let told = [expected, "site.yaml:4"].iter().all(|part| said.out.contains(part) || said.err.contains(part));
        if ![3, 4].contains(&said.code) || !told {
            wrong.push(format!("{text}: {expected:?} was expected\n{}", said.report()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(
        hosts.root(0, "find /srv | sort | tr '\\n' ' '; cat /srv/file").ok().out,
        "/srv /srv/file /srv/folder /srv/folder/inside file\n"
    );
}

#[test]
fn a_mirror_that_fails_leaves_the_old_file() {
    let hosts = Lab::shared().borrow(1, "");
    let mirror = hosts.lab.status().mirror;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let path = format!("consul/1.22.2/consul_1.22.2_linux_{architecture}.zip");
    let sums = format!("{mirror}/consul/1.22.2/consul_1.22.2_SHA256SUMS");
    let project = project(&hosts);
    hosts.root(0, "echo old > /srv/consul.zip").ok();
    let run = |url: &str, checksum: &str| {
        project.write(
            "site.yaml",
            &format!("- hosts: all\n  become: true\n  tasks:\n    - download: {{url: '{url}', dest: /srv/consul.zip, checksum: '{checksum}', retries: 1}}\n"),
        );
        project.controller(["run", "site.yaml"])
    };
    let by_list = format!("sha256:{sums}");
    run(&format!("{mirror}/faults/404/{path}"), &by_list).ends(4).says("404").says("site.yaml:4");
    run(&format!("{mirror}/faults/half/{path}"), &by_list).ends(4).says("site.yaml:4");
    run(&format!("{mirror}/{path}"), &format!("sha256:{}", "0".repeat(64)))
        .ends(4)
        .says("checksum")
        .says(&"0".repeat(64));
    run("http://192.0.2.1/x.zip", &format!("sha256:{}", "0".repeat(64))).ends(4).says("192.0.2.1");
    assert_eq!(hosts.read(0, "/srv/consul.zip"), "old\n");
    assert_eq!(hosts.root(0, LEFT).ok().out, "");
    run(&format!("{mirror}/{path}"), &by_list).ok();
    hosts.root(0, "unzip -tq /srv/consul.zip").ok();
}

#[test]
fn an_agent_that_cannot_run_there_is_told_and_leaves_nothing() {
    let hosts = Lab::shared().borrow(2, "");
    let project = project(&hosts)
        .file("site.yaml", "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: x, dest: /srv/file}\n");
    hosts.root(0, "mkdir -p /usr/local/lib/rollcall && mount -t tmpfs -o noexec tmpfs /usr/local/lib/rollcall").ok();
    let said = project.controller(["run", "site.yaml"]).ends(5).says("noexec");
    assert_eq!((bad(&said, hosts.name(0)), bad(&said, hosts.name(1))), ((0, 1), (0, 0)), "{}", said.report());
    assert_eq!(hosts.root(0, "ls -A /usr/local/lib/rollcall; ls /srv").ok().out, "");
    assert_eq!(hosts.read(1, "/srv/file"), "x");
    hosts.root(0, "umount /usr/local/lib/rollcall").ok();
    project.controller(["run", "site.yaml"]).ok();
    assert_eq!(hosts.read(0, "/srv/file"), "x");
}

#[test]
fn the_agent_asks_for_no_newer_c_library_than_the_manual_says() {
    let said = run(Command::new("objdump").arg("-T").arg(program("agent")), LIMIT).ok();
    let version = regex::Regex::new(r"\bGLIBC_2\.(\d+)").expect("a pattern");
    let asked: Vec<u32> =
        version.captures_iter(&said.out).map(|found| found[1].parse().expect("at most a few digits")).collect();
    // Debian 12, Ubuntu 22.04, Amazon Linux 2023, RHEL 9 have it: docs/ssh.md.
    assert!(!asked.is_empty() && asked.iter().all(|minor| *minor <= 34), "glibc 2.{:?}", asked.iter().max());
}

#[test]
fn a_host_killed_in_mid_run_is_told_once_while_the_others_finish() {
    let hosts = Lab::shared().borrow(3, "");
    let project = project(&hosts).file(
        "site.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - shell: touch /srv/began; sleep 3\n      args: {creates: /srv/ended}\n    \
         - copy: {content: x, dest: /srv/ended}\n",
    );
    let run = project.start(["run", "site.yaml"]);
    hosts.root(0, "for i in $(seq 600); do test -e /srv/began && exit 0; sleep 0.1; done; exit 1").ok();
    hosts.lab.lab(["kill", hosts.name(0)]).ok();
    let said = run.wait(LIMIT).ends(5);
    assert_eq!(bad(&said, hosts.name(0)), (0, 1), "{}", said.report());
    assert_eq!((bad(&said, hosts.name(1)), bad(&said, hosts.name(2))), ((0, 0), (0, 0)), "{}", said.report());
    assert_eq!(said.out.matches("UNREACH.").count(), 1, "{}", said.report());
    hosts.lab.lab(["start", hosts.name(0)]).ok();
    project.controller(["run", "site.yaml"]).ok();
    assert_eq!(hosts.read(0, "/srv/ended"), "x");
}

/// The first host's play ends when the other has done something there: as another user, beside its own task.
const BESIDE: &str = r#"
- hosts: all
  gather_facts: false
  vars: {there: "{{ groups['all'][0] }}"}
  tasks:
    - shell: for i in $(seq 300); do test -e /tmp/done && exit 0; sleep 0.1; done; exit 1
      when: inventory_hostname == there
    - command: touch /tmp/done
      delegate_to: "{{ there }}"
      when: inventory_hostname != there
"#;

/// The first host fails, and has something to do for the other that takes long.
const AFTERWARDS: &str = r#"
- hosts: all
  gather_facts: false
  vars: {there: "{{ groups['all'][0] }}"}
  tasks:
    - command: "false"
      when: inventory_hostname == there
    - shell: touch /tmp/begun; sleep 600
      delegate_to: "{{ there }}"
      when: inventory_hostname != there
"#;

#[test]
fn a_call_for_another_host_does_not_wait_for_its_tasks_and_ends_with_it() {
    let hosts = Lab::shared().borrow(2, "");
    let project = project(&hosts).file("beside.yaml", BESIDE).file("afterwards.yaml", AFTERWARDS);
    project.controller(["run", "beside.yaml"]).ok();

    let run = project.start(["run", "afterwards.yaml"]);
    hosts.root(0, "for i in $(seq 600); do test -e /tmp/begun && exit 0; sleep 0.1; done; exit 1").ok();
    hosts.lab.lab(["kill", hosts.name(0)]).ok();
    let said = run.wait(LIMIT);
    assert_ne!(said.code, 0, "{}", said.report());
    said.says(&format!("{} is gone", hosts.name(0)));
}

#[test]
fn a_second_interrupt_ends_the_run_at_once_and_no_file_is_half_written() {
    let hosts = Lab::shared().borrow(1, "");
    let project = project(&hosts).file(
        "site.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: before, dest: /srv/file}\n    - shell: touch /srv/began; sleep 20\n    \
         - copy: {content: after, dest: /srv/file}\n",
    );
    let run = project.start(["run", "site.yaml"]);
    hosts.root(0, "for i in $(seq 600); do test -e /srv/began && exit 0; sleep 0.1; done; exit 1").ok();
    run.signal("INT");
    std::thread::sleep(Duration::from_secs(1));
    let asked = std::time::Instant::now();
    run.signal("INT");
    let said = run.wait(LIMIT).ends(130);
    assert!(asked.elapsed() < Duration::from_secs(8), "the second one does not wait for the task\n{}", said.report());
    assert_eq!(hosts.read(0, "/srv/file"), "before");
    assert_eq!(hosts.root(0, LEFT).ok().out, "");
}

/// Two hosts: the first takes its time before it has what the second asks for.
const BARRIER: &str = r#"
- hosts: all
  gather_facts: false
  vars: {first: "{{ groups['all'][0] }}"}
  tasks:
    - shell: touch /tmp/began; sleep 4; touch /tmp/ended
      when: inventory_hostname == first
    - command: echo from-{{ inventory_hostname }}
      register: word
      throttle: 1
    - command: touch /tmp/got-{{ hostvars[first].word.stdout }}
      throttle: 1
"#;

#[test]
fn an_interrupt_reaches_a_host_that_waits_for_what_another_has() {
    let hosts = Lab::shared().borrow(2, "");
    let project = Project::new(&hosts.lab, hosts.hosts()).file("site.yaml", BARRIER);
    let run = project.start(["run", "site.yaml"]);
    hosts.root(0, "for i in $(seq 300); do test -e /tmp/began && exit 0; sleep 0.1; done; exit 1").ok();
    run.signal("INT");
    run.wait(LIMIT).ends(130);
    hosts.root(0, "test -e /tmp/ended").ok();
    hosts.root(1, "ls /tmp/got-*").ends(2);
    // Nobody is left who waits: the next run goes through, one at a time where that is asked for.
    project.controller(["run", "site.yaml"]).ok();
    for host in 0..2 {
        hosts.root(host, &format!("test -e /tmp/got-from-{}", hosts.name(0))).ok();
    }
}
