//! INSERTs that leave ids to their tables' defaults: the values are had first, then the statement runs with them in its
//! text, as if the client had given them.
//!
//! What must stay true: each execution has values of its own; what cannot be had is refused before anything is written.
//! Numbers that are drawn so are known to no backend: `currval` and `lastval` are not asked there.

use super::{
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::Session,
};
use crate::{
    catalog::computed::{Source, uuid},
    entropy,
    inspect::AskError,
    plan::{
        Context, Numbers,
        cache::Planned,
        defaults::{Computes, Draft, asking},
    },
    sql::{
        code::words,
        statement::{Effect, PinReason},
    },
    wire::{
        backend::Status,
        frame::{Body, HEADER, Header},
        frontend::{Bind, put, put_bind},
        types::{Format, Oid},
    },
};
use smallvec::SmallVec;
use std::{collections::HashMap, sync::Arc, time::UNIX_EPOCH};

/// The most parameters of a statement.
const MOST_PARAMETERS: usize = 65_535;

/// What is left to be computed for each execution of a prepared statement, as parameters behind the client's own.
#[derive(Debug)]
pub(super) struct Computing {
    /// The client's own text.
    pub(super) asked: Box<[u8]>,
    needs: Vec<Source>,
    /// How many parameters are the client's.
    own: usize,
}

/// A statement with values, or places for them, in its text.
pub(super) struct Filled {
    pub(super) text: Vec<u8>,
    pub(super) planned: Planned,
}

impl Computing {
    /// The body of a ParameterDescription without those parameters that are not the client's.
    pub(super) fn describe(&self, body: &[u8]) -> Vec<u8> {
        let count = u16::try_from(self.own).unwrap_or(u16::MAX);
        let types = body.get(2..2 + 4 * self.own).unwrap_or_default();
        [&count.to_be_bytes(), types].concat()
    }

    /// How many parameters are computed.
    pub(super) fn count(&self) -> usize {
        self.needs.len()
    }
}

