//! What hosts leave for each other, and who is waited for before it is handed out.

use std::{collections::HashMap, sync::Arc};

use rollcall_engine::{
    modules::Base64,
    protocol::{Answer, pack},
    vars::hosts::{FACTS, Known, Other, Others, Stage},
};
use serde_json::Value;

use super::{
    super::{meetings::Names, turns::Waiter},
    Dispatcher, State,
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

    /// Lets everybody go on who has nobody left to wait for. To be asked after everything that a host says or suffers.
    pub(super) fn meet(&mut self) {
        while !self.meetings.nobody_waits() {
            let live = self.live();
            let free = self.meetings.settle(&live, &self.blocked);
            if free.is_empty() {
                return;
            }
            let mut made: HashMap<Names, Answer> = HashMap::new();
            let mut answers = Vec::new();
            for (waiter, names) in free {
                let answer = made.entry(names).or_insert_with_key(|names| self.others(names)).clone();
                answers.push((waiter, answer));
            }
            self.answer(answers);
        }
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
