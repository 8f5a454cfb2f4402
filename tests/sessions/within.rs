//! Reads over several shards wherever a statement can stand: what one PostgreSQL with all rows answers. In transactions
//! they see what these have written.

use crate::{
    client::{batch, query},
    three::{Control, Stand, Three},
};

const DDL: &str = "create table t (id bigint primary key, n int, price numeric(12, 3), note text, ratio float8); \
    create table part (id bigint, at int, amount int, primary key (id, at)); \
    create table colours (n int primary key, name text)";

fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: DDL,
        tables: &["public.t", "public.part"],
        reference: &["public.colours"],
        ..Three::new(name)
    }
    .start();
    stand.all_alike(&[
        "insert into colours values (0, 'red'), (1, 'green'), (2, 'blue')",
        "insert into t values (1, 0, 1.5, 'one', 0.1), (2, 1, 2.25, null, 'NaN'), (101, 1, 0.125, 'a\"b\\c', 1e300), \
         (102, null, 10, 'Zoë', 3), (201, 2, 7, 'x{y}', 2.5), (202, 0, null, '', -0.3)",
        "insert into part values (1, 1, 5), (1, 2, 4), (101, 1, 7), (101, 2, 8), (201, 1, 9), (202, 1, 3)",
    ]);
    stand
}

const COUNT: &str = "select count(*), sum(n), avg(price), min(note), max(ratio) from t";
const GROUPS: &str = "select n, count(*), string_agg(note, ',' order by id) from t group by n order by n nulls first";
const ROWS: &str = "select id, n, price, note, ratio from t order by id";
const RANKS: &str =
    "select id, rank() over (order by price desc nulls last, id) from t order by id";

/// Of each way in which a read over shards is computed, with an order that leaves nothing open.
const READS: [&str; 12] = [
    "select t.id, p.at, t.price * p.amount from t join part p on p.id = t.id order by t.id, p.at",
    "select t.id, p.at from t left join part p using (id) where t.n > 0 order by t.id desc, p.at limit 3 offset 1",
    COUNT,
    GROUPS,
    ROWS,
    "select note from t order by note nulls first, id limit 3 offset 1",
    RANKS,
    "select c.name, count(*) from t join colours c using (n) group by 1 order by 1",
    "select id from t where n = 1 order by id desc",
    "with x as (select n, max(id) as top from t group by n) select * from x where top > 50 order by top",
    "select a.id, b.id from t a join t b on b.id = a.id + 100 order by 1",
    "select id from t where exists (select from colours c where c.n = t.n and c.name like '%e%') order by id",
];

#[test]
fn a_read_sees_what_its_transaction_has_written() {
    let mut stand = stand("withinown");
    for writes in [
        &["insert into t values (3, 5, 1, 'new', 1)"][..],
        &[
            "update t set n = 9 where id = 101",
            "delete from t where id = 201",
        ],
        &[
            "insert into t values (4, 0, 2, 'four', 1), (104, 1, 2, 'more', 2), (204, 2, 3, null, 3)",
            "update t set price = price + 1",
            "insert into colours values (5, 'grey')",
        ],
    ] {
        stand.all_alike(&["begin"]);
        stand.all_alike(writes);
        stand.all_alike(&READS);
        stand.all_alike(&["savepoint a", "delete from t where n = 0"]);
        stand.all_alike(&READS);
        stand.all_alike(&["rollback to a"]);
        stand.all_alike(&READS);
        stand.all_alike(&["rollback"]);
        stand.all_alike(&READS);
    }
}

#[test]
fn a_read_that_fails_has_failed_its_transaction() {
    let mut stand = stand("withinfails");
    for fails in [
        "select sum(1 / n) from t",
        "select count(*) from t where 1 / n > 0",
        "select count(nowhere) from t",
        "select id, 1 / (n - 2) from t order by price, id",
    ] {
        stand.all_alike(&["begin", "insert into t values (3, 0, 1, 'new', 1)", fails]);
        stand.all_alike(&["select count(*) from t", "select 1", "commit"]);
        stand.all_alike(&["begin", "savepoint a", "update t set n = 4 where id = 202"]);
        stand.all_alike(&[
            "savepoint b",
            fails,
            "select count(*) from t",
            "rollback to b",
        ]);
        stand.all_alike(&READS);
        stand.all_alike(&["release b", "rollback to a"]);
        stand.all_alike(&READS);
        stand.all_alike(&["commit"]);
    }
    stand.all_alike(&READS);
}

