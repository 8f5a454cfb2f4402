//! Transactions over several shards that wait for each other's rows.

use crate::{
    client::{Client, batch, query},
    harness::{postgres, until},
    three::{Stand, Three},
};
use shardway::wire::notice;

const ROWS: &str = "insert into t values (1, 1), (2, 2), (101, 1), (102, 2), (201, 1), (202, 2)";

#[test]
fn what_is_refused_within_leaves_the_other_shards_as_they_were() {
    let mut stand = Three::new("waiting").start();
    stand.all_alike(&[
        "insert into t values (1, 1), (101, 2), (201, 3)",
        "select * from t order by id",
        "begin",
        "update t set n = n + 1 where id = 1",
    ]);
    stand.ask("delete from t where id = 101");
    stand.fails("update t set n = 1 / 0 where id = 201", "22012");
    stand.ask("commit");
    assert_eq!(stand.seen("select sum(n) from t"), ["1", "2", "3"]);
}

#[test]
fn of_two_that_cross_on_two_shards_one_is_ended_and_the_other_goes_on() {
    let mut stand = Three::new("crossing").start();
    stand.ask(ROWS);
    let (mut one, mut other) = (stand.proxy.client(), stand.proxy.client());
    let told = cross(&mut stand, &mut one, &mut other);
    // As PostgreSQL tells it, with the ring.
    let [error] = told.as_slice() else {
        panic!("exactly one of them: {told:?}");
    };
    assert!(error.starts_with("40P01 deadlock detected"), "{error}");
    for told in [
        "On shard \"s0\" process",
        "On shard \"s1\" process",
        "(SW311)",
    ] {
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(
        stand.seen("select coalesce(sum(n), 0) from t"),
        ["4", "4", "3"]
    );
}

#[test]
fn of_two_that_cross_through_two_proxies_one_is_ended() {
    let three = Three::new("crossing_proxies");
    let mut stand = three.start();
    let second = three.proxy();
    stand.ask(ROWS);
    let mut other = second.client();
    until("the second knows the others", || {
        other.ask(&query("insert into ready values (2), (102)"))[0].starts_with('C')
    });
    // Whoever began, and whoever closed the ring.
    for turn in 0..2 {
        let (mut one, mut other) = (stand.proxy.client(), second.client());
        let told = match turn {
            0 => cross(&mut stand, &mut one, &mut other),
            _ => cross(&mut stand, &mut other, &mut one),
        };
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("40P01 "), "{told:?}");
    }
}

#[test]
fn a_ring_through_transactions_of_one_shard_and_past_the_proxy_is_found() {
    let mut stand = Three::new("crossing_local").start();
    stand.ask(ROWS);
    let mut one = stand.proxy.client();
    let mut other = stand.proxy.client();
    let mut local = stand.proxy.client();
    let mut direct = stand.direct(0);
    for (client, id) in [
        (&mut one, 1),
        (&mut other, 101),
        (&mut local, 102),
        (&mut direct, 2),
    ] {
        assert_done(&client.ask(&query("begin")));
        assert_done(&client.ask(&update(id)));
    }
    // one, on s0 and s2, waits on s1 for local, which waits there for other, which waits on s0 for direct, which waits
    // there for one.
    assert_done(&one.ask(&update(201)));
    one.send(&update(102));
    stand.waits_on(1, 1);
    local.send(&update(101));
    stand.waits_on(1, 2);
    direct.send(&update(1));
    stand.waits_on(0, 1);
    other.send(&update(2));
    until("one is ended", || one.has_answer() || other.has_answer());
    let (ended, goes_on) = if one.has_answer() {
        (&mut one, &mut other)
    } else {
        (&mut other, &mut one)
    };
    let told = answer(ended).expect("an error");
    assert!(told.starts_with("40P01 "), "{told}");
    // Who waited for the one that ended goes on at once, and then the others.
    let mut done = 0;
    until("the others go on", || {
        for client in [&mut local, &mut direct, &mut *goes_on] {
            if client.has_answer() {
                assert_eq!(answer(client), None);
                assert_done(&client.ask(&query("commit")));
                done += 1;
            }
        }
        stand.shards[0].value(LOCKED) == "0" && stand.shards[1].value(LOCKED) == "0"
    });
    assert!(done > 0);
}

