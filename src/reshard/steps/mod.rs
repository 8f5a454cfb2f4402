//! What a reshard does on servers, step by step. The engine says which step is next; nothing here decides that.
//!
//! What must stay true: every step may be run again, from its beginning, whatever an earlier run left behind, and may be
//! dropped at any time; what it makes outside of tables is written down on the home shard before it is made; whoever has
//! been replaced changes nothing.
//!
//! | step | when | the job's direction |
//! |---|---|---|
//! | [`preflight`] | before anything; changes nothing | forward |
//! | [`prepare`] | before the copy | forward |
//! | [`keys::primary`] | after the copy, before followers start | forward |
//! | [`keys::rest`] | past the consistency point | forward |
//! | [`ready`] | before a cutover; [`ready::advance`], [`partitions::none_new`] every few seconds while it waits for one | of the cutover |
//! | [`rehearse`] | right before statements are held | of the cutover |
//! | [`fence`], [`turn`] | in the cutover; [`turn`] when every fence is applied | of the cutover |
//! | [`unfence`] | to undo an attempt | of the cutover |
//! | [`activate`] | after the commit | of the cutover that was committed |
//! | [`reverse`] | when every proxy has the new map | of the next cutover, the other way |
//! | [`finish`] | while the new owners serve | any |
//! | [`readers::unread`], [`readers::unseen`] | before shards leave the map; before rows of before are forgotten | any |
//! | [`finish::empty`] | when shards have left the map | any |
//! | [`abort`] | while the old owners serve | any |

pub mod abort;
pub mod activate;
mod asking;
pub mod catch_up;
pub mod columns;
pub mod copy;
pub mod fence;
pub mod finish;
pub mod guard;
pub mod keys;
mod lost;
pub mod partitions;
pub mod preflight;
pub mod prepare;
pub mod readers;
pub mod ready;
pub mod records;
pub mod rehearse;
pub mod reverse;
pub mod rows;
pub mod schema;
pub mod sequences;
pub mod turn;
pub mod unfence;
pub mod verify;
mod watched;

use super::{
    job::{Direction, Job, StepError},
    plan::MovingTable,
};
use crate::catalog::moving::Move;

/// The condition that a row is among what some moves take along, on a column that is SQL text and quoted already; `None`:
/// none of them is of the table's group.
///
/// # Errors
/// [`StepError::Halt`]: no SQL computes it.
pub fn condition(
    job: &Job,
    table: &MovingTable,
    moves: &[Move],
    column: &str,
) -> Result<Option<String>, StepError> {
    let Some(group) = &table.group else {
        return Ok(None);
    };
    let key_type = job.plan.before.key_type(group);
    let key_type = key_type.ok_or_else(|| StepError::Halt {
        what: format!("the map has no group {group}"),
        remedy: "make the plan again".to_owned(),
    })?;
    let mut each = Vec::new();
    for moved in moves.iter().filter(|it| it.group == *group) {
        let sql = moved.keys.sql(column, key_type);
        each.push(sql.map_err(|problem| StepError::Halt {
            what: format!("group {group}: {problem}"),
            remedy: "only groups whose keys a server can compare can be moved".to_owned(),
        })?);
    }
    Ok((!each.is_empty()).then(|| format!("({})", each.join(" OR "))))
}

impl Job {
    /// What a shard gives away in this direction.
    #[must_use]
    pub fn given_by(&self, shard: &str) -> Vec<Move> {
        let moves = self.moves().into_iter();
        moves.filter(|it| it.from == shard).collect()
    }

    /// What a shard is given in this direction.
    #[must_use]
    pub fn given_to(&self, shard: &str) -> Vec<Move> {
        let moves = self.moves().into_iter();
        moves.filter(|it| it.to == shard).collect()
    }

    /// The same reshard the other way round: for reverse streams, and what is made for them.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self {
            direction: match self.direction {
                Direction::Forward => Direction::Back,
                Direction::Back => Direction::Forward,
            },
            ..self.clone()
        }
    }

    /// The tables of which a shard's moves take rows along.
    #[must_use]
    pub fn tables_of(&self, moves: &[Move]) -> Vec<MovingTable> {
        let moves = |table: &&MovingTable| {
            let mut groups = moves.iter().map(|it| Some(&it.group));
            groups.any(|group| group == table.group.as_ref())
        };
        self.plan.tables.iter().filter(moves).cloned().collect()
    }
}
