//! `stat`: what stands at a path.

use std::{
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use md5::Md5;
use serde_json::{Map, Value};
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    place::{followed, ids, planned, unforeseen},
    steps::hinted,
};
use crate::{
    args, choice,
    digest::hex,
    host::{Access, Details, FileKind, Meta, Read, atomic::explain},
};

choice!(
    /// A checksum.
    Algorithm {
        Sha256 = "sha256", Md5 = "md5", Sha1 = "sha1", Sha224 = "sha224", Sha384 = "sha384", Sha512 = "sha512",
    }
);

args! {
    /// Arguments of `stat`.
    pub struct Args {
        /// The path.
        path ["dest", "name"]: PathBuf, required;
        /// Look at what a link points to.
        follow []: bool = false;
        /// Compute the checksum of a file's content.
        get_checksum []: bool = true;
        /// Which checksum.
        checksum_algorithm ["checksum", "checksum_algo"]: Algorithm = Algorithm::Sha256;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "stat",
    aliases: &[],
    summary: "Looks at a path and says what stands there",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("stat", "What stands there: the keys below."),
        ("stat.exists", "Something stands there; without it this is the only key."),
        ("stat.path", "The path that was asked for."),
        ("stat.isreg", "A file."),
        ("stat.isdir", "A folder."),
        ("stat.islnk", "A link; never with `follow`."),
        ("stat.isblk", "A block device."),
        ("stat.ischr", "A character device."),
        ("stat.isfifo", "A named pipe."),
        ("stat.issock", "A socket."),
        ("stat.mode", "Permission bits, as \"0644\"."),
        ("stat.size", "Bytes."),
        ("stat.uid", "Number of the owner; null in check mode for one that is only planned."),
        ("stat.gid", "Number of the group; likewise."),
        ("stat.pw_name", "Name of the owner, or the number of one without a name."),
        ("stat.gr_name", "Name of the group, or the number of one without a name."),
        ("stat.mtime", "Last change of the content, in seconds since 1970."),
        ("stat.atime", "Last access."),
        ("stat.ctime", "Last change of content or attributes."),
        ("stat.nlink", "Hard links."),
        ("stat.inode", "Number in its file system."),
        ("stat.dev", "Number of its file system."),
        ("stat.device_type", "Of a device: its number; 0 for what is none."),
        ("stat.blocks", "Blocks of 512 bytes that it takes."),
        ("stat.block_size", "The size, in bytes, that suits reading and writing."),
        ("stat.isuid", "The set-user-id bit is set."),
        ("stat.isgid", "The set-group-id bit is set."),
        ("stat.rusr", "The owner may read."),
        ("stat.wusr", "The owner may write."),
        ("stat.xusr", "The owner may execute."),
        ("stat.rgrp", "The group may read."),
        ("stat.wgrp", "The group may write."),
        ("stat.xgrp", "The group may execute."),
        ("stat.roth", "All others may read."),
        ("stat.woth", "All others may write."),
        ("stat.xoth", "All others may execute."),
        ("stat.readable", "The user as whom the task runs may read it."),
        ("stat.writeable", "This user may write it."),
        ("stat.executable", "This user may execute it; of a folder: enter it."),
        ("stat.checksum", "Checksum of a file, unless `get_checksum` is off."),
        ("stat.lnk_target", "Of a link: what it says."),
        ("stat.lnk_source", "Of a link: the path at the end of the chain."),
    ]],
    example: "- name: is it there\n  stat:\n    path: /usr/local/bin/consul\n  register: binary\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let other = "no result comes of it: leave it out, or ask by a command (lsattr, file)";
    let args = hinted(Args::parse(&call.args), &[("get_attributes", other), ("get_mime", other)])?;
    planned(cx, || {
        let look = |e| explain("look at", &args.path, &e);
        let meta =
            if args.follow { cx.host.meta_follow(&args.path) } else { cx.host.meta(&args.path) }.map_err(look)?;
        let Some(meta) = meta else {
            if cx.host.is_uncertain() {
                return Ok(unforeseen(format!("{} may be made by an earlier task", args.path.display())));
            }
            return Ok(Plan::Unchanged(result(Map::from_iter([("exists".to_owned(), Value::Bool(false))]))));
        };
        let at = if args.follow { followed(cx.host, &args.path)? } else { args.path.clone() };
        let more = cx.host.details(&at).map_err(look)?.unwrap_or_else(|| planned_details(&meta));
        let mut stat = describe(&args.path, &meta, cx.host)?;
        describe_more(&more, &mut stat);
        if meta.kind == FileKind::File && args.get_checksum {
            match cx.host.read(&args.path) {
                Ok(bytes) => drop(stat.insert("checksum".into(), checksum(args.checksum_algorithm, &bytes).into())),
                Err(_) if cx.host.is_overlay() => {
                    return Ok(unforeseen(format!(
                        "the content of {} is known only after the run",
                        args.path.display()
                    )));
                }
                Err(e) => return Err(explain("read", &args.path, &e)),
            }
        }
        Ok(Plan::Unchanged(result(stat)))
    })
}

