//! Hot path: rows of several ordered sources in one order. Per row it costs one walk over the row's lengths, the
//! encoding of its keys and a binary search among the sources; it allocates nothing once keys have their length.
//!
//! Each source is ordered already, by the same keys. A row is given when every source that is not over has offered its
//! next one, so that none smaller can come.

use super::{Malformed, key::Key};
use crate::wire::frame::HEADER;

/// The next row of each source.
#[derive(Debug)]
pub struct Merge {
    keys: Vec<Key>,
    /// The columns that are the client's; the keys stand behind them.
    columns: u16,
    heads: Vec<Head>,
    /// Sources that have offered a row, the greatest first.
    line: Vec<usize>,
}

#[derive(Debug)]
struct Head {
    state: State,
    /// The keys of its row, as bytes that compare.
    key: Vec<u8>,
    /// Where the client's columns end in its row's body.
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Awaited,
    Offered,
    Over,
}

impl Merge {
    /// Sources that have offered nothing yet.
    #[must_use]
    pub fn new(keys: Vec<Key>, columns: u16, sources: usize) -> Self {
        let head = || Head {
            state: State::Awaited,
            key: Vec::new(),
            end: 0,
        };
        Self {
            keys,
            columns,
            heads: (0..sources).map(|_| head()).collect(),
            line: Vec::with_capacity(sources),
        }
    }

    /// Whether a source's next row is not known, nor that there is none.
    #[must_use]
    pub fn awaits(&self, source: usize) -> bool {
        self.heads[source].state == State::Awaited
    }

    /// The source's next row: a DataRow's body.
    ///
    /// # Errors
    /// It has other columns than were described.
    pub fn offer(&mut self, source: usize, body: &[u8]) -> Result<(), Malformed> {
        let head = &mut self.heads[source];
        head.key.clear();
        head.end = read_keys(&self.keys, self.columns, body, &mut head.key)?;
        head.state = State::Offered;
        let key = &self.heads[source].key;
        let place = self
            .line
            .partition_point(|other| self.heads[*other].key > *key);
        self.line.insert(place, source);
        Ok(())
    }

    /// The source has no more rows.
    pub fn over(&mut self, source: usize) {
        self.heads[source].state = State::Over;
    }

    /// The source whose row comes next. Meaningful when none is awaited.
    #[must_use]
    pub fn first(&self) -> Option<usize> {
        self.line.last().copied()
    }

    /// Takes the first row, whose body this is: appends it to `out` without its keys, if it is wanted.
    pub fn take(&mut self, body: &[u8], out: Option<&mut Vec<u8>>) {
        let Some(source) = self.line.pop() else {
            return;
        };
        let head = &mut self.heads[source];
        head.state = State::Awaited;
        if let Some(out) = out {
            let size = u32::try_from(head.end + HEADER - 1).unwrap_or(u32::MAX);
            out.push(b'D');
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(&self.columns.to_be_bytes());
            out.extend_from_slice(&body[2..head.end]);
        }
    }
}

/// Appends a row's keys; where the columns before them end.
fn read_keys(
    keys: &[Key],
    columns: u16,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<usize, Malformed> {
    let count = body
        .first_chunk::<2>()
        .map(|count| u16::from_be_bytes(*count));
    if count.map(usize::from) != Some(usize::from(columns) + keys.len()) {
        return Err(Malformed);
    }
    let mut at = 2;
    for _ in 0..columns {
        (_, at) = value(body, at)?;
    }
    let end = at;
    for key in keys {
        let found;
        (found, at) = value(body, at)?;
        key.put(found, out)?;
    }
    Ok(end)
}

/// The value at `at`, and where the next one is.
fn value(body: &[u8], at: usize) -> Result<(Option<&[u8]>, usize), Malformed> {
    let rest = body.get(at..).ok_or(Malformed)?;
    let length = i32::from_be_bytes(*rest.first_chunk().ok_or(Malformed)?);
    match usize::try_from(length) {
        Ok(length) => {
            let value = rest.get(4..4 + length).ok_or(Malformed)?;
            Ok((Some(value), at + 4 + length))
        }
        Err(_negative) if length == -1 => Ok((None, at + 4)),
        Err(_negative) => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::key::{Direction, Kind, Nulls};

    /// A row of one text, and a number to order by.
    fn row(text: &str, number: Option<i32>) -> Vec<u8> {
        let mut body = vec![0, 2];
        body.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        body.extend_from_slice(text.as_bytes());
        match number {
            Some(number) => {
                body.extend_from_slice(&[0, 0, 0, 4]);
                body.extend_from_slice(&number.to_be_bytes());
            }
            None => body.extend_from_slice(&[0xff; 4]),
        }
        body
    }

    #[test]
    fn rows_of_ordered_sources_come_in_one_order_without_their_keys() {
        let key = Key {
            kind: Kind::Signed(4),
            direction: Direction::Ascending,
            nulls: Nulls::Last,
        };
        let sources = [
            vec![row("a", Some(1)), row("b", Some(5)), row("n", None)],
            vec![],
            vec![row("c", Some(-3)), row("d", Some(2)), row("e", Some(9))],
        ];
        let mut merge = Merge::new(vec![key], 1, sources.len());
        let (mut at, mut out) = ([0; 3], Vec::new());
        loop {
            for source in 0..3 {
                if merge.awaits(source) {
                    match sources[source].get(at[source]) {
                        Some(body) => merge.offer(source, body).unwrap(),
                        None => merge.over(source),
                    }
                }
            }
            let Some(source) = merge.first() else { break };
            merge.take(&sources[source][at[source]], Some(&mut out));
            at[source] += 1;
        }
        let expected: Vec<u8> = ["c", "a", "d", "b", "e", "n"]
            .iter()
            .flat_map(|text| {
                let mut row = b"D\0\0\0\x0b\0\x01\0\0\0\x01".to_vec();
                row.extend_from_slice(text.as_bytes());
                row
            })
            .collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn a_row_of_other_columns_is_told() {
        let key = Key {
            kind: Kind::Signed(4),
            direction: Direction::Ascending,
            nulls: Nulls::Last,
        };
        let whole = row("a", Some(1));
        let mut merge = Merge::new(vec![key], 2, 1);
        assert_eq!(merge.offer(0, &whole), Err(Malformed));
        for length in 0..whole.len() {
            let mut merge = Merge::new(vec![key], 1, 1);
            assert_eq!(merge.offer(0, &whole[..length]), Err(Malformed));
        }
    }
}
