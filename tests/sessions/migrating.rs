//! What migrations of frameworks send, statement by statement, over three shards: the same answers as one PostgreSQL
//! gives, tables on all their shards, the framework's own tables on one, under its advisory lock.

use crate::{
    client::query,
    three::{Stand, Three},
};

fn three(name: &str) -> Three<'_> {
    Three {
        ddl: "",
        tables: &[
            "public.accounts",
            "public.posts",
            "public.users",
            "public.orders",
        ],
        reference: &["public.countries"],
        database: "unlisted_tables = \"s0\"\n",
        ..Three::new(name)
    }
}

impl Stand {
    /// Both do this, and say the same of it.
    fn migrates(&mut self, statements: &[&str]) {
        for sql in statements {
            let said = self.alike(&query(sql), 1);
            assert!(
                !said.iter().any(|line| line.starts_with('E')),
                "{sql}: {said:?}"
            );
        }
    }

    /// On which shards a relation is.
    fn holders(&mut self, name: &str) -> String {
        self.seen(&format!("select to_regclass('{name}') is not null"))
            .concat()
    }
}

/// What a connection of ActiveRecord begins with.
const RAILS_SESSION: [&str; 6] = [
    "SET client_min_messages TO 'warning'",
    "SET standard_conforming_strings = on",
    "SET intervalstyle = iso_8601",
    "SET SESSION timezone TO 'UTC'",
    "SHOW max_identifier_length",
    "SHOW search_path",
];
/// Its own tables.
const RAILS_TABLES: [&str; 4] = [
    "CREATE TABLE \"schema_migrations\" (\"version\" character varying NOT NULL PRIMARY KEY)",
    "CREATE TABLE \"ar_internal_metadata\" (\"key\" character varying NOT NULL PRIMARY KEY, \"value\" character varying, \
     \"created_at\" timestamp(6) NOT NULL, \"updated_at\" timestamp(6) NOT NULL)",
    "INSERT INTO \"ar_internal_metadata\" (\"key\", \"value\", \"created_at\", \"updated_at\") VALUES ('environment', 'test', \
     '2026-01-02 03:04:05.000006', '2026-01-02 03:04:05.000006') RETURNING \"key\"",
    "SELECT \"schema_migrations\".\"version\" FROM \"schema_migrations\" ORDER BY \"schema_migrations\".\"version\" ASC",
];
/// What it asks of the catalogs when it loads a model, and dumps its schema.
const RAILS_CATALOGS: [&str; 5] = [
    "SELECT a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid), a.attnotnull, a.atttypmod, \
     c.collname, col_description(a.attrelid, a.attnum) AS comment, attidentity AS identity, attgenerated AS attgenerated \
     FROM pg_attribute a LEFT JOIN pg_attrdef d ON a.attrelid = d.adrelid AND a.attnum = d.adnum LEFT JOIN pg_type t ON \
     a.atttypid = t.oid LEFT JOIN pg_collation c ON a.attcollation = c.oid AND a.attcollation <> t.typcollation WHERE \
     a.attrelid = '\"posts\"'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    "SELECT a.attname FROM ( SELECT indrelid, indkey, generate_subscripts(indkey, 1) idx FROM pg_index WHERE indrelid = \
     '\"posts\"'::regclass AND indisprimary ) i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[i.idx] \
     ORDER BY i.idx",
    "SELECT distinct i.relname, d.indisunique, d.indkey::text, pg_catalog.obj_description(i.oid, 'pg_class') AS comment, \
     d.indisvalid FROM pg_class t INNER JOIN pg_index d ON t.oid = d.indrelid INNER JOIN pg_class i ON d.indexrelid = i.oid \
     LEFT JOIN pg_namespace n ON n.oid = t.relnamespace WHERE i.relkind IN ('i', 'I') AND d.indisprimary = 'f' AND t.relname = \
     'posts' AND n.nspname = ANY (current_schemas(false)) ORDER BY i.relname",
    "SELECT type.typname AS name, type.typtype, n.nspname AS schema, array_agg(enum.enumlabel ORDER BY enum.enumsortorder) \
     AS value FROM pg_enum AS enum JOIN pg_type AS type ON (type.oid = enum.enumtypid) JOIN pg_namespace n ON type.typnamespace \
     = n.oid WHERE n.nspname = ANY (current_schemas(false)) GROUP BY 1, 2, 3",
    "SELECT t2.oid::regclass::text AS to_table, a1.attname AS column, a2.attname AS primary_key, c.conname AS name, \
     c.confupdtype AS on_update, c.confdeltype AS on_delete, c.convalidated AS valid FROM pg_constraint c JOIN pg_class t1 ON \
     c.conrelid = t1.oid JOIN pg_class t2 ON c.confrelid = t2.oid JOIN pg_attribute a1 ON a1.attnum = c.conkey[1] AND \
     a1.attrelid = t1.oid JOIN pg_attribute a2 ON a2.attnum = c.confkey[1] AND a2.attrelid = t2.oid WHERE c.contype = 'f' AND \
     t1.relname = 'posts' ORDER BY c.conname",
];

