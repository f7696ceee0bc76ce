//! What modules and facts need to speak HTTP from code that does not wait.

use std::{error::Error as _, future::Future, thread, time::Duration};

use super::Failure;

/// Runs a future to its end on a thread of its own: the caller may itself be part of a runtime.
pub(crate) fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> Result<T, Failure> {
    thread::scope(|scope| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .map(|runtime| runtime.block_on(future))
                .map_err(|e| Failure::new(format!("cannot start a runtime: {e}")))
        };
        scope.spawn(run).join().unwrap_or_else(|_| Err(Failure::new("the request ended by a defect of this program")))
    })
}

/// Why a request failed, without the address (it may hold a password).
pub(crate) fn reason(error: reqwest::Error, timeout: Duration) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return format!("no answer within {} s", timeout.as_secs_f64());
    }
    if error.is_body() || error.is_decode() {
        return format!("the answer ended before it was whole{}", innermost(&error));
    }
    if error.is_redirect() {
        return "too many redirections".into();
    }
    let what = if error.is_connect() { "cannot connect" } else { "the request failed" };
    format!("{what}{}", innermost(&error))
}

/// The last cause of the chain, which is the one that says something.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut last = None;
    while let Some(next) = cause {
        last = Some(next.to_string());
        cause = next.source();
    }
    last.map(|text| format!(": {text}")).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpListener, TcpStream},
        sync::{Arc, Mutex},
        time::Duration,
    };

    /// A server on this machine that gives these answers, one for each connection, and keeps the requests.
    #[derive(Debug)]
    pub(crate) struct Server {
        address: SocketAddr,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        pub(crate) fn new<'a>(answers: impl IntoIterator<Item = &'a (impl AsRef<str> + ?Sized + 'a)>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let requests = Arc::new(Mutex::new(Vec::new()));
            let kept = Arc::clone(&requests);
            let answers: Vec<String> = answers.into_iter().map(|a| a.as_ref().to_owned()).collect();
            std::thread::spawn(move || {
                for answer in answers {
                    let Ok((mut stream, _)) = listener.accept() else { return };
                    kept.lock().unwrap().push(request(&mut stream));
                    if answer == "SLEEP" {
                        std::thread::sleep(Duration::from_secs(2));
                    } else {
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                }
            });
            Self { address, requests }
        }

        pub(crate) fn url(&self, path: &str) -> String {
            format!("http://{}{path}", self.address)
        }

        pub(crate) fn requests(&self) -> Vec<String> {
            self.requests.lock().unwrap().clone()
        }
    }

    fn request(stream: &mut TcpStream) -> String {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).unwrap();
            all.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&all).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    return text;
                }
            }
            if count == 0 {
                return text;
            }
        }
    }
}
