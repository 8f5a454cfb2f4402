//! A shard's part of a write as the messages that it is sent, and what it says of them as the client may see it.

use super::Writing;
use crate::{
    plan::spread::{Part, What},
    wire::{
        frame::Body,
        frontend::{self, Named, put, put_bind, put_named, put_parse},
        types::Format,
    },
};

/// The rest of a Bind without parameters, with a result in text.
const NOTHING_BOUND: [u8; 6] = [0; 6];

impl Writing<'_> {
    /// A shard's part as one batch.
    pub(super) fn put(&self, part: &Part, types: &[u8], out: &mut Vec<u8>) {
        put_parse(out, b"", part.text.as_bytes(), types);
        put_bind(out, b"", b"", &self.tail_of(part));
        put_named(out, b'D', Named::Portal(b""));
        put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
        frontend::put_bare(out, b'S');
    }

    /// The declared types of the parameters that the part has.
    pub(in crate::proxy) fn types_of(&self, part: &Part) -> Vec<u8> {
        let Some(parameters) = &part.parameters else {
            return self.types.to_vec();
        };
        let of = |index: &u16| {
            let at = usize::from(*index) * 4;
            self.types.get(at..at + 4).unwrap_or(&[0; 4])
        };
        parameters.iter().flat_map(of).copied().collect()
    }

    /// The parameters that the part has, and how its result is asked for.
    pub(in crate::proxy) fn tail_of(&self, part: &Part) -> Vec<u8> {
        let Some(bind) = self.bind else {
            return NOTHING_BOUND.to_vec();
        };
        let Some(parameters) = &part.parameters else {
            let results = bind.raw_results();
            let mut tail = bind.tail[..bind.tail.len() - results.len()].to_vec();
            tail.extend_from_slice(&self.results(results));
            return tail;
        };
        let all: Vec<(Format, Option<&[u8]>)> = bind.parameters().collect();
        let own = || {
            let found = |index: &u16| all.get(usize::from(*index));
            parameters.iter().filter_map(found)
        };
        let count = u16::try_from(own().count()).unwrap_or(u16::MAX);
        let mut tail = count.to_be_bytes().to_vec();
        for (format, _) in own() {
            let format: u16 = if *format == Format::Binary { 1 } else { 0 };
            tail.extend_from_slice(&format.to_be_bytes());
        }
        tail.extend_from_slice(&count.to_be_bytes());
        for (_, value) in own() {
            let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
            tail.extend_from_slice(&length.to_be_bytes());
            tail.extend_from_slice(value.unwrap_or_default());
        }
        tail.extend_from_slice(bind.raw_results());
        tail
    }

    /// The formats of the result, with one for the fingerprint of a copy's row.
    fn results(&self, raw: &[u8]) -> Vec<u8> {
        let mut made = raw.to_vec();
        if let (What::Copies(_), Some(&[high, low])) = (&self.spread.what, raw.first_chunk()) {
            let count = u16::from_be_bytes([high, low]);
            // One is for all columns.
            if count > 1 {
                made[..2].copy_from_slice(&(count + 1).to_be_bytes());
                made.extend_from_slice(&[0, 0]);
            }
        }
        made
    }

    /// A server's error as the client may see it: its position is that of a text which the client did not write.
    pub(super) fn own_error(&self, body: &[u8]) -> Vec<u8> {
        if self.spread.keeps_text() {
            return body.to_vec();
        }
        without_position(body)
    }
}

/// A server's error without the place in its text.
pub(in crate::proxy) fn without_position(body: &[u8]) -> Vec<u8> {
    let mut made = Vec::with_capacity(body.len());
    let mut fields = Body::new(body);
    while let Ok(code) = fields.byte() {
        let Ok(text) = (if code == 0 { break } else { fields.cstr() }) else {
            break;
        };
        if code != b'P' {
            made.push(code);
            made.extend_from_slice(text);
            made.push(0);
        }
    }
    made.push(0);
    made
}

/// A statement's RowDescription in the formats that its result is asked for in.
pub(super) fn in_formats(mut columns: Vec<u8>, raw: &[u8]) -> Vec<u8> {
    let formats: Vec<[u8; 2]> = raw
        .get(2..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|format| [format[0], format[1]])
        .collect();
    let Some(count) = columns.first_chunk().copied().map(u16::from_be_bytes) else {
        return columns;
    };
    let mut at = 2;
    for index in 0..usize::from(count) {
        let Some(name) = columns[at..].iter().position(|byte| *byte == 0) else {
            break;
        };
        // Behind the name: table, number, type, length, modifier, format.
        at += name + 1 + 18;
        let format = match formats.as_slice() {
            [] => [0, 0],
            [one] => *one,
            each => each.get(index).copied().unwrap_or_default(),
        };
        if let Some(place) = columns.get_mut(at - 2..at) {
            place.copy_from_slice(&format);
        }
    }
    columns
}
