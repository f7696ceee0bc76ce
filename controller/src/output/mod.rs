//! How a run is shown: lines for people, progress on a terminal, JSON lines for programs. All are consumers of one
//! stream of events.

use std::io::IsTerminal as _;

use crate::run::events::Sink;

pub(crate) mod diff;
pub(crate) mod json;
pub(crate) mod plain;
pub(crate) mod progress;
pub(crate) mod style;

/// What the options say about showing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// `--json`.
    pub(crate) json: bool,
    /// `-v`, counted.
    pub(crate) verbose: u8,
    /// `-q`.
    pub(crate) quiet: bool,
    /// `--diff`: modules tell differences in any case, JSON lines carry them always.
    pub(crate) diff: bool,
}

/// The consumers that fit the surroundings.
pub(crate) fn sinks(look: &Look, sources: &std::sync::Arc<rollcall_engine::diag::Sources>) -> Vec<Box<dyn Sink>> {
    if look.json {
        return vec![Box::new(json::Lines::new(std::io::stdout()))];
    }
    let style = style::Style::of_stdout();
    let bar = std::io::stderr().is_terminal() && std::io::stdout().is_terminal() && !look.quiet;
    if !bar {
        return vec![Box::new(plain::Plain::new(std::io::stdout(), style, look.clone(), sources.clone()))];
    }
    let progress = progress::Progress::new();
    let out = progress.writer();
    vec![Box::new(plain::Plain::new(out, style, look.clone(), sources.clone())), Box::new(progress)]
}

/// The same lines on standard error, for verbs whose data is something else.
pub(crate) fn notes(look: &Look, sources: &std::sync::Arc<rollcall_engine::diag::Sources>) -> Vec<Box<dyn Sink>> {
    let style = style::Style::default();
    vec![Box::new(plain::Plain::new(std::io::stderr(), style, look.clone(), sources.clone()))]
}
