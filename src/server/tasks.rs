//! Tasks that are counted, so that the end can wait for them; a panic ends one task and is logged.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};
use tokio::{runtime::Handle, sync::Notify};

/// Counted tasks.
#[derive(Debug)]
pub struct Tasks {
    runtime: Handle,
    open: AtomicUsize,
    none: Notify,
}

/// How a task ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Returned,
    /// With the panic's message.
    Panicked(String),
}

impl Tasks {
    /// None yet.
    #[must_use]
    pub fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            open: AtomicUsize::new(0),
            none: Notify::new(),
        })
    }

    /// Runs a task to its end.
    pub fn spawn(
        self: &Arc<Self>,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_and(name, task, || {});
    }

    /// As [`Tasks::spawn`]; `panicked` is called after a panic.
    pub fn spawn_and(
        self: &Arc<Self>,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        panicked: impl FnOnce() + Send + 'static,
    ) {
        self.open.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(self));
        let running = async move {
            let _counted = counted;
            if let Ended::Panicked(message) = caught(task).await {
                tracing::error!(task = name, %message, "a task panicked");
                panicked();
            }
        };
        // The handle is not needed: the count tells when the task is over.
        drop(self.runtime.spawn(running));
    }

    /// How many run.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Resolves when none runs.
    pub async fn done(&self) {
        loop {
            let none = self.none.notified();
            if self.open() == 0 {
                return;
            }
            none.await;
        }
    }
}

/// Counts a task down by drop.
struct Counted(Arc<Tasks>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

async fn caught(task: impl Future<Output = ()>) -> Ended {
    let mut task = pin!(task);
    // After a panic the task is never polled again, so nobody sees what it left half done.
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Ended::Returned),
            Err(panic) => Poll::Ready(Ended::Panicked(message(&*panic))),
        },
    )
    .await
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_panic_ends_one_task_only() {
        let tasks = Tasks::new(Handle::current());
        let (told, hears) = oneshot::channel();
        let (go, gone) = oneshot::channel::<()>();
        tasks.spawn_and("bad", async { panic!("{}", "of this test") }, move || {
            told.send(()).expect("the test listens");
        });
        tasks.spawn("good", async move { drop(gone.await) });
        hears.await.expect("the panic is reported");
        assert_eq!(
            caught(async { panic!("boo") }).await,
            Ended::Panicked("boo".to_owned())
        );
        go.send(()).expect("the good task still runs");
        tasks.done().await;
        assert_eq!(tasks.open(), 0);
    }
}
