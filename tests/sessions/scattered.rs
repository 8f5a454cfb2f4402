//! Reads whose answer is that of each shard, put together as they come: what one PostgreSQL with all rows answers.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, postgres},
};

const TABLES: &str = "create type mood as enum ('low', 'fair', 'high'); \
    create table t (id bigint primary key, n int, price numeric, ratio double precision, small real, note text, \
    code text collate \"C\", day date, at timestamp, seen timestamptz, hour time, flag boolean, feeling mood, \
    tag uuid, raw bytea, short smallint, nick varchar(20) collate \"C\", called name); \
    create table line (id bigint, item int, what text, primary key (id, item)); \
    create table colours (n int, name text); \
    insert into colours values (0, 'red'), (1, 'green'), (2, 'blue')";

fn rows(from: i64, to: i64) -> String {
    format!(
        "insert into t select i, case when i % 7 > 0 then i % 5 end, \
         case i % 13 when 0 then 'NaN' when 1 then -1 else ((i * 37) % 11)::numeric / 8 * 10 ^ (i % 3) end, \
         case i % 9 when 0 then 'NaN' when 1 then '-inf' when 2 then 0 when 3 then -0.0 else i::float8 / 3 - 5 end, \
         case when i % 6 > 0 then (i % 8)::real / 3 end, \
         case i % 4 when 0 then null when 1 then 'a\"b\\c' else 'Zoë''s {{' || i || '}}' end, \
         (array['a', 'ab', 'B', 'é', '', 'a b', null])[1 + i % 7], date '2026-01-01' + (i * 7 % 20)::int, \
         timestamp '2026-01-01' - (i % 5) * interval '7 hours', timestamptz 'infinity', \
         time '00:00' + i * interval '77 minutes', i % 3 = 0, (enum_range(null::mood))[1 + i % 3], \
         md5((i % 10)::text)::uuid, decode(md5((i % 6)::text), 'hex'), (i * 7 % 9)::int2 - 4, \
         'n' || i % 4, ('c' || i % 5)::name \
         from generate_series({from}::bigint, {to}::bigint) i; \
         insert into line select i, j, 'line ' || i || '.' || j \
         from generate_series({from}::bigint, {to}::bigint) i, generate_series(1, (i % 3)::int) j"
    )
}

pub(crate) struct Stand {
    whole: Client,
    sharded: Client,
    shards: Vec<Client>,
    proxy: Proxy,
}

