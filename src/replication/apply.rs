//! Changes of a source on one destination: pieces of its stream, each as few statements, with how far the destination is in
//! the same transaction.
//!
//! What must stay true: a destination gets each change once, and each statement touches as many rows as it is to, or the
//! whole is undone and said with table and key; no row is written to a table that has columns of which its values do not
//! come with it; how far it is moves with the data, from where this follower knows it to be,
//! and never for a runner that was replaced.

use super::{
    batch::{Change, Contradiction, Full, Held, Hole, Kind, Log, Net, Row, Settling, Shape},
    durable::FLUSH,
    judge::{Chunks, JudgeError},
    rows::{Form, NotCopied, Raw, Statements, What, in_order},
    tables::{Goes, Table, identifier},
};
use crate::{
    failpoint,
    wire::{replication::Lsn, types::Oid},
};
use deadpool_postgres::Client;
use futures_util::future::join;
use std::{collections::BTreeMap, sync::Arc};
use tokio_postgres::{
    error::SqlState,
    types::{PgLsn, ToSql},
};

/// Whose changes they are.
#[derive(Clone, Debug)]
pub struct Whose {
    pub workflow: String,
    pub source: String,
    /// What it is called in `shardway.apply_progress`.
    pub followed: String,
    pub token: i64,
    pub form: Form,
    pub tables: Arc<[Table]>,
}

/// A destination, and how far it is.
#[derive(Debug)]
pub struct Destination {
    pub name: String,
    pub client: Client,
    /// A connection of its own to the source, for which chunks keys are in, and for values that are not streamed.
    pub source: Client,
    pub progress: Reached,
    pub chunks: Chunks,
    pub shapes: Shapes,
}

/// Tables as a destination had them when it was seen that they have the columns of the rows that are applied, no more and no
/// fewer.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    tables: Vec<Oid>,
    /// How many columns they ever had.
    columns: i64,
}

/// How far a destination is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// It has all that was committed before.
    pub lsn: Lsn,
    /// The last fence that it has.
    pub fence: i32,
}

/// Changes in their order.
#[derive(Debug)]
pub struct Piece {
    pub log: Log,
    /// Where the destination is with it; `None` within a transaction of the source, which goes on in the next piece.
    pub end: Option<Reached>,
    pub commit: Commit,
}

/// When a piece is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Once it is committed.
    Durable,
    /// With a later one that is, at the latest: until then it may vanish in a crash of the server, with what says how far the
    /// destination is.
    Soon,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is durable, and all before it.
    Committed(Reached),
    /// It is committed as [`Commit::Soon`].
    Soon,
    /// It will be, with the next: its transaction goes on, or a row waits for values that come later.
    Open,
}

/// Why changes cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", said(.0))]
    Sql(#[from] tokio_postgres::Error),
    /// A statement about rows of a table failed.
    #[error("{table}: {}", said(.error))]
    Rows {
        table: String,
        error: tokio_postgres::Error,
    },
    #[error("another process runs it")]
    Replaced,
    #[error("{0} is not copied whole")]
    NotCopied(String),
    /// A statement touched another number of rows than it was to.
    #[error("{table}: {what} of {expected} rows touched {touched}")]
    Count {
        table: String,
        what: &'static str,
        expected: u64,
        touched: u64,
    },
    #[error("{table}: {what}")]
    Contradiction { table: String, what: Contradiction },
    #[error(transparent)]
    Full(#[from] Full),
    /// One change, alone, failed.
    #[error("the row of {table} with the key ({key}): {problem}")]
    Row {
        table: String,
        key: String,
        problem: Box<Self>,
    },
    #[error("{table} was emptied: {problem}")]
    Wipe { table: String, problem: String },
    /// Rows would get values there that nobody brought.
    #[error("tables have got columns there")]
    Altered,
}

/// The server's words, else what the connection says.
fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => {
            let detail = said.detail().map(|it| format!(": {it}"));
            let detail = detail.unwrap_or_default();
            format!("{} ({}){detail}", said.message(), said.code().code())
        }
        None => error.to_string(),
    }
}

