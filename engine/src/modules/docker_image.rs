//! `docker_image`: an image that is built from a folder, or loaded from a file; no registry is needed.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    docker::{self, Calls, Looked, SOURCE_LABEL, at, docker, look, reference, texts, unknown},
    place::{planned, unforeseen},
    steps::query,
};
use crate::{
    args, choice,
    digest::{hex, sha256_hex},
    host::{Command, FileKind, Read, Write, atomic::explain},
};

choice!(
    /// Whether it is there.
    State { Present = "present", Absent = "absent" }
);

args! {
    /// Arguments of `docker_image`.
    pub struct Args {
        /// The image's name with its tag: `web-service:v0.1`. Without a tag it is `latest`.
        name []: String, required;
        /// A folder of the host with a Dockerfile: the image is built from it. It is built again when something in the folder, or an
        /// argument below, is another than when it was built.
        build ["path"]: Option<PathBuf>;
        /// The Dockerfile in that folder.
        dockerfile []: Option<String>;
        /// Values of the Dockerfile's `ARG`s. They can be read in the image: no place for secrets.
        args ["build_args"]: Map<String, Value> = Map::new();
        /// A file of the host, as `docker save` writes it: the image is loaded from it. It is loaded again when the file holds another
        /// image.
        load ["load_path", "archive"]: Option<PathBuf>;
        /// `absent` removes the name, and the image where it has no other.
        state []: State = State::Present;
        /// Build or load it in any case (nothing that was built before is used again); remove it even if a stopped container uses it.
        force []: bool = false;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "docker_image",
    aliases: &[],
    summary: "Builds an image of Docker from a folder, or loads it from a file",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("image", "Its name with its tag."),
        ("id", "The image's id; empty where there is none."),
        ("source", "Digest of the folder that it is built from."),
    ]],
    example: "- name: the web service\n  docker_image:\n    name: web-service:v0.1\n    build: /opt/images/web-service\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let name = reference(&args.name)?;
    planned(cx, || {
        let present = args.state == State::Present;
        match (present, &args.build, &args.load) {
            (true, Some(folder), None) => build(inv, &args, &name, folder, cx),
            (true, None, Some(file)) => load(inv, &args, &name, file, cx),
            (true, None, None) => Err(Failure::new("one of 'build' and 'load' is needed")
                .hint("build: a folder with a Dockerfile; load: a file that `docker save` wrote")),
            (true, Some(_), Some(_)) => Err(Failure::new("'build' and 'load' exclude each other")),
            (false, None, None) => absent(inv, &args, &name, cx),
            (false, ..) => Err(Failure::new("an image that is to be removed is neither built nor loaded")),
        }
    })
}

fn told(outcome: Outcome, name: &str, image: Option<&Value>) -> Outcome {
    outcome.with("image", name).with("id", image.map_or("", |image| at(image, "/Id")))
}

fn diff(name: &str, before: impl Into<String>, after: impl Into<String>) -> Vec<Diff> {
    vec![Diff { what: format!("image {name}"), before: before.into(), after: after.into(), hidden: false }]
}

fn absent(inv: &Invocation, args: &Args, name: &str, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let image = match look(inv, cx.host, "image", name)? {
        Looked::Nothing => return Ok(Plan::Unchanged(told(Outcome::unchanged(), name, None))),
        Looked::Unknown(why) => return Ok(unknown(&why)),
        Looked::Found(image) => image,
    };
    let words = ["image", "rm"].into_iter().chain(args.force.then_some("--force")).chain([name]);
    Ok(Plan::Change(Box::new(Calls {
        diffs: diff(name, format!("{}\n", at(&image, "/Id")), ""),
        list: vec![docker(inv, words)],
        outcome: told(Outcome::changed(), name, None),
        finish: Box::new(|_, outcome| Ok(outcome)),
    })))
}

/// The calls that give the name to another image, and what is known then. The image that had it is removed, unless
/// something uses it: nothing else would ever remove it.
fn replaced(
    inv: &Invocation,
    name: &str,
    before: Option<&Value>,
    list: Vec<Command>,
    (diffs, outcome): (Vec<Diff>, Outcome),
) -> Plan {
    let old = before.map(|image| at(image, "/Id").to_owned()).unwrap_or_default();
    let (inv, name) = (inv.clone(), name.to_owned());
    let finish = Box::new(move |host: &mut dyn Write, outcome| {
        let Looked::Found(image) = look(&inv, host.as_read(), "image", &name)? else {
            return Err(Failure::new(format!("the image {name} is not there, though Docker reported success")));
        };
        if !old.is_empty() && at(&image, "/Id") != old {
            // Refused where a container uses it, or where it has another name: then it stays.
            let _ = docker::run(host, &docker(&inv, ["image", "rm", &old]));
        }
        Ok(told(outcome, &name, Some(&image)))
    });
    Plan::Change(Box::new(Calls { diffs, list, outcome, finish }))
}

// --- from a folder ---

