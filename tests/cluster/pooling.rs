//! Many sessions share few backends and none notices: prepared statements and settings follow the session from backend
//! to backend, session mode keeps one, and whoever comes when all is full is told.

use crate::harness::{Proxy, Recipe, block_on, customers_on, open_session, shop, until};
use std::collections::BTreeSet;
use tokio_postgres::{Client, error::SqlState};

async fn setting(client: &Client, key: i64, name: &str) -> (i32, String) {
    let sql = "SELECT pg_backend_pid(), current_setting($2) FROM customers WHERE id = $1";
    let row = client.query_one(sql, &[&key, &name]).await.unwrap();
    (row.get(0), row.get(1))
}

#[test]
fn prepared_statements_and_settings_follow_a_session_over_alternating_backends() {
    let shop = shop();
    let proxy = shop.serve(&Recipe::with("[pool]\nsize = 2"));
    let keys = customers_on(&shop.settings, 0);
    let key = keys[0];
    block_on(async {
        let [client, other] = [
            proxy.target().connect().await,
            proxy.target().connect().await,
        ];
        client
            .batch_execute("SET statement_timeout = '77s'; SET TimeZone = 'Asia/Tokyo'")
            .await
            .unwrap();
        other
            .batch_execute("SET statement_timeout = '99s'")
            .await
            .unwrap();
        let own = client
            .prepare("SELECT pg_backend_pid(), id, name FROM customers WHERE id = $1")
            .await
            .unwrap();
        let theirs = other
            .prepare("SELECT pg_backend_pid() FROM customers WHERE id = $1")
            .await
            .unwrap();
        let mut seen = BTreeSet::new();
        for round in 0..20_usize {
            // In every second round the other session's transaction keeps the backend that was used last.
            let held: Option<i32> = if round % 2 == 1 {
                other.batch_execute("BEGIN").await.unwrap();
                Some(other.query_one(&theirs, &[&key]).await.unwrap().get(0))
            } else {
                None
            };
            let asked = keys[round];
            let row = client.query_one(&own, &[&asked]).await.unwrap();
            let pid: i32 = row.get(0);
            assert_eq!(row.get::<_, i64>(1), asked);
            assert_ne!(Some(pid), held, "one backend serves two sessions at once");
            assert_eq!(
                setting(&client, key, "statement_timeout").await,
                (pid, "77s".to_owned())
            );
            assert_eq!(setting(&client, key, "TimeZone").await.1, "Asia/Tokyo");
            seen.insert(pid);
            if held.is_some() {
                assert_eq!(setting(&other, key, "statement_timeout").await.1, "99s");
                other.batch_execute("COMMIT").await.unwrap();
            }
        }
        assert_eq!(seen.len(), 2, "both backends were used");
    });
}

#[test]
fn a_setting_made_in_a_transaction_that_is_rolled_back_never_was() {
    let shop = shop();
    let key = customers_on(&shop.settings, 1)[0];
    for target in shop.both() {
        block_on(async {
            let client = target.connect().await;
            client.batch_execute("SET work_mem = '5MB'").await.unwrap();
            client
                .batch_execute(&format!(
                    "BEGIN; SET work_mem = '6MB'; SELECT FROM customers WHERE id = {key}"
                ))
                .await
                .unwrap();
            assert_eq!(setting(&client, key, "work_mem").await.1, "6MB");
            client.batch_execute("ROLLBACK").await.unwrap();
            assert_eq!(setting(&client, key, "work_mem").await.1, "5MB");
            for sql in ["BEGIN", "SET LOCAL work_mem = '7MB'"] {
                client.batch_execute(sql).await.unwrap();
            }
            assert_eq!(setting(&client, key, "work_mem").await.1, "7MB");
            client.batch_execute("COMMIT").await.unwrap();
            assert_eq!(setting(&client, key, "work_mem").await.1, "5MB");
            client.batch_execute("RESET work_mem").await.unwrap();
            assert_eq!(setting(&client, key, "work_mem").await.1, "4MB");
        });
    }
}

