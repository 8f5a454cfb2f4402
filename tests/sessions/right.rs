//! What proxies before several shards have been seen to answer wrongly, each by name: here it is PostgreSQL's answer, or a
//! refusal that says so.

use crate::{
    client::{batch, query},
    three::{Stand, Three},
};
use std::fmt::Write as _;

const TABLES: &str = "create table t (id bigint primary key, n int, price numeric(9, 2), note text, day date); \
    create table line (id bigint, item int, n int, primary key (id, item)); \
    create table u (key uuid primary key, n int); \
    create table colours (n int, name text); insert into colours values (0, 'red'), (1, 'green'), (9, 'none')";

/// Four hundred rows over three shards, and as many in one database.
fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: TABLES,
        tables: &["public.t", "public.line"],
        reference: &["public.colours"],
        ..Three::new(name)
    }
    .start();
    let rows = (1..=400).fold(String::new(), |mut rows, id| {
        let comma = if id > 1 { "," } else { "" };
        let n = if id % 9 == 0 {
            "null".to_owned()
        } else {
            (id % 5).to_string()
        };
        let note = ["'Zoë'", "'b'", "'B'", "null", "'a b'"][id % 5];
        let _infallible = write!(
            rows,
            "{comma}({id}, {n}, {}.{:02}, {note}, date '2026-01-01' + {})",
            id % 13,
            id % 100,
            id % 30
        );
        rows
    });
    stand.all_alike(&[
        &format!("insert into t values {rows}"),
        "insert into line select id, 1, n from t where id = 7",
        "insert into line values (7, 2, 1), (150, 1, 2), (150, 2, 3), (399, 1, 4)",
    ]);
    stand
}

impl Stand {
    /// In both protocols, with values in text and in binary.
    fn right(&mut self, sql: &str) {
        let answer = self.alike(&query(sql), 1);
        assert!(!answer[0].starts_with('E'), "{sql}: {answer:?}");
        self.alike(&batch().run(sql, &[]).sync().0, 1);
    }

    /// Right, or refused with a reason and a hint.
    fn right_or_refused(&mut self, sql: &str) {
        let answer = self.ask(sql);
        if answer[0].starts_with("E ") {
            assert!(answer[0].contains("0A000"), "{sql}: {answer:?}");
        } else {
            self.right(sql);
        }
    }
}

#[test]
fn thirteen_simple_statements_of_which_a_peer_answers_five() {
    let mut stand = stand("right_simple");
    for sql in [
        "select count(*) from t",
        "select sum(n), min(n), max(n), avg(n) from t",
        "select id % 7, count(*) from t group by id % 7 order by 1",
        "select n, count(*) from t group by n having count(*) > 70 order by n",
        "select id from t order by -id limit 3",
        "select count(*) + 1 from t",
        "select id, rank() over (order by price, id) from t order by id limit 5",
        "select id, n from t order by n nulls first, id limit 50",
        "select id, note from t order by note desc nulls last, id limit 90 offset 30",
        "select distinct n from t order by n",
        "select avg(price), stddev(price) from t",
        "select count(distinct note) from t",
        "select id from t where id in (1, 150, 399) order by id",
    ] {
        stand.right(sql);
    }
}

#[test]
fn a_multi_row_insert_is_not_written_whole_to_every_shard() {
    let mut stand = stand("right_rows");
    stand.right("insert into t (id, n) values (1001, 1), (-5, 2), (101000, 3)");
    stand.right("select id, n from t where id < 0 or id > 400 order by id");
}

#[test]
fn a_row_without_a_key_goes_to_no_shard_at_random() {
    let mut stand = stand("right_keyless");
    stand.fails("insert into t (n) values (1)", "23502");
    stand.right("insert into t (n, id) values (1, 1001)");
    stand.all_alike(&["insert into t (n, id) values (1, 40 * 25 + 2)"]);
    let owned = stand.seen("select count(*) from t where id > 400");
    assert_eq!(owned[..2], ["0", "0"]);
}

#[test]
fn a_key_anywhere_in_the_text_does_not_route() {
    let mut stand = stand("right_anywhere");
    for sql in [
        "select count(case when id = 7 then 1 end), count(*) from t",
        "select count(*) from t where n = 1 or id = 7",
        "select id from t where not id = 7 order by id limit 3",
    ] {
        stand.right(sql);
    }
    for sql in [
        "select c.name, t.id from colours c left join t on c.n = t.n and t.id = 7 order by 1, 2",
        "select id from t where id = 7 union all select n from t where n = 4 order by 1",
        "select (select note from t where id = 7), count(*) from t",
        "select count(*) from t where price > (select price from t where id = 7)",
        "select t.id from t join line on line.n = t.n and t.id = 7 order by 1",
    ] {
        stand.right_or_refused(sql);
    }
}

