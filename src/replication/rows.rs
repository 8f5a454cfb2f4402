//! Statements over many rows at a time, each column as one array, or all of them as what COPY takes: what a batch comes to, as
//! SQL.
//!
//! What must stay true: a value is written as it was streamed, in its binary form or as text that its type reads; rows are
//! found by their primary key alone; nothing is looked up by a name that a database could shadow; a connection on which a
//! COPY did not begin is not used again.

use super::{
    batch::{Log, Row, Shape},
    tables::{Table, identifier},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use deadpool_postgres::Client;
use futures_util::{SinkExt as _, future::maybe_done};
use std::{
    collections::HashMap,
    error::Error,
    future::{Future, poll_fn},
    num::TryFromIntError,
    pin::pin,
    task::Poll,
};
use tokio_postgres::{
    Statement,
    types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked},
};

/// In which form values are streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Each as its type sends it.
    Binary,
    Text,
}

/// What a statement does with the rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    Insert,
    /// The same by COPY, of values in their binary form: without an array of each column, which the server would take apart
    /// row by row and keep twice.
    Copy,
    /// Sets these columns.
    Update(Shape),
    Delete,
    /// Answers these columns of the rows that are there, each after its place among the keys.
    Read(Vec<usize>),
    /// Answers the numbers of the chunks that keys belong to, in the order of the keys. More parameters follow, one `text[]`
    /// for each column of the key, with the lows of chunks 1, 2, … in order.
    Locate,
    /// Answers the keys as text.
    Show,
}

/// Statements that were prepared on one connection.
#[derive(Debug)]
pub struct Statements {
    form: Form,
    prepared: HashMap<(usize, What), Statement>,
}

impl Statements {
    /// None yet.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self {
            form,
            prepared: HashMap::new(),
        }
    }

    /// Prepares one.
    ///
    /// # Errors
    /// What the server said.
    pub async fn prepare(
        &mut self,
        client: &Client,
        of: (usize, &Table),
        what: &What,
    ) -> Result<Prepared, tokio_postgres::Error> {
        self.statement(client, of, what).await.map(Prepared)
    }

    /// Runs one that answers rows. `more` follows the columns.
    ///
    /// # Errors
    /// What the server said.
    pub async fn query(
        &mut self,
        client: &Client,
        (place, table): (usize, &Table),
        what: &What,
        (log, rows): (&Log, &[Row]),
        more: &[Vec<&str>],
    ) -> Result<Vec<tokio_postgres::Row>, tokio_postgres::Error> {
        let statement = self.statement(client, (place, table), what).await?;
        let columns = arrays(table, what, log, rows);
        let columns = columns.iter().map(|it| it as &(dyn ToSql + Sync));
        let more = more.iter().map(|it| it as &(dyn ToSql + Sync));
        let all: Vec<_> = columns.chain(more).collect();
        client.query(&statement, &all).await
    }

    async fn statement(
        &mut self,
        client: &Client,
        (place, table): (usize, &Table),
        what: &What,
    ) -> Result<Statement, tokio_postgres::Error> {
        // Looked up by reference it would need a borrowed form of the pair.
        let key = (place, what.clone());
        if let Some(found) = self.prepared.get(&key) {
            return Ok(found.clone());
        }
        let made = client.prepare(&sql(table, what, self.form)).await?;
        self.prepared.insert(key, made.clone());
        Ok(made)
    }
}

/// A statement that changes rows, ready on its connection.
#[derive(Debug)]
pub struct Prepared(Statement);

impl Prepared {
    /// Runs it, and tells how many rows it changed. It is sent when this is asked for the first time.
    ///
    /// # Errors
    /// What the server said.
    pub async fn execute(
        &self,
        client: &Client,
        (table, what): (&Table, &What),
        (log, rows): (&Log, &[Row]),
    ) -> Result<u64, tokio_postgres::Error> {
        let columns = arrays(table, what, log, rows);
        let columns: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|it| it as _).collect();
        client.execute(&self.0, &columns).await
    }

    /// Copies rows, and tells how many there were.
    ///
    /// # Errors
    /// [`NotCopied`].
    pub async fn copy(
        &self,
        client: &Client,
        (log, rows): (&Log, &[Row]),
    ) -> Result<u64, NotCopied> {
        let begun = client.copy_in::<_, Bytes>(&self.0).await;
        let mut sink = pin!(begun.map_err(NotCopied::Begin)?);
        let mut out = BytesMut::with_capacity(SENT);
        out.put_slice(BEGIN);
        for row in rows {
            put_row(log, *row, &mut out).map_err(|_large| NotCopied::Large)?;
            if out.len() >= SENT {
                let full = out.split().freeze();
                sink.feed(full).await.map_err(NotCopied::Rows)?;
                out.reserve(SENT);
            }
        }
        out.put_i16(-1);
        sink.feed(out.freeze()).await.map_err(NotCopied::Rows)?;
        sink.finish().await.map_err(NotCopied::Rows)
    }
}

