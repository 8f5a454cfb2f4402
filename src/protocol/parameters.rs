//! The settings that a session owns, so that they follow it from backend to backend.
//!
//! A setting changes only when the backend has confirmed it, and changes back when the transaction or savepoint that
//! made it is rolled back, as PostgreSQL does (manual, SET). What a backend has been told is a [`Applied`]; the
//! statement that turns one into the other is made here, with every value quoted.

mod map;

pub use map::ByName;
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};
use xxhash_rust::xxh3::Xxh3Default;

/// How a value was given, which decides how it is given again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// The text after `SET name TO`, as the client wrote it.
    Sql(String),
    /// A string as the startup packet or `set_config` takes it.
    Config(String),
}

impl Value {
    /// What a statement says behind `SET name TO`; empty for the list without items, which SQL has no word for.
    #[must_use]
    pub fn given(text: String) -> Self {
        if text.is_empty() {
            Self::Config(text)
        } else {
            Self::Sql(text)
        }
    }
}

/// Settings by folded name.
pub type Map = ByName<Value>;
/// As [`Map`]; `None`: the server's own value.
type Locals = ByName<Option<Value>>;

/// What a backend has been told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Exactly these settings, with the hash of [`hash`].
    Known(Arc<Map>, u64),
    /// Something that we could not follow (a function that may set, a rollback inside a rollback).
    Unknown,
}

impl Default for Applied {
    fn default() -> Self {
        Self::Known(Arc::default(), hash(&Map::new()))
    }
}

/// The settings of one session.
#[derive(Debug, Default)]
pub struct Parameters {
    /// From the startup packet: what RESET goes back to.
    base: Arc<Map>,
    /// What holds now: `base` with what SET changed.
    wanted: Arc<Map>,
    wanted_hash: u64,
    /// SET LOCAL of the running transaction: followed for planning only.
    local: Option<Arc<Locals>>,
    /// What held at the start of the transaction and at each savepoint, innermost last.
    marks: Vec<Mark>,
}

#[derive(Debug)]
struct Mark {
    /// Empty for the transaction's own.
    savepoint: String,
    wanted: Arc<Map>,
    local: Option<Arc<Locals>>,
}

impl Parameters {
    /// The settings of a session that has just started.
    #[must_use]
    pub fn new(base: Map) -> Self {
        let base = Arc::new(base);
        let wanted_hash = hash(&base);
        Self {
            wanted: Arc::clone(&base),
            base,
            wanted_hash,
            local: None,
            marks: Vec::new(),
        }
    }

    /// The hash of what a backend must have been told before it serves this session.
    #[must_use]
    pub fn wanted_hash(&self) -> u64 {
        self.wanted_hash
    }

    /// What a backend must have been told.
    #[must_use]
    pub fn wanted(&self) -> &Arc<Map> {
        &self.wanted
    }

