//! `repository`: sources of packages for apt, in the deb822 form.

use std::path::{Path, PathBuf};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    apt::{Apt, check_family},
    steps::{self, Step, Steps, exists, file_diff, hinted, read_text},
};
use crate::{
    args, choice,
    host::{Attrs, Read, Write},
};

choice!(
    /// Whether it is there.
    State { Present = "present", Absent = "absent" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// The file's name: `/etc/apt/sources.list.d/NAME.sources`.
        name []: String, required;
        /// `deb`, `deb-src`.
        types []: Vec<String>;
        /// Addresses (`https://…`, `file:/…`).
        uris []: Vec<String>;
        /// Suites (`bookworm`); one that ends in `/` is a flat repository without components.
        suites []: Vec<String>;
        /// Components (`main`).
        components []: Vec<String>;
        /// The key: the path of a file on the host, or the key itself (`-----BEGIN PGP PUBLIC KEY BLOCK-----`).
        signed_by ["signed-by"]: Option<String>;
        /// Only these architectures (`amd64`).
        architectures []: Vec<String>;
        /// Take packages without any signature.
        trusted []: Option<bool>;
        /// Off, the file stays and apt ignores it.
        enabled []: bool = true;
        /// Refresh apt's index after a change. If that fails, the files are put back.
        update_cache ["update-cache"]: bool = true;
        /// How many seconds to wait for other programs that hold apt's lock.
        lock_timeout []: std::time::Duration = std::time::Duration::from_mins(1);
        /// Whether it is there.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "repository",
    aliases: &["apt_repository", "deb822_repository"],
    summary: "Adds or removes a source of packages for apt",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("name", "Its name.")]],
    example: "- name: the vendor's packages\n  repository:\n    name: hashicorp\n    uris: https://apt.releases.hashicorp.com\n    suites: \"{{ facts.os.codename }}\"\n    components: main\n    signed_by: /etc/apt/keyrings/hashicorp.gpg\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let hints = [
        ("mode", "the file is readable by all: leave it out"),
        ("validate_certs", "put it in a file in /etc/apt/apt.conf.d"),
    ];
    let args = hinted(Args::parse(&inv.args), &hints)?;
    check_family(cx)?;
    if args.name.is_empty()
        || !args.name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        || args.name.starts_with('.')
    {
        return Err(Failure::new(format!("'{}' is no name for a repository", args.name.escape_debug()))
            .hint("letters, digits and _.- (apt ignores files with others)"));
    }
    let file = Path::new("/etc/apt/sources.list.d").join(format!("{}.sources", args.name));
    let key = Path::new("/etc/apt/keyrings").join(format!("{}.asc", args.name));
    let wanted = match args.state {
        State::Absent => vec![(file, None), (key, None)],
        State::Present => {
            let (text, key_text) = source(&args, &key)?;
            let key_file = key_text.map(|text| (key, Some(text)));
            // The key first: a source without its key would be refused if the run ended between the two.
            key_file.into_iter().chain([(file, Some(text))]).collect()
        }
    };
    let apt = Apt { environment: inv.environment.clone(), lock_timeout: args.lock_timeout };
    let outcome = Outcome::unchanged().with("name", args.name.clone());
    let mut steps = Steps::new(Outcome { changed: true, ..outcome.clone() });
    let mut previous = Vec::new();
    for (path, text) in wanted {
        let before = read_text(cx.host, &path)?;
        if before == text {
            continue;
        }
        let shown = |text: &Option<String>| text.clone().unwrap_or_default();
        steps.diffs.push(file_diff(inv, &path, &shown(&before), &shown(&text)));
        steps = add(steps, &path, text, cx.host)?;
        previous.push((path, before));
    }
    if previous.is_empty() {
        return Ok(Plan::Unchanged(outcome));
    }
    let update = args.update_cache && args.state == State::Present;
    Ok(Plan::Change(Box::new(Call { steps, previous, update: update.then_some(apt) })))
}

