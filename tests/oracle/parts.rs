//! Answers that come in parts, and rows that are sent as such: cursors, portals and COPY.

use crate::{
    Run,
    answer::{Answer, Side, failed},
    generate::{Generator, Statement, Use},
    random::Random,
    schema::{Keys, TABLES, Table, quoted},
    short,
    value::Raw,
};
use futures_util::{SinkExt as _, StreamExt as _};
use std::{pin::pin, time::Instant};
use tokio_postgres::{CopyInSink, Error, types::ToSql};

impl Run {
    /// A COPY each way, a cursor and a portal; how many statements.
    pub(crate) async fn parts(&mut self, random: &mut Random, path: &str, place: &str) -> usize {
        let mut done = self.whole(random, place).await;
        done += self.copies(random, path, place).await;
        done += self.cursor(random, path, place).await;
        done + self.portal(random, path, place).await
    }

    /// Everything that is there, row by row and counted.
    async fn whole(&mut self, random: &mut Random, place: &str) -> usize {
        let sharded: Vec<&Table> = TABLES.iter().filter(|table| table.sharded()).collect();
        let tables = [0; 3].map(|_| sharded[random.below(sharded.len())]);
        for table in tables {
            let (name, key) = (table.full_name(), quoted(table.key));
            let what = random.pick(&["*", "count(*), count(n), sum(n)", "count(DISTINCT n)"]);
            let also = random.pick(&["", " WHERE n IS NOT NULL", " WHERE n < 4"]);
            let sql = match random.below(3) {
                0 => format!("SELECT {what} FROM {name} t{also}"),
                1 => format!("SELECT {key}, count(*) FROM {name} t{also} GROUP BY 1 ORDER BY 1"),
                _ => format!("SELECT {what} FROM {name} t{also}"),
            };
            self.one(&plain(sql, "whole table"), place).await;
        }
        tables.len()
    }

    async fn copies(&mut self, random: &mut Random, path: &str, place: &str) -> usize {
        let generator = Generator::new(random.next(), random.next(), path).of_keys(self.keys);
        let (table, filter, rows) = generator.copy();
        let name = table.full_name();
        let key = quoted(table.key);
        let format = random.pick(&["", " (FORMAT csv)", " WITH (FORMAT text, NULL 'none')"]);
        let out = match random.below(3) {
            0 => format!("COPY {name} TO STDOUT{format}"),
            1 => format!("COPY {name} ({key}, n) TO STDOUT{format}"),
            _ => format!("COPY (SELECT * FROM {name} t WHERE {filter}) TO STDOUT{format}"),
        };
        let begun = Instant::now();
        let proxied = self.proxied.copied_out(&out).await;
        self.note(begun, &proxied, &out);
        self.judge("copy out", &out, place, &proxied, async |direct| {
            direct.copied_out(&out).await
        })
        .await;
        self.both("BEGIN", place).await;
        let (also, width) = match (table.unique, self.keys) {
            ("", Keys::OfAll) => (", seq", 4),
            ("acct_id, no", _) => (", no", 4),
            _ => ("", 3),
        };
        let copy = format!("COPY {name} ({key}, n, note{also}) FROM STDIN");
        let lines: String = rows.iter().map(|row| line(&row[..width])).collect();
        let begun = Instant::now();
        let proxied = self.proxied.copied_in(&copy, &lines).await;
        self.note(begun, &proxied, &copy);
        let what = format!("{copy}\n{lines}");
        self.judge("copy in", &what, place, &proxied, async |direct| {
            direct.copied_in(&copy, &lines).await
        })
        .await;
        let refused = matches!(proxied, Answer::Refused(_));
        let end = if refused || random.chance(60) {
            "ROLLBACK"
        } else {
            "COMMIT"
        };
        self.both(end, place).await;
        2
    }

    /// A cursor that is read in parts, with other statements in between.
    async fn cursor(&mut self, random: &mut Random, path: &str, place: &str) -> usize {
        let generator = Generator::new(random.next(), random.next(), path).of_keys(self.keys);
        let (sql, ordered) = generator.cursor();
        self.both("BEGIN", place).await;
        let declare = format!("DECLARE part CURSOR FOR {sql}");
        let statement = |sql| plain(sql, "cursor");
        let mut done = 1;
        if self.one(&statement(declare.clone()), place).await == crate::Went::Well {
            let place = format!("{place}, of {declare}");
            let fetches: &[&str] = if ordered {
                &[
                    "FETCH 2 FROM part",
                    "FETCH FROM part",
                    "FETCH ALL FROM part",
                ]
            } else {
                &["FETCH ALL FROM part", "FETCH FROM part"]
            };
            for fetch in fetches {
                self.one(&statement((*fetch).to_owned()), &place).await;
                let between = Generator::new(random.next(), random.next(), path).of_keys(self.keys);
                self.both("SAVEPOINT part", &place).await;
                if self.one(&between.single(), &place).await == crate::Went::Wrong {
                    self.both("ROLLBACK TO part", &place).await;
                }
                done += 2;
            }
        }
        self.both("ROLLBACK", place).await;
        done
    }

