//! The controller on real hosts: connecting, running, failing, being interrupted.

use std::time::Duration;

use rollcall_tests::{Lab, Project, Said};

const LIMIT: Duration = Duration::from_mins(2);

/// The counts of a host in the recap.
#[track_caller]
fn recap(said: &Said, host: &str) -> (u32, u32, u32, u32) {
    let pattern =
        regex::Regex::new(&format!(r"(?m)^{host} +: ok=(\d+) +changed=(\d+) +failed=(\d+) +unreachable=(\d+)"))
            .expect("a pattern");
    let found = pattern.captures(&said.out).unwrap_or_else(|| panic!("no recap of {host}\n{}", said.report()));
    let number = |index: usize| found[index].parse().expect("digits");
    (number(1), number(2), number(3), number(4))
}

const PAGE: &str = "\
- name: Page
  hosts: all
  become: true
  tasks:
    - name: Folder
      file: {path: /srv/page, state: directory, mode: '0750'}
    - name: Text
      copy: {content: \"{{ inventory_hostname }} in {{ facts.os.id }}\\n\", dest: /srv/page/index, mode: '0644'}
      notify: told
    - name: Who
      command: id --user --name
      register: who
      changed_when: false
      become: false
    - name: Nobody else
      assert: {that: [\"who.stdout == 'admin'\"]}
  handlers:
    - name: told
      shell: echo told >> /srv/page/handler
";

#[test]
fn exec_shows_what_each_host_says_and_ends_by_kind() {
    let hosts = Lab::shared().borrow(2, "");
    let project = Project::new(&hosts.lab, hosts.hosts());
    let said = project.controller(["exec", "all", "--", "hostname"]).ok();
    for host in hosts.hosts() {
        assert!(said.out.contains(&format!("ip-{}", host.address.replace('.', "-"))), "{}", said.report());
    }
    project.controller(["exec", "all", "-b", "--", "id", "--user"]).ok().never_says("1000");
    project
        .controller(["exec", hosts.name(0), "--", "printf", "%s|", "a b", "$HOME", "{{ x }}", "ü"])
        .ok()
        .says("a b|$HOME|{{ x }}|ü|");
    project.controller(["exec", "all", "--", "false"]).ends(4);
    project.controller(["exec", "all", "--", "no-such-program"]).ends(4).says("no-such-program");
    project.controller(["exec", "nobody", "--", "true"]).ends(3).says("nobody");
}

#[test]
fn facts_are_those_of_the_host() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts());
    let facts = project.controller(["facts", hosts.name(0)]).ok().json();
    assert_eq!(facts["os"]["id"], "debian");
    assert_eq!(facts["os"]["version_major"], "12");
    assert!(facts.to_string().contains(&hosts.host(0).id), "the instance id is a fact: {facts:#}");
}

#[test]
fn a_run_does_what_the_plan_says_and_a_second_one_nothing() {
    let hosts = Lab::shared().borrow(2, "");
    let project = Project::new(&hosts.lab, hosts.hosts()).file("page.yaml", PAGE);
    let plan = project.controller(["plan", "page.yaml"]).ok().says("/srv/page/index").says("+folder");
    hosts.root(0, "test ! -e /srv/page").ok();
    let first = project.controller(["run", "page.yaml"]).ok().never_says("+folder");
    for host in hosts.hosts() {
        let (planned, done) = (recap(&plan, &host.name), recap(&first, &host.name));
        assert_eq!(done.1, 3, "folder, text and handler\n{}", first.report());
        assert!(planned.1 >= 2, "{}", plan.report());
    }
    assert_eq!(hosts.read(0, "/srv/page/index"), format!("{} in debian\n", hosts.name(0)));
    assert_eq!(hosts.root(0, "stat --format '%a %U' /srv/page /srv/page/index").ok().text(), "750 root\n644 root");
    let second = project.controller(["run", "page.yaml"]).ok();
    for host in hosts.hosts() {
        assert_eq!(recap(&second, &host.name).1, 0, "{}", second.report());
    }
    assert_eq!(hosts.read(1, "/srv/page/handler"), "told\n");
    // A diff, once the text is another one.
    let project = project.file("page.yaml", &PAGE.replace("in {{", "on {{"));
    project
        .controller(["run", "page.yaml", "--check", "--diff", "--limit", hosts.name(0)])
        .ok()
        .says(&format!("-{} in debian", hosts.name(0)))
        .says(&format!("+{} on debian", hosts.name(0)));
    assert_eq!(hosts.read(0, "/srv/page/index"), format!("{} in debian\n", hosts.name(0)));
}

#[test]
fn a_host_that_is_off_is_told_once_and_holds_nobody_up() {
    let hosts = Lab::shared().borrow(2, "");
    let project = Project::new(&hosts.lab, hosts.hosts()).file("page.yaml", PAGE);
    hosts.lab.lab(["kill", hosts.name(1)]).ok();
    let said = project.controller(["run", "page.yaml", "-T", "3"]).ends(5);
    assert_eq!(recap(&said, hosts.name(0)).1, 3, "{}", said.report());
    assert_eq!(recap(&said, hosts.name(1)).3, 1, "{}", said.report());
    assert_eq!(
        said.out.matches("did not answer").count() + said.err.matches("did not answer").count(),
        1,
        "{}",
        said.report()
    );
}

#[test]
fn a_failed_task_ends_its_host_only() {
    let hosts = Lab::shared().borrow(2, "");
    let text = format!(
        "- hosts: all\n  tasks:\n    - name: Fails on one\n      command: test {{{{ inventory_hostname }}}} = {}\n      \
         changed_when: false\n    - name: After\n      copy: {{content: x, dest: /home/admin/after}}\n",
        hosts.name(0)
    );
    let project = Project::new(&hosts.lab, hosts.hosts()).file("site.yaml", &text);
    let said = project.controller(["run", "site.yaml"]).ends(4).says("site.yaml:3");
    assert_eq!(recap(&said, hosts.name(1)).2, 1, "{}", said.report());
    hosts.root(0, "test -e /home/admin/after").ok();
    hosts.root(1, "test ! -e /home/admin/after").ok();
}

#[test]
fn json_lines_are_versioned_and_tell_the_same() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts()).file("page.yaml", PAGE);
    let said = project.controller(["run", "page.yaml", "--json"]).ok();
    let events: Vec<serde_json::Value> = said
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert_eq!(events[0]["event"], "run_start");
    assert_eq!(events[0]["version"], 1);
    assert!(events.iter().any(|event| event["event"] == "host_ready" && event["pushed"] == true), "{}", said.report());
}

