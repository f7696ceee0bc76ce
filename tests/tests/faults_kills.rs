//! Kills (-9) at random points of a run, of the controller, of the agent and of the host: running again repairs all of them.
//!
//! `ROLLCALL_TEST_KILLS` says how many of each kind (`make test-faults`: 100), `ROLLCALL_TEST_SEED` repeats the points of
//! a run that failed; the seed is printed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rollcall_tests::{Borrowed, Host, Lab, Project, Random, Said, counted, number, say, seed};

const LIMIT: Duration = Duration::from_mins(2);
/// Hosts at work at once.
const HOSTS: usize = 3;

/// Something of each kind that a run can leave a half of.
const SITE: &str = r#"
- name: Everything that can be left half done
  hosts: all
  become: true
  vars:
    big: "{{ 'a line of a file that is not written in one piece\n' * 8000 }}"
  tasks:
    - name: Group
      group: {name: kills, gid: 4242}
    - name: User
      user: {name: kills, uid: 4242, group: kills, home: /srv/kills, create_home: false, shell: /usr/sbin/nologin}
    - name: Folders
      file: {path: "/srv/kills/{{ item }}", state: directory, owner: kills, group: kills, mode: "0750"}
      loop: [etc, data, data/one, data/two, bin]
    - name: A large file
      copy: {content: "{{ big }}", dest: /srv/kills/etc/large, owner: kills, mode: "0640"}
      notify: applied
    - name: A file that is checked before it stands there
      copy: {content: "{{ big }}end\n", dest: /srv/kills/etc/checked, mode: "0600", validate: grep --quiet end %s}
      notify: applied
    - name: Many files
      copy: {content: "{{ item }} {{ inventory_hostname | length > 0 }}\n", dest: "/srv/kills/data/one/{{ item }}", owner: kills}
      loop: [a, b, c, d, e, f, g, h]
    - name: Template
      template: {src: unit.j2, dest: /srv/kills/etc/unit, mode: "0644"}
      notify: applied
    - name: Line
      lineinfile: {path: /etc/hosts, line: "192.0.2.7 kills.example"}
    - name: Link
      file: {src: /srv/kills/etc/large, path: /srv/kills/data/link, state: link}
    - name: Program
      copy: {src: sleeper, dest: /srv/kills/bin/sleeper, mode: "0755"}
      notify: restart sleeper
    - name: Archive
      unarchive: {src: pack.tar.gz, dest: /srv/kills/data/two}
    - name: Unit
      systemd_unit:
        name: kills.service
        sections:
          Service: {ExecStart: /srv/kills/bin/sleeper, Restart: "no"}
          Install: {WantedBy: multi-user.target}
        enabled: true
      notify: restart sleeper
    - name: Runs
      service: {name: kills, state: started}
    - name: Once
      shell: sha256sum < /srv/kills/etc/large > /srv/kills/data/sum.new && mv /srv/kills/data/sum.new /srv/kills/data/sum
      args: {creates: /srv/kills/data/sum}
  handlers:
    - name: applied
      shell: cat /srv/kills/etc/large /srv/kills/etc/checked /srv/kills/etc/unit | sha256sum > /srv/kills/applied
    - name: restart sleeper
      service: {name: kills, state: restarted}
"#;

/// All that the run makes, with contents, owners and modes; and what no run may leave anywhere.
const LOOK: &str = "\
    find /srv/kills /etc/systemd/system -printf '%y %m %u %g %p %l\\n' | sort; \
    find /srv/kills -type f -print0 | sort -z | xargs -0 sha256sum; \
    grep --count kills.example /etc/hosts; sha256sum /etc/systemd/system/kills.service; getent passwd kills; getent group kills; \
    systemctl is-active kills; systemctl is-enabled kills; \
    echo left:; find / -xdev \\( -name '.rollcall-*' -o -name '.agent-*' -o -name '.half-*' \\) -print; \
    find /var/lib/rollcall -mindepth 1 -not -path '*/blobs*' -not -name ledger.json -not -name backup -print; \
    find /var/lib/rollcall/blobs -name '.*' -print 2> /dev/null; \
    for a in /usr/local/lib/rollcall/agent-*; do $a status | grep owed; done";

