//! Numbers of a database's own types on their way: each shard has its own, clients see the home shard's.
//!
//! What must stay true: a type whose name is not known is told as `unknown`, never as another; where the shards' numbers
//! agree nothing is looked at. A session that has chosen one shard (`shardway.shard`) sees that shard's numbers, which are
//! those of the catalogs that it reads.

use super::{
    prepared::{Prepared, Told},
    reply::session as reply,
    request::Stop,
    session::{End, Note, Portal, Session, broken},
    spread::answers::Answer,
};
use crate::{
    catalog::{
        oids::{Holds, Oids, ShardOids},
        shard::ShardId,
    },
    plan::{Override, spread::Shares},
    protocol::pipeline::{Origin, Request},
    wire::{
        frame::{Body, DecodeError, HEADER, Header},
        frontend::{Bind, Named, put_named},
        notice::Words,
        types::{Oid, UNKNOWN},
    },
};
use std::sync::Arc;

/// What a session has found out about types that it was not told of.
#[derive(Debug, Default)]
pub(super) struct Looking {
    /// To be looked for on the servers before the answer goes on.
    wanted: Option<Oid>,
    /// Looked for, and maybe not found.
    looked: Vec<Oid>,
    /// Whether a portal gives arrays of own types in binary.
    pub(super) arrays: bool,
}

impl Looking {
    /// The servers have been looked at since.
    pub(super) fn forget(&mut self) {
        self.looked.clear();
    }
}

/// A message, as the client sees it.
pub(super) enum Seen {
    AsItIs,
    Made(Vec<u8>),
    /// A type must be looked for first: [`Session::look_for_types`].
    Later,
}

/// Why a description cannot be told as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unseen {
    /// This type's name is not known.
    Type(Oid),
    /// Its values hold numbers that are not told as clients see them.
    InBinary,
    Malformed,
}

impl From<DecodeError> for Unseen {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// Columns whose values hold numbers when they are in binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// Their places, and what they hold.
    columns: Box<[(u16, Holds)]>,
}

impl Holding {
    /// Of a RowDescription as clients see it.
    pub(super) fn of(columns: &[u8], oids: &Oids) -> Result<Self, DecodeError> {
        let mut body = Body::new(columns);
        let mut found = Vec::new();
        for at in 0..body.u16()? {
            body.cstr()?;
            body.bytes(6)?;
            let holds = oids.holds(body.u32()?);
            body.bytes(8)?;
            if holds != Holds::Nothing {
                found.push((at, holds));
            }
        }
        Ok(Self {
            columns: found.into(),
        })
    }

    /// The most that a value asked for in binary holds; `formats`: as they stand in Bind, with their count.
    fn in_formats(&self, formats: &[u8]) -> Holds {
        let codes = formats.get(2..).unwrap_or_default();
        let is_binary = |at: u16| {
            let at = if codes.len() == 2 {
                0
            } else {
                usize::from(at) * 2
            };
            codes.get(at..at + 2) == Some(&[0, 1])
        };
        let mut found = Holds::Nothing;
        for (_, holds) in self.columns.iter().filter(|(at, _)| is_binary(*at)) {
            match holds {
                Holds::Within => return Holds::Within,
                Holds::Element => found = Holds::Element,
                Holds::Nothing => {}
            }
        }
        found
    }

    /// Puts the numbers that clients see into a DataRow's arrays. A value in text is left alone: it begins with no zero.
    pub(super) fn renumber(&self, row: &mut [u8], of: &ShardOids) -> Result<(), DecodeError> {
        let mut columns = self.columns.iter().peekable();
        let length = row.len();
        let mut body = Body::new(row);
        let mut places = smallvec::SmallVec::<[usize; 4]>::new();
        for at in 0..body.u16()? {
            let value = body.value()?;
            let end = length - body.rest().len();
            if columns.next_if(|(column, _)| *column == at).is_some()
                && let Some(value) = value
                && value.first() == Some(&0)
                && value.len() >= 12
            {
                places.push(end - value.len() + 8);
            }
        }
        for place in places {
            replace(row, place, |oid| of.seen(oid).unwrap_or(UNKNOWN))?;
        }
        Ok(())
    }
}

fn replace(bytes: &mut [u8], at: usize, with: impl FnOnce(Oid) -> Oid) -> Result<(), DecodeError> {
    let place = bytes.get_mut(at..at + 4).ok_or(DecodeError)?;
    let mut oid = [0; 4];
    oid.copy_from_slice(place);
    place.copy_from_slice(&with(Oid::from_be_bytes(oid)).to_be_bytes());
    Ok(())
}

