//! Schema changes over shards: which shards run them, where new tables live, and what sharding cannot hold. Pure.
//!
//! What must stay true: a constraint holds over all rows as it would on one PostgreSQL, or it is refused: UNIQUE needs the
//! shard key, a foreign key needs the rows that it names on the same shard. The key's column stays as it is.

mod new_table;
mod twice;

pub use new_table::{Found, New, Stated, is_another_elsewhere};
pub use twice::Twice;

use self::new_table::{ColumnFact, ReferenceFact, fact, holds, lists, stated};
use super::{
    block::{Analysis, Place, full_name},
    emptying::{Emptied, Empties},
    unroutable::{Unheld, Unroutable},
};
use crate::{
    catalog::{
        shard::{ShardId, ShardSet},
        snapshot::{Nature, OWN_SCHEMA, Placement, TableName},
    },
    sql::{
        change::{
            self, Alter, Block, Change, Children, Harm, Holds, Meanwhile, NewTable, Reference,
            Renamed, What,
        },
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