fn result(stat: Map<String, Value>) -> Outcome {
    Outcome::unchanged().with("stat", stat)
}

fn describe(path: &Path, meta: &Meta, host: &dyn Read) -> Result<Map<String, Value>, Failure> {
    let (uid, gid) = ids(host, meta);
    let mut stat: Map<String, Value> = Map::new();
    let mut put = |name: &str, value: Value| drop(stat.insert(name.to_owned(), value));
    put("exists", true.into());
    put("path", path.display().to_string().into());
    put("mode", format!("{:04o}", meta.mode).into());
    put("isreg", (meta.kind == FileKind::File).into());
    put("isdir", (meta.kind == FileKind::Directory).into());
    put("islnk", (meta.kind == FileKind::Symlink).into());
    put("size", meta.size.into());
    put("uid", uid);
    put("gid", gid);
    put("pw_name", meta.owner.clone().into());
    put("gr_name", meta.group.clone().into());
    put("mtime", seconds(meta).into());
    put("dev", meta.identity.0.into());
    put("inode", meta.identity.1.into());
    put("isuid", (meta.mode & 0o4000 != 0).into());
    put("isgid", (meta.mode & 0o2000 != 0).into());
    for (who, shift) in [("usr", 6), ("grp", 3), ("oth", 0)] {
        for (what, bit) in [("r", 4), ("w", 2), ("x", 1)] {
            put(&format!("{what}{who}"), (meta.mode & (bit << shift) != 0).into());
        }
    }
    if meta.kind == FileKind::Symlink {
        let target = host.read_link(path).map_err(|e| explain("read", path, &e))?;
        put("lnk_target", target.display().to_string().into());
        put("lnk_source", followed(host, path)?.display().to_string().into());
    }
    Ok(stat)
}

/// What a check foresees of what is only planned: a file, folder or link of its own, just made.
fn planned_details(meta: &Meta) -> Details {
    let made = seconds(meta);
    let root = nix::unistd::geteuid().is_root();
    // The bits count for somebody; root needs one only to execute.
    let may = |bits: u32| meta.mode & bits != 0;
    let folder = meta.kind == FileKind::Directory;
    Details {
        links: if folder { 2 } else { 1 },
        accessed: made,
        changed: made,
        format: 0,
        device: 0,
        blocks: meta.size.div_ceil(512),
        block_size: 4096,
        access: Access { read: root || may(0o444), write: root || may(0o222), execute: may(0o111) || (root && folder) },
    }
}

