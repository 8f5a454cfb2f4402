//! COPY FROM STDIN into a sharded table: which column decides, how its values are read, and where a row goes. Pure.
//!
//! What must stay true: a row goes where an INSERT of the same values would put it, or the COPY fails. Every shard gets
//! the statement as the client wrote it, so that PostgreSQL judges the rest of it.

use super::{
    copy_left::{Condition, Left},
    spread::Shares,
    unroutable::{KeyProblem, Unroutable},
};
use crate::{
    catalog::{
        group::GroupId,
        key::{Key, KeyError},
        shard::{ShardId, ShardSet},
        snapshot::Snapshot,
    },
    split::copy::{Field, Forced, Format, Header, Options},
    sql::{
        clauses::tokens,
        tree::{Copy, CopyOption},
    },
    wire::types,
};
use std::ops::Range;

/// A COPY into a sharded table, or into one that every shard has a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyIn {
    /// The table as the search path finds it, for asking servers.
    pub schema: String,
    pub table: String,
    /// `None`: every shard has all rows, and there is no key.
    pub(super) group: Option<GroupId>,
    /// The key's column.
    pub key: String,
    /// The column list; `None`: every column, in the order that the servers have them.
    pub columns: Option<Vec<String>>,
    pub options: Options,
    pub tolerance: Tolerance,
    /// Columns that each row is given the transaction's time in.
    pub left: Vec<Left>,
    pub condition: Condition,
}

/// A COPY of a sharded table, or of a query, TO STDOUT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOut {
    /// `None`: of a query, which says by itself which shards it asks.
    group: Option<GroupId>,
    pub format: Format,
    pub header: Header,
}

impl CopyOut {
    /// What the statement says; `None`: something in it is not known here.
    pub(super) fn new(copy: &Copy, group: Option<GroupId>, key: &str) -> Option<Self> {
        let mut stated = Stated::default();
        for (name, value) in &copy.options {
            if name != "force_quote" {
                stated.option(name, value, key)?;
            }
        }
        let options = stated.options()?;
        Some(Self {
            group,
            format: options.format,
            header: options.header,
        })
    }

    /// The group of the table; `None`: a query is copied.
    #[must_use]
    pub fn of_table(&self) -> Option<GroupId> {
        self.group
    }

    /// The shards that have the table; `None`: a query is copied.
    #[must_use]
    pub fn shards(&self, snapshot: &Snapshot) -> Option<ShardSet> {
        Some(snapshot.group(self.group?).shards())
    }
}

/// Where the query of a COPY stands in its text, bytes, without its parentheses; `None`: not understood.
#[must_use]
pub fn query_within(text: &str) -> Option<Range<usize>> {
    let tokens = tokens(text)?;
    let [copy, open, ..] = tokens.as_slice() else {
        return None;
    };
    if !copy.is("copy") || open.text != "(" {
        return None;
    }
    let close = tokens
        .iter()
        .skip(2)
        .find(|token| token.text == ")" && token.depth == open.depth)?;
    Some(open.end..close.start)
}

/// What becomes of rows that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tolerance {
    /// They fail the COPY.
    #[default]
    None,
    /// ON_ERROR ignore: servers leave them out.
    Ignored,
}

/// The table that is copied into, and where it lives.
pub(super) struct Target<'a> {
    pub(super) schema: &'a str,
    pub(super) table: &'a str,
    pub(super) group: GroupId,
    pub(super) key: &'a str,
    pub(super) left: Vec<Left>,
    pub(super) condition: Condition,
}

impl CopyIn {
    /// What the statement says; `None`: something in it is not known here, or changes what a value is.
    pub(super) fn new(copy: &Copy, target: Target<'_>) -> Option<Self> {
        let stated = Stated::of(copy, target.key)?;
        let options = stated.options()?;
        if let Some(columns) = &copy.columns
            && !columns.iter().any(|column| column == target.key)
        {
            return None;
        }
        Some(Self {
            schema: target.schema.to_owned(),
            table: target.table.to_owned(),
            group: Some(target.group),
            key: target.key.to_owned(),
            columns: copy.columns.clone(),
            options,
            tolerance: stated.tolerance,
            left: target.left,
            condition: target.condition,
        })
    }

    /// A COPY of the same rows into every shard, which read them by themselves.
    pub(super) fn everywhere(copy: &Copy, schema: &str, table: &str, left: Vec<Left>) -> Self {
        let options = Stated::of(copy, "").and_then(|stated| stated.options());
        // What of rows is not understood is sent as it is; copies that differ then are found.
        let left = options.as_ref().map(|_| left);
        Self {
            schema: schema.to_owned(),
            table: table.to_owned(),
            group: None,
            key: String::new(),
            columns: copy.columns.clone(),
            options: options.unwrap_or_else(|| Options::of(Format::Text)),
            tolerance: Tolerance::None,
            left: left.unwrap_or_default(),
            condition: Condition::OfRows,
        }
    }

