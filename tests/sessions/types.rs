//! Types of a database's own, whose numbers differ from shard to shard: clients see the home shard's, wherever their
//! statement runs.

use crate::{
    client::{Batch, Client, batch, query},
    three::{Stand, Three},
};
use shardway::wire::frontend::{put, put_parse};

const DDL: &str = "create type mood as enum ('low', 'fair', 'high'); create type pair as (a int, m mood); \
    create domain feelings as mood[]; create table t (id bigint primary key, m mood, ms mood[], p pair)";
/// One on each shard.
const IDS: [i64; 3] = [1, 101, 201];

fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: DDL,
        ..Three::new(name)
    }
    .start();
    let rows = "insert into t select i, 'low', '{low,high}', '(7,fair)' from unnest(array[{}]::bigint[]) i";
    stand.whole.ask(&query(&rows.replace("{}", "1, 101, 201")));
    for (shard, id) in stand.shards.iter_mut().zip(IDS) {
        shard.ask(&query(&rows.replace("{}", &id.to_string())));
    }
    stand
}

/// A column as RowDescription tells it: its table, its number there, its type.
type Column = (u32, u16, u32);

fn columns(body: &[u8]) -> Vec<Column> {
    let number =
        |at: usize, bytes: &[u8]| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let count = u16::from_be_bytes([body[0], body[1]]);
    let mut rest = &body[2..];
    let mut found = Vec::new();
    for _ in 0..count {
        let name = rest.iter().position(|byte| *byte == 0).unwrap() + 1;
        let column = &rest[name..];
        found.push((
            number(0, column),
            u16::from_be_bytes([column[4], column[5]]),
            number(6, column),
        ));
        rest = &column[18..];
    }
    found
}

/// Every frame of one answer.
fn frames(client: &mut Client, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    client.send(bytes);
    let mut found = Vec::new();
    while let Some((tag, body)) = client.frame() {
        found.push((tag, body));
        if tag == b'Z' {
            break;
        }
    }
    found
}

fn described(frames: &[(u8, Vec<u8>)]) -> Vec<Column> {
    let found = frames.iter().find(|(tag, _)| *tag == b'T');
    columns(&found.unwrap_or_else(|| panic!("no columns: {frames:?}")).1)
}

fn rows(frames: &[(u8, Vec<u8>)]) -> Vec<&[u8]> {
    let rows = frames.iter().filter(|(tag, _)| *tag == b'D');
    rows.map(|(_, body)| body.as_slice()).collect()
}

fn parse(name: &str, sql: &str, types: &[u32]) -> Batch {
    let mut made = batch();
    let raw: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
    put_parse(&mut made.0, name.as_bytes(), sql.as_bytes(), &raw);
    made
}

/// Binds values in binary, and asks for the result in binary.
fn bind_binary(mut made: Batch, statement: &str, values: &[&[u8]]) -> Batch {
    put(&mut made.0, b'B', |out| {
        out.push(0);
        out.extend(statement.as_bytes());
        out.push(0);
        out.extend([0, 1, 0, 1]);
        out.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            out.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            out.extend(*value);
        }
        out.extend([0, 1, 0, 1]);
    });
    made
}

/// The home shard's number of a type.
fn number_of(stand: &mut Stand, name: &str) -> u32 {
    let asked = stand.shards[0].value(&format!("select '{name}'::regtype::oid"));
    asked.parse().unwrap()
}

