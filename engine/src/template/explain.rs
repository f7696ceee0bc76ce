//! From an error of the expression engine to a finding with its place, the nearest known name and a hint.

use std::{collections::HashMap, ops::Range, sync::Arc};

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use super::{
    env,
    place::{Place, floor},
    refs::{self, Analysis, Callee, Chain, Step},
    session::{Failed, Session},
    soften::Softened,
    values,
};
use crate::{
    diag::{Diagnostic, FileId, Span, nearest, suggest},
    secrets::grants::GrantError,
    vars::Binding,
};

/// A file that a template includes.
#[derive(Clone, Debug)]
pub(super) struct FileText {
    pub(super) file: FileId,
    pub(super) text: Arc<str>,
}

/// The text in which something failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// As it was written.
    pub(super) source: &'a str,
    pub(super) place: Place<'a>,
    /// Other files of the same rendering, by the name under which they were asked for.
    pub(super) files: Option<&'a HashMap<String, FileText>>,
}

impl Origin<'_> {
    fn is_expression(&self) -> bool {
        match self.place {
            Place::File(_) => false,
            Place::Scalar { text, .. } => !super::has_markup(self.source) || text != self.source,
        }
    }

    fn analyse(&self) -> Option<Analysis> {
        let parsed = if self.is_expression() { refs::expression(self.source) } else { refs::template(self.source) };
        parsed.ok()
    }

    /// The place of an offset; in a scalar of several lines a note tells the line.
    fn finding(&self, offset: usize, message: String) -> Diagnostic {
        let error = Diagnostic::error(self.place.at(self.source, offset), message);
        let Place::Scalar { text, offset: start, .. } = self.place else { return error };
        if !text.contains('\n') {
            return error;
        }
        let at = floor(text, start + offset);
        let line = text[..at].matches('\n').count();
        match text.lines().nth(line).map(str::trim) {
            Some(shown) if !shown.is_empty() => {
                let shown: String = shown.chars().take(100).collect();
                error.note(Span::NONE, format!("in line {} of this text: {shown}", line + 1))
            }
            _ => error,
        }
    }
}

/// Facts as Ansible names them, and as they are named here.
const FACTS: &[(&str, &str)] = &[
    ("ansible_os_family", "facts.os.family (lower case: 'debian', 'redhat')"),
    ("ansible_distribution", "facts.os.id"),
    ("ansible_distribution_version", "facts.os.version"),
    ("ansible_distribution_major_version", "facts.os.version_major"),
    ("ansible_distribution_release", "facts.os.codename"),
    ("ansible_lsb", "facts.os"),
    ("ansible_system", "facts.os.family"),
    ("ansible_kernel", "facts.os.kernel"),
    ("ansible_architecture", "facts.arch"),
    ("ansible_hostname", "facts.hostname"),
    ("ansible_nodename", "facts.hostname"),
    ("ansible_fqdn", "facts.fqdn"),
    ("ansible_domain", "facts.fqdn"),
    ("ansible_default_ipv4", "facts.default_ipv4"),
    ("ansible_all_ipv4_addresses", "facts.addresses.ipv4"),
    ("ansible_all_ipv6_addresses", "facts.addresses.ipv6"),
    ("ansible_interfaces", "facts.addresses.by_interface"),
    ("ansible_processor_vcpus", "facts.cores"),
    ("ansible_processor_cores", "facts.cores"),
    ("ansible_processor_count", "facts.cores"),
    ("ansible_processor_nproc", "facts.cores"),
    ("ansible_memtotal_mb", "facts.memory.total_mib"),
    ("ansible_memfree_mb", "facts.memory.available_mib"),
    ("ansible_swaptotal_mb", "facts.memory.swap_mib"),
    ("ansible_memory_mb", "facts.memory"),
    ("ansible_mounts", "facts.mounts"),
    ("ansible_service_mgr", "facts.init"),
    ("ansible_virtualization_type", "facts.virtualization"),
    ("ansible_virtualization_role", "facts.virtualization"),
    ("ansible_ec2_instance_id", "facts.ec2.instance_id"),
    ("ansible_ec2_placement_region", "facts.ec2.region"),
    ("ansible_ec2_placement_availability_zone", "facts.ec2.zone"),
    ("ansible_ec2_local_ipv4", "facts.ec2.private_ipv4"),
    ("ansible_ec2_instance_type", "facts.ec2.instance_type"),
    ("ansible_machine_id", "facts.machine_id"),
    ("ansible_selinux", "facts.selinux"),
    ("ansible_apparmor", "facts.apparmor"),
    ("ansible_facts", "facts"),
];