#[test]
fn a_read_leaves_nothing_in_its_transaction() {
    let mut stand = stand("withinnothing");
    stand.all_alike(&[
        "begin read only",
        "select count(*) from t where id = 1",
        "select id, ratio from t order by ratio, id",
        "select count(*), sum(n) from t",
        "show extra_float_digits",
        "show transaction_read_only",
        "insert into t values (5, 5)",
        "rollback",
        "begin",
        "set local extra_float_digits = 0",
        "insert into t values (5, 5, 5, 'x', 0.1::float8 / 3)",
        "select id, ratio / 7 from t order by id",
        "set local datestyle = 'iso, dmy'",
        "select avg(ratio / 3) from t where id <> 2",
        "show extra_float_digits",
        "show datestyle",
        "commit",
        "show extra_float_digits",
        "show datestyle",
    ]);
    // What it asked for is no savepoint of the client's.
    stand.all_alike(&["begin", "update t set n = 1 where id = 5", COUNT]);
    stand.all_alike(&["release shardway_read", "rollback"]);
    // Locks of other statements are waited for as ever.
    stand.all_alike(&[
        "set lock_timeout = '300ms'",
        "begin",
        "update t set n = 1 where id = 5",
    ]);
    stand.all_alike(&READS);
    stand.all_alike(&["commit"]);
}

#[test]
fn the_time_is_that_of_the_transaction() {
    let mut stand = stand("withintime");
    let told = "select count(*) > 0, now() from t";
    for first in [
        &[][..],
        &["select now() from t where id = 201"],
        &["update t set n = 1 where id = 101", "select now()"],
        &["select count(*) from t"],
    ] {
        stand.ask("begin");
        for sql in first {
            stand.ask(sql);
        }
        let times: Vec<String> = [told, "select true, now()", told, told]
            .into_iter()
            .map(|sql| stand.ask(sql)[1].clone())
            .collect();
        assert!(times[0].starts_with("D t|20"), "{times:?}");
        assert!(
            times.iter().all(|time| *time == times[0]),
            "{first:?}: {times:?}"
        );
        stand.ask("update t set n = n where id < 300");
        assert_eq!(stand.ask(told)[1], times[0]);
        stand.ask("commit");
    }
}

#[test]
fn the_extended_protocol_reads_within_transactions_too() {
    let mut stand = stand("withinextended");
    let limited =
        "select id, note, price from t where id > $1::bigint order by note nulls last, id limit $2";
    stand.all_alike(&["begin", "update t set price = 3 where id = 1"]);
    for sql in &READS[2..] {
        stand.alike(&batch().run(sql, &[]).sync().0, 1);
    }
    stand.alike(
        &batch()
            .parse("limited", limited)
            .describe("limited")
            .sync()
            .0,
        1,
    );
    for values in [["0", "3"], ["100", "2"], ["x", "1"], ["1", "1"]] {
        let called = batch().bind("p", "limited", &values).describe_portal("p");
        stand.alike(&called.execute("p", 0).sync().0, 1);
    }
    stand.all_alike(&["rollback"]);
    // One pipeline in a transaction, and one that begins and ends it.
    let all = batch()
        .run("begin", &[])
        .run("insert into t values ($1, 1, 2, 'p')", &["150"])
        .run(COUNT, &[])
        .run("insert into t values ($1, 1, 2, 'p')", &["250"])
        .run(GROUPS, &[])
        .run("savepoint a", &[])
        .run(RANKS, &[])
        .run("rollback to a", &[])
        .run(ROWS, &[])
        .run("commit", &[])
        .run(ROWS, &[])
        .sync();
    stand.alike(&all.0, 1);
    // An error in the middle skips the rest.
    let fails = batch()
        .run("begin", &[])
        .run("insert into t values ($1, 1, 2, 'p')", &["151"])
        .run("select sum(1 / n) from t", &[])
        .run(COUNT, &[])
        .sync();
    // It is computed when it is bound, as PostgreSQL may compute an immutable part of it.
    let found = stand.sharded.ask(&fails.0);
    assert_eq!(
        found.last_chunk(),
        Some(&[
            "1 ".into(),
            "E ERROR 22012 division by zero".into(),
            "Z E".into()
        ])
    );
    stand.whole.ask(&fails.0);
    stand.all_alike(&["select count(*) from t", "rollback", ROWS]);
}

