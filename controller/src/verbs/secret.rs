use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, Subcommand};
use rollcall_engine::{
    diag::Sources,
    secrets::{
        MAX_VALUE, MIN_VALUE, Name, Secret, SecretStore, open,
        ownership::{Maker, RESERVED, Rule},
        redact,
    },
};

use super::operate::told;
use crate::{
    context::{Context, Wrong},
    exit::Exit,
};

/// The cluster's secrets: list, show, write, delete, and prove that the store works.
///
/// They are kept in the `store` of rollcall.yaml; without one, in a file of yours that is encrypted to your key.
/// Names are parts between slashes: `app/database-password`. Those that begin with `ca/`, `consul/` or `nomad/` are made
/// by Rollcall itself; docs/secrets.md has the table of who may read which.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Print the names of all secrets, or of those that begin with a text. Values are not shown.
    List {
        /// What the names begin with.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Print the value of a secret to standard output.
    Get {
        /// The secret.
        name: String,
    },
    /// Give a secret the value that is read from standard input; at a terminal it is asked for.
    ///
    /// One line end after the value is left out: `echo hunter2 | controller secret put app/password`.
    Put {
        /// The secret.
        name: String,
        /// Keep the line end after the value.
        #[arg(long)]
        exact: bool,
        /// Also a name that Rollcall makes itself: the cluster must know the value already.
        #[arg(long)]
        force: bool,
    },
    /// Delete a secret.
    Delete {
        /// The secret.
        name: String,
        /// Also a name that Rollcall makes itself: a new value would be made, which the cluster does not know.
        #[arg(long)]
        force: bool,
    },
    /// Delete every secret of a cluster that is no more, its authority's key too.
    ///
    /// Agents go on with what they have, and nobody can ever manage them again. The key that opens a file store stays.
    Destroy {
        /// The cluster, as rollcall.yaml names it: so that nobody deletes another one's.
        cluster: String,
    },
    /// Write, read and delete a value of its own, to prove that the store can be used.
    Probe,
}

/// The verb.
pub(crate) async fn run(args: Args, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let context = Context::new(sources, &[])?;
    let store = store(&context)?;
    let mut out = std::io::stdout();
    match args.verb {
        Verb::List { prefix } => {
            for name in store.list(&prefix).await.map_err(told)? {
                writeln!(out, "{name}")?;
            }
        }
        Verb::Get { name } => {
            let name = Name::new(&name)?;
            let Some(value) = store.get(&name).await.map_err(told)? else {
                bail!("{} has no '{name}'; hint: controller secret list shows what there is", store.describe())
            };
            out.write_all(value.expose().as_bytes())?;
            if out.is_terminal() && !value.expose().ends_with('\n') {
                writeln!(out)?;
            }
        }
        Verb::Put { name, exact, force } => {
            let name = Name::new(&name)?;
            may_touch(&name, force)?;
            let value = read_value(&name, exact)?;
            redact::register(&value);
            store.put(&name, &value).await.map_err(told)?;
            writeln!(out, "'{name}' is written to {}", store.describe())?;
        }
        Verb::Delete { name, force } => {
            let name = Name::new(&name)?;
            may_touch(&name, force)?;
            let there = store.get(&name).await.map_err(told)?.is_some();
            store.delete(&name).await.map_err(told)?;
            let did = if there { "is deleted from" } else { "was not in" };
            writeln!(out, "'{name}' {did} {}", store.describe())?;
        }
        Verb::Destroy { cluster } => {
            let own = context.project.cluster.as_deref().unwrap_or_default();
            if cluster != own {
                bail!("this is the project of the cluster '{own}', not of '{cluster}'; nothing was deleted")
            }
            let many = store.clear().await.map_err(told)?;
            writeln!(out, "{many} secrets of {cluster} are deleted from {}", store.describe())?;
        }
        Verb::Probe => {
            store.probe().await.map_err(told)?;
            writeln!(out, "{} can be written, read and deleted from", store.describe())?;
        }
    }
    Ok(Exit::Done)
}

/// The store of the project's cluster.
fn store(context: &Context) -> anyhow::Result<Arc<dyn SecretStore>> {
    let project = &context.project;
    let Some(cluster) = &project.cluster else {
        bail!("secrets belong to a cluster, and none is named; hint: put 'cluster: NAME' into rollcall.yaml")
    };
    Ok(open::open(project.store.as_ref(), cluster, &project.root).map_err(Wrong::from)?)
}

/// Names of the table are Rollcall's own.
fn may_touch(name: &Name, force: bool) -> anyhow::Result<()> {
    let first = name.parts().next().unwrap_or_default();
    if force || !RESERVED.contains(&first) {
        return Ok(());
    }
    let what = match Rule::of(name) {
        Some(rule) => {
            let how = match rule.maker {
                Maker::Uuid | Maker::GossipKey => "made when a host first needs it",
                Maker::Issuer => "made by the cluster's authority",
                Maker::Mark => "written when the cluster is formed",
                Maker::Product => "made by the product when a host first needs it",
            };
            format!("'{name}' ({}) is {how}; it is rotated: {}", rule.what, rule.rotation)
        }
        None => format!("names that begin with '{first}/' are Rollcall's own, and '{name}' is none of them"),
    };
    bail!("{what}; hint: --force, if the cluster already knows what you are about to do")
}

fn read_value(name: &Name, exact: bool) -> anyhow::Result<Secret> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let prompt = format!("value of {name}: ");
        return Ok(Secret::new(rpassword::prompt_password(prompt).context("cannot ask for the value")?));
    }
    // One byte more than a store takes, so that the store's own message tells of it; never a whole disk.
    let mut bytes = Vec::with_capacity(MAX_VALUE + 3);
    stdin.lock().take(MAX_VALUE as u64 + 3).read_to_end(&mut bytes).context("cannot read standard input")?;
    let mut text = String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("the value is not UTF-8 text"))?;
    if !exact && text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if (1..MIN_VALUE).contains(&text.len()) {
        bail!(
            "the value is too short: with fewer than {MIN_VALUE} bytes it stands in other words too, and cannot be kept out of logs"
        );
    }
    Ok(Secret::new(text))
}
