//! Reading archives: tar (plain, gzip, xz, zstd) and zip, entry by entry, with every path checked.

use std::{
    ffi::OsStr,
    io::{self, Cursor, Read},
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use super::Failure;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// A symbolic link; the target stays inside.
    Link(PathBuf),
    /// A hard link to another entry.
    HardLink(PathBuf),
}

/// An entry; its path is relative and has no `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// Permission bits, without set-id bits.
    pub(super) mode: u32,
    pub(super) size: u64,
}

/// Gets each entry with its number and its content.
pub(super) type Visit<'v> = &'v mut dyn FnMut(usize, &Entry, &mut dyn Read) -> Result<(), Failure>;

/// What an archive is, from its first bytes; names are not trusted.
pub(super) fn format(bytes: &[u8], name: &str) -> Result<&'static str, Failure> {
    let known = "tar, tar.gz, tar.xz, tar.zst and zip are known";
    Ok(match bytes {
        [0x1f, 0x8b, ..] => "tar.gz",
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "tar.xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "tar.zst",
        [b'P', b'K', 3 | 5, 4 | 6, ..] => "zip",
        [b'B', b'Z', b'h', ..] => {
            return Err(Failure::new(format!("cannot unpack {name}: bzip2 archives are not handled")).hint(known));
        }
        [] => return Err(Failure::new(format!("cannot unpack {name}: it is empty"))),
        _ if bytes.get(257..262) == Some(b"ustar") => "tar",
        _ => {
            return Err(Failure::new(format!("cannot unpack {name}: it is no archive of a known kind")).hint(known));
        }
    })
}

/// Visits every entry. An unusable path anywhere, a broken or a cut archive is an error; but of a zip's entry `unread` nobody looks at
/// what `visit` leaves.
pub(super) fn walk(bytes: &[u8], name: &str, unread: Option<usize>, visit: Visit<'_>) -> Result<(), Failure> {
    let broken = |e: io::Error| broken(name, &e);
    match format(bytes, name)? {
        "zip" => zip(bytes, name, unread, visit),
        "tar.gz" => tar(flate2::read::MultiGzDecoder::new(bytes), name, visit),
        "tar.xz" => tar(liblzma::read::XzDecoder::new_multi_decoder(bytes), name, visit),
        "tar.zst" => tar(zstd::Decoder::new(bytes).map_err(broken)?, name, visit),
        _ => tar(bytes, name, visit),
    }
}

/// The error for an archive that cannot be read.
pub(super) fn broken(name: &str, error: &io::Error) -> Failure {
    let failure = Failure::new(format!("cannot unpack {name}: {error}"));
    match error.kind() {
        io::ErrorKind::UnexpectedEof => failure.hint("the archive ends too early: was it copied whole?"),
        _ => failure,
    }
}

fn tar(reader: impl Read, name: &str, visit: Visit<'_>) -> Result<(), Failure> {
    let mut archive = tar::Archive::new(reader);
    let entries = archive.entries().map_err(|e| broken(name, &e))?;
    for (number, entry) in entries.enumerate() {
        let mut entry = entry.map_err(|e| broken(name, &e))?;
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(path) = inside(&PathBuf::from(OsStr::from_bytes(&entry.path_bytes())), name)? else { continue };
        let link = |entry: &tar::Entry<'_, _>| {
            entry.link_name_bytes().map(|b| PathBuf::from(OsStr::from_bytes(&b))).unwrap_or_default()
        };
        use tar::EntryType as T;
        let kind = match entry.header().entry_type() {
            T::Regular | T::Continuous | T::GNUSparse => Kind::File,
            T::Directory => Kind::Folder,
            T::Symlink => Kind::Link(target(&path, link(&entry), name)?),
            T::Link => Kind::HardLink(inside(&link(&entry), name)?.unwrap_or_default()),
            T::XGlobalHeader => continue,
            other => {
                return Err(Failure::new(format!(
                    "cannot unpack {name}: {shown} is neither file, folder nor link ({other:?})"
                )));
            }
        };
        let mode = entry.header().mode().map_err(|e| broken(name, &e))? & 0o777;
        let size = if kind == Kind::File { entry.size() } else { 0 };
        let seen = Entry { path, kind, mode, size };
        let mut content = Counted { inner: &mut entry, count: 0 };
        visit(number, &seen, &mut content)?;
        io::copy(&mut content, &mut io::sink()).map_err(|e| broken(name, &e))?;
        if seen.kind == Kind::File && content.count != size {
            let cut =
                io::Error::new(io::ErrorKind::UnexpectedEof, format!("{shown} has {} of {size} bytes", content.count));
            return Err(broken(name, &cut));
        }
    }
    // The rest holds the compressor's checksum, which is only compared at the very end.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|e| broken(name, &e)).map(|_| ())
}

