//! `COPY table … TO …` as a COPY of a query that reads the same, which can carry a condition. Pure.

use super::slots_of;
use crate::{
    plan::spread::quote,
    sql::{
        normalize::Strings,
        scan::{Kind as Sort, Piece, pieces},
    },
};

/// `COPY table … TO …` taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableCopy<'a> {
    before: &'a str,
    table: &'a str,
    /// Columns, if they are listed: as they are listed, and each.
    list: Option<(&'a str, Vec<String>)>,
    behind: &'a str,
}

impl<'a> TableCopy<'a> {
    /// `None`: it is none.
    #[must_use]
    pub fn of(text: &'a str) -> Option<Self> {
        let slots = slots_of(text, Strings::Standard);
        let pieces = pieces(text, &slots)?;
        pieces.first().filter(|piece| piece.is("copy"))?;
        let to = |piece: &Piece<'_>| piece.depth == 0 && piece.is("to");
        let to = pieces.iter().position(to)?;
        let named = pieces.get(1..to)?;
        let open = named.iter().position(|piece| piece.is_sign("("));
        let name = named.get(..open.unwrap_or(named.len()))?;
        let (start, end) = (name.first()?.start, name.last()?.end);
        let list = match open {
            Some(open) => {
                let list = named.get(open + 1..named.len() - 1)?;
                let text = text.get(list.first()?.start..list.last()?.end)?;
                Some((text, columns_of(list)?))
            }
            None => None,
        };
        Some(Self {
            before: text.get(..start)?,
            table: text.get(start..end)?,
            list,
            behind: text.get(pieces.get(to)?.start..)?,
        })
    }

    /// Asks for what the table is, and for the columns that a COPY without a list has.
    #[must_use]
    pub fn question(&self) -> String {
        let table = format!("'{}'", self.table.replace('\'', "''"));
        format!(
            "SELECT c.relkind::pg_catalog.text || (SELECT coalesce(pg_catalog.string_agg(a.attname::pg_catalog.text, pg_catalog.chr(1) \
             ORDER BY a.attnum), '') FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
             AND NOT a.attisdropped AND a.attgenerated = '') FROM pg_catalog.pg_class c \
             WHERE c.oid = {table}::pg_catalog.regclass"
        )
    }

    /// The COPY of a query that reads the same, by the answer to [`Self::question`]; `None`: it may not be made.
    #[must_use]
    pub fn of_query(&self, answer: &str) -> Option<String> {
        let Self {
            before,
            table,
            list,
            behind,
        } = self;
        let (kind, all) = answer.split_at_checked(1)?;
        let all: Vec<&str> = all.split('\u{1}').filter(|name| !name.is_empty()).collect();
        let each = list.as_ref().map(|(_, each)| each.as_slice());
        let fits = each
            .unwrap_or_default()
            .iter()
            .enumerate()
            .all(|(at, name)| {
                let twice = each.is_some_and(|each| each[..at].contains(name));
                all.contains(&name.as_str()) && !twice
            });
        let listed = list.as_ref().map(|(text, _)| *text);
        match kind {
            "r" if fits => {
                let all = || all.iter().map(|name| quote(name)).collect::<Vec<_>>();
                let columns = listed.map_or_else(|| all().join(", "), str::to_owned);
                Some(format!(
                    "{before}(SELECT {columns} FROM ONLY {table}) {behind}"
                ))
            }
            // PostgreSQL refuses it.
            "r" | "p" | "v" | "f" | "S" => {
                let listed = listed.map_or_else(String::new, |list| format!(" ({list})"));
                Some(format!("{before}{table}{listed} {behind}"))
            }
            _ => None,
        }
    }
}

/// The names of a list; `None`: not understood.
fn columns_of(list: &[Piece<'_>]) -> Option<Vec<String>> {
    const LONGEST: usize = 63;
    let each = list.split(|piece| piece.is_sign(","));
    let name = |item: &[Piece<'_>]| match item {
        [name] if matches!(name.kind, Sort::Word | Sort::Quoted) => {
            Some(name.folded()).filter(|name| name.len() <= LONGEST)
        }
        _ => None,
    };
    each.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_table_becomes_one_of_what_it_would_give() {
        let query = |text: &str| TableCopy::of(text).unwrap().of_query("rk\u{1}N");
        assert_eq!(
            query("copy public.t to stdout (format csv)").unwrap(),
            "copy (SELECT \"k\", \"N\" FROM ONLY public.t) to stdout (format csv)"
        );
        assert_eq!(
            query("COPY \"t\" (\"N\", K) TO STDOUT").unwrap(),
            "COPY (SELECT \"N\", K FROM ONLY \"t\") TO STDOUT"
        );
        for list in ["n, k", "k, k"] {
            let text = format!("copy t ({list}) to stdout");
            assert_eq!(query(&text).unwrap(), text, "PostgreSQL refuses it");
        }
        assert_eq!(TableCopy::of("copy t (U&\"k\") to stdout"), None);
        let view = TableCopy::of("copy t (n) to stdout").unwrap();
        assert_eq!(view.of_query("v").unwrap(), "copy t (n) to stdout");
    }
}
