//! Schema changes over shards: which shards run them, where new tables live, and what sharding cannot hold. Pure.
//!
//! What must stay true: a constraint holds over all rows as it would on one PostgreSQL, or it is refused: UNIQUE needs the
//! shard key, a foreign key needs the rows that it names on the same shard. The key's column stays as it is.

use super::{
    block::{Analysis, Place, full_name},
    emptying::{Emptied, Empties},
    unroutable::{Unheld, Unroutable},
};
use crate::{
    catalog::{
        group::GroupId,
        key::KeyType,
        shard::{ShardId, ShardSet},
        snapshot::{Nature, OWN_SCHEMA, Other, Placement, Snapshot, TableName, Unlisted},
    },
    sql::{
        change::{
            self, Alter, Block, Change, Children, Column, Harm, Holds, Meanwhile, Modifier,
            NewTable, Reference, Renamed, What,
        },
        statement::quoted,
        tree::Name,
    },
};

/// How a schema change runs over shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes {
    pub command: &'static str,
    pub reach: Reach,
    pub block: Block,
    /// Tables, whatever their schema, whose columns may be others afterwards.
    pub tables: Vec<String>,
    /// A table, and what it is called afterwards.
    pub renamed: Option<(TableName, TableName)>,
    /// What it empties, if it is TRUNCATE.
    pub empties: Option<Box<Empties>>,
    /// What it does to tables of which rows move.
    pub meanwhile: Box<Twice>,
}

/// What a change does to tables whose rows are on two shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twice {
    pub what: Meanwhile,
    /// Asks a shard whether constraints that it drops are of another kind than CHECK and foreign keys, or an index is one by
    /// which rows are found; it answers `t` then.
    pub asks: Option<String>,
}

impl Twice {
    fn of(change: &Change) -> Self {
        let what = change.meanwhile.clone();
        let asks = match (&what, &change.what) {
            (Meanwhile::Done(mild), What::Tables { names, .. }) if !mild.constraints.is_empty() => {
                let names = names.iter().map(|name| quoted(&sql_name(name)));
                let dropped = mild.constraints.iter().map(|name| quoted(name));
                let list = |each: Vec<String>| each.join(", ");
                Some(format!(
                    "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conrelid OPERATOR(pg_catalog.=) \
                     ANY (ARRAY(SELECT pg_catalog.to_regclass(name)::pg_catalog.oid FROM pg_catalog.unnest(ARRAY[{}]) name)) \
                     AND c.conname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.text[]) \
                     AND c.contype::pg_catalog.text OPERATOR(pg_catalog.<>) ALL (ARRAY['c', 'f']::pg_catalog.text[]))",
                    list(names.collect()),
                    list(dropped.collect())
                ))
            }
            (Meanwhile::Done(_), What::Relations(names)) => {
                let names = names.iter().map(|name| quoted(&sql_name(name)));
                Some(format!(
                    "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indexrelid OPERATOR(pg_catalog.=) \
                     ANY (ARRAY(SELECT pg_catalog.to_regclass(name)::pg_catalog.oid FROM pg_catalog.unnest(ARRAY[{}]) name)) \
                     AND (i.indisprimary OR i.indisreplident))",
                    names.collect::<Vec<_>>().join(", ")
                ))
            }
            _ => None,
        };
        Self { what, asks }
    }
}

/// Which shards run it.
#[derive(Clone, Debug, PartialEq)]
pub enum Reach {
    Shards(ShardSet),
    /// Those that have one of these relations, each as SQL names it; none has: the home shard, which says so.
    Holders(Vec<String>),
    /// Locks of tables that are not all on the same shards.
    Locks(Locks),
    /// All of them, each of which has the view afterwards. `schema` `None`: that which the search path gives.
    View {
        schema: Option<String>,
        name: String,
    },
    /// One shard of each server.
    Servers,
    /// Those where the new table lives, which its schema decides.
    New(Box<New>),
}

/// LOCK of tables that are not all on the same shards: each shard locks those that it has, in the statement's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Locks {
    tables: Vec<Lock>,
    how: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Lock {
    name: String,
    children: Children,
    /// `None`: the servers know.
    shards: Option<ShardSet>,
}

