//! `nomad_job`: a job of Nomad, as Nomad's own plan sees it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    nomad_api::{self as api, Act, Opened, State, api_args},
    nomad_namespace::check_name,
};
use crate::{
    choice,
    cluster::nomad::{ApiError, Kind, Nomad},
};

mod follow;
mod shown;
mod spec;

use follow::Follow;
use spec::Spec;

choice!(
    /// How far a job must have come.
    Until { Registered = "registered", Healthy = "healthy", Complete = "complete" }
);

api_args! {
    /// Arguments.
    pub struct Args {
        /// The job's file, in HCL or JSON, from `files/` (with `remote_src`: of the host, absolute). Nothing in it is rendered: what Nomad's
        /// own templates say in braces stays.
        src []: Option<String>;
        /// The job's text instead.
        content []: Option<Value>;
        /// `src` is on the host already.
        remote_src []: bool = false;
        /// Values of the variables that the text declares (HCL only).
        variables []: Map<String, Value> = Map::new();
        /// The job's id: where a job is to be removed without its text.
        id []: Option<String>;
        /// The namespace, where the text names none.
        namespace []: Option<String>;
        /// `absent` stops it.
        state []: State = State::Present;
        /// Forget a job that is stopped at once, instead of with Nomad's next clean-up.
        purge []: bool = false;
        /// How far it must have come: `registered`, `healthy` (its deployment has succeeded; without one: its allocations run), or
        /// `complete` (a batch job's allocations have ended well).
        until []: Until = Until::Healthy;
        /// For how many seconds to wait for that.
        timeout []: Duration = Duration::from_mins(5);
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_job",
    aliases: &[],
    summary: "Runs, changes or stops a job of Nomad, and waits until it is well",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::File,
    results: &[&[
        ("id", "The job's id."),
        ("index", "Its index (JobModifyIndex) after the call; 0 where there is no such job."),
        ("deployment", "The deployment that was waited for; empty without one."),
    ]],
    example: "- name: the shop\n  nomad_job:\n    src: shop.nomad.hcl\n    variables: {count: 2}\n    token_secret: nomad/management\n",
    plan,
};

/// What Nomad says a registration would do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Planned {
    #[serde(default)]
    job_modify_index: u64,
    #[serde(default)]
    diff: Option<shown::JobDiff>,
    #[serde(default)]
    annotations: Option<shown::Annotations>,
    #[serde(default, rename = "FailedTGAllocs")]
    failed: Option<follow::Failed>,
    #[serde(default)]
    warnings: String,
}

impl Planned {
    fn is_nothing(&self) -> bool {
        self.diff.as_ref().is_some_and(shown::JobDiff::is_none)
    }
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    if let Some(namespace) = &args.namespace {
        check_name(namespace)?;
    }
    let source = spec::source(&args, inv, cx)?;
    match (&source, &args.id, args.state) {
        (Some(_), Some(_), _) => {
            return Err(Failure::new("the job's text has its id: 'id' is for a job that is to be removed without one"));
        }
        (None, _, State::Present) => return Err(Failure::new("one of 'src' and 'content' is needed")),
        (None, None, State::Absent) => return Err(Failure::new("argument 'id' is missing")),
        _ => {}
    }
    let nomad = match api::open::<Nomad>(&args.access(), cx)? {
        Opened::Client(nomad) => *nomad,
        Opened::Later(plan) => return Ok(plan),
    };
    let spec = match source {
        None => Spec::named(args.id.as_deref().unwrap_or_default(), args.namespace.as_deref()),
        Some(source) => match api::first_look(args.wait, cx, || spec::parse(&nomad, &source, &args)) {
            Ok(parsed) => {
                let namespace = args.namespace.as_deref();
                let parsed = parsed.map_err(|failure| explained(failure, namespace.unwrap_or("default")));
                source.read(parsed, namespace)?
            }
            Err(plan) => return Ok(plan),
        },
    };
    if args.until == Until::Complete && args.state == State::Present && !spec.is_batch() {
        return Err(Failure::new("only batch jobs come to an end: 'until: complete' is for those").hint(format!(
            "{} is a {} job",
            spec.id,
            spec.kind()
        )));
    }
    let job =
        Job { nomad: nomad.within(&spec.namespace), spec, until: args.until, timeout: args.timeout, wait: args.wait };
    match args.state {
        State::Present => job.present(inv, cx),
        State::Absent => job.absent(args.purge, cx),
    }
}

/// A job, and who is asked about it.
#[derive(Debug)]
struct Job {
    nomad: Nomad,
    spec: Spec,
    until: Until,
    timeout: Duration,
    wait: Duration,
}

impl Job {
    fn present(self, inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
        let planned = match api::first_look(self.wait, cx, || self.ask()) {
            Ok(planned) => planned.map_err(|failure| self.explained(failure))?,
            Err(plan) => return Ok(plan),
        };
        if planned.is_nothing() {
            let outcome = self.told(Outcome::unchanged(), planned.job_modify_index);
            // What an earlier run registered, and did not see the end of, has its end here.
            let outcome =
                if cx.host.is_overlay() { outcome } else { self.follow(outcome, planned.job_modify_index, None)? };
            return Ok(Plan::Unchanged(warned(outcome, &planned)));
        }
        let diff = match &planned.diff {
            _ if inv.secret => {
                Diff { what: self.spec.title(), before: String::new(), after: String::new(), hidden: true }
            }
            diff => {
                let (before, after) = diff.as_ref().map(shown::texts).unwrap_or_default();
                api::diff(self.spec.title(), &before, &after)
            }
        };
        let mut outcome = self.told(Outcome::changed(), planned.job_modify_index);
        if let Some(summary) = planned.annotations.as_ref().and_then(shown::summary) {
            outcome = outcome.msg(summary);
        }
        let outcome = warned(outcome, &planned);
        let hidden = inv.secret;
        Ok(Act::plan(diff, outcome.clone(), move |_| self.register(&planned, outcome, hidden)))
    }

