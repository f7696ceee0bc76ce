use super::*;

fn error(kind: Kind) -> ApiError {
    ApiError { kind, call: "PUT http://127.0.0.1:8500/v1/acl/bootstrap".into(), said: format!("{kind:?}") }
}

fn token(management: bool) -> Holder {
    Holder { accessor: "accessor".into(), management }
}

/// What the next call of the bootstrap meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Ok,
    /// It happens, and the answer is lost.
    DoneAndLost,
    /// The answer is lost; it happens after so many further seconds (a leader that was paused).
    Later(u64),
    /// Nothing happens.
    Fails(Kind),
    /// Somebody else with the same secret was faster, by the same file that resets the ACLs, whose number is old now.
    ByFileElsewhere,
    /// The server makes up a secret.
    Ignored,
}

/// A cluster in memory whose clock is its own.
struct Fake {
    clock: Duration,
    /// The secret of the management token.
    secret: Option<Secret>,
    /// When the call that hangs is carried out.
    pending: Option<(Duration, Secret)>,
    fates: Vec<Fate>,
    calls: usize,
    leader: Vec<&'static str>,
    peers: Vec<usize>,
    /// Seconds for which the token is not seen after it is made.
    lag: u64,
    made: Duration,
    /// What the token is refused with, first.
    looks: Vec<Kind>,
    management: bool,
    formed: bool,
}

impl Fake {
    fn new(fates: &[Fate]) -> Self {
        Self {
            clock: Duration::ZERO,
            secret: None,
            pending: None,
            fates: fates.to_vec(),
            calls: 0,
            leader: vec!["10.0.0.1:8300"],
            peers: vec![3],
            lag: 0,
            made: Duration::ZERO,
            looks: Vec::new(),
            management: true,
            formed: false,
        }
    }

    fn settle(&mut self) {
        if let Some((when, secret)) = self.pending.clone()
            && self.clock >= when
        {
            self.pending = None;
            if self.secret.is_none() {
                (self.secret, self.made) = (Some(secret), self.clock);
            }
        }
    }

    fn run(&mut self) -> Result<Done, BootstrapError> {
        let limits = Limits { peers: Some(3), formed: self.formed, time: Duration::from_mins(5) };
        run(self, &ours(), limits)
    }
}

fn ours() -> Secret {
    Secret::new("11111111-1111-1111-1111-111111111111")
}

impl Cluster for Fake {
    fn leader(&mut self) -> Result<String, ApiError> {
        Ok(if self.leader.len() > 1 { self.leader.remove(0) } else { self.leader[0] }.to_owned())
    }
    fn peers(&mut self) -> Result<usize, ApiError> {
        Ok(if self.peers.len() > 1 { self.peers.remove(0) } else { self.peers[0] })
    }
    fn bootstrap(&mut self, secret: &Secret) -> Result<Secret, ApiError> {
        self.calls += 1;
        self.settle();
        if self.secret.is_some() {
            return Err(error(Kind::Bootstrapped));
        }
        let fate = if self.fates.is_empty() { Fate::Ok } else { self.fates.remove(0) };
        match fate {
            Fate::Ok | Fate::DoneAndLost => {
                (self.secret, self.made) = (Some(secret.clone()), self.clock);
                if fate == Fate::Ok { Ok(secret.clone()) } else { Err(error(Kind::Lost)) }
            }
            Fate::Later(seconds) => {
                self.pending = Some((self.clock + Duration::from_secs(seconds), secret.clone()));
                Err(error(Kind::Lost))
            }
            Fate::Fails(kind) => Err(error(kind)),
            Fate::ByFileElsewhere => {
                (self.secret, self.made) = (Some(secret.clone()), self.clock);
                Err(error(Kind::ResetFile))
            }
            Fate::Ignored => {
                self.secret = Some(Secret::new("theirs"));
                Ok(Secret::new("theirs"))
            }
        }
    }
    fn own_token(&mut self, secret: &Secret) -> Result<Holder, ApiError> {
        self.settle();
        if !self.looks.is_empty() {
            return Err(error(self.looks.remove(0)));
        }
        let seen = self.clock >= self.made + Duration::from_secs(self.lag);
        if self.secret.as_ref() == Some(secret) && seen {
            Ok(token(self.management))
        } else {
            Err(error(Kind::UnknownToken))
        }
    }
    fn is_bootstrapped(&mut self, _: &Secret) -> Result<bool, ApiError> {
        self.settle();
        Ok(self.secret.is_some())
    }
    fn elapsed(&self) -> Duration {
        self.clock
    }
    fn pause(&mut self, time: Duration) {
        self.clock += time;
    }
}

#[test]
fn it_is_done_once_and_the_second_finds_it_done() {
    let mut cluster = Fake::new(&[]);
    assert_eq!(cluster.run(), Ok(Done::Here));
    assert_eq!(cluster.run(), Ok(Done::Elsewhere));
    assert_eq!(cluster.calls, 1, "a cluster that has the token is not called again");
}

#[test]
fn a_lost_answer_is_settled_by_the_token() {
    let mut done = Fake::new(&[Fate::DoneAndLost]);
    assert_eq!((done.run(), done.calls), (Ok(Done::Here), 1));
    let mut not_done = Fake::new(&[Fate::Fails(Kind::Lost), Fate::Fails(Kind::Lost)]);
    assert_eq!((not_done.run(), not_done.calls), (Ok(Done::Here), 3));
    // The leader was paused, the call given up, and carried out when it went on.
    for seconds in [0, 1, 2, 5, 60] {
        let mut later = Fake::new(&[Fate::Later(seconds), Fate::Fails(Kind::NoLeader), Fate::Fails(Kind::Lost)]);
        later.fates.extend([Fate::Fails(Kind::NoLeader); 100]);
        assert_eq!(later.run(), Ok(Done::Here), "{seconds}");
    }
}

