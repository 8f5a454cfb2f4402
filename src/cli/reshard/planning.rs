//! What `plan` prints, and `start` begins with: moves, sizes, and what stands in the way.

use super::{
    PlanArgs,
    asking::{Fault, Site},
};
use crate::{
    inspect::{Severity, complete_snapshot},
    reshard::{
        dump::Tools,
        job::{Direction, Job, Knobs, Progress},
        planning::{Asked, Planned, plan},
        steps::preflight::{self, Finding},
        wish::Wish,
    },
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;

/// A row's way takes about so long: copy, build, compare.
const ROWS_PER_SECOND: u64 = 100_000;

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
    let planned = plan(asked, &wishes).await?;
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
    let findings = Box::pin(preflight::run(&job, &tools)).await?;
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
            (rows + it.rows, bytes + it.bytes)
        })
    }

    pub(super) fn text(&self) -> String {
        let mut lines = Vec::new();
        for moved in &self.planned.plan.moves {
            lines.push(format!(
                "group {}: {} -> {}: {}",
                moved.group,
                moved.from,
                moved.to,
                serde_json::to_string(&moved.keys).unwrap_or_default()
            ));
        }
        for join in &self.planned.plan.joins {
            lines.push(format!("shard {join} joins"));
        }
        for size in &self.planned.sizes {
            lines.push(format!(
                "table {} leaves {}: about {} rows, {} bytes",
                size.table, size.shard, size.rows, size.bytes
            ));
        }
        let (rows, bytes) = self.totals();
        lines.push(format!(
            "together: about {rows} rows, {bytes} bytes, some {} s",
            1 + rows / ROWS_PER_SECOND
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
            lines.push(format!("{}: {place}{}", severity(it.severity), it.what));
            if !it.fix.is_empty() {
                lines.push(format!("    {}", it.fix));
            }
        }
        lines.push(if self.is_refused() {
            "it cannot begin like this; nothing was changed".to_owned()
        } else {
            "it can begin: shardway reshard start".to_owned()
        });
        lines.join("\n") + "\n"
    }

    pub(super) fn json(&self) -> Value {
        let (rows, bytes) = self.totals();
        let sizes = self.planned.sizes.iter();
        let sizes: Vec<_> = sizes
            .map(|it| json!({ "table": it.table, "shard": it.shard, "rows": it.rows, "bytes": it.bytes }))
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
            "sizes": sizes,
            "rows": rows,
            "bytes": bytes,
            "seconds": 1 + rows / ROWS_PER_SECOND,
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
