//! TRUNCATE while a reshard moves rows: tables are empty afterwards, and what shards have of others stays, for the streams
//! to take it away.

use crate::{
    client::{Client, batch, query},
    doubled::double,
    harness::{postgres, until},
    three::{Stand, Three},
};
use shardway::wire::notice;

const DDL: &str = "create table t (id bigint primary key, n int, up bigint, foreign key (id) references t (id)); \
    create table item (id bigint, at int, what text, primary key (id, at), foreign key (id) references t on delete cascade); \
    create table log (id bigint not null, at int not null, what text, primary key (id, at)) partition by range (at); \
    create table log_1 partition of log for values from (0) to (10); \
    create table log_2 partition of log for values from (10) to (maxvalue); \
    create table watched (id bigint primary key, n int); \
    create table ruled (id bigint primary key, n int); \
    create table secret (id bigint primary key, n int); \
    create table colours (n int primary key, name text); insert into colours values (1, 'red'); \
    create view shown as select id, n from t; \
    create function watch() returns trigger language plpgsql as 'begin return null; end'; \
    create trigger watching after delete on watched for each row execute function watch(); \
    create rule ruling as on delete to ruled do instead nothing";
const OWN: [&str; 3] = ["id < 100", "id >= 100 and id < 200", "id >= 200"];
const TABLES: [&str; 6] = ["t", "item", "log", "watched", "ruled", "secret"];

/// All shards have rows of all keys, each of which one of them owns, as the map says.
fn stand(name: &str, user: &str) -> Stand {
    let pool = match user {
        "" => "size = 4".to_owned(),
        user => format!("size = 4\n[users.{user}]\nauth = \"trust\""),
    };
    let mut stand = Three {
        ddl: DDL,
        tables: &[
            "public.t",
            "public.item",
            "public.log",
            "public.watched",
            "public.ruled",
            "public.secret",
        ],
        reference: &["public.colours"],
        pool: &pool,
        ..Three::new(name)
    }
    .start();
    fill(&mut stand.whole, "true");
    for (shard, own) in stand.shards.iter_mut().zip(OWN) {
        fill(shard, own);
    }
    for _ in 0..2 {
        stand.alike(&query("select id from t where id = 1"), 1);
    }
    for (shard, own) in stand.shards.iter_mut().zip(OWN) {
        fill(shard, &format!("not ({own})"));
    }
    double(&mut stand);
    stand
}

fn fill(client: &mut Client, of: &str) {
    for table in TABLES {
        let columns = match table {
            "t" => "id, n, up",
            "item" | "log" => "id, at, what",
            _ => "id, n",
        };
        let sql = format!(
            "insert into {table} ({columns}) select {} from unnest(array[1, 50, 101, 150, 201, 250]) id, \
             generate_series(0, 1) i where ({of}) and i < {}",
            match table {
                "t" => "id, 1, id",
                "item" | "log" => "id, i * 10, 'old'",
                _ => "id, 1",
            },
            if columns.contains("at") { 2 } else { 1 }
        );
        let made = client.ask(&query(&sql));
        assert!(made[0].starts_with('C'), "{sql}: {made:?}");
    }
}

fn contents(client: &mut Client, of: &str) -> Vec<String> {
    let told = TABLES.map(|table| {
        client.value(&format!(
            "select coalesce(string_agg(x::text, '; ' order by x::text collate \"C\"), '') from {table} x where {of}"
        ))
    });
    told.to_vec()
}

/// Every shard has of its own what the whole database has, and of others what it had.
fn holds(stand: &mut Stand, others: &[Vec<String>]) {
    for (at, own) in OWN.iter().enumerate() {
        let expected = contents(&mut stand.whole, own);
        let shard = &mut stand.shards[at];
        assert_eq!(contents(shard, own), expected, "of shard {at}");
        let found = contents(shard, &format!("not ({own})"));
        assert_eq!(found, others[at], "shard {at} has lost rows of others");
    }
}

