//! A reshard on a terminal: a bar for each table, and around them what it does, waits for and costs. The only file that knows
//! how bars are drawn.
//!
//! What must stay true: what is drawn goes to standard error and is gone at the end; nothing is drawn where no terminal is.

use super::{asking::Seen, report};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const TABLE: &str = "  {prefix:28} [{bar:24}] {msg}";

/// Bars and lines that stay in their place.
pub(super) struct Bars {
    screen: MultiProgress,
    head: Vec<ProgressBar>,
    tables: Vec<ProgressBar>,
    foot: Vec<ProgressBar>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self {
            screen: MultiProgress::new(),
            head: Vec::new(),
            tables: Vec::new(),
            foot: Vec::new(),
        }
    }

    pub(super) fn draw(&mut self, seen: &Seen) {
        let sight = seen.sight();
        let (head, foot) = (report::head(seen, &sight), report::foot(&sight));
        let counts = [head.len(), sight.tables.len(), foot.len()];
        if counts != [self.head.len(), self.tables.len(), self.foot.len()] {
            self.lay_out(counts);
        }
        for (bar, line) in self.head.iter().zip(head) {
            bar.set_message(line);
        }
        for (bar, table) in self.tables.iter().zip(&sight.tables) {
            bar.set_prefix(table.table.clone());
            bar.set_position(table.percent);
            bar.set_message(report::table(table));
        }
        for (bar, line) in self.foot.iter().zip(foot) {
            bar.set_message(line);
        }
    }

    /// Another number of lines: all are made anew.
    fn lay_out(&mut self, [head, tables, foot]: [usize; 3]) {
        self.clear();
        self.screen = MultiProgress::new();
        let line = || self.add("{msg}");
        self.head = (0..head).map(|_| line()).collect();
        self.tables = (0..tables).map(|_| self.add(TABLE)).collect();
        self.foot = (0..foot).map(|_| self.add("{msg}")).collect();
    }

    fn add(&self, template: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(template);
        // The templates are ours: one that could not be read would draw the crate's own bar.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(100).with_style(style.progress_chars("=> "));
        self.screen.add(bar)
    }

    /// Takes all of it off the screen.
    pub(super) fn clear(&self) {
        // A terminal that is gone shows nothing.
        drop(self.screen.clear());
    }
}
