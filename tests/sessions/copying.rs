//! COPY FROM STDIN into tables whose rows are on three shards: every row is on the shard of its key, once, and what the
//! client is told is what one PostgreSQL with all rows would say. A COPY that fails anywhere leaves nothing anywhere.

use crate::{
    client::{Client, batch, query, shown},
    harness::{Proxy, postgres, until},
};
use shardway::wire::frontend::{put, put_bare};
use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// The key is not the first column, and the columns before it are not numbered as they stand.
const TABLES: &str = "create table t (gone int, n int check (n < 1000000), id bigint primary key, note text default 'none', \
     twice int generated always as (n * 2) stored, more text); alter table t drop column gone; \
     create table colours (code text primary key, name text, made timestamptz default clock_timestamp())";

/// A whole database and one of three shards: ids up to 99, to 199 and above.
struct Stand {
    name: String,
    server: u16,
    clients: (Client, Client),
    shards: Vec<Client>,
    proxy: Proxy,
}

fn stand(name: &str) -> Stand {
    let server = postgres().port();
    let mut whole = Client::connect(server, &[]);
    let mut shards = Vec::new();
    for at in 0..4 {
        whole.ask(&query(&format!("create database {name}_{at}")));
        let mut shard = Client::connect_to(server, &format!("{name}_{at}"), &[]);
        shard.ask(&query(TABLES));
        shards.push(shard);
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/{name}_{at}?sslmode=disable\" }}\n"
        )
    };
    let databases = format!(
        "[databases.postgres]\ncontrol = {{ user = \"postgres\" }}\n{}{}{}[databases.postgres.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 100, shard = \"s0\" }}, {{ to = 200, shard = \"s1\" }}, {{ shard = \"s2\" }}]\n\
         tables = {{ \"public.t\" = \"id\" }}\n[databases.postgres.tables]\nreference = [\"public.colours\"]\n",
        shard(0),
        shard(1),
        shard(2)
    );
    let proxy = Proxy::with("size = 4", &databases);
    let whole = Client::connect_to(server, &format!("{name}_3"), &[]);
    let sharded = proxy.client();
    shards.truncate(3);
    let mut stand = Stand {
        name: name.to_owned(),
        server,
        clients: (whole, sharded),
        shards,
        proxy,
    };
    until("two-phase commit is ready", || {
        stand
            .clients
            .1
            .ask(&query("insert into t (id) values (1), (101)"))[0]
            == "C INSERT 0 2\\0"
    });
    stand.clients.1.ask(&query("delete from t"));
    stand
}

/// What COPY answers up to its data, and whether it takes any.
fn opens(client: &mut Client, bytes: &[u8]) -> (Vec<String>, bool) {
    client.send(bytes);
    let mut said = Vec::new();
    loop {
        let (tag, body) = client.frame().unwrap();
        said.push(shown(tag, &body));
        match tag {
            b'G' => return (said, true),
            b'Z' => return (said, false),
            _ => {}
        }
    }
}

/// CopyData in messages of so many bytes.
fn data(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in bytes.chunks(size) {
        put(&mut out, b'd', |out| out.extend_from_slice(piece));
    }
    out
}

/// A whole COPY in the simple protocol.
fn copy(client: &mut Client, sql: &str, bytes: &[u8], size: usize) -> Vec<String> {
    let (mut said, takes) = opens(client, &query(sql));
    if takes {
        let mut out = data(bytes, size);
        put_bare(&mut out, b'c');
        client.send(&out);
        said.extend(client.answers(1));
    }
    said
}

/// A whole COPY in the extended protocol, with a Sync that PostgreSQL ignores because the COPY has begun.
fn copy_extended(client: &mut Client, sql: &str, bytes: &[u8], size: usize) -> Vec<String> {
    let begin = batch()
        .parse("", sql)
        .bind("", "", &[])
        .describe_portal("")
        .execute("", 0)
        .sync();
    let (mut said, takes) = opens(client, &begin.0);
    if takes {
        let mut out = data(bytes, size);
        put_bare(&mut out, b'c');
        put_bare(&mut out, b'S');
        client.send(&out);
        said.extend(client.answers(1));
    }
    said
}

