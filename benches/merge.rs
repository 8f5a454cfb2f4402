//! What putting rows of shards together costs: bytes a second on one core. `cargo bench --bench merge`.

mod timing;

use shardway::{
    merge::{
        key::{Direction, Key, Kind, Nulls},
        order::Merge,
        rows,
    },
    wire::{
        frame::{self, HEADER},
        frontend::put,
    },
};
use std::hint::black_box;

const SHARDS: usize = 3;
const ROWS: u32 = 1000;

fn main() {
    let key = |kind| Key {
        kind,
        direction: Direction::Ascending,
        nulls: Nulls::Last,
    };
    let plain = rows_of(0, false);
    println!("{} bytes in {ROWS} rows", plain.len());
    let mut out = Vec::new();
    timing::time("one after the other, a run of 1000 rows", || {
        out.clear();
        let run = rows::run(black_box(&plain), u64::MAX);
        out.extend_from_slice(&plain[..run.bytes]);
    });
    let sources: Vec<Vec<u8>> = (0..SHARDS)
        .filter_map(|shard| Some(rows_of(u32::try_from(shard).ok()?, true)))
        .collect();
    let size: usize = sources.iter().map(Vec::len).sum();
    println!("{size} bytes in {SHARDS} times {ROWS} rows");
    timing::time("ordered by a bigint, 3000 rows of three shards", || {
        out.clear();
        merge(black_box(&sources), key(Kind::Signed(8)), &mut out);
    });
}

/// Rows of a number and a name, and of the number once more as a key.
fn rows_of(shard: u32, keyed: bool) -> Vec<u8> {
    let mut rows = Vec::new();
    for row in 0..ROWS {
        let number = u64::from(row * 3 + shard).to_be_bytes();
        put(&mut rows, b'D', |out| {
            out.extend_from_slice(if keyed { b"\0\x03" } else { b"\0\x02" });
            out.extend_from_slice(b"\0\0\0\x08");
            out.extend_from_slice(&number);
            out.extend_from_slice(b"\0\0\0\x20a name of thirty-two bytes as is");
            if keyed {
                out.extend_from_slice(b"\0\0\0\x08");
                out.extend_from_slice(&number);
            }
        });
    }
    rows
}

fn merge(sources: &[Vec<u8>], key: Key, out: &mut Vec<u8>) {
    let mut merge = Merge::new(vec![key], 2, sources.len());
    let mut at = vec![0; sources.len()];
    let next = |source: usize, at: &[usize]| {
        let held = &sources[source][at[source]..];
        let header = frame::backend(held).ok().flatten()?;
        Some(&held[HEADER..header.size])
    };
    loop {
        for source in 0..sources.len() {
            if merge.awaits(source) {
                match next(source, &at) {
                    Some(body) if merge.offer(source, body).is_ok() => {}
                    Some(_) | None => merge.over(source),
                }
            }
        }
        let Some(source) = merge.first() else { return };
        let Some(body) = next(source, &at) else {
            return;
        };
        merge.take(body, Some(out));
        at[source] += HEADER + body.len();
    }
}
