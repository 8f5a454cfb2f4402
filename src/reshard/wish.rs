//! What an operator wants of a reshard, as moves of keys. Pure.
//!
//! What must stay true: nothing moves that need not: of all maps that give what is wanted, one with the fewest buckets, ranges
//! or values in another place; what cannot be moved as it was said is an error, never something like it.

use crate::catalog::{
    key::{Key, KeyType},
    moving::{KeySet, Move, Part},
    ownership::{Ownership, Unmovable},
};
use std::collections::{BTreeMap, BTreeSet};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// All keys are spread evenly over these shards, and no other has any.
    Spread {
        /// Of this group only.
        group: Option<String>,
        to: Vec<String>,
    },
    /// Some keys go to a shard.
    Move {
        /// May be left out if the database has one.
        group: Option<String>,
        what: What,
        shard: String,
    },
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// From the first to the last.
    Buckets(u32, u32),
    /// From the first, which is in it, to the second, which is not; empty: no bound.
    Range(String, String),
    /// All that the group's list says of it; or a single key of a hash or range group.
    Key(String),
}

/// Keys of a group as they are spread: some of them, in any order, each for so many rows.
pub type Sample = Vec<(Key, f64)>;

/// Why there are no moves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMoves {
    #[error(
        "{0:?} is not understood: buckets=A-B:shard, range=[a,b):shard, value=x:shard or key=shard"
    )]
    Syntax(String),
    #[error("the database has several groups: say which with --group ({0})")]
    WhichGroup(String),
    #[error("the map has no group {name}: it has {known}")]
    NoGroup { name: String, known: String },
    #[error("the configuration has no shard {0}")]
    NoShard(String),
    #[error("{text:?} is no {key_type} key: write it as PostgreSQL reads a {key_type}")]
    NoKey {
        text: String,
        key_type: &'static str,
    },
    #[error(
        "group {group} has no {what}: a hash group moves by buckets=A-B:shard, a range group by range=[a,b):shard, a list group by \
         value=x:shard, and single keys of each by --pin key=shard"
    )]
    OtherMethod { group: String, what: &'static str },
    #[error(
        "group {group} has buckets 0 to {last}: name some of them, the lower first, as buckets=A-B:shard"
    )]
    NoBucket { group: String, last: u32 },
    #[error(
        "the range has no keys: its first bound is in it, and has to be less than the second, which is not"
    )]
    EmptyRange,
    #[error(
        "key {0} has no owner: no range or value of its group's map has it; give it one in the configuration of every proxy \
         (lists, or \"*\" for all others), then no row has to move"
    )]
    NoOwner(String),
    #[error(
        "the {count} ranges of group {group} cannot be spread over {shards} shards: say which ranges move"
    )]
    FewRanges {
        group: String,
        count: usize,
        shards: usize,
    },
    #[error(
        "group {group} has too few different keys to be spread over {shards} shards: say which ranges move"
    )]
    FewKeys { group: String, shards: usize },
    #[error("shard {0} is named twice: name each shard of --to once")]
    ShardTwice(String),
    #[error(transparent)]
    Unmovable(#[from] Unmovable),
    #[error(
        "every key is where it is to be already: name other shards or other keys (plan shows what would move)"
    )]
    Nothing,
}

impl Wish {
    /// `buckets=0-127:s3`, `range=[100,200):s3`, `value=eu:s3`.
    ///
    /// # Errors
    /// [`NoMoves::Syntax`].
    pub fn of_move(text: &str, group: Option<String>) -> Result<Self, NoMoves> {
        let syntax = || NoMoves::Syntax(text.to_owned());
        let (what, shard) = text.rsplit_once(':').ok_or_else(syntax)?;
        let (kind, value) = what.split_once('=').ok_or_else(syntax)?;
        let what = match kind {
            "buckets" => {
                let (first, last) = value.split_once('-').unwrap_or((value, value));
                let number = |text: &str| text.trim().parse().map_err(|_error| syntax());
                What::Buckets(number(first)?, number(last)?)
            }
            "range" => {
                let inside = value.strip_prefix('[').and_then(|it| it.strip_suffix(')'));
                let (from, to) = inside
                    .and_then(|it| it.split_once(','))
                    .ok_or_else(syntax)?;
                What::Range(from.trim().to_owned(), to.trim().to_owned())
            }
            "value" => What::Key(value.to_owned()),
            _ => return Err(syntax()),
        };
        let shard = shard.to_owned();
        Ok(Self::Move { group, what, shard })
    }

