//! Databases that stand for the shards of a reshard, and the reshard itself, as its steps are given it.

use crate::reached::{self, OWN_SCHEMA, environment};
use shardway::{
    catalog::{
        moving::Move,
        ownership::{Content, Ownership},
    },
    clock::Duration,
    net::tls::ClientTls,
    registry::MapNow,
    reshard::{
        job::{Direction, Job, Knobs},
        plan::{MovingColumn, MovingTable, Plan},
        servers::Server,
    },
    sandbox::{Cluster, Sandbox, SandboxEnv},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

pub(crate) use crate::reached::block_on;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A server of a system of its own: the others are copies of one.
pub(crate) fn alone() -> Sandbox {
    let environment = SandboxEnv {
        template_cache: None,
        ..environment()
    };
    Sandbox::builder(environment).start().unwrap()
}

/// Servers that were started for tests.
pub(crate) fn servers(count: usize, settings: &[(&str, &str)]) -> Sandbox {
    let environment = environment();
    let mut builder = crate::steps::others(Sandbox::builder(environment).clusters(count), count);
    let usual = [
        ("wal_level", "logical"),
        ("max_replication_slots", "40"),
        ("max_wal_senders", "40"),
    ];
    for (name, value) in usual.iter().chain(settings) {
        builder = builder.setting(name, value);
    }
    builder.start().unwrap()
}

/// Databases with Shardway's own schema, each a shard; the first is the home shard.
pub(crate) struct Shards<'a> {
    shards: Vec<(String, &'a Cluster)>,
    /// Databases are named after it and their shards.
    prefix: String,
    tls: Arc<ClientTls>,
}

/// A reshard and what may be changed of it.
pub(crate) struct Reshard {
    pub(crate) job: Job,
    pub(crate) knobs: watch::Sender<Knobs>,
}

impl<'a> Shards<'a> {
    /// Makes them.
    pub(crate) async fn new(prefix: &str, shards: &[(&str, &'a Cluster)]) -> Self {
        let named = shards
            .iter()
            .map(|(name, cluster)| ((*name).to_owned(), *cluster));
        let made = Self {
            shards: named.collect(),
            prefix: prefix.to_owned(),
            tls: Arc::new(ClientTls::new().unwrap()),
        };
        for (name, cluster) in shards {
            let create = format!("CREATE DATABASE {}", made.database(name));
            cluster.execute("postgres", &create).await.unwrap();
            made.run(name, OWN_SCHEMA).await;
        }
        made
    }

    fn database(&self, shard: &str) -> String {
        format!("{}_{shard}", self.prefix)
    }

    pub(crate) fn cluster(&self, shard: &str) -> &'a Cluster {
        self.shards
            .iter()
            .find(|(name, _)| name == shard)
            .unwrap()
            .1
    }

    pub(crate) async fn run(&self, shard: &str, sql: &str) {
        let database = self.database(shard);
        let run = self.cluster(shard).execute(&database, sql);
        run.await.unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    pub(crate) async fn on_all(&self, sql: &str) {
        for (name, _) in &self.shards {
            self.run(name, sql).await;
        }
    }

    /// The only value, `-` for NULL.
    pub(crate) async fn one(&self, shard: &str, sql: &str) -> String {
        let rows = self.rows(shard, sql).await;
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows[0].clone()
    }

    /// The rows as lines.
    pub(crate) async fn rows(&self, shard: &str, sql: &str) -> Vec<String> {
        let rows = self.cluster(shard).query(&self.database(shard), sql).await;
        let rows = rows.unwrap_or_else(|error| panic!("{error}: {sql}"));
        let cell = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        let line = |row: Vec<Option<String>>| {
            let cells: Vec<String> = row.into_iter().map(cell).collect();
            cells.join("|")
        };
        rows.into_iter().map(line).collect()
    }

    /// A session of a shard, and its connection, which has to be driven.
    pub(crate) async fn session(
        &self,
        shard: &str,
    ) -> (
        tokio_postgres::Client,
        tokio_postgres::Connection<tokio_postgres::Socket, tokio_postgres::tls::NoTlsStream>,
    ) {
        let config = self.cluster(shard).config(&self.database(shard));
        config.connect(tokio_postgres::NoTls).await.unwrap()
    }

    /// How a step reaches a shard.
    pub(crate) fn server(&self, shard: &str) -> Server {
        let address = reached::address(self.cluster(shard), &self.database(shard));
        reached::server(shard, address, LIMIT, &self.tls)
    }

    /// A table as plans have it, seen on a shard.
    pub(crate) async fn table(&self, shard: &str, name: &str, group: Option<&str>) -> MovingTable {
        let columns = format!(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod), \
                    a.atttypid < 16384 AND t.typtype <> 'c' \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = '{name}'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
             ORDER BY a.attnum"
        );
        let rows = self
            .cluster(shard)
            .query(&self.database(shard), &columns)
            .await;
        let column = |row: Vec<Option<String>>| MovingColumn {
            name: row[0].clone().unwrap(),
            type_name: row[1].clone().unwrap(),
            binary: row[2].as_deref() == Some("t"),
        };
        let key = format!(
            "SELECT a.attname FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k (n, place), pg_attribute a \
             WHERE i.indrelid = '{name}'::regclass AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.n \
             ORDER BY k.place"
        );
        let (schema, plain) = name.split_once('.').unwrap();
        MovingTable {
            schema: schema.to_owned(),
            name: plain.trim_matches('"').to_owned(),
            group: group.map(str::to_owned),
            key_column: if group.is_some() { "tenant" } else { "" }.to_owned(),
            primary_key: self.rows(shard, &key).await,
            columns: rows.unwrap().into_iter().map(column).collect(),
            root: None,
        }
    }

    /// A reshard of the group `g` with keys of this type, run by the first runner.
    pub(crate) async fn reshard(
        &self,
        key_type: &str,
        moves: Vec<Move>,
        tables: Vec<MovingTable>,
    ) -> Reshard {
        let (home, _) = &self.shards[0];
        // Names of slots are those of the whole server.
        let before = self
            .one(home, "SELECT count(*) FROM shardway.workflow")
            .await;
        let id = format!("{}{before}", self.prefix);
        let insert = format!(
            "INSERT INTO shardway.workflow (id, state, token, plan) VALUES ('{id}', 'copy', 1, '{{}}')"
        );
        self.run(home, &insert).await;
        let (reference, moving) = tables.into_iter().partition(|it| it.group.is_none());
        let (knobs, changes) = watch::channel(Knobs {
            chunk_rows: 1_000,
            ..Knobs::default()
        });
        let servers = self.shards.iter();
        let servers = servers.map(|(name, _)| (name.clone(), self.server(name)));
        let job = Job {
            id,
            token: 1,
            attempt: 0,
            direction: Direction::Forward,
            plan: Arc::new(Plan {
                moves,
                epoch: 1,
                before: owners(key_type),
                after: owners(key_type),
                tables: moving,
                joins: Vec::new(),
                reference,
                left: Vec::new(),
            }),
            knobs: changes,
            servers: Arc::new(servers.collect::<BTreeMap<String, Server>>()),
            home: home.clone(),
            progress: Arc::default(),
            lines: Arc::default(),
        };
        Reshard { job, knobs }
    }
}

/// The map of a cutover that is committed, at this number.
pub(crate) fn map(job: &Job, epoch: i64) -> MapNow {
    let plan = &job.plan;
    let owners = match job.direction {
        Direction::Forward => &plan.after,
        Direction::Back => &plan.before,
    };
    MapNow {
        epoch,
        content: Content {
            declared: plan.before.clone(),
            owners: owners.clone(),
            members: owners.shards(),
            moving: Vec::new(),
        },
    }
}

/// Owners of a group `g`: what the copy asks of them is the type of its keys.
fn owners(key_type: &str) -> Ownership {
    reached::owners(&format!(
        "[databases.app]\nshards.s = {{ primary = \"postgres://h/app\" }}\n\
         [databases.app.groups.g]\nmethod = \"list\"\nkey_type = \"{key_type}\"\n\
         lists.s = [\"*\"]\ntables = {{ \"public.t\" = \"tenant\" }}\n"
    ))
}
