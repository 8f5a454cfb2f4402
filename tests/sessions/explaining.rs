//! EXPLAIN of statements over several shards: each shard's own plan under one node, in both protocols and two formats;
//! without ANALYZE nothing is done, with it everything.

use crate::{
    client::{batch, query},
    three::{Stand, Three},
};
use serde_json::Value;

const TABLE: &str = "create table t (id bigint primary key, n int, s text collate \"en-x-icu\", at timestamptz default now()); \
    create table r (a int primary key, b int)";

fn stand(name: &str) -> Stand {
    let mut three = Three::new(name);
    three.ddl = TABLE;
    three.reference = &["public.r"];
    let mut stand = three.start();
    let rows = "insert into t select g, g % 7, 's' || g from generate_series";
    for (at, (from, to)) in [(1, 50), (101, 150), (201, 250)].into_iter().enumerate() {
        stand.shards[at].ask(&query(&format!("{rows}({from}, {to}) g; analyze t")));
    }
    stand.whole.ask(&query(&format!("{rows}(1, 50) g")));
    stand
}

impl Stand {
    /// The lines of an answer, which is that of an EXPLAIN.
    fn lines(&mut self, sql: &str) -> Vec<String> {
        plan_of(&self.ask(sql), sql)
    }

    /// What the only row says.
    fn json(&mut self, sql: &str) -> Value {
        let lines = self.lines(sql);
        assert_eq!(lines.len(), 1, "{sql}");
        serde_json::from_str(&lines[0]).unwrap()
    }

    /// How many rows all shards have in it.
    fn rows(&mut self, of: &str) -> Vec<String> {
        self.seen(&format!("select count(*) from {of}"))
    }
}

fn plan_of(answer: &[String], sql: &str) -> Vec<String> {
    let plain = |line: &String| !line.starts_with(['1', '2', 'T', 't', 'Z']);
    let told: Vec<&String> = answer.iter().filter(|line| plain(line)).collect();
    let (last, rows) = told.split_last().unwrap();
    assert!(last.starts_with("C EXPLAIN"), "{sql}: {answer:?}");
    let rows = rows
        .iter()
        .map(|row| row.strip_prefix("D ").unwrap().to_owned());
    rows.collect()
}

/// Each kind of statement, what stands above the plans, and a line of a shard's.
const KINDS: &[(&str, &str, &str)] = &[
    (
        "select * from t where n = 3",
        "Shardway Append  (one after the other)",
        "Filter: (n = 3)",
    ),
    (
        "select id, n from t order by id limit 3",
        "Shardway Merge  (ordered by id, limit 3)",
        "->  Limit",
    ),
    (
        "select n, count(*) from t group by n",
        "Shardway Gather  (one shard computes the answer over the rows of all)",
        "HashAggregate",
    ),
    (
        "select id from t order by s",
        "Shardway Gather  (one shard computes the answer over the rows of all)",
        "Seq Scan on t",
    ),
    (
        "update t set n = n + 1 where n = 3",
        "Shardway Write  (each shard its part, in one transaction)",
        "->  Update on t",
    ),
    (
        "delete from t where at < now()",
        "Shardway Write  (each shard its part, in one transaction)",
        "Filter: (at < now())",
    ),
    (
        "insert into t values (60, 1), (160, 2), (161, 3)",
        "Shardway Write  (each shard its part, in one transaction)",
        "->  Insert on t",
    ),
    (
        "insert into r values (1, 2)",
        "Shardway Write  (each shard its part, in one transaction)",
        "->  Insert on r",
    ),
];

#[test]
fn every_shard_shows_its_plan_and_nothing_is_done() {
    let mut stand = stand("explaining_kinds");
    let before = stand.seen("select sum(n)::text || count(*) from t");
    for within in ["", "begin"] {
        for (sql, top, line) in KINDS {
            if !within.is_empty() {
                stand.ask(within);
                stand.ask("select n from t where id = 1");
            }
            let lines = stand.lines(&format!("explain (costs off) {sql}"));
            assert_eq!(lines[0], *top, "{sql}");
            let heads = lines
                .iter()
                .filter(|line| line.starts_with("  ->  Shard s"));
            let shards = if sql.contains("(60") { 2 } else { 3 };
            assert_eq!(heads.count(), shards, "{lines:?}");
            assert_eq!(lines[1], "  ->  Shard s0");
            let shown = lines.iter().filter(|found| found.contains(line));
            assert_eq!(shown.count(), shards, "{line}: {lines:?}");
            if !within.is_empty() {
                stand.ask("commit");
            }
        }
    }
    assert_eq!(stand.seen("select sum(n)::text || count(*) from t"), before);
    assert_eq!(stand.rows("r"), ["0", "0", "0"]);
}