/// The time of the last change, in seconds since 1970.
fn seconds(meta: &Meta) -> f64 {
    meta.modified.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn describe_more(more: &Details, stat: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| drop(stat.insert(name.to_owned(), value));
    put("nlink", more.links.into());
    put("atime", more.accessed.into());
    put("ctime", more.changed.into());
    put("device_type", more.device.into());
    put("blocks", more.blocks.into());
    put("block_size", more.block_size.into());
    put("readable", more.access.read.into());
    put("writeable", more.access.write.into());
    put("executable", more.access.execute.into());
    for (name, format) in [("isblk", 0o060_000), ("ischr", 0o020_000), ("isfifo", 0o010_000), ("issock", 0o140_000)] {
        put(name, (more.format == format).into());
    }
}

fn checksum(algorithm: Algorithm, bytes: &[u8]) -> String {
    match algorithm {
        Algorithm::Md5 => hex(&Md5::digest(bytes)),
        Algorithm::Sha1 => hex(&Sha1::digest(bytes)),
        Algorithm::Sha224 => hex(&Sha224::digest(bytes)),
        Algorithm::Sha256 => hex(&Sha256::digest(bytes)),
        Algorithm::Sha384 => hex(&Sha384::digest(bytes)),
        Algorithm::Sha512 => hex(&Sha512::digest(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use serde_json::json;

    use super::{super::place::testing, *};
    use crate::host::{Attrs, Write as _};

    fn stat(args: Value) -> Value {
        let call = testing::call(&DEFINITION, args, None);
        testing::run(&DEFINITION, &call).unwrap().0.data["stat"].clone()
    }

    #[test]
    fn files_folders_links_and_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        assert_eq!(stat(json!({"path": path})), json!({"exists": false}));
        fs::write(&path, "abc").unwrap();
        let file = stat(json!({"path": path}));
        assert_eq!((&file["isreg"], &file["size"], &file["isdir"]), (&json!(true), &json!(3), &json!(false)));
        assert_eq!(file["checksum"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(
            stat(json!({"path": path, "checksum_algorithm": "md5"}))["checksum"],
            "900150983cd24fb0d6963f7d28e17f72"
        );
        assert_eq!(
            stat(json!({"path": path, "checksum_algorithm": "sha1"}))["checksum"],
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert!(stat(json!({"path": path, "get_checksum": false})).get("checksum").is_none());
        let link = folder.path().join("l");
        std::os::unix::fs::symlink("f", &link).unwrap();
        let seen = stat(json!({"path": link}));
        assert_eq!(
            (&seen["islnk"], &seen["lnk_target"], &seen["lnk_source"]),
            (&json!(true), &json!("f"), &json!(path))
        );
        assert_eq!(stat(json!({"path": link, "follow": true}))["checksum"], file["checksum"]);
        assert_eq!(stat(json!({"path": folder.path()}))["isdir"], true);
        assert_eq!(file["nlink"], 1);
        let device = stat(json!({"path": "/dev/null"}));
        assert_eq!(
            (&device["ischr"], &device["isblk"], &device["isreg"]),
            (&json!(true), &json!(false), &json!(false))
        );
    }

    /// Everything the manual promises is there, and nothing else; in check mode too.
    #[test]
    fn the_manual_names_every_key() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("f"), folder.path().join("l"));
        fs::write(&path, "abc").unwrap();
        std::os::unix::fs::symlink("f", &link).unwrap();
        let (file, seen) = (stat(json!({"path": path})), stat(json!({"path": link})));
        let mut keys: Vec<String> = [file.as_object().unwrap(), seen.as_object().unwrap()]
            .into_iter()
            .flat_map(|map| map.keys().map(|key| format!("stat.{key}")))
            .collect();
        keys.sort();
        keys.dedup();
        let mut told: Vec<&str> = DEFINITION.results().map(|(name, _)| name).filter(|name| *name != "stat").collect();
        told.sort_unstable();
        assert_eq!(keys, told);

        let real = crate::host::real::Real::new();
        let mut overlay = crate::host::overlay::Overlay::new(&real);
        let new = folder.path().join("new");
        overlay.write(&new, b"planned", &Attrs { mode: Some(0o750), ..Attrs::default() }, None).unwrap();
        let call = testing::call(&DEFINITION, json!({"path": new}), None);
        let Plan::Unchanged(outcome) =
            plan(&call, &Cx { host: &overlay, facts: &json!({}), secrets: crate::secrets::grants::nobody() }).unwrap()
        else {
            panic!("stat changes nothing")
        };
        let planned = outcome.data["stat"].as_object().unwrap();
        assert_eq!(planned.keys().collect::<Vec<_>>(), file.as_object().unwrap().keys().collect::<Vec<_>>());
        assert_eq!((&planned["isfifo"], &planned["nlink"], &planned["size"]), (&json!(false), &json!(1), &json!(7)));
    }

    #[test]
    fn access_is_that_of_who_asks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "#!").unwrap();
        let may = |mode: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let stat = stat(json!({"path": path, "get_checksum": false}));
            [&stat["readable"], &stat["writeable"], &stat["executable"]].map(|v| v.as_bool().unwrap())
        };
        let root = nix::unistd::geteuid().is_root();
        assert_eq!(may(0o700), [true, true, true]);
        // Root reads and writes whatever the bits say, and executes only with one of them.
        assert_eq!(may(0o000), [root, root, false]);
        let null = stat(json!({"path": "/dev/null"}));
        assert_eq!((&null["device_type"], &null["readable"]), (&json!(259), &json!(true)));
        let failure =
            testing::run(&DEFINITION, &testing::call(&DEFINITION, json!({"path": path, "get_mime": true}), None));
        assert!(failure.unwrap_err().hint.unwrap().contains("leave it out"));
    }
}
