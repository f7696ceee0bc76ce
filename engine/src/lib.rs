//! Rollcall's engine: everything that the agent and the controller do the same way.

/// Findings with places, and how they are shown.
pub mod diag;
/// YAML trees with places.
pub mod node;
/// The YAML reader.
pub mod yaml;
