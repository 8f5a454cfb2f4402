//! Comparing the rows of two shards, exactly: groups of rows by sums of their hashes, then the rows of groups that differ.
//!
//! What must stay true: two rows that PostgreSQL shows differently are different here, equal though they may be for their
//! types (1.0 and 1.00, 0 and -0); both sides are read in snapshots that are of the same moment of the source.

pub mod compare;
pub mod form;
