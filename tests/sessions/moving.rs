//! UPDATE of the shard key: rows move to the shard that their new key belongs to, and the client sees what one PostgreSQL
//! with all rows would tell it.

use crate::{
    client::{Client, batch, query},
    three::{Stand, Three},
};

const TABLES: &str = "create type mood as enum ('sad', 'happy'); create domain short as varchar(4) check (value <> 'no'); \
    create type pair as (a int, b text); create table countries (code text primary key, name text); \
    create table t (id bigint, n int not null check (n < 1000), name varchar(5) default 'none', chance float8, exact numeric, doc json, \
      feeling mood, brief short, two pair, list int[], at timestamptz default now(), span interval, raw bytea, pad char(3), \
      twice int generated always as (n * 2) stored, number int generated always as identity, primary key (id, n)); \
    create table items (id bigint, n int, v text, primary key (id, n)); \
    create table parents (id bigint primary key); create table children (id bigint references parents, n int); \
    create table watched (id bigint primary key, n int); \
    create function touch() returns trigger language plpgsql as 'begin new.n := 7; return new; end'; \
    create trigger touches before update on watched for each row execute function touch(); \
    create table guarded (id bigint primary key, n int); alter table guarded enable row level security; \
    alter table guarded force row level security; create policy own on guarded using (n > 0); \
    create table parts (id bigint, n int) partition by range (id); create table parts_all partition of parts default";

fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: TABLES,
        tables: &[
            "public.t",
            "public.items",
            "public.parents",
            "public.children",
            "public.watched",
            "public.guarded",
            "public.parts",
        ],
        reference: &["public.countries"],
        ..Three::new(name)
    }
    .start();
    stand.all_alike(&[
        "insert into t (id, n, name, chance, exact, doc, feeling, brief, two, list, at, span, raw, pad, number) overriding system value values \
         (1, 1, 'one', 0.1::float8 + 0.2, 1.2300, '{\"a\":  1, \"a\": 2}', 'sad', 'yes', '(1,\"x y\")', '{1,null,3}', '2026-01-01', '1 mon -2 days 3 h', '\\x00ff', 'a', 11), \
         (1, 2, 'two', 'NaN', 'NaN', null, 'happy', null, null, '[0:1]={1,2}', 'infinity', '-1 s', '', 'abc', 12), \
         (101, 1, 'abc', 1e-300, 123456789012345678901234567890, '[1 , 2]', null, 'x', '(,)', '{}', null, null, null, null, 13), \
         (150, 3, null, '-Infinity', 0, 'null', null, null, null, null, '-infinity', null, null, null, 14), \
         (201, 4, 'far', 5e-324, -0.00, '\"x\"', 'sad', null, null, null, '2000-01-01', '100 years', null, 'zz', 15)",
        "insert into items (id, n, v) values (1, 1, 'a'), (1, 2, 'b'), (101, 1, 'c'), (201, 4, 'd')",
    ]);
    stand.all_alike(&["insert into countries (code, name) values ('a', 'alpha'), ('b', 'beta')"]);
    stand
}

/// All rows, in order, as PostgreSQL has them and as the shards have them together, each where it belongs.
fn same_rows(stand: &mut Stand, table: &str) {
    let all = format!(
        "select coalesce(string_agg(x::text, '|'), '') from (select {table}::text as x from {table}) y"
    );
    let sorted = |text: &str| {
        let mut rows: Vec<String> = text
            .split('|')
            .filter(|row| !row.is_empty())
            .map(str::to_owned)
            .collect();
        rows.sort();
        rows
    };
    let whole = sorted(&stand.whole.value(&all));
    let shards = sorted(&stand.seen(&all).join("|"));
    assert_eq!(shards, whole);
    let apart = format!(
        "select count(*) filter (where id < 100) || ' ' || count(*) filter (where id >= 100 and id < 200) || ' ' || count(*) filter (where id >= 200) from {table}"
    );
    for (at, counts) in stand.seen(&apart).iter().enumerate() {
        let elsewhere: Vec<&str> = counts
            .split(' ')
            .enumerate()
            .filter(|(place, _)| *place != at)
            .map(|(_, count)| count)
            .collect();
        assert_eq!(
            elsewhere,
            ["0", "0"],
            "shard {at} has rows of others: {counts}"
        );
    }
}