#[test]
fn the_agent_is_pushed_once_and_belongs_to_root() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts());
    project.controller(["exec", "all", "--", "true"]).ok();
    let look = "stat --format '%n %U %a %Y' /usr/local/lib/rollcall/agent-*";
    let before = hosts.root(0, look).ok().out;
    assert!(before.contains(" root 755 "), "{before}");
    project.controller(["exec", "all", "--", "true"]).ok();
    assert_eq!(hosts.root(0, look).ok().out, before);
    // One that root of that host has damaged is told, with the way out.
    hosts
        .root(0, "for f in /usr/local/lib/rollcall/agent-*; do printf '#!/bin/sh\\necho damaged\\n' > \"$f\"; done")
        .ok();
    let told = project.controller(["exec", "all", "--", "true"]).ends(5);
    told.says("not a message of this protocol").says("/usr/local/lib/rollcall").says("remove it");
    hosts.root(0, "rm -r /usr/local/lib/rollcall").ok();
    project.controller(["exec", "all", "--", "true"]).ok();
}

#[test]
fn a_jump_host_leads_to_the_others() {
    let hosts = Lab::shared().borrow(1, "");
    let jump = hosts.lab.host("jump").address;
    let project = Project::new(&hosts.lab, hosts.hosts())
        .file("group_vars/all.yaml", &format!("ansible_ssh_common_args: -o ProxyJump=admin@{jump}\n"));
    let said = project.controller(["exec", "all", "-vvv", "--", "true"]).ok();
    for host in [&jump, &hosts.host(0).address] {
        let told = said.err.lines().find(|line| line.contains(&format!("{host}: negotiated kex "))).unwrap_or_default();
        assert!(told.contains("host key ") && told.contains("cipher "), "{host}: {}", said.report());
    }
    // The host's own log tells who came.
    let log = hosts.root(0, "journalctl --unit ssh --no-pager | grep 'Accepted publickey for admin'").ok().out;
    assert!(!log.is_empty() && log.lines().all(|line| line.contains(&format!(" from {jump} "))), "{log}");
}

