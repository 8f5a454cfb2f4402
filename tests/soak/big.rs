//! Rows far larger than any buffer.

use crate::{
    client::{batch, query},
    stage::{Place, Stage, TRUSTED},
};
use std::{
    io::{Read as _, Write as _},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

const SIZE: usize = 100 << 20;
const BOUND: usize = 16 << 20;

/// How much more memory the proxy had at most while this was done than before.
fn grown(stage: &Stage, act: impl FnOnce()) -> usize {
    let (before, most, over) = (
        stage.resident(),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                most.fetch_max(stage.resident(), Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        act();
        over.store(true, Relaxed);
    });
    most.into_inner().saturating_sub(before)
}

#[test]
fn a_value_of_100_megabytes_passes_to_the_client_in_little_memory() {
    let stage = Stage::open(20);
    let client = crate::client::Client::connect_as(
        stage.proxy.port,
        TRUSTED,
        Place::Sharded.database(),
        &[],
    );
    let mut socket = client.writer();
    let most = grown(&stage, || {
        let sql = format!("select repeat('z', {SIZE})");
        socket.write_all(&query(&sql)).unwrap();
        let (mut seen, mut room) = (0, vec![0; 1 << 20]);
        let mut last = Vec::new();
        while !last.ends_with(b"Z\0\0\0\x05I") {
            let count = socket.read(&mut room).unwrap();
            assert!(count > 0, "closed");
            seen += room[..count].iter().filter(|byte| **byte == b'z').count();
            last.extend_from_slice(&room[count.saturating_sub(6)..count]);
            last.drain(..last.len().saturating_sub(6));
        }
        assert_eq!(seen, SIZE);
    });
    println!("{} kB more memory", most / 1024);
    assert!(most < BOUND, "{most} bytes more memory");
}

#[test]
fn copy_data_of_100_megabytes_passes_to_the_server_in_little_memory() {
    let stage = Stage::open(20);
    let database = Place::Single.database();
    let mut client = crate::client::Client::connect_as(stage.proxy.port, TRUSTED, database, &[]);
    client.send(&query("copy items from stdin"));
    client.until("G");
    let most = grown(&stage, || {
        // One message, as some drivers send a row.
        let row = format!("1\t{}\n", "y".repeat(SIZE));
        let sent = client.ask(&batch().copy_data(&row).bare(b'c').0);
        assert!(
            sent.iter().any(|line| line.starts_with("C COPY 1")),
            "{sent:?}"
        );
    });
    println!("{} kB more memory", most / 1024);
    assert!(most < BOUND, "{most} bytes more memory");
    assert_eq!(
        client.value("select length(body) from items"),
        SIZE.to_string()
    );
}

#[test]
fn a_parameter_of_100_megabytes_passes_to_the_server_in_little_memory() {
    let stage = Stage::open(20);
    let database = Place::Single.database();
    let mut client = crate::client::Client::connect_as(stage.proxy.port, TRUSTED, database, &[]);
    let most = grown(&stage, || {
        let value = "x".repeat(SIZE);
        let found = client.ask(&batch().run("select length($1::bytea)", &[&value]).sync().0);
        assert_eq!(found[2], format!("D {SIZE}"));
    });
    println!("{} kB more memory", most / 1024);
    assert!(most < BOUND, "{most} bytes more memory");
}
