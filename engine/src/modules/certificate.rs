//! `certificate`: a node's key and certificate, made here and signed by the cluster's authority.
//!
//! Certificate and key are of use only as a pair, and two files cannot be replaced at once. So each pair, with the authority's
//! certificate, has a folder of its own, and what programs are told to read is a link to it: `PATH -> .NAME-FINGERPRINT`. The new
//! folder is complete and on the disk before the link is turned, in one rename. Killed before that, the old pair stands, and the
//! next run makes another one; killed after it, the new one does. The folder of before stays until the next renewal: what was
//! renewed may have to be put back.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    args::Mode,
    place::{Perms, Planner, Put, planned},
};
use crate::{
    args, choice,
    host::{Attrs, FileKind, Read, Write, atomic::explain, overlay::Overlay},
    pki::{
        AltName, Holder, LIFETIMES, Leaf, PkiError, Reason, authority::Certificate, date, issuer::CERTIFICATE, names,
        request, seconds,
    },
    secrets::{
        Name,
        grants::{GrantError, Grants, Product, SignRequest},
    },
};

choice!(
    /// What becomes of a certificate of another authority than the cluster's.
    Authority { Follow = "follow", Keep = "keep", Leave = "leave" }
);

choice!(
    /// Whose certificate.
    Program { Consul = "consul", Nomad = "nomad" }
);

/// A year, in seconds.
const YEAR: Duration = Duration::from_hours(365 * 24);
/// The key's mode, and the widest that it may have.
const KEY_MODE: u32 = 0o640;

args! {
    /// Arguments of `certificate`.
    pub struct Args {
        /// A link to the folder that holds `cert.pem`, `key.pem` and `ca.pem`. The folders themselves lie beside it and begin with
        /// a dot; a renewal makes a new one and turns the link, so that key and certificate always fit together.
        path ["dest"]: PathBuf, required;
        /// The program that uses it.
        product []: Program, required;
        /// The node is one of the product's servers. The issuer has to know it as one.
        server []: bool = false;
        /// The node is one of the product's clients; by default where it is no server.
        client []: Option<bool>;
        /// Consul's datacenter.
        datacenter []: Option<String>;
        /// Nomad's region.
        region []: Option<String>;
        /// The domain of Consul's names: `consul` without it. A Nomad server's certificate is then also good for
        /// `nomad.service.DOMAIN`, the name that Consul has for it; without a domain it is not.
        domain []: Option<String>;
        /// The node's name in the inventory.
        node []: String, required;
        /// Where the other hosts of the inventory reach it.
        address []: String, required;
        /// How long a new one counts, in seconds: a minute to ten years. The default is a year.
        lifetime []: Duration = YEAR;
        /// It is renewed when so many seconds are left of it. The default is a third of its life.
        renew_before []: Option<Duration>;
        /// With `follow` a certificate that the cluster's authority has not signed is replaced. With `keep` that is refused as long as
        /// it counts: for a node that talks to others by it, which would not understand it any more. With `leave` it stays as long as it
        /// counts, with a warning: for a node that is about to stop talking by it.
        authority []: Authority = Authority::Follow;
        /// Owner of the folder and of the files.
        owner []: String = "root".to_owned();
        /// Their group, which may read the key.
        group []: String = "root".to_owned();
        /// Permission bits of the key: "0640", the widest, or fewer.
        mode ["key_mode"]: Mode = Mode::Bits(KEY_MODE);
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "certificate",
    aliases: &[],
    summary: "Makes a node's key, has the cluster's authority sign its certificate, and renews it in time",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("path", "The link."),
        ("certificate", "Path of the certificate, PEM."),
        ("key", "Path of its private key, PEM."),
        ("authority", "Path of the authority's certificate, PEM."),
        ("renewed", "A new key and certificate were made."),
        ("reason", "Why; empty where the one that stood there stays."),
        ("not_before", "From when on it counts, as 2026-11-21T20:00:00Z; null where it is only planned."),
        ("not_after", "Until when, likewise."),
        ("fingerprint", "SHA-256 of the certificate, 64 digits; null where it is only planned."),
        ("serial", "Its number, in hexadecimal digits; likewise."),
        ("names", "The names and addresses that it is good for."),
    ]],
    example: "- name: certificate of Consul\n  certificate:\n    path: /etc/consul.d/tls\n    product: consul\n    datacenter: kraken\n    \
              node: \"{{ inventory_hostname }}\"\n    address: \"{{ cluster.self.address }}\"\n    group: consul\n  notify: reload consul\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
    let wish = Wish::new(&args)?;
    planned(cx, || look(&args, wish, call.diff, cx))
}

