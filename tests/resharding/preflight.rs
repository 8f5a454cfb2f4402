//! Plans made of real tables, and what is found before anything is touched: each finding, and that its statement mends it.

use crate::steps::{Stage, block_on, sandbox};
use shardway::{
    catalog::{moving::KeySet, ownership::Ownership, snapshot::Snapshot},
    config::load::load_str,
    inspect::Severity,
    reshard::{
        dump::Tools,
        job::Job,
        planning::{Asked, PlanError, Planned, plan},
        steps::preflight::{self, Finding},
        wish::Wish,
    },
};
use std::{collections::BTreeSet, path::Path, sync::Arc};

/// All on `a`, with more tables of the group.
fn snapshot(more: &str) -> Arc<Snapshot> {
    let text = format!(
        "[databases.app]\nshards.a = {{ primary = \"postgres://h0/app\" }}\nshards.b = {{ primary = \"postgres://h1/app\" }}\n\
         [databases.app.groups.shop]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 51, shard = \"a\" }}, {{ to = 1000000, shard = \"a\" }}, {{ shard = \"a\" }}]\n\
         tables = {{ \"public.customer\" = \"id\", \"public.purchase\" = \"customer\"{more} }}\n\
         [databases.app.tables]\nreference = [\"public.country\"]"
    );
    let settings = load_str("test", &text, Path::new("."));
    let settings = settings.unwrap_or_else(|errors| panic!("{}", errors.render()));
    Arc::clone(&settings.databases["app"].snapshot)
}

/// A plan that takes the keys from 51 on from `a` to `b`.
pub(crate) async fn planned(
    stage: &Stage,
    members: &[&str],
    more: &str,
) -> Result<Planned, PlanError> {
    planned_by(
        stage,
        members,
        more,
        Wish::of_move("range=[51,):b", None).unwrap(),
    )
    .await
}

/// A plan of another wish.
pub(crate) async fn planned_by(
    stage: &Stage,
    members: &[&str],
    more: &str,
    wish: Wish,
) -> Result<Planned, PlanError> {
    let snapshot = snapshot(more);
    let members: BTreeSet<String> = members.iter().map(|name| (*name).to_owned()).collect();
    let asked = Asked {
        snapshot: &snapshot,
        epoch: 5,
        owners: &Ownership::of(&snapshot),
        members: &members,
        servers: &stage.job.servers,
    };
    plan(asked, &[wish]).await
}

async fn findings(stage: &Stage, members: &[&str], more: &str) -> Vec<Finding> {
    let planned = planned(stage, members, more).await.unwrap();
    let job = Job {
        plan: Arc::new(planned.plan),
        ..stage.job.clone()
    };
    preflight::run(&job, &Tools::default()).await.unwrap()
}

fn with<'a>(findings: &'a [Finding], what: &str) -> Option<&'a Finding> {
    findings.iter().find(|it| it.what.contains(what))
}

