//! The channels that a session listens on, as PostgreSQL follows them: LISTEN and UNLISTEN take effect at commit, in
//! order, and what a rollback or ROLLBACK TO undoes never was (manual, LISTEN and UNLISTEN).
//!
//! Savepoints are not kept here a second time: an action remembers how many marks
//! ([`super::parameters::Parameters::depth`]) stood when it was made.

use std::collections::BTreeSet;

/// What one session listens on, and what the running transaction will change.
#[derive(Debug, Default)]
pub struct Channels {
    committed: BTreeSet<String>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    /// Savepoints, and the transaction itself, that stood when it was made.
    depth: usize,
    action: Action,
}

/// A LISTEN or UNLISTEN that the server has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Listen(String),
    Unlisten(String),
    /// UNLISTEN *, DISCARD ALL.
    UnlistenAll,
}

impl Channels {
    /// A statement was confirmed at this depth of savepoints.
    pub fn act(&mut self, action: Action, depth: usize) {
        self.pending.push(Pending { depth, action });
    }

    /// ROLLBACK TO: so many marks stand now, the savepoint's own included.
    pub fn rolled_back_to(&mut self, depth: usize) {
        self.pending.retain(|pending| pending.depth < depth);
    }

    /// RELEASE: what was done since the savepoint belongs to what encloses it.
    pub fn released_to(&mut self, depth: usize) {
        for pending in &mut self.pending {
            pending.depth = pending.depth.min(depth);
        }
    }

    /// The transaction has ended.
    pub fn end(&mut self, committed: bool) {
        for Pending { action, .. } in std::mem::take(&mut self.pending) {
            match action {
                _ if !committed => {}
                Action::Listen(channel) => drop(self.committed.insert(channel)),
                Action::Unlisten(channel) => drop(self.committed.remove(&channel)),
                Action::UnlistenAll => self.committed.clear(),
            }
        }
    }

    /// Whether notifications of this channel are the client's.
    #[must_use]
    pub fn contains(&self, channel: &str) -> bool {
        self.committed.contains(channel)
    }

    /// What is listened on now.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.committed.iter().map(String::as_str)
    }

    /// Whether the running transaction will change something.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether nothing is listened on and nothing will be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.pending.is_empty()
    }
}

/// Appends `LISTEN` or `UNLISTEN` of a channel, whatever its name holds, and a semicolon.
pub fn put_command(sql: &mut String, verb: &str, channel: &str) {
    sql.push_str(verb);
    sql.push_str(" \"");
    for c in channel.chars() {
        if c == '"' {
            sql.push('"');
        }
        sql.push(c);
    }
    sql.push_str("\";");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(channels: &mut Channels, name: &str, depth: usize) {
        channels.act(Action::Listen(name.to_owned()), depth);
    }

    fn names(channels: &Channels) -> Vec<&str> {
        channels.iter().collect()
    }

    #[test]
    fn actions_take_effect_at_commit_in_their_order() {
        let mut channels = Channels::default();
        listen(&mut channels, "a", 0);
        assert!(!channels.contains("a") && !channels.is_empty());
        channels.end(true);
        channels.act(Action::UnlistenAll, 1);
        listen(&mut channels, "b", 1);
        listen(&mut channels, "c", 1);
        channels.act(Action::Unlisten("c".to_owned()), 1);
        assert_eq!(names(&channels), ["a"]);
        channels.end(true);
        assert_eq!(names(&channels), ["b"]);
    }

    #[test]
    fn what_is_rolled_back_never_was() {
        let mut channels = Channels::default();
        listen(&mut channels, "kept", 1);
        listen(&mut channels, "undone", 2);
        channels.rolled_back_to(2);
        listen(&mut channels, "again", 2);
        channels.end(true);
        assert_eq!(names(&channels), ["again", "kept"]);
        channels.act(Action::UnlistenAll, 1);
        channels.end(false);
        assert_eq!(names(&channels), ["again", "kept"]);
    }

    #[test]
    fn a_released_savepoint_is_undone_with_what_encloses_it() {
        let mut channels = Channels::default();
        listen(&mut channels, "inner", 3);
        channels.released_to(2);
        channels.rolled_back_to(2);
        channels.end(true);
        assert!(channels.is_empty());
    }
}
