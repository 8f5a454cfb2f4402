//! Statements that wait while keys change their owner: two proxies before the same shards, and holds as a reshard writes
//! them on the home shard.

#![expect(
    clippy::disallowed_methods,
    reason = "how long a statement waits is what is claimed"
)]

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, until},
    owners::Engine,
    three::{Stand, Three},
};
use shardway::{
    catalog::{
        key::Key,
        moving::{KeySet, Move, Part},
        ownership::Moving,
    },
    registry::Flip,
};
use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A group besides, none of whose keys move.
const DATABASE: &str = "groups.h = { method = \"range\", key_type = \"bigint\", tables = { \"public.u\" = \"id\" }, \
    ranges = [{ to = 100, shard = \"s0\" }, { to = 200, shard = \"s1\" }, { shard = \"s2\" }] }";
pub(crate) const DDL: &str = "create table t (id bigint primary key, n int); create table u (id bigint primary key, n int); \
    create table r (id bigint primary key, n int); create view vip as select id, n from t where id = 5";

pub(crate) fn three(name: &str) -> Three<'_> {
    Three {
        ddl: DDL,
        reference: &["public.r"],
        database: DATABASE,
        ..Three::new(name)
    }
}

/// Keys below 10, all of the first shard.
pub(crate) fn keys() -> KeySet {
    KeySet::of(Part::Ranges(vec![(None, Some(Key::Bigint(10)))]))
}

/// Three shards behind two proxies that both have had a look at holds.
pub(crate) struct Held {
    pub(crate) stand: Stand,
    pub(crate) other: Proxy,
    /// Of the second proxy.
    pub(crate) theirs: Client,
}

impl Held {
    pub(crate) fn start(name: &str) -> Self {
        Self::of(three(name))
    }

    pub(crate) fn of(three: Three<'_>) -> Self {
        let mut stand = three.start();
        let other = three.proxy();
        let mut theirs = other.client();
        until("the other proxy can write on several shards", || {
            theirs.ask(&query("insert into ready values (1), (101)"))[0].starts_with('C')
        });
        for text in [
            "insert into t select g, 0 from generate_series(1, 20) g",
            "insert into t values (101, 0), (201, 0)",
            "insert into u values (5, 0), (101, 0)",
            "insert into r values (1, 0)",
        ] {
            let found = stand.ask(text);
            assert!(found[0].starts_with('C'), "{text}: {found:?}");
        }
        Self {
            stand,
            other,
            theirs,
        }
    }

    /// On the home shard, past the proxies.
    pub(crate) fn home(&mut self, sql: &str) {
        let found = self.stand.shards[0].ask(&query(sql));
        let fault = found.iter().find(|line| line.starts_with('E'));
        assert_eq!(fault, None, "{sql}");
    }

    /// Holds statements on keys below 10 back for so many seconds, as a reshard does, and waits for nobody.
    pub(crate) fn hold(&mut self, attempt: i32, seconds: u32) {
        let moving = serde_json::json!([{ "group": "g", "keys": keys() }]);
        self.home(&format!(
            "insert into shardway.hold (workflow, attempt, state, moving, deadline) values \
             ('w', {attempt}, 'held', '{moving}', clock_timestamp() + interval '{seconds} s') \
             on conflict (workflow) do update set attempt = excluded.attempt, state = 'held', \
             moving = excluded.moving, deadline = excluded.deadline; notify shardway, 'hold'"
        ));
    }

    pub(crate) fn end(&mut self, state: &str) {
        self.home(&format!(
            "update shardway.hold set state = '{state}' where state = 'held'; notify shardway, 'hold'"
        ));
    }

    /// Waits until so many proxies say that nobody is at it.
    pub(crate) fn drained(&mut self, attempt: i32, proxies: usize) {
        let sql =
            format!("select count(*) from shardway.held where drained and attempt = {attempt}");
        let home = &mut self.stand.shards[0];
        until("proxies say that nobody is at it", || {
            home.value(&sql) == proxies.to_string()
        });
    }

