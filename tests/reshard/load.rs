//! Clients that write all the time, remember what was acknowledged, and say afterwards whether it is all there.
//!
//! What must stay true: what is remembered as written was acknowledged; what may or may not have been written, because the
//! connection ended before an answer, is remembered as open and is neither missed nor wrong.

use crate::harness::open_session;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};

/// Accounts, each with 1000 at the beginning.
pub(crate) const ACCOUNTS: i64 = 400;

/// What is known of a row that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    There,
    Gone,
    /// Nobody was told.
    Open,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Entries by account and number.
    pub(crate) entries: Mutex<BTreeMap<(i64, i64), Known>>,
    /// Errors that a client was told, in words.
    pub(crate) errors: Mutex<Vec<String>>,
    /// Statements and transactions that were answered.
    pub(crate) answered: AtomicU64,
    /// The longest that one of them took, in microseconds.
    pub(crate) longest: AtomicU64,
    proxies: Mutex<Vec<Config>>,
    next: AtomicU64,
    stop: AtomicBool,
}

/// Clients at work.
pub(crate) struct Load {
    pub(crate) seen: Arc<Seen>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// So many clients, shared out among the proxies.
    pub(crate) fn start(proxies: &[Config], clients: u64) -> Self {
        let seen = Arc::new(Seen::default());
        seen.goes_to(proxies);
        let each = (0..clients).map(|number| tokio::spawn(work(number, Arc::clone(&seen))));
        Self {
            clients: each.collect(),
            seen,
        }
    }

    /// Ends the clients after what they are at.
    pub(crate) async fn stop(self) -> Arc<Seen> {
        self.seen.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        self.seen
    }
}

impl Seen {
    /// From the next connection on.
    pub(crate) fn goes_to(&self, proxies: &[Config]) {
        *self.proxies.lock().unwrap() = proxies.to_vec();
    }

    fn proxy(&self, number: u64) -> Config {
        let proxies = self.proxies.lock().unwrap();
        proxies[number as usize % proxies.len()].clone()
    }

    fn number(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed).cast_signed()
    }

    fn note(&self, key: (i64, i64), known: Known) {
        self.entries.lock().unwrap().insert(key, known);
    }

    fn failed(&self, error: &Error) {
        let words = match error.as_db_error() {
            Some(said) => format!(
                "{}: {} ({:?})",
                said.code().code(),
                said.message(),
                said.detail()
            ),
            None => error.to_string(),
        };
        self.errors.lock().unwrap().push(words);
    }
}

