//! Defaults that each server would compute to something else: a transaction has one time on all its shards, and the
//! copies of a table have the same values.

use crate::{
    client::{batch, query},
    three::{Stand, Three},
};

const TABLES: &str = "create table t (id bigint primary key, n int, made timestamptz default now(), \
    day date default current_date, utc timestamp(3) default timezone('utc', now()), \"Later on\" text default (now() + interval '1 day')::text); \
    create table colours (code text primary key, made timestamptz not null default current_timestamp, token uuid default gen_random_uuid(), \
    chance float8 default random(), at timestamptz default clock_timestamp(), number int generated always as identity)";

fn stand(name: &str) -> Stand {
    Three {
        ddl: TABLES,
        reference: &["public.colours"],
        ..Three::new(name)
    }
    .start()
}

/// What all shards' rows have together, each different one once.
fn values(stand: &mut Stand, column: &str) -> Vec<String> {
    let all = stand.seen(&format!(
        "select coalesce(string_agg(distinct ({column})::text, '|'), '') from t"
    ));
    let mut all: Vec<String> = all
        .iter()
        .flat_map(|shard| shard.split('|'))
        .map(str::to_owned)
        .collect();
    all.retain(|value| !value.is_empty());
    all.sort();
    all.dedup();
    all
}

fn done(stand: &mut Stand, sql: &str) {
    let found = stand.ask(sql);
    assert!(
        found.iter().all(|line| !line.starts_with('E')),
        "{sql}: {found:?}"
    );
}

#[test]
fn a_transaction_over_shards_has_one_time_in_all_its_defaults() {
    let mut stand = stand("defaults_of_transactions");
    for (at, texts) in [
        vec!["insert into t (id) values (1)", "insert into t (id) values (101)", "insert into t (id, n) values (201, 5)"],
        vec!["insert into t (id) values (101), (1), (201)"],
        vec!["insert into t (id) values (1)", "insert into t values (101, 1), (201, 2)"],
        vec!["insert into t (id, made) values (1, default)", "insert into t (id, n, made) values (101, 2, default) returning made"],
        vec!["insert into t (id, made) values (1, now())", "insert into t (id, made) values (101, now()) on conflict (id) do update set made = default"],
        vec!["select now()", "insert into t (id) values (101)", "insert into t (id, n) values (1, 1) returning *"],
        vec!["insert into t (id) values (1)", "update t set made = default, utc = default, n = 1 where id = 150", "update t set n = 2 where id = 1"],
        vec!["insert into t (id) values (1)", "update t set made = now() where id in (1, 150)"],
        vec!["update t set made = default, day = default, utc = default, \"Later on\" = default"],
    ]
    .into_iter()
    .enumerate()
    {
        done(&mut stand, "delete from t");
        done(&mut stand, "insert into t (id, made, utc, day, \"Later on\") values (150, null, null, null, null)");
        done(&mut stand, "begin");
        for text in texts {
            done(&mut stand, text);
        }
        done(&mut stand, "commit");
        assert_eq!(values(&mut stand, "made").len(), 1, "{at}");
        for other in ["timezone('utc', made)::timestamp(3) = utc", "coalesce(made::date = day, true)", "coalesce((made + interval '1 day')::text = \"Later on\", true)"] {
            let same = values(&mut stand, other);
            assert!(same.is_empty() || same == ["true"], "{at} {other} {same:?}");
        }
    }
}

#[test]
fn a_statement_over_shards_has_one_time_in_its_defaults() {
    let mut stand = stand("defaults_of_statements");
    done(
        &mut stand,
        "insert into t (id, n) values (1, 1), (101, 2), (201, 3)",
    );
    assert_eq!(values(&mut stand, "made").len(), 1);
    done(
        &mut stand,
        "insert into t values (2, 1), (102, 2), (202, 3) on conflict do nothing",
    );
    assert_eq!(values(&mut stand, "made").len(), 2);
    let found = stand.sharded.ask(
        &batch()
            .run("insert into t (id, n, made) values ($1, $2, default), ($3, $4, '2020-01-01'), ($5, 7, default) returning id, n", &["3", "1", "103", "2", "203"])
            .sync().0,
    );
    assert!(
        found.iter().any(|line| line == "C INSERT 0 3\\0"),
        "{found:?}"
    );
    assert_eq!(values(&mut stand, "made").len(), 4);
}

