//! pg_dump of a whole database over three shards: one dump with the schema once and the rows of all shards, from one
//! snapshot of each, which restores into one PostgreSQL and into three empty shards.

use crate::{
    client::{Client, query},
    harness::{postgres, until},
    three::{Stand, Three},
};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// How a session asks for a snapshot on each shard.
const SNAPSHOTS: &str = "-c shardway.read_consistency=per_shard";
const DDL: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL);
CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL DEFAULT 'no''body', country text REFERENCES countries,
    mood mood, "Seen at" date, twice bigint GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE "Odd orders" (no bigint, id bigint REFERENCES customers, total numeric(12,2) CHECK (total >= 0), note text,
    count positive, raw bytea, PRIMARY KEY (id, no));
CREATE INDEX total_noted ON "Odd orders" (total DESC) WHERE note IS NOT NULL;
CREATE TABLE settings (name text PRIMARY KEY, value jsonb);
CREATE TABLE log (id bigserial PRIMARY KEY, what text, setting text REFERENCES settings);
CREATE SEQUENCE tickets START 100;
CREATE VIEW totals AS SELECT id, sum(total) AS total FROM "Odd orders" GROUP BY id;
CREATE FUNCTION twice(x numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$ SELECT x * 2 $$;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW."Seen at" := coalesce(NEW."Seen at", '2020-02-02'); RETURN NEW; END $$;
CREATE TRIGGER stamped BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION stamp();
COMMENT ON TABLE customers IS 'who buys; "quoted"';
COMMENT ON COLUMN customers.mood IS 'it''s theirs';
GRANT SELECT ON customers TO pg_monitor;
CREATE TABLE one_half (n bigint, id bigint); CREATE TABLE other_half (n bigint, id bigint)
"#;
const ROWS: [&str; 5] = [
    "insert into countries values ('at', 'Austria'), ('jp', E'日本\\t\\\\')",
    "insert into customers (id, name, country, mood) values (1, E'tab\\there', 'at', 'ok'), (2, 'b', null, null), \
     (101, '', 'jp', 'sad'), (150, E'\\\\.', 'at', null), (201, 'line\nbreak', 'jp', 'happy'), (999999999999, 'far', null, 'ok')",
    "insert into \"Odd orders\" (id, no, total, note, count, raw) values (1, 1, 1.5, 'n', 1, '\\x00ff'), (1, 2, 0, null, null, null), \
     (101, 1, 7, '', 2, '\\x'), (201, 1, 12345.67, 'x', 3, null)",
    "insert into settings values ('a', '{\"a\": [1, null]}'), ('b', null)",
    "insert into log (id, what, setting) values (7, 'seven', 'a'), (8, null, null)",
];

fn three(name: &str) -> Three<'_> {
    Three {
        ddl: DDL,
        tables: &[
            "public.customers",
            "public.Odd orders",
            "public.one_half",
            "public.other_half",
        ],
        reference: &["public.countries"],
        database: "unlisted_tables = \"s1\"\n",
        ..Three::new(name)
    }
}

/// The stand with the same rows in the whole database and over the shards.
fn filled(name: &str) -> Stand {
    let mut stand = three(name).start();
    stand.all_alike(&ROWS);
    // Where sequences stand is a part of a dump; on shards all that have one stand alike.
    stand.all_alike(&[
        "select setval('tickets', 117, false)",
        "select pg_catalog.setval('public.log_id_seq'::regclass, 8)",
    ]);
    stand.whole.ask(&query("delete from ready"));
    stand.sharded.ask(&query("delete from ready"));
    stand
}

/// Where a program connects.
#[derive(Clone, Copy)]
struct Target<'a> {
    port: u16,
    database: &'a str,
    options: &'a str,
}

fn through(stand: &Stand) -> Target<'static> {
    Target {
        port: stand.proxy.port,
        database: "postgres",
        options: SNAPSHOTS,
    }
}

/// A database of the server itself.
fn itself(database: &str) -> Target<'_> {
    Target {
        port: postgres().port(),
        database,
        options: "",
    }
}

