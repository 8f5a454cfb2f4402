//! Transactions that write on several of three shards: what one PostgreSQL with all rows answers, and all of it or
//! nothing on every shard.

use crate::{
    client::{Client, batch, query},
    three::{Control, Stand, Three},
};

const TABLES: &str = "create table t (id bigint primary key, n int check (n < 1000)); \
    create table once (id bigint, n int, unique (id, n) deferrable initially deferred); \
    create table parent (id bigint primary key); \
    create table child (id bigint, parent bigint references parent deferrable initially immediate); \
    create table fatal (id bigint primary key); \
    create function die() returns trigger language plpgsql \
    as 'begin perform pg_terminate_backend(pg_backend_pid()); return null; end'; \
    create constraint trigger last after insert on fatal deferrable initially deferred \
    for each row execute function die()";

fn three(name: &str) -> Three<'_> {
    Three {
        ddl: TABLES,
        tables: &[
            "public.t",
            "public.once",
            "public.parent",
            "public.child",
            "public.fatal",
        ],
        database: "per_shard = [\"public.child.child_parent_fkey\", \"public.fatal.last\"]\n",
        pool: "size = 3",
        ..Three::new(name)
    }
}

fn stand(name: &str) -> Stand {
    three(name).start()
}

impl Stand {
    fn run(&mut self, statements: &[&str]) {
        for sql in statements {
            let answers = self.ask(sql);
            assert!(!answers[0].starts_with("E "), "{sql}: {answers:?}");
        }
    }

    fn ids(&mut self) -> Vec<String> {
        self.seen("select coalesce(string_agg(id::text, ',' order by id), '') from t")
    }

    /// Ends the backends of a shard that are in a transaction; how many.
    fn terminate(&mut self, shard: usize) -> String {
        let name = format!("{}_{shard}", self.name);
        self.shards[shard].value(&format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = '{name}' \
             and state like 'idle in transaction%'"
        ))
    }

    fn decisions(&mut self) -> Vec<String> {
        self.seen("select count(*) from shardway.decision")
    }
}

#[test]
fn a_commit_is_seen_on_every_shard_and_a_rollback_on_none() {
    let mut stand = stand("seen");
    stand.all_alike(&[
        "begin",
        "insert into t values (1, 1)",
        "insert into t values (101, 2)",
        "insert into t values (201, 3)",
        "update t set n = n + 10 where id = 1",
        "select n from t where id = 101",
    ]);
    assert_eq!(stand.ids(), ["", "", ""], "nothing before COMMIT");
    stand.all_alike(&["commit"]);
    assert_eq!(stand.ids(), ["1", "101", "201"]);
    stand.all_alike(&[
        "begin",
        "delete from t where id = 1",
        "delete from t where id = 101",
        "update t set n = 7 where id = 201",
        "rollback",
        "select n from t where id = 1",
        "select n from t where id = 201",
        "commit",
        "rollback",
    ]);
    assert_eq!(stand.ids(), ["1", "101", "201"]);
    stand.at_rest();
}

