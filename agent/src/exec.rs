//! One run: read what it is, look, say what is wrong; then carry out what is asked for, play by play.

use std::{
    io::{self, BufReader},
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
};

use crate::{
    blobs::Blobs,
    link::Controller,
    lock,
    paths::{Paths, process_user},
    worker::Workers,
};
use anyhow::Context as _;
use rollcall_engine::{
    diag::Severity,
    facts,
    host::{Write, overlay::Overlay, real::Real, unfinished::Unfinished},
    modules::Failure,
    protocol::{Frame, FromAgent, Go, Init, Pack, PlayEnd, Shared, ToAgent, VERSION},
    run::{Context, Ledger, Runner, ledger::private_dir, preflight::preflight},
    secrets::redact::scrubbed,
    vars::hosts::FACTS,
};

/// What the main thread waits for.
enum Step {
    Go(Go),
    Bye,
}

/// `agent exec`.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    crate::closed();
    let mut input = BufReader::new(io::stdin());
    let Some(first) = Frame::read(&mut input)? else { return Ok(ExitCode::SUCCESS) };
    let ToAgent::Init(init) = first.message()? else { anyhow::bail!("the first message must be Init") };
    let paths = Paths::of_this_process();
    let controller = Controller::new(Blobs::new(&paths.state, !init.check), Workers::default())?;
    if init.version != VERSION {
        let failure = Failure::new(format!("the controller speaks version {}, this agent {VERSION}", init.version));
        controller.send(&FromAgent::Fatal { failure })?;
        return Ok(ExitCode::from(1));
    }
    let (steps, receiver) = mpsc::channel();
    let reader = Arc::clone(&controller);
    thread::Builder::new().name("reader".into()).spawn(move || read(input, &reader, &steps))?;
    match carry_out(*init, &paths, &controller, &receiver) {
        Ok(code) => Ok(code),
        Err(failure) => {
            controller.send(&FromAgent::Fatal { failure: scrubbed(failure) })?;
            Ok(ExitCode::from(1))
        }
    }
}

/// Everything that arrives goes to whoever waits for it.
fn read(mut input: impl io::Read, controller: &Arc<Controller>, steps: &mpsc::Sender<Step>) {
    let why = loop {
        match Frame::read(&mut input) {
            Ok(None) => break "the controller is gone".to_owned(),
            Err(error) => break format!("the controller is gone: {error}"),
            Ok(Some(Frame::Blob(hash, bytes))) => controller.blobs.put(hash, bytes),
            Ok(Some(frame)) => match frame.message::<ToAgent>() {
                Ok(message) => dispatch(message, controller, steps),
                Err(error) => break format!("the controller is not understood: {error}"),
            },
        }
    };
    controller.gone(&why);
}

fn dispatch(message: ToAgent, controller: &Arc<Controller>, steps: &mpsc::Sender<Step>) {
    // A send fails only when the main thread is past its last step.
    match message {
        ToAgent::Init(_) => {}
        ToAgent::Go(go) => drop(steps.send(Step::Go(go))),
        ToAgent::Bye => drop(steps.send(Step::Bye)),
        ToAgent::Stop { reason } => controller.stop(&reason),
        ToAgent::Answer { id, answer } => controller.answer(id, answer),
        ToAgent::Invoke { id, call } => {
            let controller = Arc::clone(controller);
            thread::spawn(move || invoke(&controller, id, &call));
        }
    }
}

/// A task of another host, delegated to this one: beside this host's own tasks.
fn invoke(controller: &Controller, id: u64, call: &rollcall_engine::protocol::Call) {
    use rollcall_engine::{protocol::Reply, run::Link as _};
    let secrets = if call.check { controller.looking() } else { controller.grants() };
    let reply = if call.user == process_user() {
        let facts = facts::gather(&Real::new());
        let mut real = Real::new();
        if call.check {
            rollcall_engine::run::carry_out(call, &facts, secrets, &mut Overlay::new(&real))
        } else {
            rollcall_engine::run::carry_out(call, &facts, secrets, &mut real)
        }
    } else {
        controller.as_user(call).unwrap_or_else(Reply::Failed)
    };
    if let Err(error) = controller.send(&FromAgent::Invoked { id, reply }) {
        controller.gone(&error.to_string());
    }
}

