//! Portals and cursors whose rows come from several shards, read in parts within a transaction: what one PostgreSQL with
//! all rows answers, message by message.

use crate::{
    client::{Batch, batch, query},
    harness::until,
    three::{Stand, Three},
};

/// 300 rows in `t`, 100 on each shard, whose order by `n` goes from shard to shard.
fn stand(name: &str) -> Stand {
    let mut stand = Three::new(name).start();
    let fill = |from: i32, to: i32| {
        query(&format!(
            "insert into t select i, (i * 7) % 307 from generate_series({from}, {to}) i"
        ))
    };
    stand.whole.ask(&fill(1, 299));
    for (at, shard) in stand.shards.iter_mut().enumerate() {
        let from = i32::try_from(at).unwrap() * 100;
        let made = shard.ask(&fill(from.max(1), from + 99));
        assert!(made[0].starts_with('C'), "{made:?}");
    }
    stand
}

const SORTED: &str = "select id, n from t order by n";

fn part(portal: &str, rows: u32) -> Batch {
    batch().execute(portal, rows).sync()
}

impl Stand {
    /// Both answer every batch alike.
    fn batches(&mut self, batches: &[Batch]) {
        for batch in batches {
            self.alike(&batch.0, 1);
        }
    }
}

#[test]
fn a_portal_is_read_in_parts_to_the_end_of_its_transaction() {
    let mut stand = stand("cursors_portal");
    for begun in [
        "begin",
        "begin; select 1",
        "begin; select n from t where id = 150",
    ] {
        for text in begun.split("; ") {
            stand.alike(&query(text), 1);
        }
        stand.batches(&[
            batch()
                .parse("s", SORTED)
                .describe("s")
                .bind("p", "s", &[])
                .describe_portal("p")
                .execute("p", 7)
                .sync(),
            part("p", 0x7f),
            // Others on the same shards in between, also one over all of them.
            batch()
                .run(
                    "insert into t values (5, 1) on conflict (id) do nothing",
                    &[],
                )
                .sync(),
            batch()
                .run("select count(*) from t where id = 250", &[])
                .sync(),
            part("p", 1),
            batch()
                .run("select id from t order by id limit 3", &[])
                .sync(),
            part("p", 1),
            part("p", 0),
            part("p", 0),
            part("p", 4),
            batch().close_portal("p").sync(),
            part("p", 4),
        ]);
        stand.all_alike(&["select 1", "rollback"]);
        stand.batches(&[part("p", 4), batch().close("s").sync()]);
    }
    // As a driver does it that sends BEGIN along.
    stand.batches(&[
        batch()
            .parse("", "begin")
            .bind("", "", &[])
            .execute("", 1)
            .parse("", "select id from t where n < $1::int order by n desc")
            .bind("C_1", "", &["200"])
            .describe_portal("C_1")
            .execute("C_1", 50)
            .sync(),
        part("C_1", 50),
        part("C_1", 50),
        part("C_1", 50),
        part("C_1", 50),
    ]);
    stand.all_alike(&["commit"]);
    stand.batches(&[part("C_1", 50)]);
}

#[test]
fn the_end_of_rows_is_told_as_postgresql_tells_it() {
    let mut stand = stand("cursors_end");
    for sql in [
        "select id from t where n < 10 order by n",
        "select id from t order by n limit 9",
        "select id from t order by n limit 6 offset 3",
        "select id from t order by n limit 0",
        "select id from t where n < 0 order by n",
        "select id from t order by n offset 290",
    ] {
        for most in [1, 3, 9, 10, 0] {
            let parts = part("p", most);
            let open = batch().parse("", sql).bind("p", "", &[]).sync();
            stand.all_alike(&["begin"]);
            stand.batches(&[open, parts.clone(), parts.clone(), parts.clone(), parts]);
            stand.all_alike(&["commit"]);
        }
    }
    // Outside of a transaction it ends with its batch.
    let sql = "select id from t where n < 10 order by n";
    let count: Vec<_> = stand.alike(&query(sql), 1);
    let rows = u32::try_from(count.len() - 2).unwrap();
    for most in [1, rows - 1, rows, rows + 1] {
        let open = batch().parse("", sql).bind("p", "", &[]);
        let twice = open.execute("p", most).execute("p", most).sync();
        stand.batches(&[twice, part("p", 1)]);
    }
}

