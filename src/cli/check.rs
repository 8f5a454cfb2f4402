//! `shardway check`: is the configuration right, and with `--connect`, do the servers fit it?
//!
//! Exit codes: 0 all is well, 2 the file cannot be read, 3 something is wrong. Nothing is ever changed.

use super::{Exit, output::Output};
use crate::{
    catalog::{
        shard::{ShardId, ShardSet},
        snapshot::Snapshot,
    },
    config::{
        load::load,
        settings::{Address, Credentials, Database, Host, Settings},
    },
    inspect::{AskError, Finding, Severity, complete, credentials_for, drift, judge, survey},
    registry::{Lack, accept_map, lacks},
};
use serde_json::{Value, json};
use std::{io, path::PathBuf};

/// Validate a configuration, and with --connect the servers that it names
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct CheckArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SHARDWAY_CONFIG")]
    config: PathBuf,
    /// Also ask every shard: version, tables, key columns, roles, and what transactions over several shards need.
    #[arg(long)]
    connect: bool,
    /// Print nothing but the SQL that an administrator has to run, for psql.
    #[arg(long, requires = "connect")]
    print_sql: bool,
    /// Print nothing but the SQL that makes the configuration's map of keys to shards the one that all proxies share, for
    /// psql. Only for when no row has to move: rows are moved by nobody.
    #[arg(long, requires = "connect", conflicts_with = "print_sql")]
    accept_map: bool,
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs, output: &Output) -> Exit {
    let settings = match load(&args.config) {
        Ok(settings) => settings,
        Err(errors) => return output.config_fault(&errors),
    };
    if args.accept_map {
        return accept(&settings, output);
    }
    let found = match args.connect.then(|| ask(&settings)).transpose() {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => return output.fault(&error.to_string(), Exit::Failed),
    };
    let worst = found
        .iter()
        .flat_map(|(_, said)| said)
        .map(|said| said.severity)
        .max();
    let passed = worst != Some(Severity::Error);
    let written = if args.print_sql {
        let sql = as_sql(&settings, &found);
        output.result(&sql, &json!({ "sql": sql }))
    } else {
        output.result(
            &in_text(args, &settings, &found, passed),
            &in_json(&found, passed),
        )
    };
    if passed { written } else { Exit::Refused }
}

/// Prints what makes the configuration's maps those of all proxies.
fn accept(settings: &Settings, output: &Output) -> Exit {
    let runtime = match super::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return output.fault(&error.to_string(), Exit::Failed),
    };
    let mut sql = String::new();
    for (name, database) in &settings.databases {
        let home = &database.shards[database.snapshot.home.index()];
        match runtime.block_on(accept_map(database)) {
            Ok(None) => {}
            Ok(Some(accepting)) => {
                let at = connect(&home.primary);
                sql.push_str(&format!(
                    "-- database {name}, shard {}\n{at}\n{accepting}\n",
                    home.name
                ));
            }
            Err(problem) => {
                let fault = format!("database {name}, shard {}: {problem}", home.name);
                return output.fault(&fault, Exit::Failed);
            }
        }
    }
    output.result(&sql, &json!({ "sql": sql }))
}

/// What was found, per database.
type Found = Vec<(String, Vec<Said>)>;

/// One thing that was found.
struct Said {
    shard: Option<String>,
    severity: Severity,
    message: String,
    /// What an administrator can do about it, on that shard.
    sql: Option<String>,
    /// Whether that is to be done in any case.
    remedy: Remedy,
}

/// Whether a statement that mends something can be run unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// Shardway needs it.
    Needed,
    /// It takes other shards for right.
    Offered,
}

impl From<Finding> for Said {
    fn from(finding: Finding) -> Self {
        Self {
            shard: finding.shard().map(str::to_owned),
            severity: finding.severity(),
            message: finding.to_string(),
            sql: finding.sql().map(str::to_owned),
            remedy: Remedy::Offered,
        }
    }
}

impl From<Lack> for Said {
    fn from(lack: Lack) -> Self {
        Self {
            severity: lack.severity(),
            message: lack.to_string(),
            sql: lack.sql(),
            remedy: Remedy::Needed,
            shard: lack.shard,
        }
    }
}

fn ask(settings: &Settings) -> io::Result<Found> {
    let runtime = super::runtime()?;
    Ok(runtime.block_on(async {
        let mut found = Vec::new();
        for (name, database) in &settings.databases {
            found.push((name.clone(), ask_database(settings, database).await));
        }
        found
    }))
}

