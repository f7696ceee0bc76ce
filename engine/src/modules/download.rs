//! `download`: files from the web, by checksum.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan,
    args::{Mode, expected},
    fetch::{self, Manner},
    http::{self, Login, Reach, Trust, Web},
    place::{self, Perms, Planner, planned},
};
use crate::{
    args, diag,
    digest::{hex, sha256_hex},
    host::{Attrs, FileKind, Read as _, Write, atomic::explain},
};

/// A list of checksums is text; more than this is something else.
const SUMS_LIMIT: usize = 4 << 20;

/// `sha256:HEX`, or `sha256:URL` of a list of checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// In hexadecimal, lower case.
    Sum(String),
    /// A SHA256SUMS file.
    List(Web),
}

impl FromArg for Checksum {
    fn kind() -> String {
        "\"sha256:\" and 64 hexadecimal digits, or the URL of a SHA256SUMS file".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let text = value.as_str().unwrap_or_default().trim();
        match text.split_once(':') {
            Some(("sha256", sum)) if sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(Self::Sum(sum.to_ascii_lowercase()))
            }
            Some(("sha256", url)) if url.contains("://") => Web::from_arg(&url.into()).map(Self::List),
            Some((weak @ ("md5" | "sha1"), _)) => {
                Err(format!("{weak} does not protect against a forged file: expected {}", Self::kind()))
            }
            _ => Err(expected::<Self>(value)),
        }
    }
}