impl From<JudgeError> for ApplyError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Sql(error) => Self::Sql(error),
            JudgeError::NotCopied(table) => Self::NotCopied(table),
        }
    }
}

impl ApplyError {
    /// What a server said, if one did.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Sql(error) | Self::Rows { error, .. } => error.code().map(SqlState::code),
            Self::Row { problem, .. } => problem.sqlstate(),
            Self::Replaced
            | Self::NotCopied(_)
            | Self::Count { .. }
            | Self::Contradiction { .. }
            | Self::Full(_)
            | Self::Wipe { .. }
            | Self::Altered => None,
        }
    }

    /// Whether the changes one by one may do what they could not at once: a value that is unique may have gone from one row
    /// to another, and what cannot be done is then known by its row.
    fn wants_one_by_one(&self) -> bool {
        match self {
            Self::Count { .. } | Self::Contradiction { .. } => true,
            Self::Rows { error, .. } => {
                let class = error.code().map(SqlState::code);
                class.is_some_and(|it| it.starts_with("23") || it.starts_with("22"))
            }
            Self::Sql(_)
            | Self::Replaced
            | Self::NotCopied(_)
            | Self::Full(_)
            | Self::Row { .. }
            | Self::Wipe { .. }
            | Self::Altered => false,
        }
    }

    /// Whether a row may not have been taken because of columns that came to its table. The connection can be asked.
    fn is_of_row(&self) -> bool {
        matches!(
            self,
            Self::Rows { .. } | Self::Row { .. } | Self::Count { .. }
        )
    }
}

/// How many columns tables ever had: more, once one is added.
const SHAPES: &str = "SELECT coalesce(sum(relnatts), 0)::int8 FROM pg_class WHERE oid = ANY ($1)";

impl Shapes {
    /// As they are now.
    ///
    /// # Errors
    /// What the server said.
    pub async fn read(
        destination: &Client,
        tables: impl IntoIterator<Item = &Table>,
    ) -> Result<Self, tokio_postgres::Error> {
        const TABLES: &str = "\
SELECT coalesce(array_agg(to_regclass(name)::oid), '{}') FROM unnest($1::text[]) name WHERE to_regclass(name) IS NOT NULL";
        let names: Vec<String> = tables.into_iter().map(Table::sql).collect();
        let tables = destination.query_one(TABLES, &[&names]).await?;
        let mut shapes = Self {
            tables: tables.try_get(0)?,
            columns: 0,
        };
        shapes.columns = shapes.now(destination).await?;
        Ok(shapes)
    }

    async fn now(&self, destination: &Client) -> Result<i64, tokio_postgres::Error> {
        let row = destination.query_one(SHAPES, &[&self.tables]).await?;
        row.try_get(0)
    }
}

/// The progress is where this follower knows it to be, and stays so until the transaction ends.
const LOCK: &str = "\
SELECT FROM shardway.apply_progress WHERE workflow = $1 AND source = $2 AND token <= $3 AND lsn = $4 FOR UPDATE";
const ADVANCE: &str = "\
UPDATE shardway.apply_progress SET lsn = $5, fence = greatest(fence, $6), token = $3 \
WHERE workflow = $1 AND source = $2 AND token <= $3 AND lsn = $4 \
RETURNING (SELECT coalesce(sum(relnatts), 0)::int8 FROM pg_class WHERE oid = ANY ($7))";

/// Applies pieces on one destination.
#[derive(Debug)]
pub struct Applier {
    whose: Whose,
    /// Among the destinations.
    place: usize,
    it: Destination,
    here: Statements,
    there: Statements,
    /// Whether a transaction is open.
    open: bool,
    holes: Vec<Hole>,
}