/// Ids 1 to 60, 20 on each of three shards.
fn stand(name: &str) -> Stand {
    let server = postgres().port();
    let mut whole = Client::connect(server, &[]);
    let mut shards = Vec::new();
    for at in 0..4 {
        whole.ask(&query(&format!("create database {name}_{at}")));
        let mut shard = Client::connect_to(server, &format!("{name}_{at}"), &[]);
        shard.ask(&query(TABLES));
        let (from, to) = if at < 3 {
            (at * 20 + 1, at * 20 + 20)
        } else {
            (1, 60)
        };
        let made = shard.ask(&query(&rows(from, to)));
        assert!(!made[0].starts_with('E'), "{made:?}");
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
         tables = {{ \"public.t\" = \"id\", \"public.line\" = \"id\" }}\n[databases.postgres.tables]\n\
         reference = [\"public.colours\"]\n",
        shard(0),
        shard(1),
        shard(2)
    );
    let proxy = Proxy::with("size = 2", &databases);
    let whole = Client::connect_to(server, &format!("{name}_3"), &[]);
    let sharded = proxy.client();
    Stand {
        whole,
        sharded,
        shards,
        proxy,
    }
}

/// Whether the order of rows is part of what is compared.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Given,
    Open,
}

impl Stand {
    /// Both answer this alike, but for the tables and numbers that RowDescription tells.
    fn alike(&mut self, bytes: &[u8], order: Order) -> Vec<String> {
        let (expected, found) = (self.whole.ask(bytes), self.sharded.ask(bytes));
        let plain = |lines: &[String]| -> Vec<String> {
            let lines = lines.iter().filter(|line| !line.starts_with('T'));
            let mut lines: Vec<String> = lines.cloned().collect();
            if order == Order::Open {
                lines.sort();
            }
            lines
        };
        assert_eq!(
            plain(&found),
            plain(&expected),
            "PostgreSQL's is on the right, to {}",
            String::from_utf8_lossy(bytes).escape_debug()
        );
        found
    }

    /// In both protocols, described and not, with values in text and in binary.
    fn alike_in_all_ways(&mut self, sql: &str, order: Order) {
        let route = self.sharded.ask(&query(&format!("explain (route) {sql}")));
        assert!(
            route.iter().any(|line| line.contains("scatter")),
            "{sql}: {route:?}"
        );
        let answer = self.alike(&query(sql), order);
        assert!(!answer[0].starts_with('E'), "{sql}: {answer:?}");
        self.alike(&batch().run(sql, &[]).sync().0, order);
        let described = batch()
            .parse("", sql)
            .describe("")
            .bind("", "", &[])
            .describe_portal("")
            .execute("", 0)
            .sync()
            .0;
        self.alike(&described, order);
    }
}

#[test]
fn reads_in_the_order_of_their_keys_are_what_one_postgresql_answers() {
    let mut stand = stand("scattered_ordered");
    for key in [
        "n", "price", "ratio", "small", "code", "day", "at", "seen", "hour", "flag", "tag", "raw",
        "short", "nick", "called",
    ] {
        for direction in ["", "desc", "nulls first", "desc nulls last"] {
            stand.alike_in_all_ways(
                &format!("select id, note, feeling from t order by {key} {direction}, id"),
                Order::Given,
            );
        }
    }
    for sql in [
        "select * from t order by id",
        "select id as x, n from t order by x desc limit 7",
        "select id, n + 1 as m from t order by 2 nulls first, 1 limit 10 offset 5",
        "select note from t order by note collate \"C\", id desc offset 40 rows fetch next 9 rows only",
        "select t.id, c.name from t join colours c on c.n = t.n order by -t.id, c.name collate \"C\"",
        "select t.id, l.what from t left join line l using (id) order by id, l.item desc",
        "select id from t where exists (select from line l where l.id = t.id and l.item = 2) order by id",
        "select id from t where n in (select n from colours where name <> 'red') order by id",
        "select id, (select name from colours c where c.n = t.n) as colour from t where id between 15 and 45 order by id",
        "select id from t where false order by id",
        "select id from t order by id limit 0",
        "select id from t order by id offset 100",
        "select upper(nick), id from t order by t.n is null, lower(code) collate \"C\", id;",
        "select id from t where id in (1, 25, 3) order by id desc",
    ] {
        stand.alike_in_all_ways(sql, Order::Given);
    }
}

#[test]
fn reads_in_no_order_are_the_rows_of_all_shards() {
    let mut stand = stand("scattered_open");
    for sql in [
        "select * from t",
        "select id, price from t where price > 0.5 and note like 'Z%'",
        "select l.what, t.feeling from line l, t where l.id = t.id and t.n = 3",
        "select id from t where id in (1, 25, 50, 25)",
        "select id from t where false",
        "select a.id, b.id from t a join t b on a.id = b.id and b.n > 1",
        "select x, id from t, unnest(array[1, 2]) x where flag",
    ] {
        stand.alike_in_all_ways(sql, Order::Open);
    }
    // Any rows are right, as many as are asked for.
    for sql in ["select id from t limit 7", "select id from t offset 50"] {
        let answer = stand.sharded.ask(&query(sql));
        let rows = answer.iter().filter(|line| line.starts_with('D')).count();
        assert_eq!(
            rows,
            if sql.contains("limit") { 7 } else { 10 },
            "{answer:?}"
        );
    }
}
