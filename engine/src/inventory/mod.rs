//! Hosts, groups and their variables: from files and clouds to what a play can address.
//!
//! [`load`] reads the sources in the order given: static YAML files, `aws_ec2` files, folders of both, and host lists
//! (`-i host,`). Then `group_vars/` and `host_vars/` beside them and beside the playbooks join. The order of hosts and
//! groups is the order of the sources (instances by id), so it is the same in every run.
//!
//! To add a source: recognise its file in `source.rs`, and give a function that adds hosts to a [`model::Builder`].

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    diag::{Diagnostic, Diagnostics, Severity, Sources},
    vars::Vars,
};

/// Host names with ranges and ports.
pub mod address;
/// EC2 as a source.
pub mod aws_ec2;
/// What a source said, kept for a while.
pub mod cache;
/// How a host is reached, from its `ansible_*` variables.
pub mod connection;
/// `-e`.
pub mod extra;
/// Shell globs as Python's fnmatch reads them.
mod glob;
/// Layers of a host's variables, and what templates see of other hosts.
mod host_vars;
/// Hosts and groups.
pub mod model;
/// `--graph`, `--list`, `--host`, `--explain`.
pub mod output;
/// Host patterns.
pub mod patterns;
/// Values as Python prints them.
mod pytext;
/// Recognising files.
mod source;
/// YAML inventories.
mod static_yaml;
/// `group_vars/` and `host_vars/`.
mod vars_files;

pub use connection::{Connection, stays_here};
pub use model::{Group, Host, InstanceRef, Inventory};

/// One `-i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// A file or a folder.
    Path(PathBuf),
    /// `web-1,web-2` or `host,`.
    Hosts(String),
}

impl SourceSpec {
    /// What a user wrote after `-i`: a path, or a list of hosts with at least one comma.
    pub fn parse(text: &str) -> Self {
        if text.contains(',') && !std::path::Path::new(text).exists() {
            Self::Hosts(text.to_owned())
        } else {
            Self::Path(PathBuf::from(text))
        }
    }
}

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Every file that is read is registered here.
    pub sources: Arc<Sources>,
    /// Folders of the playbooks: their `group_vars/` and `host_vars/` count too.
    pub playbook_dirs: Vec<PathBuf>,
    /// `-e`, for `use_extra_vars` and for the expressions in an `aws_ec2` file's settings.
    pub extra: Arc<Vars>,
    /// Where results of cloud queries are kept; none: no cache, whatever the files say.
    pub cache_dir: Option<PathBuf>,
    /// Ask again, and replace what was kept.
    pub refresh_cache: bool,
}

/// A source that was answered from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheUse {
    /// The inventory file.
    pub source: PathBuf,
    /// How old the answer is.
    pub age: Duration,
}

/// Loads all sources. Errors of all files come together; warnings are in [`Inventory::warnings`].
pub async fn load(specs: &[SourceSpec], options: &Options) -> Result<Inventory, Diagnostics> {
    let mut builder = model::Builder::new(options.sources.clone());
    let loaded = source::read_all(specs, options, &mut builder).await;
    if let Err(more) = loaded {
        builder.diagnostics.0.extend(more.0);
    }
    let dirs = source::vars_dirs(specs, options);
    let inventory = builder.finish(&dirs, &options.extra)?;
    if inventory.hosts().next().is_none() && !specs.is_empty() {
        let names: Vec<String> = specs
            .iter()
            .map(|s| match s {
                SourceSpec::Path(path) => path.display().to_string(),
                SourceSpec::Hosts(text) => format!("'{text}'"),
            })
            .collect();
        let mut all = Diagnostics(inventory.warnings);
        all.push(
            Diagnostic::error(crate::diag::Span::NONE, format!("the inventory has no hosts ({})", names.join(", ")))
                .hint("look at its filters, or at the account and the regions that it asks"),
        );
        return Err(all);
    }
    Ok(inventory)
}

/// Splits findings into the warnings, or gives all of them where one is an error.
fn only_warnings(diagnostics: Diagnostics) -> Result<Vec<Diagnostic>, Diagnostics> {
    if diagnostics.0.iter().any(|d| d.severity == Severity::Error) { Err(diagnostics) } else { Ok(diagnostics.0) }
}
