//! What a follower does with more than it can bring at once: many rows in few statements, pieces that end with transactions
//! again and again, and nothing that is said to be applied before it is durable.

use super::{
    applying::{WIDE, begin, equal, fence, reshard, soon, tenant},
    following::{arrived, copied, halted, position},
    shards::{Shards, block_on, servers},
};
use shardway::reshard::steps::{catch_up::Follower, copy};

/// Rows of a tenant from 1001 on, with values of all kinds.
fn rows(tenant: &str, count: u32) -> String {
    format!(
        "INSERT INTO t (tenant, id, n, note, long, own, data, doc, amount) OVERRIDING SYSTEM VALUE \
         SELECT {tenant}, 1000 + k, k, \
                CASE k % 5 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'\\\\N\\t\\n\\r\\\\.' WHEN 3 THEN 'héé' ELSE 'x' END, \
                repeat(md5(k::text), CASE k % 40 WHEN 0 THEN 300 ELSE 1 END), 5000 + k, \
                CASE k % 3 WHEN 0 THEN decode(md5(k::text), 'hex') WHEN 1 THEN '' END, \
                jsonb_build_object('k', k, 'of', NULL), CASE k % 7 WHEN 0 THEN 'NaN' ELSE k / 7.0 END \
         FROM generate_series(1, {count}) k"
    )
}

const KINDS: &str = "\
ALTER TABLE t ADD own bigint GENERATED ALWAYS AS IDENTITY, ADD data bytea, ADD doc jsonb, ADD amount numeric, \
      ADD twice int GENERATED ALWAYS AS (n * 2) STORED";

#[test]
fn rows_that_come_in_numbers_are_as_they_were() {
    block_on(async {
        let (shards, reshard, [a, b, _]) = copied("numbers", KINDS).await;
        for tenant in [&a, &b] {
            let written = format!(
                "{}; UPDATE t SET note = note || 'y', n = 3 WHERE tenant = {tenant} AND id % 4 = 0; \
                 DELETE FROM t WHERE tenant = {tenant} AND id % 10 = 2",
                rows(tenant, 3_000)
            );
            shards.run("s", &written).await;
        }
        let follower = Follower::start(&reshard.job, "s");
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
    });
}

#[test]
fn unique_values_may_go_from_row_to_row_among_many() {
    block_on(async {
        let unique = format!("{KINDS}; CREATE UNIQUE INDEX one ON t (tenant, n)");
        let (shards, reshard, [a, ..]) = copied("among", &unique).await;
        let row = |id: u32| format!("WHERE tenant = {a} AND id = {id}");
        let written = format!(
            "BEGIN; {}; UPDATE t SET n = -1 {}; UPDATE t SET n = 1 {}; UPDATE t SET n = 2 {}; COMMIT",
            rows(&a, 900).replace("1000 + k, k", "1000 + k, 1000 + k"),
            row(1),
            row(2),
            row(1)
        );
        shards.run("s", &written).await;
        let follower = Follower::start(&reshard.job, "s");
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
    });
}