async fn ask_database(settings: &Settings, database: &Database) -> Vec<Said> {
    let Some(credentials) = credentials_for(settings, database) else {
        return vec![Finding::NoCredentials.into()];
    };
    let users = settings.users.values();
    let entering =
        users.filter(|user| user.databases.is_empty() || user.databases.contains(&database.name));
    let roles: Vec<String> = entering.map(|user| user.backend.user.clone()).collect();
    let survey = survey(database, &database.snapshot.members, credentials, &roles).await;
    let joining = ask_joining(database, credentials).await;
    let findings = judge(&database.snapshot, &survey, &roles);
    let mut known = Snapshot::clone(&database.snapshot);
    complete(&mut known, &survey);
    let drifted = drift(database, credentials, &known).await;
    let lacks = lacks(database, &roles).await;
    let findings = findings.into_iter().chain(drifted).map(Said::from);
    let findings = findings.chain(lacks.into_iter().map(Said::from));
    findings.chain(joining).collect()
}

/// Shards that are declared and that no reshard has let join yet: nothing is asked of them but that they answer.
async fn ask_joining(database: &Database, credentials: &Credentials) -> Vec<Said> {
    let mut apart = ShardSet::new();
    let declared = (0..).map(ShardId).zip(&database.shards);
    for (at, _) in declared {
        if !database.snapshot.members.contains(at) {
            apart.insert(at);
        }
    }
    let asked = survey(database, &apart, credentials, &[]).await;
    let shards = database.shards.iter().zip(&asked.shards);
    let said = shards.filter_map(|(shard, answer)| {
        let (severity, message) = match answer {
            Err(AskError::Apart) => return None,
            Err(error) => (
                Severity::Warning,
                format!("it serves nothing yet, and cannot be asked: {error}"),
            ),
            Ok(_) => (
                Severity::Note,
                "it serves nothing yet: shardway reshard lets it join".to_owned(),
            ),
        };
        Some(Said {
            shard: Some(shard.name.clone()),
            severity,
            message,
            sql: None,
            remedy: Remedy::Offered,
        })
    });
    said.collect()
}

/// A script for psql, which goes from server to server as the role that runs it.
fn as_sql(settings: &Settings, found: &Found) -> String {
    let mut lines = Vec::new();
    for (name, said) in found {
        let Some(database) = settings.databases.get(name) else {
            continue;
        };
        for shard in &database.shards {
            let here = said
                .iter()
                .filter(|it| it.shard.as_ref() == Some(&shard.name))
                .filter(|it| it.remedy == Remedy::Needed);
            let sql: Vec<_> = here.filter_map(|it| it.sql.clone()).collect();
            if !sql.is_empty() {
                lines.push(format!("-- database {name}, shard {}", shard.name));
                lines.push(connect(&shard.primary));
                lines.extend(sql);
            }
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn connect(address: &Address) -> String {
    let host = match &address.host {
        Host::Tcp(host) => host.clone(),
        Host::Unix(directory) => directory.display().to_string(),
    };
    let value = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
    let target = format!(
        "host={} port={} dbname={}",
        value(&host),
        address.port,
        value(&address.database)
    );
    let quoted = target.replace('"', "\"\"");
    format!("\\connect -reuse-previous=on \"{quoted}\"")
}

fn in_text(args: &CheckArgs, settings: &Settings, found: &Found, passed: bool) -> String {
    let mut lines = Vec::new();
    for (database, said) in found {
        for said in said {
            let place = said
                .shard
                .as_ref()
                .map(|shard| format!(", shard {shard}"))
                .unwrap_or_default();
            lines.push(format!(
                "{}: database {database}{place}: {}",
                severity(said.severity),
                said.message
            ));
            lines.extend(
                said.sql
                    .as_ref()
                    .map(|sql| format!("    an administrator can run there: {sql}")),
            );
        }
    }
    let (databases, users) = (
        settings.databases.len() + usize::from(settings.wildcard.is_some()),
        settings.users.len(),
    );
    let file = args.config.display();
    lines.push(if passed {
        format!("{file}: valid; databases: {databases}, users: {users}")
    } else {
        format!("{file}: valid, but the servers do not fit it")
    });
    lines.join("\n") + "\n"
}

fn in_json(found: &Found, passed: bool) -> Value {
    let findings: Vec<_> = found
        .iter()
        .flat_map(|(database, said)| said.iter().map(move |said| (database, said)))
        .map(|(database, said)| {
            json!({
                "database": database,
                "shard": said.shard,
                "severity": severity(said.severity),
                "message": said.message,
                "sql": said.sql,
            })
        })
        .collect();
    json!({ "ok": passed, "errors": [], "findings": findings })
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}