impl Target<'_> {
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(installed(program))
            .args(arguments)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGDATABASE", self.database)
            .env("PGUSER", "postgres")
            .env("PGOPTIONS", self.options)
            .env("PGSSLMODE", "disable")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap()
    }

    /// What it prints; it says nothing else.
    fn printed(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.is_empty(),
            "{program} {arguments:?}: {said}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// How it fails.
    fn fails(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        assert!(!output.status.success(), "{program} {arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A dump without the random tokens that newer versions put around it.
    fn dump(&self, arguments: &[&str]) -> Vec<String> {
        let own = ["--exclude-schema=shardway"];
        let text = self.printed("pg_dump", &[&own[..], arguments].concat());
        let lines = text.lines().filter(|line| !line.contains("restrict "));
        lines.map(str::to_owned).collect()
    }

    /// The same whatever the order of rows.
    fn sorted(&self, arguments: &[&str]) -> Vec<String> {
        let mut lines = self.dump(arguments);
        lines.sort_unstable();
        lines
    }
}

fn installed(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut found: Vec<PathBuf> = versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

/// A file that is gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let file = format!("shardway-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(file))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

#[test]
fn a_dump_of_three_shards_is_the_dump_of_the_whole() {
    let stand = filled("dumped");
    let (whole, sharded) = (itself("dumped_3"), through(&stand));
    assert_eq!(
        sharded.dump(&["--schema-only"]),
        whole.dump(&["--schema-only"])
    );
    assert_eq!(
        sharded.dump(&["--schema-only", "--clean", "--if-exists"]),
        whole.dump(&["--schema-only", "--clean", "--if-exists"])
    );
    for more in [
        &["--data-only"][..],
        &["--inserts"],
        &[
            "--column-inserts",
            "--rows-per-insert=3",
            "-t",
            "log",
            "-t",
            "countries",
        ],
        &[],
        &["--disable-triggers", "--serializable-deferrable"],
        &["-t", "customers", "-t", "countries", "--no-owner"],
    ] {
        assert_eq!(sharded.sorted(more), whole.sorted(more), "{more:?}");
    }
    assert!(whole.dump(&[]).iter().any(|line| line.contains("日本")));
}

#[test]
fn a_dump_restores_into_one_server_and_into_empty_shards() {
    let stand = filled("dump_from");
    let sharded = through(&stand);
    let expected = sharded.sorted(&[]);
    let (plain, custom) = (Scratch::new("plain.sql"), Scratch::new("custom.dump"));
    sharded.printed("pg_dump", &["-N", "shardway", "-f", plain.path()]);
    sharded.printed("pg_dump", &["-N", "shardway", "-Fc", "-f", custom.path()]);
    // The table by which stands get ready is there before.
    let (drops, psql) = (
        "drop table ready",
        ["-X", "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", "-f"],
    );
    let restores: [(&str, &str, &[&str]); 4] = [
        ("dump_to_a", "psql", &psql),
        (
            "dump_to_b",
            "pg_restore",
            &["-d", "postgres", "--exit-on-error"],
        ),
        ("dump_to_c", "pg_restore", &["-d", "postgres", "-1"]),
        (
            "dump_to_d",
            "pg_restore",
            &["-d", "postgres", "--exit-on-error", "-j", "3"],
        ),
    ];
    for (name, program, arguments) in restores {
        let file = if program == "psql" { &plain } else { &custom };
        let mut empty = Three {
            ddl: "",
            ..three(name)
        }
        .start();
        empty.ask(drops);
        let target = Target {
            options: "",
            ..through(&empty)
        };
        target.printed(program, &[arguments, &[file.path()]].concat());
        assert_eq!(through(&empty).sorted(&[]), expected, "{name}");
        assert_eq!(
            empty.seen("select count(*) from countries"),
            ["2", "2", "2"]
        );
        assert_eq!(
            empty.seen("select count(*) from customers"),
            ["2", "2", "2"]
        );
        assert_eq!(empty.seen("select last_value from tickets"), ["117"; 3]);
        // Through the proxy it goes on.
        empty.ask("insert into customers (id, country) values (3, 'at'), (203, 'jp')");
        assert_eq!(
            empty.ask("select count(*) from customers where country = 'jp'")[1],
            "D 3"
        );
        empty.fails(
            "insert into customers (id, country) values (4, 'xx')",
            "23503",
        );
        // One server takes it too.
        let whole = format!("{name}_3");
        empty.whole.ask(&query(drops));
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|one| if *one == "postgres" { &whole } else { *one })
            .collect();
        itself(&whole).printed(program, &[&arguments[..], &[file.path()]].concat());
        assert_eq!(itself(&whole).sorted(&[]), expected, "{name}");
    }
}

#[test]
fn data_restores_behind_disabled_triggers_and_as_a_replica() {
    let stand = filled("dump_rows");
    let sharded = through(&stand);
    let file = Scratch::new("data.sql");
    sharded.printed(
        "pg_dump",
        &[
            "-N",
            "shardway",
            "--data-only",
            "--disable-triggers",
            "-f",
            file.path(),
        ],
    );
    let expected = sharded.sorted(&[]);
    let text = std::fs::read_to_string(&file.0).unwrap();
    let apart: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("TRIGGER ALL"))
        .collect();
    let replica = Scratch::new("replica.sql");
    std::fs::write(
        &replica.0,
        format!(
            "SET session_replication_role = replica;\n{}\n",
            apart.join("\n")
        ),
    )
    .unwrap();
    for (name, file) in [("dump_rows_a", &file), ("dump_rows_b", &replica)] {
        let mut other = three(name).start();
        other.ask("delete from ready");
        let psql = [
            "-X",
            "-q",
            "-o",
            "/dev/null",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            file.path(),
        ];
        through(&other).printed("psql", &psql);
        assert_eq!(through(&other).sorted(&[]), expected);
    }
}

#[test]
fn a_dump_sees_one_snapshot_of_each_shard() {
    let stand = filled("dump_once");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // Both halves grow together on each shard: only a dump that has two snapshots of one has more of one half.
        scope.spawn(|| {
            let mut client = stand.proxy.client();
            let mut next = 0;
            while !ended.load(Ordering::Relaxed) {
                next += 1;
                for id in [1, 101, 201] {
                    let both = format!(
                        "insert into one_half (n, id) values ({next}, {id}); \
                         insert into other_half (n, id) values ({next}, {id})"
                    );
                    let done = client.ask(&query(&both));
                    assert!(!done[0].starts_with('E'), "{done:?}");
                }
            }
        });
        let rows = |lines: &[String], table: &str| {
            let begin = format!("COPY public.{table} ");
            let lines = lines.iter().skip_while(|line| !line.starts_with(&begin));
            let mut found: Vec<String> = lines
                .skip(1)
                .take_while(|line| *line != "\\.")
                .cloned()
                .collect();
            found.sort_unstable();
            found
        };
        let mut last = 0;
        while last < 60 {
            let lines = through(&stand).dump(&["-a", "-t", "one_half", "-t", "other_half"]);
            let one = rows(&lines, "one_half");
            assert_eq!(one, rows(&lines, "other_half"));
            assert!(one.len() >= last);
            last = one.len();
        }
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_a_dump_cannot_have_is_refused_with_what_to_do() {
    let stand = filled("dump_not");
    let sharded = through(&stand);
    let alone = Target {
        options: "",
        ..sharded
    };
    let said = alone.fails("pg_dump", &["-N", "shardway"]);
    assert!(said.contains("SW301") && said.contains(SNAPSHOTS), "{said}");
    let said = sharded.fails("pg_dump", &[]);
    assert!(
        said.contains("SW104") && said.contains("--exclude-schema=shardway"),
        "{said}"
    );
    let directory = Scratch::new("parallel");
    let parallel = ["-N", "shardway", "-Fd", "-j", "2", "-f", directory.path()];
    let said = sharded.fails("pg_dump", &parallel);
    assert!(
        said.contains("SW112") && said.contains("without -j"),
        "{said}"
    );
    drop(std::fs::remove_dir_all(Path::new(directory.path())));
}

#[test]
fn a_dump_that_would_lack_tables_is_refused() {
    let three = Three {
        database: "groups.far = { method = \"range\", key_type = \"bigint\", ranges = [{ shard = \"s2\" }], \
                   tables = { \"public.log\" = \"n\" } }\n\
                   groups.near = { method = \"range\", key_type = \"bigint\", ranges = [{ shard = \"s0\" }], \
                   tables = { \"public.settings\" = \"n\" } }\n",
        ddl: "create table t (id bigint primary key, n int); create table log (n int); create table settings (n int)",
        ..Three::new("dump_apart")
    };
    let stand = three.start();
    let said = through(&stand).fails("pg_dump", &["-N", "shardway"]);
    assert!(
        said.contains("SW341") && said.contains("public.log") && !said.contains("public.settings"),
        "{said}"
    );
    // Each shard by itself has what it has.
    let far = Target {
        options: "-c shardway.shard=s2",
        ..through(&stand)
    };
    let lines = far.dump(&["-t", "log"]);
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("COPY public.log "))
    );
}

