//! Keeping secrets out of what is shown: every value that passed is known here, and [`text`] takes it out of whatever is
//! about to leave this process for people, files or logs.
//!
//! A value is found as it is and in the forms in which programs repeat it: base64 (also as a part of a longer text), URL
//! and JSON escapes, single lines of a longer value. What a program makes of a value beyond that (a hash, half of it) is
//! not found; a task whose output may hold such a thing carries `no_log`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{PoisonError, RwLock},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value};

use super::{MIN_VALUE, Secret};
use crate::{
    diag::Diagnostic,
    modules::{Diff, Failure},
    protocol::{Event, EventKind, TaskResult},
};

/// What stands in the place of a value.
pub const SHOWN: &str = "(secret)";
/// Lines of a longer value that are looked for by themselves have so many bytes at least.
const MIN_LINE: usize = 16;

/// Everything that is looked for, by its first bytes.
#[derive(Default)]
struct Known {
    forms: HashMap<[u8; MIN_VALUE], Vec<Secret>>,
    values: HashSet<[u8; 32]>,
}

static KNOWN: RwLock<Option<Known>> = RwLock::new(None);

/// From now on the value is taken out of everything. One of less than [`MIN_VALUE`] bytes is not: it stands in other words
/// too, which is why no secret may be that short.
pub fn register(value: &Secret) {
    let digest = digest(value);
    let is_known = |known: &Option<Known>| known.as_ref().is_some_and(|known| known.values.contains(&digest));
    if is_known(&KNOWN.read().unwrap_or_else(PoisonError::into_inner)) {
        return;
    }
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    known.values.insert(digest);
    for form in forms(value.expose()) {
        let Some(first) = form.as_bytes().first_chunk::<MIN_VALUE>() else { continue };
        let same = known.forms.entry(*first).or_default();
        if !same.iter().any(|s| s.expose() == form) {
            same.push(Secret::new(form));
            // The longest is what is there: the base64 of a value may be the beginning of another's.
            same.sort_by_key(|s| std::cmp::Reverse(s.expose().len()));
        }
    }
}

fn digest(value: &Secret) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(value.expose().as_bytes()).into()
}

/// The forms in which a value is repeated.
fn forms(value: &str) -> Vec<String> {
    let mut parts = vec![value, value.trim(), value.trim().trim_end_matches('=')];
    if value.trim().contains('\n') {
        let long = |line: &&str| line.len() >= MIN_LINE && !line.starts_with("-----");
        parts.extend(value.lines().map(str::trim).filter(long));
    }
    let mut out = Vec::new();
    for part in parts {
        let json = escaped(part);
        out.extend([part.to_owned(), escaped(&json), json]);
        // Programs differ in what they leave as it is, in the case of digits, and in spaces.
        for kept in ["", "/", "/:@!$&'()*+,;="] {
            let (upper, lower) = (url(part, kept, true), url(part, kept, false));
            out.extend([upper.replace("%20", "+"), lower.replace("%20", "+"), upper, lower]);
        }
        out.extend((0..3).flat_map(|offset| base64_at(part, offset)));
    }
    out.retain(|form| form.len() >= MIN_VALUE);
    out.sort_unstable();
    out.dedup();
    out
}

/// As in a string of JSON, without the quotes.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// With every byte escaped but those that never are, and `kept`.
fn url(text: &str, kept: &str, upper: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || kept.as_bytes().contains(&b);
    text.bytes().fold(String::with_capacity(text.len()), |mut out, b| {
        match b {
            b if plain(b) => out.push(char::from(b)),
            b if upper => out.push_str(&format!("%{b:02X}")),
            b => out.push_str(&format!("%{b:02x}")),
        }
        out
    })
}

/// The base64 digits that only the value decides where it begins after `offset` (0 to 2) other bytes of a group.
fn base64_at(text: &str, offset: usize) -> [String; 2] {
    let bytes: Vec<u8> = std::iter::repeat_n(0, offset).chain(text.bytes()).collect();
    let (first, end) = ((offset * 8).div_ceil(6), bytes.len() * 8 / 6);
    let own = |coded: String| coded.get(first..end).unwrap_or_default().to_owned();
    [own(BASE64_STANDARD_NO_PAD.encode(&bytes)), own(BASE64_URL_SAFE_NO_PAD.encode(&bytes))]
}

