//! Schema changes over shards: the same text on every shard that it concerns.
//!
//! What must stay true: a change that can stand in a transaction is done on all its shards or on none, by the machinery
//! of writes (`spread`), shard after shard in their order. One that cannot runs on one shard after the other, and where
//! it stops the client is told how far it came. Before the client is told that a change is committed the servers are
//! looked at again; until then, within its transaction, statements are planned with what is known of it, and a table
//! whose columns it may have changed has none that are known.

mod emptying;

use super::{
    fan::Fan,
    holding::Asks,
    learning::Looked,
    link::{Hold, Link},
    numbers::Drew,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{Phase, Session, first_value},
    spread::{Writing, answers::Written},
};
use crate::{
    catalog::{
        shard::{ShardId, ShardSet},
        snapshot::{Other, Placement, Snapshot, Table, TableName, Unlisted},
    },
    clock::Duration,
    config::settings::PoolMode,
    plan::{
        StatementPlan, Target,
        change::{Changes, Found, Locks, New, Reach, is_another_elsewhere},
        spread::{Fill, Shares, Spread, Time, Turns, What},
    },
    registry::Announced,
    sql::change::Block,
    wire::{
        backend::{Status, command_tag},
        frontend::{put, put_query},
        notice::{Notice, Words},
    },
};
use std::sync::Arc;

/// How long the client of a change waits at most for the servers to be looked at.
pub(super) const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits at most for the other proxies to take it over.
const OTHERS_PATIENCE: Duration = Duration::from_secs(8);

/// What no two servers have in common.
const WHICH_SERVER: &str = "SELECT pg_catalog.concat(pg_catalog.current_setting('port'), ' ', \
     pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.pg_postmaster_start_time()), \
     'YYYY-MM-DD HH24:MI:SS.US'))";

/// Whether the schema is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Not,
    MayBe,
}

/// What a change has made that its transaction must know.
#[derive(Clone, Debug)]
enum Made {
    /// A table that lives there.
    Table {
        name: TableName,
        placement: Placement,
    },
    /// The same, of which nothing else says so: it is kept with the table.
    Placed {
        name: TableName,
        placement: Placement,
    },
    View(TableName),
    Nothing,
}

/// A change that the transaction under way has made.
#[derive(Debug)]
pub(super) struct Foreseen {
    command: &'static str,
    /// Tables, whatever their schema, whose columns may be others now.
    tables: Vec<String>,
    /// A table, and what it is called now.
    renamed: Option<(TableName, TableName)>,
    made: Made,
}

impl Foreseen {
    fn apply(&self, seen: &mut Snapshot) {
        seen.forget_derived(self.command, &self.tables);
        for (name, table) in &mut seen.tables {
            if self.tables.contains(&name.name) {
                table.columns.clear();
                table.sources.clear();
                // Its defaults may be others.
                table.effects.computed.clear();
            }
        }
        if let Made::View(name) = &self.made {
            seen.others.insert(name.clone(), Other::Derived);
        }
        if let Some((before, after)) = &self.renamed {
            if let Some(table) = seen.tables.remove(before) {
                seen.learned.remove(before);
                seen.learned.insert(after.clone());
                seen.tables.insert(after.clone(), table);
            } else if let Some(other) = seen.others.remove(before) {
                seen.others.insert(after.clone(), other);
            }
        }
        if let Made::Placed { name, .. } = &self.made {
            seen.learned.insert(name.clone());
        }
        if let Made::Table { name, placement } | Made::Placed { name, placement } = &self.made {
            let listed = seen.tables.contains_key(name);
            let kept = matches!(self.made, Made::Placed { .. });
            if listed || kept || !matches!(placement, Placement::Single(_)) {
                let table = Table::unasked(placement.clone());
                seen.tables.insert(name.clone(), table);
            } else {
                seen.others.insert(name.clone(), Other::Table);
            }
        }
    }
}