impl Stand {
    /// Both answer alike, in both protocols and however the data is cut.
    fn alike(&mut self, sql: &str, bytes: &[u8]) -> Vec<String> {
        let mut last = Vec::new();
        for (way, size) in [
            (
                copy as fn(&mut Client, &str, &[u8], usize) -> Vec<String>,
                7,
            ),
            (copy_extended, 1),
            (copy, 1 << 13),
        ] {
            self.both("delete from t");
            let (whole, sharded) = &mut self.clients;
            let expected = way(whole, sql, bytes, size);
            last = way(sharded, sql, bytes, size);
            assert_eq!(last, expected, "PostgreSQL's is on the right, to {sql}");
            self.same_rows();
        }
        last
    }

    fn both(&mut self, sql: &str) {
        let (whole, sharded) = &mut self.clients;
        // Tables have other numbers elsewhere.
        let ask = |client: &mut Client| {
            let said = client.ask(&query(sql)).into_iter();
            said.filter(|line| !line.starts_with('T'))
                .collect::<Vec<_>>()
        };
        let expected = ask(whole);
        assert_eq!(ask(sharded), expected, "{sql}");
    }

    /// The shards have the rows of one PostgreSQL, each where its key belongs and once.
    fn same_rows(&mut self) {
        for (at, (from, to)) in [(i64::MIN, 99), (100, 199), (200, i64::MAX)]
            .into_iter()
            .enumerate()
        {
            let rows = |filter: &str| {
                format!(
                    "select count(*) || ' ' || coalesce(md5(string_agg(t::text, '!' order by id)), '') from t{filter}"
                )
            };
            let own = rows(&format!(" where id between {from} and {to}"));
            let expected = self.clients.0.value(&own);
            assert_eq!(self.shards[at].value(&rows("")), expected, "shard {at}");
        }
    }

    fn counts(&mut self) -> Vec<String> {
        let shards = self.shards.iter_mut();
        shards
            .map(|shard| shard.value("select count(*) from t"))
            .collect()
    }

    /// Nothing is prepared, and nobody is in a transaction.
    fn at_rest(&mut self) {
        let name = &self.name;
        let open = format!(
            "select (select count(*) from pg_prepared_xacts where database like '{name}%') + \
             (select count(*) from pg_stat_activity where datname like '{name}%' and xact_start is not null \
              and pid <> pg_backend_pid())"
        );
        let shard = &mut self.shards[0];
        until("every transaction has ended", || shard.value(&open) == "0");
    }
}

/// Ids that go round the shards.
fn id(row: usize) -> i64 {
    let row = i64::try_from(row).unwrap();
    match row % 3 {
        0 => -(row / 3),
        1 if row / 3 < 100 => 100 + row / 3,
        _ => 1000 + row,
    }
}

fn lines(rows: usize) -> String {
    let mut text = String::new();
    for row in 0..rows {
        writeln!(text, "{}\t{}\tnote \\t{row}\t\\N", row % 1000, id(row)).unwrap();
    }
    text
}