/// One client: connects again whenever its connection ends.
async fn work(number: u64, seen: Arc<Seen>) {
    let mut random = Random(number * 7919 + 1);
    while !seen.stop.load(Ordering::Relaxed) {
        match open_session(&seen.proxy(number)).await {
            Ok(client) => session(&client, &mut random, &seen).await,
            Err(error) => {
                seen.failed(&error);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}

async fn session(client: &Client, random: &mut Random, seen: &Seen) {
    while !seen.stop.load(Ordering::Relaxed) {
        let begun = std::time::Instant::now();
        let done = match random.below(8) {
            0 | 1 => transfer(client, random, seen).await,
            2 | 3 => insert(client, random, seen).await,
            4 => delete(client, random, seen).await,
            5 => wide(client, random).await,
            6 => count(client).await,
            _ => savepoint(client, random, seen).await,
        };
        match done {
            Ok(()) => {
                seen.answered.fetch_add(1, Ordering::Relaxed);
                let took = u64::try_from(begun.elapsed().as_micros()).unwrap();
                seen.longest.fetch_max(took, Ordering::Relaxed);
            }
            Err(error) => {
                seen.failed(&error);
                if client.is_closed() || client.batch_execute("rollback").await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Between two accounts, with an entry for each: on one shard or on two.
async fn transfer(client: &Client, random: &mut Random, seen: &Seen) -> Result<(), Error> {
    let number = seen.number();
    // In one order, so that two do not wait for each other.
    let mut pair = [random.account(), random.account()];
    pair.sort_unstable();
    let [from, to] = pair;
    client.batch_execute("begin").await?;
    let change = client
        .prepare("update account set balance = balance + $1 where id = $2")
        .await?;
    for (account, by) in [(from, -1_i64), (to, 1)] {
        client.execute(&change, &[&by, &account]).await?;
        client
            .execute(
                "insert into entry values ($1, $2, 'transfer') on conflict do nothing",
                &[&account, &number],
            )
            .await?;
    }
    let keys = [(from, number), (to, number)];
    commit(client, &keys, seen).await
}

async fn commit(client: &Client, keys: &[(i64, i64)], seen: &Seen) -> Result<(), Error> {
    let committed = client.batch_execute("commit").await;
    for key in keys {
        match &committed {
            Ok(()) => seen.note(*key, Known::There),
            Err(error) if is_open(error) => seen.note(*key, Known::Open),
            Err(_) => {}
        }
    }
    committed
}

/// Whether nobody knows if it was done.
fn is_open(error: &Error) -> bool {
    error
        .code()
        .is_none_or(|code| matches!(code.code(), "08007" | "57P01" | "57P02" | "08006"))
}

async fn insert(client: &Client, random: &mut Random, seen: &Seen) -> Result<(), Error> {
    let key = (random.account(), seen.number());
    let done = client
        .execute(
            "insert into entry values ($1, $2, 'alone')",
            &[&key.0, &key.1],
        )
        .await;
    told(done, key, Known::There, seen)
}

/// An entry that was acknowledged, of this or another client.
async fn delete(client: &Client, random: &mut Random, seen: &Seen) -> Result<(), Error> {
    let taken = {
        let mut entries = seen.entries.lock().unwrap();
        let from = (random.account(), 0);
        let found = entries
            .range(from..)
            .find(|(_, known)| **known == Known::There);
        let key = found.map(|(key, _)| *key);
        // Nobody else deletes it meanwhile.
        if let Some(key) = key {
            entries.insert(key, Known::Open);
        }
        key
    };
    let Some(key) = taken else {
        return Ok(());
    };
    let done = client
        .execute(
            "delete from entry where account = $1 and id = $2",
            &[&key.0, &key.1],
        )
        .await;
    match done {
        Ok(1) => seen.note(key, Known::Gone),
        Ok(rows) => seen
            .errors
            .lock()
            .unwrap()
            .push(format!("wrong: a delete of {key:?} found {rows} rows")),
        Err(error) if is_open(&error) => return Err(error),
        Err(error) => {
            seen.note(key, Known::There);
            return Err(error);
        }
    }
    Ok(())
}

fn told<T>(
    done: Result<T, Error>,
    key: (i64, i64),
    known: Known,
    seen: &Seen,
) -> Result<(), Error> {
    match &done {
        Ok(_) => seen.note(key, known),
        Err(error) if is_open(error) => seen.note(key, Known::Open),
        Err(_) => {}
    }
    done.map(drop)
}

/// A column beside one that is stored elsewhere, or that one.
async fn wide(client: &Client, random: &mut Random) -> Result<(), Error> {
    let id = random.account();
    if random.below(4) == 0 {
        client
            .execute(
                "update wide set big = repeat(md5(small::text), 300), small = small + 1 where id = $1",
                &[&id],
            )
            .await?;
    } else {
        client
            .execute("update wide set small = small + 1 where id = $1", &[&id])
            .await?;
    }
    Ok(())
}

/// No account is seen twice, and none is missed.
async fn count(client: &Client) -> Result<(), Error> {
    let rows: i64 = client
        .query_one("select count(*) from account", &[])
        .await?
        .get(0);
    assert_eq!(rows, ACCOUNTS, "a scan saw rows twice, or missed some");
    let one: i64 = client
        .query_one("select count(*) from wide where id between 1 and 50", &[])
        .await?
        .get(0);
    assert_eq!(one, 50, "a scan saw rows twice, or missed some");
    Ok(())
}

async fn savepoint(client: &Client, random: &mut Random, seen: &Seen) -> Result<(), Error> {
    let account = random.account();
    let (kept, undone) = (seen.number(), seen.number());
    client.batch_execute("begin").await?;
    let insert = "insert into entry values ($1, $2, 'savepoint')";
    client.execute(insert, &[&account, &kept]).await?;
    client.batch_execute("savepoint s").await?;
    client.execute(insert, &[&account, &undone]).await?;
    client.batch_execute("rollback to s").await?;
    let done = commit(client, &[(account, kept)], seen).await;
    if done.is_ok() {
        seen.note((account, undone), Known::Gone);
    }
    done
}

/// Numbers from a seed: the same clients do the same, as far as the clock lets them.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    fn account(&mut self) -> i64 {
        self.below(ACCOUNTS.unsigned_abs()).cast_signed() + 1
    }
}
