//! From text to plan: what each statement does to its session, and where it runs.
//!
//! A plan holds for every text with the same template that agrees in the plan's structural literals: no other
//! literal is looked at here, only where it stands.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

mod changing;
mod copying;
mod viewing;

pub use viewing::{Shown, shown};

use super::scope::Instance;
use super::{
    Context, Explains, Footing, Numbers, Override, Plan, Route, StatementPlan, Target,
    block::{Analysis, Barred, Moment, Place},
    combine::{self, Combine},
    gather::{Gather, Named, Plain, is_settled},
    route::{Fixed, Pin, Pins, Why},
    spread::{self, Asked, Spread},
    touch::Touches,
    unroutable::{Undoubled, Unroutable},
    value::Reading,
};
use crate::{
    catalog::{
        code::Code,
        group::GroupId,
        shard::ShardId,
        snapshot::{Snapshot, Standing, TableName},
    },
    protocol::parameters::{Value, is_list_of_names, list},
    sql::{
        code::{leaves_something, words},
        functions::{Class, Keeps, classify},
        normalize::Slot,
        parse,
        statement::{Access, Effect, PinReason, Within, quoted},
        tree::{
            Body, Depth, Discard, Kind, Name, Query, Set, SettingCalls, Statement, Transaction,
        },
    },
    wire::types::Oid,
};
use std::{borrow::Cow, cell::Cell};

/// The plan of a text. `slots` are the literals of this very text.
#[must_use]
pub fn analyze(
    text: &[u8],
    types: &[Oid],
    slots: &[Slot],
    context: &Context,
    snapshot: &Snapshot,
) -> Plan {
    let utf8 = std::str::from_utf8(text)
        .ok()
        .filter(|text| !text.contains('\0'));
    let Some(parsed) = utf8 else {
        return of_another_encoding(text, slots, context, snapshot)
            .unwrap_or_else(|| whole(text, slots, context, snapshot, Unroutable::NotUtf8));
    };
    let Ok(statements) = parse::parse(parsed) else {
        return whole(text, slots, context, snapshot, Unroutable::NotUnderstood);
    };
    let mut structural = Vec::new();
    let comment = override_comment(text);
    let mut plans = Vec::with_capacity(statements.len());
    let (mut named, mut pinned_as_said) = (true, true);
    for (at, statement) in statements.iter().enumerate() {
        let pinned = comment
            .as_ref()
            .filter(|_| at == 0)
            .or(context.pinned.as_ref());
        let planner = Planner {
            types,
            pinned,
            ..Planner::new(text, slots, context, snapshot, statement)
        };
        if planner.reads_literals() {
            structural.extend(literals_of(statement, slots));
        }
        let (mut effect, access, mut target) = planner.plan(&statement.kind);
        if !context.utf8 {
            effect = repeatable(effect);
        }
        let numbers = planner.numbers(&mut effect);
        let known = pinned_as_said && (named || matches!(pinned, Some(Override::Shard(_))));
        if !known && !snapshot.is_single() && depends_on_settings(&statement.kind) {
            target = Target::Refused(Box::new(Unroutable::Unsupported {
                feature: "a statement behind a change of search_path or the like in one message",
            }));
        }
        named &= !unsettles(&effect);
        pinned_as_said &= !matches!(&effect, Effect::Set { name, .. } | Effect::Reset(name) if name.starts_with("shardway."))
            && !matches!(effect, Effect::ResetAll | Effect::DiscardAll);
        let place = statement.start..statement.end;
        plans.push(planner.with_several(StatementPlan {
            names_transaction: planner.momentary.get()
                || (!snapshot.is_single()
                    && (planner.leaves_time.get() || names_transaction(text, slots))),
            shows_oids: snapshot.oids.is_some()
                && !matches!(effect, Effect::Set { .. })
                && (planner.momentary.get() || shows_oids(text, slots)),
            numbers,
            footing: planner.footing(),
            touches: planner.touches(&statement.kind),
            ..StatementPlan::new(place, effect, access, target)
        }));
    }
    Plan {
        statements: plans,
        structural,
    }
}

/// Which targets of a query of one block are given names; none of another.
fn named(query: &Query) -> Vec<Named> {
    let Body::Select(select) = &query.body else {
        return Vec::new();
    };
    let targets = select.targets.iter();
    let named = targets.map(|target| target.name.as_ref().map_or(Named::No, |_| Named::Yes));
    named.collect()
}

fn executes(name: &str, within: Within) -> Effect {
    let name = name.to_owned();
    Effect::Execute { name, within }
}

/// Whether names or literals of the statements behind it in the same message may mean something else than the session
/// says now. What ends a transaction also ends its SET LOCAL.
fn unsettles(effect: &Effect) -> bool {
    let decides = |name: &str| {
        matches!(
            name,
            "search_path"
                | "role"
                | "session_authorization"
                | "client_encoding"
                | "standard_conforming_strings"
                | "transform_null_equals"
        )
    };
    match effect {
        Effect::Set { name, .. } | Effect::Reset(name) => decides(name),
        Effect::ResetAll
        | Effect::DiscardAll
        | Effect::Pins(PinReason::Setting | PinReason::Code)
        | Effect::Opaque => true,
        Effect::Commit { .. } | Effect::Rollback { .. } | Effect::RollbackTo(_) => true,
        _ => false,
    }
}

/// Whether a statement changes rows, and nothing around it does something else with them.
fn writes(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Insert(_) | Kind::Update(_) | Kind::Delete(_) | Kind::Merge(_)
    )
}

/// The literals of a statement, by slot.
fn literals_of(statement: &Statement, slots: &[Slot]) -> impl Iterator<Item = u16> {
    let (start, end) = (statement.start, statement.end);
    let inside = move |slot: &Slot| slot.start >= start && slot.end <= end;
    let indices = (0..slots.len()).filter(move |at| slots.get(*at).is_some_and(inside));
    indices.filter_map(|at| u16::try_from(at).ok())
}

/// Whether a statement is a query by itself.
fn queries(kind: &Kind) -> bool {
    matches!(kind, Kind::Query(_))
}

/// Whether a function is about the session's numbers of sequences.
fn draws_or_asks(name: &str) -> bool {
    matches!(name, "nextval" | "currval" | "lastval")
}

/// Whether it is one of the functions for everybody in Shardway's own schema.
fn is_ours(name: &str) -> bool {
    matches!(name, "next_id" | "currval" | "lastval")
}

/// Whether a function of PostgreSQL's own begins something in its session.
fn seeds(name: &str) -> bool {
    matches!(name, "setseed" | "pg_replication_origin_session_setup")
}