#[test]
fn rows_in_text_are_on_the_shard_of_their_key_once() {
    let mut stand = stand("copying_text");
    let found = stand.alike("copy t from stdin", lines(100).as_bytes());
    assert!(found.contains(&"C COPY 100\\0".to_owned()), "{found:?}");
    let counts = stand.counts();
    assert!(counts.iter().all(|count| count != "0"), "{counts:?}");
    for (sql, text) in [
        ("copy t (id) from stdin", "1\n101\n201\n\\.\n5\n"),
        (
            "copy t (note, id, n) from stdin",
            "a\\\nb\t1\t1\nc\\\\\t101\t\\N\n\\x41\t\\x32\\60\\61\t5",
        ),
        (
            "copy t (id, n, note) from stdin (delimiter '|', null 'nix')",
            "1|2|nix\n101|nix|\n999|3|a\\|b\n",
        ),
        (
            "copy t (n, id) from stdin with delimiter ','",
            "1,1\r\n2,150\r\n3,300\r\n",
        ),
        (
            "copy public.t (id, n) from stdin (header)",
            "id\tn\n1\t1\n201\t2\n",
        ),
        (
            "copy t (id, n) from stdin (header match)",
            "id\tn\n1\t1\n201\t2\n",
        ),
        (
            "copy t (id, n) from stdin (header match)",
            "n\tid\n1\t1\n201\t2\n",
        ),
        (
            "copy t (id, n) from stdin where n > 1",
            "1\t1\n2\t2\n101\t1\n102\t2\n",
        ),
        ("copy t from stdin", ""),
    ] {
        stand.alike(sql, text.as_bytes());
    }
    stand.at_rest();
}

/// Item of the wrong answers of other proxies: HEADER false, QUOTE and ESCAPE ignored.
#[test]
fn every_option_of_csv_means_what_it_means_to_postgresql() {
    let mut stand = stand("copying_csv");
    for (options, text) in [
        (
            "format csv",
            "1,1,\"a,\"\"b\"\"\nc\",\n2,101,,\"\"\n3,201,x,y\n",
        ),
        (
            "format csv, header false",
            "1,1,a,b\n2,101,a,b\n3,201,a,b\n",
        ),
        ("format csv, header", "201,n,id,note\n1,1,a,b\n2,101,a,b\n"),
        (
            "format csv, header, quote ''''",
            "n,id,'no\nte',more\n1,'1',a,'b,'\n2,101,'it''s\n201',\"\n",
        ),
        (
            "format csv, quote '!', escape '\\'",
            "1,1,!a\\!\n101,!,b\n2,!201!,!\\\\!,b\n",
        ),
        (
            "format csv, delimiter ';', null 'nix'",
            "1;1;nix;\"nix\"\n2;\"101\";,;b\n",
        ),
        ("format csv, null '1'", "2,101,1,\"1\"\n1,201,,\n"),
        (
            "format csv, force_null (note, id)",
            "1,\"1\",\"\",\"\"\n2,101,\"\",b\n",
        ),
        ("format csv, force_not_null (note, id)", "1,1,,\n2,101,,b\n"),
        (
            "format csv, force_null (note), force_not_null (note, more)",
            "1,1,\"\",\n2,101,,b\n",
        ),
        ("format csv, encoding 'utf8'", "1,1,ä,€\r\n2,101,ö,ü\r\n"),
    ] {
        let sql = format!("copy t from stdin ({options})");
        let found = stand.alike(&sql, text.as_bytes());
        assert!(
            found.iter().any(|line| line.starts_with("C COPY ")),
            "{sql}: {found:?}"
        );
    }
    stand.alike(
        "copy t from stdin csv header quote '|'",
        b"a,b\n1,|101|,|\n|,\n2,2,,\n",
    );
    stand.at_rest();
}

#[test]
fn rows_in_binary_are_on_the_shard_of_their_key_once() {
    let mut stand = stand("copying_binary");
    let rows = |rows: &[(Option<i32>, i64, &str)]| {
        let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for (n, id, note) in rows {
            out.extend(3_i16.to_be_bytes());
            match n {
                Some(n) => {
                    out.extend(4_i32.to_be_bytes());
                    out.extend(n.to_be_bytes());
                }
                None => out.extend((-1_i32).to_be_bytes()),
            }
            out.extend(8_i32.to_be_bytes());
            out.extend(id.to_be_bytes());
            out.extend(i32::try_from(note.len()).unwrap().to_be_bytes());
            out.extend(note.as_bytes());
        }
        out.extend((-1_i16).to_be_bytes());
        out
    };
    let sql = "copy t (n, id, note) from stdin (format binary)";
    let all = [
        (Some(1), -5, "a"),
        (None, 101, "bb\n"),
        (Some(3), 7000, ""),
        (Some(4), 3, "PGCOPY"),
    ];
    for count in [4, 1, 0] {
        let found = stand.alike(sql, &rows(&all[..count]));
        assert!(found.contains(&format!("C COPY {count}\\0")), "{found:?}");
    }
    stand.alike("copy t from stdin binary", &rows(&[]));
    let mut wrong = rows(&all);
    wrong.truncate(19 + 27);
    wrong.extend(b"xxxxxxxxxxxxxxxxxxxxxx");
    let said = copy(&mut stand.clients.1, sql, &wrong, 11);
    assert!(said[1].starts_with("E ERROR 22P04"), "{said:?}");
    stand.both("delete from t");
    stand.same_rows();
    stand.at_rest();
}

