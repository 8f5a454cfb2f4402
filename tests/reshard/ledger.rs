//! Clients that write rows of tenants whose keys are of any type, remember what was acknowledged, and say afterwards whether
//! each row is there once, on the shard that the map names.
//!
//! What must stay true: what is remembered was acknowledged; keys of text have an order under their column's collation that
//! is not that of their bytes.

use crate::{harness::open_session, stage::Stage};
use shardway::catalog::{key::KeyType, ownership::Content};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error, SimpleQueryMessage};

/// How many tenants there are; each begins with a balance of 100.
pub(crate) const TENANTS: usize = 60;

/// What keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    Bigint,
    Text,
    Uuid,
}

impl Keys {
    /// The type of the key columns, with its collation.
    pub(crate) fn column(self) -> &'static str {
        match self {
            Self::Bigint => "bigint",
            Self::Text => "text collate \"de-x-icu\"",
            Self::Uuid => "uuid",
        }
    }

    pub(crate) fn key_type(self) -> KeyType {
        match self {
            Self::Bigint => KeyType::Bigint,
            Self::Text => KeyType::Text,
            Self::Uuid => KeyType::Uuid,
        }
    }

    /// A tenant's key as PostgreSQL writes it.
    pub(crate) fn of(self, tenant: usize) -> String {
        match self {
            Self::Bigint => (tenant * 7).to_string(),
            // Lower and upper case and umlauts lie elsewhere by their bytes than in a dictionary.
            Self::Text => {
                let first = ["a", "B", "c", "Z", "ä", "it's "];
                format!("{}{tenant}", first[tenant % first.len()])
            }
            Self::Uuid => {
                let spread = (tenant as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                format!("{:08x}-0000-4000-8000-{tenant:012x}", spread >> 32)
            }
        }
    }

    /// The same as a constant of SQL.
    pub(crate) fn sql(self, tenant: usize) -> String {
        match self {
            Self::Bigint => self.of(tenant),
            Self::Text | Self::Uuid => format!("'{}'", self.of(tenant).replace('\'', "''")),
        }
    }

    /// Tables of tenants: with a foreign key, an index and a value that is stored elsewhere.
    pub(crate) fn tables(self) -> String {
        let column = self.column();
        format!(
            "create table tenant (k {column} primary key, balance bigint not null, big text not null); \
             alter table tenant alter big set storage external; \
             create table line (k {column} not null references tenant, n bigint not null, note text, primary key (k, n)); \
             create index line_note on line (note); \
             create table loose (k {column} not null, n bigint not null, primary key (k, n)); \
             create table country (code text primary key, name text)"
        )
    }

    /// The same, with lines in two partitions.
    pub(crate) fn tables_in_parts(self) -> String {
        const WHOLE: &str = "note text, primary key (k, n)); ";
        const PARTS: &str = "note text, primary key (k, n)) partition by range (n); \
             create table \"Line 0\" partition of line for values from (minvalue) to (200); \
             create table line_1 partition of line for values from (200) to (1000000); ";
        self.tables().replacen(WHOLE, PARTS, 1)
    }

    /// Its tables in the configuration, as a group's.
    pub(crate) const TABLES: &'static str = "tables = { \"public.tenant\" = \"k\", \"public.line\" = \"k\", \"public.loose\" = \"k\" }\n\
         [databases.postgres.tables]\nreference = [\"public.country\"]";
}

