//! Portals and cursors whose rows come from several shards, read in parts within a transaction: what one PostgreSQL with
//! all rows answers, message by message.

use crate::{
    client::{Batch, batch, query},
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
