//! The gossip key. In this order, so that at each moment all members hear each other, and the store has what a new member needs:
//!
//! 1. the next key is written to the store, once;
//! 2. every member is there;
//! 3. every member gets the next key besides the old one;
//! 4. every member uses it;
//! 5. the store's name gets it, then the files on all hosts;
//! 6. no member has another one any more, and the next key's name leaves the store.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{name, step};
use crate::{
    context,
    exit::Exit,
    verbs::operate::{Ended, Operator, Product, Work},
};

/// See the module.
pub(super) async fn rotate(operator: &Operator, product: Product) -> anyhow::Result<Exit> {
    let of = product.name();
    let (current, next) = (name(&format!("{of}/gossip"))?, name(&format!("{of}/gossip-next"))?);
    let begun = operator.get(&next).await?;
    if begun.is_some() {
        step(&format!("a rotation of {of}'s gossip key was begun before: it goes on with its key"))?;
    }
    step(&format!("{of}, 1 of 6: every host and every member is there"))?;
    let members = match check(operator, product).await? {
        Ok(members) => members,
        Err(exit) => return Ok(exit),
    };
    let key = operator.make(&next).await?;
    for (number, state) in [(2, "installed"), (3, "primary")] {
        let what = if state == "installed" { "has the next key" } else { "uses the next key" };
        step(&format!("{of}, {number} of 6: every member {what}"))?;
        if let Err(exit) = keyring(operator, product, state, next.as_str(), &members).await? {
            return Ok(exit);
        }
    }
    if product == Product::Nomad {
        // Its API does not tell which key is used.
        let proof = Work {
            name: "controller rotate gossip",
            groups: product.members(),
            without: None,
            once: false,
            role: product.name(),
            tasks: "operate_gossip_proof",
            vars: json!({ "gossip_key": next.as_str() }),
        };
        let ended = operator.work(&proof).await?;
        if !ended.is_whole() {
            return Ok(stopped(&ended));
        }
    }
    step(&format!("{of}, 4 of 6: the store has it"))?;
    operator.put(&current, &key).await?;
    step(&format!("{of}, 5 of 6: the files of all hosts have it"))?;
    let files = Work {
        name: "controller rotate gossip",
        groups: product.members(),
        without: None,
        once: false,
        role: product.name(),
        tasks: "operate_gossip_file",
        vars: json!({}),
    };
    let ended = operator.work(&files).await?;
    if !ended.is_whole() {
        return Ok(stopped(&ended));
    }
    step(&format!("{of}, 6 of 6: no member has the old key"))?;
    if let Err(exit) = keyring(operator, product, "only", current.as_str(), &members).await? {
        return Ok(exit);
    }
    operator.delete(&next).await?;
    step(&format!("{of}: the gossip key of {} members is another one", members.len()))?;
    Ok(Exit::Done)
}

fn stopped(ended: &Ended) -> Exit {
    ended.tell();
    context::eprint_line(
        "the rotation stops here: the cluster goes on, with the old key or with both; the same command goes on from here",
    );
    ended.exit()
}

/// The names of all nodes, when all hosts are there.
async fn check(operator: &Operator, product: Product) -> anyhow::Result<Result<Vec<String>, Exit>> {
    let work = Work {
        name: "controller rotate gossip",
        groups: product.members(),
        without: None,
        once: false,
        role: product.name(),
        tasks: "operate_gossip_check",
        vars: json!({}),
    };
    let ended = operator.work(&work).await?;
    let told = |module: &str| ended.results.iter().filter(move |(_, r)| r.module == module).collect::<Vec<_>>();
    let nodes: BTreeSet<String> = told("debug")
        .into_iter()
        .filter_map(|(_, r)| r.result.get("msg").and_then(Value::as_str).or(r.msg.as_deref()).map(str::to_owned))
        .collect();
    let hosts = operator.hosts(product.members());
    if !ended.is_whole() || nodes.len() != hosts.len() {
        ended.tell();
        context::eprint_line(
            "not every host is there: nothing was changed, and the same command goes on when they are",
        );
        return Ok(Err(ended.exit()));
    }
    Ok(Ok(nodes.into_iter().collect()))
}

async fn keyring(
    operator: &Operator,
    product: Product,
    state: &str,
    key: &str,
    members: &[String],
) -> anyhow::Result<Result<(), Exit>> {
    let work = Work {
        name: "controller rotate gossip",
        groups: product.servers(),
        without: None,
        once: true,
        role: product.name(),
        tasks: "operate_gossip",
        vars: json!({ "gossip_step": state, "gossip_key": key, "gossip_members": members }),
    };
    let ended = operator.work(&work).await?;
    if ended.is_done_once() && ended.of_module(&format!("{}_keyring", product.name())).is_some() {
        return Ok(Ok(()));
    }
    Ok(Err(stopped(&ended)))
}
