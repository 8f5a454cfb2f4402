//! What a reshard does on servers, step by step. The engine says which step is next; nothing here decides that.
//!
//! What must stay true: each can be given up at any await and be run again, and repairs what it left.

pub mod catch_up;
pub mod copy;