/// What stands in Parse, as clients see it, in a shard's own numbers.
pub(super) fn own_types(raw: &mut [u8], of: &ShardOids) {
    for at in (0..raw.len()).step_by(4) {
        // What is shorter than a number is none.
        let _short = replace(raw, at, |oid| of.own(oid));
    }
}

/// A ParameterDescription's numbers as clients see them, without their count.
fn seen_types(raw: &mut [u8], of: &ShardOids, looked: &[Oid]) -> Result<(), Unseen> {
    for at in (0..raw.len()).step_by(4) {
        let mut unseen = None;
        replace(raw, at, |oid| seen(oid, of, looked, &mut unseen))?;
        if let Some(oid) = unseen {
            return Err(Unseen::Type(oid));
        }
    }
    Ok(())
}

/// A RowDescription's body as clients see it: the numbers of types, and of tables whose columns stand as on the home shard.
pub(super) fn seen_columns(body: &mut [u8], of: &ShardOids, looked: &[Oid]) -> Result<(), Unseen> {
    let count = Body::new(body).u16()?;
    let mut at = 2;
    for _ in 0..count {
        at += Body::new(body.get(at..).unwrap_or_default()).cstr()?.len() + 1;
        let mut known = true;
        replace(body, at, |oid| {
            let seen = if oid == 0 { Some(0) } else { of.relation(oid) };
            known = seen.is_some();
            seen.unwrap_or(0)
        })?;
        if !known && let Some(number) = body.get_mut(at + 4..at + 6) {
            number.fill(0);
        }
        let mut unseen = None;
        replace(body, at + 6, |oid| seen(oid, of, looked, &mut unseen))?;
        if let Some(oid) = unseen {
            return Err(Unseen::Type(oid));
        }
        at += 18;
    }
    if at > body.len() {
        return Err(Unseen::Malformed);
    }
    Ok(())
}

fn seen(oid: Oid, of: &ShardOids, looked: &[Oid], unseen: &mut Option<Oid>) -> Oid {
    of.seen(oid).unwrap_or_else(|| {
        if !looked.contains(&oid) {
            *unseen = Some(oid);
        }
        UNKNOWN
    })
}

impl Session {
    /// A shard's numbers, when they are others than the client sees.
    pub(super) fn oids_of(&self, shard: ShardId) -> Option<&ShardOids> {
        if matches!(self.context.pinned, Some(Override::Shard(_))) {
            return None;
        }
        self.snapshot.oids.as_deref()?.of_shard(shard)
    }

    /// The link's, as above.
    pub(super) fn oids_here(&self) -> Option<&ShardOids> {
        self.oids_of(self.link.as_ref()?.shard)
    }

    /// Whether messages of this type are rewritten, so that they are held whole.
    pub(super) fn renumbers(&self, tag: u8) -> bool {
        match tag {
            b'T' | b't' => self.oids_here().is_some(),
            b'D' => self.looking.arrays && self.oids_here().is_some(),
            _ => false,
        }
    }

    /// A message of the link as the client sees it.
    ///
    /// # Errors
    /// It cannot be told: the session is over.
    pub(super) fn renumbered(&mut self, header: Header, frame: &[u8]) -> Result<Seen, End> {
        if !self.renumbers(header.tag) {
            return Ok(Seen::AsItIs);
        }
        match self.made_of(header, frame) {
            Ok(Some(made)) => Ok(Seen::Made(made)),
            Ok(None) => Ok(Seen::AsItIs),
            Err(Unseen::Type(oid)) => {
                self.looking.wanted = Some(oid);
                Ok(Seen::Later)
            }
            Err(Unseen::InBinary) => {
                let words = Words::from(reply::rows::numbers_in_binary());
                Err(End::Told(Box::new(words.fatal())))
            }
            Err(Unseen::Malformed) => Err(broken(&"a description is malformed")),
        }
    }

