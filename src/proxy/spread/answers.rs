//! What several shards answer to one write or schema change, put together as one PostgreSQL would answer.

use crate::{
    plan::spread::What,
    wire::{backend::put_complete, frame::Body, frontend::put},
};

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u32 = 16384;

/// What one shard has answered.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Answer {
    /// The body of RowDescription, if rows are returned.
    columns: Option<Vec<u8>>,
    /// The bodies of DataRows, one behind the other, and where each ends.
    rows: Vec<u8>,
    ends: Vec<usize>,
    tag: Vec<u8>,
    prints: Prints,
}

/// Which rows were written, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prints {
    count: u64,
    sum: u64,
    mixed: u64,
}

/// Why the answers are not those of one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Discord {
    /// The shards' tables have other columns.
    Columns,
    /// Copies of a table would differ.
    Copies,
    /// An answer is not what it should be.
    Malformed,
}

/// The answer to the client.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Written {
    columns: Option<Vec<u8>>,
    /// DataRows in the order in which they are given.
    rows: std::collections::VecDeque<Vec<u8>>,
    tag: Vec<u8>,
}

impl Answer {
    pub(in crate::proxy) fn describe(&mut self, body: &[u8]) {
        self.columns = Some(body.to_vec());
    }

    pub(in crate::proxy) fn complete(&mut self, tag: &[u8]) {
        self.tag = tag.to_vec();
    }

    /// Adds a DataRow. Of a copy's the last value is its fingerprint, and only the first shard's rows are the client's.
    pub(in crate::proxy) fn row(
        &mut self,
        body: &[u8],
        what: &What,
        first: bool,
    ) -> Result<(), Discord> {
        if !matches!(what, What::Copies(_)) {
            self.keep(body);
            return Ok(());
        }
        let (row, print) = split_last(body).ok_or(Discord::Malformed)?;
        self.prints.add(print).ok_or(Discord::Malformed)?;
        if first {
            self.keep(&row);
        }
        Ok(())
    }

    /// The body of RowDescription, if there is one.
    pub(in crate::proxy) fn columns_mut(&mut self) -> Option<&mut Vec<u8>> {
        self.columns.as_mut()
    }

    /// Each row's body.
    pub(in crate::proxy) fn rows_mut(&mut self, mut each: impl FnMut(&mut [u8])) {
        let mut start = 0;
        for end in &self.ends {
            if let Some(row) = self.rows.get_mut(start..*end) {
                each(row);
            }
            start = *end;
        }
    }

    fn keep(&mut self, row: &[u8]) {
        self.rows.extend_from_slice(row);
        self.ends.push(self.rows.len());
    }

    fn rows(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.rows[start..*end])
    }
}

impl Prints {
    fn add(&mut self, print: &[u8]) -> Option<()> {
        let print = std::str::from_utf8(print).ok()?;
        let number = print.parse::<i64>().ok()?.cast_unsigned();
        self.count += 1;
        self.sum = self.sum.wrapping_add(number);
        // Rows that cancel each other out in the sum do not here.
        let mut mixed = number ^ (number >> 31);
        mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.mixed = self.mixed.wrapping_add(mixed ^ (mixed >> 29));
        Some(())
    }
}

/// The statement's answer, made of those of its shards; `rows`: which rows of VALUES each shard was given.
pub(in crate::proxy) fn together(
    answers: &[Answer],
    what: &What,
    rows: &[Vec<u32>],
) -> Result<Written, Discord> {
    let first = answers.first().ok_or(Discord::Malformed)?;
    let columns = first.columns.as_deref();
    for other in &answers[1..] {
        if !are_alike(columns, other.columns.as_deref()) {
            return Err(Discord::Columns);
        }
    }
    let mut written = match what {
        What::Copies(_) => copies(answers)?,
        What::Rows(_) | What::Share(_) | What::Whole => shares(answers, rows)?,
        What::Change | What::Move(_) => Written::of_change(answers)?,
    };
    written.columns = match (what, columns) {
        (What::Copies(_), Some(columns)) => without_last_column(columns)?,
        (_, columns) => columns.map(<[u8]>::to_vec),
    };
    if written.columns.is_none() {
        written.rows.clear();
    }
    Ok(written)
}

