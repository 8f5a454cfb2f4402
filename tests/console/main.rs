//! What operators see of real traffic: a proxy in this process before two shards (two databases of one server), clients
//! that do known things, and the console and `/metrics` that must tell exactly those.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;
mod verbs;

use stage::{Stage, code, number, row, rows};
use tokio_postgres::{Client, Statement};

#[test]
fn the_console_and_metrics_tell_what_clients_did() {
    let stage = Stage::open();
    stage.block_on(async {
        let app = stage.client("alice", "app").await;
        let _prepared = work(&app).await;
        app.batch_execute("BEGIN").await.unwrap();
        app.batch_execute("SELECT 1 FROM orders WHERE customer = 7")
            .await
            .unwrap();

        let ops = stage.client("ops", "shardway").await;
        traffic_is_told(&ops).await;
        who_is_connected_is_told(&ops).await;

        app.batch_execute("COMMIT").await.unwrap();
        let clients = rows(&ops, "SHOW CLIENTS").await;
        let client = row(&clients, "database", "app");
        assert_eq!(
            (&*client["state"], &*client["in_transaction"]),
            ("idle", "no")
        );
        let page = stage.get("/metrics").await;
        for line in [
            r#"shardway_refusals_total{code="SW102"} 3"#,
            r#"shardway_clients{database="app",user="alice",state="idle"} 1"#,
            "shardway_ready 1",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        let queries = page
            .lines()
            .filter(|line| line.starts_with("shardway_queries_total{"));
        let sum: u64 = queries
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum();
        assert_eq!(sum, 34, "the transaction's three too");
    });
}

/// 20 INSERTs, 10 SELECTs of a prepared statement, three that are refused, one that fails, one SET.
async fn work(app: &Client) -> Statement {
    for id in 1..=20 {
        let sql = format!("INSERT INTO orders (customer, note) VALUES ({id}, 'n')");
        app.simple_query(&sql).await.unwrap();
    }
    let one = app
        .prepare("SELECT note FROM orders WHERE customer = $1")
        .await
        .unwrap();
    for id in 1..=10_i64 {
        assert_eq!(app.query(&one, &[&id]).await.unwrap().len(), 1);
    }
    for _ in 0..3 {
        let refused = app
            .simple_query("SELECT o FROM orders o FOR UPDATE")
            .await
            .unwrap_err();
        assert_eq!(code(&refused), "0A000");
    }
    let failed = app
        .simple_query("SELECT 1/0 FROM orders WHERE customer = 1")
        .await;
    assert_eq!(code(&failed.unwrap_err()), "22012");
    app.batch_execute("SET application_name = 'checkout'")
        .await
        .unwrap();
    one
}

async fn traffic_is_told(ops: &Client) {
    let all = rows(ops, "SHOW STATS").await;
    let stats = row(&all, "database", "app");
    // What was refused never ran, what failed was not completed, what is in an open transaction is told at its end.
    for (column, expected) in [
        ("total_query_count", 31),
        ("total_bind_count", 10),
        ("total_client_parse_count", 1),
        ("total_client_login_count", 1),
        ("total_errors", 1),
    ] {
        assert_eq!(number(stats, column), expected, "{column}");
    }
    for counted in ["total_received", "total_sent", "total_query_time"] {
        assert!(number(stats, counted) > 0, "{counted}");
    }
    assert!(number(stats, "total_query_time") <= number(stats, "total_xact_time"));

    let shards = rows(ops, "SHOW SHARDS").await;
    let spread: Vec<u64> = shards
        .iter()
        .map(|shard| number(shard, "queries"))
        .collect();
    assert_eq!(spread.iter().sum::<u64>(), 31);
    assert!(
        spread.iter().all(|queries| *queries > 0),
        "both shards have worked: {spread:?}"
    );
    let refusals = rows(ops, "SHOW REFUSALS").await;
    assert_eq!(number(row(&refusals, "code", "SW102"), "count"), 3);
    let plans = rows(ops, "SHOW PLANS").await;
    let hits = number(row(&plans, "database", "app"), "hits");
    assert!(hits >= 19, "INSERTs differ in constants only: {hits}");
}

async fn who_is_connected_is_told(ops: &Client) {
    let clients = rows(ops, "SHOW CLIENTS").await;
    let client = row(&clients, "database", "app");
    for (column, expected) in [
        ("state", "active"),
        ("in_transaction", "yes"),
        ("application_name", "checkout"),
        ("user", "alice"),
        ("prepared_statements", "1"),
    ] {
        assert_eq!(client[column], expected, "{column}");
    }
    let servers = rows(ops, "SHOW SERVERS").await;
    let busy = row(&servers, "link", &client["ptr"]);
    assert_eq!(
        (&*busy["state"], &*busy["shard"]),
        ("active", &*client["shard"])
    );
    let pools = rows(ops, "SHOW POOLS").await;
    let pool = row(&pools, "database", "app");
    assert_eq!((&*pool["cl_active"], &*pool["sv_active"]), ("1", "1"));
}

#[test]
fn a_session_that_keeps_its_backend_is_counted_while_it_lives() {
    let stage = Stage::with_pool("mode = \"session\"");
    stage.block_on(async {
        let app = stage.client("alice", "app").await;
        for id in 101..=104 {
            let sql = format!("SELECT 1 FROM orders WHERE customer = {id}");
            app.simple_query(&sql).await.unwrap();
        }
        let ops = stage.client("ops", "shardway").await;
        let all = rows(&ops, "SHOW STATS").await;
        let stats = row(&all, "database", "app");
        assert_eq!(number(stats, "total_query_count"), 4);
        assert_eq!(number(stats, "total_xact_count"), 4);
        let clients = rows(&ops, "SHOW CLIENTS").await;
        let client = row(&clients, "database", "app");
        assert_eq!(
            (&*client["state"], &*client["in_transaction"]),
            ("active", "no")
        );
        assert_eq!(number(client, "queries"), 4);
    });
}

#[test]
fn clients_that_wait_for_a_backend_are_shown_and_counted() {
    let stage = Stage::with_pool("size = 1\nwait_timeout = \"2s\"");
    stage.block_on(async {
        let holder = stage.client("alice", "app").await;
        let other = stage.client("alice", "app").await;
        let ops = stage.client("ops", "shardway").await;
        holder
            .batch_execute("BEGIN; SELECT 1 FROM orders WHERE customer = 7")
            .await
            .unwrap();
        let refused = other.simple_query("SELECT 1 FROM orders WHERE customer = 7");
        let waiting = async {
            loop {
                let pools = rows(&ops, "SHOW POOLS").await;
                if row(&pools, "database", "app")["cl_waiting"] == "1" {
                    return;
                }
            }
        };
        let (refused, ()) = tokio::join!(refused, waiting);
        assert_eq!(code(&refused.unwrap_err()), "53300");
        holder.batch_execute("COMMIT").await.unwrap();
        other.simple_query("SELECT 1").await.unwrap();
        let all = rows(&ops, "SHOW STATS").await;
        let stats = row(&all, "database", "app");
        assert_eq!(number(stats, "total_wait_timeouts"), 1);
        assert!(number(stats, "total_wait_time") >= 2_000_000, "{stats:?}");
        let refusals = rows(&ops, "SHOW REFUSALS").await;
        assert_eq!(number(row(&refusals, "code", "SW201"), "count"), 1);
    });
}

#[test]
fn the_console_speaks_the_extended_protocol() {
    let stage = Stage::open();
    stage.block_on(async {
        let ops = stage.client("ops", "shardway").await;
        let show = ops.prepare("SHOW POOLS").await.unwrap();
        assert_eq!(show.columns()[0].name(), "database");
        let _app = stage.client("alice", "app").await;
        let pools = ops.query(&show, &[]).await.unwrap();
        let pool = pools
            .iter()
            .find(|row| row.get::<_, &str>("database") == "app")
            .unwrap();
        // Binary, as this driver asks for it.
        assert_eq!(pool.get::<_, i64>("cl_active"), 1);
        let refused = ops.prepare("SHOW nonsense").await.unwrap_err();
        assert_eq!(code(&refused), "42601");
        // The conversation goes on after an error.
        assert_eq!(ops.query("SHOW VERSION", &[]).await.unwrap().len(), 1);
    });
}

#[test]
fn the_console_does_for_each_role_what_it_may() {
    let stage = Stage::open();
    stage.block_on(async {
        let admin = stage.client("ops", "shardway").await;
        let watcher = stage.client("watch", "shardway").await;
        let app = stage.client("alice", "app").await;
        let clients = rows(&watcher, "SHOW CLIENTS").await;
        let kill = format!("KILL {}", row(&clients, "database", "app")["id"]);
        for forbidden in ["RELOAD", "SHUTDOWN", &kill] {
            let refused = watcher.simple_query(forbidden).await.unwrap_err();
            assert_eq!(code(&refused), "42501", "{forbidden}");
        }
        app.simple_query("SELECT 1").await.unwrap();
        for not_built in ["PAUSE", "RESUME app"] {
            let refused = admin.simple_query(not_built).await.unwrap_err();
            assert_eq!(code(&refused), "0A000", "{not_built}");
            let words = refused.as_db_error().unwrap().message();
            assert!(words.contains("not built"), "{words}");
        }
        admin.simple_query("RELOAD").await.unwrap();
        admin.simple_query(&kill).await.unwrap();
        let ended = app.simple_query("SELECT 1").await.unwrap_err();
        assert!(ended.is_closed() || code(&ended) == "57P01", "{ended}");
        let nobody = stage.try_client("alice", "shardway").await.unwrap_err();
        assert_eq!(code(&nobody), "42501");
    });
}
