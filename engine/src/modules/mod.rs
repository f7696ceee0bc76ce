//! Modules: what a task can do on a host. One file each.
//!
//! A module is a [`Definition`]: its names, its arguments (declared once with [`args!`](crate::args), which gives the
//! parser, the defaults and the documentation) and `plan`. `plan` looks at the host and answers with a [`Plan`]:
//! nothing to do, or a [`Change`] that can be applied. Only a `Change` ever gets a machine that it can write.
//!
//! To add a module: a file here with `args!` and a `pub const DEFINITION`, a line in [`DEFINITIONS`], tests in the file.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    host::{Read, Write},
    secrets::grants::Grants,
};

mod acl_bootstrap;
mod api;
mod apt;
mod archive;
pub mod args;
/// `assert`.
pub mod assert;
mod autopilot;
/// `certificate`.
pub mod certificate;
/// `cluster_loss`.
pub mod cluster_loss;
/// `command`.
pub mod command;
/// `consul_acl_auth_method`.
pub mod consul_acl_auth_method;
/// `consul_acl_binding_rule`.
pub mod consul_acl_binding_rule;
/// `consul_acl_bootstrap`.
pub mod consul_acl_bootstrap;
/// `consul_acl_leftovers`.
pub mod consul_acl_leftovers;
/// `consul_acl_policy`.
pub mod consul_acl_policy;
/// `consul_acl_role`.
pub mod consul_acl_role;
/// `consul_acl_token`.
pub mod consul_acl_token;
/// `consul_acl_token_rotate`.
pub mod consul_acl_token_rotate;
/// `consul_acl_tokens`.
pub mod consul_acl_tokens;
/// `consul_agent_token`.
pub mod consul_agent_token;
mod consul_api;
/// `consul_autopilot`.
pub mod consul_autopilot;
/// `consul_keyring`.
pub mod consul_keyring;
/// `consul_kv`.
pub mod consul_kv;
/// `consul_member`.
pub mod consul_member;
/// `copy`.
pub mod copy;
/// `debug`.
pub mod debug;
mod docker;
/// `docker_container`.
pub mod docker_container;
/// `docker_image`.
pub mod docker_image;
/// `download`.
pub mod download;
/// `fail`.
pub mod fail;
#[cfg(test)]
pub(crate) mod fake;
mod fetch;
/// `file`.
pub mod file;
/// `group`.
pub mod group;
/// `hostname`.
pub mod hostname;
pub(crate) mod http;
mod keyring;
/// `lineinfile`.
pub mod lineinfile;
/// `nomad_acl_bootstrap`.
pub mod nomad_acl_bootstrap;
/// `nomad_acl_policy`.
pub mod nomad_acl_policy;
/// `nomad_acl_token`.
pub mod nomad_acl_token;
/// `nomad_acl_token_rotate`.
pub mod nomad_acl_token_rotate;
/// `nomad_acl_tokens`.
pub mod nomad_acl_tokens;
mod nomad_api;
/// `nomad_autopilot`.
pub mod nomad_autopilot;
/// `nomad_job`.
pub mod nomad_job;
/// `nomad_keyring`.
pub mod nomad_keyring;
/// `nomad_member`.
pub mod nomad_member;
/// `nomad_namespace`.
pub mod nomad_namespace;
/// `nomad_restart`.
pub mod nomad_restart;
/// `nomad_variable`.
pub mod nomad_variable;
mod object;
/// `package`.
pub mod package;
mod place;
/// `repository`.
pub mod repository;
mod rules;
/// `service`.
pub mod service;
/// `set_fact`.
pub mod set_fact;
/// `shell`.
pub mod shell;
/// `stat`.
pub mod stat;
pub(crate) mod steps;
/// `systemd_unit`.
pub mod systemd_unit;
/// `template`.
pub mod template;
/// `unarchive`.
pub mod unarchive;
/// `uri`.
pub mod uri;
/// `user`.
pub mod user;
/// `wait_for`.
pub mod wait_for;

pub use args::{Arg, FromArg};

