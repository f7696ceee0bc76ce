use std::{io::Write as _, path::Path, sync::Arc};

use anyhow::bail;
use clap::{Args as ClapArgs, ValueEnum};
use rollcall_engine::{
    diag::{Diagnostics, Sources, Span, suggest},
    node::{Kind, Node},
    secrets::{
        policies::{Audience, iam, vault},
        settings::Settings,
    },
};

use crate::{
    context::{Context, Wrong},
    exit::Exit,
};

/// Print the policies that let the controller and the hosts use a store, and keep each from what is not its own.
///
/// They are made from the ownership table (docs/secrets.md), for the cluster and the store of rollcall.yaml.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// For which store.
    #[arg(long)]
    store: StoreKind,
    /// For whom: `controller`, `consul_servers`, `consul_clients`, `nomad_servers`, `nomad_clients`. Without it: all.
    #[arg(long)]
    role: Option<String>,
    /// The node that gets the policy. Without it the policy names who logs in: in Vault the entity's name, in AWS the
    /// session's tag `rollcall-node`.
    #[arg(long)]
    node: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StoreKind {
    /// Policies in HCL, for Vault and OpenBao
    Vault,
    /// Documents for IAM
    Aws,
}

/// The verb.
pub(crate) fn run(args: &Args, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let context = Context::new(sources, &[])?;
    let Some(cluster) = &context.project.cluster else {
        bail!("policies are for a cluster, and none is named; hint: put 'cluster: NAME' into rollcall.yaml")
    };
    let audiences: Vec<Audience> = match &args.role {
        None => Audience::all().collect(),
        Some(name) => match Audience::named(name) {
            Some(audience) => vec![audience],
            None => bail!(
                "there is no role '{name}'; {}",
                suggest(name, Audience::all().map(Audience::name)).unwrap_or_default()
            ),
        },
    };
    let node = args.node.as_deref();
    let text = match settings(&context, args.store)? {
        Settings::Vault(settings) => {
            let one = |audience: &Audience| vault(&settings, cluster, *audience, node);
            audiences.iter().map(one).collect::<Vec<_>>().join("\n")
        }
        Settings::Aws(settings) => {
            let document = match audiences[..] {
                [one] => iam(&settings, cluster, one, node),
                _ => audiences.iter().map(|a| (a.name().to_owned(), iam(&settings, cluster, *a, node))).collect(),
            };
            serde_json::to_string_pretty(&document)? + "\n"
        }
        Settings::File(_) => bail!("the file store has no policies: who can read the file and its key can read all"),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

/// The project's settings if its store is of that kind, the usual ones if it is not.
fn settings(context: &Context, kind: StoreKind) -> anyhow::Result<Settings> {
    let name = match kind {
        StoreKind::Vault => "vault",
        StoreKind::Aws => "aws-secretsmanager",
    };
    let mut out = Diagnostics::default();
    let own = context.project.store.as_ref().filter(|store| store.kind.as_str() == Some(name));
    let read = match own {
        Some(store) => store.read(&context.project.root, &mut out),
        None => {
            let node = |kind| Node { span: Span::NONE, kind };
            let (kind, none) = (node(Kind::Str(name.to_owned())), node(Kind::Map(Vec::new())));
            Settings::read(&kind, &none, Path::new(""), &mut out)
        }
    };
    read.ok_or_else(|| Wrong::from(out).into())
}
