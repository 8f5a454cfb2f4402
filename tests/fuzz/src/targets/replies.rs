//! The queue of what a server owes, under any requests and any answers: every note comes back at most once and in
//! order, no more ReadyForQuery is taken than was asked for, replies made here keep their order, and a queue that is
//! forgotten owes nothing.

use crate::protocol::pipeline::{Event, Origin, Pipeline, Request};
use std::collections::HashSet;

/// What the tags of server messages are; others never get this far (`wire::frame::backend`).
const TAGS: &[u8] = b"ZC12sTtnDEI3GHWcdNASVKRv";

/// The target: each pair of bytes is one act.
pub fn check(bytes: &[u8]) {
    let mut run = Run::default();
    for pair in bytes.chunks_exact(2) {
        let alive = match pair[0] % 16 {
            0..=6 => {
                run.ask(pair[1]);
                true
            }
            7 => {
                run.make(pair[1]);
                true
            }
            8 => {
                run.queue.copy_ended();
                assert!(!run.queue.copying_in());
                true
            }
            _ => run.answer(TAGS[usize::from(pair[1]) % TAGS.len()]),
        };
        run.check();
        if !alive {
            // The session ends with its server.
            run.queue.clear();
            assert!(run.queue.is_empty() && !run.queue.owes_ready() && !run.queue.copying_in());
            return;
        }
    }
}

#[derive(Default)]
struct Run {
    queue: Pipeline<usize>,
    next: usize,
    /// The note that came back last; those before it never come again.
    last: Option<usize>,
    owed: usize,
    syncs: HashSet<usize>,
    made: Vec<u8>,
}

impl Run {
    fn ask(&mut self, byte: u8) {
        let requests = [
            Request::Parse,
            Request::Bind,
            Request::Describe,
            Request::Execute,
            Request::Close,
            Request::Sync,
            Request::Query,
            Request::Function,
        ];
        let request = requests[usize::from(byte % 8)];
        let origin = match byte >> 6 {
            0 | 1 => Origin::Client,
            2 => Origin::Injected,
            _ => Origin::Poison,
        };
        self.owed += usize::from(matches!(
            request,
            Request::Sync | Request::Query | Request::Function
        ));
        if request == Request::Sync {
            self.syncs.insert(self.next);
        }
        self.queue.asked(request, origin, self.next);
        self.next += 1;
        assert!(!self.queue.is_empty());
    }

    fn make(&mut self, byte: u8) {
        self.queue
            .made(self.next.to_be_bytes().to_vec(), byte % 2 == 0, self.next);
        self.next += 1;
    }

    /// Whether the server is still to be trusted.
    fn answer(&mut self, tag: u8) -> bool {
        while self.queue.made_is_next() {
            let before = self.made.len();
            let Some(note) = self.queue.take_made(&mut self.made) else {
                panic!("its turn has come")
            };
            assert_eq!(self.made[before..], note.to_be_bytes());
            self.back(note);
        }
        assert!(self.queue.take_made(&mut self.made).is_none());
        match self.queue.replied(tag) {
            Ok((_, Event::Done(_, note))) => self.back(note),
            Ok((_, Event::Ready(note))) => {
                assert!(tag == b'Z' && self.owed > 0);
                self.owed -= 1;
                self.back(note);
            }
            Ok((_, Event::Failed(notes))) => {
                assert_eq!(tag, b'E');
                // An error skips requests, a Query among them, up to the next Sync and never that.
                assert!(notes.iter().all(|note| !self.syncs.contains(note)));
                notes.into_iter().for_each(|note| self.back(note));
                assert!(!self.queue.copying_in());
            }
            Ok((_, Event::CopyIn)) => assert!(tag == b'G' && self.queue.copying_in()),
            Ok((_, Event::Parameter)) => assert_eq!(tag, b'S'),
            Ok((_, Event::None | Event::Command)) => assert_ne!(tag, b'Z'),
            Err(unexpected) => {
                assert_eq!(unexpected.tag, tag);
                return false;
            }
        }
        true
    }

    fn back(&mut self, note: usize) {
        assert!(note < self.next && self.last.is_none_or(|last| last < note));
        self.last = Some(note);
    }

    fn check(&self) {
        let notes: Vec<_> = self.queue.notes().copied().collect();
        assert!(notes.is_sorted_by(|a, b| a < b));
        assert!(
            notes
                .first()
                .is_none_or(|note| self.last.is_none_or(|last| last < *note))
        );
        assert!(!self.queue.owes_ready() || self.owed > 0);
        assert!(!self.queue.is_empty() || notes.is_empty());
    }
}
