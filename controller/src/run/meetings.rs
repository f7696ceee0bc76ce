//! Where hosts of a batch wait for each other: tasks that ask for what other hosts of the run have.
//!
//! A place in a play is a list of numbers, and what comes later is greater. A place opens when each host that is at work
//! waits there or further on; who has passed it has no more to say there, who failed or ended is not waited for. Hosts go
//! different ways (conditions, includes, rescues), so that all of them may wait for one another in different manners: then
//! the first place opens.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::turns::Waiter;

/// Names that are asked for.
pub(crate) type Names = BTreeSet<String>;

/// The places of one batch.
#[derive(Debug, Default)]
pub(crate) struct Meetings {
    places: BTreeMap<Vec<u32>, Place>,
}

#[derive(Debug, Default)]
struct Place {
    open: bool,
    waiting: Vec<(Waiter, Names)>,
}

impl Meetings {
    /// A host has come to a place.
    pub(crate) fn reached(&mut self, place: Vec<u32>, waiter: Waiter, names: Names) {
        self.places.entry(place).or_default().waiting.push((waiter, names));
    }

    /// A host is gone: it waits no more.
    pub(crate) fn gone(&mut self, host: usize) {
        for place in self.places.values_mut() {
            place.waiting.retain(|((waiting, _), _)| *waiting != host);
        }
    }

    /// True if no host waits at any place: the usual case, asked after every message.
    pub(crate) fn nobody_waits(&self) -> bool {
        self.places.values().all(|place| place.waiting.is_empty())
    }

    /// Who may go on. `live` are the hosts at work, `blocked` those of them that wait for other hosts, here or elsewhere.
    pub(crate) fn settle(&mut self, live: &[usize], blocked: &HashSet<usize>) -> Vec<(Waiter, Names)> {
        for place in self.places.values_mut().filter(|place| !place.waiting.is_empty()) {
            if place.open {
                return std::mem::take(&mut place.waiting);
            }
        }
        let at: HashMap<usize, &Vec<u32>> = self
            .places
            .iter()
            .flat_map(|(key, place)| place.waiting.iter().map(move |((host, _), _)| (*host, key)))
            .collect();
        let Some(first) = at.values().min().map(|key| (*key).clone()) else { return Vec::new() };
        let come = live.iter().all(|host| at.get(host).is_some_and(|key| **key >= first));
        let stuck = live.iter().all(|host| at.contains_key(host) || blocked.contains(host));
        if !come && !stuck {
            return Vec::new();
        }
        let Some(place) = self.places.get_mut(&first) else { return Vec::new() };
        place.open = true;
        std::mem::take(&mut place.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(meetings: &mut Meetings, place: &[u32], host: usize) {
        meetings.reached(place.to_vec(), (host, 1), Names::from(["token".to_owned()]));
    }

    fn settle(meetings: &mut Meetings, live: &[usize], blocked: &[usize]) -> Vec<usize> {
        let blocked = blocked.iter().copied().collect();
        meetings.settle(live, &blocked).into_iter().map(|((host, _), _)| host).collect()
    }

    #[test]
    fn a_place_opens_when_all_have_come() {
        let mut meetings = Meetings::default();
        reach(&mut meetings, &[1, 5], 0);
        assert!(settle(&mut meetings, &[0, 1, 2], &[0]).is_empty());
        reach(&mut meetings, &[1, 5], 1);
        assert!(settle(&mut meetings, &[0, 1, 2], &[0, 1]).is_empty());
        // The third fails.
        assert_eq!(settle(&mut meetings, &[0, 1], &[0, 1]), [0, 1]);
        // One that was late finds it open.
        reach(&mut meetings, &[1, 5], 2);
        assert_eq!(settle(&mut meetings, &[0, 1, 2], &[]), [2]);
        assert!(settle(&mut meetings, &[0, 1, 2], &[]).is_empty());
    }

    #[test]
    fn who_waits_further_on_has_passed_an_earlier_place() {
        let mut meetings = Meetings::default();
        reach(&mut meetings, &[1, 9], 0);
        reach(&mut meetings, &[1, 5, 0, 7], 1);
        // The later place must wait for what the other host does between the two.
        assert_eq!(settle(&mut meetings, &[0, 1], &[0, 1]), [1]);
        assert!(settle(&mut meetings, &[0, 1], &[0]).is_empty());
        reach(&mut meetings, &[1, 9], 1);
        assert_eq!(settle(&mut meetings, &[0, 1], &[0, 1]), [0, 1]);
    }

    #[test]
    fn hosts_that_wait_for_each_other_elsewhere_are_no_deadlock() {
        let mut meetings = Meetings::default();
        reach(&mut meetings, &[1, 5], 0);
        assert!(settle(&mut meetings, &[0, 1], &[0]).is_empty());
        // The other one waits for its turn, which this one has.
        assert_eq!(settle(&mut meetings, &[0, 1], &[0, 1]), [0]);
        reach(&mut meetings, &[1, 6], 0);
        meetings.gone(0);
        assert!(settle(&mut meetings, &[1], &[1]).is_empty());
    }
}
