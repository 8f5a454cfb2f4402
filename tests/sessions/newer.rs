//! Proxies of several versions before the same servers: what an older one left is taken over, what a newer one made is used
//! if it says that this may be, and is never misread.

use crate::{
    client::{Client, query},
    harness::until,
    three::{Stand, Three},
};
use shardway::catalog::{
    key::Key,
    moving::{KeySet, Part},
};

const DONE: &str =
    "select count(*) from shardway.proxy where epoch >= (select epoch from shardway.epoch)";

fn done(client: &mut Client, texts: &[&str]) {
    for text in texts {
        let found = client.ask(&query(text));
        let fault = found.iter().find(|line| line.starts_with('E'));
        assert_eq!(fault, None, "{text}: {found:?}");
    }
}

/// SW169 as clients are told.
const REFUSED: &str = "55000 what is on several shards is not served here";

/// Columns that a newer form could have.
const COLUMNS: [&str; 6] = [
    "alter table shardway.map add note text",
    "alter table shardway.proxy add zone text default 'a'",
    "alter table shardway.hold add why text",
    "alter table shardway.held add host text",
    "alter table shardway.workflow add owner text",
    "alter table shardway.activation add note text",
];

fn newer(stand: &mut Stand, version: i32, oldest: i32) {
    let say = format!(
        "insert into shardway.version (version, oldest, made_by) values ({version}, {oldest}, 'a test')"
    );
    for shard in &mut stand.shards {
        done(shard, &COLUMNS);
        done(shard, &[&say]);
    }
}

/// A hold is answered by every proxy that is there.
fn holds(stand: &mut Stand, attempt: i32, proxies: usize) {
    let part = Part::Ranges(vec![(None, Some(Key::Bigint(5)))]);
    let moving = serde_json::json!([{ "group": "g", "keys": KeySet::of(part) }]);
    let home = &mut stand.shards[0];
    done(
        home,
        &[
            &format!(
                "insert into shardway.hold (workflow, attempt, state, moving, deadline) values \
                 ('w', {attempt}, 'held', '{moving}', clock_timestamp() + interval '20 s') on conflict (workflow) \
                 do update set attempt = excluded.attempt, state = 'held', deadline = excluded.deadline"
            ),
            "notify shardway, 'hold'",
        ],
    );
    let drained =
        format!("select count(*) from shardway.held where drained and attempt = {attempt}");
    until("every proxy has answered the hold", || {
        home.value(&drained) == proxies.to_string()
    });
    done(
        home,
        &[
            "update shardway.hold set state = 'released'",
            "notify shardway, 'hold'",
        ],
    );
}

fn changes_map(home: &mut Client, content: &str) {
    done(
        home,
        &[&format!(
            "with m as (update shardway.map set epoch = epoch + 1, content = {content} returning 1), \
             e as (update shardway.epoch set epoch = epoch + 1 returning epoch) \
             select pg_notify('shardway', epoch::text) from e"
        )],
    );
}

#[test]
fn a_newer_form_that_says_so_is_used_by_proxies_that_run_and_that_start() {
    let three = Three::new("newer_alike");
    let mut stand = three.start();
    done(
        &mut stand.sharded,
        &["insert into t values (1, 1), (101, 1), (201, 1)"],
    );
    newer(&mut stand, 5, 4);
    let second = three.proxy();
    let mut client = second.client();
    until("the second can write on several shards", || {
        client.ask(&query("insert into ready values (2), (102)"))[0].starts_with('C')
    });
    for client in [&mut stand.sharded, &mut client] {
        assert_eq!(client.value("select count(*) from t"), "3");
        done(client, &["update t set n = n + 1"]);
    }
    holds(&mut stand, 1, 2);
    // A schema change by one is known to the other.
    done(
        &mut client,
        &["/* shardway: group=g key=id */ create table made (id bigint, n int)"],
    );
    let home = &mut stand.shards[0];
    let two = DONE.to_owned();
    until("both know it", || home.value(&two) == "2");
    let versions =
        home.value("select string_agg(version::text, ' ' order by version) from shardway.version");
    assert_eq!(versions, "1 2 3 4 5");
}

#[test]
fn a_form_for_newer_proxies_only_ends_what_a_running_one_does_over_shards() {
    let three = Three {
        database: "unlisted_tables = \"s1\"",
        ..Three::new("newer_only")
    };
    let mut stand = three.start();
    done(&mut stand.shards[1], &["create table single (n int)"]);
    done(
        &mut stand.sharded,
        &[
            "insert into t values (1, 1), (101, 1)",
            "begin",
            "select count(*) from t",
        ],
    );
    newer(&mut stand, 5, 5);
    let mut client = stand.proxy.client();
    until("what is on several shards is refused", || {
        client.ask(&query("select n from t where id = 1"))[0].contains(REFUSED)
    });
    // Within an open transaction too.
    stand.fails("select count(*) from t", REFUSED);
    stand.ask("rollback");
    for sql in [
        "insert into t values (2, 1)",
        "create table more (id bigint)",
    ] {
        let found = client.ask(&query(sql));
        assert!(found[0].contains(REFUSED), "{sql}: {found:?}");
    }
    until("tables of one shard are served", || {
        client.ask(&query("insert into single values (1)"))[0].starts_with('C')
    });
    // It holds nobody up: it says that it is there, and answers.
    holds(&mut stand, 1, 1);
    // Nor does one serve that starts now, and the reason is told.
    let mut late = three.proxy().only_client();
    let found = late.ask(&query("select count(*) from t"));
    assert!(found[0].contains(REFUSED), "{found:?}");
    for shard in &mut stand.shards {
        done(shard, &["delete from shardway.version where version = 5"]);
    }
    until("it is served again", || {
        let found = client.ask(&query("select n from t where id = 1"));
        !found[0].starts_with('E')
    });
}

