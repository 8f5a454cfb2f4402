//! EXPLAIN of a statement over several shards: its options, and its answer made of the shards'. Pure.
//!
//! What must stay true: ANALYZE is never overlooked, since it executes; what the shards say of their plans is passed on
//! as they say it, line by line.

use crate::sql::clauses::{Kind, Token, leading_tokens};

/// EXPLAIN and its options, as they stand before a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explain {
    /// Where EXPLAIN begins, and the statement behind it; bytes.
    start: usize,
    query: usize,
    pub runs: Runs,
    pub form: Form,
    pub detail: Detail,
}

/// Whether the statement is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    No,
    Yes,
}

/// How plans are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
    /// XML, YAML, or what PostgreSQL does not know.
    Other,
}

/// Whether it is shown what the shards are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Plain,
    Verbose,
}

/// One shard's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    pub shard: String,
    pub asked: String,
    /// The rows of its answer.
    pub lines: Vec<Vec<u8>>,
}

/// What stands above the shards' plans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    pub node: &'static str,
    /// How the shards' answers become one.
    pub steps: String,
}

impl Explain {
    /// Reads a text that is an EXPLAIN; `None`: it is another statement, or its options are not understood.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let tokens = leading_tokens(text);
        let (first, mut rest) = tokens.split_first()?;
        if !first.is("explain") {
            return None;
        }
        let mut found = Self {
            start: first.start,
            query: 0,
            runs: Runs::No,
            form: Form::Text,
            detail: Detail::Plain,
        };
        if let [open, word, ..] = rest
            && open.text == "("
            && open.kind == Kind::Sign
            && !begins_query(word)
        {
            let close = rest.iter().position(|token| {
                token.kind == Kind::Sign && token.depth == 0 && token.text == ")"
            })?;
            for option in
                rest[1..close].split(|token| token.kind == Kind::Sign && token.text == ",")
            {
                found.option(option);
            }
            rest = &rest[close + 1..];
        } else {
            while let Some((word, behind)) = rest.split_first()
                && ["analyze", "analyse", "verbose"]
                    .iter()
                    .any(|name| word.is(name))
            {
                found.option(std::slice::from_ref(word));
                rest = behind;
            }
        }
        found.query = rest.first()?.start;
        Some(found)
    }

    fn option(&mut self, option: &[Token<'_>]) {
        let Some((name, value)) = option.split_first() else {
            return;
        };
        let is = |known: &str| name.text.eq_ignore_ascii_case(known);
        let value: String = value.iter().map(|token| token.text).collect();
        let value = value.trim_matches('\'').to_ascii_lowercase();
        // What PostgreSQL does not take for a truth value it refuses.
        let on = !["off", "false", "0"].contains(&value.as_str());
        if is("analyze") || is("analyse") {
            self.runs = if on { Runs::Yes } else { self.runs };
        } else if is("verbose") {
            self.detail = if on { Detail::Verbose } else { Detail::Plain };
        } else if is("format") {
            self.form = match value.as_str() {
                "text" => Form::Text,
                "json" => Form::Json,
                _ => Form::Other,
            };
        }
    }

    /// The statement alone, at the places that it has in the text.
    #[must_use]
    pub fn statement(&self, text: &str) -> String {
        let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
        let mut made = text[..self.start].to_owned();
        made.extend(text[self.start..self.query].chars().map(blank));
        made.push_str(&text[self.query..]);
        made
    }

    /// What a shard is sent, to explain what it is asked.
    #[must_use]
    pub fn of(&self, text: &str, asked: &str) -> String {
        let own = &text[self.start..self.query];
        // A comment to the end of a line may stand at its end.
        format!("{own}\n{}", asked.trim_start())
    }

    /// The rows of the answer; `None`: a shard's is not as expected.
    #[must_use]
    pub fn rows(&self, top: &Top, plans: &[ShardPlan]) -> Option<Vec<Vec<u8>>> {
        match self.form {
            Form::Text => Some(self.text(top, plans)),
            Form::Json => Some(vec![self.json(top, plans)?]),
            Form::Other => None,
        }
    }

    fn text(&self, top: &Top, plans: &[ShardPlan]) -> Vec<Vec<u8>> {
        let mut rows = vec![format!("{}  ({})", top.node, top.steps).into_bytes()];
        for plan in plans {
            rows.push(format!("  ->  Shard {}", plan.shard).into_bytes());
            if self.detail == Detail::Verbose {
                let asked = plan.asked.trim().replace(['\n', '\r'], " ");
                rows.push(format!("        Asked: {asked}").into_bytes());
            }
            for (at, line) in plan.lines.iter().enumerate() {
                let indent: &[u8] = match line.first() {
                    _ if at == 0 => b"        ->  ",
                    Some(b' ') => b"            ",
                    Some(_) | None => b"        ",
                };
                rows.push([indent, line].concat());
            }
        }
        rows
    }

    fn json(&self, top: &Top, plans: &[ShardPlan]) -> Option<Vec<u8>> {
        let mut out = format!(
            "[\n  {{\n    \"Plan\": {{\n      \"Node Type\": {},\n      \"Steps\": {},\n      \"Plans\": [",
            quoted(top.node),
            quoted(&top.steps)
        )
        .into_bytes();
        for (at, plan) in plans.iter().enumerate() {
            let [document] = plan.lines.as_slice() else {
                return None;
            };
            let Document { root, rest } = taken_apart(document)?;
            let comma = if at == 0 { "" } else { "," };
            out.extend_from_slice(
                format!(
                    "{comma}\n        {{\n          \"Node Type\": \"Shardway Shard\",\n          \
                     \"Parent Relationship\": \"Member\",\n          \"Shard\": {}",
                    quoted(&plan.shard)
                )
                .as_bytes(),
            );
            if self.detail == Detail::Verbose {
                let asked = quoted(plan.asked.trim());
                out.extend_from_slice(format!(",\n          \"Asked\": {asked}").as_bytes());
            }
            if !rest.is_empty() {
                out.extend_from_slice(b",\n");
                out.extend_from_slice(&indented(&rest, b"      "));
            }
            out.extend_from_slice(b",\n          \"Plans\": [\n            {\n");
            out.extend_from_slice(&indented(&root, b"        "));
            out.extend_from_slice(b"\n            }\n          ]\n        }");
        }
        out.extend_from_slice(b"\n      ]\n    }\n  }\n]");
        Some(out)
    }
}

