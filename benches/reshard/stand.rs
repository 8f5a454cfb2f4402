//! What the figures of resharding are measured on: servers of their own, tables of several shapes, the job of a reshard
//! between them, and what processes have used.
//!
//! What must stay true: both that are compared get the same rows of the same table, with the servers set alike.

#![allow(dead_code, reason = "each bench uses its part")]

#[path = "../../tests/resharding/reached.rs"]
mod reached;

use anyhow::{Context, Result};
use shardway::{
    catalog::moving::{KeySet, Move, Part},
    clock::{Clock, Duration},
    config::settings::{Address, Host},
    net::tls::ClientTls,
    reshard::{
        job::{Direction, Job, Knobs},
        plan::{MovingColumn, MovingTable, Plan},
        servers::Server,
    },
    sandbox::{Cluster, Sandbox, SandboxEnv},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

pub(crate) use reached::OWN_SCHEMA;

/// Tenants of a table: its shard key, the first column of its primary key `(tenant, id)`.
pub(crate) const TENANTS: u32 = 100;
const BUCKETS: u32 = 64;

/// A table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// Behind `tenant` and `id`: name, type, and a value made of `k`.
    pub(crate) columns: &'static [(&'static str, &'static str, &'static str)],
    /// What an UPDATE sets, made of `k`.
    pub(crate) update: &'static str,
    /// More of the table, as statements.
    pub(crate) more: &'static str,
    /// Rows that a copy moves, as a part of those of the narrowest.
    pub(crate) part: u32,
}

/// Those that are measured.
pub(crate) const SHAPES: [Shape; 4] = [
    Shape {
        name: "narrow",
        columns: &[
            ("n", "integer", "k % 1000"),
            ("note", "text", "md5(k::text)"),
            (
                "at",
                "timestamp with time zone",
                "timestamptz 'epoch' + k * interval '1 s'",
            ),
        ],
        update: "n = k, note = md5(k::text)",
        more: "",
        part: 1,
    },
    Shape {
        name: "wide",
        columns: &[
            ("n", "integer", "k % 1000"),
            (
                "body",
                "text",
                "(SELECT string_agg(md5(k::text || g), '') FROM generate_series(1, 128) g)",
            ),
            (
                "doc",
                "jsonb",
                "jsonb_build_object('k', k, 'of', md5(k::text))",
            ),
        ],
        // The long value is not sent.
        update: "n = k",
        more: "ALTER TABLE t ALTER body SET STORAGE EXTERNAL",
        part: 20,
    },
    Shape {
        name: "indexed",
        columns: &[
            ("n", "integer", "k % 1000"),
            ("amount", "numeric", "k / 7.0"),
            ("note", "text", "md5(k::text)"),
            (
                "at",
                "timestamp with time zone",
                "timestamptz 'epoch' + k * interval '1 s'",
            ),
        ],
        update: "n = k, note = md5(k::text)",
        more: "CREATE INDEX ON t (n); CREATE INDEX ON t (note); CREATE UNIQUE INDEX ON t (tenant, note, id)",
        part: 2,
    },
    Shape {
        name: "huge",
        columns: &[
            ("n", "integer", "k % 1000"),
            ("body", "text", "repeat(md5(k::text), 32768)"),
        ],
        update: "n = k",
        more: "ALTER TABLE t ALTER body SET STORAGE EXTERNAL",
        part: 5_000,
    },
];

impl Shape {
    /// The statements that make it.
    #[must_use]
    pub(crate) fn table(&self) -> String {
        let columns = self.columns.iter();
        let columns: String = columns.map(|it| format!(", {} {}", it.0, it.1)).collect();
        format!(
            "CREATE TABLE t (tenant bigint, id bigint{columns}, PRIMARY KEY (tenant, id)); {}",
            self.more
        )
    }

    /// Fills it with rows `from` to `to`, which are SQL.
    #[must_use]
    pub(crate) fn rows(&self, from: &str, to: &str) -> String {
        let values = self.columns.iter();
        let values: String = values.map(|it| format!(", {}", it.2)).collect();
        format!(
            "INSERT INTO t SELECT k % {TENANTS}, k{values} FROM generate_series({from}, {to}) k;"
        )
    }

