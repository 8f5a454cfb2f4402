//! COPY FROM STDIN into tables whose defaults ask for the transaction's time, which is one on all shards.

use crate::{
    client::{Client, batch, query, shown},
    three::{Stand, Three},
};
use shardway::wire::frontend::{put, put_bare};

/// Columns of many types, whose names and values need care.
const TABLES: &str = "create table t (id bigint primary key, n int, note text, made timestamptz default now(), \
    day date default current_date, utc timestamp(3) default timezone('utc', now()), \"Later, \"\"on\"\"\" text default (now() + interval '1 day')::text, \
    at time(2) default localtime, year int default extract(year from now()), parts date[] default array[current_date, null]); \
    create table colours (code text primary key, name text, made timestamptz not null default current_timestamp, day date default now()); \
    create table drawn (code text primary key, made timestamptz default now(), token uuid default gen_random_uuid()); \
    create table here (n int, made timestamptz default now())";
/// What the columns are together, each different set once.
const TIMES: &str = "select coalesce(string_agg(distinct concat_ws('|', made, day, utc, \"Later, \"\"on\"\"\", at, year, parts), ';'), '') from t";
/// They are all of one time.
const AGREE: &str = "select coalesce(bool_and((timezone('utc', made)::timestamp(3) = utc and made::date = day and (made + interval '1 day')::text = \"Later, \"\"on\"\"\" \
    and made::time(2) = at and extract(year from made) = year and array[made::date, null] = parts) is true), true) from t";

fn stand(name: &str) -> Stand {
    Three {
        ddl: TABLES,
        reference: &["public.colours", "public.drawn"],
        database: "unlisted_tables = \"s1\"",
        ..Three::new(name)
    }
    .start()
}

/// A whole COPY: in the simple protocol, in messages of so many bytes.
fn copy(client: &mut Client, sql: &str, bytes: &[u8], size: usize) -> Vec<String> {
    client.send(&query(sql));
    let mut said = Vec::new();
    loop {
        let (tag, body) = client.frame().unwrap();
        said.push(shown(tag, &body));
        match tag {
            b'G' => break,
            b'Z' => return said,
            _ => {}
        }
    }
    let mut out = Vec::new();
    for piece in bytes.chunks(size) {
        put(&mut out, b'd', |out| out.extend_from_slice(piece));
    }
    put_bare(&mut out, b'c');
    client.send(&out);
    said.extend(client.answers(1));
    said
}

/// The shards and the whole database answer this COPY alike, and keep the same rows but for times; those are one time.
fn alike(stand: &mut Stand, sql: &str, bytes: &[u8], rows: usize) {
    for size in [1, 7, 1 << 20] {
        stand.whole.ask(&query("delete from t"));
        stand.ask("delete from t");
        let expected = copy(&mut stand.whole, sql, bytes, size);
        let found = copy(&mut stand.sharded, sql, bytes, size);
        assert_eq!(found, expected, "PostgreSQL's is on the right, to {sql}");
        assert!(
            found.contains(&format!("C COPY {rows}\\0")),
            "{sql}: {found:?}"
        );
        let all = "select coalesce(string_agg(concat_ws('|', id, n, quote_nullable(note)), ';' order by id), '') from t";
        let mut kept = stand.seen(all);
        kept.retain(|shard| !shard.is_empty());
        assert_eq!(kept.join(";"), stand.whole.value(all), "{sql}");
        assert_one_time(stand, sql);
    }
}

fn assert_one_time(stand: &mut Stand, about: &str) {
    let mut times = stand.seen(TIMES);
    times.retain(|shard| !shard.is_empty());
    assert!(times.len() > 1, "{about}: on one shard only: {times:?}");
    times.dedup();
    assert_eq!(times.len(), 1, "{about}: {times:?}");
    assert!(!times[0].contains(';'), "{about}: {times:?}");
    assert_eq!(stand.seen(AGREE), ["t", "t", "t"], "{about}");
}

fn done(stand: &mut Stand, sql: &str) {
    let found = stand.ask(sql);
    assert!(
        found.iter().all(|line| !line.starts_with('E')),
        "{sql}: {found:?}"
    );
}

