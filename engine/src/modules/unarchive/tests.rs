//! Archives of every kind, good and bad ones.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};

use super::{super::place::testing, *};

fn header(path: &str, kind: tar::EntryType, mode: u32, size: usize, link: &str) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    // Written as bytes: the library refuses to make what this test is about.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(12345);
    header.set_cksum();
    header
}

/// Entries: path, kind, content or link.
fn tar_of(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, text) in entries {
        let file = *kind == tar::EntryType::Regular;
        let (content, link) = if file { (*text, "") } else { ("", *text) };
        let mode = if *kind == tar::EntryType::Directory { 0o755 } else { 0o4750 };
        builder.append(&header(path, *kind, mode, content.len(), link), content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

use tar::EntryType::{Char, Directory, Link, Regular, Symlink};

fn sample() -> Vec<u8> {
    tar_of(&[
        ("./", Directory, ""),
        ("./app/", Directory, ""),
        ("./app/run", Regular, "#!/bin/sh\n"),
        ("./app/doc/readme", Regular, "text"),
        ("./app/same", Link, "app/run"),
        ("./current", Symlink, "app"),
    ])
}

fn call(bytes: Vec<u8>, args: Value) -> Invocation {
    testing::call(&DEFINITION, args, Some(Content::File { bytes, mode: 0o644, secret: false }))
}

fn fails(bytes: Vec<u8>, args: Value) -> Failure {
    testing::run(&DEFINITION, &call(bytes, args)).unwrap_err()
}

fn empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn every_kind_is_unpacked_and_a_second_run_changes_nothing() {
    let plain = sample();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for (kind, bytes) in
        [("tar", plain.clone()), ("tar.gz", gz.finish().unwrap()), ("tar.xz", xz.finish().unwrap()), ("tar.zst", zstd)]
    {
        let folder = tempfile::tempdir().unwrap();
        let (outcome, diffs) = testing::run_twice(
            &DEFINITION,
            &call(bytes, json!({"src": "a", "dest": folder.path(), "list_files": true})),
        );
        assert!(outcome.changed && diffs.iter().any(|d| d.what.ends_with("app/run")));
        assert_eq!(outcome.data["handler"], kind);
        assert_eq!(outcome.data["files"], json!(["app", "app/run", "app/doc/readme", "app/same", "current"]));
        assert_eq!(fs::read_to_string(folder.path().join("current/doc/readme")).unwrap(), "text");
        let mode = fs::metadata(folder.path().join("app/run")).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o750, "the archive's mode without set-id bits");
        fs::write(folder.path().join("app/run"), "#!/bin/SH\n").unwrap();
        let (again, diffs) =
            testing::run(&DEFINITION, &call(plain.clone(), json!({"src": "a", "dest": folder.path()}))).unwrap();
        assert!(again.changed && diffs.len() == 2, "the file, and the hard link to it: {diffs:?}");
    }
}

#[test]
fn zip_with_filters_modes_and_stripping() {
    use zip::write::SimpleFileOptions;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file("consul_1/consul", SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
    writer.write_all(&vec![b'x'; 300_000]).unwrap();
    writer.start_file("consul_1/LICENSE.txt", SimpleFileOptions::default()).unwrap();
    writer.write_all(b"free").unwrap();
    let bytes = writer.finish().unwrap().into_inner();
    let folder = tempfile::tempdir().unwrap();
    let args = json!({"src": "c.zip", "dest": folder.path(), "exclude": "*.txt", "strip_components": 1, "mode": "u=rwX,go=rX"});
    testing::run_twice(&DEFINITION, &call(bytes.clone(), args));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(fs::metadata(folder.path().join("consul")).unwrap().permissions().mode() & 0o777, 0o755);
    // The only file that is wanted is unpacked once: it does not get there when it is broken, and neither when another one is.
    let alone = tempfile::tempdir().unwrap();
    for of in ["consul_1/consul", "consul_1/LICENSE.txt"] {
        let at = bytes.windows(of.len()).position(|part| part == of.as_bytes()).unwrap() + of.len();
        let mut broken = bytes.clone();
        broken[at + 1] ^= 1;
        let failure = fails(broken, json!({"src": "c.zip", "dest": alone.path(), "include": ["consul_1/consul"]}));
        assert!(failure.message.contains("cannot unpack c.zip") && !failure.changed, "{of}: {failure}");
        assert_eq!(fs::read_dir(alone.path()).unwrap().count(), 0, "{of}");
    }
    let none = json!({"src": "c.zip", "dest": folder.path(), "include": ["nomad"]});
    assert!(fails(bytes.clone(), none).message.contains("'nomad' of 'include' matches nothing"));
    let dest = tempfile::tempdir().unwrap();
    assert!(
        fails(bytes[..bytes.len() / 2].to_vec(), json!({"src": "c.zip", "dest": dest.path()}))
            .message
            .contains("cannot unpack c.zip")
    );
    let mut flipped = bytes.clone();
    flipped[120] ^= 1;
    assert!(fails(flipped, json!({"src": "c.zip", "dest": dest.path()})).message.contains("cannot unpack"));
    assert!(empty(dest.path()));
    let remote = dest.path().join("c.zip");
    fs::write(&remote, &bytes).unwrap();
    let args =
        json!({"src": remote, "remote_src": true, "dest": dest.path(), "creates": dest.path().join("consul_1/consul")});
    let call = testing::call(&DEFINITION, args, None);
    testing::run_twice(&DEFINITION, &call);
    let (again, _) = testing::run(&DEFINITION, &call).unwrap();
    assert!(again.msg.unwrap().ends_with("consul_1/consul exists"));
}

#[test]
fn unsafe_archives_are_refused_before_anything_is_written() {
    let good = ("good", Regular, "x");
    for (bad, why) in [
        (vec![("../evil", Regular, "x")], "leads out"),
        (vec![("/etc/evil", Regular, "x")], "leads out"),
        (vec![("a/../../evil", Regular, "x")], "leads out"),
        (vec![("l", Symlink, "/etc")], "link out"),
        (vec![("l", Symlink, "../..")], "link out"),
        (vec![("d/l", Symlink, "x/../../..")], "link out"),
        (vec![("d/", Directory, ""), ("l", Symlink, "d"), ("l/evil", Regular, "x")], "is no folder in it"),
        (vec![("h", Link, "/etc/passwd")], "leads out"),
        (vec![("h", Link, "missing")], "which is not unpacked"),
        (vec![("dev", Char, "")], "neither file"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("dest");
        fs::create_dir(&dest).unwrap();
        let mut entries = vec![good];
        entries.extend(bad);
        let failure = fails(tar_of(&entries), json!({"src": "a.tar", "dest": dest}));
        assert!(failure.message.contains(why), "{failure}");
        assert!(empty(&dest) && fs::read_dir(folder.path()).unwrap().count() == 1);
    }
    let folder = tempfile::tempdir().unwrap();
    let (dest, out) = (folder.path().join("dest"), folder.path().join("out"));
    fs::create_dir(&dest).unwrap();
    fs::create_dir(&out).unwrap();
    std::os::unix::fs::symlink(&out, dest.join("app")).unwrap();
    assert!(fails(sample(), json!({"src": "a", "dest": dest})).message.contains("is a link") && empty(&out));
}

#[test]
fn broken_archives_and_bad_calls() {
    let folder = tempfile::tempdir().unwrap();
    let dest = json!({"src": "a", "dest": folder.path()});
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&sample()).unwrap();
    let gz = gz.finish().unwrap();
    assert!(fails(gz[..gz.len() / 2].to_vec(), dest.clone()).hint.unwrap().contains("ends too early"));
    let mut wrong = gz.clone();
    let crc = wrong.len() - 6;
    wrong[crc] ^= 0xff;
    assert!(fails(wrong, dest.clone()).message.contains("cannot unpack a"));
    assert!(fails(sample()[..1600].to_vec(), dest.clone()).message.contains("cannot unpack a"));
    assert!(fails(b"BZh9xxxx".to_vec(), dest.clone()).message.contains("bzip2"));
    assert!(fails(b"hello".to_vec(), dest.clone()).message.contains("no archive"));
    assert!(fails(Vec::new(), dest).message.contains("it is empty"));
    assert!(empty(folder.path()));
    assert!(fails(sample(), json!({"src": "a", "dest": folder.path().join("no")})).message.contains("does not exist"));
    assert!(fails(sample(), json!({"src": "http://x/a", "dest": folder.path()})).hint.unwrap().contains("download"));
    assert!(
        fails(sample(), json!({"src": "/no/such", "remote_src": true, "dest": folder.path()}))
            .message
            .contains("on the host")
    );
}