    /// The value that a setting has for the session, SET LOCAL included; `None`: the server's own.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self.local(name) {
            Some(local) => local.as_ref(),
            None => self.wanted.get(name),
        }
    }

    fn local(&self, name: &str) -> Option<&Option<Value>> {
        self.local.as_ref().and_then(|local| local.get(name))
    }

    fn local_mut(&mut self) -> &mut Locals {
        Arc::make_mut(self.local.get_or_insert_default())
    }

    /// What DEFAULT is for this session where it is not the server's own, as SQL that may follow `SET name TO`: a value
    /// of the startup packet. `None` also for one that has no such form.
    #[must_use]
    pub fn own_default(&self, name: &str) -> Option<String> {
        let value = self.base.get(name)?;
        let Value::Config(text) = value else {
            return None;
        };
        let mut sql = String::new();
        if !is_list_of_names(name) {
            quote_literal(&mut sql, text);
            return Some(sql);
        }
        for item in list(value)? {
            if !sql.is_empty() {
                sql.push(',');
            }
            sql.push('"');
            sql.push_str(&item.replace('"', "\"\""));
            sql.push('"');
        }
        (!sql.is_empty()).then_some(sql)
    }

    /// The statements that bring back, behind RESET ALL, what the client started with; `None`: it cannot be said so.
    #[must_use]
    pub fn own_defaults(&self) -> Option<Vec<String>> {
        let names = self.base.keys().filter(|name| !is_who(name));
        names
            .map(|name| Some(set_to("SET ", name, &self.own_default(name)?)))
            .collect()
    }

    /// As [`Parameters::own_defaults`], as statements that have a form for every value.
    #[must_use]
    pub fn own_settings(&self) -> Vec<String> {
        let base = self.base.iter().filter(|(name, _)| !is_who(name));
        base.map(|(name, value)| {
            let mut sql = String::new();
            put_value(&mut sql, name, value);
            sql
        })
        .collect()
    }

    /// SET: confirmed by the backend. `None` is DEFAULT.
    pub fn set(&mut self, name: &str, value: Option<Value>, local: bool) {
        if local {
            if self.marks.is_empty() {
                return; // Outside a transaction SET LOCAL has no effect.
            }
            let value = value.or_else(|| self.base.get(name).cloned());
            self.local_mut().insert(name, value);
            return;
        }
        if self.local(name).is_some() {
            self.local_mut().remove(name);
        }
        if name == "session_authorization" {
            self.end_role();
        }
        let wanted = Arc::make_mut(&mut self.wanted);
        match value.or_else(|| self.base.get(name).cloned()) {
            Some(value) => wanted.insert(name, value),
            None => wanted.remove(name),
        };
        self.changed();
    }

    /// SET SESSION AUTHORIZATION ends SET ROLE.
    fn end_role(&mut self) {
        if self.local("role").is_some() {
            self.local_mut().remove("role");
        }
        let wanted = Arc::make_mut(&mut self.wanted);
        if self.base.contains_key("role") {
            wanted.insert("role", Value::Sql("none".to_owned()));
        } else {
            wanted.remove("role");
        }
    }

    /// RESET ALL and DISCARD ALL. Role and session authorization stay under RESET ALL (`keep_role`).
    pub fn reset_all(&mut self, keep_role: bool) {
        let mut wanted = (*self.base).clone();
        if keep_role {
            for name in ["role", "session_authorization"] {
                if let Some(value) = self.wanted.get(name) {
                    wanted.insert(name, value.clone());
                }
            }
        }
        self.wanted = Arc::new(wanted);
        self.local = None;
        self.changed();
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        if self.marks.is_empty() {
            self.mark(String::new());
        }
    }

    /// Whether a transaction has been begun.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        !self.marks.is_empty()
    }

    /// Whether SET LOCAL has changed one of these, which is so until the transaction ends.
    #[must_use]
    pub fn has_local(&self, of: impl Fn(&str) -> bool) -> bool {
        self.local.iter().any(|local| local.keys().any(&of))
    }

    /// How many marks stand: the transaction's own, and one for each savepoint.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.marks.len()
    }

    /// Gives back the room that savepoints have taken.
    pub fn give_back(&mut self) {
        self.marks.shrink_to_fit();
    }

    /// SAVEPOINT.
    pub fn savepoint(&mut self, name: &str) {
        self.mark(name.to_owned());
    }

    fn mark(&mut self, savepoint: String) {
        self.marks.push(Mark {
            savepoint,
            wanted: Arc::clone(&self.wanted),
            local: self.local.clone(),
        });
    }

    /// RELEASE SAVEPOINT.
    pub fn release(&mut self, name: &str) {
        if let Some(at) = self.marks.iter().rposition(|mark| mark.savepoint == name) {
            self.marks.truncate(at);
        }
    }

    /// ROLLBACK TO SAVEPOINT. True when a setting changed back.
    pub fn rollback_to(&mut self, name: &str) -> bool {
        let Some(at) = self.marks.iter().rposition(|mark| mark.savepoint == name) else {
            return false;
        };
        self.marks.truncate(at + 1);
        let mark = &self.marks[at];
        let changed = !Arc::ptr_eq(&mark.wanted, &self.wanted);
        self.wanted = Arc::clone(&mark.wanted);
        self.local.clone_from(&mark.local);
        self.changed();
        changed
    }

    /// The transaction has ended. True when settings that it made were rolled back.
    pub fn end(&mut self, committed: bool) -> bool {
        let Some(first) = self.marks.first() else {
            return false;
        };
        let changed = !committed && !Arc::ptr_eq(&first.wanted, &self.wanted);
        if changed {
            self.wanted = Arc::clone(&first.wanted);
        }
        // Outside a transaction nothing is local.
        self.local.clone_from(&first.local);
        self.marks.clear();
        self.changed();
        changed
    }

    /// Whether the client has set DateStyle, so that [`Self::complete_date_style`] may have something to do.
    #[must_use]
    pub fn has_set_date_style(&self) -> bool {
        let has_set = !Arc::ptr_eq(&self.wanted, &self.base);
        (has_set && self.wanted.contains_key(DATE_STYLE)) || self.local(DATE_STYLE).is_some()
    }

    /// Between batches: the value of DateStyle as the backend reports it, where the client has set a part of it and the
    /// rest is as it was (manual 20.11.2). True when another text must hold than was known.
    pub fn complete_date_style(&mut self, reported: &[u8]) -> bool {
        let Ok(reported) = std::str::from_utf8(reported) else {
            return false;
        };
        let is_whole = |value: &Value| matches!(value, Value::Config(known) if known == reported);
        // What the client started with stays as it was given: it is what RESET goes back to.
        let base = self.base.get(DATE_STYLE);
        let is_open = |value: &Value| !is_whole(value) && Some(value) != base;
        let whole = || Value::Config(reported.to_owned());
        if let Some(local) = self.local(DATE_STYLE) {
            // It hides the session's own, which is reported when the transaction has ended.
            let open = local.as_ref().is_some_and(is_open);
            if open {
                self.local_mut().insert(DATE_STYLE, Some(whole()));
            }
            return open;
        }
        let open = self.wanted.get(DATE_STYLE).is_some_and(is_open);
        if open {
            Arc::make_mut(&mut self.wanted).insert(DATE_STYLE, whole());
            self.changed();
        }
        open
    }

    fn changed(&mut self) {
        self.wanted_hash = hash(&self.wanted);
    }
}

