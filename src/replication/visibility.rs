//! Which transactions a snapshot of a source has seen: what `pg_current_snapshot()` writes, asked with the transaction ids
//! of the stream of changes.
//!
//! What must stay true: a change is applied on a destination exactly if its transaction is not visible in the snapshot in
//! which the chunk was read that holds the row's key, the old key and the new one each judged by itself. Positions in the
//! WAL say nothing about it: the order of commits there is not the order in which they become visible.

use std::str::FromStr;

/// A snapshot, with transaction ids of 64 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// All transactions before this one had ended.
    xmin: u64,
    /// None from this one on had begun.
    xmax: u64,
    /// Those in between that were under way, ascending.
    running: Box<[u64]>,
}

/// The text is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no snapshot")]
pub struct NoSnapshot;

impl FromStr for Snapshot {
    type Err = NoSnapshot;

    /// Reads `xmin:xmax:xip,xip,…` as `pg_snapshot_in` does.
    fn from_str(text: &str) -> Result<Self, NoSnapshot> {
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(running), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoSnapshot);
        };
        let (xmin, xmax) = (number(xmin)?, number(xmax)?);
        let each = running.split(',').filter(|_| !running.is_empty());
        let running: Box<[u64]> = each.map(number).collect::<Result<_, _>>()?;
        let within = running.iter().all(|xid| (xmin..xmax).contains(xid));
        if xmin == 0 || xmin > xmax || !within || !running.is_sorted() {
            return Err(NoSnapshot);
        }
        Ok(Self {
            xmin,
            xmax,
            running,
        })
    }
}

fn number(text: &str) -> Result<u64, NoSnapshot> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NoSnapshot);
    }
    text.parse().or(Err(NoSnapshot))
}

impl Snapshot {
    /// Whether what a committed transaction did is in it. `xid`: the top-level transaction's id of 64 bits, as a snapshot is
    /// asked long after it was taken.
    #[must_use]
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    /// From this transaction on none is visible.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.xmax
    }
}

/// Ids of a stream's transactions as 64 bits. It knows the source's highest id so far: those of its stream are near it, while
/// a snapshot may be any number of transactions back.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    newest: u64,
}

impl Ids {
    /// From an id on that the source gave a moment ago.
    #[must_use]
    pub fn from(newest: u64) -> Self {
        Self { newest }
    }

    /// The next one that is read, by its lower half.
    pub fn whole(&mut self, xid: u32) -> u64 {
        let xid = extended(xid, self.newest);
        self.newest = self.newest.max(xid);
        xid
    }
}

/// The transaction id of 64 bits whose lower half it is, nearest to another one. Ids that are in use at the same time are
/// less than half of the lower 32 bits apart.
fn extended(xid: u32, near: u64) -> u64 {
    let [_, _, _, _, a, b, c, d] = near.to_be_bytes();
    let low = u32::from_be_bytes([a, b, c, d]);
    // Two's complement: how far it is ahead, or behind.
    let apart = i64::from(xid.wrapping_sub(low).cast_signed());
    near.saturating_add_signed(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn who_had_ended_is_seen_and_who_was_under_way_or_came_later_is_not() {
        let it = snapshot("100:110:102,105");
        for (xid, seen) in [
            (3, true),
            (99, true),
            (100, true),
            (102, false),
            (103, true),
            (105, false),
            (109, true),
            (110, false),
            (5000, false),
        ] {
            assert_eq!(it.sees(xid), seen, "{xid}");
        }
        let quiet = snapshot("100:100:");
        assert!(quiet.sees(99) && !quiet.sees(100));
        assert_eq!(quiet.end(), 100);
    }

    #[test]
    fn ids_are_compared_across_the_end_of_32_bits() {
        let turn = 7 << 32;
        let it = snapshot(&format!("{}:{}:{}", turn - 5, turn + 5, turn + 1));
        let mut ids = Ids::from(turn + 4);
        for (xid, seen) in [
            (u32::MAX - 10, true),
            (u32::MAX, true),
            (3, true),
            (1, false),
            (5, false),
            (1_000_000, false),
        ] {
            assert_eq!(it.sees(ids.whole(xid)), seen, "{xid}");
        }
        assert_eq!(extended(u32::MAX, turn + 3), turn - 1);
        assert_eq!(extended(4, turn - 3), turn + 4);
        assert_eq!(extended(7, 9), 7);
    }

    #[test]
    fn a_snapshot_sees_none_of_what_came_however_long_ago_it_was_taken() {
        let it = snapshot("100:110:");
        let mut ids = Ids::from(110);
        // Six thousand million transactions, of which the stream shows some.
        let mut at: u64 = 110;
        for _ in 0..60 {
            let xid = u32::try_from(at & u64::from(u32::MAX)).unwrap();
            assert_eq!(ids.whole(xid), at);
            assert!(!it.sees(at), "{at}");
            at += 100_000_000;
        }
        // And one that takes it up then.
        let xid = u32::try_from(at & u64::from(u32::MAX)).unwrap();
        assert!(!it.sees(Ids::from(at + 7).whole(xid)));
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for text in [
            "", "1", "1:2", "1:2:3:4", "2:1:", "0:1:", "1:5:7", "1:9:5,3", "a:2:", "1:2:x",
            "1: 2:", "+1:2:", "1:3:2,",
        ] {
            assert_eq!(text.parse::<Snapshot>(), Err(NoSnapshot), "{text}");
        }
    }
}
