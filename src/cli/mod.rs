//! The command line: one file per command.
//!
//! What must stay true: exit codes mean the same everywhere ([`Exit`]); results go to standard output, faults and
//! progress to standard error; colours only on a terminal.

mod check;
mod completions;
mod demo;
mod man;
mod output;
mod reshard;
mod route;
mod serve;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use output::Output;
use std::process::ExitCode;

/// A sharding proxy for PostgreSQL: routes by shard key, never gives a wrong answer.
#[derive(Debug, Parser)]
#[command(
    name = "shardway",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Arguments {
    /// How results are written.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start throw-away PostgreSQL shards with sample data and a proxy, and print what to try.
    Demo(demo::DemoArgs),
    /// Serve clients until a signal ends it.
    Serve(serve::ServeArgs),
    /// Validate a configuration, and with --connect the servers that it names.
    Check(check::CheckArgs),
    /// Tell where a statement would go, and why; needs no server.
    Route(route::RouteArgs),
    /// Move keys between shards while the database serves.
    Reshard(reshard::ReshardArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
    /// Print the manual page (roff).
    Man,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON value.
    Json,
}

/// How a command ended; the exit codes are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    /// The arguments make no sense.
    Usage,
    /// A check said no, and nothing was changed.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0_u8,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
        })
    }
}

/// Runs the command line; the process's exit code.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error).into(),
    };
    dispatch(arguments).into()
}

fn dispatch(arguments: Arguments) -> Exit {
    let output = Output::new(arguments.output);
    match arguments.command {
        Command::Demo(args) => demo::run(&args, &output),
        Command::Serve(args) => serve::run(&args, &output),
        Command::Check(args) => check::run(&args, &output),
        Command::Route(args) => route::run(&args, &output),
        Command::Reshard(args) => reshard::run(&args, &output),
        Command::Completions(args) => completions::run(&args, Arguments::command(), &output),
        Command::Man => man::run(&Arguments::command(), &output),
    }
}

/// `--help` and `--version` are results; everything else that the parser says is a fault in the arguments.
/// What a command runs on that waits for servers.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn usage(error: &clap::Error) -> Exit {
    // A closed pipe: nobody reads what we would say.
    drop(error.print());
    if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_is_a_result_and_nonsense_is_usage() {
        let outcome = |arguments: &[&str]| {
            Arguments::try_parse_from(arguments)
                .err()
                .map(|error| error.use_stderr())
        };
        assert_eq!(outcome(&["shardway", "--version"]), Some(false));
        assert_eq!(outcome(&["shardway", "fly"]), Some(true));
        assert_eq!(outcome(&["shardway", "man", "--output", "json"]), None);
    }
}