#[test]
fn every_sequence_of_passing_faults_ends_with_our_token() {
    let fates = [
        Fate::DoneAndLost,
        Fate::Later(0),
        Fate::Later(3),
        Fate::Fails(Kind::Lost),
        Fate::Fails(Kind::NoLeader),
        Fate::Fails(Kind::Busy),
        Fate::Fails(Kind::Unreachable),
        Fate::Fails(Kind::AclOff),
        Fate::Ok,
    ];
    let looks: [&[Kind]; 5] = [
        &[],
        &[Kind::Lost],
        &[Kind::NoLeader, Kind::NotBootstrapped],
        &[Kind::UnknownToken; 3],
        // The leader is about to restart with ACLs on.
        &[Kind::AclOffElsewhere; 4],
    ];
    for a in fates {
        for b in fates {
            for c in fates {
                for look in looks {
                    for lag in [0, 2, 20] {
                        let mut cluster = Fake { looks: look.to_vec(), lag, ..Fake::new(&[a, b, c]) };
                        let done = cluster.run();
                        assert!(done.is_ok(), "{a:?} {b:?} {c:?} {look:?} {lag}: {done:?}");
                        assert_eq!(cluster.secret, Some(ours()), "{a:?} {b:?} {c:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_strangers_bootstrap_is_found_after_the_lag_and_left_alone() {
    let mut cluster = Fake { secret: Some(Secret::new("stranger")), ..Fake::new(&[]) };
    let Err(BootstrapError::Foreign { said }) = cluster.run() else { panic!("it is foreign") };
    assert_eq!(said, "Bootstrapped");
    assert!(cluster.clock >= LAG && cluster.clock < LAG + Duration::from_secs(10), "{:?}", cluster.clock);
    assert_eq!(cluster.calls, 1, "one call, and nothing more is tried");
}

#[test]
fn a_cluster_that_cannot_answer_does_not_count_as_foreign() {
    // "Already done", and then no leader for longer than the lag; then it knows our token.
    let looks = [vec![Kind::UnknownToken], vec![Kind::NoLeader; 60]].concat();
    let mut cluster = Fake { secret: Some(ours()), looks, ..Fake::new(&[]) };
    assert_eq!(cluster.run(), Ok(Done::Elsewhere));
}

#[test]
fn a_slow_follower_is_not_a_stranger() {
    let mut cluster = Fake { secret: Some(ours()), lag: 30, ..Fake::new(&[]) };
    assert_eq!(cluster.run(), Ok(Done::Elsewhere));
}

#[test]
fn of_those_that_reset_acls_at_once_one_has_the_number() {
    let mut cluster = Fake { lag: 20, ..Fake::new(&[Fate::ByFileElsewhere]) };
    assert_eq!((cluster.run(), cluster.calls), (Ok(Done::Elsewhere), 1));
    let mut wrong = Fake::new(&[Fate::Fails(Kind::ResetFile)]);
    assert!(matches!(wrong.run(), Err(BootstrapError::ResetFile(_))));
    assert!(wrong.clock >= LAG && wrong.calls == 1, "it is called wrong when nobody has come to know the token");
}

#[test]
fn nothing_is_called_before_the_servers_are_there() {
    let leader = vec!["", "a", "b", "", "b", "b"];
    let mut cluster = Fake { leader, peers: vec![1, 1, 3], ..Fake::new(&[]) };
    assert_eq!(cluster.run(), Ok(Done::Here));
    assert!(cluster.clock >= Duration::from_secs(4), "two looks that agree: {:?}", cluster.clock);
    let mut alone = Fake { peers: vec![1], ..Fake::new(&[]) };
    let Err(BootstrapError::GaveUp { last, .. }) = alone.run() else { panic!("two servers are missing") };
    assert_eq!((last.as_str(), alone.calls), ("1 servers of 3 vote", 0));
}

#[test]
fn what_will_not_pass_ends_it() {
    let mut off = Fake { looks: vec![Kind::AclOff], ..Fake::new(&[]) };
    assert!(matches!(off.run(), Err(BootstrapError::Off(_))));
    assert_eq!(off.calls, 0);
    let mut weak = Fake { secret: Some(ours()), management: false, ..Fake::new(&[]) };
    assert!(matches!(weak.run(), Err(BootstrapError::Weak { .. })));
    assert_eq!(Fake::new(&[Fate::Ignored]).run(), Err(BootstrapError::Ignored));
    assert!(matches!(Fake::new(&[Fate::Fails(Kind::Refused)]).run(), Err(BootstrapError::Refused(_))));
    let mut never = Fake::new(&[Fate::Fails(Kind::Lost); 1000]);
    assert!(matches!(never.run(), Err(BootstrapError::GaveUp { .. })));
    assert!(never.clock >= Duration::from_mins(5) && never.clock < Duration::from_mins(6));
}

#[test]
fn a_cluster_that_was_formed_before_is_not_formed_anew() {
    let mut lost = Fake { formed: true, ..Fake::new(&[]) };
    assert_eq!((lost.run(), lost.calls), (Err(BootstrapError::TotalLoss), 0));
    // Its servers are back, or it is the stranger's.
    let mut back = Fake { formed: true, secret: Some(ours()), ..Fake::new(&[]) };
    assert_eq!((back.run(), back.calls), (Ok(Done::Elsewhere), 0));
    let mut foreign = Fake { formed: true, secret: Some(Secret::new("stranger")), ..Fake::new(&[]) };
    assert!(matches!(foreign.run(), Err(BootstrapError::Foreign { .. })));
}
