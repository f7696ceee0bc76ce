use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args as ClapArgs, Subcommand};
use rollcall_engine::{
    diag::Sources,
    protocol::{Status, TaskResult},
    secrets::Name,
};
use serde_json::{Value, json};

use super::operate::{Ended, Operator, Product, Way, Work};
use crate::{context, exit::Exit, options::Show};

/// Tokens for people: make one, list them, take one away.
///
/// Each operator has a token of their own, which says who asked for it and when, and ends by itself if it has a lifetime. It is
/// made on a server of the cluster, over the same way as a run. Its secret is printed once, or kept in the project's store; no
/// file on a host and no log has it.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  TOKEN=$(controller token create ann --product consul --policy rollcall-operator-read --ttl 8h)
  controller token create deploy --product consul --policy rollcall-operator --store
  controller secret get consul/token/operator/deploy
  controller token list --product consul
  controller token revoke ann --product consul")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Make a token, and print its secret.
    ///
    /// The secret goes to standard output, and nothing else does. It is not kept: who loses it makes another one.
    /// The roles make two policies for operators: `rollcall-operator-read` (look at everything) and `rollcall-operator` (change
    /// everything but ACLs).
    ///
    /// The same again, with the same name, gives the token the rights that are named now; it ends a call that was broken off.
    Create(Create),
    /// List operators' tokens: names, accessors, policies, when they were made and when they end. Never a secret.
    List {
        #[command(flatten)]
        product: OfProduct,
        /// Also tokens of nodes, of others, and the bootstrap's.
        #[arg(long)]
        all: bool,
        /// Print a list in JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        way: Way,
    },
    /// Take an operator's token away, and its secret out of the store. It is worth nothing at once.
    Revoke {
        /// The token's name, or its accessor.
        #[arg(value_name = "NAME|ACCESSOR")]
        token: String,
        #[command(flatten)]
        product: OfProduct,
        #[command(flatten)]
        way: Way,
    },
}

#[derive(Clone, Debug, ClapArgs)]
#[group(id = "CreateArgs")]
#[command(group = ArgGroup::new("rights").required(true).multiple(true).args(["policy", "roles", "management"]))]
struct Create {
    /// Whose it is, or what it is for: small letters, digits, '-', '_', '.'.
    name: String,
    #[command(flatten)]
    product: OfProduct,
    /// A policy that it has. May be repeated.
    #[arg(long, value_name = "POLICY")]
    policy: Vec<String>,
    /// A role that it has. May be repeated.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// It may do everything.
    #[arg(long, conflicts_with_all = ["policy", "roles"])]
    management: bool,
    /// How long it counts: 30m, 8h, 1h30m, 1d. From a minute to a day. Without it: until it is revoked.
    #[arg(long, value_parser = lifetime)]
    ttl: Option<Duration>,
    /// Print the secret, and do not keep it. That is what happens without --store.
    #[arg(long, conflicts_with = "store")]
    print: bool,
    /// Keep the secret in the store, as PRODUCT/token/operator/NAME, and print only that name.
    #[arg(long)]
    store: bool,
    #[command(flatten)]
    way: Way,
}

#[derive(Clone, Copy, Debug, ClapArgs)]
struct OfProduct {
    /// Of which product.
    #[arg(long)]
    product: Product,
}

/// The module that lists tokens.
fn lister(product: Product) -> &'static str {
    match product {
        Product::Consul => "consul_acl_tokens",
        Product::Nomad => "nomad_acl_tokens",
    }
}

/// The module that makes them.
fn maker(product: Product) -> &'static str {
    match product {
        Product::Consul => "consul_acl_token",
        Product::Nomad => "nomad_acl_token",
    }
}

/// What the description of an operator's token begins with.
const OPERATOR: &str = "Made by Rollcall: operator ";

/// The verb.
pub(crate) async fn run(args: Args, show: Show, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Create(create) => {
            // What is wrong with the words is told before anything is opened.
            let secret = secret_name(create.product.product, &create.name)?;
            let operator = Operator::new(create.way.clone(), show, sources).await?;
            self::create(&operator, &create, &secret).await
        }
        Verb::List { product, all, json, way } => {
            let operator = Operator::new(way, show, sources).await?;
            list(&operator, product.product, all, json).await
        }
        Verb::Revoke { token, product, way } => {
            let operator = Operator::new(way, show, sources).await?;
            revoke(&operator, product.product, &token).await
        }
    }
}

