//! Several proxies before the same shards: what one has done to the schema the others know by their next statement, and no
//! row is ever where nobody looks for it.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, until},
    three::{Stand, Three},
};

/// Tables with a column `tenant` are spread by it like the others by `id`; all others live on the last shard.
const DATABASE: &str = "unlisted_tables = \"s2\"\n\
    groups.h = { method = \"range\", key_type = \"bigint\", key_column = \"tenant\", ranges = [{ to = 100, shard = \"s0\" }, \
    { to = 200, shard = \"s1\" }, { shard = \"s2\" }] }";

fn three(name: &str) -> Three<'_> {
    Three {
        database: DATABASE,
        ..Three::new(name)
    }
}

/// A second proxy and a client of it that have seen what is there.
fn other(three: Three<'_>) -> (Proxy, Client) {
    let proxy = three.proxy();
    let mut client = proxy.client();
    until("the other proxy can write on several shards", || {
        client.ask(&query("insert into ready values (1), (101)"))[0].starts_with('C')
    });
    (proxy, client)
}

/// Each of these is done.
fn done(client: &mut Client, texts: &[&str]) {
    for text in texts {
        let found = client.ask(&query(text));
        let fault = found.iter().find(|line| line.starts_with('E'));
        assert_eq!(fault, None, "{text}: {found:?}");
    }
}

fn counts(stand: &mut Stand, table: &str) -> Vec<String> {
    stand.seen(&format!("select count(*) from {table}"))
}

#[test]
fn a_table_made_past_the_proxies_is_not_taken_for_an_unlisted_one() {
    let mut stand = three("agree_past").start();
    for shard in &mut stand.shards {
        shard.ask(&query("create table notes (tenant bigint, body text)"));
    }
    done(
        &mut stand.sharded,
        &["insert into notes (tenant, body) values (5, 'a')"],
    );
    assert_eq!(counts(&mut stand, "notes"), ["1", "0", "0"]);
    // In the extended protocol, in a transaction that is on a shard, and again right after.
    for shard in &mut stand.shards {
        shard.ask(&query("create table marks (tenant bigint, body text)"));
        shard.ask(&query("create table signs (tenant bigint, body text)"));
    }
    let sql = "insert into marks (tenant, body) values ($1, 'b')";
    let found = stand
        .sharded
        .ask(&batch().parse("m", sql).call("m", &["101"]).sync().0);
    assert!(found.contains(&"C INSERT 0 1\\0".to_owned()), "{found:?}");
    assert_eq!(counts(&mut stand, "marks"), ["0", "1", "0"]);
    done(
        &mut stand.sharded,
        &[
            "begin",
            "insert into t values (101, 1)",
            "insert into signs (tenant, body) values (6, 'c')",
            "commit",
        ],
    );
    assert_eq!(counts(&mut stand, "signs"), ["1", "0", "0"]);
}

#[test]
fn names_that_are_nowhere_fail_as_on_postgresql() {
    let mut stand = three("agree_nowhere").start();
    stand.all_alike(&[
        "select * from nowhere",
        "insert into nowhere values (1)",
        "begin",
        "insert into nowhere values (1)",
        "select 1",
        "rollback",
        "select * from nowhere",
    ]);
    stand.alike(
        &batch()
            .parse("", "select * from nowhere")
            .call("", &[])
            .sync()
            .0,
        1,
    );
    // A table of one shard, and a sequence, are what they were.
    stand.shards[2].ask(&query("create table single (n int)"));
    stand.shards[2].ask(&query("create sequence numbers"));
    done(
        &mut stand.sharded,
        &[
            "insert into single values (1)",
            "select last_value from numbers",
        ],
    );
    assert_eq!(stand.shards[2].value("select count(*) from single"), "1");
}

