//! Defaults that an INSERT to several shards, or to copies, has written out, because each server would compute another
//! value. Pure.
//!
//! What must stay true: a new row gets what the table's default would have given it on one PostgreSQL. A time of the
//! transaction is one for all shards; a row's own value is drawn once for all copies. Only columns that the statement
//! leaves to their default are touched.

use super::{
    Asked, Spread, What,
    text::{Edit, Layout, at_time, quote},
};
use crate::{
    catalog::effects::{Once, Varying},
    plan::block::{Analysis, Place},
    sql::{
        normalize::{Slot, Strings},
        scan::{self, pieces, slots_of},
        tree::{Body, Expr, Insert, Kind, Merge, MergeAct, Overriding, Relation, Select, Target},
    },
};

/// What is written out of a statement's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    columns: Vec<Filled>,
    source: Source,
    /// The column list, where the statement has none, quoted.
    list: Option<Vec<String>>,
    /// How often one of the columns is assigned DEFAULT.
    assigned: usize,
    /// How often an action of a MERGE gives one of them a value.
    given: usize,
}

/// One column that is left to its default.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filled {
    column: String,
    expression: String,
    once: Once,
    place: Where,
}

/// Where its value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// Nowhere: it is added to the column list and to each row.
    Behind,
    /// In some rows, as DEFAULT, at this place.
    At(usize),
    /// It is assigned DEFAULT.
    Assigned,
}

/// Where an INSERT has its rows from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    #[default]
    Values,
    Select,
    /// DEFAULT VALUES.
    Defaults,
    /// WHEN NOT MATCHED THEN INSERT.
    Actions,
}

/// What is filled in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'g> {
    /// The transaction's time, as text that PostgreSQL reads.
    pub time: Option<&'g str>,
    /// For each row of VALUES the values that are its own, in the order of [`Fill::drawn`].
    pub drawn: &'g [Vec<Option<String>>],
}

impl Given<'static> {
    /// Stands for what is not known yet.
    pub(super) const TRIED: Self = Self {
        time: Some("epoch"),
        drawn: &[],
    };
}

/// Whether a default asks for the time at which the transaction began.
#[must_use]
pub fn asks_for_time(expression: &str) -> bool {
    with_time(expression, "epoch").is_none_or(|made| made != expression)
}

/// Whether a default is another value for each row.
#[must_use]
pub fn is_each_rows(expression: &str) -> bool {
    let slots = slots_of(expression, Strings::Standard);
    let Some(pieces) = pieces(expression, &slots) else {
        return false;
    };
    let drawn = |name: &str| super::RANDOM.contains(&name) || name == "nextval";
    pieces
        .iter()
        .zip(pieces.iter().skip(1))
        .any(|(piece, next)| {
            piece.kind == scan::Kind::Word
                && next.is_sign("(")
                && drawn(piece.text.to_ascii_lowercase().as_str())
        })
}

/// A default with the transaction's time in it; `None`: not understood.
pub(in crate::plan) fn with_time(expression: &str, time: &str) -> Option<String> {
    let pieces = pieces(expression, &slots_of(expression, Strings::Standard))?;
    let edits = at_time(&pieces, time)?;
    Some(super::text::edited(expression, 0..expression.len(), &edits))
}

/// Whether the statement leaves columns to defaults that ask for the transaction's time, wherever it runs.
pub(in crate::plan) fn leaves_time(kind: &Kind, analysis: &Analysis<'_>) -> bool {
    let timed = |table: &Relation| {
        let effects = analysis.effects(&table.name);
        let varying = effects.map(|effects| effects.varying.as_slice());
        let varying = varying.unwrap_or_default().iter();
        varying
            .filter(|varying| varying.once == Once::Transaction)
            .collect::<Vec<_>>()
    };
    match kind {
        Kind::Insert(insert) => {
            let conflict = insert
                .conflict
                .iter()
                .flat_map(|conflict| &conflict.assignments);
            let assigned: Vec<&Target> = conflict.collect();
            timed(&insert.table).into_iter().any(|varying| {
                of_insert(insert, analysis, varying) != Leaves::Nothing
                    || assigned
                        .iter()
                        .any(|target| assigns_default(target, varying))
            })
        }
        Kind::Update(update) => timed(&update.table).into_iter().any(|varying| {
            update
                .assignments
                .iter()
                .any(|one| assigns_default(one, varying))
        }),
        // What its actions leave out is not looked at.
        Kind::Merge(merge) => !timed(&merge.table).is_empty(),
        Kind::Explain { inner, .. } => leaves_time(inner, analysis),
        _ => false,
    }
}