#[test]
fn a_map_that_says_more_than_is_understood_is_not_read_as_if_it_did_not() {
    let three = Three::new("newer_map");
    let mut stand = three.start();
    done(
        &mut stand.sharded,
        &["insert into t values (1, 1), (101, 1)"],
    );
    let good = stand.shards[0].value("select content::text from shardway.map");
    let good = format!("'{}'", good.replace('\'', "''"));
    for (number, more) in [
        // Something else is said of the whole, of rows that move, of a group, of its keys.
        "jsonb_set(content, '{shadows}', '[]')",
        "jsonb_set(content, '{moving}', '[{\"workflow\": \"w\", \"group\": \"g\", \"shard\": \"s1\", \"keys\": {\"part\": \"none\"}, \"until\": 5}]')",
        "jsonb_set(content, '{moving}', '[{\"workflow\": \"w\", \"group\": \"g\", \"shard\": \"s1\", \"keys\": {\"part\": {\"every\": 3}}}]')",
        "jsonb_set(content, '{moving}', '[{\"workflow\": \"w\", \"group\": \"g\", \"shard\": \"s1\", \"keys\": {\"part\": \"none\", \"like\": [\"a\"]}}]')",
        "jsonb_set(content, '{owners,groups,g,copies}', '2')",
        "jsonb_set(content, '{owners,groups,g,owners}', '{\"spread\": {}}')",
    ]
    .into_iter()
    .enumerate()
    {
        changes_map(&mut stand.shards[0], more);
        let home = &mut stand.shards[0];
        until("the proxy has heard of it", || home.value(DONE) == "1");
        for sql in ["select n from t where id = 1", "insert into t values (9, 1)"] {
            let found = stand.ask(sql);
            assert!(found[0].contains(REFUSED), "{number}, {more}: {found:?}");
        }
        if number == 0 {
            let mut late = three.proxy().only_client();
            let found = late.ask(&query("select count(*) from t"));
            assert!(found[0].contains(REFUSED), "{more}: {found:?}");
        }
        let back = format!("{good}::jsonb");
        changes_map(&mut stand.shards[0], &back);
        let sharded = &mut stand.sharded;
        until("it is served again", || {
            sharded.ask(&query("update t set n = 1 where id = 1"))[0].starts_with('C')
        });
    }
    assert_eq!(stand.seen("select count(*) from t"), ["1", "1", "0"]);
}

#[test]
fn what_form_2_has_left_is_made_newer_and_its_map_counts() {
    let map = r#"{"groups": {"g": {"key_type": "bigint", "owners": {"range": [["100", "s0"], ["200", "s1"], [null, "s2"]]}}}}"#;
    let ddl = format!(
        "create table t (id bigint primary key, n int); create schema shardway; {} {} \
         insert into shardway.version (version, oldest, made_by) values (1, 1, 'x'), (2, 2, 'x'); \
         insert into shardway.identity values (true, '0123456789abcdef', 's' || right(current_database(), 1)); \
         insert into shardway.map (epoch, content, made_by) select 7, '{map}', 'x' where current_database() like '%0'; \
         insert into shardway.proxy (incarnation, number, version, epoch) values ('00000000000000aa', 3, 'older', 0)",
        include_str!("../../src/registry/schema/1.sql"),
        include_str!("../../src/registry/schema/2.sql"),
    );
    let three = Three {
        ddl: &ddl,
        ..Three::new("newer_form2")
    };
    let mut stand = three.start();
    done(
        &mut stand.sharded,
        &["insert into t values (1, 1), (101, 1), (201, 1)"],
    );
    assert_eq!(stand.seen("select count(*) from t"), ["1", "1", "1"]);
    let forms =
        "select string_agg(version || '/' || oldest, ' ' order by version) from shardway.version";
    assert_eq!(stand.seen(forms), ["1/1 2/2 3/3 4/3"; 3]);
    assert_eq!(
        stand.seen("select installation || shard from shardway.identity"),
        [
            "0123456789abcdefs0",
            "0123456789abcdefs1",
            "0123456789abcdefs2"
        ]
    );
    // The map of old is what the new one says, with what form 2 had no words for.
    let kept = "select (epoch > 7)::text || (content -> 'members')::text || (content ? 'moving')::text from shardway.map";
    assert_eq!(
        stand.shards[0].value(kept),
        "true[\"s0\", \"s1\", \"s2\"]true"
    );
}
