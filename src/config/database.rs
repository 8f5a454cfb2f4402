//! A logical database of the file: its shards, groups and tables, as the catalog snapshot of epoch 1.

use super::{
    error::{Problem, most_like},
    load::{read_address, read_pool, read_secret},
    options::Section,
    reader::{Node, Place, Reader},
    settings::{AuthQuery, Credentials, Database, Pool, Shard},
};
use crate::catalog::{
    group::{Group, GroupId, Map, MapError, RangeEntry},
    hash::HashFunction,
    key::{Key, KeyError, KeyType, Literal},
    shard::{ShardId, ShardSet},
    snapshot::{ObjectName, Placement, Snapshot, Table, TableName, Unlisted},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use toml::{Spanned, de::DeValue};

/// The console's name, which no database can have.
const CONSOLE: &str = "shardway";

/// Every database by name, the wildcard as `"*"`.
pub(super) fn read_all(
    reader: &mut Reader,
    file: &Node<'_>,
    pool: &Pool,
) -> BTreeMap<String, Database> {
    let mut databases = BTreeMap::new();
    for (name, span, node) in reader.children(file, "databases", Section::Database) {
        if name == CONSOLE {
            reader.fail(&span, Problem::ConsoleName);
        }
        let database = read_database(reader, &node, &name, &span, pool);
        databases.insert(name, database);
    }
    if databases.is_empty() && !file.has("databases") {
        reader.fail(
            &file.span,
            Problem::Missing {
                place: "the file".to_owned(),
                key: "databases",
            },
        );
    }
    databases
}

fn read_database(
    reader: &mut Reader,
    node: &Node<'_>,
    name: &str,
    span: &Place,
    pool: &Pool,
) -> Database {
    let shards = read_shards(reader, node, name, span);
    let names: Vec<String> = shards.iter().map(|shard| shard.name.clone()).collect();
    let wildcard = name == "*";
    if wildcard && (names.len() > 1 || node.has("groups") || node.has("tables")) {
        reader.fail(span, Problem::WildcardShards);
    }
    let home = reader
        .text(node, "catalog")
        .and_then(|home| find_shard(reader, &names, &home, &node.place("catalog")));
    let unlisted = match reader.text(node, "unlisted_tables").as_deref() {
        None if names.len() == 1 => Unlisted::On(ShardId(0)),
        None | Some("error") => Unlisted::Error,
        Some(shard) => find_shard(reader, &names, shard, &node.place("unlisted_tables"))
            .map_or(Unlisted::Error, Unlisted::On),
    };
    let mut layout = Layout {
        shards: &names,
        groups: Vec::new(),
        tables: BTreeMap::new(),
        key_columns: Vec::new(),
        even: Vec::new(),
    };
    layout.read_groups(reader, node);
    layout.read_other_tables(reader, node);
    let per_shard = read_per_shard(reader, node);
    let home = home.unwrap_or(ShardId(0));
    let snapshot = Snapshot {
        home,
        members: layout.members(home, unlisted),
        groups: layout.groups,
        even: layout.even,
        tables: layout
            .tables
            .into_iter()
            .map(|(name, (table, _))| (name, table))
            .collect::<HashMap<_, _, _>>(),
        key_columns: layout
            .key_columns
            .into_iter()
            .map(|(column, group, _)| (column, group))
            .collect(),
        unlisted,
        per_shard,
        ..Snapshot::new(name, names)
    };
    let pool_node = reader.child(node, "pool", Section::Pool);
    let control_node = reader.child(node, "control", Section::Control);
    let control = read_control(reader, &control_node);
    let auth_query = read_auth_query(reader, node, control.as_ref());
    let two_phase_retention = reader
        .duration(node, "two_phase_retention")
        .unwrap_or_default();
    let deadlock_interval = reader
        .duration(node, "deadlock_interval")
        .unwrap_or_default();
    let sequence_block = reader.integer(node, "sequence_block").unwrap_or(1);
    let pg_dump = reader.text(node, "pg_dump").unwrap_or_default();
    Database {
        name: name.to_owned(),
        snapshot: Arc::new(snapshot),
        shards,
        pool: read_pool(reader, &pool_node, Some(pool)),
        control,
        auth_query,
        two_phase_retention,
        deadlock_interval,
        sequence_block,
        pg_dump: pg_dump.into(),
    }
}

/// Roles that may log in now, as PostgreSQL itself judges it. Whatever stands in the way of a search path, these are
/// PostgreSQL's own tables, functions and operators.
const AUTH_QUERY: &str = "SELECT a.rolname::pg_catalog.text, a.rolpassword FROM pg_catalog.pg_authid a \
    WHERE a.rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name AND a.rolcanlogin \
    AND (a.rolvaliduntil IS NULL OR a.rolvaliduntil OPERATOR(pg_catalog.>) pg_catalog.now())";

fn read_auth_query(
    reader: &mut Reader,
    node: &Node<'_>,
    control: Option<&Credentials>,
) -> Option<AuthQuery> {
    let cache = reader
        .duration(node, "auth_query_cache")
        .unwrap_or_default();
    let sql = reader.text(node, "auth_query")?;
    let Some(control) = control else {
        reader.fail(&node.place("auth_query"), Problem::AuthQueryWithoutControl);
        return None;
    };
    if !sql.is_empty() && !sql.contains("$1") {
        reader.fail(&node.place("auth_query"), Problem::AuthQueryWithoutName);
    }
    Some(AuthQuery {
        sql: if sql.is_empty() {
            AUTH_QUERY.to_owned()
        } else {
            sql
        },
        cache,
        control: control.clone(),
    })
}

/// The shards in the order of their names.
fn read_shards(reader: &mut Reader, node: &Node<'_>, database: &str, span: &Place) -> Vec<Shard> {
    let mut shards = BTreeMap::new();
    // An address without a database names the one that the client gave, or the logical one.
    let default = if database == "*" { "" } else { database };
    let tables = reader.children(node, "shards", Section::Shard);
    let several = tables.len() > 1;
    for (name, place, shard) in tables {
        if several && !can_be_in_a_name(&name) {
            reader.fail(&place, Problem::ShardName(name.clone()));
        }
        let text = reader.needed(&shard, "primary");
        let primary =
            text.and_then(|text| read_address(reader, &text, &shard.place("primary"), default));
        let replicas = reader.texts(&shard, "replicas");
        let replicas = replicas
            .iter()
            .filter_map(|(text, span)| read_address(reader, text, span, default))
            .collect();
        if let Some(primary) = primary {
            shards.insert(
                name.clone(),
                Shard {
                    name,
                    primary,
                    replicas,
                },
            );
        }
    }
    if !node.has("shards") {
        reader.fail(
            span,
            Problem::Missing {
                place: format!("`databases.{database}`"),
                key: "shards",
            },
        );
    }
    if shards.len() > usize::from(u16::MAX) {
        reader.fail(span, Problem::TooManyShards(database.to_owned()));
    }
    shards.into_values().collect()
}

/// Whether names of transactions over several shards can hold it: they are short and parted by colons.
fn can_be_in_a_name(shard: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !shard.is_empty() && shard.len() <= 63 && shard.bytes().all(fits)
}

fn read_control(reader: &mut Reader, node: &Node<'_>) -> Option<Credentials> {
    if !node.is_given() {
        return None;
    }
    let user = reader.needed(node, "user");
    let password = read_secret(reader, node, ["password", "password_file", "password_env"]);
    user.map(|user| Credentials { user, password })
}

fn find_shard(reader: &mut Reader, shards: &[String], name: &str, span: &Place) -> Option<ShardId> {
    let at = shards.iter().position(|shard| shard == name);
    if at.is_none() {
        let like = most_like(name, shards.iter().map(String::as_str));
        reader.fail(
            span,
            Problem::UnknownName {
                what: "shard",
                name: name.to_owned(),
                like,
            },
        );
    }
    at.and_then(|at| u16::try_from(at).ok()).map(ShardId)
}

/// What the groups and tables of one database come to.
struct Layout<'n> {
    shards: &'n [String],
    groups: Vec<Group>,
    tables: BTreeMap<TableName, (Table, Place)>,
    key_columns: Vec<(String, GroupId, Place)>,
    /// Hash groups that are split over as many shards as there are.
    even: Vec<GroupId>,
}