#[test]
fn a_sequence_is_dumped_as_far_as_any_shard_has_come() {
    let three = Three {
        ddl: "create table t (id bigint, n bigserial, primary key (id, n)); create sequence \"Odd s\"",
        ..Three::new("dump_numbers")
    };
    let mut stand = three.start();
    for (at, number) in [(0, 5), (1, 900), (2, 17)] {
        stand.shards[at].ask(&query(&format!("select setval('t_n_seq', {number})")));
    }
    stand.shards[2].ask(&query("select setval('\"Odd s\"', 31)"));
    let lines = through(&stand).dump(&[]);
    let mut set: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains("setval"))
        .collect();
    set.sort_unstable();
    assert_eq!(
        set,
        [
            "SELECT pg_catalog.setval('public.\"Odd s\"', 31, true);",
            "SELECT pg_catalog.setval('public.t_n_seq', 900, true);"
        ]
    );
}

#[test]
fn a_cancel_ends_what_a_dump_waits_for() {
    let mut stand = filled("dump_cancel");
    let mut client = stand.proxy.client();
    client.ask(&query("set shardway.read_consistency = 'per_shard'"));
    client.ask(&query("begin isolation level repeatable read"));
    client.ask(&query("select 1"));
    // On the last shard only.
    stand.shards[2].ask(&query("begin"));
    stand.shards[2].ask(&query("lock table customers in access exclusive mode"));
    for waiting in [
        "lock table customers in access share mode",
        "copy customers to stdout",
    ] {
        client.ask(&query("savepoint before"));
        client.send(&query(waiting));
        until("the shard waits", || {
            let waits = "select count(*) from pg_locks where not granted and relation = 'customers'::regclass";
            stand.shards[2].value(waits) == "1"
        });
        client.cancel(stand.proxy.port);
        let answers = client.answers(1);
        assert!(
            answers.iter().any(|line| line.contains("57014")),
            "{answers:?}"
        );
        client.ask(&query("rollback to before"));
    }
    stand.shards[2].ask(&query("commit"));
    let answers = client.ask(&query("lock table customers in access share mode"));
    assert_eq!(answers[0], "C LOCK TABLE\\0");
    let copied = client.ask(&query("copy (select 1) to stdout"));
    assert!(copied.iter().any(|line| line.starts_with("C COPY 1")));
    client.ask(&query("commit"));
}

