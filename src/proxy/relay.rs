//! Hot path: a backend's answer on its way to the client. Runs of frames are copied as slices; per row it costs one
//! header and one match.

use super::{
    link::Hold,
    oids::{Holding, Seen},
    prepared::Prepared,
    session::{End, Note, Phase, Rest, Session, broken},
};
use crate::{
    config::settings::PoolMode,
    pool::backend::Shape,
    protocol::pipeline::{Event, Pass, Request},
    sql::statement::Effect,
    wire::{
        backend::{Status, command_tag, parameter_status, put_ready},
        frame::{self, HEADER, Header},
        notice,
    },
};

impl Session {
    /// Passes on what the backend has answered so far.
    pub(super) fn answer(&mut self) -> Result<(), End> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if link.lease.stream.buffered().is_empty() {
            return Ok(());
        }
        let lent = link.lease.stream.lend();
        let outcome = self.frames(lent.bytes());
        if let Some(link) = &mut self.link {
            let taken = *outcome.as_ref().unwrap_or(&0);
            link.lease.stream.restore(lent, taken);
        }
        outcome.map(|_| ())
    }

    /// Judges frame by frame; returns how many bytes are done with.
    fn frames(&mut self, bytes: &[u8]) -> Result<usize, End> {
        // `run..at` is judged, to be forwarded, and not yet copied.
        let (mut run, mut at) = (0, 0);
        while at < bytes.len() {
            if self.backend_rest.bytes > 0 {
                let count = self.backend_rest.bytes.min(bytes.len() - at);
                self.backend_rest.bytes -= count;
                if !self.backend_rest.forward {
                    self.client.out().extend_from_slice(&bytes[run..at]);
                    run = at + count;
                }
                at += count;
                continue;
            }
            let Some(header) = frame::backend(&bytes[at..]).map_err(|problem| broken(&problem))?
            else {
                break;
            };
            let here = (bytes.len() - at).min(header.size);
            if here < header.size && self.is_held_whole(header)? {
                break;
            }
            let frame = &bytes[at..at + here];
            let seen = match self.renumbered(header, frame) {
                Ok(Seen::AsItIs) => None,
                Ok(Seen::Made(made)) => Some(made),
                Ok(Seen::Later) => break,
                Err(end) => {
                    self.client.out().extend_from_slice(&bytes[run..at]);
                    return Err(end);
                }
            };
            let body = seen.as_deref().unwrap_or(frame);
            let body = &body[HEADER..];
            let (pass, event) = match self.judge_frame(header, body) {
                Ok(judged) => judged,
                Err(end) => {
                    // What came before it is the client's.
                    self.client.out().extend_from_slice(&bytes[run..at]);
                    return Err(self.last_words(end, body));
                }
            };
            let fatal = header.tag == b'E' && is_fatal(body);
            let forward = pass == Pass::Forward;
            let restated = forward.then(|| self.told_otherwise(header, body)).flatten();
            let told = restated.as_deref().or(seen.as_deref());
            if forward && told.is_none() {
                at += here;
            } else {
                self.client.out().extend_from_slice(&bytes[run..at]);
                let told = told.filter(|_| forward).unwrap_or_default();
                self.client.out().extend_from_slice(told);
                at += here;
                run = at;
            }
            self.backend_rest = Rest {
                bytes: header.size - here,
                forward,
            };
            if header.tag == b't' {
                self.keep_parameters(body);
            }
            if !matches!(event, Event::None) || self.pipeline.made_is_next() {
                self.client.out().extend_from_slice(&bytes[run..at]);
                run = at;
                self.happened(event, header, body)?;
            }
            if fatal && pass == Pass::Forward && self.backend_rest.bytes == 0 {
                // The server's own last words: it closes the connection now.
                return Err(End::BackendGone);
            }
        }
        self.client.out().extend_from_slice(&bytes[run..at]);
        Ok(at)
    }

    /// Whether a message that has not arrived whole waits until it has.
    fn is_held_whole(&self, header: Header) -> Result<bool, End> {
        let held = self.renumbers(header.tag) || !may_be_partial(header, self.compares());
        if held && header.tag != b'D' && header.size > LONGEST_DESCRIPTION {
            return Err(broken(&"a message is too long"));
        }
        Ok(held)
    }

    fn judge_frame(&mut self, header: Header, body: &[u8]) -> Result<(Pass, Event<Note>), End> {
        let judged = self.pipeline.replied(header.tag).map_err(|unexpected| {
            if header.tag == b'E' {
                End::BackendGone
            } else {
                broken(&unexpected)
            }
        })?;
        if let (Event::Ready(_), Err(problem)) = (&judged.1, Status::decode(body)) {
            return Err(broken(&problem));
        }
        // What the client is told about the transaction is decided here when the link is beside it.
        if let (Pass::Forward, Event::Ready(_)) = &judged
            && (self.deferred.is_some() || self.listening.is_some() || self.script.is_some())
        {
            return Ok((Pass::Swallow, judged.1));
        }
        if header.tag == b'C' && self.holds_end() {
            return Ok((Pass::Swallow, judged.1));
        }
        if header.tag == b'A' && self.mode == PoolMode::Transaction && !self.hears_there() {
            // The shared listeners hear it as well, for whom it is meant.
            return Ok((Pass::Swallow, judged.1));
        }
        Ok(judged)
    }

    /// Keeps the parameters that a described statement has, until its columns come.
    fn keep_parameters(&mut self, body: &[u8]) {
        let named = matches!(self.pipeline.notes().next(), Some(Note::Described(_)));
        self.half_described = named.then(|| body.into());
    }

    /// The end, with what the server says of it.
    fn last_words(&mut self, end: End, body: &[u8]) -> End {
        match end {
            End::BackendGone => self.goodbye(body),
            other @ (End::Client | End::Told(_)) => other,
        }
    }

    /// An error that nothing asked for: the server ends the connection, in a transaction of the client's or between two.
    fn goodbye(&mut self, body: &[u8]) -> End {
        let out = self.client.out();
        crate::wire::frontend::put(out, b'E', |out| out.extend_from_slice(body));
        End::BackendGone
    }

    fn happened(&mut self, event: Event<Note>, header: Header, body: &[u8]) -> Result<(), End> {
        if header.tag == b'C' && self.holds_end() {
            self.hold_end(body);
        }
        match event {
            Event::None => {}
            Event::Done(Request::Parse, Note::Parsed(prepared)) => {
                if let Some(link) = &mut self.link
                    && !prepared.unnamed
                {
                    link.parsing.retain(|id| *id != prepared.id);
                    let shape = prepared.told.as_parsed();
                    link.lease.statements.insert(prepared.id, shape);
                    link.lease.info.set_prepared(link.lease.statements.len());
                }
                self.confirm(&prepared);
            }
            Event::Done(Request::Describe, Note::Described(prepared)) => {
                let rows = (header.tag == b'T').then_some(body);
                let parameters = self.half_described.take();
                if let Some(parameters) = parameters {
                    self.described(&prepared, Some(&parameters), rows)?;
                }
            }
            Event::Done(Request::Describe, Note::DescribedPortal(prepared)) => {
                // Drivers may keep the first answer for all that follow.
                let first = header.tag == b'T' && !prepared.told.has_columns();
                if first {
                    self.described(&prepared, None, Some(body))?;
                }
            }
            Event::Done(Request::Execute, note) => {
                self.tally.queries += 1;
                let tag = command_tag(body).unwrap_or_default();
                if let (Note::Nothing, b'C') = (&note, header.tag) {
                    self.note_draw(&Effect::None, tag);
                }
                if let (Note::Executed(prepared), b'C') = (note, header.tag)
                    && let Some(statement) = prepared.statement()
                {
                    self.note_draw(&statement.effect, tag);
                    self.name_reset(&statement.effect);
                    self.took_effect(&statement.effect, tag);
                    let over = self.phase == Phase::Answering && self.pipeline.sync_is_next();
                    if over && chains(&statement.effect) {
                        self.begins_again_at_gate();
                    }
                }
            }
            Event::Done(..) => {}
            Event::Command => self.command(body),
            Event::Parameter => self.parameter(body),
            Event::CopyIn => {
                if !self.pipeline.owes_ready() {
                    self.phase = Phase::Batch;
                }
            }
            Event::Failed(notes) => {
                self.batch_failed(notes, notice::field(body, b'C').unwrap_or_default());
            }
            Event::Ready(_) => self.ready(body)?,
        }
        // An error made here skips what follows, which the poison behind it makes the backend do too.
        while let Some(note) = self.pipeline.take_made(self.client.out()) {
            self.was_given(note);
        }
        Ok(())
    }

    /// A frame as the client is to see it; `None`: as it is.
    fn told_otherwise(&mut self, header: Header, body: &[u8]) -> Option<Vec<u8>> {
        match header.tag {
            b'E' => {
                let otherwise = self.sentenced(body).or_else(|| self.guarded(body));
                let otherwise = otherwise.or_else(|| self.met_stray(self.link_shard()?, body));
                if let Some(words) = otherwise {
                    let mut made = Vec::new();
                    words.put(&mut made);
                    self.count_refusal(&words);
                    return Some(made);
                }
                let restated = self.restated(header, body);
                restated.or_else(|| self.unplaced(header, body))
            }
            b't' => self.without_computed(body),
            _ => None,
        }
    }

    /// ParameterDescription as the client knows its statement; `None`: as it is.
    fn without_computed(&self, body: &[u8]) -> Option<Vec<u8>> {
        let Some(Note::Described(prepared)) = self.pipeline.notes().next() else {
            return None;
        };
        let computing = prepared.computing.as_ref()?;
        let mut out = Vec::new();
        crate::wire::frontend::put(&mut out, b't', |out| {
            out.extend_from_slice(&computing.describe(body));
        });
        Some(out)
    }

    /// Whether the next description is of a statement that is compared from backend to backend, so that it is held whole.
    fn compares(&self) -> bool {
        let next = self.pipeline.notes().next();
        matches!(next, Some(Note::Described(_) | Note::DescribedPortal(_)))
    }

    /// A statement has been described: to the client, or only to us.
    fn described(
        &mut self,
        prepared: &Prepared,
        parameters: Option<&[u8]>,
        rows: Option<&[u8]>,
    ) -> Result<(), End> {
        let types = parameters.map(|body| prepared.told.parameters(body));
        let types = types.transpose().map_err(|problem| broken(&problem))?;
        if let Some(oids) = &self.snapshot.oids {
            let holding = rows.map(|rows| Holding::of(rows, oids)).transpose();
            let holding = holding.map_err(|problem| broken(&problem))?;
            prepared.told.hold(holding.unwrap_or_default());
        }
        let columns = prepared.told.columns(rows);
        let columns = columns.map_err(|problem| broken(&problem))?;
        if let Some(link) = &mut self.link {
            let shape = Shape {
                types,
                columns: Some(columns),
            };
            link.lease.statements.described(prepared.id, shape);
        }
        Ok(())
    }

    /// A statement of a simple query is complete.
    fn command(&mut self, body: &[u8]) {
        if self.hides_completion() {
            return;
        }
        self.tally.queries += 1;
        let tag = command_tag(body).unwrap_or_default();
        let Some((plan, complete)) = self.running.take() else {
            return self.note_draw(&Effect::None, tag);
        };
        if let Some(statement) = plan.statements.get(complete) {
            self.note_draw(&statement.effect, tag);
            self.name_reset(&statement.effect);
            self.took_effect(&statement.effect, tag);
            if complete + 1 == plan.statements.len() && chains(&statement.effect) {
                self.begins_again_at_gate();
            }
        }
        self.hide_behind(&plan, complete);
        self.running = Some((plan, complete + 1));
    }

    fn parameter(&mut self, body: &[u8]) {
        let Ok((name, value)) = parameter_status(body) else {
            return;
        };
        if let Some(link) = &mut self.link {
            link.lease.reported.set(name, value);
        }
        self.reported.set(name, value);
        self.context_stale = true;
        super::counting::note_reported(&self.info, name, value);
    }

    /// An error of the backend: the notes are of what failed, first, and of what it skips.
    fn batch_failed(&mut self, notes: Vec<Note>, sqlstate: &[u8]) {
        self.failed = true;
        self.tally.errors += 1;
        self.pending.clear();
        if let Some(link) = &mut self.link {
            link.parsing.clear();
            let unnamed_lost = notes
                .iter()
                .any(|note| matches!(note, Note::Parsed(p) if p.unnamed));
            if unnamed_lost {
                link.lease.unnamed = None;
            }
            for note in &notes {
                if let Note::Evicted(id) = note {
                    // The Close never ran.
                    link.lease.statements.spoil(*id);
                }
            }
            let used = match notes.first() {
                Some(Note::Uses(id)) => Some(*id),
                Some(Note::Described(prepared)) => Some(prepared.id),
                _ => None,
            };
            if let (Some(id), b"0A000") = (used, sqlstate) {
                // "cached plan must not change result type": the statement must be parsed anew.
                link.lease.statements.spoil(id);
            }
        }
        if let Some(deferred) = &mut self.deferred {
            deferred.fail();
        }
        self.several.batch_failed();
        self.forget_unconfirmed();
        if !self.pipeline.owes_ready() {
            // A Query in the batch was skipped with it, and has no answer of its own: Sync has.
            self.phase = Phase::Batch;
            self.running = None;
        } else if self.pipeline.sync_is_next() {
            // A Sync that would have been ignored had the COPY gone on.
            self.phase = Phase::Answering;
        }
        if self.phase != Phase::Answering {
            self.skip = true;
        }
    }

    fn ready(&mut self, body: &[u8]) -> Result<(), End> {
        let status = Status::decode(body).map_err(|problem| broken(&problem))?;
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.status = status;
        if self.phase != Phase::Answering {
            return Ok(()); // A Sync of ours in the middle of a batch.
        }
        let beside = matches!(link.hold, Hold::Aside | Hold::AsideTransaction);
        if self.script.is_some() {
            if let Some(deferred) = &mut self.deferred
                && beside
                && status == Status::Failed
            {
                deferred.fail();
            }
            self.statement_is_over();
            return Ok(());
        }
        match &mut self.deferred {
            Some(deferred) if beside => {
                if status == Status::Failed {
                    deferred.fail();
                }
                let shown = if deferred.failed() {
                    Status::Failed
                } else {
                    Status::Transaction
                };
                put_ready(self.client.out(), shown);
                self.batch_ends(shown);
            }
            Some(_) => {
                let shown = self.status();
                put_ready(self.client.out(), shown);
                self.batch_ends(shown);
            }
            None if self.listening.is_some() => {
                if status != Status::Idle {
                    put_ready(self.client.out(), status);
                    self.batch_ends(status);
                } else {
                    self.hold_ready();
                }
            }
            None => self.batch_ends(status),
        }
        Ok(())
    }
}

/// Whether another transaction begins where one ends.
fn chains(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Commit { chain: true } | Effect::Rollback { chain: true }
    )
}

/// Frames of these types need not be looked into: they pass on as they arrive, however long they are.
fn may_be_partial(header: Header, compares: bool) -> bool {
    match header.tag {
        b'D' | b'd' | b'V' | b'N' | b'A' => true,
        // What a statement was described as is kept.
        b'T' | b't' => !compares && header.size > LONGEST_WHOLE,
        // Whether it is the end of the connection is looked up in it.
        b'E' => header.size > LONGEST_WHOLE,
        _ => false,
    }
}

/// Whether an ErrorResponse ends the connection.
fn is_fatal(body: &[u8]) -> bool {
    let severity = notice::field(body, b'V').or_else(|| notice::field(body, b'S'));
    severity.is_some_and(|severity| severity == b"FATAL" || severity == b"PANIC")
}

/// Longest frame that is held until it is whole.
const LONGEST_WHOLE: usize = 64 * 1024;
/// Longest description of a statement: 65,535 parameters are 256 kB, 1,664 columns with the longest names less.
const LONGEST_DESCRIPTION: usize = 512 * 1024;
