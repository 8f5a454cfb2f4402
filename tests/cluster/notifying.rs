//! LISTEN over three shards: one connection per shard hears for every session, whoever notifies wherever; programs that
//! listen see what they see on one PostgreSQL.

use crate::harness::{
    Proxy, Recipe, Target, block_on, customers_on, get, open_session, printed, shop, until,
};
use shardway::sandbox::shop::DATABASE;
use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};
use tokio_postgres::{AsyncMessage, Client, NoTls, Notification, error::SqlState};

/// What one listener has heard, and how its connection ended.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(String, i32)>>>, Arc<Mutex<Option<String>>>);

impl Heard {
    fn payloads(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|(text, _)| text.clone())
            .collect();
        all.sort();
        all
    }

    fn ended(&self) -> Option<String> {
        self.1.lock().unwrap().clone()
    }
}

/// A session that keeps what it is notified of.
async fn listener(target: &Target) -> (Client, Heard) {
    let (client, mut connection) = target.config().connect(NoTls).await.unwrap();
    let heard = Heard::default();
    let kept = heard.clone();
    #[expect(clippy::disallowed_methods, reason = "it ends with the client")]
    tokio::task::spawn(async move {
        loop {
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(found))) => {
                    let found: Notification = found;
                    kept.0
                        .lock()
                        .unwrap()
                        .push((found.payload().to_owned(), found.process_id()));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    let code = error.code().map_or("closed", SqlState::code).to_owned();
                    *kept.1.lock().unwrap() = Some(code);
                    return;
                }
                None => return,
            }
        }
    });
    (client, heard)
}

/// Until the listener has heard this much; whatever else runs on this thread goes on meanwhile.
async fn hears(heard: &Heard, wanted: &[&str]) {
    let patience = tokio::time::timeout(crate::harness::PATIENCE, async {
        while heard.payloads() != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    });
    assert!(
        patience.await.is_ok(),
        "heard {:?}, wanted {wanted:?}",
        heard.payloads()
    );
}

/// A connection to a shard's own server.
async fn direct(shard: usize) -> Client {
    let target = Target {
        name: "shard",
        port: shop().shards()[shard].port(),
    };
    open_session(&target.config()).await.unwrap()
}

fn console(proxy: &Proxy, sql: &str) -> String {
    let mut command = Command::new("psql");
    proxy.target().apply(&mut command);
    command
        .env("PGDATABASE", "shardway")
        .env("PGUSER", "ops")
        .env("PGPASSWORD", "ops");
    printed(command.args(["-XqAt", "-c", sql]))
}

#[test]
fn a_listener_hears_every_shard_and_the_proxys_own_sessions() {
    let shop = shop();
    block_on(async {
        let (client, heard) = listener(&shop.proxied()).await;
        client.batch_execute("LISTEN everywhere").await.unwrap();
        for shard in 0..3 {
            let sql = format!("NOTIFY everywhere, 'from shard {shard}'");
            direct(shard).await.batch_execute(&sql).await.unwrap();
        }
        let other = shop.proxied().connect().await;
        other
            .batch_execute("NOTIFY everywhere, 'by a session'")
            .await
            .unwrap();
        // With rows of any shard, in one transaction with them.
        for shard in 0..3 {
            let key = customers_on(&shop.settings, shard)[0];
            for sql in [
                "BEGIN".to_owned(),
                format!("SELECT FROM customers WHERE id = {key} FOR UPDATE"),
                format!("NOTIFY everywhere, 'with rows of {shard}'"),
                "COMMIT".to_owned(),
            ] {
                other.batch_execute(&sql).await.unwrap();
            }
        }
        let wanted = [
            "by a session",
            "from shard 0",
            "from shard 1",
            "from shard 2",
            "with rows of 0",
            "with rows of 1",
            "with rows of 2",
        ];
        hears(&heard, &wanted).await;
        client.batch_execute("UNLISTEN *").await.unwrap();
        direct(1)
            .await
            .batch_execute("NOTIFY everywhere, 'too late'")
            .await
            .unwrap();
        client.batch_execute("LISTEN everywhere").await.unwrap();
        direct(2)
            .await
            .batch_execute("NOTIFY everywhere, 'with the rest'")
            .await
            .unwrap();
        let mut all = wanted.to_vec();
        all.push("with the rest");
        hears(&heard, &all).await;
    });
}

