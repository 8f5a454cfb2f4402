//! Writes to several shards: each is sent its part within one transaction, and the client gets the answer of one
//! PostgreSQL.
//!
//! What must stay true: of a statement every shard has done its part, or none. In a transaction of the client's its
//! shards become part of that. Else a transaction of ours begins, which ends with the batch and before the client is
//! told so: a Query is committed before its answer, a pipeline at its Sync, as in PostgreSQL. What fails on one shard
//! has failed the transaction. Schema changes (`changing`) run by the same machinery.

pub(super) mod answers;
mod moving;

use super::{
    explaining::explains,
    link::{Hold, Link},
    numbers::Drew,
    place::Place,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    scatter::placed,
    session::{End, Note, Phase, Portal, Session, told},
};
use crate::{
    catalog::{moving::REACHES, shard::ShardId},
    config::settings::PoolMode,
    plan::{
        Plan, StatementPlan, Values,
        owned::PerShard,
        spread::{Fill, Given, Part, Shares, Spread, Turns, What},
    },
    protocol::transaction::Deferred,
    sql::{
        normalize::Slot,
        statement::{Effect, quoted},
    },
    wire::{
        backend::{Status, command_tag},
        frame::Body,
        frontend::{self, Bind, Named, put, put_bind, put_named, put_parse},
        notice::Words,
        types::Format,
    },
};
use answers::{Answer, Discord, Written, together};
use moving::keep_apart;
use std::sync::Arc;

/// What the answers of one statement may hold of rows.
const LIMIT: usize = 64 << 20;
/// The transaction's time as text that means the same whatever the session's settings are.
const TIME: &str = "SELECT pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.now()), \
     'YYYY-MM-DD HH24:MI:SS.US+00')";
/// The rest of a Bind without parameters, with a result in text.
const NOTHING_BOUND: [u8; 6] = [0; 6];

/// A statement that several shards write.
pub(super) struct Writing<'a> {
    pub(super) spread: &'a Spread,
    pub(super) text: &'a str,
    pub(super) slots: &'a [Slot],
    pub(super) shares: Shares,
    /// Parameter types as declared, as they stand in Parse.
    pub(super) types: &'a [u8],
    pub(super) bind: Option<&'a Bind<'a>>,
}

impl<'a> Writing<'a> {
    /// The same text on each of these shards.
    pub(super) fn same(spread: &'a Spread, text: &'a str, shares: Shares) -> Self {
        Self {
            spread,
            text,
            slots: &[],
            shares,
            types: &[],
            bind: None,
        }
    }
}

impl<'a> Writing<'a> {
    /// A prepared statement with values; `None`: it is no such write.
    pub(super) fn bound(
        prepared: &'a Prepared,
        shares: Shares,
        bind: &'a Bind<'a>,
    ) -> Option<Self> {
        let statement = prepared.statement()?;
        Some(Self {
            spread: statement.spread.as_deref()?,
            text: std::str::from_utf8(&prepared.text).ok()?,
            slots: &prepared.slots,
            shares,
            types: &prepared.raw_types,
            bind: Some(bind),
        })
    }
}

/// A portal of a write to several shards.
#[derive(Debug)]
pub(super) struct WritingPortal {
    prepared: Arc<Prepared>,
    /// `None`: a schema change or EXPLAIN, whose shards are found when it runs.
    shares: Option<Shares>,
    /// The parameters, as they stand in Bind.
    tail: Vec<u8>,
    /// What is left of its answer, once it has run.
    written: Option<Written>,
    done: bool,
}

