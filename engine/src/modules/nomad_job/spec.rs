//! The text of a job: where it is, what Nomad reads in it, and where it is wrong.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::Args;
use crate::{
    cluster::nomad::{ApiError, Nomad},
    modules::{
        Content, Cx, Failure, FromArg, Invocation,
        steps::{read_text, text},
    },
};

/// A job as Nomad takes it.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) id: String,
    pub(super) namespace: String,
    /// As the API has it.
    pub(super) job: Value,
    /// What Nomad keeps to show people.
    pub(super) submission: Option<Value>,
}

impl Spec {
    /// A job of which only the name is known.
    pub(super) fn named(id: &str, namespace: Option<&str>) -> Self {
        Self {
            id: id.to_owned(),
            namespace: namespace.unwrap_or("default").to_owned(),
            job: Value::Null,
            submission: None,
        }
    }

    /// `service`, `batch`, …
    pub(super) fn kind(&self) -> &str {
        self.job.get("Type").and_then(Value::as_str).filter(|kind| !kind.is_empty()).unwrap_or("service")
    }

    /// It comes to an end by itself.
    pub(super) fn is_batch(&self) -> bool {
        matches!(self.kind(), "batch" | "sysbatch")
    }

    /// What differences are about.
    pub(super) fn title(&self) -> String {
        format!("nomad job {} in {}", self.id, self.namespace)
    }
}

/// A text, and how messages call it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
    /// Values for the variables that it declares, in HCL.
    variables: String,
}

/// The text that a call was given.
pub(super) fn source(args: &Args, inv: &Invocation, cx: &Cx<'_>) -> Result<Option<Source>, Failure> {
    let (name, text) = match (&args.src, &args.content) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(Failure::new("'src' and 'content' exclude each other")),
        (None, Some(Value::String(text))) => ("content".to_owned(), text.clone()),
        (None, Some(value @ Value::Object(_))) => ("content".to_owned(), value.to_string()),
        (None, Some(_)) => return Err(Failure::new("argument 'content': expected a text or a mapping")),
        (Some(src), None) if args.remote_src => {
            let path = PathBuf::from_arg(&Value::from(src.as_str()))
                .map_err(|why| Failure::new(format!("argument 'src': {why}")))?;
            let there = read_text(cx.host, &path)?;
            (src.clone(), there.ok_or_else(|| Failure::new(format!("argument 'src': there is no file {src}")))?)
        }
        (Some(src), None) => match &inv.content {
            Some(Content::File { bytes, .. }) => (src.clone(), text(bytes)),
            Some(Content::Tree(_)) => return Err(Failure::new(format!("argument 'src': '{src}' is a folder"))),
            None => return Err(Failure::new(format!("the content of '{src}' did not come along"))),
        },
    };
    if text.trim().is_empty() {
        return Err(Failure::new(format!("{name}: there is no job in it")));
    }
    let mut variables = String::new();
    for (variable, value) in &args.variables {
        variables.push_str(&format!("{variable} = {}\n", hcl(value)));
    }
    if is_json(&text) && !variables.is_empty() {
        return Err(Failure::new("'variables' are for texts in HCL: this one is JSON, which declares none"));
    }
    Ok(Some(Source { name, text, variables }))
}

fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// A value as HCL has it: JSON, with what would be taken for an expression taken apart.
fn hcl(value: &Value) -> String {
    value.to_string().replace("${", "$${").replace("%{", "%%{")
}

/// What Nomad reads in the text; `None` of JSON, which is read here.
pub(super) fn parse(nomad: &Nomad, source: &Source, args: &Args) -> Result<Option<Value>, ApiError> {
    if is_json(&source.text) {
        return Ok(None);
    }
    let body = json!({ "JobHCL": source.text, "Variables": source.variables, "Canonicalize": false });
    let nomad = args.namespace.as_ref().map_or_else(|| nomad.clone(), |namespace| nomad.within(namespace));
    nomad.post(&["jobs", "parse"], &[], &body).map(Some)
}

impl Source {
    /// The job of what Nomad answered.
    pub(super) fn read(
        &self,
        parsed: Result<Option<Value>, Failure>,
        namespace: Option<&str>,
    ) -> Result<Spec, Failure> {
        let (job, format) = match parsed.map_err(|failure| self.located(failure))? {
            Some(job) => (job, "hcl2"),
            None => (self.json()?, "json"),
        };
        let wrong = |why: &str| Failure::new(format!("{}: {why}", self.name));
        let Value::Object(mut job) = job else { return Err(wrong("a job is a mapping")) };
        let word = |key: &str| job.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let id = word("ID").or_else(|| word("Name")).ok_or_else(|| wrong("the job has neither ID nor Name"))?;
        let namespace = match (word("Namespace"), namespace) {
            (Some(own), Some(given)) if own != given && own != "default" => {
                return Err(wrong(&format!("the job is of namespace '{own}', and 'namespace' says '{given}'")));
            }
            (Some(own), None) => own,
            (_, Some(given)) => given.to_owned(),
            (None, None) => "default".to_owned(),
        };
        job.insert("ID".into(), id.clone().into());
        job.insert("Namespace".into(), namespace.clone().into());
        let submission = json!({ "Source": self.text, "Format": format, "Variables": self.variables });
        Ok(Spec { id, namespace, job: Value::Object(job), submission: Some(submission) })
    }

    /// The job of JSON, with or without the wrapping that the API's documentation shows.
    fn json(&self) -> Result<Value, Failure> {
        let value: Map<String, Value> = serde_json::from_str(&self.text).map_err(|e| {
            let line = self.snippet(e.line());
            Failure::new(format!("{}:{}:{}: no JSON: {e}{line}", self.name, e.line(), e.column()))
        })?;
        Ok(match value.get("Job").or_else(|| value.get("job")) {
            Some(job @ Value::Object(_)) => job.clone(),
            _ => Value::Object(value),
        })
    }

    /// Nomad's words about the text, under the text's own name, with the line that they are about.
    fn located(&self, failure: Failure) -> Failure {
        let Some((_, said)) = failure.message.split_once("Failed to parse job: ") else { return failure };
        let mut message = said.replace("input.hcl", &self.name).replace("input.hcl2", &self.name);
        let place = said.split_once("input.hcl:").and_then(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        if let Some(line) = place {
            message.push_str(&self.snippet(line));
        }
        let failure = Failure { message, ..failure };
        if said.contains("Undefined variable") || said.contains("unknown variable") || said.contains("Unset variable") {
            return failure.hint("a variable that has a value is declared in the text, and one without a default has a value: `variables`");
        }
        failure
    }

    fn snippet(&self, line: usize) -> String {
        match line.checked_sub(1).and_then(|at| self.text.lines().nth(at)) {
            Some(text) => format!("\n  {line} | {}", text.trim_end()),
            None => String::new(),
        }
    }
}
