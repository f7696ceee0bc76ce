use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    sync::Arc,
};

use anyhow::bail;
use clap::Args as ClapArgs;
use rollcall_engine::{
    diag::Sources,
    inventory::aws_ec2::{Account, Query, discover},
    secrets::{
        Name,
        ownership::{Readers, Rule, node_part},
    },
};
use serde_json::{Value, json};

use super::{
    operate::{Ended, Operator, Product, Way, Work},
    token::Told,
};
use crate::{context, exit::Exit, options::Show};

/// Forget a node that is gone: its tokens and its policy are revoked, its secrets leave the store, Consul and Nomad stop waiting for it.
///
/// Of Nomad it is a client that is purged, or a server that no longer votes. Both products are asked that the inventory has servers of.
///
/// A node is gone when you say so, or when EC2 says that its instance is terminated (`--terminated`). That it is missing from an
/// inventory, a limit or a region means nothing. One that is alive is not forgotten: stop it first, or say --force.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  controller forget web-3
  controller forget web-3 --product consul
  controller forget --terminated")]
pub(crate) struct Args {
    /// The node's name.
    #[arg(required_unless_present = "terminated", conflicts_with = "terminated")]
    node: Option<String>,
    /// All nodes whose tokens were made for an instance that EC2 calls terminated. EC2 tells of it for about an hour.
    #[arg(long)]
    terminated: bool,
    /// Also a node that is alive: its agent has no token from then on.
    #[arg(long, conflicts_with = "terminated")]
    force: bool,
    /// By one product only. Without it: by each that the inventory has servers of.
    #[arg(long)]
    product: Option<Product>,
    #[command(flatten)]
    way: Way,
}

/// Values that one filter of EC2 takes.
const FILTER: usize = 200;

/// The verb.
pub(crate) async fn run(args: Args, show: Show, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    if let Some(node) = &args.node
        && (node.contains('/') || Name::new(&format!("consul/token/agent/{}", node_part(node))).is_err())
    {
        bail!("'{node}' is no name of a node");
    }
    let operator = Operator::new(args.way.clone(), show, sources).await?;
    match args.node {
        Some(node) => {
            if operator.inventory.host(&node).is_some() {
                context::eprint_line(&format!(
                    "'{node}' is in the inventory: the next run of it makes it a member with new tokens"
                ));
            }
            forget(&operator, args.product, &node, args.force).await
        }
        None => terminated(&operator, args.product).await,
    }
}

/// Has a server of a product do something about its cluster; a node that is to be forgotten is not asked about itself.
async fn ask(
    operator: &Operator,
    product: Product,
    without: Option<&str>,
    tasks: &str,
    vars: Value,
) -> anyhow::Result<Ended> {
    let work = Work {
        name: "controller forget",
        groups: product.servers(),
        without,
        once: true,
        role: product.name(),
        tasks,
        vars,
    };
    operator.work(&work).await
}

async fn forget(operator: &Operator, of: Option<Product>, node: &str, force: bool) -> anyhow::Result<Exit> {
    // Nomad goes first: it notices later than Consul that a node is gone, and refuses before anything is taken from it.
    let products: Vec<Product> = [Product::Nomad, Product::Consul]
        .into_iter()
        .filter(|product| of.map_or_else(|| !operator.hosts(product.servers()).is_empty(), |of| of == *product))
        .collect();
    if products.is_empty() {
        bail!("the inventory has no host in consul_servers or nomad_servers: there is nobody to ask");
    }
    let mut was = BTreeMap::new();
    for product in products {
        let vars = json!({ "forget_node": node, "forget_force": force });
        let ended = ask(operator, product, Some(node), "operate_forget", vars).await?;
        if !ended.is_done_once() {
            ended.tell();
            return Ok(ended.exit());
        }
        let module = format!("{}_member", product.name());
        let told = ended.of_module(&module).and_then(|r| r.result.get("was")?.as_str());
        was.insert(product.name(), told.filter(|was| *was != "none").unwrap_or("no member").to_owned());
    }
    let mut gone = 0;
    for product in was.keys() {
        for name in operator.list(&format!("{product}/")).await?.iter().filter(|name| is_of(name, node)) {
            operator.delete(name).await?;
            gone += 1;
        }
    }
    writeln!(std::io::stdout(), "'{node}' is forgotten (it was {}; {gone} secrets left the store)", told(&was))?;
    Ok(Exit::Done)
}

/// What a node was; where Consul alone was asked, that goes without saying.
fn told(was: &BTreeMap<&str, String>) -> String {
    if let (1, Some(alone)) = (was.len(), was.get("consul")) {
        return alone.clone();
    }
    was.iter().map(|(product, was)| format!("{was} in {product}")).collect::<Vec<_>>().join(", ")
}