fn add(mut steps: Steps, path: &Path, text: Option<String>, host: &dyn Read) -> Result<Steps, Failure> {
    let Some(text) = text else { return Ok(steps.step(Step::Remove(path.to_owned()))) };
    if let Some(folder) = path.parent()
        && !exists(host, folder)?
    {
        steps = steps.step(Step::Mkdir(folder.to_owned(), Attrs { mode: Some(0o755), ..Attrs::default() }));
    }
    Ok(steps.step(Step::Write(path.to_owned(), text.into_bytes(), readable())))
}

fn readable() -> Attrs {
    Attrs { mode: Some(0o644), ..Attrs::default() }
}

/// The file's text, and the key's where it was given as text.
fn source(args: &Args, key: &Path) -> Result<(String, Option<String>), Failure> {
    let missing = |name: &str| Err(Failure::new(format!("argument '{name}' is missing")));
    let types = if args.types.is_empty() { vec!["deb".to_owned()] } else { args.types.clone() };
    if let Some(other) = types.iter().find(|t| !["deb", "deb-src"].contains(&t.as_str())) {
        return Err(Failure::new(format!(
            "argument 'types': expected deb or deb-src, found '{}'",
            other.escape_debug()
        )));
    }
    if args.uris.is_empty() {
        return missing("uris");
    }
    if args.suites.is_empty() {
        return missing("suites");
    }
    let flat = args.suites.iter().filter(|suite| suite.ends_with('/')).count();
    if flat == 0 && args.components.is_empty() {
        return Err(Failure::new("argument 'components' is missing").hint("a suite that ends in / needs none"));
    }
    if flat > 0 && (flat < args.suites.len() || !args.components.is_empty()) {
        return Err(Failure::new("suites that end in / take no components, and stand alone"));
    }
    if let Some(uri) = args.uris.iter().find(|uri| !uri.contains(":/")) {
        return Err(Failure::new(format!(
            "argument 'uris': expected an address like https://…, found '{}'",
            uri.escape_debug()
        )));
    }
    let (signed_by, key_text) = match args.signed_by.as_deref().map(str::trim) {
        None => (None, None),
        Some(text) if text.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----") => {
            if !text.ends_with("-----END PGP PUBLIC KEY BLOCK-----") {
                return Err(Failure::new("argument 'signed_by': the key has no end"));
            }
            (Some(key.to_string_lossy().into_owned()), Some(format!("{text}\n")))
        }
        Some(path) if path.starts_with('/') => (Some(path.to_owned()), None),
        Some(url) if url.contains("://") => {
            return Err(Failure::new("argument 'signed_by': expected a path or a key, found an address")
                .hint("fetch it first with the download module, which checks it"));
        }
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            return Err(Failure::new(format!(
                "argument 'signed_by': expected a path or a key, found '{}'",
                shown.escape_debug()
            )));
        }
    };
    let yes = |on: bool| if on { "yes" } else { "no" }.to_owned();
    let fields = [
        ("Enabled", (!args.enabled).then(|| yes(false))),
        ("Types", Some(types.join(" "))),
        ("URIs", Some(args.uris.join(" "))),
        ("Suites", Some(args.suites.join(" "))),
        ("Components", (!args.components.is_empty()).then(|| args.components.join(" "))),
        ("Architectures", (!args.architectures.is_empty()).then(|| args.architectures.join(" "))),
        ("Trusted", args.trusted.map(yes)),
        ("Signed-By", signed_by),
    ];
    let mut out = String::new();
    for (name, value) in fields {
        let Some(value) = value else { continue };
        if value.contains(['\n', '\r', '\0']) {
            return Err(Failure::new(format!("argument '{}' holds a line break or NUL byte", name.to_lowercase())));
        }
        out.push_str(&format!("{name}: {value}\n"));
    }
    Ok((out, key_text))
}

#[derive(Debug)]
struct Call {
    steps: Steps,
    previous: Vec<(PathBuf, Option<String>)>,
    update: Option<Apt>,
}

