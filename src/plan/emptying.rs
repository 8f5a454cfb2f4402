//! TRUNCATE of tables of which a reshard moves rows, as DELETE of what each shard owns: what TRUNCATE takes away is not taken
//! away where the rows are copied to, and takes away copies that are another shard's. Pure.
//!
//! What must stay true: afterwards the tables have no row that any shard owns, as if each had been truncated, and copies
//! are as the streams leave them; where DELETE does something else than TRUNCATE, nothing is done.

use crate::{
    catalog::{
        group::{Group, GroupId},
        moving::NoSql,
        shard::ShardId,
        snapshot::{Placement, Snapshot},
    },
    sql::{
        change::{Children, Numbers, Others},
        statement::quoted,
    },
};

/// TRUNCATE.
#[derive(Clone, Debug, PartialEq)]
pub struct Empties {
    pub tables: Vec<Emptied>,
    pub numbers: Numbers,
    pub others: Others,
}

/// A table that is emptied.
#[derive(Clone, Debug, PartialEq)]
pub struct Emptied {
    /// As SQL names it.
    pub name: String,
    pub children: Children,
    /// `None`: the servers know.
    pub place: Option<Placement>,
}

/// Why TRUNCATE is not possible, or not as DELETE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    // ---- What PostgreSQL says too ----
    /// A view, or what is on another server.
    NoTable(String),
    /// ONLY of a partitioned table.
    OnlyParent,
    Denied(String),
    /// The second refers to the first.
    Referenced(String, String),
    // ---- What DELETE does otherwise ----
    /// Not all of them are tables of which rows move.
    Together,
    BeginsAnew,
    /// By its snapshot rows would stay that came later.
    OneSnapshot,
    /// The role may truncate it, but not delete from it.
    NoDelete(String),
    /// Rows that the role does not see would stay.
    Hidden(String),
    /// A trigger, and of which table.
    Trigger(String, String),
    /// A rule, and of which table.
    Rule(String, String),
    /// No SQL computes whose a row is.
    Hash,
    /// The servers' answer is not understood.
    Unknown,
}

/// Asks a shard, in the transaction that has locked the tables, whether DELETE does what TRUNCATE would; the answer is
/// nothing, or what [`Kept::read`] reads.
const FOUND: &str = "\
tree (oid) AS (SELECT oid FROM listed \
    UNION SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) t.oid), \
named AS (SELECT l.oid, l.lone, c.relname, c.relkind::pg_catalog.text AS kind \
    FROM listed l JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.oid), \
found (place, what, one, other) AS ( \
    SELECT 1, 'table', c.relname, NULL FROM tree t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.oid \
    WHERE c.relkind::pg_catalog.text OPERATOR(pg_catalog.<>) 'r' AND c.relkind::pg_catalog.text OPERATOR(pg_catalog.<>) 'p' \
    UNION ALL SELECT 2, 'only', NULL, NULL FROM named WHERE lone AND kind OPERATOR(pg_catalog.=) 'p' \
    UNION ALL SELECT 3, 'denied', relname, NULL FROM named WHERE NOT pg_catalog.has_table_privilege(oid, 'TRUNCATE') \
    UNION ALL SELECT 4, 'reference', own.relname, other.relname FROM pg_catalog.pg_constraint k \
    JOIN pg_catalog.pg_class own ON own.oid OPERATOR(pg_catalog.=) k.confrelid \
    JOIN pg_catalog.pg_class other ON other.oid OPERATOR(pg_catalog.=) k.conrelid \
    WHERE k.contype::pg_catalog.text OPERATOR(pg_catalog.=) 'f' \
    AND EXISTS (SELECT FROM tree t WHERE t.oid OPERATOR(pg_catalog.=) k.confrelid) \
    AND NOT EXISTS (SELECT FROM tree t WHERE t.oid OPERATOR(pg_catalog.=) k.conrelid) \
    UNION ALL SELECT 5, 'snapshot', NULL, NULL \
    WHERE pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.!~) '^read ' \
    UNION ALL SELECT 6, 'delete', relname, NULL FROM named WHERE NOT pg_catalog.has_table_privilege(oid, 'DELETE') \
    UNION ALL SELECT 7, 'hidden', relname, NULL FROM named WHERE pg_catalog.row_security_active(oid) \
    UNION ALL SELECT 8, 'trigger', g.tgname, c.relname FROM tree t \
    JOIN pg_catalog.pg_trigger g ON g.tgrelid OPERATOR(pg_catalog.=) t.oid \
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.oid \
    WHERE NOT g.tgisinternal AND g.tgenabled::pg_catalog.text OPERATOR(pg_catalog.<>) 'D' \
    AND (g.tgtype::pg_catalog.int4 OPERATOR(pg_catalog.&) 40) OPERATOR(pg_catalog.<>) 0 \
    AND g.tgname::pg_catalog.text OPERATOR(pg_catalog.!~) '^shardway_guard_' \
    UNION ALL SELECT 9, 'rule', r.rulename, c.relname FROM tree t \
    JOIN pg_catalog.pg_rewrite r ON r.ev_class OPERATOR(pg_catalog.=) t.oid \
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.oid \
    WHERE r.ev_type::pg_catalog.text OPERATOR(pg_catalog.=) '4' \
    AND r.ev_enabled::pg_catalog.text OPERATOR(pg_catalog.<>) 'D') \
SELECT pg_catalog.concat_ws(pg_catalog.chr(1), what, one, other) FROM found ORDER BY place, one, other LIMIT 1";

