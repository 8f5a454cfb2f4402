//! What a database's shared listeners decide: which channels must be listened on, where they are in force, whose
//! notification it is. Without IO; `M` is where a session's mail goes, `W` what is dropped when what a session waits for
//! does not come any more.
//!
//! ```text
//!   wanted by a session ──told──▶ LISTEN on its way ──acknowledged, on this line──▶ in force on this line
//!          ▲                                                                             │
//!          └───────────────────────────── the line is lost ──────────────────────────────┘
//! ```
//! What must stay true: a channel is in force only while every line has acknowledged it on the connection that it has
//! now; a claimed backend is its session's until the claim is given back, and nobody else's; nobody waits for a line that
//! is not open.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

/// Names one session's place here.
pub type MemberId = u64;

/// Channels, who wants them, and what each line has been told.
#[derive(Debug)]
pub struct State<M, W> {
    channels: HashMap<Arc<str>, Vec<MemberId>, foldhash::fast::RandomState>,
    members: HashMap<MemberId, Member<M>, foldhash::fast::RandomState>,
    next: MemberId,
    lines: Vec<Line<W>>,
    standing: Standing,
    /// Sessions by the line and backend that they may be notifying on.
    claims: HashMap<(usize, u32), u32, foldhash::fast::RandomState>,
}

#[derive(Debug)]
struct Member<M> {
    mail: M,
    channels: HashSet<Arc<str>, foldhash::fast::RandomState>,
}

/// One shard's connection.
#[derive(Debug)]
struct Line<W> {
    phase: Phase,
    /// Sessions that wait until all that was notified before has arrived.
    waiting: Vec<W>,
    /// Channels that gained their first session or lost their last one since they were looked at.
    changed: Vec<Arc<str>>,
    told: HashSet<Arc<str>, foldhash::fast::RandomState>,
    in_force: HashSet<Arc<str>, foldhash::fast::RandomState>,
    /// Sessions that may have missed something since the line was lost.
    missed: Vec<MemberId>,
    failures: u64,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            phase: Phase::Resting,
            waiting: Vec::new(),
            changed: Vec::new(),
            told: HashSet::default(),
            in_force: HashSet::default(),
            missed: Vec::new(),
            failures: 0,
        }
    }
}

/// Whether these are the listeners of the settings in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    InForce,
    /// Others have taken their place: whoever still comes is told so.
    Replaced,
}

/// How far a line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing drives it.
    #[default]
    Resting,
    /// It is being opened, or waits to be.
    Opening,
    Open,
}

/// What a line must be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub listen: Vec<Arc<str>>,
    pub unlisten: Vec<Arc<str>>,
}

impl<M, W> State<M, W> {
    /// Nobody listens; so many lines.
    #[must_use]
    pub fn new(lines: usize) -> Self {
        Self {
            channels: HashMap::default(),
            members: HashMap::default(),
            next: 0,
            lines: (0..lines).map(|_| Line::default()).collect(),
            standing: Standing::InForce,
            claims: HashMap::default(),
        }
    }

    // ---- sessions ----

    /// A session that wants nothing yet.
    pub fn join(&mut self, mail: M) -> MemberId {
        self.next += 1;
        let channels = HashSet::default();
        self.members.insert(self.next, Member { mail, channels });
        self.next
    }