#[test]
fn several_portals_are_read_by_turns() {
    let mut stand = stand("cursors_turns");
    stand.all_alike(&["begin"]);
    let open = |name: &str, sql: &str| batch().parse("", sql).bind(name, "", &[]).sync();
    stand.batches(&[
        open("a", SORTED),
        open("b", "select id, n from t order by n desc"),
        open("c", "select id from t where id = 120"),
        // In another batch than Bind, and read to its end in one go.
        open("d", "select id from t where n > 100 order by id"),
        open("", "select n from t order by n offset 7"),
    ]);
    for round in 1..6 {
        stand.batches(&[part("a", round), part("b", 40), part("", round)]);
    }
    stand.batches(&[
        batch()
            .execute("a", 2)
            .execute("b", 2)
            .execute("a", 3)
            .execute("c", 1)
            .sync(),
        part("d", 0),
        // The name is taken; the error fails the transaction, and everything after it.
        open("a", SORTED),
        part("a", 1),
    ]);
    stand.all_alike(&["rollback", "begin"]);
    // The unnamed one is bound anew, or ends with a Query.
    stand.batches(&[
        open("", SORTED),
        part("", 3),
        open("", "select id from t order by id desc"),
        part("", 3),
    ]);
    stand.all_alike(&["select n from t where id = 3"]);
    stand.batches(&[part("", 3)]);
    stand.all_alike(&["rollback"]);
}

#[test]
fn a_savepoint_ends_the_portals_made_behind_it() {
    let mut stand = stand("cursors_savepoints");
    let open = |name: &str| {
        batch()
            .parse("", SORTED)
            .bind(name, "", &[])
            .execute(name, 2)
            .sync()
    };
    stand.all_alike(&["begin"]);
    stand.batches(&[open("a")]);
    stand.all_alike(&["savepoint s"]);
    stand.batches(&[open("b")]);
    stand.all_alike(&["savepoint u"]);
    stand.batches(&[open("c"), part("a", 3)]);
    stand.all_alike(&["release u", "update t set n = 1 / 0 where id = 250"]);
    // Failed: nothing goes on until the savepoint is gone back to.
    stand.batches(&[part("a", 3)]);
    stand.all_alike(&["rollback to s"]);
    stand.batches(&[part("a", 3)]);
    stand.batches(&[part("c", 3)]);
    stand.all_alike(&["rollback to s"]);
    stand.batches(&[part("b", 3)]);
    stand.all_alike(&["rollback to s"]);
    stand.batches(&[open("b"), part("b", 3)]);
    stand.all_alike(&["release s"]);
    stand.batches(&[part("b", 3), part("a", 300)]);
    stand.all_alike(&["commit and chain"]);
    stand.batches(&[part("b", 3)]);
    stand.all_alike(&["rollback"]);
}

#[test]
fn a_portal_in_which_something_failed_gives_no_more() {
    let mut stand = stand("cursors_failed");
    // The row that fails, id 153, is on the second shard, behind some that do not.
    let failing = "select id, 10 / (n - 150) from t order by id";
    stand.all_alike(&["set enable_sort = off", "begin", "savepoint s"]);
    stand.batches(&[
        batch()
            .parse("", failing)
            .bind("p", "", &[])
            .execute("p", 2)
            .sync(),
        batch()
            .parse("", "savepoint u")
            .bind("", "", &[])
            .execute("", 0)
            .sync(),
    ]);
    stand.whole.ask(&part("p", 200).0);
    let found = stand.sharded.ask(&part("p", 200).0);
    assert!(
        found
            .iter()
            .any(|line| line == "E ERROR 22012 division by zero"),
        "{found:?}"
    );
    stand.batches(&[part("p", 1)]);
    stand.all_alike(&["rollback to u"]);
    stand.batches(&[part("p", 1)]);
    stand.all_alike(&["rollback to s"]);
    stand.batches(&[part("p", 1)]);
    stand.all_alike(&["rollback"]);
    // What is wrong with the statement is told of the client's text.
    for sql in [
        "select id, nothing from t order by n",
        "select id from t order by nothing",
        "select id from t where nothing > 1 order by n limit 4",
    ] {
        stand.all_alike(&[
            "begin",
            "update t set n = n where id = 1",
            sql,
            "rollback",
            "begin",
        ]);
        stand.batches(&[batch()
            .parse("", sql)
            .bind("p", "", &[])
            .execute("p", 2)
            .sync()]);
        stand.all_alike(&["rollback"]);
    }
}