/// What is asked for, checked.
#[derive(Debug)]
struct Wish {
    path: PathBuf,
    request: SignRequest,
    names: BTreeSet<AltName>,
    before: Option<Duration>,
    authority: Authority,
    owner: String,
    group: String,
    key_mode: u32,
}

impl Wish {
    fn new(args: &Args) -> Result<Self, Failure> {
        let (product, place, domain) = place(args)?;
        let client = args.client.unwrap_or(!args.server);
        if !args.server && !client {
            return Err(Failure::new("arguments 'server' and 'client' are both false: the node must be one of them"));
        }
        if args.server && client && product == Product::Consul {
            return Err(Failure::new("arguments 'server' and 'client' are both true: a node's Consul is one of them"));
        }
        if !LIFETIMES.contains(&args.lifetime) {
            let found = args.lifetime.as_secs();
            return Err(Failure::new(format!("argument 'lifetime': expected 60 to 315360000 seconds, found {found}")));
        }
        if args.renew_before.is_some_and(|before| before >= args.lifetime) {
            return Err(Failure::new(
                "argument 'renew_before' is not shorter than 'lifetime': it would be renewed always",
            ));
        }
        let key_mode = match &args.mode {
            Mode::Bits(bits) if bits & !KEY_MODE == 0 && bits & 0o400 != 0 => *bits,
            _ => {
                return Err(Failure::new("argument 'mode': expected \"0640\", \"0600\", \"0440\" or \"0400\"")
                    .hint("a private key is read by its owner, and at most by one group"));
            }
        };
        let holder = Holder {
            product,
            server: args.server,
            client,
            place: &place,
            domain: &domain,
            node: &args.node,
            address: &args.address,
        };
        let names = holder.names().map_err(|e| failed(&e))?;
        // The request itself is made with the key.
        let request = SignRequest { product, place, domain, lifetime: args.lifetime.as_secs(), csr: String::new() };
        Ok(Self {
            path: args.path.clone(),
            request,
            names,
            before: args.renew_before,
            authority: args.authority,
            owner: args.owner.clone(),
            group: args.group.clone(),
            key_mode,
        })
    }

    /// Owner and mode of what lies below the link.
    fn attrs(&self, mode: u32) -> Attrs {
        Attrs { mode: Some(mode), owner: Some(self.owner.clone()), group: Some(self.group.clone()) }
    }