#[test]
fn a_transaction_keeps_one_snapshot_on_each_shard() {
    let mut stand = filled("dump_keeps");
    let mut other = stand.proxy.client();
    stand.ask("set shardway.read_consistency = 'per_shard'");
    for begin in [
        "begin isolation level repeatable read",
        "begin transaction isolation level serializable read only deferrable",
    ] {
        stand.ask("delete from \"Odd orders\" where no > 100");
        stand.ask(begin);
        assert_eq!(stand.ask("select count(*) from countries")[1], "D 2");
        let done = other.ask(&query(
            "insert into \"Odd orders\" (id, no) values (1, 101), (101, 101), (201, 101)",
        ));
        assert_eq!(done[0], "C INSERT 0 3\\0");
        for id in [1, 101, 201] {
            let count = format!("select count(*) from \"Odd orders\" where id = {id} and no = 101");
            assert_eq!(stand.ask(&count)[1], "D 0", "{begin}");
        }
        // Rows of all shards are read from the same snapshots, be it by the first statement.
        let all = "select count(*) from \"Odd orders\" where no = 101";
        assert_eq!(stand.ask(all)[1], "D 0", "{begin}");
        stand.ask("commit");
        stand.ask(begin);
        assert_eq!(stand.ask(all)[1], "D 3", "{begin}");
        other.ask(&query("delete from \"Odd orders\" where no = 101"));
        assert_eq!(stand.ask(all)[1], "D 3", "{begin}");
        let rows = stand.ask("select id from \"Odd orders\" where no = 101 order by id");
        assert_eq!(rows[1..4], ["D 1", "D 101", "D 201"]);
        stand.ask("commit");
        assert_eq!(stand.ask(all)[1], "D 0");
    }
    stand.fails("set shardway.read_consistency = 'nonsense'", "22023");
    stand.ask("reset shardway.read_consistency");
    stand.ask("begin isolation level repeatable read");
    stand.ask("select 1 from customers where id = 1");
    stand.fails("select 1 from customers where id = 101", "0A000");
    stand.ask("rollback");
}

