//! Views over tables of several shards, and partitions: what one PostgreSQL with all rows answers, or a refusal.

use crate::{
    client::{batch, query},
    three::{Stand, Three},
};

const DDL: &str = "create table t (id bigint primary key, n int, note text); \
    create table item (id bigint, what text, price numeric); \
    create table colours (n int primary key, name text); create table lone (id int, what text); \
    insert into colours values (0, 'red'), (1, 'green'), (2, 'blue'); insert into lone values (1, 'one'), (2, 'two'); \
    create view named as select id as who, n + 1 as more, note from t where n < 6; \
    create view plain as select id, n from t; \
    create view hidden as select n, note from t; \
    create view bought as select t.id, t.n, i.what, i.price, c.name as colour from t \
      left join item i on i.id = t.id left join colours c on c.n = t.n; \
    create view spent as select t.id, count(*) as items, sum(i.price) as total from t join item i on i.id = t.id group by t.id; \
    create view rich as select s.id, s.total, n.more from spent s join named n on n.who = s.id where s.total > 3; \
    create view counted as select n, count(*) as many from t group by n; \
    create view over_counted as select max(many) as most from counted; \
    create view first_three as select id from t order by id limit 3; \
    create view ordered as select id, n from t order by n desc, id; \
    create view moment as select id, now() as at from t where n > extract(epoch from now() - now()); \
    create function doubled(int) returns int language sql as 'select $1 * 2'; \
    create view with_code as select id, doubled(n) as twice from t; \
    create view types as select t.oid, t.typname from pg_type t join colours c on c.n = 0 where t.typname in ('t', 'item'); \
    create view palette as select n, upper(name) as name from colours; \
    create view of_seven as select n, note from t where id = 7; \
    create view alone as select id, what from lone; \
    create materialized view kept as select id, n from t; \
    create materialized view kept_seven as select id, n from t where id = 7; \
    create materialized view kept_alone as select id, what from lone";

fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: DDL,
        tables: &["public.t", "public.item"],
        reference: &["public.colours"],
        database: "unlisted_tables = \"s0\"",
        ..Three::new(name)
    }
    .start();
    for shard in &mut stand.shards[1..] {
        shard.ask(&query("truncate lone"));
    }
    for sql in [
        "insert into t select i, i % 8, 'note ' || i from unnest(array[1, 2, 3, 7, 101, 102, 108, 109, 201, 207, 208]::bigint[]) i",
        "insert into item select i, 'item ' || i || '.' || j, i % 5 + j from unnest(array[1, 2, 7, 101, 108, 201, 208]::bigint[]) i, \
         generate_series(1, 2) j",
    ] {
        stand.whole.ask(&query(sql));
        for (at, shard) in stand.shards.iter_mut().enumerate() {
            let own = format!("{} where i between {} and {}", sql, at * 100, at * 100 + 99);
            let made = shard.ask(&query(&own));
            assert!(made[0].starts_with('C'), "{made:?}");
        }
    }
    stand.whole.ask(&query("refresh materialized view kept"));
    for _ in 0..2 {
        stand.alike(&query("select id from t where id = 1"), 1);
    }
    stand
}

/// Rows without their order.
fn same_rows(stand: &mut Stand, sql: &str) {
    let rows = |mut lines: Vec<String>| {
        lines.retain(|line| !line.starts_with('T'));
        lines.sort();
        lines
    };
    let expected = rows(stand.whole.ask(&query(sql)));
    let found = rows(stand.ask(sql));
    assert_eq!(found, expected, "{sql}");
    assert!(
        expected.iter().all(|line| !line.starts_with('E')),
        "{sql}: {expected:?}"
    );
}

