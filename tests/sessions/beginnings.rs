//! Before the first statement: requests for encryption, versions, keys, long and hostile startup packets.

use crate::{
    client::{Client, query, shown},
    harness::{Proxy, Stage, Way, postgres, until},
};
use shardway::wire::startup;

const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

fn packet(minor: u16, pairs: &[(&str, &str)]) -> Vec<u8> {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    let mut out = Vec::new();
    startup::put_message(&mut out, minor, &pairs);
    out
}

/// Everything up to ReadyForQuery or the end.
fn login(client: &mut Client) -> Vec<(u8, Vec<u8>)> {
    let mut seen = Vec::new();
    while let Some((tag, body)) = client.frame() {
        seen.push((tag, body));
        if tag == b'Z' {
            break;
        }
    }
    seen
}

/// Their first: what was answered to a login, without what is each server's own.
fn outcome(frames: &[(u8, Vec<u8>)]) -> Vec<String> {
    frames
        .iter()
        .filter(|(tag, _)| !matches!(tag, b'S' | b'K'))
        .map(|(tag, body)| shown(*tag, body))
        .collect()
}

#[test]
fn encryption_may_be_asked_for_in_any_order_and_refused_before_login() {
    let proxy = Proxy::start("size = 1");
    let enter = packet(0, &[("user", "postgres"), ("database", "postgres")]);
    let mut direct = Client::open(postgres().port());
    direct.send(&enter);
    let expected = outcome(&login(&mut direct));
    for requests in [&[][..], &[SSL], &[GSS], &[SSL, GSS], &[GSS, SSL]] {
        let mut client = Client::open(proxy.port);
        for request in requests {
            client.send(request);
            assert_eq!(client.byte(), Some(b'N'), "{requests:?}");
        }
        client.send(&enter);
        assert_eq!(outcome(&login(&mut client)), expected, "{requests:?}");
    }
    for twice in [SSL, GSS] {
        let mut client = Client::open(proxy.port);
        client.send(&twice);
        assert_eq!(client.byte(), Some(b'N'));
        client.send(&twice);
        assert!(client.closes_without(b'N'));
    }
}

#[test]
fn what_is_stuffed_behind_a_request_for_encryption_is_not_obeyed() {
    let proxy = Proxy::start("size = 1");
    for request in [SSL, GSS] {
        let mut client = Client::open(proxy.port);
        let login = packet(0, &[("user", "postgres"), ("database", "postgres")]);
        client.send(&[&request[..], &login].concat());
        assert!(client.closes_without(b'R'));
    }
    assert_eq!(proxy.client().value("select 1"), "1");
}

#[test]
fn versions_and_options_of_the_future_are_negotiated_once() {
    let proxy = Proxy::start("size = 1");
    let pairs = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("_pq_.test_protocol_negotiation", "1"),
    ];
    for (minor, key) in [(0, 4), (2, 32), (9999, 32)] {
        let mut client = Client::open(proxy.port);
        client.send(&packet(minor, &pairs));
        let frames = login(&mut client);
        let negotiated: Vec<_> = frames.iter().filter(|(tag, _)| *tag == b'v').collect();
        assert_eq!(negotiated.len(), 1, "3.{minor}");
        assert!(String::from_utf8_lossy(&negotiated[0].1).contains("test_protocol_negotiation"));
        let (_, body) = frames.iter().find(|(tag, _)| *tag == b'K').unwrap();
        assert_eq!(body.len() - 4, key, "3.{minor}");
        assert_eq!(frames.last().unwrap().0, b'Z');
    }
}

#[test]
fn a_cancel_needs_the_whole_key() {
    let proxy = Proxy::start("size = 1");
    let mut client = Client::open(proxy.port);
    client.send(&packet(
        2,
        &[("user", "postgres"), ("database", "postgres")],
    ));
    let frames = login(&mut client);
    let (_, body) = frames.iter().find(|(tag, _)| *tag == b'K').unwrap();
    let (pid, key) = (
        u32::from_be_bytes(body[..4].try_into().unwrap()),
        body[4..].to_vec(),
    );
    let mut other = key.clone();
    other[31] ^= 1;
    client.send(&query("select 'whole key', pg_sleep(100)"));
    let mut observer = crate::harness::observer();
    until("the query runs", || {
        observer.value("select count(*) from pg_stat_activity where query like '%whole key%' and state = 'active' and pid <> pg_backend_pid()") == "1"
    });
    for wrong in [&key[..4], &key[..31], &other, &[&key[..], b"x"].concat()] {
        cancel(proxy.port, pid, wrong);
    }
    cancel(proxy.port, pid.wrapping_add(1), &key);
    assert!(!client.has_answer());
    cancel(proxy.port, pid, &key);
    let seen = client.answers(1);
    assert!(
        seen.iter().any(|line| line.starts_with("E ERROR 57014")),
        "{seen:?}"
    );
}

/// Sends a cancel request and waits until it was taken.
fn cancel(port: u16, pid: u32, key: &[u8]) {
    let mut bytes = Vec::new();
    startup::put_cancel_request(&mut bytes, pid, key);
    let mut client = Client::open(port);
    client.send(&bytes);
    assert!(client.frame().is_none());
}

#[test]
fn long_options_and_names_are_read_whole() {
    let long = "x".repeat(4000);
    let options = format!("-c app.long={long} -c work_mem=3MB --app.dashed-not=1");
    let options = options.replace(" --app.dashed-not=1", " --app.second=a\\ b=c\\\\d");
    let settings = [("options", options.as_str()), ("application_name", "long")];
    let shown = "select length(current_setting('app.long')), current_setting('work_mem'), \
                 current_setting('app.second'), current_setting('application_name')";
    let ways = [
        Way::Direct,
        Way::Session,
        Way::Transaction,
        Way::Alternating,
    ];
    for way in ways {
        let mut stage = Stage::open(way, &settings);
        for _ in 0..3 {
            let seen = stage.query(shown);
            assert_eq!(seen[1], "D 4000|3MB|a b=c\\d|long", "{way:?}");
        }
    }
}

#[test]
fn a_startup_packet_that_is_too_long_ends_that_connection_only() {
    let proxy = Proxy::start("size = 1");
    for port in [postgres().port(), proxy.port] {
        let name = "d".repeat(9000);
        let mut client = Client::open(port);
        client.send(&packet(0, &[("user", "postgres"), ("database", &name)]));
        let seen = outcome(&login(&mut client));
        assert!(
            seen.iter().any(|line| line.starts_with("E FATAL 3D000")),
            "{seen:?}"
        );
        let name = "d".repeat(10_000);
        let mut client = Client::open(port);
        client.send(&packet(0, &[("user", "postgres"), ("database", &name)]));
        assert!(client.closes_without(b'R'));
        assert_eq!(Client::connect(port, &[]).value("select 1"), "1");
    }
}

#[test]
fn a_hostile_name_of_the_application_stays_a_name() {
    let hostile = "'; create table hostile (); --\\";
    for settings in [
        vec![("application_name", hostile)],
        vec![(
            "options",
            "-c application_name=';create\\ table\\ hostile\\ ();--",
        )],
    ] {
        let expected = Client::connect(postgres().port(), &settings)
            .value("select current_setting('application_name')");
        for way in [Way::Session, Way::Transaction, Way::Alternating] {
            let mut stage = Stage::open(way, &settings);
            for _ in 0..3 {
                let seen = stage
                    .query("select current_setting('application_name'), to_regclass('hostile')");
                assert_eq!(seen[1], format!("D {expected}|NULL"), "{way:?}");
            }
        }
    }
}
