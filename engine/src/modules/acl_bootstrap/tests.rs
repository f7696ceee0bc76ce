use serde_json::json;

use super::*;

static SOMETHING: Product = Product {
    name: "Something",
    first: Release(1, 3, 2),
    mark: "something/formed",
    page: "docs/something.md",
    reset: Some("something_reset"),
};
static ANOTHER: Product =
    Product { name: "Another", first: Release(1, 15, 0), mark: "another/formed", page: "docs/another.md", reset: None };

#[test]
fn a_foreign_bootstrap_carries_its_mark() {
    let failure = explain(&SOMETHING, BootstrapError::Foreign { said: "HTTP 403: no longer allowed".into() });
    assert_eq!(failure.data.get("foreign_bootstrap"), Some(&json!(true)));
    assert!(failure.message.starts_with("someone else bootstrapped this cluster"), "{failure}");
    assert!(failure.hint.unwrap().contains("Nothing was reset"));
    let lost = explain(&SOMETHING, BootstrapError::TotalLoss);
    assert_eq!(lost.data.get("total_loss"), Some(&json!(true)));
    let hint = lost.hint.unwrap();
    for part in ["-e something_reset=true", "Else stop something on", "controller secret delete something/formed"] {
        assert!(hint.contains(part), "{hint}");
    }
    let hint = explain(&ANOTHER, BootstrapError::TotalLoss).hint.unwrap();
    assert!(hint.contains("bootstrapped. Stop another on these servers, and empty") && !hint.contains("-e "), "{hint}");
    let other = explain(&SOMETHING, BootstrapError::GaveUp { after: Duration::from_secs(3), last: "no leader".into() });
    assert_eq!((other.message.as_str(), other.data.len()), ("not done after 3 s: no leader", 0));
}
