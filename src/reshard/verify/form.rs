//! How rows are written for comparison. Pure.

use crate::reshard::plan::{MovingTable, identifier};

/// Types whose equal values are shown alike, and whose hash says nothing of a server: everything else is compared as text.
const PLAIN: [&str; 9] = [
    "smallint",
    "integer",
    "bigint",
    "boolean",
    "uuid",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
    "bytea",
];

/// Whether hashes of values mean the same on both servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Majors {
    Same,
    /// Only text is taken to mean the same.
    Different,
}

/// A table as both sides are asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The table, quoted.
    table: String,
    /// The row's values, then the key's, as lists of SQL.
    values: String,
    key: String,
    /// Every column as text, as an array.
    texts: String,
}

impl Form {
    /// Of a table.
    #[must_use]
    pub fn of(table: &MovingTable, majors: Majors) -> Self {
        let value = |name: &str| {
            let column = table.columns.iter().find(|column| column.name == name);
            let plain = column.is_some_and(|column| PLAIN.contains(&column.type_name.as_str()));
            let name = identifier(name);
            if plain && majors == Majors::Same {
                name
            } else {
                // By its bytes: other collations call different texts equal, or hash them in their own way.
                format!("{name}::text COLLATE \"C\"")
            }
        };
        let list = |names: Vec<String>| names.join(", ");
        let columns = || table.columns.iter().map(|column| column.name.as_str());
        let texts = columns().map(|name| format!("{}::text", identifier(name)));
        Self {
            table: table.sql(),
            values: list(columns().map(value).collect()),
            key: list(table.primary_key.iter().map(|name| value(name)).collect()),
            texts: format!("ARRAY[{}]", list(texts.collect())),
        }
    }

    /// Per group of rows: its number, how many, and two sums of hashes. `groups` is a power of two.
    #[must_use]
    pub fn sums(&self, condition: &str, groups: u32) -> String {
        let Self { table, values, .. } = self;
        let group = self.group(groups);
        format!(
            "SELECT {group} AS part, count(*), \
             bit_xor(hash_record_extended(ROW({values}), 0)), bit_xor(hash_record_extended(ROW({values}), 1)) \
             FROM {table} WHERE {condition} GROUP BY 1 ORDER BY 1"
        )
    }

    /// The rows of one group: the key as text, and two hashes of the row.
    #[must_use]
    pub fn rows(&self, condition: &str, groups: u32, group: i64) -> String {
        let Self {
            table, values, key, ..
        } = self;
        let of = self.group(groups);
        format!(
            "SELECT ROW({key})::text, hash_record_extended(ROW({values}), 0), hash_record_extended(ROW({values}), 1) \
             FROM {table} WHERE {condition} AND {of} = {group} ORDER BY ROW({key})::text COLLATE \"C\""
        )
    }

    /// The columns of one row as text; its key, as [`Form::rows`] gives it, is the parameter.
    #[must_use]
    pub fn row(&self, condition: &str, groups: u32, group: i64) -> String {
        let Self {
            table, texts, key, ..
        } = self;
        let of = self.group(groups);
        format!(
            "SELECT {texts} FROM {table} WHERE {condition} AND {of} = {group} AND ROW({key})::text = $1"
        )
    }

    fn group(&self, groups: u32) -> String {
        let mask = groups.saturating_sub(1);
        format!("(hash_record_extended(ROW({}), 2) & {mask})", self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reshard::plan::MovingColumn;

    #[test]
    fn values_whose_equality_hides_something_are_compared_as_text() {
        let column = |name: &str, type_name: &str| MovingColumn {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            binary: true,
        };
        let table = MovingTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            group: None,
            key_column: "id".to_owned(),
            primary_key: vec!["id".to_owned()],
            columns: vec![column("id", "bigint"), column("price", "numeric(10,2)")],
            root: None,
        };
        let form = Form::of(&table, Majors::Same);
        assert_eq!(form.values, r#""id", "price"::text COLLATE "C""#);
        assert_eq!(form.key, r#""id""#);
        let form = Form::of(&table, Majors::Different);
        assert_eq!(form.key, r#""id"::text COLLATE "C""#);
    }
}
