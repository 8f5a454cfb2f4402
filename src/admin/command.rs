//! What a console statement means, and who may say it. Pure: text in, [`Command`] out.
//!
//! What must stay true: every verb has one row in [`VERBS`], which parsing, authorisation and HELP read.

use crate::config::settings::ConsoleRole;

/// A statement of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing but blanks, comments or a semicolon.
    Empty,
    Show(Show),
    /// Reads the configuration file again.
    Reload,
    /// Ends the process.
    Shutdown(Shutdown),
    /// Ends the session with this number (`id` of SHOW CLIENTS).
    Kill(u32),
    /// A driver's own setting at connect (`SET extra_float_digits = 3`): accepted, without effect here.
    Set,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// As SIGTERM: transactions may end.
    Drain,
    /// At once.
    Immediate,
}

/// What SHOW can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Help,
    Pools,
    Clients,
    Servers,
    Stats,
    StatsTotals,
    StatsAverages,
    Databases,
    Users,
    Config,
    Lists,
    Version,
    State,
    Shards,
    Map,
    Groups,
    Tables,
    Pins,
    Refusals,
    Plans,
    Listeners,
    Peers,
    Transactions,
    Proxies,
    Reshard,
    /// `SHOW server_version` and the like, which drivers ask.
    Parameter(Parameter),
}

/// A parameter of PostgreSQL's that drivers ask for by SHOW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    ServerVersion,
    ClientEncoding,
    StandardConformingStrings,
    TransactionIsolation,
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// The word that begins no command, or the whole text when a command's rest is not understood.
    Unknown(String),
    /// SHOW of something that there is not.
    UnknownShow(String),
    /// KILL without the number of a session.
    NoNumber,
    /// A command of PgBouncer's that is not built yet.
    NotBuilt(&'static str),
}

/// One verb: its words, what it becomes, who may say it, what it does.
#[derive(Clone, Copy, Debug)]
pub struct Verb {
    pub words: &'static str,
    pub command: Command,
    pub needs: ConsoleRole,
    pub help: &'static str,
}

const fn show(words: &'static str, show: Show, help: &'static str) -> Verb {
    Verb {
        words,
        command: Command::Show(show),
        needs: ConsoleRole::Stats,
        help,
    }
}

const fn act(words: &'static str, command: Command, help: &'static str) -> Verb {
    Verb {
        words,
        command,
        needs: ConsoleRole::Admin,
        help,
    }
}

