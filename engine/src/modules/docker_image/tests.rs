use serde_json::json;

use super::*;
use crate::{
    host::overlay::Overlay,
    modules::fake::{Fake, go, plan},
};

const NONE: &str = "Error: No such image: web:v1";
const DOWN: &str = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?";

fn folder() -> Fake {
    Fake::new().file("/srv/web/Dockerfile", "FROM scratch\n").file("/srv/web/www/index.html", "hello\n")
}

fn built(id: &str, source: &str) -> String {
    json!([{"Id": id, "Config": {"Labels": {SOURCE_LABEL: source}}}]).to_string()
}

fn call() -> Value {
    json!({"name": "web:v1", "build": "/srv/web", "args": {"COLOUR": "red"}})
}

fn source_of(fake: &Fake) -> String {
    let values = [("COLOUR".to_owned(), "red".to_owned())];
    format!("sha256:{}", source(fake, Path::new("/srv/web"), "Dockerfile", &values).unwrap())
}

#[test]
fn a_folder_is_built_once_and_again_when_anything_of_it_changes() {
    let source = source_of(&folder());
    let mut fake = folder().answers_once("docker image inspect web:v1", 1, "[]", NONE).answers(
        "docker image inspect web:v1",
        0,
        &built("sha256:11", &source),
        "",
    );
    let outcome = go(&mut fake, "docker_image", call()).unwrap();
    assert!(outcome.changed);
    assert_eq!(
        (&outcome.data["id"], &outcome.data["image"], &outcome.data["source"]),
        (&json!("sha256:11"), &json!("web:v1"), &json!(source))
    );
    assert_eq!(
        fake.ran,
        [format!(
            "docker build --quiet --force-rm --tag web:v1 --label rollcall.source={source} --build-arg COLOUR \
             --file /srv/web/Dockerfile /srv/web"
        )]
    );
    assert!(!go(&mut fake, "docker_image", call()).unwrap().changed);

    // Content, a new file, an argument, the mode: each is another image.
    let other = |change: &dyn Fn(&mut Fake, &mut Value)| {
        let mut fake = folder().answers("docker image inspect web:v1", 0, &built("sha256:11", &source), "");
        let mut args = call();
        change(&mut fake, &mut args);
        matches!(plan(&fake, "docker_image", args).unwrap(), Plan::Change(_))
    };
    assert!(!other(&|_, _| ()));
    assert!(other(&|fake, _| drop(fake.files.insert("/srv/web/www/index.html".into(), b"bye\n".to_vec()))));
    assert!(other(&|fake, _| drop(fake.files.insert("/srv/web/www/more".into(), Vec::new()))));
    assert!(other(&|_, args| args["args"]["COLOUR"] = json!("blue")));
    assert!(other(&|_, args| args["force"] = json!(true)));
    assert!(other(&|fake, _| {
        let attrs = crate::host::Attrs { mode: Some(0o755), ..Default::default() };
        fake.attrs.insert("/srv/web/www/index.html".into(), attrs);
    }));
}

#[test]
fn the_image_that_had_the_name_is_removed_unless_it_is_the_same() {
    let mut fake = folder()
        .answers_once("docker image inspect web:v1", 0, &built("sha256:old", "sha256:00"), "")
        .answers("docker image inspect web:v1", 0, &built("sha256:new", ""), "")
        .answers("docker image rm", 1, "", "conflict: image is being used by running container 1");
    assert!(go(&mut fake, "docker_image", call()).unwrap().changed);
    assert_eq!(fake.ran[1..], ["docker image rm sha256:old"]);
    let mut fake = folder().answers("docker image inspect web:v1", 0, &built("sha256:same", "sha256:00"), "");
    go(&mut fake, "docker_image", call()).unwrap();
    assert_eq!(fake.ran.len(), 1, "{:?}", fake.ran);
}

#[test]
fn a_check_says_what_a_run_would_do_and_runs_nothing() {
    let fake = folder().answers("docker image inspect web:v1", 1, "[]", NONE);
    let mut overlay = Overlay::new(&fake);
    let Plan::Change(change) = plan(&overlay, "docker_image", call()).unwrap() else { panic!() };
    assert_eq!(change.diffs()[0].what, "image web:v1");
    assert!(change.diffs()[0].after.starts_with("built from sha256:"), "{:?}", change.diffs());
    assert!(change.apply(&mut overlay).unwrap().changed && fake.ran.is_empty());
    // An engine that is not there yet: an earlier task may install it.
    let bare = folder();
    let outcome = go(&mut Overlay::new(&bare), "docker_image", call()).unwrap();
    assert!(outcome.unknown, "{outcome:?}");
}

#[test]
fn an_engine_that_is_not_there_or_down_is_told() {
    let error = plan(&folder(), "docker_image", call()).unwrap_err();
    assert_eq!(error.message, "docker is not installed on this host");
    let fake = folder().answers("docker image inspect", 1, "[]", DOWN);
    let error = plan(&fake, "docker_image", call()).unwrap_err();
    assert_eq!(error.message, "the Docker engine of this host does not answer");
    assert!(error.hint.unwrap().contains("systemctl status docker"));
    let mut fake = folder().answers("docker image inspect", 1, "[]", NONE).answers(
        "docker build",
        1,
        "",
        "Step 1/2\nCOPY failed: no such file",
    );
    let error = go(&mut fake, "docker_image", call()).unwrap_err();
    assert_eq!(error.message, "docker build ended with code 1: COPY failed: no such file");
    assert!(!error.changed);
}

