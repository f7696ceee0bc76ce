//! Tests that pick points at random, and can be made to pick the same ones again.

#![expect(clippy::print_stdout, reason = "what a test has seen is shown with --nocapture")]

use std::io::Write as _;

/// Numbers that a seed repeats (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// A number that a variable gives.
#[track_caller]
pub fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What `ROLLCALL_TEST_SEED` says, otherwise the time; it is printed, so that a failure can be repeated.
#[track_caller]
pub fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = number("ROLLCALL_TEST_SEED", clock);
    println!("ROLLCALL_TEST_SEED={seed}");
    seed
}

/// Tells how many of how many held, and adds it to the table that `make test-faults` writes.
pub fn counted(what: &str, held: u64, of: u64) {
    println!("{what}: {held} of {of}");
    let Some(table) = std::env::var_os("ROLLCALL_TEST_TABLE") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&table);
    let written = file.and_then(|mut file| writeln!(file, "| {what} | {held} of {of} |"));
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", table.display()));
}
