//! COPY FROM STDIN into a table of several shards: the client's stream is cut into rows, and every shard is sent its own
//! as a COPY of the client's own text, so that PostgreSQL itself reads, judges and counts them. Of a reference table
//! every shard is sent all of it.
//!
//! ```text
//!   reach all shards ─▶ COPY to each ─▶ CopyInResponse of all ─▶ data ⇄ rows ─▶ CopyDone ─▶ tags ─▶ COPY n
//!                                                                 │ error, CopyFail
//!                                                                 ▼
//!                                                     CopyFail to all ─▶ one error
//! ```
//!
//! What must stay true: every row is sent to the shard of its key and to no other, or the COPY fails; all shards keep
//! their rows or none does, as of any write to several shards (`spread`); nothing is told to the client before all
//! shards take data; copies of a reference table are the same before the client is told that they have the rows; what a
//! slow shard has not taken is bounded, and so is what the client may send meanwhile.

use super::{
    copy_out::counted,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{End, Note, Phase, Portal, Rest, Session, first_value, told},
};
use crate::{
    catalog::{shard::ShardId, snapshot::Snapshot},
    net::stream::HIGH_WATER,
    plan::{
        StatementPlan,
        copy::CopyIn,
        copy_left::{Condition, Left, at_moment, listing},
        spread::Shares,
        unroutable::Unroutable,
    },
    proxy::fan::{Fan, LONGEST, Next},
    split::{
        copy::{Fault, Format, Piece, Splitter},
        filling::Filling,
    },
    wire::{
        backend::{Status, put_complete},
        frame::{self, HEADER, Header},
        frontend::{put, put_bare, put_query},
        notice::{Words, with_context},
    },
};
use std::sync::Arc;

/// Rows are sent to a shard in messages of about this size.
const BATCH: usize = 32 << 10;
/// What a shard reads as the reason when the COPY has failed elsewhere: it is in its server's log.
const FAILED_ELSEWHERE: &[u8] = b"it has failed on another shard or in the proxy\0";

/// A COPY whose rows are sent to several shards; its backends are the session's fan.
#[derive(Debug)]
pub(super) struct Copying {
    copy: CopyIn,
    snapshot: Arc<Snapshot>,
    shares: Shares,
    splitter: Splitter,
    /// What each row is given in front of its own values.
    filling: Option<Filling>,
    /// What each shard is sent next, in the order of the fan.
    batches: Vec<Vec<u8>>,
    /// Lines of the client's data, or rows in binary, that were whole.
    lines: u64,
    asked: Asked,
}

/// How the client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Query,
    Execute,
}

/// Why the client's data cannot go on.
enum Wrong {
    Fault(Fault),
    Place(Box<Unroutable>),
}

impl From<Fault> for Wrong {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Session {
    /// How the rows of this statement find their shards, if it is a COPY into a sharded table that the session may split
    /// now.
    pub(super) fn copies_in(&self, statement: &StatementPlan) -> Option<CopyIn> {
        let copy = statement.copy_in.as_deref()?;
        self.may_spread().then(|| copy.clone())
    }

    /// Runs a Query whose only statement is a COPY into a sharded table.
    pub(super) async fn query_copy(&mut self, copy: CopyIn, text: &[u8]) -> Result<(), Stop> {
        let begun = self.begin_copy(copy, text, Asked::Query).await;
        if let Err(Stop::Refused(_)) = begun
            && self.ends_with_query()
        {
            self.undo_own().await?;
        }
        begun?;
        self.phase = Phase::Answering;
        Ok(())
    }

    /// Binds a COPY of a sharded table, in or out; false: it is none.
    pub(super) async fn bind_copy(
        &mut self,
        prepared: &Arc<Prepared>,
        portal: &[u8],
    ) -> Result<bool, Stop> {
        let copies = prepared.statement().is_some_and(|statement| {
            self.copies_in(statement).is_some() || self.copies_out(statement).is_some()
        });
        if !copies {
            return Ok(false);
        }
        self.answer_pending().await?;
        self.settle().await?;
        if !self.skip {
            self.made(vec![b'2', 0, 0, 0, 4], Note::Nothing);
            let prepared = Arc::clone(prepared);
            self.portals
                .insert(portal.into(), Portal::Copying(prepared));
        }
        Ok(true)
    }

