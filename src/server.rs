//! The composition root: builds what the process consists of, accepts clients, reloads, drains, ends.
//!
//! ```text
//!   Serving ──SIGTERM, SIGINT, SHUTDOWN──▶ Draining ──all transactions done, or the deadline, or a second signal──▶ Ending
//! ```
//! What must stay true: a fault of one client never ends the process (no descriptor left, a panic in a session, a bad
//! configuration at a reload); only this module spawns tasks that outlive their maker, all of them counted.

mod accept;
mod deadlocks;
mod health;
mod holding;
mod learn;
pub mod life;
mod listening;
pub mod logging;
mod recovering;
mod resharding;
mod service;
mod sessions;
pub mod tasks;

pub use service::{Service, Serving};
pub use sessions::{Sessions, sessions};

use crate::{
    admin::{self, Console, averages::Averages, command::Shutdown},
    clock::{Clock, Duration},
    config::settings::{Listen, Settings},
    metrics::{Metrics, sessions::Wanted},
    net::listen::Listener,
};
use arc_swap::ArcSwap;
use life::{Life, Phase};
use std::{io, net::SocketAddr, sync::Arc};
use tasks::Tasks;
use tokio::{net::TcpListener, runtime, signal::unix::SignalKind};

/// Reads the configuration again; the fault as the configuration words it.
pub type Reload = Arc<dyn Fn() -> Result<Settings, String> + Send + Sync>;

/// How long sessions that were told to end now may take before the process leaves them.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the start may wait for servers to say what tables they have.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How often pools are looked after.
const MAINTENANCE: Duration = Duration::from_secs(1);

/// Why the process does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {}: {error}", listening::describe(.listen))]
    Bind { listen: Listen, error: io::Error },
    #[error("cannot serve HTTP on {address}: {error}")]
    Http {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    /// Certificate, key, or what else sessions are built from.
    #[error("{0}")]
    Service(String),
    #[error("logging: {0}")]
    Logging(String),
}

/// What everything else is built from.
#[derive(Clone, Debug)]
pub struct Foundation {
    pub settings: Arc<ArcSwap<Settings>>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub runtime: runtime::Handle,
}

/// Where the process listens: known ports, also when zero was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    pub listen: Vec<Listen>,
    pub http: Option<SocketAddr>,
}

/// Serves until it is told to end, on a runtime of its own. `ready` is called once clients can connect.
///
/// # Errors
/// [`ServeError`]: it never began to serve.
pub fn start<S: Service>(
    settings: Settings,
    reload: Reload,
    build: impl FnOnce(&Foundation) -> Result<Arc<S>, ServeError>,
    ready: impl FnOnce(Bound),
) -> Result<(), ServeError> {
    logging::install(&settings.server)?;
    let mut builder = if settings.server.workers > 1 {
        let mut builder = runtime::Builder::new_multi_thread();
        builder.worker_threads(settings.server.workers);
        builder
    } else {
        runtime::Builder::new_current_thread()
    };
    let runtime = builder
        .thread_name("shardway")
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let served = runtime.block_on(run(settings, reload, build, ready));
    // What is still running was told to end and had its time.
    runtime.shutdown_timeout(Duration::ZERO);
    served
}

