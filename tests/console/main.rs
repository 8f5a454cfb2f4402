//! What operators see of real traffic: a proxy in this process before two shards (two databases of one server), clients
//! that do known things, and the console and `/metrics` that must tell exactly those.

mod stage;

use stage::{Stage, code};
use std::collections::HashMap;

#[test]
fn the_console_and_metrics_tell_what_clients_did() {
    let stage = Stage::open();
    stage.block_on(async {
        let app = stage.client("alice", "app").await;
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
        // Refused by a code, and an error of PostgreSQL's.
        for _ in 0..3 {
            let refused = app.simple_query("SELECT * FROM orders").await.unwrap_err();
            assert_eq!(code(&refused), "0A000");
        }
        let failed = app
            .simple_query("SELECT 1/0 FROM orders WHERE customer = 1")
            .await;
        assert_eq!(code(&failed.unwrap_err()), "22012");
        // In a transaction, with a name of its own.
        app.batch_execute("SET application_name = 'checkout'")
            .await
            .unwrap();
        app.batch_execute("BEGIN").await.unwrap();
        app.batch_execute("SELECT 1 FROM orders WHERE customer = 7")
            .await
            .unwrap();

        let ops = stage.client("ops", "shardway").await;
        let rows = stage::rows(&ops, "SHOW STATS").await;
        let stats = stage::row(&rows, "database", "app");
        // 20 INSERTs, 10 SELECTs by a prepared statement, SET; what was refused never ran, what runs in the open
        // transaction is counted when it ends.
        assert_eq!(stats["total_query_count"], "31");
        assert_eq!(stats["total_bind_count"], "10");
        assert_eq!(stats["total_client_parse_count"], "1");
        assert_eq!(stats["total_client_login_count"], "1");
        assert_eq!(stats["total_errors"], "1");
        for counted in [
            "total_received",
            "total_sent",
            "total_query_time",
            "total_xact_time",
        ] {
            assert!(stats[counted].parse::<u64>().unwrap() > 0, "{counted}");
        }
        let [query, transaction] =
            ["total_query_time", "total_xact_time"].map(|name| number(stats, name));
        assert!(query <= transaction, "{query} within {transaction}");

        let shards = stage::rows(&ops, "SHOW SHARDS").await;
        let spread: Vec<u64> = shards
            .iter()
            .map(|shard| number(shard, "queries"))
            .collect();
        assert_eq!(spread.iter().sum::<u64>(), 31);
        assert!(
            spread.iter().all(|queries| *queries > 0),
            "both shards have worked: {spread:?}"
        );

        let clients = stage::rows(&ops, "SHOW CLIENTS").await;
        let client = stage::row(&clients, "database", "app");
        assert_eq!(
            (&*client["state"], &*client["in_transaction"]),
            ("active", "yes")
        );
        assert_eq!(
            (&*client["application_name"], &*client["user"]),
            ("checkout", "alice")
        );
        assert_eq!(client["prepared_statements"], "1");
        let servers = stage::rows(&ops, "SHOW SERVERS").await;
        let busy = stage::row(&servers, "link", &client["ptr"]);
        assert_eq!(
            (&*busy["state"], &*busy["shard"]),
            ("active", &*client["shard"])
        );

        let pools = stage::rows(&ops, "SHOW POOLS").await;
        let pool = stage::row(&pools, "database", "app");
        assert_eq!((&*pool["cl_active"], &*pool["sv_active"]), ("1", "1"));
        let refusals = stage::rows(&ops, "SHOW REFUSALS").await;
        assert_eq!(stage::row(&refusals, "code", "SW102")["count"], "3");
        let plans = stage::rows(&ops, "SHOW PLANS").await;
        assert!(
            number(stage::row(&plans, "database", "app"), "hits") >= 19,
            "INSERTs differ in constants only"
        );

        app.batch_execute("COMMIT").await.unwrap();
        let clients = stage::rows(&ops, "SHOW CLIENTS").await;
        let client = stage::row(&clients, "database", "app");
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
        let sum: f64 = queries
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum();
        assert!(
            (sum - 34.0).abs() < 0.1,
            "the transaction's three too: {sum}"
        );
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
        let rows = ops.query(&show, &[]).await.unwrap();
        let pool = rows
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
        let [admin, watcher] = [
            stage.client("ops", "shardway").await,
            stage.client("watch", "shardway").await,
        ];
        let app = stage.client("alice", "app").await;
        let clients = stage::rows(&watcher, "SHOW CLIENTS").await;
        let victim = stage::row(&clients, "database", "app")["id"].clone();
        let kill = format!("KILL {victim}");
        for forbidden in ["RELOAD", "SHUTDOWN", &kill] {
            let refused = watcher.simple_query(forbidden).await.unwrap_err();
            assert_eq!(code(&refused), "42501", "{forbidden}");
        }
        app.simple_query("SELECT 1").await.unwrap();
        for not_built in ["PAUSE", "RESUME app"] {
            let refused = admin.simple_query(not_built).await.unwrap_err();
            assert_eq!(code(&refused), "0A000", "{not_built}");
            assert!(
                refused
                    .as_db_error()
                    .unwrap()
                    .message()
                    .contains("not built")
            );
        }
        admin.simple_query("RELOAD").await.unwrap();
        admin.simple_query(&kill).await.unwrap();
        let ended = app.simple_query("SELECT 1").await.unwrap_err();
        assert!(ended.is_closed() || code(&ended) == "57P01", "{ended}");
        let nobody = stage.try_client("alice", "shardway").await.unwrap_err();
        assert_eq!(code(&nobody), "42501");
    });
}

fn number(row: &HashMap<String, String>, column: &str) -> u64 {
    row[column].parse().unwrap()
}
