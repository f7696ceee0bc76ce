//! `unarchive`: unpacks tar and zip archives.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use globset::{Glob, GlobSet, GlobSetBuilder};
use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};

use super::{
    Content, Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    archive::{self, Entry, Kind, broken},
    args::Mode,
    place::{self, Perms, Planner, Stream, followed, planned, unforeseen},
};
use crate::{
    args,
    digest::{hex, sha256_hex},
    host::{Attrs, FileKind, Read, Write, atomic::explain},
};

/// In a check, files up to this size are planned with their content, bigger ones without.
const PLANNED_CONTENT: u64 = 8 << 20;

args! {
    /// Arguments of `unarchive`.
    pub struct Args {
        /// An archive from `files/` (with `remote_src`: of the host, absolute): tar, tar.gz, tar.xz, tar.zst or zip.
        src []: String, required;
        /// The folder that it is unpacked in. It must be there.
        dest []: PathBuf, required;
        /// `src` is on the host already.
        remote_src []: bool = false;
        /// Nothing is done if this exists.
        creates []: Option<PathBuf>;
        /// Unpack only what matches one of these patterns (a folder: with all that is in it).
        include []: Vec<String>;
        /// Leave out what matches one of these patterns.
        exclude []: Vec<String>;
        /// Leave off so many folders from the front of each path.
        strip_components []: u32 = 0;
        /// Permission bits of everything that is unpacked, as `u=rwX,go=rX`. The default is the archive's, without set-id bits.
        mode []: Option<Mode>;
        /// Owner, a name or a number. The owners that the archive names do not count.
        owner []: Option<String>;
        /// Group, a name or a number.
        group []: Option<String>;
        /// Give the list of paths as `files`.
        list_files []: bool = false;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "unarchive",
    aliases: &[],
    summary: "Unpacks an archive; a second run compares and changes nothing",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::File,
    results: &[
        place::RESULTS,
        &[
            ("src", "The archive, as it was named."),
            ("handler", "Its format."),
            ("files", "The paths in it, with `list_files`."),
        ],
    ],
    example: "- name: the program\n  unarchive:\n    src: /var/cache/rollcall/consul.zip\n    remote_src: true\n    dest: /usr/local/bin\n    include: [consul]\n    mode: \"0755\"\n",
    plan,
};

fn plan(call: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&call.args)?;
    let perms = Perms { mode: args.mode.clone(), owner: args.owner.clone(), group: args.group.clone() };
    perms.refuse_preserve("the archive's modes are kept anyway")?;
    if args.src.contains("://") {
        return Err(Failure::new(format!("cannot unpack {}: it is a URL", args.src))
            .hint("fetch it by an earlier task with download"));
    }
    let filter = Filter::new(&args)?;
    planned(cx, || {
        if let Some(path) = &args.creates
            && cx.host.meta(path).map_err(|e| explain("look at", path, &e))?.is_some()
        {
            return Ok(Plan::Unchanged(Outcome::unchanged().msg(format!("{} exists", path.display()))));
        }
        let bytes = match bytes(&args, call, cx)? {
            Ok(bytes) => Arc::new(bytes),
            Err(unknown) => return Ok(unknown),
        };
        match cx.host.meta_follow(&args.dest).map_err(|e| explain("look at", &args.dest, &e))?.map(|m| m.kind) {
            Some(FileKind::Directory) => {}
            found => {
                let what = if found.is_some() { "is not a folder" } else { "does not exist" };
                return Err(Failure::new(format!("cannot unpack into {}: it {what}", args.dest.display()))
                    .hint("make the folder by an earlier task with file: state=directory"));
            }
        }
        let planner = Planner::new(cx, call.diff);
        // A diff shows the sum.
        let unread = if call.diff { None } else { lone(&bytes, &args, &filter, &planner)? };
        let items = manifest(&bytes, &args.src, &filter, unread)?;
        steps(&args, &perms, &bytes, &items, planner)
    })
}

