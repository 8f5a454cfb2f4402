//! One side of the comparison: a connection, and what it answered.

use crate::{generate::Statement, value::Raw};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, types::ToSql};

/// What a client has seen of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Column names and types, rows, what the command tag counts.
    Rows {
        columns: Vec<String>,
        rows: Vec<Vec<Raw>>,
    },
    /// Simple protocol: per statement of the text.
    Texts(Vec<Part>),
    /// SQLSTATE.
    Error(String),
    /// Refused by Shardway: its code.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    count: u64,
}

impl Answer {
    /// Of a COPY.
    pub(crate) fn lines(lines: Vec<String>) -> Self {
        let count = lines.len() as u64;
        let rows = lines.into_iter().map(|line| vec![Some(line)]).collect();
        let columns = Vec::new();
        Self::Texts(vec![Part {
            columns,
            rows,
            count,
        }])
    }

    /// Whether both are right for the statement. Numerics that differ in their scale alone are equal to ORDER BY:
    /// which of 1.5 and 1.5000 comes first, and which of them a LIMIT keeps, is open.
    pub(crate) fn agrees(&self, other: &Self, statement: &Statement) -> bool {
        if self == other {
            return true;
        }
        let sql = statement.sql.to_ascii_lowercase();
        let limited = sql.contains(" limit ") || sql.contains(" fetch first ");
        statement.ordered
            && sql.contains("ledger")
            && (limited || self.sorted() == other.sorted())
            && self.without_scales() == other.without_scales()
    }

    /// The rows as a set.
    fn sorted(&self) -> Self {
        let mut sorted = self.clone();
        match &mut sorted {
            Self::Rows { rows, .. } => rows.sort(),
            Self::Texts(parts) => parts.iter_mut().for_each(|part| part.rows.sort()),
            Self::Error(_) | Self::Refused(_) => {}
        }
        sorted
    }

    /// The rows in their order, with numerics as values and not as they are written.
    fn without_scales(&self) -> Self {
        let mut plain = self.clone();
        match &mut plain {
            Self::Rows { columns, rows } => {
                for row in rows {
                    for (value, column) in row.iter_mut().zip(&*columns) {
                        if column.ends_with(" numeric") {
                            value.forget_scale();
                        }
                    }
                }
            }
            Self::Texts(parts) => {
                let rows = parts.iter_mut().flat_map(|part| &mut part.rows);
                rows.flatten().flatten().for_each(forget_scale);
            }
            Self::Error(_) | Self::Refused(_) => {}
        }
        plain
    }
}

/// Drops the zeros at the end of a decimal fraction; leaves every other text.
fn forget_scale(text: &mut String) {
    let is_fraction = text.contains('.')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'));
    if is_fraction {
        let kept = text.trim_end_matches('0').trim_end_matches('.').len();
        text.truncate(kept);
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A connection with its prepared statements.
pub(crate) struct Side {
    pub(crate) client: Client,
    prepared: HashMap<String, tokio_postgres::Statement>,
}

impl Side {
    pub(crate) async fn connect(config: &Config) -> Self {
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection ended: {error}");
            }
        });
        Self {
            client,
            prepared: HashMap::new(),
        }
    }

    /// Waits until the proxy has asked the servers what they have: it knows then of the table that hides another, and can
    /// commit on several shards.
    pub(crate) async fn learnt(&self) {
        self.command("SET search_path TO early, public").await;
        let begun = SystemTime::now();
        while !matches!(
            self.command("SELECT n FROM ship WHERE region = 'eu'").await,
            Answer::Refused(_)
        ) {
            begun_lately(begun).await;
        }
        loop {
            self.command("BEGIN").await;
            self.command("UPDATE public.span SET n = n").await;
            if matches!(self.command("COMMIT").await, Answer::Texts(_)) {
                return;
            }
            begun_lately(begun).await;
        }
    }

    pub(crate) async fn command(&self, sql: &str) -> Answer {
        match self.client.simple_query(sql).await {
            Ok(messages) => texts(messages, false),
            Err(error) => failed(&error),
        }
    }

    pub(crate) async fn ask(&mut self, statement: &Statement) -> Answer {
        if statement.parameters.is_empty() {
            return match self.client.simple_query(&statement.sql).await {
                Ok(messages) => texts(messages, statement.ordered),
                Err(error) => failed(&error),
            };
        }
        if !self.prepared.contains_key(&statement.sql) {
            if self.prepared.len() > 200 {
                self.prepared.clear();
            }
            match self.client.prepare(&statement.sql).await {
                Ok(prepared) => drop(self.prepared.insert(statement.sql.clone(), prepared)),
                Err(error) => return failed(&error),
            }
        }
        let prepared = &self.prepared[&statement.sql];
        let parameters: Vec<&(dyn ToSql + Sync)> = statement
            .parameters
            .iter()
            .take(prepared.params().len())
            .map(|value| value as _)
            .collect();
        match self.client.query(prepared, &parameters).await {
            Ok(found) => {
                let columns = prepared
                    .columns()
                    .iter()
                    .map(|column| format!("{} {}", column.name(), column.type_()))
                    .collect();
                let mut rows: Vec<Vec<Raw>> = found
                    .iter()
                    .map(|row| (0..row.len()).map(|at| row.get(at)).collect())
                    .collect();
                if !statement.ordered {
                    rows.sort();
                }
                Answer::Rows { columns, rows }
            }
            Err(error) => failed(&error),
        }
    }
}

