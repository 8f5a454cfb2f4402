//! What the proxies of one logical database have heard of each other's schema changes: a number that grows with each,
//! and until when this one may rely on what it knows.
//!
//! What must stay true: a change is announced before it is committed and numbered after, whoever dies between: then
//! another proxy numbers it. A proxy relies on what it knows no longer than [`LEASE`] after the begin of a heartbeat at
//! which it knew of all changes; whoever waits for it waits longer than that.

use super::{Lease, Me, errand};
use crate::{
    clock::{Clock, Duration, Instant},
    inspect::AskError,
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI64, AtomicU64, Ordering},
};
use tokio::sync::{Notify, watch};

/// How long a heartbeat lets a proxy rely on what it knows.
pub(super) const LEASE: Duration = Duration::from_secs(6);
/// How old the last heartbeat is of a proxy that surely relies on nothing any more.
const LAPSED: Duration = Duration::from_secs(7);
/// Where proxies hear of a new number.
pub(super) const LISTEN: &str = "LISTEN shardway";
/// Of [`Agreement::lease`]: nothing was agreed on yet, as on a database without a control role.
const NONE: u64 = u64::MAX;

const BEGIN: &str = "INSERT INTO shardway.change (incarnation) VALUES ($1) RETURNING id";
const END: &str = "\
WITH ended AS (DELETE FROM shardway.change WHERE id = ANY ($1)), \
     bumped AS (UPDATE shardway.epoch SET epoch = epoch + 1 RETURNING epoch) \
SELECT epoch, pg_notify('shardway', epoch::text) FROM bumped";
const ABANDON: &str = "DELETE FROM shardway.change WHERE id = ANY ($1)";
/// Changes of proxies that are there no more may have been committed.
const ORPHANS: &str = "\
SELECT c.id FROM shardway.change c WHERE c.begun < now() - make_interval(secs => $1) AND NOT EXISTS ( \
    SELECT FROM shardway.proxy p \
    WHERE p.incarnation = c.incarnation AND p.heartbeat > now() - make_interval(secs => $1))";
const EPOCH: &str = "SELECT epoch FROM shardway.epoch";
const LATE: &str = "\
SELECT incarnation, number, address FROM shardway.proxy \
WHERE incarnation <> $1 AND coalesce(epoch, 0) < $2 AND heartbeat > now() - make_interval(secs => $3) \
ORDER BY started, incarnation";

/// What one process knows of the agreement of one database.
#[derive(Debug)]
pub struct Agreement {
    clock: Clock,
    base: Instant,
    /// The last number that was read.
    heard: watch::Sender<i64>,
    /// The number up to which all changes are known here; 0: none.
    taken: AtomicI64,
    /// Until when what is known here may be relied on, in microseconds after `base`.
    lease: AtomicU64,
    /// When the last heartbeat began that was taken, as `lease`.
    beat: AtomicU64,
    /// Somebody has announced a number.
    rung: Arc<Notify>,
    /// The same, for whoever looks after holds.
    told: Arc<Notify>,
    /// Changes that are to be numbered by the next heartbeat.
    left: Arc<Mutex<Vec<i64>>>,
}

/// A schema change that was announced. Dropped without a word, it is taken for committed.
#[derive(Debug)]
pub struct Announced {
    id: Option<i64>,
    left: Arc<Mutex<Vec<i64>>>,
}

/// A proxy that has not taken a number over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    pub incarnation: String,
    /// `server.id`, or 0.
    pub number: i32,
    pub address: Option<String>,
}

impl Agreement {
    pub(super) fn new() -> Self {
        let clock = Clock;
        Self {
            clock,
            base: clock.now(),
            heard: watch::Sender::new(0),
            taken: AtomicI64::new(0),
            lease: AtomicU64::new(NONE),
            beat: AtomicU64::new(NONE),
            rung: Arc::default(),
            told: Arc::default(),
            left: Arc::default(),
        }
    }

    /// Whether what was known at that time may not be relied on any more.
    #[must_use]
    pub fn is_lapsed(&self, now: Instant) -> bool {
        let lease = self.lease.load(Ordering::Acquire);
        lease != NONE && micros(now.saturating_duration_since(self.base)) > lease
    }

    /// Whether the others may take this proxy for one that relies on nothing: its last heartbeat is that old.
    #[must_use]
    pub fn is_silent(&self, now: Instant) -> bool {
        let beat = self.beat.load(Ordering::Acquire);
        let age = micros(now.saturating_duration_since(self.base)).saturating_sub(beat);
        beat != NONE && age > micros(LEASE)
    }

    /// Resolves when somebody has announced a number.
    pub async fn rung(&self) {
        self.rung.notified().await;
    }

    /// As if something had been announced.
    pub(super) fn look_again(&self) {
        self.told.notify_one();
    }

