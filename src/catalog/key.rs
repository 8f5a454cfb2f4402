//! Values of a shard key: how text and binary forms become the one canonical value that hash, range and list use.

use crate::wire::types::{Format, Oid};

/// The type of a group's shard key. Narrower types widen to these: int2 and int4 to bigint, varchar and bpchar to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    Bigint,
    Text,
    Uuid,
    Date,
    Timestamptz,
    Numeric,
    Bytea,
}

/// A value of a shard key, canonical: equal keys are equal values, ordered as PostgreSQL orders them
/// (text by the bytes of its UTF-8 form, which is collation "C").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Bigint(i64),
    Text(Box<[u8]>),
    Uuid([u8; 16]),
    /// Days since 2000-01-01; the extremes are PostgreSQL's infinities.
    Date(i32),
    /// Microseconds since 2000-01-01 UTC; the extremes are PostgreSQL's infinities.
    Timestamptz(i64),
    Numeric(Numeric),
    Bytea(Box<[u8]>),
}
/// Placeholder of the canonical numeric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Numeric(pub Vec<u8>);

/// Why a value cannot be used as a shard key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The bytes are no value of that type: PostgreSQL would refuse them too (22P02, 22007, 22008 or 22003).
    Malformed,
    /// PostgreSQL may accept it, but what it means depends on a session setting that we do not model
    /// (a date in a non-ISO style, a timestamp without an offset, text in an encoding other than UTF-8).
    Ambiguous,
    /// The declared type never addresses this key (a float against an integer key).
    Type(Oid),
}

impl KeyType {
    /// Reads a value as PostgreSQL's input function of the type would.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_text(self, _text: &[u8]) -> Result<Key, KeyError> {
        Err(KeyError::Malformed)
    }

    /// Reads a Bind parameter. `declared` is the OID given in Parse, zero when it was left to the server to infer.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_parameter(self, declared: Oid, format: Format, value: &[u8]) -> Result<Key, KeyError> {
        let _ = (declared, format, value);
        Err(KeyError::Malformed)
    }

    /// Reads an array parameter (`= ANY($1)`), each element; NULL elements are left out (they match nothing).
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_array_parameter(self, declared: Oid, format: Format, value: &[u8]) -> Result<Vec<Key>, KeyError> {
        let _ = (declared, format, value);
        Err(KeyError::Malformed)
    }
}