    /// A session is gone.
    pub fn leave(&mut self, id: MemberId) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        for channel in member.channels {
            self.withdraw(id, &channel);
        }
    }

    /// A session wants this channel's notifications.
    pub fn want(&mut self, id: MemberId, channel: &str) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let channel: Arc<str> = match self.channels.get_key_value(channel) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(channel),
        };
        if !member.channels.insert(Arc::clone(&channel)) {
            return;
        }
        match self.channels.entry(channel) {
            Entry::Occupied(mut sessions) => sessions.get_mut().push(id),
            Entry::Vacant(place) => {
                for line in &mut self.lines {
                    line.changed.push(Arc::clone(place.key()));
                }
                place.insert(vec![id]);
            }
        }
    }

    /// A session wants only the channels that pass from now on.
    pub fn keep_only(&mut self, id: MemberId, keep: impl Fn(&str) -> bool) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let gone: Vec<_> = member
            .channels
            .extract_if(|channel| !keep(channel))
            .collect();
        for channel in gone {
            self.withdraw(id, &channel);
        }
    }

    fn withdraw(&mut self, id: MemberId, channel: &Arc<str>) {
        let Entry::Occupied(mut sessions) = self.channels.entry(Arc::clone(channel)) else {
            return;
        };
        sessions.get_mut().retain(|session| *session != id);
        if sessions.get().is_empty() {
            sessions.remove();
            for line in &mut self.lines {
                line.changed.push(Arc::clone(channel));
            }
        }
    }

    /// Whether anything is wanted.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Channels that are wanted, and sessions that want some.
    #[must_use]
    pub fn figures(&self) -> (usize, usize) {
        (self.channels.len(), self.members.len())
    }

    /// Whether others have taken the place of these listeners.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Others take the place of these listeners: every session's mail.
    pub fn replaced(&mut self) -> impl Iterator<Item = &M> {
        self.standing = Standing::Replaced;
        self.members.values().map(|member| &member.mail)
    }

    // ---- lines ----

    /// The lines that rest: each is to be driven from now on.
    pub fn wake(&mut self) -> Vec<usize> {
        let mut woken = Vec::new();
        for (at, line) in self.lines.iter_mut().enumerate() {
            if line.phase == Phase::Resting {
                line.phase = Phase::Opening;
                woken.push(at);
            }
        }
        woken
    }

    /// Nothing is wanted: the line may rest. False when something is.
    pub fn rest(&mut self, line: usize) -> bool {
        let rests = self.channels.is_empty();
        if rests {
            self.lines[line] = Line {
                failures: self.lines[line].failures,
                ..Line::default()
            };
        }
        rests
    }

    /// How far a line is.
    #[must_use]
    pub fn phase(&self, line: usize) -> Phase {
        self.lines[line].phase
    }

    /// Whatever drives the line is gone, and will not say so in another way.
    pub fn ended(&mut self, line: usize) {
        self.lost(line);
        self.lines[line].phase = Phase::Resting;
    }

    /// A session waits for what was notified on an open line until now; false: there is nothing to wait for.
    pub fn wait(&mut self, line: usize, waiter: W) -> bool {
        let line = &mut self.lines[line];
        let open = line.phase == Phase::Open;
        if open {
            line.waiting.push(waiter);
        }
        open
    }

    /// Those who wait, to be told when what is asked of the server now is answered.
    pub fn take_waiting(&mut self, line: usize) -> Vec<W> {
        std::mem::take(&mut self.lines[line].waiting)
    }

    /// A line has a connection, which has been told nothing.
    pub fn opened(&mut self, line: usize) {
        let line = &mut self.lines[line];
        line.phase = Phase::Open;
        line.changed = self.channels.keys().cloned().collect();
    }

    /// A connection could not be made.
    pub fn failed(&mut self, line: usize) {
        self.lines[line].failures += 1;
    }

    /// How often a line has failed.
    #[must_use]
    pub fn failures(&self, line: usize) -> u64 {
        self.lines[line].failures
    }

    /// A line's connection is gone: the sessions that may miss something from now on.
    pub fn lost(&mut self, line: usize) -> Vec<&M> {
        let state = &mut self.lines[line];
        state.phase = Phase::Opening;
        state.waiting.clear();
        state.told.clear();
        let in_force = std::mem::take(&mut state.in_force);
        // One that never listened is no better than none; after another a new one is waited for.
        state.failures += u64::from(in_force.is_empty());
        let touched = in_force
            .iter()
            .filter_map(|channel| self.channels.get(channel))
            .flatten();
        let missed: HashSet<MemberId> = touched.copied().collect();
        let told = missed.iter().filter_map(|id| self.members.get(id));
        let mail = told.map(|member| &member.mail).collect();
        let state = &mut self.lines[line];
        let new: Vec<_> = missed
            .into_iter()
            .filter(|id| !state.missed.contains(id))
            .collect();
        state.missed.extend(new);
        mail
    }

    /// What an open line must be told now.
    pub fn changes(&mut self, line: usize) -> Changes {
        let line = &mut self.lines[line];
        let mut changes = Changes::default();
        for channel in std::mem::take(&mut line.changed) {
            if self.channels.contains_key(&channel) {
                if line.told.insert(Arc::clone(&channel)) {
                    changes.listen.push(channel);
                }
            } else if line.told.remove(&channel) {
                line.in_force.remove(&channel);
                changes.unlisten.push(channel);
            }
        }
        changes
    }

    /// The server has confirmed a line's LISTEN on these channels: those who are to be told that the line is back.
    pub fn acknowledged(&mut self, line: usize, channels: Vec<Arc<str>>) -> Vec<&M> {
        let state = &mut self.lines[line];
        for channel in channels {
            // Else it was given up meanwhile: UNLISTEN is on its way.
            if state.told.contains(&channel) {
                state.in_force.insert(channel);
            }
        }
        let missed = std::mem::take(&mut state.missed);
        missed
            .iter()
            .filter_map(|id| self.members.get(id))
            .map(|member| &member.mail)
            .collect()
    }

    /// The first line on which a channel is not in force.
    #[must_use]
    pub fn missing(&self, channel: &str) -> Option<usize> {
        self.lines
            .iter()
            .position(|line| !line.in_force.contains(channel))
    }

    // ---- notifications ----

    /// Who gets a notification: the channel's one name, and each session's mail.
    pub fn listeners(&self, channel: &str) -> Option<(&Arc<str>, impl Iterator<Item = &M>)> {
        let (name, sessions) = self.channels.get_key_value(channel)?;
        let mail = sessions
            .iter()
            .filter_map(|id| self.members.get(id))
            .map(|member| &member.mail);
        Some((name, mail))
    }

    /// Notifications of this backend are this session's until it is unclaimed.
    pub fn claim(&mut self, line: usize, backend: u32, session: u32) {
        self.claims.insert((line, backend), session);
    }

    /// A backend is nobody's.
    pub fn unclaim(&mut self, line: usize, backend: u32) {
        self.claims.remove(&(line, backend));
    }

    /// The number by which clients know who has notified: a session's, when its backend is claimed; else the backend's.
    #[must_use]
    pub fn notifier(&self, line: usize, backend: u32) -> u32 {
        self.claims
            .get(&(line, backend))
            .copied()
            .unwrap_or(backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(state: &mut State<&'static str, ()>, line: usize) -> (Vec<String>, Vec<String>) {
        let names = |all: Vec<Arc<str>>| {
            let mut names: Vec<String> = all.iter().map(ToString::to_string).collect();
            names.sort();
            names
        };
        let Changes { listen, unlisten } = state.changes(line);
        (names(listen), names(unlisten))
    }

    fn acknowledge(
        state: &mut State<&'static str, ()>,
        line: usize,
        channel: &str,
    ) -> Vec<&'static str> {
        let told = state.acknowledged(line, vec![Arc::from(channel)]);
        told.into_iter().copied().collect()
    }

    #[test]
    fn a_channel_is_in_force_when_every_line_has_confirmed_it() {
        let mut state: State<&'static str, ()> = State::new(2);
        let id = state.join("one");
        state.want(id, "a");
        assert_eq!(state.wake(), [0, 1]);
        for line in 0..2 {
            state.opened(line);
            assert_eq!(changes(&mut state, line).0, ["a"]);
            assert!(state.missing("a").is_some());
            acknowledge(&mut state, line, "a");
        }
        assert_eq!(state.missing("a"), None);
        let second = state.join("two");
        state.want(second, "a");
        assert_eq!(changes(&mut state, 0), (vec![], vec![]));
        assert_eq!(state.missing("a"), None);
    }

    #[test]
    fn the_last_session_that_leaves_a_channel_ends_it() {
        let mut state: State<&'static str, ()> = State::new(1);
        let (one, two) = (state.join("one"), state.join("two"));
        state.want(one, "a");
        state.want(two, "a");
        state.opened(0);
        assert_eq!(changes(&mut state, 0).0, ["a"]);
        acknowledge(&mut state, 0, "a");
        state.leave(one);
        assert_eq!(changes(&mut state, 0), (vec![], vec![]));
        state.keep_only(two, |_| false);
        assert_eq!(changes(&mut state, 0).1, ["a"]);
        assert!(!state.is_needed() && state.missing("a") == Some(0));
        assert!(state.rest(0));
    }

    #[test]
    fn a_channel_given_up_and_wanted_again_is_told_once_more() {
        let mut state: State<&'static str, ()> = State::new(1);
        let id = state.join("one");
        state.want(id, "a");
        state.opened(0);
        changes(&mut state, 0);
        state.keep_only(id, |_| false);
        assert_eq!(changes(&mut state, 0).1, ["a"]);
        // The confirmation of the first LISTEN comes only now.
        acknowledge(&mut state, 0, "a");
        assert_eq!(state.missing("a"), Some(0));
        state.want(id, "a");
        assert_eq!(changes(&mut state, 0).0, ["a"]);
    }

    #[test]
    fn a_lost_line_concerns_those_whose_channels_were_in_force_there() {
        let mut state: State<&'static str, ()> = State::new(2);
        let (one, two) = (state.join("one"), state.join("two"));
        state.want(one, "a");
        state.want(two, "b");
        state.opened(0);
        changes(&mut state, 0);
        acknowledge(&mut state, 0, "a");
        assert_eq!(state.lost(0), [&"one"]);
        assert_eq!(state.missing("a"), Some(0));
        state.opened(0);
        assert_eq!(changes(&mut state, 0).0, ["a", "b"]);
        assert_eq!(acknowledge(&mut state, 0, "a"), ["one"]);
        assert!(acknowledge(&mut state, 0, "b").is_empty());
    }

    #[test]
    fn a_claimed_backend_is_its_sessions() {
        let mut state: State<&str, ()> = State::new(2);
        state.claim(1, 77, 9_000_000);
        assert_eq!(state.notifier(1, 77), 9_000_000);
        assert_eq!(state.notifier(0, 77), 77);
        state.unclaim(1, 77);
        assert_eq!(state.notifier(1, 77), 77);
    }

    #[test]
    fn nobody_waits_for_a_line_that_is_not_open() {
        let mut state: State<&'static str, Arc<()>> = State::new(1);
        let waiter = Arc::new(());
        let waits = |state: &mut State<&'static str, Arc<()>>| {
            let waits = state.wait(0, Arc::clone(&waiter));
            assert_eq!(waits, Arc::strong_count(&waiter) == 2);
            waits
        };
        assert!(!waits(&mut state), "it rests");
        state.wake();
        assert!(!waits(&mut state), "it is being opened");
        type Ends = fn(&mut State<&'static str, Arc<()>>);
        let ends: [Ends; 3] = [
            |state| drop(state.lost(0)),
            |state| assert!(state.rest(0)),
            |state| state.ended(0),
        ];
        for end in ends {
            state.opened(0);
            assert!(waits(&mut state));
            end(&mut state);
            assert_eq!(Arc::strong_count(&waiter), 1, "it is told");
            assert!(!waits(&mut state));
        }
        assert_eq!(state.wake(), [0], "it can be driven again");
    }
}
