//! Which file is what, and in which order files are read.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    Options, SourceSpec, aws_ec2,
    model::{ALL, Builder},
    static_yaml,
    vars_files::{Beside, VarsDirSpec},
};
use crate::{
    diag::{Diagnostic, Diagnostics, FileId, Span},
    node::{Kind, Node},
    yaml,
};

const IGNORED_NAMES: [&str; 3] = ["group_vars", "host_vars", "vars_plugins"];
const IGNORED_ENDS: [&str; 12] =
    [".pyc", ".pyo", ".swp", ".bak", "~", ".rpm", ".md", ".txt", ".rst", ".orig", ".cfg", ".retry"];
const MAX_DEPTH: usize = 16;

/// What is to be added, in order.
enum Step {
    Hosts(String),
    Static(PathBuf, Node),
    Ec2(PathBuf, Box<aws_ec2::Config>),
}

/// Reads all sources into the builder. Clouds are asked in parallel, and answers are applied in order.
pub(super) async fn read_all(
    specs: &[SourceSpec],
    options: &Options,
    builder: &mut Builder,
) -> Result<(), Diagnostics> {
    let mut steps = Vec::new();
    for spec in specs {
        match spec {
            SourceSpec::Hosts(text) => steps.push(Step::Hosts(text.clone())),
            SourceSpec::Path(path) => collect(path, 0, options, &mut steps, &mut builder.diagnostics),
        }
    }
    if builder.diagnostics.has_errors() {
        return Ok(());
    }
    let configs = steps.iter().filter_map(|step| match step {
        Step::Ec2(path, config) => Some((path.as_path(), config.as_ref())),
        _ => None,
    });
    let mut answers = aws_ec2::ask_all(configs, options, builder).await?.into_iter();
    for step in steps {
        match step {
            Step::Hosts(text) => host_list(&text, builder),
            Step::Static(path, node) => {
                builder.start_source(Some(path));
                static_yaml::load(&node, builder);
            }
            Step::Ec2(path, config) => {
                builder.start_source(Some(path));
                if let Some(answer) = answers.next() {
                    aws_ec2::add(&config, answer, options, builder);
                }
            }
        }
    }
    Ok(())
}

/// Folders whose `group_vars/` and `host_vars/` count, in order, each once.
pub(super) fn vars_dirs(specs: &[SourceSpec], options: &Options) -> Vec<VarsDirSpec> {
    let mut dirs: Vec<VarsDirSpec> = Vec::new();
    let mut add = |path: PathBuf, beside| {
        let spec = VarsDirSpec { path, beside };
        if !dirs.contains(&spec) {
            dirs.push(spec);
        }
    };
    for spec in specs {
        if let SourceSpec::Path(path) = spec {
            let dir = if path.is_dir() { path.clone() } else { path.parent().unwrap_or(Path::new("")).to_path_buf() };
            add(dir, Beside::Inventory);
        }
    }
    for dir in &options.playbook_dirs {
        add(dir.clone(), Beside::Playbook);
    }
    dirs
}

fn host_list(text: &str, builder: &mut Builder) {
    builder.start_source(None);
    let group = builder.add_group(ALL);
    let span = Span { file: builder.sources.add("-i", text), line: 1, column: 1 };
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match static_yaml::host_names(item, span) {
            Ok(names) => {
                for (name, port) in names {
                    let host = builder.add_host(&name, group);
                    if let Some(port) = port {
                        let node = Node { span, kind: Kind::Int(i64::from(port)) };
                        builder.set_host_var(
                            host,
                            "ansible_port",
                            crate::vars::Var::raw(node, crate::vars::Layer::InventoryHost),
                        );
                    }
                }
            }
            Err(e) => builder.diagnostics.push(e),
        }
    }
}