    /// `tenant-42=s3`.
    ///
    /// # Errors
    /// [`NoMoves::Syntax`].
    pub fn of_pin(text: &str, group: Option<String>) -> Result<Self, NoMoves> {
        let (key, shard) = text
            .rsplit_once('=')
            .ok_or_else(|| NoMoves::Syntax(text.to_owned()))?;
        Ok(Self::Move {
            group,
            what: What::Key(key.to_owned()),
            shard: shard.to_owned(),
        })
    }
}

/// The moves that lead from the owners to what is wanted; `shards` are all of the configuration.
///
/// # Errors
/// [`NoMoves`].
pub fn moves(
    owners: &Ownership,
    wishes: &[Wish],
    shards: &BTreeSet<String>,
) -> Result<Vec<Move>, NoMoves> {
    moves_by(owners, wishes, shards, &BTreeMap::new())
}

/// The same, with what is known of how the keys of groups are spread: for those with fewer ranges than shards, see [`cut`].
///
/// # Errors
/// [`NoMoves`].
pub fn moves_by(
    owners: &Ownership,
    wishes: &[Wish],
    shards: &BTreeSet<String>,
    samples: &BTreeMap<String, Sample>,
) -> Result<Vec<Move>, NoMoves> {
    let mut after = owners.clone();
    for wish in wishes {
        let named: Vec<&String> = match wish {
            Wish::Spread { to, .. } => to.iter().collect(),
            Wish::Move { shard, .. } => vec![shard],
        };
        if let Some(unknown) = named.into_iter().find(|name| !shards.contains(*name)) {
            return Err(NoMoves::NoShard(unknown.clone()));
        }
        let moves = match wish {
            Wish::Spread { group, to } => spread(&after, group.as_deref(), to, samples)?,
            Wish::Move { group, what, shard } => {
                let group = one_group(&after, group.as_deref())?;
                moved(&after, &group, what, shard)?
            }
        };
        after = after.apply(&moves)?;
    }
    // One move of each key, however many wishes it is in.
    let moves = Ownership::differences(owners, &after)?;
    if moves.is_empty() {
        return Err(NoMoves::Nothing);
    }
    Ok(moves)
}

fn one_group(owners: &Ownership, named: Option<&str>) -> Result<String, NoMoves> {
    let Some(named) = named else {
        let mut groups = owners.groups();
        return match (groups.next(), groups.next()) {
            (Some(one), None) => Ok(one.to_owned()),
            _ => Err(NoMoves::WhichGroup(known(owners))),
        };
    };
    if owners.has(named) {
        Ok(named.to_owned())
    } else {
        Err(no_group(owners, named))
    }
}

fn no_group(owners: &Ownership, name: &str) -> NoMoves {
    NoMoves::NoGroup {
        name: name.to_owned(),
        known: known(owners),
    }
}

/// Every group, for people.
fn known(owners: &Ownership) -> String {
    owners.groups().collect::<Vec<_>>().join(", ")
}

/// What each shard owns of a group.
fn owned(owners: &Ownership, group: &str) -> Result<BTreeMap<String, KeySet>, NoMoves> {
    let mut all = BTreeMap::new();
    for shard in owners.shards() {
        let keys = owners.sets_of(group, &shard);
        let keys = keys.ok_or_else(|| Unmovable::Hash(group.to_owned()))?;
        if keys.part != Part::None || !keys.with.is_empty() {
            all.insert(shard, keys);
        }
    }
    Ok(all)
}

fn key(owners: &Ownership, group: &str, text: &str) -> Result<Key, NoMoves> {
    let key_type: Option<KeyType> = owners.key_type(group);
    let key_type = key_type.ok_or_else(|| no_group(owners, group))?;
    key_type
        .from_text(text.as_bytes())
        .map_err(|_error| NoMoves::NoKey {
            text: text.to_owned(),
            key_type: key_type.name(),
        })
}

