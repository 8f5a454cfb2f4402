//! The statements of a dump's second part, one by one, and when each is run. Pure.
//!
//! What must stay true: nothing within quotes, comments or parentheses ends a statement; each statement is in one phase.

/// When a statement of the schema is run, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Primary keys: once the rows are copied.
    Key,
    /// Indexes, and constraints that are indexes: once every change since the copy is applied.
    Index,
    /// Foreign keys, not looked at yet.
    Foreign,
    /// The look at all rows that they need.
    Validate,
    /// Triggers, rules, policies, comments.
    Rest,
}

impl Phase {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Index => "index",
            Self::Foreign => "foreign",
            Self::Validate => "validate",
            Self::Rest => "rest",
        }
    }
}

/// The end of a foreign key's statement that puts off looking at its rows.
pub const NOT_VALID: &str = " NOT VALID";

/// A word outside of quotes, in upper case, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    text: String,
    start: usize,
    end: usize,
}

/// A statement, and its words.
struct Statement {
    text: String,
    words: Vec<Word>,
}

/// The statements of a dump after its data, with their phases, in the order in which they run.
#[must_use]
pub fn phased(dump: &str) -> Vec<(Phase, String)> {
    let statements = split(dump);
    let keys: Vec<String> = statements.iter().filter_map(primary_key).collect();
    let mut phased = Vec::new();
    for statement in &statements {
        let first = statement.words.first().map(|word| word.text.as_str());
        if matches!(first, None | Some("SET" | "SELECT")) {
            continue;
        }
        let phase = phase(statement, &keys);
        if phase == Phase::Foreign && !statement.is(&["NOT", "VALID"]) {
            phased.push((phase, format!("{}{NOT_VALID}", statement.text)));
            phased.extend(validate(statement).map(|text| (Phase::Validate, text)));
        } else {
            phased.push((phase, statement.text.clone()));
        }
    }
    phased.sort_by_key(|(phase, _)| *phase);
    phased
}

fn phase(statement: &Statement, keys: &[String]) -> Phase {
    if primary_key(statement).is_some() {
        return Phase::Key;
    }
    if statement.starts(&["ALTER", "INDEX"]) {
        let of_key = keys.iter().any(|key| statement.text.contains(key));
        return if of_key { Phase::Key } else { Phase::Index };
    }
    let indexes: [&[&str]; 5] = [
        &["CREATE", "INDEX"],
        &["CREATE", "UNIQUE", "INDEX"],
        &["CREATE", "STATISTICS"],
        &["ALTER", "STATISTICS"],
        &["ALTER", "TABLE"],
    ];
    if !indexes.iter().any(|words| statement.starts(words)) {
        return Phase::Rest;
    }
    if statement.starts(&["ALTER", "TABLE"]) {
        if statement.constraint().is_some() {
            return if statement.is(&["FOREIGN", "KEY"]) {
                Phase::Foreign
            } else {
                Phase::Index
            };
        }
        let of_index = statement.is(&["REPLICA", "IDENTITY"]) || statement.is(&["CLUSTER", "ON"]);
        return if of_index { Phase::Index } else { Phase::Rest };
    }
    Phase::Index
}

/// The name, as written, of the primary key that a statement adds.
fn primary_key(statement: &Statement) -> Option<String> {
    let from = statement.constraint()?;
    let key = statement.find(&["PRIMARY", "KEY"])?;
    Some(statement.text.get(from..key)?.trim().to_owned())
}

fn validate(statement: &Statement) -> Option<String> {
    let (table, name) = (
        statement.find(&["ADD", "CONSTRAINT"])?,
        statement.constraint()?,
    );
    let foreign = statement.find(&["FOREIGN", "KEY"])?;
    let table = statement.text.get(..table)?.trim();
    let name = statement.text.get(name..foreign)?.trim();
    Some(format!("{table} VALIDATE CONSTRAINT {name}"))
}

impl Statement {
    fn starts(&self, words: &[&str]) -> bool {
        let own = self.words.iter().map(|word| word.text.as_str());
        own.take(words.len()).eq(words.iter().copied())
    }

    /// Where these words stand one after another.
    fn find(&self, words: &[&str]) -> Option<usize> {
        let mut places = self.words.windows(words.len());
        let found = places.find(|place| {
            let own = place.iter().map(|word| word.text.as_str());
            own.eq(words.iter().copied())
        })?;
        found.first().map(|word| word.start)
    }

    fn is(&self, words: &[&str]) -> bool {
        self.find(words).is_some()
    }

    /// Where the name of an added constraint begins.
    fn constraint(&self) -> Option<usize> {
        let at = self.find(&["ADD", "CONSTRAINT"])?;
        let mut words = self.words.iter().skip_while(|word| word.start <= at);
        words.next().map(|word| word.end)
    }
}

