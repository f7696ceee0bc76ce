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

use rollcall_engine::secrets::{
    Name,
    ownership::{Rule, node_part},
};
use serde_json::{Value, json};

use super::{chosen, name, step};
use crate::{
    context,
    exit::Exit,
    verbs::operate::{Ended, Operator, Work},
};

const GROUPS: &[&str] = &["consul_servers", "consul_clients"];
const SERVERS: &[&str] = &["consul_servers"];
const MANAGEMENT: &str = "consul/management";
const DNS: &str = "consul/token/dns";

/// A token that is rotated.
#[derive(Clone, Debug)]
struct Token {
    name: Name,
    next: Name,
}

/// See the module.
pub(super) async fn rotate(operator: &Operator, only: &[String]) -> anyhow::Result<Exit> {
    let all = all(operator)?;
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
                "the store has no '{}': there is no token to rotate; hint: run consul.yaml with consul_acl: true first",
                token.name
            );
        }
        operator.make(&token.next).await?;
    }
    let (last, first): (Vec<Token>, Vec<Token>) =
        tokens.into_iter().partition(|token| token.name.as_str() == MANAGEMENT);
    let mut worst = Exit::Done;
    for part in [first, last].into_iter().filter(|part| !part.is_empty()) {
        worst = worst.max(turn(operator, &part).await?);
        // The management token is what mends the others: it stays while something is wrong.
        if worst > Exit::Unreachable {
            break;
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
fn all(operator: &Operator) -> anyhow::Result<Vec<Token>> {
    let agents = operator.hosts(GROUPS).into_iter().map(|host| format!("consul/token/agent/{}", node_part(&host)));
    let mut out = Vec::new();
    for text in agents.chain([DNS.to_owned(), MANAGEMENT.to_owned()]) {
        let name = name(&text)?;
        if let Some(next) = Rule::next(&name) {
            out.push(Token { name, next });
        }
    }
    Ok(out)
}

/// Rotates some, those that can be.
async fn turn(operator: &Operator, tokens: &[Token]) -> anyhow::Result<Exit> {
    let names: Vec<&str> = tokens.iter().map(|token| token.name.as_str()).collect();
    step(&format!("{} tokens get successors: {}", names.len(), names.join(", ")))?;
    let make = Work {
        name: "controller rotate tokens",
        groups: GROUPS,
        once: false,
        role: "consul",
        tasks: "operate_rotate",
        vars: json!({ "rotate_names": names }),
    };
    let made = operator.work(&make).await?;
    let mut worst = Exit::Done;
    if !made.is_whole() {
        made.tell();
        worst = made.exit();
    }
    let hosts = operator.hosts(GROUPS);
    let servers = operator.hosts(SERVERS);
    let did: Vec<&String> = hosts.iter().filter(|host| did_all(&made, host)).collect();
    let mut done: Vec<&Token> = Vec::new();
    for token in tokens {
        let in_use = match token.name.as_str() {
            // Every agent answers DNS with it.
            DNS => did.len() == hosts.len(),
            MANAGEMENT => servers.iter().all(|server| did.contains(&server)),
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
        let next = operator.make(&token.next).await?;
        operator.put(&token.name, &next).await?;
    }
    step("the old ones are deleted")?;
    let pairs: Vec<Value> =
        done.iter().map(|token| json!({ "from": token.name.as_str(), "to": token.next.as_str() })).collect();
    let retire = Work {
        name: "controller rotate tokens",
        groups: SERVERS,
        once: true,
        role: "consul",
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