#[test]
fn rows_in_text_have_one_time_over_shards() {
    let mut stand = stand("copy_defaults_text");
    for (sql, data) in [
        (
            "copy t (id, n, note) from stdin",
            "1\t1\ta\\tb\n101\t2\t\\N\n201\t3\t\n",
        ),
        ("copy t (note, id) from stdin", "\t1\n\\\\.\t101\nlast\t201"),
        (
            "copy public.t (n, id) from stdin (delimiter ':', null '')",
            ":1\r\n5:101\r\n:201\r\n",
        ),
        (
            "copy t (id) from stdin (delimiter '-')",
            "1\n101\n201\n\\.\n",
        ),
        (
            "copy t (id, n, note) from stdin (header match, delimiter 'T')",
            "idTnTnote\n1T1T\\Tea\n101T2T\\\nx\n201T3Tx\n",
        ),
        (
            "copy t (id, n) from stdin with (header, freeze false)",
            "a\tb\tc\n1\t1\n101\t1\n201\t3\n",
        ),
        (
            "/* ( */ COPY \"t\"(id) FROM stdin WHERE id > 0 and note is null",
            "1\n101\n201\n",
        ),
    ] {
        alike(&mut stand, sql, data.as_bytes(), 3);
    }
}

#[test]
fn rows_in_csv_have_one_time_over_shards() {
    let mut stand = stand("copy_defaults_csv");
    for (sql, data) in [
        (
            "copy t (id, n, note) from stdin csv",
            "1,1,\"a\n\nb,\"\n101,,\"\"\n201,3,\n",
        ),
        (
            "copy t (note, id) from stdin (format csv, header match)",
            "note,\"id\"\n\"1\"\"2\",1\n,101\n\"\",201",
        ),
        (
            "copy t (note, id) from stdin (format csv, delimiter '2', quote '0', escape '-')",
            "a-b21\n0-002111\n0-0\n02311\n",
        ),
        (
            "copy t (id, note) from stdin (format csv, force_null (note), null 'nix')",
            "1,\"nix\"\r\n101,nix\r\n201,\"\"\r\n",
        ),
        (
            "copy t (id, note) from stdin (format csv, force_not_null (note), quote '''', escape '\\')",
            "1,\n101,'\\'\n'\n201,'\\\\'\n",
        ),
        (
            "copy t (id, note) from stdin (format csv, delimiter ':', quote '-')",
            "1:a\n101:-:\n---\n201:b\n",
        ),
    ] {
        alike(&mut stand, sql, data.as_bytes(), 3);
    }
}

/// Rows of an id and a note in binary format.
fn binary(rows: &[(i64, Option<&str>)]) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for (id, note) in rows {
        out.extend_from_slice(&[0, 2, 0, 0, 0, 8]);
        out.extend_from_slice(&id.to_be_bytes());
        let size = note.map_or(-1, |note| i32::try_from(note.len()).unwrap());
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(note.unwrap_or_default().as_bytes());
    }
    out.extend_from_slice(&[0xff, 0xff]);
    out
}

#[test]
fn rows_in_binary_have_one_time_over_shards() {
    let mut stand = stand("copy_defaults_binary");
    let data = binary(&[(1, Some("a")), (101, None), (201, Some(""))]);
    alike(
        &mut stand,
        "copy t (id, note) from stdin (format binary)",
        &data,
        3,
    );
    alike(&mut stand, "copy t (id, note) from stdin binary", &data, 3);
}

#[test]
fn the_session_s_styles_of_times_change_no_value() {
    let mut stand = stand("copy_defaults_styles");
    for style in ["SQL, DMY", "German", "Postgres, MDY", "ISO, YMD"] {
        for zone in ["America/St_Johns", "Asia/Kolkata", "UTC"] {
            let set = format!("set datestyle = '{style}'; set timezone = '{zone}'");
            stand.whole.ask(&query(&set));
            done(&mut stand, &set);
            done(&mut stand, "delete from t");
            // What text makes of a time is PostgreSQL's own business: in a style, from which it is not read again.
            let found = copy(
                &mut stand.sharded,
                "copy t (id) from stdin",
                b"1\n101\n201\n",
                100,
            );
            assert!(found.contains(&"C COPY 3\\0".to_owned()), "{found:?}");
            let times = stand.seen("select string_agg(distinct made::text, ';') from t");
            assert!(times.windows(2).all(|two| two[0] == two[1]), "{times:?}");
            let now = stand.seen("select bool_and(made between now() - interval '1 min' and now() + interval '1 s') from t");
            assert_eq!(now, ["t", "t", "t"], "{style} {zone}");
        }
    }
}