/// A new table.
#[derive(Clone, Debug, PartialEq)]
pub struct New {
    /// `None`: the schema that the search path gives.
    pub schema: Option<String>,
    pub name: String,
    columns: Vec<ColumnFact>,
    uniques: Vec<Vec<Option<String>>>,
    references: Vec<ReferenceFact>,
    parent: Option<Placement>,
    stated: Option<Stated>,
}

#[derive(Clone, Debug, PartialEq)]
struct ColumnFact {
    name: String,
    type_name: Option<String>,
    modified: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct ReferenceFact {
    columns: Vec<String>,
    table: String,
    /// As SQL names it.
    sql: String,
    place: Option<Placement>,
    /// It names the new table itself.
    itself: bool,
    referenced: Vec<String>,
}

/// What a comment before CREATE TABLE says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stated {
    /// `shardway: group=tenants key=customer_id`.
    Sharded { group: String, key: String },
    /// `shardway: reference`.
    Reference,
    /// `shardway: single=s1`.
    Single(String),
}

/// How a new table's place was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The configuration says so again whenever it is read.
    Configured,
    /// By this statement alone, so that it must be kept.
    Stated,
}

/// How a change runs over several shards.
///
/// # Errors
/// What sharding cannot hold, and what is not computed.
pub(super) fn changes(change: &Change, analysis: &Analysis<'_>) -> Result<Changes, Unroutable> {
    let planner = Planner { analysis };
    let reach = match &change.what {
        What::NewTable(table) => Reach::New(Box::new(planner.new_table(table)?)),
        What::Tables { names, alter } => planner.tables(names, alter)?,
        What::Locks(locks) => planner.locks(locks)?,
        What::Emptied(emptied) => {
            let names = emptied.tables.iter().map(|(name, _)| name.clone());
            planner.tables(&names.collect::<Vec<_>>(), &Alter::default())?
        }
        What::Relations(names) => Reach::Holders(names.iter().map(sql_name).collect()),
        What::NewView(name) => Reach::View {
            schema: name.schema.clone(),
            name: name.name.clone(),
        },
        What::Everywhere => Reach::Shards(analysis.snapshot.all()),
        What::EveryServer => Reach::Servers,
        What::Unsupported => {
            return Err(Unroutable::PerShard {
                command: change.command,
            });
        }
    };
    Ok(Changes {
        command: change.command,
        reach,
        block: change.block,
        renamed: match &change.what {
            What::Tables { names, alter } => {
                let first = names.first();
                first.and_then(|name| planner.renamed(name, alter))
            }
            What::NewTable(_)
            | What::NewView(_)
            | What::Locks(_)
            | What::Emptied(_)
            | What::Relations(_)
            | What::Everywhere
            | What::EveryServer
            | What::Unsupported => None,
        },
        tables: match &change.what {
            What::Tables { names, .. } => names.iter().map(|name| name.name.clone()).collect(),
            What::NewTable(_)
            | What::Locks(_)
            | What::Emptied(_)
            | What::NewView(_)
            | What::Relations(_)
            | What::Everywhere
            | What::EveryServer
            | What::Unsupported => Vec::new(),
        },
        empties: match &change.what {
            What::Emptied(emptied) => Some(Box::new(planner.empties(emptied))),
            What::NewTable(_)
            | What::NewView(_)
            | What::Tables { .. }
            | What::Locks(_)
            | What::Relations(_)
            | What::Everywhere
            | What::EveryServer
            | What::Unsupported => None,
        },
        meanwhile: Box::new(Twice::of(change)),
    })
}

/// How `setval` runs over several shards: on each that has the sequence.
pub(super) fn numbered(sequence: &Name) -> Changes {
    Changes {
        renamed: None,
        empties: None,
        command: "setval",
        reach: Reach::Holders(vec![sql_name(sequence)]),
        block: Block::Allowed,
        tables: Vec::new(),
        meanwhile: Box::new(Twice {
            what: Meanwhile::Refused(Harm::Else),
            asks: None,
        }),
    }
}

struct Planner<'a, 'b> {
    analysis: &'b Analysis<'a>,
}

impl Planner<'_, '_> {
    fn placement(&self, name: &Name) -> Option<Placement> {
        match self.analysis.place(name) {
            Place::Sharded { group, key, .. } => Some(Placement::Sharded {
                group,
                key_column: key.to_owned(),
            }),
            Place::Reference(_) => Some(Placement::Reference),
            Place::Single(shard) => Some(Placement::Single(shard)),
            Place::Catalog | Place::Unknown => None,
        }
    }

