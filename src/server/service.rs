//! What serves connections: the seam between accepting and sessions.

use crate::{
    admin::Console, config::settings::Settings, net::transport::Transport, plan::cache::Stats,
};
use std::{future::Future, pin::Pin, sync::Arc};

/// One connection being served.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves connections, each to its end.
pub trait Service: Send + Sync + 'static {
    /// Resolves when another client may be accepted. Safe to drop while waiting.
    fn room(self: Arc<Self>) -> Serving {
        Box::pin(std::future::ready(()))
    }
    /// Serves one client from its first byte. Dropping the future ends the client.
    fn serve(self: Arc<Self>, socket: Transport) -> Serving;
    /// Tells a client that there are too many, and lets cancel requests pass.
    fn turn_away(self: Arc<Self>, socket: Transport) -> Serving;
    /// Uses other settings from now on.
    ///
    /// # Errors
    /// What is wrong; the old settings stay.
    fn apply(&self, settings: Arc<Settings>) -> Result<(), String>;
    /// Looks after what ages: called every second.
    fn maintain(&self);
    /// Asks the servers what the configuration does not say.
    fn learn(self: Arc<Self>, settings: Arc<Settings>) -> Serving;
    /// The process ends, and nobody is served any more.
    fn leave(self: Arc<Self>) -> Serving {
        Box::pin(std::future::ready(()))
    }
    /// How each database's cache of plans does, by name.
    fn plan_caches(&self) -> Vec<(String, Stats)>;
    /// Hands over the console that the console database serves; called once, before the first client.
    fn set_console(&self, console: Arc<Console>);
}
