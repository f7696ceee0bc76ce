//! The language, carried out for real: each playbook leaves lines in a file on the host, which tell what ran, in which order,
//! with which values.

use rollcall_tests::{Borrowed, Lab, Project};

const LOG: &str = "/srv/log";

struct Ground {
    hosts: Borrowed,
    project: Project,
}

impl Ground {
    fn new(count: usize) -> Self {
        let hosts = Lab::shared().borrow(count, "");
        let project = Project::new(&hosts.lab, hosts.hosts());
        Self { hosts, project }
    }

    /// Runs the playbook `site.yaml` and gives what it logged on the first host. `say` stands for logging a line.
    #[track_caller]
    fn run(&self, playbook: &str, code: i32) -> String {
        self.run_with(playbook, &[], code)
    }

    #[track_caller]
    fn run_with(&self, playbook: &str, more: &[&str], code: i32) -> String {
        for index in 0..self.hosts.hosts().count() {
            self.hosts.root(index, &format!("rm -f {LOG}; touch {LOG}; chmod 666 {LOG}")).ok();
        }
        self.project.write("site.yaml", &expand(playbook));
        self.project.controller(["run", "site.yaml"].into_iter().chain(more.iter().copied())).ends(code);
        self.log(0)
    }

    #[track_caller]
    fn log(&self, index: usize) -> String {
        self.hosts.read(index, LOG)
    }
}

/// `say: WORDS` becomes a task that logs the words.
fn expand(playbook: &str) -> String {
    let pattern = regex::Regex::new(r"(?m)\bsay: (.*)$").expect("a pattern");
    pattern
        .replace_all(playbook, |found: &regex::Captures| {
            format!("shell: 'echo \"{}\" >> {LOG}'", found[1].replace('\'', "''"))
        })
        .into_owned()
}

#[test]
fn conditions_loops_and_results() {
    let ground = Ground::new(1);
    let log = ground.run(
        r#"
- hosts: all
  vars:
    list: [1, 2, 3]
    map: {a: 1, b: 2}
    yes_: true
    home: "{{ lookup('env', 'HOME') }}"
    this_file: "{{ lookup('file', 'site.yaml') }}"
  tasks:
    - say: when
      when: yes_
    - say: never
      when: [yes_, not yes_]
    - say: item {{ item }}
      loop: "{{ list }}"
      when: item != 2
    - say: key {{ entry.key }}={{ entry.value }} at {{ n }} of {{ ansible_loop.length }}
      with_dict: "{{ map }}"
      loop_control: {loop_var: entry, index_var: n, extended: true, label: "{{ entry.key }}"}
    - command: printf 'a\nb'
      register: printed
      changed_when: false
    - say: registered {{ printed.stdout_lines | join('+') }} {{ printed.rc }} {{ printed is changed }}
    - shell: echo x >> /home/admin/count; wc -l < /home/admin/count
      register: count
      until: count.stdout | int >= 3
      retries: 5
      delay: 0.1
    - say: until {{ count.stdout }} after {{ count.attempts }}
    - command: "false"
      register: wrong
      ignore_errors: true
    - say: ignored {{ wrong is failed }} {{ wrong.rc }}
    - command: grep nothing /etc/hostname
      register: found
      failed_when: found.rc > 1
      changed_when: found.rc == 0
    - say: grep {{ found.rc }} {{ found is failed }} {{ found is changed }}
    - command: echo {{ item }}
      loop: [p, q]
      register: many
    - say: many {{ many.results | map(attribute='stdout') | join(',') }}
    - set_fact: {number: 42, text: "n{{ list | length }}"}
    - say: fact {{ number + 1 }} {{ text }}
    - copy: {content: x, dest: /home/admin/omitted, mode: "{{ nothing | default(omit) }}"}
    - say: environment $GREETING $OTHER
      environment: {GREETING: "hello {{ text }}", OTHER: "{{ number }}"}
    - say: lookup {{ home | length > 0 }} {{ this_file | length > 100 }}
"#,
        0,
    );
    assert_eq!(
        log,
        "when\nitem 1\nitem 3\nkey a=1 at 0 of 2\nkey b=2 at 1 of 2\nregistered a+b 0 False\nuntil 3 after 3\nignored True 1\n\
         grep 1 False False\nmany p,q\nfact 43 n3\nenvironment hello n3 42\nlookup True True\n"
    );
}