fn build(inv: &Invocation, args: &Args, name: &str, folder: &Path, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let dockerfile = args.dockerfile.as_deref().unwrap_or("Dockerfile");
    let inside = Path::new(dockerfile).components().all(|part| matches!(part, Component::Normal(_)));
    if dockerfile.is_empty() || !inside {
        return Err(Failure::new(format!("argument 'dockerfile': '{dockerfile}' is no path inside the folder")));
    }
    let values = values(&args.args)?;
    let source = format!("sha256:{}", source(cx.host, folder, dockerfile, &values)?);
    let before = match look(inv, cx.host, "image", name)? {
        Looked::Nothing => None,
        Looked::Unknown(why) => return Ok(unknown(&why)),
        Looked::Found(image) => Some(image),
    };
    let label = format!("/Config/Labels/{SOURCE_LABEL}");
    let was = before.as_ref().map_or("", |image| at(image, &label));
    if was == source && !args.force {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), name, before.as_ref()).with("source", source)));
    }
    let line = |source: &str| match (source, &before) {
        ("", None) => String::new(),
        ("", Some(image)) => format!("{} (not built from here)\n", at(image, "/Id")),
        (source, _) => format!("built from {source}\n"),
    };
    let diffs = diff(name, line(was), line(&source));
    let mut words: Vec<String> = ["build", "--quiet", "--force-rm", "--tag", name].map(str::to_owned).into();
    words.extend(["--label".to_owned(), format!("{SOURCE_LABEL}={source}")]);
    if args.force {
        words.push("--no-cache".to_owned());
    }
    // By the environment: everyone on the machine sees arguments of programs.
    words.extend(values.iter().flat_map(|(name, _)| ["--build-arg".to_owned(), name.clone()]));
    words.extend(["--file".to_owned(), folder.join(dockerfile).display().to_string(), folder.display().to_string()]);
    let mut command = docker(inv, words);
    command.env.extend(values);
    let outcome = told(Outcome::changed(), name, before.as_ref()).with("source", source);
    Ok(replaced(inv, name, before.as_ref(), vec![command], (diffs, outcome)))
}

/// Values of `ARG`s as text, in the order of their names.
fn values(args: &Map<String, Value>) -> Result<Vec<(String, String)>, Failure> {
    let mut values = Vec::new();
    for (name, value) in args {
        let good = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let text = match value {
            Value::String(text) if !text.contains('\0') => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return Err(Failure::new(format!("argument 'args': the value of {name} is no text"))),
        };
        if !good {
            return Err(Failure::new(format!("argument 'args': '{}' cannot name an ARG", name.escape_debug())));
        }
        values.push((name.clone(), text));
    }
    values.sort();
    Ok(values)
}