/// Gives the proxy a moment, unless it has had enough.
async fn begun_lately(begun: SystemTime) {
    assert!(
        begun.elapsed().unwrap() < PATIENCE,
        "the proxy has not asked the servers"
    );
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn texts(messages: Vec<SimpleQueryMessage>, ordered: bool) -> Answer {
    let mut parts = Vec::new();
    let mut part = Part {
        columns: Vec::new(),
        rows: Vec::new(),
        count: 0,
    };
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                part.columns = columns
                    .iter()
                    .map(|column| column.name().to_owned())
                    .collect();
            }
            SimpleQueryMessage::Row(row) => {
                part.rows.push(
                    (0..row.len())
                        .map(|at| row.get(at).map(str::to_owned))
                        .collect(),
                );
            }
            SimpleQueryMessage::CommandComplete(count) => {
                if !ordered {
                    part.rows.sort();
                }
                part.count = count;
                parts.push(std::mem::replace(
                    &mut part,
                    Part {
                        columns: Vec::new(),
                        rows: Vec::new(),
                        count: 0,
                    },
                ));
            }
            _ => {}
        }
    }
    Answer::Texts(parts)
}

pub(crate) fn failed(error: &tokio_postgres::Error) -> Answer {
    let Some(error) = error.as_db_error() else {
        return Answer::Error(format!("connection: {error}"));
    };
    let code = error.detail().and_then(|detail| {
        let at = detail.find("SW")?;
        let code = detail.get(at..at + 5)?;
        code[2..]
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| code.to_owned())
    });
    match code {
        Some(code) => Answer::Refused(code),
        None => Answer::Error(error.code().code().to_owned()),
    }
}

#[test]
fn only_the_order_of_equal_numerics_is_open() {
    let answer = |rows: &[&str]| {
        let columns = vec!["k".to_owned()];
        let rows = rows.iter().map(|k| vec![Some((*k).to_owned())]).collect();
        let count = 2;
        Answer::Texts(vec![Part {
            columns,
            rows,
            count,
        }])
    };
    let agree = |sql: &str, ordered, left: &[&str], right: &[&str]| {
        let statement = Statement {
            sql: sql.to_owned(),
            parameters: Vec::new(),
            ordered,
            usage: crate::generate::Use::Read,
            setting: None,
            shape: "scan",
        };
        answer(left).agrees(&answer(right), &statement)
    };
    let (all, first) = (
        "SELECT k FROM ledger ORDER BY 1",
        "SELECT k FROM Ledger ORDER BY 1 LIMIT 2",
    );
    assert!(agree(all, true, &["1.5", "1.5000"], &["1.5000", "1.5"]));
    assert!(agree(first, true, &["1.5", "1.5"], &["1.5000", "1.5"]));
    assert!(!agree(all, true, &["1.5", "1.5"], &["1.5000", "1.5"]));
    assert!(!agree(first, true, &["1.5", "15"], &["15", "1.5"]));
    assert!(!agree(all, false, &["1.5", "1.5000"], &["1.5000", "1.5"]));
    assert!(!agree(
        "SELECT k FROM acct",
        true,
        &["1", "1.0"],
        &["1.0", "1"]
    ));
}
