//! What a plan does, as rows of name and value: for `EXPLAIN (ROUTE)` and `shardway route`.

use super::{
    Route, StatementPlan, Target, Values,
    change::{Changes, Reach},
    defaults::Computes,
    route::{Condition, Edge, Pin, Pins, Role, Why},
    spread::{Shares, What},
    unroutable::Unroutable,
    value::{Sign, Value},
};
use crate::{
    catalog::{
        shard::{ShardId, ShardSet},
        snapshot::{Placement, Snapshot},
    },
    sql::statement::{Access, Effect},
    wire::types::Format,
};

/// What is told of one execution of a statement.
#[derive(Debug, PartialEq, Eq)]
pub struct Description {
    /// Name and value, in the order to be shown.
    pub rows: Vec<(&'static str, String)>,
    /// Why it would not run; worded by `proxy/reply.rs`.
    pub refused: Option<Box<Unroutable>>,
}

/// Tells where this execution would run, and why.
#[must_use]
pub fn describe(plan: &StatementPlan, snapshot: &Snapshot, values: &Values<'_>) -> Description {
    let plan = match &plan.target {
        Target::Explain(inner) => inner,
        Target::Fixed(_) | Target::ByKey(_) | Target::Judge | Target::Refused(_) => plan,
    };
    if let Some(undecided) = undecided(plan, snapshot, values) {
        return undecided;
    }
    if let Some(computes) = &plan.computes {
        return computed(computes);
    }
    if plan.sourced.is_some() {
        return of_computed_rows();
    }
    let mut rows = Vec::new();
    let routed = plan.route(snapshot, values);
    if let Err(why) = &routed
        && let Some(description) = over_several(plan, why, snapshot, values)
    {
        return description;
    }
    if let Some(Ok(shares)) = plan.shares(snapshot, values) {
        return spread(&shares, plan, snapshot, values);
    }
    match &routed {
        Ok(route) => {
            rows.push(("route", kind(route).to_owned()));
            rows.push(("shards", shards(route, snapshot).join(", ")));
        }
        Err(why) => rows.push(("route", format!("refused ({})", why.code()))),
    }
    rows.push(("reason", reason(&plan.target, snapshot)));
    if let Target::ByKey(pins) = &plan.target {
        rows.extend(
            keys(pins, snapshot, values)
                .into_iter()
                .map(|key| ("key", key)),
        );
    }
    rows.push((
        "access",
        if plan.access == Access::Write {
            "write"
        } else {
            "read"
        }
        .to_owned(),
    ));
    if plan.effect != Effect::None {
        rows.push(("effect", format!("{:?}", plan.effect)));
    }
    Description {
        rows,
        refused: routed.err(),
    }
}

/// What is told of an INSERT that leaves values to be computed.
fn computed(computes: &Computes) -> Description {
    let columns = match computes.ours() {
        [] => "values of some rows".to_owned(),
        columns => columns.join(", "),
    };
    let reason = "defaults give these values before the rows have their shards".to_owned();
    Description {
        rows: vec![
            ("route", "by what is computed".to_owned()),
            ("computed", columns),
            ("reason", reason),
            ("access", "write".to_owned()),
        ],
        refused: None,
    }
}

/// What is told of an INSERT … SELECT whose query is computed first.
fn of_computed_rows() -> Description {
    let reason = "one shard computes the rows, and each goes to the shard of its key".to_owned();
    Description {
        rows: vec![
            ("route", "by what is computed".to_owned()),
            ("computed", "all rows".to_owned()),
            ("reason", reason),
            ("access", "write".to_owned()),
        ],
        refused: None,
    }
}

/// What is told of a read whose answer is that of several shards, each its part.
fn scattered(
    plan: &StatementPlan,
    why: &Unroutable,
    snapshot: &Snapshot,
    values: &Values<'_>,
) -> Option<Description> {
    let text = std::str::from_utf8(values.text).ok()?;
    let combine = plan.combine.as_ref()?;
    let set = combine.shards(why, snapshot)?;
    let parts = combine.parts(text)?;
    Some(Description {
        rows: vec![
            ("route", "scatter".to_owned()),
            ("shards", shards(&Route::Some(set), snapshot).join(", ")),
            (
                "reason",
                "every shard gives its part of the answer".to_owned(),
            ),
            ("each shard", parts.question()?),
            ("merge", parts.steps()),
            ("access", "read".to_owned()),
        ],
        refused: None,
    })
}

/// What no shard alone can answer, when several can.
fn over_several(
    plan: &StatementPlan,
    why: &Unroutable,
    snapshot: &Snapshot,
    values: &Values<'_>,
) -> Option<Description> {
    if let Some(changes) = &plan.changes {
        return Some(changed(changes, snapshot));
    }
    if let Some(description) = scattered(plan, why, snapshot, values) {
        return Some(description);
    }
    let question = gathered(plan, snapshot, why, values)?;
    let reason = "needs rows of several shards: one of them computes it over the rows of all";
    Some(Description {
        rows: vec![
            ("route", "gathered".to_owned()),
            ("shards", all(snapshot)),
            ("reason", reason.to_owned()),
            ("each shard", question),
            ("access", "read".to_owned()),
        ],
        refused: None,
    })
}

/// Every shard that serves.
fn all(snapshot: &Snapshot) -> String {
    shards(&Route::All, snapshot).join(", ")
}

/// A schema change: the shards that run it, as far as that is known without asking servers.
fn changed(changes: &Changes, snapshot: &Snapshot) -> Description {
    let names = |set: &ShardSet| -> String {
        let names: Vec<String> = shards(&Route::Some(set.clone()), snapshot);
        names.join(", ")
    };
    let mut rows = Vec::new();
    let (shards, reason) = match &changes.reach {
        Reach::Shards(set) => (names(set), "a schema change of these shards".to_owned()),
        Reach::View { .. } => (all(snapshot), "a schema change of these shards".to_owned()),
        Reach::Locks(_) => (
            all(snapshot),
            "each locks those of the tables that it has".to_owned(),
        ),
        Reach::Servers => (
            all(snapshot),
            "a change of every server, once on each".to_owned(),
        ),
        Reach::Holders(relations) => (
            all(snapshot),
            format!("those of them that have {}", relations.join(" or ")),
        ),
        Reach::New(new) => {
            let schema = new.schema.clone().unwrap_or_else(|| "public".to_owned());
            match new.place(&schema, snapshot) {
                Ok((placement, _)) => match placement {
                    Placement::Single(shard) => (
                        names(&ShardSet::one(shard)),
                        "a new table of one shard".to_owned(),
                    ),
                    Placement::Reference => (all(snapshot), "a new reference table".to_owned()),
                    Placement::Sharded { group, key_column } => (
                        all(snapshot),
                        format!(
                            "a new table of group {} by {key_column}",
                            snapshot.group(group).name
                        ),
                    ),
                },
                Err(why) => {
                    rows.push(("route", format!("refused ({})", why.code())));
                    rows.push(("reason", "a new table".to_owned()));
                    return Description {
                        rows,
                        refused: Some(Box::new(why)),
                    };
                }
            }
        }
    };
    rows.push(("route", "change".to_owned()));
    rows.push(("shards", shards));
    rows.push(("reason", reason));
    rows.push(("access", "write".to_owned()));
    Description {
        rows,
        refused: None,
    }
}

/// What each shard is asked where no shard alone can answer.
fn gathered(
    plan: &StatementPlan,
    snapshot: &Snapshot,
    why: &Unroutable,
    values: &Values<'_>,
) -> Option<String> {
    let several = matches!(
        why,
        Unroutable::Unpinned { .. } | Unroutable::SeveralShards { .. }
    );
    let gather = plan.gather.as_ref().filter(|_| several)?;
    let text = values.text.get(plan.start as usize..plan.end as usize)?;
    let table = snapshot.table(&gather.schema, &gather.table)?;
    let text = std::str::from_utf8(text).ok()?;
    let own = gather.texts(behind_explain(text), table);
    Some(own.or_else(|| gather.texts(text, table))?.outlook())
}

/// The query without EXPLAIN and its options.
fn behind_explain(text: &str) -> &str {
    let tokens = crate::sql::clauses::tokens(text).unwrap_or_default();
    let begins = tokens
        .iter()
        .find(|token| token.is("select") || token.is("with"));
    begins.map_or(text, |token| &text[token.start..])
}

/// A statement that is routed by parameters of which one has no value.
fn undecided(
    plan: &StatementPlan,
    snapshot: &Snapshot,
    values: &Values<'_>,
) -> Option<Description> {
    let Target::ByKey(pins) = &plan.target else {
        return None;
    };
    let missing = |pin: &Pin| not_given(&pin.condition, values);
    let index = pins.pins.iter().find_map(missing)?;
    let mut rows = vec![
        ("route", "one, by the values of its parameters".to_owned()),
        ("reason", format!("${} is not given", index + 1)),
    ];
    let keys = keys(pins, snapshot, values);
    rows.extend(keys.into_iter().map(|key| ("key", key)));
    Some(Description {
        rows,
        refused: None,
    })
}

/// A write that several shards take part in.
fn spread(
    shares: &Shares,
    plan: &StatementPlan,
    snapshot: &Snapshot,
    values: &Values<'_>,
) -> Description {
    let name = |shard: ShardId| snapshot.shards.get(shard.index()).cloned();
    let shards = shares
        .shards
        .iter()
        .filter_map(|(shard, rows)| match rows.len() {
            0 => name(*shard),
            1 => name(*shard).map(|name| format!("{name} (1 row)")),
            count => name(*shard).map(|name| format!("{name} ({count} rows)")),
        });
    let reason = match plan.spread.as_ref().map(|spread| &spread.what) {
        Some(What::Rows(_)) => "each row goes to the shard of its key",
        Some(What::Move(_)) => "rows whose new key belongs to another shard are moved there",
        Some(What::Copies(_)) => "every shard changes its copy, and none if they would differ",
        Some(What::Share(_) | What::Whole | What::Change) | None => {
            "every shard changes its own rows"
        }
    };
    let mut rows = vec![
        ("route", "spread".to_owned()),
        ("shards", shards.collect::<Vec<_>>().join(", ")),
        ("reason", reason.to_owned()),
    ];
    if let (Target::ByKey(pins), Some(What::Share(_))) = (
        &plan.target,
        plan.spread.as_ref().map(|spread| &spread.what),
    ) {
        rows.extend(
            keys(pins, snapshot, values)
                .into_iter()
                .map(|key| ("key", key)),
        );
    }
    rows.push(("access", "write".to_owned()));
    Description {
        rows,
        refused: None,
    }
}

fn kind(route: &Route) -> &'static str {
    match route {
        Route::One(_) => "one",
        Route::Some(_) => "some",
        Route::All => "all",
        Route::Any => "any",
        Route::Home => "home",
    }
}

