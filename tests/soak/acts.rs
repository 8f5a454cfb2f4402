//! What a living client does: each act knows every answer to the letter.

use crate::{
    client::{Batch, batch, shown},
    life::{Life, expect, shard_of},
    stage::Place,
    wire::End,
};
use std::{fmt::Write as _, sync::atomic::Ordering::Relaxed, time::Duration};

/// Texts of prepared statements that persons share.
const PREPARED: usize = 40;

impl Life<'_> {
    /// Does something.
    pub(crate) async fn act(&mut self) -> Result<(), End> {
        match self.person.random.below(100) {
            0..10 => self.echo().await,
            10..25 => self.read_row().await,
            25..35 => self.write_row().await,
            35..45 => self.run_prepared().await,
            45..53 => self.pipeline().await,
            53..68 => self.transaction().await,
            68..73 => self.set().await,
            73..76 => self.check_settings().await,
            76..81 => self.fail().await,
            81..85 => self.copy_in().await,
            85..88 => self.copy_out().await,
            88..91 => self.read_much().await,
            91..93 => self.long_value().await,
            93..95 => self.fetch_in_parts().await,
            95..97 => self.sleep_and_cancel().await,
            97..98 => self.leave_the_server_busy().await,
            98..99 => self.listen().await,
            _ => self.lock().await,
        }
    }

    async fn echo(&mut self) -> Result<(), End> {
        let word = self.person.word();
        let sql = format!("select '{word}'::text, {}", self.person.number);
        let row = format!("D {word}|{}", self.person.number);
        let found = self.say(&batch().query(&sql), 1).await?;
        expect(&sql, &found, &[&row, "C SELECT 1", "Z I"])
    }

    /// One of the person's rows, made if there is none.
    async fn some_row(&mut self) -> Result<i64, End> {
        if self.person.rows.is_empty() || self.person.random.chance(20) {
            self.write_row().await?;
        }
        let at = self.person.random.below(self.person.rows.len());
        let row = self.person.rows.keys().nth(at);
        row.copied()
            .ok_or_else(|| End::Wrong("no row after writing one".to_owned()))
    }

    /// A row that is there for certain, and its body.
    async fn sure_row(&mut self) -> Result<(i64, String), End> {
        loop {
            let row = self.some_row().await?;
            if let [Some(body)] = &self.person.bodies(row)[..] {
                return Ok((row, body.clone()));
            }
            self.write_row().await?;
        }
    }

    async fn read_row(&mut self) -> Result<(), End> {
        let row = self.some_row().await?;
        let (said, begin) = match self.person.random.below(3) {
            0 => (
                batch().query(&format!("select id, body from items where id = {row}")),
                0,
            ),
            1 => {
                let run = batch().run(
                    "select id, body from items where id = $1",
                    &[&row.to_string()],
                );
                (run.sync(), 2)
            }
            _ => {
                let sql = format!("select id, body from items where id = {row}");
                (batch().run(&sql, &[]).sync(), 2)
            }
        };
        let found = self.say(&said, 1).await?;
        self.check_row(row, &found[begin.min(found.len())..], "Z I")
    }

    /// The answer holds the row as it may be.
    fn check_row(&self, row: i64, found: &[String], ready: &str) -> Result<(), End> {
        let bodies = self.person.bodies(row);
        let mut wrong = Ok(());
        for body in bodies {
            let answer = match &body {
                Some(body) => vec![
                    format!("D {row}|{body}"),
                    "C SELECT 1".to_owned(),
                    ready.to_owned(),
                ],
                None => vec!["C SELECT 0".to_owned(), ready.to_owned()],
            };
            let answer: Vec<_> = answer.iter().map(String::as_str).collect();
            match expect(&format!("row {row}"), found, &answer) {
                Ok(()) => return Ok(()),
                Err(end) => wrong = Err(end),
            }
        }
        wrong
    }

    /// Makes or changes a row outside a transaction.
    pub(crate) async fn write_row(&mut self) -> Result<(), End> {
        let body = self.person.word();
        let known = self.person.rows.keys().next_back().copied();
        let known = known.filter(|row| matches!(self.person.bodies(*row)[..], [Some(_)]));
        let (row, sql, tag) = match known.filter(|_| self.person.random.chance(50)) {
            Some(row) => (
                row,
                "update items set body = $1 where id = $2",
                "C UPDATE 1",
            ),
            None => {
                let row = self.person.fresh_row(self.world, None);
                (
                    row,
                    "insert into items (body, id) values ($1, $2)",
                    "C INSERT 0 1",
                )
            }
        };
        let (said, before): (Batch, &[&str]) = if self.person.random.chance(50) {
            let run = batch().run(sql, &[&body, &row.to_string()]);
            (run.sync(), &["1", "2"])
        } else {
            let text = sql
                .replace("$1", &format!("'{body}'"))
                .replace("$2", &row.to_string());
            (batch().query(&text), &[])
        };
        let mut bodies = self.person.bodies(row);
        bodies.push(Some(body.clone()));
        self.person.rows.insert(row, bodies);
        let found = self.say(&said, 1).await?;
        expect(sql, &found, &[before, &[tag, "Z I"]].concat())?;
        self.person.rows.insert(row, vec![Some(body)]);
        Ok(())
    }

    /// A statement that many persons have prepared under the same name, each with his own text among several.
    async fn run_prepared(&mut self) -> Result<(), End> {
        let kind = (self.person.number / 2 + self.person.random.below(3)) % PREPARED;
        let name = format!("mine{}", kind % 3);
        let word = self.person.word();
        let mut said = batch();
        let mut expected = Vec::new();
        let known = self.prepared.contains(&kind);
        if !known {
            said = said.close(&name);
            said = said.parse(
                &name,
                &format!("select $1::text || ' as {kind}', {kind}::int"),
            );
            expected.extend(["3", "1"]);
        }
        let row = format!("D {word} as {kind}|{kind}");
        let said = said.call(&name, &[&word]).sync();
        expected.extend(["2", &row, "C SELECT 1", "Z I"]);
        let found = self.say(&said, 1).await?;
        self.prepared.retain(|other| other % 3 != kind % 3);
        self.prepared.insert(kind);
        expect("a prepared statement", &found, &expected)
    }

    /// Several statements at once, with one Sync or one each, one of them perhaps failing.
    async fn pipeline(&mut self) -> Result<(), End> {
        let count = 2 + self.person.random.below(8);
        let each = self.person.random.chance(50);
        let fails = self.person.random.chance(30).then_some(count / 2);
        let (mut said, mut expected) = (batch(), Vec::new());
        let mut skipped = false;
        for at in 0..count {
            let word = self.person.word();
            let by = if fails == Some(at) { "0" } else { "1" };
            said = said.run("select $1::text, 1 / $2::int", &[&word, by]);
            if !skipped {
                expected.push("1".to_owned());
                if fails == Some(at) {
                    // Planned with its values at Bind, where a constant is computed.
                    expected.push("E ERROR 22012 division by zero".to_owned());
                    skipped = true;
                } else {
                    expected.extend(["2".to_owned(), format!("D {word}|1")]);
                    expected.push("C SELECT 1".to_owned());
                }
            }
            if each {
                said = said.sync();
                expected.push("Z I".to_owned());
                skipped = false;
            }
        }
        if !each {
            said = said.sync();
            expected.push("Z I".to_owned());
        }
        let found = self.say(&said, if each { count } else { 1 }).await?;
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        expect("a pipeline", &found, &expected)
    }

    /// Changes a row and makes another on the same shard, seen inside at once and outside as the end decides.
    async fn transaction(&mut self) -> Result<(), End> {
        let (row, old) = self.sure_row().await?;
        let other = match self.person.place {
            Place::Single => self.person.fresh_row(self.world, None),
            Place::Sharded => {
                let shard = shard_of(&self.world.snapshot, row);
                self.person.fresh_row(self.world, Some(shard))
            }
        };
        let [begun, new] = [self.person.word(), self.person.word()];
        self.ask("begin", &["C BEGIN", "Z T"]).await?;
        let sql = format!("update items set body = '{begun}' where id = {row}");
        self.ask(&sql, &["C UPDATE 1", "Z T"]).await?;
        self.ask("savepoint here", &["C SAVEPOINT", "Z T"]).await?;
        let sql = format!("insert into items values ({other}, '{new}')");
        self.ask(&sql, &["C INSERT 0 1", "Z T"]).await?;
        let keeps = self.person.random.chance(50);
        if !keeps {
            let sql = "rollback to here";
            self.ask(sql, &["C ROLLBACK", "Z T"]).await?;
        }
        if self.person.random.chance(20) {
            let sql = format!("select 1 / 0 from items where id = {row}");
            let error = "E ERROR 22012 division by zero";
            self.ask(&sql, &[error, "Z E"]).await?;
            let error = "E ERROR 25P02 current transaction is aborted, \
                         commands ignored until end of transaction block";
            self.ask(&sql, &[error, "Z E"]).await?;
            return self.ask("commit", &["C ROLLBACK", "Z I"]).await;
        }
        let run = batch().run("select body from items where id = $1", &[&row.to_string()]);
        let found = self.say(&run.sync(), 1).await?;
        let line = format!("D {begun}");
        expect("inside", &found, &["1", "2", &line, "C SELECT 1", "Z T"])?;
        if self.person.random.chance(30) {
            return self.ask("rollback", &["C ROLLBACK", "Z I"]).await;
        }
        let made = keeps.then_some(new);
        self.person
            .rows
            .insert(row, vec![Some(old), Some(begun.clone())]);
        self.person.rows.insert(other, vec![None, made.clone()]);
        self.ask("commit", &["C COMMIT", "Z I"]).await?;
        self.person.rows.insert(row, vec![Some(begun)]);
        self.person.rows.insert(other, vec![made]);
        Ok(())
    }

    /// One simple query and its answer.
    async fn ask(&mut self, sql: &str, expected: &[&str]) -> Result<(), End> {
        let found = self.say(&batch().query(sql), 1).await?;
        expect(sql, &found, expected)
    }

    async fn set(&mut self) -> Result<(), End> {
        let number = 1 + self.person.random.below(50);
        let (name, value) = match self.person.random.below(3) {
            0 => ("application_name", self.person.word()),
            1 => ("work_mem", format!("{number}MB")),
            _ => ("soak.mark", self.person.word()),
        };
        let sql = format!("set {name} to '{value}'");
        if self.person.random.chance(25) {
            // Nothing of it stays.
            self.ask("begin", &["C BEGIN", "Z T"]).await?;
            self.ask(&sql, &["C SET", "Z T"]).await?;
            return self.ask("rollback", &["C ROLLBACK", "Z I"]).await;
        }
        self.ask(&sql, &["C SET", "Z I"]).await?;
        self.settings.insert(name, value);
        Ok(())
    }

    async fn check_settings(&mut self) -> Result<(), End> {
        let get = |name| self.settings.get(name).map_or("", String::as_str);
        let memory = match get("work_mem") {
            "" => "4MB",
            set => set,
        };
        let row = format!(
            "D {}|{memory}|{}",
            get("application_name"),
            get("soak.mark")
        );
        let sql = "select current_setting('application_name'), current_setting('work_mem'), \
                   coalesce(current_setting('soak.mark', true), '')";
        self.ask(sql, &[&row, "C SELECT 1", "Z I"]).await
    }

    async fn fail(&mut self) -> Result<(), End> {
        let (sql, error) = match self.person.random.below(3) {
            0 => ("select 1 / 0", "E ERROR 22012 division by zero"),
            1 => ("selec 1", "E ERROR 42601 syntax error at or near \"selec\""),
            _ => (
                "select 'x'::int",
                "E ERROR 22P02 invalid input syntax for type integer: \"x\"",
            ),
        };
        self.ask(sql, &[error, "Z I"]).await
    }

    /// COPY of fresh rows of one shard, ended by the client's success or failure, or by its death.
    async fn copy_in(&mut self) -> Result<(), End> {
        let first = self.person.fresh_row(self.world, None);
        let sharded = self.person.place == Place::Sharded;
        let shard = sharded.then(|| shard_of(&self.world.snapshot, first));
        let mut rows = vec![(first, self.person.word())];
        for _ in 0..self.person.random.below(300) {
            let row = self.person.fresh_row(self.world, shard);
            rows.push((row, self.person.word()));
        }
        let hint = shard.map_or_else(String::new, |shard| {
            format!("/* shardway: shard=s{} */ ", shard.index())
        });
        let sql = format!("{hint}copy items from stdin");
        self.mutter(&batch().query(&sql)).await?;
        // Another backend may have other settings than the last, of which the client is told.
        let (mut tag, mut body) = self.wire.frame().await?;
        while tag == b'S' {
            (tag, body) = self.wire.frame().await?;
        }
        if tag != b'G' {
            return Err(End::Wrong(format!("{sql}: {}", shown(tag, &body))));
        }
        for some in rows.chunks(50) {
            let mut text = String::new();
            for (row, body) in some {
                writeln!(text, "{row}\t{body}").unwrap();
            }
            self.mutter(&batch().copy_data(&text)).await?;
        }
        if self.person.random.chance(20) {
            let found = self.say(&batch().copy_fail("enough"), 1).await?;
            let error = "E ERROR 57014 COPY from stdin failed: enough";
            return expect(&sql, &found, &[error, "Z I"]);
        }
        let tag = format!("C COPY {}", rows.len());
        for (row, body) in &rows {
            let may_be = vec![None, Some(body.clone())];
            self.person.rows.insert(*row, may_be);
        }
        let found = self.say(&batch().bare(b'c'), 1).await?;
        expect(&sql, &found, &[&tag, "Z I"])?;
        for (row, body) in rows {
            self.person.rows.insert(row, vec![Some(body)]);
        }
        Ok(())
    }

    async fn copy_out(&mut self) -> Result<(), End> {
        let (row, body) = self.sure_row().await?;
        let count = 1 + self.person.random.below(2000);
        let sql = format!(
            "copy (select n.n || ' of {count}', body from items, generate_series(1, {count}) n(n) \
             where id = {row} order by n.n) to stdout"
        );
        let found = self.say(&batch().query(&sql), 1).await?;
        let mut expected = vec!["H".to_owned()];
        expected.extend((1..=count).map(|at| format!("d {at} of {count}\\t{body}")));
        expected.extend(["c".to_owned(), format!("C COPY {count}"), "Z I".to_owned()]);
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        expect(&sql, &found, &expected)
    }

    /// A big result, read slowly, and perhaps left in the middle.
    async fn read_much(&mut self) -> Result<(), End> {
        let (row, body) = self.sure_row().await?;
        let count = 1000 + self.person.random.below(20_000);
        let left_at = self
            .person
            .random
            .chance(30)
            .then(|| self.person.random.below(count));
        let sql = format!(
            "select n.n, body from items, generate_series(1, {count}) n(n) where id = {row} order by n.n"
        );
        self.hold().await;
        self.mutter(&batch().query(&sql)).await?;
        let mut at = 0;
        loop {
            let (tag, body_of_frame) = self.wire.frame().await?;
            let line = shown(tag, &body_of_frame);
            match tag {
                b'D' => {
                    at += 1;
                    let expected = format!("D {at}|{body}");
                    expect(&sql, &[line], &[&expected])?;
                }
                b'Z' => break,
                b'T' | b'S' | b'C' => {}
                _ => return Err(End::Wrong(format!("{sql}: {line}"))),
            }
            if at % 1000 == 500 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if left_at == Some(at) {
                return self.die();
            }
        }
        self.release();
        self.world.counts.answers.fetch_add(1, Relaxed);
        expect(&sql, &[at.to_string()], &[&count.to_string()])
    }

    async fn long_value(&mut self) -> Result<(), End> {
        let value = self
            .person
            .word()
            .repeat(1 + self.person.random.below(40_000));
        let said = batch().run("select $1::text", &[&value]).sync();
        let found = self.say(&said, 1).await?;
        let line = format!("D {value}");
        expect(
            "a long value",
            &found,
            &["1", "2", &line, "C SELECT 1", "Z I"],
        )
    }

    /// A portal that gives its rows in parts.
    async fn fetch_in_parts(&mut self) -> Result<(), End> {
        let (row, body) = self.sure_row().await?;
        self.ask("begin", &["C BEGIN", "Z T"]).await?;
        let sql =
            "select n.n, body from items, generate_series(1, 25) n(n) where id = $1 order by n.n";
        let said = batch().parse("", sql).bind("part", "", &[&row.to_string()]);
        let found = self.say(&said.execute("part", 10).sync(), 1).await?;
        let lines: Vec<_> = (1..=25).map(|at| format!("D {at}|{body}")).collect();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let with = |begin: &[&'static str], part: usize, end: &'static str| {
            let to = (part + 10).min(25);
            let rows = lines[part..to].iter().map(|line| (*line).to_owned());
            let mut all: Vec<_> = begin.iter().map(|line| (*line).to_owned()).collect();
            all.extend(rows);
            all.extend([end.to_owned(), "Z T".to_owned()]);
            all
        };
        let parts = [
            with(&["1", "2"], 0, "s"),
            with(&[], 10, "s"),
            with(&[], 20, "C SELECT 5"),
        ];
        let mut found = found;
        for (at, expected) in parts.iter().enumerate() {
            if at > 0 {
                found = self.say(&batch().execute("part", 10).sync(), 1).await?;
            }
            let expected: Vec<_> = expected.iter().map(String::as_str).collect();
            expect(sql, &found, &expected)?;
        }
        self.ask("commit", &["C COMMIT", "Z I"]).await
    }

    /// Sleeps on the server until its own cancel wakes it. The cancel may come before the query has begun, so it is sent
    /// until it has been felt.
    async fn sleep_and_cancel(&mut self) -> Result<(), End> {
        self.hold().await;
        let canceller = self.wire.canceller();
        self.mutter(&batch().query("select pg_sleep(600)")).await?;
        let world = self.world;
        let found = {
            let mut answers = std::pin::pin!(self.wire.answers(1));
            loop {
                let pause = Duration::from_millis(100);
                match tokio::time::timeout(pause, answers.as_mut()).await {
                    Ok(found) => break found?,
                    Err(_elapsed) => {
                        world.counts.cancels.fetch_add(1, Relaxed);
                        canceller.cancel().await?;
                    }
                }
            }
        };
        self.release();
        let error = "E ERROR 57014 canceling statement due to user request";
        expect("a cancelled query", &found, &[error, "Z I"])
    }

    /// Dies while the server works for it, which must not go on.
    async fn leave_the_server_busy(&mut self) -> Result<(), End> {
        self.hold().await;
        self.mutter(&batch().query("select pg_sleep(600)")).await?;
        let pause = self.person.random.below(50);
        tokio::time::sleep(Duration::from_millis(pause as u64)).await;
        self.die()
    }

    /// Hears itself; the session keeps its backend from here to its end.
    async fn listen(&mut self) -> Result<(), End> {
        self.hold().await;
        let channel = format!("channel_{}", self.person.number);
        self.ask(&format!("listen {channel}"), &["C LISTEN", "Z I"])
            .await?;
        let word = self.person.word();
        let sql = format!("notify {channel}, '{word}'");
        let mut found = self.say(&batch().query(&sql), 1).await?;
        let expected = format!("A {channel} {word}");
        while !found.iter().any(|line| line.starts_with("A ")) {
            let (tag, body) = self.wire.frame().await?;
            let text = String::from_utf8_lossy(body.get(4..).unwrap_or_default());
            let text = text.replace('\0', " ");
            found.push(format!("{} {}", char::from(tag), text.trim_end()));
        }
        let heard: Vec<_> = found
            .iter()
            .filter(|line| line.starts_with("A "))
            .cloned()
            .collect();
        expect(&sql, &heard, &[&expected])?;
        self.echo().await?;
        self.die()
    }

    /// A lock of the session, which must go with it.
    async fn lock(&mut self) -> Result<(), End> {
        self.hold().await;
        let sql = format!("select pg_advisory_lock({})", self.person.number);
        self.ask(&sql, &["D ", "C SELECT 1", "Z I"]).await?;
        self.echo().await?;
        if self.person.is_loyal() && self.person.place == Place::Single {
            // Would fail if the backend had kept it from another session.
            let sql = "create temp table kept (word text)";
            self.ask(sql, &["C CREATE TABLE", "Z I"]).await?;
            self.echo().await?;
        }
        self.die()
    }

    fn release(&mut self) {
        self.holds = None;
    }
}
