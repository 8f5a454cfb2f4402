//! Certificates of clients and servers: a name is read in one way only. What the distinguished name says, taken apart
//! again at the commas that are not escaped, holds the common name that is told, and none when none is told.

use crate::auth::certificate::{Subject, end_point, subject};

/// The target.
pub fn check(der: &[u8]) {
    if let Some(hash) = end_point(der) {
        assert!(matches!(hash.len(), 28 | 32 | 48 | 64));
        assert_eq!(end_point(&[der, b"\0"].concat()), None);
    }
    if let Some(found) = subject(der) {
        names(&found);
    }
}

fn names(found: &Subject) {
    let written = &found.distinguished_name;
    assert!(written.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    let mut common = Vec::new();
    for part in parts(written.as_bytes()) {
        assert!(part.contains(&b'='));
        if let Some(value) = part.strip_prefix(b"CN=") {
            common.push(value.to_vec());
        }
    }
    match (&found.common_name, &common[..]) {
        (Some(name), [one]) => {
            assert!(!name.contains('\0'));
            assert_eq!(name.as_bytes(), one);
        }
        (Some(_), _) => panic!("told a common name that the whole name does not have once"),
        (None, common) => assert_ne!(common.len(), 1),
    }
}

/// The parts, with escapes resolved.
fn parts(written: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    if written.is_empty() {
        return parts;
    }
    let mut part = Vec::new();
    let mut rest = written;
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, after) {
            (b',' | b'+', _) => parts.push(std::mem::take(&mut part)),
            (b'\\', [high, low, after @ ..]) if high.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                let digits = str::from_utf8(&digits).map(|digits| u8::from_str_radix(digits, 16));
                let Ok(Ok(byte)) = digits else {
                    panic!("half an escape")
                };
                part.push(byte);
                rest = after;
            }
            (b'\\', [byte, after @ ..]) => {
                part.push(*byte);
                rest = after;
            }
            (b'\\', []) => panic!("half an escape"),
            (byte, _) => part.push(*byte),
        }
    }
    parts.push(part);
    parts
}