    fn tables(&self, names: &[Name], alter: &Alter) -> Result<Reach, Unroutable> {
        let snapshot = self.analysis.snapshot;
        let mut single: Option<ShardId> = None;
        let mut spread = false;
        for name in names {
            match self.placement(name).filter(|_| !self.asks_for(name, alter)) {
                Some(placement @ (Placement::Sharded { .. } | Placement::Reference)) => {
                    self.altered(name, &placement, alter)?;
                    spread = true;
                }
                Some(Placement::Single(shard)) => {
                    let placement = Placement::Single(shard);
                    self.altered(name, &placement, alter)?;
                    if single.is_some_and(|other| other != shard) {
                        return Err(unheld(name, Unheld::Apart));
                    }
                    single = Some(shard);
                }
                // Partitions, children, and what nothing lists: those that have it.
                None if alter.holds.uniques.is_empty() && alter.holds.references.is_empty() => {
                    let quoted = names.iter().map(sql_name).collect();
                    return Ok(Reach::Holders(quoted));
                }
                None => {
                    return Err(Unroutable::UnknownTable {
                        table: full_name(name),
                    });
                }
            }
        }
        match (single, spread) {
            (Some(_), true) => Err(unheld(&names[0], Unheld::Apart)),
            (Some(shard), false) => Ok(Reach::Shards(ShardSet::one(shard))),
            (None, true) if names.iter().all(|name| self.is_everywhere(name)) => {
                Ok(Reach::Shards(snapshot.all()))
            }
            (None, true) => Ok(Reach::Holders(names.iter().map(sql_name).collect())),
            (None, false) => Ok(Reach::Shards(snapshot.all())),
        }
    }

    /// Whether the servers can say who has a table that was not seen yet: nothing is changed that depends on its place.
    fn asks_for(&self, name: &Name, alter: &Alter) -> bool {
        let Alter {
            holds,
            columns,
            name: renamed,
            ties,
            added,
        } = alter;
        let bare = holds.uniques.is_empty() && holds.references.is_empty() && columns.is_empty();
        bare && ties.is_empty()
            && added.is_empty()
            && *renamed == Renamed::No
            && self.analysis.is_unseen(name)
    }

    fn locks(&self, locks: &change::Locks) -> Result<Reach, Unroutable> {
        let snapshot = self.analysis.snapshot;
        let mut tables = Vec::new();
        for (name, children) in &locks.tables {
            let shards = match self.placement(name) {
                Some(Placement::Sharded { group, .. }) => Some(snapshot.group(group).shards()),
                Some(Placement::Reference) => Some(snapshot.all()),
                Some(Placement::Single(shard)) => Some(ShardSet::one(shard)),
                None if name.schema.as_deref() == Some(OWN_SCHEMA) => {
                    return Err(Unroutable::UnknownTable {
                        table: full_name(name),
                    });
                }
                None => None,
            };
            tables.push(Lock {
                name: sql_name(name),
                children: *children,
                shards,
            });
        }
        let mut places = tables.iter().map(|lock| &lock.shards);
        if let Some(Some(first)) = places.next()
            && places.all(|other| other.as_ref() == Some(first))
        {
            return Ok(Reach::Shards(first.clone()));
        }
        Ok(Reach::Locks(Locks {
            tables,
            how: locks.how.clone(),
        }))
    }

    fn empties(&self, emptied: &change::Emptied) -> Empties {
        let tables = emptied.tables.iter().map(|(name, children)| Emptied {
            name: sql_name(name),
            children: *children,
            place: self.placement(name),
        });
        Empties {
            tables: tables.collect(),
            numbers: emptied.numbers,
            others: emptied.others,
        }
    }

    /// Whether every shard has the table.
    fn is_everywhere(&self, name: &Name) -> bool {
        match self.placement(name) {
            Some(Placement::Reference) => true,
            Some(Placement::Sharded { group, .. }) => {
                let snapshot = self.analysis.snapshot;
                snapshot.group(group).shards() == snapshot.all()
            }
            Some(Placement::Single(_)) | None => false,
        }
    }