#[test]
fn a_plan_says_which_columns_mean_the_same_everywhere() {
    block_on(async {
        let stage = Stage::new("planned", &["b"]).await;
        stage
            .run(
                0,
                "CREATE TYPE pair AS (a int, b int); CREATE DOMAIN short AS varchar(10); CREATE DOMAIN moods AS mood[];
                 CREATE TABLE many (z int, customer bigint, a int[], m mood, ms mood[], p pair, d short, dm moods, r regclass, j json,
                     twice int GENERATED ALWAYS AS (z * 2) STORED, gone int, PRIMARY KEY (customer, z));
                 ALTER TABLE many DROP COLUMN gone; ANALYZE",
            )
            .await;
        let planned = planned(&stage, &["a"], ", \"public.many\" = \"customer\"")
            .await
            .unwrap();
        let plan = &planned.plan;
        assert_eq!(
            (plan.epoch, plan.joins.as_slice()),
            (5, &["b".to_owned()][..])
        );
        assert_eq!(plan.moves.len(), 1);
        assert_eq!(plan.after, plan.before.apply(&plan.moves).unwrap());
        assert_ne!(
            plan.moves[0].keys,
            KeySet::of(shardway::catalog::moving::Part::None)
        );
        let many = plan.tables.iter().find(|it| it.name == "many").unwrap();
        assert_eq!(many.primary_key, ["customer", "z"]);
        let columns = many.columns.iter();
        let columns: Vec<(&str, &str, bool)> = columns
            .map(|it| (it.name.as_str(), it.type_name.as_str(), it.binary))
            .collect();
        assert_eq!(
            columns,
            [
                ("z", "integer", true),
                ("customer", "bigint", true),
                ("a", "integer[]", true),
                ("m", "public.mood", true),
                ("ms", "public.mood[]", false),
                ("p", "public.pair", false),
                ("d", "public.short", true),
                ("dm", "public.moods", false),
                ("r", "regclass", false),
                ("j", "json", true),
            ]
        );
        let tables: Vec<&str> = plan.tables.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(tables, ["customer", "many", "purchase"]);
        assert_eq!(plan.reference[0].name, "country");
        let customers = planned
            .sizes
            .iter()
            .find(|it| it.table == "public.customer");
        let rows = customers.unwrap().rows;
        assert!(rows.is_some_and(|it| (40..=60).contains(&it)), "{rows:?}");
        let whole = planned.sizes.iter().filter(|it| it.to.is_some());
        let whole: Vec<_> = whole
            .map(|it| (it.table.as_str(), it.shard.as_str(), it.to.as_deref()))
            .collect();
        assert_eq!(whole, [("public.country", "a", Some("b"))]);
        // Of a table without statistics nothing is made up.
        stage
            .run(0, "CREATE TABLE fresh (customer bigint PRIMARY KEY); INSERT INTO fresh SELECT generate_series(1, 500)")
            .await;
        let fresh = self::planned(&stage, &["a"], ", \"public.fresh\" = \"customer\"").await;
        let sizes = fresh.unwrap().sizes;
        let fresh = sizes.iter().find(|it| it.table == "public.fresh").unwrap();
        assert!(fresh.rows.is_none() && fresh.bytes > 0, "{fresh:?}");
        let missing = self::planned(&stage, &["a"], ", \"public.nowhere\" = \"customer\"").await;
        assert!(matches!(missing, Err(PlanError::NoTable { .. })));
        assert!(
            self::planned(&stage, &["a", "b"], "")
                .await
                .unwrap()
                .plan
                .reference
                .is_empty()
        );
    });
}

#[test]
fn what_cannot_move_is_found_with_the_statement_that_mends_it() {
    block_on(async {
        let stage = Stage::new("found", &["b"]).await;
        stage
            .run(0, "CREATE TABLE note (id bigint PRIMARY KEY, customer bigint); INSERT INTO note VALUES (1, 60); ANALYZE")
            .await;
        let more = ", \"public.note\" = \"customer\"";
        stage.run(0, "ALTER TABLE note REPLICA IDENTITY FULL").await;
        let clean = findings(&stage, &["a"], more).await;
        assert!(
            clean.iter().all(|it| it.severity < Severity::Error),
            "{clean:?}"
        );
        assert!(with(&clean, "note_pkey is unique without the shard key").is_some());
        for (table, change, what) in [
            ("purchase", "ALTER TABLE purchase SET UNLOGGED", "unlogged"),
            (
                "purchase",
                "ALTER TABLE purchase REPLICA IDENTITY NOTHING",
                "does not tell",
            ),
            (
                "note",
                "ALTER TABLE note REPLICA IDENTITY DEFAULT",
                "does not tell",
            ),
            ("note", "INSERT INTO note VALUES (2, NULL)", "is NULL"),
            (
                "customer",
                "ALTER TABLE customer ENABLE ALWAYS TRIGGER upper_name",
                "acts on replicas",
            ),
            (
                "customer",
                "CREATE TABLE alone (c bigint REFERENCES customer)",
                "does not hold within one shard",
            ),
            (
                "note",
                "ALTER TABLE note ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES customer",
                "does not hold",
            ),
        ] {
            if table == "note" && change.contains("FOREIGN") {
                stage
                    .run(0, "DELETE FROM note; INSERT INTO note VALUES (60, 60)")
                    .await;
            }
            stage.run(0, change).await;
            let found = findings(&stage, &["a"], more).await;
            let finding = with(&found, what).unwrap_or_else(|| panic!("{change}: {found:?}"));
            assert_eq!(finding.severity, Severity::Error);
            assert_eq!(finding.shard.as_deref(), Some("a"));
            assert_eq!(finding.table, Some(format!("public.{table}")), "{change}");
            let fix = finding.fix.clone();
            stage
                .run(0, &format!("SET search_path = public; {fix}"))
                .await;
            let found = findings(&stage, &["a"], more).await;
            assert!(with(&found, what).is_none(), "{fix}: {found:?}");
        }
        stage
            .run(0, "ALTER TABLE note DROP CONSTRAINT note_pkey; SELECT lo_create(0); ALTER TABLE purchase ADD picture oid; \
                     CREATE TABLE child () INHERITS (note); CREATE PUBLICATION everything FOR ALL TABLES")
            .await;
        let found = findings(&stage, &["a"], more).await;
        for what in [
            "no primary key",
            "large objects",
            "inherits",
            "is of all tables",
        ] {
            assert!(with(&found, what).is_some(), "{what}: {found:?}");
        }
    });
}

