//! A client's lives, one after the other: each logs in, works for a while, and ends, mostly not as it should.
//!
//! What a person has written survives his lives, with what may have become of it: a write whose answer was not seen may
//! hold or not, everything else is known exactly. Each person writes only rows of his own.

use crate::{
    client::{Batch, batch},
    random::Random,
    stage::{LOYAL, PROVEN, Place, TRUSTED},
    wire::{End, Wire, initial_response, startup_packet},
};
use shardway::{
    catalog::{shard::ShardId, snapshot::Snapshot},
    wire::startup,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of a hundred things that a client says, so many are its last.
const DEATHS: usize = 3;
/// Rows of one person have numbers from his own times this.
const ROWS_EACH: i64 = 10_000_000;

/// What all clients share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) port: u16,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) over: AtomicBool,
    pub(crate) counts: Counts,
    pub(crate) problems: Mutex<Vec<String>>,
    /// Who holds a backend for long: reads slowly, sleeps on the server, is pinned.
    pub(crate) holders: Arc<Semaphore>,
    /// Milliseconds that a client thinks at most.
    pub(crate) pause: usize,
}

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) lives: AtomicUsize,
    pub(crate) deaths: AtomicUsize,
    pub(crate) stillborn: AtomicUsize,
    pub(crate) answers: AtomicUsize,
    pub(crate) cancels: AtomicUsize,
}

/// Who lives again and again.
#[derive(Debug)]
pub(crate) struct Person {
    pub(crate) number: usize,
    pub(crate) place: Place,
    pub(crate) random: Random,
    /// Each row with every body that it may have; `None`: it is not there.
    pub(crate) rows: BTreeMap<i64, Vec<Option<String>>>,
    user: &'static str,
    next_row: i64,
    words: usize,
}

/// A life between login and death.
#[derive(Debug)]
pub(crate) struct Life<'a> {
    pub(crate) person: &'a mut Person,
    pub(crate) world: &'a World,
    pub(crate) wire: Wire,
    /// What was set, by name, as the server shows it.
    pub(crate) settings: BTreeMap<&'static str, String>,
    pub(crate) prepared: BTreeSet<usize>,
    /// While the session keeps a backend.
    pub(crate) holds: Option<OwnedSemaphorePermit>,
}

impl Person {
    pub(crate) fn new(number: usize, seed: u64) -> Self {
        let mut random = Random::new(seed ^ (number as u64).wrapping_mul(0x9E37_79B9));
        random.next();
        Self {
            number,
            place: [Place::Single, Place::Sharded][number % 2],
            user: match number % 40 {
                6 | 7 => LOYAL,
                at if at % 4 >= 2 => PROVEN,
                _ => TRUSTED,
            },
            random,
            rows: BTreeMap::new(),
            next_row: ROWS_EACH * i64::try_from(number).unwrap(),
            words: 0,
        }
    }

    /// Whether each of his sessions has a backend to itself.
    pub(crate) fn is_loyal(&self) -> bool {
        self.user == LOYAL
    }

    /// A text that nobody has said before.
    pub(crate) fn word(&mut self) -> String {
        self.words += 1;
        format!("p{}w{}", self.number, self.words)
    }

    /// Lives until it is over.
    pub(crate) async fn live(mut self, world: Arc<World>) -> Self {
        // Not all at once: proofs of passwords are work for this process too.
        let pause = self.random.below(10 * world.pause.max(1));
        tokio::time::sleep(Duration::from_millis(pause as u64)).await;
        while !world.over.load(Relaxed) {
            let end = self.one_life(&world).await;
            if let End::Wrong(problem) = end {
                let problem = format!(
                    "{} on {}: {problem}",
                    self.user.to_owned() + &self.number.to_string(),
                    self.place.database()
                );
                world.problems.lock().unwrap().push(problem);
            }
        }
        self
    }

    async fn one_life(&mut self, world: &World) -> End {
        world.counts.lives.fetch_add(1, Relaxed);
        let wire = match self.be_born(world).await {
            Ok(wire) => wire,
            Err(end) => return end,
        };
        let name = format!("person {}", self.number);
        let life = Life {
            person: self,
            world,
            wire,
            settings: BTreeMap::from([("application_name", name)]),
            prepared: BTreeSet::new(),
            holds: None,
        };
        life.work().await
    }

    /// Logs in, or dies on the way.
    async fn be_born(&mut self, world: &World) -> Result<Wire, End> {
        let mut wire = Wire::open(world.port).await?;
        let name = format!("person {}", self.number);
        let packet = startup_packet(self.user, self.place.database(), &name);
        let dies_at = if self.random.chance(10) {
            self.random.below(6)
        } else {
            usize::MAX
        };
        let part = self.random.below(packet.len());
        match dies_at {
            0 => {}
            1 => wire.send(&packet[..part]).await?,
            2 => {
                let mut request = Vec::new();
                startup::put_ssl_request(&mut request);
                wire.send(&request).await?;
                wire.nibble(1).await;
            }
            _ => wire.send(&packet).await?,
        }
        if dies_at > 3 && self.user == PROVEN {
            if dies_at < usize::MAX {
                let first = initial_response(b"n,,n=,r=rOprNGfwEbeRWgbNEkqO");
                let part = if dies_at == 4 {
                    first.len() / 2
                } else {
                    first.len()
                };
                wire.nibble(64).await;
                wire.send(&first[..part]).await?;
            } else {
                wire.prove(PROVEN).await?;
            }
        }
        if dies_at < usize::MAX {
            world.counts.stillborn.fetch_add(1, Relaxed);
            wire.die(self.random.chance(50));
            return Err(End::Died);
        }
        wire.welcome().await?;
        Ok(wire)
    }

