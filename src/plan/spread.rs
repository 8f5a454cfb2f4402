//! A write that concerns several shards: which of them, and the text that each is sent. Pure.
//!
//! What must stay true: the shards' parts together do what the statement does on one PostgreSQL with all rows, each row
//! once. So a statement is spread only if every block of it gives exactly its share on each shard: rows of VALUES go
//! where their keys are; other tables that are read are reference tables, or their rows have the key of the row that is
//! changed; what is computed is the same wherever it is computed, or each row's own. Whatever else, such as a LIMIT, is
//! not spread.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is not spread"
)]

mod fill;
mod layout;
mod moving;
mod text;

use super::{
    Route, StatementPlan, Target, Values,
    block::Analysis,
    route::{Pin, Role},
    unroutable::Unroutable,
    value::Reading,
};
use crate::{
    catalog::{group::GroupId, shard::ShardId, snapshot::Snapshot},
    sql::{
        functions::is_immutable,
        normalize::Slot,
        tree::{Body, Cte, Insert, Kind, Merge, MergeAct, MergeAction, Name, Query, Relation},
    },
};
pub use fill::{Fill, Given, asks_for_time, is_each_rows};
pub(super) use fill::{leaves_time, with_time};
pub use moving::{Columns, Moving, Texts, examine, examined};
pub(super) use text::quote;
pub use text::{Part, Time};

/// How a write is made of parts for several shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    pub what: What,
    /// Whether it asks for the transaction's time, which is then one for all shards.
    pub time: Time,
    pub turns: Turns,
    /// Defaults that are written out.
    pub fill: Fill,
    /// A number of the table whose rows are changed or moved, by which movers keep apart from others.
    pub lock: Option<i32>,
}

/// Whether the shards do their parts at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// Whom it waits for on one shard does not wait for it on another but by chance: rows that are new, or locked already.
    AtOnce,
    /// Rows that others change, too, are locked in the order of the shards, so that two alike do not wait for each other.
    ByShard,
}

/// What is written.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// `INSERT … VALUES` of this many rows, each to the shard of its key.
    Rows(usize),
    /// UPDATE or DELETE of a table of this group: every shard changes its own rows.
    Share(GroupId),
    /// A write to a table that every shard has a copy of: every shard changes its copy.
    Copies(Copies),
    /// UPDATE of the shard key: rows may move to other shards.
    Move(Box<Moving>),
    /// A write of one shard, which is sent the time that another shard of the transaction has told.
    Whole,
    /// A schema change: the same text on every shard that it concerns.
    Change,
}

/// The table that every shard has a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// For messages.
    pub table: String,
    /// As SQL names it.
    pub quoted: String,
    /// What its rows are called in the statement, quoted.
    pub alias: String,
}

/// Where one execution writes: the shards in ascending order, and for VALUES the rows of each, from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    pub shards: Vec<(ShardId, Vec<u32>)>,
}

/// What decides whether a statement is spread, besides its analysis.
pub(super) struct Asked<'a> {
    pub(super) kind: &'a Kind,
    pub(super) functions: &'a [Name],
    /// The statement as it stands in its text, and where that begins.
    pub(super) own: &'a str,
    pub(super) start: usize,
    pub(super) slots: &'a [Slot],
    pub(super) reading: Reading,
}

/// How a write is spread over shards when its keys do not choose one; `None`: it is not.
pub(super) fn spread(
    asked: &Asked<'_>,
    analysis: &Analysis<'_>,
    pins: &[Pin],
) -> Option<Box<Spread>> {
    if analysis.changes != 1 {
        return None;
    }
    let what = over_shards(asked, analysis, pins);
    let what = what.or_else(|| analysis.refusals.is_empty().then_some(What::Whole))?;
    let spread = Spread {
        time: text::time_asked(asked, &what)?,
        turns: turns(asked.kind, &what),
        fill: fill::fill(asked, analysis, &what)?,
        lock: number_of(asked.kind),
        what,
    };
    let computed = asked.functions.iter().all(|name| spread.computes(name));
    let matters = spread.what != What::Whole || spread.asks_for_time();
    (matters && computed && spread.can_be_made(asked)).then(|| Box::new(spread))
}

