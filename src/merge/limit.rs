//! LIMIT and OFFSET over a merged stream. Pure.

/// Which of the rows to come are the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// To be passed over first.
    skip: u64,
    /// To be given after that; `None`: all.
    left: Option<u64>,
}

impl Limit {
    /// OFFSET and LIMIT.
    #[must_use]
    pub fn new(offset: u64, limit: Option<u64>) -> Self {
        Self {
            skip: offset,
            left: limit,
        }
    }

    /// How many rows are to be passed over now.
    #[must_use]
    pub fn skips(&self) -> u64 {
        if self.is_met() { 0 } else { self.skip }
    }

    /// How many rows may be given now, when none is to be passed over.
    #[must_use]
    pub fn gives(&self) -> u64 {
        self.left.unwrap_or(u64::MAX)
    }

    /// Rows have been passed over.
    pub fn skipped(&mut self, rows: u64) {
        self.skip = self.skip.saturating_sub(rows);
    }

    /// Rows have been given.
    pub fn gave(&mut self, rows: u64) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(rows);
        }
    }

    /// Whether all rows are given.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::new(0, None)
    }

    /// Whether no row more is wanted.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.left == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_passed_over_then_given_until_the_limit_is_met() {
        let mut limit = Limit::new(2, Some(3));
        assert_eq!(limit.skips(), 2);
        limit.skipped(2);
        assert_eq!((limit.skips(), limit.gives()), (0, 3));
        limit.gave(3);
        assert!(limit.is_met());
        // Nothing need be passed over for nothing.
        assert_eq!(Limit::new(5, Some(0)).skips(), 0);
        assert!(!Limit::new(0, None).is_met());
    }
}