args! {
    /// Arguments of `download`.
    pub struct Args {
        /// What to fetch.
        url []: Web, required;
        /// Where it goes. With a `/` at its end, or where a folder is, the file keeps the URL's name in it.
        dest []: PathBuf, required;
        /// `sha256:HEX`, or `sha256:URL` of a list (SHA256SUMS) that names the file. A file that has it is not fetched again.
        checksum []: Checksum, required;
        /// Permission bits, as "0644" or `u=rw,go=r`.
        mode []: Option<Mode>;
        /// Owner, a name or a number.
        owner []: Option<String>;
        /// Group, a name or a number.
        group []: Option<String>;
        /// Further headers.
        headers []: Map<String, Value> = Map::new();
        /// For basic authentication.
        username ["url_username"]: Option<String>;
        /// For basic authentication.
        password ["url_password"]: Option<String>;
        /// Seconds to wait for the connection, and for each further piece.
        timeout []: std::time::Duration = std::time::Duration::from_secs(10);
        /// How often to try again what may pass: no connection, an answer 429 or 5xx, a body that is cut.
        retries []: u32 = 3;
        /// Taken as Ansible has it, and without effect: a file that differs from the checksum is always replaced, and one that
        /// has it is what a download would give.
        force []: bool = false;
        /// Go through the proxies of the environment.
        use_proxy []: bool = true;
        /// Certificates (PEM) to trust instead of the system's.
        ca_path []: Option<PathBuf>;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "download",
    aliases: &["get_url"],
    summary: "Fetches a file over HTTP, and keeps it only if its checksum is right",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[
        place::RESULTS,
        &[
            ("url", "The address, without the login it may hold."),
            ("checksum", "`sha256:HEX`, the one that the file must have."),
            ("status_code", "The answer to the last request; not there where nothing was fetched."),
            ("checksum_src", "Of a failure: the checksum of what came."),
        ],
    ],
    example: "- name: Consul\n  download:\n    url: https://releases.hashicorp.com/consul/1.21.4/consul_1.21.4_linux_amd64.zip\n    dest: /var/cache/rollcall/consul.zip\n    checksum: sha256:https://releases.hashicorp.com/consul/1.21.4/consul_1.21.4_SHA256SUMS\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
    let url = args.url.clone();
    let perms = Perms { mode: args.mode.clone(), owner: args.owner.clone(), group: args.group.clone() };
    perms.refuse_preserve("a download has no mode")?;
    let login = Login::read(("username", args.username.as_deref()), ("password", args.password.as_deref()))?;
    let headers = http::headers(&args.headers)?;
    let into = call.args.get("dest").and_then(Value::as_str).is_some_and(|d| d.ends_with('/'));
    planned(cx, || {
        let trust = Trust::read(args.ca_path.as_ref(), cx.host)?;
        let manner = Manner {
            headers,
            login,
            timeout: args.timeout,
            retries: args.retries,
            reach: Reach { trust, use_proxy: args.use_proxy, environment: call.environment.clone() },
        };
        let mut planner = Planner::new(cx, call.diff);
        let path = place(&args.dest, into, &url, &planner)?;
        let want = match &args.checksum {
            Checksum::Sum(sum) => sum.clone(),
            Checksum::List(list) => listed(list, url.file_name(), &manner)?,
        };
        let current = planner.meta(&path)?.filter(|m| m.kind == FileKind::File);
        let attrs = perms.attrs(current.as_ref(), 0, false);
        let had =
            match &current {
                // What a check has only planned to fetch cannot be read, and is not this file as far as anybody knows.
                Some(_) => planner.host.read(&path).map(|b| sha256_hex(&b)).or_else(|e| {
                    if cx.host.is_overlay() { Ok(String::new()) } else { Err(explain("read", &path, &e)) }
                })?,
                None => String::new(),
            };
        let outcome = Outcome::unchanged().with("url", url.shown()).with("checksum", format!("sha256:{want}"));
        if had == want {
            planner.attrs(&path, &attrs)?;
            let outcome = planner.results(outcome, &path)?;
            return Ok(planner.finish(outcome));
        }
        // Tried on the plan's own overlay: a missing folder or owner is found before anything is fetched.
        planner.host.receive(&path, &attrs, &mut |_| Ok(()))?;
        let before = if had.is_empty() { String::new() } else { format!("sha256:{had}\n") };
        let outcome = planner.results(outcome, &path)?;
        Ok(Plan::Change(Box::new(Download { url, manner, path, attrs, want, before, outcome })))
    })
}

/// The file's path: in the folder that `dest` is, or `dest`.
fn place(dest: &Path, into: bool, url: &Web, planner: &Planner<'_>) -> Result<PathBuf, Failure> {
    let found = planner.host.meta_follow(dest).map_err(|e| explain("look at", dest, &e))?;
    if !into && found.is_none_or(|m| m.kind != FileKind::Directory) {
        return Ok(dest.to_path_buf());
    }
    match url.file_name() {
        "" => Err(Failure::new(format!("{} is a folder, and {} has no file name", dest.display(), url.shown()))
            .hint("name the file in 'dest'")),
        name => Ok(dest.join(name)),
    }
}

/// The checksum of a file in a list of them.
fn listed(list: &Web, name: &str, manner: &Manner) -> Result<String, Failure> {
    let text = fetch::get(list, manner, |fetch| {
        let mut text = Vec::new();
        fetch(&mut |piece| {
            text.extend_from_slice(piece);
            if text.len() > SUMS_LIMIT {
                return Err(Failure::new(format!("{} is too long for a list of checksums", list.shown())));
            }
            Ok(())
        })?;
        Ok(text)
    })?;
    let text = String::from_utf8_lossy(&text);
    find_sum(&text, name).map_err(|f| Failure { message: format!("{}: {}", list.shown(), f.message), ..f })
}

/// Lines are `HEX  name` or `HEX *name`; a list of one sum without a name is taken for the file's.
fn find_sum(text: &str, name: &str) -> Result<String, Failure> {
    let is_sum = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let (sum, file) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
            let file = file.trim_start().trim_start_matches('*');
            is_sum(sum).then(|| (sum, file.rsplit('/').next().unwrap_or(file)))
        })
        .collect();
    let found: Vec<&str> = match lines.as_slice() {
        [(sum, "")] => vec![*sum],
        lines => lines.iter().filter(|(_, file)| *file == name).map(|(sum, _)| *sum).collect(),
    };
    match found.as_slice() {
        [] if lines.is_empty() => Err(Failure::new("it holds no SHA-256 checksum")),
        [] => {
            let near = diag::suggest(name, lines.iter().map(|(_, file)| *file));
            Err(Failure::new(format!("it has no checksum for {name}")).hint_if(near))
        }
        [first, rest @ ..] if rest.iter().all(|sum| sum.eq_ignore_ascii_case(first)) => Ok(first.to_ascii_lowercase()),
        _ => Err(Failure::new(format!("it has several different checksums for {name}"))),
    }
}

