//! Never a wrong answer: generated statements run on one PostgreSQL that holds all rows and through the proxy before
//! three shards. What Shardway does not refuse must be the same: rows, column names and types, counts, SQLSTATE.
//!
//! `SHARDWAY_ORACLE_STATEMENTS` and `SHARDWAY_ORACLE_SEED` make the run longer or another; a mismatch prints the
//! statement and the seed that replays it.

#![cfg(test)]
#![expect(
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    clippy::needless_pass_by_ref_mut,
    reason = "a test reads its environment and runs its own tasks; a table of statements or columns is long"
)]

mod answer;
mod doubled;
mod failing_over;
mod generate;
mod harness;
mod moving;
mod parts;
mod random;
mod schema;
mod value;

use answer::{Answer, Side};
use generate::{Generator, Statement, Use};
use harness::{Rows, World};
use moving::{Asked, Driver};
use random::Random;
use schema::Keys;
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// Statements of a run as part of the tests.
const STATEMENTS: usize = 4000;
/// Templates that are run in turns, so that each meets the plan of its own text with other literals.
const TEMPLATES: usize = 24;
/// Runs of each template.
const TURNS: usize = 4;
/// Transactions of several statements in each batch.
const TRANSACTIONS: usize = 4;
/// Reshards of a run as part of the tests.
const RESHARDS: usize = 4;
const MISMATCHES_SHOWN: usize = 40;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn what_is_not_refused_is_what_one_postgresql_answers() {
    answers_are_those_of_one_postgresql(Rows::Once);
}

/// As while a reshard moves rows of every group.
#[test]
fn rows_on_shards_that_do_not_own_them_are_neither_seen_nor_changed() {
    answers_are_those_of_one_postgresql(Rows::Doubled);
}

fn answers_are_those_of_one_postgresql(rows: Rows) {
    let statements = number("SHARDWAY_ORACLE_STATEMENTS", STATEMENTS);
    let seed = number("SHARDWAY_ORACLE_SEED", 1) as u64;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::start(&mut Random::new(seed), rows).await;
        let mut run = Run::open(&world).await;
        run.learnt().await;
        let mut done = 0;
        let first = seed.wrapping_mul(1_000_003);
        let mut batch = number("SHARDWAY_ORACLE_BATCH", first as usize) as u64;
        while done < statements && run.mismatches.len() < MISMATCHES_SHOWN {
            done += run.batch(batch).await;
            batch = batch.wrapping_add(1);
            if run.committed > 60 {
                run.committed = 0;
                let differences = world.compare().await;
                assert!(
                    differences.is_empty(),
                    "seed {seed}, batch {batch}: {differences:#?}\n{}",
                    run.mismatches.join("\n")
                );
            }
        }
        let differences = world.compare().await;
        println!("seed {seed}: {done} statements");
        run.report();
        assert!(
            differences.is_empty(),
            "seed {seed}: {differences:#?}\n{}",
            run.mismatches.join("\n")
        );
        assert!(
            run.mismatches.is_empty(),
            "{} wrong answers:\n{}",
            run.mismatches.len(),
            run.mismatches.join("\n")
        );
        let refused: usize = run.refused.values().sum();
        assert!(
            (done - refused) * 5 > done * 2,
            "too much is refused: {refused} of {done}"
        );
    });
}

/// Rows are on two shards all the while, and owners change, there and back; clients see nothing of it.
#[test]
fn answers_stay_those_of_one_postgresql_all_through_reshards() {
    let reshards = number("SHARDWAY_ORACLE_RESHARDS", RESHARDS);
    let seed = number("SHARDWAY_ORACLE_SEED", 1) as u64;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::start(&mut Random::new(seed), Rows::Moving).await;
        let mut run = Run::open(&world).await;
        run.learnt().await;
        let asked = Arc::new(Asked::default());
        run.asked = Some(Arc::clone(&asked));
        let driver = Driver::open(&world, &asked, seed).await;
        let driver = tokio::spawn(driver.run(reshards));
        let (mut done, mut wrong) = (0, Vec::new());
        let mut batch = seed.wrapping_mul(1_000_003);
        while !asked.is_over() && !driver.is_finished() {
            done += run.batch(batch).await;
            run.turn();
            batch = batch.wrapping_add(1);
            for mismatch in run.mismatches.drain(..) {
                println!("{mismatch}");
                wrong.push(mismatch);
            }
            if asked.rests() {
                wrong.extend(world.compare_moved().await);
                assert!(wrong.is_empty(), "seed {seed}: {}", wrong.join("\n"));
                asked.go_on();
            }
            assert!(wrong.len() < MISMATCHES_SHOWN, "{}", wrong.join("\n"));
        }
        driver.await.unwrap();
        let states = asked.by_state();
        println!("seed {seed}: {done} statements in {reshards} reshards");
        for (state, statements) in &states {
            println!("{state:24} {statements:8}");
        }
        run.report();
        assert!(wrong.is_empty(), "wrong answers:\n{}", wrong.join("\n"));
        let failed = asked.failed();
        assert!(failed.is_empty(), "failed by moves: {}", failed.join("\n"));
        for state in moving::STATES {
            assert!(states.contains_key(*state), "nothing was asked in {state}");
        }
    });
}

