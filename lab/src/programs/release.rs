//! Programs from their vendors' release servers: archives, checked against the checksums beside them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::{Layout, Recipe, Workshop, go_arch};
use crate::paths;

/// Somebody who names a server that cannot be reached should hear so soon.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_mins(5);
/// The largest archive that is taken.
const ARCHIVE_LIMIT_BYTES: u64 = 1 << 30;

/// Downloads the program, or the folder of plugins, below `base` (`https://releases.hashicorp.com`). Returns its path.
pub(super) async fn fetch(recipe: &Recipe, base: &str, workshop: &Workshop<'_>) -> anyhow::Result<PathBuf> {
    let name = format!("{}-{}", recipe.name, recipe.version);
    let folder = workshop
        .once("programs", &name, &["release", base, go_arch()], async |folder| {
            (workshop.say)(&format!("downloading {} {} from {base}", recipe.name, recipe.version));
            let archive = download(recipe, base).await?;
            let path = folder.join(recipe.name);
            if recipe.layout == Layout::Plugins {
                paths::create_owned(&path, workshop.owner)?;
                return unpack_folder(&archive, &path);
            }
            let binary = unpack(&archive, recipe.name)?;
            paths::write_atomic(&path, &binary, 0o755)?;
            paths::give(&path, workshop.owner)
        })
        .await
        .with_context(|| format!("cannot get {} {} from {base}", recipe.name, recipe.version))?;
    Ok(folder.join(recipe.name))
}

async fn download(recipe: &Recipe, base: &str) -> anyhow::Result<Vec<u8>> {
    let client = if base.starts_with("https:") {
        reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            .build()
            .context("cannot make an HTTPS client")?
    } else {
        crate::cloud::moto::plain_client()?
    };
    let (name, version, arch, base) = (recipe.name, recipe.version, go_arch(), base.trim_end_matches('/'));
    let (folder, file, list) = match recipe.layout {
        Layout::Program => (
            format!("{base}/{name}/{version}"),
            format!("{name}_{version}_linux_{arch}.zip"),
            format!("{name}_{version}_SHA256SUMS"),
        ),
        Layout::Plugins => {
            let file = format!("{name}-linux-{arch}-v{version}.tgz");
            (format!("{base}/v{version}"), file.clone(), format!("{file}.sha256"))
        }
    };
    let sums = get(&client, &format!("{folder}/{list}")).await?;
    let sums = String::from_utf8_lossy(&sums).into_owned();
    let wanted = expected(&sums, &file).with_context(|| format!("{list} does not name {file}"))?.to_owned();
    let archive = get(&client, &format!("{folder}/{file}")).await?;
    let found = crate::mirror::hex(&<sha2::Sha256 as sha2::Digest>::digest(&archive));
    anyhow::ensure!(found == wanted, "{file} has the SHA-256 {found}, its list says {wanted}");
    Ok(archive)
}

async fn get(client: &reqwest::Client, url: &str) -> anyhow::Result<Vec<u8>> {
    let answer = client.get(url).send().await.with_context(|| format!("cannot reach {url}"))?;
    anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
    let size = answer.content_length().unwrap_or_default();
    anyhow::ensure!(size <= ARCHIVE_LIMIT_BYTES, "{url} is {size} bytes long, at most {ARCHIVE_LIMIT_BYTES} are taken");
    Ok(answer.bytes().await.with_context(|| format!("{url} ended early"))?.to_vec())
}

/// The checksum of a file in a list as `sha256sum` prints it.
fn expected<'a>(sums: &'a str, file: &str) -> Option<&'a str> {
    sums.lines().find_map(|line| {
        let (sum, name) = line.split_once(char::is_whitespace)?;
        (name.trim().trim_start_matches('*') == file && sum.len() == 64).then_some(sum)
    })
}

/// Into a folder that is there.
fn unpack_folder(archive: &[u8], folder: &Path) -> anyhow::Result<()> {
    let mut tar = crate::run::command("tar");
    tar.args(["--extract", "--gzip", "--no-same-owner", "--file", "-", "--directory"]).arg(folder);
    crate::run::run_with_input(&mut tar, archive).context("the archive is damaged").map(drop)
}

