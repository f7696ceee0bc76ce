use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Instant,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::run::events::{RunEvent, Sink};

/// One line at the bottom of a terminal: who is at work, and on what for the longest time.
#[derive(Debug)]
pub(crate) struct Progress {
    all: MultiProgress,
    bar: ProgressBar,
    at_work: BTreeMap<String, (String, Instant)>,
    done: usize,
    hosts: usize,
}

/// Writes lines above the progress line.
#[derive(Debug)]
pub(crate) struct Above {
    all: MultiProgress,
    line: Vec<u8>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let all = MultiProgress::new();
        let bar = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self { all, bar, at_work: BTreeMap::new(), done: 0, hosts: 0 }
    }

    /// Where the lines go.
    pub(crate) fn writer(&self) -> Above {
        Above { all: self.all.clone(), line: Vec::new() }
    }

    fn show(&self) {
        let oldest = self.at_work.iter().min_by_key(|(_, (_, since))| *since);
        let text = match oldest {
            None => format!("{} of {} hosts answered", self.done, self.hosts),
            Some((host, (task, since))) => {
                let age = since.elapsed().as_secs();
                format!("{} at work; {host}: {task}, {age} s", self.at_work.len())
            }
        };
        self.bar.set_message(text);
    }
}

impl Sink for Progress {
    fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::RunStart { hosts, .. } => self.hosts = *hosts,
            RunEvent::HostReady { .. } => self.done += 1,
            RunEvent::HostUnreachable { host, .. } => {
                self.at_work.remove(host);
            }
            RunEvent::TaskStart { host, name, .. } => {
                self.at_work.insert(host.clone(), (name.clone(), Instant::now()));
            }
            RunEvent::Waiting { host, what } => {
                self.at_work.insert(host.clone(), (format!("waits: {what}"), Instant::now()));
            }
            RunEvent::Task { host, .. } => {
                self.at_work.remove(host);
            }
            RunEvent::Recap { .. } => {
                self.bar.finish_and_clear();
                return;
            }
            _ => {}
        }
        self.show();
    }
}

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            self.all.suspend(|| io::stdout().write_all(text.as_bytes()))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
