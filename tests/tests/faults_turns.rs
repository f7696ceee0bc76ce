//! Handlers that take turns, and hosts whose turn does not come: refused, stopped, cut off, killed. Their services run as they
//! did, so their files become what they were: nothing may start them with something that was never tried.

use std::time::{Duration, Instant};

use rollcall_tests::{Borrowed, Lab, Project, Running, Said};

const LIMIT: Duration = Duration::from_mins(2);

/// A service with a file, a link and a unit that follow `text`. It does not start with `bad`, and takes its time with `slow`.
const SITE: &str = r#"
- hosts: all
  become: true
  tasks:
    - file: {path: /srv/turns, state: directory}
    - copy:
        dest: /srv/turns/run
        mode: "0755"
        content: |
          #!/bin/sh
          cat /srv/turns/conf >> /srv/turns/started
          case $(cat /srv/turns/conf) in
              bad) exit 1 ;;
              slow) touch /srv/turns/began; sleep 8 ;;
          esac
    - copy: {content: "{{ text }}\n", dest: /srv/turns/conf}
      notify: restart turns
    - file: {src: "/srv/{{ text }}", path: /srv/turns/link, state: link, force: true}
      notify: restart turns
    - systemd_unit:
        name: turns.service
        sections:
          Unit: {Description: "turns {{ text }}"}
          Service: {Type: oneshot, RemainAfterExit: true, ExecStart: /srv/turns/run}
          Install: {WantedBy: multi-user.target}
        enabled: true
      notify: restart turns
    - service: {name: turns, state: started}
    - fail: {msg: asked for}
      when: text in ['early', 'early-on-' ~ inventory_hostname]
  handlers:
    - name: restart turns
      service: {name: turns, state: restarted}
      serial: 1
"#;

/// What follows `text`: the files, what systemd makes of the unit, and what is owed.
const LOOK: &str = "cat /srv/turns/conf; readlink /srv/turns/link; systemctl show --property Description turns; \
                    systemctl is-active turns; /usr/local/lib/rollcall/agent-* status | grep owed";

struct Turns {
    hosts: Borrowed,
    project: Project,
}

impl Turns {
    /// Two hosts whose service runs with `one`.
    fn begin() -> Self {
        Self::with(|_| SITE.to_owned())
    }

    /// The same, where the second host's turn comes after the first one's; both could have theirs at once.
    fn in_order() -> Self {
        Self::with(|hosts| {
            let first = format!("serial: 2\n      after: [\"{}\"]", hosts.name(0));
            SITE.replace("serial: 1", &first)
        })
    }

    fn with(site: impl Fn(&Borrowed) -> String) -> Self {
        let hosts = Lab::shared().borrow(2, "");
        let project = Project::new(&hosts.lab, hosts.hosts()).file("site.yaml", &site(&hosts));
        project.add_settings("  keepalive: 1\n");
        let turns = Self { hosts, project };
        turns.run("one").ok();
        for host in 0..2 {
            assert_eq!(turns.look(host), state("one"));
        }
        turns
    }

    /// The one that waited has come to `slow`, and neither was started with it twice.
    #[track_caller]
    fn finished(&self, first: usize, second: usize) {
        assert_eq!(self.look(second), state("slow"));
        assert_eq!((self.starts(first, "slow"), self.starts(second, "slow")), (1, 1));
    }

    fn run(&self, text: &str) -> Said {
        self.project.controller(["run", "site.yaml", "-e", &format!("text={text}")])
    }

    #[track_caller]
    fn look(&self, host: usize) -> String {
        self.hosts.root(host, LOOK).out
    }

    /// How often the service was started with a text.
    #[track_caller]
    fn starts(&self, host: usize, text: &str) -> usize {
        self.hosts.read(host, "/srv/turns/started").lines().filter(|line| *line == text).count()
    }

