//! What waits for one session that listens: filled by listeners, emptied by the session when its client may have it.
//!
//! What must stay true: what a client does not take is bounded in bytes; beyond the bound everything is dropped and the
//! session is told so, because it can no longer keep what it promised.

use crate::clock::Duration;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// One thing to tell a session, in the order in which it happened.
#[derive(Clone, Debug)]
pub enum Mail {
    Notification(Arc<Notification>),
    /// The listener of this shard is lost: from now on notifications may be missed.
    Lost(Arc<str>),
    /// It listens again.
    Restored {
        shard: Arc<str>,
        after: Duration,
    },
    /// The database was replaced by a reload: there are other listeners now.
    Moved,
}

/// A NotificationResponse, shared by all who get it.
#[derive(Debug)]
pub struct Notification {
    pub channel: Arc<str>,
    /// The whole message.
    pub frame: Box<[u8]>,
}

/// What waits for one session.
#[derive(Debug)]
pub struct Mailbox {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Mail>,
    bytes: usize,
    overflown: bool,
    waker: Option<Waker>,
}

/// More waited for the session than it may keep; everything was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflown {
    pub limit: usize,
}

impl Notification {
    /// Whether channel and payload are the same bytes in every encoding of a client.
    #[must_use]
    pub fn is_ascii(&self) -> bool {
        // Behind tag, length and pid.
        self.frame.get(9..).is_some_and(<[u8]>::is_ascii)
    }
}

impl Mailbox {
    /// Keeps at most so many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            inner: Mutex::default(),
        }
    }

    /// Adds mail and wakes the session.
    pub fn put(&self, mail: Mail) {
        let mut inner = self.lock();
        if inner.overflown {
            return;
        }
        inner.bytes += weight(&mail);
        inner.queue.push_back(mail);
        if inner.bytes > self.limit {
            inner.overflown = true;
            inner.queue = VecDeque::new();
        }
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The oldest mail.
    ///
    /// # Errors
    /// [`Overflown`], for ever.
    pub fn take(&self) -> Result<Option<Mail>, Overflown> {
        let mut inner = self.lock();
        if inner.overflown {
            return Err(Overflown { limit: self.limit });
        }
        let mail = inner.queue.pop_front();
        if let Some(mail) = &mail {
            inner.bytes -= weight(mail);
        }
        if inner.queue.is_empty() && inner.queue.capacity() > KEPT {
            inner.queue = VecDeque::new();
        }
        Ok(mail)
    }

    /// What waits in another mailbox of the same session comes first here.
    pub fn take_over(&self, other: &Self) {
        let (mut earlier, bytes, overflown) = {
            let mut other = other.lock();
            let queue = std::mem::take(&mut other.queue);
            (queue, std::mem::take(&mut other.bytes), other.overflown)
        };
        let mut inner = self.lock();
        inner.bytes += bytes;
        earlier.append(&mut inner.queue);
        inner.queue = earlier;
        inner.overflown |= overflown || inner.bytes > self.limit;
    }

    /// Drops the notifications of these channels.
    pub fn drop_notifications(&self, of: impl Fn(&str) -> bool) {
        let mut inner = self.lock();
        let Inner { queue, bytes, .. } = &mut *inner;
        queue.retain(|mail| {
            let early = matches!(mail, Mail::Notification(found) if of(&found.channel));
            if early {
                *bytes -= weight(mail);
            }
            !early
        });
    }

    /// Whether everything that came was kept.
    ///
    /// # Errors
    /// [`Overflown`], for ever.
    pub fn check(&self) -> Result<(), Overflown> {
        if self.lock().overflown {
            return Err(Overflown { limit: self.limit });
        }
        Ok(())
    }

    /// Ready when the session has something to do: there is mail that it `takes`, or too much of it.
    pub fn poll(&self, cx: &Context<'_>, takes: bool) -> Poll<()> {
        let mut inner = self.lock();
        if inner.overflown || (takes && !inner.queue.is_empty()) {
            return Poll::Ready(());
        }
        match &mut inner.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty @ None => *empty = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn weight(mail: &Mail) -> usize {
    let frame = match mail {
        Mail::Notification(notification) => notification.frame.len(),
        Mail::Lost(_) | Mail::Restored { .. } | Mail::Moved => 0,
    };
    frame + size_of::<Mail>()
}

/// Places of a queue that are kept when it is empty.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(bytes: usize) -> Mail {
        Mail::Notification(Arc::new(Notification {
            channel: Arc::from("a"),
            frame: vec![0; bytes].into(),
        }))
    }

    #[test]
    fn mail_beyond_the_limit_is_dropped_and_the_session_told() {
        let mailbox = Mailbox::new(1000);
        mailbox.put(notification(400));
        assert!(matches!(mailbox.take(), Ok(Some(Mail::Notification(_)))));
        mailbox.put(notification(400));
        mailbox.put(Mail::Moved);
        mailbox.put(notification(600));
        assert_eq!(mailbox.take().unwrap_err(), Overflown { limit: 1000 });
        mailbox.put(notification(1));
        assert!(mailbox.take().is_err());
    }

    #[test]
    fn a_session_is_woken_by_what_it_takes() {
        let mailbox = Mailbox::new(1000);
        let cx = Context::from_waker(Waker::noop());
        assert!(mailbox.poll(&cx, true).is_pending());
        mailbox.put(notification(1));
        assert!(mailbox.poll(&cx, false).is_pending());
        assert!(mailbox.poll(&cx, true).is_ready());
        mailbox.put(notification(2000));
        assert!(mailbox.poll(&cx, false).is_ready());
    }
}
