//! What a database's own functions, triggers and views may leave in a session: learned from its server, by their texts.
//! Pure.
//!
//! What must stay true: a function that is not known counts as one that may leave something.

use crate::sql::code::{leaves_something, words};
use std::collections::{HashMap, HashSet};

/// A piece of code that a database holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub kind: PieceKind,
    /// Of the function or relation, in lower case and without its schema.
    pub name: String,
    /// Its body; of a relation everything that runs when it is read or written.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Function,
    /// In a language whose words are not SQL's: any mention of what could leave something counts.
    ForeignFunction,
    Relation,
}

/// What is known of a database's own code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Code {
    /// No server has been asked.
    #[default]
    Unknown,
    Known {
        /// All functions.
        functions: HashSet<String>,
        /// Functions that may leave something in the session.
        leaving: HashSet<String>,
        /// Relations that run such functions when they are read or written.
        relations: HashSet<String>,
    },
}

impl Code {
    /// Judges every piece: it may leave something if its text may, or if it names a piece that may.
    #[must_use]
    pub fn learned(pieces: &[Piece]) -> Self {
        let mut named: HashMap<String, Vec<usize>> = HashMap::new();
        let mut reached: Vec<usize> = Vec::new();
        let mut leaves = vec![false; pieces.len()];
        for (at, piece) in pieces.iter().enumerate() {
            leaves[at] = piece.leaves_by_itself();
            if leaves[at] {
                reached.push(at);
            }
            for word in words(&piece.text) {
                let users = named.entry(word).or_default();
                if users.last() != Some(&at) {
                    users.push(at);
                }
            }
        }
        while let Some(at) = reached.pop() {
            for user in named.get(&pieces[at].name).into_iter().flatten() {
                if !std::mem::replace(&mut leaves[*user], true) {
                    reached.push(*user);
                }
            }
        }
        let names = |wanted: &dyn Fn(usize, bool) -> bool| {
            let chosen = pieces
                .iter()
                .enumerate()
                .filter(|(at, piece)| wanted(*at, piece.kind == PieceKind::Relation));
            chosen.map(|(_, piece)| piece.name.clone()).collect()
        };
        Self::Known {
            functions: names(&|_, relation| !relation),
            leaving: names(&|at, relation| !relation && leaves[at]),
            relations: names(&|at, relation| relation && leaves[at]),
        }
    }

    /// Whether a function that is not PostgreSQL's own may leave something in the session. `builtin`: PostgreSQL has
    /// one of that name, which is the one that is called if the database has none.
    #[must_use]
    pub fn function_leaves(&self, name: &str, builtin: bool) -> bool {
        match self {
            Self::Unknown => true,
            Self::Known {
                functions, leaving, ..
            } => leaving.contains(name) || !(builtin || functions.contains(name)),
        }
    }

    /// Whether the function has been looked at and may leave something in the session.
    #[must_use]
    pub fn is_known_to_leave(&self, name: &str) -> bool {
        matches!(self, Self::Known { leaving, .. } if leaving.contains(name))
    }

    /// Whether a statement with this text reads or writes a relation, or calls a function, that may leave something.
    #[must_use]
    pub fn is_named_in(&self, text: &str) -> bool {
        let Self::Known {
            leaving, relations, ..
        } = self
        else {
            return false;
        };
        let any = !(leaving.is_empty() && relations.is_empty());
        any && words(text).any(|word| relations.contains(&word) || leaving.contains(&word))
    }
}

impl Piece {
    fn leaves_by_itself(&self) -> bool {
        match self.kind {
            PieceKind::Function | PieceKind::Relation => leaves_something(&self.text),
            PieceKind::ForeignFunction => words(&self.text).any(|word| {
                matches!(
                    word.as_str(),
                    "set" | "reset" | "set_config" | "temp" | "temporary" | "listen" | "prepare"
                ) || word.contains("advisory")
                    || word.contains("execute")
                    || word.starts_with("spi_")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(kind: PieceKind, name: &str, text: &str) -> Piece {
        Piece {
            kind,
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn whoever_names_code_that_leaves_something_leaves_it_too() {
        use PieceKind::{ForeignFunction, Function, Relation};
        let code = Code::learned(&[
            piece(Function, "sets", "select set_config('a.b', 'c', false)"),
            piece(Function, "calls", "begin perform app.sets(); end"),
            piece(Function, "calls_calls", "select calls()"),
            piece(Function, "harmless", "select 1"),
            piece(ForeignFunction, "python", "plpy.execute(x)"),
            piece(
                Function,
                "trigger_of_t",
                "begin perform calls(); return new; end",
            ),
            piece(
                Relation,
                "t",
                "CREATE TRIGGER x EXECUTE FUNCTION trigger_of_t()",
            ),
            piece(Relation, "v", "SELECT * FROM t"),
            piece(Relation, "u", "SELECT 1"),
            piece(Function, "writes", "insert into t values (1)"),
        ]);
        for name in [
            "sets",
            "calls",
            "calls_calls",
            "python",
            "trigger_of_t",
            "writes",
            "new",
        ] {
            assert!(code.function_leaves(name, false), "{name}");
        }
        assert!(!code.function_leaves("harmless", false));
        assert!(!code.function_leaves("lower", true));
        assert!(code.is_named_in("insert into app.T values (1)"));
        assert!(code.is_named_in("select * from v"));
        assert!(!code.is_named_in("select * from u where harmless() = tt"));
        assert!(Code::Unknown.function_leaves("anything", false));
    }
}