/// What has been heard of a change that runs by itself, shard after shard.
#[derive(Default)]
struct Heard {
    /// Members of the fan that it concerns.
    concerned: Vec<usize>,
    /// Those on which it is done.
    done: Vec<usize>,
    tag: Vec<u8>,
    notices: Vec<u8>,
    problem: Option<Words>,
}

impl Session {
    /// Whether the statement is a schema change that runs over shards, and the session may do so now.
    pub(super) fn may_change(&self, statement: &StatementPlan) -> bool {
        let begun = |link: &Link| link.hold == Hold::Bound && link.status == Status::Idle;
        statement.changes.is_some()
            && self.mode == PoolMode::Transaction
            && !self.is_kept()
            && self.phase != Phase::Answering
            && !self.snapshot.is_single()
            && !(self.phase == Phase::Batch && self.link.as_deref().is_some_and(begun))
    }

    /// Whether a Query is a schema change, or several that one transaction can hold, and what is refused by itself.
    pub(super) fn changes(&self, statements: &[StatementPlan]) -> bool {
        if let [statement] = statements {
            return self.may_change(statement);
        }
        let can = |statement: &StatementPlan| match statement.changes.as_deref() {
            Some(changes) => changes.block == Block::Allowed && self.may_change(statement),
            None => {
                let computed = statement.spread.is_some()
                    || statement.gather.is_some()
                    || statement.combine.is_some();
                matches!(statement.target, Target::Refused(_)) && !computed
            }
        };
        let changes = |statement: &StatementPlan| statement.changes.is_some();
        statements.iter().any(changes) && statements.iter().all(can)
    }

    /// Runs a Query of schema changes, several of them in one transaction.
    pub(super) async fn query_changes(
        &mut self,
        statements: &[StatementPlan],
        text: &[u8],
    ) -> Result<(), Stop> {
        let done = match statements {
            [statement] => self.change(statement, text).await,
            several => self.change_each(several, text).await,
        };
        self.conclude(done).await
    }

    async fn change_each(
        &mut self,
        statements: &[StatementPlan],
        text: &[u8],
    ) -> Result<Written, Stop> {
        let mut last: Option<Written> = None;
        for statement in statements {
            if let Some(mut before) = last.take() {
                before.put_rows(0, self.client.out());
            }
            let own = text.get(statement.start as usize..statement.end as usize);
            let own = own.ok_or_else(reply::malformed)?;
            // The one before may have changed where it runs.
            let scratch = self.scratch.get_or_insert_default();
            let plans = &self.database.plans;
            let planned = plans.plan(own, &[], &self.context, &self.snapshot, scratch);
            last = match planned.plan.statements.as_slice() {
                [one] if one.changes.is_some() => Some(self.change(one, own).await?),
                [
                    StatementPlan {
                        target: Target::Refused(why),
                        ..
                    },
                ] => return Err(wording::unroutable(why).into()),
                _ => return Err(reply::malformed().into()),
            };
        }
        last.ok_or_else(|| reply::malformed().into())
    }

    /// Runs the schema change of a portal.
    pub(super) async fn change_portal(&mut self, prepared: &Prepared) -> Result<Written, Stop> {
        let Some(statement) = prepared.statement() else {
            return Err(reply::malformed().into());
        };
        let done = self.change(statement, &prepared.text).await?;
        if !self.for_batch {
            self.tally.queries += 1;
        }
        Ok(done)
    }

    async fn change(&mut self, statement: &StatementPlan, text: &[u8]) -> Result<Written, Stop> {
        let (Some(changes), Ok(text)) = (&statement.changes, std::str::from_utf8(text)) else {
            return Err(reply::malformed().into());
        };
        self.check_footing(statement)?;
        if let Some(emptied) = Box::pin(self.empty_moving(changes)).await? {
            return Ok(emptied);
        }
        let asks = self.check_moving(statement, changes).await?;
        self.check_restart(changes.command, text)?;
        let outside = self.status() == Status::Idle;
        if outside && changes.command == "LOCK TABLE" {
            return Err(reply::needs_transaction(changes.command).into());
        }
        if changes.command == "LOCK TABLE" {
            self.check_found()?;
        }
        match changes.block {
            Block::Allowed => self.change_within(changes, text, asks).await,
            Block::Never if outside => self.change_apart(changes, text).await,
            Block::Never => Err(reply::changes::cannot_be_in_block(changes.command).into()),
        }
    }

