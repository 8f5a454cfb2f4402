//! Answers of several shards that are far larger than any buffer.

use crate::{
    client::{Client, query},
    harness::{self, Proxy},
    stage::resident,
};
use shardway::sandbox::Sandbox;
use std::{
    io::{Read as _, Write as _},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

const SHARDS: usize = 3;
/// Of each shard: 100 rows, so many times, of a kilobyte.
const TIMES: usize = 1000;
const KILOBYTE: usize = 1000;
/// Of all shards: windows, buffers of sockets' sides, and what an allocator keeps.
const BOUND: usize = 16 << 20;

fn configuration(port: u16) -> String {
    let shards: String = (0..SHARDS)
        .map(|at| {
            format!("shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/wide{at}?sslmode=disable\" }}\n")
        })
        .collect();
    format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[databases.wide]\n{shards}\
         [databases.wide.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 100, shard = \"s0\" }}, {{ to = 200, shard = \"s1\" }}, {{ shard = \"s2\" }}]\n\
         tables = {{ \"public.items\" = \"id\" }}\n\
         [users.trusted]\nauth = \"trust\"\nbackend_user = \"postgres\"\n"
    )
}

#[test]
fn an_answer_of_300_megabytes_of_three_shards_passes_in_little_memory() {
    let sandbox = Sandbox::builder(harness::environment()).start().unwrap();
    let server = sandbox.cluster(0);
    harness::block_on(async {
        for at in 0..SHARDS {
            let database = format!("wide{at}");
            let create = format!("CREATE DATABASE {database}");
            server.execute("postgres", &create).await.unwrap();
            let table = "CREATE TABLE items (id bigint PRIMARY KEY)";
            server.execute(&database, table).await.unwrap();
            let from = at * 100;
            let rows = format!("INSERT INTO items SELECT generate_series({from}, {from} + 99)");
            server.execute(&database, &rows).await.unwrap();
        }
    });
    let proxy = Proxy::start(sandbox.root(), &configuration(server.port()));
    let wide =
        format!("select id, repeat('z', {KILOBYTE}) from items, generate_series(1, {TIMES}) as i");
    for order in ["", " order by id"] {
        let client = Client::connect_as(proxy.port, "trusted", "wide", &[]);
        let (before, most, over) = (
            resident(&proxy),
            AtomicUsize::new(0),
            AtomicBool::new(false),
        );
        let seen = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    most.fetch_max(resident(&proxy), Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let seen = read_all(&client, &format!("{wide}{order}"));
            over.store(true, Relaxed);
            seen
        });
        let grown = most.into_inner().saturating_sub(before);
        println!("{} kB more memory{order}", grown / 1024);
        assert_eq!(seen, SHARDS * 100 * TIMES * KILOBYTE);
        assert!(grown < BOUND, "{grown} bytes more memory{order}");
    }
}

/// How many `z` came up to ReadyForQuery.
fn read_all(client: &Client, sql: &str) -> usize {
    let mut socket = client.writer();
    socket.write_all(&query(sql)).unwrap();
    let (mut seen, mut room) = (0, vec![0; 1 << 20]);
    let mut last = Vec::new();
    while !last.ends_with(b"Z\0\0\0\x05I") {
        let count = socket.read(&mut room).unwrap();
        assert!(count > 0, "closed");
        seen += room[..count].iter().filter(|byte| **byte == b'z').count();
        last.extend_from_slice(&room[count.saturating_sub(6)..count]);
        last.drain(..last.len().saturating_sub(6));
    }
    seen
}
