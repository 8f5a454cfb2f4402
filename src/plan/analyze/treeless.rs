//! Texts that are not analyzed as they stand: of another encoding, not understood, too deep.
//!
//! The plan of such a text is for exactly its own literals, and on several shards nothing of it runs unless an override says where.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

use super::{Planner, naming::names_transaction, override_comment};
use crate::{
    catalog::{shard::ShardId, snapshot::Snapshot},
    plan::{
        Context, Numbers, Override, Plan, Route, StatementPlan, Target, touch::Touches,
        unroutable::Unroutable,
    },
    sql::{
        normalize::Slot,
        parse,
        statement::{Access, Effect, PinReason},
    },
};

/// A text that is not UTF-8, on the one shard that there is: only what it does to the session matters. Each byte is read
/// as a character of its own, so that different names stay different. `None`: on several shards, or not understood.
pub(super) fn of_another_encoding(
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
        let place = place(statement.start)..place(statement.end);
        StatementPlan {
            names_transaction: names_transaction(read.as_bytes(), &[]),
            numbers,
            ..StatementPlan::new(place, effect, access, target)
        }
    });
    Some(Plan {
        statements: plans.collect(),
        structural: every(slots),
    })
}

/// Outside of UTF-8 a setting's bytes mean something else as text of ours: such a one cannot be told to another backend.
pub(super) fn repeatable(effect: Effect) -> Effect {
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

/// A text that has no tree. Whatever it holds, none of its literals may vary.
pub(super) fn whole(
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
    // On several shards it is judged, not run.
    let effect = if snapshot.is_single() {
        Effect::Opaque
    } else {
        Effect::None
    };
    let statement = StatementPlan {
        names_transaction: true,
        touches: Touches::EVERYTHING,
        numbers: Numbers::MayAsk,
        ..StatementPlan::new(0..end, effect, Access::Write, target)
    };
    Plan {
        statements: vec![statement],
        structural: every(slots),
    }
}