    fn altered(&self, name: &Name, placement: &Placement, alter: &Alter) -> Result<(), Unroutable> {
        let stays = self.is_configured(name) || self.takes_name(name, alter);
        if alter.name != Renamed::No && stays && !self.goes_with_others(name) {
            return Err(unheld(name, Unheld::Name));
        }
        if let Some(column) = self.claimed_by(name, placement, alter) {
            return Err(unheld(name, Unheld::Claimed { column }));
        }
        if let Placement::Sharded { key_column, .. } = placement
            && alter.columns.contains(key_column)
        {
            return Err(unheld(name, Unheld::KeyColumn));
        }
        if alter.ties.iter().any(|tie| {
            let other = self.placement(tie);
            other.is_some_and(|other| !together(&other, placement))
        }) {
            return Err(unheld(name, Unheld::Apart));
        }
        let uniques = alter.holds.uniques.iter().map(|one| one.columns.as_slice());
        let references = self.references(&alter.holds, None);
        holds(&name.name, placement, uniques, &references)
    }

    /// Whether it is a child or a view, whose place does not depend on its name.
    fn goes_with_others(&self, name: &Name) -> bool {
        let (Place::Sharded { table, .. } | Place::Reference(table)) = self.analysis.place(name)
        else {
            return false;
        };
        table.nature != Nature::Table
    }

    /// The first table of that name in the path that anything is known of.
    fn found(&self, name: &Name) -> Option<TableName> {
        let snapshot = self.analysis.snapshot;
        let known = |schema: &String| {
            let found = TableName {
                schema: schema.clone(),
                name: name.name.clone(),
            };
            let known =
                snapshot.tables.contains_key(&found) || snapshot.others.contains_key(&found);
            known.then_some(found)
        };
        match &name.schema {
            Some(schema) => known(schema),
            None => self.analysis.context.search_path.iter().find_map(known),
        }
    }

    /// Whether the configuration lists it under its name.
    fn is_configured(&self, name: &Name) -> bool {
        let snapshot = self.analysis.snapshot;
        self.found(name)
            .is_some_and(|found| lists(snapshot, &found))
    }

    /// What it is called afterwards.
    fn renamed(&self, name: &Name, alter: &Alter) -> Option<(TableName, TableName)> {
        let before = self.found(name)?;
        let mut after = before.clone();
        match &alter.name {
            Renamed::No => return None,
            Renamed::Name(name) => after.name.clone_from(name),
            Renamed::Schema(schema) => after.schema.clone_from(schema),
        }
        Some((before, after))
    }

    /// Whether it would get the name of a table that the configuration lists.
    fn takes_name(&self, name: &Name, alter: &Alter) -> bool {
        let snapshot = self.analysis.snapshot;
        self.renamed(name, alter)
            .is_some_and(|(_, after)| lists(snapshot, &after))
    }

    /// A column that it gets, by which a group would claim it from where it is.
    fn claimed_by(&self, name: &Name, placement: &Placement, alter: &Alter) -> Option<String> {
        if self.is_configured(name) {
            return None;
        }
        let claims = self.analysis.snapshot.key_columns.iter();
        let mut others = claims.filter(|(column, group)| {
            let here = matches!(placement, Placement::Sharded { group: own, key_column }
                if own == group && key_column == column);
            alter.added.contains(column) && !here
        });
        others.next().map(|(column, _)| column.clone())
    }

    fn references(&self, holds: &Holds, of: Option<&Name>) -> Vec<ReferenceFact> {
        let fact = |reference: &Reference| {
            let itself = of.is_some_and(|own| refers_to_itself(own, &reference.table));
            let known = !itself || !self.analysis.is_unseen(&reference.table);
            ReferenceFact {
                columns: reference.columns.clone(),
                table: full_name(&reference.table),
                sql: sql_name(&reference.table),
                place: if known {
                    self.placement(&reference.table)
                } else {
                    None
                },
                itself,
                referenced: reference.referenced.clone(),
            }
        };
        holds.references.iter().map(fact).collect()
    }

    fn new_table(&self, table: &NewTable) -> Result<New, Unroutable> {
        let Some(name) = &table.name else {
            return Err(Unroutable::NotUnderstood);
        };
        let mut parent = None;
        for above in &table.parents {
            let Some(placement) = self.placement(above) else {
                return Err(Unroutable::UnknownTable {
                    table: full_name(above),
                });
            };
            if parent.as_ref().is_some_and(|other| *other != placement) {
                return Err(unheld(name, Unheld::Apart));
            }
            parent = Some(placement);
        }
        let mut columns: Vec<ColumnFact> = table.columns.iter().map(fact).collect();
        for like in &table.likes {
            columns.extend(self.copied(like));
        }
        let uniques = table.holds.uniques.iter();
        Ok(New {
            schema: name.schema.clone(),
            name: name.name.clone(),
            columns,
            uniques: uniques.map(|one| one.columns.clone()).collect(),
            references: self.references(&table.holds, Some(name)),
            parent,
            stated: stated(self.analysis.text),
        })
    }

