//! pg_dump of one shard: by an override in its options it dumps that shard exactly as it does directly, from one
//! snapshot, in parallel too, and what it wrote restores.

use crate::{
    harness::{Proxy, block_on, customers_on, printed, program_of_server, shop},
    raw::Raw,
};
use shardway::{sandbox::Cluster, wire::frontend};
use std::{
    fs,
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

const DATABASE: &str = "ledger";
const SCHEMA: &str = r#"
CREATE TYPE kind AS ENUM ('credit', 'debit');
CREATE TABLE accounts (id bigint PRIMARY KEY, "Owner's name" text NOT NULL DEFAULT 'no''body', opened date);
CREATE TABLE entries (account bigint REFERENCES accounts, no bigserial, kind kind, amount numeric(12,2) CHECK (amount > 0),
    PRIMARY KEY (account, no));
CREATE INDEX entries_amount ON entries (amount DESC) WHERE kind = 'debit';
CREATE VIEW balances AS SELECT account, sum(CASE kind WHEN 'credit' THEN amount ELSE -amount END) FROM entries GROUP BY account;
CREATE FUNCTION twice(x numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$ SELECT x * 2 $$;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.opened := coalesce(NEW.opened, '2020-02-02'); RETURN NEW; END $$;
CREATE TRIGGER stamped BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION stamp();
COMMENT ON TABLE accounts IS 'who has; "quoted"';
CREATE TABLE one_half (n bigint); CREATE TABLE other_half (n bigint);
"#;

/// A database of its own on every shard, whose rows differ, behind a proxy of its own: others write to the shop.
fn ledger() -> &'static Proxy {
    static LEDGER: OnceLock<Proxy> = OnceLock::new();
    LEDGER.get_or_init(|| {
        let shop = shop();
        for (at, shard) in shop.shards().iter().enumerate() {
            block_on(async {
                let create = format!("CREATE DATABASE {DATABASE} OWNER app");
                shard.execute("postgres", &create).await.unwrap();
                let rows = format!(
                    "INSERT INTO accounts SELECT i * 3 + {at}, 'café ' || i || E'\\t\\\\\\n' FROM generate_series(1, 2000) i;
                     INSERT INTO entries (account, kind, amount) SELECT id, 'credit', id + 0.25 FROM accounts;
                     SELECT lo_from_bytea(0, 'large {at}')"
                );
                let sql = format!("SET ROLE app; {SCHEMA} {rows}");
                shard.execute(DATABASE, &sql).await.unwrap();
            });
        }
        let mut text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[users.app]\npassword = \"app\"\n\
             [databases.{DATABASE}.groups.accounts]\nmethod = \"hash\"\nkey_type = \"bigint\"\n\
             tables = {{ \"public.accounts\" = \"id\", \"public.entries\" = \"account\" }}\n[databases.{DATABASE}.shards]\n"
        );
        for (at, shard) in shop.shards().iter().enumerate() {
            text.push_str(&format!(
                "s{at} = {{ primary = \"postgres://127.0.0.1:{}/{DATABASE}\" }}\n",
                shard.port()
            ));
        }
        Proxy::start(shop.dir(), &text)
    })
}

/// pg_dump, or another program of PostgreSQL, on this port.
fn program(name: &str, port: u16, options: &str) -> Command {
    let mut command = Command::new(program_of_server(name));
    crate::harness::Target { name: "", port }.apply(&mut command);
    command
        .env("PGDATABASE", DATABASE)
        .env("PGOPTIONS", options);
    command
}

/// The dump, without the random tokens that newer versions put around it.
fn dump(port: u16, options: &str, more: &[&str]) -> String {
    let text = printed(program("pg_dump", port, options).args(more));
    let lines = text.lines().filter(|line| !line.contains("restrict "));
    lines.map(|line| format!("{line}\n")).collect()
}

fn named(shard: usize) -> String {
    format!("-c shardway.shard=s{shard}")
}

#[test]
fn a_dump_of_a_named_shard_is_the_dump_of_its_server_and_restores() {
    let (shop, proxy) = (shop(), ledger());
    let mut dumps = Vec::new();
    for (at, shard) in shop.shards().iter().enumerate() {
        for more in [
            &[][..],
            &["--inserts", "--serializable-deferrable"],
            &["--schema-only", "--clean", "--if-exists"],
        ] {
            let halves = ["-T", "one_half", "-T", "other_half"];
            let more = [more, &halves[..]].concat();
            let direct = dump(shard.port(), "", &more);
            let proxied = dump(proxy.port, &named(at), &more);
            crate::harness::assert_same(&direct, &proxied);
            assert!(direct.contains("stamped"));
            dumps.push(direct);
        }
    }
    assert!(
        dumps[0] != dumps[3] && dumps[3] != dumps[6],
        "shards differ"
    );
    let restored = restore(&shop.servers()[3], "ledger_again", &dumps[3]);
    assert_eq!(restored, of(&shop.shards()[1], DATABASE));
}

