//! From text to plan: what each statement does to its session, and where it runs.
//!
//! A plan holds for every text with the same template that agrees in the plan's structural literals: no other
//! literal is looked at here, only where it stands.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

mod calls;
mod changing;
mod commands;
mod copying;
mod naming;
mod settling;
mod treeless;
mod viewing;
mod ways;

use calls::Ids;
use commands::{executes, setting_text};
use naming::{names_transaction, shows_oids};
use treeless::{of_another_encoding, repeatable, whole};
pub use viewing::{Shown, shown};
use ways::writes;

use super::{
    Context, Explains, Footing, Override, Plan, Route, StatementPlan, Target,
    block::{Analysis, Barred, Moment},
    combine::Combine,
    gather::Gather,
    spread::{self, Spread},
    touch::Touches,
    unroutable::Unroutable,
    value::Reading,
};
use crate::{
    catalog::{
        shard::ShardId,
        snapshot::{Snapshot, Standing},
    },
    sql::{
        normalize::Slot,
        parse,
        statement::{Access, Effect, PinReason, Within},
        tree::{Discard, Kind, SettingCalls, Statement},
    },
    wire::types::Oid,
};
use std::cell::Cell;

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
            let footing = match why {
                // Nobody was asked yet.
                Unroutable::MapUnknown(Standing::Unread) => Footing::Unlooked,
                _ => Footing::Sure,
            };
            let target = Target::Refused(Box::new(why));
            let StatementPlan { start, end, .. } = plan;
            return StatementPlan {
                footing,
                ..StatementPlan::new(start..end, plan.effect, plan.access, target)
            };
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

    /// The statement as it stands in its text.
    fn own_text(&self) -> &str {
        let place = self.statement.start as usize..self.statement.end as usize;
        let own = self.text.get(place).unwrap_or(self.text);
        std::str::from_utf8(own).unwrap_or_default()
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

    fn reading(&self) -> Reading {
        Reading {
            standard_conforming_strings: self.context.standard_conforming_strings,
            utf8: self.context.utf8,
        }
    }
}