/// The archive; or, in a check, that it is not known yet.
fn bytes(args: &Args, call: &Invocation, cx: &Cx<'_>) -> Result<Result<Vec<u8>, Plan>, Failure> {
    if !args.remote_src {
        return match &call.content {
            Some(Content::File { bytes, .. }) => Ok(Ok(bytes.clone())),
            Some(Content::Tree(_)) => Err(Failure::new(format!("cannot unpack {}: it is a folder", args.src))),
            None => Err(Failure::new(format!("the content of '{}' did not come along", args.src))),
        };
    }
    let path = Path::new(&args.src);
    if !path.is_absolute() {
        return Err(Failure::new(format!(
            "argument 'src': with remote_src expected an absolute path, found '{}'",
            args.src
        )));
    }
    match cx.host.meta_follow(path).map_err(|e| explain("look at", path, &e))?.map(|m| m.kind) {
        None => Err(Failure::new(format!("cannot unpack {}: it does not exist on the host", args.src))),
        Some(FileKind::Directory) => Err(Failure::new(format!("cannot unpack {}: it is a folder", args.src))),
        Some(_) => match cx.host.read(path) {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(_) if cx.host.is_overlay() => {
                Ok(Err(unforeseen(format!("what is in {} is known only when the run has fetched it", args.src))))
            }
            Err(e) => Err(explain("read", path, &e)),
        },
    }
}

/// Which entries are wanted, and under which path.
struct Filter {
    include: Vec<(String, GlobSet)>,
    exclude: GlobSet,
    strip: usize,
}

impl Filter {
    fn new(args: &Args) -> Result<Self, Failure> {
        let one = |name: &str, pattern: &str| {
            let pattern = pattern.trim_end_matches('/');
            Glob::new(pattern)
                .map_err(|e| Failure::new(format!("argument '{name}': '{pattern}' is no pattern: {}", e.kind())))
        };
        let build = |globs: Vec<Glob>| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                set.add(glob);
            }
            set.build().map_err(|e| Failure::new(format!("the patterns cannot be used: {e}")))
        };
        let include = args.include.iter().map(|p| Ok((p.clone(), build(vec![one("include", p)?])?)));
        let exclude = args.exclude.iter().map(|p| one("exclude", p)).collect::<Result<_, _>>()?;
        Ok(Self {
            include: include.collect::<Result<_, Failure>>()?,
            exclude: build(exclude)?,
            strip: args.strip_components as usize,
        })
    }

    fn wants(&self, path: &Path) -> bool {
        let hit = |set: &GlobSet| path.ancestors().any(|a| set.is_match(a));
        (self.include.is_empty() || self.include.iter().any(|(_, set)| hit(set))) && !hit(&self.exclude)
    }

    fn stripped(&self, path: &Path) -> Option<PathBuf> {
        let rest: PathBuf = path.components().skip(self.strip).collect();
        Some(rest).filter(|p| !p.as_os_str().is_empty())
    }
}

/// An entry that is wanted.
struct Item {
    number: usize,
    entry: Entry,
    /// Of a file's content; `None`: nobody has looked at it yet.
    sum: Option<String>,
}

/// The entry of the only file that is wanted, where it is not there yet and the archive tells so without being unpacked: it is unpacked
/// once then, and gets to its place only when all of it was as the archive says.
fn lone(bytes: &[u8], args: &Args, filter: &Filter, planner: &Planner<'_>) -> Result<Option<usize>, Failure> {
    let listed = archive::listed(bytes, &args.src).unwrap_or_default();
    let mut wanted = listed.into_iter().filter(|(_, path)| filter.wants(path));
    let (Some((number, path)), None) = (wanted.next(), wanted.next()) else { return Ok(None) };
    let Some(path) = filter.stripped(&path) else { return Ok(None) };
    let at = followed(&planner.host, &args.dest)?.join(path);
    // What is wrong with the place is told by who looks at all of it.
    Ok(planner.meta(&at).is_ok_and(|found| found.is_none()).then_some(number))
}

