//! Clients that write all the time, remember what was acknowledged, and say afterwards whether it is all there.
//!
//! What must stay true: what is remembered as written was acknowledged; what may or may not have been written, because the
//! connection ended before an answer, is remembered as open and is neither missed nor wrong; every error is remembered with
//! when it was told and by what.

use crate::harness::open_session;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error, Statement};

/// Accounts, each with 1000 at the beginning.
pub(crate) const ACCOUNTS: i64 = 400;

/// An entry: its account and number.
pub(crate) type Key = (i64, i64);

/// What is known of a row that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    There,
    Gone,
    /// Nobody was told.
    Open,
}

/// Whom a client spoke to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// By its place among the proxies.
    Proxy(usize),
    /// A server, past all proxies.
    Server,
}

/// An error that a client was told.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) whom: Whom,
    /// When what failed was begun.
    pub(crate) begun: Instant,
    pub(crate) told: Instant,
    pub(crate) words: String,
}

impl Failure {
    /// Whether a guard refused the write: nothing was done, and it is to be repeated.
    pub(crate) fn is_guards(&self) -> bool {
        self.words.starts_with("40001") && self.words.contains("(SW404)")
    }
}

/// Times that a wide row was counted up: known, and perhaps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) known: i32,
    pub(crate) open: i32,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) entries: Mutex<BTreeMap<Key, Known>>,
    /// Entries that may have got another key: one of both is there.
    pub(crate) moved: Mutex<Vec<[Key; 2]>>,
    pub(crate) wide: Mutex<BTreeMap<i64, Counted>>,
    pub(crate) failures: Mutex<Vec<Failure>>,
    /// Answers that cannot be: none may ever be.
    pub(crate) wrong: Mutex<Vec<String>>,
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

    /// What clients were told that was an error, or wrong, in words.
    pub(crate) fn errors(&self) -> Vec<String> {
        let failures = self.failures.lock().unwrap();
        let failed = failures.iter().map(|it| it.words.clone());
        failed
            .chain(self.wrong.lock().unwrap().iter().cloned())
            .collect()
    }

    fn proxy(&self, number: u64) -> (usize, Config) {
        let proxies = self.proxies.lock().unwrap();
        let place = number as usize % proxies.len();
        (place, proxies[place].clone())
    }

    pub(crate) fn number(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed).cast_signed()
    }

    pub(crate) fn note(&self, key: Key, known: Known) {
        self.entries.lock().unwrap().insert(key, known);
    }

    fn is_wrong(&self, words: String) {
        self.wrong.lock().unwrap().push(words);
    }

    pub(crate) fn failed(&self, whom: Whom, begun: Instant, error: &Error) {
        let failure = Failure {
            whom,
            begun,
            told: Instant::now(),
            words: words(error),
        };
        self.failures.lock().unwrap().push(failure);
    }

    /// An entry that was acknowledged, of this or another client, which nobody else takes meanwhile.
    fn take(&self, from: i64) -> Option<Key> {
        let mut entries = self.entries.lock().unwrap();
        let mut after = entries.range((from, 0)..);
        let key = after.find(|(_, known)| **known == Known::There);
        let key = key.map(|(key, _)| *key)?;
        entries.insert(key, Known::Open);
        Some(key)
    }
}

pub(crate) fn words(error: &Error) -> String {
    match error.as_db_error() {
        Some(said) => format!(
            "{}: {} ({:?})",
            said.code().code(),
            said.message(),
            said.detail()
        ),
        None => format!("{error:?}"),
    }
}

/// Whether nobody knows if it was done.
pub(crate) fn is_open(error: &Error) -> bool {
    error
        .code()
        .is_none_or(|code| matches!(code.code(), "08007" | "57P01" | "57P02" | "08006"))
}

