//! Nomad's plan as people read it: the job before and after, and what becomes of its allocations.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What differs in a job.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct JobDiff {
    #[serde(rename = "Type")]
    kind: String,
    fields: Option<Vec<Field>>,
    objects: Option<Vec<Thing>>,
    task_groups: Option<Vec<Group>>,
}

/// A group, or a task in one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Group {
    #[serde(rename = "Type")]
    kind: String,
    name: String,
    fields: Option<Vec<Field>>,
    objects: Option<Vec<Thing>>,
    tasks: Option<Vec<Group>>,
    annotations: Option<Vec<String>>,
}

/// A block.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Thing {
    name: String,
    fields: Option<Vec<Field>>,
    objects: Option<Vec<Thing>>,
}

/// A value.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Field {
    #[serde(rename = "Type")]
    kind: String,
    name: String,
    old: String,
    new: String,
    annotations: Option<Vec<String>>,
}

/// What becomes of the allocations, for each group.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Annotations {
    #[serde(rename = "DesiredTGUpdates")]
    updates: Option<BTreeMap<String, Updates>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Updates {
    place: u64,
    migrate: u64,
    stop: u64,
    in_place_update: u64,
    destructive_update: u64,
    canary: u64,
    preemptions: u64,
}

impl JobDiff {
    /// Nothing differs.
    pub(super) fn is_none(&self) -> bool {
        self.kind == "None"
    }
}

/// `web: 2 to place, 1 to stop`; `None` where nothing happens.
pub(super) fn summary(annotations: &Annotations) -> Option<String> {
    let groups: Vec<String> = annotations
        .updates
        .iter()
        .flatten()
        .filter_map(|(group, updates)| {
            let all = [
                (updates.place, "to place"),
                (updates.canary, "as canary"),
                (updates.destructive_update, "to replace"),
                (updates.in_place_update, "to change in place"),
                (updates.migrate, "to move"),
                (updates.stop, "to stop"),
                (updates.preemptions, "of others to push aside"),
            ];
            let words: Vec<String> = all
                .into_iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            (!words.is_empty()).then(|| format!("{group}: {}", words.join(", ")))
        })
        .collect();
    (!groups.is_empty()).then(|| groups.join("; "))
}

/// The job before and after, in the lines that Nomad names.
pub(super) fn texts(diff: &JobDiff) -> (String, String) {
    let mut out = Texts::default();
    out.fields(diff.fields.as_deref(), 0);
    out.things(diff.objects.as_deref(), 0);
    for group in diff.task_groups.iter().flatten() {
        out.group("group", group, 0);
    }
    (out.before, out.after)
}

#[derive(Default)]
struct Texts {
    before: String,
    after: String,
}

impl Texts {
    fn line(&mut self, in_before: bool, in_after: bool, depth: usize, text: &str) {
        let line = format!("{:indent$}{text}\n", "", indent = depth * 2);
        if in_before {
            self.before.push_str(&line);
        }
        if in_after {
            self.after.push_str(&line);
        }
    }

    fn fields(&mut self, fields: Option<&[Field]>, depth: usize) {
        for field in fields.unwrap_or_default() {
            let value = |text: &str| {
                if !text.contains('\n') {
                    return format!(" {text}");
                }
                // A template: line by line.
                let indent = " ".repeat(depth * 2 + 2);
                text.lines().fold(String::new(), |lines, line| lines + "\n" + &indent + line)
            };
            // `forces create`
            let note = notes(field.annotations.as_deref());
            match field.kind.as_str() {
                "Added" => self.line(false, true, depth, &format!("{}:{}{note}", field.name, value(&field.new))),
                "Deleted" => self.line(true, false, depth, &format!("{}:{}", field.name, value(&field.old))),
                "Edited" => {
                    self.line(true, false, depth, &format!("{}:{}", field.name, value(&field.old)));
                    self.line(false, true, depth, &format!("{}:{}{note}", field.name, value(&field.new)));
                }
                _ => self.line(true, true, depth, &format!("{}:{}", field.name, value(&field.old))),
            }
        }
    }

    fn things(&mut self, things: Option<&[Thing]>, depth: usize) {
        for thing in things.unwrap_or_default() {
            self.within(depth, &thing.name, |out| {
                out.fields(thing.fields.as_deref(), depth + 1);
                out.things(thing.objects.as_deref(), depth + 1);
            });
        }
    }

    fn group(&mut self, what: &str, group: &Group, depth: usize) {
        // One that does not change is of no interest.
        if group.kind == "None" {
            return;
        }
        let note = notes(group.annotations.as_deref());
        self.within(depth, &format!("{what} {}{note}", group.name), |out| {
            out.fields(group.fields.as_deref(), depth + 1);
            out.things(group.objects.as_deref(), depth + 1);
            for task in group.tasks.iter().flatten() {
                out.group("task", task, depth + 1);
            }
        });
    }

    /// A title stands where something stands below it.
    fn within(&mut self, depth: usize, title: &str, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.line(!inner.before.is_empty(), !inner.after.is_empty(), depth, title);
        self.before.push_str(&inner.before);
        self.after.push_str(&inner.after);
    }
}

/// What Nomad notes beside a line.
fn notes(notes: Option<&[String]>) -> String {
    notes.unwrap_or_default().iter().fold(String::new(), |all, note| all + "  # " + note)
}