impl Empties {
    /// A group whose reshard copies rows of one of the tables; `None`: nobody does.
    #[must_use]
    pub fn moving(&self, snapshot: &Snapshot) -> Option<GroupId> {
        let mut groups = self.tables.iter().map(|table| table.moving(snapshot));
        groups.find_map(|group| group)
    }

    /// Whether the statement by itself can be done as DELETE.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self, snapshot: &Snapshot) -> Result<(), Kept> {
        let mut tables = self.tables.iter();
        if tables.any(|table| table.moving(snapshot).is_none()) {
            return Err(Kept::Together);
        }
        match self.numbers {
            Numbers::GoOn => Ok(()),
            Numbers::BeginAnew => Err(Kept::BeginsAnew),
        }
    }

    /// Waits for whoever writes to the tables, and lets nobody do so any more. They may still be read, as they were: what
    /// copies and applies rows holds locks of a destination while it reads from the source, and must not wait for this.
    #[must_use]
    pub fn lock(&self) -> String {
        let tables = self.tables.iter().map(Emptied::sql);
        let tables: Vec<String> = tables.collect();
        format!("LOCK TABLE {} IN EXCLUSIVE MODE", tables.join(", "))
    }

    /// The question whether DELETE does what TRUNCATE would.
    #[must_use]
    pub fn question(&self) -> String {
        let listed = self.tables.iter().map(|table| {
            let lone = table.children == Children::Left;
            let name = quoted(&table.name);
            format!("(pg_catalog.to_regclass({name})::pg_catalog.oid, {lone})")
        });
        let listed: Vec<String> = listed.collect();
        format!(
            "WITH RECURSIVE listed (oid, lone) AS (VALUES {}), {FOUND}",
            listed.join(", ")
        )
    }

    /// Deletes all but copies of what other shards own. In one statement: foreign keys are looked at once all is gone.
    ///
    /// # Errors
    /// [`NoSql`].
    pub fn delete(&self, snapshot: &Snapshot, shard: ShardId) -> Result<String, NoSql> {
        let mut parts = Vec::new();
        for table in &self.tables {
            let owned = match &table.place {
                Some(Placement::Sharded { group, key_column }) => {
                    let column = format!("\"{}\"", key_column.replace('"', "\"\""));
                    snapshot.group(*group).owned_sql(shard, &column)?
                }
                Some(Placement::Reference | Placement::Single(_)) | None => None,
            };
            let owned = owned.map(|owned| format!(" WHERE {owned}"));
            parts.push(format!(
                "DELETE FROM {}{}",
                table.sql(),
                owned.unwrap_or_default()
            ));
        }
        let last = parts.pop().unwrap_or_default();
        if parts.is_empty() {
            return Ok(last);
        }
        let with = parts.iter().enumerate();
        let with: Vec<String> = with
            .map(|(at, part)| format!("shardway_{at} AS ({part})"))
            .collect();
        Ok(format!("WITH {} {last}", with.join(", ")))
    }
}

impl Emptied {
    /// The group whose reshard copies its rows: its own, or for a table that every shard has whole, one with which shards
    /// join.
    fn moving(&self, snapshot: &Snapshot) -> Option<GroupId> {
        let joins = |group: &Group| {
            let mut copies = group.doubled.iter();
            copies.any(|copy| !snapshot.members.contains(copy.shard))
        };
        match &self.place {
            Some(Placement::Sharded { group, .. }) => {
                let moves = !snapshot.group(*group).doubled.is_empty();
                moves.then_some(*group)
            }
            Some(Placement::Reference) => {
                let mut groups = snapshot.groups.iter().zip(0_u16..);
                let found = groups.find(|(group, _)| joins(group));
                found.map(|(_, at)| GroupId(at))
            }
            Some(Placement::Single(_)) | None => None,
        }
    }

    fn sql(&self) -> String {
        match self.children {
            Children::Included => self.name.clone(),
            Children::Left => format!("ONLY {}", self.name),
        }
    }
}

