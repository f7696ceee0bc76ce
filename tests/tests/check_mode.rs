//! What a plan says on fresh hosts is what the run then does.

use std::collections::BTreeMap;

use rollcall_tests::{Borrowed, Lab, Project, Said};
use serde_json::Value;

/// A role's worth of tasks of many kinds, some of which depend on what earlier ones make.
const SITE: &str = r#"
- name: Rich
  hosts: all
  become: true
  vars:
    ports: {web: 80, api: 8080}
  pre_tasks:
    - name: Group
      group: {name: rich}
    - name: User in the group that is made before
      user: {name: rich, group: rich, home: /srv/rich, create_home: true}
  tasks:
    - name: Folders below each other
      file: {path: "/srv/rich/{{ item }}", state: directory, owner: rich, group: rich, mode: "0750"}
      loop: [etc, etc/conf.d, data]
    - name: File of the new user in the new folder
      copy: {content: "{{ inventory_hostname }}\n", dest: /srv/rich/etc/name, owner: rich, group: rich, mode: "0640"}
      notify: told
    - name: Template
      template: {src: ports.j2, dest: /srv/rich/etc/conf.d/ports, mode: "0644"}
      notify: restart
    - name: File that is only begun
      copy: {content: "begin\n", dest: /srv/rich/etc/begun, force: false}
    - name: Line in a file that is made before
      lineinfile: {path: /srv/rich/etc/begun, line: more}
    - name: Line in a file that is there
      lineinfile: {path: /etc/hosts, line: "192.0.2.9 rich.example"}
    - name: Link to a file that is made before
      file: {src: /srv/rich/etc/name, path: /srv/rich/link, state: link}
    - name: Seen
      stat: {path: /srv/rich/etc/name}
      register: seen
    - name: Only where it is seen
      copy: {content: seen, dest: /srv/rich/seen}
      when: seen.stat.exists
    - name: Never
      copy: {content: x, dest: /srv/rich/never}
      when: facts.os.id == 'plan9'
    - name: Archive
      unarchive: {src: pack.tar.gz, dest: /srv/rich/data}
    - name: Unit
      systemd_unit:
        name: rich.service
        sections:
          Service: {ExecStart: /bin/sleep infinity}
          Install: {WantedBy: multi-user.target}
        enabled: true
      notify: restart
    - name: Runs
      service: {name: rich, state: started}
    - name: Looks only
      command: cat /etc/hostname
      register: name_of_host
      changed_when: false
      check_mode: false
    - name: With what was looked at
      copy: {content: "{{ name_of_host.stdout }}\n", dest: /srv/rich/hostname}
    - name: A command
      command: touch /srv/rich/made
      args: {creates: /srv/rich/made}
    - name: Same again
      file: {path: /srv/rich/etc, state: directory}
    - name: Removed before it is made again
      file: {path: /srv/rich/link, state: absent}
  handlers:
    - name: told
      copy: {content: told, dest: /srv/rich/told}
    - name: restart
      service: {name: rich, state: restarted}
"#;

/// Status of every task on every host, by name: `changed`, `ok`, `may_change`, …
fn statuses(said: &Said) -> BTreeMap<(String, String), Vec<String>> {
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for line in said.out.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if event["event"] == "task" {
            let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text in {line}")).to_owned();
            let result = &event["result"];
            found.entry((text(&event["host"]), text(&result["name"]))).or_default().push(text(&result["status"]));
        }
    }
    assert!(!found.is_empty(), "no task was told\n{}", said.report());
    found
}

fn look(hosts: &Borrowed) -> String {
    let line = "find / -xdev \\( -path /var/log -o -path /var/lib/systemd -o -path /tmp -o -path /var/tmp -o -path /usr/local/lib/rollcall \
                -o -path /var/lib/sudo -o -path /var/lib/chrony \\) -prune -o -printf '%p %s %m\\n' | sort; cat /etc/hosts /etc/passwd; systemctl is-active rich";
    (0..hosts.hosts().count()).map(|index| hosts.root(index, line).out).collect()
}

#[test]
fn a_plan_on_fresh_hosts_says_what_the_run_then_does() {
    let hosts = Lab::shared().borrow(2, "");
    let project = Project::new(&hosts.lab, hosts.hosts())
        .file("site.yaml", SITE)
        .file("templates/ports.j2", "{% for name, port in ports.items() %}{{ name }} {{ port }}\n{% endfor %}");
    project.shell("mkdir files pack; seq 9 > pack/a; tar --sort=name --mtime=@0 -czf files/pack.tar.gz -C pack .").ok();
    project.controller(["exec", "all", "--", "true"]).ok();
    let before = look(&hosts);
    let plan = project.controller(["plan", "site.yaml", "--json"]).ok();
    assert_eq!(look(&hosts), before, "a plan changes nothing\n{}", plan.report());
    let planned = statuses(&plan);
    let done = statuses(&project.controller(["run", "site.yaml", "--json"]).ok());
    let mut wrong = Vec::new();
    for key in planned.keys().chain(done.keys()) {
        let (plan, run) = (planned.get(key), done.get(key));
        // `may_change` is the plan's word for what only the run can know; it is right only for what runs a program.
        let unsure = plan.is_some_and(|p| p.iter().any(|status| status == "may_change")) && key.1 == "A command";
        if plan != run && !unsure {
            wrong.push(format!("{key:?}: plan {plan:?}, run {run:?}"));
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), plan.report());
    // All has been done: another plan says so, and so does another run, but for what removes and makes in turn.
    let project = project.file("again.yaml", &SITE.replace("state: absent", "state: link, src: /srv/rich/etc/name"));
    project.controller(["run", "again.yaml"]).ok();
    for verb in ["plan", "run"] {
        let said = project.controller([verb, "again.yaml", "--json"]).ok();
        let changed: Vec<_> =
            statuses(&said).into_iter().filter(|(_, all)| all.iter().any(|s| s != "ok" && s != "skipped")).collect();
        assert!(changed.is_empty(), "{verb}: {changed:?}");
    }
}

#[test]
fn what_a_plan_cannot_know_may_change_and_never_fails() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts()).file(
        "site.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - name: Made\n      shell: echo 7 > /srv/number\n      args: {creates: /srv/number}\n    \
         - name: Read\n      command: cat /srv/number\n      register: number\n      changed_when: false\n    \
         - name: Depends\n      copy: {content: '{{ number.stdout }}', dest: /srv/copy}\n      when: number.stdout == '7'\n    \
         - name: Loops\n      debug: {msg: '{{ item }}'}\n      loop: '{{ number.stdout_lines }}'\n    \
         - name: Fails\n      assert: {that: [number.rc == 0]}\n",
    );
    let plan = project.controller(["plan", "site.yaml", "--json"]).ok();
    let planned = statuses(&plan);
    let status = |name: &str| planned[&(hosts.name(0).to_owned(), name.to_owned())][0].clone();
    assert_eq!(status("Made"), "may_change", "{}", plan.report());
    assert_eq!(status("Depends"), "may_change", "{}", plan.report());
    for name in ["Read", "Loops", "Fails"] {
        assert_ne!(status(name), "failed", "{name}\n{}", plan.report());
        assert_ne!(status(name), "skipped", "{name}\n{}", plan.report());
    }
    hosts.root(0, "test ! -e /srv/number && test ! -e /srv/copy").ok();
    project.controller(["run", "site.yaml"]).ok();
    assert_eq!(hosts.read(0, "/srv/copy"), "7");
}
