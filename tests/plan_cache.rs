//! A plan that the cache gives for a text is the plan that the text itself would be given, whatever texts came before.

use shardway::{
    catalog::{
        effects::Effects,
        group::{Group, GroupId, Map, RangeEntry},
        hash::HashFunction,
        key::{Key, KeyType},
        shard::ShardId,
        snapshot::{Nature, Placement, Snapshot, Table, TableName},
    },
    plan::{
        Context, StatementPlan, Values,
        analyze::analyze,
        cache::{PlanCache, Planned, Scratch},
    },
    sql::normalize::{Slots, Strings, normalize},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Literals that decide where a statement runs, that change what it is, and that do neither.
const STATEMENTS: &[&str] = &[
    "SELECT * FROM orders WHERE customer_id = 1",
    "SELECT * FROM orders WHERE customer_id = -1 AND total > 10.5",
    "SELECT * FROM orders WHERE customer_id = '1'",
    "SELECT * FROM orders WHERE customer_id = E'1'",
    "SELECT * FROM orders WHERE customer_id = $$1$$ AND note = 'x'",
    "SELECT * FROM orders WHERE customer_id = 3000000000 OR customer_id = 4",
    "SELECT * FROM orders WHERE customer_id = 1.0",
    "SELECT * FROM orders WHERE customer_id IN (1, 2, 3) LIMIT 10",
    "SELECT * FROM orders WHERE customer_id = 7 AND customer_id = 8",
    "SELECT * FROM orders WHERE customer_id = '1'::bigint",
    "SELECT * FROM orders WHERE customer_id = CAST('1' AS bigint)",
    "SELECT * FROM orders WHERE customer_id = bigint '1'",
    "SELECT * FROM orders WHERE customer_id BETWEEN 1 AND 1",
    "SELECT total, note FROM orders WHERE customer_id = 1 ORDER BY 1",
    "SELECT total, count(*) FROM orders WHERE customer_id = 1 GROUP BY 1 ORDER BY 2",
    "SELECT * FROM orders JOIN customers ON customers.id = orders.customer_id WHERE customers.id = 5",
    "SELECT * FROM orders WHERE customer_id = (SELECT 1)",
    "SELECT * FROM orders WHERE customer_id = 1 UNION ALL SELECT * FROM orders WHERE customer_id = 1",
    "WITH a AS (SELECT * FROM orders WHERE customer_id = 3) SELECT * FROM a LIMIT 1",
    "INSERT INTO orders (customer_id, total, note) VALUES (1, 2, 'x')",
    "INSERT INTO orders VALUES (1, 2, 'x'), (1, 3, 'y')",
    "INSERT INTO orders SELECT 1, 2, 'x'",
    "UPDATE orders SET total = 5 WHERE customer_id = 2",
    "UPDATE orders SET customer_id = 2 WHERE customer_id = 2",
    "DELETE FROM orders WHERE customer_id = 4 AND note = 'x'",
    "SELECT * FROM shipments WHERE region = 'north'",
    "SELECT * FROM shipments WHERE region IN ('north', 'south')",
    "SELECT * FROM shipments WHERE region = U&'north'",
    "SELECT * FROM shipments WHERE region = U&'!006Eorth' UESCAPE '!'",
    "INSERT INTO shipments VALUES ('north', 1)",
    "SELECT * FROM events WHERE id = 50",
    "SELECT * FROM events WHERE id >= 1 AND id < 50",
    "SELECT * FROM countries WHERE code = 'de' LIMIT 3",
    "SELECT 1, 'a', 1.5, interval '1 day'",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT set_config('a.b', 'c', false)",
    "SELECT nextval('s')",
    "SELECT current_setting('search_path')",
    "SET work_mem TO 64",
    "SET search_path TO 'a', 'b'",
    "SET LOCAL statement_timeout = '5s'",
    "SAVEPOINT a",
    "EXPLAIN (ROUTE) SELECT * FROM orders WHERE customer_id = 1",
    "EXPLAIN SELECT * FROM orders WHERE customer_id = 1",
    "/* shardway: key=4 */ SELECT * FROM orders WHERE total = 1",
    "/* shardway: shard=s1 */ SELECT * FROM orders WHERE total = 1",
    "SELECT * FROM orders WHERE customer_id = 1; SELECT * FROM orders WHERE customer_id = 2",
    "COPY orders FROM STDIN WITH (DELIMITER ',')",
    "SELECT * FROM orders WHERE customer_id = 'x",
    "SELECT * FORM orders WHERE customer_id = 1",
];

#[test]
fn a_cached_plan_is_the_plan_that_the_text_itself_would_get() {
    let (context, snapshot) = (Context::default(), shop());
    let cache = PlanCache::new(64 << 20, 1);
    let mut scratch = Scratch::default();
    let mut texts = Vec::new();
    for statement in STATEMENTS {
        for round in 0..6 {
            texts.push(varied(statement, round));
        }
    }
    for text in texts.iter().chain(texts.iter().rev()) {
        let planned = cache.plan(text.as_bytes(), &[], &context, &snapshot, &mut scratch);
        let mut slots = Slots::new();
        normalize(
            text.as_bytes(),
            Strings::Standard,
            &mut Vec::new(),
            &mut slots,
        );
        let plan = Arc::new(analyze(text.as_bytes(), &[], &slots, &context, &snapshot));
        let fresh = Planned { plan, slots };
        assert_eq!(
            meaning(&planned, text, &snapshot),
            meaning(&fresh, text, &snapshot),
            "{text}"
        );
    }
    let stats = cache.stats();
    assert!(stats.hits > stats.misses, "{stats:?}");
}

/// What a plan does with a text: each statement's text, effect, access, target and route.
fn meaning(planned: &Planned, text: &str, snapshot: &Snapshot) -> Vec<String> {
    let values = Values {
        text: text.as_bytes(),
        slots: &planned.slots,
        types: &[],
        bind: None,
    };
    let statements = planned.plan.statements.iter().enumerate();
    let meaning = statements.map(|(index, statement)| {
        let text = planned
            .statement_text(index, text.as_bytes())
            .map(String::from_utf8_lossy);
        let StatementPlan {
            effect,
            access,
            target,
            ..
        } = statement;
        format!(
            "{text:?} {effect:?} {access:?} {target:?} {:?}",
            statement.route(snapshot, &values)
        )
    });
    meaning.collect()
}

/// The text with other literals of the same kinds.
fn varied(text: &str, round: usize) -> String {
    let (mut template, mut slots) = (Vec::new(), Slots::new());
    normalize(
        text.as_bytes(),
        Strings::Standard,
        &mut template,
        &mut slots,
    );
    let (mut varied, mut copied) = (String::new(), 0);
    for (at, slot) in slots.iter().enumerate() {
        let literal = &text[slot.range()];
        varied.push_str(&text[copied..slot.range().start]);
        // The first rounds keep some of them, so that texts differ in a part of their literals too.
        varied.push_str(&if (at + round).is_multiple_of(3) {
            literal.to_owned()
        } else {
            another(literal, round)
        });
        copied = slot.range().end;
    }
    varied + &text[copied..]
}

fn another(literal: &str, round: usize) -> String {
    let number = round * 37 + 2;
    let word = ["north", "south", "42", "it''s", "", "99"][round % 6];
    match literal.as_bytes() {
        [b'\'', ..] => format!("'{word}'"),
        [b'E', ..] => format!("E'{word}\\x31'"),
        [b'$', ..] => format!("$${number}$$"),
        [b'U', .., b'!', b'\''] => format!("U&'!0073{word}' UESCAPE '!'"),
        [b'U', ..] => format!("U&'{word}'"),
        _ if literal.contains('.') => format!("{number}.0"),
        _ if literal.len() > 9 => format!("3000000{number:03}"),
        _ => number.to_string(),
    }
}

fn shop() -> Snapshot {
    let shards = ["s0", "s1", "s2"].map(str::to_owned).to_vec();
    Snapshot {
        groups: groups(),
        tables: tables(),
        ..Snapshot::new("shop", shards)
    }
}

fn groups() -> Vec<Group> {
    let group = |name: &str, key_type, map| Group {
        name: name.to_owned(),
        key_type,
        map,
        pins: BTreeMap::new(),
        doubled: Vec::new(),
    };
    let text = |text: &str| Key::Text(text.as_bytes().into());
    let shards = (0..64).map(|bucket| ShardId(bucket % 3)).collect();
    let values = BTreeMap::from([(text("north"), ShardId(1)), (text("south"), ShardId(2))]);
    let range = |to, shard| RangeEntry {
        to,
        shard: ShardId(shard),
    };
    let ranges = [
        range(Some(Key::Bigint(40)), 0),
        range(Some(Key::Bigint(100)), 1),
        range(None, 2),
    ];
    vec![
        group(
            "tenants",
            KeyType::Bigint,
            Map::Hash {
                function: HashFunction::Postgres,
                shards,
            },
        ),
        group(
            "regions",
            KeyType::Text,
            Map::List {
                values,
                other: Some(ShardId(0)),
            },
        ),
        group("months", KeyType::Bigint, Map::Range(Box::new(ranges))),
    ]
}

fn tables() -> HashMap<TableName, Table, foldhash::fast::RandomState> {
    let sharded = |group: u16, columns: &[&str]| Table {
        placement: Placement::Sharded {
            group: GroupId(group),
            key_column: columns[0].to_owned(),
        },
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
        sources: Vec::new(),
        effects: Effects::default(),
        nature: Nature::Table,
        over: Vec::new(),
    };
    let tables = [
        ("customers", sharded(0, &["id", "name"])),
        ("orders", sharded(0, &["customer_id", "total", "note"])),
        ("shipments", sharded(1, &["region", "order_id"])),
        ("events", sharded(2, &["id", "what"])),
        (
            "countries",
            Table {
                placement: Placement::Reference,
                columns: vec!["code".to_owned()],
                sources: Vec::new(),
                effects: Effects::default(),
                nature: Nature::Table,
                over: Vec::new(),
            },
        ),
    ];
    let named = tables.map(|(name, table)| {
        (
            TableName {
                schema: "public".to_owned(),
                name: name.to_owned(),
            },
            table,
        )
    });
    named.into_iter().collect()
}
