//! Writes to several shards: each is sent its part within one transaction, and the client gets the answer of one
//! PostgreSQL.
//!
//! What must stay true: of a statement every shard has done its part, or none. In a transaction of the client's its
//! shards become part of that. Else a transaction of ours begins, which ends with the batch and before the client is
//! told so: a Query is committed before its answer, a pipeline at its Sync, as in PostgreSQL. What fails on one shard
//! has failed the transaction. Schema changes (`changing`) run by the same machinery.

pub(super) mod answers;
mod messages;
mod moving;
mod own;
mod working;

use super::{
    explaining::explains,
    link::{Hold, Link},
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{Note, Phase, Portal, Session},
};
use crate::{
    config::settings::PoolMode,
    plan::{
        Plan, StatementPlan, Values,
        spread::{Shares, Spread},
    },
    sql::normalize::Slot,
    wire::{
        backend::Status,
        frontend::{self, Bind, Named, put, put_named, put_parse},
        notice::Words,
    },
};
use answers::Written;
use messages::in_formats;
use std::sync::Arc;

pub(super) use messages::without_position;

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

impl WritingPortal {
    /// Whether its shards have done all that it asks for; rows of its answer may be left.
    pub(super) fn has_run(&self) -> bool {
        self.written.is_some()
    }
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
}
