//! Secrets on real hosts: hosts get what the ownership table grants them, all get one value, nothing is made by who only
//! looks, and a value that is known is found nowhere but where a task put it.

use std::time::{Duration, Instant};

use rollcall_tests::{Borrowed, Host, Lab, Project, Said, encode, until};
use serde_json::Value;

/// Two servers of Consul and a client, as far as the ownership table knows: nothing is installed.
struct Ground {
    hosts: Borrowed,
    project: Project,
}

/// The last of the hosts.
const CLIENT: usize = 2;

/// What every host has of the cluster's, and what it has of its own.
const SITE: &str = r##"
- name: Secrets
  hosts: all
  become: true
  vars:
    own: "{{ secret('consul/token/agent/' ~ inventory_hostname) }}"
  tasks:
    - name: The cluster's
      template: {src: gossip.j2, dest: /etc/gossip, mode: "0644"}
    - name: The node's own
      copy: {content: "{{ own }}\n", dest: /etc/own, owner: nobody, mode: "0600"}
    - name: In a line
      lineinfile: {path: /etc/hosts, line: "# {{ secret('consul/gossip') }}", insertafter: EOF}
    - name: As another user
      copy: {content: "{{ own }}", dest: /tmp/own-of-nobody, mode: "0600"}
      become_user: nobody
"##;

impl Ground {
    fn new() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(CLIENT + 1, "");
        let inventory = hosts.inventory(&[("consul_servers", CLIENT), ("consul_clients", 1)]);
        let project = Project::new(&lab, hosts.hosts())
            .file("inventory.yaml", &inventory)
            .file("templates/gossip.j2", "[{{ secret('consul/gossip') }}]\nplain\n");
        project.add_settings("cluster: kraken\n");
        Self { hosts, project }
    }

    fn run<'a>(&self, site: &str, more: impl IntoIterator<Item = &'a str>) -> Said {
        self.project.write("site.yaml", site);
        self.project.controller(["run", "site.yaml"].into_iter().chain(more))
    }

    /// The store's file, if there is one: its name and the hash of what it holds.
    fn store(&self) -> String {
        self.project.shell("find ~ -name '*.age' -exec sha256sum {} +").out
    }

    #[track_caller]
    fn gossip(&self, host: usize) -> String {
        let text = self.hosts.read(host, "/etc/gossip");
        let value = text.strip_prefix('[').and_then(|text| text.strip_suffix("]\nplain\n"));
        value.unwrap_or_else(|| panic!("'{text}' is not what the template makes")).to_owned()
    }
}

#[test]
fn all_hosts_get_one_value_and_a_check_makes_none() {
    let ground = Ground::new();
    let checked = ground.run(SITE, ["--check", "--diff", "--json"]).ok();
    assert_eq!((checked.counted("may_change"), checked.counted("failed")), (12, 0), "{}", checked.report());
    assert_eq!(ground.store(), "", "a check makes no store");

    let first = ground.run(SITE, ["--diff"]).ok().says("content hidden (1 lines changed)");
    let gossip = ground.gossip(0);
    assert_eq!(gossip.len(), 44, "32 bytes in base64");
    let mut own = Vec::new();
    for host in 0..=CLIENT {
        assert_eq!(ground.gossip(host), gossip);
        assert!(ground.hosts.read(host, "/etc/hosts").ends_with(&format!("# {gossip}\n")));
        own.push(ground.hosts.read(host, "/etc/own"));
        assert_eq!(ground.hosts.root(host, "stat --format %U:%a /tmp/own-of-nobody").ok().text(), "nobody:600");
    }
    let mut different = own.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), CLIENT + 1, "every node has its own token");
    for value in own.iter().map(|own| own.trim()).chain([gossip.as_str()]) {
        assert!(!first.out.contains(value) && !first.err.contains(value), "it is told\n{}", first.report());
    }
    let store = ground.store();
    let second = ground.run(SITE, ["--json"]).ok();
    assert_eq!(second.counted("changed"), 0, "{}", second.report());
    // Who checks reads what is there.
    let checked = ground.run(SITE, ["--json", "--check"]).ok();
    assert_eq!((checked.counted("changed"), checked.counted("may_change")), (0, 0), "{}", checked.report());
    assert_eq!(ground.store(), store, "and nothing is written again");
}

