//! Waiting for a job: its evaluation, its deployment, its allocations; and the reasons where it does not become well.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::Until;
use crate::{
    cluster::nomad::Nomad,
    modules::{Failure, Outcome, nomad_api as api},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// Allocations that a failure tells of.
const TOLD: usize = 3;
/// Last events of each of their tasks that it tells.
const EVENTS: usize = 3;
/// Events that belong to every task's life, and tell nothing about what went wrong.
const USUAL: &[&str] =
    &["Received", "Task Setup", "Started", "Restarting", "Killed", "Killing", "Signaling", "Downloading Artifacts"];

/// Groups that could not be placed, and why.
pub(super) type Failed = BTreeMap<String, Metric>;

/// Why nodes were not taken.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Metric {
    nodes_evaluated: u64,
    nodes_in_pool: u64,
    node_pool: String,
    constraint_filtered: Option<BTreeMap<String, u64>>,
    class_filtered: Option<BTreeMap<String, u64>>,
    dimension_exhausted: Option<BTreeMap<String, u64>>,
    quota_exhausted: Option<Vec<String>>,
    coalesced_failures: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Evaluation {
    status: String,
    #[serde(default)]
    status_description: String,
    #[serde(rename = "DeploymentID", default)]
    deployment_id: String,
    #[serde(rename = "FailedTGAllocs", default)]
    failed: Option<Failed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Deployment {
    #[serde(rename = "ID")]
    id: String,
    status: String,
    #[serde(default)]
    status_description: String,
    #[serde(default)]
    job_spec_modify_index: u64,
    #[serde(default)]
    task_groups: Option<BTreeMap<String, State>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    promoted: bool,
    desired_canaries: u64,
    desired_total: u64,
    healthy_allocs: u64,
    unhealthy_allocs: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Registered {
    #[serde(rename = "Type")]
    kind: String,
    version: u64,
    #[serde(default)]
    periodic: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    parameterized_job: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Allocation {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    node_name: String,
    job_version: u64,
    desired_status: String,
    client_status: String,
    #[serde(default)]
    client_description: String,
    #[serde(rename = "FollowupEvalID", default)]
    followup: String,
    #[serde(rename = "NextAllocation", default)]
    next: String,
    #[serde(default)]
    task_states: Option<BTreeMap<String, Task>>,
    #[serde(default)]
    deployment_status: Option<Health>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    healthy: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Task {
    events: Option<Vec<Event>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Event {
    #[serde(rename = "Type")]
    kind: String,
    display_message: String,
}

/// A job that is being waited for.
#[derive(Debug)]
pub(super) struct Follow<'a> {
    pub(super) nomad: &'a Nomad,
    pub(super) job: &'a str,
    /// The job's index (JobModifyIndex): what is about an earlier one is of no interest.
    pub(super) index: u64,
    pub(super) until: Until,
    pub(super) timeout: Duration,
}

/// A time limit, and the next look.
struct Clock {
    end: Instant,
}

impl Clock {
    fn over(&self) -> bool {
        Instant::now() >= self.end
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    fn tick(&self) {
        thread::sleep(PAUSE.min(self.left()));
    }
}

impl Follow<'_> {
    /// Waits until the job is as far as it must be.
    pub(super) fn to_the_end(&self, outcome: Outcome, evaluation: Option<String>) -> Result<Outcome, Failure> {
        let clock = Clock { end: Instant::now() + self.timeout };
        let mut deployment = String::new();
        let mut missing = Vec::new();
        if let Some(id) = evaluation {
            let evaluation = self.evaluated(&id, &clock)?;
            missing = evaluation.failed.as_ref().map(placement).unwrap_or_default();
            deployment = evaluation.deployment_id;
        }
        if deployment.is_empty() {
            let latest: Option<Deployment> = self.get(&["job", self.job, "deployment"], &clock)?;
            let ours = latest.filter(|latest| latest.job_spec_modify_index == self.index);
            deployment = ours.map(|latest| latest.id).unwrap_or_default();
        }
        if deployment.is_empty() {
            return self.allocated(outcome, &missing, &clock);
        }
        let result = self.deployed(outcome.with("deployment", deployment.as_str()), &deployment, &missing, &clock);
        result.map_err(|failure| failure.with("deployment", deployment))
    }

    /// Waits until nothing of a job that was stopped runs any more.
    pub(super) fn to_rest(&self, outcome: Outcome) -> Result<Outcome, Failure> {
        let clock = Clock { end: Instant::now() + self.timeout };
        loop {
            let all = self.allocations(&clock)?;
            let left = all.iter().filter(|one| matches!(one.client_status.as_str(), "running" | "pending")).count();
            if left == 0 {
                return Ok(outcome);
            }
            if clock.over() {
                return Err(self.late(format!("{left} of its allocations still run")));
            }
            clock.tick();
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &[&str], clock: &Clock) -> Result<T, Failure> {
        api::patiently(clock.left().max(Duration::from_secs(5)), || self.nomad.get(path, &[])).map_err(Failure::from)
    }

    fn allocations(&self, clock: &Clock) -> Result<Vec<Allocation>, Failure> {
        self.get(&["job", self.job, "allocations"], clock)
    }

    fn late(&self, what: String) -> Failure {
        Failure::new(format!("job '{}': after {} s {what}", self.job, self.timeout.as_secs()))
            .hint("it goes on in Nomad: a later run finds it there. More time: `timeout`")
    }

    fn evaluated(&self, id: &str, clock: &Clock) -> Result<Evaluation, Failure> {
        loop {
            let evaluation: Evaluation = self.get(&["evaluation", id], clock)?;
            match evaluation.status.as_str() {
                "complete" => return Ok(evaluation),
                "failed" | "canceled" => {
                    let why = if evaluation.status_description.is_empty() {
                        String::new()
                    } else {
                        format!(": {}", evaluation.status_description)
                    };
                    return Err(Failure::new(format!(
                        "job '{}': its evaluation {}{why}",
                        self.job,
                        ended(&evaluation.status)
                    )));
                }
                _ if clock.over() => return Err(self.late("its evaluation is not done".into())),
                _ => clock.tick(),
            }
        }
    }

    fn deployed(&self, mut outcome: Outcome, id: &str, missing: &[String], clock: &Clock) -> Result<Outcome, Failure> {
        loop {
            let deployment: Deployment = self.get(&["deployment", id], clock)?;
            match deployment.status.as_str() {
                "successful" => return Ok(outcome),
                "failed" | "cancelled" => {
                    let why = deployment.status_description.trim();
                    let said = format!("job '{}': its deployment {}: {why}", self.job, ended(&deployment.status));
                    let failure = Failure::new(self.with_reasons(said, id, missing, clock));
                    return Err(failure.hint(
                        "nothing more is tried until the job changes: `nomad deployment status` tells the whole story",
                    ));
                }
                _ if deployment.awaits_promotion() => {
                    outcome.warnings.push(format!(
                        "the canaries are healthy, and wait to be promoted: nomad deployment promote {}",
                        id.get(..8).unwrap_or(id)
                    ));
                    return Ok(outcome);
                }
                _ if clock.over() => {
                    let said = format!("its deployment is not done: {}", deployment.progress());
                    return Err(self.late(self.with_reasons(said, id, missing, clock)));
                }
                _ => clock.tick(),
            }
        }
    }

    /// What keeps a deployment from success.
    fn with_reasons(&self, said: String, deployment: &str, missing: &[String], clock: &Clock) -> String {
        let all: Result<Vec<Allocation>, _> = self.get(&["deployment", "allocations", deployment], clock);
        let mut reasons = missing.to_vec();
        // What cannot be told any more is no reason to tell less.
        let ill = all.unwrap_or_default();
        let ill =
            ill.iter().filter(|one| one.deployment_status.as_ref().and_then(|health| health.healthy) != Some(true));
        reasons.extend(ill.take(TOLD).map(Allocation::reason));
        said + &list(&reasons)
    }

    /// A job without a deployment: system and batch jobs, and services whose update block asks for none.
    fn allocated(&self, outcome: Outcome, missing: &[String], clock: &Clock) -> Result<Outcome, Failure> {
        let job: Registered = self.get(&["job", self.job], clock)?;
        if job.periodic.is_some() || job.parameterized_job.is_some() {
            return Ok(outcome);
        }
        let batch = matches!(job.kind.as_str(), "batch" | "sysbatch");
        loop {
            let mut all = self.allocations(clock)?;
            all.retain(|one| one.job_version == job.version && one.next.is_empty());
            // Those of a batch job that have ended are wanted no less; those that were told to stop are not.
            all.retain(|one| one.desired_status == "run" || (batch && one.desired_status != "stop"));
            let dead =
                |one: &&Allocation| matches!(one.client_status.as_str(), "failed" | "lost") && one.followup.is_empty();
            let dead: Vec<String> = all.iter().filter(dead).take(TOLD).map(Allocation::reason).collect();
            if batch && !dead.is_empty() {
                return Err(Failure::new(format!("job '{}' has failed{}", self.job, list(&dead))));
            }
            let done = |one: &Allocation| match one.client_status.as_str() {
                "complete" => batch,
                "running" => self.until != Until::Complete,
                _ => false,
            };
            if missing.is_empty() && all.iter().all(done) {
                return Ok(outcome);
            }
            if clock.over() {
                let count = all.iter().filter(|one| done(one)).count();
                let word = if self.until == Until::Complete { "have ended" } else { "run" };
                let mut reasons = missing.to_vec();
                reasons.extend(all.iter().filter(|one| !done(one)).take(TOLD).map(Allocation::reason));
                return Err(self.late(format!("{count} of {} allocations {word}{}", all.len(), list(&reasons))));
            }
            clock.tick();
            // What could not be placed may have been since: the job's own summary is asked anew.
            if !missing.is_empty() && self.all_placed(clock)? {
                return self.allocated(outcome, &[], clock);
            }
        }
    }

    /// Nothing of the job waits for a node.
    fn all_placed(&self, clock: &Clock) -> Result<bool, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Summary {
            summary: Option<BTreeMap<String, Queue>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Queue {
            queued: i64,
        }
        let summary: Summary = self.get(&["job", self.job, "summary"], clock)?;
        Ok(summary.summary.iter().flatten().all(|(_, group)| group.queued == 0))
    }
}

fn ended(status: &str) -> &str {
    match status {
        "failed" => "has failed",
        _ => "was cancelled",
    }
}

impl Deployment {
    fn awaits_promotion(&self) -> bool {
        let mut waiting = self
            .task_groups
            .iter()
            .flatten()
            .map(|(_, group)| group)
            .filter(|group| group.desired_canaries > 0 && !group.promoted)
            .peekable();
        self.status_description.contains("requires manual promotion")
            && waiting.peek().is_some()
            && waiting.all(|group| group.healthy_allocs >= group.desired_canaries)
    }

    /// `web: 1 of 2 healthy, 1 unhealthy`.
    fn progress(&self) -> String {
        let group = |(name, state): (&String, &State)| {
            let ill = match state.unhealthy_allocs {
                0 => String::new(),
                count => format!(", {count} unhealthy"),
            };
            format!("{name}: {} of {} healthy{ill}", state.healthy_allocs, state.desired_total)
        };
        self.task_groups.iter().flatten().map(group).collect::<Vec<_>>().join("; ")
    }
}

impl Allocation {
    /// `allocation 1a2b3c4d on client-1, failed: task 'web': Driver Failure: no such image`.
    fn reason(&self) -> String {
        let mut said = format!(
            "allocation {} on {}, {}",
            self.id.get(..8).unwrap_or(&self.id),
            self.node_name,
            self.client_status
        );
        let mut events = Vec::new();
        for (name, task) in self.task_states.iter().flatten() {
            let telling = |event: &&Event| !USUAL.contains(&event.kind.as_str());
            let mut last: Vec<&Event> = task.events.iter().flatten().filter(telling).collect();
            let begin = last.len().saturating_sub(EVENTS);
            for event in last.drain(begin..) {
                events.push(format!("task '{name}': {}: {}", event.kind, event.display_message.trim()));
            }
        }
        if events.is_empty() && !self.client_description.is_empty() {
            events.push(self.client_description.clone());
        }
        if !events.is_empty() {
            said.push_str(": ");
            said.push_str(&events.join("; "));
        }
        said
    }
}

fn list(reasons: &[String]) -> String {
    reasons.iter().fold(String::new(), |lines, reason| lines + "\n  " + reason)
}

/// A line for each group that cannot be placed.
pub(super) fn placement(failed: &Failed) -> Vec<String> {
    failed.iter().map(|(group, metric)| format!("group '{group}' cannot be placed: {}", metric.why())).collect()
}

impl Metric {
    fn why(&self) -> String {
        let mut reasons = Vec::new();
        if self.nodes_evaluated == 0 {
            let pool = if self.node_pool.is_empty() { "default" } else { &self.node_pool };
            reasons.push(match self.nodes_in_pool {
                0 => format!("no client is ready in the node pool '{pool}'"),
                count => format!(
                    "none of the {count} clients of the node pool '{pool}' is ready, or of the job's datacenters"
                ),
            });
        }
        let nodes = |count: &u64| if *count == 1 { "1 client".to_owned() } else { format!("{count} clients") };
        for (what, count) in self.constraint_filtered.iter().flatten() {
            reasons.push(format!("{} cannot: {what}", nodes(count)));
        }
        for (class, count) in self.class_filtered.iter().flatten() {
            reasons.push(format!("{} of class {class} cannot", nodes(count)));
        }
        for (what, count) in self.dimension_exhausted.iter().flatten() {
            reasons.push(format!(
                "{} without enough {what}",
                if *count == 1 { "1 is".to_owned() } else { format!("{count} are") }
            ));
        }
        for quota in self.quota_exhausted.iter().flatten() {
            reasons.push(format!("quota {quota}"));
        }
        let more = match self.coalesced_failures {
            0 => String::new(),
            count => format!(" (and {count} more like it)"),
        };
        reasons.join(", ") + &more
    }
}