#[test]
fn rows_move_with_every_value_they_have() {
    let mut stand = stand("moving_values");
    for text in [
        "update t set id = 205 where id = 1 and n = 1 returning id, n, name, chance, exact, doc, feeling, brief, two, list, at, span, raw, pad, twice, number",
        "update t set id = id + 100 where id = 1",
        "update t set id = id - 100 where id = 101 returning *",
        "update t set id = 210, n = n + 5, name = 'x', feeling = 'happy' where id = 150 returning n, twice, feeling, name",
        "update t set id = '7', name = name || 'y', exact = exact * 1.50, list = list || 4 where n = 4 returning id, name, exact, list",
        "update t set id = 8 where id = 999",
        "update t set id = id + 300",
        "update t set id = (id - 400) * 1.5 where id > 300",
    ] {
        stand.alike(&query(text), 1);
        same_rows(&mut stand, "t");
    }
    // Settings that make text lose something.
    stand.all_alike(&[
        "set extra_float_digits = 0",
        "set datestyle = 'sql, dmy'",
        "set intervalstyle = 'sql_standard'",
    ]);
    stand.alike(
        &query("update t set id = id + 50, chance = chance + 1e-17 where id is not null"),
        1,
    );
    stand.all_alike(&[
        "reset extra_float_digits",
        "reset datestyle",
        "reset intervalstyle",
    ]);
    same_rows(&mut stand, "t");
}

#[test]
fn a_key_may_be_a_parameter() {
    let mut stand = stand("moving_parameters");
    let prepared = batch()
        .parse("m", "update t set id = $2, name = $3 where id = $1 and n < $4 returning id, n, name, $3 || 'x'")
        .describe("m")
        .sync()
        .call("m", &["1", "201", "new", "9"])
        .sync()
        .call("m", &["201", "201", "same", "9"])
        .sync()
        .call("m", &["101", "102", "shard", "9"])
        .sync();
    stand.alike(&prepared.0, 4);
    same_rows(&mut stand, "t");
    stand.alike(
        &batch()
            .query("begin")
            .run("update items set id = id + $1", &["150"])
            .run("update items set v = v || $1 where id = $2", &["!", "351"])
            .sync()
            .query("commit")
            .0,
        3,
    );
    same_rows(&mut stand, "items");
}

#[test]
fn errors_are_those_of_the_update_and_nothing_stays() {
    let mut stand = stand("moving_errors");
    for text in [
        "update t set id = 101 where id = 1 and n = 1",
        "update t set id = 205, n = 1000 where id = 1 and n = 1",
        "update t set id = 205, n = null where id = 1",
        "update t set id = 205, name = 'too long for it' where id = 1",
        "update t set id = 205, brief = 'no' where id = 1",
        "update t set id = 205, feeling = 'none' where id = 1",
        "update t set id = 205, twice = 1 where id = 1",
        "update t set id = 205, number = 1 where id = 1",
        "update t set id = 205, missing = 1 where id = 1",
        "update t set id = id + 1 / (n - 1) where id = 1",
        "update children set id = 205",
    ] {
        stand.alike(&query(text), 1);
        same_rows(&mut stand, "t");
    }
    stand.all_alike(&[
        "insert into parents values (1), (201)",
        "insert into children values (1, 1)",
    ]);
    stand.all_alike(&["update children set id = 201 where id = 1 returning *"]);
    stand.alike(&query("update children set id = 101 where id = 201"), 1);
    same_rows(&mut stand, "children");
    stand.fails("update t set id = null where id = 1", "23502");
    stand.all_alike(&["begin", "update t set id = id + 103", "rollback"]);
    same_rows(&mut stand, "t");
}

