//! The one place that prints: results to standard output, faults to standard error.

use super::{Exit, Format};
use crate::config::error::{ConfigErrors, Problem};
use serde::Serialize;
use std::io::{self, Write as _};

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    format: Format,
}

/// A fault as `--output json` writes it.
#[derive(Serialize)]
struct Fault<'a> {
    error: &'a str,
}

impl Output {
    /// Writes as asked.
    #[must_use]
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Writes a result: the text, or the value as JSON. A reader that has gone is no fault.
    pub(super) fn result(&self, text: &str, value: &impl Serialize) -> Exit {
        match self.format {
            Format::Text => self.raw(text.as_bytes()),
            Format::Json => match serde_json::to_string_pretty(value) {
                Ok(json) => self.raw(format!("{json}\n").as_bytes()),
                Err(error) => self.fault(&error.to_string(), Exit::Failed),
            },
        }
    }

    /// Writes bytes that have one form only.
    pub(super) fn raw(&self, bytes: &[u8]) -> Exit {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Failed,
            Ok(()) | Err(_) => Exit::Done,
        }
    }

    /// Writes what is wrong with a configuration, and is the exit: nothing was changed.
    pub(super) fn config_fault(&self, errors: &ConfigErrors) -> Exit {
        let text = match self.format {
            Format::Text => format!("{}\n", errors.render()),
            Format::Json => format!("{}\n", errors.to_json()),
        };
        // Nobody reads standard error: the exit code still tells.
        drop(io::stderr().lock().write_all(text.as_bytes()));
        // Only the file itself: an unreadable file that it names is a fault of its contents.
        match errors.errors() {
            [only]
                if errors.is_without_text()
                    && matches!(only.problem, Problem::Unreadable { .. }) =>
            {
                Exit::Usage
            }
            _ => Exit::Refused,
        }
    }

    /// Says on standard error what is being done, for a person who waits.
    pub(super) fn progress(&self, text: &str) {
        if self.format == Format::Text {
            // Nobody reads standard error: then nobody waits.
            drop(writeln!(io::stderr().lock(), "shardway: {text}"));
        }
    }

    /// Says a whole line on standard error, as it is, for programs that read lines.
    pub(super) fn line(&self, text: &str) {
        drop(writeln!(io::stderr().lock(), "{text}"));
    }

    /// Whether results are for programs.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes a fault to standard error, and is the exit.
    pub(super) fn fault(&self, text: &str, exit: Exit) -> Exit {
        let line = match self.format {
            Format::Text => format!("shardway: {}\n", text.trim_end()),
            Format::Json => {
                serde_json::to_string(&Fault { error: text }).unwrap_or_default() + "\n"
            }
        };
        // Nobody reads standard error: the exit code still tells.
        drop(io::stderr().lock().write_all(line.as_bytes()));
        exit
    }
}
