//! `copy`: files and folders with given content.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    Content, Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan, TreeEntry,
    args::Mode,
    place::{self, Perms, Planner, Put, followed, planned},
};
use crate::{
    digest::sha256_hex,
    host::{FileKind, Read, atomic::explain},
};

/// Declares the arguments of a module that puts files: its own, and what they all have.
macro_rules! put_args {
    ($(#[$m:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $crate::args! {
            $(#[$m])*
            pub struct $name {
                $($own)*
                /// Permission bits, as "0644" or `u=rw,go=r`; `preserve` takes the source's.
                mode []: Option<$crate::modules::args::Mode>;
                /// Owner, a name or a number.
                owner []: Option<String>;
                /// Group, a name or a number.
                group []: Option<String>;
                /// Keep a copy of the file that was there, with the time in its name.
                backup []: bool = false;
                /// Replace what is there; without it only a missing file is made.
                force []: bool = true;
                /// Where a link stands, write to what it points to instead of replacing the link.
                follow []: bool = false;
                /// A command that checks the new file before it replaces the old one; `%s` stands for it. There is no shell.
                validate []: Option<String>;
                /// Whether differences keep the content to themselves. Without it: of files that not everybody may read. What a secret went
                /// into is never shown.
                confidential []: Option<bool>;
            }
        }
    };
}
pub(super) use put_args;

put_args! {
    /// Arguments of `copy`.
    pub struct Args {
        /// Where it goes. With a `/` at its end, or where a folder is, the file keeps its name in it.
        dest []: PathBuf, required;
        /// A file or folder from `files/` (with `remote_src`: of the host, absolute). Of a folder with a `/` at its end only what is
        /// in it is copied.
        src []: Option<String>;
        /// The content itself; maps and lists are written as JSON.
        content []: Option<Value>;
        /// `src` is on the host already.
        remote_src []: bool = false;
        /// Permission bits of folders that are made.
        directory_mode []: Option<Mode>;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "copy",
    aliases: &[],
    summary: "Puts files and folders in place, atomically",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::File,
    results: &[
        place::RESULTS,
        place::BACKUP,
        &[("src", "The source, as it was named."), ("checksum", "SHA-256 of the content that was put there.")],
    ],
    example: "- name: limits\n  copy:\n    content: \"fs.file-max = 100000\\n\"\n    dest: /etc/sysctl.d/60-limits.conf\n    mode: \"0644\"\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
    if args.src.is_some() == args.content.is_some() {
        return Err(Failure::new(match args.src {
            Some(_) => "arguments 'src' and 'content' exclude each other",
            None => "one of 'src' and 'content' is needed",
        }));
    }
    let perms = Perms { mode: args.mode.clone(), owner: args.owner.clone(), group: args.group.clone() };
    if args.content.is_some() {
        perms.refuse_preserve("'content' is none")?;
    }
    let folders = Perms { mode: args.directory_mode.clone(), ..perms.clone() };
    let into = call.args.get("dest").and_then(Value::as_str).is_some_and(|d| d.ends_with('/'));
    planned(cx, || {
        let planner = Planner::new(cx, call.diff);
        let job =
            Job { dest: &args.dest, into, force: args.force, follow: args.follow, perms: &perms, folders: &folders };
        let put = Put {
            validate: args.validate.clone(),
            backup: args.backup,
            confidential: args.confidential,
            ..Put::default()
        };
        if let Some(value) = &args.content {
            return inline(&job, &text(value), put, planner);
        }
        let src = args.src.as_deref().unwrap_or_default();
        let remote;
        let content = if args.remote_src {
            remote = from_host(src, &planner.host)?;
            &remote
        } else {
            call.content.as_ref().ok_or_else(|| Failure::new(format!("the content of '{src}' did not come along")))?
        };
        match content {
            Content::File { bytes, mode, secret } => {
                let put = Put { secret: *secret, source_mode: *mode, ..put };
                single(&job, src, bytes, put, planner)
            }
            Content::Tree(entries) => tree(&job, src, entries, &put, planner),
        }
    })
}

/// Where and how.
pub(super) struct Job<'a> {
    pub(super) dest: &'a Path,
    /// `dest` ends with `/`.
    pub(super) into: bool,
    pub(super) force: bool,
    pub(super) follow: bool,
    pub(super) perms: &'a Perms,
    /// Of folders that are made.
    pub(super) folders: &'a Perms,
}

fn text(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}

fn inline(job: &Job<'_>, content: &[u8], put: Put, planner: Planner<'_>) -> Result<Plan, Failure> {
    let found = planner.host.meta_follow(job.dest).map_err(|e| explain("look at", job.dest, &e))?;
    if job.into || found.is_some_and(|m| m.kind == FileKind::Directory) {
        return Err(Failure::new(format!("cannot write 'content' to {}: it is a folder", job.dest.display()))
            .hint("name the file in 'dest'"));
    }
    finish(job, job.dest.to_path_buf(), None, content, put, planner)
}

/// One file to `dest`, or into it where it is a folder.
pub(super) fn single(
    job: &Job<'_>,
    src: &str,
    bytes: &[u8],
    put: Put,
    mut planner: Planner<'_>,
) -> Result<Plan, Failure> {
    let found = planner.host.meta_follow(job.dest).map_err(|e| explain("look at", job.dest, &e))?;
    let mut path = job.dest.to_path_buf();
    if job.into || found.as_ref().is_some_and(|m| m.kind == FileKind::Directory) {
        if found.is_none() {
            planner.folder(job.dest, job.folders, 0o755)?;
        }
        let name = Path::new(src).file_name().ok_or_else(|| Failure::new(format!("'{src}' has no name to be kept")))?;
        path.push(name);
    }
    finish(job, path, Some(src), bytes, put, planner)
}

fn finish(
    job: &Job<'_>,
    path: PathBuf,
    src: Option<&str>,
    content: &[u8],
    put: Put,
    mut planner: Planner<'_>,
) -> Result<Plan, Failure> {
    let path = if job.follow { followed(&planner.host, &path)? } else { path };
    let mut outcome = Outcome::unchanged();
    if let Some(src) = src {
        outcome = outcome.with("src", src);
    }
    if job.force || planner.meta(&path)?.is_none() {
        planner.file(&path, content, job.perms, &put)?;
        outcome = outcome.with("checksum", sha256_hex(content));
    } else {
        outcome = outcome.msg(format!("{} exists, and force is off", path.display()));
    }
    let outcome = planner.results(outcome, &path)?;
    Ok(planner.finish(outcome))
}

/// A folder: itself with its name, or what is in it where `src` ends with `/`.
fn tree(job: &Job<'_>, src: &str, entries: &[TreeEntry], put: &Put, mut planner: Planner<'_>) -> Result<Plan, Failure> {
    if put.validate.is_some() {
        return Err(Failure::new("argument 'validate' goes with a file, and the source is a folder"));
    }
    let mut top = job.dest.to_path_buf();
    if !src.ends_with('/') {
        top.push(Path::new(src).file_name().ok_or_else(|| Failure::new(format!("'{src}' has no name to be kept")))?);
    }
    // Folders that exist keep their owner and mode, unless 'directory_mode' asks for one.
    let owned = Perms { mode: job.folders.mode.clone(), ..job.perms.clone() };
    planner.folder(&top, &owned, 0o755)?;
    for entry in entries {
        if entry.path.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(Failure::new(format!("the source holds an unusable path: {}", entry.path.display())));
        }
        let path = top.join(&entry.path);
        match &entry.bytes {
            None => planner.folder(&path, &owned, entry.mode)?,
            Some(bytes) => {
                let path = if job.follow { followed(&planner.host, &path)? } else { path };
                if job.force || planner.meta(&path)?.is_none() {
                    let put = Put { source_mode: entry.mode, ..put.clone() };
                    planner.file(&path, &bytes.0, job.perms, &put)?;
                }
            }
        }
    }
    let outcome = planner.results(Outcome::unchanged().with("src", src), &top)?;
    Ok(planner.finish(outcome))
}