fn carry_out(
    init: Init,
    paths: &Paths,
    controller: &Arc<Controller>,
    steps: &mpsc::Receiver<Step>,
) -> Result<ExitCode, Failure> {
    let gone = |e: io::Error| Failure::new(format!("the controller is gone: {e}"));
    let ask = if init.ec2 { facts::AskEc2::Yes } else { facts::AskEc2::IfLikely };
    let facts = Arc::new(facts::gather_with(&Real::new(), ask, facts::IMDS));
    controller.workers.facts(&facts);
    if init.facts_only {
        controller.send(&FromAgent::Ready { facts, problems: Vec::new(), debts: Vec::new() }).map_err(gone)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Check mode changes nothing, and must also work while somebody else's run is at work.
    let lock = if init.check { None } else { Some(lock::take(&paths.run, &init.owner, &init.run_id)?) };
    let _unfinished = lock.as_ref().map(|_| tidy(paths, controller));
    let pack = pack(&init, controller).map_err(|e| Failure::new(format!("the run's content is broken: {e:#}")))?;
    for (hash, bytes) in pack.files {
        controller.blobs.put(hash, bytes.0);
    }
    let shared = shared(&init, controller).map_err(|e| Failure::new(format!("the run's content is broken: {e:#}")))?;
    let context = Context {
        bundle: Arc::new(pack.bundle),
        shared: Arc::new(shared),
        facts: Arc::clone(&facts),
        process_user: process_user(),
        state_dir: paths.state.clone(),
        init,
    };
    let mut ledger = Ledger::open(&paths.state, !context.init.check)?;
    let fetch = |hash: &str| rollcall_engine::run::Link::blob(&**controller, hash).ok();
    let problems = preflight(&context, &fetch, rollcall_engine::run::Link::looking(&**controller));
    let failed = problems.iter().any(|p| p.severity == Severity::Error);
    let debts = ledger.debts().iter().map(|d| d.handler.clone()).collect();
    // A run does not need the facts; they would be most of what a small run says.
    let asked = context.bundle.others.names().contains(FACTS);
    let facts = if asked { Arc::clone(&context.facts) } else { Arc::default() };
    controller.send(&FromAgent::Ready { facts, problems: scrubbed(problems), debts }).map_err(gone)?;

    let base = Real::new();
    let mut overlay = Overlay::new(&base);
    let (mut real, mut other) = (Real::new(), Real::new());
    let host: &mut dyn Write = if context.init.check { &mut overlay } else { &mut other };
    let mut runner = Runner::new(&context, host, &mut real, &**controller, &mut ledger);
    let mut next = context.init.go.clone().filter(|_| !failed);
    loop {
        let go = match next.take() {
            Some(go) => go,
            None => match steps.recv() {
                Ok(Step::Go(go)) => go,
                Ok(Step::Bye) | Err(_) => return Ok(ExitCode::SUCCESS),
            },
        };
        let end = runner.play(&go);
        // Alone, and nothing can follow: a goodbye would only cost a round trip.
        let last = context.init.plays.last() == Some(&go.play) || end != PlayEnd::Done;
        let over = end == PlayEnd::EndHost || context.init.go.is_some() && last;
        controller.send(&FromAgent::PlayDone { play: go.play, end }).map_err(gone)?;
        if over {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Removes what a killed run left, and writes down what this one would leave.
fn tidy(paths: &Paths, controller: &Controller) -> Unfinished {
    // On a disk that cannot be written a run that changes nothing must work all the same.
    if let Err(failure) = private_dir(&paths.state) {
        tracing::debug!(why = failure.message, "unfinished work is not written down");
    }
    controller.blobs.sweep();
    Unfinished::begin(&paths.state.join("unfinished"))
}

fn pack(init: &Init, controller: &Controller) -> anyhow::Result<Pack> {
    let bytes = controller.blobs.wait_once(&init.pack)?;
    let json = zstd_decode(&bytes)?;
    serde_json::from_slice(&json).context("the plays")
}

fn shared(init: &Init, controller: &Controller) -> anyhow::Result<Shared> {
    let Some(hash) = &init.shared else { return Ok(Shared::default()) };
    let bytes = controller.blobs.wait_once(hash)?;
    serde_json::from_slice(&zstd_decode(&bytes)?).context("the other hosts")
}

fn zstd_decode(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    rollcall_engine::protocol::unpack(bytes).context("cannot decompress")
}
