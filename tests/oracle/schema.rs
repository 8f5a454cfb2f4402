//! What the generated statements are about: tables of every kind of group, keys that are easily mistaken, and rows.

use crate::random::Random;
use shardway::{
    catalog::{
        shard::ShardSet,
        snapshot::{Placement, Snapshot},
    },
    sandbox::Cluster,
};
use std::{fmt::Write as _, net::SocketAddr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Text,
    Uuid,
    Numeric,
    Date,
}

/// A table: besides its key each has `n integer` and `note text`.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) schema: &'static str,
    pub(crate) name: &'static str,
    /// Empty: not sharded.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    pub(crate) group: &'static str,
    /// All columns with their types, in order.
    pub(crate) columns: &'static [(&'static str, &'static str)],
    /// The columns of the primary key; empty: rows may be there twice.
    pub(crate) unique: &'static str,
}

pub(crate) const TABLES: &[Table] = &[
    Table {
        schema: "public",
        name: "acct",
        key: "id",
        kind: Kind::Int,
        group: "ints",
        columns: &[
            ("id", "bigint"),
            ("n", "integer"),
            ("note", "text"),
            ("amount", "numeric(12,2)"),
        ],
        unique: "id",
    },
    Table {
        schema: "public",
        name: "ord",
        key: "acct_id",
        kind: Kind::Int,
        group: "ints",
        columns: &[
            ("no", "bigint"),
            ("acct_id", "bigint"),
            ("n", "integer"),
            ("note", "text"),
            ("country", "text"),
        ],
        unique: "acct_id, no",
    },
    Table {
        schema: "public",
        name: "item",
        key: "acct_id",
        kind: Kind::Int,
        group: "ints",
        columns: &[
            ("acct_id", "integer"),
            ("line", "integer"),
            ("n", "integer"),
            ("note", "text"),
        ],
        unique: "",
    },
    Table {
        schema: "alt",
        name: "acct",
        key: "id",
        kind: Kind::Int,
        group: "ints",
        columns: &[("n", "integer"), ("id", "bigint"), ("note", "text")],
        unique: "id",
    },
    Table {
        schema: "public",
        name: "Mixed Case",
        key: "Key",
        kind: Kind::Int,
        group: "ints",
        columns: &[("Key", "smallint"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "doc",
        key: "slug",
        kind: Kind::Text,
        group: "texts",
        columns: &[("slug", "text"), ("n", "integer"), ("note", "text")],
        unique: "slug",
    },
    Table {
        schema: "public",
        name: "rev",
        key: "slug",
        kind: Kind::Text,
        group: "texts",
        columns: &[("n", "integer"), ("slug", "varchar"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "dev",
        key: "uid",
        kind: Kind::Uuid,
        group: "uuids",
        columns: &[("uid", "uuid"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "ledger",
        key: "k",
        kind: Kind::Numeric,
        group: "numbers",
        columns: &[("k", "numeric"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "diary",
        key: "d",
        kind: Kind::Date,
        group: "dates",
        columns: &[("d", "date"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "ship",
        key: "region",
        kind: Kind::Text,
        group: "regions",
        columns: &[("region", "text"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "alt",
        name: "doc",
        key: "slug",
        kind: Kind::Text,
        group: "regions",
        columns: &[("slug", "text"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "event",
        key: "day",
        kind: Kind::Date,
        group: "months",
        columns: &[("day", "date"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "span",
        key: "k",
        kind: Kind::Int,
        group: "spans",
        columns: &[("k", "bigint"), ("n", "integer"), ("note", "text")],
        unique: "",
    },
    Table {
        schema: "public",
        name: "measure",
        key: "acct_id",
        kind: Kind::Int,
        group: "ints",
        columns: &[
            ("acct_id", "bigint"),
            ("n", "integer"),
            ("note", "text"),
            ("w", "bigint"),
            ("q", "numeric"),
            ("r", "double precision"),
            ("iv", "interval"),
            ("ok", "boolean"),
            ("at", "timestamptz"),
            ("word", "varchar(20) COLLATE \"C\""),
        ],
        unique: "",
    },
    Table {
        schema: "public",
        name: "country",
        key: "",
        kind: Kind::Text,
        group: "",
        columns: &[("code", "text"), ("n", "integer"), ("note", "text")],
        unique: "code",
    },
    Table {
        schema: "public",
        name: "setting",
        key: "",
        kind: Kind::Text,
        group: "",
        columns: &[("code", "text"), ("n", "integer"), ("note", "text")],
        unique: "code",
    },
];

/// Which tables have a primary key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    OfSome,
    /// Where rows may be there twice, one more column at the end tells them apart, as what moves needs it.
    OfAll,
}

pub(crate) const DATABASE: &str = "oracle";
pub(crate) const USER: &str = "app";

/// Keys by their group: some with rows, some without.
pub(crate) fn keys(group: &str) -> &'static [&'static str] {
    match group {
        "ints" => &[
            "1", "2", "3", "4", "5", "7", "10", "-1", "0", "-32768", "32767", "42",
        ],
        "spans" => &[
            "1",
            "99",
            "100",
            "101",
            "199",
            "200",
            "201",
            "-5",
            "9223372036854775807",
            "-9223372036854775808",
            "0",
            "150",
        ],
        "texts" => &[
            "a",
            "b",
            "A",
            "é",
            "e",
            "ü€",
            "日本",
            "",
            " a",
            "a ",
            "it's",
            "back\\slash",
            "1",
            "1.0",
            "01",
            "null",
        ],
        "uuids" => &[
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "123e4567-e89b-12d3-a456-426614174000",
            "123e4567-e89b-12d3-a456-426614174001",
            "deadbeef-dead-beef-dead-beefdeadbeef",
        ],
        "numbers" => &[
            "1",
            "1.5",
            "-1.5",
            "0",
            "0.1",
            "1000000",
            "123456789012345678901234567890.123",
            "NaN",
            "Infinity",
            "-Infinity",
            "-7",
            "0.00001",
        ],
        "dates" => &[
            "2025-01-01",
            "2025-01-31",
            "2024-02-29",
            "infinity",
            "-infinity",
            "1999-12-31",
            "2000-01-01",
            "2025-12-31",
        ],
        "months" => &[
            "2025-12-31",
            "2026-01-01",
            "2026-01-31",
            "2026-02-01",
            "2026-02-28",
            "infinity",
            "-infinity",
            "1970-01-01",
            "2026-01-15",
        ],
        "regions" => &["eu", "us", "apac", "uk", "EU", "latam", "", "nowhere", "é"],
        _ => &["at", "de", "fr", "é"],
    }
}

pub(crate) fn configuration(shards: &[Cluster], listen: SocketAddr) -> String {
    let mut out = format!(
        "[server]\nlisten = [\"{listen}\"]\n[databases.{DATABASE}]\ncatalog = \"s0\"\n\
         control = {{ user = \"control\", password = \"control\" }}\n"
    );
    for (at, shard) in shards.iter().enumerate() {
        let _ = writeln!(
            out,
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{}/{DATABASE}\" }}",
            shard.port()
        );
    }
    out.push_str(
        r#"
[databases.oracle.groups.ints]
method = "hash"
key_type = "bigint"
shards = ["s0", "s1", "s2"]
tables = { "public.acct" = "id", "public.ord" = "acct_id", "public.item" = "acct_id", "public.measure" = "acct_id", "alt.acct" = "id", "public.Mixed Case" = "Key" }
[databases.oracle.groups.texts]
method = "hash"
key_type = "text"
shards = ["s0", "s1", "s2"]
tables = { "public.doc" = "slug", "public.rev" = "slug" }
[databases.oracle.groups.uuids]
method = "hash"
key_type = "uuid"
shards = ["s0", "s1", "s2"]
tables = { "public.dev" = "uid" }
[databases.oracle.groups.numbers]
method = "hash"
key_type = "numeric"
shards = ["s0", "s1", "s2"]
tables = { "public.ledger" = "k" }
[databases.oracle.groups.dates]
method = "hash"
key_type = "date"
shards = ["s0", "s1", "s2"]
tables = { "public.diary" = "d" }
[databases.oracle.groups.regions]
method = "list"
key_type = "text"
lists.s0 = ["eu", "uk"]
lists.s1 = ["us"]
lists.s2 = ["apac", "*"]
tables = { "public.ship" = "region", "alt.doc" = "slug" }
[databases.oracle.groups.months]
method = "range"
key_type = "date"
ranges = [ { to = "2026-01-01", shard = "s0" }, { to = "2026-02-01", shard = "s1" }, { to = "2026-02-15", shard = "s2" }, { shard = "s0" } ]
tables = { "public.event" = "day" }
[databases.oracle.groups.spans]
method = "range"
key_type = "bigint"
ranges = [ { to = 0, shard = "s1" }, { to = 100, shard = "s2" }, { to = 200, shard = "s0" }, { shard = "s1" } ]
tables = { "public.span" = "k" }
[databases.oracle.tables]
reference = ["public.country"]
single = { "public.setting" = "s1" }
[users.app]
password = "app"
databases = ["oracle"]
"#,
    );
    out
}

pub(crate) fn quoted(name: &str) -> String {
    if name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}

impl Table {
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.schema, quoted(self.name))
    }

    pub(crate) fn sharded(&self) -> bool {
        !self.key.is_empty()
    }

    /// Where a row with this key belongs.
    fn places(&self, snapshot: &Snapshot, key: &str) -> ShardSet {
        let table = snapshot.table(self.schema, self.name).unwrap();
        match &table.placement {
            Placement::Reference => snapshot.all(),
            Placement::Single(shard) => ShardSet::one(*shard),
            Placement::Sharded { group, .. } => {
                let group = snapshot.group(*group);
                ShardSet::one(
                    group
                        .shard_of(&group.key_type.from_text(key.as_bytes()).unwrap())
                        .unwrap(),
                )
            }
        }
    }
}

/// Roles and the database, as every server of an installation has them.
pub(crate) async fn found(server: &Cluster) {
    server
        .execute("postgres", "CREATE ROLE app LOGIN PASSWORD 'app'")
        .await
        .unwrap();
    server
        .execute("postgres", "CREATE DATABASE oracle OWNER app")
        .await
        .unwrap();
    for sql in [
        "CREATE ROLE control LOGIN PASSWORD 'control' IN ROLE app, pg_read_all_stats",
        "GRANT CREATE ON DATABASE oracle TO control",
        "ALTER ROLE control REPLICATION",
        "DO $$BEGIN IF current_setting('server_version_num')::int >= 150000 THEN \
           EXECUTE 'GRANT SET ON PARAMETER session_replication_role TO control'; END IF; END$$",
    ] {
        server.execute("postgres", sql).await.unwrap();
    }
    let public = "ALTER SCHEMA public OWNER TO app";
    server.execute(DATABASE, public).await.unwrap();
}

async fn create(server: &Cluster, keys: Keys) {
    found(server).await;
    let mut sql = String::from("SET ROLE app; CREATE SCHEMA alt;");
    for table in TABLES {
        let columns: Vec<String> = table
            .columns
            .iter()
            .map(|(name, kind)| format!("{} {kind}", quoted(name)))
            .collect();
        let unique = match (table.unique, keys) {
            ("", Keys::OfAll) => format!(
                ", seq bigint NOT NULL DEFAULT 0, PRIMARY KEY ({}, seq)",
                quoted(table.key)
            ),
            ("", Keys::OfSome) => String::new(),
            (columns, _) => format!(", PRIMARY KEY ({columns})"),
        };
        let _ = write!(
            sql,
            "CREATE TABLE {} ({}{unique});",
            table.full_name(),
            columns.join(", ")
        );
    }
    // What nothing lists: a table that hides a listed one, and a view of all rows that shows keys.
    sql.push_str("CREATE SCHEMA early; CREATE TABLE early.ship (region text, n integer, note text); INSERT INTO early.ship VALUES ('eu', 99, 'early');");
    sql.push_str("CREATE VIEW early.acct AS SELECT id, rank() OVER (ORDER BY id)::int AS n, note FROM public.acct;");
    server.execute(DATABASE, &sql).await.unwrap();
}

/// Makes the tables everywhere and the same rows on the whole and, each where the map says, on the shards.
pub(crate) async fn fill(
    shards: &[Cluster],
    whole: &Cluster,
    snapshot: &Snapshot,
    random: &mut Random,
    primary: Keys,
) {
    let mut scripts = vec![String::new(); shards.len() + 1];
    for table in TABLES {
        let per_key = if table.unique == table.key || !table.sharded() {
            1
        } else {
            4
        };
        for key in keys(table.group) {
            if table.sharded() && random.chance(20) {
                continue;
            }
            for number in 0..per_key {
                let row = row(table, key, number, random);
                let seq = match (table.unique, primary) {
                    ("", Keys::OfAll) => format!(", {}", number + 1),
                    _ => String::new(),
                };
                let insert = format!("INSERT INTO {} VALUES ({row}{seq});", table.full_name());
                for shard in table.places(snapshot, key).iter() {
                    let Some(script) = scripts[..shards.len()].get_mut(shard.index()) else {
                        continue;
                    };
                    script.push_str(&insert);
                }
                scripts[shards.len()].push_str(&insert);
            }
        }
    }
    for (server, script) in shards.iter().chain([whole]).zip(&scripts) {
        create(server, primary).await;
        server.execute(DATABASE, script).await.unwrap();
    }
}

fn row(table: &Table, key: &str, number: usize, random: &mut Random) -> String {
    let values = table.columns.iter().map(|(name, _)| match *name {
        "n" if random.chance(20) => "NULL".to_owned(),
        "n" => (random.below(7)).to_string(),
        "note" if random.chance(20) => "NULL".to_owned(),
        "note" => format!("'{}'", random.pick(&["x", "y", "é", "z z"])),
        "amount" => format!("{}.{}0", random.below(50), random.below(9)),
        "no" | "line" => number.to_string(),
        "w" | "q" | "r" | "iv" | "ok" | "at" | "word" if random.chance(15) => "NULL".to_owned(),
        "w" | "q" | "r" | "iv" | "ok" | "at" | "word" => {
            format!("'{}'", random.pick(extremes(name)))
        }
        "country" => format!("'{}'", random.pick(&["at", "de", "xx"])),
        _ => format!("'{}'", key.replace('\'', "''")),
    });
    values.collect::<Vec<_>>().join(", ")
}

/// Values at the ends of their types. Floats are sums of few powers of two: every order of additions gives the same.
fn extremes(column: &str) -> &'static [&'static str] {
    match column {
        "w" => &[
            "9223372036854775807",
            "-9223372036854775808",
            "0",
            "1",
            "77",
        ],
        "q" => &[
            "NaN",
            "0.1",
            "0.10",
            "-99999999999999999999.5",
            "Infinity",
            "1e-20",
            "12345678901234567890",
            "7",
        ],
        "r" => &["0.5", "-1.25", "1048576", "3", "Infinity", "NaN"],
        "iv" => &[
            "1 mon",
            "-3 days 04:05:06.789",
            "1 year -2 days",
            "00:00:00.000001",
        ],
        "ok" => &["t", "f"],
        "at" => &[
            "2026-01-01 00:00+00",
            "2026-01-01 23:30+00",
            "infinity",
            "1999-12-31 12:00+00",
            "2026-02-28 05:00+00",
        ],
        _ => &["a", "B", "é", "a ", "a\"b", "{x}", "\\"],
    }
}

/// Every row is on the whole, and on the shards exactly where the map says, once.
pub(crate) async fn compare(
    shards: &[Cluster],
    whole: &Cluster,
    snapshot: &Snapshot,
    strangers: &[Vec<Vec<String>>],
) -> Vec<String> {
    let mut differences = Vec::new();
    for (table, strangers) in TABLES.iter().zip(strangers) {
        let key = if table.sharded() {
            quoted(table.key)
        } else {
            "''".to_owned()
        };
        let sql = format!("SELECT {key}::text, t::text FROM {} t", table.full_name());
        let mut expected = strangers.clone();
        for row in whole.query(DATABASE, &sql).await.unwrap() {
            let (key, text) = (row[0].clone().unwrap(), row[1].clone().unwrap());
            for shard in table.places(snapshot, &key).iter() {
                expected[shard.index()].push(text.clone());
            }
        }
        for (at, shard) in shards.iter().enumerate() {
            let mut found: Vec<String> = shard
                .query(DATABASE, &sql)
                .await
                .unwrap()
                .into_iter()
                .map(|row| row[1].clone().unwrap())
                .collect();
            found.sort();
            expected[at].sort();
            if found != expected[at] {
                differences.push(format!(
                    "{} on s{at}: has {found:?}, should have {:?}",
                    table.full_name(),
                    expected[at]
                ));
            }
        }
    }
    differences
}