#[test]
fn of_three_on_three_shards_one_is_ended() {
    let mut stand = Three::new("crossing_three").start();
    stand.ask(ROWS);
    let ids = [1, 101, 201];
    let mut clients: Vec<Client> = ids.iter().map(|_| stand.proxy.client()).collect();
    for (client, id) in clients.iter_mut().zip(ids) {
        client.ask(&query("begin"));
        assert_done(&client.ask(&update(id)));
    }
    for (at, client) in clients.iter_mut().enumerate() {
        client.send(&update(ids[(at + 1) % 3]));
    }
    let mut errors = Vec::new();
    let mut left = clients;
    until("all are done", || {
        let (ready, waiting) = std::mem::take(&mut left)
            .into_iter()
            .partition::<Vec<_>, _>(Client::has_answer);
        left = waiting;
        for mut client in ready {
            errors.extend(answer(&mut client));
            client.ask(&query("commit"));
        }
        left.is_empty()
    });
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("40P01 "), "{errors:?}");
    assert!(errors[0].matches("waits for").count() == 3, "{errors:?}");
}

#[test]
fn a_long_chain_of_waits_is_left_alone() {
    let mut three = Three::new("chain");
    three.pool = "size = 8";
    three.database = "deadlock_interval = \"50ms\"";
    let mut stand = three.start();
    stand.ask(ROWS);
    // Each holds a row of one shard and waits for the next, whose holder waits on another shard.
    let mut clients: Vec<Client> = (0..4).map(|_| stand.proxy.client()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.ask(&query("begin"));
        assert_done(&client.ask(&update([1, 101, 201, 2][at])));
        assert_done(&client.ask(&update([102, 202, 3, 203][at])));
    }
    for (at, id, shard) in [(1, 1, 0), (2, 101, 1), (3, 201, 2)] {
        clients[at].send(&update(id));
        stand.waits_on(shard, 1);
    }
    // They were looked at, more than once.
    until("they were looked at", || {
        let seen = "select count(distinct number) from shardway.waiting where seen > begun + interval '500 ms'";
        stand.shards[0].value(seen) == "3"
    });
    for client in &mut clients {
        assert_eq!(client.has_answer().then(|| answer(client)).flatten(), None);
        assert_done(&client.ask(&query("commit")));
    }
}

#[test]
fn writes_without_a_transaction_that_cross_end_too() {
    let mut stand = Three::new("crossing_writes").start();
    stand.ask(ROWS);
    let (mut one, mut other) = (stand.proxy.client(), stand.proxy.client());
    one.ask(&query("begin"));
    assert_done(&one.ask(&update(101)));
    // Holds all rows of s0, waits on s1.
    other.send(&query("update t set n = n + 1"));
    stand.waits_on(1, 1);
    one.send(&update(1));
    until("one is ended", || one.has_answer() || other.has_answer());
    let errors: Vec<String> = [&mut one, &mut other]
        .into_iter()
        .filter_map(answer)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("40P01 "), "{errors:?}");
    one.ask(&query("commit"));
    assert_done(&other.ask(&query("update t set n = n + 1")));
}

#[test]
fn a_savepoint_before_the_ring_keeps_what_came_before_it() {
    let mut stand = Three::new("crossing_savepoint").start();
    stand.ask(ROWS);
    let (mut one, mut other) = (stand.proxy.client(), stand.proxy.client());
    other.ask(&query("begin"));
    assert_done(&other.ask(&update(102)));
    assert_done(&other.ask(&update(2)));
    // The younger one, which ends.
    one.ask(&query("begin"));
    assert_done(&one.ask(&update(1)));
    assert_done(&one.ask(&update(201)));
    one.ask(&query("savepoint before"));
    assert_done(&one.ask(&update(101)));
    one.send(&update(2));
    stand.waits_on(0, 1);
    other.send(&update(101));
    let told = answer(&mut one).expect("an error");
    assert!(told.starts_with("40P01 "), "{told}");
    // The other has the row before the savepoint is gone back to.
    assert_eq!(answer(&mut other), None);
    assert_done(&one.ask(&query("rollback to before")));
    assert_done(&one.ask(&update(202)));
    assert_done(&one.ask(&query("commit")));
    assert_done(&other.ask(&query("commit")));
    assert_eq!(stand.seen("select sum(n) from t"), ["5", "5", "5"]);
}

/// What the younger of two does that waits on one shard for the older, who then waits for it on another.
struct Crossing {
    name: &'static str,
    /// The older one has done this, and then waits at the second.
    older: [&'static str; 2],
    /// What the younger one does before, and how it comes to wait.
    before: &'static [&'static str],
    waits: Vec<u8>,
    /// Where it waits.
    on: usize,
}