/// Where an operator's token lies in the store.
fn secret_name(product: Product, name: &str) -> anyhow::Result<Name> {
    let bad = "expected small letters, digits, '-', '_' and '.', not beginning with a dot";
    if name.contains('/') {
        bail!("'{name}' is no name for a token: {bad}");
    }
    Name::new(&format!("{}/token/operator/{name}", product.name()))
        .ok()
        .with_context(|| format!("'{name}' is no name for a token: {bad}"))
}

/// `1h30m` and the like.
fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: expected 30m, 8h, 1h30m or 1d");
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..end].parse().map_err(|_| wrong())?;
        let unit = rest[end..].chars().next().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(wrong()),
        };
        total = number.checked_mul(seconds).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
        rest = &rest[end + unit.len_utf8()..];
    }
    if !(60..=86400).contains(&total) {
        return Err(format!("'{text}' is {total} s: a token's lifetime is from a minute to a day (60 to 86400 s)"));
    }
    Ok(Duration::from_secs(total))
}

async fn create(operator: &Operator, args: &Create, secret: &Name) -> anyhow::Result<Exit> {
    let product = args.product.product;
    // In the store before anybody uses it: whatever breaks off, the next call goes on with the same value.
    let kept = operator.get(secret).await?.is_some();
    let chosen = match product {
        Product::Consul => Some(operator.make(secret).await?),
        // Nomad chooses it itself; the server that asked for it keeps it in the store.
        Product::Nomad => None,
    };
    let policies = match product {
        Product::Consul if args.management => vec!["global-management".to_owned()],
        _ => args.policy.clone(),
    };
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now());
    let ended = operator
        .work(&Work {
            name: "controller token create",
            groups: product.servers(),
            without: None,
            once: true,
            role: product.name(),
            tasks: "operate_token",
            vars: json!({
                "operator_name": args.name,
                "operator_policies": policies,
                "operator_roles": args.roles,
                "operator_management": args.management,
                "operator_ttl": args.ttl.map(|ttl| ttl.as_secs()),
                "operator_description": format!("operator {}, for {}, {now}", args.name, super::run::owner()),
            }),
        })
        .await?;
    let Some(made) = ended.of_module(maker(product)).filter(|_| ended.is_done_once()) else {
        ended.tell();
        match made_nothing(&ended, product) {
            true if kept => {}
            true => operator.delete(secret).await?,
            false => stays(operator, args, secret).await?,
        }
        return Ok(ended.exit());
    };
    let value = match chosen {
        Some(value) => value,
        None => operator
            .get(secret)
            .await?
            .with_context(|| format!("the store has no '{secret}', which a server has kept there"))?,
    };
    let accessor = made.result.get("accessor_id").and_then(Value::as_str).unwrap_or_default();
    let ends = args.ttl.map_or_else(String::new, |ttl| format!(", for {} s", ttl.as_secs()));
    let mut out = std::io::stdout().lock();
    if args.store {
        writeln!(out, "{secret}")?;
        context::eprint_line(&format!(
            "token '{}' of {} (accessor {accessor}){ends}: controller secret get {secret}",
            args.name,
            product.name()
        ));
        return Ok(Exit::Done);
    }
    writeln!(out, "{}", value.expose())
        .and_then(|()| out.flush())
        .with_context(|| format!("the secret could not be printed; it is kept: controller secret get {secret}"))?;
    drop(out);
    operator.delete(secret).await?;
    context::eprint_line(&format!(
        "token '{}' of {} (accessor {accessor}){ends}: its secret is printed above, and kept nowhere",
        args.name,
        product.name()
    ));
    Ok(Exit::Done)
}

/// Whether it is certain that no token was made: all that was begun came to its end, something failed, and what makes tokens, if it came to
/// that, says that it wrote nothing. A host that is not heard of any more may have made it.
fn made_nothing(ended: &Ended, product: Product) -> bool {
    let results = || ended.results.iter().map(|(_, result)| result);
    let wrote_nothing = |result: &TaskResult| result.status == Status::Failed && result.result["changed"] == false;
    matches!(ended.exit, Some(Exit::Failed | Exit::Foreign))
        && ended.unreachable.is_empty()
        && results().any(|result| result.status == Status::Failed)
        && results().filter(|result| result.module == maker(product)).all(wrote_nothing)
}

