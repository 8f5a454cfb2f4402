//! SQL and a map in, a route or a refusal out: one statement a line in `golden/route/*.txt`.
//!
//! A line is `SQL  =>  expectation`; parameters stand between: `SQL  |  int8:42, text:eu  =>  …`. Expectations:
//! `one group=value` (the shard that holds the key), `one shard`, `any`, `home`, `judge`, `nowhere` (no row can match:
//! any one shard answers), `spread s0 s1` (a write to these shards; `s0:2`: two rows of VALUES), `rows first` (its rows are
//! computed before they have shards), `empty`, or a refusal's code; then the effect on the session, if there is one.

use shardway::{
    catalog::{
        code::{Code, Piece, PieceKind},
        effects::{Effects, Fired, Hazard, HazardKind},
        group::{Group, GroupId, Map, RangeEntry},
        hash::HashFunction,
        key::KeyType,
        shard::ShardId,
        snapshot::{Nature, Other, Placement, Snapshot, Table, TableName, Unlisted},
    },
    plan::{
        Context, Plan, Route, Target, Values,
        analyze::{analyze, shown},
        explain::describe,
        spread::Shares,
        unroutable::Unroutable,
    },
    sql::{
        normalize::{Slots, Strings, normalize},
        statement::Effect,
    },
    wire::{frontend::Bind, types},
};
use std::{collections::BTreeMap, collections::HashMap, path::Path};

const SHARDS: [&str; 4] = ["s0", "s1", "s2", "s3"];