#[expect(clippy::too_many_lines, reason = "a table: one entry per way to wait")]
fn crossings() -> [Crossing; 6] {
    [
        Crossing {
            name: "the extended protocol",
            older: [
                "update t set n = 0 where id = 1",
                "update t set n = 0 where id = 101",
            ],
            before: &["update t set n = 0 where id = 101"],
            waits: batch()
                .run("update t set n = $1 where id = $2", &["5", "1"])
                .sync()
                .0,
            on: 0,
        },
        Crossing {
            name: "COPY",
            older: [
                "insert into t values (20, 0)",
                "update t set n = 0 where id = 101",
            ],
            before: &["update t set n = 0 where id = 101"],
            waits: batch()
                .query("copy t from stdin")
                .copy_data("220\t1\n20\t1\n")
                .bare(b'c')
                .0,
            on: 0,
        },
        Crossing {
            name: "an advisory lock",
            older: [
                "select pg_advisory_xact_lock(5)",
                "update t set n = 0 where id = 101",
            ],
            before: &["update t set n = 0 where id = 101"],
            waits: query("select pg_advisory_xact_lock(5)"),
            on: 0,
        },
        Crossing {
            name: "the decision of a commit, with a part prepared",
            older: [
                "insert into late values (7)",
                "update t set n = 0 where id = 102",
            ],
            before: &[
                "update t set n = 0 where id = 102",
                "insert into late values (7)",
            ],
            waits: query("commit"),
            on: 0,
        },
        Crossing {
            name: "the preparing of a part",
            older: [
                "insert into late values (107)",
                "update t set n = 0 where id = 2",
            ],
            before: &[
                "insert into late values (107)",
                "update t set n = 0 where id = 2",
            ],
            waits: query("commit"),
            on: 1,
        },
        Crossing {
            name: "a write to a table that all have a copy of",
            older: ["update r set n = 1", "update t set n = 0 where id = 101"],
            before: &["update t set n = 0 where id = 101"],
            waits: query("update r set n = 2"),
            on: 0,
        },
    ]
}

#[test]
fn whatever_a_transaction_waits_at_it_is_ended_there() {
    let mut three = Three::new("crossing_kinds");
    three.ddl = "create table t (id bigint primary key, n int); create table r (n int); insert into r values (0); \
         create table late (id bigint primary key deferrable initially deferred)";
    three.tables = &["public.t", "public.late"];
    three.reference = &["public.r"];
    let mut stand = three.start();
    assert_done(&stand.ask(ROWS));
    for crossing in crossings() {
        let (mut older, mut younger) = (stand.proxy.client(), stand.proxy.client());
        assert_done(&older.ask(&query("begin")));
        assert_done(&older.ask(&query(crossing.older[0])));
        assert_done(&younger.ask(&query("begin")));
        for sql in crossing.before {
            assert_done(&younger.ask(&query(sql)));
        }
        younger.send(&crossing.waits);
        stand.waits_on(crossing.on, 1);
        older.send(&query(crossing.older[1]));
        let name = crossing.name;
        let told = answer(&mut younger).unwrap_or_default();
        assert!(
            told.starts_with("40P01 deadlock detected"),
            "{name}: {told}"
        );
        assert_eq!(answer(&mut older), None, "{name}");
        assert_done(&younger.ask(&query("rollback")));
        assert_done(&older.ask(&query("rollback")));
        let left = "select count(*) from pg_prepared_xacts where database = current_database()";
        assert_eq!(stand.seen(left), ["0", "0", "0"], "{name}");
    }
    assert_eq!(stand.seen("select sum(n) from t"), ["3", "3", "3"]);
}

#[test]
fn two_that_cross_in_pools_of_one_backend_both_go_on() {
    let mut three = Three::new("reserve");
    three.pool = "size = 1";
    let mut stand = three.start();
    stand.ask(ROWS);
    let (mut one, mut other) = (stand.proxy.client(), stand.proxy.client());
    let mut third = stand.proxy.client();
    for (client, id) in [(&mut one, 1), (&mut other, 101)] {
        client.ask(&query("begin"));
        assert_done(&client.ask(&update(id)));
    }
    for (client, id) in [(&mut one, 102), (&mut other, 2)] {
        assert_done(&client.ask(&update(id)));
    }
    // Nobody else draws on it.
    third.send(&query("select n from t where id = 2"));
    for client in [&mut one, &mut other] {
        assert!(!third.has_answer());
        assert_eq!(client.ask(&query("commit"))[0], "C COMMIT\\0");
    }
    assert!(third.answers(1).contains(&"D 3".to_owned()));
    assert_eq!(
        stand.seen("select coalesce(sum(n), 0) from t"),
        ["5", "5", "3"]
    );
}

#[test]
fn without_a_reserve_who_goes_on_is_told_why_it_got_no_backend() {
    let mut three = Three::new("no_reserve");
    three.pool = "size = 1\nreserve_size = 0\nwait_timeout = \"3s\"";
    let mut stand = three.start();
    stand.ask(ROWS);
    let (mut one, mut other) = (stand.proxy.client(), stand.proxy.client());
    for (client, id) in [(&mut one, 1), (&mut other, 101)] {
        client.ask(&query("begin"));
        assert_done(&client.ask(&update(id)));
    }
    one.send(&update(102));
    let told = answer(&mut one).expect("an error");
    assert!(told.starts_with("53300 "), "{told}");
    assert!(told.contains("that go on from another shard"), "{told}");
    one.ask(&query("rollback"));
    assert_done(&other.ask(&update(2)));
}

