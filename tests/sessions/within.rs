//! Reads over several shards wherever a statement can stand: what one PostgreSQL with all rows answers. In transactions
//! they see what these have written.

use crate::{
    client::batch,
    three::{Stand, Three},
};

const DDL: &str = "create table t (id bigint primary key, n int, price numeric(12, 3), note text, ratio float8); \
    create table part (id bigint, at int, amount int, primary key (id, at)); \
    create table colours (n int primary key, name text)";

fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: DDL,
        tables: &["public.t", "public.part"],
        reference: &["public.colours"],
        ..Three::new(name)
    }
    .start();
    stand.all_alike(&[
        "insert into colours values (0, 'red'), (1, 'green'), (2, 'blue')",
        "insert into t values (1, 0, 1.5, 'one', 0.1), (2, 1, 2.25, null, 'NaN'), (101, 1, 0.125, 'a\"b\\c', 1e300), \
         (102, null, 10, 'Zoë', 3), (201, 2, 7, 'x{y}', 2.5), (202, 0, null, '', -0.3)",
        "insert into part values (1, 1, 5), (1, 2, 4), (101, 1, 7), (101, 2, 8), (201, 1, 9), (202, 1, 3)",
    ]);
    stand
}

const COUNT: &str = "select count(*), sum(n), avg(price), min(note), max(ratio) from t";
const GROUPS: &str = "select n, count(*), string_agg(note, ',' order by id) from t group by n order by n nulls first";
const ROWS: &str = "select id, n, price, note, ratio from t order by id";
const RANKS: &str =
    "select id, rank() over (order by price desc nulls last, id) from t order by id";

/// Of each way in which a read over shards is computed, with an order that leaves nothing open.
const READS: [&str; 12] = [
    "select t.id, p.at, t.price * p.amount from t join part p on p.id = t.id order by t.id, p.at",
    "select t.id, p.at from t left join part p using (id) where t.n > 0 order by t.id desc, p.at limit 3 offset 1",
    COUNT,
    GROUPS,
    ROWS,
    "select note from t order by note nulls first, id limit 3 offset 1",
    RANKS,
    "select c.name, count(*) from t join colours c using (n) group by 1 order by 1",
    "select id from t where n = 1 order by id desc",
    "with x as (select n, max(id) as top from t group by n) select * from x where top > 50 order by top",
    "select a.id, b.id from t a join t b on b.id = a.id + 100 order by 1",
    "select id from t where exists (select from colours c where c.n = t.n and c.name like '%e%') order by id",
];

#[test]
fn a_read_sees_what_its_transaction_has_written() {
    let mut stand = stand("withinown");
    for writes in [
        &["insert into t values (3, 5, 1, 'new', 1)"][..],
        &[
            "update t set n = 9 where id = 101",
            "delete from t where id = 201",
        ],
        &[
            "insert into t values (4, 0, 2, 'four', 1), (104, 1, 2, 'more', 2), (204, 2, 3, null, 3)",
            "update t set price = price + 1",
            "insert into colours values (5, 'grey')",
        ],
    ] {
        stand.all_alike(&["begin"]);
        stand.all_alike(writes);
        stand.all_alike(&READS);
        stand.all_alike(&["savepoint a", "delete from t where n = 0"]);
        stand.all_alike(&READS);
        stand.all_alike(&["rollback to a"]);
        stand.all_alike(&READS);
        stand.all_alike(&["rollback"]);
        stand.all_alike(&READS);
    }
}

#[test]
fn a_read_that_fails_has_failed_its_transaction() {
    let mut stand = stand("withinfails");
    for fails in [
        "select sum(1 / n) from t",
        "select count(*) from t where 1 / n > 0",
        "select count(nowhere) from t",
        "select id, 1 / (n - 2) from t order by price, id",
    ] {
        stand.all_alike(&["begin", "insert into t values (3, 0, 1, 'new', 1)", fails]);
        stand.all_alike(&["select count(*) from t", "select 1", "commit"]);
        stand.all_alike(&["begin", "savepoint a", "update t set n = 4 where id = 202"]);
        stand.all_alike(&[
            "savepoint b",
            fails,
            "select count(*) from t",
            "rollback to b",
        ]);
        stand.all_alike(&READS);
        stand.all_alike(&["release b", "rollback to a"]);
        stand.all_alike(&READS);
        stand.all_alike(&["commit"]);
    }
    stand.all_alike(&READS);
}

