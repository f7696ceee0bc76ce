use std::{cell::Cell, sync::Arc};

use serde_json::json;

use super::*;
use crate::{
    modules::fake::Fake,
    secrets::grants::{Grants, Issued, SignRequest},
};

/// Answers every name with one thing.
#[derive(Debug)]
struct Always(Result<Secret, GrantError>);

impl Grants for Always {
    fn secret(&self, _: &Name) -> Result<Secret, GrantError> {
        self.0.clone()
    }
    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("no"))
    }
}

fn asked(answer: Result<Secret, GrantError>, value: Option<&str>, name: Option<&str>) -> Result<Given, Failure> {
    let (host, grants) = (Fake::new(), Arc::new(Always(answer)) as Arc<dyn Grants>);
    let facts = json!({});
    let cx = Cx { host: &host, facts: &facts, secrets: &grants };
    let value = value.map(|text| Hidden(Secret::new(text)));
    let name = name.map(|text| SecretName(Name::new(text).unwrap()));
    secret(("token", value.as_ref()), ("token_secret", name.as_ref()), &cx)
}

#[test]
fn secrets_come_by_value_or_by_name() {
    let there = || Ok(Secret::new("from the store"));
    assert!(matches!(asked(there(), Some("v"), None), Ok(Given::Value(s)) if s.expose() == "v"));
    assert!(matches!(asked(there(), None, Some("a/b")), Ok(Given::Value(s)) if s.expose() == "from the store"));
    assert!(matches!(asked(there(), None, None), Ok(Given::Nothing)));
    assert_eq!(
        asked(there(), Some("v"), Some("a/b")).unwrap_err().message,
        "'token' and 'token_secret' exclude each other"
    );
    assert!(matches!(asked(Err(GrantError::NotYet("x".into())), None, Some("a/b")), Ok(Given::NotYet(_))));
    let refused = GrantError::Refused { why: "not yours".into(), hint: Some("ask".into()) };
    let failure = asked(Err(refused), None, Some("a/b")).unwrap_err();
    assert_eq!(failure.message, "argument 'token_secret': not yours");
    assert_eq!(failure.hint.as_deref(), Some("ask"));
}

#[test]
fn a_wrong_value_is_not_shown() {
    for wrong in [json!(["hunter2"]), json!({"a": "hunter2"}), json!(""), json!(42)] {
        let error = Hidden::from_arg(&wrong).unwrap_err();
        assert!(!error.contains("hunter2") && !error.contains("42"), "{error}");
    }
    assert!(!format!("{:?}", Hidden::from_arg(&json!("hunter2")).unwrap()).contains("hunter2"));
    assert!(SecretName::from_arg(&json!("../x")).unwrap_err().contains("is no name of a secret"));
    assert_eq!(url("http://127.0.0.1:8500").shown(), "http://127.0.0.1:8500/");
}

#[test]
fn whose_something_is_stands_in_its_description() {
    assert_eq!(ours(""), "Made by Rollcall");
    assert_eq!(ours("dns"), "Made by Rollcall: dns");
    assert!(is_ours(&ours("")) && is_ours(&ours("x")));
    assert!(!is_ours("Made by Rollcallers") && !is_ours("dns") && !is_ours(""));
}

fn error(kind: Kind) -> ApiError {
    ApiError { kind, call: "PUT /v1/x".into(), said: "said".into() }
}

/// Settles a number that should be 7; each write does what its turn says, and answers so.
fn settled(begin: Option<u8>, turns: &[(Option<u8>, Result<(), ApiError>)]) -> (Result<Settled<u8>, Failure>, usize) {
    let (now, writes) = (Cell::new(begin), Cell::new(0));
    let result = settle(
        Duration::ZERO,
        || Ok(now.get()),
        |found| found == Some(&7),
        |_| {
            let (after, answer) = turns[writes.get()].clone();
            writes.set(writes.get() + 1);
            now.set(after);
            answer
        },
    );
    (result, writes.get())
}

#[test]
fn what_is_right_is_not_written() {
    let (result, writes) = settled(Some(7), &[]);
    assert_eq!((result.unwrap().changed, writes), (false, 0));
}

#[test]
fn a_write_is_read_back_whatever_it_said() {
    let (result, writes) = settled(None, &[(Some(7), Ok(()))]);
    assert_eq!((result.unwrap().changed, writes), (true, 1));
    // The answer was lost: it happened, or it did not.
    let (result, writes) = settled(None, &[(Some(7), Err(error(Kind::Lost)))]);
    assert_eq!((result.unwrap().changed, writes), (true, 1));
    let (result, writes) = settled(None, &[(None, Err(error(Kind::Lost))), (Some(7), Ok(()))]);
    assert_eq!((result.unwrap().changed, writes), (true, 2));
    // Somebody else made the same.
    let (result, writes) = settled(None, &[(Some(7), Err(error(Kind::InUse)))]);
    assert_eq!((result.unwrap().changed, writes), (false, 1));
}

#[test]
fn a_quarrel_and_a_refusal_end() {
    let (result, writes) = settled(None, &vec![(Some(1), Ok(())); WRITES]);
    let failure = result.unwrap_err();
    assert_eq!(
        (failure.message.as_str(), failure.changed, writes),
        ("it does not stay as it was written", true, WRITES)
    );
    let (result, writes) = settled(None, &[(None, Err(error(Kind::Denied)))]);
    let failure = result.unwrap_err();
    assert_eq!((failure.message.as_str(), failure.changed, writes), ("PUT /v1/x: said", false, 1));
}
