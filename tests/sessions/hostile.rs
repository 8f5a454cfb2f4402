//! Servers that misbehave, are gone, or differ: what reaches the client is whole and told once, and the next session is
//! served.

use crate::{
    client::{Client, batch, query, shown},
    harness::{Proxy, postgres, until},
};
use shardway::wire::{
    backend::{Status, put_complete, put_parameter_status, put_ready},
    frame,
    frontend::{put, put_bare},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

/// A server of this test's own: lets everybody in, and answers each Query with what the script says to its text.
fn server(script: fn(&str) -> Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || serve(stream, script));
        }
    });
    port
}

fn serve(mut stream: TcpStream, script: fn(&str) -> Vec<u8>) {
    let mut length = [0; 4];
    if stream.read_exact(&mut length).is_err() {
        return;
    }
    let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
    if stream.read_exact(&mut packet).is_err() {
        return;
    }
    let mut out = Vec::new();
    put(&mut out, b'R', |out| out.extend_from_slice(&[0; 4]));
    put_parameter_status(&mut out, b"client_encoding", b"UTF8");
    put(&mut out, b'K', |out| {
        out.extend_from_slice(&[0, 0, 0, 1, 1, 2, 3, 4]);
    });
    put_ready(&mut out, Status::Idle);
    stream.write_all(&out).unwrap();
    let mut buffer = Vec::new();
    while let Some((tag, body)) = next(&mut stream, &mut buffer) {
        let answer = match tag {
            b'Q' => script(&String::from_utf8_lossy(&body[..body.len() - 1])),
            b'S' => ready(),
            _ => Vec::new(),
        };
        if stream.write_all(&answer).is_err() || answer.ends_with(END) {
            return;
        }
    }
}

/// What a script ends with to close the connection.
const END: &[u8] = b"<end>";

