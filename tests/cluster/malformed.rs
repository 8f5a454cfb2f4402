//! What no honest client sends ends that connection alone, as PostgreSQL ends it: an error with the same SQLSTATE or
//! a plain close, never a hang, and nobody else notices.

use crate::{
    harness::{Target, block_on, shop},
    raw::{Raw, packet, startup},
};
use shardway::{
    sandbox::shop as names,
    wire::{backend::Status, frontend},
};
use tokio_postgres::NoTls;

/// Somebody else's connection works.
fn assert_serves(target: &Target) {
    block_on(async {
        let (client, connection) = target.config().connect(NoTls).await.unwrap();
        let work = async {
            let row = client
                .query_one("SELECT name FROM customers WHERE id = 5", &[])
                .await
                .unwrap();
            assert_eq!(row.get::<_, &str>(0), "Fatima Perez");
            drop(client);
        };
        let (ended, ()) = tokio::join!(connection, work);
        ended.unwrap();
    });
}

/// Sends bytes at the very beginning; both targets must end alike.
fn check_beginning(what: &str, bytes: &[u8]) {
    let [direct, proxied] = shop().both().map(|target| {
        let mut raw = Raw::connect(&target);
        raw.send(bytes);
        let end = raw.rest();
        assert_serves(&target);
        end
    });
    assert_eq!(direct, proxied, "{what}: PostgreSQL's end is on the left");
}

/// Sends bytes after login; both targets must end alike.
fn check_session(what: &str, bytes: &[u8]) {
    let [direct, proxied] = shop().both().map(|target| {
        let mut raw = Raw::login(&target);
        raw.send(bytes);
        let end = raw.rest();
        assert_serves(&target);
        end
    });
    assert_eq!(direct, proxied, "{what}: PostgreSQL's end is on the left");
}

#[test]
fn startup_packets_of_wrong_length_or_content_end_the_connection() {
    check_beginning("length zero", &[0, 0, 0, 0]);
    check_beginning("length below its own size", &[0, 0, 0, 3]);
    check_beginning("negative length", &[0xff, 0xff, 0xff, 0xff]);
    check_beginning("length beyond the limit", &[0, 1, 0, 0]);
    check_beginning(
        "unknown version",
        &startup(4 << 16, &[("user", names::USER)]),
    );
    check_beginning(
        "no user",
        &startup(3 << 16, &[("database", names::DATABASE)]),
    );
    check_beginning("no end of the list", &packet(b"\0\x03\0\0user\0app"));
}

#[test]
fn bytes_after_an_encryption_request_are_not_taken_for_encrypted_ones() {
    let request = packet(&80_877_103_u32.to_be_bytes());
    for target in shop().both() {
        let mut raw = Raw::connect(&target);
        raw.send(&request);
        assert_eq!(raw.byte(), Some(b'N'), "{}", target.name);
        raw.send(&startup(
            3 << 16,
            &[("user", names::USER), ("database", names::DATABASE)],
        ));
        assert_eq!(raw.reply().unwrap().tag, b'R', "{}", target.name);
    }
}

#[test]
fn a_cancel_for_nobody_is_closed_without_a_word() {
    let mut body = 80_877_102_u32.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
    check_beginning("cancel", &packet(&body));
}

#[test]
fn frames_of_wrong_type_or_length_end_the_session() {
    check_session("unknown type", b"?\0\0\0\x04");
    check_session("password out of place", b"p\0\0\0\x08abc\0");
    for (what, bytes) in [
        ("length below its own size", b"Q\0\0\0\x03"),
        ("negative length", b"Q\xff\xff\xff\xff"),
        ("small message too long", b"S\0\xff\xff\xff"),
    ] {
        // PostgreSQL writes these into its own log and closes without a word; Shardway says why.
        for target in shop().both() {
            let mut raw = Raw::login(&target);
            raw.send(bytes);
            let said = raw.rest().1;
            let expected =
                (target.name == "proxied").then(|| ("FATAL".to_owned(), "08P01".to_owned()));
            assert_eq!(said, expected, "{what}: {}", target.name);
            assert_serves(&target);
        }
    }
}

