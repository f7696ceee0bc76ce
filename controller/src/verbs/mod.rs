//! One file per verb: its options, and `run`.

pub(crate) mod ca;
pub(crate) mod completions;
pub(crate) mod doc;
pub(crate) mod exec;
pub(crate) mod facts;
pub(crate) mod forget;
pub(crate) mod init;
pub(crate) mod inventory;
pub(crate) mod operate;
pub(crate) mod own_play;
pub(crate) mod plan;
pub(crate) mod policies;
pub(crate) mod role;
pub(crate) mod rotate;
pub(crate) mod run;
pub(crate) mod secret;
pub(crate) mod ssh;
pub(crate) mod token;