/// Item of the wrong answers of other proxies: COPY without a column list written to all shards.
#[test]
fn two_hundred_thousand_rows_without_a_column_list_are_each_on_one_shard() {
    let mut stand = stand("copying_many");
    let text = lines(200_000);
    for size in [8192, 61] {
        stand.both("delete from t");
        let (whole, sharded) = &mut stand.clients;
        copy(whole, "copy t from stdin", text.as_bytes(), 1 << 16);
        let said = copy(sharded, "copy t from stdin", text.as_bytes(), size);
        assert_eq!(said[1..], ["C COPY 200000\\0", "Z I"]);
        stand.same_rows();
    }
    let counts = stand.counts();
    assert_eq!(counts, ["66667", "100", "133233"]);
}

#[test]
fn an_error_anywhere_leaves_nothing_anywhere() {
    let mut stand = stand("copying_errors");
    let good = lines(3000);
    let more = lines(4000).split_off(good.len());
    for (bad, code) in [
        ("1\t0\tagain\t\\N\n", "23505"),
        ("1\t1000\tx\t\\N\n1\t1000\tagain\t\\N\n", "23505"),
        ("1000000\t999\tx\t\\N\n", "23514"),
        ("x\t999\tx\t\\N\n", "22P02"),
        ("1\tx\tx\t\\N\n", "22P02"),
        ("1\t999\tx\n", "22P04"),
        ("1\n", "22P04"),
        ("1\t999\tx\t\\N\tmore\n", "22P04"),
        ("1\t\\N\tx\t\\N\n", "23502"),
        ("1\t9\tx\t\\N\r\n", "22P04"),
        ("1\t9\tx\0\t\\N\n", "22021"),
    ] {
        for (text, way) in [
            (
                format!("{good}{bad}"),
                copy as fn(&mut Client, &str, &[u8], usize) -> Vec<String>,
            ),
            (format!("{bad}{good}"), copy),
            (format!("{good}{bad}{more}"), copy_extended),
        ] {
            let (whole, sharded) = &mut stand.clients;
            let expected = way(whole, "copy t from stdin", text.as_bytes(), 1000);
            let found = way(sharded, "copy t from stdin", text.as_bytes(), 1000);
            let codes = |lines: &[String]| {
                let of = |line: &String| line.chars().take(13).collect::<String>();
                lines.iter().map(of).collect::<Vec<_>>()
            };
            assert_eq!(codes(&found), codes(&expected), "{bad:?}: {found:?}");
            let error = format!("E ERROR {code}");
            assert!(
                found.iter().any(|line| line.starts_with(&error)),
                "{bad:?}: {found:?}"
            );
            assert_eq!(stand.counts(), ["0", "0", "0"]);
            stand.both("select 1");
        }
    }
    stand.at_rest();
}

#[test]
fn an_error_before_the_data_is_postgresqls_own() {
    let mut stand = stand("copying_refused");
    stand.alike("copy t (id, missing) from stdin", b"");
    stand.alike("copy t (id, id) from stdin", b"");
    stand.alike("copy t (id, twice) from stdin", b"");
    // Without the key there is no place for a row.
    let said = copy(&mut stand.clients.1, "copy t (n) from stdin", b"1\n", 10);
    assert!(said[0].starts_with("E ERROR 0A000"), "{said:?}");
    stand.at_rest();
}