fn copies(answers: &[Answer]) -> Result<Written, Discord> {
    let first = &answers[0];
    let same = |other: &Answer| other.prints == first.prints && other.tag == first.tag;
    if !answers[1..].iter().all(same) {
        return Err(Discord::Copies);
    }
    Ok(Written {
        columns: None,
        rows: first.rows().map(<[u8]>::to_vec).collect(),
        tag: first.tag.clone(),
    })
}

fn shares(answers: &[Answer], given: &[Vec<u32>]) -> Result<Written, Discord> {
    let mut sum = 0_u64;
    let mut verb: Option<&[u8]> = None;
    for answer in answers {
        let (own, count) = split_tag(&answer.tag).ok_or(Discord::Malformed)?;
        if verb.is_some_and(|verb| verb != own) {
            return Err(Discord::Malformed);
        }
        verb = Some(own);
        sum += count;
    }
    let mut tag = verb.unwrap_or_default().to_vec();
    tag.extend_from_slice(sum.to_string().as_bytes());
    let whole = answers
        .iter()
        .zip(given)
        .all(|(answer, given)| answer.ends.len() == given.len());
    let mut rows: Vec<(u32, &[u8])> = Vec::new();
    for (answer, given) in answers.iter().zip(given) {
        // Which rows were left out is not known when some were: then they come shard by shard.
        let mut places = given.iter().copied().filter(|_| whole);
        rows.extend(answer.rows().map(|row| (places.next().unwrap_or(0), row)));
    }
    rows.sort_by_key(|(place, _)| *place);
    Ok(Written {
        columns: None,
        rows: rows.into_iter().map(|(_, row)| row.to_vec()).collect(),
        tag,
    })
}

/// `INSERT 0 5` as `INSERT 0 ` and 5.
fn split_tag(tag: &[u8]) -> Option<(&[u8], u64)> {
    let at = tag.iter().rposition(|byte| *byte == b' ')? + 1;
    let count = std::str::from_utf8(&tag[at..]).ok()?.parse().ok()?;
    Some((&tag[..at], count))
}

impl Written {
    /// All shards say the same of a schema change; `setval` gives a row.
    fn of_change(answers: &[Answer]) -> Result<Self, Discord> {
        let first = &answers[0];
        let alike = |other: &Answer| other.tag == first.tag && other.rows == first.rows;
        let written = Self {
            rows: first.rows().map(<[u8]>::to_vec).collect(),
            ..Self::of_command(first.tag.clone())
        };
        let same = answers[1..].iter().all(alike);
        same.then_some(written).ok_or(Discord::Malformed)
    }

    /// These rows, as described.
    pub(in crate::proxy) fn of_rows(
        columns: Option<Vec<u8>>,
        rows: Vec<Vec<u8>>,
        tag: Vec<u8>,
    ) -> Self {
        let rows = if columns.is_some() { rows } else { Vec::new() };
        Self {
            columns,
            rows: rows.into(),
            tag,
        }
    }

    /// What a command without rows answers.
    pub(in crate::proxy) fn of_command(tag: Vec<u8>) -> Self {
        Self {
            tag,
            ..Self::default()
        }
    }

    /// The description of the rows, for the simple protocol.
    pub(in crate::proxy) fn put_columns(&self, out: &mut Vec<u8>) {
        if let Some(columns) = &self.columns {
            put(out, b'T', |out| out.extend_from_slice(columns));
        }
    }

