//! Changes of one destination's rows in their order, and what they come to: at most one change for each primary key.
//!
//! What must stay true: what they come to leaves the same rows as the changes one by one do; a value that was not sent is
//! never taken for NULL; changes that cannot follow each other are an error, never passed over.

use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Null,
    /// Not sent: what the row has there already.
    Unchanged,
    /// From the first to before the second of the log's bytes.
    At(u32, u32),
}

/// The values of a row, one for each column: from the first to before the second of the log's cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row(u32, u32);

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Insert,
    /// Its primary key is the same as before.
    Update,
    /// Of the row only the primary key counts.
    Delete,
    /// All rows of the table that come from this source are gone; the row is empty.
    Wipe,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place among the tables that are followed.
    pub table: usize,
    pub kind: Kind,
    /// Its transaction's id.
    pub xid: u64,
    pub row: Row,
}

/// Changes in their order.
#[derive(Clone, Debug, Default)]
pub struct Log {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    changes: Vec<Change>,
}

/// How far a log was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    bytes: usize,
    cells: usize,
}

/// A value that is added to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added<'a> {
    Null,
    Unchanged,
    Value(&'a [u8]),
}

/// The log is full: its parts are counted by 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than 4 GB of changes at a time")]
pub struct Full;

impl Log {
    /// An empty one with room for what another one has.
    #[must_use]
    pub fn like(other: &Self) -> Self {
        Self {
            bytes: Vec::with_capacity(other.bytes.len()),
            cells: Vec::with_capacity(other.cells.len()),
            changes: Vec::with_capacity(other.changes.len()),
        }
    }

    /// Adds a change.
    ///
    /// # Errors
    /// [`Full`]; nothing was added that counts then.
    pub fn add<'a>(
        &mut self,
        table: usize,
        kind: Kind,
        xid: u64,
        values: impl IntoIterator<Item = Added<'a>>,
    ) -> Result<(), Full> {
        let row = self.row(values)?;
        self.changes.push(Change {
            table,
            kind,
            xid,
            row,
        });
        Ok(())
    }

    /// Puts a row's values where changes and what they come to can name it.
    ///
    /// # Errors
    /// [`Full`].
    pub fn row<'a>(&mut self, values: impl IntoIterator<Item = Added<'a>>) -> Result<Row, Full> {
        let begin = place(self.cells.len())?;
        for value in values {
            let cell = match value {
                Added::Null => Cell::Null,
                Added::Unchanged => Cell::Unchanged,
                Added::Value(bytes) => {
                    let from = place(self.bytes.len())?;
                    self.bytes.extend_from_slice(bytes);
                    Cell::At(from, place(self.bytes.len())?)
                }
            };
            self.cells.push(cell);
        }
        Ok(Row(begin, place(self.cells.len())?))
    }

    /// The changes.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The cells of a row.
    #[must_use]
    pub fn cells(&self, row: Row) -> &[Cell] {
        &self.cells[row.0 as usize..row.1 as usize]
    }

    /// The bytes of a value; `None` of NULL, and of one that was not sent.
    #[must_use]
    pub fn value(&self, cell: Cell) -> Option<&[u8]> {
        match cell {
            Cell::Null | Cell::Unchanged => None,
            Cell::At(from, to) => Some(&self.bytes[from as usize..to as usize]),
        }
    }

    /// How many bytes the values of a row have.
    #[must_use]
    pub fn length(&self, row: Row) -> usize {
        let values = self.cells(row).iter().filter_map(|cell| self.value(*cell));
        values.map(<[u8]>::len).sum()
    }

    /// A row's value as it was added.
    #[must_use]
    pub fn added(&self, cell: Cell) -> Added<'_> {
        match cell {
            Cell::Null => Added::Null,
            Cell::Unchanged => Added::Unchanged,
            Cell::At(..) => Added::Value(self.value(cell).unwrap_or_default()),
        }
    }

    /// How many bytes its values have.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// How far it is filled.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            bytes: self.bytes.len(),
            cells: self.cells.len(),
        }
    }

    /// Forgets what was put into it since then beside changes: nothing names it any more.
    pub fn rewind(&mut self, to: Mark) {
        self.bytes.truncate(to.bytes);
        self.cells.truncate(to.cells);
    }

    /// A row with the cells of another one where its own were not sent.
    fn merged(&mut self, row: Row, before: Row) -> Result<Row, Full> {
        if !self.cells(row).contains(&Cell::Unchanged) {
            return Ok(row);
        }
        let pairs = self.cells(row).iter().zip(self.cells(before));
        let merged: Vec<Cell> = pairs
            .map(|(new, old)| if *new == Cell::Unchanged { *old } else { *new })
            .collect();
        let begin = place(self.cells.len())?;
        self.cells.extend(merged);
        Ok(Row(begin, place(self.cells.len())?))
    }

    /// The row's primary key as bytes, the same exactly if the values are.
    fn key(&self, row: Row, key: &[usize]) -> Key {
        let cells = self.cells(row);
        let mut bytes = Key::new();
        for at in key {
            let cell = cells.get(*at).copied().unwrap_or(Cell::Null);
            let value = self.value(cell);
            let length = value.map_or(u32::MAX, |value| {
                u32::try_from(value.len()).unwrap_or(u32::MAX)
            });
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(value.unwrap_or_default());
        }
        bytes
    }
}