impl Applier {
    /// For a destination at its place among all.
    #[must_use]
    pub fn new(whose: Whose, place: usize, it: Destination) -> Self {
        Self {
            here: Statements::new(whose.form),
            there: Statements::new(whose.form),
            whose,
            place,
            it,
            open: false,
            holes: Vec::new(),
        }
    }

    /// Applies the next piece.
    ///
    /// # Errors
    /// [`ApplyError`]: the transaction that is open must not go on.
    pub async fn apply(&mut self, piece: Piece) -> Result<Done, ApplyError> {
        match Box::pin(self.try_apply(piece)).await {
            Err(error) if error.is_of_row() && self.is_altered().await => Err(ApplyError::Altered),
            done => done,
        }
    }

    /// Whether a table of the destination is another than it was; nothing is open afterwards.
    async fn is_altered(&self) -> bool {
        let client = &self.it.client;
        // Outside of a transaction it says so, and does nothing.
        if client.batch_execute("ROLLBACK").await.is_err() {
            return false;
        }
        let now = self.it.shapes.now(client).await;
        now.is_ok_and(|now| now != self.it.shapes.columns)
    }

    async fn try_apply(&mut self, mut piece: Piece) -> Result<Done, ApplyError> {
        let log = &mut piece.log;
        let seen = self
            .it
            .chunks
            .seen(&self.it.source, &mut self.there, &self.whose.tables, log);
        let seen = seen.await?;
        let places = 0..log.changes().len();
        let places: Vec<usize> = places
            .filter(|at| seen.binary_search(at).is_err())
            .collect();
        let held = self.holes.clone();
        let first = !self.open;
        if first {
            self.begin().await?;
        } else {
            self.it.client.batch_execute("SAVEPOINT piece").await?;
        }
        if let Err(error) = self.at_once(log, &places).await {
            if !error.wants_one_by_one() {
                return Err(error);
            }
            self.holes = held;
            if first {
                self.it.client.batch_execute("ROLLBACK").await?;
                self.begin().await?;
            } else {
                self.it.client.batch_execute("ROLLBACK TO piece").await?;
            }
            self.one_by_one(log, &places).await?;
        }
        if !first {
            self.it.client.batch_execute("RELEASE piece").await?;
        }
        match piece.end {
            Some(end) if self.holes.is_empty() => self.commit(end, piece.commit).await,
            _ => Ok(Done::Open),
        }
    }

    async fn begin(&mut self) -> Result<(), ApplyError> {
        let Whose {
            workflow,
            followed: source,
            token,
            ..
        } = &self.whose;
        self.open = true;
        let client = &self.it.client;
        let at = PgLsn::from(self.it.progress.lsn.0);
        let lock = client.prepare_cached(LOCK).await?;
        let values: [&(dyn ToSql + Sync); 4] = [workflow, source, token, &at];
        let (begun, locked) =
            join(client.batch_execute("BEGIN"), client.query(&lock, &values)).await;
        begun?;
        unless_replaced(locked?.len() == 1)
    }

    async fn commit(&mut self, end: Reached, commit: Commit) -> Result<Done, ApplyError> {
        let Whose {
            workflow,
            followed: source,
            token,
            ..
        } = &self.whose;
        let client = &self.it.client;
        let (from, to) = (self.it.progress.lsn.0, end.lsn.0);
        let (from, to) = (PgLsn::from(from), PgLsn::from(to));
        let advance = client.prepare_cached(ADVANCE).await?;
        let Shapes { tables, columns } = &self.it.shapes;
        let values: [&(dyn ToSql + Sync); 7] =
            [workflow, source, token, &from, &to, &end.fence, tables];
        let advanced = client.query(&advance, &values).await?;
        unless_replaced(advanced.len() == 1)?;
        // Those that were written are locked: nobody adds a column to them before this has ended.
        if advanced[0].try_get::<_, i64>(0)? != *columns {
            return Err(ApplyError::Altered);
        }
        let sql = match commit {
            Commit::Durable => "COMMIT",
            Commit::Soon => "SET LOCAL synchronous_commit = off; COMMIT",
        };
        client.batch_execute(sql).await?;
        failpoint::reached("after_apply_commit").await;
        self.open = false;
        self.it.progress = end;
        Ok(match commit {
            Commit::Durable => Done::Committed(end),
            Commit::Soon => Done::Soon,
        })
    }

