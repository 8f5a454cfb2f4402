//! Where a schema change runs.

use super::Planner;
use crate::{
    plan::{
        Target,
        block::{Analysis, Place},
        change::{Changes, Reach, changes},
        touch::Touches,
        unroutable::Unroutable,
    },
    sql::{
        change::{Change, What},
        functions::is_immutable,
        statement::{Access, Effect},
        tree::{Depth, Name},
    },
};

/// Whether the servers are asked within its transaction who has what it is about.
fn asks_servers(found: &Result<Changes, Unroutable>) -> bool {
    matches!(found, Ok(found) if matches!(found.reach, Reach::Holders(_) | Reach::Servers))
}

impl Planner<'_> {
    /// DDL and maintenance: on the shard that is named, or on every shard that it concerns.
    pub(super) fn change(&self, change: &Change) -> (Effect, Access, Target) {
        let command = change.command;
        let effect = self.made(command);
        let mut why = Unroutable::PerShard { command };
        if self.pinned.is_none() && effect == Effect::None && self.statement.depth == Depth::Whole {
            let analysis = Analysis::new(self.text, self.slots, self.context, self.snapshot);
            let found = changes(change, &analysis);
            self.touched_by_change(change, &analysis);
            if asks_servers(&found) {
                analysis.footing.take();
            }
            self.rests_on(&analysis);
            match found.and_then(|found| self.alike(change, found)) {
                Ok(found) => self.changes.set(Some(Box::new(found))),
                Err(unheld) => why = unheld,
            }
        }
        (effect, Access::Write, self.one_shard_only(why))
    }

    /// Whose tables a change concerns. Of what is named and no table it is not known whose it is, and what it takes with it.
    fn touched_by_change(&self, change: &Change, analysis: &Analysis<'_>) {
        let is_unknown = |name: &Name| matches!(analysis.place(name), Place::Unknown);
        let unknown = match &change.what {
            What::Tables { names, .. } | What::Relations(names) => {
                names.iter().any(is_unknown) || (names.is_empty() && change.command == "DROP")
            }
            What::Emptied(emptied) => emptied.tables.iter().any(|(name, _)| is_unknown(name)),
            What::Everywhere => change.command == "DROP",
            What::NewTable(_)
            | What::NewView(_)
            | What::Locks(_)
            | What::EveryServer
            | What::Unsupported => false,
        };
        if unknown {
            self.touches.set(Touches::EVERYTHING);
        }
    }

    /// Copies of a table must stay alike: what is computed for their rows is the same on every shard.
    fn alike(&self, change: &Change, found: Changes) -> Result<Changes, Unroutable> {
        let computes = self.statement.functions.iter().any(|name| {
            let own = name
                .schema
                .as_deref()
                .is_none_or(|schema| schema == "pg_catalog");
            !own || !is_immutable(&name.name)
        });
        let fills =
            matches!(change.what, What::Tables { .. }) && matches!(change.command, "ALTER TABLE");
        let copies = match (&change.what, &found.reach) {
            (What::Tables { names, .. }, Reach::Shards(_)) => {
                let analysis = Analysis::new(self.text, self.slots, self.context, self.snapshot);
                names
                    .iter()
                    .any(|name| matches!(analysis.place(name), Place::Reference(_)))
            }
            _ => false,
        };
        if computes && fills && copies {
            return Err(Unroutable::Unsupported {
                feature: "a computed value for rows of a reference table",
            });
        }
        Ok(found)
    }
}