impl Layout<'_> {
    /// The shards that serve as long as no map says more: those that something lives on, or all if nothing says where.
    fn members(&self, home: ShardId, unlisted: Unlisted) -> ShardSet {
        if self.groups.is_empty() || !self.even.is_empty() {
            return ShardSet::first(self.shards.len());
        }
        let mut members = ShardSet::one(home);
        if let Unlisted::On(shard) = unlisted {
            members.insert(shard);
        }
        for group in &self.groups {
            members.union(&group.shards());
        }
        for (table, _) in self.tables.values() {
            if let Placement::Single(shard) = table.placement {
                members.insert(shard);
            }
        }
        members
    }

    fn read_groups(&mut self, reader: &mut Reader, node: &Node<'_>) {
        for (name, span, group) in reader.children(node, "groups", Section::Group) {
            let id = GroupId(u16::try_from(self.groups.len()).unwrap_or(u16::MAX));
            let method = reader.needed(&group, "method");
            let key_type = read_key_type(reader, &group);
            let map = method
                .zip(key_type)
                .and_then(|(method, key_type)| match method.as_str() {
                    "range" => self.read_ranges(reader, &group, key_type, &span),
                    "list" => self.read_lists(reader, &group, key_type, &span),
                    _ => self.read_hash(reader, &group, &span),
                });
            if matches!(map, Some(Map::Hash { .. })) && !group.has("shards") {
                self.even.push(id);
            }
            for (table, span, column) in reader.entries(&group, "tables") {
                let DeValue::String(column) = column.get_ref() else {
                    reader.wrong_type(&table, "a string: the key column", column);
                    continue;
                };
                let placement = Placement::Sharded {
                    group: id,
                    key_column: column.to_string(),
                };
                self.place_table(reader, &table, &span, placement);
            }
            if let Some(column) = reader.text(&group, "key_column") {
                self.place_key_column(reader, column, id, group.place("key_column"));
            }
            // A group that could not be read has failed already; its number stays taken.
            let key_type = key_type.unwrap_or(KeyType::Bigint);
            let map = map.unwrap_or(Map::Range(
                [RangeEntry {
                    to: None,
                    shard: ShardId(0),
                }]
                .into(),
            ));
            self.groups.push(Group {
                name,
                key_type,
                map,
                pins: BTreeMap::new(),
                doubled: Vec::new(),
            });
        }
    }

    fn read_other_tables(&mut self, reader: &mut Reader, node: &Node<'_>) {
        let tables = reader.child(node, "tables", Section::Tables);
        for (table, span) in reader.texts(&tables, "reference") {
            self.place_table(reader, &table, &span, Placement::Reference);
        }
        for (table, span, shard) in reader.entries(&tables, "single") {
            let DeValue::String(name) = shard.get_ref() else {
                reader.wrong_type(&table, "a string: the shard", shard);
                continue;
            };
            if let Some(shard) = find_shard(reader, self.shards, name, &shard.span()) {
                self.place_table(reader, &table, &span, Placement::Single(shard));
            }
        }
    }

    fn place_table(&mut self, reader: &mut Reader, text: &str, span: &Place, placement: Placement) {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        if schema.is_empty() || name.is_empty() || text.contains('"') {
            reader.fail(span, Problem::NotATable(text.to_owned()));
            return;
        }
        let table = TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        if let Some((_, earlier)) = self.tables.get(&table) {
            let earlier = earlier.clone();
            reader.fail_again(
                span,
                &earlier,
                Problem::TableTwice {
                    table: text.to_owned(),
                },
            );
            return;
        }
        self.tables
            .insert(table, (Table::unasked(placement), span.clone()));
    }

    fn place_key_column(
        &mut self,
        reader: &mut Reader,
        column: String,
        group: GroupId,
        span: Place,
    ) {
        if let Some((_, _, earlier)) = self.key_columns.iter().find(|(other, ..)| *other == column)
        {
            let earlier = earlier.clone();
            reader.fail_again(&span, &earlier, Problem::KeyColumnTwice { column });
            return;
        }
        self.key_columns.push((column, group, span));
    }

    fn read_hash(&self, reader: &mut Reader, node: &Node<'_>, span: &Place) -> Option<Map> {
        refuse_keys_of_others(reader, node, &[("ranges", "range"), ("lists", "list")]);
        let function = match reader.text(node, "hash").as_deref() {
            Some("xxh3") => HashFunction::Xxh3,
            _ => HashFunction::Postgres,
        };
        let buckets = reader
            .integer(node, "buckets")
            .and_then(|buckets| u32::try_from(buckets).ok())?;
        let shards = self.split_over(reader, node)?;
        let map = Map::even_hash(function, buckets, &shards);
        map.map_err(|error| match error {
            MapError::TooManyShards { buckets, shards } => {
                let place = if node.has("buckets") {
                    node.place("buckets")
                } else {
                    span.clone()
                };
                reader.fail(&place, Problem::TooFewBuckets { shards, buckets });
            }
            MapError::Buckets(_)
            | MapError::NotAscending(_)
            | MapError::UnboundedBefore(_)
            | MapError::BoundedLast(_)
            | MapError::NoRange
            | MapError::ListedTwice(_) => {
                reader.fail(&node.place("buckets"), Problem::NotAPowerOfTwo);
            }
        })
        .ok()
    }

    /// The shards that buckets are split over, in their order.
    fn split_over(&self, reader: &mut Reader, node: &Node<'_>) -> Option<Vec<ShardId>> {
        let mut shards = BTreeSet::new();
        for (name, span) in reader.texts(node, "shards") {
            shards.insert(find_shard(reader, self.shards, &name, &span)?);
        }
        if shards.is_empty() {
            if node.has("shards") {
                reader.fail(&node.place("shards"), Problem::NoShards);
                return None;
            }
            shards.extend(ShardSet::first(self.shards.len()).iter());
        }
        (!shards.is_empty()).then(|| shards.into_iter().collect())
    }

    fn read_ranges(
        &self,
        reader: &mut Reader,
        node: &Node<'_>,
        key_type: KeyType,
        span: &Place,
    ) -> Option<Map> {
        refuse_keys_of_others(
            reader,
            node,
            &[
                ("hash", "hash"),
                ("buckets", "hash"),
                ("shards", "hash"),
                ("lists", "list"),
            ],
        );
        let mut entries = Vec::new();
        let mut spans = Vec::new();
        let ranges = reader.array_of_tables(node, "ranges", Section::Range);
        let count = ranges.len();
        for range in ranges {
            let to = match range.get("to") {
                None => None,
                Some((_, value)) => Some(read_key(reader, key_type, value)?),
            };
            let shard = reader.needed(&range, "shard")?;
            let shard = find_shard(reader, self.shards, &shard, &range.place("shard"))?;
            entries.push(RangeEntry { to, shard });
            spans.push(range.span.clone());
        }
        if count == 0 {
            if node.has("ranges") {
                reader.fail(&node.place("ranges"), Problem::RangesEnd);
            } else {
                reader.fail(
                    span,
                    Problem::Missing {
                        place: "a range group".to_owned(),
                        key: "ranges",
                    },
                );
            }
            return None;
        }
        Map::range(entries)
            .map_err(|error| {
                let (at, problem) = match error {
                    MapError::NotAscending(at) => (at, Problem::RangesOverlap),
                    MapError::UnboundedBefore(at) => (at, Problem::RangesAfterUnbounded),
                    MapError::BoundedLast(_)
                    | MapError::NoRange
                    | MapError::Buckets(_)
                    | MapError::TooManyShards { .. }
                    | MapError::ListedTwice(_) => (count - 1, Problem::RangesEnd),
                };
                reader.fail(&spans[at], problem);
            })
            .ok()
    }

    fn read_lists(
        &self,
        reader: &mut Reader,
        node: &Node<'_>,
        key_type: KeyType,
        span: &Place,
    ) -> Option<Map> {
        refuse_keys_of_others(
            reader,
            node,
            &[
                ("hash", "hash"),
                ("buckets", "hash"),
                ("shards", "hash"),
                ("ranges", "range"),
            ],
        );
        if !node.has("lists") {
            reader.fail(
                span,
                Problem::Missing {
                    place: "a list group".to_owned(),
                    key: "lists",
                },
            );
        }
        let mut listed: BTreeMap<Key, (ShardId, Place)> = BTreeMap::new();
        let mut other: Option<(ShardId, Place)> = None;
        for (name, span, values) in reader.entries(node, "lists") {
            let shard = find_shard(reader, self.shards, &name, &span);
            let DeValue::Array(values) = values.get_ref() else {
                reader.wrong_type(&name, "an array of values", values);
                continue;
            };
            let Some(shard) = shard else { continue };
            for value in values.iter() {
                let place = value.span();
                let earlier = if matches!(value.get_ref(), DeValue::String(text) if text == "*") {
                    let earlier = other.take();
                    other = Some((shard, place.clone()));
                    earlier
                } else if let Some(key) = read_key(reader, key_type, value) {
                    listed.insert(key, (shard, place.clone()))
                } else {
                    None
                };
                if let Some((_, earlier)) = earlier {
                    reader.fail_again(&place, &earlier, Problem::ListedTwice);
                }
            }
        }
        let listed = listed.into_iter().map(|(key, (shard, _))| (key, shard));
        Map::list(listed, other.map(|(shard, _)| shard)).ok()
    }
}

