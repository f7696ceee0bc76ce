//! `package`: packages of Debian and its relatives, by apt.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use serde_json::{Map, Value};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    apt::{Apt, check_family, is_stale},
    steps::{hinted, query, text},
};
use crate::{
    args, choice,
    host::{Command, Effect, Ran, Read, Write},
};

choice!(
    /// What is wanted.
    State { Present = "present" | "installed", Latest = "latest", Absent = "absent" | "removed" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// Packages, all installed by one call; `consul=1.22.*` asks for a version.
        name ["pkg", "package"]: Vec<String>;
        /// A package's file on the host (`.deb`).
        deb []: Option<PathBuf>;
        /// `latest` also upgrades what is installed.
        state []: State = State::Present;
        /// Refresh apt's index first, if something is to be installed. Where a source is newer than the index this
        /// happens by itself.
        update_cache ["update-cache"]: bool = false;
        /// An index younger than this many seconds is fresh enough; implies `update_cache`.
        cache_valid_time []: Option<Duration>;
        /// Prefer this release (`bookworm-backports`).
        default_release ["default-release"]: Option<String>;
        /// Install recommended packages too; without it apt's own setting holds.
        install_recommends ["install-recommends"]: Option<bool>;
        /// How many seconds to wait for other programs that hold apt's or dpkg's lock.
        lock_timeout []: Duration = Duration::from_mins(1);
        /// With `absent`: remove configuration files too.
        purge []: bool = false;
        /// Allow an older version than the installed one.
        allow_downgrade ["allow-downgrade", "allow_downgrades"]: bool = false;
        /// Change packages that are on hold.
        allow_change_held_packages []: bool = false;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "package",
    aliases: &["apt"],
    summary: "Installs, upgrades or removes packages by apt",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        (
            "packages",
            "Versions by name: of what was installed or upgraded, with what it needs; where nothing changed, of what was asked for.",
        ),
        ("cache_updated", "The index was refreshed."),
        ("stdout", "What apt said."),
        ("stderr", "What apt complained of."),
    ]],
    example: "- name: programs\n  package:\n    name: [chrony, jq]\n    cache_valid_time: 3600\n",
    plan,
};

/// A package that was asked for.
#[derive(Clone, Debug)]
struct Asked {
    name: String,
    version: Option<String>,
}

impl Asked {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name.trim(), Some(version.trim().to_owned())),
            None => (text.trim(), None),
        };
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+.-:".contains(c);
        let good_name = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(good);
        let good_version = version.as_ref().is_none_or(|version| {
            !version.is_empty() && version.chars().all(|c| c.is_ascii_alphanumeric() || "+.-:~*?".contains(c))
        });
        if good_name && good_version {
            return Ok(Self { name: name.to_owned(), version });
        }
        let failure = Failure::new(format!("'{}' is no name for a package", text.escape_debug()));
        Err(if text.starts_with('/') {
            failure.hint("a file of the host is given by `deb`")
        } else if text.contains(char::is_whitespace) {
            failure.hint("several packages are a list: name: [a, b]")
        } else {
            failure.hint("lower-case letters, digits and +.-, then =VERSION if it matters")
        })
    }

    fn word(&self) -> String {
        self.version.as_ref().map_or_else(|| self.name.clone(), |version| format!("{}={version}", self.name))
    }

    fn fits(&self, installed: &str) -> bool {
        let Some(wanted) = &self.version else { return true };
        wanted == installed
            || globset::GlobBuilder::new(wanted)
                .literal_separator(false)
                .build()
                .is_ok_and(|glob| glob.compile_matcher().is_match(installed))
    }
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let hints = [("force", "give `allow_downgrade` or `allow_change_held_packages`")];
    let args = hinted(Args::parse(&inv.args), &hints)?;
    check_family(cx)?;
    let asked: Vec<Asked> = args.name.iter().map(|name| Asked::parse(name)).collect::<Result<_, _>>()?;
    let apt = Apt { environment: inv.environment.clone(), lock_timeout: args.lock_timeout };
    let updates = args.update_cache || args.cache_valid_time.is_some();
    if asked.is_empty() && args.deb.is_none() {
        if !updates {
            return Err(Failure::new("argument 'name' is missing").hint("give `name`, `deb` or `update_cache`"));
        }
        if !is_stale(cx.host, Some(args.cache_valid_time.unwrap_or_default())) {
            return Ok(Plan::Unchanged(Outcome::unchanged().with("cache_updated", false)));
        }
        let call = Call { apt, update: Some(true), words: Vec::new(), moves: Vec::new(), unknown: None };
        return Ok(Plan::Change(Box::new(call)));
    }
    if args.state == State::Absent {
        return absent(&args, &asked, apt, cx.host);
    }
    install(&args, asked, apt, cx.host)
}

/// A package that goes from one version to another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Move {
    name: String,
    before: Option<String>,
    after: Option<String>,
}

