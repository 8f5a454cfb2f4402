//! Rows of several sources that come in parts: what has come and is not given yet, and what each source is to be asked
//! for next. Pure.
//!
//! What must stay true: of each source no more is held than one part; a part is asked for only when a row of it is
//! needed, and grows with what is wanted, but not beyond [`PART`] bytes as far as the rows before it tell.

use super::{Malformed, limit::Limit, order::Merge, rows};
use crate::wire::frame::HEADER;

/// Bytes that a part should not exceed.
pub const PART: usize = 64 << 10;
/// Rows that a source is asked for before it is known how long they are.
const FIRST: u64 = 16;

/// Rows that wait to be given, source by source.
#[derive(Debug)]
pub struct Parts {
    sources: Vec<Source>,
    /// `None`: in no order.
    merge: Option<Merge>,
    limit: Limit,
}

#[derive(Debug, Default)]
struct Source {
    /// Whole DataRow messages.
    rows: Vec<u8>,
    /// How much of them is given.
    at: usize,
    is_over: bool,
    /// All that it has given so far.
    count: u64,
    bytes: u64,
}

/// How far rows were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gave {
    /// As many as were wanted.
    Enough,
    /// As many bytes as were wanted; there is more.
    Full,
    /// A source is to be asked before more can be given: [`Parts::lacks`].
    Lacking,
    /// There are no more.
    Over,
}

impl Source {
    fn rest(&self) -> &[u8] {
        &self.rows[self.at..]
    }

    fn lacks(&self) -> bool {
        !self.is_over && self.at == self.rows.len()
    }

    /// The body of its next row.
    fn next(&self) -> Option<&[u8]> {
        let run = rows::run(self.rest(), 1);
        self.rest().get(HEADER..run.bytes)
    }

    fn take(&mut self, bytes: usize) {
        self.at += bytes;
        if self.at == self.rows.len() {
            self.rows.clear();
            self.at = 0;
        }
    }
}

impl Parts {
    /// Of so many sources, of which nothing has come.
    #[must_use]
    pub fn new(sources: usize, merge: Option<Merge>, limit: Limit) -> Self {
        Self {
            sources: (0..sources).map(|_| Source::default()).collect(),
            merge,
            limit,
        }
    }

    /// A row of a source: DataRow's body.
    pub fn add(&mut self, source: usize, body: &[u8]) {
        let source = &mut self.sources[source];
        let size = u32::try_from(body.len() + HEADER - 1).unwrap_or(u32::MAX);
        source.rows.push(b'D');
        source.rows.extend_from_slice(&size.to_be_bytes());
        source.rows.extend_from_slice(body);
        source.count += 1;
        source.bytes += body.len() as u64;
    }

    /// A source has no rows behind those that have come.
    pub fn over(&mut self, source: usize) {
        self.sources[source].is_over = true;
    }

    /// Whether a source must be asked before more can be given.
    #[must_use]
    pub fn lacks(&self, source: usize) -> bool {
        !self.limit.is_met() && self.sources[source].lacks()
    }