/// A text without the values that are known.
pub fn text(text: &str) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    let Some(known) = &*known else { return Cow::Borrowed(text) };
    let bytes = text.as_bytes();
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(first) = bytes.get(at..).and_then(|rest| rest.first_chunk::<MIN_VALUE>()) {
        let found = known
            .forms
            .get(first)
            .and_then(|same| same.iter().find(|s| bytes[at..].starts_with(s.expose().as_bytes())));
        let Some(found) = found else {
            at += 1;
            continue;
        };
        // A form is UTF-8, and so is the text: where one begins in the other is a boundary of both.
        out.push_str(&text[copied..at]);
        out.push_str(SHOWN);
        at += found.expose().len();
        copied = at;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Something in which secrets may stand.
pub trait Scrub {
    /// Takes them out.
    fn scrub(&mut self);
}

/// The same without secrets.
pub fn scrubbed<T: Scrub>(mut value: T) -> T {
    value.scrub();
    value
}

/// False while nothing is known: then there is nothing to look for.
pub fn active() -> bool {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).is_some()
}

impl Scrub for String {
    fn scrub(&mut self) {
        if let Cow::Owned(clean) = text(self) {
            *self = clean;
        }
    }
}

impl Scrub for PathBuf {
    fn scrub(&mut self) {
        if let Cow::Owned(clean) = text(&self.to_string_lossy()) {
            *self = Self::from(clean);
        }
    }
}

impl<T: Scrub> Scrub for Option<T> {
    fn scrub(&mut self) {
        if let Some(value) = self {
            value.scrub();
        }
    }
}

impl<T: Scrub> Scrub for Vec<T> {
    fn scrub(&mut self) {
        self.iter_mut().for_each(Scrub::scrub);
    }
}

impl<T: Scrub> Scrub for Box<T> {
    fn scrub(&mut self) {
        (**self).scrub();
    }
}

impl Scrub for Map<String, Value> {
    fn scrub(&mut self) {
        if self.keys().any(|key| matches!(text(key), Cow::Owned(_))) {
            *self = std::mem::take(self).into_iter().map(|(key, value)| (text(&key).into_owned(), value)).collect();
        }
        self.values_mut().for_each(Scrub::scrub);
    }
}

impl Scrub for Value {
    fn scrub(&mut self) {
        match self {
            Self::String(text) => text.scrub(),
            Self::Array(items) => items.scrub(),
            Self::Object(map) => map.scrub(),
            // A value of digits only is a number once it went through JSON.
            Self::Number(number) => {
                if let Cow::Owned(clean) = text(&number.to_string()) {
                    *self = Self::String(clean);
                }
            }
            Self::Null | Self::Bool(_) => {}
        }
    }
}

impl Scrub for Diff {
    fn scrub(&mut self) {
        let Self { what, before, after, hidden: _ } = self;
        [what, before, after].into_iter().for_each(Scrub::scrub);
    }
}

impl Scrub for Failure {
    fn scrub(&mut self) {
        let Self { message, hint, data, changed: _ } = self;
        message.scrub();
        hint.scrub();
        data.scrub();
    }
}

impl Scrub for Diagnostic {
    fn scrub(&mut self) {
        self.message.scrub();
        self.hint.scrub();
        self.notes.iter_mut().for_each(|(_, note)| note.scrub());
    }
}

impl Scrub for TaskResult {
    fn scrub(&mut self) {
        self.name.scrub();
        self.item.scrub();
        self.msg.scrub();
        self.hint.scrub();
        self.diffs.scrub();
        self.result.scrub();
        self.warnings.scrub();
        self.delegated_to.scrub();
    }
}

impl Scrub for EventKind {
    fn scrub(&mut self) {
        match self {
            Self::Start { name, handler: _ } => name.scrub(),
            Self::Item(result) | Self::End(result) => result.scrub(),
            Self::Retry { msg, left: _ } => msg.scrub(),
            Self::Waiting { what } => what.scrub(),
            Self::Restored { handler, files, why, role: _, owed: _ } => {
                handler.scrub();
                files.scrub();
                why.scrub();
            }
            Self::Owed { handler, why, role: _ } => {
                handler.scrub();
                why.scrub();
            }
        }
    }
}