#[test]
fn a_run_without_secrets_needs_no_store() {
    let ground = Ground::new();
    // Without its name a cluster can have no store.
    let settings = ground.project.settings();
    ground.project.write("rollcall.yaml", &settings.replace("cluster: kraken\n", ""));
    ground.run("- {hosts: all, tasks: [{command: 'true'}]}\n", []).ok();
    assert_eq!(ground.store(), "");
    let said = ground.run(SITE, []).ends(3);
    said.says("each cluster has its own secrets").says("cluster: NAME").says("nothing was changed");
}

#[test]
fn what_a_host_may_not_read_is_refused_before_anything_is_changed() {
    let ground = Ground::new();
    let site = |asks: &str| {
        format!(
            "- hosts: all\n  become: true\n  tasks:\n    - {{command: touch /etc/was-changed}}\n    - name: Ask\n      copy:\n        content: \"{{{{ {asks} }}}}\"\n        dest: /etc/x\n"
        )
    };
    let client = ground.hosts.name(CLIENT).to_owned();
    let other = format!("secret('consul/token/agent/{}')", ground.hosts.name(0));
    for (asks, told) in [
        ("secret('consul/management')", "it is read by consul_servers"),
        (other.as_str(), "the node itself (consul_servers, consul_clients); consul_servers"),
        ("secret('ca/key')", "it is read by no host"),
        ("secret('consul/gosip')", "did you mean 'consul/gossip'?"),
        ("secret('app/db')", "`grants: {app/db: [consul_"),
        ("secret('No Name')", "is no name of a secret"),
    ] {
        let said = ground.run(&site(asks), []).ends(3).says(told).says("site.yaml:7").says("nothing was changed");
        assert!(said.out.contains(&client) || said.err.contains(&client), "{}", said.report());
        for host in 0..=CLIENT {
            ground.hosts.root(host, "test -e /etc/was-changed").ends(1);
        }
    }
    assert_eq!(ground.store(), "");
    // What decides where tasks run is evaluated here, where nobody reads a secret.
    let said = ground.run("- {hosts: \"{{ secret('consul/gossip') }}\", tasks: [{command: 'true'}]}\n", []).ends(3);
    said.says("is evaluated on hosts only");
    // A grant for one group is not one for the other; and what is granted must be there.
    let settings = ground.project.settings();
    let granted = format!("{settings}store: {{type: file, grants: {{app/*: consul_servers}}}}\n");
    ground.project.write("rollcall.yaml", &granted);
    ground.run(&site("secret('app/db')"), ["--limit", &client]).ends(3).says("it is granted to consul_servers");
    let said = ground.run(&site("secret('app/db')"), ["--limit", "consul_servers"]).ends(3);
    said.says("there is no secret 'app/db'").says("controller secret put app/db");
    ground.project.write("rollcall.yaml", &granted.replace("app/*", "consul/*"));
    ground
        .run(&site("'x'"), [])
        .ends(3)
        .says("names that begin with 'consul/' are Rollcall's own")
        .says("rollcall.yaml:");
}

/// A key of several lines, no two of which may be shown.
const KEY: &str = "-----BEGIN TEST KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY7Hp\nAwEHoUQDQgAEPR3tU2Fta9ktY+6P9G0cWO+0kETA6SFs38GecTyudlHz6xvCdz8q\n-----END TEST KEY-----\n";

