//! The only place that prints: data to stdout, what a person follows to stderr.

use std::fmt::Display;
use std::io::Write;

/// Data that another program may read. A closed pipe (`lab status | head -1`) is no error.
pub(crate) fn data(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Bytes as they are, for a console's output.
pub(crate) fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// One line of progress or advice.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// An error with its causes, and its hint on a line of its own.
pub(crate) fn error(error: &anyhow::Error) {
    let mut text = format!("error: {error}");
    let mut hint = error.downcast_ref::<crate::failure::Failure>().and_then(|f| f.hint.clone());
    for cause in error.chain().skip(1) {
        text.push_str(&format!("\n  because: {cause}"));
        if let Some(failure) = cause.downcast_ref::<crate::failure::Failure>() {
            hint = hint.or_else(|| failure.hint.clone());
        }
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    note(text);
}
