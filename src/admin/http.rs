//! `/livez`, `/readyz`, `/metrics` and a page that names them.
//!
//! What must stay true: nothing here changes anything, and nothing secret leaves: whoever reaches the port may ask.

use super::{Console, Readiness};
use crate::{
    clock::Clock,
    metrics::exposition::{self, Facts, PlanCacheFacts},
    plan::cache::Stats,
};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use std::{fmt::Write as _, sync::Arc};

/// The routes; `server` serves them.
pub fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route(
            "/",
            get(async || {
                concat!(
                    "Shardway ",
                    env!("CARGO_PKG_VERSION"),
                    ": /livez /readyz /metrics\n"
                )
            }),
        )
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(console)
}

fn facts_of(cache: Stats) -> PlanCacheFacts {
    PlanCacheFacts {
        hits: cache.hits,
        misses: cache.misses,
        evictions: cache.evictions,
        entries: cache.entries,
        bytes: cache.bytes,
    }
}

async fn ready(State(console): State<Arc<Console>>) -> impl IntoResponse {
    match console.control.readiness() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        Readiness::NoPrimary(shards) => {
            let mut text = String::from("no reachable primary:");
            for (database, shard) in shards {
                // Writing to a string cannot fail.
                let _infallible = write!(text, " {database}/{shard}");
            }
            text.push('\n');
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

async fn metrics(State(console): State<Arc<Console>>) -> impl IntoResponse {
    let settings = console.settings.load();
    let facts = Facts {
        now: Clock.now(),
        ready: console.control.readiness() == Readiness::Ready,
        max_clients: settings.server.max_clients,
        pool_sizes: settings
            .databases
            .iter()
            .map(|(name, database)| (name.clone(), database.pool.size))
            .collect(),
        epochs: settings
            .databases
            .iter()
            .map(|(name, database)| (name.clone(), database.snapshot.epoch.0))
            .collect(),
        plan_caches: console
            .control
            .plan_caches()
            .into_iter()
            .map(|(name, cache)| (name, facts_of(cache)))
            .collect(),
    };
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        exposition::render(&console.metrics, &facts),
    )
}