    /// A run in which one host takes its time: the run, that host, and the one that waits for its turn.
    #[track_caller]
    fn slow(&self) -> (Running, usize, usize) {
        let run = self.project.start(["run", "site.yaml", "-e", "text=slow"]);
        let until = Instant::now() + LIMIT;
        loop {
            for host in 0..2 {
                let other = 1 - host;
                if self.hosts.root(host, "test -e /srv/turns/began").code == 0 {
                    // The other has its new files, and asks for its turn in the moment after.
                    let new = "for i in $(seq 100); do systemctl cat turns | grep --quiet slow && sleep 0.5 && exit 0; sleep 0.05; done; exit 1";
                    self.hosts.root(other, new).ok();
                    return (run, host, other);
                }
            }
            assert!(Instant::now() < until, "no host had its turn");
        }
    }
}

fn state(text: &str) -> String {
    format!("{text}\n/srv/{text}\nDescription=turns {text}\nactive\nowed      nothing\n")
}

#[test]
fn a_host_that_is_refused_its_turn_goes_back_to_its_files() {
    let turns = Turns::begin();
    let failed = turns.run("bad").ends(4).says("no turn: it went wrong on").says("restored");
    assert_eq!(failed.out.matches(" restored=3").count(), 2, "{}", failed.report());
    assert_eq!(turns.starts(0, "bad") + turns.starts(1, "bad"), 1, "one tries: {}", failed.report());
    for host in 0..2 {
        assert_eq!(turns.look(host), state("one"), "{}", failed.report());
    }
    // The next run finds the change again on both, and nothing is restarted twice.
    turns.run("two").ok();
    for host in 0..2 {
        assert_eq!(turns.look(host), state("two"));
        assert_eq!(turns.starts(host, "two"), 1);
    }
    let third = turns.run("two").ok();
    assert_eq!(third.out.matches("changed=0").count(), 2, "{}", third.report());
}

#[test]
fn a_task_that_fails_before_the_handlers_leaves_nothing_untried() {
    let turns = Turns::begin();
    let failed = turns.run("early").ends(4).says("the play ended before its turn");
    for host in 0..2 {
        assert_eq!(turns.look(host), state("one"), "{}", failed.report());
        assert_eq!(turns.starts(host, "early"), 0);
    }
}

#[test]
fn ctrl_c_lets_the_turn_end_and_puts_back_the_files_of_who_waits() {
    let turns = Turns::begin();
    let (run, first, second) = turns.slow();
    run.signal("INT");
    let said = run.wait(LIMIT).ends(130).says("stopped before its turn: interrupted");
    assert_eq!(turns.look(first), state("slow"), "{}", said.report());
    assert_eq!(turns.look(second), state("one"), "{}", said.report());
    assert_eq!((turns.starts(first, "slow"), turns.starts(second, "slow")), (1, 0));
    // What was stopped is done by the next run, and only that.
    turns.run("slow").ok();
    turns.finished(first, second);
}

#[test]
fn a_host_that_loses_its_controller_while_it_waits_goes_back_too() {
    let turns = Turns::begin();
    let (run, first, second) = turns.slow();
    run.signal("KILL");
    drop(run.wait(LIMIT));
    // Nobody is there to be told: the host does it by itself, and lets go.
    let gone = "for i in $(seq 300); do pgrep --full '^/usr/local/lib/rollcall/agent-[^ ]* exec' > /dev/null || exit 0; sleep 0.1; done; exit 1";
    for host in [first, second] {
        turns.hosts.root(host, gone).ok();
    }
    assert_eq!(turns.look(second), state("one"));
    assert_eq!(turns.look(first), state("slow"), "the handler in flight ends well");
    turns.run("slow").ok();
    turns.finished(first, second);
}

#[test]
fn a_host_whose_agent_is_killed_while_it_waits_still_owes_the_handler() {
    let turns = Turns::begin();
    let (run, first, second) = turns.slow();
    // By its own name: with the shell or the sudo above it gone a moment earlier, it would see that, and put things back.
    turns.hosts.root(second, "pkill --signal KILL '^agent-'").ok();
    run.wait(LIMIT).ends(5);
    assert_eq!(turns.look(first), state("slow"));
    // Nobody was left who could have put anything back: the debt is what remains.
    assert_eq!(turns.hosts.read(second, "/srv/turns/conf"), "slow\n");
    turns.hosts.root(second, "/usr/local/lib/rollcall/agent-* status").says("owed      restart turns");
    assert_eq!(turns.starts(second, "slow"), 0);
    turns.run("slow").ok().says("owed by an earlier run: restart turns");
    turns.finished(first, second);
}

