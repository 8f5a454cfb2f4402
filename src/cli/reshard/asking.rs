//! The home shard of a database, as the command asks it and writes wishes there.

use crate::{
    catalog::ownership::Content,
    cli::Exit,
    clock::Duration,
    config::settings::{Database, Settings},
    inspect::AskError,
    net::tls::{ClientTls, TlsError},
    registry::{Lease, Registry, Unflipped, errand},
    reshard::{
        job::{Knobs, StepError},
        plan::Plan,
        planning::PlanError,
        record::{self, Stored},
        servers::Server,
        state::{Record, Refusal, Step, Wish},
        wish::NoMoves,
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// Somebody else may write a wish at the same time.
const TRIES: usize = 8;

/// Why a command did nothing, or not all.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Database(String),
    #[error("database {0} has no control role: resharding needs one (control = {{ user = ... }})")]
    NoControl(String),
    #[error("database {0} has one shard: there is nothing to move between")]
    OneShard(String),
    #[error("the shard with the catalog: {0}")]
    Ask(#[from] AskError),
    #[error("the map: {0}")]
    Map(#[from] Unflipped),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("{0}")]
    Moves(#[from] NoMoves),
    #[error("{0}")]
    Step(#[from] StepError),
    #[error("no reshard is under way")]
    None,
    #[error("reshard {0} is under way: one at a time")]
    UnderWay(String),
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error(
        "{0:?} is not understood: NAME=VALUE with one of chunk_rows, copies, bytes_per_second, batch, wal_kept, drain_ms, hold_ms, lock_ms, rows_per_second, compare_ms, and a number"
    )]
    Knob(String),
    #[error("others change it all the time")]
    Busy,
}

impl Fault {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Database(_) | Self::Knob(_) => Exit::Usage,
            Self::Moves(NoMoves::Syntax(_)) => Exit::Usage,
            Self::NoControl(_)
            | Self::OneShard(_)
            | Self::Plan(_)
            | Self::Moves(_)
            | Self::None
            | Self::UnderWay(_)
            | Self::Refused(_) => Exit::Refused,
            Self::Ask(_) | Self::Map(_) | Self::Tls(_) | Self::Step(_) | Self::Busy => Exit::Failed,
        }
    }
}

/// A database whose keys may move.
pub(super) struct Site {
    pub(super) database: Arc<Database>,
    registry: Registry,
    pub(super) servers: Arc<BTreeMap<String, Server>>,
}

/// A condition of a cutover.
pub(super) struct Gate {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) open: bool,
}

impl Site {
    pub(super) fn of(settings: &Settings, name: Option<&str>) -> Result<Self, Fault> {
        let found = match name {
            Some(name) => settings.databases.get(name).ok_or_else(|| {
                Fault::Database(format!("the configuration has no database {name}"))
            })?,
            None => {
                let mut able = settings
                    .databases
                    .values()
                    .filter(|it| it.control.is_some() && it.shards.len() > 1);
                match (able.next(), able.next()) {
                    (Some(only), None) => only,
                    (Some(_), Some(_)) => {
                        return Err(Fault::Database(
                            "several databases can be resharded: say which with --database"
                                .to_owned(),
                        ));
                    }
                    (None, _) => {
                        return Err(Fault::Database(
                            "no database has several shards and a control role".to_owned(),
                        ));
                    }
                }
            }
        };
        if found.control.is_none() {
            return Err(Fault::NoControl(found.name.clone()));
        }
        let registry = Registry::new(found).ok_or_else(|| Fault::OneShard(found.name.clone()))?;
        let tls = Arc::new(ClientTls::new()?);
        Ok(Self {
            servers: Arc::new(Server::all(found, &tls)),
            registry,
            database: Arc::clone(found),
        })
    }

    pub(super) fn home(&self) -> &str {
        self.registry.name(self.registry.home())
    }

    async fn lease(&self) -> Result<Lease, AskError> {
        self.registry.lease(self.registry.home()).await
    }

    /// The map, and its number.
    pub(super) async fn map(&self) -> Result<(i64, Content), Fault> {
        let now = self.registry.read_map().await?;
        Ok((now.epoch, now.content))
    }

    /// The reshard that was begun last.
    pub(super) async fn latest(&self) -> Result<Option<Stored>, Fault> {
        let lease = self.lease().await?;
        let all = errand(record::all(&lease)).await?;
        lease.done();
        Ok(all.into_iter().next())
    }

    /// The one that is not over.
    pub(super) async fn unfinished(&self) -> Result<Stored, Fault> {
        let lease = self.lease().await?;
        let all = errand(record::unfinished(&lease)).await?;
        lease.done();
        all.into_iter().next().ok_or(Fault::None)
    }

    /// Its journal, the newest first.
    pub(super) async fn journal(
        &self,
        id: &str,
    ) -> Result<Vec<(String, String, serde_json::Value)>, Fault> {
        let lease = self.lease().await?;
        let entries = errand(record::entries(&lease, id, 100)).await?;
        lease.done();
        Ok(entries)
    }

    /// Records a new one.
    pub(super) async fn start(&self, plan: &Plan, knobs: &Knobs) -> Result<Stored, Fault> {
        let lease = self.lease().await?;
        for _ in 0..TRIES {
            let all = errand(record::all(&lease)).await?;
            if let Some(other) = all.iter().find(|it| !it.record.is_over()) {
                return Err(Fault::UnderWay(other.id.clone()));
            }
            let number = |it: &Stored| it.id.strip_prefix('r')?.parse::<u64>().ok();
            let last = all.iter().filter_map(number).max().unwrap_or(0);
            let id = format!("r{}", last + 1);
            if errand(record::start(&lease, &id, plan, knobs, &BTreeMap::new())).await? {
                let made = errand(record::read(&lease, &id)).await?;
                lease.done();
                return made.ok_or(Fault::Busy);
            }
        }
        Err(Fault::Busy)
    }

    /// Writes a wish.
    pub(super) async fn change(
        &self,
        event: &str,
        change: impl Fn(&Record) -> Result<Record, Refusal>,
    ) -> Result<Stored, Fault> {
        for _ in 0..TRIES {
            let stored = self.unfinished().await?;
            let record = change(&stored.record)?;
            let lease = self.lease().await?;
            let none = serde_json::json!({});
            let swapped = errand(record::swap(&lease, &stored, &record, event, &none)).await?;
            lease.done();
            if swapped {
                return Ok(Stored { record, ..stored });
            }
        }
        Err(Fault::Busy)
    }

    /// Changes how it runs.
    pub(super) async fn set(&self, values: &[String]) -> Result<Stored, Fault> {
        for _ in 0..TRIES {
            let stored = self.unfinished().await?;
            let knobs = knobs(stored.knobs.clone(), values)?;
            let lease = self.lease().await?;
            let set = errand(record::set_knobs(&lease, &stored, &knobs)).await?;
            lease.done();
            if set {
                return Ok(Stored { knobs, ..stored });
            }
        }
        Err(Fault::Busy)
    }

    /// What a cutover needs, and how it stands.
    pub(super) async fn gates(&self, wish: Wish) -> Result<Vec<Gate>, Fault> {
        const PROXIES: &str = "\
SELECT count(*), count(*) FILTER (WHERE coalesce(p.epoch, 0) < e.epoch) FROM shardway.proxy p, shardway.epoch e \
WHERE p.heartbeat > now() - interval '7 s'";
        let stored = self.unfinished().await?;
        let record = &stored.record;
        let allowed = record.allows(wish);
        let mut gates = vec![Gate {
            name: "state",
            value: allowed.map_or_else(
                |refusal| refusal.to_string(),
                |()| record::word(&record.state),
            ),
            open: allowed.is_ok(),
        }];
        gates.push(Gate {
            name: "everything is made for it",
            value: record
                .step
                .map_or_else(|| "not yet".to_owned(), |step| record::word(&step)),
            open: record.step == Some(Step::Made),
        });
        gates.push(Gate {
            name: "verification",
            value: format!("round {}", record.round),
            open: record.round > 0 && record.stopped.is_none(),
        });
        gates.push(Gate {
            name: "not paused",
            value: if record.paused { "paused" } else { "runs" }.to_owned(),
            open: !record.paused,
        });
        for (name, value) in &stored.progress {
            if name.starts_with("stream.") && name.ends_with(".problem") {
                gates.push(Gate {
                    name: "stream",
                    value: format!("{name}: {value}"),
                    open: false,
                });
            }
        }
        let lease = self.lease().await?;
        let row = errand(async { Ok(lease.query_one(PROXIES, &[]).await?) }).await?;
        lease.done();
        let (all, late): (i64, i64) = (row.get(0), row.get(1));
        gates.push(Gate {
            name: "proxies with the present map",
            value: format!("{} of {all}", all - late),
            open: late == 0 && all > 0,
        });
        Ok(gates)
    }
}

/// How it runs, with these values changed.
pub(super) fn knobs(mut knobs: Knobs, values: &[String]) -> Result<Knobs, Fault> {
    for text in values {
        let fault = || Fault::Knob(text.clone());
        let (name, value) = text.split_once('=').ok_or_else(fault)?;
        let number: u64 = value.trim().parse().map_err(|_error| fault())?;
        let some = || {
            if number == 0 {
                Err(fault())
            } else {
                Ok(number)
            }
        };
        let count = || usize::try_from(some()?).map_err(|_error| fault());
        let time = || some().map(Duration::from_millis);
        match name.trim() {
            "chunk_rows" => knobs.chunk_rows = some()?,
            "copies" => knobs.copies = count()?,
            "bytes_per_second" => knobs.bytes_per_second = number,
            "batch" => knobs.batch = count()?,
            "wal_kept" => knobs.wal_kept = some()?,
            "load" => knobs.load = number,
            "answer_ms" => knobs.answer = Duration::from_millis(number),
            "replica_lag" => knobs.replica_lag = number,
            "drain_ms" => knobs.drain = time()?,
            "hold_ms" => knobs.hold = time()?,
            "lock_ms" => knobs.lock = time()?,
            "rows_per_second" => knobs.rows_per_second = number,
            "compare_ms" => knobs.compare = time()?,
            _ => return Err(fault()),
        }
    }
    Ok(knobs)
}
