//! The map that all proxies share says who owns which keys, whatever their configuration files say: it is taken over with
//! every change, nothing is served from several shards before it was read, and a shard that it does not name serves nothing.

use crate::{
    client::{Client, query},
    harness::{Proxy, postgres, until},
    three::{Stand, Three},
};
use shardway::{
    catalog::{
        key::Key,
        moving::{KeySet, Move, Part},
        ownership::Moving,
    },
    config::load::load_str,
    registry::{Flip, Record, Registry, Unflipped},
};
use std::path::Path;

/// Tables with a column `tenant` are spread by hash.
const HASHED: &str = "unlisted_tables = \"s0\"\n\
    groups.h = { method = \"hash\", key_type = \"bigint\", buckets = 64, key_column = \"tenant\" }";
const TWO: &str = r#"{ to = 100, shard = "s0" }, { shard = "s1" }"#;

/// Of the database of a stand, past its proxies.
pub(crate) struct Engine {
    pub(crate) registry: Registry,
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl Engine {
    pub(crate) fn of(three: Three<'_>) -> Self {
        let settings = load_str("test", &three.databases(), Path::new("."))
            .unwrap_or_else(|errors| panic!("{}", errors.render()));
        Self {
            registry: Registry::new(&settings.databases["postgres"]).unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    pub(crate) fn map(&self) -> shardway::registry::MapNow {
        self.runtime.block_on(self.registry.read_map()).unwrap()
    }

    pub(crate) fn flip(&self, flip: &Flip, records: &[Record]) -> Result<i64, Unflipped> {
        let flipped = self.runtime.block_on(self.registry.flip(flip, records))?;
        Ok(flipped.epoch)
    }

    /// Gives keys away, as a reshard does at its end.
    fn moves(&self, home: &mut Client, moves: &[Move], joins: &[&str]) -> i64 {
        hold(home, "w", 1);
        let flip = self.planned(moves, joins);
        self.flip(&flip, &[]).unwrap()
    }

    fn planned(&self, moves: &[Move], joins: &[&str]) -> Flip {
        let now = self.map();
        Flip {
            workflow: "w".to_owned(),
            attempt: 1,
            token: 5,
            expected: now.epoch,
            after: now.content.owners.apply(moves).unwrap(),
            doubled: Vec::new(),
            joins: joins.iter().map(|shard| (*shard).to_owned()).collect(),
        }
    }
}

/// A workflow that holds statements back.
fn hold(home: &mut Client, workflow: &str, attempt: i32) {
    done(
        home,
        &[
            &format!(
                "insert into shardway.workflow (id, state, token, plan) values ('{workflow}', 'cutover', 5, '{{}}') \
                 on conflict (id) do nothing"
            ),
            &format!("delete from shardway.hold where workflow = '{workflow}'"),
            &format!(
                "insert into shardway.hold (workflow, attempt, state, moving, deadline) \
                 values ('{workflow}', {attempt}, 'held', '[]', now() + interval '1 hour')"
            ),
        ],
    );
}

fn tenant(key: i64, from: &str, to: &str) -> Move {
    moving("g", vec![Key::Bigint(key)], Part::None, from, to)
}

fn moving(group: &str, with: Vec<Key>, part: Part, from: &str, to: &str) -> Move {
    Move {
        group: group.to_owned(),
        keys: KeySet {
            part,
            with,
            without: Vec::new(),
        },
        from: from.to_owned(),
        to: to.to_owned(),
    }
}

fn done(client: &mut Client, texts: &[&str]) {
    for text in texts {
        let found = client.ask(&query(text));
        let fault = found.iter().find(|line| line.starts_with('E'));
        assert_eq!(fault, None, "{text}: {found:?}");
    }
}

fn has_number(stand: &mut Stand, number: i64, proxies: usize) {
    let sql = format!(
        "select count(*) from shardway.proxy where epoch >= (select epoch from shardway.epoch) and {number} > 0"
    );
    until("all proxies have taken the map over", || {
        stand.shards[0].value(&sql) == proxies.to_string()
    });
}

#[test]
fn rows_are_where_the_map_says_now_for_every_proxy() {
    let three = Three::new("owners_moved");
    let mut stand = three.start();
    let other = three.proxy();
    let mut client = other.client();
    let (one, select) = (
        "insert into t values (5, 1)",
        "select n from t where id = 5",
    );
    done(&mut stand.sharded, &[one, "insert into t values (6, 1)"]);
    // A tenant of its own and a range change hands; the rows go with them.
    stand.shards[0].ask(&query("delete from t where id = 5"));
    stand.shards[1].ask(&query("insert into t values (5, 7)"));
    stand.shards[2].ask(&query("insert into t values (150, 8)"));
    let engine = Engine::of(three);
    let range = Part::Ranges(vec![(Some(Key::Bigint(150)), Some(Key::Bigint(160)))]);
    let moves = [
        tenant(5, "s0", "s1"),
        moving("g", Vec::new(), range, "s1", "s2"),
    ];
    let number = engine.moves(&mut stand.shards[0], &moves, &[]);
    has_number(&mut stand, number, 2);
    for client in [&mut stand.sharded, &mut client] {
        assert_eq!(client.value(select), "7");
        assert_eq!(client.value("select n from t where id = 150"), "8");
        assert_eq!(client.value("select n from t where id = 6"), "1");
        assert_eq!(client.value("select count(*) from t"), "3");
        let id = client.value("select id from t where id between 4 and 5");
        assert_eq!(id, "5");
    }
    done(
        &mut client,
        &[
            "update t set n = 9 where id = 5",
            "insert into t values (155, 1)",
        ],
    );
    assert_eq!(
        stand.seen("select coalesce(sum(n), 0) from t"),
        ["1", "9", "9"]
    );
    // Neither a proxy that starts anew nor one that reads its file again goes by the file.
    let mut third = three.proxy().only_client();
    assert_eq!(third.value(select), "9");
    other.reload("size = 4", "size = 5");
    for _ in 0..20 {
        assert_eq!(other.client().value(select), "9");
    }
}

#[test]
fn a_view_of_one_shard_shows_rows_where_they_are_now() {
    let three = Three {
        ddl: "create table t (id bigint primary key, n int); create view vip as select id, n from t where id = 5; \
              create view vips as select n + 0 as n from vip; create view every as select id, n from t",
        ..Three::new("owners_views")
    };
    let mut stand = three.start();
    done(&mut stand.sharded, &["insert into t values (5, 1)"]);
    let views = ["select n from vip", "select n from vips"];
    until("the views are known", || {
        views
            .iter()
            .all(|sql| stand.sharded.ask(&query(sql)).contains(&"D 1".to_owned()))
    });
    stand.shards[0].ask(&query("delete from t where id = 5"));
    stand.shards[1].ask(&query("insert into t values (5, 7)"));
    // The servers cannot be looked at.
    done(
        &mut stand.shards[2],
        &["begin", "lock table pg_class in access exclusive mode"],
    );
    let engine = Engine::of(three);
    engine.moves(&mut stand.shards[0], &[tenant(5, "s0", "s1")], &[]);
    let client = &mut stand.sharded;
    until("the proxy goes by the new map", || {
        let found = client.ask(&query("select n from t where id = 5"));
        found.contains(&"D 7".to_owned())
    });
    // A view of which every shard shows its part is as it was.
    let all = client.ask(&query("select n from every where id = 5"));
    assert!(all.contains(&"D 7".to_owned()), "{all:?}");
    for sql in views {
        let found = client.ask(&query(sql));
        let stale = |line: &String| line == "D 1" || line.starts_with("C SELECT 0");
        assert!(!found.iter().any(stale), "{sql}: {found:?}");
    }
    done(&mut stand.shards[2], &["commit"]);
    until("the views are known again", || {
        views
            .iter()
            .all(|sql| client.ask(&query(sql)).contains(&"D 7".to_owned()))
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "one claim, told in its order")]
fn a_shard_that_the_map_does_not_name_serves_nothing_until_it_joins() {
    let narrow = Three {
        shards: 2,
        ranges: TWO,
        database: HASHED,
        ddl: "create table t (id bigint primary key, n int); create table r (code int primary key); \
              create table orders (tenant bigint, n int)",
        reference: &["public.r"],
        ..Three::new("owners_joins")
    };
    let mut stand = narrow.start();
    // All is gone there: whatever looks at it fails.
    let third = &mut stand.shards[2];
    done(third, &["drop table t, r, orders, ready"]);
    let wide = Three {
        shards: 3,
        ..narrow
    };
    let proxy = wide.proxy();
    let mut client = proxy.client();
    done(
        &mut client,
        &[
            "insert into r values (1), (2)",
            "insert into t values (1, 1), (101, 1), (500, 1)",
            "insert into orders select g, g from generate_series(1, 200) g",
            "create table made (id bigint, tenant bigint)",
            "insert into made (id, tenant) select g, g from generate_series(1, 50) g",
            "alter table r add column note text",
            "update orders set n = 1",
        ],
    );
    assert_eq!(
        client.value("select count(*) from orders o join r on r.code = 1"),
        "200"
    );
    assert_eq!(client.value("select count(*) from t"), "3");
    for _ in 0..6 {
        let mut client = proxy.client();
        assert_ne!(client.value("select current_database()"), "owners_joins_2");
        assert_eq!(client.value("select count(*) from r"), "2");
    }
    let third = &mut stand.shards[2];
    let tables = "select count(*) from pg_tables where schemaname = 'public'";
    assert_eq!(third.value(tables), "0");
    // It joins, with one hash bucket of what it was given; a file without it is not enough then.
    done(
        third,
        &[
            "create table t (id bigint primary key, n int)",
            "create table r (code int primary key, note text)",
            "insert into r values (1), (2)",
            "create table orders (tenant bigint, n int)",
            "create table made (id bigint, tenant bigint)",
            "create table ready (id bigint)",
        ],
    );
    let engine = Engine::of(wide);
    let given = moving("g", vec![Key::Bigint(777)], Part::None, "s1", "s2");
    let number = engine.moves(&mut stand.shards[0], &[given], &["s2"]);
    has_number(&mut stand, number, 2);
    done(
        &mut client,
        &["insert into t values (777, 1)", "insert into r values (3)"],
    );
    let seen = stand.shards[2].value("select (select count(*) from t) + (select count(*) from r)");
    assert_eq!(seen, "4");
    for sql in [
        "select * from t where id = 1",
        "insert into r values (4)",
        "alter table r add x int",
    ] {
        stand.fails(sql, "55000 what is on several shards is not served here");
    }
    // What is on one shard is served all the same.
    done(
        &mut stand.sharded,
        &["select 1", "create table alone (n int)"][..1],
    );
}

#[test]
fn nothing_of_several_shards_is_served_before_the_map_was_read() {
    let three = Three {
        database: "unlisted_tables = \"s2\"",
        ddl: "create table t (id bigint primary key, n int); create table r (code int primary key)",
        reference: &["public.r"],
        ..Three::new("owners_unread")
    };
    let mut stand = three.start();
    stand.shards[2].ask(&query("create table single (n int)"));
    let mut admin = Client::connect(postgres().port(), &[]);
    admin.ask(&query("create role owners_stranger login"));
    let databases = three.databases().replace(
        "control = { user = \"postgres\" }",
        "control = { user = \"owners_stranger\" }",
    );
    let proxy = Proxy::of("", "size = 4", &databases);
    let mut client = proxy.client();
    for sql in [
        "select * from t where id = 1",
        "insert into t values (1, 1)",
        "select count(*) from t",
        "select * from r",
        "insert into r values (1)",
        "create table more (id bigint)",
        "copy t from stdin",
        "truncate t",
    ] {
        let found = client.ask(&query(sql));
        assert!(
            found[0].contains("57P03 the map of the shards was not read yet"),
            "{sql}: {found:?}"
        );
    }
    done(
        &mut client,
        &[
            "select 1",
            "insert into single values (1)",
            "/* shardway: shard=s0 */ select count(*) from t",
        ],
    );
    // Whoever can read it serves, from then on.
    proxy.reload("\"owners_stranger\"", "\"postgres\"");
    until("the map was read", || {
        client.ask(&query("insert into t values (1, 1), (101, 1)"))[0].starts_with('C')
    });
    admin.ask(&query("drop role owners_stranger"));
}

#[test]
fn a_flip_needs_the_hold_the_map_and_the_runner_that_it_was_planned_with() {
    let three = Three::new("owners_flip");
    let mut stand = three.start();
    let engine = Engine::of(three);
    hold(&mut stand.shards[0], "w", 1);
    let flip = engine.planned(&[tenant(5, "s0", "s1")], &[]);
    let before = engine.map();
    let refused = |flip: &Flip, records: &[Record]| engine.flip(flip, records).unwrap_err();
    let mut late = flip.clone();
    late.expected -= 1;
    assert!(matches!(refused(&late, &[]), Unflipped::Changed { .. }));
    let mut replaced = flip.clone();
    replaced.token = 4;
    assert!(matches!(refused(&replaced, &[]), Unflipped::Replaced));
    let mut other = flip.clone();
    other.attempt = 2;
    assert!(matches!(refused(&other, &[]), Unflipped::NotHeld));
    let record = |state: &str, rows| {
        Record {
        sql: "update shardway.workflow set state = $2, version = version + 1 where id = $1 and state = 'cutover'"
            .to_owned(),
        values: vec![(Box::new("w".to_owned()), tokio_postgres::types::Type::TEXT), (Box::new(state.to_owned()), tokio_postgres::types::Type::TEXT)],
        rows,
    }
    };
    let records = [record("reverse", Some(1)), record("again", Some(1))];
    assert!(matches!(
        refused(&flip, &records),
        Unflipped::Record { at: 1, rows: 0 }
    ));
    let state = "select state || ' ' || (select state from shardway.hold) from shardway.workflow";
    assert_eq!(stand.shards[0].value(state), "cutover held");
    assert_eq!(engine.map(), before);
    let epoch = engine.flip(&flip, &records[..1]).unwrap();
    assert_eq!(epoch, before.epoch + 1);
    assert_eq!(stand.shards[0].value(state), "reverse committed");
    let now = engine.map();
    assert_eq!(now.content.owners.owner("g", &Key::Bigint(5)), Some("s1"));
    let mut again = flip;
    again.expected = epoch;
    assert!(matches!(refused(&again, &[]), Unflipped::NotHeld));
    // What is doubled is said and taken back, once each.
    let doubled = Moving {
        workflow: "w".to_owned(),
        group: "g".to_owned(),
        keys: tenant(5, "s0", "s1").keys,
        shard: "s0".to_owned(),
    };
    let set = |token: i64, doubled: &[Moving]| {
        engine
            .runtime
            .block_on(engine.registry.set_moving("w", doubled, token))
    };
    assert!(matches!(set(4, &[]), Err(Unflipped::Replaced)));
    let said = set(5, std::slice::from_ref(&doubled)).unwrap();
    assert_eq!(set(6, std::slice::from_ref(&doubled)).unwrap(), said);
    assert_eq!(engine.map().content.moving, [doubled]);
    assert_eq!(set(5, &[]).unwrap().epoch, said.epoch + 1);
}

#[test]
fn a_home_shard_that_lost_the_last_map_gets_it_from_a_shard() {
    let three = Three::new("owners_behind");
    let mut stand = three.start();
    let engine = Engine::of(three);
    let old = stand.shards[0].value("select content::text from shardway.map");
    let number = engine.moves(&mut stand.shards[0], &[tenant(5, "s0", "s1")], &[]);
    has_number(&mut stand, number, 1);
    stand.proxy.stop();
    let copied = engine
        .runtime
        .block_on(engine.registry.copy_map("w"))
        .unwrap();
    assert_eq!(copied, number);
    stand.shards[1].ask(&query("insert into t values (5, 7)"));
    let lose = format!(
        "update shardway.map set epoch = {}, content = '{}'",
        number - 1,
        old.replace('\'', "''")
    );
    done(&mut stand.shards[0], &[&lose]);
    let mut client = three.proxy().only_client();
    // Never by the older map, from the first statement on.
    assert_eq!(client.value("select n from t where id = 5"), "7");
    let kept = stand.shards[0].value("select epoch from shardway.map");
    assert_eq!(kept, number.to_string());
}

#[test]
fn of_two_maps_of_one_number_none_is_served() {
    let three = Three::new("owners_two");
    let mut stand = three.start();
    let engine = Engine::of(three);
    let number = engine.moves(&mut stand.shards[0], &[tenant(5, "s0", "s1")], &[]);
    engine
        .runtime
        .block_on(engine.registry.copy_map("w"))
        .unwrap();
    has_number(&mut stand, number, 1);
    let other =
        stand.shards[2].value("select replace(content::text, '\"5\"', '\"6\"') from shardway.map");
    let lie = format!(
        "update shardway.map set content = '{}'",
        other.replace('\'', "''")
    );
    done(&mut stand.shards[2], &[&lie]);
    let proxy = three.proxy();
    let mut client = proxy.client();
    let found = client.ask(&query("select n from t where id = 5"));
    assert!(
        found[0].contains("57P03 what is on several shards is not served here"),
        "{found:?}"
    );
    assert_eq!(engine.map().epoch, number);
    // Somebody has decided which is right.
    done(&mut stand.shards[2], &["delete from shardway.map"]);
    until("it is served again", || {
        client.ask(&query("insert into t values (5, 1)"))[0].starts_with('C')
    });
    assert_eq!(stand.seen("select count(*) from t"), ["0", "1", "0"]);
}
