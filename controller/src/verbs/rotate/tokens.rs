//! Tokens. For each of them, in this order, so that at each moment every agent has a token that the cluster knows, and the store names
//! one:
//!
//! 1. the next secret is written to the store, once;
//! 2. the cluster gets a token with it, with the old one's rights;
//! 3. the agents that use it get it, and prove that it works;
//! 4. the store's name gets it;
//! 5. the cluster loses the old token;
//! 6. the next secret's name leaves the store: it is done.
//!
//! A run of the role in between finds one of both, and is content. The management token comes last.

use anyhow::Context as _;
use rollcall_engine::secrets::{
    Name,
    ownership::{Rule, node_part},
};
use serde_json::{Value, json};

use super::{chosen, name, step};
use crate::{
    context,
    exit::Exit,
    verbs::operate::{Ended, Operator, Product, Work},
};

/// Every agent of Consul answers DNS with it.
const DNS: &str = "consul/token/dns";

/// A token that is rotated.
#[derive(Clone, Debug)]
struct Token {
    product: Product,
    name: Name,
    next: Name,
}

impl Token {
    /// It may do everything.
    fn is_management(&self) -> bool {
        self.name.as_str().ends_with("/management")
    }
}

/// See the module.
pub(super) async fn rotate(operator: &Operator, products: &[Product], only: &[String]) -> anyhow::Result<Exit> {
    let all = all(operator, products)?;
    let names: Vec<Name> = all.iter().map(|token| token.name.clone()).collect();
    let chosen = chosen(&names, only)?;
    let mut begun = Vec::new();
    for token in &all {
        if operator.get(&token.next).await?.is_some() {
            begun.push(token.clone());
        }
    }
    let tokens: Vec<Token> = if begun.is_empty() {
        all.into_iter().filter(|token| chosen.contains(&token.name)).collect()
    } else {
        step(&format!(
            "a rotation was begun before: {} of its tokens are left, and only they are rotated now",
            begun.len()
        ))?;
        begun
    };
    for token in &tokens {
        if operator.get(&token.name).await?.is_none() {
            anyhow::bail!(
                "the store has no '{}': there is no token to rotate; hint: run {}.yaml with {0}_acl: true first",
                token.name,
                token.product.name()
            );
        }
        // Secrets of Nomad's tokens are Nomad's to choose.
        if token.product == Product::Consul {
            operator.make(&token.next).await?;
        }
    }
    let mut worst = Exit::Done;
    for product in products {
        let of = tokens.iter().filter(|token| token.product == *product).cloned();
        let (last, first): (Vec<Token>, Vec<Token>) = of.partition(Token::is_management);
        for part in [first, last].into_iter().filter(|part| !part.is_empty()) {
            worst = worst.max(turn(operator, *product, &part).await?);
            // The management token is what mends the others: it stays while something is wrong.
            if worst > Exit::Unreachable {
                break;
            }
        }
    }
    if worst != Exit::Done {
        context::eprint_line(
            "what is not told as rotated has its old token, which works: the same command goes on from here",
        );
    }
    Ok(worst)
}

/// All tokens that are rotated, of the hosts that the inventory has.
fn all(operator: &Operator, products: &[Product]) -> anyhow::Result<Vec<Token>> {
    let mut out = Vec::new();
    for product in products {
        let mut names: Vec<String> = match product {
            Product::Consul => {
                let hosts = operator.hosts(product.members()).into_iter();
                hosts.map(|host| format!("consul/token/agent/{}", node_part(&host))).chain([DNS.to_owned()]).collect()
            }
            Product::Nomad => vec!["nomad/token/server".to_owned()],
        };
        names.push(format!("{}/management", product.name()));
        for text in names {
            let name = name(&text)?;
            if let Some(next) = Rule::next(&name) {
                out.push(Token { product: *product, name, next });
            }
        }
    }
    Ok(out)
}

/// Rotates some, those that can be.
async fn turn(operator: &Operator, product: Product, tokens: &[Token]) -> anyhow::Result<Exit> {
    let names: Vec<&str> = tokens.iter().map(|token| token.name.as_str()).collect();
    step(&format!("{} tokens get successors: {}", names.len(), names.join(", ")))?;
    let make = Work {
        name: "controller rotate tokens",
        groups: product.members(),
        once: false,
        role: product.name(),
        tasks: "operate_rotate",
        vars: json!({ "rotate_names": names }),
    };
    let made = operator.work(&make).await?;
    let mut worst = Exit::Done;
    if !made.is_whole() {
        made.tell();
        worst = made.exit();
    }
    let hosts = operator.hosts(product.members());
    let servers = operator.hosts(product.servers());
    let did: Vec<&String> = hosts.iter().filter(|host| did_all(&made, host)).collect();
    let mut done: Vec<&Token> = Vec::new();
    for token in tokens {
        let in_use = match token.name.as_str() {
            // Every agent answers DNS with it.
            DNS => did.len() == hosts.len(),
            _ if product == Product::Nomad || token.is_management() => {
                servers.iter().all(|server| did.contains(&server))
            }
            agent => did.iter().any(|host| agent.rsplit('/').next() == Some(node_part(host).as_str())),
        };
        if in_use {
            done.push(token);
        }
    }
    if done.is_empty() {
        return Ok(worst);
    }
    step(&format!("{} of them are in use: the store gets them", done.len()))?;
    for token in &done {
        let next = operator.get(&token.next).await?;
        let next = next.with_context(|| format!("the store has no '{}', which was kept there", token.next))?;
        operator.put(&token.name, &next).await?;
    }
    step("the old ones are deleted")?;
    let pairs: Vec<Value> =
        done.iter().map(|token| json!({ "from": token.name.as_str(), "to": token.next.as_str() })).collect();
    let retire = Work {
        name: "controller rotate tokens",
        groups: product.servers(),
        once: true,
        role: product.name(),
        tasks: "operate_retire",
        vars: json!({ "rotate_pairs": pairs }),
    };
    let retired = operator.work(&retire).await?;
    if !retired.is_done_once() {
        retired.tell();
        return Ok(worst.max(retired.exit()));
    }
    for token in &done {
        operator.delete(&token.next).await?;
        step(&format!("rotated: {}", token.name))?;
    }
    Ok(worst)
}

/// The host did all that was asked of it.
fn did_all(ended: &Ended, host: &str) -> bool {
    !ended.failed.contains(host)
        && !ended.unreachable.iter().any(|(name, _)| name == host)
        && ended.results.iter().any(|(name, _)| name == host)
}
