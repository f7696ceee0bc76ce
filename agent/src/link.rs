use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd as _,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rollcall_engine::{
    modules::Failure,
    protocol::{Answer, Ask, Call, Event, Frame, FromAgent, Reply},
    run::Link,
    secrets::{
        grants::{Grants, Wish},
        redact::{self, scrubbed},
    },
    vars::hosts::Known,
};

use crate::{blobs::Blobs, grants::Asking, worker::Workers};

/// How long an event may wait for others. Written one by one, the forty events of a small role cost sshd and the
/// controller more than the role costs the agent; nobody sees a hundredth of a second.
const GATHER: Duration = Duration::from_millis(10);
/// Events that wait are written at once beyond this size, in bytes.
const GATHER_BYTES: usize = 32 * 1024;

/// Standard output, unbuffered below: the standard library's own buffer writes at every byte that looks like a newline.
#[derive(Debug)]
struct Out {
    pipe: File,
    waiting: Vec<u8>,
}

impl Out {
    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.waiting);
        self.pipe.write_all(&bytes)
    }
}

/// The controller, seen from the runner.
#[derive(Debug)]
pub(crate) struct Controller {
    out: Mutex<Out>,
    /// Events wait to be written.
    late: Condvar,
    next: AtomicU64,
    /// Answers that are waited for. `None` when the controller is gone.
    waiting: Mutex<Option<HashMap<u64, mpsc::Sender<Answer>>>>,
    stop: Mutex<Option<String>>,
    /// Who answers for secrets, where they may be made and where not.
    making: Arc<dyn Grants>,
    looking: Arc<dyn Grants>,
    pub(crate) blobs: Blobs,
    pub(crate) workers: Workers,
}

impl Controller {
    pub(crate) fn new(blobs: Blobs, workers: Workers) -> io::Result<Arc<Self>> {
        let pipe = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let controller = Arc::new_cyclic(|this| {
            let making = Asking::new(this.clone(), Wish::Make);
            let looking: Arc<dyn Grants> = Arc::new(making.with(Wish::Look));
            Self {
                out: Mutex::new(Out { pipe, waiting: Vec::new() }),
                late: Condvar::new(),
                next: AtomicU64::new(1),
                waiting: Mutex::new(Some(HashMap::new())),
                stop: Mutex::new(None),
                making: Arc::new(making),
                looking,
                blobs,
                workers,
            }
        });
        let writer = Arc::clone(&controller);
        thread::Builder::new().name("writer".into()).spawn(move || writer.write_late())?;
        Ok(controller)
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a message, after the events that wait.
    pub(crate) fn send(&self, message: &FromAgent) -> io::Result<()> {
        let bytes = Frame::json(message)?.encode();
        let mut out = self.out();
        out.waiting.extend_from_slice(&bytes);
        out.flush()
    }

    /// Leaves an event to be written together with those that follow it.
    fn gather(&self, event: Event) -> io::Result<()> {
        let event = if redact::active() { scrubbed(event) } else { event };
        let bytes = Frame::json(&FromAgent::Event(event))?.encode();
        let mut out = self.out();
        out.waiting.extend_from_slice(&bytes);
        if out.waiting.len() > GATHER_BYTES {
            return out.flush();
        }
        self.late.notify_one();
        Ok(())
    }

    /// Writes events that nothing else took along. Runs until the process ends.
    fn write_late(&self) {
        loop {
            let out = self.late.wait_while(self.out(), |out| out.waiting.is_empty());
            drop(out.unwrap_or_else(PoisonError::into_inner));
            thread::sleep(GATHER);
            let written = self.out().flush();
            if !self.heard(written) {
                return;
            }
        }
    }

    pub(crate) fn stop(&self, why: &str) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
    }

    pub(crate) fn answer(&self, id: u64, answer: Answer) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|w| w.remove(&id));
        if let Some(sender) = waiting {
            // Whoever asked may have given up.
            let _ = sender.send(answer);
        }
    }

    /// Whether what was written can have arrived; if not, the controller is gone.
    fn heard(&self, written: io::Result<()>) -> bool {
        if let Err(error) = &written {
            self.gone(&format!("the controller does not listen any more: {error}"));
        }
        written.is_ok()
    }

    /// The controller is gone: the task in flight is finished, nothing is waited for.
    pub(crate) fn gone(&self, why: &str) {
        self.stop(why);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.blobs.end(why);
    }
}

impl Link for Controller {
    fn event(&self, event: Event) {
        let written = self.gather(event);
        self.heard(written);
    }

    fn ask(&self, ask: Ask) -> Result<Answer, Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        let gone = || Failure::new("the controller is gone");
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut().ok_or_else(gone)?.insert(id, sender);
        self.send(&FromAgent::Ask { id, ask }).map_err(|_| gone())?;
        receiver.recv().map_err(|_| gone())
    }

    fn stopped(&self) -> Option<String> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn blob(&self, hash: &str) -> Result<Vec<u8>, Failure> {
        if let Some(bytes) = self.blobs.get(hash) {
            return Ok(bytes.to_vec());
        }
        let need = FromAgent::Need { hashes: vec![hash.to_owned()] };
        self.send(&need).map_err(|_| Failure::new("the controller is gone"))?;
        self.blobs.wait(hash).map(|bytes| bytes.to_vec())
    }

    fn keep(&self, name: &str, known: Known) {
        let written = self.send(&FromAgent::Keep { name: name.to_owned(), known });
        self.heard(written);
    }

    fn flushed(&self, place: &[u32], well: bool) {
        let written = self.send(&FromAgent::Flushed { place: place.to_vec(), well });
        self.heard(written);
    }

    fn grants(&self) -> &Arc<dyn Grants> {
        &self.making
    }

    fn looking(&self) -> &Arc<dyn Grants> {
        &self.looking
    }

    fn as_user(&self, call: &Call) -> Result<Reply, Failure> {
        self.workers.call(call)
    }
}
