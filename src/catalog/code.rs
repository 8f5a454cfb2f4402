//! What a database's own functions, triggers and views may leave in a session, and whether they ask for what it drew from
//! sequences: learned from its server, by their texts. Pure.
//!
//! What must stay true: a function that is not known counts as one that may leave something and asks.

use crate::sql::code::{asks_for_numbers, leaves_something, words};
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
        /// Functions, relations and domains that may ask for `currval` or `lastval`.
        asking: HashSet<String>,
    },
}

impl Code {
    /// Judges every piece: it may leave something if its text may, or if it names a piece that may; likewise for asking.
    #[must_use]
    pub fn learned(pieces: &[Piece]) -> Self {
        let users = users(pieces);
        let leaves = reaching(pieces, &users, Piece::leaves_by_itself);
        let asks = reaching(pieces, &users, Piece::asks_by_itself);
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
            asking: names(&|at, _| asks[at]),
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

    /// Whether a statement with this text may ask, in code of the database or by itself, for what its session drew last.
    #[must_use]
    pub fn asks_in(&self, text: &str) -> bool {
        let asking = match self {
            Self::Known { asking, .. } => Some(asking),
            Self::Unknown => None,
        };
        asks_for_numbers(text)
            || asking.is_some_and(|asking| {
                !asking.is_empty() && words(text).any(|word| asking.contains(&word))
            })
    }
}

/// The names of pieces that do something by themselves, or name one that does, however far.
pub fn names_reaching(pieces: &[Piece], by_itself: impl Fn(&Piece) -> bool) -> HashSet<String> {
    let reaches = reaching(pieces, &users(pieces), by_itself);
    let reaching = pieces.iter().zip(reaches).filter(|(_, reaches)| *reaches);
    reaching.map(|(piece, _)| piece.name.clone()).collect()
}

/// The pieces in whose text a word stands.
fn users(pieces: &[Piece]) -> HashMap<String, Vec<usize>> {
    let mut named: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, piece) in pieces.iter().enumerate() {
        for word in words(&piece.text) {
            let users = named.entry(word).or_default();
            if users.last() != Some(&at) {
                users.push(at);
            }
        }
    }
    named
}

fn reaching(
    pieces: &[Piece],
    named: &HashMap<String, Vec<usize>>,
    by_itself: impl Fn(&Piece) -> bool,
) -> Vec<bool> {
    let mut reaches: Vec<bool> = pieces.iter().map(by_itself).collect();
    let mut reached: Vec<usize> = (0..pieces.len()).filter(|at| reaches[*at]).collect();
    while let Some(at) = reached.pop() {
        for user in named.get(&pieces[at].name).into_iter().flatten() {
            if !std::mem::replace(&mut reaches[*user], true) {
                reached.push(*user);
            }
        }
    }
    reaches
}

impl Piece {
    /// Code that runs what it is given may ask as well as leave something.
    fn asks_by_itself(&self) -> bool {
        asks_for_numbers(&self.text) || self.leaves_by_itself()
    }

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

    #[test]
    fn whoever_names_code_that_asks_for_a_number_asks_too() {
        use PieceKind::{Function, Relation};
        let code = Code::learned(&[
            piece(Function, "last", "select pg_catalog.LASTVAL()"),
            piece(Function, "calls", "begin return last(); end"),
            piece(Relation, "t", "currval('s'::regclass)"),
            piece(Relation, "v", "SELECT n FROM t"),
            piece(Relation, "u", "nextval('s'::regclass)"),
            piece(Function, "runs", "begin execute text; end"),
        ]);
        for text in [
            "select calls()",
            "insert into app.t default values",
            "select * from v",
            "select runs('select lastval()')",
            "do $$ begin perform currval('s'); end $$",
        ] {
            assert!(code.asks_in(text), "{text}");
        }
        assert!(!code.asks_in("insert into u default values"));
        assert!(Code::Unknown.asks_in("copy (select lastval()) to stdout"));
    }
}
