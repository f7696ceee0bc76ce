use serde_json::json;

use super::*;

#[test]
fn rules_are_about_what_consul_knows() {
    for good in [
        "",
        "acl = \"write\"\noperator = \"read\" # read only\n",
        "node_prefix \"\" { policy = \"read\" }\n// a comment {\nservice \"web\" {\n  policy = \"write\"\n  intentions = \"read\"\n}",
        "/* nothing\n of { this */ key_prefix \"a/{b}\\\"\" { policy = \"deny\" }",
        "{\"key_prefix\": {\"\": {\"policy\": \"read\"}}}",
        "key = { \"a\" = { policy = \"read\" } }",
    ] {
        assert!(Rules::from_arg(&json!(good)).is_ok(), "{good}: {:?}", Rules::from_arg(&json!(good)));
    }
    for (bad, why) in [
        (
            json!("node_prefx \"\" { policy = \"read\" }"),
            "rules cannot be about 'node_prefx' (did you mean 'node_prefix'?)",
        ),
        (json!({"servce": {}}), "rules cannot be about 'servce' (did you mean 'service'?)"),
        (json!("{\"keys\": {}}"), "rules cannot be about 'keys'"),
        (json!("node \"a\" { policy = \"read\""), "a '{' is not closed"),
        (json!("acl = \"write\"\n}"), "line 2: '}' closes nothing"),
        (json!("acl = \"write"), "a quoted text does not end"),
        (json!(7), "expected rules"),
    ] {
        let found = Rules::from_arg(&bad).unwrap_err();
        assert!(found.contains(why), "{bad}: {found}");
    }
}