#[test]
fn a_transaction_s_copies_and_other_writes_have_its_time() {
    let mut stand = stand("copy_defaults_transactions");
    for before in [
        "select now()",
        "insert into t (id) values (150)",
        "select 1 from t where id = 250",
        "select now() from t where id = 250",
    ] {
        done(&mut stand, "delete from t");
        done(&mut stand, "begin");
        done(&mut stand, before);
        let found = copy(
            &mut stand.sharded,
            "copy t (id) from stdin",
            b"1\n101\n201\n",
            100,
        );
        assert!(found.contains(&"C COPY 3\\0".to_owned()), "{found:?}");
        done(&mut stand, "insert into t (id) values (2), (102)");
        let told = stand.sharded.value("select now()");
        done(&mut stand, "commit");
        assert_one_time(&mut stand, before);
        let made = stand.seen("select distinct made from t");
        assert_eq!(made, [told.as_str(); 3], "{before}");
    }
}

#[test]
fn copies_of_a_reference_table_have_one_time() {
    let mut stand = stand("copy_defaults_reference");
    for (sql, data) in [
        ("copy colours (code, name) from stdin", "a\tb\nc\td\n"),
        (
            "copy colours (name, code) from stdin (format csv, header match)",
            "name,code\n\"x\ny\",e\n\"\",f",
        ),
    ] {
        let found = copy(&mut stand.sharded, sql, data.as_bytes(), 3);
        assert!(found.contains(&"C COPY 2\\0".to_owned()), "{found:?}");
    }
    let rows = stand.seen("select string_agg(c::text, ';' order by code) from colours c");
    assert!(rows.windows(2).all(|two| two[0] == two[1]), "{rows:?}");
    assert_eq!(
        stand.seen("select count(distinct made) from colours"),
        ["2"; 3]
    );
    // A random value is another one on each.
    let found = copy(
        &mut stand.sharded,
        "copy drawn (code) from stdin",
        b"a\n",
        100,
    );
    assert!(
        found
            .iter()
            .any(|line| line.contains("the copies of reference table")),
        "{found:?}"
    );
    assert_eq!(stand.seen("select count(*) from drawn"), ["0"; 3]);
}

#[test]
fn values_that_are_given_and_one_shard_s_copy_are_left_alone() {
    let mut stand = stand("copy_defaults_given");
    let data = b"1\t2020-01-01 00:00:00+00\t\\N\n101\t2020-01-02 00:00:00+00\t2020-01-02\n";
    let found = copy(
        &mut stand.sharded,
        "copy t (id, made, day) from stdin",
        data,
        5,
    );
    assert!(found.contains(&"C COPY 2\\0".to_owned()), "{found:?}");
    assert_eq!(
        stand.seen("select coalesce(string_agg(concat_ws('|', timezone('utc', made), quote_nullable(day)), ';'), '') from t"),
        ["2020-01-01 00:00:00|NULL", "2020-01-02 00:00:00|'2020-01-02'", ""]
    );
    let utc = stand.seen("select string_agg(utc::text, ';') from t where id < 200");
    assert_eq!(utc[0], utc[1]);
    // Under the name of a shard its own server computes its own time.
    done(&mut stand, "set shardway.shard = 's2'");
    let found = copy(&mut stand.sharded, "copy t (id) from stdin", b"203\n", 100);
    assert!(found.contains(&"C COPY 1\\0".to_owned()), "{found:?}");
    done(&mut stand, "reset shardway.shard");
    // A transaction that was told its time on another shard has no second one.
    done(&mut stand, "begin");
    done(&mut stand, "insert into t (id) values (5)");
    stand.fails("copy here (n) from stdin", "cannot go on to another shard");
    done(&mut stand, "rollback");
}