    /// Nomad's plan for the job.
    fn ask(&self) -> Result<Planned, ApiError> {
        let body = json!({ "Job": self.spec.job, "Diff": true });
        self.nomad.post(&["job", &self.spec.id, "plan"], &[], &body)
    }

    /// Registers what was planned, if nobody changed the job since, and waits until it is well.
    fn register(&self, planned: &Planned, outcome: Outcome, hidden: bool) -> Result<Outcome, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Registered {
            #[serde(rename = "EvalID", default)]
            eval_id: String,
            job_modify_index: u64,
        }
        let mut body =
            json!({ "Job": self.spec.job, "EnforceIndex": true, "JobModifyIndex": planned.job_modify_index });
        if let Some(submission) = self.spec.submission.as_ref().filter(|_| !hidden) {
            body["Submission"] = submission.clone();
        }
        let changed = |failure: Failure| Failure { changed: true, ..failure };
        match self.nomad.post::<Registered>(&["jobs"], &[], &body) {
            Ok(done) => {
                let outcome = self.told(outcome, done.job_modify_index);
                self.follow(outcome, done.job_modify_index, Some(done.eval_id).filter(|id| !id.is_empty()))
                    .map_err(changed)
            }
            // Perhaps it happened, or another host does the same: then there is nothing left to do.
            Err(error) if error.kind.is_passing() || is_conflict(&error) => {
                let now = api::patiently(self.wait, || self.ask()).map_err(Failure::from).map_err(changed)?;
                if now.is_nothing() {
                    let mut outcome = self.told(outcome, now.job_modify_index);
                    outcome.changed = error.kind == Kind::Lost;
                    return self.follow(outcome, now.job_modify_index, None);
                }
                let conflict = is_conflict(&error);
                let failure = self.explained(error.into());
                Err(if conflict {
                    failure.hint("somebody else changed the job after it was planned: run again")
                } else {
                    failure
                })
            }
            Err(error) => Err(self.explained(error.into())),
        }
    }

    fn follow(&self, outcome: Outcome, index: u64, evaluation: Option<String>) -> Result<Outcome, Failure> {
        let follow = Follow { nomad: &self.nomad, job: &self.spec.id, index, until: self.until, timeout: self.timeout };
        match self.until {
            Until::Registered => Ok(outcome),
            _ => follow.to_the_end(outcome, evaluation),
        }
    }

    fn absent(self, purge: bool, cx: &Cx<'_>) -> Result<Plan, Failure> {
        let found = match api::first_look(self.wait, cx, || self.find()) {
            Ok(found) => found.map_err(|failure| self.explained(failure))?,
            Err(plan) => return Ok(plan),
        };
        let Some(found) = found.filter(|found| purge || !found.stop) else {
            return Ok(Plan::Unchanged(self.told(Outcome::unchanged(), 0)));
        };
        let before = format!("{} job, {}\n", found.kind, found.status);
        let after = if purge { "" } else { "stopped\n" };
        let diff = api::diff(self.spec.title(), &before, after);
        let planned = self.told(Outcome::changed(), found.job_modify_index);
        Ok(Act::plan(diff, planned, move |_| self.stop(purge)))
    }

    fn find(&self) -> Result<Option<Found>, ApiError> {
        self.nomad.found(&["job", &self.spec.id], &[])
    }

    fn stop(&self, purge: bool) -> Result<Outcome, Failure> {
        let purged = if purge { "true" } else { "false" };
        let settled = api::settle(
            self.wait,
            || self.find(),
            |found| found.is_none_or(|found| !purge && found.stop),
            |_| self.nomad.delete(&["job", &self.spec.id], &[("purge", purged)]),
        )
        .map_err(|failure| self.explained(failure))?;
        let outcome = self.told(api::outcome(settled.changed), settled.now.map_or(0, |found| found.job_modify_index));
        let follow =
            Follow { nomad: &self.nomad, job: &self.spec.id, index: 0, until: self.until, timeout: self.timeout };
        match self.until {
            Until::Registered => Ok(outcome),
            _ => follow.to_rest(outcome),
        }
    }

    fn told(&self, outcome: Outcome, index: u64) -> Outcome {
        outcome.with("id", self.spec.id.as_str()).with("index", index).with("deployment", "")
    }

    fn explained(&self, failure: Failure) -> Failure {
        explained(failure, &self.spec.namespace)
    }
}

/// A refusal with what to do about it.
fn explained(failure: Failure, namespace: &str) -> Failure {
    if failure.message.contains("nonexistent namespace") {
        return failure.hint(format!("nomad_namespace makes the namespace '{namespace}'"));
    }
    if failure.message.contains("Permission denied") {
        let needed = format!("a token for jobs needs 'submit-job' and 'read-job' in the namespace '{namespace}'");
        return failure.hint(needed);
    }
    failure
}

/// What is there of a job.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    #[serde(rename = "Type")]
    kind: String,
    status: String,
    stop: bool,
    job_modify_index: u64,
}

fn is_conflict(error: &ApiError) -> bool {
    error.said.contains("Enforcing job modify index")
}

/// What Nomad warns of, and what it says cannot be placed now.
fn warned(mut outcome: Outcome, planned: &Planned) -> Outcome {
    let warnings = planned.warnings.trim();
    if !warnings.is_empty() {
        outcome.warnings.push(warnings.to_owned());
    }
    let failed = planned.failed.iter().flat_map(follow::placement);
    outcome.warnings.extend(failed.map(|why| format!("as things are, {why}")));
    outcome
}

#[cfg(test)]
mod tests;
