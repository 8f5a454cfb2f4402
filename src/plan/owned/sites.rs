//! Where in a statement's text a scan's condition goes. Pure.

use super::rows;
use crate::{
    catalog::{group::GroupId, snapshot::Table},
    plan::{
        block::{Analysis, Place},
        scope::{Instance, Usage},
        spread::quote,
        unroutable::Undoubled,
    },
    sql::{
        scan::{Kind as Sort, Piece},
        tree::{Kind, Name, Statement},
    },
};
use std::ops::Range;

/// A statement's text in pieces.
pub(super) struct Layout<'a> {
    pub(super) pieces: &'a [Piece<'a>],
    pub(super) statement: &'a Statement,
    pub(super) analysis: &'a Analysis<'a>,
}

impl Layout<'_> {
    pub(super) fn site(&self, scan: &Instance, number: usize) -> Result<Site, Undoubled> {
        let named = self.named(scan).ok_or(Undoubled::Text)?;
        if self.hides_key(scan) {
            return Err(Undoubled::View);
        }
        let key = |called: &str| format!("{}.{}", quote(called), quote(&scan.key));
        let called = scan.alias.as_ref().map_or(&scan.table, |alias| &alias.name);
        let changed = || match self.schema_to_say(scan) {
            Some(schema) => format!("{}.{}", quote(&schema), key(called)),
            None => key(called),
        };
        let (column, way) = match scan.usage {
            Usage::Changed => (changed(), self.condition(&named, scan)?),
            Usage::Merged => (changed(), self.merged(&named)?),
            Usage::Read => match self.renamed_key(scan) {
                Some(renamed) => {
                    let column = format!("{}.{}", quote(called), quote(&renamed));
                    let place = named.start..self.end_of_item(&named, scan)?;
                    let table = named.table;
                    let way = Way::Joined {
                        place,
                        table,
                        number,
                    };
                    (column, way)
                }
                None => {
                    let sampled = self.piece(named.next_behind_alias(self, scan)?);
                    if sampled.is_some_and(|piece| piece.is("tablesample")) {
                        return Err(Undoubled::ColumnAliases);
                    }
                    let place = named.start..named.end;
                    (key(&scan.table), Way::Wrapped { place })
                }
            },
        };
        let group = scan.group;
        Ok(Site { group, column, way })
    }

    fn piece(&self, at: usize) -> Option<&Piece<'_>> {
        self.pieces.get(at)
    }

    fn is_sign(&self, at: usize, sign: &str) -> bool {
        self.piece(at).is_some_and(|piece| piece.is_sign(sign))
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.piece(at).is_some_and(|piece| piece.is(word))
    }

    /// Where the relation's name stands, with ONLY and the star.
    fn named(&self, scan: &Instance) -> Option<Named> {
        let location = scan.location as usize;
        let first = self
            .pieces
            .iter()
            .position(|piece| piece.start == location)?;
        let mut last = first;
        while self.is_sign(last + 1, ".") {
            last += 2;
        }
        let name = self.piece(last)?;
        let is_name = matches!(name.kind, Sort::Word | Sort::Quoted);
        if !is_name || name.folded() != scan.table {
            return None;
        }
        let (mut from, mut to) = (first, last);
        let before = |at: usize, word: &str| at.checked_sub(1).is_some_and(|at| self.is(at, word));
        let opened = first
            .checked_sub(1)
            .filter(|at| self.is_sign(*at, "(") && before(*at, "only"));
        if let Some(open) = opened {
            if !self.is_sign(last + 1, ")") {
                return None;
            }
            (from, to) = (open - 1, last + 1);
        } else if before(first, "only") {
            from = first - 1;
        } else if self.is_sign(last + 1, "*") {
            to = last + 1;
        }
        let table = from
            .checked_sub(1)
            .and_then(|at| self.piece(at))
            .filter(|piece| piece.is("table"));
        Some(Named {
            start: self.piece(from)?.start,
            end: self.piece(to)?.end,
            depth: self.piece(from)?.depth,
            next: to + 1,
            table: table.map(|piece| piece.start..piece.end),
        })
    }

    /// The schema of a table without an alias, where a table of the same name may stand beside it.
    fn schema_to_say(&self, scan: &Instance) -> Option<String> {
        let named = |at: &usize| {
            let same = self.piece(*at).is_some_and(|it| it.folded() == scan.table);
            same && self.is_sign(at.wrapping_sub(1), ".") && !self.is_sign(at + 1, ".")
        };
        let alone = scan.alias.is_some() || !(0..self.pieces.len()).any(|at| named(&at));
        if alone {
            return None;
        }
        let mut path = self.analysis.context.search_path.iter();
        let has = |schema: &&String| {
            let snapshot = self.analysis.snapshot;
            let known = snapshot.table(schema, &scan.table).is_some();
            known || snapshot.other(schema, &scan.table).is_some()
        };
        scan.schema.clone().or_else(|| path.find(has).cloned())
    }

    /// Whether it is a view that does not show its rows' keys.
    fn hides_key(&self, scan: &Instance) -> bool {
        let table = self.table(scan);
        table.is_some_and(|table| table.nature.is_view() && !table.columns.contains(&scan.key))
    }

    fn table(&self, scan: &Instance) -> Option<&Table> {
        let name = Name {
            schema: scan.schema.clone(),
            name: scan.table.clone(),
        };
        match self.analysis.place(&name) {
            Place::Sharded { table, .. } => Some(table),
            _ => None,
        }
    }

    /// What the key's column is called behind the relation's alias; `None`: not known.
    fn renamed_key(&self, scan: &Instance) -> Option<String> {
        let renames = scan.alias.as_ref().map_or(&[][..], |alias| &alias.columns);
        if renames.is_empty() {
            return Some(scan.key.clone());
        }
        let table = self.table(scan)?;
        let at = table.columns.iter().position(|name| *name == scan.key)?;
        Some(renames.get(at).unwrap_or(&scan.key).clone())
    }

    /// Where the item of FROM ends, with its alias and TABLESAMPLE.
    fn end_of_item(&self, named: &Named, scan: &Instance) -> Result<usize, Undoubled> {
        let mut next = named.next_behind_alias(self, scan)?;
        if self.is(next, "tablesample") {
            next += 1;
            while self.is_sign(next + 1, ".") {
                next += 2;
            }
            next = self.behind_pair(next + 1).ok_or(Undoubled::Text)?;
            if self.is(next, "repeatable") {
                next = self.behind_pair(next + 1).ok_or(Undoubled::Text)?;
            }
        }
        let last = next.checked_sub(1).and_then(|at| self.piece(at));
        last.map(|piece| piece.end).ok_or(Undoubled::Text)
    }

    /// The piece behind a pair of parentheses that opens here.
    fn behind_pair(&self, at: usize) -> Option<usize> {
        let open = self.piece(at).filter(|piece| piece.is_sign("("))?;
        let closes = |piece: &Piece<'_>| piece.depth == open.depth && piece.is_sign(")");
        let length = self.pieces.get(at + 1..)?.iter().position(closes)?;
        Some(at + length + 2)
    }

    /// The pieces of the statement that a written relation stands in, behind it.
    fn behind(&self, named: &Named) -> Range<usize> {
        let ends = |piece: &Piece<'_>| piece.depth < named.depth || piece.is_sign(";");
        let rest = self.pieces.get(named.next..).unwrap_or_default();
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        named.next..named.next + length
    }

    /// The first of these that is this keyword and no name, outside of parentheses.
    fn keyword(&self, range: Range<usize>, depth: u32, word: &str) -> Option<usize> {
        let is = |at: &usize| {
            let name = self.is(*at - 1, "as") || self.is_sign(*at - 1, ".");
            self.piece(*at)
                .is_some_and(|piece| piece.depth == depth && piece.is(word) && !name)
        };
        range.into_iter().find(is)
    }

    /// The condition of an UPDATE or DELETE.
    fn condition(&self, named: &Named, scan: &Instance) -> Result<Way, Undoubled> {
        let alias = named.next_behind_alias(self, scan)?;
        let whole = alias..self.behind(named).end;
        let returning = self.keyword(whole.clone(), named.depth, "returning");
        let end = returning.unwrap_or(whole.end);
        let last = end.checked_sub(1).and_then(|at| self.piece(at));
        let last = last.ok_or(Undoubled::Text)?.end;
        let Some(at) = self.keyword(whole.start..end, named.depth, "where") else {
            return Ok(Way::Where(last));
        };
        if self.is(at + 1, "current") && self.is(at + 2, "of") {
            return Err(Undoubled::CurrentOf);
        }
        let start = self.piece(at).ok_or(Undoubled::Text)?.end;
        Ok(Way::Before { place: start..last })
    }

    /// The condition of a MERGE: the last ON before its actions.
    fn merged(&self, named: &Named) -> Result<Way, Undoubled> {
        if let Some(Kind::Merge(merge)) = rows(&self.statement.kind)
            && merge.by_source
        {
            return Err(Undoubled::MergeBySource);
        }
        let (mut cases, mut on, mut when) = (0_u32, None, None);
        for at in self.behind(named) {
            let Some(piece) = self.piece(at).filter(|piece| piece.depth == named.depth) else {
                continue;
            };
            if self.is_sign(at - 1, ".") {
                // A column's name.
                continue;
            }
            if piece.is("case") {
                cases += 1;
            } else if piece.is("end") {
                cases = cases.saturating_sub(1);
            } else if piece.is("on") {
                on = Some(at);
            } else if piece.is("when") && cases == 0 {
                when = Some(at);
                break;
            }
        }
        let (Some(on), Some(when)) = (on, when) else {
            return Err(Undoubled::Text);
        };
        let place = || Some(self.piece(on)?.end..self.piece(when.checked_sub(1)?)?.end);
        let place = place().ok_or(Undoubled::Text)?;
        Ok(Way::Before { place })
    }
}

