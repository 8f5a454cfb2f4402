//! MD5 authentication: `"md5" + hex(md5(hex(md5(password + user)) + salt))`. Chapter 54.2.1 of the manual.
//! Weak, kept for servers and clients that know nothing better.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The hexadecimal digest of password and user: all that is needed to log in. Equality takes constant time.
#[derive(Clone, Copy)]
pub struct Hash([u8; 32]);

impl PartialEq for Hash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Hash {}

impl Hash {
    /// Of a password and the user whose it is.
    #[must_use]
    pub fn of(user: &[u8], password: &[u8]) -> Self {
        Self(digest(&[password, user]))
    }

    /// Reads PostgreSQL's stored form, `md5` and 32 lowercase hexadecimal digits.
    #[must_use]
    pub fn parse(stored: &str) -> Option<Self> {
        let digits: [u8; 32] = stored.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        digits
            .iter()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
            .then_some(Self(digits))
    }

    /// What a client answers to a salt.
    #[must_use]
    pub fn response(&self, salt: [u8; 4]) -> Vec<u8> {
        [&b"md5"[..], &digest(&[&self.0, &salt])].concat()
    }

    /// Whether `given` is that answer, in constant time.
    #[must_use]
    pub fn answers(&self, salt: [u8; 4], given: &[u8]) -> bool {
        self.response(salt).ct_eq(given).into()
    }

    /// The stored form. A secret: it answers as the password does.
    #[must_use]
    pub fn secret(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("md5{}", String::from_utf8_lossy(&self.0)))
    }

    /// The digits.
    #[cfg(test)]
    pub(super) fn text(&self) -> [u8; 32] {
        self.0
    }
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hasher = Md5::new();
    for part in parts {
        hasher.update(part);
    }
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(hasher.finalize()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_postgresqls_stored_form_is_read_as_a_hash() {
        assert!(Hash::parse("md5d41d8cd98f00b204e9800998ecf8427e") == Some(Hash::of(b"", b"")));
        for text in [
            "md5",
            "md5D41D8CD98F00B204E9800998ECF8427E",
            "d41d8cd98f00b204e9800998ecf8427e",
        ] {
            assert!(Hash::parse(text).is_none(), "{text}");
        }
    }
}