#[test]
fn a_row_with_too_few_or_too_many_values_fails_with_postgresql_s_words() {
    let mut stand = stand("copy_defaults_short");
    for (sql, data) in [
        ("copy t (id, note) from stdin", "1\ta\n101\n"),
        ("copy t (id, note) from stdin", "1\ta\n101\ta\tb\n"),
        ("copy t (id, note) from stdin (format csv)", "1,a\n101\n"),
        ("copy t (id, note) from stdin (format csv)", "1,a\n101,,\n"),
    ] {
        let expected = copy(&mut stand.whole, sql, data.as_bytes(), 100);
        let found = copy(&mut stand.sharded, sql, data.as_bytes(), 100);
        assert!(expected[1].starts_with("E ERROR 22P04"), "{expected:?}");
        assert_eq!(found, expected, "{sql}");
        assert_eq!(stand.seen("select count(*) from t"), ["0"; 3]);
    }
}

#[test]
fn a_prepared_copy_has_one_time_too() {
    let mut stand = stand("copy_defaults_prepared");
    let begin = batch()
        .parse("", "copy t (id) from stdin")
        .bind("", "", &[])
        .execute("", 0)
        .sync()
        .0;
    stand.sharded.send(&begin);
    while stand.sharded.frame().unwrap().0 != b'G' {}
    let mut out = Vec::new();
    put(&mut out, b'd', |out| {
        out.extend_from_slice(b"1\n101\n201\n");
    });
    put_bare(&mut out, b'c');
    put_bare(&mut out, b'S');
    stand.sharded.send(&out);
    let found = stand.sharded.answers(1);
    assert!(found.contains(&"C COPY 3\\0".to_owned()), "{found:?}");
    assert_one_time(&mut stand, "prepared");
}

#[test]
fn a_condition_has_the_transaction_s_time() {
    let mut stand = stand("copy_defaults_conditions");
    for (sql, rows) in [
        (
            "copy t (id) from stdin where made = now() and day = current_date and note is null",
            3,
        ),
        ("copy t (id) from stdin where made > now() or id > 1", 2),
        (
            "copy t (id, note) from stdin csv where note is null or timezone('utc', made) = timezone('utc', transaction_timestamp())",
            3,
        ),
    ] {
        let data = if sql.contains("note)") {
            "1,\n101,\n201,\n"
        } else {
            "1\n101\n201\n"
        };
        alike(&mut stand, sql, data.as_bytes(), rows);
    }
    // Each shard has numbers of its own.
    let found = copy(
        &mut stand.sharded,
        "copy t (id) from stdin where txid_current() > 5",
        b"1\n",
        9,
    );
    assert!(
        found[0].starts_with("E ERROR 0A000 COPY of sharded"),
        "{found:?}"
    );
}

#[test]
fn what_rows_cannot_be_sent_is_refused() {
    let ddl = "create table t (id bigint primary key, gap float8 default extract(epoch from now())::float8 * 0 + 1::float8 / 3, \
               none timestamptz default nullif(now(), now()), made timestamptz default now(), day date default now(), pair t2 default row(now()))";
    let ddl = format!("create type t2 as (at timestamptz); {ddl}");
    let mut stand = Three {
        ddl: &ddl,
        ..Three::new("copy_defaults_refused")
    }
    .start();
    let today = stand.sharded.value("select current_date");
    for (sql, column) in [
        // Its last digits are not told, whatever the time.
        ("copy t (id, none, made, day, pair) from stdin", "gap"),
        ("copy t (id, gap, pair) from stdin", "none"),
        (
            "copy t (id, gap, none, pair, made) from stdin (format csv, null 'TODAY')",
            "day",
        ),
        (
            "copy t (id, gap, none, made, day) from stdin (format binary)",
            "pair",
        ),
    ] {
        let sql = sql.replace("TODAY", &today);
        stand.ask("set extra_float_digits = 0");
        let found = copy(&mut stand.sharded, &sql, b"", 9);
        assert_eq!(
            found[0],
            format!(
                "E ERROR 0A000 COPY that leaves column \"{column}\" to its default is not supported over several shards"
            ),
            "{sql}"
        );
    }
    assert_eq!(stand.seen("select count(*) from t"), ["0"; 3]);
}
