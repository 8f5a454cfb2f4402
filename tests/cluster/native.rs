//! tokio-postgres as an application uses it: statements prepared once and run with keys of every shard, pipelined
//! statements, transactions with savepoints, cancel. And that the shards really share the rows.

use crate::harness::{SHARDS, Target, block_on, home_of, shop};
use shardway::sandbox::shop as names;
use std::collections::BTreeMap;
use tokio_postgres::{Client, NoTls, error::SqlState};

/// Connects, does it, and closes in order.
fn with_client<T>(target: &Target, act: impl AsyncFnOnce(&mut Client) -> T) -> T {
    block_on(async {
        let (mut client, connection) = target.config().connect(NoTls).await.unwrap();
        let work = async move { act(&mut client).await };
        let (ended, value) = tokio::join!(connection, work);
        ended.unwrap();
        value
    })
}

#[test]
fn the_shards_share_the_rows_and_none_holds_all() {
    let counts: Vec<u64> = shop()
        .shards()
        .iter()
        .map(|shard| {
            let rows = block_on(shard.query(
                names::DATABASE,
                "SELECT count(*) FROM customers WHERE id <= 1000",
            ))
            .unwrap();
            rows[0][0].as_deref().unwrap().parse().unwrap()
        })
        .collect();
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (SHARDS, 1000));
    assert!(
        counts.iter().all(|count| (200..=500).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_statement_prepared_once_finds_every_customer_with_its_own_row() {
    let [direct, proxied] = shop().both().map(|target| {
        with_client(&target, async |client| {
            let statement = client
                .prepare("SELECT id, name, email, country FROM customers WHERE id = $1")
                .await
                .unwrap();
            let mut found = BTreeMap::new();
            for id in 1..=200_i64 {
                let row = client.query_one(&statement, &[&id]).await.unwrap();
                assert_eq!(row.get::<_, i64>(0), id);
                found.insert(
                    id,
                    (
                        row.get::<_, String>(1),
                        row.get::<_, String>(2),
                        row.get::<_, Option<String>>(3),
                    ),
                );
            }
            found
        })
    });
    assert_eq!(direct, proxied);
}

#[test]
fn a_row_written_through_the_proxy_is_on_the_shard_that_the_map_names() {
    let shop = shop();
    for id in 4_000_000..4_000_020_i64 {
        with_client(&shop.proxied(), async |client| {
            client
                .execute("INSERT INTO customers VALUES ($1, 'n', 'e', 'de')", &[&id])
                .await
                .unwrap()
        });
        let owner = home_of(&shop.settings, id);
        for (at, shard) in shop.shards().iter().enumerate() {
            let sql = format!("DELETE FROM customers WHERE id = {id} RETURNING id");
            let rows = block_on(shard.query(names::DATABASE, &sql)).unwrap();
            assert_eq!(
                rows.len(),
                usize::from(at == owner),
                "customer {id} on shard {at}"
            );
        }
    }
}

#[test]
fn statements_sent_without_waiting_answer_in_order() {
    for target in shop().both() {
        with_client(&target, async |client| {
            let text = "SELECT id FROM customers WHERE id = $1::bigint";
            let statement = client.prepare(text).await.unwrap();
            let ask = async |id: i64| {
                client
                    .query_one(&statement, &[&id])
                    .await
                    .unwrap()
                    .get::<_, i64>(0)
            };
            let (a, b, c, d) = tokio::join!(ask(21), ask(22), ask(23), ask(24));
            assert_eq!([a, b, c, d], [21, 22, 23, 24], "{}", target.name);
        });
    }
}

#[test]
fn a_savepoint_takes_back_only_what_came_after_it() {
    for (target, id) in shop().both().into_iter().zip([4_100_000_i64, 4_100_001]) {
        with_client(&target, async |client| {
            let mut outer = client.transaction().await.unwrap();
            outer
                .execute(
                    "INSERT INTO customers VALUES ($1, 'kept', 'e', NULL)",
                    &[&id],
                )
                .await
                .unwrap();
            let inner = outer.savepoint("halfway").await.unwrap();
            inner
                .execute("UPDATE customers SET name = 'lost' WHERE id = $1", &[&id])
                .await
                .unwrap();
            inner.rollback().await.unwrap();
            outer.commit().await.unwrap();
            let row = client
                .query_one("DELETE FROM customers WHERE id = $1 RETURNING name", &[&id])
                .await
                .unwrap();
            assert_eq!(row.get::<_, &str>(0), "kept", "{}", target.name);
        });
    }
}

#[test]
fn a_cancel_ends_the_query_and_the_session_goes_on() {
    for target in shop().both() {
        with_client(&target, async |client| {
            let token = client.cancel_token();
            let sleep = async { client.batch_execute("SELECT pg_sleep(60)").await };
            let mut sleep = std::pin::pin!(sleep);
            // A cancel that comes before the query has begun is lost, as PostgreSQL says: it is sent again.
            let ended = loop {
                let pause = tokio::time::sleep(std::time::Duration::from_millis(50));
                tokio::select! {
                    ended = &mut sleep => break ended,
                    () = pause => token.cancel_query(NoTls).await.unwrap(),
                }
            };
            assert_eq!(
                ended.unwrap_err().code(),
                Some(&SqlState::QUERY_CANCELED),
                "{}",
                target.name
            );
        });
        with_client(&target, async |client| {
            client
                .query_one("SELECT id FROM customers WHERE id = 1", &[])
                .await
                .unwrap();
        });
    }
}

#[test]
fn a_key_that_its_type_does_not_take_is_refused_as_postgresql_refuses_it() {
    for target in shop().both() {
        with_client(&target, async |client| {
            let error = client
                .simple_query("SELECT * FROM customers WHERE id = 'x'")
                .await
                .unwrap_err();
            let expected = SqlState::INVALID_TEXT_REPRESENTATION;
            assert_eq!(error.code(), Some(&expected), "{}", target.name);
        });
    }
}

#[test]
fn what_needs_several_shards_is_refused_with_a_reason_and_a_hint() {
    with_client(&shop().proxied(), async |client| {
        for text in [
            "SELECT count(*) FROM orders JOIN customers ON customers.id = orders.id",
            "SELECT * FROM customers ORDER BY name LIMIT 3 FOR UPDATE",
            "SELECT * FROM customers c JOIN shipments s ON s.customer_id = c.id WHERE c.id = 7",
        ] {
            let error = client.simple_query(text).await.unwrap_err();
            let said = error
                .as_db_error()
                .unwrap_or_else(|| panic!("{text}: {error}"));
            assert_eq!(
                said.code(),
                &SqlState::FEATURE_NOT_SUPPORTED,
                "{text}: {said}"
            );
            assert!(
                said.detail().is_some_and(|detail| detail.contains("SW1")),
                "{text}: {said:?}"
            );
            assert!(said.hint().is_some(), "{text}: {said:?}");
        }
        client
            .query_one("SELECT id FROM customers WHERE id = 1", &[])
            .await
            .unwrap();
    });
}