#[test]
fn session_mode_keeps_a_backend_and_what_was_made_on_it() {
    let shop = shop();
    let proxy = shop.serve(&Recipe::with("[pool]\nmode = \"session\"\nsize = 2"));
    let key = customers_on(&shop.settings, 0)[0];
    block_on(async {
        let [client, other] = [
            proxy.target().connect().await,
            proxy.target().connect().await,
        ];
        let first = setting(&client, key, "work_mem").await.0;
        client
            .batch_execute("SELECT pg_advisory_lock(77)")
            .await
            .unwrap();
        for round in 0..5 {
            let busy = setting(&other, key, "work_mem").await.0;
            assert_ne!(busy, first, "round {round}");
            assert_eq!(setting(&client, key, "work_mem").await.0, first);
        }
        // Both backends of the shard have their client: the next one waits until one leaves.
        let waiting = async {
            let third = proxy.target().connect().await;
            setting(&third, key, "work_mem").await.0
        };
        let mut waiting = std::pin::pin!(waiting);
        tokio::select! {
            pid = &mut waiting => panic!("{pid} was free"),
            _ = setting(&other, key, "work_mem") => {}
        }
        drop(other);
        assert_ne!(waiting.await, first);
    });
}

#[test]
fn a_client_waits_for_a_backend_no_longer_than_it_was_told() {
    let shop = shop();
    let proxy = shop.serve(&Recipe::with("[pool]\nsize = 1\nwait_timeout = \"300ms\""));
    let key = customers_on(&shop.settings, 2)[0];
    block_on(async {
        let [holder, late] = [
            proxy.target().connect().await,
            proxy.target().connect().await,
        ];
        holder
            .batch_execute(&format!("BEGIN; SELECT FROM customers WHERE id = {key}"))
            .await
            .unwrap();
        let sql = format!("SELECT name FROM customers WHERE id = {key}");
        let refused = late.simple_query(&sql).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Some(&SqlState::TOO_MANY_CONNECTIONS),
            "{refused:?}"
        );
        assert!(
            refused
                .as_db_error()
                .unwrap()
                .detail()
                .unwrap()
                .contains("SW201")
        );
        holder.batch_execute("COMMIT").await.unwrap();
        late.simple_query(&sql).await.unwrap();
    });
}

async fn enters(proxy: &Proxy) -> Result<Client, tokio_postgres::Error> {
    open_session(&proxy.target().config()).await
}

#[test]
fn clients_beyond_the_limit_are_told_and_enter_once_somebody_has_left() {
    let recipe = Recipe {
        server: "max_clients = 2".to_owned(),
        ..Recipe::default()
    };
    let proxy = shop().serve(&recipe);
    block_on(async {
        let first = enters(&proxy).await.unwrap();
        let second = enters(&proxy).await.unwrap();
        let refused = enters(&proxy).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Some(&SqlState::TOO_MANY_CONNECTIONS),
            "{refused:?}"
        );
        first.simple_query("SELECT 1").await.unwrap();
        second.simple_query("SELECT 1").await.unwrap();
    });
    // Both have left with their runtime.
    until("somebody enters again", || {
        block_on(async { enters(&proxy).await.is_ok() })
    });
}

#[test]
fn many_clients_share_few_backends_and_each_gets_its_own_rows() {
    let shop = shop();
    let proxy = shop.serve(&Recipe::with("[pool]\nsize = 2"));
    let asks = async |first: i64| {
        let client = proxy.target().connect().await;
        let mut pids = BTreeSet::new();
        for id in first..first + 20 {
            let sql = "SELECT pg_backend_pid(), id FROM customers WHERE id = $1";
            let row = client.query_one(sql, &[&id]).await.unwrap();
            assert_eq!(row.get::<_, i64>(1), id);
            pids.insert(row.get::<_, i32>(0));
        }
        pids
    };
    let pids = block_on(async {
        let (a, b, c, d) = tokio::join!(asks(1), asks(101), asks(201), asks(301));
        let (e, f, g, h) = tokio::join!(asks(401), asks(501), asks(601), asks(701));
        [a, b, c, d, e, f, g, h]
            .into_iter()
            .flatten()
            .collect::<BTreeSet<i32>>()
    });
    assert!(pids.len() <= 2 * shop.shards().len(), "{pids:?}");
}
