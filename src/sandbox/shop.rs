//! A small shop to try things on, the same in `demo`, tests and benches: customers with their orders and items in one
//! hash group, shipments listed by region, events by ranges of days, countries on every shard.
//!
//! The rows are the same at every run, and each goes where the snapshot says: the map is asked, not imitated.

use super::{Cluster, SandboxError};
use crate::catalog::{
    group::Group,
    key::KeyError,
    shard::ShardId,
    snapshot::{Placement, Snapshot},
};
use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr};

/// The database's name, on every shard and towards clients.
pub const DATABASE: &str = "shop";
/// The application's role and its password.
pub const USER: &str = "app";
pub const PASSWORD: &str = "app";
/// Shardway's own role and its password.
pub const CONTROL_USER: &str = "shardway";
pub const CONTROL_PASSWORD: &str = "shardway";
/// More shards than this have no month of their own.
pub const SHARDS_LIMIT: usize = 12;

const SCHEMA: &str = include_str!("shop.sql");
const CUSTOMERS: usize = 1000;
const EVENTS: usize = 1200;
/// Rows of one INSERT.
const BATCH: usize = 500;

const COUNTRIES: [(&str, &str, &str); 8] = [
    ("at", "Austria", "eu"),
    ("br", "Brazil", "latam"),
    ("de", "Germany", "eu"),
    ("fr", "France", "eu"),
    ("in", "India", "apac"),
    ("jp", "Japan", "apac"),
    ("uk", "United Kingdom", "uk"),
    ("us", "United States", "us"),
];
const REGIONS: [&str; 5] = ["eu", "us", "apac", "uk", "latam"];
const FIRST_NAMES: [&str; 10] = [
    "Ada", "Björn", "Chloé", "Dmitri", "Emi", "Fatima", "Grace", "Hugo", "Inês", "Jun",
];
const LAST_NAMES: [&str; 7] = [
    "Kowalski", "Lovelace", "Müller", "Nakamura", "O'Brien", "Perez", "Quinn",
];
const PRODUCTS: [&str; 6] = ["lamp", "chair", "kettle", "notebook", "bicycle", "tea"];
const CARRIERS: [&str; 3] = ["Post", "Falcon", "Seaways"];
const STATUSES: [&str; 4] = ["open", "paid", "shipped", "returned"];
const KINDS: [&str; 3] = ["visit", "search", "purchase"];

