//! DateStyle given in part, by whatever says it, is completed as PostgreSQL completes it: by what the session has, or by
//! the role's own, never by who had the backend before.

use crate::{
    client::{Client, query},
    harness::{Proxy, observer, postgres, same},
};

const SHOWN: &str = "select current_setting('datestyle'), date '2020-02-03'";

const SAID: &[&str] = &[
    "select set_config('datestyle', 'german', false)",
    "select set_config('DateStyle', 'ymd', false)",
    "begin; set local datestyle = 'sql'",
    "set local datestyle = 'dmy'",
    "set datestyle = 'mdy'",
    "commit",
    "begin",
    "select set_config('datestyle', 'postgres', true)",
    "savepoint s",
    "select set_config('datestyle', 'ymd', true)",
    "rollback to s",
    "commit",
    "begin; set datestyle = 'iso'; set datestyle = 'dmy'; rollback",
    "set datestyle to default",
    "set datestyle = 'ymd'",
    "select set_config('datestyle', 'nonsense', false)",
];

#[test]
fn parts_of_datestyle_are_completed_whoever_says_them() {
    same(|stage| {
        let mut seen = Vec::new();
        for said in SAID {
            seen.extend(stage.query(said));
            for _ in 0..2 {
                seen.extend(stage.query(SHOWN));
            }
        }
        seen.into_iter()
            .filter(|line| !line.starts_with("S "))
            .collect()
    });
}

#[test]
fn parts_of_datestyle_are_completed_by_the_roles_own() {
    let mut admin = observer();
    admin.ask(&query("create role styled login"));
    admin.ask(&query("alter role styled set datestyle = 'German, DMY'"));
    let port = postgres().port();
    let shards = format!(
        "[databases.postgres]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n\
         [users.styled]\nauth = \"trust\"\n"
    );
    let proxy = Proxy::with("size = 1\nwait_timeout = \"10s\"", &shards);
    let play = |port: u16, started: &[(&str, &str)]| -> Vec<String> {
        let mut client = Client::connect_as(port, "styled", "postgres", started);
        let mut between =
            Client::connect_as(port, "styled", "postgres", &[("DateStyle", "sql, mdy")]);
        let mut seen = Vec::new();
        for said in SAID {
            let answers = client.ask(&query(said));
            let own = answers.last().is_some_and(|last| last == "Z I");
            if own {
                let seen = between.ask(&query("show datestyle"));
                assert_eq!(seen[1], "D SQL, MDY", "{said}: {seen:?}");
            }
            seen.push(client.value(SHOWN));
        }
        seen
    };
    assert_eq!(play(proxy.port, &[]), play(port, &[]));
}
