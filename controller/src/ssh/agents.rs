//! The agents' binaries here: found, hashed, compressed.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rollcall_engine::digest::{sha256_hex, sha256_of};
use tokio::sync::OnceCell;

use super::agent_cache::Cache;
use super::push::AgentError;
use super::push_script::Codec;

/// Where agents live on a host.
pub const INSTALL_DIR: &str = "/usr/local/lib/rollcall";

/// One agent program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentBinary {
    pub path: PathBuf,
    /// As `uname -m` says it: `x86_64`, `aarch64`.
    pub arch: String,
    /// SHA-256 in hex.
    pub hash: String,
}

type Packed = Arc<OnceCell<Result<Arc<Vec<u8>>, Arc<io::Error>>>>;

/// The agents of a run, one per architecture. Each is compressed at most once.
pub struct Agents {
    binaries: Vec<AgentBinary>,
    pub(super) folder: String,
    cache: Cache,
    packed: Mutex<HashMap<(String, Codec), Packed>>,
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents").field("binaries", &self.binaries).finish_non_exhaustive()
    }
}

impl Agents {
    pub fn new(binaries: Vec<AgentBinary>) -> Self {
        Self { binaries, folder: INSTALL_DIR.to_owned(), cache: Cache::default(), packed: Mutex::default() }
    }

    /// Another folder on the hosts: letters, digits and `/._-`.
    #[cfg(test)]
    pub(super) fn in_folder(mut self, folder: &str) -> Self {
        assert!(folder.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)));
        folder.clone_into(&mut self.folder);
        self
    }

    pub fn binaries(&self) -> &[AgentBinary] {
        &self.binaries
    }

    pub(super) async fn packed(&self, agent: &AgentBinary, codec: Codec) -> Result<Arc<Vec<u8>>, AgentError> {
        let cell = {
            let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
            packed.entry((agent.hash.clone(), codec)).or_default().clone()
        };
        let (path, hash, cache) = (agent.path.clone(), agent.hash.clone(), self.cache.clone());
        let packed = cell.get_or_init(|| async move {
            let packed = tokio::task::spawn_blocking(move || match codec {
                Codec::Raw => pack(&path, &hash, codec),
                Codec::Zstd => cache.packed(&hash, "zstd", || pack(&path, &hash, codec)),
                Codec::Gzip => cache.packed(&hash, "gzip", || pack(&path, &hash, codec)),
            })
            .await;
            packed.unwrap_or_else(|join| Err(io::Error::other(join))).map(Arc::new).map_err(Arc::new)
        });
        packed.await.clone().map_err(|source| AgentError::Read { path: agent.path.clone(), source })
    }
}

/// Packing takes half a second, once for each agent.
const ZSTD_LEVEL: i32 = 9;
/// 512 KiB: the host unpacks in a quarter less time than with a window that its processor's cache does not hold, of a twentieth
/// more bytes.
const ZSTD_WINDOW: u32 = 19;

fn pack(path: &Path, hash: &str, codec: Codec) -> io::Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    if sha256_hex(&bytes) != hash {
        return Err(io::Error::other("it changed while the run was prepared"));
    }
    match codec {
        Codec::Raw => Ok(bytes),
        Codec::Zstd => {
            let mut packer = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
            packer.window_log(ZSTD_WINDOW)?;
            packer.write_all(&bytes)?;
            packer.finish()
        }
        Codec::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            packer.write_all(&bytes)?;
            packer.finish()
        }
    }
}

/// Finds agents in the folders, in their order: `agent-ARCH-linux`, or `agent` for whatever
/// architecture it was built. The first one found for an architecture counts. `cache`: the program's cache folder, in
/// which hashes and compressed forms are kept for the next run.
pub fn find_agents(dirs: &[PathBuf], cache: Option<&Path>) -> Result<Agents, AgentError> {
    let cache = Cache::new(cache);
    let mut found: Vec<AgentBinary> = Vec::new();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        // A file that names its architecture comes before plain `agent`.
        names.sort_by_key(|name| (name == "agent", name.clone()));
        for name in names {
            let named = name.strip_prefix("agent-").and_then(|rest| rest.strip_suffix("-linux"));
            if named.is_none() && name != "agent" {
                continue;
            }
            let path = dir.join(&name);
            if !path.is_file() {
                continue;
            }
            let arch = match elf_arch(&path)? {
                Some(arch) => arch,
                // A controller on another system has its own kind of `agent` beside it.
                None if named.is_none() => continue,
                None => {
                    return Err(AgentError::NotAnAgent {
                        path,
                        reason: "not a Linux program for a processor that we know".into(),
                    });
                }
            };
            if let Some(named) = named
                && named != arch
            {
                return Err(AgentError::NotAnAgent { path, reason: format!("named for {named} and built for {arch}") });
            }
            if found.iter().all(|agent| agent.arch != arch) {
                let hash = cache
                    .hash(&path)
                    .map_err(|source| AgentError::Read { path: path.clone(), source: Arc::new(source) })?;
                found.push(AgentBinary { path, arch: arch.to_owned(), hash });
            }
        }
    }
    if found.is_empty() {
        return Err(AgentError::NoAgents { dirs: dirs.to_vec() });
    }
    Ok(Agents { cache, ..Agents::new(found) })
}

/// The processor that a Linux program is for, from its ELF header; `None`: no such program.
fn elf_arch(path: &Path) -> Result<Option<&'static str>, AgentError> {
    let mut header = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(20).read_to_end(&mut header));
    read.map_err(|source| AgentError::Read { path: path.to_owned(), source: Arc::new(source) })?;
    // Magic, 64 bit, little endian; e_machine stands at byte 18.
    Ok(match header.get(18..20) {
        Some(machine) if header.starts_with(b"\x7fELF\x02\x01") => match u16::from_le_bytes([machine[0], machine[1]]) {
            62 => Some("x86_64"),
            183 => Some("aarch64"),
            _ => None,
        },
        _ => None,
    })
}

/// SHA-256 of a file, in hex.
pub(super) fn hash_file(path: &Path) -> io::Result<String> {
    Ok(sha256_of(std::fs::File::open(path)?)?.0)
}