fn next(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    loop {
        if let Some(header) = frame::frontend(buffer).unwrap()
            && buffer.len() >= header.size
        {
            let whole: Vec<u8> = buffer.drain(..header.size).collect();
            return Some((header.tag, whole[frame::HEADER..].to_vec()));
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

fn ready() -> Vec<u8> {
    let mut out = Vec::new();
    put_ready(&mut out, Status::Idle);
    out
}

fn database(port: u16) -> String {
    format!(
        "[databases.postgres]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n"
    )
}

/// An error with fields that nobody knows and without a SQLSTATE, and a notice as bare.
fn odd(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    match sql {
        "odd" => {
            put(&mut out, b'N', |out| out.push(0));
            put(&mut out, b'E', |out| {
                out.extend_from_slice(b"Mno code\0yunknown\0zfield\xff\0\0");
            });
        }
        "empty" => put(&mut out, b'E', |out| out.push(0)),
        "unended" => put(&mut out, b'E', |out| out.extend_from_slice(b"SERROR")),
        "nothing" => put(&mut out, b'E', |_| ()),
        _ => put_complete(&mut out, b"FINE"),
    }
    put_ready(&mut out, Status::Idle);
    out
}

#[test]
fn an_error_without_a_code_or_with_unknown_fields_passes_as_it_is() {
    let proxy = Proxy::with("size = 1", &database(server(odd)));
    let mut client = proxy.client();
    for sql in ["odd", "empty", "unended", "nothing"] {
        assert!(client.bytes(&query(sql)) == odd(sql), "{sql}");
        assert_eq!(client.ask(&query("fine")), ["C FINE\\0", "Z I"], "{sql}");
    }
}

/// Replies that nothing asked for, of wrong lengths, or cut.
fn broken(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    match sql {
        "unasked" => put_bare(&mut out, b'1'),
        "type" => out.extend_from_slice(b"!\0\0\0\x04"),
        "length" => out.extend_from_slice(b"C\0\0\0\x03"),
        "negative" => out.extend_from_slice(b"D\xff\xff\xff\xff"),
        "long" => out.extend_from_slice(b"Z\x7f\xff\xff\xff"),
        "status" => put(&mut out, b'Z', |out| out.push(b'?')),
        "twice" => {
            put_complete(&mut out, b"FINE");
            put_ready(&mut out, Status::Idle);
            put_complete(&mut out, b"ANOTHER");
            put_ready(&mut out, Status::Idle);
            return out;
        }
        "cut" => out.extend_from_slice(b"D\0\0\0\x20\0\x01\0\0\0\x16half<end>"),
        _ => {
            put_complete(&mut out, b"FINE");
            put_ready(&mut out, Status::Idle);
        }
    }
    out
}

#[test]
fn a_server_that_breaks_the_protocol_ends_one_session_and_is_not_used_again() {
    let proxy = Proxy::with("size = 1", &database(server(broken)));
    for sql in [
        "unasked", "type", "length", "negative", "long", "status", "cut",
    ] {
        let mut client = proxy.client();
        client.send(&query(sql));
        let mut ends = Vec::new();
        while let Some((tag, body)) = client.frame_or_cut() {
            ends.push(shown(tag, &body));
        }
        let told = ends.iter().filter(|end| end.starts_with("E FATAL")).count();
        assert!(
            told <= 1 && !ends.iter().any(|end| end.starts_with('Z')),
            "{sql}: {ends:?}"
        );
        let mut next = proxy.client();
        assert_eq!(next.ask(&query("fine")), ["C FINE\\0", "Z I"], "{sql}");
    }
    let mut client = proxy.client();
    client.send(&query("twice"));
    assert_eq!(client.answers(1), ["C FINE\\0", "Z I"]);
    drop(client);
    assert_eq!(proxy.client().ask(&query("fine")), ["C FINE\\0", "Z I"]);
}

/// A way to the server that can be cut.
struct Gate {
    port: u16,
    open: Arc<AtomicBool>,
    through: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, through) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let (is_open, streams) = (Arc::clone(&open), Arc::clone(&through));
        thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                if !is_open.load(SeqCst) {
                    continue;
                }
                let far = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    thread::spawn(move || {
                        drop(std::io::copy(&mut from, &mut to));
                        drop(to.shutdown(Shutdown::Write));
                    });
                }
                streams.lock().unwrap().extend([near, far]);
            }
        });
        Self {
            port,
            open,
            through,
        }
    }

    fn cut(&self) {
        self.open.store(false, SeqCst);
        for stream in self.through.lock().unwrap().drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

#[test]
fn an_empty_query_asks_the_server_and_does_not_hide_that_it_is_gone() {
    let gate = Gate::to(postgres().port());
    let proxy = Proxy::with("size = 1\nwait_timeout = \"1s\"", &database(gate.port));
    let empty = [
        query(""),
        query(";"),
        query("-- ping"),
        batch().run("", &[]).sync().0,
    ];
    let mut clients: Vec<Client> = empty.iter().map(|_| proxy.client()).collect();
    for (client, bytes) in clients.iter_mut().zip(&empty) {
        assert!(client.ask(bytes).contains(&"I ".to_owned()));
    }
    gate.cut();
    for (client, bytes) in clients.iter_mut().zip(&empty) {
        client.send(bytes);
        let seen = client.answers(1);
        assert!(seen[0].starts_with("E "), "{seen:?}");
    }
    gate.open.store(true, SeqCst);
    until("the server is back", || {
        let mut client = Client::open(proxy.port);
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
    });
}

#[test]
fn a_connection_cut_in_a_result_is_told_once_and_the_rows_before_are_whole() {
    let gate = Gate::to(postgres().port());
    let proxy = Proxy::with("size = 1", &database(gate.port));
    let mut client = proxy.client();
    client.send(&query(
        "select repeat('x', 5000), pg_sleep(0.001) from generate_series(1, 100000)",
    ));
    client.until("D");
    gate.cut();
    let mut ends = Vec::new();
    let mut rows = 0;
    while let Some((tag, body)) = client.frame_or_cut() {
        if tag == b'D' {
            assert_eq!(body.len(), 2 + 4 + 5000 + 4);
            rows += 1;
        } else {
            ends.push(shown(tag, &body));
        }
    }
    assert!(
        ends.len() <= 1 && ends.iter().all(|end| end.starts_with("E FATAL 08006")),
        "after {rows} rows: {ends:?}"
    );
}

#[test]
fn a_client_is_told_the_settings_of_the_server_that_answers_it() {
    let server = postgres().port();
    let mut admin = Client::connect(server, &[]);
    for (at, zone) in ["Asia/Tokyo", "CET"].iter().enumerate() {
        admin.ask(&query(&format!("create database differing_{at}")));
        admin.ask(&query(&format!(
            "alter database differing_{at} set timezone = '{zone}'"
        )));
        Client::connect_to(server, &format!("differing_{at}"), &[])
            .ask(&query("create table t (id bigint primary key)"));
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/differing_{at}?sslmode=disable\" }}\n"
        )
    };
    let databases = format!(
        "[databases.postgres]\n{}{}[databases.postgres.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 100, shard = \"s0\" }}, {{ shard = \"s1\" }}]\ntables = {{ \"public.t\" = \"id\" }}\n",
        shard(0),
        shard(1)
    );
    let proxy = Proxy::with("size = 1", &databases);
    let mut client = proxy.client();
    let mut told = None;
    for (id, zone) in [
        (1, "Asia/Tokyo"),
        (200, "CET"),
        (2, "Asia/Tokyo"),
        (201, "CET"),
    ] {
        let sql = format!(
            "select current_setting('timezone') from (select count(*) from t where id = {id}) c"
        );
        let seen = client.ask(&query(&sql));
        assert!(seen.contains(&format!("D {zone}")), "{seen:?}");
        let status = format!("S TimeZone\\0{zone}\\0");
        if told != Some(zone) && told.is_some() {
            assert_eq!(seen[0], status, "{seen:?}");
        }
        told = Some(zone);
    }
}