/// What several shards write; `None`: one does, or none may.
fn over_shards(asked: &Asked<'_>, analysis: &Analysis<'_>, pins: &[Pin]) -> Option<What> {
    if !analysis.fixed.is_empty() {
        return None;
    }
    Some(match asked.kind {
        Kind::Insert(insert) => inserted(insert, analysis, pins)?,
        Kind::Update(update) => {
            changed(&update.ctes, &update.table, analysis, pins).or_else(|| {
                let moving = moving::moving(update, asked, analysis, pins)?;
                Some(What::Move(Box::new(moving)))
            })?
        }
        Kind::Delete(delete) => changed(&delete.ctes, &delete.table, analysis, pins)?,
        Kind::Merge(merge) => merged(merge, analysis, pins)?,
        _ => return None,
    })
}

fn turns(kind: &Kind, what: &What) -> Turns {
    match (kind, what) {
        // Locked as a whole.
        (_, What::Copies(_)) => Turns::AtOnce,
        (Kind::Insert(insert), What::Rows(_)) if insert.conflict.is_none() => Turns::AtOnce,
        _ => Turns::ByShard,
    }
}

/// The same number wherever the table is named, by whatever proxy; FNV-1a of its name.
fn number_of(kind: &Kind) -> Option<i32> {
    let table = match kind {
        Kind::Merge(merge) => &merge.table,
        Kind::Update(update) => &update.table,
        Kind::Delete(delete) => &delete.table,
        _ => return None,
    };
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = table.name.name.bytes().fold(0x811c_9dc5, step);
    Some(hash.cast_signed())
}

fn inserted(insert: &Insert, analysis: &Analysis<'_>, pins: &[Pin]) -> Option<What> {
    if let Some(copies) = copies(&insert.ctes, &insert.table, analysis, pins) {
        return (!counts_apart(insert, analysis)).then_some(copies);
    }
    let source = insert.source.as_ref()?;
    if matches!(source.body, Body::Select(_)) {
        return selected(insert, source, analysis, pins);
    }
    let Query {
        ctes,
        body: Body::Values(rows),
        locking,
        ..
    } = source
    else {
        return None;
    };
    let plain = insert.ctes.is_empty()
        && ctes.is_empty()
        && locking.is_empty()
        && analysis.instances.is_empty()
        && analysis.refusals.is_empty();
    let own = matches!(
        pins,
        [Pin {
            role: Role::Insert,
            ..
        }]
    );
    (plain && own).then_some(What::Rows(rows.len()))
}

/// Whether every copy would draw numbers from its own server's sequence, of which only the home shard's goes on.
fn counts_apart(insert: &Insert, analysis: &Analysis<'_>) -> bool {
    let selects = |source: &Query| !matches!(source.body, Body::Values(_));
    let given = insert.columns.as_deref().unwrap_or_default();
    let effects = analysis.effects(&insert.table.name);
    insert.source.as_ref().is_some_and(selects)
        && effects.is_some_and(|effects| effects.draws(given).is_some())
}

/// `INSERT … SELECT` whose rows take over the key of rows that are read, so that they stay with these.
fn selected(
    insert: &Insert,
    source: &Query,
    analysis: &Analysis<'_>,
    pins: &[Pin],
) -> Option<What> {
    let carried = analysis.carried?;
    let ctes = insert.ctes.iter().chain(&source.ctes);
    let fits = ctes.count() == 0 && source.locking.is_empty() && source.into.is_none();
    (fits && are_with(carried, analysis, pins))
        .then(|| What::Share(analysis.instances[carried].group))
}

/// MERGE whose rows are with those that they are merged into: by their keys, or because every shard has all of them and
/// none is inserted.
fn merged(merge: &Merge, analysis: &Analysis<'_>, pins: &[Pin]) -> Option<What> {
    let target = analysis.changed.filter(|target| *target == 0)?;
    let reads = merge
        .ctes
        .iter()
        .all(|cte| matches!(cte.body, Kind::Query(_)));
    let inserts = |action: &MergeAction| matches!(action.act, MergeAct::Insert { .. });
    let placed = analysis.carried.is_some() || !merge.actions.iter().any(inserts);
    // ON restricts the table's rows, and leaves those of the source that match none.
    let with_it = analysis.equal_to(target);
    let with_it = |at: usize| with_it.contains(&at) || analysis.equal_to(at).contains(&target);
    (reads && placed && (0..analysis.instances.len()).all(with_it) && only_unpinned(analysis, pins))
        .then(|| What::Share(analysis.instances[target].group))
}

