use std::io::Write;

use crate::run::events::{RunEvent, Sink};

/// One JSON object a line; the first one says the version.
#[derive(Debug)]
pub(crate) struct Lines<W> {
    out: W,
}

impl<W: Write> Lines<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write + Send> Sink for Lines<W> {
    fn event(&mut self, event: &RunEvent) {
        if let Ok(line) = serde_json::to_string(event) {
            // A reader that is gone does not end the run.
            let _ = writeln!(self.out, "{line}");
            let _ = self.out.flush();
        }
    }
}
