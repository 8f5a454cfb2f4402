//! Whether code that a shard's tables set off reaches what has rows on other shards: by the words of its text and of all
//! that it names. Pure.
//!
//! What must stay true: what cannot be looked into reaches.

use super::effects::Objects;
use crate::{
    catalog::{
        code::{Piece, PieceKind, names_reaching},
        shard::ShardId,
        snapshot::{Other, Placement, Snapshot, TableName},
    },
    sql::code::words,
};
use std::collections::{HashMap, HashSet};

/// The names of one shard's functions and relations that reach beyond it.
pub(super) struct Reach(HashSet<String>);

impl Reach {
    pub(super) fn new(snapshot: &Snapshot, shard: ShardId, objects: &Objects) -> Self {
        let mut apart = Apart::new(snapshot, shard);
        apart.add_children(snapshot, objects);
        Self(names_reaching(&objects.code, |piece| apart.is_in(piece)))
    }

    /// Whether a function, given with its schema, or a relation does.
    pub(super) fn has(&self, name: &str) -> bool {
        let own = name.rsplit('.').next().unwrap_or(name);
        self.0.contains(&own.to_lowercase())
    }
}

/// What a shard does not have whole, or must not change alone.
struct Apart<'s> {
    /// Tables with rows elsewhere, in lower case.
    tables: HashSet<String>,
    /// Those of them whose names are not one word.
    odd: Vec<String>,
    copies: Vec<(&'s TableName, String)>,
}

impl<'s> Apart<'s> {
    fn new(snapshot: &'s Snapshot, shard: ShardId) -> Self {
        let mut found = Self {
            tables: HashSet::new(),
            odd: Vec::new(),
            copies: Vec::new(),
        };
        for (name, table) in &snapshot.tables {
            match &table.placement {
                Placement::Single(on) if *on == shard => {}
                Placement::Reference => found.copies.push((name, name.name.to_lowercase())),
                Placement::Single(_) | Placement::Sharded { .. } => found.add(name),
            }
        }
        found
    }

    /// Partitions and children, which the text of their parent names. A view is judged by its own text.
    fn add_children(&mut self, snapshot: &Snapshot, objects: &Objects) {
        let derived: HashMap<String, &TableName> = snapshot
            .others
            .iter()
            .filter(|(_, other)| matches!(other, Other::Derived | Other::View | Other::Moved))
            .map(|(name, _)| (name.name.to_lowercase(), name))
            .collect();
        let mut parents: Vec<String> = self.tables.iter().chain(&self.odd).cloned().collect();
        while let Some(parent) = parents.pop() {
            let own = |piece: &&Piece| piece.kind == PieceKind::Relation && piece.name == parent;
            for piece in objects.code.iter().filter(own) {
                for child in words(&piece.text).filter_map(|word| derived.get(&word)) {
                    let name = child.name.to_lowercase();
                    if !self.tables.contains(&name) && !self.odd.contains(&name) {
                        self.add(child);
                        parents.push(name);
                    }
                }
            }
        }
    }

    fn add(&mut self, table: &TableName) {
        let name = table.name.to_lowercase();
        if words(&name).eq([name.clone()]) {
            self.tables.insert(name);
        } else {
            self.odd.push(name);
        }
    }

    fn is_in(&self, piece: &Piece) -> bool {
        if piece.kind == PieceKind::ForeignFunction {
            return true;
        }
        let text: Vec<String> = words(&piece.text).collect();
        let named = text.iter().any(|word| self.tables.contains(word));
        let lower = piece.text.to_lowercase();
        named
            || self.odd.iter().any(|name| lower.contains(name.as_str()))
            || runs_text(&text)
            || self
                .copies
                .iter()
                .any(|(table, name)| writes(&text, &lower, table, name))
    }
}

/// Whether it runs SQL that is put together as it goes.
fn runs_text(words: &[String]) -> bool {
    words.iter().enumerate().any(|(at, word)| {
        let next = words.get(at + 1).map_or("", String::as_str);
        let runs = word == "execute" && !matches!(next, "function" | "procedure" | "on");
        runs || word.starts_with("query_to_xml") || word.starts_with("dblink")
    })
}

/// Whether a text changes the table, of which every shard has a copy.
fn writes(words: &[String], text: &str, table: &TableName, name: &str) -> bool {
    let whole = self::words(name).eq([name.to_owned()]);
    if !whole {
        return text.contains(name);
    }
    let truncates = words.iter().any(|word| word == "truncate");
    words.iter().enumerate().any(|(at, word)| {
        let mut before = words[..at].iter().rev().map(String::as_str).peekable();
        let schema = table.schema.to_lowercase();
        before.next_if_eq(&schema.as_str());
        before.next_if(|word| matches!(*word, "only" | "table"));
        let verb = before.next().unwrap_or_default();
        word == name
            && (truncates
                || matches!(verb, "into" | "update" | "copy")
                || verb == "from" && before.next() == Some("delete"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::load_str;
    use std::path::Path;

    fn snapshot() -> Snapshot {
        let text = r#"
            [databases.app]
            shards.s0 = { primary = "postgres://h0/app" }
            shards.s1 = { primary = "postgres://h1/app" }
            [databases.app.groups.g]
            method = "hash"
            key_type = "bigint"
            tables = { "public.orders" = "customer", "public.odd one" = "customer" }
            [databases.app.tables]
            reference = ["public.countries"]
            single = { "public.audit" = "s0", "public.elsewhere" = "s1" }
        "#;
        let settings = load_str("test", text, Path::new("."));
        let settings = settings.unwrap_or_else(|errors| panic!("{errors}"));
        settings.databases["app"].snapshot.as_ref().clone()
    }

    fn reaches(text: &str) -> bool {
        let piece = |name: &str, text: &str| Piece {
            kind: PieceKind::Function,
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let objects = Objects {
            code: vec![
                piece("f", text),
                piece("counts", "select count(*) from public.orders"),
            ],
            ..Objects::default()
        };
        Reach::new(&snapshot(), ShardId(0), &objects).has("public.f")
    }

    #[test]
    fn code_reaches_what_it_names_however_far() {
        for text in [
            "begin select count(*) into new.n from ORDERS; return new; end",
            "begin new.n := public.counts(); return new; end",
            "begin insert into elsewhere values (1); return new; end",
            "begin update countries set name = 'x'; return new; end",
            "begin delete from only public.countries; return new; end",
            "begin execute 'select ' || new.what; return new; end",
            "begin perform from \"odd one\"; return new; end",
        ] {
            assert!(reaches(text), "{text}");
        }
        for text in [
            "begin insert into audit values (new.*); return new; end",
            "begin select name into new.name from countries where code = new.code for update of countries; return new; end",
            "begin perform pg_notify('a', new.id::text); return new; end",
        ] {
            assert!(!reaches(text), "{text}");
        }
    }
}