    /// Execute of a COPY of a sharded table.
    pub(super) async fn execute_copy(&mut self, portal: &[u8]) -> Result<(), Stop> {
        self.settle().await?;
        if self.skip {
            return Ok(());
        }
        let Some(Portal::Copying(prepared)) = self.portals.remove(portal) else {
            return Err(reply::no_such_portal(portal).into());
        };
        if let Some(copy) = prepared.statement().and_then(|one| self.copies_out(one)) {
            return self.execute_copy_out(&copy, &prepared).await;
        }
        let found = prepared.statement().and_then(|one| self.copies_in(one));
        // What came between has bound the session to one shard.
        let copy = found.ok_or_else(reply::several::bound_before)?;
        self.begin_copy(copy, &prepared.text, Asked::Execute).await
    }

    // ---- the beginning ----

    /// Opens the COPY on every shard and tells the client to send its data.
    async fn begin_copy(&mut self, copy: CopyIn, text: &[u8], asked: Asked) -> Result<(), Stop> {
        if self.link.is_some() {
            self.leave_link().await?;
        }
        if self.skip || self.status() == Status::Failed {
            return Err(reply::transaction_failed().into());
        }
        self.begin_own().await?;
        let shares = copy.shares(&self.snapshot);
        let column = self.reach_to_copy(&copy, &shares).await?;
        let (filling, timed) = self.time_copy(&copy, &shares, text).await?;
        self.fan_out_over(&shares);
        let opened = self.open_copy(timed.as_deref().unwrap_or(text)).await;
        let response = match opened {
            Ok(response) => response,
            Err(Stop::End(end)) => return Err(Stop::End(end)),
            Err(Stop::Refused(words)) => {
                self.close_copy(&shares, FAILED_ELSEWHERE).await?;
                return Err(Stop::Refused(words));
            }
        };
        let response = without(response, copy.left.len());
        put(self.client.out(), b'G', |out| {
            out.extend_from_slice(&response);
        });
        self.copying = Some(Box::new(Copying {
            splitter: Splitter::new(copy.options.clone(), column, LONGEST),
            filling,
            snapshot: Arc::clone(&self.snapshot),
            batches: vec![Vec::new(); shares.shards.len()],
            lines: 0,
            copy,
            shares,
            asked,
        }));
        Ok(())
    }

    /// Makes every shard a part of the transaction, in their order; the key's place among the values of a row. Where the
    /// statement does not list its columns, the table is locked so that they stay as they are found.
    async fn reach_to_copy(&mut self, copy: &CopyIn, shares: &Shares) -> Result<usize, Stop> {
        let listed = copy.listed_column();
        let mut found: Option<Option<String>> = None;
        for (shard, _) in &shares.shards {
            self.reach_within(*shard).await?;
            if copy.is_everywhere() {
                let lock = self.reaching(shares) + &copy.lock();
                self.prelude(lock.as_bytes()).await??;
            } else if listed.is_none() {
                self.prelude(copy.lock().as_bytes()).await??;
            }
            if copy.columns.is_none() {
                let columns = self.ask(copy.columns_question().as_bytes()).await??;
                if *found.get_or_insert_with(|| columns.clone()) != columns {
                    return Err(reply::rows::columns_changed().into());
                }
            }
        }
        if copy.is_everywhere() {
            return Ok(0);
        }
        let place = listed.or_else(|| copy.column_among(found.flatten().as_deref()?));
        Ok(place.ok_or_else(reply::rows::columns_changed)?)
    }

    /// Asks for the transaction's time where the COPY needs it: what each row is given, and the text that has it.
    async fn time_copy(
        &mut self,
        copy: &CopyIn,
        shares: &Shares,
        text: &[u8],
    ) -> Result<(Option<Filling>, Option<Vec<u8>>), Stop> {
        if copy.left.is_empty() && copy.condition == Condition::OfRows {
            return Ok((None, None));
        }
        let time = self.ask_time(shares).await?;
        let time = time.ok_or_else(reply::malformed)?;
        let filling = self.fill_copy(copy, &time).await?;
        let text = std::str::from_utf8(text).ok();
        let text = text.and_then(|text| match copy.condition {
            Condition::OfRows => listing(text, &copy.left),
            Condition::OfTime => listing(&at_moment(text, &time)?, &copy.left),
        });
        // The plan is of a text that was understood.
        let text = text.ok_or_else(reply::malformed)?;
        Ok((filling, Some(text.into_bytes())))
    }

