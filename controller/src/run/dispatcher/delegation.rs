//! Tasks that a host's play carries out on another host, or on the controller's machine.

use std::sync::Arc;

use rollcall_engine::{
    protocol::{Answer, Call, Reply, ToAgent},
    secrets::grants::Grants,
};

use super::{
    super::{secrets::Here, turns::Waiter},
    Dispatcher, State, encode, no_host,
};

impl Dispatcher {
    /// A call for another host, or for this machine.
    pub(super) fn delegate(&mut self, waiter: Waiter, name: &str, call: Call) {
        if name == "localhost" || name == "127.0.0.1" {
            self.here(waiter, call);
            return;
        }
        let Some(host) = self.host_named(name) else {
            let why = no_host("delegate_to", name, self.job.hosts.iter().map(|h| h.name.as_str()));
            self.answer(vec![(waiter, Answer::Refused(why))]);
            return;
        };
        let id = self.next_call;
        self.next_call += 1;
        if self.hosts[host].state == State::Idle {
            self.dial(host, None);
        }
        match encode(&ToAgent::Invoke { id, call }) {
            Ok(bytes) => match self.hosts[host].state {
                State::Gone => {
                    let reply = Reply::Unreachable(format!("{name} is not there"));
                    self.answer(vec![(waiter, Answer::Reply(Box::new(reply)))]);
                }
                State::Starting => {
                    self.delegated.insert(id, (waiter, host));
                    self.hosts[host].queued.push(bytes);
                }
                _ => {
                    self.delegated.insert(id, (waiter, host));
                    // A connection that is gone is told by its own message, which refuses this call.
                    if let Some(link) = &self.hosts[host].link {
                        let _ = link.send(bytes);
                    }
                }
            },
            Err(why) => self.answer(vec![(waiter, Answer::Refused(why))]),
        }
    }

    /// On the controller's machine: as the user who started it, without become.
    pub(super) fn here(&mut self, (host, id): Waiter, call: Call) {
        let Some(link) = self.hosts[host].link.clone() else { return };
        let localhost = self.job.hosts.iter().find(|h| h.name == "localhost");
        let secrets: Arc<dyn Grants> = Arc::new(Here {
            issuer: Arc::clone(&self.job.issuer),
            host: "localhost".to_owned(),
            groups: localhost.map(|h| h.group_names.clone()).unwrap_or_default(),
            runtime: tokio::runtime::Handle::current(),
            check: call.check,
        });
        // A thread of its own: modules block.
        std::thread::spawn(move || {
            use rollcall_engine::{facts, host::overlay::Overlay, host::real::Real, run::carry_out};
            let facts = facts::gather(&Real::new());
            let mut real = Real::new();
            let reply = if call.check {
                carry_out(&call, &facts, &secrets, &mut Overlay::new(&real))
            } else {
                carry_out(&call, &facts, &secrets, &mut real)
            };
            let answer = ToAgent::Answer { id, answer: Answer::Reply(Box::new(reply)) };
            if let Ok(bytes) = encode(&answer) {
                let _ = link.send(bytes);
            }
        });
    }

    /// Calls that were delegated to a host that is gone.
    pub(super) fn refuse_calls(&mut self, host: usize) {
        self.hosts[host].queued.clear();
        let why = format!("{} is gone", self.name(host));
        let mut ids: Vec<u64> = self.delegated.iter().filter(|(_, (_, to))| *to == host).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            if let Some((waiter, _)) = self.delegated.remove(&id) {
                let reply = Answer::Reply(Box::new(Reply::Unreachable(why.clone())));
                self.answer(vec![(waiter, reply)]);
            }
        }
    }
}
