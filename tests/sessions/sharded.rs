//! Two shards: transactions that reach one late, statements that are refused in the middle.

use crate::{
    client::{Batch, Client, batch, query},
    harness::{Proxy, postgres},
};

/// A whole database, and the same table on two shards behind a proxy.
fn whole_and_sharded(table: &str) -> (Client, Client) {
    let server = postgres().port();
    let mut whole = Client::connect(server, &[]);
    let name = |at: usize| format!("{table}_{at}");
    for at in 0..3 {
        whole.ask(&query(&format!("create database {}", name(at))));
        Client::connect_to(server, &name(at), &[])
            .ask(&query("create table t (id bigint primary key, n int)"));
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/{}?sslmode=disable\" }}\n",
            name(at)
        )
    };
    let databases = format!(
        "[databases.postgres]\n{}{}[databases.postgres.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 100, shard = \"s0\" }}, {{ shard = \"s1\" }}]\ntables = {{ \"public.t\" = \"id\" }}\n",
        shard(0),
        shard(1)
    );
    let proxy = Proxy::with("size = 2", &databases);
    let whole = Client::connect_to(server, &name(2), &[]);
    (whole, proxy.only_client())
}

/// Both answer alike.
fn alike(clients: &mut (Client, Client), bytes: &[u8], readies: usize) -> Vec<String> {
    clients.0.send(bytes);
    clients.1.send(bytes);
    let plain = |lines: Vec<String>| {
        lines
            .into_iter()
            .filter(|line| !line.starts_with('T'))
            .collect::<Vec<_>>()
    };
    let (expected, found) = (
        plain(clients.0.answers(readies)),
        plain(clients.1.answers(readies)),
    );
    assert_eq!(
        found,
        expected,
        "PostgreSQL's is on the right, to {}",
        String::from_utf8_lossy(bytes).escape_debug()
    );
    found
}

fn insert(batch: Batch, id: &str) -> Batch {
    batch.run("insert into t (id, n) values ($1, 0)", &[id])
}

#[test]
fn a_transaction_on_one_shard_is_postgresqls() {
    let mut clients = whole_and_sharded("late");
    for sql in [
        "begin",
        "select 1",
        "insert into t (id, n) values (1, 1)",
        "savepoint a",
        "insert into t (id, n) values (1, 1)",
        "rollback to a",
        "insert into t (id, n) values (2, 1)",
        "commit",
        "select n from t where id = 2",
        "begin",
        "begin",
        "commit",
        "commit",
        "rollback",
        "savepoint a",
        "begin",
        "savepoint a",
        "release a",
        "release a",
        "select 1",
        "rollback",
        "begin isolation level serializable",
        "select n from t where id = 1",
        "show transaction_isolation",
        "commit and chain",
        "insert into t (id, n) values (3, 1)",
        "rollback and chain",
        "select count(*) from t where id = 3",
        "commit",
        "begin read only",
        "savepoint s",
        "insert into t (id, n) values (4, 1)",
        "rollback to s",
        "select n from t where id = 2",
        "commit",
        "begin",
        "select 1/0",
        "select 1",
        "commit",
        "begin",
        "selec",
        "rollback",
        "start transaction",
        "set local work_mem = '9MB'",
        "show work_mem",
        "select n from t where id = 2",
        "show work_mem",
        "commit",
        "show work_mem",
        "begin; insert into t (id, n) values (5, 1); commit",
        "begin; insert into t (id, n) values (6, 1); select 1/0; commit",
        "rollback",
        "select n from t where id = 6",
    ] {
        alike(&mut clients, &query(sql), 1);
    }
}

#[test]
fn a_transaction_in_one_pipeline_is_postgresqls() {
    let mut clients = whole_and_sharded("piped");
    let transaction = insert(batch().run("begin", &[]), "7")
        .run("select n from t where id = $1::bigint", &["7"])
        .run("commit", &[])
        .sync();
    alike(&mut clients, &transaction.0, 1);
    let failing = insert(insert(batch().run("begin", &[]), "8"), "8")
        .run("commit", &[])
        .sync();
    alike(&mut clients, &failing.0, 1);
    alike(&mut clients, &batch().run("rollback", &[]).sync().0, 1);
    alike(&mut clients, &query("select n from t where id = 8"), 1);
    let parsed = batch()
        .parse("i", "insert into t (id, n) values ($1, $2::int)")
        .describe("i")
        .parse("q", "select n from t where id = $1")
        .sync();
    alike(&mut clients, &parsed.0, 1);
    for id in ["9", "209", "10", "210"] {
        alike(
            &mut clients,
            &batch()
                .call("i", &[id, "5"])
                .sync()
                .call("q", &[id])
                .sync()
                .0,
            2,
        );
    }
}

