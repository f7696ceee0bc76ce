//! Host names as people write them: `web[01:10].example.com:2222`, `[2001:db8::1]:22`.

use std::{net::Ipv6Addr, sync::LazyLock};

use regex::Regex;

/// More hosts than this out of one line are a misprint.
const MAX_EXPANSION: usize = 100_000;

static RANGE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\[(?:[a-z]:[a-z]|[0-9]+:[0-9]+)(?::[0-9]+)?\]").ok());
static HEX_RANGE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\[[0-9a-f]+:[0-9a-f]+(?::[0-9]+)?\]").ok());

/// A host (or a range of hosts) and its port; none where the text is no host name: then it may be several patterns.
pub fn parse(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = split_port(text);
    (is_ipv6(host) || is_hostname(host)).then_some((host, port))
}

/// `[x]:22` and `x:22` are taken apart; a colon inside brackets does not count.
fn split_port(text: &str) -> (&str, Option<u16>) {
    let Some((head, tail)) = text.rsplit_once(':') else { return (text, None) };
    let Ok(port) = tail.parse::<u16>() else { return (text, None) };
    if !tail.bytes().all(|b| b.is_ascii_digit()) {
        return (text, None);
    }
    if let Some(inner) = head.strip_prefix('[').and_then(|h| h.strip_suffix(']'))
        && !inner.contains(['[', ']'])
        && !is_range(head)
    {
        return (inner, Some(port));
    }
    let mut depth = 0_i32;
    for c in head.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            ':' if depth == 0 => return (text, None),
            _ => {}
        }
    }
    if depth == 0 { (head, Some(port)) } else { (text, None) }
}

fn is_range(text: &str) -> bool {
    RANGE.as_ref().is_some_and(|r| r.find(text).is_some_and(|m| m.start() == 0 && m.end() == text.len()))
}

fn is_ipv6(text: &str) -> bool {
    text.contains(':') && HEX_RANGE.as_ref().is_some_and(|r| r.replace_all(text, "0").parse::<Ipv6Addr>().is_ok())
}

fn is_hostname(text: &str) -> bool {
    let Some(range) = RANGE.as_ref() else { return false };
    let plain = range.replace_all(text, "0");
    plain.split('.').all(|label| {
        label.chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_')
            && label.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
            && !label.ends_with(['_', '-'])
    })
}

/// All hosts of a text with ranges (`web[1:3]`, `db-[a:c]`, `x[0:10:2]`), in order; the text itself where it has none.
/// The error is a lowercase fragment.
pub fn expand(text: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    expand_into(text, &mut out)?;
    Ok(out)
}

fn expand_into(text: &str, out: &mut Vec<String>) -> Result<(), String> {
    let Some((head, rest)) = text.split_once('[') else {
        out.push(text.to_owned());
        return Ok(());
    };
    let (range, tail) = rest.split_once(']').ok_or_else(|| format!("'{text}' opens a range and does not close it"))?;
    for item in range_items(range)? {
        if out.len() > MAX_EXPANSION {
            return Err(format!("'{text}' names more than {MAX_EXPANSION} hosts"));
        }
        expand_into(&format!("{head}{item}{tail}"), out)?;
    }
    Ok(())
}

fn range_items(range: &str) -> Result<Vec<String>, String> {
    let parts: Vec<&str> = range.split(':').collect();
    let (begin, end, step) = match parts[..] {
        [begin, end] => (begin, end, 1),
        [begin, end, step] => {
            let step = step.parse::<usize>().ok().filter(|s| *s > 0);
            (begin, end, step.ok_or_else(|| format!("the step in '[{range}]' is no whole number above 0"))?)
        }
        _ => return Err(format!("'[{range}]' is no range; write [begin:end] or [begin:end:step]")),
    };
    let begin = if begin.is_empty() { "0" } else { begin };
    if end.is_empty() {
        return Err(format!("the range '[{range}]' has no end"));
    }
    let mut letters = (begin.chars(), end.chars());
    if let (Some(from), None, Some(to), None) = (letters.0.next(), letters.0.next(), letters.1.next(), letters.1.next())
        && from.is_ascii_alphabetic()
        && to.is_ascii_alphabetic()
    {
        // As in Python's string.ascii_letters, small letters come before capitals.
        let all: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
        let place = |c: char| all.iter().position(|x| *x == c).unwrap_or(0);
        if place(from) > place(to) {
            return Err(format!("the range '[{range}]' begins after its end"));
        }
        return Ok(all[place(from)..=place(to)].iter().step_by(step).map(ToString::to_string).collect());
    }
    let number = |text: &str| {
        text.parse::<usize>().map_err(|_| format!("'{text}' in the range '[{range}]' is neither a number nor a letter"))
    };
    let (from, to) = (number(begin)?, number(end)?);
    if from > to {
        return Err(format!("the range '[{range}]' begins after its end"));
    }
    if (to - from) / step > MAX_EXPANSION {
        return Err(format!("'[{range}]' names more than {MAX_EXPANSION} hosts"));
    }
    let width = if begin.starts_with('0') && begin.len() > 1 { begin.len() } else { 0 };
    if width > 0 && end.len() != width {
        return Err(format!("both ends of the range '[{range}]' must have the same number of digits"));
    }
    Ok((from..=to).step_by(step).map(|n| format!("{n:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_expand_in_order() {
        let cases: &[(&str, &[&str])] = &[
            ("web", &["web"]),
            ("web[1:3]", &["web1", "web2", "web3"]),
            ("web[08:10].x", &["web08.x", "web09.x", "web10.x"]),
            ("[a:c]-[1:2]", &["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"]),
            ("n[0:10:5]", &["n0", "n5", "n10"]),
            ("n[:2]", &["n0", "n1", "n2"]),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text).unwrap(), *expected, "{text}");
        }
    }

    #[test]
    fn bad_ranges_are_named() {
        let cases = [
            ("web[1", "'web[1' opens a range and does not close it"),
            ("web[1:]", "the range '[1:]' has no end"),
            ("web[3:1]", "the range '[3:1]' begins after its end"),
            ("web[c:a]", "the range '[c:a]' begins after its end"),
            ("web[01:100]", "both ends of the range '[01:100]' must have the same number of digits"),
            ("web[1:9:0]", "the step in '[1:9:0]' is no whole number above 0"),
            ("web[abc]", "'[abc]' is no range; write [begin:end] or [begin:end:step]"),
            ("web[x1:3]", "'x1' in the range '[x1:3]' is neither a number nor a letter"),
            ("web[0:99999999]", "'[0:99999999]' names more than 100000 hosts"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn ports_and_addresses() {
        assert_eq!(parse("web:22"), Some(("web", Some(22))));
        assert_eq!(parse("10.0.0.1:2222"), Some(("10.0.0.1", Some(2222))));
        assert_eq!(parse("[2001:db8::1]:22"), Some(("2001:db8::1", Some(22))));
        assert_eq!(parse("2001:db8::1"), Some(("2001:db8::1", None)));
        assert_eq!(parse("web[1:3]"), Some(("web[1:3]", None)));
        assert_eq!(parse("web[1:3]:22"), Some(("web[1:3]", Some(22))));
        assert_eq!(parse("web:db"), None);
        assert_eq!(parse("web:&db"), None);
        assert_eq!(parse("web-"), None);
        assert_eq!(parse("*.example.com"), None);
    }
}
