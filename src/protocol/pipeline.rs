//! Hot path: the ordered queue of one backend's outstanding requests. One match per reply, no allocation per row.
//!
//! Every request that reaches the backend stands here with the replies it expects; replies that Shardway makes itself
//! wait here for their turn. The queue alone decides when a backend is at rest, where a synthetic reply goes and what
//! an error skips. Rules: manual chapter 54.2, and `postgres.c` for `ignore_till_sync`.
//!
//! It deliberately knows no SQL, no socket and no transaction: the status byte of ReadyForQuery is the caller's.

use std::collections::VecDeque;

/// What was asked of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Parse,
    Bind,
    Describe,
    Execute,
    Close,
    Sync,
    Query,
    Function,
}

/// Who asked: decides whether the client sees the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The client: replies are forwarded.
    Client,
    /// Shardway (a statement prepared again): the reply is swallowed, but an error is the client's.
    Injected,
    /// Shardway, to make the backend fail up to the next Sync: reply and error are swallowed.
    Poison,
}

/// What to do with a reply's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Swallow,
}

/// What a reply means for the session.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<N> {
    /// Part of an answer.
    None,
    /// The request at the head is answered; its note is handed back.
    Done(Request, N),
    /// One statement of a simple Query is complete; the request stays.
    Command,
    /// ParameterStatus: to be recorded.
    Parameter,
    /// The backend now reads CopyData.
    CopyIn,
    /// An error. In the extended protocol everything up to the next Sync is skipped; the notes of what never ran.
    Failed(Vec<N>),
    /// ReadyForQuery of this request.
    Ready(N),
}

/// The reply does not belong to what was asked: the backend's stream cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message '{}' from the server", char::from(*tag))]
pub struct Unexpected {
    pub tag: u8,
}

#[derive(Debug)]
enum Item<N> {
    Asked {
        request: Request,
        origin: Origin,
        note: N,
    },
    /// Made here; the flag says that it is an error, which skips like a backend's.
    Made {
        bytes: Vec<u8>,
        error: bool,
        note: N,
    },
}

/// The ordered queue of one backend's outstanding requests. `N` is what the caller wants back with each.
#[derive(Debug)]
pub struct Pipeline<N> {
    items: VecDeque<Item<N>>,
    copy_in: bool,
    /// Syncs sent while the backend read CopyData: ignored when the COPY succeeds, answered when it fails before them.
    copy_syncs: usize,
}

impl<N> Default for Pipeline<N> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            copy_in: false,
            copy_syncs: 0,
        }
    }
}

impl<N> Pipeline<N> {
    /// Whether nothing is outstanding.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Gives back the room that requests have taken.
    pub fn give_back(&mut self) {
        self.items.shrink_to_fit();
    }

    /// Whether the backend reads CopyData now.
    #[must_use]
    pub fn copying_in(&self) -> bool {
        self.copy_in
    }

    /// Whether a ReadyForQuery is owed.
    #[must_use]
    pub fn owes_ready(&self) -> bool {
        self.items.iter().any(|item| {
            matches!(
                item,
                Item::Asked {
                    request: Request::Sync | Request::Query | Request::Function,
                    ..
                }
            )
        })
    }

    /// Whether the next reply is ReadyForQuery of a Sync of the client's.
    #[must_use]
    pub fn sync_is_next(&self) -> bool {
        matches!(
            self.items.front(),
            Some(Item::Asked {
                request: Request::Sync,
                origin: Origin::Client,
                ..
            })
        )
    }

    /// Records a request that is being sent.
    pub fn asked(&mut self, request: Request, origin: Origin, note: N) {
        self.copy_syncs += usize::from(self.copy_in && request == Request::Sync);
        self.items.push_back(Item::Asked {
            request,
            origin,
            note,
        });
    }

    /// Queues a reply made here behind what is outstanding. Its note comes back when its turn has come, and never when
    /// an error skipped it.
    pub fn made(&mut self, bytes: Vec<u8>, error: bool, note: N) {
        self.items.push_back(Item::Made { bytes, error, note });
    }

    /// The client has ended its COPY: what it sends as copy data from now on is of another one, or of none.
    pub fn copy_ended(&mut self) {
        self.copy_in = false;
    }

    /// Whether the next reply to give is one made here.
    #[must_use]
    pub fn made_is_next(&self) -> bool {
        matches!(self.items.front(), Some(Item::Made { .. }))
    }

    /// Forgets everything: the backend is gone.
    pub fn clear(&mut self) {
        self.items.clear();
        self.copy_in = false;
        self.copy_syncs = 0;
    }

    /// The notes of outstanding requests, oldest first.
    pub fn notes(&self) -> impl Iterator<Item = &N> {
        self.items.iter().filter_map(|item| match item {
            Item::Asked { note, .. } => Some(note),
            Item::Made { .. } => None,
        })
    }