fn shards(route: &Route, snapshot: &Snapshot) -> Vec<String> {
    let name = |shard: ShardId| {
        snapshot
            .shards
            .get(shard.index())
            .cloned()
            .unwrap_or_default()
    };
    match route {
        Route::One(shard) => vec![name(*shard)],
        Route::Some(set) => set.iter().map(name).collect(),
        Route::All | Route::Any => snapshot.all().iter().map(name).collect(),
        Route::Home => vec![name(snapshot.home)],
    }
}

fn reason(target: &Target, snapshot: &Snapshot) -> String {
    match target {
        Target::Fixed(_) if snapshot.is_single() => "the database has one shard".to_owned(),
        Target::Fixed(Route::Any) => "needs no sharded table".to_owned(),
        Target::Fixed(Route::Home) => "uses what exists once per database".to_owned(),
        Target::Fixed(Route::One(_)) => "needs this shard whatever its values are".to_owned(),
        Target::Fixed(Route::Some(_) | Route::All) => "needs several shards".to_owned(),
        Target::ByKey(pins) => match pins.fixed.as_ref().map(|fixed| &fixed.why) {
            None => "its keys".to_owned(),
            Some(Why::Table(table)) => format!("its keys and the single-shard table {table}"),
            Some(Why::Home | Why::LargeObjects) => {
                "its keys and what exists once per database".to_owned()
            }
            Some(Why::Group) => "its keys and a group that lives on one shard".to_owned(),
            Some(Why::Override(named)) => format!("the override {named}"),
        },
        Target::Explain(_) => "EXPLAIN (ROUTE)".to_owned(),
        Target::Judge => "PostgreSQL is asked whether it understands the statement".to_owned(),
        Target::Refused(_) => "refused".to_owned(),
    }
}

