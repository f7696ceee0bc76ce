//! What hosts wait for: tasks that run once for a batch, and handlers' turns.

use std::collections::{HashMap, HashSet};

use rollcall_engine::protocol::Answer;
use serde_json::Value;

/// An ask that is not answered yet: the host and the ask's id.
pub(crate) type Waiter = (usize, u64);

/// `run_once` tasks of one batch.
#[derive(Debug, Default)]
pub(crate) struct Once {
    tasks: HashMap<u32, OnceTask>,
}

#[derive(Debug, Default)]
struct OnceTask {
    granted: Option<usize>,
    result: Option<(Value, Value)>,
    waiting: Vec<Waiter>,
}

impl Once {
    /// A host reached the task. Answers that are due now.
    pub(crate) fn reached(&mut self, task: u32, waiter: Waiter, live: &[usize]) -> Vec<(Waiter, Answer)> {
        self.tasks.entry(task).or_default().waiting.push(waiter);
        self.settle(live)
    }

    /// The host that carried it out tells the result.
    pub(crate) fn done(&mut self, task: u32, result: Value, facts: Value, live: &[usize]) -> Vec<(Waiter, Answer)> {
        self.tasks.entry(task).or_default().result = Some((result, facts));
        self.settle(live)
    }

    /// Hosts that are still at work, in order: the first of them carries a task out. To be asked again whenever one of
    /// them ends.
    pub(crate) fn settle(&mut self, live: &[usize]) -> Vec<(Waiter, Answer)> {
        let mut answers = Vec::new();
        for task in self.tasks.values_mut() {
            if let Some((result, facts)) = &task.result {
                let answer = Answer::Result { result: result.clone(), facts: facts.clone() };
                answers.extend(task.waiting.drain(..).map(|waiter| (waiter, answer.clone())));
                continue;
            }
            // One that had it and ended without a result (killed, unreachable) hands it on.
            if task.granted.is_some_and(|host| live.contains(&host)) {
                continue;
            }
            let first = live.first().and_then(|host| task.waiting.iter().position(|(h, _)| h == host));
            if let Some(at) = first {
                let waiter = task.waiting.remove(at);
                task.granted = Some(waiter.0);
                answers.push((waiter, Answer::Granted));
            }
        }
        answers
    }
}

/// Handlers' turns of one play.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    handlers: HashMap<u32, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    serial: usize,
    active: HashSet<usize>,
    waiting: Vec<Waiter>,
    /// Why nobody gets a turn any more.
    closed: Option<String>,
}

impl Turns {
    /// A host asks for its turn.
    pub(crate) fn ask(&mut self, handler: u32, serial: usize, waiter: Waiter) -> Vec<(Waiter, Answer)> {
        let queue = self.handlers.entry(handler).or_default();
        queue.serial = serial.max(1);
        queue.waiting.push(waiter);
        queue.settle()
    }

    /// A turn is over. One that went wrong ends all further ones: the cluster has lost enough.
    pub(crate) fn done(&mut self, handler: u32, host: usize, ok: bool, name: &str) -> Vec<(Waiter, Answer)> {
        let Some(queue) = self.handlers.get_mut(&handler) else { return Vec::new() };
        queue.active.remove(&host);
        if !ok {
            queue.closed.get_or_insert_with(|| format!("no turn: it went wrong on {name}"));
        }
        queue.settle()
    }

    /// The run is being stopped: nobody gets a turn any more.
    pub(crate) fn stop(&mut self, why: &str) -> Vec<(Waiter, Answer)> {
        let mut answers = Vec::new();
        for queue in self.handlers.values_mut() {
            queue.closed.get_or_insert_with(|| refusal(why));
            answers.extend(queue.settle());
        }
        answers
    }