/// The statement that brings a backend from what it has been told to what the session wants; `None`: nothing to do.
#[must_use]
pub fn difference(applied: &Applied, wanted: &Map) -> Option<String> {
    let mut sql = String::new();
    let nothing = Map::new();
    let told = match applied {
        Applied::Known(told, _) => told.as_ref(),
        Applied::Unknown => {
            sql.push_str("RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;");
            &nothing
        }
    };
    // How the text is read comes first; it is nobody's to forbid.
    put_changes(&mut sql, told, wanted, |name| name == ENCODING);
    let changes = !sql.is_empty() || told != wanted;
    if changes {
        // Who the session has become may not be allowed to change what it set before: that is done as who it was.
        for (name, reset) in WHO.iter().zip(RESET_WHO) {
            if told.contains_key(name) {
                sql.push_str(reset);
            }
        }
    }
    put_changes(&mut sql, told, wanted, |name| {
        name != ENCODING && !is_who(name)
    });
    if changes {
        for name in WHO {
            if let Some(value) = wanted.get(name) {
                put_value(&mut sql, name, value);
            }
        }
    }
    (!sql.is_empty()).then_some(sql)
}

/// Whether SET takes the items of this setting for names.
#[must_use]
pub fn is_list_of_names(name: &str) -> bool {
    LISTS_OF_NAMES.contains(&name)
}

const DATE_STYLE: &str = "datestyle";

/// Settings whose items SET takes for names and quotes each (`GUC_LIST_QUOTE` of guc.c).
const LISTS_OF_NAMES: [&str; 5] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// Who a session is, in the order in which it is told: the first ends the second.
const WHO: [&str; 2] = ["session_authorization", "role"];
const RESET_WHO: [&str; 2] = ["RESET SESSION AUTHORIZATION;", "RESET ROLE;"];

const ENCODING: &str = "client_encoding";

fn is_who(name: &str) -> bool {
    WHO.contains(&name)
}

/// Takes back what is not wanted any more and sets what is new, of the settings that are `meant`.
fn put_changes(sql: &mut String, told: &Map, wanted: &Map, meant: impl Fn(&str) -> bool) {
    let gone = |name: &&str| meant(name) && !wanted.contains_key(name);
    for name in told.keys().filter(gone) {
        sql.push_str("RESET ");
        quote_name(sql, name);
        sql.push(';');
    }
    let new = |(name, value): &(&str, &Value)| meant(name) && told.get(name) != Some(*value);
    for (name, value) in wanted.iter().filter(new) {
        if name == DATE_STYLE && told.contains_key(name) {
            // Of two parts one may be given: the other is the server's own, not what was told last.
            sql.push_str("RESET datestyle;");
        }
        put_value(sql, name, value);
    }
}

fn put_value(sql: &mut String, name: &str, value: &Value) {
    match value {
        Value::Sql(text) => put_set(sql, "SET ", name, text),
        Value::Config(text) => {
            sql.push_str("SELECT pg_catalog.set_config(");
            quote_literal(sql, name);
            sql.push(',');
            quote_literal(sql, text);
            sql.push_str(",false)");
        }
    }
    sql.push(';');
}

/// The statement that sets a value for the rest of a transaction.
#[must_use]
pub fn set_local(name: &str, value: Option<&str>) -> String {
    set_to("SET LOCAL ", name, value.unwrap_or("DEFAULT"))
}