#[test]
fn a_rails_migration_under_its_advisory_lock() {
    let mut stand = three("migrate_rails").start();
    stand.migrates(&RAILS_SESSION);
    stand.migrates(&RAILS_TABLES);
    stand.migrates(&["SELECT pg_try_advisory_lock(4919341862431207435)"]);
    let mut rival = stand.proxy.client();
    let tried = "SELECT pg_try_advisory_lock(4919341862431207435)";
    assert_eq!(rival.value(tried), "f");
    stand.migrates(&[
        "BEGIN",
        "CREATE TYPE \"public\".\"status\" AS ENUM ('draft', 'shown')",
        "CREATE TABLE \"accounts\" (\"id\" bigint NOT NULL PRIMARY KEY, \"name\" character varying, \"key\" uuid DEFAULT \
         gen_random_uuid() NOT NULL, \"created_at\" timestamp(6) NOT NULL)",
        "CREATE TABLE \"countries\" (\"code\" character varying NOT NULL PRIMARY KEY, \"name\" text)",
        "INSERT INTO \"schema_migrations\" (\"version\") VALUES ('20260101000001') RETURNING \"version\"",
        "COMMIT",
        "BEGIN",
        "CREATE TABLE \"posts\" (\"id\" bigint NOT NULL, \"number\" bigint NOT NULL, \"title\" character varying(40), \"status\" \
         status DEFAULT 'draft' NOT NULL, PRIMARY KEY (\"id\", \"number\"), CONSTRAINT \"fk_rails_1\" FOREIGN KEY (\"id\") \
         REFERENCES \"accounts\" (\"id\"))",
        "CREATE UNIQUE INDEX \"index_posts_on_id_and_title\" ON \"posts\" (\"id\", \"title\")",
        "ALTER TABLE \"posts\" ADD \"country_code\" character varying",
        "ALTER TABLE \"posts\" ADD CONSTRAINT \"fk_rails_2\" FOREIGN KEY (\"country_code\") REFERENCES \"countries\" (\"code\")",
        "CREATE INDEX \"index_posts_on_country_code\" ON \"posts\" (\"country_code\")",
        "ALTER TABLE \"posts\" ADD \"likes\" integer DEFAULT 0 NOT NULL",
        "COMMENT ON COLUMN \"posts\".\"likes\" IS 'how many'",
        "INSERT INTO \"schema_migrations\" (\"version\") VALUES ('20260101000002') RETURNING \"version\"",
        "COMMIT",
    ]);
    stand.migrates(&[
        "INSERT INTO \"countries\" VALUES ('at', 'Austria')",
        "INSERT INTO \"accounts\" (\"id\", \"name\", \"created_at\") VALUES (1, 'a', '2026-01-01'), (101, 'b', '2026-01-01')",
        "INSERT INTO \"posts\" (\"id\", \"number\", \"title\", \"country_code\") VALUES (1, 1, 'x', 'at'), (101, 1, 'y', NULL)",
        // Without a transaction.
        "CREATE INDEX CONCURRENTLY \"index_posts_on_title\" ON \"posts\" (\"title\")",
        "INSERT INTO \"schema_migrations\" (\"version\") VALUES ('20260101000003') RETURNING \"version\"",
        "BEGIN",
        "UPDATE \"posts\" SET \"title\" = 'none' WHERE \"title\" IS NULL",
        "ALTER TABLE \"posts\" ALTER COLUMN \"title\" SET NOT NULL",
        "ALTER TABLE \"posts\" ALTER COLUMN \"title\" SET DEFAULT 'none'",
        "ALTER TABLE \"posts\" RENAME COLUMN \"likes\" TO \"hearts\"",
        "ALTER INDEX \"index_posts_on_country_code\" RENAME TO \"posts_by_country\"",
        "ALTER TYPE \"status\" ADD VALUE IF NOT EXISTS 'gone'",
        "ALTER TABLE \"posts\" ALTER COLUMN \"title\" TYPE character varying(80)",
        "INSERT INTO \"schema_migrations\" (\"version\") VALUES ('20260101000004') RETURNING \"version\"",
        "COMMIT",
        "SELECT \"version\" FROM \"schema_migrations\" ORDER BY 1",
        "SELECT count(*) FROM \"posts\" WHERE \"hearts\" = 0 AND \"title\" <> 'none'",
        "INSERT INTO \"posts\" (\"id\", \"number\", \"status\") VALUES (101, 2, 'gone'), (1, 2, 'shown')",
    ]);
    // The lock is held until it is given back, once.
    assert_eq!(rival.value(tried), "f");
    stand.migrates(&["SELECT pg_advisory_unlock(4919341862431207435)"]);
    assert_eq!(rival.value(tried), "t");
    for (name, on) in [
        ("posts", "ttt"),
        ("index_posts_on_title", "ttt"),
        ("posts_by_country", "ttt"),
        ("countries", "ttt"),
        ("schema_migrations", "tff"),
        ("ar_internal_metadata", "tff"),
    ] {
        assert_eq!(stand.holders(name), on, "{name}");
    }
    stand.migrates(&RAILS_CATALOGS);
}

