//! `shardway serve`: the proxy, until a signal ends it.

use super::{Exit, output::Output};
use crate::{
    config::load::load,
    server::{self, Reload},
};
use std::{path::PathBuf, sync::Arc};

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SHARDWAY_CONFIG")]
    config: PathBuf,
}

pub(super) fn run(args: &ServeArgs, output: &Output) -> Exit {
    let settings = match load(&args.config) {
        Ok(settings) => settings,
        Err(errors) => return output.config_fault(&errors),
    };
    let path = args.config.clone();
    let reload: Reload = Arc::new(move || load(&path).map_err(|errors| errors.render()));
    // Where it listens is logged: standard output stays empty.
    match server::start(settings, reload, server::sessions, |_bound| {}) {
        Ok(()) => Exit::Done,
        Err(error) => output.fault(&error.to_string(), Exit::Failed),
    }
}