#[test]
fn keys_of_several_shards_go_to_all_of_these() {
    let mut stand = stand("right_lists");
    stand.right("select id from t where id in (1, 3) order by id");
    stand.right("select id, n from t where id = any (array[1, 150, 399, 12345]) order by id");
    stand.right("select id from t where id between 95 and 105 order by id");
    let both = batch().run(
        "select id from t where id in ($1, $2) order by id",
        &["3", "399"],
    );
    assert_eq!(stand.alike(&both.sync().0, 1).len(), 6);
}

#[test]
fn limit_and_order_hold_over_all_shards() {
    let mut stand = stand("right_limit");
    for sql in [
        "select id from t order by id limit 2",
        "select id from t order by id desc limit 2 offset 199",
        "select id, price from t order by price desc, id fetch first 7 rows only",
        "select id from t order by id limit 0",
        "select id from t order by id offset 398",
    ] {
        stand.right(sql);
    }
    // Any two rows are right, three are not.
    let answer = stand.ask("select id from t limit 2");
    assert_eq!(
        answer.iter().filter(|line| line.starts_with("D ")).count(),
        2
    );
}

#[test]
fn groups_of_expressions_and_aliases_are_whole() {
    let mut stand = stand("right_groups");
    for sql in [
        "select id % 7 as seventh, count(*) from t group by seventh order by seventh",
        "select count(*) from t group by n order by n nulls first",
        "select extract(month from day) m, sum(price) from t group by m order by m",
        "select lower(note), count(*) c from t group by 1 order by c desc, 1",
        "select n, string_agg(id::text, ',' order by id) from t where id < 210 and id > 95 group by n order by n",
    ] {
        stand.right(sql);
    }
}

#[test]
fn what_needs_all_rows_is_not_computed_per_shard() {
    let mut stand = stand("right_whole");
    for sql in [
        "select n, count(*) from t group by n having sum(price) > 400 order by n",
        "select id, sum(price) over (order by id) from t order by id limit 5 offset 190",
        "select n from t union select 77 order by 1",
        "with a as (select n, count(*) c from t group by n) select * from a order by n",
        "select id from t where price = (select max(price) from t) order by id",
        "select a.id from t a join t b on a.n = b.id order by 1 limit 3",
        "select n from t where id < 150 except select n from t where id > 150 order by 1",
        "select count(*) from (select id from t order by price limit 10) s",
    ] {
        stand.right_or_refused(sql);
    }
}

#[test]
fn order_is_postgresqls_for_expressions_nulls_and_text() {
    let mut stand = stand("right_order");
    for sql in [
        "select id, note from t order by note, id limit 250",
        "select id, note from t order by note collate \"C\" desc nulls first, id limit 250",
        "select id from t order by n * price nulls first, id desc limit 20",
        "select note from t where note is not null order by upper(note), id limit 150",
    ] {
        stand.right(sql);
    }
}

#[test]
fn averages_and_distinct_counts_are_those_of_all_rows() {
    let mut stand = stand("right_averages");
    for sql in [
        "select avg(n), avg(price), avg(price::float8)::numeric(20, 9) from t",
        "select n, avg(price) from t group by n order by n",
        "select count(distinct n), count(distinct (n, note)), sum(distinct n) from t",
        "select var_pop(price), var_samp(n), stddev_pop(n) from t",
        "select count(*), sum(n), avg(n) from t where id < 0",
    ] {
        stand.right(sql);
    }
}

#[test]
fn a_shard_that_is_only_read_has_nothing_to_prepare() {
    let mut stand = stand("right_prepared");
    for sql in [
        "begin",
        "update t set n = 1 where id = 1",
        "update t set n = 1 where id = 150",
        "select n from t where id = 399",
    ] {
        stand.alike(&query(sql), 1);
    }
    let ids = stand.seen("select count(*) from pg_stat_activity where datname = current_database() and backend_xid is not null");
    assert_eq!(ids, ["1", "1", "0"]);
    stand.alike(&query("commit"), 1);
    stand.right("select id, n from t where id in (1, 150, 399) order by id");
}