#[test]
fn columns_have_the_home_shards_numbers_wherever_they_are_read() {
    let mut stand = stand("type_columns");
    let table = stand.shards[0]
        .value("select 't'::regclass::oid")
        .parse()
        .unwrap();
    let [mood, moods, pair] = ["mood", "mood[]", "pair"].map(|name| number_of(&mut stand, name));
    let elsewhere = stand.seen("select 'mood'::regtype::oid");
    assert!(elsewhere[1] != elsewhere[0] && elsewhere[2] != elsewhere[0]);
    let expected = vec![
        (table, 1, 20),
        (table, 2, mood),
        (table, 3, moods),
        (table, 4, pair),
        (0, 0, 25),
    ];
    for id in IDS {
        let sql = format!("select *, m::text from t where id = {id}");
        let simple = frames(&mut stand.sharded, &query(&sql));
        assert_eq!(described(&simple), expected, "{id}");
        let portal = batch()
            .parse("", &sql)
            .bind("", "", &[])
            .describe_portal("")
            .sync();
        assert_eq!(described(&frames(&mut stand.sharded, &portal.0)), expected);
        let named = batch()
            .parse("s", &sql)
            .describe("s")
            .call("s", &[])
            .close("s")
            .sync();
        let found = frames(&mut stand.sharded, &named.0);
        assert_eq!(described(&found), expected);
        assert_eq!(rows(&found).len(), 1);
    }
    let scattered = frames(&mut stand.sharded, &query("select *, m::text from t"));
    assert_eq!(described(&scattered), expected);
    assert_eq!(rows(&scattered).len(), 3);
    let gathered = frames(
        &mut stand.sharded,
        &query("select m, array_agg(m) from t group by m"),
    );
    assert_eq!(
        described(&gathered)
            .iter()
            .map(|column| column.2)
            .collect::<Vec<_>>(),
        [mood, moods]
    );
    let written = frames(
        &mut stand.sharded,
        &query("update t set m = 'fair' returning ms, m"),
    );
    assert_eq!(described(&written), [(table, 3, moods), (table, 2, mood)]);
}

#[test]
fn a_number_that_was_told_is_found_in_the_catalogs() {
    let stand_name = "type_catalogs";
    let mut stand = stand(stand_name);
    let mood = number_of(&mut stand, "mood");
    let asks = [
        format!("select typname from pg_type where oid = {mood}"),
        format!("select {mood}::regtype"),
        format!("select format_type({mood}, null)"),
    ];
    for _ in 0..6 {
        let mut client = stand.proxy.client();
        assert_eq!(
            client.value("select 'mood'::regtype::oid"),
            mood.to_string()
        );
        for id in IDS {
            for sql in &asks {
                client.ask(&query("begin"));
                client.value(&format!("select m from t where id = {id}"));
                assert_eq!(client.value(sql), "mood", "behind {id}");
                client.value(&format!("select m from t where id = {id}"));
                client.ask(&query("commit"));
            }
        }
    }
    // Who chooses a shard sees that shard's.
    for (at, own) in stand.seen("select 'mood'::regtype::oid").iter().enumerate() {
        let mut client = stand.proxy.client();
        client.ask(&query(&format!("set shardway.shard = 's{at}'")));
        assert_eq!(client.value("select 'mood'::regtype::oid"), *own);
        let found = frames(&mut client, &query("select m from t"));
        assert_eq!(described(&found)[0].2.to_string(), *own);
    }
}

#[test]
fn a_statement_described_on_one_shard_runs_on_all() {
    let mut stand = stand("type_statements");
    let [mood, moods] = ["mood", "mood[]"].map(|name| number_of(&mut stand, name));
    let mut clients: Vec<Client> = (0..3).map(|_| stand.proxy.client()).collect();
    for client in &mut clients {
        let sql = "select m, id from t where id = $1 and m = $2 and $3 <@ ms";
        for declared in [&[][..], &[20, mood, moods]] {
            let told = frames(client, &parse("s", sql, declared).describe("s").sync().0);
            let types = told.iter().find(|(tag, _)| *tag == b't').unwrap();
            let expected: Vec<u8> = [20, mood, moods]
                .iter()
                .flat_map(|oid: &u32| oid.to_be_bytes())
                .collect();
            assert_eq!(types.1[2..], expected);
            for id in IDS {
                let call = batch()
                    .call("s", &[&id.to_string(), "low", "{high}"])
                    .sync();
                let answer = client.ask(&call.0);
                assert!(answer.contains(&format!("D low|{id}")), "{answer:?}");
                let mut array = [1, 0, mood, 1, 1, 4].map(u32::to_be_bytes).concat();
                array.extend(b"high");
                let values = [&id.to_be_bytes()[..], b"low", &array];
                let call = bind_binary(batch(), "s", &values).execute("", 0).sync();
                let found = frames(client, &call.0);
                assert_eq!(rows(&found).len(), 1, "{id}: {found:?}");
            }
            client.ask(&batch().close("s").sync().0);
        }
    }
}

