//! What each shard is sent of a statement while rows of its tables are also on shards that do not own them: every scan of
//! such a table carries the condition that the shard owns the row. Pure.
//!
//! What must stay true: a relation keeps its name, its columns, its row type and its system columns, so that the rest of
//! the statement means what it meant; no scan is left without its condition, and what cannot carry it is refused. A
//! relation in FROM becomes `(t AS x JOIN (SELECT) AS … ON owned)`: a join with one row of no columns.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "commands read and change no rows of their own here"
)]

mod copies;
mod sites;

use super::{
    Context,
    block::Analysis,
    scope::{Instance, Usage},
    unroutable::{Undoubled, Unroutable},
};
use crate::{
    catalog::{group::Group, shard::ShardId, snapshot::Snapshot},
    sql::{
        normalize::{Slots, Strings, normalize},
        parse,
        scan::pieces,
        tree::Kind,
    },
};

pub use copies::TableCopy;
use sites::{Layout, Site};

/// One text as each shard is sent it.
#[derive(Clone, Debug)]
pub struct PerShard {
    text: String,
    /// Of shards that have rows which they do not own.
    others: Vec<Other>,
}

/// The text for one shard.
#[derive(Clone, Debug)]
struct Other {
    shard: ShardId,
    text: String,
    /// In order: where it differs in the text, in characters, how many are left out there, and how many put in.
    changes: Vec<(usize, usize, usize)>,
}

impl PerShard {
    /// What the shards are sent of a statement that concerns several of them.
    ///
    /// # Errors
    /// [`Unroutable::Doubled`]: some scan cannot carry the condition.
    pub fn of(
        text: String,
        context: &Context,
        snapshot: &Snapshot,
    ) -> Result<Self, Box<Unroutable>> {
        let doubled = snapshot.groups.iter().find(|group| group.is_doubled());
        let others = match doubled {
            None => Vec::new(),
            Some(group) => others(&text, context, snapshot, group)?,
        };
        Ok(Self { text, others })
    }

    /// What this shard is sent.
    #[must_use]
    pub fn on(&self, shard: ShardId) -> &str {
        self.other(shard)
            .map_or(&self.text, |other| other.text.as_str())
    }

    /// Where a place in what the shard was sent stands in the text, both in characters from 1; `None`: nowhere.
    #[must_use]
    pub fn own_place(&self, shard: ShardId, place: usize) -> Option<usize> {
        let Some(other) = self.other(shard) else {
            return Some(place);
        };
        let place = place.checked_sub(1)?;
        // How far what follows has been shifted.
        let (mut added, mut left_out) = (0, 0);
        for (at, out, new) in &other.changes {
            let here = at + added - left_out;
            if place < here {
                break;
            }
            if place < here + new {
                return None;
            }
            added += new;
            left_out += out;
        }
        Some(place + left_out - added + 1)
    }

    fn other(&self, shard: ShardId) -> Option<&Other> {
        self.others.iter().find(|other| other.shard == shard)
    }
}

impl Group {
    /// Whether rows of some keys are also on a shard that does not own them.
    #[must_use]
    pub fn is_doubled(&self) -> bool {
        !self.doubled.is_empty()
    }
}

/// The texts of shards that have rows which they do not own.
fn others(
    text: &str,
    context: &Context,
    snapshot: &Snapshot,
    group: &Group,
) -> Result<Vec<Other>, Box<Unroutable>> {
    let refused = |what| {
        let group = group.name.clone();
        Box::new(Unroutable::Doubled { group, what })
    };
    let statements = parse::parse(text).map_err(|_error| refused(Undoubled::Text))?;
    let [statement] = statements.as_slice() else {
        return Err(refused(Undoubled::Text));
    };
    let Some(kind) = rows(&statement.kind) else {
        return Ok(Vec::new());
    };
    let strings = if context.standard_conforming_strings {
        Strings::Standard
    } else {
        Strings::Escapes
    };
    let slots = slots_of(text, strings);
    let mut analysis = Analysis::new(text.as_bytes(), &slots, context, snapshot);
    analysis.kind(kind, None);
    let is_doubled = |one: &&Instance| snapshot.group(one.group).is_doubled();
    let mut scans: Vec<&Instance> = analysis.instances.iter().filter(is_doubled).collect();
    if scans.is_empty() {
        return Ok(Vec::new());
    }
    // What ends where a change begins stands before it.
    scans.sort_by_key(|one| (one.usage != Usage::Read, one.location));
    scans.dedup_by_key(|one| one.location);
    let pieces = pieces(text, &slots).ok_or_else(|| refused(Undoubled::Text))?;
    let layout = Layout {
        pieces: &pieces,
        statement,
        analysis: &analysis,
    };
    let sites = scans.iter().enumerate().map(|(number, scan)| {
        let site = layout.site(scan, number);
        site.map_err(|what| {
            let group = snapshot.group(scan.group).name.clone();
            Box::new(Unroutable::Doubled { group, what })
        })
    });
    let sites: Vec<Site> = sites.collect::<Result<_, _>>()?;
    let shards = (0..snapshot.shards.len()).filter_map(|at| u16::try_from(at).ok());
    let made = shards.map(|shard| other(text, &sites, ShardId(shard), snapshot));
    made.filter_map(Result::transpose).collect()
}

