//! Calls of modules on the machine, as their tests make them.

use serde_json::json;

use super::*;
use crate::{
    host::real::Real,
    modules::{Content, Definition, Invocation},
};

/// A call of a module.
pub(crate) fn call(definition: &Definition, args: Value, content: Option<Content>) -> Invocation {
    let args = args.as_object().cloned().unwrap();
    Invocation {
        module: definition.name.into(),
        args,
        content,
        environment: Vec::new(),
        diff: true,
        timeout: None,
        secret: false,
    }
}

/// Plans and applies on the machine; the same on an overlay first, which must say the same.
pub(crate) fn run(definition: &Definition, invocation: &Invocation) -> Result<(Outcome, Vec<Diff>), Failure> {
    let facts = json!({});
    let step = |host: &mut dyn Write| {
        let plan = (definition.plan)(
            invocation,
            &Cx { host: host.as_read(), facts: &facts, secrets: crate::secrets::grants::nobody() },
        )?;
        match plan {
            Plan::Unchanged(outcome) => Ok((outcome, Vec::new())),
            Plan::Change(change) => {
                let diffs = change.diffs();
                change.apply(host).map(|outcome| (outcome, diffs))
            }
        }
    };
    let mut real = Real::new();
    let checked = {
        let base = Real::new();
        let mut overlay = Overlay::new(&base);
        let first = step(&mut overlay);
        if let Ok((outcome, _)) = &first
            && outcome.changed
            && !matches!(invocation.args.get("state"), Some(Value::String(s)) if s == "touch")
            && definition.name != "download"
        {
            let (again, _) = step(&mut overlay).unwrap();
            assert!(!again.changed, "a second check on the overlay says changed: {again:?}");
        }
        first
    };
    let applied = step(&mut real);
    match (&checked, &applied) {
        (Ok((a, x)), Ok((b, y))) => {
            assert_eq!((a.changed, a.unknown), (b.changed, b.unknown), "check and run differ");
            assert_eq!(x, y, "diffs of check and run differ");
        }
        (Err(a), Err(b)) => assert_eq!(a.message, b.message),
        // What only the run can find: a failing validation, a download.
        (Ok(_), Err(_)) => {}
        (Err(e), Ok(_)) => panic!("the check failed, the run did not: {e:?}"),
    }
    if let Ok((outcome, _)) = &applied {
        let untold = definition.untold(&outcome.data);
        assert!(untold.is_empty(), "{}: results that the manual does not name: {untold:?}", definition.name);
    }
    applied
}

/// [`run`], then again: the second time nothing may change.
pub(crate) fn run_twice(definition: &Definition, invocation: &Invocation) -> (Outcome, Vec<Diff>) {
    let first = run(definition, invocation).unwrap();
    let (second, diffs) = run(definition, invocation).unwrap();
    assert!(!second.changed && diffs.is_empty(), "the second run changed something: {second:?} {diffs:?}");
    first
}
