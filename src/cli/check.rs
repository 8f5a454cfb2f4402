//! `shardway check`: is the configuration right, and with `--connect`, do the servers fit it?
//!
//! Exit codes: 0 all is well, 2 the file cannot be read, 3 something is wrong. Nothing is ever changed.

use super::{Exit, output::Output};
use crate::{
    config::{
        load::load,
        settings::{Database, Settings},
    },
    inspect::{Finding, Severity, credentials_for, judge, survey},
};
use serde_json::{Value, json};
use std::{io, path::PathBuf};

/// Validate a configuration, and with --connect the servers that it names
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SHARDWAY_CONFIG")]
    config: PathBuf,
    /// Also ask every shard: version, tables, key columns, roles.
    #[arg(long)]
    connect: bool,
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs, output: &Output) -> Exit {
    let settings = match load(&args.config) {
        Ok(settings) => settings,
        Err(errors) => return output.config_fault(&errors),
    };
    let found = match args.connect.then(|| ask(&settings)).transpose() {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => return output.fault(&error.to_string(), Exit::Failed),
    };
    let worst = found
        .iter()
        .flat_map(|(_, findings)| findings)
        .map(Finding::severity)
        .max();
    let passed = worst != Some(Severity::Error);
    let written = output.result(
        &in_text(args, &settings, &found, passed),
        &in_json(&found, passed),
    );
    if passed { written } else { Exit::Refused }
}

/// What was found, per database.
type Found = Vec<(String, Vec<Finding>)>;

fn ask(settings: &Settings) -> io::Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(async {
        let mut found = Vec::new();
        for (name, database) in &settings.databases {
            found.push((name.clone(), ask_database(settings, database).await));
        }
        found
    }))
}

async fn ask_database(settings: &Settings, database: &Database) -> Vec<Finding> {
    let Some(credentials) = credentials_for(settings, database) else {
        return vec![Finding::NoCredentials];
    };
    let users = settings.users.values();
    let entering =
        users.filter(|user| user.databases.is_empty() || user.databases.contains(&database.name));
    let roles: Vec<String> = entering.map(|user| user.backend.user.clone()).collect();
    let survey = survey(database, credentials, &roles).await;
    judge(&database.snapshot, &survey, &roles)
}

fn in_text(args: &CheckArgs, settings: &Settings, found: &Found, passed: bool) -> String {
    let mut lines = Vec::new();
    for (database, findings) in found {
        for finding in findings {
            let place = finding
                .shard()
                .map(|shard| format!(", shard {shard}"))
                .unwrap_or_default();
            lines.push(format!(
                "{}: database {database}{place}: {finding}",
                severity(finding.severity())
            ));
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
        .flat_map(|(database, findings)| findings.iter().map(move |finding| (database, finding)))
        .map(|(database, finding)| {
            json!({
                "database": database,
                "shard": finding.shard(),
                "severity": severity(finding.severity()),
                "message": finding.to_string(),
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