#[test]
fn a_limit_within_a_transaction_leaves_it_whole_and_the_rest_unread() {
    let mut stand = stand("cursors_limit");
    let huge = "select t.id, i from t join generate_series(1, 1000000) i on true order by t.id, i limit 10";
    for sql in [
        huge,
        "select t.id, i from t, generate_series(1, 1000000) i where i = 7 order by t.id limit 3",
    ] {
        stand.all_alike(&[
            "begin",
            "update t set n = n + 1 where id = 17",
            sql,
            "select n from t where id = 17",
            "update t set n = n - 1 where id = 17",
            sql,
            "commit",
        ]);
    }
}

#[test]
fn cursors_are_fetched_from_as_of_one_postgresql() {
    let mut stand = stand("cursors_sql");
    for begun in ["begin", "begin; select n from t where id = 150"] {
        for text in begun.split("; ") {
            stand.alike(&query(text), 1);
        }
        stand.all_alike(&[
            "declare c cursor for select id, n from t order by n",
            "fetch c",
            "fetch 3 from c",
            "select count(*) from t where id = 3",
            "insert into t values (999, -5)",
            "fetch next in c",
            "move 20 in c",
            "declare \"My \"\"cursor\" no scroll cursor without hold for select n from t where n > 30 order by n desc;",
            "fetch forward 4 from \"My \"\"cursor\"",
            "fetch forward 2 from c",
            "select id from t order by id limit 2",
            "fetch all from c",
            "fetch all from c",
            "fetch 1 from c",
            "move all in \"My \"\"cursor\"",
            "fetch 1 from \"My \"\"cursor\"",
            "close c",
            "declare c cursor for select id from t order by n limit 5 offset 2",
            "move forward from c",
            "fetch 9 from c",
            "fetch 9 from c",
            "declare d cursor for select id from t where n < 0 order by n",
            "fetch all from d",
            "close all",
            "savepoint s",
            "fetch 1 from d",
            "rollback to s",
            "declare C cursor for select 1",
            "fetch from c",
            "declare c cursor for select id from t order by n",
            "rollback to s",
            "close d",
            "rollback",
            "fetch 1 from c",
            "declare c cursor for select id from t order by n",
        ]);
    }
}

#[test]
fn what_a_cursor_over_shards_cannot_do_is_refused() {
    let mut stand = stand("cursors_refused");
    // What PostgreSQL refuses, too.
    stand.all_alike(&[
        "begin",
        "savepoint s",
        "declare c no scroll cursor for select id from t order by n",
        "fetch 2 from c",
    ]);
    for back in [
        "fetch prior from c",
        "move backward all in c",
        "fetch -1 from c",
    ] {
        stand.all_alike(&["savepoint u", back, "rollback to u", "release u"]);
    }
    stand.all_alike(&[
        "fetch 1 from c",
        "declare c cursor for select n from t order by id",
        "rollback to s",
    ]);
    for (sql, told) in [
        (
            "declare c scroll cursor for select id from t order by n",
            "going back in a cursor",
        ),
        (
            "declare c cursor with hold for select id from t order by n",
            "WITH HOLD",
        ),
        (
            "declare c cursor for select id, nothing from t order by n",
            "42703",
        ),
        ("update t set n = 1 where current of c", "E ERROR 0A000"),
    ] {
        stand.fails(sql, told);
        stand.ask("rollback to s");
    }
    stand.ask("declare c cursor for select id from t order by n");
    stand.fails("fetch first from c", "going back in a cursor");
    stand.ask("rollback to s");
    stand.all_alike(&["rollback"]);
}