impl Session {
    /// Where the statement writes, if it is one that several shards write and the session may do so now.
    ///
    /// # Errors
    /// A row of it has no place.
    pub(super) fn spreads(
        &self,
        statement: &StatementPlan,
        values: &Values<'_>,
    ) -> Result<Option<Shares>, Stop> {
        let told = || {
            let shares = statement.share_of_one(&self.snapshot, values)?;
            let (shard, _) = shares.shards.first()?;
            let elsewhere = self.may_name_at(*shard).is_err() && self.may_go_to(*shard).is_ok();
            elsewhere.then_some(Ok(shares))
        };
        match statement.shares(&self.snapshot, values).or_else(told) {
            None => Ok(None),
            Some(Err(why)) => Err(wording::unroutable(&why).into()),
            Some(Ok(shares)) => {
                let text = std::str::from_utf8(values.text).ok();
                let fits = text.zip(statement.spread.as_ref());
                let fits = fits.is_some_and(|(text, spread)| spread.fits(text, values.slots));
                Ok(Some(shares).filter(|_| fits && self.may_spread()))
            }
        }
    }

    /// Whether several shards can be written: the session keeps no backend, and what it has begun is a transaction, which
    /// says by itself whether it may go on to others, or nothing.
    pub(super) fn may_spread(&self) -> bool {
        let begun = |link: &Link| link.hold == Hold::Bound && link.status == Status::Idle;
        self.mode == PoolMode::Transaction
            && !self.is_kept()
            && self.phase != Phase::Answering
            && !self.snapshot.is_single()
            && self.database.unfit.load().is_none()
            && !(self.phase == Phase::Batch && self.link.as_deref().is_some_and(begun))
    }

    // ---- the simple protocol ----

    /// Runs a Query whose only statement several shards write.
    pub(super) async fn query_spread(
        &mut self,
        plan: &Plan,
        shares: Shares,
        values: &Values<'_>,
    ) -> Result<(), Stop> {
        let Some((spread, text)) = plan.statements.first().and_then(|statement| {
            let text = std::str::from_utf8(values.text).ok()?;
            Some((statement.spread.as_deref()?, text))
        }) else {
            return Ok(());
        };
        let writing = Writing {
            spread,
            text,
            slots: values.slots,
            shares,
            types: &[],
            bind: None,
        };
        let written = self.write(&writing).await;
        self.conclude(written).await
    }

    /// Answers a Query that several shards have done, or has them undo it.
    pub(super) async fn conclude(&mut self, written: Result<Written, Stop>) -> Result<(), Stop> {
        let own = self.ends_with_query();
        let mut written = match written {
            Ok(written) => written,
            Err(problem) => {
                if own && matches!(problem, Stop::Refused(_)) {
                    self.undo_own().await?;
                }
                return Err(problem);
            }
        };
        if own {
            self.commit_own().await?;
        } else {
            self.tally.queries += 1;
        }
        written.put_columns(self.end_of_answer());
        written.put_rows(0, self.end_of_answer());
        self.ready_here();
        Ok(())
    }

    // ---- the extended protocol ----

    /// Binds a statement that several shards write; false: it is none.
    pub(super) async fn bind_spread(
        &mut self,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
        values: &Values<'_>,
    ) -> Result<bool, Stop> {
        let Some(statement) = prepared.statement() else {
            return Ok(false);
        };
        if self.bind_copy(prepared, bind.portal).await? {
            return Ok(true);
        }
        let shares = self.spreads(statement, values)?;
        let other = !self.may_change(statement) && !self.may_explain(prepared, bind)?;
        if shares.is_none() && other {
            return Ok(false);
        }
        self.answer_pending().await?;
        self.settle().await?;
        if self.skip {
            return Ok(true);
        }
        self.bind_writing(Arc::clone(prepared), shares, bind);
        Ok(true)
    }

    /// Makes a portal of a write to these shards.
    pub(super) fn bind_writing(
        &mut self,
        prepared: Arc<Prepared>,
        shares: Option<Shares>,
        bind: &Bind<'_>,
    ) {
        self.made(vec![b'2', 0, 0, 0, 4], Note::Nothing);
        let portal = WritingPortal {
            prepared,
            shares,
            tail: bind.tail.to_vec(),
            written: None,
            done: false,
        };
        self.portals
            .insert(bind.portal.into(), Portal::Writing(Box::new(portal)));
    }