#[test]
fn an_error_on_a_shard_skips_what_another_shard_would_do() {
    let mut clients = whole_and_sharded("skipped");
    let mixed = insert(batch().run("select 1/0", &[]), "300").sync();
    alike(&mut clients, &mixed.0, 1);
    alike(
        &mut clients,
        &query("select count(*) from t where id = 300"),
        1,
    );
    let mixed = insert(batch().run("select 1", &[]), "301").sync();
    alike(&mut clients, &mixed.0, 1);
}

#[test]
fn a_refused_statement_undoes_its_batch() {
    let (_, mut client) = whole_and_sharded("undone");
    let refused = insert(batch(), "1")
        .run(
            "insert into t (id, n) select id + $1::bigint, 0 from t",
            &["200"],
        )
        .parse("late", "select 1")
        .sync();
    let seen = client.ask(&refused.0);
    assert!(
        seen.iter().any(|line| line.starts_with("E ERROR 0A000")),
        "{seen:?}"
    );
    assert_eq!(seen.last().unwrap(), "Z I", "{seen:?}");
    assert_eq!(client.value("select count(*) from t where id = 1"), "0");
    let seen = client.ask(&batch().parse("late", "select 1").call("late", &[]).sync().0);
    assert_eq!(seen[2], "D 1", "{seen:?}");
    for begin in [
        "begin isolation level repeatable read",
        "begin; insert into t (id, n) values (2, 0)",
    ] {
        client.ask(&query(begin));
        client.ask(&query("insert into t (id, n) values (3, 0)"));
        let seen = client.ask(&query("insert into t (id, n) values (200, 0)"));
        assert!(
            seen[0].starts_with("E ERROR 0A000") && seen[1] == "Z E",
            "{seen:?}"
        );
        let seen = client.ask(&query("select n from t where id = 3"));
        assert!(seen[0].starts_with("E ERROR 25P02"), "{seen:?}");
        assert_eq!(client.ask(&query("commit")), ["C ROLLBACK\\0", "Z I"]);
    }
    assert_eq!(client.value("select count(*) from t where id = 3"), "0");
}

#[test]
fn a_transaction_command_behind_a_read_in_one_pipeline_is_the_clients_transactions() {
    let mut clients = whole_and_sharded("behind");
    let insert_one = insert(batch().run("begin", &[]).run("select 1", &[]), "1")
        .run("commit", &[])
        .sync();
    alike(&mut clients, &insert_one.0, 1);
    let rolled_back = insert(batch().run("begin", &[]).run("select 1", &[]), "2")
        .run("rollback", &[])
        .sync();
    alike(&mut clients, &rolled_back.0, 1);
    alike(&mut clients, &query("select n from t where id = 1"), 1);
    alike(&mut clients, &query("select n from t where id = 2"), 1);
    for sql in [
        "begin; savepoint a",
        "insert into t (id, n) values (200, 1)",
        "commit",
        "select n from t where id = 200",
    ] {
        alike(&mut clients, &query(sql), 1);
    }
    for sql in [
        "begin",
        "select 1; commit",
        "select n from t where id = 200",
        "commit",
    ] {
        alike(&mut clients, &query(sql), 1);
    }
}