    // ---- within a transaction ----

    async fn change_within(
        &mut self,
        changes: &Changes,
        text: &str,
        asks: Option<Asks>,
    ) -> Result<Written, Stop> {
        self.begin_own().await?;
        if let Reach::Locks(locks) = &changes.reach {
            return self.lock_each(locks, text).await;
        }
        let (shards, made) = self.concerned(changes).await?;
        if let Some(Asks { question, refused }) = asks {
            for shard in shards.iter() {
                if self.ask_within(shard, &question).await?.as_deref() == Some("t") {
                    return Err(refused.into());
                }
            }
        }
        if let Some((before, after)) = &changes.renamed
            && let Some(placement) = self.lives(before)
        {
            self.check_elsewhere(after, &placement).await?;
        }
        let written = self.run_on(&shards, text).await?;
        if changes.command == "setval" {
            // It is no shard's alone.
            self.drew = Drew::default();
        }
        if let Made::Placed { name, placement } = &made {
            self.keep_place(name, placement, &shards).await?;
        }
        if !leaves_schema(changes.command) {
            self.several.schema_changes();
            self.foresee(changes, made);
        }
        Ok(written)
    }

    /// Where a table lives that anything is known of.
    fn lives(&self, name: &TableName) -> Option<Placement> {
        let snapshot = &self.snapshot;
        let listed = snapshot.tables.get(name);
        match (listed, snapshot.others.get(name), snapshot.unlisted) {
            (Some(table), ..) => Some(table.placement.clone()),
            (None, Some(Other::Table), Unlisted::On(shard)) => Some(Placement::Single(shard)),
            _ => None,
        }
    }

    /// Runs the same text on each of these shards.
    async fn run_on(&mut self, shards: &ShardSet, text: &str) -> Result<Written, Stop> {
        let shares = Shares {
            shards: shards.iter().map(|shard| (shard, Vec::new())).collect(),
        };
        let change = Spread {
            fill: Fill::default(),
            lock: None,
            what: What::Change,
            time: Time::NotAsked,
            turns: Turns::ByShard,
        };
        self.write(&Writing::same(&change, text, shares)).await
    }

    /// Locks tables that are on different shards, each shard its own, in the order of shards.
    async fn lock_each(&mut self, locks: &Locks, text: &str) -> Result<Written, Stop> {
        let each = locks.unknown().map(to_regclass);
        let each = each.collect::<Vec<_>>().join(", ',', ");
        let question = (!each.is_empty()).then(|| format!("SELECT pg_catalog.concat({each})"));
        let mut found = vec![false; locks.unknown().count()];
        let mut own = Vec::new();
        for shard in self.snapshot.all().iter() {
            let has = match &question {
                Some(question) => self.ask_within(shard, question).await?.unwrap_or_default(),
                None => String::new(),
            };
            let has: Vec<bool> = has.split(',').map(|has| has == "t").collect();
            found
                .iter_mut()
                .zip(&has)
                .for_each(|(found, has)| *found |= has);
            own.extend(locks.text(shard, &has).map(|text| (shard, text)));
        }
        if found.contains(&false) {
            // What no shard has is said so by the home shard.
            let home = ShardSet::one(self.snapshot.home);
            return self.run_on(&home, text).await;
        }
        let mut last = None;
        for (shard, text) in own {
            last = Some(self.run_on(&ShardSet::one(shard), &text).await?);
        }
        last.ok_or_else(|| reply::malformed().into())
    }