fn others(stand: &mut Stand) -> Vec<Vec<String>> {
    let shards = stand.shards.iter_mut().zip(OWN);
    let each = shards.map(|(shard, own)| contents(shard, &format!("not ({own})")));
    each.collect()
}

#[test]
fn tables_are_emptied_and_copies_of_others_stay() {
    let mut stand = stand("emptying_copies", "");
    let before = others(&mut stand);
    assert!(before.iter().flatten().all(|rows| !rows.is_empty()));
    stand.all_alike(&[
        "truncate t",
        "begin",
        "truncate item",
        "select count(*) from item",
        "insert into item values (1, 1, 'new'), (201, 1, 'new')",
        "select id, at, what from item order by id",
        "rollback",
        "select count(*) from item",
    ]);
    holds(&mut stand, &before);
    stand.all_alike(&[
        "begin",
        "truncate table item",
        "insert into item values (1, 1, 'new'), (201, 1, 'new')",
        "commit",
        "select count(*) from item",
    ]);
    holds(&mut stand, &before);
    stand.all_alike(&["truncate log_1", "select count(*) from log"]);
    holds(&mut stand, &before);
    let prepared = batch()
        .parse("e", "truncate log continue identity restrict")
        .describe("e")
        .bind("", "e", &[])
        .execute("", 0)
        .sync();
    stand.alike(&prepared.0, 1);
    holds(&mut stand, &before);
    // The tables refer to one another, and the first to itself.
    stand.all_alike(&[
        "truncate t, item cascade",
        "select count(*) from t",
        "insert into t values (7, 1, null), (107, 1, null)",
        "truncate only t, only item",
        "select count(*) from t",
        "truncate secret; truncate secret",
    ]);
    holds(&mut stand, &before);
}

/// SQLSTATE, message, detail and hint of the error that answers a Query.
fn error(client: &mut Client, sql: &str) -> [String; 4] {
    client.send(&query(sql));
    let mut told = None;
    loop {
        let (tag, body) = client.frame().expect("it is answered");
        let field = |code| {
            let field = notice::field(&body, code).unwrap_or_default();
            String::from_utf8_lossy(field).into_owned()
        };
        match tag {
            b'E' => told = Some([b'C', b'M', b'D', b'H'].map(field)),
            b'Z' => return told.unwrap_or_default(),
            _ => {}
        }
    }
}

/// A role of the server, of which each of these databases is told this.
fn role(stand: &mut Stand, role: &str, rights: &str) {
    stand.shards[0].ask(&query(&format!("create role {role} login")));
    for client in stand.shards.iter_mut().chain([&mut stand.whole]) {
        let told = client.ask(&query(rights));
        assert!(!told[0].starts_with('E'), "{told:?}");
    }
}

#[test]
fn what_postgres_refuses_is_refused_alike() {
    let name = "emptying_alike";
    let user = "emptying_reader";
    let mut stand = stand(name, user);
    let before = others(&mut stand);
    for sql in ["truncate t", "truncate log, t", "truncate only log"] {
        let expected = error(&mut stand.whole, sql);
        assert_ne!(expected[0], "", "{sql}");
        assert_eq!(error(&mut stand.sharded, sql), expected, "{sql}");
    }
    stand.all_alike(&[
        "begin",
        "truncate item",
        "truncate t",
        "select 1",
        "rollback",
        "select count(*) from item",
    ]);
    role(
        &mut stand,
        user,
        &format!("grant select, delete on log to {user}"),
    );
    let mut whole = Client::connect_as(postgres().port(), user, &format!("{name}_3"), &[]);
    let mut sharded = Client::connect_as(stand.proxy.port, user, "postgres", &[]);
    let expected = error(&mut whole, "truncate log");
    assert_eq!(expected[0], "42501");
    assert_eq!(error(&mut sharded, "truncate log"), expected);
    holds(&mut stand, &before);
}

