//! The operator's age keys.

use std::io::Read as _;

use age::{secrecy::ExposeSecret as _, x25519};
use zeroize::Zeroizing;

/// The identities of a key file: each opens the store, and the store is encrypted to all of them.
pub(super) struct Keys(Vec<x25519::Identity>);

impl Keys {
    /// Reads a key file. The error quotes nothing of it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not text".to_owned())?;
        if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE") {
            return Err("is encrypted itself, which is not supported: decrypt it first".to_owned());
        }
        let mut keys = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.parse::<x25519::Identity>();
            keys.push(key.map_err(|why| format!("has no age identity on its line {} ({why})", at + 1))?);
        }
        if keys.is_empty() {
            return Err("has no age identity in it".to_owned());
        }
        Ok(Self(keys))
    }

    /// Encrypts to these keys and further ones; text in age's armor.
    pub(super) fn close(&self, text: &[u8], further: &[String]) -> Result<Vec<u8>, String> {
        let mut recipients: Vec<x25519::Recipient> = self.0.iter().map(x25519::Identity::to_public).collect();
        for recipient in further {
            recipients.push(recipient.parse().map_err(|why| format!("the recipient '{recipient}' is none ({why})"))?);
        }
        let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|r| r as &dyn age::Recipient))
            .map_err(|e| e.to_string())?;
        let mut out = Vec::with_capacity(text.len() * 3 / 2 + 1024);
        let armor = age::armor::ArmoredWriter::wrap_output(&mut out, age::armor::Format::AsciiArmor);
        let write = || -> std::io::Result<()> {
            let mut writer = encryptor.wrap_output(armor?)?;
            std::io::Write::write_all(&mut writer, text)?;
            writer.finish()?.finish().map(drop)
        };
        write().map_err(|e| e.to_string())?;
        Ok(out)
    }

    /// Decrypts.
    pub(super) fn open(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, age::DecryptError> {
        let decryptor = age::Decryptor::new_buffered(age::armor::ArmoredReader::new(bytes))?;
        let mut reader = decryptor.decrypt(self.0.iter().map(|key| key as &dyn age::Identity))?;
        // With room for all of it, so that growing leaves no copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(bytes.len()));
        reader.read_to_end(&mut text)?;
        Ok(text)
    }
}

/// The text of a new key file.
pub(super) fn generate() -> Zeroizing<Vec<u8>> {
    let key = x25519::Identity::generate();
    let secret = key.to_string();
    let text = format!(
        "# The key of Rollcall's secrets stores of this user. Keep a copy in a safe place: nothing else opens them.\n\
         # public key: {}\n{}\n",
        key.to_public(),
        secret.expose_secret()
    );
    Zeroizing::new(text.into_bytes())
}