    /// Which shards the change concerns.
    async fn concerned(&mut self, changes: &Changes) -> Result<(ShardSet, Made), Stop> {
        let shards = match &changes.reach {
            Reach::Shards(shards) => shards.clone(),
            Reach::Servers => self.one_per_server().await?,
            Reach::New(new) => return self.place_of_new(new).await,
            Reach::View { schema, name } => {
                let schema = self.schema_of(schema.as_ref()).await?;
                let name = name.clone();
                let made = Made::View(TableName { schema, name });
                return Ok((self.snapshot.all(), made));
            }
            Reach::Locks(_) => return Err(reply::malformed().into()),
            Reach::Holders(names) => {
                let question = has_one(names);
                let mut shards = ShardSet::new();
                for shard in self.snapshot.all().iter() {
                    let found = self.ask_within(shard, &question).await?;
                    if found.as_deref() == Some("t") {
                        shards.insert(shard);
                    }
                }
                self.or_home(shards)
            }
        };
        Ok((shards, Made::Nothing))
    }

    /// Asks a shard within the transaction.
    async fn ask_within(&mut self, shard: ShardId, sql: &str) -> Result<Option<String>, Stop> {
        self.reach_within(shard).await?;
        Ok(self.ask(sql.as_bytes()).await??)
    }

    /// What no shard has is said so by the home shard.
    fn or_home(&self, shards: ShardSet) -> ShardSet {
        if shards.is_empty() {
            ShardSet::one(self.snapshot.home)
        } else {
            shards
        }
    }

    /// The first shard of each server, which may have several addresses. A second one would wait for the first.
    async fn one_per_server(&mut self) -> Result<ShardSet, Stop> {
        let mut shards = ShardSet::new();
        let mut servers: Vec<Option<String>> = Vec::new();
        for shard in self.snapshot.all().iter() {
            let server = self.ask_within(shard, WHICH_SERVER).await?;
            if !servers.contains(&server) {
                servers.push(server);
                shards.insert(shard);
            }
        }
        Ok(shards)
    }

    /// The schema in which something new is made.
    async fn schema_of(&mut self, named: Option<&String>) -> Result<String, Stop> {
        if let Some(schema) = named {
            return Ok(schema.clone());
        }
        let question = "SELECT pg_catalog.current_schema()::pg_catalog.text";
        let asked = self.ask_within(self.snapshot.home, question).await?;
        Ok(asked.ok_or_else(reply::changes::no_schema)?)
    }

    async fn place_of_new(&mut self, new: &New) -> Result<(ShardSet, Made), Stop> {
        let schema = self.schema_of(new.schema.as_ref()).await?;
        let mut new = new.clone();
        for (table, group) in new.asks_for_keys_of() {
            let shards = self.snapshot.group(group).shards();
            let shard = shards.iter().next().unwrap_or(self.snapshot.home);
            let key = self.ask_within(shard, &primary_key_of(&table)).await?;
            let columns: Vec<String> = key
                .iter()
                .flat_map(|key| key.split(KEY_SEPARATOR))
                .map(str::to_owned)
                .collect();
            new.learn_key_of(&table, &columns);
        }
        let placed = new.place(&schema, &self.snapshot);
        let (placement, found) = placed.map_err(|why| wording::unroutable(&why))?;
        let name = new.table_name(&schema);
        self.check_elsewhere(&name, &placement).await?;
        if let Placement::Sharded { group, .. } = &placement {
            // Its rows would be moved with those of the others, which nobody knows of.
            self.check_group_not_moving(*group, "CREATE TABLE").await?;
        }
        let shards = match &placement {
            Placement::Sharded { group, .. } => self.snapshot.group(*group).shards(),
            Placement::Reference => self.snapshot.all(),
            Placement::Single(shard) => ShardSet::one(*shard),
        };
        let made = match found {
            Found::Configured => Made::Table { name, placement },
            Found::Stated => self.place_to_keep(name, placement, &shards).await?,
        };
        Ok((shards, made))
    }