/// All rows, which tell what a text has left.
const LEFT: &str = "select id, n, price, note from t order by id";

#[test]
fn a_text_of_several_statements_is_one_transaction() {
    let mut stand = stand("withintext");
    for text in [
        // One transaction that nobody has begun.
        "insert into t values (3, 3), (103, 3), (203, 3); select count(*), sum(n) from t; select id from t order by id",
        "update t set n = n + 1 where id = 1; update t set n = n + 1 where id = 201; select id, n from t order by id",
        "select count(*) from t; select n, count(*) from t group by n order by n; select 1; ;",
        "select 1; select n from t where id = 1; select n from t where id = 101;",
        "set search_path = public; select count(*) from t; set time zone 'UTC'; select id from t order by id",
        // An error stops the rest, and undoes it.
        "insert into t values (4, 4), (104, 4); select sum(1 / n) from t; insert into t values (5)",
        "insert into t values (4, 4), (104, 4); select nowhere from t; select 1",
        "select 1; insert into t values (6, 6), (106, 6), (1, 1)",
        "delete from t where n = 3; select count(*) from t where 1 / (n - n) = 1",
        // BEGIN and COMMIT within.
        "begin; insert into t values (7, 7), (107, 7); select count(*) from t; commit",
        "insert into t values (8, 8), (108, 8); begin; insert into t values (208, 8); commit; select count(*) from t",
        "insert into t values (9, 9), (109, 9); begin; insert into t values (209, 9); rollback; select count(*) from t",
        "insert into t values (10, 1), (110, 1); commit; insert into t values (11, 1), (111, 1); select 1 / 0",
        "insert into t values (12, 1), (112, 1); rollback; insert into t values (13, 1), (113, 1); select count(*) from t",
        "begin; insert into t values (14, 1), (114, 1); commit; insert into t values (15, 1), (115, 1); select 1 / (n - n) from t",
        "insert into t values (16, 1), (116, 1); savepoint a; select 1",
        "insert into t values (16, 1), (116, 1); commit and chain",
        "begin; insert into t values (16, 1), (116, 1); savepoint a; delete from t; select count(*) from t; rollback to a; select count(*) from t; commit",
        "start transaction; delete from t where n = 1; select id from t order by id; rollback; select count(*) from t",
    ] {
        stand.all_alike(&[text, LEFT]);
    }
    // A text leaves its transaction open, or failed.
    for text in [
        "begin; update t set n = 0 where n is null; select count(*) from t",
        "insert into t values (17, 1), (117, 1); begin; select count(*) from t",
        "begin; insert into t values (18, 1), (118, 1); select sum(1 / n) from t; select 1",
        "begin read only; select count(*) from t; insert into t values (19, 1), (119, 1)",
    ] {
        stand.all_alike(&[text, "select 1", "select count(*) from t", "rollback", LEFT]);
        stand.all_alike(&[
            "begin",
            "update t set n = n where id = 1",
            "select count(*) from t; select 2",
        ]);
        stand.all_alike(&["insert into t values (20, 1), (120, 1); select count(*) from t; rollback; select count(*) from t", LEFT]);
        stand.all_alike(&[
            "select 3; begin; delete from t; rollback; select count(*) from t",
            LEFT,
        ]);
    }
    stand.all_alike(&[
        "begin",
        "select 1 / 0",
        "rollback; select count(*) from t; select id from t order by id",
    ]);
}

/// A transaction that has reached these shards and has failed; its savepoint has not.
fn fail(stand: &mut Stand, reached: &[&str]) {
    stand.all_alike(&["begin"]);
    stand.all_alike(reached);
    stand.all_alike(&["savepoint a", "select 1 / 0"]);
}

/// What a transaction has done before it fails: on no shard, on one, on two.
const REACHED: [&[&str]; 3] = [
    &[],
    &["update t set n = n + 10 where id = 1"],
    &[
        "update t set n = n + 10 where id = 1",
        "update t set n = n + 10 where id = 101",
    ],
];