    /// Describes a portal of a write to several shards: as one shard describes the whole statement.
    pub(super) async fn describe_spread(&mut self, name: &[u8]) -> Result<(), Stop> {
        self.settle().await?;
        let Some(Portal::Writing(portal)) = self.portals.get(name) else {
            return Ok(());
        };
        if self.skip {
            return Ok(());
        }
        let (prepared, tail) = (Arc::clone(&portal.prepared), portal.tail.clone());
        self.reach_any(&prepared).await?;
        let shard = self.link_shard().unwrap_or(self.any);
        let types = self.types_for(shard, &prepared.raw_types);
        if let Some(link) = &mut self.link {
            put_parse(link.lease.stream.out(), b"", &prepared.text, &types);
            put_named(link.lease.stream.out(), b'D', Named::Statement(b""));
            frontend::put_bare(link.lease.stream.out(), b'S');
            link.lease.unnamed = None;
        }
        let (mut problem, mut columns) = (None, None);
        self.hear_out(|tag, body| {
            match tag {
                b'E' => problem = Some(Words::Servers(body.to_vec())),
                b'T' => columns = Some(body.to_vec()),
                _ => {}
            }
            Ok(())
        })
        .await?;
        if let Some(problem) = problem {
            return Err(problem.into());
        }
        if let Some(columns) = &mut columns {
            self.columns_seen(shard, columns).await;
        }
        let mut out = Vec::new();
        match columns {
            None => out.extend_from_slice(&[b'n', 0, 0, 0, 4]),
            Some(columns) => {
                let bound = [&[0, 0], tail.as_slice()].concat();
                let formats = Bind::decode(&bound).map_err(|_malformed| reply::malformed())?;
                let columns = in_formats(columns, formats.raw_results());
                put(&mut out, b'T', |out| out.extend_from_slice(&columns));
            }
        }
        self.made(out, Note::Nothing);
        Ok(())
    }

    /// Execute of a portal of a write to several shards: the first runs it, and all give rows.
    pub(super) async fn execute_spread(&mut self, name: &[u8], most: u32) -> Result<(), Stop> {
        // Zero and below are all.
        let most = usize::try_from(most.cast_signed()).unwrap_or(0);
        self.settle().await?;
        if self.skip {
            return Ok(());
        }
        let Some(Portal::Writing(mut portal)) = self.portals.remove(name) else {
            return Err(reply::no_such_portal(name).into());
        };
        if portal.done {
            return Err(reply::portal_is_done(name).into());
        }
        if portal.written.is_none() {
            let written = match portal.shares {
                Some(_) => self.write_portal(&portal).await?,
                None if explains(&portal.prepared) => {
                    Box::pin(self.explain_portal(&portal.prepared, &portal.tail)).await?
                }
                None => self.change_portal(&portal.prepared).await?,
            };
            portal.written = Some(written);
        }
        let mut out = Vec::new();
        if let Some(written) = &mut portal.written {
            portal.done = written.put_rows(most, &mut out);
        }
        self.made(out, Note::Nothing);
        self.portals.insert(name.into(), Portal::Writing(portal));
        Ok(())
    }

    async fn write_portal(&mut self, portal: &WritingPortal) -> Result<Written, Stop> {
        let prepared = &portal.prepared;
        let parts = prepared.statement().zip(portal.shares.clone());
        let parts = parts.and_then(|(statement, shares)| {
            let text = std::str::from_utf8(&prepared.text).ok()?;
            Some((statement.spread.as_deref()?, text, shares))
        });
        let Some((spread, text, shares)) = parts else {
            return Err(reply::malformed().into());
        };
        let bound = [&[0, 0], portal.tail.as_slice()].concat();
        let bind = Bind::decode(&bound).map_err(|_malformed| reply::malformed())?;
        let writing = Writing {
            spread,
            text,
            slots: &prepared.slots,
            shares,
            types: &prepared.raw_types,
            bind: Some(&bind),
        };
        let written = self.write(&writing).await?;
        if !self.for_batch {
            self.tally.queries += 1;
        }
        Ok(written)
    }