/// The statement that sets a value; `verb` is SET or SET LOCAL with its blank.
#[must_use]
pub fn set_to(verb: &str, name: &str, value: &str) -> String {
    let mut sql = String::new();
    put_set(&mut sql, verb, name, value);
    sql
}

fn put_set(sql: &mut String, verb: &str, name: &str, text: &str) {
    sql.push_str(verb);
    if name == "session_authorization" {
        sql.push_str("SESSION AUTHORIZATION ");
    } else {
        quote_name(sql, name);
        sql.push_str(" TO ");
    }
    sql.push_str(text);
}

/// The hash by which a session's settings and a backend's are compared.
#[must_use]
pub fn hash(map: &Map) -> u64 {
    let mut hasher = Xxh3Default::new();
    map.hash(&mut hasher);
    hasher.finish()
}

/// The items of a list setting (`search_path`), as PostgreSQL's `SplitIdentifierString` or the grammar's list reads
/// them; `None` when the text is neither.
#[must_use]
pub fn list(value: &Value) -> Option<Vec<String>> {
    let (Value::Sql(text) | Value::Config(text)) = value;
    let mut items = Vec::new();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Some(items);
    }
    loop {
        let (item, after) = item(rest)?;
        items.push(item);
        let after = after.trim_start();
        if after.is_empty() {
            return Some(items);
        }
        rest = after.strip_prefix(',')?.trim_start();
    }
}

fn item(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next()?;
    if quote == '"' || quote == '\'' {
        let mut out = String::new();
        let mut rest = &text[1..];
        loop {
            let end = rest.find(quote)?;
            out.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix(quote) {
                Some(more) => {
                    out.push(quote);
                    rest = more;
                }
                None => return Some((out, rest)),
            }
        }
    }
    let end = text
        .find(|c: char| c == ',' || c.is_whitespace())
        .unwrap_or(text.len());
    let word = &text[..end];
    let plain = word
        .chars()
        .all(|c| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii());
    (plain && !word.is_empty()).then(|| (word.to_ascii_lowercase(), &text[end..]))
}

/// Appends a string constant that means the same under both settings of standard_conforming_strings.
pub fn quote_literal(out: &mut String, text: &str) {
    if text.contains('\\') {
        out.push_str(" E");
    }
    out.push('\'');
    for c in text.chars() {
        match c {
            '\'' => out.push_str("''"),
            '\\' => out.push_str("\\\\"),
            c => out.push(c),
        }
    }
    out.push('\'');
}

