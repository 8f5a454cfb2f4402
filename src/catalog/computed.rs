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
    /// The number that the session drew last: of this sequence, or of any.
    Drawn(Option<Sought>),
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
            Self::Sequence(_) | Self::Id | Self::Drawn(_) => "pg_catalog.int8",
            Self::Uuid(_) => "pg_catalog.uuid",
        }
    }
}

impl Sought {
    /// Whether both are the same sequence: a name without a schema is that of the first schema which has one of ours.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Known(one), Self::Known(other)) => one == other,
            (Self::Known(known), Self::Written { name, path })
            | (Self::Written { name, path }, Self::Known(known)) => {
                let schema = path.contains(&known.schema).then_some(&known.schema);
                match parts(name).as_slice() {
                    [name] => schema.is_some() && *name == known.name,
                    [schema, name] => *schema == known.schema && *name == known.name,
                    _ => false,
                }
            }
            (one, other) => one == other,
        }
    }
}

/// The parts of a name as PostgreSQL reads it from text; none: it is not read.
fn parts(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = name;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let Some((inside, behind)) = quoted.split_once('"') else {
                return Vec::new();
            };
            found.push(inside.to_owned());
            rest = behind;
        } else {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            let length = rest.bytes().take_while(|byte| plain(*byte)).count();
            found.push(rest[..length].to_ascii_lowercase());
            rest = &rest[length..];
        }
        match rest.strip_prefix('.') {
            Some(behind) => rest = behind,
            None if rest.is_empty() => return found,
            None => return Vec::new(),
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
    fn a_sequence_is_known_by_any_of_its_names() {
        let known = Sought::Known(TableName {
            schema: "public".to_owned(),
            name: "t_id_seq".to_owned(),
        });
        let is = |name: &str| {
            known.is(&Sought::Written {
                name: name.to_owned(),
                path: vec!["postgres".to_owned(), "public".to_owned()],
            })
        };
        for name in [
            "t_id_seq",
            "T_ID_SEQ",
            "public.t_id_seq",
            "\"t_id_seq\"",
            "public.\"t_id_seq\"",
        ] {
            assert!(is(name), "{name}");
        }
        for name in [
            "t_id",
            "other.t_id_seq",
            "\"T_ID_SEQ\"",
            "a.public.t_id_seq",
            "t_id_seq ",
            "\"t_id",
        ] {
            assert!(!is(name), "{name}");
        }
    }

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