#[test]
fn a_users_own_secret_is_read_by_those_who_are_granted_it() {
    let ground = Ground::new();
    let settings = ground.project.settings();
    let grants =
        "store: {type: file, grants: {app/*: [consul_servers, consul_clients], app/servers/**: consul_servers}}\n";
    ground.project.write("rollcall.yaml", &format!("{settings}{grants}"));
    let put = |name: &str, value: &str| {
        ground.project.write("value", value);
        let controller = rollcall_tests::program("controller");
        let line = format!("{} secret put {name} < value; code=$?; rm value; exit $code", controller.display());
        ground.project.shell(&line)
    };
    put("app/short", "1234").ends(1).says("fewer than 6 bytes");
    put("app/key", &format!("{KEY}\n")).ok();
    put("app/servers/db/password", "correct horse").ok();
    let lines: Vec<&str> = KEY.lines().filter(|line| !line.starts_with('-')).collect();
    let site = r#"
- hosts: all
  become: true
  vars:
    password: "{{ secret('app/servers/db/password') if 'consul_servers' in group_names else 'none' }}"
  tasks:
    - copy: {content: "{{ secret('app/key') }}", dest: /etc/key, mode: "0600"}
    - copy: {content: "{{ password }}", dest: /etc/password, mode: "0600"}
    - shell: sed -n 2p /etc/key; sed -n 3p /etc/key >&2; exit 1
      ignore_errors: true
    - shell: cat /etc/password; curl --silent "http://127.0.0.1:9/?q={{ password | urlencode }}"
      failed_when: false
"#;
    for more in [&["--diff", "-vvv"][..], &["--json", "--diff"], &["--check", "--diff", "-vvv"]] {
        let said = ground.run(site, more.iter().copied()).ok();
        for hidden in lines.iter().chain(&["correct horse", "correct%20horse", "correct+horse"]) {
            said.clone().never_says(hidden);
        }
    }
    for host in 0..=CLIENT {
        assert_eq!(ground.hosts.read(host, "/etc/key"), KEY);
        assert_eq!(ground.hosts.read(host, "/etc/password"), if host == CLIENT { "none" } else { "correct horse" });
    }
}

#[test]
fn a_secret_stays_with_the_hosts_that_asked() {
    let ground = Ground::new();
    let first = ground.hosts.name(0);
    let said = ground.run(
        &format!(
            r#"
- hosts: consul_servers
  become: true
  tasks:
    - set_fact: {{key: "{{{{ secret('consul/gossip') }}}}"}}
    - set_fact: {{free: free, length: "{{{{ 1 if key == 'x' else 2 }}}}"}}
      when: key | length == 44
    - set_fact: {{free: free}}
    - set_fact: {{derived: "{{{{ {{'a': key}} | to_json }}}}"}}
    - copy: {{content: "{{{{ derived }}}}", dest: /etc/derived, mode: "0644"}}
- hosts: consul_clients
  tasks:
    - debug: {{msg: "{{{{ hostvars['{first}'].free }}}}"}}
    - name: Ask for it
      debug: {{msg: "{{{{ hostvars['{first}'].derived }}}}"}}
"#
        ),
        ["--diff"],
    );
    let said = said.ends(4).says("'derived' of").says("is secret").says("content hidden (1 lines changed)");
    let derived = ground.hosts.read(0, "/etc/derived");
    let key: Value = serde_json::from_str(&derived).expect("it is JSON");
    said.never_says(key["a"].as_str().expect("it is text"));
}

#[test]
fn a_run_once_does_not_carry_a_secret_to_the_others() {
    let ground = Ground::new();
    let site = "- hosts: all\n  tasks:\n    - name: Once\n      set_fact: {key: \"{{ secret('consul/gossip') }}\"}\n      run_once: true\n";
    ground.run(site, []).ends(4).says("holds something secret, which does not travel to the other hosts");
}

