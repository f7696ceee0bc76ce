//! Modules, and role base, that only a real Debian host can judge: apt and its sources, the host's name, ports, limits, the journal.

use std::time::Duration;

use rollcall_tests::{Borrowed, Lab, Project, until};

const LIMIT: Duration = Duration::from_mins(3);

fn project(hosts: &Borrowed, play: &str) -> Project {
    Project::new(&hosts.lab, hosts.hosts()).file("site.yaml", play)
}

/// Runs it twice: what the first run changes, the second leaves alone.
#[track_caller]
fn settles(project: &Project, more: &[&str]) {
    let words = [&["run", "site.yaml", "--json"], more].concat();
    let first = project.start(words.iter().copied()).wait(LIMIT).ok();
    assert!(first.counted("changed") > 0, "{}", first.report());
    let second = project.start(words.iter().copied()).wait(LIMIT).ok();
    assert_eq!(second.counted("changed"), 0, "{}", second.report());
}

#[test]
fn packages_are_pinned_upgraded_and_removed_from_a_source_of_ours() {
    let hosts = Lab::shared().borrow(1, "");
    // The lab's own source under another name: the one that the image has goes.
    let line = hosts.root(0, "cat /etc/apt/sources.list.d/rollcall-lab.list").ok().out;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, key, address, suite, component] = words[..] else { panic!("no source: {line}") };
    let key = key.trim_start_matches("[signed-by=").trim_end_matches(']');
    hosts.root(0, "rm /etc/apt/sources.list.d/rollcall-lab.list; rm -rf /var/lib/apt/lists/*").ok();
    let play = format!(
        r#"
- hosts: all
  become: true
  tasks:
    - repository: {{name: ours, uris: "{address}", suites: {suite}, components: {component}, signed_by: {key}}}
    - package: {{name: "{{{{ wanted }}}}", state: "{{{{ state | default('present') }}}}", purge: true, allow_downgrade: true}}
"#
    );
    let project = project(&hosts, &play);
    let version = |expected: &str| {
        let said = hosts.root(0, "dpkg-query --show --showformat '${Version}' rollcall-probe 2> /dev/null || true");
        assert_eq!(said.text(), expected, "{}", said.report());
    };
    settles(&project, &["-e", "wanted=rollcall-probe=1.0"]);
    version("1.0");
    settles(&project, &["-e", "wanted=rollcall-probe", "-e", "state=latest"]);
    version("1.1");
    settles(&project, &["-e", "wanted=rollcall-probe=1.0"]);
    version("1.0");
    settles(&project, &["-e", "wanted=rollcall-probe", "-e", "state=absent"]);
    version("");
    hosts.root(0, "test ! -e /etc/rollcall-probe.conf").ok();
    let nothing = project.controller(["run", "site.yaml", "-e", "wanted=rollcall-prob"]).ends(4);
    nothing.says("rollcall-prob");
    // A source that cannot be read is put back.
    project.write(
        "broken.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - repository: {name: gone, uris: \"http://127.0.0.1:9/\", suites: none, components: main}\n",
    );
    project.controller(["run", "broken.yaml"]).ends(4);
    hosts.root(0, "test ! -e /etc/apt/sources.list.d/gone.sources && apt-get update").ok();
}

#[test]
fn names_and_ports_are_those_of_the_host() {
    let hosts = Lab::shared().borrow(1, "");
    let play = r#"
- hosts: all
  become: true
  tasks:
    - hostname: {name: "{{ name }}"}
    - wait_for: {port: 22, search_regex: "^SSH-([0-9.]+)"}
      register: ssh
    - assert: {that: "ssh.match_groups == ['2.0']"}
    - wait_for: {port: 9, state: stopped, timeout: 5}
    - command: systemd-run --quiet sh -c "sleep 2; echo it is ready > /run/late"
      changed_when: false
    - wait_for: {path: /run/late, search_regex: ready, timeout: 30}
    - file: {path: /run/late, state: absent}
      changed_when: false
"#;
    let project = project(&hosts, play);
    settles(&project, &["-e", "name=renamed-1"]);
    assert_eq!(hosts.root(0, "cat /etc/hostname; hostname").ok().text(), "renamed-1\nrenamed-1");
    project.write("late.yaml", "- hosts: all\n  tasks:\n    - wait_for: {port: 9, timeout: 2, msg: nobody came}\n");
    project.controller(["run", "late.yaml"]).ends(4).says("nobody came");
    project.controller(["run", "site.yaml", "-e", "name=wrong_name"]).ends(4).says("wrong_name");
}

