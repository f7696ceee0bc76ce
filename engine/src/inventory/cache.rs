//! Answers of EC2 kept in files, one per query, with the time at which they were true.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::aws_ec2::{Instance, Query};

const VERSION: u32 = 1;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file cannot be read.
    #[error("cannot read the inventory cache {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what we wrote.
    #[error("the inventory cache {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write the inventory cache {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// Seconds since 1970.
    taken_at: u64,
    query: Query,
    instances: Vec<Instance>,
}

/// The place of one query's answer.
#[derive(Debug)]
pub struct Cache<'a> {
    path: PathBuf,
    query: &'a Query,
    seconds: u64,
}

impl<'a> Cache<'a> {
    /// Answers are good for that many seconds; 0: for ever.
    pub fn new(dir: &Path, query: &'a Query, seconds: u64) -> Self {
        // The environment chooses the account where the file does not.
        let environment: Vec<Option<String>> = [
            "AWS_PROFILE",
            "AWS_ACCESS_KEY_ID",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_EC2",
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
        ]
        .iter()
        .map(|name| std::env::var(name).ok())
        .collect();
        let key = serde_json::to_vec(&(query, environment)).unwrap_or_default();
        let hash = Sha256::digest(&key);
        let name = hash.iter().take(16).fold(String::new(), |name, b| name + &format!("{b:02x}"));
        Self { path: dir.join(format!("aws_ec2-{name}.json")), query, seconds }
    }

    /// The answer and its age, where there is one that is young enough.
    pub fn read(&self) -> Result<Option<(Vec<Instance>, Duration)>, CacheError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CacheError::Read { path: self.path.clone(), source }),
        };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|_| CacheError::Damaged { path: self.path.clone() })?;
        let taken = SystemTime::UNIX_EPOCH + Duration::from_secs(kept.taken_at);
        // A clock that was set back makes the age unknown: ask again.
        let Ok(age) = SystemTime::now().duration_since(taken) else { return Ok(None) };
        let fresh = self.seconds == 0 || age.as_secs() < self.seconds;
        let same = kept.version == VERSION && kept.query == *self.query;
        Ok((fresh && same).then_some((kept.instances, age)))
    }

    /// Keeps an answer; only the user may read it.
    pub fn write(&self, instances: &[Instance]) -> Result<(), CacheError> {
        let failed = |source| CacheError::Write { path: self.path.clone(), source };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let taken_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let kept = Kept { version: VERSION, taken_at, query: self.query.clone(), instances: instances.to_vec() };
        let text = serde_json::to_vec(&kept).map_err(|e| failed(e.into()))?;
        std::fs::create_dir_all(dir).map_err(failed)?;
        // A temporary file beside it, readable by the owner alone, takes its place at once.
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.persist(&self.path).map_err(|e| failed(e.error))?;
        Ok(())
    }
}

/// `3 min`, `2 h 5 min`: for people.
pub fn age_text(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_for_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let query = Query { regions: vec!["eu-west-1".into()], ..Query::default() };
        let other = Query { regions: vec!["eu-west-2".into()], ..Query::default() };
        let instance = Instance { id: "i-1".into(), region: "eu-west-1".into(), attributes: serde_json::Map::new() };
        let cache = Cache::new(dir.path(), &query, 60);
        assert!(cache.read().unwrap().is_none());
        cache.write(std::slice::from_ref(&instance)).unwrap();
        let (found, age) = cache.read().unwrap().unwrap();
        assert_eq!((found, age.as_secs() < 5), (vec![instance], true));
        assert!(Cache::new(dir.path(), &other, 60).read().unwrap().is_none());
        let text = std::fs::read_to_string(&cache.path).unwrap();
        let old = regex::Regex::new(r#""taken_at":\d+"#).unwrap().replace(&text, r#""taken_at":1000"#).into_owned();
        std::fs::write(&cache.path, old).unwrap();
        assert!(cache.read().unwrap().is_none());
        assert!(Cache::new(dir.path(), &query, 0).read().unwrap().is_some());
        std::fs::write(&cache.path, "{").unwrap();
        assert!(cache.read().unwrap_err().to_string().ends_with("is damaged"));
    }

    #[test]
    fn ages_read_well() {
        let texts: Vec<String> =
            [5, 119, 600, 7500, 200_000].iter().map(|s| age_text(Duration::from_secs(*s))).collect();
        assert_eq!(texts, ["5 s", "119 s", "10 min", "2 h 5 min", "2 days"]);
    }
}