#[test]
fn where_delete_is_something_else_it_is_refused() {
    let user = "emptying_truncater";
    let mut stand = stand("emptying_refused", user);
    let before = others(&mut stand);
    let refused = |client: &mut Client, sql: &str, why: &str| {
        let [state, message, detail, _] = error(client, sql);
        assert_eq!(state, "55006", "{sql}: {message}");
        assert!(
            detail.contains(why) && detail.contains("SW403"),
            "{sql}: {detail}"
        );
    };
    for (sql, why) in [
        ("truncate watched", "trigger \"watching\" of \"watched\""),
        ("truncate ruled", "rule \"ruling\" of \"ruled\""),
        ("truncate log restart identity", "begins a sequence anew"),
        ("truncate log, colours", "names other tables"),
        ("truncate t cascade", "\"item\" refers to \"t\""),
    ] {
        refused(&mut stand.sharded, sql, why);
    }
    role(
        &mut stand,
        user,
        &format!(
            "grant select, truncate on log to {user}; grant all on secret to {user}; \
             alter table secret enable row level security"
        ),
    );
    let mut other = Client::connect_as(stand.proxy.port, user, "postgres", &[]);
    refused(&mut other, "truncate log", "may not delete from \"log\"");
    refused(&mut other, "truncate secret", "policies of \"secret\"");
    stand.ask("set shardway.read_consistency = 'per_shard'");
    stand.ask("begin isolation level repeatable read");
    refused(
        &mut stand.sharded,
        "truncate log",
        "younger than the transaction's snapshot",
    );
    stand.ask("rollback");
    stand.ask("reset shardway.read_consistency");
    holds(&mut stand, &before);
    // A trigger that is off does nothing.
    for client in stand.shards.iter_mut().chain([&mut stand.whole]) {
        client.ask(&query("alter table watched disable trigger watching"));
    }
    stand.all_alike(&["truncate watched, secret"]);
    holds(&mut stand, &before);
}

#[test]
fn who_writes_is_waited_for_and_who_reads_is_not() {
    let mut stand = stand("emptying_waits", "");
    let before = others(&mut stand);
    let mut writer = stand.proxy.client();
    let mut reader = stand.proxy.client();
    for sql in [
        "begin",
        "insert into log values (51, 3, 'late'), (251, 3, 'late')",
    ] {
        let done = writer.ask(&query(sql));
        assert!(done[0].starts_with('C'), "{done:?}");
    }
    stand.sharded.send(&query("truncate log"));
    let name = stand.name.clone();
    let waiting = format!(
        "select count(*) from pg_stat_activity where datname like '{name}%' and wait_event_type = 'Lock' \
         and query ilike '%lock table%'"
    );
    let home = &mut stand.shards[0];
    until("the TRUNCATE waits", || home.value(&waiting) == "1");
    // It waits for the lock, and whoever reads does not wait for it.
    assert_eq!(reader.value("select count(*) from log"), "12");
    writer.ask(&query("commit"));
    let answer = stand.sharded.answers(1);
    assert!(answer[0].starts_with("C TRUNCATE TABLE"), "{answer:?}");
    assert_eq!(reader.value("select count(*) from log"), "0");
    stand.whole.ask(&query("truncate log"));
    holds(&mut stand, &before);
}

#[test]
fn all_shards_are_emptied_or_none() {
    let mut stand = stand("emptying_whole", "");
    let before = others(&mut stand);
    let mut holder = Client::connect_to(postgres().port(), &format!("{}_2", stand.name), &[]);
    holder.ask(&query("begin; lock table log in share mode"));
    stand.ask("set lock_timeout = '300ms'");
    stand.fails("truncate log", "55P03");
    stand.ask("begin");
    stand.fails("truncate log", "55P03");
    stand.fails("select count(*) from log", "25P02");
    stand.ask("rollback");
    stand.ask("reset lock_timeout");
    holds(&mut stand, &before);
    holder.ask(&query("commit"));
    stand.all_alike(&["truncate log", "select count(*) from log"]);
    holds(&mut stand, &before);
    stand.at_rest();
}