    /// Name and mode of each file.
    fn files(&self) -> [(&'static str, u32); 3] {
        [(KEY, self.key_mode), (CERT, 0o644), (CA, 0o644)]
    }

    /// The link's folder, and what the names of its targets begin with.
    fn beside(&self) -> Result<(&Path, String), Failure> {
        match (self.path.parent(), self.path.file_name().and_then(|name| name.to_str())) {
            (Some(parent), Some(name)) => Ok((parent, format!(".{name}-"))),
            _ => Err(Failure::new(format!("argument 'path': {} cannot be a link", self.path.display()))),
        }
    }

    fn results(&self, outcome: Outcome, leaf: Option<&Leaf>, reason: Option<&Reason>) -> Outcome {
        let at = |name: &str| self.path.join(name).display().to_string();
        let when = |seconds: i64| jiff::Timestamp::from_second(seconds).map_or(Value::Null, |t| t.to_string().into());
        let names: Vec<Value> = self.names.iter().map(|name| name.to_string().into()).collect();
        outcome
            .with("path", self.path.display().to_string())
            .with("certificate", at(CERT))
            .with("key", at(KEY))
            .with("authority", at(CA))
            .with("renewed", reason.is_some())
            .with("reason", reason.map_or_else(String::new, ToString::to_string))
            .with("not_before", leaf.map_or(Value::Null, |leaf| when(leaf.not_before)))
            .with("not_after", leaf.map_or(Value::Null, |leaf| when(leaf.not_after)))
            .with("fingerprint", leaf.map_or(Value::Null, |leaf| leaf.fingerprint.clone().into()))
            .with("serial", leaf.map_or(Value::Null, |leaf| leaf.serial.clone().into()))
            .with("names", names)
    }
}

const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";
const CA: &str = "ca.pem";
/// Bytes of a file that is read at most.
const MAX_FILE: u64 = 1 << 20;

/// Product, datacenter or region, domain: each product has its own words.
fn place(args: &Args) -> Result<(Product, String, String), Failure> {
    let (product, want, other, given, wrong) = match args.product {
        Program::Consul => (Product::Consul, "datacenter", "region", &args.datacenter, &args.region),
        Program::Nomad => (Product::Nomad, "region", "datacenter", &args.region, &args.datacenter),
    };
    if wrong.is_some() {
        return Err(Failure::new(format!("argument '{other}' goes with another product, use '{want}'")));
    }
    let Some(place) = given.clone() else {
        return Err(Failure::new(format!("argument '{want}' is missing: names in the certificate hold it")));
    };
    let otherwise = if product == Product::Consul { "consul" } else { "" };
    let domain = args.domain.clone().unwrap_or_else(|| otherwise.to_owned());
    Ok((product, place, domain))
}

fn failed(error: &PkiError) -> Failure {
    Failure::new(error.chain()).hint_if(error.hint())
}

fn denied(what: &str, error: &GrantError) -> Failure {
    Failure::new(format!("{what}: {error}")).hint_if(error.hint())
}

/// What stands behind the link.
enum Found {
    /// Something is to be made, for this reason.
    Renew(Reason, Option<Box<Leaf>>),
    /// A pair that an earlier task of this check has planned.
    Planned,
    /// It may stay.
    Stays(Box<Leaf>),
    /// It stays, though the cluster's authority has not signed it.
    Left(Box<Leaf>),
}

fn look(args: &Args, wish: Wish, show: bool, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let name = Name::new(CERTIFICATE).map_err(|e| Failure::new(e.to_string()))?;
    let authority = match cx.secrets.secret(&name) {
        Ok(pem) => Some(Certificate::read(pem.expose()).map_err(|e| failed(&e))?),
        // A check makes no authority: what it would sign is new in any case.
        Err(GrantError::NotYet(_)) => None,
        Err(error) => return Err(denied("the authority's certificate is not to be had", &error)),
    };
    let now = seconds(cx.host.now());
    match found(&wish, authority.as_ref(), cx.host, now)? {
        Found::Planned => Ok(Plan::Unchanged(wish.results(Outcome::unchanged(), None, None))),
        Found::Renew(reason, old) => {
            // The errors that the change would meet: a missing folder, an unknown group.
            lay_out(&wish, &mut Overlay::new(cx.host))?;
            let secrets = Arc::clone(cx.secrets);
            Ok(Plan::Change(Box::new(Renewal { wish, reason, old, secrets })))
        }
        Found::Stays(leaf) => {
            let mut planner = Planner::new(cx, show);
            keep(&wish, authority.as_ref(), &mut planner)?;
            let mut outcome = wish.results(Outcome::unchanged(), Some(&leaf), None);
            outcome.warnings.extend(authority.as_ref().and_then(|ca| ends(ca, now, args.lifetime)));
            Ok(planner.finish(outcome))
        }
        Found::Left(leaf) => {
            let mut planner = Planner::new(cx, show);
            // With the authority that it goes with.
            keep(&wish, None, &mut planner)?;
            let mut outcome = wish.results(Outcome::unchanged(), Some(&leaf), None);
            outcome.warnings.push(format!(
                "the certificate in {} is of another authority than the cluster's, and stays until nobody talks by it",
                wish.path.display()
            ));
            Ok(planner.finish(outcome))
        }
    }
}

fn found(wish: &Wish, authority: Option<&Certificate>, host: &dyn Read, now: i64) -> Result<Found, Failure> {
    let path = &wish.path;
    match host.meta(path).map_err(|e| explain("look at", path, &e))?.map(|meta| meta.kind) {
        None => return Ok(Found::Renew(Reason::Missing, None)),
        Some(FileKind::Symlink) => {}
        Some(_) => {
            return Err(Failure::new(format!("{} is there, and is no link of this module", path.display()))
                .hint("move it away, or name another path: what it holds is not replaced"));
        }
    }
    let mut texts = Vec::new();
    for name in [CERT, KEY] {
        let file = path.join(name);
        match read(&file, host) {
            Ok(text) => texts.push(Zeroizing::new(text)),
            // Content that a check has planned, and nobody knows.
            Err(_) if host.is_overlay() && host.meta_follow(&file).is_ok_and(|meta| meta.is_some()) => {
                return Ok(Found::Planned);
            }
            Err(reason) => return Ok(Found::Renew(reason, None)),
        }
    }
    let leaf = match Leaf::read(&texts[0]) {
        Ok(leaf) => Box::new(leaf),
        Err(error) => return Ok(Found::Renew(Reason::Unusable(error.to_string()), None)),
    };
    let due = match authority {
        Some(authority) => leaf.due(&texts[1], authority, &wish.names, now, wish.before),
        None => Some(Reason::Authority),
    };
    match due {
        Some(Reason::Authority) if wish.authority == Authority::Keep && now < leaf.not_after => {
            Err(other_authority(&wish.path, authority))
        }
        Some(Reason::Authority) if wish.authority == Authority::Leave && now < leaf.not_after => Ok(Found::Left(leaf)),
        Some(reason) => Ok(Found::Renew(reason, Some(leaf))),
        None => Ok(Found::Stays(leaf)),
    }
}

fn other_authority(path: &Path, authority: Option<&Certificate>) -> Failure {
    let store = authority.map_or_else(|| "has none".to_owned(), |found| format!("has '{}'", found.subject));
    Failure::new(format!(
        "the certificate in {} is in use, and is of another authority than the one of this run: the secrets store {store}",
        path.display()
    ))
    .hint(
        "is it the cluster's store (controller ca show)? docs/certificates.md tells how the authority of a running cluster is \
         replaced",
    )
}

fn read(file: &Path, host: &dyn Read) -> Result<String, Reason> {
    let shown = file.display();
    let size = host.meta_follow(file).ok().flatten().map_or(0, |meta| meta.size);
    if size > MAX_FILE {
        return Err(Reason::Unusable(format!("{shown} has {size} bytes")));
    }
    match host.read(file) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| Reason::Unusable(format!("{shown} is no PEM"))),
        Err(error) => Err(Reason::Unusable(format!("cannot read {shown}: {error}"))),
    }
}

