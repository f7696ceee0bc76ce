//! The ACLs of a cluster, killed at each of their steps: the controller and its agent are ended (-9) when a task of the role has ended
//! and the next is at work, from the secret that is put in the store to the token that the agent itself uses. The next run finishes.

use std::time::Duration;

use rollcall_tests::{Borrowed, Lab, Project, counted, kill_after, say};
use serde_json::Value;

/// What differs between the products.
struct Product {
    name: &'static str,
    port: u16,
    header: &'static str,
    /// Part of how a token looks that may do everything.
    management: &'static str,
}

const CONSUL: Product =
    Product { name: "consul", port: 8500, header: "X-Consul-Token", management: "global-management" };
const NOMAD: Product = Product { name: "nomad", port: 4646, header: "X-Nomad-Token", management: "\"management\"" };

/// The role's task that bootstraps; what comes after it provides for the node, DNS and operators.
const BOOTSTRAP: &str = "The cluster's first token";
const AGENT: &str = "pkill --signal KILL '^agent-' || true";

struct Ground {
    product: Product,
    hosts: Borrowed,
    project: Project,
}

impl Ground {
    fn new(product: Product) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(1, "");
        let (name, status) = (product.name, lab.status());
        let group = format!("{name}_servers");
        let vars = format!(
            "{name}_mirror: {}\n{name}_bind_cidr: {}\n{name}_acl: true\nbase_time_sync: chrony\n",
            status.mirror, status.subnet
        );
        let project = Project::new(&lab, hosts.hosts())
            .file("inventory.yaml", &hosts.inventory(&[(&group, 1)]))
            .file("group_vars/all.yaml", &vars)
            .file("servers.yaml", &format!("- hosts: {group}\n  become: true\n  roles: [{name}]\n"));
        project.add_settings("cluster: test\n");
        project.controller(["run", "servers.yaml"]).ok();
        Self { product, hosts, project }
    }

    /// A server that knows nothing, and a store without what belonged to it.
    fn begin(&self) {
        let name = self.product.name;
        let wipe = format!(
            "systemctl kill --signal KILL {name}; systemctl stop {name}; rm -rf /var/lib/{name}/*; systemctl start {name}"
        );
        self.hosts.root(0, &wipe).ok();
        let names = self.project.controller(["secret", "list", &format!("{name}/")]).ok();
        for secret in names.out.lines() {
            self.project.controller(["secret", "delete", secret, "--force"]).ok();
        }
    }

    /// What has to be there after a run that nobody disturbed.
    fn is_finished(&self) -> Result<(), String> {
        let said = say(&self.project, &["run", "servers.yaml", "--json"]);
        if said.code != 0 {
            return Err(said.report());
        }
        let Product { name, port, header, management } = &self.product;
        let token = self.project.controller(["secret", "get", &format!("{name}/management")]).ok();
        let look =
            format!("curl --silent --fail --header '{header}: {}' http://127.0.0.1:{port}/v1/acl/tokens", token.text());
        let tokens: Value = self.hosts.root(0, &look).ok().json();
        let count = tokens.as_array().into_iter().flatten().filter(|t| t.to_string().contains(management)).count();
        let again = say(&self.project, &["run", "servers.yaml", "--json"]).ok();
        match (count, again.counted("changed")) {
            (1, 0) => Ok(()),
            (count, changed) => Err(format!("{count} management tokens, {changed} changes later: {tokens}")),
        }
    }
}

/// How many lines a run says until a task ends, for the one that bootstraps and each that follows it.
fn steps(lines: &str) -> Vec<usize> {
    let ends = lines.lines().enumerate().filter_map(|(line, text)| {
        let event: Value = serde_json::from_str(text).ok()?;
        (event["event"] == "task").then(|| (line + 1, event["result"]["name"].as_str().unwrap_or_default().to_owned()))
    });
    let ends: Vec<(usize, String)> = ends.collect();
    let first = ends.iter().position(|(_, name)| name.ends_with(BOOTSTRAP)).expect("the role bootstraps");
    // The line before: it is killed while it bootstraps, too.
    ends[first.saturating_sub(1)..ends.len()].iter().map(|(line, _)| *line).collect()
}

fn killed_at_each_step(product: Product) {
    let ground = Ground::new(product);
    ground.begin();
    let whole = ground.project.controller(["run", "servers.yaml", "--json"]).ok();
    let steps = steps(&whole.out);
    assert!(steps.len() > 4, "{}", whole.report());
    let mut failed = Vec::new();
    for (turn, step) in steps.iter().enumerate() {
        ground.begin();
        // At once, in the middle, or late in what follows.
        let delay = Duration::from_millis([0, 60, 250][turn % 3]);
        let said = kill_after(&ground.project, &["run", "servers.yaml", "--json"], *step, delay);
        ground.hosts.root(0, AGENT).ok();
        if let Err(why) = ground.is_finished() {
            failed.push(format!("after {:?}, {delay:?}: {why}", said.last()));
        }
    }
    let all = steps.len() as u64;
    counted(
        &format!("{}'s ACLs killed (-9) at each step of role {0}, finished by the next run", ground.product.name),
        all - failed.len() as u64,
        all,
    );
    assert!(failed.is_empty(), "{} of {all}\n\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
fn consuls_acls_that_are_killed_at_a_step_are_finished_by_the_next_run() {
    killed_at_each_step(CONSUL);
}

#[test]
fn nomads_acls_that_are_killed_at_a_step_are_finished_by_the_next_run() {
    killed_at_each_step(NOMAD);
}