/// Every way by which a value may get out: results, failures, names, items, warnings, differences; encoded too.
const LEAKY: &str = r#"
- name: Leaks
  hosts: all
  become: true
  tasks:
    - name: Where it belongs
      template: {src: gossip.j2, dest: /etc/gossip, mode: "0600"}
      notify: told
    - name: "Name {{ secret('consul/gossip') }}"
      debug: {msg: "{{ secret('consul/gossip') }}"}
    - name: Kept
      set_fact: {key: "{{ secret('consul/gossip') }}"}
    - name: As data
      debug: {var: key}
    - name: Encoded
      debug:
        msg:
          - "{{ key | b64encode }}"
          - "{{ ('user:' ~ key) | b64encode }}"
          - "{{ key | urlencode }}"
          - "{{ {'k': [key]} | to_json | to_json }}"
    - name: Output
      command: cat /etc/gossip
      register: output
    - name: Output again
      debug: {var: output}
    - name: Failure
      shell: cat /etc/gossip >&2; exit 1
      ignore_errors: true
    - name: Attempts
      shell: cat /etc/gossip; exit 1
      retries: 1
      delay: 0
      ignore_errors: true
    - name: Environment
      command: sh -c 'echo "$KEY"'
      environment: {KEY: "{{ key }}"}
    - name: Items
      command: echo {{ item }}
      loop: ["{{ key }}", x]
    - name: Condition
      command: "true"
      when: key != 'x'
    - name: Lines
      lineinfile: {path: /etc/lines, create: true, line: "{{ key }}", mode: "0644"}
    - name: Path
      file: {path: "/etc/none-{{ key | b64encode }}/x", state: touch}
      ignore_errors: true
    - name: Slow
      command: sleep 12
    - name: Assertion
      assert: {that: key == 'x', fail_msg: "{{ key }} is wrong"}
      ignore_errors: true
    - name: The end
      fail: {msg: "it was {{ key }}"}
  handlers:
    # Owed, and so written down, for the play fails before its turn.
    - name: told
      shell: "cat /etc/gossip # {{ key }}"
"#;

/// Looks for a pattern wherever a run leaves traces on a host; each line is a place. The pattern comes on stdin, so that the
/// search does not find itself.
fn traces(ground: &Ground, host: usize, pattern: &str) -> Vec<String> {
    let script = format!(
        "printf %s '{}' | base64 -d > /dev/shm/pattern\n\
         for p in /proc/[0-9]*; do [ \"$p\" = \"/proc/$$\" ] || for f in cmdline environ; do \
         tr '\\0' '\\n' < $p/$f 2> /dev/null | grep --quiet --fixed-strings --file /dev/shm/pattern && echo \"$p/$f\"; done; done\n\
         journalctl --quiet --output json | grep --quiet --fixed-strings --file /dev/shm/pattern && echo journal\n\
         grep --recursive --files-with-matches --fixed-strings --devices=skip --file /dev/shm/pattern \
         /etc /var /tmp /run /root /home /usr/local /opt 2> /dev/null\n\
         rm /dev/shm/pattern",
        encode(pattern)
    );
    ground.hosts.root(host, &script).out.lines().map(str::to_owned).collect()
}

