//! `file`: files, folders, links and their attributes.

use std::path::{Path, PathBuf};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    args::Mode,
    place::{self, Perms, Planner, Put, followed, planned},
};
use crate::{
    args, choice,
    host::{FileKind, Read as _, atomic::explain},
};

choice!(
    /// What is to stand at the path.
    State { File = "file", Directory = "directory", Link = "link", Hard = "hard", Touch = "touch", Absent = "absent" }
);

choice!(
    /// What becomes of a time.
    Times { Preserve = "preserve", Now = "now" }
);

args! {
    /// Arguments of `file`.
    pub struct Args {
        /// What this is about.
        path ["dest", "name"]: PathBuf, required;
        /// `file` only checks and sets attributes; `directory` makes it with its parents; `touch` makes an empty file or sets
        /// the times; `link` and `hard` make links to `src`; `absent` removes, folders with all that is in them.
        /// The default is what stands there.
        state []: Option<State>;
        /// Where a link points. A relative one counts from the link's folder.
        src []: Option<String>;
        /// Permission bits, as "0644" or `u=rw,go=r`.
        mode []: Option<Mode>;
        /// Owner, a name or a number.
        owner []: Option<String>;
        /// Group, a name or a number.
        group []: Option<String>;
        /// Set the attributes on everything in the folder too.
        recurse []: bool = false;
        /// Make a link whose target does not exist, or in place of a file or an empty folder.
        force []: bool = false;
        /// Where a link stands, set the attributes of what it points to.
        follow []: bool = true;
        /// For `touch`: keep the modification time of a file that exists.
        modification_time []: Times = Times::Now;
        /// For `touch`: keep the access time of a file that exists.
        access_time []: Times = Times::Now;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "file",
    aliases: &[],
    summary: "Makes and removes files, folders and links, and sets their owner and mode",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[place::RESULTS, &[("src", "What a link points to.")]],
    example: "- name: data folder\n  file:\n    path: /opt/consul\n    state: directory\n    owner: consul\n    mode: \"0750\"\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
    let perms = Perms { mode: args.mode.clone(), owner: args.owner.clone(), group: args.group.clone() };
    perms.refuse_preserve("'file' has none")?;
    let link = matches!(args.state, Some(State::Link | State::Hard));
    if link && args.src.is_none() {
        return Err(Failure::new("argument 'src' is missing: it says where the link points"));
    }
    if !link && args.src.is_some() {
        return Err(Failure::new("argument 'src' goes with state: link or state: hard only"));
    }
    if args.recurse && !matches!(args.state, Some(State::Directory)) {
        return Err(Failure::new("argument 'recurse' goes with state: directory only"));
    }
    planned(cx, || {
        let mut planner = Planner::new(cx, call.diff);
        apply(&args, &perms, &mut planner)?;
        let mut outcome = planner.results(Outcome::unchanged(), &args.path)?;
        if let Some(src) = args.src.as_deref() {
            outcome = outcome.with("src", src);
        }
        Ok(planner.finish(outcome))
    })
}

fn apply(args: &Args, perms: &Perms, planner: &mut Planner<'_>) -> Result<(), Failure> {
    let path = args.path.as_path();
    let current = planner.meta(path)?;
    let state = args.state.unwrap_or(match current.as_ref().map(|m| m.kind) {
        Some(FileKind::Directory) => State::Directory,
        _ => State::File,
    });
    match state {
        State::Absent => planner.remove(path),
        State::Directory => {
            planner.folder(path, perms, 0)?;
            if args.recurse { recurse(&followed(&planner.host, path)?, perms, planner) } else { Ok(()) }
        }
        State::File => {
            let Some(current) = current else {
                return Err(Failure::new(format!("{} does not exist", path.display()))
                    .hint("state: file only sets attributes; make the file with copy, template or state: touch"));
            };
            if args.state.is_some() && current.kind == FileKind::Directory {
                return Err(
                    Failure::new(format!("{} is a folder, not a file", path.display())).hint("use state: directory")
                );
            }
            attrs(args, perms, planner)
        }
        State::Touch => touch(args, perms, planner, current.is_some()),
        State::Link => symlink(args, perms, planner),
        State::Hard => hard_link(args, perms, planner),
    }
}

/// Sets the attributes of the path, or of what it points to.
fn attrs(args: &Args, perms: &Perms, planner: &mut Planner<'_>) -> Result<(), Failure> {
    let at = if args.follow { followed(&planner.host, &args.path)? } else { args.path.clone() };
    match planner.meta(&at)? {
        Some(meta) => planner.attrs(&at, &perms.attrs(Some(&meta), 0, meta.kind == FileKind::Directory)),
        // A link whose target does not exist has an owner, and no mode of its own.
        None => {
            let perms = Perms { mode: None, ..perms.clone() };
            let meta = planner.meta(&args.path)?;
            planner.attrs(&args.path, &perms.attrs(meta.as_ref(), 0, false))
        }
    }
}

fn recurse(folder: &Path, perms: &Perms, planner: &mut Planner<'_>) -> Result<(), Failure> {
    for name in planner.host.list(folder).map_err(|e| explain("list", folder, &e))? {
        let path = folder.join(name);
        let Some(meta) = planner.meta(&path)? else { continue };
        let directory = meta.kind == FileKind::Directory;
        planner.attrs(&path, &perms.attrs(Some(&meta), 0, directory))?;
        if directory {
            recurse(&path, perms, planner)?;
        }
    }
    Ok(())
}

fn touch(args: &Args, perms: &Perms, planner: &mut Planner<'_>, exists: bool) -> Result<(), Failure> {
    if !exists {
        return planner.file(&args.path, b"", perms, &Put::default());
    }
    attrs(args, perms, planner)?;
    if args.modification_time == Times::Preserve && args.access_time == Times::Preserve {
        return Ok(());
    }
    let at = if args.follow { followed(&planner.host, &args.path)? } else { args.path.clone() };
    planner.touch(&at)
}

fn symlink(args: &Args, perms: &Perms, planner: &mut Planner<'_>) -> Result<(), Failure> {
    let (path, target) = (args.path.as_path(), PathBuf::from(args.src.as_deref().unwrap_or_default()));
    let source = path.parent().unwrap_or(Path::new("/")).join(&target);
    let found = planner.host.meta_follow(&source).map_err(|e| explain("look at", &source, &e))?;
    if found.is_none() && !args.force {
        return Err(Failure::new(format!(
            "cannot link {}: its target {} does not exist",
            path.display(),
            source.display()
        ))
        .hint("force: true makes the link all the same"));
    }
    match planner.meta(path)?.map(|m| m.kind) {
        Some(FileKind::Symlink) => {
            let old = planner.host.read_link(path).map_err(|e| explain("read", path, &e))?;
            if old != target {
                planner.symlink(&target, path)?;
            }
        }
        Some(kind) => {
            make_room(args, kind, planner)?;
            planner.symlink(&target, path)?;
        }
        None => planner.symlink(&target, path)?,
    }
    attrs(args, perms, planner)
}

/// A file gives way to a link only with `force`; a folder only where it is empty, too.
fn make_room(args: &Args, kind: FileKind, planner: &mut Planner<'_>) -> Result<(), Failure> {
    let path = args.path.as_path();
    let what = if kind == FileKind::Directory { "a folder" } else { "a file" };
    if !args.force {
        return Err(
            Failure::new(format!("cannot link {}: {what} is there", path.display())).hint("force: true replaces it")
        );
    }
    if kind == FileKind::Directory {
        if !planner.host.list(path).map_err(|e| explain("list", path, &e))?.is_empty() {
            return Err(Failure::new(format!(
                "cannot link {}: a folder is there, and it is not empty",
                path.display()
            ))
            .hint("remove it by an earlier task with state: absent"));
        }
        planner.remove(path)?;
    }
    Ok(())
}

fn hard_link(args: &Args, perms: &Perms, planner: &mut Planner<'_>) -> Result<(), Failure> {
    let (path, source) = (args.path.as_path(), PathBuf::from(args.src.as_deref().unwrap_or_default()));
    if !source.is_absolute() {
        return Err(Failure::new(format!("argument 'src': expected an absolute path, found '{}'", source.display())));
    }
    let Some(target) = planner.meta(&source)? else {
        return Err(Failure::new(format!("cannot link {}: {} does not exist", path.display(), source.display())));
    };
    if target.kind == FileKind::Directory {
        return Err(Failure::new(format!("cannot link {}: {} is a folder", path.display(), source.display()))
            .hint("use state: link"));
    }
    match planner.meta(path)? {
        Some(meta) if meta.identity == target.identity => {}
        Some(meta) => {
            make_room(args, meta.kind, planner)?;
            planner.hard_link(&source, path)?;
        }
        None => planner.hard_link(&source, path)?,
    }
    attrs(args, perms, planner)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use serde_json::{Value, json};

    use super::{super::place::testing, *};

    fn twice(args: Value) -> Outcome {
        testing::run_twice(&DEFINITION, &testing::call(&DEFINITION, args, None)).0
    }

    fn fails(args: Value) -> Failure {
        testing::run(&DEFINITION, &testing::call(&DEFINITION, args, None)).unwrap_err()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn folders_are_made_with_parents_and_attributes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let outcome = twice(json!({"path": path, "state": "directory", "mode": "0750"}));
        assert!(outcome.changed);
        assert_eq!((outcome.data["state"].as_str(), outcome.data["mode"].as_str()), (Some("directory"), Some("0750")));
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o750, 0o750));
        fs::write(path.join("f"), "").unwrap();
        fs::create_dir(path.join("d")).unwrap();
        twice(json!({"path": path, "state": "directory", "mode": "u=rwX,go=", "recurse": true}));
        assert_eq!((mode(&path.join("f")), mode(&path.join("d")), mode(&path)), (0o600, 0o700, 0o700));
        assert!(fails(json!({"path": path.join("f"), "state": "directory"})).message.contains("a file is there"));
        assert!(fails(json!({"path": path.join("f/x"), "state": "directory"})).message.contains("is not a folder"));
        // The state is the one that is there where none is given.
        assert!(twice(json!({"path": path, "mode": "0711"})).changed);
        assert_eq!(mode(&path), 0o711);
    }

    #[test]
    fn touch_file_and_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        assert!(fails(json!({"path": path, "state": "file"})).hint.unwrap().contains("touch"));
        let touch = json!({"path": path, "state": "touch", "mode": "0600"});
        let again = |args: &Value| testing::run(&DEFINITION, &testing::call(&DEFINITION, args.clone(), None)).unwrap();
        assert!(again(&touch).0.changed);
        assert_eq!(mode(&path), 0o600);
        assert!(again(&touch).0.changed, "a touch always changes the times");
        let keep = json!({"path": path, "state": "touch", "modification_time": "preserve", "access_time": "preserve"});
        assert!(!again(&keep).0.changed);
        let (outcome, diffs) = again(&json!({"path": path, "state": "file", "mode": "g+r"}));
        assert!(outcome.changed);
        assert_eq!((diffs[0].before.as_str(), diffs[0].after.as_str()), ("mode: 0600\n", "mode: 0640\n"));
        assert!(fails(json!({"path": folder.path(), "state": "file"})).message.contains("is a folder"));
        assert_eq!(twice(json!({"path": path, "state": "absent"})).data["state"], "absent");
        fs::create_dir_all(folder.path().join("d/e")).unwrap();
        assert!(twice(json!({"path": folder.path().join("d"), "state": "absent"})).changed);
        assert!(!folder.path().join("d").exists());
    }

    #[test]
    fn links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "").unwrap();
        fs::write(at("b"), "").unwrap();
        assert!(twice(json!({"path": at("l"), "src": "a", "state": "link"})).changed);
        assert!(twice(json!({"path": at("l"), "src": at("b"), "state": "link"})).changed);
        assert_eq!(fs::read_link(at("l")).unwrap(), at("b"));
        assert!(fails(json!({"path": at("l"), "src": "none", "state": "link"})).hint.unwrap().contains("force"));
        assert!(twice(json!({"path": at("l"), "src": "none", "state": "link", "force": true})).changed);
        assert!(fails(json!({"path": at("a"), "src": "b", "state": "link"})).message.contains("a file is there"));
        assert!(twice(json!({"path": at("a"), "src": "b", "state": "link", "force": true})).changed);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/x"), "").unwrap();
        assert!(
            fails(json!({"path": at("d"), "src": "b", "state": "link", "force": true})).message.contains("not empty")
        );
        assert!(twice(json!({"path": at("h"), "src": at("b"), "state": "hard"})).changed);
        assert!(fails(json!({"path": at("d/x"), "src": at("b"), "state": "hard"})).message.contains("a file is there"));
        assert!(fails(json!({"path": at("x"), "state": "link"})).message.contains("'src' is missing"));
        assert!(fails(json!({"path": at("x"), "src": "a", "state": "file"})).message.contains("goes with"));
    }

    #[test]
    fn uncertain_checks_do_not_fail() {
        use crate::host::{overlay::Overlay, real::Real};
        let (base, facts) = (Real::new(), json!({}));
        let mut overlay = Overlay::new(&base);
        overlay.mark_uncertain();
        let call = testing::call(&DEFINITION, json!({"path": "/no/such/file", "state": "file"}), None);
        let Plan::Change(change) =
            plan(&call, &Cx { host: &overlay, facts: &facts, secrets: crate::secrets::grants::nobody() }).unwrap()
        else {
            panic!()
        };
        assert!(change.apply(&mut overlay).unwrap().unknown);
    }
}
