//! Transactions that promise one snapshot, REPEATABLE READ and SERIALIZABLE, over several shards: for sessions that have
//! asked for it with `shardway.read_consistency`, as a dump of the whole database does.
//!
//! What must stay true: such a transaction has a snapshot on every shard before its first statement has run anywhere, and
//! no other later; all its catalog queries are answered by one shard, which is chosen alike at any time.

use super::super::{
    link::Hold,
    place::Place,
    reply::session as reply,
    request::Stop,
    session::{End, Session},
};
use crate::{
    catalog::{
        shard::ShardId,
        snapshot::{Placement, Snapshot, Unlisted},
    },
    config::settings::PoolMode,
    plan::spread::Shares,
    sql::{parse::relation_name, tree::Name},
    wire::{
        frontend::put_query,
        notice::{Notice, Words},
    },
};

/// The setting by which a session asks for it.
pub(in crate::proxy) const SETTING: &str = "shardway.read_consistency";
/// Each shard has one snapshot, taken at about the same time.
pub(in crate::proxy) const PER_SHARD: &str = "per_shard";

/// What makes a server take the transaction's snapshot.
const TAKE: &[u8] = b"SELECT 1";

impl Session {
    /// Whether a transaction that promises one snapshot may have one on each shard.
    pub(in crate::proxy) fn has_snapshots(&self) -> bool {
        let named = ["shardway.shard", "shardway.key"];
        self.overridden.get(SETTING).is_some()
            && named.iter().all(|name| self.overridden.get(name).is_none())
            && self.mode == PoolMode::Transaction
            && !self.is_kept()
            && !self.snapshot.is_single()
    }

    /// The shard for what any can answer, in a transaction or batch that is bound to this one.
    pub(in crate::proxy) fn any_shard(&self, bound: Option<ShardId>) -> ShardId {
        let whole = bound.is_none() || self.several.is_several();
        if whole && self.has_snapshots() {
            return most_complete(&self.snapshot);
        }
        bound.unwrap_or(self.any)
    }

    /// The transaction has begun on its first shard: begins it on all others and takes a snapshot on each, all at once.
    pub(in crate::proxy) async fn take_snapshots(&mut self) -> Result<Result<(), Words>, End> {
        match self.begin_everywhere().await {
            Ok(()) => Ok(Ok(())),
            Err(Stop::Refused(words)) => Ok(Err(*words)),
            Err(Stop::End(end)) => Err(end),
        }
    }

    /// Before tables are locked, as a dump locks all that it has found: whether it can have found all there are.
    pub(in crate::proxy) fn check_found(&self) -> Result<(), Notice> {
        if !self.has_snapshots() {
            return Ok(());
        }
        let absent = left_out(&self.snapshot);
        if absent.is_empty() {
            return Ok(());
        }
        let shard = most_complete(&self.snapshot);
        Err(reply::several::left_out(
            self.database.shard_name(shard),
            &absent,
        ))
    }

    /// Before a statement that several shards answer: a transaction that has a snapshot on each begins there.
    ///
    /// # Errors
    /// It cannot.
    pub(in crate::proxy) async fn begin_with_snapshots(&mut self) -> Result<(), Stop> {
        let begun = self.deferred.as_ref();
        let begins = begun.is_some_and(|deferred| !deferred.failed()) && !self.reads_beside();
        if begins && self.has_snapshots() {
            let (shard, hold) = (most_complete(&self.snapshot), Hold::Bound);
            Box::pin(self.reach(Place { shard, hold })).await?;
        }
        Ok(())
    }

    /// Where the sequence is read that a dump asks for: every shard may have one of that name, and the dump has how far
    /// any of them has come. `None`: the statement is another.
    ///
    /// # Errors
    /// A shard cannot be asked.
    pub(in crate::proxy) async fn shard_of_sequence(
        &mut self,
        text: &[u8],
    ) -> Result<Option<ShardId>, Stop> {
        let Some(name) = dumped_sequence(text) else {
            return Ok(None);
        };
        let quoted = quoted(&name);
        let kind = format!(
            "SELECT c.relkind FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) \
             pg_catalog.to_regclass({})",
            literal(&quoted)
        );
        let value = format!("SELECT last_value FROM {quoted}");
        let mut furthest: Option<(i64, ShardId)> = None;
        for shard in self.snapshot.all().iter() {
            let hold = Hold::Bound;
            self.reach(Place { shard, hold }).await?;
            if self.ask(kind.as_bytes()).await??.as_deref() != Some("S") {
                continue;
            }
            let value = self.ask(value.as_bytes()).await??;
            let value = value.and_then(|value| value.parse().ok()).unwrap_or(0);
            if furthest.is_none_or(|(most, _)| value > most) {
                furthest = Some((value, shard));
            }
        }
        Ok(furthest.map(|(_, shard)| shard))
    }