#[test]
fn what_a_transaction_has_written_is_copied_out_of_it() {
    let mut stand = filled("dump_own");
    stand.alike(&query("begin"), 1);
    stand.all_alike(&[
        "insert into customers (id, name) values (3, 'new')",
        "delete from \"Odd orders\" where id = 201",
        "insert into customers (id, name) values (203, 'new')",
    ]);
    for copy in [
        "copy customers (id, name) to stdout",
        "copy \"Odd orders\" to stdout (format csv, header)",
    ] {
        let sorted = |client: &mut Client| {
            let mut lines = client.ask(&query(copy));
            lines.sort_unstable();
            lines
        };
        assert_eq!(sorted(&mut stand.sharded), sorted(&mut stand.whole));
    }
    stand.fails("copy customers (nothing) to stdout", "42703");
    stand.fails("select 1", "25P02");
    stand.ask("rollback");
    assert_eq!(stand.ask("select count(*) from customers")[1], "D 6");
}

#[test]
fn tables_that_live_apart_are_locked_together() {
    let mut stand = filled("dump_locks");
    let mut other = stand.proxy.client();
    stand.ask("begin");
    let lock = "lock table customers, only log, countries, totals, settings in exclusive mode";
    assert_eq!(stand.ask(lock)[0], "C LOCK TABLE\\0");
    for (at, expected) in ["2", "4", "2"].into_iter().enumerate() {
        let held = "select count(*) from pg_locks l join pg_class c on c.oid = l.relation where l.mode = 'ExclusiveLock' \
             and l.database = (select oid from pg_database where datname = current_database()) and relkind = 'r' \
             and relname in ('customers', 'log', 'countries', 'settings')";
        assert_eq!(stand.shards[at].value(held), expected);
    }
    for sql in [
        "lock table log in share mode nowait",
        "lock table customers, settings in share mode nowait",
    ] {
        other.ask(&query("begin"));
        let refused = other.ask(&query(sql));
        assert!(refused[0].contains("55P03"), "{refused:?}");
        other.ask(&query("rollback"));
    }
    stand.ask("rollback");
    stand.ask("begin");
    stand.fails("lock table customers, nowhere", "42P01");
    stand.ask("rollback");
}