#[test]
fn a_turn_that_comes_after_another_hosts_waits_for_it() {
    let turns = Turns::in_order();
    turns.run("slow").ok();
    let began = |host: usize| -> f64 {
        let said = turns.hosts.root(host, "stat --format %.Y /srv/turns/began").ok();
        said.text().parse().expect("it is a time")
    };
    // Each takes eight seconds.
    assert!(began(1) - began(0) > 7.9, "{} {}", began(0), began(1));
    // Nobody waits for a host that takes no part.
    let second = turns.hosts.name(1).to_owned();
    turns.project.controller(["run", "site.yaml", "-e", "text=two", "--limit", &second]).ok();
    assert_eq!((turns.look(0), turns.look(1)), (state("slow"), state("two")));
}

#[test]
fn there_is_no_turn_after_a_host_that_failed() {
    let turns = Turns::in_order();
    let (first, second) = (turns.hosts.name(0).to_owned(), turns.hosts.name(1).to_owned());
    let comes_first = format!("no turn: {first} failed, whose handlers come first");
    // In its handler, and before it.
    for text in ["bad".to_owned(), format!("early-on-{first}")] {
        let failed = turns.run(&text).ends(4).says(&comes_first);
        for host in 0..2 {
            assert_eq!(turns.look(host), state("one"), "{}", failed.report());
        }
        assert_eq!(turns.starts(1, &text), 0, "{}", failed.report());
    }
    // One that fails for itself holds nobody up.
    turns.run(&format!("early-on-{second}")).ends(4);
    assert_eq!(turns.look(0), state(&format!("early-on-{second}")));
    // What is asked for is heeded.
    let text = format!("text=early-on-{first}");
    turns.project.controller(["run", "site.yaml", "-e", &text, "-e", "rollcall_gate=false"]).ends(4);
    assert_eq!(turns.starts(1, &format!("early-on-{first}")), 1);
}

#[test]
fn a_rescue_does_not_let_those_go_who_come_after() {
    let turns = Turns::in_order();
    let first = turns.hosts.name(0);
    let site = r#"
- hosts: all
  become: true
  tasks:
    - block:
        - copy: {content: "bad\n", dest: /srv/turns/conf}
          notify: restart turns
        - meta: flush_handlers
      rescue:
        - debug: {msg: "the service did not come up"}
  handlers:
    - name: restart turns
      service: {name: turns, state: restarted}
      after: FIRST
"#;
    turns.project.write("site.yaml", &site.replace("FIRST", first));
    let rescued = turns.run("bad").ok().says(&format!("no turn: {first} failed, whose handlers come first"));
    assert_eq!((turns.starts(0, "bad"), turns.starts(1, "bad")), (1, 0), "{}", rescued.report());
    for host in 0..2 {
        assert_eq!(turns.look(host), state("one"), "{}", rescued.report());
    }
}

#[test]
fn orders_that_cannot_be_kept_are_told() {
    let turns = Turns::begin();
    let order = |after: &str| {
        let site = SITE.replace("serial: 1", &format!("serial: 1\n      after: {after}"));
        turns.project.write("site.yaml", &site);
    };
    order("\"{{ [inventory_hostname] | map('regex_replace', '$', 'x') | list }}\"");
    turns.run("two").ends(4).says(&format!("after: there is no host '{}x'; did you mean", turns.hosts.name(0)));
    order("[\"{{ ansible_play_hosts }}\", \"{{ 'x' | upper | replace('X', '') }}\"]");
    turns.run("two").ends(3).says("after: a host's name is empty").says("nothing was changed");
    // Each after all others.
    order("\"{{ ansible_play_hosts }}\"");
    turns.run("two").ends(4).says("whose handlers come first, waits for others itself");
    for host in 0..2 {
        assert_eq!(turns.look(host), state("one"));
        assert_eq!(turns.starts(host, "two"), 0);
    }
    order("\"{{ frist }}\"");
    turns.run("two").ends(3).says("'frist' is undefined").says("nothing was changed");
}
