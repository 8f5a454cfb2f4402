//! Views and children: relations whose rows are those of others. What their definitions say of where these are.

use super::{columns::Derived, connect::AskError, survey::Observed};
use crate::{
    catalog::{
        effects::{Effects, Fired, Hazard, HazardKind},
        group::GroupId,
        snapshot::{Nature, Other, Placement, Snapshot, Table, TableName, Unlisted},
    },
    plan::analyze::{Shown, shown},
};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Client;

/// A view, as a server defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub definition: String,
    pub kind: ViewKind,
}

/// What becomes of a view's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewKind {
    /// They are computed when they are read.
    Read,
    /// As above, and PostgreSQL lets its table's rows be written through it.
    Written,
    /// They were computed at a moment of each server's own.
    Stored,
}

/// Run where nothing but `pg_catalog` is searched, so that definitions name everything else with its schema.
const VIEWS: &str = "\
SELECT n.nspname::text, c.relname::text, pg_catalog.pg_get_viewdef(c.oid), c.relkind = 'm', \
       pg_catalog.pg_relation_is_updatable(c.oid, false) & 28 = 28 AND NOT c.relhastriggers \
       AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid) = 1 \
FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('v', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_temp'";

const PARENTS: &str = "\
SELECT cn.nspname::text, c.relname::text, pn.nspname::text, p.relname::text \
FROM pg_catalog.pg_inherits i \
JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p', 'f') \
JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace \
JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
WHERE cn.nspname !~ '^pg_temp'";

/// Asks for the definitions of all views.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub(super) async fn views(client: &Client) -> Result<BTreeMap<TableName, View>, AskError> {
    let mut found = BTreeMap::new();
    for row in client.query(VIEWS, &[]).await? {
        let name = TableName {
            schema: row.try_get(0)?,
            name: row.try_get(1)?,
        };
        let kind = match (row.try_get(3)?, row.try_get(4)?) {
            (true, _) => ViewKind::Stored,
            (false, true) => ViewKind::Written,
            (false, false) => ViewKind::Read,
        };
        let definition = row.try_get(2)?;
        found.insert(name, View { definition, kind });
    }
    Ok(found)
}

/// Asks for the parents of partitions and inheritance children.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub(super) async fn parents(client: &Client) -> Result<BTreeSet<(TableName, TableName)>, AskError> {
    let mut found = BTreeSet::new();
    for row in client.query(PARENTS, &[]).await? {
        let child = TableName {
            schema: row.try_get(0)?,
            name: row.try_get(1)?,
        };
        let parent = TableName {
            schema: row.try_get(2)?,
            name: row.try_get(3)?,
        };
        found.insert((child, parent));
    }
    Ok(found)
}

/// Adds the partitions and children of listed tables, which are where their parents are.
pub(super) fn place_children(snapshot: &mut Snapshot, observed: &[&Observed]) {
    let pairs: BTreeSet<&(TableName, TableName)> =
        observed.iter().flat_map(|shard| &shard.parents).collect();
    let children: BTreeSet<&TableName> = pairs.iter().map(|(child, _)| child).collect();
    loop {
        let mut added = Vec::new();
        for child in &children {
            if snapshot.tables.contains_key(*child) {
                continue;
            }
            let parents = pairs.iter().filter(|(one, _)| one == *child);
            let mut places =
                parents.map(|(_, parent)| Some(&snapshot.tables.get(parent)?.placement));
            let first = places.next().flatten();
            if let Some(place) = first.filter(|place| places.all(|other| other == Some(*place))) {
                added.push(((*child).clone(), place.clone()));
            }
        }
        if added.is_empty() {
            return;
        }
        for (child, placement) in added {
            let table = Table {
                nature: Nature::Child,
                ..Table::unasked(placement)
            };
            snapshot.tables.insert(child, table);
        }
    }
}