/// Every module, in the order of the manual.
pub const DEFINITIONS: &[&Definition] = &[
    &assert::DEFINITION,
    &certificate::DEFINITION,
    &cluster_loss::DEFINITION,
    &command::DEFINITION,
    &consul_acl_auth_method::DEFINITION,
    &consul_acl_binding_rule::DEFINITION,
    &consul_acl_bootstrap::DEFINITION,
    &consul_acl_leftovers::DEFINITION,
    &consul_acl_policy::DEFINITION,
    &consul_acl_role::DEFINITION,
    &consul_acl_token::DEFINITION,
    &consul_acl_token_rotate::DEFINITION,
    &consul_acl_tokens::DEFINITION,
    &consul_agent_token::DEFINITION,
    &consul_autopilot::DEFINITION,
    &consul_keyring::DEFINITION,
    &consul_kv::DEFINITION,
    &consul_member::DEFINITION,
    &copy::DEFINITION,
    &debug::DEFINITION,
    &docker_container::DEFINITION,
    &docker_image::DEFINITION,
    &download::DEFINITION,
    &fail::DEFINITION,
    &file::DEFINITION,
    &group::DEFINITION,
    &hostname::DEFINITION,
    &lineinfile::DEFINITION,
    &nomad_acl_bootstrap::DEFINITION,
    &nomad_acl_policy::DEFINITION,
    &nomad_acl_token::DEFINITION,
    &nomad_acl_token_rotate::DEFINITION,
    &nomad_acl_tokens::DEFINITION,
    &nomad_autopilot::DEFINITION,
    &nomad_job::DEFINITION,
    &nomad_keyring::DEFINITION,
    &nomad_member::DEFINITION,
    &nomad_namespace::DEFINITION,
    &nomad_restart::DEFINITION,
    &nomad_variable::DEFINITION,
    &package::DEFINITION,
    &repository::DEFINITION,
    &service::DEFINITION,
    &set_fact::DEFINITION,
    &shell::DEFINITION,
    &stat::DEFINITION,
    &systemd_unit::DEFINITION,
    &template::DEFINITION,
    &unarchive::DEFINITION,
    &uri::DEFINITION,
    &user::DEFINITION,
    &wait_for::DEFINITION,
];

/// The module of a name: short, fully qualified (`ansible.builtin.copy`), or a name that people know (`apt`).
pub fn find(name: &str) -> Option<&'static Definition> {
    let short = name.strip_prefix("ansible.builtin.").or_else(|| name.strip_prefix("ansible.legacy.")).unwrap_or(name);
    DEFINITIONS.iter().copied().find(|d| d.name == short || d.aliases.contains(&short))
}

/// All names that [`find`] knows, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    DEFINITIONS.iter().flat_map(|d| std::iter::once(d.name).chain(d.aliases.iter().copied()))
}

/// What the executor must bring along for a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The file or folder that argument `src` names, from the role's or play's `files/` (unless `remote_src`).
    File,
    /// The template that argument `src` names, rendered.
    Template,
}

/// How a plain string after the module's name is read (`command: uptime`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeForm {
    /// Not allowed.
    No,
    /// It is this argument.
    Arg(&'static str),
}

/// Names of results, each with what it is. A name in capitals stands for what a call names.
pub type Results = [(&'static str, &'static str)];

/// A module.
#[derive(Debug)]
pub struct Definition {
    /// The name in the manual.
    pub name: &'static str,
    /// Names that people know it by.
    pub aliases: &'static [&'static str],
    /// One sentence.
    pub summary: &'static str,
    /// The arguments.
    pub args: &'static [Arg],
    /// How a plain string is read.
    pub free_form: FreeForm,
    /// What is brought along.
    pub needs: Needs,
    /// What `register` sees besides `changed`, `failed`, `skipped` and `msg`.
    pub results: &'static [&'static Results],
    /// A task of YAML that works, for the manual and the tests.
    pub example: &'static str,
    /// Looks, and says what would change.
    pub plan: fn(&Invocation, &Cx<'_>) -> Result<Plan, Failure>,
}

impl Definition {
    /// All results, in the order of the manual.
    pub fn results(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.results.iter().copied().flatten().copied()
    }

    /// Results of a call that the manual does not name.
    #[cfg(test)]
    pub(crate) fn untold(&self, data: &Map<String, Value>) -> Vec<String> {
        if self.results().any(|(name, _)| name.starts_with(char::is_uppercase)) {
            return Vec::new();
        }
        data.keys().filter(|key| !self.results().any(|(name, _)| name == *key)).cloned().collect()
    }
}

/// A module's call, everything rendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invocation {
    /// The module's name in the manual.
    pub module: String,
    /// Arguments, as given (defaults not filled in).
    pub args: Map<String, Value>,
    /// What [`Needs`] asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The task's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<(String, String)>,
    /// Build diffs.
    pub diff: bool,
    /// The task's `timeout`: its commands are killed after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Something secret was asked for to make the arguments or the content: differences do not show what changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

/// File content that travels with a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Content {
    /// One file. `mode` is the source's, for `mode: preserve`. `secret`: never shown in a diff.
    File {
        /// The bytes.
        #[serde(with = "crate::modules::args::base64_bytes")]
        bytes: Vec<u8>,
        /// Permission bits of the source.
        mode: u32,
        /// A template that asked for a secret.
        secret: bool,
    },
    /// A folder: entries in name order, parents first.
    Tree(Vec<TreeEntry>),
}

/// A file or folder of a [`Content::Tree`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Relative path.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// `None` for a folder.
    pub bytes: Option<Base64>,
}

/// Bytes that are base64 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Base64(#[serde(with = "crate::modules::args::base64_bytes")] pub Vec<u8>);

/// What a plan may look at.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    /// The machine.
    pub host: &'a dyn Read,
    /// The run's architecture and such facts as modules need (`facts.os.family`, `facts.arch`).
    pub facts: &'a Value,
    /// Who answers for secrets and certificates.
    pub secrets: &'a Arc<dyn Grants>,
}

