//! What `up` decided once about a lab, for its supervisor and for every later verb.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::cloud::Owner;
use crate::failure::Failure;
use crate::paths::{LabPaths, labs, write_atomic};
use crate::serve::Prepared;
use crate::spec::{self, Spec};

/// Counts up when the meaning of the fields changes.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) name: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) owner: Owner,
    /// As the user named it.
    pub(crate) file: String,
    /// The whole lab file: what the lab was made from, even if the file has changed since.
    pub(crate) text: String,
    /// Root of the image.
    pub(crate) base: PathBuf,
    pub(crate) prepared: Prepared,
}

impl Record {
    pub(crate) fn new(
        name: &str,
        subnet: Ipv4Net,
        owner: Owner,
        file: String,
        text: String,
        base: PathBuf,
        prepared: Prepared,
    ) -> Self {
        Self { version: VERSION, name: name.to_owned(), subnet, owner, file, text, base, prepared }
    }

    pub(crate) fn spec(&self) -> Result<Spec> {
        Ok(spec::parse(&self.file, &self.text)?)
    }

    pub(crate) fn write(&self, paths: &LabPaths) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("cannot write the lab's record")?;
        write_atomic(&paths.record(), &text, 0o644)
    }

    /// Nothing when there is none, or when a crash or another version left one that cannot be read.
    pub(crate) fn read(paths: &LabPaths) -> Option<Self> {
        let text = std::fs::read_to_string(paths.record()).ok()?;
        serde_json::from_str::<Self>(&text).ok().filter(|record| record.version == VERSION)
    }

    /// The record of a lab that must be there.
    pub(crate) fn of(paths: &LabPaths) -> Result<Self> {
        Self::read(paths).ok_or_else(|| {
            let hint =
                if paths.dir().exists() { format!("lab down --name {}", paths.name) } else { "lab up FILE".to_owned() };
            Failure::new(format!("no lab '{}' is up", paths.name), hint).into()
        })
    }
}

/// Set in a lab's shell: the lab that is meant there.
pub(crate) const VARIABLE: &str = "ROLLCALL_LAB";

/// The lab that a verb means: the named one, else that of the shell, else the only one.
pub(crate) fn choose(name: Option<&str>) -> Result<LabPaths> {
    let of_shell = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty());
    choose_from(name.or(of_shell.as_deref()), &labs()?)
}

fn choose_from(name: Option<&str>, labs: &[String]) -> Result<LabPaths> {
    match (name, labs) {
        (Some(name), _) => {
            spec::check_lab_name(name).map_err(anyhow::Error::msg)?;
            Ok(LabPaths::new(name))
        }
        (None, [only]) => Ok(LabPaths::new(only)),
        (None, []) => Err(Failure::new("no lab is up", "lab up FILE").into()),
        (None, several) => {
            Err(Failure::new("several labs are up", format!("name one with --name: {}", several.join(", "))).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_lab_needs_no_name() {
        let one = ["a".to_owned()];
        let two = ["a".to_owned(), "b".to_owned()];
        assert_eq!(choose_from(None, &one).unwrap().name, "a");
        assert_eq!(choose_from(Some("c"), &one).unwrap().name, "c");
        assert!(choose_from(None, &[]).unwrap_err().to_string().contains("no lab is up"));
        assert!(choose_from(None, &two).is_err());
        assert!(choose_from(Some("../etc"), &one).is_err());
    }
}
