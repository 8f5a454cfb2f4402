//! Hot path: runs of whole rows in a buffer, to be copied as one slice. Per row it costs one header.

use crate::wire::frame::HEADER;

/// Whole rows at the start of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub bytes: usize,
    pub rows: u64,
}

/// The whole DataRow messages that `held` begins with: at most `most` of them.
#[must_use]
pub fn run(held: &[u8], most: u64) -> Run {
    let mut run = Run::default();
    while run.rows < most {
        let Some(&[b'D', a, b, c, d]) = held.get(run.bytes..run.bytes + HEADER) else {
            break;
        };
        let end = run.bytes + 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        if end > held.len() || end < run.bytes + HEADER {
            break;
        }
        run.bytes = end;
        run.rows += 1;
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_rows_at_the_start_are_taken_and_no_more_than_are_wanted() {
        let row = b"D\0\0\0\x06\0\0";
        let mut held = row.repeat(3);
        held.extend_from_slice(b"C\0\0\0\x05x");
        held.extend_from_slice(row);
        assert_eq!(run(&held, 9), Run { bytes: 21, rows: 3 });
        assert_eq!(run(&held, 2), Run { bytes: 14, rows: 2 });
        assert_eq!(run(&held[..20], 9), Run { bytes: 14, rows: 2 });
        assert_eq!(run(&held[..4], 9), Run::default());
        assert_eq!(run(b"D\0\0\0\x03\0", 9), Run::default());
    }
}