/// SHA-256 over all that an image is built from: each path of the folder with its kind, permission bits and content, the
/// Dockerfile's name and the arguments.
fn source(host: &dyn Read, folder: &Path, dockerfile: &str, values: &[(String, String)]) -> Result<String, Failure> {
    let missing = |path: &Path| {
        Failure::new(format!("cannot build from {}: {} does not exist on the host", folder.display(), path.display()))
            .hint("bring it there by an earlier task: copy")
    };
    let kind = |path: &Path| {
        host.meta_follow(path).map(|meta| meta.map(|meta| meta.kind)).map_err(|e| explain("look at", path, &e))
    };
    match kind(folder)? {
        Some(FileKind::Directory) => {}
        Some(_) => return Err(Failure::new(format!("cannot build from {}: it is no folder", folder.display()))),
        None => return Err(missing(folder)),
    }
    let recipe = folder.join(dockerfile);
    if kind(&recipe)? != Some(FileKind::File) {
        return Err(missing(&recipe));
    }
    let mut hash = Sha256::new();
    let mut take = |parts: &[&[u8]]| {
        for part in parts {
            // The length keeps `ab`, `c` apart from `a`, `bc`.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    };
    take(&[b"rollcall image 1", dockerfile.as_bytes()]);
    for (name, value) in values {
        take(&[name.as_bytes(), value.as_bytes()]);
    }
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let path = folder.join(&relative);
        let meta = if relative.as_os_str().is_empty() { host.meta_follow(&path) } else { host.meta(&path) };
        let Some(meta) = meta.map_err(|e| explain("look at", &path, &e))? else { continue };
        let content = match meta.kind {
            FileKind::Directory => {
                let names = host.list(&path).map_err(|e| explain("list", &path, &e))?;
                // The last one is taken first.
                waiting.extend(names.into_iter().rev().map(|name| relative.join(name)));
                String::new()
            }
            FileKind::File => sha256_hex(&host.read(&path).map_err(|e| explain("read", &path, &e))?),
            FileKind::Symlink => {
                host.read_link(&path).map_err(|e| explain("read", &path, &e))?.to_string_lossy().into_owned()
            }
            FileKind::Other => {
                return Err(Failure::new(format!(
                    "cannot build from {}: it is neither a file nor a folder",
                    path.display()
                )));
            }
        };
        let kind = format!("{:?} {:o}", meta.kind, meta.mode);
        let shown = relative.to_string_lossy().into_owned();
        take(&[shown.as_bytes(), kind.as_bytes(), content.as_bytes()]);
    }
    Ok(hex(&hash.finalize()))
}

// --- from a file ---

/// An image of an archive.
#[derive(Debug)]
struct Archived {
    tags: Vec<String>,
    /// As the engine calls it.
    id: String,
    layers: Vec<String>,
    created: String,
}

impl Archived {
    fn is(&self, image: &Value) -> bool {
        // An engine that keeps images by their manifests calls the same one differently.
        let same = !self.layers.is_empty() && !self.created.is_empty();
        at(image, "/Id") == self.id
            || (same && texts(image, "/RootFS/Layers") == self.layers && at(image, "/Created") == self.created)
    }
}

fn load(inv: &Invocation, args: &Args, name: &str, file: &Path, cx: &Cx<'_>) -> Result<Plan, Failure> {
    match cx.host.meta_follow(file).map_err(|e| explain("look at", file, &e))?.map(|meta| meta.kind) {
        Some(FileKind::File) => {}
        Some(_) => return Err(Failure::new(format!("cannot load {}: it is no file", file.display()))),
        None => {
            return Err(Failure::new(format!("cannot load {}: it does not exist on the host", file.display()))
                .hint("bring it there by an earlier task: copy or download"));
        }
    }
    let archived = match archived(file, name, cx.host) {
        // Its content is a plan only.
        Err(_) if cx.host.is_overlay() => {
            return Ok(unforeseen(format!(
                "what is in {} is known only when the run has put it there",
                file.display()
            )));
        }
        other => other?,
    };
    let before = match look(inv, cx.host, "image", name)? {
        Looked::Nothing => None,
        Looked::Unknown(why) => return Ok(unknown(&why)),
        Looked::Found(image) => Some(image),
    };
    if !args.force && before.as_ref().is_some_and(|image| archived.is(image)) {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), name, before.as_ref())));
    }
    let was = before.as_ref().map(|image| format!("{}\n", at(image, "/Id"))).unwrap_or_default();
    let diffs = diff(name, was, format!("{}\n", archived.id));
    let mut list = vec![docker(inv, ["load", "--quiet", "--input", &file.display().to_string()])];
    let tags = archived.tags.iter().map(|tag| reference(tag).unwrap_or_else(|_| tag.clone())).collect::<Vec<_>>();
    if !tags.iter().any(|tag| tag == name) {
        let known = tags.first().unwrap_or(&archived.id);
        list.push(docker(inv, ["tag", known, name]));
    }
    Ok(replaced(inv, name, before.as_ref(), list, (diffs, told(Outcome::changed(), name, before.as_ref()))))
}

/// The image of an archive that is meant: the one of this name, or the only one.
fn archived(file: &Path, name: &str, host: &dyn Read) -> Result<Archived, Failure> {
    let no_image = |why: String| {
        Failure::new(format!("cannot load {}: {why}", file.display()))
            .hint("expected a file that `docker save` wrote; a plain tree of files goes into an image by `build`")
    };
    // tar reads it piece by piece: an image may be larger than memory. It undoes compression by itself.
    let member = |member: &str| {
        let command = Command::new(["tar", "--extract", "--to-stdout", "--file", &file.display().to_string(), member]);
        let found = query(host, &command).map_err(|_| no_image(format!("there is no '{member}' in it")))?;
        let json =
            serde_json::from_str::<Value>(&found).map_err(|e| no_image(format!("'{member}' is no JSON: {e}")))?;
        Ok::<_, Failure>((found, json))
    };
    let (_, manifest) = member("manifest.json")?;
    let images = manifest.as_array().cloned().unwrap_or_default();
    let named =
        |image: &&Value| texts(image, "/RepoTags").iter().any(|tag| reference(tag).is_ok_and(|tag| tag == name));
    let image = match (images.iter().find(named), images.as_slice()) {
        (Some(image), _) | (None, [image]) => image,
        (None, []) => return Err(no_image("its manifest names no image".into())),
        (None, several) => {
            let tags: Vec<String> = several.iter().flat_map(|image| texts(image, "/RepoTags")).collect();
            let failure =
                Failure::new(format!("{} holds {} images, and none is {name}", file.display(), several.len()));
            return Err(failure.hint(format!("there are: {}", tags.join(", "))));
        }
    };
    let config = at(image, "/Config");
    if config.is_empty() || config.starts_with('-') {
        return Err(no_image("its manifest names no configuration".into()));
    }
    let (text, parsed) = member(config)?;
    Ok(Archived {
        tags: texts(image, "/RepoTags"),
        id: format!("sha256:{}", sha256_hex(text.as_bytes())),
        layers: texts(&parsed, "/rootfs/diff_ids"),
        created: at(&parsed, "/created").to_owned(),
    })
}

#[cfg(test)]
mod tests;