#[test]
fn what_reads_a_view_reads_its_tables() {
    let mut stand = stand("view_reads");
    for sql in [
        // Pinned by the view's column.
        "select * from named where who = 7",
        "select * from bought where id = 101",
        "select total from spent where id in (1, 2)",
        "select * from rich where id = 208",
        "select b.what, s.total from bought b join spent s on s.id = b.id where b.id = 108",
        "select * from t where id = 201 and exists (select from spent s where s.id = t.id)",
        "select name from palette",
        "select p.name, n.more from named n join palette p on p.n = n.more where n.who = 1",
        "select * from of_seven",
        "select * from alone",
        "select * from kept_alone",
        "select * from with_code where id = 102",
        "select typname from types",
        // Of all shards.
        "select * from named",
        "select * from hidden",
        "select * from bought",
        "select * from spent where total > 5",
        "select * from rich",
        "select h.note, p.name from hidden h join palette p on p.n = h.n",
        "select b.what, s.total from bought b join spent s on s.id = b.id",
    ] {
        same_rows(&mut stand, sql);
    }
    // In an order, or computed over rows.
    stand.all_alike(&[
        "select * from spent order by total desc, id",
        "select id, what from bought order by id, what collate \"C\" limit 7 offset 2",
        "select count(*), sum(total), max(items) from spent",
        "select n, count(*) from hidden group by n order by n",
        "select more % 3 as m, string_agg(note, ',' order by note) from named group by 1 order by 1",
        "select distinct n from plain order by n",
        "select who, rank() over (order by more, who) from named order by who",
    ]);
    for id in ["7", "108", "207"] {
        let bound = batch()
            .parse("", "select total from spent where id = $1")
            .describe("")
            .bind("", "", &[id])
            .execute("", 0)
            .sync();
        stand.alike(&bound.0, 1);
    }
}

#[test]
fn a_view_that_takes_rows_of_several_shards_together_is_refused() {
    let mut stand = stand("view_refused");
    for sql in [
        "select * from counted",
        "select * from counted where n = 3",
        "select most from over_counted",
        "select * from first_three",
        "select * from kept",
        "select * from kept where id = 7",
        "select * from kept_seven",
        "insert into counted values (1, 2)",
    ] {
        stand.fails(sql, "takes rows of several shards together");
    }
    for sql in [
        "select twice from with_code",
        "select * from ordered",
        "select id from moment",
        "select count(*) from moment",
    ] {
        stand.fails(sql, "does not restrict");
    }
    // One shard's, when it is chosen.
    same_rows(&mut stand, "select * from ordered where id in (1, 2, 3)");
    same_rows(&mut stand, "select id, at = now() from moment where id = 7");
    assert_eq!(
        stand
            .sharded
            .value("/* shardway: shard=s1 */ select sum(many) from counted"),
        "4"
    );
    // One transaction has one time.
    stand.ask("begin");
    let now = stand.sharded.value("select at from moment where id = 7");
    assert_eq!(stand.sharded.value("select now()"), now);
    stand.ask("commit");
    stand.fails(
        "select s.id from spent s join bought b on b.n = s.items",
        "does not restrict",
    );
}

#[test]
fn what_is_written_through_a_view_is_written_to_its_table() {
    let mut stand = stand("view_writes");
    for sql in [
        "insert into plain (id, n) values (4, 4), (104, 4), (204, 4)",
        "insert into plain values (5, 5)",
        "update plain set n = n + 1 where id = 4",
        "update plain set n = n + 10 where n = 4",
        "delete from plain where id = 104",
        "delete from plain where n > 14",
        "delete from hidden where n = 1",
        "update alone set what = 'eins' where id = 1",
        "insert into alone values (3, 'three')",
    ] {
        stand.alike(&query(sql), 1);
    }
    same_rows(&mut stand, "select * from t");
    same_rows(&mut stand, "select * from lone");
    stand.fails("insert into plain (n) values (1)", "shard key");
    stand.fails("update plain set id = 300 where id = 4", "shard key");
    for sql in [
        "insert into named (who, note) values (300, 'x')",
        "update named set note = 'x' where who = 1",
        "update of_seven set note = 'x'",
        "insert into of_seven (n, note) values (1, 'x')",
        "delete from palette where n = 1",
        "insert into palette (n) values (9)",
    ] {
        stand.fails(sql, "would set off what acts on one shard only");
    }
    same_rows(&mut stand, "select * from t");
}