/// Whether a statement names tables or functions.
fn depends_on_settings(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Query(_)
            | Kind::Insert(_)
            | Kind::Update(_)
            | Kind::Delete(_)
            | Kind::Merge(_)
            | Kind::Explain { .. }
            | Kind::Declare { .. }
            | Kind::Copy(_)
            | Kind::Call(_)
            | Kind::CreateTemporary
            | Kind::Change(_)
            | Kind::Utility(_)
            | Kind::Notify
    )
}

/// The override in a comment at the start of a text: `/* shardway: key=42 */` or `/* shardway: shard=s1 */`.
/// It is for the first statement of the text.
#[must_use]
pub fn override_comment(text: &[u8]) -> Option<Override> {
    let text = text.trim_ascii_start().strip_prefix(b"/*")?;
    let end = text.windows(2).position(|pair| pair == b"*/")?;
    let inside = std::str::from_utf8(text.get(..end)?).ok()?;
    let (name, value) = inside
        .trim()
        .strip_prefix("shardway:")?
        .trim()
        .split_once('=')?;
    let value = value.trim();
    let value = value
        .strip_prefix('\'')
        .and_then(|value| value.strip_suffix('\''))
        .unwrap_or(value)
        .to_owned();
    match name.trim() {
        "key" => Some(Override::Key(value)),
        "shard" => Some(Override::Shard(value)),
        _ => None,
    }
}

/// A text that has no tree. Whatever it holds, none of its literals may vary.
/// A text that is not UTF-8, on the one shard that there is: only what it does to the session matters. Each byte is read
/// as a character of its own, so that different names stay different. `None`: on several shards, or not understood.
fn of_another_encoding(
    text: &[u8],
    slots: &[Slot],
    context: &Context,
    snapshot: &Snapshot,
) -> Option<Plan> {
    if !snapshot.is_single() {
        return None;
    }
    let read: String = text.iter().copied().map(char::from).collect();
    let place = |at: u32| {
        let before = read.get(..at as usize).unwrap_or(&read);
        u32::try_from(before.chars().count()).unwrap_or(u32::MAX)
    };
    let statements = parse::parse(&read).ok()?;
    let plans = statements.iter().map(|statement| {
        let planner = Planner::new(read.as_bytes(), &[], context, snapshot, statement);
        let (effect, access, target) = planner.plan(&statement.kind);
        let mut effect = repeatable(effect);
        let numbers = planner.numbers(&mut effect);
        StatementPlan {
            start: place(statement.start),
            end: place(statement.end),
            effect,
            access,
            names_transaction: names_transaction(read.as_bytes(), &[]),
            shows_oids: false,
            target,
            footing: Footing::Sure,
            touches: Touches::NOTHING,
            numbers,
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
    });
    Some(Plan {
        statements: plans.collect(),
        structural: every(slots),
    })
}

/// Outside of UTF-8 a setting's bytes mean something else as text of ours: such a one cannot be told to another backend.
fn repeatable(effect: Effect) -> Effect {
    let repeats = match &effect {
        Effect::Set { name, value, .. } => {
            name.is_ascii() && value.as_ref().is_none_or(|value| value.is_ascii())
        }
        Effect::Reset(name) => name.is_ascii(),
        _ => true,
    };
    if repeats {
        effect
    } else {
        Effect::Pins(PinReason::Setting)
    }
}

/// All slots: the plan is for exactly these literals.
fn every(slots: &[Slot]) -> Vec<u16> {
    (0..slots.len())
        .filter_map(|at| u16::try_from(at).ok())
        .collect()
}

fn whole(
    text: &[u8],
    slots: &[Slot],
    context: &Context,
    snapshot: &Snapshot,
    why: Unroutable,
) -> Plan {
    let comment = override_comment(text);
    let target = match comment.as_ref().or(context.pinned.as_ref()) {
        _ if snapshot.is_single() => Target::Fixed(Route::One(ShardId(0))),
        Some(Override::Shard(name)) => match snapshot.shard_named(name) {
            Some(shard) => Target::Fixed(Route::One(shard)),
            None => Target::Refused(Box::new(Unroutable::OverrideShard {
                shard: name.clone(),
            })),
        },
        _ if why == Unroutable::NotUnderstood => Target::Judge,
        _ => Target::Refused(Box::new(why)),
    };
    let end = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let statement = StatementPlan {
        start: 0,
        end,
        // On several shards it is judged, not run.
        effect: if snapshot.is_single() {
            Effect::Opaque
        } else {
            Effect::None
        },
        access: Access::Write,
        names_transaction: true,
        shows_oids: false,
        target,
        footing: Footing::Sure,
        touches: Touches::EVERYTHING,
        numbers: Numbers::MayAsk,
        gather: None,
        spread: None,
        copy_in: None,
        copy_out: None,
        changes: None,
        combine: None,
        computes: None,
        explains: Explains::No,
        sourced: None,
    };
    Plan {
        statements: vec![statement],
        structural: every(slots),
    }
}

/// Plans one statement.
struct Planner<'a> {
    text: &'a [u8],
    types: &'a [Oid],
    slots: &'a [Slot],
    context: &'a Context,
    snapshot: &'a Snapshot,
    pinned: Option<&'a Override>,
    statement: &'a Statement,
    /// How the statement is computed over several shards, found with its target.
    gather: Cell<Option<Box<Gather>>>,
    /// How it is written to several shards, found with its target.
    spread: Cell<Option<Box<Spread>>>,
    /// Whether columns are left to defaults that ask for the transaction's time.
    leaves_time: Cell<bool>,
    /// How the rows of a COPY find their shards.
    copy_in: Cell<Option<Box<super::copy::CopyIn>>>,
    copy_out: Cell<Option<Box<super::copy::CopyOut>>>,
    /// How a schema change runs on several shards.
    changes: Cell<Option<Box<super::change::Changes>>>,
    combine: Cell<Option<Box<Combine>>>,
    footing: Cell<Footing>,
    barred: Cell<Option<Barred>>,
    touches: Cell<Touches>,
    /// What an INSERT leaves to be computed.
    computes: Cell<Option<Box<super::defaults::Computes>>>,
    /// How the rows of an INSERT … SELECT are computed first.
    sourced: Cell<Option<Box<super::source::Sourced>>>,
    /// Whether it reads a view that shows what is of the moment.
    momentary: Cell<bool>,
}

/// What the functions of a statement do.
struct Calls {
    home: Option<Keeps>,
    large_objects: bool,
    one_shard: Option<String>,
    runs_sql: Option<String>,
    unknown: Option<String>,
    channels: Channels,
    /// May leave something in the session.
    leaves: Option<String>,
    sequence: Option<Draw>,
    ids: Ids,
}

/// Whether `shardway.next_id()` is called, which every shard answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    NotAsked,
    Asked,
}

/// What is asked of a sequence by its function.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Draw {
    Next,
    /// What the session drew last.
    Last,
}

