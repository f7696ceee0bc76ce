//! Fetching over HTTP, piece by piece, with retries.

use std::{sync::mpsc, thread, time::Duration};

use reqwest::{Client, StatusCode, header::HeaderMap};

use super::{
    Failure,
    http::{Login, Reach, Web, cause, client, reason, runtime},
};

/// The first pause between attempts; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How to ask.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) headers: HeaderMap,
    pub(super) login: Option<Login>,
    /// For the connection, and for each silence.
    pub(super) timeout: Duration,
    pub(super) retries: u32,
    pub(super) reach: Reach,
}

/// How an attempt failed.
#[derive(Debug)]
enum Fault {
    /// Another attempt may do better.
    Passing(Failure),
    /// It will be the same again.
    Lasting(Failure),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Lasting(failure)
    }
}

/// Gets the body of a URL: `attempt` is called once for each attempt, with a function that fetches into a sink.
///
/// Errors that may pass (no connection, 429, 5xx, a body that is cut) are tried again, with growing pauses.
pub(super) fn get<T>(
    url: &Web,
    manner: &Manner,
    mut attempt: impl FnMut(&mut dyn FnMut(Sink<'_>) -> Result<(), Failure>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let client = client(url, &manner.reach, |builder| {
        builder.connect_timeout(manner.timeout).read_timeout(manner.timeout).pool_max_idle_per_host(0)
    })?;
    let mut tries = 0;
    loop {
        let mut passing = false;
        let result = attempt(&mut |sink| match once(&client, url, manner, sink) {
            Ok(()) => Ok(()),
            Err(Fault::Passing(failure)) => {
                passing = true;
                Err(failure)
            }
            Err(Fault::Lasting(failure)) => Err(failure),
        });
        match result {
            Err(_) if passing && tries < manner.retries => {
                thread::sleep(pause(tries));
                tries += 1;
            }
            Err(failure) if passing && tries > 0 => {
                return Err(Failure {
                    message: format!("{} (after {} attempts)", failure.message, tries + 1),
                    ..failure
                });
            }
            other => return other,
        }
    }
}

/// Takes the body, piece by piece.
pub(super) type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<(), Failure>;

/// Between half of the doubled pause and one and a half of it, so that many hosts do not come back at once.
fn pause(tries: u32) -> Duration {
    let base = FIRST_PAUSE.saturating_mul(1 << tries.min(10)).min(LONGEST_PAUSE);
    let share = (uuid::Uuid::new_v4().as_u128() % 1000) as u32;
    base / 2 + base * share / 1000
}

/// One attempt. The network runs in a thread of its own: the caller may be inside a runtime already.
fn once(client: &Client, url: &Web, manner: &Manner, sink: Sink<'_>) -> Result<(), Fault> {
    thread::scope(|scope| {
        let (tell, told) = mpsc::sync_channel::<Vec<u8>>(16);
        let worker = scope.spawn(move || runtime()?.block_on(body(client, url, manner, &tell)));
        let mut stored = Ok(());
        for piece in &told {
            stored = sink(&piece);
            if stored.is_err() {
                break;
            }
        }
        // The worker ends at its next piece where nobody takes it.
        drop(told);
        let fetched = worker.join().unwrap_or_else(|_| Err(Fault::Lasting(Failure::new("the HTTP client broke down"))));
        stored?;
        fetched
    })
}

async fn body(client: &Client, url: &Web, manner: &Manner, tell: &mpsc::SyncSender<Vec<u8>>) -> Result<(), Fault> {
    let shown = url.shown();
    let mut request = client.get(url.url().clone()).headers(manner.headers.clone());
    if let Some(login) = &manner.login {
        request = login.put(request);
    }
    let failed = |e| Fault::Passing(Failure::new(format!("GET {shown}: {}", reason(e, manner.timeout))));
    let mut response = request.send().await.map_err(failed)?;
    let status = response.status();
    if status != StatusCode::OK {
        let failure = Failure::new(format!("GET {shown} answered {status}")).with("status_code", status.as_u16());
        return Err(match status.as_u16() {
            408 | 425 | 429 | 500..=599 => Fault::Passing(failure.hint("the server may be busy: try again later")),
            401 | 403 | 407 => Fault::Lasting(failure.hint("are username, password or headers right?")),
            404 | 410 => Fault::Lasting(failure.hint("is there a file of that name and version on the server?")),
            _ => Fault::Lasting(failure),
        });
    }
    let (whole, mut got) = (response.content_length(), 0_u64);
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                got += piece.len() as u64;
                if tell.send(piece.to_vec()).is_err() {
                    return Ok(());
                }
            }
            Ok(None) => break,
            Err(e) => {
                let of = whole.map_or_else(String::new, |w| format!(" of {w}"));
                let why = if e.is_timeout() { "nothing came for too long".to_owned() } else { cause(&e.without_url()) };
                return Err(Fault::Passing(Failure::new(format!(
                    "GET {shown} broke off after {got}{of} bytes: {why}"
                ))));
            }
        }
    }
    match whole {
        Some(whole) if whole != got => {
            Err(Fault::Passing(Failure::new(format!("GET {shown} gave {got} bytes, and {whole} were announced"))))
        }
        _ => Ok(()),
    }
}
