//! Work that keeps a processor busy, done beside the threads that serve everybody: passwords are hashed thousands of times,
//! and who stores a verifier says how often.

use std::{io, sync::Arc};
use tokio::{sync::Semaphore, task::spawn_blocking};

/// How many passwords of clients are checked at once. Others wait: the processors have more to do.
const AT_ONCE: usize = 2;

/// Places for work of that kind.
#[derive(Debug)]
pub(super) struct Effort(Arc<Semaphore>);

impl Default for Effort {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Effort {
    /// Does the work once there is a place, which it keeps to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// When the process ends before it.
    pub(super) async fn spend<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let place = Arc::clone(&self.0).acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        aside(move || {
            let done = work();
            drop(place);
            done
        })
        .await
    }
}

/// Does the work beside the runtime's threads.
///
/// # Errors
/// When the process ends before it.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)
}
