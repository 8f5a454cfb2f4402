//! COPY of a sharded table TO STDOUT: the shards' streams one behind the other, as one stream. COPY of a query likewise,
//! where each shard has its share of the answer; else the query is computed by one shard, which copies it.
//!
//! What must stay true: every shard's rows are in it, or it ends in an error; it has one header and one trailer; nothing
//! is told to the client before all shards have said that they give rows of the same shape. A shard whose turn has not
//! come, and a client that does not take its rows, hold the servers back.

use super::{
    fan::{Fan, Next},
    gather::Bound,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    scatter::Scattered,
    session::{End, Note, Session, first_value},
    spread::without_position,
};
use crate::{
    catalog::shard::ShardSet,
    plan::{
        Plan, StatementPlan, Values,
        copy::{CopyOut, query_within},
        owned::{PerShard, TableCopy},
        unroutable::{Undoubled, Unroutable},
    },
    protocol::pipeline::{Origin, Request},
    split::copy::{Format, Header},
    wire::{
        backend::{command_tag, put_complete},
        frame::HEADER,
        frontend::{put, put_bare, put_bind, put_parse, put_query},
        notice::Words,
    },
};
use std::sync::Arc;

/// The rest of a Bind without parameters, with a result in text.
const NOTHING_BOUND: [u8; 6] = [0; 6];

/// What binary data begins with: the signature, flags, and the length of nothing.
const BINARY_HEADER: usize = 19;
/// What it ends with, as a message of its own or behind the header.
const BINARY_TRAILER: [u8; 2] = [0xff, 0xff];

impl Session {
    /// How this statement's rows are put together, if it is a COPY of a sharded table that the session may gather now.
    pub(super) fn copies_out(&self, statement: &StatementPlan) -> Option<CopyOut> {
        let copy = statement.copy_out.as_deref()?;
        let within = self.is_within() && self.may_ask_within(statement);
        (within || self.may_ask_shards(statement)).then(|| copy.clone())
    }

    /// Runs a Query whose only statement is such a COPY.
    pub(super) async fn query_copy_out(
        &mut self,
        copy: &CopyOut,
        plan: &Arc<Plan>,
        text: &[u8],
    ) -> Result<(), Stop> {
        match self.who_copies(copy, text).await? {
            Copied::ByAll { shards, text } => {
                self.copy_from_all(copy, &shards, &text).await?;
                self.ready_here();
            }
            Copied::ByOne(text) => self.send_query(&text, Arc::clone(plan)),
        }
        Ok(())
    }

    /// Execute of such a COPY.
    pub(super) async fn execute_copy_out(
        &mut self,
        copy: &CopyOut,
        prepared: &Prepared,
    ) -> Result<(), Stop> {
        let text = match self.who_copies(copy, &prepared.text).await? {
            Copied::ByAll { shards, text } => {
                return self.copy_from_all(copy, &shards, &text).await;
            }
            Copied::ByOne(text) => text,
        };
        let Some(link) = &mut self.link else {
            return Err(End::Client.into());
        };
        let out = link.lease.stream.out();
        put_parse(out, b"", &text, b"");
        put_bind(out, b"", b"", &NOTHING_BOUND);
        put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
        link.lease.unnamed = None;
        prepared
            .statement()
            .into_iter()
            .for_each(|one| link.sends(one));
        for (request, origin) in [
            (Request::Parse, Origin::Injected),
            (Request::Bind, Origin::Injected),
            (Request::Execute, Origin::Client),
        ] {
            self.pipeline.asked(request, origin, Note::Nothing);
        }
        Ok(())
    }

    /// Who copies, and what.
    async fn who_copies(&mut self, copy: &CopyOut, text: &[u8]) -> Result<Copied, Stop> {
        if let Some(shards) = copy.shards(&self.snapshot) {
            let text = text.to_vec();
            return Ok(Copied::ByAll { shards, text });
        }
        let refusal = || {
            let feature = "COPY of a query of this form over several shards";
            wording::unroutable(&Unroutable::Unsupported { feature })
        };
        let whole = std::str::from_utf8(text).map_err(|_not_utf8| refusal())?;
        let place = query_within(whole).ok_or_else(refusal)?;
        let (before, behind) = (&whole[..place.start], &whole[place.end..]);
        // Where it stands, so that errors name places in the client's text.
        let own = " ".repeat(before.chars().count()) + &whole[place];
        let scratch = self.scratch.get_or_insert_default();
        let plans = &self.database.plans;
        let planned = plans.plan(own.as_bytes(), &[], &self.context, &self.snapshot, scratch);
        let values = Values {
            text: own.as_bytes(),
            slots: &planned.slots,
            types: &[],
            bind: None,
        };
        let streams = self.streams(&planned.plan, &values);
        if let Some((shards, question)) = streams.as_deref().and_then(Scattered::as_it_comes) {
            return Ok(Copied::ByAll {
                shards: shards.clone(),
                text: [before, question, behind].concat().into_bytes(),
            });
        }
        let scatter = self.scatters(&planned.plan, &values).ok_or_else(refusal)?;
        let bound = Bound {
            types: &[],
            tail: None,
        };
        let answer = self.gather(&scatter, own.as_bytes(), &bound).await?;
        Ok(Copied::ByOne(
            [before, &answer.text, behind].concat().into_bytes(),
        ))
    }

