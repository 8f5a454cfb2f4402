//! Ends what a backend still does for a client that is gone.
//!
//! What must stay true: the backend counts as taken until the server has let go of it, or does not within the patience
//! that its caller has. A cancel may come before the statement that it is meant for has begun, and is then without
//! effect: it is sent until the server has ended.

use super::{link::Link, session::CANCEL_PATIENCE};
use crate::{clock::Duration, net::tls::ClientTls};
use std::sync::Arc;
use tokio::time::{sleep, timeout};

/// How long the first cancel has before the second is sent; each has twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Tells the server that nothing more comes, cancels what it runs, and waits until it has closed.
pub(super) async fn stop(link: &mut Link, tls: &Arc<ClientTls>) {
    let target = Arc::clone(&link.lease.target);
    let stream = &mut link.lease.stream;
    let cancels = async {
        let mut pause = FIRST_PAUSE;
        loop {
            let sent = crate::net::backend::cancel(
                &target.address,
                target.pid,
                &target.key,
                CANCEL_PATIENCE,
                tls,
            );
            // A server that cannot be reached is asked again, as one that was asked too early.
            drop(sent.await);
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    let closed = async {
        // Behind what it runs the server finds the end of the connection.
        stream.shutdown().await;
        loop {
            stream.consume(stream.buffered().len());
            if !matches!(stream.fill().await, Ok(count) if count > 0) {
                return;
            }
        }
    };
    let ended = async {
        tokio::select! {
            () = closed => {}
            () = cancels => {}
        }
    };
    drop(timeout(CANCEL_PATIENCE, ended).await);
}