#[test]
fn blocks_rescue_and_early_ends() {
    let ground = Ground::new(1);
    let log = ground.run(
        r#"
- hosts: all
  tasks:
    - block:
        - say: block
        - name: breaks
          command: "false"
        - say: never
      rescue:
        - say: rescue of {{ ansible_failed_task.name }} rc {{ ansible_failed_result.rc }}
      always:
        - say: always
    - block:
        - block:
            - command: "false"
          always:
            - say: inner always
      rescue:
        - say: outer rescue
    - say: after
    - meta: end_host
      when: false
    - meta: end_play
    - say: never
- hosts: all
  tasks:
    - say: second play
    - meta: end_host
    - say: never
- hosts: all
  tasks:
    - say: never
"#,
        0,
    );
    assert_eq!(log, "block\nrescue of breaks rc 1\nalways\ninner always\nouter rescue\nafter\nsecond play\n");
    // A failure in a rescue ends the host; always runs all the same.
    let log = ground.run(
        "- hosts: all\n  tasks:\n    - block:\n        - command: 'false'\n      rescue:\n        - command: 'false'\n      always:\n        - say: always\n    - say: never\n",
        4,
    );
    assert_eq!(log, "always\n");
}

#[test]
fn handlers_run_once_in_order_and_when_flushed() {
    let ground = Ground::new(1);
    let log = ground.run(
        r#"
- hosts: all
  pre_tasks:
    - command: "true"
      notify: second
    - say: pre
  tasks:
    - command: "true"
      notify: [third, first]
    - command: "true"
      notify: [first, topic]
    - command: "true"
      changed_when: false
      notify: never
    - stat: {path: /etc/hostname}
      changed_when: true
      notify: fourth
    - say: before
    - meta: flush_handlers
    - say: between
    - command: "true"
      notify: chain
  post_tasks:
    - say: post
  handlers:
    - name: first
      say: first
    - name: second
      say: second
    - name: third
      say: third
      listen: topic
    - name: fourth
      say: fourth
    - name: chain
      say: chain
      notify: link
    - name: link
      say: link
    - name: never
      say: never
"#,
        0,
    );
    assert_eq!(log, "pre\nsecond\nbefore\nfirst\nthird\nfourth\nbetween\nchain\nlink\npost\n");
}

#[test]
fn debts_are_shown_and_paid_and_files_restored() {
    let ground = Ground::new(1);
    let owing = |broken: bool| {
        format!(
            "- hosts: all\n  become: true\n  tasks:\n    - copy: {{content: new, dest: /srv/conf}}\n      notify: applied\n    \
             - command: '{broken}'\n      changed_when: false\n  handlers:\n    - name: applied\n      say: applied\n"
        )
    };
    assert_eq!(ground.run(&owing(false), 4), "");
    ground.hosts.root(0, "/usr/local/lib/rollcall/agent-* status").ends(1).says("applied");
    ground.project.controller(["run", "site.yaml", "--check"]).says("applied");
    assert_eq!(ground.log(0), "", "check mode pays nothing");
    assert_eq!(ground.run(&owing(true), 0), "applied\n");
    ground.hosts.root(0, "/usr/local/lib/rollcall/agent-* status").ok().says("owed      nothing");

    // A handler that fails with the new file and works with the old one.
    let text = |value: &str| {
        format!(
            "- hosts: all\n  become: true\n  tasks:\n    - copy: {{content: {value}, dest: /srv/conf, mode: '0640'}}\n      notify: check\n  \
             handlers:\n    - name: check\n      shell: echo \"$(cat /srv/conf)\" >> {LOG}; grep --quiet good /srv/conf\n"
        )
    };
    assert_eq!(ground.run(&text("good1"), 0), "good1\n");
    assert_eq!(ground.run(&text("bad"), 4), "bad\ngood1\n");
    assert_eq!(ground.hosts.root(0, "cat /srv/conf; stat --format ' %a %U' /srv/conf").ok().out, "good1 640 root\n");
    assert_eq!(ground.run(&text("good2"), 0), "good2\n");
}