#[test]
fn every_statement_is_routed_or_refused_as_written() {
    let snapshot = shop();
    let mut wrong = Vec::new();
    let mut count = 0;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/route");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("golden files")
        .map(|file| file.expect("file").path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("golden file");
        for (at, line) in text.lines().enumerate() {
            let Some((left, expected)) = line.rsplit_once("=>") else {
                assert!(
                    line.trim().is_empty() || line.starts_with('#'),
                    "{}:{}: {line}",
                    file.display(),
                    at + 1
                );
                continue;
            };
            count += 1;
            let (sql, parameters) = left.split_once("  |  ").unwrap_or((left, ""));
            let found = outcome(sql.trim(), parameters.trim(), &snapshot);
            let wanted = expectation(expected.trim(), &snapshot);
            let nowhere = wanted == "nowhere" && found.starts_with("one ");
            if found != wanted && !nowhere {
                wrong.push(format!(
                    "{}:{}: {}\n  wanted {wanted}\n  found  {found}",
                    file.display(),
                    at + 1,
                    left.trim()
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(count >= 300, "{count} statements");
}

/// `one tenants=42` as `one s2`; everything else as it stands.
fn expectation(text: &str, snapshot: &Snapshot) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let symbolic = word.split_once('=').and_then(|(group, value)| {
            let group = snapshot.groups.iter().find(|known| known.name == group)?;
            let key = group.key_type.from_text(value.as_bytes()).expect("a key");
            group
                .shard_of(&key)
                .map(|shard| snapshot.shards[shard.index()].clone())
        });
        words.push(symbolic.unwrap_or_else(|| word.to_owned()));
    }
    words.join(" ")
}

fn outcome(sql: &str, parameters: &str, snapshot: &Snapshot) -> String {
    let context = Context::default();
    let (plan, slots) = plan_of(sql, &context, snapshot);
    let (oids, bind) = bind_of(parameters);
    let bind = bind
        .as_deref()
        .map(|bind| Bind::decode(bind).expect("a Bind message"));
    let values = Values {
        text: sql.as_bytes(),
        slots: &slots,
        types: &oids,
        bind: bind.as_ref(),
    };
    let all: Vec<String> = plan
        .statements
        .iter()
        .map(|statement| one_outcome(statement, &values, snapshot))
        .collect();
    if all.is_empty() {
        "empty".to_owned()
    } else {
        all.join(" ; ")
    }
}

fn one_outcome(
    statement: &shardway::plan::StatementPlan,
    values: &Values<'_>,
    snapshot: &Snapshot,
) -> String {
    let described = describe(statement, snapshot, values);
    if described.refused.is_none()
        && let [("route", kind), ("shards", shards), ("reason", reason), ..] =
            described.rows.as_slice()
        && kind == "change"
    {
        // A schema change: its shards, and what is known of them.
        let all = *shards == snapshot.shards.join(", ");
        let shards = if all { "all" } else { shards };
        return format!("change {shards}: {reason}");
    }
    if let (Some(changes), Some(why)) = (&statement.changes, &described.refused) {
        assert!(!changes.command.is_empty());
        return refused(why);
    }
    assert!(described.rows.len() >= 3, "{described:?}");
    if statement.sourced.is_some() {
        return "rows first".to_owned();
    }
    let shares = statement.shares(snapshot, values);
    let mut words = match &statement.target {
        _ if shares.is_some() => spread(shares.expect("shares"), snapshot),
        Target::Judge => "judge".to_owned(),
        Target::Explain(inner) => format!("explain {}", one_outcome(inner, values, snapshot)),
        Target::Fixed(_) | Target::ByKey(_) | Target::Refused(_) => {
            match statement.route(snapshot, values) {
                Ok(Route::One(shard)) => format!("one {}", snapshot.shards[shard.index()]),
                Ok(Route::Any) => "any".to_owned(),
                Ok(Route::Home) => "home".to_owned(),
                Ok(route) => format!("{route:?}"),
                Err(why) => refused(&why),
            }
        }
    };
    if statement.effect != Effect::None && !words.starts_with("SW") {
        words = format!("{words} {}", effect(&statement.effect));
    }
    words
}

fn spread(shares: Result<Shares, Box<Unroutable>>, snapshot: &Snapshot) -> String {
    let shares = match shares {
        Ok(shares) => shares.shards,
        Err(why) => return refused(&why),
    };
    let words = shares.iter().map(|(shard, rows)| {
        let name = &snapshot.shards[shard.index()];
        if rows.is_empty() {
            format!(" {name}")
        } else {
            format!(" {name}:{}", rows.len())
        }
    });
    format!("spread{}", words.collect::<String>())
}

fn refused(why: &Unroutable) -> String {
    why.code().to_owned()
}

/// The effect in one word, with what matters of its values.
fn effect(effect: &Effect) -> String {
    format!("{effect:?}").replace(' ', "")
}

fn plan_of(sql: &str, context: &Context, snapshot: &Snapshot) -> (Plan, Slots) {
    let (mut template, mut slots) = (Vec::new(), Slots::new());
    normalize(sql.as_bytes(), Strings::Standard, &mut template, &mut slots);
    (
        analyze(sql.as_bytes(), &[], &slots, context, snapshot),
        slots,
    )
}

/// `int8:42, text:eu, null` as declared types and a Bind message.
fn bind_of(parameters: &str) -> (Vec<u32>, Option<Vec<u8>>) {
    if parameters.is_empty() {
        return (Vec::new(), None);
    }
    let mut oids = Vec::new();
    let mut values: Vec<Option<Vec<u8>>> = Vec::new();
    for parameter in parameters.split(", ") {
        let (kind, value) = parameter.split_once(':').unwrap_or((parameter, ""));
        let named = HashMap::from([
            ("unknown", 0),
            ("null", 0),
            ("int2", types::INT2),
            ("int4", types::INT4),
            ("int8", types::INT8),
            ("int8[]", types::INT8_ARRAY),
            ("text", types::TEXT),
            ("text[]", types::TEXT_ARRAY),
            ("uuid", types::UUID),
            ("date", types::DATE),
            ("float8", types::FLOAT8),
            ("numeric", types::NUMERIC),
        ]);
        oids.push(named[kind]);
        values.push((kind != "null").then(|| value.as_bytes().to_vec()));
    }
    let mut body = vec![0, 0, 0, 0];
    body.extend(u16::try_from(values.len()).expect("few").to_be_bytes());
    for value in &values {
        match value {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
                body.extend(value);
            }
        }
    }
    body.extend([0, 0]);
    (oids, Some(body))
}

/// What `guarded` sets off: it counts its ids per shard, its slugs are unique, and a trigger fires at DELETE.
fn effects(table: &str) -> Effects {
    if table != "guarded" {
        return Effects::default();
    }
    let hazard = |name: &str, kind, fired| Hazard {
        name: name.to_owned(),
        kind,
        fired,
    };
    let unique = |column: &str| HazardKind::Unique(vec![column.to_owned()]);
    let delete = Fired {
        delete: true,
        ..Fired::default()
    };
    Effects {
        hazards: vec![
            hazard("id", HazardKind::Default, Fired::INSERT),
            hazard("slugs", unique("slug"), Fired::VALUES),
            hazard("tokens", unique("token"), Fired::VALUES),
            hazard("archive", HazardKind::Trigger, delete),
        ],
        fresh: vec!["token".to_owned()],
        ..Effects::default()
    }
}

/// Four shards: a hash group on bigint, one on uuid, one on text, a list and a range group, a reference and a single table.
#[expect(clippy::too_many_lines, reason = "one table of tables")]
fn shop() -> Snapshot {
    let ids: Vec<ShardId> = (0..4).map(ShardId).collect();
    let hash = |name: &str, key_type| Group {
        name: name.to_owned(),
        key_type,
        map: Map::even_hash(HashFunction::Postgres, 1024, &ids).expect("a power of two"),
        pins: BTreeMap::new(),
        doubled: Vec::new(),
    };
    let text = |value: &str| KeyType::Text.from_text(value.as_bytes()).expect("text");
    let day = |value: &str| KeyType::Date.from_text(value.as_bytes()).expect("a date");
    let regions =
        [("eu", 0), ("uk", 0), ("us", 1)].map(|(region, shard)| (text(region), ShardId(shard)));
    let months = vec![
        RangeEntry {
            to: Some(day("2026-01-01")),
            shard: ShardId(0),
        },
        RangeEntry {
            to: Some(day("2026-02-01")),
            shard: ShardId(1),
        },
        RangeEntry {
            to: None,
            shard: ShardId(2),
        },
    ];
    let groups = vec![
        hash("tenants", KeyType::Bigint),
        Group {
            name: "regions".to_owned(),
            key_type: KeyType::Text,
            map: Map::list(regions, None).expect("a list"),
            pins: BTreeMap::new(),
            doubled: Vec::new(),
        },
        Group {
            name: "months".to_owned(),
            key_type: KeyType::Date,
            map: Map::range(months).expect("ranges"),
            pins: BTreeMap::new(),
            doubled: Vec::new(),
        },
        hash("devices", KeyType::Uuid),
        hash("names", KeyType::Text),
    ];
    let sharded = |group: u16, key: &str| Placement::Sharded {
        group: GroupId(group),
        key_column: key.to_owned(),
    };
    let tables = [
        ("customers", sharded(0, "id"), ""),
        ("orders", sharded(0, "customer_id"), ""),
        ("order_items", sharded(0, "customer_id"), ""),
        (
            "invoices",
            sharded(0, "customer_id"),
            "id customer_id total",
        ),
        ("payments", sharded(0, "customer_id"), "id customer_id paid"),
        ("guarded", sharded(0, "customer_id"), ""),
        ("shipments", sharded(1, "region"), ""),
        ("events", sharded(2, "day"), ""),
        ("devices", sharded(3, "id"), ""),
        ("people", sharded(4, "name"), ""),
        ("countries", Placement::Reference, ""),
        ("currencies", Placement::Reference, "code name"),
        ("settings", Placement::Single(ShardId(3)), ""),
        ("jobs", Placement::Single(ShardId(1)), ""),
    ];
    let tables = tables.into_iter().map(|(name, placement, columns)| {
        let columns = columns.split_whitespace().map(str::to_owned).collect();
        (
            TableName {
                schema: "public".to_owned(),
                name: name.to_owned(),
            },
            Table {
                placement,
                columns,
                sources: Vec::new(),
                effects: effects(name),
                nature: Nature::Table,
                over: Vec::new(),
            },
        )
    });
    with_views(Snapshot {
        home: ShardId(2),
        groups,
        tables: tables.collect(),
        code: Code::learned(&[
            function("order_total", "SELECT sum(price) FROM order_items"),
            function("set_tenant", "SELECT set_config('app.tenant', $1, false)"),
        ]),
        ..Snapshot::new("app", SHARDS.map(str::to_owned).to_vec())
    })
}

/// Views, as `pg_get_viewdef` writes them.
fn with_views(mut snapshot: Snapshot) -> Snapshot {
    for (name, definition) in [
        (
            "my_orders",
            "SELECT orders.id, orders.customer_id AS customer, orders.total FROM public.orders",
        ),
        (
            "bought",
            "SELECT o.customer_id, i.what FROM public.orders o JOIN public.order_items i \
             ON i.customer_id = o.customer_id AND i.order_id = o.id",
        ),
        (
            "revenue",
            "SELECT orders.customer_id, sum(orders.total) AS sum FROM public.orders GROUP BY orders.customer_id",
        ),
        (
            "big",
            "SELECT r.customer_id, m.id FROM public.revenue r JOIN public.my_orders m ON m.customer = r.customer_id \
             WHERE r.sum > 100",
        ),
        ("titles", "SELECT orders.id FROM public.orders"),
        (
            "of_42",
            "SELECT orders.id FROM public.orders WHERE orders.customer_id = 42",
        ),
        ("places", "SELECT countries.code FROM public.countries"),
        ("old_settings", "SELECT settings.id FROM public.settings"),
        (
            "late",
            "SELECT orders.customer_id FROM public.orders WHERE orders.due < now()",
        ),
        (
            "priced",
            "SELECT orders.customer_id, public.order_total(orders.id) AS order_total FROM public.orders",
        ),
        (
            "totals",
            "SELECT orders.id, sum(orders.total) AS sum FROM public.orders GROUP BY orders.id",
        ),
        ("over_totals", "SELECT totals.id FROM public.totals"),
    ] {
        let own = TableName {
            schema: "public".to_owned(),
            name: name.to_owned(),
        };
        let Some(shown) = shown(definition, &snapshot) else {
            snapshot.others.insert(own, Other::View);
            continue;
        };
        let hazard = Hazard {
            name: "_RETURN".to_owned(),
            kind: HazardKind::View,
            fired: Fired::WRITES,
        };
        let table = Table {
            columns: columns_of(definition),
            effects: Effects {
                hazards: vec![hazard],
                ..Effects::default()
            },
            nature: shown.nature,
            over: shown.over,
            ..Table::unasked(shown.placement)
        };
        snapshot.tables.insert(own, table);
    }
    snapshot
}

/// The names of what such a definition selects.
fn columns_of(definition: &str) -> Vec<String> {
    let list = definition.strip_prefix("SELECT ").unwrap_or_default();
    let list = list.split(" FROM ").next().unwrap_or_default();
    let columns = list.split(", ").map(|item| {
        let name = item.rsplit([' ', '.']).next();
        name.unwrap_or_default().to_owned()
    });
    columns.collect()
}

/// The plan of one text serves every text that has its template and agrees in its structural literals.
#[test]
fn a_plan_serves_texts_with_other_key_values() {
    let snapshot = shop();
    let context = Context::default();
    let (plan, _) = plan_of(
        "SELECT * FROM orders WHERE customer_id = 1 AND id = 2 LIMIT 3",
        &context,
        &snapshot,
    );
    assert!(plan.structural.is_empty(), "{plan:?}");
    for key in 1..200 {
        let other = format!("SELECT * FROM orders WHERE customer_id = {key} AND id = 777 LIMIT 99");
        let (own, slots) = plan_of(&other, &context, &snapshot);
        let values = Values {
            text: other.as_bytes(),
            slots: &slots,
            types: &[],
            bind: None,
        };
        let found = plan.statements[0].route(&snapshot, &values);
        assert_eq!(found, own.statements[0].route(&snapshot, &values));
        assert_eq!(
            format!("one {}", SHARDS[shard_index(&found)]),
            expectation(&format!("one tenants={key}"), &snapshot)
        );
    }
    let (set, slots) = plan_of("SET x.y = 'a'", &context, &snapshot);
    assert_eq!(
        set.structural.len(),
        slots.len(),
        "a setting's value is part of the plan"
    );
}

fn shard_index(route: &Result<Route, Box<Unroutable>>) -> usize {
    match route {
        Ok(Route::One(shard)) => shard.index(),
        other => panic!("{other:?}"),
    }
}

/// Statements that nest or chain without end are refused or routed, on a stack of a server's size.
#[test]
fn endless_statements_neither_hang_nor_overflow() {
    let deep = |open: &str, close: &str, inner: &str| {
        format!("{}{inner}{}", open.repeat(3000), close.repeat(3000))
    };
    let cases = [
        (
            format!(
                "SELECT * FROM orders WHERE customer_id = 42 OR {}",
                vec!["customer_id = 42"; 100_000].join(" OR ")
            ),
            "one",
        ),
        (
            format!(
                "SELECT * FROM orders WHERE customer_id IN ({})",
                vec!["42"; 100_000].join(",")
            ),
            "one",
        ),
        (
            format!(
                "SELECT {} FROM orders WHERE customer_id = 42",
                vec!["1"; 100_000].join("+")
            ),
            "one",
        ),
        (vec!["SELECT 1"; 20_000].join(" UNION ALL "), "any"),
        (
            format!(
                "SELECT {} FROM orders WHERE customer_id = 42",
                deep("abs(", ")", "1")
            ),
            "SW116",
        ),
        (
            format!(
                "SELECT {} FROM orders WHERE customer_id = 42",
                deep("- ", "", "x")
            ),
            "SW116",
        ),
        (format!("SELECT {}", deep("(SELECT ", ")", "1")), "SW116"),
        (
            format!(
                "SELECT * FROM orders WHERE {} customer_id = 42",
                "NOT ".repeat(3000)
            ),
            "SW116",
        ),
    ];
    let snapshot = shop();
    let check = move || {
        for (sql, wanted) in cases {
            let (plan, slots) = plan_of(&sql, &Context::default(), &snapshot);
            let values = Values {
                text: sql.as_bytes(),
                slots: &slots,
                types: &[],
                bind: None,
            };
            let found = one_outcome(&plan.statements[0], &values, &snapshot);
            let start: String = sql.chars().take(60).collect();
            assert!(found.starts_with(wanted), "{start}: {found}");
        }
    };
    std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(check)
        .expect("a thread")
        .join()
        .expect("no overflow");
}

/// A table that nothing lists, in an earlier schema of search_path, is what PostgreSQL reads: not the listed one.
#[test]
fn what_nothing_lists_hides_what_is_listed_behind_it() {
    let mut snapshot = shop();
    let name = |schema: &str, name: &str| TableName {
        schema: schema.to_owned(),
        name: name.to_owned(),
    };
    snapshot
        .others
        .insert(name("early", "orders"), Other::Table);
    snapshot
        .others
        .insert(name("public", "orders_of_42"), Other::Derived);
    let route = |sql: &str, path: &[&str], snapshot: &Snapshot| {
        let context = Context {
            search_path: path.iter().map(|&schema| schema.to_owned()).collect(),
            ..Context::default()
        };
        let (plan, slots) = plan_of(sql, &context, snapshot);
        let values = Values {
            text: sql.as_bytes(),
            slots: &slots,
            types: &[],
            bind: None,
        };
        one_outcome(&plan.statements[0], &values, snapshot)
    };
    let sql = "SELECT * FROM orders WHERE customer_id = 42";
    assert_eq!(route(sql, &["early", "public"], &snapshot), "SW104");
    assert!(route(sql, &["public", "early"], &snapshot).starts_with("one"));
    assert!(
        route(
            &sql.replace("orders", "public.orders"),
            &["early", "public"],
            &snapshot
        )
        .starts_with("one")
    );
    snapshot.unlisted = Unlisted::On(ShardId(1));
    assert_eq!(
        route("SELECT * FROM orders", &["early", "public"], &snapshot),
        "one s1"
    );
    assert_eq!(
        route("SELECT * FROM orders_of_42", &["public"], &snapshot),
        "SW104"
    );
}

fn function(name: &str, text: &str) -> Piece {
    Piece {
        kind: PieceKind::Function,
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

/// A database of one shard refuses nothing; only what its session must know is told.
#[test]
fn one_shard_refuses_nothing() {
    let snapshot = Snapshot {
        shards: vec!["s0".to_owned()],
        home: ShardId(0),
        groups: Vec::new(),
        tables: HashMap::default(),
        ..shop()
    };
    for (sql, effect) in [
        ("SELECT * FROM anything", Effect::None),
        ("CREATE TABLE x (id int)", Effect::None),
        ("SELEC 1", Effect::Opaque),
        ("BEGIN", Effect::Begin),
        ("DO $$ BEGIN END $$", Effect::Opaque),
        ("PREPARE a AS SELECT 1", Effect::Prepare("a".to_owned())),
        ("COPY x FROM STDIN", Effect::CopyIn),
    ] {
        let (plan, slots) = plan_of(sql, &Context::default(), &snapshot);
        let values = Values {
            text: sql.as_bytes(),
            slots: &slots,
            types: &[],
            bind: None,
        };
        assert_eq!(
            plan.statements[0].route(&snapshot, &values),
            Ok(Route::One(ShardId(0))),
            "{sql}"
        );
        assert_eq!(plan.statements[0].effect, effect, "{sql}");
    }
}

/// What is not UTF-8 is not looked into.
#[test]
fn other_encodings_are_refused_clearly() {
    let plan = analyze(b"SELECT '\xff'", &[], &[], &Context::default(), &shop());
    assert!(
        matches!(&plan.statements[0].target, Target::Refused(why) if **why == Unroutable::NotUtf8)
    );
}

/// `docs/errors.md` is made from the table of codes. `SHARDWAY_BLESS=1` writes it.
#[test]
fn the_page_of_errors_is_the_table_of_codes() {
    let page = shardway::proxy::reply::errors_markdown();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    if std::env::var_os("SHARDWAY_BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs/errors.md");
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap_or_default(),
        page,
        "cargo test with SHARDWAY_BLESS=1 writes it"
    );
}
