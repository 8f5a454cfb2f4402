//! Where an EXECUTE runs, and what it does to the session: what its statement would do with these values.

use super::super::{prepared::Prepared, reply::session as reply, session::Session};
use crate::{
    plan::{Route, StatementPlan, Target, Values, unroutable::Unroutable},
    sql::{
        executions::Argument,
        statement::{Access, Effect, PinReason, Within},
    },
    wire::{frontend::Bind, notice::Notice},
};

/// What EXECUTE is a part of, when the statement is or has one.
#[expect(clippy::wildcard_enum_match_arm, reason = "one effect is looked for")]
pub(super) fn executes(statement: &StatementPlan) -> Option<Within> {
    let effect = match &statement.target {
        Target::Explain(inner) => &inner.effect,
        Target::Fixed(_) | Target::ByKey(_) | Target::Judge | Target::Refused(_) => {
            &statement.effect
        }
    };
    match effect {
        Effect::Execute { within, .. } => Some(*within),
        _ => None,
    }
}

impl Session {
    /// The plan of an EXECUTE: its statement's, with these values.
    pub(super) fn derived(
        &self,
        outer: &StatementPlan,
        statement: &Prepared,
        arguments: &[Argument],
    ) -> Result<StatementPlan, Notice> {
        if let Target::Explain(inner) = &outer.target {
            let derived = self.derived(inner, statement, arguments)?;
            return Ok(StatementPlan {
                target: Target::Explain(Box::new(derived)),
                ..outer.clone()
            });
        }
        let Some(within) = executes(outer) else {
            return Ok(outer.clone());
        };
        let Some(inner) = statement.statement() else {
            return Ok(left_alone(outer));
        };
        if statement.computing.is_some() {
            let feature = "EXECUTE of an INSERT that leaves ids to its table's defaults";
            let target = Target::Refused(Box::new(Unroutable::Unsupported { feature }));
            return Ok(StatementPlan {
                target,
                ..outer.clone()
            });
        }
        let followed = effect_of(&inner.effect, within).filter(|effect| {
            // What concerns every shard of a transaction is told to each as it was written.
            let told_to_all = matches!(effect, Effect::Set { .. }) && self.several.is_several();
            statement.executes.is_none() && !told_to_all
        });
        let Some(effect) = followed else {
            return Err(reply::rows::execute_of_command());
        };
        let target = match &outer.target {
            Target::Fixed(Route::Any) => self.target(inner, statement, arguments)?,
            kept @ (Target::Fixed(_)
            | Target::ByKey(_)
            | Target::Explain(_)
            | Target::Judge
            | Target::Refused(_)) => kept.clone(),
        };
        let access = match within {
            Within::Explain => Access::Read,
            Within::Table | Within::TemporaryTable => Access::Write,
            Within::Itself | Within::ExplainAnalyze => inner.access,
        };
        Ok(StatementPlan {
            numbers: inner.numbers.max(outer.numbers),
            effect,
            access,
            target,
            ..outer.clone()
        })
    }

    fn target(
        &self,
        inner: &StatementPlan,
        statement: &Prepared,
        arguments: &[Argument],
    ) -> Result<Target, Notice> {
        let told = statement.told.raw_types().map(|types| types.len() / 4);
        if told.is_some_and(|count| count != arguments.len()) {
            // PostgreSQL says how many it takes.
            return Ok(Target::Fixed(Route::Any));
        }
        if let (Target::ByKey(_), Some(finding)) =
            (&inner.target, self.database.unfit.load().as_deref())
        {
            return Err(reply::changes::unfit(finding));
        }
        let escapes = !self.context.standard_conforming_strings;
        let unread = |argument: &Argument| match argument {
            Argument::Null => false,
            Argument::Text(text) => escapes && text.contains('\\'),
            Argument::Computed => true,
        };
        let unread = (0..)
            .zip(arguments)
            .any(|(index, argument)| unread(argument) && inner.reads_parameter(index));
        if unread {
            let feature = "EXECUTE with a shard key that is not a constant";
            return Ok(Target::Refused(Box::new(Unroutable::Unsupported {
                feature,
            })));
        }
        let body = bound(arguments);
        let Ok(bind) = Bind::decode(&body) else {
            return Err(reply::malformed());
        };
        let values = Values {
            text: &statement.text,
            slots: &statement.slots,
            types: &statement.types,
            bind: Some(&bind),
        };
        Ok(match inner.route(&self.snapshot, &values) {
            Ok(route) => Target::Fixed(route),
            Err(why) => Target::Refused(why),
        })
    }
}

/// A statement whose name the session does not know: PostgreSQL judges it. What it makes stays where it was made.
pub(super) fn left_alone(outer: &StatementPlan) -> StatementPlan {
    let effect = match executes(outer) {
        Some(Within::TemporaryTable) => Effect::Pins(PinReason::TemporaryTable),
        _ => outer.effect.clone(),
    };
    StatementPlan {
        effect,
        ..outer.clone()
    }
}

/// A PREPARE among others.
pub(super) fn preparing(outer: &StatementPlan, prepared: &Prepared) -> StatementPlan {
    let target = match prepared.statement() {
        Some(StatementPlan {
            target: Target::Fixed(route @ (Route::One(_) | Route::Home)),
            ..
        }) => Target::Fixed(route.clone()),
        Some(StatementPlan {
            target: Target::Refused(why),
            ..
        }) => Target::Refused(why.clone()),
        _ => Target::Fixed(Route::Any),
    };
    StatementPlan {
        access: Access::Read,
        target,
        ..outer.clone()
    }
}

/// What an EXECUTE does to the session; `None`: its statement is no query, and what becomes of it is not followed.
fn effect_of(inner: &Effect, within: Within) -> Option<Effect> {
    let followed = matches!(
        inner,
        Effect::None
            | Effect::Set { .. }
            | Effect::Draws
            | Effect::Pins(_)
            | Effect::Opaque
            | Effect::Notify
            | Effect::Channels
    );
    if !followed {
        return None;
    }
    Some(match (within, inner) {
        (Within::Itself, inner) => inner.clone(),
        (Within::TemporaryTable, _) => Effect::Pins(PinReason::TemporaryTable),
        (Within::ExplainAnalyze | Within::Table, Effect::Pins(_) | Effect::Opaque) => inner.clone(),
        (Within::ExplainAnalyze | Within::Table, Effect::Set { local: false, .. }) => {
            Effect::Pins(PinReason::Setting)
        }
        (Within::Explain | Within::ExplainAnalyze | Within::Table, _) => Effect::None,
    })
}

/// The body of a Bind with these values as text.
pub(super) fn bound(arguments: &[Argument]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    let count = u16::try_from(arguments.len()).unwrap_or(u16::MAX);
    body.extend_from_slice(&count.to_be_bytes());
    for argument in arguments.iter().take(usize::from(count)) {
        match argument {
            Argument::Text(text) => {
                let length = i32::try_from(text.len()).unwrap_or(0);
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(text.as_bytes());
            }
            Argument::Null | Argument::Computed => body.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
    body.extend_from_slice(&[0, 0]);
    body
}