fn fact_hint(name: &str) -> Option<String> {
    if let Some((_, ours)) = FACTS.iter().find(|(theirs, _)| *theirs == name) {
        return Some(format!("this fact is {ours} here"));
    }
    let interface = name.strip_prefix("ansible_")?;
    ["eth", "ens", "enp", "eno", "bond", "br"]
        .iter()
        .any(|prefix| interface.starts_with(prefix))
        .then(|| format!("addresses of an interface are facts.addresses.by_interface.{interface} here"))
}

/// Records why an evaluation failed.
pub(super) fn fail(session: &Arc<Session>, error: &Error, origin: &Origin<'_>, source: &Softened<'_>) -> Failed {
    let finding = finding(Some(session), error, origin, source);
    session.fail(finding)
}

/// What is wrong with a text that does not parse.
pub(super) fn syntax(error: &Error, origin: &Origin<'_>) -> Diagnostic {
    finding(None, error, origin, &Softened::same(origin.source))
}

/// The error at the end of the chain: the ones before it only say that an include or a block failed.
fn innermost(error: &Error) -> &Error {
    let mut error = error;
    while let Some(inner) = std::error::Error::source(error).and_then(|e| e.downcast_ref::<Error>()) {
        error = inner;
    }
    error
}

fn finding(session: Option<&Arc<Session>>, error: &Error, origin: &Origin<'_>, source: &Softened<'_>) -> Diagnostic {
    let error = innermost(error);
    let other = error.name().and_then(|name| origin.files?.get(name));
    if let Some(file) = other {
        let origin = Origin { source: &file.text, place: Place::File(file.file), files: None };
        return located(session, error, &origin, &super::soften::template(&file.text));
    }
    located(session, error, origin, source)
}

fn located(session: Option<&Arc<Session>>, error: &Error, origin: &Origin<'_>, source: &Softened<'_>) -> Diagnostic {
    let range = match (error.range(), error.line()) {
        (Some(range), _) => source.original(range.start)..source.original(range.end),
        (None, Some(line)) => {
            let start: usize = origin.source.split_inclusive('\n').take(line - 1).map(str::len).sum();
            start..origin.source.len()
        }
        (None, None) => 0..origin.source.len(),
    };
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::SyntaxError | ErrorKind::BadEscape => syntax_error(origin, &range, detail),
        ErrorKind::UndefinedError => {
            let found = session.and_then(|s| undefined(s, origin, &range));
            found.unwrap_or_else(|| {
                let near = local_chain(origin, &range);
                let name = detail.split('`').nth(1).map(str::to_owned).or_else(|| near.as_ref().map(|n| n.1.clone()));
                let message = name.map_or_else(
                    || "an undefined value is used here".to_owned(),
                    |name| format!("'{name}' is undefined"),
                );
                noted(session, origin.finding(near.map_or(range.start, |n| n.0), message))
            })
        }
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => {
            let callee = match error.kind() {
                ErrorKind::UnknownFilter => Callee::Filter,
                ErrorKind::UnknownTest => Callee::Test,
                _ => Callee::Function,
            };
            let name = detail.trim_end_matches(" is unknown").rsplit(' ').next().unwrap_or_default();
            unknown_call(origin, callee, name, range.start)
        }
        ErrorKind::OutOfFuel => origin.finding(range.start, "this takes too long: is there a loop without end?".into()),
        ErrorKind::TemplateNotFound => origin.finding(range.start, detail.replace("template ", "the template ")),
        kind => {
            // A missing name often ends in another error ("cannot convert undefined to string").
            if let (Some(session), true) = (session, detail.contains("undefined"))
                && let Some(found) = undefined(session, origin, &range)
            {
                return found;
            }
            let message = if detail.is_empty() { kind.to_string() } else { detail.to_owned() };
            let finding = noted(session, origin.finding(range.start, message));
            let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<GrantError>());
            finding.hint_if(refused.and_then(GrantError::hint))
        }
    }
}