    fn made_of(&self, header: Header, frame: &[u8]) -> Result<Option<Vec<u8>>, Unseen> {
        let Some(of) = self.oids_here() else {
            return Ok(None);
        };
        let mut made = frame.to_vec();
        let body = made.get_mut(HEADER..).unwrap_or_default();
        let looked = &self.looking.looked;
        match header.tag {
            b'T' => {
                seen_columns(body, of, looked)?;
                self.judge_cursor(body)?;
            }
            b't' => seen_types(body.get_mut(2..).unwrap_or_default(), of, looked)?,
            _ => {
                let Some(Note::Executed(prepared)) = self.pipeline.notes().next() else {
                    return Ok(None);
                };
                let Some(holding) = prepared.told.holding() else {
                    return Ok(None);
                };
                holding.renumber(body, of)?;
            }
        }
        Ok(Some(made))
    }

    /// A cursor that gives its rows in binary, read by a Query: nobody has judged it.
    fn judge_cursor(&self, columns: &[u8]) -> Result<(), Unseen> {
        let (Some(oids), true) = (self.snapshot.oids.as_deref(), self.running.is_some()) else {
            return Ok(());
        };
        let holding = Holding::of(columns, oids)?;
        match holding.in_formats(&formats_of(columns)) {
            Holds::Nothing => Ok(()),
            Holds::Element | Holds::Within => Err(Unseen::InBinary),
        }
    }

    /// Whether an answer waits for a look at the servers.
    pub(super) fn must_look_for_types(&self) -> bool {
        self.looking.wanted.is_some()
    }

    /// Looks for a type that was made just now. What is not found then, because its transaction is open, is told as
    /// `unknown`.
    pub(super) async fn look_for_types(&mut self) {
        let Some(oid) = self.looking.wanted.take() else {
            return;
        };
        self.look_for(oid).await;
    }

    async fn look_for(&mut self, oid: Oid) {
        let settings = self.shared.settings.load_full();
        self.marks.waits();
        self.database.learn(&settings).await;
        let found = self.database.snapshot.load();
        if self.snapshot.oids != found.oids {
            let mut snapshot = (*self.snapshot).clone();
            snapshot.oids.clone_from(&found.oids);
            self.snapshot = Arc::new(snapshot);
        }
        self.looking.looked.push(oid);
    }

    /// Types that a client declares must be known before a shard is told of them.
    pub(super) async fn know_types(&mut self, types: &[Oid]) {
        let unknown = |session: &Self| {
            let oids = session.snapshot.oids.as_deref()?;
            let own = types.iter().copied().find(|oid| !oids.has(*oid))?;
            (!session.looking.looked.contains(&own)).then_some(own)
        };
        if let Some(oid) = unknown(self) {
            Box::pin(self.look_for(oid)).await;
        }
    }

    /// A shard's RowDescription as the client sees it.
    pub(super) async fn columns_seen(&mut self, shard: ShardId, body: &mut Vec<u8>) {
        let own = body.clone();
        for _ in 0..MOST_LOOKS {
            let Some(of) = self.oids_of(shard) else {
                return;
            };
            let Err(Unseen::Type(oid)) = seen_columns(body, of, &self.looking.looked) else {
                return;
            };
            body.clone_from(&own);
            self.look_for(oid).await;
        }
    }

    /// Types as a shard says them, without their count, as the client sees them.
    pub(super) async fn types_seen(&mut self, shard: ShardId, raw: &mut Vec<u8>) {
        let own = raw.clone();
        for _ in 0..MOST_LOOKS {
            let Some(of) = self.oids_of(shard) else {
                return;
            };
            let Err(Unseen::Type(oid)) = seen_types(raw, of, &self.looking.looked) else {
                return;
            };
            raw.clone_from(&own);
            self.look_for(oid).await;
        }
    }

    /// Types as the client sees them, in a shard's numbers.
    pub(super) fn types_for(&self, shard: ShardId, raw: &[u8]) -> Vec<u8> {
        let mut raw = raw.to_vec();
        if let Some(of) = self.oids_of(shard) {
            own_types(&mut raw, of);
        }
        raw
    }

    /// What shards have answered to a write, in their order, as the client sees it.
    ///
    /// # Errors
    /// Values in binary hold numbers in places that are not known.
    pub(super) async fn answers_seen(
        &mut self,
        shares: &Shares,
        answers: &mut [Answer],
    ) -> Result<(), Stop> {
        for ((shard, _), answer) in shares.shards.iter().zip(answers) {
            let Some(columns) = answer.columns_mut() else {
                continue;
            };
            self.columns_seen(*shard, columns).await;
            let (Some(oids), Some(of)) = (self.snapshot.oids.as_deref(), self.oids_of(*shard))
            else {
                continue;
            };
            let holding = Holding::of(columns, oids).map_err(|_malformed| reply::malformed())?;
            match holding.in_formats(&formats_of(columns)) {
                Holds::Nothing => {}
                Holds::Element => answer.rows_mut(|row| {
                    // What is malformed is the client's to notice.
                    let _same = holding.renumber(row, of);
                }),
                Holds::Within => return Err(reply::rows::numbers_in_binary().into()),
            }
        }
        Ok(())
    }