    /// Its columns' names.
    #[must_use]
    pub(crate) fn names(&self) -> String {
        let columns = self.columns.iter();
        let columns: String = columns.map(|it| format!(", {}", it.0)).collect();
        format!("tenant, id{columns}")
    }

    fn moving(&self) -> MovingTable {
        let column = |(name, type_name): (&str, &str)| MovingColumn {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            binary: true,
        };
        let more = self.columns.iter().map(|it| (it.0, it.1));
        let columns = [("tenant", "bigint"), ("id", "bigint")].into_iter();
        MovingTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            group: Some("g".to_owned()),
            key_column: "tenant".to_owned(),
            primary_key: vec!["tenant".to_owned(), "id".to_owned()],
            columns: columns.chain(more).map(column).collect(),
            root: None,
        }
    }
}

/// The servers: one that gives rows away, and others that get them.
pub(crate) struct Stand {
    sandbox: Sandbox,
}

/// A database of a server.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) database: &'a str,
}

impl Stand {
    /// Starts them.
    ///
    /// # Errors
    /// What a server said.
    pub(crate) fn open(destinations: usize) -> Result<Self> {
        let environment = SandboxEnv::of(std::env::var_os, std::env::temp_dir());
        let sandbox = Sandbox::builder(environment)
            .clusters(destinations + 1)
            .setting("wal_level", "logical")
            .setting("max_wal_size", "8GB")
            .setting("shared_buffers", "256MB")
            .setting("autovacuum", "off")
            .setting("max_wal_senders", "40")
            // Else a subscription that is begun again soon waits five seconds, which are not its work.
            .setting("wal_retrieve_retry_interval", "10ms")
            .setting("max_replication_slots", "40");
        let sandbox = sandbox.start()?;
        Ok(Self { sandbox })
    }

    /// The one that gives rows away.
    #[must_use]
    pub(crate) fn source(&self) -> &Cluster {
        self.sandbox.cluster(0)
    }

    /// The ones that get them.
    #[must_use]
    pub(crate) fn destinations(&self, count: usize) -> &[Cluster] {
        &self.sandbox.clusters()[1..=count]
    }

    /// Puts each server and this process on a machine of its own, as far as processors go: none has more than its equal
    /// part of all there are, and none takes another's. Until this process ends.
    ///
    /// # Errors
    /// This process may not do so: it takes control groups, and root.
    pub(crate) fn apart(&self, destinations: usize) -> Result<Apart> {
        const PERIOD: usize = 5_000;
        let processors = std::thread::available_parallelism()?.get();
        // A tenth is left to what else there is.
        let part = processors * 9 * PERIOD / 10 / (destinations + 2);
        let mut apart = Apart(Vec::new());
        let mut groups = vec![vec![std::process::id()]];
        let clusters = &self.sandbox.clusters()[..=destinations];
        groups.extend(clusters.iter().filter_map(processes));
        for (at, group) in groups.iter().enumerate() {
            let folder = control_groups()?.join(format!("shardway-{}-{at}", std::process::id()));
            fs::create_dir_all(&folder)?;
            apart.0.push(folder.clone());
            if folder.join("cpu.max").exists() {
                fs::write(folder.join("cpu.max"), format!("{part} {PERIOD}"))?;
            } else {
                fs::write(folder.join("cpu.cfs_period_us"), PERIOD.to_string())?;
                fs::write(folder.join("cpu.cfs_quota_us"), part.to_string())?;
            }
            for process in group {
                let joined = fs::write(folder.join("cgroup.procs"), process.to_string());
                // It may have ended meanwhile.
                if Path::new(&format!("/proc/{process}")).exists() {
                    joined?;
                }
            }
        }
        Ok(apart)
    }

    /// What all servers have used of processors.
    #[must_use]
    pub(crate) fn used(&self) -> Duration {
        self.sandbox.clusters().iter().filter_map(of_server).sum()
    }
}

/// The keys of one of so many destinations.
#[must_use]
pub(crate) fn keys(place: usize, of: usize) -> KeySet {
    let border =
        |at: usize| BUCKETS * u32::try_from(at).unwrap_or(0) / u32::try_from(of).unwrap_or(1);
    KeySet::of(Part::Buckets {
        of: BUCKETS,
        runs: vec![(border(place), border(place + 1))],
    })
}

