//! A session's prepared statements. On a backend a statement is named by the hash of all that decides its meaning
//! (text, declared types, the session's planning context), so sessions that prepare the same share it and no table of
//! names is needed; the client's own names never leave the session.

use super::{ids::Computing, oids::Holding, sql_prepared::Execution};
use crate::{
    plan::{Plan, StatementPlan},
    pool::backend::Shape,
    sql::normalize::Slot,
    wire::{
        frame::{Body, DecodeError},
        types::Oid,
    },
};
use smallvec::SmallVec;
use std::sync::{Arc, OnceLock};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// What a client was told of its statement by Describe. It holds as long as the statement: a backend that would take
/// other parameters or give other columns, because a table has changed, must not be used with it.
#[derive(Debug, Default)]
pub(super) struct Told {
    types: OnceLock<(Box<[u8]>, u64)>,
    columns: OnceLock<u64>,
    /// Which columns' binary values hold numbers of types, where shards have different ones.
    holding: OnceLock<Holding>,
}

/// How a backend has a statement, compared with what the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Fits,
    /// The backend has not been asked.
    Unknown,
    Differs,
}

impl Told {
    /// The client is given the body of ParameterDescription.
    ///
    /// # Errors
    /// When it is malformed.
    pub(super) fn parameters(&self, body: &[u8]) -> Result<u64, DecodeError> {
        let mut types = Body::new(body);
        types.u16()?;
        let digest = xxh3_64(types.rest());
        self.types.get_or_init(|| (types.rest().into(), digest));
        Ok(digest)
    }

    /// The client is given the body of RowDescription; `None` is NoData.
    ///
    /// # Errors
    /// When it is malformed.
    pub(super) fn columns(&self, body: Option<&[u8]>) -> Result<u64, DecodeError> {
        let digest = body.map_or(Ok(NO_COLUMNS), columns)?;
        self.columns.get_or_init(|| digest);
        Ok(digest)
    }

    /// What the columns' binary values hold; none where it gives no rows.
    pub(super) fn hold(&self, holding: Holding) {
        self.holding.get_or_init(|| holding);
    }

    /// As [`Told::hold`] was told.
    pub(super) fn holding(&self) -> Option<&Holding> {
        self.holding.get()
    }

    /// Whether the client knows nothing that could be wrong.
    pub(super) fn is_nothing(&self) -> bool {
        self.types.get().is_none() && self.columns.get().is_none()
    }

    /// Whether the client knows the columns.
    pub(super) fn has_columns(&self) -> bool {
        self.columns.get().is_some()
    }

    /// The parameters' types, as in Parse.
    pub(super) fn raw_types(&self) -> Option<&[u8]> {
        self.types.get().map(|(raw, _)| &**raw)
    }

    /// Whether the statement gives no rows, which no change of a table alters.
    pub(super) fn gives_nothing(&self) -> bool {
        self.columns.get() == Some(&NO_COLUMNS)
    }

    /// What is known of a statement that has just been parsed with the types that were told.
    pub(super) fn as_parsed(&self) -> Shape {
        Shape {
            types: self.types.get().map(|(_, digest)| *digest),
            columns: self.gives_nothing().then_some(NO_COLUMNS),
        }
    }

    /// Compares a backend's.
    pub(super) fn fit(&self, shape: Shape) -> Fit {
        let types = self.types.get().map(|(_, digest)| *digest);
        let pairs = [
            (types, shape.types),
            (self.columns.get().copied(), shape.columns),
        ];
        let told = pairs.into_iter().filter(|(told, _)| told.is_some());
        let mut fit = Fit::Fits;
        for (told, there) in told {
            match there {
                None => fit = Fit::Unknown,
                there if there == told => {}
                Some(_) => return Fit::Differs,
            }
        }
        fit
    }
}

const NO_COLUMNS: u64 = 0;