/// One client: connects again whenever its connection ends.
async fn work(number: u64, seen: Arc<Seen>) {
    let mut random = Random(number * 7919 + 1);
    while !seen.stop.load(Ordering::Relaxed) {
        let (place, config) = seen.proxy(number);
        let begun = Instant::now();
        let opened = async {
            let client = open_session(&config).await?;
            Session::of(client, &seen).await
        };
        let ended = match opened.await {
            Ok(session) => session.work(&mut random, Whom::Proxy(place)).await,
            Err(error) => {
                seen.failed(Whom::Proxy(place), begun, &error);
                Err(())
            }
        };
        if ended.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A connection with statements that were prepared once.
struct Session<'a> {
    client: Client,
    seen: &'a Seen,
    pay: Statement,
    enter: Statement,
    narrow: Statement,
    big: Statement,
}

impl<'a> Session<'a> {
    async fn of(client: Client, seen: &'a Seen) -> Result<Self, Error> {
        Ok(Self {
            pay: client
                .prepare("update account set balance = balance + $1 where id = $2")
                .await?,
            enter: client
                .prepare("insert into entry values ($1, $2, $3) on conflict do nothing")
                .await?,
            narrow: client
                .prepare("update wide set small = small + 1 where id = $1")
                .await?,
            big: client
                .prepare(
                    "update wide set big = repeat(lpad(small::text, 32, '0'), 300), small = small + 1 \
                     where id = $1",
                )
                .await?,
            client,
            seen,
        })
    }

    /// Until it is to stop, or the connection is of no use any more.
    async fn work(&self, random: &mut Random, whom: Whom) -> Result<(), ()> {
        while !self.seen.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let done = match random.below(10) {
                0 | 1 => self.transfer(random).await,
                2 | 3 => self.insert(random).await,
                4 => self.delete(random).await,
                5 | 6 => self.wide(random).await,
                7 => self.count().await,
                8 => self.change_key(random).await,
                _ => self.savepoint(random).await,
            };
            match done {
                Ok(()) => {
                    self.seen.answered.fetch_add(1, Ordering::Relaxed);
                    let took = u64::try_from(begun.elapsed().as_micros()).unwrap();
                    self.seen.longest.fetch_max(took, Ordering::Relaxed);
                }
                Err(error) => {
                    self.seen.failed(whom, begun, &error);
                    let closed = self.client.is_closed();
                    if closed || self.client.batch_execute("rollback").await.is_err() {
                        return Err(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Between two accounts, with an entry for each: on one shard or on two.
    async fn transfer(&self, random: &mut Random) -> Result<(), Error> {
        let number = self.seen.number();
        // In one order, so that two do not wait for each other.
        let mut pair = [random.account(), random.account()];
        pair.sort_unstable();
        let [from, to] = pair;
        self.client.batch_execute("begin").await?;
        for (account, by) in [(from, -1_i64), (to, 1)] {
            self.client.execute(&self.pay, &[&by, &account]).await?;
            self.enter(account, number, "transfer").await?;
        }
        self.commit(&[(from, number), (to, number)]).await
    }

    async fn enter(&self, account: i64, number: i64, note: &str) -> Result<u64, Error> {
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&account, &number, &note];
        self.client.execute(&self.enter, &values).await
    }

    async fn commit(&self, keys: &[Key]) -> Result<(), Error> {
        let committed = self.client.batch_execute("commit").await;
        for key in keys {
            match &committed {
                Ok(()) => self.seen.note(*key, Known::There),
                Err(error) if is_open(error) => self.seen.note(*key, Known::Open),
                Err(_) => {}
            }
        }
        committed
    }

    async fn insert(&self, random: &mut Random) -> Result<(), Error> {
        let key = (random.account(), self.seen.number());
        let done = self
            .client
            .execute(&self.enter, &[&key.0, &key.1, &"alone"])
            .await;
        match &done {
            Ok(1) => self.seen.note(key, Known::There),
            Ok(rows) => self
                .seen
                .is_wrong(format!("an insert of {key:?} made {rows} rows")),
            Err(error) if is_open(error) => self.seen.note(key, Known::Open),
            Err(_) => {}
        }
        done.map(drop)
    }

    async fn delete(&self, random: &mut Random) -> Result<(), Error> {
        let Some(key) = self.seen.take(random.account()) else {
            return Ok(());
        };
        let done = self
            .client
            .execute(
                "delete from entry where account = $1 and id = $2",
                &[&key.0, &key.1],
            )
            .await;
        match done {
            Ok(1) => self.seen.note(key, Known::Gone),
            Ok(rows) => self
                .seen
                .is_wrong(format!("a delete of {key:?} found {rows} rows")),
            Err(error) if is_open(&error) => return Err(error),
            Err(error) => {
                self.seen.note(key, Known::There);
                return Err(error);
            }
        }
        Ok(())
    }

    /// An entry gets another key, whose shard may be another.
    async fn change_key(&self, random: &mut Random) -> Result<(), Error> {
        let Some(old) = self.seen.take(random.account()) else {
            return Ok(());
        };
        let new = (random.account(), self.seen.number());
        let done = self
            .client
            .execute(
                "update entry set account = $1, id = $2 where account = $3 and id = $4",
                &[&new.0, &new.1, &old.0, &old.1],
            )
            .await;
        match done {
            Ok(1) => {
                self.seen.note(old, Known::Gone);
                self.seen.note(new, Known::There);
            }
            Ok(rows) => self
                .seen
                .is_wrong(format!("an update of {old:?} found {rows} rows")),
            Err(error) if is_open(&error) => {
                self.seen.note(new, Known::Open);
                self.seen.moved.lock().unwrap().push([old, new]);
                return Err(error);
            }
            Err(error) => {
                self.seen.note(old, Known::There);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A column beside one that is stored elsewhere, or that one.
    async fn wide(&self, random: &mut Random) -> Result<(), Error> {
        let id = random.account();
        let update = if random.below(4) == 0 {
            &self.big
        } else {
            &self.narrow
        };
        let done = self.client.execute(update, &[&id]).await;
        let mut wide = self.seen.wide.lock().unwrap();
        let counted = wide.entry(id).or_default();
        match &done {
            Ok(1) => counted.known += 1,
            Ok(rows) => self
                .seen
                .is_wrong(format!("an update of the wide row {id} found {rows}")),
            Err(error) if is_open(error) => counted.open += 1,
            Err(_) => {}
        }
        done.map(drop)
    }

    /// No account is seen twice, and none is missed.
    async fn count(&self) -> Result<(), Error> {
        for (asked, all) in [
            ("select count(*) from account", ACCOUNTS),
            ("select count(*) from wide where id between 1 and 50", 50),
        ] {
            let rows: i64 = self.client.query_one(asked, &[]).await?.get(0);
            if rows != all {
                self.seen.is_wrong(format!("{asked}: {rows} and not {all}"));
            }
        }
        Ok(())
    }

    async fn savepoint(&self, random: &mut Random) -> Result<(), Error> {
        let account = random.account();
        let (kept, undone) = (self.seen.number(), self.seen.number());
        self.client.batch_execute("begin").await?;
        self.enter(account, kept, "savepoint").await?;
        self.client.batch_execute("savepoint s").await?;
        self.enter(account, undone, "savepoint").await?;
        self.client.batch_execute("rollback to s").await?;
        self.seen.note((account, undone), Known::Gone);
        self.commit(&[(account, kept)]).await
    }
}

/// Numbers from a seed: the same clients do the same, as far as the clock lets them.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    pub(crate) fn account(&mut self) -> i64 {
        self.below(ACCOUNTS.unsigned_abs()).cast_signed() + 1
    }
}