#[test]
fn what_is_made_through_one_is_used_through_the_other_at_once() {
    let three = three("agree_made");
    let mut stand = three.start();
    let (_proxy, mut client) = other(three);
    for turn in 0..3 {
        // Whatever one makes the other fills, in both directions.
        let name = format!("notes_{turn}");
        let (made_by, used_by) = if turn % 2 == 0 {
            (&mut stand.sharded, &mut client)
        } else {
            (&mut client, &mut stand.sharded)
        };
        done(
            made_by,
            &[&format!("create table {name} (tenant bigint, body text)")],
        );
        done(
            used_by,
            &[
                &format!("insert into {name} values (1, 'a')"),
                &format!("insert into {name} values (101, 'b'), (201, 'c'), (202, 'd')"),
            ],
        );
        assert_eq!(counts(&mut stand, &name), ["1", "1", "2"]);
    }
    // Columns that one adds the other fills by their places, and one that it drops is gone.
    done(&mut stand.sharded, &["alter table t add column note text"]);
    done(
        &mut client,
        &["insert into t values (1, 1, 'x'), (101, 1, 'x')"],
    );
    done(&mut client, &["alter table t drop column n"]);
    done(&mut stand.sharded, &["insert into t values (2, 'x')"]);
    assert_eq!(
        stand.seen("select count(*) from t where note = 'x'"),
        ["2", "1", "0"]
    );
    // An unlisted table that is made again as one of the group.
    done(&mut stand.sharded, &["create table turns (n int)"]);
    done(
        &mut client,
        &["insert into turns values (1)", "drop table turns"],
    );
    done(&mut client, &["create table turns (tenant bigint)"]);
    done(&mut stand.sharded, &["insert into turns values (1)"]);
    assert_eq!(counts(&mut stand, "turns"), ["1", "0", "0"]);
}

#[test]
fn open_transactions_plan_with_what_others_have_changed() {
    let three = three("agree_open");
    let mut stand = three.start();
    let (_proxy, mut client) = other(three);
    done(&mut client, &["begin", "insert into ready values (3)"]);
    done(
        &mut stand.sharded,
        &[
            "create table notes (tenant bigint, body text)",
            "create table single (n int)",
        ],
    );
    done(
        &mut client,
        &[
            "insert into notes values (101, 'a')",
            "insert into single values (1)",
            "commit",
        ],
    );
    assert_eq!(counts(&mut stand, "notes"), ["0", "1", "0"]);
    assert_eq!(stand.shards[2].value("select count(*) from single"), "1");
    // One that has changed the schema itself keeps what it has changed.
    done(
        &mut client,
        &["begin", "create table own (tenant bigint, body text)"],
    );
    done(
        &mut stand.sharded,
        &["create table theirs (tenant bigint, body text)"],
    );
    done(
        &mut client,
        &[
            "insert into own (tenant, body) values (101, 'a')",
            "insert into theirs (tenant, body) values (102, 'a')",
            "commit",
        ],
    );
    assert_eq!(counts(&mut stand, "own"), ["0", "1", "0"]);
    assert_eq!(counts(&mut stand, "theirs"), ["0", "1", "0"]);
}

#[test]
fn a_proxy_that_does_not_take_a_change_over_is_named() {
    let mut stand = three("agree_late").start();
    let row = "insert into shardway.proxy (incarnation, number, version, address, heartbeat) \
               values ('00000000000000aa', 7, '1', '10.0.0.9', now() + interval '1 h')";
    stand.shards[0].ask(&query(row));
    let found = stand.ask("create table notes (tenant bigint)");
    let warned = found.iter().any(|line| {
        line.starts_with("N WARNING 01000") && line.contains("not all proxies have taken it over")
    });
    assert!(warned, "{found:?}");
    assert!(found.contains(&"C CREATE TABLE\\0".to_owned()), "{found:?}");
    // One that is silent is not waited for.
    stand.shards[0].ask(&query(
        "update shardway.proxy set heartbeat = now() - interval '8 s' where number = 7",
    ));
    let found = stand.ask("alter table notes add column body text");
    assert_eq!(found, ["C ALTER TABLE\\0", "Z I"]);
}

