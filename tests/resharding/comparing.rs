//! Rows of two shards are compared exactly: what PostgreSQL shows differently is found, and named.

use crate::{
    reached::{self, block_on},
    streaming::server,
};
use shardway::{
    clock::Duration,
    net::tls::ClientTls,
    reshard::{
        plan::{MovingColumn, MovingTable},
        servers::Server,
        verify::{
            compare::{Compared, Kind, Side, compare},
            form::{Form, Majors},
        },
    },
};
use std::sync::Arc;

const TABLE: &str = "\
CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TYPE pair AS (a int, b text);
CREATE TABLE t (id bigint, part text COLLATE \"en_US\", price numeric, weight float8, note text, doc jsonb, raw json, moods mood[],
    pair pair, at timestamptz, took interval, long text, PRIMARY KEY (part, id));
INSERT INTO t SELECT n, 'p' || n % 3, n / 7.0, n / 7.0, 'note ' || n, jsonb_build_object('n', n), '{ \"n\" :1}',
    ARRAY['good', 'bad']::mood[], ROW(n, 'b')::pair, '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 day', interval '1 day', repeat(md5(n::text), 400)
FROM generate_series(1, 300) n";

fn table() -> MovingTable {
    let column = |(name, type_name): &(&str, &str)| MovingColumn {
        name: (*name).to_owned(),
        type_name: (*type_name).to_owned(),
        binary: false,
    };
    let columns = [
        ("id", "bigint"),
        ("part", "text"),
        ("price", "numeric"),
        ("weight", "double precision"),
        ("note", "text"),
        ("doc", "jsonb"),
        ("raw", "json"),
        ("moods", "public.mood[]"),
        ("pair", "public.pair"),
        ("at", "timestamp with time zone"),
        ("took", "interval"),
        ("long", "text"),
    ];
    MovingTable {
        schema: "public".to_owned(),
        name: "t".to_owned(),
        group: None,
        key_column: String::new(),
        primary_key: vec!["part".to_owned(), "id".to_owned()],
        columns: columns.iter().map(column).collect(),
        root: None,
    }
}

fn side(database: &str) -> Server {
    let address = reached::address(server(), database);
    let tls = Arc::new(ClientTls::new().unwrap());
    reached::server(database, address, Duration::from_secs(20), &tls)
}

async fn compared(majors: Majors) -> Compared {
    let (here, there) = (side("compared_here"), side("compared_there"));
    let (here, there) = (here.sql().await.unwrap(), there.sql().await.unwrap());
    let side = |client| Side {
        client,
        condition: "(id > 0)",
    };
    for client in [&here, &there] {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        client.batch_execute(begin).await.unwrap();
    }
    let form = Form::of(&table(), majors);
    compare(&form, side(&here), side(&there)).await.unwrap()
}

#[test]
fn every_difference_of_rows_is_found_and_named() {
    block_on(async {
        for database in ["compared_here", "compared_there"] {
            let create = format!("CREATE DATABASE {database}");
            server().execute("postgres", &create).await.unwrap();
            server()
                .execute(
                    database,
                    // Another order of the same type's making: its numbers differ on the two sides.
                    if database == "compared_here" {
                        "CREATE TYPE earlier AS ENUM ('x')"
                    } else {
                        "SELECT 1"
                    },
                )
                .await
                .unwrap();
            let made = server().execute(database, TABLE).await;
            if made.is_err() {
                // A system without that locale: any that is not C does.
                let other = TABLE.replace("en_US", "und-x-icu");
                server().execute(database, &other).await.unwrap();
            }
        }
        for majors in [Majors::Same, Majors::Different] {
            let alike = compared(majors).await;
            assert_eq!((alike.rows, alike.different), (300, 0), "{alike:?}");
        }
        // One column each, equal as it may be for its type.
        for (column, before, after, place) in [
            ("price", "1.0", "1.00", 2),
            ("weight", "'0'::float8", "'-0'::float8", 3),
            ("note", "''", "NULL", 4),
            ("note", "'a'", "'A'", 4),
            ("doc", "'{\"n\": 1.0}'", "'{\"n\": 1.00}'", 5),
            ("raw", "'{\"n\":1}'", "'{\"n\": 1}'", 6),
            ("moods", "ARRAY['good']::mood[]", "ARRAY['bad']::mood[]", 7),
            ("pair", "ROW(1, 'b')::pair", "ROW(1, NULL)::pair", 8),
            ("took", "'1 day'", "'24:00:00'", 10),
            (
                "long",
                "repeat('x', 100000)",
                "repeat('x', 99999) || 'y'",
                11,
            ),
        ] {
            for (database, value) in [("compared_here", before), ("compared_there", after)] {
                let update = format!("UPDATE t SET \"{column}\" = {value} WHERE id = 70");
                server().execute(database, &update).await.unwrap();
            }
            for majors in [Majors::Same, Majors::Different] {
                let found = compared(majors).await;
                assert_eq!(found.different, 1, "{column}: {before} and {after}");
                assert_eq!(found.found[0].key, "(p1,70)");
                assert_eq!(found.found[0].what, Kind::Different(vec![place]));
            }
            let update = format!("UPDATE t SET \"{column}\" = {before} WHERE id = 70");
            server().execute("compared_there", &update).await.unwrap();
        }
        server()
            .execute("compared_there", "DELETE FROM t WHERE id = 5; DELETE FROM t WHERE id = 6; INSERT INTO t (part, id) VALUES ('p', 9)")
            .await
            .unwrap();
        let found = compared(Majors::Same).await;
        assert_eq!((found.rows, found.different), (300, 3));
        let mut found: Vec<(String, Kind)> = found
            .found
            .into_iter()
            .map(|found| (found.key, found.what))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            found,
            [
                ("(p,9)".to_owned(), Kind::Extra),
                ("(p0,6)".to_owned(), Kind::Missing),
                ("(p2,5)".to_owned(), Kind::Missing),
            ]
        );
    });
}
