//! COPY of a sharded table TO STDOUT: the shards' streams one behind the other, as one stream.
//!
//! What must stay true: every shard's rows are in it, or it ends in an error; it has one header and one trailer; nothing
//! is told to the client before all shards have said that they give rows of the same shape. A shard whose turn has not
//! come, and a client that does not take its rows, hold the servers back.

use super::{
    fan::{Fan, Next},
    link::Hold,
    place::Place,
    request::Stop,
    session::Session,
};
use crate::{
    catalog::shard::ShardSet,
    plan::{StatementPlan, copy::CopyOut, spread::Shares},
    proxy::reply::session as reply,
    split::copy::{Format, Header},
    wire::{
        backend::{Status, command_tag, put_complete},
        frame::HEADER,
        frontend::{put, put_bare, put_query},
        notice::Words,
    },
};

/// What binary data begins with: the signature, flags, and the length of nothing.
const BINARY_HEADER: usize = 19;
/// What it ends with, as a message of its own or behind the header.
const BINARY_TRAILER: [u8; 2] = [0xff, 0xff];

impl Session {
    /// How this statement's rows are put together, if it is a COPY of a sharded table that the session may gather now.
    pub(super) fn copies_out(&self, statement: &StatementPlan) -> Option<(CopyOut, Whose)> {
        let copy = statement.copy_out.as_deref()?;
        let whose = if self.may_ask_shards(statement) {
            Whose::Apart
        } else if self.status() == Status::Transaction && self.may_spread() {
            Whose::Transaction
        } else {
            return None;
        };
        Some((copy.clone(), whose))
    }

    /// Runs a Query whose only statement is a COPY of a sharded table.
    pub(super) async fn query_copy_out(
        &mut self,
        (copy, whose): (&CopyOut, Whose),
        text: &[u8],
    ) -> Result<(), Stop> {
        self.copy_out((copy, whose), text).await?;
        self.ready_here();
        Ok(())
    }

    /// Gives the rows of all shards, and the command's tag.
    pub(super) async fn copy_out(
        &mut self,
        (copy, whose): (&CopyOut, Whose),
        text: &[u8],
    ) -> Result<(), Stop> {
        let shards = copy.shards(&self.snapshot);
        let rows = match whose {
            Whose::Apart => self.copy_apart(copy, &shards, text).await?,
            Whose::Transaction => self.copy_within(copy, &shards, text).await?,
        };
        put_bare(self.client.out(), b'c');
        put_complete(self.client.out(), format!("COPY {rows}").as_bytes());
        self.tally.queries += 1;
        Ok(())
    }

    /// On backends that nothing else is done on.
    async fn copy_apart(
        &mut self,
        copy: &CopyOut,
        shards: &ShardSet,
        text: &[u8],
    ) -> Result<u64, Stop> {
        if self.link.is_some() {
            self.leave_link().await?;
        }
        self.lease_fan(shards).await?;
        let given = self.give_copy(copy, text).await;
        if let Err(Stop::End(end)) = given {
            return Err(Stop::End(end));
        }
        self.rest_fan().await?;
        given
    }

    /// On the transaction's own backends, which see what it has written.
    async fn copy_within(
        &mut self,
        copy: &CopyOut,
        shards: &ShardSet,
        text: &[u8],
    ) -> Result<u64, Stop> {
        for shard in shards.iter() {
            let hold = Hold::Bound;
            self.reach(Place { shard, hold }).await?;
        }
        if self.status() != Status::Transaction {
            return Err(reply::transaction_failed().into());
        }
        let shares = Shares {
            shards: shards.iter().map(|shard| (shard, Vec::new())).collect(),
        };
        self.fan_out_over(&shares);
        let given = self.give_copy(copy, text).await;
        if let Err(Stop::End(end)) = given {
            return Err(Stop::End(end));
        }
        self.gather_in(&shares).await?;
        given
    }

    async fn give_copy(&mut self, copy: &CopyOut, text: &[u8]) -> Result<u64, Stop> {
        let members = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..members {
            if let Some(fan) = self.fan.as_deref_mut() {
                fan.ask(at, 1, |out| put_query(out, text));
            }
        }
        let mut response: Option<Vec<u8>> = None;
        for at in 0..members {
            let own = self.hear_copy_begin(at, b'H').await?;
            if *response.get_or_insert_with(|| own.clone()) != own {
                return Err(reply::columns_changed().into());
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
                Next::TooLong(_) => return Err(reply::too_many_rows(super::fan::LONGEST).into()),
                Next::Rest => return Ok(rows.ok_or_else(reply::malformed)?),
                Next::More(_) | Next::Lost => return Err(self.shard_of_copy_lost(at)),
            }
        }
        Err(reply::malformed().into())
    }
}

/// Whose backends give the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Apart,
    Transaction,
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
