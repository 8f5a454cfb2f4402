//! Reads whose answer is that of each shard, put together as they come: what one PostgreSQL with all rows answers.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, observer, postgres, until},
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

struct Stand {
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

#[test]
fn what_is_prepared_is_read_with_its_values_in_parts_and_in_binary() {
    let mut stand = stand("scattered_prepared");
    let prepared = batch()
        .parse(
            "p",
            "select id, price, note from t where n <> $1 and id > $2 order by ratio desc, id limit $3 offset $4",
        )
        .describe("p")
        .sync()
        .0;
    stand.alike(&prepared, Order::Given);
    for values in [
        ["1", "3", "5", "0"],
        ["2", "0", "100", "7"],
        ["9", "0", "0", "0"],
        ["9", "90", "5", "5"],
        ["9", "0", "-1", "0"],
        ["9", "0", "x", "0"],
    ] {
        stand.alike(&batch().call("p", &values).sync().0, Order::Given);
    }
    let parts = batch()
        .bind("", "p", &["1", "0", "50", "1"])
        .execute("", 3)
        .describe_portal("")
        .execute("", 5)
        .execute("", 100)
        .execute("", 100)
        .close_portal("")
        .sync()
        .0;
    stand.alike(&parts, Order::Given);
    // All values in binary: none of them, one and one for each column.
    for formats in [&[0, 1, 0, 1][..], &[0, 3, 0, 1, 0, 0, 0, 1]] {
        let mut bytes = batch()
            .parse("", "select id, price, ratio from t order by id")
            .0;
        bytes.extend_from_slice(b"B");
        let size = u32::try_from(4 + 2 + 4 + formats.len()).unwrap();
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(formats);
        let rest = batch().describe_portal("").execute("", 0).sync().0;
        bytes.extend(rest);
        stand.alike(&bytes, Order::Given);
    }
    // What another statement interrupts says so.
    let interrupted = batch()
        .bind("a", "p", &["1", "0", "50", "1"])
        .execute("a", 3)
        .run("select n from t where id = 1", &[])
        .execute("a", 3)
        .sync()
        .0;
    let answer = stand.sharded.ask(&interrupted);
    let error = answer.iter().find(|line| line.starts_with('E')).unwrap();
    assert!(error.contains("cannot go on"), "{answer:?}");
    stand.alike(
        &batch().call("p", &["1", "3", "5", "0"]).sync().0,
        Order::Given,
    );
}

#[test]
fn errors_end_the_answer_once_wherever_they_come_from() {
    let mut stand = stand("scattered_errors");
    for sql in [
        "select missing from t",
        "select id from t order by missing",
        "select id from t where note",
        "select id, note::int from t where note is null or id = 6 order by id",
    ] {
        stand.alike(&query(sql), Order::Given);
        stand.alike(&batch().run(sql, &[]).sync().0, Order::Given);
    }
    // On one shard, after rows of others.
    for sql in [
        "select 1 / (id - 30) from t",
        "select id, 1 / (id - 30) from t order by id",
    ] {
        let both = [query(sql), batch().run(sql, &[]).sync().0];
        for bytes in both {
            let answer = stand.sharded.ask(&bytes);
            let errors: Vec<_> = answer.iter().filter(|line| line.starts_with('E')).collect();
            assert_eq!(errors, ["E ERROR 22012 division by zero"], "{answer:?}");
            let last = answer.last().map(String::as_str);
            assert_eq!(last, Some("Z I"));
        }
    }
    // What does not compare here is gathered.
    for sql in [
        "select id from t order by feeling, id",
        "select id from t order by note, id",
        "select id from t order by lower(note), id",
    ] {
        let answer = stand.alike(&query(sql), Order::Given);
        assert!(!answer[0].starts_with('E'), "{sql}: {answer:?}");
        stand.alike(&batch().run(sql, &[]).sync().0, Order::Given);
    }
    // In a transaction that is nowhere yet, and not in one that is.
    stand.alike(&query("begin"), Order::Given);
    stand.alike(&query("select id from t order by id"), Order::Given);
    stand.alike(
        &query("select 1 / (id - 30) from t order by 1"),
        Order::Given,
    );
    stand.alike(&query("select id from t order by id"), Order::Given);
    stand.alike(&query("rollback"), Order::Given);
    stand.alike(&query("select id from t order by id desc"), Order::Given);
    // A table that a shard has otherwise.
    stand.shards[1].ask(&query("alter table t alter short type bigint"));
    let answer = stand.sharded.ask(&query("select short from t"));
    assert!(answer[0].starts_with("E ERROR"), "{answer:?}");
}

/// 2 GB of each shard.
const ENDLESS: &str = "select t.id, repeat('y', 1000) from t, generate_series(1, 100000) as i";

/// What the servers' backends for these databases do, by process; not those of the control role, which looks when it
/// likes.
fn backends(name: &str) -> Vec<(String, String)> {
    let sql = format!(
        "select string_agg(pid || ' ' || state, ',' order by pid) from pg_stat_activity \
         where datname like '{name}\\__' and datname <> '{name}_3' and query <> '' \
         and application_name not in ('direct', 'shardway')"
    );
    let found = observer().value(&sql);
    let pairs = found.split(',').filter_map(|pair| pair.split_once(' '));
    pairs
        .map(|(pid, state)| (pid.to_owned(), state.to_owned()))
        .collect()
}

fn active(name: &str) -> usize {
    let sql = format!(
        "select count(*) from pg_stat_activity where datname like '{name}\\__' and state <> 'idle' \
         and application_name <> 'shardway'"
    );
    observer().value(&sql).parse().unwrap()
}

/// A read of which no row is taken, on all three shards.
fn unread(stand: &Stand, name: &str, sql: &str) -> Client {
    unread_of(3, stand, name, sql)
}

/// As [`unread`], where so many shards have rows.
fn unread_of(shards: usize, stand: &Stand, name: &str, sql: &str) -> Client {
    let mut client = stand.proxy.client();
    client.send(&query(sql));
    let waits = format!(
        "select count(*) from pg_stat_activity where datname like '{name}\\__' and wait_event = 'ClientWrite'"
    );
    // The servers wait until somebody takes their rows.
    let shards = shards.to_string();
    until("all are held back", || observer().value(&waits) == shards);
    client
}

/// The end of an answer, whose rows are many.
fn end(client: &mut Client) -> Vec<String> {
    let mut others = Vec::new();
    loop {
        let (tag, body) = client.frame().expect("an answer");
        if tag != b'D' {
            others.push(crate::client::shown(tag, &body));
        }
        if tag == b'Z' {
            return others;
        }
    }
}

#[test]
fn a_client_that_takes_no_rows_holds_the_shards_back_and_leaves_nothing_when_it_dies() {
    let name = "scattered_slow";
    let stand = stand(name);
    for sql in [ENDLESS.to_owned(), format!("{ENDLESS} order by 1")] {
        let client = unread(&stand, name, &sql);
        drop(client);
        until("nothing runs", || active(name) == 0);
    }
    let mut next = stand.proxy.client();
    assert_eq!(next.ask(&query("select id from t")).len(), 63);
}

#[test]
fn a_cancel_reaches_every_shard_and_costs_no_connection() {
    let name = "scattered_cancel";
    let stand = stand(name);
    let mut client = unread(&stand, name, ENDLESS);
    let before: Vec<_> = backends(name).into_iter().map(|(pid, _)| pid).collect();
    client.cancel(stand.proxy.port);
    let end = end(&mut client);
    let errors: Vec<_> = end.iter().filter(|line| line.starts_with('E')).collect();
    assert_eq!(
        errors,
        ["E ERROR 57014 canceling statement due to user request"]
    );
    assert_eq!(end.last().unwrap(), "Z I");
    assert_eq!(active(name), 0, "something still runs");
    assert_eq!(client.ask(&query("select id from t")).len(), 63);
    let after: Vec<_> = backends(name).into_iter().map(|(pid, _)| pid).collect();
    assert_eq!(after, before, "the same backends serve");
    // Whichever shard still works, when the others have ended.
    for only in ["<= 20", "between 21 and 40", "> 40"] {
        let sql = format!("{ENDLESS} where t.id * 1 {only}");
        let mut client = unread_of(1, &stand, name, &sql);
        client.cancel(stand.proxy.port);
        let end = self::end(&mut client);
        assert!(
            end.iter().any(|line| line.starts_with("E ERROR 57014")),
            "{only}: {end:?}"
        );
    }
}

#[test]
fn a_shard_that_dies_in_the_middle_ends_the_answer_with_one_error() {
    let name = "scattered_dies";
    let stand = stand(name);
    for sql in [ENDLESS.to_owned(), format!("{ENDLESS} order by 1")] {
        let mut client = unread(&stand, name, &sql);
        let killed = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = '{name}_1' and state = 'active' \
             and application_name <> 'shardway'"
        );
        assert_eq!(observer().value(&killed), "1");
        let end = end(&mut client);
        let errors: Vec<_> = end.iter().filter(|line| line.starts_with('E')).collect();
        assert!(
            errors.len() == 1 && errors[0].starts_with("E ERROR 08006"),
            "{end:?}"
        );
        assert_eq!(end.last().unwrap(), "Z I");
        assert_eq!(active(name), 0, "something still runs");
        assert_eq!(client.ask(&query("select id from t")).len(), 63);
    }
}