#[test]
fn rows_may_get_other_numbers_where_only_the_server_gives_them() {
    block_on(async {
        let numbered = format!(
            "{KINDS}; ALTER TABLE t ADD of_own bigint GENERATED ALWAYS AS (own * 2) STORED; \
             CREATE UNIQUE INDEX one ON t (tenant, own)"
        );
        let (shards, reshard, [a, b, stays]) = copied("renumbered", &numbered).await;
        let row = |id: u32| format!("WHERE tenant = {a} AND id = {id}");
        let again = |id: u32, own: &str| {
            format!(
                "INSERT INTO t (tenant, id, n, long, own) OVERRIDING SYSTEM VALUE \
                 VALUES ({a}, {id}, 9, 'again', {own})"
            )
        };
        for written in [
            format!(
                "BEGIN; DELETE FROM t {}; {}; COMMIT",
                row(1),
                again(1, "DEFAULT")
            ),
            // Beside values that are not streamed.
            format!("UPDATE t SET own = DEFAULT {}", row(2)),
            format!("UPDATE t SET own = DEFAULT, n = n + 1 WHERE tenant = {b} AND id < 5"),
            // A row with values that are not streamed takes the place of another.
            format!(
                "BEGIN; DELETE FROM t {}; UPDATE t SET tenant = {a} WHERE tenant = {stays} AND id = 3; COMMIT",
                row(3)
            ),
            // Numbers are exchanged.
            format!(
                "BEGIN; CREATE TEMP TABLE was AS SELECT id, own FROM t WHERE tenant = {a}; DELETE FROM t {}; DELETE FROM t {}; {}; {}; COMMIT",
                row(5),
                row(6),
                again(5, "(SELECT own FROM was WHERE id = 6)"),
                again(6, "(SELECT own FROM was WHERE id = 5)"),
            ),
            format!(
                "{}; UPDATE t SET own = DEFAULT WHERE tenant = {a} AND id % 3 = 0",
                rows(&a, 900)
            ),
        ] {
            shards.run("s", &written).await;
        }
        let follower = Follower::start(&reshard.job, "s");
        arrived(&shards, &reshard, &follower, 1).await;
        let forced = format!("UPDATE t SET own = 1 {}", row(1));
        assert!(
            shards
                .cluster("a")
                .execute("renumbered_a", &forced)
                .await
                .is_err()
        );
        soon(follower.stop()).await;
    });
}

#[test]
fn a_row_among_many_that_is_there_already_stops_it_by_name() {
    block_on(async {
        let (shards, reshard, [a, ..]) = copied("known", KINDS).await;
        let there = format!("INSERT INTO t VALUES ({a}, 1500, 0, '', '')");
        shards.run("a", &there).await;
        shards.run("s", &rows(&a, 900)).await;
        let follower = Follower::start(&reshard.job, "s");
        let what = halted(&follower).await;
        let named = format!("public.t with the key ({a}, 1500)");
        assert!(what.contains(&named) && what.contains("23505"), "{what}");
        let count = "SELECT count(*) FROM t WHERE id > 1000";
        assert_eq!(shards.one("a", count).await, "1");
        // It goes on where it was once the row is gone.
        shards.run("a", "DELETE FROM t WHERE id = 1500").await;
        let follower = Follower::start(&reshard.job, "s");
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
    });
}

#[test]
fn rows_that_wait_for_values_are_asked_for_once_however_many_changes_come_one_by_one() {
    block_on(async {
        let unique = "CREATE UNIQUE INDEX one ON t (tenant, n)";
        let (shards, reshard, [a, b, stays]) = copied("waiting", unique).await;
        shards.run("s", "CREATE PUBLICATION asked").await;
        let slot = "SELECT pg_create_logical_replication_slot('asked', 'pgoutput')";
        shards.run("s", slot).await;
        let row = |id: u32| format!("WHERE tenant = {a} AND id = {id}");
        for written in [
            // It comes with a value that is not streamed, and has gone before anybody asks for it.
            format!(
                "UPDATE t SET tenant = {a}, id = 901, n = 901, note = repeat('y', 1000000) WHERE tenant = {stays} AND id = 1"
            ),
            format!(
                "BEGIN; UPDATE t SET n = -1 {}; UPDATE t SET n = 1 {}; UPDATE t SET n = 2 {}; \
                 INSERT INTO t SELECT {a}, 1000 + k, 1000 + k, '', '' FROM generate_series(1, 300) k; COMMIT",
                row(1),
                row(2),
                row(1)
            ),
            format!("UPDATE t SET n = 902 {}", row(901)),
            format!("UPDATE t SET tenant = {b}, id = 902 {}", row(901)),
        ] {
            shards.run("s", &written).await;
        }
        let follower = Follower::start(&reshard.job, "s");
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
        // Each time a message is written to the source.
        let count = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('asked', NULL, NULL, 'proto_version', '1', \
                     'publication_names', 'asked', 'messages', 'true') WHERE get_byte(data, 0) = ascii('M')";
        let times: u32 = shards.one("s", count).await.parse().unwrap();
        assert!((1..40).contains(&times), "{times}");
        shards
            .run("s", "SELECT pg_drop_replication_slot('asked')")
            .await;
    });
}

