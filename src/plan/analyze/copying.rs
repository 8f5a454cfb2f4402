//! Where a COPY runs.

use super::{Planner, names_transaction};
use crate::{
    catalog::{
        effects::{Act, Fired, Hazard, HazardKind},
        snapshot::Table,
    },
    plan::{
        Override, Route, Target,
        block::{Analysis, Place, full_name},
        copy::{self, CopyIn, CopyOut},
        copy_left::{self, Condition, Left},
        unroutable::Unroutable,
    },
    sql::{
        normalize::Strings,
        scan::slots_of,
        statement::{Access, Effect, PinReason},
        tree::{Copy, Filtered, Kind, Name},
    },
};

impl Planner<'_> {
    pub(super) fn copy(&self, copy: &Copy) -> (Effect, Access, Target) {
        let (table, query, from, server) = (
            copy.relation.as_ref(),
            copy.query.as_deref(),
            copy.from,
            copy.server,
        );
        let effect = match (server, from) {
            (true, _) => Effect::None,
            (false, true) => Effect::CopyIn,
            (false, false) => Effect::CopyOut,
        };
        let access = if from { Access::Write } else { Access::Read };
        if server {
            let why = Unroutable::Unsupported {
                feature: "COPY to or from a file of the server",
            };
            return (effect, access, self.one_shard_only(why));
        }
        match (table, query) {
            (_, Some(query)) => {
                let (inner, access, target) = self.several(query);
                let effect = match inner {
                    inner @ (Effect::Pins(_) | Effect::Opaque) => inner,
                    Effect::Set { local: false, .. } => Effect::Pins(PinReason::Setting),
                    _ => effect,
                };
                let reads = matches!(query, Kind::Query(_)) && effect == Effect::CopyOut;
                if reads && self.pinned.is_none() && self.context.utf8 {
                    self.copy_out
                        .set(CopyOut::new(copy, None, "").map(Box::new));
                }
                (effect, access, target)
            }
            (Some(table), None) => {
                let effect = if self.names_code() {
                    Effect::Pins(PinReason::Code)
                } else {
                    effect
                };
                (effect, access, self.copy_table(copy, table))
            }
            (None, None) => (
                effect,
                access,
                self.one_shard_only(Unroutable::NotUnderstood),
            ),
        }
    }

    fn copy_table(&self, copy: &Copy, table: &Name) -> Target {
        let (name, from) = (full_name(table), copy.from);
        let analysis = Analysis::new(self.text, self.slots, self.context, self.snapshot);
        let place = analysis.place(table);
        if from {
            analysis.rests_on_defaults(table);
        }
        self.rests_on(&analysis);
        if let (true, Some(effects)) = (from, analysis.effects(table)) {
            let timed =
                copy_left::may_mark(copy, effects) || !copy_left::left(copy, effects).is_empty();
            self.leaves_time.set(timed);
        }
        match place {
            Place::Sharded { .. } if from => self.copy_split(copy, table, &analysis),
            Place::Sharded {
                group,
                key,
                table: known,
            } => {
                if let Some(hazard) = known.effects.of(Act::Select) {
                    return self.one_shard_only(Unroutable::PerShardObject {
                        table: table.name.clone(),
                        hazard: hazard.clone(),
                    });
                }
                if self.pinned.is_none() && self.context.utf8 {
                    let found = CopyOut::new(copy, Some(group), key);
                    self.copy_out.set(found.map(Box::new));
                }
                self.one_shard_only(Unroutable::Copy { table: name })
            }
            Place::Reference(known) if from => self.copy_everywhere(copy, table, known),
            Place::Catalog if from => self.one_shard_only(Unroutable::Unsupported {
                feature: "writing to the system catalogs",
            }),
            Place::Reference(_) | Place::Catalog => match self.pinned {
                Some(Override::Shard(_)) => self.one_shard_only(Unroutable::NotUnderstood),
                _ => Target::Fixed(Route::Any),
            },
            Place::Single(_)
                if let Some(hazard) = analysis.effects(table).and_then(|effects| {
                    let act = if from {
                        Act::Insert(copy.columns.as_deref().unwrap_or_default())
                    } else {
                        Act::Select
                    };
                    effects.of(act)
                }) =>
            {
                Target::Refused(Box::new(Unroutable::PerShardObject {
                    table: table.name.clone(),
                    hazard: hazard.clone(),
                }))
            }
            Place::Single(shard) => match self.one_shard_only(Unroutable::NotUnderstood) {
                Target::Fixed(Route::One(named)) if named != shard => self.contradicts(shard),
                _ => Target::Fixed(Route::One(shard)),
            },
            Place::Unknown => self.one_shard_only(Unroutable::UnknownTable { table: name }),
        }
    }

    /// COPY FROM into a sharded table: to the shard that is named, or split by key.
    fn copy_split(&self, copy: &Copy, table: &Name, analysis: &Analysis<'_>) -> Target {
        let Place::Sharded {
            group,
            key,
            table: known,
        } = analysis.place(table)
        else {
            return self.one_shard_only(Unroutable::NotUnderstood);
        };
        let target = self.one_shard_only(Unroutable::Copy {
            table: full_name(table),
        });
        let given = copy::given(copy, &known.columns);
        if let Some(hazard) = known.effects.of(Act::Insert(given)) {
            return self.one_shard_only(Unroutable::PerShardObject {
                table: table.name.clone(),
                hazard: hazard.clone(),
            });
        }
        let calls = self.calls();
        let settled = copy.filtered == Filtered::No || calls.are_harmless();
        let marks = copy_left::may_mark(copy, &known.effects);
        let apart = self.pinned.is_none() && self.context.utf8 && !marks;
        if let (true, true, Some(schema), Some(condition)) = (
            settled,
            apart,
            self.schema_where(table),
            self.condition(copy),
        ) {
            let found = CopyIn::new(
                copy,
                copy::Target {
                    schema,
                    table: &table.name,
                    group,
                    key,
                    left: self.leaves(copy, known),
                    condition,
                },
            );
            self.copy_in.set(found.map(Box::new));
        }
        target
    }

    /// COPY FROM into a table that every shard has a copy of: on the shard that is named, or the same on all.
    fn copy_everywhere(&self, copy: &Copy, table: &Name, known: &Table) -> Target {
        let given = copy::given(copy, &known.columns);
        if let Some(hazard) = known.effects.of(Act::Insert(given)) {
            return self.one_shard_only(Unroutable::PerShardObject {
                table: table.name.clone(),
                hazard: hazard.clone(),
            });
        }
        if let Some(column) = known.effects.draws(given) {
            return self.one_shard_only(Unroutable::PerShardObject {
                table: table.name.clone(),
                hazard: Hazard {
                    name: column.to_owned(),
                    kind: HazardKind::Default,
                    fired: Fired::INSERT,
                },
            });
        }
        let apart = self.pinned.is_none() && copy.filtered == Filtered::No;
        if let (true, Some(schema)) = (apart, self.schema_where(table)) {
            let left = self.leaves(copy, known);
            let everywhere = CopyIn::everywhere(copy, schema, &table.name, left);
            self.copy_in.set(Some(Box::new(everywhere)));
        }
        self.one_shard_only(Unroutable::ReferenceWrite {
            table: full_name(table),
        })
    }

    /// What its WHERE asks for; `None`: what shards would tell differently.
    fn condition(&self, copy: &Copy) -> Option<Condition> {
        if copy.filtered == Filtered::No || !names_transaction(self.text, self.slots) {
            return Some(Condition::OfRows);
        }
        let text = std::str::from_utf8(self.text).ok()?;
        let made = copy_left::at_moment(text, "epoch")?;
        let settled = self.context.standard_conforming_strings
            && !names_transaction(made.as_bytes(), &slots_of(&made, Strings::Standard));
        settled.then_some(Condition::OfTime)
    }

    /// Columns that are left to a time of the transaction.
    fn leaves(&self, copy: &Copy, known: &Table) -> Vec<Left> {
        // Where its rows end is not known in another encoding.
        if self.context.utf8 {
            copy_left::left(copy, &known.effects)
        } else {
            Vec::new()
        }
    }

    /// The schema in which a listed table is found.
    fn schema_where<'a>(&'a self, table: &'a Name) -> Option<&'a String> {
        let mut path = self.context.search_path.iter();
        let found = |schema: &&String| self.snapshot.table(schema, &table.name).is_some();
        table.schema.as_ref().or_else(|| path.find(found))
    }
}
