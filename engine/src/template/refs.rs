//! What a text asks for: the names in it, the filters, tests and functions that it calls, each with its place.

mod walk;

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
};

use minijinja::{
    Error,
    machinery::{parse, parse_expr},
};

use self::walk::Walker;

/// Names that a text asks for, with their attribute paths as far as they are literal (`facts.os.family`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Evaluated in any case: where one is missing, the evaluation fails.
    pub required: BTreeSet<String>,
    /// Evaluated only if a condition holds (`a if b else c`, the right side of `and`, the body of `{% if %}`).
    pub conditional: BTreeSet<String>,
    /// Guarded by `is defined` or `default(…)`: may be missing.
    pub optional: BTreeSet<String>,
}

impl References {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.required.iter().chain(&self.conditional).chain(&self.optional)
    }

    /// Adds those of another text.
    pub fn extend(&mut self, other: Self) {
        self.required.extend(other.required);
        self.conditional.extend(other.conditional);
        self.optional.extend(other.optional);
    }
}

/// One step of a chain of attributes.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// `.name` or `['name']`.
    Name(String),
    /// `[expression]`: where it stands in the text.
    Dynamic(Range<usize>),
}

/// `a.b['c'][d]`.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) root: String,
    pub(super) steps: Vec<Step>,
    /// Where it stands in the text.
    pub(super) range: Range<usize>,
    /// The root is set inside of the text (`for`, `set`, a macro's argument).
    pub(super) local: bool,
    /// It may be missing.
    pub(super) guarded: bool,
    conditional: bool,
}

impl Chain {
    /// `a.b.c`, up to the first step that is computed.
    fn path(&self) -> String {
        let mut path = self.root.clone();
        for step in &self.steps {
            let Step::Name(name) = step else { break };
            path.push('.');
            path.push_str(name);
        }
        path
    }
}

/// What kind of thing was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callee {
    Filter,
    Test,
    Function,
}

/// Everything found in a text.
#[derive(Debug, Default)]
pub(super) struct Analysis {
    pub(super) chains: Vec<Chain>,
    /// Names of filters, tests and functions, and where the call stands.
    pub(super) calls: Vec<(Callee, String, Range<usize>)>,
    /// Templates that are named literally by include, import or extends.
    pub(super) templates: Vec<String>,
    /// Lists, tuples and mappings that are written in the text, where all they hold must be there.
    pub(super) literals: Vec<Range<usize>>,
    /// Text constants and names of attributes, where they were asked for.
    words: BTreeSet<String>,
}

/// What a text asks of other hosts, as far as it can be seen without values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostReferences {
    /// `NAME` of each `hostvars[…].NAME`.
    pub names: BTreeSet<String>,
    /// `hostvars`, or all of one host, is handed on (to a filter, a loop, a name of the text's own): any of [`Self::words`]
    /// may be a name that is asked for.
    pub open: bool,
    /// Text constants and names of attributes in the text, taken apart at dots.
    pub words: BTreeSet<String>,
    /// Variables that the text asks for.
    pub variables: BTreeSet<String>,
    /// Templates that it names literally.
    pub templates: BTreeSet<String>,
}

impl Analysis {
    pub(super) fn references(&self) -> References {
        let mut found = References::default();
        let guarded: HashSet<String> = self.chains.iter().filter(|c| c.guarded && !c.local).map(Chain::path).collect();
        let is_guarded = |path: &str| {
            guarded.iter().any(|g| path == g || path.strip_prefix(g.as_str()).is_some_and(|rest| rest.starts_with('.')))
        };
        for chain in self.chains.iter().filter(|c| !c.local) {
            let path = chain.path();
            if chain.guarded || is_guarded(&path) {
                found.optional.insert(path);
            } else if chain.conditional {
                found.conditional.insert(path);
            } else {
                found.required.insert(path);
            }
        }
        found.conditional.retain(|path| !found.required.contains(path));
        found
    }

    /// What is asked of other hosts.
    pub(super) fn host_references(&self) -> HostReferences {
        let mut found = HostReferences { templates: self.templates.iter().cloned().collect(), ..Default::default() };
        for chain in &self.chains {
            let names = chain.steps.iter().filter_map(|step| match step {
                Step::Name(name) => Some(name.clone()),
                Step::Dynamic(_) => None,
            });
            found.words.extend(names);
            if chain.local {
                continue;
            }
            if chain.root != "hostvars" {
                found.variables.insert(chain.root.clone());
                continue;
            }
            match chain.steps.get(1) {
                Some(Step::Name(name)) => drop(found.names.insert(name.clone())),
                Some(Step::Dynamic(_)) | None => found.open = true,
            }
        }
        found.words.extend(self.words.iter().flat_map(|word| word.split('.')).map(str::to_owned));
        found
    }
}

/// Analyses an expression.
pub(super) fn expression(text: &str) -> Result<Analysis, Error> {
    super::limits::expression(text)?;
    let expr = parse_expr(text)?;
    let mut walker = Walker::default();
    walker.expr(&expr);
    Ok(walker.found)
}

/// Analyses a template, or text with expressions in it.
pub(super) fn template(text: &str) -> Result<Analysis, Error> {
    super::limits::template(text)?;
    let statement = parse(text, "text", super::env::syntax())?;
    let mut walker = Walker::default();
    walker.stmt(&statement);
    Ok(walker.found)
}
