use std::io::Write as _;

use anyhow::bail;
use clap::Args as ClapArgs;
use rollcall_engine::{
    diag::suggest,
    modules::{self, Definition},
};

use crate::exit::Exit;

/// Explain a module: what it does, its arguments, an example.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// The module; without one, all are listed.
    pub(crate) module: Option<String>,
    /// As Markdown: the page of the manual.
    #[arg(long)]
    pub(crate) markdown: bool,
}

/// The verb.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout().lock();
    match &args.module {
        Some(name) => {
            let Some(definition) = modules::find(name) else {
                bail!("there is no module '{name}'; {}", suggest(name, modules::names()).unwrap_or_default());
            };
            let text = if args.markdown { markdown(definition) } else { plain(definition) };
            write!(out, "{text}")?;
        }
        None if args.markdown => write!(out, "{}", page())?,
        None => {
            for definition in modules::DEFINITIONS {
                writeln!(out, "{:14} {}", definition.name, definition.summary)?;
            }
        }
    }
    Ok(Exit::Done)
}

fn plain(definition: &Definition) -> String {
    let mut text = format!("{}: {}\n", definition.name, definition.summary);
    if !definition.aliases.is_empty() {
        text.push_str(&format!("also: {}\n", definition.aliases.join(", ")));
    }
    text.push_str("\nArguments:\n");
    for arg in definition.args {
        let mut about = (arg.kind)();
        if arg.required {
            about.push_str(", required");
        }
        let default = default(arg.default);
        if !default.is_empty() {
            about.push_str(&format!(", default {default}"));
        }
        if !arg.aliases.is_empty() {
            about.push_str(&format!(", also {}", arg.aliases.join(", ")));
        }
        text.push_str(&format!("  {} ({about})\n", arg.name));
        for line in arg.doc.lines() {
            text.push_str(&format!("      {}\n", line.trim()));
        }
    }
    if definition.results().next().is_some() {
        text.push_str("\nResults:\n");
    }
    for (name, doc) in definition.results() {
        text.push_str(&format!("  {name:16} {doc}\n"));
    }
    text.push_str(&format!("\nExample:\n{}\n", indent(definition.example.trim_end())));
    text
}

/// A default as a playbook would have it: it is declared in Rust, where a word is a variant and text has its quotes.
fn default(declared: &str) -> String {
    // So the compiler writes the paths that come out of a macro.
    let declared = declared.replace(" :: ", "::");
    let declared = declared.as_str();
    if declared.ends_with("::new()") || declared.ends_with("::default()") {
        return String::new();
    }
    if let Some(duration) = declared.strip_prefix("std::time::").unwrap_or(declared).strip_prefix("Duration::") {
        let number = duration.split_once('(').map_or("0", |(_, rest)| rest.trim_end_matches(')')).replace('_', "");
        return match (duration.split('(').next(), number.parse::<u64>()) {
            (Some("from_mins"), Ok(minutes)) => (minutes * 60).to_string(),
            (Some("from_millis"), _) => format!("{number} ms"),
            _ => number,
        };
    }
    // `PathBuf::from("/etc")` and the like: what is made of a text is shown as the text.
    let made_of = declared.strip_suffix("\")").and_then(|call| call.split_once("(\"")).map(|(_, text)| text);
    if let Some(text) = made_of {
        return text.to_owned();
    }
    let text = declared;
    let text = text.trim_end_matches(".into()").trim_end_matches(".to_owned()").trim_matches('"');
    match text.rsplit_once("::") {
        Some((_, variant)) => {
            let mut word = String::new();
            for (at, c) in variant.chars().enumerate() {
                if at > 0 && c.is_uppercase() {
                    word.push('_');
                }
                word.extend(c.to_lowercase());
            }
            word
        }
        None => text.to_owned(),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("  {l}")).collect::<Vec<_>>().join("\n")
}

fn markdown(definition: &Definition) -> String {
    let mut text = format!("## {}\n\n{}\n", definition.name, definition.summary);
    if !definition.aliases.is_empty() {
        text.push_str(&format!("\nAlso known as: {}.\n", definition.aliases.join(", ")));
    }
    if !definition.args.is_empty() {
        text.push_str("\n| argument | kind | default | |\n| --- | --- | --- | --- |\n");
    }
    for arg in definition.args {
        let default = if arg.required { "required".to_owned() } else { default(arg.default).replace('|', "\\|") };
        let doc = arg.doc.lines().map(str::trim).collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let mut name = format!("`{}`", arg.name);
        for alias in arg.aliases {
            name.push_str(&format!(", `{alias}`"));
        }
        text.push_str(&format!("| {name} | {} | {default} | {} |\n", (arg.kind)().replace('|', "\\|"), doc.trim()));
    }
    if definition.results().next().is_some() {
        text.push_str("\n| result | |\n| --- | --- |\n");
    }
    for (name, doc) in definition.results() {
        text.push_str(&format!("| `{name}` | {} |\n", doc.replace('|', "\\|")));
    }
    text.push_str(&format!("\n```yaml\n{}\n```\n", definition.example.trim_end()));
    text
}

/// The page `docs/modules.md`, made from the definitions.
pub(crate) fn page() -> String {
    let mut text = String::from(
        "# Modules\n\n<!-- Made by `controller doc --markdown`; a test compares. -->\n\nEvery module plans first and \
         changes only what differs; a second run says that nothing changed. Names may be written short, as \
         `ansible.builtin.NAME`, or as one of the names below. `register` sees the results that are listed, and beside \
         them `changed`, `failed`, `skipped` and `msg`.\n",
    );
    for definition in modules::DEFINITIONS {
        text.push('\n');
        text.push_str(&markdown(definition));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn defaults_are_shown_as_a_playbook_has_them() {
        let shown = [
            ("Duration::ZERO", "0"),
            ("std::time::Duration::from_secs(1_800)", "1800"),
            ("std :: time :: Duration :: from_secs(30)", "30"),
            ("Duration::from_mins(5)", "300"),
            ("Duration::from_millis(50)", "50 ms"),
            ("\"GET\".to_owned()", "GET"),
            ("String::from(\"GET\")", "GET"),
            ("PathBuf::from(\"/var/lib/consul\")", "/var/lib/consul"),
            ("api::url(\"http://127.0.0.1:8500\")", "http://127.0.0.1:8500"),
            ("UpdatePassword::OnCreate", "on_create"),
            ("Vec::new()", ""),
            ("true", "true"),
        ];
        for (declared, wanted) in shown {
            assert_eq!(super::default(declared), wanted, "{declared}");
        }
    }

    #[test]
    fn the_manuals_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/modules.md");
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == super::page(), "run: controller doc --markdown > docs/modules.md");
    }
}
