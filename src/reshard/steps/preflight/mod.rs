//! Looks for what a reshard would stumble over, before anything is touched.
//!
//! What must stay true: it changes nothing; what would end in lost rows or in failing statements is an error; each finding
//! says what mends it, as a statement where there is one.

mod merging;
mod room;
mod servers;
mod tables;

use super::records::taking_part;
use crate::{
    inspect::{Severity, at_once},
    registry::Unable,
    reshard::{
        dump::{Tools, version},
        job::{Job, StepError},
    },
};
use serde::Serialize;
use std::collections::BTreeMap;

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// `None`: of the whole.
    pub shard: Option<String>,
    pub table: Option<String>,
    pub what: String,
    /// A statement or a command.
    pub fix: String,
}

/// What is found on one shard.
struct Found<'a> {
    shard: &'a str,
    all: Vec<Finding>,
}

impl<'a> Found<'a> {
    fn on(shard: &'a str) -> Self {
        Self {
            shard,
            all: Vec::new(),
        }
    }

    fn add(&mut self, severity: Severity, what: impl Into<String>, fix: impl Into<String>) {
        self.all.push(Finding {
            severity,
            shard: Some(self.shard.to_owned()),
            table: None,
            what: what.into(),
            fix: fix.into(),
        });
    }

    fn error(&mut self, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Error, what, fix);
    }

    fn warning(&mut self, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Warning, what, fix);
    }

    fn note(&mut self, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Note, what, fix);
    }

    /// What was found since then is about this table.
    fn about(&mut self, since: usize, table: &str) {
        for finding in self.all.iter_mut().skip(since) {
            finding.table = Some(table.to_owned());
        }
    }
}

/// Everything that is found, the worst first.
///
/// # Errors
/// [`StepError::Again`]: a server cannot be asked.
pub async fn run(job: &Job, tools: &Tools) -> Result<Vec<Finding>, StepError> {
    let servers = taking_part(job);
    let each = servers.iter().map(|server| servers::look(job, server));
    let mut findings = Vec::new();
    let mut facts = BTreeMap::new();
    for looked in at_once(each.collect()).await {
        let (shard, fact, found) = looked?;
        facts.insert(shard, fact);
        findings.extend(found);
    }
    findings.extend(servers::compare(job, &facts));
    findings.extend(names(job));
    let each = servers.iter().map(|server| tables::look(job, server));
    for looked in at_once(each.collect()).await {
        findings.extend(looked?);
    }
    // Reads whole tables: not of what cannot move anyway.
    if findings.iter().all(|it| it.severity < Severity::Error) {
        findings.extend(merging::look(job).await?);
        findings.extend(room::look(job).await?);
    }
    findings.extend(tool(job, tools, &facts).await);
    findings.sort_by(|a, b| (b.severity, a).cmp(&(a.severity, b)));
    findings.dedup();
    Ok(findings)
}

/// A proxy that would serve nothing that is on several shards as soon as it is told what is on two.
#[must_use]
pub fn unable(proxy: &Unable) -> Finding {
    let lacks: Vec<String> = proxy
        .lacks
        .iter()
        .map(|it| format!("shards.{it}"))
        .collect();
    Finding {
        severity: Severity::Error,
        shard: None,
        table: None,
        what: format!(
            "proxy {} has no {} in its configuration: it would serve nothing that is on several shards (SW167)",
            proxy.proxy,
            lacks.join(", ")
        ),
        fix: "add that to the file of this proxy and let it reload (SIGHUP, or RELOAD on its console), or end it"
            .to_owned(),
    }
}

/// Slots on one server that would have one name, as names are cut.
fn names(job: &Job) -> Option<Finding> {
    // Shards of one server share its slots, on the way back as well.
    let (sources, destinations, back) = (job.sources(), job.destinations(), job.turned());
    let there = sources.iter().map(|it| job.slot(&it.name));
    let mut names: Vec<String> = there
        .chain(destinations.iter().map(|it| back.slot(&it.name)))
        .collect();
    names.sort();
    let twice = names.windows(2).find(|pair| pair.first() == pair.last())?;
    Some(Finding {
        severity: Severity::Error,
        shard: None,
        table: None,
        what: format!(
            "two shards would have a slot {}",
            twice.first().map_or("", String::as_str)
        ),
        fix: "give the shards names that differ in their first 24 letters".to_owned(),
    })
}

/// Whether `pg_dump` can be used, when a shard needs a schema.
async fn tool(
    job: &Job,
    tools: &Tools,
    facts: &BTreeMap<String, servers::Facts>,
) -> Option<Finding> {
    if job.plan.joins.is_empty() {
        return None;
    }
    let needed = job.sources().into_iter();
    let needed = needed.filter_map(|it| facts.get(&it.name).map(servers::Facts::major));
    let needed = needed.max()?;
    let what = match version(tools).await {
        Ok(found) if found >= needed => return None,
        Ok(found) => format!("pg_dump is of version {found}, older than the servers"),
        Err(error) => error.to_string(),
    };
    Some(Finding {
        severity: Severity::Error,
        shard: None,
        table: None,
        what,
        fix: format!("install pg_dump of PostgreSQL {needed} or newer, and say where it is"),
    })
}
