//! The texts of a write that is spread over shards, made of the statement's own text.
//!
//! What must stay true: every row of VALUES stands in exactly one text, and nothing of a text is changed but the rows
//! that are left out, the numbers of parameters, and the transaction's time.

use super::{Asked, Spread, What, fill::Given};
use crate::sql::{
    normalize::Slot,
    scan::{Kind, Piece, pieces},
};
use std::{collections::HashMap, fmt::Write as _, ops::Range};

/// Whether a statement asks for the transaction's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    NotAsked,
    Asked,
}

/// What one shard is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub text: String,
    /// Of the statement's parameters, from 0, those that are this text's `$1`, `$2` and so on; `None`: all as they are.
    pub parameters: Option<Vec<u16>>,
}

/// A place in the text that reads otherwise for a shard.
pub(super) struct Edit {
    pub(super) place: Range<usize>,
    pub(super) new: String,
}

impl Edit {
    pub(super) fn insert(at: usize, new: &str) -> Self {
        Self {
            place: at..at,
            new: new.to_owned(),
        }
    }
}

/// What a statement consists of.
pub(super) struct Layout<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    /// Where the statement begins and ends, by piece.
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Spread {
    /// What each shard is sent, for its rows of VALUES; `None`: the text is not that of such a statement.
    #[must_use]
    pub fn parts<'r>(
        &self,
        text: &str,
        slots: &[Slot],
        rows: impl Iterator<Item = &'r [u32]>,
        given: &Given<'_>,
    ) -> Option<Vec<Part>> {
        if self.what == What::Change {
            let same = |_| Part {
                text: text.to_owned(),
                parameters: None,
            };
            return Some(rows.map(same).collect());
        }
        let layout = Layout::of(text, slots)?;
        let times = || {
            let mut edits = match self.time {
                Time::Asked => layout.times(given.time?)?,
                Time::NotAsked => Vec::new(),
            };
            edits.extend(self.fill.edits(&layout, given)?);
            edits.sort_by_key(|edit| edit.place.start);
            Some(edits)
        };
        let all = match self.what {
            What::Rows(count) => layout.rows().filter(|all| all.len() == count)?,
            What::Share(_) | What::Copies(_) | What::Move(_) | What::Whole | What::Change => {
                Vec::new()
            }
        };
        rows.map(|own| self.part(text, &layout, &all, own, times()?))
            .collect()
    }

    /// Whether the text, all of it, is such a statement as was planned.
    #[must_use]
    pub fn fits(&self, text: &str, slots: &[Slot]) -> bool {
        let whole = Layout::of(text, slots).is_some_and(|layout| layout.from == 0);
        if let What::Move(moving) = &self.what {
            return whole && moving.can_be_made(text, slots);
        }
        whole
            && self
                .parts(text, slots, std::iter::empty(), &Given::TRIED)
                .is_some()
    }

    fn part(
        &self,
        text: &str,
        layout: &Layout<'_>,
        all: &[Range<usize>],
        own: &[u32],
        mut edits: Vec<Edit>,
    ) -> Option<Part> {
        let end = layout.end()?;
        let whole = |text: String| Part {
            text,
            parameters: None,
        };
        match &self.what {
            What::Share(_) | What::Move(_) | What::Whole | What::Change => {
                Some(whole(edited(text, 0..end, &edits)))
            }
            What::Copies(copies) => {
                let mut made = edited(text, 0..end, &edits);
                let word = if layout.returning().is_some() {
                    ","
                } else {
                    " RETURNING"
                };
                let _ = write!(made, "{word} {}", fingerprint(&copies.alias));
                Some(whole(made))
            }
            What::Rows(_) => {
                let (first, last) = (all.first()?.start, all.last()?.end);
                let kept = own.iter().map(|row| all.get(*row as usize).cloned());
                let kept: Vec<Range<usize>> = kept.collect::<Option<_>>()?;
                let numbers = layout.renumber(&kept, first..last, &mut edits);
                edits.sort_by_key(|edit| edit.place.start);
                let mut edits = Edits::new(text, &edits);
                let mut made = String::new();
                edits.copy(0..first, &mut made);
                for (at, row) in kept.into_iter().enumerate() {
                    made.push_str(if at == 0 { "" } else { ", " });
                    edits.copy(row, &mut made);
                }
                edits.copy(last..end, &mut made);
                Some(Part {
                    text: made,
                    parameters: Some(numbers),
                })
            }
        }
    }

    /// Whether the statement that is planned has a text for each shard.
    pub(super) fn can_be_made(&self, asked: &Asked<'_>) -> bool {
        let Some(slots) = own_slots(asked) else {
            return false;
        };
        if let What::Move(moving) = &self.what {
            return moving.can_be_made(asked.own, &slots);
        }
        let rows: &[u32] = if matches!(self.what, What::Rows(_)) {
            &[0]
        } else {
            &[]
        };
        self.parts(asked.own, &slots, std::iter::once(rows), &Given::TRIED)
            .is_some()
    }
}

