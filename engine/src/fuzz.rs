//! Properties of parsers: how many random inputs each gets.

use proptest::test_runner::Config;

/// At least so many, and as many as `PROPTEST_CASES` says (`make fuzz`). Inputs differ from run to run; one that fails is shown.
pub(crate) fn cases(least: u32) -> Config {
    let config = Config { failure_persistence: None, ..Config::default() };
    Config { cases: config.cases.max(least), ..config }
}
