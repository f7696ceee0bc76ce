//! The language: what a playbook says, read and checked before any host is touched.

mod action;
mod choices;
mod files;
mod include;
mod inherit;
mod keywords;
mod known;
mod load;
mod loops;
/// What a playbook means.
pub mod model;
/// What tasks ask of other hosts.
pub mod others;
mod play;
mod role;
mod role_files;
mod spec;
mod syntax;
mod tags;
mod task;
mod words;

pub use files::Blob;
pub(crate) use files::shown;
pub use keywords::{Keyword, On, Status, keywords};
pub use load::{Loaded, Loader, RoleUsed};
pub use others::note_others;
pub use tags::{known_tags, select_tags};
