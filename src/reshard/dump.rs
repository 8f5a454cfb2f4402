//! Runs `pg_dump`, which knows how a schema is written; only here.
//!
//! What must stay true: no password stands where other processes see it; nothing of this process's environment says where
//! it connects to.

use super::servers::Server;
use crate::{
    auth::scram::ChannelBinding,
    config::settings::{Host, TlsMode, TlsStart},
};
use std::{path::PathBuf, process::Stdio};
use tokio::{io::AsyncWriteExt as _, process::Command};

/// Programs that a reshard needs beside the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// A path, or a name that is looked for in the search path.
    pub pg_dump: PathBuf,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            pg_dump: PathBuf::from("pg_dump"),
        }
    }
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("{} cannot be run: {source}", program.display())]
    Run {
        program: PathBuf,
        source: std::io::Error,
    },
    #[error("pg_dump said: {0}")]
    Said(String),
}

/// A part of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Types, functions, tables without keys and indexes, views.
    BeforeData,
    /// The rest.
    AfterData,
}

/// Settings of libpq that would change where it connects to, or how.
const ENVIRONMENT: [&str; 12] = [
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGPASSFILE",
    "PGREQUIRESSL",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGTARGETSESSIONATTRS",
    "PGHOSTADDR",
    "PGCLIENTENCODING",
];

/// The program's major version.
///
/// # Errors
/// [`DumpError`].
pub async fn version(tools: &Tools) -> Result<u32, DumpError> {
    let program = || tools.pg_dump.clone();
    let told = Command::new(&tools.pg_dump)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| DumpError::Run {
            program: program(),
            source,
        })?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let mut numbers = told.split_whitespace().filter_map(|word| {
        let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    numbers
        .next()
        .ok_or_else(|| DumpError::Said(told.trim().to_owned()))
}

/// A part of a server's schema as SQL, as of a snapshot that another connection holds; Shardway's own is left out.
///
/// # Errors
/// [`DumpError`].
pub async fn dump(
    tools: &Tools,
    server: &Server,
    snapshot: &str,
    section: Section,
) -> Result<String, DumpError> {
    let section = match section {
        Section::BeforeData => "--section=pre-data",
        Section::AfterData => "--section=post-data",
    };
    let mut command = Command::new(&tools.pg_dump);
    command
        .args([
            "--no-password",
            "--exclude-schema=shardway",
            "--no-tablespaces",
        ])
        .args(["--no-publications", "--no-subscriptions", "--encoding=UTF8"])
        .args(["--lock-wait-timeout=10s", section])
        .arg(format!("--snapshot={snapshot}"))
        .arg(format!("--dbname={}", target(server)))
        .env("PGPASSFILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for name in ENVIRONMENT {
        command.env_remove(name);
    }
    if let Some(password) = &server.credentials.password {
        command.env("PGPASSWORD", &password.0);
    }
    let run = |source| DumpError::Run {
        program: tools.pg_dump.clone(),
        source,
    };
    let mut child = command.spawn().map_err(run)?;
    if let Some(mut stdin) = child.stdin.take() {
        let root_cert = server.address.root_cert.as_deref();
        let given = stdin.write_all(root_cert.map_or(&[][..], Vec::as_slice));
        // Who does not read its certificates says why.
        drop(given.await);
    }
    let output = child.wait_with_output().await.map_err(run)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(DumpError::Said(said.trim().to_owned()));
    }
    Ok(plain(&String::from_utf8_lossy(&output.stdout)))
}

/// Where it connects to. Certificates come on the standard input.
fn target(server: &Server) -> String {
    let address = &server.address;
    let host = match &address.host {
        Host::Tcp(host) => host.clone(),
        Host::Unix(directory) => directory.to_string_lossy().into_owned(),
    };
    let tls = match address.tls {
        TlsMode::Disable => "disable",
        TlsMode::Prefer => "prefer",
        TlsMode::Require => "require",
        TlsMode::VerifyFull => "verify-full",
    };
    let binding = match address.channel_binding {
        ChannelBinding::Disable => "disable",
        ChannelBinding::Prefer => "prefer",
        ChannelBinding::Require => "require",
    };
    let port = address.port.to_string();
    let limit = server.limit.as_secs().max(2).to_string();
    let mut pairs = vec![
        ("host", host.as_str()),
        ("port", &port),
        ("dbname", &address.database),
        ("user", &server.credentials.user),
        ("sslmode", tls),
        ("channel_binding", binding),
        ("connect_timeout", &limit),
        ("application_name", "shardway"),
    ];
    if address.tls == TlsMode::VerifyFull {
        let root = address
            .root_cert
            .as_ref()
            .map_or("system", |_| "/dev/stdin");
        pairs.push(("sslrootcert", root));
    }
    if address.tls_start == TlsStart::Direct {
        pairs.push(("sslnegotiation", "direct"));
    }
    let pair = |(name, value): &(&str, &str)| {
        let value = value.replace('\\', "\\\\").replace('\'', "\\'");
        format!("{name}='{value}'")
    };
    let pairs: Vec<String> = pairs.iter().map(pair).collect();
    pairs.join(" ")
}

/// Without the lines that are for psql alone, the first and the last, with a key that nothing else has; and without time
/// limits of the session that restores it, which a server that is older than the program may not know, and which are off.
fn plain(dump: &str) -> String {
    const OPENING: &str = "\\restrict ";
    let key = dump.lines().find_map(|line| line.strip_prefix(OPENING));
    let only_psql = key.map(|key| [format!("{OPENING}{key}"), format!("\\unrestrict {key}")]);
    let is_for_psql = |line: &str| only_psql.iter().flatten().any(|it| it == line);
    let is_preamble = |line: &str| {
        let beginnings = ["--", "SET ", "SELECT pg_catalog.set_config("];
        line.is_empty() || beginnings.iter().any(|it| line.starts_with(it)) || is_for_psql(line)
    };
    let is_limit = |line: &str| line.starts_with("SET ") && line.ends_with("_timeout = 0;");
    let mut in_preamble = true;
    let mut text = String::with_capacity(dump.len());
    for line in dump.lines() {
        in_preamble &= is_preamble(line);
        if !(is_for_psql(line) || in_preamble && is_limit(line)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn lines_for_psql_are_left_out() {
        let dump = "-- x\n\\restrict k1\nSELECT '\n\\restrict k2\n';\n\\unrestrict k1\n";
        assert_eq!(plain(dump), "-- x\nSELECT '\n\\restrict k2\n';\n");
        assert_eq!(plain("SELECT 1;\n"), "SELECT 1;\n");
    }

    #[test]
    fn limits_that_an_older_server_does_not_know_are_left_out() {
        let limits = "SET lock_timeout = 0;\nSET transaction_timeout = 0;\n";
        let rest = "SET client_encoding = 'UTF8';\nCREATE FUNCTION f() AS $$\nSET transaction_timeout = 0;\n$$;\n";
        assert_eq!(
            plain(&format!("--\n\n{limits}{rest}{limits}")),
            format!("--\n\n{rest}{limits}")
        );
    }
}
