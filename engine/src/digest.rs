//! Hexadecimal text, and the SHA-256 of bytes in it.

use std::io;

use sha2::Digest as _;

/// Two digits for each byte, lower case.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|half| char::from(DIGITS[usize::from(half)])).collect()
}

/// The SHA-256 of some bytes, 64 digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// The SHA-256 of all that a reader gives, and how many bytes that were.
pub fn sha256_of(mut from: impl io::Read) -> io::Result<(String, u64)> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok((hex(&hasher.finalize()), size)),
            length => {
                hasher.update(&buffer[..length]);
                size += length as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(hex(&[0, 9, 0xa0, 0xff]), "0009a0ff");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), abc);
        assert_eq!(sha256_of(&b"abc"[..]).unwrap(), (abc.to_owned(), 3));
        let long = vec![7; 600_000];
        assert_eq!(sha256_of(&long[..]).unwrap(), (sha256_hex(&long), 600_000));
    }
}
