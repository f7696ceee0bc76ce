//! `stat`: what stands at a path.

use std::{
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use md5::Md5;
use nix::libc;
use serde_json::{Map, Value};
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    place::{followed, ids, planned, unforeseen},
};
use crate::{
    args, choice,
    digest::hex,
    host::{Details, FileKind, Meta, Read, atomic::explain},
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
    example: "- name: is it there\n  stat:\n    path: /usr/local/bin/consul\n  register: binary\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
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
        let mut stat = describe(&args.path, &meta, cx.host)?;
        let at = if args.follow { followed(cx.host, &args.path)? } else { args.path.clone() };
        if let Some(more) = cx.host.details(&at).map_err(look)? {
            describe_more(&more, &mut stat);
        }
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
    let modified = meta.modified.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
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
    put("mtime", modified.into());
    put("dev", meta.identity.0.into());
    put("inode", meta.identity.1.into());
    put("isuid", (meta.mode & 0o4000 != 0).into());
    put("isgid", (meta.mode & 0o2000 != 0).into());
    for (who, shift) in [("usr", 6), ("grp", 3), ("oth", 0)] {
        for (what, bit) in [("r", 4), ("w", 2), ("x", 1)] {
            put(&format!("{what}{who}"), (meta.mode & (bit << shift) != 0).into());
        }
    }
    put("executable", (meta.mode & 0o111 != 0).into());
    if meta.kind == FileKind::Symlink {
        let target = host.read_link(path).map_err(|e| explain("read", path, &e))?;
        put("lnk_target", target.display().to_string().into());
        put("lnk_source", followed(host, path)?.display().to_string().into());
    }
    Ok(stat)
}

/// What only a path that is really there has.
fn describe_more(more: &Details, stat: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| drop(stat.insert(name.to_owned(), value));
    put("nlink", more.links.into());
    put("atime", more.accessed.into());
    put("ctime", more.changed.into());
    for (name, format) in
        [("isblk", libc::S_IFBLK), ("ischr", libc::S_IFCHR), ("isfifo", libc::S_IFIFO), ("issock", libc::S_IFSOCK)]
    {
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
    use std::fs;

    use serde_json::json;

    use super::{super::place::testing, *};

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
}