#[test]
fn parameters_of_own_types_reach_several_shards_at_once() {
    let mut stand = stand("type_several");
    let [mood, moods] = ["mood", "mood[]"].map(|name| number_of(&mut stand, name));
    let client = &mut stand.sharded;
    let one = |sql: &str, types: &[u32]| parse("", sql, types);
    let scattered = one("select id, m from t where m = $1 order by id", &[mood]);
    let found = client.ask(&scattered.bind("", "", &["low"]).execute("", 0).sync().0);
    assert_eq!(
        found[2..5],
        ["D 1|low", "D 101|low", "D 201|low"],
        "{found:?}"
    );
    let gathered = one(
        "select m, count(*) from t where m = $1 or ms @> $2 group by m",
        &[mood, moods],
    );
    let found = client.ask(
        &gathered
            .bind("", "", &["high", "{low}"])
            .execute("", 0)
            .sync()
            .0,
    );
    assert!(found.contains(&"D low|3".to_owned()), "{found:?}");
    let written = one(
        "update t set m = $1, ms = $2 returning m, ms",
        &[mood, moods],
    );
    let written = written
        .bind("", "", &["high", "{fair}"])
        .describe_portal("")
        .execute("", 0)
        .sync();
    let found = frames(client, &written.0);
    assert_eq!(
        described(&found)
            .iter()
            .map(|one| one.2)
            .collect::<Vec<_>>(),
        [mood, moods]
    );
    assert_eq!(rows(&found).len(), 3);
    let inserted = one(
        "insert into t (id, m) values ($1, $2), ($3, $4)",
        &[20, mood, 20, mood],
    );
    let found = client.ask(
        &inserted
            .bind("", "", &["2", "low", "202", "fair"])
            .execute("", 0)
            .sync()
            .0,
    );
    assert!(found.contains(&"C INSERT 0 2\\0".to_owned()), "{found:?}");
    assert_eq!(
        stand.seen("select string_agg(m::text, ',' order by id) from t"),
        ["high,low", "high", "high,fair"]
    );
}

#[test]
fn arrays_in_binary_hold_the_number_that_clients_know() {
    let mut stand = stand("type_arrays");
    let mood = number_of(&mut stand, "mood");
    let client = &mut stand.sharded;
    let element = |row: &[u8]| u32::from_be_bytes(row[2 + 4 + 8..2 + 4 + 12].try_into().unwrap());
    for sql in [
        "select ms from t where id = $1",
        "update t set m = m where id = $1 returning ms",
    ] {
        for described_first in [false, true] {
            for id in IDS {
                let mut asked = batch().parse("a", sql);
                if described_first {
                    asked = asked.describe("a").sync();
                    frames(client, &asked.0);
                    asked = batch();
                }
                let asked = bind_binary(asked, "a", &[&id.to_be_bytes()]).execute("", 0);
                let asked = bind_binary(asked, "a", &[&id.to_be_bytes()]).execute("", 0);
                let found = frames(client, &asked.close("a").sync().0);
                let rows = rows(&found);
                assert_eq!(rows.len(), 2, "{found:?}");
                for row in rows {
                    assert_eq!(element(row), mood, "{sql} {id}");
                }
            }
        }
    }
    // Of several shards.
    let asked = bind_binary(
        batch().parse("", "update t set m = m returning ms"),
        "",
        &[],
    );
    let found = frames(client, &asked.execute("", 0).sync().0);
    let of_all: Vec<u32> = rows(&found).into_iter().map(element).collect();
    assert_eq!(of_all, [mood; 3], "{found:?}");
    // Each is computed on another shard.
    for _ in 0..3 {
        let client = &mut stand.proxy.client();
        for sql in [
            "select ms from t where m = any (ms)",
            "select max(ms) from t",
        ] {
            let asked = bind_binary(batch().parse("", sql), "", &[]).execute("", 0);
            let found = frames(client, &asked.sync().0);
            let of_all: Vec<u32> = rows(&found).into_iter().map(element).collect();
            assert!(!of_all.is_empty(), "{found:?}");
            assert!(of_all.iter().all(|one| *one == mood), "{found:?}");
        }
    }
}

