//! Hosts that ask for secrets and certificates.

use std::sync::Arc;

use rollcall_engine::{
    pki::issuer::Host,
    protocol::{Answer, Passed},
    secrets::{
        grants::{GrantError, SignRequest, Wish},
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
        self.fetch(waiter, Work::Secret(name, wish));
    }

    /// A host asks for a certificate.
    pub(super) fn sign(&mut self, waiter: Waiter, request: SignRequest) {
        self.fetch(waiter, Work::Sign(request));
    }

    fn fetch(&mut self, waiter: Waiter, work: Work) {
        if let Some(why) = &self.stopping {
            let refused = work.refused(why);
            self.answer(vec![(waiter, refused)]);
            return;
        }
        let (host, id) = waiter;
        let (job, incoming) = (Arc::clone(&self.job), self.dialer.incoming.clone());
        let kind = work.kind();
        let work = tokio::spawn(async move {
            let spec = &job.hosts[host];
            let reader = Reader { host: &spec.name, groups: &spec.group_names };
            // The dispatcher is gone only when the run is over.
            let told = |what| drop(incoming.send((host, Incoming::Waiting(what))));
            let answer = match work {
                Work::Secret(name, wish) => {
                    Answer::Secret(job.issuer.secret(reader, &name, wish, &told).await.map(Passed))
                }
                Work::Sign(request) => {
                    // The same address as roles get to see.
                    let address = spec.cluster["self"]["address"].as_str().unwrap_or_default();
                    Answer::Issued(job.issuer.sign(Host { reader, address }, &request, &told).await)
                }
            };
            let _ = incoming.send((host, Incoming::Answered { id, answer }));
        });
        self.asking.insert(waiter, (kind, work.abort_handle()));
    }

    /// The run is being stopped: nobody waits for the store any more.
    pub(super) fn stop_asking(&mut self, why: &str) -> Vec<(Waiter, Answer)> {
        let waiting = self.asking.drain();
        let refused = waiting.map(|(waiter, (refuse, work))| {
            work.abort();
            (waiter, refuse(why))
        });
        refused.collect()
    }
}

/// What a host waits for.
enum Work {
    Secret(String, Wish),
    Sign(SignRequest),
}

/// The answer to a host that is not waited for any more.
pub(super) type Refuse = fn(&str) -> Answer;

impl Work {
    fn kind(&self) -> Refuse {
        match self {
            Self::Secret(..) => |why| Answer::Secret(Err(GrantError::refused(format!("no secret: {why}")))),
            Self::Sign(_) => |why| Answer::Issued(Err(GrantError::refused(format!("no certificate: {why}")))),
        }
    }

    fn refused(&self, why: &str) -> Answer {
        self.kind()(why)
    }
}