/// The moves of some keys of a group to one shard.
fn moved(owners: &Ownership, group: &str, what: &What, shard: &str) -> Result<Vec<Move>, NoMoves> {
    if let What::Key(text) = what {
        let key = key(owners, group, text)?;
        let from = owners.owner(group, &key);
        let from = from.ok_or_else(|| NoMoves::NoOwner(text.clone()))?;
        let keys = KeySet {
            part: Part::None,
            with: vec![key],
            without: Vec::new(),
        };
        let moved = (from != shard).then(|| one(group, keys, from, shard));
        return Ok(moved.into_iter().collect());
    }
    let owned = owned(owners, group)?;
    let mut moves = Vec::new();
    for (from, set) in owned.iter().filter(|(from, _)| *from != shard) {
        let part = match (what, &set.part) {
            (What::Buckets(first, last), Part::Buckets { of, runs }) => {
                if first > last || last >= of {
                    let (group, last) = (group.to_owned(), of - 1);
                    return Err(NoMoves::NoBucket { group, last });
                }
                let runs = runs
                    .iter()
                    .map(|(from, to)| ((*from).max(*first), (*to).min(last + 1)));
                Part::Buckets {
                    of: *of,
                    runs: runs.filter(|(from, to)| from < to).collect(),
                }
            }
            (What::Range(from, to), Part::Ranges(ranges)) => {
                let bound = |text: &String| {
                    let bounded = !text.is_empty();
                    bounded.then(|| key(owners, group, text)).transpose()
                };
                let (from, to) = (bound(from)?, bound(to)?);
                if from.is_some() && to.is_some() && from >= to {
                    return Err(NoMoves::EmptyRange);
                }
                within(ranges, from.as_ref(), to.as_ref())
            }
            // Only single keys of it are here.
            (_, Part::None) => continue,
            (What::Buckets(..), _) => return Err(other_method(group, "buckets")),
            (What::Range(..) | What::Key(_), _) => return Err(other_method(group, "ranges")),
        };
        if !is_empty(&part) {
            moves.push(one(group, without_pins(part, set), from, shard));
        }
    }
    Ok(moves)
}

fn other_method(group: &str, what: &'static str) -> NoMoves {
    NoMoves::OtherMethod {
        group: group.to_owned(),
        what,
    }
}

fn one(group: &str, keys: KeySet, from: &str, to: &str) -> Move {
    Move {
        group: group.to_owned(),
        keys,
        from: from.to_owned(),
        to: to.to_owned(),
    }
}

/// What of some ranges is between two bounds.
fn within(ranges: &[(Option<Key>, Option<Key>)], from: Option<&Key>, to: Option<&Key>) -> Part {
    let each = ranges.iter().map(|range| {
        let low = range.0.clone().max(from.cloned());
        (low, least(range.1.clone(), to.cloned()))
    });
    Part::Ranges(each.filter(is_range).collect())
}

/// The lesser of two upper bounds, of which none is the greatest.
fn least(one: Option<Key>, other: Option<Key>) -> Option<Key> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn is_range((from, to): &(Option<Key>, Option<Key>)) -> bool {
    match (from, to) {
        (Some(from), Some(to)) => from < to,
        _ => true,
    }
}

fn is_empty(part: &Part) -> bool {
    match part {
        Part::None => true,
        Part::Buckets { runs, .. } => runs.is_empty(),
        Part::Ranges(ranges) => ranges.is_empty(),
        Part::Values(values) => values.is_empty(),
        Part::Others(_) => false,
    }
}

/// A part of what a shard owns: single keys that are elsewhere stay there.
fn without_pins(part: Part, of: &KeySet) -> KeySet {
    let part = KeySet::of(part);
    let without = of.without.iter().filter(|key| part.contains(key));
    KeySet {
        without: without.cloned().collect(),
        ..part
    }
}