#[test]
fn writes_of_the_same_rows_wait_one_for_the_other_and_rows_that_are_new_for_nobody() {
    let mut stand = Three::new("turns").start();
    stand.ask(ROWS);
    let mut direct = stand.direct(0);
    direct.ask(&query("begin"));
    assert_done(&direct.ask(&update(1)));
    let (mut one, mut other) = (stand.proxy.client(), stand.proxy.client());
    for client in [&mut one, &mut other] {
        client.send(&query("update t set n = n + 1"));
    }
    stand.waits_on(0, 2);
    let begun = "select count(*) from pg_locks where relation = 't'::regclass and mode = 'RowExclusiveLock'";
    assert_eq!(stand.seen(begun), ["3", "0", "0"]);
    direct.ask(&query("commit"));
    for client in [&mut one, &mut other] {
        assert_eq!(answer(client), None);
    }
    assert_eq!(stand.seen("select sum(n) from t"), ["8", "7", "7"]);
    // New rows: each shard has begun, and an error of one does not wait for another.
    direct.ask(&query("begin"));
    assert_done(&direct.ask(&query("insert into t values (10, 0)")));
    one.send(&query("insert into t values (10, 1), (110, 1), (210, 1)"));
    stand.waits_on(0, 1);
    until("they have begun", || stand.seen(begun) == ["2", "1", "1"]);
    other.send(&query("insert into t values (10, 2), (201, 2)"));
    let told = answer(&mut other).expect("an error");
    assert!(told.starts_with("23505 "), "{told}");
    direct.ask(&query("rollback"));
    assert_eq!(answer(&mut one), None);
    assert_eq!(stand.seen("select sum(n) from t"), ["9", "8", "8"]);
}

/// How many wait for a lock.
const LOCKED: &str = "select count(*) from pg_stat_activity \
     where datname = current_database() and wait_event_type = 'Lock'";

/// Two that lock a row each and then the other's; the errors that they got. Who got none commits, before the other has
/// said anything more; who got one is in a transaction that has failed as a whole, and tries again after it.
fn cross(stand: &mut Stand, one: &mut Client, other: &mut Client) -> Vec<String> {
    for (client, id) in [(&mut *one, 1), (&mut *other, 101)] {
        client.ask(&query("begin"));
        assert_done(&client.ask(&update(id)));
    }
    one.send(&update(101));
    stand.waits_on(1, 1);
    other.send(&update(1));
    let mut errors = Vec::new();
    let (mut ended, mut went_on) = (Vec::new(), Vec::new());
    until("one is ended", || one.has_answer() || other.has_answer());
    for client in [one, other] {
        // The other's wait is over as soon as it has lost.
        match answer(client) {
            Some(error) => {
                errors.push(error);
                ended.push(client);
            }
            None => went_on.push(client),
        }
    }
    for client in went_on {
        assert_eq!(client.ask(&query("commit"))[0], "C COMMIT\\0");
    }
    for client in ended {
        assert!(error_of(&client.ask(&query("select 1"))).is_some_and(|it| it.contains("25P02")));
        assert_eq!(client.ask(&query("rollback"))[0], "C ROLLBACK\\0");
    }
    errors
}

/// Reads an answer; SQLSTATE, message and DETAIL of its error.
fn answer(client: &mut Client) -> Option<String> {
    let mut error = None;
    loop {
        let (tag, body) = client.frame().expect("an answer");
        let part = |code| String::from_utf8_lossy(notice::field(&body, code).unwrap_or_default());
        match tag {
            b'E' => error = Some([part(b'C'), part(b'M'), part(b'D')].join(" ")),
            b'Z' => return error,
            _ => {}
        }
    }
}

fn update(id: i64) -> Vec<u8> {
    query(&format!("update t set n = n + 1 where id = {id}"))
}

fn error_of(answer: &[String]) -> Option<String> {
    answer.iter().find(|line| line.starts_with("E ")).cloned()
}

fn assert_done(answer: &[String]) {
    assert!(error_of(answer).is_none(), "{answer:?}");
}

impl Stand {
    /// Returns when so many backends of a shard wait for a lock.
    fn waits_on(&mut self, shard: usize, count: usize) {
        let shard = &mut self.shards[shard];
        until("they wait", || shard.value(LOCKED) == count.to_string());
    }

    /// A client of a shard past the proxy.
    fn direct(&mut self, shard: usize) -> Client {
        let name = self.shards[shard].value("select current_database()");
        Client::connect_to(postgres().port(), &name, &[])
    }
}
