//! What passes, passes byte by byte: errors with every field, texts of other encodings, results in their order.

use crate::{
    client::{Client, batch, query},
    harness::{Stage, Way},
};

const WAYS: [Way; 3] = [Way::Session, Way::Transaction, Way::Alternating];

/// The bytes that answer each message are PostgreSQL's, in each way.
fn same_bytes(settings: &[(&str, &str)], prepare: &str, messages: &[Vec<u8>]) {
    let play = |way| {
        let mut stage = Stage::open(way, settings);
        stage.query(prepare);
        let play = |bytes: &Vec<u8>| stage.raw_step(bytes);
        messages.iter().map(play).collect::<Vec<_>>()
    };
    let expected = play(Way::Direct);
    for way in WAYS {
        for ((found, expected), message) in play(way).iter().zip(&expected).zip(messages) {
            assert!(
                found == expected,
                "{way:?}, {}:\n{}\nand PostgreSQL's:\n{}",
                message.escape_ascii(),
                found.escape_ascii(),
                expected.escape_ascii()
            );
        }
    }
}

#[test]
fn errors_and_notices_have_every_field_that_postgresql_gave_them() {
    let made = "drop table if exists fielded; create table fielded (id int primary key, n int check (n > 0)); \
                insert into fielded values (1, 1)";
    let mut messages: Vec<Vec<u8>> = [
        "insert into fielded values (1, 1)",
        "insert into fielded values (2, -1)",
        "insert into fielded values (null, 1)",
        "select nothing from fielded",
        "select  1 +",
        "do $$ begin raise exception 'm' using detail = 'd', hint = 'h', errcode = 'SW000', table = 't', column = 'c', \
         constraint = 'k', datatype = 'y', schema = 's'; end $$",
        "do $$ begin raise notice 'm' using detail = 'd', hint = 'h', errcode = '12345'; end $$",
        "drop table if exists nowhere_at_all",
        "select 'x'::int",
        "select 1; select 1/0; select 2",
        "select 1 as \"names \u{e9}\", null, '', 'a' || chr(10)",
    ]
    .iter()
    .map(|sql| query(sql))
    .collect();
    for sql in [
        "insert into fielded values (1, 1)",
        "select nothing",
        "select 1/0",
    ] {
        messages.push(batch().run(sql, &[]).sync().0);
        messages.push(
            batch()
                .parse("s", sql)
                .describe("s")
                .call("s", &[])
                .sync()
                .0,
        );
        messages.push(batch().close("s").sync().0);
    }
    same_bytes(&[], made, &messages);
}

#[test]
fn texts_of_another_encoding_are_never_read_as_utf_8() {
    let latin = |text: &str| -> Vec<u8> {
        text.chars()
            .map(|c| u8::try_from(u32::from(c)).unwrap())
            .collect()
    };
    let simple = |text: &str| {
        let mut out = Vec::new();
        shardway::wire::frontend::put_query(&mut out, &latin(text));
        out
    };
    let parse = |text: &str| {
        let mut out = Vec::new();
        shardway::wire::frontend::put_parse(&mut out, &latin("n\u{e4}me"), &latin(text), b"");
        let mut bind = latin("\0n\u{e4}me\0");
        bind.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0xe9, 0, 0]);
        shardway::wire::frontend::put(&mut out, b'B', |out| out.extend_from_slice(&bind));
        out.extend(batch().execute("", 0).sync().0);
        out
    };
    let messages = [
        simple("select 'caf\u{e9}', length('caf\u{e9}'), 'caf\u{e9}' = U&'caf\\00e9'"),
        simple("select 1 as \"caf\u{e9}\""),
        simple("select \u{e9}t\u{e9}"),
        parse("select $1::text, length($1::text), '\u{fc}'"),
        simple("select 'again \u{e9}'"),
        simple("show client_encoding"),
    ];
    same_bytes(&[("client_encoding", "LATIN1")], "select 1", &messages);
    let ascii = [
        simple("select 'caf\u{e9}'"),
        simple("select 'plain'"),
        simple("show client_encoding"),
    ];
    same_bytes(&[("client_encoding", "SQL_ASCII")], "select 1", &ascii);
}

#[test]
fn a_setting_made_in_another_encoding_follows_the_session_and_nobody_else() {
    let latin = b"set app.caf\xe9 = 'caf\xe9'; set application_name = 'plain'".to_vec();
    let shown = |client: &mut Stage| {
        let sql = b"select current_setting('app.caf\xe9', true), current_setting('app.other', true), current_setting('application_name')";
        let mut out = Vec::new();
        shardway::wire::frontend::put_query(&mut out, sql);
        client.raw_step(&out)
    };
    let play = |way| {
        let mut stage = Stage::open(way, &[("client_encoding", "LATIN1")]);
        let mut out = Vec::new();
        shardway::wire::frontend::put_query(&mut out, &latin);
        let mut seen = vec![stage.raw_step(&out), shown(&mut stage), shown(&mut stage)];
        let mut out = Vec::new();
        shardway::wire::frontend::put_query(&mut out, b"set app.other = 'o\xe9'");
        seen.extend([stage.raw_step(&out), shown(&mut stage), shown(&mut stage)]);
        let port = stage.port;
        let _proxy = stage.end();
        let clean = "select coalesce(current_setting('app.other', true), '')";
        let other = (0..3).map(|_| Client::connect(port, &[]).value(clean));
        seen.extend(other.map(String::into_bytes));
        seen
    };
    let expected = play(Way::Direct);
    for way in WAYS {
        let found = play(way);
        let text = |all: &[Vec<u8>]| -> Vec<String> {
            let all = all.iter();
            all.map(|one| one.escape_ascii().to_string()).collect()
        };
        assert_eq!(text(&found), text(&expected), "{way:?}");
    }
}

#[test]
fn changes_of_settings_are_told_between_the_results_they_stand_between() {
    let messages = [
        query("select 1; set timezone = 'CET'; select now() is null; set datestyle = 'SQL'; select 2; reset datestyle"),
        query("do $$ begin perform set_config('timezone', 'Asia/Tokyo', false); raise notice 'n'; end $$"),
        batch()
            .run("select generate_series(1, 3), set_config('application_name', 'in the middle', true)", &[])
            .run("set application_name = 'after'", &[])
            .run("select 3", &[])
            .sync()
            .0,
        query("begin; set local timezone = 'UTC'; select 4"),
        query("commit"),
        query("select 5"),
    ];
    same_bytes(&[], "select 1", &messages);
}
