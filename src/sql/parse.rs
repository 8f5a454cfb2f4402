//! The only file that names the parser crate.
