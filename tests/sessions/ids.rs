//! Ids that nobody writes: defaults of sharded and reference tables by sequences, identity, `shardway.next_id()` and
//! UUIDs, computed before a row has its shard.

use crate::{
    client::{Client, batch, query},
    harness::until,
    three::{Stand, Three},
};
use std::collections::HashSet;

/// Ready once the servers were asked what the tables' defaults are.
fn ready(stand: &mut Stand, insert: &str) {
    until("defaults are known", || {
        stand.ask(insert).iter().any(|line| line.starts_with('C'))
    });
}

fn start(name: &'static str, ddl: &'static str, tables: &'static [&'static str]) -> Stand {
    Three {
        ddl,
        tables,
        ..Three::new(name)
    }
    .start()
}

#[test]
fn numbers_of_a_serial_key_are_those_of_one_postgresql() {
    let mut stand = start(
        "ids_serial",
        "create table t (id bigserial primary key, n int)",
        &["public.t"],
    );
    ready(&mut stand, "insert into t (n) values (0)");
    stand.whole.ask(&query("insert into t (n) values (0)"));
    stand.all_alike(&[
        "insert into t (n) values (1) returning id, n",
        "insert into t (n) values (2), (3), (4) returning id, n",
        "insert into t (id, n) values (default, 5), (1000, 6), (default, 7) returning *",
        "insert into t values (default, 8) returning *",
        "insert into t default values returning *",
        "insert into t (n, id) values (9, nextval('t_id_seq')) returning *",
        "insert into t (n, id) values (10, nextval('public.t_id_seq'::regclass)) returning *",
        "begin",
        "insert into t (n) values (11) returning id",
        "insert into t (n) select 1 where false",
        "rollback",
        "insert into t (n) values (12) on conflict (id) do nothing returning id",
        "insert into t as x (n) values (13) returning x.id",
        "with w as (select 14 n) insert into t (n) values ((select n from w)) returning id",
        "insert into t (n, n) values (1, 2)",
        "insert into t (n) values ('x')",
        "insert into t (n) values (15) returning id",
        "select count(*), sum(id), sum(n) from t",
    ]);
}
