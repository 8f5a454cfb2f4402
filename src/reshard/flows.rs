//! Which rows go from which shard to which: a plan's moves, table by table.
//!
//! What must stay true: copy and stream use the same flows; whoever has a reference table's rows from two shards would have
//! them twice, so one shard gives them.

use super::{
    job::{Direction, Job, StepError},
    plan::{MovingTable, identifier},
};
use crate::catalog::moving::{KeySet, NoSql};

/// Rows of one table that go from one shard to another.
#[derive(Clone, Debug)]
pub struct Flow<'a> {
    pub table: &'a MovingTable,
    /// The shards' names.
    pub source: String,
    pub destination: String,
    /// Those with a key in one of these; `None`: every row, of a reference table.
    pub keys: Option<Vec<KeySet>>,
}

impl Job {
    /// All flows, as this direction has them: source by source, table by table.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow<'_>> {
        let mut flows: Vec<Flow<'_>> = Vec::new();
        for it in self.moves() {
            let of_group = |table: &&MovingTable| table.group.as_ref() == Some(&it.group);
            for table in self.plan.tables.iter().filter(of_group) {
                let same = flows.iter_mut().find(|flow| {
                    flow.table == table && flow.source == it.from && flow.destination == it.to
                });
                match same.and_then(|flow| flow.keys.as_mut()) {
                    Some(keys) => keys.push(it.keys.clone()),
                    None => flows.push(Flow {
                        table,
                        source: it.from.clone(),
                        destination: it.to.clone(),
                        keys: Some(vec![it.keys.clone()]),
                    }),
                }
            }
        }
        if let Some(source) = self.giver() {
            for table in &self.plan.reference {
                let given = self.plan.joins.iter().map(|joining| Flow {
                    table,
                    source: source.clone(),
                    destination: joining.clone(),
                    keys: None,
                });
                flows.extend(given);
            }
        }
        flows.sort_by(|a, b| a.source.cmp(&b.source));
        flows
    }

    /// The shard that gives reference tables to those that join: the first source. None on the way back.
    #[must_use]
    pub fn giver(&self) -> Option<String> {
        if self.direction == Direction::Back || self.plan.reference.is_empty() {
            return None;
        }
        let joins = &self.plan.joins;
        let sources = self.sources().into_iter().map(|source| source.name);
        sources.into_iter().find(|name| !joins.contains(name))
    }
}

impl Flow<'_> {
    /// The condition that a row of the table goes this way.
    ///
    /// # Errors
    /// [`StepError::Halt`]: no SQL says it.
    pub fn sql(&self, job: &Job) -> Result<String, StepError> {
        let Some(sets) = &self.keys else {
            return Ok("true".to_owned());
        };
        let halt = |what: String| StepError::Halt {
            what: format!("{}: {what}", self.table.plain()),
            remedy: "abort the reshard, and plan it again".to_owned(),
        };
        let key_type = self.table.group.as_ref();
        let key_type = key_type.and_then(|group| job.plan.before.key_type(group));
        let key_type = key_type.ok_or_else(|| halt("its group has no owners".to_owned()))?;
        let column = identifier(&self.table.key_column);
        let each = sets.iter().map(|keys| keys.sql(&column, key_type));
        let each: Result<Vec<String>, NoSql> = each.collect();
        let each = each.map_err(|error| halt(error.to_string()))?;
        Ok(format!("({})", each.join(" OR ")))
    }
}
