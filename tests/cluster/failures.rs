//! What goes away harms only what needs it: a shard that is down when the proxy starts, a shard killed in the middle of
//! a transaction, a client killed in the middle of a result. Each is told clearly, nothing leaks, and it works again
//! once the cause is gone.

use crate::{
    harness::{
        Proxy, Recipe, SHARDS, Target, block_on, customers_on, environment, fill, get,
        open_session, shop, until,
    },
    raw::Raw,
};
use shardway::{
    config::settings::Settings,
    sandbox::{Auth, Cluster, Sandbox},
};
use std::process::{Command, Stdio};
use tokio_postgres::{Client, error::SqlState};

/// Shards of the test's own, to be stopped and killed.
fn shards() -> (Sandbox, Settings) {
    let builder = Sandbox::builder(environment()).clusters(SHARDS);
    let sandbox = builder.auth(Auth::Scram).start().unwrap();
    let settings = fill(sandbox.clusters());
    (sandbox, settings)
}

fn serve(sandbox: &Sandbox) -> Proxy {
    Proxy::start(sandbox.root(), &Recipe::default().write(sandbox.clusters()))
}

async fn name_of(client: &Client, id: i64) -> Result<String, tokio_postgres::Error> {
    let sql = "SELECT name FROM customers WHERE id = $1";
    let row = client.query_one(sql, &[&id]).await?;
    Ok(row.get(0))
}

#[test]
fn a_shard_that_is_down_at_the_start_is_told_and_the_others_are_served() {
    let (sandbox, settings) = shards();
    // Whose keys are whose is known from an earlier start, at which all were up.
    let mut earlier = serve(&sandbox);
    until("the map is known", || {
        let key = customers_on(&settings, 1)[0];
        block_on(async { name_of(&earlier.target().connect().await, key).await }).is_ok()
    });
    earlier.signal("TERM");
    earlier.wait();
    sandbox.cluster(1).stop();
    let proxy = serve(&sandbox);
    until("the map is read", || {
        let key = customers_on(&settings, 0)[0];
        block_on(async { name_of(&proxy.target().connect().await, key).await }).is_ok()
    });
    let keys = [0, 1, 2].map(|shard| customers_on(&settings, shard)[0]);
    block_on(async {
        // Each session chooses a shard for what any can answer: none may choose the one that is down.
        for _ in 0..2 * SHARDS {
            let client = proxy.target().connect().await;
            client.query_one("SELECT 1", &[]).await.unwrap();
            client
                .query_one("SELECT name FROM countries WHERE code = 'de'", &[])
                .await
                .unwrap();
            let refused = name_of(&client, keys[1]).await.unwrap_err();
            assert_eq!(
                refused.code(),
                Some(&SqlState::CONNECTION_FAILURE),
                "{refused}"
            );
            let said = refused.as_db_error().unwrap();
            assert!(said.detail().unwrap().contains("s1"), "{said:?}");
            for key in [keys[0], keys[2]] {
                name_of(&client, key).await.unwrap();
            }
        }
    });
    until("the readiness names the shard that is down", || {
        let (status, text) = get(proxy.http, "/readyz");
        status == 503 && text.contains("shop/s1") && !text.contains("shop/s0")
    });
    sandbox.cluster(1).start().unwrap();
    until("the shard is served once it is up", || {
        block_on(async { name_of(&proxy.target().connect().await, keys[1]).await }).is_ok()
    });
    until("all are ready", || get(proxy.http, "/readyz").0 == 200);
}

#[test]
fn a_shard_killed_in_a_transaction_ends_that_transaction_only() {
    let (sandbox, settings) = shards();
    let proxy = serve(&sandbox);
    let keys = [0, 1].map(|shard| customers_on(&settings, shard)[0]);
    let mut hit = Raw::login(&proxy.target());
    let change = |key: i64| format!("UPDATE customers SET name = 'changed' WHERE id = {key}");
    hit.query(&format!("BEGIN; {}", change(keys[1])));
    assert!(hit.until(b'Z').iter().all(|reply| reply.error().is_none()));
    block_on(async {
        let other = proxy.target().connect().await;
        let before = name_of(&other, keys[1]).await.unwrap();
        let begin = format!("BEGIN; {}", change(keys[0]));
        other.batch_execute(&begin).await.unwrap();

        sandbox.cluster(1).kill();
        hit.query(&change(keys[1]));
        let (severity, code) = hit.rest().1.expect("a reason before the end");
        assert_eq!(severity, "FATAL");
        // Whether the server says something before it is gone is up to the server.
        assert!(
            ["08006", "57P01", "57P02"].contains(&code.as_str()),
            "{code}"
        );
        other.batch_execute("COMMIT").await.unwrap();
        assert_eq!(name_of(&other, keys[0]).await.unwrap(), "changed");

        sandbox.cluster(1).start().unwrap();
        let again = proxy.target().connect().await;
        assert_eq!(name_of(&again, keys[1]).await.unwrap(), before);
        // A session that was there all the time needs nothing new.
        assert_eq!(name_of(&other, keys[1]).await.unwrap(), before);
    });
}

