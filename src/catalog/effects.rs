//! What writing a sharded table sets off on its shard alone, where one PostgreSQL would look at, count or change the
//! rows of all shards. Pure.
//!
//! What must stay true: a statement that sets off one of these is refused unless the configuration says that the
//! object may act on each shard by itself (`per_shard`).

use super::{
    computed::{Computed, Sequence, Sought, Source},
    group::GroupId,
    snapshot::TableName,
};

/// What a table's own objects do, once the servers were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    pub hazards: Vec<Hazard>,
    /// Columns whose default gives no value twice, on whatever shard it is computed.
    pub fresh: Vec<String>,
    /// Columns whose default is computed before a row has its shard.
    pub computed: Vec<Computed>,
    /// Identity columns that only OVERRIDING SYSTEM VALUE gives a value.
    pub always: Vec<String>,
    /// Columns whose default another shard would compute to something else.
    pub varying: Vec<Varying>,
    pub strays: Strays,
}

/// What of a table meets rows that a shard has without owning them, while there are such: nobody can accept that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strays {
    /// Unique indexes and exclusion constraints that do not hold the key.
    pub uniques: Vec<String>,
    pub follow: Vec<Following>,
}

/// A foreign key's action that changes rows of a group's tables with this table's, by itself or by way of others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Following {
    pub group: GroupId,
    /// The columns that are referred to.
    pub columns: Vec<String>,
    pub fired: Fired,
}

/// A default that is not the same wherever and whenever it is computed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Varying {
    pub column: String,
    /// As SQL names it under any `search_path`.
    pub expression: String,
    pub once: Once,
}

/// What has one value of such a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Once {
    /// The transaction: it is a time of its beginning.
    Transaction,
    /// Each row: it is random, a clock's, or a sequence's number.
    Row,
    /// Each row, and a value of it must be insisted on: GENERATED ALWAYS AS IDENTITY.
    RowAlways,
}

/// One object that may reach beyond its shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hazard {
    /// The trigger's, rule's, policy's, constraint's, index's or column's.
    pub name: String,
    pub kind: HazardKind,
    pub fired: Fired,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HazardKind {
    /// May change the key, or read or write rows of other keys.
    Trigger,
    /// Rewrites the statement.
    Rule,
    /// It is a view, and what a write through it would do is not known.
    View,
    /// Row security that looks at other tables or calls functions.
    Policy,
    /// Unique, or excluding, over these columns, of which the key is none; an empty name: an expression.
    Unique(Vec<String>),
    /// The column's default counts on each shard by itself, or is computed by a function that is not known.
    Default,
    /// A foreign key's action that changes a table of which every shard has a copy, or a key.
    Cascade(TableName),
}

/// The statements that set it off.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of four, each by its name"
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fired {
    pub select: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
}