/// The moves after which every group, or the one that is named, is spread evenly over the shards.
fn spread(
    owners: &Ownership,
    only: Option<&str>,
    to: &[String],
    samples: &BTreeMap<String, Sample>,
) -> Result<Vec<Move>, NoMoves> {
    if let Some(unknown) = only.filter(|name| !owners.has(name)) {
        return Err(no_group(owners, unknown));
    }
    let twice = (1..to.len()).find(|at| to[..*at].contains(&to[*at]));
    if let Some(at) = twice {
        return Err(NoMoves::ShardTwice(to[at].clone()));
    }
    let mut moves = Vec::new();
    let groups = owners.groups();
    for group in groups.filter(|group| only.is_none_or(|only| only == *group)) {
        let owned = owned(owners, group)?;
        let pieces: BTreeMap<&String, Vec<Part>> = owned
            .iter()
            .map(|(shard, set)| (shard, pieces(&set.part)))
            .collect();
        let count: usize = pieces.values().map(Vec::len).sum();
        let is_range = owned
            .values()
            .any(|set| matches!(set.part, Part::Ranges(_)));
        if count < to.len() && is_range {
            let sample = samples.get(group).ok_or_else(|| NoMoves::FewRanges {
                group: group.to_owned(),
                count,
                shards: to.len(),
            })?;
            moves.extend(recut(owners, group, &owned, to, sample)?);
        } else {
            for (from, to, parts) in even(&pieces, to, count) {
                let Some(set) = owned.get(&from) else {
                    continue;
                };
                if let Some(part) = joined(parts) {
                    moves.push(one(group, without_pins(part, set), &from, &to));
                }
            }
        }
        // Single keys go with their shard.
        let first = to.first().cloned().unwrap_or_default();
        for (shard, set) in owned.iter().filter(|(shard, _)| !to.contains(shard)) {
            if !set.with.is_empty() {
                let keys = KeySet {
                    part: Part::None,
                    with: set.with.clone(),
                    without: Vec::new(),
                };
                moves.push(one(group, keys, shard, &first));
            }
        }
    }
    Ok(moves)
}

/// Whether an even split of a group over so many shards needs bounds that it does not have: [`cut`].
#[must_use]
pub fn needs_bounds(owners: &Ownership, group: &str, shards: usize) -> bool {
    let (unit, held) = owners.held(group);
    let ranges: usize = held.values().map(|(ranges, _)| ranges).sum();
    unit == "ranges" && ranges < shards
}

/// Bounds between which there are about as many rows each; `None`: there are too few keys.
#[must_use]
pub fn cut(sample: &Sample, count: usize) -> Option<Vec<Key>> {
    let mut keys: Vec<&(Key, f64)> = sample.iter().collect();
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    let all: f64 = keys.iter().map(|(_, rows)| rows).sum();
    let mut bounds: Vec<Key> = Vec::new();
    let mut before = 0.0;
    let mut last = None;
    for (key, rows) in keys {
        let share = (bounds.len() + 1) as f64 / count as f64;
        let is_new = last.is_some_and(|last| last < key);
        if is_new && bounds.len() + 1 < count && before >= all * share {
            bounds.push(key.clone());
        }
        before += rows;
        last = Some(key);
    }
    (bounds.len() + 1 == count).then_some(bounds)
}

/// The moves to ranges with about as many rows each. Each range stays with the shard that has most of it, as far as it can.
fn recut(
    owners: &Ownership,
    group: &str,
    owned: &BTreeMap<String, KeySet>,
    to: &[String],
    sample: &Sample,
) -> Result<Vec<Move>, NoMoves> {
    let bounds = cut(sample, to.len()).ok_or_else(|| NoMoves::FewKeys {
        group: group.to_owned(),
        shards: to.len(),
    })?;
    let mut rows: BTreeMap<(usize, &String), f64> = BTreeMap::new();
    for (key, count) in sample {
        let range = bounds.partition_point(|bound| bound <= key);
        let owner = owners.owner(group, key);
        if let Some(owner) = to.iter().find(|shard| Some(shard.as_str()) == owner) {
            *rows.entry((range, owner)).or_default() += count;
        }
    }
    let mut ranked: Vec<_> = rows.into_iter().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut given: BTreeMap<usize, &String> = BTreeMap::new();
    for ((range, shard), _) in ranked {
        if !given.contains_key(&range) && given.values().all(|it| *it != shard) {
            given.insert(range, shard);
        }
    }
    for range in 0..to.len() {
        let free = to.iter().find(|it| given.values().all(|has| has != it));
        if let (false, Some(free)) = (given.contains_key(&range), free) {
            given.insert(range, free);
        }
    }
    let mut moves = Vec::new();
    for (range, shard) in given {
        let low = range.checked_sub(1).and_then(|at| bounds.get(at));
        for (from, set) in owned.iter().filter(|(from, _)| *from != shard) {
            if let Part::Ranges(ranges) = &set.part {
                let part = within(ranges, low, bounds.get(range));
                if !is_empty(&part) {
                    moves.push(one(group, without_pins(part, set), from, shard));
                }
            }
        }
    }
    Ok(moves)
}