    /// What the changes come to, all at once between those that empty a table.
    async fn at_once(&mut self, log: &mut Log, places: &[usize]) -> Result<(), ApplyError> {
        let mut part = Vec::with_capacity(places.len());
        for place in places {
            let change = log.changes()[*place];
            if change.kind == Kind::Wipe {
                self.part(log, std::mem::take(&mut part)).await?;
                self.wipe(change.table).await?;
            } else {
                part.push(change);
            }
        }
        self.part(log, part).await
    }

    /// The changes as they came.
    async fn one_by_one(&mut self, log: &mut Log, places: &[usize]) -> Result<(), ApplyError> {
        // Those that may be looked at at the end were not violated at the end on the source either.
        let client = &self.it.client;
        client.batch_execute("SET CONSTRAINTS ALL DEFERRED").await?;
        for place in places {
            let change = log.changes()[*place];
            let done = if change.kind == Kind::Wipe {
                self.wipe(change.table).await
            } else {
                // The other rows that wait go on waiting: none of their values comes with it.
                let key = &self.whose.tables[change.table].key;
                let of = |hole: &mut Hole| hole.is_of(log, change, key);
                let its = self.holes.extract_if(.., of).collect();
                let others = std::mem::replace(&mut self.holes, its);
                let done = self.part(log, vec![change]).await;
                self.holes.extend(others);
                done
            };
            match done {
                Err(error) if error.wants_one_by_one() => {
                    return Err(self.of_row(log, change, error).await);
                }
                done => done?,
            }
        }
        Ok(())
    }

    async fn of_row(&mut self, log: &Log, change: Change, problem: ApplyError) -> ApplyError {
        let table = &self.whose.tables[change.table];
        let rolled_back = self.it.client.batch_execute("ROLLBACK").await;
        let asked = (log, &[change.row][..]);
        let of = (change.table, table);
        let shown = match rolled_back {
            Ok(()) => {
                let here = &mut self.here;
                here.query(&self.it.client, of, &What::Show, asked, &[])
                    .await
            }
            Err(error) => Err(error),
        };
        let key = |row: &tokio_postgres::Row| {
            let each = (0..row.len()).map(|at| row.try_get::<_, &str>(at).unwrap_or("?"));
            each.collect::<Vec<&str>>().join(", ")
        };
        let key = shown.ok().and_then(|rows| rows.first().map(key));
        ApplyError::Row {
            table: table.plain(),
            key: key.unwrap_or_else(|| "?".to_owned()),
            problem: Box::new(problem),
        }
    }

    /// Some changes at once, with the rows that wait. The log is afterwards as it was: they may be many, and each may have the
    /// values of all of these.
    async fn part(&mut self, log: &mut Log, changes: Vec<Change>) -> Result<(), ApplyError> {
        let mark = log.mark();
        let done = self.settle(log, changes).await;
        log.rewind(mark);
        done
    }

