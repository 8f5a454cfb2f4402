//! Owners and sets of keys say the same; agreement and additions.

use super::*;
use crate::{
    catalog::moving::{Move, Part},
    config::load::load_str,
};
use std::path::Path;

fn snapshot(shards: usize, groups: &str) -> Snapshot {
    let shards: String = (0..shards)
        .map(|at| format!("shards.s{at} = {{ primary = \"postgres://h{at}/app\" }}\n"))
        .collect();
    let text = format!("[databases.app]\n{shards}{groups}");
    let settings = load_str("test", &text, Path::new("."))
        .unwrap_or_else(|errors| panic!("{}", errors.render()));
    (*settings.databases["app"].snapshot).clone()
}

fn of(groups: &str) -> Declared {
    Declared::of(&snapshot(3, groups))
}

fn group(method: &str, key_type: &str, more: &str) -> String {
    format!(
        "[databases.app.groups.g]\nmethod = \"{method}\"\nkey_type = \"{key_type}\"\n{more}\ntables = {{ \"public.t\" = \"id\" }}"
    )
}

fn range(ranges: &str) -> Declared {
    of(&group("range", "bigint", &format!("ranges = [{ranges}]")))
}

fn list(lists: &str) -> Declared {
    of(&group("list", "text", lists))
}

fn hash(more: &str) -> Declared {
    of(&group("hash", "bigint", more))
}

fn kept(here: &Declared) -> Content {
    let content = Content::first(here);
    // What is kept of it reads back as it was.
    let text = serde_json::to_string(&content).unwrap();
    assert_eq!(serde_json::from_str::<Content>(&text).unwrap(), content);
    content
}

fn agree(one: &Declared, here: &Declared) -> bool {
    kept(one).disagreements(here).is_empty()
}