    /// Puts up to so many rows, all for 0; whether these are all that there are. The tag is put behind the last, and
    /// counts, as PostgreSQL's, the rows that were given now.
    pub(in crate::proxy) fn put_rows(&mut self, most: usize, out: &mut Vec<u8>) -> bool {
        let mut given = 0;
        while (most == 0 || given < most)
            && let Some(row) = self.rows.pop_front()
        {
            put(out, b'D', |out| out.extend_from_slice(&row));
            given += 1;
        }
        // That there are no more is found out by asking for more.
        if most > 0 && given == most {
            put(out, b's', |_| {});
            return false;
        }
        match split_tag(&self.tag).filter(|_| self.columns.is_some()) {
            Some((verb, _)) => {
                put_complete(out, &[verb, given.to_string().as_bytes()].concat());
            }
            None => put_complete(out, &self.tag),
        }
        true
    }
}

/// A DataRow without its last value, and that value.
pub(super) fn split_last(body: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut values = Body::new(body);
    let count = values.u16().ok()?;
    for _ in 1..count {
        values.value().ok()?;
    }
    let behind = body.len() - values.rest().len();
    let last = values.value().ok()??;
    let mut row = count.checked_sub(1)?.to_be_bytes().to_vec();
    row.extend_from_slice(&body[2..behind]);
    Some((row, last))
}

/// A RowDescription without its last column; `None`: it was the only one.
pub(super) fn without_last_column(body: &[u8]) -> Result<Option<Vec<u8>>, Discord> {
    let mut columns = Body::new(body);
    let count = columns.u16().map_err(|_malformed| Discord::Malformed)?;
    for _ in 1..count {
        column(&mut columns).ok_or(Discord::Malformed)?;
    }
    let behind = body.len() - columns.rest().len();
    Ok((count > 1).then(|| {
        let mut made = (count - 1).to_be_bytes().to_vec();
        made.extend_from_slice(&body[2..behind]);
        made
    }))
}

/// A column's name, type, modifier and format.
pub(super) fn column<'a>(columns: &mut Body<'a>) -> Option<(&'a [u8], u32, &'a [u8], u16)> {
    let name = columns.cstr().ok()?;
    let _table_and_number = columns.bytes(6).ok()?;
    let type_oid = columns.u32().ok()?;
    let _length = columns.bytes(2).ok()?;
    let modifier = columns.bytes(4).ok()?;
    let format = columns.u16().ok()?;
    Some((name, type_oid, modifier, format))
}

