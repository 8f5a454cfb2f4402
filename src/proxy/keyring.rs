//! What clients have shown when they logged in, by database and user: it opens the backends of users with passthrough.
//!
//! What must stay true: it is in memory only, overwritten when it is dropped, never logged, and opens backends of the
//! pool of that very user and no other. One entry for each user that has really entered, so the servers' roles bound it.

use crate::auth::scram::Proof;
use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

/// What clients have shown.
#[derive(Default)]
pub struct Keyring {
    shown: Mutex<HashMap<(String, String), Proof>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring(..)")
    }
}

impl Keyring {
    /// A user has entered with this. It replaces what was shown before: the password may have changed.
    pub fn put(&self, database: &str, user: &str, proof: Proof) {
        let key = (database.to_owned(), user.to_owned());
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.insert(key, proof);
    }

    /// What this user has shown last.
    #[must_use]
    pub fn get(&self, database: &str, user: &str) -> Option<Proof> {
        let key = (database.to_owned(), user.to_owned());
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.get(&key).cloned()
    }
}
