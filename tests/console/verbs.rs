//! The console's table of who may say what, walked: every verb by every role, in both protocols. What a role may not say
//! has no effect, and what is not in the table is no command.

use crate::stage::{Stage, code, row, rows};
use shardway::admin::command::{Command, VERBS};
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::{Client, Error};

const PATIENCE: Duration = Duration::from_secs(30);

/// Verbs that only look, written down here once more: a verb that is added as one needs a line here.
const LOOKS: [&str; 31] = [
    "SET",
    "SHOW CLIENTS",
    "SHOW CLIENT_ENCODING",
    "SHOW CONFIG",
    "SHOW DATABASES",
    "SHOW GROUPS",
    "SHOW HELP",
    "SHOW LISTENERS",
    "SHOW TRANSACTIONS",
    "SHOW PROXIES",
    "SHOW LISTS",
    "SHOW MAP",
    "SHOW PEERS",
    "SHOW PINS",
    "SHOW PLANS",
    "SHOW POOLS",
    "SHOW REFUSALS",
    "SHOW RESHARD",
    "SHOW SERVERS",
    "SHOW SERVER_VERSION",
    "SHOW SHARDS",
    "SHOW STANDARD_CONFORMING_STRINGS",
    "SHOW STATE",
    "SHOW STATS",
    "SHOW STATS_AVERAGES",
    "SHOW STATS_TOTALS",
    "SHOW TABLES",
    "SHOW TRANSACTION ISOLATION LEVEL",
    "SHOW TRANSACTION_ISOLATION",
    "SHOW USERS",
    "SHOW VERSION",
];

/// Verbs that act, as they are said about a session.
fn acts(session: &str) -> [String; 5] {
    [
        "RELOAD".to_owned(),
        format!("KILL {session}"),
        "SHUTDOWN".to_owned(),
        "SHUTDOWN WAIT_FOR_CLIENTS".to_owned(),
        "SHUTDOWN IMMEDIATE".to_owned(),
    ]
}

/// Says it in the simple and in the extended protocol; how each went.
async fn say(client: &Client, text: &str) -> [Result<(), Error>; 2] {
    let simple = client.simple_query(text).await.map(drop);
    [simple, client.execute(text, &[]).await.map(drop)]
}

async fn session_of(client: &Client) -> String {
    row(&rows(client, "SHOW CLIENTS").await, "database", "app")["id"].clone()
}

#[test]
fn every_verb_is_in_one_of_the_two_lists() {
    let mut listed: Vec<&str> = VERBS.iter().map(|verb| verb.words).collect();
    listed.sort_unstable();
    let mut known = LOOKS.to_vec();
    known.extend([
        "KILL",
        "RELOAD",
        "SHUTDOWN",
        "SHUTDOWN IMMEDIATE",
        "SHUTDOWN WAIT_FOR_CLIENTS",
    ]);
    known.sort_unstable();
    assert_eq!(listed, known);
}

#[test]
fn every_role_says_what_it_may_and_nothing_else() {
    let stage = Stage::open();
    stage.block_on(async {
        let app = stage.client("alice", "app").await;
        let watcher = stage.client("watch", "shardway").await;
        let admin = stage.client("ops", "shardway").await;
        for verb in VERBS.iter().filter(|verb| LOOKS.contains(&verb.words)) {
            let text = if verb.command == Command::Set {
                "SET timezone = 'UTC'"
            } else {
                verb.words
            };
            for client in [&watcher, &admin] {
                for outcome in say(client, text).await {
                    outcome.unwrap_or_else(|error| panic!("{text}: {error}"));
                }
            }
        }
        let session = session_of(&watcher).await;
        let reloads = || async { stage.get("/metrics").await };
        for text in acts(&session) {
            let disguised = format!("/* SHOW POOLS */ {}", text.to_lowercase());
            for text in [text, disguised] {
                for outcome in say(&watcher, &text).await {
                    assert_eq!(code(&outcome.unwrap_err()), "42501", "{text}");
                }
                // To whom the console is closed these are statements for PostgreSQL, which knows none of them.
                for outcome in say(&app, &text).await {
                    assert_eq!(code(&outcome.unwrap_err()), "42601", "{text}");
                }
            }
        }
        let refused = stage.try_client("alice", "shardway").await.unwrap_err();
        assert_eq!(code(&refused), "42501");
        // Nothing was done by any of it.
        assert!(reloads().await.contains("\nshardway_reloads_total 0\n"));
        app.simple_query("SELECT 1").await.unwrap();
        let lists = rows(&admin, "SHOW STATE").await;
        assert!(!lists.is_empty());
    });
}

#[test]
fn an_admin_does_what_the_table_says() {
    for (at, verb) in acts("").iter().enumerate() {
        let stage = Stage::open();
        stage.block_on(async {
            let app = stage.client("alice", "app").await;
            let admin = stage.client("ops", "shardway").await;
            let text = acts(&session_of(&admin).await)[at].clone();
            // An end at once may take the answer with it.
            let answer = admin.simple_query(&text).await;
            assert!(answer.is_ok() || text == "SHUTDOWN IMMEDIATE", "{answer:?}");
            if verb == "RELOAD" {
                assert!(
                    stage
                        .get("/metrics")
                        .await
                        .contains("\nshardway_reloads_total 1\n")
                );
                app.simple_query("SELECT 1").await.unwrap();
                return;
            }
            // It is told in its own time.
            let ended = timeout(PATIENCE, async {
                loop {
                    if let Err(ended) = app.simple_query("SELECT 1").await {
                        return ended;
                    }
                }
            });
            let ended = ended.await.unwrap();
            assert!(
                ended.is_closed() || code(&ended) == "57P01",
                "{text}: {ended}"
            );
        });
    }
}

#[test]
fn what_stands_behind_a_command_that_is_allowed_is_judged_by_itself() {
    let stage = Stage::open();
    stage.block_on(async {
        let watcher = stage.client("watch", "shardway").await;
        for (text, expected) in [
            ("SHOW VERSION; RELOAD", "42501"),
            ("SHOW VERSION; SHUTDOWN IMMEDIATE", "42501"),
            ("SHOW VERSION RELOAD", "42601"),
        ] {
            let refused = watcher.simple_query(text).await.unwrap_err();
            assert_eq!(code(&refused), expected, "{text}");
        }
        let page = stage.get("/metrics").await;
        assert!(page.contains("\nshardway_reloads_total 0\n"), "{page}");
    });
}