#[test]
fn what_a_limit_leaves_out_is_not_read() {
    let name = "scattered_limit";
    let mut stand = stand(name);
    stand
        .sharded
        .ask(&query("select id from t order by id limit 5 offset 2"));
    let asked = "select count(*) from pg_stat_activity where datname like 'scattered\\_limit\\__' and query like '%LIMIT 7%'";
    assert_eq!(
        observer().value(&format!("{asked} and pid <> pg_backend_pid()")),
        "3",
        "each shard gives what may be needed of it"
    );
    // The first shard has all of these rows: the others have gigabytes, more than anybody holds or throws away before they
    // are stopped.
    let ended = |stand: &mut Stand| -> Vec<i64> {
        let figure =
            "select xact_rollback from pg_stat_database where datname = current_database()";
        let shards = stand.shards[..3].iter_mut();
        shards
            .map(|shard| shard.value(figure).parse().unwrap())
            .collect()
    };
    let before = ended(&mut stand);
    let endless = "select t.id, repeat('y', case when id > 20 then 100000 else 100 end) from t, generate_series(1, 100000) as i";
    let answer = stand.sharded.ask(&query(&format!(
        "{endless} order by id limit 30000 offset 100"
    )));
    assert_eq!(
        answer
            .iter()
            .filter(|line| line.starts_with("D 1|"))
            .count(),
        30000
    );
    assert_eq!(answer[answer.len() - 2], "C SELECT 30000\\0");
    until("two were cancelled", || {
        let after = ended(&mut stand);
        after[1] > before[1] && after[2] > before[2]
    });
    assert_eq!(active(name), 0);
    // A long row passes in parts, whole and in order.
    for shard in &mut stand.shards {
        shard.ask(&query(
            "update t set note = repeat('long ', 200000) || id where id in (3, 33)",
        ));
    }
    stand.alike_in_all_ways(
        "select id, note from t where note like 'long%' order by id",
        Order::Given,
    );
    stand.alike_in_all_ways(
        "select note, id from t where note like 'long%' or id = 5",
        Order::Open,
    );
}