/// What a statement does to a table.
#[derive(Clone, Copy, Debug)]
pub enum Act<'a> {
    Select,
    /// With a value of their own for these columns.
    Insert(&'a [String]),
    /// Assigns to these.
    Update(&'a [String]),
    Delete,
}

impl Effects {
    /// The first object that `act` sets off.
    #[must_use]
    pub fn of(&self, act: Act<'_>) -> Option<&Hazard> {
        self.hazards.iter().find(|hazard| self.fires(hazard, act))
    }

    /// A column that is not among those given and has its values from a sequence.
    #[must_use]
    pub fn draws(&self, given: &[String]) -> Option<&str> {
        let drawn = |computed: &&Computed| {
            matches!(computed.by, Source::Sequence(_)) && !given.contains(&computed.column)
        };
        self.computed
            .iter()
            .find(drawn)
            .map(|it| it.column.as_str())
    }

    /// Sequences that give a column which must be unique by itself: no shard knows whether another has a number already.
    pub fn unchecked(&self) -> impl Iterator<Item = &TableName> {
        let alone = |computed: &&Computed| {
            self.hazards.iter().any(|hazard| {
                matches!(&hazard.kind, HazardKind::Unique(columns) if columns.contains(&computed.column))
            })
        };
        self.computed.iter().filter(alone).filter_map(|computed| {
            if let Source::Sequence(Sequence {
                name: Sought::Known(name),
                ..
            }) = &computed.by
            {
                Some(name)
            } else {
                None
            }
        })
    }

    /// The first object that new rows set off which have a value of their own for the columns `given`, and for `ours` one
    /// that is never given twice.
    #[must_use]
    pub fn of_rows(&self, given: &[String], ours: &[String]) -> Option<&Hazard> {
        let theirs: Vec<String> = given
            .iter()
            .filter(|column| !ours.contains(column))
            .cloned()
            .collect();
        self.hazards.iter().find(|hazard| {
            let given = if matches!(hazard.kind, HazardKind::Unique(_)) {
                &theirs
            } else {
                given
            };
            self.fires(hazard, Act::Insert(given))
        })
    }

    /// Groups rows of whose tables `act` changes by foreign keys.
    pub fn changes_with(&self, act: Act<'_>) -> impl Iterator<Item = GroupId> {
        let follows = move |one: &&Following| {
            let assigns = |columns: &[String]| columns.iter().any(|it| one.columns.contains(it));
            one.fired.by(act)
                && match act {
                    Act::Update(assigned) => assigns(assigned),
                    Act::Select | Act::Insert(_) | Act::Delete => true,
                }
        };
        let following = self.strays.follow.iter();
        following.filter(follows).map(|one| one.group)
    }

    fn fires(&self, hazard: &Hazard, act: Act<'_>) -> bool {
        hazard.fired.by(act)
            && match (&hazard.kind, act) {
                (HazardKind::Unique(columns), Act::Insert(given)) => !columns
                    .iter()
                    .any(|column| self.fresh.contains(column) && !given.contains(column)),
                (HazardKind::Unique(columns), Act::Update(assigned)) => columns
                    .iter()
                    .any(|column| column.is_empty() || assigned.contains(column)),
                (HazardKind::Default, Act::Insert(given)) => !given.contains(&hazard.name),
                _ => true,
            }
    }
}

impl Fired {
    /// By every write.
    pub const WRITES: Self = Self {
        select: false,
        insert: true,
        update: true,
        delete: true,
    };
    /// By every statement.
    pub const ALL: Self = Self {
        select: true,
        ..Self::WRITES
    };
    /// By new rows.
    pub const INSERT: Self = Self {
        select: false,
        insert: true,
        update: false,
        delete: false,
    };
    /// By what is new in a row.
    pub const VALUES: Self = Self {
        update: true,
        ..Self::INSERT
    };

    fn by(self, act: Act<'_>) -> bool {
        match act {
            Act::Select => self.select,
            Act::Insert(_) => self.insert,
            Act::Update(_) => self.update,
            Act::Delete => self.delete,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effects(kind: HazardKind, fired: Fired) -> Effects {
        let name = "id".to_owned();
        Effects {
            hazards: vec![Hazard { name, kind, fired }],
            ..Effects::default()
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_default_matters_where_no_value_is_given() {
        let counted = effects(HazardKind::Default, Fired::INSERT);
        assert!(counted.of(Act::Insert(&names(&["note"]))).is_some());
        assert!(counted.of(Act::Insert(&names(&["note", "id"]))).is_none());
        assert!(counted.of(Act::Update(&names(&["id"]))).is_none());
    }

    #[test]
    fn uniqueness_matters_where_its_columns_get_values_that_may_be_elsewhere_too() {
        let mut unique = effects(HazardKind::Unique(names(&["id"])), Fired::VALUES);
        assert!(unique.of(Act::Insert(&names(&["note"]))).is_some());
        assert!(unique.of(Act::Update(&names(&["note"]))).is_none());
        assert!(unique.of(Act::Update(&names(&["id"]))).is_some());
        unique.fresh = names(&["id"]);
        assert!(unique.of(Act::Insert(&names(&["note"]))).is_none());
        assert!(unique.of(Act::Insert(&names(&["id"]))).is_some());
        let expression = effects(HazardKind::Unique(names(&[""])), Fired::VALUES);
        assert!(expression.of(Act::Update(&names(&["note"]))).is_some());
    }

    #[test]
    fn a_policy_matters_to_readers_and_a_trigger_to_its_events() {
        let policy = effects(HazardKind::Policy, Fired::ALL);
        assert!(policy.of(Act::Select).is_some());
        let delete = Fired {
            delete: true,
            ..Fired::default()
        };
        let trigger = effects(HazardKind::Trigger, delete);
        assert!(trigger.of(Act::Delete).is_some());
        assert!(trigger.of(Act::Insert(&[])).is_none());
        assert!(trigger.of(Act::Select).is_none());
    }
}
