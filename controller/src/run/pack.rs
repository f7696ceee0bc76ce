//! What travels to all hosts: made, compressed and hashed once.

use std::sync::Arc;

use anyhow::Context as _;
use rollcall_engine::{
    digest::sha256_hex,
    modules::Base64,
    protocol::{Frame, pack},
};

use super::{Job, remote::Bytes};

/// Files up to this size travel with the plays: asking for one costs a round trip.
const SMALL: u64 = 128 * 1024;
/// All of them together, before compression.
const SMALL_SUM: u64 = 2 * 1024 * 1024;

/// A blob's frame and its hash.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub(crate) hash: String,
    pub(crate) frame: Bytes,
}

fn packed(json: &[u8]) -> anyhow::Result<Packed> {
    let bytes = pack(json).context("cannot compress the run's content")?;
    let hash = sha256_hex(&bytes);
    Ok(Packed { frame: Arc::new(Frame::Blob(hash.clone(), bytes).encode()), hash })
}

/// The plays and the small files.
pub(crate) fn plays(job: &Job) -> anyhow::Result<Packed> {
    let mut files = Vec::new();
    let mut sum = 0;
    let mut seen = std::collections::HashSet::new();
    for (path, entry) in &job.bundle.files {
        if entry.size > SMALL || sum + entry.size > SMALL_SUM || !seen.insert(&entry.hash) {
            continue;
        }
        let content = job.contents.get(&entry.hash).with_context(|| format!("no content for {}", path.display()))?;
        let bytes = content.read().with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::ensure!(sha256_hex(&bytes) == entry.hash, "{} changed while the run was prepared", path.display());
        sum += entry.size;
        files.push((entry.hash.clone(), Base64(bytes)));
    }
    // The shape of `protocol::Pack`, borrowed: the bundle is big, and written once.
    #[derive(serde::Serialize)]
    struct Out<'a> {
        bundle: &'a rollcall_engine::playbook::model::Bundle,
        files: &'a [(String, Base64)],
    }
    packed(&serde_json::to_vec(&Out { bundle: &job.bundle, files: &files })?)
}

/// What templates see of other hosts.
pub(crate) fn shared(job: &Job) -> anyhow::Result<Option<Packed>> {
    job.shared.as_ref().map(|shared| packed(&serde_json::to_vec(shared)?)).transpose()
}

/// A file that a host asked for.
pub(crate) fn blob(job: &Job, hash: &str) -> anyhow::Result<Bytes> {
    let content = job.contents.get(hash).with_context(|| format!("no content {hash}"))?;
    let bytes = content.read()?;
    anyhow::ensure!(sha256_hex(&bytes) == hash, "a file changed while the run was at work");
    Ok(Arc::new(Frame::Blob(hash.to_owned(), bytes).encode()))
}
