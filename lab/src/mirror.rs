//! Release mirror in the vendor's layout, and the server that hands out its tree (and the package repository's).
//!
//! The same tree answers below `/faults/KIND/`, so that tests meet a bad mirror by changing a URL:
//! `404` answers every path so, `half` sends the true length, half of the file, and cuts the connection.

use std::io::{Read as _, Write as _};
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{Method, Response, StatusCode};
use axum::response::IntoResponse as _;
use http_body::Frame;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead as _, ReadBuf};

use crate::programs::{Layout, Program};

/// What one read from a served file takes at most.
const CHUNK_BYTES: usize = 128 << 10;
/// How long half a file may take to reach the peer before the connection is cut.
const CUT_DELAY: std::time::Duration = std::time::Duration::from_millis(300);

/// Serves the files below `root`.
pub(crate) fn router(root: &Path) -> Router {
    Router::new().fallback(serve).with_state(Arc::new(root.to_owned()))
}

/// How a request's path is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Whole,
    Half,
    Missing,
}

/// The manner, and the path below the root. None for a path that leads out of it or names an unknown fault.
fn resolve(path: &str) -> Option<(Manner, PathBuf)> {
    let path = path.trim_start_matches('/');
    let (manner, path) = match path.strip_prefix("faults/") {
        None => (Manner::Whole, path),
        Some(rest) => match rest.split_once('/')? {
            ("404", rest) => (Manner::Missing, rest),
            ("half", rest) => (Manner::Half, rest),
            _ => return None,
        },
    };
    let decoded = PathBuf::from(crate::cloud::imds::percent_decoded(path)?);
    let inside = decoded.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && !decoded.as_os_str().is_empty() && !path.contains("%00")).then_some((manner, decoded))
}

async fn serve(State(root): State<Arc<PathBuf>>, request: Request) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")]).into_response();
    }
    let missing = || (StatusCode::NOT_FOUND, "not found\n").into_response();
    let (manner, path) = match resolve(request.uri().path()) {
        None | Some((Manner::Missing, _)) => return missing(),
        Some(found) => found,
    };
    let path = root.join(path);
    let Ok(file) = tokio::fs::File::open(&path).await else { return missing() };
    let length = match file.metadata().await {
        Ok(meta) if meta.is_file() => meta.len(),
        _ => return missing(),
    };
    let headers = [(CONTENT_LENGTH, length.to_string()), (CONTENT_TYPE, media_type(&path).to_owned())];
    if *request.method() == Method::HEAD {
        return (headers, Body::empty()).into_response();
    }
    let (left, cut) = match manner {
        Manner::Half => (length / 2, Some(Box::pin(tokio::time::sleep(CUT_DELAY)))),
        Manner::Whole | Manner::Missing => (length, None),
    };
    (headers, Body::new(FileBody { file, left, cut })).into_response()
}

fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("zip") => "application/zip",
        Some("json") => "application/json",
        Some("deb") => "application/vnd.debian.binary-package",
        Some("gz" | "tgz") => "application/gzip",
        Some("gpg") => "application/octet-stream",
        _ => "text/plain; charset=utf-8",
    }
}

/// A file as the body of an answer, read as the peer takes it.
struct FileBody {
    file: tokio::fs::File,
    left: u64,
    /// The connection is cut when nothing is left to send, but not before this: what was sent would be lost too.
    cut: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.left == 0 {
            return match &mut self.cut {
                None => Poll::Ready(None),
                Some(delay) => {
                    delay.as_mut().poll(context).map(|()| Some(Err(std::io::Error::other("cut on purpose"))))
                }
            };
        }
        let wanted = usize::try_from(self.left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut bytes = vec![0; wanted];
        let mut buffer = ReadBuf::new(&mut bytes);
        match Pin::new(&mut self.file).poll_read(context, &mut buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(())) => {}
        }
        let read = buffer.filled().len();
        if read == 0 {
            return Poll::Ready(Some(Err(std::io::ErrorKind::UnexpectedEof.into())));
        }
        bytes.truncate(read);
        self.left -= read as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(bytes)))))
    }
}

