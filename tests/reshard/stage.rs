//! Servers of which some have the rows, proxies before them, and the commands of a reshard.

use crate::{
    faults::Crew,
    harness::{PATIENCE, Proxy, SHARDWAY, environment, open_session},
    load::{ACCOUNTS, Known, Seen},
};
use serde_json::Value;
use shardway::sandbox::{Cluster, Sandbox};
use std::{
    path::{Path, PathBuf},
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
    programs: [PathBuf; 2],
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
            programs: programs(),
        };
        stage.write();
        stage
    }

    /// Writes the configuration that commands read.
    pub(crate) fn write(&self) {
        std::fs::write(&self.config, self.text(&self.ports())).unwrap();
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        let clusters = self.sandbox.clusters().iter();
        clusters.map(Cluster::port).collect()
    }

    /// A configuration as the setting says now, with the servers at these ports.
    pub(crate) fn text(&self, ports: &[u16]) -> String {
        let setting = &self.setting;
        let shards: String = (0..setting.shards)
            .map(|at| {
                let port = ports[at];
                format!("shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n")
            })
            .collect();
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n[databases.postgres]\n\
             {}\n{shards}{}\n[users.postgres]\nauth = \"trust\"\n",
            setting.database, setting.sections
        )
    }

    /// The first proxy (0) or the second, of its own process.
    pub(crate) fn proxy(&self, place: usize) -> Proxy {
        self.serve(place, &self.ports(), &[])
    }

    /// A proxy that reaches the servers by these ports; `failpoint` as `SHARDWAY_FAILPOINT` has it.
    pub(crate) fn proxy_by(&self, place: usize, ports: &[u16], failpoint: &str) -> Proxy {
        self.serve(place, ports, &[("SHARDWAY_FAILPOINT", failpoint)])
    }

    fn serve(&self, place: usize, ports: &[u16], environment: &[(&str, &str)]) -> Proxy {
        let (program, text) = (&self.programs[place], self.text(ports));
        Proxy::start_program(program, self.sandbox.root(), &text, environment)
    }

    /// Kills a server with all its processes, as `kill -9` does.
    pub(crate) fn kill(&self, shard: usize) {
        let all = self.processes(shard);
        self.sandbox.cluster(shard).kill();
        // Those that have ended meanwhile are no failure.
        drop(kill("KILL", &all[1..]));
    }

    /// Sends a signal to all processes of a server; the postmaster, which makes others, is stopped first.
    pub(crate) fn signal(&self, shard: usize, name: &str) {
        let postmaster = self.processes(shard)[..1].to_vec();
        drop(kill(name, &postmaster));
        drop(kill(name, &self.processes(shard)[1..]));
    }

    /// The numbers of a server's processes, the postmaster's first.
    fn processes(&self, shard: usize) -> Vec<u32> {
        let file = self
            .sandbox
            .cluster(shard)
            .data_dir()
            .join("postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap();
        let postmaster: u32 = text.lines().next().unwrap().trim().parse().unwrap();
        let mut all = vec![postmaster];
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let Ok(pid) = name.parse::<u32>() else {
                continue;
            };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // Behind the name in parentheses: the state and the parent.
            let parent = stat
                .rsplit(')')
                .next()
                .and_then(|it| it.split_whitespace().nth(1));
            if parent == Some(postmaster.to_string().as_str()) {
                all.push(pid);
            }
        }
        all
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
        self.fill_by(&to(proxy)).await;
    }

    /// The same, through this proxy.
    pub(crate) async fn fill_by(&self, proxy: &Config) {
        let client = open_session(proxy).await.unwrap();
        let fill = format!(
            "insert into account select i, 1000 from unnest(array(select generate_series(1, {ACCOUNTS}))) as of (i)"
        );
        let begun = Instant::now();
        while let Err(error) = client.batch_execute(&fill).await {
            assert!(begun.elapsed() < PATIENCE, "never ready: {error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let wide = format!(
            "insert into wide select i, 0, repeat(lpad('0', 32, '0'), 300) \
             from unnest(array(select generate_series(1, {ACCOUNTS}))) as of (i)"
        );
        client.batch_execute(&wide).await.unwrap();
        let rates = "insert into rate values (1, 1.5), (2, 2.25)";
        client.batch_execute(rates).await.unwrap();
    }

    /// Runs `shardway reshard …` before the same servers, of the program that the first proxy is.
    pub(crate) async fn reshard(&self, args: &[&str]) -> Output {
        let (verb, rest) = args.split_first().unwrap();
        Command::new(&self.programs[0])
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

    /// The number of the last lead; each process that begins to lead has a higher one.
    pub(crate) async fn lead(&self) -> i64 {
        let token = "select token from shardway.leader";
        let home = self.session(0).await;
        home.query_one(token, &[]).await.unwrap().get(0)
    }

    /// Waits until a process has the lead whose number is higher.
    pub(crate) async fn led_since(&self, lead: i64) {
        let begun = Instant::now();
        while self.lead().await <= lead {
            assert!(begun.elapsed() < PATIENCE, "nobody leads since {lead}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn status(&self) -> Value {
        let output = self.reshard(&["status", "--output", "json"]).await;
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until slots are made, and every proxy knows of the reshard.
    pub(crate) async fn prepared(&self) {
        let begun = Instant::now();
        loop {
            let status = self.status().await;
            if status["state"].as_str().is_some_and(|it| it != "prepare") {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "in vain: {status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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

    /// Waits until what the state makes is there.
    pub(crate) async fn made(&self) {
        let begun = Instant::now();
        while self.stands().await["step"] != "made" {
            assert!(begun.elapsed() < PATIENCE, "never made");
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

    /// What is recorded of the reshard, from its table; null while the home shard does not answer.
    pub(crate) async fn stands(&self) -> Value {
        const STANDS: &str = "\
select jsonb_build_object('state', state, 'step', step, 'flips', flips, 'wanted', wanted, 'error', error, \
    'progress', progress, 'attempt', attempt, 'journal', (select jsonb_agg(event || ' ' || detail::text) \
        from (select * from shardway.journal j where j.workflow = w.id order by id desc limit 12) j))::text \
from shardway.workflow w order by made_at desc limit 1";
        let asked = async {
            let client = open_session(&self.sandbox.cluster(0).config("postgres"))
                .await
                .ok()?;
            let row = client.query_opt(STANDS, &[]).await.ok()??;
            serde_json::from_str(&row.get::<_, String>(0)).ok()
        };
        let told = tokio::time::timeout(Duration::from_secs(2), asked).await;
        told.ok().flatten().unwrap_or(Value::Null)
    }

    /// Asks for something as an operator does: again, while the home shard does not answer.
    pub(crate) async fn asks(&self, verb: &str) {
        let begun = Instant::now();
        let mut args = vec![verb];
        if matches!(verb, "cutover" | "rollback") {
            args.push("--no-wait");
        }
        loop {
            let output = self.reshard(&args).await;
            if output.status.success() {
                return;
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(begun.elapsed() < PATIENCE, "{verb}: {said}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the reshard is in a state, with as many changes of owners, and all faults have been made on the way.
    pub(crate) async fn comes_to(&self, crew: &Crew, state: &str, flips: i32) {
        // Each fault keeps it for as long as a lease at least.
        let most = PATIENCE * 2 + crate::frozen() * 12;
        let begun = Instant::now();
        loop {
            let now = self.stands().await;
            assert!(
                now["error"].is_null(),
                "stopped, with {:?} to come: {now:#}",
                crew.wanted()
            );
            let made = matches!(state, "done" | "aborted") || now["step"] == "made";
            if now["state"] == state && now["flips"] == flips && made {
                break;
            }
            assert!(
                begun.elapsed() < most,
                "never {state}, with {:?} to come: {now:#}",
                crew.wanted()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // A state's last point stands behind its record: the record may be seen before the process is there.
        while !crew.wanted().is_empty() {
            let left = crew.wanted();
            assert!(begun.elapsed() < most, "{state} without {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        crew.rests().await;
    }

    pub(crate) async fn session(&self, shard: usize) -> Client {
        session(&self.sandbox, shard).await
    }

    /// Waits until the transactions of those who were killed are ended, by whoever is there: of one whose parts end one after
    /// the other half is seen until then.
    async fn nothing_is_in_doubt(&self) {
        let begun = Instant::now();
        for shard in 0..self.setting.servers {
            let client = self.session(shard).await;
            loop {
                let prepared = "select gid from pg_prepared_xacts";
                let prepared = client.query(prepared, &[]).await.unwrap();
                let Some(first) = prepared.first() else {
                    break;
                };
                let gid: String = first.get(0);
                assert!(begun.elapsed() < PATIENCE, "s{shard}: {gid} is in doubt");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Everything that was acknowledged is there once, on the shard that owns it, and nothing else.
    pub(crate) async fn adds_up(&self, proxy: &Config, seen: &Seen) {
        self.nothing_is_in_doubt().await;
        let client = open_session(proxy).await.unwrap();
        let sum: i64 = client
            .query_one("select sum(balance)::bigint from account", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(sum, ACCOUNTS * 1000, "money was made or lost");
        let mut found = std::collections::BTreeMap::<(i64, i64), i32>::new();
        // Account by account: where its owner is asked.
        let of = "select account, id from entry where account = $1";
        let of = client.prepare(of).await.unwrap();
        for account in 1..=ACCOUNTS {
            for row in client.query(&of, &[&account]).await.unwrap() {
                *found.entry((row.get(0), row.get(1))).or_default() += 1;
            }
        }
        let all: i64 = client
            .query_one("select count(*) from entry", &[])
            .await
            .unwrap()
            .get(0);
        let met = i64::from(found.values().sum::<i32>());
        assert_eq!(all, met, "entries of all, and of each account");
        let known = seen.entries.lock().unwrap().clone();
        for (key, known) in &known {
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
        for pair in &*seen.moved.lock().unwrap() {
            let there = pair.iter().filter(|key| found.contains_key(key)).count();
            assert_eq!(there, 1, "of {pair:?}, between which an entry went");
        }
        self.wide_adds_up(&client, seen).await;
    }

    /// Wide rows were counted up as often as was acknowledged, and have what was written.
    async fn wide_adds_up(&self, client: &Client, seen: &Seen) {
        let wide = seen.wide.lock().unwrap().clone();
        let of = "select small, big from wide where id = $1";
        let of = client.prepare(of).await.unwrap();
        for id in 1..=ACCOUNTS {
            let row = client.query_one(&of, &[&id]).await.unwrap();
            let (small, big): (i32, String) = (row.get(0), row.get(1));
            let counted = wide.get(&id).copied().unwrap_or_default();
            let most = counted.known + counted.open;
            assert!(
                (counted.known..=most).contains(&small),
                "wide row {id} is at {small}: {counted:?}"
            );
            let written = big[..32].parse::<i32>().unwrap();
            let whole = format!("{written:032}").repeat(300);
            assert!(written <= small && big == whole, "wide row {id}: {big}");
        }
    }

    /// The first rate was raised so often, on every shard.
    pub(crate) async fn has_rates(&self, raised: i32) {
        for shard in 0..self.setting.servers {
            let rate = format!("select rate = 1.5 + {raised} from rate where id = 1");
            let client = self.session(shard).await;
            let right: bool = client.query_one(&rate, &[]).await.unwrap().get(0);
            assert!(right, "s{shard} has not seen all {raised} changes");
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
                     union all select 'prepared ' || gid from pg_prepared_xacts \
                     union all select 'function ' || proname from pg_proc where proname like 'shardway_guard%' \
                     union all select 'fence of ' || workflow from shardway.fence \
                     union all select 'chunk of ' || workflow from shardway.chunk_done \
                     union all select 'progress of ' || workflow from shardway.apply_progress",
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

/// Which programs the first and the second proxy are: `SHARDWAY_PROGRAMS` has their paths, as PATH has its own; where it has
/// none, the one that was built with the tests.
fn programs() -> [PathBuf; 2] {
    let said = std::env::var_os("SHARDWAY_PROGRAMS").unwrap_or_default();
    let mut said = std::env::split_paths(&said);
    [(), ()].map(|()| {
        let named = said.next().filter(|it| !it.as_os_str().is_empty());
        named.unwrap_or_else(|| Path::new(SHARDWAY).to_owned())
    })
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

/// Sends a signal.
fn kill(name: &str, to: &[u32]) -> std::io::Result<Output> {
    let each = to.iter().map(u32::to_string);
    std::process::Command::new("kill")
        .args(["-s", name])
        .args(each)
        .output()
}
