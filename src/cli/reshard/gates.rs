//! What a cutover needs, and how it stands: each gate with its value. Changes nothing.

use super::{asking::Site, fault::Fault};
use crate::{
    inspect::{AskError, at_once},
    metrics::reshards::Sight,
    reshard::{
        plan::{MovingTable, Plan},
        record::word,
        servers::Server,
        state::{Step, Wish},
    },
    txn::gid::PREFIX,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// More than this is not applied while statements are held.
const LAG_BYTES: u64 = 1 << 20;

/// Whether it is a primary; and transactions that have written to these tables for longer than a second: those of
/// processes, and prepared ones, which no process has, with what ends them. Shardway's own it ends itself. The locks of a
/// prepared transaction are under one virtual transaction, as is the one on its own number.
const LOOK: &str = "\
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks) \
SELECT pg_is_in_recovery(), (SELECT string_agg(format('process %s of %s for %s s', a.pid, a.usename, \
    extract(epoch FROM clock_timestamp() - a.xact_start)::int8), '; ') FROM pg_stat_activity a \
  WHERE a.xact_start < clock_timestamp() - interval '1 s' AND EXISTS (SELECT FROM locks l WHERE l.pid = a.pid AND l.granted \
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
    AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', \
      'AccessExclusiveLock') AND l.relation IN (SELECT to_regclass(t) FROM unnest($1::text[]) t))), \
  (SELECT string_agg(format('transaction %L of %s, prepared %s s ago (%s)', x.gid, x.owner, \
    extract(epoch FROM clock_timestamp() - x.prepared)::int8, CASE WHEN starts_with(x.gid, $2) \
      THEN 'a proxy finishes it: SHOW TRANSACTIONS' ELSE format('COMMIT PREPARED %L or ROLLBACK PREPARED %1$L', x.gid) END), \
    '; ' ORDER BY x.prepared) FROM pg_prepared_xacts x \
  WHERE x.database = current_database() AND x.prepared < clock_timestamp() - interval '1 s' AND EXISTS ( \
    SELECT FROM locks own JOIN locks l ON l.pid IS NULL AND l.virtualtransaction = own.virtualtransaction \
    WHERE own.pid IS NULL AND own.locktype = 'transactionid' AND own.transactionid = x.transaction \
      AND own.mode = 'ExclusiveLock' AND l.locktype = 'relation' \
      AND l.relation IN (SELECT to_regclass(t) FROM unnest($1::text[]) t) \
      AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')))";

/// A condition of a cutover.
pub(super) struct Gate {
    name: String,
    value: String,
    open: bool,
}

impl Gate {
    fn new(name: impl Into<String>, value: impl Into<String>, open: bool) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
            open,
        }
    }
}

/// Every gate.
pub(super) async fn look(site: &Site, wish: Wish) -> Result<Vec<Gate>, Fault> {
    let seen = site.unfinished().await?;
    let (record, sight) = (&seen.stored.record, seen.sight());
    let allowed = record.allows(wish);
    let state = allowed.map_or_else(|refusal| refusal.to_string(), |()| word(&record.state));
    let made = record
        .step
        .map_or_else(|| "not yet".to_owned(), |step| word(&step));
    let mut gates = vec![
        Gate::new("state", state, allowed.is_ok()),
        Gate::new(
            "everything is made for it",
            made,
            record.step == Some(Step::Made),
        ),
    ];
    let (rows, different) = (
        sight.verified_rows.unwrap_or(0),
        sight.differences.unwrap_or(0),
    );
    let clean = record.round > 0 && record.stopped.is_none() && different == 0;
    let verified = format!(
        "round {}: {rows} rows compared, {different} differ",
        record.round
    );
    gates.push(Gate::new("verification", verified, clean));
    let stands = match (&record.stopped, record.paused) {
        (Some(stopped), _) => format!("stopped: {}", stopped.what),
        (None, true) => "paused: shardway reshard resume".to_owned(),
        (None, false) => "yes".to_owned(),
    };
    let runs = record.stopped.is_none() && !record.paused;
    gates.push(Gate::new("it runs", stands, runs));
    let leader = sight.leader.as_ref();
    let who = leader.map_or_else(
        || "nobody".to_owned(),
        |it| {
            let name = it.address.as_ref().unwrap_or(&it.proxy);
            let silent = if it.alive { "" } else { ", silent" };
            format!("{name}{silent}")
        },
    );
    gates.push(Gate::new(
        "a proxy leads it",
        who,
        leader.is_some_and(|it| it.alive),
    ));
    gates.push(proxies(site).await?);
    gates.push(reaching(site, &seen.stored.plan).await?);
    gates.extend(shards(&sight));
    gates.extend(servers(&site.servers, &seen.stored.plan).await);
    Ok(gates)
}

async fn proxies(site: &Site) -> Result<Gate, Fault> {
    let (all, late) = site.proxies().await?;
    let present = if late.is_empty() {
        format!("{all} of {all}")
    } else {
        let have = all - i64::try_from(late.len()).unwrap_or(0);
        format!("{have} of {all}; not {}", late.join(", "))
    };
    Ok(Gate::new(
        "proxies with the present map",
        present,
        late.is_empty() && all > 0,
    ))
}