/// A job that moves all keys of the source to the destinations. Back, nothing was copied before: all that is streamed is
/// applied.
///
/// # Errors
/// What is wrong with its configuration.
pub(crate) fn job(
    id: &str,
    shape: &Shape,
    direction: Direction,
    source: Place<'_>,
    destinations: &[Place<'_>],
) -> Result<(Job, watch::Sender<Knobs>)> {
    let text = "[databases.app]\nshards.s = { primary = \"postgres://h/app\" }\n\
                [databases.app.groups.g]\nmethod = \"hash\"\nkey_type = \"bigint\"\n\
                tables = { \"public.t\" = \"tenant\" }\n";
    let owners = reached::owners(text);
    let tls = Arc::new(ClientTls::new()?);
    let mut servers = BTreeMap::from([("s".to_owned(), server("s", source, &tls))]);
    let mut moves = Vec::new();
    for (at, destination) in destinations.iter().enumerate() {
        let name = format!("d{at}");
        let (from, to) = match direction {
            Direction::Forward => ("s".to_owned(), name.clone()),
            Direction::Back => (name.clone(), "s".to_owned()),
        };
        moves.push(Move {
            group: "g".to_owned(),
            keys: keys(at, destinations.len()),
            from,
            to,
        });
        servers.insert(name.clone(), server(&name, *destination, &tls));
    }
    let (knobs, changes) = watch::channel(Knobs::default());
    let job = Job {
        id: id.to_owned(),
        token: 1,
        attempt: 0,
        direction,
        plan: Arc::new(Plan {
            moves,
            epoch: 1,
            before: owners.clone(),
            after: owners,
            tables: vec![shape.moving()],
            joins: Vec::new(),
            reference: Vec::new(),
            left: Vec::new(),
        }),
        knobs: changes,
        servers: Arc::new(servers),
        home: "s".to_owned(),
        progress: Arc::default(),
        lines: Arc::default(),
    };
    Ok((job, knobs))
}

fn server(name: &str, place: Place<'_>, tls: &Arc<ClientTls>) -> Server {
    let address = Address {
        host: Host::Unix(place.cluster.socket_dir()),
        ..reached::address(place.cluster, place.database)
    };
    reached::server(name, address, Duration::from_secs(60), tls)
}

/// What one of the two that are compared has done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) rows_per_second: f64,
    /// Microseconds of processor time a row, of the servers.
    pub(crate) servers: f64,
    /// The same, of what stands between them.
    pub(crate) between: f64,
    /// Megabytes that this process had at most.
    pub(crate) peak: f64,
}

/// Measures from now on.
pub(crate) struct Watch {
    begun: shardway::clock::Instant,
    servers: Duration,
    between: Duration,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub(crate) fn start(stand: &Stand) -> Self {
        // From here on what it has at most is counted anew.
        drop(fs::write("/proc/self/clear_refs", "5"));
        Self {
            servers: stand.used(),
            between: of_us(),
            begun: Clock.now(),
        }
    }

    /// What it took for so many rows.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn stop(&self, stand: &Stand, rows: u64) -> Figure {
        let took = Clock.now().duration_since(self.begun);
        let rows = rows as f64;
        let each = |used: Duration| used.as_secs_f64() * 1e6 / rows;
        Figure {
            rows_per_second: rows / took.as_secs_f64(),
            servers: each(stand.used().saturating_sub(self.servers)),
            between: each(of_us().saturating_sub(self.between)),
            peak: peak(),
        }
    }
}