/// Numbers and paths of a zip's entries that are no folders, as its directory has them: nothing is unpacked for it. `None`: it is no zip,
/// or a broken one.
pub(super) fn listed(bytes: &[u8], name: &str) -> Option<Vec<(usize, PathBuf)>> {
    if format(bytes, name).ok()? != "zip" {
        return None;
    }
    let archive = zip::ZipArchive::new(Cursor::new(bytes)).ok()?;
    let mut paths = Vec::new();
    for (number, shown) in archive.file_names().enumerate() {
        let shown = shown.ok()?;
        let path = inside(Path::new(&*shown), name).ok()?;
        paths.extend(path.filter(|_| !shown.ends_with('/')).map(|path| (number, path)));
    }
    Some(paths)
}

fn zip(bytes: &[u8], name: &str, unread: Option<usize>, visit: Visit<'_>) -> Result<(), Failure> {
    let broken_zip = |e: zip::result::ZipError| {
        let e = io::Error::from(e);
        broken(name, &e).hint("is the archive whole?")
    };
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(broken_zip)?;
    for number in 0..archive.len() {
        let mut entry = archive.by_index(number).map_err(broken_zip)?;
        let shown = entry.name().map_err(broken_zip)?.into_owned();
        if entry.encrypted() {
            return Err(Failure::new(format!("cannot unpack {name}: {shown} is encrypted")));
        }
        let Some(path) = inside(Path::new(&shown), name)? else { continue };
        let mode = entry.unix_mode();
        let kind = if entry.is_symlink() {
            let mut text = Vec::new();
            entry.by_ref().take(4096).read_to_end(&mut text).map_err(|e| broken(name, &e))?;
            Kind::Link(target(&path, PathBuf::from(OsStr::from_bytes(&text)), name)?)
        } else if entry.is_dir() {
            Kind::Folder
        } else {
            Kind::File
        };
        let usual = if kind == Kind::Folder { 0o755 } else { 0o644 };
        let size = if kind == Kind::File { entry.size() } else { 0 };
        let seen = Entry { path, kind, mode: mode.map_or(usual, |m| m & 0o777), size };
        visit(number, &seen, &mut entry)?;
        // The checksum is compared at the end of the content.
        if unread != Some(number) || seen.kind != Kind::File {
            io::copy(&mut entry, &mut io::sink()).map_err(|e| broken(name, &e))?;
        }
    }
    Ok(())
}

struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count += n as u64;
        Ok(n)
    }
}

/// A path of an archive without `.`; `None` for the top itself; absolute ones and those with `..` are refused.
fn inside(path: &Path, name: &str) -> Result<Option<PathBuf>, Failure> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            _ => return Err(leaves(name, path, "it leads out of the folder")),
        }
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(leaves(name, path, "it holds a NUL byte"));
    }
    Ok(Some(clean).filter(|p| !p.as_os_str().is_empty()))
}

/// A link's target: relative, and never above the top. `..` counts at its start only: behind a name, which may be
/// a link itself, nobody can say from the text where it leads.
fn target(link: &Path, target: PathBuf, name: &str) -> Result<PathBuf, Failure> {
    let (mut up, mut named) = (0, false);
    for part in target.components() {
        match part {
            Component::ParentDir if !named => up += 1,
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            _ => return Err(leaves(name, link, &format!("it is a link out of the folder, to {}", target.display()))),
        }
    }
    let depth = link.components().count().saturating_sub(1);
    if up > depth || target.as_os_str().is_empty() {
        return Err(leaves(name, link, &format!("it is a link out of the folder, to {}", target.display())));
    }
    Ok(target)
}

fn leaves(name: &str, path: &Path, why: &str) -> Failure {
    let shown = path.display().to_string().replace('\0', "\\0");
    Failure::new(format!("refused to unpack {name}: the entry '{shown}' is unsafe: {why}")).hint("nothing was written")
}