/// What functions have to do with LISTEN and NOTIFY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channels {
    /// Nothing, or others matter as well.
    Apart,
    /// `pg_listening_channels` is among them.
    Asked,
    /// `pg_notify` is the only one that is more than its result.
    Notified,
}

impl Calls {
    /// Whether any shard may compute them.
    fn are_harmless(&self) -> bool {
        let Self {
            home,
            large_objects,
            one_shard,
            runs_sql,
            unknown,
            channels,
            leaves,
            sequence,
            ids: _,
        } = self;
        let named = [one_shard, runs_sql, unknown, leaves];
        home.is_none()
            && !large_objects
            && *channels == Channels::Apart
            && sequence.is_none()
            && named.iter().all(|name| name.is_none())
    }
}

impl<'a> Planner<'a> {
    fn new(
        text: &'a [u8],
        slots: &'a [Slot],
        context: &'a Context,
        snapshot: &'a Snapshot,
        statement: &'a Statement,
    ) -> Self {
        Self {
            footing: Cell::default(),
            barred: Cell::default(),
            touches: Cell::default(),
            text,
            types: &[],
            slots,
            context,
            snapshot,
            pinned: None,
            statement,
            gather: Cell::default(),
            spread: Cell::default(),
            leaves_time: Cell::default(),
            copy_in: Cell::default(),
            copy_out: Cell::default(),
            changes: Cell::default(),
            combine: Cell::default(),
            computes: Cell::default(),
            sourced: Cell::default(),
            momentary: Cell::default(),
        }
    }

    /// The plan with what was found of several shards. Of EXPLAIN, DECLARE or COPY a query's is that of the query within,
    /// which does not run by itself.
    fn with_several(&self, plan: StatementPlan) -> StatementPlan {
        let changes = self.changes.take();
        if let Some(why) = self.barred(changes.is_some()) {
            let target = Target::Refused(Box::new(why));
            let StatementPlan { start, end, .. } = plan;
            return StatementPlan::new(start..end, plan.effect, plan.access, target);
        }
        let kind = &self.statement.kind;
        let (gather, spread, combine) =
            (self.gather.take(), self.spread.take(), self.combine.take());
        let several = gather.is_some() || spread.is_some() || combine.is_some();
        StatementPlan {
            explains: match kind {
                Kind::Explain { route: false, .. } if several => Explains::OfSeveral,
                _ => Explains::No,
            },
            gather: gather.filter(|_| queries(kind)),
            spread: spread.filter(|_| writes(kind)),
            copy_in: self.copy_in.take(),
            copy_out: self.copy_out.take(),
            changes,
            combine: combine.filter(|_| queries(kind)),
            computes: self
                .computes
                .take()
                .filter(|_| matches!(kind, Kind::Insert(_))),
            sourced: self
                .sourced
                .take()
                .filter(|_| matches!(kind, Kind::Insert(_))),
            ..plan
        }
    }

    /// Whether literals other than key values decide the plan: settings, options, names in text.
    fn reads_literals(&self) -> bool {
        let query = matches!(
            self.statement.kind,
            Kind::Query(_) | Kind::Insert(_) | Kind::Update(_) | Kind::Delete(_) | Kind::Merge(_)
        );
        !query || self.statement.settings != SettingCalls::None || self.draws()
    }

    fn plan(&self, kind: &Kind) -> (Effect, Access, Target) {
        if self.snapshot.is_single() {
            let (effect, access, _) = self.several(kind);
            let target = match kind {
                Kind::Explain {
                    route: true, inner, ..
                } => {
                    let (effect, access, _) = self.several(inner);
                    let target = Target::Fixed(Route::One(ShardId(0)));
                    let (start, end) = (self.statement.start, self.statement.end);
                    Target::Explain(Box::new(StatementPlan::new(
                        start..end,
                        effect,
                        access,
                        target,
                    )))
                }
                _ => Target::Fixed(Route::One(ShardId(0))),
            };
            return (effect, access, target);
        }
        self.several(kind)
    }

    /// As if the database had several shards.
    #[expect(clippy::too_many_lines, reason = "one short arm per kind of statement")]
    fn several(&self, kind: &Kind) -> (Effect, Access, Target) {
        let any = || Target::Fixed(Route::Any);
        let home = || Target::Fixed(Route::Home);
        let (read, write) = (Access::Read, Access::Write);
        match kind {
            Kind::Query(_)
            | Kind::Insert(_)
            | Kind::Update(_)
            | Kind::Delete(_)
            | Kind::Merge(_) => self.rows(kind),
            Kind::SetConfig { name, value, local } => {
                let (name, value) = (name.clone(), Some(setting_text(name, value)));
                (
                    Effect::Set {
                        name,
                        value,
                        local: *local,
                    },
                    read,
                    any(),
                )
            }
            Kind::Explain {
                analyze,
                route,
                inner,
            } => self.explain(*analyze, *route, inner),
            Kind::Declare { hold, query } => {
                let (effect, access, target) = self.several(query);
                let effect = match effect {
                    effect @ (Effect::Pins(_) | Effect::Opaque) if !*hold => effect,
                    _ => Effect::Declare { hold: *hold },
                };
                (effect, access, target)
            }
            Kind::Copy(copy) => self.copy(copy),
            Kind::Transaction(transaction) => self.transaction(transaction),
            Kind::Set(set) => self.set(set),
            Kind::Show => (Effect::None, read, any()),
            Kind::Discard(Discard::All) => (Effect::DiscardAll, read, any()),
            Kind::Discard(_) => (Effect::None, read, any()),
            Kind::Deallocate(name) => (Effect::Deallocate(name.clone()), read, any()),
            Kind::Prepare(name) => {
                let target = self.one_shard_only(Unroutable::Unsupported {
                    feature: "PREPARE as a statement",
                });
                (Effect::Prepare(name.clone()), write, target)
            }
            // Where it runs and what it does is what its statement says: the session knows that.
            Kind::Execute(name) => (executes(name, Within::Itself), write, any()),
            Kind::TableOfExecute { name, temporary } => {
                let command = "CREATE TABLE AS";
                let temporary =
                    *temporary || self.made(command) == Effect::Pins(PinReason::TemporaryTable);
                let within = if temporary {
                    Within::TemporaryTable
                } else {
                    Within::Table
                };
                let target = self.one_shard_only(Unroutable::PerShard { command });
                (executes(name, within), write, target)
            }
            Kind::Cursor => (Effect::Cursor, read, any()),
            Kind::Listen(channel) => (Effect::Listen(channel.clone()), read, home()),
            Kind::Unlisten(channel) => (Effect::Unlisten(channel.clone()), read, any()),
            Kind::Notify => (Effect::Notify, write, home()),
            Kind::Load => (Effect::Pins(PinReason::Load), read, any()),
            Kind::Call(command) => {
                let name = self
                    .statement
                    .functions
                    .first()
                    .map_or(*command, |name| &name.name)
                    .to_owned();
                (
                    self.called(command),
                    write,
                    self.one_shard_only(Unroutable::Function { name }),
                )
            }
            Kind::CreateTemporary => {
                let target = self.one_shard_only(Unroutable::Unsupported {
                    feature: "temporary tables",
                });
                (Effect::Pins(PinReason::TemporaryTable), write, target)
            }
            Kind::Change(change) => self.change(change),
            Kind::Utility(command) => (
                self.made(command),
                write,
                self.one_shard_only(Unroutable::PerShard { command }),
            ),
            Kind::Empty => (Effect::None, read, any()),
        }
    }

