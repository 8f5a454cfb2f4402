//! Hot path: text to plan. A hit costs at most one lexer pass, two hashes and two look-ups, and allocates nothing, but
//! for the slots of a text with more than eight literals; bounded by bytes.
//!
//! A plan is found by the text itself, or by the text's template. By template only what holds for every text of that
//! template is shared: one statement that does nothing to the session and is not refused, and only among texts that
//! agree in the literals that the plan names as structural. Hashes only find a candidate: what counts is that the whole
//! key is equal, and the key holds all that a plan depends on: text or template (overrides included), declared types,
//! the context's digest, the epoch.

use super::{Context, Plan, StatementPlan, Target, analyze::analyze};
use crate::{
    catalog::snapshot::Snapshot,
    sql::{
        normalize::{Lexed, Slot, Slots, Strings, normalize},
        statement::Effect,
    },
    wire::types::Oid,
};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Texts that are longer are planned each time.
const LONGEST_TEXT_BYTES: usize = 64 * 1024;
/// Independent parts, so that sessions seldom wait for each other.
const PARTS: usize = 16;
/// How many different sets of structural literals one template may have; what has more is found by its text only.
const MOST_FORKS: usize = 4;
/// What a session's buffers keep between statements.
const SCRATCH_KEPT_BYTES: usize = 4096;

/// Plans of one database, shared by its sessions.
#[derive(Debug)]
pub struct PlanCache {
    parts: Box<[Mutex<Part>]>,
    seed: u64,
}

/// A plan and where this text's literals are.
#[derive(Debug)]
pub struct Planned {
    pub plan: Arc<Plan>,
    pub slots: Slots,
}

impl Planned {
    /// The text of one of the plan's statements; `text` is what was planned. The positions in a plan are those of the
    /// text that it was made from: this text, when there are several statements, and a lone statement is all of its text.
    #[must_use]
    pub fn statement_text<'t>(&self, index: usize, text: &'t [u8]) -> Option<&'t [u8]> {
        match (self.plan.statements.as_slice(), index) {
            ([_], 0) => Some(text),
            (statements, _) => {
                let StatementPlan { start, end, .. } = statements.get(index)?;
                text.get(*start as usize..*end as usize)
            }
        }
    }
}

/// Buffers that a session lends to the cache.
#[derive(Debug, Default)]
pub struct Scratch {
    template: Vec<u8>,
    key: Vec<u8>,
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub text: &'a [u8],
    /// Parameter types as declared in Parse.
    pub types: &'a [Oid],
    pub context: &'a Context,
    pub snapshot: &'a Snapshot,
}

/// What the cache has done since it was made, and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub hits: u64,
    pub misses: u64,
    pub evictions: u64,
    pub entries: usize,
    /// An estimate: keys are counted, plans are taken to be in proportion to their texts.
    pub bytes: usize,
}

impl PlanCache {
    /// An empty cache of at most about `bytes_limit` bytes. `seed` must not be known to clients: it keeps them from
    /// making keys that collide.
    #[must_use]
    pub fn new(bytes_limit: usize, seed: u64) -> Self {
        let part = || {
            Mutex::new(Part {
                bytes_limit: bytes_limit / PARTS,
                ..Part::default()
            })
        };
        Self {
            parts: (0..PARTS).map(|_| part()).collect(),
            seed,
        }
    }

    /// The plan for a text; parses and analyzes on a miss. Never fails: what cannot be planned is a plan that refuses,
    /// or that lets PostgreSQL judge.
    #[must_use]
    pub fn plan(
        &self,
        text: &[u8],
        types: &[Oid],
        context: &Context,
        snapshot: &Snapshot,
        scratch: &mut Scratch,
    ) -> Planned {
        let request = Request {
            text,
            types,
            context,
            snapshot,
        };
        self.plan_with(&request, scratch, |slots| {
            analyze(text, types, slots, context, snapshot)
        })
    }

