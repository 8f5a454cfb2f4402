//! What tables have that copies and streams stumble over elsewhere: each goes through a whole reshard, with writes after the
//! copy, and is there as it was; or is refused before anything is touched, with the reason.

use crate::shards::map;
use crate::{
    preflight::{planned, planned_by},
    steps::{SHOP, Stage, block_on, sandbox},
};
use shardway::{
    inspect::Severity,
    reshard::{
        dump::Tools,
        job::{Job, StepError},
        plan::identifier,
        steps::{
            activate, catch_up::Follower, copy, fence, finish, keys, partitions, preflight,
            prepare, ready, rehearse, reverse, turn, verify,
        },
        wish::Wish,
    },
};
use std::sync::Arc;

/// Tables beside those of the shop; keys from 51 on move.
#[derive(Clone, Copy, Default)]
struct Trap<'a> {
    database: &'static str,
    /// What both servers have before; the destination only if it does not join.
    tables: &'a str,
    /// Instead of it on the destination, which then does not join.
    there: Option<&'a str>,
    /// More of the configuration's list, from a comma on.
    listed: &'a str,
    rows: &'a str,
    /// What is written once the rows are copied.
    meanwhile: &'a str,
    /// What is written once the owners have changed.
    after: &'a str,
}

impl Trap<'_> {
    /// Everything up to the commit, with the stage as it is then.
    async fn sprung(self) -> (Stage, Vec<Follower>) {
        let joins: &[&str] = if self.there.is_some() { &[] } else { &["b"] };
        let mut stage = Stage::new(self.database, joins).await;
        stage.run(0, self.tables).await;
        if let Some(there) = self.there {
            stage.run(1, SHOP).await;
            stage
                .run(1, "DELETE FROM customer; DELETE FROM country")
                .await;
            stage.run(1, there).await;
        }
        stage.run(0, self.rows).await;
        let members: &[&str] = if self.there.is_some() {
            &["a", "b"]
        } else {
            &["a"]
        };
        let planned = planned(&stage, members, self.listed).await.unwrap();
        stage.job.plan = Arc::new(planned.plan);
        let found = preflight::run(&stage.job, &Tools::default()).await.unwrap();
        let errors = found.iter().filter(|it| it.severity == Severity::Error);
        assert_eq!(
            errors.collect::<Vec<_>>(),
            Vec::<&preflight::Finding>::new()
        );
        let job = &stage.job;
        prepare::run(job, &Tools::default()).await.unwrap();
        copy::run(job).await.unwrap();
        stage.run(0, self.meanwhile).await;
        keys::primary(job).await.unwrap();
        let streams: Vec<Follower> = job
            .sources()
            .iter()
            .map(|it| Follower::start(job, &it.name))
            .collect();
        for stream in &streams {
            stream.consistent().await.unwrap();
        }
        keys::rest(job).await.unwrap();
        let verdict = verify::run(job, &&streams[..], 1).await.unwrap();
        assert!(verdict.is_clean(), "{:?}", verdict.found);
        ready::run(job).await.unwrap();
        stage.job.attempt = 1;
        (stage, streams)
    }

    /// Through to the end; `b` then has what `a` had.
    async fn through(self) -> Stage {
        let (stage, streams) = self.sprung().await;
        let job = &stage.job;
        fence::run(job).await.unwrap();
        for stream in &streams {
            stream.fenced(job.attempt).await.unwrap();
        }
        turn::run(job).await.unwrap();
        for stream in streams {
            stream.stop().await.unwrap();
        }
        alike(&stage).await;
        activate::run(job, &map(job, 2)).await.unwrap();
        self.there_and_back(&stage).await;
        finish::run(job).await.unwrap();
        for table in &job.plan.tables {
            let key = identifier(&table.key_column);
            let left = format!("SELECT count(*) FROM {} WHERE {key} >= 51", table.sql());
            assert_eq!(stage.ask(0, &left).await, ["0"], "{}", table.plain());
        }
        stage
    }

    /// What the new owner writes comes to the former one.
    async fn there_and_back(&self, stage: &Stage) {
        let back = Job {
            attempt: stage.job.attempt + 1,
            ..stage.job.turned()
        };
        reverse::run(&back).await.unwrap();
        let stream = Follower::start(&back, "b");
        for table in &back.plan.tables {
            let key = identifier(&table.key_column);
            let each = format!("UPDATE {} SET {key} = {key} WHERE {key} >= 51", table.sql());
            stage.run(1, &each).await;
        }
        stage.run(1, self.after).await;
        let end = stage.ask(1, "SELECT pg_current_wal_insert_lsn()").await;
        stream.applied(end[0].parse().unwrap()).await.unwrap();
        stream.stop().await.unwrap();
        alike(stage).await;
    }
}