/// Owners and modes of what may stay, and the authority's certificate beside it.
fn keep(wish: &Wish, authority: Option<&Certificate>, planner: &mut Planner<'_>) -> Result<(), Failure> {
    let folder = super::place::followed(&planner.host, &wish.path)?;
    planner.attrs(&folder, &wish.attrs(0o750))?;
    for (name, mode) in wish.files() {
        let file = folder.join(name);
        if name != CA {
            planner.attrs(&file, &wish.attrs(mode))?;
        } else if let Some(authority) = authority {
            let perms = Perms {
                mode: Some(Mode::Bits(mode)),
                owner: Some(wish.owner.clone()),
                group: Some(wish.group.clone()),
            };
            planner.file(&file, authority.pem.as_bytes(), &perms, &Put::default())?;
        }
    }
    Ok(())
}

/// A warning while there is time for a new authority.
fn ends(authority: &Certificate, now: i64, lifetime: Duration) -> Option<String> {
    let left = authority.not_after - now;
    let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    (left < lifetime).then(|| {
        format!(
            "the cluster's certificate authority ends on {}, and all certificates with it: docs/certificates.md tells how it is \
             replaced",
            date(authority.not_after)
        )
    })
}

/// A new pair.
#[derive(Debug)]
struct Renewal {
    wish: Wish,
    reason: Reason,
    old: Option<Box<Leaf>>,
    secrets: Arc<dyn Grants>,
}