    /// What each row is given for the columns that are left to the transaction's time; `None`: there are none.
    async fn fill_copy(&mut self, copy: &CopyIn, time: &str) -> Result<Option<Filling>, Stop> {
        if copy.left.is_empty() {
            return Ok(None);
        }
        let (table, format) = (copy.quoted(), copy.options.format);
        let mut values = Vec::new();
        for left in &copy.left {
            let none = || reply::rows::default_not_sent(&left.column);
            let kind = self.ask(left.kind_question(&table).as_bytes()).await??;
            let kind = kind
                .and_then(|answer| Left::kind(&answer))
                .ok_or_else(none)?;
            let question = left.value_question(&kind, format, time).ok_or_else(none)?;
            let answer = self.ask(question.as_bytes()).await??;
            let value = answer.and_then(|answer| Left::value(format, answer));
            values.push((left.column.as_str(), value.ok_or_else(none)?));
        }
        let filling = Filling::new(&copy.options, &values);
        let first = copy.left.first().map_or("", |left| left.column.as_str());
        Ok(Some(
            filling.ok_or_else(|| reply::rows::default_not_sent(first))?,
        ))
    }

    /// Sends every shard the COPY and waits until all take data; what they say about it.
    async fn open_copy(&mut self, text: &[u8]) -> Result<Vec<u8>, Stop> {
        let members = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..members {
            if let Some(fan) = self.fan.as_deref_mut() {
                fan.ask(at, 1, |out| put_query(out, text));
            }
        }
        let mut response: Option<Vec<u8>> = None;
        for at in 0..members {
            let own = self.hear_copy_begin(at, b'G').await?;
            if *response.get_or_insert_with(|| own.clone()) != own {
                return Err(reply::rows::columns_changed().into());
            }
        }
        Ok(response.ok_or_else(reply::malformed)?)
    }

    /// The body of a shard's CopyInResponse, or CopyOutResponse.
    pub(super) async fn hear_copy_begin(&mut self, at: usize, wanted: u8) -> Result<Vec<u8>, Stop> {
        while let Some(fan) = self.fan.as_deref_mut() {
            match fan.next(at) {
                Next::Message(header) => {
                    let body = fan.held(at)[HEADER..header.size].to_vec();
                    fan.take(at, header.size);
                    match header.tag {
                        tag if tag == wanted => return Ok(body),
                        b'E' => return Err(Words::Servers(body).into()),
                        b'N' => put(self.client.out(), b'N', |out| out.extend_from_slice(&body)),
                        _ => return Err(reply::malformed().into()),
                    }
                }
                Next::Pending => self.wait_fan().await?,
                Next::More(_) | Next::TooLong(_) | Next::Rest | Next::Lost => {
                    return Err(self.shard_of_copy_lost(at));
                }
            }
        }
        Err(End::Client.into())
    }

    pub(super) fn shard_of_copy_lost(&self, at: usize) -> Stop {
        let shard = self.fan.as_deref().map(|fan| fan.shard(at));
        let name = shard.map_or("", |shard| self.database.shard_name(shard));
        reply::rows::shard_lost_at_work(name).into()
    }

    // ---- the data ----

    /// Takes what the client sends to its COPY: one message, or a part of its data; how many bytes it took, 0 when more
    /// must come first.
    pub(super) async fn copy_message(&mut self, bytes: &[u8]) -> Result<usize, End> {
        if self.client_rest.bytes > 0 {
            let count = self.client_rest.bytes.min(bytes.len());
            self.client_rest.bytes -= count;
            self.tally.received_bytes += count as u64;
            self.copy_data_of(&bytes[..count]).await?;
            return Ok(count);
        }
        let header = match frame::frontend(bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(0),
            Err(problem) => return Err(told(reply::broken_frame(&problem))),
        };
        if header.tag == b'd' {
            self.client_rest = Rest {
                bytes: header.size - HEADER,
                forward: false,
            };
            return Ok(HEADER);
        }
        let belongs = matches!(header.tag, b'c' | b'f' | b'S' | b'H');
        if !belongs || header.size > HIGH_WATER {
            return Err(self.interrupts_copy(header.tag));
        }
        if bytes.len() < header.size {
            return Ok(0);
        }
        match header.tag {
            b'c' => self.copy_done().await?,
            b'f' => self.copy_stopped(header, bytes).await?,
            // As in PostgreSQL: these are ignored.
            _ => {}
        }
        Ok(header.size)
    }