    /// Appends to `out` the next reply if it is one made here, and gives its note back. After an error of ours what
    /// follows on the backend is the poison and its Sync; replies made here are dropped.
    pub fn take_made(&mut self, out: &mut Vec<u8>) -> Option<N> {
        if !self.made_is_next() {
            return None;
        }
        let Some(Item::Made { bytes, error, note }) = self.items.pop_front() else {
            return None;
        };
        out.extend_from_slice(&bytes);
        if error {
            self.items.retain(|item| !matches!(item, Item::Made { .. }));
        }
        Some(note)
    }

    /// Forgets the first Syncs: the backend read them as part of a COPY, where they are ignored (manual 54.2.6).
    fn forget_syncs(&mut self, mut count: usize) {
        self.items.retain(|item| {
            let ignored = count > 0
                && matches!(
                    item,
                    Item::Asked {
                        request: Request::Sync,
                        ..
                    }
                );
            count -= usize::from(ignored);
            !ignored
        });
    }

    /// A COPY has succeeded, or there was none.
    fn copied(&mut self) {
        self.copy_in = false;
        if self.copy_syncs > 0 {
            let ignored = std::mem::take(&mut self.copy_syncs);
            self.forget_syncs(ignored);
        }
    }

    /// Judges one backend message by its tag.
    ///
    /// # Errors
    /// [`Unexpected`] when nothing outstanding expects it.
    pub fn replied(&mut self, tag: u8) -> Result<(Pass, Event<N>), Unexpected> {
        match tag {
            b'N' => return Ok((self.passes(), Event::None)),
            // These are about the session, whatever is being answered.
            b'A' => return Ok((Pass::Forward, Event::None)),
            b'S' => return Ok((Pass::Forward, Event::Parameter)),
            b'E' => return self.failed(tag),
            _ => {}
        }
        let Some(Item::Asked {
            request, origin, ..
        }) = self.items.front()
        else {
            return Err(Unexpected { tag });
        };
        let pass = if *origin == Origin::Client {
            Pass::Forward
        } else {
            Pass::Swallow
        };
        let request = *request;
        match (request, tag) {
            (Request::Query | Request::Execute, b'D' | b'd' | b'c' | b'H' | b'T')
            | (Request::Function, b'V')
            | (Request::Describe, b't') => Ok((pass, Event::None)),
            (Request::Query | Request::Execute, b'G') => {
                self.copy_in = true;
                if request == Request::Execute {
                    self.forget_syncs(usize::MAX);
                }
                Ok((pass, Event::CopyIn))
            }
            (Request::Query, b'C' | b'I') => {
                self.copied();
                Ok((pass, Event::Command))
            }
            (Request::Query | Request::Sync | Request::Function, b'Z') => {
                self.copy_in = false;
                let (_, note) = self.pop(tag)?;
                Ok((pass, Event::Ready(note)))
            }
            (Request::Execute, b'C' | b'I' | b's')
            | (Request::Parse, b'1')
            | (Request::Bind, b'2')
            | (Request::Close, b'3')
            | (Request::Describe, b'T' | b'n') => {
                self.copied();
                let (request, note) = self.pop(tag)?;
                Ok((pass, Event::Done(request, note)))
            }
            _ => Err(Unexpected { tag }),
        }
    }

    /// Whether a notice is the client's: not while an injected request is being answered.
    fn passes(&self) -> Pass {
        match self.items.front() {
            Some(Item::Asked {
                origin: Origin::Injected | Origin::Poison,
                ..
            }) => Pass::Swallow,
            Some(
                Item::Asked {
                    origin: Origin::Client,
                    ..
                }
                | Item::Made { .. },
            )
            | None => Pass::Forward,
        }
    }

    fn pop(&mut self, tag: u8) -> Result<(Request, N), Unexpected> {
        match self.items.pop_front() {
            Some(Item::Asked { request, note, .. }) => Ok((request, note)),
            Some(Item::Made { .. }) | None => Err(Unexpected { tag }),
        }
    }

