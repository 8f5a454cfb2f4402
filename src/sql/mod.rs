//! What a statement is: its text, its literals, its tables and predicates. Pure; `parse.rs` alone names the parser crate.

pub mod change;
pub mod clauses;
pub mod code;
pub mod cursor;
pub mod executions;
pub mod functions;
pub mod literal;
pub mod normalize;
pub mod parse;
pub mod scan;
pub mod statement;
pub mod tree;