    async fn begin_everywhere(&mut self) -> Result<(), Stop> {
        self.fold();
        self.cancel.detach();
        let Some(here) = self.link.take() else {
            return Err(End::Client.into());
        };
        let first = here.shard;
        let all = self.snapshot.all();
        for shard in all.iter().filter(|shard| *shard != first) {
            let enlisted = self.enlist(shard, &here).await?;
            self.cancel.detach();
            match enlisted {
                Ok(()) => self.several.enlisted.extend(self.link.take()),
                Err(problem) => {
                    self.attach(here);
                    return Err(problem.into());
                }
            }
        }
        self.attach(here);
        let shares = Shares {
            shards: all.iter().map(|shard| (shard, Vec::new())).collect(),
        };
        self.fan_out_over(&shares);
        let mut problem = None;
        if let Some(fan) = self.fan.as_deref_mut() {
            for at in 0..fan.len() {
                fan.ask(at, 1, |out| put_query(out, TAKE));
            }
        }
        let heard = self.hear_fan(|_, tag, body| {
            if tag == b'E' && problem.is_none() {
                problem = Some(Words::Servers(body.to_vec()));
            }
            Ok(())
        });
        let heard = heard.await;
        if let Err(Stop::End(end)) = heard {
            return Err(end.into());
        }
        self.gather_in(&shares).await?;
        heard?;
        match problem {
            Some(words) => Err(words.into()),
            None => self.return_to(first),
        }
    }

    /// Makes the link that of a shard which the transaction has reached.
    fn return_to(&mut self, shard: ShardId) -> Result<(), Stop> {
        if self.link_shard() == Some(shard) {
            return Ok(());
        }
        let mut enlisted = self.several.enlisted.iter();
        let Some(at) = enlisted.position(|link| link.shard == shard) else {
            return Err(reply::rows::shard_missing(self.database.shard_name(shard)).into());
        };
        let mut there = self.several.enlisted.swap_remove(at);
        there.hold = Hold::Bound;
        self.cancel.detach();
        self.several.enlisted.extend(self.link.take());
        self.attach(there);
        Ok(())
    }
}

/// The sequence whose state is asked for as pg_dump does.
fn dumped_sequence(text: &[u8]) -> Option<Name> {
    let text = std::str::from_utf8(text).ok()?;
    relation_name(text.strip_prefix("SELECT last_value, is_called FROM ")?)
}

fn quoted(name: &Name) -> String {
    let quoted = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
    match &name.schema {
        Some(schema) => format!("{}.{}", quoted(schema), quoted(&name.name)),
        None => quoted(&name.name),
    }
}

fn literal(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{text}'")
}

/// The shard that has the most tables: where those live that nothing lists, else where most of those live that the
/// configuration places on single shards; the home shard if several have as many.
fn most_complete(snapshot: &Snapshot) -> ShardId {
    if let Unlisted::On(shard) = snapshot.unlisted {
        return shard;
    }
    let count = |shard: ShardId| {
        let tables = snapshot.tables.values();
        tables
            .filter(|table| has(snapshot, &table.placement, shard))
            .count()
    };
    let (all, home) = (snapshot.all(), snapshot.home);
    let mut best = (count(home), home);
    for shard in all.iter() {
        let tables = count(shard);
        if tables > best.0 {
            best = (tables, shard);
        }
    }
    best.1
}

/// The shard that has tables which others have not, where there is one.
pub(in crate::proxy) fn alone_complete(snapshot: &Snapshot) -> Option<ShardId> {
    let tables = snapshot.tables.values();
    let single = |placement: &Placement| matches!(placement, Placement::Single(_));
    let some = matches!(snapshot.unlisted, Unlisted::On(_))
        || tables.into_iter().any(|table| single(&table.placement));
    (some && !snapshot.is_single()).then(|| most_complete(snapshot))
}

/// Whether a shard has a table that is placed so.
fn has(snapshot: &Snapshot, placement: &Placement, shard: ShardId) -> bool {
    match placement {
        Placement::Sharded { group, .. } => snapshot.group(*group).shards().contains(shard),
        Placement::Reference => true,
        Placement::Single(own) => *own == shard,
    }
}

/// The tables that the catalogs of the shard which answers for all do not show.
fn left_out(snapshot: &Snapshot) -> Vec<String> {
    let shard = most_complete(snapshot);
    let tables = snapshot.tables.iter();
    let absent = tables.filter(|(_, table)| !has(snapshot, &table.placement, shard));
    let absent = absent.map(|(name, _)| format!("{}.{}", name.schema, name.name));
    let mut absent: Vec<String> = absent.collect();
    absent.sort_unstable();
    absent
}