    /// What a transaction of ours, which ends with the batch, cannot take: commands that begin or end another, or that
    /// change the session.
    pub(super) fn check_in_own(&self, effect: &Effect) -> Result<(), Stop> {
        if self.for_batch && *effect != Effect::None {
            return Err(reply::rows::behind_a_write().into());
        }
        Ok(())
    }

    /// Sync behind a write to several shards: what the batch did is committed, or undone if any of it failed.
    pub(super) async fn end_batch(&mut self) -> Result<(), End> {
        match self.flush_pending().await {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(words)) => self.refuse(&words),
        }
        self.settle().await?;
        let ended = if self.failed || self.skip {
            self.undo_own().await
        } else {
            self.commit_own().await
        };
        match ended {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(words)) => {
                let words = self.reworded(&words).unwrap_or(*words);
                self.count_refusal(&words);
                self.failed = true;
                words.put(self.client.out());
            }
        }
        self.ready_here();
        Ok(())
    }

    /// A Query or FunctionCall behind a write in one pipeline: what the pipeline did before it is undone, and it is not
    /// run.
    ///
    /// # Errors
    /// The session is over.
    pub(super) async fn leave_own_batch(&mut self) -> Result<(), End> {
        self.settle().await?;
        if let Err(Stop::End(end)) = self.undo_own().await {
            return Err(end);
        }
        self.refuse_query(&reply::rows::behind_a_write().into())
            .await
    }

    // ---- the transaction ----

    /// Begins a transaction of ours, unless the client's is open or ours is.
    pub(super) async fn begin_own(&mut self) -> Result<(), Stop> {
        if self.status() != Status::Idle {
            return Ok(());
        }
        if self.link.is_some() {
            // It did nothing that must stay.
            self.leave_link().await?;
            self.park_or_release().await?;
        }
        self.deferred = Some(Deferred::begin(b"BEGIN"));
        self.parameters.begin();
        self.for_batch = true;
        Ok(())
    }

    /// Commits our transaction on all its shards.
    pub(super) async fn commit_own(&mut self) -> Result<(), Stop> {
        if self.end_unreached(true).await? {
            return Ok(());
        }
        self.for_batch = false;
        let tag = self.end_several(&Effect::Commit { chain: false }).await?;
        if tag == b"COMMIT" {
            Ok(())
        } else {
            Err(reply::transaction_failed().into())
        }
    }

    /// Undoes our transaction, wherever it has come.
    pub(super) async fn undo_own(&mut self) -> Result<(), Stop> {
        if self.end_unreached(false).await? {
            return Ok(());
        }
        self.for_batch = false;
        let ended = self.end_several(&Effect::Rollback { chain: false }).await;
        ended.map(drop)
    }

    // ---- the shards' work ----

    /// Lets every shard do its part within the transaction.
    pub(super) async fn write(&mut self, writing: &Writing<'_>) -> Result<Written, Stop> {
        self.begin_own().await?;
        self.reach_shards(writing).await?;
        if let What::Move(moving) = &writing.spread.what {
            let moved = Box::pin(self.move_rows(writing, moving)).await;
            self.drew = Drew::default();
            return moved;
        }
        let Parts { parts, owned } = self.parts_to_send(writing).await?;
        let mut heard = Heard::new(&writing.spread.what, parts.len());
        self.fan_out_over(&writing.shares);
        let worked = self.work(writing, &parts, &mut heard).await;
        if let Err(Stop::End(end)) = worked {
            return Err(Stop::End(end));
        }
        self.client.out().extend_from_slice(&heard.notices);
        self.gather_in(&writing.shares).await?;
        if *heard.what != What::Change {
            // What it drew, it drew on several.
            self.drew = Drew::default();
        }
        if let Some((at, body)) = heard.problem {
            let shard = writing.shares.shards.get(at).map(|(shard, _)| *shard);
            let body = match shard.zip(owned.as_ref()) {
                Some((shard, owned)) => placed(&body, |place| owned.own_place(shard, place)),
                None => body,
            };
            return Err(Words::Servers(writing.own_error(&body)).into());
        }
        worked?;
        if self.status() != Status::Transaction {
            // A cancel has hit what came behind.
            return Err(reply::cancelled().into());
        }
        self.answers_seen(&writing.shares, &mut heard.answers)
            .await?;
        let rows = writing.shares.shards.iter();
        let rows: Vec<Vec<u32>> = rows.map(|(_, rows)| rows.clone()).collect();
        let what = heard.what;
        together(&heard.answers, what, &rows).map_err(|discord| discord_words(discord, what))
    }

    /// What the transaction's shards are sent, with what is asked for first written into it.
    pub(super) async fn parts_to_send(&mut self, writing: &Writing<'_>) -> Result<Parts, Stop> {
        let time = if writing.spread.asks_for_time() {
            self.ask_time(&writing.shares).await?
        } else {
            None
        };
        let drawn = self.draw(writing).await?;
        let given = Given {
            time: time.as_deref(),
            drawn: &drawn,
        };
        let rows = writing
            .shares
            .shards
            .iter()
            .map(|(_, rows)| rows.as_slice());
        let parts = writing
            .spread
            .parts(writing.text, writing.slots, rows, &given);
        // The plan is of a text with the same template.
        let parts = parts.ok_or_else(reply::malformed)?;
        self.owned_parts(writing, parts)
    }

    /// The parts, each for the rows that its shard owns.
    ///
    /// # Errors
    /// As [`Session::per_shard`].
    pub(super) fn owned_parts(
        &self,
        writing: &Writing<'_>,
        mut parts: Vec<Part>,
    ) -> Result<Parts, Stop> {
        let scans = matches!(writing.spread.what, What::Share(_) | What::Whole);
        let owned = match parts.first().filter(|_| scans) {
            // All are the same text.
            Some(first) => Some(self.per_shard(&first.text)?),
            None => None,
        };
        if let Some(owned) = &owned {
            for (part, (shard, _)) in parts.iter_mut().zip(&writing.shares.shards) {
                owned.on(*shard).clone_into(&mut part.text);
            }
        }
        Ok(Parts { parts, owned })
    }

    /// The time of the transaction: that which it has been told already, or from now on this.
    pub(super) async fn ask_time(&mut self, shares: &Shares) -> Result<Option<String>, Stop> {
        let here = self.link.as_ref().filter(|link| link.named);
        let told = here.map(|link| link.shard).or_else(|| self.several.named());
        let first = shares.shards.first().map(|(shard, _)| *shard);
        if let Some(shard) = told.or(first) {
            let hold = Hold::Bound;
            self.reach(Place { shard, hold }).await?;
        }
        let time = self.ask(TIME.as_bytes()).await??;
        if let Some(link) = &mut self.link {
            link.named = true;
        }
        Ok(time)
    }

    /// The values of defaults that are each row's own, drawn once for all copies.
    async fn draw(&mut self, writing: &Writing<'_>) -> Result<Vec<Vec<Option<String>>>, Stop> {
        let Some(sql) = writing.spread.draw(writing.text, writing.slots) else {
            return Ok(Vec::new());
        };
        let (home, hold) = (self.snapshot.home, Hold::Bound);
        let mut drawn = Vec::new();
        for (shard, _) in &writing.shares.shards {
            // The other sequences keep step, for statements that draw on each shard.
            if *shard == home || writing.spread.fill.counts() {
                let shard = *shard;
                self.reach(Place { shard, hold }).await?;
                let answer = self.ask(sql.as_bytes()).await??;
                if shard == home {
                    drawn = Fill::drawn(answer.as_deref().unwrap_or_default());
                }
            }
        }
        Ok(drawn)
    }

    /// Asks the shards and hears their answers. By turns: a statement that waits for another's rows holds none on shards
    /// behind, so that two that change the same rows wait one for the other, as they do on one PostgreSQL, and not each
    /// for the other on different shards. At once otherwise; the first error that is heard ends the others' work.
    async fn work(
        &mut self,
        writing: &Writing<'_>,
        parts: &[Part],
        heard: &mut Heard<'_>,
    ) -> Result<(), Stop> {
        let at_once = match writing.spread.turns {
            Turns::AtOnce => parts.len(),
            Turns::ByShard => 1,
        };
        for (round, some) in parts.chunks(at_once.max(1)).enumerate() {
            for (at, part) in some.iter().enumerate() {
                if let Some(fan) = self.fan.as_deref() {
                    let shard = fan.shard(round * at_once + at);
                    let types = self.types_for(shard, &writing.types_of(part));
                    let Some(fan) = self.fan.as_deref_mut() else {
                        continue;
                    };
                    fan.ask(round * at_once + at, 1, |out| {
                        writing.put(part, &types, out);
                    });
                }
            }
            self.hear_fan(|at, tag, body| {
                heard.hear(at, tag, body)?;
                match heard.problem {
                    // The others may wait for long for what is not needed any more.
                    Some(_) if at_once > 1 => Err(reply::cancelled().into()),
                    _ => Ok(()),
                }
            })
            .await?;
            if heard.problem.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Makes every shard a part of the transaction, in their order. A table that all have a copy of is locked on each
    /// before the next is reached: whoever writes it elsewhere comes before or behind on all of them.
    pub(super) async fn reach_shards(&mut self, writing: &Writing<'_>) -> Result<(), Stop> {
        let lock = match &writing.spread.what {
            What::Copies(copies) => Some(format!(
                "{}LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE",
                self.reaching(&writing.shares),
                copies.quoted
            )),
            What::Change => Some(self.reaching(&writing.shares)),
            What::Move(_) => writing.spread.lock.map(|table| keep_apart(table, true)),
            What::Share(_) if writing.shares.shards.len() > 1 => {
                writing.spread.lock.map(|table| keep_apart(table, false))
            }
            What::Rows(_) | What::Share(_) | What::Whole => None,
        };
        for (shard, _) in &writing.shares.shards {
            let hold = Hold::Bound;
            self.reach(Place {
                shard: *shard,
                hold,
            })
            .await?;
            let there = self
                .link
                .as_ref()
                .is_some_and(|link| link.shard == *shard && link.status == Status::Transaction);
            if !there {
                return Err(reply::rows::shard_missing(self.database.shard_name(*shard)).into());
            }
            if let Some(lock) = &lock {
                self.prelude(lock.as_bytes()).await??;
            }
        }
        Ok(())
    }

    /// Says to a shard which others have the write too, for guards of tables that shards which join have from now on.
    pub(super) fn reaching(&self, shares: &Shares) -> String {
        let shards = shares.shards.iter();
        let names: Vec<&str> = shards
            .map(|(shard, _)| self.database.shard_name(*shard))
            .collect();
        format!("SET LOCAL {REACHES} = {}; ", quoted(&names.join(",")))
    }

    /// Sets the transaction's links to these shards to work together.
    pub(super) fn fan_out_over(&mut self, shares: &Shares) {
        self.fold();
        self.cancel.detach();
        let mut links = self.several.take_enlisted();
        links.extend(self.link.take());
        let works = |shard: ShardId| shares.shards.iter().any(|(own, _)| *own == shard);
        let (mut working, resting): (Vec<_>, Vec<_>) =
            links.into_iter().partition(|link| works(link.shard));
        working.sort_by_key(|link| link.shard);
        self.several.enlist_again(resting);
        self.begin_fan(working);
    }

    /// Takes the links back into the transaction. The one whose part failed is the session's, so that it has failed.
    pub(super) async fn gather_in(&mut self, shares: &Shares) -> Result<(), Stop> {
        let mut links = self.end_fan().await;
        let is_missing = |shard: &ShardId| !links.iter().any(|link| link.shard == *shard);
        let mut shards = shares.shards.iter().map(|(shard, _)| *shard);
        let missing = shards.find(is_missing);
        let failed = links
            .iter()
            .position(|link| link.status != Status::Transaction);
        let current = (!links.is_empty()).then(|| links.swap_remove(failed.unwrap_or(0)));
        self.several.enlist_again(links);
        if let Some(mut link) = current {
            link.since = self.marks.begun;
            self.attach(link);
        }
        self.report_changes();
        let Some(missing) = missing else {
            return Ok(());
        };
        let name = self.database.shard_name(missing);
        if self.for_batch {
            return Err(reply::rows::shard_lost_at_work(name).into());
        }
        // A part of the client's transaction is gone with it.
        Err(told(reply::backend_lost(name)).into())
    }
}

/// What each of the transaction's shards is sent.
pub(super) struct Parts {
    pub(super) parts: Vec<Part>,
    /// The text that they are made of.
    owned: Option<PerShard>,
}

/// What has been heard of the shards.
struct Heard<'a> {
    what: &'a What,
    answers: Vec<Answer>,
    /// The first error, as the server worded it, and whose it is.
    problem: Option<(usize, Vec<u8>)>,
    /// Notices for the client.
    notices: Vec<u8>,
    held: usize,
}