#[test]
fn what_stands_behind_a_failed_transaction_in_a_text_is_none_of_it() {
    let mut stand = stand("withinfailed");
    for (at, reached) in REACHED.into_iter().enumerate() {
        for text in [
            "commit; insert into t (id, n) values (111, 1)",
            "commit; select count(*), sum(n) from t",
            "end; select count(*) from t; insert into t (id, n) values (12, 1), (112, 1), (212, 1); select id from t order by id",
            "abort; update t set n = 3 where id = 201",
            "rollback; select n from t where id = 101; select n from t where id = 1",
            "commit; begin; insert into t (id, n) values (113, 1); select count(*) from t",
            "rollback; begin; insert into t (id, n) values (214, 1); commit; select count(*) from t",
            "rollback to a; insert into t (id, n) values (115, 1); select count(*) from t",
            "rollback to a; update t set n = 5 where id = 201; commit; select id, n from t order by id",
            "commit and chain; insert into t (id, n) values (116, 1); select count(*) from t",
            "rollback and chain; update t set n = 6 where id = 102; commit; select count(*) from t",
            "commit; prepare counts as select count(*) from t; execute counts; deallocate counts",
            "commit; copy (select count(*) from t) to stdout; select count(*) from t",
            // An error of its own, and one before the end.
            "commit; insert into t (id, n) values (117, 1); select 1 / 0; insert into t (id, n) values (217, 1)",
            "select 1; commit; insert into t (id, n) values (118, 1)",
            "rollback to nowhere; insert into t (id, n) values (118, 1)",
        ] {
            fail(&mut stand, reached);
            stand.all_alike(&[text, "select count(*) from t", "rollback", LEFT]);
            stand.all_alike(&["delete from t where id % 100 > 10", LEFT]);
        }
        if at == 1 {
            fail(&mut stand, reached);
            let text = "prepare transaction 'x'; insert into t (id, n) values (119, 1)";
            stand.all_alike(&[text, "rollback", LEFT]);
        }
    }
}

#[test]
fn what_stands_behind_a_failed_transaction_in_a_batch_is_none_of_it() {
    let mut stand = stand("withinfailedbatch");
    let insert = "insert into t (id, n) values ($1, 1)";
    let rows = "select id, n from t where id = $1";
    stand.alike(&batch().parse("insert", insert).sync().0, 1);
    stand.alike(
        &batch().parse("counts", COUNT).describe("counts").sync().0,
        1,
    );
    for reached in REACHED {
        for end in [
            "commit",
            "rollback",
            "rollback to a",
            "commit and chain",
            "rollback and chain",
        ] {
            let ended = || batch().run(end, &[]);
            for (behind, readies) in [
                (ended().run(insert, &["111"]), 1),
                (
                    ended().run(COUNT, &[]).run(insert, &["211"]).run(ROWS, &[]),
                    1,
                ),
                (ended().call("insert", &["112"]).call("counts", &[]), 1),
                (ended().flush().describe("counts").call("counts", &[]), 1),
                (ended().run(rows, &["101"]).run(rows, &["1"]), 1),
                (ended().parse("", insert).describe("").call("", &["113"]), 1),
                // Statements that fail, and one of the simple protocol.
                (
                    ended()
                        .run(insert, &["114"])
                        .run(insert, &["101"])
                        .run(COUNT, &[]),
                    1,
                ),
                (ended().run("rollback to nowhere", &[]).run(COUNT, &[]), 1),
                (ended().query("select n from t where id = 101"), 2),
                (ended().query("insert into t (id, n) values (215, 1)"), 2),
            ] {
                fail(&mut stand, reached);
                stand.alike(&behind.sync().0, readies);
                stand.all_alike(&["select count(*) from t", "rollback", LEFT]);
                stand.all_alike(&["delete from t where id % 100 > 10", LEFT]);
            }
        }
        // It does not end it.
        fail(&mut stand, reached);
        let still = batch()
            .run("rollback to nowhere", &[])
            .run(insert, &["118"]);
        stand.alike(&still.sync().0, 1);
        stand.all_alike(&["rollback", LEFT]);
    }
}