    /// A table whose place only the statement says: it is kept with the table, unless that is there already.
    async fn place_to_keep(
        &mut self,
        name: TableName,
        placement: Placement,
        shards: &ShardSet,
    ) -> Result<Made, Stop> {
        let ready = self.database.coordinator.is_ready(shards.iter());
        ready.map_err(|why| reply::changes::place_not_kept(&name.name, &why))?;
        let question = has_one(&[sql_name(&name)]);
        for shard in shards.iter() {
            if self.ask_within(shard, &question).await?.as_deref() == Some("t") {
                // PostgreSQL has something to say about that.
                return Ok(Made::Nothing);
            }
        }
        Ok(Made::Placed { name, placement })
    }

    /// Says on each shard, within the transaction that makes the table there, where it lives.
    async fn keep_place(
        &mut self,
        name: &TableName,
        placement: &Placement,
        shards: &ShardSet,
    ) -> Result<(), Stop> {
        let (kind, group, key) = match placement {
            Placement::Sharded { group, key_column } => {
                let group = literal(&self.snapshot.group(*group).name);
                ("sharded", group, literal(key_column))
            }
            Placement::Reference => ("reference", "NULL".to_owned(), "NULL".to_owned()),
            Placement::Single(_) => ("single", "NULL".to_owned(), "NULL".to_owned()),
        };
        let table = literal(&sql_name(name));
        let sql = format!("SELECT shardway.place({table}, '{kind}', {group}, {key})");
        for shard in shards.iter() {
            self.ask_within(shard, &sql).await?;
        }
        Ok(())
    }

    /// A table is not made or renamed under the name of one that lives elsewhere, as long as others may know that one:
    /// their rows would go there.
    async fn check_elsewhere(&self, name: &TableName, placement: &Placement) -> Result<(), Stop> {
        let is_known = |session: &Self| {
            is_another_elsewhere(&session.database.snapshot.load(), name, placement)
        };
        if is_known(self) {
            // It may have been dropped past the proxies.
            self.look_at_change().await;
            if is_known(self) {
                return Err(reply::changes::table_elsewhere(&name.name).into());
            }
        }
        Ok(())
    }

    /// Statements behind the change are planned with what is known of it, though nobody else sees it yet.
    fn foresee(&mut self, changes: &Changes, made: Made) {
        self.several.foreseen.push(Foreseen {
            command: changes.command,
            tables: changes.tables.clone(),
            renamed: changes.renamed.clone(),
            made,
        });
        self.several.foreseen_on = u64::MAX;
        self.foresee_again();
    }

    /// What the transaction has changed, on top of what is known now.
    pub(super) fn foresee_again(&mut self) {
        let known = self.database.snapshot.load();
        if self.several.foreseen_on == known.schema {
            return;
        }
        let mut seen = (**known).clone();
        self.several.foreseen_on = known.schema;
        for change in &self.several.foreseen {
            change.apply(&mut seen);
        }
        seen.schema = self.database.learning.uncommitted();
        self.snapshot = Arc::new(seen);
    }

    /// After a transaction that has changed the schema: what is there now is looked at, and planned with.
    pub(super) async fn look_again(&mut self, outcome: Changed, change: Option<Announced>) {
        let coordinator = Arc::clone(&self.database.coordinator);
        match (outcome, change) {
            (Changed::Not, Some(change)) => coordinator.change_abandoned(change).await,
            (Changed::Not, None) => {}
            (Changed::MayBe, Some(change)) => {
                let epoch = coordinator.change_ends(change).await;
                // The others look meanwhile.
                let looked = self.look_at_change().await;
                self.tell_of_change(epoch, looked).await;
            }
            (Changed::MayBe, None) => drop(self.look_at_change().await),
        }
        self.snapshot = self.database.snapshot.load_full();
    }

    /// Announces a schema change that is about to be committed.
    pub(super) async fn announce(&self) -> Result<Option<Announced>, Notice> {
        let begun = self.database.coordinator.change_begins().await;
        begun.map_err(|why| reply::changes::change_not_announced(&why))
    }