#[test]
fn a_known_value_is_found_nowhere_else() {
    let ground = Ground::new();
    ground.run(SITE, []).ok();
    let value = ground.gossip(0);
    let encoded = encode(&value);
    for host in 0..=CLIENT {
        // What the first run was told to write, this one is to write again.
        ground.hosts.root(host, "rm /etc/gossip /etc/own; sed -i '/^#/d' /etc/hosts; rm /tmp/own-of-nobody").ok();
        // The search finds what is there: in a journal, in a file, in a process.
        ground.hosts.root(host, &format!("systemd-cat echo 'planted-{value}'; echo '{value}' > /var/tmp/planted")).ok();
        ground.hosts.root(host, &format!("systemd-run --quiet --setenv=PLANTED={value} --unit planted sleep 300")).ok();
        let until = Instant::now() + Duration::from_secs(10);
        let found = loop {
            let found = traces(&ground, host, &value);
            if found.iter().any(|f| f == "journal") || Instant::now() > until {
                break found;
            }
            std::thread::sleep(Duration::from_millis(300));
        };
        for control in ["journal", "/var/tmp/planted", "/environ"] {
            assert!(found.iter().any(|place| place.contains(control)), "the search does not find {control}: {found:?}");
        }
        ground
            .hosts
            .root(host, "systemctl stop planted; rm /var/tmp/planted; journalctl --rotate --vacuum-time=1s")
            .ok();
        let left = traces(&ground, host, &value);
        assert!(left.is_empty(), "{left:?}");
    }
    for look in [&["-vvv", "--diff"][..], &["--json", "--diff"]] {
        ground.project.write("site.yaml", LEAKY);
        let running = ground.project.start(["run", "site.yaml"].into_iter().chain(look.iter().copied()));
        // While the slow task is at work nothing else is: files, arguments and environments of everything that runs.
        until(Duration::from_mins(2), "the slow task does not begin", || {
            ground.hosts.root(0, "pgrep --exact sleep --full 'sleep 12' || pgrep --full '^sleep 12$'").code == 0
        });
        let during = traces(&ground, 0, &value);
        let said = running.wait(Duration::from_mins(4)).ends(4);
        said.clone().says("(secret)");
        let escaped = value.replace('+', "%2B").replace('=', "%3D");
        for form in [value.as_str(), &encoded[..56], &escaped, &escaped.replace('/', "%2F")] {
            said.clone().never_says(form);
        }
        assert!(!during.is_empty() && during.iter().all(|place| belongs(place)), "{during:?}");
        for host in 0..=CLIENT {
            let after = traces(&ground, host, &value);
            assert!(!after.is_empty() && after.iter().all(|place| belongs(place)), "{after:?}");
            let after = traces(&ground, host, &encoded[..56]);
            assert!(after.iter().all(|place| belongs(place)), "{after:?}");
        }
    }
    for host in ground.hosts.hosts() {
        assert_eq!(in_user_data(&ground, host, &value), [false; 2], "{}", host.name);
    }
    // The lab's jump host has some of its own, which the same search finds.
    let jump = ground.hosts.lab.host("jump");
    assert_eq!(in_user_data(&ground, &jump, "planted-in-user-data"), [true; 2]);
    let machine =
        format!("grep --recursive --files-with-matches --fixed-strings -e '{value}' -e '{encoded}' ~ . || true");
    ground.project.write("planted", &value);
    assert_eq!(
        ground.project.shell(&machine).out.trim(),
        "./planted",
        "on the controller's side only the control is found"
    );
}

/// Whether an instance's user-data holds a text: as EC2's API tells it, and as the instance's metadata service does.
fn in_user_data(ground: &Ground, host: &Host, text: &str) -> [bool; 2] {
    let lab = &ground.hosts.lab;
    let told = lab.ec2(&format!("Action=DescribeInstanceAttribute&InstanceId={}&Attribute=userData", host.id)).ok();
    assert!(told.out.contains(&host.id) && told.out.contains("userData"), "{}", told.report());
    let value = told.out.split_once("<value>").and_then(|(_, rest)| rest.split_once("</value>"));
    let decoded =
        value.map(|(data, _)| ground.project.shell(&format!("printf %s '{data}' | base64 --decode")).ok().out);
    let service = "at=http://169.254.169.254/latest; curl --silent --header \"X-aws-ec2-metadata-token: $(curl --silent --request PUT $at/api/token \
                   --header 'X-aws-ec2-metadata-token-ttl-seconds: 60')\" $at/user-data";
    let served = lab.root(&host.name, service).ok().out;
    [decoded.is_some_and(|data| data.contains(text)), served.contains(text)]
}