    /// As [`Self::plan`], with `analyze` to make the plan from the text's literals on a miss.
    pub fn plan_with(
        &self,
        request: &Request<'_>,
        scratch: &mut Scratch,
        analyze: impl FnOnce(&Slots) -> Plan,
    ) -> Planned {
        let mut slots = Slots::new();
        if request.text.len() > LONGEST_TEXT_BYTES {
            normalize(
                request.text,
                strings(request.context),
                &mut Vec::new(),
                &mut slots,
            );
            let plan = Arc::new(analyze(&slots));
            return Planned { plan, slots };
        }
        let text_hash = self.key(scratch, request, Level::Text, request.text);
        if let Some(planned) = self.part(text_hash).by_text(text_hash, &scratch.key) {
            return planned;
        }
        let Scratch { template, key } = scratch;
        let lexed = normalize(request.text, strings(request.context), template, &mut slots);
        let by_template = lexed == Lexed::Whole && !slots.is_empty();
        if by_template {
            let found = self.by_template(request, template, key, &slots, text_hash);
            if let Some(Found { plan, again }) = found {
                if again {
                    self.insert_text(scratch, request, &plan, &slots);
                }
                return Planned { plan, slots };
            }
        }
        let plan = Arc::new(analyze(&slots));
        if !(by_template
            && is_shared(&plan)
            && self.insert_template(scratch, request, &plan, &slots))
        {
            self.insert_text(scratch, request, &plan, &slots);
        }
        self.part(text_hash).stats.misses += 1;
        scratch.template.shrink_to(SCRATCH_KEPT_BYTES);
        scratch.key.shrink_to(SCRATCH_KEPT_BYTES);
        Planned { plan, slots }
    }

    /// Counters and size, summed over the parts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for part in &self.parts {
            let part = lock(part);
            sum.hits += part.stats.hits;
            sum.misses += part.stats.misses;
            sum.evictions += part.stats.evictions;
            sum.entries += part.index.len();
            sum.bytes += part.bytes;
        }
        sum
    }

    fn by_template(
        &self,
        request: &Request<'_>,
        template: &[u8],
        key: &mut Vec<u8>,
        slots: &Slots,
        text_hash: u128,
    ) -> Option<Found> {
        let hash = write_key(key, request, Level::Template, template, self.seed);
        let mut part = self.part(hash);
        let entry = part.find(hash, key)?;
        let Held::Forks(forks) = &entry.held else {
            return entry.found(text_hash).map(|found| part.hit(found));
        };
        let (forks, length) = (Arc::clone(forks), key.len());
        for structural in forks.iter() {
            key.truncate(length);
            let hash = write_fork(key, request.text, slots, structural, self.seed);
            if let Some(found) = part
                .find(hash, key)
                .and_then(|entry| entry.found(text_hash))
            {
                return Some(part.hit(found));
            }
        }
        None
    }

    /// Stores a plan for the texts that share its template and structural literals; tells whether it could.
    fn insert_template(
        &self,
        scratch: &mut Scratch,
        request: &Request<'_>,
        plan: &Arc<Plan>,
        slots: &Slots,
    ) -> bool {
        let Scratch { template, key } = scratch;
        let hash = write_key(key, request, Level::Template, template, self.seed);
        let mut part = self.part(hash);
        let held = Held::Plan {
            plan: Arc::clone(plan),
            slots: None,
        };
        let weight = plan_bytes(plan, request.text);
        let known = match part.find(hash, key).map(|entry| &entry.held) {
            Some(Held::Forks(forks)) => Some(Arc::clone(forks)),
            Some(Held::Plan { .. }) | None => None,
        };
        if known.is_none() && plan.structural.is_empty() {
            part.insert(hash, key, held, weight);
            return true;
        }
        let known = known.unwrap_or_default();
        if !known
            .iter()
            .any(|structural| **structural == *plan.structural)
        {
            if known.len() == MOST_FORKS {
                return false;
            }
            let forks: Arc<[Box<[u16]>]> = known
                .iter()
                .cloned()
                .chain([plan.structural.clone().into_boxed_slice()])
                .collect();
            let bytes = forks
                .iter()
                .map(|structural| 16 + 2 * structural.len())
                .sum();
            part.insert(hash, key, Held::Forks(forks), bytes);
        }
        let hash = write_fork(key, request.text, slots, &plan.structural, self.seed);
        part.insert(hash, key, held, weight);
        true
    }

    /// Stores a plan for this very text.
    fn insert_text(
        &self,
        scratch: &mut Scratch,
        request: &Request<'_>,
        plan: &Arc<Plan>,
        slots: &Slots,
    ) {
        let hash = self.key(scratch, request, Level::Text, request.text);
        let weight = plan_bytes(plan, request.text) + size_of_val(slots.as_slice());
        let held = Held::Plan {
            plan: Arc::clone(plan),
            slots: Some(slots.as_slice().into()),
        };
        self.part(hash).insert(hash, &scratch.key, held, weight);
    }

    fn key(&self, scratch: &mut Scratch, request: &Request<'_>, level: Level, body: &[u8]) -> u128 {
        write_key(&mut scratch.key, request, level, body, self.seed)
    }

    fn part(&self, hash: u128) -> MutexGuard<'_, Part> {
        lock(&self.parts[(hash >> 124) as usize % PARTS])
    }
}

