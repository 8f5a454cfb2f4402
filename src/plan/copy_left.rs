//! Columns that a COPY FROM STDIN leaves to a default that asks for the transaction's time, which every shard would tell by
//! its own clock: each row is sent their values. Pure.
//!
//! What must stay true: a value is what PostgreSQL's own default gives at the transaction's time, computed by a server,
//! and sent in a form of which the column's type reads the same value again. What has no such form is refused.

use super::{copy::literal, spread::with_time};
use crate::{
    catalog::effects::{Effects, Once},
    split::copy::Format,
    sql::{clauses::tokens, tree::Copy},
};

/// One such column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub column: String,
    expression: String,
}

/// What a COPY's WHERE asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing but the row's values, if there is one.
    #[default]
    OfRows,
    /// The transaction's time too, which is written into it.
    OfTime,
}

/// What a server says of the type of such a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// As SQL names it in the session; a domain's base type.
    name: String,
    /// The function that gives a value's bytes.
    send: String,
}

/// Of these every form but ISO's depends on settings, or says less than the value.
const TIMES: [&str; 3] = [
    "date",
    "timestamp with time zone",
    "timestamp without time zone",
];
/// Divides the parts of an answer.
const BETWEEN: char = '\u{1}';

/// The columns that the list of this COPY leaves out.
pub(super) fn left(copy: &Copy, effects: &Effects) -> Vec<Left> {
    let Some(columns) = &copy.columns else {
        // All have values.
        return Vec::new();
    };
    let varying = effects.varying.iter();
    varying
        .filter(|one| one.once == Once::Transaction && !columns.contains(&one.column))
        .map(|one| Left {
            column: one.column.clone(),
            expression: one.expression.clone(),
        })
        .collect()
}

/// Whether the marker of DEFAULT may stand for such a time in a row.
pub(super) fn may_mark(copy: &Copy, effects: &Effects) -> bool {
    let timed = |one: &crate::catalog::effects::Varying| {
        let columns = copy.columns.as_ref();
        one.once == Once::Transaction && columns.is_none_or(|columns| columns.contains(&one.column))
    };
    copy.options.iter().any(|(name, _)| name == "default") && effects.varying.iter().any(timed)
}

/// The text of a COPY with these columns in front of those that it lists; `None`: not understood.
#[must_use]
pub fn listing(text: &str, left: &[Left]) -> Option<String> {
    if left.is_empty() {
        return Some(text.to_owned());
    }
    let tokens = tokens(text)?;
    let list = tokens.iter().find(|token| token.text == "(")?;
    let quoted = |left: &Left| format!("\"{}\", ", left.column.replace('"', "\"\""));
    let names: String = left.iter().map(quoted).collect();
    let (head, rest) = text.split_at_checked(list.end)?;
    Some(format!("{head}{names}{rest}"))
}

/// The text of a COPY whose condition has the transaction's time in it; `None`: not understood.
#[must_use]
pub fn at_moment(text: &str, time: &str) -> Option<String> {
    let tokens = tokens(text)?;
    let condition = tokens
        .iter()
        .find(|token| token.depth == 0 && token.is("where"))?;
    let (head, rest) = text.split_at_checked(condition.end)?;
    Some(format!("{head}{}", with_time(rest, time)?))
}