#[test]
fn a_listen_that_is_rolled_back_is_no_listen_wherever_its_transaction_went() {
    let shop = shop();
    let key = customers_on(&shop.settings, 1)[0];
    block_on(async {
        let (client, heard) = listener(&shop.proxied()).await;
        let rows = format!("SELECT FROM customers WHERE id = {key} FOR UPDATE");
        for steps in [
            ["BEGIN", "LISTEN undone", &rows, "ROLLBACK"],
            ["BEGIN", &rows, "LISTEN undone", "ROLLBACK"],
            ["BEGIN", "LISTEN undone", "SELECT 1", "ROLLBACK"],
        ] {
            for sql in steps {
                client.batch_execute(sql).await.unwrap();
            }
        }
        for steps in [
            ["BEGIN", "LISTEN kept", &rows, "COMMIT"],
            ["BEGIN", &rows, "LISTEN kept", "COMMIT"],
            ["BEGIN", "LISTEN kept", "SELECT 1", "COMMIT"],
        ] {
            for sql in steps {
                client.batch_execute(sql).await.unwrap();
            }
            for shard in 0..3 {
                let server = direct(shard).await;
                server
                    .batch_execute("NOTIFY undone, 'undone'; NOTIFY kept, 'kept'")
                    .await
                    .unwrap();
            }
            hears(&heard, &["kept", "kept", "kept"]).await;
            heard.0.lock().unwrap().clear();
            client.batch_execute("UNLISTEN kept").await.unwrap();
        }
    });
}

#[test]
fn two_hundred_listeners_share_one_connection_per_shard() {
    let proxy = shop().serve(&Recipe::with("[pool]\nsize = 2"));
    block_on(async {
        let mut listeners = Vec::new();
        for _ in 0..200 {
            let (client, heard) = listener(&proxy.target()).await;
            client.batch_execute("LISTEN crowd").await.unwrap();
            listeners.push((client, heard));
        }
        for shard in 0..3 {
            let server = direct(shard).await;
            server
                .batch_execute(&format!("NOTIFY crowd, '{shard}'"))
                .await
                .unwrap();
        }
        for (_, heard) in &listeners {
            hears(heard, &["0", "1", "2"]).await;
        }
        let rows = console(&proxy, "SHOW LISTENERS");
        for (row, shard) in rows.lines().zip(["s0", "s1", "s2"]) {
            assert!(
                row.starts_with(&format!("{DATABASE}|{shard}|listening|1|200|")),
                "{rows}"
            );
        }
        assert_eq!(rows.lines().count(), 3);
        assert_eq!(console(&proxy, "SHOW PINS"), "");
        let page = get(proxy.http, "/metrics").1;
        for line in ["shardway_listener_up", "shardway_listening_clients"] {
            let value = if line.ends_with("up") { "1" } else { "200" };
            let wanted = format!("{line}{{database=\"{DATABASE}\",shard=\"s1\"}} {value}");
            assert!(page.contains(&wanted), "{wanted}: {page}");
        }
        drop(listeners);
    });
    until("nobody listens", || {
        let page = get(proxy.http, "/metrics").1;
        page.contains(&format!(
            "shardway_listening_clients{{database=\"{DATABASE}\",shard=\"s1\"}} 0"
        ))
    });
}

/// Ends the connection that listens on a shard for a proxy.
async fn kill(proxy: &Proxy, shard: usize) {
    let rows = console(proxy, "SHOW LISTENERS");
    let pid = rows.lines().nth(shard).unwrap().split('|').nth(5).unwrap();
    let sql = format!("SELECT pg_terminate_backend({pid}, 10000)");
    let server = &shop().shards()[shard];
    server.execute(DATABASE, &sql).await.unwrap();
}