/// Nothing panics while a part is locked, so a poisoned one is whole.
fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

fn strings(context: &Context) -> Strings {
    if context.standard_conforming_strings {
        Strings::Standard
    } else {
        Strings::Escapes
    }
}

/// Whether a plan may serve other texts of its template. Positions of several statements, values of SET and the
/// details of a refusal are those of one text; but of a write that is spread over shards only tables matter.
fn is_shared(plan: &Plan) -> bool {
    matches!(
        plan.statements.as_slice(),
        [StatementPlan {
            effect: Effect::None,
            target: Target::Fixed(_) | Target::ByKey(_),
            ..
        } | StatementPlan {
            effect: Effect::None,
            target: Target::Refused(_),
            spread: Some(_),
            ..
        } | StatementPlan {
            effect: Effect::None,
            target: Target::Refused(_),
            computes: Some(_),
            ..
        } | StatementPlan {
            effect: Effect::None,
            target: Target::Refused(_),
            sourced: Some(_),
            ..
        }]
    )
}

/// What a plan is taken to weigh: its parts are in proportion to its text's.
fn plan_bytes(plan: &Plan, text: &[u8]) -> usize {
    size_of::<Plan>()
        + plan.statements.len() * size_of::<StatementPlan>()
        + 2 * plan.structural.len()
        + 4 * text.len()
}

/// What a key's last part is.
#[derive(Clone, Copy)]
enum Level {
    Text = 1,
    Template = 2,
}

/// Writes a key and hashes it. Every part but the last has a length of its own, so that equal keys have equal parts.
fn write_key(
    key: &mut Vec<u8>,
    request: &Request<'_>,
    level: Level,
    body: &[u8],
    seed: u64,
) -> u128 {
    key.clear();
    key.push(level as u8);
    key.extend_from_slice(&request.context.digest.to_ne_bytes());
    key.extend_from_slice(&request.snapshot.epoch.0.to_ne_bytes());
    key.extend_from_slice(&request.snapshot.schema.to_ne_bytes());
    key.extend_from_slice(&request.types.len().to_ne_bytes());
    for oid in request.types {
        key.extend_from_slice(&oid.to_ne_bytes());
    }
    key.extend_from_slice(&body.len().to_ne_bytes());
    key.extend_from_slice(body);
    xxh3_128_with_seed(key, seed)
}

/// Adds a plan's structural literals to its template's key.
fn write_fork(
    key: &mut Vec<u8>,
    text: &[u8],
    slots: &Slots,
    structural: &[u16],
    seed: u64,
) -> u128 {
    key.extend_from_slice(&structural.len().to_ne_bytes());
    for index in structural {
        let literal = slots
            .get(usize::from(*index))
            .map_or(&[][..], |slot| &text[slot.range()]);
        key.extend_from_slice(&index.to_ne_bytes());
        key.extend_from_slice(&literal.len().to_ne_bytes());
        key.extend_from_slice(literal);
    }
    xxh3_128_with_seed(key, seed)
}

/// A plan found by its template, and whether the same text has found it last time.
struct Found {
    plan: Arc<Plan>,
    again: bool,
}

/// One part of the cache: entries in a ring, of which the hand takes those that nobody asked for since its last round.
#[derive(Debug, Default)]
struct Part {
    index: HashMap<u128, usize, BuildHasherDefault<HashIsKey>>,
    ring: Vec<Entry>,
    hand: usize,
    bytes: usize,
    bytes_limit: usize,
    stats: Stats,
}