#[test]
fn an_unknown_host_key_is_refused_with_its_fingerprint_and_accepted_when_asked() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts());
    let key = hosts.lab.status().keys.values().next().expect("a key").clone();
    let project = project
        .file("rollcall.yaml", &format!("inventory: [inventory.yaml]\nssh: {{user: admin, identity_file: [{key}]}}\n"));
    project.controller(["exec", "all", "--", "true"]).ends(5).says("SHA256:");
    project.controller(["exec", "all", "--accept-new", "--", "true"]).ok();
    // Now it is known.
    project.controller(["exec", "all", "--", "true"]).ok();
    // Another key under the same address is somebody else, whatever is asked.
    hosts.root(0, "rm /etc/ssh/ssh_host_*; ssh-keygen -A > /dev/null; systemctl restart ssh").ok();
    project.controller(["exec", "all", "--accept-new", "--", "true"]).ends(5).says("changed");
    hosts.lab.lab(["reset", hosts.name(0)]).ok();
}

#[test]
fn a_wrong_key_is_told_with_what_was_offered() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts());
    project.shell("ssh-keygen -q -t ed25519 -N '' -f other").ok();
    let known = hosts.lab.status().known_hosts;
    let project = project.file(
        "rollcall.yaml",
        &format!("inventory: [inventory.yaml]\nssh: {{user: admin, identity_file: [other], known_hosts: [{known}]}}\n"),
    );
    project.controller(["exec", "all", "--", "true"]).ends(5).says("other").says("admin");
}

#[test]
fn without_sudo_nothing_is_changed_and_the_reason_is_told() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts()).file("page.yaml", PAGE);
    hosts.root(0, "rm -f /etc/sudoers.d/*; usermod --groups '' admin").ok();
    let said = project.controller(["run", "page.yaml"]);
    assert_ne!(said.code, 0, "{}", said.report());
    said.says("sudo");
    hosts.root(0, "test ! -e /srv/page").ok();
}

#[test]
fn sudo_with_a_password_takes_it_from_stdin_and_never_shows_it() {
    let hosts = Lab::shared().borrow(1, "");
    let password = "correct horse 'battery'";
    hosts
        .root(
            0,
            &format!(
                "rm -f /etc/sudoers.d/*; echo 'admin ALL=(ALL) ALL' > /etc/sudoers.d/admin; chmod 440 /etc/sudoers.d/admin; \
                 echo \"admin:{password}\" | chpasswd"
            ),
        )
        .ok();
    let project = Project::new(&hosts.lab, hosts.hosts())
        .file("page.yaml", PAGE)
        .file("group_vars/all.yaml", &format!("ansible_become_password: {}\n", serde_json::json!(password)));
    project.controller(["run", "page.yaml", "-vvv"]).ok().never_says("correct horse");

    // Asked at a terminal: without one, wrong, right.
    project.write("group_vars/all.yaml", "");
    project.controller(["run", "page.yaml", "-K"]).ends(3).says("-K needs a terminal").says("ansible_become_password");
    at_a_terminal(&project, "run page.yaml -K -vvv", "correct donkey")
        .ends(5)
        .says("sudo refuses the password")
        .never_says("donkey");
    let again = at_a_terminal(&project, "run page.yaml -K -vvv", password).ok();
    again.says("ok=4   changed=0").never_says("correct horse");
    assert_eq!(hosts.root(0, "journalctl --no-pager | grep --count 'correct horse' || true").text(), "0");
}

/// The controller at a terminal of its own, where somebody types an answer as soon as a password is asked for. What it says
/// comes as the terminal shows it.
fn at_a_terminal(project: &Project, words: &str, answer: &str) -> Said {
    let controller = rollcall_tests::program("controller");
    project.write("answer", &format!("{answer}\n"));
    project.shell(&format!(
        "rm -f typed; mkfifo typed; : > shown; exec 3<> typed\n\
         script --quiet --flush --return --command '{} {words}' shown < typed > /dev/null &\n\
         until grep --quiet 'password: ' shown; do sleep 0.1; kill -0 $! || break; done\n\
         cat answer >&3; wait $!; code=$?; tr -d '\\r' < shown; exit $code",
        controller.display()
    ))
}

#[test]
fn one_interrupt_finishes_the_tasks_in_flight_and_recaps() {
    let hosts = Lab::shared().borrow(1, "");
    let text = "- hosts: all\n  tasks:\n    - name: Long\n      shell: cd /home/admin; touch began; sleep 4; touch ended\n    - name: Next\n      command: touch /home/admin/next\n";
    let project = Project::new(&hosts.lab, hosts.hosts()).file("site.yaml", text);
    let run = project.start(["run", "site.yaml"]);
    let began = "for i in $(seq 300); do test -e /home/admin/began && exit 0; sleep 0.1; done; exit 1";
    hosts.root(0, began).ok();
    run.signal("INT");
    let said = run.wait(LIMIT).ends(130);
    assert!(said.out.contains("RECAP"), "{}", said.report());
    hosts.root(0, "test -e /home/admin/ended && test ! -e /home/admin/next").ok();
    // Nothing holds the host: the next run does all of it.
    project.controller(["run", "site.yaml"]).ok();
    hosts.root(0, "test -e /home/admin/next").ok();
}