#[test]
fn includes_imports_and_roles() {
    let ground = Ground::new(1);
    for (path, text) in [
        ("tasks/imported.yaml", "- say: imported {{ word }}\n"),
        ("tasks/debian.yaml", "- say: for {{ facts.os.id }} {{ word }}\n"),
        ("tasks/item.yaml", "- say: included {{ item }}\n"),
        ("more.yaml", "word: from include_vars\nmap: {a: 1}\n"),
        ("play_vars.yaml", "filed: from vars_files\n"),
        ("group_vars/all.yaml", "grouped: group\nlayered: group\n"),
        ("roles/base_one/tasks/main.yaml", "- say: base_one\n"),
        ("roles/main_one/meta/main.yaml", "dependencies: [base_one]\n"),
        ("roles/main_one/defaults/main.yaml", "layered: default\nsize: 1\nfixed: default\n"),
        ("roles/main_one/vars/main.yaml", "fixed: role vars\n"),
        (
            "roles/main_one/tasks/main.yaml",
            "- say: main_one {{ layered }} {{ size }} {{ fixed }} {{ role_name }}\n- template: {src: t.j2, dest: /home/admin/t}\n  notify: role handler\n",
        ),
        ("roles/main_one/tasks/other.yaml", "- say: other tasks of main_one\n"),
        ("roles/main_one/templates/t.j2", "size {{ size }}\n{% if layered == 'group' %}grouped\n{% endif %}"),
        ("roles/main_one/handlers/main.yaml", "- name: role handler\n  say: role handler\n"),
    ] {
        ground.project.write(path, &expand(text));
    }
    let host = ground.hosts.name(0).to_owned();
    ground.project.write(&format!("host_vars/{host}.yaml"), "layered: host\n");
    let log = ground.run_with(
        r#"
- hosts: all
  vars: {word: from play}
  vars_files: [play_vars.yaml]
  roles:
    - {role: main_one, size: 2}
  tasks:
    - say: "{{ grouped }} {{ layered }} {{ filed }} {{ extra }}"
    - import_tasks: tasks/imported.yaml
      vars: {word: from import}
    - include_tasks: "tasks/{{ facts.os.id }}.yaml"
    - include_vars: more.yaml
    - say: "{{ word }} {{ map.a }}"
    - include_vars: {file: more.yaml, name: named}
    - say: "{{ named.map.a }}"
    - include_tasks: tasks/item.yaml
      loop: [x, y]
    - import_role: {name: main_one, tasks_from: other}
    - include_role: {name: base_one}
    - say: "{{ word }} {{ own }}"
      vars: {word: from task, own: own of the task}
"#,
        &["-e", "extra=given", "-e", "{\"filed\": \"from -e\"}"],
        0,
    );
    assert_eq!(
        log,
        "base_one\nmain_one host 2 role vars main_one\ngroup host from -e given\nimported from import\nfor debian from play\n\
         from include_vars 1\n1\nincluded x\nincluded y\nother tasks of main_one\nbase_one\nfrom include_vars own of the task\nrole handler\n"
    );
    assert_eq!(ground.hosts.read(0, "/home/admin/t"), "size 2\n");
}

