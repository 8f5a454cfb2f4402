//! A control role that may not set `session_replication_role`, as managed services give it: rows go there and back past the
//! guards all the same, and tables on which something would act are refused.

use crate::shards::map;
use crate::{
    preflight::planned,
    steps::{Stage, block_on, sandbox},
};
use shardway::{
    inspect::Severity,
    reshard::{
        dump::Tools,
        job::{Job, StepError},
        steps::{
            activate, catch_up::Follower, copy, fence, finish, keys, preflight, prepare, readers,
            ready, reverse, turn,
        },
    },
};
use std::{sync::Arc, time::Duration};

/// More than it takes to look at who is there.
const A_WHILE: Duration = Duration::from_secs(1);

/// Everything there is belongs to it.
const GIVE: &str = "\
DO $$ DECLARE it record; BEGIN \
FOR it IN SELECT format('ALTER %s %s OWNER TO managed', kind, name) AS sql FROM ( \
    SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, oid::regclass::text FROM pg_class c \
      WHERE relnamespace IN ('public'::regnamespace, 'shardway'::regnamespace) AND relkind IN ('r', 'v', 'S') \
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S') \
    UNION ALL SELECT 'FUNCTION', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384 \
    UNION ALL SELECT 'TYPE', oid::regtype::text FROM pg_type WHERE oid >= 16384 AND typtype = 'e' \
    UNION ALL SELECT 'SCHEMA', 'shardway') o (kind, name) \
LOOP EXECUTE it.sql; END LOOP; END $$; GRANT CREATE ON SCHEMA public TO managed";

async fn stage(database: &'static str) -> Stage {
    let mut stage = Stage::new(database, &["b"]).await;
    for cluster in sandbox().clusters() {
        // Tests run beside each other.
        let role = "DO $$ BEGIN CREATE ROLE managed LOGIN REPLICATION IN ROLE pg_read_all_stats; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$";
        cluster.execute("postgres", role).await.unwrap();
        let grant = format!("GRANT CREATE ON DATABASE {database} TO managed");
        cluster.execute("postgres", &grant).await.unwrap();
    }
    for shard in 0..2 {
        stage.run(shard, GIVE).await;
    }
    let mut servers = (*stage.job.servers).clone();
    for server in servers.values_mut() {
        server.credentials.user = "managed".to_owned();
    }
    stage.job.servers = Arc::new(servers);
    stage
}

async fn found(stage: &mut Stage) -> Vec<preflight::Finding> {
    let plan = planned(stage, &["a"], "").await.unwrap().plan;
    stage.job.plan = Arc::new(plan);
    preflight::run(&stage.job, &Tools::default()).await.unwrap()
}

async fn cut(job: &Job, follower: Follower, epoch: i64) {
    while let Err(error) = fence::run(job).await {
        assert!(matches!(error, StepError::Again { .. }), "{error}");
    }
    follower.fenced(job.attempt).await.unwrap();
    turn::run(job).await.unwrap();
    follower.stop().await.unwrap();
    activate::run(job, &map(job, epoch)).await.unwrap();
}

const QUIET: &str = "\
DROP TRIGGER upper_name ON customer; ALTER TABLE purchase DROP CONSTRAINT purchase_customer_fkey; \
ALTER TABLE customer DROP CONSTRAINT customer_country_fkey";
const ROWS: &str = "\
SELECT string_agg(r, E'\\n' ORDER BY r) FROM ( \
  SELECT 'c ' || md5(customer::text) FROM customer WHERE id >= 51 \
  UNION ALL SELECT 'p ' || md5(purchase::text) FROM purchase WHERE customer >= 51) rows (r)";

#[test]
fn tables_on_which_something_acts_are_refused() {
    block_on(async {
        let mut stage = stage("managed_refused").await;
        let errors = found(&mut stage).await;
        for (table, what) in [
            ("public.customer", "trigger upper_name would act"),
            (
                "public.customer",
                "foreign key customer_country_fkey of customer would act",
            ),
            (
                "public.purchase",
                "foreign key purchase_customer_fkey of purchase would act",
            ),
            (
                "public.country",
                "foreign key customer_country_fkey of customer would act",
            ),
        ] {
            let named = |it: &&preflight::Finding| {
                it.table.as_deref() == Some(table)
                    && it.what.replace("public.", "").contains(what)
                    && it.severity == Severity::Error
                    && it.fix.contains("session_replication_role")
            };
            assert!(
                errors.iter().any(|it| named(&it)),
                "{table} {what}: {errors:#?}"
            );
        }
    });
}