#[test]
fn a_view_made_through_the_proxy_is_understood_and_forgotten() {
    let mut stand = stand("view_made");
    for sql in [
        "create view fresh as select id, n * 2 as twice from t",
        "create or replace view plain as select id, n, note from t where n > 2",
        "create view behind as select who as id from named",
        "create view all_of_them as select count(*) as n from fresh",
    ] {
        stand.alike(&query(sql), 1);
    }
    same_rows(&mut stand, "select * from fresh");
    same_rows(&mut stand, "select * from plain");
    same_rows(&mut stand, "select * from behind where id = 101");
    stand.fails(
        "select * from all_of_them",
        "takes rows of several shards together",
    );
    for sql in [
        "create or replace view fresh as select id, n * 2 as twice from t union all select 1, 1",
        "alter view behind rename to before",
    ] {
        stand.alike(&query(sql), 1);
    }
    stand.fails(
        "select * from fresh",
        "takes rows of several shards together",
    );
    same_rows(&mut stand, "select * from before");
    for sql in ["drop view all_of_them, fresh", "drop view before"] {
        stand.alike(&query(sql), 1);
    }
    // Until its transaction has ended nobody looks at what it is now.
    for change in [
        "alter view plain rename to simple",
        "alter table plain rename to simple",
    ] {
        for sql in ["begin", change, "insert into lone values (5, 'five')"] {
            stand.alike(&query(sql), 1);
        }
        stand.fails("select count(*) from simple", "ERROR");
        stand.alike(&query("rollback"), 1);
    }
    same_rows(&mut stand, "select * from plain");
    // Views that shards define differently say nothing.
    for (at, shard) in stand.shards.iter_mut().enumerate() {
        shard.ask(&query(&format!(
            "create or replace view plain as select id, n, note from t where n > {at}"
        )));
    }
    stand.ask("create view look as select 1");
    stand.fails(
        "select * from plain",
        "takes rows of several shards together",
    );
}

#[test]
fn partitions_and_children_are_where_their_root_is() {
    let ddl = "create table t (id bigint, day int, what text) partition by range (day); \
        create table t_old partition of t for values from (0) to (10); \
        create table t_new partition of t for values from (10) to (20) partition by list (what); \
        create table t_new_a partition of t_new for values in ('a'); create table t_new_rest partition of t_new default; \
        create table base (id bigint, n int); create table child (extra text) inherits (base); \
        create table note (id int, what text); create table note_child () inherits (note); \
        create table torn (what text); create table torn_child (id bigint) inherits (torn); \
        create view recent as select id, day, what from t_new";
    let mut stand = Three {
        ddl,
        tables: &["public.t", "public.base", "public.torn_child"],
        database: "unlisted_tables = \"s0\"",
        ..Three::new("view_children")
    }
    .start();
    for sql in [
        "insert into t values (1, 1, 'a'), (2, 11, 'a'), (101, 2, 'b'), (102, 12, 'a'), (201, 13, 'c')",
        "insert into t_old (id, day, what) values (3, 3, 'x'), (103, 4, 'y'), (203, 5, 'z')",
        "insert into base values (1, 1), (101, 2)",
        "insert into child values (2, 3, 'x'), (202, 4, 'y')",
        "insert into note values (1, 'a')",
        "insert into note_child values (2, 'b')",
        "insert into torn_child values ('x', 1), ('y', 101)",
    ] {
        // The key is not the first column everywhere.
        let sql = sql.replace("torn_child values", "torn_child (what, id) values");
        stand.alike(&query(&sql), 1);
    }
    for sql in [
        "select * from t",
        "select * from t_old",
        "select * from t_new",
        "select * from t_new_a where id = 102",
        "select * from recent",
        "select * from recent where id = 201",
        "select * from base",
        "select * from child",
        "select count(*) from base b join child c on c.id = b.id where b.id = 2",
        "select count(*), max(day) from t_new",
        "select * from note",
        "select * from note_child",
        "select * from torn_child",
    ] {
        same_rows(&mut stand, sql);
    }
    stand.alike(&query("delete from t_old where id > 100"), 1);
    same_rows(&mut stand, "select * from t");
    // Some of its rows are on other shards.
    stand.fails("select * from torn", "belongs to no group");
    // Its name decides nothing, but as long as it is another one in a transaction it is not known.
    for sql in ["begin", "alter table child rename to offspring"] {
        stand.alike(&query(sql), 1);
    }
    stand.fails("select count(*) from offspring", "0A000");
    stand.alike(&query("rollback"), 1);
    stand.alike(&query("alter table child rename to offspring"), 1);
    same_rows(&mut stand, "select * from offspring");
}
