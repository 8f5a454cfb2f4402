//! `shardway route`: where a statement would go, and why, from the configuration alone.

use super::{Exit, output::Output};
use crate::{
    catalog::snapshot::Snapshot,
    config::{load::load, settings::Settings},
    plan::{
        Context, Values,
        cache::{PlanCache, Planned, Scratch},
        explain,
    },
    proxy::reply,
    wire::{
        frame::HEADER,
        frontend::{Bind, put_bind},
    },
};
use serde::Serialize;
use std::{fmt::Write as _, path::PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct RouteArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SHARDWAY_CONFIG")]
    config: PathBuf,
    /// The logical database; needed when the configuration has several.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// The value of a parameter; once for each, $1 first.
    #[arg(long = "param", value_name = "V", allow_hyphen_values = true)]
    params: Vec<String>,
    /// The statement, or several.
    #[arg(value_name = "SQL")]
    sql: String,
}

/// Where one statement goes.
#[derive(Serialize)]
struct Routed {
    statement: String,
    /// What `EXPLAIN (ROUTE)` says, in its order.
    explanation: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refused>,
}

#[derive(Serialize)]
struct Refused {
    sqlstate: &'static str,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

pub(super) fn run(args: &RouteArgs, output: &Output) -> Exit {
    let settings = match load(&args.config) {
        Ok(settings) => settings,
        Err(errors) => return output.config_fault(&errors),
    };
    let snapshot = match choose(&settings, args.database.as_deref()) {
        Ok(snapshot) => snapshot,
        Err(fault) => return output.fault(&fault, Exit::Usage),
    };
    let routed = routes(snapshot, &args.sql, &args.params);
    let refused = routed.iter().any(|routed| routed.refused.is_some());
    let written = output.result(&text(&routed), &routed);
    if written == Exit::Done && refused {
        Exit::Refused
    } else {
        written
    }
}

fn choose<'a>(settings: &'a Settings, name: Option<&str>) -> Result<&'a Snapshot, String> {
    let names = || {
        settings
            .databases
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (name, settings.databases.len()) {
        (Some(name), _) => match settings.databases.get(name) {
            Some(database) => Ok(&database.snapshot),
            None => Err(format!(
                "no database \"{name}\" in the configuration; there is: {}",
                names()
            )),
        },
        (None, 1) => settings
            .databases
            .values()
            .next()
            .map(|database| &*database.snapshot)
            .ok_or_else(String::new),
        (None, 0) => Err("the configuration has no database".to_owned()),
        (None, _) => Err(format!("say which database with --database: {}", names())),
    }
}

fn routes(snapshot: &Snapshot, sql: &str, params: &[String]) -> Vec<Routed> {
    let context = Context::default();
    let Planned { plan, slots } = PlanCache::new(1 << 20, 0).plan(
        sql.as_bytes(),
        &[],
        &context,
        snapshot,
        &mut Scratch::default(),
    );
    let frame = bind_frame(params);
    let bind = Bind::decode(&frame[HEADER..]).ok();
    let values = Values {
        text: sql.as_bytes(),
        slots: &slots,
        types: &[],
        bind: bind.as_ref(),
    };
    let routed = |statement: &crate::plan::StatementPlan| {
        let description = explain::describe(statement, snapshot, &values);
        Routed {
            statement: sql
                .get(statement.start as usize..statement.end as usize)
                .unwrap_or(sql)
                .trim()
                .to_owned(),
            explanation: description
                .rows
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            refused: description.refused.map(|problem| {
                let notice = reply::unroutable(&problem);
                Refused {
                    sqlstate: notice.sqlstate,
                    message: notice.message,
                    detail: notice.detail,
                    hint: notice.hint,
                }
            }),
        }
    };
    plan.statements.iter().map(routed).collect()
}

/// A Bind message with these values as text.
fn bind_frame(params: &[String]) -> Vec<u8> {
    let mut tail = Vec::new();
    tail.extend_from_slice(&0_u16.to_be_bytes());
    tail.extend_from_slice(
        &u16::try_from(params.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes(),
    );
    for value in params {
        tail.extend_from_slice(&i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
        tail.extend_from_slice(value.as_bytes());
    }
    tail.extend_from_slice(&0_u16.to_be_bytes());
    let mut frame = Vec::new();
    put_bind(&mut frame, b"", b"", &tail);
    frame
}

fn text(routed: &[Routed]) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "{name}: {value}");
    };
    for statement in routed {
        line("statement", &statement.statement);
        for (name, value) in &statement.explanation {
            line(&format!("  {name}"), value);
        }
        if let Some(refused) = &statement.refused {
            line(
                "  refused",
                &format!("{} {}", refused.sqlstate, refused.message),
            );
            for (name, value) in [("  detail", &refused.detail), ("  hint", &refused.hint)] {
                if let Some(value) = value {
                    line(name, value);
                }
            }
        }
    }
    text
}
