//! What the shards said against what the configuration says. Pure.

use super::{
    AskError,
    columns::{Column, Derived},
    effects::{Made, Objects},
    finding::{Contradiction, Difference, Finding},
    placements::Kept,
    reach::Reach,
    survey::{Observed, Survey},
    views::{judge_families, other, place_children, place_views},
    weigh,
};
use crate::{
    catalog::{
        effects::{Effects, Hazard, HazardKind},
        group::GroupId,
        key::KeyType,
        oids::Oids,
        shard::ShardId,
        snapshot::{Other, Placement, Snapshot, Table, TableName, Unlisted},
    },
    wire::types::{
        BPCHAR, BYTEA, DATE, INT2, INT4, INT8, NUMERIC, Oid, TEXT, TIMESTAMPTZ, UUID, VARCHAR,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

const VERSIONS: std::ops::Range<u32> = 140_000..190_000;
/// The schema that Shardway keeps for itself.
const OWN_SCHEMA: &str = "shardway";

/// Everything that does not fit, shard by shard. `roles` are those that backends will be opened as.
#[must_use]
pub fn judge(snapshot: &Snapshot, survey: &Survey, roles: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, answer) in snapshot.shards.iter().zip(&survey.shards) {
        let shard = name.clone();
        let observed = match answer {
            Ok(observed) => observed,
            Err(AskError::Apart) => continue,
            Err(reason) => {
                findings.push(Finding::Unreachable {
                    shard,
                    reason: reason.to_string(),
                });
                continue;
            }
        };
        let version = observed.version;
        findings.push(if VERSIONS.contains(&version) {
            Finding::Reached { shard, version }
        } else {
            Finding::Version { shard, version }
        });
        let text_keys = snapshot
            .groups
            .iter()
            .any(|group| group.key_type == KeyType::Text);
        if observed.encoding != "UTF8" && text_keys {
            findings.push(Finding::Encoding {
                shard: name.clone(),
                encoding: observed.encoding.clone(),
            });
        }
        judge_roles(name, observed, roles, &mut findings);
    }
    if !snapshot.is_single() {
        judge_tables(snapshot, survey, &mut findings);
    }
    findings
}

/// Fills in the columns of listed tables, and adds the tables that belong to a group by their key column.
/// Where shards disagree about a table's columns, they stay unknown.
pub fn complete(snapshot: &mut Snapshot, survey: &Survey) {
    let observed: Vec<&Observed> = survey.shards.iter().flatten().collect();
    for (table, group, key_column) in tables_by_key_column(snapshot, &observed) {
        let placement = Placement::Sharded { group, key_column };
        learn(snapshot, table, placement);
    }
    let kept = kept(snapshot, survey);
    let mut contradicted = Vec::new();
    for (table, placement) in kept {
        match placement {
            _ if snapshot.tables.contains_key(&table) => {}
            Some(placement) => learn(snapshot, table, placement),
            None => contradicted.push(table),
        }
    }
    place_children(snapshot, &observed);
    snapshot.others = others(snapshot, &observed);
    // Nobody knows where their rows are.
    let derived = contradicted
        .into_iter()
        .map(|table| (table, Other::Derived));
    snapshot.others.extend(derived);
    snapshot.sequences = sequences(snapshot, survey);
    judge_families(snapshot, &observed);
    snapshot.oids = oids(snapshot, survey);
    for (name, effects) in effects(snapshot, survey) {
        match snapshot.tables.get_mut(&name) {
            Some(table) => table.effects = effects,
            None if effects == Effects::default() => {}
            None => {
                snapshot.effects_of_others.insert(name, effects);
            }
        }
    }
    for (name, table) in &mut snapshot.tables {
        (table.columns, table.sources) = columns_of(&observed, name).unwrap_or_default();
    }
    if !snapshot.is_single() {
        place_views(snapshot, &observed, |name| columns_of(&observed, name));
    }
}

/// The names and sources of a relation's columns, where all shards that have it agree.
fn columns_of(observed: &[&Observed], name: &TableName) -> Option<(Vec<String>, Vec<String>)> {
    let mut all = observed.iter().filter_map(|shard| shard.tables.get(name));
    let first = all.next()?;
    let same = all.all(|columns| difference(columns, first).is_none());
    let names = first.iter().map(|column| column.name.clone());
    same.then(|| (names.collect(), first.iter().map(Column::source).collect()))
}

/// Which numbers of types mean the same, where the shards' differ.
fn oids(snapshot: &Snapshot, survey: &Survey) -> Option<Arc<Oids>> {
    if snapshot.is_single() {
        return None;
    }
    let home = survey.shards.get(snapshot.home.index());
    let shards = survey.shards.iter();
    let observed = shards.map(|shard| match shard {
        Ok(observed) => Some(&observed.oids),
        // Nothing comes from there.
        Err(AskError::Apart) => Some(&home?.as_ref().ok()?.oids),
        Err(_) => None,
    });
    Oids::of(&observed.collect::<Vec<_>>(), snapshot.home)
}

fn learn(snapshot: &mut Snapshot, table: TableName, placement: Placement) {
    snapshot.learned.insert(table.clone());
    snapshot.tables.insert(table, Table::unasked(placement));
}

/// Where the servers keep that tables live; nothing: what they keep has no meaning, or not the same on all.
fn kept(snapshot: &Snapshot, survey: &Survey) -> BTreeMap<TableName, Option<Placement>> {
    let mut found: BTreeMap<TableName, Option<Placement>> = BTreeMap::new();
    for (answer, at) in survey.shards.iter().zip(0_u16..) {
        for (table, kept) in answer.iter().flat_map(|observed| &observed.placements) {
            let placement = placement_of(snapshot, kept, ShardId(at));
            let known = found
                .entry(table.clone())
                .or_insert_with(|| placement.clone());
            if *known != placement {
                *known = None;
            }
        }
    }
    found
}

fn placement_of(snapshot: &Snapshot, kept: &Kept, shard: ShardId) -> Option<Placement> {
    match kept {
        Kept::Sharded { group, key_column } => {
            let at = snapshot.groups.iter().position(|one| one.name == *group)?;
            Some(Placement::Sharded {
                group: GroupId(u16::try_from(at).ok()?),
                key_column: key_column.clone(),
            })
        }
        Kept::Reference => Some(Placement::Reference),
        Kept::Single => Some(Placement::Single(shard)),
    }
}

/// Tables that the servers keep another place of than the configuration says, or none that means anything.
fn judge_placements(snapshot: &Snapshot, survey: &Survey, findings: &mut Vec<Finding>) {
    for (table, placement) in kept(snapshot, survey) {
        let configured = snapshot.tables.get(&table);
        let what = match (placement, configured) {
            (None, None) => Contradiction::Meaningless,
            (None, Some(_)) => Contradiction::Configured,
            (Some(kept), Some(table)) if table.placement != kept => Contradiction::Configured,
            (Some(_), _) => continue,
        };
        findings.push(Finding::PlacementContradicts { table, what });
    }
}

/// What each table sets off by itself.
fn effects(snapshot: &Snapshot, survey: &Survey) -> Vec<(TableName, Effects)> {
    if snapshot.is_single() {
        return Vec::new();
    }
    let all: Vec<&Objects> = survey
        .shards
        .iter()
        .flatten()
        .map(|observed| &observed.objects)
        .collect();
    // By shard, where it has been asked.
    let own: Vec<Option<(&Objects, Reach)>> = survey
        .shards
        .iter()
        .zip(0_u16..)
        .map(|(answer, at)| {
            let objects = &answer.as_ref().ok()?.objects;
            Some((objects, Reach::new(snapshot, ShardId(at), objects)))
        })
        .collect();
    let single = |name: &TableName, shard: ShardId| {
        let (objects, reach) = own.get(shard.index())?.as_ref()?;
        Some(weigh::effects_of_single(snapshot, objects, reach, name))
    };
    let mut found = Vec::new();
    for (name, table) in &snapshot.tables {
        let effects = match &table.placement {
            Placement::Sharded { key_column, .. } => {
                Some(weigh::effects(snapshot, &all, name, key_column))
            }
            Placement::Reference => Some(weigh::effects_of_copies(snapshot, &all, name)),
            Placement::Single(shard) => single(name, *shard),
        };
        found.extend(effects.map(|effects| (name.clone(), effects)));
    }
    if let Unlisted::On(shard) = snapshot.unlisted {
        let others = snapshot
            .others
            .keys()
            .filter(|name| name.schema != OWN_SCHEMA);
        for name in others {
            found.extend(single(name, shard).map(|effects| (name.clone(), effects)));
        }
    }
    found
}

/// The sequences that count for tables of one shard, and on which.
fn sequences(
    snapshot: &Snapshot,
    survey: &Survey,
) -> HashMap<TableName, ShardId, foldhash::fast::RandomState> {
    let mut found = HashMap::default();
    for (answer, at) in survey.shards.iter().zip(0_u16..) {
        for default in answer.iter().flat_map(|answer| &answer.objects.defaults) {
            let shard = match snapshot.tables.get(&default.table) {
                Some(Table {
                    placement: Placement::Single(shard),
                    ..
                }) => Some(*shard),
                Some(_) => None,
                None => match snapshot.unlisted {
                    Unlisted::On(shard) => Some(shard),
                    Unlisted::Error => None,
                },
            };
            if let (Some(ShardId(shard)), Made::Counted(counter)) = (shard, &default.made)
                && shard == at
            {
                found.insert(counter.sequence.clone(), ShardId(shard));
            }
        }
    }
    found
}

/// What nothing lists, on any shard.
fn others(
    snapshot: &Snapshot,
    observed: &[&Observed],
) -> HashMap<TableName, Other, foldhash::fast::RandomState> {
    let mut others = HashMap::default();
    for shard in observed {
        for table in shard
            .tables
            .keys()
            .filter(|table| !snapshot.tables.contains_key(*table))
        {
            let kind = other(shard.derived.get(table).copied());
            let known = others.entry(table.clone()).or_insert(kind);
            if kind != Other::Table {
                *known = kind;
            }
        }
        let unlisted = shard
            .bare
            .iter()
            .filter(|name| !snapshot.tables.contains_key(*name));
        for name in unlisted {
            others.entry(name.clone()).or_insert(Other::Table);
        }
    }
    others
}

/// Tables that nothing lists and that have a group's key column, on any shard.
fn tables_by_key_column(
    snapshot: &Snapshot,
    observed: &[&Observed],
) -> Vec<(TableName, GroupId, String)> {
    let mut found = BTreeMap::new();
    for (column, group) in &snapshot.key_columns {
        for (table, columns) in observed.iter().flat_map(|observed| &observed.tables) {
            let has_it = columns.iter().any(|other| other.name == *column);
            // What a view shows of a tenant may be made of rows of others.
            let own_rows = observed
                .iter()
                .all(|observed| observed.derived.get(table) != Some(&Derived::View));
            if has_it
                && own_rows
                && !snapshot.tables.contains_key(table)
                && table.schema != OWN_SCHEMA
            {
                found
                    .entry(table.clone())
                    .or_insert_with(|| (*group, column.clone()));
            }
        }
    }
    found
        .into_iter()
        .map(|(table, (group, column))| (table, group, column))
        .collect()
}

fn judge_roles(shard: &str, observed: &Observed, roles: &[String], findings: &mut Vec<Finding>) {
    for role in roles {
        if !observed.roles.contains(role) {
            findings.push(Finding::RoleMissing {
                shard: shard.to_owned(),
                role: role.clone(),
            });
        }
    }
    for (role, table) in &observed.unreadable {
        if table.schema != OWN_SCHEMA {
            let (shard, role, table) = (shard.to_owned(), role.clone(), table.clone());
            findings.push(Finding::NoPrivilege { shard, role, table });
        }
    }
}

fn judge_tables(snapshot: &Snapshot, survey: &Survey, findings: &mut Vec<Finding>) {
    let mut complete_one = snapshot.clone();
    complete(&mut complete_one, survey);
    judge_placements(&complete_one, survey, findings);
    let listed: BTreeMap<&TableName, &Table> = complete_one.tables.iter().collect();
    let tables = || listed.iter().filter(|(_, table)| !table.nature.is_view());
    for (name, table) in tables() {
        let mut first: Option<(&str, &Vec<Column>)> = None;
        for (at, answer) in survey.shards.iter().enumerate() {
            let (Ok(observed), Some(shard)) = (answer, snapshot.shards.get(at)) else {
                continue;
            };
            if !lives_on(&table.placement, at) {
                continue;
            }
            let Some(columns) = observed.tables.get(*name) else {
                findings.push(Finding::TableMissing {
                    shard: shard.clone(),
                    table: (*name).clone(),
                });
                continue;
            };
            if let Placement::Sharded { group, key_column } = &table.placement {
                let key_type = snapshot.group(*group).key_type;
                findings.extend(judge_key(shard, name, columns, key_column, key_type));
                if let Some(column) = weigh::generated_key(&observed.objects, name, table) {
                    let (shard, table) = (shard.clone(), (*name).clone());
                    findings.push(Finding::KeyColumnGenerated {
                        shard,
                        table,
                        column,
                    });
                }
            }
            match first {
                None => first = Some((shard, columns)),
                Some((other, known)) => findings.extend(difference(columns, known).map(|what| {
                    let (shard, other) = (shard.clone(), other.to_owned());
                    Finding::ColumnsDiffer {
                        shard,
                        other,
                        table: (*name).clone(),
                        what,
                    }
                })),
            }
        }
    }
    for (name, table) in tables() {
        findings.extend(hazards(name, table));
    }
    if snapshot.unlisted == Unlisted::Error {
        let mut told = BTreeSet::new();
        for (shard, answer) in snapshot.shards.iter().zip(&survey.shards) {
            for table in answer.iter().flat_map(|observed| observed.tables.keys()) {
                if !listed.contains_key(table) && table.schema != OWN_SCHEMA && told.insert(table) {
                    findings.push(Finding::Unlisted {
                        shard: shard.clone(),
                        table: table.clone(),
                    });
                }
            }
        }
    }
}

/// What a table sets off on one shard alone. Defaults that a proxy computes are none: what it cannot compute is refused.
fn hazards(name: &TableName, table: &Table) -> impl Iterator<Item = Finding> {
    let Effects {
        hazards, computed, ..
    } = &table.effects;
    let ours = |hazard: &&Hazard| {
        let mut computed = computed.iter();
        hazard.kind == HazardKind::Default
            && computed.any(|computed| computed.column == hazard.name)
    };
    let left = hazards.iter().filter(move |hazard| !ours(hazard));
    left.map(|hazard| Finding::PerShard {
        table: name.clone(),
        hazard: hazard.clone(),
    })
}

fn lives_on(placement: &Placement, shard: usize) -> bool {
    match placement {
        Placement::Sharded { .. } | Placement::Reference => true,
        Placement::Single(ShardId(on)) => usize::from(*on) == shard,
    }
}

fn judge_key(
    shard: &str,
    table: &TableName,
    columns: &[Column],
    key: &str,
    key_type: KeyType,
) -> Option<Finding> {
    let (shard, table, column) = (shard.to_owned(), table.clone(), key.to_owned());
    let Some(found) = columns.iter().find(|column| column.name == key) else {
        return Some(Finding::KeyColumnMissing {
            shard,
            table,
            column,
        });
    };
    let fitting: &[Oid] = match key_type {
        KeyType::Bigint => &[INT8, INT4, INT2],
        KeyType::Text => &[TEXT, VARCHAR, BPCHAR],
        KeyType::Uuid => &[UUID],
        KeyType::Date => &[DATE],
        KeyType::Timestamptz => &[TIMESTAMPTZ],
        KeyType::Numeric => &[NUMERIC],
        KeyType::Bytea => &[BYTEA],
    };
    let actual = found.type_name.clone();
    if !fitting.contains(&found.type_oid) {
        return Some(Finding::KeyColumnType {
            shard,
            table,
            column,
            actual,
            key_type: key_type.name(),
        });
    }
    let changes = match found.type_oid {
        NUMERIC => found.type_modifier != -1,
        // Six places are all that an instant has.
        TIMESTAMPTZ => found.type_modifier != -1 && found.type_modifier != 6,
        BPCHAR => true,
        _ => false,
    };
    if changes {
        return Some(Finding::KeyColumnChanges {
            shard,
            table,
            column,
            actual,
        });
    }
    (!found.deterministic).then_some(Finding::KeyColumnCollation {
        shard,
        table,
        column,
    })
}

/// How `here` differs from `there`; nothing: same names, order and types.
fn difference(here: &[Column], there: &[Column]) -> Option<Difference> {
    for (at, expected) in there.iter().enumerate() {
        match here.get(at) {
            Some(column)
                if column.name == expected.name
                    && column.type_name == expected.type_name
                    && column.collation == expected.collation => {}
            Some(column) if column.name == expected.name => {
                return Some(Difference::Type {
                    column: column.name.clone(),
                    here: column.type_name.clone(),
                    there: expected.type_name.clone(),
                    oids: (column.type_oid, expected.type_oid),
                });
            }
            _ => return Some(Difference::Missing(expected.name.clone())),
        }
    }
    here.get(there.len())
        .map(|column| Difference::Extra(column.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::load::load_str, inspect::AskError};
    use std::path::Path;

    fn snapshot() -> Snapshot {
        let text = r#"
            [databases.app]
            shards.s0 = { primary = "postgres://h0/app" }
            shards.s1 = { primary = "postgres://h1/app" }
            [databases.app.groups.g]
            method = "hash"
            key_type = "bigint"
            key_column = "tenant_id"
            tables = { "public.orders" = "customer" }
            [databases.app.tables]
            reference = ["public.countries"]
        "#;
        let settings = load_str("test", text, Path::new(".")).unwrap();
        settings.databases["app"].snapshot.as_ref().clone()
    }

    #[test]
    fn what_nothing_lists_is_known_and_a_view_belongs_to_no_group() {
        let mut observed = Observed::default();
        for (name, derived) in [
            ("visits", None),
            ("ranks", Some(Derived::View)),
            ("visits_1", Some(Derived::Child)),
        ] {
            let column = Column {
                name: "tenant_id".to_owned(),
                type_oid: INT8,
                type_name: "bigint".to_owned(),
                type_modifier: -1,
                deterministic: true,
                collation: None,
            };
            observed.tables.insert(table(name), vec![column]);
            observed
                .derived
                .extend(derived.map(|derived| (table(name), derived)));
        }
        observed.tables.insert(table("logs"), Vec::new());
        observed.tables.insert(table("orders"), Vec::new());
        let mut snapshot = snapshot();
        complete(
            &mut snapshot,
            &Survey {
                shards: vec![Ok(observed)],
            },
        );
        let found = ["visits", "visits_1", "ranks", "logs", "orders"].map(|name| {
            (
                snapshot.table("public", name).is_some(),
                snapshot.other("public", name),
            )
        });
        let expected = [
            (true, None),
            (true, None),
            (false, Some(Other::View)),
            (false, Some(Other::Table)),
            (true, None),
        ];
        assert_eq!(found, expected);
    }

    fn table(name: &str) -> TableName {
        TableName {
            schema: "public".to_owned(),
            name: name.to_owned(),
        }
    }

    fn column(name: &str, type_oid: Oid, type_name: &str) -> Column {
        let (name, type_name) = (name.to_owned(), type_name.to_owned());
        Column {
            name,
            type_oid,
            type_name,
            type_modifier: -1,
            deterministic: true,
            collation: None,
        }
    }

    fn server(tables: &[(&str, &[Column])]) -> Result<Observed, AskError> {
        let tables = tables
            .iter()
            .map(|(name, columns)| (table(name), columns.to_vec()))
            .collect();
        Ok(Observed {
            version: 150_000,
            encoding: "UTF8".to_owned(),
            tables,
            ..Observed::default()
        })
    }

    fn errors(shards: Vec<Result<Observed, AskError>>) -> Vec<String> {
        let findings = judge(&snapshot(), &Survey { shards }, &[]);
        let findings = findings
            .iter()
            .filter(|finding| finding.severity() > super::super::Severity::Note);
        findings
            .map(|finding| format!("{}: {finding}", finding.shard().unwrap_or("-")))
            .collect()
    }

    #[test]
    fn servers_as_configured_have_nothing_against_them() {
        let tables: &[(&str, &[Column])] = &[
            ("orders", &[column("customer", INT4, "integer")]),
            ("countries", &[column("code", TEXT, "text")]),
        ];
        assert_eq!(
            errors(vec![server(tables), server(tables)]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_does_not_fit_is_named_with_shard_and_table() {
        let first: &[(&str, &[Column])] = &[
            ("orders", &[column("customer", 701, "double precision")]),
            (
                "countries",
                &[column("code", TEXT, "text"), column("name", TEXT, "text")],
            ),
            ("loose", &[column("a", INT4, "integer")]),
        ];
        let second: &[(&str, &[Column])] = &[(
            "countries",
            &[
                column("code", VARCHAR, "character varying(2)"),
                column("name", TEXT, "text"),
            ],
        )];
        assert_eq!(
            errors(vec![server(first), server(second)]),
            [
                "s1: table public.countries differs from that on s0: column code is character varying(2) here and text there",
                "s0: public.orders.customer is of type double precision, which is no bigint key",
                "s1: there is no table public.orders",
                "s0: table public.loose is in no group or list: statements on it are refused",
            ]
        );
    }

    #[test]
    fn a_key_that_is_stored_changed_is_refused() {
        let rounded = Column {
            type_modifier: 655_366,
            ..column("k", NUMERIC, "numeric(10,2)")
        };
        let finding = judge_key("s0", &table("t"), &[rounded], "k", KeyType::Numeric);
        assert!(matches!(finding, Some(Finding::KeyColumnChanges { .. })));
        assert!(finding.is_some_and(|finding| finding.forbids_routing()));
        let folding = Column {
            deterministic: false,
            ..column("k", TEXT, "text")
        };
        let finding = judge_key("s0", &table("t"), &[folding], "k", KeyType::Text);
        assert!(matches!(finding, Some(Finding::KeyColumnCollation { .. })));
    }

    #[test]
    fn columns_are_known_where_all_shards_agree() {
        let mut completed = snapshot();
        let orders = [
            column("id", INT8, "bigint"),
            column("customer", INT8, "bigint"),
        ];
        let swapped = [orders[1].clone(), orders[0].clone()];
        let visits = [column("tenant_id", INT8, "bigint")];
        let countries = [column("code", TEXT, "text")];
        let shards = vec![
            server(&[
                ("orders", &orders),
                ("countries", &countries),
                ("visits", &visits),
            ]),
            server(&[("orders", &swapped), ("countries", &countries)]),
        ];
        complete(&mut completed, &Survey { shards });
        assert_eq!(
            completed.table("public", "countries").unwrap().columns,
            ["code"]
        );
        assert!(
            completed
                .table("public", "orders")
                .unwrap()
                .columns
                .is_empty()
        );
        let Placement::Sharded { key_column, .. } =
            &completed.table("public", "visits").unwrap().placement
        else {
            panic!("by its key column");
        };
        assert_eq!(key_column, "tenant_id");
    }
}