#[test]
fn a_query_has_no_parameters_whatever_it_declares() {
    let mut stand = stand("cursors_nothing");
    for text in [
        "declare c cursor for select id from t where n > $1 order by n",
        "declare c cursor for select $2 + n as k, count(*) from t group by 1 order by 1",
        "select id from t where n > $1 order by n",
        "select count(*) from t where n > $1",
        "select id from t where id > 0 limit $1",
        "update t set n = $1",
    ] {
        stand.all_alike(&[
            "begin",
            text,
            "rollback",
            "begin",
            "select n from t where id = 150",
            text,
            "rollback",
        ]);
    }
}

#[test]
fn cursors_with_values_are_fetched_from_in_the_extended_protocol() {
    let mut stand = stand("cursors_extended");
    let declare = "declare c cursor for select id, n from t where n > $1::int order by n";
    stand.batches(&[
        // As psycopg does it: the cursor is described as a portal.
        batch().run("begin", &[]).sync(),
        batch()
            .parse("", declare)
            .bind("", "", &["40"])
            .describe_portal("")
            .execute("", 0)
            .sync(),
        batch().describe_portal("c").sync(),
        batch()
            .parse("f", "fetch forward 4 from c")
            .describe("f")
            .bind("", "f", &[])
            .describe_portal("")
            .execute("", 0)
            .sync(),
        batch().call("f", &[]).sync(),
        batch()
            .run("update t set n = 41 where id = 170", &[])
            .sync(),
        batch()
            .call("f", &[])
            .call("f", &[])
            .run("move 2 in c", &[])
            .call("f", &[])
            .sync(),
        // A part of what FETCH gives.
        batch()
            .bind("", "f", &[])
            .execute("", 3)
            .execute("", 3)
            .execute("", 3)
            .sync(),
        // A cursor is a portal, and a portal is a cursor.
        part("c", 2),
        batch()
            .parse("", SORTED)
            .bind("p", "", &[])
            .execute("p", 2)
            .sync(),
    ]);
    stand.all_alike(&["fetch 2 from p", "fetch 2 from c"]);
    stand.batches(&[
        batch()
            .run("close c", &[])
            .parse("", "fetch 1 from p")
            .bind("", "", &[])
            .execute("", 0)
            .sync(),
        batch().run("close all", &[]).sync(),
        batch().call("f", &[]).sync(),
    ]);
    stand.all_alike(&["rollback"]);
    // All in one batch, then the end of the transaction.
    stand.batches(&[
        batch()
            .run("begin", &[])
            .run(declare, &["200"])
            .run("fetch 3 from c", &[])
            .run("commit", &[])
            .sync(),
        batch().run("fetch 3 from c", &[]).sync(),
        batch().run(declare, &["200"]).sync(),
        batch().close("f").sync(),
    ]);
}

/// A Bind of the unnamed statement with its results in binary.
fn binary() -> Batch {
    let mut bytes = Batch::default();
    shardway::wire::frontend::put_bind(&mut bytes.0, b"", b"", &[0, 0, 0, 0, 0, 1, 0, 1]);
    bytes
}

