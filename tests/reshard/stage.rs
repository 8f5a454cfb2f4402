//! Servers of which some have the rows, proxies before them, and the commands of a reshard.

use crate::{
    harness::{PATIENCE, Proxy, SHARDWAY, environment, open_session},
    load::{ACCOUNTS, Known, Seen},
};
use serde_json::Value;
use shardway::sandbox::Sandbox;
use std::{
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};
use tokio::process::Command;
use tokio_postgres::{Client, Config};

pub(crate) const SHARDS: usize = 4;
const TABLES: &str = "\
create table account (id bigint primary key, balance bigint not null); \
create table entry (account bigint, id bigint, note text, primary key (account, id)); \
create index entry_note on entry (note); \
create table wide (id bigint primary key, small int not null, big text not null); \
alter table wide alter big set storage external; \
create table rate (id int primary key, rate numeric(10, 4) not null)";

/// What the servers have at first, and what configurations say of them.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) servers: usize,
    /// How many of them have the tables, from the first on.
    pub(crate) filled: usize,
    pub(crate) tables: String,
    /// How many of them the configuration names as shards, from the first on.
    pub(crate) shards: usize,
    /// Lines of the database's own section.
    pub(crate) database: String,
    /// The sections of groups and other tables.
    pub(crate) sections: String,
}

pub(crate) struct Stage {
    pub(crate) sandbox: Sandbox,
    /// What configurations that are written from now on say.
    pub(crate) setting: Setting,
    config: PathBuf,
}

impl Default for Setting {
    /// Three servers have the tables of [`crate::load`], the fourth is empty.
    fn default() -> Self {
        Self {
            servers: SHARDS,
            filled: SHARDS - 1,
            tables: TABLES.to_owned(),
            shards: SHARDS,
            database: "control = { user = \"postgres\" }".to_owned(),
            sections: "[databases.postgres.groups.g]\nmethod = \"hash\"\n\
                 key_type = \"bigint\"\nbuckets = 64\nshards = [\"s0\", \"s1\", \"s2\"]\n\
                 tables = { \"public.account\" = \"id\", \"public.entry\" = \"account\", \"public.wide\" = \"id\" }\n\
                 [databases.postgres.tables]\nreference = [\"public.rate\"]"
                .to_owned(),
        }
    }
}

impl Stage {
    /// As [`Setting::default`] says.
    pub(crate) fn open() -> Self {
        Self::of(Setting::default())
    }

    pub(crate) fn of(setting: Setting) -> Self {
        let mut builder = Sandbox::builder(environment()).clusters(setting.servers);
        // The one that joins may be of another version.
        if let Some(programs) = std::env::var_os("SHARDWAY_PG_BIN_TO") {
            builder = builder.cluster_with(setting.servers - 1, PathBuf::from(programs));
        }
        let sandbox = builder
            .setting("synchronous_commit", "on")
            .setting("wal_level", "logical")
            .setting("max_wal_senders", "20")
            .setting("max_replication_slots", "20")
            .start()
            .unwrap();
        for shard in 0..setting.filled {
            crate::block_on(async {
                let client = session(&sandbox, shard).await;
                client.batch_execute(&setting.tables).await.unwrap();
            });
        }
        let config = sandbox.root().join("reshard.toml");
        let stage = Self {
            sandbox,
            setting,
            config,
        };
        stage.write();
        stage
    }

    /// Writes the configuration that commands read.
    pub(crate) fn write(&self) {
        std::fs::write(&self.config, self.text()).unwrap();
    }