/// Adds why a name of another host is not there, where one was asked for.
fn noted(session: Option<&Arc<Session>>, error: Diagnostic) -> Diagnostic {
    match session.and_then(|s| s.absent()) {
        Some(why) => error.note(Span::NONE, why),
        None => error,
    }
}

/// Where a text asks for a name of another host: at `hostvars[…].NAME`, else at the first `hostvars`.
pub(super) fn place_of_host_name(origin: &Origin<'_>, name: &str) -> Option<Span> {
    let analysis = origin.analyse()?;
    let chains = || analysis.chains.iter().filter(|c| c.root == "hostvars" && !c.local);
    let literal = |c: &&Chain| matches!(c.steps.get(1), Some(Step::Name(n)) if n == name);
    let computed = |c: &&Chain| matches!(c.steps.get(1), Some(Step::Dynamic(_)));
    let chain = chains().find(literal).or_else(|| chains().find(computed)).or_else(|| chains().next())?;
    Some(origin.place.at(origin.source, chain.range.start))
}

fn syntax_error(origin: &Origin<'_>, range: &Range<usize>, detail: &str) -> Diagnostic {
    let what = if origin.is_expression() { "expression" } else { "template" };
    let error = origin.finding(range.start, format!("this {what} cannot be read: {detail}"));
    let source = origin.source;
    let hint = if source.contains("&&") {
        "write 'and'"
    } else if source.contains("||") {
        "write 'or'"
    } else if detail.contains("assign") || detail.contains('=') && !source.contains("==") {
        "'==' compares"
    } else if source.contains('!') && !source.contains("!=") {
        "write 'not'"
    } else {
        return error;
    };
    error.hint(hint)
}

/// An unknown filter, test or function.
pub(super) fn unknown_call(origin: &Origin<'_>, callee: Callee, name: &str, offset: usize) -> Diagnostic {
    let what = match callee {
        Callee::Filter => "filter",
        Callee::Test => "test",
        Callee::Function => "function",
    };
    // The span of a filter starts at its value: the name is what is wrong.
    let offset = origin.source.get(offset..).and_then(|rest| rest.find(name)).map_or(offset, |i| offset + i);
    let error = origin.finding(offset, format!("unknown {what} '{name}'"));
    if let Some(hint) = env::refused(name) {
        return error.hint(hint);
    }
    let short = name.rsplit('.').next().unwrap_or(name);
    error.nearest(short, env::names(callee).iter().map(String::as_str).collect::<Vec<_>>())
}

/// The first name in the range that is missing, or in the whole text where none in the range is.
fn undefined(session: &Arc<Session>, origin: &Origin<'_>, range: &Range<usize>) -> Option<Diagnostic> {
    let analysis = origin.analyse()?;
    let chains = || analysis.chains.iter().filter(|c| !c.guarded);
    let near = chains().filter(|c| c.range.start < range.end && range.start <= c.range.end);
    let found = near.chain(chains()).find_map(|chain| missing(session, origin, chain));
    // Looking for it must not hide it behind a failure of its own.
    found.filter(|_| !session.failed())
}

/// The chain at a place that starts at a name which the text itself sets (`item.nmae` in a loop), and where it stands.
/// Its value is gone by the time of the error, so only its text can be told.
fn local_chain(origin: &Origin<'_>, range: &Range<usize>) -> Option<(usize, String)> {
    let chain = origin
        .analyse()?
        .chains
        .into_iter()
        .find(|c| c.local && !c.guarded && c.range.start < range.end && range.start < c.range.end)?;
    Some((chain.range.start, origin.source.get(chain.range)?.to_owned()))
}

