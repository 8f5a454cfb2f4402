//! Buckets are what PostgreSQL computes: by golden vectors, and by asking a live server in two ways.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngSeed, TestRunner},
};
use shardway::catalog::{
    hash::{HashFunction, bucket, sql_bucket_expression},
    key::{Key, KeyType},
};
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

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

/// A throw-away server on a socket only, gone when dropped.
struct Server {
    directory: PathBuf,
    binaries: PathBuf,
}

impl Server {
    fn start() -> Self {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("shardway-hash-{}-{number}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let server = Self {
            directory,
            binaries: binaries(),
        };
        if is_root() {
            let owned = Command::new("chown")
                .arg("postgres")
                .arg(&server.directory)
                .status()
                .unwrap();
            assert!(owned.success());
        }
        let data = server.directory.join("data");
        let initdb = [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--pgdata",
        ];
        server.run("initdb", &initdb, Some(&data), "");
        let options = format!(
            "-c listen_addresses= -c fsync=off -k {}",
            server.directory.display()
        );
        let log = server.directory.join("log");
        let start = [
            "start",
            "--wait",
            "--silent",
            "--options",
            &options,
            "--log",
            log.to_str().unwrap(),
            "--pgdata",
        ];
        server.run("pg_ctl", &start, Some(&data), "");
        server
    }

    fn psql(&self, input: &str) -> String {
        let host = format!("--host={}", self.directory.display());
        let arguments = [
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--username=postgres",
            &host,
            "postgres",
        ];
        self.run("psql", &arguments, None, input)
    }

    fn run(&self, program: &str, arguments: &[&str], path: Option<&Path>, input: &str) -> String {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command
                .args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--clear-groups",
                    "--",
                ])
                .arg(self.binaries.join(program));
            command
        } else {
            Command::new(self.binaries.join(program))
        };
        let quiet = self.directory.join(format!("{program}.out"));
        let output = fs::File::create(&quiet).unwrap();
        command
            .current_dir(&self.directory)
            .args(arguments)
            .args(path)
            .stdin(Stdio::piped());
        // A file, because a started server would keep a pipe open.
        let mut child = command
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let status = child.wait().unwrap();
        let said = fs::read_to_string(quiet).unwrap();
        assert!(status.success(), "{program}: {said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run(
            "pg_ctl",
            &["stop", "--silent", "--mode=immediate", "--pgdata"],
            Some(&self.directory.join("data")),
            "",
        );
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by the environment which servers to use"
)]
fn binaries() -> PathBuf {
    if let Ok(directory) = std::env::var("SHARDWAY_PG_BIN") {
        return directory.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
    versions
        .map(|version| version.unwrap().path().join("bin"))
        .max()
        .unwrap()
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}