    /// Gives the rows of all shards, and the command's tag.
    async fn copy_from_all(
        &mut self,
        copy: &CopyOut,
        shards: &ShardSet,
        text: &[u8],
    ) -> Result<(), Stop> {
        if self.link.is_some() {
            self.leave_link().await?;
        }
        self.lease_fan(shards).await?;
        let given = self.give_copy(copy, text).await;
        if let Err(Stop::End(end)) = given {
            return Err(Stop::End(end));
        }
        if given.is_err() {
            self.give_up_fan().await?;
        } else {
            self.rest_fan().await?;
        }
        let rows = given?;
        put_bare(self.client.out(), b'c');
        put_complete(self.client.out(), format!("COPY {rows}").as_bytes());
        self.tally.queries += 1;
        Ok(())
    }

    /// What the shards are sent.
    async fn copies(&mut self, copy: &CopyOut, text: &[u8]) -> Result<PerShard, Stop> {
        let text = std::str::from_utf8(text).map_err(|_not_utf8| reply::malformed())?;
        let doubled = copy
            .of_table()
            .map(|group| self.snapshot.group(group))
            .filter(|group| group.is_doubled());
        let Some(group) = doubled.map(|group| group.name.clone()) else {
            return self.per_shard(text);
        };
        let refusal = || {
            let what = Undoubled::Copy;
            Stop::from(wording::unroutable(&Unroutable::Doubled { group, what }))
        };
        let Some(table) = TableCopy::of(text) else {
            return Err(refusal());
        };
        if let Some(fan) = self.fan.as_deref_mut() {
            fan.ask(0, 1, |out| put_query(out, table.question().as_bytes()));
        }
        let (mut answer, mut problem) = (None, None);
        self.hear_fan(|_, tag, body| {
            match tag {
                b'D' => answer = first_value(body),
                b'E' => problem = Some(Words::Servers(without_position(body))),
                _ => {}
            }
            Ok(())
        })
        .await?;
        if let Some(problem) = problem {
            return Err(problem.into());
        }
        let query = answer.and_then(|answer| table.of_query(&answer));
        self.per_shard(&query.ok_or_else(refusal)?)
    }

    async fn give_copy(&mut self, copy: &CopyOut, text: &[u8]) -> Result<u64, Stop> {
        let texts = self.copies(copy, text).await?;
        let members = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..members {
            if let Some(fan) = self.fan.as_deref_mut() {
                let own = texts.on(fan.shard(at)).as_bytes();
                fan.ask(at, 1, |out| put_query(out, own));
            }
        }
        let mut response: Option<Vec<u8>> = None;
        for at in 0..members {
            let own = self.hear_copy_begin(at, b'H').await?;
            if *response.get_or_insert_with(|| own.clone()) != own {
                return Err(reply::rows::columns_changed().into());
            }
        }
        let response = response.ok_or_else(reply::malformed)?;
        put(self.client.out(), b'H', |out| {
            out.extend_from_slice(&response);
        });
        let mut rows = 0;
        for at in 0..members {
            let part = Part {
                first: at == 0,
                last: at + 1 == members,
            };
            rows += self.give_part(copy, at, part).await?;
        }
        Ok(rows)
    }

    /// Gives one shard's rows; how many.
    async fn give_part(&mut self, copy: &CopyOut, at: usize, part: Part) -> Result<u64, Stop> {
        let (mut begun, mut rows) = (false, None);
        while let Some(fan) = self.fan.as_deref_mut() {
            match fan.next(at) {
                Next::Message(header) => {
                    let body = &fan.held(at)[HEADER..header.size];
                    match header.tag {
                        b'd' => {
                            let own = part.own(copy, body, begun);
                            begun = true;
                            if !own.is_empty() {
                                put(self.client.out(), b'd', |out| out.extend_from_slice(own));
                            }
                        }
                        b'C' => rows = counted(body),
                        b'N' => put(self.client.out(), b'N', |out| out.extend_from_slice(body)),
                        b'E' => return Err(Words::Servers(body.to_vec()).into()),
                        _ => {}
                    }
                    fan.take(at, header.size);
                    self.wait_for_room().await?;
                }
                Next::Pending => self.wait_fan().await?,
                Next::TooLong(_) => {
                    return Err(reply::rows::too_many_rows(super::fan::LONGEST).into());
                }
                Next::Rest => return Ok(rows.ok_or_else(reply::malformed)?),
                Next::More(_) | Next::Lost => return Err(self.shard_of_copy_lost(at)),
            }
        }
        Err(reply::malformed().into())
    }
}

/// Who copies.
enum Copied {
    /// Each of these shards its share, told so.
    ByAll { shards: ShardSet, text: Vec<u8> },
    /// The link, told so.
    ByOne(Vec<u8>),
}

/// Where one shard's rows stand in the whole.
#[derive(Clone, Copy)]
struct Part {
    first: bool,
    last: bool,
}

impl Part {
    /// What of a message is the whole's, `begun`: behind this shard's first.
    fn own<'a>(self, copy: &CopyOut, body: &'a [u8], begun: bool) -> &'a [u8] {
        let headed = !begun && !self.first;
        match copy.format {
            Format::Text | Format::Csv if headed && copy.header == Header::Line => &[],
            Format::Text | Format::Csv => body,
            Format::Binary => {
                // The header comes in one message with what follows it.
                let header = if begun {
                    0
                } else {
                    BINARY_HEADER.min(body.len())
                };
                let ends = body[header..] == BINARY_TRAILER && !self.last;
                let from = if headed { header } else { 0 };
                let to = if ends { header } else { body.len() };
                &body[from..to]
            }
        }
    }
}

/// The rows of `COPY 5`.
pub(super) fn counted(body: &[u8]) -> Option<u64> {
    let count = command_tag(body).ok()?.strip_prefix(b"COPY ")?;
    std::str::from_utf8(count).ok()?.parse().ok()
}