/// Answers of tar for an archive with one image.
fn archive(fake: Fake) -> (Fake, String) {
    let config =
        json!({"created": "2026-01-01T00:00:00Z", "rootfs": {"diff_ids": ["sha256:aa", "sha256:bb"]}}).to_string();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["web:v1"], "Layers": []}]).to_string();
    let tar = "tar --extract --to-stdout --file /srv/web.tar";
    let fake = fake.file("/srv/web.tar", "").answers(&format!("{tar} manifest.json"), 0, &manifest, "").answers(
        &format!("{tar} c.json"),
        0,
        &config,
        "",
    );
    (fake, format!("sha256:{}", sha256_hex(config.as_bytes())))
}

#[test]
fn a_file_is_loaded_once_and_named() {
    let args = json!({"name": "web:v1", "load": "/srv/web.tar"});
    let (fake, id) = archive(Fake::new());
    let mut fake = fake.answers_once("docker image inspect", 1, "[]", NONE).answers(
        "docker image inspect",
        0,
        &json!([{"Id": id}]).to_string(),
        "",
    );
    assert_eq!(go(&mut fake, "docker_image", args.clone()).unwrap().data["id"], id);
    assert_eq!(fake.ran, ["docker load --quiet --input /srv/web.tar"]);
    assert!(!go(&mut fake, "docker_image", args.clone()).unwrap().changed);
    // An engine that names images by their manifests.
    let same = json!([{"Id": "sha256:other", "Created": "2026-01-01T00:00:00Z", "RootFS": {"Layers": ["sha256:aa", "sha256:bb"]}}]);
    let (fake, _) = archive(Fake::new().answers("docker image inspect", 0, &same.to_string(), ""));
    assert!(matches!(plan(&fake, "docker_image", args).unwrap(), Plan::Unchanged(_)));
    // Another name than the file's.
    let (fake, _) = archive(Fake::new());
    let mut fake = fake.answers_once("docker image inspect", 1, "[]", NONE).answers(
        "docker image inspect",
        0,
        &json!([{"Id": id}]).to_string(),
        "",
    );
    go(&mut fake, "docker_image", json!({"name": "shop", "load": "/srv/web.tar"})).unwrap();
    assert_eq!(fake.ran[1], "docker tag web:v1 shop:latest");
}

#[test]
fn a_file_that_is_no_archive_of_an_image_is_refused() {
    let error = |fake: Fake| plan(&fake, "docker_image", json!({"name": "web", "load": "/srv/web.tar"})).unwrap_err();
    assert!(error(Fake::new()).message.ends_with("does not exist on the host"));
    let fake = Fake::new().file("/srv/web.tar", "").answers("tar", 2, "", "tar: manifest.json: Not found in archive");
    let told = error(fake);
    assert_eq!(told.message, "cannot load /srv/web.tar: there is no 'manifest.json' in it");
    assert!(told.hint.unwrap().contains("docker save"));
    let two = json!([{"Config": "a", "RepoTags": ["a:1"]}, {"Config": "b", "RepoTags": ["b:1"]}]).to_string();
    let told = error(Fake::new().file("/srv/web.tar", "").answers("tar", 0, &two, ""));
    assert_eq!(told.message, "/srv/web.tar holds 2 images, and none is web:latest");
    assert_eq!(told.hint.unwrap(), "there are: a:1, b:1");
}

#[test]
fn an_image_is_removed_once() {
    let args = json!({"name": "web:v1", "state": "absent"});
    let mut fake = Fake::new().answers_once("docker image inspect", 0, &built("sha256:11", ""), "").answers(
        "docker image inspect",
        1,
        "[]",
        NONE,
    );
    assert!(go(&mut fake, "docker_image", args.clone()).unwrap().changed);
    assert_eq!(fake.ran, ["docker image rm web:v1"]);
    assert!(!go(&mut fake, "docker_image", args).unwrap().changed);
}

#[test]
fn bad_input_is_refused() {
    let error = |args| plan(&folder(), "docker_image", args).unwrap_err();
    assert!(error(json!({"name": "web"})).message.contains("one of 'build' and 'load'"));
    assert!(error(json!({"name": "web", "build": "/a", "load": "/b"})).message.contains("exclude each other"));
    assert!(error(json!({"name": "Web!", "build": "/a"})).hint.unwrap().contains("web-service:v0.1"));
    assert!(error(json!({"name": "web", "build": "/nowhere"})).message.contains("does not exist on the host"));
    assert!(error(json!({"name": "web", "build": "/srv"})).message.contains("/srv/Dockerfile does not exist"));
    assert!(
        error(json!({"name": "web", "build": "/srv/web", "dockerfile": "../x"})).message.contains("no path inside")
    );
    assert!(
        error(json!({"name": "web", "build": "/srv/web", "args": {"A B": 1}})).message.contains("cannot name an ARG")
    );
    assert!(error(json!({"name": "web", "build": "srv"})).message.contains("absolute path"));
}
