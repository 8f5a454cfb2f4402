//! Ids that nobody writes: defaults of sharded and reference tables by sequences, identity, `shardway.next_id()` and
//! UUIDs, computed before a row has its shard.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, postgres, until},
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
        "rollback",
        "insert into t (n) values (12) on conflict (id) do nothing returning id",
        "insert into t as x (n) values (13) returning x.id",
        "with w as (select 14 n) insert into t (n) values ((select n from w)) returning id",
        "insert into t (n) values (15) returning id",
        "insert into t (n) values (16) returning id; insert into t (n) values (17), (18) returning id",
        "begin; insert into t (n) values (19) returning id; select lastval(); commit",
        "select count(*), sum(id), sum(n) from t",
        "insert into t (n, n) values (1, 2)",
        "insert into t (n) values ('x')",
    ]);
}

#[test]
fn parameters_and_prepared_statements_leave_ids_out_too() {
    let mut stand = start(
        "ids_extended",
        "create table t (id bigint generated always as identity primary key, n int, s text)",
        &["public.t"],
    );
    ready(&mut stand, "insert into t (n) values (0)");
    stand.whole.ask(&query("insert into t (n) values (0)"));
    let one = "insert into t (n, s) values ($1, $2) returning id, n, s";
    let two = "insert into t (s, n) values ($2, $1::int), ($2, $1) returning id, s";
    for _ in 0..3 {
        let piped = batch().run(one, &["1", "a"]).run(one, &["2", "b"]).sync();
        stand.alike(&piped.0, 1);
        stand.alike(&batch().run(two, &["7", "x"]).sync().0, 1);
    }
    let named = batch().parse("p", one).describe("p").sync();
    stand.alike(&named.0, 1);
    for n in 0..4 {
        let bound = batch()
            .bind("", "p", &[&n.to_string(), "c"])
            .describe_portal("")
            .execute("", 0)
            .sync();
        stand.alike(&bound.0, 1);
    }
    // Too few parameters, a value that is none, and what a failed transaction says.
    stand.alike(&query("begin"), 1);
    stand.alike(
        &batch().bind("", "p", &["x", "c"]).execute("", 0).sync().0,
        1,
    );
    stand.alike(
        &batch().bind("", "p", &["1", "c"]).execute("", 0).sync().0,
        1,
    );
    stand.alike(&query("rollback"), 1);
    stand.alike(&query("insert into t (n) values (1) returning n"), 1);
    // What PostgreSQL does not let a client give.
    stand.alike(&query("insert into t (id, n) values (5, 1)"), 1);
    stand.all_alike(&[
        "insert into t (id, n) overriding system value values (5000, 1), (default, 2) returning n",
        "insert into t (id, n) values (default, 3) returning n",
        "insert into t default values returning n",
    ]);
}

/// The numbers of the rows that an answer has.
fn numbers(answer: &[String]) -> Vec<i64> {
    let rows = answer.iter().filter_map(|line| line.strip_prefix("D "));
    rows.map(|row| {
        row.split('|')
            .next()
            .unwrap()
            .parse()
            .unwrap_or_else(|_| panic!("{answer:?}"))
    })
    .collect()
}