/// A secret that is one node's own.
fn is_of(name: &Name, node: &str) -> bool {
    Rule::of(name).is_some_and(|rule| {
        matches!(rule.readers, Readers::OwnAnd(..)) && rule.node(name) == Some(node_part(node).as_str())
    })
}

/// The node and the instance of a node's token, of its Consul agent or its Nomad agent: `Made by Rollcall: agent web-3 (i-0123)`.
fn instance(description: &str) -> Option<(&str, &str)> {
    let purpose = description.strip_prefix("Made by Rollcall: ")?;
    let of = purpose.strip_prefix("agent ").or_else(|| purpose.strip_prefix("nomad "))?;
    let (node, rest) = of.split_once(" (")?;
    let id = rest.strip_suffix(')')?;
    id.starts_with("i-").then_some((node, id))
}

async fn terminated(operator: &Operator, of: Option<Product>) -> anyhow::Result<Exit> {
    let ended = ask(operator, Product::Consul, None, "operate_tokens", json!({})).await?;
    let Some(listed) = ended.of_module("consul_acl_tokens").filter(|_| ended.is_done_once()) else {
        ended.tell();
        return Ok(ended.exit());
    };
    let tokens = Told::of(listed)?;
    // A node has several, which are one.
    let known: BTreeSet<(&str, &str)> = tokens.iter().filter_map(|token| instance(&token.description)).collect();
    let mut accounts: Vec<(Account, BTreeSet<String>)> = Vec::new();
    for host in operator.inventory.hosts().filter_map(|host| host.instance.as_ref()) {
        match accounts.iter_mut().find(|(account, _)| *account == host.account) {
            Some((_, regions)) => drop(regions.insert(host.region.clone())),
            None => accounts.push((host.account.clone(), BTreeSet::from([host.region.clone()]))),
        }
    }
    if accounts.is_empty() {
        bail!("no host of the inventory is an EC2 instance: there is no account to ask; hint: controller forget NODE");
    }
    let mut ids: BTreeSet<String> = BTreeSet::new();
    for (account, regions) in accounts.into_iter().filter(|_| !known.is_empty()) {
        let names: BTreeSet<String> = known.iter().map(|(_, id)| (*id).to_owned()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let state = || ("instance-state-name".to_owned(), vec!["terminated".to_owned()]);
        let include = names.chunks(FILTER).map(|ids| vec![("instance-id".to_owned(), ids.to_vec()), state()]).collect();
        let query = Query {
            account,
            regions: regions.into_iter().collect(),
            include,
            exclude: Vec::new(),
            strict_permissions: true,
        };
        let found = discover(&query).await.map_err(|error| {
            let hint = error.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            anyhow::anyhow!("{:#}{hint}", anyhow::Error::new(error))
        })?;
        ids.extend(found.instances.into_iter().map(|instance| instance.id));
    }
    let gone: Vec<&(&str, &str)> = known.iter().filter(|(_, id)| ids.contains(*id)).collect();
    if gone.is_empty() {
        writeln!(std::io::stdout(), "of {} nodes with an instance EC2 calls none terminated", known.len())?;
        return Ok(Exit::Done);
    }
    let mut worst = Exit::Done;
    for (node, id) in gone {
        context::eprint_line(&format!("{node}: EC2 calls {id} terminated"));
        // What is alive under that name now is another machine.
        worst = worst.max(forget(operator, of, node, true).await?);
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_nodes_own_goes_with_it() {
        let of = |name: &str| is_of(&Name::new(name).unwrap(), "Web-3");
        assert!(
            of("consul/token/agent/web-3") && of("consul/token-next/agent/web-3") && of("consul/token/nomad/web-3")
        );
        for other in ["consul/token/agent/web-30", "consul/token/operator/web-3", "consul/token/dns", "app/web-3"] {
            assert!(!of(other), "{other}");
        }
    }

    #[test]
    fn it_is_told_what_a_node_was() {
        let was = |of: &[(&'static str, &str)]| told(&of.iter().map(|(p, was)| (*p, (*was).to_owned())).collect());
        assert_eq!(was(&[("consul", "failed")]), "failed");
        assert_eq!(was(&[("nomad", "client down")]), "client down in nomad");
        assert_eq!(was(&[("nomad", "client down"), ("consul", "left")]), "left in consul, client down in nomad");
    }

    #[test]
    fn an_instance_stands_in_a_tokens_description() {
        for of in ["agent", "nomad"] {
            assert_eq!(instance(&format!("Made by Rollcall: {of} web-3 (i-0abc)")), Some(("web-3", "i-0abc")));
        }
        for none in ["Made by Rollcall: agent web-3", "Made by Rollcall: dns (i-0abc)", "agent web-3 (i-0abc)"] {
            assert_eq!(instance(none), None, "{none}");
        }
    }
}
