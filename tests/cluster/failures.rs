//! What goes away harms only what needs it: a shard that is down when the proxy starts, a shard killed in the middle of
//! a transaction, a client killed in the middle of a result. Each is told clearly, nothing leaks, and it works again
//! once the cause is gone.

use crate::{
    harness::{
        Proxy, Recipe, SHARDS, Target, block_on, customers_on, environment, fill, get, open_session,
        printed, shop, until,
    },
    raw::Raw,
};
use shardway::{
    config::settings::Settings,
    sandbox::{Auth, Cluster, Sandbox, shop as names},
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
    sandbox.cluster(1).stop();
    let proxy = serve(&sandbox);
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
    block_on(async {
        let change = "UPDATE customers SET name = 'changed' WHERE id = $1";
        let [mut other, mut hit] = [
            proxy.target().connect().await,
            proxy.target().connect().await,
        ];
        let before = name_of(&hit, keys[1]).await.unwrap();
        let unaffected = other.transaction().await.unwrap();
        unaffected.execute(change, &[&keys[0]]).await.unwrap();
        let lost = hit.transaction().await.unwrap();
        lost.execute(change, &[&keys[1]]).await.unwrap();

        sandbox.cluster(1).kill();
        let error = lost.execute(change, &[&keys[1]]).await.unwrap_err();
        let told = [
            &SqlState::CONNECTION_FAILURE,
            &SqlState::ADMIN_SHUTDOWN,
            &SqlState::CRASH_SHUTDOWN,
        ];
        assert!(
            error.code().is_some_and(|code| told.contains(&code)),
            "{error:?}"
        );
        drop(lost);
        unaffected.commit().await.unwrap();
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
fn a_server_that_ends_a_backend_by_hand_is_heard_and_the_next_statement_works() {
    let shop = shop();
    let key = customers_on(&shop.settings, 2)[0];
    block_on(async {
        let client = shop.proxied().connect().await;
        let sql = format!("SELECT pg_backend_pid() FROM customers WHERE id = {key}");
        client.batch_execute("BEGIN").await.unwrap();
        let pid: i32 = client.query_one(&sql, &[]).await.unwrap().get(0);
        let end = format!("SELECT pg_terminate_backend({pid})");
        shop.shards()[2].execute("postgres", &end).await.unwrap();
        let error = client.query_one(&sql, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
        let again = shop.proxied().connect().await;
        again.query_one(&sql, &[]).await.unwrap();
    });
    let name = printed(
        Command::new("psql")
            .args(["-X", "-At", "-c", "SELECT name FROM customers WHERE id = 5"])
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", shop.proxied().port.to_string())
            .env("PGUSER", names::USER)
            .env("PGPASSWORD", names::PASSWORD)
            .env("PGDATABASE", names::DATABASE),
    );
    assert_eq!(name.trim(), "Fatima Perez");
}