#[test]
fn what_a_comment_or_a_key_says_of_a_new_table_is_kept_for_all() {
    let three = three("agree_kept");
    let mut stand = three.start();
    let (_proxy, mut client) = other(three);
    done(
        &mut stand.sharded,
        &[
            "/* shardway: group=g key=owner */ create table pets (name text, owner bigint)",
            "/* shardway: reference */ create table colours (code text primary key)",
            "/* shardway: single=s1 */ create table seats (n int)",
            "create table visits (pet text, t_id bigint references t)",
            "insert into t (id) values (1), (101)",
        ],
    );
    done(
        &mut client,
        &[
            "insert into pets (name, owner) values ('a', 1), ('b', 201)",
            "insert into pets (name, owner) values ('c', 101)",
            "insert into colours values ('r')",
            "insert into seats values (1)",
            "insert into visits (pet, t_id) values ('a', 1)",
            "insert into visits (pet, t_id) values ('b', 101)",
        ],
    );
    assert_eq!(counts(&mut stand, "pets"), ["1", "1", "1"]);
    assert_eq!(counts(&mut stand, "colours"), ["1", "1", "1"]);
    assert_eq!(stand.shards[1].value("select count(*) from seats"), "1");
    assert_eq!(counts(&mut stand, "visits"), ["1", "1", "0"]);
    // It goes with the table, through the proxy and past it, and into a transaction of its own.
    done(
        &mut client,
        &[
            "alter table pets rename to animals",
            "create schema zoo",
            "begin",
            "alter table animals set schema zoo",
            "insert into zoo.animals (name, owner) values ('d', 102)",
            "commit",
        ],
    );
    done(
        &mut stand.sharded,
        &["insert into zoo.animals (name, owner) values ('e', 103)"],
    );
    assert_eq!(counts(&mut stand, "zoo.animals"), ["1", "3", "1"]);
    for shard in &mut stand.shards {
        shard.ask(&query("alter table zoo.animals rename to beasts"));
    }
    done(
        &mut stand.sharded,
        &["insert into zoo.beasts (name, owner) values ('f', 104)"],
    );
    assert_eq!(counts(&mut stand, "zoo.beasts"), ["1", "4", "1"]);
    // A proxy that comes later knows it from the servers.
    let (_later, mut client) = other(three);
    done(
        &mut client,
        &["insert into zoo.beasts (name, owner) values ('g', 2)"],
    );
    assert_eq!(counts(&mut stand, "zoo.beasts"), ["2", "4", "1"]);
    // What is dropped is forgotten: a table of that name is another one.
    done(&mut client, &["drop table zoo.beasts"]);
    done(
        &mut stand.sharded,
        &[
            "create table zoo.beasts (name text, owner bigint)",
            "insert into zoo.beasts (name, owner) values ('h', 2)",
        ],
    );
    assert_eq!(
        stand.shards[2].value("select count(*) from zoo.beasts"),
        "1"
    );
}

#[test]
fn no_table_moves_from_under_rows_that_are_on_their_way() {
    let mut stand = three("agree_moves").start();
    done(
        &mut stand.sharded,
        &["create table turns (n int)", "insert into turns values (1)"],
    );
    // Others would still put rows to the unlisted ones.
    for sql in [
        "create table turns (tenant bigint)",
        "create table if not exists turns (tenant bigint)",
        "/* shardway: reference */ create table turns (n int)",
    ] {
        stand.fails(sql, "lives elsewhere");
    }
    done(&mut stand.sharded, &["begin", "drop table turns"]);
    stand.fails("create table turns (tenant bigint)", "lives elsewhere");
    done(&mut stand.sharded, &["rollback"]);
    stand.fails(
        "alter table turns add column tenant bigint",
        "stays where its rows are",
    );
    stand.fails(
        "alter table turns rename column n to tenant",
        "stays where its rows are",
    );
    stand.fails(
        "/* shardway: group=g key=n */ create table marks (tenant bigint, n bigint)",
        "comment",
    );
    // A key that names the primary key is no shard key when that is another column.
    for shard in &mut stand.shards {
        shard.ask(&query(
            "create table orders (id bigint primary key, tenant bigint)",
        ));
    }
    stand.fails(
        "create table items (n int, o bigint references orders)",
        "0A000",
    );
    done(
        &mut stand.sharded,
        &["drop table turns", "create table turns (tenant bigint)"],
    );
    assert_eq!(counts(&mut stand, "turns"), ["0", "0", "0"]);
}

