//! The host keys that cloud-init prints to an EC2 instance's console.

use super::public_key::{PublicKey, is_algorithm};

const BEGIN: &str = "-----BEGIN SSH HOST KEY KEYS-----";
const END: &str = "-----END SSH HOST KEY KEYS-----";

/// The host keys in a console's text: those of the last complete block, since an instance whose
/// keys were made anew prints them again. Empty while no block is complete (the console lags, or
/// its first part has been cut away).
///
/// A console is a noisy place: lines end in `\r`, carry time stamps and unit names in front, and
/// the kernel writes between them. So the words of a key are looked for anywhere in a line, and
/// count only if the blob itself names the same algorithm.
pub fn keys_from_console(text: &str) -> Vec<PublicKey> {
    let mut last = Vec::new();
    let mut open: Option<Vec<PublicKey>> = None;
    for line in text.split(['\n', '\r']) {
        if line.contains(BEGIN) {
            open = Some(Vec::new());
        } else if line.contains(END) {
            if let Some(keys) = open.take().filter(|keys| !keys.is_empty()) {
                last = keys;
            }
        } else if let Some(keys) = &mut open
            && let Some(key) = key_in(line)
            && !keys.contains(&key)
        {
            keys.push(key);
        }
    }
    last
}

fn key_in(line: &str) -> Option<PublicKey> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).find_map(|pair| {
        let [name, data] = pair else { return None };
        // A prefix may touch the name: "cloud-init:ssh-ed25519", or a colour code before it.
        let name = name.char_indices().map(|(at, _)| &name[at..]).find(|tail| is_algorithm(tail))?;
        PublicKey::from_words(name, data)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::public_key::tests::sample;

    fn block(keys: &[PublicKey]) -> String {
        let lines = keys.iter().map(|key| format!("{key} root@ip-10-0-0-1\n")).collect::<Vec<_>>().concat();
        format!("{BEGIN}\n{lines}{END}\n")
    }

    #[test]
    fn a_clean_block() {
        let keys = vec![sample(1), sample(2)];
        let text = format!("[    0.0] Linux version 6.1\n{}login: ", block(&keys));
        assert_eq!(keys_from_console(&text), keys);
    }

    /// What cloud-init 22.4.2 of Debian 12 printed for a host's three keys, with their fingerprints before them.
    #[test]
    fn the_block_of_cloud_init() {
        let text = include_str!("tests/cloud-init-22.4.2.txt");
        let keys = keys_from_console(text);
        let kinds: Vec<&str> = keys.iter().map(PublicKey::algorithm).collect();
        assert_eq!(kinds, ["ecdsa-sha2-nistp256", "ssh-ed25519", "ssh-rsa"]);
        assert!(keys.iter().all(|key| text.contains(&key.fingerprint())), "{keys:?}");
    }

    #[test]
    fn noise_carriage_returns_and_prefixes() {
        let text = format!(
            "x\r\n[   12.3] cloud-init[713]: {BEGIN}\r\r\n[   12.3] cloud-init[713]: {} root@h\r\r\n\
             [   12.31] random: crng init done\r\n\
             <14>Nov 21 ci: {}\r\n[   12.4] cloud-init[713]: {END}\r\n",
            sample(3),
            sample(4)
        );
        assert_eq!(keys_from_console(&text), vec![sample(3), sample(4)]);
    }

    #[test]
    fn a_prefix_that_touches_the_name() {
        let text = format!("{BEGIN}\nci:{}\n\u{1b}[0m{}\n{END}\n", sample(5), sample(6));
        assert_eq!(keys_from_console(&text), vec![sample(5), sample(6)]);
    }

    #[test]
    fn the_last_complete_block_counts() {
        let text = format!("{}{}{BEGIN}\n{}\n", block(&[sample(1)]), block(&[sample(2)]), sample(9));
        assert_eq!(keys_from_console(&text), vec![sample(2)]);
    }

    #[test]
    fn nothing_from_cut_or_foreign_text() {
        assert!(keys_from_console("").is_empty());
        assert!(keys_from_console(&format!("{BEGIN}\n{}\n", sample(1))).is_empty());
        assert!(keys_from_console(&format!("{}\n{END}\n", sample(1))).is_empty());
        assert!(keys_from_console(&format!("{}\n", sample(1))).is_empty());
        assert!(keys_from_console(&format!("{BEGIN}\nssh-ed25519 AAAA cut\n{END}\n")).is_empty());
        let fingerprints = "-----BEGIN SSH HOST KEY FINGERPRINTS-----\n256 SHA256:x root (ED25519)\n\
                            -----END SSH HOST KEY FINGERPRINTS-----";
        assert!(keys_from_console(fingerprints).is_empty());
    }

    #[test]
    fn an_empty_block_does_not_hide_an_earlier_one() {
        let text = format!("{}{BEGIN}\n{END}\n", block(&[sample(1)]));
        assert_eq!(keys_from_console(&text), vec![sample(1)]);
    }
}