fn refuse_keys_of_others(
    reader: &mut Reader,
    node: &Node<'_>,
    keys: &[(&'static str, &'static str)],
) {
    for (key, method) in keys {
        if let Some((span, _)) = node.get(key) {
            reader.fail(&span, Problem::OtherMethod { key, method });
        }
    }
}

fn read_key_type(reader: &mut Reader, node: &Node<'_>) -> Option<KeyType> {
    if let Some((_, value)) = node.get("key_type")
        && let DeValue::String(name) = value.get_ref()
    {
        let folded = name.to_ascii_lowercase();
        if let Some(key_type) = key_type_named(&folded) {
            return Some(key_type);
        }
        let unfit = [
            "real",
            "float",
            "float4",
            "float8",
            "double precision",
            "citext",
            "json",
            "jsonb",
            "money",
        ];
        if unfit.contains(&folded.as_str()) {
            reader.fail(&value.span(), Problem::UnfitKeyType(name.to_string()));
            return None;
        }
    }
    // Absent, of another type or misspelt: the declared option says what it must be.
    reader
        .needed(node, "key_type")
        .and_then(|name| key_type_named(&name))
}

/// The key type of a PostgreSQL type's name, narrower types widened.
pub(super) fn key_type_named(name: &str) -> Option<KeyType> {
    Some(match name {
        "bigint" | "int8" | "integer" | "int" | "int4" | "smallint" | "int2" => KeyType::Bigint,
        "text" | "varchar" | "character varying" => KeyType::Text,
        "uuid" => KeyType::Uuid,
        "date" => KeyType::Date,
        "timestamptz" | "timestamp with time zone" => KeyType::Timestamptz,
        "numeric" | "decimal" => KeyType::Numeric,
        "bytea" => KeyType::Bytea,
        _ => return None,
    })
}

