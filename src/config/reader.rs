//! Reads tables of the file by the declared options, and gathers what is wrong instead of stopping at it.

use super::{
    error::{ConfigError, Problem, Text, most_like},
    options::{Kind, Section},
};
use crate::clock::Duration;
use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub(super) type Place = Range<usize>;

/// The file being read, and what was found wrong with it.
pub(super) struct Reader {
    pub(super) errors: Vec<ConfigError>,
    /// The file that places are in; `None`: the configuration itself.
    pub(super) source: Option<Arc<Text>>,
    base: PathBuf,
}

/// A table of the file with fixed keys.
#[derive(Clone)]
pub(super) struct Node<'d> {
    section: Section,
    /// As errors name it.
    path: String,
    table: Option<&'d DeTable<'d>>,
    pub(super) span: Place,
}

/// A value as its option declares it.
enum Value {
    Text(String),
    Texts(Vec<(String, Place)>),
    Integer(u64),
    Duration(Duration),
}

impl Reader {
    pub(super) fn new(base: &Path) -> Self {
        Self {
            errors: Vec::new(),
            source: None,
            base: base.to_owned(),
        }
    }

    pub(super) fn fail(&mut self, span: &Place, problem: Problem) {
        self.errors.push(ConfigError {
            problem,
            span: span.clone(),
            earlier: None,
            source: self.source.clone(),
        });
    }

    pub(super) fn fail_again(&mut self, span: &Place, earlier: &Place, problem: Problem) {
        self.errors.push(ConfigError {
            problem,
            span: span.clone(),
            earlier: Some(earlier.clone()),
            source: self.source.clone(),
        });
    }

    /// The whole file.
    pub(super) fn file<'d>(&mut self, root: &'d Spanned<DeTable<'d>>) -> Node<'d> {
        let node = Node {
            section: Section::File,
            path: String::new(),
            table: Some(root.get_ref()),
            span: 0..0,
        };
        self.refuse_unknown_keys(&node);
        node
    }

    /// A table that has its own section; one with nothing in it when it is not there.
    pub(super) fn child<'d>(
        &mut self,
        node: &Node<'d>,
        key: &'static str,
        section: Section,
    ) -> Node<'d> {
        let path = node.path_of(key);
        match node.get(key) {
            Some((_, value)) => self.as_node(value, section, path, node.span.clone()),
            None => Node {
                section,
                path,
                table: None,
                span: node.span.clone(),
            },
        }
    }

    /// The tables under a key, by the names that the user chose.
    pub(super) fn children<'d>(
        &mut self,
        node: &Node<'d>,
        key: &'static str,
        section: Section,
    ) -> Vec<(String, Place, Node<'d>)> {
        let entries = self.entries(node, key);
        entries
            .into_iter()
            .map(|(name, span, value)| {
                let path = format!("{}.{name}", node.path_of(key));
                let child = self.as_node(value, section, path, span.clone());
                (name, span, child)
            })
            .collect()
    }

    /// The entries of a table whose keys the user chose.
    pub(super) fn entries<'d>(
        &mut self,
        node: &Node<'d>,
        key: &'static str,
    ) -> Vec<(String, Place, &'d Spanned<DeValue<'d>>)> {
        let Some((_, value)) = node.get(key) else {
            return Vec::new();
        };
        if let DeValue::Table(table) = value.get_ref() {
            let entries = table.iter();
            entries
                .map(|(name, value)| (name.get_ref().to_string(), name.span(), value))
                .collect()
        } else {
            self.wrong_type(key, "a table", value);
            Vec::new()
        }
    }

    /// The tables of an array under a key.
    pub(super) fn array_of_tables<'d>(
        &mut self,
        node: &Node<'d>,
        key: &'static str,
        section: Section,
    ) -> Vec<Node<'d>> {
        let Some((_, value)) = node.get(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, "an array of tables", value);
            return Vec::new();
        };
        items
            .iter()
            .map(|item| self.as_node(item, section, node.path_of(key), item.span()))
            .collect()
    }

    pub(super) fn text(&mut self, node: &Node<'_>, key: &'static str) -> Option<String> {
        match self.value(node, key)? {
            Value::Text(text) => Some(text),
            Value::Texts(_) | Value::Integer(_) | Value::Duration(_) => None,
        }
    }

    pub(super) fn texts(&mut self, node: &Node<'_>, key: &'static str) -> Vec<(String, Place)> {
        match self.value(node, key) {
            Some(Value::Texts(texts)) => texts,
            _ => Vec::new(),
        }
    }

    pub(super) fn integer(&mut self, node: &Node<'_>, key: &'static str) -> Option<usize> {
        match self.value(node, key)? {
            Value::Integer(value) => usize::try_from(value).ok(),
            Value::Text(_) | Value::Texts(_) | Value::Duration(_) => None,
        }
    }

    pub(super) fn duration(&mut self, node: &Node<'_>, key: &'static str) -> Option<Duration> {
        match self.value(node, key)? {
            Value::Duration(duration) => Some(duration),
            Value::Text(_) | Value::Texts(_) | Value::Integer(_) => None,
        }
    }

    /// A text that must be there.
    pub(super) fn needed(&mut self, node: &Node<'_>, key: &'static str) -> Option<String> {
        if node.get(key).is_none() {
            self.fail(
                &node.span,
                Problem::Missing {
                    place: node.name(),
                    key,
                },
            );
        }
        self.text(node, key)
    }

    /// The contents of a file that an option names.
    pub(super) fn read_file(&mut self, path: &str, span: &Place) -> Option<Vec<u8>> {
        match std::fs::read(self.resolve(path)) {
            Ok(contents) => Some(contents),
            Err(error) => {
                let (path, reason) = (path.to_owned(), error.kind().to_string());
                self.fail(span, Problem::Unreadable { path, reason });
                None
            }
        }
    }

    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    pub(super) fn wrong_type(&mut self, key: &str, expected: &str, value: &Spanned<DeValue<'_>>) {
        let (key, expected) = (key.to_owned(), expected.to_owned());
        self.fail(
            &value.span(),
            Problem::WrongType {
                key,
                expected,
                found: type_name(value.get_ref()),
            },
        );
    }

    fn as_node<'d>(
        &mut self,
        value: &'d Spanned<DeValue<'d>>,
        section: Section,
        path: String,
        span: Place,
    ) -> Node<'d> {
        let table = if let DeValue::Table(table) = value.get_ref() {
            Some(table)
        } else {
            self.wrong_type(&path, "a table", value);
            None
        };
        let node = Node {
            section,
            path,
            table,
            span,
        };
        self.refuse_unknown_keys(&node);
        node
    }

    fn refuse_unknown_keys(&mut self, node: &Node<'_>) {
        for (key, _) in node.table.into_iter().flat_map(DeTable::iter) {
            if node.section.option(key.get_ref()).is_none() {
                let like = most_like(
                    key.get_ref(),
                    node.section.options().map(|option| option.key),
                );
                let problem = Problem::UnknownKey {
                    key: key.get_ref().to_string(),
                    place: node.name(),
                    like,
                };
                self.fail(&key.span(), problem);
            }
        }
    }

    /// The value in the file, or the option's default when there is none or a wrong one.
    fn value(&mut self, node: &Node<'_>, key: &'static str) -> Option<Value> {
        let option = node.section.option(key)?;
        let given = node
            .get(key)
            .and_then(|(_, value)| self.convert(key, option.kind, value));
        given.or_else(|| {
            let default = DeValue::parse(option.default?).ok()?;
            self.convert(key, option.kind, &default)
        })
    }

    fn convert(&mut self, key: &str, kind: Kind, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        if let (Kind::Texts, DeValue::Array(items)) = (kind, value.get_ref()) {
            let mut texts = Vec::new();
            for item in items.iter() {
                if let DeValue::String(text) = item.get_ref() {
                    texts.push((text.to_string(), item.span()));
                } else {
                    self.wrong_type(key, "an array of strings", item);
                }
            }
            return Some(Value::Texts(texts));
        }
        match convert_scalar(key, kind, value.get_ref()) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.fail(&value.span(), problem);
                None
            }
        }
    }
}