impl std::fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cx")
    }
}

/// What a plan says.
#[derive(Debug)]
pub enum Plan {
    /// The host is as it should be (or the module only looks, like `stat`).
    Unchanged(Outcome),
    /// Something is to be done.
    Change(Box<dyn Change>),
}

/// What is to be done. Made by `plan` only.
pub trait Change: std::fmt::Debug + Send {
    /// What it would look like, in the order of application; contents only where `diff` was asked for.
    fn diffs(&self) -> Vec<Diff>;
    /// Existing and new files that it replaces or makes: their previous version is kept while a handler is owed.
    fn paths(&self) -> Vec<PathBuf> {
        Vec::new()
    }
    /// Does it. On an overlay it records what it would do, and says [`Outcome::unknown`] where that cannot be known.
    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure>;
}

/// A difference that a person can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// A path, `user consul`, `unit consul.service`.
    pub what: String,
    /// Before; empty where nothing was.
    pub before: String,
    /// After; empty where nothing will be.
    pub after: String,
    /// The content is not shown; before and after then say only how many lines.
    #[serde(default)]
    pub hidden: bool,
}

/// How a module's call ended well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Something was (or, in check mode, would be) changed.
    pub changed: bool,
    /// In check mode: nobody can know; reported as `may change`.
    #[serde(default)]
    pub unknown: bool,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg: Option<String>,
    /// The module's results: what `register` sees besides `changed`, `failed`, `skipped`, `msg`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// Told with the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Outcome {
    /// Nothing changed.
    pub fn unchanged() -> Self {
        Self::default()
    }

    /// Something changed.
    pub fn changed() -> Self {
        Self { changed: true, ..Self::default() }
    }

    /// May change: nobody knows.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { unknown: true, msg: Some(why.into()), ..Self::default() }
    }

    /// Adds the line for people.
    pub fn msg(mut self, msg: impl Into<String>) -> Self {
        self.msg = Some(msg.into());
        self
    }

    /// Adds a result.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.data.insert(name.to_owned(), value.into());
        self
    }
}

/// How a module's call failed. The message names the failing call and what was expected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// A lowercase fragment.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Results that `register` sees all the same (`rc`, `stdout`).
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// True if something may have been changed before it failed.
    #[serde(default)]
    pub changed: bool,
}

impl Failure {
    /// A failure with its message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, data: Map::new(), changed: false }
    }

    /// A failed system call: `cannot VERB PATH: reason`.
    pub fn io(verb: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(format!("cannot {verb} {}: {error}", path.display()))
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what to do about it, where that is known.
    pub fn hint_if(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// Adds a result.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.data.insert(name.to_owned(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::FileId;

    #[test]
    fn every_definition_is_whole() {
        let mut names: Vec<&str> = names().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name is there twice");
        assert!(DEFINITIONS.is_sorted_by_key(|d| d.name), "keep the modules in the order of their names");
        for d in DEFINITIONS {
            assert!(d.summary.starts_with(char::is_uppercase) && !d.summary.ends_with('.'), "{}: summary", d.name);
            assert!(
                d.args.iter().all(|a| a.doc.trim().ends_with('.')),
                "{}: an argument lacks its documentation",
                d.name
            );
            let mut results: Vec<&str> = d.results().map(|(name, _)| name).collect();
            let count = results.len();
            results.sort_unstable();
            results.dedup();
            assert_eq!(results.len(), count, "{}: a result is there twice", d.name);
            assert!(d.results().all(|(_, doc)| doc.ends_with('.')), "{}: a result lacks its documentation", d.name);
        }
    }

    #[test]
    fn every_example_is_a_task_that_is_taken() {
        for d in DEFINITIONS {
            let node = crate::yaml::parse_text(FileId::NONE, d.example).unwrap_or_else(|e| panic!("{}: {e:?}", d.name));
            let tasks = node.one_or_many();
            assert_eq!(tasks.len(), 1, "{}", d.name);
            let call = tasks[0].get(d.name).unwrap_or_else(|| panic!("{}: the example does not call it", d.name));
            let Value::Object(args) = call.to_value() else {
                assert!(matches!(d.free_form, FreeForm::Arg(_)), "{}: plain text is not allowed", d.name);
                continue;
            };
            args::check_names(&args, d.args).unwrap_or_else(|e| panic!("{}: {e} {:?}", d.name, e.hint));
            for arg in d.args {
                let given = std::iter::once(&arg.name).chain(arg.aliases).find_map(|n| args.get(*n));
                assert!(given.is_some() || !arg.required, "{}: '{}' is missing", d.name, arg.name);
                if let Some(value) = given {
                    // Expressions are rendered before they are checked; those of assert are expressions throughout.
                    let expression = value.as_str().is_some_and(|t| t.contains("{{")) || d.name == "assert";
                    assert!(expression || (arg.check)(value).is_ok(), "{}: '{}'", d.name, arg.name);
                }
            }
        }
    }
}