#[test]
fn a_destination_that_does_not_fit_is_found() {
    block_on(async {
        let stage = Stage::new("unfit", &[]).await;
        let members = ["a", "b"];
        let found = findings(&stage, &members, "").await;
        assert!(with(&found, "it is not there").is_some(), "{found:?}");
        stage
            .run(
                1,
                &crate::steps::SHOP.replace("'good', 'bad'", "'bad', 'good'"),
            )
            .await;
        let found = findings(&stage, &members, "").await;
        assert!(
            with(&found, "enum public.mood has other labels").is_some(),
            "{found:?}"
        );
        let leftover = with(&found, "it has rows already").unwrap();
        assert_eq!(leftover.shard.as_deref(), Some("b"));
        let all: Vec<String> = found
            .iter()
            .filter(|it| it.what.contains("it has rows already"))
            .map(|it| it.fix.clone())
            .collect();
        for fix in all.iter().rev() {
            stage.run(1, fix).await;
        }
        stage
            .run(1, "DROP VIEW notes; DROP TABLE purchase, customer, country; DROP TYPE mood; DROP FUNCTION upper_name")
            .await;
        stage.run(1, crate::steps::SHOP).await;
        stage.run(1, "DELETE FROM customer WHERE id > 10").await;
        for shard in 0..2 {
            stage
                .run(shard, "CREATE UNIQUE INDEX by_name ON customer (name)")
                .await;
        }
        let clean = findings(&stage, &members, "").await;
        assert!(
            clean.iter().all(|it| it.severity < Severity::Error),
            "{clean:?}"
        );
        stage
            .run(1, "UPDATE customer SET name = 'N77' WHERE id = 3")
            .await;
        let found = findings(&stage, &members, "").await;
        let meets = with(&found, "of public.by_name is on shard a and on shard b").unwrap();
        assert!(meets.what.contains("N77") && meets.severity == Severity::Error);
    });
}

#[test]
fn rights_that_the_role_lacks_are_named() {
    block_on(async {
        let stage = Stage::new("rights", &["b"]).await;
        for cluster in sandbox().clusters() {
            cluster
                .execute("postgres", "CREATE ROLE weak LOGIN")
                .await
                .unwrap();
        }
        let planned = planned(&stage, &["a"], "").await.unwrap();
        let mut servers = (*stage.job.servers).clone();
        for server in servers.values_mut() {
            server.credentials.user = "weak".to_owned();
        }
        let job = Job {
            plan: Arc::new(planned.plan),
            servers: Arc::new(servers),
            ..stage.job.clone()
        };
        let found = preflight::run(&job, &Tools::default()).await.unwrap();
        for what in [
            "weak may not use slots",
            "weak may not make publications",
            "weak may not set session_replication_role",
            "weak is no member of postgres",
            "weak does not see what other roles' sessions do",
        ] {
            assert!(with(&found, what).is_some(), "{what}: {found:?}");
        }
        let tools = Tools {
            pg_dump: "/nowhere/pg_dump".into(),
        };
        let found = preflight::run(&stage.job, &tools).await.unwrap();
        assert!(
            with(&found, "/nowhere/pg_dump cannot be run").is_some(),
            "{found:?}"
        );
    });
}
