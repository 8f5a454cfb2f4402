//! Buckets are what PostgreSQL computes: by golden vectors, and by asking a live server in two ways.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngSeed, TestRunner},
};
use server::Server;
use shardway::catalog::{
    hash::{HashFunction, bucket, sql_bucket_expression},
    key::{Key, KeyType},
};
use std::{fmt::Write as _, fs, path::Path};

const TYPES: [KeyType; 7] = [
    KeyType::Bigint,
    KeyType::Text,
    KeyType::Uuid,
    KeyType::Date,
    KeyType::Timestamptz,
    KeyType::Numeric,
    KeyType::Bytea,
];
const BUCKETS: u32 = 1024;

fn key_type(name: &str) -> KeyType {
    TYPES
        .into_iter()
        .find(|key_type| key_type.name() == name)
        .expect(name)
}

fn key(key_type: KeyType, text: &str) -> Key {
    key_type
        .from_text(text.as_bytes())
        .unwrap_or_else(|error| panic!("{} {text:?}: {error:?}", key_type.name()))
}

/// Each line: type, value, bucket of 1024 by `postgres` (a live server is asked the same values), bucket by `xxh3`.
/// `SHARDWAY_BLESS=1` writes the file: only ever right for vectors of a new type, never for changed ones.
#[test]
fn buckets_are_those_of_the_golden_vectors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hash/buckets.tsv");
    bless(&path);
    let text = fs::read_to_string(path).unwrap();
    let mut count = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [name, value, postgres, xxh3] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let key = key(key_type(name), value);
        assert_eq!(
            bucket(HashFunction::Postgres, BUCKETS, &key).to_string(),
            postgres,
            "{line}"
        );
        assert_eq!(
            bucket(HashFunction::Xxh3, BUCKETS, &key).to_string(),
            xxh3,
            "{line}"
        );
        count += 1;
    }
    assert!(count >= 60, "{count} vectors");
}

#[expect(
    clippy::disallowed_methods,
    reason = "blessing is asked for by an environment variable"
)]
fn bless(path: &Path) {
    if std::env::var("SHARDWAY_BLESS").is_err() {
        return;
    }
    let mut text = String::from("# type\tvalue\tpostgres\txxh3\n");
    for key_type in TYPES {
        for value in values(key_type, 16) {
            let key = key(key_type, &value);
            let bucket = |function| bucket(function, BUCKETS, &key);
            let (postgres, xxh3) = (bucket(HashFunction::Postgres), bucket(HashFunction::Xxh3));
            text += &format!("{}\t{value}\t{postgres}\t{xxh3}\n", key_type.name());
        }
    }
    fs::write(path, text).expect("golden files can be written");
}

/// Thousands of random keys of every type: `satisfies_hash_partition` and the SQL formula agree with us.
#[test]
fn a_live_server_computes_the_same_buckets() {
    let server = Server::start();
    for key_type in TYPES {
        let name = key_type.name();
        let mut input =
            format!("CREATE TABLE keys_{name} (n int, k {name});\nCOPY keys_{name} FROM stdin;\n");
        let values = values(key_type, 2000);
        for (at, value) in values.iter().enumerate() {
            let escaped = value
                .replace('\\', "\\\\")
                .replace('\t', "\\t")
                .replace('\n', "\\n")
                .replace('\r', "\\r");
            writeln!(input, "{at}\t{escaped}").unwrap();
        }
        input.push_str("\\.\n");
        writeln!(
            input,
            "CREATE TABLE parted_{name} (k {name}) PARTITION BY HASH (k);"
        )
        .unwrap();
        writeln!(
            input,
            "CREATE TABLE ours_{name} (n int, b int);\nCOPY ours_{name} FROM stdin;"
        )
        .unwrap();
        for (at, value) in values.iter().enumerate() {
            writeln!(
                input,
                "{at}\t{}",
                bucket(HashFunction::Postgres, BUCKETS, &key(key_type, value))
            )
            .unwrap();
        }
        input.push_str("\\.\n");
        let formula =
            sql_bucket_expression("k", key_type, BUCKETS).unwrap_or_else(|| "b".to_owned());
        writeln!(
            input,
            "SELECT count(*), count(*) FILTER (WHERE NOT satisfies_hash_partition('parted_{name}'::regclass, {BUCKETS}, b, k)), \
             count(*) FILTER (WHERE {formula} <> b) FROM keys_{name} JOIN ours_{name} USING (n);"
        )
        .unwrap();
        let answer = server.psql(&input);
        assert_eq!(
            answer.trim(),
            format!("{}|0|0", values.len()),
            "{name}: keys, wrong by partition, wrong by formula"
        );
    }
}

