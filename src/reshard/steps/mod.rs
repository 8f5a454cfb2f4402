//! What a reshard does on servers, step by step.
//!
//! What must stay true: each can be given up at any await and be run again, and repairs what it left.

pub mod copy;
