//! Looks into existing databases: tables, columns, types, roles. Reads only the system catalogs, changes nothing.
//!
//! `survey` asks the servers; `judge` and `complete` are pure functions of what they said.

mod code;
mod columns;
mod connect;
mod drift;
mod effects;
mod finding;
mod judge;
mod oids;
mod placements;
mod reach;
mod survey;
mod tls;
mod trigger;
mod views;
mod weigh;

pub use code::code;
pub use columns::{Column, Derived, Tables, columns};
pub use connect::{AskError, Limits, connect, hearing, pool};
pub use drift::drift;
pub use effects::{Action, Counted, Counter, DefaultValue, Made, Objects, Trigger, Unique};
pub use finding::{Contradiction, Difference, Drifted, Finding, Part, Severity};
pub use judge::{complete, judge};
pub use placements::Kept;
pub use survey::{Observed, Survey, at_once, complete_snapshot, credentials_for, survey};
pub use views::{View, ViewKind};
