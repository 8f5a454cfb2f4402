//! Schema changes over three shards: each is on all shards that it concerns or on none, and what is made can be used by
//! the next statement.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, postgres, until},
};

/// Three shards: ids up to 99, to 199 and above; tables that nothing lists live on the last.
struct Stand {
    client: Client,
    shards: Vec<Client>,
    proxy: Proxy,
}

fn stand(name: &str) -> Stand {
    let server = postgres().port();
    let mut admin = Client::connect(server, &[]);
    let mut shards = Vec::new();
    let mut listed = String::new();
    for at in 0..3 {
        admin.ask(&query(&format!("create database {name}_{at}")));
        let mut shard = Client::connect_to(server, &format!("{name}_{at}"), &[]);
        shard.ask(&query("create table t (id bigint primary key, n int)"));
        shards.push(shard);
        // One server by two names.
        let host = ["127.0.0.1", "localhost", "127.0.0.1"][at];
        listed.push_str(&format!(
            "shards.s{at} = {{ primary = \"postgres://{host}:{server}/{name}_{at}?sslmode=disable\" }}\n"
        ));
    }
    let databases = format!(
        "[databases.postgres]\ncontrol = {{ user = \"postgres\" }}\nunlisted_tables = \"s2\"\n{listed}[databases.postgres.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 100, shard = \"s0\" }}, {{ to = 200, shard = \"s1\" }}, {{ shard = \"s2\" }}]\n\
         tables = {{ \"public.t\" = \"id\", \"public.orders\" = \"id\", \"public.users\" = \"id\" }}\nkey_column = \"tenant\"\n\
         [databases.postgres.tables]\nreference = [\"public.colours\"]\n"
    );
    let proxy = Proxy::with("size = 4", &databases);
    let mut client = proxy.client();
    until("two-phase commit is ready", || {
        client.ask(&query("insert into t (id) values (1), (101)"))[0] == "C INSERT 0 2\\0"
    });
    client.ask(&query("delete from t"));
    Stand {
        client,
        shards,
        proxy,
    }
}

impl Stand {
    fn ask(&mut self, sql: &str) -> Vec<String> {
        self.client.ask(&query(sql))
    }

    /// It is done, and says so.
    fn done(&mut self, sql: &str) {
        let found = self.ask(sql);
        let told = found.iter().rev().nth(1).map_or("", String::as_str);
        assert!(told.starts_with("C "), "{sql}: {found:?}");
    }

    /// It is refused or fails with this.
    fn fails(&mut self, sql: &str, with: &str) {
        let found = self.ask(sql);
        assert!(
            found
                .iter()
                .any(|line| line.starts_with("E ") && line.contains(with)),
            "{sql}: {found:?}"
        );
    }

    /// What each shard says.
    fn seen(&mut self, sql: &str) -> Vec<String> {
        let shards = self.shards.iter_mut();
        shards.map(|shard| shard.value(sql)).collect()
    }

    /// On which shards a relation is.
    fn has(&mut self, name: &str) -> String {
        let sql = format!("select to_regclass('{name}') is not null");
        let found = self.seen(&sql);
        found.join("")
    }
}

#[test]
fn a_new_table_is_on_all_its_shards_and_can_be_used_at_once() {
    let mut stand = stand("change_new");
    stand.done("create table orders (id bigint primary key, note text)");
    assert_eq!(stand.has("orders"), "ttt");
    // Without a column list: the columns are known already.
    stand.done("insert into orders values (1, 'a'), (101, 'b'), (201, 'c')");
    assert_eq!(stand.seen("select note from orders"), ["a", "b", "c"]);
    assert_eq!(
        stand.ask("select note from orders where id = 101")[1],
        "D b"
    );
    // By its column: nothing lists it.
    stand.done("create table notes (tenant bigint, body text)");
    stand.done("insert into notes values (5, 'x')");
    stand.done("insert into notes values (150, 'y')");
    assert_eq!(
        stand.seen("select coalesce(max(body), '-') from notes"),
        ["x", "y", "-"]
    );
    stand.done("create table colours (code text primary key, name text)");
    stand.done("insert into colours values ('r', 'red')");
    assert_eq!(stand.seen("select name from colours"), ["red"; 3]);
    stand.done("create table versions (number text)");
    assert_eq!(stand.has("versions"), "fft");
    stand.done("insert into versions values ('1')");
    stand.done("create table if not exists versions (number text)");
    assert_eq!(stand.ask("select number from versions")[1], "D 1");
    stand.done("drop table orders, notes, colours");
    assert_eq!(stand.has("orders"), "fff");
    assert_eq!(stand.has("notes"), "fff");
    // With the rows that it refers to.
    stand.done("create table orders (id bigint primary key)");
    stand.done("create table items (no int, o bigint references orders)");
    assert_eq!(stand.has("items"), "ttt");
    stand.done("insert into orders values (1), (101)");
    stand.done("insert into items (no, o) values (7, 1)");
    stand.done("insert into items (o, no) values (101, 8), (101, 9)");
    assert_eq!(stand.seen("select count(*) from items"), ["1", "2", "0"]);
}

