//! Where the tables of a statement are, by name and search path, as PostgreSQL would find them.
//!
//! What is looked up is noted: whose rows may be touched, what is not served, and how sure a place is.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

use super::{Analysis, Barred, Moment, Place, full_name};
use crate::{
    catalog::{
        effects::Effects,
        group::GroupId,
        snapshot::{Nature, OWN_SCHEMA, Other, Placement, Standing, Table, Unlisted, Unseen},
    },
    plan::{Footing, touch::Touches, unroutable::Unroutable},
    sql::tree::Name,
};

impl<'a> Analysis<'a> {
    pub(in crate::plan) fn place(&self, name: &Name) -> Place<'a> {
        let snapshot = self.snapshot;
        let listed = |schema: &str| {
            let table = snapshot.table(schema, &name.name)?;
            let place = place_of(table);
            let touches = match place {
                Place::Sharded { group, .. } => Touches::group(group),
                Place::Reference(_) => Touches::REFERENCES,
                // A view's rows are those of its tables.
                Place::Single(_) | Place::Catalog | Place::Unknown => {
                    let groups = table.over.iter().map(|group| Touches::group(*group));
                    groups.fold(Touches::NOTHING, Touches::and)
                }
            };
            self.touches.set(self.touches.get().and(touches));
            let barred = |group: &&GroupId| snapshot.barred.contains(*group);
            match place {
                Place::Sharded { .. } | Place::Reference(_)
                    if snapshot.standing != Standing::Known =>
                {
                    self.barred.set(Some(Barred::Unknown));
                }
                Place::Single(_)
                    if !table.over.is_empty() && snapshot.standing != Standing::Known =>
                {
                    self.barred.set(Some(Barred::Unknown));
                }
                Place::Single(_) => {
                    if let Some(group) = table.over.iter().find(barred) {
                        self.barred.set(Some(Barred::Group(*group)));
                    }
                }
                Place::Sharded { group, .. } if snapshot.barred.contains(&group) => {
                    self.barred.set(Some(Barred::Group(group)));
                }
                _ => {}
            }
            Some(place)
        };
        if let Some(schema) = &name.schema {
            return match schema.as_str() {
                "pg_catalog" | "information_schema" | "pg_toast" => Place::Catalog,
                schema => listed(schema).unwrap_or_else(|| self.unlisted(schema, &name.name)),
            };
        }
        let path = &self.context.search_path;
        let catalog_first = !path.iter().any(|schema| schema == "pg_catalog");
        if catalog_first && name.name.starts_with("pg_") {
            return path
                .iter()
                .find_map(|schema| listed(schema))
                .unwrap_or(Place::Catalog);
        }
        for schema in path {
            match schema.as_str() {
                "pg_catalog" if name.name.starts_with("pg_") => return Place::Catalog,
                "information_schema"
                    if !name.name.starts_with("pg_") && listed(schema).is_none() => {}
                schema => {
                    if let Some(place) = listed(schema) {
                        return place;
                    }
                    if snapshot.other(schema, &name.name).is_some() {
                        return self.unlisted(schema, &name.name);
                    }
                }
            }
        }
        self.unlisted("", &name.name)
    }

    /// What a table sets off, wherever it is.
    pub(in crate::plan) fn effects(&self, name: &Name) -> Option<&'a Effects> {
        let snapshot = self.snapshot;
        match self.place(name) {
            Place::Sharded { table, .. } | Place::Reference(table) => Some(&table.effects),
            Place::Single(_) => match &name.schema {
                Some(schema) => snapshot.effects(schema, &name.name),
                None => {
                    let mut path = self.context.search_path.iter();
                    // The first that has the table, whether it sets something off or not.
                    let has = |schema: &&String| {
                        snapshot.table(schema, &name.name).is_some()
                            || snapshot.other(schema, &name.name).is_some()
                    };
                    snapshot.effects(path.find(has)?, &name.name)
                }
            },
            Place::Catalog | Place::Unknown => None,
        }
    }

    pub(super) fn listed(&self, name: &Name) -> Option<&'a Table> {
        let path = match &name.schema {
            Some(schema) => std::slice::from_ref(schema),
            None => self.context.search_path.as_slice(),
        };
        let snapshot = self.snapshot;
        let mut found = path.iter().map(|schema| snapshot.table(schema, &name.name));
        found.find_map(|table| table)
    }

    pub(super) fn views(&mut self, table: &Table) {
        let shows = match table.nature {
            Nature::Table | Nature::Child | Nature::View => Moment::Any,
            Nature::ViewOfOneShard => Moment::Own,
            Nature::ViewWithCode => Moment::OfCode,
        };
        self.moment = self.moment.max(shows);
    }

    /// New rows of a table rest on whether its defaults are those of every shard that serves.
    pub(in crate::plan) fn rests_on_defaults(&self, name: &Name) {
        if self.snapshot.is_looked() {
            return;
        }
        let counts = |effects: &Effects| !effects.computed.is_empty() || !effects.fresh.is_empty();
        let nobody = self.snapshot.looked.is_empty();
        let several = match self.place(name) {
            Place::Sharded { table, .. } | Place::Reference(table) => Some(table),
            Place::Single(_) | Place::Catalog | Place::Unknown => None,
        };
        if several.is_some_and(|table| nobody || counts(&table.effects)) {
            self.footing.set(Footing::Unlooked);
        }
    }

    /// Why a relation has no place.
    pub(in crate::plan) fn not_placed(&self, name: &Name) -> Unroutable {
        let path = match &name.schema {
            Some(schema) => std::slice::from_ref(schema),
            None => &self.context.search_path,
        };
        let mut others = path
            .iter()
            .filter_map(|schema| self.snapshot.other(schema, &name.name));
        match others.next() {
            Some(Other::View | Other::Moved) => Unroutable::ViewOverShards {
                view: full_name(name),
            },
            Some(Other::Table | Other::Derived) | None => Unroutable::UnknownTable {
                table: full_name(name),
            },
        }
    }

    fn unlisted(&self, schema: &str, name: &str) -> Place<'a> {
        let other = self.snapshot.other(schema, name);
        let derived = matches!(other, Some(Other::Derived | Other::View | Other::Moved));
        if other == Some(Other::Moved) {
            self.footing.set(Footing::Unseen);
        }
        if !derived && !schema.starts_with("pg_temp") {
            let footing = match self.snapshot.unseen {
                Unseen::Asked if !self.is_seen(schema, name) => Footing::Unseen,
                Unseen::Asked | Unseen::Unlisted => Footing::Unlisted,
            };
            self.footing.set(self.footing.get().max(footing));
        }
        match self.snapshot.unlisted {
            // Its rows may be on every shard.
            _ if derived => Place::Unknown,
            // Every shard has its own, which is nobody's data.
            _ if schema == OWN_SCHEMA => Place::Unknown,
            Unlisted::On(shard) if !schema.starts_with("pg_temp") => Place::Single(shard),
            Unlisted::On(_) | Unlisted::Error => Place::Unknown,
        }
    }

    /// Whether nothing lists the table, no server was seen to have it, and it may be elsewhere than unlisted tables.
    pub(in crate::plan) fn is_unseen(&self, name: &Name) -> bool {
        let before = self.footing.take();
        self.place(name);
        self.footing.replace(before) == Footing::Unseen
    }

    /// Whether a server was seen to have what nothing lists; an empty schema: in any of the path.
    fn is_seen(&self, schema: &str, name: &str) -> bool {
        let mut path = self.context.search_path.iter();
        match schema {
            "" => path.any(|schema| self.snapshot.other(schema, name).is_some()),
            schema => self.snapshot.other(schema, name).is_some(),
        }
    }
}