/// The content of a file or folder of the host itself.
fn from_host(src: &str, host: &dyn Read) -> Result<Content, Failure> {
    let path = Path::new(src);
    if !path.is_absolute() {
        return Err(Failure::new(format!("argument 'src': with remote_src expected an absolute path, found '{src}'")));
    }
    let meta = host.meta_follow(path).map_err(|e| explain("look at", path, &e))?;
    let Some(meta) = meta else {
        return Err(Failure::new(format!("cannot copy {src}: it does not exist on the host")));
    };
    match meta.kind {
        FileKind::Directory => {
            let mut entries = Vec::new();
            gather(path, Path::new(""), host, &mut entries)?;
            Ok(Content::Tree(entries))
        }
        FileKind::File => {
            let bytes = host.read(path).map_err(|e| explain("read", path, &e))?;
            Ok(Content::File { bytes, mode: meta.mode, secret: meta.mode & 0o004 == 0 })
        }
        _ => Err(Failure::new(format!("cannot copy {src}: it is neither a file nor a folder"))),
    }
}

/// Links in the folder are copied as what they point to.
fn gather(top: &Path, relative: &Path, host: &dyn Read, out: &mut Vec<TreeEntry>) -> Result<(), Failure> {
    let folder = top.join(relative);
    for name in host.list(&folder).map_err(|e| explain("list", &folder, &e))? {
        let (path, below) = (folder.join(&name), relative.join(&name));
        let meta = host.meta_follow(&path).map_err(|e| explain("look at", &path, &e))?;
        match meta.as_ref().map(|m| (m.kind, m.mode)) {
            Some((FileKind::Directory, mode)) => {
                out.push(TreeEntry { path: below.clone(), mode, bytes: None });
                gather(top, &below, host, out)?;
            }
            Some((FileKind::File, mode)) => {
                let bytes = host.read(&path).map_err(|e| explain("read", &path, &e))?;
                out.push(TreeEntry { path: below, mode, bytes: Some(super::Base64(bytes)) });
            }
            _ => {
                return Err(Failure::new(format!("cannot copy {}: it is neither a file nor a folder", path.display())));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use serde_json::json;

    use super::{super::place::testing, *};

    fn file(bytes: &[u8]) -> Content {
        Content::File { bytes: bytes.to_vec(), mode: 0o750, secret: false }
    }

    fn twice(args: Value, content: Option<Content>) -> (Outcome, Vec<super::super::Diff>) {
        testing::run_twice(&DEFINITION, &testing::call(&DEFINITION, args, content))
    }

    fn fails(args: Value, content: Option<Content>) -> Failure {
        testing::run(&DEFINITION, &testing::call(&DEFINITION, args, content)).unwrap_err()
    }

    #[test]
    fn content_is_written_with_diff_and_backup() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("a.conf");
        let (outcome, diffs) = twice(json!({"content": "one\n", "dest": dest, "mode": "0644"}), None);
        assert!(outcome.changed);
        assert_eq!(outcome.data["checksum"], sha256_hex(b"one\n"));
        assert_eq!((diffs[0].before.as_str(), diffs[0].after.as_str()), ("", "one\n"));
        let (outcome, diffs) = twice(json!({"content": "two\n", "dest": dest, "backup": true}), None);
        assert_eq!((diffs[0].before.as_str(), diffs[0].after.as_str()), ("one\n", "two\n"));
        let backup = outcome.data["backup_file"].as_str().unwrap();
        assert_eq!(fs::read_to_string(backup).unwrap(), "one\n");
        let (outcome, _) = twice(json!({"content": "three\n", "dest": dest, "force": false}), None);
        assert!(!outcome.changed && outcome.msg.unwrap().contains("force is off"));
        twice(json!({"content": {"a": [1, "é"]}, "dest": dest}), None);
        assert_eq!(fs::read_to_string(&dest).unwrap(), "{\"a\":[1,\"é\"]}");
        let shell = "$(touch x); `id` 'q' \"d\" \u{1F600}\0 end";
        twice(json!({"content": shell, "dest": dest}), None);
        assert_eq!(fs::read(&dest).unwrap(), shell.as_bytes());
        twice(json!({"content": "x".repeat(1 << 20), "dest": dest}), None);
        assert_eq!(fs::metadata(&dest).unwrap().len(), 1 << 20);
    }

    #[test]
    fn closed_files_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("key");
        let (_, diffs) = twice(json!({"content": "secret-a\nkeep\n", "dest": dest, "mode": "0600"}), None);
        assert_eq!((diffs[0].hidden, diffs[0].after.as_str()), (true, "content hidden (2 lines changed)\n"));
        // Opening it does not show what was hidden.
        let (_, diffs) = twice(json!({"content": "secret-b\nkeep\n", "dest": dest, "mode": "0644"}), None);
        assert_eq!((diffs[0].hidden, diffs[0].after.as_str()), (true, "content hidden (1 lines changed)\n"));
        assert_eq!(diffs[1].after, "mode: 0644\n");
        let limits = folder.path().join("limits");
        let args = json!({"content": "open\n", "dest": limits, "mode": "0640", "confidential": false});
        let (_, diffs) = twice(args, None);
        assert_eq!((diffs[0].hidden, diffs[0].after.as_str()), (false, "open\n"));
        let (_, diffs) = twice(
            json!({"content": "x\n", "dest": folder.path().join("c"), "mode": "0644", "confidential": true}),
            None,
        );
        assert!(diffs[0].hidden);
        let open = Some(Content::File { bytes: b"x".to_vec(), mode: 0o644, secret: true });
        let (_, diffs) = twice(json!({"src": "key", "dest": folder.path().join("open"), "mode": "0644"}), open);
        assert!(diffs[0].hidden && !format!("{diffs:?}").contains("\"x\""));
    }

    #[test]
    fn sources_go_to_files_and_into_folders() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        twice(json!({"src": "conf/run.sh", "dest": folder.path(), "mode": "preserve"}), Some(file(b"#!")));
        assert_eq!(fs::metadata(at("run.sh")).unwrap().permissions().mode() & 0o777, 0o750);
        twice(
            json!({"src": "run.sh", "dest": format!("{}/", at("new").display()), "directory_mode": "0700"}),
            Some(file(b"#!")),
        );
        assert_eq!(fs::read(at("new/run.sh")).unwrap(), b"#!");
        assert_eq!(fs::metadata(at("new")).unwrap().permissions().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink("run.sh", at("link")).unwrap();
        let (_, diffs) = twice(json!({"src": "run.sh", "dest": at("link")}), Some(file(b"other")));
        assert!(fs::symlink_metadata(at("link")).unwrap().is_file());
        assert_eq!((fs::read(at("run.sh")).unwrap(), diffs[0].before.as_str()), (b"#!".to_vec(), "link to run.sh\n"));
        std::os::unix::fs::symlink("run.sh", at("link2")).unwrap();
        twice(json!({"src": "run.sh", "dest": at("link2"), "follow": true}), Some(file(b"through")));
        assert_eq!(fs::read(at("run.sh")).unwrap(), b"through");
        twice(json!({"src": at("run.sh"), "dest": at("copy"), "remote_src": true}), None);
        assert_eq!(fs::read(at("copy")).unwrap(), b"through");
        twice(json!({"src": at("new"), "dest": at("tree"), "remote_src": true}), None);
        assert_eq!(fs::read(at("tree/new/run.sh")).unwrap(), b"#!");
    }

    #[test]
    fn folders_are_copied_with_and_without_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let content = || {
            let bytes = |b: &[u8]| Some(super::super::Base64(b.to_vec()));
            Some(Content::Tree(vec![
                TreeEntry { path: "d".into(), mode: 0o755, bytes: None },
                TreeEntry { path: "d/f".into(), mode: 0o640, bytes: bytes(b"1") },
                TreeEntry { path: "g".into(), mode: 0o644, bytes: bytes(b"2") },
            ]))
        };
        twice(json!({"src": "conf", "dest": folder.path()}), content());
        assert_eq!(fs::read(folder.path().join("conf/d/f")).unwrap(), b"1");
        let (outcome, diffs) =
            twice(json!({"src": "conf/", "dest": folder.path().join("x"), "mode": "preserve"}), content());
        assert!(outcome.changed && diffs.len() == 4, "{diffs:?}");
        assert_eq!(fs::metadata(folder.path().join("x/d/f")).unwrap().permissions().mode() & 0o777, 0o640);
        let evil = Some(Content::Tree(vec![TreeEntry { path: "../x".into(), mode: 0o644, bytes: None }]));
        assert!(fails(json!({"src": "conf/", "dest": folder.path()}), evil).message.contains("unusable path"));
    }

    #[test]
    fn bad_calls_are_refused_and_nothing_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("a");
        assert!(fails(json!({"dest": dest}), None).message.contains("one of"));
        assert!(fails(json!({"dest": dest, "src": "a", "content": "b"}), None).message.contains("exclude"));
        assert!(fails(json!({"dest": folder.path(), "content": "b"}), None).message.contains("it is a folder"));
        assert!(
            fails(json!({"dest": folder.path().join("no/a"), "content": "b"}), None).message.contains("does not exist")
        );
        assert!(fails(json!({"dest": dest, "content": "b", "mode": "preserve"}), None).message.contains("preserve"));
        assert!(
            fails(json!({"dest": dest, "content": "b", "owner": "no-such-user-x"}), None)
                .message
                .contains("does not exist")
        );
        assert!(
            fails(json!({"dest": dest, "src": "/no/such", "remote_src": true}), None)
                .message
                .contains("does not exist on the host")
        );
        assert!(fails(json!({"dest": dest, "contnt": "b"}), None).hint.unwrap().contains("content"));
        assert!(
            fails(json!({"dest": dest, "content": "b", "validate": "false %s"}), None)
                .message
                .contains("validation of the new")
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
