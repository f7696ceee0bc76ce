//! Hosts that ask for secrets.

use std::sync::Arc;

use rollcall_engine::{
    protocol::{Answer, Passed},
    secrets::{
        Name,
        grants::{GrantError, Wish},
        ownership::{Reader, Rule},
    },
};

use super::{
    super::{remote::Incoming, turns::Waiter},
    Dispatcher,
};

impl Dispatcher {
    /// A host asks for a secret: the store may take long, and nobody else waits for it meanwhile.
    pub(super) fn secret(&mut self, waiter: Waiter, name: String, wish: Wish) {
        if let Some(why) = &self.stopping {
            let refused = Answer::Secret(Err(stopped(why)));
            self.answer(vec![(waiter, refused)]);
            return;
        }
        let (host, id) = waiter;
        if let Some(refused) = self.ambiguous(host, &name) {
            self.answer(vec![(waiter, Answer::Secret(Err(refused)))]);
            return;
        }
        let (job, incoming) = (Arc::clone(&self.job), self.dialer.incoming.clone());
        let work = tokio::spawn(async move {
            let spec = &job.hosts[host];
            let reader = Reader { host: &spec.name, groups: &spec.group_names };
            // The dispatcher is gone only when the run is over.
            let told = |what| drop(incoming.send((host, Incoming::Waiting(what))));
            let got = job.issuer.secret(reader, &name, wish, &told).await;
            let _ = incoming.send((host, Incoming::Answered { id, answer: Answer::Secret(got.map(Passed)) }));
        });
        self.asking.insert(waiter, work.abort_handle());
    }

    /// Two hosts with one node's name would share what is one node's own.
    fn ambiguous(&self, host: usize, name: &str) -> Option<GrantError> {
        let spec = &self.job.hosts[host];
        let twin = spec.twin.as_ref()?;
        let name = Name::new(name).ok()?;
        Rule::of(&name)?.node(&name)?;
        Some(GrantError::refused_with(
            format!("'{name}' is one node's, and the hosts '{}' and '{twin}' differ in capitals only", spec.name),
            "give one of them another name in the inventory",
        ))
    }

    /// The run is being stopped: nobody waits for the store any more.
    pub(super) fn stop_asking(&mut self, why: &str) -> Vec<(Waiter, Answer)> {
        let waiting = self.asking.drain();
        let refused = waiting.map(|(waiter, work)| {
            work.abort();
            (waiter, Answer::Secret(Err(stopped(why))))
        });
        refused.collect()
    }
}

fn stopped(why: &str) -> GrantError {
    GrantError::refused(format!("no secret: {why}"))
}