/// Every verb: the authorisation table. `KILL` stands for KILL with any number.
pub const VERBS: &[Verb] = &[
    show("SHOW HELP", Show::Help, "this list"),
    show(
        "SHOW POOLS",
        Show::Pools,
        "per database and user: clients and servers by state, longest wait",
    ),
    show("SHOW CLIENTS", Show::Clients, "every session"),
    show("SHOW SERVERS", Show::Servers, "every backend"),
    show(
        "SHOW STATS",
        Show::Stats,
        "per database: totals and averages",
    ),
    show(
        "SHOW STATS_TOTALS",
        Show::StatsTotals,
        "per database: totals",
    ),
    show(
        "SHOW STATS_AVERAGES",
        Show::StatsAverages,
        "per database: averages of the last period",
    ),
    show("SHOW DATABASES", Show::Databases, "every logical database"),
    show("SHOW USERS", Show::Users, "every user"),
    show("SHOW CONFIG", Show::Config, "settings as used"),
    show("SHOW LISTS", Show::Lists, "how many of everything"),
    show("SHOW VERSION", Show::Version, "the version"),
    show("SHOW STATE", Show::State, "whether new clients are served"),
    show(
        "SHOW SHARDS",
        Show::Shards,
        "per shard and user: where it is, backends, traffic",
    ),
    show(
        "SHOW MAP",
        Show::Map,
        "per group and shard: how many buckets, ranges or values it holds",
    ),
    show("SHOW GROUPS", Show::Groups, "every colocation group"),
    show(
        "SHOW TABLES",
        Show::Tables,
        "every listed table and where it lives",
    ),
    show(
        "SHOW PINS",
        Show::Pins,
        "sessions that keep their backend, and why",
    ),
    show(
        "SHOW PLANS",
        Show::Plans,
        "per database: how the cache of plans does",
    ),
    show(
        "SHOW LISTENERS",
        Show::Listeners,
        "per database and shard: the connection that listens for sessions",
    ),
    show(
        "SHOW PEERS",
        Show::Peers,
        "the proxies behind the same address, to which cancel requests are passed on",
    ),
    show(
        "SHOW TRANSACTIONS",
        Show::Transactions,
        "what transactions over several shards have prepared: who will finish it, what is in the way",
    ),
    show(
        "SHOW PROXIES",
        Show::Proxies,
        "per database: every proxy that serves it, and its last heartbeat",
    ),
    show(
        "SHOW RESHARD",
        Show::Reshard,
        "per database: its last reshard, how far it is, what it waits for, what can be done",
    ),
    show(
        "SHOW REFUSALS",
        Show::Refusals,
        "refused statements by code",
    ),
    show(
        "SHOW SERVER_VERSION",
        Show::Parameter(Parameter::ServerVersion),
        "for drivers",
    ),
    show(
        "SHOW CLIENT_ENCODING",
        Show::Parameter(Parameter::ClientEncoding),
        "for drivers",
    ),
    show(
        "SHOW STANDARD_CONFORMING_STRINGS",
        Show::Parameter(Parameter::StandardConformingStrings),
        "for drivers",
    ),
    show(
        "SHOW TRANSACTION_ISOLATION",
        Show::Parameter(Parameter::TransactionIsolation),
        "for drivers",
    ),
    show(
        "SHOW TRANSACTION ISOLATION LEVEL",
        Show::Parameter(Parameter::TransactionIsolation),
        "for drivers",
    ),
    Verb {
        words: "SET",
        command: Command::Set,
        needs: ConsoleRole::Stats,
        help: "a driver's settings: without effect",
    },
    act(
        "RELOAD",
        Command::Reload,
        "read the configuration file again",
    ),
    act(
        "SHUTDOWN",
        Command::Shutdown(Shutdown::Drain),
        "end: stop accepting, let transactions end",
    ),
    act(
        "SHUTDOWN WAIT_FOR_CLIENTS",
        Command::Shutdown(Shutdown::Drain),
        "the same",
    ),
    act(
        "SHUTDOWN IMMEDIATE",
        Command::Shutdown(Shutdown::Immediate),
        "end at once",
    ),
    act(
        "KILL",
        Command::Kill(0),
        "KILL id: end the session with this id of SHOW CLIENTS",
    ),
];

/// Commands of PgBouncer's that operators know and that are not built yet.
const NOT_BUILT: &[&str] = &[
    "DISABLE",
    "ENABLE",
    "PAUSE",
    "RECONNECT",
    "RESUME",
    "SUSPEND",
    "WAIT_CLOSE",
];

/// Settings that drivers send at connect; SET of anything else is refused, so that nobody believes it worked.
const DRIVER_SETTINGS: &[&str] = &[
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "extra_float_digits",
    "intervalstyle",
    "names",
    "session",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
];

/// Reads one statement, with or without a semicolon, in any case.
///
/// # Errors
/// [`ParseError`]: what was not understood.
pub fn parse(text: &str) -> Result<Command, ParseError> {
    let words = words(text);
    let Some(first) = words.first() else {
        return Ok(Command::Empty);
    };
    let joined = words.join(" ");
    if first == "KILL" {
        let number = words
            .get(1)
            .and_then(|word| word.parse().ok())
            .filter(|_| words.len() == 2);
        return number.map(Command::Kill).ok_or(ParseError::NoNumber);
    }
    if first == "SET" {
        let known = words.get(1).is_some_and(|name| {
            DRIVER_SETTINGS
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known))
        });
        return if known {
            Ok(Command::Set)
        } else {
            Err(ParseError::Unknown(shorten(&joined)))
        };
    }
    if let Some(verb) = VERBS.iter().find(|verb| verb.words == joined) {
        return Ok(verb.command);
    }
    if let Some(known) = NOT_BUILT.iter().find(|known| *known == first) {
        return Err(ParseError::NotBuilt(known));
    }
    match words.get(1) {
        Some(subject) if first == "SHOW" => Err(ParseError::UnknownShow(shorten(subject))),
        _ => Err(ParseError::Unknown(shorten(&joined))),
    }
}