/// An expression whose value is undefined.
pub(super) fn bare_undefined(session: &Arc<Session>, origin: &Origin<'_>) -> Failed {
    let found = undefined(session, origin, &(0..origin.source.len()));
    let found = found.unwrap_or_else(|| {
        let error = origin.finding(0, format!("'{}' has no value (undefined)", origin.source.trim()));
        if origin.source.contains(" if ") && !origin.source.contains(" else ") {
            error.hint("an 'if' inside of an expression needs an 'else'")
        } else {
            noted(Some(session), error)
        }
    });
    session.fail(found)
}

/// A value that cannot be kept: a part of it is undefined, or is no data.
pub(super) fn no_value(session: &Arc<Session>, error: &Error, origin: &Origin) -> Failed {
    if session.failed() {
        return Failed;
    }
    let found = match error.kind() {
        ErrorKind::UndefinedError => undefined(session, origin, &(0..origin.source.len())),
        _ => None,
    };
    session.fail(
        found.unwrap_or_else(|| {
            origin.finding(0, error.detail().unwrap_or("a part of this value is undefined").to_owned())
        }),
    )
}

/// Follows a chain as the evaluation did, up to the step that is missing.
fn missing(session: &Arc<Session>, origin: &Origin<'_>, chain: &Chain) -> Option<Diagnostic> {
    if chain.local {
        return None;
    }
    let value = session.lookup(&chain.root).or_else(|| env::global(&chain.root));
    let Some(mut value) = value else {
        let error = origin.finding(chain.range.start, format!("'{}' is undefined", chain.root));
        let hint = fact_hint(&chain.root)
            .or_else(|| nearest(&chain.root, session.scope.names()).map(|near| format!("did you mean '{near}'?")));
        return Some(error.hint_if(hint));
    };
    let hosts = match session.scope.get(&chain.root).map(|var| &var.binding) {
        Some(Binding::Hosts(hosts)) => Some(hosts),
        _ => None,
    };
    let mut path = chain.root.clone();
    let mut keys: Vec<String> = Vec::new();
    for step in &chain.steps {
        let key = match step {
            Step::Name(name) => Value::from(name.as_str()),
            Step::Dynamic(range) => {
                let text = origin.source.get(range.clone())?;
                env::compile(text).ok()?.expression.eval(values::scope(session)).ok()?
            }
        };
        let next = value.get_item(&key).ok()?;
        if next.is_undefined() {
            let missing = missing_key(origin, chain, &path, &key, &value);
            let (Some(hosts), Some(name)) = (hosts, key.as_str()) else { return Some(missing) };
            return Some(match &keys[..] {
                [] => Diagnostic { message: format!("there is no host '{name}' in the inventory"), ..missing },
                [host] => {
                    let absent = hosts.absent(host, name);
                    Diagnostic { message: absent.message, hint: absent.hint, ..missing }
                }
                _ => missing,
            });
        }
        keys.push(key.as_str().map_or_else(|| key.to_string(), str::to_owned));
        match key.as_str() {
            Some(name) => path.push_str(&format!(".{name}")),
            None => path.push_str(&format!("[{key}]")),
        }
        value = next;
    }
    None
}

fn missing_key(origin: &Origin<'_>, chain: &Chain, path: &str, key: &Value, holder: &Value) -> Diagnostic {
    let full = match key.as_str() {
        Some(name) => format!("{path}.{name}"),
        None => format!("{path}[{key}]"),
    };
    let text = origin.source.get(chain.range.clone()).unwrap_or_default();
    let inside = key.as_str().and_then(|name| text.rfind(name)).unwrap_or(0);
    let error = origin.finding(chain.range.start + inside, format!("'{full}' is undefined"));
    let hint = match holder.kind() {
        ValueKind::Map => {
            let keys: Vec<String> =
                holder.try_iter().map(|keys| keys.map(|k| k.to_string()).collect()).unwrap_or_default();
            if keys.is_empty() {
                Some(format!("'{path}' is an empty mapping"))
            } else {
                suggest(&key.to_string(), keys.iter().map(String::as_str))
            }
        }
        ValueKind::Seq => Some(format!("'{path}' is a list of {}", holder.len().unwrap_or(0))),
        kind => Some(format!("'{path}' is a {kind}")),
    };
    error.hint_if(hint)
}