/// Where the plays above put it; nobody else can read what they closed.
fn belongs(place: &str) -> bool {
    ["/etc/gossip", "/etc/lines"].contains(&place)
}

/// What holds secrets while it waits: the agent as root, its worker as another user, the controller.
const WAITS: &str = r#"
- hosts: all
  become: true
  tasks:
    - template: {src: gossip.j2, dest: /etc/gossip, mode: "0600"}
    - copy: {content: "{{ secret('consul/gossip') }}", dest: /tmp/own-of-nobody, mode: "0600"}
      become_user: nobody
    - command: sleep 14
"#;

/// A line for the shell that lists the core dumps that are newer than `/dev/shm/begun` below some folders, and where systems
/// keep those that the kernel hands to a program. A pattern without a folder means that of the process: one file may be found twice.
fn dumps(folders: &str) -> String {
    format!(
        "{{ find {folders} \"$(dirname \"$(cat /proc/sys/kernel/core_pattern)\")\" /var/crash /var/lib/systemd/coredump -xdev -type f \
         -newer /dev/shm/begun \\( -name 'core*' -o -path '/var/crash/*' -o -path '/var/lib/systemd/coredump/*' \\) 2> /dev/null || true; }} \
         | xargs --no-run-if-empty realpath | sort --unique"
    )
}

/// A line for the shell: a process that may leave a dump, knows the value, and is aborted.
fn aborted(value: &str) -> String {
    format!("ulimit -c unlimited; VALUE='{value}' bash -c 'kill -ABRT $$'")
}

#[test]
fn who_is_aborted_leaves_no_core_dump() {
    let ground = Ground::new();
    ground.run(SITE, []).ok();
    let value = ground.gossip(0);
    ground.project.write("site.yaml", WAITS);
    let running = ground.project.start(["run", "site.yaml"]);
    until(Duration::from_mins(2), "the slow task does not begin", || {
        ground.hosts.root(0, "pgrep --full '^sleep 14$'").code == 0
    });
    // No limit keeps them from it. At once: who sees the other one die ends by itself.
    let abort = "touch /dev/shm/begun; sleep 0.1; all=; for p in /proc/[0-9]*; do case $(readlink $p/exe) in /usr/local/lib/rollcall/agent-*) \
                 readlink $p/cwd; prlimit --core=unlimited --pid ${p#/proc/}; all=\"$all ${p#/proc/}\";; esac; done; kill -ABRT $all";
    let folders = ground.hosts.root(0, abort).ok().out;
    assert_eq!(folders.lines().count(), 2, "the agent, and its worker for another user: {folders}");
    let controller = running.id();
    let abort = format!(
        "touch /dev/shm/begun; sleep 0.1; prlimit --core=unlimited --pid {controller}; kill -ABRT {controller}"
    );
    ground.project.shell(&abort).ok();
    running.wait(Duration::from_mins(1)).ends(134);
    std::thread::sleep(Duration::from_secs(2));
    let (there, here) = (dumps("/ /tmp /run /dev/shm"), dumps("\"$PWD\" \"$HOME\""));
    assert_eq!(ground.hosts.root(0, &there).ok().text(), "", "of the agent");
    assert_eq!(ground.project.shell(&here).ok().text(), "", "of the controller");

    // The same search finds what others leave in the same places.
    let folder = folders.lines().next().expect("they were counted");
    ground.hosts.root(0, &format!("cd '{folder}' && {}", aborted(&value)));
    let of_hosts = ground.hosts.root(0, &there).ok().out;
    let by_program = std::fs::read_to_string("/proc/sys/kernel/core_pattern").is_ok_and(|to| to.starts_with('|'));
    if !by_program {
        assert_eq!(of_hosts.lines().count(), 1, "{of_hosts}");
        ground.hosts.root(0, &format!("grep --quiet --fixed-strings '{value}' '{}'", of_hosts.trim())).ok();
    }
    ground.project.shell(&aborted(&value));
    let left = format!("sleep 2; for file in $({here}); do echo \"$file\"; rm -f \"$file\"; done");
    let of_machine = ground.project.shell(&left).ok().out;
    assert!(!of_machine.is_empty(), "the search does not find the control's dump");
}