    /// A number that no row has; of a row on this shard, if it matters.
    pub(crate) fn fresh_row(&mut self, world: &World, shard: Option<ShardId>) -> i64 {
        loop {
            self.next_row += 1;
            if shard.is_none_or(|shard| shard_of(&world.snapshot, self.next_row) == shard) {
                return self.next_row;
            }
        }
    }

    /// What a row may hold.
    pub(crate) fn bodies(&self, row: i64) -> Vec<Option<String>> {
        self.rows.get(&row).cloned().unwrap_or_else(|| vec![None])
    }
}

impl Life<'_> {
    async fn work(mut self) -> End {
        let acts = 1 + self.person.random.below(60);
        for _ in 0..acts {
            if self.world.over.load(Relaxed) {
                break;
            }
            if let Err(end) = self.act().await {
                return self.end(end);
            }
            let pause = self.person.random.below(self.world.pause.max(1));
            tokio::time::sleep(Duration::from_millis(pause as u64)).await;
        }
        let goodbye = batch().bare(b'X');
        if self.person.random.chance(50)
            && let Err(end) = self.wire.send(&goodbye.0).await
        {
            return self.end(end);
        }
        self.end(End::Died)
    }

    fn end(self, end: End) -> End {
        self.wire.die(self.person.random.chance(30));
        end
    }

    /// Sends, and reads the answers up to that many ReadyForQuery; or dies of it.
    pub(crate) async fn say(&mut self, said: &Batch, readies: usize) -> Result<Vec<String>, End> {
        self.may_die(&said.0).await?;
        let found = if said.0.len() > 16 * 1024 {
            self.wire.send_and_read(&said.0, readies).await?
        } else {
            self.wire.send(&said.0).await?;
            self.wire.answers(readies).await?
        };
        self.world.counts.answers.fetch_add(readies, Relaxed);
        Ok(found)
    }

    /// Sends what has no answer of its own; or dies of it.
    pub(crate) async fn mutter(&mut self, said: &Batch) -> Result<(), End> {
        self.may_die(&said.0).await?;
        self.wire.send(&said.0).await
    }

    /// Dies, if it is time: somewhere in what it was about to say, or in the answer.
    async fn may_die(&mut self, said: &[u8]) -> Result<(), End> {
        let random = &mut self.person.random;
        if !random.chance(DEATHS) {
            return Ok(());
        }
        let (sent, reads) = match random.below(3) {
            0 => (random.below(said.len()), 0),
            1 => (said.len(), 0),
            _ => (said.len(), 1 + random.below(3)),
        };
        // A long message may be one that the proxy does not read to its end any more: nobody is left to care.
        let sent = sent.min(64 * 1024);
        self.wire.send(&said[..sent]).await?;
        for _ in 0..reads {
            let count = 1 + self.person.random.below(100);
            self.wire.nibble(count).await;
        }
        self.die()
    }

    /// The end of this life.
    pub(crate) fn die<T>(&self) -> Result<T, End> {
        self.world.counts.deaths.fetch_add(1, Relaxed);
        Err(End::Died)
    }

    /// Waits for its turn to hold a backend for longer than others like.
    pub(crate) async fn hold(&mut self) {
        if self.holds.is_none() && !self.person.is_loyal() {
            let holders = Arc::clone(&self.world.holders);
            self.holds = holders.acquire_owned().await.ok();
        }
    }
}

/// Where a row lives.
pub(crate) fn shard_of(snapshot: &Snapshot, row: i64) -> ShardId {
    let group = &snapshot.groups[0];
    let key = group
        .key_type
        .from_text(row.to_string().as_bytes())
        .unwrap();
    group.shard_of(&key).unwrap()
}

/// What was answered is what must be answered.
pub(crate) fn expect(asked: &str, found: &[String], expected: &[&str]) -> Result<(), End> {
    if found == expected {
        return Ok(());
    }
    let at = found
        .iter()
        .zip(expected)
        .take_while(|(found, expected)| found == expected)
        .count();
    let shown = |line: Option<&str>| {
        line.unwrap_or("nothing")
            .chars()
            .take(200)
            .collect::<String>()
    };
    Err(End::Wrong(format!(
        "{asked}: answer {at} is {:?} in place of {:?}, of {} and {}",
        shown(found.get(at).map(String::as_str)),
        shown(expected.get(at).copied()),
        found.len(),
        expected.len()
    )))
}