/// What text means to us and to the server is the same value: the server's own output of it is read as the same key.
#[test]
fn a_live_server_reads_the_same_values() {
    let server = Server::start();
    for key_type in TYPES {
        let name = key_type.name();
        let values = values(key_type, 300);
        let mut input = format!(
            "SET timezone = 'UTC';\nCREATE TABLE keys_{name} (n serial, k {name});\nCOPY keys_{name} (k) FROM stdin;\n"
        );
        for value in &values {
            let escaped = value
                .replace('\\', "\\\\")
                .replace('\t', "\\t")
                .replace('\n', "\\n")
                .replace('\r', "\\r");
            writeln!(input, "{escaped}").unwrap();
        }
        writeln!(
            input,
            "\\.\nSELECT json_agg(k::text ORDER BY n) FROM keys_{name};"
        )
        .unwrap();
        writeln!(input, "SELECT json_agg(r ORDER BY n) FROM (SELECT n, dense_rank() OVER (ORDER BY k{}) r FROM keys_{name}) ranked;", if key_type == KeyType::Text { " COLLATE \"C\"" } else { "" }).unwrap();
        let answer = server.psql(&input);
        let mut documents =
            serde_json::Deserializer::from_str(&answer).into_iter::<serde_json::Value>();
        let outputs = documents.next().unwrap().unwrap();
        let ranks = documents.next().unwrap().unwrap();
        let keys: Vec<Key> = values.iter().map(|value| key(key_type, value)).collect();
        for (value, (ours, output)) in values
            .iter()
            .zip(keys.iter().zip(outputs.as_array().unwrap()))
        {
            assert_eq!(
                ours,
                &key(key_type, output.as_str().unwrap()),
                "{name} {value:?}"
            );
        }
        let mut sorted: Vec<&Key> = keys.iter().collect();
        sorted.sort();
        sorted.dedup();
        for (ours, rank) in keys.iter().zip(ranks.as_array().unwrap()) {
            let place = sorted.binary_search(&ours).unwrap() + 1;
            assert_eq!(Some(place as u64), rank.as_u64(), "{name} {ours:?}");
        }
    }
}

/// Values at the edges, then random ones: the same at every run.
fn values(key_type: KeyType, count: usize) -> Vec<String> {
    let edges: &[&str] = match key_type {
        KeyType::Bigint => &[
            "0",
            "-1",
            "1",
            "9223372036854775807",
            "-9223372036854775808",
            "4294967296",
            "-4294967296",
        ],
        KeyType::Text => &[
            "",
            "a",
            "abc ",
            "ünïcödé",
            "twelve bytes",
            "thirteen byte",
            "eleven byte",
        ],
        KeyType::Uuid => &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
        KeyType::Date => &[
            "2000-01-01",
            "1999-12-31",
            "infinity",
            "-infinity",
            "0001-01-01",
            "9999-12-31",
        ],
        KeyType::Timestamptz => &[
            "2000-01-01 00:00:00Z",
            "infinity",
            "-infinity",
            "1999-12-31 23:59:59.999999+00",
        ],
        KeyType::Numeric => &[
            "0",
            "0.00",
            "NaN",
            "Infinity",
            "-Infinity",
            "1",
            "1.0",
            "-1",
            "10000",
            "0.0001",
            "1e100",
            "1e-100",
            "99999999.99990000",
        ],
        KeyType::Bytea => &["\\x", "\\x00", "\\xdeadbeef"],
    };
    let strategy = random(key_type);
    let seed = RngSeed::Fixed(15);
    let mut runner = TestRunner::new(Config {
        rng_seed: seed,
        ..Config::default()
    });
    let mut values: Vec<String> = edges.iter().map(|text| (*text).to_owned()).collect();
    while values.len() < count {
        values.push(strategy.new_tree(&mut runner).unwrap().current());
    }
    values
}

fn random(key_type: KeyType) -> BoxedStrategy<String> {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    };
    match key_type {
        KeyType::Bigint => prop_oneof![any::<i64>(), -1000..1000_i64, any::<i32>().prop_map(i64::from)]
            .prop_map(|value| value.to_string())
            .boxed(),
        KeyType::Text => "[ -~à-ÿ一-三]{0,40}".boxed(),
        KeyType::Uuid => any::<[u8; 16]>().prop_map(move |bytes| hex(&bytes)).boxed(),
        KeyType::Date => (1..=9999_u32, 1..=12_u32, 1..=28_u32)
            .prop_map(|(year, month, day)| format!("{year:04}-{month:02}-{day:02}"))
            .boxed(),
        KeyType::Timestamptz => ((1..=9999_u32, 1..=12_u32, 1..=28_u32), (0..24_u32, 0..60_u32, 0..60_u32, 0..1_000_000_u32), -15..=15_i32, 0..60_u32)
            .prop_map(|((year, month, day), (hour, minute, second, micros), zone, zone_minute)| {
                format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}{zone:+03}:{zone_minute:02}")
            })
            .prop_filter("the server writes years before 1 as BC", |text| !text.starts_with("0001-01-01"))
            .boxed(),
        KeyType::Numeric => prop_oneof!["-?[0-9]{1,40}\\.[0-9]{1,30}", "-?[0-9]{1,12}0{0,12}", "-?[0-9]{1,9}e-?[0-9]{1,2}"].boxed(),
        KeyType::Bytea => proptest::collection::vec(any::<u8>(), 0..60).prop_map(move |bytes| format!("\\x{}", hex(&bytes))).boxed(),
    }
}