    /// What only an override of the shard lets run.
    fn one_shard_only(&self, why: Unroutable) -> Target {
        match self.pinned {
            Some(Override::Shard(name)) => match self.snapshot.shard_named(name) {
                Some(shard) => Target::Fixed(Route::One(shard)),
                None => Target::Refused(Box::new(Unroutable::OverrideShard {
                    shard: name.clone(),
                })),
            },
            _ => Target::Refused(Box::new(why)),
        }
    }

    fn transaction(&self, transaction: &Transaction) -> (Effect, Access, Target) {
        let effect = match transaction {
            Transaction::Begin => Effect::Begin,
            Transaction::Commit { chain } => Effect::Commit { chain: *chain },
            Transaction::Rollback { chain } => Effect::Rollback { chain: *chain },
            Transaction::Savepoint(name) => Effect::Savepoint(name.clone()),
            Transaction::Release(name) => Effect::Release(name.clone()),
            Transaction::RollbackTo(name) => Effect::RollbackTo(name.clone()),
            Transaction::Set => Effect::SetTransaction,
            Transaction::TwoPhase => {
                let why = Unroutable::Unsupported {
                    feature: "two-phase commit by the client",
                };
                return (Effect::TwoPhase, Access::Write, self.one_shard_only(why));
            }
        };
        (effect, Access::Read, Target::Fixed(Route::Any))
    }

