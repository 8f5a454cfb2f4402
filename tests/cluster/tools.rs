//! What GUI and BI tools ask when they connect and browse: through Shardway they get what one PostgreSQL answers, or are
//! refused with a reason; and what a session reads of catalogs comes from one server, whatever else it does between.
//!
//! The statements stand in `tools/*.sql`, one per paragraph. A line `-- differs: a, b` names columns that no two servers
//! have in common, `-- columns only` says that of all rows, and `-- refused: SW102` what several shards answer instead.

use crate::harness::{Proxy, Target, assert_same, block_on, customers_on, shop};
use std::fmt::Write as _;
use tokio_postgres::{Client, SimpleColumn, SimpleQueryMessage};

/// One statement of a tool, or several of one message.
#[derive(Debug, Default)]
struct Step {
    sql: String,
    differs: Vec<String>,
    rows: Rows,
    refused: Option<String>,
}

/// Which rows are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rows {
    #[default]
    All,
    /// The statement leaves their order open.
    InAnyOrder,
    None,
}

fn steps(text: &str) -> Vec<Step> {
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let mut step = Step::default();
        for line in paragraph.lines() {
            if let Some(columns) = line.strip_prefix("-- differs: ") {
                step.differs = columns.split(", ").map(str::to_owned).collect();
            } else if line == "-- columns only" {
                step.rows = Rows::None;
            } else if line == "-- in any order" {
                step.rows = Rows::InAnyOrder;
            } else if let Some(code) = line.strip_prefix("-- refused: ") {
                step.refused = Some(code.to_owned());
            } else if !line.starts_with("-- ") || line.starts_with("-- Metabase::") {
                step.sql.push_str(line);
                step.sql.push('\n');
            }
        }
        step
    });
    paragraphs
        .filter(|step| !step.sql.trim().is_empty())
        .collect()
}

/// What a tool has read before stands in for numbers that each server has chosen.
async fn filled(client: &Client, sql: &str) -> String {
    let mut sql = sql.to_owned();
    for (mark, meaning) in [
        ("{schema}", "'public'::regnamespace::oid"),
        ("{table}", "'public.orders'::regclass::oid"),
        (
            "{database}",
            "(SELECT oid FROM pg_database WHERE datname = current_database())",
        ),
    ] {
        if sql.contains(mark) {
            let rows = client
                .simple_query(&format!("SELECT {meaning}"))
                .await
                .unwrap();
            let row = rows.iter().find_map(|message| {
                let SimpleQueryMessage::Row(row) = message else {
                    return None;
                };
                row.get(0)
            });
            sql = sql.replace(mark, row.unwrap());
        }
    }
    sql
}

/// What a step answers, as text: columns, rows, ends of commands, or the error.
async fn answer(client: &Client, step: &Step) -> String {
    let sql = filled(client, &step.sql).await;
    let mut text = String::new();
    let messages = match client.simple_query(&sql).await {
        Ok(messages) => messages,
        Err(error) => return format!("{:?} {error:?}\n", error.code()),
    };
    for message in messages {
        if let SimpleQueryMessage::RowDescription(columns) = &message {
            let names: Vec<_> = columns.iter().map(SimpleColumn::name).collect();
            writeln!(text, "{}", names.join("|")).unwrap();
        }
        if step.rows == Rows::None {
            continue;
        }
        if let SimpleQueryMessage::Row(row) = &message {
            let values = row.columns().iter().enumerate().map(|(at, column)| {
                let differs = step.differs.iter().any(|name| name == column.name());
                if differs {
                    "…"
                } else {
                    row.get(at).unwrap_or("NULL")
                }
            });
            writeln!(text, "{}", values.collect::<Vec<_>>().join("|")).unwrap();
        }
        if let SimpleQueryMessage::CommandComplete(count) = &message {
            writeln!(text, "{count}").unwrap();
        }
    }
    text
}

