//! Turns that wait for other hosts to go first: until these have run their handlers at the same place of the play.
//!
//! A new one for each play. Places are those of [`meetings`](super::meetings): what comes later is greater.

use std::collections::{HashMap, HashSet};

use super::turns::Waiter;

/// Who waits, and how far the hosts of the batch are.
#[derive(Debug, Default)]
pub(crate) struct Order {
    flushed: HashMap<usize, Vec<u32>>,
    /// Whose handlers did not run, or went wrong, though the host goes on: a rescue took over.
    missed: HashSet<usize>,
    waiting: Vec<Later>,
}

/// A turn that is asked for, and comes after those of other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Later {
    /// Who asks.
    pub(crate) waiter: Waiter,
    /// The handler's task.
    pub(crate) handler: u32,
    /// Hosts at once.
    pub(crate) serial: usize,
    /// Who goes first.
    pub(crate) before: Vec<usize>,
    /// Where they must have run their handlers.
    pub(crate) place: Vec<u32>,
}

/// Where a host stands that others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It carries out tasks of the batch.
    AtWork,
    /// It took part in the run, and failed or was lost.
    Failed,
    /// It takes no part, or its part is over.
    Elsewhere,
}

/// What becomes of a turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Those who go first have gone.
    Due(Later),
    /// This host failed, who was to go first.
    Failed(Later, usize),
    /// Everybody waits for somebody, this turn for this host.
    Stuck(Later, usize),
}

impl Order {
    /// Another batch begins.
    pub(crate) fn begin_batch(&mut self) {
        self.flushed.clear();
        self.waiting.clear();
    }

    /// A host was to run its handlers at a place, and it went well or not.
    pub(crate) fn flushed(&mut self, host: usize, place: Vec<u32>, well: bool) {
        if well {
            self.flushed.insert(host, place);
        } else {
            self.missed.insert(host);
        }
    }

    /// A host asks for a turn.
    pub(crate) fn reached(&mut self, later: Later) {
        self.waiting.push(later);
    }

    /// A host is gone: it waits no more.
    pub(crate) fn gone(&mut self, host: usize) {
        self.waiting.retain(|later| later.waiter.0 != host);
    }

    /// True if no turn waits: the usual case, asked after every message.
    pub(crate) fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Nobody gets a turn any more: who waited.
    pub(crate) fn stop(&mut self) -> Vec<Waiter> {
        self.waiting.drain(..).map(|later| later.waiter).collect()
    }

    /// Turns that wait no longer. `stuck`: no host is at work that does not wait for another one, or for a turn.
    pub(crate) fn settle(&mut self, stand: impl Fn(usize) -> Stand, stuck: bool) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let mut waiting = Vec::new();
        for later in std::mem::take(&mut self.waiting) {
            let failed = |host: usize| stand(host) == Stand::Failed && !self.has_flushed(host, &later);
            let failed = later.before.iter().find(|host| self.missed.contains(host) || failed(**host)).copied();
            if let Some(host) = failed.filter(|host| *host != later.waiter.0) {
                verdicts.push(Verdict::Failed(later, host));
                continue;
            }
            let goes_first = |host: &&usize| stand(**host) == Stand::AtWork && !self.has_flushed(**host, &later);
            match later.before.iter().find(goes_first).copied() {
                None => verdicts.push(Verdict::Due(later)),
                Some(host) => waiting.push((later, host)),
            }
        }
        // What is due now may be what the others wait for.
        if stuck && verdicts.is_empty() {
            return waiting.into_iter().map(|(later, host)| Verdict::Stuck(later, host)).collect();
        }
        self.waiting = waiting.into_iter().map(|(later, _)| later).collect();
        verdicts
    }

    fn has_flushed(&self, host: usize, later: &Later) -> bool {
        host == later.waiter.0 || self.flushed.get(&host).is_some_and(|place| *place >= later.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(host: usize, before: &[usize]) -> Later {
        Later { waiter: (host, 1), handler: 7, serial: 1, before: before.to_vec(), place: vec![1, 5] }
    }

    fn all_at_work(_: usize) -> Stand {
        Stand::AtWork
    }

    #[test]
    fn a_turn_is_due_when_all_who_go_first_have_run_their_handlers_there() {
        let mut order = Order::default();
        order.reached(later(9, &[0, 1, 9]));
        assert!(order.settle(all_at_work, false).is_empty());
        order.flushed(0, vec![1, 5], true);
        // An earlier place says nothing of this one.
        order.flushed(1, vec![1, 4], true);
        assert!(order.settle(all_at_work, false).is_empty());
        order.flushed(1, vec![2, 1], true);
        assert_eq!(order.settle(all_at_work, false), [Verdict::Due(later(9, &[0, 1, 9]))]);
        assert!(order.settle(all_at_work, false).is_empty());
    }

    #[test]
    fn who_takes_no_part_is_not_waited_for() {
        let mut order = Order::default();
        order.reached(later(9, &[0, 1]));
        order.flushed(0, vec![1, 5], true);
        let stand = |host| if host == 1 { Stand::Elsewhere } else { Stand::AtWork };
        assert_eq!(order.settle(stand, false), [Verdict::Due(later(9, &[0, 1]))]);
    }

    #[test]
    fn there_is_no_turn_after_one_that_failed() {
        let mut order = Order::default();
        order.reached(later(8, &[0, 1]));
        order.reached(later(9, &[]));
        let stand = |host| if host == 1 { Stand::Failed } else { Stand::AtWork };
        let wanted = [Verdict::Failed(later(8, &[0, 1]), 1), Verdict::Due(later(9, &[]))];
        assert_eq!(order.settle(stand, false), wanted);
    }

    #[test]
    fn what_fails_after_its_handlers_have_run_holds_nobody_up() {
        let mut order = Order::default();
        order.reached(later(9, &[0]));
        order.flushed(0, vec![1, 5], true);
        assert_eq!(order.settle(|_| Stand::Failed, false), [Verdict::Due(later(9, &[0]))]);
    }

    #[test]
    fn a_rescue_does_not_make_up_for_handlers_that_failed() {
        let mut order = Order::default();
        order.flushed(0, vec![1, 5], false);
        order.flushed(0, vec![1, 9], true);
        order.reached(later(9, &[0]));
        assert_eq!(order.settle(all_at_work, false), [Verdict::Failed(later(9, &[0]), 0)]);
        // Nor in a later batch.
        order.begin_batch();
        order.reached(later(9, &[0]));
        assert_eq!(order.settle(|_| Stand::Elsewhere, false), [Verdict::Failed(later(9, &[0]), 0)]);
    }

    #[test]
    fn hosts_that_wait_for_each_other_are_told() {
        let mut order = Order::default();
        order.reached(later(8, &[9]));
        order.reached(later(9, &[8]));
        // One that can go on may be who they wait for.
        order.reached(later(7, &[7]));
        assert_eq!(order.settle(all_at_work, true), [Verdict::Due(later(7, &[7]))]);
        assert!(order.settle(all_at_work, false).is_empty());
        assert_eq!(
            order.settle(all_at_work, true),
            [Verdict::Stuck(later(8, &[9]), 9), Verdict::Stuck(later(9, &[8]), 8)]
        );
    }

    #[test]
    fn who_is_gone_or_stopped_waits_no_more() {
        let mut order = Order::default();
        order.reached(later(8, &[0]));
        order.reached(later(9, &[0]));
        order.gone(8);
        assert_eq!(order.stop(), [(9, 1)]);
        assert!(order.settle(all_at_work, true).is_empty());
    }
}