/// The text for this shard; `None`: it owns all that it has.
fn other(
    text: &str,
    sites: &[Site],
    shard: ShardId,
    snapshot: &Snapshot,
) -> Result<Option<Other>, Box<Unroutable>> {
    let mut edits = Vec::new();
    for site in sites {
        let group = snapshot.group(site.group);
        let owned = group.owned_sql(shard, &site.column).map_err(|_no_sql| {
            Box::new(Unroutable::Doubled {
                group: group.name.clone(),
                what: Undoubled::Hash,
            })
        })?;
        if let Some(owned) = owned {
            edits.extend(site.edits(&owned));
        }
    }
    if edits.is_empty() {
        return Ok(None);
    }
    edits.sort_by_key(|(place, _)| place.start);
    let (mut made, mut changes) = (String::new(), Vec::new());
    let (mut at, mut characters) = (0, 0);
    for (place, new) in edits {
        let kept = text.get(at..place.start).unwrap_or_default();
        made.push_str(kept);
        made.push_str(&new);
        characters += kept.chars().count();
        let out = text.get(place.clone()).unwrap_or_default().chars().count();
        changes.push((characters, out, new.chars().count()));
        characters += out;
        at = place.end;
    }
    made.push_str(text.get(at..).unwrap_or_default());
    Ok(Some(Other {
        shard,
        text: made,
        changes,
    }))
}

/// The query or write that a statement is, holds, or explains; `None`: a command.
fn rows(kind: &Kind) -> Option<&Kind> {
    match kind {
        Kind::Query(_) | Kind::Insert(_) | Kind::Update(_) | Kind::Delete(_) | Kind::Merge(_) => {
            Some(kind)
        }
        Kind::Explain { inner, .. } => rows(inner),
        Kind::Declare { query, .. } => rows(query),
        Kind::Copy(copy) => rows(copy.query.as_deref()?),
        _ => None,
    }
}