#[test]
fn role_base_prepares_a_host_and_takes_back_what_is_no_longer_asked_for() {
    let hosts = Lab::shared().borrow(1, "");
    let project = project(&hosts, "- hosts: all\n  become: true\n  roles: [base]\n");
    let vars = "base_time_sync: timesyncd\nbase_sysctl_extra: {net.ipv4.tcp_fin_timeout: 33}\nbase_journal_max_use: 77M\n\
                base_limits: [{domain: admin, type: '-', item: nofile, value: 4242}]\n";
    project.write("group_vars/all.yaml", vars);
    let missing = project.controller(["run", "site.yaml"]).ends(4);
    missing.says("systemd-timesyncd");
    project.write("group_vars/all.yaml", &vars.replace("timesyncd", "auto"));
    settles(&project, &[]);
    assert_eq!(hosts.root(0, "cat /proc/sys/net/ipv4/tcp_fin_timeout").ok().text(), "33");
    assert_eq!(hosts.root(0, "su --login admin --command 'ulimit -n'").ok().text(), "4242");
    // What journald itself takes its settings for, after the restart by the handler.
    hosts.root(0, "systemd-analyze cat-config systemd/journald.conf | grep --quiet '^SystemMaxUse=77M'").ok();
    let started = hosts.root(0, "systemctl show --property ActiveEnterTimestampMonotonic systemd-journald").ok().out;
    settles(&project, &["-e", "base_journal_max_use=78M"]);
    let again = hosts.root(0, "systemctl show --property ActiveEnterTimestampMonotonic systemd-journald").ok().out;
    assert_ne!(started, again, "journald reads its settings when it starts");
    hosts.root(0, "logger --tag probe 'after the restart'").ok();
    let kept = "journalctl --identifier probe | grep --quiet after";
    until(Duration::from_secs(20), "a line in the journal", || hosts.root(0, kept).code == 0);

    let logs = "[{paths: [/var/log/probe.log], rotate: 3}]";
    project.controller(["run", "site.yaml", "-e", "base_sysctl=3"]).ends(3).says("are mappings");
    project.write("group_vars/all.yaml", &format!("base_limits: []\nbase_logrotate: {logs}\n"));
    if hosts.root(0, "test -d /etc/logrotate.d").code == 0 {
        settles(&project, &[]);
        hosts.root(0, "cat /etc/logrotate.d/rollcall").ok().says("/var/log/probe.log {").says("rotate 3");
    } else {
        project.controller(["run", "site.yaml"]).ends(4).says("logrotate is not installed");
    }
    hosts.root(0, "test ! -e /etc/security/limits.d/60-rollcall.conf").ok();
}

/// systemd starts this unit three times in ten minutes, and no more by itself. A new configuration that crashes spends all of them.
#[test]
fn a_limit_of_starts_keeps_no_service_down() {
    let hosts = Lab::shared().borrow(1, "");
    let play = r#"
- hosts: all
  become: true
  tasks:
    - systemd_unit:
        name: crashing.service
        sections:
          Unit: {StartLimitBurst: 3, StartLimitIntervalSec: 600}
          Service: {ExecStart: "/bin/sh -c 'grep good /srv/crashing && exec sleep infinity'", Restart: on-failure, RestartSec: 50ms}
    - copy: {content: "{{ setting }}", dest: /srv/crashing, mode: "0644"}
      notify: restart
  handlers:
    - name: restart
      service: {name: crashing, state: restarted}
"#;
    let project = project(&hosts, play);
    let run = |setting: &str| project.controller(["run", "site.yaml", "-e", &format!("setting={setting}")]);
    for setting in ["good1", "good2", "good3", "good4", "good5"] {
        run(setting).ok();
    }
    run("bad").ends(4).says("crashing.service did not stay up").says("restored");
    assert_eq!(hosts.root(0, "systemctl is-active crashing; cat /srv/crashing").ok().text(), "active\ngood5");
}