/// Both servers have the same of what moves.
async fn alike(stage: &Stage) {
    for table in &stage.job.plan.tables {
        let columns = table.columns.iter();
        let columns: Vec<String> = columns
            .map(|it| format!("quote_nullable({}::text)", identifier(&it.name)))
            .collect();
        let rows = format!(
            "SELECT concat_ws(',', {}) FROM {} WHERE {} >= 51 ORDER BY 1",
            columns.join(", "),
            table.sql(),
            identifier(&table.key_column)
        );
        let (there, here) = (stage.ask(0, &rows).await, stage.ask(1, &rows).await);
        assert_eq!(here, there, "{}", table.plain());
    }
}

#[test]
fn generated_and_counted_columns_go_on_where_their_source_was() {
    block_on(async {
        let stage = Trap {
            database: "counted",
            tables: "CREATE TABLE counted (customer bigint NOT NULL, a bigint GENERATED ALWAYS AS IDENTITY, s bigserial, \
                     d bigint GENERATED BY DEFAULT AS IDENTITY (INCREMENT 5), \
                     twice bigint GENERATED ALWAYS AS (customer * 2) STORED, PRIMARY KEY (customer, a))",
            listed: ", \"public.counted\" = \"customer\"",
            rows: "INSERT INTO counted (customer) SELECT generate_series(1, 100)",
            meanwhile: "UPDATE counted SET customer = customer + 1000 WHERE customer > 95; \
                        UPDATE counted SET customer = 300 WHERE customer = 7; DELETE FROM counted WHERE customer = 70; \
                        INSERT INTO counted (customer) VALUES (60)",
            after: "UPDATE counted SET d = DEFAULT, s = 7 WHERE customer = 60; INSERT INTO counted (customer) VALUES (61)",
            ..Trap::default()
        }
        .through()
        .await;
        let computed = "SELECT DISTINCT twice = customer * 2 FROM counted";
        assert_eq!(stage.ask(1, computed).await, ["t"]);
        let next = "INSERT INTO counted (customer) VALUES (60) RETURNING least(a, s, d / 5) > 101";
        assert_eq!(stage.ask(1, next).await, ["t"]);
        let forced = "INSERT INTO counted (customer, a) VALUES (60, 1)";
        assert!(stage.refused(1, forced).await.contains("428C9"));
    });
}

#[test]
fn values_of_own_types_are_streamed_as_they_are() {
    block_on(async {
        let columns = "ARRAY['good', 'bad']::mood[], ROW(1, E'\\t,\"')::pair, ARRAY[ROW(NULL, '')::pair], 5, 'a b', \
                       '{\"a\" :  1}', '{\"b\": [1, null]}', '[1,)', '\\x00ff', 'NaN', '{{1,2},{3,NULL}}', '1 mon -2 days', E'\\\\N'";
        let stage = Trap {
            database: "own_types",
            tables: "CREATE TYPE pair AS (x int, y text); CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
                     CREATE DOMAIN words AS text NOT NULL DEFAULT 'none'; \
                     CREATE TABLE own (customer bigint, n int, moods mood[], pair pair, pairs pair[], positive positive, words words, \
                         j json, jb jsonb, r int8range, b bytea, num numeric, nested int[][], i interval, t text, \
                         given bigint GENERATED ALWAYS AS IDENTITY, \
                         PRIMARY KEY (customer, n))",
            listed: ", \"public.own\" = \"customer\"",
            rows: &format!("INSERT INTO own SELECT k, 1, {columns} FROM generate_series(1, 100) k"),
            meanwhile: &format!(
                "INSERT INTO own SELECT k, 2, {columns} FROM generate_series(40, 60) k; \
                 UPDATE own SET pair = ROW(customer, n)::pair, j = NULL, b = '' WHERE customer > 90; \
                 UPDATE own SET n = 3, moods = '{{}}' WHERE customer = 80; UPDATE own SET given = DEFAULT WHERE customer = 85"
            ),
            after: "UPDATE own SET given = DEFAULT, t = 'back' WHERE customer = 86",
            ..Trap::default()
        }
        .through()
        .await;
        assert_eq!(stage.ask(1, "SELECT count(*) FROM own").await, ["60"]);
    });
}