    async fn settle(&mut self, log: &mut Log, changes: Vec<Change>) -> Result<(), ApplyError> {
        let tables = Arc::clone(&self.whose.tables);
        let mut settling: BTreeMap<usize, Settling<'_>> = BTreeMap::new();
        for hole in std::mem::take(&mut self.holes) {
            let of = settling.entry(hole.table);
            let of = of.or_insert_with(|| Settling::new(&tables[hole.table].key, 0));
            of.hold(log, &hole)?;
        }
        for run in changes.chunk_by(|one, next| one.table == next.table) {
            let table = &tables[run[0].table];
            let of = settling.entry(run[0].table);
            let of = of.or_insert_with(|| Settling::new(&table.key, run.len()));
            for change in run {
                of.add(log, *change)
                    .map_err(|what| ApplyError::Contradiction {
                        table: table.plain(),
                        what,
                    })?;
            }
        }
        let mut nets = Vec::new();
        for (at, settled) in settling {
            let mut net = settled.net(log);
            self.fill(log, (at, &tables[at]), &mut net).await?;
            nets.push((at, net));
        }
        let mut all: Vec<Statement<'_>> = Vec::new();
        for (at, net) in &nets {
            all.push((*at, What::Delete, &net.deletes));
        }
        for (at, net) in &nets {
            let each = net.updates.iter();
            all.extend(
                each.map(|(shape, rows)| (*at, What::Update(shape.clone()), rows.as_slice())),
            );
        }
        for (at, net) in &nets {
            let what = inserting(self.whose.form, log, &net.inserts);
            all.push((*at, what, &net.inserts));
        }
        all.retain(|(_, _, rows)| !rows.is_empty());
        let copies = all.iter().filter(|(_, what, _)| *what == What::Copy);
        let copies: Vec<Statement<'_>> = copies.cloned().collect();
        all.retain(|(_, what, _)| *what != What::Copy);
        self.run(log, &all).await?;
        for copy in copies {
            self.copy(log, copy).await?;
        }
        Ok(())
    }

    /// Copies rows: once all else has gone well, as nothing more can be asked where a copy did not begin.
    async fn copy(&mut self, log: &Log, (at, what, rows): Statement<'_>) -> Result<(), ApplyError> {
        let table = &self.whose.tables[at];
        let failed = |error| ApplyError::Rows {
            table: table.plain(),
            error,
        };
        let client = &self.it.client;
        let prepared = self.here.prepare(client, (at, table), &what).await;
        let copied = prepared.map_err(failed)?.copy(client, (log, rows)).await;
        let touched = copied.map_err(|problem| match problem {
            NotCopied::Begin(error) => ApplyError::Sql(error),
            NotCopied::Rows(error) => failed(error),
            NotCopied::Large => Full.into(),
        });
        as_expected(table, &what, rows, touched?)
    }