    /// The columns of a table that a new one is made like.
    fn copied(&self, like: &Name) -> Vec<ColumnFact> {
        let known = match self.analysis.place(like) {
            Place::Sharded { table, .. } | Place::Reference(table) => table.columns.as_slice(),
            Place::Single(_) | Place::Catalog | Place::Unknown => &[],
        };
        let fact = |name: &String| ColumnFact {
            name: name.clone(),
            type_name: None,
            modified: false,
        };
        known.iter().map(fact).collect()
    }
}

impl Locks {
    /// The tables that only servers know the places of, each as SQL names it.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        let unknown = self.tables.iter().filter(|lock| lock.shards.is_none());
        unknown.map(|lock| lock.name.as_str())
    }

    /// What a shard is told, which has of the unknown tables those that `has` says in their order; `None`: nothing.
    #[must_use]
    pub fn text(&self, shard: ShardId, has: &[bool]) -> Option<String> {
        let mut has = has.iter();
        let own = self.tables.iter().filter(|lock| match &lock.shards {
            Some(shards) => shards.contains(shard),
            None => has.next().is_some_and(|has| *has),
        });
        let own = own.map(|lock| match lock.children {
            Children::Included => lock.name.clone(),
            Children::Left => format!("ONLY {}", lock.name),
        });
        let names = own.collect::<Vec<_>>().join(", ");
        (!names.is_empty()).then(|| format!("LOCK TABLE {names} {}", self.how))
    }
}

fn fact(column: &Column) -> ColumnFact {
    ColumnFact {
        name: column.name.clone(),
        type_name: column.type_name.clone(),
        modified: column.modifier == Modifier::Some,
    }
}

impl New {
    /// Where it lives when it is made in that schema: as a comment says, as the configuration lists it, with its
    /// parent, by a column that a group claims, with the table that its key refers to, or where unlisted tables live.
    ///
    /// # Errors
    /// Nothing says where, or sharding cannot hold what it asks for.
    pub fn place(
        &self,
        schema: &str,
        snapshot: &Snapshot,
    ) -> Result<(Placement, Found), Unroutable> {
        let (placement, found) = self.find(schema, snapshot)?;
        if let Placement::Sharded { group, key_column } = &placement
            && self.parent.is_none()
        {
            self.check_key(key_column, snapshot.group(*group).key_type)?;
        }
        let uniques = self.uniques.iter().map(Vec::as_slice);
        let mut references = self.references.clone();
        for reference in &mut references {
            // A table that refers to itself.
            if reference.place.is_none() && reference.itself {
                reference.place = Some(placement.clone());
            }
        }
        holds(&self.name, &placement, uniques, &references)?;
        Ok((placement, found))
    }

    fn find(&self, schema: &str, snapshot: &Snapshot) -> Result<(Placement, Found), Unroutable> {
        let configured = |placement| Ok((placement, Found::Configured));
        if let Some(parent) = &self.parent {
            return configured(parent.clone());
        }
        let name = self.table_name(schema);
        let known = snapshot.tables.get(&name).map(|table| &table.placement);
        let listed = known.filter(|_| lists(snapshot, &name));
        let has = |name: &str| self.columns.iter().any(|column| column.name == name);
        let claims = snapshot.key_columns.iter().find(|(column, _)| has(column));
        let claimed = claims.map(|(column, group)| Placement::Sharded {
            group: *group,
            key_column: column.clone(),
        });
        let said = listed.cloned().or(claimed);
        if let Some(stated) = &self.stated {
            let contradicts = || Unroutable::CannotHold {
                table: self.name.clone(),
                what: Unheld::Comment,
            };
            let placement = stated.placement(snapshot).ok_or_else(contradicts)?;
            return match said {
                Some(said) if said == placement => configured(placement),
                Some(_) => Err(contradicts()),
                None => Ok((placement, Found::Stated)),
            };
        }
        if let Some(said) = said {
            return configured(said);
        }
        // Made again where it was, in the transaction that drops it.
        let again = known.cloned().or_else(|| self.by_reference(snapshot));
        if let Some(placement) = again {
            return Ok((placement, Found::Stated));
        }
        match snapshot.unlisted {
            Unlisted::On(shard) => configured(Placement::Single(shard)),
            Unlisted::Error => Err(Unroutable::UnknownTable {
                table: format!("{schema}.{}", self.name),
            }),
        }
    }

