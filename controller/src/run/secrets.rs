//! Secrets on the controller: who answers for them, and what is told without them.

use std::sync::Arc;

use rollcall_engine::{
    project::Project,
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants, Issued, SignRequest, Wish},
        issuer::{Issuer, Own},
        ownership::Reader,
        redact::Scrub,
    },
};

use super::events::RunEvent;

/// Who answers the hosts of a project's run. The store is opened when the first secret is asked for.
pub(crate) fn issuer(_project: &Project) -> Issuer {
    Issuer::new(Box::new(|| Err(GrantError::refused("the project has no store of secrets"))), Own::default())
}

/// Answers a task that is delegated to this machine, as any host is answered: with the rights of the inventory's
/// `localhost`, if it has one. To be used outside of the runtime's own threads.
#[derive(Debug)]
pub(crate) struct Here {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) host: String,
    pub(crate) groups: Vec<String>,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Nothing is made.
    pub(crate) check: bool,
}

impl Here {
    fn ask(&self, name: &Name, wish: Wish) -> Result<Secret, GrantError> {
        let reader = Reader { host: &self.host, groups: &self.groups };
        let told = |what: String| tracing::info!(target: "rollcall::run", "{what}");
        self.runtime.block_on(self.issuer.secret(reader, name.as_str(), wish, &told))
    }
}

impl Grants for Here {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        self.ask(name, if self.check { Wish::Look } else { Wish::Make })
    }

    fn mark(&self, name: &Name) -> Result<Secret, GrantError> {
        if self.check {
            return Err(GrantError::NotYet(format!("'{name}' is written down when this is carried out")));
        }
        self.ask(name, Wish::Mark)
    }

    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("certificates are for hosts: this machine gets none"))
    }
}

impl Scrub for RunEvent {
    fn scrub(&mut self) {
        match self {
            Self::HostUnreachable { reason, .. } => reason.scrub(),
            Self::Problem { diagnostic, .. } => diagnostic.scrub(),
            Self::PlayStart { play, .. } => play.scrub(),
            Self::TaskStart { name, .. } => name.scrub(),
            Self::Item { result, .. } | Self::Task { result, .. } => result.scrub(),
            Self::Retry { name, msg, .. } => {
                name.scrub();
                msg.scrub();
            }
            Self::Waiting { what, .. } => what.scrub(),
            Self::Restored { name, files, why, .. } => {
                name.scrub();
                files.scrub();
                why.scrub();
            }
            Self::Owed { name, why, .. } => {
                name.scrub();
                why.scrub();
            }
            Self::Notice { text } => text.scrub(),
            Self::HostReady { owed, .. } => owed.scrub(),
            Self::Recap { remark, .. } => remark.scrub(),
            // What the project itself says, before any secret is read.
            Self::RunStart { .. } | Self::BatchStart { .. } => {}
        }
    }
}