impl Scrub for Event {
    fn scrub(&mut self) {
        self.kind.scrub();
    }
}

/// Takes secrets out of what is written to another writer. Each write is looked at by itself: for logs, which write a line
/// at once.
#[derive(Debug)]
pub struct Scrubbed<W>(pub W);

impl<W: std::io::Write> std::io::Write for Scrubbed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(text(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_STANDARD;
    use serde_json::json;

    use super::*;
    use crate::secrets::redact;

    /// Values differ between tests: what is known is the process's.
    fn known(value: &str) -> String {
        register(&Secret::new(value));
        value.to_owned()
    }

    #[test]
    fn a_value_is_found_in_every_form() {
        let value = known("p\"ss wörd/9+x\\");
        let json = json!({ "k": value }).to_string();
        for holding in [
            format!("a{value}b"),
            json.clone(),
            json!({ "again": json }).to_string(),
            "x=p%22ss%20w%C3%B6rd%2F9%2Bx%5C&y".to_owned(),
            "x=p%22ss%20w%c3%b6rd%2f9%2bx%5c&y".to_owned(),
            "x=p%22ss+w%C3%B6rd%2F9%2Bx%5C&y".to_owned(),
            "x=p%22ss%20w%C3%B6rd/9%2Bx%5C&y".to_owned(),
            "x=p%22ss%20w%C3%B6rd/9+x%5C&y".to_owned(),
            BASE64_STANDARD.encode(&value),
            format!("Basic {}", BASE64_STANDARD.encode(format!("u:{value}"))),
            format!("Basic {}", BASE64_STANDARD.encode(format!("us:{value}--"))),
            format!("Basic {}", BASE64_STANDARD.encode(format!("usr:{value}-"))),
        ] {
            let shown = text(&holding);
            assert!(shown.contains(SHOWN), "{holding} -> {shown}");
            assert!(!shown.contains("ss w") && !shown.contains("c3MgdM"), "{shown}");
        }
        assert_eq!(text(&format!("a{value}b{value}")), "a(secret)b(secret)");
        assert!(matches!(text("p\"ss w"), Cow::Borrowed("p\"ss w")));
    }

    #[test]
    fn the_longest_is_taken_and_places_need_not_fit() {
        let short = known("Longest-of");
        let long = known("Longest-of-the-two");
        assert_eq!(text(&format!("{long} {short}-x")), "(secret) (secret)-x");
        assert_eq!(text("ööLongest-ofö"), "öö(secret)ö");
        assert_eq!(text("Longest-o"), "Longest-o");
    }

    #[test]
    fn lines_of_a_key_are_found_by_themselves() {
        known("-----BEGIN X-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY7Hp\nshort\n-----END X-----\n");
        assert_eq!(text("+ MHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY7Hp"), "+ (secret)");
        assert_eq!(text("-----BEGIN X----- short"), "-----BEGIN X----- short");
    }

    #[test]
    fn results_are_scrubbed_all_through() {
        let value = known("deep-down-value");
        let mut data = json!({ "a": [{ "b": format!("x {value}") }], "n": 1 });
        data[&value] = json!(true);
        data.scrub();
        assert_eq!(data, json!({ "a": [{ "b": "x (secret)" }], "n": 1, "(secret)": true }));
        let digits = known("8151342907");
        assert_eq!(scrubbed(json!([digits, 8_151_342_907_u64])), json!(["(secret)", "(secret)"]));
        let failure = scrubbed(Failure::new(format!("no {value}")).hint(&*value).with("stderr", &*value));
        assert!(!format!("{failure:?}").contains(&value));
    }

    #[test]
    fn what_is_too_short_is_left_alone() {
        known("abc");
        assert_eq!(text("abcdefg"), "abcdefg");
    }

    #[test]
    fn a_log_is_scrubbed_on_its_way() {
        use std::io::Write as _;
        let value = known("logged-by-accident");
        let mut out = Vec::new();
        write!(redact::Scrubbed(&mut out), "why={value}").unwrap();
        assert_eq!(out, b"why=(secret)");
    }
}