#[test]
fn every_session_finds_the_frameworks_own_tables() {
    let mut stand = Three {
        database: "unlisted_tables = \"s1\"\n",
        ..three("migrate_finds")
    }
    .start();
    stand.migrates(&["CREATE TABLE django_migrations (id bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, app varchar(255))"]);
    // What Django, Alembic and ActiveRecord ask before they make it.
    for _session in 0..6 {
        stand.sharded = stand.proxy.client();
        stand.migrates(&[
            "SELECT c.relname, CASE WHEN c.relispartition THEN 'p' WHEN c.relkind IN ('m', 'v') THEN 'v' ELSE 't' END, \
             obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = \
             c.relnamespace WHERE c.relkind IN ('f', 'm', 'p', 'r', 'v') AND n.nspname NOT IN ('pg_catalog', 'pg_toast') AND \
             pg_catalog.pg_table_is_visible(c.oid) AND c.relname = 'django_migrations'",
            "SELECT pg_catalog.pg_class.relname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON \
             pg_catalog.pg_namespace.oid = pg_catalog.pg_class.relnamespace WHERE pg_catalog.pg_class.relname = \
             'django_migrations' AND pg_catalog.pg_table_is_visible(pg_catalog.pg_class.oid) AND \
             pg_catalog.pg_namespace.nspname != 'pg_catalog'",
            "SELECT to_regclass('django_migrations')::text",
            "SELECT count(*) FROM information_schema.tables WHERE table_name = 'django_migrations'",
        ]);
    }
}

#[test]
fn a_rails_migration_that_fails_leaves_nothing_and_keeps_its_lock() {
    let mut stand = three("migrate_fails").start();
    stand.migrates(&RAILS_TABLES);
    stand.migrates(&[
        "SELECT pg_try_advisory_lock(77)",
        "BEGIN",
        "CREATE TABLE \"accounts\" (\"id\" bigint NOT NULL PRIMARY KEY, \"email\" character varying)",
    ]);
    // What sharding cannot hold fails the migration, as an error of PostgreSQL's does.
    stand.fails(
        "CREATE UNIQUE INDEX \"index_accounts_on_email\" ON \"accounts\" (\"email\")",
        "a unique constraint needs the shard key",
    );
    stand.ask("ROLLBACK");
    assert_eq!(stand.holders("accounts"), "fff");
    let mut rival = stand.proxy.client();
    assert_eq!(rival.value("SELECT pg_try_advisory_lock(77)"), "f");
    // The lock's backend is used for what the session does there, and for nobody else.
    stand.ask("INSERT INTO \"schema_migrations\" VALUES ('1')");
    stand.ask("BEGIN");
    stand.ask("CREATE TABLE \"accounts\" (\"id\" bigint NOT NULL PRIMARY KEY)");
    stand.ask("ROLLBACK");
    assert_eq!(rival.value("SELECT pg_try_advisory_lock(77)"), "f");
    assert_eq!(stand.sharded.value("SELECT pg_advisory_unlock(77)"), "t");
    assert_eq!(rival.value("SELECT pg_try_advisory_lock(77)"), "t");
}

#[test]
fn a_session_that_keeps_more_than_a_lock_stays_on_its_shard() {
    let mut stand = three("migrate_keeps").start();
    stand.ask("SELECT pg_advisory_lock(78)");
    stand.ask("CREATE TABLE \"accounts\" (\"id\" bigint NOT NULL PRIMARY KEY)");
    stand.ask("INSERT INTO accounts VALUES (1), (101)");
    assert_eq!(stand.seen("select count(*) from accounts"), ["1", "1", "0"]);
    assert_eq!(stand.ask("SELECT count(*) FROM accounts")[1], "D 2");
    // A temporary table on the backend that has the lock.
    stand.ask("/* shardway: shard=s0 */ CREATE TEMPORARY TABLE accounts (id bigint)");
    stand.fails(
        "CREATE TABLE \"posts\" (\"id\" bigint NOT NULL PRIMARY KEY)",
        "0A000",
    );
    stand.fails("INSERT INTO accounts VALUES (2), (102)", "0A000");
    assert_eq!(stand.sharded.value("SELECT pg_advisory_unlock(78)"), "t");
}