#[test]
fn who_cannot_see_what_others_do_waits_for_them_all_the_same() {
    block_on(async {
        let mut stage = Stage::new("hidden", &["b"]).await;
        for cluster in sandbox().clusters() {
            let role = "CREATE ROLE blind LOGIN";
            cluster.execute("postgres", role).await.unwrap();
        }
        let reader = stage.job.servers["a"].sql().await.unwrap();
        let mut servers = (*stage.job.servers).clone();
        for server in servers.values_mut() {
            server.credentials.user = "blind".to_owned();
        }
        stage.job.servers = Arc::new(servers);
        reader
            .batch_execute("BEGIN; SELECT 1 FROM public.customer")
            .await
            .unwrap();
        let waits = tokio::time::timeout(A_WHILE, readers::unseen(&stage.job)).await;
        assert!(waits.is_err(), "{waits:?}");
        reader.batch_execute("COMMIT").await.unwrap();
        readers::unseen(&stage.job).await.unwrap();
    });
}

#[test]
fn its_rows_go_there_and_back_past_the_guards() {
    block_on(async {
        let mut stage = stage("managed").await;
        stage.run(0, QUIET).await;
        let found = found(&mut stage).await;
        let errors: Vec<_> = found
            .iter()
            .filter(|it| it.severity == Severity::Error)
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
        let note = "may not set session_replication_role";
        assert!(found.iter().any(|it| it.what.contains(note)), "{found:#?}");
        prepare::run(&stage.job, &Tools::default()).await.unwrap();
        copy::run(&stage.job).await.unwrap();
        keys::primary(&stage.job).await.unwrap();
        let follower = Follower::start(&stage.job, "a");
        follower.consistent().await.unwrap();
        keys::rest(&stage.job).await.unwrap();
        ready::run(&stage.job).await.unwrap();
        stage.run(0, "UPDATE customer SET name = name || '.'").await;
        cut(&stage.job, follower, 2).await;
        assert_eq!(stage.ask(0, ROWS).await, stage.ask(1, ROWS).await);

        // The former owner's guard is on: changes come back past it, and others do not.
        stage.job = Job {
            attempt: 2,
            ..stage.job.turned()
        };
        let follower = Follower::start(&stage.job, "b");
        reverse::run(&stage.job).await.unwrap();
        stage
            .run(1, "UPDATE customer SET name = name || '!'; DELETE FROM purchase WHERE customer = 60; INSERT INTO customer (id, name) VALUES (500, 'new')")
            .await;
        for pass in [
            "",
            "SET shardway.pass = ''; ",
            "SET shardway.pass = 'guess'; ",
        ] {
            let write = format!("{pass}DELETE FROM customer WHERE id = 70");
            let refused = sandbox().cluster(0).execute("managed", &write).await;
            assert!(format!("{refused:?}").contains("SWG01"), "{refused:?}");
        }
        cut(&stage.job, follower, 3).await;
        assert_eq!(stage.ask(0, ROWS).await, stage.ask(1, ROWS).await);
        let there = "SELECT count(*) FROM customer WHERE id = 500 AND name = 'new'";
        assert_eq!(stage.ask(0, there).await, ["1"]);

        // There again, and to the end, which deletes past the guards.
        stage.job = Job {
            attempt: 3,
            ..stage.job.turned()
        };
        let follower = Follower::start(&stage.job, "a");
        reverse::run(&stage.job).await.unwrap();
        cut(&stage.job, follower, 4).await;
        finish::run(&stage.job).await.unwrap();
        assert_eq!(stage.ask(0, "SELECT max(id) FROM customer").await, ["50"]);
        assert_eq!(stage.ask(1, there).await, ["1"]);
    });
}
