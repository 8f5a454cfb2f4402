//! COPY of one shard's rows, in and out: by a keyed query and by an override, in text, CSV and binary, ended by an error
//! of either side. What would need several shards is refused before a byte is taken.

use crate::{
    harness::{assert_same, block_on, home_of, shop},
    raw::{Raw, Reply},
};
use shardway::{sandbox::shop as names, wire::frontend};
use std::{fmt::Write as _, fs, process::Command};

/// Ids from there on whose customers live on this shard.
fn ids(shard: usize, first: i64, count: usize) -> Vec<i64> {
    let settings = &shop().settings;
    (first..)
        .filter(|id| home_of(settings, *id) == shard)
        .take(count)
        .collect()
}

fn tags(replies: &[Reply]) -> String {
    replies.iter().map(|reply| char::from(reply.tag)).collect()
}

fn data(raw: &mut Raw, text: &str) {
    let mut out = Vec::new();
    for piece in text.as_bytes().chunks(1000) {
        frontend::put(&mut out, b'd', |out| out.extend_from_slice(piece));
    }
    raw.send(&out);
}

fn bare(raw: &mut Raw, tag: u8) {
    let mut out = Vec::new();
    frontend::put_bare(&mut out, tag);
    raw.send(&out);
}

#[test]
fn rows_copied_in_by_an_override_are_on_that_shard_and_found_by_their_keys() {
    let ids = ids(1, 6_000_000, 3000);
    let mut text = String::new();
    for id in &ids {
        writeln!(text, "{id}\tname {id}\te\t\\N").unwrap();
    }
    let mut raw = Raw::login(&shop().proxied());
    raw.query("/* shardway: shard=s1 */ COPY customers FROM STDIN");
    assert_eq!(raw.reply().unwrap().tag, b'G');
    data(&mut raw, &text);
    bare(&mut raw, b'c');
    let replies = raw.until(b'Z');
    assert_eq!(tags(&replies), "CZ", "{:?}", replies[0].error());
    assert_eq!(replies[0].body, b"COPY 3000\0");
    for id in [ids[0], ids[1500], ids[2999]] {
        raw.query(&format!("SELECT name FROM customers WHERE id = {id}"));
        assert_eq!(tags(&raw.until(b'Z')), "TDCZ");
    }
    let end = "DELETE FROM customers WHERE id BETWEEN 6000000 AND 6099999 RETURNING id";
    for (at, shard) in shop().shards().iter().enumerate() {
        let rows = block_on(shard.query(names::DATABASE, end)).unwrap();
        assert_eq!(rows.len(), if at == 1 { 3000 } else { 0 });
    }
}

#[test]
fn a_copy_that_fails_takes_nothing_in_and_the_session_goes_on() {
    let id = ids(2, 6_100_000, 1)[0];
    for target in shop().both() {
        let mut raw = Raw::login(&target);
        let copy = "/* shardway: shard=s2 */ COPY customers FROM STDIN";
        // The client gives up; the server finds a row that it cannot read.
        for (sent, end, code) in [
            (format!("{id}\tn\te\t\\N\n"), b'f', "57014"),
            (
                format!("{id}\tn\te\t\\N\nno number\tn\te\t\\N\n"),
                b'c',
                "22P02",
            ),
        ] {
            raw.query(copy);
            assert_eq!(raw.reply().unwrap().tag, b'G', "{}", target.name);
            data(&mut raw, &sent);
            let mut out = Vec::new();
            frontend::put(&mut out, end, |out| {
                if end == b'f' {
                    out.extend_from_slice(b"enough\0");
                }
            });
            raw.send(&out);
            let replies = raw.until(b'Z');
            assert_eq!(
                replies[0].error(),
                Some(("ERROR".to_owned(), code.to_owned())),
                "{}",
                target.name
            );
            raw.query(&format!("SELECT name FROM customers WHERE id = {id}"));
            assert_eq!(tags(&raw.until(b'Z')), "TCZ", "{}", target.name);
        }
    }
}

#[test]
fn a_copy_that_needs_several_shards_is_refused_before_it_begins() {
    let mut raw = Raw::login(&shop().proxied());
    for sql in [
        "COPY customers (name) FROM STDIN",
        "COPY customers (name) FROM STDIN (FORMAT csv)",
    ] {
        raw.query(sql);
        let replies = raw.until(b'Z');
        assert_eq!(tags(&replies), "EZ", "{sql}");
        assert_eq!(replies[0].error().unwrap().1, "0A000", "{sql}");
        assert!(replies[0].field(b'H').is_some(), "{sql}");
    }
}

#[test]
fn an_override_copies_out_the_rows_of_its_shard() {
    let shop = shop();
    for (at, shard) in shop.shards().iter().enumerate() {
        let mut raw = Raw::login(&shop.proxied());
        let range = "customers WHERE id <= 1000";
        raw.query(&format!(
            "/* shardway: shard=s{at} */ COPY (SELECT id FROM {range} ORDER BY id) TO STDOUT"
        ));
        let replies = raw.until(b'Z');
        let copied: Vec<String> = replies
            .iter()
            .filter(|reply| reply.tag == b'd')
            .map(|reply| String::from_utf8_lossy(&reply.body).trim().to_owned())
            .collect();
        let sql = format!("SELECT id FROM {range} ORDER BY id");
        let rows = block_on(shard.query(names::DATABASE, &sql)).unwrap();
        let held: Vec<String> = rows
            .into_iter()
            .map(|row| row[0].clone().unwrap())
            .collect();
        assert_eq!(copied, held, "shard {at}");
    }
}

#[test]
fn psql_copies_a_file_in_and_rows_out() {
    let ids = ids(0, 6_200_000, 50);
    let file = shop().dir().join("customers.csv");
    let mut text = String::new();
    for id in &ids {
        writeln!(text, "{id},\"name, {id}\",e,de").unwrap();
    }
    fs::write(&file, text).unwrap();
    let [direct, proxied] = shop().both().map(|target| {
        let mut psql = Command::new("psql");
        target.apply(&mut psql);
        // To PostgreSQL this is a setting that nobody reads.
        psql.args(["-X", "-c", "SET shardway.shard = 's0'"]);
        psql.args(["-c", &format!("\\copy customers FROM '{}' (FORMAT csv)", file.display())]);
        psql.args(["-c", "\\copy (SELECT * FROM customers WHERE id BETWEEN 6200000 AND 6299999 ORDER BY id) TO STDOUT"]);
        psql.args(["-c", "DELETE FROM customers WHERE id BETWEEN 6200000 AND 6299999"]);
        psql.args(["-c", "RESET shardway.shard"]);
        psql.args(["-c", "\\copy (SELECT * FROM orders WHERE customer_id = 42) TO STDOUT (FORMAT binary)"]);
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    assert!(
        direct.contains("COPY 50") && direct.contains("DELETE 50"),
        "{direct}"
    );
    assert_same(&direct, &proxied);
}