    async fn copy_data_of(&mut self, bytes: &[u8]) -> Result<(), End> {
        let Some(copying) = self.copying.as_deref_mut() else {
            return Ok(());
        };
        if let Err(why) = copying.feed(bytes) {
            let words = copying.words_of(&why);
            return self.copy_failed(words).await;
        }
        if let Some(fan) = self.fan.as_deref_mut() {
            copying.send(fan, BATCH);
        }
        self.hear_copy().await?;
        while self.copying.is_some() && self.fan.as_deref_mut().is_some_and(Fan::is_full) {
            self.wait_fan().await?;
            self.hear_copy().await?;
        }
        Ok(())
    }

    /// Waits until a shard has something to say, or the client has sent more.
    pub(super) async fn wait_in_copy(&mut self) -> Result<(), End> {
        self.wait_fan_or_client().await?;
        self.hear_copy().await
    }

    /// Hears what the shards say while they take data: an error ends the COPY.
    async fn hear_copy(&mut self) -> Result<(), End> {
        let members = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..members {
            while let Some(fan) = self.fan.as_deref_mut() {
                let stop = match fan.next(at) {
                    Next::Message(header) => {
                        let body = fan.held(at)[HEADER..header.size].to_vec();
                        fan.take(at, header.size);
                        match header.tag {
                            b'N' => {
                                put(self.client.out(), b'N', |out| out.extend_from_slice(&body));
                                continue;
                            }
                            b'E' => self.words_of_shard(at, &body).into(),
                            _ => reply::malformed().into(),
                        }
                    }
                    Next::Pending => break,
                    Next::More(_) | Next::TooLong(_) | Next::Rest | Next::Lost => {
                        self.shard_of_copy_lost(at)
                    }
                };
                return match stop {
                    Stop::End(end) => Err(end),
                    Stop::Refused(words) => self.copy_failed(*words).await,
                };
            }
        }
        Ok(())
    }

    /// A shard's error. The line that it names is one of the rows that it was sent.
    fn words_of_shard(&self, at: usize, body: &[u8]) -> Words {
        let shard = self.fan.as_deref().map(|fan| fan.shard(at));
        let name = shard.map_or("", |shard| self.database.shard_name(shard));
        let context = format!("shard \"{name}\", which counts the lines that it was sent");
        Words::Servers(with_context(body, &context))
    }

    // ---- the end ----

    /// CopyDone: the shards have all their rows.
    async fn copy_done(&mut self) -> Result<(), End> {
        let Some(copying) = self.copying.as_deref_mut() else {
            return Ok(());
        };
        if let Err(why) = copying.end() {
            let words = copying.words_of(&why);
            return self.copy_failed(words).await;
        }
        let Some(mut copying) = self.copying.take() else {
            return Ok(());
        };
        if let Some(fan) = self.fan.as_deref_mut() {
            copying.send(fan, 1);
            for at in 0..fan.len() {
                put_bare(fan.link(at).stream().out(), b'c');
            }
        }
        let (mut problem, mut notices) = (None, Vec::new());
        let mut tags = vec![None; copying.batches.len()];
        let heard = self
            .hear_fan(|at, tag, body| {
                match tag {
                    b'E' if problem.is_none() => problem = Some((at, body.to_vec())),
                    b'C' => tags[at] = counted(body),
                    b'N' => put(&mut notices, b'N', |out| out.extend_from_slice(body)),
                    _ => {}
                }
                Ok(())
            })
            .await;
        self.client.out().extend_from_slice(&notices);
        let problem = problem.map(|(at, body)| self.words_of_shard(at, &body));
        let heard = match heard {
            Err(Stop::End(end)) => return Err(end),
            heard => heard,
        };
        let everywhere = copying.copy.is_everywhere();
        let heard = if everywhere && problem.is_none() && heard.is_ok() {
            self.compare_copies(&copying.copy).await
        } else {
            heard
        };
        if let Err(Stop::End(end)) = heard {
            return Err(end);
        }
        let gathered = self.gather_in(&copying.shares).await;
        let rows: Option<u64> = if everywhere {
            tags.first().copied().flatten()
        } else {
            tags.into_iter().sum()
        };
        let outcome = match (problem, heard.and(gathered), rows) {
            (_, Err(Stop::End(end)), _) => return Err(end),
            (Some(words), _, _) => Err(words),
            (None, Err(Stop::Refused(words)), _) => Err(*words),
            // A cancel has hit what came behind.
            _ if self.status() != Status::Transaction => Err(reply::cancelled().into()),
            (None, Ok(()), None) => Err(reply::malformed().into()),
            (None, Ok(()), Some(rows)) => Ok(rows),
        };
        self.end_copy(copying.asked, outcome).await
    }

