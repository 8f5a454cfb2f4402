//! The text that `/metrics` answers with.