impl<'a> Heard<'a> {
    fn new(what: &'a What, count: usize) -> Self {
        Self {
            what,
            answers: (0..count).map(|_| Answer::default()).collect(),
            problem: None,
            notices: Vec::new(),
            held: 0,
        }
    }

    fn hear(&mut self, at: usize, tag: u8, body: &[u8]) -> Result<(), Stop> {
        match tag {
            b'E' if self.problem.is_none() => self.problem = Some((at, body.to_vec())),
            b'T' => self.answers[at].describe(body),
            b'D' => {
                self.held += body.len();
                if self.held > LIMIT {
                    return Err(reply::rows::too_many_rows(LIMIT).into());
                }
                let added = self.answers[at].row(body, self.what, at == 0);
                added.map_err(|discord| discord_words(discord, self.what))?;
            }
            b'C' => self.answers[at].complete(command_tag(body).unwrap_or_default()),
            // Those of every copy, or of the same change, would be the same.
            b'N' if at == 0 || !matches!(self.what, What::Copies(_) | What::Change) => {
                put(&mut self.notices, b'N', |out| out.extend_from_slice(body));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Writing<'_> {
    /// A shard's part as one batch.
    fn put(&self, part: &Part, types: &[u8], out: &mut Vec<u8>) {
        put_parse(out, b"", part.text.as_bytes(), types);
        put_bind(out, b"", b"", &self.tail_of(part));
        put_named(out, b'D', Named::Portal(b""));
        put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
        frontend::put_bare(out, b'S');
    }

    /// The declared types of the parameters that the part has.
    pub(super) fn types_of(&self, part: &Part) -> Vec<u8> {
        let Some(parameters) = &part.parameters else {
            return self.types.to_vec();
        };
        let of = |index: &u16| {
            let at = usize::from(*index) * 4;
            self.types.get(at..at + 4).unwrap_or(&[0; 4])
        };
        parameters.iter().flat_map(of).copied().collect()
    }

    /// The parameters that the part has, and how its result is asked for.
    pub(super) fn tail_of(&self, part: &Part) -> Vec<u8> {
        let Some(bind) = self.bind else {
            return NOTHING_BOUND.to_vec();
        };
        let Some(parameters) = &part.parameters else {
            let results = bind.raw_results();
            let mut tail = bind.tail[..bind.tail.len() - results.len()].to_vec();
            tail.extend_from_slice(&self.results(results));
            return tail;
        };
        let all: Vec<(Format, Option<&[u8]>)> = bind.parameters().collect();
        let own = || {
            let found = |index: &u16| all.get(usize::from(*index));
            parameters.iter().filter_map(found)
        };
        let count = u16::try_from(own().count()).unwrap_or(u16::MAX);
        let mut tail = count.to_be_bytes().to_vec();
        for (format, _) in own() {
            let format: u16 = if *format == Format::Binary { 1 } else { 0 };
            tail.extend_from_slice(&format.to_be_bytes());
        }
        tail.extend_from_slice(&count.to_be_bytes());
        for (_, value) in own() {
            let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
            tail.extend_from_slice(&length.to_be_bytes());
            tail.extend_from_slice(value.unwrap_or_default());
        }
        tail.extend_from_slice(bind.raw_results());
        tail
    }

    /// The formats of the result, with one for the fingerprint of a copy's row.
    fn results(&self, raw: &[u8]) -> Vec<u8> {
        let mut made = raw.to_vec();
        if let (What::Copies(_), Some(&[high, low])) = (&self.spread.what, raw.first_chunk()) {
            let count = u16::from_be_bytes([high, low]);
            // One is for all columns.
            if count > 1 {
                made[..2].copy_from_slice(&(count + 1).to_be_bytes());
                made.extend_from_slice(&[0, 0]);
            }
        }
        made
    }

    /// A server's error as the client may see it: its position is that of a text which the client did not write.
    fn own_error(&self, body: &[u8]) -> Vec<u8> {
        if self.spread.keeps_text() {
            return body.to_vec();
        }
        without_position(body)
    }
}

/// A server's error without the place in its text.
pub(super) fn without_position(body: &[u8]) -> Vec<u8> {
    let mut made = Vec::with_capacity(body.len());
    let mut fields = Body::new(body);
    while let Ok(code) = fields.byte() {
        let Ok(text) = (if code == 0 { break } else { fields.cstr() }) else {
            break;
        };
        if code != b'P' {
            made.push(code);
            made.extend_from_slice(text);
            made.push(0);
        }
    }
    made.push(0);
    made
}

/// Why the shards' answers are not the answer of one statement.
fn discord_words(discord: Discord, what: &What) -> Stop {
    match (discord, what) {
        (Discord::Copies, What::Copies(copies)) => reply::rows::copies_differ(&copies.table).into(),
        (Discord::Columns, _) => reply::rows::columns_changed().into(),
        (Discord::Copies | Discord::Malformed, _) => reply::malformed().into(),
    }
}

/// A statement's RowDescription in the formats that its result is asked for in.
fn in_formats(mut columns: Vec<u8>, raw: &[u8]) -> Vec<u8> {
    let formats: Vec<[u8; 2]> = raw
        .get(2..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|format| [format[0], format[1]])
        .collect();
    let Some(count) = columns.first_chunk().copied().map(u16::from_be_bytes) else {
        return columns;
    };
    let mut at = 2;
    for index in 0..usize::from(count) {
        let Some(name) = columns[at..].iter().position(|byte| *byte == 0) else {
            break;
        };
        // Behind the name: table, number, type, length, modifier, format.
        at += name + 1 + 18;
        let format = match formats.as_slice() {
            [] => [0, 0],
            [one] => *one,
            each => each.get(index).copied().unwrap_or_default(),
        };
        if let Some(place) = columns.get_mut(at - 2..at) {
            place.copy_from_slice(&format);
        }
    }
    columns
}
