//! `nomad_acl_bootstrap`: the first token of a cluster, which may do everything.

use std::{path::PathBuf, time::Duration};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    acl_bootstrap::{self, Bootstraps, Product, Release, Wanted},
    http::Web,
    nomad_api::{self as api, Hidden, SecretName},
};
use crate::{
    args,
    cluster::{
        bootstrap::Holder,
        nomad::{ApiError, Nomad},
    },
    secrets::Secret,
};

args! {
    /// Arguments.
    pub struct Args {
        /// The token's secret, a UUID. All who may bootstrap the cluster must have the same.
        secret []: Option<Hidden>;
        /// The name of the secret instead, `nomad/management`: it is written down before anything is asked of the cluster.
        secret_from []: Option<SecretName>;
        /// The name under which it is written down that the cluster was formed, `nomad/formed`. A fresh cluster in the place of one
        /// that was formed before is refused: its servers lost what they had.
        mark []: Option<SecretName>;
        /// The version that the servers run. Those before 1.3.2 choose the secret themselves, and are refused.
        version []: Release, required;
        /// How many servers must vote before it is done.
        servers []: Option<u32>;
        /// This server's API.
        url []: Web = api::url("http://127.0.0.1:4646");
        /// Certificates (PEM) of who signed the server's, for `https`.
        ca_file []: Option<PathBuf>;
        /// Somebody has put Nomad's file there that resets the ACLs (`acl-bootstrap-reset`). With it a cluster that was bootstrapped answers
        /// as one that never was, so `mark` is not looked at: for one run, never for good.
        reset []: bool = false;
        /// For how many seconds to try.
        timeout []: Duration = Duration::from_mins(5);
    }
}

/// What is Nomad's own.
static PRODUCT: Product = Product {
    name: "Nomad",
    first: Release(1, 3, 2),
    mark: "nomad/formed",
    page: "docs/role-nomad.md",
    reset: Some("nomad_acl_reset"),
};

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_acl_bootstrap",
    aliases: &[],
    summary: "Bootstraps Nomad's ACLs, once per cluster, with a secret that is known beforehand",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("accessor_id", "The accessor of the token; not its secret."),
        ("foreign_bootstrap", "In failures: someone else bootstrapped the cluster."),
        ("total_loss", "In failures: the cluster was formed before, and a fresh one stands in its place."),
    ]],
    example: "- name: the cluster's first token\n  nomad_acl_bootstrap:\n    secret_from: nomad/management\n    version: 1.11.2\n    servers: 3\n",
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
        reset: args.reset,
        timeout: args.timeout,
    };
    acl_bootstrap::plan::<Nomad>(&wanted, cx)
}

impl Bootstraps for Nomad {
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
    // Nomad's servers ask their leader, whichever is asked.
    fn own(&self, _: bool) -> Result<Holder, ApiError> {
        let token = self.own_token()?;
        Ok(Holder { accessor: token.accessor, management: token.management })
    }
    fn is_bootstrapped(&self) -> Result<bool, ApiError> {
        Self::is_bootstrapped(self)
    }
}

#[cfg(test)]
mod tests;