/// Tells how to go on where nobody knows whether the token was made.
async fn stays(operator: &Operator, args: &Create, secret: &Name) -> anyhow::Result<()> {
    let product = args.product.product.name();
    let kept = match operator.get(secret).await? {
        Some(_) => format!("its secret stays in the store as '{secret}', and the same call goes on with it"),
        None => "the same call finds out".to_owned(),
    };
    context::eprint_line(&format!(
        "nobody knows whether the token '{0}' was made: {kept}; to be rid of it: controller token revoke {0} --product {product}",
        args.name
    ));
    Ok(())
}

/// A token as the cluster tells it.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
pub(crate) struct Told {
    pub(crate) accessor_id: String,
    pub(crate) description: String,
    pub(crate) policies: Vec<String>,
    roles: Vec<String>,
    management: bool,
    made: String,
    expires: String,
    ours: bool,
}

impl Told {
    /// The name of an operator's token.
    fn name(&self) -> Option<&str> {
        self.description.strip_prefix(OPERATOR).and_then(|rest| rest.split(',').next())
    }

    /// All that a task told.
    pub(crate) fn of(result: &TaskResult) -> anyhow::Result<Vec<Self>> {
        let tokens = result.result.get("tokens").cloned().unwrap_or_default();
        serde_json::from_value(tokens).context("the list of tokens is not what a server gives")
    }
}

/// The tokens of a product, as a server lists them; or how the question ended.
async fn found(operator: &Operator, product: Product) -> anyhow::Result<Result<Vec<Told>, Exit>> {
    let ended = operator
        .work(&Work {
            name: "controller token list",
            groups: product.servers(),
            without: None,
            once: true,
            role: product.name(),
            tasks: "operate_tokens",
            vars: json!({}),
        })
        .await?;
    match ended.of_module(lister(product)) {
        Some(result) if ended.is_done_once() => Ok(Ok(Told::of(result)?)),
        _ => {
            ended.tell();
            Ok(Err(ended.exit()))
        }
    }
}

async fn list(operator: &Operator, product: Product, all: bool, json: bool) -> anyhow::Result<Exit> {
    let mut tokens = match found(operator, product).await? {
        Ok(tokens) => tokens,
        Err(exit) => return Ok(exit),
    };
    tokens.retain(|token| all || token.name().is_some());
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&tokens)?)?;
        return Ok(Exit::Done);
    }
    let rows: Vec<[String; 5]> = tokens.iter().map(row).collect();
    let head = ["NAME", "ACCESSOR", "POLICIES AND ROLES", "MADE", "ENDS"].map(str::to_owned);
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in [&head].into_iter().chain(&rows) {
        let line: Vec<String> = row.iter().zip(&widths).map(|(text, width)| format!("{text:width$}")).collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(Exit::Done)
}

fn row(token: &Told) -> [String; 5] {
    let name = token.name().unwrap_or(&token.description).to_owned();
    let mut rights: Vec<&str> = token.policies.iter().chain(&token.roles).map(String::as_str).collect();
    if rights.is_empty() && token.management {
        rights.push("everything");
    }
    let time = |text: &str| match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => text.to_owned(),
    };
    let ends = if token.expires.is_empty() { "never".to_owned() } else { time(&token.expires) };
    [name, token.accessor_id.clone(), rights.join(", "), time(&token.made), ends]
}