#[test]
fn values_may_come_from_other_tables() {
    let mut stand = stand("moving_from");
    for text in [
        "update items set id = items.id + 100, v = c.name from countries c where c.code = items.v",
        "update items i set id = i.id + 120 from t where t.id = i.id and t.n = i.n",
        "with c as (select 'beta' as name) update items set id = 5 from c where c.name = v",
        "update items set id = id + 7, v = (select max(name) from countries) where exists (select from t where t.id = items.id)",
    ] {
        stand.alike(&query(text), 1);
        same_rows(&mut stand, "items");
    }
    // Which of two rows changes it is open, and so is where it goes.
    stand.fails(
        "update items set id = x.id from (values (1), (201)) x (id) where items.v = 'd'",
        "shard key",
    );
    stand.all_alike(&[
        "begin",
        "update items set id = 202 where id = 5",
        "update items set v = 'later' where id = 202",
        "commit",
    ]);
    same_rows(&mut stand, "items");
}

#[test]
fn rows_stay_where_more_than_the_rows_is_at_stake() {
    let mut stand = stand("moving_refused");
    stand.all_alike(&["insert into parents values (5)"]);
    stand.ask("insert into watched values (1, 1)");
    for (text, with) in [
        (
            "update watched set id = 101 where id = 1",
            "cannot be moved",
        ),
        (
            "update parents set id = 101 where id = 5",
            "cannot be moved",
        ),
        ("update parts set id = 101 where id = 5", "cannot be moved"),
        ("update t set id = default where id = 1", "shard key"),
        ("update t set (id, n) = (205, 1) where id = 1", "shard key"),
        (
            "update items set id = c.n from (values (205)) c (n) where items.id = 1 returning c.n",
            "shard key",
        ),
        (
            "insert into items (id, n) values (1, 1) on conflict (id, n) do update set id = 205",
            "shard key",
        ),
    ] {
        stand.fails(text, with);
    }
    same_rows(&mut stand, "items");
}

#[test]
fn who_waits_for_a_moving_row_goes_on_as_on_one_server() {
    let mut stand = stand("moving_waits");
    let port = stand.proxy.port;
    // The other knows the row by its old key, by none, and by its new one.
    for (at, (other, seen)) in [
        (
            "update items set v = v || '!' where id = 1 and n = 1",
            "UPDATE 0",
        ),
        (
            "update items set v = v || '!' where n = 1 and v like 'a%'",
            "UPDATE 1",
        ),
        ("delete from items where n = 1 and v like 'a%'", "DELETE 1"),
    ]
    .into_iter()
    .enumerate()
    {
        stand.ask("delete from items where v like 'a%'");
        stand.ask("insert into items values (1, 1, 'a')");
        stand.ask("begin");
        let moved = stand.ask("update items set id = 150 where id = 1 and n = 1");
        assert_eq!(moved[0], "C UPDATE 1\\0", "{at}");
        let mut client = Client::connect(port, &[]);
        client.send(&query(other));
        let waits = "select count(*) from pg_locks where not granted";
        crate::harness::until("the other waits", || stand.whole.value(waits) != "0");
        stand.ask("commit");
        assert_eq!(client.answers(1)[0], format!("C {seen}\\0"), "{at}");
    }
}

#[test]
fn movers_and_writers_at_once_lose_nothing() {
    let mut stand = stand("moving_race");
    stand.ask("delete from items");
    stand.ask("insert into items select 1, 1, '0'");
    stand.ask("insert into items values (1, 2, '0'), (101, 3, '0'), (201, 4, '0')");
    let port = stand.proxy.port;
    let workers =
        [0, 1, 2, 3].map(|worker| std::thread::spawn(move || move_or_write(port, worker)));
    let added: i32 = workers.map(|worker| worker.join().unwrap()).iter().sum();
    let sums = stand.seen("select coalesce(sum(v::int), 0) from items where n > 1");
    let sum: i32 = sums.iter().map(|sum| sum.parse::<i32>().unwrap()).sum();
    assert_eq!(sum, added);
}