impl Change for Call {
    fn diffs(&self) -> Vec<Diff> {
        self.steps.diffs()
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.steps.paths()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        steps::apply(&self.steps.list, host)?;
        if let Some(apt) = self.update
            && let Err(mut failure) = apt.update(host)
        {
            // With a source that does not work, no package could be installed any more on this host.
            for (path, text) in self.previous.iter().rev() {
                match text {
                    Some(text) => host.write(path, text.as_bytes(), &readable(), None)?,
                    None => host.remove(path)?,
                }
            }
            failure.changed = false;
            return Err(if failure.hint.is_some() {
                failure
            } else {
                failure.hint("the files were put back as they were")
            });
        }
        Ok(self.steps.outcome)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::modules::fake::{Fake, converges, go, plan};

    const FILE: &str = "/etc/apt/sources.list.d/hashicorp.sources";

    fn repository() -> Value {
        json!({"name": "hashicorp", "uris": "https://apt.example.org", "suites": ["bookworm"], "components": "main",
            "signed_by": "-----BEGIN PGP PUBLIC KEY BLOCK-----\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n"})
    }

    #[test]
    fn a_source_is_written_once_with_its_key() {
        let mut fake = Fake::new();
        converges(&mut fake, "repository", repository());
        assert_eq!(
            String::from_utf8_lossy(&fake.files[Path::new(FILE)]),
            "Types: deb\nURIs: https://apt.example.org\nSuites: bookworm\nComponents: main\n\
             Signed-By: /etc/apt/keyrings/hashicorp.asc\n"
        );
        assert!(fake.files[Path::new("/etc/apt/keyrings/hashicorp.asc")].starts_with(b"-----BEGIN"));
        assert!(fake.ran.len() == 1 && fake.ran[0].ends_with(" update"));
        converges(&mut fake, "apt_repository", json!({"name": "hashicorp", "state": "absent"}));
        assert!(fake.files.is_empty());
    }

    #[test]
    fn a_source_that_does_not_work_is_taken_back() {
        let mut fake = Fake::new().answers("apt-get", 100, "", "E: The repository 'x' is not signed.\n");
        let failure = go(&mut fake, "repository", repository()).unwrap_err();
        assert_eq!(failure.message, "apt-get update: The repository 'x' is not signed.");
        assert!(failure.hint.unwrap().contains("signed_by") && !failure.changed);
        assert!(fake.files.is_empty());
    }

    #[test]
    fn further_fields() {
        let mut fake = Fake::new();
        let args = json!({"name": "lab", "uris": ["file:/srv/apt"], "suites": "./", "trusted": true, "enabled": false,
            "architectures": ["amd64", "all"], "update_cache": false, "types": "deb,deb-src"});
        converges(&mut fake, "repository", args);
        assert_eq!(
            String::from_utf8_lossy(&fake.files[Path::new("/etc/apt/sources.list.d/lab.sources")]),
            "Enabled: no\nTypes: deb deb-src\nURIs: file:/srv/apt\nSuites: ./\nArchitectures: amd64 all\nTrusted: yes\n"
        );
        assert!(fake.ran.is_empty());
    }

    #[test]
    fn bad_input_is_refused() {
        let fake = Fake::new();
        let error = |change: Value| {
            let mut args = repository();
            for (name, value) in change.as_object().unwrap() {
                args[name] = value.clone();
            }
            plan(&fake, "repository", args).unwrap_err()
        };
        assert!(error(json!({"name": "../x"})).message.contains("is no name for a repository"));
        assert!(error(json!({"components": []})).message.contains("'components' is missing"));
        assert!(error(json!({"suites": "./"})).message.contains("no components"));
        assert!(error(json!({"uris": "apt.example.org"})).message.contains("expected an address"));
        assert!(error(json!({"signed_by": "https://x/key"})).hint.unwrap().contains("download"));
        assert!(error(json!({"suites": "a\nTrusted: yes"})).message.contains("line break"));
        assert!(error(json!({"types": "rpm"})).message.contains("deb-src"));
        assert!(error(json!({"repo": "deb x y z"})).hint.unwrap().contains("uris, suites"));
    }
}
