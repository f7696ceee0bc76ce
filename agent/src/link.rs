use std::{
    collections::HashMap,
    io::{self, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use rollcall_engine::{
    modules::Failure,
    protocol::{Answer, Ask, Call, Event, Frame, FromAgent, Reply},
    run::Link,
};

use crate::{blobs::Blobs, worker::Workers};

/// The controller, seen from the runner.
#[derive(Debug)]
pub(crate) struct Controller {
    out: Mutex<io::Stdout>,
    next: AtomicU64,
    /// Answers that are waited for. `None` when the controller is gone.
    waiting: Mutex<Option<HashMap<u64, mpsc::Sender<Answer>>>>,
    stop: Mutex<Option<String>>,
    pub(crate) blobs: Blobs,
    pub(crate) workers: Workers,
}

impl Controller {
    pub(crate) fn new(blobs: Blobs, workers: Workers) -> Arc<Self> {
        Arc::new(Self {
            out: Mutex::new(io::stdout()),
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
            stop: Mutex::new(None),
            blobs,
            workers,
        })
    }

    pub(crate) fn send(&self, message: &FromAgent) -> io::Result<()> {
        let bytes = Frame::json(message)?.encode();
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(&bytes)?;
        out.flush()
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

    /// The controller is gone: the task in flight is finished, nothing is waited for.
    pub(crate) fn gone(&self, why: &str) {
        self.stop(why);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.blobs.end(why);
    }
}

impl Link for Controller {
    fn event(&self, event: Event) {
        if let Err(error) = self.send(&FromAgent::Event(event)) {
            self.gone(&format!("the controller does not listen any more: {error}"));
        }
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

    fn as_user(&self, call: &Call) -> Result<Reply, Failure> {
        self.workers.call(call)
    }
}