#[test]
fn a_copy_is_part_of_its_transaction() {
    let mut stand = stand("copying_transaction");
    let text = lines(60);
    for end in ["rollback", "commit"] {
        stand.both("begin");
        stand.both("insert into t (id, n) values (150000, 1)");
        let (whole, sharded) = &mut stand.clients;
        for client in [whole, sharded] {
            let said = copy(client, "copy t from stdin", text.as_bytes(), 100);
            assert_eq!(said[1..], ["C COPY 60\\0", "Z T"]);
        }
        stand.both("select note from t where id = 101");
        stand.both("savepoint a");
        let (whole, sharded) = &mut stand.clients;
        for client in [whole, sharded] {
            let said = copy_extended(client, "copy t (id) from stdin", b"77\n177\n0\n", 100);
            assert!(said[4].starts_with("E ERROR 23505"), "{said:?}");
            assert_eq!(said[5], "Z E");
        }
        stand.both("select 1");
        stand.both("rollback to a");
        stand.both("update t set n = n + 1");
        assert_eq!(stand.counts(), ["0", "0", "0"]);
        stand.both(end);
        stand.same_rows();
    }
    assert_ne!(stand.counts(), ["0", "0", "0"]);
    stand.at_rest();
}

#[test]
fn a_client_may_give_up_its_copy() {
    let mut stand = stand("copying_stopped");
    for begin in [
        query("copy t from stdin"),
        batch().run("copy t from stdin", &[]).flush().0,
    ] {
        let fail = batch()
            .copy_data(&lines(100))
            .copy_fail("had enough")
            .sync();
        let extended = begin[0] == b'P';
        let readies = if extended { 1 } else { 2 };
        let mut said = Vec::new();
        let (whole, sharded) = &mut stand.clients;
        for client in [whole, sharded] {
            opens(client, &begin);
            client.send(&fail.0);
            said.push(client.answers(readies));
        }
        assert_eq!(said[1], said[0]);
        assert_eq!(
            said[1][0],
            "E ERROR 57014 COPY from stdin failed: had enough"
        );
        assert_eq!(stand.counts(), ["0", "0", "0"]);
    }
    stand.at_rest();
}

#[test]
fn a_client_that_leaves_in_the_middle_leaves_nothing() {
    let mut stand = stand("copying_dies");
    for sent in [lines(1000).into_bytes(), b"1\t1\tno e".to_vec(), Vec::new()] {
        for last in [None, Some(b'X'), Some(b'Q')] {
            let mut client = stand.proxy.client();
            opens(&mut client, &query("copy t from stdin"));
            let mut out = data(&sent, 300);
            if let Some(last) = last {
                put(&mut out, last, |_| {});
            }
            client.send(&out);
            drop(client);
            stand.at_rest();
            assert_eq!(stand.counts(), ["0", "0", "0"]);
        }
    }
    stand.alike("copy t from stdin", lines(10).as_bytes());
}

#[test]
fn a_cancel_ends_a_copy_on_every_shard() {
    let mut stand = stand("copying_cancel");
    let mut client = stand.proxy.client();
    opens(&mut client, &query("copy t from stdin"));
    client.send(&data(lines(5000).as_bytes(), 1000));
    client.cancel(stand.proxy.port);
    // A server looks for cancels when it is given data.
    let mut rows = 5000;
    while !client.has_answer() {
        let text = lines(rows + 3000).split_off(lines(rows).len());
        client.send(&data(text.as_bytes(), 1000));
        rows += 3000;
    }
    let said = client.answers(1);
    assert!(said[0].starts_with("E ERROR 57014"), "{said:?}");
    assert_eq!(client.value("select 1"), "1");
    stand.at_rest();
    assert_eq!(stand.counts(), ["0", "0", "0"]);
}

