//! What shards compute of a gathered read: their first rows, partial results per group, only the columns that are needed.
//! One PostgreSQL with all rows says what is right, to the last digit and with the types of columns.

use crate::{
    client::{Client, batch, query},
    gathered::{Stand, stand_of},
};

const TABLE: &str = "create type mood as enum ('low', 'fair', 'high'); \
    create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
    create table t (id bigint primary key, i2 smallint, i4 int, i8 bigint, nu numeric, price numeric(12, 3), f4 real, \
    f8 double precision, iv interval, b boolean, tx text, tc text collate \"C\", tl text collate loose, ch char(5), \
    vc varchar(9), d date, ts timestamp, tz timestamptz, tt time, u uuid, js jsonb, en mood, ar int[], ip inet, \
    secret text)";

/// Floats are sums of powers of two, so that every order of additions gives the same.
fn rows(from: i64, to: i64) -> String {
    format!(
        "insert into t select i, (array[32767, -32768, 0, null, 7])[1 + i % 5], \
         (array[2147483647, -2147483648, 1, null])[1 + i % 4], \
         (array[9223372036854775807, -9223372036854775808, 5, null, 9223372036854775807])[1 + i % 5], \
         (array['1.0', '1.00', '-0.000000001', '123456789012345678901234567890.5', 'NaN', null, '0', '2.5e10'])[1 + i % 8]::numeric, \
         (i % 11)::numeric / 8, (array[1.5, -2.25, null, 1024])[1 + i % 4], \
         (array[0.5, '-0', 0, null, 1099511627776, -3])[1 + i % 6]::float8, \
         (array['1 mon', '-3 days 04:05:06.789', null, '1 year -2 days'])[1 + i % 4]::interval, \
         (array[true, false, null])[1 + i % 3], (array['Zoë', 'a\"b\\\\c', '', null, 'zoe', 'B'])[1 + i % 6], \
         chr(65 + (i % 60)::int), (array['Ab', 'aB', 'x'])[1 + i % 3], (array['a', 'a ', 'b', null])[1 + i % 4], \
         'v' || i % 3, date '2026-01-01' + (i % 9)::int, timestamp '2026-01-01' + i * interval '7 hours', \
         timestamptz '2026-01-01 00:00+00' + i * interval '7 hours', time '10:00' + i * interval '1 min', \
         ('00000000-0000-0000-0000-0000000000' || lpad((i % 13)::text, 2, '0'))::uuid, \
         jsonb_build_object('k', i % 3), (enum_range(null::mood))[1 + i % 3], array[i % 2, 1], \
         ('10.0.0.' || i % 4)::inet, 'secret' from generate_series({from}::bigint, {to}::bigint) i"
    )
}

fn stand(name: &str) -> Stand {
    stand_of(name, TABLE, &rows)
}

impl Stand {
    /// Both answer this alike, and the shards are asked for this much.
    fn alike_by(&mut self, sql: &str, asked: &str) {
        self.alike(&query(sql));
        self.alike(
            &batch()
                .parse("", sql)
                .bind("", "", &[])
                .describe_portal("")
                .execute("", 0)
                .sync()
                .0,
        );
        if self.streams(sql) {
            // Not gathered at all.
            return;
        }
        let question = self.question(sql);
        assert!(question.contains(asked), "{sql}: {question}");
    }

    /// Whether the shards' rows are passed on as they come.
    fn streams(&mut self, sql: &str) -> bool {
        let lines = self.sharded.ask(&query(&format!("explain (route) {sql}")));
        lines.iter().any(|line| line == "D route: scatter")
    }

    /// What each shard is asked.
    fn question(&mut self, sql: &str) -> String {
        let lines = self.sharded.ask(&query(&format!("explain (route) {sql}")));
        let line = lines.iter().find(|line| line.contains("each shard"));
        line.unwrap_or_else(|| panic!("{sql}: {lines:?}")).clone()
    }
}

const FIRST_ROWS: &[(&str, &str)] = &[
    ("select id from t order by id limit 3", "LIMIT 3"),
    (
        "select id, tx from t where i4 > 0 order by tx desc nulls last, id limit 5 offset 4",
        "LIMIT 9",
    ),
    (
        "select id, i4 % 7 as m from t order by m nulls first, id limit 6",
        "(i4 % 7) nulls first",
    ),
    (
        "select -id as id, id as i4 from t order by id limit 4",
        "(-id)",
    ),
    (
        "select id, abs(f8) from t order by abs, id limit 9",
        "SELECT",
    ),
    (
        "select id, f8, nu from t where nu is distinct from 'NaN' order by 2, 3, 1 limit 20",
        "LIMIT 20",
    ),
    ("select tl, id from t order by tl, id limit 7", "LIMIT 7"),
    (
        "select en, ar, id from t order by en desc, ar, id offset 2 rows fetch next 3 rows only",
        "LIMIT 5",
    ),
    ("select * from t order by ip, u, id limit 2", "LIMIT 2"),
    (
        "select x.*, i2 + 1 as next from t x order by next desc, x.id limit 3",
        "(i2 + 1) desc",
    ),
    (
        "select b from t order by b nulls first fetch first 3 rows with ties",
        "WITH TIES",
    ),
    (
        "select d, count(*) over () from t order by d, id limit 3",
        "SELECT \"id\", \"d\"",
    ),
    (
        "select id from t order by id limit null offset 57",
        "LIMIT (SELECT",
    ),
    ("select id from t order by id limit all", "SELECT \"id\""),
    (
        "select id from t order by id limit 9223372036854775807 offset 58",
        "LIMIT (SELECT",
    ),
    (
        "select id from t order by (select 1), id limit 1",
        "SELECT \"id\"",
    ),
    (
        "select distinct on (b) b, id from t order by b, i4 desc nulls last, id",
        "DISTINCT ON",
    ),
    (
        "select distinct on (1) en as mood, id from t order by mood, 2 desc limit 2",
        "DISTINCT ON",
    ),
    (
        "select unnest(ar) as u, id from t order by id, u limit 5",
        "\"u\", \"ar\"",
    ),
    ("select 5, id from t order by 1, 2 limit 3", "SELECT \"id\""),
];

#[test]
fn shards_give_only_their_first_rows() {
    let mut stand = stand("parts_first");
    for (sql, asked) in FIRST_ROWS {
        stand.alike_by(sql, asked);
    }
    for sql in [
        "select id from t order by id limit -1",
        "select id from t order by id limit -9 offset 3",
        "select id from t order by id limit 5 offset -1",
        "select id from t order by id limit 2.5",
        "select id from t order by nothing limit 2",
        "select id from t order by 3 limit 2",
        "select id / (id - 30) from t order by 1 limit 2",
    ] {
        let answer = stand.alike(&query(sql));
        assert!(
            sql.contains("2.5") || answer.iter().any(|line| line.starts_with('E')),
            "{sql}: {answer:?}"
        );
    }
    let prepared =
        "select id, tc from t where id > $1 order by tc collate \"C\" desc, id limit $2 offset $3";
    stand.alike(&batch().parse("p", prepared).describe("p").sync().0);
    for values in [
        ["0", "3", "0"],
        ["30", "10", "25"],
        ["0", "0", "1"],
        ["0", "2", "-1"],
    ] {
        stand.alike(&batch().call("p", &values).sync().0);
    }
}

/// Which columns hold which aggregates.
const COLUMNS: [(&str, &str); 16] = [
    ("i2", "sum avg min max count"),
    ("i4", "sum avg min max count"),
    ("i8", "sum avg min max count"),
    ("nu", "sum avg trim_scale(min trim_scale(max count"),
    ("price", "sum avg min max"),
    ("f4", "sum min max"),
    ("f8", "sum max count"),
    ("iv", "sum avg min max"),
    ("b", "bool_and bool_or every count"),
    ("tx", "min max count"),
    ("tc", "min max"),
    ("ch", "min max"),
    ("vc", "min max"),
    ("d", "min max"),
    ("en", "min max"),
    ("ip", "min max"),
];

#[test]
fn partial_results_of_every_type_are_put_together_exactly() {
    let mut stand = stand("parts_types");
    let mut calls = Vec::new();
    for (column, functions) in COLUMNS {
        for function in functions.split(' ') {
            let close = if function.contains('(') { "))" } else { ")" };
            calls.push(format!("{function}({column}{close}"));
        }
    }
    for (filter, group) in [
        ("", ""),
        (" where id > 30", ""),
        (" where false", ""),
        (" where false", " group by b"),
        ("", " group by b"),
        (" where nu <> 'NaN'", " group by d"),
    ] {
        for call in &calls {
            let order = if group.is_empty() { "" } else { " order by 1" };
            let key = group.replace(" group by ", ", ");
            let sql = format!("select {call} as x{key} from t{filter}{group}{order}");
            let sql = if group.is_empty() {
                sql
            } else {
                format!(
                    "select {}, {call} as x from t{filter}{group}{order}",
                    &key[2..]
                )
            };
            stand.alike_by(&sql, "pg_catalog.");
            // Types of columns, too.
            let described = batch().parse("", &sql).describe("").sync().0;
            let whole = stand.whole.ask(&described);
            let told = stand.sharded.ask(&described);
            // Numbers of tables and of own types are others in each database.
            assert!(
                told == whole || call.contains("(en") || !group.is_empty(),
                "{sql}: {told:?}, {whole:?}"
            );
        }
    }
}

const GROUPED: &[(&str, &str)] = &[
    (
        "select count(*), count(i4), sum(i4) + count(*) * 2, avg(i4)::text, max(id) - min(id) from t",
        "pg_catalog.sum(i4)",
    ),
    (
        "select sum(i4) filter (where b), count(*) filter (where not b and i2 > 0) from t",
        "FILTER (WHERE b)",
    ),
    (
        "select i4 % 3 as m, count(*) c from t group by m having count(*) > 5 order by c desc, m nulls first limit 2",
        "(i4 % 3)",
    ),
    (
        "select b, en, sum(price) from t group by 1, 2 order by sum(price) desc, 1, 2",
        "GROUP BY (b), (en)",
    ),
    (
        "select upper(tx), min(tx) from t group by upper(tx) order by 1 nulls first",
        "GROUP BY (upper(tx))",
    ),
    (
        "select date_trunc('day', tz), extract(hour from ts), count(*) from t group by 1, 2 order by 1, 2",
        "date_trunc",
    ),
    (
        "select x.b from t x group by x.b order by x.b",
        "GROUP BY (x.b)",
    ),
    (
        "select trim_scale(nu), count(*), sum(id) from t group by nu order by nu",
        "count(*)",
    ),
    (
        "select lower(tl), count(*) from t group by lower(tl) order by 1",
        "count(*)",
    ),
    (
        "select lower(min(tl)), count(*) from t group by tl order by count(*), 1",
        "count(*)",
    ),
    (
        "select f8 = 0, count(*) from t group by f8 order by f8",
        "GROUP BY",
    ),
    (
        "select rtrim(ch), count(*) from t group by ch order by ch",
        "GROUP BY",
    ),
    (
        "select js, ar, count(*) from t group by js, ar order by js, ar",
        "GROUP BY",
    ),
    (
        "select en::text || b::text, count(*) from t group by en::text || b::text order by 1",
        "SELECT",
    ),
    (
        "select i2 + id, (i2 + id) * 2, count(*) from t group by i2 + id order by 1",
        "(i2 + id)",
    ),
    (
        "select count(distinct i2), count(distinct tx), sum(distinct i4), count(*) from t",
        "GROUP BY",
    ),
    (
        "select b, count(distinct i4 % 5) filter (where id > 10), avg(id) from t group by b order by b",
        "GROUP BY",
    ),
    (
        "select count(distinct b), count(*), sum(i2) from t where false",
        "GROUP BY",
    ),
    (
        "select distinct b, en from t order by b desc, en limit 4 offset 1",
        "LIMIT 5",
    ),
    (
        "select distinct i4 / 2 as h, 'x' from t where i4 > 0 order by h",
        "GROUP BY",
    ),
    (
        "select distinct * from t where id < 5 or id > 57 order by id",
        "GROUP BY",
    ),
    (
        "select distinct count(*) from t group by b order by 1",
        "GROUP BY",
    ),
    ("select 1 from t group by b order by b having true", ""),
    (
        "select count(*) from t having sum(id) > 100000",
        "pg_catalog.sum(id)",
    ),
    (
        "select case when count(*) > 10 then 'many' else min(tc) end from t group by b order by 1",
        "GROUP BY",
    ),
    (
        "select public.t.id from public.t where false group by id",
        "",
    ),
    (
        "select t.d, every(t.b) from public.t where t.id % 2 = 0 group by t.d order by t.d",
        "GROUP BY (t.d)",
    ),
    (
        "select d as i4, sum(i4) from t group by d, i4 order by 1, 2",
        "GROUP BY",
    ),
    (
        "select string_agg(tc, ',' order by id), count(*) from t group by b order by b",
        "SELECT \"id\", \"b\", \"tc\"",
    ),
    ("select avg(f8), stddev(f8) from t", "SELECT \"f8\""),
    ("select avg(f8), avg(f4) from t", ""),
    ("select max(tx collate \"C\"), min(upper(tx)) from t", ""),
    (
        "select grouping(b), count(*) from t group by rollup (b) order by 1, 2",
        "SELECT \"b\"",
    ),
    (
        "select count(*) from t where tz < current_timestamp",
        "SELECT",
    ),
];

#[test]
fn groups_conditions_and_orders_of_aggregates_are_the_statements() {
    let mut stand = stand("parts_groups");
    for (sql, asked) in GROUPED {
        if asked.is_empty() {
            stand.alike_or_refused(sql);
        } else {
            stand.alike_by(sql, asked);
        }
    }
    let prepared = "select i4 % $1, count(*) + $2, sum(price) from t where id > $3 group by i4 % $1 order by 1 nulls first";
    stand.alike(&batch().parse("p", prepared).describe("p").sync().0);
    for values in [["3", "100", "0"], ["2", "-1", "55"]] {
        stand.alike(&batch().call("p", &values).sync().0);
    }
    for sql in [
        "select id, count(*) from t group by b",
        "select sum(tx) from t",
        "select sum(count(*)) from t",
        "select sum(i8::int2) from t",
        "select count(*) from t group by 2",
        "select count(*) from t group by count(*)",
    ] {
        let answer = stand.alike(&query(sql));
        assert!(answer[0].starts_with('E'), "{sql}: {answer:?}");
    }
}

impl Stand {
    /// Computed otherwise, or an error of PostgreSQL's.
    fn alike_or_refused(&mut self, sql: &str) {
        let answer = self.sharded.ask(&query(sql));
        if !answer[0].starts_with("E ERROR 0A000") {
            self.alike(&query(sql));
        }
    }
}

/// Of 8 MB, of which a statement may hold the half.
#[test]
fn what_shards_compute_does_not_travel() {
    let mut stand = stand("parts_travel");
    let big = "insert into t (id, tx, vc) select i, repeat('x', 100000) || i, 'v' from generate_series(100, 180) i";
    for shard in [2, 3] {
        stand.shards[shard].ask(&query(big));
    }
    for sql in [
        "select id, right(tx, 3) from t order by tx desc nulls last, id limit 3",
        "select count(*), count(tx), max(right(tx, 5)) is null from t",
        "select vc, max(id), count(distinct vc) from t group by vc order by vc",
        "select distinct vc from t order by vc",
        "select distinct on (vc) vc, id from t order by vc, tx desc nulls last, id",
        "select id, vc from t order by id desc",
        "select length(tx) from t where id = any (array[101, 5, 25]) order by 1",
    ] {
        stand.alike(&query(sql));
    }
    let answer = stand
        .sharded
        .ask(&query("select length(string_agg(tx, '')) from t"));
    assert!(answer[0].starts_with("E ERROR 53200"), "{answer:?}");
}

/// A cancel request ends the statement on every shard; one that fails on a shard is ended on the others.
#[test]
fn all_shards_stop_when_one_fails_or_the_client_wants_no_more() {
    let mut stand = stand("parts_stop");
    // Slow to compute where it is large.
    for shard in &mut stand.shards {
        shard.ask(&query(
            "update t set i8 = case when id > 20 then 32000 else 3 end",
        ));
    }
    let working = "select count(*) from pg_stat_activity where datname like 'parts_stop%' and state = 'active' \
                   and query like '%factorial%' and query not like '%pg_stat_activity%'";
    let slow = "select sum(factorial(i8) % 7) from t";
    stand.sharded.send(&query(slow));
    while stand.whole.value(working) != "2" {}
    stand.sharded.cancel(stand.proxy.port);
    let answer = stand.sharded.answers(1);
    assert!(answer[0].starts_with("E ERROR 57014"), "{answer:?}");
    while stand.whole.value(working) != "0" {}
    // The client leaves.
    let mut other = stand.proxy.client();
    other.send(&query(slow));
    while stand.whole.value(working) != "2" {}
    drop(other);
    while stand.whole.value(working) != "0" {}
    // One of them fails while others work.
    let failing = "select sum(factorial(i8) % (i8 - 3)) from t";
    let answer = stand.sharded.ask(&query(failing));
    assert!(answer[0].starts_with("E ERROR 22012"), "{answer:?}");
    while stand.whole.value(working) != "0" {}
    assert_eq!(stand.sharded.value("select count(*) from t"), "60");
}

#[test]
fn columns_that_are_not_needed_need_no_privilege() {
    let mut stand = stand("parts_columns");
    for shard in &mut stand.shards {
        shard.ask(&query(
            "do $$ begin create role reader; exception when duplicate_object then null; end $$",
        ));
        shard.ask(&query("grant select (id, b, i4, tx) on t to reader"));
    }
    for client in [&mut stand.whole, &mut stand.sharded] {
        client.ask(&query("set role reader"));
    }
    for sql in [
        "select count(*) from t",
        "select b, sum(i4) from t where tx is not null group by b order by b",
        "select id, tx from t order by id desc limit 4",
        "select string_agg(tx, ',' order by id) from t",
        "select x.b from t x where x.id < 30 order by 1",
        "select 1 from t where id = 1 or id = 41",
        "select secret from t order by 1",
        "select * from t order by id limit 1",
        "select count(secret) from t",
    ] {
        stand.alike(&query(sql));
    }
}

#[test]
fn shards_read_and_write_values_as_the_session_does() {
    let mut stand = stand("parts_settings");
    for at in 0..3 {
        let zone = ["Asia/Tokyo", "America/Lima", "UTC"][at];
        stand.shards[at].ask(&query(&format!(
            "alter database parts_settings_{at} set timezone = '{zone}'"
        )));
    }
    stand.whole.ask(&query("set timezone = 'Europe/Vienna'"));
    let mut client: Client = stand.proxy.client();
    client.ask(&query("set timezone = 'Europe/Vienna'"));
    stand.sharded = client;
    for sql in [
        "select date_trunc('day', tz) as day, count(*), min(tz), max(tz::date) from t group by 1 order by 1",
        "select id, tz from t where tz < '2026-01-05 01:00' order by tz::time, id limit 9",
    ] {
        stand.alike(&query(sql));
    }
    for client in [&mut stand.whole, &mut stand.sharded] {
        client.ask(&query("set extra_float_digits = -3"));
    }
    for sql in [
        "select (f8 / 3)::text, count(*) from t where (f8 / 3)::text like '0.1%' group by 1 order by 1",
        "select (f8 / 3)::text from t order by (f8 / 3)::text, id limit 30",
    ] {
        stand.alike(&query(sql));
    }
}
