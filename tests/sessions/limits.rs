//! A process that runs out of descriptors is no server that is down: it serves whom it has, and recovers by itself.

use crate::{
    client::{Client, query},
    harness::{postgres, until},
};
use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

/// A proxy in a process of its own, ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Whether a client is let in.
fn enters(port: u16) -> bool {
    let mut client = Client::open(port);
    let mut packet = Vec::new();
    let pairs: [(&[u8], &[u8]); 2] = [(b"user", b"postgres"), (b"database", b"postgres")];
    shardway::wire::startup::put_message(&mut packet, 0, &pairs);
    client.send(&packet);
    loop {
        match client.frame() {
            Some((b'Z', _)) => return true,
            Some((b'E', _)) | None => return false,
            Some(_) => {}
        }
    }
}

#[test]
fn a_process_out_of_descriptors_serves_whom_it_has_and_recovers() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let directory = std::env::temp_dir().join(format!("shardway-limits-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let config = directory.join("shardway.toml");
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:{port}\"]\nworkers = 2\n[pool]\nsize = 2\n[databases.postgres]\n\
         shards.s0 = {{ primary = \"postgres://127.0.0.1:{}/postgres?sslmode=disable\" }}\n[users.postgres]\nauth = \"trust\"\n",
        postgres().port()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 48; exec \"$0\" serve --config \"$1\"",
            env!("CARGO_BIN_EXE_shardway"),
        ])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    until("it listens", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
    let mut client = Client::connect(port, &[]);
    assert_eq!(client.value("select 1"), "1");
    for _ in 0..3 {
        let crowd: Vec<TcpStream> = (0..120)
            .map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap())
            .collect();
        let open = format!("/proc/{}/fd", process.0.id());
        until("no descriptor is left", || {
            std::fs::read_dir(&open).unwrap().count() >= 47
        });
        for at in 0..20 {
            assert_eq!(client.value(&format!("select {at}")), at.to_string());
        }
        assert_eq!(client.ask(&query("begin")), ["C BEGIN\\0", "Z T"]);
        assert_eq!(client.ask(&query("commit")), ["C COMMIT\\0", "Z I"]);
        drop(crowd);
        until("others enter again", || enters(port));
    }
    drop(process);
    std::fs::remove_dir_all(directory).unwrap();
}
