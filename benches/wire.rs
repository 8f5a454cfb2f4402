//! What walking and reading frames costs. `cargo bench --bench wire`.

mod timing;

use shardway::wire::{
    frame,
    frontend::{Bind, Parse, put, put_bind, put_parse},
};
use std::hint::black_box;

fn main() {
    let mut rows = Vec::new();
    for row in 0..1000_u32 {
        put(&mut rows, b'D', |out| {
            out.extend_from_slice(b"\0\x02\0\0\0\x04");
            out.extend_from_slice(&row.to_be_bytes());
            out.extend_from_slice(b"\0\0\0\x20a name of thirty-two bytes, as is.");
        });
    }
    timing::time("walk 1000 rows", || walk(black_box(&rows)));

    let mut bind = Vec::new();
    put_bind(
        &mut bind,
        b"",
        b"s1",
        b"\0\x01\0\x01\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x2a\0\0",
    );
    timing::time("read a Bind and its first parameter", || {
        Bind::decode(black_box(&bind[frame::HEADER..])).map(|bind| bind.parameter(0))
    });

    let mut parse = Vec::new();
    put_parse(
        &mut parse,
        b"s1",
        b"SELECT abalance FROM pgbench_accounts WHERE aid = $1",
        &20_u32.to_be_bytes(),
    );
    timing::time("read a Parse", || {
        Parse::decode(black_box(&parse[frame::HEADER..]))
    });

    let mut out = Vec::new();
    timing::time("write a Bind with another name", || {
        out.clear();
        if let Ok(bind) = Bind::decode(black_box(&bind[frame::HEADER..])) {
            put_bind(&mut out, bind.portal, b"shardway_17", bind.tail);
        }
    });
}

fn walk(mut bytes: &[u8]) -> usize {
    let mut frames = 0;
    while let Ok(Some(header)) = frame::backend(bytes) {
        bytes = &bytes[header.size..];
        frames += 1;
    }
    frames
}
