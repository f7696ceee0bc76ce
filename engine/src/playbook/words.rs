//! Words of a free form: quotes and expressions hold together.

use std::ops::Range;

/// Where the words are. Quotes, and what stands between `{{ }}`, `{% %}`, belong to their word.
pub(super) fn split(text: &str) -> Result<Vec<Range<usize>>, &'static str> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut depth = 0usize;
    let mut escaped = false;
    let mut previous = '\0';
    for (at, c) in text.char_indices() {
        if depth == 0 && quote.is_none() && c.is_whitespace() && !escaped {
            if let Some(from) = start.take() {
                words.push(from..at);
            }
            previous = c;
            continue;
        }
        start.get_or_insert(at);
        if escaped {
            escaped = false;
        } else {
            match (c, quote) {
                ('\\', _) if depth == 0 => escaped = true,
                ('\'' | '"', None) if depth == 0 => quote = Some(c),
                (_, Some(q)) if c == q => quote = None,
                _ => {}
            }
        }
        previous = match (previous, c) {
            ('{', '{' | '%') => {
                depth += 1;
                '\0'
            }
            ('}' | '%', '}') => {
                depth = depth.saturating_sub(1);
                '\0'
            }
            _ => c,
        };
    }
    if depth > 0 {
        return Err("an expression is never closed");
    }
    if quote.is_some() {
        return Err("a quote is never closed");
    }
    words.extend(start.map(|from| from..text.len()));
    Ok(words)
}

/// The value without the quotes around all of it.
pub(super) fn unquote(value: &str) -> String {
    for quote in ['\'', '"'] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner.replace(&format!("\\{quote}"), &quote.to_string());
        }
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        split(text).unwrap().into_iter().map(|w| &text[w]).collect()
    }

    #[test]
    fn quotes_and_expressions_hold_together() {
        assert_eq!(
            words("src=a dest='/b c' mode={{ x | default('0644') }}"),
            ["src=a", "dest='/b c'", "mode={{ x | default('0644') }}"]
        );
        assert_eq!(words(r"a\ b c"), [r"a\ b", "c"]);
        assert_eq!(words("  "), Vec::<&str>::new());
        assert_eq!(words("it=\"ß x\" y"), ["it=\"ß x\"", "y"]);
        assert!(split("a='b").is_err());
        assert!(split("a={{ b").is_err());
        assert_eq!(unquote("'a b'"), "a b");
        assert_eq!(unquote("a'b"), "a'b");
    }
}