impl Change for Renewal {
    fn diffs(&self) -> Vec<Diff> {
        let before = match &self.old {
            Some(old) => format!("certificate for {}, until {}\n", names::list(&old.names), date(old.not_after)),
            None => String::new(),
        };
        let after = format!("new key and certificate for {}: {}\n", names::list(&self.wish.names), self.reason);
        vec![Diff { what: self.wish.path.display().to_string(), before, after, hidden: false }]
    }

    fn paths(&self) -> Vec<PathBuf> {
        vec![self.wish.path.clone()]
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let Self { wish, reason, secrets, .. } = *self;
        let text = format!("renewed: {reason}");
        if host.is_overlay() {
            lay_out(&wish, host)?;
            return Ok(wish.results(Outcome::changed().msg(text), None, Some(&reason)));
        }
        let made = request::make().map_err(|e| failed(&e))?;
        let request = SignRequest { csr: made.csr, ..wish.request.clone() };
        let issued = secrets.sign(&request).map_err(|e| denied("the certificate was not signed", &e))?;
        let authority = Certificate::read(&issued.authority).map_err(|e| failed(&e))?;
        let leaf = Leaf::read(&issued.certificate).map_err(|e| failed(&e))?;
        let now = seconds(host.now());
        if let Some(wrong) = leaf.due(&made.key, &authority, &wish.names, now, wish.before) {
            return Err(unwanted(&wrong));
        }
        let contents = [made.key.as_bytes(), issued.certificate.as_bytes(), authority.pem.as_bytes()];
        install(&wish, &leaf.fingerprint[..16], &contents, host)?;
        let mut outcome = wish.results(Outcome::changed().msg(text), Some(&leaf), Some(&reason));
        outcome.warnings.extend(ends(&authority, now, Duration::from_secs(wish.request.lifetime)));
        Ok(outcome)
    }
}

/// What was signed is not what was asked for: nothing is put in place.
fn unwanted(reason: &Reason) -> Failure {
    let failure = Failure::new(format!("the certificate that was signed cannot be used: {reason}"));
    match reason {
        Reason::Names { .. } => failure.hint(
            "the issuer goes by the inventory: the host's name, its address, and whether it is in the group of the servers or \
             of the clients; the task's arguments must say the same",
        ),
        Reason::Early(_) | Reason::Ended(_) => {
            failure.hint("the clock of this host and that of the issuer differ: compare `date -u` on both")
        }
        _ => failure,
    }
}

/// The new folder first, whole; the link last.
fn install(wish: &Wish, id: &str, contents: &[&[u8]; 3], host: &mut dyn Write) -> Result<(), Failure> {
    let (parent, prefix) = wish.beside()?;
    let name = format!("{prefix}{id}");
    let folder = parent.join(&name);
    let before = host.read_link(&wish.path).ok();
    host.mkdir(&folder, &wish.attrs(0o750))?;
    for ((file, mode), content) in wish.files().iter().zip(contents) {
        host.write(&folder.join(file), content, &wish.attrs(*mode), None)?;
    }
    // Older ones, and what a killed run left: before the link is turned, for after that no run would come back to them.
    let kept = [Some(name.as_str()), before.as_deref().and_then(Path::to_str)];
    for other in host.list(parent).map_err(|e| explain("list", parent, &e))? {
        if other
            .to_str()
            .is_some_and(|o| o.starts_with(&prefix) && is_id(&o[prefix.len()..]) && !kept.contains(&Some(o)))
        {
            host.remove(&parent.join(&other))?;
        }
    }
    host.symlink(Path::new(&name), &wish.path)
}

/// The end of a folder's name that this module has made.
fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The same on an overlay: files whose content is known only when the run has made it.
fn lay_out(wish: &Wish, host: &mut dyn Write) -> Result<(), Failure> {
    let (parent, prefix) = wish.beside()?;
    let name = format!("{prefix}planned");
    let folder = parent.join(&name);
    host.mkdir(&folder, &wish.attrs(0o750))?;
    for (file, mode) in wish.files() {
        host.receive(&folder.join(file), &wish.attrs(mode), &mut |_| Ok(()))?;
    }
    host.symlink(Path::new(&name), &wish.path)
}

#[cfg(test)]
mod tests;