/// A key value written as a TOML string, number or date.
fn read_key(reader: &mut Reader, key_type: KeyType, value: &Spanned<DeValue<'_>>) -> Option<Key> {
    let read = match value.get_ref() {
        DeValue::String(text) => key_type.from_text(text.as_bytes()).map(Some),
        DeValue::Integer(number) if number.radix() == 10 => {
            key_type.from_literal(&Literal::Integer(number.as_str().as_bytes()))
        }
        DeValue::Float(number) => {
            key_type.from_literal(&Literal::Decimal(number.as_str().as_bytes()))
        }
        DeValue::Datetime(moment) => {
            let text = moment.to_string().into_bytes();
            key_type.from_literal(&Literal::String(Cow::Owned(text)))
        }
        DeValue::Integer(_) | DeValue::Boolean(_) | DeValue::Array(_) | DeValue::Table(_) => {
            Ok(None)
        }
    };
    let key_type = key_type.name();
    let problem = match read {
        Ok(Some(key)) => return Some(key),
        Err(KeyError::Ambiguous) => Problem::AmbiguousKey { key_type },
        Ok(None) | Err(KeyError::Malformed | KeyError::Type(_)) => Problem::NotAKey { key_type },
    };
    reader.fail(&value.span(), problem);
    None
}

/// What may act on each shard by itself: `schema.table.name`, or `table.name` in `public`; a part may be `*`.
fn read_per_shard(reader: &mut Reader, node: &Node<'_>) -> Vec<ObjectName> {
    let mut objects = Vec::new();
    for (text, span) in reader.texts(node, "per_shard") {
        let parts: Vec<&str> = text.split('.').collect();
        let (schema, table, name) = match parts.as_slice() {
            [table, name] => ("public", *table, *name),
            [schema, table, name] => (*schema, *table, *name),
            _ => ("", "", ""),
        };
        if schema.is_empty() || table.is_empty() || name.is_empty() || text.contains('"') {
            reader.fail(&span, Problem::NotAnObject(text));
            continue;
        }
        objects.push(ObjectName {
            schema: schema.to_owned(),
            table: table.to_owned(),
            name: name.to_owned(),
        });
    }
    objects
}
