//! The steps of a reshard, one file each. Each may be run again at any time and then does what is left to do.

pub mod verify;