/// How a statement ended on the side that was asked first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Went {
    Well,
    Wrong,
}

struct Run {
    direct: Side,
    /// By the proxy that is asked now, and by the others.
    proxied: Side,
    /// Each with a session of its own on the whole database, as whoever else is connected.
    others: Vec<(Side, Side)>,
    keys: Keys,
    /// Of a run in which rows move: what was asked when.
    asked: Option<Arc<Asked>>,
    /// By code.
    refused: BTreeMap<String, usize>,
    /// By shape: answered, failed, refused.
    shapes: BTreeMap<&'static str, [usize; 3]>,
    mismatches: Vec<String>,
    committed: usize,
}

impl Run {
    async fn open(world: &World) -> Self {
        let mut sides = Vec::new();
        for proxy in world.proxied() {
            sides.push(Side::connect(&proxy).await);
        }
        let mut others = Vec::new();
        for side in sides.split_off(1) {
            others.push((side, Side::connect(&world.direct()).await));
        }
        Self {
            direct: Side::connect(&world.direct()).await,
            proxied: sides.pop().unwrap(),
            others,
            keys: world.rows.keys(),
            asked: None,
            refused: BTreeMap::new(),
            shapes: BTreeMap::new(),
            mismatches: Vec::new(),
            committed: 0,
        }
    }

    async fn learnt(&self) {
        let others = self.others.iter().map(|(proxied, _)| proxied);
        for side in others.chain([&self.proxied]) {
            side.learnt().await;
        }
    }

    /// The other proxy is asked from now on.
    fn turn(&mut self) {
        if let Some((proxied, direct)) = self.others.first_mut() {
            std::mem::swap(&mut self.proxied, proxied);
            std::mem::swap(&mut self.direct, direct);
        }
    }

    /// Runs a handful of templates in a random order, each several times; how many statements.
    async fn batch(&mut self, seed: u64) -> usize {
        let mut random = Random::new(seed);
        let path = random.pick(&[
            "",
            "",
            "",
            "public",
            "alt, public",
            "public, alt",
            "alt",
            "\"$user\", public",
            "pg_catalog, alt, public",
            "early, public",
        ]);
        let set = if path.is_empty() {
            "RESET search_path".to_owned()
        } else {
            format!("SET search_path TO {path}")
        };
        let strings = random.pick(&["on", "on", "on", "off"]);
        let others = self.others.iter().flat_map(|(one, other)| [one, other]);
        for side in others.chain([&self.direct, &self.proxied]) {
            for set in [
                &set,
                &format!("SET standard_conforming_strings TO {strings}"),
            ] {
                let set = side.command(set).await;
                assert!(matches!(set, Answer::Texts(_)), "{set:?}");
            }
        }
        let place = format!("batch {seed}, path {path:?}, standard strings {strings}");
        let templates: Vec<u64> = (0..TEMPLATES).map(|_| random.next()).collect();
        for _ in 0..TEMPLATES * TURNS {
            let template = templates[random.below(TEMPLATES)];
            let statement = Generator::new(template, random.next(), path)
                .of_keys(self.keys)
                .statement();
            self.one(&statement, &place).await;
        }
        let mut done = TEMPLATES * TURNS;
        for _ in 0..TRANSACTIONS {
            done += self.transaction(&mut random, path, &place).await;
            if self.asked.is_some() {
                done += self.parts(&mut random, path, &place).await;
            }
        }
        done
    }

    /// Runs a transaction of several statements, each behind a savepoint; how many statements.
    async fn transaction(&mut self, random: &mut Random, path: &str, place: &str) -> usize {
        let statements = 2 + random.below(6);
        self.both("BEGIN", place).await;
        for at in 0..statements {
            let name = ["a", "b", "\"C\""][random.below(3)];
            self.both(&format!("SAVEPOINT {name}"), place).await;
            let statement = Generator::new(random.next(), random.next(), path)
                .of_keys(self.keys)
                .single();
            let place = format!("{place}, statement {at} of a transaction");
            let went = self.one(&statement, &place).await;
            if !self.others.is_empty() && random.chance(20) {
                self.beside(random, path, &place).await;
            }
            match (went, random.below(6)) {
                (Went::Well, 0) | (Went::Wrong, _) => {
                    self.both(&format!("ROLLBACK TO {name}"), &place).await;
                }
                (Went::Well, 1 | 2) => self.both(&format!("RELEASE {name}"), &place).await,
                (Went::Well, _) => {}
            }
        }
        let end = ["COMMIT", "COMMIT", "ROLLBACK"][random.below(3)];
        self.both(end, place).await;
        statements
    }

