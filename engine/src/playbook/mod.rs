//! The language: what a playbook says, read and checked before any host is touched.

/// What a playbook means.
pub mod model;
