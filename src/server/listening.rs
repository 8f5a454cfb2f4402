//! Binding what the settings name.

use super::ServeError;
use crate::{
    config::settings::{Listen, Server},
    net::listen::{Listener, PortSharing},
};
use tokio::net::TcpListener;

pub(super) fn bind(server: &Server) -> Result<Vec<Listener>, ServeError> {
    let bind = |listen: &Listen| {
        Listener::bind(listen, PortSharing::Exclusive).map_err(|error| ServeError::Bind {
            listen: listen.clone(),
            error,
        })
    };
    server.listen.iter().map(bind).collect()
}

pub(super) async fn bind_http(server: &Server) -> Result<Option<TcpListener>, ServeError> {
    let Some(address) = server.http else {
        return Ok(None);
    };
    let bound = TcpListener::bind(address).await;
    bound
        .map(Some)
        .map_err(|error| ServeError::Http { address, error })
}

pub(super) fn describe(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

pub(super) fn describe_all(listen: &[Listen]) -> String {
    listen.iter().map(describe).collect::<Vec<_>>().join(" ")
}