/// One line for both, and the ratio of their medians.
pub(crate) fn compare(what: &str, names: [&str; 2], figures: [Vec<Figure>; 2]) -> String {
    let [a, b] = figures.map(|all| {
        let of = |get: fn(&Figure) -> f64| median(all.iter().map(get).collect());
        Figure {
            rows_per_second: of(|it| it.rows_per_second),
            servers: of(|it| it.servers),
            between: of(|it| it.between),
            peak: of(|it| it.peak),
        }
    });
    let line = |name: &str, it: Figure| {
        format!(
            "{what:<20} {name:<14} {:>9.0} rows/s  CPU per row: servers {:>6.2} us, between {:>5.2} us; peak {:>5.1} MB\n",
            it.rows_per_second, it.servers, it.between, it.peak
        )
    };
    format!(
        "{}{}{what:<20} {:<14} {:>9.2} times as many rows/s, {:.2} of all CPU",
        line(names[0], a),
        line(names[1], b),
        "ratio",
        a.rows_per_second / b.rows_per_second,
        (a.servers + a.between) / (b.servers + b.between),
    )
}

/// What this process had of memory at most, in megabytes.
fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kilobytes.unwrap_or_default() / 1024.0
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Processor time of this process, and of what it has started and waited for.
fn of_us() -> Duration {
    let (_, own, children) = of_process("self").unwrap_or_default();
    own + children
}

/// Processes that are held apart from each other.
pub(crate) struct Apart(Vec<PathBuf>);

impl Drop for Apart {
    fn drop(&mut self) {
        for folder in &self.0 {
            let (Some(above), Ok(inside)) = (
                folder.parent(),
                fs::read_to_string(folder.join("cgroup.procs")),
            ) else {
                continue;
            };
            for process in inside.lines() {
                // It may have ended meanwhile.
                drop(fs::write(above.join("cgroup.procs"), process));
            }
            drop(fs::remove_dir(folder));
        }
    }
}

/// Where processors are shared out.
fn control_groups() -> Result<PathBuf> {
    let all = Path::new("/sys/fs/cgroup");
    let first = [all.join("cpu"), all.to_path_buf()];
    let first = first
        .into_iter()
        .find(|it| it.join("cgroup.procs").exists());
    first.context("no control groups at /sys/fs/cgroup")
}

/// Of a server: its first process, and all that this has started.
fn processes(cluster: &Cluster) -> Option<Vec<u32>> {
    let first = first(cluster)?;
    let all = fs::read_dir("/proc").ok()?.flatten();
    let all = all.filter_map(|it| it.file_name().into_string().ok()?.parse::<u32>().ok());
    let child = |it: &u32| of_process(&it.to_string()).is_some_and(|(parent, ..)| parent == first);
    Some(std::iter::once(first).chain(all.filter(child)).collect())
}

fn first(cluster: &Cluster) -> Option<u32> {
    let file = fs::read_to_string(cluster.data_dir().join("postmaster.pid")).ok()?;
    file.lines().next()?.parse().ok()
}

/// Of a server: its first process, and all that it has started.
fn of_server(cluster: &Cluster) -> Option<Duration> {
    let first = first(cluster)?;
    let (_, own, gone) = of_process(&first.to_string())?;
    let mut used = own + gone;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name().into_string().ok()?;
        if let Some((parent, own, gone)) = of_process(&name)
            && parent == first
        {
            used += own + gone;
        }
    }
    Some(used)
}

/// Its parent, its processor time, and that of children that have ended.
fn of_process(pid: &str) -> Option<(u32, Duration, Duration)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let time = |ticks: u64| Duration::from_millis(ticks * 10);
    let own = time(ticks(11)? + ticks(12)?);
    Some((
        u32::try_from(ticks(1)?).ok()?,
        own,
        time(ticks(13)? + ticks(14)?),
    ))
}

/// What is given on the command line after names of options of the harness: numbers in their order.
#[must_use]
pub(crate) fn numbers() -> Vec<usize> {
    let arguments = std::env::args().filter_map(|argument| argument.parse().ok());
    arguments.collect()
}

/// Whether this word stands on the command line.
#[must_use]
pub(crate) fn said(word: &str) -> bool {
    std::env::args().any(|argument| argument == word)
}

/// The shapes that are named on the command line, else all.
#[must_use]
pub(crate) fn shapes() -> Vec<Shape> {
    let named: Vec<String> = std::env::args().collect();
    let is = |it: &Shape| named.iter().any(|name| name == it.name);
    let found: Vec<Shape> = SHAPES.into_iter().filter(is).collect();
    if found.is_empty() {
        SHAPES.to_vec()
    } else {
        found
    }
}