/// Whether the transaction's time is asked for; `None`: the statement holds what means another thing on each shard.
pub(super) fn time_asked(asked: &Asked<'_>, what: &What) -> Option<Time> {
    let layout = Layout::of(asked.own, &own_slots(asked)?)?;
    let pieces = &layout.pieces[layout.from..layout.to];
    let selects = pieces.iter().any(|piece| piece.is("select"));
    let unfit = |at: usize| {
        let (piece, next) = (&pieces[at], pieces.get(at + 1));
        let named = |word: &str| match piece.kind {
            Kind::Word => piece.text.eq_ignore_ascii_case(word),
            Kind::Quoted => piece.text == word,
            Kind::Literal | Kind::Parameter(_) | Kind::Sign => false,
        };
        let followed = |word: &str| next.is_some_and(|next| next.is(word));
        let called = next.is_some_and(|next| next.is_sign("("));
        OF_ONE_SHARD.iter().any(|word| piece.is(word))
            || OF_TABLES.iter().any(|word| named(word))
            || piece.is("current") && followed("of")
            || piece.is("distinct") && followed("on")
            || piece.kind == Kind::Quoted && called && is_time(piece.text)
            || selects && called && IN_SOME_ORDER.iter().any(|word| named(word))
            // Computed once for all rows, not for each.
            || selects && called && super::RANDOM.iter().any(|word| named(word))
    };
    if (0..pieces.len()).any(unfit) {
        return None;
    }
    let times = layout.times("epoch")?;
    let returning = layout.returning().map(|at| layout.pieces[at].start);
    let named_by_it = |edit: &Edit| returning.is_some_and(|at| edit.place.start > at);
    if times.iter().any(named_by_it) {
        // The column would have another name.
        return None;
    }
    // Without rows of its own there is nothing to split.
    if matches!(what, What::Rows(_)) && layout.rows().is_none() {
        return None;
    }
    Some(if times.is_empty() {
        Time::NotAsked
    } else {
        Time::Asked
    })
}

/// Whether a function gives the time at which the transaction began.
pub(super) fn is_time(name: &str) -> bool {
    matches!(name, "now" | "transaction_timestamp")
}

pub(in crate::plan) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A number that tells rows apart, for each row that is written.
fn fingerprint(alias: &str) -> String {
    format!(
        "pg_catalog.hashtextextended((ROW({alias}.*)::pg_catalog.text) COLLATE pg_catalog.\"C\", 0)::pg_catalog.text"
    )
}

/// Literals of the statement itself, counted from where it begins.
pub(super) fn own_slots(asked: &Asked<'_>) -> Option<Vec<Slot>> {
    let start = u32::try_from(asked.start).ok()?;
    let end = start + u32::try_from(asked.own.len()).ok()?;
    let inside = asked
        .slots
        .iter()
        .filter(|slot| slot.start >= start && slot.end <= end);
    Some(
        inside
            .map(|slot| Slot {
                start: slot.start - start,
                end: slot.end - start,
            })
            .collect(),
    )
}

