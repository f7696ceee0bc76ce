use serde_json::json;

use super::*;

static SOMETHING: Product =
    Product { name: "Something", first: Release(1, 3, 2), mark: "something/formed", page: "docs/something.md" };

#[test]
fn a_foreign_bootstrap_carries_its_mark() {
    let failure = explain(&SOMETHING, BootstrapError::Foreign { said: "HTTP 403: no longer allowed".into() });
    assert_eq!(failure.data.get("foreign_bootstrap"), Some(&json!(true)));
    assert!(failure.message.starts_with("someone else bootstrapped this cluster"), "{failure}");
    assert!(failure.hint.unwrap().contains("Nothing was reset"));
    let lost = explain(&SOMETHING, BootstrapError::TotalLoss);
    assert_eq!(lost.data.get("total_loss"), Some(&json!(true)));
    assert!(lost.hint.unwrap().contains("controller secret delete something/formed"));
    let other = explain(&SOMETHING, BootstrapError::GaveUp { after: Duration::from_secs(3), last: "no leader".into() });
    assert_eq!((other.message.as_str(), other.data.len()), ("not done after 3 s: no leader", 0));
}