#[test]
fn without_the_home_shard_nothing_is_put_where_others_may_not_look() {
    let three = three("agree_home");
    let mut stand = three.start();
    done(
        &mut stand.sharded,
        &[
            "create table single (n int)",
            "insert into single values (1)",
        ],
    );
    let connections = |allowed: bool| {
        let mut admin = Client::connect(crate::harness::postgres().port(), &[]);
        let sql = format!("alter database agree_home_0 with allow_connections {allowed}");
        admin.ask(&query(&sql));
        admin.ask(&query(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'agree_home_0'",
        ));
    };
    connections(false);
    until("the proxy is out of touch", || {
        let found = stand.sharded.ask(&query("insert into single values (2)"));
        found[0].contains("it is not known for sure where a table")
    });
    // What the configuration lists is used as ever; changes would be unheard.
    done(&mut stand.sharded, &["insert into t values (101, 1)"]);
    stand.fails("create table more (n int)", "E ERROR");
    connections(true);
    until("the proxy is in touch again", || {
        stand.sharded.ask(&query("insert into single values (3)"))[0].starts_with('C')
    });
    until("schema changes are heard again", || {
        stand
            .sharded
            .ask(&query("create table if not exists more (n int)"))[0]
            .starts_with('C')
    });
}

/// A proxy before the shards of that name, with these ranges of ids, and what its file says.
fn ranged(name: &str, ranges: &str) -> (Proxy, String) {
    let port = crate::harness::postgres().port();
    let shards: String = (0..3)
        .map(|at| format!("shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/{name}_{at}?sslmode=disable\" }}\n"))
        .collect();
    let databases = format!(
        "[databases.postgres]\ncontrol = {{ user = \"postgres\" }}\n{shards}[databases.postgres.groups.g]\n\
         method = \"range\"\nkey_type = \"bigint\"\nranges = [{ranges}]\n\
         tables = {{ \"public.ready\" = \"id\", \"public.t\" = \"id\" }}\n[databases.postgres.tables]\nsingle = {{ \"public.other\" = \"s2\" }}\n"
    );
    let proxy = Proxy::with("size = 4", &databases);
    (proxy, databases)
}

#[test]
fn a_proxy_with_another_map_does_not_serve_the_group() {
    let name = "agree_map";
    let mut stand = Three::new(name).start();
    stand.shards[2].ask(&query("create table other (n int)"));
    let moved = r#"{ to = 50, shard = "s0" }, { to = 200, shard = "s1" }, { shard = "s2" }"#;
    let (proxy, file) = ranged(name, moved);
    let mut client = proxy.client();
    for sql in [
        "insert into t values (60, 1)",
        "select * from t",
        "alter table t add column x int",
        "update t set n = 1 where id = 1",
    ] {
        let found = client.ask(&query(sql));
        assert!(
            found[0].contains("55000 group \"g\" is not served here"),
            "{sql}: {found:?}"
        );
    }
    // What is not of the group is served.
    done(&mut client, &["insert into other values (1)"]);
    assert_eq!(counts(&mut stand, "t"), ["0", "0", "0"]);
    // Whoever answers for the rows accepts the new one; the proxies change sides.
    let directory = std::env::temp_dir().join(format!("shardway-agreeing-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("shardway.toml");
    std::fs::write(&path, format!("{file}[users.postgres]\nauth = \"trust\"\n")).unwrap();
    let check = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_shardway"));
        let run = command
            .args(["check", "--connect", "--config"])
            .arg(&path)
            .args(more);
        String::from_utf8(run.output().unwrap().stdout).unwrap()
    };
    let said = check(&[]);
    assert!(
        said.contains("gives range 1 of group g to s0 to 100, the configuration to s0 to 50"),
        "{said}"
    );
    let sql = check(&["--accept-map"]);
    let sql = sql.lines().last().unwrap();
    assert!(sql.starts_with("WITH made AS"), "{sql}");
    stand.shards[0].ask(&query(sql));
    until("the new map is served", || {
        client.ask(&query("insert into t values (60, 1)"))[0].starts_with('C')
    });
    until("the old one is not", || {
        stand.ask("insert into t values (61, 1)")[0].contains("is not served here")
    });
    assert_eq!(check(&["--accept-map"]), "");
    std::fs::remove_dir_all(directory).unwrap();
}