/// A piece of the text with what stands otherwise in it; edits are in order.
pub(super) fn edited(text: &str, range: Range<usize>, edits: &[Edit]) -> String {
    let mut made = String::with_capacity(range.len() + 16);
    Edits::new(text, edits).copy(range, &mut made);
    made
}

/// Copies pieces of a text from its beginning to its end, as they are to read.
struct Edits<'e> {
    text: &'e str,
    left: std::iter::Peekable<std::slice::Iter<'e, Edit>>,
}

impl<'e> Edits<'e> {
    fn new(text: &'e str, edits: &'e [Edit]) -> Self {
        let left = edits.iter().peekable();
        Self { text, left }
    }

    fn copy(&mut self, range: Range<usize>, out: &mut String) {
        let mut at = range.start;
        while self.left.next_if(|edit| edit.place.start < at).is_some() {}
        while let Some(edit) = self.left.next_if(|edit| edit.place.end <= range.end) {
            out.push_str(&self.text[at..edit.place.start]);
            out.push_str(&edit.new);
            at = edit.place.end;
        }
        out.push_str(&self.text[at..range.end]);
    }
}

impl<'a> Layout<'a> {
    pub(super) fn of(text: &'a str, slots: &[Slot]) -> Option<Self> {
        let pieces = pieces(text, slots)?;
        let begins =
            |piece: &Piece<'_>| piece.depth == 0 && BEGINNINGS.iter().any(|word| piece.is(word));
        // Behind EXPLAIN (ROUTE), if that is asked.
        let from = pieces.iter().position(begins)?;
        let behind = pieces.iter().rposition(|piece| !piece.is_sign(";"))?;
        (from <= behind).then_some(Self {
            pieces,
            from,
            to: behind + 1,
        })
    }

    pub(super) fn end(&self) -> Option<usize> {
        Some(self.pieces.get(self.to - 1)?.end)
    }

    /// RETURNING of the statement itself, by piece.
    pub(super) fn returning(&self) -> Option<usize> {
        (self.from..self.to)
            .rev()
            .find(|at| self.pieces[*at].depth == 0 && self.pieces[*at].is("returning"))
    }

    /// The rows of VALUES, each with its parentheses.
    pub(super) fn rows(&self) -> Option<Vec<Range<usize>>> {
        let at = |at: usize| self.pieces.get(at).filter(|_| at < self.to);
        let opens = |piece: &Piece<'_>| piece.depth == 0 && piece.is_sign("(");
        // A table may be called so, but not without a word before it that says that it is one.
        let is_clause = |found: &usize| {
            let before = &self.pieces[*found - 1];
            let piece = &self.pieces[*found];
            piece.depth == 0
                && piece.is("values")
                && at(found + 1).is_some_and(opens)
                && !before.is("into")
                && !before.is("as")
                && !before.is_sign(".")
        };
        let mut next = (self.from + 1..self.to).find(is_clause)? + 1;
        let mut rows = Vec::new();
        loop {
            let open = at(next).filter(|piece| opens(piece))?;
            let length = self.pieces[next..self.to]
                .iter()
                .position(|piece| piece.depth == 0 && piece.is_sign(")"))?;
            rows.push(open.start..self.pieces[next + length].end);
            next += length + 1;
            match at(next) {
                Some(comma) if comma.depth == 0 && comma.is_sign(",") => next += 1,
                _ => return Some(rows),
            }
        }
    }