#[test]
fn a_shards_lines_are_those_that_it_gives_itself() {
    let mut stand = stand("explaining_lines");
    let lines = stand.lines("explain select * from t where n = 3 and s > 'x'");
    let own = stand.shards[1].ask(&query("explain select * from t where n = 3 and s > 'x'"));
    let own = plan_of(&own, "");
    let at = lines
        .iter()
        .position(|line| line == "  ->  Shard s1")
        .unwrap();
    assert_eq!(lines[at + 1], format!("        ->  {}", own[0]));
    for (found, own) in lines[at + 2..].iter().zip(&own[1..]) {
        assert_eq!(*found, format!("            {own}"));
    }
}

#[test]
fn verbose_shows_what_each_shard_is_asked() {
    let mut stand = stand("explaining_verbose");
    let lines =
        stand.lines("explain verbose insert into t (id, n) values (1, 10), (101, 11), (2, 12)");
    let asked: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains("Asked: "))
        .collect();
    assert_eq!(
        asked,
        [
            "        Asked: insert into t (id, n) values (1, 10), (2, 12)",
            "        Asked: insert into t (id, n) values (101, 11)"
        ]
    );
    let lines = stand.lines("explain (verbose) select n from t order by id limit 2 offset 3");
    assert!(lines[2].contains("LIMIT 5"), "{lines:?}");
}

#[test]
fn json_is_one_document_with_the_shards_plans() {
    let mut stand = stand("explaining_json");
    for (sql, top, _) in KINDS {
        let found = stand.json(&format!("explain (format json, verbose, settings) {sql}"));
        let plan = &found[0]["Plan"];
        let node = plan["Node Type"].as_str().unwrap();
        assert!(top.starts_with(node), "{sql}: {node}");
        for shard in plan["Plans"].as_array().unwrap() {
            assert!(shard["Shard"].as_str().unwrap().starts_with('s'), "{sql}");
            assert!(shard["Asked"].is_string(), "{sql}");
            assert!(shard["Plans"][0]["Node Type"].is_string(), "{sql}");
        }
    }
    let found = stand.json("explain (analyze, format json) select * from t");
    for shard in found[0]["Plan"]["Plans"].as_array().unwrap() {
        assert_eq!(shard["Plans"][0]["Actual Rows"], 50);
        assert!(shard["Execution Time"].is_number());
    }
    // As PostgreSQL describes it.
    for sql in [
        "explain select 1 from t",
        "explain (format json) select 1 from t",
    ] {
        let (one, whole) = (stand.ask(sql), stand.whole.ask(&query(sql)));
        assert_eq!(one[0], whole[0]);
    }
}

#[test]
fn the_extended_protocol_explains_with_parameters() {
    let mut stand = stand("explaining_extended");
    for (sql, values, line) in [
        (
            "explain select * from t where n = $1",
            &["3"][..],
            "Filter: (n = 3)",
        ),
        (
            "explain select n, count(*) from t where n < $1 group by n",
            &["4"],
            "Filter: (n < 4)",
        ),
        (
            "explain select * from t where n > $1 order by id limit $2",
            &["4", "2"],
            "Filter: (n > 4)",
        ),
        (
            "explain update t set n = 0 where n = $1",
            &["5"],
            "Filter: (n = 5)",
        ),
        (
            "explain insert into t (id, n) values ($1, 1), ($2, 2)",
            &["60", "160"],
            "Insert on t",
        ),
    ] {
        for begin in [None, Some("begin")] {
            begin.map(|begin| stand.ask(begin));
            let sent = batch()
                .parse("", sql)
                .describe("")
                .bind("", "", values)
                .describe_portal("")
                .execute("", 0)
                .sync();
            let found = stand.sharded.ask(&sent.0);
            let lines = plan_of(&found, sql);
            assert!(lines[0].starts_with("Shardway "), "{found:?}");
            let shown = lines.iter().filter(|found| found.contains(line)).count();
            assert_eq!(
                shown,
                if sql.contains("insert") { 2 } else { 3 },
                "{lines:?}"
            );
            let expected = stand.whole.ask(&sent.0);
            let described = |lines: &[String]| -> Vec<String> {
                let own = lines.iter().filter(|line| line.starts_with(['t', 'T']));
                own.cloned().collect()
            };
            assert_eq!(described(&found), described(&expected), "{sql}");
            begin.map(|_| stand.ask("rollback"));
        }
    }
    assert_eq!(stand.rows("t"), ["50", "50", "50"]);
    // In parts, and then another statement of the session.
    let found = stand.sharded.ask(
        &batch()
            .parse("", "explain select * from t")
            .bind("", "", &[])
            .execute("", 2)
            .execute("", 0)
            .sync()
            .0,
    );
    assert!(found.iter().any(|line| line.starts_with('s')), "{found:?}");
    assert_eq!(stand.sharded.value("select count(*) from t"), "150");
}