#[test]
fn cascades_triggers_and_row_security_act_once() {
    block_on(async {
        let stage = Trap {
            database: "act_once",
            tables: "CREATE TABLE child (customer bigint, n int, parent int, note text, PRIMARY KEY (customer, n), \
                         FOREIGN KEY (customer) REFERENCES customer ON DELETE CASCADE, \
                         FOREIGN KEY (customer, parent) REFERENCES child ON DELETE CASCADE ON UPDATE CASCADE); \
                     CREATE TABLE log (customer bigint, id uuid DEFAULT gen_random_uuid(), what text, PRIMARY KEY (customer, id)); \
                     CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                         INSERT INTO public.log (customer, what) VALUES (coalesce(NEW.customer, OLD.customer), TG_OP); \
                         RETURN NULL; END $$; \
                     CREATE TRIGGER log AFTER INSERT OR UPDATE OR DELETE ON child FOR EACH ROW EXECUTE FUNCTION log(); \
                     ALTER TABLE child ENABLE ROW LEVEL SECURITY; ALTER TABLE child FORCE ROW LEVEL SECURITY; \
                     CREATE POLICY few ON child USING (n < 2) WITH CHECK (n < 2)",
            listed: ", \"public.child\" = \"customer\", \"public.log\" = \"customer\"",
            rows: "INSERT INTO child SELECT k, 1, NULL, 'x' FROM generate_series(1, 100) k; \
                   INSERT INTO child SELECT k, 2, 1, 'y' FROM generate_series(1, 100) k",
            meanwhile: "DELETE FROM customer WHERE id IN (60, 61); DELETE FROM child WHERE customer = 70 AND n = 1; \
                        UPDATE child SET n = 5 WHERE customer = 80 AND n = 1; UPDATE child SET note = 'z' WHERE customer = 81",
            ..Trap::default()
        }
        .through()
        .await;
        let parents = "SELECT customer || coalesce(parent::text, '-') FROM child WHERE n = 2 AND customer IN (60, 70, 80, 81) ORDER BY 1";
        assert_eq!(stage.ask(1, parents).await, ["805", "811"]);
        // They are at work there as they were.
        stage
            .run(
                1,
                "DELETE FROM log; DELETE FROM child WHERE customer = 90 AND n = 1",
            )
            .await;
        assert_eq!(
            stage.ask(1, "SELECT what FROM log ORDER BY 1").await,
            ["DELETE", "DELETE"]
        );
        let policy = "SELECT relforcerowsecurity FROM pg_class WHERE relname = 'child'";
        assert_eq!(stage.ask(1, policy).await, ["t"]);
    });
}

#[test]
fn columns_are_found_by_name_whatever_they_are_called_and_wherever_they_stand() {
    block_on(async {
        let stage = Trap {
            database: "odd_names",
            tables: "CREATE SCHEMA \"Odd 'S\"; \
                     CREATE TABLE \"Odd 'S\".\"order\" (gone int, \"select\" bigint NOT NULL, \"it's\" text, was text, \"ö\" int DEFAULT 3, \
                         PRIMARY KEY (\"select\", \"ö\")); \
                     ALTER TABLE \"Odd 'S\".\"order\" DROP COLUMN gone, DROP COLUMN was; \
                     CREATE TABLE \"user\" (customer bigint PRIMARY KEY REFERENCES customer)",
            there: Some(
                "CREATE SCHEMA \"Odd 'S\"; \
                 CREATE TABLE \"Odd 'S\".\"order\" (\"ö\" int DEFAULT 3, former bigint, \"it's\" text, \"select\" bigint NOT NULL, \
                     PRIMARY KEY (\"select\", \"ö\")); \
                 ALTER TABLE \"Odd 'S\".\"order\" DROP COLUMN former; \
                 CREATE TABLE \"user\" (customer bigint PRIMARY KEY REFERENCES customer)",
            ),
            listed: ", \"Odd 'S.order\" = \"select\", \"public.user\" = \"customer\"",
            rows: "INSERT INTO \"Odd 'S\".\"order\" SELECT k, 'x' || k, k FROM generate_series(1, 100) k; \
                   INSERT INTO \"user\" SELECT generate_series(1, 100)",
            meanwhile: "UPDATE \"Odd 'S\".\"order\" SET \"ö\" = -1, \"it's\" = NULL WHERE \"select\" > 90; \
                        INSERT INTO \"Odd 'S\".\"order\" VALUES (500, E'a\\'b'); DELETE FROM \"user\" WHERE customer = 99",
            after: "UPDATE \"Odd 'S\".\"order\" SET \"it's\" = 'back' WHERE \"select\" = 60; \
                    INSERT INTO \"Odd 'S\".\"order\" VALUES (8, 'later', 77); DELETE FROM \"user\" WHERE customer = 98",
        }
        .through()
        .await;
        let count = "SELECT count(*) FROM \"Odd 'S\".\"order\"";
        assert_eq!(stage.ask(1, count).await, ["52"]);
    });
}