fn unpack(archive: &[u8], name: &str) -> anyhow::Result<Vec<u8>> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(archive)).context("the archive is no zip")?;
    let mut entry = zip.by_name(name).with_context(|| format!("the archive has no `{}`", Path::new(name).display()))?;
    let mut binary = Vec::new();
    entry.read_to_end(&mut binary).context("the archive is damaged")?;
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::{Layout, Program, RECIPES};

    /// A mirror with one release of a script.
    async fn mirror(folder: &Path) -> String {
        let path = folder.join("built");
        std::fs::write(&path, "#!/bin/sh\necho Consul v1.22.2\n").unwrap();
        let program =
            Program { name: "consul".to_owned(), version: "1.22.2".to_owned(), path, layout: Layout::Program };
        let tree = folder.join("tree");
        crate::mirror::publish(&tree, &program, go_arch()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, crate::mirror::router(&tree)).await });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn a_release_is_checked_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let base = mirror(folder.path()).await;
        let owner = crate::cloud::Owner {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            home: folder.path().to_owned(),
        };
        let workshop = Workshop { cache: &folder.path().join("cache"), owner: &owner, say: &|_| {} };
        let path = fetch(&RECIPES[0], &base, &workshop).await.unwrap();
        assert!(super::super::is_version(&path, &RECIPES[0]).await);
        assert_eq!(fetch(&RECIPES[0], &base, &workshop).await.unwrap(), path);
    }

    #[tokio::test]
    async fn plugins_come_as_a_folder() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let recipe = RECIPES.iter().find(|recipe| recipe.layout == Layout::Plugins).unwrap();
        let built = folder.path().join("built");
        std::fs::create_dir(&built).unwrap();
        for package in recipe.packages {
            let path = built.join(package.rsplit('/').next().unwrap());
            std::fs::write(&path, format!("#!/bin/sh\necho CNI plugin v{} >&2\n", recipe.version)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let (name, version) = (recipe.name.to_owned(), recipe.version.to_owned());
        let program = Program { name, version, path: built, layout: recipe.layout };
        crate::mirror::publish(&folder.path().join("tree"), &program, go_arch()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/{}", listener.local_addr().unwrap(), recipe.name);
        let router = crate::mirror::router(&folder.path().join("tree"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let owner = crate::cloud::Owner { uid, gid, home: folder.path().to_owned() };
        let workshop = Workshop { cache: &folder.path().join("cache"), owner: &owner, say: &|_| {} };
        let path = fetch(recipe, &base, &workshop).await.unwrap();
        assert!(super::super::is_version(&path, recipe).await);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), recipe.packages.len());
        let error = fetch(&RECIPES[0], &base, &workshop).await.unwrap_err();
        assert!(format!("{error:#}").contains("answers 404"), "{error:#}");
    }

    #[tokio::test]
    async fn bad_mirrors_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let base = mirror(folder.path()).await;
        let told = async |base: &str| format!("{:#}", download(&RECIPES[0], base).await.unwrap_err());
        assert!(told(&format!("{base}/faults/404")).await.contains("answers 404"));
        assert!(told(&format!("{base}/faults/half")).await.contains("ended early"));
        let sums = folder.path().join("tree/consul/1.22.2/consul_1.22.2_SHA256SUMS");
        let list = std::fs::read_to_string(&sums).unwrap();
        std::fs::write(&sums, format!("{}{}", "0".repeat(64), &list[64..])).unwrap();
        assert!(told(&base).await.contains("its list says 0000"));
        std::fs::write(&sums, list.replace("linux", "plan9")).unwrap();
        assert!(told(&base).await.contains("does not name consul_1.22.2_linux_"));
        assert!(told("http://127.0.0.1:1").await.contains("cannot reach http://127.0.0.1:1/consul/1.22.2/"));
    }
}