#[derive(Debug)]
struct Download {
    url: Web,
    manner: Manner,
    path: PathBuf,
    attrs: Attrs,
    want: String,
    before: String,
    outcome: Outcome,
}

impl Change for Download {
    fn diffs(&self) -> Vec<Diff> {
        let after = format!("sha256:{} from {}\n", self.want, self.url.shown());
        vec![Diff { what: self.path.display().to_string(), before: self.before.clone(), after, hidden: false }]
    }

    fn paths(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let mut outcome = self.outcome.clone();
        outcome.changed = true;
        if host.is_overlay() {
            host.receive(&self.path, &self.attrs, &mut |_| Ok(()))?;
            return Ok(outcome);
        }
        let mut size = 0;
        fetch::get(&self.url, &self.manner, |fetch| {
            size = 0;
            host.receive(&self.path, &self.attrs, &mut |out| {
                let mut hasher = Sha256::new();
                fetch(&mut |piece| {
                    hasher.update(piece);
                    size += piece.len() as u64;
                    out.write_all(piece).map_err(|e| explain("write", &self.path, &e))
                })?;
                self.verify(&hex(&hasher.finalize()), size)
            })
        })?;
        Ok(outcome.with("size", size).with("status_code", 200))
    }
}

impl Download {
    fn verify(&self, got: &str, size: u64) -> Result<(), Failure> {
        if got == self.want {
            return Ok(());
        }
        let message =
            format!("{} ({size} bytes) has the checksum sha256:{got}, expected sha256:{}", self.url.shown(), self.want);
        Err(Failure::new(message)
            .hint("nothing was replaced; is it the right version, and is the server to be trusted?")
            .with("checksum_src", format!("sha256:{got}"))
            .with("checksum", format!("sha256:{}", self.want)))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead as _, BufReader, Write as _},
        net::TcpListener,
        sync::{Arc, Mutex},
        thread,
    };

    use serde_json::json;

    use super::{super::place::testing, *};

    /// A server on the loopback that gives its answers in turn, the last one for ever, and keeps the requests.
    fn serve(answers: Vec<Vec<u8>>) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&seen);
        thread::spawn(move || {
            for (n, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_line(&mut request).unwrap() > 2 {}
                requests.lock().unwrap().push(request);
                stream.write_all(&answers[n.min(answers.len() - 1)]).unwrap();
            }
        });
        (base, seen)
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        answer("200 OK", body.len(), body)
    }

    fn answer(status: &str, length: usize, body: &[u8]) -> Vec<u8> {
        let mut out =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").into_bytes();
        out.extend_from_slice(body);
        out
    }

    fn call(mut args: Value) -> Invocation {
        args["use_proxy"] = json!(false);
        testing::call(&DEFINITION, args, None)
    }

    fn fails(args: Value) -> Failure {
        testing::run(&DEFINITION, &call(args)).unwrap_err()
    }

    #[test]
    fn a_file_is_fetched_once_and_verified() {
        let folder = tempfile::tempdir().unwrap();
        let body = vec![b'z'; 300_000];
        let (base, seen) = serve(vec![ok(&body)]);
        let sum = format!("sha256:{}", sha256_hex(&body));
        let args = json!({"url": format!("{base}/a.zip"), "dest": folder.path(), "checksum": sum, "mode": "0755",
            "headers": {"X-Mine": "1"}, "username": "u", "password": "p"});
        let (outcome, diffs) = testing::run_twice(&DEFINITION, &call(args.clone()));
        assert_eq!((&outcome.data["size"], &outcome.data["mode"]), (&json!(300_000), &json!("0755")));
        assert!(diffs[0].after.contains(&sum));
        assert_eq!(fs::read(folder.path().join("a.zip")).unwrap(), body);
        let requests = seen.lock().unwrap().clone();
        assert_eq!(requests.len(), 1, "the second run asks nobody");
        assert!(
            requests[0].contains("x-mine: 1") && requests[0].contains("authorization: Basic dTpw"),
            "{}",
            requests[0]
        );
        fs::write(folder.path().join("a.zip"), "damaged").unwrap();
        assert!(testing::run(&DEFINITION, &call(args)).unwrap().0.changed);
        assert_eq!(fs::read(folder.path().join("a.zip")).unwrap(), body);
    }

    #[test]
    fn a_list_of_checksums_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let list = format!("{}  other.zip\n{} *a.zip\n", "0".repeat(64), sha256_hex(b"body"));
        let (sums, _) = serve(vec![ok(list.as_bytes())]);
        let (base, _) = serve(vec![ok(b"body")]);
        let args = |name: &str| json!({"url": format!("{base}/{name}"), "dest": folder.path().join("x"), "checksum": format!("sha256:{sums}/SHA256SUMS")});
        testing::run_twice(&DEFINITION, &call(args("a.zip")));
        assert_eq!(fs::read(folder.path().join("x")).unwrap(), b"body");
        let failure = fails(args("b.zip"));
        assert!(failure.message.contains("has no checksum for b.zip") && failure.hint.unwrap().contains("a.zip"));
        assert_eq!(find_sum(&"A".repeat(64), "x").unwrap(), "a".repeat(64));
        assert!(find_sum("<html>", "x").unwrap_err().message.contains("no SHA-256"));
    }

    #[test]
    fn what_is_wrong_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("x");
        fs::write(&dest, "old").unwrap();
        let sum = format!("sha256:{}", sha256_hex(b"right"));
        let args = |base: &str| json!({"url": format!("{base}/x"), "dest": dest, "checksum": sum, "retries": 0});
        let failure = fails(args(&serve(vec![ok(b"wrong")]).0));
        assert!(
            failure.message.contains(&sha256_hex(b"wrong")) && failure.message.contains(&sha256_hex(b"right")),
            "{failure}"
        );
        let failure = fails(args(&serve(vec![answer("404 Not Found", 0, b"")]).0));
        assert!(failure.message.contains("404 Not Found"), "{failure}");
        let failure = fails(args(&serve(vec![answer("200 OK", 100, b"righ")]).0));
        assert!(failure.message.contains("broke off after 4 of 100 bytes"), "{failure}");
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(fails(args(&format!("http://{nobody}"))).message.contains("cannot connect"));
        let plain = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = plain.local_addr().unwrap();
        thread::spawn(move || plain.incoming().for_each(drop));
        assert!(
            fails(args(&format!("https://{address}"))).message.contains("GET https://"),
            "TLS with nobody to speak it"
        );
        assert_eq!(fs::read_to_string(&dest).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn passing_faults_are_tried_again_and_lasting_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("x");
        let sum = format!("sha256:{}", sha256_hex(b"right"));
        let (base, seen) = serve(vec![answer("503 Busy", 0, b""), answer("200 OK", 5, b"ri"), ok(b"right")]);
        testing::run(&DEFINITION, &call(json!({"url": format!("{base}/x"), "dest": dest, "checksum": sum}))).unwrap();
        assert_eq!((seen.lock().unwrap().len(), fs::read(&dest).unwrap()), (3, b"right".to_vec()));
        let (base, seen) = serve(vec![answer("404 Not Found", 0, b"")]);
        let other = folder.path().join("y");
        fails(json!({"url": format!("{base}/x"), "dest": other, "checksum": sum}));
        assert_eq!(seen.lock().unwrap().len(), 1);
        let (base, seen) = serve(vec![answer("500 Oops", 0, b"")]);
        let failure = fails(json!({"url": format!("{base}/x"), "dest": other, "checksum": sum, "retries": 1}));
        assert!(failure.message.contains("after 2 attempts") && seen.lock().unwrap().len() == 2, "{failure}");
    }

    #[test]
    fn bad_calls() {
        let sum = format!("sha256:{}", "0".repeat(64));
        let message =
            |url: &str, checksum: &str| fails(json!({"url": url, "dest": "/no/such/x", "checksum": checksum})).message;
        assert!(message("ftp://x/y", &sum).contains("http://"));
        assert!(message("http://x/y", "md5:abc").contains("forged"));
        assert!(message("http://x/y", "sha256:abc").contains("64 hexadecimal"));
        assert!(
            message("http://127.0.0.1:1/y", &sum).contains("/no/such does not exist"),
            "found before anything is fetched"
        );
        assert!(fails(json!({"url": "http://x/y", "dest": "/tmp/x"})).message.contains("'checksum' is missing"));
        assert!(!Web::from_arg(&json!("http://u:secret@h/x")).unwrap().shown().contains("secret"));
    }
}
