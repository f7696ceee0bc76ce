//! Secrets on the controller: who answers for them, and what is told without them.

use std::sync::Arc;

use rollcall_engine::{
    diag::{Diagnostics, Sources, Span},
    project::Project,
    secrets::{
        self, Name, Secret, SecretStore,
        grants::{GrantError, Grants, Issued, SignRequest, Wish},
        issuer::{Issuer, Own},
        ownership::Reader,
        redact::Scrub,
    },
};

use super::events::RunEvent;

/// Who answers the hosts of a project's run. The store is opened when the first secret is asked for.
pub(crate) fn issuer(project: &Project, sources: &Arc<Sources>) -> Issuer {
    // What is wrong with the grants was told when the project was read.
    let own = project.store.as_ref().map(|store| Own::read(store, &mut Diagnostics::default()));
    let cluster = project.cluster.clone().unwrap_or_default();
    let (project, sources) = (project.clone(), Arc::clone(sources));
    Issuer::new(Box::new(move || open(&project, &sources)), own.unwrap_or_default()).of_cluster(&cluster)
}

/// The store of a project's cluster.
pub(crate) fn open(project: &Project, sources: &Sources) -> Result<Arc<dyn SecretStore>, GrantError> {
    closed();
    let cluster = project.cluster.as_deref().ok_or_else(|| {
        GrantError::refused_with(
            "the project does not say which cluster it is, and each cluster has its own secrets",
            "give it a name in rollcall.yaml: `cluster: NAME`",
        )
    })?;
    let wrong = |found: Diagnostics| {
        let hint = found.0.iter().find_map(|d| d.hint.clone());
        let why: Vec<String> = found.0.iter().map(|d| format!("{}{}", place(sources, d.span), d.message)).collect();
        GrantError::Refused { why: format!("the secrets store cannot be opened: {}", why.join("; ")), hint }
    };
    secrets::open::open(project.store.as_ref(), cluster, &project.root).map_err(wrong)
}

/// From here on this process holds secrets: it leaves no core dump, and who is not root does not read its memory.
fn closed() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::debug!(target: "rollcall::run", %error, "a core dump of this process would hold secrets");
    }
}

/// `rollcall.yaml:3: `, where there is such a place.
fn place(sources: &Sources, span: Span) -> String {
    match sources.get(span.file) {
        Some(source) if span.line > 0 => format!("{}:{}: ", source.path.display(), span.line),
        _ => String::new(),
    }
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

    fn keep(&self, name: &Name, value: &Secret, in_place_of: Option<&Secret>) -> Result<Secret, GrantError> {
        if self.check {
            return Err(GrantError::NotYet(format!("'{name}' is kept when this is carried out")));
        }
        let reader = Reader { host: &self.host, groups: &self.groups };
        let told = |what: String| tracing::info!(target: "rollcall::run", "{what}");
        self.runtime.block_on(self.issuer.keep(reader, name.as_str(), value, in_place_of, &told))
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
