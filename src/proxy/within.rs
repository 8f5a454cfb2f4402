//! Reads over several shards within a transaction that has reached one: they ask the transaction's own backends, and so
//! see what it has written.
//!
//! What must stay true: what a read needs of settings is undone behind it, and nothing else of it stays in the
//! transaction; what fails on one shard has failed the transaction, as one PostgreSQL's would; what is not needed of an
//! answer is read to its end, since a cancel would fail the transaction.

use super::{
    fan::Drained,
    link::Hold,
    place::Place,
    reply::session as reply,
    request::Stop,
    session::{End, Note, Phase, Session},
};
use crate::{
    catalog::shard::{ShardId, ShardSet},
    config::settings::PoolMode,
    plan::{StatementPlan, Values, spread::Shares},
    protocol::{
        pipeline::{Origin, Request},
        transaction::Deferred,
    },
    sql::statement::{Access, Effect},
    wire::{
        backend::Status,
        frontend::{put, put_bare, put_bind, put_parse},
        notice::Notice,
    },
};

const BEGIN: &[u8] = b"BEGIN";

/// What is set for a question is undone with this.
pub(super) const MARK: &str = "SAVEPOINT shardway_read";
pub(super) const BACK: &str = "ROLLBACK TO SAVEPOINT shardway_read";
pub(super) const UNMARK: &str = "RELEASE SAVEPOINT shardway_read";

impl Session {
    /// Whether the session is in a transaction that has reached a shard.
    pub(super) fn is_within(&self) -> bool {
        let open = |link: &super::link::Link| link.status == Status::Transaction;
        self.deferred.is_none() && self.link.as_deref().is_some_and(open)
    }

    /// Whether several shards may be asked within the open transaction: it is on a shard and may go on to others, or the
    /// statement asks for its time and so has to be on one.
    pub(super) fn may_ask_within(&self, statement: &StatementPlan) -> bool {
        let begun = match &self.deferred {
            Some(deferred) => {
                statement.access == Access::Write && self.reads_beside() && !deferred.failed()
            }
            None => self.is_within() && self.several.goes_on(),
        };
        begun
            && self.phase != Phase::Answering
            && !self.is_kept()
            && self.mode == PoolMode::Transaction
            && !self.snapshot.is_single()
            && self.database.unfit.load().is_none()
    }

    /// Where a statement of a pipeline is to run, as [`Session::place`] has it; a pipeline that is on one shard becomes a
    /// transaction of ours where that does not suffice.
    ///
    /// # Errors
    /// The session is over. The batch may have failed: it is skipped then.
    pub(super) async fn place_in_batch(
        &mut self,
        statement: &StatementPlan,
        values: &Values<'_>,
    ) -> Result<Result<Option<Place>, Notice>, Stop> {
        let placed = self.place(statement, values);
        if placed.is_ok() || !self.may_take_over(statement) {
            return Ok(placed);
        }
        Box::pin(self.take_over()).await?;
        Ok(self.place(statement, values))
    }

    /// Whether the pipeline under way, which is on one shard, can become a transaction of ours that goes on to others.
    fn may_take_over(&self, statement: &StatementPlan) -> bool {
        let begun = |link: &super::link::Link| {
            link.hold >= Hold::Loose && link.status == Status::Idle && !link.opaque
        };
        statement.effect == Effect::None
            && self.phase == Phase::Batch
            && self.deferred.is_none()
            && self.link.as_deref().is_some_and(begun)
            // What was set in it would have to be told to the others.
            && !self.parameters.in_transaction()
            && self.begins_read_committed()
            && !self.is_kept()
            && self.mode == PoolMode::Transaction
            && !self.snapshot.is_single()
    }

    /// What the pipeline has done becomes a transaction of ours, which its Sync commits: a BEGIN in a pipeline takes what
    /// stands before it in.
    ///
    /// # Errors
    /// The session is over.
    async fn take_over(&mut self) -> Result<(), Stop> {
        self.answer_pending().await?;
        if self.skip {
            return Ok(());
        }
        if let Some(link) = &mut self.link {
            let out = link.lease.stream.out();
            put_parse(out, b"", BEGIN, b"");
            put_bind(out, b"", b"", &[0; 6]);
            put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
            put_bare(out, b'S');
            link.lease.unnamed = None;
            for request in [
                Request::Parse,
                Request::Bind,
                Request::Execute,
                Request::Sync,
            ] {
                self.pipeline
                    .asked(request, Origin::Injected, Note::Nothing);
            }
        }
        self.settle().await?;
        if self.skip || !self.is_within() {
            return Ok(());
        }
        if let Some(link) = &mut self.link {
            link.hold = Hold::Bound;
            link.at_begin = link.lease.applied.clone();
        }
        self.parameters.begin();
        self.several.begun(Some(Deferred::begin(BEGIN)));
        self.for_batch = true;
        Ok(())
    }