#[test]
fn another_transaction_stands_behind_a_failed_one_in_its_batch() {
    let mut stand = stand("withinfailedanother");
    let insert = "insert into t (id, n) values ($1, 1)";
    for reached in REACHED {
        fail(&mut stand, reached);
        let another = batch()
            .run("rollback", &[])
            .run("begin", &[])
            .run(insert, &["116"])
            .run(COUNT, &[])
            .run("commit", &[]);
        stand.alike(&another.sync().0, 1);
        stand.all_alike(&["rollback", LEFT]);
        fail(&mut stand, reached);
        let copied = batch()
            .run("rollback", &[])
            .run("copy t (id, n) from stdin", &[])
            .copy_data("117\t1\n217\t1\n")
            .bare(b'c');
        stand.alike(&copied.sync().0, 1);
        stand.all_alike(&["delete from t where id % 100 > 10", LEFT]);
    }
}

#[test]
fn what_was_open_in_a_failed_transaction_ends_with_it() {
    let mut stand = stand("withinfailedopen");
    let declare = "declare c cursor for select id from t where id < 3 order by id";
    let rows = "select id from t where id < 100 order by id";
    for end in ["rollback", "rollback to a"] {
        let ended = || batch().run(end, &[]);
        for behind in [
            ended().execute("p", 1).run(COUNT, &[]),
            ended().run(COUNT, &[]).execute("p", 0),
            ended().close_portal("p").run(COUNT, &[]),
            ended().run("fetch 1 from c", &[]).run(COUNT, &[]),
        ] {
            stand.all_alike(&["begin", declare]);
            let open = batch().parse("", rows).bind("p", "", &[]);
            stand.alike(&open.execute("p", 1).sync().0, 1);
            stand.all_alike(&["savepoint a", "select 1 / 0"]);
            stand.alike(&behind.sync().0, 1);
            stand.all_alike(&["rollback", LEFT]);
        }
    }
}

#[test]
fn a_session_that_keeps_its_backend_ends_a_failed_transaction_by_itself() {
    let mut stand = Three {
        pool: "size = 4\nmode = \"session\"",
        control: Control::None,
        ..Three::new("withinfailedkept")
    }
    .start();
    stand.all_alike(&[
        "insert into t values (1, 1)",
        "insert into t values (101, 1)",
    ]);
    let left = "select n from t where id = 1";
    for refused in [
        "commit; insert into t (id, n) values (111, 1)",
        "commit; select count(*) from t",
        "end; begin; select count(*) from t",
    ] {
        fail(&mut stand, &["update t set n = 2 where id = 1"]);
        stand.fails(refused, "0A000");
        // It goes on as it was.
        stand.all_alike(&["select 1", "commit; begin", "commit", left]);
    }
    // A batch goes on at other shards.
    for end in ["commit", "rollback"] {
        fail(&mut stand, &["update t set n = 2 where id = 1"]);
        let behind = batch()
            .run(end, &[])
            .run("update t set n = n + 1 where id = $1", &["101"]);
        stand.alike(&behind.sync().0, 1);
        stand.all_alike(&["commit", "select n from t where id = 101", left]);
    }
}

#[test]
fn the_strings_of_a_text_are_read_before_it_runs() {
    let mut stand = stand("withinstrings");
    stand.all_alike(&["insert into t (id, note) values (3, 'a\\b'), (103, 'a\\b')"]);
    for text in [
        "select count(*) from t; set standard_conforming_strings to off; select count(*) from t where note = 'a\\b'",
        "set standard_conforming_strings to off; select count(*) from t; select id from t where note = 'a\\b' order by id",
        "select count(*) from t; reset all; select id from t where note = 'a\\b' order by id",
        "set standard_conforming_strings to off; select count(*) from t; select id from t where note = U&'a' order by id",
    ] {
        let found = stand.ask(text);
        let refused = found.iter().any(|line| line.contains("0A000"));
        stand.ask("reset all");
        if !refused {
            stand.alike(&query(text), 1);
            stand.whole.ask(&query("reset all"));
        }
        stand.ask("reset all");
    }
}