#[test]
fn large_rows_and_tables_without_any_move_too() {
    block_on(async {
        let stage = Trap {
            database: "sizes",
            tables: "CREATE TABLE large (customer bigint PRIMARY KEY, body text, n int); \
                     ALTER TABLE large ALTER body SET STORAGE EXTERNAL; \
                     CREATE TABLE nothing (customer bigint PRIMARY KEY); \
                     CREATE TABLE others (customer bigint PRIMARY KEY)",
            listed: ", \"public.large\" = \"customer\", \"public.nothing\" = \"customer\", \"public.others\" = \"customer\"",
            rows: "INSERT INTO large SELECT k, repeat(md5(k::text), 200000), 0 FROM generate_series(50, 53) k; \
                   INSERT INTO others VALUES (1), (2)",
            meanwhile: "UPDATE large SET n = 1 WHERE customer = 52; UPDATE large SET customer = 60 WHERE customer = 53; \
                        INSERT INTO large VALUES (70, repeat('y', 9000000), 2)",
            ..Trap::default()
        }
        .through()
        .await;
        let lengths = "SELECT length(body) || ' ' || n FROM large ORDER BY customer";
        assert_eq!(
            stage.ask(1, lengths).await,
            ["6400000 0", "6400000 1", "6400000 0", "9000000 2"]
        );
        assert_eq!(stage.ask(1, "SELECT count(*) FROM nothing").await, ["0"]);
        assert_eq!(stage.ask(0, "SELECT count(*) FROM others").await, ["2"]);
    });
}

#[test]
fn exclusion_and_deferrable_constraints_hold_again_at_the_end() {
    block_on(async {
        let stage = Trap {
            database: "constrained",
            tables: "CREATE TABLE booking (customer bigint, n int, at int4range, place int, PRIMARY KEY (customer, n), \
                         EXCLUDE USING gist (at WITH &&), UNIQUE (customer, place) DEFERRABLE INITIALLY DEFERRED, \
                         CHECK (place > 0) NOT VALID)",
            listed: ", \"public.booking\" = \"customer\"",
            rows: "INSERT INTO booking SELECT k, p, int4range(k * 10 + p, k * 10 + p + 1), p \
                   FROM generate_series(1, 100) k, generate_series(1, 3) p",
            meanwhile: "UPDATE booking SET place = 4 - place WHERE customer > 60; \
                        UPDATE booking SET at = int4range(-upper(at), -lower(at)) WHERE n = 1; \
                        UPDATE booking SET at = int4range(lower(at) - 1, upper(at) - 1) WHERE n = 2",
            ..Trap::default()
        }
        .through()
        .await;
        for (refused, code) in [
            (
                "INSERT INTO booking SELECT customer, 9, at, 9 FROM booking LIMIT 1",
                "23P01",
            ),
            ("INSERT INTO booking VALUES (60, 9, 'empty', 1)", "23505"),
        ] {
            let said = stage.refused(1, refused).await;
            assert!(said.contains(code), "{refused}: {said}");
        }
    });
}

#[test]
fn a_table_can_be_written_while_it_moves_whatever_its_identity_has() {
    block_on(async {
        let tables = "CREATE TABLE aside (id bigint PRIMARY KEY, customer bigint, twice bigint GENERATED ALWAYS AS (id * 2) STORED); \
                      ALTER TABLE aside REPLICA IDENTITY FULL";
        let stage = Stage::new("whole_rows", &["b"]).await;
        stage.run(0, tables).await;
        stage
            .run(
                0,
                "INSERT INTO aside SELECT k, k FROM generate_series(1, 100) k",
            )
            .await;
        let listed = ", \"public.aside\" = \"customer\"";
        let job = Job {
            plan: Arc::new(planned(&stage, &["a"], listed).await.unwrap().plan),
            ..stage.job.clone()
        };
        let errors = async || {
            let found = preflight::run(&job, &Tools::default()).await.unwrap();
            let errors = found
                .into_iter()
                .filter(|it| it.severity == Severity::Error);
            errors.collect::<Vec<_>>()
        };
        let version = "SELECT current_setting('server_version_num')::int4 / 10000";
        let version = [stage.ask(0, version).await, stage.ask(1, version).await].concat();
        let version = version.iter().max().unwrap().parse::<u32>().unwrap();
        if version >= 18 {
            let [found] = &errors().await[..] else {
                panic!("{:?}", errors().await);
            };
            let what = "its replica identity has twice, which is generated";
            assert!(found.what.contains(what), "{found:?}");
            for fix in found.fix.split("; ") {
                stage.run(0, fix).await;
            }
        }
        assert_eq!(errors().await, []);
        prepare::run(&job, &Tools::default()).await.unwrap();
        let written = "UPDATE aside SET id = id + 1000 WHERE customer = 60; DELETE FROM aside WHERE customer = 61";
        stage.run(0, written).await;
    });
}