async fn revoke(operator: &Operator, product: Product, wanted: &str) -> anyhow::Result<Exit> {
    let tokens = match found(operator, product).await? {
        Ok(tokens) => tokens,
        Err(exit) => return Ok(exit),
    };
    let is_wanted = |token: &&Told| token.name() == Some(wanted) || token.accessor_id == wanted;
    let token = tokens.iter().find(is_wanted);
    if let Some(token) = token
        && token.name().is_none()
    {
        bail!(
            "the token {wanted} ('{}') is no operator's: this verb leaves it alone; hint: a node that is gone is forgotten by \
             controller forget NODE",
            token.description
        );
    }
    if let Some(token) = token {
        let ended = operator
            .work(&Work {
                name: "controller token revoke",
                groups: product.servers(),
                without: None,
                once: true,
                role: product.name(),
                tasks: "operate_revoke",
                vars: json!({ "operator_accessor": token.accessor_id, "operator_name": token.name() }),
            })
            .await?;
        if !ended.is_done_once() {
            ended.tell();
            return Ok(ended.exit());
        }
    }
    // Also that of a token which has ended by itself.
    let name = token.and_then(Told::name).unwrap_or(wanted);
    let mut was_kept = false;
    if let Ok(secret) = secret_name(product, name) {
        was_kept = operator.get(&secret).await?.is_some();
        operator.delete(&secret).await?;
    }
    let mut out = std::io::stdout().lock();
    match (token, was_kept) {
        (Some(token), _) => writeln!(out, "token '{name}' of {} ({}) is revoked", product.name(), token.accessor_id)?,
        (None, true) => writeln!(out, "{} has no token '{name}'; its secret is out of the store", product.name())?,
        (None, false) => writeln!(out, "{} has no operator's token '{name}'", product.name())?,
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read() {
        for (text, seconds) in [("30m", 1800), ("8h", 28800), ("1h30m", 5400), ("1d", 86400), ("60s", 60)] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "8", "h", "59s", "25h", "2d", "1x", "-1h", "1h 30m", "99999999999999999999h", "18446744073709551615d"]
        {
            assert!(lifetime(text).is_err(), "{text}");
        }
        assert!(lifetime("2d").unwrap_err().contains("from a minute to a day"));
    }

    #[test]
    fn what_may_be_a_tokens_secret_is_not_thrown_away() {
        let result = |module: &str, status: Status, result: Value| TaskResult {
            status,
            name: "a task".into(),
            role: None,
            module: module.into(),
            item: None,
            msg: None,
            hint: None,
            diffs: Vec::new(),
            result,
            warnings: Vec::new(),
            ignored: false,
            rescued: false,
            handler: false,
            delegated_to: None,
            span: rollcall_engine::diag::Span::NONE,
            millis: 1,
        };
        let ended = |exit: Exit, unreachable: &[&str], results: Vec<TaskResult>| Ended {
            results: results.into_iter().map(|result| ("a".to_owned(), result)).collect(),
            unreachable: unreachable.iter().map(|host| ((*host).to_owned(), "gone".to_owned())).collect(),
            failed: std::collections::BTreeSet::new(),
            exit: Some(exit),
        };
        let ok = || result("assert", Status::Ok, json!({"changed": false}));
        let refused = || result("uri", Status::Failed, json!({"changed": false}));
        for product in Product::ALL {
            let tried = |changed: bool| result(maker(product), Status::Failed, json!({ "changed": changed }));
            let certain = |ended: Ended| made_nothing(&ended, product);
            assert!(certain(ended(Exit::Failed, &[], vec![ok(), refused()])), "it did not come to it");
            assert!(certain(ended(Exit::Failed, &[], vec![ok(), tried(false)])));
            // It was made, or may have been: what failed came after, or the answer was lost.
            assert!(!certain(ended(Exit::Failed, &[], vec![ok(), tried(true)])));
            let hidden = result(maker(product), Status::Failed, Value::Null);
            assert!(!certain(ended(Exit::Failed, &[], vec![ok(), hidden])));
            let made = result(maker(product), Status::Changed, json!({"changed": true}));
            assert!(!certain(ended(Exit::Failed, &[], vec![ok(), made, refused()])));
            // Who is gone may have made it; and so may who was interrupted.
            for exit in [Exit::Unreachable, Exit::Failed] {
                assert!(!certain(ended(exit, &["b"], vec![ok(), tried(false)])));
                assert!(!certain(ended(exit, &["b"], Vec::new())));
            }
            assert!(!certain(ended(Exit::Interrupted, &[], vec![ok()])));
            assert!(!certain(ended(Exit::Interrupted, &[], vec![ok(), refused()])));
        }
    }

    #[test]
    fn names_are_parts_of_secrets_names() {
        assert_eq!(secret_name(Product::Consul, "ann.b-1").unwrap().as_str(), "consul/token/operator/ann.b-1");
        for bad in ["", "Ann", "a/b", "../x", ".a", "a b", "ä", "{{ x }}"] {
            assert!(
                secret_name(Product::Consul, bad).unwrap_err().to_string().contains("is no name for a token"),
                "{bad}"
            );
        }
    }
}
