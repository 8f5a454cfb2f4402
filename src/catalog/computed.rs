//! Columns whose default is computed before a row has its shard: by a sequence that all shards share, or at random. Pure.
//!
//! What must stay true: what is computed here is what the column's default gives on one PostgreSQL, to anybody who may
//! insert there.

use super::snapshot::TableName;

/// A column of a table and where its values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computed {
    pub column: String,
    pub by: Source,
}

/// What gives a column's values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A sequence, the home shard's.
    Sequence(Sequence),
    /// `shardway.next_id()`.
    Id,
    Uuid(UuidVersion),
}

/// A sequence, and as whom it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sequence {
    pub name: Sought,
    pub drawn_by: DrawnBy,
}

/// How a sequence is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sought {
    Known(TableName),
    /// As a client wrote it, by these schemas.
    Written {
        name: String,
        path: Vec<String>,
    },
}

/// Whose privileges count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DrawnBy {
    /// The session's role, which needs USAGE.
    Session,
    /// An identity column's numbers need no privilege: they are drawn by the sequence's owner.
    Owner(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UuidVersion {
    Random,
    Ordered,
}

impl Source {
    /// The type of its values, as SQL names it anywhere.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Sequence(_) | Self::Id => "pg_catalog.int8",
            Self::Uuid(_) => "pg_catalog.uuid",
        }
    }
}

/// A UUID of random bytes, which knows its version; the ordered kind begins with the milliseconds since 1970.
#[must_use]
pub fn uuid(version: UuidVersion, mut bytes: [u8; 16], since_1970: u64) -> String {
    let number = match version {
        UuidVersion::Random => 4,
        UuidVersion::Ordered => {
            bytes[..6].copy_from_slice(&since_1970.to_be_bytes()[2..]);
            7
        }
    };
    bytes[6] = bytes[6] & 0x0f | number << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for half in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(half)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_say_their_version_and_time() {
        let random = uuid(UuidVersion::Random, [0xff; 16], 0);
        assert_eq!(random, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        // The example of RFC 9562, A.6.
        let bytes = [
            0, 0, 0, 0, 0, 0, 0x0c, 0xc3, 0x18, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f,
        ];
        let ordered = uuid(UuidVersion::Ordered, bytes, 0x017f_22e2_79b0);
        assert_eq!(ordered, "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    }
}