    /// Whether every shard has the same rows now.
    async fn compare_copies(&mut self, copy: &CopyIn) -> Result<(), Stop> {
        let question = copy.rows_question();
        let members = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..members {
            if let Some(fan) = self.fan.as_deref_mut() {
                fan.ask(at, 1, |out| put_query(out, question.as_bytes()));
            }
        }
        let (mut found, mut problem) = (vec![None; members], None);
        self.hear_fan(|at, tag, body| {
            match tag {
                b'D' => found[at] = first_value(body),
                b'E' if problem.is_none() => problem = Some(Words::Servers(body.to_vec())),
                _ => {}
            }
            Ok(())
        })
        .await?;
        if let Some(problem) = problem {
            return Err(problem.into());
        }
        let same = found.windows(2).all(|two| two[0] == two[1]);
        if same && found.first().is_some_and(Option::is_some) {
            Ok(())
        } else {
            Err(reply::rows::copies_differ(&copy.table).into())
        }
    }

    /// CopyFail: the shards are told the client's words, and say what PostgreSQL says then.
    async fn copy_stopped(&mut self, header: Header, bytes: &[u8]) -> Result<(), End> {
        let Some(copying) = self.copying.take() else {
            return Ok(());
        };
        let reason = &bytes[HEADER..header.size];
        let said = match self.close_copy(&copying.shares, reason).await {
            Ok(said) => said.unwrap_or_else(|| reply::cancelled().into()),
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(words)) => *words,
        };
        self.end_copy(copying.asked, Err(said)).await
    }

    /// The COPY has failed, here or on a shard: it ends on all of them, and the client is told why.
    async fn copy_failed(&mut self, words: Words) -> Result<(), End> {
        let Some(copying) = self.copying.take() else {
            return Ok(());
        };
        match self.close_copy(&copying.shares, FAILED_ELSEWHERE).await {
            Ok(_) | Err(Stop::Refused(_)) => self.end_copy(copying.asked, Err(words)).await,
            Err(Stop::End(end)) => Err(end),
        }
    }

    /// Ends the COPY on every shard and takes them back into the transaction, which has failed; the first error.
    async fn close_copy(&mut self, shares: &Shares, reason: &[u8]) -> Result<Option<Words>, Stop> {
        self.stop_copy(reason);
        let mut problem = None;
        let heard = self.hear_fan(|at, tag, body| {
            if tag == b'E' && problem.is_none() {
                problem = Some((at, body.to_vec()));
            }
            Ok(())
        });
        if let Err(Stop::End(end)) = heard.await {
            return Err(end.into());
        }
        let problem = problem.map(|(at, body)| self.words_of_shard(at, &body));
        self.gather_in(shares).await?;
        Ok(problem)
    }

    /// CopyFail to every shard; one that does not copy any more ignores it.
    pub(super) fn stop_copy(&mut self, reason: &[u8]) {
        if let Some(fan) = self.fan.as_deref_mut() {
            for at in 0..fan.len() {
                put(fan.link(at).stream().out(), b'f', |out| {
                    out.extend_from_slice(reason);
                });
            }
        }
    }

    /// The session ends in the middle of a COPY: no shard waits for more of it.
    pub(super) fn abandon_copy(&mut self) {
        if self.copying.take().is_some() {
            self.stop_copy(FAILED_ELSEWHERE);
        }
    }

    /// Tells the client how its COPY has ended, when that is sure.
    async fn end_copy(&mut self, asked: Asked, outcome: Result<u64, Words>) -> Result<(), End> {
        let own = match asked {
            Asked::Query => self.ends_with_query(),
            Asked::Execute => self.for_batch,
        };
        if asked == Asked::Query {
            self.phase = Phase::Idle;
        }
        let done = match (asked, outcome) {
            (Asked::Query, Ok(rows)) if own => self.commit_own().await.map(|()| rows),
            (_, Ok(rows)) => {
                self.tally.queries += u64::from(!own);
                Ok(rows)
            }
            (Asked::Query, Err(words)) if own => {
                let undone = self.undo_own().await;
                undone.and_then(|()| Err(words.into()))
            }
            (_, Err(words)) => Err(words.into()),
        };
        match (asked, done) {
            (_, Err(Stop::End(end))) => Err(end),
            (Asked::Query, Err(Stop::Refused(words))) => self.refuse_query(&words).await,
            (Asked::Execute, Err(Stop::Refused(words))) => {
                self.refuse(&words);
                Ok(())
            }
            (Asked::Query, Ok(rows)) => {
                put_complete(self.end_of_answer(), format!("COPY {rows}").as_bytes());
                self.ready_here();
                Ok(())
            }
            (Asked::Execute, Ok(rows)) => {
                let mut out = Vec::new();
                put_complete(&mut out, format!("COPY {rows}").as_bytes());
                self.made(out, Note::Nothing);
                Ok(())
            }
        }
    }
}

