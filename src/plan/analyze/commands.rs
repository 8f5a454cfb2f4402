//! What transaction commands, SET and EXPLAIN do to their session.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

use super::Planner;
use crate::{
    plan::{Route, StatementPlan, Target, unroutable::Unroutable},
    protocol::parameters::{Value, is_list_of_names, list},
    sql::{
        statement::{Access, Effect, PinReason, Within, quoted},
        tree::{Kind, Set, Transaction},
    },
};

impl<'a> Planner<'a> {
    pub(super) fn transaction(&self, transaction: &Transaction) -> (Effect, Access, Target) {
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

    pub(super) fn set(&self, set: &Set) -> (Effect, Access, Target) {
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
    pub(super) fn explain(
        &self,
        analyze: bool,
        route: bool,
        inner: &Kind,
    ) -> (Effect, Access, Target) {
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
}

pub(super) fn executes(name: &str, within: Within) -> Effect {
    let name = name.to_owned();
    Effect::Execute { name, within }
}

/// The value of `set_config` as what may follow `SET name TO`: a list of schemas is a list there.
pub(super) fn setting_text(name: &str, value: &str) -> String {
    let items = is_list_of_names(name).then(|| list(&Value::Config(value.to_owned())));
    match items.flatten() {
        Some(items) => {
            let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
            items.join(", ")
        }
        None => quoted(value),
    }
}
