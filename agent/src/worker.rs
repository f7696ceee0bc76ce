use std::{
    collections::HashMap,
    io::{BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::{Context as _, bail};
use rollcall_engine::{
    host::{Read as _, overlay::Overlay, real::Real},
    modules::Failure,
    protocol::{Call, Frame, Reply},
    secrets::grants,
};
use serde_json::Value;

/// A process for each user, started when it is first needed; another one where the first is at work.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    idle: Mutex<HashMap<String, Vec<Worker>>>,
    facts: OnceLock<std::sync::Arc<Value>>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Workers {
    /// What workers tell modules of this machine.
    pub(crate) fn facts(&self, facts: &std::sync::Arc<Value>) {
        self.facts.get_or_init(|| std::sync::Arc::clone(facts));
    }

    pub(crate) fn call(&self, call: &Call) -> Result<Reply, Failure> {
        // Taken out while it works: a task of this host's own and one that another host delegates to it do not wait for each other.
        let idle = self.idle().get_mut(&call.user).and_then(Vec::pop);
        let mut worker = match idle {
            Some(worker) => worker,
            None => Worker::start(&call.user, self.facts.get().map_or(&Value::Null, |f| &**f))?,
        };
        // One that failed is dropped: it cannot be trusted to answer the next call.
        let reply = worker.call(call)?;
        self.idle().entry(call.user.clone()).or_default().push(worker);
        Ok(reply)
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<String, Vec<Worker>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    fn start(user: &str, facts: &Value) -> Result<Self, Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Failure::new(format!("cannot become '{user}': the agent does not run as root"))
                .hint("set `become: true` on the task, or -b"));
        }
        let users = Real::new().users().map_err(|e| Failure::new(format!("cannot read /etc/passwd: {e}")))?;
        let known = users.iter().find(|u| u.name == user).ok_or_else(|| {
            let failure = Failure::new(format!("cannot become '{user}': there is no such user"));
            match rollcall_engine::diag::nearest(user, users.iter().map(|u| u.name.as_str())) {
                Some(near) => failure.hint(format!("did you mean '{near}'?")),
                None => failure,
            }
        })?;
        let start = || -> anyhow::Result<Self> {
            let mut child = Command::new("/proc/self/exe")
                .args(["worker", user])
                .env("HOME", &known.home)
                .env("USER", user)
                .env("LOGNAME", user)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start a worker")?;
            let mut stdin = child.stdin.take().context("a worker without input")?;
            let stdout = BufReader::new(child.stdout.take().context("a worker without output")?);
            stdin.write_all(&Frame::json(facts)?.encode())?;
            Ok(Self { child, stdin, stdout })
        };
        start().map_err(|e| Failure::new(format!("cannot become '{user}': {e:#}")))
    }

    fn call(&mut self, call: &Call) -> Result<Reply, Failure> {
        let mut ask = || -> anyhow::Result<Reply> {
            Frame::json(call)?.write(&mut self.stdin)?;
            let frame = Frame::read(&mut self.stdout)?.context("it ended")?;
            Ok(frame.message()?)
        };
        ask().map_err(|e| Failure::new(format!("the worker for '{}' failed: {e:#}", call.user)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its input ends with this, and it with its input.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `agent worker USER`: becomes the user for good, then carries out one call after the other.
pub(crate) fn run(user: &str) -> anyhow::Result<ExitCode> {
    let users = Real::new().users().context("cannot read /etc/passwd")?;
    let Some(known) = users.into_iter().find(|u| u.name == user) else { bail!("no user '{user}'") };
    let (Some(uid), Some(gid)) = (known.uid, known.gid) else { bail!("user '{user}' has no number") };
    let gid = nix::unistd::Gid::from_raw(gid);
    nix::unistd::initgroups(&std::ffi::CString::new(user)?, gid).context("cannot set the groups")?;
    nix::unistd::setgid(gid).context("cannot set the group")?;
    nix::unistd::setuid(nix::unistd::Uid::from_raw(uid)).context("cannot set the user")?;
    // Not before: becoming a user opens it again where the system is set so.
    crate::closed();
    // As after a login; where the last user could go this one may not.
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/".into());
    std::env::set_current_dir(home).or_else(|_| std::env::set_current_dir("/")).context("cannot change to /")?;

    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let facts: Value = Frame::read(&mut input)?.context("no facts")?.message()?;
    while let Some(frame) = Frame::read(&mut input)? {
        let call: Call = frame.message()?;
        let mut real = Real::new();
        let reply = if call.check {
            rollcall_engine::run::carry_out(&call, &facts, grants::not_as_this_user(), &mut Overlay::new(&real))
        } else {
            rollcall_engine::run::carry_out(&call, &facts, grants::not_as_this_user(), &mut real)
        };
        Frame::json(&reply)?.write(&mut output)?;
    }
    Ok(ExitCode::SUCCESS)
}