#[test]
fn a_changed_table_is_changed_everywhere_and_known_at_once() {
    let mut stand = stand("change_alter");
    stand.done("insert into t values (1, 1), (101, 1), (201, 1)");
    stand.done("alter table t add column note text default 'none'");
    stand.done("insert into t values (2, 2, 'new')");
    stand.done("update t set note = 'all' where n = 1");
    assert_eq!(stand.seen("select note from t where n = 1"), ["all"; 3]);
    // In the extended protocol too.
    let sql = "alter table t drop column n";
    let found = stand
        .client
        .ask(&batch().parse("p", sql).describe("p").sync().0);
    assert!(found.contains(&"n ".to_owned()), "{found:?}");
    let found = stand.client.ask(&batch().call("p", &[]).sync().0);
    assert!(found.contains(&"C ALTER TABLE\\0".to_owned()), "{found:?}");
    stand.done("insert into t values (102, 'two columns')");
    stand.done("create index t_note on t (note)");
    assert_eq!(stand.has("t_note"), "ttt");
    stand.done("alter index t_note rename to t_notes");
    assert_eq!(stand.has("t_notes"), "ttt");
    stand.done("truncate t");
    assert_eq!(stand.seen("select count(*) from t"), ["0"; 3]);
    // Of a table on one shard only there.
    stand.done("create table versions (number text)");
    stand.done("create index versions_number on versions (number)");
    assert_eq!(stand.has("versions_number"), "fft");
    stand.done("drop index versions_number");
    assert_eq!(stand.has("versions_number"), "fff");
    stand.done("drop index if exists versions_number");
    stand.fails("drop index versions_number", "42704");
}

#[test]
fn an_error_on_one_shard_leaves_all_as_they_were() {
    let mut stand = stand("change_error");
    stand.shards[1].ask(&query("create table orders (id int)"));
    stand.fails("create table orders (id bigint primary key)", "42P07");
    assert_eq!(stand.has("orders"), "ftf");
    stand.shards[2].ask(&query("create schema s"));
    stand.fails("create schema s", "42P06");
    assert_eq!(
        stand.seen("select count(*) from pg_namespace where nspname = 's'"),
        ["0", "0", "1"]
    );
    stand.shards[2].ask(&query("insert into t values (300, null)"));
    stand.fails("alter table t alter n set not null", "23502");
    let nulls =
        "select attnotnull from pg_attribute where attrelid = 't'::regclass and attname = 'n'";
    assert_eq!(stand.seen(nulls), ["f"; 3]);
    // The session goes on.
    stand.done("alter table t add column x int");
    let open = "select count(*) from pg_prepared_xacts where database like 'change\\_error%'";
    until("nothing is left prepared", || {
        stand.shards[0].value(open) == "0"
    });
}

