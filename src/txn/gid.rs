//! The names of distributed transactions, and of their parts as PostgreSQL knows prepared transactions.
//!
//! `shardway:1:<installation>:<incarnation>:<number>:<deciding shard>` names a transaction; with `:<shard>` behind it,
//! the part that is prepared on that shard. What must stay true: a name says which decision counts, so that it is either
//! read exactly as it was made or not read at all; no two transactions have one name; a name fits PostgreSQL's 199 bytes.

use std::fmt;

/// What every name begins with; the number is that of the form.
pub const PREFIX: &str = "shardway:1:";
/// The longest name of a prepared transaction: `GIDSIZE` of PostgreSQL's `access/xact.h`, without its end.
pub const LONGEST: usize = 199;

/// The name of a distributed transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId {
    /// Of the logical database's schema on its servers.
    pub installation: u64,
    /// Of the process that runs it.
    pub incarnation: u64,
    /// Within that process.
    pub number: u64,
    /// The shard whose commit decides.
    pub decider: String,
}

/// The name of one shard's part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gid {
    pub transaction: TransactionId,
    /// The shard that prepares it.
    pub participant: String,
}

impl TransactionId {
    /// The part of a shard.
    #[must_use]
    pub fn part(&self, participant: &str) -> Gid {
        Gid {
            transaction: self.clone(),
            participant: participant.to_owned(),
        }
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}{:016x}:{:016x}:{:x}:{}",
            self.installation, self.incarnation, self.number, self.decider
        )
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.transaction, self.participant)
    }
}

/// What the names of one installation begin with.
#[must_use]
pub fn prefix_of(installation: u64) -> String {
    format!("{PREFIX}{installation:016x}:")
}

/// Reads the name of a prepared transaction; `None`: none of ours.
#[must_use]
pub fn parse(text: &str) -> Option<Gid> {
    let (transaction, participant) = text.rsplit_once(':')?;
    let mut parts = transaction.strip_prefix(PREFIX)?.split(':');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (installation, incarnation, number) = (number()?, number()?, number()?);
    let decider = parts.next()?;
    let gid = TransactionId {
        installation,
        incarnation,
        number,
        decider: decider.to_owned(),
    }
    .part(participant);
    // Numbers can be written in many ways, of which we write one.
    let exact = parts.next().is_none() && fits(decider) && fits(participant);
    (exact && gid.to_string() == text).then_some(gid)
}

/// Whether a shard's name can stand in these names: the configuration asks for it.
#[must_use]
pub fn fits(shard: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !shard.is_empty() && shard.len() <= 63 && shard.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(decider: &str) -> TransactionId {
        TransactionId {
            installation: 0xfe,
            incarnation: u64::MAX,
            number: 0x1f,
            decider: decider.to_owned(),
        }
    }

    #[test]
    fn names_say_all_that_recovery_needs() {
        let gid = id("s0").part("s1");
        let text = "shardway:1:00000000000000fe:ffffffffffffffff:1f:s0:s1";
        assert_eq!(gid.to_string(), text);
        assert_eq!(parse(text), Some(gid));
        assert!(text.starts_with(&prefix_of(0xfe)));
    }

    #[test]
    fn the_longest_names_fit_a_server() {
        let longest = "a".repeat(63);
        let id = TransactionId {
            number: u64::MAX,
            ..id(&longest)
        };
        assert!(fits(&longest) && !fits(&"a".repeat(64)));
        assert!(id.part(&longest).to_string().len() <= LONGEST);
    }

    #[test]
    fn what_we_did_not_make_is_not_read() {
        let strangers = [
            "",
            "shardway:1:",
            "other:1:00000000000000fe:ffffffffffffffff:1f:s0:s1",
            "shardway:2:00000000000000fe:ffffffffffffffff:1f:s0:s1",
            "shardway:1:00000000000000fe:ffffffffffffffff:1f:s0",
            "shardway:1:00000000000000fe:ffffffffffffffff:1f:s0:s1:s2",
            "shardway:1:00000000000000fe:ffffffffffffffff:1f:s0:",
            "shardway:1:00000000000000fe:ffffffffffffffff:1f::s1",
            "shardway:1:00000000000000FE:ffffffffffffffff:1f:s0:s1",
            "shardway:1:fe:ffffffffffffffff:1f:s0:s1",
            "shardway:1:00000000000000fe:ffffffffffffffff:01f:s0:s1",
            "shardway:1:00000000000000fe:ffffffffffffffff:+1f:s0:s1",
            "shardway:1:00000000000000fe:ffffffffffffffff:1f:s'0:s1",
            "shardway:1:00000000000000fe:ffffffffffffffff:1f:s0:s 1",
        ];
        for text in strangers {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_made_is_read_back(
            numbers in proptest::array::uniform3(proptest::num::u64::ANY),
            decider in "[A-Za-z0-9_.-]{1,63}",
            participant in "[A-Za-z0-9_.-]{1,63}",
        ) {
            let [installation, incarnation, number] = numbers;
            let gid = TransactionId { installation, incarnation, number, decider }.part(&participant);
            let text = gid.to_string();
            proptest::prop_assert!(text.len() <= LONGEST);
            proptest::prop_assert_eq!(parse(&text), Some(gid));
        }

        #[test]
        fn what_is_read_is_written_alike(text in "(shardway:1:)?[0-9a-f]{0,17}:[0-9a-fA-F]{0,17}:[0-9a-f+]{0,3}:[a-z:]{0,4}") {
            if let Some(gid) = parse(&text) {
                proptest::prop_assert_eq!(gid.to_string(), text);
            }
        }
    }
}
