//! Publications and slots of a reshard: made once, found again, waited for, and gone at the end whoever reads them.

use super::shards::{LIMIT, Shards, block_on, servers};
use shardway::{
    replication::{
        connection::{Format, ReplicationError},
        publication::{self, Publication},
        slot::{self, Slot, SlotError, WalStatus},
    },
    sandbox::{Cluster, Sandbox},
    wire::replication::Lsn,
};
use std::{sync::OnceLock, time::Duration};

fn server() -> &'static Cluster {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    let start = || servers(1, &[("max_prepared_transactions", "5")]);
    SANDBOX.get_or_init(start).cluster(0)
}

/// A shard with a table, and the names of what is published.
async fn source(prefix: &str) -> (Shards<'static>, Vec<String>) {
    let shards = Shards::new(prefix, &[("s", server())]).await;
    shards
        .run("s", "CREATE TABLE \"T t\" (id int PRIMARY KEY)")
        .await;
    let tables = ["public.\"T t\"", "shardway.fence"];
    (shards, tables.map(str::to_owned).to_vec())
}

#[test]
fn what_is_there_is_found_and_not_made_again() {
    block_on(async {
        let (shards, tables) = source("found").await;
        let client = shards.server("s").sql().await.unwrap();
        let mut commands = shards.server("s").stream().await.unwrap();
        assert_eq!(
            publication::make(&client, "p", &tables).await.unwrap(),
            Publication::Made
        );
        assert_eq!(
            publication::make(&client, "p", &tables).await.unwrap(),
            Publication::Found
        );
        let another = publication::make(&client, "p", &tables[1..]).await.unwrap();
        let Publication::Another { tables: mut found } = another else {
            panic!("{another:?}");
        };
        found.sort();
        assert_eq!(found, tables);
        let root = "SELECT pubviaroot FROM pg_publication";
        assert_eq!(shards.one("s", root).await, "t");

        let Slot::Made(from) = slot::make(&client, &mut commands, "found").await.unwrap() else {
            panic!("there was one");
        };
        assert_eq!(
            slot::make(&client, &mut commands, "found").await.unwrap(),
            Slot::Found(from)
        );
        slot::barrier(&client, LIMIT).await.unwrap();
        let state = slot::state(&client, "found").await.unwrap().unwrap();
        assert_eq!(
            (state.confirmed, state.wal, state.reader),
            (Some(from), WalStatus::Reserved, None)
        );
        assert!(state.restart.unwrap() <= from && state.kept >= 0 && state.safe.is_none());

        slot::remove(&client, &mut commands, "found").await.unwrap();
        slot::remove(&client, &mut commands, "found").await.unwrap();
        assert_eq!(slot::state(&client, "found").await.unwrap(), None);
        publication::remove(&client, "p").await.unwrap();
        publication::remove(&client, "p").await.unwrap();
        assert!(shards.rows("s", root).await.is_empty());
    });
}

#[test]
fn whoever_was_there_before_is_waited_for_and_named() {
    block_on(async {
        let (shards, _) = source("before").await;
        let client = shards.server("s").sql().await.unwrap();
        let mut other = shards.server("s").sql().await.unwrap();
        let open = other.transaction().await.unwrap();
        open.batch_execute("INSERT INTO public.\"T t\" VALUES (1)")
            .await
            .unwrap();
        shards
            .run(
                "s",
                "BEGIN; INSERT INTO \"T t\" VALUES (2); PREPARE TRANSACTION 'of before'",
            )
            .await;
        let waiting = slot::barrier(&client, Duration::from_millis(200)).await;
        let Err(SlotError::Waiting(who)) = &waiting else {
            panic!("{waiting:?}");
        };
        let named = |text: &str| who.iter().any(|it| it.contains(text));
        assert!(
            named("idle in transaction") && named("prepared transaction of before"),
            "{who:?}"
        );
        open.rollback().await.unwrap();
        shards.run("s", "ROLLBACK PREPARED 'of before'").await;
        // One that only reads is not in the way.
        other.batch_execute("BEGIN; SELECT 1").await.unwrap();
        slot::barrier(&client, LIMIT).await.unwrap();
    });
}

#[test]
fn a_slot_that_was_left_in_the_making_is_made_anew() {
    block_on(async {
        let (shards, _) = source("making").await;
        let client = shards.server("s").sql().await.unwrap();
        let mut other = shards.server("s").sql().await.unwrap();
        let open = other.transaction().await.unwrap();
        open.batch_execute("INSERT INTO public.\"T t\" VALUES (1)")
            .await
            .unwrap();
        // The server does not notice that whoever wants it has gone: it waits for the transaction.
        let mut hasty = shards.server("s");
        hasty.limit = Duration::from_millis(500);
        let mut hasty = hasty.stream().await.unwrap();
        let made = slot::make(&client, &mut hasty, "making").await;
        assert!(
            matches!(made, Err(SlotError::Replication(ReplicationError::Timeout))),
            "{made:?}"
        );
        assert!(!slot::running(&client).await.unwrap().is_empty());
        drop(hasty);
        let left = slot::state(&client, "making").await.unwrap().unwrap();
        assert!(
            left.confirmed.is_none() && left.reader.is_some(),
            "{left:?}"
        );
        let mut commands = shards.server("s").stream().await.unwrap();
        let (made, ended) = tokio::join!(slot::make(&client, &mut commands, "making"), async {
            let gone = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'making' AND active_pid = ";
            let gone = format!("{gone}{}", left.reader.unwrap());
            while shards.one("s", &gone).await != "0" {}
            open.rollback().await
        });
        ended.unwrap();
        assert!(matches!(made.unwrap(), Slot::Made(_)));
        slot::remove(&client, &mut commands, "making")
            .await
            .unwrap();
    });
}

#[test]
fn a_slot_that_somebody_reads_is_dropped_all_the_same() {
    block_on(async {
        let (shards, tables) = source("reads").await;
        let client = shards.server("s").sql().await.unwrap();
        publication::make(&client, "p", &tables).await.unwrap();
        let mut commands = shards.server("s").stream().await.unwrap();
        slot::make(&client, &mut commands, "reads").await.unwrap();
        let reader = shards.server("s").stream().await.unwrap();
        let reading = reader
            .start("reads", Lsn(0), "p", Format::Binary)
            .await
            .unwrap();
        let state = slot::state(&client, "reads").await.unwrap().unwrap();
        assert!(state.reader.is_some());
        slot::remove(&client, &mut commands, "reads").await.unwrap();
        assert_eq!(slot::state(&client, "reads").await.unwrap(), None);
        drop(reading);
    });
}
