//! Checks that the filters, tests and functions which a text calls exist.

use super::{
    env,
    explain::{self, Origin},
    refs::{Analysis, Callee},
};
use crate::diag::Diagnostic;

/// The first call of something unknown, as an error with the nearest known name.
pub(super) fn check(found: &Analysis, origin: &Origin<'_>) -> Result<(), Diagnostic> {
    for (callee, name, range) in &found.calls {
        let known = match callee {
            Callee::Function => env::global(name).is_some(),
            Callee::Filter | Callee::Test => env::names(*callee).contains(name),
        };
        if !known {
            return Err(explain::unknown_call(origin, *callee, name, range.start));
        }
    }
    Ok(())
}