fn place_of(table: &Table) -> Place<'_> {
    match &table.placement {
        Placement::Sharded { group, key_column } => Place::Sharded {
            group: *group,
            key: key_column,
            table,
        },
        Placement::Reference => Place::Reference(table),
        Placement::Single(shard) => Place::Single(*shard),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{
            computed::{Computed, Source},
            group::{Group, GroupId, Map},
            key::KeyType,
            shard::{ShardId, ShardSet},
            snapshot::{Snapshot, TableName},
        },
        plan::{
            Context,
            cache::{PlanCache, Scratch},
        },
    };
    use std::collections::BTreeMap;

    /// Of two shards that serve, the first was asked: what it has of `counted` counts, what it has of `plain` does not.
    fn half_looked() -> Snapshot {
        let shards = vec!["s0".to_owned(), "s1".to_owned()];
        let mut snapshot = Snapshot::new("shop", shards);
        snapshot.unseen = Unseen::Asked;
        snapshot.looked = ShardSet::one(ShardId(0));
        let values = BTreeMap::new();
        snapshot.groups.push(Group {
            name: "g".to_owned(),
            key_type: KeyType::Bigint,
            pins: BTreeMap::new(),
            map: Map::List {
                values,
                other: Some(ShardId(1)),
            },
            doubled: Vec::new(),
        });
        for name in ["counted", "plain"] {
            let mut table = Table::unasked(Placement::Sharded {
                group: GroupId(0),
                key_column: "k".to_owned(),
            });
            table.columns = vec!["k".to_owned(), "id".to_owned()];
            if name == "counted" {
                let (column, by) = ("id".to_owned(), Source::Id);
                table.effects.computed.push(Computed { column, by });
            }
            let (schema, name) = ("public".to_owned(), name.to_owned());
            snapshot.tables.insert(TableName { schema, name }, table);
        }
        snapshot
    }

    fn footing(snapshot: &Snapshot, text: &str) -> Footing {
        let (cache, mut scratch) = (PlanCache::new(1 << 20, 1), Scratch::default());
        let context = Context::default();
        let planned = cache.plan(text.as_bytes(), &[], &context, snapshot, &mut scratch);
        planned.plan.statements[0].footing
    }

    #[test]
    fn new_rows_rest_on_the_defaults_of_every_shard_that_serves() {
        let mut snapshot = half_looked();
        let counting = [
            "INSERT INTO counted (k) VALUES (1)",
            "INSERT INTO counted DEFAULT VALUES",
            "INSERT INTO counted (k) SELECT k FROM plain WHERE k = 1",
            "WITH new AS (INSERT INTO counted (k) VALUES (1) RETURNING id) SELECT * FROM new",
            "COPY counted (k) FROM STDIN",
            "MERGE INTO counted USING plain ON counted.k = plain.k AND plain.k = 1 \
             WHEN NOT MATCHED THEN INSERT (k) VALUES (plain.k)",
        ];
        let others = [
            "SELECT * FROM counted WHERE k = 1",
            "UPDATE counted SET id = 2 WHERE k = 1",
            "COPY counted TO STDOUT",
            "INSERT INTO plain (k) VALUES (1)",
        ];
        for text in counting {
            assert_eq!(footing(&snapshot, text), Footing::Unlooked, "{text}");
        }
        for text in others {
            assert_eq!(footing(&snapshot, text), Footing::Sure, "{text}");
        }
        snapshot.looked = ShardSet::new();
        let plain = "INSERT INTO plain (k) VALUES (1)";
        assert_eq!(footing(&snapshot, plain), Footing::Unlooked, "nobody asked");
        snapshot.looked = ShardSet::first(2);
        for text in counting {
            assert_eq!(footing(&snapshot, text), Footing::Sure, "{text}");
        }
    }
}
