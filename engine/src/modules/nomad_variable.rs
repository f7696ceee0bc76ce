//! `nomad_variable`: a variable of Nomad, which jobs read by their identity.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Cx, Definition, Diff, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan,
    nomad_api::{self as api, Act, Given, Opened, SecretName, State, api_args},
    nomad_namespace::check_name,
};
use crate::{
    cluster::nomad::{ApiError, Kind, Nomad},
    secrets::Secret,
};

api_args! {
    /// Arguments.
    pub struct Args {
        /// Its path. A job reads what lies at `nomad/jobs/JOB` without a policy of its own.
        path []: String, required;
        /// The namespace that it is in.
        namespace []: String = "default".to_owned();
        /// Its items: names, and texts.
        items []: Map<String, Value> = Map::new();
        /// Items whose values are secrets: names, and the names of the secrets. They are shown in no diff.
        items_from []: Map<String, Value> = Map::new();
        /// Write it only if there is none yet.
        create_only []: bool = false;
        /// `absent` removes it.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_variable",
    aliases: &[],
    summary: "Writes or removes a variable of Nomad",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("index", "The variable's index after the call; 0 where there is none.")]],
    example: "- name: what the shop knows\n  nomad_variable:\n    path: nomad/jobs/shop\n    items: {greeting: hello}\n    items_from: {password: app/shop-password}\n    token_secret: nomad/management\n",
    plan,
};

type Items = BTreeMap<String, Secret>;

/// What it should have.
#[derive(Debug)]
struct Wanted {
    path: String,
    namespace: String,
    /// `None`: there should be none.
    items: Option<Items>,
    create_only: bool,
}

/// What is there.
#[derive(Debug)]
struct Found {
    items: Items,
    index: u64,
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check_path(&args.path)?;
    check_name(&args.namespace)?;
    let items = match items(&args, cx)? {
        Ok(items) => items,
        Err(plan) => return Ok(plan),
    };
    let hidden = inv.secret || !args.items_from.is_empty();
    let wanted =
        Wanted { path: args.path.clone(), namespace: args.namespace.clone(), items, create_only: args.create_only };
    let nomad = match api::open::<Nomad>(&args.access(), cx)? {
        Opened::Client(nomad) => nomad.within(&args.namespace),
        Opened::Later(plan) => return Ok(plan),
    };
    let found = match api::first_look(args.wait, cx, || wanted.find(&nomad)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    if wanted.is_met(found.as_ref()) {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), found.as_ref())));
    }
    let what = format!("nomad variable {} in {}", args.path, args.namespace);
    let diff = if hidden {
        Diff { what, before: String::new(), after: String::new(), hidden: true }
    } else {
        api::diff(what, &lines(found.as_ref().map(|found| &found.items)), &lines(wanted.items.as_ref()))
    };
    let planned = told(Outcome::changed(), found.as_ref());
    Ok(Act::plan(diff, planned, move |_| write(&nomad, &wanted, args.wait)))
}

/// Nomad's rules for paths.
fn check_path(path: &str) -> Result<(), Failure> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_~/".contains(c);
    let wrong = |why: &str| Err(Failure::new(format!("argument 'path': '{}' {why}", path.escape_debug())));
    if !(1..=128).contains(&path.len()) || !path.chars().all(fits) {
        return wrong("is no path: 1 to 128 letters, digits, '-', '_', '~' and '/'");
    }
    if path.split('/').any(str::is_empty) {
        return wrong("has an empty part: paths neither begin nor end with a slash, and none follows another");
    }
    // Nomad keeps these for itself.
    if path == "nomad"
        || (path.starts_with("nomad/") && !path.starts_with("nomad/jobs") && !path.starts_with("nomad/job-templates"))
    {
        return wrong("is Nomad's own: below 'nomad/' only nomad/jobs and nomad/job-templates are for you");
    }
    Ok(())
}

/// The items that are wanted. The inner error is the plan of a check that does not know a secret yet.
fn items(args: &Args, cx: &Cx<'_>) -> Result<Result<Option<Items>, Plan>, Failure> {
    let given = !args.items.is_empty() || !args.items_from.is_empty();
    match args.state {
        State::Absent if given => return Err(Failure::new("a variable that is to be removed has no items")),
        State::Absent => return Ok(Ok(None)),
        State::Present if !given => {
            return Err(Failure::new("argument 'items' is missing").hint("or give 'items_from'"));
        }
        State::Present => {}
    }
    let mut items = Items::new();
    for (name, value) in &args.items {
        let text = String::from_arg(value).map_err(|e| Failure::new(format!("argument 'items': '{name}': {e}")))?;
        items.insert(name.clone(), Secret::new(text));
    }
    for (name, from) in &args.items_from {
        let wrong = |why: String| Failure::new(format!("argument 'items_from': '{name}': {why}"));
        let from = SecretName::from_arg(from).map_err(wrong)?;
        match api::secret(("items", None), ("items_from", Some(&from)), cx)? {
            Given::Value(secret) => {
                if items.insert(name.clone(), secret).is_some() {
                    return Err(wrong("stands in 'items' too".into()));
                }
            }
            Given::NotYet(why) => return Ok(Err(api::may_change(why))),
            Given::Nothing => {}
        }
    }
    Ok(Ok(Some(items)))
}

impl Wanted {
    fn way(&self) -> Vec<&str> {
        std::iter::once("var").chain(self.path.split('/')).collect()
    }

