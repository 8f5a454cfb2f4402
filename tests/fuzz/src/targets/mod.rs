//! One file for each target: a function that takes any bytes and panics when a claim does not hold.
//! What it costs is bounded by the length of its bytes: a slow input would hide what is behind it.

pub mod backend;
pub mod certificate;
pub mod changes;
pub mod frames;
pub mod lexer;
pub mod login;
pub mod replies;
pub mod startup;

/// Takes the next bytes as a length (two bytes) and as many bytes, fewer at the end.
fn piece<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (piece, rest) = rest.split_at(length);
    *bytes = rest;
    Some(piece)
}

/// Another message: the byte at `at` replaced. Says whether it is another.
fn patched(message: &[u8], at: u16, byte: u8) -> (Vec<u8>, bool) {
    let mut other = message.to_vec();
    if let Some(old) = other.get_mut(usize::from(at)) {
        *old = byte;
    }
    let changed = other != message;
    (other, changed)
}