type Key = SmallVec<[u8; 32]>;

fn place(length: usize) -> Result<u32, Full> {
    u32::try_from(length).map_err(|_large| Full)
}

/// A row that exists by the stream so far, but of which values come later: it was given a key of this destination, its long
/// values were not sent, and the source has no such row any more. It is written once something else became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    pub table: usize,
    /// Whether a row of that key is on the destination.
    pub existed: bool,
    pub values: Vec<Held>,
}

/// A value of such a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Null,
    Unknown,
    Value(Box<[u8]>),
}

/// What changes of one table come to. Each key is in one of the lists only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// Only the primary keys count.
    pub deletes: Vec<Row>,
    /// By the columns that they change; the others' values were not sent.
    pub updates: BTreeMap<Shape, Vec<Row>>,
    pub inserts: Vec<Row>,
    /// To be inserted, or with `true` to be put in the place of the row of that key, once their missing values are known.
    pub missing: Vec<(Row, bool)>,
}

/// The columns that are sent, one bit for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape(SmallVec<[u64; 2]>);

impl Shape {
    /// Those of a row.
    #[must_use]
    pub fn of(cells: &[Cell]) -> Self {
        let mut bits = SmallVec::from_elem(0_u64, cells.len().div_ceil(64));
        for (at, cell) in cells.iter().enumerate() {
            if *cell != Cell::Unchanged {
                bits[at / 64] |= 1 << (at % 64);
            }
        }
        Self(bits)
    }

    /// Whether the column at this place is among them.
    #[must_use]
    pub fn has(&self, at: usize) -> bool {
        let bits = self.0.get(at / 64).copied().unwrap_or(0);
        bits >> (at % 64) & 1 == 1
    }
}

/// Changes that cannot follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    #[error("a row came although one of its key was there")]
    Twice(Change),
    #[error("a row changed or went that was gone")]
    Gone(Change),
    #[error(transparent)]
    Full(#[from] Full),
}

/// Where values are that were not sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unsent {
    /// In the destination's row of that key.
    Here,
    /// In none of the destination's rows.
    Elsewhere,
}

/// What is known of a key.
struct Entry {
    /// Before the first of its changes.
    existed: bool,
    unsent: Unsent,
    /// The row with this key, or a row that had it last.
    row: Row,
    there: bool,
}

/// What changes of one table come to.
pub struct Settling<'a> {
    key: &'a [usize],
    entries: Vec<Entry>,
    places: HashMap<Key, usize, foldhash::fast::RandomState>,
}

impl Hole {
    /// A row of a log as it can be kept without it.
    #[must_use]
    pub fn of(log: &Log, table: usize, (row, existed): (Row, bool)) -> Self {
        let value = |cell: &Cell| match log.added(*cell) {
            Added::Null => Held::Null,
            Added::Unchanged => Held::Unknown,
            Added::Value(bytes) => Held::Value(bytes.into()),
        };
        Self {
            table,
            existed,
            values: log.cells(row).iter().map(value).collect(),
        }
    }

    /// Whether a change, of a table with its primary key at these places, is about its row.
    #[must_use]
    pub fn is_of(&self, log: &Log, change: Change, key: &[usize]) -> bool {
        let cells = log.cells(change.row);
        let same = |at: &usize| match (self.values.get(*at), cells.get(*at)) {
            (Some(Held::Value(held)), Some(cell)) => log.value(*cell) == Some(held),
            _ => false,
        };
        change.table == self.table && key.iter().all(same)
    }

