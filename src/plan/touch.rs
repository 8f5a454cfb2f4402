//! What a statement touches: groups whose rows it may read or write, and of which keys. Pure. For the gate, before which
//! statements wait whose keys change their owner.
//!
//! What must stay true: never less than what the statement may touch; what is not known is everything.

use super::{
    StatementPlan, Target, Values,
    route::{Condition, Pin, Pins, Role, Why},
    value::{self, Missing, Purpose, Value},
};
use crate::catalog::{group::GroupId, key::Key, snapshot::Snapshot};
use smallvec::SmallVec;

/// Keys of a group.
pub type Keys = SmallVec<[Key; 1]>;

/// Groups that a statement may touch: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touches(u64);

/// Groups with this number and above share a bit.
const SHARED: u16 = 61;
const REFERENCES: u64 = 1 << 62;
const EVERYTHING: u64 = 1 << 63;

impl Touches {
    /// No rows but those of tables of one shard.
    pub const NOTHING: Self = Self(0);
    /// It is not known what.
    pub const EVERYTHING: Self = Self(EVERYTHING);

    /// Tables that every shard has whole.
    pub(super) const REFERENCES: Self = Self(REFERENCES);

    pub(super) fn group(group: GroupId) -> Self {
        Self(1 << group.0.min(SHARED))
    }

    #[must_use]
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self.0 == 0
    }

    /// Whether it is not known what.
    #[must_use]
    pub fn is_everything(self) -> bool {
        self.0 & EVERYTHING != 0
    }

    /// Whether rows of the group may be touched.
    #[must_use]
    pub fn has(self, group: GroupId) -> bool {
        self.0 & (Self::group(group).0 | EVERYTHING) != 0
    }

    /// Whether tables may be touched that every shard has whole.
    #[must_use]
    pub fn has_references(self) -> bool {
        self.0 & (REFERENCES | EVERYTHING) != 0
    }
}

impl StatementPlan {
    /// The keys of a group whose rows this execution may touch; `None`: any.
    #[must_use]
    pub fn keys_of(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Option<Keys> {
        match &self.target {
            Target::ByKey(pins) if !self.touches.is_everything() => {
                pins.keys_of(group, snapshot, values)
            }
            // EXPLAIN (ROUTE) runs nothing.
            Target::Explain(_) => Some(Keys::new()),
            Target::ByKey(_) | Target::Fixed(_) | Target::Judge | Target::Refused(_) => None,
        }
    }
}

impl Pins {
    fn keys_of(&self, group: GroupId, snapshot: &Snapshot, values: &Values<'_>) -> Option<Keys> {
        let fixed = self.fixed.as_ref().map(|fixed| &fixed.why);
        if matches!(fixed, Some(Why::Override(_) | Why::Group)) {
            return None;
        }
        let pins = || self.pins.iter().filter(|pin| pin.group == group);
        pins().next()?;
        let mut keys = Keys::new();
        let look = Look {
            pins: self,
            snapshot,
            values,
        };
        for pin in pins() {
            look.pin(pin, &mut keys)?;
        }
        Some(keys)
    }
}

/// Looks for the keys of one execution.
struct Look<'a> {
    pins: &'a Pins,
    snapshot: &'a Snapshot,
    values: &'a Values<'a>,
}

