//! Hot path: a backend's answer on its way to the client. Runs of frames are copied as slices; per row it costs one
//! header and one match.

use super::{
    link::Hold,
    reply::session as reply,
    session::{End, Note, Phase, Rest, Session, broken},
};
use crate::{
    protocol::pipeline::{Event, Pass, Request},
    wire::{
        backend::{Status, command_tag, parameter_status, put_ready},
        frame::{self, HEADER, Header},
        notice::{self, Notice},
    },
};

impl Session {
    /// Passes on what the backend has answered so far.
    pub(super) fn answer(&mut self) -> Result<(), End> {
        let Some(link) = &mut self.link else { return Ok(()) };
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
            let Some(header) = frame::backend(&bytes[at..]).map_err(|problem| broken(&problem))? else { break };
            let here = (bytes.len() - at).min(header.size);
            if here < header.size && !may_be_partial(header) {
                if header.size > LONGEST_WHOLE {
                    return Err(broken(&"a message is too long"));
                }
                break;
            }
            let body = &bytes[at + HEADER..at + here];
            let (pass, event) = self.judge_frame(header, body)?;
            let forward = pass == Pass::Forward;
            if forward {
                at += here;
            } else {
                self.client.out().extend_from_slice(&bytes[run..at]);
                at += here;
                run = at;
            }
            self.backend_rest = Rest { bytes: header.size - here, forward };
            if !matches!(event, Event::None) || self.pipeline.made_is_next() {
                self.client.out().extend_from_slice(&bytes[run..at]);
                run = at;
                self.happened(event, header, body)?;
            }
        }
        self.client.out().extend_from_slice(&bytes[run..at]);
        Ok(at)
    }

    fn judge_frame(&mut self, header: Header, body: &[u8]) -> Result<(Pass, Event<Note>), End> {
        let judged = self.pipeline.replied(header.tag).map_err(|unexpected| {
            if header.tag == b'E' { self.goodbye(body) } else { broken(&unexpected) }
        })?;
        // What the client is told about the transaction is decided here when the link is beside it.
        if let (Pass::Forward, Event::Ready(_)) = &judged
            && self.deferred.is_some()
        {
            return Ok((Pass::Swallow, judged.1));
        }
        Ok(judged)
    }

    /// An error that nothing asked for: the server ends the connection, in a transaction of the client's or between two.
    fn goodbye(&mut self, body: &[u8]) -> End {
        let out = self.client.out();
        crate::wire::frontend::put(out, b'E', |out| out.extend_from_slice(body));
        End::BackendGone
    }

    fn happened(&mut self, event: Event<Note>, header: Header, body: &[u8]) -> Result<(), End> {
        match event {
            Event::None => {}
            Event::Done(Request::Parse, Note::Parsed(prepared)) => {
                if let Some(link) = &mut self.link
                    && !prepared.unnamed
                {
                    link.parsing.retain(|id| *id != prepared.id);
                    link.lease.statements.insert(prepared.id);
                    link.lease.info.set_prepared(link.lease.statements.len());
                }
                self.confirm(&prepared);
            }
            Event::Done(Request::Execute, note) => {
                self.tally.queries += 1;
                if let (Note::Executed(prepared), b'C') = (note, header.tag)
                    && let Some(statement) = prepared.statement()
                {
                    self.took_effect(&statement.effect, command_tag(body).unwrap_or_default());
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
            Event::Failed(notes) => self.batch_failed(notes),
            Event::Ready(_) => self.ready(body)?,
        }
        if self.pipeline.made_is_next() {
            // An error made here skips what follows, which the poison behind it makes the backend do too.
            self.pipeline.take_made(self.client.out());
        }
        Ok(())
    }

    /// A statement of a simple query is complete.
    fn command(&mut self, body: &[u8]) {
        self.tally.queries += 1;
        let Some((plan, complete)) = self.running.take() else { return };
        if let Some(statement) = plan.statements.get(complete) {
            self.took_effect(&statement.effect, command_tag(body).unwrap_or_default());
        }
        self.running = Some((plan, complete + 1));
    }

    fn parameter(&mut self, body: &[u8]) {
        let Ok((name, value)) = parameter_status(body) else { return };
        if let Some(link) = &mut self.link {
            link.lease.reported.set(name, value);
        }
        self.reported.set(name, value);
    }

    fn batch_failed(&mut self, notes: Vec<Note>) {
        self.failed = true;
        self.tally.errors += 1;
        self.pending.clear();
        if let Some(link) = &mut self.link {
            link.parsing.clear();
            let unnamed_lost = notes.iter().any(|note| matches!(note, Note::Parsed(p) if p.unnamed));
            if unnamed_lost {
                link.lease.unnamed = None;
            }
            if notes.iter().any(|note| matches!(note, Note::Evicted)) {
                // The Close never ran: which statements the backend has is not known any more.
                link.lease.statements.clear();
                link.opaque = true;
            }
            if link.hold == Hold::Aside
                && let Some(deferred) = &mut self.deferred
            {
                deferred.fail();
            }
        }
        self.forget_unconfirmed();
        if !self.pipeline.owes_ready() {
            self.skip = true;
        }
    }

    fn ready(&mut self, body: &[u8]) -> Result<(), End> {
        let status = Status::decode(body).map_err(|problem| broken(&problem))?;
        let Some(link) = &mut self.link else { return Ok(()) };
        link.status = status;
        if self.phase != Phase::Answering {
            return Ok(()); // A Sync of ours in the middle of a batch.
        }
        let beside = matches!(link.hold, Hold::Aside | Hold::AsideTransaction);
        match &mut self.deferred {
            Some(deferred) if beside => {
                if status == Status::Failed {
                    deferred.fail();
                }
                let shown = if deferred.failed() { Status::Failed } else { Status::Transaction };
                put_ready(self.client.out(), shown);
                self.batch_ends(shown);
            }
            Some(_) => {
                let shown = self.status();
                put_ready(self.client.out(), shown);
                self.batch_ends(shown);
            }
            None => self.batch_ends(status),
        }
        Ok(())
    }
}

/// Frames of these types need not be looked into: they pass on as they arrive, however long they are.
fn may_be_partial(header: Header) -> bool {
    matches!(header.tag, b'D' | b'd' | b'T' | b't' | b'V' | b'N' | b'A' | b'E')
}

/// Longest frame that is held until it is whole.
const LONGEST_WHOLE: usize = 64 * 1024;

/// A server's error, as much of it as can be said again.
pub(super) fn server_error(body: &[u8]) -> Notice {
    let text = |code| notice::field(body, code).map(|text| String::from_utf8_lossy(text).into_owned());
    reply::passed_on(text(b'C'), text(b'M'), text(b'D'), text(b'H'))
}