    /// Tables whose primary keys its foreign keys name without saying so, as SQL names them.
    #[must_use]
    pub fn asks_for_keys_of(&self) -> Vec<(String, GroupId)> {
        let silent = self.references.iter().filter_map(|one| match &one.place {
            Some(Placement::Sharded { group, .. }) if one.referenced.is_empty() => {
                Some((one.sql.clone(), *group))
            }
            _ => None,
        });
        silent.collect()
    }

    /// The primary key of one of them, which need not be its shard key.
    pub fn learn_key_of(&mut self, sql: &str, columns: &[String]) {
        for reference in &mut self.references {
            if reference.referenced.is_empty() && reference.sql == sql {
                reference.referenced = columns.to_vec();
                if columns.is_empty() {
                    // It has none: PostgreSQL will say so.
                    reference.referenced.push(String::new());
                }
            }
        }
    }

    /// A foreign key of which a column names the key of a sharded table.
    fn by_reference(&self, snapshot: &Snapshot) -> Option<Placement> {
        let mut found: Vec<(GroupId, &String)> = Vec::new();
        for reference in &self.references {
            let Some(Placement::Sharded { group, key_column }) = &reference.place else {
                continue;
            };
            let at = match reference.referenced.as_slice() {
                // The primary key, as long as nobody was asked which that is.
                [] if reference.columns.len() == 1 => Some(0),
                names => names.iter().position(|name| name == key_column),
            };
            let column = at.and_then(|at| reference.columns.get(at));
            found.extend(column.map(|column| (*group, column)));
        }
        let (group, column) = *found.first()?;
        let one = found.iter().all(|other| *other == (group, column));
        (one && usize::from(group.0) < snapshot.groups.len()).then(|| Placement::Sharded {
            group,
            key_column: column.clone(),
        })
    }

    fn check_key(&self, key: &str, wanted: KeyType) -> Result<(), Unroutable> {
        let cannot = |what| {
            Err(Unroutable::CannotHold {
                table: self.name.clone(),
                what,
            })
        };
        let Some(column) = self.columns.iter().find(|column| column.name == key) else {
            return cannot(Unheld::NoKey {
                key: key.to_owned(),
            });
        };
        let fits = column.type_name.as_deref().is_none_or(|name| match wanted {
            KeyType::Bigint => matches!(
                name,
                "int2"
                    | "int4"
                    | "int8"
                    | "serial"
                    | "bigserial"
                    | "smallserial"
                    | "serial4"
                    | "serial8"
                    | "serial2"
            ),
            KeyType::Text => matches!(name, "text" | "varchar"),
            KeyType::Uuid => name == "uuid",
            KeyType::Date => name == "date",
            KeyType::Timestamptz => name == "timestamptz" && !column.modified,
            KeyType::Numeric => name == "numeric" && !column.modified,
            KeyType::Bytea => name == "bytea",
        });
        if fits {
            Ok(())
        } else {
            cannot(Unheld::KeyType {
                key: key.to_owned(),
                wanted: wanted.name(),
            })
        }
    }

    /// What the table is called, with this schema.
    #[must_use]
    pub fn table_name(&self, schema: &str) -> TableName {
        TableName {
            schema: schema.to_owned(),
            name: self.name.clone(),
        }
    }
}

impl Stated {
    fn placement(&self, snapshot: &Snapshot) -> Option<Placement> {
        match self {
            Self::Reference => Some(Placement::Reference),
            Self::Single(shard) => snapshot.shard_named(shard).map(Placement::Single),
            Self::Sharded { group, key } => {
                let at = snapshot.groups.iter().position(|one| one.name == *group)?;
                Some(Placement::Sharded {
                    group: GroupId(u16::try_from(at).ok()?),
                    key_column: key.clone(),
                })
            }
        }
    }
}

