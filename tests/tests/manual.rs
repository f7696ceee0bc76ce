//! The manual holds together: links lead somewhere, the index names every page, blocks say where they run.

use std::path::{Path, PathBuf};

use rollcall_tests::markdown::{self, Block, Place, blocks};
use rollcall_tests::{program, root, run};

fn pages() -> Vec<PathBuf> {
    markdown::pages(&root(), &["README.md", "CONTRIBUTING.md", "CHANGELOG.md"], &["docs", "examples"])
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Targets of links in a page, without those in blocks of code.
fn links(text: &str) -> Vec<String> {
    let link = regex::Regex::new(r"\]\(([^)\s]+)\)").expect("a pattern");
    let mut inside = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !fence && !inside
    });
    prose.flat_map(|line| link.captures_iter(line).map(|found| found[1].to_owned()).collect::<Vec<_>>()).collect()
}

#[test]
fn every_link_leads_to_a_file() {
    let mut wrong = Vec::new();
    for page in pages() {
        for link in links(&read(&page)) {
            let target = link.split('#').next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !page.parent().expect("a folder").join(target).exists() {
                wrong.push(format!("{}: {link}", page.strip_prefix(root()).unwrap_or(&page).display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links to nothing:\n{}", wrong.join("\n"));
}

#[test]
fn the_index_names_every_page_of_the_manual() {
    let index = links(&read(&root().join("docs/README.md")));
    let docs = root().join("docs");
    let missing: Vec<PathBuf> = pages()
        .into_iter()
        .filter_map(|page| page.strip_prefix(&docs).map(Path::to_path_buf).ok())
        .filter(|page| page.components().count() == 1 && page != Path::new("README.md"))
        .filter(|page| !index.iter().any(|link| Path::new(link) == page))
        .collect();
    assert!(missing.is_empty(), "docs/README.md does not name {missing:?}");
}

#[test]
fn every_example_is_a_project_without_a_mistake() {
    let examples = std::fs::read_dir(root().join("examples")).expect("there are examples").flatten();
    let projects: Vec<PathBuf> =
        examples.map(|entry| entry.path()).filter(|path| path.join("rollcall.yaml").is_file()).collect();
    assert!(projects.len() > 1, "{projects:?}");
    for project in projects {
        let settings = read(&project.join("rollcall.yaml"));
        // The one of the lab's fleet is run by the README's test, which has a fleet.
        if settings.contains("inventories/lab") {
            continue;
        }
        let playbook = if project.ends_with("nomad-secured") { "nomad.yaml" } else { "consul.yaml" };
        for words in [&["inventory", "--graph"][..], &["run", playbook, "--list-tasks"]] {
            let mut command = std::process::Command::new(program("controller"));
            run(command.args(words).current_dir(&project), std::time::Duration::from_mins(1)).ok();
        }
    }
}

#[test]
fn every_block_of_commands_says_where_it_runs() {
    for page in pages() {
        if let Err(wrong) = blocks(&read(&page)) {
            panic!("{}: {wrong}", page.display());
        }
    }
}

#[test]
fn blocks_are_found_with_their_places() {
    let page = "text\n```sh\na\nb\n```\n<!-- not run: real AWS -->\n\n```bash\nc\n```\n```yaml\nd\n```\n<!-- in make demo-shell -->\n````sh\n```\n````\n";
    let block = |line, place, text: &str| Block { line, place, text: text.to_owned() };
    assert_eq!(
        blocks(page).expect("it is right"),
        [
            block(2, Place::Machine, "a\nb\n"),
            block(8, Place::Nowhere("real AWS".to_owned()), "c\n"),
            block(15, Place::DemoShell, "```\n"),
        ]
    );
    // A comment counts for the block right after it only.
    let later = blocks("<!-- not run: x -->\n```sh\na\n```\n```sh\nb\n```\n").expect("it is right");
    assert_eq!(later[1].place, Place::Machine);
    assert_eq!(blocks("<!-- not run -->\n```sh\na\n```\n").expect_err("no reason").split(':').next(), Some("line 2"));
    assert!(blocks("```sh\na\n").expect_err("no end").contains("line 1"));
}
