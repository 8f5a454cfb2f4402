//! Triggers and policies of a table that one shard has: those that reach rows of other shards are refused, the others run.

use crate::{
    client::{Client, query},
    harness::{Proxy, postgres, until},
};

const MADE: &[&str] = &[
    "create table orders (k bigint, n int)",
    "create table countries (code text)",
    "create table audit (note text)",
    "create table parts (n int) partition by range (n)",
    "create table parts_0 partition of parts for values from (0) to (100)",
    "create function counts() returns bigint language sql as 'select count(*) from orders'",
    "create function reaches() returns trigger language plpgsql as $f$ begin new.note := counts(); return new; end $f$",
    "create function changes() returns trigger language plpgsql as $f$ begin insert into countries values ('x'); return new; end $f$",
    "create function keeps() returns trigger language plpgsql as $f$ begin insert into audit values (new.note); insert into parts values (1); return new; end $f$",
    "create view seen as select n from orders",
    "create function looks() returns trigger language plpgsql as $f$ begin new.note := (select max(n) from seen); return new; end $f$",
    "create function indirectly() returns trigger language plpgsql as $f$ begin insert into reaching values ('y'); return new; end $f$",
    "create table reaching (note text)",
    "create trigger t before insert on reaching for each row execute function reaches()",
    "create table changing (note text)",
    "create trigger t after update on changing for each row execute function changes()",
    "create table keeping (note text)",
    "create trigger t after insert on keeping for each row execute function keeps()",
    "create table looking (note text)",
    "create trigger t before insert on looking for each row execute function looks()",
    "create table indirect (note text)",
    "create trigger t before insert on indirect for each row execute function indirectly()",
    "create table guarded (note text)",
    "create policy p on guarded using (exists (select from orders))",
    "alter table guarded enable row level security",
    "create table accepted (note text)",
    "create trigger t before insert on accepted for each row execute function reaches()",
];

/// Two shards; the tables that hold notes are on the first, listed or not.
fn stage(name: &str, (unlisted, tables): (&str, &str)) -> Proxy {
    let server = postgres().port();
    let mut admin = Client::connect(server, &[]);
    for at in 0..2 {
        admin.ask(&query(&format!("create database {name}_{at}")));
        let mut shard = Client::connect_to(server, &format!("{name}_{at}"), &[]);
        for sql in MADE {
            let seen = shard.ask(&query(sql));
            assert!(seen[0].starts_with('C'), "{sql}: {seen:?}");
        }
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/{name}_{at}?sslmode=disable\" }}\n"
        )
    };
    let databases = format!(
        "[databases.notes]\n{unlisted}per_shard = [\"public.accepted.t\"]\n{}{}[databases.notes.groups.g]\nmethod = \"hash\"\n\
         key_type = \"bigint\"\ntables = {{ \"public.orders\" = \"k\" }}\n[databases.notes.tables]\n\
         reference = [\"public.countries\"]\n{tables}\n",
        shard(0),
        shard(1)
    );
    Proxy::with("size = 2", &databases)
}

fn is_refused(client: &mut Client, sql: &str) -> bool {
    let seen = client.ask(&query(sql));
    let error = seen.iter().find(|line| line.starts_with('E'));
    error.is_some_and(|error| {
        assert!(
            error.contains("what acts on one shard only"),
            "{sql}: {seen:?}"
        );
        true
    })
}

#[test]
fn what_reaches_other_shards_from_a_table_of_one_is_refused() {
    let listed = "single = { \"public.audit\" = \"s0\", \"public.parts\" = \"s0\", \"public.reaching\" = \"s0\", \
                  \"public.changing\" = \"s0\", \"public.keeping\" = \"s0\", \"public.looking\" = \"s0\", \
                  \"public.indirect\" = \"s0\", \"public.guarded\" = \"s0\", \"public.accepted\" = \"s0\" }";
    for (name, tables) in [
        ("listed", ("", listed)),
        ("loose", ("unlisted_tables = \"s0\"\n", "")),
    ] {
        let proxy = stage(name, tables);
        let mut client = Client::connect_as(proxy.port, "postgres", "notes", &[]);
        until("the triggers are known", || {
            is_refused(&mut client, "insert into reaching values ('x')")
        });
        for sql in [
            "insert into reaching select 'x'",
            "copy reaching from stdin",
            "with new as (insert into reaching values ('x') returning 1) select * from new",
            "update public.changing set note = 'x'",
            "insert into looking (note) values ('x')",
            "insert into indirect values ('x')",
            "select * from guarded",
            "copy guarded to stdout",
            "delete from guarded",
        ] {
            assert!(is_refused(&mut client, sql), "{name}: {sql}");
        }
        for sql in [
            "insert into keeping values ('x')",
            "delete from reaching",
            "select * from reaching",
            "insert into changing values ('x')",
            "insert into accepted values ('x')",
            "insert into audit values ('x')",
        ] {
            assert!(!is_refused(&mut client, sql), "{name}: {sql}");
        }
    }
}
