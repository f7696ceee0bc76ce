//! `consul_autopilot`: how Consul's servers look after each other.

use serde_json::{Map, Value};

use super::{Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan, autopilot, consul_api::api_args};
use crate::cluster::consul::Consul;

api_args! {
    /// Arguments.
    pub struct Args {
        /// Settings as in the configuration's block `autopilot`: `{min_quorum: 5, cleanup_dead_servers: true}`. Those that are not named,
        /// or null, stay as they are.
        settings []: Map<String, Value>, required;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_autopilot",
    aliases: &[],
    summary: "Changes how Consul's servers look after each other, which its configuration says only when the cluster is formed",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("index", "The index at which the settings were written.")]],
    example: "- name: five servers, of which autopilot takes none away\n  consul_autopilot:\n    settings: {min_quorum: 5}\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    autopilot::plan::<Consul>("consul", args.settings.clone(), (&args.access(), args.wait), cx)
}
