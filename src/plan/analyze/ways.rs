//! How a statement is computed when it needs several shards: gathered, combined, spread, or with something computed first.
//!
//! Each way is taken only where it gives exactly what one PostgreSQL with all rows would give.

use super::{Planner, calls::Calls};
use crate::{
    plan::scope::Instance,
    plan::{
        block::{Analysis, Place},
        combine::{self, Combine},
        gather::{Gather, Named, Plain, is_settled},
        route::Pin,
        spread::{self, Asked, Spread},
        unroutable::Unroutable,
    },
    sql::tree::{Body, Depth, Kind, Name, Query, SettingCalls},
};

impl<'a> Planner<'a> {
    /// What an INSERT leaves to defaults that must be computed before its rows have their shards.
    pub(super) fn computed(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
    ) -> Option<Box<crate::plan::defaults::Computes>> {
        let Kind::Insert(insert) = kind else {
            return None;
        };
        let fits = self.pinned.is_none()
            && self.context.computed.is_empty()
            && self.context.utf8
            && self.context.standard_conforming_strings
            && self.statement.depth == Depth::Whole
            && !self.snapshot.is_single();
        let (table, key) = match analysis.place(&insert.table.name) {
            Place::Sharded { table, key, .. } => (table, Some(key)),
            Place::Reference(table) => (table, None),
            Place::Single(_) | Place::Catalog | Place::Unknown => return None,
        };
        let first = table.columns.first().map(String::as_str);
        let into = crate::plan::defaults::Into {
            effects: &table.effects,
            key,
            first: first.filter(|first| Some(*first) == key),
            path: &self.context.search_path,
        };
        let slots = self.own_slots();
        let found =
            || crate::plan::defaults::Computes::find(insert, self.own_text(), &slots, &into);
        fits.then(found).flatten().map(Box::new)
    }

    /// How the rows of an INSERT … SELECT that reads no table are computed before it runs.
    pub(super) fn sourced_first(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
        calls: &Calls,
    ) -> Option<Box<crate::plan::source::Sourced>> {
        let Kind::Insert(insert) = kind else {
            return None;
        };
        let fits = self.pinned.is_none()
            && self.context.utf8
            && self.context.standard_conforming_strings
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && calls.are_harmless()
            && !self.snapshot.is_single();
        if !fits {
            return None;
        }
        let (functions, slots) = (&self.statement.functions, self.own_slots());
        crate::plan::source::Sourced::find(insert, functions, self.own_text(), &slots, analysis)
            .map(Box::new)
    }

    /// How the answers of several shards are put together, when each gives its part of the whole.
    pub(super) fn combined(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
        calls: &Calls,
    ) -> Option<Box<Combine>> {
        let Kind::Query(query) = kind else {
            return None;
        };
        let settled = self.context.standard_conforming_strings && self.context.utf8;
        let unpinned = |why: &Unroutable| matches!(why, Unroutable::Unpinned { .. });
        let reads = !analysis.writes
            && analysis.fixed.is_empty()
            && analysis.refusals.iter().all(unpinned)
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && self.pinned.is_none()
            && calls.are_harmless();
        if !(settled && reads) {
            return None;
        }
        combine::find(query, self.own_text(), &self.statement.functions, analysis).map(Box::new)
    }

    /// How a read of one sharded table is computed when it needs several shards.
    pub(super) fn gathered(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
        calls: &Calls,
    ) -> Option<Box<Gather>> {
        let Kind::Query(query) = kind else {
            return None;
        };
        let reads = query.into.is_none()
            && !analysis.writes
            && analysis.fixed.is_empty()
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && calls.are_harmless();
        let unpinned = |why: &Unroutable| matches!(why, Unroutable::Unpinned { .. });
        let settled = self.context.standard_conforming_strings && self.context.utf8;
        let table = &analysis.instances.first()?.table;
        let same = analysis.instances.iter().all(|one| one.table == *table);
        let only_unpinned = analysis.refusals.iter().all(unpinned);
        if !(reads && settled && same && only_unpinned && self.pinned.is_none()) {
            return None;
        }
        let plain = |name: &Name| {
            let own = name
                .schema
                .as_deref()
                .is_none_or(|schema| schema == "pg_catalog");
            own && is_settled(&name.name)
        };
        let plain = if self.statement.functions.iter().all(plain) {
            Plain::Yes
        } else {
            Plain::No
        };
        let mut schemas = analysis.instances.iter().map(|one| self.schema_of(one));
        let schema = schemas.next()??;
        if !schemas.all(|other| other == Some(schema)) {
            return None;
        }
        let known = self.snapshot.table(schema, table)?;
        // Whether what it holds is known to its last column.
        // Amounts of money read back otherwise where the server's locale is another.
        let money = known.sources.iter().any(|source| source.contains("money"));
        if money || known.columns.is_empty() || known.columns.len() != known.sources.len() {
            return None;
        }
        let gather = Gather {
            table: table.clone(),
            schema: schema.clone(),
            count: analysis.instances.len(),
            plain,
            named: named(query),
        };
        let whole = analysis.refusals.is_empty() || gather.texts(self.own_text(), known).is_some();
        whole.then(|| Box::new(gather))
    }

    /// How a write is made of parts when it needs several shards.
    pub(super) fn spread_over_shards(
        &self,
        kind: &Kind,
        analysis: &Analysis<'_>,
        pins: &[Pin],
        calls: &Calls,
    ) -> Option<Box<Spread>> {
        let fits = analysis.writes
            && self.statement.depth == Depth::Whole
            && self.statement.settings == SettingCalls::None
            && self.pinned.is_none()
            && calls.are_harmless();
        if !fits || !writes(kind) {
            return None;
        }
        let asked = Asked {
            kind,
            functions: &self.statement.functions,
            own: self.own_text(),
            start: self.statement.start as usize,
            slots: self.slots,
            reading: self.reading(),
        };
        spread::spread(&asked, analysis, pins)
    }

    /// Where a sharded table was found.
    fn schema_of<'s>(&'s self, instance: &'s Instance) -> Option<&'s String> {
        let has = |schema: &&String| self.snapshot.table(schema, &instance.table).is_some();
        let mut path = self.context.search_path.iter();
        instance.schema.as_ref().or_else(|| path.find(has))
    }
}

/// Which targets of a query of one block are given names; none of another.
pub(super) fn named(query: &Query) -> Vec<Named> {
    let Body::Select(select) = &query.body else {
        return Vec::new();
    };
    let targets = select.targets.iter();
    let named = targets.map(|target| target.name.as_ref().map_or(Named::No, |_| Named::Yes));
    named.collect()
}

/// Whether a statement changes rows, and nothing around it does something else with them.
pub(super) fn writes(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Insert(_) | Kind::Update(_) | Kind::Delete(_) | Kind::Merge(_)
    )
}
