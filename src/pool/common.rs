//! What many sessions have in common, kept once: an idle client costs only what is its own.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Kinds that are remembered; sessions of more kinds than these keep their own.
const KINDS: usize = 32;

/// Values of one type that are in use, each kept once. Asked when a value changes, not per message.
#[derive(Debug)]
pub struct Common<T> {
    kinds: Mutex<Vec<Weak<T>>>,
}

impl<T> Default for Common<T> {
    fn default() -> Self {
        Self {
            kinds: Mutex::default(),
        }
    }
}

impl<T: PartialEq> Common<T> {
    /// The value itself, or an equal one that another has already.
    #[must_use]
    pub fn share(&self, value: Arc<T>) -> Arc<T> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = None;
        for (at, kind) in kinds.iter().enumerate() {
            match kind.upgrade() {
                Some(known) if *known == *value => return known,
                Some(_) => {}
                None => unused = Some(at),
            }
        }
        let kind = Arc::downgrade(&value);
        match unused {
            Some(at) => kinds[at] = kind,
            None if kinds.len() < KINDS => kinds.push(kind),
            None => {}
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_make_room() {
        let common = Common::default();
        let first = common.share(Arc::new(0));
        assert!(Arc::ptr_eq(&first, &common.share(Arc::new(0))));
        for passing in 1..=2 * KINDS {
            drop(common.share(Arc::new(passing)));
        }
        let late = common.share(Arc::new(1));
        assert!(Arc::ptr_eq(&late, &common.share(Arc::new(1))));
    }
}
