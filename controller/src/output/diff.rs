use rollcall_engine::modules::Diff;
use similar::TextDiff;

use super::style::Style;

/// Lines of one difference at most: more is cut, and said.
const MAX_LINES: usize = 400;

/// A difference as people read it.
pub(crate) fn render(diff: &Diff, style: Style) -> String {
    let mut out = format!("{}\n", style.bold(&format!("--- {}", diff.what)));
    if diff.hidden {
        out.push_str(&format!("    {}\n", style.dim(&hidden(diff))));
        return out;
    }
    let text = TextDiff::from_lines(&diff.before, &diff.after);
    let mut lines = 0;
    for hunk in text.unified_diff().context_radius(3).iter_hunks() {
        for line in hunk.to_string().lines() {
            lines += 1;
            if lines > MAX_LINES {
                continue;
            }
            let shown: String =
                line.chars().take(400).map(|c| if c.is_control() && c != '\t' { '·' } else { c }).collect();
            let shown = match line.as_bytes().first() {
                Some(b'+') => style.good(&shown),
                Some(b'-') => style.bad(&shown),
                Some(b'@') => style.dim(&shown),
                _ => shown,
            };
            out.push_str(&format!("    {shown}\n"));
        }
    }
    if lines > MAX_LINES {
        out.push_str(&format!("    {}\n", style.dim(&format!("… {} more lines", lines - MAX_LINES))));
    }
    out
}

fn hidden(diff: &Diff) -> String {
    if diff.after.is_empty() { "content hidden".into() } else { diff.after.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shown_with_their_signs() {
        let diff = Diff { what: "/etc/x".into(), before: "a\nb\n".into(), after: "a\nc\n".into(), hidden: false };
        assert_eq!(render(&diff, Style::plain()), "--- /etc/x\n    @@ -1,2 +1,2 @@\n     a\n    -b\n    +c\n");
    }

    #[test]
    fn hidden_content_stays_hidden() {
        let diff = Diff {
            what: "/etc/x".into(),
            before: String::new(),
            after: "content hidden (3 lines changed)".into(),
            hidden: true,
        };
        assert_eq!(render(&diff, Style::plain()), "--- /etc/x\n    content hidden (3 lines changed)\n");
    }
}
