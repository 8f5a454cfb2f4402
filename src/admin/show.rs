//! Rows of SHOW: PgBouncer's columns first, under its names, so that its exporters and habits work; ours after.
//!
//! Not here: whether the asker may see it (`command`), the parameters of a session's own SHOW (`proxy`).

mod catalog;
mod distributed;
mod people;
mod reshard;
mod settings;
mod traffic;

use super::{
    Column, Console, Now, Reply,
    command::{Parameter, Show, VERBS},
};
use crate::{
    clock::{Duration, SystemTime},
    config::settings::{Database, Host, PoolMode, TlsMode},
    wire::types::{INT8, TEXT},
};

/// A table under construction: columns once, then rows of as many values.
struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Option<String>>>,
}

/// One value of a row.
enum Cell {
    Text(String),
    Number(u64),
    Null,
}

/// The rows that a SHOW answers.
#[must_use]
pub fn reply(console: &Console, what: Show, now: Now) -> Reply {
    let table = match what {
        Show::Help => help(),
        Show::Pools => traffic::pools(console, now),
        Show::Clients => people::clients(console, now),
        Show::Servers => people::servers(console),
        Show::Pins => people::pins(console),
        Show::Stats => traffic::stats(console),
        Show::StatsTotals => traffic::stats_totals(console),
        Show::StatsAverages => traffic::stats_averages(console),
        Show::Shards => traffic::shards(console),
        Show::Refusals => traffic::refusals(console),
        Show::Plans => traffic::plans(console),
        Show::Listeners => traffic::listeners(console),
        Show::Peers => settings::peers(console),
        Show::Transactions => distributed::transactions(console),
        Show::Proxies => distributed::proxies(console),
        Show::Reshard => reshard::reshard(console, now.monotonic),
        Show::Databases => settings::databases(console),
        Show::Users => settings::users(console),
        Show::Config => settings::config(console),
        Show::Lists => settings::lists(console),
        Show::State => settings::state(console),
        Show::Version => single("version", concat!("Shardway ", env!("CARGO_PKG_VERSION"))),
        Show::Map => catalog::map(console),
        Show::Groups => catalog::groups(console),
        Show::Tables => catalog::tables(console),
        Show::Parameter(parameter) => parameter_row(parameter),
    };
    Reply {
        columns: table.columns,
        rows: table.rows,
        tag: "SHOW".to_owned(),
    }
}

fn help() -> Table {
    let mut table = Table::new(&["command", "needs", "help"], &[]);
    for verb in VERBS {
        let needs = if super::command::may(crate::config::settings::ConsoleRole::Stats, verb.needs)
        {
            "stats"
        } else {
            "admin"
        };
        table.row([verb.words.into(), needs.into(), verb.help.into()]);
    }
    table
}

fn parameter_row(parameter: Parameter) -> Table {
    match parameter {
        Parameter::ServerVersion => single(
            "server_version",
            concat!(env!("CARGO_PKG_VERSION"), "/shardway"),
        ),
        Parameter::ClientEncoding => single("client_encoding", "UTF8"),
        Parameter::StandardConformingStrings => single("standard_conforming_strings", "on"),
        Parameter::TransactionIsolation => single("transaction_isolation", "read committed"),
    }
}

fn single(column: &'static str, value: &str) -> Table {
    let mut table = Table::new(&[column], &[]);
    table.row([value.into()]);
    table
}

impl Table {
    /// Columns of text, except those listed as numbers.
    fn new(names: &[&'static str], numbers: &[&str]) -> Self {
        let column = |name: &&'static str| Column {
            name,
            oid: if numbers.contains(name) { INT8 } else { TEXT },
        };
        Self {
            columns: names.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it must have as many cells as there are columns.
    fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let row: Vec<_> = cells.into_iter().map(Cell::into_value).collect();
        debug_assert_eq!(
            row.len(),
            self.columns.len(),
            "a row has as many values as columns"
        );
        self.rows.push(row);
    }
}

impl Cell {
    fn into_value(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string()),
            Self::Null => None,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Cell {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// PgBouncer's two columns of a duration: whole seconds, and the microseconds beyond.
fn seconds_and_micros(time: Duration) -> [Cell; 2] {
    [time.as_secs().into(), time.subsec_micros().into()]
}

/// As PgBouncer writes a time: `2026-01-31 23:59:59 UTC`.
fn wall(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of the day that is `days` after 1970-01-01; years are counted from March, so that the leap day
/// is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let since_march_0 = days + 719_468;
    let (era, day_of_era) = (since_march_0 / 146_097, since_march_0 % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn mode_word(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    }
}

fn tls_word(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Disable => "disable",
        TlsMode::Prefer => "prefer",
        TlsMode::Require => "require",
        TlsMode::VerifyFull => "verify-full",
    }
}

fn host_word(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(directory) => directory.display().to_string(),
    }
}

/// Every database of the settings, the wildcard last under the name `*`.
fn databases(
    settings: &crate::config::settings::Settings,
) -> impl Iterator<Item = (&str, &Database)> {
    let named = settings
        .databases
        .iter()
        .map(|(name, database)| (name.as_str(), &**database));
    named.chain(settings.wildcard.iter().map(|database| ("*", &**database)))
}

#[cfg(test)]
mod tests;
