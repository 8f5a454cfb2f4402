//! A world in which reshards run: servers, proxies and clients as state. Every function is one thing that happens at once,
//! as a transaction on one server is.
//!
//! What must stay true: a server refuses here exactly what a real one refuses: a lower token, a compare-and-swap of
//! something that has changed, a write that a guard takes. What goes wrong is found when it happens.

use shardway::reshard::{
    job::Direction,
    state::{Known, Record, State, Step},
};
use std::collections::{BTreeMap, BTreeSet};

/// Two shards that give keys away, and two that get them.
pub(crate) const OLD: [usize; 2] = [0, 1];
pub(crate) const NEW: [usize; 2] = [2, 3];
pub(crate) const KEYS: usize = 4;
/// The last of them knows of no hold: clients that bypass the proxies.
pub(crate) const WRITERS: usize = 3;
pub(crate) const BYPASS: usize = 2;

/// What is broken on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    Nothing,
    /// Nobody's token is looked at.
    Tokens,
    /// The last source is not fenced.
    OneFenceMissing,
    /// Nobody waits for what was written before the fence.
    NoDrain,
    /// Now and then a change is not applied.
    LosesChanges,
    /// Finishing leaves the guards.
    GuardsStay,
    /// Guards go while somebody still writes by the old map.
    GuardsGoEarly,
    /// The old owners are written to as well after the commit.
    NoGuards,
    /// Whoever takes a run over believes the record.
    Believes,
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum No {
    /// Not now.
    Again,
    /// Somebody else runs it.
    Replaced,
    /// It must not be.
    Halt,
    /// What a stream needs is gone.
    Lost,
    /// Somebody has to say whether its rows are copied again.
    FailedOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the words of shardway.hold")]
pub(crate) enum Held {
    Held,
    Released,
    Committed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Write { key: usize, number: u64 },
    Fence(i32),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Shard {
    pub(crate) schema: bool,
    /// The token of the last runner that was here.
    pub(crate) runner: i64,
    pub(crate) guard: Option<bool>,
    pub(crate) activated: BTreeSet<i32>,
    /// By key: the number of the last write.
    pub(crate) rows: BTreeMap<usize, u64>,
    pub(crate) log: Vec<Entry>,
    /// How far another's log is applied here.
    pub(crate) applied: BTreeMap<usize, usize>,
    /// From where on its log is kept for those that it gives rows; none: nothing is.
    pub(crate) slot: Option<usize>,
    /// Its timeline, and the one that was recorded when it was prepared.
    pub(crate) timeline: u32,
    pub(crate) recorded: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Writer {
    /// Whether it takes the new owners for the owners.
    pub(crate) new: bool,
    pub(crate) flips: i32,
    pub(crate) holding: Option<i32>,
}

/// What the home shard's standby has got of it.
#[derive(Clone, Debug)]
struct Standby {
    record: Record,
    version: i64,
    hold: Option<(i32, Held)>,
    flips: i32,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) sabotage: Sabotage,
    pub(crate) record: Record,
    pub(crate) version: i64,
    pub(crate) token: i64,
    pub(crate) leader: i64,
    pub(crate) hold: Option<(i32, Held)>,
    pub(crate) acknowledged: BTreeSet<(i32, usize)>,
    /// How often the map has changed, and in which attempts.
    pub(crate) flips: i32,
    pub(crate) flipped: BTreeMap<i32, i32>,
    pub(crate) doubled: bool,
    pub(crate) shards: Vec<Shard>,
    pub(crate) writers: Vec<Writer>,
    /// By key: the last write that was acknowledged.
    pub(crate) written: Vec<u64>,
    standby: Option<Standby>,
    /// Whether it has ever taken over.
    pub(crate) forgot: bool,
}

/// Who gives a key away or gets it.
pub(crate) fn old(key: usize) -> usize {
    OLD[key % 2]
}

pub(crate) fn new(key: usize) -> usize {
    NEW[key / 2]
}

impl World {
    pub(crate) fn new(sabotage: Sabotage) -> Self {
        let mut shards = vec![Shard::default(); 4];
        for key in 0..KEYS {
            shards[old(key)].rows.insert(key, 0);
        }
        Self {
            sabotage,
            record: Record::new(),
            version: 1,
            token: 0,
            leader: 0,
            hold: None,
            acknowledged: BTreeSet::new(),
            flips: 0,
            flipped: BTreeMap::new(),
            doubled: false,
            shards,
            writers: vec![
                Writer {
                    new: false,
                    flips: 0,
                    holding: None
                };
                WRITERS
            ],
            written: vec![0; KEYS],
            standby: None,
            forgot: false,
        }
    }

    // ---- What runners do ----

    pub(crate) fn elect(&mut self) -> i64 {
        self.leader += 1;
        self.leader
    }

    pub(crate) fn take_workflow(&mut self, token: i64) -> Result<(Record, i64), No> {
        self.ours(token)?;
        self.token = token;
        self.version += 1;
        Ok((self.record.clone(), self.version))
    }

    pub(crate) fn claim(&mut self, shard: usize, token: i64) -> Result<(), No> {
        let theirs = &mut self.shards[shard].runner;
        if *theirs > token && self.sabotage != Sabotage::Tokens {
            return Err(No::Replaced);
        }
        *theirs = token;
        Ok(())
    }

    fn ours(&self, token: i64) -> Result<(), No> {
        if self.token > token && self.sabotage != Sabotage::Tokens {
            return Err(No::Replaced);
        }
        Ok(())
    }

    pub(crate) fn swap(&mut self, token: i64, version: i64, record: &Record) -> Result<i64, No> {
        self.ours(token)?;
        if self.version != version && self.sabotage != Sabotage::Tokens {
            return Err(No::Again);
        }
        self.record = record.clone();
        self.version += 1;
        Ok(self.version)
    }

    pub(crate) fn make_schema(&mut self, shard: usize, token: i64) -> Result<(), No> {
        self.claim(shard, token)?;
        self.shards[shard].schema = true;
        Ok(())
    }

    /// Makes what a source tells its changes by, and writes down who it is. What was copied before is of no use.
    pub(crate) fn make_slot(&mut self, shard: usize, token: i64) -> Result<(), No> {
        self.claim(shard, token)?;
        let failed_over = self.shards[shard].timeline != self.shards[shard].recorded;
        if self.shards[shard].slot.is_none() || failed_over {
            for (key, to) in (0..KEYS).map(|key| (key, new(key))) {
                if old(key) == shard {
                    assert!(self.flips == 0, "an owner's rows were deleted");
                    self.shards[to].rows.remove(&key);
                    self.shards[to].applied.remove(&shard);
                }
            }
            self.shards[shard].slot = Some(self.shards[shard].log.len());
        }
        self.shards[shard].recorded = self.shards[shard].timeline;
        Ok(())
    }

    /// What those who go on with a source's changes meet.
    fn is_itself(&self, shard: usize) -> Result<(), No> {
        let it = &self.shards[shard];
        if it.timeline == it.recorded {
            Ok(())
        } else {
            Err(No::FailedOver)
        }
    }

    pub(crate) fn set_doubled(&mut self, token: i64, doubled: bool) -> Result<(), No> {
        self.ours(token)?;
        self.doubled = doubled;
        Ok(())
    }

    /// Whether everybody writes by the map as it is.
    pub(crate) fn all_know(&self) -> Result<(), No> {
        let early = self.sabotage == Sabotage::GuardsGoEarly;
        let know = self.writers.iter().all(|it| it.flips == self.flips);
        if know || early {
            Ok(())
        } else {
            Err(No::Again)
        }
    }

    pub(crate) fn copy(&mut self, key: usize, token: i64) -> Result<(), No> {
        assert!(self.shards[new(key)].schema, "a copy to where no table is");
        self.claim(new(key), token)?;
        self.is_itself(old(key))?;
        if self.shards[old(key)].slot.is_none() {
            return Err(No::Lost);
        }
        // What is recorded as copied is not copied again.
        if self.shards[new(key)].rows.contains_key(&key) {
            return Ok(());
        }
        let (rows, at) = {
            let source = &self.shards[old(key)];
            (source.rows.get(&key).copied(), source.log.len())
        };
        let Some(number) = rows else {
            return Err(No::Halt);
        };
        let to = &mut self.shards[new(key)];
        // What was copied twice is copied as it is now; the other keys of this source were copied together with it.
        to.rows.insert(key, number);
        let from = to.applied.entry(old(key)).or_insert(at);
        *from = (*from).min(at);
        Ok(())
    }

    pub(crate) fn apply(&mut self, from: usize, to: usize, token: i64) -> Result<bool, No> {
        self.claim(to, token)?;
        let at = self.shards[to].applied.get(&from).copied();
        if OLD.contains(&from) && self.flips == 0 {
            self.is_itself(from)?;
            let is_copied = |key| self.shards[to].rows.contains_key(&key);
            let mut moves = (0..KEYS).filter(|key| old(*key) == from && new(*key) == to);
            match self.shards[from].slot {
                Some(kept) if at.is_some_and(|at| at >= kept) && moves.all(is_copied) => {}
                Some(_) | None => return Err(No::Lost),
            }
        }
        let Some(at) = at else {
            return Err(No::Again);
        };
        let Some(entry) = self.shards[from].log.get(at).copied() else {
            return Ok(false);
        };
        if let Entry::Write { key, number } = entry
            && (old(key) == to || new(key) == to)
            && (self.sabotage != Sabotage::LosesChanges || number % 5 != 0)
        {
            let row = self.shards[to].rows.entry(key).or_insert(0);
            // What the chunk had already is not visible a second time.
            *row = (*row).max(number);
        }
        self.shards[to].applied.insert(from, at + 1);
        Ok(true)
    }

    pub(crate) fn make_guard(&mut self, shard: usize, token: i64) -> Result<(), No> {
        self.claim(shard, token)?;
        self.shards[shard].guard.get_or_insert(false);
        Ok(())
    }

    pub(crate) fn hold(&mut self, token: i64, version: i64, attempt: i32) -> Result<(), No> {
        self.ours(token)?;
        if self.version != version && self.sabotage != Sabotage::Tokens {
            return Err(No::Again);
        }
        if self.hold != Some((attempt, Held::Held)) {
            self.hold = Some((attempt, Held::Held));
        }
        Ok(())
    }

    pub(crate) fn drained(&self, attempt: i32) -> Result<(), No> {
        let all = (0..BYPASS).all(|writer| self.acknowledged.contains(&(attempt, writer)));
        if all && self.hold == Some((attempt, Held::Held)) {
            Ok(())
        } else {
            Err(No::Again)
        }
    }

    pub(crate) fn fence(&mut self, shard: usize, token: i64, attempt: i32) -> Result<(), No> {
        self.claim(shard, token)?;
        let last = OLD[1] == shard || NEW[1] == shard;
        if last && self.sabotage == Sabotage::OneFenceMissing {
            return Ok(());
        }
        let shard = &mut self.shards[shard];
        assert!(shard.guard.is_some(), "a fence without its guard");
        shard.guard = Some(self.sabotage != Sabotage::NoGuards);
        shard.log.push(Entry::Fence(attempt));
        Ok(())
    }

    pub(crate) fn has_applied_fence(&self, from: usize, to: usize, attempt: i32) -> bool {
        let log = &self.shards[from].log;
        let fence = log.iter().position(|entry| *entry == Entry::Fence(attempt));
        let applied = self.shards[to].applied.get(&from);
        matches!((fence, applied), (Some(fence), Some(applied)) if *applied > fence)
    }

    pub(crate) fn note_back(&mut self, from: usize, to: usize, token: i64) -> Result<(), No> {
        self.claim(to, token)?;
        let at = self.shards[from].log.len();
        self.shards[to].applied.insert(from, at);
        Ok(())
    }

    pub(crate) fn commit(&mut self, token: i64, version: i64, record: &Record) -> Result<i64, No> {
        self.ours(token)?;
        let any = self.sabotage == Sabotage::Tokens;
        if self.version != version && !any {
            return Err(No::Again);
        }
        if self.hold != Some((record.attempt, Held::Held)) && !any {
            return Err(No::Again);
        }
        self.hold = Some((record.attempt, Held::Committed));
        self.flips += 1;
        *self.flipped.entry(record.attempt).or_insert(0) += 1;
        self.record = record.clone();
        self.version += 1;
        self.judge_flip(record.attempt);
        Ok(self.version)
    }

    pub(crate) fn activate(&mut self, shard: usize, token: i64, attempt: i32) -> Result<(), No> {
        self.claim(shard, token)?;
        let shard = &mut self.shards[shard];
        if shard.activated.iter().any(|later| *later > attempt) {
            return Err(No::Halt);
        }
        shard.activated.insert(attempt);
        if shard.guard == Some(true) {
            shard.guard = Some(false);
        }
        Ok(())
    }

    /// Whether an attempt is known to be undone, and not committed.
    pub(crate) fn unless_committed(&self, token: i64, attempt: i32) -> Result<(), No> {
        self.ours(token)?;
        let activated = self.shards.iter().any(|it| it.activated.contains(&attempt));
        let undone = self.record.attempt == attempt && self.record.step == Some(Step::Undo);
        if undone && !activated && self.hold != Some((attempt, Held::Committed)) {
            Ok(())
        } else {
            Err(No::Halt)
        }
    }

    pub(crate) fn unfence(&mut self, shard: usize, token: i64) -> Result<(), No> {
        self.claim(shard, token)?;
        if self.shards[shard].guard == Some(true) {
            self.shards[shard].guard = Some(false);
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, attempt: i32) -> Result<(), No> {
        if self.hold == Some((attempt, Held::Held)) {
            self.hold = Some((attempt, Held::Released));
        }
        Ok(())
    }

    pub(crate) fn delete(&mut self, shard: usize, token: i64) -> Result<(), No> {
        self.claim(shard, token)?;
        let serving = if self.flips % 2 == 0 { OLD } else { NEW };
        assert!(!serving.contains(&shard), "an owner's rows were deleted");
        assert!(
            self.doubled || self.shards[shard].rows.is_empty(),
            "rows went while scans still took them for an owner's"
        );
        self.shards[shard].rows.clear();
        Ok(())
    }

    pub(crate) fn drop_all(&mut self, shard: usize, token: i64) -> Result<(), No> {
        self.claim(shard, token)?;
        let it = &mut self.shards[shard];
        it.applied.clear();
        it.schema = false;
        it.slot = None;
        if self.sabotage != Sabotage::GuardsStay {
            it.guard = None;
        }
        Ok(())
    }

    // ---- What servers do ----

    /// A server keeps no more WAL for a slot that has fallen behind.
    pub(crate) fn lose_slot(&mut self, shard: usize) {
        self.shards[shard].slot = None;
    }

    /// The home shard's standby gets all that there is.
    pub(crate) fn replicate(&mut self) {
        self.standby = Some(Standby {
            record: self.record.clone(),
            version: self.version,
            hold: self.hold,
            flips: self.flips,
        });
    }

    /// The home shard's standby takes over, and lacks what came since. The map is given back by a shard that owns keys by
    /// it: not lost is what one knows. Who leads does so by a token of the server that is gone.
    pub(crate) fn forget(&mut self) {
        let Some(standby) = self.standby.take() else {
            return;
        };
        let attempt = self.record.attempt;
        let known = self.shards.iter().any(|it| it.activated.contains(&attempt));
        let ends = matches!(
            self.record.state,
            State::Finish | State::Done | State::Abort | State::Aborted
        );
        let flipped = self.flipped.contains_key(&attempt);
        if ends || (standby.flips != self.flips && flipped && !known) {
            return;
        }
        (self.record, self.version) = (standby.record, standby.version);
        self.hold = standby.hold;
        self.token = self.leader;
        self.forgot = true;
    }

    /// What shards know of the run's attempts.
    pub(crate) fn known(&self) -> Known {
        let mut known = Known::default();
        for (at, shard) in self.shards.iter().enumerate() {
            for entry in &shard.log {
                if let Entry::Fence(attempt) = entry {
                    known.tried = known.tried.max(*attempt);
                }
            }
            let direction = if NEW.contains(&at) {
                Direction::Forward
            } else {
                Direction::Back
            };
            if let Some(attempt) = shard.activated.last()
                && known.last.is_none_or(|(last, _)| last < *attempt)
            {
                known.last = Some((*attempt, direction));
            }
        }
        known
    }

    /// A source's standby takes over. Nothing that it has acknowledged is missing there, but the slot is.
    pub(crate) fn fail_over(&mut self, shard: usize) {
        self.shards[shard].timeline += 1;
        self.shards[shard].slot = None;
    }

    // ---- What proxies and clients do ----

    /// A deadline passes.
    pub(crate) fn expire(&mut self) {
        if let Some((attempt, Held::Held)) = self.hold {
            self.hold = Some((attempt, Held::Released));
        }
    }

    pub(crate) fn look_at_hold(&mut self, writer: usize) {
        match self.hold {
            Some((attempt, Held::Held)) => {
                self.writers[writer].holding = Some(attempt);
                self.acknowledged.insert((attempt, writer));
            }
            Some((_, Held::Committed)) => self.refresh(writer),
            Some((_, Held::Released)) | None => self.writers[writer].holding = None,
        }
    }

    pub(crate) fn refresh(&mut self, writer: usize) {
        let writer = &mut self.writers[writer];
        writer.new = self.flips % 2 == 1;
        writer.flips = self.flips;
        if !matches!(self.hold, Some((_, Held::Held))) {
            writer.holding = None;
        }
    }

    /// Somebody writes a key; whether it was acknowledged.
    pub(crate) fn write(&mut self, writer: usize, key: usize) -> bool {
        let by = &self.writers[writer];
        if by.holding.is_some() {
            return false;
        }
        let at = if by.new { new(key) } else { old(key) };
        if self.shards[at].guard == Some(true) {
            return false;
        }
        let before = self.shards[at].rows.get(&key).copied();
        assert_eq!(
            before,
            Some(self.written[key]),
            "a write was acknowledged where not all earlier ones are: key {key} on shard {at}"
        );
        self.written[key] += 1;
        let number = self.written[key];
        self.shards[at].rows.insert(key, number);
        self.shards[at].log.push(Entry::Write { key, number });
        true
    }

    // ---- What must stay true ----

    /// At every moment.
    pub(crate) fn judge(&self) {
        for key in 0..KEYS {
            let takes = |at: usize, new: bool| {
                self.shards[at].guard != Some(true) && self.writers.iter().any(|it| it.new == new)
            };
            assert!(
                !(takes(old(key), false) && takes(new(key), true)),
                "two owners take writes of key {key}"
            );
        }
        for (attempt, flips) in &self.flipped {
            assert!(
                *flips <= 1,
                "attempt {attempt} changed the map {flips} times"
            );
        }
    }

    fn judge_flip(&self, attempt: i32) {
        let (from, to) = if self.flips % 2 == 1 {
            (OLD, NEW)
        } else {
            (NEW, OLD)
        };
        for (from, to) in from.into_iter().flat_map(|from| to.map(|to| (from, to))) {
            assert!(
                self.has_applied_fence(from, to, attempt),
                "the map changed without the fence of {from} on {to}"
            );
        }
    }

    /// When it is over.
    pub(crate) fn judge_end(&self) {
        assert!(self.record.is_over(), "it ends: {:?}", self.record);
        let new_serve = self.record.state == State::Done;
        assert_eq!(self.flips % 2 == 1, new_serve, "who serves at the end");
        assert!(!self.doubled, "rows are still said to be on two shards");
        assert!(!matches!(self.hold, Some((_, Held::Held))), "still held");
        for (at, shard) in self.shards.iter().enumerate() {
            assert_eq!(shard.guard, None, "a guard is left on {at}");
            assert_eq!(shard.slot, None, "a slot is left on {at}");
            assert!(shard.applied.is_empty(), "a stream's place is left on {at}");
            assert_eq!(NEW.contains(&at) == new_serve, !shard.rows.is_empty());
        }
        for key in 0..KEYS {
            let owner = if new_serve { new(key) } else { old(key) };
            assert_eq!(
                self.shards[owner].rows.get(&key),
                Some(&self.written[key]),
                "acknowledged writes of key {key}"
            );
        }
    }
}
