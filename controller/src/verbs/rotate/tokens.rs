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
//! A run of the role in between finds one of both, and is content. Tokens with which Nomad's agents talk to Consul are read by Nomad when it
//! starts, and only then: there step 3 is a restart, as the role's handlers do it. The management token comes last.

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

/// Below it are those with which Nomad's agents talk to Consul.
const NOMADS: &str = "consul/token/nomad/";

/// The last task of who was handed its successor.
const PROOF: &str = "It is in use";

/// Who is handed the successors of some tokens, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Users {
    /// Whose cluster knows the tokens.
    product: Product,
    role: &'static str,
    groups: &'static [&'static str],
    tasks: &'static str,
}

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

    /// Who uses it.
    fn users(&self) -> Users {
        let product = self.product;
        if self.name.as_str().starts_with(NOMADS) {
            let groups = &["nomad_servers", "nomad_clients"];
            return Users { product, role: "nomad", groups, tasks: "operate_rotate_consul" };
        }
        Users { product, role: product.name(), groups: product.members(), tasks: "operate_rotate" }
    }
}

/// See the module.
pub(super) async fn rotate(operator: &Operator, products: &[Product], only: &[String]) -> anyhow::Result<Exit> {
    let all = all(operator, products).await?;
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
    for part in parts(&tokens, products) {
        // The management token is what mends the others: it stays while something is wrong.
        if part.iter().any(Token::is_management) && worst > Exit::Unreachable {
            continue;
        }
        worst = worst.max(turn(operator, &part).await?);
    }
    if worst != Exit::Done {
        context::eprint_line(
            "what is not told as rotated has its old token, which works: the same command goes on from here",
        );
    }
    Ok(worst)
}

/// Tokens that are rotated at once: those of the same users; of each product the management token last.
fn parts(tokens: &[Token], products: &[Product]) -> Vec<Vec<Token>> {
    let mut parts: Vec<Vec<Token>> = Vec::new();
    for product in products {
        let of = tokens.iter().filter(|token| token.product == *product);
        let (last, first): (Vec<&Token>, Vec<&Token>) = of.partition(|token| token.is_management());
        let begin = parts.len();
        for token in first {
            match parts[begin..].iter_mut().find(|part| part.iter().all(|other| other.users() == token.users())) {
                Some(part) => part.push(token.clone()),
                None => parts.push(vec![token.clone()]),
            }
        }
        parts.extend(last.into_iter().map(|token| vec![token.clone()]));
    }
    parts
}

/// All tokens that are rotated, of the hosts that the inventory has.
async fn all(operator: &Operator, products: &[Product]) -> anyhow::Result<Vec<Token>> {
    let mut out = Vec::new();
    for product in products {
        let mut names: Vec<String> = match product {
            Product::Consul => {
                let hosts = operator.hosts(product.members()).into_iter();
                hosts.map(|host| format!("consul/token/agent/{}", node_part(&host))).chain([DNS.to_owned()]).collect()
            }
            Product::Nomad => vec!["nomad/token/server".to_owned()],
        };
        if *product == Product::Consul {
            // Not every Nomad uses Consul.
            let kept = operator.list(NOMADS).await?;
            let hosts = operator.hosts(&["nomad_servers", "nomad_clients"]);
            let of = hosts.iter().map(|host| format!("{NOMADS}{}", node_part(host)));
            names.extend(of.filter(|name| kept.iter().any(|kept| kept.as_str() == name)));
        }
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
async fn turn(operator: &Operator, tokens: &[Token]) -> anyhow::Result<Exit> {
    let Some(users) = tokens.first().map(Token::users) else { return Ok(Exit::Done) };
    let names: Vec<&str> = tokens.iter().map(|token| token.name.as_str()).collect();
    step(&format!("{} tokens get successors: {}", names.len(), names.join(", ")))?;
    let make = Work {
        name: "controller rotate tokens",
        groups: users.groups,
        without: None,
        once: false,
        role: users.role,
        tasks: users.tasks,
        vars: json!({ "rotate_names": names }),
    };
    let made = operator.work(&make).await?;
    let mut worst = Exit::Done;
    if !made.is_whole() {
        made.tell();
        worst = made.exit();
    }
    let done = in_use(operator, users, &made, tokens);
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
        groups: users.product.servers(),
        without: None,
        once: true,
        role: users.product.name(),
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

/// Tokens whose successors all of their users have.
fn in_use<'t>(operator: &Operator, users: Users, made: &Ended, tokens: &'t [Token]) -> Vec<&'t Token> {
    let hosts = operator.hosts(users.groups);
    let servers = operator.hosts(users.product.servers());
    let did: Vec<&String> = hosts.iter().filter(|host| did_all(made, host)).collect();
    let of_all = |all: &[String]| all.iter().all(|host| did.contains(&host));
    let is_used = |token: &&Token| match token.name.as_str() {
        // Every agent answers DNS with it.
        DNS => of_all(&hosts),
        _ if users.product == Product::Nomad || token.is_management() => of_all(&servers),
        own => did.iter().any(|host| own.rsplit('/').next() == Some(node_part(host).as_str())),
    };
    tokens.iter().filter(is_used).collect()
}

/// The host did all that was asked of it, to the end: one that was refused its turn of a restart has failed nothing.
fn did_all(ended: &Ended, host: &str) -> bool {
    !ended.failed.contains(host)
        && !ended.unreachable.iter().any(|(name, _)| name == host)
        && ended.results.iter().any(|(name, result)| name == host && result.name.ends_with(PROOF))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(product: Product, text: &str) -> Token {
        let name = Name::new(text).unwrap();
        let next = Rule::next(&name).unwrap();
        Token { product, name, next }
    }

    #[test]
    fn those_of_the_same_users_go_together_and_the_management_token_last() {
        let (consul, nomad) = (Product::Consul, Product::Nomad);
        let tokens = [
            token(nomad, "nomad/management"),
            token(consul, "consul/management"),
            token(consul, "consul/token/nomad/a"),
            token(consul, "consul/token/agent/a"),
            token(consul, "consul/token/nomad/b"),
            token(consul, "consul/token/dns"),
            token(nomad, "nomad/token/server"),
        ];
        let parts = parts(&tokens, &Product::ALL);
        let names: Vec<Vec<&str>> = parts.iter().map(|p| p.iter().map(|token| token.name.as_str()).collect()).collect();
        let expected: [&[&str]; 5] = [
            &["consul/token/nomad/a", "consul/token/nomad/b"],
            &["consul/token/agent/a", "consul/token/dns"],
            &["consul/management"],
            &["nomad/token/server"],
            &["nomad/management"],
        ];
        assert_eq!(names, expected);
        assert_eq!(parts[0][0].users().role, "nomad");
        assert!(super::parts(&tokens, &[nomad]).iter().flatten().all(|token| token.product == nomad));
    }
}