    async fn look_at_change(&self) -> Looked {
        let settings = self.shared.settings.load_full();
        let looked = self.database.learn(&settings);
        let looked = tokio::time::timeout(LOOK_PATIENCE, looked).await;
        if looked.is_err() {
            tracing::warn!(
                database = self.database.settings.name,
                "a schema change is not known of yet: the servers could not be looked at in time"
            );
        }
        looked.unwrap_or_default()
    }

    /// Waits for the other proxies; who has not taken the change over, the client is told.
    async fn tell_of_change(&mut self, epoch: Option<i64>, looked: Looked) {
        let coordinator = Arc::clone(&self.database.coordinator);
        let mut late = Vec::new();
        if let Some(epoch) = epoch {
            // Its own statement is over. Numbers of before may be those of a reshard, of which all has to be known as well.
            self.rests_at_gate();
            if looked == Looked::All && self.database.knows_what_moves().await {
                let number = self.shared.metrics.sessions.proxy();
                coordinator.takes_over(epoch, number).await;
            }
            match coordinator.taken_over(epoch, OTHERS_PATIENCE).await {
                Ok(found) if found.is_empty() => return,
                Ok(found) => late = found,
                Err(problem) => {
                    let database = &self.database.settings.name;
                    tracing::warn!(database, %problem, "who has taken over a schema change is not known");
                }
            }
        }
        reply::changes::change_not_taken_over(&late).put(self.client.out());
    }

    // ---- by itself ----

    /// Runs on one shard after the other what no transaction can hold.
    async fn change_apart(&mut self, changes: &Changes, text: &str) -> Result<Written, Stop> {
        let (shards, question) = match &changes.reach {
            Reach::Shards(shards) => (shards.clone(), None),
            Reach::Holders(names) => (self.snapshot.all(), Some(has_one(names))),
            Reach::New(_) | Reach::Servers | Reach::Locks(_) | Reach::View { .. } => {
                return Err(reply::malformed().into());
            }
        };
        if self.link.is_some() {
            // It did nothing that must stay.
            self.leave_link().await?;
            self.park_or_release().await?;
        }
        let announced = if leaves_schema(changes.command) {
            None
        } else {
            self.announce().await?
        };
        self.lease_fan(&shards).await?;
        let mut heard = Heard::default();
        let ran = self.run_apart(question.as_deref(), text, &mut heard).await;
        match ran {
            Err(Stop::End(end)) => return Err(Stop::End(end)),
            Err(Stop::Refused(words)) => heard.problem = heard.problem.or(Some(*words)),
            Ok(()) => {}
        }
        let shards: Vec<ShardId> = shards.iter().collect();
        let name = |at: &usize| {
            shards
                .get(*at)
                .map(|shard| self.database.shard_name(*shard))
        };
        let done: Vec<&str> = heard.done.iter().filter_map(name).collect();
        let rest = heard.concerned.iter().filter(|at| !heard.done.contains(at));
        let rest: Vec<&str> = rest.filter_map(name).collect();
        let partly = (!done.is_empty() && !rest.is_empty())
            .then(|| reply::changes::done_in_part(changes.command, &done, &rest));
        self.rest_fan().await?;
        self.client.out().extend_from_slice(&heard.notices);
        if let Some(partly) = partly {
            partly.put(self.client.out());
        }
        if !leaves_schema(changes.command) {
            // One that failed may have left something: an index that is invalid.
            let changed = if heard.concerned.is_empty() {
                Changed::Not
            } else {
                Changed::MayBe
            };
            self.look_again(changed, announced).await;
        }
        match heard.problem {
            Some(problem) => Err(problem.into()),
            None => Ok(Written::of_command(heard.tag)),
        }
    }