/// Puts a program into the tree, in its vendor's layout. HashiCorp's: `NAME/VERSION/NAME_VERSION_linux_ARCH.zip`,
/// `NAME_VERSION_SHA256SUMS`, and the product's `index.json`. Plugins: `NAME/vVERSION/NAME-linux-ARCH-vVERSION.tgz` and the same
/// with `.sha256`. Does nothing where the archive is already there and was made from the same file.
pub(crate) fn publish(root: &Path, program: &Program, arch: &str) -> anyhow::Result<()> {
    let (name, version) = (&program.name, &program.version);
    let folder = match program.layout {
        Layout::Program => root.join(name).join(version),
        Layout::Plugins => root.join(name).join(format!("v{version}")),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let meta = std::fs::metadata(&program.path).with_context(|| format!("cannot read {}", program.path.display()))?;
    let origin = format!("{} {} {:?}\n", program.path.display(), meta.len(), meta.modified().ok());
    let stamp = root.join(format!(".{name}_{version}.from"));
    if std::fs::read_to_string(&stamp).is_ok_and(|known| known == origin) {
        return Ok(());
    }
    if program.layout == Layout::Plugins {
        let file = format!("{name}-linux-{arch}-v{version}.tgz");
        let archive = folder.join(&file);
        pack_folder(&program.path, &archive).with_context(|| format!("cannot make {}", archive.display()))?;
        write(&folder.join(format!("{file}.sha256")), &format!("{}  {file}\n", digest(&archive)?))?;
        return write(&stamp, &origin);
    }
    let file = format!("{name}_{version}_linux_{arch}.zip");
    let zip = folder.join(&file);
    pack(&program.path, name, &zip).with_context(|| format!("cannot make {}", zip.display()))?;
    let sum = digest(&zip)?;
    write(&folder.join(format!("{name}_{version}_SHA256SUMS")), &format!("{sum}  {file}\n"))?;
    index(root, name, arch)?;
    write(&stamp, &origin)
}

/// The product's index, from what lies in its folder.
fn index(root: &Path, name: &str, arch: &str) -> anyhow::Result<()> {
    let folder = root.join(name);
    let mut versions = serde_json::Map::new();
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir())?.file_name().into_string().ok())
        .collect();
    found.sort();
    for version in found {
        let file = format!("{name}_{version}_linux_{arch}.zip");
        let build = serde_json::json!({
            "name": name, "version": version, "os": "linux", "arch": arch, "filename": file,
            "url": format!("/{name}/{version}/{file}"),
        });
        let release = serde_json::json!({
            "name": name, "version": version, "shasums": format!("{name}_{version}_SHA256SUMS"), "builds": [build],
        });
        versions.insert(version, release);
    }
    let text = serde_json::json!({ "name": name, "versions": versions }).to_string();
    write(&folder.join("index.json"), &text)
}

/// A zip with the program and nothing else, as the vendor's.
fn pack(program: &Path, name: &str, zip: &Path) -> anyhow::Result<()> {
    let folder = zip.parent().unwrap_or(Path::new("."));
    let mut source = std::fs::File::open(program).with_context(|| format!("cannot open {}", program.display()))?;
    let made = tempfile::Builder::new().permissions(mode(0o644)).tempfile_in(folder)?;
    let mut writer = zip::ZipWriter::new(std::io::BufWriter::new(made));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated)
        // It is packed once and never leaves the machine: speed counts, not size.
        .compression_level(Some(1))
        .unix_permissions(0o755);
    writer.start_file(name, options)?;
    std::io::copy(&mut source, &mut writer)?;
    let mut buffer = writer.finish()?;
    buffer.flush()?;
    buffer.into_inner().map_err(std::io::IntoInnerError::into_error)?.persist(zip)?;
    Ok(())
}

/// All that is in a folder, in a compressed tar archive, its paths beginning with `./`.
fn pack_folder(source: &Path, archive: &Path) -> anyhow::Result<()> {
    let folder = archive.parent().unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().permissions(mode(0o644)).tempfile_in(folder)?;
    let mut tar = crate::run::command("tar");
    tar.args(["--create", "--gzip", "--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--file"])
        .arg(made.path())
        .arg("--directory")
        .arg(source)
        .arg(".");
    crate::run::run(&mut tar)?;
    made.persist(archive)?;
    Ok(())
}

fn mode(bits: u32) -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(bits)
}

