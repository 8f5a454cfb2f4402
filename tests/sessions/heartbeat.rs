//! A shared listener whose server says nothing any more, without closing, is noticed: its sessions are told.

use crate::{
    client::query,
    harness::{Proxy, postgres, until},
};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// A way to the server that, once it is frozen, passes on nothing that is said to the shared listener.
fn relay(frozen: &Arc<AtomicBool>) -> u16 {
    let server_port = postgres().port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let frozen = Arc::clone(frozen);
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).unwrap();
            let listens = Arc::new(AtomicBool::new(false));
            let (there, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (says, frozen) = (Arc::clone(&listens), Arc::clone(&frozen));
            thread::spawn(move || {
                pass(there, server, |bytes| {
                    let name = b"shardway listener";
                    let listens = bytes.windows(name.len()).any(|word| word == name);
                    says.fetch_or(listens, Ordering::SeqCst);
                    true
                });
            });
            thread::spawn(move || {
                pass(back, client, |_| {
                    !(frozen.load(Ordering::SeqCst) && listens.load(Ordering::SeqCst))
                });
            });
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut bytes = [0; 4096];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 {
            break;
        }
        if passes(&bytes[..count]) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_listener_that_is_dead_without_saying_so_is_noticed() {
    let frozen = Arc::new(AtomicBool::new(false));
    let port = relay(&frozen);
    let shards = format!(
        "[databases.postgres]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n"
    );
    let proxy = Proxy::with("size = 2\nconnect_timeout = \"2s\"", &shards);
    let (mut listens, mut other) = (proxy.client(), proxy.client());
    assert_eq!(listens.ask(&query("listen beats")), ["C LISTEN\\0", "Z I"]);
    other.ask(&query("notify beats, 'first'"));
    until("it is heard", || {
        let seen = listens.ask(&query("select 1"));
        seen.iter().any(|line| line.contains("first"))
    });
    frozen.store(true, Ordering::SeqCst);
    until("the session is told", || {
        listens.send(&query("select 1"));
        loop {
            match listens.frame() {
                None => return true,
                Some((b'E', body)) => {
                    let shown = crate::client::shown(b'E', &body);
                    assert!(shown.starts_with("E FATAL 08006"), "{shown}");
                    return true;
                }
                Some((b'Z', _)) => return false,
                Some(_) => {}
            }
        }
    });
}