/// Whether all rows that are read are on the shard of those of this relation, and nothing but their number of shards is
/// in the way.
fn are_with(instance: usize, analysis: &Analysis<'_>, pins: &[Pin]) -> bool {
    (0..analysis.instances.len()).all(|at| analysis.equal_to(at).contains(&instance))
        && only_unpinned(analysis, pins)
}

fn only_unpinned(analysis: &Analysis<'_>, pins: &[Pin]) -> bool {
    let unpinned = |why: &Unroutable| matches!(why, Unroutable::Unpinned { .. });
    pins.iter().all(|pin| matches!(pin.role, Role::Match)) && analysis.refusals.iter().all(unpinned)
}

fn changed(ctes: &[Cte], table: &Relation, analysis: &Analysis<'_>, pins: &[Pin]) -> Option<What> {
    if let Some(copies) = copies(ctes, table, analysis, pins) {
        return Some(copies);
    }
    let target = analysis.changed?;
    let reads = ctes.iter().all(|cte| matches!(cte.body, Kind::Query(_)));
    (target == 0 && reads && are_with(target, analysis, pins))
        .then(|| What::Share(analysis.instances[target].group))
}

/// A write to a reference table that reads reference tables only.
fn copies(ctes: &[Cte], table: &Relation, analysis: &Analysis<'_>, pins: &[Pin]) -> Option<What> {
    let name = &table.name.name;
    let own =
        |why: &Unroutable| matches!(why, Unroutable::ReferenceWrite { table } if table == name);
    let reads = ctes.iter().all(|cte| matches!(cte.body, Kind::Query(_)));
    let only_it = !analysis.refusals.is_empty() && analysis.refusals.iter().all(own);
    let nothing_else = pins.is_empty() && analysis.instances.is_empty();
    if !(reads && only_it && nothing_else) {
        return None;
    }
    let schema = table.name.schema.as_ref();
    let quoted = match schema {
        Some(schema) => format!("{}.{}", quote(schema), quote(name)),
        None => quote(name),
    };
    let alias = table.alias.as_ref().map_or(name, |alias| &alias.name);
    Some(What::Copies(Copies {
        table: name.clone(),
        quoted,
        alias: quote(alias),
    }))
}

/// Whether a function gives the same wherever it is computed, or is each row's own, and asks for no time.
pub(super) fn may_be_a_rows(name: &Name) -> bool {
    let schema = name.schema.as_deref();
    let own = schema.is_none_or(|schema| schema == "pg_catalog");
    let name = name.name.as_str();
    own && (is_immutable(name) || SAME_EVERYWHERE.contains(&name) || RANDOM.contains(&name))
}

impl Spread {
    /// The same write with nothing written out: for texts that are not executed.
    #[must_use]
    pub fn as_written(&self) -> Self {
        Self {
            time: Time::NotAsked,
            fill: Fill::default(),
            ..self.clone()
        }
    }

    /// Whether the transaction's time stands in what the shards are sent.
    #[must_use]
    pub fn asks_for_time(&self) -> bool {
        self.time == Time::Asked || self.fill.asks_for_time()
    }

    /// Whether every shard is sent the text as it stands, but for what is behind it.
    #[must_use]
    pub fn keeps_text(&self) -> bool {
        !matches!(self.what, What::Rows(_)) && self.time == Time::NotAsked && self.fill.is_empty()
    }

    /// Whether a function gives the same on every shard, or may be each row's own.
    fn computes(&self, name: &Name) -> bool {
        let own = name
            .schema
            .as_deref()
            .is_none_or(|schema| schema == "pg_catalog");
        let name = name.name.as_str();
        let random = RANDOM.contains(&name) && !matches!(self.what, What::Copies(_));
        own && (is_immutable(name)
            || SAME_EVERYWHERE.contains(&name)
            || text::is_time(name)
            || random)
    }
}