#[test]
fn a_shard_that_takes_no_rows_holds_the_client_back() {
    let mut stand = stand("copying_slow");
    let mut other = Client::connect_to(stand.server, "copying_slow_2", &[]);
    other.ask(&query("begin"));
    other.ask(&query("insert into t (id) values (500)"));
    let mut client = stand.proxy.client();
    opens(&mut client, &query("copy t (id, note) from stdin"));
    let sent = Arc::new(AtomicUsize::new(0));
    let (mut writer, count) = (client.writer(), Arc::clone(&sent));
    writer.set_write_timeout(None).unwrap();
    let sender = thread::spawn(move || {
        let filler = "x".repeat(10_000);
        for row in 0..6000 {
            let mut out = Vec::new();
            put(&mut out, b'd', |out| {
                out.extend(format!("{}\t{filler}\n", 500 + row).as_bytes());
            });
            writer.write_all(&out).unwrap();
            count.fetch_add(out.len(), Ordering::Relaxed);
        }
        let mut out = Vec::new();
        put_bare(&mut out, b'c');
        writer.write_all(&out).unwrap();
    });
    let (mut last, mut calm) = (0, 0);
    until("the client is held back", || {
        let now = sent.load(Ordering::Relaxed);
        calm = if now == last && now > 0 { calm + 1 } else { 0 };
        last = now;
        calm > 100
    });
    // What the kernel holds on both sides is most of it.
    assert!(last < 30_000_000, "{last} bytes were taken");
    other.ask(&query("rollback"));
    let said = client.answers(1);
    assert_eq!(said, ["C COPY 6000\\0", "Z I"]);
    sender.join().unwrap();
    assert_eq!(stand.counts(), ["0", "0", "6000"]);
}

#[test]
fn a_reference_table_gets_the_same_rows_on_every_shard() {
    let mut stand = stand("copying_reference");
    let rows = "select coalesce(string_agg(c::text, '!' order by code), '') from colours c";
    let alike = |stand: &mut Stand, sql: &str, text: &[u8]| {
        let (whole, sharded) = &mut stand.clients;
        for (way, size) in [
            (
                copy as fn(&mut Client, &str, &[u8], usize) -> Vec<String>,
                3,
            ),
            (copy_extended, 100),
        ] {
            for client in [&mut *whole, &mut *sharded] {
                client.ask(&query("delete from colours where code < 'x'"));
            }
            let expected = way(whole, sql, text, size);
            assert_eq!(way(sharded, sql, text, size), expected, "{sql}");
            let expected = whole.value(rows);
            for shard in &mut stand.shards {
                assert_eq!(shard.value(rows), expected, "{sql}");
            }
        }
    };
    alike(
        &mut stand,
        "copy colours from stdin",
        b"a\tred\t\\N\nb\tblue\t2026-01-01 00:00:00+00\n",
    );
    alike(
        &mut stand,
        "copy colours from stdin (format csv, header)",
        b"h,h,h\na,\"r\ned\",\n",
    );
    alike(
        &mut stand,
        "copy colours from stdin",
        b"c\tred\t\\N\nc\tblue\t\\N\n",
    );
    alike(&mut stand, "copy colours from stdin", b"c\tred\n");
    // Every shard would have a time of its own.
    let said = copy(
        &mut stand.clients.1,
        "copy colours (code) from stdin",
        b"y\n",
        9,
    );
    assert!(
        said.iter().any(|line| line.starts_with("E ERROR 0A000")),
        "{said:?}"
    );
    for shard in &mut stand.shards {
        assert_eq!(
            shard.value("select count(*) from colours where code = 'y'"),
            "0"
        );
    }
    stand.at_rest();
}

/// The lines of COPY TO STDOUT, which SQL leaves in any order, and all else that was said.
fn copied_out(client: &mut Client, bytes: &[u8]) -> (Vec<String>, Vec<Vec<u8>>) {
    client.send(bytes);
    let (mut said, mut data) = (Vec::new(), Vec::new());
    loop {
        let (tag, body) = client.frame().unwrap();
        if tag == b'd' {
            data.push(body);
            continue;
        }
        said.push(shown(tag, &body));
        if tag == b'Z' {
            return (said, data);
        }
    }
}