#[test]
fn changes_are_part_of_the_clients_transaction() {
    let mut stand = stand("change_block");
    stand.done("begin");
    stand.done("create table orders (id bigint primary key, tenant bigint)");
    stand.done("create table notes (tenant bigint, body text)");
    stand.done("insert into orders (id) values (1), (201)");
    // Rows of a table that a column's name puts into the group do not go where unlisted tables live.
    stand.done("insert into notes (tenant, body) values (1, 'a'), (101, 'b')");
    stand.done("rollback");
    assert_eq!(stand.has("orders"), "fff");
    assert_eq!(stand.has("notes"), "fff");
    stand.done("begin");
    stand.done("create table notes (tenant bigint, body text)");
    stand.done("insert into notes (tenant, body) values (1, 'a'), (101, 'b')");
    stand.done("alter table notes add column more int");
    stand.done("savepoint s");
    stand.done("create table orders (id bigint primary key)");
    stand.done("rollback to s");
    stand.done("commit");
    assert_eq!(stand.has("orders"), "fff");
    assert_eq!(stand.has("notes"), "ttt");
    assert_eq!(stand.seen("select count(*) from notes"), ["1", "1", "0"]);
    stand.done("insert into notes values (150, 'c', 1)");
    assert_eq!(
        stand.ask("select body from notes where tenant = 150")[1],
        "D c"
    );
    // An error fails it as in PostgreSQL.
    stand.done("begin");
    stand.done("create table orders (id bigint primary key)");
    stand.fails("create table notes (tenant bigint)", "42P07");
    stand.fails("select 1", "25P02");
    assert_eq!(stand.ask("commit")[0], "C ROLLBACK\\0");
    assert_eq!(stand.has("orders"), "fff");
    // A column is where it is after the change, which is not known yet.
    stand.done("begin");
    stand.done("alter table t drop column n");
    stand.fails("insert into t values (1)", "needs a column list");
    stand.done("rollback");
    stand.done("insert into t values (1, 5)");
    let rest = "select count(*) from pg_stat_activity where datname like 'change\\_block%' \
        and xact_start is not null and pid <> pg_backend_pid()";
    until("every transaction has ended", || {
        stand.shards[0].value(rest) == "0"
    });
}

#[test]
fn what_no_transaction_can_hold_runs_on_one_shard_after_the_other() {
    let mut stand = stand("change_apart");
    stand.done("create index concurrently t_n on t (n)");
    assert_eq!(stand.has("t_n"), "ttt");
    stand.done("vacuum t");
    stand.done("vacuum");
    stand.done("reindex index concurrently t_n");
    stand.done("begin");
    stand.fails("create index concurrently t_m on t (n)", "25001");
    stand.fails("select 1", "25P02");
    stand.done("rollback");
    assert_eq!(stand.has("t_m"), "fff");
    let found = stand
        .client
        .ask(&batch().run("drop index concurrently t_n", &[]).sync().0);
    assert!(found.contains(&"C DROP INDEX\\0".to_owned()), "{found:?}");
    assert_eq!(stand.has("t_n"), "fff");
    // How far it came is told.
    stand.shards[1].ask(&query("create table t_n (id int)"));
    let found = stand.ask("create index concurrently t_n on t (n)");
    let warned = found.iter().position(|line| {
        line.starts_with("N WARNING") && line.contains("is done on s0, and not on s1, s2")
    });
    let failed = found
        .iter()
        .position(|line| line.starts_with("E ERROR 42P07"));
    assert!(warned.is_some() && warned < failed, "{found:?}");
    assert_eq!(stand.has("t_n"), "ttf");
}

#[test]
fn what_belongs_to_a_database_is_everywhere_and_roles_are_made_once_per_server() {
    let mut stand = stand("change_every");
    stand.done("create schema archive");
    stand.done("create type mood as enum ('good', 'bad')");
    stand.done("create domain short as text check (length(value) < 5)");
    stand.done("create function twice(int) returns int language sql immutable as 'select 2 * $1'");
    // The shards' server would refuse a second one.
    stand.done("create role change_every_reader");
    stand.done("grant select on t to change_every_reader");
    stand.done("grant usage on schema archive to change_every_reader");
    let all = "select concat(to_regnamespace('archive') is not null, to_regtype('mood') is not null, \
        to_regtype('short') is not null, to_regprocedure('twice(int)') is not null, \
        has_table_privilege('change_every_reader', 't', 'select'), \
        has_schema_privilege('change_every_reader', 'archive', 'usage'))";
    assert_eq!(stand.seen(all), ["tttttt"; 3]);
    stand.done("alter table t add column m mood, add column s short");
    stand.done("insert into t values (1, 2, 'good', 'abc')");
    stand.done("drop owned by change_every_reader");
    stand.done("drop role change_every_reader");
}