#[test]
fn a_unique_index_may_tell_of_which_row_changes_are() {
    block_on(async {
        let stage = Trap {
            database: "by_index",
            tables: "CREATE TABLE aside (id bigint PRIMARY KEY, customer bigint NOT NULL, note text, \
                         twice bigint GENERATED ALWAYS AS (id * 2) STORED); \
                     CREATE UNIQUE INDEX aside_identity ON aside (id, customer); \
                     ALTER TABLE aside REPLICA IDENTITY USING INDEX aside_identity",
            listed: ", \"public.aside\" = \"customer\"",
            rows: "INSERT INTO aside SELECT k, k, 'x' FROM generate_series(1, 100) k",
            meanwhile: "UPDATE aside SET customer = customer + 30 WHERE id = 40; UPDATE aside SET customer = 7 WHERE id = 70; \
                        UPDATE aside SET id = 700, note = 'y' WHERE id = 71; DELETE FROM aside WHERE id = 72; \
                        UPDATE aside SET note = 'z' WHERE id = 73",
            after: "UPDATE aside SET customer = 90 WHERE id = 40; UPDATE aside SET id = 800 WHERE id = 81; DELETE FROM aside WHERE id = 82",
            ..Trap::default()
        }
        .through()
        .await;
        assert_eq!(stage.ask(1, "SELECT count(*) FROM aside").await, ["48"]);
    });
}

/// A table whose shard key is not in its primary key, on both servers.
const ASIDE: &str = "\
CREATE TABLE aside (id bigint PRIMARY KEY, customer bigint NOT NULL); ALTER TABLE aside REPLICA IDENTITY FULL";

#[test]
fn what_a_destination_changes_has_to_tell_its_row_before_it_serves() {
    block_on(async {
        let (stage, _streams) = Trap {
            database: "untold",
            tables: ASIDE,
            there: Some(ASIDE),
            listed: ", \"public.aside\" = \"customer\"",
            rows: "INSERT INTO aside SELECT k, k FROM generate_series(1, 100) k",
            ..Trap::default()
        }
        .sprung()
        .await;
        ready::same_tables(&stage.job).await.unwrap();
        for (identity, untold) in [("DEFAULT", "customer"), ("NOTHING", "customer, id")] {
            let change = format!("ALTER TABLE aside REPLICA IDENTITY {identity}");
            stage.run(1, &change).await;
            for looked in [
                ready::run(&stage.job).await,
                ready::same_tables(&stage.job).await,
                rehearse::run(&stage.job).await,
            ] {
                let (what, remedy) = halted(looked);
                let told = format!(
                    "public.aside on shard b: what is deleted or updated there does not tell {untold}:"
                );
                assert!(what.starts_with(&told), "{what}");
                let mended = remedy.split_once(", then resume").unwrap().0;
                assert_eq!(
                    mended,
                    "ALTER TABLE \"public\".\"aside\" REPLICA IDENTITY FULL"
                );
            }
            let found = preflight::run(&stage.job, &Tools::default()).await.unwrap();
            let finding = found
                .iter()
                .find(|it| it.what.contains("does not tell"))
                .unwrap();
            assert_eq!(finding.shard.as_deref(), Some("b"), "{finding:?}");
            stage.run(1, &finding.fix).await;
            ready::run(&stage.job).await.unwrap();
        }
        rehearse::run(&stage.job).await.unwrap();
    });
}