#[test]
fn a_text_is_told_done_when_it_is() {
    let mut stand = stand("withincommit");
    stand.all_alike(&["alter table part add unique (id, amount) deferrable initially deferred"]);
    // What is checked at the commit fails before the last statement's answer.
    stand.all_alike(&[
        "select count(*) from t; insert into part values (1, 7, 5), (101, 7, 1)",
        "select count(*) from t; insert into part values (1, 7, 5)",
        "insert into part values (1, 7, 5); select count(*) from part; select id from t where id = 1",
        "select id, at, amount from part order by id, at",
    ]);
    // Data of a COPY in the middle belongs to it.
    let copied = batch()
        .query(
            "select count(*) from t; copy part from stdin; select count(*), sum(amount) from part",
        )
        .copy_data("1\t9\t9\n101\t9\t9\n")
        .copy_data("201\t9\t9\n")
        .bare(b'c');
    stand.alike(&copied.0, 1);
    let fails = batch()
        .query("insert into t values (30, 1), (130, 1); copy part from stdin; select count(*) from part")
        .copy_data("1\t10\t9\n101\tx\t9\n")
        .bare(b'c');
    let found = stand.sharded.ask(&fails.0);
    assert_eq!(found[0], "C INSERT 0 2\\0");
    assert!(found[2].starts_with("E ERROR 22P02"), "{found:?}");
    stand.all_alike(&[LEFT, "select id, at, amount from part order by id, at"]);
    // Another Query behind it waits.
    let two = batch()
        .query("insert into t values (31, 1), (131, 1); select count(*) from t")
        .query("select count(*) from t; select id from t order by id");
    stand.alike(&two.0, 2);
}

#[test]
fn what_is_wrong_with_a_read_is_told_in_a_transaction_that_has_reached_no_shard() {
    let mut stand = stand("withinwrong");
    for sql in [
        "select sum(nowhere) from t",
        "select count(*) from t where coalesce(note, 'x') = 5 group by n",
        "select n from t group by n order by (select nowhere)",
    ] {
        stand.all_alike(&[
            "begin",
            "savepoint a",
            sql,
            "rollback to a",
            "select count(*) from t",
            "commit",
        ]);
    }
}

const PREPARED: [&str; 8] = [
    "prepare every as select count(*), sum(n) from t",
    "prepare these(int, bigint) as select id, note from t where n = $1 and id > $2 order by id",
    "prepare first as select id, price from t where price > $1 order by id limit $2",
    "prepare joined(text) as select t.id, p.amount from t join part p on p.id = t.id where note = $1 order by 1, 2",
    "prepare grow as update t set n = n + $1 where price > $2",
    "prepare add(bigint, bigint, int) as insert into t (id, n) values ($1, $3), ($2, $3)",
    "prepare gone as delete from t where n = $1 returning id",
    "prepare flags(bool) as select count(*) from t where (n > 0) = $1",
];

#[test]
fn an_execute_over_several_shards_is_its_statement() {
    let mut stand = stand("withinexecute");
    stand.all_alike(&PREPARED);
    for texts in [
        &["select 1"][..],
        &["begin", "update t set n = 7 where id = 101"],
    ] {
        stand.all_alike(texts);
        stand.all_alike(&[
            "execute every",
            "execute these(1, 0)",
            "execute these(1, '100')",
            "execute first(1, 2)",
            "execute first('0.5', 1)",
            "execute joined('one')",
            "execute joined(null)",
            "execute flags('t')",
        ]);
    }
    stand.all_alike(&[
        "execute grow(1, 2)",
        "execute add(5, 105, 40)",
        "execute every",
        "rollback",
        "execute add(5, 105, 40); execute every; execute gone(40)",
        "execute add(5, 105, 40)",
        "begin; execute every; execute gone(40); execute every; rollback; execute every",
        "execute these(1)",
        "execute these('x', 1)",
        "execute nobody(1)",
        "execute add(1, 101, 1)",
        "execute every",
    ]);
    // What PostgreSQL would not take is not bound.
    stand.fails("execute flags(1)", "0A000");
    stand.fails("execute these(1 + 1, 0)", "0A000");
    stand.fails("execute joined(5::text)", "0A000");
    // In the extended protocol, with statements of both.
    let texts = batch()
        .run("execute every", &[])
        .run("execute these(1, 0)", &[])
        .run("execute first(0.5, 3)", &[]);
    assert!(
        stand
            .sharded
            .ask(&texts.sync().0)
            .concat()
            .contains("0A000")
    );
    let texts = batch()
        .parse(
            "own",
            "select n, count(*) from t where id > $1::int group by n order by n",
        )
        .describe("own")
        .parse("x", "execute these(1, 0)")
        .call("x", &[])
        .run("execute every", &[])
        .run("execute grow(1, 1)", &[])
        .run("execute these(1, 0)", &[])
        .sync();
    stand.alike(&texts.0, 1);
    stand.all_alike(&["execute own(100)", "execute own('100')", "execute every"]);
    stand.alike(
        &batch().call("x", &[]).run("execute own(1)", &[]).sync().0,
        1,
    );
}