    /// Waits until so many proxies say who is at it.
    pub(crate) fn waited_for(&mut self, attempt: i32) -> String {
        let sql = format!(
            "select coalesce(max(waiting_for), '') from shardway.held where not drained and attempt = {attempt}"
        );
        let home = &mut self.stand.shards[0];
        let mut told = String::new();
        until("a proxy says who is at it", || {
            told = home.value(&sql);
            !told.is_empty()
        });
        told
    }

    /// Rows of the keys are on the second shard as well from now on, as every proxy knows.
    pub(crate) fn double(&mut self, engine: &Engine) {
        self.announce(engine);
        self.add_copies();
    }

    pub(crate) fn announce(&mut self, engine: &Engine) {
        self.home(
            "insert into shardway.workflow (id, state, token, plan) values \
             ('w', 'copy', 5, '{\"moves\": [{\"group\": \"g\"}]}')",
        );
        let doubled = [on("s1")];
        let doubling = engine.registry.set_moving("w", &doubled, 5);
        engine.runtime.block_on(doubling).unwrap();
    }

    pub(crate) fn add_copies(&mut self) {
        let mut shard = self.stand.shards.swap_remove(1);
        shard.ask(&query(
            "insert into t select g, 100 from generate_series(1, 9) g",
        ));
        self.stand.shards.insert(1, shard);
    }

    /// Waits until so many proxies have taken the map over.
    pub(crate) fn known(&mut self, proxies: usize) {
        let home = &mut self.stand.shards[0];
        until("proxies have taken the map over", || {
            home.value(
                "select count(*) from shardway.proxy where epoch >= (select epoch from shardway.epoch)",
            ) == proxies.to_string()
        });
    }

    /// All but one proxy take the map over, and that one does not while it lives.
    fn is_awaited(&mut self) {
        const LATE: &str =
            "select count(*) from shardway.proxy where epoch < (select epoch from shardway.epoch)";
        const BEAT: &str = "select max(heartbeat)::text from shardway.proxy where epoch < (select epoch from shardway.epoch)";
        let home = &mut self.stand.shards[0];
        until("the other proxy knows of it", || home.value(LATE) == "1");
        for _ in 0..2 {
            let before = home.value(BEAT);
            until("the proxy lives", || {
                home.value(BEAT) != before || home.value(LATE) == "0"
            });
        }
        assert_eq!(home.value(LATE), "1", "rows are copied now");
    }

    /// Gives the keys to the second shard.
    pub(crate) fn flip(engine: &Engine, attempt: i32) {
        Self::flip_on(engine, attempt, ("s0", "s1"));
    }

    /// Gives the keys of one shard to another.
    pub(crate) fn flip_on(engine: &Engine, attempt: i32, (from, to): (&str, &str)) {
        let now = engine.map();
        let moves = [Move {
            group: "g".to_owned(),
            keys: keys(),
            from: from.to_owned(),
            to: to.to_owned(),
        }];
        let flip = Flip {
            workflow: "w".to_owned(),
            attempt,
            token: 5,
            expected: now.epoch,
            after: now.content.owners.apply(&moves).unwrap(),
            doubled: vec![on(from)],
            joins: Vec::new(),
        };
        engine.flip(&flip, &[]).unwrap();
        // Its new owners know it.
        let registry = &engine.registry;
        let activated = async {
            let home = registry.lease(registry.home()).await.unwrap();
            let told = "update shardway.hold set activating = false; notify shardway, 'hold'";
            home.batch_execute(told).await.unwrap();
            home.done();
        };
        engine.runtime.block_on(activated);
    }

    /// Both proxies hold, and nobody is at it.
    pub(crate) fn while_held(name: &str) -> Self {
        let mut held = Self::start(name);
        held.hold(1, 60);
        held.drained(1, 2);
        held
    }
}

/// Rows of the keys, on a shard that does not own them.
pub(crate) fn on(shard: &str) -> Moving {
    Moving {
        workflow: "w".to_owned(),
        group: "g".to_owned(),
        keys: keys(),
        shard: shard.to_owned(),
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.other.stop();
    }
}