fn absent(args: &Args, asked: &[Asked], apt: Apt, host: &dyn Read) -> Result<Plan, Failure> {
    if args.deb.is_some() {
        return Err(Failure::new("'deb' cannot be absent").hint("give the package's `name`"));
    }
    let mut words = vec![if args.purge { "purge" } else { "remove" }.to_owned()];
    if args.allow_change_held_packages {
        words.insert(0, "--allow-change-held-packages".into());
    }
    let mut moves = Vec::new();
    for package in asked {
        if let Some(version) = host.package(&package.name)?
            && package.fits(&version)
        {
            words.push(package.name.clone());
            moves.push(Move { name: package.name.clone(), before: Some(version), after: None });
        }
    }
    if moves.is_empty() {
        return Ok(Plan::Unchanged(Outcome::unchanged()));
    }
    // Others may go along because they depend on these: that belongs into the diff.
    match simulate(&apt, &words, host) {
        Ok(simulated) => moves = simulated,
        Err(failure) if is_repairable(&failure) || host.is_uncertain() => {}
        Err(failure) => return Err(failure),
    }
    Ok(Plan::Change(Box::new(Call { apt, update: None, words, moves, unknown: None })))
}

fn install(args: &Args, mut asked: Vec<Asked>, apt: Apt, host: &dyn Read) -> Result<Plan, Failure> {
    if let Some(deb) = &args.deb {
        let path = deb.to_string_lossy().into_owned();
        let fields = query(host, &Command::new(["dpkg-deb", "-f", &path, "Package", "Version"]))?;
        let field =
            |name: &str| fields.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned);
        let (Some(name), Some(version)) = (field("Package"), field("Version")) else {
            return Err(Failure::new(format!("{path} names no package")));
        };
        if host.package(&name)?.as_ref() != Some(&version) {
            let moves = vec![Move { name: name.clone(), before: host.package(&name)?, after: Some(version) }];
            let words = options(args).chain(["install".to_owned(), path]).collect();
            if !asked.is_empty() {
                return Err(Failure::new("'deb' and 'name' exclude each other").hint("write two tasks"));
            }
            return Ok(Plan::Change(Box::new(Call { apt, update: None, words, moves, unknown: None })));
        }
        asked.retain(|a| a.name != name);
    }
    let mut wanted = Vec::new();
    let mut versions = Map::new();
    for package in &asked {
        match host.package(&package.name)? {
            Some(version) if package.fits(&version) => {
                versions.insert(package.name.clone(), version.into());
                if args.state == State::Latest {
                    wanted.push(package);
                }
            }
            _ => wanted.push(package),
        }
    }
    let unchanged = || Ok(Plan::Unchanged(Outcome::unchanged().with("packages", Value::Object(versions.clone()))));
    if wanted.is_empty() {
        return unchanged();
    }
    let requested = args.update_cache || args.cache_valid_time.is_some();
    let valid = requested.then(|| args.cache_valid_time.unwrap_or_default());
    let update = is_stale(host, valid).then_some(requested);
    let words: Vec<String> =
        options(args).chain(std::iter::once("install".to_owned())).chain(wanted.iter().map(|p| p.word())).collect();
    let missing = wanted.iter().filter(|p| !versions.contains_key(&p.name));
    let named = || {
        let newest = |p: &&&Asked| p.version.clone().unwrap_or_else(|| "newest".into());
        missing.clone().map(|p| Move { name: p.name.clone(), before: None, after: Some(newest(&p)) }).collect()
    };
    let (moves, unknown) = match simulate(&apt, &words, host) {
        Ok(moves) if moves.is_empty() && update.is_none() => return unchanged(),
        // With a new index there may be more to do; what is known to be missing is a change all the same.
        Ok(moves) if moves.is_empty() => (moves, Some("depends on the index, which is refreshed first".to_owned())),
        Ok(moves) => (moves, None),
        Err(_) if update.is_some() => (named(), None),
        Err(failure) if host.is_uncertain() => (named(), Some(failure.message)),
        Err(failure) if is_repairable(&failure) => (named(), None),
        Err(failure) => return Err(failure),
    };
    Ok(Plan::Change(Box::new(Call { apt, update, words, moves, unknown })))
}

fn options(args: &Args) -> impl Iterator<Item = String> {
    let recommends = args.install_recommends.map(|yes| format!("APT::Install-Recommends={yes}"));
    let recommends = recommends.into_iter().flat_map(|option| ["-o".to_owned(), option]);
    let release = args.default_release.clone().into_iter().flat_map(|release| ["-t".to_owned(), release]);
    let flags = [
        (args.allow_downgrade, "--allow-downgrades"),
        (args.allow_change_held_packages, "--allow-change-held-packages"),
    ];
    recommends.chain(release).chain(flags.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag.to_owned()))
}

