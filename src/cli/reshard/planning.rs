//! What `plan` prints, and `start` begins with: moves, sizes, and what stands in the way.

use super::{
    PlanArgs,
    asking::Site,
    fault::Fault,
    figures::{bytes as in_bytes, seconds as in_seconds},
};
use crate::{
    catalog::key::Key,
    inspect::{Severity, complete_snapshot},
    reshard::{
        dump::Tools,
        job::{Direction, Job, Knobs, Progress},
        plan::MovingTable,
        planning::{Asked, PlanError, Planned, plan},
        steps::preflight::{self, Finding},
        wish::{NoMoves, Wish},
    },
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;

/// The way of rows takes about so long, of narrow ones by their number, of wide ones by their bytes: copy, build, compare.
const ROWS_PER_SECOND: u64 = 100_000;
const BYTES_PER_SECOND: u64 = 50_000_000;

/// A plan and what was found about it.
pub(super) struct Made {
    pub(super) planned: Planned,
    findings: Vec<Finding>,
}

/// Makes a plan and looks for what stands in its way; changes nothing.
pub(super) async fn make(site: &Site, args: &PlanArgs) -> Result<Made, Fault> {
    let wishes = wishes(args)?;
    let (epoch, content) = site.map().await?;
    let mut snapshot = (*site.database.snapshot).clone();
    let credentials = site.database.control.as_ref();
    // What does not fit, the preflight says of the tables that move.
    drop(complete_snapshot(&site.database, credentials, &mut snapshot).await);
    let asked = Asked {
        snapshot: &snapshot,
        epoch,
        owners: &content.owners,
        members: &content.members,
        servers: &site.servers,
    };
    let planned = plan(asked, &wishes).await.map_err(|error| match error {
        PlanError::Moves(NoMoves::NoShard(name)) => Fault::NoShard {
            name,
            known: site.servers.keys().cloned().collect::<Vec<_>>().join(", "),
        },
        other @ (PlanError::Moves(_)
        | PlanError::Unmovable(_)
        | PlanError::Ask { .. }
        | PlanError::NoTable { .. }
        | PlanError::NoTables(_)) => other.into(),
    })?;
    let (_keep, knobs) = watch::channel(Knobs::default());
    let job = Job {
        id: "plan".to_owned(),
        token: 0,
        attempt: 0,
        direction: Direction::Forward,
        plan: Arc::new(planned.plan.clone()),
        knobs,
        servers: Arc::clone(&site.servers),
        home: site.home().to_owned(),
        progress: Arc::new(Progress::default()),
        lines: Arc::default(),
    };
    let tools = Tools {
        pg_dump: site.database.pg_dump.clone(),
    };
    let mut findings = Box::pin(preflight::run(&job, &tools)).await?;
    let unable = site.unable(&planned.plan.shards()).await?;
    findings.splice(0..0, unable.iter().map(preflight::unable));
    Ok(Made { planned, findings })
}

fn wishes(args: &PlanArgs) -> Result<Vec<Wish>, Fault> {
    let mut wishes = Vec::new();
    if !args.to.is_empty() {
        wishes.push(Wish::Spread {
            group: args.group.clone(),
            to: args.to.clone(),
        });
    }
    for text in &args.moves {
        wishes.push(Wish::of_move(text, args.group.clone())?);
    }
    for text in &args.pins {
        wishes.push(Wish::of_pin(text, args.group.clone())?);
    }
    if wishes.is_empty() {
        return Err(Fault::NoWish);
    }
    Ok(wishes)
}

impl Made {
    pub(super) fn is_refused(&self) -> bool {
        self.findings
            .iter()
            .any(|it| it.severity == Severity::Error)
    }

    fn totals(&self) -> (u64, u64) {
        let sizes = self.planned.sizes.iter();
        sizes.fold((0, 0), |(rows, bytes), it| {
            (rows + it.rows.unwrap_or(0), bytes + it.bytes)
        })
    }

    /// About how long it takes.
    fn seconds(&self) -> u64 {
        let (rows, bytes) = self.totals();
        1 + (rows / ROWS_PER_SECOND).max(bytes / BYTES_PER_SECOND)
    }

    pub(super) fn text(&self) -> String {
        let plan = &self.planned.plan;
        let mut lines = Vec::new();
        for moved in &plan.moves {
            let (group, from, to) = (&moved.group, &moved.from, &moved.to);
            let keys = moved.keys.words(usize::MAX);
            lines.push(format!("move    {group}: {from} -> {to}: {keys}"));
        }
        let whole: Vec<String> = plan.reference.iter().map(MovingTable::plain).collect();
        for join in &plan.joins {
            let with = if whole.is_empty() {
                String::new()
            } else {
                format!(", with {} whole", whole.join(", "))
            };
            lines.push(format!("join    {join}: it gets the tables{with}"));
        }
        for cut in &self.planned.cuts {
            let bounds: Vec<String> = cut.bounds.iter().map(Key::text).collect();
            lines.push(format!(
                "cut     {} at {}: about as many rows on each shard",
                cut.group,
                bounds.join(", ")
            ));
        }
        for size in &self.planned.sizes {
            let bytes = in_bytes(size.bytes);
            let rows = match size.rows {
                Some(rows) => format!("about {rows} rows"),
                None => "rows unknown: never analyzed".to_owned(),
            };
            let to = size.to.as_ref();
            let to = to.map_or_else(String::new, |to| format!(" to {to}"));
            lines.push(format!(
                "copy    {} from {}{to}: {rows}, {bytes} with indexes",
                size.table, size.shard
            ));
        }
        let (rows, bytes) = self.totals();
        let unknown = self.planned.sizes.iter().any(|it| it.rows.is_none());
        let more = if unknown { " and more" } else { "" };
        lines.push(format!(
            "all     about {rows} rows{more}, {} with indexes; some {}{more} if the servers have nothing else to do",
            in_bytes(bytes),
            in_seconds(self.seconds())
        ));
        for it in &self.findings {
            let place = it
                .shard
                .iter()
                .chain(&it.table)
                .cloned()
                .collect::<Vec<_>>();
            let place = if place.is_empty() {
                String::new()
            } else {
                format!("{}: ", place.join(", "))
            };
            lines.push(format!("{:<7} {place}{}", severity(it.severity), it.what));
            if !it.fix.is_empty() {
                lines.push(format!("        {}", it.fix));
            }
        }
        lines.push(if self.is_refused() {
            "it cannot begin like this; nothing was changed".to_owned()
        } else {
            "it can begin (shardway reshard start, with the same words); nothing was changed"
                .to_owned()
        });
        lines.join("\n") + "\n"
    }

    pub(super) fn json(&self) -> Value {
        let (rows, bytes) = self.totals();
        let sizes = self.planned.sizes.iter();
        let sizes: Vec<_> = sizes
            .map(|it| json!({ "table": it.table, "shard": it.shard, "to": it.to, "rows": it.rows, "bytes": it.bytes }))
            .collect();
        let findings = self.findings.iter();
        let findings: Vec<_> = findings
            .map(|it| {
                json!({
                    "severity": severity(it.severity), "shard": it.shard, "table": it.table, "what": it.what, "fix": it.fix,
                })
            })
            .collect();
        json!({
            "ok": !self.is_refused(),
            "moves": self.planned.plan.moves,
            "joins": self.planned.plan.joins,
            "cuts": self.planned.cuts.iter()
                .map(|it| json!({ "group": it.group, "bounds": it.bounds.iter().map(Key::text).collect::<Vec<_>>() }))
                .collect::<Vec<_>>(),
            "sizes": sizes,
            "rows": rows,
            "bytes": bytes,
            "seconds": self.seconds(),
            "findings": findings,
        })
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}