/// Sends a message whose frame is right and whose body is not; the session goes on after the error.
fn check_body(what: &str, tag: u8, body: &[u8]) {
    let [direct, proxied] = shop().both().map(|target| {
        let mut raw = Raw::login(&target);
        let mut out = Vec::new();
        if tag == b'B' {
            frontend::put_parse(&mut out, b"", b"SELECT 1", &[]);
        }
        frontend::put(&mut out, tag, |out| out.extend_from_slice(body));
        if tag != b'Q' {
            frontend::put_bare(&mut out, b'S');
        }
        raw.send(&out);
        let replies = raw.until(b'Z');
        let seen: Vec<_> = replies
            .iter()
            .map(|reply| (char::from(reply.tag), reply.error()))
            .collect();
        raw.query("SELECT id FROM customers WHERE id = 3");
        assert_eq!(raw.until(b'Z').len(), 4, "{what}");
        seen
    });
    assert_eq!(
        direct, proxied,
        "{what}: PostgreSQL's answer is on the left"
    );
}

#[test]
fn messages_with_a_broken_body_are_refused_and_the_session_goes_on() {
    check_body("query without its end", b'Q', b"SELECT 1");
    check_body("query with more after its end", b'Q', b"SELECT 1\0x");
    check_body("parse with too many types", b'P', b"\0SELECT 1\0\0\x09");
    check_body("bind with too many values", b'B', b"\0\0\0\0\0\x09\0\0");
    check_body(
        "bind of an unknown statement",
        b'B',
        b"\0nobody\0\0\0\0\0\0\0",
    );
    check_body("describe of neither", b'D', b"X\0");
    check_body("execute of an unknown portal", b'E', b"nobody\0\0\0\0\0");
}

#[test]
fn after_an_error_everything_up_to_sync_is_skipped() {
    let [direct, proxied] = shop().both().map(|target| {
        let mut raw = Raw::login(&target);
        let mut out = Vec::new();
        for text in [
            "SELECT nothing FROM customers WHERE id = 1",
            "SELECT id FROM customers WHERE id = 1",
        ] {
            frontend::put_parse(&mut out, b"", text.as_bytes(), &[]);
            frontend::put_bind(&mut out, b"", b"", &[0; 6]);
            frontend::put(&mut out, b'E', |out| out.extend_from_slice(&[0; 5]));
        }
        // A simple query in the skipped part gets no answer of its own.
        frontend::put_query(&mut out, b"SELECT 1");
        frontend::put_bare(&mut out, b'S');
        raw.send(&out);
        let skipped: String = raw
            .until(b'Z')
            .iter()
            .map(|reply| char::from(reply.tag))
            .collect();
        raw.query("BEGIN; SELECT id FROM customers WHERE id = 1");
        let status = Status::decode(&raw.until(b'Z').last().unwrap().body);
        (skipped, status)
    });
    assert_eq!(direct, proxied);
    assert_eq!(direct, ("EZ".to_owned(), Ok(Status::Transaction)));
}

#[test]
fn a_client_that_leaves_in_the_middle_harms_nobody() {
    for target in shop().both() {
        for text in [
            "SELECT repeat('x', 1000000) FROM order_items WHERE customer_id = 7",
            "BEGIN; SELECT id FROM customers WHERE id = 7 FOR UPDATE",
        ] {
            let mut raw = Raw::login(&target);
            raw.query(text);
            assert!(raw.reply().is_some());
            drop(raw);
            assert_serves(&target);
        }
        // The lock of the one who left is gone.
        let mut raw = Raw::login(&target);
        raw.query("SELECT id FROM customers WHERE id = 7 FOR UPDATE");
        assert_eq!(
            raw.until(b'Z').iter().find_map(super::raw::Reply::error),
            None
        );
    }
}
