//! The work of several shards on one statement, within one transaction.
//!
//! What must stay true: a shard that has its part is a part of the transaction before, and what fails on one has failed
//! it; the time and what is drawn for rows are asked for once, for all.

use super::{
    Writing,
    answers::{Answer, Discord, Written, together},
    moving::keep_apart,
};
use crate::{
    catalog::{moving::REACHES, shard::ShardId},
    plan::{
        owned::PerShard,
        spread::{Fill, Given, Part, Shares, Turns, What},
    },
    proxy::{
        link::Hold,
        numbers::Drew,
        place::Place,
        reply::session as reply,
        request::Stop,
        scatter::placed,
        session::{Session, told},
    },
    sql::statement::quoted,
    wire::{
        backend::{Status, command_tag},
        frontend::put,
        notice::Words,
    },
};

/// What the answers of one statement may hold of rows.
const LIMIT: usize = 64 << 20;
/// The transaction's time as text that means the same whatever the session's settings are.
const TIME: &str = "SELECT pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.now()), \
     'YYYY-MM-DD HH24:MI:SS.US+00')";

impl Session {
    /// Lets every shard do its part within the transaction.
    pub(in crate::proxy) async fn write(&mut self, writing: &Writing<'_>) -> Result<Written, Stop> {
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
            let stray =
                shard.and_then(|shard| self.stray_at_work(shard, &writing.spread.what, &body));
            if let Some(words) = stray {
                return Err(words.into());
            }
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
    pub(in crate::proxy) async fn parts_to_send(
        &mut self,
        writing: &Writing<'_>,
    ) -> Result<Parts, Stop> {
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
    pub(in crate::proxy) fn owned_parts(
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

    /// Makes every shard a part of the transaction, in their order. A table that all have a copy of is locked on each
    /// before the next is reached: whoever writes it elsewhere comes before or behind on all of them.
    pub(in crate::proxy) async fn reach_shards(
        &mut self,
        writing: &Writing<'_>,
    ) -> Result<(), Stop> {
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
            self.reach_within(*shard).await?;
            if let Some(lock) = &lock {
                self.prelude(lock.as_bytes()).await??;
            }
        }
        Ok(())
    }

    /// Says to a shard which others have the write too, for guards of tables that shards which join have from now on.
    pub(in crate::proxy) fn reaching(&self, shares: &Shares) -> String {
        let shards = shares.shards.iter();
        let names: Vec<&str> = shards
            .map(|(shard, _)| self.database.shard_name(*shard))
            .collect();
        format!("SET LOCAL {REACHES} = {}; ", quoted(&names.join(",")))
    }

    /// Makes a shard a part of the transaction.
    pub(in crate::proxy) async fn reach_within(&mut self, shard: ShardId) -> Result<(), Stop> {
        let hold = Hold::Bound;
        self.reach(Place { shard, hold }).await?;
        let there = self
            .link
            .as_ref()
            .is_some_and(|link| link.shard == shard && link.status == Status::Transaction);
        if !there {
            return Err(reply::rows::shard_missing(self.database.shard_name(shard)).into());
        }
        Ok(())
    }

    /// Sets the transaction's links to these shards to work together.
    pub(in crate::proxy) fn fan_out_over(&mut self, shares: &Shares) {
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

    /// Takes the links back into the transaction. The one whose part failed is the session's, so that it has failed.
    pub(in crate::proxy) async fn gather_in(&mut self, shares: &Shares) -> Result<(), Stop> {
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

    /// The time of the transaction: that which it has been told already, or from now on this.
    pub(in crate::proxy) async fn ask_time(
        &mut self,
        shares: &Shares,
    ) -> Result<Option<String>, Stop> {
        let here = self.link.as_ref().filter(|link| link.named);
        let told = here.map(|link| link.shard).or_else(|| self.several.named());
        let shards = || shares.shards.iter().map(|(shard, _)| *shard);
        let stays = shards().find(|shard| !self.snapshot.is_leaving(*shard));
        if let Some(shard) = told.or(stays).or_else(|| shards().next()) {
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
}

/// What each of the transaction's shards is sent.
pub(in crate::proxy) struct Parts {
    pub(in crate::proxy) parts: Vec<Part>,
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

/// Why the shards' answers are not the answer of one statement.
fn discord_words(discord: Discord, what: &What) -> Stop {
    match (discord, what) {
        (Discord::Copies, What::Copies(copies)) => reply::rows::copies_differ(&copies.table).into(),
        (Discord::Columns, _) => reply::rows::columns_changed().into(),
        (Discord::Copies | Discord::Malformed, _) => reply::malformed().into(),
    }
}
