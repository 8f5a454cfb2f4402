//! A slot's stream: every committed change once, in the order of commits, from where it was last confirmed.

use crate::reached::{address, environment, superuser};
use shardway::{
    clock::Duration,
    net::tls::ClientTls,
    replication::{
        connection::{Connection, Format, Lifetime, ReplicationError, Snapshot},
        streaming::Streaming,
    },
    sandbox::{Cluster, Sandbox},
    wire::{
        pgoutput::{Change, Old, Tuple, Value},
        replication::{Answer, Lsn, Progress, Streamed},
    },
};
use std::sync::OnceLock;

pub(crate) use crate::reached::block_on;

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn server() -> &'static Cluster {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    let start = || {
        let builder = Sandbox::builder(environment()).setting("wal_level", "logical");
        builder.start().unwrap()
    };
    SANDBOX.get_or_init(start).cluster(0)
}

/// A database with a table and its publication.
struct Source {
    name: &'static str,
}

impl Source {
    async fn new(name: &'static str) -> Self {
        let source = Self { name };
        server()
            .execute("postgres", &format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        source
            .run("CREATE TABLE t (id bigint PRIMARY KEY, n int, long text); ALTER TABLE t ALTER long SET STORAGE EXTERNAL; \
                  CREATE PUBLICATION \"the \"\"pub's\" FOR TABLE t")
            .await;
        source
    }

    async fn run(&self, sql: &str) {
        server().execute(self.name, sql).await.unwrap();
    }

    async fn connect(&self) -> Connection {
        let (address, credentials) = (address(server(), self.name), superuser());
        let tls = ClientTls::new().unwrap();
        Connection::open(&address, &credentials, LIMIT, &tls)
            .await
            .unwrap()
    }

    async fn stream(&self, slot: &str, format: Format) -> Streaming {
        self.streamed(slot, "the \"pub's", format).await.unwrap()
    }

    async fn streamed(
        &self,
        slot: &str,
        publication: &'static str,
        format: Format,
    ) -> Result<Streaming, ReplicationError> {
        let (connection, slot) = (self.connect().await, slot.to_owned());
        Streaming::open(async move {
            let started = connection.start(&slot, Lsn(0), publication, format);
            started.await
        })
        .await
    }
}

/// The changes up to the end of so many transactions, as lines, and where the last one ends.
async fn transactions(streaming: &mut Streaming, count: usize) -> (Vec<String>, Lsn) {
    let (mut lines, mut ended) = (Vec::new(), 0);
    loop {
        let next = tokio::time::timeout(LIMIT, streaming.next()).await.unwrap();
        let Streamed::Data { data, .. } = next.unwrap() else {
            continue;
        };
        let change = Change::decode(data).unwrap();
        let line = line(change);
        // A relation is told again whenever the server has looked at it again.
        if !(line.starts_with("relation") && lines.contains(&line)) {
            lines.push(line);
        }
        if let Change::Commit { end, .. } = change {
            ended += 1;
            if ended == count {
                return (lines, end);
            }
        }
    }
}

fn line(change: Change<'_>) -> String {
    match change {
        Change::Begin { .. } => "begin".to_owned(),
        Change::Commit { .. } => "commit".to_owned(),
        Change::Relation(relation) => {
            let columns = relation.columns().map(|column| {
                let key = if column.in_key { "*" } else { "" };
                format!("{key}{} {}", shown(column.name), column.oid)
            });
            let columns: Vec<String> = columns.collect();
            format!("relation {}: {}", shown(relation.name), columns.join(", "))
        }
        Change::Insert { new, .. } => format!("insert {}", row(new)),
        Change::Update { old, new, .. } => match old {
            Some(Old::Key(key)) => format!("update {} to {}", row(key), row(new)),
            Some(Old::Row(old)) => format!("replace {} by {}", row(old), row(new)),
            None => format!("update to {}", row(new)),
        },
        Change::Delete { old, .. } => match old {
            Old::Key(key) | Old::Row(key) => format!("delete {}", row(key)),
        },
        Change::Truncate { relations, .. } => format!("truncate {}", relations.iter().len()),
        Change::Message {
            transactional,
            prefix,
            content,
            ..
        } => format!(
            "message {transactional} {} {}",
            shown(prefix),
            shown(content)
        ),
        Change::Origin { .. } | Change::Type { .. } => "other".to_owned(),
    }
}

fn row(tuple: Tuple<'_>) -> String {
    let value = |value| match value {
        Value::Null => "null".to_owned(),
        Value::Unchanged => "same".to_owned(),
        Value::Text(text) if text.len() > 20 => format!("{} bytes", text.len()),
        Value::Text(text) => shown(text),
        Value::Binary(bytes) => format!("{bytes:?}"),
    };
    let values: Vec<String> = tuple.values().map(value).collect();
    format!("({})", values.join(", "))
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_change_is_streamed_in_the_order_of_commits() {
    block_on(async {
        let source = Source::new("changes").await;
        let mut commands = source.connect().await;
        let slot = commands
            .create_slot("changes", Lifetime::Persistent, Snapshot::Nothing)
            .await
            .unwrap();
        assert!(slot.consistent > Lsn(0) && slot.snapshot.is_none());
        let mut streaming = source.stream("changes", Format::Text).await;
        source
            .run("INSERT INTO t VALUES (1, 1, repeat('x', 5000)), (2, NULL, '')")
            .await;
        source
            .run("BEGIN; UPDATE t SET n = 2 WHERE id = 1; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; \
                  UPDATE t SET id = 3 WHERE id = 2; COMMIT")
            .await;
        source
            .run("BEGIN; INSERT INTO t VALUES (9); ROLLBACK; DELETE FROM t WHERE id = 1")
            .await;
        source
            .run("BEGIN; SELECT pg_logical_emit_message(true, 'shardway', 'fence'); TRUNCATE t; COMMIT")
            .await;
        let (lines, _) = transactions(&mut streaming, 4).await;
        let expected = [
            "begin",
            "relation t: *id 20, n 23, long 25",
            "insert (1, 1, 5000 bytes)",
            "insert (2, null, )",
            "commit",
            "begin",
            "update to (1, 2, same)",
            "update (2, null, null) to (3, null, )",
            "commit",
            "begin",
            "delete (1, null, null)",
            "commit",
            "begin",
            "message true shardway fence",
            "truncate 1",
            "commit",
        ];
        assert_eq!(lines, expected);
        drop(streaming);
        // Waits until the stream has ended.
        commands.drop_slot("changes").await.unwrap();
    });
}

#[test]
fn what_was_confirmed_does_not_come_again_and_what_was_not_does() {
    block_on(async {
        let source = Source::new("confirmed").await;
        let mut commands = source.connect().await;
        commands
            .create_slot("confirmed", Lifetime::Persistent, Snapshot::Nothing)
            .await
            .unwrap();
        source.run("INSERT INTO t VALUES (1)").await;
        source.run("INSERT INTO t VALUES (2)").await;
        let mut streaming = source.stream("confirmed", Format::Binary).await;
        let (lines, first) = transactions(&mut streaming, 1).await;
        assert_eq!(lines[2], "insert ([0, 0, 0, 0, 0, 0, 0, 1], null, null)");
        let progress = Progress {
            written: first,
            flushed: first,
            applied: first,
        };
        streaming.tell(progress, 0, Answer::Wanted).unwrap();
        // The server has heard it when it answers; the second transaction comes meanwhile.
        loop {
            if let Streamed::Alive { .. } = streaming.next().await.unwrap() {
                break;
            }
        }
        let busy = source.streamed("confirmed", "p", Format::Text).await;
        assert_eq!(busy.unwrap_err().sqlstate(), Some("55006"));
        // The connection is cut, not ended.
        drop(streaming);
        let mut again = loop {
            let name = "the \"pub's";
            match source.streamed("confirmed", name, Format::Text).await {
                Ok(streaming) => break streaming,
                Err(ReplicationError::Server { sqlstate, .. }) if sqlstate == "55006" => {}
                Err(error) => panic!("{error}"),
            }
        };
        let (lines, _) = transactions(&mut again, 1).await;
        assert_eq!(lines[2], "insert (2, null, null)");
        drop(again);
        commands.drop_slot("confirmed").await.unwrap();
    });
}

#[test]
fn a_slot_tells_what_is_before_it() {
    block_on(async {
        let source = Source::new("exported").await;
        source.run("INSERT INTO t VALUES (1)").await;
        let mut commands = source.connect().await;
        let system = commands.identify().await.unwrap();
        assert!(system.identifier > 0 && system.timeline == 1 && system.flushed > Lsn(0));
        let made = commands.create_slot("exported", Lifetime::Temporary, Snapshot::Exported);
        let slot = made.await.unwrap();
        let snapshot = slot.snapshot.unwrap();
        source.run("INSERT INTO t VALUES (2)").await;
        let seen = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'; \
             DO $$ BEGIN ASSERT (SELECT array_agg(id) = '{{1}}' FROM t); END $$; COMMIT"
        );
        source.run(&seen).await;
        let twice = commands.create_slot("exported", Lifetime::Temporary, Snapshot::Nothing);
        assert_eq!(twice.await.unwrap_err().sqlstate(), Some("42710"));
        // The connection goes on after an error, which has taken its temporary slots.
        let none = commands.drop_slot("exported").await;
        assert_eq!(none.unwrap_err().sqlstate(), Some("42704"));
    });
}

#[test]
fn a_server_that_stops_ends_the_stream() {
    block_on(async {
        let source = Source::new("ended").await;
        let mut commands = source.connect().await;
        commands
            .create_slot("ended", Lifetime::Persistent, Snapshot::Nothing)
            .await
            .unwrap();
        let mut streaming = source.stream("ended", Format::Text).await;
        source
            .run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'ended'")
            .await;
        let ended = loop {
            match streaming.next().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(ended.sqlstate(), Some("57P01"), "{ended}");
        commands.drop_slot("ended").await.unwrap();
    });
}
