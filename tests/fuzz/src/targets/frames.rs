//! Walks frames of both directions and reads every body: nothing panics or reads past its frame, and what is read is
//! written back as the same bytes. A message with a byte more than its own is none.
use crate::{
    protocol::replicating::Stand,
    wire::{
        backend::{
            Status, command_tag, parameter_status, put_complete, put_parameter_status, put_ready,
        },
        frame::{self, Body, FrameError, HEADER, Header},
        frontend::{Bind, Named, Parse, put_bind, put_named, put_parse, put_query, query},
        notice,
    },
};

/// The target.
pub fn check(bytes: &[u8]) {
    let Some((side, bytes)) = bytes.split_first() else {
        return;
    };
    match side % 4 {
        0 => walk(bytes, frame::frontend, frontend_body),
        1 => walk(bytes, frame::backend, backend_body),
        2 => walk(bytes, frame::authentication, |_, body| {
            let mut body = Body::new(body);
            let _ = (body.cstr(), body.value(), body.rest());
        }),
        _ => replicated(bytes),
    }
}

/// A replication connection is followed by headers alone: in pieces it stands where it stands as a whole.
fn replicated(bytes: &[u8]) {
    let [piece, bytes @ ..] = bytes else { return };
    let (mut whole, mut pieces) = (Stand::default(), Stand::default());
    whole.handle_client();
    pieces.handle_client();
    let outcome = whole.handle_server(bytes);
    let in_pieces = bytes
        .chunks(usize::from(*piece).max(1))
        .try_for_each(|bytes| pieces.handle_server(bytes));
    assert_eq!(outcome, in_pieces);
    if outcome.is_err() {
        return;
    }
    assert_eq!(whole.may_end(), pieces.may_end());
    let mut rest = bytes;
    while let Ok(Some(Header { size, .. })) = frame::backend(rest)
        && size <= rest.len()
    {
        rest = &rest[size..];
    }
    assert_eq!(whole.is_between_messages(), rest.is_empty());
    assert_eq!(pieces.is_between_messages(), rest.is_empty());
}

fn walk(
    mut bytes: &[u8],
    header: fn(&[u8]) -> Result<Option<Header>, FrameError>,
    read: fn(&[u8], &[u8]),
) {
    while let Ok(Some(Header { tag, size })) = header(bytes) {
        assert!(size >= HEADER && tag == bytes[0]);
        let Some((frame, rest)) = bytes.split_at_checked(size) else {
            // What came of an unfinished frame is read as if it were whole.
            return read(&[tag], &bytes[HEADER..]);
        };
        read(frame, &frame[HEADER..]);
        bytes = rest;
    }
}

/// `frame` is the whole frame, or its tag alone when its end has not come.
fn frontend_body(frame: &[u8], body: &[u8]) {
    let (mut out, longer) = (Vec::new(), [body, b"\0"].concat());
    match frame[0] {
        b'P' => {
            if let Ok(parse) = Parse::decode(body) {
                assert!(Parse::decode(&longer).is_err());
                assert_eq!(parse.types().count() * 4, parse.raw_types().len());
                put_parse(&mut out, parse.name, parse.text, parse.raw_types());
                assert_eq!(&out[HEADER..], body);
            }
        }
        b'B' => {
            if let Ok(bind) = Bind::decode(body) {
                assert!(Bind::decode(&longer).is_err());
                assert!(bind.is_empty() == (bind.len() == 0));
                for index in 0..bind.len().min(64) {
                    assert!(bind.parameter(index).is_some());
                }
                assert!(bind.parameter(bind.len()).is_none());
                put_bind(&mut out, bind.portal, bind.statement, bind.tail);
                assert_eq!(&out[HEADER..], body);
            }
        }
        tag @ (b'D' | b'C') => {
            if let Ok(named) = Named::decode(body) {
                assert!(Named::decode(&longer).is_err());
                put_named(&mut out, tag, named);
                assert_eq!(&out[HEADER..], body);
            }
        }
        b'Q' => {
            if let Ok(text) = query(body) {
                assert!(query(&longer).is_err());
                put_query(&mut out, text);
                assert_eq!(&out[HEADER..], body);
            }
        }
        _ => {}
    }
}

fn backend_body(frame: &[u8], body: &[u8]) {
    let mut out = Vec::new();
    match frame[0] {
        b'Z' => {
            if let Ok(status) = Status::decode(body) {
                put_ready(&mut out, status);
                assert_eq!(&out[HEADER..], body);
            }
        }
        b'S' => {
            if let Ok((name, value)) = parameter_status(body) {
                put_parameter_status(&mut out, name, value);
                assert_eq!(&out[HEADER..], body);
            }
        }
        b'C' => {
            if let Ok(tag) = command_tag(body) {
                put_complete(&mut out, tag);
                assert!(body.starts_with(&out[HEADER..]));
            }
        }
        b'E' | b'N' => {
            for code in [b'S', b'C', b'M', body.first().copied().unwrap_or_default()] {
                if let Some(text) = notice::field(body, code) {
                    assert!(text.len() < body.len());
                }
            }
        }
        _ => {}
    }
}