    /// Puts it into a log.
    ///
    /// # Errors
    /// [`Full`].
    pub fn row(&self, log: &mut Log) -> Result<Row, Full> {
        let value = |value| match value {
            &Held::Null => Added::Null,
            &Held::Unknown => Added::Unchanged,
            Held::Value(bytes) => Added::Value(bytes),
        };
        log.row(self.values.iter().map(value))
    }
}

impl<'a> Settling<'a> {
    /// Of a table with its primary key at these places, and about so many changes.
    #[must_use]
    pub fn new(key: &'a [usize], changes: usize) -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self {
            key,
            entries: Vec::with_capacity(changes),
            places: HashMap::with_capacity_and_hasher(changes, hasher),
        }
    }

    /// Begins with a row that was held back.
    ///
    /// # Errors
    /// [`Full`].
    pub fn hold(&mut self, log: &mut Log, hole: &Hole) -> Result<(), Full> {
        let row = hole.row(log)?;
        self.places
            .insert(log.key(row, self.key), self.entries.len());
        self.entries.push(Entry {
            existed: hole.existed,
            unsent: Unsent::Elsewhere,
            row,
            there: true,
        });
        Ok(())
    }

    /// The next change.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn add(&mut self, log: &mut Log, change: Change) -> Result<(), Contradiction> {
        let key = log.key(change.row, self.key);
        let Some(at) = self.places.get(&key) else {
            self.places.insert(key, self.entries.len());
            self.entries.push(Entry {
                existed: change.kind != Kind::Insert,
                unsent: if change.kind == Kind::Update {
                    Unsent::Here
                } else {
                    Unsent::Elsewhere
                },
                row: change.row,
                there: change.kind != Kind::Delete,
            });
            return Ok(());
        };
        let entry = &mut self.entries[*at];
        match (change.kind, entry.there) {
            (Kind::Insert, true) => return Err(Contradiction::Twice(change)),
            (Kind::Update | Kind::Delete, false) => return Err(Contradiction::Gone(change)),
            (Kind::Insert, false) => {
                entry.row = change.row;
                entry.unsent = Unsent::Elsewhere;
            }
            (Kind::Update, true) => entry.row = log.merged(change.row, entry.row)?,
            (Kind::Delete | Kind::Wipe, _) => entry.row = change.row,
        }
        entry.there = matches!(change.kind, Kind::Insert | Kind::Update);
        Ok(())
    }

    /// What all of them come to.
    #[must_use]
    pub fn net(self, log: &Log) -> Net {
        let mut net = Net::default();
        for entry in self.entries {
            let row = entry.row;
            let partial = log.cells(row).contains(&Cell::Unchanged);
            match (entry.existed, entry.there) {
                (false, false) => {}
                (true, false) => net.deletes.push(row),
                (existed, true) if entry.unsent == Unsent::Elsewhere && partial => {
                    net.missing.push((row, existed));
                }
                (false, true) => net.inserts.push(row),
                (true, true) => {
                    let shape = Shape::of(log.cells(row));
                    net.updates.entry(shape).or_default().push(row);
                }
            }
        }
        net
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows of a table with the key in the first column, as text.
    type Rows = BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>;

    fn add(log: &mut Log, kind: Kind, values: &[Option<&str>]) {
        let values = values.iter().map(|value| match value {
            None => Added::Null,
            Some("~") => Added::Unchanged,
            Some(text) => Added::Value(text.as_bytes()),
        });
        log.add(0, kind, 1, values).unwrap();
    }

    fn settle(log: &mut Log) -> Result<Net, Contradiction> {
        let mut settling = Settling::new(&[0], 0);
        for change in log.changes().to_vec() {
            settling.add(log, change)?;
        }
        Ok(settling.net(log))
    }

    fn shown(log: &Log, rows: &[Row]) -> Vec<Vec<String>> {
        let value = |cell: &Cell| match log.added(*cell) {
            Added::Null => "null".to_owned(),
            Added::Unchanged => "~".to_owned(),
            Added::Value(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        };
        let row = |row: &Row| log.cells(*row).iter().map(value).collect();
        rows.iter().map(row).collect()
    }

    #[test]
    fn one_change_is_left_for_each_key() {
        let mut log = Log::default();
        add(&mut log, Kind::Insert, &[Some("1"), Some("a"), None]);
        add(&mut log, Kind::Update, &[Some("1"), Some("b"), Some("~")]);
        add(&mut log, Kind::Update, &[Some("2"), Some("~"), Some("x")]);
        add(&mut log, Kind::Update, &[Some("2"), Some("c"), Some("~")]);
        add(&mut log, Kind::Insert, &[Some("3"), None, None]);
        add(&mut log, Kind::Delete, &[Some("3"), None, None]);
        add(&mut log, Kind::Delete, &[Some("4"), None, None]);
        add(&mut log, Kind::Delete, &[Some("5"), None, None]);
        add(&mut log, Kind::Insert, &[Some("5"), Some("new"), Some("y")]);
        add(&mut log, Kind::Update, &[Some("6"), Some("p"), Some("~")]);
        let net = settle(&mut log).unwrap();
        assert_eq!(shown(&log, &net.inserts), [["1", "b", "null"]]);
        assert_eq!(shown(&log, &net.deletes), [["4", "null", "null"]]);
        let updates: Vec<_> = net.updates.values().map(|it| shown(&log, it)).collect();
        assert_eq!(
            updates,
            [
                vec![["6", "p", "~"]],
                vec![["2", "c", "x"], ["5", "new", "y"]]
            ]
        );
        assert_eq!(net.missing, []);
    }

    #[test]
    fn values_that_were_not_sent_of_a_row_that_came_are_missing() {
        let mut log = Log::default();
        // Its key was changed: it went, and came with a value that was not sent.
        add(&mut log, Kind::Insert, &[Some("1"), Some("a"), Some("~")]);
        add(&mut log, Kind::Delete, &[Some("2"), None, None]);
        add(&mut log, Kind::Insert, &[Some("2"), Some("a"), Some("~")]);
        add(&mut log, Kind::Insert, &[Some("3"), Some("a"), Some("~")]);
        add(&mut log, Kind::Update, &[Some("3"), Some("~"), Some("all")]);
        add(&mut log, Kind::Insert, &[Some("4"), Some("a"), Some("~")]);
        add(&mut log, Kind::Delete, &[Some("4"), None, None]);
        let net = settle(&mut log).unwrap();
        let rows: Vec<Row> = net.missing.iter().map(|(row, _)| *row).collect();
        assert_eq!(shown(&log, &rows), [["1", "a", "~"], ["2", "a", "~"]]);
        assert_eq!((net.missing[0].1, net.missing[1].1), (false, true));
        assert_eq!(shown(&log, &net.inserts), [["3", "a", "all"]]);
        assert!(net.updates.is_empty() && net.deletes.is_empty());
    }

    #[test]
    fn a_row_that_is_held_back_is_known_by_its_key_and_leaves_a_log_as_it_was() {
        let hole = Hole {
            table: 0,
            existed: false,
            values: vec![Held::Value(b"1"[..].into()), Held::Null, Held::Unknown],
        };
        let mut log = Log::default();
        add(&mut log, Kind::Update, &[Some("1"), Some("~"), Some("z")]);
        add(&mut log, Kind::Update, &[Some("11"), Some("~"), Some("z")]);
        let other = Change {
            table: 1,
            ..log.changes()[0]
        };
        let of = |change| hole.is_of(&log, change, &[0]);
        assert_eq!(
            [of(log.changes()[0]), of(log.changes()[1]), of(other)],
            [true, false, false]
        );
        let (mark, size) = (log.mark(), log.size());
        hole.row(&mut log).unwrap();
        assert_ne!((log.mark(), log.size()), (mark, size));
        log.rewind(mark);
        assert_eq!((log.mark(), log.size()), (mark, size));
        let rows: Vec<Row> = log.changes().iter().map(|it| it.row).collect();
        assert_eq!(shown(&log, &rows), [["1", "~", "z"], ["11", "~", "z"]]);
    }

    #[test]
    fn a_row_that_is_held_back_ends_as_its_changes_say() {
        let hole = |existed| Hole {
            table: 0,
            existed,
            values: vec![Held::Value(b"1"[..].into()), Held::Null, Held::Unknown],
        };
        for existed in [false, true] {
            let mut log = Log::default();
            add(&mut log, Kind::Delete, &[Some("1"), None, None]);
            let mut settling = Settling::new(&[0], 0);
            settling.hold(&mut log, &hole(existed)).unwrap();
            let change = log.changes()[0];
            settling.add(&mut log, change).unwrap();
            assert_eq!(settling.net(&log).deletes.len(), usize::from(existed));
            let mut log = Log::default();
            add(&mut log, Kind::Update, &[Some("1"), Some("~"), Some("z")]);
            let mut settling = Settling::new(&[0], 0);
            settling.hold(&mut log, &hole(existed)).unwrap();
            let change = log.changes()[0];
            settling.add(&mut log, change).unwrap();
            let net = settling.net(&log);
            let updated: Vec<Row> = net.updates.values().flatten().copied().collect();
            let rows = if existed { &updated } else { &net.inserts };
            assert_eq!(shown(&log, rows), [["1", "null", "z"]]);
        }
    }

    #[test]
    fn what_cannot_follow_is_refused() {
        for kinds in [
            [Kind::Insert, Kind::Insert],
            [Kind::Update, Kind::Insert],
            [Kind::Delete, Kind::Update],
            [Kind::Delete, Kind::Delete],
        ] {
            let mut log = Log::default();
            for kind in kinds {
                add(&mut log, kind, &[Some("1"), None, None]);
            }
            assert!(settle(&mut log).is_err(), "{kinds:?}");
        }
    }

    /// A change to one of few keys: what is done, which value, whether each of two columns is sent.
    fn one() -> impl Strategy<Value = (u8, u8, u8, bool, bool)> {
        (0..3_u8, 0..5_u8, 0..9_u8, any::<bool>(), any::<bool>())
    }

    /// The changes one by one, as far as they are possible.
    fn one_by_one(
        rows: &mut Rows,
        log: &mut Log,
        (kind, key, value, first, second): (u8, u8, u8, bool, bool),
    ) {
        let (key, value) = (key.to_string(), value.to_string());
        let there = rows.contains_key(key.as_bytes());
        let kept = |sent| {
            if sent {
                Some(value.as_str())
            } else {
                Some("~")
            }
        };
        match (kind, there) {
            (0, false) => {
                add(log, Kind::Insert, &[Some(&key), Some(&value), None]);
                let row = vec![Some(value.clone().into_bytes()), None];
                rows.insert(key.into_bytes(), row);
            }
            (1, true) => {
                add(log, Kind::Update, &[Some(&key), kept(first), kept(second)]);
                let row = rows.get_mut(key.as_bytes()).unwrap();
                for (at, sent) in [first, second].into_iter().enumerate() {
                    if sent {
                        row[at] = Some(value.clone().into_bytes());
                    }
                }
            }
            (2, true) => {
                add(log, Kind::Delete, &[Some(&key), None, None]);
                rows.remove(key.as_bytes());
            }
            _ => {}
        }
    }

    /// What they come to, on the rows before; each statement has to meet what it expects.
    fn at_once(rows: &mut Rows, log: &Log, net: &Net) {
        let key = |row: Row| log.value(log.cells(row)[0]).unwrap().to_vec();
        let value = |cell: Cell| log.value(cell).map(<[u8]>::to_vec);
        for row in &net.deletes {
            assert!(rows.remove(&key(*row)).is_some());
        }
        for row in net.updates.values().flatten() {
            let found = rows.get_mut(&key(*row)).unwrap();
            for (at, cell) in log.cells(*row)[1..].iter().enumerate() {
                if *cell != Cell::Unchanged {
                    found[at] = value(*cell);
                }
            }
        }
        for row in &net.inserts {
            let values = log.cells(*row)[1..].iter().map(|cell| value(*cell));
            assert!(rows.insert(key(*row), values.collect()).is_none());
        }
        assert_eq!(net.missing, []);
    }

    proptest! {
        #[test]
        fn what_changes_come_to_leaves_the_rows_that_they_leave_one_by_one(
            before in proptest::collection::vec(one(), 0..10),
            changes in proptest::collection::vec(one(), 0..40),
        ) {
            let mut rows = Rows::new();
            for change in before {
                one_by_one(&mut rows, &mut Log::default(), change);
            }
            let (mut expected, mut log) = (rows.clone(), Log::default());
            for change in changes {
                one_by_one(&mut expected, &mut log, change);
            }
            let net = settle(&mut log).unwrap();
            at_once(&mut rows, &log, &net);
            prop_assert_eq!(rows, expected);
        }
    }
}