    /// Whether every shard is sent all rows.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.group.is_none()
    }

    /// The shards that have the table.
    #[must_use]
    pub fn shares(&self, snapshot: &Snapshot) -> Shares {
        let group = self.group.map(|group| snapshot.group(group).shards());
        let shards = group.unwrap_or_else(|| snapshot.all());
        Shares {
            shards: shards.iter().map(|shard| (shard, Vec::new())).collect(),
        }
    }

    /// The key's place among the columns that are listed; `None`: none are.
    #[must_use]
    pub fn listed_column(&self) -> Option<usize> {
        let mut columns = self.columns.as_ref()?.iter();
        columns.position(|column| *column == self.key)
    }

    /// Keeps the table's columns as they are, and whoever writes goes on; only where all shards have all rows, whoever
    /// writes comes before or behind on all of them.
    #[must_use]
    pub fn lock(&self) -> String {
        let table = self.quoted();
        if self.is_everywhere() {
            format!("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
        } else {
            format!("LOCK TABLE ONLY {table} IN ROW EXCLUSIVE MODE")
        }
    }

    /// Asks for what tells whether two shards have the same rows.
    #[must_use]
    pub fn rows_question(&self) -> String {
        let table = self.quoted();
        format!(
            "SELECT pg_catalog.concat(pg_catalog.count(*), ' ', pg_catalog.sum(pg_catalog.hashtextextended(\
             (ROW(copied.*)::pg_catalog.text) COLLATE pg_catalog.\"C\", 0))) FROM {table} AS copied"
        )
    }

    /// Asks for the columns that a COPY without a list has, in order, behind the key's place among them.
    #[must_use]
    pub fn columns_question(&self) -> String {
        let (table, key) = (literal(&self.quoted()), literal(&self.key));
        let names = "pg_catalog.array_agg(attname::pg_catalog.text ORDER BY attnum)";
        format!(
            "SELECT pg_catalog.concat(pg_catalog.array_position({names}, {key}::pg_catalog.text), ' ', {names}) \
             FROM pg_catalog.pg_attribute WHERE attrelid OPERATOR(pg_catalog.=) {table}::pg_catalog.regclass \
             AND attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped AND attgenerated OPERATOR(pg_catalog.=) ''"
        )
    }

    /// The key's place as the answer to [`CopyIn::columns_question`] says.
    #[must_use]
    pub fn column_among(&self, answer: &str) -> Option<usize> {
        let (place, _names) = answer.split_once(' ')?;
        place.parse::<usize>().ok()?.checked_sub(1)
    }

    /// A key for which there is no shard.
    #[must_use]
    pub fn homeless(&self, snapshot: &Snapshot) -> Unroutable {
        let group = self.group.map(|group| snapshot.group(group).name.clone());
        Unroutable::NoShardForKey {
            group: group.unwrap_or_default(),
        }
    }

    /// The table as SQL names it.
    #[must_use]
    pub fn quoted(&self) -> String {
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }

    /// Where a row with this key lives; `None`: on any shard, which leaves it out.
    ///
    /// # Errors
    /// It has no key, or one that no shard holds.
    pub fn shard(
        &self,
        snapshot: &Snapshot,
        field: Field<'_>,
    ) -> Result<Option<ShardId>, Box<Unroutable>> {
        let Some(group) = self.group.map(|group| snapshot.group(group)) else {
            return Ok(None);
        };
        let (table, key) = (self.table.clone(), self.key.clone());
        let value = match field {
            Field::Null => return Err(Box::new(Unroutable::KeyNull { table, key })),
            Field::Default => return Err(Box::new(Unroutable::KeyMissing { table, key })),
            Field::Value(value) => value,
        };
        let read = match self.options.format {
            Format::Text | Format::Csv => group.key_type.from_text(value),
            Format::Binary => group
                .key_type
                .from_parameter(0, types::Format::Binary, value),
        };
        let problem = |problem| {
            let key = format!("{table}.{key}");
            Box::new(Unroutable::KeyValue { key, problem })
        };
        let found = match read {
            // A varchar(n) may lose blanks at the end, and its length is not known here.
            Ok(Key::Text(text)) if text.ends_with(b" ") => {
                return Err(problem(KeyProblem::Ambiguous));
            }
            Ok(found) => found,
            Err(KeyError::Malformed) if self.tolerance == Tolerance::Ignored => return Ok(None),
            Err(KeyError::Malformed) => return Err(problem(KeyProblem::Malformed)),
            Err(KeyError::Ambiguous) => return Err(problem(KeyProblem::Ambiguous)),
            Err(KeyError::Type(_)) => return Err(problem(KeyProblem::Type)),
        };
        let shard = group.shard_of(&found).map(Some);
        shard.ok_or_else(|| Box::new(self.homeless(snapshot)))
    }
}

