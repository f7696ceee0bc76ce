//! Rollcall's engine: everything that the agent and the controller do the same way.

/// Asking the real cluster.
pub mod cluster;
/// Findings with places, and how they are shown.
pub mod diag;
/// Checksums as text.
pub mod digest;
/// What the agent finds out about its host.
pub mod facts;
#[cfg(test)]
mod fuzz;
/// The local machine behind traits.
pub mod host;
/// Hosts: sources, groups, patterns.
pub mod inventory;
/// What a task can do.
pub mod modules;
/// YAML trees with places.
pub mod node;
/// Certificates.
pub mod pki;
/// The language.
pub mod playbook;
/// The project file.
pub mod project;
/// The messages between controller and agent.
pub mod protocol;
/// The roles that come with the program.
pub mod roles;
/// Carrying out plays on the host.
pub mod run;
/// Secrets: names, owners, stores.
pub mod secrets;
/// Expressions and templates.
pub mod template;
/// Variables.
pub mod vars;
/// The YAML reader.
pub mod yaml;
