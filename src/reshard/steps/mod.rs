//! What a reshard does on servers, step by step. The engine says which step is next; nothing here decides that.
//!
//! What must stay true: every step may be run again, from its beginning, whatever an earlier run left behind, and may be
//! dropped at any time; what it makes outside of tables is written down on the home shard before it is made; whoever has
//! been replaced changes nothing.

pub mod catch_up;