/// Who may run a command.
#[must_use]
pub fn needs(command: Command) -> ConsoleRole {
    let same = |verb: &&Verb| match (verb.command, command) {
        (Command::Kill(_), Command::Kill(_)) => true,
        (of_verb, asked) => of_verb == asked,
    };
    match command {
        Command::Empty => ConsoleRole::Stats,
        Command::Show(_)
        | Command::Reload
        | Command::Shutdown(_)
        | Command::Kill(_)
        | Command::Set => VERBS
            .iter()
            .find(same)
            .map_or(ConsoleRole::Admin, |verb| verb.needs),
    }
}

/// Whether a role may do what needs another.
#[must_use]
pub fn may(role: ConsoleRole, needs: ConsoleRole) -> bool {
    match needs {
        ConsoleRole::Stats => true,
        ConsoleRole::Admin => role == ConsoleRole::Admin,
    }
}

/// The text's words in upper case, `=` and quotes split off, comments and trailing semicolons gone.
fn words(text: &str) -> Vec<String> {
    let mut bare = text.trim();
    loop {
        let rest = if let Some(line) = bare.strip_prefix("--") {
            line.split_once('\n').map_or("", |(_, rest)| rest)
        } else if let Some(block) = bare.strip_prefix("/*") {
            block.split_once("*/").map_or("", |(_, rest)| rest)
        } else {
            break;
        };
        bare = rest.trim_start();
    }
    bare.trim_end_matches(|c: char| c == ';' || c.is_whitespace())
        .split(|c: char| c.is_whitespace() || matches!(c, '=' | '\'' | '"'))
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_uppercase)
        .collect()
}

/// At most 64 characters: a reply repeats no more of what it did not understand.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case_with_or_without_semicolon() {
        for text in [
            "SHOW POOLS",
            "show pools;",
            "  Show\n\tPools ; ",
            "/* a */ -- b\nSHOW POOLS;",
        ] {
            assert_eq!(parse(text), Ok(Command::Show(Show::Pools)), "{text}");
        }
        assert_eq!(parse("kill 42;"), Ok(Command::Kill(42)));
        assert_eq!(parse("SET extra_float_digits = 3"), Ok(Command::Set));
        assert_eq!(parse("SET NAMES 'utf8'"), Ok(Command::Set));
        assert_eq!(parse(" ; "), Ok(Command::Empty));
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        assert_eq!(
            parse("SHOW fish"),
            Err(ParseError::UnknownShow("FISH".into()))
        );
        assert_eq!(
            parse("SELECT 1"),
            Err(ParseError::Unknown("SELECT 1".into()))
        );
        assert_eq!(
            parse("SET pool_size = 9"),
            Err(ParseError::Unknown("SET POOL_SIZE 9".into()))
        );
        assert_eq!(parse("pause app;"), Err(ParseError::NotBuilt("PAUSE")));
        assert_eq!(parse("RESUME"), Err(ParseError::NotBuilt("RESUME")));
        assert_eq!(parse("KILL"), Err(ParseError::NoNumber));
        assert_eq!(parse("KILL all"), Err(ParseError::NoNumber));
        assert_eq!(parse("KILL 1 2"), Err(ParseError::NoNumber));
    }

    #[test]
    fn every_verb_is_parsed_to_its_row_and_only_reading_is_for_stats() {
        for verb in VERBS {
            let text = match verb.command {
                Command::Kill(_) => "KILL 0".to_owned(),
                Command::Set => "SET timezone = 'UTC'".to_owned(),
                Command::Empty | Command::Show(_) | Command::Reload | Command::Shutdown(_) => {
                    verb.words.to_owned()
                }
            };
            assert_eq!(parse(&text), Ok(verb.command), "{text}");
            assert_eq!(needs(verb.command), verb.needs, "{text}");
            let reads = matches!(verb.command, Command::Show(_) | Command::Set);
            assert_eq!(verb.needs == ConsoleRole::Stats, reads, "{text}");
            assert!(may(ConsoleRole::Admin, verb.needs), "{text}");
            assert_eq!(may(ConsoleRole::Stats, verb.needs), reads, "{text}");
        }
    }
}