#[test]
fn prepared_statements_of_a_transaction_have_its_time() {
    let mut stand = stand("defaults_of_prepared");
    let found = stand.sharded.ask2(
        &batch()
            .query("begin")
            .parse(
                "one",
                "insert into t (id, n) values ($1, $2) returning id, n",
            )
            .bind("", "one", &["1", "1"])
            .execute("", 0)
            .bind("", "one", &["101", "1"])
            .execute("", 0)
            .bind("", "one", &["102", "2"])
            .execute("", 0)
            .sync()
            .0,
    );
    assert_eq!(
        found
            .iter()
            .filter(|line| *line == "C INSERT 0 1\\0")
            .count(),
        3,
        "{found:?}"
    );
    done(&mut stand, "commit");
    assert_eq!(values(&mut stand, "made").len(), 1);
    assert_eq!(values(&mut stand, "n"), ["1", "2"]);
}

#[test]
fn time_is_told_where_the_transaction_has_it() {
    let mut stand = stand("defaults_told");
    for text in [
        "begin",
        "insert into t (id) values (1)",
        "insert into t (id) values (101)",
    ] {
        done(&mut stand, text);
    }
    let told = stand.sharded.value("select now()");
    done(&mut stand, "commit");
    assert_eq!(values(&mut stand, "made"), [told]);
}

#[test]
fn copies_of_a_table_have_the_same_defaults() {
    let mut stand = stand("defaults_of_copies");
    for text in [
        "insert into colours (code) values ('red') returning token",
        "insert into colours (code) values ('green'), ('blue')",
        "insert into colours (code, made, token) values ('black', default, default), ('white', '2020-01-01', null)",
        "insert into colours values ('grey')",
        "insert into colours (code, number) overriding system value values ('pink', 100)",
        "begin",
        "insert into t (id) values (101)",
        "insert into colours (code) values ('brown') on conflict (code) do update set made = default",
        "update colours set made = default where code = 'red'",
        "commit",
    ] {
        done(&mut stand, text);
    }
    let all = stand.seen("select string_agg(c::text, ';' order by code) from colours c");
    assert!(all.iter().all(|one| *one == all[0]), "{all:#?}");
    let count = "select count(distinct code) || ' ' || count(distinct token) || ' ' || count(distinct number) || ' ' || count(distinct chance) from colours";
    assert_eq!(stand.seen(count)[0], "8 7 8 8");
    let times = values(&mut stand, "made");
    assert_eq!(
        stand.seen(&format!(
            "select count(*) from colours where made = '{}'",
            times[0]
        ))[1],
        "2"
    );
    // What none could have drawn for all copies.
    stand.fails("update colours set token = default", "reference table");
    stand.alike(
        &query("insert into colours (code, number) values ('x', 1)"),
        1,
    );
}

#[test]
fn what_one_shard_writes_has_the_time_that_another_told() {
    let mut stand = Three {
        ddl: "create table t (id bigint primary key, n int, made timestamptz default now()); \
            create table journal (n int, made timestamptz default now())",
        database: "unlisted_tables = \"s2\"",
        ..Three::new("defaults_of_singles")
    }
    .start();
    for text in [
        "begin",
        "insert into t (id) values (1)",
        "insert into journal (n) values (1), (2)",
        "insert into t (id, n) select 101, 5",
        "update t set made = now() where id = 101",
        "insert into journal (n) select n from t where id = 201",
        "insert into t (id) select 201",
        "merge into t using (values (1)) s (n) on t.id = 202 when not matched then insert (id, n) values (202, s.n)",
        "commit",
    ] {
        done(&mut stand, text);
    }
    let mut all = stand.seen("select coalesce(min(made)::text, 'none') || count(distinct made) from (select made from t union all select made from journal) x");
    all.dedup();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(stand.seen("select count(*) from journal")[2], "2");
}
