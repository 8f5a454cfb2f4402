//! Ids and numbers that all shards share: nodes and the time lent to them, and numbers of sequences, which the home shard
//! gives.
//!
//! What must stay true: an id is only given within a window that the home shard has lent to this very generator; numbers
//! of a sequence are drawn with the rights of the role that they are for, and given to that role only; what a sequence
//! gave is given on once, in its order.

use super::{Registry, errand};
use crate::{
    catalog::{
        computed::{DrawnBy, Sequence, Sought},
        id::{Generator, Spent, Window},
        shard::ShardId,
    },
    clock::{Clock, Duration},
    entropy,
    inspect::AskError,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};
use tokio_postgres::SimpleQueryMessage;

/// How long a node is lent: so long ids are given while the home shard cannot be asked, half of it at least.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// All the time that there is for ids, in milliseconds.
const FOR_EVER: i64 = 1 << 41;

const LEND: &str = "SELECT node, \"from\", until, shown FROM shardway.lend($1, $2)";
const NODE: &str = "SELECT node FROM shardway.node WHERE holder = $1";
const OWN: &str = "SELECT node FROM shardway.this_node";
const NAME: &str = "INSERT INTO shardway.this_node (node) VALUES ($1) ON CONFLICT DO NOTHING";

/// What one logical database gives in this process.
#[derive(Debug)]
pub struct Ids {
    clock: Clock,
    /// Under which name a node is lent to it.
    holder: String,
    /// How many numbers of a sequence are drawn ahead.
    block: usize,
    generator: tokio::sync::Mutex<Option<Generator>>,
    blocks: Mutex<HashMap<Asked, VecDeque<i64>>>,
}

/// A sequence, and the role that its numbers are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    sequence: Sequence,
    role: String,
}

impl Ids {
    /// Asks nobody yet.
    #[must_use]
    pub fn new(clock: Clock, block: usize) -> Self {
        Self {
            clock,
            holder: format!("{:016x}", u64::from_le_bytes(entropy::bytes())),
            block,
            generator: tokio::sync::Mutex::default(),
            blocks: Mutex::default(),
        }
    }

    /// So many ids, in their order.
    ///
    /// # Errors
    /// The home shard, which lends the time for them, cannot be asked, and what it lent before is at its end.
    pub async fn next(&self, registry: &Registry, count: usize) -> Result<Vec<i64>, AskError> {
        let mut held = self.generator.lock().await;
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let now = self.clock.now();
            let given = match held.as_mut() {
                Some(generator) if !generator.wants_more(now, WINDOW) => generator.give(now),
                _ => Err(Spent),
            };
            let given = match given {
                Ok(id) => Ok(id),
                Err(Spent) => match (self.lend(registry, &mut held).await, held.as_mut()) {
                    (Ok(()), Some(generator)) => generator.give(self.clock.now()),
                    (Err(problem), Some(generator)) => {
                        // What is left is still ours.
                        let left = generator.give(now);
                        Ok(left.map_err(|Spent| problem)?)
                    }
                    (Err(problem), None) => return Err(problem),
                    (Ok(()), None) => Err(Spent),
                },
            };
            ids.push(given.map_err(|Spent| AskError::Timeout)?);
        }
        Ok(ids)
    }

    /// More time for our node, or for another if somebody else has ours by now.
    async fn lend(
        &self,
        registry: &Registry,
        held: &mut Option<Generator>,
    ) -> Result<(), AskError> {
        let lease = registry.lease(registry.home).await?;
        let length = i64::try_from(WINDOW.as_millis()).unwrap_or(FOR_EVER);
        // Earlier than the server looks: what it shows is never taken for later than it was.
        let lent = errand(async { Ok(lease.query_one(LEND, &[&self.holder, &length]).await?) });
        let row = lent.await?;
        let seen = self.clock.now();
        let (node, from, until, shown): (i32, i64, i64, i64) = (
            row.try_get(0)?,
            row.try_get(1)?,
            row.try_get(2)?,
            row.try_get(3)?,
        );
        lease.done();
        let node = u16::try_from(node).unwrap_or_default();
        match held {
            Some(generator) if generator.node() == node && from <= generator.until() => {
                generator.extend(until, shown, seen);
            }
            _ => {
                let window = Window { node, from, until };
                *held = Some(Generator::new(window, shown, seen));
            }
        }
        Ok(())
    }

    /// So many numbers of a sequence, in its order, for a role.
    ///
    /// # Errors
    /// What the home shard says, or why it cannot be asked.
    pub async fn draw(
        &self,
        registry: &Registry,
        sequence: &Sequence,
        role: &str,
        count: usize,
    ) -> Result<Vec<i64>, AskError> {
        let asked = Asked {
            sequence: sequence.clone(),
            role: match &sequence.drawn_by {
                DrawnBy::Session => role.to_owned(),
                DrawnBy::Owner(owner) => owner.clone(),
            },
        };
        let mut numbers = self.take(&asked, count);
        while numbers.len() < count {
            let wanted = (count - numbers.len()).max(self.block);
            let drawn = registry.draw(&asked.sequence, &asked.role, wanted).await?;
            let used = drawn.len().min(count - numbers.len());
            numbers.extend_from_slice(&drawn[..used]);
            self.keep(&asked, &drawn[used..]);
        }
        Ok(numbers)
    }

    /// What was drawn ahead is not given any more.
    pub fn forget(&self) {
        self.blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Numbers that were drawn ahead.
    fn take(&self, asked: &Asked, count: usize) -> Vec<i64> {
        if self.block <= 1 {
            return Vec::with_capacity(count);
        }
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        match blocks.get_mut(asked) {
            Some(ahead) => ahead.drain(..ahead.len().min(count)).collect(),
            None => Vec::with_capacity(count),
        }
    }

    fn keep(&self, asked: &Asked, ahead: &[i64]) {
        if !ahead.is_empty() {
            let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            blocks.entry(asked.clone()).or_default().extend(ahead);
        }
    }
}

