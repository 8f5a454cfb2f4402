//! Which rules fit which connections, and what is wrong with rules that cannot be read.
