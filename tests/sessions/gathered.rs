//! Reads of a sharded table without its key: what one PostgreSQL with all rows answers, or a refusal. A whole database and
//! one of three shards have the same rows.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, postgres},
};

const TABLE: &str = "create type mood as enum ('low', 'fair', 'high'); \
    create table t (id bigint primary key, n int, price numeric(12, 3), ratio double precision, note text, \
    code text collate \"C\", day timestamptz, feeling mood, tags text[], raw bytea)";

fn rows(from: i64, to: i64) -> String {
    format!(
        "insert into t select i, case when i % 7 > 0 then i % 5 end, (i % 11)::numeric / 8, \
         case i % 9 when 0 then 'NaN' else i::float8 / 3 end, \
         case i % 4 when 0 then null when 1 then 'a\"b\\c' else 'Zoë''s {{' || i || '}}' end, \
         chr(65 + (i % 60)::int), timestamptz '2026-01-01 00:00+00' + i * interval '7 hours', \
         (enum_range(null::mood))[1 + i % 3], array['x', null, i::text], decode(lpad(to_hex(i), 8, '0'), 'hex') \
         from generate_series({from}::bigint, {to}::bigint) i"
    )
}

pub(crate) struct Stand {
    pub(crate) whole: Client,
    pub(crate) sharded: Client,
    pub(crate) shards: Vec<Client>,
    pub(crate) proxy: Proxy,
}

/// Ids 1 to 60, 20 on each of three shards.
fn stand(name: &str) -> Stand {
    stand_of(name, TABLE, &rows)
}

/// Three shards with the rows 1 to 20, 21 to 40 and 41 to 60 of a table `t`, and a whole database with all of them.
/// A statement may hold 4 MB of rows.
pub(crate) fn stand_of(name: &str, table: &str, rows: &dyn Fn(i64, i64) -> String) -> Stand {
    let server = postgres().port();
    let mut whole = Client::connect(server, &[]);
    let mut shards = Vec::new();
    for at in 0..4 {
        whole.ask(&query(&format!("create database {name}_{at}")));
        let mut shard = Client::connect_to(server, &format!("{name}_{at}"), &[]);
        let made = shard.ask(&query(table));
        assert!(made[0].starts_with('C'), "{made:?}");
        shard.ask(&query("create table colours (n int, name text)"));
        shard.ask(&query(
            "insert into colours values (0, 'red'), (1, 'green'), (2, 'blue')",
        ));
        let (from, to) = if at < 3 {
            (at * 20 + 1, at * 20 + 20)
        } else {
            (1, 60)
        };
        let filled = shard.ask(&query(&rows(from, to)));
        assert!(filled[0].starts_with('C'), "{filled:?}");
        shards.push(shard);
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/{name}_{at}?sslmode=disable\" }}\n"
        )
    };
    let databases = format!(
        "[databases.postgres]\n{}{}{}[databases.postgres.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 21, shard = \"s0\" }}, {{ to = 41, shard = \"s1\" }}, {{ shard = \"s2\" }}]\n\
         tables = {{ \"public.t\" = \"id\" }}\n[databases.postgres.tables]\nreference = [\"public.colours\"]\n",
        shard(0),
        shard(1),
        shard(2)
    );
    let proxy = Proxy::of(
        "gather_limit = \"4MB\"\ngather_limit_total = \"6MB\"",
        "size = 2",
        &databases,
    );
    let whole = Client::connect_to(server, &format!("{name}_3"), &[]);
    let sharded = proxy.client();
    Stand {
        whole,
        sharded,
        shards,
        proxy,
    }
}

impl Stand {
    /// Both answer this alike, but for the tables and numbers that RowDescription tells.
    pub(crate) fn alike(&mut self, bytes: &[u8]) -> Vec<String> {
        let (expected, found) = (self.whole.ask(bytes), self.sharded.ask(bytes));
        let plain = |lines: &[String]| -> Vec<String> {
            let lines = lines.iter().filter(|line| !line.starts_with('T'));
            lines.cloned().collect()
        };
        assert_eq!(
            plain(&found),
            plain(&expected),
            "PostgreSQL's is on the right, to {}",
            String::from_utf8_lossy(bytes).escape_debug()
        );
        found
    }
}

/// With an order that leaves nothing open.
const STATEMENTS: [&str; 19] = [
    "select count(*), sum(n), avg(n), avg(price), min(note), max(day) from t",
    "select id from t where id in (1, 25, 50, 25) order by id desc",
    "select n, count(*), sum(price), string_agg(note, ',' order by id) from t group by n having count(*) > 2 order by n nulls first",
    "select distinct feeling from t order by 1 desc",
    "select id, ratio, note, tags, raw from t where price > 0.5 and note like 'Z%' order by ratio desc, id limit 7 offset 3",
    "select code from t order by code, id",
    "select note from t order by note, id",
    "select id, rank() over (partition by n order by price desc, id) from t order by id",
    "select percentile_cont(0.5) within group (order by ratio), stddev(n), count(distinct n) from t where ratio < 'NaN'",
    "select c.name, count(*) from t join colours c using (n) group by 1 order by 1",
    "select c.name, t.id from colours c left join t on t.n = c.n and t.id > 55 order by 1, 2",
    "select a.id, b.id from t a join t b on b.id = a.id + 20 where a.n = 1 order by 1",
    "with x as (select n, max(id) as top from t group by n) select * from x where top > 50 order by top",
    "select (select max(id) from t), exists (select from t where n is null)",
    "select id from t where n = 1 union select n from colours order by 1",
    "select n, grouping(n), count(*) from t group by rollup (n) order by 2, 1",
    "select id, price from public.t as o where o.feeling = 'high' order by o.price, o.id fetch first 5 rows only",
    "select count(*) from t where id between 15 and 45",
    "select * from t where false",
];