fn halted(done: Result<(), StepError>) -> (String, String) {
    match done {
        Err(StepError::Halt { what, remedy }) => (what, remedy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tables_that_a_subscription_brings_rows_to_keep_their_owners() {
    block_on(async {
        let (stage, _streams) = parts("subscribed", None).sprung().await;
        let other = sandbox().cluster(1);
        other
            .execute("postgres", "CREATE DATABASE feed")
            .await
            .unwrap();
        let feed = "CREATE TABLE customer (id bigint PRIMARY KEY, name text); \
                    CREATE TABLE parts (customer bigint, day int, note text, PRIMARY KEY (customer, day)); \
                    CREATE PUBLICATION feed FOR TABLE customer, parts";
        other.execute("feed", feed).await.unwrap();
        let subscribe = format!(
            "CREATE SUBSCRIPTION \"the feed\" CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=feed' PUBLICATION feed \
             WITH (copy_data = false, slot_name = feed)",
            other.port()
        );
        stage.run(0, &subscribe).await;
        for looked in [
            ready::run(&stage.job).await,
            ready::same_tables(&stage.job).await,
            rehearse::run(&stage.job).await,
            fence::run(&stage.job).await,
        ] {
            let (what, remedy) = halted(looked);
            assert!(
                what.starts_with(
                    "subscription the feed of shard a brings rows to public.Parts 1, "
                ),
                "{what}"
            );
            assert!(
                remedy.ends_with("DROP SUBSCRIPTION \"the feed\"; then resume"),
                "{remedy}"
            );
        }
        let found = preflight::run(&stage.job, &Tools::default()).await.unwrap();
        for table in ["public.customer", "public.parts_2"] {
            let named = |it: &&preflight::Finding| {
                it.table.as_deref() == Some(table)
                    && it
                        .what
                        .starts_with("subscription the feed brings rows to it")
            };
            let finding = found
                .iter()
                .find(named)
                .unwrap_or_else(|| panic!("{table}: {found:#?}"));
            assert_eq!(finding.severity, Severity::Error);
        }
        stage.run(0, "DROP SUBSCRIPTION \"the feed\"").await;
        rehearse::run(&stage.job).await.unwrap();
    });
}

const PARTS: &str = "\
CREATE TABLE parts (customer bigint NOT NULL, day int NOT NULL, note text, PRIMARY KEY (customer, day), \
    FOREIGN KEY (customer) REFERENCES customer) PARTITION BY RANGE (day); \
CREATE INDEX parts_note ON parts (note); \
CREATE TABLE \"Parts 1\" PARTITION OF parts FOR VALUES FROM (0) TO (10); \
CREATE TABLE parts_2 (note text, day int NOT NULL, customer bigint NOT NULL); \
ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (10) TO (20); \
CREATE TABLE parts_rest PARTITION OF parts DEFAULT PARTITION BY HASH (customer); \
CREATE TABLE parts_rest_0 PARTITION OF parts_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
CREATE TABLE parts_rest_1 PARTITION OF parts_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1)";

fn parts(database: &'static str, there: Option<&'static str>) -> Trap<'static> {
    Trap {
        database,
        tables: PARTS,
        there,
        listed: ", \"public.parts\" = \"customer\"",
        after: "UPDATE parts SET day = 31 - day, note = 'back' WHERE customer = 95; DELETE FROM parts WHERE customer = 96",
        rows: "INSERT INTO parts SELECT k, d, 'x' FROM generate_series(1, 100) k, (VALUES (1), (11), (21)) d (d)",
        meanwhile: "UPDATE parts SET day = 31 - day WHERE customer > 90; UPDATE parts SET note = 'y' WHERE customer = 60; \
                    DELETE FROM parts WHERE customer = 61 AND day = 1; INSERT INTO parts VALUES (62, 5, 'z'), (62, 25, 'z')",
    }
}

#[test]
fn partitions_move_one_by_one() {
    block_on(async {
        for stage in [
            parts("parts_made", None).through().await,
            parts("parts_there", Some(PARTS)).through().await,
        ] {
            assert_eq!(stage.ask(1, "SELECT count(*) FROM parts").await, ["148"]);
            let left = "SELECT max(customer) || ' ' || count(*) FROM parts";
            assert_eq!(stage.ask(0, left).await, ["50 150"]);
            let keys = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'parts'::regclass AND convalidated AND contype IN ('p', 'f')";
            assert_eq!(stage.ask(1, keys).await, ["2"]);
            // Rows find their way there.
            stage
                .run(
                    1,
                    "INSERT INTO parts VALUES (70, 3, 'new'), (70, 99, 'new')",
                )
                .await;
        }
    });
}

#[test]
fn a_partition_that_the_plan_does_not_know_keeps_the_owners_from_changing() {
    block_on(async {
        let (stage, streams) = parts("parts_new", None).sprung().await;
        let refused = |stage: &Stage| {
            format!(
                "SELECT count(*) FROM pg_trigger WHERE tgenabled = 'O' AND tgname LIKE 'shardway_guard_{}%'",
                stage.job.id
            )
        };
        stage
            .run(
                0,
                "CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (40) TO (50)",
            )
            .await;
        for fenced in [
            fence::rehearse(&stage.job, &stage.job.servers["a"]).await,
            fence::run(&stage.job).await,
        ] {
            match fenced {
                Err(StepError::Halt { what, .. }) => assert!(what.contains("parts_3"), "{what}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stage.ask(0, &refused(&stage)).await, ["0"]);
        stage.run(0, "DROP TABLE parts_3").await;
        fence::run(&stage.job).await.unwrap();
        for stream in &streams {
            stream.fenced(1).await.unwrap();
        }
        let guarded = stage.refused(0, "INSERT INTO parts VALUES (60, 7)").await;
        assert!(guarded.contains("SWG01"), "{guarded}");
        let truncated = stage.refused(0, "TRUNCATE parts").await;
        assert!(truncated.contains("SWG01"), "{truncated}");
    });
}

#[test]
fn a_partition_that_is_made_past_the_proxies_after_a_cutover_stops_the_run() {
    block_on(async {
        let (mut stage, streams) = parts("parts_late", None).sprung().await;
        partitions::none_new(&stage.job).await.unwrap();
        fence::run(&stage.job).await.unwrap();
        for stream in streams {
            stream.fenced(1).await.unwrap();
            stream.stop().await.unwrap();
        }
        turn::run(&stage.job).await.unwrap();
        activate::run(&stage.job, &map(&stage.job, 2))
            .await
            .unwrap();
        stage.job = Job {
            attempt: 2,
            ..stage.job.turned()
        };
        reverse::run(&stage.job).await.unwrap();
        partitions::none_new(&stage.job).await.unwrap();
        // On the new owner, where no stream has its rows, and on the former one, where no guard is on it.
        let made = "CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (40) TO (50)";
        for (shard, name) in [(1, "b"), (0, "a")] {
            stage.run(shard, made).await;
            match partitions::none_new(&stage.job).await {
                Err(StepError::Halt { what, remedy }) => {
                    let wanted = format!(
                        "shard {name} has partitions that were made since the plan: public.parts_3"
                    );
                    assert_eq!(what, wanted);
                    assert!(
                        remedy.contains("finish") && remedy.contains("drop"),
                        "{remedy}"
                    );
                }
                other => panic!("{other:?}"),
            }
            if shard == 1 {
                stage.run(shard, "DROP TABLE parts_3").await;
            }
        }
        // Nobody forgets what somebody was told is there.
        let rows = "INSERT INTO parts VALUES (60, 45), (7, 45)";
        stage.run(0, rows).await;
        let what = match finish::run(&stage.job).await {
            Err(StepError::Halt { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert!(
            what.starts_with("1 rows in partition public.parts_3 of shard a"),
            "{what}"
        );
        let all = "SELECT count(*) FROM parts WHERE customer > 50";
        assert_ne!(stage.ask(0, all).await, ["1"], "nothing has gone yet");
        stage
            .run(0, "DELETE FROM parts_3 WHERE customer = 60")
            .await;
        finish::run(&stage.job).await.unwrap();
        let left = "SELECT max(customer) || ' ' || count(*) FROM parts_3";
        assert_eq!(stage.ask(0, left).await, ["7 1"]);
        assert_eq!(stage.ask(0, all).await, ["0"]);
    });
}

#[test]
fn what_belongs_to_a_table_is_on_a_shard_that_joins() {
    block_on(async {
        let stage = Trap {
            database: "belongings",
            tables: "CREATE TABLE owned (customer bigint PRIMARY KEY, n int); ALTER TABLE owned OWNER TO pg_monitor; \
                     GRANT SELECT, INSERT (n) ON owned TO pg_read_all_stats; COMMENT ON COLUMN owned.n IS 'it''s'; \
                     ALTER TABLE owned ALTER n SET STATISTICS 77, SET (autovacuum_enabled = false); \
                     CREATE STATISTICS both_of ON customer, n FROM owned; \
                     CREATE VIEW seen WITH (security_barrier) AS SELECT n FROM owned; GRANT SELECT ON seen TO pg_monitor; \
                     CREATE RULE nothing AS ON INSERT TO seen DO INSTEAD NOTHING; \
                     CREATE POLICY mine ON owned FOR SELECT TO pg_monitor USING (n > 0)",
            listed: ", \"public.owned\" = \"customer\"",
            rows: "INSERT INTO owned SELECT k, k FROM generate_series(1, 100) k",
            meanwhile: "UPDATE owned SET n = -n WHERE customer > 90",
            ..Trap::default()
        }
        .through()
        .await;
        let had = "SELECT concat_ws(' ', relowner::regrole, relacl, reloptions, (SELECT array_agg(attacl::text || attstattarget) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)) FROM pg_class c WHERE relname IN ('owned', 'seen') ORDER BY relname \
                   ";
        assert_eq!(stage.ask(1, had).await, stage.ask(0, had).await);
        let more = "SELECT description FROM pg_description WHERE objoid = 'owned'::regclass UNION ALL SELECT polname FROM pg_policy \
                    UNION ALL SELECT stxname FROM pg_statistic_ext UNION ALL SELECT rulename FROM pg_rewrite WHERE rulename = 'nothing' ORDER BY 1";
        assert_eq!(stage.ask(1, more).await, stage.ask(0, more).await);
        // The shop has a policy of its own.
        assert_eq!(stage.ask(1, more).await.len(), 5);
    });
}

#[test]
fn tables_that_cannot_move_are_named_with_the_reason() {
    block_on(async {
        let stage = Stage::new("named", &["b"]).await;
        stage
            .run(
                0,
                "CREATE TABLE parent (customer bigint PRIMARY KEY); CREATE TABLE heir (PRIMARY KEY (customer)) INHERITS (parent); \
                 CREATE TABLE bare (customer bigint PRIMARY KEY) PARTITION BY HASH (customer); \
                 CREATE TABLE whole (customer bigint PRIMARY KEY) PARTITION BY HASH (customer); \
                 CREATE TABLE piece PARTITION OF whole FOR VALUES WITH (MODULUS 1, REMAINDER 0); \
                 CREATE TABLE late (customer bigint, n int, PRIMARY KEY (customer) DEFERRABLE); \
                 CREATE TABLE made (base bigint, customer bigint GENERATED ALWAYS AS (base * 2) STORED, PRIMARY KEY (base)); \
                 ALTER TABLE made REPLICA IDENTITY FULL",
            )
            .await;
        for (table, what) in [
            (
                "parent",
                "it inherits from a table, or another from it: such tables cannot be moved",
            ),
            (
                "heir",
                "it inherits from a table, or another from it: such tables cannot be moved",
            ),
            ("bare", "it is partitioned and has no partitions"),
            (
                "piece",
                "it is a partition of a table that the group does not have",
            ),
            (
                "late",
                "its primary key is deferrable: its rows could not be updated any more once it is published",
            ),
            ("made", "customer is generated, and changes do not tell it"),
        ] {
            let listed = format!(", \"public.{table}\" = \"customer\"");
            let plan = planned(&stage, &["a"], &listed).await.unwrap().plan;
            let job = Job {
                plan: Arc::new(plan),
                ..stage.job.clone()
            };
            let found = preflight::run(&job, &Tools::default()).await.unwrap();
            let name = Some(format!("public.{table}"));
            let errors: Vec<&str> = found
                .iter()
                .filter(|it| it.severity == Severity::Error && it.table == name)
                .map(|it| it.what.as_str())
                .collect();
            assert!(errors.contains(&what), "{table}: {errors:?}");
        }
    });
}

#[test]
fn a_range_group_is_cut_where_its_rows_are() {
    block_on(async {
        let stage = Stage::new("quantiles", &["b"]).await;
        // The shop has customers 1 to 100; most purchases are of the last.
        stage
            .run(
                0,
                "INSERT INTO purchase (customer) SELECT 91 + k % 10 FROM generate_series(1, 2000) k; ANALYZE",
            )
            .await;
        let wish = Wish::Spread {
            group: None,
            to: vec!["a".to_owned(), "b".to_owned()],
        };
        let planned = planned_by(&stage, &["a"], "", wish).await.unwrap();
        let [cut] = &planned.cuts[..] else {
            panic!("{:?}", planned.cuts);
        };
        let bound: i64 = cut.bounds[0].text().parse().unwrap();
        assert!((93..=97).contains(&bound), "{bound}");
        let rows = |condition: &str| {
            format!(
                "SELECT (SELECT count(*) FROM customer WHERE id {condition}) + (SELECT count(*) FROM purchase WHERE customer {condition})"
            )
        };
        let [low, high] = [format!("< {bound}"), format!(">= {bound}")];
        let (low, high) = (
            stage.ask(0, &rows(&low)).await,
            stage.ask(0, &rows(&high)).await,
        );
        let (low, high): (f64, f64) = (low[0].parse().unwrap(), high[0].parse().unwrap());
        assert!((0.75..1.34).contains(&(low / high)), "{low} and {high}");
        assert_eq!(planned.plan.moves.len(), 1);
    });
}
