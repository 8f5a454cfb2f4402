//! Logs: text or JSON to standard error, one line per event. Events hold no literals of statements.

use super::ServeError;
use crate::config::settings::{LogFormat, Server};
use std::io;
use tracing_subscriber::{EnvFilter, fmt};

/// Sends the process's events to standard error, panics included; at most once per process.
///
/// # Errors
/// When the filter cannot be read, or logging was installed before.
pub fn install(server: &Server) -> Result<(), ServeError> {
    let fault = |error: &dyn std::fmt::Display| ServeError::Logging(error.to_string());
    let filter = EnvFilter::try_new(&server.log_level).map_err(|error| fault(&error))?;
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false);
    match server.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| fault(&error))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic");
    }));
    Ok(())
}
