//! What a person types into psql works as on one PostgreSQL: descriptions of tables, reading and writing by key,
//! colocated joins, savepoints, `\copy` of one shard's rows, Ctrl-C of a long query.

use crate::harness::{Target, assert_same, printed, shop, until};
use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

fn psql(target: &Target) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-v", "VERBOSITY=verbose", "-v", "SHOW_CONTEXT=never"]);
    target.apply(&mut command);
    command
}

/// Runs a script on both; everything that it prints, errors included, must be the same.
fn check(script: &str) {
    let [direct, proxied] = shop().both().map(|target| {
        let mut command = psql(&target);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("{script}\n");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    });
    assert!(!direct.0.is_empty(), "nothing was printed: {}", direct.1);
    assert_same(&direct.0, &proxied.0);
    assert_same(&direct.1, &proxied.1);
}

#[test]
fn tables_are_described() {
    check("\\d\n\\dt\n\\d customers\n\\d+ order_items\n\\di orders_pkey\n\\df\n\\dn+\n\\l shop");
}

#[test]
fn rows_are_written_and_read_by_key() {
    check(
        "INSERT INTO customers (id, name, email, country) VALUES (5000000, 'Ünï ''q''', 'e', NULL);
         SELECT * FROM customers WHERE id = 5000000;
         UPDATE customers SET name = 'new' WHERE id = 5000000 RETURNING *;
         INSERT INTO customers VALUES (5000000, 'again', 'e', 'de');
         INSERT INTO orders VALUES (5000000, 1, '2026-05-01', 1.5), (5000000, 2, '2026-05-02', 2.5);
         SELECT c.name, o.id, o.total FROM customers c JOIN orders o ON o.customer_id = c.id
             WHERE c.id = 5000000 ORDER BY o.id;
         DELETE FROM orders WHERE customer_id = 5000000;
         DELETE FROM customers WHERE id = 5000000;
         SELECT * FROM customers WHERE id = 5000000;",
    );
}

#[test]
fn colocated_tables_and_reference_tables_are_joined() {
    check(
        "SELECT c.name, o.id, o.total, i.product, i.quantity, n.name AS country FROM customers c
             JOIN orders o ON o.customer_id = c.id
             JOIN order_items i ON i.customer_id = o.customer_id AND i.order_id = o.id
             LEFT JOIN countries n ON n.code = c.country
             WHERE c.id = 42 ORDER BY o.id, i.line;
         SELECT status, count(*), sum(total) FROM orders WHERE customer_id = 42 GROUP BY status ORDER BY status;
         SELECT * FROM countries ORDER BY code;
         SELECT id, carrier FROM shipments WHERE region = 'uk' ORDER BY id LIMIT 5;
         SELECT count(*) FROM events WHERE day = '2026-02-14';",
    );
}

#[test]
fn transactions_have_savepoints() {
    check(
        "BEGIN;
         INSERT INTO customers VALUES (5100000, 'a', 'e', 'de');
         SAVEPOINT one;
         INSERT INTO customers VALUES (5100000, 'b', 'e', 'de');
         SELECT 1;
         ROLLBACK TO one;
         UPDATE customers SET name = 'c' WHERE id = 5100000;
         RELEASE one;
         COMMIT;
         SELECT name FROM customers WHERE id = 5100000;
         BEGIN; DELETE FROM customers WHERE id = 5100000; ROLLBACK;
         DELETE FROM customers WHERE id = 5100000;",
    );
}

#[test]
fn errors_have_their_place_and_their_words() {
    check(
        "SELEC 1;
         SELECT nothing FROM customers WHERE id = 1;
         SELECT 1 / 0 FROM customers WHERE id = 1;
         BEGIN; SELECT name FROM customers WHERE id = 1; SELECT FROM WHERE; SELECT 2; COMMIT;
         SELECT name FROM customers WHERE id = 1;",
    );
}

#[test]
fn rows_of_one_shard_are_copied_out() {
    let command = "\\copy (SELECT * FROM orders WHERE customer_id = 42 ORDER BY id) TO STDOUT (FORMAT csv, HEADER)";
    let [direct, proxied] = shop()
        .both()
        .map(|target| printed(psql(&target).args(["-c", command])));
    assert!(
        direct.starts_with("customer_id,id,placed_at,total,status\n42,1,"),
        "{direct}"
    );
    assert_same(&direct, &proxied);
}

#[test]
fn interrupting_psql_cancels_its_query() {
    for target in shop().both() {
        let mut command = psql(&target);
        command
            .args(["-c", "SELECT pg_sleep(61)"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        until("psql has cancelled its query", || {
            // Before the query has begun an interrupt would only end psql, so the server is asked first.
            if is_sleeping() {
                let pid = child.id().to_string();
                printed(Command::new("kill").args(["-INT", &pid]));
            }
            child.try_wait().unwrap().is_some()
        });
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(said.contains("57014"), "{}: {said}", target.name);
    }
}

/// Whether psql's sleep runs on any of the servers.
fn is_sleeping() -> bool {
    let shop = shop();
    let sql =
        "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(61)'";
    shop.servers().iter().any(|server| {
        !crate::harness::block_on(server.query("postgres", sql))
            .unwrap()
            .is_empty()
    })
}