#[test]
fn analyze_runs_reads_and_does_writes() {
    let mut stand = stand("explaining_analyze");
    for sql in [
        "select * from t where n >= 0",
        "select id from t order by id",
        "select count(*) from t",
    ] {
        let lines = stand.lines(&format!("explain (analyze, timing off) {sql}"));
        let ran = lines
            .iter()
            .filter(|line| line.contains("(actual rows=50 loops=1)"));
        assert!(ran.count() >= 3, "{lines:?}");
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.starts_with("        Execution Time: "))
                .count(),
            3
        );
    }
    let lines = stand.lines("explain analyze update t set n = 100, at = now() where n = 3");
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.contains("Update on t"))
            .count(),
        3
    );
    assert_eq!(stand.rows("t where n = 100"), ["7", "8", "7"]);
    // One time for all.
    assert_eq!(
        stand
            .sharded
            .value("select count(distinct at) from t where n = 100"),
        "1"
    );
    stand.lines("explain analyze insert into t (id, n) values (60, 1), (160, 2)");
    assert_eq!(stand.rows("t"), ["51", "51", "50"]);
    stand.ask("begin");
    stand.lines("explain (analyze on) delete from t");
    assert_eq!(stand.sharded.value("select count(*) from t"), "0");
    stand.ask("rollback");
    assert_eq!(stand.rows("t"), ["51", "51", "50"]);
    let sent = batch()
        .parse("", "explain analyze delete from t where n = $1")
        .bind("", "", &["100"]);
    let found = stand.sharded.ask(&sent.execute("", 0).sync().0);
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("D Shardway Write")),
        "{found:?}"
    );
    assert_eq!(stand.rows("t where n = 100"), ["0", "0", "0"]);
}

#[test]
fn what_fails_on_one_shard_is_undone_on_all() {
    let mut stand = stand("explaining_undone");
    stand.fails(
        "explain analyze insert into t values (70, 1), (170, 1), (201, 1)",
        "23505",
    );
    assert_eq!(stand.rows("t"), ["50", "50", "50"]);
    stand.fails(
        "explain analyze update t set n = 1 / (id - 201)::int",
        "22012",
    );
    assert_eq!(stand.rows("t where n > 0"), ["43", "43", "43"]);
    stand.fails("explain analyze select 1 / (id - 101) from t", "22012");
    stand.ask("begin");
    stand.fails("explain analyze select 1 / (id - 101) from t", "22012");
    stand.fails("select 1", "25P02");
    stand.ask("rollback");
    assert_eq!(stand.sharded.value("select count(*) from t"), "150");
}

#[test]
fn errors_are_postgresqls_and_refusals_those_of_the_statement() {
    let mut stand = stand("explaining_errors");
    for sql in [
        "explain select nothing from t",
        "explain (costs off) select nothing, count(*) from t",
        "explain (unknown) select * from t",
        "explain (analyze maybe) select * from t",
        "explain (analyze maybe) delete from t",
        "explain (format binary, analyze off, timing) select id from t",
        "explain (timing) select * from t",
        "explain update t set nothing = 1",
    ] {
        if sql.contains("binary") {
            stand.fails(sql, "0A000");
            continue;
        }
        stand.alike(&query(sql), 1);
        stand.alike(
            &batch()
                .parse("", sql)
                .bind("", "", &[])
                .execute("", 0)
                .sync()
                .0,
            1,
        );
    }
    let refused = |stand: &mut Stand, sql: &str| {
        let found = stand.ask(sql);
        found
            .into_iter()
            .find(|line| line.starts_with("E "))
            .unwrap_or_else(|| panic!("{sql}"))
    };
    for sql in [
        "select ctid from t",
        "select * from t for update",
        "delete from t where ctid = '(0,1)'",
        "insert into t (n) values (1)",
    ] {
        let own = refused(&mut stand, sql);
        assert_eq!(refused(&mut stand, &format!("explain {sql}")), own);
        assert_eq!(refused(&mut stand, &format!("explain analyze {sql}")), own);
    }
    stand.ask("begin isolation level repeatable read");
    let own = refused(&mut stand, "select count(*) from t");
    stand.ask("rollback; begin isolation level repeatable read");
    assert_eq!(refused(&mut stand, "explain select count(*) from t"), own);
    stand.ask("rollback");
    for sql in [
        "explain (format yaml) select * from t",
        "explain (format xml) delete from t",
        "explain update t set id = id + 100 where n = 1",
        "explain analyze insert into r values (1, 2)",
    ] {
        stand.fails(sql, "0A000");
    }
    assert_eq!(stand.rows("t"), ["50", "50", "50"]);
}
