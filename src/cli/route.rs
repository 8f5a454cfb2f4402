//! `shardway route`: where a statement would go, and why, from the configuration alone, or by the map that proxies share.
//!
//! What must stay true: nothing is asked of a server unless `--catalog` says so, and nothing is ever changed; whose word is
//! told is said.

use super::{Exit, output::Output};
use crate::{
    catalog::snapshot::{Snapshot, Standing},
    config::{
        load::load,
        settings::{Database, Settings},
    },
    plan::{
        Context, Values,
        cache::{PlanCache, Planned, Scratch},
        explain,
    },
    proxy::reply,
    registry::Registry,
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
    /// By the map that the proxies share, which reshards change: asks the database's home shard for it, as its control role.
    #[arg(long)]
    catalog: bool,
    /// The statement, or several.
    #[arg(value_name = "SQL")]
    sql: String,
}

/// Where one statement goes.
#[derive(Serialize)]
struct Routed {
    statement: String,
    /// By whose map: `file`, or `catalog`.
    map: &'static str,
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
    let database = match choose(&settings, args.database.as_deref()) {
        Ok(database) => database,
        Err(fault) => return output.fault(&fault, Exit::Usage),
    };
    let mut snapshot = (*database.snapshot).clone();
    let home = &database.shards[snapshot.home.index()].name;
    let is_shared = database.control.is_some() && database.shards.len() > 1;
    let map = match (args.catalog, is_shared) {
        (true, true) => {
            if let Err(fault) = take_map(database, &mut snapshot) {
                let fault = format!("the map, on shard {home}, cannot be read: {fault}");
                return output.fault(&fault, Exit::Failed);
            }
            "catalog"
        }
        (true, false) => {
            let why = "the database has one shard or no control role: the file is its map, leave out --catalog";
            return output.fault(why, Exit::Usage);
        }
        (false, true) => {
            output.progress(&format!(
                "this is what the file says; the proxies go by the map on shard {home}, which a reshard may have changed: \
                 --catalog asks for it"
            ));
            "file"
        }
        (false, false) => "file",
    };
    let routed = routes(&snapshot, map, &args.sql, &args.params);
    let refused = routed.iter().any(|routed| routed.refused.is_some());
    let written = output.result(&text(&routed), &routed);
    if written == Exit::Done && refused {
        Exit::Refused
    } else {
        written
    }
}

/// Puts the map that the proxies share in the place of the file's.
fn take_map(database: &Database, snapshot: &mut Snapshot) -> Result<(), String> {
    let runtime = super::runtime().map_err(|error| error.to_string())?;
    let kept = runtime.block_on(async {
        let registry = Registry::new(database)?;
        Some(registry.ask_map().await)
    });
    let Some(kept) = kept.transpose().map_err(|error| error.to_string())? else {
        return Ok(());
    };
    kept.put_on(snapshot);
    if let Some(shard) = kept.lacking.first() {
        let shard = shard.clone();
        snapshot.standing = Standing::Lacking { shard };
    }
    Ok(())
}

fn choose<'a>(settings: &'a Settings, name: Option<&str>) -> Result<&'a Database, String> {
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
            Some(database) => Ok(database),
            None => Err(format!(
                "no database \"{name}\" in the configuration; there is: {}",
                names()
            )),
        },
        (None, 1) => settings
            .databases
            .values()
            .next()
            .map(AsRef::as_ref)
            .ok_or_else(String::new),
        (None, 0) => Err("the configuration has no database".to_owned()),
        (None, _) => Err(format!("say which database with --database: {}", names())),
    }
}

fn routes(snapshot: &Snapshot, map: &'static str, sql: &str, params: &[String]) -> Vec<Routed> {
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
            map,
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