#[test]
fn who_may_have_missed_something_is_not_left_believing_otherwise() {
    let proxy = shop().serve(&Recipe::with("[pool]\nsize = 2"));
    block_on(async {
        let (client, heard) = listener(&proxy.target()).await;
        client.batch_execute("LISTEN fragile").await.unwrap();
        let bystander = proxy.target().connect().await;
        kill(&proxy, 1).await;
        let patience = tokio::time::timeout(crate::harness::PATIENCE, async {
            while heard.ended().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        patience.await.unwrap();
        assert_eq!(heard.ended().as_deref(), Some("08006"));
        bystander.batch_execute("SELECT 1").await.unwrap();
        // What it does about it: connect again, and all is well.
        let (client, heard) = listener(&proxy.target()).await;
        client.batch_execute("LISTEN fragile").await.unwrap();
        direct(1)
            .await
            .batch_execute("NOTIFY fragile, 'well'")
            .await
            .unwrap();
        hears(&heard, &["well"]).await;
    });
    let page = get(proxy.http, "/metrics").1;
    let gaps = format!("shardway_listener_gaps_total{{database=\"{DATABASE}\",shard=\"s1\"}} 1");
    assert!(page.contains(&gaps), "{page}");
}

#[test]
fn listen_is_refused_while_a_shard_cannot_be_reached() {
    let shop = shop();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let text = Recipe::default().write(shop.shards());
    let text = text.replace(
        &format!(":{}/{DATABASE}", shop.shards()[2].port()),
        &format!(":{port}/{DATABASE}"),
    );
    let proxy = Proxy::start(shop.dir(), &text);
    block_on(async {
        let client = proxy.target().connect().await;
        let refused = client.batch_execute("LISTEN partly").await.unwrap_err();
        assert_eq!(
            refused.code(),
            Some(&SqlState::CONNECTION_FAILURE),
            "{refused:?}"
        );
        let detail = refused.as_db_error().unwrap().detail().unwrap();
        assert!(
            detail.contains("\"s2\"") && detail.contains("SW221"),
            "{detail}"
        );
        client.batch_execute("SELECT 1").await.unwrap();
    });
}

#[test]
fn a_reload_that_replaces_the_database_keeps_its_listeners_listening() {
    let shop = shop();
    let proxy = shop.serve(&Recipe::with("[pool]\nsize = 2"));
    block_on(async {
        let (client, heard) = listener(&proxy.target()).await;
        client.batch_execute("LISTEN lasting").await.unwrap();
        let text = Recipe::with("[pool]\nsize = 3").write(shop.shards());
        let old = std::fs::read_to_string(&proxy.config).unwrap();
        let keep = |text: &str, key: &str| {
            text.lines()
                .find(|line| line.starts_with(key))
                .unwrap()
                .to_owned()
        };
        let text = text.replace(&keep(&text, "listen"), &keep(&old, "listen"));
        std::fs::write(&proxy.config, text).unwrap();
        let before = proxy.log().matches("listener").count();
        proxy.signal("HUP");
        until("the configuration is loaded", || {
            get(proxy.http, "/metrics")
                .1
                .contains("shardway_reloads_total 1")
        });
        let mut wanted = Vec::new();
        for round in 0..20 {
            let payload = format!("{round:02}");
            let server = direct(round % 3).await;
            server
                .batch_execute(&format!("NOTIFY lasting, '{payload}'"))
                .await
                .unwrap();
            wanted.push(payload);
        }
        let heard_all = || {
            let heard = heard.payloads();
            wanted.iter().all(|payload| heard.contains(payload))
        };
        let patience = tokio::time::timeout(crate::harness::PATIENCE, async {
            while !heard_all() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        assert!(patience.await.is_ok(), "{:?}", heard.payloads());
        client.batch_execute("SELECT 1").await.unwrap();
        assert_eq!(
            proxy.log().matches("listener").count(),
            before,
            "{}",
            proxy.log()
        );
    });
}

/// Listens before or after a reload that gives a shard another database, and hears what is notified there.
fn check_hears_where_a_reload_leads(kept: &str, listens_after: &[&str], listens_before: &[&str]) {
    let shop = shop();
    let moved = shop.shards()[2].port();
    let text = Recipe::default().write(shop.shards());
    let (here, there) = (format!(":{moved}/postgres"), format!(":{moved}/{DATABASE}"));
    assert!(text.contains(&there), "{text}");
    let proxy = Proxy::start(shop.dir(), &text.replace(&there, &here));
    block_on(async {
        let (client, heard) = listener(&proxy.target()).await;
        for sql in listens_before {
            client.batch_execute(sql).await.unwrap();
        }
        client.batch_execute(kept).await.unwrap();
        let old = std::fs::read_to_string(&proxy.config).unwrap();
        std::fs::write(&proxy.config, old.replace(&here, &there)).unwrap();
        proxy.signal("HUP");
        until("the configuration is loaded", || {
            proxy.log().contains("configuration reloaded")
        });
        for sql in listens_after {
            client.batch_execute(sql).await.unwrap();
        }
        let server = direct(2).await;
        let patience = tokio::time::timeout(crate::harness::PATIENCE, async {
            while heard.payloads().is_empty() {
                server.batch_execute("NOTIFY there").await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        assert!(patience.await.is_ok(), "{}", proxy.log());
        client.batch_execute("SELECT 1").await.unwrap();
    });
}

#[test]
fn a_listen_in_a_transaction_from_before_a_reload_hears_where_it_leads() {
    check_hears_where_a_reload_leads("BEGIN; SELECT 1", &["LISTEN there", "COMMIT"], &[]);
}

#[test]
fn a_session_that_keeps_its_backend_hears_where_a_reload_leads() {
    let pins = "SELECT pg_advisory_lock(4711)";
    check_hears_where_a_reload_leads(pins, &[], &["LISTEN there"]);
}

/// Runs a program that listens, on both targets: what it prints must be the same.
fn same_program(name: &str, channel: &str) {
    let root = env!("CARGO_MANIFEST_DIR");
    let python = format!("{root}/target/clients/python/bin/python");
    assert!(
        Path::new(&python).exists(),
        "{python} is missing: run tests/setup/clients.sh"
    );
    let [direct, proxied] = shop().both().map(|target| {
        let mut command = Command::new(&python);
        command
            .arg(format!("{root}/tests/cluster/clients/{name}"))
            .arg(channel);
        target.apply(&mut command);
        printed(&mut command)
    });
    assert!(
        direct.contains("own") && direct.contains("other"),
        "{direct}"
    );
    crate::harness::assert_same(&direct, &proxied);
}

#[test]
fn psycopg_listens_as_on_one_postgresql() {
    same_program("listen_with_psycopg.py", "for_psycopg");
}

#[test]
fn asyncpg_listens_as_on_one_postgresql() {
    same_program("listen_with_asyncpg.py", "for_asyncpg");
}

#[test]
fn psql_shows_notifications_as_on_one_postgresql() {
    let script = "LISTEN for_psql;\nNOTIFY for_psql, 'one';\nSELECT 1;\nBEGIN;\nNOTIFY for_psql;\nSELECT 2;\nCOMMIT;\n\
                  SELECT pg_notify('for_psql', 'three');\nUNLISTEN *;\nNOTIFY for_psql;\nSELECT 3;\n";
    let [direct, proxied] = shop().both().map(|target| {
        let mut command = Command::new("psql");
        target.apply(&mut command);
        command.args(["-X", "-v", "ON_ERROR_STOP=1", "-c"]);
        let mut args = script.lines();
        command.arg(args.next().unwrap());
        for line in args {
            command.args(["-c", line]);
        }
        without_pid(&printed(&mut command))
    });
    assert_eq!(
        direct.matches("Asynchronous notification").count(),
        3,
        "{direct}"
    );
    crate::harness::assert_same(&direct, &proxied);
}

/// psql prints the pid of the server process.
fn without_pid(text: &str) -> String {
    let cut = |line: &str| match line.split_once("with PID ") {
        Some((before, _)) => before.to_owned(),
        None => line.to_owned(),
    };
    text.lines().map(cut).collect::<Vec<_>>().join("\n")
}