#[test]
fn tags_choose_tasks() {
    let ground = Ground::new(1);
    let site = r"
- hosts: all
  tasks:
    - say: a
      tags: a
    - say: b
      tags: [b, common]
    - say: none
    - say: always
      tags: always
    - say: never
      tags: [never, asked]
";
    assert_eq!(ground.run_with(site, &["--tags", "a"], 0), "a\nalways\n");
    assert_eq!(ground.run_with(site, &["--skip-tags", "common,always"], 0), "a\nnone\n");
    assert_eq!(ground.run_with(site, &["--tags", "asked"], 0), "always\nnever\n");
    assert_eq!(ground.run_with(site, &["--tags", "untagged"], 0), "none\nalways\n");
}

#[test]
fn other_users_secrets_and_check_mode_per_task() {
    let ground = Ground::new(1);
    let secret = "s3cr3t-of-the-test";
    let site = format!(
        r#"
- hosts: all
  vars: {{password: {secret}}}
  tasks:
    - say: $(id -un)
    - say: $(id -un)
      become: true
    - say: $(id -un) $HOME
      become: true
      become_user: nobody
    - name: Hidden
      command: echo {{{{ password }}}}
      no_log: true
      register: hidden
    - name: Hidden in a loop
      command: echo {{{{ item }}}}
      loop: ["{{{{ password }}}}"]
      no_log: true
    - name: Hidden failure
      command: sh -c 'echo {{{{ password }}}} >&2; exit 1'
      no_log: true
      ignore_errors: true
    - name: Hidden content
      copy: {{content: "{{{{ password }}}}", dest: /home/admin/hidden, mode: "0600"}}
      no_log: true
    - say: checked
      check_mode: true
    - say: length {{{{ hidden.stdout | length }}}}
"#
    );
    let expected = format!("admin\nroot\nnobody /nonexistent\nlength {}\n", secret.len());
    assert_eq!(ground.run(&site, 0), expected);
    ground.hosts.root(0, "rm /home/admin/hidden").ok();
    for more in [&["--json"][..], &["-vvv"], &["--diff", "-vvv"], &["--check", "--diff", "-vvv"]] {
        let said = ground.project.controller(["run", "site.yaml"].into_iter().chain(more.iter().copied())).ok();
        assert!(!said.out.contains(secret) && !said.err.contains(secret), "{more:?} tells it\n{}", said.report());
    }
    ground.hosts.root(0, &format!("! journalctl --no-pager | grep --quiet {secret}")).ok();
}

/// `-e name=value` gives text.
#[test]
fn words_for_true_and_false_count_as_such_wherever_they_come_from() {
    let ground = Ground::new(1);
    let site = "- hosts: all\n  tasks:\n    - command: 'false'\n      ignore_errors: \"{{ whether }}\"\n    - say: $(id -un)\n    \
                - copy: {src: /srv/log, dest: /srv/copy, remote_src: \"{{ whether }}\"}\n    - say: $(cat /srv/copy) again\n";
    let log = ground.run_with(site, &["-e", "ansible_become=yes", "-e", "whether=True"], 0);
    assert_eq!(log, "root\nroot again\n");
    assert_eq!(ground.run_with(site, &["-e", "ansible_become=yes", "-e", "whether=no"], 4), "");
    ground.refuses(
        site,
        &["-e", "ansible_become=maybe", "-e", "whether=no"],
        5,
        &["'ansible_become' must be true or false"],
    );
}