#[test]
fn ranges_agree_when_every_key_has_the_same_owner() {
    let first = range(r#"{ to = 100, shard = "s0" }, { shard = "s1" }"#);
    assert!(agree(&first, &first));
    assert!(agree(
        &first,
        &range(r#"{ to = 50, shard = "s0" }, { to = 100, shard = "s0" }, { shard = "s1" }"#)
    ));
    for other in [
        r#"{ to = 101, shard = "s0" }, { shard = "s1" }"#,
        r#"{ to = 100, shard = "s1" }, { shard = "s0" }"#,
        r#"{ to = 100, shard = "s0" }, { to = 200, shard = "s1" }, { shard = "s2" }"#,
        r#"{ shard = "s0" }"#,
    ] {
        assert!(!agree(&first, &range(other)), "{other}");
    }
    assert!(!agree(&first, &hash("")), "another method");
}

#[test]
fn lists_may_grow_on_shards_that_serve() {
    let first = list("lists.s0 = [\"eu\"]\nlists.s1 = [\"us\"]\nlists.s2 = [\"nz\"]");
    let more = list("lists.s0 = [\"eu\"]\nlists.s1 = [\"us\", \"ca\"]\nlists.s2 = [\"nz\", \"*\"]");
    assert!(agree(&first, &more));
    let both = kept(&first).and(&more);
    assert!(
        !both.disagreements(&first).is_empty(),
        "what was added counts from then on"
    );
    assert!(both.disagreements(&more).is_empty());
    let moved = list("lists.s0 = [\"eu\", \"us\"]\nlists.s1 = [\"ca\"]\nlists.s2 = [\"nz\"]");
    assert_eq!(
        kept(&first).disagreements(&moved),
        [Disagreement {
            group: "g".to_owned(),
            what: What::Owner {
                of: "value 'us'".to_owned(),
                kept: "s1".to_owned(),
                here: "s0".to_owned(),
            },
        }]
    );
    assert!(!agree(&more, &first), "nobody owns the others any more");
    let named = list(
        "lists.s0 = [\"eu\", \"mx\"]\nlists.s1 = [\"us\", \"ca\"]\nlists.s2 = [\"nz\", \"*\"]",
    );
    assert!(
        !both.disagreements(&named).is_empty(),
        "its rows are where all others are"
    );
    assert!(both.replaced_by(&named).disagreements(&named).is_empty());
    let outside = list("lists.s0 = [\"eu\"]");
    let grown = list("lists.s0 = [\"eu\"]\nlists.s1 = [\"us\"]");
    assert_eq!(
        kept(&outside).disagreements(&grown)[0].what,
        What::Outside {
            shard: "s1".to_owned()
        }
    );
}

#[test]
fn more_buckets_with_the_same_owners_agree() {
    let first = hash("buckets = 4");
    assert!(agree(&first, &first));
    assert!(!agree(&first, &hash("buckets = 64")));
    assert!(!agree(&first, &hash("buckets = 4\nhash = \"xxh3\"")));
    // A split of twice as many: bucket 1 of 4 is 1 and 5 of 8.
    assert!(agree(
        &hash("buckets = 4\nshards = [\"s1\"]"),
        &hash("buckets = 8\nshards = [\"s1\"]")
    ));
    assert!(!agree(&first, &hash("buckets = 4\nshards = [\"s1\"]")));
}

#[test]
fn a_shard_that_joins_the_file_owns_nothing_and_does_not_serve() {
    let groups = group("hash", "bigint", "");
    let [two, three] = [2, 3].map(|shards| Declared::of(&snapshot(shards, &groups)));
    let map = kept(&two).and(&three);
    assert_eq!(map.disagreements(&three), []);
    assert_eq!(map, kept(&two));
    assert!(!map.members.contains("s2") && map.lacking(&two).is_empty());
    // A group that is new is split over those that serve.
    let more = groups + "\n[databases.app.groups.h]\nmethod = \"hash\"\nkey_type = \"uuid\"\n";
    let map = map.and(&Declared::of(&snapshot(3, &more)));
    assert_eq!(map.owners.shards().len(), 2);
    // Once it serves, a file that lacks it is not enough.
    let joined = map
        .clone()
        .flipped(map.owners, "w", &[], &["s2".to_owned()]);
    assert_eq!(joined.lacking(&two), ["s2"]);
    assert!(joined.lacking(&three).is_empty());
}

#[test]
fn an_unsharded_database_begins_on_one_shard() {
    for more in ["shards = [\"s0\"]", "shards = [\"s0\"]\nhash = \"xxh3\""] {
        let map = kept(&hash(more));
        assert_eq!(map.owners.shards(), BTreeSet::from(["s0".to_owned()]));
        assert_eq!(map.members, BTreeSet::from(["s0".to_owned()]));
    }
    let map = kept(&range(r#"{ shard = "s0" }"#));
    assert_eq!(map.members, BTreeSet::from(["s0".to_owned()]));
    assert_eq!(kept(&hash("")).members.len(), 3);
}

#[test]
fn after_a_reshard_a_file_may_say_what_was_or_what_is() {
    let was = range(r#"{ to = 100, shard = "s0" }, { shard = "s1" }"#);
    let is = range(r#"{ to = 50, shard = "s0" }, { to = 100, shard = "s2" }, { shard = "s1" }"#);
    let other = range(r#"{ to = 60, shard = "s0" }, { to = 100, shard = "s2" }, { shard = "s1" }"#);
    let map = kept(&was).flipped(is.owners.clone(), "w", &[], &["s2".to_owned()]);
    assert_eq!(map.disagreements(&was), []);
    assert_eq!(map.disagreements(&is), []);
    assert_eq!(map.disagreements(&other).len(), 1);
    assert_eq!(map.clone().and(&was).and(&is), map);
    // Who accepts a file because of another group does not give these back.
    assert_eq!(map.clone().replaced_by(&was), map);
    let accepted = map.clone().replaced_by(&other);
    assert_eq!(
        (&accepted.owners, &accepted.declared),
        (&other.owners, &other.owners)
    );
    let moving = Moving {
        workflow: "w".to_owned(),
        group: "g".to_owned(),
        keys: map.owners.sets_of("g", "s2").unwrap(),
        shard: "s0".to_owned(),
    };
    let under_way = map.doubling("w", &[moving]);
    assert_eq!(under_way.clone().replaced_by(&other), under_way);
}

#[test]
fn a_shard_that_gave_its_buckets_away_need_not_be_in_the_file() {
    let was = hash("buckets = 16\nshards = [\"s0\", \"s1\", \"s2\"]");
    let two = hash("buckets = 16\nshards = [\"s0\", \"s1\"]");
    let turned = hash("buckets = 16\nshards = [\"s1\", \"s0\"]");
    // In which order a file names them says nothing.
    assert_eq!(kept(&two).disagreements(&turned), []);
    let mut after = was.owners.clone();
    for shard in ["s0", "s1"] {
        let mut keys = after.sets_of("g", "s2").unwrap();
        if let Part::Buckets { runs, .. } = &mut keys.part {
            let (first, end) = runs[0];
            let middle = first.midpoint(end);
            let end = if shard == "s0" { middle } else { end };
            *runs = vec![(first, end)];
        }
        let moved = Move {
            group: "g".to_owned(),
            keys,
            from: "s2".to_owned(),
            to: shard.to_owned(),
        };
        after = after.apply(&[moved]).unwrap();
        if shard == "s0" {
            let map = kept(&was).flipped(after.clone(), "w", &[], &[]);
            assert_eq!(map.disagreements(&two).len(), 1, "s2 has some of them");
        }
    }
    let map = kept(&was).flipped(after, "w", &[], &[]);
    for file in [&was, &two, &turned] {
        assert_eq!(map.disagreements(file), []);
        assert_eq!(map.clone().and(file), map);
    }
    let one = hash("buckets = 16\nshards = [\"s0\"]");
    assert_eq!(map.disagreements(&one).len(), 1);
}

#[test]
fn what_form_2_has_stored_is_read() {
    let text = r#"{"groups": {
        "l": {"key_type": "text", "owners": {"list": {"values": {"'eu'": "s0", "'it''s'": "s1"}, "other": null}}},
        "d": {"key_type": "date", "owners": {"range": [["31 days after 2000-01-01", "s0"], [null, "s1"]]}},
        "h": {"key_type": "bigint", "owners": {"hash": {"function": "postgres", "buckets": [[2, "s0"], [2, "s1"]]}}}
    }}"#;
    let content: Content = serde_json::from_str(text).unwrap();
    let owner = |group: &str, key_type: KeyType, text: &str| {
        let key = key_type.from_text(text.as_bytes()).unwrap();
        content.owners.owner(group, &key).map(str::to_owned)
    };
    assert_eq!(owner("l", KeyType::Text, "eu").as_deref(), Some("s0"));
    assert_eq!(
        owner("d", KeyType::Date, "2000-01-31").as_deref(),
        Some("s0")
    );
    assert_eq!(
        owner("d", KeyType::Date, "2000-02-01").as_deref(),
        Some("s1")
    );
    assert!(owner("h", KeyType::Bigint, "7").is_some());
    assert!(content.members.is_empty());
}

#[test]
fn what_is_stored_and_not_understood_makes_the_map_unreadable() {
    let good = r#"{"declared": {"groups": {}}, "owners": {"groups": {"g": {"key_type": "bigint",
        "owners": {"range": [[null, "s0"]]}, "pins": []}}}, "members": ["s0"], "moving": [
        {"workflow": "w", "group": "g", "keys": {"part": {"buckets": {"of": 4, "runs": [[0, 1]]}}}, "shard": "s1"}]}"#;
    assert!(serde_json::from_str::<Content>(good).is_ok());
    for (known, more) in [
        (r#""members""#, r#""shadows": [], "members""#),
        (r#""declared": {"#, r#""declared": {"kept": 1, "#),
        (r#""pins""#, r#""copies": 2, "pins""#),
        (r#"{"range""#, r#"{"spread": 1, "range""#),
        (r#""range""#, r#""spread""#),
        (r#""workflow""#, r#""until": 5, "workflow""#),
        (r#"{"part""#, r#"{"like": [], "part""#),
        (r#"{"of""#, r#"{"salt": 1, "of""#),
        (r#""buckets""#, r#""every""#),
        (r#""members": ["s0"], "#, ""),
    ] {
        let text = good.replacen(known, more, 1);
        assert_ne!(text, good, "{known}");
        assert!(serde_json::from_str::<Content>(&text).is_err(), "{text}");
    }
}

/// A generator of numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn key(&mut self) -> Key {
        Key::Bigint(self.below(40).cast_signed() - 20)
    }

    fn shard(&mut self) -> String {
        format!("s{}", self.below(3))
    }

    fn owned(&mut self, method: u64) -> Owned {
        let owners = match method {
            0 => {
                let count = 1 << self.below(5);
                Owners::Hash {
                    function: HashFunction::Postgres,
                    buckets: (0..count).map(|_| self.shard()).collect(),
                }
            }
            1 => {
                let bounds: BTreeSet<Key> = (0..self.below(6)).map(|_| self.key()).collect();
                let bounds = bounds.into_iter().map(Some).chain([None]);
                Owners::range(bounds.map(|to| (to, self.shard())).collect::<Vec<_>>())
            }
            _ => Owners::List {
                values: (0..self.below(12))
                    .map(|_| (self.key(), self.shard()))
                    .collect(),
                other: Some(self.shard()),
            },
        };
        let mut owned = Owned {
            key_type: KeyType::Bigint,
            owners,
            pins: BTreeMap::new(),
        };
        if method < 2 {
            for _ in 0..self.below(4) {
                let (key, shard) = (self.key(), self.shard());
                if owned.owners.owner(&key) != Some(&shard) {
                    owned.pins.insert(key, shard);
                }
            }
        }
        owned
    }
}

fn keys() -> impl Iterator<Item = Key> {
    (-25..25).map(Key::Bigint)
}

fn one(owned: Owned) -> Ownership {
    Ownership {
        groups: BTreeMap::from([("g".to_owned(), owned)]),
    }
}

#[test]
fn maps_sets_and_moves_say_the_same_of_every_key() {
    let mut numbers = Numbers(7);
    let shard = |name: &str| name.strip_prefix('s')?.parse().ok().map(ShardId);
    for turn in 0..3000 {
        let method = turn % 3;
        let (before, after) = (one(numbers.owned(method)), one(numbers.owned(method)));
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Ownership>(&text).unwrap(), before);
        let (map, pins) = before.map_of("g", shard).unwrap().unwrap();
        let group = Group {
            name: "g".to_owned(),
            key_type: KeyType::Bigint,
            map,
            pins,
            doubled: Vec::new(),
        };
        let sets: Vec<_> = ["s0", "s1", "s2"]
            .map(|name| (name, before.sets_of("g", name).unwrap()))
            .into();
        let moves = Ownership::differences(&before, &after).unwrap();
        for key in keys() {
            let owner = before.owner("g", &key).unwrap();
            assert_eq!(group.shard_of(&key), shard(owner), "{before:?} {key:?}");
            for (name, set) in &sets {
                assert_eq!(
                    set.contains(&key),
                    *name == owner,
                    "{set:?} {before:?} {key:?}"
                );
            }
            let new = after.owner("g", &key).unwrap();
            let mut taking = moves.iter().filter(|it| it.keys.contains(&key));
            let pair = taking.next().map(|it| (it.from.as_str(), it.to.as_str()));
            assert_eq!(
                pair,
                (owner != new).then_some((owner, new)),
                "{moves:?} {key:?}"
            );
            assert_eq!(taking.next(), None);
            let within = group.shards_between(
                std::ops::Bound::Included(&key),
                std::ops::Bound::Included(&key),
            );
            assert!(within.contains(shard(owner).unwrap()));
        }
        let applied = before.apply(&moves).unwrap();
        assert_same(&applied, &after);
        let back: Vec<Move> = moves.into_iter().map(turned).collect();
        assert_same(&applied.apply(&back).unwrap(), &before);
    }
}

#[test]
fn what_a_shard_owns_is_said_in_few_words() {
    let said = |text: &str, shard: &str, most| hash(text).owners.words_of("g", shard, most);
    let some = |words: &str| Some(words.to_owned());
    let two = "shards = [\"s0\", \"s1\"]";
    assert_eq!(said(two, "s1", 9), some("512 of 1024 buckets (512-1023)"));
    assert_eq!(said(two, "s2", 9), None);
    let xxh3 = "shards = [\"s0\", \"s1\"]\nhash = \"xxh3\"";
    assert_eq!(said(xxh3, "s0", 9), some("512 of 1024 buckets (0-511)"));
    let one = |owners, pins: &[(i64, &str)]| {
        let pins = pins.iter();
        one(Owned {
            key_type: KeyType::Bigint,
            owners,
            pins: pins
                .map(|(key, of)| (Key::Bigint(*key), (*of).to_owned()))
                .collect(),
        })
    };
    let name = |of: &str| of.to_owned();
    let buckets = ["s0", "s1", "s0", "s1", "s0", "s0", "s1", "s0"].map(name);
    let striped = Owners::Hash {
        function: HashFunction::Postgres,
        buckets: buckets.into(),
    };
    let striped = one(striped, &[(42, "s1")]);
    let words = striped.words_of("g", "s1", 1).unwrap();
    assert!(words.starts_with("3 of 8 buckets (1, 2 more)"), "{words}");
    assert!(words.ends_with(" and key 42"), "{words}");
    let range = [(Some(Key::Bigint(100)), name("s0")), (None, name("s1"))];
    let range = one(Owners::Range(range.into()), &[]);
    assert_eq!(range.words_of("g", "s0", 9), some("range [, 100)"));
    let values = BTreeMap::from([(Key::Bigint(7), name("s0"))]);
    let other = Some(name("s1"));
    let list = one(Owners::List { values, other }, &[]);
    assert_eq!(list.words_of("g", "s0", 9), some("values 7"));
    assert_eq!(list.words_of("g", "s1", 9), some("every value but 7"));
}

fn turned(it: Move) -> Move {
    Move {
        from: it.to,
        to: it.from,
        ..it
    }
}

fn assert_same(one: &Ownership, other: &Ownership) {
    for key in keys() {
        assert_eq!(
            one.owner("g", &key),
            other.owner("g", &key),
            "{one:?} {other:?} {key:?}"
        );
    }
    assert_eq!(Ownership::differences(one, other), Ok(Vec::new()));
}

#[test]
fn one_tenant_moves_alone() {
    let map = hash("shards = [\"s0\"]").owners;
    let key = Key::Bigint(42);
    let tenant = |from: &str, to: &str| Move {
        group: "g".to_owned(),
        keys: crate::catalog::moving::KeySet {
            part: Part::None,
            with: vec![key.clone()],
            without: Vec::new(),
        },
        from: from.to_owned(),
        to: to.to_owned(),
    };
    let moved = map.apply(&[tenant("s0", "s1")]).unwrap();
    assert_eq!(moved.owner("g", &key), Some("s1"));
    assert_eq!(moved.owner("g", &Key::Bigint(43)), Some("s0"));
    assert_eq!(
        Ownership::differences(&map, &moved),
        Ok(vec![tenant("s0", "s1")])
    );
    assert_eq!(moved.apply(&[tenant("s1", "s0")]), Ok(map));
    assert_eq!(
        moved.apply(&[tenant("s0", "s2")]),
        Err(Unmovable::NotOwned {
            group: "g".to_owned(),
            from: "s0".to_owned(),
        })
    );
}
