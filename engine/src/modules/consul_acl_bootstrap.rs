//! `consul_acl_bootstrap`: the first token of a cluster, which may do everything.

use std::{path::PathBuf, time::Duration};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    acl_bootstrap::{self, Bootstraps, Product, Release, Wanted},
    consul_api::{self as api, Hidden, SecretName},
    http::Web,
};
use crate::{
    args,
    cluster::{
        bootstrap::Holder,
        consul::{ApiError, Consul},
    },
    secrets::Secret,
};

args! {
    /// Arguments.
    pub struct Args {
        /// The token's secret, a UUID. All who may bootstrap the cluster must have the same.
        secret []: Option<Hidden>;
        /// The name of the secret instead, `consul/management`: it is written down before anything is asked of the cluster.
        secret_from []: Option<SecretName>;
        /// The name under which it is written down that the cluster was formed, `consul/formed`. A fresh cluster in the place of one
        /// that was formed before is refused: its servers lost what they had.
        mark []: Option<SecretName>;
        /// The version that the servers run. Those before 1.15 choose the secret themselves, and are refused.
        version []: Release, required;
        /// How many servers must vote before it is done.
        servers []: Option<u32>;
        /// This server's API.
        url []: Web = api::url("http://127.0.0.1:8500");
        /// Certificates (PEM) of who signed the server's, for `https`.
        ca_file []: Option<PathBuf>;
        /// For how many seconds to try.
        timeout []: Duration = Duration::from_mins(5);
    }
}

/// What is Consul's own.
static PRODUCT: Product = Product {
    name: "Consul",
    first: Release(1, 15, 0),
    mark: "consul/formed",
    page: "docs/role-consul.md",
    reset: None,
};

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_bootstrap",
    aliases: &[],
    summary: "Bootstraps Consul's ACLs, once per cluster, with a secret that is known beforehand",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("accessor_id", "The accessor of the token; not its secret."),
        ("foreign_bootstrap", "In failures: someone else bootstrapped the cluster."),
        ("total_loss", "In failures: the cluster was formed before, and a fresh one stands in its place."),
    ]],
    example: "- name: the cluster's first token\n  consul_acl_bootstrap:\n    secret_from: consul/management\n    version: 1.22.2\n    servers: 3\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let wanted = Wanted {
        secret: args.secret.as_ref(),
        secret_from: args.secret_from.as_ref(),
        mark: args.mark.as_ref(),
        version: &args.version,
        servers: args.servers,
        url: &args.url,
        ca_file: args.ca_file.as_ref(),
        reset: false,
        timeout: args.timeout,
    };
    acl_bootstrap::plan::<Consul>(&wanted, cx)
}

impl Bootstraps for Consul {
    const PRODUCT: &'static Product = &PRODUCT;

    fn with(&self, token: &Secret) -> Self {
        Self::with(self, token)
    }
    fn leader(&self) -> Result<String, ApiError> {
        Self::leader(self)
    }
    fn peers(&self) -> Result<usize, ApiError> {
        Self::peers(self).map(|peers| peers.len())
    }
    fn bootstrap(&self, secret: &Secret) -> Result<Secret, ApiError> {
        Self::bootstrap(self, secret)
    }
    fn own(&self, here: bool) -> Result<Holder, ApiError> {
        let token = self.own_token(here)?;
        Ok(Holder { accessor: token.accessor, management: token.management })
    }
    fn is_bootstrapped(&self) -> Result<bool, ApiError> {
        Self::is_bootstrapped(self)
    }
}

#[cfg(test)]
mod tests;