/// What COPY gives, without the frames that it comes in.
fn copied(lines: &[String]) -> (String, Vec<String>) {
    let data = lines.iter().filter_map(|line| line.strip_prefix("d "));
    let rest = lines.iter().filter(|line| !line.starts_with("d "));
    (data.collect(), rest.cloned().collect())
}

#[test]
fn the_copy_of_a_query_is_that_of_all_rows() {
    let mut stand = stand("withincopy");
    for texts in [
        &["select 1"][..],
        &["begin", "update t set note = 'mine' where id = 102"],
    ] {
        stand.all_alike(texts);
        for read in READS {
            for options in [
                "",
                " with (format csv)",
                " (format csv, header, force_quote *)",
                " (header true, null '-')",
                " with binary",
            ] {
                let text = format!("copy ({read}) to stdout{options}");
                let (expected, found) = (stand.whole.ask(&query(&text)), stand.ask(&text));
                if read.contains("join part") {
                    // Merged by its order, which is no COPY's.
                    assert!(found[0].starts_with("E ERROR 0A000"), "{text}: {found:?}");
                    if texts.len() > 1 {
                        stand.ask("rollback");
                        stand.ask(texts[0]);
                        stand.ask(texts[1]);
                    }
                    continue;
                }
                assert_eq!(copied(&found), copied(&expected), "{text}");
                let run = batch().run(&text, &[]).sync();
                let (expected, found) = (stand.whole.ask(&run.0), stand.sharded.ask(&run.0));
                assert_eq!(copied(&found), copied(&expected), "{text}");
            }
        }
        // In no order: the rows of all shards, one header and one trailer.
        for options in [" (format csv, header)", " with (header)", ""] {
            let text = format!(
                "copy (select t.id, n, amount, note from t left join part p on p.id = t.id) to stdout{options}"
            );
            let all = |client: &mut crate::client::Client| {
                let mut lines = client.ask(&query(&text));
                lines[1..].sort();
                lines
            };
            assert_eq!(all(&mut stand.sharded), all(&mut stand.whole), "{text}");
        }
        let binary = "copy (select id, note from t where n > 0) to stdout with binary";
        let size = |lines: &[String]| copied(lines).0.len();
        let (expected, found) = (stand.whole.ask(&query(binary)), stand.ask(binary));
        assert_eq!(size(&found), size(&expected));
        assert_eq!(found[0], expected[0]);
        stand.all_alike(&["select count(*) from t"]);
    }
}

#[test]
fn the_copy_of_a_query_that_fails_has_failed_its_transaction() {
    let mut stand = stand("withincopyfails");
    for fails in [
        "copy (select 1 / (n - n) from t order by 1) to stdout",
        "copy (select nowhere from t) to stdout",
        "copy (select count(*) from t group by) to stdout",
    ] {
        stand.all_alike(&["rollback", "begin", "savepoint a"]);
        let (expected, found) = (stand.whole.ask(&query(fails)), stand.ask(fails));
        assert_eq!(found.last(), expected.last(), "{fails}: {found:?}");
        stand.all_alike(&["rollback to a", "select count(*) from t", "commit"]);
    }
    stand.alike(
        &query("copy (select count(*) from t) to stdout; select count(*) from t"),
        1,
    );
}

