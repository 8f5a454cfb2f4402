//! Messages of a stream: which rows they change on which destinations.
//!
//! What must stay true: a row whose key goes from one destination to another goes from the one and comes to the other; one
//! that nobody is given changes nothing; what is not understood ends the stream; a value that a row does not have yet, as its
//! column was added later, is one that was not sent.

use super::{FenceColumns, Form, Known, Lsn, Reader, ReplicationError, StreamError, Wish};
use crate::{
    replication::{
        batch::{Added, Kind},
        judge::Within,
        tables::{Age, Changed, Goes, Table},
    },
    wire::{
        pgoutput::{Change, Oids, Old, Relation, Tuple, Value},
        replication::Streamed,
        types::{Format, Oid},
    },
};
use smallvec::SmallVec;
use std::sync::Arc;

/// What there was before a change.
enum Before<'a> {
    Nothing,
    /// With the same key.
    Same,
    Told(Old<'a>),
}

/// The values of a row as the stream has them.
type Values<'a> = SmallVec<[Value<'a>; 24]>;
/// Places of destinations.
type Places = SmallVec<[usize; 4]>;

impl Reader<'_> {
    /// Takes a message, and tells whether the source wants to hear how far its user is.
    pub(super) fn take(&mut self, message: Streamed<'_>, wish: &Wish) -> Result<bool, StreamError> {
        let data = match message {
            Streamed::Alive { end, asks } => {
                self.alive = self.alive.max(end);
                self.source_end = self.source_end.max(end);
                return Ok(asks);
            }
            Streamed::Data { data, .. } => data,
        };
        match Change::decode(data)? {
            Change::Begin { commit, xid } => {
                let waits = |at: Lsn| at == Lsn(0) || commit >= at;
                if wish.pause.is_some_and(waits) {
                    self.withheld = Some((commit, xid));
                } else {
                    self.begin(commit, xid);
                }
            }
            Change::Commit { end, .. } => self.commit(end),
            Change::Relation(relation) => self.relation(&relation)?,
            Change::Insert { relation, new } => {
                self.change(relation, Before::Nothing, Some(new))?;
            }
            Change::Update { relation, old, new } => {
                let before = old.map_or(Before::Same, Before::Told);
                self.change(relation, before, Some(new))?;
            }
            Change::Delete { relation, old } => self.change(relation, Before::Told(old), None)?,
            Change::Truncate { relations, .. } => self.emptied(relations)?,
            Change::Origin { .. } | Change::Type { .. } | Change::Message { .. } => {}
        }
        Ok(false)
    }

    fn commit(&mut self, end: Lsn) {
        self.transaction = None;
        self.boundary = self.boundary.max(end);
        self.source_end = self.source_end.max(end);
        if let Some(number) = self.beat.take() {
            self.last_number = self.last_number.max(number);
            let waiting = self.beats.iter_mut();
            for beat in waiting.filter(|beat| beat.number <= number && beat.at.is_none()) {
                beat.at = Some(end);
            }
        }
    }

    fn relation(&mut self, relation: &Relation<'_>) -> Result<(), StreamError> {
        let same = |table: &Table| {
            table.schema.as_bytes() == relation.schema && table.name.as_bytes() == relation.name
        };
        let known = if let Some(at) = self.tables.iter().position(same) {
            let table = &self.tables[at];
            let latest = |(commit, _)| commit >= self.columns;
            let age = if self.transaction.is_none_or(latest) {
                Age::Latest
            } else {
                Age::Earlier
            };
            table
                .check(relation, age)
                .map_err(|what| StreamError::Changed {
                    table: table.plain(),
                    what,
                })?;
            Known::Table(at)
        } else if relation.schema == b"shardway" && relation.name == b"fence" {
            let place = |name: &[u8]| relation.columns().position(|it| it.name == name);
            let place = |name| place(name).ok_or(ReplicationError::Protocol);
            Known::Fence(FenceColumns {
                workflow: place(b"workflow")?,
                attempt: place(b"attempt")?,
                beat: place(b"beat")?,
            })
        } else {
            return Err(self.renamed(relation));
        };
        self.relations.insert(relation.oid, known);
        Ok(())
    }

    /// A table that was planned has another name now: its changes would be nobody's.
    fn renamed(&self, relation: &Relation<'_>) -> StreamError {
        let text = |name| String::from_utf8_lossy(name).into_owned();
        let found = format!("{}.{}", text(relation.schema), text(relation.name));
        let table = match self.relations.get(&relation.oid) {
            Some(Known::Table(at)) => self.tables[*at].plain(),
            Some(Known::Fence(_)) | None => found.clone(),
        };
        let what = Changed::Name(found);
        StreamError::Changed { table, what }
    }

    fn change(
        &mut self,
        relation: Oid,
        before: Before<'_>,
        new: Option<Tuple<'_>>,
    ) -> Result<(), StreamError> {
        let known = self.relations.get(&relation);
        match known.ok_or(ReplicationError::Protocol)? {
            Known::Fence(columns) => {
                let Some(new) = new else {
                    return Ok(());
                };
                let values: Values<'_> = new.values().collect();
                let text = |at: usize| values.get(at).copied();
                if bytes(text(columns.workflow)) != Some(self.workflow.as_bytes()) {
                    return Ok(());
                }
                let attempt = integer(text(columns.attempt))?;
                let beat = integer(text(columns.beat))?;
                self.nudged = true;
                if attempt == 0 {
                    self.beat = Some(beat);
                } else {
                    self.fence = self.fence.max(i32::try_from(attempt).unwrap_or(i32::MAX));
                }
                Ok(())
            }
            Known::Table(at) => self.row(*at, before, new),
        }
    }

    fn row<'a>(
        &mut self,
        at: usize,
        before: Before<'a>,
        new: Option<Tuple<'a>>,
    ) -> Result<(), StreamError> {
        let tables = Arc::clone(&self.tables);
        let table = &tables[at];
        let is_update = matches!(before, Before::Same);
        let values = |tuple: Tuple<'a>| {
            let mut values: Values<'a> = tuple.values().collect();
            let lacks = table.columns.len().saturating_sub(values.len());
            values.extend(std::iter::repeat_n(Value::Unchanged, lacks));
            values
        };
        let (old, whole) = match before {
            Before::Nothing | Before::Same => (None, false),
            Before::Told(Old::Key(tuple)) => (Some(values(tuple)), false),
            Before::Told(Old::Row(tuple)) => (Some(values(tuple)), true),
        };
        let mut new = new.map(values);
        if let (Some(old), Some(new)) = (&old, &mut new) {
            complete(table, (old, whole), new);
        }
        let before = if is_update {
            new.as_ref()
        } else {
            old.as_ref()
        };
        let from = self.places(table, before)?;
        let to = self.places(table, new.as_ref())?;
        let same_key = match (before, &new) {
            (Some(before), Some(new)) => {
                let same = |at: &usize| before.get(*at) == new.get(*at);
                table.key.iter().all(same)
            }
            _ => false,
        };
        let stays = |place: &usize| same_key && from.contains(place) && to.contains(place);
        for place in &from {
            let kind = if stays(place) {
                Kind::Update
            } else {
                Kind::Delete
            };
            let values = if stays(place) { new.as_ref() } else { before };
            self.add(*place, at, kind, values)?;
        }
        for place in to.iter().filter(|place| !stays(place)) {
            self.add(*place, at, Kind::Insert, new.as_ref())?;
        }
        Ok(())
    }

    /// The destinations that are given a row.
    fn places(&self, table: &Table, values: Option<&Values<'_>>) -> Result<Places, StreamError> {
        let Some(values) = values else {
            return Ok(Places::new());
        };
        let routes = match &table.goes {
            Goes::Everywhere(places) => return Ok(Places::from_slice(places)),
            Goes::ByKey(routes) => routes,
        };
        let no_key = || StreamError::Key(table.plain());
        let (format, value) = match values.get(routes.column).ok_or_else(no_key)? {
            Value::Null => (Format::Text, None),
            Value::Text(value) => (Format::Text, Some(*value)),
            Value::Binary(value) => (Format::Binary, Some(*value)),
            Value::Unchanged => return Err(no_key()),
        };
        let oid = table.columns[routes.column].oid;
        let place = routes.of(oid, format, value).map_err(|_error| no_key())?;
        Ok(place.into_iter().collect())
    }

    fn add(
        &mut self,
        place: usize,
        at: usize,
        kind: Kind,
        values: Option<&Values<'_>>,
    ) -> Result<(), StreamError> {
        let (commit, xid) = self.transaction.ok_or(ReplicationError::Protocol)?;
        let lane = &mut self.lanes[place];
        if commit < lane.reached.lsn {
            return Ok(());
        }
        let values = values.map_or(&[][..], |values| values.as_slice());
        let other = |value: &Value<'_>| match self.form {
            Form::Binary => matches!(value, Value::Text(_)),
            Form::Text => matches!(value, Value::Binary(_)),
        };
        if values.iter().any(other) {
            return Err(StreamError::Form(self.tables[at].plain()));
        }
        let values = values.iter().map(|value| match value {
            Value::Null => Added::Null,
            Value::Unchanged => Added::Unchanged,
            Value::Text(value) | Value::Binary(value) => Added::Value(value),
        });
        lane.log.add(at, kind, xid, values)?;
        self.changes += 1;
        Ok(())
    }

    /// Tables were emptied on the source: their destinations lose what they have from there.
    fn emptied(&mut self, relations: Oids<'_>) -> Result<(), StreamError> {
        let (_, xid) = self.transaction.ok_or(ReplicationError::Protocol)?;
        for oid in relations.iter() {
            let known = self.relations.get(&oid);
            let Known::Table(at) = known.ok_or(ReplicationError::Protocol)? else {
                continue;
            };
            let at = *at;
            let tables = Arc::clone(&self.tables);
            for place in 0..self.lanes.len() {
                if !tables[at].goes_to(place) {
                    continue;
                }
                match self.lanes[place].copied.have(at, xid) {
                    Within::None => self.add(place, at, Kind::Wipe, None)?,
                    // What was copied came later; so did all that is not in it, for nobody writes to a table meanwhile.
                    Within::All => {}
                    // Which rows of a copy were taken before, and which after it, nobody can say.
                    Within::Some => return Err(StreamError::Emptied(tables[at].plain())),
                }
            }
        }
        Ok(())
    }
}