/// Reads the whole archive once, but for `unread`, so that nothing is written of one that is broken or unsafe. Of two entries with one
/// path the later counts, as with tar.
fn manifest(
    bytes: &[u8],
    name: &str,
    filter: &Filter,
    unread: Option<usize>,
) -> Result<IndexMap<PathBuf, Item>, Failure> {
    let mut items: IndexMap<PathBuf, Item> = IndexMap::new();
    let mut hit = vec![false; filter.include.len()];
    archive::walk(bytes, name, unread, &mut |number, entry, content| {
        for (i, (_, set)) in filter.include.iter().enumerate() {
            hit[i] |= entry.path.ancestors().any(|a| set.is_match(a));
        }
        if !filter.wants(&entry.path) {
            return Ok(());
        }
        let Some(path) = filter.stripped(&entry.path) else { return Ok(()) };
        let mut entry = Entry { path: path.clone(), ..entry.clone() };
        let mut sum = None;
        match &entry.kind {
            Kind::File if unread == Some(number) => {}
            Kind::File => {
                let (found, size) = digest(content).map_err(|e| broken(name, &e))?;
                (sum, entry.size) = (Some(found), size);
            }
            Kind::HardLink(to) => {
                let to = filter.stripped(to).unwrap_or_default();
                entry.kind = Kind::HardLink(to);
            }
            Kind::Folder | Kind::Link(_) => {}
        }
        items.insert(path, Item { number, entry, sum });
        Ok(())
    })?;
    if let Some(i) = hit.iter().position(|h| !h) {
        return Err(Failure::new(format!(
            "the pattern '{}' of 'include' matches nothing in {name}",
            filter.include[i].0
        )));
    }
    if items.is_empty() {
        return Err(Failure::new(format!("there is nothing to unpack in {name}")));
    }
    for (path, item) in &items {
        if let Some(link) =
            path.ancestors().skip(1).find(|a| items.get(*a).is_some_and(|i| i.entry.kind != Kind::Folder))
        {
            let message = format!(
                "refused to unpack {name}: the entry '{}' is unsafe: {} is no folder in it",
                path.display(),
                link.display()
            );
            return Err(Failure::new(message).hint("nothing was written"));
        }
        if let Kind::HardLink(to) = &item.entry.kind
            && !items.get(to).is_some_and(|i| i.entry.kind == Kind::File)
        {
            return Err(Failure::new(format!(
                "cannot unpack {name}: {} is a hard link to {}, which is not unpacked",
                path.display(),
                to.display()
            )));
        }
    }
    Ok(items)
}

fn digest(content: &mut dyn std::io::Read) -> std::io::Result<(String, u64)> {
    let (mut hasher, mut chunk, mut size) = (Sha256::new(), vec![0; 64 * 1024], 0);
    loop {
        let n = content.read(&mut chunk)?;
        if n == 0 {
            return Ok((hex(&hasher.finalize()), size));
        }
        hasher.update(&chunk[..n]);
        size += n as u64;
    }
}

/// Folders, then files, then links.
fn steps(
    args: &Args,
    perms: &Perms,
    bytes: &Arc<Vec<u8>>,
    items: &IndexMap<PathBuf, Item>,
    mut planner: Planner<'_>,
) -> Result<Plan, Failure> {
    let dest = followed(&planner.host, &args.dest)?;
    for path in items.keys() {
        refuse_links(&dest, path, &planner)?;
    }
    let asked = perms.mode.is_some() || perms.owner.is_some() || perms.group.is_some();
    for (path, item) in items.iter().filter(|(_, i)| i.entry.kind == Kind::Folder) {
        let at = dest.join(path);
        // A folder that is there keeps its owner and mode, unless the task asks for others.
        if asked || planner.meta(&at)?.is_none_or(|m| m.kind != FileKind::Directory) {
            let mode = perms.mode.clone().or(Some(Mode::Bits(item.entry.mode)));
            planner.folder(&at, &Perms { mode, ..perms.clone() }, 0o755)?;
        }
    }
    let mut wanted = BTreeMap::new();
    for (path, item) in items.iter().filter(|(_, i)| i.entry.kind == Kind::File) {
        let at = dest.join(path);
        if let Some(parent) = at.parent()
            && planner.meta(parent)?.is_none()
        {
            planner.folder(parent, &Perms { mode: None, ..perms.clone() }, 0o755)?;
        }
        let current = planner.meta(&at)?.filter(|m| m.kind == FileKind::File);
        let start =
            crate::host::Meta { mode: item.entry.mode, ..current.clone().unwrap_or_else(|| blank(item.entry.mode)) };
        let attrs = Attrs {
            mode: Some(perms.attrs(Some(&start), 0, false).mode.unwrap_or(item.entry.mode)),
            ..perms.attrs(None, 0, false)
        };
        let same = match current {
            Some(meta) if meta.size == item.entry.size => planner
                .host
                .read(&at)
                .map(|b| Some(sha256_hex(&b)) == item.sum)
                .map_err(|e| explain("read", &at, &e))?,
            _ => false,
        };
        if same {
            planner.attrs(&at, &attrs)?;
        } else {
            let sum = item.sum.as_ref().map(|sum| format!(", sha256:{sum}")).unwrap_or_default();
            planner.expect(&at, &attrs, format!("{} bytes{sum}\n", item.entry.size))?;
            wanted.insert(item.number, (at, attrs));
        }
    }
    if !wanted.is_empty() {
        planner.stream(Box::new(Files { archive: Arc::clone(bytes), name: args.src.clone(), wanted }));
    }
    links(&dest, perms, items, &mut planner)?;
    let mut outcome =
        Outcome::unchanged().with("src", args.src.clone()).with("handler", archive::format(bytes, &args.src)?);
    if args.list_files {
        outcome = outcome.with("files", items.keys().map(|p| p.display().to_string()).collect::<Vec<_>>());
    }
    let outcome = planner.results(outcome, &dest)?;
    Ok(planner.finish(outcome))
}

