//! Hot path: rows on their way from several shards to the client. Runs of rows are copied as slices; merged by keys, a
//! row costs one look at each of its values' lengths.
//!
//! What must stay true: a row that has begun is passed on whole before another one; what LIMIT leaves out is not passed on.

use super::super::{
    fan::{Fan, LONGEST, Next},
    reply::session as reply,
    request::Stop,
    session::{Rest, Session, told},
};
use crate::{
    merge::{Malformed, limit::Limit, order::Merge, rows},
    net::stream::HIGH_WATER,
    wire::frame::HEADER,
};

impl Session {
    /// Passes on what has come of any shard.
    pub(super) async fn concatenate(&mut self, limit: &mut Limit, most: u64) -> Result<Step, Stop> {
        let (mut given, mut rests, mut waits) = (0, 0, true);
        let members = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..members {
            loop {
                let Some(fan) = self.fan.as_deref_mut() else {
                    return Ok(Step::Over(given));
                };
                match fan.next(at) {
                    Next::Message(header) if header.tag == b'D' => {
                        let skips = limit.skips();
                        let wanted = if skips > 0 {
                            skips
                        } else {
                            limit.gives().min(most - given)
                        };
                        let held = fan.held(at);
                        let run = rows::run(held, wanted);
                        if skips > 0 {
                            limit.skipped(run.rows);
                        } else {
                            self.client.out().extend_from_slice(&held[..run.bytes]);
                            limit.gave(run.rows);
                            given += run.rows;
                        }
                        fan.take(at, run.bytes);
                        waits = false;
                        break;
                    }
                    Next::TooLong(header) if header.tag == b'D' => {
                        let forward = if limit.skips() > 0 {
                            limit.skipped(1);
                            Forward::No
                        } else {
                            limit.gave(1);
                            given += 1;
                            Forward::Yes
                        };
                        self.long_row(at, header.size, forward).await?;
                        waits = false;
                        break;
                    }
                    Next::Rest => {
                        rests += 1;
                        break;
                    }
                    Next::Pending => break,
                    other @ (Next::Message(_) | Next::TooLong(_) | Next::More(_) | Next::Lost) => {
                        self.aside(at, other)?;
                    }
                }
            }
            if given == most || limit.is_met() {
                return Ok(Step::Gave(given));
            }
        }
        Ok(match waits {
            _ if rests == members => Step::Over(given),
            true => Step::Waits,
            false => Step::Gave(given),
        })
    }

    /// Passes on a row that is longer than what is held of a shard, or over it, as it comes.
    async fn long_row(&mut self, at: usize, size: usize, forward: Forward) -> Result<(), Stop> {
        let mut left = size;
        while left > 0 {
            let Some(fan) = self.fan.as_deref_mut() else {
                return Ok(());
            };
            let held = fan.held(at);
            let count = held.len().min(left);
            if forward == Forward::Yes && count > 0 {
                self.client.out().extend_from_slice(&held[..count]);
            }
            fan.take(at, count);
            left -= count;
            if forward == Forward::Yes {
                // Within a message nothing else can be said.
                self.backend_rest = Rest {
                    bytes: left,
                    forward: true,
                };
            }
            if left == 0 {
                break;
            }
            self.wait_for_room().await?;
            let Some(fan) = self.fan.as_deref_mut() else {
                return Ok(());
            };
            match fan.next(at) {
                Next::More(_) => {}
                Next::Pending => self.wait_fan().await?,
                Next::Message(_) | Next::TooLong(_) | Next::Rest | Next::Lost => {
                    let shard = self.fan.as_deref().map(|fan| fan.shard(at));
                    let shard = shard.map_or("", |shard| self.database.shard_name(shard));
                    return Err(told(reply::several::shard_lost(shard)).into());
                }
            }
        }
        Ok(())
    }

    /// Passes on rows in their order, as far as every shard's next one is known.
    pub(super) fn merge_rows(
        &mut self,
        merge: &mut Merge,
        limit: &mut Limit,
        most: u64,
    ) -> Result<Step, Stop> {
        let mut given = 0;
        let members = self.fan.as_deref().map_or(0, Fan::len);
        loop {
            for at in 0..members {
                while merge.awaits(at) {
                    let Some(fan) = self.fan.as_deref_mut() else {
                        return Ok(Step::Over(given));
                    };
                    match fan.next(at) {
                        Next::Message(header) if header.tag == b'D' => {
                            let body = &fan.held(at)[HEADER..header.size];
                            merge.offer(at, body).map_err(out_of_shape)?;
                        }
                        Next::Rest => merge.over(at),
                        Next::Pending => {
                            return Ok(if given > 0 {
                                Step::Gave(given)
                            } else {
                                Step::Waits
                            });
                        }
                        other @ (Next::Message(_)
                        | Next::TooLong(_)
                        | Next::More(_)
                        | Next::Lost) => {
                            self.aside(at, other)?;
                        }
                    }
                }
            }
            let (Some(at), Some(fan)) = (merge.first(), self.fan.as_deref_mut()) else {
                return Ok(Step::Over(given));
            };
            let Next::Message(header) = fan.next(at) else {
                return Err(self.member_lost(at));
            };
            let body = &fan.held(at)[HEADER..header.size];
            if limit.skips() > 0 {
                limit.skipped(1);
                merge.take(body, None);
            } else {
                merge.take(body, Some(self.client.out()));
                limit.gave(1);
                given += 1;
            }
            fan.take(at, header.size);
            if given == most || limit.is_met() || self.client.unsent() >= HIGH_WATER {
                return Ok(Step::Gave(given));
            }
        }
    }

    /// A member's message that is no row.
    fn aside(&mut self, at: usize, next: Next) -> Result<(), Stop> {
        let Some(fan) = self.fan.as_deref_mut() else {
            return Ok(());
        };
        match next {
            Next::Message(header) => {
                let held = fan.held(at);
                match header.tag {
                    b'E' => {
                        let body = held[HEADER..header.size].to_vec();
                        return Err(self.error_of(at, body));
                    }
                    b'N' => self.client.out().extend_from_slice(&held[..header.size]),
                    // CommandComplete, and what else belongs to an answer.
                    _ => {}
                }
                fan.take(at, header.size);
                Ok(())
            }
            Next::More(count) => {
                fan.take(at, count);
                Ok(())
            }
            Next::TooLong(_) => Err(reply::rows::too_many_rows(LONGEST).into()),
            Next::Lost => Err(self.member_lost(at)),
            Next::Pending | Next::Rest => Ok(()),
        }
    }
}

/// What came of looking for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Gave(u64),
    /// Nothing has come.
    Waits,
    /// Every shard has given all its rows, these the last.
    Over(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forward {
    Yes,
    No,
}

fn out_of_shape(_malformed: Malformed) -> Stop {
    reply::rows::columns_changed().into()
}