impl Look<'_> {
    fn pin(&self, pin: &Pin, keys: &mut Keys) -> Option<()> {
        let purpose = match &pin.role {
            Role::Match => Purpose::Compare,
            Role::Insert => Purpose::Store,
            Role::Assign { old } => {
                self.value(pin, old, Purpose::Compare, keys)?;
                Purpose::Store
            }
        };
        self.condition(pin, &pin.condition, purpose, keys)
    }

    fn condition(
        &self,
        pin: &Pin,
        condition: &Condition,
        purpose: Purpose,
        keys: &mut Keys,
    ) -> Option<()> {
        match condition {
            Condition::Nothing => Some(()),
            Condition::Equal(value) => self.value(pin, value, purpose, keys),
            Condition::OneOf(list) => list
                .iter()
                .try_for_each(|value| self.value(pin, value, purpose, keys)),
            Condition::ElementOf(array) => {
                let key_type = self.snapshot.group(pin.group).key_type;
                let found = value::elements(array, key_type, self.values, self.pins.reading);
                keys.extend(found.ok()?);
                Some(())
            }
            Condition::Between { .. } => None,
            Condition::Either(parts) => parts
                .iter()
                .try_for_each(|part| self.condition(pin, part, purpose, keys)),
            // Every part names a superset of the keys.
            Condition::Both(parts) => parts.iter().find_map(|part| {
                let mut found = Keys::new();
                self.condition(pin, part, purpose, &mut found)?;
                keys.extend(found);
                Some(())
            }),
        }
    }

    fn value(&self, pin: &Pin, value: &Value, purpose: Purpose, keys: &mut Keys) -> Option<()> {
        let key_type = self.snapshot.group(pin.group).key_type;
        match value::key(value, key_type, self.values, self.pins.reading, purpose) {
            Ok(key) => keys.push(key),
            // Equal to no row's key.
            Err(Missing::Null | Missing::OutOfRange) => {}
            Err(Missing::Problem(_)) => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{
            group::{Group, Map, RangeEntry},
            key::KeyType,
            shard::ShardId,
            snapshot::{Placement, Table, TableName},
        },
        plan::{Context, cache::PlanCache, cache::Scratch},
    };

    /// `t` and `u` of group `g`, `v` of group `h`, all by `k`; `everywhere` on every shard, `alone` on one.
    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::new("shop", vec!["s0".to_owned(), "s1".to_owned()]);
        for name in ["g", "h"] {
            let entry = |to: Option<i64>, shard| RangeEntry {
                to: to.map(Key::Bigint),
                shard: ShardId(shard),
            };
            snapshot.groups.push(Group {
                name: name.to_owned(),
                key_type: KeyType::Bigint,
                pins: Default::default(),
                map: Map::range(vec![entry(Some(10), 0), entry(None, 1)]).unwrap(),
                doubled: Vec::new(),
            });
        }
        let sharded = |group| Placement::Sharded {
            group: GroupId(group),
            key_column: "k".to_owned(),
        };
        for (name, placement) in [
            ("t", sharded(0)),
            ("u", sharded(0)),
            ("v", sharded(1)),
            ("everywhere", Placement::Reference),
            ("alone", Placement::Single(ShardId(0))),
        ] {
            let mut table = Table::unasked(placement);
            table.columns = vec!["k".to_owned(), "n".to_owned()];
            let (schema, name) = ("public".to_owned(), name.to_owned());
            snapshot.tables.insert(TableName { schema, name }, table);
        }
        snapshot
    }

    /// Of each group that a statement may touch, its keys or `any`; and `all` for what every shard has.
    fn touched(text: &str) -> String {
        let snapshot = snapshot();
        let cache = PlanCache::new(1 << 20, 7);
        let context = Context {
            search_path: vec!["public".to_owned()],
            standard_conforming_strings: true,
            utf8: true,
            ..Context::default()
        };
        let mut scratch = Scratch::default();
        let planned = cache.plan(text.as_bytes(), &[], &context, &snapshot, &mut scratch);
        let values = Values {
            text: text.as_bytes(),
            slots: &planned.slots,
            types: &[],
            bind: None,
        };
        let mut told = Vec::new();
        for statement in &planned.plan.statements {
            let touches = statement.touches;
            for (name, group) in [("g", GroupId(0)), ("h", GroupId(1))] {
                if !touches.has(group) {
                    continue;
                }
                told.push(match statement.keys_of(group, &snapshot, &values) {
                    None => format!("{name} any"),
                    Some(keys) => {
                        let mut keys: Vec<String> = keys.iter().map(Key::text).collect();
                        keys.sort();
                        keys.dedup();
                        format!("{name} {}", keys.join(" "))
                    }
                });
            }
            if touches.has_references() {
                told.push("all".to_owned());
            }
        }
        told.join(", ")
    }

    #[test]
    fn keys_that_a_statement_names_are_what_it_touches() {
        for (text, expected) in [
            ("select n from t where k = 5", "g 5"),
            ("select n from t where k in (5, 70)", "g 5 70"),
            ("select n from t where k = any ('{5, 70}')", "g 5 70"),
            ("select n from t where k = 5 or k = 6 and n = 1", "g 5 6"),
            ("select n from t where k = 5 and n < 3", "g 5"),
            ("select n from t where k = null", "g "),
            ("insert into t (k, n) values (5, 1), (70, 2)", "g 5 70"),
            ("update t set n = 1 where k = 5", "g 5"),
            // Where the row was, and where it goes.
            ("update t set k = 70 where k = 5", "g 5 70"),
            ("delete from t where k = 5", "g 5"),
            ("select t.n from t join u on t.k = u.k where t.k = 5", "g 5"),
            (
                "select t.n from t join everywhere e on e.n = t.n where t.k = 5",
                "g 5, all",
            ),
        ] {
            assert_eq!(touched(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_everything() {
        for (text, expected) in [
            ("select n from t", "g any"),
            ("select n from t where k between 5 and 6", "g any"),
            ("select n from t where k = n", "g any"),
            ("select n from t where k = 5 or n = 1", "g any"),
            ("update t set n = 1", "g any"),
            ("delete from t where n = 1", "g any"),
            ("copy t from stdin", "g any"),
            ("select n from v where k = 5", "h 5"),
            ("insert into everywhere values (1, 1)", "all"),
            ("select n from alone", ""),
            ("select 1", ""),
            (
                "/* shardway: shard=s0 */ select n from t where k = 5",
                "g any",
            ),
            ("/* shardway: shard=s0 */ truncate t", "g any, h any, all"),
            ("truncate t", "g any"),
        ] {
            assert_eq!(touched(text), expected, "{text}");
        }
    }

    #[test]
    fn groups_beyond_those_that_have_a_bit_share_one() {
        let (last, beyond) = (GroupId(SHARED), GroupId(SHARED + 9));
        assert!(
            Touches::group(last).has(beyond),
            "never less than is touched"
        );
        assert!(!Touches::group(GroupId(SHARED - 1)).has(last));
        assert!(!Touches::group(beyond).has_references());
        assert!(Touches::EVERYTHING.has(beyond) && Touches::EVERYTHING.has_references());
        assert!(Touches::REFERENCES.has_references() && !Touches::REFERENCES.has(last));
        assert!(Touches::NOTHING.is_nothing() && !Touches::NOTHING.has(GroupId(0)));
        let both = Touches::group(GroupId(0)).and(Touches::EVERYTHING);
        assert!(both.is_everything() && both.has(last));
    }
}