#[test]
fn a_number_that_is_no_key_is_one_sequences_for_all_shards() {
    let mut stand = start(
        "ids_number",
        "create table t (id bigint, n bigserial primary key, s smallserial, c text)",
        &["public.t"],
    );
    ready(&mut stand, "insert into t (id) values (1)");
    stand.whole.ask(&query("insert into t (id) values (1)"));
    stand.all_alike(&[
        "insert into t (id) values (1), (101), (201) returning *",
        "insert into t (id, c) values (150, 'a') returning *",
        "insert into t (id, s, c) values (250, default, 'b'), (50, 7, 'b') returning *",
        "update t set c = 'z' where id = 101",
        "insert into t (id, n) values (7, default) returning n",
        "select count(*), count(distinct n), max(n), max(s) from t",
    ]);
    for n in ["1", "150", "250"] {
        for sql in [
            "insert into t (id) values ($1::bigint) returning n, s",
            "insert into t (id, c) values ($1::bigint, 'x'), (77, 'y') returning n, s",
        ] {
            stand.alike(&batch().run(sql, &[n]).sync().0, 1);
        }
    }
    assert!(
        stand
            .seen("select count(*) from t")
            .iter()
            .all(|count| count != "0")
    );
    // Whether a number of the client's own is anywhere else, no shard knows.
    stand.fails("insert into t (id, n) values (1, 5000)", "would set off");
    stand.fails(
        "insert into t (id, n) values (1, 5000), (2, default)",
        "would set off",
    );
    stand.fails("insert into t (id) select 1", "would set off");
    for sql in [
        "select setval('t_n_seq', 1)",
        "alter sequence t_n_seq restart",
        "alter table t alter n type bigint; alter sequence t_n_seq increment by -1",
    ] {
        stand.fails(sql, "cannot begin anew");
    }
}

#[test]
fn copies_of_a_reference_table_get_the_same_numbers() {
    let mut stand = Three {
        ddl: "create table r (id int generated by default as identity primary key, u uuid default gen_random_uuid(), n int)",
        tables: &[],
        reference: &["public.r"],
        ..Three::new("ids_copies")
    }
    .start();
    ready(&mut stand, "insert into r (n) values (0)");
    stand.whole.ask(&query("insert into r (n) values (0)"));
    stand.all_alike(&[
        "insert into r (n) values (1), (2) returning id, n",
        "insert into r default values returning id",
    ]);
    stand.alike(
        &batch()
            .run("insert into r (n) values ($1) returning id", &["4"])
            .sync()
            .0,
        1,
    );
    let seen = stand.seen("select string_agg(r::text, ';' order by id) from r");
    assert!(
        seen[0].contains("(5,") && seen.iter().all(|one| *one == seen[0]),
        "{seen:?}"
    );
}

#[test]
fn keys_are_ids_and_uuids() {
    let mut stand = Three {
        ddl: "create table t (id bigint primary key, n int); create table u (id uuid primary key default gen_random_uuid(), n int)",
        database: "groups.u = { method = \"hash\", key_type = \"uuid\", tables = { \"public.u\" = \"id\" } }",
        ..Three::new("ids_kinds")
    }
    .start();
    for table in ["t", "u"] {
        ready(
            &mut stand,
            &format!(
                "insert into {table} (id) values ('{}')",
                match table {
                    "t" => "1",
                    _ => "00000000-0000-4000-8000-000000000000",
                }
            ),
        );
    }
    shards_have_numbers(&mut stand);
    let changed = stand.ask("alter table t alter id set default shardway.next_id()");
    assert_eq!(changed[0], "C ALTER TABLE\\0", "{changed:?}");
    let mut last = 0;
    for n in 0..20 {
        let ids = numbers(&stand.ask("insert into t (n) values (1), (2), (3) returning id"));
        assert_eq!(ids.len(), 3);
        for id in ids {
            assert!(id > last, "in their order: {n}");
            last = id;
        }
    }
    let found = numbers(&stand.ask(&format!("select n from t where id = {last}")));
    assert_eq!(found, [3]);
    let made = stand.ask("insert into t (id, n) values (shardway.next_id(), 9) returning id, n");
    assert!(numbers(&made)[0] > last);
    assert!(numbers(&stand.ask("select shardway.next_id()"))[0] > 0);
    for _ in 0..20 {
        let made = stand.ask("insert into u (n) values (1), (2) returning id");
        assert!(made.contains(&"C INSERT 0 2\\0".to_owned()), "{made:?}");
    }
    assert_eq!(
        stand.sharded.value("select count(distinct id) from u"),
        "41"
    );
    assert!(
        stand
            .seen("select count(*) from u")
            .iter()
            .all(|count| count != "0")
    );
}