fn collect(path: &Path, depth: usize, options: &Options, steps: &mut Vec<Step>, out: &mut Diagnostics) {
    if depth > MAX_DEPTH {
        out.push(Diagnostic::error(Span::NONE, format!("{} nests more than {MAX_DEPTH} folders", path.display())));
        return;
    }
    if !path.exists() {
        out.push(missing(path));
        return;
    }
    if !path.is_dir() {
        match file(path, options, out) {
            Ok(Some(step)) => steps.push(step),
            Ok(None) => {}
            Err(e) => out.push(e),
        }
        return;
    }
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) => {
            out.push(Diagnostic::error(Span::NONE, format!("cannot read the folder {}: {e}", path.display())));
            return;
        }
    };
    let mut names: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    names.sort();
    names.retain(|p| !p.file_name().and_then(|n| n.to_str()).is_none_or(is_ignored));
    if names.is_empty() {
        out.push(
            Diagnostic::error(Span::NONE, format!("the inventory folder {} holds no inventory", path.display()))
                .hint("put a hosts.yaml or an aws_ec2.yaml into it"),
        );
    }
    for entry in names {
        collect(&entry, depth + 1, options, steps, out);
    }
}

fn is_ignored(name: &str) -> bool {
    name.starts_with('.') || IGNORED_NAMES.contains(&name) || IGNORED_ENDS.iter().any(|end| name.ends_with(end))
}

fn missing(path: &Path) -> Diagnostic {
    let error = Diagnostic::error(Span::NONE, format!("there is no inventory {}", path.display()));
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.filter_map(Result::ok).filter_map(|e| e.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    match crate::diag::nearest(name, names.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean '{}'?", path.with_file_name(near).display())),
        None => error.hint("a host itself is given with a comma: -i web-1,"),
    }
}

/// Recognises one file.
fn file(path: &Path, options: &Options, out: &mut Diagnostics) -> Result<Option<Step>, Diagnostic> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let is_yaml = matches!(extension, "yml" | "yaml" | "json");
    let id = options.sources.read(path)?;
    let text = options.sources.get(id).map(|s| s.text.clone()).unwrap_or_default();
    if text.starts_with("#!") || (!is_yaml && is_executable(path)) {
        return Err(convert(path, id, "inventory scripts are not read"));
    }
    if matches!(extension, "ini" | "toml") || (!is_yaml && looks_like_ini(&text)) {
        return Err(convert(path, id, "INI inventories are not read"));
    }
    let node = yaml::parse(&options.sources, id)?;
    let named_ec2 = path
        .file_name()
        .and_then(|n| n.to_str())
        .is_some_and(|n| n.ends_with("aws_ec2.yml") || n.ends_with("aws_ec2.yaml"));
    match node.get("plugin") {
        Some(plugin) => match plugin.as_str() {
            Some("aws_ec2" | "amazon.aws.aws_ec2") => {}
            Some(other) => {
                let error = convert(path, id, &format!("the inventory plugin '{other}' is not known"));
                let error = Diagnostic { span: plugin.span, ..error };
                return Err(match crate::diag::nearest(other, ["aws_ec2", "amazon.aws.aws_ec2"]) {
                    Some(near) => error.hint(format!("did you mean '{near}'?")),
                    None => error,
                });
            }
            None => return Err(plugin.expected("the name of a plugin, like aws_ec2")),
        },
        None if named_ec2 => {}
        None => return Ok(Some(Step::Static(path.to_path_buf(), node))),
    }
    let scope = crate::vars::Scope::of(options.extra.clone()).with_lookups(super::host_vars::lookups());
    match aws_ec2::Config::read(&node, &scope) {
        Ok((config, warnings)) => {
            out.0.extend(warnings);
            Ok(Some(Step::Ec2(path.to_path_buf(), Box::new(config))))
        }
        Err(errors) => {
            out.0.extend(errors.0);
            Ok(None)
        }
    }
}

fn convert(path: &Path, id: FileId, message: &str) -> Diagnostic {
    let target = path.with_extension("yaml");
    let target = if target == path { path.with_extension("converted.yaml") } else { target };
    Diagnostic::error(Span::whole(id), message.to_owned()).hint(format!(
        "convert it: ansible-inventory -i {} --list --yaml > {}",
        path.display(),
        target.display()
    ))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The first line that says something is a `[section]`, or `host key=value`, or a bare word.
fn looks_like_ini(text: &str) -> bool {
    let first = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with(['#', ';']) && *l != "---");
    first.is_some_and(|line| {
        (line.starts_with('[') && line.ends_with(']'))
            || line.split_whitespace().nth(1).is_some_and(|word| word.contains('=') && !line.contains(": "))
            || (!line.contains(':') && !line.starts_with(['{', '-', '%', '"', '\'']))
    })
}
