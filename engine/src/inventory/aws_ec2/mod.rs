//! EC2 as a source: files of the amazon.aws collection's `aws_ec2` plugin, and the discovery behind them.
//!
//! A file is read ([`Config`]), EC2 is asked ([`discover`], or the cache answers), names are chosen so that no two
//! instances share one, and then each instance becomes a host: its attributes, `compose`, `groups`, `keyed_groups`.

#[cfg(feature = "ec2")]
mod attributes;
#[cfg(feature = "ec2")]
mod client;
mod config;
mod evaluate;
mod hostnames;
mod query;

use std::{path::Path, sync::Arc, time::Duration};

#[cfg(feature = "ec2")]
pub use client::{console_output, discover};
pub use config::Config;
#[cfg(not(feature = "ec2"))]
pub use query::discover;
pub use query::{Account, Ec2Error, FilterSet, Found, Instance, Query};

use super::{CacheUse, Options, cache, model::Builder};
use crate::diag::{Diagnostic, Diagnostics, Span};

/// Instances of one file.
#[derive(Debug, Default)]
pub(super) struct Answer {
    instances: Vec<Instance>,
}

/// An answer with the names chosen for its instances.
#[derive(Debug)]
pub(super) struct Prepared {
    answer: Answer,
    names: Vec<(String, usize)>,
}

/// Asks for all files in parallel, and chooses the names over all of them together.
pub(super) async fn ask_all<'a>(
    configs: impl Iterator<Item = (&'a Path, &'a Config)>,
    options: &Options,
    builder: &mut Builder,
) -> Result<Vec<Prepared>, Diagnostics> {
    let configs: Vec<(&Path, &Config)> = configs.collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (index, (_, config)) in configs.iter().enumerate() {
        let query = Arc::new(config.query.clone());
        let (keep, dir, refresh) = (config.cache, options.cache_dir.clone(), options.refresh_cache);
        tasks.spawn(async move { (index, ask(&query, keep, dir.as_deref(), refresh).await) });
    }
    let mut asked: Vec<Option<Asked>> = configs.iter().map(|_| None).collect();
    while let Some(done) = tasks.join_next().await {
        // A task that panicked leaves its place empty, and that is told below.
        if let Ok((index, result)) = done {
            asked[index] = Some(result);
        }
    }
    let mut errors = Diagnostics::default();
    let mut answers = Vec::new();
    for ((path, config), result) in configs.iter().zip(asked) {
        let span = Span { line: 0, ..config.account_span };
        match result {
            Some(Ok(reply)) => {
                builder.diagnostics.0.extend(reply.warnings.into_iter().map(|w| Diagnostic::warning(span, w)));
                if let Some(age) = reply.age {
                    builder.caches.push(CacheUse { source: path.to_path_buf(), age });
                }
                answers.push(Answer { instances: reply.instances });
            }
            Some(Err(e)) => {
                errors.push(Diagnostic::error(config.account_span, e.to_string()).hint_if(e.hint()));
            }
            None => errors.push(Diagnostic::error(span, "the discovery ended without an answer")),
        }
    }
    if errors.has_errors() {
        return Err(errors);
    }
    let pairs: Vec<(&Config, &Answer)> = configs.iter().map(|(_, config)| *config).zip(&answers).collect();
    let names = evaluate::names(&pairs, &mut builder.diagnostics);
    Ok(answers.into_iter().zip(names).map(|(answer, names)| Prepared { answer, names }).collect())
}

/// Adds the hosts of one file.
pub(super) fn add(config: &Config, prepared: Prepared, options: &Options, builder: &mut Builder) {
    evaluate::add(config, &prepared.answer, &prepared.names, options, builder);
}

struct Reply {
    instances: Vec<Instance>,
    warnings: Vec<String>,
    age: Option<Duration>,
}

type Asked = Result<Reply, Ec2Error>;

async fn ask(query: &Query, keep: Option<u64>, dir: Option<&Path>, refresh: bool) -> Asked {
    let store = dir.zip(keep).map(|(dir, seconds)| cache::Cache::new(dir, query, seconds));
    let mut warnings = Vec::new();
    if let Some(store) = &store
        && !refresh
    {
        match store.read() {
            Ok(Some((instances, age))) => return Ok(Reply { instances, warnings, age: Some(age) }),
            Ok(None) => {}
            Err(e) => warnings.push(format!("{e}; asking again")),
        }
    }
    let found = discover(query).await?;
    warnings.extend(found.warnings);
    if let Some(store) = &store
        && let Err(e) = store.write(&found.instances)
    {
        warnings.push(e.to_string());
    }
    Ok(Reply { instances: found.instances, warnings, age: None })
}

#[cfg(test)]
mod tests;