/// What Alembic sends: one transaction, its own table on one shard.
#[test]
fn a_migration_in_one_transaction_over_three_shards() {
    let mut stand = stand("change_alembic");
    for sql in [
        "BEGIN",
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))",
        "CREATE TABLE users (id BIGINT NOT NULL, email VARCHAR(200), PRIMARY KEY (id))",
        "CREATE INDEX ix_users_email ON users (email)",
        "INSERT INTO alembic_version (version_num) VALUES ('ae10') RETURNING alembic_version.version_num",
        "ALTER TABLE users ADD COLUMN active BOOLEAN DEFAULT true NOT NULL",
        "UPDATE alembic_version SET version_num='ae11' WHERE alembic_version.version_num = 'ae10'",
        "COMMIT",
    ] {
        stand.done(sql);
    }
    assert_eq!(stand.has("ix_users_email"), "ttt");
    assert_eq!(stand.has("alembic_version"), "fft");
    let found = stand.ask("SELECT alembic_version.version_num FROM alembic_version");
    assert_eq!(found[1], "D ae11");
    stand.done("INSERT INTO users VALUES (1, 'a@b', true), (150, 'c@d', false)");
    assert_eq!(stand.seen("select count(*) from users"), ["1", "1", "0"]);
    // Another session knows it too.
    let mut other = stand.proxy.client();
    let found = other.ask(&query("INSERT INTO users VALUES (2, 'e@f', true)"));
    assert_eq!(found[0], "C INSERT 0 1\\0");
}

/// What Django sends: parameters in the text, sqlmigrate's order, constraints behind the tables.
#[test]
fn a_migration_with_constraints_behind_the_tables() {
    let mut stand = stand("change_django");
    for sql in [
        "CREATE TABLE \"django_migrations\" (\"id\" bigint NOT NULL PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, \"app\" varchar(255) NOT NULL, \"name\" varchar(255) NOT NULL)",
        "BEGIN",
        "CREATE TABLE \"users\" (\"id\" bigint NOT NULL PRIMARY KEY, \"name\" varchar(10) NOT NULL)",
        "CREATE TABLE \"orders\" (\"id\" bigint NOT NULL PRIMARY KEY, \"total\" numeric(10, 2) NULL)",
        "ALTER TABLE \"orders\" ADD CONSTRAINT \"orders_id_fk\" FOREIGN KEY (\"id\") REFERENCES \"users\" (\"id\") DEFERRABLE INITIALLY DEFERRED",
        "CREATE INDEX \"users_name_like\" ON \"users\" (\"name\" varchar_pattern_ops)",
        "INSERT INTO \"django_migrations\" (\"app\", \"name\") VALUES ('shop', '0001_initial') RETURNING \"django_migrations\".\"id\"",
        "COMMIT",
        "BEGIN",
        "ALTER TABLE \"orders\" ADD COLUMN \"paid\" boolean DEFAULT false NOT NULL",
        "ALTER TABLE \"orders\" ALTER COLUMN \"paid\" DROP DEFAULT",
        "SET CONSTRAINTS \"orders_id_fk\" IMMEDIATE",
        "SET CONSTRAINTS \"orders_id_fk\" DEFERRED",
        "ALTER TABLE \"users\" ALTER COLUMN \"name\" TYPE varchar(20)",
        "COMMIT",
    ] {
        stand.done(sql);
    }
    let links = "select count(*) from pg_constraint where conname = 'orders_id_fk'";
    assert_eq!(stand.seen(links), ["1"; 3]);
    assert_eq!(stand.has("django_migrations"), "fft");
    stand.done("BEGIN");
    stand.done("INSERT INTO orders VALUES (1, 2.50, true)");
    stand.done("INSERT INTO users VALUES (1, 'ann')");
    stand.done("COMMIT");
    assert_eq!(
        stand.ask("SELECT total FROM orders WHERE id = 1")[1],
        "D 2.50"
    );
}

#[test]
fn changes_in_one_text_are_one_transaction() {
    let mut stand = stand("change_text");
    // The second is about a table that only the first puts into the group.
    let found = stand.ask(
        "create table notes (tenant bigint, body text); create unique index notes_body on notes (tenant, body); \
         create table versions (number text); create index versions_number on versions (number);",
    );
    let tags = ["C CREATE TABLE\\0", "C CREATE INDEX\\0"];
    assert_eq!(found, [tags[0], tags[1], tags[0], tags[1], "Z I"]);
    assert_eq!(stand.has("notes_body"), "ttt");
    assert_eq!(stand.has("versions_number"), "fft");
    stand.fails(
        "create table orders (id bigint primary key); create unique index notes_2 on notes (body)",
        "needs the shard key",
    );
    assert_eq!(stand.has("orders"), "fff");
    stand.fails(
        "create table orders (id bigint primary key); create table notes (tenant bigint)",
        "42P07",
    );
    assert_eq!(stand.has("orders"), "fff");
    stand.done("insert into notes values (101, 'x')");
    assert_eq!(stand.seen("select count(*) from notes"), ["0", "1", "0"]);
}