/// The least that can be given away: a bucket, a range, a value.
fn pieces(part: &Part) -> Vec<Part> {
    match part {
        Part::None => Vec::new(),
        Part::Buckets { of, runs } => {
            let buckets = runs.iter().flat_map(|(from, to)| *from..*to);
            let bucket = |at| Part::Buckets {
                of: *of,
                runs: vec![(at, at + 1)],
            };
            buckets.map(bucket).collect()
        }
        Part::Ranges(ranges) => {
            let ranges = ranges.iter().cloned();
            ranges.map(|range| Part::Ranges(vec![range])).collect()
        }
        Part::Values(values) => {
            let values = values.iter().cloned();
            values.map(|value| Part::Values(vec![value])).collect()
        }
        Part::Others(_) => vec![part.clone()],
    }
}

/// Who gives which pieces to whom so that each of the shards has as many as the others, or one more: those with the most
/// keep one more.
fn even(
    pieces: &BTreeMap<&String, Vec<Part>>,
    to: &[String],
    count: usize,
) -> Vec<(String, String, Vec<Part>)> {
    let has = |shard: &String| pieces.get(shard).map_or(0, Vec::len);
    let each = count.checked_div(to.len()).unwrap_or(0);
    let more = count.checked_rem(to.len()).unwrap_or(0);
    let mut ranked: Vec<&String> = to.iter().collect();
    // Stable: the order in which they were named.
    ranked.sort_by_key(|shard| std::cmp::Reverse(has(shard)));
    let quota: BTreeMap<&String, usize> = ranked
        .iter()
        .enumerate()
        .map(|(at, shard)| (*shard, each + usize::from(at < more)))
        .collect();
    let mut spare: Vec<(String, Part)> = Vec::new();
    for (shard, parts) in pieces {
        let keeps = quota.get(shard).copied().unwrap_or(0);
        let given = parts.iter().skip(keeps);
        spare.extend(given.map(|part| ((*shard).clone(), part.clone())));
    }
    let mut given: BTreeMap<(String, String), Vec<Part>> = BTreeMap::new();
    let mut spare = spare.into_iter();
    for shard in to {
        let lacks = quota
            .get(shard)
            .copied()
            .unwrap_or(0)
            .saturating_sub(has(shard));
        for (from, part) in spare.by_ref().take(lacks) {
            given.entry((from, shard.clone())).or_default().push(part);
        }
    }
    let given = given.into_iter();
    given.map(|((from, to), parts)| (from, to, parts)).collect()
}