#[test]
fn batches_delegation_and_limits_of_failure() {
    let ground = Ground::new(3);
    let names: Vec<String> = ground.hosts.hosts().map(|host| host.name.clone()).collect();
    let here = ground.project.path().join("here");
    let log = ground.run(
        &format!(
            r#"
- hosts: all
  serial: [1, 2]
  tasks:
    - say: batch {{{{ ansible_play_batch | join('+') }}}}
- hosts: all
  tasks:
    - command: echo once-{{{{ inventory_hostname }}}}
      run_once: true
      register: once
    - say: "{{{{ once.stdout }}}}"
    - command: hostname
      delegate_to: {last}
      register: other
    - say: delegated {{{{ other.stdout }}}}
    - shell: echo {{{{ inventory_hostname }}}} $(id -u) >> {here}
      delegate_to: localhost
    - say: sees {{{{ hostvars['{last}'].ansible_host }}}} {{{{ groups['all'] | length }}}}
"#,
            last = names[2],
            here = here.display()
        ),
        0,
    );
    let last = ground.hosts.host(2).address.clone();
    let hostname = format!("ip-{}", last.replace('.', "-"));
    assert_eq!(log, format!("batch {}\nonce-{}\ndelegated {hostname}\nsees {last} 3\n", names[0], names[0]));
    assert!(
        ground
            .log(1)
            .starts_with(&format!("batch {}+{}\nonce-{}\ndelegated {hostname}\n", names[1], names[2], names[0])),
        "{}",
        ground.log(1)
    );
    let told = std::fs::read_to_string(&here).expect("it was written on this machine");
    let mut told: Vec<&str> = told.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    told.sort_unstable();
    assert_eq!(told, names);

    // One failure of three is too many: the next batch does not begin.
    let fails = |limit: &str| {
        format!(
            "- hosts: all\n  serial: 1\n  {limit}\n  tasks:\n    - command: test {{{{ inventory_hostname }}}} != {}\n      changed_when: false\n    \
             - say: went on\n- hosts: all\n  tasks:\n    - say: second play\n",
            names[0]
        )
    };
    ground.run(&fails("max_fail_percentage: 0"), 4);
    assert_eq!((ground.log(1).as_str(), ground.log(2).as_str()), ("", ""));
    let together = format!(
        "- hosts: all\n  any_errors_fatal: true\n  tasks:\n    - command: test {{{{ inventory_hostname }}}} != {}\n      changed_when: false\n    \
         - command: sleep 2\n      changed_when: false\n    - say: never\n",
        names[0]
    );
    ground.run(&together, 4);
    assert_eq!((ground.log(1).as_str(), ground.log(2).as_str()), ("", ""));
    // Without a limit the others go on, and the host that failed has no part in the second play.
    assert_eq!(ground.run(&fails("gather_facts: true").replace("serial: 1", "serial: 3"), 4), "");
    assert_eq!(ground.log(1), "went on\nsecond play\n");
}

impl Ground {
    fn names(&self) -> Vec<String> {
        self.hosts.hosts().map(|host| host.name.clone()).collect()
    }

    /// A run of `site.yaml` that must end with this code and say this.
    #[track_caller]
    fn refuses(&self, playbook: &str, more: &[&str], code: i32, says: &[&str]) {
        self.project.write("site.yaml", &expand(playbook));
        let said = self.project.controller(["run", "site.yaml"].into_iter().chain(more.iter().copied())).ends(code);
        says.iter().fold(said, |said, text| said.says(text));
    }
}

