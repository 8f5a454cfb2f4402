//! Transactions over several shards as the last round of recovery saw them, and the proxies that serve.

use super::{Cell, Console, Table, wall};
use crate::metrics::transactions::Standing;

pub(super) fn transactions(console: &Console) -> Table {
    let names = [
        "transaction",
        "database",
        "shard",
        "owner",
        "prepared_since",
        "state",
        "outcome",
        "finisher",
        "problem",
    ];
    let mut table = Table::new(&names, &[]);
    for (database, distributed) in console.metrics.transactions.all() {
        for part in distributed.parts() {
            let [state, outcome, finisher, problem] = standing(part.standing);
            table.row([
                part.transaction.into(),
                database.clone().into(),
                part.shard.into(),
                part.owner.into(),
                wall(part.since).into(),
                state,
                outcome,
                finisher,
                problem,
            ]);
        }
    }
    table
}

/// State, outcome, who will finish it, why it is not finished yet.
fn standing(standing: Standing) -> [Cell; 4] {
    match standing {
        Standing::UnderWay { incarnation } => [
            "under_way".into(),
            Cell::Null,
            format!("a session of proxy {incarnation:016x}").into(),
            Cell::Null,
        ],
        Standing::InDoubt { outcome, problem } => [
            "in_doubt".into(),
            outcome.map_or(Cell::Null, |outcome| outcome.word().into()),
            "recovery, of any proxy".into(),
            problem.into(),
        ],
        Standing::Stuck { problem } => [
            "stuck".into(),
            Cell::Null,
            "an operator".into(),
            problem.into(),
        ],
    }
}

pub(super) fn proxies(console: &Console) -> Table {
    let names = [
        "database",
        "proxy",
        "id",
        "version",
        "address",
        "started",
        "heartbeat",
        "state",
        "epoch",
        "this",
        "shards",
    ];
    let mut table = Table::new(&names, &["id"]);
    for (database, distributed) in console.metrics.transactions.all() {
        for proxy in distributed.proxies() {
            let number = u64::try_from(proxy.number).unwrap_or_default();
            table.row([
                database.clone().into(),
                format!("{:016x}", proxy.incarnation).into(),
                number.into(),
                proxy.version.into(),
                proxy.address.map_or(Cell::Null, Cell::from),
                wall(proxy.started).into(),
                wall(proxy.heartbeat).into(),
                if proxy.alive { "alive" } else { "silent" }.into(),
                proxy.epoch.map_or(Cell::Null, |epoch| {
                    u64::try_from(epoch).unwrap_or_default().into()
                }),
                if proxy.this { "yes" } else { "no" }.into(),
                proxy.shards.map(|names| names.join(",")).into(),
            ]);
        }
    }
    table
}
