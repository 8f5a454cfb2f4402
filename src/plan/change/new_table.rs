//! A table that is made: where it lives, and what it may ask for there.
//!
//! What must stay true: a constraint holds over all rows as it would on one PostgreSQL, or it is refused. What says where it
//! lives says one thing: a comment, the configuration, its parent, its columns, or what it refers to.

use crate::{
    catalog::{
        group::GroupId,
        key::KeyType,
        snapshot::{Other, Placement, Snapshot, TableName, Unlisted},
    },
    plan::unroutable::{Unheld, Unroutable},
    sql::change::{Column, Modifier},
};

/// A new table.
#[derive(Clone, Debug, PartialEq)]
pub struct New {
    /// `None`: the schema that the search path gives.
    pub schema: Option<String>,
    pub name: String,
    pub(super) columns: Vec<ColumnFact>,
    pub(super) uniques: Vec<Vec<Option<String>>>,
    pub(super) references: Vec<ReferenceFact>,
    pub(super) parent: Option<Placement>,
    pub(super) stated: Option<Stated>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ColumnFact {
    pub(super) name: String,
    pub(super) type_name: Option<String>,
    pub(super) modified: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ReferenceFact {
    pub(super) columns: Vec<String>,
    pub(super) table: String,
    /// As SQL names it.
    pub(super) sql: String,
    pub(super) place: Option<Placement>,
    /// It names the new table itself.
    pub(super) itself: bool,
    pub(super) referenced: Vec<String>,
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

pub(super) fn fact(column: &Column) -> ColumnFact {
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
pub(super) fn holds<'a>(
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
pub(super) fn lists(snapshot: &Snapshot, table: &TableName) -> bool {
    snapshot.tables.contains_key(table) && !snapshot.learned.contains(table)
}

/// What a comment at the start of a text says of a new table.
pub(super) fn stated(text: &[u8]) -> Option<Stated> {
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
