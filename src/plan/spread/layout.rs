//! Where the clauses of an INSERT or UPDATE stand in its text. Pure.

use super::text::Layout;
use crate::sql::scan::{Kind, Piece};
use std::ops::Range;

impl Layout<'_> {
    fn piece(&self, at: usize) -> Option<&Piece<'_>> {
        self.pieces.get(at).filter(|_| at < self.to)
    }

    /// Whether the word stands in the statement itself, outside of parentheses.
    pub(super) fn says(&self, word: &str) -> bool {
        self.find(self.from, word).is_some()
    }

    /// The first such keyword from there on, outside of parentheses, which is no name.
    pub(super) fn find(&self, from: usize, word: &str) -> Option<usize> {
        (from..self.to).find(|at| self.is_keyword(*at, word))
    }

    pub(super) fn is_keyword(&self, at: usize, word: &str) -> bool {
        let piece = &self.pieces[at];
        let before = at.checked_sub(1).map(|before| &self.pieces[before]);
        let is_name = before.is_some_and(|before| before.is("as") || before.is_sign("."));
        piece.depth == 0 && piece.is(word) && !is_name
    }

    /// Behind `INSERT INTO name AS alias`: where the list of columns, if there is one, has its closing parenthesis, and by
    /// piece what is behind it.
    fn list(&self) -> Option<(Option<usize>, usize)> {
        let mut at = self.find(self.from, "into")? + 1;
        // The table's name, with its schema.
        at += 1;
        while self.piece(at).is_some_and(|piece| piece.is_sign(".")) {
            at += 2;
        }
        if self.piece(at).is_some_and(|piece| piece.is("as")) {
            at += 2;
        }
        let opens = self.piece(at).is_some_and(|piece| piece.is_sign("("));
        // A query in parentheses stands there too.
        let query = self.piece(at + 1).is_some_and(|piece| {
            piece.is("select") || piece.is("with") || piece.is("values") || piece.is_sign("(")
        });
        if !opens || query {
            return Some((None, at));
        }
        let depth = self.piece(at)?.depth;
        let closes = |piece: &Piece<'_>| piece.depth == depth && piece.is_sign(")");
        let length = self.pieces[at..self.to].iter().position(closes)?;
        Some((Some(self.pieces[at + length].start), at + length + 1))
    }

    /// Where the rows of an INSERT begin, OVERRIDING excepted, and where its list of columns ends.
    pub(super) fn rows_start(&self) -> Option<(usize, Option<usize>)> {
        let (end, next) = self.list()?;
        Some((self.piece(next)?.start, end))
    }

    /// `DEFAULT VALUES`.
    pub(super) fn default_values(&self) -> Option<(usize, usize)> {
        let (_, next) = self.list()?;
        let next = (next..self.to).find(|at| self.is_keyword(*at, "default"))?;
        let values = self.piece(next + 1).filter(|piece| piece.is("values"))?;
        Some((self.piece(next)?.start, values.end))
    }

    /// Where the list of what an INSERT selects ends; `None`: not one plain SELECT.
    pub(super) fn targets_end(&self) -> Option<usize> {
        let (_, next) = self.list()?;
        let select = self.find(next, "select")?;
        const TOGETHER: [&str; 3] = ["union", "intersect", "except"];
        if TOGETHER
            .iter()
            .any(|word| self.find(select, word).is_some())
        {
            return None;
        }
        const BEHIND: [&str; 12] = [
            "from",
            "where",
            "group",
            "having",
            "window",
            "order",
            "limit",
            "offset",
            "fetch",
            "for",
            "on",
            "returning",
        ];
        let ends = |at: &usize| {
            let distinct = self.pieces[*at - 1].is("distinct");
            BEHIND.iter().any(|word| self.is_keyword(*at, word)) && !distinct
        };
        let end = (select + 1..self.to).find(ends);
        Some(match end {
            Some(at) => self.pieces[at - 1].end,
            None => self.end()?,
        })
    }

    /// Where the lists of columns and of values end of each `INSERT (…) VALUES (…)` of a MERGE.
    pub(super) fn inserting_actions(&self) -> Option<Vec<(usize, usize)>> {
        let mut found = Vec::new();
        let mut next = self.from;
        while let Some(insert) = self.find(next, "insert") {
            let closes = |from: usize| {
                self.piece(from).filter(|piece| piece.is_sign("("))?;
                let closing = |piece: &Piece<'_>| piece.depth == 0 && piece.is_sign(")");
                let length = self.pieces[from..self.to].iter().position(closing)?;
                Some(from + length)
            };
            let list = closes(insert + 1)?;
            let row = closes(self.find(list, "values")? + 1)?;
            found.push((self.pieces[list].start, self.pieces[row].start));
            next = row;
        }
        Some(found)
    }

    /// DEFAULT at this place of a row of VALUES.
    pub(super) fn default_cell(&self, row: &Range<usize>, place: usize) -> Option<Range<usize>> {
        let inside = |piece: &&Piece<'_>| piece.start > row.start && piece.end < row.end;
        let mut cells = 0;
        for piece in self.pieces.iter().filter(inside) {
            if piece.depth == 1 && piece.is_sign(",") {
                cells += 1;
            } else if cells == place {
                return piece.is("default").then_some(piece.start..piece.end);
            }
        }
        None
    }

    /// Where `column = DEFAULT` is assigned: its last word.
    pub(super) fn assigned_default(&self, column: &str) -> Vec<Range<usize>> {
        let named = |piece: &Piece<'_>| match piece.kind {
            Kind::Word => piece.text.to_lowercase() == column,
            Kind::Quoted => piece.text.replace("\"\"", "\"") == column,
            Kind::Literal | Kind::Parameter(_) | Kind::Sign => false,
        };
        let own = &self.pieces[self.from..self.to];
        let found = own.windows(3).filter(|three| {
            three[0].depth == 0
                && named(&three[0])
                && three[1].is_sign("=")
                && three[2].is("default")
        });
        found.map(|three| three[2].start..three[2].end).collect()
    }
}