/// Whether constraints of a table that lives there hold over all of its rows.
fn holds<'a>(
    table: &str,
    placement: &Placement,
    mut uniques: impl Iterator<Item = &'a [Option<String>]>,
    references: &[ReferenceFact],
) -> Result<(), Unroutable> {
    let cannot = |what| {
        Err(Unroutable::CannotHold {
            table: table.to_owned(),
            what,
        })
    };
    if let Placement::Sharded { key_column, .. } = placement {
        let has_key = |columns: &[Option<String>]| {
            columns
                .iter()
                .any(|column| column.as_ref() == Some(key_column))
        };
        if !uniques.all(has_key) {
            return cannot(Unheld::Unique {
                key: key_column.clone(),
            });
        }
    }
    for reference in references {
        if !refers(placement, reference) {
            return cannot(Unheld::Reference {
                to: reference.table.clone(),
            });
        }
    }
    Ok(())
}

/// Whether the row that a foreign key names is always on the row's own shard.
fn refers(placement: &Placement, reference: &ReferenceFact) -> bool {
    match (placement, &reference.place) {
        (_, Some(Placement::Reference)) => true,
        (Placement::Single(here), Some(Placement::Single(there))) => here == there,
        (
            Placement::Sharded { group, key_column },
            Some(Placement::Sharded {
                group: other,
                key_column: named,
            }),
        ) => {
            let at = reference
                .columns
                .iter()
                .position(|column| column == key_column);
            let key = match (at, reference.referenced.as_slice()) {
                (Some(_), []) => reference.columns.len() == 1,
                (Some(at), names) => names.get(at) == Some(named),
                (None, _) => false,
            };
            group == other && key
        }
        _ => false,
    }
}

/// Whether rows of both are always on the same shards.
fn together(one: &Placement, other: &Placement) -> bool {
    match (one, other) {
        (
            Placement::Sharded { group, key_column },
            Placement::Sharded {
                group: other,
                key_column: other_key,
            },
        ) => group == other && key_column == other_key,
        (one, other) => one == other,
    }
}

/// Whether others that do not know of it yet would put rows of the table elsewhere, as it is called like one that lives
/// there.
#[must_use]
pub fn is_another_elsewhere(known: &Snapshot, name: &TableName, placement: &Placement) -> bool {
    match (known.tables.get(name), known.unlisted) {
        (Some(table), _) => table.placement != *placement,
        (None, Unlisted::On(shard)) => {
            let other = known.others.get(name) == Some(&Other::Table);
            other && *placement != Placement::Single(shard)
        }
        (None, Unlisted::Error) => false,
    }
}

/// Whether the configuration lists the table.
fn lists(snapshot: &Snapshot, table: &TableName) -> bool {
    snapshot.tables.contains_key(table) && !snapshot.learned.contains(table)
}

fn refers_to_itself(own: &Name, other: &Name) -> bool {
    let same_schema = own.schema == other.schema || own.schema.is_none() || other.schema.is_none();
    own.name == other.name && same_schema
}

fn unheld(table: &Name, what: Unheld) -> Unroutable {
    Unroutable::CannotHold {
        table: table.name.clone(),
        what,
    }
}

fn sql_name(name: &Name) -> String {
    let quoted = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
    match &name.schema {
        Some(schema) => format!("{}.{}", quoted(schema), quoted(&name.name)),
        None => quoted(&name.name),
    }
}

/// What a comment at the start of a text says of a new table.
fn stated(text: &[u8]) -> Option<Stated> {
    let text = text.trim_ascii_start().strip_prefix(b"/*")?;
    let end = text.windows(2).position(|pair| pair == b"*/")?;
    let inside = std::str::from_utf8(text.get(..end)?).ok()?;
    let said = inside.trim().strip_prefix("shardway:")?.trim();
    if said == "reference" {
        return Some(Stated::Reference);
    }
    let (mut group, mut key, mut single) = (None, None, None);
    for word in said.split_ascii_whitespace() {
        let (name, value) = word.split_once('=')?;
        match name {
            "group" => group = Some(value.to_owned()),
            "key" => key = Some(value.to_owned()),
            "single" => single = Some(value.to_owned()),
            _ => return None,
        }
    }
    match (group, key, single) {
        (Some(group), Some(key), None) => Some(Stated::Sharded { group, key }),
        (None, None, Some(shard)) => Some(Stated::Single(shard)),
        _ => None,
    }
}