/// Pieces of one kind as one part; neighbouring buckets are one run.
fn joined(parts: Vec<Part>) -> Option<Part> {
    let mut parts = parts.into_iter();
    let mut all = parts.next()?;
    for part in parts {
        match (&mut all, part) {
            (Part::Buckets { runs, .. }, Part::Buckets { runs: more, .. }) => {
                for (from, to) in more {
                    match runs.last_mut() {
                        Some((_, end)) if *end == from => *end = to,
                        _ => runs.push((from, to)),
                    }
                }
            }
            (Part::Ranges(ranges), Part::Ranges(more)) => ranges.extend(more),
            (Part::Values(values), Part::Values(more)) => values.extend(more),
            _ => {}
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::load_str;
    use std::path::Path;

    fn of(groups: &str) -> Ownership {
        let shards: String = (0..2)
            .map(|at| format!("shards.s{at} = {{ primary = \"postgres://h{at}/app\" }}\n"))
            .collect();
        let text = format!("[databases.app]\n{shards}{groups}");
        let settings = load_str("test", &text, Path::new("."))
            .unwrap_or_else(|errors| panic!("{}", errors.render()));
        Ownership::of(&settings.databases["app"].snapshot)
    }

    fn group(more: &str) -> Ownership {
        of(&format!(
            "[databases.app.groups.g]\n{more}\ntables = {{ \"public.t\" = \"id\" }}"
        ))
    }

    fn names() -> BTreeSet<String> {
        (0..4).map(|at| format!("s{at}")).collect()
    }

    fn to(count: usize) -> Wish {
        all_to((0..count).map(|at| format!("s{at}")).collect())
    }

    fn all_to(to: Vec<String>) -> Wish {
        Wish::Spread { group: None, to }
    }

    fn shown(moves: &[Move]) -> Vec<String> {
        let one = |it: &Move| format!("{} to {}: {:?}", it.from, it.to, it.keys.part);
        moves.iter().map(one).collect()
    }

    #[test]
    fn an_even_split_moves_the_fewest_buckets() {
        let before = group("method = \"hash\"\nkey_type = \"bigint\"\nbuckets = 16");
        let moves_to = |before: &Ownership, count| moves(before, &[to(count)], &names());
        let three = moves_to(&before, 3).unwrap();
        assert_eq!(
            shown(&three),
            [
                "s0 to s2: Buckets { of: 16, runs: [(6, 8)] }",
                "s1 to s2: Buckets { of: 16, runs: [(13, 16)] }",
            ]
        );
        let after = before.apply(&three).unwrap();
        let one = moves_to(&after, 1).unwrap();
        assert_eq!(one.len(), 2);
        assert_eq!(moves_to(&after, 3), Err(NoMoves::Nothing));
        assert_eq!(
            moves(&before, &[all_to(vec!["s9".to_owned()])], &names()),
            Err(NoMoves::NoShard("s9".to_owned()))
        );
        let twice = ["s2", "s0", "s2"].map(str::to_owned).to_vec();
        assert_eq!(
            moves(&before, &[all_to(twice)], &names()),
            Err(NoMoves::ShardTwice("s2".to_owned()))
        );
    }

    #[test]
    fn pinned_keys_stay_where_they_are_unless_their_shard_leaves() {
        let before = group("method = \"hash\"\nkey_type = \"bigint\"\nbuckets = 4");
        let pin = |key: &str, shard: &str| Wish::of_pin(&format!("{key}={shard}"), None).unwrap();
        let keys: Vec<i64> = (0..100).collect();
        let owner =
            |owners: &Ownership, key: i64| owners.owner("g", &Key::Bigint(key)).map(str::to_owned);
        let tenant = keys
            .iter()
            .find(|key| owner(&before, **key).as_deref() == Some("s0"));
        let tenant = *tenant.unwrap();
        let pinned = moves(&before, &[pin(&tenant.to_string(), "s3")], &names()).unwrap();
        assert_eq!(shown(&pinned), ["s0 to s3: None"]);
        let pinned = before.apply(&pinned).unwrap();
        assert_eq!(owner(&pinned, tenant).as_deref(), Some("s3"));
        let all = Wish::of_move("buckets=0-3:s2", None).unwrap();
        let moved = pinned
            .apply(&moves(&pinned, &[all], &names()).unwrap())
            .unwrap();
        for key in &keys {
            let wanted = if *key == tenant { "s3" } else { "s2" };
            assert_eq!(owner(&moved, *key).as_deref(), Some(wanted));
        }
        let home = moved
            .apply(&moves(&moved, &[to(1)], &names()).unwrap())
            .unwrap();
        assert!(
            keys.iter()
                .all(|key| owner(&home, *key).as_deref() == Some("s0"))
        );
    }

    #[test]
    fn a_group_can_be_spread_alone() {
        let before = of(
            "[databases.app.groups.g]\nmethod = \"hash\"\nkey_type = \"bigint\"\nbuckets = 4\n\
             tables = { \"public.t\" = \"id\" }\n\
             [databases.app.groups.days]\nmethod = \"range\"\nkey_type = \"date\"\n\
             ranges = [{ to = \"2026-01-01\", shard = \"s0\" }, { shard = \"s1\" }]\n\
             tables = { \"public.u\" = \"day\" }\n",
        );
        let only = |group: &str| {
            let group = Some(group.to_owned());
            let to = names().into_iter().collect();
            moves(&before, &[Wish::Spread { group, to }], &names())
        };
        let moved = only("g").unwrap();
        assert!(moved.iter().all(|it| it.group == "g"), "{moved:?}");
        assert!(matches!(only("days"), Err(NoMoves::FewRanges { .. })));
        assert_eq!(
            only("h"),
            Err(NoMoves::NoGroup {
                name: "h".to_owned(),
                known: "days, g".to_owned()
            })
        );
        let anywhere = Wish::of_pin("7=s3", None).unwrap();
        assert_eq!(
            moves(&before, &[anywhere], &names()),
            Err(NoMoves::WhichGroup("days, g".to_owned()))
        );
    }

    #[test]
    fn a_range_is_cut_out_of_those_of_others() {
        let before = group(
            "method = \"range\"\nkey_type = \"bigint\"\nranges = [{ to = 100, shard = \"s0\" }, { shard = \"s1\" }]",
        );
        let wish = Wish::of_move("range=[50,150):s2", None).unwrap();
        let after = before
            .apply(&moves(&before, &[wish], &names()).unwrap())
            .unwrap();
        for (key, shard) in [(49, "s0"), (50, "s2"), (149, "s2"), (150, "s1")] {
            assert_eq!(after.owner("g", &Key::Bigint(key)), Some(shard), "{key}");
        }
        let open = Wish::of_move("range=[,50):s1", None).unwrap();
        assert_eq!(moves(&after, &[open], &names()).unwrap().len(), 1);
        let wrong = |text: &str| moves(&before, &[Wish::of_move(text, None).unwrap()], &names());
        assert_eq!(wrong("range=[5,5):s2"), Err(NoMoves::EmptyRange));
        assert!(matches!(
            wrong("range=[a,b):s2"),
            Err(NoMoves::NoKey { .. })
        ));
        assert!(matches!(
            wrong("buckets=1-2:s2"),
            Err(NoMoves::OtherMethod { .. })
        ));
        assert!(matches!(
            moves(&before, &[to(3)], &names()),
            Err(NoMoves::FewRanges { .. })
        ));
    }

    #[test]
    fn a_range_is_cut_where_rows_are() {
        let before = group(
            "method = \"range\"\nkey_type = \"bigint\"\nranges = [{ to = 100, shard = \"s0\" }, { shard = \"s1\" }]",
        );
        // Most of them lie above 1000.
        let keys = (0..40).map(|at| if at < 10 { at } else { 1_000 + at });
        let sample: Sample = keys.map(|key| (Key::Bigint(key), 5.0)).collect();
        assert_eq!(
            cut(&sample, 4),
            Some([1_010, 1_020, 1_030].map(Key::Bigint).to_vec())
        );
        let spread = |sample: &Sample, before: &Ownership, wish| {
            let samples = BTreeMap::from([("g".to_owned(), sample.clone())]);
            moves_by(before, &[wish], &names(), &samples)
        };
        let moved = spread(&sample, &before, to(4)).unwrap();
        let after = before.apply(&moved).unwrap();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, _) in &sample {
            *counts.entry(after.owner("g", key).unwrap()).or_default() += 1;
        }
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [10; 4]);
        // What can stay stays.
        assert_eq!(after.owner("g", &Key::Bigint(0)), Some("s0"));
        assert!(moved.iter().all(|it| it.from == "s1"), "{moved:?}");
        assert!(!needs_bounds(&after, "g", 4) && needs_bounds(&after, "g", 5));
        // One key cannot be cut.
        let one = vec![(Key::Bigint(7), 100.0), (Key::Bigint(8), 1.0)];
        assert_eq!(
            spread(&one, &before, to(3)),
            Err(NoMoves::FewKeys {
                group: "g".to_owned(),
                shards: 3
            })
        );
    }

    #[test]
    fn values_of_a_list_move_one_by_one() {
        let before = group(
            "method = \"list\"\nkey_type = \"text\"\nlists.s0 = [\"a:1\", \"b\", \"c\"]\nlists.s1 = [\"*\"]",
        );
        let wish = Wish::of_move("value=a:1:s2", None).unwrap();
        let moves = moves(&before, &[wish], &names()).unwrap();
        let after = before.apply(&moves).unwrap();
        let text = |text: &str| Key::Text(text.as_bytes().into());
        assert_eq!(after.owner("g", &text("a:1")), Some("s2"));
        assert_eq!(after.owner("g", &text("b")), Some("s0"));
        assert_eq!(after.owner("g", &text("z")), Some("s1"));
        for wrong in [
            "",
            "buckets=x:s1",
            "range=1,2:s1",
            "values=a:s1",
            "buckets=1-2",
        ] {
            assert!(Wish::of_move(wrong, None).is_err(), "{wrong}");
        }
    }
}
