//! A client that empties tables whenever it has filled them, through two proxies, whatever a reshard is at from the copy on.

use crate::{
    harness::open_session,
    ledger::{Keys, TENANTS, map, rows},
    stage::Stage,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};

/// The tables, beside those of the ledger: one whose key is `k`, and one that every shard has whole.
pub(crate) const TABLE: &str =
    "; create table brief (like loose including all); create table region (n bigint primary key)";

/// Rows of the second.
const REGIONS: usize = 200;

/// It works until it is ended.
pub(crate) struct Emptier {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<usize, String>>,
}

impl Emptier {
    pub(crate) fn start(keys: Keys, proxies: [Config; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(work(keys, proxies, Arc::clone(&stop)));
        Self { stop, task }
    }

    /// How often it has emptied the tables; as [`adds_up`] finds them they are left.
    pub(crate) async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.task.await.unwrap();
        ended.unwrap_or_else(|fault| panic!("{fault}"))
    }
}

async fn work(keys: Keys, proxies: [Config; 2], stop: Arc<AtomicBool>) -> Result<usize, String> {
    let told = |what: &str, error: Error| format!("{what}: {error:?}");
    let mut clients = Vec::new();
    for proxy in &proxies {
        clients.push(open_session(proxy).await.map_err(|it| told("login", it))?);
    }
    // What an earlier one has left.
    let began = clients[0].batch_execute("truncate brief; truncate region");
    began.await.map_err(|it| told("beginning", it))?;
    let mut round = 0;
    loop {
        let (one, other) = (&clients[round % 2], &clients[(round + 1) % 2]);
        let filled = fill(one, keys, round).await;
        filled.map_err(|it| told("filling", it))?;
        counts(other, (TENANTS, REGIONS)).await?;
        if stop.load(Ordering::Relaxed) {
            return Ok(round);
        }
        if round % 3 == 0 {
            let undone = "begin; truncate brief; truncate region; rollback";
            for part in undone.split("; ") {
                let done = other.batch_execute(part).await;
                done.map_err(|it| told(part, it))?;
            }
            counts(one, (TENANTS, REGIONS)).await?;
        }
        for truncate in ["truncate brief", "truncate table region"] {
            let emptied = other.batch_execute(truncate).await;
            emptied.map_err(|it| told(truncate, it))?;
        }
        counts(one, (0, 0)).await?;
        round += 1;
    }
}

/// Gives each tenant a row.
async fn fill(client: &Client, keys: Keys, round: usize) -> Result<(), Error> {
    let each = (0..TENANTS).map(|tenant| format!("({}, {round})", keys.sql(tenant)));
    let each: Vec<String> = each.collect();
    let insert = format!("insert into brief (k, n) values {}", each.join(", "));
    client.batch_execute(&insert).await?;
    let each: Vec<String> = (0..REGIONS).map(|it| format!("({it})")).collect();
    let insert = format!("insert into region values {}", each.join(", "));
    client.batch_execute(&insert).await
}

async fn counts(client: &Client, (briefs, regions): (usize, usize)) -> Result<(), String> {
    for (table, expected) in [("brief", briefs), ("region", regions)] {
        let found = rows(client, &format!("select count(*) from {table}")).await;
        let found = found.map_err(|error| format!("counting: {error:?}"))?;
        if found != [expected.to_string()] {
            return Err(format!(
                "{found:?} rows in {table}, where {expected} should be"
            ));
        }
    }
    Ok(())
}

/// All shards together have a row of each tenant, and each shard that serves has all regions.
pub(crate) async fn adds_up(stage: &Stage) {
    let members = map(stage).await.members;
    let mut left = 0;
    for shard in 0..stage.ports().len() {
        let client = stage.session(shard).await;
        let found = rows(&client, "select count(*) from brief").await.unwrap();
        left += found[0].parse::<usize>().unwrap();
        if members.contains(&format!("s{shard}")) {
            let found = rows(&client, "select count(*) from region").await.unwrap();
            assert_eq!(found, [REGIONS.to_string()], "regions on s{shard}");
        }
    }
    assert_eq!(left, TENANTS, "rows of a table that was emptied");
}