fn slots_of(text: &str, strings: Strings) -> Slots {
    let (mut template, mut slots) = (Vec::new(), Slots::new());
    normalize(text.as_bytes(), strings, &mut template, &mut slots);
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{
        group::{GroupId, Map, RangeEntry},
        key::{Key, KeyType},
        moving::{Doubled, KeySet, Part},
        snapshot::{Placement, Table, TableName},
    };

    /// Keys below 10 on s0, of which s1 has those below 5 too.
    fn snapshot() -> Snapshot {
        let shards = vec!["s0".to_owned(), "s1".to_owned()];
        let mut snapshot = Snapshot::new("shop", shards);
        let entry = |to: Option<i64>, shard| RangeEntry {
            to: to.map(Key::Bigint),
            shard: ShardId(shard),
        };
        let keys = KeySet::of(Part::Values(vec![Key::Bigint(1)]));
        snapshot.groups.push(Group {
            name: "g".to_owned(),
            key_type: KeyType::Bigint,
            pins: std::collections::BTreeMap::default(),
            map: Map::range(vec![entry(Some(10), 0), entry(None, 1)]).unwrap(),
            doubled: vec![Doubled {
                shard: ShardId(1),
                keys,
            }],
        });
        for (name, columns) in [("t", vec!["n", "k"]), ("u", vec![]), ("apart", vec![])] {
            let placement = if name == "apart" {
                Placement::Reference
            } else {
                Placement::Sharded {
                    group: GroupId(0),
                    key_column: "k".to_owned(),
                }
            };
            let mut table = Table::unasked(placement);
            table.columns = columns.into_iter().map(str::to_owned).collect();
            let (schema, name) = ("public".to_owned(), name.to_owned());
            snapshot.tables.insert(TableName { schema, name }, table);
        }
        snapshot
    }

    fn made(text: &str) -> PerShard {
        PerShard::of(text.to_owned(), &Context::default(), &snapshot()).unwrap()
    }

    /// What the shard with rows of others is sent; the condition shortened.
    fn sent(text: &str) -> String {
        let made = made(text);
        assert_eq!(made.on(ShardId(0)), text);
        let mut sent = made.on(ShardId(1)).to_owned();
        for called in ["t", "u", "x", "y", "X y"] {
            for key in ["k", "b"] {
                let owned = format!("(((\"{called}\".\"{key}\" IN ('1'::bigint))) IS NOT TRUE)");
                sent = sent.replace(&owned, &format!("own({called}.{key})"));
            }
        }
        sent.replace("JOIN (SELECT) AS \"shardway owned ", "+ \"")
    }

    #[test]
    fn every_scan_in_from_is_joined_with_nothing_on_its_condition() {
        for (text, expected) in [
            ("select * from t", "select * from (t + \"0\" ON own(t.k))"),
            ("table only t", "SELECT * FROM (only t + \"0\" ON own(t.k))"),
            (
                "select * from only (public . t) as x tablesample pg_catalog.system (5) repeatable (1), u y -- c\n where x.k = y.k",
                "select * from (only (public . t) as x tablesample pg_catalog.system (5) repeatable (1) + \"0\" ON own(x.k)), \
                 (u y + \"1\" ON own(y.k)) -- c\n where x.k = y.k",
            ),
            (
                "select 'from t' from apart left join (t full join u * \"X y\" using (k)) on exists (select from t)",
                "select 'from t' from apart left join ((t + \"0\" ON own(t.k)) full join (u * \"X y\" + \"1\" ON own(X y.k)) using (k)) \
                 on exists (select from (t + \"2\" ON own(t.k)))",
            ),
            (
                "with t as (select * from t) select * from t union all select * from public.t",
                "with t as (select * from (t + \"0\" ON own(t.k))) select * from t union all select * from (public.t + \"1\" ON own(t.k))",
            ),
            (
                "select x.b from t x(a, b)",
                "select x.b from (t x(a, b) + \"0\" ON own(x.b))",
            ),
            (
                "select x.b from only u as x(a, b) for update",
                "select x.b from (SELECT * FROM only u WHERE own(u.k)) as x(a, b) for update",
            ),
            (
                "explain (costs off) select k from t",
                "explain (costs off) select k from (t + \"0\" ON own(t.k))",
            ),
            (
                "declare c cursor for select k from t",
                "declare c cursor for select k from (t + \"0\" ON own(t.k))",
            ),
            (
                "copy (select k from t) to stdout",
                "copy (select k from (t + \"0\" ON own(t.k))) to stdout",
            ),
            ("select * from apart", "select * from apart"),
        ] {
            assert_eq!(sent(text), expected);
        }
    }

    #[test]
    fn what_is_changed_has_the_condition_in_its_where() {
        for (text, expected) in [
            ("delete from t", "delete from t WHERE own(t.k)"),
            (
                "delete from only t as x where n = 1 or n = 2 returning x.*;",
                "delete from only t as x where own(x.k) AND ( n = 1 or n = 2) returning x.*;",
            ),
            (
                "update t set n = (select max(n) from u where u.k = t.k) returning n",
                "update t set n = (select max(n) from (u + \"0\" ON own(u.k)) where u.k = t.k) WHERE own(t.k) returning n",
            ),
            (
                "update t x set n = 1 from u",
                "update t x set n = 1 from (u + \"0\" ON own(u.k)) WHERE own(x.k)",
            ),
            (
                "insert into u select k from t on conflict do nothing",
                "insert into u select k from (t + \"0\" ON own(t.k)) on conflict do nothing",
            ),
            (
                "merge into t x using u y on case when true then x.k end = y.k when matched then delete",
                "merge into t x using (u y + \"0\" ON own(y.k)) on own(x.k) AND ( case when true then x.k end = y.k) when matched then delete",
            ),
        ] {
            assert_eq!(sent(text), expected);
        }
    }

    #[test]
    fn what_cannot_carry_the_condition_is_refused() {
        for (text, what) in [
            ("delete from t where current of c", Undoubled::CurrentOf),
            (
                "merge into t using u on t.k = u.k when not matched by source then delete",
                Undoubled::MergeBySource,
            ),
            (
                "select * from u as x(a) tablesample system (5)",
                Undoubled::ColumnAliases,
            ),
            ("select 1 from t; select 2", Undoubled::Text),
        ] {
            let made = PerShard::of(text.to_owned(), &Context::default(), &snapshot());
            let group = "g".to_owned();
            assert_eq!(
                made.err().as_deref(),
                Some(&Unroutable::Doubled { group, what }),
                "{text}"
            );
        }
    }

    #[test]
    fn places_are_those_of_the_clients_text() {
        let text = "select 'ü', t.a from t, u where wrong";
        let made = made(text);
        let found = |word: &str, text: &str| text[..text.find(word).unwrap()].chars().count() + 1;
        for word in ["t.a", "t,", "u where", "where wrong", "wrong"] {
            let word = if word == "t," { ", " } else { word };
            let there = match word {
                "u where" => found("(u JOIN", made.on(ShardId(1))) + 1,
                ", " => found(", (u", made.on(ShardId(1))),
                word => found(word, made.on(ShardId(1))),
            };
            let own = if word == ", " {
                found(", u", text)
            } else {
                found(word, text)
            };
            assert_eq!(made.own_place(ShardId(1), there), Some(own), "{word}");
            assert_eq!(made.own_place(ShardId(0), own), Some(own));
        }
        let inside = found("JOIN", made.on(ShardId(1)));
        assert_eq!(made.own_place(ShardId(1), inside), None);
    }
}
