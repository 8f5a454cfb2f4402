//! Which text each shard is sent.

use super::*;
use crate::{
    catalog::group::GroupId,
    plan::spread::{Copies, Fill, Turns},
    sql::{
        normalize::{Slots, Strings},
        scan::slots_of,
    },
};

fn slots(text: &str) -> Slots {
    slots_of(text, Strings::Standard)
}

fn made(what: What, text: &str, rows: &[u32]) -> Option<(String, Option<Vec<u16>>)> {
    let time = Time::Asked;
    let given = Given {
        time: Some("2026-01-02 03:04:05+00"),
        drawn: &[],
    };
    let fill = Fill::default();
    let lock = None;
    let part = Spread {
        what,
        time,
        fill,
        lock,
        turns: Turns::AtOnce,
    }
    .parts(text, &slots(text), std::iter::once(rows), &given)?
    .remove(0);
    Some((part.text, part.parameters))
}

fn share() -> What {
    What::Share(GroupId(0))
}

#[test]
fn each_shard_gets_its_rows_and_the_parameters_that_these_name() {
    let text = "INSERT INTO t (a, b) VALUES ($1, f(')', $2)), /* ( */ ($3, DEFAULT), ($4, ARRAY[$2, 1]) \
                ON CONFLICT (a) DO UPDATE SET b = $5 RETURNING a, b; -- end";
    let behind = "ON CONFLICT (a) DO UPDATE SET b";
    for (rows, wanted, numbers) in [
        (
            &[0, 2][..],
            format!(
                "INSERT INTO t (a, b) VALUES ($1, f(')', $2)), ($3, ARRAY[$2, 1]) {behind} = $4 RETURNING a, b"
            ),
            vec![0, 1, 3, 4],
        ),
        (
            &[1][..],
            format!("INSERT INTO t (a, b) VALUES ($1, DEFAULT) {behind} = $2 RETURNING a, b"),
            vec![2, 4],
        ),
    ] {
        assert_eq!(
            made(What::Rows(3), text, rows),
            Some((wanted, Some(numbers)))
        );
    }
    assert_eq!(made(What::Rows(2), text, &[0]), None, "another count");
    assert_eq!(made(What::Rows(3), text, &[3]), None, "no such row");
}

#[test]
fn values_is_the_clause_and_no_name() {
    let text = "INSERT INTO values AS values (id, \"values\") OVERRIDING SYSTEM VALUE VALUES (1, 'VALUES (2)'), (3, 4)";
    assert_eq!(
        made(What::Rows(2), text, &[1]).unwrap().0,
        "INSERT INTO values AS values (id, \"values\") OVERRIDING SYSTEM VALUE VALUES (3, 4)"
    );
}

#[test]
fn the_time_is_one_for_all_shards() {
    let moment = "'2026-01-02 03:04:05+00'::pg_catalog.timestamptz";
    for (expression, wanted) in [
        ("now()", format!("({moment})")),
        ("Pg_Catalog.now ( )", format!("({moment})")),
        ("transaction_timestamp()", format!("({moment})")),
        (
            "CURRENT_TIMESTAMP",
            format!("({moment}::pg_catalog.timestamptz)"),
        ),
        (
            "localtimestamp(3)",
            format!("({moment}::pg_catalog.timestamp(3))"),
        ),
        (
            "current_date - 1",
            format!("({moment}::pg_catalog.date) - 1"),
        ),
        ("now", "now".to_owned()),
        ("'now()'", "'now()'".to_owned()),
    ] {
        let text = format!("UPDATE t SET a = {expression} WHERE b");
        assert_eq!(
            made(share(), &text, &[]).unwrap().0,
            format!("UPDATE t SET a = {wanted} WHERE b")
        );
    }
    assert_eq!(made(share(), "UPDATE t SET a = x.now()", &[]), None);
}

#[test]
fn copies_tell_what_they_wrote() {
    let copies = What::Copies(Copies {
        table: "c".to_owned(),
        quoted: "\"c\"".to_owned(),
        alias: "\"c\"".to_owned(),
    });
    let print = "pg_catalog.hashtextextended((ROW(\"c\".*)::pg_catalog.text) COLLATE pg_catalog.\"C\", 0)::pg_catalog.text";
    for (text, wanted) in [
        (
            "DELETE FROM c; -- all",
            format!("DELETE FROM c RETURNING {print}"),
        ),
        (
            "UPDATE c SET a = 1 RETURNING a, (SELECT 1)",
            format!("UPDATE c SET a = 1 RETURNING a, (SELECT 1), {print}"),
        ),
    ] {
        assert_eq!(made(copies.clone(), text, &[]).unwrap().0, wanted);
    }
}