    /// A configuration as the setting says now.
    pub(crate) fn text(&self) -> String {
        let setting = &self.setting;
        let shards: String = (0..setting.shards)
            .map(|at| {
                let port = self.sandbox.cluster(at).port();
                format!("shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n")
            })
            .collect();
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n[databases.postgres]\n\
             {}\n{shards}{}\n[users.postgres]\nauth = \"trust\"\n",
            setting.database, setting.sections
        )
    }

    /// A proxy of its own process; `failpoint` as `SHARDWAY_FAILPOINT` has it.
    pub(crate) fn proxy(&self, failpoint: &str) -> Proxy {
        let armed = [("SHARDWAY_FAILPOINT", failpoint)];
        let environment = if failpoint.is_empty() {
            &armed[..0]
        } else {
            &armed[..]
        };
        Proxy::start_with(self.sandbox.root(), &self.text(), environment)
    }

    /// Waits until a proxy can write on several shards.
    pub(crate) async fn ready(&self, proxy: &Proxy) {
        let client = open_session(&to(proxy)).await.unwrap();
        let begun = Instant::now();
        let write = "begin; update country set name = name where false; commit";
        while let Err(error) = client.batch_execute(write).await {
            assert!(begun.elapsed() < PATIENCE, "never ready: {error:?}");
            client.batch_execute("rollback").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Rows, through a proxy, once it can write on several shards.
    pub(crate) async fn fill(&self, proxy: &Proxy) {
        let client = open_session(&to(proxy)).await.unwrap();
        let fill = format!(
            "insert into account select i, 1000 from unnest(array(select generate_series(1, {ACCOUNTS}))) as of (i)"
        );
        let begun = Instant::now();
        while let Err(error) = client.batch_execute(&fill).await {
            assert!(begun.elapsed() < PATIENCE, "never ready: {error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let wide = format!(
            "insert into wide select i, 0, repeat(md5(i::text), 300) \
             from unnest(array(select generate_series(1, {ACCOUNTS}))) as of (i)"
        );
        client.batch_execute(&wide).await.unwrap();
        let rates = "insert into rate values (1, 1.5), (2, 2.25)";
        client.batch_execute(rates).await.unwrap();
    }

    /// Runs `shardway reshard …` before the same servers.
    pub(crate) async fn reshard(&self, args: &[&str]) -> Output {
        let (verb, rest) = args.split_first().unwrap();
        Command::new(SHARDWAY)
            .args(["reshard", verb, "--config"])
            .arg(&self.config)
            .args(["--database", "postgres"])
            .args(rest)
            .output()
            .await
            .unwrap()
    }

    /// The same, which must succeed; what it printed.
    pub(crate) async fn must(&self, args: &[&str]) -> String {
        let output = self.reshard(args).await;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert!(output.status.success(), "{args:?}: {out}\n{err}");
        out
    }

    pub(crate) async fn status(&self) -> Value {
        let output = self.reshard(&["status", "--output", "json"]).await;
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until the reshard is in a state.
    pub(crate) async fn until(&self, state: &str) {
        let begun = Instant::now();
        loop {
            let status = self.status().await;
            if status["state"] == state {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "never {state}: {status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Compares everything once more.
    pub(crate) async fn verify(&self) {
        let round = self.status().await["round"].as_i64().unwrap();
        self.must(&["verify"]).await;
        let begun = Instant::now();
        loop {
            let status = self.status().await;
            if status["state"] == "ready" && status["round"].as_i64() > Some(round) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "never compared: {status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn session(&self, shard: usize) -> Client {
        session(&self.sandbox, shard).await
    }

    /// Everything that was acknowledged is there once, on the shard that owns it, and nothing else.
    pub(crate) async fn adds_up(&self, proxy: &Config, seen: &Seen) {
        let client = open_session(proxy).await.unwrap();
        let sum: i64 = client
            .query_one("select sum(balance)::bigint from account", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(sum, ACCOUNTS * 1000, "money was made or lost");
        let mut found = std::collections::BTreeMap::<(i64, i64), i32>::new();
        for row in client
            .query("select account, id from entry", &[])
            .await
            .unwrap()
        {
            *found.entry((row.get(0), row.get(1))).or_default() += 1;
        }
        let known = seen.entries.lock().unwrap();
        for (key, known) in known.iter() {
            let times = found.get(key).copied().unwrap_or_default();
            match known {
                Known::There => assert_eq!(times, 1, "{key:?} was acknowledged"),
                Known::Gone => assert_eq!(times, 0, "{key:?} was deleted"),
                Known::Open => assert!(times <= 1, "{key:?} is there {times} times"),
            }
        }
        for (key, times) in &found {
            assert_eq!(*times, 1, "{key:?} is there more than once");
            assert!(known.contains_key(key), "{key:?}: nobody wrote it");
        }
    }

    /// Nothing of a reshard is left on any server.
    pub(crate) async fn has_nothing_left(&self) {
        for shard in 0..self.setting.servers {
            let client = self.session(shard).await;
            let left = client
                .query(
                    "select 'slot ' || slot_name from pg_replication_slots \
                     union all select 'publication ' || pubname from pg_publication \
                     union all select 'trigger ' || tgname from pg_trigger where tgname like 'shardway%' \
                     union all select 'prepared ' || gid from pg_prepared_xacts",
                    &[],
                )
                .await
                .unwrap();
            let left: Vec<String> = left.iter().map(|row| row.get(0)).collect();
            assert!(left.is_empty(), "s{shard}: {left:?}");
            self.has_no_records(shard, &client).await;
        }
    }

    /// None but of what is over, on the shard that keeps it, and of who owns what.
    async fn has_no_records(&self, shard: usize, client: &Client) {
        let known: bool = client
            .query_one("select to_regclass('shardway.runner') is not null", &[])
            .await
            .unwrap()
            .get(0);
        if !known {
            return;
        }
        for table in [
            "cleanup",
            "chunk",
            "chunk_done",
            "apply_progress",
            "schema_step",
            "made",
            "fence",
            "runner",
        ] {
            let count = format!("select count(*) from shardway.{table}");
            let rows: i64 = client.query_one(&count, &[]).await.unwrap().get(0);
            assert_eq!(rows, 0, "s{shard}: records in {table}");
        }
        let guards = "select count(*) from pg_proc where proname like 'shardway_guard%'";
        let guards: i64 = client.query_one(guards, &[]).await.unwrap().get(0);
        assert_eq!(guards, 0, "s{shard}: functions of guards");
    }

    /// After finish or abort: each row is on one shard only, and nothing of a reshard is left.
    pub(crate) async fn is_clean(&self) {
        self.has_nothing_left().await;
        let (mut accounts, mut entries) = (Vec::new(), Vec::new());
        for shard in 0..self.setting.servers {
            let client = self.session(shard).await;
            let has: bool = client
                .query_one("select to_regclass('public.account') is not null", &[])
                .await
                .unwrap()
                .get(0);
            if !has {
                continue;
            }
            for row in client.query("select id from account", &[]).await.unwrap() {
                accounts.push(row.get::<_, i64>(0));
            }
            for row in client
                .query("select account, id from entry", &[])
                .await
                .unwrap()
            {
                entries.push((row.get::<_, i64>(0), row.get::<_, i64>(1)));
            }
        }
        accounts.sort_unstable();
        assert_eq!(
            accounts,
            (1..=ACCOUNTS).collect::<Vec<_>>(),
            "accounts on shards"
        );
        let all = entries.len();
        entries.sort_unstable();
        entries.dedup();
        assert_eq!(entries.len(), all, "entries on more than one shard");
    }
}

async fn session(sandbox: &Sandbox, shard: usize) -> Client {
    let config = sandbox.cluster(shard).config("postgres");
    open_session(&config).await.unwrap()
}

/// The database through a proxy, as its superuser.
pub(crate) fn to(proxy: &Proxy) -> Config {
    let mut config = proxy.target().config();
    config.dbname("postgres").user("postgres");
    config
}
