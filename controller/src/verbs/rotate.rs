use std::{collections::BTreeSet, io::Write as _, sync::Arc};

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, Subcommand};
use rollcall_engine::{diag::Sources, secrets::Name};

use super::operate::{Operator, Product, Way};
use crate::{exit::Exit, options::Show};

mod gossip;
mod tokens;

/// Replace secrets of a running cluster by new ones, without downtime.
///
/// Every step is proven on every member before the next one begins, and each may be carried out twice without harm: a rotation that
/// was broken off, wherever, is ended by the same command, with the same new values.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  controller rotate gossip
  controller rotate tokens --product consul
  controller rotate tokens --only consul/token/agent/web-3
  controller rotate tokens --only 'consul/token/agent/*'
  controller rotate tokens --only 'consul/token/nomad/*'")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// The gossip key: all members get a new one besides the old, use it, and lose the old one.
    ///
    /// Every host of the inventory's groups must be there and every member alive: one that is away would come back with the old
    /// key, and be heard by nobody. Do not add nodes meanwhile.
    Gossip {
        /// Of which product. Without it: of each whose secret is in the store.
        #[arg(long)]
        product: Option<Product>,
        #[command(flatten)]
        way: Way,
    },
    /// Tokens of nodes, of DNS, and the management token: new ones are made beside the old, handed to the agents that run, and proven;
    /// then the store gets them, and the old ones are deleted.
    ///
    /// A host that is not there keeps its token; the same command rotates it when it is back. Nomad's agents get their tokens of Consul
    /// by a restart, servers one at a time; tasks of jobs go on. Operators' tokens are not rotated: revoke them, and create others.
    Tokens {
        /// Of which product. Without it: of each whose secret is in the store.
        #[arg(long)]
        product: Option<Product>,
        /// Only secrets of this name, or of these names: `*` stands for anything. May be repeated.
        #[arg(long, value_name = "NAME|PATTERN")]
        only: Vec<String>,
        #[command(flatten)]
        way: Way,
    },
}

/// The verb.
pub(crate) async fn run(args: Args, show: Show, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Gossip { product, way } => {
            let operator = Operator::new(way, show, sources).await?;
            let mut worst = Exit::Done;
            for product in products(&operator, product, "gossip").await? {
                worst = worst.max(gossip::rotate(&operator, product).await?);
            }
            Ok(worst)
        }
        Verb::Tokens { product, only, way } => {
            let operator = Operator::new(way, show, sources).await?;
            let products = products(&operator, product, "management").await?;
            tokens::rotate(&operator, &products, &only).await
        }
    }
}

/// The product that was named, or all that have such a secret.
async fn products(operator: &Operator, named: Option<Product>, secret: &str) -> anyhow::Result<Vec<Product>> {
    let mut out = Vec::new();
    for product in Product::ALL.into_iter().filter(|product| named.is_none_or(|named| named == *product)) {
        if operator.get(&name(&format!("{}/{secret}", product.name()))?).await?.is_some() {
            out.push(product);
        }
    }
    if out.is_empty() {
        let which = named.map_or("consul or nomad", Product::name);
        bail!(
            "the store has no secret '{secret}' of {which}: there is nothing to rotate; hint: the roles make it, with consul_encrypt \
             or consul_acl (nomad_encrypt, nomad_acl)"
        );
    }
    Ok(out)
}

/// Tells how far it is, at once: whoever waits sees it.
fn step(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn name(text: &str) -> anyhow::Result<Name> {
    Ok(Name::new(text)?)
}

/// Of these names, those that were asked for. A pattern that fits none is an error.
fn chosen(all: &[Name], only: &[String]) -> anyhow::Result<Vec<Name>> {
    if only.is_empty() {
        return Ok(all.to_vec());
    }
    let mut fits = BTreeSet::new();
    for pattern in only {
        let glob =
            globset::Glob::new(pattern).with_context(|| format!("--only '{pattern}' is no pattern"))?.compile_matcher();
        let found: Vec<&Name> = all.iter().filter(|name| glob.is_match(name.as_str())).collect();
        if found.is_empty() {
            let hint = rollcall_engine::diag::suggest(pattern, all.iter().map(Name::as_str)).unwrap_or_else(|| {
                format!("there are {}", all.iter().map(Name::as_str).collect::<Vec<_>>().join(", "))
            });
            bail!("--only '{pattern}' is none of the tokens that are rotated; hint: {hint}");
        }
        fits.extend(found);
    }
    Ok(all.iter().filter(|name| fits.contains(name)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for() {
        let all: Vec<Name> = ["consul/token/agent/a", "consul/token/agent/b", "consul/token/dns", "consul/management"]
            .map(|n| Name::new(n).unwrap())
            .into();
        let chosen = |only: &[&str]| chosen(&all, &only.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(chosen(&[]).unwrap(), all);
        assert_eq!(chosen(&["consul/token/dns", "*/agent/*"]).unwrap(), all[..3]);
        let error = chosen(&["consul/token/agent/c"]).unwrap_err().to_string();
        assert!(
            error.contains("none of the tokens that are rotated; hint: did you mean 'consul/token/agent/"),
            "{error}"
        );
        assert!(chosen(&["["]).unwrap_err().to_string().contains("is no pattern"));
    }
}