/// Bytes of rows that are sent at a time, about.
const SENT: usize = 64 << 10;
/// What values in their binary form begin with: a signature, no flags, no more of a header.
const BEGIN: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Why rows were not copied.
#[derive(Debug)]
pub enum NotCopied {
    /// The server did not agree to it. Its client sends one message too many then: answers that come later on this connection
    /// are not those of what is asked.
    Begin(tokio_postgres::Error),
    /// It did not take the rows.
    Rows(tokio_postgres::Error),
    /// A value is longer than any can be.
    Large,
}

/// A row as COPY takes it.
fn put_row(log: &Log, row: Row, out: &mut BytesMut) -> Result<(), TryFromIntError> {
    let cells = log.cells(row);
    out.put_i16(i16::try_from(cells.len())?);
    for cell in cells {
        put_value(log.value(*cell), out)?;
    }
    Ok(())
}

/// A value behind its length, as arrays and rows have it.
fn put_value(value: Option<&[u8]>, out: &mut BytesMut) -> Result<(), TryFromIntError> {
    match value {
        Some(value) => {
            out.put_i32(i32::try_from(value.len())?);
            out.put_slice(value);
        }
        None => out.put_i32(-1),
    }
    Ok(())
}

/// Begins all of them in their order, without waiting for one before the next, and waits for all.
pub async fn in_order<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(|it| Box::pin(maybe_done(it))).collect();
    poll_fn(|cx| {
        let mut waits = false;
        for it in &mut all {
            waits |= it.as_mut().poll(cx).is_pending();
        }
        if waits {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    let outputs = all.iter_mut().filter_map(|it| it.as_mut().take_output());
    outputs.collect()
}

/// A value as it is on the wire.
#[derive(Debug)]
pub struct Raw<'a>(pub &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The values of one column of some rows, as an array.
#[derive(Debug)]
struct Array<'a> {
    log: &'a Log,
    rows: &'a [Row],
    column: usize,
}

impl ToSql for Array<'_> {
    fn to_sql(
        &self,
        array: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Kind::Array(element) = array.kind() else {
            return Err("no array".into());
        };
        let count = i32::try_from(self.rows.len())?;
        out.put_i32(i32::from(count > 0)); // dimensions
        out.put_i32(1); // there may be NULLs
        out.put_u32(element.oid());
        if count > 0 {
            out.put_i32(count);
            out.put_i32(1); // the first one's number
        }
        for row in self.rows {
            let cell = self.log.cells(*row).get(self.column).copied();
            put_value(cell.and_then(|cell| self.log.value(cell)), out)?;
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// The columns that a statement gets as parameters.
fn parameters(table: &Table, what: &What) -> Vec<usize> {
    match what {
        What::Insert | What::Copy => (0..table.columns.len()).collect(),
        What::Update(shape) => {
            let set = (0..table.columns.len()).filter(|at| shape.has(*at));
            let set = set.filter(|at| !table.key.contains(at));
            table.key.iter().copied().chain(set).collect()
        }
        What::Delete | What::Read(_) | What::Locate | What::Show => table.key.clone(),
    }
}

fn arrays<'a>(table: &Table, what: &What, log: &'a Log, rows: &'a [Row]) -> Vec<Array<'a>> {
    let columns = parameters(table, what).into_iter();
    columns.map(|column| Array { log, rows, column }).collect()
}

fn sql(table: &Table, what: &What, form: Form) -> String {
    let given = parameters(table, what);
    let column = |at: usize| identifier(&table.columns[at].name);
    let value = |at: usize| match form {
        Form::Binary => format!("u.c{at}"),
        Form::Text => format!("u.c{at}::{}", table.columns[at].type_name),
    };
    let array = |(number, at): (usize, &usize)| match form {
        Form::Binary => format!("${number}::{}[]", table.columns[*at].type_name),
        Form::Text => format!("${number}::text[]"),
    };
    let arrays = joined((1..).zip(&given).map(array), ", ");
    let names = joined(given.iter().map(|at| format!("c{at}")), ", ");
    let rows = format!("unnest({arrays}) AS u ({names})");
    let placed = format!("unnest({arrays}) WITH ORDINALITY AS u ({names}, place)");
    let same = table
        .key
        .iter()
        .map(|at| format!("t.{} = {}", column(*at), value(*at)));
    let same = joined(same, " AND ");
    let name = table.sql();
    match what {
        What::Insert => {
            let columns = joined(given.iter().map(|at| column(*at)), ", ");
            let values = joined(given.iter().map(|at| value(*at)), ", ");
            format!(
                "INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {rows}"
            )
        }
        What::Copy => {
            let columns = joined(given.iter().map(|at| column(*at)), ", ");
            format!("COPY {name} ({columns}) FROM STDIN (FORMAT binary)")
        }
        What::Update(_) => {
            let set = &given[table.key.len()..];
            if set.is_empty() {
                return format!("SELECT FROM {name} AS t, {rows} WHERE {same}");
            }
            let (own, set): (Vec<usize>, Vec<usize>) =
                set.iter().partition(|at| table.columns[**at].identity);
            if !own.is_empty() {
                let given = format!("SELECT * FROM {rows}");
                return renumber(table, (&given, &same), (&own, &set), value);
            }
            let set = setting(&set, column, value);
            format!("UPDATE {name} AS t SET {set} FROM {rows} WHERE {same}")
        }
        What::Delete => format!("DELETE FROM {name} AS t USING {rows} WHERE {same}"),
        What::Read(columns) => {
            let each = columns.iter().map(|at| match form {
                Form::Binary => format!("t.{}", column(*at)),
                Form::Text => format!("t.{}::text", column(*at)),
            });
            let each = joined(each, ", ");
            format!("SELECT u.place, {each} FROM {name} AS t, {placed} WHERE {same}")
        }
        What::Locate => locate(table, &value, &placed),
        What::Show => {
            let each = given.iter().map(|at| format!("{}::text", value(*at)));
            let each = joined(each, ", ");
            format!("SELECT {each} FROM {placed} ORDER BY u.place")
        }
    }
}

fn setting(
    set: &[usize],
    column: impl Fn(usize) -> String,
    value: impl Fn(usize) -> String,
) -> String {
    let each = set
        .iter()
        .map(|at| format!("{} = {}", column(*at), value(*at)));
    joined(each, ", ")
}

/// An UPDATE of rows that may have got other numbers in `own`, columns that are set by no UPDATE where they are GENERATED ALWAYS:
/// those that have go, and come with them and all that they keep; the others' values are set. It answers a row for each.
fn renumber(
    table: &Table,
    (given, same): (&str, &str),
    (own, set): (&[usize], &[usize]),
    value: impl Fn(usize) -> String,
) -> String {
    let name = table.sql();
    let column = |at: usize| identifier(&table.columns[at].name);
    let differs = own
        .iter()
        .map(|at| format!("t.{} IS DISTINCT FROM {}", column(*at), value(*at)));
    let differs = joined(differs, " OR ");
    let all = 0..table.columns.len();
    let kept = all.clone().map(|at| {
        if own.contains(&at) || set.contains(&at) {
            value(at)
        } else {
            format!("t.{}", column(at))
        }
    });
    let kept = joined(kept, ", ");
    let names = joined(all.clone().map(|at| format!("n{at}")), ", ");
    let columns = joined(all.map(column), ", ");
    let others = if set.is_empty() {
        format!("SELECT 1 FROM {name} AS t, u WHERE {same} AND NOT ({differs})")
    } else {
        let set = setting(set, column, &value);
        format!("UPDATE {name} AS t SET {set} FROM u WHERE {same} AND NOT ({differs}) RETURNING 1")
    };
    format!(
        "WITH u AS MATERIALIZED ({given}), \
         gone ({names}) AS (DELETE FROM {name} AS t USING u WHERE {same} AND ({differs}) RETURNING {kept}), \
         come AS (INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {names} FROM gone RETURNING 1), \
         others AS ({others}) \
         SELECT FROM come UNION ALL SELECT FROM others"
    )
}

/// Compares keys with chunks' lows as the source's own index does.
fn locate(table: &Table, value: &impl Fn(usize) -> String, placed: &str) -> String {
    let collated = |sql: String, at: usize| match &table.columns[at].collation {
        Some(collation) => format!("({sql}) COLLATE {collation}"),
        None => sql,
    };
    let keys = joined(table.key.iter().map(|at| collated(value(*at), *at)), ", ");
    let lows = table.key.iter().map(|at| {
        let low = format!("b.c{at}::{}", table.columns[*at].type_name);
        collated(low, *at)
    });
    let lows = joined(lows, ", ");
    let count = table.key.len();
    let arrays = joined(
        (1..=count).map(|at| format!("${}::text[]", count + at)),
        ", ",
    );
    let names = joined(table.key.iter().map(|at| format!("c{at}")), ", ");
    format!(
        "SELECT coalesce(width_bucket(ROW({keys}), low.bounds), 0) FROM {placed}, \
         (SELECT array_agg(ROW({lows}) ORDER BY b.place) FROM unnest({arrays}) WITH ORDINALITY AS b ({names}, place)) \
         AS low (bounds) ORDER BY u.place"
    )
}

fn joined(each: impl IntoIterator<Item = String>, between: &str) -> String {
    each.into_iter().collect::<Vec<String>>().join(between)
}