impl Left {
    /// Asks for what [`Left::kind`] reads; `table` is quoted. Nothing is answered where the default may give each row
    /// another value.
    #[must_use]
    pub fn kind_question(&self, table: &str) -> String {
        let (table, column) = (literal(table), literal(&self.column));
        format!(
            "WITH RECURSIVE own AS (SELECT attrelid, attnum, atttypid FROM pg_catalog.pg_attribute \
             WHERE attrelid OPERATOR(pg_catalog.=) {table}::pg_catalog.regclass \
             AND attname OPERATOR(pg_catalog.=) {column}::pg_catalog.name AND NOT attisdropped), \
             base(type) AS (SELECT atttypid FROM own UNION ALL \
             SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) base.type \
             WHERE t.typtype OPERATOR(pg_catalog.=) 'd') \
             SELECT pg_catalog.concat(pg_catalog.format_type(t.oid, -1), pg_catalog.chr(1), \
             CASE WHEN t.typtype OPERATOR(pg_catalog.<>) 'c' AND t.typelem OPERATOR(pg_catalog.<) 16384 \
             THEN pg_catalog.format('%I.%I', n.nspname, p.proname) END) \
             FROM base JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) base.type \
             LEFT JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.typsend \
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
             WHERE t.typtype OPERATOR(pg_catalog.<>) 'd' AND NOT EXISTS (SELECT FROM own \
             JOIN pg_catalog.pg_attrdef d ON d.adrelid OPERATOR(pg_catalog.=) own.attrelid AND d.adnum OPERATOR(pg_catalog.=) own.attnum \
             JOIN pg_catalog.pg_depend x ON x.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_attrdef'::pg_catalog.regclass \
             AND x.objid OPERATOR(pg_catalog.=) d.oid \
             LEFT JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) x.refobjid \
             AND x.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass \
             JOIN pg_catalog.pg_proc f ON f.oid OPERATOR(pg_catalog.=) CASE WHEN x.refclassid \
             OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass THEN x.refobjid ELSE o.oprcode END \
             WHERE f.provolatile OPERATOR(pg_catalog.=) 'v')"
        )
    }

    /// What the answer to [`Left::kind_question`] says.
    #[must_use]
    pub fn kind(answer: &str) -> Option<Kind> {
        let (name, send) = answer.split_once(BETWEEN)?;
        Some(Kind {
            name: name.to_owned(),
            send: send.to_owned(),
        })
    }

    /// Asks for the value at this time: as text of which the type makes the same value again, or its bytes in
    /// hexadecimal. NULL is answered where there is no such form. `None`: not understood.
    #[must_use]
    pub fn value_question(&self, kind: &Kind, format: Format, time: &str) -> Option<String> {
        let Kind { name, send } = kind;
        let value = format!("({})::{name}", with_time(&self.expression, time)?);
        if format == Format::Binary {
            let known = !send.is_empty();
            return known.then(|| format!("SELECT pg_catalog.encode({send}({value}), 'hex')"));
        }
        let said = if TIMES.contains(&name.as_str()) {
            "pg_catalog.to_jsonb(value) OPERATOR(pg_catalog.#>>) '{}'"
        } else {
            "value::pg_catalog.text"
        };
        Some(format!(
            "WITH made AS (SELECT {value} AS value), told AS (SELECT value, {said} AS said FROM made) \
             SELECT CASE WHEN pg_catalog.record_image_eq(ROW(said::{name}), ROW(value)) THEN said END FROM told"
        ))
    }

    /// The value as it stands in the data.
    #[must_use]
    pub fn value(format: Format, answer: String) -> Option<Vec<u8>> {
        if format != Format::Binary {
            return Some(answer.into_bytes());
        }
        let digits = answer.as_bytes().chunks(2);
        let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
        digits.map(byte).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(column: &str, expression: &str) -> Left {
        Left {
            column: column.to_owned(),
            expression: expression.to_owned(),
        }
    }

    #[test]
    fn columns_are_listed_first() {
        let left = [made("made", "now()"), made("Day \"1\"", "CURRENT_DATE")];
        for (text, expected) in [
            (
                "copy t (id) from stdin",
                "copy t (\"made\", \"Day \"\"1\"\"\", id) from stdin",
            ),
            (
                "/* ( */ copy \"a(\".t(id, n) from stdin (format csv)",
                "/* ( */ copy \"a(\".t(\"made\", \"Day \"\"1\"\"\", id, n) from stdin (format csv)",
            ),
        ] {
            assert_eq!(listing(text, &left).as_deref(), Some(expected));
        }
    }

    #[test]
    fn values_are_asked_for_at_the_time_that_is_told() {
        let kind = Left::kind("date\u{1}pg_catalog.date_send").unwrap();
        let left = made("day", "CURRENT_DATE");
        let asked = |format| left.value_question(&kind, format, "2020-01-02").unwrap();
        let moment = "(('2020-01-02'::pg_catalog.timestamptz::pg_catalog.date))::date";
        assert!(
            asked(Format::Csv).contains(moment),
            "{}",
            asked(Format::Csv)
        );
        assert_eq!(
            asked(Format::Binary),
            format!("SELECT pg_catalog.encode(pg_catalog.date_send({moment}), 'hex')")
        );
        let none = Left::kind("box\u{1}").unwrap();
        assert_eq!(
            left.value_question(&none, Format::Binary, "2020-01-02"),
            None
        );
    }

    #[test]
    fn bytes_are_read_from_hexadecimal() {
        let value = |answer: &str| Left::value(Format::Binary, answer.to_owned());
        assert_eq!(value("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(value("0g"), None);
        assert_eq!(value("é1"), None);
    }
}
