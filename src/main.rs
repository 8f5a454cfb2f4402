//! The `shardway` binary: hands its arguments to `cli` and returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    shardway::cli::run()
}
