//! What a statement of a batch means when something before it in the batch has changed search_path, or where the session
//! has said that it runs: the table that PostgreSQL takes, and its shard.

use crate::{
    client::{Batch, batch, query},
    three::{Control, Stand, Three},
};

const DDL: &str = "create table t (id bigint primary key, n int); create schema s2; \
    create table s2.t (id bigint primary key, n int)";
/// Keys of `s2.t` are each on another shard than those of `t`.
const ELSEWHERE: &str = "groups.h = { method = \"range\", key_type = \"bigint\", tables = { \"s2.t\" = \"id\" }, \
    ranges = [{ to = 100, shard = \"s2\" }, { to = 200, shard = \"s0\" }, { shard = \"s1\" }] }";
const INSERT: &str = "insert into t (id, n) values ($1, 1)";

fn stand(name: &str) -> Stand {
    Three {
        ddl: DDL,
        database: ELSEWHERE,
        control: Control::Own,
        ..Three::new(name)
    }
    .start()
}

/// A row behind it.
fn inserts(batch: Batch) -> Batch {
    batch.run(INSERT, &["2"])
}

/// Rows are where their keys belong, and such as PostgreSQL has; they are gone after it.
fn is_right(stand: &mut Stand) {
    for (table, bounds) in [("public.t", [0, 100, 200]), ("s2.t", [100, 200, 0])] {
        let all =
            format!("select coalesce(string_agg(id::text, ',' order by id), '') from {table}");
        let whole = stand.whole.value(&all);
        for (shard, from) in stand.shards.iter_mut().zip(bounds) {
            let owned: Vec<&str> = whole
                .split(',')
                .filter(|id| id.parse::<u32>().is_ok_and(|id| id / 100 * 100 == from))
                .collect();
            assert_eq!(shard.value(&all), owned.join(","), "{table}, from {from}");
        }
    }
    stand.all_alike(&["delete from public.t", "delete from s2.t"]);
}

#[test]
fn what_stands_behind_the_end_of_a_failed_transaction_means_what_it_meant_before() {
    let mut stand = stand("meaningfailed");
    for set in ["set local search_path = s2", "set search_path = s2"] {
        for end in [
            "rollback to a",
            "rollback and chain",
            "commit and chain",
            "rollback",
            "commit",
        ] {
            for reached in [&["1"][..], &["1", "101"], &[]] {
                stand.all_alike(&["begin", "savepoint a"]);
                for id in reached {
                    stand.all_alike(&[&format!("insert into t values ({id}, 0)")]);
                }
                stand.all_alike(&[set, "select 1 / 0"]);
                stand.alike(&inserts(batch().run(end, &[])).sync().0, 1);
                stand.whole.ask(&query("commit"));
                stand.sharded.ask(&query("commit"));
                is_right(&mut stand);
                stand.all_alike(&["show search_path"]);
            }
        }
    }
}

#[test]
fn what_stands_behind_the_end_of_a_transaction_means_what_it_meant_before() {
    let mut stand = stand("meaningended");
    for set in ["set local search_path = s2", "set search_path = s2"] {
        for end in [
            "rollback",
            "commit",
            "rollback to a",
            "rollback and chain",
            "commit and chain",
        ] {
            for reached in [&[][..], &["1"], &["1", "101"]] {
                // Of the shard that the batch is on, as it is meant.
                let stays = !set.contains("local") && end == "commit";
                let id = if stays { "102" } else { "2" };
                for text in [false, true] {
                    stand.all_alike(&["begin"]);
                    for id in reached {
                        stand.all_alike(&[&format!("insert into t values ({id}, 0)")]);
                    }
                    stand.all_alike(&["savepoint a", set]);
                    if text && reached.len() < 2 {
                        let text = format!("{end}; insert into t (id, n) values ({id}, 1)");
                        stand.alike(&query(&text), 1);
                    } else {
                        let behind = batch().run(end, &[]).run(INSERT, &[id]);
                        stand.alike(&behind.sync().0, 1);
                    }
                    stand.whole.ask(&query("commit"));
                    stand.sharded.ask(&query("commit"));
                    is_right(&mut stand);
                    stand.all_alike(&["show search_path", "reset search_path"]);
                }
            }
        }
    }
}

#[test]
fn a_setting_holds_for_what_stands_behind_it_though_it_was_answered_before() {
    let mut stand = stand("meaninganswered");
    let set = || batch().run("set search_path = s2", &[]);
    for behind in [
        inserts(batch()),
        batch().parse("", INSERT).describe("").call("", &["2"]),
    ] {
        let bytes = set().flush().0;
        for client in [&mut stand.whole, &mut stand.sharded] {
            client.send(&bytes);
            client.until("C SET");
        }
        stand.alike(&behind.sync().0, 1);
        is_right(&mut stand);
        stand.all_alike(&["reset search_path"]);
    }
    // What is answered here settles what stands before it.
    let here = batch()
        .parse("", "set shardway.read_consistency = ''")
        .bind("here", "", &[]);
    let here = here.run("set search_path = s2", &[]).execute("here", 0);
    stand.alike(&inserts(here).sync().0, 1);
    is_right(&mut stand);
    stand.alike(&inserts(batch().run("discard all", &[])).sync().0, 1);
    is_right(&mut stand);
}

#[test]
fn what_is_answered_here_holds_for_what_stands_behind_it() {
    let mut stand = stand("meaninghere");
    for (before, own) in [
        ("set shardway.shard = 's0'", "reset shardway.shard"),
        ("set shardway.key = '1'", "reset shardway.key"),
    ] {
        stand.all_alike(&[before]);
        let own = batch().run(own, &[]);
        stand.alike(&own.run(INSERT, &["102"]).sync().0, 1);
        is_right(&mut stand);
        stand.all_alike(&["reset shardway.shard", "reset shardway.key"]);
    }
    for shard in ["0", "1", "2"] {
        let own = batch().run(&format!("set shardway.shard = 's{shard}'"), &[]);
        let found = stand
            .sharded
            .ask(&own.run("select current_catalog", &[]).sync().0);
        let told = format!("D meaninghere_{shard}");
        assert!(found.contains(&told), "{found:?}");
    }
}