    /// Whether nothing has been asked of any source yet, all rows are wanted and no source gives some in vain.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        let new = |source: &Source| source.count == 0 && !source.is_over;
        self.sources.iter().all(new) && self.limit.is_all()
    }

    /// Whether rows that have come wait to be given.
    #[must_use]
    pub fn holds_rows(&self) -> bool {
        self.sources.iter().any(|source| !source.rest().is_empty())
    }

    /// How many rows a source is asked for when `most` are wanted.
    #[must_use]
    pub fn part(&self, source: usize, most: u64) -> u64 {
        let wanted = self
            .limit
            .skips()
            .saturating_add(self.limit.gives().min(most));
        let Source { count, bytes, .. } = self.sources[source];
        let fits = match bytes.checked_div(count) {
            None => FIRST,
            // Rows that differ in length are met with care.
            Some(mean) => (PART as u64 / mean.max(1)).min(count.saturating_mul(8)),
        };
        wanted.min(fits).max(1)
    }

    /// The merge, when all the rows are to come another way.
    pub fn take_merge(&mut self) -> Option<Merge> {
        self.merge.take()
    }

    /// Gives rows, at most `most` and about `bytes` of them, to `out` if they are wanted; how many.
    ///
    /// # Errors
    /// A row is not as it was described.
    pub fn give(
        &mut self,
        most: u64,
        bytes: usize,
        out: Option<&mut Vec<u8>>,
    ) -> Result<(u64, Gave), Malformed> {
        let mut spare = Vec::new();
        let wanted = out.is_some();
        let out = out.unwrap_or(&mut spare);
        let end = out.len() + bytes;
        let mut given = 0;
        loop {
            if given == most {
                return Ok((given, Gave::Enough));
            }
            if self.limit.is_met() {
                return Ok((given, Gave::Over));
            }
            if out.len() >= end {
                return Ok((given, Gave::Full));
            }
            let step = match &mut self.merge {
                Some(merge) => merged(merge, &mut self.sources, &mut self.limit, out)?,
                None => joined(&mut self.sources, &mut self.limit, most - given, out),
            };
            match step {
                Ok(count) => given += count,
                Err(none) => return Ok((given, none)),
            }
            if !wanted {
                out.clear();
            }
        }
    }
}

/// Gives or passes over the first row of all; how many were given, or why there is none.
fn merged(
    merge: &mut Merge,
    sources: &mut [Source],
    limit: &mut Limit,
    out: &mut Vec<u8>,
) -> Result<Result<u64, Gave>, Malformed> {
    for (at, source) in sources.iter().enumerate() {
        if merge.awaits(at) {
            match source.next() {
                Some(body) => merge.offer(at, body)?,
                None if source.is_over => merge.over(at),
                None => return Ok(Err(Gave::Lacking)),
            }
        }
    }
    let Some(source) = merge.first().and_then(|first| sources.get_mut(first)) else {
        return Ok(Err(Gave::Over));
    };
    let body = source.next().ok_or(Malformed)?;
    let size = HEADER + body.len();
    let given = if limit.skips() > 0 {
        merge.take(body, None);
        limit.skipped(1);
        0
    } else {
        merge.take(body, Some(out));
        limit.gave(1);
        1
    };
    source.take(size);
    Ok(Ok(given))
}

