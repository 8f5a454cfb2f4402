//! `INSERT … SELECT` whose query reads no table, as ORMs write their bulk inserts, and VALUES of one row whose key is an
//! expression: one server computes the rows, and the statement runs as an INSERT of these as VALUES. Pure.
//!
//! What must stay true: the query gives the same rows wherever it is computed, so it names no table and asks for no time;
//! the text with VALUES does with these rows what the client's does. What PostgreSQL would coerce to the column's type
//! as it stands, a bare constant, stays a bare constant.

use super::{
    block::Analysis,
    spread::{Fill, Spread, Time, Turns, What, may_be_a_rows},
    unroutable::Unroutable,
};
use crate::{
    protocol::parameters::quote_literal,
    sql::{
        normalize::Slot,
        scan::{Kind, Piece, pieces},
        tree::{Body, Column, Expr, Insert, Name, Overriding, Query},
    },
};
use std::ops::Range;

/// Where the query stands in a text, and how its columns become values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    list: Clause,
    overriding: Clause,
    conflict: Clause,
    returning: Clause,
    /// Output columns that are a bare constant, from 0.
    bare: Vec<usize>,
}

/// Whether the statement has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clause {
    Absent,
    Written,
}

/// A text with its query's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources<'t> {
    text: &'t str,
    place: Range<usize>,
    bare: &'t [usize],
}

/// A row of the query: values as text.
pub type Row = Vec<Option<String>>;

impl Sourced {
    /// How this INSERT's query is computed first; `None`: it needs not, or must not.
    pub(super) fn find(
        insert: &Insert,
        functions: &[Name],
        own: &str,
        slots: &[Slot],
        analysis: &Analysis<'_>,
    ) -> Option<Self> {
        let query = insert.source.as_ref()?;
        let fits = insert.ctes.is_empty()
            && insert.overriding != Overriding::UserValue
            && query.locking.is_empty()
            && query.into.is_none()
            && is_refused_for_rows(analysis)
            && analysis.reads_nothing()
            && functions.iter().all(may_be_a_rows);
        if !fits || !is_computed_whole(&query.body, analysis) {
            return None;
        }
        let written = |is: bool| if is { Clause::Written } else { Clause::Absent };
        let found = Self {
            list: written(insert.columns.is_some()),
            overriding: written(insert.overriding != Overriding::Nothing),
            conflict: written(insert.conflict.is_some()),
            returning: written(!insert.returning.is_empty()),
            bare: bare(query)?,
        };
        found.of(own, slots)?;
        Some(found)
    }

    /// Where the query stands in a text of the same template; `None`: it is not understood, or asks for a time.
    #[must_use]
    pub fn of<'t>(&'t self, text: &'t str, slots: &[Slot]) -> Option<Sources<'t>> {
        let pieces = pieces(text, slots)?;
        let end = pieces.iter().rposition(|piece| !piece.is_sign(";"))? + 1;
        let pieces = &pieces[..end];
        let from = self.start(pieces)?;
        let to = self.end(pieces, from)?;
        let own = pieces.get(from..to).filter(|own| !own.is_empty())?;
        (!own.iter().any(is_of_a_time)).then_some(())?;
        Some(Sources {
            text,
            place: own.first()?.start..own.last()?.end,
            bare: &self.bare,
        })
    }