/// Serves until it is told to end. Needs a runtime with IO and time; `build` makes what serves connections.
///
/// # Errors
/// [`ServeError`]: it never began to serve.
pub async fn run<S: Service>(
    settings: Settings,
    reload: Reload,
    build: impl FnOnce(&Foundation) -> Result<Arc<S>, ServeError>,
    ready: impl FnOnce(Bound),
) -> Result<(), ServeError> {
    let foundation = Foundation {
        settings: Arc::new(ArcSwap::from_pointee(settings)),
        metrics: Metrics::new(),
        clock: Clock,
        runtime: runtime::Handle::current(),
    };
    let service: Arc<dyn Service> = build(&foundation)?;
    let life = Life::new(foundation.clone(), Arc::clone(&service), reload);
    let console = Arc::new(Console {
        metrics: Arc::clone(&foundation.metrics),
        settings: Arc::clone(&foundation.settings),
        averages: Averages::default(),
        control: Arc::clone(&life) as Arc<dyn admin::Control>,
    });
    service.set_console(Arc::clone(&console));

    let listeners = listening::bind(&foundation.settings.load().server)?;
    let http = listening::bind_http(&foundation.settings.load().server).await?;
    let bound = Bound {
        listen: listeners
            .iter()
            .filter_map(|listener| listener.address().ok())
            .collect(),
        http: http
            .as_ref()
            .and_then(|listener| listener.local_addr().ok()),
    };
    let signals = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(tokio::signal::unix::signal);
    let [terminate, interrupt, hangup] = signals;
    let signals = life::Signals {
        terminate: terminate.map_err(ServeError::Signals)?,
        interrupt: interrupt.map_err(ServeError::Signals)?,
        hangup: hangup.map_err(ServeError::Signals)?,
    };

    let (sessions, helpers) = (
        Tasks::new(foundation.runtime.clone()),
        Tasks::new(foundation.runtime.clone()),
    );
    let helper_life = Arc::clone(&life);
    helpers.spawn("signals", async move { helper_life.obey(signals).await });
    helpers.spawn("health", health::watch(Arc::clone(&life)));
    helpers.spawn("learn", learn::watch(Arc::clone(&life)));
    helpers.spawn(
        "maintenance",
        maintain(Arc::clone(&service), Arc::clone(&console), foundation.clock),
    );
    if let Some(listener) = http {
        helpers.spawn("http", serve_http(listener, Arc::clone(&console)));
    }
    // Before the first client: a table that does not fit must not be routed by even once.
    let first_look = Arc::clone(&service).learn(foundation.settings.load_full());
    drop(tokio::time::timeout(FIRST_LOOK, first_look).await);
    for listener in listeners {
        accept(listener, &sessions, &helpers, &life);
    }
    tracing::info!(listen = %listening::describe_all(&bound.listen), http = ?bound.http, "serving");
    ready(bound);
    end(&life, &sessions).await;
    Ok(())
}

fn accept(listener: Listener, sessions: &Arc<Tasks>, helpers: &Arc<Tasks>, life: &Arc<Life>) {
    helpers.spawn(
        "accept",
        accept::clients(listener, Arc::clone(sessions), Arc::clone(life)),
    );
}

/// Waits for the end to be asked for, and for the sessions to reach it.
async fn end(life: &Life, sessions: &Tasks) {
    life.reached(Phase::Draining).await;
    let foundation = life.foundation();
    let deadline = foundation.settings.load().server.shutdown_timeout;
    tracing::info!(clients = sessions.open(), ?deadline, "draining");
    foundation.metrics.sessions.end_all(Wanted::EndWhenIdle);
    tokio::select! {
        () = sessions.done() => {}
        () = life.reached(Phase::Ending) => {}
        () = tokio::time::sleep(deadline) => {
            tracing::warn!(clients = sessions.open(), "transactions are still open at the deadline");
        }
    }
    admin::Control::shutdown(life, Shutdown::Immediate);
    foundation.metrics.sessions.end_all(Wanted::EndNow);
    if tokio::time::timeout(LAST_WORDS, sessions.done())
        .await
        .is_err()
    {
        tracing::warn!(clients = sessions.open(), "left behind");
    }
    let leaving = Arc::clone(life.service()).leave();
    drop(tokio::time::timeout(LAST_WORDS, leaving).await);
    tracing::info!("ended");
}

/// Looks after pools, and samples the averages of SHOW STATS.
async fn maintain(service: Arc<dyn Service>, console: Arc<Console>, clock: Clock) {
    let mut tick = tokio::time::interval(MAINTENANCE);
    console.averages.sample(&console.metrics, clock.now());
    let mut sampled = clock.now();
    loop {
        tick.tick().await;
        service.maintain();
        let now = clock.now();
        if now.saturating_duration_since(sampled) >= admin::averages::PERIOD {
            console.averages.sample(&console.metrics, now);
            sampled = now;
        }
    }
}

async fn serve_http(listener: TcpListener, console: Arc<Console>) {
    if let Err(error) = axum::serve(listener, admin::http::router(console)).await {
        tracing::error!(%error, "HTTP has ended");
    }
}

#[cfg(test)]
mod tests;