#[test]
fn two_runs_on_one_host_do_not_mix() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts())
        .file("site.yaml", "- hosts: all\n  become: true\n  tasks:\n    - shell: touch /tmp/began; sleep 5\n");
    let first = project.start(["run", "site.yaml"]);
    hosts.root(0, "for i in $(seq 300); do test -e /tmp/began && exit 0; sleep 0.1; done; exit 1").ok();
    project.controller(["run", "site.yaml"]).ends(7);
    first.wait(LIMIT).ok();
}

#[test]
fn a_run_whose_controller_was_killed_is_repaired_by_the_next() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts()).file(
        "site.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: a, dest: /srv/config}\n      notify: restart\n    \
         - shell: touch /tmp/began; sleep 3\n      changed_when: false\n  handlers:\n    - name: restart\n      shell: touch /srv/restarted\n",
    );
    let run = project.start(["run", "site.yaml"]);
    hosts.root(0, "for i in $(seq 300); do test -e /tmp/began && exit 0; sleep 0.1; done; exit 1").ok();
    run.signal("KILL");
    run.wait(LIMIT);
    // The agent notices by itself; what is left to it is at most its task in flight.
    hosts
        .root(
            0,
            "for i in $(seq 100); do pgrep --full '[r]ollcall/agent-' > /dev/null || exit 0; sleep 0.1; done; exit 1",
        )
        .ok();
    hosts.root(0, "test -e /srv/config && test ! -e /srv/restarted").ok();
    // The file is as it should be by now, so nothing would notify the handler: it is owed.
    project.controller(["run", "site.yaml"]).ok();
    hosts.root(0, "test -e /srv/restarted").ok();
}

#[test]
fn an_agent_that_was_killed_is_told_and_the_next_run_repairs() {
    let hosts = Lab::shared().borrow(1, "");
    let project = Project::new(&hosts.lab, hosts.hosts())
        .file("site.yaml", "- hosts: all\n  become: true\n  tasks:\n    - shell: touch /tmp/began; sleep 3\n    - copy: {content: a, dest: /srv/config}\n");
    let run = project.start(["run", "site.yaml"]);
    hosts.root(0, "for i in $(seq 300); do test -e /tmp/began && exit 0; sleep 0.1; done; exit 1").ok();
    hosts.root(0, "pkill --signal KILL '^agent-'").ok();
    let said = run.wait(LIMIT);
    assert!([4, 5].contains(&said.code), "{}", said.report());
    project.controller(["run", "site.yaml"]).ok();
    assert_eq!(hosts.read(0, "/srv/config"), "a");
}

#[test]
fn a_role_is_taken_on_and_a_cache_tells_its_age() {
    let lab = Lab::shared();
    let file =
        "plugin: amazon.aws.aws_ec2\nregions: [us-west-2]\nfilters: {'tag:Role': jump}\nhostnames: ['tag:Name']\n";
    let role = |account: &str| format!("{file}assume_role_arn: arn:aws:iam::{account}:role/reader\n");
    let project = Project::new(&lab, [])
        .file("own.aws_ec2.yaml", &role("123456789012"))
        .file("other.aws_ec2.yaml", &role("210987654321"))
        .file("kept.aws_ec2.yaml", &format!("{file}cache: true\n"));
    let list = |source: &str, more: &[&str]| {
        project.controller(["inventory", "--list", "-i", source].iter().chain(more).copied())
    };
    // With a role of another account, one sees that account's instances: none.
    assert!(list("own.aws_ec2.yaml", &[]).ok().json()["_meta"]["hostvars"]["jump"].is_object());
    list("other.aws_ec2.yaml", &[]).ends(3).says("the inventory has no hosts");

    list("kept.aws_ec2.yaml", &[]).ok().never_says("answered from the cache");
    let kept = list("kept.aws_ec2.yaml", &[]).ok();
    assert!(
        kept.err.contains("kept.aws_ec2.yaml is answered from the cache (") && kept.err.contains(" old)"),
        "{}",
        kept.report()
    );
    assert!(kept.json()["_meta"]["hostvars"]["jump"].is_object());
    list("kept.aws_ec2.yaml", &["--refresh-cache"]).ok().never_says("answered from the cache");
}