/// The first two move rows, the others write them all and add up what they wrote.
fn move_or_write(port: u16, worker: u32) -> i32 {
    let mut client = Client::connect(port, &[]);
    let mut added = 0;
    for round in 0..25 {
        let sql = if worker < 2 {
            format!(
                "update items set id = (id + 97 * {}) % 300 where n = {}",
                round + 1,
                2 + (round + worker) % 3
            )
        } else {
            "update items set v = (v::int + 1)::text where n > 1".to_owned()
        };
        let answer = client.ask(&query(&sql));
        let tag = answer[0]
            .strip_prefix("C UPDATE ")
            .map(|rest| rest.trim_end_matches("\\0"));
        let failed = answer[0].contains(" 40P01 ");
        assert!(tag.is_some() || failed, "{answer:?}");
        if worker >= 2
            && let Some(count) = tag
        {
            assert_eq!(count, "3", "a row was met on no shard, or on two");
            added += 3;
        }
    }
    added
}

#[test]
fn rows_are_made_of_those_that_they_stay_with() {
    let mut stand = stand("moving_selected");
    for text in [
        "insert into t (id, n, name, number) overriding system value select id, n + 10, v, 100 + n from items",
        "insert into items (id, n, v) select id, count(*) + 20, max(v) from items group by id",
        "insert into items (id, n) select i.id, i.n + 30 from items i join t on t.id = i.id and t.n = i.n where exists (select from countries where code = i.v)",
        "insert into items select id, n, 'again' from items where id in (1, 101) on conflict (id, n) do update set v = excluded.v",
        "insert into items (id, n) select id, n from items",
        "insert into items (v, id, n) select c.name, i.id, 40 from items i join countries c on c.code = i.v",
    ] {
        stand.alike(&query(text), 1);
        same_rows(&mut stand, "items");
    }
    stand.alike(
        &batch()
            .run(
                "insert into items (id, n, v) select id, $1 + n, $2 from t where n < $3",
                &["60", "p", "4"],
            )
            .sync()
            .0,
        1,
    );
    same_rows(&mut stand, "items");
    stand.ask("insert into t (id, n, number) overriding system value select id, n + 100, 7 from items where n < 5");
    let times = stand.seen(
        "select coalesce(max(at)::text, 'none') || count(distinct at) from t where number = 7",
    );
    assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
}

#[test]
fn merge_does_on_every_shard_what_is_with_its_rows() {
    let mut stand = stand("moving_merged");
    for text in [
        "merge into items i using t on i.id = t.id and i.n = t.n when matched then update set v = t.name when not matched then insert (id, n, v) values (t.id, t.n + 50, 'new')",
        "merge into items using countries c on items.v = c.code when matched then delete",
        "merge into items i using (values (1, 'x'), (201, 'y'), (7, 'z')) s (id, v) on i.id = s.id and i.n < 50 when matched then update set v = s.v",
        "merge into items i using t on i.id = t.id when matched and t.n < 0 then delete when not matched then do nothing",
        "merge into items i using (values (1), (1)) s (id) on i.id = s.id when matched then update set v = 'twice'",
    ] {
        stand.alike(&query(text), 1);
        same_rows(&mut stand, "items");
    }
    stand.alike(&batch().run("merge into items i using t on i.id = t.id and t.n = $1 when matched then update set v = $2", &["4", "far"]).sync().0, 1);
    same_rows(&mut stand, "items");
    stand.ask("merge into t using items i on t.id = i.id and t.n = i.n + 100 when not matched then insert (id, n, number) overriding system value values (i.id, i.n + 100, 8)");
    let times = stand.seen("select max(at) || ' ' || count(distinct at) from t where number = 8");
    assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
}