#[test]
fn the_roles_own_search_path_decides_which_table_is_meant() {
    let server = postgres().port();
    let mut admin = Client::connect(server, &[]);
    for sql in [
        "create database paths_0",
        "create database paths_1",
        "create role wanderer login",
        "alter role wanderer set search_path = other",
    ] {
        admin.ask(&query(sql));
    }
    for name in ["paths_0", "paths_1"] {
        let mut shard = Client::connect_to(server, name, &[]);
        for sql in [
            "create table t (id bigint primary key)",
            "create schema other",
            "create table other.t (id bigint primary key)",
            "grant all on schema other to wanderer",
            "grant all on all tables in schema other to wanderer",
        ] {
            shard.ask(&query(sql));
        }
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/paths_{at}?sslmode=disable\" }}\n"
        )
    };
    let databases = format!(
        "[databases.paths]\n{}{}[databases.paths.groups.g]\nmethod = \"hash\"\nkey_type = \"bigint\"\n\
         tables = {{ \"public.t\" = \"id\" }}\n[users.wanderer]\nauth = \"trust\"\n",
        shard(0),
        shard(1)
    );
    let proxy = Proxy::with("size = 2", &databases);
    let mut client = Client::connect_as(proxy.port, "wanderer", "paths", &[]);
    let answer = client.ask(&query("select * from t where id = 1"));
    assert!(
        answer.iter().any(|line| line.contains("42P01")),
        "{answer:?}"
    );
}

#[test]
fn numbers_that_shards_would_repeat_are_not_given_and_those_that_step_over_each_other_are() {
    let server = postgres().port();
    let mut admin = Client::connect(server, &[]);
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/counts_{at}?sslmode=disable\" }}\n"
        )
    };
    for at in 0..2 {
        admin.ask(&query(&format!("create database counts_{at}")));
        let mut shard = Client::connect_to(server, &format!("counts_{at}"), &[]);
        shard.ask(&query(
            "create table apart (k bigint, id bigint generated always as identity unique)",
        ));
        shard.ask(&query(&format!(
            "alter table apart alter id set increment by 2 set start with {} restart",
            at + 1
        )));
        shard.ask(&query("create table alike (k bigint, id serial)"));
    }
    let databases = format!(
        "[databases.counts]\n{}{}[databases.counts.groups.g]\nmethod = \"hash\"\nkey_type = \"bigint\"\n\
         key_column = \"k\"\n",
        shard(0),
        shard(1)
    );
    let proxy = Proxy::with("size = 2", &databases);
    let mut client = Client::connect_as(proxy.port, "postgres", "counts", &[]);
    let mut numbers = Vec::new();
    for k in 0..20 {
        let refused = client.ask(&query(&format!("insert into alike (k) values ({k})")));
        assert!(
            refused[0].contains("would set off what acts on one shard only"),
            "{refused:?}"
        );
        let seen = client.ask(&query(&format!(
            "insert into apart (k) values ({k}) returning id"
        )));
        numbers.push(seen[1].clone());
        let given = client.ask(&query(&format!("insert into alike values ({k}, 7)")));
        assert_eq!(given[0], "C INSERT 0 1\\0");
    }
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 20, "{numbers:?}");
}

#[test]
fn in_a_failed_transaction_a_statement_of_another_length_is_refused_like_any() {
    let (_, mut client) = whole_and_sharded("lengths");
    client.ask(&query("select n from t where id = 1000000 and n = 123456"));
    client.ask(&query("begin"));
    // Keys are not computed so.
    client.ask(&query("insert into t (id) select id + 1 from t"));
    for sql in [
        "select n from t where id = 1 and n = 1",
        "select n from t where id = 1000000 and n = 12345",
    ] {
        let seen = client.ask(&query(sql));
        assert!(
            seen[0].starts_with("E ERROR 25P02") && seen[1] == "Z E",
            "{seen:?}"
        );
    }
    assert_eq!(client.ask(&query("rollback")), ["C ROLLBACK\\0", "Z I"]);
}

#[test]
fn a_transaction_has_one_time() {
    let (_, mut client) = whole_and_sharded("times");
    // Whatever shard the session's own is: one of the two keys is on it.
    let mut answered = 0;
    for id in ["1", "200"] {
        client.ask(&query("begin"));
        let time = client.value("select now()");
        let seen = client.ask(&query(&format!(
            "insert into t (id, n) values ({id}, 1) returning now()"
        )));
        if seen.iter().any(|line| line.starts_with("E ERROR 0A000")) {
            client.ask(&query("rollback"));
            continue;
        }
        assert!(
            seen.iter().any(|line| line == &format!("D {time}")),
            "{time} {seen:?}"
        );
        answered += 1;
        client.ask(&query("commit"));
    }
    assert_eq!(answered, 1);
}
