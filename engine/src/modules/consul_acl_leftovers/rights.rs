//! Roles and policies that are ours and wanted no more.

use super::{Args, Left, api};
use crate::cluster::consul::{ApiError, BindingRule, Consul, Policy, Role, Token};

/// What gives roles and policies, and who has them, when all else that is to go is gone.
struct Uses {
    rules: Vec<BindingRule>,
    roles: Vec<Role>,
    tokens: Vec<Token>,
}

impl Uses {
    fn of_policy(&self, name: &str) -> bool {
        self.roles.iter().any(|role| role.rights.policies.contains(name))
            || self.tokens.iter().any(|token| token.rights.policies.contains(name))
            || self.rules.iter().any(|rule| rule.gives("policy", name))
    }
}

impl Left {
    pub(super) fn look_at_rights(&mut self, consul: &Consul, args: &Args) -> Result<(), ApiError> {
        let kind = args.roles_of.as_ref().map(|of| api::ours(of));
        if kind.is_none() && args.renamed.is_empty() {
            return Ok(());
        }
        let unwanted = |name: &String, description: &str| {
            kind.as_ref().is_some_and(|kind| description.starts_with(kind.as_str())) && !args.roles.contains(name)
        };
        let all = consul.policies()?;
        let policies: Vec<&Policy> = all.iter().filter(|p| unwanted(&p.name, &p.description)).collect();
        let pairs = pairs(&all, &args.renamed);
        let roles = if kind.is_some() { consul.roles()? } else { Vec::new() };
        // What follows is asked only where there is something.
        if policies.is_empty() && pairs.is_empty() && !roles.iter().any(|role| unwanted(&role.name, &role.description))
        {
            return Ok(());
        }
        let mut rules = consul.all_binding_rules()?;
        rules.retain(|rule| {
            !self.methods.contains(&rule.auth_method) && !self.rules.iter().any(|(id, _)| *id == rule.id)
        });
        let roles = if kind.is_some() { roles } else { consul.roles()? };
        let mut uses = Uses { rules, roles: Vec::new(), tokens: consul.tokens()? };
        for role in roles {
            let goes = unwanted(&role.name, &role.description) && self.role_goes(&role, args, &uses);
            if goes { self.roles.push((role.id, role.name)) } else { uses.roles.push(role) }
        }
        let gone = policies.into_iter().filter(|policy| !uses.of_policy(&policy.name));
        let (used, unused): (Vec<&Policy>, Vec<&Policy>) = pairs.into_iter().partition(|p| uses.of_policy(&p.name));
        // A newer one that nothing uses yet is about to be given to somebody.
        let replaced = unused.into_iter().filter(|policy| {
            used.iter().any(|other| other.description == policy.description && other.made > policy.made)
        });
        let mut names: Vec<(String, String)> =
            gone.chain(replaced).map(|policy| (policy.id.clone(), policy.name.clone())).collect();
        names.sort_by(|one, other| one.1.cmp(&other.1));
        names.dedup();
        self.policies = names;
        Ok(())
    }

    /// Whether a role that is not wanted goes now. One of another method's is not ours to judge; one that the method itself would go
    /// on giving is what somebody wants nobody to have any more; of any other, such as one under the name of before, those who have it
    /// keep it until they log in anew.
    fn role_goes(&mut self, role: &Role, args: &Args, uses: &Uses) -> bool {
        let mut givers = uses.rules.iter().filter(|rule| rule.gives("role", &role.name)).peekable();
        if givers.peek().is_some() {
            return givers.all(|rule| Some(&rule.auth_method) == args.auth_method.as_ref());
        }
        let has = uses.tokens.iter().any(|token| token.rights.roles.contains(&role.name));
        if has {
            self.in_use.insert(format!("role {}", role.name));
        }
        !has
    }
}

/// Policies whose descriptions begin with one of these, and are those of others, too.
fn pairs<'p>(all: &'p [Policy], renamed: &[String]) -> Vec<&'p Policy> {
    let kinds: Vec<String> = renamed.iter().map(|of| api::ours(of)).collect();
    let of_kind = |policy: &&Policy| kinds.iter().any(|kind| policy.description.starts_with(kind.as_str()));
    let ours: Vec<&Policy> = all.iter().filter(of_kind).collect();
    let twice = |policy: &&Policy| ours.iter().filter(|other| other.description == policy.description).count() > 1;
    ours.iter().copied().filter(twice).collect()
}