#[test]
fn rows_in_binary_that_hold_numbers_are_refused_where_these_are_others() {
    let mut stand = stand("type_rows");
    let client = &mut stand.sharded;
    for sql in [
        "select p from t where id = $1",
        "select array[p] from t where id = $1",
        "select row(m) from t where id = $1",
    ] {
        for (id, refused) in [(1_i64, false), (101, true), (201, true)] {
            let asked = bind_binary(batch().parse("", sql), "", &[&id.to_be_bytes()]);
            let found = client.ask(&asked.execute("", 0).sync().0);
            let error = found
                .iter()
                .any(|line| line.starts_with("E ERROR 0A000 this result in binary"));
            assert_eq!(error, refused, "{sql} {id}: {found:?}");
            let text = batch().run(sql, &[&id.to_string()]).sync();
            assert!(
                client
                    .ask(&text.0)
                    .iter()
                    .any(|line| line.starts_with("D "))
            );
        }
    }
    // A binary cursor, read by a Query.
    for (id, refused) in [(1, false), (101, true)] {
        let client = &mut stand.proxy.client();
        client.ask(&query("begin"));
        client.ask(&query(&format!(
            "declare c binary cursor for select ms from t where id = {id}"
        )));
        let found = client.ask(&query("fetch c"));
        let ended = found.iter().any(|line| line.starts_with("E FATAL 0A000"));
        assert_eq!(ended, refused, "{id}: {found:?}");
        assert_eq!(found.iter().any(|line| line.starts_with("D ")), !refused);
    }
    let client = &mut stand.sharded;
    let scalar = bind_binary(batch().parse("", "select m from t order by m, id"), "", &[]);
    let found = client.ask(&scalar.execute("", 0).sync().0);
    assert_eq!(
        found.iter().filter(|line| *line == "D low").count(),
        3,
        "{found:?}"
    );
}

#[test]
fn a_type_made_just_now_is_looked_for() {
    let mut stand = stand("type_new");
    for shard in &mut stand.shards {
        shard.ask(&query(
            "create type colour as enum ('red'); alter table t add column c colour default 'red'",
        ));
    }
    let colour = number_of(&mut stand, "colour");
    for id in [101, 201, 1] {
        let found = frames(
            &mut stand.sharded,
            &query(&format!("select c from t where id = {id}")),
        );
        assert_eq!(described(&found)[0].2, colour, "{id}");
        assert_eq!(rows(&found).len(), 1);
    }
    let declared = parse(
        "",
        "select id from t where id = $1 and c = $2",
        &[20, colour],
    );
    let found = stand.sharded.ask(
        &declared
            .bind("", "", &["101", "red"])
            .execute("", 0)
            .sync()
            .0,
    );
    assert!(found.contains(&"D 101".to_owned()), "{found:?}");
    // Nobody else sees the types of an open transaction: they have no name.
    let made = stand.ask("begin");
    assert!(made[0].starts_with('C'), "{made:?}");
    let made = stand.ask("create type shape as enum ('round')");
    assert!(made.iter().all(|line| !line.starts_with('E')), "{made:?}");
    let found = frames(
        &mut stand.sharded,
        &query("select 'round'::shape, m from t where id = 101"),
    );
    let mood = number_of(&mut stand, "mood");
    let types: Vec<u32> = described(&found).iter().map(|column| column.2).collect();
    assert_eq!(types, [705, mood]);
    stand.ask("commit");
    let found = frames(
        &mut stand.sharded,
        &query("select 'round'::shape from t where id = 201"),
    );
    assert_eq!(described(&found)[0].2, number_of(&mut stand, "shape"));
}