    /// Sends all of them, then hears what became of each: one that fails takes those behind it with it.
    async fn run(&mut self, log: &Log, all: &[Statement<'_>]) -> Result<(), ApplyError> {
        let tables = &self.whose.tables;
        let failed = |at: usize| {
            move |error| ApplyError::Rows {
                table: tables[at].plain(),
                error,
            }
        };
        let mut ready = Vec::with_capacity(all.len());
        for (at, what, _) in all {
            let of = (*at, &tables[*at]);
            let prepared = self.here.prepare(&self.it.client, of, what).await;
            ready.push(prepared.map_err(failed(*at))?);
        }
        let client = &self.it.client;
        let sent = ready.iter().zip(all).map(|(prepared, (at, what, rows))| {
            prepared.execute(client, (&tables[*at], what), (log, rows))
        });
        let touched = in_order(sent.collect()).await;
        for ((at, what, rows), touched) in all.iter().zip(touched) {
            let touched = touched.map_err(failed(*at))?;
            as_expected(&tables[*at], what, rows, touched)?;
        }
        Ok(())
    }

    /// Values that were not sent, of rows that this destination does not have: the source's row has them, or such as the
    /// stream will bring them. Where the source's row has gone, the stream says what became of it: it waits for that.
    async fn fill(
        &mut self,
        log: &mut Log,
        (at, table): (usize, &Table),
        net: &mut Net,
    ) -> Result<(), ApplyError> {
        if net.missing.is_empty() {
            return Ok(());
        }
        let missing = std::mem::take(&mut net.missing);
        let rows: Vec<Row> = missing.iter().map(|(row, _)| *row).collect();
        let holes: Vec<Hole> = missing
            .into_iter()
            .map(|row| Hole::of(log, at, row))
            .collect();
        let unknown = |column: &usize| {
            let mut of = holes.iter().filter_map(|hole| hole.values.get(*column));
            of.any(|value| *value == Held::Unknown)
        };
        let columns: Vec<usize> = (0..table.columns.len()).filter(unknown).collect();
        let what = What::Read(columns.clone());
        let source = &self.it.source;
        let there = &mut self.there;
        let answers = there
            .query(source, (at, table), &what, (log, &rows), &[])
            .await?;
        // What was read must not be lost with the source's last moments: this is durable only behind it.
        source.batch_execute(FLUSH).await?;
        let mut found = BTreeMap::new();
        for answer in &answers {
            let place: i64 = answer.try_get(0)?;
            found.insert(usize::try_from(place).unwrap_or(0), answer);
        }
        for (place, mut hole) in (1..).zip(holes) {
            let Some(answer) = found.get(&place) else {
                self.holes.push(hole);
                continue;
            };
            for (number, column) in (1..).zip(&columns) {
                let value = &mut hole.values[*column];
                if *value == Held::Unknown {
                    let read: Option<Raw<'_>> = answer.try_get(number)?;
                    *value = read.map_or(Held::Null, |read| Held::Value(read.0.into()));
                }
            }
            let row = hole.row(log)?;
            if hole.existed {
                let shape = Shape::of(log.cells(row));
                net.updates.entry(shape).or_default().push(row);
            } else {
                net.inserts.push(row);
            }
        }
        Ok(())
    }

    /// Takes away what a table has of this source.
    async fn wipe(&mut self, at: usize) -> Result<(), ApplyError> {
        let table = &self.whose.tables[at];
        self.holes.retain(|hole| hole.table != at);
        let all = match &table.goes {
            Goes::Everywhere(_) => "true".to_owned(),
            Goes::ByKey(routes) => {
                let column = identifier(&table.columns[routes.column].name);
                let sets = routes.sets(self.place);
                let each: Result<Vec<String>, _> = sets
                    .map(|keys| keys.sql(&column, routes.key_type()))
                    .collect();
                let each = each.map_err(|problem| ApplyError::Wipe {
                    table: table.plain(),
                    problem: problem.to_string(),
                })?;
                format!("({})", each.join(" OR "))
            }
        };
        let sql = format!("DELETE FROM {} WHERE {all}", table.sql());
        Ok(self.it.client.batch_execute(&sql).await?)
    }
}

/// A table's place, what is done, and with which rows.
type Statement<'a> = (usize, What, &'a [Row]);

/// How rows are inserted: a few by a statement that is prepared once, of which the server makes less.
fn inserting(form: Form, log: &Log, rows: &[Row]) -> What {
    const FEW: usize = 64;
    const LITTLE: usize = 64 << 10;
    let length = || rows.iter().map(|row| log.length(*row)).sum::<usize>();
    if form == Form::Binary && (rows.len() > FEW || length() > LITTLE) {
        What::Copy
    } else {
        What::Insert
    }
}

fn as_expected(table: &Table, what: &What, rows: &[Row], touched: u64) -> Result<(), ApplyError> {
    let expected = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    if touched == expected {
        return Ok(());
    }
    Err(ApplyError::Count {
        table: table.plain(),
        what: word(what),
        expected,
        touched,
    })
}

fn word(what: &What) -> &'static str {
    match what {
        What::Insert | What::Copy => "INSERT",
        What::Update(_) => "UPDATE",
        What::Delete => "DELETE",
        What::Read(_) | What::Locate | What::Show => "SELECT",
    }
}

fn unless_replaced(is_mine: bool) -> Result<(), ApplyError> {
    if is_mine {
        Ok(())
    } else {
        Err(ApplyError::Replaced)
    }
}