    /// Before a Bind whose result is in binary goes to the link: arrays are rewritten on their way, and what else holds
    /// numbers is refused.
    ///
    /// # Errors
    /// It is refused.
    pub(super) async fn judge_binary(
        &mut self,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
    ) -> Result<(), Stop> {
        let formats = bind.raw_results();
        let asks = formats.get(2..).is_some_and(|codes| codes.contains(&1));
        if !asks || self.oids_here().is_none() {
            return Ok(());
        }
        if prepared.told.holding().is_none() {
            let Some(link) = &mut self.link else {
                return Ok(());
            };
            let name = prepared.server_name();
            let name = Named::Statement(name.as_bytes());
            put_named(link.lease.stream.out(), b'D', name);
            let note = Note::Described(Arc::clone(prepared));
            self.pipeline
                .asked(Request::Describe, Origin::Injected, note);
            self.settle().await?;
        }
        if self.skip {
            return Ok(());
        }
        self.judge_formats(&prepared.told, formats)
    }

    /// As [`Session::judge_binary`], of a statement that is computed over rows of several shards; `columns`: as clients see
    /// them.
    ///
    /// # Errors
    /// It is refused.
    pub(super) fn judge_answer(
        &mut self,
        told: &Told,
        columns: &[u8],
        bind: &Bind<'_>,
    ) -> Result<(), Stop> {
        if self.oids_here().is_none() {
            return Ok(());
        }
        if let Some(oids) = self.snapshot.oids.as_deref() {
            let holding = Holding::of(columns, oids).map_err(|_malformed| reply::malformed())?;
            told.hold(holding);
        }
        self.judge_formats(told, bind.raw_results())
    }

    /// As [`Session::judge_binary`], of an answer that is put together of several shards' rows as they come.
    ///
    /// # Errors
    /// It is refused.
    pub(super) fn judge_parts(&self, columns: &[u8], formats: &[u8]) -> Result<(), Stop> {
        let Some(oids) = self.snapshot.oids.as_deref() else {
            return Ok(());
        };
        let holding = Holding::of(columns, oids).map_err(|_malformed| reply::malformed())?;
        match holding.in_formats(formats) {
            Holds::Nothing => Ok(()),
            Holds::Element | Holds::Within => Err(reply::rows::numbers_in_binary().into()),
        }
    }

    fn judge_formats(&mut self, told: &Told, formats: &[u8]) -> Result<(), Stop> {
        let holding = told.holding();
        match holding.map_or(Holds::Nothing, |holding| holding.in_formats(formats)) {
            Holds::Nothing => Ok(()),
            Holds::Element => {
                self.looking.arrays = true;
                Ok(())
            }
            Holds::Within => Err(reply::rows::numbers_in_binary().into()),
        }
    }

    /// After the Bind has gone to the link: its rows are found by their statement.
    pub(super) fn note_arrays(&mut self, portal: &[u8], prepared: &Arc<Prepared>) {
        if self.looking.arrays {
            let there = Portal::There(Arc::clone(prepared));
            self.portals.insert(portal.into(), there);
        }
    }
}

/// The formats that a RowDescription tells, as they stand in Bind.
fn formats_of(columns: &[u8]) -> Vec<u8> {
    let mut body = Body::new(columns);
    let mut formats = columns.get(..2).unwrap_or_default().to_vec();
    for _ in 0..body.u16().unwrap_or(0) {
        let format = body.cstr().and_then(|_name| body.bytes(18));
        formats.extend_from_slice(
            format
                .ok()
                .and_then(|entry| entry.get(16..))
                .unwrap_or(&[0, 0]),
        );
    }
    formats
}