/// Names, types and their modifiers: what PostgreSQL too compares before it says that a result type has changed.
fn columns(body: &[u8]) -> Result<u64, DecodeError> {
    let mut hasher = Xxh3::new();
    let mut body = Body::new(body);
    for _ in 0..body.u16()? {
        hasher.update(body.cstr()?);
        body.bytes(4 + 2)?;
        hasher.update(body.bytes(4)?);
        body.u16()?;
        hasher.update(body.bytes(4)?);
        body.u16()?;
    }
    Ok(hasher.digest().max(1))
}

/// What a plan depends on besides its statement's text and types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    /// The digest of the session's planning context.
    pub(super) context: u64,
    pub(super) epoch: u64,
    /// Counts what was learned of tables.
    pub(super) schema: u64,
    /// Counts reloads.
    pub(super) generation: u64,
}

/// A statement that the client has prepared.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) text: Box<[u8]>,
    /// What backends get instead, where RESET or DEFAULT mean a value of this session's own.
    pub(super) sent: Option<Box<[u8]>>,
    /// As they stand in the Parse message.
    pub(super) raw_types: Box<[u8]>,
    pub(super) types: SmallVec<[Oid; 4]>,
    pub(super) plan: Arc<Plan>,
    pub(super) slots: Box<[Slot]>,
    pub(super) id: u128,
    /// Whether the client gave it no name; then it has none on the backend either.
    pub(super) unnamed: bool,
    pub(super) meaning: Meaning,
    /// What the first Describe of it said.
    pub(super) told: Arc<Told>,
    /// `text` has parameters for what is computed for each execution, which the client did not write.
    pub(super) computing: Option<Arc<Computing>>,
    /// It is an EXECUTE of another, and `plan` is that one's.
    pub(super) executes: Option<Box<Execution>>,
}

impl Prepared {
    /// Its only statement; `None` for an empty text and for several (which PostgreSQL refuses).
    #[must_use]
    pub(super) fn statement(&self) -> Option<&StatementPlan> {
        match self.plan.statements.as_slice() {
            [statement] => Some(statement),
            _ => None,
        }
    }

    /// Its name on every backend.
    #[must_use]
    pub(super) fn server_name(&self) -> ServerName {
        if self.unnamed {
            ServerName::unnamed()
        } else {
            server_name(self.id)
        }
    }
}

/// A statement's name on backends: `sw_` and 32 hexadecimal digits, or nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerName {
    bytes: [u8; 35],
    length: usize,
}

impl ServerName {
    fn unnamed() -> Self {
        Self {
            bytes: [0; 35],
            length: 0,
        }
    }

    /// The name.
    #[must_use]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The name on backends of the statement with this identity.
#[must_use]
pub(super) fn server_name(id: u128) -> ServerName {
    let mut bytes = *b"sw_00000000000000000000000000000000";
    for (at, byte) in bytes[3..].iter_mut().enumerate() {
        *byte = b"0123456789abcdef"[((id >> (124 - 4 * at)) & 15) as usize];
    }
    ServerName { bytes, length: 35 }
}

/// What decides a statement's meaning, as one number. The seed is the process's own, so that nobody can choose texts
/// that meet.
#[must_use]
pub(super) fn identity(seed: u64, context: u64, text: &[u8], raw_types: &[u8]) -> u128 {
    let mut hasher = Xxh3::with_seed(seed);
    hasher.update(&context.to_le_bytes());
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text);
    hasher.update(raw_types);
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_types_and_contexts_tell_statements_apart() {
        let id = identity(1, 2, b"select $1", b"\0\0\0\x17");
        assert_eq!(id, identity(1, 2, b"select $1", b"\0\0\0\x17"));
        assert_ne!(id, identity(1, 2, b"select $1", b"\0\0\0\x14"));
        assert_ne!(id, identity(1, 3, b"select $1", b"\0\0\0\x17"));
        assert_ne!(identity(1, 2, b"ab", b"c"), identity(1, 2, b"a", b"bc"));
    }

    #[test]
    fn names_are_sw_and_the_identity() {
        assert_eq!(
            server_name(0xab).as_bytes(),
            b"sw_000000000000000000000000000000ab"
        );
    }
}