/// Whether two shards' rows are of the same columns. A database's own types may have other numbers on another shard,
/// which only values in binary tell.
pub(super) fn are_alike(one: Option<&[u8]>, other: Option<&[u8]>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return one.is_none() && other.is_none();
    };
    let (mut one, mut other) = (Body::new(one), Body::new(other));
    let (Ok(count), Ok(others)) = (one.u16(), other.u16()) else {
        return false;
    };
    let alike = |one: (&[u8], u32, &[u8], u16), other: (&[u8], u32, &[u8], u16)| {
        let own = one.1 >= FIRST_OWN_OID && other.1 >= FIRST_OWN_OID && one.3 == 0;
        (one.0, one.2, one.3) == (other.0, other.2, other.3) && (one.1 == other.1 || own)
    };
    count == others
        && (0..count).all(|_| {
            column(&mut one)
                .zip(column(&mut other))
                .is_some_and(|(one, other)| alike(one, other))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::group::GroupId,
        plan::spread::{Copies, What},
    };

    fn row(values: &[&str]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            body.extend(value.as_bytes());
        }
        body
    }

    fn columns(names: &[&str], type_oid: u32, format: u16) -> Vec<u8> {
        let mut body = u16::try_from(names.len()).unwrap().to_be_bytes().to_vec();
        for name in names {
            body.extend(name.as_bytes());
            body.extend([0; 7]);
            body.extend(type_oid.to_be_bytes());
            body.extend([0; 6]);
            body.extend(format.to_be_bytes());
        }
        body
    }

    fn answer(what: &What, rows: &[&[&str]], tag: &str, first: bool) -> Answer {
        let mut answer = Answer::default();
        let width = rows.first().map_or(1, |row| row.len());
        answer.describe(&columns(&["a", "b", "c"][..width], 23, 0));
        for values in rows {
            answer.row(&row(values), what, first).unwrap();
        }
        answer.complete(tag.as_bytes());
        answer
    }

    fn copied() -> What {
        What::Copies(Copies {
            table: String::new(),
            quoted: String::new(),
            alias: String::new(),
        })
    }

    #[test]
    fn counts_are_summed_and_rows_are_in_the_order_of_values() {
        let what = What::Rows(4);
        let answers = [
            answer(&what, &[&["b"], &["d"]], "INSERT 0 2", true),
            answer(&what, &[&["a"], &["c"]], "INSERT 0 2", false),
        ];
        let written = together(&answers, &what, &[vec![1, 3], vec![0, 2]]).unwrap();
        assert_eq!(written.tag, b"INSERT 0 4");
        assert_eq!(
            written.rows,
            [row(&["a"]), row(&["b"]), row(&["c"]), row(&["d"])]
        );
        let short = [
            answer(&what, &[&["d"]], "INSERT 0 1", true),
            answer(&what, &[&["a"], &["c"]], "INSERT 0 2", false),
        ];
        let written = together(&short, &what, &[vec![1, 3], vec![0, 2]]).unwrap();
        assert_eq!(written.rows, [row(&["d"]), row(&["a"]), row(&["c"])]);
    }

    #[test]
    fn copies_that_would_differ_are_noticed_and_their_fingerprints_are_not_shown() {
        let what = copied();
        let make = |rows: &[&[&str]], first| answer(&what, rows, "UPDATE 2", first);
        let one = make(&[&["x", "7"], &["y", "-12345678"]], true);
        let other = make(&[&["y", "-12345678"], &["x", "7"]], false);
        let written = together(&[one, other], &what, &[]).unwrap();
        assert_eq!(written.columns, Some(columns(&["a"], 23, 0)));
        assert_eq!(written.rows, [row(&["x"]), row(&["y"])]);
        for differs in [
            make(&[&["x", "7"], &["y", "8"]], false),
            make(&[&["x", "7"]], false),
            answer(
                &what,
                &[&["x", "7"], &["y", "-12345678"]],
                "UPDATE 1",
                false,
            ),
        ] {
            let one = make(&[&["x", "7"], &["y", "-12345678"]], true);
            let found = together(&[one, differs], &what, &[]);
            assert_eq!(found.unwrap_err(), Discord::Copies);
        }
        let only = [answer(&what, &[&["7"]], "DELETE 1", true)];
        let written = together(&only, &what, &[]).unwrap();
        assert!(written.columns.is_none() && written.rows.is_empty());
    }

    #[test]
    fn a_databases_own_types_have_numbers_of_their_own_on_each_shard() {
        let what = What::Share(GroupId(0));
        let make = |type_oid, format| {
            let mut answer = Answer::default();
            answer.describe(&columns(&["a"], type_oid, format));
            answer.complete(b"DELETE 0");
            answer
        };
        assert!(together(&[make(20000, 0), make(20001, 0)], &what, &[]).is_ok());
        for (one, other) in [
            (make(20000, 1), make(20001, 1)),
            (make(23, 0), make(20, 0)),
            (make(23, 0), Answer::default()),
        ] {
            let found = together(&[one, other], &what, &[vec![], vec![]]);
            assert_eq!(found.unwrap_err(), Discord::Columns);
        }
    }

    #[test]
    fn rows_may_be_taken_in_parts() {
        let what = What::Share(GroupId(0));
        let rows = [answer(&what, &[&["a"], &["b"]], "DELETE 2", true)];
        let mut written = together(&rows, &what, &[vec![]]).unwrap();
        let mut out = Vec::new();
        assert!(!written.put_rows(2, &mut out));
        assert_eq!(out.last_chunk(), Some(b"s\0\0\0\x04"));
        assert!(written.put_rows(2, &mut out));
        assert!(out.ends_with(b"DELETE 0\0"));
    }
}
