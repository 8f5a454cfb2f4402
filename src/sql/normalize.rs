//! Hot path: text to template key and literal slots; one pass, no allocation beyond the caller's buffers.

use smallvec::SmallVec;

/// A literal in a statement's text: the bytes that PostgreSQL's scanner makes one constant of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub start: u32,
    pub end: u32,
}

/// The literal slots of one text, in order.
pub type Slots = SmallVec<[Slot; 8]>;