#[derive(Debug)]
struct Entry {
    hash: u128,
    key: Box<[u8]>,
    held: Held,
    bytes: usize,
    asked: bool,
    /// The hash of the text that asked last.
    last_text: u128,
}

#[derive(Debug)]
enum Held {
    /// `slots`: where the literals are, in an entry for one text.
    Plan {
        plan: Arc<Plan>,
        slots: Option<Box<[Slot]>>,
    },
    /// Sets of structural literals of this template's plans, which are entries of their own in the same part.
    Forks(Arc<[Box<[u16]>]>),
}

impl Entry {
    fn found(&mut self, text_hash: u128) -> Option<Found> {
        let Held::Plan { plan, .. } = &self.held else {
            return None;
        };
        let again = std::mem::replace(&mut self.last_text, text_hash) == text_hash;
        Some(Found {
            plan: Arc::clone(plan),
            again,
        })
    }
}

impl Part {
    fn by_text(&mut self, hash: u128, key: &[u8]) -> Option<Planned> {
        let Held::Plan {
            plan,
            slots: Some(slots),
        } = &self.find(hash, key)?.held
        else {
            return None;
        };
        let planned = Planned {
            plan: Arc::clone(plan),
            slots: Slots::from_slice(slots),
        };
        Some(self.hit(planned))
    }

    fn hit<T>(&mut self, found: T) -> T {
        self.stats.hits += 1;
        found
    }

    fn find(&mut self, hash: u128, key: &[u8]) -> Option<&mut Entry> {
        let entry = &mut self.ring[*self.index.get(&hash)?];
        if *entry.key != *key {
            return None;
        }
        entry.asked = true;
        Some(entry)
    }

    /// Puts an entry in, in the place of one with the same hash; makes room first.
    fn insert(&mut self, hash: u128, key: &[u8], held: Held, weight: usize) {
        let bytes = weight + key.len() + size_of::<Entry>() + size_of::<(u128, usize)>();
        if bytes > self.bytes_limit {
            return;
        }
        if let Some(at) = self.index.get(&hash) {
            self.remove(*at);
        }
        while self.bytes + bytes > self.bytes_limit {
            self.evict();
        }
        self.bytes += bytes;
        self.index.insert(hash, self.ring.len());
        self.ring.push(Entry {
            hash,
            key: key.into(),
            held,
            bytes,
            asked: false,
            last_text: 0,
        });
    }

    /// Removes the next entry that nobody asked for since the hand's last round; ends within two rounds.
    fn evict(&mut self) {
        loop {
            if self.hand >= self.ring.len() {
                self.hand = 0;
            }
            let Some(entry) = self.ring.get_mut(self.hand) else {
                return;
            };
            if !std::mem::take(&mut entry.asked) {
                self.stats.evictions += 1;
                self.remove(self.hand);
                // The newest entry stands here now: its turn comes in the next round.
                self.hand += 1;
                return;
            }
            self.hand += 1;
        }
    }

    /// Removes an entry; the last one takes its place in the ring.
    fn remove(&mut self, at: usize) {
        let entry = self.ring.swap_remove(at);
        self.index.remove(&entry.hash);
        self.bytes -= entry.bytes;
        if let Some(moved) = self.ring.get(at) {
            self.index.insert(moved.hash, at);
        }
    }
}

/// Keys of the index are hashes already.
#[derive(Debug, Default)]
struct HashIsKey(u64);

impl Hasher for HashIsKey {
    fn finish(&self) -> u64 {
        self.0
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half of the hash")]
    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{shard::ShardId, snapshot::Epoch},
        plan::Route,
        sql::statement::Access,
    };

    /// A cache with the counters of analyses that it caused.
    struct Fixture {
        cache: PlanCache,
        scratch: Scratch,
        context: Context,
        snapshot: Snapshot,
        analyses: u16,
    }

    impl Fixture {
        fn new(bytes_limit: usize) -> Self {
            Self {
                cache: PlanCache::new(bytes_limit, 7),
                scratch: Scratch::default(),
                context: Context::default(),
                snapshot: Snapshot::new("shop", vec!["s0".to_owned()]),
                analyses: 0,
            }
        }