#[test]
fn formats_are_those_that_fetch_asks_for() {
    let mut stand = stand("cursors_formats");
    let fetch = |count: &str| {
        let mut bytes = batch().parse("", &format!("fetch {count} from c"));
        bytes.0.extend(binary().0);
        bytes.describe_portal("").execute("", 0).sync()
    };
    stand.all_alike(&[
        "begin",
        "declare c cursor for select id, n from t order by n",
    ]);
    stand.batches(&[fetch("3"), fetch("40"), fetch("all"), fetch("1")]);
    stand.all_alike(&[
        "close c",
        "declare c binary cursor for select id, n from t order by n",
        "fetch 3 from c",
    ]);
    stand.batches(&[fetch("2")]);
    stand.all_alike(&[
        "fetch 30 from c",
        "close c",
        "declare c cursor for select id, n from t order by n",
        "fetch 3 from c",
    ]);
    // Rows that have come already are text.
    let found = stand.sharded.ask(&fetch("2").0);
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("E ERROR 0A000 another format")),
        "{found:?}"
    );
    stand.all_alike(&[
        "rollback",
        "begin",
        "declare c cursor for select date '2026-01-02' + n, id from t order by n",
        "fetch 3 from c",
        "set local work_mem = '2MB'",
        "fetch 3 from c",
        "move all in c",
        "close c",
        "declare c cursor for select date '2026-01-02' + n, id from t order by n",
        // No row has come yet.
        "set local datestyle = 'german'",
        "fetch 3 from c",
        "close c",
        "declare c cursor for select date '2026-01-02' + n, id from t order by n",
        "move 3 in c",
    ]);
    stand.all_alike(&["set local datestyle = 'iso, mdy'"]);
    stand.fails("fetch 3 from c", "another format within a cursor");
    stand.all_alike(&["rollback"]);
}

#[test]
fn a_cursor_or_portal_of_one_shard_is_found_wherever_the_transaction_is() {
    let mut stand = stand("cursors_one");
    stand.all_alike(&[
        "begin",
        "declare a cursor for select n from t where id in (3, 4, 5) order by id",
        "fetch 1 from a",
        "declare b cursor for select n from t where id in (103, 104, 105) order by id",
        "fetch 1 from b",
        "fetch 1 from a",
        "select id from t order by id limit 1",
        "fetch 1 from a",
        "fetch 1 from b",
        "move 1 in b",
        "fetch 1 from b",
        "close a",
        "savepoint s",
        "fetch 1 from a",
        "rollback to s",
        "declare b cursor for select n from t where id = 205",
        "rollback to s",
        "declare a cursor for select n from t where id = 205",
        "fetch 2 from a",
        "declare b cursor for select id from t order by n",
        "rollback to s",
        "close b",
        "declare b cursor for select id from t order by n",
        "fetch 2 from b",
        "close all",
        "fetch 1 from b",
        "rollback",
    ]);
}

#[test]
fn a_named_portal_of_one_shard_is_found_wherever_the_transaction_is() {
    let mut stand = stand("cursors_named");
    let open = |name: &str, sql: &str| {
        let portal = batch().parse("", sql).bind(name, "", &[]);
        portal.describe_portal(name).execute(name, 1).sync()
    };
    let of = |name: &str, id: u32| {
        let sql = format!("select i from t, generate_series(1, 5) i where id = {id} order by i");
        open(name, &sql)
    };
    stand.all_alike(&["begin"]);
    // The first is on no shard in particular, and stays with its transaction.
    stand.batches(&[
        open("x", "select generate_series(1, 9)"),
        part("x", 2),
        of("p", 7),
        of("q", 107),
        part("p", 1),
        part("q", 1),
        part("x", 1),
    ]);
    stand.all_alike(&["update t set n = n where id = 250"]);
    stand.batches(&[
        part("p", 1),
        batch()
            .describe_portal("q")
            .execute("p", 1)
            .execute("q", 1)
            .sync(),
        batch().close_portal("p").sync(),
        part("q", 0),
        part("p", 1),
    ]);
    stand.all_alike(&["rollback"]);
    // Of no shard, and declared first.
    stand.all_alike(&[
        "begin",
        "declare v cursor for values (1), (2), (3)",
        "fetch 1 from v",
        "fetch 1 from v",
        "select n from t where id = 5",
        "select n from t where id = 105",
        "fetch 1 from v",
        "commit",
    ]);
}