#[test]
fn reads_without_a_key_are_what_one_postgresql_answers() {
    let mut stand = stand("gathered");
    for sql in STATEMENTS {
        let answer = stand.alike(&query(sql));
        assert!(!answer[0].starts_with('E'), "{sql}: {answer:?}");
        stand.alike(&batch().run(sql, &[]).sync().0);
        stand.alike(
            &batch()
                .parse("", sql)
                .describe("")
                .bind("", "", &[])
                .describe_portal("")
                .execute("", 0)
                .sync()
                .0,
        );
    }
    // Prepared once, with parameters, and read in parts.
    let prepared = batch()
        .parse(
            "p",
            "select id, note from t where n = $1 and id > $2 order by id limit $3",
        )
        .describe("p")
        .sync()
        .0;
    stand.alike(&prepared);
    for values in [["1", "3", "5"], ["2", "0", "100"], ["9", "0", "1"]] {
        stand.alike(&batch().call("p", &values).sync().0);
    }
    let parts = batch()
        .bind("", "p", &["1", "0", "50"])
        .execute("", 3)
        .execute("", 100)
        .sync()
        .0;
    stand.alike(&parts);
}

#[test]
fn errors_are_postgresqls_and_the_session_goes_on() {
    let mut stand = stand("gathered_errors");
    for sql in [
        "select missing from t",
        "select id / (n - n) from t where id > 3 order by 1",
        "select id from t where n / 0 = 1",
        "select note::int from t",
        "select id from t order by 2",
        "select count(*) from t",
    ] {
        stand.alike(&query(sql));
    }
}

#[test]
fn what_would_not_be_exact_is_refused() {
    let mut stand = stand("gathered_refused");
    for sql in [
        "select t from t order by note",
        "select ctid from t",
        "select id from t for update",
        "select id from only t order by note",
        "select x.id from t x, t",
        "insert into t (id, n) select id + 100, n from t",
    ] {
        let answer = stand.sharded.ask(&query(sql));
        let refused = answer[0].starts_with("E ERROR 0A000");
        assert!(refused || sql.contains(" x, t"), "{sql}: {answer:?}");
    }
    // In a transaction: before it is on any shard, and when it has written.
    stand.sharded.ask(&query("begin"));
    assert_eq!(stand.sharded.value("select count(*) from t"), "60");
    stand.sharded.ask(&query("update t set n = 0 where id = 1"));
    assert_eq!(stand.sharded.value("select count(*) from t"), "60");
    stand.sharded.ask(&query("rollback"));
    // One snapshot of all rows is more than shards have together.
    stand.sharded.ask(&query(
        "set default_transaction_isolation = 'repeatable read'",
    ));
    let answer = stand.sharded.ask(&query("select count(*) from t"));
    assert!(answer[0].starts_with("E ERROR 0A000"), "{answer:?}");
    stand
        .sharded
        .ask(&query("reset default_transaction_isolation"));
    assert_eq!(stand.sharded.value("select count(*) from t"), "60");
    // A column whose type differs from what was known.
    stand.shards[1].ask(&query("alter table t alter n type bigint"));
    let answer = stand.sharded.ask(&query("select sum(n) from t"));
    assert!(answer[0].contains("the table has changed"), "{answer:?}");
}

#[test]
fn rows_beyond_the_limit_are_refused_and_given_back() {
    let mut stand = stand("gathered_limit");
    stand.shards[2].ask(&query(
        "insert into t (id, note) select i, repeat('x', 100000) from generate_series(100, 180) i",
    ));
    for _ in 0..5 {
        let answer = stand
            .sharded
            .ask(&query("select length(string_agg(note, '')) from t"));
        assert!(answer[0].starts_with("E ERROR 53200"), "{answer:?}");
    }
    stand.shards[1].ask(&query(
        "update t set note = repeat('x', 5000000) where id = 30",
    ));
    let answer = stand.sharded.ask(&query(
        "select length(string_agg(note, '')) from t where id between 15 and 50",
    ));
    assert!(answer[0].starts_with("E ERROR 53200"), "{answer:?}");
    stand.shards[1].ask(&query("update t set note = '' where id = 30"));
    assert_eq!(
        stand
            .sharded
            .value("select count(*) from t where id < 100 and n = 1"),
        "10"
    );
    assert_eq!(
        stand
            .proxy
            .client()
            .value("select count(*) from t where id < 50"),
        "49"
    );
}