#[test]
fn a_read_leaves_nothing_in_its_transaction() {
    let mut stand = stand("withinnothing");
    stand.all_alike(&[
        "begin read only",
        "select count(*) from t where id = 1",
        "select id, ratio from t order by ratio, id",
        "select count(*), sum(n) from t",
        "show extra_float_digits",
        "show transaction_read_only",
        "insert into t values (5, 5)",
        "rollback",
        "begin",
        "set local extra_float_digits = 0",
        "insert into t values (5, 5, 5, 'x', 0.1::float8 / 3)",
        "select id, ratio / 7 from t order by id",
        "set local datestyle = 'iso, dmy'",
        "select avg(ratio / 3) from t where id <> 2",
        "show extra_float_digits",
        "show datestyle",
        "commit",
        "show extra_float_digits",
        "show datestyle",
    ]);
    // What it asked for is no savepoint of the client's.
    stand.all_alike(&["begin", "update t set n = 1 where id = 5", COUNT]);
    stand.all_alike(&["release shardway_read", "rollback"]);
    // Locks of other statements are waited for as ever.
    stand.all_alike(&[
        "set lock_timeout = '300ms'",
        "begin",
        "update t set n = 1 where id = 5",
    ]);
    stand.all_alike(&READS);
    stand.all_alike(&["commit"]);
}

#[test]
fn the_time_is_that_of_the_transaction() {
    let mut stand = stand("withintime");
    let told = "select count(*) > 0, now() from t";
    for first in [
        &[][..],
        &["select now() from t where id = 201"],
        &["update t set n = 1 where id = 101", "select now()"],
        &["select count(*) from t"],
    ] {
        stand.ask("begin");
        for sql in first {
            stand.ask(sql);
        }
        let times: Vec<String> = [told, "select true, now()", told, told]
            .into_iter()
            .map(|sql| stand.ask(sql)[1].clone())
            .collect();
        assert!(times[0].starts_with("D t|20"), "{times:?}");
        assert!(
            times.iter().all(|time| *time == times[0]),
            "{first:?}: {times:?}"
        );
        stand.ask("update t set n = n where id < 300");
        assert_eq!(stand.ask(told)[1], times[0]);
        stand.ask("commit");
    }
}

#[test]
fn the_extended_protocol_reads_within_transactions_too() {
    let mut stand = stand("withinextended");
    let limited =
        "select id, note, price from t where id > $1::bigint order by note nulls last, id limit $2";
    stand.all_alike(&["begin", "update t set price = 3 where id = 1"]);
    for sql in &READS[2..] {
        stand.alike(&batch().run(sql, &[]).sync().0, 1);
    }
    stand.alike(
        &batch()
            .parse("limited", limited)
            .describe("limited")
            .sync()
            .0,
        1,
    );
    for values in [["0", "3"], ["100", "2"], ["x", "1"], ["1", "1"]] {
        let called = batch().bind("p", "limited", &values).describe_portal("p");
        stand.alike(&called.execute("p", 0).sync().0, 1);
    }
    stand.all_alike(&["rollback"]);
    // One pipeline in a transaction, and one that begins and ends it.
    let all = batch()
        .run("begin", &[])
        .run("insert into t values ($1, 1, 2, 'p')", &["150"])
        .run(COUNT, &[])
        .run("insert into t values ($1, 1, 2, 'p')", &["250"])
        .run(GROUPS, &[])
        .run("savepoint a", &[])
        .run(RANKS, &[])
        .run("rollback to a", &[])
        .run(ROWS, &[])
        .run("commit", &[])
        .run(ROWS, &[])
        .sync();
    stand.alike(&all.0, 1);
    // An error in the middle skips the rest.
    let fails = batch()
        .run("begin", &[])
        .run("insert into t values ($1, 1, 2, 'p')", &["151"])
        .run("select sum(1 / n) from t", &[])
        .run(COUNT, &[])
        .sync();
    // It is computed when it is bound, as PostgreSQL may compute an immutable part of it.
    let found = stand.sharded.ask(&fails.0);
    assert_eq!(
        found.last_chunk(),
        Some(&[
            "1 ".into(),
            "E ERROR 22012 division by zero".into(),
            "Z E".into()
        ])
    );
    stand.whole.ask(&fails.0);
    stand.all_alike(&["select count(*) from t", "rollback", ROWS]);
}

#[test]
fn what_is_wrong_with_a_read_is_told_in_a_transaction_that_has_reached_no_shard() {
    let mut stand = stand("withinwrong");
    for sql in [
        "select sum(nowhere) from t",
        "select count(*) from t where coalesce(note, 'x') = 5 group by n",
        "select n from t group by n order by (select nowhere)",
    ] {
        stand.all_alike(&[
            "begin",
            "savepoint a",
            sql,
            "rollback to a",
            "select count(*) from t",
            "commit",
        ]);
    }
}