impl<'d> Node<'d> {
    /// The value under a key, and where the key stands.
    pub(super) fn get(&self, key: &str) -> Option<(Place, &'d Spanned<DeValue<'d>>)> {
        let mut entries = self.table?.iter();
        entries
            .find(|(name, _)| name.get_ref() == key)
            .map(|(name, value)| (name.span(), value))
    }

    /// Where the key stands, or else the table.
    pub(super) fn place(&self, key: &str) -> Place {
        self.get(key)
            .map_or_else(|| self.span.clone(), |(_, value)| value.span())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether the file has this table at all.
    pub(super) fn is_given(&self) -> bool {
        self.table.is_some()
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn name(&self) -> String {
        if self.path.is_empty() {
            "the file".to_owned()
        } else {
            format!("`{}`", self.path)
        }
    }
}

fn convert_scalar(key: &str, kind: Kind, value: &DeValue<'_>) -> Result<Value, Problem> {
    match (kind, value) {
        (Kind::Text | Kind::TextOrTrue, DeValue::String(text)) => Ok(Value::Text(text.to_string())),
        // The text that is built in.
        (Kind::TextOrTrue, DeValue::Boolean(true)) => Ok(Value::Text(String::new())),
        (Kind::Choice(choices), DeValue::String(text)) if choices.contains(&text.as_ref()) => {
            Ok(Value::Text(text.to_string()))
        }
        (Kind::Choice(choices), DeValue::String(text)) => {
            let like = most_like(text, choices.iter().copied());
            Err(Problem::NotAChoice {
                value: text.to_string(),
                choices: kind.describe(),
                like,
            })
        }
        (Kind::Integer { least, most }, DeValue::Integer(number)) => {
            let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
            let value = parsed.filter(|value| (least..=most).contains(value));
            value
                .map(Value::Integer)
                .ok_or_else(|| Problem::OutOfRange {
                    key: key.to_owned(),
                    least,
                    most,
                })
        }
        (Kind::Duration, DeValue::String(text)) => {
            let problem = || Problem::NotADuration {
                value: text.to_string(),
            };
            parse_duration(text)
                .map(Value::Duration)
                .ok_or_else(problem)
        }
        (Kind::Bytes, DeValue::String(text)) => {
            let problem = || Problem::NotASize {
                value: text.to_string(),
            };
            parse_bytes(text).map(Value::Integer).ok_or_else(problem)
        }
        _ => {
            let (expected, found) = (kind.expected().to_owned(), type_name(value));
            Err(Problem::WrongType {
                key: key.to_owned(),
                expected,
                found,
            })
        }
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A whole number and a unit; above zero.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let unit_millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number
        .checked_mul(unit_millis)
        .filter(|millis| (1..=u64::from(u32::MAX)).contains(millis))
        .map(Duration::from_millis)
}

/// A whole number and a unit of 1024s, as PostgreSQL writes memory.
fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let size = match unit {
        "B" => 1,
        "kB" | "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(size)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|char: char| !char.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(parse_duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(parse_bytes("64MB"), Some(64 << 20));
        for text in [
            "",
            "5",
            "s",
            "5 parsecs",
            "-1s",
            "0s",
            "1.5s",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