/// The statements without comments around them and without their semicolons.
fn split(text: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    let (mut at, mut depth) = (0, 0_usize);
    let mut start = None;
    let mut words: Vec<Word> = Vec::new();
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let length = match first {
            _ if first.is_whitespace() => {
                at += first.len_utf8();
                continue;
            }
            '-' if rest.starts_with("--") => {
                at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            '\'' => string(rest, is_escaped(text, at)),
            '"' => quoted(rest),
            '$' => dollar(rest),
            _ if first.is_alphabetic() || first == '_' => {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'));
                let end = end.unwrap_or(rest.len());
                words.push(Word {
                    text: rest[..end].to_uppercase(),
                    start: at - start.unwrap_or(at),
                    end: at - start.unwrap_or(at) + end,
                });
                end
            }
            _ => first.len_utf8(),
        };
        match first {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let begun = *start.get_or_insert(at);
        if first == ';' && depth == 0 {
            let text = text[begun..at].to_owned();
            statements.push(Statement {
                text,
                words: std::mem::take(&mut words),
            });
            start = None;
        }
        at += length;
    }
    statements
}

/// Whether the string that begins here has backslashes that mean something.
fn is_escaped(text: &str, at: usize) -> bool {
    let before = &text.as_bytes()[..at];
    let is_e = matches!(before.last(), Some(b'E' | b'e'));
    let is_word = before.len() > 1
        && before
            .get(before.len() - 2)
            .is_some_and(u8::is_ascii_alphanumeric);
    is_e && !is_word
}

fn string(text: &str, escaped: bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if escaped => at += 2,
            b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

fn quoted(text: &str) -> usize {
    let end = text[1..].find('"').map(|end| end + 2);
    end.unwrap_or(text.len())
}

/// The length of a string in dollar quotes, or of a sign that is none.
fn dollar(text: &str) -> usize {
    let tag = text[1..].find('$').map(|end| &text[..end + 2]);
    let tag = tag.filter(|tag| {
        let inside = &tag[1..tag.len() - 1];
        inside.chars().all(|c| c.is_alphanumeric() || c == '_')
    });
    let Some(tag) = tag else {
        return 1;
    };
    let close = text[tag.len()..].find(tag);
    close.map_or(text.len(), |close| tag.len() * 2 + close)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "
--
-- Name: a; Type: CONSTRAINT
--
SET default_tablespace = '';

CREATE INDEX i ON public.t USING btree (a) WHERE (b = E'it\\'s; --'::text);
COMMENT ON INDEX public.i IS 'one;
-- Name: x; Type: INDEX
two';
ALTER TABLE ONLY public.\"t;\"
    ADD CONSTRAINT \"PRIMARY KEY\" FOREIGN KEY (a) REFERENCES public.u(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.u
    ADD CONSTRAINT u_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.u ADD CONSTRAINT old FOREIGN KEY (a) REFERENCES public.v(id) NOT VALID;
ALTER TABLE ONLY public.u ADD CONSTRAINT u_name_key UNIQUE (name);
CREATE RULE r AS ON INSERT TO public.t DO ( SELECT 1; SELECT $x$;$x$; );
ALTER TABLE ONLY public.u REPLICA IDENTITY USING INDEX u_name_key;
ALTER INDEX public.u_pkey ATTACH PARTITION public.u1_pkey;
ALTER TABLE public.t ENABLE ROW LEVEL SECURITY;
";

    #[test]
    fn statements_are_run_when_their_tables_can_have_them() {
        let phased = phased(DUMP);
        let phased: Vec<(Phase, &str)> = phased.iter().map(|(at, it)| (*at, it.as_str())).collect();
        assert_eq!(
            phased,
            [
                (
                    Phase::Key,
                    "ALTER TABLE ONLY public.u\n    ADD CONSTRAINT u_pkey PRIMARY KEY (id)"
                ),
                (
                    Phase::Key,
                    "ALTER INDEX public.u_pkey ATTACH PARTITION public.u1_pkey"
                ),
                (
                    Phase::Index,
                    "CREATE INDEX i ON public.t USING btree (a) WHERE (b = E'it\\'s; --'::text)"
                ),
                (
                    Phase::Index,
                    "ALTER TABLE ONLY public.u ADD CONSTRAINT u_name_key UNIQUE (name)"
                ),
                (
                    Phase::Index,
                    "ALTER TABLE ONLY public.u REPLICA IDENTITY USING INDEX u_name_key"
                ),
                (
                    Phase::Foreign,
                    "ALTER TABLE ONLY public.\"t;\"\n    ADD CONSTRAINT \"PRIMARY KEY\" FOREIGN KEY (a) \
                     REFERENCES public.u(id) ON DELETE CASCADE NOT VALID"
                ),
                (
                    Phase::Foreign,
                    "ALTER TABLE ONLY public.u ADD CONSTRAINT old FOREIGN KEY (a) REFERENCES public.v(id) NOT VALID"
                ),
                (
                    Phase::Validate,
                    "ALTER TABLE ONLY public.\"t;\" VALIDATE CONSTRAINT \"PRIMARY KEY\""
                ),
                (
                    Phase::Rest,
                    "COMMENT ON INDEX public.i IS 'one;\n-- Name: x; Type: INDEX\ntwo'"
                ),
                (
                    Phase::Rest,
                    "CREATE RULE r AS ON INSERT TO public.t DO ( SELECT 1; SELECT $x$;$x$; )"
                ),
                (
                    Phase::Rest,
                    "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY"
                ),
            ]
        );
    }
}
