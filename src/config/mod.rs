//! The configuration: the file as written, the settings as used, every option declared once.

pub mod settings;