/// Who is killed, how long after the agent began, and whether the agent is on its way to the host then.
#[derive(Debug)]
struct Kill {
    victim: Victim,
    after: Duration,
    push: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Controller,
    Agent,
    Host,
}

/// A host that was switched off is noticed after seconds instead of a minute. One that has just booted on a busy machine
/// may take its time to answer.
fn quick(project: Project) -> Project {
    project.add_settings("  keepalive: 1\n  connect_timeout: 20\n");
    project
}

fn project(lab: &Lab, host: &Host) -> Project {
    let project = quick(Project::new(lab, [host]))
        .file("site.yaml", SITE)
        .file("templates/unit.j2", "{% for n in range(200) %}setting {{ n }}\n{% endfor %}")
        .file("files/sleeper", "#!/bin/sh\nexec sleep infinity\n");
    project.shell("mkdir pack; for i in $(seq 40); do seq 500 > pack/$i; done; tar --sort=name --mtime=@0 -czf files/pack.tar.gz -C pack .").ok();
    project
}

/// What a run that nobody disturbs ends in, and how long it takes. The agent was there already.
fn undisturbed(lab: &Lab, host: &Host, project: &Project) -> (String, Duration) {
    project.controller(["facts", &host.name]).ok();
    let run = project.controller(["run", "site.yaml"]).ok();
    let state = lab.root(&host.name, LOOK).ok().out;
    assert!(state.contains("active\n") && state.contains("/srv/kills/applied"), "{state}");
    assert!(state.ends_with("left:\nowed      nothing\n"), "nothing may be left over:\n{state}");
    // What the recap says: without the start of the controller.
    let seconds = run.out.split_once("RECAP (").and_then(|(_, rest)| rest.split_once(" s)")?.0.parse().ok());
    let seconds = seconds.unwrap_or_else(|| panic!("the recap tells no time\n{}", run.report()));
    (state, Duration::from_secs_f64(seconds))
}

/// One kill and its repair. The run begins on an empty host, every fourth time one without an agent too.
fn kill_once(lab: &Lab, host: &Host, project: &Project, kill: &Kill, expected: &str) -> Result<(), String> {
    let Kill { victim, after, push } = *kill;
    lab.lab(["reset", &host.name]).ok();
    let begun = if push {
        // From the first bytes of the upload on.
        "test -n \"$(ls /usr/local/lib/rollcall/.agent-* /usr/local/lib/rollcall/agent-* 2> /dev/null)\""
    } else {
        project.controller(["facts", &host.name]).ok();
        "pgrep --full '^/usr/local/lib/rollcall/agent-[^ ]* exec' > /dev/null"
    };
    let wait = format!("for i in $(seq 1500); do {begun} && break; sleep 0.02; done; sleep {:.3}", after.as_secs_f64());
    let run = project.start(["run", "site.yaml"]);
    match victim {
        Victim::Agent => drop(lab.root(&host.name, &format!("{wait}; pkill --signal KILL '^agent-'"))),
        Victim::Controller => {
            lab.root(&host.name, &wait).ok();
            run.signal("KILL");
        }
        Victim::Host => {
            lab.root(&host.name, &wait).ok();
            lab.lab(["kill", &host.name]).ok();
        }
    }
    let killed = run.wait(LIMIT);
    if victim == Victim::Host {
        lab.lab(["start", &host.name]).ok();
    }
    let repair = say(project, &["run", "site.yaml"]);
    if repair.code != 0 {
        return Err(format!("the second run failed\n{}\nafter\n{}", repair.report(), killed.report()));
    }
    let state = lab.root(&host.name, LOOK).out;
    if state != expected {
        let lines: Vec<String> = differences(expected, &state);
        return Err(format!(
            "another state than that of an undisturbed run\n{}\n{}\nafter\n{}",
            lines.join("\n"),
            repair.report(),
            killed.report()
        ));
    }
    let third = project.controller(["run", "site.yaml"]);
    if third.code != 0 || !third.out.contains("changed=0") {
        return Err(format!("a third run changed something\n{}", third.report()));
    }
    Ok(())
}