#[test]
fn results_of_other_hosts() {
    let ground = Ground::new(3);
    let names = ground.names();
    for (path, text) in [
        ("templates/t.j2", "{% for h in groups['all'] %}{{ hostvars[h].token.stdout }} {% endfor %}"),
        ("templates/t.tera", "{% for h in groups.all %}{{ hostvars[h].token.stdout }} {% endfor %}"),
        ("tasks/more.yaml", "- say: inside {{ hostvars[first].number }}\n"),
    ] {
        ground.project.write(path, &expand(text));
    }
    let site = r#"
- hosts: all
  vars:
    first: "{{ groups['all'][0] }}"
    last: "{{ groups['all'][2] }}"
    of_first: "{{ hostvars[first].token.stdout }}"
    tokens: "{{ groups['all'] | map('extract', hostvars, 'token') | list }}"
  tasks:
    - command: sleep 2
      when: inventory_hostname == first
    - command: echo t-{{ inventory_hostname }}
      register: token
    - say: of all {% for h in groups['all'] %}{{ hostvars[h].token.stdout }} {% endfor %}
    - command: sleep 1
      when: inventory_hostname == last
    - set_fact: {number: "{{ token.stdout | length }}", only_last: "{{ inventory_hostname == last }}"}
    - say: by variable {{ of_first }} {{ tokens | map(attribute='stdout') | join('+') }}
    - say: facts {{ hostvars[item].facts.hostname }} {{ hostvars[item].number }}
      loop: "{{ groups['all'] }}"
      when: hostvars[item].only_last
    - template: {src: t.j2, dest: /home/admin/j2}
    - template: {src: t.tera, dest: /home/admin/tera}
    - command: "true"
      notify: told
    - block:
        - include_tasks: "tasks/{{ 'more' }}.yaml"
      when: hostvars[inventory_hostname].number == hostvars[first].number or true
    - command: echo {{ hostvars[last].number }}
      run_once: true
      register: once
    - say: once {{ once.stdout }} {{ hostvars['nobody'] is defined }} {{ hostvars[first].nothing is defined }}
  handlers:
    - name: told
      say: handler {{ hostvars[last].token.stdout }}
- hosts: all
  tasks:
    - say: second play {{ hostvars[groups['all'][1]].token.stdout }}
"#;
    ground.run(site, 0);
    let tokens: Vec<String> = names.iter().map(|name| format!("t-{name}")).collect();
    let address = ground.hosts.host(2).address.replace('.', "-");
    let length = |index: usize| tokens[index].len();
    let expected = format!(
        "of all {} \nby variable {} {}\nfacts ip-{address} {}\ninside {}\nonce {} False False\nhandler {}\nsecond play {}\n",
        tokens.join(" "),
        tokens[0],
        tokens.join("+"),
        length(2),
        length(0),
        length(2),
        tokens[2],
        tokens[1],
    );
    for (index, name) in names.iter().enumerate() {
        assert_eq!(ground.log(index), expected, "{name}");
        for file in ["j2", "tera"] {
            let rendered = ground.hosts.read(index, &format!("/home/admin/{file}"));
            assert_eq!(rendered, format!("{} ", tokens.join(" ")), "{file} on {name}");
        }
    }
    // A plan knows facts and what set_fact gives; what a command would have said it does not know, on any host.
    let said = ground.project.controller(["plan", "site.yaml", "--json"]).ok();
    let ends = said.out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an event"));
    let ends: Vec<_> =
        ends.filter(|event| event["event"] == "task" && event["result"]["module"] == "template").collect();
    assert_eq!(ends.len(), 6, "two templates on three hosts\n{}", said.report());
    for end in ends {
        assert_eq!(end["result"]["status"], "may_change", "{end}");
    }
    assert!(!said.out.contains(r#""status":"failed""#), "{}", said.report());
}

#[test]
fn results_of_other_hosts_in_batches_and_after_failures() {
    let ground = Ground::new(3);
    let names = ground.names();
    let seen =
        "{% for h in groups['all'] if hostvars[h].token is defined %}{{ hostvars[h].token.stdout }} {% endfor %}";
    ground.run(
        &format!("- hosts: all\n  serial: 1\n  tasks:\n    - command: echo t-{{{{ inventory_hostname }}}}\n      register: token\n    - say: seen {seen}\n"),
        0,
    );
    for index in 0..3 {
        let tokens: Vec<String> = names[..=index].iter().map(|name| format!("t-{name}")).collect();
        assert_eq!(ground.log(index), format!("seen {} \n", tokens.join(" ")));
    }
    // The second host fails: nobody waits for it, and what it had set is there.
    ground.run(
        &format!(
            r#"
- hosts: all
  tasks:
    - command: echo early-{{{{ inventory_hostname }}}}
      register: early
    - command: sh -c 'sleep 1; test {{{{ inventory_hostname }}}} != {second}'
      changed_when: false
    - command: echo late
      register: late
    - say: "{{{{ hostvars['{second}'].early.stdout }}}} {{{{ hostvars['{second}'].late.stdout | default('nothing') }}}}"
- hosts: all
  tasks:
    - say: "{{{{ hostvars['{second}'].early.stdout }}}}"
    - say: "{{{{ hostvars['{second}'].late.stdout }}}}"
"#,
            second = names[1]
        ),
        4,
    );
    for index in [0, 2] {
        assert_eq!(ground.log(index), format!("early-{0} nothing\nearly-{0}\n", names[1]));
    }
    // Hosts that go different ways do not wait for each other for ever.
    let ways = format!(
        r"
- hosts: all
  tasks:
    - command: echo x
      register: x
    - block:
        - command: test {{{{ inventory_hostname }}}} != {first}
          changed_when: false
        - say: block {{{{ hostvars['{first}'].x.stdout }}}}
      rescue:
        - say: rescue {{{{ hostvars['{last}'].x.stdout }}}}
    - command: echo y
      register: y
    - say: after {{{{ hostvars['{first}'].y.stdout }}}} {{{{ hostvars['{last}'].y.stdout }}}}
",
        first = names[0],
        last = names[2]
    );
    assert_eq!(ground.run(&ways, 0), "rescue x\nafter y y\n");
    assert_eq!(ground.log(2), "block x\nafter y y\n");
}

#[test]
fn results_of_other_hosts_that_are_not_there() {
    let ground = Ground::new(2);
    let names = ground.names();
    let (first, second) = (names[0].as_str(), names[1].as_str());
    let site = |set: &str, ask: &str| {
        format!(
            "- hosts: all\n  vars: {{key: token}}\n  tasks:\n    - command: echo s3cr3t-words\n      register: token\n{set}    - debug:\n        msg: \"{ask}\"\n"
        )
    };
    let asks = format!("{{{{ hostvars['{second}'].token.stdout }}}}");
    // Before anything is changed.
    ground.refuses(
        &site("", &asks),
        &["--limit", first],
        3,
        &[&format!("'{second}' does not take part in this run"), "site.yaml:7", "--limit"],
    );
    let computed = format!("{{{{ hostvars['{second}'][key] }}}}");
    ground.refuses(
        &site("", &computed),
        &[],
        3,
        &["by a name that cannot be seen before the run", "write the name out", "site.yaml:7"],
    );
    let misspelt = format!("{{{{ hostvars['{second}'].tokn.stdout }}}}");
    ground.refuses(&site("", &misspelt), &[], 3, &["no task sets it", "did you mean 'token'?"]);
    ground.refuses(
        &site("", "{{ hostvars['nobody'].token }}"),
        &[],
        3,
        &["there is no host 'nobody' in the inventory"],
    );
    // In the run.
    let skipped = format!("      when: inventory_hostname == '{first}'\n");
    ground.refuses(
        &site("      no_log: true\n", &asks),
        &[],
        4,
        &[&format!("'token' of '{second}' is secret"), "no_log"],
    );
    let derived = "      no_log: true\n    - set_fact: {copied: \"{{ token.stdout }}\"}\n      no_log: false\n";
    ground.refuses(
        &site(derived, &asks.replace("token", "copied")),
        &[],
        4,
        &[&format!("'copied' of '{second}' is secret")],
    );
    let unset = site(&skipped, &asks.replace("token", "only"))
        .replace("register: token", "register: token\n      changed_when: false");
    let unset = unset.replace("    - debug", &format!("    - set_fact: {{only: {{stdout: x}}}}\n{skipped}    - debug"));
    ground.refuses(
        &unset,
        &[],
        4,
        &[&format!("'{second}' runs, but has not set 'only' (it is set at site.yaml:8)"), "skipped there"],
    );
    let later = site("", &asks).replace("- hosts: all\n", "- hosts: all\n  serial: 1\n");
    ground.refuses(&later, &[], 4, &[&format!("'{second}' has not begun its part of this run"), "earlier batch"]);
    // One that cannot be reached is waited for by nobody.
    ground.project.write(&format!("host_vars/{second}.yaml"), "ansible_port: 1\n");
    let lost = site("", &asks).replace("- hosts: all\n", "- hosts: all\n  ignore_unreachable: true\n");
    ground.refuses(&lost, &[], 4, &[&format!("'{second}' could not be reached in this run")]);
}

#[test]
fn roles_and_files_that_the_host_picks() {
    let ground = Ground::new(1);
    for (path, text) in [
        (
            "roles/os_debian/tasks/main.yaml",
            "- say: debian {{ size }} {{ role_name }}\n- copy: {src: f, dest: /home/admin/f}\n  notify: picked\n",
        ),
        ("roles/os_debian/tasks/other.yaml", "- say: other of debian\n"),
        ("roles/os_debian/files/f", "from the role\n"),
        ("roles/os_debian/defaults/main.yaml", "size: 7\n"),
        ("roles/os_debian/handlers/main.yaml", "- name: picked\n  say: handler of debian\n"),
        ("roles/os_plan9/tasks/main.yaml", "- say: never {{ nowhere }}\n- assert: {that: [false]}\n"),
        ("roles/extra/tasks/main.yaml", "- say: extra {{ item }}\n"),
        ("tasks/for-debian.yaml", "- say: tasks for debian\n"),
    ] {
        ground.project.write(path, &expand(text));
    }
    let log = ground.run(
        r#"
- hosts: all
  tasks:
    - include_role: {name: "os_{{ facts.os.id }}"}
    - include_role: {name: "os_{{ facts.os.id }}", tasks_from: other}
    - command: echo extra
      register: wanted
    - include_role: {name: "{{ item }}"}
      loop: ["{{ wanted.stdout }}", os_debian]
    - include_tasks: "tasks/for-{{ facts.os.id }}.yaml"
"#,
        0,
    );
    assert_eq!(
        log,
        "debian 7 os_debian\nother of debian\nextra extra\ndebian 7 os_debian\ntasks for debian\nhandler of debian\n"
    );
    assert_eq!(ground.hosts.read(0, "/home/admin/f"), "from the role\n");
    // In a plan the name that a command would have said is not known.
    ground.project.controller(["plan", "site.yaml"]).ok().says("debian");

    // What is wrong with a role that can be meant is told before the run; so is a name that cannot be.
    let one =
        |name: &str| format!("- hosts: all\n  tasks:\n    - say: begun\n    - include_role: {{name: \"{name}\"}}\n");
    ground.refuses(
        &one("os_{{ facts.arch }}"),
        &[],
        3,
        &["no role 'os_x86_64' that 'os_{{ facts.arch }}' can mean", "known: os_debian, os_plan9"],
    );
    ground.refuses(&one("nix_{{ facts.os.id }}"), &[], 3, &["no role can be meant by 'nix_{{ facts.os.id }}'"]);
    ground.project.write("roles/os_plan9/tasks/main.yaml", "- comand: ls\n");
    ground.refuses(
        &one("os_{{ facts.os.id }}"),
        &[],
        3,
        &["unknown keyword or module 'comand'", "roles/os_plan9/tasks/main.yaml:1"],
    );
    ground.project.write("roles/os_plan9/tasks/main.yaml", "- command: ls\n");
    let named = "- hosts: all\n  tasks:\n    - command: echo os_debain\n      register: r\n    - include_role: {name: \"{{ r.stdout }}\"}\n";
    ground.refuses(named, &[], 4, &["no role 'os_debain'", "did you mean 'os_debian'?"]);
    ground.refuses(
        "- hosts: all\n  tasks:\n    - import_role: {name: \"os_{{ facts.os.id }}\"}\n",
        &[],
        3,
        &["must be known before the run"],
    );
}