fn keys(pins: &Pins, snapshot: &Snapshot, values: &Values<'_>) -> Vec<String> {
    pins.pins
        .iter()
        .map(|pin| describe_pin(pin, snapshot, values))
        .collect()
}

fn describe_pin(pin: &Pin, snapshot: &Snapshot, values: &Values<'_>) -> String {
    let group = &snapshot.group(pin.group).name;
    let does = match pin.role {
        Role::Match => "",
        Role::Insert => "insert ",
        Role::Assign { .. } => "set ",
    };
    let column = format!("{}.{}", pin.table, pin.key);
    format!(
        "{does}{} (group {group})",
        describe_condition(&column, &pin.condition, values)
    )
}

fn describe_condition(column: &str, condition: &Condition, values: &Values<'_>) -> String {
    let join = |parts: &[Condition], word: &str| {
        let parts: Vec<String> = parts
            .iter()
            .map(|part| describe_condition(column, part, values))
            .collect();
        parts.join(word)
    };
    match condition {
        Condition::Nothing => format!("{column} = NULL, no row"),
        Condition::Equal(value) => format!("{column} = {}", value_text(value, values)),
        Condition::OneOf(list) => {
            let list: Vec<String> = list.iter().map(|value| value_text(value, values)).collect();
            format!("{column} in ({})", list.join(", "))
        }
        Condition::ElementOf(array) => format!("{column} = any ({})", value_text(array, values)),
        Condition::Between { low, high } => {
            let edge = |edge: &Option<Edge>, strict: &str, inclusive: &str| {
                edge.as_ref().map(|edge| {
                    let op = if edge.inclusive { inclusive } else { strict };
                    format!("{column} {op} {}", value_text(&edge.value, values))
                })
            };
            let parts: Vec<String> = [edge(low, ">", ">="), edge(high, "<", "<=")]
                .into_iter()
                .flatten()
                .collect();
            parts.join(" and ")
        }
        Condition::Either(parts) => join(parts, " or "),
        Condition::Both(parts) => join(parts, " and "),
    }
}

