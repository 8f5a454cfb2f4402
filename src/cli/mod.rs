//! One file per command.

pub mod check;

use std::process::ExitCode;

/// Runs the command line; the process's exit code.
#[must_use]
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