impl StatementPlan {
    /// Where this execution writes when it needs several shards; `None`: it needs one, or is not spread.
    ///
    /// # Errors
    /// [`Unroutable`]: why it must not run anywhere.
    pub fn shares(
        &self,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Option<Result<Shares, Box<Unroutable>>> {
        let spread = self.spread.as_ref()?;
        let whole = |shards: crate::catalog::shard::ShardSet| Shares {
            shards: shards.iter().map(|shard| (shard, Vec::new())).collect(),
        };
        let several = |shares: Shares| (shares.shards.len() > 1).then_some(Ok(shares));
        match (&spread.what, &self.target) {
            (What::Rows(count), Target::ByKey(pins)) => match pins.of_rows(snapshot, values) {
                Ok(rows) if rows.len() == *count => several(by_shard(&rows)),
                Ok(_) => None,
                Err(why) => Some(Err(why)),
            },
            (What::Share(_), Target::ByKey(pins)) => match pins.of_first(snapshot, values) {
                Ok(shards) => several(whole(shards)),
                Err(why) => Some(Err(why)),
            },
            // Before a database is resharded for the first time, all may be on one: that is no reason to refuse.
            (What::Share(group), Target::Refused(_)) => {
                Some(Ok(whole(snapshot.group(*group).shards())))
            }
            (What::Copies(_), Target::Refused(_)) => Some(Ok(whole(snapshot.all()))),
            (What::Move(_), Target::ByKey(pins)) if pins.route(snapshot, values).is_ok() => None,
            (What::Move(moving), Target::ByKey(_) | Target::Refused(_)) => {
                moving.shares(snapshot, values)
            }
            _ => None,
        }
    }
}

impl StatementPlan {
    /// Where this execution writes when one shard does, and the transaction's time is another shard's; `None`: its text
    /// cannot be given that time.
    #[must_use]
    pub fn share_of_one(&self, snapshot: &Snapshot, values: &Values<'_>) -> Option<Shares> {
        let spread = self
            .spread
            .as_ref()
            .filter(|spread| spread.asks_for_time())?;
        let Ok(Route::One(shard)) = self.route(snapshot, values) else {
            return None;
        };
        let rows = match spread.what {
            What::Rows(count) => (0..u32::try_from(count).ok()?).collect(),
            What::Share(_) | What::Whole => Vec::new(),
            What::Copies(_) | What::Move(_) | What::Change => return None,
        };
        Some(Shares {
            shards: vec![(shard, rows)],
        })
    }
}

fn by_shard(rows: &[ShardId]) -> Shares {
    let mut shards: Vec<(ShardId, Vec<u32>)> = Vec::new();
    for (row, shard) in (0_u32..).zip(rows) {
        match shards.iter_mut().find(|(known, _)| known == shard) {
            Some((_, own)) => own.push(row),
            None => shards.push((*shard, vec![row])),
        }
    }
    shards.sort_unstable_by_key(|(shard, _)| *shard);
    Shares { shards }
}

/// Another value each time, which is a row's own.
const RANDOM: [&str; 6] = [
    "clock_timestamp",
    "gen_random_uuid",
    "random",
    "random_normal",
    "uuidv4",
    "uuidv7",
];

/// Functions that depend on settings of the session, which every shard is told, and on nothing else; or that only their
/// other overloads keep from being immutable.
const SAME_EVERYWHERE: [&str; 69] = [
    "array_reverse",
    "array_sort",
    "array_to_json",
    "array_to_string",
    "casefold",
    "concat",
    "concat_ws",
    "convert",
    "convert_from",
    "convert_to",
    "crc32",
    "crc32c",
    "current_setting",
    "current_user",
    "date",
    "date_add",
    "date_part",
    "date_subtract",
    "date_trunc",
    "erf",
    "erfc",
    "extract",
    "format",
    "gamma",
    "generate_series",
    "json_agg",
    "json_build_array",
    "json_build_object",
    "json_object_agg",
    "json_to_record",
    "json_to_recordset",
    "json_to_tsvector",
    "jsonb_agg",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_object_agg",
    "jsonb_to_record",
    "jsonb_to_recordset",
    "jsonb_to_tsvector",
    "length",
    "lgamma",
    "make_timestamptz",
    "numeric",
    "overlaps",
    "phraseto_tsquery",
    "plainto_tsquery",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "session_user",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "timezone",
    "to_bin",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_oct",
    "to_timestamp",
    "to_tsquery",
    "to_tsvector",
    "uuid_extract_timestamp",
    "uuid_extract_version",
    "websearch_to_tsquery",
    "xml",
];