    fn set(&self, set: &Set) -> (Effect, Access, Target) {
        let effect = match set {
            // It begins a sequence of numbers, which goes on where it was begun.
            Set::Value { name, .. } if name == "seed" => Effect::Pins(PinReason::Setting),
            Set::Value { name, value, local } => Effect::Set {
                name: name.clone(),
                value: value.clone(),
                local: *local,
            },
            Set::Each(all) => Effect::SetEach(all.clone()),
            Set::Reset(name) => Effect::Reset(name.clone()),
            Set::ResetAll => Effect::ResetAll,
            Set::Opaque => {
                let why = Unroutable::Unsupported {
                    feature: "SET with a value that cannot be repeated elsewhere",
                };
                return (
                    Effect::Pins(PinReason::Setting),
                    Access::Read,
                    self.one_shard_only(why),
                );
            }
        };
        (effect, Access::Read, Target::Fixed(Route::Any))
    }

    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "the two options of EXPLAIN that matter"
    )]
    fn explain(&self, analyze: bool, route: bool, inner: &Kind) -> (Effect, Access, Target) {
        let (effect, access, target) = self.several(inner);
        if route {
            let (start, end) = (self.statement.start, self.statement.end);
            let inner = StatementPlan {
                gather: self.gather.take(),
                combine: self.combine.take(),
                spread: self.spread.take(),
                computes: self.computes.take(),
                sourced: self.sourced.take(),
                ..StatementPlan::new(start..end, effect, access, target)
            };
            return (Effect::None, Access::Read, Target::Explain(Box::new(inner)));
        }
        match effect {
            Effect::Execute { name, within } => {
                let within = match within {
                    _ if !analyze => Within::Explain,
                    Within::TemporaryTable => Within::TemporaryTable,
                    _ => Within::ExplainAnalyze,
                };
                (executes(&name, within), access, target)
            }
            _ if !analyze => (Effect::None, Access::Read, target),
            effect @ (Effect::Pins(_) | Effect::Opaque) => (effect, access, target),
            Effect::Set { local: false, .. } => (Effect::Pins(PinReason::Setting), access, target),
            _ => (Effect::None, access, target),
        }
    }

    fn contradicts(&self, shard: ShardId) -> Target {
        let named = match self.pinned {
            Some(Override::Shard(name) | Override::Key(name)) => name.clone(),
            None => String::new(),
        };
        let keys = self
            .snapshot
            .shards
            .get(shard.index())
            .cloned()
            .unwrap_or_default();
        Target::Refused(Box::new(Unroutable::OverrideContradicts { named, keys }))
    }

    /// SELECT, INSERT, UPDATE, DELETE, MERGE.
    fn rows(&self, kind: &Kind) -> (Effect, Access, Target) {
        let calls = self.calls();
        let mut analysis = Analysis::new(self.text, self.slots, self.context, self.snapshot);
        analysis.kind(kind, None);
        let pins = analysis.pins();
        self.rests_on(&analysis);
        analysis.refuse_shared_parameters(&self.statement.parameters, self.types);
        let opaque = calls.one_shard.is_some()
            || calls.unknown.is_some()
            || calls.sequence.is_some()
            || calls.ids == Ids::Asked;
        let access = if analysis.writes
            || opaque
            || calls.home.is_some()
            || calls.large_objects
            || analysis.moment != Moment::Any
            || names_transaction(self.text, self.slots)
        {
            Access::Write
        } else {
            Access::Read
        };
        let effect = match self.effect(kind, &calls) {
            Effect::None if analysis.moment == Moment::OfCode => Effect::Opaque,
            effect => effect,
        };
        if matches!(effect, Effect::None | Effect::Draws | Effect::Opaque) {
            self.computes.set(self.computed(kind, &analysis));
        }
        self.leaves_time.set(spread::leaves_time(kind, &analysis));
        let momentary = analysis.moment != Moment::Any;
        self.momentary.set(momentary);
        if effect == Effect::None && !momentary {
            self.gather.set(self.gathered(kind, &analysis, &calls));
            self.combine.set(self.combined(kind, &analysis, &calls));
            self.spread
                .set(self.spread_over_shards(kind, &analysis, &pins, &calls));
            self.sourced
                .set(self.sourced_first(kind, &analysis, &calls));
        }
        let target = self.target(analysis, pins, &calls);
        if let (Some(sequence), Target::Refused(why), None) =
            (&self.statement.numbers, &target, self.pinned)
            && matches!(**why, Unroutable::Function { .. })
            && queries(kind)
        {
            let own = super::change::numbered(sequence);
            self.changes.set(Some(Box::new(own)));
        }
        (effect, access, target)
    }

    /// Its place rests on what the analysis has come upon.
    fn rests_on(&self, analysis: &Analysis<'_>) {
        self.footing
            .set(self.footing.get().max(analysis.footing.get()));
        let barred = self.barred.get();
        self.barred.set(barred.or_else(|| analysis.barred.get()));
        let touches = self.touches.get().and(analysis.touches.get());
        self.touches.set(touches);
    }

    /// Whose rows it may touch: where an override lets code or commands run that were not looked into, anybody's.
    fn touches(&self, kind: &Kind) -> Touches {
        if self.pinned.is_none() || self.snapshot.is_single() {
            return self.touches.get();
        }
        match kind {
            Kind::Query(_)
            | Kind::Insert(_)
            | Kind::Update(_)
            | Kind::Delete(_)
            | Kind::Merge(_)
            | Kind::Explain { .. }
            | Kind::Declare { .. }
            | Kind::Copy(_) => {
                let calls = self.calls();
                let hidden = calls.one_shard.or(calls.runs_sql).or(calls.unknown);
                if hidden.is_some() {
                    Touches::EVERYTHING
                } else {
                    self.touches.get()
                }
            }
            Kind::Call(_)
            | Kind::Utility(_)
            | Kind::Change(_)
            | Kind::CreateTemporary
            | Kind::TableOfExecute { .. } => Touches::EVERYTHING,
            _ => self.touches.get(),
        }
    }

    /// Why none of it is served; `changes`: it changes the schema of several shards.
    fn barred(&self, changes: bool) -> Option<Unroutable> {
        let barred = match (self.barred.get(), &self.snapshot.standing) {
            (None | Some(Barred::Unknown), Standing::Known) => None,
            (Some(Barred::Group(group)), _) => Some(Unroutable::MapDiffers {
                group: self.snapshot.group(group).name.clone(),
            }),
            (Some(Barred::Unknown), standing) => Some(Unroutable::MapUnknown(standing.clone())),
            (None, standing) => changes.then(|| Unroutable::MapUnknown(standing.clone())),
        };
        let said = matches!(self.pinned, Some(Override::Shard(_)));
        barred.filter(|_| !said)
    }

    fn footing(&self) -> Footing {
        match self.pinned {
            // Who says so answers for it.
            Some(Override::Shard(_)) => Footing::Sure,
            _ if self.snapshot.is_single() => Footing::Sure,
            Some(Override::Key(_)) | None => self.footing.get(),
        }
    }

    /// What an INSERT leaves to defaults that must be computed before its rows have their shards.
    fn computed(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
    ) -> Option<Box<super::defaults::Computes>> {
        let Kind::Insert(insert) = kind else {
            return None;
        };
        let fits = self.pinned.is_none()
            && self.context.computed.is_empty()
            && self.context.utf8
            && self.context.standard_conforming_strings
            && self.statement.depth == Depth::Whole
            && !self.snapshot.is_single();
        let (table, key) = match analysis.place(&insert.table.name) {
            Place::Sharded { table, key, .. } => (table, Some(key)),
            Place::Reference(table) => (table, None),
            Place::Single(_) | Place::Catalog | Place::Unknown => return None,
        };
        let first = table.columns.first().map(String::as_str);
        let into = super::defaults::Into {
            effects: &table.effects,
            key,
            first: first.filter(|first| Some(*first) == key),
            path: &self.context.search_path,
        };
        let slots = self.own_slots();
        let found = || super::defaults::Computes::find(insert, self.own_text(), &slots, &into);
        fits.then(found).flatten().map(Box::new)
    }

    /// How the rows of an INSERT … SELECT that reads no table are computed before it runs.
    fn sourced_first(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
        calls: &Calls,
    ) -> Option<Box<super::source::Sourced>> {
        let Kind::Insert(insert) = kind else {
            return None;
        };
        let fits = self.pinned.is_none()
            && self.context.utf8
            && self.context.standard_conforming_strings
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && calls.are_harmless()
            && !self.snapshot.is_single();
        if !fits {
            return None;
        }
        let (functions, slots) = (&self.statement.functions, self.own_slots());
        super::source::Sourced::find(insert, functions, self.own_text(), &slots, analysis)
            .map(Box::new)
    }

    /// How the answers of several shards are put together, when each gives its part of the whole.
    fn combined(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
        calls: &Calls,
    ) -> Option<Box<Combine>> {
        let Kind::Query(query) = kind else {
            return None;
        };
        let settled = self.context.standard_conforming_strings && self.context.utf8;
        let unpinned = |why: &Unroutable| matches!(why, Unroutable::Unpinned { .. });
        let reads = !analysis.writes
            && analysis.fixed.is_empty()
            && analysis.refusals.iter().all(unpinned)
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && self.pinned.is_none()
            && calls.are_harmless();
        if !(settled && reads) {
            return None;
        }
        combine::find(query, self.own_text(), &self.statement.functions, analysis).map(Box::new)
    }

    /// How a read of one sharded table is computed when it needs several shards.
    fn gathered(&self, kind: &Kind, analysis: &Analysis<'_>, calls: &Calls) -> Option<Box<Gather>> {
        let Kind::Query(query) = kind else {
            return None;
        };
        let reads = query.into.is_none()
            && !analysis.writes
            && analysis.fixed.is_empty()
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && calls.are_harmless();
        let unpinned = |why: &Unroutable| matches!(why, Unroutable::Unpinned { .. });
        let settled = self.context.standard_conforming_strings && self.context.utf8;
        let table = &analysis.instances.first()?.table;
        let same = analysis.instances.iter().all(|one| one.table == *table);
        let only_unpinned = analysis.refusals.iter().all(unpinned);
        if !(reads && settled && same && only_unpinned && self.pinned.is_none()) {
            return None;
        }
        let plain = |name: &Name| {
            let own = name
                .schema
                .as_deref()
                .is_none_or(|schema| schema == "pg_catalog");
            own && is_settled(&name.name)
        };
        let plain = if self.statement.functions.iter().all(plain) {
            Plain::Yes
        } else {
            Plain::No
        };
        let mut schemas = analysis.instances.iter().map(|one| self.schema_of(one));
        let schema = schemas.next()??;
        if !schemas.all(|other| other == Some(schema)) {
            return None;
        }
        let known = self.snapshot.table(schema, table)?;
        // Whether what it holds is known to its last column.
        // Amounts of money read back otherwise where the server's locale is another.
        let money = known.sources.iter().any(|source| source.contains("money"));
        if money || known.columns.is_empty() || known.columns.len() != known.sources.len() {
            return None;
        }
        let gather = Gather {
            table: table.clone(),
            schema: schema.clone(),
            count: analysis.instances.len(),
            plain,
            named: named(query),
        };
        let whole = analysis.refusals.is_empty() || gather.texts(self.own_text(), known).is_some();
        whole.then(|| Box::new(gather))
    }

    /// How a write is made of parts when it needs several shards.
    fn spread_over_shards(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
        pins: &[Pin],
        calls: &Calls,
    ) -> Option<Box<Spread>> {
        let fits = analysis.writes
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && self.pinned.is_none()
            && calls.are_harmless();
        if !fits || !writes(kind) {
            return None;
        }
        let asked = Asked {
            kind,
            functions: &self.statement.functions,
            own: self.own_text(),
            start: self.statement.start as usize,
            slots: self.slots,
            reading: self.reading(),
        };
        spread::spread(&asked, analysis, pins)
    }

    /// Where a sharded table was found.
    fn schema_of<'s>(&'s self, instance: &'s Instance) -> Option<&'s String> {
        let has = |schema: &&String| self.snapshot.table(schema, &instance.table).is_some();
        let mut path = self.context.search_path.iter();
        instance.schema.as_ref().or_else(|| path.find(has))
    }

    fn effect(&self, kind: &Kind, calls: &Calls) -> Effect {
        if let Kind::Query(query) = kind
            && query.into == Some(crate::sql::tree::Into::Temporary)
        {
            return Effect::Pins(PinReason::TemporaryTable);
        }
        match (calls.home, self.statement.settings) {
            (Some(Keeps::SessionLock), _) => Effect::Pins(PinReason::SessionAdvisoryLock),
            (_, SettingCalls::Session) => Effect::Pins(PinReason::Setting),
            _ if calls.sequence == Some(Draw::Last) => Effect::Pins(PinReason::Sequence),
            _ if calls.leaves.is_some() || self.names_code() => Effect::Pins(PinReason::Code),
            _ if calls.channels == Channels::Asked => Effect::Channels,
            _ if calls.unknown.is_some() => Effect::Opaque,
            _ if calls.sequence == Some(Draw::Next) => Effect::Draws,
            _ if calls.channels == Channels::Notified => Effect::Notify,
            _ => Effect::None,
        }
    }

    fn function_leaves(&self, name: &str, builtin: bool) -> bool {
        let code = &self.snapshot.code;
        code.function_leaves(&name.to_lowercase(), builtin)
    }

    /// The statement as it stands in its text.
    fn own_text(&self) -> &str {
        let place = self.statement.start as usize..self.statement.end as usize;
        let own = self.text.get(place).unwrap_or(self.text);
        std::str::from_utf8(own).unwrap_or_default()
    }

    /// Whether it names a relation or function of the database that may leave something in the session.
    fn names_code(&self) -> bool {
        self.snapshot.code.is_named_in(self.own_text())
    }

    /// Whether code of the database that runs here may ask for numbers; if so it is a statement with an effect.
    fn numbers(&self, effect: &mut Effect) -> Numbers {
        if *effect == Effect::Pins(PinReason::Sequence) {
            // Asked for in its own words: told or refused.
            return Numbers::Apart;
        }
        let unknown = |function: &Name| {
            let schema = function.schema.as_deref();
            let own = match schema {
                Some("information_schema") => true,
                Some("shardway") if is_ours(&function.name) => true,
                None | Some("pg_catalog") => classify(&function.name) != Class::Unknown,
                Some(_) => false,
            };
            !own && self.function_leaves(&function.name, false)
        };
        // Functions of ours have the names of those that ask, and do not.
        let text = self.own_text();
        let text = ["shardway.currval(", "shardway.lastval("].iter().fold(
            Cow::Borrowed(text),
            |text, ours| match text.contains(ours) {
                true => Cow::Owned(text.replace(ours, "(")),
                false => text,
            },
        );
        let asks =
            self.snapshot.code.asks_in(&text) || self.statement.functions.iter().any(unknown);
        if !asks {
            return Numbers::Apart;
        }
        if *effect == Effect::None {
            *effect = Effect::Opaque;
        }
        Numbers::MayAsk
    }

    /// What DO and CALL do to the session.
    fn called(&self, command: &str) -> Effect {
        let leaves = if command == "DO" {
            self.snapshot.code == Code::Unknown || leaves_something(self.own_text())
        } else {
            self.calls().leaves.is_some()
        };
        if leaves || self.names_code() {
            Effect::Pins(PinReason::Code)
        } else {
            Effect::Opaque
        }
    }

    /// DDL and maintenance: what is made for the session alone keeps it, and so may code that runs.
    fn made(&self, command: &str) -> Effect {
        let temporary = self
            .context
            .search_path
            .first()
            .is_some_and(|first| first == "pg_temp")
            || words(self.own_text()).any(|word| word == "pg_temp");
        if temporary {
            return Effect::Pins(PinReason::TemporaryTable);
        }
        let runs = matches!(
            command,
            "CREATE TABLE AS" | "CREATE INDEX" | "ALTER TABLE" | "REFRESH MATERIALIZED VIEW"
        );
        if runs && self.names_code() {
            return Effect::Pins(PinReason::Code);
        }
        Effect::None
    }

    fn calls(&self) -> Calls {
        let mut calls = Calls {
            home: None,
            large_objects: false,
            one_shard: None,
            runs_sql: None,
            unknown: None,
            channels: Channels::Apart,
            leaves: None,
            sequence: None,
            ids: Ids::NotAsked,
        };
        let (mut asks, mut notifies, mut others) = (false, false, false);
        let shadowed = self
            .context
            .search_path
            .iter()
            .position(|schema| schema == "pg_catalog")
            .unwrap_or(0)
            > 0;
        for function in &self.statement.functions {
            let class = match function.schema.as_deref() {
                Some("pg_catalog") => classify(&function.name),
                None if !shadowed => classify(&function.name),
                Some("shardway") if is_ours(&function.name) => {
                    if function.name == "next_id" {
                        calls.ids = Ids::Asked;
                    }
                    Class::Plain
                }
                Some("information_schema") if SCHEMA_VIEWS.contains(&function.name.as_str()) => {
                    Class::Plain
                }
                _ => Class::Unknown,
            };
            let name = || Some(function.name.clone());
            let notify = class != Class::Unknown && function.name == "pg_notify";
            notifies |= notify;
            others |= !notify && class != Class::Plain;
            asks |= class != Class::Unknown && function.name == "pg_listening_channels";
            match class {
                Class::Plain | Class::Setting => {}
                Class::Home(Keeps::Nothing) => calls.home = calls.home.or(Some(Keeps::Nothing)),
                Class::Home(Keeps::SessionLock) => calls.home = Some(Keeps::SessionLock),
                Class::LargeObject => calls.large_objects = true,
                // Where its sequence is, or where the session is.
                Class::OneShard if draws_or_asks(&function.name) => {}
                Class::OneShard => calls.one_shard = calls.one_shard.or_else(name),
                Class::RunsSql => calls.runs_sql = calls.runs_sql.or_else(name),
                Class::Unknown => calls.unknown = calls.unknown.or_else(name),
            }
            let builtin = function.schema.is_none() && classify(&function.name) != Class::Unknown;
            match function.name.as_str() {
                _ if class != Class::OneShard => {}
                "currval" | "lastval" => calls.sequence = Some(Draw::Last),
                "nextval" => calls.sequence = calls.sequence.or(Some(Draw::Next)),
                _ => {}
            }
            if seeds(&function.name) && class != Class::Unknown {
                calls.leaves = calls.leaves.or_else(name);
            }
            if class == Class::Unknown && self.function_leaves(&function.name, builtin) {
                calls.leaves = calls.leaves.or_else(name);
            }
        }
        if asks {
            calls.channels = Channels::Asked;
        } else if notifies && !others {
            calls.channels = Channels::Notified;
        }
        calls
    }

    fn target(&self, mut analysis: Analysis<'_>, pins: Vec<Pin>, calls: &Calls) -> Target {
        match self.statement.depth {
            Depth::Whole => {}
            Depth::TooDeep => analysis.refusals.insert(0, Unroutable::TooDeep),
            Depth::Unknown => analysis.refusals.insert(0, Unroutable::NotUnderstood),
        }
        if let Some(name) = calls.runs_sql.clone() {
            analysis.refuse(Unroutable::Function { name });
        }
        let placed = !pins.is_empty() || !analysis.fixed.is_empty();
        for (uses, why) in [
            (calls.home.is_some(), Why::Home),
            (calls.large_objects, Why::LargeObjects),
        ] {
            if uses {
                let shard = self.snapshot.home;
                analysis.fixed.push(Fixed { shard, why });
            }
        }
        if let (false, Some(name)) = (
            placed,
            calls.one_shard.clone().or_else(|| calls.unknown.clone()),
        ) {
            analysis.refuse(Unroutable::Function { name });
        }
        // Each shard has its own numbers; those of a table on one shard are that shard's.
        if let (false, Some(name)) = (pins.is_empty(), &calls.one_shard)
            && name == "setval"
        {
            analysis.refuse(Unroutable::Function { name: name.clone() });
        }
        if self.draws() && (!pins.is_empty() || analysis.fixed.is_empty()) {
            match self.home_of_numbers().filter(|_| !placed) {
                Some(fixed) => analysis.fixed.push(fixed),
                None => analysis.refuse(Unroutable::Function {
                    name: "nextval".to_owned(),
                }),
            }
        }
        if let Some(name) = calls
            .leaves
            .clone()
            .filter(|name| self.snapshot.code.is_known_to_leave(&name.to_lowercase()))
        {
            analysis.refuse(Unroutable::Function { name });
        }
        if self.statement.settings != SettingCalls::None {
            analysis.refuse(Unroutable::Function {
                name: "set_config".to_owned(),
            });
        }
        let fixed = match self.overridden(analysis.groups(&pins)) {
            Ok(fixed) => fixed,
            Err(why) => return Target::Refused(Box::new(why)),
        };
        if let Some(why) = self.refusal(&analysis.refusals, fixed.as_ref()) {
            return Target::Refused(Box::new(why));
        }
        if let Some(why) = self.sees_doubled(&analysis, fixed.as_ref()) {
            return Target::Refused(Box::new(why));
        }
        let needed = fixed.into_iter().chain(analysis.fixed).collect();
        self.settle(needed, pins)
    }

    /// Whether it would see rows that the shard of an overriding key has without owning them.
    fn sees_doubled(&self, analysis: &Analysis<'_>, fixed: Option<&Fixed>) -> Option<Unroutable> {
        let by_key = matches!(self.pinned, Some(Override::Key(_)));
        let shard = fixed.filter(|_| by_key)?.shard;
        let groups = analysis.unrestricted.iter();
        let mut groups = groups.map(|group| self.snapshot.group(*group));
        let group = groups.find(|group| group.doubled_on(shard).is_some())?;
        Some(Unroutable::Doubled {
            group: group.name.clone(),
            what: Undoubled::KeyOverride,
        })
    }

    /// Whether it draws from a sequence in its own words.
    fn draws(&self) -> bool {
        let mut functions = self.statement.functions.iter();
        functions.any(|function| {
            let own = function
                .schema
                .as_deref()
                .is_none_or(|schema| schema == "pg_catalog");
            own && function.name == "nextval"
        })
    }

    /// The shard whose sequences count for all: the home shard, but for those of a table on another. `None`: not known.
    fn home_of_numbers(&self) -> Option<Fixed> {
        let home = self.snapshot.home;
        let known = &self.snapshot.sequences;
        let fixed = |shard, why| Some(Fixed { shard, why });
        if known.values().all(|shard| *shard == home) {
            return fixed(home, Why::Home);
        }
        let mut found: Option<ShardId> = None;
        for written in super::defaults::sequences(self.own_text(), &self.own_slots())? {
            let shard = self.shard_of_sequence(&written)?;
            if found.replace(shard).is_some_and(|other| other != shard) {
                return None;
            }
        }
        fixed(found.unwrap_or(home), Why::Home)
    }

    /// Where a sequence counts that is written so; `None`: names that need quotation marks are not read.
    fn shard_of_sequence(&self, written: &str) -> Option<ShardId> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
        let folded = written.to_ascii_lowercase();
        if !written.bytes().all(plain) {
            return None;
        }
        let (schema, name) = match folded.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, folded.as_str()),
        };
        let of = |schema: &str| {
            let (schema, name) = (schema.to_owned(), name.to_owned());
            let name = TableName { schema, name };
            self.snapshot.sequences.get(&name).copied()
        };
        let found = match schema {
            Some(schema) => of(schema),
            None => self
                .context
                .search_path
                .iter()
                .find_map(|schema| of(schema)),
        };
        Some(found.unwrap_or(self.snapshot.home))
    }

    /// The literals of the statement, counted from where it begins.
    fn own_slots(&self) -> Vec<Slot> {
        let (start, end) = (self.statement.start, self.statement.end);
        let inside = |slot: &&Slot| slot.start >= start && slot.end <= end;
        let own = self.slots.iter().filter(inside);
        own.map(|slot| Slot {
            start: slot.start - start,
            end: slot.end - start,
        })
        .collect()
    }

    /// What stands, though a shard or key was named.
    fn refusal(&self, refusals: &[Unroutable], fixed: Option<&Fixed>) -> Option<Unroutable> {
        let by_key = matches!(self.pinned, Some(Override::Key(_)));
        let stands = |why: &&Unroutable| match fixed {
            None => true,
            Some(_)
                if by_key
                    && matches!(
                        why,
                        Unroutable::ReferenceWrite { .. }
                            | Unroutable::UnknownTable { .. }
                            | Unroutable::Doubled { .. }
                    ) =>
            {
                true
            }
            Some(_) => !why.lifted_by_override(),
        };
        refusals.iter().find(stands).cloned()
    }

    /// The shard that an override names; `Err` when it names none.
    fn overridden(&self, groups: Vec<GroupId>) -> Result<Option<Fixed>, Unroutable> {
        let (shard, named) = match self.pinned {
            None => return Ok(None),
            Some(Override::Shard(name)) => {
                let shard = self.snapshot.shard_named(name);
                (
                    shard.ok_or_else(|| Unroutable::OverrideShard {
                        shard: name.clone(),
                    })?,
                    name,
                )
            }
            Some(Override::Key(key)) => {
                let Some(group) = self.group_meant(groups) else {
                    return Ok(None);
                };
                let unusable = || Unroutable::OverrideKey { key: key.clone() };
                let group = self.snapshot.group(group.ok_or_else(unusable)?);
                let value = group
                    .key_type
                    .from_text(key.as_bytes())
                    .ok()
                    .ok_or_else(unusable)?;
                let shard = group.shard_of(&value);
                (
                    shard.ok_or_else(|| Unroutable::NoShardForKey {
                        group: group.name.clone(),
                    })?,
                    key,
                )
            }
        };
        Ok(Some(Fixed {
            shard,
            why: Why::Override(named.clone()),
        }))
    }

    /// The group that an overriding key belongs to: the statement's only one, or the database's.
    /// Outer `None`: the statement touches no group.
    fn group_meant(&self, mut groups: Vec<GroupId>) -> Option<Option<GroupId>> {
        groups.sort_unstable();
        groups.dedup();
        match (groups.as_slice(), self.snapshot.groups.len()) {
            ([group], _) => Some(Some(*group)),
            ([], 1) => Some(Some(GroupId(0))),
            ([], _) => None,
            _ => Some(None),
        }
    }

    /// One shard for all that is fixed, then the keys.
    fn settle(&self, needed: Vec<Fixed>, pins: Vec<Pin>) -> Target {
        let mut fixed: Option<Fixed> = None;
        for need in needed {
            match &fixed {
                Some(found) if found.shard != need.shard => {
                    if matches!(found.why, Why::Override(_)) {
                        let named = matches!(self.pinned, Some(Override::Shard(_)));
                        if named && need.why == Why::LargeObjects {
                            continue;
                        }
                        return self.contradicts(need.shard);
                    }
                    let name = |shard: ShardId| {
                        self.snapshot
                            .shards
                            .get(shard.index())
                            .cloned()
                            .unwrap_or_default()
                    };
                    let shards = vec![name(found.shard), name(need.shard)];
                    return Target::Refused(Box::new(Unroutable::SeveralShards { shards }));
                }
                Some(_) => {}
                None => fixed = Some(need),
            }
        }
        if pins.is_empty() {
            return Target::Fixed(match fixed {
                None => Route::Any,
                Some(Fixed {
                    why: Why::Home | Why::LargeObjects,
                    ..
                }) => Route::Home,
                Some(fixed) => Route::One(fixed.shard),
            });
        }
        Target::ByKey(Pins {
            pins: pins.into(),
            fixed,
            reading: self.reading(),
        })
    }

    fn reading(&self) -> Reading {
        Reading {
            standard_conforming_strings: self.context.standard_conforming_strings,
            utf8: self.context.utf8,
        }
    }
}