/// The starting point of a symbolic mode for a file that is not there: the archive's.
fn blank(mode: u32) -> crate::host::Meta {
    crate::host::Meta {
        kind: FileKind::File,
        mode,
        owner: String::new(),
        group: String::new(),
        size: 0,
        modified: std::time::UNIX_EPOCH,
        identity: (0, 0),
    }
}

fn links(
    dest: &Path,
    perms: &Perms,
    items: &IndexMap<PathBuf, Item>,
    planner: &mut Planner<'_>,
) -> Result<(), Failure> {
    for (path, item) in items {
        let at = dest.join(path);
        let current = planner.meta(&at)?;
        match &item.entry.kind {
            Kind::Link(target) => {
                let there = current.is_some_and(|m| m.kind == FileKind::Symlink)
                    && planner.host.read_link(&at).map_err(|e| explain("read", &at, &e))? == *target;
                if !there {
                    parents(&at, perms, planner)?;
                    planner.symlink(target, &at)?;
                }
            }
            Kind::HardLink(target) => {
                let source = dest.join(target);
                let identity = planner.meta(&source)?.map(|m| m.identity);
                if current.map(|m| m.identity) != identity {
                    parents(&at, perms, planner)?;
                    planner.hard_link(&source, &at)?;
                }
            }
            Kind::File | Kind::Folder => {}
        }
    }
    Ok(())
}

fn parents(at: &Path, perms: &Perms, planner: &mut Planner<'_>) -> Result<(), Failure> {
    match at.parent() {
        Some(parent) if planner.meta(parent)?.is_none() => {
            planner.folder(parent, &Perms { mode: None, ..perms.clone() }, 0o755)
        }
        _ => Ok(()),
    }
}

/// Below `dest` nothing is written through links that stand there.
fn refuse_links(dest: &Path, path: &Path, planner: &Planner<'_>) -> Result<(), Failure> {
    for part in path.ancestors().skip(1).filter(|a| !a.as_os_str().is_empty()) {
        let at = dest.join(part);
        match planner.meta(&at)?.map(|m| m.kind) {
            Some(FileKind::Symlink) => {
                return Err(Failure::new(format!("refused to unpack {}: {} is a link", path.display(), at.display()))
                    .hint("nothing was written; remove the link, or unpack where it leads"));
            }
            Some(FileKind::Directory) | None => {}
            Some(_) => {
                return Err(Failure::new(format!(
                    "cannot unpack {}: {} is not a folder",
                    path.display(),
                    at.display()
                )));
            }
        }
    }
    Ok(())
}

/// Files that are unpacked in one walk through the archive.
#[derive(Debug)]
struct Files {
    archive: Arc<Vec<u8>>,
    name: String,
    /// By the number of the entry.
    wanted: BTreeMap<usize, (PathBuf, Attrs)>,
}

impl Stream for Files {
    fn paths(&self) -> Vec<PathBuf> {
        self.wanted.values().map(|(path, _)| path.clone()).collect()
    }

    fn run(&self, host: &mut dyn Write) -> Result<(), Failure> {
        let mut done = false;
        archive::walk(&self.archive, &self.name, None, &mut |number, entry, content| {
            let Some((path, attrs)) = self.wanted.get(&number) else { return Ok(()) };
            if host.is_overlay() && entry.size <= PLANNED_CONTENT {
                let mut bytes = Vec::new();
                content.take(PLANNED_CONTENT).read_to_end(&mut bytes).map_err(|e| broken(&self.name, &e))?;
                return host.write(path, &bytes, attrs, None);
            }
            host.receive(path, attrs, &mut |out| {
                let mut chunk = vec![0; 64 * 1024];
                loop {
                    match content.read(&mut chunk).map_err(|e| broken(&self.name, &e))? {
                        0 => return Ok(()),
                        n => out.write_all(&chunk[..n]).map_err(|e| explain("write", path, &e))?,
                    }
                }
            })?;
            done = true;
            Ok(())
        })
        .map_err(|f| Failure { changed: f.changed || done, ..f })
    }
}

#[cfg(test)]
mod tests;