/// As many types of one statement are looked for.
const MOST_LOOKS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::oids::Observed;

    fn oids() -> Arc<Oids> {
        let named = |name: &str| ("public".to_owned(), name.to_owned());
        let one = |mood: Oid, table: Oid| Observed {
            types: [
                (named("mood"), (mood, Holds::Nothing)),
                (named("mood[]"), (mood + 1, Holds::Element)),
                (named("pair"), (mood + 2, Holds::Within)),
            ]
            .into(),
            relations: [(named("t"), (table, String::new()))].into(),
        };
        let (home, there) = (one(20_000, 20_100), one(30_000, 30_100));
        Oids::of(&[Some(&home), Some(&there)], ShardId(0)).unwrap()
    }

    fn description(columns: &[(&str, Oid, u16, Oid)]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for (name, table, number, oid) in columns {
            body.extend(name.as_bytes());
            body.push(0);
            body.extend(table.to_be_bytes());
            body.extend(number.to_be_bytes());
            body.extend(oid.to_be_bytes());
            body.extend([0; 8]);
        }
        body
    }

    #[test]
    fn descriptions_are_told_in_the_home_shards_numbers() {
        let oids = oids();
        let of = oids.of_shard(ShardId(1)).unwrap();
        let mut body = description(&[
            ("a", 30_100, 2, 30_000),
            ("b", 30_101, 1, 23),
            ("c", 0, 0, 30_002),
        ]);
        seen_columns(&mut body, of, &[]).unwrap();
        let expected = description(&[
            ("a", 20_100, 2, 20_000),
            ("b", 0, 0, 23),
            ("c", 0, 0, 20_002),
        ]);
        assert_eq!(body, expected);
        let mut raw = [0x75, 0x30, 0, 0].map(|_: u8| 0);
        raw.copy_from_slice(&30_001_u32.to_be_bytes());
        seen_types(&mut raw, of, &[]).unwrap();
        assert_eq!(raw, 20_001_u32.to_be_bytes());
        own_types(&mut raw, of);
        assert_eq!(raw, 30_001_u32.to_be_bytes());
    }

    #[test]
    fn a_type_without_a_name_is_looked_for_and_then_told_as_unknown() {
        let oids = oids();
        let of = oids.of_shard(ShardId(1)).unwrap();
        let mut body = description(&[("a", 0, 0, 20_000)]);
        assert_eq!(seen_columns(&mut body, of, &[]), Err(Unseen::Type(20_000)));
        let mut body = description(&[("a", 0, 0, 20_000)]);
        seen_columns(&mut body, of, &[20_000]).unwrap();
        assert_eq!(body, description(&[("a", 0, 0, UNKNOWN)]));
        assert_eq!(
            seen_columns(&mut [0, 1, b'a'], of, &[]),
            Err(Unseen::Malformed)
        );
    }

    #[test]
    fn arrays_in_binary_are_renumbered_in_their_head() {
        let oids = oids();
        let of = oids.of_shard(ShardId(1)).unwrap();
        let seen = description(&[("a", 0, 0, 23), ("b", 0, 0, 20_001), ("c", 0, 0, 20_001)]);
        let holding = Holding::of(&seen, &oids).unwrap();
        let array = |oid: Oid| {
            let mut value = vec![0, 0, 0, 1, 0, 0, 0, 0];
            value.extend(oid.to_be_bytes());
            value.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2]);
            value.extend(b"ok");
            value
        };
        let row = |array: Vec<u8>| {
            let mut row = vec![0, 3, 0, 0, 0, 1, b'7'];
            row.extend(u32::try_from(array.len()).unwrap().to_be_bytes());
            row.extend(array);
            row.extend([0, 0, 0, 12]);
            row.extend(b"{ok,ok,okay}");
            row
        };
        let mut found = row(array(30_000));
        holding.renumber(&mut found, of).unwrap();
        assert_eq!(found, row(array(20_000)));
    }

    #[test]
    fn what_a_result_holds_is_asked_of_its_binary_columns() {
        let seen = description(&[
            ("a", 0, 0, 20_002),
            ("b", 0, 0, 20_001),
            ("c", 0, 0, 20_000),
        ]);
        let holding = Holding::of(&seen, &oids()).unwrap();
        assert_eq!(holding.in_formats(&[0, 0]), Holds::Nothing);
        assert_eq!(holding.in_formats(&[0, 1, 0, 1]), Holds::Within);
        assert_eq!(
            holding.in_formats(&[0, 3, 0, 0, 0, 1, 0, 1]),
            Holds::Element
        );
        assert_eq!(
            holding.in_formats(&[0, 3, 0, 0, 0, 0, 0, 1]),
            Holds::Nothing
        );
    }
}
