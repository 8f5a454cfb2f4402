//! One file per command.

use std::process::ExitCode;

/// Runs the command line; the process's exit code.
#[must_use]
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