#[test]
fn a_table_is_copied_out_whole_with_one_header_and_one_trailer() {
    let mut stand = stand("copying_out");
    for rows in [0, 1, 300] {
        stand.alike("copy t from stdin", lines(rows).as_bytes());
        for sql in [
            "copy t to stdout",
            "copy t (id, note) to stdout (format csv, header)",
            "copy t to stdout with csv header force quote note",
            "copy t (note, n) to stdout (header, delimiter '|', null 'nix')",
            "copy t to stdout (format binary)",
            "copy t (missing) to stdout",
        ] {
            let extended = batch().run(sql, &[]).sync().0;
            for bytes in [query(sql), extended] {
                let (said, mut found) = copied_out(&mut stand.clients.1, &bytes);
                let (expected_said, mut expected) = copied_out(&mut stand.clients.0, &bytes);
                assert_eq!(said, expected_said, "{sql}");
                if sql.contains("binary") {
                    let whole = found.concat();
                    assert_eq!(whole.len(), expected.concat().len());
                    assert!(whole.starts_with(b"PGCOPY\n\xff\r\n\0"));
                    assert!(whole.ends_with(&[0xff, 0xff]));
                    // What was copied out goes in again.
                    let table = "create table if not exists again (like t); truncate again";
                    stand.clients.0.ask(&query(table));
                    let (said, takes) = opens(
                        &mut stand.clients.0,
                        &query("copy again (n, id, note, more) from stdin binary"),
                    );
                    assert!(takes, "{said:?}");
                    let mut out = data(&whole, 1000);
                    put_bare(&mut out, b'c');
                    stand.clients.0.send(&out);
                    assert_eq!(
                        stand.clients.0.answers(1),
                        [format!("C COPY {rows}\\0"), "Z I".to_owned()]
                    );
                } else {
                    if sql.contains("header") {
                        assert_eq!(found[0], expected[0], "{sql}");
                    }
                    found.sort();
                    expected.sort();
                    assert_eq!(found, expected, "{sql}");
                }
            }
        }
    }
    stand.both("select 1");
    stand.at_rest();
}

#[test]
fn a_large_table_is_copied_out_as_fast_as_the_client_reads() {
    let mut stand = stand("copying_out_large");
    for shard in &mut stand.shards {
        let at = shard.value("select right(current_database(), 1)");
        shard.ask(&query(&format!(
            "insert into t (id, note) select {at} * 100 + i, repeat('x', 100000) from generate_series(0, 90) i"
        )));
    }
    let (said, data) = copied_out(&mut stand.clients.1, &query("copy t to stdout"));
    assert_eq!(said[1..], ["c ", "C COPY 273\\0", "Z I"]);
    let bytes: usize = data.iter().map(Vec::len).sum();
    assert!(data.len() == 273 && bytes > 27_000_000);
    // A shard that fails ends it, and the session goes on.
    stand.shards[2].ask(&query("alter table t rename to elsewhere"));
    let (said, _) = copied_out(&mut stand.clients.1, &query("copy t to stdout"));
    assert!(said[0].starts_with("E ERROR 42P01"), "{said:?}");
    assert_eq!(stand.clients.1.value("select 1"), "1");
    stand.at_rest();
}

#[test]
fn psql_copies_a_file_over_the_shards() {
    let mut stand = stand("copying_psql");
    let port = stand.proxy.port.to_string();
    let mut psql = Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "postgres"])
        .args([
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            "\\copy t (id, n, note) from pstdin (format csv, header)",
            "postgres",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = b"id,n,note\n1,1,\"a\nb\"\n101,2,x\n999,3,\n";
    psql.stdin.take().unwrap().write_all(text).unwrap();
    let output = psql.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "COPY 3\n");
    assert_eq!(stand.counts(), ["1", "1", "1"]);
}