/// Waits until so many clients of a proxy wait at the gate.
pub(crate) fn waiting(proxy: &Proxy, count: usize) {
    let mut console = Client::connect_to(proxy.port, "shardway", &[]);
    until("clients wait at the gate", || {
        let rows = console.ask(&query("SHOW CLIENTS"));
        rows.iter().filter(|row| row.contains("|held|")).count() == count
    });
}

/// Is answered without waiting.
pub(crate) fn answers(client: &mut Client, sql: &str) {
    let begun = Instant::now();
    let found = client.ask(&query(sql));
    assert!(!found[0].starts_with('E'), "{sql}: {found:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{sql} has waited"
    );
}

#[test]
fn a_view_that_shows_rows_of_one_shard_is_waited_for() {
    let mut held = Held::start("holding_views");
    until("the view is known", || {
        held.theirs
            .ask(&query("select n from vip"))
            .contains(&"D 0".to_owned())
    });
    held.theirs.ask(&query("begin; select n from vip"));
    held.hold(1, 60);
    held.waited_for(1);
    held.theirs.ask(&query("commit"));
    held.drained(1, 2);
    held.end("released");
    assert_eq!(held.stand.sharded.value("select n from vip"), "0");
}

#[test]
fn other_keys_and_tables_never_wait() {
    let mut held = Held::while_held("hold_others");
    for text in [
        "select * from t where id = 10",
        "select * from t where id in (11, 101)",
        "insert into t values (50, 1), (150, 1)",
        "update t set n = 1 where id = 201",
        "delete from t where id = 12",
        "select count(*) from u",
        "update u set n = n + 1",
        "insert into u values (6, 1)",
        "select * from r",
        "update r set n = 2",
        "select 1",
        "show search_path",
        "begin",
        "select * from u where id = 5",
        "commit",
    ] {
        answers(&mut held.stand.sharded, text);
        answers(
            &mut held.theirs,
            &text.replace("50", "60").replace("(6,", "(7,"),
        );
    }
    let call = batch()
        .parse("s", "select n from t where id = $1")
        .call("s", &["20"])
        .call("s", &["101"])
        .sync();
    let found = held.stand.sharded.ask(&call.0);
    assert_eq!(found.iter().filter(|line| line.starts_with('D')).count(), 2);
}

#[test]
fn moving_keys_wait_and_go_on_when_released() {
    let mut held = Held::while_held("hold_moving");
    let texts = [
        "select count(*) from t",
        "select n from t where id = 9",
        "update t set n = n + 1 where id in (3, 101)",
        "insert into t values (0, 7), (300, 7)",
        "delete from t where n = 99",
        "explain analyze select * from t where id = 4",
        "copy t to stdout",
    ];
    let mut clients: Vec<Client> = texts.iter().map(|_| held.other.client()).collect();
    for (client, text) in clients.iter_mut().zip(texts) {
        client.send(&query(text));
    }
    waiting(&held.other, texts.len());
    assert!(clients.iter().all(|client| !client.has_answer()));
    held.end("released");
    for (client, text) in clients.iter_mut().zip(texts) {
        let found = client.answers(1);
        assert!(!found[0].starts_with('E'), "{text}: {found:?}");
    }
    waiting(&held.other, 0);
    // By itself: together with the others it could be in a ring of waits.
    held.hold(2, 60);
    held.drained(2, 2);
    held.theirs.send(&query("truncate t"));
    waiting(&held.other, 1);
    held.end("released");
    let found = held.theirs.answers(1);
    assert!(found[0].starts_with('C'), "{found:?}");
    answers(&mut held.stand.sharded, "select count(*) from t");
}

#[test]
fn what_was_committed_goes_on() {
    let mut held = Held::while_held("hold_committed");
    held.stand
        .sharded
        .send(&query("select count(*) from t where id = 1"));
    held.theirs.send(&query("insert into t values (0, 1)"));
    waiting(&held.stand.proxy, 1);
    waiting(&held.other, 1);
    held.end("committed");
    let found = held.stand.sharded.answers(1);
    assert!(found.contains(&"D 1".to_owned()), "{found:?}");
    let found = held.theirs.answers(1);
    assert!(found[0].starts_with('C'), "{found:?}");
}