/// Functions that the views of `information_schema` are made of, which drivers call too; none reads or changes anything.
const SCHEMA_VIEWS: [&str; 10] = [
    "_pg_char_max_length",
    "_pg_char_octet_length",
    "_pg_datetime_precision",
    "_pg_expandarray",
    "_pg_interval_type",
    "_pg_numeric_precision",
    "_pg_numeric_precision_radix",
    "_pg_numeric_scale",
    "_pg_truetypid",
    "_pg_truetypmod",
];

/// The value of `set_config` as what may follow `SET name TO`: a list of schemas is a list there.
fn setting_text(name: &str, value: &str) -> String {
    let items = is_list_of_names(name).then(|| list(&Value::Config(value.to_owned())));
    match items.flatten() {
        Some(items) => {
            let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
            items.join(", ")
        }
        None => quoted(value),
    }
}

/// Whether a text asks for what is the running transaction's own: its time, its number, its snapshot. Such a statement
/// must run in the transaction, as one that writes does. Words inside literals do not count; words that only look like
/// one of these do, which binds a transaction earlier than need be and is never wrong.
fn names_transaction(text: &[u8], slots: &[Slot]) -> bool {
    const CALLS: [&[u8]; 9] = [
        b"now",
        b"age",
        b"transaction_timestamp",
        b"txid_current",
        b"txid_current_if_assigned",
        b"txid_current_snapshot",
        b"pg_current_xact_id",
        b"pg_current_xact_id_if_assigned",
        b"pg_current_snapshot",
    ];
    const WORDS: [&[u8]; 6] = [
        b"current_timestamp",
        b"current_date",
        b"current_time",
        b"localtime",
        b"localtimestamp",
        b"pg_export_snapshot",
    ];
    let mut found = false;
    each_word(text, slots, |word, rest| {
        let called = || rest.trim_ascii_start().first() == Some(&b'(');
        found |= WORDS.contains(&word) || (CALLS.contains(&word) && called());
    });
    found
}

/// Whether a text may ask for numbers of types or relations: it names a system catalog, or a function or type that tells
/// them. What only looks so runs on the home shard without need.
fn shows_oids(text: &[u8], slots: &[Slot]) -> bool {
    const WORDS: [&[u8]; 6] = [
        b"regtype",
        b"regclass",
        b"to_regtype",
        b"to_regclass",
        b"format_type",
        b"tableoid",
    ];
    let mut found = false;
    each_word(text, slots, |word, _| {
        found |= word.starts_with(b"pg_") || WORDS.contains(&word);
    });
    found
}

/// Every word outside of literals, in lower case, and what follows it.
fn each_word(text: &[u8], slots: &[Slot], mut each: impl FnMut(&[u8], &[u8])) {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let mut slots = slots.iter().peekable();
    let mut at = 0;
    while at < text.len() {
        if let Some(slot) = slots.next_if(|slot| slot.start as usize <= at) {
            at = at.max(slot.end as usize);
            continue;
        }
        let length = text[at..].iter().take_while(|byte| is_word(**byte)).count();
        if length == 0 {
            at += 1;
            continue;
        }
        let word = text[at..at + length].to_ascii_lowercase();
        at += length;
        each(&word, &text[at..]);
    }
}