    fn find(&self, nomad: &Nomad) -> Result<Option<Found>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            items: Option<BTreeMap<String, String>>,
            modify_index: u64,
        }
        let found: Option<Raw> = nomad.found(&self.way(), &[])?;
        Ok(found.map(|raw| Found {
            items: raw.items.into_iter().flatten().map(|(name, text)| (name, Secret::new(text))).collect(),
            index: raw.modify_index,
        }))
    }

    fn is_met(&self, found: Option<&Found>) -> bool {
        match (&self.items, found) {
            (Some(_), Some(_)) if self.create_only => true,
            (Some(items), Some(found)) => *items == found.items,
            (None, None) => true,
            _ => false,
        }
    }
}

fn write(nomad: &Nomad, wanted: &Wanted, wait: Duration) -> Result<Outcome, Failure> {
    let way = wanted.way();
    let settled = api::settle(
        wait,
        || wanted.find(nomad),
        |found| wanted.is_met(found),
        |found| {
            let index = found.map_or(0, |found| found.index).to_string();
            let query = [("cas", index.as_str())];
            let done = match &wanted.items {
                Some(items) => {
                    let texts: Map<String, Value> =
                        items.iter().map(|(name, text)| (name.clone(), text.expose().into())).collect();
                    let body = json!({ "Namespace": wanted.namespace, "Path": wanted.path, "Items": texts });
                    let hide: Vec<&Secret> = items.values().collect();
                    nomad.send_hidden::<Value>(&way, &query, &body, &hide).map(drop)
                }
                None => nomad.delete(&way, &query),
            };
            done.map_err(|error| match error.kind {
                // The answer has what the other wrote.
                Kind::InUse => ApiError::overtaken(error.call),
                _ => error,
            })
        },
    )
    .map_err(|failure| {
        if failure.message.contains("nonexistent namespace") {
            return failure.hint(format!("nomad_namespace makes the namespace '{}'", wanted.namespace));
        }
        failure
    })?;
    Ok(told(api::outcome(settled.changed), settled.now.as_ref()))
}

fn lines(items: Option<&Items>) -> String {
    let mut lines = String::new();
    for (name, text) in items.into_iter().flatten() {
        lines.push_str(&format!("{name}: {}\n", text.expose()));
    }
    lines
}

fn told(outcome: Outcome, found: Option<&Found>) -> Outcome {
    outcome.with("index", found.map_or(0, |found| found.index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::{
        fake::{Fake, go, plan},
        http::tests::{Server, answer},
    };

    fn stored(items: Value, index: u64) -> String {
        answer(
            "200 OK",
            &json!({"Path": "a/b", "Namespace": "default", "Items": items, "ModifyIndex": index}).to_string(),
        )
    }

    #[test]
    fn it_is_compared_and_written_where_nobody_else_was_faster() {
        let args = |server: &Server, value: &str| json!({"path": "a/b", "items": {"x": value}, "url": server.url(""), "wait": 0});
        let old = stored(json!({"x": "1"}), 7);
        let server = Server::new([&old]);
        let outcome = go(&mut Fake::new(), "nomad_variable", args(&server, "1")).unwrap();
        assert!(!outcome.changed && outcome.data["index"] == 7);
        // Somebody wrote in between: what stands there is read again, and nothing of it is told.
        let theirs = stored(json!({"x": "their secret"}), 8);
        let conflict = answer("409 Conflict", &json!({"Items": {"x": "their secret"}}).to_string());
        let done = stored(json!({"x": "2"}), 9);
        let server = Server::new([&old, &old, &conflict, &theirs, &done, &done]);
        let outcome = go(&mut Fake::new(), "nomad_variable", args(&server, "2")).unwrap();
        assert!(outcome.changed && outcome.data["index"] == 9);
        let calls = server.requests();
        assert!(calls[2].starts_with("PUT /v1/var/a/b?cas=7&namespace=default "), "{}", calls[2]);
        assert!(calls[4].starts_with("PUT /v1/var/a/b?cas=8&namespace=default "), "{}", calls[4]);
    }

    #[test]
    fn a_difference_is_shown_unless_a_secret_has_part_in_it() {
        let server = Server::new([&stored(json!({"x": "1"}), 7)]);
        let args = json!({"path": "a/b", "items": {"x": "2"}, "url": server.url("")});
        let Plan::Change(change) = plan(&Fake::new(), "nomad_variable", args).unwrap() else { panic!("it differs") };
        assert_eq!((change.diffs()[0].before.as_str(), change.diffs()[0].after.as_str()), ("x: 1\n", "x: 2\n"));
    }

    #[test]
    fn bad_input_is_refused() {
        for (args, message) in [
            (json!({"path": "/a", "items": {"x": "1"}}), "has an empty part"),
            (json!({"path": "a b", "items": {"x": "1"}}), "is no path"),
            (json!({"path": "nomad/x", "items": {"x": "1"}}), "is Nomad's own"),
            (json!({"path": "a", "items": {"x": [1]}}), "'x': expected a string"),
            (json!({"path": "a"}), "argument 'items' is missing"),
            (json!({"path": "a", "state": "absent", "items": {"x": "1"}}), "has no items"),
            (json!({"path": "a", "items_from": {"x": "A B"}}), "argument 'items_from': 'x'"),
            (json!({"path": "a", "items": {"x": "1"}, "namespace": "a_b"}), "no name for a namespace"),
        ] {
            let failure = plan(&Fake::new(), "nomad_variable", args).unwrap_err();
            assert!(failure.message.contains(message), "{failure}");
        }
    }
}