/// What an INSERT leaves of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    Nothing,
    Some(Where),
}

fn of_insert(insert: &Insert, analysis: &Analysis<'_>, varying: &Varying) -> Leaves {
    let columns = columns_of(insert, analysis);
    let at = columns.iter().position(|column| *column == varying.column);
    let body = insert.source.as_ref().map(|source| &source.body);
    match (at, body) {
        (None, _) | (_, None) => Leaves::Some(Where::Behind),
        (Some(at), Some(Body::Values(rows))) => {
            let is_default = |row: &Vec<Expr>| matches!(row.get(at), Some(Expr::Default));
            if rows.iter().any(is_default) {
                Leaves::Some(Where::At(at))
            } else {
                Leaves::Nothing
            }
        }
        (Some(_), Some(_)) => Leaves::Nothing,
    }
}

/// The columns that an INSERT gives values for: without a list as many as its rows have.
fn columns_of(insert: &Insert, analysis: &Analysis<'_>) -> Vec<String> {
    if let Some(columns) = &insert.columns {
        return columns.clone();
    }
    let known = match analysis.place(&insert.table.name) {
        Place::Sharded { table, .. } | Place::Reference(table) => table.columns.clone(),
        Place::Single(_) | Place::Catalog | Place::Unknown => Vec::new(),
    };
    let width = match insert.source.as_ref().map(|source| &source.body) {
        Some(Body::Values(rows)) => rows.first().map_or(0, Vec::len),
        Some(Body::Select(select)) if !has_star(select) => select.targets.len(),
        Some(Body::Select(_) | Body::SetOperation(_)) => known.len(),
        None => 0,
    };
    known.into_iter().take(width).collect()
}

fn has_star(select: &Select) -> bool {
    let stars = |target: &Target| matches!(&target.value, Expr::Column(column) if column.star);
    select.targets.iter().any(stars)
}

fn assigns_default(target: &Target, varying: &Varying) -> bool {
    target.name.as_deref() == Some(&varying.column) && matches!(target.value, Expr::Default)
}

/// What of a statement's defaults is to be written out; `None`: it cannot be.
pub(super) fn fill(asked: &Asked<'_>, analysis: &Analysis<'_>, what: &What) -> Option<Fill> {
    let (table, assignments) = match asked.kind {
        Kind::Insert(insert) => {
            let conflict = insert.conflict.as_ref();
            let assignments = conflict.map(|conflict| conflict.assignments.as_slice());
            (&insert.table, assignments.unwrap_or_default())
        }
        Kind::Update(update) => (&update.table, update.assignments.as_slice()),
        Kind::Merge(merge) => return of_merge(merge, analysis),
        _ => return Some(Fill::default()),
    };
    let effects = analysis.effects(&table.name);
    let varying = effects.map(|effects| effects.varying.as_slice());
    let matters = |one: &&Varying| one.once == Once::Transaction || matches!(what, What::Copies(_));
    let mut fill = Fill::default();
    for one in varying.unwrap_or_default().iter().filter(matters) {
        let assigned = assignments
            .iter()
            .filter(|target| assigns_default(target, one))
            .count();
        if assigned > 0 {
            if one.once != Once::Transaction {
                return None;
            }
            fill.assigned += assigned;
            fill.add(one, Where::Assigned);
        }
        if let Kind::Insert(insert) = asked.kind
            && let Leaves::Some(place) = of_insert(insert, analysis, one)
        {
            fill.add(one, place);
        }
    }
    if let Kind::Insert(insert) = asked.kind {
        fill.source_of(insert, analysis)?;
    }
    Some(fill)
}

/// What of a MERGE's defaults is to be written out: columns that none of its actions names.
fn of_merge(merge: &Merge, analysis: &Analysis<'_>) -> Option<Fill> {
    let mut fill = Fill {
        source: Source::Actions,
        ..Fill::default()
    };
    let Some(effects) = analysis.effects(&merge.table.name) else {
        return Some(fill);
    };
    let timed = |varying: &&Varying| varying.once == Once::Transaction;
    for varying in effects.varying.iter().filter(timed) {
        let mut left = 0;
        for action in &merge.actions {
            match &action.act {
                MergeAct::Insert {
                    columns, values, ..
                } => {
                    let at = columns.iter().position(|column| *column == varying.column);
                    match at.map(|at| values.get(at)) {
                        None if !columns.is_empty() => left += 1,
                        Some(Some(value)) if !matches!(value, Expr::Default) => fill.given += 1,
                        _ => return None,
                    }
                }
                MergeAct::Update(targets) => {
                    if targets
                        .iter()
                        .any(|target| assigns_default(target, varying))
                    {
                        return None;
                    }
                }
                MergeAct::Other => {}
            }
        }
        if left > 0 {
            fill.add(varying, Where::Behind);
        }
    }
    // Which action leaves which column is not told apart.
    (fill.given == 0 || fill.columns.is_empty()).then_some(fill)
}