#[test]
fn a_busy_store_is_waited_for_and_an_interrupt_does_not_wait() {
    let ground = Ground::new();
    let settings = ground.project.settings();
    ground.project.write("rollcall.yaml", &format!("{settings}store: {{type: file, path: s.age, lock_timeout: 1}}\n"));
    ground.project.write("site.yaml", SITE);
    let hold = || ground.project.hold("s.age.lock");
    // The agents are there, so that the runs below are soon where they ask.
    ground.project.controller(["exec", "all", "--", "true"]).ok();
    let begin = || {
        let running = ground.project.start(["run", "site.yaml", "--json"]);
        let until = Instant::now() + Duration::from_mins(2);
        for host in 0..=CLIENT {
            while ground.hosts.root(host, "pgrep --full '/usr/local/lib/rollcall/[a]gent-'").code != 0 {
                assert!(Instant::now() < until, "the run does not begin");
            }
        }
        std::thread::sleep(Duration::from_secs(8));
        running
    };
    let (holder, running) = (hold(), begin());
    running.signal("INT");
    let said = running.wait(Duration::from_secs(40)).ends(130);
    assert!(said.out.contains("\"waiting\"") && said.out.contains("the secrets store"), "{}", said.report());
    for host in 0..=CLIENT {
        ground.hosts.root(host, "test -e /etc/gossip").ends(1);
    }
    let running = begin();
    drop(holder);
    let said = running.wait(Duration::from_mins(2)).ok();
    assert!(said.out.contains("the secrets store"), "{}", said.report());
    assert_eq!(ground.gossip(0), ground.gossip(CLIENT));
}

#[test]
fn a_controller_that_dies_after_it_made_a_value_has_lost_nothing() {
    let ground = Ground::new();
    ground.project.write("site.yaml", SITE);
    let running = ground.project.start(["run", "site.yaml", "--limit", "consul_servers"]);
    let until = Instant::now() + Duration::from_mins(1);
    // As soon as the value is written: it has not been read back, and no host has been answered.
    let file = ground.project.home().join(".local/share/rollcall/kraken.age");
    while !file.exists() {
        assert!(Instant::now() < until, "the store is not made");
        std::thread::sleep(Duration::from_micros(100));
    }
    running.signal("KILL");
    running.wait(Duration::from_mins(2));
    let store = ground.store();
    // Killed before the first value was answered or after: what was made then is what every later run uses.
    ground.run("- {hosts: all, become: true, tasks: [{template: {src: gossip.j2, dest: /etc/gossip}}]}\n", []).ok();
    let gossip = ground.gossip(0);
    assert!((1..=CLIENT).all(|host| ground.gossip(host) == gossip));
    assert_eq!(ground.store(), store, "the value was there: nothing is written again");
}

const SERVERS: usize = 3;

/// Three servers of Consul; its variables besides those that the lab needs.
fn consul(variables: &str) -> (Borrowed, Project, impl Fn(&Project, &str)) {
    let lab = Lab::shared();
    let hosts = lab.borrow(SERVERS, "");
    let mut inventory = "all:\n  children:\n    consul_clients: {}\n    consul_servers:\n      hosts:\n".to_owned();
    for host in hosts.hosts() {
        inventory.push_str(&format!("        {}: {{ansible_host: {}}}\n", host.name, host.address));
    }
    let status = lab.status();
    let given = format!(
        "consul_mirror: {}\nconsul_datacenter: test\nconsul_bind_cidr: {}\nbase_time_sync: chrony\n",
        status.mirror, status.subnet
    );
    let project = Project::new(&lab, hosts.hosts())
        .file("inventory.yaml", &inventory)
        .file("group_vars/all.yaml", &format!("{given}{variables}"))
        .file("site.yaml", "- {hosts: consul_servers, become: true, roles: [consul]}\n");
    project.add_settings("cluster: kraken\n");
    let configure =
        move |project: &Project, more: &str| project.write("group_vars/all.yaml", &format!("{given}{more}"));
    (hosts, project, configure)
}