impl Session {
    /// What a text's only statement leaves to be computed, if the session may have it computed now.
    pub(super) fn computes<'p>(&self, planned: &'p Planned) -> Option<&'p Computes> {
        let [statement] = planned.plan.statements.as_slice() else {
            return None;
        };
        let computes = statement.computes.as_deref()?;
        let fits = self.status() != Status::Failed
            && statement.numbers == Numbers::Apart
            && !self.has_other_role()
            && self.database.coordinator.registry().is_ok();
        fits.then_some(computes)
    }

    /// Runs a Query whose only statement leaves values to be computed.
    pub(super) async fn query_computed(
        &mut self,
        text: &[u8],
        planned: &Planned,
    ) -> Result<(), Stop> {
        let drafted = self.computes(planned).and_then(|computes| {
            let text = std::str::from_utf8(text).ok()?;
            Some((text, computes, computes.draft(text, &planned.slots)?))
        });
        let Some((text, computes, draft)) = drafted else {
            return Err(reply::malformed().into());
        };
        let values = self.values(draft.needs()).await?;
        let filled = self.fill(draft.with_values(text, &values), &[], computes.ours());
        Box::pin(self.run_query(&filled.text, filled.planned)).await
    }

    /// A text whose only statement leaves values to be computed, with these; `None`: it leaves none.
    pub(super) async fn with_computed(
        &mut self,
        text: &str,
        planned: &Planned,
        types: &[Oid],
    ) -> Result<Option<Filled>, Stop> {
        let computes = self.computes(planned);
        let drafted = computes.and_then(|one| Some((one, one.draft(text, &planned.slots)?)));
        let Some((computes, draft)) = drafted else {
            return Ok(None);
        };
        let values = self.values(draft.needs()).await?;
        let text = draft.with_values(text, &values);
        Ok(Some(self.fill(text, types, computes.ours())))
    }

    /// Where a text's only statement asks for numbers that were drawn for the session here.
    pub(super) fn asks_for_ours(&self, text: &[u8], planned: &Planned) -> Option<Draft> {
        let [statement] = planned.plan.statements.as_slice() else {
            return None;
        };
        let asks = statement.effect == Effect::Pins(PinReason::Sequence);
        if !asks || !self.drew.has_ours() || self.status() == Status::Failed {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        asking(text, &planned.slots, &self.context.search_path)
    }

    /// Runs a Query that asks for numbers that were drawn for the session here.
    pub(super) async fn query_drawn(&mut self, text: &[u8], draft: &Draft) -> Result<(), Stop> {
        let values = self.values(draft.needs()).await?;
        let text = String::from_utf8_lossy(text);
        let filled = self.fill(draft.with_values(&text, &values), &[], &[]);
        Box::pin(self.run_query(&filled.text, filled.planned)).await
    }

    /// A statement that is parsed, with parameters in place of what is computed.
    pub(super) fn computing(
        &mut self,
        text: &[u8],
        types: &[Oid],
        planned: &Planned,
    ) -> Option<(Filled, Arc<Computing>)> {
        let asked = std::str::from_utf8(text).ok()?;
        let (draft, ours) = match self.computes(planned) {
            Some(computes) => (computes.draft(asked, &planned.slots)?, computes.ours()),
            None => (self.asks_for_ours(text, planned)?, &[][..]),
        };
        let own = types.len().max(usize::from(draft.parameters()));
        if own + draft.needs().len() > MOST_PARAMETERS {
            return None;
        }
        let filled = self.fill(draft.with_parameters(asked, own + 1), types, ours);
        let computing = Computing {
            asked: text.into(),
            needs: draft.needs().to_vec(),
            own,
        };
        Some((filled, Arc::new(computing)))
    }

    /// Plans a text in which what was left to be computed has its place.
    fn fill(&mut self, text: String, types: &[Oid], ours: &[String]) -> Filled {
        self.drew.rewrites();
        let ours = ours.to_vec();
        let digest = self.context.digest_with(&ours);
        let context = Context {
            computed: ours,
            digest,
            ..Context::clone(&self.context)
        };
        let text = text.into_bytes();
        let scratch = self.scratch.get_or_insert_default();
        let plans = &self.database.plans;
        let planned = plans.plan(&text, types, &context, &self.snapshot, scratch);
        Filled { text, planned }
    }

    /// The Bind message of a statement for which something is computed.
    pub(super) async fn filled(
        &mut self,
        prepared: &Prepared,
        bind: &Bind<'_>,
    ) -> Result<Option<Vec<u8>>, Stop> {
        match &prepared.computing {
            Some(computing) => Ok(Some(
                Box::pin(self.bound_with_values(computing, bind)).await?,
            )),
            None => Ok(None),
        }
    }

    /// The Bind of a statement with what is computed for it behind the client's parameters.
    async fn bound_with_values(
        &mut self,
        computing: &Computing,
        bind: &Bind<'_>,
    ) -> Result<Vec<u8>, Stop> {
        self.drew.rewrites();
        let failed = self.status() == Status::Failed;
        let values = if failed {
            // PostgreSQL says why not.
            vec![String::new(); computing.count()]
        } else {
            self.values(&computing.needs).await?
        };
        let count = bind.len() + values.len();
        let count = u16::try_from(count).map_err(|_too_many| reply::malformed())?;
        let mut tail = count.to_be_bytes().to_vec();
        for (format, _) in bind.parameters() {
            let format: u16 = match format {
                Format::Text => 0,
                Format::Binary => 1,
            };
            tail.extend_from_slice(&format.to_be_bytes());
        }
        tail.extend(std::iter::repeat_n(0, 2 * values.len()));
        tail.extend_from_slice(&count.to_be_bytes());
        let own = bind.parameters().map(|(_, value)| value);
        for value in own.chain(values.iter().map(|value| Some(value.as_bytes()))) {
            let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
            tail.extend_from_slice(&length.to_be_bytes());
            tail.extend_from_slice(value.unwrap_or_default());
        }
        tail.extend_from_slice(bind.raw_results());
        let mut frame = Vec::with_capacity(tail.len() + 64);
        put_bind(&mut frame, bind.portal, bind.statement, &tail);
        Ok(frame)
    }

    /// Whether a schema change may have a sequence begin anew: not while proxies hold numbers that were drawn ahead, nor
    /// where nobody would notice a number that is given twice.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn check_restart(&self, command: &str, text: &str) -> Result<(), Stop> {
        let has = |wanted: &[&str]| words(text).any(|word| wanted.contains(&word.as_str()));
        if !has(&["restart", "increment", "setval"]) {
            return Ok(());
        }
        // As for sessions of PostgreSQL: what others have cached they still give.
        self.database.ids.forget();
        if has(&["restart"]) && self.database.settings.sequence_block > 1 {
            return Err(reply::numbers::restarts_sequence(
                "proxies hold numbers that they drew ahead (sequence_block)",
            )
            .into());
        }
        let truncates = command == "TRUNCATE" || command == "TRUNCATE TABLE";
        // What an open transaction has changed before may hide it.
        let known = self.database.snapshot.load();
        let mut unchecked = known.tables.iter().filter(|_| !truncates);
        let named = unchecked.any(|(table, known)| {
            let sequences = known.effects.unchecked();
            let sequences: Vec<String> = sequences.map(|name| name.name.to_lowercase()).collect();
            let table = table.name.to_lowercase();
            !sequences.is_empty()
                && words(text).any(|word| word == table || sequences.contains(&word))
        });
        if named {
            return Err(reply::numbers::restarts_sequence("its numbers must be unique over all shards, and no shard knows those of the others").into());
        }
        Ok(())
    }

    /// An error without its place, when that is one in a text which the client did not write.
    pub(super) fn unplaced(&self, header: Header, body: &[u8]) -> Option<Vec<u8>> {
        let whole = body.len() + HEADER == header.size;
        if !whole || !self.drew.has_rewritten() {
            return None;
        }
        let mut fields = Body::new(body);
        let mut out = Vec::new();
        put(&mut out, b'E', |out| {
            while let Ok(code @ 1..) = fields.byte() {
                let Ok(text) = fields.cstr() else { break };
                if code != b'P' {
                    out.push(code);
                    out.extend_from_slice(text);
                    out.push(0);
                }
            }
            out.push(0);
        });
        Some(out)
    }

    /// A value of each of these sources, in their order.
    async fn values(&mut self, needs: &[Source]) -> Result<Vec<String>, Stop> {
        let mut places: HashMap<&Source, SmallVec<[usize; 1]>> = HashMap::new();
        let mut sources: Vec<&Source> = Vec::new();
        for (at, source) in needs.iter().enumerate() {
            let of = places.entry(source).or_default();
            if of.is_empty() {
                sources.push(source);
            }
            of.push(at);
        }
        let mut values = vec![String::new(); needs.len()];
        for source in sources {
            let own = places.remove(source).unwrap_or_default();
            let given = self.values_of(source, own.len()).await?;
            for (at, value) in own.into_iter().zip(given) {
                values[at] = value;
            }
        }
        Ok(values)
    }

    async fn values_of(&mut self, source: &Source, count: usize) -> Result<Vec<String>, Stop> {
        let database = Arc::clone(&self.database);
        let registry = database.coordinator.registry();
        let registry = registry.map_err(|problem| reply::numbers::no_numbers(&problem))?;
        let numbers = match source {
            Source::Uuid(version) => {
                let since = self.shared.clock.wall().duration_since(UNIX_EPOCH);
                let since = since.map_or(0, |since| since.as_millis());
                let since = u64::try_from(since).unwrap_or(u64::MAX);
                let make = || uuid(*version, entropy::bytes(), since);
                return Ok((0..count).map(|_| make()).collect());
            }
            Source::Id => database.ids.next(registry, count).await,
            Source::Sequence(sequence) => {
                let role = &self.user.backend.user;
                let drawn = database.ids.draw(registry, sequence, role, count).await;
                if let Ok([.., last]) = drawn.as_deref() {
                    self.drew.ours(&sequence.name, *last);
                }
                drawn
            }
            Source::Drawn(sequence) => {
                let last = self.drew.last(sequence.as_ref());
                let last = last.ok_or_else(reply::numbers::number_of_another)?;
                Ok(vec![last; count])
            }
        };
        match numbers {
            Ok(numbers) => Ok(numbers.iter().map(i64::to_string).collect()),
            Err(AskError::Server { sqlstate, message }) => {
                Err(wording::session::numbers::said_of_numbers(&sqlstate, &message).into())
            }
            Err(problem) => Err(reply::numbers::no_numbers(&problem).into()),
        }
    }
}

impl Prepared {
    /// Of the types of all its parameters those that are the client's.
    pub(super) fn own_types<'t>(&self, types: &'t [u8]) -> &'t [u8] {
        let computing = self.computing.as_ref();
        let own = computing.and_then(|computing| types.get(..4 * computing.own));
        own.unwrap_or(types)
    }

    /// The text as the client wrote it.
    pub(super) fn asked(&self) -> &[u8] {
        match &self.computing {
            Some(computing) => &computing.asked,
            None => &self.text,
        }
    }
}