/// Rows: table, tenant and number.
type Row = (&'static str, usize, i64);

/// What clients have been told.
#[derive(Debug)]
pub(crate) struct Told {
    keys: Keys,
    there: Mutex<BTreeMap<Row, bool>>,
    pub(crate) errors: Mutex<Vec<String>>,
    pub(crate) answered: AtomicU64,
    proxies: Mutex<Vec<Config>>,
    next: AtomicI64,
    stop: AtomicBool,
}

/// Clients at work.
pub(crate) struct Clients {
    pub(crate) told: Arc<Told>,
    tasks: Vec<JoinHandle<()>>,
}

/// Gives every tenant its rows.
pub(crate) async fn fill(keys: Keys, client: &Client) {
    for tenant in 0..TENANTS {
        let insert = format!(
            "insert into tenant values ({}, 100, '{}')",
            keys.sql(tenant),
            format!("{tenant:08}").repeat(400)
        );
        client.batch_execute(&insert).await.unwrap();
    }
    let countries = "insert into country values ('ch', 'Schweiz'), ('de', 'Deutschland')";
    client.batch_execute(countries).await.unwrap();
}

impl Clients {
    pub(crate) fn start(keys: Keys, proxies: &[Config], clients: u64) -> Self {
        let told = Arc::new(Told {
            keys,
            there: Mutex::default(),
            errors: Mutex::default(),
            answered: AtomicU64::default(),
            proxies: Mutex::new(proxies.to_vec()),
            next: AtomicI64::new(1),
            stop: AtomicBool::default(),
        });
        Self::at_work(told, clients)
    }

    /// Clients who know what others were told.
    pub(crate) fn resume(told: Arc<Told>, proxies: &[Config], clients: u64) -> Self {
        *told.proxies.lock().unwrap() = proxies.to_vec();
        told.stop.store(false, Ordering::Relaxed);
        Self::at_work(told, clients)
    }

    fn at_work(told: Arc<Told>, clients: u64) -> Self {
        let tasks = (0..clients).map(|number| tokio::spawn(work(number, Arc::clone(&told))));
        Self {
            tasks: tasks.collect(),
            told,
        }
    }

    /// Waits until so many more statements and transactions were answered.
    pub(crate) async fn more(&self, count: u64) {
        let from = self.told.answered.load(Ordering::Relaxed);
        let begun = std::time::Instant::now();
        while self.told.answered.load(Ordering::Relaxed) < from + count {
            assert!(
                begun.elapsed() < crate::harness::PATIENCE,
                "no answers: {:?}",
                self.told.errors.lock().unwrap()
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Ends the clients after what they are at; no statement may have failed.
    pub(crate) async fn stop(self) -> Arc<Told> {
        self.told.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let errors = self.told.errors.lock().unwrap().clone();
        assert!(
            errors.is_empty(),
            "{} errors: {:?}",
            errors.len(),
            &errors[..errors.len().min(5)]
        );
        self.told
    }
}

async fn work(number: u64, told: Arc<Told>) {
    let mut random = Random(number * 7919 + 3);
    while !told.stop.load(Ordering::Relaxed) {
        let proxy = {
            let proxies = told.proxies.lock().unwrap();
            proxies[number as usize % proxies.len()].clone()
        };
        match open_session(&proxy).await {
            Ok(client) => session(&client, &mut random, &told).await,
            Err(error) => told.failed("connect", &error),
        }
    }
}

async fn session(client: &Client, random: &mut Random, told: &Told) {
    while !told.stop.load(Ordering::Relaxed) {
        let (what, done) = match random.below(8) {
            0 | 1 => ("transfer", transfer(client, random, told).await),
            2 | 3 => ("insert", insert(client, random, told).await),
            4 => ("delete", delete(client, random, told).await),
            5 => ("change key", change_key(client, random, told).await),
            6 => ("count", count(client, told).await),
            _ => ("savepoint", savepoint(client, random, told).await),
        };
        match done {
            Ok(()) => {
                told.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                told.failed(what, &error);
                if client.is_closed() || client.batch_execute("rollback").await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Told {
    fn failed(&self, what: &str, error: &Error) {
        let words = match error.as_db_error() {
            Some(said) => format!(
                "{what}: {}: {} ({:?})",
                said.code().code(),
                said.message(),
                said.detail()
            ),
            None => format!("{what}: {error:?}"),
        };
        self.errors.lock().unwrap().push(words);
    }

    fn wrong(&self, words: String) {
        self.errors.lock().unwrap().push(words);
    }

    fn number(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, row: Row, there: bool) {
        self.there.lock().unwrap().insert(row, there);
    }

    /// A row that is there, which nobody else deletes or moves from now on.
    fn take(&self, table: &'static str, random: &mut Random) -> Option<Row> {
        let mut there = self.there.lock().unwrap();
        let from = (table, random.tenant(), 0);
        let mut rows = there.range(from..).filter(|(_, there)| **there);
        let row = *rows.next().filter(|(row, _)| row.0 == table)?.0;
        there.remove(&row);
        Some(row)
    }
}

/// Between two tenants, with a line for each: on one shard or on two.
async fn transfer(client: &Client, random: &mut Random, told: &Told) -> Result<(), Error> {
    let number = told.number();
    let mut pair = [random.tenant(), random.tenant()];
    // In one order, so that two do not wait for each other.
    pair.sort_unstable();
    if pair[0] == pair[1] {
        return Ok(());
    }
    client.batch_execute("begin").await?;
    for (tenant, by) in [(pair[0], -1), (pair[1], 1)] {
        let key = told.keys.sql(tenant);
        client
            .batch_execute(&format!(
                "update tenant set balance = balance + ({by}) where k = {key}; \
                 insert into line (k, n, note) values ({key}, {number}, 'transfer')"
            ))
            .await?;
    }
    client.batch_execute("commit").await?;
    for tenant in pair {
        told.note(("line", tenant, number), true);
    }
    Ok(())
}

/// A row, which is then seen once.
async fn insert(client: &Client, random: &mut Random, told: &Told) -> Result<(), Error> {
    let (tenant, number) = (random.tenant(), told.number());
    let key = told.keys.sql(tenant);
    let table = ["line", "loose"][random.below(2)];
    let insert = format!("insert into {table} (k, n) values ({key}, {number})");
    client.batch_execute(&insert).await?;
    told.note((table, tenant, number), true);
    Ok(())
}

async fn delete(client: &Client, random: &mut Random, told: &Told) -> Result<(), Error> {
    let Some((table, tenant, number)) = told.take("line", random) else {
        return Ok(());
    };
    let key = told.keys.sql(tenant);
    let delete = format!("delete from {table} where k = {key} and n = {number} returning n");
    let deleted = rows(client, &delete).await?;
    if deleted.len() != 1 {
        told.wrong(format!("a delete of {tenant}, {number} found {deleted:?}"));
    }
    told.note((table, tenant, number), false);
    Ok(())
}

/// A row goes to another tenant, on its shard or on another.
async fn change_key(client: &Client, random: &mut Random, told: &Told) -> Result<(), Error> {
    let Some((table, tenant, number)) = told.take("loose", random) else {
        return Ok(());
    };
    let other = random.tenant();
    let (key, to) = (told.keys.sql(tenant), told.keys.sql(other));
    let change = format!("update {table} set k = {to} where k = {key} and n = {number}");
    client.batch_execute(&change).await?;
    told.note((table, tenant, number), false);
    told.note((table, other, number), true);
    Ok(())
}

/// No tenant is seen twice, and none is missed.
async fn count(client: &Client, told: &Told) -> Result<(), Error> {
    let counted = rows(client, "select count(*), count(distinct k) from tenant").await?;
    let wanted = format!("{TENANTS},{TENANTS}");
    if counted != [wanted] {
        told.wrong(format!("tenants are {counted:?}"));
    }
    let countries = rows(client, "select count(*) from country").await?;
    if countries != ["2"] {
        told.wrong(format!("countries are {countries:?}"));
    }
    Ok(())
}

async fn savepoint(client: &Client, random: &mut Random, told: &Told) -> Result<(), Error> {
    let tenant = random.tenant();
    let (kept, undone) = (told.number(), told.number());
    let key = told.keys.sql(tenant);
    let insert =
        |number| format!("insert into line (k, n, note) values ({key}, {number}, 'savepoint')");
    client.batch_execute("begin").await?;
    client.batch_execute(&insert(kept)).await?;
    client.batch_execute("savepoint s").await?;
    client.batch_execute(&insert(undone)).await?;
    client.batch_execute("rollback to s").await?;
    client.batch_execute("commit").await?;
    told.note(("line", tenant, kept), true);
    told.note(("line", tenant, undone), false);
    Ok(())
}

/// What a statement gives, each row with commas.
pub(crate) async fn rows(client: &Client, sql: &str) -> Result<Vec<String>, Error> {
    let told = client.simple_query(sql).await?;
    let rows = told.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let cells = (0..row.len()).map(|at| row.get(at).unwrap_or("-").to_owned());
            Some(cells.collect::<Vec<_>>().join(","))
        }
        SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
    });
    Ok(rows.collect())
}

/// Who owns what, by the map.
pub(crate) async fn map(stage: &Stage) -> Content {
    let home = stage.session(0).await;
    let row = home
        .query_one("select content::text from shardway.map", &[])
        .await;
    serde_json::from_str(row.unwrap().get(0)).unwrap()
}

impl Told {
    /// Every row that was acknowledged is on one shard, its owner, and no other row is on any; money is neither made nor
    /// lost; reference tables are whole on every member.
    pub(crate) async fn adds_up(&self, stage: &Stage, group: &str) {
        let map = map(stage).await;
        let mut found = BTreeSet::new();
        let mut money = 0;
        let tenants: BTreeMap<String, usize> =
            (0..TENANTS).map(|it| (self.keys.of(it), it)).collect();
        for shard in 0..stage.setting.shards {
            let client = stage.session(shard).await;
            let name = format!("s{shard}");
            let has = "select to_regclass('public.tenant') is not null";
            if rows(&client, has).await.unwrap() == ["f"] {
                assert!(!map.owners.shards().contains(&name), "{name} has no tables");
                continue;
            }
            for table in ["tenant", "line", "loose"] {
                let number = if table == "tenant" { "0" } else { "n" };
                let all = format!("select {number}, k from public.{table}");
                for row in rows(&client, &all).await.unwrap() {
                    let (number, key) = row.split_once(',').unwrap();
                    let parsed = self.keys.key_type().from_text(key.as_bytes()).unwrap();
                    let owner = map.owners.owner(group, &parsed);
                    assert_eq!(owner, Some(name.as_str()), "{table} {row}");
                    let row = (table, tenants[key], number.parse::<i64>().unwrap());
                    assert!(found.insert(row), "{row:?} is on two shards");
                }
            }
            let sum = rows(&client, "select coalesce(sum(balance), 0) from tenant").await;
            money += sum.unwrap()[0].parse::<i64>().unwrap();
            if map.members.contains(&name) {
                let countries = rows(&client, "select count(*) from country").await;
                assert_eq!(countries.unwrap(), ["2"], "{name}");
            }
        }
        assert_eq!(money, 100 * i64::try_from(TENANTS).unwrap(), "money");
        let there = self.there.lock().unwrap();
        let rows = there.iter().filter(|(_, there)| **there);
        let mut wanted: BTreeSet<Row> = rows.map(|(row, _)| *row).collect();
        wanted.extend((0..TENANTS).map(|tenant| ("tenant", tenant, 0)));
        let lost: Vec<_> = wanted.difference(&found).take(5).collect();
        let made: Vec<_> = found.difference(&wanted).take(5).collect();
        assert!(
            lost.is_empty() && made.is_empty(),
            "lost {lost:?}, made {made:?}"
        );
    }
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }

    fn tenant(&mut self) -> usize {
        self.below(TENANTS)
    }
}
