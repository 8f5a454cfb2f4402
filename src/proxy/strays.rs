//! What a server says of rows that it has without owning them: while a reshard moves rows, its unique indexes and foreign keys
//! see them too.
//!
//! What must stay true: a client is not told that its rows are in the way of one another because of rows that do not
//! count; of what surely counts it is told what PostgreSQL says.

use super::{reply as wording, session::Session};
use crate::{
    catalog::{
        effects::Effects,
        group::Group,
        shard::ShardId,
        snapshot::{Placement, Table, TableName},
    },
    gate::state::REFERENCES,
    plan::{
        spread::What,
        unroutable::{Undoubled, Unroutable},
    },
    wire::notice::{Words, field},
};

/// `unique_violation` and `exclusion_violation`.
const DUPLICATE: [&[u8]; 2] = [b"23505", b"23P01"];
/// `foreign_key_violation` and `restrict_violation`.
const REFERRED: [&[u8]; 2] = [b"23503", b"23001"];

impl Session {
    /// What a shard says of a duplicate, if the other row may be one that it does not own; `None`: it is another error.
    pub(super) fn met_stray(&self, shard: ShardId, body: &[u8]) -> Option<Words> {
        self.duplicate(Some(shard), body)
    }

    fn duplicate(&self, shard: Option<ShardId>, body: &[u8]) -> Option<Words> {
        let (group, table) = self.strays_of(shard, body, &DUPLICATE)?;
        let index = field(body, b'n')?;
        let names = |effects: &Effects| {
            let mut uniques = effects.strays.uniques.iter();
            uniques.any(|name| name.as_bytes() == index)
        };
        names(&table.effects).then(|| told(group, Undoubled::Duplicate))
    }

    /// The same of a write that several shards do, and of rows that refer to those which a reference table loses.
    pub(super) fn stray_at_work(&self, shard: ShardId, what: &What, body: &[u8]) -> Option<Words> {
        match what {
            What::Copies(_) => self.referred(Some(shard), body),
            What::Rows(_) | What::Share(_) | What::Move(_) | What::Whole | What::Change => {
                self.duplicate(Some(shard), body)
            }
        }
    }

    fn referred(&self, shard: Option<ShardId>, body: &[u8]) -> Option<Words> {
        let (group, _) = self.strays_of(shard, body, &REFERRED)?;
        let why = field(body, b'D').unwrap_or_default();
        let of_new_row = String::from_utf8_lossy(why).contains("is not present in");
        (!of_new_row).then(|| told(group, Undoubled::Referred))
    }

    /// The same of both, of what is said when a transaction is to be committed, by whichever shard.
    pub(super) fn met_strays_at_end(&self, why: &Words, wrote_references: bool) -> Option<Words> {
        let Words::Servers(body) = why else {
            return None;
        };
        let referred = || self.referred(None, body).filter(|_| wrote_references);
        self.duplicate(None, body).or_else(referred)
    }

    /// Whether the transaction under way may have written tables that every shard has a copy of.
    pub(super) fn may_have_written_references(&self) -> bool {
        let doubled = self.snapshot.groups.iter().any(Group::is_doubled);
        let Some(ticket) = self.ticket.as_ref().filter(|_| doubled) else {
            return false;
        };
        let touched = ticket.touched();
        touched.is_none_or(|touched| touched.of(REFERENCES).is_some())
    }

    /// The table of which a shard says this, if it has rows of its group that it does not own.
    fn strays_of(
        &self,
        shard: Option<ShardId>,
        body: &[u8],
        codes: &[&[u8]],
    ) -> Option<(&Group, &Table)> {
        if !self.snapshot.groups.iter().any(Group::is_doubled) {
            return None;
        }
        let code = field(body, b'C')?;
        if !codes.contains(&code) {
            return None;
        }
        let text = |of: u8| Some(String::from_utf8_lossy(field(body, of)?).into_owned());
        let (schema, name) = (text(b's')?, text(b't')?);
        let table = self.snapshot.tables.get(&TableName { schema, name })?;
        let Placement::Sharded { group, .. } = &table.placement else {
            return None;
        };
        let group = self.snapshot.group(*group);
        let has = match shard {
            Some(shard) => group.doubled_on(shard).is_some(),
            None => group.is_doubled(),
        };
        has.then_some((group, table))
    }
}

fn told(group: &Group, what: Undoubled) -> Words {
    let group = group.name.clone();
    wording::unroutable(&Unroutable::Doubled { group, what }).into()
}