#[test]
fn transactions_that_have_touched_what_moves_pass_and_are_waited_for() {
    let mut held = Held::start("hold_open");
    let mut open = held.stand.proxy.client();
    answers(&mut open, "begin");
    answers(&mut open, "update t set n = 1 where id = 1");
    held.hold(1, 60);
    held.drained(1, 1);
    let told = held.waited_for(1);
    assert!(told.contains(&open.pid.to_string()), "{told}");
    answers(&mut open, "update t set n = 1 where id = 2");
    answers(&mut open, "select count(*) from t");
    // Others wait meanwhile, those of the same proxy and in a transaction that was elsewhere.
    let mut late = held.stand.proxy.client();
    answers(&mut late, "begin");
    answers(&mut late, "select n from u where id = 5");
    late.send(&query("select n from t where id = 1"));
    waiting(&held.stand.proxy, 1);
    answers(&mut open, "commit");
    held.drained(1, 2);
    // It has ended: its next one waits.
    open.send(&query("select n from t where id = 1"));
    waiting(&held.stand.proxy, 2);
    held.end("released");
    for client in [&mut open, &mut late] {
        let found = client.answers(1);
        assert!(found.contains(&"D 1".to_owned()), "{found:?}");
    }
}

#[test]
fn a_hold_ends_at_its_deadline_though_its_leader_is_dead() {
    let mut held = Held::start("hold_deadline");
    held.hold(1, 2);
    held.drained(1, 2);
    let begun = Instant::now();
    held.stand
        .sharded
        .send(&query("select n from t where id = 1"));
    held.theirs.send(&query("select count(*) from t"));
    for client in [&mut held.stand.sharded, &mut held.theirs] {
        let found = client.answers(1);
        assert!(!found[0].starts_with('E'), "{found:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    let state = held.stand.shards[0].value("select state from shardway.hold");
    assert_eq!(state, "released", "nobody can commit it any more");
}

#[test]
fn whoever_waits_can_cancel_and_leave() {
    let mut held = Held::while_held("hold_cancel");
    let mut client = held.stand.proxy.client();
    client.send(&query("select n from t where id = 1"));
    waiting(&held.stand.proxy, 1);
    client.cancel(held.stand.proxy.port);
    let found = client.answers(1);
    assert!(found[0].contains("57014"), "{found:?}");
    // Its session goes on; in a transaction the cancel has failed it.
    answers(&mut client, "begin");
    answers(&mut client, "update u set n = 5 where id = 5");
    client.send(&query("update t set n = 5 where id = 1"));
    waiting(&held.stand.proxy, 1);
    client.cancel(held.stand.proxy.port);
    assert!(client.answers(1)[0].contains("57014"));
    let found = client.ask(&query("select 1"));
    assert!(found[0].contains("25P02"), "{found:?}");
    answers(&mut client, "rollback");
    client.send(&query("select count(*) from t"));
    waiting(&held.stand.proxy, 1);
    drop(client);
    waiting(&held.stand.proxy, 0);
    held.drained(1, 2);
    held.end("released");
    assert_eq!(held.theirs.value("select n from u where id = 5"), "0");
}

#[test]
fn a_pipeline_waits_where_it_touches_what_moves_and_keeps_its_order() {
    let mut held = Held::while_held("hold_pipeline");
    let client = &mut held.stand.sharded;
    let pipeline = batch()
        .parse("s", "select n from t where id = $1")
        .call("s", &["15"])
        .call("s", &["1"])
        .call("s", &["16"])
        .sync();
    client.send(&pipeline.0);
    waiting(&held.stand.proxy, 1);
    let client = &mut held.stand.sharded;
    // What stands before it is answered, what stands behind it is not.
    let before = client.until("C");
    assert_eq!(
        before.iter().filter(|line| line.starts_with('D')).count(),
        1
    );
    assert!(!client.has_answer());
    held.end("released");
    let found = held.stand.sharded.answers(1);
    assert_eq!(found.iter().filter(|line| line.starts_with('D')).count(), 2);
    // Statements of SQL, and those that were prepared before.
    answers(
        &mut held.stand.sharded,
        "prepare p as select n from t where id = 1",
    );
    held.hold(2, 60);
    held.drained(2, 2);
    held.stand.sharded.send(&query("execute p"));
    waiting(&held.stand.proxy, 1);
    let mut other = held.stand.proxy.client();
    other.send(
        &batch()
            .run("select n from t where id = $1", &["3"])
            .sync()
            .0,
    );
    waiting(&held.stand.proxy, 2);
    held.end("released");
    for client in [&mut held.stand.sharded, &mut other] {
        let found = client.answers(1);
        assert!(found.contains(&"D 0".to_owned()), "{found:?}");
    }
}

#[test]
fn texts_of_several_statements_and_copies_wait() {
    let mut held = Held::while_held("hold_texts");
    let mut text = held.stand.proxy.client();
    text.send(&query(
        "insert into t values (30, 1); insert into t values (4000, 1); update t set n = 8 where id = 1",
    ));
    let mut copying = held.stand.proxy.client();
    copying.send(&query("copy t from stdin"));
    waiting(&held.stand.proxy, 2);
    held.end("released");
    let found = text.answers(1);
    assert_eq!(found.iter().filter(|line| line.starts_with('C')).count(), 3);
    copying.until("G");
    // A COPY that has begun is a transaction that passes.
    held.hold(2, 60);
    held.drained(2, 1);
    let told = held.waited_for(2);
    assert!(told.contains(&copying.pid.to_string()), "{told}");
    copying.send(&batch().copy_data("-5\t1\n").bare(b'c').0);
    let found = copying.answers(1);
    assert!(found[0].starts_with('C'), "{found:?}");
    held.drained(2, 2);
    held.end("released");
    assert_eq!(held.theirs.value("select n from t where id = -5"), "1");
}

#[test]
fn what_stands_behind_a_failed_transaction_waits() {
    let name = "hold_failed";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = held.stand.proxy.client();
        answers(&mut client, "begin");
        answers(&mut client, "select n from u where id = 5");
        let found = client.ask(&query("select 1 / 0"));
        assert_eq!(found.last().map(String::as_str), Some("Z E"));
        clients.push(client);
    }
    held.hold(1, 60);
    held.drained(1, 2);
    let read = "select n from t where id = 1";
    clients[0].send(&query(&format!("commit; {read}")));
    clients[1].send(&query(&format!("rollback; begin; {read}; commit")));
    clients[2].send(&batch().run("rollback", &[]).run(read, &[]).sync().0);
    waiting(&held.stand.proxy, 3);
    held.end("released");
    for client in &mut clients {
        let found = client.answers(1);
        assert!(found.contains(&"D 0".to_owned()), "{found:?}");
    }
}

#[test]
fn what_has_moved_is_answered_by_its_new_owner() {
    let name = "hold_flip";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    assert_eq!(held.theirs.value("select count(*) from t"), "22");
    let mut prepared = held.stand.proxy.client();
    let parse = batch().parse("s", "select n from t where id = $1").sync();
    prepared.ask(&parse.0);
    let mut summing = held.other.client();
    let sum = "select sum(n) from t where id between $1 and 3";
    summing.ask(&batch().parse("s", sum).call("s", &["1"]).sync().0);
    let mut one_snapshot = held.stand.proxy.client();
    answers(&mut one_snapshot, "begin isolation level repeatable read");
    answers(&mut one_snapshot, "select * from u where id = 101");
    let mut longest = held.stand.proxy.client();
    answers(&mut longest, "begin isolation level repeatable read");
    answers(&mut longest, "select * from u where id = 101");
    held.hold(1, 60);
    held.drained(1, 2);
    let mut reading = held.stand.proxy.client();
    reading.send(&query("select n from t where id = 1"));
    prepared.send(&batch().call("s", &["2"]).sync().0);
    one_snapshot.send(&query("select n from t where id = 3"));
    let mut transaction = held.other.client();
    answers(&mut transaction, "begin");
    // It would keep its lock while it waits for the next key.
    transaction.send(&query("update t set n = 1 where id = 20"));
    held.theirs.send(&query("insert into t values (0, 100)"));
    let mut counting = held.other.client();
    counting.send(&query(
        "select count(*), sum(n) from t where id between 1 and 3",
    ));
    waiting(&held.stand.proxy, 3);
    summing.send(&batch().call("s", &["1"]).sync().0);
    waiting(&held.other, 4);
    Held::flip(&engine, 1);
    let begun = Instant::now();
    assert!(reading.answers(1).contains(&"D 100".to_owned()));
    println!("answered {:?} after the commit", begun.elapsed());
    assert!(prepared.answers(1).contains(&"D 100".to_owned()));
    assert!(summing.answers(1).contains(&"D 300".to_owned()));
    assert!(counting.answers(1).contains(&"D 3|300".to_owned()));
    assert_eq!(held.theirs.answers(1), ["C INSERT 0 1\\0", "Z I"]);
    assert_eq!(transaction.answers(1), ["C UPDATE 1\\0", "Z T"]);
    answers(&mut transaction, "update t set n = n + 1 where id = 4");
    answers(&mut transaction, "commit");
    // Its snapshot on the new owner may lack what the old one had by then.
    let found = one_snapshot.answers(1);
    assert!(found[0].contains("40001"), "{found:?}");
    let sum = "select sum(n) from t where id < 10";
    assert_eq!(
        held.stand.seen(sum)[1],
        "1001",
        "1 to 9, the new row, one more"
    );
    assert_eq!(
        held.stand.seen(sum)[0],
        "0",
        "what is left there is nobody's"
    );
    // Also once everything is over, and nothing moves any more.
    let over = engine.registry.set_moving("w", &[], 5);
    engine.runtime.block_on(over).unwrap();
    held.known(2);
    let found = longest.ask(&query("select n from t where id = 3"));
    assert!(found[0].contains("40001"), "{found:?}");
}

/// A client of the first proxy whose statements that any shard answers go to the second.
pub(crate) fn at_second(held: &Held) -> Client {
    let mut clients = (0..30).map(|_| held.stand.proxy.client());
    let found = clients.find_map(|mut client| {
        let name = client.value("select current_catalog");
        name.ends_with("_1").then_some(client)
    });
    found.expect("any shard answers for some")
}

#[test]
fn one_snapshot_is_of_before_a_flip_however_it_was_promised() {
    const BEFORE: &str = "40001";
    const NOW: &str = "D 100";
    const READS: &str = "select * from u where id = 101";
    const DEFAULT: &str = "set default_transaction_isolation = 'repeatable read'";
    let cases: &[(&[&str], &str)] = &[
        (
            &["begin isolation level repeatable read; select * from u where id = 101"],
            BEFORE,
        ),
        (
            &[
                "begin; set transaction isolation level repeatable read; set local work_mem = '1MB'",
                READS,
            ],
            BEFORE,
        ),
        (
            &[
                "begin; set local work_mem = '1MB'",
                "set transaction isolation level serializable",
                READS,
            ],
            BEFORE,
        ),
        (
            &[
                "begin isolation level repeatable read",
                READS,
                "commit and chain",
                READS,
            ],
            BEFORE,
        ),
        (&[DEFAULT, "begin", READS], BEFORE),
        (&[DEFAULT, "begin; select * from u where id = 101"], BEFORE),
        (
            &[DEFAULT, "begin isolation level read committed", READS],
            NOW,
        ),
        (&["begin; select * from u where id = 101"], NOW),
        (&["begin; set local work_mem = '1MB'", READS], NOW),
        (&["begin", READS], NOW),
    ];
    // Where a view is on one shard, that answers for all.
    let (tables, _view) = DDL.split_once("; create view").unwrap();
    let three = Three {
        ddl: tables,
        pool: "size = 24",
        ..three("hold_snapshots")
    };
    let (mut held, engine) = (Held::of(three), Engine::of(three));
    held.double(&engine);
    held.known(2);
    let mut clients = Vec::new();
    for (texts, told) in cases {
        let mut client = at_second(&held);
        texts.iter().for_each(|text| answers(&mut client, text));
        clients.push((client, texts, told));
    }
    held.hold(1, 60);
    held.drained(1, 2);
    Held::flip(&engine, 1);
    held.known(2);
    for (mut client, texts, told) in clients {
        let found = client.ask(&query("select n from t where id = 3"));
        assert!(
            found.iter().any(|line| line.contains(told)),
            "{texts:?}: {found:?}"
        );
    }
}

#[test]
fn rows_are_not_on_two_shards_before_statements_have_ended_that_do_not_know_of_it() {
    let three = Three {
        pool: "size = 1",
        ..three("hold_before")
    };
    let (mut held, engine) = (Held::of(three), Engine::of(three));
    let mut holder = held.stand.proxy.client();
    let mut counting = held.stand.proxy.client();
    answers(&mut holder, "begin");
    answers(&mut holder, "select n from t where id = 101");
    // Planned now, it is sent when it has a backend of every shard.
    counting.send(&query("select count(*) from t"));
    let mut console = Client::connect_to(held.stand.proxy.port, "shardway", &[]);
    until("it waits for a backend", || {
        let rows = console.ask(&query("SHOW CLIENTS"));
        rows.iter().any(|row| row.contains("|waiting|"))
    });
    held.announce(&engine);
    held.is_awaited();
    answers(&mut holder, "commit");
    assert!(counting.answers(1).contains(&"D 22".to_owned()));
    held.known(2);
    held.add_copies();
    assert_eq!(held.stand.sharded.value("select count(*) from t"), "22");
}

#[test]
fn a_portal_of_before_is_waited_for_whatever_is_bound_behind_it() {
    let three = Three {
        pool: "size = 1",
        ..three("hold_portal")
    };
    let (mut held, engine) = (Held::of(three), Engine::of(three));
    let mut client = held.stand.proxy.client();
    answers(&mut client, "begin");
    client.send(
        &batch()
            .parse("all", "select id from t")
            .bind("all", "all", &[])
            .flush()
            .0,
    );
    client.until("2");
    held.announce(&engine);
    held.is_awaited();
    client.send(
        &batch()
            .parse("one", "select n from t where id = 101")
            .bind("one", "one", &[])
            .execute("one", 0)
            .flush()
            .0,
    );
    client.until("C");
    held.is_awaited();
    client.send(&batch().execute("all", 0).sync().0);
    let found = client.answers(1);
    let rows = found.iter().filter(|line| line.starts_with('D')).count();
    assert_eq!(rows, 22, "{found:?}");
    answers(&mut client, "commit");
    held.known(2);
    held.add_copies();
    assert_eq!(held.stand.sharded.value("select count(*) from t"), "22");
}

#[test]
fn transactions_that_a_reload_left_behind_know_what_is_on_two_shards() {
    const OWN: &str = "control = { user = \"postgres\" }";
    const OTHER: &str = "control = { user = \"hold_reload\" }";
    let three = three("hold_reload");
    let (mut held, engine) = (Held::of(three), Engine::of(three));
    held.home("create role hold_reload superuser login");
    held.stand.proxy.reload(OWN, OTHER);
    let mut left = held.stand.proxy.client();
    let mut counted = vec![];
    until("the database is looked at again", || {
        answers(&mut left, "begin");
        answers(&mut left, "select n from t where id = 101");
        counted = left.ask(&query("select count(*) from t"));
        left.ask(&query("rollback"));
        counted.contains(&"D 22".to_owned())
    });
    answers(&mut left, "begin");
    answers(&mut left, "select n from t where id = 101");
    held.stand.proxy.reload(OTHER, OWN);
    // It hears of nothing by itself from now on.
    held.home("alter role hold_reload nologin");
    held.home(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'hold_reload'",
    );
    held.announce(&engine);
    held.known(2);
    held.add_copies();
    let found = left.ask(&query("select count(*) from t"));
    assert!(found.contains(&"D 22".to_owned()), "{found:?}");
    answers(&mut left, "rollback");
    assert_eq!(left.value("select count(*) from t"), "22");
}

#[test]
fn tables_that_move_keep_their_schema() {
    let name = "hold_schema";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    for sql in [
        "alter table t add column x int",
        "create unique index on t (n, id)",
        "drop table t",
        "create trigger x after insert on t for each row execute function f()",
        "/* shardway: group=g key=id */ create table another (id bigint primary key)",
    ] {
        held.stand.fails(sql, "55006");
    }
    held.stand
        .fails("truncate t, u", "55006 TRUNCATE is not possible");
    for sql in [
        "alter table u add column x int",
        "create index on u (n)",
        "truncate u",
        "analyze t",
        "create index on t (n)",
        "delete from t",
    ] {
        answers(&mut held.stand.sharded, sql);
    }
    assert_eq!(held.stand.seen("select count(*) from t"), ["0", "9", "0"]);
}

/// A proxy in a process of its own.
struct Process {
    child: Child,
    port: u16,
    directory: std::path::PathBuf,
}

impl Process {
    pub(crate) fn start(name: &str) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let directory =
            std::env::temp_dir().join(format!("shardway-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let config = directory.join("shardway.toml");
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:{port}\"]\nworkers = 2\n[pool]\nsize = 4\n{}\n[users.postgres]\nauth = \"trust\"\n",
            three(name).databases()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_shardway"))
            .args(["serve", "--config"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("it listens", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        Self {
            child,
            port,
            directory,
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

#[test]
fn a_proxy_that_stood_still_shows_nothing_old() {
    let name = "hold_frozen";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    let frozen = Process::start(name);
    held.known(3);
    let mut reading = Client::connect(frozen.port, &[]);
    assert_eq!(reading.value("select n from t where id = 1"), "0");
    let mut writing = Client::connect(frozen.port, &[]);
    let mut open = Client::connect(frozen.port, &[]);
    answers(&mut open, "begin");
    assert_eq!(open.value("select n from t where id = 2"), "0");
    // A batch that has begun, and one whose first statement is under way.
    let read = "select n from t where id = $1";
    let mut begun = Client::connect(frozen.port, &[]);
    begun.send(&batch().parse("", read).flush().0);
    begun.until("1");
    let mut pipelined = Client::connect(frozen.port, &[]);
    pipelined.send(&batch().run("select n from u where id = 5", &[]).flush().0);
    pipelined.until("C");
    // It knows of nothing that moves.
    frozen.signal("-STOP");
    held.double(&engine);
    held.known(2);
    held.hold(1, 60);
    held.drained(1, 2);
    until("it is taken for one that relies on nothing", || {
        held.stand.shards[0].value(
            "select count(*) from shardway.proxy where heartbeat < clock_timestamp() - interval '7 s'",
        ) == "1"
    });
    Held::flip(&engine, 1);
    reading.send(&query("select n from t where id = 1"));
    writing.send(&query("update t set n = n + 1 where id = 3"));
    open.send(&query("select n from t where id = 2"));
    begun.send(&batch().bind("", "", &["4"]).execute("", 0).sync().0);
    pipelined.send(&batch().run(read, &["5"]).sync().0);
    frozen.signal("-CONT");
    for client in [&mut begun, &mut pipelined] {
        let found = client.answers(1);
        let refused = found.iter().any(|line| line.starts_with('E'));
        assert!(refused || found.contains(&"D 100".to_owned()), "{found:?}");
    }
    let found = reading.answers(1);
    assert!(found.contains(&"D 100".to_owned()), "{found:?}");
    assert_eq!(writing.answers(1), ["C UPDATE 1\\0", "Z I"]);
    // It goes on at the new owner, or fails; what the old one has left is never shown.
    let found = open.answers(1);
    let right = found[0].contains("40001") || found.contains(&"D 100".to_owned());
    assert!(right, "{found:?}");
    assert_eq!(
        held.stand
            .seen("select coalesce(max(n), -1) from t where id = 3")[1],
        "101"
    );
}
