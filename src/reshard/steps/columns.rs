//! Columns that tables have got since a plan was made: whether every shard that takes part has them alike, and the plan with
//! them.
//!
//! What must stay true: a plan gets a column only where every shard has it, of one type, behind those that were planned, and
//! where rows that were there before have the same value on all of them: of these no stream tells.

use super::asking::{About as _, connection};
use crate::reshard::{
    job::{Job, StepError},
    plan::{MovingColumn, MovingTable, Plan, identifier},
    planning,
    servers::Server,
};
use std::collections::BTreeMap;

/// What tables have beside what was planned.
#[derive(Debug)]
pub enum Columns {
    AsPlanned,
    /// All of them have the same: the plan with it, and what it is, as journals have it.
    More {
        plan: Box<Plan>,
        what: Vec<String>,
    },
    /// Not all of them have it, or not yet; the statements that give it to them.
    OnSome {
        what: String,
        remedy: String,
    },
    /// What cannot be planned.
    Unlike {
        what: String,
    },
}

/// Of each column: its type, whether it is never NULL, what rows have that were there before it, and its default.
const ADDED: &str = "\
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
       CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END, pg_get_expr(d.adbin, d.adrelid) \
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";

/// A column that was added.
#[derive(Clone, Debug)]
struct Added {
    type_name: String,
    never_null: bool,
    /// In rows that were there before it; `None`: NULL, or the rows were written anew since.
    before: Option<String>,
    default: Option<String>,
}

/// A table on one shard.
struct There {
    shard: String,
    /// Behind what was planned, in their order.
    more: Vec<MovingColumn>,
    added: BTreeMap<String, Added>,
}

/// Looks at every table of the plan on every shard that takes part and has it.
///
/// # Errors
/// [`StepError`].
pub async fn look(job: &Job) -> Result<Columns, StepError> {
    let servers = taking_part(job);
    let mut plan = (*job.plan).clone();
    let mut told = Vec::new();
    for table in plan.tables.iter_mut().chain(&mut plan.reference) {
        let mut all = Vec::new();
        for server in &servers {
            match there(server, table).await? {
                Ok(Some(found)) => all.push(found),
                Ok(None) => {}
                Err(what) => return Ok(Columns::Unlike { what }),
            }
        }
        match judge(table, &all) {
            Ok(more) => {
                let each = more
                    .iter()
                    .map(|it| format!("+{} {}", it.name, it.type_name));
                let each: Vec<String> = each.collect();
                if !each.is_empty() {
                    told.push(format!("{}: {}", table.plain(), each.join(", ")));
                }
                table.columns.extend(more);
            }
            Err(other) => return Ok(other),
        }
    }
    if told.is_empty() {
        return Ok(Columns::AsPlanned);
    }
    // The same tables, where shards leave.
    for left in &mut plan.left {
        let mut reference = plan.reference.iter();
        if let Some(same) = reference.find(|it| it.sql() == left.sql()) {
            left.columns.clone_from(&same.columns);
        }
    }
    Ok(Columns::More {
        plan: Box::new(plan),
        what: told,
    })
}

/// Those that give rows or get them, each once.
fn taking_part(job: &Job) -> Vec<Server> {
    let mut servers = job.sources();
    let joins = job.plan.joins.iter().filter_map(|it| job.servers.get(it));
    for server in job.destinations().iter().chain(joins) {
        if servers.iter().all(|it| it.name != server.name) {
            servers.push(server.clone());
        }
    }
    servers
}

/// What a table has on a shard; `None`: it is not there; an error in words: it is not as it was planned.
async fn there(
    server: &Server,
    table: &MovingTable,
) -> Result<Result<Option<There>, String>, StepError> {
    let what = format!("looking at {} on shard {}", table.plain(), server.name);
    let client = connection(server).await?;
    let columns = planning::columns(&client, &table.sql())
        .await
        .about(&what)?;
    if columns.is_empty() {
        return Ok(Ok(None));
    }
    let (planned, more): (Vec<MovingColumn>, Vec<MovingColumn>) = columns
        .into_iter()
        .map(|(column, _)| column)
        .partition(|it| table.columns.iter().any(|planned| planned.name == it.name));
    let missing = table.columns.iter().find(|it| !planned.contains(it));
    if let Some(missing) = missing {
        return Ok(Err(format!(
            "{} on shard {} has no column {} of type {}, which was planned",
            table.plain(),
            server.name,
            missing.name,
            missing.type_name
        )));
    }
    let mut added = BTreeMap::new();
    if !more.is_empty() {
        for row in client.query(ADDED, &[&table.sql()]).await.about(&what)? {
            let column = Added {
                type_name: row.get(1),
                never_null: row.get(2),
                before: row.get(3),
                default: row.get(4),
            };
            added.insert(row.get(0), column);
        }
    }
    Ok(Ok(Some(There {
        shard: server.name.clone(),
        more,
        added,
    })))
}