impl Copying {
    /// Cuts more of the data.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        if self.copy.is_everywhere() && self.filling.is_none() {
            for batch in &mut self.batches {
                batch.extend_from_slice(bytes);
            }
            return Ok(());
        }
        self.cut(|splitter, each| splitter.feed(bytes, each))
    }

    /// The data is over.
    fn end(&mut self) -> Result<(), Wrong> {
        self.cut(|splitter, each| splitter.end(each))
    }

    fn cut(
        &mut self,
        cut: impl FnOnce(
            &mut Splitter,
            &mut dyn FnMut(Piece<'_>) -> Result<(), Wrong>,
        ) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        let Self {
            copy,
            snapshot,
            shares,
            splitter,
            batches,
            filling,
            lines,
            ..
        } = self;
        let binary = copy.options.format == Format::Binary;
        let filling = filling.as_ref();
        let everywhere = copy.is_everywhere();
        let mut each = |piece: Piece<'_>| {
            let bytes = match piece {
                Piece::Everyone(bytes) => {
                    for batch in batches.iter_mut() {
                        match filling {
                            Some(filling) => filling.header(bytes, batch),
                            None => batch.extend_from_slice(bytes),
                        }
                    }
                    *lines += u64::from(!binary);
                    return Ok(());
                }
                Piece::Row { bytes, .. } if everywhere => {
                    for batch in batches.iter_mut() {
                        put_row(filling, bytes, batch);
                    }
                    bytes
                }
                Piece::Row { bytes, key } => {
                    let shard = copy.shard(snapshot, key).map_err(Wrong::Place)?;
                    let at = shard.map_or(Some(0), |shard| place_of(shares, shard));
                    let none = || Wrong::Place(Box::new(copy.homeless(snapshot)));
                    put_row(filling, bytes, &mut batches[at.ok_or_else(none)?]);
                    bytes
                }
            };
            *lines += match copy.options.format {
                Format::Csv => memchr::memchr_iter(b'\n', bytes).count().max(1) as u64,
                Format::Text | Format::Binary => 1,
            };
            Ok(())
        };
        cut(splitter, &mut each)
    }

    /// Sends what makes a message of at least this size.
    fn send(&mut self, fan: &mut Fan, least: usize) {
        for (at, batch) in self.batches.iter_mut().enumerate() {
            if batch.len() >= least {
                put(fan.link(at).stream().out(), b'd', |out| {
                    out.extend_from_slice(batch);
                });
                batch.clear();
                batch.shrink_to(2 * BATCH);
            }
        }
    }

    fn words_of(&self, why: &Wrong) -> Words {
        let (table, line) = (self.copy.table.as_str(), self.lines + 1);
        match why {
            Wrong::Fault(fault) => {
                reply::rows::copy_fault(*fault, table, &self.copy.key, line).into()
            }
            Wrong::Place(why) => {
                reply::rows::copy_row(wording::unroutable(why), table, line).into()
            }
        }
    }
}

fn put_row(filling: Option<&Filling>, bytes: &[u8], batch: &mut Vec<u8>) {
    match filling {
        Some(filling) => filling.row(bytes, batch),
        None => batch.extend_from_slice(bytes),
    }
}

/// What a shard says of the columns that it takes, without so many that the client does not send.
fn without(mut response: Vec<u8>, added: usize) -> Vec<u8> {
    if let Some(count) = response.get_mut(1..3)
        && let Ok(two) = <[u8; 2]>::try_from(&*count)
        && let Some(left) = usize::from(u16::from_be_bytes(two)).checked_sub(added)
        && let Ok(own) = u16::try_from(left)
    {
        count.copy_from_slice(&own.to_be_bytes());
        // Their formats are one format.
        response.truncate(3 + 2 * left);
    }
    response
}

fn place_of(shares: &Shares, shard: ShardId) -> Option<usize> {
    let mut shards = shares.shards.iter();
    shards.position(|(known, _)| *known == shard)
}
