//! What operators are shown of a run: how far it is, and what the application met meanwhile. Nothing is decided by it.

use super::{Run, WATCHED};
use crate::{
    clock::{Duration, Instant},
    inspect::AskError,
    metrics::{reshards::Leader, times},
    registry::errand,
    replication::stream::Lag,
    reshard::{
        effects::milliseconds,
        record::{self, Stored},
        told,
    },
};
use serde_json::Value;
use std::sync::PoisonError;

/// What the application met since the process runs the reshard.
pub(super) struct Application {
    pub(super) since: Instant,
    pub(super) times: Vec<u64>,
    /// When it began.
    pub(super) errors: u64,
}

impl Run<'_> {
    /// Writes down what is shown; nothing is decided by it.
    pub(super) async fn show_now(&self) {
        self.application();
        self.tell();
        let shown = async {
            let lease = self.runner.home().await?;
            let all = self.progress.all();
            let shown = all
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect();
            let (id, token) = (&self.stored.id, self.stored.token);
            errand(record::show(&lease, id, token, &shown)).await?;
            lease.done();
            Ok::<_, AskError>(())
        };
        drop(shown.await);
    }

    /// Lets this process's own console show where it stands.
    pub(super) fn tell(&self) {
        let known = self.progress.all().into_iter();
        let stored = Stored {
            progress: known.filter(|(_, value)| !value.is_null()).collect(),
            ..self.stored.clone()
        };
        let leader = Leader {
            proxy: self.runner.holder.clone(),
            address: None,
            alive: true,
        };
        self.runner.show(told::sight(&stored, Some(leader)));
    }

    /// How far the streams are behind.
    pub(super) fn lags(&self) {
        for stream in &self.streams {
            let name = |what: &str| format!("stream.{}.{what}", stream.source());
            for (what, figure) in figures(stream.lag()) {
                self.progress.set(name(what), figure);
            }
            if let Some(problem) = stream.problem() {
                self.progress.set(name("problem"), problem);
            } else {
                self.progress.set(name("problem"), Value::Null);
            }
        }
    }

    /// How the application does, at this process, since it was looked at last.
    pub(super) fn application(&self) {
        let metrics = &self.runner.metrics;
        let now = self.runner.clock.now();
        let mut last = self
            .application
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(last.since) < WATCHED {
            return;
        }
        let times = metrics.times(self.runner.registry.database());
        let earlier = last.times.iter().copied().chain(std::iter::repeat(0));
        let each = times.iter().zip(earlier);
        let since: Vec<u64> = each.map(|(now, then)| now.saturating_sub(then)).collect();
        let micros = times::percentile(&since, 99);
        let p99 = micros.map(|micros| milliseconds(Duration::from_micros(micros)));
        self.progress.set("application.p99_ms", p99);
        let errors = self.runner.errors().saturating_sub(last.errors);
        self.progress.set("application.errors", errors);
        last.since = now;
        last.times = times;
    }
}

/// Of a stream that begins, or is tried again, nothing is known: also not what was known before.
fn figures(lag: Lag) -> [(&'static str, Option<u64>); 2] {
    let known = (lag != Lag::default()).then_some(lag);
    [
        ("lag_bytes", known.map(|lag| lag.bytes)),
        ("lag_ms", known.map(|lag| lag.millis)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_shown_as_a_figure() {
        let unknown = [("lag_bytes", None), ("lag_ms", None)];
        assert_eq!(figures(Lag::default()), unknown);
        let near = Lag {
            bytes: 7,
            millis: 0,
        };
        assert_eq!(figures(near), [("lag_bytes", Some(7)), ("lag_ms", Some(0))]);
    }
}