/// What apt-get would do, from its own simulation.
fn simulate(apt: &Apt, words: &[String], host: &dyn Read) -> Result<Vec<Move>, Failure> {
    let words: Vec<String> = std::iter::once("-s".to_owned()).chain(words.iter().cloned()).collect();
    let output = host.query(&apt.command(&words))?;
    if output.code != 0 {
        return Err(refused(&text(&output.stderr), host));
    }
    let mut moves = Vec::new();
    for line in text(&output.stdout).lines() {
        let mut fields = line.splitn(3, ' ');
        let (Some(verb @ ("Inst" | "Remv" | "Purg")), Some(name)) = (fields.next(), fields.next()) else { continue };
        let rest = fields.next().unwrap_or_default();
        let before = rest.strip_prefix('[').and_then(|r| r.split(']').next()).map(str::to_owned);
        let after = rest.split_once('(').and_then(|(_, r)| r.split(' ').next()).map(str::to_owned);
        let after = after.filter(|_| verb == "Inst");
        moves.push(Move { name: name.to_owned(), before, after });
    }
    Ok(moves)
}

/// Left by an interrupted run, and repaired before anything else is done.
fn is_repairable(failure: &Failure) -> bool {
    failure.message.contains("fix-broken") || failure.message.contains("interrupted")
}

/// Why apt-get's simulation failed.
fn refused(said: &str, host: &dyn Read) -> Failure {
    let errors: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
    let Some(name) = errors.iter().find_map(|line| line.strip_prefix("Unable to locate package ")) else {
        let failure = Failure::new(format!("apt-get cannot do this: {}", errors.join("; ")));
        return if said.contains("was not found") {
            failure.hint("see the versions with `apt-cache madison NAME`")
        } else {
            failure
        };
    };
    let failure = Failure::new(format!("no package '{name}' is known to apt"));
    let known = query(host, &Command::new(["apt-cache", "pkgnames"])).unwrap_or_default();
    let known: BTreeSet<&str> = known.lines().collect();
    match crate::diag::nearest(name, known) {
        Some(near) => failure.hint(format!("did you mean '{near}'?")),
        None => failure.hint("refresh the index with `update_cache: true`, or add its repository first"),
    }
}

#[derive(Debug)]
struct Call {
    apt: Apt,
    /// The index is refreshed first; true where the task asked for it (then its failure counts).
    update: Option<bool>,
    words: Vec<String>,
    moves: Vec<Move>,
    /// Nobody can know what there is to do.
    unknown: Option<String>,
}

impl Change for Call {
    fn diffs(&self) -> Vec<Diff> {
        let line = |version: &Option<String>| version.as_ref().map(|v| format!("{v}\n")).unwrap_or_default();
        let diff = |m: &Move| Diff {
            what: format!("package {}", m.name),
            before: line(&m.before),
            after: line(&m.after),
            hidden: false,
        };
        self.moves.iter().map(diff).collect()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let mut outcome = Outcome::unchanged();
        if let Some(requested) = self.update {
            match self.apt.update(host) {
                Ok(_) => {}
                Err(failure) if requested => return Err(failure),
                Err(failure) => outcome.warnings.push(format!("the index is older than a source, and: {failure}")),
            }
            outcome = outcome.with("cache_updated", true);
            if self.words.is_empty() {
                outcome.changed = true;
                return Ok(outcome);
            }
        }
        if host.is_overlay()
            && let Some(why) = self.unknown
        {
            return Ok(Outcome { warnings: outcome.warnings, ..Outcome::unknown(why) });
        }
        let effects: Vec<Effect> =
            self.moves.iter().map(|m| Effect::Package(m.name.clone(), m.after.clone())).collect();
        let effects = if effects.is_empty() { vec![Effect::Other] } else { effects };
        match self.apt.run(host, &self.words, &effects)? {
            Ran::Done(output) => {
                let said = text(&output.stdout);
                outcome.changed = did_something(&said).unwrap_or(!self.moves.is_empty());
                outcome = outcome.with("stdout", said).with("stderr", text(&output.stderr));
            }
            Ran::Planned => outcome.changed = !self.moves.is_empty(),
            Ran::Unknown => outcome.unknown = true,
        }
        let versions = |m: Move| m.after.map(|after| (m.name, Value::String(after)));
        Ok(outcome.with("packages", Value::Object(self.moves.into_iter().filter_map(versions).collect())))
    }
}

/// `0 upgraded, 2 newly installed, 0 to remove and 3 not upgraded.`
fn did_something(said: &str) -> Option<bool> {
    let line = said.lines().find(|line| line.contains(" upgraded, ") && line.contains(" newly installed"))?;
    let line = line.split(" and ").next().unwrap_or(line);
    let partly = said.lines().any(|line| line.contains("not fully installed or removed"));
    Some(partly || line.split(", ").any(|part| !part.starts_with("0 ")))
}

#[cfg(test)]
mod tests;