/// Why the shop could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum ShopError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("the configuration does not list the shop's table {0}")]
    Unlisted(&'static str),
    #[error("the configuration has no place for {table}'s key {key}")]
    NoPlace { table: &'static str, key: String },
}

/// The configuration of a proxy before these servers, shard `s0` the first. With `http`, also metrics and dashboard.
#[must_use]
pub fn configuration(shards: &[Cluster], listen: SocketAddr, http: Option<SocketAddr>) -> String {
    configuration_of(shards, shards.len(), listen, http)
}

/// The same, with rows on the first so many shards only: the others may join by a reshard.
#[must_use]
pub fn configuration_of(
    shards: &[Cluster],
    serving: usize,
    listen: SocketAddr,
    http: Option<SocketAddr>,
) -> String {
    let mut out = format!("[server]\nlisten = [\"{listen}\"]\n");
    if let Some(http) = http {
        let _ = writeln!(out, "http = \"{http}\"");
    }
    let _ = writeln!(out, "\n[databases.{DATABASE}]\ncatalog = \"s0\"");
    let _ = writeln!(
        out,
        "control = {{ user = \"{CONTROL_USER}\", password = \"{CONTROL_PASSWORD}\" }}"
    );
    for (at, shard) in shards.iter().enumerate() {
        let _ = writeln!(
            out,
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{}/{DATABASE}\" }}",
            shard.port()
        );
    }
    out.push_str("\n[databases.shop.groups.customers]\nmethod = \"hash\"\nkey_type = \"bigint\"\n");
    if serving < shards.len() {
        let names: Vec<String> = (0..serving).map(|at| format!("\"s{at}\"")).collect();
        let _ = writeln!(out, "shards = [{}]", names.join(", "));
    }
    out.push_str(
        r#"tables = { "public.customers" = "id", "public.orders" = "customer_id", "public.order_items" = "customer_id" }

[databases.shop.groups.regions]
method = "list"
key_type = "text"
tables = { "public.shipments" = "region" }
"#,
    );
    for at in 0..serving.min(REGIONS.len()) {
        let listed = REGIONS
            .iter()
            .enumerate()
            .filter(|(place, _)| place % serving == at);
        let mut values: Vec<String> = listed.map(|(_, region)| format!("\"{region}\"")).collect();
        if at == 0 {
            values.push("\"*\"".to_owned());
        }
        let _ = writeln!(out, "lists.s{at} = [{}]", values.join(", "));
    }
    out.push_str(
        "\n[databases.shop.groups.days]\nmethod = \"range\"\nkey_type = \"date\"\nranges = [\n",
    );
    for at in 0..serving {
        let to = if at + 1 < serving {
            format!("to = \"2026-{:02}-01\", ", at + 2)
        } else {
            String::new()
        };
        let _ = writeln!(out, "  {{ {to}shard = \"s{at}\" }},");
    }
    let _ = write!(
        out,
        "]\ntables = {{ \"public.events\" = \"day\" }}\n\n[databases.shop.tables]\n\
         reference = [\"public.countries\"]\n\n[users.{USER}]\npassword = \"{PASSWORD}\"\n\
         databases = [\"{DATABASE}\"]\n\n[users.ops]\npassword = \"ops\"\nconsole = \"admin\"\n"
    );
    out
}

/// Makes the roles, the database and its tables on one server.
///
/// # Errors
/// What the server said.
pub async fn create(server: &Cluster) -> Result<(), SandboxError> {
    create_empty(server).await?;
    server
        .execute(DATABASE, &format!("SET ROLE {USER}; {SCHEMA}"))
        .await
}

/// Makes the roles and the database on one server: all that a shard needs that joins by a reshard.
///
/// # Errors
/// What the server said.
pub async fn create_empty(server: &Cluster) -> Result<(), SandboxError> {
    // What a reshard asks of Shardway's role; before PostgreSQL 15 only a superuser may set the parameter.
    let roles = format!(
        "CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'; \
         CREATE ROLE {CONTROL_USER} LOGIN REPLICATION PASSWORD '{CONTROL_PASSWORD}' IN ROLE {USER}, pg_monitor; \
         DO $$ BEGIN IF current_setting('server_version_num')::int >= 150000 THEN \
           EXECUTE 'GRANT SET ON PARAMETER session_replication_role TO {CONTROL_USER}'; END IF; END $$"
    );
    server.execute("postgres", &roles).await?;
    server
        .execute(
            "postgres",
            &format!("CREATE DATABASE {DATABASE} OWNER {USER}"),
        )
        .await?;
    let owner = format!(
        "GRANT CREATE ON DATABASE {DATABASE} TO {CONTROL_USER}; ALTER SCHEMA public OWNER TO {USER}"
    );
    server.execute(DATABASE, &owner).await
}

/// Puts every row where the snapshot says. `shards` are in the snapshot's order.
///
/// # Errors
/// See [`ShopError`].
pub async fn fill(shards: &[Cluster], snapshot: &Snapshot) -> Result<(), ShopError> {
    let mut scripts = vec![Script::default(); shards.len()];
    for row in rows() {
        for shard in places(&row, snapshot)? {
            scripts[shard.index()].add(&row);
        }
    }
    for (script, shard) in scripts.into_iter().zip(shards) {
        shard.execute(DATABASE, &script.finish()).await?;
    }
    Ok(())
}

/// Puts every row on one server: what the shards together are to be equal to.
///
/// # Errors
/// What the server said.
pub async fn fill_whole(server: &Cluster) -> Result<(), SandboxError> {
    let mut script = Script::default();
    for row in rows() {
        script.add(&row);
    }
    server.execute(DATABASE, &script.finish()).await
}

/// A row to insert: its table, its shard key as text, its values as SQL.
struct Row {
    table: &'static str,
    key: String,
    values: String,
}

fn places(row: &Row, snapshot: &Snapshot) -> Result<Vec<ShardId>, ShopError> {
    let table = snapshot
        .table("public", row.table)
        .ok_or(ShopError::Unlisted(row.table))?;
    match &table.placement {
        Placement::Reference => Ok(snapshot.all().iter().collect()),
        Placement::Single(shard) => Ok(vec![*shard]),
        Placement::Sharded { group, .. } => match place(snapshot.group(*group), &row.key) {
            Ok(Some(shard)) => Ok(vec![shard]),
            Ok(None) | Err(_) => Err(ShopError::NoPlace {
                table: row.table,
                key: row.key.clone(),
            }),
        },
    }
}

fn place(group: &Group, key: &str) -> Result<Option<ShardId>, KeyError> {
    Ok(group.shard_of(&group.key_type.from_text(key.as_bytes())?))
}

/// INSERT statements of many rows each, table by table in the order in which tables were first met.
#[derive(Clone, Default)]
struct Script {
    order: Vec<&'static str>,
    values: BTreeMap<&'static str, Vec<String>>,
}

impl Script {
    fn add(&mut self, row: &Row) {
        let values = self.values.entry(row.table).or_insert_with(|| {
            self.order.push(row.table);
            Vec::new()
        });
        values.push(format!("({})", row.values));
    }

    fn finish(self) -> String {
        let mut out = String::from("BEGIN;\n");
        for table in &self.order {
            for batch in self.values[table].chunks(BATCH) {
                let _ = writeln!(out, "INSERT INTO {table} VALUES {};", batch.join(","));
            }
        }
        out.push_str("COMMIT;\nANALYZE;");
        out
    }
}

/// Every row of the shop, referenced ones before those that reference them.
fn rows() -> impl Iterator<Item = Row> {
    let countries = COUNTRIES.iter().map(|(code, name, _)| Row {
        table: "countries",
        key: String::new(),
        values: format!("'{code}', '{name}'"),
    });
    countries
        .chain((1..=CUSTOMERS).flat_map(customer))
        .chain((1..=EVENTS).map(event))
}

fn customer(id: usize) -> Vec<Row> {
    let (first, last) = (
        FIRST_NAMES[id % FIRST_NAMES.len()],
        LAST_NAMES[id % LAST_NAMES.len()],
    );
    let (country, _, region) = COUNTRIES[id % COUNTRIES.len()];
    let key = id.to_string();
    let name = format!("{first} {last}").replace('\'', "''");
    let row = |table, values| Row {
        table,
        key: key.clone(),
        values,
    };
    let mut rows = vec![row(
        "customers",
        format!("{id}, '{name}', 'c{id}@example.com', '{country}'"),
    )];
    for order in 1..=id % 4 + 1 {
        let (month, day, status) = (
            id % 3 + 1,
            order * 5 + id % 5,
            STATUSES[(id + order) % STATUSES.len()],
        );
        let items: Vec<_> = (1..=order % 3 + 1)
            .map(|line| item(id, order, line))
            .collect();
        let cents: usize = items
            .iter()
            .map(|(_, quantity, cents)| quantity * cents)
            .sum();
        let total = money(cents);
        let values =
            format!("{id}, {order}, '2026-{month:02}-{day:02} 12:00:00+00', {total}, '{status}'");
        rows.push(row("orders", values));
        for (at, (product, quantity, cents)) in items.into_iter().enumerate() {
            let (line, price) = (at + 1, money(cents));
            rows.push(row(
                "order_items",
                format!("{id}, {order}, {line}, '{product}', {quantity}, {price}"),
            ));
        }
        let carrier = CARRIERS[(id + order) % CARRIERS.len()];
        let shipped = if status == "open" {
            "NULL".to_owned()
        } else {
            format!("'2026-{month:02}-{:02}'", day + 1)
        };
        let shipment = id * 10 + order;
        rows.push(Row {
            table: "shipments",
            key: region.to_owned(),
            values: format!("'{region}', {shipment}, {id}, '{carrier}', {shipped}"),
        });
    }
    rows
}

/// Product, quantity and price in cents.
fn item(customer: usize, order: usize, line: usize) -> (&'static str, usize, usize) {
    let at = customer * 7 + order * 3 + line;
    (
        PRODUCTS[at % PRODUCTS.len()],
        at % 3 + 1,
        at % 90 * 50 + 199,
    )
}

fn money(cents: usize) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn event(id: usize) -> Row {
    let day = format!("2026-{:02}-{:02}", id % 12 + 1, id % 28 + 1);
    let (kind, customer) = (KINDS[id % KINDS.len()], id % CUSTOMERS + 1);
    let payload = if id.is_multiple_of(5) {
        "NULL".to_owned()
    } else {
        format!("'{{\"customer\": {customer}}}'")
    };
    Row {
        table: "events",
        values: format!("'{day}', {id}, '{kind}', {payload}"),
        key: day,
    }
}