#[test]
fn a_cluster_talks_encrypted_with_one_key() {
    let (hosts, project, _) = consul("consul_encrypt: true\n");
    project.controller(["run", "site.yaml", "--check", "--diff"]).ok();
    let first = project.controller(["run", "site.yaml", "--json", "--diff"]).ok();
    let members = hosts.root(0, "consul members").ok().out;
    assert_eq!(members.matches(" alive ").count(), SERVERS, "{members}");
    hosts.root(0, "consul info | grep encrypted").ok().says("encrypted = true");
    let keys = hosts.root(0, "consul keyring -list").ok().out;
    let key = hosts
        .root(0, "sed -n 's/.*\"encrypt\": *\"\\(.*\\)\".*/\\1/p' /etc/consul.d/gossip.json")
        .ok()
        .text()
        .to_owned();
    let listed: Vec<&str> = keys.lines().filter(|line| line.contains("= [")).map(str::trim).collect();
    assert!(key.len() == 44 && !listed.is_empty() && listed.iter().all(|line| line.starts_with(&key)), "{key} {keys}");
    first.never_says(&key);
    assert_eq!(hosts.root(0, "stat --format %a:%U:%G /etc/consul.d/gossip.json").ok().text(), "640:root:consul");
    let second = project.controller(["run", "site.yaml", "--json"]).ok();
    assert_eq!(second.counted("changed"), 0, "{}", second.report());
    // The file alone tells Consul nothing any more: it is put right without a restart.
    let starts = "systemctl show --property NRestarts,ExecMainStartTimestampMonotonic consul";
    let before = hosts.root(0, starts).ok().out;
    hosts.root(0, "sed -i 's/[A-Z]/x/' /etc/consul.d/gossip.json").ok();
    let mended = project.controller(["run", "site.yaml", "--json"]).ok();
    assert_eq!(mended.counted("changed"), 1, "{}", mended.report());
    assert_eq!(hosts.root(0, starts).ok().out, before);
}

#[test]
fn a_cluster_without_a_key_is_led_over_in_three_runs() {
    let (hosts, project, configure) = consul("");
    project.controller(["run", "site.yaml"]).ok();
    let encrypted = |host: usize| {
        hosts.root(host, "consul info | sed -n 's/.*encrypted = //p' | sort | uniq").ok().text().to_owned()
    };
    assert_eq!(encrypted(0), "false");
    configure(&project, "consul_encrypt: true\n");
    let starts = "systemctl show --property NRestarts,ExecMainStartTimestampMonotonic consul; ls /etc/consul.d";
    let before = hosts.root(0, starts).ok().out;
    let refused = project.controller(["run", "site.yaml"]).ends(4);
    refused.says("is a member of a cluster without gossip encryption");
    assert_eq!(hosts.root(0, starts).ok().out, before, "what is refused changes nothing");
    for step in [
        "consul_config: {encrypt_verify_incoming: false, encrypt_verify_outgoing: false}",
        "consul_config: {encrypt_verify_incoming: false}",
        "",
    ] {
        configure(&project, &format!("consul_encrypt: true\n{step}\n"));
        project.controller(["run", "site.yaml"]).ok();
        let members = hosts.root(0, "consul members").ok().out;
        assert_eq!(members.matches(" alive ").count(), SERVERS, "{step}: {members}");
    }
    assert!((0..SERVERS).all(|host| encrypted(host) == "true"));
    let second = project.controller(["run", "site.yaml", "--json"]).ok();
    assert_eq!(second.counted("changed"), 0, "{}", second.report());
}