    /// Gives the parameters that are left the numbers from 1; returns which they are.
    fn renumber(
        &self,
        kept: &[Range<usize>],
        rows: Range<usize>,
        edits: &mut Vec<Edit>,
    ) -> Vec<u16> {
        let mut numbers: Vec<u16> = Vec::new();
        let mut known: HashMap<u16, usize> = HashMap::new();
        let mut kept = kept.iter().peekable();
        for piece in &self.pieces[self.from..self.to] {
            let Kind::Parameter(number) = piece.kind else {
                continue;
            };
            while kept.next_if(|row| row.end <= piece.start).is_some() {}
            let left_out = rows.contains(&piece.start)
                && kept.peek().is_none_or(|row| piece.start < row.start);
            let Some(index) = number.checked_sub(1).filter(|_| !left_out) else {
                continue;
            };
            let place = *known.entry(index).or_insert_with(|| {
                numbers.push(index);
                numbers.len()
            });
            edits.push(Edit {
                place: piece.start..piece.end,
                new: format!("${place}"),
            });
        }
        numbers
    }

    /// Where the transaction's time is asked for, and what stands there instead; `None`: not understood.
    pub(super) fn times(&self, time: &str) -> Option<Vec<Edit>> {
        at_time(&self.pieces[self.from..self.to], time)
    }
}

/// Where the transaction's time is asked for, and what stands there instead; `None`: not understood.
pub(super) fn at_time(pieces: &[Piece<'_>], time: &str) -> Option<Vec<Edit>> {
    let moment = format!("'{time}'::pg_catalog.timestamptz");
    let mut edits = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        if piece.kind != Kind::Word {
            continue;
        }
        let word = piece.text.to_ascii_lowercase();
        let sign = |at: usize, sign: &str| pieces.get(at).is_some_and(|piece| piece.is_sign(sign));
        if is_time(&word) && sign(at + 1, "(") {
            if !sign(at + 2, ")") {
                return None;
            }
            let qualified = at >= 2 && sign(at - 1, ".");
            if qualified && !pieces[at - 2].is("pg_catalog") {
                return None;
            }
            let start = if qualified { at - 2 } else { at };
            edits.push(Edit {
                place: pieces[start].start..pieces[at + 2].end,
                new: format!("({moment})"),
            });
        } else if let Some((_, cast)) = WORDS.iter().find(|(known, _)| *known == word) {
            if sign(at.wrapping_sub(1), ".") {
                return None;
            }
            let precise = sign(at + 1, "(")
                && pieces
                    .get(at + 2)
                    .is_some_and(|piece| piece.kind == Kind::Literal)
                && sign(at + 3, ")");
            let (end, precision) = if precise {
                (at + 3, format!("({})", pieces[at + 2].text))
            } else {
                (at, String::new())
            };
            edits.push(Edit {
                place: piece.start..pieces[end].end,
                new: format!("({moment}::pg_catalog.{cast}{precision})"),
            });
        }
    }
    Some(edits)
}

/// Words that begin a write.
const BEGINNINGS: [&str; 5] = ["insert", "update", "delete", "merge", "with"];
/// Times of the transaction that are keywords, and their types.
const WORDS: [(&str, &str); 5] = [
    ("current_date", "date"),
    ("current_time", "timetz"),
    ("current_timestamp", "timestamptz"),
    ("localtime", "time"),
    ("localtimestamp", "timestamp"),
];
/// Words that choose among rows, or that mean something else on each shard.
const OF_ONE_SHARD: [&str; 6] = [
    "limit",
    "offset",
    "fetch",
    "over",
    "tablesample",
    "current_catalog",
];
/// Columns that every table has, with values of its shard's own.
const OF_TABLES: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];
/// Aggregates whose result depends on the order of rows, which copies of a table need not share.
const IN_SOME_ORDER: [&str; 13] = [
    "any_value",
    "array_agg",
    "json_agg",
    "json_agg_strict",
    "json_arrayagg",
    "json_object_agg",
    "json_objectagg",
    "jsonb_agg",
    "jsonb_agg_strict",
    "jsonb_object_agg",
    "range_agg",
    "string_agg",
    "xmlagg",
];

#[cfg(test)]
mod tests;