/// What a client of a proxy is given in many ways.
fn given_through(mut client: Client) -> Vec<i64> {
    let mut ids = Vec::new();
    for n in 0..60 {
        let bound = batch().run(
            "insert into t (n) values ($1) returning id",
            &[&n.to_string()],
        );
        for (asked, count) in [
            (query("insert into t (n) values (1), (2) returning id"), 2),
            (query("select nextval('t_id_seq')"), 1),
            (
                query("insert into t (id, n) values (shardway.next_id(), 1) returning id"),
                1,
            ),
            (bound.sync().0, 1),
        ] {
            let answer = client.ask(&asked);
            let found = numbers(&answer);
            assert_eq!(found.len(), count, "{answer:?}");
            ids.extend(found);
        }
    }
    ids
}

/// What a shard gives past the proxies.
fn given_past(mut client: Client) -> Vec<i64> {
    let many = "select shardway.next_id() from generate_series(1, 3000)";
    let ids = numbers(&client.ask(&query(many)));
    assert!(ids.is_sorted_by(|a, b| a < b), "they grow");
    ids
}

fn shards_have_numbers(stand: &mut Stand) {
    until("shards have numbers", || {
        let numbers = stand.seen("select count(*) from shardway.this_node");
        numbers.iter().all(|number| number == "1")
    });
}