/// What is known of children that nothing places: where their whole family is on one shard, they are there too; a table
/// some of whose children are elsewhere is not whole on any.
pub(super) fn judge_families(snapshot: &mut Snapshot, observed: &[&Observed]) {
    let pairs: Vec<&(TableName, TableName)> =
        observed.iter().flat_map(|shard| &shard.parents).collect();
    let Unlisted::On(shard) = snapshot.unlisted else {
        return;
    };
    let elsewhere = |snapshot: &Snapshot, name: &TableName| {
        let listed = snapshot.tables.get(name);
        listed.is_some_and(|table| table.placement != Placement::Single(shard))
    };
    let mut apart: BTreeSet<&TableName> = BTreeSet::new();
    loop {
        let before = apart.len();
        for (child, parent) in &pairs {
            let torn = |name: &TableName| apart.contains(name) || elsewhere(snapshot, name);
            if torn(child) || torn(parent) {
                apart.extend([child, parent]);
            }
        }
        if apart.len() == before {
            break;
        }
    }
    for name in pairs.iter().flat_map(|(child, parent)| [child, parent]) {
        if let Some(other) = snapshot.others.get_mut(name)
            && *other != Other::View
        {
            *other = if apart.contains(name) {
                Other::Derived
            } else {
                Other::Table
            };
        }
    }
}

/// Adds the views of which it is known where their rows are; `columns` are those on which all shards agree.
pub(super) fn place_views(
    snapshot: &mut Snapshot,
    observed: &[&Observed],
    columns: impl Fn(&TableName) -> Option<(Vec<String>, Vec<String>)>,
) {
    let mut views: BTreeMap<&TableName, Option<&View>> = BTreeMap::new();
    for (name, view) in observed.iter().flat_map(|shard| &shard.views) {
        let known = views.entry(name).or_insert(Some(view));
        // Shards that define it differently say nothing.
        *known = known.filter(|known| *known == view);
    }
    views.retain(|name, view| view.is_some() && !snapshot.tables.contains_key(*name));
    let is_everywhere = |name: &TableName| observed.iter().all(|one| one.views.contains_key(name));
    // A view may be made of others, in any order.
    loop {
        let mut added: Vec<(&TableName, Table)> = Vec::new();
        for (name, view) in &views {
            let shown = view.and_then(|view| Some((view, shown(&view.definition, snapshot)?)));
            if let Some((view, shown)) = shown
                && let Some((columns, sources)) = columns(name)
                && is_placed(snapshot, view.kind, &shown, || is_everywhere(name))
            {
                let table = Table {
                    columns,
                    sources,
                    effects: effects(snapshot, view, &shown),
                    nature: shown.nature,
                    placement: shown.placement,
                    over: shown.over,
                };
                added.push((name, table));
            }
        }
        if added.is_empty() {
            return;
        }
        for (name, table) in added {
            views.remove(name);
            snapshot.others.remove(name);
            snapshot.tables.insert(name.clone(), table);
        }
    }
}

/// Whether what servers have by this name is what the view shows. What a server has stored of some keys lacks the rows of
/// those that came to it since.
fn is_placed(
    snapshot: &Snapshot,
    kind: ViewKind,
    shown: &Shown,
    is_everywhere: impl Fn() -> bool,
) -> bool {
    let alone = matches!(shown.placement, Placement::Single(_));
    let whole = |group: &GroupId| snapshot.group(*group).shards().iter().count() == 1;
    match kind {
        ViewKind::Stored => alone && shown.over.iter().all(whole),
        ViewKind::Read | ViewKind::Written => alone || is_everywhere(),
    }
}

/// What a write through the view sets off: what it sets off in its table, where it shows one under its columns' names.
fn effects(snapshot: &Snapshot, view: &View, shown: &Shown) -> Effects {
    match &shown.of {
        Some(of) if view.kind == ViewKind::Written => {
            let effects = snapshot.effects(&of.schema, &of.name);
            effects.cloned().unwrap_or_default()
        }
        _ => Effects {
            hazards: vec![Hazard {
                name: "_RETURN".to_owned(),
                kind: HazardKind::View,
                fired: Fired::WRITES,
            }],
            ..Effects::default()
        },
    }
}

/// How a relation that nothing lists is known.
pub(super) fn other(derived: Option<Derived>) -> Other {
    match derived {
        Some(Derived::View) => Other::View,
        Some(Derived::Child) => Other::Derived,
        None => Other::Table,
    }
}
