//! Accepting clients on one listener, until the drain.

use super::{
    life::{Life, Phase},
    tasks::Tasks,
};
use crate::{clock::Duration, net::listen::Listener};
use std::{io, sync::Arc};

/// How long to wait when the process or the system is out of something.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Clients beyond the limit that are being told so; more are closed without a word.
const TURNED_AWAY_AT_ONCE: usize = 64;

/// Accepts clients until the drain begins; then the listener is closed.
pub(super) async fn clients(listener: Listener, sessions: Arc<Tasks>, life: Arc<Life>) {
    let mut out_of_something = false;
    loop {
        // Until there is, clients wait where they cost nothing: in the listener's backlog.
        let next = async {
            Arc::clone(life.service()).room().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = life.reached(Phase::Draining) => return,
        };
        match accepted {
            Ok(socket) => {
                out_of_something = false;
                admit(socket, &sessions, &life);
            }
            Err(error) if is_lasting(&error) => {
                if !out_of_something {
                    tracing::error!(%error, clients = sessions.open(), "cannot accept clients");
                }
                out_of_something = true;
                tokio::time::sleep(BACK_OFF).await;
            }
            // The client left before it was accepted.
            Err(error) => tracing::debug!(%error, "accept"),
        }
    }
}

fn admit(socket: crate::net::transport::Transport, sessions: &Arc<Tasks>, life: &Arc<Life>) {
    let foundation = life.foundation();
    let process = &foundation.metrics.process;
    process.accepted.increment();
    let limit = foundation.settings.load().server.max_clients;
    let service = Arc::clone(life.service());
    // Who is still logging in takes no place of those who are inside.
    let logging_in = usize::try_from(process.logging_in.get()).unwrap_or(usize::MAX);
    let open = sessions.open().saturating_sub(logging_in);
    let serving = if open < limit {
        service.serve(socket)
    } else {
        process.turned_away.increment();
        if open >= limit + TURNED_AWAY_AT_ONCE {
            return;
        }
        service.turn_away(socket)
    };
    let metrics = Arc::clone(&foundation.metrics);
    sessions.spawn_and("session", serving, move || {
        metrics.process.panics.increment();
    });
}

/// Whether the next accept would fail for the same reason.
fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
