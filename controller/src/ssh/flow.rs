//! How much is sent to a host ahead of what it has taken.
//!
//! OpenSSH's server takes two megabytes of a stream before it says stop, and makes room for them by copying all that waits for each packet:
//! fifty milliseconds of the host's processor for an agent of five megabytes. So a stream is held back here, where that costs
//! nothing, until the host tells by a larger window that its program has read.

use std::time::Duration;

/// What may be on its way to a host's program, beside what the way itself holds.
const AHEAD_BYTES: usize = 256 * 1024;
/// A way that is long is kept filled at this speed: 20 MB/s.
const BYTES_A_MILLISECOND: u128 = 20_000;
/// More than OpenSSH's server takes at once is never on its way.
const MOST_BYTES: u128 = 2 << 20;
/// A host that tells nothing for so long may be one that waits for more before it tells.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The flow of one stream.
#[derive(Debug)]
pub(super) struct Flow {
    /// The largest window that the host told: it had taken (nearly) all then.
    whole: u32,
    /// The window that it told last.
    window: u32,
    /// Sent since then.
    since: usize,
    ahead: usize,
}

impl Flow {
    /// `way`: the time of a round trip.
    pub(super) fn new(way: Duration) -> Self {
        let held = way.as_millis().saturating_mul(BYTES_A_MILLISECOND).min(MOST_BYTES);
        Self { whole: 0, window: 0, since: 0, ahead: AHEAD_BYTES + usize::try_from(held).unwrap_or(0) }
    }

    pub(super) fn sent(&mut self, length: usize) {
        self.since = self.since.saturating_add(length);
    }

    /// The host told how much it can take now.
    pub(super) fn told(&mut self, window: u32) {
        self.window = window;
        self.whole = self.whole.max(window);
        self.since = 0;
    }

    /// It told nothing for [`PATIENCE`].
    pub(super) fn silent(&mut self) {
        self.ahead = self.ahead.saturating_mul(2);
    }

    pub(super) fn has_room(&self) -> bool {
        let waiting = usize::try_from(self.whole - self.window).unwrap_or(usize::MAX);
        waiting.saturating_add(self.since) < self.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server as OpenSSH's: it tells of what its program has read as soon as that is three packets.
    #[test]
    fn a_host_that_reads_slowly_never_has_more_than_twice_the_limit_waiting() {
        let (mut flow, mut window, mut waiting, mut most) = (Flow::new(Duration::ZERO), 2u32 << 20, 0u32, 0u32);
        for _ in 0..500 {
            while flow.has_room() {
                flow.sent(32 << 10);
                waiting += 32 << 10;
                window -= 32 << 10;
            }
            most = most.max(waiting);
            let read = waiting.min(100 << 10);
            waiting -= read;
            window += read;
            flow.told(window);
        }
        assert!((256 << 10..=512 << 10).contains(&most), "{most}");
    }

    #[test]
    fn a_host_that_tells_late_is_sent_more() {
        let mut flow = Flow::new(Duration::ZERO);
        flow.sent(AHEAD_BYTES);
        assert!(!flow.has_room());
        flow.silent();
        assert!(flow.has_room());
        flow.sent(AHEAD_BYTES);
        assert!(!flow.has_room());
        flow.told(1 << 20);
        assert!(flow.has_room());
    }

    #[test]
    fn a_long_way_is_kept_filled() {
        let room = |way| {
            let mut flow = Flow::new(way);
            let mut sent = 0;
            while flow.has_room() {
                flow.sent(1 << 10);
                sent += 1 << 10;
            }
            sent
        };
        assert_eq!(room(Duration::ZERO), AHEAD_BYTES);
        assert!(room(Duration::from_millis(30)) > 800_000);
        assert!(room(Duration::from_hours(1)) < 3 << 20);
    }
}