    /// The same, for one more.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    pub(super) fn bells(&self) -> Vec<Arc<Notify>> {
        vec![Arc::clone(&self.told), Arc::clone(&self.rung)]
    }

    /// Tells of numbers that were read.
    #[must_use]
    pub fn numbers(&self) -> watch::Receiver<i64> {
        self.heard.subscribe()
    }

    /// The number up to which all changes are known here.
    #[must_use]
    pub fn taken(&self) -> i64 {
        self.taken.load(Ordering::Acquire)
    }

    /// All changes up to this number are known here.
    pub fn take(&self, epoch: i64) {
        self.taken.fetch_max(epoch, Ordering::AcqRel);
    }

    /// A heartbeat that began at this time has read this number.
    fn beaten(&self, began: Instant, epoch: i64) {
        let beat = micros(began.saturating_duration_since(self.base));
        let before = self.beat.load(Ordering::Acquire);
        if before == NONE || before < beat {
            self.beat.store(beat, Ordering::Release);
        }
        self.heard.send_if_modified(|heard| {
            let newer = epoch > *heard;
            *heard = epoch.max(*heard);
            newer
        });
        if self.taken() >= epoch {
            let until = began.saturating_duration_since(self.base) + LEASE;
            // An earlier heartbeat's answer may come later.
            let before = self.lease.load(Ordering::Acquire);
            if before == NONE || before < micros(until) {
                self.lease.store(micros(until), Ordering::Release);
            }
        }
    }

    /// Something may have changed unannounced: the next heartbeat gives it a number.
    pub fn renumber(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.push(0);
        self.rung.notify_one();
    }

    fn take_left(&self) -> Vec<i64> {
        std::mem::take(&mut self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// What a heartbeat does besides: numbers what was left, and reads the number. The proxy's own row is written.
    pub(super) async fn follow(
        &self,
        lease: &Lease,
        began: Instant,
        silence: Duration,
    ) -> Result<(), AskError> {
        let mut left = self.take_left();
        let followed = async {
            let silence = silence.as_secs_f64();
            for row in lease.query(ORPHANS, &[&silence]).await? {
                left.push(row.try_get(0)?);
            }
            if !left.is_empty() {
                lease.query(END, &[&left]).await?;
            }
            let epoch = lease.query_one(EPOCH, &[]).await?.try_get(0)?;
            self.beaten(began, epoch);
            Ok(())
        };
        let followed: Result<(), AskError> = followed.await;
        if followed.is_err() {
            let mut kept = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(left);
        }
        followed
    }

    pub(super) async fn begin(&self, lease: Lease, me: Me) -> Result<Announced, AskError> {
        let incarnation = format!("{:016x}", me.incarnation);
        let row = errand(async { Ok(lease.query_one(BEGIN, &[&incarnation]).await?) }).await?;
        let id = row.try_get(0)?;
        lease.done();
        Ok(Announced {
            id: Some(id),
            left: Arc::clone(&self.left),
        })
    }

    /// Numbers the change.
    pub(super) async fn end(&self, lease: Lease, mut change: Announced) -> Result<i64, AskError> {
        let ids: Vec<i64> = change.id.into_iter().collect();
        let row = errand(async { Ok(lease.query_one(END, &[&ids]).await?) }).await?;
        let epoch = row.try_get(0)?;
        lease.done();
        change.id = None;
        Ok(epoch)
    }

    /// Nothing was changed.
    pub(super) async fn abandon(
        &self,
        lease: Lease,
        mut change: Announced,
    ) -> Result<(), AskError> {
        let ids: Vec<i64> = change.id.into_iter().collect();
        errand(async { Ok(lease.execute(ABANDON, &[&ids]).await?) }).await?;
        lease.done();
        change.id = None;
        Ok(())
    }
}

/// Who is there and has not taken the number over.
pub(super) async fn late(lease: &Lease, me: Me, epoch: i64) -> Result<Vec<Late>, AskError> {
    let incarnation = format!("{:016x}", me.incarnation);
    let lapsed = LAPSED.as_secs_f64();
    let rows = lease.query(LATE, &[&incarnation, &epoch, &lapsed]).await?;
    let late = |row: &tokio_postgres::Row| {
        Ok(Late {
            incarnation: row.try_get(0)?,
            number: row.try_get(1)?,
            address: row.try_get(2)?,
        })
    };
    rows.iter().map(late).collect()
}

impl Drop for Announced {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.push(id);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(NONE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_all_changes_relies_on_what_it_knows() {
        let agreement = Agreement::new();
        let begun = agreement.base;
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert!(!agreement.is_lapsed(after(1000)), "nothing was agreed on");
        agreement.beaten(begun, 1);
        assert!(!agreement.is_lapsed(after(1000)), "nor was anything known");
        agreement.take(1);
        agreement.beaten(after(1), 1);
        assert!(!agreement.is_lapsed(after(7)));
        assert!(agreement.is_lapsed(after(8)));
        // It does not know of the second change, however often its heart beats.
        agreement.beaten(after(6), 2);
        assert!(agreement.is_lapsed(after(8)));
        assert_eq!(*agreement.numbers().borrow(), 2);
        agreement.take(2);
        agreement.beaten(after(12), 2);
        assert!(!agreement.is_lapsed(after(18)));
        // The answer of an earlier one comes later.
        agreement.beaten(after(3), 2);
        assert!(!agreement.is_lapsed(after(18)));
    }

    #[test]
    fn a_change_of_which_nothing_was_heard_is_numbered() {
        let agreement = Agreement::new();
        let announced = |id| Announced {
            id,
            left: Arc::clone(&agreement.left),
        };
        drop(announced(Some(7)));
        drop(announced(None));
        assert_eq!(agreement.take_left(), [7]);
        assert!(agreement.take_left().is_empty());
    }
}
