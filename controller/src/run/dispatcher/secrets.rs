//! Hosts that ask for secrets and certificates.

use std::sync::Arc;

use rollcall_engine::{
    pki::issuer::Host,
    protocol::{Answer, Passed},
    secrets::{
        Name,
        grants::{GrantError, SignRequest, Wish},
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
        self.fetch(waiter, Work::Secret(name, wish));
    }

    /// A host has a value to be kept.
    pub(super) fn keep_secret(&mut self, waiter: Waiter, name: String, value: Passed, in_place_of: Option<Passed>) {
        self.fetch(waiter, Work::Keep(name, value, in_place_of));
    }

    /// A host asks for a certificate.
    pub(super) fn sign(&mut self, waiter: Waiter, request: SignRequest) {
        self.fetch(waiter, Work::Sign(request));
    }

    fn fetch(&mut self, waiter: Waiter, work: Work) {
        if let Some(why) = &self.stopping {
            let refused = work.kind()(stopped(why));
            self.answer(vec![(waiter, refused)]);
            return;
        }
        let (host, id) = waiter;
        if let Some(refused) = self.ambiguous(host, &work) {
            self.answer(vec![(waiter, work.kind()(refused))]);
            return;
        }
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
                Work::Keep(name, value, instead) => {
                    let instead = instead.as_ref().map(|passed| &passed.0);
                    Answer::Secret(job.issuer.keep(reader, &name, &value.0, instead, &told).await.map(Passed))
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

    /// Two hosts with one node's name would share what is one node's own.
    fn ambiguous(&self, host: usize, work: &Work) -> Option<GrantError> {
        let spec = &self.job.hosts[host];
        let twin = spec.twin.as_ref()?;
        let what = match work {
            Work::Secret(name, _) | Work::Keep(name, ..) => {
                let name = Name::new(name).ok()?;
                Rule::of(&name)?.node(&name)?;
                format!("'{name}'")
            }
            Work::Sign(_) => "a certificate".to_owned(),
        };
        Some(GrantError::refused_with(
            format!("{what} is one node's, and the hosts '{}' and '{twin}' differ in capitals only", spec.name),
            "give one of them another name in the inventory",
        ))
    }

    /// The run is being stopped: nobody waits for the store any more.
    pub(super) fn stop_asking(&mut self, why: &str) -> Vec<(Waiter, Answer)> {
        let waiting = self.asking.drain();
        let refused = waiting.map(|(waiter, (refuse, work))| {
            work.abort();
            (waiter, refuse(stopped(why)))
        });
        refused.collect()
    }
}

/// What a host waits for.
enum Work {
    Secret(String, Wish),
    Keep(String, Passed, Option<Passed>),
    Sign(SignRequest),
}

/// The answer to a host that does not get what it asked for.
pub(super) type Refuse = fn(GrantError) -> Answer;

impl Work {
    fn kind(&self) -> Refuse {
        match self {
            Self::Secret(..) | Self::Keep(..) => |error| Answer::Secret(Err(error)),
            Self::Sign(_) => |error| Answer::Issued(Err(error)),
        }
    }
}

fn stopped(why: &str) -> GrantError {
    GrantError::refused(format!("the run is being stopped: {why}"))
}