/// SHA-256 of a file, in hex.
pub(crate) fn digest(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&chunk[..read]);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    crate::paths::write_atomic(path, text.as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn served(root: &Path) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(root);
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    /// A tree with one release, whose "program" is not compressible to a few bytes.
    fn release() -> (tempfile::TempDir, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let mut seed = 7_u32;
        let noise: Vec<u8> = (0..600_000)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        let path = folder.path().join("built");
        std::fs::write(&path, &noise).unwrap();
        let program =
            Program { name: "consul".to_owned(), version: "1.22.2".to_owned(), path, layout: Layout::Program };
        publish(&folder.path().join("tree"), &program, "amd64").unwrap();
        (folder, noise)
    }

    #[tokio::test]
    async fn a_release_is_found_checked_and_unpacked_as_the_vendors() {
        let (folder, program) = release();
        let base = served(&folder.path().join("tree")).await;
        let client = crate::cloud::moto::plain_client().unwrap();
        let sums = client
            .get(format!("{base}/consul/1.22.2/consul_1.22.2_SHA256SUMS"))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let (sum, name) = sums.trim_end().split_once("  ").unwrap();
        assert_eq!(name, "consul_1.22.2_linux_amd64.zip");
        let zip = client.get(format!("{base}/consul/1.22.2/{name}")).send().await.unwrap().bytes().await.unwrap();
        assert_eq!(hex(&Sha256::digest(&zip)), sum);
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(zip)).unwrap();
        let mut entry = archive.by_name("consul").unwrap();
        assert_eq!(entry.unix_mode().unwrap() & 0o777, 0o755);
        let mut unpacked = Vec::new();
        entry.read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == program);
        let index: serde_json::Value =
            client.get(format!("{base}/consul/index.json")).send().await.unwrap().json().await.unwrap();
        assert_eq!(index["versions"]["1.22.2"]["builds"][0]["url"], format!("/consul/1.22.2/{name}"));
    }

    #[test]
    fn plugins_are_packed_as_their_vendor_does() {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        std::fs::write(plugins.join("bridge"), "a program").unwrap();
        let program = Program {
            name: "cni-plugins".to_owned(),
            version: "1.9.1".to_owned(),
            path: plugins,
            layout: Layout::Plugins,
        };
        publish(folder.path(), &program, "amd64").unwrap();
        let release = folder.path().join("cni-plugins/v1.9.1");
        let archive = release.join("cni-plugins-linux-amd64-v1.9.1.tgz");
        let sum = std::fs::read_to_string(release.join("cni-plugins-linux-amd64-v1.9.1.tgz.sha256")).unwrap();
        assert_eq!(sum, format!("{}  cni-plugins-linux-amd64-v1.9.1.tgz\n", digest(&archive).unwrap()));
        let list = crate::run::run(crate::run::command("tar").arg("--list").arg("--file").arg(&archive)).unwrap();
        assert_eq!(list, "./\n./bridge\n");
    }

    #[tokio::test]
    async fn bad_mirrors_are_a_prefix_away() {
        let (folder, _) = release();
        let base = served(&folder.path().join("tree")).await;
        let path = "consul/1.22.2/consul_1.22.2_linux_amd64.zip";
        let client = crate::cloud::moto::plain_client().unwrap();
        let whole = client.get(format!("{base}/{path}")).send().await.unwrap();
        let length = whole.content_length().unwrap();
        assert_eq!(client.get(format!("{base}/faults/404/{path}")).send().await.unwrap().status(), 404);
        let half = client.get(format!("{base}/faults/half/{path}")).send().await.unwrap();
        assert_eq!((half.status().as_u16(), half.content_length()), (200, Some(length)));
        assert!(half.bytes().await.is_err(), "the connection must be cut");
        let head = client.head(format!("{base}/{path}")).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], length.to_string());
        assert_eq!(client.post(format!("{base}/{path}")).send().await.unwrap().status(), 405);
    }

    #[test]
    fn nothing_outside_of_the_tree_is_served() {
        for path in [
            "/../etc/passwd",
            "/a/../../b",
            "/%2e%2e/etc/passwd",
            "//etc/../..",
            "/",
            "/faults/half/..",
            "/faults/slow/a",
            "/a%00b",
            "/%zz",
        ] {
            assert_eq!(resolve(path), None, "{path}");
        }
        assert_eq!(resolve("/consul/index.json"), Some((Manner::Whole, "consul/index.json".into())));
        assert_eq!(resolve("/faults/404/x"), Some((Manner::Missing, "x".into())));
        assert_eq!(resolve("/pool/libc%2b%2b.deb"), Some((Manner::Whole, "pool/libc++.deb".into())));
    }

    #[test]
    fn a_release_is_packed_again_only_from_another_program() {
        let (folder, _) = release();
        let tree = folder.path().join("tree");
        let zip = tree.join("consul/1.22.2/consul_1.22.2_linux_amd64.zip");
        let before = digest(&zip).unwrap();
        let program = Program {
            name: "consul".to_owned(),
            version: "1.22.2".to_owned(),
            path: folder.path().join("built"),
            layout: Layout::Program,
        };
        std::fs::write(&zip, "kept").unwrap();
        publish(&tree, &program, "amd64").unwrap();
        assert_eq!(std::fs::read(&zip).unwrap(), b"kept");
        std::fs::write(&program.path, "another").unwrap();
        publish(&tree, &program, "amd64").unwrap();
        assert_ne!(digest(&zip).unwrap(), before);
        let sums = std::fs::read_to_string(tree.join("consul/1.22.2/consul_1.22.2_SHA256SUMS")).unwrap();
        assert!(sums.starts_with(&digest(&zip).unwrap()));
    }
}