impl Kept {
    /// What a shard has answered.
    #[must_use]
    pub fn read(answer: &str) -> Self {
        let mut parts = answer.split('\u{1}');
        let mut next = || parts.next().unwrap_or_default().to_owned();
        let what = next();
        let (one, other) = (next(), next());
        match what.as_str() {
            "table" => Self::NoTable(one),
            "only" => Self::OnlyParent,
            "denied" => Self::Denied(one),
            "reference" => Self::Referenced(one, other),
            "snapshot" => Self::OneSnapshot,
            "delete" => Self::NoDelete(one),
            "hidden" => Self::Hidden(one),
            "trigger" => Self::Trigger(one, other),
            "rule" => Self::Rule(one, other),
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{
        group::{Map, RangeEntry},
        key::{Key, KeyType},
        moving::{Doubled, KeySet, Part},
        shard::ShardSet,
    };

    /// Keys below 10 of the first shard are copied to the second, or to the third, which joins.
    fn snapshot(to: u16) -> Snapshot {
        let shards = ["s0", "s1", "s2"].map(str::to_owned).to_vec();
        let mut snapshot = Snapshot::new("shop", shards);
        snapshot.members = ShardSet::first(2);
        let entry = |to: Option<i64>, shard| RangeEntry {
            to: to.map(Key::Bigint),
            shard: ShardId(shard),
        };
        for (name, doubled) in [("g", true), ("h", false)] {
            let doubled = doubled.then(|| Doubled {
                shard: ShardId(to),
                keys: KeySet::of(Part::Ranges(vec![(None, Some(Key::Bigint(10)))])),
            });
            snapshot.groups.push(Group {
                name: name.to_owned(),
                key_type: KeyType::Bigint,
                pins: Default::default(),
                map: Map::range(vec![entry(Some(20), 0), entry(None, 1)]).unwrap(),
                doubled: doubled.into_iter().collect(),
            });
        }
        snapshot
    }

    fn sharded(name: &str, group: u16, children: Children) -> Emptied {
        Emptied {
            name: name.to_owned(),
            children,
            place: Some(Placement::Sharded {
                group: GroupId(group),
                key_column: "the \"key\"".to_owned(),
            }),
        }
    }

    fn everywhere() -> Emptied {
        Emptied {
            place: Some(Placement::Reference),
            ..sharded("\"r\"", 0, Children::Included)
        }
    }

    fn truncate(tables: Vec<Emptied>) -> Empties {
        Empties {
            tables,
            numbers: Numbers::GoOn,
            others: Others::Left,
        }
    }

    #[test]
    fn copies_are_left_out_and_all_is_one_statement() {
        let snapshot = snapshot(1);
        let both = truncate(vec![
            sharded("\"t\"", 0, Children::Included),
            sharded("s.\"u\"", 0, Children::Left),
        ]);
        assert_eq!(both.moving(&snapshot), Some(GroupId(0)));
        assert_eq!(both.check(&snapshot), Ok(()));
        assert_eq!(
            both.lock(),
            "LOCK TABLE \"t\", ONLY s.\"u\" IN EXCLUSIVE MODE"
        );
        // The first shard owns all that it has.
        assert_eq!(
            both.delete(&snapshot, ShardId(0)).unwrap(),
            "WITH shardway_0 AS (DELETE FROM \"t\") DELETE FROM ONLY s.\"u\""
        );
        let delete = both.delete(&snapshot, ShardId(1)).unwrap();
        assert_eq!(delete.matches("IS NOT TRUE").count(), 2, "{delete}");
        assert!(delete.contains("\"the \"\"key\"\"\" < '10'"), "{delete}");
    }

    #[test]
    fn tables_that_nobody_copies_are_truncated() {
        let still = || sharded("\"v\"", 1, Children::Included);
        let here = snapshot(1);
        assert_eq!(truncate(vec![still(), everywhere()]).moving(&here), None);
        // What every shard has is copied to one that joins.
        let joins = snapshot(2);
        let one = truncate(vec![everywhere()]);
        assert_eq!(one.moving(&joins), Some(GroupId(0)));
        assert_eq!(one.delete(&joins, ShardId(0)).unwrap(), "DELETE FROM \"r\"");
        assert_eq!(truncate(vec![still()]).moving(&joins), None);
        let mixed = truncate(vec![everywhere(), still()]);
        assert_eq!(mixed.check(&joins), Err(Kept::Together));
        let anew = Empties {
            numbers: Numbers::BeginAnew,
            ..one
        };
        assert_eq!(anew.check(&joins), Err(Kept::BeginsAnew));
    }

    #[test]
    fn what_shards_answer_is_read() {
        assert_eq!(
            Kept::read("trigger\u{1}watching\u{1}t"),
            Kept::Trigger("watching".to_owned(), "t".to_owned())
        );
        assert_eq!(Kept::read("only"), Kept::OnlyParent);
        assert_eq!(Kept::read("?"), Kept::Unknown);
    }
}