/// Fills in what was not sent of a new row where the old one tells it: its key, or all of it.
fn complete<'a>(table: &Table, (old, whole): (&Values<'a>, bool), new: &mut Values<'a>) {
    let shard_key = match &table.goes {
        Goes::ByKey(routes) => Some(routes.column),
        Goes::Everywhere(_) => None,
    };
    for (at, value) in new.iter_mut().enumerate() {
        let told = whole || table.key.contains(&at) || shard_key == Some(at);
        if *value == Value::Unchanged
            && told
            && let Some(old) = old.get(at)
        {
            *value = *old;
        }
    }
}

fn bytes(value: Option<Value<'_>>) -> Option<&[u8]> {
    match value? {
        Value::Text(bytes) | Value::Binary(bytes) => Some(bytes),
        Value::Null | Value::Unchanged => None,
    }
}

/// An `int4` or `int8` in either form.
fn integer(value: Option<Value<'_>>) -> Result<i64, StreamError> {
    let number = match value {
        Some(Value::Text(text)) => std::str::from_utf8(text)
            .ok()
            .and_then(|it| it.parse().ok()),
        Some(Value::Binary(bytes)) => match bytes {
            [_, _, _, _] => bytes
                .try_into()
                .ok()
                .map(|it| i64::from(i32::from_be_bytes(it))),
            bytes => bytes.try_into().ok().map(i64::from_be_bytes),
        },
        Some(Value::Null | Value::Unchanged) | None => None,
    };
    Ok(number.ok_or(ReplicationError::Protocol)?)
}
