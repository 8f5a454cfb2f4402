//! The configuration: the file as written, the settings as used, every option declared once.

mod address;
mod database;
pub mod diff;
pub mod error;
pub mod load;
pub mod options;
mod reader;
pub mod rules;
pub mod settings;
