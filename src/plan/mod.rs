//! From a statement, a snapshot and parameters to where it runs. Pure.
//!
//! A [`Plan`] is made once per statement template and cached; [`StatementPlan::route`] is asked once per execution and
//! costs one hash of the key value.

pub mod analyze;
mod block;
pub mod cache;
pub mod change;
pub mod combine;
pub mod copy;
pub mod copy_left;
pub mod defaults;
pub mod emptying;
pub mod explain;
pub mod explained;
pub mod gather;
pub mod owned;
pub mod route;
mod scope;
pub mod source;
pub mod spread;
pub mod touch;
pub mod unroutable;
mod value;
mod write;

use crate::{
    catalog::{
        shard::{ShardId, ShardSet},
        snapshot::Snapshot,
    },
    sql::{
        normalize::Slot,
        statement::{Access, Effect},
    },
    wire::{frontend::Bind, types::Oid},
};
use std::hash::{Hash as _, Hasher as _};
use unroutable::Unroutable;
use xxhash_rust::xxh3::Xxh3;

/// What the session knows that changes what a statement's text means. `digest` covers every other field and keys the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each mirrors one setting of PostgreSQL"
)]
pub struct Context {
    /// Schemas in order, `"$user"` replaced already; `pg_catalog` is searched first when it is not listed.
    pub search_path: Vec<String>,
    pub standard_conforming_strings: bool,
    /// Whether client_encoding is UTF8, so that text keys are hashed as they stand.
    pub utf8: bool,
    pub transform_null_equals: bool,
    /// `SET shardway.shard`, `SET shardway.key`.
    pub pinned: Option<Override>,
    /// Columns of an INSERT whose values are the proxy's own.
    pub computed: Vec<String>,
    pub digest: u64,
}

impl Context {
    /// The digest of this context with values of the proxy's own for these columns.
    #[must_use]
    pub fn digest_with(&self, computed: &[String]) -> u64 {
        let mut hasher = Xxh3::with_seed(self.digest);
        computed.hash(&mut hasher);
        hasher.finish()
    }
}

/// What PostgreSQL's own settings say at the start.
impl Default for Context {
    fn default() -> Self {
        Self {
            search_path: vec!["public".to_owned()],
            standard_conforming_strings: true,
            utf8: true,
            transform_null_equals: false,
            pinned: None,
            computed: Vec::new(),
            digest: 0,
        }
    }
}

/// A manual override: a comment at the start of a statement, or a session setting.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Override {
    /// `shardway: key=…`, as written.
    Key(String),
    /// `shardway: shard=…`.
    Shard(String),
}

/// What to do with a text: one plan per statement in it, in order; none for an empty query.
#[derive(Debug)]
pub struct Plan {
    pub statements: Vec<StatementPlan>,
    /// Literals, by slot, whose very text this plan depends on: it serves only texts that agree in them.
    pub structural: Vec<u16>,
}

/// What to do with one statement.
#[derive(Clone, Debug)]
pub struct StatementPlan {
    /// Where the statement stands in the text, bytes, without its semicolon.
    pub start: u32,
    pub end: u32,
    pub effect: Effect,
    pub access: Access,
    /// Whether it asks for the running transaction's time, number or snapshot.
    pub names_transaction: bool,
    /// Whether it may tell numbers of types or relations, which are others on each shard: clients are told the home shard's.
    pub shows_oids: bool,
    pub target: Target,
    pub footing: Footing,
    /// Groups whose rows it may read or write.
    pub touches: touch::Touches,
    pub numbers: Numbers,
    /// How it is computed when it needs several shards.
    pub gather: Option<Box<gather::Gather>>,
    /// How it changes rows of several shards.
    pub spread: Option<Box<spread::Spread>>,
    /// How the rows of a COPY FROM STDIN find their shards.
    pub copy_in: Option<Box<copy::CopyIn>>,
    /// How the rows of a COPY TO STDOUT are put together.
    pub copy_out: Option<Box<copy::CopyOut>>,
    /// How a schema change runs on several shards.
    pub changes: Option<Box<change::Changes>>,
    /// How the answers of several shards are put together, when each gives its part of the whole.
    pub combine: Option<Box<combine::Combine>>,
    /// What must be computed before it can be planned to its end.
    pub computes: Option<Box<defaults::Computes>>,
    /// How its rows are computed before it can be planned to its end.
    pub sourced: Option<Box<source::Sourced>>,
    pub explains: Explains,
}

