//! Statements about whole databases, which PostgreSQL refuses while anybody is connected to them: our idle backends leave.

use super::session::Session;
use crate::clock::Duration;

/// PostgreSQL waits five seconds for others to leave (`CountOtherDBBackends`): what sessions that just ended held comes
/// back within that time and must not stay.
const VACANCY: Duration = Duration::from_secs(6);

impl Session {
    /// Before a statement about a whole database: closes what idles in any.
    pub(super) fn vacate_for(&self, text: &[u8]) {
        if !is_about_a_database(text) {
            return;
        }
        for database in self.shared.databases.load().values() {
            for view in database.pools() {
                view.pool.vacate(VACANCY);
            }
        }
    }
}

/// DROP, ALTER and CREATE DATABASE (whose template is read). One that is hidden behind a comment is not seen, and meets
/// PostgreSQL's refusal.
fn is_about_a_database(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    if !matches!(text.first(), Some(b'd' | b'D' | b'a' | b'A' | b'c' | b'C')) {
        return false;
    }
    let mut words = text
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let verb = words.next().unwrap_or_default();
    let is_verb = ["drop", "alter", "create"]
        .iter()
        .any(|known| verb.eq_ignore_ascii_case(known.as_bytes()));
    is_verb
        && words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case(b"database"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_about_databases_are_told_from_others() {
        for text in [
            "DROP DATABASE a",
            "  drop\n database if exists a",
            "Create Database b template a",
        ] {
            assert!(is_about_a_database(text.as_bytes()), "{text}");
        }
        for text in ["", "drop table database", "select 1", "drop", "database"] {
            assert!(!is_about_a_database(text.as_bytes()), "{text}");
        }
    }
}
