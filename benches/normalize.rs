//! What the lexer costs per text. `cargo bench --bench normalize`.

mod timing;

use shardway::sql::normalize::{Slots, Strings, normalize};
use std::hint::black_box;

fn main() {
    let insert: String = (0..1000)
        .map(|row| format!("({row}, 'name {row}', 12.50, now()), "))
        .collect();
    for (name, text) in [
        (
            "point select, literal",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;",
        ),
        (
            "point select, parameter",
            "SELECT abalance FROM pgbench_accounts WHERE aid = $1",
        ),
        (
            "select as an ORM writes it",
            r#"SELECT "orders"."id", "orders"."customer_id", "orders"."placed_at", "orders"."total", "orders"."note"
                FROM "orders" INNER JOIN "customers" ON ("orders"."customer_id" = "customers"."id")
                WHERE ("orders"."customer_id" = 4711 AND "orders"."state" IN ('paid', 'sent') AND NOT "orders"."hidden")
                ORDER BY "orders"."placed_at" DESC LIMIT 21"#,
        ),
        (
            "update",
            "UPDATE pgbench_tellers SET tbalance = tbalance + -1234 WHERE tid = 77;",
        ),
        (
            "insert of 1000 rows",
            &format!("INSERT INTO customers VALUES {insert} (0, '', 0, now())"),
        ),
    ] {
        let (mut template, mut slots) = (Vec::new(), Slots::new());
        timing::time(&format!("normalize: {name}, {} bytes", text.len()), || {
            normalize(
                black_box(text.as_bytes()),
                Strings::Standard,
                &mut template,
                &mut slots,
            )
        });
    }
}
