//! `consul_acl_role`: a role of Consul's ACLs.

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    consul_api::{self as api, State, api_args},
    object::{self, Object},
};
use crate::cluster::consul::{ApiError, Consul, NodeIdentity, Rights, Role, ServiceIdentity, TemplatedPolicy};

api_args! {
    /// Arguments.
    pub struct Args {
        /// Its name.
        name []: String, required;
        /// What it is for. Consul shows `Made by Rollcall: …`.
        description []: String = String::new();
        /// Names of policies.
        policies []: Vec<String>;
        /// Services that it may be: names, or mappings of `name` and `datacenters`.
        service_identities []: Vec<ServiceIdentity>;
        /// Nodes that it may be: mappings of `name` and `datacenter`.
        node_identities []: Vec<NodeIdentity>;
        /// Consul's own policies: `builtin/dns`, or mappings of `template`, `name` and `datacenters` (1.17 and newer).
        templated_policies []: Vec<TemplatedPolicy>;
        /// `absent` removes it if Rollcall made it.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_role",
    aliases: &[],
    summary: "Makes, changes or removes a role of Consul's ACLs",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("id", "The role's id.")]],
    example: "- name: what the shop may do\n  consul_acl_role:\n    name: shop\n    policies: [catalog]\n    service_identities: [shop, basket]\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let wanted = (args.state == State::Present).then(|| Role {
        id: String::new(),
        name: args.name.clone(),
        description: api::ours(&args.description),
        rights: Rights {
            policies: args.policies.iter().cloned().collect(),
            service_identities: args.service_identities.iter().cloned().collect(),
            node_identities: args.node_identities.iter().cloned().collect(),
            templated_policies: args.templated_policies.iter().cloned().collect(),
            ..Rights::default()
        },
    });
    object::plan(args.name.clone(), wanted, (&args.access(), args.wait), cx)
}

impl Object for Role {
    type Api = Consul;
    const PRODUCT: &'static str = "Consul";
    const KIND: &'static str = "role";

    fn id(&self) -> &str {
        &self.id
    }

    fn with_id(self, id: String) -> Self {
        Self { id, ..self }
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn same(&self, other: &Self) -> bool {
        (&self.description, &self.rights) == (&other.description, &other.rights)
    }

    fn lines(&self) -> String {
        format!("description: {}\n{}", self.description, self.rights.lines())
    }

    fn find(consul: &Consul, name: &str) -> Result<Option<Self>, ApiError> {
        consul.role(name)
    }

    fn write(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.write_role(self)
    }

    fn delete(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.delete_role(&self.id)
    }
}

#[cfg(test)]
mod tests;