    fn failed(&mut self, tag: u8) -> Result<(Pass, Event<N>), Unexpected> {
        self.copy_in = false;
        self.copy_syncs = 0;
        let Some(Item::Asked {
            request, origin, ..
        }) = self.items.front()
        else {
            // Nothing was asked: the backend is being ended (57P01). The caller decides who sees it.
            return Err(Unexpected { tag });
        };
        let pass = if *origin == Origin::Poison {
            Pass::Swallow
        } else {
            Pass::Forward
        };
        if matches!(request, Request::Query | Request::Function | Request::Sync) {
            // A Sync can fail as well: deferred constraints are checked by the commit it makes.
            return Ok((pass, Event::Failed(Vec::new())));
        }
        let mut skipped = Vec::new();
        while let Some(item) = self.items.front() {
            if matches!(
                item,
                Item::Asked {
                    request: Request::Sync,
                    ..
                }
            ) {
                break;
            }
            if let Some(Item::Asked { note, .. }) = self.items.pop_front() {
                skipped.push(note);
            }
        }
        Ok((pass, Event::Failed(skipped)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(requests: &[(Request, Origin)]) -> Pipeline<u32> {
        let mut pipeline = Pipeline::default();
        for (at, (request, origin)) in (0..).zip(requests) {
            pipeline.asked(*request, *origin, at);
        }
        pipeline
    }

    #[test]
    fn a_synthetic_reply_waits_for_its_turn() {
        let mut queue = pipeline(&[(Request::Bind, Origin::Client)]);
        queue.made(b"3".to_vec(), false, 7);
        let mut out = Vec::new();
        assert_eq!((queue.take_made(&mut out), out.len()), (None, 0));
        assert_eq!(
            queue.replied(b'2'),
            Ok((Pass::Forward, Event::Done(Request::Bind, 0)))
        );
        assert_eq!(queue.take_made(&mut out), Some(7));
        assert_eq!(out, b"3");
    }

    #[test]
    fn an_error_skips_to_the_next_sync_and_takes_made_replies_with_it() {
        let mut queue = pipeline(&[
            (Request::Parse, Origin::Client),
            (Request::Bind, Origin::Client),
        ]);
        queue.made(b"3".to_vec(), false, 7);
        queue.asked(Request::Sync, Origin::Client, 9);
        assert_eq!(
            queue.replied(b'E'),
            Ok((Pass::Forward, Event::Failed(vec![0, 1])))
        );
        assert_eq!(queue.replied(b'Z'), Ok((Pass::Forward, Event::Ready(9))));
        assert!(queue.is_empty());
    }

    #[test]
    fn an_injected_reply_is_swallowed_and_its_error_is_not() {
        let mut queue = pipeline(&[
            (Request::Parse, Origin::Injected),
            (Request::Bind, Origin::Client),
        ]);
        assert_eq!(
            queue.replied(b'1'),
            Ok((Pass::Swallow, Event::Done(Request::Parse, 0)))
        );
        let mut queue = pipeline(&[
            (Request::Parse, Origin::Injected),
            (Request::Sync, Origin::Client),
        ]);
        assert_eq!(
            queue.replied(b'E'),
            Ok((Pass::Forward, Event::Failed(vec![0])))
        );
    }

    #[test]
    fn a_sync_sent_before_copy_in_is_not_answered() {
        let mut queue = pipeline(&[
            (Request::Execute, Origin::Client),
            (Request::Sync, Origin::Client),
        ]);
        assert_eq!(queue.replied(b'G'), Ok((Pass::Forward, Event::CopyIn)));
        assert!(!queue.owes_ready() && queue.copying_in());
        assert_eq!(
            queue.replied(b'C'),
            Ok((Pass::Forward, Event::Done(Request::Execute, 0)))
        );
        assert!(queue.is_empty() && !queue.copying_in());
    }

    #[test]
    fn a_sync_sent_during_copy_in_is_answered_only_if_the_copy_fails() {
        let copying = || {
            let mut queue = pipeline(&[(Request::Execute, Origin::Client)]);
            assert_eq!(queue.replied(b'G'), Ok((Pass::Forward, Event::CopyIn)));
            queue.asked(Request::Sync, Origin::Client, 1);
            queue.copy_ended();
            queue.asked(Request::Sync, Origin::Client, 2);
            queue
        };
        let mut queue = copying();
        assert_eq!(
            queue.replied(b'C'),
            Ok((Pass::Forward, Event::Done(Request::Execute, 0)))
        );
        assert_eq!(queue.replied(b'Z'), Ok((Pass::Forward, Event::Ready(2))));
        assert!(queue.is_empty());
        let mut queue = copying();
        assert_eq!(
            queue.replied(b'E'),
            Ok((Pass::Forward, Event::Failed(vec![0])))
        );
        assert_eq!(queue.replied(b'Z'), Ok((Pass::Forward, Event::Ready(1))));
        assert_eq!(queue.replied(b'Z'), Ok((Pass::Forward, Event::Ready(2))));
    }

    #[test]
    fn a_reply_that_nothing_asked_for_is_a_broken_stream() {
        let mut queue = pipeline(&[(Request::Bind, Origin::Client)]);
        assert_eq!(queue.replied(b'1'), Err(Unexpected { tag: b'1' }));
        assert_eq!(pipeline(&[]).replied(b'Z'), Err(Unexpected { tag: b'Z' }));
    }
}