/// Restores a dump into a database of its own; what is in it.
fn restore(server: &Cluster, name: &str, text: &str) -> Vec<Vec<Option<String>>> {
    let file = shop().dir().join(format!("{name}.sql"));
    fs::write(&file, text).unwrap();
    let create = format!("CREATE DATABASE {name} OWNER app");
    block_on(server.execute("postgres", &create)).unwrap();
    let mut psql = program("psql", server.port(), "");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", name, "-f"]);
    printed(psql.arg(&file));
    let rows = of(server, name);
    let drop = format!("DROP DATABASE {name}");
    block_on(server.execute("postgres", &drop)).unwrap();
    rows
}

fn of(server: &Cluster, database: &str) -> Vec<Vec<Option<String>>> {
    let sql = "SELECT md5(string_agg(a::text, ',' ORDER BY id)) FROM accounts a
        UNION ALL SELECT md5(string_agg(e::text, ',' ORDER BY account, no)) FROM entries e
        UNION ALL SELECT sum(sum)::text FROM balances
        UNION ALL SELECT string_agg(encode(lo_get(oid), 'escape'), ',') FROM pg_largeobject_metadata
        UNION ALL SELECT last_value::text FROM entries_no_seq";
    block_on(server.query(database, sql)).unwrap()
}

#[test]
fn a_dump_sees_one_snapshot_in_parallel_too() {
    let (shop, proxy) = (shop(), ledger());
    let shard = &shop.shards()[2];
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Both halves grow together: only a dump whose tables come from different snapshots has more of one.
        scope.spawn(|| {
            let mut next = 0;
            while !ended.load(Ordering::Relaxed) {
                next += 1;
                let sql = format!(
                    "BEGIN; INSERT INTO one_half VALUES ({next}); INSERT INTO other_half VALUES ({next}); COMMIT"
                );
                block_on(shard.execute(DATABASE, &sql)).unwrap();
            }
        });
        let halves = ["-a", "-t", "one_half", "-t", "other_half"];
        let counts = |text: &str| {
            let rows = |table: &str| {
                let (_, rest) = text.split_once(&format!("COPY public.{table} ")).unwrap();
                rest.split("\\.").next().unwrap().lines().count()
            };
            (rows("one_half"), rows("other_half"))
        };
        let mut last = 0;
        for round in 0..4 {
            let (one, other) = counts(&dump(proxy.port, &named(2), &halves));
            assert_eq!(one, other);
            assert!(one >= last, "a later dump has what an earlier one had");
            last = one;
            let directory = shop.dir().join(format!("parallel-{round}"));
            let mut parallel = program("pg_dump", proxy.port, &named(2));
            printed(
                parallel
                    .args(halves)
                    .args(["-Fd", "-j", "2", "-f"])
                    .arg(&directory),
            );
            let mut restore = program("pg_restore", proxy.port, "");
            let (one, other) = counts(&printed(restore.args(["-f", "-"]).arg(&directory)));
            assert_eq!(one, other);
            fs::remove_dir_all(&directory).unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    });
}

/// Calls `inet_server_port()` by its number, as drivers call functions of large objects; the port, or the error's code.
fn server_port(raw: &mut Raw) -> Result<u16, String> {
    let mut call = Vec::new();
    frontend::put(&mut call, b'F', |out| {
        out.extend_from_slice(&2199_u32.to_be_bytes());
        // No formats of arguments, no arguments, the result in binary.
        out.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
    });
    raw.send(&call);
    let replies = raw.until(b'Z');
    match replies[0].error() {
        Some((_, code)) => Err(code),
        None => Ok(u16::from_be_bytes([replies[0].body[6], replies[0].body[7]])),
    }
}

#[test]
fn a_function_call_runs_where_large_objects_are_or_is_refused() {
    let shop = shop();
    let mut raw = Raw::login(&shop.proxied());
    let port = |shard: usize| Ok(shop.shards()[shard].port());
    assert_eq!(server_port(&mut raw), port(0), "the home shard");
    let key = customers_on(&shop.settings, 2)[0];
    raw.query(&format!("BEGIN; SELECT id FROM customers WHERE id = {key}"));
    raw.until(b'Z');
    assert_eq!(server_port(&mut raw), Err("0A000".to_owned()));
    raw.query("ROLLBACK");
    raw.until(b'Z');
    raw.query("SET shardway.shard = 's2'");
    raw.until(b'Z');
    assert_eq!(server_port(&mut raw), port(2));
    raw.query(&format!("BEGIN; SELECT id FROM customers WHERE id = {key}"));
    raw.until(b'Z');
    assert_eq!(server_port(&mut raw), port(2));
}