/// Whether the proxies reach all shards that take part: one that does not serves nothing that is on several.
async fn reaching(site: &Site, plan: &Plan) -> Result<Gate, Fault> {
    let unable = site.unable(&plan.shards()).await?;
    let each = unable
        .iter()
        .map(|it| format!("{} lacks {}", it.proxy, it.lacks.join(", ")));
    let value = each.collect::<Vec<_>>().join("; ");
    let open = unable.is_empty();
    let value = if open { "yes".to_owned() } else { value };
    Ok(Gate::new(
        "proxies have its shards in their files",
        value,
        open,
    ))
}

/// How far each source has gone, and what it keeps.
fn shards(sight: &Sight) -> Vec<Gate> {
    let mut gates = Vec::new();
    for stream in &sight.streams {
        let behind = match stream.lag_bytes {
            Some(lag) => format!("{lag} bytes, {} ms behind", stream.lag_ms.unwrap_or(0)),
            None => "not known yet how far behind".to_owned(),
        };
        let value = stream.problem.clone().unwrap_or(behind);
        let near = stream.lag_bytes.is_some_and(|lag| lag <= LAG_BYTES);
        let open = stream.problem.is_none() && near;
        gates.push(Gate::new(
            format!("changes of shard {}", stream.shard),
            value,
            open,
        ));
    }
    for source in &sight.sources {
        let value = format!("{} bytes kept, {}", source.wal_kept, source.wal_status);
        let open = matches!(source.wal_status.as_str(), "reserved" | "extended");
        gates.push(Gate::new(
            format!("WAL of shard {}", source.shard),
            value,
            open,
        ));
    }
    gates
}

/// Every server that takes part; one that this command cannot ask is no reason to go on.
async fn servers(servers: &BTreeMap<String, Server>, plan: &Plan) -> Vec<Gate> {
    let tables: Vec<String> = plan.tables.iter().map(MovingTable::sql).collect();
    let (names, tables) = (plan.shards(), &tables);
    let each = names.iter().map(|name| async move {
        let gate = |value: String, open| Gate::new(format!("shard {name}"), value, open);
        let Some(server) = servers.get(name) else {
            let value = "cannot be asked: the configuration file of this command lacks it";
            return gate(value.to_owned(), false);
        };
        match ask(server, tables).await {
            Ok((true, _)) => gate("it is a standby now".to_owned(), false),
            Ok((false, Some(who))) => gate(format!("transactions have its tables: {who}"), false),
            Ok((false, None)) => gate("answers, a primary, no long transaction".to_owned(), true),
            Err(problem) => gate(format!("cannot be asked: {problem}"), false),
        }
    });
    at_once(each.collect()).await
}

async fn ask(server: &Server, tables: &[String]) -> Result<(bool, Option<String>), AskError> {
    let client = server.sql().await?;
    let row = client.query_one(LOOK, &[&tables, &PREFIX]).await?;
    let (running, prepared): (Option<String>, Option<String>) = (row.get(1), row.get(2));
    let who: Vec<String> = running.into_iter().chain(prepared).collect();
    Ok((row.get(0), (!who.is_empty()).then(|| who.join("; "))))
}

/// Whether all are.
pub(super) fn open(gates: &[Gate]) -> bool {
    gates.iter().all(|gate| gate.open)
}

pub(super) fn text(gates: &[Gate]) -> String {
    let line = |gate: &Gate| {
        let open = if gate.open { "open" } else { "closed" };
        format!("{open:<7} {}: {}\n", gate.name, gate.value)
    };
    gates.iter().map(line).collect()
}

pub(super) fn json(gates: &[Gate]) -> Value {
    let gate = |it: &Gate| json!({ "gate": it.name, "value": it.value, "open": it.open });
    json!({ "open": open(gates), "gates": gates.iter().map(gate).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::moving::{KeySet, Move, Part},
        metrics::reshards::Stream,
    };

    #[test]
    fn changes_of_which_nothing_is_known_close_a_gate() {
        let gate = |lag_bytes: Option<u64>| {
            let stream = Stream {
                shard: "s0".to_owned(),
                lag_bytes,
                lag_ms: lag_bytes,
                ..Stream::default()
            };
            let sight = Sight {
                streams: vec![stream],
                ..Sight::default()
            };
            shards(&sight).remove(0)
        };
        assert!(gate(Some(0)).open && gate(Some(LAG_BYTES)).open);
        assert!(!gate(Some(LAG_BYTES + 1)).open);
        let unknown = gate(None);
        assert!(!unknown.open && unknown.value.contains("not known"));
    }

    #[tokio::test]
    async fn a_shard_that_the_own_file_lacks_closes_a_gate() {
        let moved = Move {
            group: "g".to_owned(),
            keys: KeySet::of(Part::None),
            from: "s0".to_owned(),
            to: "s9".to_owned(),
        };
        let plan = Plan {
            moves: vec![moved],
            ..Plan::default()
        };
        let gates = servers(&BTreeMap::new(), &plan).await;
        let names: Vec<&str> = gates.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["shard s0", "shard s9"]);
        assert!(gates.iter().all(|it| !it.open), "{}", text(&gates));
    }
}