#[test]
fn a_cursor_over_a_gathered_read_is_fetched_from() {
    let mut stand = stand("cursors_gathered");
    stand.all_alike(&[
        "begin",
        "declare c cursor for select n % 10, count(*) from t group by 1 order by 1",
        "fetch 3 from c",
        "select n from t where id = 150",
        "update t set n = 5 where id = 250",
        "declare d scroll cursor for select sum(n) over (order by id) from t order by id",
        "fetch 3 from d",
        "fetch 2 from c",
        "fetch prior from d",
        "fetch last from d",
        "select id from t order by id limit 2",
        "fetch all from c",
        "close c",
        "rollback",
    ]);
    let declare =
        "declare c cursor for select n % $1::int as k, count(*) from t group by 1 order by 1";
    stand.batches(&[
        batch().run("begin", &[]).sync(),
        batch().run(declare, &["7"]).sync(),
        batch().run("fetch 3 from c", &[]).sync(),
        batch().run("select n from t where id = 150", &[]).sync(),
        batch().run("select n from t where id = 250", &[]).sync(),
        batch().run("fetch 3 from c", &[]).sync(),
        // And a portal that is read in parts.
        batch()
            .parse(
                "",
                "select n % 5 as k, count(*) from t group by 1 order by 1",
            )
            .bind("p", "", &[])
            .execute("p", 2)
            .sync(),
        batch().run("select n from t where id = 50", &[]).sync(),
        part("p", 2),
        batch().run("commit", &[]).sync(),
        batch().run("begin", &[]).sync(),
        batch()
            .parse(
                "",
                "select n % 5 as k, count(*) from t group by 1 order by 1",
            )
            .bind("p", "", &[])
            .execute("p", 2)
            .sync(),
        part("p", 2),
        batch().run("commit", &[]).sync(),
    ]);
}

/// Rows that a shard's index has given to all sessions.
fn read_by_index(stand: &mut Stand, shard: usize) -> i64 {
    let figure =
        "select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes where relname = 't'";
    stand.shards[shard].value(figure).parse().unwrap()
}

#[test]
fn what_a_limit_leaves_out_within_a_transaction_is_not_read() {
    let mut stand = stand("cursors_unread");
    for (shard, from) in [(0, -9000), (2, 1000)] {
        let made = stand.shards[shard].ask(&query(&format!(
            "insert into t select i, 0 from generate_series({from}, {from} + 8000) i"
        )));
        assert!(made[0].starts_with('C'), "{made:?}");
    }
    let mut client = stand.proxy.client();
    for sql in [
        "set enable_sort = off",
        "set enable_seqscan = off",
        "set enable_bitmapscan = off",
    ] {
        client.ask(&query(sql));
    }
    let before = [0, 2].map(|shard| read_by_index(&mut stand, shard));
    client.ask(&query("begin"));
    client.ask(&query("update t set n = n where id = 5"));
    // The first shard has all of them.
    let sql = "select id, repeat('long ', 200) from t order by id limit 5000";
    for bytes in [query(sql), batch().run(sql, &[]).sync().0] {
        let found = client.ask(&bytes);
        assert_eq!(found[found.len() - 2], "C SELECT 5000\\0");
        assert_eq!(found[found.len() - 1], "Z T");
    }
    assert_eq!(client.ask(&query("commit"))[0], "C COMMIT\\0");
    // Servers count when their backend rests.
    until("the first shard has counted", || {
        read_by_index(&mut stand, 0) - before[0] >= 10_000
    });
    client.ask(&query("select id from t order by id limit 1"));
    until("the third shard has counted", || {
        read_by_index(&mut stand, 2) > before[1]
    });
    let read = read_by_index(&mut stand, 2) - before[1];
    assert!(read < 200, "{read} rows were read that nobody wanted");
}

#[test]
fn cursors_in_a_message_of_several_statements_are_as_of_one_postgresql() {
    let mut stand = stand("cursors_message");
    stand.all_alike(&[
        "begin; declare c cursor for select id, n from t order by n; fetch 3 from c; move 2 in c; select 1; \
         fetch 2 from c; close c; commit",
        "declare c cursor for select id from t order by n; fetch 3 from c",
        "fetch 3 from c",
        "begin",
        "declare c cursor for select id, n from t order by n",
        "select 1; fetch 2 from c; select id from t where id = 3",
        "fetch 2 from c; close c; fetch 2 from c",
        "rollback",
    ]);
}