    /// Behind `INSERT INTO name AS alias (…) OVERRIDING SYSTEM VALUE`, by piece.
    fn start(&self, pieces: &[Piece<'_>]) -> Option<usize> {
        let is = |at: usize, word: &str| pieces.get(at).is_some_and(|piece| piece.is(word));
        let sign = |at: usize, sign: &str| pieces.get(at).is_some_and(|piece| piece.is_sign(sign));
        (is(0, "insert") && is(1, "into")).then_some(())?;
        let mut at = 3;
        while sign(at, ".") {
            at += 2;
        }
        if is(at, "as") {
            at += 2;
        }
        if self.list == Clause::Written {
            sign(at, "(").then_some(())?;
            let closes = |at: &usize| pieces[*at].depth == 0 && pieces[*at].is_sign(")");
            at = (at..pieces.len()).find(closes)? + 1;
        }
        if self.overriding == Clause::Written {
            is(at, "overriding").then_some(())?;
            at += 3;
        }
        Some(at)
    }

    /// Before ON CONFLICT and RETURNING, by piece.
    fn end(&self, pieces: &[Piece<'_>], from: usize) -> Option<usize> {
        let outside = |at: usize, word: &str| pieces[at].depth == 0 && pieces[at].is(word);
        let mut to = pieces.len();
        if self.returning == Clause::Written {
            to = (from..to).rev().find(|at| outside(*at, "returning"))?;
        }
        let conflicts: Vec<usize> = (from..to.checked_sub(1)?)
            .filter(|at| outside(*at, "on") && outside(at + 1, "conflict"))
            .collect();
        match (self.conflict, conflicts.as_slice()) {
            (Clause::Absent, []) => Some(to),
            (Clause::Written, [at]) => Some(*at),
            (Clause::Absent | Clause::Written, _) => None,
        }
    }
}

impl Sources<'_> {
    /// The query.
    #[must_use]
    pub fn query(&self) -> &str {
        &self.text[self.place.clone()]
    }

    /// The statement with these rows, whose values are of these types; without one it inserts nothing wherever it runs.
    #[must_use]
    pub fn with_rows(&self, rows: &[Row], types: &[String]) -> String {
        let size: usize = rows.iter().flatten().flatten().map(String::len).sum();
        let mut made = String::with_capacity(self.text.len() + size + 32 * rows.len());
        made.push_str(&self.text[..self.place.start]);
        if rows.is_empty() {
            let columns = types.iter().map(|own| format!("NULL::{own}"));
            let columns: Vec<String> = columns.collect();
            made.push_str(&format!(" SELECT {} WHERE false", columns.join(", ")));
        } else {
            made.push_str(" VALUES ");
        }
        for (at, row) in rows.iter().enumerate() {
            made.push_str(if at == 0 { "(" } else { ", (" });
            for (place, (value, own)) in row.iter().zip(types).enumerate() {
                made.push_str(if place == 0 { "" } else { ", " });
                self.put(place, value.as_deref(), own, &mut made);
            }
            made.push(')');
        }
        made.push(' ');
        made.push_str(&self.text[self.place.end..]);
        made
    }

    fn put(&self, place: usize, value: Option<&str>, own: &str, out: &mut String) {
        let Some(value) = value else {
            out.push_str("NULL");
            return;
        };
        quote_literal(out, value);
        if own != "text" || !self.bare.contains(&place) {
            out.push_str("::");
            out.push_str(own);
        }
    }
}

/// How a statement that inserts nothing runs on one shard.
#[must_use]
pub fn of_no_rows() -> Spread {
    Spread {
        what: What::Whole,
        time: Time::NotAsked,
        turns: Turns::AtOnce,
        fill: Fill::default(),
        lock: None,
    }
}

/// Whether nothing keeps the statement from running but that its rows are not known.
fn is_refused_for_rows(analysis: &Analysis<'_>) -> bool {
    let for_rows = |why: &Unroutable| {
        matches!(
            why,
            Unroutable::KeyExpression { .. }
                | Unroutable::KeyMissing { .. }
                | Unroutable::PerShardObject { .. }
        )
    };
    analysis.changes == 1
        && analysis.inserted.is_some()
        && !analysis.refusals.is_empty()
        && analysis.refusals.iter().all(for_rows)
}

/// The output columns that are bare constants; `None`: it cannot be told which these are.
fn bare(query: &Query) -> Option<Vec<usize>> {
    let values: Vec<&Expr> = match &query.body {
        Body::Select(select) => select.targets.iter().map(|target| &target.value).collect(),
        Body::Values(rows) => rows.iter().flatten().collect(),
        Body::SetOperation(_) => Vec::new(),
    };
    let is_star = |value: &&Expr| matches!(value, Expr::Column(Column { star: true, .. }));
    let bare: Vec<usize> = (0..)
        .zip(&values)
        .filter(|(_, value)| matches!(value, Expr::Literal(_)))
        .map(|(at, _)| at)
        .collect();
    (bare.is_empty() || !values.iter().any(is_star)).then_some(bare)
}

/// Whether PostgreSQL computes it as it does a query by itself. Of VALUES that is one row without DEFAULT: each value of
/// several is coerced to the column's type, not to a type that they have in common.
fn is_computed_whole(body: &Body, analysis: &Analysis<'_>) -> bool {
    let by_key = |why: &Unroutable| matches!(why, Unroutable::KeyExpression { .. });
    match body {
        Body::Select(_) | Body::SetOperation(_) => true,
        Body::Values(rows) => {
            let default = |value: &Expr| matches!(value, Expr::Default);
            let one = matches!(rows.as_slice(), [row] if !row.iter().any(default));
            one && analysis.refusals.iter().any(by_key)
        }
    }
}

/// Whether it means another time for every transaction.
fn is_of_a_time(piece: &Piece<'_>) -> bool {
    let text = piece.text.to_ascii_lowercase();
    match piece.kind {
        Kind::Word => {
            text.starts_with("localtime")
                || matches!(
                    text.as_str(),
                    "current_date" | "current_time" | "current_timestamp" | "current_catalog"
                )
        }
        Kind::Literal => {
            const MOMENTS: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];
            MOMENTS.contains(&text.trim_matches('\'').trim())
        }
        Kind::Quoted | Kind::Parameter(_) | Kind::Sign => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{normalize::Strings, scan::slots_of};

    fn with(sourced: &Sourced, text: &str, rows: &[Row], types: &[&str]) -> Option<String> {
        let slots = slots_of(text, Strings::Standard);
        let types: Vec<String> = types.iter().map(|&one| one.to_owned()).collect();
        let sources = sourced.of(text, &slots)?;
        Some(sources.with_rows(rows, &types))
    }

    fn plain() -> Sourced {
        Sourced {
            list: Clause::Written,
            overriding: Clause::Absent,
            conflict: Clause::Absent,
            returning: Clause::Written,
            bare: vec![1],
        }
    }

    #[test]
    fn rows_stand_where_the_query_stood() {
        let text = "INSERT INTO s.t AS x (id, a) (SELECT id, 'q' FROM unnest(ARRAY[1]) AS r(id)) RETURNING id;";
        let value = |text: &str| Some(text.to_owned());
        let rows = [vec![value("1"), value("it's")], vec![value("2"), None]];
        assert_eq!(
            with(&plain(), text, &rows, &["integer", "text"]).unwrap(),
            "INSERT INTO s.t AS x (id, a)  VALUES ('1'::integer, 'it''s'), ('2'::integer, NULL)  RETURNING id;"
        );
        assert_eq!(
            with(&plain(), text, &[], &["integer", "text"]).unwrap(),
            "INSERT INTO s.t AS x (id, a)  SELECT NULL::integer, NULL::text WHERE false  RETURNING id;"
        );
    }

    #[test]
    fn what_is_not_understood_or_asks_for_a_time_is_left_alone() {
        for text in [
            "INSERT INTO t (id) SELECT 1 FROM a JOIN b ON conflict RETURNING id",
            "INSERT INTO t (id) SELECT current_date RETURNING id",
            "INSERT INTO t (id) SELECT 'now'::timestamptz RETURNING id",
            "INSERT INTO t (id) SELECT 1",
        ] {
            assert_eq!(with(&plain(), text, &[], &["date"]), None, "{text}");
        }
    }
}