/// Backends of a role on a server: all, and those that do something.
fn backends(server: &Cluster, role: &str) -> (usize, usize) {
    let sql = format!("SELECT state FROM pg_stat_activity WHERE usename = '{role}'");
    let rows = block_on(server.query("postgres", &sql)).unwrap();
    let busy = |row: &&Vec<Option<String>>| row[0].as_deref() != Some("idle");
    (rows.len(), rows.iter().filter(busy).count())
}

#[test]
fn a_client_killed_in_the_middle_of_a_result_leaves_no_query_and_no_backend_behind() {
    let shop = shop();
    // A role of the test's own, so that its backends can be told from all others.
    for server in shop.servers() {
        let sql = "CREATE ROLE leaver LOGIN PASSWORD 'leaver' IN ROLE app";
        block_on(server.execute("postgres", sql)).unwrap();
    }
    let recipe = Recipe::with(
        "[pool]\nsize = 2\n[users.leaver]\npassword = \"leaver\"\ndatabases = [\"shop\"]",
    );
    let proxy = shop.serve(&recipe);
    let busy = || -> usize {
        let shards = shop.shards().iter();
        shards.map(|shard| backends(shard, "leaver").1).sum()
    };
    let endless =
        "SELECT repeat('x', 1000), generate_series(1, 1000000000) FROM customers WHERE id = ";
    for shard in 0..SHARDS {
        let key = customers_on(&shop.settings, shard)[0];
        // More clients than backends, one after the other: a leaked backend would leave the next ones waiting.
        for _ in 0..3 {
            let mut psql = psql(&proxy.target(), &format!("COPY ({endless}{key}) TO STDOUT"));
            until("psql's query runs", || busy() == 1);
            psql.kill().unwrap();
            psql.wait().unwrap();
            until("psql's query is over", || busy() == 0);

            let mut raw = Raw::login_as(&proxy.target(), "leaver", "leaver");
            raw.query(&format!("{endless}{key}"));
            assert!(raw.reply().is_some());
            drop(raw);
            until("the query is over", || busy() == 0);
        }
    }
    let mut config = proxy.target().config();
    config.user("leaver").password("leaver");
    for shard in 0..SHARDS {
        let key = customers_on(&shop.settings, shard)[0];
        block_on(async { name_of(&open_session(&config).await.unwrap(), key).await }).unwrap();
        let (all, _) = backends(&shop.shards()[shard], "leaver");
        assert!(all <= 2, "{all} backends on shard {shard}");
    }
}

/// A psql that reads nothing of its result.
fn psql(target: &Target, sql: &str) -> std::process::Child {
    let mut command = Command::new("psql");
    target.apply(&mut command);
    command
        .args(["-X", "-c", sql])
        .env("PGUSER", "leaver")
        .env("PGPASSWORD", "leaver");
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_transaction_whose_backend_is_ended_by_hand_is_told_so_and_is_over() {
    let shop = shop();
    let key = customers_on(&shop.settings, 2)[0];
    let sql = format!("SELECT pg_backend_pid() FROM customers WHERE id = {key}");
    let mut hit = Raw::login(&shop.proxied());
    hit.query(&format!("BEGIN; {sql}"));
    let replies = hit.until(b'Z');
    let row = replies.iter().find(|reply| reply.tag == b'D').unwrap();
    // One column: its count, its length, its text.
    let pid = String::from_utf8_lossy(&row.body[6..]).into_owned();
    let end = format!("SELECT pg_terminate_backend({pid})");
    block_on(shop.shards()[2].execute("postgres", &end)).unwrap();
    hit.query(&sql);
    let said = hit.rest().1;
    assert_eq!(said, Some(("FATAL".to_owned(), "57P01".to_owned())));
    block_on(async { name_of(&shop.proxied().connect().await, key).await }).unwrap();
}