        /// The number of the analysis that made the plan for this text, and its slots.
        fn ask(
            &mut self,
            text: &str,
            types: &[Oid],
            plan: impl FnOnce(u16) -> Plan,
        ) -> (u16, Slots) {
            let request = Request {
                text: text.as_bytes(),
                types,
                context: &self.context,
                snapshot: &self.snapshot,
            };
            let analyses = &mut self.analyses;
            let planned = self.cache.plan_with(&request, &mut self.scratch, |_| {
                *analyses += 1;
                plan(*analyses)
            });
            let Some(StatementPlan {
                target: Target::Fixed(Route::One(ShardId(number))),
                ..
            }) = planned.plan.statements.first()
            else {
                panic!("a plan of these tests");
            };
            (*number, planned.slots)
        }

        fn number(&mut self, text: &str) -> u16 {
            self.ask(text, &[], |number| numbered(number, &[])).0
        }
    }

    fn statement(number: u16) -> StatementPlan {
        StatementPlan::new(
            0..0,
            Effect::None,
            Access::Read,
            Target::Fixed(Route::One(ShardId(number))),
        )
    }

    fn numbered(number: u16, structural: &[u16]) -> Plan {
        Plan {
            statements: vec![statement(number)],
            structural: structural.to_vec(),
        }
    }

    const ROOMY: usize = 16 * 1024 * 1024;

