//! What the modules `nomad_*` share: what all that ask an [API](super::api) share, for Nomad.

pub(super) use super::api::*;

/// Declares the arguments of a module that asks Nomad with a token.
macro_rules! api_args {
    ($($all:tt)*) => { $crate::modules::api::agent_args! { ["http://127.0.0.1:4646"] $($all)* } };
}
pub(super) use api_args;