impl Registry {
    /// Gives every shard its number for ids, once for ever.
    ///
    /// # Errors
    /// A shard cannot be asked: the next round goes on.
    pub(super) async fn number_shards(&self) -> Result<(), AskError> {
        for shard in self.shards() {
            self.number_shard(shard).await?;
        }
        Ok(())
    }

    async fn number_shard(&self, shard: ShardId) -> Result<(), AskError> {
        let lease = self.lease(shard).await?;
        errand(async {
            if lease.query_opt(OWN, &[]).await?.is_some() {
                return Ok(());
            }
            let holder = format!("shard {}", self.name(shard));
            let home = self.lease(self.home).await?;
            let node: i32 = match home.query_opt(NODE, &[&holder]).await? {
                Some(row) => row.try_get(0)?,
                None => home
                    .query_one(LEND, &[&holder, &FOR_EVER])
                    .await?
                    .try_get(0)?,
            };
            home.done();
            lease.execute(NAME, &[&node]).await?;
            Ok(())
        })
        .await?;
        lease.done();
        Ok(())
    }

    /// Up to so many numbers of a sequence of the home shard, at least one, drawn as that role.
    async fn draw(
        &self,
        sequence: &Sequence,
        role: &str,
        wanted: usize,
    ) -> Result<Vec<i64>, AskError> {
        let (name, path) = match &sequence.name {
            Sought::Known(name) => (
                format!("{}.{}", identifier(&name.schema), identifier(&name.name)),
                "pg_catalog".to_owned(),
            ),
            Sought::Written { name, path } => {
                let path: Vec<String> = path.iter().map(|schema| identifier(schema)).collect();
                (name.clone(), path.join(", "))
            }
        };
        let path = if path.is_empty() { "''" } else { &path };
        // One message: it is one transaction, at whose end the connection is itself again.
        let sql = format!(
            "SET LOCAL ROLE {}; SET LOCAL search_path = {path}; \
             SELECT pg_catalog.unnest(shardway.draw({}::pg_catalog.regclass, {wanted}))",
            identifier(role),
            literal(&name),
        );
        let lease = self.lease(self.home).await?;
        let said = errand(async { Ok(lease.simple_query(&sql).await?) }).await?;
        lease.done();
        let numbers = said.iter().filter_map(|message| {
            if let SimpleQueryMessage::Row(row) = message {
                row.get(0)?.parse().ok()
            } else {
                None
            }
        });
        let numbers: Vec<i64> = numbers.collect();
        if numbers.is_empty() {
            return Err(AskError::Connection("it gave no numbers".to_owned()));
        }
        Ok(numbers)
    }
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{escaped}'")
}
