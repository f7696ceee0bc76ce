//! What hosts leave for each other, and who is waited for before it is handed out, or before a turn is given.

use std::{collections::HashMap, sync::Arc};

use rollcall_engine::{
    modules::Base64,
    protocol::{Answer, Before, pack},
    vars::hosts::{FACTS, Known, Other, Others, Stage},
};
use serde_json::Value;

use super::{
    super::{
        meetings::Names,
        order::{Later, Stand, Verdict},
        turns::{Waiter, refusal},
    },
    Dispatcher, State, no_host,
};

impl Dispatcher {
    /// A host set something that tasks ask for.
    pub(super) fn keep(&mut self, host: usize, name: String, known: Known) {
        self.hosts[host].kept.insert(name, known);
    }

    /// A host told what it is.
    pub(super) fn keep_facts(&mut self, host: usize, facts: Arc<Value>) {
        if !facts.is_null() {
            self.keep(host, FACTS.to_owned(), Known::Value(facts));
        }
    }

    /// A host came to a task that asks for what others have. Facts are there since the first phase: nobody is waited for.
    pub(super) fn reached(&mut self, waiter: Waiter, place: Vec<u32>, names: Names) {
        if names.iter().all(|name| name == FACTS) {
            let answer = self.others(&names);
            self.answer(vec![(waiter, answer)]);
            return;
        }
        self.meetings.reached(place, waiter, names);
    }

    /// A turn that comes after those of other hosts.
    pub(super) fn later(
        &mut self,
        waiter: Waiter,
        handler: u32,
        serial: usize,
        before: Before,
    ) -> Vec<(Waiter, Answer)> {
        if let Some(unknown) = before.hosts.iter().find(|name| !self.job.known.contains(*name)) {
            let why = no_host("after", unknown, self.job.known.iter().map(String::as_str));
            return vec![(waiter, Answer::Refused(why))];
        }
        // Not those that take no part in the run.
        let hosts = before.hosts.iter().filter_map(|name| self.host_named(name)).collect();
        self.order.reached(Later { waiter, handler, serial, before: hosts, place: before.place });
        Vec::new()
    }

    /// Lets everybody go on who has nobody left to wait for. To be asked after everything that a host says or suffers.
    pub(super) fn meet(&mut self) {
        while self.come_together() || self.come_later() {}
    }

    /// False if nobody could go on.
    fn come_together(&mut self) -> bool {
        if self.meetings.nobody_waits() {
            return false;
        }
        let live = self.live();
        let free = self.meetings.settle(&live, &self.blocked);
        let mut made: HashMap<Names, Answer> = HashMap::new();
        let mut answers = Vec::new();
        for (waiter, names) in free {
            let answer = made.entry(names).or_insert_with_key(|names| self.others(names)).clone();
            answers.push((waiter, answer));
        }
        let went_on = !answers.is_empty();
        self.answer(answers);
        went_on
    }

    /// Turns whose time has come; false if there is none.
    fn come_later(&mut self) -> bool {
        if self.order.nobody_waits() {
            return false;
        }
        let stuck = self.live().iter().all(|host| self.blocked.contains(host));
        let hosts = &self.hosts;
        let stand = |host: usize| match &hosts[host] {
            host if host.state == State::Playing => Stand::AtWork,
            host if host.failed && host.begun => Stand::Failed,
            _ => Stand::Elsewhere,
        };
        let verdicts = self.order.settle(stand, stuck);
        let went_on = !verdicts.is_empty();
        for verdict in verdicts {
            let refused = |later: Later, why: String| vec![(later.waiter, Answer::Refused(refusal(&why)))];
            let answers = match verdict {
                Verdict::Due(Later { waiter, handler, serial, .. }) => self.turns.ask(handler, serial, waiter),
                Verdict::Failed(later, first) => {
                    refused(later, format!("{} failed, whose handlers come first", self.name(first)))
                }
                Verdict::Stuck(later, first) => {
                    refused(later, format!("{}, whose handlers come first, waits for others itself", self.name(first)))
                }
            };
            self.answer(answers);
        }
        went_on
    }

    /// What the hosts of the run have under these names.
    fn others(&self, names: &Names) -> Answer {
        let mut others = Others::new();
        for (at, host) in self.hosts.iter().enumerate() {
            if !self.job.play_hosts.iter().any(|hosts| hosts.contains(&at)) {
                continue;
            }
            let stage = match host.state {
                State::Gone | State::Out if host.failed && !host.begun => Stage::Unreachable,
                State::Gone | State::Out if host.failed => Stage::Failed,
                State::Playing => Stage::Running,
                _ if host.begun => Stage::Ran,
                _ => Stage::NotBegun,
            };
            let values = host.kept.iter().filter(|(name, _)| names.contains(*name));
            let values = values.map(|(name, known)| (name.clone(), known.clone())).collect();
            others.insert(self.name(at), Other { stage, values });
        }
        let packed = serde_json::to_vec(&others).map_err(std::io::Error::other).and_then(|json| pack(&json));
        match packed {
            Ok(bytes) => Answer::Others(Base64(bytes)),
            Err(error) => Answer::Refused(format!("the results of other hosts cannot be sent: {error}")),
        }
    }
}