/// Gives or passes over rows of the first source that has any; how many were given, or why there are none.
fn joined(
    sources: &mut [Source],
    limit: &mut Limit,
    most: u64,
    out: &mut Vec<u8>,
) -> Result<u64, Gave> {
    let Some(source) = sources.iter_mut().find(|source| !source.rest().is_empty()) else {
        let lacking = sources.iter().any(Source::lacks);
        return Err(if lacking { Gave::Lacking } else { Gave::Over });
    };
    let skips = limit.skips();
    if skips > 0 {
        let run = rows::run(source.rest(), skips);
        limit.skipped(run.rows);
        source.take(run.bytes);
        return Ok(0);
    }
    let run = rows::run(source.rest(), most.min(limit.gives()));
    out.extend_from_slice(&source.rest()[..run.bytes]);
    limit.gave(run.rows);
    source.take(run.bytes);
    Ok(run.rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::key::{Direction, Key, Kind, Nulls};

    /// A row of one number, which is also its key.
    fn row(number: i32, keys: bool) -> Vec<u8> {
        let value = [&[0, 0, 0, 4][..], &number.to_be_bytes()].concat();
        let count = if keys { 2_u16 } else { 1 };
        let mut body = count.to_be_bytes().to_vec();
        body.extend_from_slice(&value.repeat(usize::from(count)));
        body
    }

    fn numbers(out: &[u8]) -> Vec<i32> {
        let rows = out.chunks_exact(HEADER + 10);
        rows.map(|row| i32::from_be_bytes(*row.last_chunk().unwrap()))
            .collect()
    }

    /// Asks the sources as they lack, and gives all in parts of three.
    fn all(mut parts: Parts, sources: &[Vec<i32>], keys: bool) -> (Vec<i32>, Vec<usize>) {
        let (mut at, mut found) = (vec![0; sources.len()], Vec::new());
        loop {
            let mut out = Vec::new();
            let gave = loop {
                match parts
                    .give(3 - out.len() as u64 / 15, usize::MAX / 2, Some(&mut out))
                    .unwrap()
                {
                    (_, Gave::Lacking) => {
                        for source in 0..sources.len() {
                            if !parts.lacks(source) {
                                continue;
                            }
                            let part = usize::try_from(parts.part(source, 3)).unwrap();
                            let rest = &sources[source][at[source]..];
                            for number in rest.iter().take(part) {
                                parts.add(source, &row(*number, keys));
                                at[source] += 1;
                            }
                            if rest.len() < part {
                                parts.over(source);
                            }
                        }
                    }
                    (_, gave) => break gave,
                }
            };
            found.extend(numbers(&out));
            if gave == Gave::Over {
                return (found, at);
            }
            assert_eq!(out.len(), 45);
        }
    }

    fn merge(sources: usize) -> Option<Merge> {
        let key = Key {
            kind: Kind::Signed(4),
            direction: Direction::Ascending,
            nulls: Nulls::Last,
        };
        Some(Merge::new(vec![key], 1, sources))
    }

    #[test]
    fn parts_of_ordered_sources_are_one_order() {
        let sources = [(0..50).map(|n| n * 3).collect(), vec![], vec![1, 2, 200]];
        let parts = Parts::new(3, merge(3), Limit::new(0, None));
        let (found, _) = all(parts, &sources, true);
        let mut expected: Vec<i32> = sources.iter().flatten().copied().collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn no_more_is_asked_for_than_the_limit_needs() {
        let sources = [(0..500).collect::<Vec<_>>(), (500..1000).collect()];
        let parts = Parts::new(2, merge(2), Limit::new(2, Some(5)));
        let (found, asked) = all(parts, &sources, true);
        assert_eq!(found, [2, 3, 4, 5, 6]);
        assert!(asked.iter().all(|asked| *asked <= 10), "{asked:?}");
        let parts = Parts::new(2, None, Limit::new(1, Some(4)));
        let (found, asked) = all(parts, &sources, false);
        assert_eq!(found.len(), 4);
        assert!(asked.iter().all(|asked| *asked <= 10), "{asked:?}");
    }

    #[test]
    fn a_part_fits_the_rows_that_have_come() {
        let mut parts = Parts::new(1, None, Limit::new(0, None));
        assert_eq!(parts.part(0, u64::MAX), FIRST);
        assert_eq!(parts.part(0, 3), 3);
        for _ in 0..16 {
            parts.add(0, &[0; 40_000]);
        }
        assert_eq!(parts.part(0, u64::MAX), 1);
        let mut parts = Parts::new(1, None, Limit::new(0, None));
        for _ in 0..16 {
            parts.add(0, &[0; 100]);
        }
        assert_eq!(parts.part(0, u64::MAX), 128);
    }

    #[test]
    fn rows_that_are_passed_over_are_counted_and_not_given() {
        let mut parts = Parts::new(1, None, Limit::new(0, None));
        for number in 0..5 {
            parts.add(0, &row(number, false));
        }
        parts.over(0);
        assert_eq!(parts.give(2, PART, None), Ok((2, Gave::Enough)));
        let mut out = Vec::new();
        assert_eq!(parts.give(1, PART, Some(&mut out)), Ok((1, Gave::Enough)));
        assert_eq!(numbers(&out), [2]);
        assert_eq!(parts.give(9, PART, None), Ok((2, Gave::Over)));
        assert_eq!(parts.give(9, PART, None), Ok((0, Gave::Over)));
    }
}
