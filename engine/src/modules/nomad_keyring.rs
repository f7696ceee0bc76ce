//! `nomad_keyring`: one step of the rotation of Nomad's gossip key.

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    keyring::{self, Step, Wanted},
    nomad_api::{SecretName, api_args},
};
use crate::cluster::nomad::Nomad;

api_args! {
    /// Arguments.
    pub struct Args {
        /// The name of the key's secret: `nomad/gossip-next`.
        key_from []: SecretName, required;
        /// `installed`: every member has it. `primary`: every member encrypts with it. `only`: no member has another.
        state []: Step, required;
        /// Servers that must be alive members. Whoever is a member must be alive in any case: one that is away would not learn of the key.
        members []: Vec<String>;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_keyring",
    aliases: &[],
    summary: "Installs a gossip key on all members of Nomad, makes it the one they use, or removes all others",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("members", "How many members were asked.")]],
    example: "- name: every member knows the next key\n  nomad_keyring:\n    key_from: nomad/gossip-next\n    state: installed\n    token_secret: nomad/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let wanted = Wanted {
        product: "nomad",
        key_from: &args.key_from,
        state: args.state,
        members: &args.members,
        wait: args.wait,
    };
    keyring::plan::<Nomad>(&wanted, &args.access(), cx)
}