    #[test]
    fn texts_that_differ_in_literal_values_share_a_plan() {
        let mut fixture = Fixture::new(ROOMY);
        assert_eq!(fixture.number("select * from t where id = 1"), 1);
        assert_eq!(fixture.number("select * from t where id = 42"), 1);
        let (number, slots) = fixture.ask("select *  from t where id = 4200", &[], |_| {
            panic!("planned already")
        });
        assert_eq!(
            (number, slots.as_slice()),
            (1, &[Slot { start: 28, end: 32 }][..])
        );
        let stats = fixture.cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.entries), (2, 1, 1));
    }

    #[test]
    fn what_a_plan_depends_on_is_part_of_its_key() {
        let mut fixture = Fixture::new(ROOMY);
        let text = "select * from t where id = 1";
        assert_eq!(fixture.number(text), 1);
        for other in [
            "select * from t where id = '1'",
            "select * from t where id = 1.0",
            "select * from t where id = 1;",
        ] {
            assert_ne!(fixture.number(other), 1, "{other}");
        }
        for other in [
            "/* shardway: key=1 */ select * from t where id = 1",
            "/* shardway: key=2 */ select * from t where id = 1",
        ] {
            let analyses = fixture.analyses;
            assert_eq!(fixture.number(other), analyses + 1, "{other}");
        }
        assert_ne!(
            fixture.ask(text, &[23], |number| numbered(number, &[])).0,
            1
        );
        assert_ne!(
            fixture
                .ask(text, &[23, 25], |number| numbered(number, &[]))
                .0,
            2
        );
        let digest = std::mem::replace(&mut fixture.context.digest, 2);
        assert_ne!(fixture.number(text), 1);
        fixture.context.digest = digest;
        fixture.snapshot.epoch = Epoch(2);
        assert_ne!(fixture.number(text), 1);
        fixture.snapshot.epoch = Epoch(1);
        assert_eq!(fixture.number(text), 1);
    }

    #[test]
    fn structural_literals_keep_plans_apart() {
        let mut fixture = Fixture::new(ROOMY);
        let mut ask = |text: &str, structural: &[u16]| {
            fixture
                .ask(text, &[], |number| numbered(number, structural))
                .0
        };
        assert_eq!(ask("select a from t where id = 1 order by 1", &[1]), 1);
        assert_eq!(ask("select a from t where id = 1 order by 2", &[1]), 2);
        assert_eq!(ask("select a from t where id = 9 order by 1", &[1]), 1);
        assert_eq!(ask("select a from t where id = 9 order by 2", &[1]), 2);
        // The plan for another text may name other literals.
        assert_eq!(ask("select a from t where id = 0 order by 3", &[0, 1]), 3);
        assert_eq!(ask("select a from t where id = 5 order by 3", &[0, 1]), 4);
        assert_eq!(ask("select a from t where id = 0 order by 3", &[]), 3);
        assert_eq!(ask("select a from t where id = 7 order by 2", &[]), 2);
    }

    #[test]
    fn what_is_true_of_one_text_only_is_found_by_that_text_only() {
        let plans: [fn(u16) -> Plan; 2] = [
            |number| Plan {
                statements: vec![statement(number), statement(number)],
                structural: Vec::new(),
            },
            |number| {
                let mut plan = numbered(number, &[]);
                plan.statements[0].effect = Effect::Set {
                    name: "a".to_owned(),
                    value: None,
                    local: false,
                };
                plan
            },
        ];
        for plan in plans {
            let mut fixture = Fixture::new(ROOMY);
            assert_eq!(fixture.ask("set a to 'b'", &[], plan).0, 1);
            assert_eq!(fixture.ask("set a to 'c'", &[], plan).0, 2);
            assert_eq!(fixture.ask("set a to 'b'", &[], plan).0, 1);
        }
    }

    #[test]
    fn a_statement_is_cut_out_of_its_own_text() {
        let mut fixture = Fixture::new(ROOMY);
        let mut texts = |text: &str, ends: &[u32]| {
            let request = Request {
                text: text.as_bytes(),
                types: &[],
                context: &fixture.context,
                snapshot: &fixture.snapshot,
            };
            let planned = fixture
                .cache
                .plan_with(&request, &mut fixture.scratch, |_| {
                    let mut start = 0;
                    let statements = ends
                        .iter()
                        .map(|end| StatementPlan {
                            start: std::mem::replace(&mut start, end + 1),
                            end: *end,
                            ..statement(0)
                        })
                        .collect();
                    Plan {
                        statements,
                        structural: Vec::new(),
                    }
                });
            let cut = |index| {
                planned
                    .statement_text(index, text.as_bytes())
                    .map(<[u8]>::to_ascii_uppercase)
            };
            [cut(0), cut(1)].map(|text| text.and_then(|text| String::from_utf8(text).ok()))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts("select 'a'", &[10]), [some("SELECT 'A'"), None]);
        assert_eq!(texts("select 'abc'", &[12]), [some("SELECT 'ABC'"), None]);
        assert_eq!(
            texts("select 'a';select 'bcd'", &[10, 23]),
            [some("SELECT 'A'"), some("SELECT 'BCD'")]
        );
        assert_eq!(
            texts("select 'abc';select 'd'", &[12, 23]),
            [some("SELECT 'ABC'"), some("SELECT 'D'")]
        );
    }

    #[test]
    fn texts_that_cannot_be_lexed_share_nothing() {
        let mut fixture = Fixture::new(ROOMY);
        assert_eq!(fixture.number("select 'a"), 1);
        assert_eq!(fixture.number("select 'b"), 2);
        assert_eq!(fixture.number("select 'a"), 1);
    }

    #[test]
    fn the_cache_stays_below_its_limit_and_keeps_what_is_asked_for() {
        let limit = 512 * 1024;
        let mut fixture = Fixture::new(limit);
        let hot = fixture.number("select * from hot where id = 1");
        for number in 0..5000 {
            fixture.number(&format!("select * from cold_{number} where id = 1"));
            assert_eq!(
                fixture.number(&format!("select * from hot where id = {number}")),
                hot
            );
        }
        let stats = fixture.cache.stats();
        assert!(stats.evictions > 1000, "{stats:?}");
        assert!(stats.bytes <= limit && stats.bytes > limit / 2, "{stats:?}");
    }

    #[test]
    fn long_texts_are_planned_and_not_stored() {
        let mut fixture = Fixture::new(ROOMY);
        let text = format!("select {}", "1, ".repeat(LONGEST_TEXT_BYTES));
        let (number, slots) = fixture.ask(&text, &[], |number| numbered(number, &[]));
        assert_eq!((number, slots.len()), (1, LONGEST_TEXT_BYTES));
        assert_eq!(fixture.number(&text), 2);
        assert_eq!(fixture.cache.stats().entries, 0);
    }
}