/// Whether a parenthesis before this word is a query's.
fn begins_query(word: &Token<'_>) -> bool {
    let words = ["select", "with", "values", "table"];
    word.text == "(" || words.iter().any(|known| word.is(known))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// One plan, by line.
struct Document<'a> {
    root: Vec<&'a [u8]>,
    /// What stands beside it.
    rest: Vec<&'a [u8]>,
}

/// The lines of the plan's root, and those of what stands beside it: PostgreSQL writes one property a line, and no line
/// breaks into strings. `None`: it is not one plan.
fn taken_apart(document: &[u8]) -> Option<Document<'_>> {
    let lines: Vec<&[u8]> = document.split(|byte| *byte == b'\n').collect();
    let [open, begin, plan, inner @ .., end, close] = lines.as_slice() else {
        return None;
    };
    let frame = [*open, *begin, *plan, *end, *close];
    let expected: [&[u8]; 5] = [b"[", b"  {", b"    \"Plan\": {", b"  }", b"]"];
    if frame.map(<[u8]>::trim_ascii_end) != expected {
        return None;
    }
    let ends = |line: &&[u8]| line.starts_with(b"    }");
    let last = inner.iter().position(ends)?;
    let rest: Vec<&[u8]> = inner[last + 1..].to_vec();
    // Another plan, behind a rule.
    let another = rest.iter().any(|line| line.starts_with(b"  }"));
    (!another).then(|| Document {
        root: inner[..last].to_vec(),
        rest,
    })
}

fn indented(lines: &[&[u8]], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"" } else { b"\n" });
        out.extend_from_slice(by);
        out.extend_from_slice(line.trim_ascii_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Runs, Form, Detail, String) {
        let found = Explain::read(text).unwrap();
        let own = found.statement(text);
        assert_eq!(own.len(), text.len());
        (found.runs, found.form, found.detail, own.trim().to_owned())
    }

    #[test]
    fn options_are_read_as_postgresql_reads_them() {
        use {Detail::*, Form::*, Runs::*};
        for (text, runs, form, detail) in [
            ("explain Q", No, Text, Plain),
            ("EXPLAIN analyze verbose Q", Yes, Text, Verbose),
            ("explain analyse Q", Yes, Text, Plain),
            ("explain (analyze) Q", Yes, Text, Plain),
            ("explain (\"analyze\" 1, format 'JSON') Q", Yes, Json, Plain),
            (
                "explain (analyze off, verbose 'on', costs off) Q",
                No,
                Text,
                Verbose,
            ),
            (
                "explain (verbose off, format yaml, analyze true) Q",
                Yes,
                Other,
                Plain,
            ),
            ("explain (analyze /* off */ $$on$$) Q", Yes, Text, Plain),
        ] {
            for query in [
                "select 1",
                "(select 1) union select 2",
                "insert into t values (1)",
            ] {
                let text = text.replace('Q', query);
                assert_eq!(
                    read(&text),
                    (runs, form, detail, query.to_owned()),
                    "{text}"
                );
            }
        }
        assert_eq!(Explain::read("select 1"), None);
    }

    #[test]
    fn a_comment_before_it_stays() {
        let text = "/* shardway: key=1 */ explain -- é\n select 1";
        let found = Explain::read(text).unwrap();
        let own = found.statement(text);
        assert!(own.starts_with("/* shardway: key=1 */ "), "{own}");
        assert_eq!(own.chars().count(), text.chars().count());
        assert_eq!(found.of(text, &own[22..]), "explain -- é\n \nselect 1");
    }

    #[test]
    fn json_of_shards_is_one_document() {
        let explain = Explain::read("explain (format json, verbose) select 1").unwrap();
        let document = "[\n  {\n    \"Plan\": {\n      \"Node Type\": \"Append\",\n      \"Plans\": [\n        {\n          \
             \"A\": 1\n        }\n      ]\n    },\n    \"Planning Time\": 0.1,\n    \"Triggers\": [\n    ]\n  }\n]";
        let plan = ShardPlan {
            shard: "s\"0".to_owned(),
            asked: "select 'a\nb'".to_owned(),
            lines: vec![document.into()],
        };
        let top = Top {
            node: "Shardway Append",
            steps: "one".to_owned(),
        };
        let rows = explain.rows(&top, &[plan.clone(), plan.clone()]).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&rows[0]).unwrap();
        let shard = &found[0]["Plan"]["Plans"][1];
        assert_eq!(shard["Shard"], "s\"0");
        assert_eq!(shard["Asked"], "select 'a\nb'");
        assert_eq!(shard["Planning Time"], 0.1);
        assert_eq!(shard["Plans"][0]["Plans"][0]["A"], 1);
        let two = ShardPlan {
            lines: vec![
                "[\n  {\n    \"Plan\": {\n    }\n  },\n  {\n    \"Plan\": {\n    }\n  }\n]".into(),
            ],
            ..plan
        };
        assert_eq!(explain.rows(&top, &[two]), None);
    }
}