    async fn run_apart(
        &mut self,
        question: Option<&str>,
        text: &str,
        heard: &mut Heard,
    ) -> Result<(), Stop> {
        let members = self.fan.as_deref().map_or(0, Fan::len);
        match question {
            None => heard.concerned = (0..members).collect(),
            Some(question) => {
                for at in 0..members {
                    self.ask_member(at, question);
                }
                self.hear_fan(|at, tag, body| {
                    heard.answer(at, tag, body);
                    Ok(())
                })
                .await?;
                heard.concerned.sort_unstable();
                if heard.concerned.is_empty() {
                    // All shards are members.
                    heard.concerned.push(self.snapshot.home.index());
                }
            }
        }
        for at in heard.concerned.clone() {
            if heard.problem.is_some() {
                break;
            }
            self.ask_member(at, text);
            self.hear_fan(|at, tag, body| {
                heard.progress(at, tag, body);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    fn ask_member(&mut self, at: usize, sql: &str) {
        if let Some(fan) = self.fan.as_deref_mut() {
            fan.ask(at, 1, |out| put_query(out, sql.as_bytes()));
        }
    }
}

impl Heard {
    /// What a shard says of whether it is concerned.
    fn answer(&mut self, at: usize, tag: u8, body: &[u8]) {
        match tag {
            b'D' if first_value(body).as_deref() == Some("t") => self.concerned.push(at),
            b'E' => self.fail(body),
            _ => {}
        }
    }

    /// What a shard says of the change.
    fn progress(&mut self, at: usize, tag: u8, body: &[u8]) {
        match tag {
            b'E' => self.fail(body),
            b'C' => {
                self.tag = command_tag(body).unwrap_or_default().to_vec();
                self.done.push(at);
            }
            // Those of the others would be the same.
            b'N' if self.concerned.first() == Some(&at) => {
                put(&mut self.notices, b'N', |out| out.extend_from_slice(body));
            }
            _ => {}
        }
    }

    fn fail(&mut self, body: &[u8]) {
        if self.problem.is_none() {
            self.problem = Some(Words::Servers(body.to_vec()));
        }
    }
}

/// Whether it leaves columns, tables and what they set off as they were.
fn leaves_schema(command: &str) -> bool {
    matches!(
        command,
        "LOCK TABLE" | "setval" | "TRUNCATE" | "VACUUM or ANALYZE" | "COMMENT" | "REINDEX"
    )
}

/// What stands between the columns of a key.
const KEY_SEPARATOR: char = '\u{1}';

/// Asks for the columns of a table's primary key, in their order.
fn primary_key_of(table: &str) -> String {
    format!(
        "SELECT pg_catalog.string_agg(a.attname, pg_catalog.chr(1) ORDER BY k.at) \
         FROM pg_catalog.pg_index i CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY k (attnum, at) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) k.attnum \
         WHERE i.indisprimary AND i.indrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass({})",
        literal(table)
    )
}

fn sql_name(table: &TableName) -> String {
    let quoted = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
    format!("{}.{}", quoted(&table.schema), quoted(&table.name))
}

/// A text as SQL has it whatever the session's settings are.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Asks whether a shard has one of these relations, each as SQL names it.
fn has_one(names: &[String]) -> String {
    let each = names.iter().map(|name| to_regclass(name));
    format!("SELECT {}", each.collect::<Vec<_>>().join(" OR "))
}

/// Asks whether a shard has this relation, as SQL names it.
fn to_regclass(name: &str) -> String {
    let name = name.replace('\\', "\\\\").replace('\'', "''");
    format!("pg_catalog.to_regclass(E'{name}') IS NOT NULL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_names_whatever_is_in_them() {
        let names = ["\"a'b\\\"".to_owned(), "s.\"T\"".to_owned()];
        assert_eq!(
            has_one(&names),
            "SELECT pg_catalog.to_regclass(E'\"a''b\\\\\"') IS NOT NULL OR \
             pg_catalog.to_regclass(E's.\"T\"') IS NOT NULL"
        );
    }
}