/// The columns that all of them have beside what was planned.
fn judge(table: &MovingTable, all: &[There]) -> Result<Vec<MovingColumn>, Columns> {
    let most = all.iter().max_by_key(|there| there.more.len());
    let Some(most) = most.filter(|most| !most.more.is_empty()) else {
        return Ok(Vec::new());
    };
    let unlike = |what: String| Columns::Unlike {
        what: format!("{}: {what}", table.plain()),
    };
    let (mut lacking, mut statements) = (Vec::new(), Vec::new());
    for there in all {
        for column in &most.more {
            let (name, type_name) = (&column.name, &column.type_name);
            let Some(added) = most.added.get(name) else {
                return Err(unlike(format!("{name} changes just now")));
            };
            match there.added.get(name) {
                None => {
                    lacking.push(format!("{name} {type_name} on {}", there.shard));
                    statements.push(format!(
                        "{} (shard {})",
                        statement(table, name, added),
                        there.shard
                    ));
                }
                Some(other) if other.type_name != *type_name => {
                    return Err(unlike(format!(
                        "{name} is {type_name} on {}, {} on {}",
                        most.shard, other.type_name, there.shard
                    )));
                }
                Some(other) if other.before != added.before => {
                    return Err(unlike(format!(
                        "rows that were there before {name} have {} on {}, {} on {}",
                        value(added),
                        most.shard,
                        value(other),
                        there.shard
                    )));
                }
                Some(other) if other.before.is_none() && other.computes() => {
                    return Err(unlike(format!(
                        "{name} has a default that is computed, {}: what rows have that were there before it is not known",
                        other.default.as_deref().unwrap_or_default()
                    )));
                }
                Some(_) => {}
            }
        }
    }
    if !lacking.is_empty() {
        return Err(Columns::OnSome {
            what: format!("{} has no {}", table.plain(), lacking.join(", no ")),
            remedy: format!("{}; then resume", statements.join("; ")),
        });
    }
    let others = |there: &There| there.more != most.more;
    if let Some(other) = all.iter().find(|there| others(there)) {
        return Err(unlike(format!(
            "columns that were added are not alike on {} and {}",
            most.shard, other.shard
        )));
    }
    Ok(most.more.clone())
}

impl Added {
    /// Whether its default may have been another one for each row.
    fn computes(&self) -> bool {
        self.default.as_ref().is_some_and(|it| it.contains('('))
    }
}

fn value(added: &Added) -> String {
    added
        .before
        .as_ref()
        .map_or_else(|| "NULL".to_owned(), |it| format!("{it:?}"))
}

/// What gives a shard the column as another one has it.
fn statement(table: &MovingTable, name: &str, added: &Added) -> String {
    let default = added.before.as_ref();
    let default = default.map(|value| format!(" DEFAULT '{}'", value.replace('\'', "''")));
    let never_null = if added.never_null { " NOT NULL" } else { "" };
    format!(
        "ALTER TABLE {} ADD COLUMN {} {}{}{never_null}",
        table.sql(),
        identifier(name),
        added.type_name,
        default.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> MovingTable {
        MovingTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            group: Some("g".to_owned()),
            key_column: "k".to_owned(),
            primary_key: vec!["k".to_owned()],
            columns: vec![column("k")],
            root: None,
        }
    }

    fn column(name: &str) -> MovingColumn {
        MovingColumn {
            name: name.to_owned(),
            type_name: "integer".to_owned(),
            binary: true,
        }
    }

    /// A shard with these columns more, each with what earlier rows have and its default.
    fn there(shard: &str, more: &[(&str, Option<&str>, Option<&str>)]) -> There {
        let added = more.iter().map(|(name, before, default)| {
            let added = Added {
                type_name: "integer".to_owned(),
                never_null: before.is_some(),
                before: before.map(str::to_owned),
                default: default.map(str::to_owned),
            };
            ((*name).to_owned(), added)
        });
        There {
            shard: shard.to_owned(),
            more: more.iter().map(|(name, ..)| column(name)).collect(),
            added: added.collect(),
        }
    }

    #[test]
    fn a_column_is_planned_where_all_shards_have_it_alike() {
        let five = ("x", Some("5"), Some("5"));
        let alike = [there("a", &[five]), there("b", &[five])];
        assert_eq!(judge(&table(), &alike).expect("alike"), [column("x")]);
        // Its default may be another by now.
        let dropped = ("x", Some("5"), None);
        let alike = [there("a", &[five]), there("b", &[dropped])];
        assert_eq!(judge(&table(), &alike).expect("alike"), [column("x")]);
        let none = [there("a", &[]), there("b", &[])];
        assert_eq!(judge(&table(), &none).expect("as planned"), []);
    }

    #[test]
    fn one_that_is_not_everywhere_is_told_with_what_mends_it() {
        let some = [there("a", &[("x", Some("5"), None)]), there("b", &[])];
        let Err(Columns::OnSome { what, remedy }) = judge(&table(), &some) else {
            panic!("it is not everywhere");
        };
        assert_eq!(what, "public.t has no x integer on b");
        let statement = r#"ALTER TABLE "public"."t" ADD COLUMN "x" integer DEFAULT '5' NOT NULL (shard b); then resume"#;
        assert_eq!(remedy, statement);
    }

    #[test]
    fn what_may_be_another_value_in_earlier_rows_is_not_planned() {
        let other = [
            there("a", &[("x", Some("5"), None)]),
            there("b", &[("x", Some("7"), None)]),
        ];
        assert!(matches!(
            judge(&table(), &other),
            Err(Columns::Unlike { .. })
        ));
        let computed = ("x", None, Some("random()"));
        let other = [there("a", &[computed]), there("b", &[computed])];
        assert!(matches!(
            judge(&table(), &other),
            Err(Columns::Unlike { .. })
        ));
        let order = [
            there("a", &[("x", None, None), ("y", None, None)]),
            there("b", &[("y", None, None), ("x", None, None)]),
        ];
        assert!(matches!(
            judge(&table(), &order),
            Err(Columns::Unlike { .. })
        ));
    }
}