    /// Somebody else reads while a transaction is open.
    async fn beside(&mut self, random: &mut Random, path: &str, place: &str) {
        let statement = loop {
            let generator = Generator::new(random.next(), random.next(), path);
            let statement = generator.of_keys(self.keys).reading();
            if statement.shape != "locking" {
                break statement;
            }
        };
        self.turn();
        let place = format!("{place}, read by somebody else");
        self.one(&statement, &place).await;
        self.turn();
    }

    /// Both sides answer a command alike.
    async fn both(&mut self, sql: &str, place: &str) {
        let begun = Instant::now();
        let proxied = self.proxied.command(sql).await;
        self.note(begun, &proxied, sql);
        let direct = self.direct.command(sql).await;
        if proxied != direct {
            self.mismatches.push(format!(
                "{place}: {sql}\n  PostgreSQL {}\n  Shardway   {}",
                short(&direct),
                short(&proxied)
            ));
        }
    }

    fn note(&self, begun: Instant, answer: &Answer, sql: &str) {
        if let Some(asked) = &self.asked {
            asked.note(begun, answer, sql);
        }
    }

    fn count(&mut self, shape: &'static str, proxied: &Answer) {
        let shape = self.shapes.entry(shape).or_default();
        match proxied {
            Answer::Refused(code) => {
                shape[2] += 1;
                *self.refused.entry(code.clone()).or_default() += 1;
            }
            Answer::Error(_) => shape[1] += 1,
            Answer::Rows { .. } | Answer::Texts(_) => shape[0] += 1,
        }
    }

    async fn one(&mut self, statement: &Statement, place: &str) -> Went {
        if statement.usage == Use::RolledBack {
            for side in [&self.direct, &self.proxied] {
                side.command("BEGIN").await;
                if let Some(setting) = statement.setting {
                    side.command(setting).await;
                }
            }
        }
        let begun = Instant::now();
        let proxied = self.proxied.ask(statement).await;
        self.note(begun, &proxied, &statement.sql);
        if let Answer::Error(code) = &proxied {
            let sql = &statement.sql;
            assert!(
                !code.starts_with("connection"),
                "{place}: {sql} cost the connection"
            );
        }
        self.count(statement.shape, &proxied);
        let went = match &proxied {
            Answer::Rows { .. } | Answer::Texts(_) => Went::Well,
            Answer::Error(_) | Answer::Refused(_) => Went::Wrong,
        };
        if !matches!(proxied, Answer::Refused(_)) {
            let direct = self.direct.ask(statement).await;
            if statement.usage == Use::Committed {
                self.committed += 1;
            }
            if !direct.agrees(&proxied, statement) {
                let (sql, shape, parameters) =
                    (&statement.sql, statement.shape, &statement.parameters);
                self.mismatches.push(format!(
                    "{place}, {shape}: {:?} {sql}\n  parameters {parameters:?}\n  PostgreSQL {}\n  Shardway   {}",
                    statement.setting,
                    short(&direct),
                    short(&proxied)
                ));
            }
        }
        if statement.usage == Use::RolledBack {
            for side in [&self.direct, &self.proxied] {
                side.command("ROLLBACK").await;
            }
        }
        went
    }

    fn report(&self) {
        println!("refused by code: {:?}", self.refused);
        println!(
            "{:24} {:>8} {:>8} {:>8}",
            "shape", "rows", "error", "refused"
        );
        for (shape, [rows, errors, refused]) in &self.shapes {
            println!("{shape:24} {rows:8} {errors:8} {refused:8}");
        }
    }
}

fn short(answer: &Answer) -> String {
    let text = format!("{answer:?}");
    text.chars().take(600).collect()
}

/// PostgreSQL reads the names of a prepared statement by the search_path of each execution.
#[test]
fn a_prepared_statement_follows_search_path() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::start(&mut Random::new(7), Rows::Once).await;
        let mut run = Run::open(&world).await;
        run.learnt().await;
        for path in [
            "public",
            "alt, public",
            "public",
            "alt",
            "early, public",
            "alt, public",
        ] {
            for side in [&run.direct, &run.proxied] {
                side.command(&format!("SET search_path TO {path}")).await;
            }
            for (table, key, group) in [
                ("doc", "slug", "texts"),
                ("doc", "slug", "regions"),
                ("acct", "id", "ints"),
            ] {
                for value in schema::keys(group) {
                    let parameters = vec![value::Value {
                        text: Some((*value).to_owned()),
                        binary: false,
                    }];
                    let sql = format!("SELECT n, note FROM {table} WHERE {key} = $1");
                    let (ordered, usage, setting, shape) = (false, Use::Read, None, "prepared");
                    run.one(
                        &Statement {
                            sql,
                            parameters,
                            ordered,
                            usage,
                            setting,
                            shape,
                        },
                        path,
                    )
                    .await;
                }
            }
        }
        assert!(run.mismatches.is_empty(), "{}", run.mismatches.join("\n"));
        assert!(run.shapes["prepared"][0] > 100, "{:?}", run.shapes);
    });
}