/// A parameter of a condition that has no value, not even NULL.
fn not_given(condition: &Condition, values: &Values<'_>) -> Option<u16> {
    let absent = |value: &Value| match value {
        Value::Parameter { index, .. } => {
            let given = values
                .bind
                .and_then(|bind| bind.parameter(usize::from(*index)));
            given.is_none().then_some(*index)
        }
        Value::Null | Value::Slot { .. } => None,
    };
    match condition {
        Condition::Nothing => None,
        Condition::Equal(value) | Condition::ElementOf(value) => absent(value),
        Condition::OneOf(list) => list.iter().find_map(absent),
        Condition::Between { low, high } => [low, high]
            .into_iter()
            .flatten()
            .find_map(|edge| absent(&edge.value)),
        Condition::Either(parts) | Condition::Both(parts) => {
            parts.iter().find_map(|part| not_given(part, values))
        }
    }
}

fn value_text(value: &Value, values: &Values<'_>) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Slot { slot, sign, .. } => {
            let text = values.slots.get(*slot as usize).and_then(|slot| {
                let text = values.text.get(slot.start as usize..slot.end as usize)?;
                Some(String::from_utf8_lossy(text).into_owned())
            });
            let sign = if *sign == Sign::Minus { "-" } else { "" };
            format!("{sign}{}", text.unwrap_or_default())
        }
        Value::Parameter { index, .. } => {
            let number = index + 1;
            match values
                .bind
                .and_then(|bind| bind.parameter(usize::from(*index)))
            {
                None => format!("${number}"),
                Some((_, None)) => format!("${number} (NULL)"),
                Some((Format::Text, Some(value))) => {
                    format!("${number} ({})", String::from_utf8_lossy(value))
                }
                Some((Format::Binary, Some(value))) => format!("${number} ({} bytes)", value.len()),
            }
        }
    }
}