fn differences(expected: &str, found: &str) -> Vec<String> {
    let missing = expected.lines().filter(|line| !found.lines().any(|l| l == *line)).map(|line| format!("- {line}"));
    let more = found.lines().filter(|line| !expected.lines().any(|l| l == *line)).map(|line| format!("+ {line}"));
    missing.chain(more).collect()
}

#[test]
fn seeded_kills_are_repaired_by_running_again() {
    let each = number("ROLLCALL_TEST_KILLS", 4);
    let seed = seed();

    let hosts: Borrowed = Lab::shared().borrow(HOSTS, "");
    let projects: Vec<Project> = hosts.hosts().map(|host| project(&hosts.lab, host)).collect();
    let (expected, took) = undisturbed(&hosts.lab, hosts.host(0), &projects[0]);
    let mut random = Random::new(seed);
    let mut kills = Vec::new();
    for _ in 0..each {
        for victim in [Victim::Controller, Victim::Agent, Victim::Host] {
            let millis = u64::try_from(took.as_millis()).expect("a run takes no ages");
            kills.push(Kill { victim, after: Duration::from_millis(random.below(millis)), push: random.below(4) == 0 });
        }
    }
    println!("an undisturbed run takes {took:.2?}; {} kills", kills.len());
    let kills = Mutex::new(kills);
    let failed = Mutex::new(Vec::new());
    let repaired = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for (index, project) in projects.iter().enumerate() {
            let (hosts, kills, failed, expected, repaired) = (&hosts, &kills, &failed, &expected, &repaired);
            scope.spawn(move || {
                loop {
                    let next = kills.lock().expect("no holder panics").pop();
                    let Some(kill) = next else { break };
                    match kill_once(&hosts.lab, hosts.host(index), project, &kill, expected) {
                        Ok(()) => drop(repaired.fetch_add(1, Ordering::Relaxed)),
                        Err(why) => {
                            failed.lock().expect("no holder panics").push(format!("{kill:?}: {why}"));
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no holder panics");
    counted(
        "kills (-9) of controller, agent, host in mid-run, repaired by running again",
        repaired.load(Ordering::Relaxed).into(),
        each * 3,
    );
    assert!(
        failed.is_empty(),
        "seed {seed}: {} of {} kills were not repaired\n\n{}",
        failed.len(),
        each * 3,
        failed.join("\n\n")
    );
    assert_eq!(u64::from(repaired.load(Ordering::Relaxed)), each * 3);
}

/// The recap's word is not enough: what a killed host had half done must be seen to be repaired by the next run.
#[test]
fn a_host_killed_in_a_handler_still_owes_it() {
    let hosts = Lab::shared().borrow(1, "");
    let site = "- hosts: all\n  become: true\n  tasks:\n    - copy: {content: new, dest: /srv/conf}\n      notify: slow\n  handlers:\n    \
                - name: slow\n      shell: touch /srv/began; sleep 5; touch /srv/ended\n";
    let project = quick(Project::new(&hosts.lab, hosts.hosts())).file("site.yaml", site);
    let run = project.start(["run", "site.yaml"]);
    hosts.root(0, "for i in $(seq 300); do test -e /srv/began && exit 0; sleep 0.1; done; exit 1").ok();
    hosts.lab.lab(["kill", hosts.name(0)]).ok();
    let lost: Said = run.wait(LIMIT);
    assert!([4, 5].contains(&lost.code), "{}", lost.report());
    hosts.lab.lab(["start", hosts.name(0)]).ok();
    hosts.root(0, "test ! -e /srv/ended").ok();
    hosts.root(0, "/usr/local/lib/rollcall/agent-* status").says("slow");
    // A plan shows the debt and leaves it.
    project.controller(["plan", "site.yaml"]).ok().says("slow");
    hosts.root(0, "test ! -e /srv/ended").ok();
    project.controller(["run", "site.yaml"]).ok();
    hosts.root(0, "test -e /srv/ended && /usr/local/lib/rollcall/agent-* status").ok().says("owed      nothing");
}