#[test]
fn a_copy_without_columns_is_split_and_every_option_means_what_it_says() {
    let mut stand = stand("right_copy");
    for (sql, rows) in [
        ("copy line from stdin", "11\t1\t1\n111\t1\t1\n211\t1\t\\N\n"),
        (
            "copy line from stdin (format csv, header false, delimiter ';', null '-')",
            "12;1;1\n112;1;1\n212;1;-\n",
        ),
        (
            "copy line from stdin (format csv, quote '''', escape '!')",
            "'13','1','1'\n113,1,'1'\n213,1,\n",
        ),
    ] {
        let sent = batch().query(sql).copy_data(rows).bare(b'c').0;
        let answer = stand.alike(&sent, 1);
        assert!(
            answer.iter().any(|line| line.contains("COPY 3")),
            "{sql}: {answer:?}"
        );
    }
    stand.right("select * from line order by id, item");
    assert_eq!(
        stand.seen("select count(*) from line where id % 100 between 11 and 13"),
        ["3", "3", "3"]
    );
}

#[test]
fn a_misspelt_table_is_on_no_shard() {
    let mut stand = stand("right_misspelt");
    stand.fails("select * from tt", "42P01");
    stand.fails("insert into tt (id) values (1)", "42P01");
    stand.fails("create table tt (id bigint)", "42P01");
    assert_eq!(
        stand.seen("select count(*) from pg_class where relname = 'tt'"),
        ["0", "0", "0"]
    );
}

#[test]
fn a_plan_is_not_another_search_paths() {
    let mut stand = stand("right_paths");
    for shard in &mut stand.shards {
        shard.ask(&query(
            "create schema other; create table other.t (id bigint primary key, n int)",
        ));
    }
    stand.whole.ask(&query(
        "create schema other; create table other.t (id bigint primary key, n int)",
    ));
    stand.right("select count(*) from t where id = 7");
    stand.right("set search_path = other");
    // Nobody has said whose table it is.
    stand.fails("select count(*) from t where id = 7", "42P01");
    stand.ask("set search_path = public");
    stand.right("set search_path = public");
    stand.right("select count(*) from t where id = 7");
}

#[test]
fn every_statement_of_a_text_is_routed() {
    let mut stand = stand("right_texts");
    stand.right("select n from t where id = 7; select n from t where id = 8");
    let sql = "update t set n = 100 where id = 7; update t set n = 101 where id = 399";
    let answer = stand.ask(sql);
    if answer[0].starts_with("E ") {
        assert!(answer[0].contains("0A000"), "{answer:?}");
    } else {
        stand.whole.ask(&query(sql));
    }
    stand.right("select id, n from t where n >= 100 order by id");
}

#[test]
fn letter_case_of_a_uuid_moves_no_row() {
    let mut stand = Three::new("right_uuid").start();
    for shard in stand.shards.iter_mut().chain([&mut stand.whole]) {
        shard.ask(&query("create table u (key uuid primary key, n int)"));
    }
    let shards: String = (0..3)
        .map(|at| {
            let port = crate::harness::postgres().port();
            format!("shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/right_uuid_{at}?sslmode=disable\" }}\n")
        })
        .collect();
    let proxy = crate::harness::Proxy::with(
        "size = 2",
        &format!(
            "[databases.postgres]\n{shards}[databases.postgres.groups.g]\nmethod = \"hash\"\nkey_type = \"uuid\"\n\
             tables = {{ \"public.u\" = \"key\" }}\n"
        ),
    );
    stand.sharded = proxy.client();
    for at in 0..32 {
        let key = format!("ABCDEF{at:02}-0000-4000-A000-00000000000F");
        stand.right(&format!(
            "insert into u values ('{key}', {at}) on conflict do nothing"
        ));
        stand.right(&format!(
            "select n from u where key = '{}'",
            key.to_lowercase()
        ));
        stand.right(&format!(
            "select n from u where key = '{{{}}}'",
            key.replace('-', "")
        ));
    }
}

#[test]
fn a_result_is_not_kept_whole() {
    let mut stand = stand("right_memory");
    // As many rows as a gathering may never hold; they pass.
    let sql = "select id, repeat('x', 100000) from t order by id";
    let answer = stand.alike(&query(sql), 1);
    assert_eq!(
        answer.iter().filter(|line| line.starts_with("D ")).count(),
        400
    );
}