/// Appends a setting's name; a dot separates the parts of a custom one.
fn quote_name(out: &mut String, name: &str) {
    for (at, part) in name.split('.').enumerate() {
        if at > 0 {
            out.push('.');
        }
        out.push('"');
        out.push_str(&part.replace('"', "\"\""));
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Value {
        Value::Config(text.to_owned())
    }

    #[test]
    fn a_setting_rolled_back_is_as_if_it_had_not_been() {
        let mut session = Parameters::new(Map::from([("timezone".to_owned(), config("UTC"))]));
        let before = session.wanted_hash();
        session.begin();
        session.set("timezone", Some(config("CET")), false);
        session.savepoint("a");
        session.set("work_mem", Some(Value::Sql("'1MB'".to_owned())), false);
        assert!(session.rollback_to("a"));
        assert_eq!(session.get("work_mem"), None);
        assert_eq!(session.get("timezone"), Some(&config("CET")));
        assert!(session.end(false));
        assert_eq!(session.wanted_hash(), before);
    }

    #[test]
    fn set_local_ends_with_its_transaction_and_is_never_replayed() {
        let mut session = Parameters::default();
        session.begin();
        session.set("search_path", Some(config("a")), true);
        assert_eq!(session.get("search_path"), Some(&config("a")));
        assert_eq!(difference(&Applied::default(), session.wanted()), None);
        session.end(true);
        assert_eq!(session.get("search_path"), None);
    }

    #[test]
    fn reset_goes_back_to_what_the_client_started_with() {
        let mut session = Parameters::new(Map::from([("datestyle".to_owned(), config("ISO"))]));
        session.set("datestyle", Some(config("SQL")), false);
        session.set("datestyle", None, false);
        assert_eq!(session.get("datestyle"), Some(&config("ISO")));
    }

    #[test]
    fn only_what_the_client_has_set_of_datestyle_is_completed() {
        let mut session = Parameters::new(Map::from([("datestyle".to_owned(), config("ISO"))]));
        assert!(!session.has_set_date_style());
        session.set("timezone", Some(config("UTC")), false);
        session.begin();
        session.set("datestyle", Some(config("german")), true);
        assert!(session.has_set_date_style());
        assert!(session.complete_date_style(b"German, DMY"));
        session.end(true);
        session.set("datestyle", Some(config("ymd")), false);
        assert!(session.has_set_date_style());
        assert!(session.complete_date_style(b"ISO, YMD"));
        assert_eq!(session.get("datestyle"), Some(&config("ISO, YMD")));
    }

    #[test]
    fn a_local_default_hides_what_the_session_has_set() {
        let mut session = Parameters::new(Map::from([("timezone".to_owned(), config("CET"))]));
        session.set("timezone", Some(config("UTC")), false);
        session.set("search_path", Some(config("a")), false);
        session.begin();
        session.set("timezone", None, true);
        session.set("search_path", None, true);
        assert_eq!(session.get("timezone"), Some(&config("CET")));
        assert_eq!(session.get("search_path"), None);
        session.end(true);
        assert_eq!(session.get("timezone"), Some(&config("UTC")));
        assert_eq!(session.get("search_path"), Some(&config("a")));
    }

    #[test]
    fn a_default_of_the_startup_packet_has_the_form_that_set_takes() {
        let base = [
            ("search_path", "\"$user\", Public,\"a\"\"b\""),
            ("timezone", "it's"),
            ("temp_tablespaces", ""),
        ];
        let base = base.map(|(name, value)| (name.to_owned(), config(value)));
        let session = Parameters::new(Map::from(base));
        let own = |name| session.own_default(name);
        assert_eq!(
            own("search_path").unwrap(),
            "\"$user\",\"public\",\"a\"\"b\""
        );
        assert_eq!(own("timezone").unwrap(), "'it''s'");
        assert_eq!((own("temp_tablespaces"), own("work_mem")), (None, None));
    }

    #[test]
    fn a_hostile_value_stays_a_value() {
        let wanted = Map::from([(
            "application_name".to_owned(),
            config("'; DROP TABLE x;--\\"),
        )]);
        assert_eq!(
            difference(&Applied::default(), &wanted).unwrap(),
            "SELECT pg_catalog.set_config('application_name', E'''; DROP TABLE x;--\\\\',false);"
        );
        let told = Applied::Known(Arc::new(wanted), 0);
        assert_eq!(
            difference(&told, &Map::new()).unwrap(),
            "RESET \"application_name\";"
        );
        assert!(
            difference(&Applied::Unknown, &Map::new())
                .unwrap()
                .contains("RESET ROLE")
        );
    }

    #[test]
    fn search_paths_are_read_as_postgresql_reads_them() {
        let items = |text: &str| list(&Value::Sql(text.to_owned()));
        assert_eq!(
            items("\"$user\", public"),
            Some(vec!["$user".to_owned(), "public".to_owned()])
        );
        assert_eq!(
            items("'My Schema', Other"),
            Some(vec!["My Schema".to_owned(), "other".to_owned()])
        );
        assert_eq!(items("''"), Some(vec![String::new()]));
        assert_eq!(items("a b"), None);
    }

    #[test]
    fn a_part_of_datestyle_is_told_to_the_servers_own_as_who_may_set_it() {
        let map = |pairs: &[(&str, &str)]| -> Map {
            let value = |text: &str| Value::Sql(text.to_owned());
            pairs
                .iter()
                .map(|(name, text)| ((*name).to_owned(), value(text)))
                .collect()
        };
        let told = |pairs: &[(&str, &str)]| Applied::Known(Arc::new(map(pairs)), 0);
        let order = |applied, wanted: &[(&str, &str)], parts: &[&str]| {
            let sql = difference(&applied, &map(wanted)).unwrap();
            let places: Vec<_> = parts.iter().map(|part| sql.find(part)).collect();
            assert!(
                places.iter().all(Option::is_some) && places.is_sorted(),
                "{sql}: {parts:?}"
            );
        };
        order(
            told(&[("datestyle", "german")]),
            &[("datestyle", "ymd")],
            &["RESET datestyle", "SET \"datestyle\""],
        );
        order(
            told(&[("datestyle", "german"), ("role", "a")]),
            &[("datestyle", "ymd"), ("role", "b")],
            &["RESET ROLE", "RESET datestyle", "SET \"datestyle\"", "b"],
        );
        let fresh = difference(&told(&[]), &map(&[("datestyle", "ymd")])).unwrap();
        assert!(!fresh.contains("RESET"), "{fresh}");
        order(
            Applied::Unknown,
            &[("datestyle", "ymd")],
            &["RESET ALL", "SET \"datestyle\""],
        );
    }
}
