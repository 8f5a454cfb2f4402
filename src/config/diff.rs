//! What differs between the settings in use and those read at a reload.

use super::{
    options,
    settings::{Database, Settings},
};
use std::{collections::BTreeMap, sync::Arc};

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// By name, the wildcard as `"*"`.
    pub databases: Names,
    pub users: Names,
    /// Databases whose rows would have to move: a reload must not take these changes.
    pub moved: Vec<String>,
    /// Options that take effect now.
    pub reloaded: Vec<String>,
    /// Options that take effect after a restart only.
    pub restart: Vec<String>,
    pub certificate: Certificate,
}

/// Whether the TLS certificate or key, or what clients' certificates are checked with, has other contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Certificate {
    #[default]
    Same,
    Renewed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

impl Diff {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What differs between the settings in use and newer ones.
#[must_use]
pub fn diff(used: &Settings, newer: &Settings) -> Diff {
    let (before, after) = (databases(used), databases(newer));
    let mut diff = Diff {
        databases: names(&before, &after),
        users: names(&used.users, &newer.users),
        ..Diff::default()
    };
    for name in &diff.databases.changed {
        if before
            .get(name)
            .zip(after.get(name))
            .is_some_and(|(before, after)| moves_rows(before, after))
        {
            diff.moved.push(name.clone());
        }
    }
    let old_rows: BTreeMap<String, String> = options::rows(used)
        .into_iter()
        .map(|row| (row.key, row.value))
        .collect();
    for row in options::rows(newer) {
        if old_rows.get(&row.key).is_some_and(|old| *old != row.value) {
            let list = if row.changeable {
                &mut diff.reloaded
            } else {
                &mut diff.restart
            };
            list.push(row.key);
        }
    }
    if used.rules != newer.rules {
        diff.reloaded.push("rules".to_owned());
    }
    let (old, new) = (&used.server.tls, &newer.server.tls);
    if (&old.identity, &old.clients) != (&new.identity, &new.clients) {
        diff.certificate = Certificate::Renewed;
    }
    diff
}

fn databases(settings: &Settings) -> BTreeMap<String, Arc<Database>> {
    let wildcard = settings
        .wildcard
        .iter()
        .map(|database| ("*".to_owned(), Arc::clone(database)));
    settings
        .databases
        .iter()
        .map(|(name, database)| (name.clone(), Arc::clone(database)))
        .chain(wildcard)
        .collect()
}

fn names<T: PartialEq>(before: &BTreeMap<String, T>, after: &BTreeMap<String, T>) -> Names {
    let missing_in = |map: &BTreeMap<String, T>, other: &BTreeMap<String, T>| {
        map.keys()
            .filter(|name| !other.contains_key(*name))
            .cloned()
            .collect()
    };
    Names {
        added: missing_in(after, before),
        removed: missing_in(before, after),
        changed: after
            .iter()
            .filter(|(name, value)| before.get(*name).is_some_and(|old| old != *value))
            .map(|(name, _)| name.clone())
            .collect(),
    }
}

/// Whether a table that both know would have rows elsewhere than before.
fn moves_rows(before: &Database, after: &Database) -> bool {
    let (old, new) = (&before.snapshot, &after.snapshot);
    let shards_kept = new.shards.starts_with(&old.shards);
    let tables_kept = old.tables.iter().all(|(name, table)| {
        new.tables
            .get(name)
            .is_none_or(|now| now.placement == table.placement)
    });
    let groups_kept = old
        .groups
        .iter()
        .zip(&new.groups)
        .all(|(old, new)| old == new);
    !(shards_kept && tables_kept && groups_kept && old.unlisted == new.unlisted)
}

#[cfg(test)]
mod tests {
    use super::{super::load::load_str, *};
    use std::path::Path;

    const BASE: &str = r#"
[server]
workers = 1
[databases.app]
shards.s0 = { primary = "postgres://h0/app" }
shards.s1 = { primary = "postgres://h1/app" }
groups.g = { method = "hash", key_type = "bigint", tables = { "public.t" = "id" } }
[users.app]
password = "x"
"#;

    fn check(from: &str, to: &str) -> Diff {
        assert!(BASE.contains(from));
        let load = |text: &str| {
            load_str("test", text, Path::new(".")).unwrap_or_else(|errors| panic!("{errors}"))
        };
        diff(&load(BASE), &load(&BASE.replace(from, to)))
    }

    #[test]
    fn what_changed_is_named() {
        assert!(check("workers = 1", "workers = 1").is_empty());
        assert_eq!(
            check("workers = 1", "workers = 2").restart,
            ["server.workers"]
        );
        assert_eq!(
            check("workers = 1", "workers = 1\nmax_clients = 5").reloaded,
            ["server.max_clients"]
        );
        assert_eq!(
            check(
                "[users.app]",
                "[[rules]]\ntype = \"local\"\nmethod = \"trust\"\n[users.app]"
            )
            .reloaded,
            ["rules"]
        );
        assert_eq!(check("\"x\"", "\"y\"").users.changed, ["app"]);
        assert_eq!(
            check("[users.app]", "[users.b]\npassword = \"x\"\n[users.app]")
                .users
                .added,
            ["b"]
        );
        assert_eq!(check("h1", "h2").databases.changed, ["app"]);
    }

    #[test]
    fn what_would_move_rows_is_told_apart() {
        assert!(check("h1", "h2").moved.is_empty());
        assert_eq!(
            check(
                "shards.s1",
                "shards.s00 = { primary = \"postgres://h2/app\" }\nshards.s1"
            )
            .moved,
            ["app"]
        );
        assert_eq!(check("\"id\" }", "\"other\" }").moved, ["app"]);
        assert_eq!(
            check("\"bigint\"", "\"bigint\", buckets = 2048").moved,
            ["app"]
        );
    }
}