#[test]
fn a_pipeline_is_one_transaction_wherever_its_statements_run() {
    let mut stand = stand("withinpipeline");
    let insert = "insert into t (id, n) values ($1, 1)";
    for pipeline in [
        batch()
            .run("select n from t where id = 1", &[])
            .run(COUNT, &[])
            .run(GROUPS, &[]),
        batch()
            .run(COUNT, &[])
            .run(ROWS, &[])
            .run(COUNT, &[])
            .run("select 1", &[]),
        batch()
            .run(insert, &["3"])
            .run(insert, &["103"])
            .run(COUNT, &[])
            .run(insert, &["203"]),
        batch()
            .run(insert, &["4"])
            .run("update t set n = n + 1", &[])
            .run(ROWS, &[]),
        batch()
            .run("select 1", &[])
            .run(COUNT, &[])
            .run(insert, &["5"])
            .run(COUNT, &[]),
        batch()
            .parse("s", "select count(*) from t where n > $1::int")
            .bind("a", "s", &["0"])
            .bind("b", "s", &["1"])
            .execute("b", 0)
            .execute("a", 0),
        // All of it is undone by an error at its end.
        batch()
            .run(insert, &["6"])
            .run(insert, &["106"])
            .run(insert, &["1"])
            .run(COUNT, &[]),
        batch()
            .run(insert, &["7"])
            .run(COUNT, &[])
            .run(insert, &["101"]),
        batch()
            .run(insert, &["8"])
            .run(insert, &["108"])
            .run("select nowhere", &[]),
    ] {
        stand.alike(&pipeline.clone().sync().0, 1);
        stand.all_alike(&[LEFT]);
        // And what stands behind its Sync is another one.
        stand.alike(
            &batch()
                .run(COUNT, &[])
                .sync()
                .run(COUNT, &[])
                .run(COUNT, &[])
                .sync()
                .0,
            2,
        );
    }
    // In a transaction the pipeline is a part of it.
    stand.all_alike(&["begin"]);
    stand.alike(
        &batch()
            .run(insert, &["9"])
            .run(insert, &["109"])
            .run(COUNT, &[])
            .sync()
            .0,
        1,
    );
    stand.all_alike(&["rollback", LEFT]);
}

#[test]
fn a_path_that_a_text_sets_is_that_of_its_next_statement() {
    let mut stand = Three {
        ddl: "create schema early; create schema alt; create table t (id bigint primary key, n bigint); \
              create table alt.t (n bigint primary key, id bigint)",
        // A table of the same name whose key is another column.
        tables: &["public.t", "alt.t\" = \"n\", \"public.none"],
        ..Three::new("paths_of_texts")
    }
    .start();
    for sql in [
        "insert into public.t values (1, 1), (101, 1), (201, 1)",
        "insert into alt.t (n, id) values (1, 201), (101, 1), (201, 101)",
        "begin",
        "set local search_path to early, public",
        "set search_path to alt, public; select n from t where n = 1; savepoint s",
        "select n from t where n = 101",
        "rollback",
        "select n from t where n = 1",
        "begin",
        "insert into t values (3, 3)",
        "set local search_path to early, public",
        "set search_path to alt, public; select n from t where n = 201",
        "select n from t where n = 1",
        "commit",
        "select n from t where n = 1",
        "reset search_path",
        "begin",
        "set local search_path to alt",
        "reset search_path",
        "select n from t where n = 1",
        "rollback",
        "begin",
        "set local search_path to alt",
        "savepoint s",
        "set search_path to public",
        "rollback to s",
        "select n from t where n = 1",
        "commit",
        "begin",
        "set local search_path to alt",
        "reset all",
        "select n from t where n = 1",
        "commit",
    ] {
        stand.alike(&query(sql), 1);
    }
}

#[test]
fn a_portal_ends_with_its_transaction() {
    let mut stand = stand("withinportal");
    let bound = || {
        let updates = batch()
            .parse("", "update t set n = n + 1")
            .bind("w", "", &[]);
        let copies = updates.parse("", "copy t to stdout").bind("c", "", &[]);
        copies.sync()
    };
    for end in [
        "commit and chain",
        "rollback and chain",
        "commit; begin",
        "rollback; begin",
    ] {
        for portal in ["w", "c"] {
            stand.all_alike(&["begin"]);
            stand.alike(&bound().0, 1);
            stand.all_alike(&[end]);
            stand.alike(&batch().execute(portal, 0).sync().0, 1);
            stand.all_alike(&["commit", "select count(*), sum(n) from t"]);
        }
    }
    for end in ["commit", "rollback", "commit and chain"] {
        stand.all_alike(&["begin"]);
        stand.alike(&bound().0, 1);
        stand.alike(&batch().run(end, &[]).execute("w", 0).sync().0, 1);
        stand.all_alike(&["commit", "select count(*), sum(n) from t"]);
    }
}