/// The number of rows that the extended protocol gives, as drivers of Java ask; `None`: it is refused.
async fn prepared(client: &Client, step: &Step) -> Option<usize> {
    let sql = filled(client, &step.sql).await;
    let statement = client.prepare(&sql).await.ok()?;
    Some(client.query(&statement, &[]).await.ok()?.len())
}

/// A proxy before the server that holds everything.
fn before_the_whole() -> Proxy {
    let shop = shop();
    let port = shop.whole().port;
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[users.app]\npassword = \"app\"\n\
         [databases.shop]\nshards.only = {{ primary = \"postgres://127.0.0.1:{port}/shop\" }}\n"
    );
    Proxy::start(shop.dir(), &text)
}

/// Everything that a tool asks, in one session as the tool has it.
fn check(text: &str) {
    let shop = shop();
    let one = before_the_whole();
    let steps = steps(text);
    assert!(steps.len() > 5);
    let all: [Target; 3] = [shop.whole(), one.target(), shop.proxied()];
    block_on(async {
        let [direct, one, several] = [
            all[0].connect().await,
            all[1].connect().await,
            all[2].connect().await,
        ];
        let mut faults = String::new();
        for step in &steps {
            let expected = answer(&direct, step).await;
            assert!(!expected.contains("DbError"), "{}\n{expected}", step.sql);
            let told = answer(&several, step).await;
            let fits = match &step.refused {
                None if step.rows == Rows::InAnyOrder => sorted(&told) == sorted(&expected),
                None => told == expected,
                Some(code) => told.contains(&format!("({code})")),
            };
            if !fits {
                writeln!(
                    faults,
                    "{}\n{told}\nwhere one PostgreSQL says\n{expected}",
                    step.sql
                )
                .unwrap();
            }
            let alone = answer(&one, step).await;
            if step.rows == Rows::InAnyOrder {
                assert_eq!(sorted(&alone), sorted(&expected), "{}", step.sql);
            } else {
                assert_same(&expected, &alone);
            }
            let one_by_one = step.sql.matches(';').count() == 1;
            if one_by_one && step.rows == Rows::All {
                let rows = prepared(&direct, step).await;
                assert_eq!(prepared(&one, step).await, rows, "{}", step.sql);
                let expected = if step.refused.is_some() { None } else { rows };
                if prepared(&several, step).await != expected {
                    writeln!(faults, "prepared: {}", step.sql).unwrap();
                }
            }
        }
        assert!(faults.is_empty(), "{faults}");
    });
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn pgadmin_connects_and_browses() {
    check(include_str!("tools/pgadmin.sql"));
}

#[test]
fn dbeaver_connects_and_browses() {
    check(include_str!("tools/dbeaver.sql"));
}

#[test]
fn metabase_connects_and_syncs() {
    check(include_str!("tools/metabase.sql"));
}

#[test]
fn grafana_connects_and_lists() {
    check(include_str!("tools/grafana.sql"));
}

#[test]
fn what_a_session_reads_of_catalogs_comes_from_one_server() {
    let shop = shop();
    let keys: Vec<i64> = (0..3)
        .flat_map(|shard| customers_on(&shop.settings, shard).into_iter().take(2))
        .collect();
    block_on(async {
        let mut servers = std::collections::BTreeSet::new();
        for _ in 0..12 {
            let client = shop.proxied().connect().await;
            let which = "SELECT current_setting('port')";
            let first: String = client.query_one(which, &[]).await.unwrap().get(0);
            for key in &keys {
                let sql = "SELECT name FROM customers WHERE id = $1";
                client.query_one(sql, &[key]).await.unwrap();
                let again: String = client.query_one(which, &[]).await.unwrap().get(0);
                assert_eq!(
                    again, first,
                    "the session looks into another server's catalogs"
                );
            }
            servers.insert(first);
        }
        assert!(servers.len() > 1, "sessions are spread over servers");
    });
}