    /// A host is gone: in the middle of its turn, that turn went wrong; waiting for it, it waits no more.
    pub(crate) fn gone(&mut self, host: usize, name: &str) -> Vec<(Waiter, Answer)> {
        let mut answers = Vec::new();
        for queue in self.handlers.values_mut() {
            queue.waiting.retain(|(h, _)| *h != host);
            if queue.active.remove(&host) {
                queue.closed.get_or_insert_with(|| format!("no turn: {name} was lost in its own"));
            }
            answers.extend(queue.settle());
        }
        answers
    }
}

/// What a host is told that asks for a turn while the run is being stopped.
pub(crate) fn refusal(why: &str) -> String {
    format!("no turn: {why}")
}

impl Queue {
    fn settle(&mut self) -> Vec<(Waiter, Answer)> {
        if let Some(why) = &self.closed {
            return self.waiting.drain(..).map(|waiter| (waiter, Answer::Refused(why.clone()))).collect();
        }
        let mut answers = Vec::new();
        while self.active.len() < self.serial && !self.waiting.is_empty() {
            let waiter = self.waiting.remove(0);
            self.active.insert(waiter.0);
            answers.push((waiter, Answer::Granted));
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn granted(answers: &[(Waiter, Answer)]) -> Vec<usize> {
        answers.iter().filter(|(_, a)| matches!(a, Answer::Granted)).map(|((h, _), _)| *h).collect()
    }

    #[test]
    fn once_runs_on_the_first_live_host_whoever_arrives_first() {
        let mut once = Once::default();
        assert!(once.reached(7, (2, 1), &[0, 1, 2]).is_empty());
        assert_eq!(granted(&once.reached(7, (0, 1), &[0, 1, 2])), [0]);
        let told = once.done(7, json!(1), json!({}), &[0, 1, 2]);
        assert_eq!(told.len(), 1);
        // A late one gets the result too.
        assert!(matches!(once.reached(7, (1, 5), &[0, 1, 2])[..], [((1, 5), Answer::Result { .. })]));
    }

    #[test]
    fn once_is_handed_on_when_its_host_dies() {
        let mut once = Once::default();
        assert_eq!(granted(&once.reached(7, (0, 1), &[0, 1])), [0]);
        assert!(once.reached(7, (1, 1), &[0, 1]).is_empty());
        assert_eq!(granted(&once.settle(&[1])), [1]);
    }

    #[test]
    fn turns_are_given_one_by_one_and_end_with_the_first_failure() {
        let mut turns = Turns::default();
        assert_eq!(granted(&turns.ask(3, 1, (0, 1))), [0]);
        assert!(turns.ask(3, 1, (1, 1)).is_empty());
        assert_eq!(granted(&turns.done(3, 0, true, "a")), [1]);
        assert!(turns.ask(3, 1, (2, 1)).is_empty());
        assert!(matches!(turns.done(3, 1, false, "b")[..], [((2, 1), Answer::Refused(_))]));
        assert!(matches!(turns.ask(3, 1, (4, 1))[..], [(_, Answer::Refused(_))]));
    }

    #[test]
    fn a_stop_wakes_who_waits_and_lets_a_turn_end() {
        let mut turns = Turns::default();
        turns.ask(3, 1, (0, 1));
        turns.ask(3, 1, (1, 4));
        turns.ask(5, 1, (2, 9));
        let told = turns.stop("interrupted");
        assert!(matches!(&told[..], [((1, 4), Answer::Refused(why))] if why == "no turn: interrupted"), "{told:?}");
        assert!(turns.done(3, 0, true, "a").is_empty());
        assert!(matches!(turns.ask(5, 1, (4, 1))[..], [(_, Answer::Refused(_))]));
    }

    #[test]
    fn a_host_lost_in_its_turn_ends_the_turns() {
        let mut turns = Turns::default();
        turns.ask(3, 1, (0, 1));
        turns.ask(3, 1, (1, 1));
        assert!(matches!(turns.gone(0, "a")[..], [((1, 1), Answer::Refused(_))]));
    }
}