/// Transactions of seven changes each, as many as there are.
async fn write(shards: &Shards<'_>, tenant: &str, (from, to): (u32, u32)) {
    let write = format!(
        "CREATE OR REPLACE PROCEDURE write() LANGUAGE plpgsql AS $$ BEGIN FOR step IN {from}..{to} LOOP \
           INSERT INTO t SELECT {tenant}, 1000 + step * 5 + k, step, '', repeat(md5(step::text), 20) FROM generate_series(0, 4) k; \
           UPDATE t SET n = n + 1 WHERE tenant = {tenant} AND id IN (1, 2); \
           COMMIT; END LOOP; END $$"
    );
    shards.run("s", &write).await;
    shards.run("s", "CALL write()").await;
}

#[test]
fn what_is_applied_grows_however_much_there_is() {
    block_on(async {
        let (shards, reshard, [a, b, _]) = copied("grows", "").await;
        reshard.knobs.send_modify(|knobs| knobs.batch = 100);
        shards
            .on_all(
                "CREATE TABLE public.moved (lsn pg_lsn); \
                 CREATE FUNCTION public.moves() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN INSERT INTO public.moved VALUES (new.lsn); RETURN NULL; END $$; \
                 CREATE TRIGGER moves AFTER UPDATE ON shardway.apply_progress \
                 FOR EACH ROW EXECUTE FUNCTION public.moves(); \
                 ALTER TABLE shardway.apply_progress ENABLE ALWAYS TRIGGER moves",
            )
            .await;
        write(&shards, &a, (1, 1_500)).await;
        // Larger than a piece, each.
        for number in 0..10 {
            let large = format!(
                "INSERT INTO t SELECT {a}, 100000 + {number} * 1000 + k, 0, '', '' FROM generate_series(1, 350) k"
            );
            shards.run("s", &large).await;
        }
        write(&shards, &b, (1, 10)).await;
        let follower = Follower::start(&reshard.job, "s");
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
        // No transaction there is of more than a piece, but for those that are on the source.
        let moved = "SELECT count(DISTINCT lsn) >= 1500 * 7 / 100 + 10 FROM moved";
        assert_eq!(shards.one("a", moved).await, "t");
    });
}

#[test]
fn what_is_said_to_be_applied_outlives_a_crash() {
    // What nobody waits for stays in memory.
    let own = servers(3, &[("wal_writer_delay", "10s")]);
    block_on(async {
        let of = |at| own.cluster(at);
        let shards = Shards::new("crash", &[("s", of(0)), ("a", of(1)), ("b", of(2))]).await;
        shards.on_all(WIDE).await;
        let (a, b) = (tenant(Some(0)), tenant(Some(1)));
        for tenant in [&a, &b] {
            let rows = format!(
                "INSERT INTO t SELECT {tenant}, id, id, NULL, '' FROM generate_series(1, 10) id"
            );
            shards.run("s", &rows).await;
        }
        let reshard = reshard(&shards, "crash", &["public.t"]).await;
        reshard.knobs.send_modify(|knobs| knobs.batch = 100);
        begin(&shards, &reshard.job).await;
        soon(copy::run(&reshard.job)).await;
        let mut positions = Vec::new();
        for part in 0..4 {
            write(&shards, &a, (part * 500 + 1, part * 500 + 500)).await;
            positions.push(position(&shards, "s").await);
        }
        for lsn in positions {
            let follower = Follower::start(&reshard.job, "s");
            soon(follower.applied(lsn)).await;
            own.cluster(1).kill();
            drop(follower);
            own.cluster(1).start().unwrap();
            let has = format!("SELECT lsn >= '{lsn}' FROM shardway.apply_progress");
            assert_eq!(shards.one("a", &has).await, "t", "{lsn}");
        }
        fence(&shards, &reshard.job, 1).await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.fenced(1)).await;
        equal(&shards, &reshard).await;
        soon(follower.stop()).await;
    });
}
