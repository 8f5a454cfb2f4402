//! What the proxy asks and tells for itself: no client's settings reach it.

use crate::{
    client::{Client, query},
    harness::{Proxy, postgres},
};

#[test]
fn what_we_ask_is_not_answered_by_a_clients_search_path() {
    let server = postgres().port();
    let mut admin = Client::connect(server, &[]);
    for at in 0..2 {
        admin.ask(&query(&format!("create database trapped_{at}")));
        let mut shard = Client::connect_to(server, &format!("trapped_{at}"), &[]);
        for sql in [
            "create table seen (what text)",
            "create table public.t (id bigint primary key)",
            "create schema trap",
            "create function trap.note(what text) returns text language plpgsql security definer as \
             $f$ begin insert into public.seen values (what); return what; end $f$",
            "create function trap.current_setting(name text) returns text language sql as $f$ select trap.note(name) $f$",
            "create function trap.set_config(a text, b text, c bool) returns text language sql as $f$ select trap.note(a) $f$",
            "create function trap.join(a text, b text) returns text language sql as $f$ select trap.note(a) $f$",
            "create operator trap.|| (leftarg = text, rightarg = text, function = trap.join)",
            "create view trap.pg_class as select trap.note('pg_class')",
        ] {
            let seen = shard.ask(&query(sql));
            assert!(seen[0].starts_with('C'), "{sql}: {seen:?}");
        }
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/trapped_{at}?sslmode=disable\" }}\n"
        )
    };
    let databases = format!(
        "[databases.postgres]\n{}{}[databases.postgres.groups.g]\nmethod = \"hash\"\nkey_type = \"bigint\"\n\
         tables = {{ \"public.t\" = \"id\" }}\n",
        shard(0),
        shard(1)
    );
    let proxy = Proxy::with("size = 1", &databases);
    let settings = [
        ("search_path", "trap, pg_catalog, public"),
        ("work_mem", "3MB"),
    ];
    for _ in 0..3 {
        let mut client = Client::connect(proxy.port, &settings);
        for id in 0..6 {
            let seen = client.ask(&query(&format!("select id from public.t where id = {id}")));
            assert!(seen.contains(&"C SELECT 0\\0".to_owned()), "{seen:?}");
        }
        client.ask(&query("set work_mem = '4MB'"));
        client.ask(&query("reset work_mem"));
    }
    for at in 0..2 {
        let mut shard = Client::connect_to(server, &format!("trapped_{at}"), &[]);
        assert_eq!(shard.value("select count(*) from seen"), "0");
    }
}