/// A string as SQL writes it whatever the settings are.
pub(super) fn literal(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{text}'")
}

/// Options as `ProcessCopyOptions` of PostgreSQL's copy.c reads them. What is wrong with one is for the servers to say.
#[derive(Default)]
struct Stated {
    format: Option<Format>,
    delimiter: Option<Vec<u8>>,
    null: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
    header: Header,
    quote: Option<Vec<u8>>,
    escape: Option<Vec<u8>>,
    force_null: Forced,
    force_not_null: Forced,
    tolerance: Tolerance,
}

impl Stated {
    fn of(copy: &Copy, key: &str) -> Option<Self> {
        let mut stated = Self::default();
        for (name, value) in &copy.options {
            stated.option(name, value, key)?;
        }
        Some(stated)
    }

    fn option(&mut self, name: &str, value: &CopyOption, key: &str) -> Option<()> {
        let text = || match value {
            CopyOption::Text(text) => Some(text.clone().into_bytes()),
            CopyOption::None | CopyOption::Columns(_) | CopyOption::Every | CopyOption::Unknown => {
                None
            }
        };
        match name {
            "format" => {
                self.format = Some(match text()?.as_slice() {
                    b"text" => Format::Text,
                    b"csv" => Format::Csv,
                    b"binary" => Format::Binary,
                    _ => return None,
                });
            }
            "delimiter" => self.delimiter = Some(text()?),
            "null" => self.null = Some(text()?),
            "default" => self.default = Some(text()?),
            "header" => self.header = header(value)?,
            "quote" => self.quote = Some(text()?),
            "escape" => self.escape = Some(text()?),
            "force_null" => self.force_null = forced(value, key)?,
            "force_not_null" => self.force_not_null = forced(value, key)?,
            "encoding" => {
                let encoding = text()?.to_ascii_lowercase();
                if !matches!(encoding.as_slice(), b"utf8" | b"utf-8" | b"unicode") {
                    return None;
                }
            }
            "on_error" => {
                self.tolerance = match text()?.to_ascii_lowercase().as_slice() {
                    b"stop" => Tolerance::None,
                    b"ignore" => Tolerance::Ignored,
                    _ => return None,
                };
            }
            "freeze" | "log_verbosity" => {}
            _ => return None,
        }
        Some(())
    }

    fn options(&self) -> Option<Options> {
        let mut options = Options::of(self.format.unwrap_or(Format::Text));
        let byte = |text: &Option<Vec<u8>>, usual: u8| match text.as_deref() {
            None => Some(usual),
            Some([byte]) => Some(*byte),
            Some(_) => None,
        };
        options.delimiter = byte(&self.delimiter, options.delimiter)?;
        options.quote = byte(&self.quote, options.quote)?;
        options.escape = byte(&self.escape, options.quote)?;
        if let Some(null) = &self.null {
            options.null.clone_from(null);
        }
        options.default.clone_from(&self.default);
        options.header = self.header;
        options.force_null = self.force_null;
        options.force_not_null = self.force_not_null;
        Some(options)
    }
}

/// HEADER, as `defGetCopyHeaderOption` reads it: `match` has a header too.
fn header(value: &CopyOption) -> Option<Header> {
    match value {
        CopyOption::None => Some(Header::Line),
        CopyOption::Text(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "match" | "1" => Some(Header::Line),
            "false" | "off" | "0" => Some(Header::None),
            _ => None,
        },
        CopyOption::Columns(_) | CopyOption::Every | CopyOption::Unknown => None,
    }
}

fn forced(value: &CopyOption, key: &str) -> Option<Forced> {
    match value {
        CopyOption::Every => Some(Forced::Yes),
        CopyOption::Columns(columns) if columns.iter().any(|column| column == key) => {
            Some(Forced::Yes)
        }
        CopyOption::Columns(_) => Some(Forced::No),
        CopyOption::None | CopyOption::Text(_) | CopyOption::Unknown => None,
    }
}

/// The columns that every row has a value for, as far as they are known.
pub(super) fn given<'a>(copy: &'a Copy, known: &'a [String]) -> &'a [String] {
    copy.columns.as_deref().unwrap_or(known)
}
