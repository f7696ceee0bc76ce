//! Jobs, namespaces and variables on a real Nomad: what its plan says is shown and done, a run ends when the job is well, and says why
//! where it does not become so.

use rollcall_tests::{Borrowed, Lab, Project, Said};
use serde_json::{Value, json};

/// A service whose deployment is done soon. What stands in double braces is Nomad's.
const SHOP: &str = r#"
variable "count" {
  type    = number
  default = 1
}
variable "word" {
  type    = string
  default = "hello"
}
variable "namespace" {
  type    = string
  default = "shop"
}
job "shop" {
  namespace = var.namespace
  update {
    min_healthy_time  = "1s"
    healthy_deadline  = "20s"
    progress_deadline = "30s"
  }
  group "web" {
    count = var.count
    restart { attempts = 0 }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "sell" {
      driver = "exec"
      config {
        command = "/bin/sh"
        args    = ["-c", "cat local/word; exec sleep 3600"]
      }
      template {
        data        = "${var.word} {{ with nomadVar \"nomad/jobs/shop\" }}{{ .greeting }} {{ .password }}{{ end }}\n"
        destination = "local/word"
      }
      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
"#;

const JOBS: &str = r#"
- hosts: nomad_servers
  become: true
  vars: {state: present, count: 1, word: hello, greeting: welcome, purge: false, timeout: 60}
  tasks:
    - nomad_namespace: {name: shop, description: what customers see, meta: {owner: "{{ word }}"}}
      when: state == 'present'
    - nomad_variable:
        path: nomad/jobs/shop
        namespace: shop
        items: {greeting: "{{ greeting }}"}
        items_from: {password: app/password}
        state: present
      when: state == 'present'
    - nomad_job:
        src: shop.nomad.hcl
        variables: {count: "{{ count | int }}", word: "{{ word }}"}
        timeout: "{{ timeout }}"
        purge: "{{ purge }}"
        state: "{{ state }}"
      register: shop
"#;

/// A batch job, a system job, and one whose time comes later; `end` is how the first ends.
const OTHERS: &str = r#"
- hosts: nomad_servers
  become: true
  vars: {end: 0, until: complete}
  tasks:
    - nomad_job:
        content: |
          job "once" {
            type = "batch"
            group "one" {
              restart { attempts = 0 }
              reschedule {
                attempts  = 0
                unlimited = false
              }
              task "go" {
                driver = "exec"
                config {
                  command = "/bin/sh"
                  args    = ["-c", "sleep 1; exit {{ end }}"]
                }
                resources {
                  cpu    = 20
                  memory = 32
                }
              }
            }
          }
        until: "{{ until }}"
        timeout: 40
    - nomad_job:
        content:
          Job:
            ID: everywhere
            Type: system
            TaskGroups:
              - Name: one
                Tasks:
                  - Name: stay
                    Driver: exec
                    Config: {command: /bin/sleep, args: ["3600"]}
                    Resources: {CPU: 20, MemoryMB: 32}
        timeout: 40
    - nomad_job:
        content: |
          job "nightly" {
            type = "batch"
            periodic { crons = ["0 3 * * *"] }
            group "one" {
              task "go" {
                driver = "exec"
                config { command = "/bin/true" }
              }
            }
          }
"#;

/// A server and a client, and their project.
struct Cluster {
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn new() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(2, "");
        let inventory = hosts.inventory(&[("nomad_servers", 1), ("nomad_clients", 1)]);
        let status = lab.status();
        let vars =
            format!("nomad_mirror: {}\nnomad_bind_cidr: {}\nbase_time_sync: chrony\n", status.mirror, status.subnet);
        let project = Project::new(&lab, hosts.hosts())
            .file("inventory.yaml", &inventory)
            .file("group_vars/all.yaml", &vars)
            .file("files/shop.nomad.hcl", SHOP)
            .file("jobs.yaml", JOBS)
            .file("others.yaml", OTHERS);
        let settings = project.settings();
        project.write(
            "rollcall.yaml",
            &format!("cluster: test\nstore:\n  type: file\n  grants: {{app/password: [nomad_servers]}}\n{settings}"),
        );
        let cluster = Self { hosts, project };
        cluster
            .project
            .shell(&format!(
                "echo opensesame | '{}' secret put app/password",
                rollcall_tests::program("controller").display()
            ))
            .ok();
        cluster.run("nomad.yaml", &[]).ok();
        cluster
    }

    fn run(&self, playbook: &str, more: &[&str]) -> Said {
        self.project.controller(["run", playbook, "--json"].into_iter().chain(more.iter().copied()))
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        self.hosts.root(0, &format!("curl --silent --fail 'http://127.0.0.1:4646/v1/{path}'")).ok().json()
    }

    /// How many versions of a job there are: how often it was registered.
    #[track_caller]
    fn versions(&self, job: &str) -> usize {
        self.get(&format!("job/{job}/versions?namespace=shop"))["Versions"].as_array().map_or(0, Vec::len)
    }
}

#[test]
fn jobs_are_as_their_text_says_and_well_when_the_run_ends() {
    let cluster = Cluster::new();
    // A check of what is not there yet: nothing is made, and the job's namespace is missing.
    let checked = cluster.run("jobs.yaml", &["--check"]);
    checked.ends(4).says("nomad_namespace makes the namespace 'shop'");
    let first = cluster.run("jobs.yaml", &["--diff"]).ok().never_says("opensesame");
    assert_eq!(first.counted("changed"), 3, "{}", first.report());
    let first = first.says("web: 1 to place").says("Driver: exec");
    assert!(first.out.contains("content hidden") || !first.out.contains("welcome"), "{}", first.report());
    // The task has what the variable and the text say.
    let word = "cat /var/lib/nomad/alloc/*/sell/local/word";
    assert_eq!(cluster.hosts.root(1, word).ok().text(), "hello welcome opensesame");
    for more in [&[][..], &["--check"]] {
        let again = cluster.run("jobs.yaml", more).ok();
        assert_eq!(again.counted("changed") + again.counted("may_change"), 0, "{}", again.report());
    }
    assert_eq!(cluster.versions("shop"), 1);

    // What a change would do is shown by a check, which does it not.
    let more = ["--diff", "-e", "count=2", "-e", "word=goodbye"];
    let planned = cluster.run("jobs.yaml", &[&more[..], &["--check"]].concat()).ok();
    let planned = planned
        .says("Count: 2  # forces create")
        .says("web: 1 to place")
        .says("forces create/destroy update")
        .says("owner: goodbye");
    assert_eq!(planned.counted("changed"), 2, "{}", planned.report());
    assert_eq!(cluster.versions("shop"), 1);
    cluster.run("jobs.yaml", &more).ok();
    let deployment = cluster.get("job/shop/deployment?namespace=shop");
    assert_eq!(
        (&deployment["Status"], &deployment["TaskGroups"]["web"]["HealthyAllocs"]),
        (&json!("successful"), &json!(2))
    );
    assert_eq!(cluster.run("jobs.yaml", &more).ok().counted("changed"), 0);

    what_does_not_become_well_says_why(&cluster);
    what_is_wrong_is_told_with_its_line(&cluster);

    let gone = cluster.run("jobs.yaml", &["-e", "state=absent"]).ok();
    assert_eq!(gone.counted("changed"), 1, "{}", gone.report());
    assert_eq!(cluster.get("job/shop?namespace=shop")["Stop"], true);
    assert_eq!(cluster.run("jobs.yaml", &["-e", "state=absent"]).ok().counted("changed"), 0);
    assert_eq!(cluster.run("jobs.yaml", &["-e", "state=absent", "-e", "purge=true"]).ok().counted("changed"), 1);
    assert_eq!(cluster.get("jobs?namespace=shop"), json!([]));

    // Nomad is down.
    cluster.hosts.root(0, "systemctl stop nomad").ok();
    let down = cluster.run("others.yaml", &[]).ends(4).says("POST http://127.0.0.1:4646/v1/jobs/parse");
    down.says("onnection refused");
}

fn what_does_not_become_well_says_why(cluster: &Cluster) {
    let broken = SHOP.replace("exec sleep 3600", "exit 3");
    cluster.project.write("files/shop.nomad.hcl", &broken);
    cluster
        .run("jobs.yaml", &[])
        .ends(4)
        .says("its deployment has failed")
        .says("task 'sell': Terminated: Exit Code: 3");
    // It stays so in the next run, and nothing is registered again.
    let before = cluster.versions("shop");
    cluster.run("jobs.yaml", &[]).ends(4).says("its deployment has failed");
    assert_eq!(cluster.versions("shop"), before);
    // No client can: told by the plan, and when the time is up.
    let nowhere = SHOP.replace("driver = \"exec\"", "driver = \"docker\"");
    cluster.project.write("files/shop.nomad.hcl", &nowhere);
    let late = cluster.run("jobs.yaml", &["-e", "timeout=4"]).ends(4).says("after 4 s its deployment is not done");
    late.says("group 'web' cannot be placed: 1 client cannot: missing drivers");
    cluster.project.write("files/shop.nomad.hcl", SHOP);
    cluster.run("jobs.yaml", &[]).ok();

    // Jobs that have no deployment.
    let others = cluster.run("others.yaml", &[]).ok();
    assert_eq!(others.counted("changed"), 3, "{}", others.report());
    let of = |job: &str| cluster.get(&format!("job/{job}/allocations"))[0]["ClientStatus"].clone();
    assert_eq!((of("once"), of("everywhere")), (json!("complete"), json!("running")));
    assert_eq!(cluster.run("others.yaml", &[]).ok().counted("changed"), 0);
    cluster.run("others.yaml", &["-e", "end=4"]).ends(4).says("job 'once' has failed").says("xit Code: 4");
}

fn what_is_wrong_is_told_with_its_line(cluster: &Cluster) {
    cluster.project.write("files/shop.nomad.hcl", &SHOP.replace("count = var.count", "count = var.cuont"));
    let wrong = cluster.run("jobs.yaml", &[]).ends(4).says("shop.nomad.hcl:22,").says("22 |     count = var.cuont");
    assert_eq!(wrong.counted("changed"), 0);
    cluster.project.write("files/shop.nomad.hcl", &SHOP.replace("default = \"shop\"", "default = \"shopp\""));
    cluster
        .run("jobs.yaml", &[])
        .ends(4)
        .says("nonexistent namespace")
        .says("nomad_namespace makes the namespace 'shopp'");
    cluster.project.write("files/shop.nomad.hcl", &SHOP.replace("driver = \"exec\"", ""));
    cluster.run("jobs.yaml", &[]).ends(4).says("Missing task driver");
    cluster.project.write("files/shop.nomad.hcl", SHOP);
}