/// Whether it is an EXPLAIN of what several shards may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Explains {
    #[default]
    No,
    OfSeveral,
}

/// What its place rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Footing {
    /// The configuration, the catalog, or no table.
    #[default]
    Sure,
    /// A table that nothing lists is where unlisted tables live, as servers were seen to have it.
    Unlisted,
    /// A table that nothing lists and that no server was seen to have. The servers are asked before it runs.
    Unseen,
    /// New rows whose defaults may count on a shard that has come since the servers were asked, or anything before the map
    /// was read. The servers are asked before it runs: numbers come from one place.
    Unlooked,
}

/// Whether code that a statement runs may ask for what its session drew last (`currval`, `lastval`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numbers {
    Apart,
    MayAsk,
}

/// Where a statement runs.
#[derive(Clone, Debug)]
pub enum Target {
    /// The same for every execution.
    Fixed(Route),
    /// Computed from the key values of each execution.
    ByKey(route::Pins),
    /// `EXPLAIN (ROUTE) …` of the inner plan: answered here.
    Explain(Box<StatementPlan>),
    /// Not understood: PostgreSQL judges it by a Parse alone, whose error passes through; what it accepts is refused
    /// with [`Unroutable::NotUnderstood`], never executed.
    Judge,
    /// Never.
    Refused(Box<Unroutable>),
}

/// Where one execution of a statement runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    One(ShardId),
    /// Several shards, not all.
    Some(ShardSet),
    All,
    /// Any one shard gives the whole answer; a session's stay together.
    Any,
    /// What exists once per database: the home shard.
    Home,
}

/// The values of one execution.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The statement's text, as the slots index it.
    pub text: &'a [u8],
    pub slots: &'a [Slot],
    /// Parameter types as declared in Parse; may be shorter than the parameters.
    pub types: &'a [Oid],
    pub bind: Option<&'a Bind<'a>>,
}

impl StatementPlan {
    /// Whether several shards may do what no shard alone can.
    #[must_use]
    pub fn may_use_several(&self) -> bool {
        self.gather.is_some()
            || self.spread.is_some()
            || self.combine.is_some()
            || self.changes.is_some()
            || self.copy_in.is_some()
            || self.copy_out.is_some()
            || self.computes.is_some()
            || self.explains == Explains::OfSeveral
            || self.sourced.is_some()
            // Its query decides, when it runs.
            || matches!(self.effect, Effect::Declare { .. })
    }

    /// A statement of a text, from byte to byte, that is not computed over several shards.
    #[must_use]
    pub fn new(
        place: std::ops::Range<u32>,
        effect: Effect,
        access: Access,
        target: Target,
    ) -> Self {
        Self {
            start: place.start,
            end: place.end,
            effect,
            access,
            names_transaction: false,
            shows_oids: false,
            target,
            footing: Footing::Sure,
            touches: touch::Touches::NOTHING,
            numbers: Numbers::Apart,
            gather: None,
            spread: None,
            copy_in: None,
            copy_out: None,
            changes: None,
            combine: None,
            computes: None,
            explains: Explains::No,
            sourced: None,
        }
    }

    /// Whether the value of this parameter, from 0, decides where it runs.
    #[must_use]
    pub fn reads_parameter(&self, index: usize) -> bool {
        match &self.target {
            Target::ByKey(pins) => pins.reads_parameter(index),
            Target::Explain(inner) => inner.reads_parameter(index),
            Target::Fixed(_) | Target::Judge | Target::Refused(_) => false,
        }
    }

    /// Where this execution runs.
    ///
    /// # Errors
    /// [`Unroutable`]: why it must not run anywhere.
    pub fn route(
        &self,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Result<Route, Box<Unroutable>> {
        match &self.target {
            Target::Fixed(route) => Ok(route.clone()),
            Target::ByKey(pins) => pins.route(snapshot, values),
            Target::Explain(inner) => inner.route(snapshot, values),
            Target::Judge => Err(Box::new(Unroutable::NotUnderstood)),
            Target::Refused(why) => Err(why.clone()),
        }
    }
}