    /// A portal that is read in parts.
    async fn portal(&mut self, random: &mut Random, path: &str, place: &str) -> usize {
        let statement = loop {
            let generator = Generator::new(random.next(), random.next(), path).of_keys(self.keys);
            let statement = generator.single();
            if !statement.parameters.is_empty() && !statement.sql.starts_with("/*") {
                break statement;
            }
        };
        let most = 1 + i32::try_from(random.below(4)).unwrap();
        let begun = Instant::now();
        let proxied = self.proxied.portal(&statement, most).await;
        self.note(begun, &proxied, &statement.sql);
        let what = format!(
            "by {most}: {} with {:?}",
            statement.sql, statement.parameters
        );
        let limited = statement.ordered && statement.sql.contains("ledger");
        if !limited {
            self.judge("portal", &what, place, &proxied, async |direct| {
                direct.portal(&statement, most).await
            })
            .await;
        }
        1
    }

    /// Counts an answer, and compares it with PostgreSQL's unless it was refused.
    async fn judge(
        &mut self,
        shape: &'static str,
        what: &str,
        place: &str,
        proxied: &Answer,
        direct: impl AsyncFnOnce(&mut Side) -> Answer,
    ) {
        self.count(shape, proxied);
        if matches!(proxied, Answer::Refused(_)) {
            return;
        }
        let direct = direct(&mut self.direct).await;
        if direct != *proxied {
            self.mismatches.push(format!(
                "{place}, {shape}: {what}\n  PostgreSQL {}\n  Shardway   {}",
                short(&direct),
                short(proxied)
            ));
        }
    }
}

fn plain(sql: String, shape: &'static str) -> Statement {
    Statement {
        sql,
        parameters: Vec::new(),
        ordered: false,
        usage: Use::Read,
        setting: None,
        shape,
    }
}

/// A row as COPY sends it.
fn line(row: &[String]) -> String {
    let escaped = row.iter().map(|value| value.replace('\\', "\\\\"));
    let values: Vec<String> = escaped.collect();
    values.join("\t") + "\n"
}

impl Side {
    /// The lines of a COPY TO STDOUT, sorted.
    async fn copied_out(&self, sql: &str) -> Answer {
        let mut all = Vec::new();
        match self.client.copy_out(sql).await {
            Ok(stream) => {
                let mut stream = pin!(stream);
                while let Some(part) = stream.next().await {
                    match part {
                        Ok(part) => all.extend_from_slice(&part),
                        Err(error) => return failed(&error),
                    }
                }
            }
            Err(error) => return failed(&error),
        }
        let text = String::from_utf8(all).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Answer::lines(lines)
    }

    async fn copied_in(&self, sql: &str, lines: &str) -> Answer {
        let sent = async {
            let sink: CopyInSink<bytes::Bytes> = self.client.copy_in(sql).await?;
            let mut sink = pin!(sink);
            sink.send(bytes::Bytes::copy_from_slice(lines.as_bytes()))
                .await?;
            sink.finish().await
        };
        match sent.await {
            Ok(rows) => Answer::lines(vec![rows.to_string()]),
            Err(error) => failed(&error),
        }
    }

    /// Rows of a portal by so many, in a transaction that is rolled back.
    async fn portal(&mut self, statement: &Statement, most: i32) -> Answer {
        let read = async {
            let transaction = self.client.transaction().await?;
            let prepared = transaction.prepare(&statement.sql).await?;
            let parameters = statement.parameters.iter().take(prepared.params().len());
            let parameters: Vec<&(dyn ToSql + Sync)> = parameters.map(|value| value as _).collect();
            let portal = transaction.bind(&prepared, &parameters).await?;
            let mut rows: Vec<Vec<Raw>> = Vec::new();
            loop {
                let part = transaction.query_portal(&portal, most).await?;
                let raw = part
                    .iter()
                    .map(|row| (0..row.len()).map(|at| row.get(at)).collect());
                rows.extend(raw);
                if part.len() < usize::try_from(most).unwrap() {
                    break;
                }
            }
            transaction.rollback().await?;
            Ok::<_, Error>(rows)
        };
        match read.await {
            Ok(mut rows) => {
                if !statement.ordered {
                    rows.sort();
                }
                Answer::Rows {
                    columns: Vec::new(),
                    rows,
                }
            }
            Err(error) => failed(&error),
        }
    }
}