    /// Makes these shards part of the transaction, and their links work on one statement.
    ///
    /// # Errors
    /// One of them cannot be had: the others stay part of the transaction.
    pub(super) async fn enlist_fan(&mut self, shards: &ShardSet) -> Result<(), Stop> {
        for shard in shards.iter() {
            let hold = Hold::Bound;
            self.reach(Place { shard, hold }).await?;
            if !self.is_within() || self.link_shard() != Some(shard) {
                return Err(reply::rows::shard_missing(self.database.shard_name(shard)).into());
            }
        }
        self.fan_out_over(&shares(shards.iter()));
        if let Some(fan) = self.fan.as_deref_mut() {
            fan.set_within();
        }
        Ok(())
    }

    /// Takes the links that worked on one statement back into the transaction.
    ///
    /// # Errors
    /// The session is over: a part of the transaction is lost.
    pub(super) async fn rest_within(&mut self) -> Result<(), End> {
        let mut unheard = None;
        while let Some(fan) = self.fan.as_deref_mut() {
            match fan.drain() {
                Drained::Rest => break,
                Drained::Failed(words) => {
                    unheard = words;
                    break;
                }
                Drained::Waits => self.wait_fan().await?,
            }
        }
        let fan = self.fan.as_deref();
        let members = fan.map_or(0, super::fan::Fan::len);
        let all = fan.map(|fan| shares((0..members).map(|at| fan.shard(at))));
        self.several.unheard(unheard);
        let taken = self.gather_in(&all.unwrap_or_else(|| shares([]))).await;
        taken.map_err(|stop| match stop {
            Stop::End(end) => end,
            Stop::Refused(words) => End::Told(Box::new(words.fatal())),
        })
    }

    /// The statement has failed: the links of a transaction are taken back into it, others are given back.
    ///
    /// # Errors
    /// The session is over.
    pub(super) async fn give_up_fan(&mut self) -> Result<(), End> {
        if let Some(fan) = self.fan.as_deref_mut() {
            fan.give_up();
        }
        self.rest_fan().await
    }

    /// Whether the transaction has failed while the rest of an answer was read that nobody needed.
    ///
    /// # Errors
    /// It has, with the server's words.
    pub(super) fn check_unheard(&mut self) -> Result<(), Stop> {
        match self.several.take_unheard() {
            Some(words) => Err(words.into()),
            None => Ok(()),
        }
    }

    /// Where the transaction's time is told, if it has been told anywhere.
    pub(super) fn named_at(&self) -> Option<ShardId> {
        let here = self.link.as_ref().filter(|link| link.named);
        here.map(|link| link.shard).or_else(|| self.several.named())
    }

    /// What the transaction is told from here on can be undone.
    pub(super) async fn mark(&mut self) -> Result<(), Stop> {
        if self.is_within() {
            self.prelude(MARK.as_bytes()).await??;
        }
        Ok(())
    }

    /// Undoes what was done since the mark, be it that it failed.
    pub(super) async fn back_to_mark(&mut self) -> Result<(), Stop> {
        let open = |link: &super::link::Link| link.status != Status::Idle;
        if self.deferred.is_none() && self.link.as_deref().is_some_and(open) {
            self.prelude(BACK.as_bytes()).await??;
        }
        Ok(())
    }

    /// Undoes what was done since the mark, which is gone.
    pub(super) async fn unmark(&mut self) -> Result<(), Stop> {
        self.back_to_mark().await?;
        if self.is_within() {
            self.prelude(UNMARK.as_bytes()).await??;
        }
        Ok(())
    }
}

/// These shards, each with no rows of its own.
fn shares(shards: impl IntoIterator<Item = ShardId>) -> Shares {
    let shards = shards.into_iter().map(|shard| (shard, Vec::new()));
    Shares {
        shards: shards.collect(),
    }
}