/// Where a relation is named.
struct Named {
    /// Bytes.
    start: usize,
    end: usize,
    depth: u32,
    /// The piece behind it.
    next: usize,
    /// The word of `TABLE name`.
    table: Option<Range<usize>>,
}

impl Named {
    /// The piece behind the alias.
    fn next_behind_alias(&self, layout: &Layout<'_>, scan: &Instance) -> Result<usize, Undoubled> {
        let Some(alias) = &scan.alias else {
            return Ok(self.next);
        };
        let at = self.next + usize::from(layout.is(self.next, "as"));
        let named = layout
            .piece(at)
            .is_some_and(|piece| piece.folded() == alias.name);
        if !named {
            return Err(Undoubled::Text);
        }
        if alias.columns.is_empty() {
            return Ok(at + 1);
        }
        layout.behind_pair(at + 1).ok_or(Undoubled::Text)
    }
}

/// A scan, and where its condition goes.
pub(super) struct Site {
    pub(super) group: GroupId,
    /// The key, as SQL names it there.
    pub(super) column: String,
    way: Way,
}

/// How a scan gets its condition; places in bytes.
enum Way {
    /// In FROM, with its alias: joined with nothing. `table`: the word of `TABLE name`.
    Joined {
        place: Range<usize>,
        table: Option<Range<usize>>,
        number: usize,
    },
    /// In FROM, without its alias: as a query.
    Wrapped { place: Range<usize> },
    /// A condition between these places comes behind it.
    Before { place: Range<usize> },
    /// There is no WHERE: it would stand there.
    Where(usize),
}

impl Site {
    pub(super) fn edits(&self, owned: &str) -> Vec<(Range<usize>, String)> {
        let at = |at: usize, new: String| (at..at, new);
        match &self.way {
            Way::Joined {
                place,
                table,
                number,
            } => {
                let select = table
                    .as_ref()
                    .map(|word| (word.clone(), "SELECT * FROM".to_owned()));
                let joined = format!(" JOIN (SELECT) AS \"shardway owned {number}\" ON {owned})");
                select
                    .into_iter()
                    .chain([at(place.start, "(".to_owned()), at(place.end, joined)])
                    .collect()
            }
            Way::Wrapped { place } => vec![
                at(place.start, "(SELECT * FROM ".to_owned()),
                at(place.end, format!(" WHERE {owned})")),
            ],
            Way::Before { place } => vec![
                at(place.start, format!(" {owned} AND (")),
                at(place.end, ")".to_owned()),
            ],
            Way::Where(place) => vec![at(*place, format!(" WHERE {owned}"))],
        }
    }
}
