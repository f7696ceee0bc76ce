//! From a project's settings to its store.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    SecretStore,
    aws::AwsStore,
    file::{FileStore, Places},
    settings::{self, Settings, is_plain},
    vault::VaultStore,
    witness::Witnessed,
};
use crate::{
    diag::{Diagnostic, Diagnostics, Span},
    project::Store,
};

/// The store of a cluster. Without `store:` it is the `file` store in its usual place. Nothing is asked, read or made before
/// the store is used.
///
/// `cluster` is the cluster's name, under which its secrets are kept; `root` the project's folder.
pub fn open(store: Option<&Store>, cluster: &str, root: &Path) -> Result<Arc<dyn SecretStore>, Diagnostics> {
    if cluster.is_empty() || cluster.starts_with('.') || !cluster.bytes().all(is_plain) {
        let wrong = Diagnostic::error(Span::NONE, format!("'{cluster}' cannot name a cluster with secrets"))
            .hint("'cluster' of rollcall.yaml: letters, digits, '-', '_' and '.'");
        return Err(wrong.into());
    }
    let mut out = Diagnostics::default();
    let settings = match store {
        Some(store) => store.read(root, &mut out),
        None => Some(Settings::File(settings::File::default())),
    };
    let Some(settings) = settings else { return Err(out) };
    let span = store.map_or(Span::NONE, |store| store.kind.span);
    match settings {
        Settings::File(settings) => {
            let places = places(settings, cluster, span, root)?;
            Ok(Arc::new(FileStore::new(cluster, places)))
        }
        Settings::Vault(settings) => {
            let address = address(&settings, span)?;
            Ok(witnessed(Arc::new(VaultStore::new(cluster, &address, settings))))
        }
        Settings::Aws(settings) => Ok(witnessed(Arc::new(AwsStore::new(cluster, settings)))),
    }
}

/// With what this machine remembers of it, if it has a place for that.
fn witnessed(store: Arc<dyn SecretStore>) -> Arc<dyn SecretStore> {
    match seen() {
        Some(seen) => Arc::new(Witnessed::new(store, &seen)),
        None => store,
    }
}

/// The folder for what was seen of stores.
fn seen() -> Option<PathBuf> {
    xdg("XDG_STATE_HOME", ".local/state").map(|state| state.join("stores"))
}

/// Where a `file` store is: as told, or in the user's folders.
fn places(settings: settings::File, cluster: &str, span: Span, root: &Path) -> Result<Places, Diagnostic> {
    let missing = |key: &str| {
        Diagnostic::error(span, "there is no home folder, in which the store's files usually are")
            .hint(format!("'{key}' of the store names the file"))
    };
    let makes_folder = settings.path.is_none();
    let path = match settings.path {
        Some(path) => std::path::absolute(root.join(&path)).unwrap_or(path),
        None => xdg("XDG_DATA_HOME", ".local/share").ok_or_else(|| missing("path"))?.join(format!("{cluster}.age")),
    };
    let identity = match settings.identity {
        Some(identity) => identity,
        None => xdg("XDG_CONFIG_HOME", ".config").ok_or_else(|| missing("identity"))?.join("identity.txt"),
    };
    Ok(Places {
        path,
        identity,
        seen: seen(),
        recipients: settings.recipients,
        lock_timeout: settings.lock_timeout,
        makes_folder,
    })
}

/// The server's address: as told, or as every Vault program is told.
fn address(settings: &settings::Vault, span: Span) -> Result<String, Diagnostic> {
    let told = settings.address.clone().or_else(|| std::env::var("VAULT_ADDR").ok().filter(|a| !a.is_empty()));
    let Some(address) = told else {
        return Err(Diagnostic::error(span, "the vault store needs the server's address")
            .hint("'address' of the store, or VAULT_ADDR in the environment"));
    };
    settings::checked_address(&address, settings.other_consul, span)
}

/// A folder of the user's for this program, after XDG.
fn xdg(variable: &str, usual: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = named.or_else(|| std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(usual)))?;
    Some(base.join("rollcall"))
}
