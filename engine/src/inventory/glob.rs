//! Shell globs as Python's fnmatch reads them: `*`, `?`, `[abc]`, `[!a-c]`; everything else is itself.

#[derive(Debug, PartialEq)]
enum Part {
    One(char),
    Any,
    Many,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// A compiled glob.
#[derive(Debug)]
pub(super) struct Glob(Vec<Part>);

impl Glob {
    pub(super) fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            let c = chars[at];
            at += 1;
            match c {
                '*' => {
                    if parts.last() != Some(&Part::Many) {
                        parts.push(Part::Many);
                    }
                }
                '?' => parts.push(Part::Any),
                '[' => match class(&chars, at) {
                    Some((part, next)) => {
                        parts.push(part);
                        at = next;
                    }
                    None => parts.push(Part::One('[')),
                },
                _ => parts.push(Part::One(c)),
            }
        }
        Self(parts)
    }

    /// True if the whole text matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut p, mut t) = (0, 0);
        // Where the last `*` was, and how far it reached: going back there once per character keeps this linear-ish.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            if self.0.get(p) == Some(&Part::Many) {
                star = Some((p, t));
                p += 1;
            } else if self.0.get(p).is_some_and(|part| part.matches(text[t])) {
                p += 1;
                t += 1;
            } else if let Some((back, from)) = star {
                p = back + 1;
                t = from + 1;
                star = Some((back, t));
            } else {
                return false;
            }
        }
        self.0[p..].iter().all(|part| *part == Part::Many)
    }
}

impl Part {
    fn matches(&self, c: char) -> bool {
        match self {
            Self::One(own) => *own == c,
            Self::Any => true,
            Self::Many => false,
            Self::Class { negated, ranges } => ranges.iter().any(|(a, b)| (*a..=*b).contains(&c)) != *negated,
        }
    }
}

/// The class that starts after a `[`, and the place behind it; none where it is never closed.
fn class(chars: &[char], start: usize) -> Option<(Part, usize)> {
    let mut at = start;
    let negated = chars.get(at) == Some(&'!');
    at += usize::from(negated);
    let first = at;
    // A `]` at the very start is a member.
    at += usize::from(chars.get(at) == Some(&']'));
    while *chars.get(at)? != ']' {
        at += 1;
    }
    let inner = &chars[first..at];
    let mut ranges = Vec::new();
    let mut i = 0;
    while i < inner.len() {
        if i + 2 < inner.len() && inner[i + 1] == '-' {
            ranges.push((inner[i], inner[i + 2]));
            i += 3;
        } else {
            ranges.push((inner[i], inner[i]));
            i += 1;
        }
    }
    Some((Part::Class { negated, ranges }, at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_python() {
        let cases = [
            ("web*", "web-1", true),
            ("web*", "aweb", false),
            ("*-?", "web-1", true),
            ("w[!a-d]b", "web", true),
            ("w[a-d]b", "web", false),
            ("[]x]", "]", true),
            ("[abc", "[abc", true),
            ("a*b*c", "axxbxbxc", true),
            ("a*b*c", "axxbxbx", false),
            ("[z-a]", "b", false),
            ("", "", true),
            ("*", "", true),
            ("é*", "éa", true),
            ("A", "a", false),
        ];
        for (glob, text, expected) in cases {
            assert_eq!(Glob::new(glob).matches(text), expected, "{glob} {text}");
        }
    }
}