#[test]
fn savepoints_hold_on_every_shard() {
    let mut stand = stand("savepoints");
    stand.all_alike(&[
        "begin",
        "insert into t values (1, 1)",
        "savepoint a",
        "insert into t values (2, 1)",
        // This shard is reached behind the savepoint.
        "insert into t values (101, 1)",
        "savepoint \"B c\"",
        "insert into t values (102, 1)",
        "insert into t values (3, 1)",
        "rollback to \"B c\"",
        "select n from t where id = 102",
        "select n from t where id = 3",
        "select n from t where id = 101",
        "release \"B c\"",
        "rollback to a",
        "select n from t where id = 101",
        "insert into t values (103, 1)",
        "savepoint a",
        "insert into t values (201, 1)",
        "rollback to a",
        "release a",
        "release a",
        "rollback to a",
        "release nothing",
        "select 1",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["", "", ""], "a missing savepoint fails all");
    stand.all_alike(&[
        "begin",
        "insert into t values (1, 1)",
        "savepoint a",
        "insert into t values (101, 1)",
        "rollback to a",
        "insert into t values (201, 1)",
        "release a",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["1", "", "201"]);
    stand.at_rest();
}

#[test]
fn an_error_on_one_shard_fails_all() {
    let mut stand = stand("failing");
    stand.all_alike(&[
        "begin",
        "insert into t values (1, 1)",
        "insert into t values (101, 1)",
        "insert into t values (1, 1)",
        "select n from t where id = 101",
        "insert into t values (201, 1)",
        "savepoint a",
        "commit",
        "begin",
        "insert into t values (1, 1)",
        "savepoint a",
        "insert into t values (101, 1000)",
        "select n from t where id = 1",
        "rollback to a",
        "select n from t where id = 1",
        "insert into t values (101, 1)",
        "nonsense",
        "select n from t where id = 1",
        "rollback to a",
        "insert into t values (102, 1)",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["1", "102", ""]);
    stand.all_alike(&[
        "begin",
        "update t set n = 5 where id = 1",
        "update t set n = 5 where id = 102",
        "select 1/0",
        "rollback",
        "select n from t where id = 1",
        "select n from t where id = 102",
    ]);
    stand.at_rest();
}

#[test]
fn a_refused_statement_fails_all() {
    let mut stand = stand("refused");
    stand.run(&[
        "begin",
        "insert into t values (1, 1)",
        "savepoint a",
        "insert into t values (101, 1)",
    ]);
    let refused = stand.ask("insert into t select id + 1, n from t");
    assert!(refused[0].starts_with("E ERROR 0A000"), "{refused:?}");
    assert_eq!(refused[1], "Z E");
    let failed = stand.ask("select n from t where id = 1");
    assert!(failed[0].starts_with("E ERROR 25P02"), "{failed:?}");
    assert_eq!(stand.ask("commit")[0], "C ROLLBACK\\0");
    assert_eq!(stand.ids(), ["", "", ""]);
    stand.at_rest();
}

#[test]
fn a_constraint_that_fails_at_the_end_undoes_all() {
    let mut stand = stand("at_the_end");
    for (first, second) in [(1, 101), (101, 1), (201, 1)] {
        stand.all_alike(&[
            "begin",
            &format!("insert into once values ({first}, 1)"),
            &format!("insert into t values ({second}, 1)"),
            &format!("insert into once values ({first}, 1)"),
        ]);
        let (whole, sharded) = (&mut stand.whole, &mut stand.sharded);
        let whole = whole.ask(&query("commit"));
        assert!(whole[0].starts_with("E ERROR 23505"), "{whole:?}");
        assert_eq!(sharded.ask(&query("commit")), whole);
        assert_eq!(stand.ids(), ["", "", ""]);
        assert_eq!(stand.seen("select count(*) from once"), ["0", "0", "0"]);
        stand.at_rest();
    }
}

#[test]
fn what_wrote_on_one_shard_commits_plainly() {
    let mut stand = stand("plain");
    let before = stand.decisions();
    stand.all_alike(&[
        "begin",
        "select n from t where id = 101",
        "insert into t values (1, 1)",
        "select n from t where id = 201",
        "commit",
        "begin",
        "select n from t where id = 101",
        "select n from t where id = 1",
        "commit",
    ]);
    assert_eq!(stand.decisions(), before, "nothing was decided");
    assert_eq!(stand.ids(), ["1", "", ""]);
    stand.all_alike(&[
        "begin",
        "insert into t values (2, 1)",
        "insert into t values (102, 1)",
        "commit",
    ]);
    assert_ne!(stand.decisions(), before, "and here it was");
    stand.at_rest();
}

#[test]
fn settings_of_the_transaction_are_every_shards() {
    let mut stand = stand("told");
    let tell = "select current_setting('app.tenant', true), current_setting('work_mem'), n from t where id = ";
    stand.all_alike(&[
        "insert into t values (1, 1)",
        "insert into t values (101, 1)",
        "insert into t values (201, 1)",
        "set work_mem = '2MB'",
        "begin",
        "set local app.tenant = 'five'",
        "update t set n = 2 where id = 1",
        "set work_mem = '3MB'",
        &format!("{tell}1"),
        &format!("{tell}101"),
        "savepoint a",
        "set local app.tenant = 'six'",
        "select set_config('work_mem', '4MB', false)",
        &format!("{tell}1"),
        &format!("{tell}101"),
        &format!("{tell}201"),
        "rollback to a",
        &format!("{tell}1"),
        &format!("{tell}201"),
        &format!("{tell}101"),
        "reset work_mem",
        &format!("{tell}1"),
        &format!("{tell}201"),
        "set work_mem = '5MB'",
        "update t set n = 2 where id = 101",
        "commit",
    ]);
    for id in [1, 101, 201] {
        stand.alike(&query(&format!("{tell}{id}")), 1);
    }
    stand.all_alike(&[
        "begin",
        &format!("{tell}1"),
        "set work_mem = '6MB'",
        &format!("{tell}101"),
        "rollback",
    ]);
    for id in [1, 101, 201] {
        stand.alike(&query(&format!("{tell}{id}")), 1);
    }
    stand.all_alike(&[
        "begin",
        "select 1 from t where id = 1",
        "select 1 from t where id = 101",
        "set work_mem = 'much'",
        "select 1",
        "rollback",
    ]);
    stand.at_rest();
}

#[test]
fn constraints_are_deferred_on_every_shard() {
    let mut stand = stand("deferring");
    stand.all_alike(&[
        "begin",
        "insert into t values (1, 1)",
        "set constraints all deferred",
        "insert into child values (101, 101)",
        "insert into parent values (101)",
        "insert into child values (1, 1)",
        "insert into parent values (1)",
        "set constraints all immediate",
        "commit",
        "begin",
        "insert into t values (2, 1)",
        "insert into t values (102, 1)",
        "set constraints all deferred",
        "insert into child values (2, 2)",
        "insert into child values (102, 102)",
        "set constraints all immediate",
        "select 1",
        "rollback",
        "begin",
        "set constraints all deferred",
        "insert into child values (2, 2)",
        // Violated on the other shard only.
        "insert into t values (102, 1)",
        "set constraints all immediate",
        "select n from t where id = 102",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["1", "", ""]);
    assert_eq!(stand.seen("select count(*) from child"), ["1", "1", "0"]);
    stand.at_rest();
}

#[test]
fn pipelined_statements_of_several_shards_answer_in_order() {
    let mut stand = stand("pipelined");
    let insert = "insert into t (id, n) values ($1, $2)";
    let whole = batch()
        .run("begin", &[])
        .parse("i", insert)
        .call("i", &["1", "1"])
        .call("i", &["101", "1"])
        .call("i", &["2", "1"])
        .run("savepoint a", &[])
        .call("i", &["201", "1"])
        .call("i", &["102", "1"])
        .run("rollback to a", &[])
        .call("i", &["103", "1"])
        .run("select n from t where id = $1", &["101"])
        .run("commit", &[])
        .sync();
    stand.alike(&whole.0, 1);
    assert_eq!(stand.ids(), ["1,2", "101,103", ""]);
    let failing = batch()
        .run("begin", &[])
        .call("i", &["3", "1"])
        .call("i", &["104", "1"])
        .call("i", &["104", "1"])
        .call("i", &["4", "1"])
        .run("commit", &[])
        .sync()
        .run("select 1", &[])
        .sync()
        .run("rollback", &[])
        .sync();
    stand.alike(&failing.0, 3);
    assert_eq!(stand.ids(), ["1,2", "101,103", ""]);
    let apart = batch()
        .run("begin", &[])
        .sync()
        .call("i", &["5", "1"])
        .sync()
        .call("i", &["105", "1"])
        .sync()
        .run("set local work_mem = '7MB'", &[])
        .run("show work_mem", &[])
        .call("i", &["6", "1"])
        .run("show work_mem", &[])
        .sync()
        .run("commit", &[])
        .run("show work_mem", &[])
        .sync();
    stand.alike(&apart.0, 5);
    assert_eq!(stand.ids(), ["1,2,5,6", "101,103,105", ""]);
    stand.at_rest();
}

#[test]
fn the_next_transaction_of_a_chain_may_reach_all_shards() {
    let mut stand = stand("chained");
    stand.all_alike(&[
        "begin",
        "insert into t values (1, 1)",
        "insert into t values (101, 1)",
        "commit and chain",
        "insert into t values (2, 1)",
        "insert into t values (102, 1)",
        "rollback and chain",
        "insert into t values (3, 1)",
        "commit and chain",
        "insert into t values (4, 1)",
        "insert into t values (104, 1)",
        "commit",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["1,3,4", "101,104", ""]);
    stand.at_rest();
}

#[test]
fn a_lost_backend_leaves_no_half_transaction() {
    let mut stand = stand("torn");
    for shard in [0, 1] {
        stand.run(&["begin"]);
        for id in [1, 101, 201] {
            stand.run(&[&format!("insert into t values ({id}, 1)")]);
        }
        assert_eq!(stand.terminate(shard), "1");
        let answers = stand.ask("commit");
        assert!(answers[0].starts_with("E ERROR 08006"), "{answers:?}");
        assert_eq!(answers[1], "Z I");
        assert_eq!(stand.ids(), ["", "", ""]);
        stand.at_rest();
    }
    stand.run(&[
        "begin",
        "insert into t values (1, 1)",
        "insert into t values (101, 1)",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["1", "101", ""]);
}

#[test]
fn a_backend_that_dies_at_the_commit_leaves_no_half_transaction() {
    let mut stand = stand("dying_at_commit");
    // The shard that was used last decides: it dies at its COMMIT, the others at PREPARE TRANSACTION.
    for (fatal, others, sqlstate) in [
        (1, [101, 201], "40001"),
        (101, [1, 201], "40001"),
        (201, [1, 101], "40001"),
        (1, [101, 201], "08006"),
        (101, [1, 201], "08006"),
    ] {
        let dies = format!("insert into fatal values ({fatal})");
        let decides = sqlstate == "40001";
        stand.run(&["begin"]);
        if !decides {
            stand.run(&[&dies]);
        }
        for id in others {
            stand.run(&[&format!("insert into t values ({id}, 1)")]);
        }
        if decides {
            stand.run(&[&dies]);
        }
        let answers = stand.ask("commit");
        assert!(
            answers[0].starts_with(&format!("E ERROR {sqlstate}")),
            "{fatal}: {answers:?}"
        );
        assert_eq!(answers[1], "Z I");
        stand.at_rest();
        assert_eq!(stand.ids(), ["", "", ""]);
        assert_eq!(stand.seen("select count(*) from fatal"), ["0", "0", "0"]);
    }
}

#[test]
fn a_client_that_leaves_takes_its_transactions_with_it() {
    let mut stand = stand("left");
    for _ in 0..4 {
        // The pool has three backends: they would be used up if one were lost.
        let mut client = stand.proxy.client();
        for sql in [
            "begin",
            "insert into t values (1, 1)",
            "insert into t values (101, 1)",
            "insert into t values (201, 1)",
        ] {
            let answers = client.ask(&query(sql));
            assert!(!answers[0].starts_with("E "), "{sql}: {answers:?}");
        }
        drop(client);
        stand.at_rest();
    }
    assert_eq!(stand.ids(), ["", "", ""]);
}

#[test]
fn backends_serve_others_after_a_transaction_over_several_shards() {
    let mut stand = Three {
        pool: "size = 1",
        ..three("shared")
    }
    .start();
    for id in [1, 101, 201] {
        stand.run(&[&format!("insert into t values ({id}, 1)")]);
    }
    let name = |id| format!("select current_setting('application_name') from t where id = {id}");
    let mut others: Vec<Client> = ["second", ""]
        .map(|name| {
            let mut other = stand.proxy.client();
            other.ask(&query(&format!("set application_name = '{name}'")));
            other
        })
        .into();
    stand.run(&["set application_name = 'first'"]);
    for end in ["rollback", "commit"] {
        stand.run(&[
            "begin",
            "select n from t where id = 1",
            "set application_name = 'second'",
            "select n from t where id = 101",
            "select n from t where id = 201",
            "set local work_mem = '8MB'",
            end,
        ]);
        for id in [1, 101, 201] {
            assert_eq!(others[0].value(&name(id)), "second");
            assert_eq!(others[1].value(&name(id)), "", "another's settings");
        }
        let own = if end == "commit" { "second" } else { "first" };
        for id in [1, 101, 201] {
            assert_eq!(stand.sharded.value(&name(id)), own);
        }
    }
}

#[test]
fn a_cursor_is_found_from_other_shards() {
    let mut stand = stand("cursors");
    stand.all_alike(&[
        "insert into t values (1, 7)",
        "insert into t values (101, 8)",
        "begin",
        "declare c cursor for select n from t where id = 1",
        "update t set n = 9 where id = 101",
        "fetch c",
        "select n from t where id = 101",
        "close c",
        "fetch c",
        "rollback",
    ]);
    stand.run(&[
        "begin",
        "declare c cursor for select n from t where id = 1",
        "declare d cursor for select n from t where id = 101",
    ]);
    // Each where it was declared.
    assert_eq!(stand.ask("fetch c")[1], "D 7");
    assert_eq!(stand.ask("fetch d")[1], "D 8");
    stand.run(&["rollback"]);
    stand.at_rest();
}

#[test]
fn a_transaction_that_promises_one_snapshot_stays_on_its_shard() {
    let mut stand = stand("isolated");
    for begin in [
        "begin isolation level repeatable read",
        "begin isolation level serializable",
    ] {
        stand.run(&[begin, "insert into t values (1, 1)"]);
        let refused = stand.ask("insert into t values (101, 1)");
        assert!(refused[0].starts_with("E ERROR 0A000"), "{refused:?}");
        assert_eq!(stand.ask("commit")[0], "C ROLLBACK\\0");
    }
    assert_eq!(stand.ids(), ["", "", ""]);
    stand.at_rest();
}

#[test]
fn a_transaction_tells_one_time() {
    let mut stand = stand("timed");
    stand.run(&["begin", "insert into t values (1, 1)"]);
    let time = stand.sharded.value("select now()");
    stand.run(&["insert into t values (101, 1)"]);
    let refused = stand.ask("update t set n = 2 where id = 101 returning now()");
    assert!(refused[0].starts_with("E ERROR 0A000"), "{refused:?}");
    assert_eq!(stand.ask("rollback")[0], "C ROLLBACK\\0");
    stand.run(&["begin", "insert into t values (1, 1)"]);
    assert_ne!(stand.sharded.value("select now()"), time);
    stand.run(&[
        "insert into t values (101, 1)",
        "update t set n = 2 where id = 1 returning now()",
        "commit",
    ]);
    stand.at_rest();
}

#[test]
fn without_a_control_role_nothing_is_half_committed() {
    let mut stand = Three {
        control: Control::None,
        pool: "size = 2",
        ..three("bare")
    }
    .start();
    stand.run(&[
        "begin",
        "insert into t values (1, 1)",
        "insert into t values (101, 1)",
    ]);
    let refused = stand.ask("commit");
    assert!(refused[0].starts_with("E ERROR 55000"), "{refused:?}");
    assert_eq!(refused[1], "Z I");
    assert_eq!(stand.ids(), ["", "", ""]);
    stand.run(&[
        "begin",
        "insert into t values (1, 1)",
        "select n from t where id = 101",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["1", "", ""]);
    stand.at_rest();
}

#[test]
fn what_cannot_be_prepared_decides() {
    let mut stand = stand("notified");
    stand.run(&[
        "begin",
        "insert into t values (1, 1)",
        "insert into t values (101, 1)",
        "notify news, 'x'",
        "insert into t values (201, 1)",
        "commit",
    ]);
    assert_eq!(stand.ids(), ["1", "101", "201"]);
    stand.at_rest();
}

#[test]
fn transactions_that_wait_for_each_others_backends_end() {
    let mut stand = Three {
        pool: "size = 1\nwait_timeout = \"3s\"",
        ..three("crossed")
    }
    .start();
    let mut other = stand.proxy.client();
    stand.run(&["begin", "insert into t values (1, 1)"]);
    other.ask(&query("begin"));
    other.ask(&query("insert into t values (101, 1)"));
    other.send(&query("insert into t values (2, 1)"));
    let first = stand.ask("insert into t values (102, 1)");
    let second = other.answers(1);
    for answers in [&first, &second] {
        assert!(
            answers[0].starts_with("C INSERT") || answers[0].starts_with("E ERROR 53300"),
            "{answers:?}"
        );
    }
    other.ask(&query("rollback"));
    stand.run(&["rollback"]);
    stand.at_rest();
}