#[test]
fn nobody_gives_an_id_or_a_number_that_another_gave() {
    let three = Three {
        ddl: "create table t (id bigserial primary key, n int)",
        ..Three::new("ids_many")
    };
    let mut stand = three.start();
    let one = "insert into t (n) values (0)";
    ready(&mut stand, one);
    let blocks = Three {
        database: "sequence_block = 7",
        ..three
    }
    .proxy();
    let is_ready = |proxy: &Proxy| proxy.client().ask(&query(one))[0].starts_with('C');
    until("the other is ready", || is_ready(&blocks));
    shards_have_numbers(&mut stand);
    let through = [&stand.proxy, &stand.proxy, &blocks, &blocks].map(Proxy::client);
    let port = postgres().port();
    let past =
        [0, 1, 2, 0, 1, 2].map(|at| Client::connect_to(port, &format!("ids_many_{at}"), &[]));
    let all: Vec<i64> = std::thread::scope(|scope| {
        let through = through.map(|client| scope.spawn(|| given_through(client)));
        let past = past.map(|client| scope.spawn(|| given_past(client)));
        let all = through.into_iter().chain(past);
        all.flat_map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(all.len(), 4 * 60 * 5 + 6 * 3000);
    let apart: HashSet<i64> = all.iter().copied().collect();
    assert_eq!(apart.len(), all.len());
    // A proxy that comes later gives others, and greater ones.
    let again = three.proxy();
    until("it is ready", || is_ready(&again));
    let own = "insert into t (id, n) values (shardway.next_id(), 1), (shardway.next_id(), 1) returning id";
    let most = all.iter().max().unwrap();
    let answer = again.client().ask(&query(own));
    let ids = numbers(&answer);
    assert!(
        ids.len() == 2 && ids.iter().all(|id| id > most),
        "{answer:?}"
    );
}

#[test]
fn tables_made_through_the_proxy_give_their_ids() {
    let mut stand = start(
        "ids_made",
        "create schema app",
        &["public.a", "public.b", "public.c", "app.d"],
    );
    shards_have_numbers(&mut stand);
    for sql in [
        "create table a (id bigserial primary key, n int)",
        "create table b (id bigint generated always as identity primary key, n serial)",
        "create table c (id bigint primary key default shardway.next_id(), n int)",
        "create table app.d (id serial primary key, n bigint generated by default as identity)",
    ] {
        let made = stand.ask(sql);
        assert_eq!(made[0], "C CREATE TABLE\\0", "{sql}: {made:?}");
    }
    for (insert, expected) in [
        ("insert into a (n) values (1), (2), (3) returning id", "D 3"),
        ("insert into b default values returning id, n", "D 1|1"),
        ("insert into app.d default values returning id, n", "D 1|1"),
    ] {
        let answer = stand.ask(insert);
        assert!(
            answer.contains(&expected.to_owned()),
            "{insert}: {answer:?}"
        );
    }
    let ids = numbers(&stand.ask("insert into c (n) values (1), (2) returning id"));
    assert!(ids.len() == 2 && ids[0] < ids[1], "{ids:?}");
    // Within the transaction that changes a default nobody knows it yet.
    stand.ask("begin");
    stand.ask("alter table a alter id set default 77");
    stand.fails("insert into a (n) values (4)", "null value in shard key");
    stand.ask("rollback");
    // What starts anew starts anew for all shards.
    stand.ask("select setval('a_id_seq', 40)");
    assert_eq!(
        numbers(&stand.ask("insert into a (n) values (1) returning id")),
        [41]
    );
    stand.ask("truncate a restart identity");
    assert_eq!(
        numbers(&stand.ask("insert into a (n) values (1) returning id")),
        [1]
    );
    stand.ask("alter sequence a_id_seq restart with 500");
    assert_eq!(
        numbers(&stand.ask("insert into a (n) values (1) returning id")),
        [500]
    );
}

#[test]
fn what_a_sequence_refuses_is_told_in_its_words() {
    let mut stand = Three {
        ddl: "create sequence s maxvalue 3; create table t (id bigint primary key default nextval('s'), n int); \
              create table i (id int generated always as identity primary key, n int); \
              do $$ begin create role ids_words login; exception when duplicate_object then end $$; \
              grant insert, select on t, i to ids_words",
        tables: &["public.t", "public.i"],
        pool: "size = 4\n[users.ids_words]\nauth = \"trust\"",
        ..Three::new("ids_words")
    }
    .start();
    ready(&mut stand, "insert into t (n) values (0)");
    stand.whole.ask(&query("insert into t (n) values (0)"));
    stand.all_alike(&[
        "insert into t (n) values (1), (2) returning id",
        "insert into t (n) values (3) returning id",
        "insert into t (id, n) values (nextval('nothing'), 3) returning id",
    ]);
    // Numbers are drawn as the role that inserts.
    let mut other = Client::connect_as(stand.proxy.port, "ids_words", "postgres", &[]);
    let mut whole = Client::connect_as(postgres().port(), "ids_words", "ids_words_3", &[]);
    for sql in [
        "insert into t (n) values (3) returning id",
        "insert into t (id, n) values (nextval('s'), 3) returning id",
        "insert into i (n) values (3) returning id",
    ] {
        let answers = [&mut other, &mut whole].map(|client| {
            let mut answer = client.ask(&query(sql));
            // Tables have numbers of their own.
            answer.retain(|line| !line.starts_with('T'));
            answer
        });
        assert_eq!(answers[0], answers[1], "{sql}");
    }
    // Whose they are under another role is not known.
    stand.ask("set role ids_words");
    stand.fails(
        "insert into i (n) values (3) returning id",
        "null value in shard key",
    );
}

#[test]
fn numbers_drawn_for_a_session_are_its_own() {
    let mut stand = start(
        "ids_own",
        "create table t (id bigserial primary key, n int); create sequence other",
        &["public.t"],
    );
    ready(&mut stand, "insert into t (n) values (0)");
    stand.whole.ask(&query("insert into t (n) values (0)"));
    stand.all_alike(&[
        "select lastval()",
        "select currval('t_id_seq'), lastval() as last",
        "insert into t (n) values (1), (2)",
        "select currval('public.t_id_seq'::regclass) + 1 as next, lastval()",
        "begin",
        "insert into t (n) values (3)",
        "select lastval()",
        "insert into t (id, n) values (1000, currval('t_id_seq')) returning n",
        "rollback",
        "select currval('t_id_seq')",
        "select n from t where id = 1000",
        "insert into t (n, id) values (4, nextval('t_id_seq'))",
    ]);
    stand.alike(&batch().run("select currval('t_id_seq')", &[]).sync().0, 1);
    stand.alike(
        &batch().run("select lastval(), $1::int", &["7"]).sync().0,
        1,
    );
    // Another's are never told, nor what an older draw of its own was.
    let mut other = stand.proxy.client();
    let answer = other.ask(&query("select currval('t_id_seq')"));
    assert!(answer[0].starts_with("E ERROR 55000"), "{answer:?}");
    stand.fails("select currval('other')", "55000");
    stand.ask("select nextval('t_id_seq')");
    for sql in ["select lastval()", "select currval('t_id_seq')"] {
        stand.fails(sql, "55000");
    }
    let mut own = stand.proxy.client();
    for (sql, expected) in [
        ("begin", "C BEGIN\\0"),
        ("select nextval('other')", "D 1"),
        ("select currval('other')", "D 1"),
        ("select lastval()", "D 1"),
        ("commit", "C COMMIT\\0"),
        ("discard all", "C DISCARD ALL\\0"),
    ] {
        let answer = own.ask(&query(sql));
        assert!(answer.contains(&expected.to_owned()), "{sql}: {answer:?}");
    }
}

#[test]
fn time_is_lent_once_and_a_clock_that_goes_back_gives_no_id_again() {
    let mut stand = start("ids_lent", "select 1", &[]);
    shards_have_numbers(&mut stand);
    let nodes = stand.seen("select node from shardway.this_node");
    assert_eq!(nodes.iter().collect::<HashSet<_>>().len(), 3, "{nodes:?}");
    let home = &mut stand.shards[0];
    let lent = |home: &mut Client, holder: &str| -> Vec<i64> {
        let sql = format!("select node, \"from\", until from shardway.lend('{holder}', 1000)");
        let answer = home.ask(&query(&sql));
        let row = answer[1]
            .strip_prefix("D ")
            .unwrap_or_else(|| panic!("{answer:?}"));
        row.split('|').map(|part| part.parse().unwrap()).collect()
    };
    let (first, other, again) = (lent(home, "a"), lent(home, "b"), lent(home, "a"));
    assert_ne!(first[0], other[0]);
    assert_eq!(
        (again[0], again[1]),
        (first[0], first[2]),
        "it goes on where it ended"
    );
    // When all have been used, the one whose time ended first is lent again, from there.
    home.ask(&query(
        "insert into shardway.node select n, 'old ' || n, 2000000000000 + n from generate_series(0, 1023) n \
         on conflict do nothing; update shardway.node set until = 2000000000000 where until < 2000000000000; \
         update shardway.node set until = 1900000000000 where holder = 'b'",
    ));
    let taken = lent(home, "c");
    assert_eq!(taken, [other[0], 1_900_000_000_000, 1_900_000_001_000]);
    // Ids go on from the last, wherever the clock is.
    for shard in &mut stand.shards {
        let next = |shard: &mut Client| {
            shard
                .value("select shardway.next_id()")
                .parse::<i64>()
                .unwrap()
        };
        let before = next(shard);
        shard.ask(&query(
            "select setval('shardway.id_clock', last_value + (3600000::bigint << 12)) from shardway.id_clock",
        ));
        let ahead = [next(shard), next(shard), next(shard)];
        assert!(ahead[0] > before + (3_000_000 << 22), "{before} {ahead:?}");
        assert!(ahead.is_sorted_by(|a, b| a + 1 == *b), "{ahead:?}");
    }
    // Nobody but the control role is lent anything, or moves a clock.
    let mut stranger = stand.proxy.client();
    stranger.ask(&query("create role ids_stranger"));
    for sql in [
        "select shardway.lend('x', 1)",
        "select nextval('shardway.id_clock')",
        "select * from shardway.node",
    ] {
        let mut home = Client::connect_to(postgres().port(), "ids_lent_0", &[]);
        home.ask(&query("set role ids_stranger"));
        let answer = home.ask(&query(sql));
        assert!(
            answer.iter().any(|line| line.starts_with("E ERROR 42501")),
            "{sql}: {answer:?}"
        );
        assert_eq!(home.ask(&query("select shardway.next_id() > 0"))[1], "D t");
    }
    stranger.ask(&query("drop role ids_stranger"));
}