impl Spread {
    /// A query for the values of this text that are each row's own, whose answer [`Fill::drawn`] reads; `None`: there are
    /// none.
    #[must_use]
    pub fn draw(&self, text: &str, slots: &[Slot]) -> Option<String> {
        self.fill.own().next()?;
        let rows = Layout::of(text, slots)?.rows();
        self.fill.draw(rows.map_or(1, |rows| rows.len()))
    }
}

impl Fill {
    /// Whether numbers of a sequence are drawn.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.own()
            .any(|filled| filled.expression.contains("nextval("))
    }

    fn add(&mut self, varying: &Varying, place: Where) {
        self.columns.push(Filled {
            column: varying.column.clone(),
            expression: varying.expression.clone(),
            once: varying.once,
            place,
        });
    }

    /// Where the INSERT has its rows from, and whether they can be filled.
    fn source_of(&mut self, insert: &Insert, analysis: &Analysis<'_>) -> Option<()> {
        let is_row = |filled: &Filled| filled.once != Once::Transaction;
        if insert.overriding == Overriding::UserValue && self.columns.iter().any(is_row) {
            return None;
        }
        self.source = match insert.source.as_ref().map(|source| &source.body) {
            None => Source::Defaults,
            Some(Body::Values(_)) => Source::Values,
            Some(_) => {
                // Another number for each copy, which their comparison finds.
                self.columns.retain(|filled| !is_row(filled));
                Source::Select
            }
        };
        if insert.columns.is_none() && self.adds() {
            let columns = columns_of(insert, analysis);
            if columns.is_empty() && self.source != Source::Defaults {
                return None;
            }
            self.list = Some(columns.iter().map(|column| quote(column)).collect());
        }
        Some(())
    }

    /// Whether columns are added.
    fn adds(&self) -> bool {
        self.columns
            .iter()
            .any(|filled| filled.place == Where::Behind)
    }

    pub(super) fn asks_for_time(&self) -> bool {
        let mut columns = self.columns.iter();
        columns.any(|filled| filled.once == Once::Transaction)
    }

    /// The defaults that are each row's own, in their order.
    fn own(&self) -> impl Iterator<Item = &Filled> {
        let columns = self.columns.iter();
        columns.filter(|filled| filled.once != Once::Transaction)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// A query for the values that are each row's own: one line of text for each of so many rows, its values and lines
    /// divided as [`Fill::drawn`] reads them. `None`: there are none.
    pub(super) fn draw(&self, rows: usize) -> Option<String> {
        let own: Vec<String> = self
            .own()
            .map(|filled| format!("({})::pg_catalog.text", filled.expression))
            .collect();
        let draws = !own.is_empty();
        draws.then(|| {
            format!(
                "SELECT pg_catalog.string_agg(pg_catalog.concat_ws(pg_catalog.chr(2), {}), pg_catalog.chr(1)) \
                 FROM pg_catalog.generate_series(1, {})",
                own.join(", "),
                rows.max(1)
            )
        })
    }

    /// The answer to the query that draws the values, row by row.
    #[must_use]
    pub fn drawn(answer: &str) -> Vec<Vec<Option<String>>> {
        let row = |row: &str| {
            row.split('\u{2}')
                .map(|value| Some(value.to_owned()))
                .collect()
        };
        answer.split('\u{1}').map(row).collect()
    }

    /// What the text reads otherwise where defaults are written out.
    pub(super) fn edits(&self, layout: &Layout<'_>, given: &Given<'_>) -> Option<Vec<Edit>> {
        let mut edits = Vec::new();
        if self.columns.is_empty() {
            return Some(edits);
        }
        self.assigned_edits(layout, given, &mut edits)?;
        if self.adds() && self.source != Source::Actions {
            self.list_edit(layout, &mut edits)?;
        }
        match self.source {
            Source::Actions => {
                let names = self.added_names().join(", ");
                let values = self.added(0, given)?.join(", ");
                for (list, row) in layout.inserting_actions()? {
                    edits.push(Edit::insert(list, &format!(", {names}")));
                    edits.push(Edit::insert(row, &format!(", {values}")));
                }
            }
            Source::Values => self.row_edits(layout, given, &mut edits)?,
            Source::Select => {
                let values = self.added(0, given)?;
                if !values.is_empty() {
                    edits.push(Edit::insert(
                        layout.targets_end()?,
                        &format!(", {}", values.join(", ")),
                    ));
                }
            }
            Source::Defaults => {
                let (from, to) = layout.default_values()?;
                let values = self.added(0, given)?.join(", ");
                let new = format!(
                    "({}) {}VALUES ({values})",
                    self.added_names().join(", "),
                    self.overriding(layout)
                );
                edits.push(Edit {
                    place: from..to,
                    new,
                });
            }
        }
        Some(edits)
    }

    fn added_names(&self) -> Vec<String> {
        let added = self
            .columns
            .iter()
            .filter(|filled| filled.place == Where::Behind);
        added.map(|filled| quote(&filled.column)).collect()
    }

    /// The values of the columns that are added to a row.
    fn added(&self, row: usize, given: &Given<'_>) -> Option<Vec<String>> {
        let added = self
            .columns
            .iter()
            .filter(|filled| filled.place == Where::Behind);
        added.map(|filled| self.value(filled, row, given)).collect()
    }

    fn value(&self, filled: &Filled, row: usize, given: &Given<'_>) -> Option<String> {
        if filled.once == Once::Transaction {
            return Some(format!("({})", with_time(&filled.expression, given.time?)?));
        }
        let at = self.own().position(|own| own == filled)?;
        match given.drawn.get(row) {
            Some(values) => Some(match values.get(at)? {
                Some(value) => format!("'{}'", value.replace('\'', "''")),
                None => "NULL".to_owned(),
            }),
            None => Some(format!("({})", filled.expression)),
        }
    }

    fn overriding(&self, layout: &Layout<'_>) -> &'static str {
        let always =
            |filled: &Filled| filled.once == Once::RowAlways && filled.place == Where::Behind;
        if self.columns.iter().any(always) && !layout.says("overriding") {
            "OVERRIDING SYSTEM VALUE "
        } else {
            ""
        }
    }

    fn list_edit(&self, layout: &Layout<'_>, edits: &mut Vec<Edit>) -> Option<()> {
        if self.source == Source::Defaults {
            return Some(());
        }
        let added = self.added_names().join(", ");
        let (start, list) = layout.rows_start()?;
        let overriding = self.overriding(layout);
        match (&self.list, list) {
            (None, Some(end)) => {
                edits.push(Edit::insert(end, &format!(", {added}")));
                if !overriding.is_empty() {
                    edits.push(Edit::insert(start, overriding));
                }
            }
            (Some(columns), _) => {
                let all = [columns.join(", "), added].join(", ");
                edits.push(Edit::insert(start, &format!("({all}) {overriding}")));
            }
            (None, None) => return None,
        }
        Some(())
    }

    fn row_edits(
        &self,
        layout: &Layout<'_>,
        given: &Given<'_>,
        edits: &mut Vec<Edit>,
    ) -> Option<()> {
        if !self
            .columns
            .iter()
            .any(|filled| filled.place != Where::Assigned)
        {
            return Some(());
        }
        for (at, row) in layout.rows()?.into_iter().enumerate() {
            let values = self.added(at, given)?;
            if !values.is_empty() {
                edits.push(Edit::insert(
                    row.end - 1,
                    &format!(", {}", values.join(", ")),
                ));
            }
            for filled in &self.columns {
                let Where::At(place) = filled.place else {
                    continue;
                };
                if let Some(cell) = layout.default_cell(&row, place) {
                    let new = self.value(filled, at, given)?;
                    edits.push(Edit { place: cell, new });
                }
            }
        }
        Some(())
    }

    fn assigned_edits(
        &self,
        layout: &Layout<'_>,
        given: &Given<'_>,
        edits: &mut Vec<Edit>,
    ) -> Option<()> {
        let before = edits.len();
        let assigned = self
            .columns
            .iter()
            .filter(|filled| filled.place == Where::Assigned);
        for filled in assigned {
            let new = self.value(filled, 0, given)?;
            let places = layout.assigned_default(&filled.column);
            edits.extend(places.into_iter().map(|place| Edit {
                place,
                new: new.clone(),
            }));
        }
        // Of a list of columns it would not have been found.
        (edits.len() - before == self.assigned).then_some(())
    }
}
