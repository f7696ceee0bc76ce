//! How messages and content travel: a length, a kind, a body.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Bytes of one frame at most.
pub const MAX_FRAME: usize = 1 << 30;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message in JSON.
    Json(Vec<u8>),
    /// Content with its SHA-256 in hex.
    Blob(String, Vec<u8>),
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side is gone.
    #[error("the connection ended in the middle of a message")]
    Cut,
    /// Reading failed.
    #[error("cannot read a message")]
    Io(#[source] io::Error),
    /// Not ours.
    #[error("not a message of this protocol: {0}")]
    Garbage(String),
}

impl Frame {
    /// A message as a frame.
    pub fn json<T: Serialize>(message: &T) -> io::Result<Self> {
        serde_json::to_vec(message).map(Self::Json).map_err(io::Error::other)
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, hash, body) = match self {
            Self::Json(body) => (0, &[][..], body),
            Self::Blob(hash, body) => (1, hash.as_bytes(), body),
        };
        let mut out = Vec::with_capacity(5 + hash.len() + body.len());
        let length = u32::try_from(1 + hash.len() + body.len()).unwrap_or(u32::MAX);
        out.extend(length.to_be_bytes());
        out.push(kind);
        out.extend(hash);
        out.extend(body);
        out
    }

    /// Takes the body apart (everything after the length).
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        match body {
            [0, json @ ..] => Ok(Self::Json(json.to_vec())),
            [1, rest @ ..] => {
                let hash = rest.get(..64).and_then(|h| std::str::from_utf8(h).ok());
                let hash = hash.filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
                let hash = hash.ok_or_else(|| FrameError::Garbage("a blob without its hash".into()))?;
                Ok(Self::Blob(hash.to_owned(), rest[64..].to_vec()))
            }
            [kind, ..] => Err(FrameError::Garbage(format!("frame kind {kind}"))),
            [] => Err(FrameError::Garbage("an empty frame".into())),
        }
    }

    /// Checks a length that was read.
    pub fn check_length(bytes: [u8; 4]) -> Result<usize, FrameError> {
        let length = u32::from_be_bytes(bytes) as usize;
        if length == 0 || length > MAX_FRAME {
            let text: String = bytes.iter().map(|b| char::from(*b)).filter(|c| !c.is_control()).collect();
            return Err(FrameError::Garbage(format!("a length of {length} ('{text}')")));
        }
        Ok(length)
    }

    /// Reads one frame; `None` at a clean end.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, FrameError> {
        let mut length = [0; 4];
        match from.read(&mut length[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(FrameError::Io(e)),
        }
        let cut = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::Cut,
            _ => FrameError::Io(e),
        };
        from.read_exact(&mut length[1..]).map_err(cut)?;
        let length = Self::check_length(length)?;
        // Grown as bytes arrive: a lying length costs no memory.
        let mut body = Vec::with_capacity(length.min(1 << 16));
        let got = from.take(length as u64).read_to_end(&mut body).map_err(cut)?;
        if got < length {
            return Err(FrameError::Cut);
        }
        Self::decode(&body).map(Some)
    }

    /// Writes one frame and flushes.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.encode())?;
        to.flush()
    }

    /// The message in a JSON frame.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        match self {
            Self::Json(body) => serde_json::from_slice(body).map_err(|e| FrameError::Garbage(e.to_string())),
            Self::Blob(..) => Err(FrameError::Garbage("a blob where a message was expected".into())),
        }
    }
}

/// Compresses what is sent to many hosts.
pub fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::encode_all(bytes, 3)
}

/// The inverse of [`pack`]; [`MAX_FRAME`] bytes at most.
pub fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    zstd::Decoder::new(bytes)?.take(MAX_FRAME as u64).read_to_end(&mut out)?;
    Ok(out)
}
