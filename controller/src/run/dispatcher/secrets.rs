//! Hosts that ask for secrets.

use std::sync::Arc;

use rollcall_engine::{
    protocol::{Answer, Passed},
    secrets::{
        grants::{GrantError, Wish},
        ownership::Reader,
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
