//! Statements, from two streams of numbers: one decides the template, the other its values. The same template with
//! other values meets the cached plan of the first.

use crate::{
    random::Random,
    schema::{Keys, Kind, TABLES, Table, keys, quoted},
    value::Value,
};

/// What is done around a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    /// In a transaction that is rolled back.
    RolledBack,
    Committed,
}

/// A statement to compare.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    /// None: the simple protocol.
    pub(crate) parameters: Vec<Value>,
    /// The order of rows is given wholly.
    pub(crate) ordered: bool,
    pub(crate) usage: Use,
    /// What the transaction changes before it.
    pub(crate) setting: Option<&'static str>,
    pub(crate) shape: &'static str,
}

const SETTINGS: &[&str] = &[
    "SET LOCAL search_path TO alt, public",
    "SET LOCAL search_path TO early, public",
    "SET LOCAL standard_conforming_strings TO off",
    "SET LOCAL transform_null_equals TO on",
    "SELECT set_config('search_path', 'alt, public', true)",
    "SET LOCAL DateStyle TO 'German, DMY'",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Simple,
    Extended,
}

pub(crate) struct Generator {
    /// Decides the template.
    s: Random,
    /// Decides values.
    v: Random,
    protocol: Protocol,
    parameters: Vec<Value>,
    /// Which of a group's keys this statement is about.
    home: usize,
    /// In so many of a hundred cases keys are that one.
    homely: usize,
    path: &'static str,
    ordered: bool,
    keys: Keys,
}

impl Generator {
    pub(crate) fn new(template: u64, values: u64, path: &str) -> Self {
        let (mut s, mut v) = (Random::new(template), Random::new(values));
        let protocol = if s.chance(50) {
            Protocol::Extended
        } else {
            Protocol::Simple
        };
        let homely = if s.chance(80) { 100 } else { 60 };
        let path = if path == "alt" {
            "only"
        } else if path.contains("alt") {
            "alt"
        } else {
            ""
        };
        let home = v.below(1000);
        Self {
            s,
            v,
            protocol,
            parameters: Vec::new(),
            home,
            homely,
            path,
            ordered: false,
            keys: Keys::OfSome,
        }
    }

    /// For tables that have these.
    pub(crate) fn of_keys(mut self, keys: Keys) -> Self {
        self.keys = keys;
        self
    }

    /// A statement by itself, as one of a transaction.
    pub(crate) fn single(mut self) -> Statement {
        let (shape, sql) = if self.s.chance(60) {
            self.read()
        } else {
            self.write()
        };
        Statement {
            setting: None,
            sql,
            parameters: self.parameters,
            ordered: self.ordered,
            usage: Use::Committed,
            shape,
        }
    }

    /// A read by itself.
    pub(crate) fn reading(mut self) -> Statement {
        let (shape, sql) = self.read();
        Statement {
            setting: None,
            sql,
            parameters: self.parameters,
            ordered: self.ordered,
            usage: Use::Read,
            shape,
        }
    }

    /// A read for a cursor, without parameters; whether all of its rows have a place in its order.
    pub(crate) fn cursor(mut self) -> (String, bool) {
        loop {
            self.protocol = Protocol::Simple;
            self.ordered = false;
            let (_, sql) = self.read();
            if self.parameters.is_empty() {
                return (sql, self.ordered);
            }
            self.parameters.clear();
        }
    }

    /// A table with a condition on its key, and rows for it: key, n, note, and what tells rows of a key apart.
    pub(crate) fn copy(mut self) -> (&'static Table, String, Vec<Vec<String>>) {
        self.protocol = Protocol::Simple;
        let table = self.keyed();
        let filter = self.pin(table, "t");
        let rows = (0..1 + self.s.below(6)).map(|_| {
            let key = self.chosen(table).to_owned();
            let number = self.v.below(1000).to_string();
            vec![
                key,
                self.v.below(7).to_string(),
                "copied".to_owned(),
                number,
            ]
        });
        (table, filter, rows.collect())
    }

    pub(crate) fn statement(mut self) -> Statement {
        let (shape, sql, usage) = match self.s.below(100) {
            0..66 => {
                let (shape, sql) = self.read();
                (shape, sql, Use::Read)
            }
            66..93 => {
                let (shape, sql) = self.write();
                (shape, sql, Use::RolledBack)
            }
            93..96 => {
                let (shape, sql) = self.write();
                (shape, sql, Use::Committed)
            }
            _ => {
                self.protocol = Protocol::Simple;
                let (shape, sql) = self.several();
                (shape, sql, Use::RolledBack)
            }
        };
        let setting = self
            .s
            .chance(10)
            .then(|| self.s.below(SETTINGS.len()))
            .map(|at| SETTINGS[at]);
        let setting = setting.filter(|_| usage == Use::RolledBack);
        Statement {
            setting,
            sql,
            parameters: self.parameters,
            ordered: self.ordered,
            usage,
            shape,
        }
    }

    // ---- names ----

    fn table(&mut self) -> &'static Table {
        let sharded = TABLES.len() - 2;
        match self.s.below(20) {
            0..6 => &TABLES[self.s.below(3)],
            6..18 => &TABLES[self.s.below(sharded)],
            _ => &TABLES[self.s.below(TABLES.len())],
        }
    }

    fn keyed(&mut self) -> &'static Table {
        loop {
            let table = self.table();
            if table.sharded() {
                return table;
            }
        }
    }

    /// A table of the same group, perhaps itself; sometimes of any.
    fn partner(&mut self, of: &Table) -> &'static Table {
        if self.s.chance(12) {
            return self.table();
        }
        let same: Vec<&'static Table> = TABLES
            .iter()
            .filter(|table| table.group == of.group)
            .collect();
        same[self.s.below(same.len())]
    }

    fn named(&mut self, table: &Table) -> String {
        let visible = match table.schema {
            "public" => self.path != "only" || self.s.chance(10),
            _ => !self.path.is_empty(),
        };
        match self.s.below(4) {
            0 if visible => quoted(table.name),
            1 if visible => format!("\"{}\"", table.name),
            2 if visible && quoted(table.name) == table.name => table.name.to_uppercase(),
            _ => table.full_name(),
        }
    }

    fn column(&mut self, alias: &str, name: &str) -> String {
        if alias.is_empty() {
            quoted(name)
        } else {
            format!("{alias}.{}", quoted(name))
        }
    }

    fn key_of(&mut self, table: &Table, alias: &str) -> String {
        let name = if table.sharded() { table.key } else { "code" };
        self.column(alias, name)
    }

    // ---- values ----

    fn chosen(&mut self, table: &Table) -> &'static str {
        let all = keys(table.group);
        let at = if self.v.chance(self.homely) {
            self.home
        } else {
            self.v.below(1000)
        };
        all[at % all.len()]
    }

    /// A key of the table, in one of its spellings.
    fn key(&mut self, table: &Table) -> String {
        if self.s.chance(3) {
            return "NULL".to_owned();
        }
        let text = self.chosen(table);
        self.spelled(table.kind, text)
    }

    fn spelled(&mut self, kind: Kind, text: &str) -> String {
        if self.protocol == Protocol::Extended && self.s.chance(75) {
            return self.parameter(kind, text);
        }
        // Mostly of the template, sometimes of this execution.
        let form = if self.s.chance(70) {
            self.s.below(24)
        } else {
            self.v.below(24)
        };
        let quoted = format!("'{}'", text.replace('\'', "''"));
        match kind {
            Kind::Int => match form {
                0..8 => text.to_owned(),
                8 | 9 => quoted,
                10 => format!("{text}::bigint"),
                11 => format!("{quoted}::bigint"),
                12 => format!("CAST({text} AS bigint)"),
                13 => format!("({text})"),
                14 => format!("bigint {quoted}"),
                15 => format!("{text}.0"),
                16 => format!("{text}.5"),
                17 => format!("{text}e0"),
                18 => format!("' {text} '"),
                19 => format!("{text}::int"),
                20 => format!("{text}.4::int8"),
                21 => format!("{quoted}::int8"),
                22 => format!("{text}::numeric"),
                _ => format!("+ {text}"),
            },
            Kind::Numeric => match form {
                0..8 => quoted,
                8..12 if text.parse::<f64>().is_ok_and(f64::is_finite) => text.to_owned(),
                12..14 if text.parse::<f64>().is_ok_and(f64::is_finite) => {
                    if text.contains('.') {
                        format!("{text}000")
                    } else {
                        format!("{text}.000")
                    }
                }
                14 if text.parse::<f64>().is_ok_and(f64::is_finite) => format!("{text}e0"),
                15 if text.parse::<f64>().is_ok_and(f64::is_finite) => format!("'{text}e0'"),
                16 if text.parse::<f64>().is_ok_and(f64::is_finite) => format!("{text}::float8"),
                17 => format!("numeric {quoted}"),
                _ => format!("{quoted}::numeric"),
            },
            Kind::Text => match form {
                0..10 => quoted,
                10 => format!("{quoted}::text"),
                11 => format!("{quoted}::varchar"),
                12 => format!("$a${text}$a$"),
                13 => format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
                14 => format!("U&{}", quoted.replace('\\', "\\\\")),
                15 => format!("{quoted}::varchar(3)"),
                16 => format!("{quoted}::char(3)"),
                17 => format!("{quoted}::bpchar"),
                18 => format!("{quoted}::name"),
                19 => format!("{quoted} COLLATE \"C\""),
                20 => format!("N{quoted}"),
                21 => "5".to_owned(),
                _ => format!("text {quoted}"),
            },
            Kind::Uuid => match form {
                0..8 => quoted,
                8 | 9 => quoted.to_uppercase(),
                10 => format!("'{{{text}}}'"),
                11 => format!("'{}'", text.replace('-', "")),
                12 => format!("uuid {quoted}"),
                13 => format!("{quoted}::text"),
                14 => "'nonsense'".to_owned(),
                _ => format!("{quoted}::uuid"),
            },
            Kind::Date => match form {
                0..10 => quoted,
                10 | 11 => format!("date {quoted}"),
                12 => format!("{quoted}::timestamp"),
                13 => format!("{quoted}::timestamptz"),
                14 => format!("'{}'", text.replace("-0", "-")),
                15 => format!("'{text} 00:00'"),
                16 => format!("'{text} 13:00'::timestamp"),
                17 => "'2025-02-30'".to_owned(),
                18 => format!("{quoted}::text"),
                19 => format!("'{}'", text.replace('-', "")),
                _ => format!("{quoted}::date"),
            },
        }
    }

    fn parameter(&mut self, kind: Kind, text: &str) -> String {
        let binary = self.v.chance(70);
        let known = (self.s.chance(8) && !self.parameters.is_empty())
            .then(|| self.s.below(self.parameters.len()));
        let number = match known {
            Some(number) => number + 1,
            None => {
                let text = if self.v.chance(2) {
                    None
                } else {
                    Some(text.to_owned())
                };
                self.parameters.push(Value { text, binary });
                self.parameters.len()
            }
        };
        let cast = match (kind, self.s.below(14)) {
            (Kind::Int, 0) => "::bigint",
            (Kind::Int, 1) => "::int",
            (Kind::Int, 2) => "::text::bigint",
            (Kind::Int, 3) => "::numeric",
            (Kind::Text, 0) => "::text",
            (Kind::Text, 1) => "::varchar",
            (Kind::Text, 2) => "::char(3)",
            (Kind::Uuid, 0) => "::uuid",
            (Kind::Numeric, 0) => "::numeric",
            (Kind::Numeric, 1) => "::numeric(10,1)",
            (Kind::Date, 0) => "::date",
            (Kind::Date, 1) => "::timestamp",
            _ => "",
        };
        format!("${number}{cast}")
    }

    fn number(&mut self) -> String {
        let number = self.v.below(7).to_string();
        if self.protocol == Protocol::Extended && self.s.chance(20) {
            self.parameters.push(Value {
                text: Some(number),
                binary: self.v.chance(50),
            });
            return format!("${}::int", self.parameters.len());
        }
        number
    }

    fn key_list(&mut self, table: &Table) -> String {
        let count = 1 + self.s.below(3);
        let keys: Vec<String> = (0..count).map(|_| self.key(table)).collect();
        keys.join(", ")
    }

    // ---- predicates ----

    /// Says something of the key; mostly what pins.
    fn pin(&mut self, table: &Table, alias: &str) -> String {
        let key = self.key_of(table, alias);
        let n = self.column(alias, "n");
        match self.s.below(90) {
            0..14 | 42.. => format!("{key} = {}", self.key(table)),
            14 => format!("{} = {key}", self.key(table)),
            15 | 16 => format!("{key} IN ({})", self.key_list(table)),
            17 => format!("{key} = ANY (ARRAY[{}])", self.key_list(table)),
            18 => {
                let text = self.chosen(table);
                let element =
                    format!("{{\"{}\", NULL}}", text.replace('\\', "\\\\")).replace('\'', "''");
                format!("{key} = ANY ('{element}')")
            }
            19 | 20 => format!("{key} = {} AND {}", self.key(table), self.other(alias)),
            21 => format!(
                "({key} = {} OR {key} = {})",
                self.key(table),
                self.key(table)
            ),
            22 => {
                let (one, other) = (self.key(table), self.key(table));
                format!("({key} = {one} AND {n} > 2 OR {key} = {other} AND {n} IS NULL)")
            }
            23 => format!("{key} BETWEEN {} AND {}", self.key(table), self.key(table)),
            24 => format!("({key}, {n}) = ({}, {})", self.key(table), self.number()),
            25 => format!(
                "({key}, {n}) IN (({}, 1), ({}, 2))",
                self.key(table),
                self.key(table)
            ),
            26 => format!(
                "{key} >= {} AND {key} < {}",
                self.key(table),
                self.key(table)
            ),
            27 => format!(
                "{key} = CASE WHEN {n} > 3 THEN {} ELSE {} END",
                self.key(table),
                self.key(table)
            ),
            28 => format!("coalesce({key}, {}) = {}", self.key(table), self.key(table)),
            29 => format!("{key} IS NOT DISTINCT FROM {}", self.key(table)),
            30 => format!("NOT ({key} <> {})", self.key(table)),
            31 => format!("{key} IS NULL"),
            32 => format!("({key} = {}) IS TRUE", self.key(table)),
            33 => format!("{key} NOT IN ({})", self.key_list(table)),
            34 => format!("{key} <> {}", self.key(table)),
            35 => format!("({key} = {} OR {})", self.key(table), self.other(alias)),
            36 => format!("NOT {key} = {}", self.key(table)),
            37 => format!(
                "{key} = {} AND {key} = {}",
                self.key(table),
                self.key(table)
            ),
            38 => format!("{key} = (SELECT {})", self.key(table)),
            39 => format!("{key} > {}", self.key(table)),
            40 => format!("{key} = ALL (ARRAY[{}])", self.key_list(table)),
            41 => self.other(alias),
        }
    }

    /// Says nothing of the key.
    fn other(&mut self, alias: &str) -> String {
        let (n, note) = (self.column(alias, "n"), self.column(alias, "note"));
        match self.s.below(9) {
            0 => format!("{n} = {}", self.number()),
            1 => format!("{n} IS NULL"),
            2 => format!("{note} IS NOT NULL"),
            3 => format!("{n} IN (1, {}, 3)", self.number()),
            4 => format!("{note} LIKE 'x%'"),
            5 => format!("({n} > {} OR {note} = 'y')", self.number()),
            6 => format!("NOT ({n} < {})", self.number()),
            7 => format!("coalesce({n}, 0) + 1 > {}", self.number()),
            _ => format!("{n} BETWEEN 1 AND {}", self.number()),
        }
    }

    fn columns(&mut self, table: &Table, alias: &str) -> (String, usize) {
        let key = self.key_of(table, alias);
        let (n, note) = (self.column(alias, "n"), self.column(alias, "note"));
        // Which of two tables of one name is meant the search path says, and so how many columns all are.
        let one = TABLES.iter().filter(|it| it.name == table.name).count() == 1;
        match self.s.below(6) {
            0 if one => (
                if alias.is_empty() {
                    "*".to_owned()
                } else {
                    format!("{alias}.*")
                },
                table.columns.len()
                    + usize::from(table.unique.is_empty() && self.keys == Keys::OfAll),
            ),
            0 | 1 => (format!("{key}, {n}, {note}"), 3),
            2 => (format!("{n}, {key}"), 2),
            3 => (format!("{key} AS k, {n} + 1 AS m, upper({note})"), 3),
            4 => (
                format!("CASE WHEN {n} > 2 THEN {note} ELSE 'none' END, {n}"),
                2,
            ),
            _ => (n, 1),
        }
    }

    /// ORDER BY over all output columns, LIMIT.
    fn tail(&mut self, count: usize) -> String {
        if !self.s.chance(30) {
            return String::new();
        }
        self.ordered = true;
        let ordinals: Vec<String> = (1..=count)
            .map(|at| {
                format!(
                    "{at}{}",
                    self.s
                        .pick(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST"])
                )
            })
            .collect();
        let limit = match self.s.below(4) {
            0 => format!(" LIMIT {}", self.number()),
            1 => format!(" LIMIT {} OFFSET 1", self.number()),
            2 => " FETCH FIRST 2 ROWS ONLY".to_owned(),
            _ => String::new(),
        };
        format!(" ORDER BY {}{limit}", ordinals.join(", "))
    }

    // ---- queries ----

    fn read(&mut self) -> (&'static str, String) {
        match self.s.below(48) {
            33 => ("shared parameter", self.shared_parameter()),
            35 | 36 => ("nested using", self.nested_using()),
            0..5 => ("scan", self.scan()),
            5..7 => ("aggregate", self.aggregate()),
            7 => ("window", self.window()),
            8 => ("distinct", self.distinct()),
            9..14 => ("join", self.join()),
            14 => ("join using", self.join_using()),
            15 => ("three joins", self.three()),
            16 => ("lateral", self.lateral()),
            17..21 => ("subquery", self.subquery()),
            21 | 22 => ("derived", self.derived()),
            23 | 24 => ("with", self.with()),
            25 | 26 => ("set operation", self.set_operation()),
            27 => ("reference", self.reference()),
            28 => ("catalog", self.catalog()),
            29 => ("function", self.function()),
            30 => ("override", self.overridden()),
            31 => ("recursive", self.recursive()),
            32 => ("locking", self.locking()),
            38..43 => ("partial results", self.partial()),
            43..47 => ("first rows", self.first_rows()),
            47 => ("distinct rows", self.distinct_rows()),
            _ => ("renamed join", self.renamed_join()),
        }
    }

    fn scan(&mut self) -> String {
        let table = self.table();
        let alias = *self.pick_alias();
        let (columns, count) = self.columns(table, alias);
        let name = self.named(table);
        let only = if self.s.chance(8) { "ONLY " } else { "" };
        let filter = self.pin(table, alias);
        let also = if self.s.chance(25) {
            format!(" AND {}", self.other(alias))
        } else {
            String::new()
        };
        format!(
            "SELECT {columns} FROM {only}{name} {alias} WHERE {filter}{also}{}",
            self.tail(count)
        )
    }

    fn pick_alias(&mut self) -> &'static &'static str {
        ["", "t", "a"].get(self.s.below(3)).unwrap()
    }

    fn aggregate(&mut self) -> String {
        let table = self.table();
        let (name, filter) = (self.named(table), self.pin(table, "t"));
        let key = self.key_of(table, "t");
        // Which of several equal numerics stands for their group is open: -7 or -7.000.
        let shown = match table.name {
            "ledger" => format!("trim_scale({key})"),
            _ => key.clone(),
        };
        match self.s.below(7) {
            0 => format!(
                "SELECT count(*), sum(n), min(note), max(n), avg(n) FROM {name} t WHERE {filter}"
            ),
            1 => format!(
                "SELECT t.n, count(*) FROM {name} t WHERE {filter} GROUP BY t.n{}",
                self.tail(2)
            ),
            2 => format!(
                "SELECT {shown}, count(DISTINCT n) FROM {name} t WHERE {filter} GROUP BY {key} HAVING count(*) > 1"
            ),
            3 => format!(
                "SELECT n % 2, sum(n) FILTER (WHERE n > 2) FROM {name} t WHERE {filter} GROUP BY 1"
            ),
            4 => format!(
                "SELECT {shown}, n, count(*) FROM {name} t WHERE {filter} GROUP BY ROLLUP ({key}, n)"
            ),
            5 => format!(
                "SELECT string_agg(note, ',' ORDER BY note, n) FROM {name} t WHERE {filter}"
            ),
            _ => format!(
                "SELECT bool_and(n > 1), array_agg(n ORDER BY n) FROM {name} t WHERE {filter}"
            ),
        }
    }

    /// Mostly rows of all shards.
    fn widely(&mut self, table: &Table) -> String {
        match self.s.below(8) {
            0..3 => String::new(),
            3..6 => format!(" WHERE {}", self.other("t")),
            6 => format!(" WHERE {} AND {}", self.other("t"), self.other("t")),
            _ => format!(" WHERE {}", self.pin(table, "t")),
        }
    }

    /// A table with columns of many types, often.
    fn measured(&mut self) -> &'static Table {
        let measure = TABLES.iter().find(|table| table.name == "measure");
        if self.s.chance(60) {
            measure.unwrap()
        } else {
            self.keyed()
        }
    }

    fn call(&mut self, table: &Table) -> String {
        let common = [
            "count(*)",
            "count(t.n)",
            "sum(t.n)",
            "avg(t.n)",
            "min(t.note)",
            "max(t.note)",
            "min(upper(t.note))",
            "sum(t.n * 2 + 1)",
            "bool_or(t.n > 3)",
            "every(t.n IS NOT NULL)",
            "count(DISTINCT t.n)",
            "count(DISTINCT t.note)",
            "sum(DISTINCT t.n % 3)",
            "stddev(t.n)",
            "max(length(t.note))",
            "string_agg(t.note, ',' ORDER BY t.note)",
        ];
        let measured = [
            "sum(t.w)",
            "avg(t.w)",
            "min(t.w)",
            "sum(t.q)",
            "avg(t.q)",
            "trim_scale(max(t.q))",
            "sum(t.r)",
            "max(t.r)",
            "min(t.r)",
            "avg(t.r)",
            "sum(t.iv)",
            "avg(t.iv)",
            "max(t.iv) IS NULL",
            "bool_and(t.ok)",
            "max(t.at)",
            "min(t.at::date)",
            "min(t.word)",
            "max(t.word)",
            "count(DISTINCT t.word)",
            "sum(DISTINCT t.w)",
            "avg(t.q * t.n)",
            "array_agg(t.w ORDER BY t.w)",
        ];
        let call = if table.name == "measure" && self.s.chance(65) {
            self.s.pick(&measured)
        } else {
            self.s.pick(&common)
        };
        let filtered = self.s.chance(20) && call.ends_with(')') && !call.starts_with("trim");
        let call = if filtered {
            format!("{call} FILTER (WHERE {})", self.other("t"))
        } else {
            call.to_owned()
        };
        match self.s.below(8) {
            0 => format!("coalesce(({call})::text, 'none')"),
            1 => format!("CASE WHEN count(*) > {} THEN {call} END", self.number()),
            2 => format!("({call}) IS NULL"),
            _ => call,
        }
    }

    fn group(&mut self, table: &Table) -> String {
        let key = self.key_of(table, "t");
        let measured = [
            "t.ok",
            "t.word",
            "date_trunc('day', t.at)",
            "extract(month FROM t.at)",
            "t.w",
            "t.r",
            "t.q = 7",
        ];
        if table.name == "measure" && self.s.chance(50) {
            return self.s.pick(&measured).to_owned();
        }
        match self.s.below(7) {
            0 | 1 => "t.n".to_owned(),
            2 => "t.note".to_owned(),
            3 => "t.n % 3".to_owned(),
            4 => "upper(t.note)".to_owned(),
            5 => "coalesce(t.n, 0) + length(t.note)".to_owned(),
            _ if table.name == "ledger" => "n".to_owned(),
            _ => key,
        }
    }

    fn partial(&mut self) -> String {
        let table = self.measured();
        let (name, filter) = (self.named(table), self.widely(table));
        let (mut targets, mut groups) = (Vec::new(), Vec::new());
        for at in 0..self.s.below(3) {
            let group = self.group(table);
            match self.s.below(3) {
                0 => groups.push((at + 1).to_string()),
                1 => groups.push(group.clone()),
                _ => groups.push(format!("g{at}")),
            }
            let named = groups[at].starts_with('g') && groups[at] != group || self.s.chance(30);
            targets.push(if named {
                format!("{group} AS g{at}")
            } else {
                group
            });
        }
        for at in 0..1 + self.s.below(3) {
            let call = self.call(table);
            targets.push(if self.s.chance(30) {
                format!("{call} AS c{at}")
            } else {
                call
            });
        }
        let distinct = if self.s.chance(5) { "DISTINCT " } else { "" };
        let mut sql = format!(
            "SELECT {distinct}{} FROM {name} t{filter}",
            targets.join(", ")
        );
        if !groups.is_empty() {
            sql.push_str(&format!(" GROUP BY {}", groups.join(", ")));
        }
        if self.s.chance(25) {
            let having = match self.s.below(4) {
                0 => format!("count(*) > {}", self.number()),
                1 => format!("sum(t.n) > {}", self.number()),
                2 => "max(t.note) = 'y'".to_owned(),
                _ => "min(t.n) IS NOT NULL".to_owned(),
            };
            sql.push_str(&format!(" HAVING {having}"));
        }
        let order = self.tail(targets.len());
        sql + &order
    }

    fn first_rows(&mut self) -> String {
        let table = self.measured();
        let (name, filter) = (self.named(table), self.widely(table));
        let (columns, count) = self.columns(table, "t");
        self.ordered = true;
        let limit = match self.s.below(6) {
            0 => " LIMIT 3".to_owned(),
            1 => format!(" LIMIT {}", self.number()),
            2 => format!(" LIMIT {} OFFSET {}", self.number(), self.number()),
            3 => format!(" OFFSET {} ROWS FETCH NEXT 4 ROWS ONLY", self.s.below(5)),
            4 => format!(" LIMIT {} + 1", self.number()),
            _ => " LIMIT NULL OFFSET 2".to_owned(),
        };
        let turn = self
            .s
            .pick(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST"]);
        if self.s.chance(20) {
            // Rows that are equal by the order are equal.
            let ties = self.s.pick(&[
                "FETCH FIRST 2 ROWS WITH TIES",
                "OFFSET 1 FETCH FIRST ROW WITH TIES",
                "LIMIT 5",
            ]);
            let value = self
                .s
                .pick(&["t.n", "t.note", "t.n % 2", "upper(t.note) AS n"]);
            return format!("SELECT {value} FROM {name} t{filter} ORDER BY 1{turn} {ties}");
        }
        let first = match self.s.below(6) {
            0 => format!("t.n{turn}, "),
            1 => format!("t.n % 3{turn}, t.note, "),
            2 => format!("upper(t.note){turn}, "),
            3 if columns.contains("AS m") => format!("m{turn}, k DESC, "),
            4 if table.name == "measure" => {
                let column = self.s.pick(&["w", "r", "at", "ok", "word", "iv"]);
                format!("t.{column}{turn}, ")
            }
            _ => String::new(),
        };
        let all: Vec<String> = (1..=count).map(|at| at.to_string()).collect();
        format!(
            "SELECT {columns} FROM {name} t{filter} ORDER BY {first}{}{limit}",
            all.join(", ")
        )
    }

    fn distinct_rows(&mut self) -> String {
        let table = self.measured();
        let (name, filter) = (self.named(table), self.widely(table));
        self.ordered = true;
        let (one, two) = (self.group(table), self.group(table));
        let limit = if self.s.chance(50) {
            " LIMIT 3 OFFSET 1"
        } else {
            ""
        };
        match self.s.below(3) {
            0 => format!("SELECT DISTINCT {one}, {two} FROM {name} t{filter} ORDER BY 1, 2{limit}"),
            1 => format!(
                "SELECT DISTINCT {one} AS g, t.n FROM {name} t{filter} ORDER BY t.n DESC, g{limit}"
            ),
            _ => format!(
                "SELECT DISTINCT ON ({one}) {one}, t.n, {two} FROM {name} t{filter} ORDER BY {one}, t.n, {two}{limit}"
            ),
        }
    }

    fn window(&mut self) -> String {
        let table = self.table();
        let (name, filter) = (self.named(table), self.pin(table, "t"));
        format!(
            "SELECT n, rank() OVER (ORDER BY n), sum(n) OVER (PARTITION BY note) FROM {name} t WHERE {filter}"
        )
    }

    fn distinct(&mut self) -> String {
        let table = self.table();
        let (name, filter) = (self.named(table), self.pin(table, "t"));
        let on = if self.s.chance(50) { " ON (n)" } else { "" };
        format!("SELECT DISTINCT{on} n, note FROM {name} t WHERE {filter} ORDER BY n, note")
    }

    fn join(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let kind = self.s.pick(&[
            "JOIN",
            "LEFT JOIN",
            "RIGHT JOIN",
            "FULL JOIN",
            "JOIN",
            "LEFT JOIN",
        ]);
        let on = self.join_condition(one, "a", other, "b");
        let filter = match self.s.below(6) {
            0..3 => self.pin(one, "a"),
            3 => self.pin(other, "b"),
            4 => format!("{} AND {}", self.pin(one, "a"), self.pin(other, "b")),
            _ => self.other("a"),
        };
        let (left, right) = (self.named(one), self.named(other));
        let (ka, kb) = (self.key_of(one, "a"), self.key_of(other, "b"));
        if self.s.chance(15) {
            let on = if self.s.chance(80) {
                on
            } else {
                "true".to_owned()
            };
            return format!(
                "SELECT {ka}, a.n, {kb}, b.n FROM {left} a, {right} b WHERE {on} AND {filter}{}",
                self.tail(4)
            );
        }
        format!(
            "SELECT {ka}, a.n, {kb}, b.n FROM {left} a {kind} {right} b ON {on} WHERE {filter}{}",
            self.tail(4)
        )
    }

    fn join_condition(&mut self, one: &Table, a: &str, other: &Table, b: &str) -> String {
        let (ka, kb) = (self.key_of(one, a), self.key_of(other, b));
        match self.s.below(12) {
            0..6 => format!("{ka} = {kb}"),
            6 => format!("{kb} = {ka} AND {}", self.other(b)),
            7 => format!("{ka} = {kb} AND {}", self.pin(other, b)),
            8 => format!("{ka} = {kb} AND {}", self.pin(one, a)),
            9 => format!("({ka}, {a}.n) = ({kb}, {b}.n)"),
            10 => format!("{a}.n = {b}.n"),
            _ => self.pin(other, b),
        }
    }

    fn join_using(&mut self) -> String {
        let pairs = [(1, 2), (5, 6), (1, 1), (0, 3)];
        let (one, other) = pairs[self.s.below(4)];
        let (one, other) = (&TABLES[one], &TABLES[other]);
        let kind = self
            .s
            .pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
        let (left, right) = (self.named(one), self.named(other));
        let (how, natural) = match self.s.below(4) {
            0 => (String::new(), "NATURAL "),
            1 => (format!(" USING ({}, n)", one.key), ""),
            _ => (format!(" USING ({})", one.key), ""),
        };
        let filter = match self.s.below(3) {
            0 => self.pin(one, "a"),
            1 => self.pin(other, "b"),
            _ => format!("{} = {}", quoted(one.key), self.key(one)),
        };
        format!(
            "SELECT {}, a.n, b.n FROM {left} a {natural}{kind} {right} b{how} WHERE {filter}{}",
            one.key,
            self.tail(3)
        )
    }

    fn renamed_join(&mut self) -> String {
        let (one, other) = (&TABLES[0], &TABLES[3]);
        let (left, right) = (self.named(one), self.named(other));
        let kind = self.s.pick(&["JOIN", "LEFT JOIN", "FULL JOIN"]);
        let key = self.key(one);
        match self.s.below(4) {
            0 => format!(
                "SELECT count(*) FROM ({left} a {kind} {right} b USING (id)) AS j (x, id) WHERE id = {key}"
            ),
            1 => format!(
                "SELECT * FROM ({left} a {kind} {right} b USING (id)) AS j (id, x, y) WHERE id = {key}"
            ),
            2 => format!(
                "SELECT a.n, b.n FROM {left} a {kind} {right} b USING (id) AS u WHERE u.id = {key}"
            ),
            _ => format!(
                "SELECT x, y FROM {left} AS a (x, y) {kind} {right} AS b (z, w) ON x = w WHERE y = 3 AND x = {key}"
            ),
        }
    }

    fn three(&mut self) -> String {
        let one = self.keyed();
        let (two, three) = (self.partner(one), self.partner(one));
        let (k1, k2, k3) = (
            self.key_of(one, "a"),
            self.key_of(two, "b"),
            self.key_of(three, "c"),
        );
        let (t1, t2, t3) = (self.named(one), self.named(two), self.named(three));
        let first = self
            .s
            .pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
        let second = self.s.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN"]);
        let filter = match self.s.below(4) {
            0 => self.pin(two, "b"),
            1 => self.pin(three, "c"),
            _ => self.pin(one, "a"),
        };
        let joined = match self.s.below(3) {
            0 => format!("{t1} a {first} {t2} b ON {k1} = {k2} {second} {t3} c ON {k2} = {k3}"),
            1 => format!("{t1} a {first} ({t2} b {second} {t3} c ON {k2} = {k3}) ON {k1} = {k2}"),
            _ => format!(
                "{t1} a {first} {t2} b ON {k1} = {k2} {second} country c ON c.code = b.note, {t3} d"
            ),
        };
        format!(
            "SELECT a.n, b.n, c.n FROM {joined} WHERE {filter}{}",
            self.tail(3)
        )
    }

    fn lateral(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let (ka, kb) = (self.key_of(one, "a"), self.key_of(other, "b"));
        let (filter, inner) = (self.pin(one, "a"), self.other("b"));
        let lateral = self.s.pick(&["LATERAL ", "LATERAL ", ""]);
        let join = self.s.pick(&["CROSS JOIN", "LEFT JOIN"]);
        let on = if join == "LEFT JOIN" { " ON true" } else { "" };
        format!(
            "SELECT a.n, x.c FROM {left} a {join} {lateral}(SELECT count(*) AS c FROM {right} b WHERE {kb} = {ka} AND {inner}) x{on} WHERE {filter}{}",
            self.tail(2)
        )
    }

    fn subquery(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let (ka, kb) = (self.key_of(one, "a"), self.key_of(other, "b"));
        let outer = if self.s.chance(85) {
            self.pin(one, "a")
        } else {
            self.other("a")
        };
        let inner = match self.s.below(5) {
            0 | 1 => format!("{kb} = {ka}"),
            2 => self.pin(other, "b"),
            3 => format!("{kb} = {ka} AND {}", self.other("b")),
            _ => {
                // Unqualified: whose column it is depends on who has one.
                format!(
                    "{} = {ka}",
                    quoted(if other.sharded() { other.key } else { "code" })
                )
            }
        };
        match self.s.below(9) {
            0 => format!(
                "SELECT a.n FROM {left} a WHERE {outer} AND EXISTS (SELECT 1 FROM {right} b WHERE {inner})"
            ),
            1 => format!(
                "SELECT a.n FROM {left} a WHERE {outer} AND NOT EXISTS (SELECT 1 FROM {right} b WHERE {inner})"
            ),
            2 => format!(
                "SELECT a.n FROM {left} a WHERE {ka} IN (SELECT {kb} FROM {right} b WHERE {inner})"
            ),
            3 => format!(
                "SELECT a.n FROM {left} a WHERE {outer} AND {ka} NOT IN (SELECT {kb} FROM {right} b WHERE {inner})"
            ),
            4 => format!(
                "SELECT a.n, (SELECT max(b.n) FROM {right} b WHERE {inner}) FROM {left} a WHERE {outer}"
            ),
            5 => format!(
                "SELECT a.n FROM {left} a WHERE {outer} AND a.n = ANY (SELECT b.n FROM {right} b WHERE {inner})"
            ),
            6 => format!(
                "SELECT a.n FROM {left} a WHERE {ka} = (SELECT {kb} FROM {right} b WHERE {inner} ORDER BY 1 LIMIT 1)"
            ),
            7 => format!(
                "SELECT a.n FROM {left} a WHERE {outer} ORDER BY (SELECT count(*) FROM {right} b WHERE {inner}), a.n"
            ),
            _ => format!(
                "SELECT a.n FROM {left} a WHERE {outer} AND (a.n, {ka}) IN (SELECT b.n, {kb} FROM {right} b WHERE {inner})"
            ),
        }
    }

    fn derived(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let (ka, kb) = (self.key_of(one, "a"), self.key_of(other, "b"));
        let (filter, key) = (self.pin(one, "a"), self.key(one));
        match self.s.below(6) {
            0 => format!(
                "SELECT x.k, x.n FROM (SELECT {ka} AS k, a.n FROM {left} a WHERE {filter}) x WHERE x.n > 1"
            ),
            1 => format!(
                "SELECT x.k, x.n FROM (SELECT {ka} AS k, a.n FROM {left} a) x WHERE x.k = {key}"
            ),
            2 => format!(
                "SELECT x.k, b.n FROM (SELECT {ka} AS k, a.n FROM {left} a WHERE {filter}) x JOIN {right} b ON x.k = {kb}"
            ),
            3 => format!(
                "SELECT x.k, b.n FROM (SELECT {ka}, count(*) FROM {left} a WHERE {filter} GROUP BY {ka}) x (k, c) LEFT JOIN {right} b ON {kb} = x.k"
            ),
            4 => format!(
                "SELECT b.n FROM (SELECT a.n AS k, {ka} AS n FROM {left} a WHERE {filter}) x JOIN {right} b ON {kb} = x.n"
            ),
            _ => format!(
                "SELECT b.n FROM {right} b RIGHT JOIN (SELECT {ka} AS k FROM {left} a WHERE {filter} UNION SELECT {key}) x ON {kb} = x.k"
            ),
        }
    }

    fn with(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let (ka, kb) = (self.key_of(one, "a"), self.key_of(other, "b"));
        let filter = self.pin(one, "a");
        match self.s.below(6) {
            0 => format!(
                "WITH x AS (SELECT {ka} AS k, a.n FROM {left} a WHERE {filter}) SELECT k, n FROM x{}",
                self.tail(2)
            ),
            1 => format!(
                "WITH x AS (SELECT {ka} AS k FROM {left} a WHERE {filter}) SELECT b.n FROM x JOIN {right} b ON {kb} = x.k"
            ),
            2 => format!(
                "WITH x AS MATERIALIZED (SELECT {ka} AS k, a.n FROM {left} a) SELECT n FROM x WHERE k = {}",
                self.key(one)
            ),
            // Shadows the table.
            3 => format!(
                "WITH {0} AS (SELECT 1 AS \"{1}\", 2 AS n) SELECT n FROM {0} WHERE \"{1}\" = {2}",
                quoted(one.name),
                one.key,
                self.key(one)
            ),
            4 => format!(
                "WITH x AS (SELECT {ka} AS k, a.n FROM {left} a WHERE {filter}), y AS (SELECT count(*) AS c FROM x) SELECT x.n, y.c FROM x, y"
            ),
            _ => format!(
                "WITH x (n, k) AS (SELECT {ka}, a.n FROM {left} a WHERE {filter}) SELECT b.n FROM {right} b WHERE {kb} IN (SELECT k FROM x)"
            ),
        }
    }

    fn set_operation(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let op = self
            .s
            .pick(&["UNION", "UNION ALL", "INTERSECT", "EXCEPT", "EXCEPT ALL"]);
        let first = self.pin(one, "a");
        let second = if self.s.chance(85) {
            self.pin(other, "b")
        } else {
            self.other("b")
        };
        let third = self.s.pick(&[
            "",
            "",
            " UNION SELECT 1, 'x'",
            " UNION ALL SELECT n, note FROM country",
        ]);
        format!(
            "SELECT n, note FROM {left} a WHERE {first} {op} SELECT n, note FROM {right} b WHERE {second}{third}{}",
            self.tail(2)
        )
    }

    fn reference(&mut self) -> String {
        let one = self.keyed();
        let left = self.named(one);
        let filter = self.pin(one, "a");
        match self.s.below(6) {
            0 => format!("TABLE country{}", self.tail(3)),
            1 => format!(
                "SELECT a.n, c.note FROM {left} a LEFT JOIN country c ON c.n = a.n WHERE {filter}"
            ),
            2 => format!(
                "SELECT c.code, a.n FROM country c LEFT JOIN {left} a ON a.n = c.n AND {filter}"
            ),
            3 => format!(
                "SELECT c.code FROM country c WHERE NOT EXISTS (SELECT 1 FROM {left} a WHERE {filter} AND a.n = c.n)"
            ),
            4 => format!(
                "SELECT code, v.x FROM country, (VALUES (1), ({})) AS v (x)",
                self.number()
            ),
            _ => {
                format!("SELECT s.n, a.n FROM setting s JOIN {left} a ON a.n = s.n WHERE {filter}")
            }
        }
    }

    fn catalog(&mut self) -> String {
        match self.s.below(6) {
            0 => format!("SELECT {}::int + 1, 'x' || 'y'", self.number()),
            1 => "SELECT relname FROM pg_class WHERE relname IN ('acct', 'ord') ORDER BY relname".to_owned(),
            2 => "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'alt' ORDER BY 1, 2".to_owned(),
            3 => "SELECT current_user, current_schema(), current_database()".to_owned(),
            4 => "SELECT g FROM generate_series(1, 3) g".to_owned(),
            _ => "VALUES (1, 'a'), (2, NULL)".to_owned(),
        }
    }

    fn function(&mut self) -> String {
        let one = self.keyed();
        let left = self.named(one);
        let (ka, filter, key) = (self.key_of(one, "a"), self.pin(one, "a"), self.key(one));
        match self.s.below(6) {
            0 => format!("SELECT g, a.n FROM generate_series(1, 2) g, {left} a WHERE {filter}"),
            1 => {
                format!("SELECT g, a.n FROM generate_series(1, 2) g LEFT JOIN {left} a ON {filter}")
            }
            2 => format!("SELECT a.n FROM {left} a WHERE abs({ka}) = {key}"),
            3 => format!("SELECT a.n FROM {left} a WHERE {ka} = greatest({key}, {key})"),
            4 => format!("SELECT a.n, u FROM {left} a, unnest(ARRAY[1, a.n]) u WHERE {filter}"),
            _ => format!("SELECT a.n FROM {left} a TABLESAMPLE bernoulli (100) WHERE {filter}"),
        }
    }

    fn overridden(&mut self) -> String {
        self.protocol = Protocol::Simple;
        let one = self.keyed();
        let left = self.named(one);
        let key = self.chosen(one);
        let filter = if self.s.chance(50) {
            self.pin(one, "a")
        } else {
            format!("{} = {}", self.key_of(one, "a"), self.key(one))
        };
        format!(
            "/* shardway: key={key} */ SELECT a.n FROM {left} a WHERE {filter} AND {} = '{}'",
            self.key_of(one, "a"),
            key.replace('\'', "''")
        )
    }

    fn shared_parameter(&mut self) -> String {
        self.protocol = Protocol::Extended;
        let one = &TABLES[self.s.below(3)];
        let (left, key) = (self.named(one), self.key_of(one, "a"));
        let text = self.chosen(one);
        let binary = self.v.chance(70);
        self.parameters.push(Value {
            text: Some(text.to_owned()),
            binary,
        });
        match self.s.below(8) {
            0 => format!("SELECT $1::text, a.n FROM {left} a WHERE {key} = $1::int"),
            1 => format!("SELECT a.n FROM {left} a WHERE a.note = $1 AND {key} = $1"),
            2 => format!("SELECT a.n FROM {left} a WHERE a.n = $1 AND {key} = $1"),
            3 => format!("SELECT a.n FROM {left} a WHERE {key} = $1 AND a.n < $1 + 5"),
            4 => format!("SELECT a.n FROM {left} a WHERE {key} IN ($1, 2.5)"),
            5 => format!("SELECT a.n FROM {left} a JOIN ord b ON b.acct_id = $1 WHERE {key} = $1"),
            6 => format!("SELECT $1::numeric, a.n FROM {left} a WHERE {key} = $1::bigint"),
            _ => format!("SELECT a.n FROM {left} a WHERE {key} = $1 OR {key} = $1::int"),
        }
    }

    fn nested_using(&mut self) -> String {
        let ord = &TABLES[1];
        let kinds = ["LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "JOIN"];
        let (first, second) = (kinds[self.s.below(4)], kinds[self.s.below(4)]);
        let filter = self.pin(ord, "b");
        let end = match self.s.below(4) {
            0 => format!(" WHERE acct_id = {}", self.key(ord)),
            1 => format!(" WHERE {}", self.pin(ord, "a")),
            2 => format!(" WHERE {}", self.pin(ord, "c")),
            _ => String::new(),
        };
        format!(
            "SELECT acct_id, a.n, b.n, c.n FROM ord a {first} (item b JOIN country d ON d.n = b.n AND {filter}) USING (acct_id) {second} item c USING (acct_id){end}"
        )
    }

    fn recursive(&mut self) -> String {
        let one = self.keyed();
        let left = self.named(one);
        let filter = self.pin(one, "a");
        let key = self.key_of(one, "a");
        if self.s.chance(50) {
            return format!(
                "WITH RECURSIVE r (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 4) SELECT i, a.n FROM r, {left} a WHERE {filter}"
            );
        }
        format!(
            "WITH RECURSIVE r (k, i) AS (SELECT {key}, 1 FROM {left} a WHERE {filter} UNION SELECT {key}, i + 1 FROM r JOIN {left} a ON {key} = r.k WHERE i < 3) SELECT i FROM r"
        )
    }

    fn locking(&mut self) -> String {
        let one = self.keyed();
        let left = self.named(one);
        let filter = self.pin(one, "a");
        match self.s.below(3) {
            0 => format!("SELECT a.n FROM {left} a WHERE {filter} FOR UPDATE"),
            1 => format!(
                "SELECT a.n FROM {left} a JOIN country c ON c.n = a.n WHERE {filter} FOR SHARE OF a"
            ),
            _ => format!("SELECT a.n FROM {left} a, country c WHERE {filter} FOR UPDATE"),
        }
    }

    // ---- writes ----

    fn write(&mut self) -> (&'static str, String) {
        match self.s.below(24) {
            0..4 => ("insert", self.insert()),
            4 | 5 => ("insert rows", self.insert_rows()),
            6 => ("insert whole", self.insert_whole()),
            7 | 8 => ("insert select", self.insert_select()),
            9..12 => ("insert conflict", self.insert_conflict()),
            12..15 => ("update", self.update()),
            15 => ("update key", self.update_key()),
            16 => ("update from", self.update_from()),
            17 | 18 => ("delete", self.delete()),
            19 => ("delete using", self.delete_using()),
            20 | 21 => ("merge", self.merge()),
            _ => ("writing with", self.writing_with()),
        }
    }

    fn written(&mut self) -> &'static Table {
        if self.s.chance(5) {
            &TABLES[TABLES.len() - 1 - self.s.below(2)]
        } else {
            self.keyed()
        }
    }

    fn returning(&mut self, table: &Table) -> String {
        match self.s.below(4) {
            0 => " RETURNING *".to_owned(),
            1 => format!(" RETURNING {}, n + 1 AS m", self.key_of(table, "")),
            _ => String::new(),
        }
    }

    /// A row of VALUES for key, n, note.
    fn values(&mut self, table: &Table) -> String {
        let n = if self.s.chance(20) {
            "NULL".to_owned()
        } else {
            self.number()
        };
        format!("{}, {n}, 'w'", self.key(table))
    }

    fn extra(table: &Table) -> (&'static str, &'static str) {
        if table.name == "ord" {
            (", no", ", 1000")
        } else {
            ("", "")
        }
    }

    fn insert(&mut self) -> String {
        let table = self.written();
        let (name, key) = (self.named(table), self.key_of(table, ""));
        let (column, value) = Self::extra(table);
        let returning = self.returning(table);
        match self.s.below(8) {
            0 => format!(
                "INSERT INTO {name} (n, note, {key}{column}) VALUES ({}, 'w', {}{value}){returning}",
                self.number(),
                self.key(table)
            ),
            1 => format!("INSERT INTO {name} (n, note) VALUES (1, 'w'){returning}"),
            2 => format!("INSERT INTO {name} ({key}, n) VALUES (DEFAULT, 1){returning}"),
            3 => format!("INSERT INTO {name} DEFAULT VALUES{returning}"),
            _ => format!(
                "INSERT INTO {name} ({key}, n, note{column}) VALUES ({}{value}){returning}",
                self.values(table)
            ),
        }
    }

    fn insert_rows(&mut self) -> String {
        let table = self.written();
        let (name, key) = (self.named(table), self.key_of(table, ""));
        let rows: Vec<String> = (0..1 + self.s.below(3))
            .map(|_| format!("({})", self.values(table)))
            .collect();
        format!(
            "INSERT INTO {name} ({key}, n, note) VALUES {}{}",
            rows.join(", "),
            self.returning(table)
        )
    }

    fn insert_whole(&mut self) -> String {
        let table = self.written();
        let name = self.named(table);
        let values: Vec<String> = table
            .columns
            .iter()
            .map(|(column, kind)| match *column {
                key if key == table.key || key == "code" => self.key(table),
                _ if *kind == "text" => "'w'".to_owned(),
                _ => "77".to_owned(),
            })
            .collect();
        format!(
            "INSERT INTO {name} VALUES ({}){}",
            values.join(", "),
            self.returning(table)
        )
    }

    fn insert_select(&mut self) -> String {
        let table = self.keyed();
        let other = self.partner(table);
        let (name, key) = (self.named(table), self.key_of(table, ""));
        let (right, other_key, filter) = (
            self.named(other),
            self.key_of(other, "b"),
            self.pin(other, "b"),
        );
        let (column, value) = Self::extra(table);
        match self.s.below(6) {
            0 => format!(
                "INSERT INTO {name} ({key}, n, note{column}) SELECT {}, b.n, 's'{value} FROM {right} b WHERE {filter}",
                self.key(table)
            ),
            1 => format!(
                "INSERT INTO {name} ({key}, n, note{column}) SELECT b.n, {other_key}, 's'{value} FROM {right} b WHERE {filter}"
            ),
            2 => format!(
                "INSERT INTO {name} ({key}, n, note{column}) SELECT {other_key}, 5, c.note{value} FROM {right} b JOIN country c ON c.n = b.n WHERE {filter}"
            ),
            3 => format!(
                "INSERT INTO {name} ({key}, n{column}) SELECT {other_key}, count(*){value} FROM {right} b WHERE {filter} GROUP BY {other_key}"
            ),
            4 => format!(
                "INSERT INTO {name} ({key}, n{column}) SELECT {other_key}, 1{value} FROM {right} b WHERE {filter} UNION ALL SELECT {}, 2{value}",
                self.key(table)
            ),
            _ => format!(
                "INSERT INTO {name} ({key}, n, note{column}) SELECT {other_key}, b.n, 's'{value} FROM {right} b WHERE {filter}{}",
                self.returning(table)
            ),
        }
    }

    fn insert_conflict(&mut self) -> String {
        let all: Vec<&'static Table> = TABLES
            .iter()
            .filter(|table| !table.unique.is_empty())
            .collect();
        let table = all[self.s.below(all.len())];
        let (name, key) = (self.named(table), self.key_of(table, ""));
        let (column, value) = Self::extra(table);
        let value = if value.is_empty() { "" } else { ", 1" };
        let act = match self.s.below(7) {
            0 => " DO NOTHING".to_owned(),
            1 => format!(" ({}) DO NOTHING", table.unique),
            2 => format!(
                " ({}) DO UPDATE SET n = excluded.n + 1, note = t.note || 'c'",
                table.unique
            ),
            3 => format!(
                " ({}) DO UPDATE SET {key} = excluded.{key}, n = 9",
                table.unique
            ),
            4 => format!(
                " ({}) DO UPDATE SET {key} = {}",
                table.unique,
                self.key(table)
            ),
            5 => format!(
                " ({}) DO UPDATE SET n = 5 WHERE t.n IS NOT NULL",
                table.unique
            ),
            _ => format!(
                " ({}) DO UPDATE SET n = (SELECT max(n) FROM {name} z WHERE {})",
                table.unique,
                self.pin(table, "z")
            ),
        };
        let rows = if self.s.chance(20) {
            format!(", ({}{value})", self.values(table))
        } else {
            String::new()
        };
        format!(
            "INSERT INTO {name} AS t ({key}, n, note{column}) VALUES ({}{value}){rows} ON CONFLICT{act}{}",
            self.values(table),
            self.returning(table).replace(" n +", " t.n +")
        )
    }

    fn update(&mut self) -> String {
        let table = self.written();
        let name = self.named(table);
        let filter = self.pin(table, "t");
        let set = match self.s.below(4) {
            0 => format!("n = {}", self.number()),
            1 => "n = n + 1, note = 'u'".to_owned(),
            2 => format!("(n, note) = ({}, 'r')", self.number()),
            _ => format!(
                "n = (SELECT max(z.n) FROM {name} z WHERE {})",
                self.pin(table, "z")
            ),
        };
        format!(
            "UPDATE {name} t SET {set} WHERE {filter}{}",
            self.returning(table)
        )
    }

    fn update_key(&mut self) -> String {
        let table = self.keyed();
        let (name, key) = (self.named(table), self.key_of(table, ""));
        let filter = self.pin(table, "t");
        let set = match self.s.below(4) {
            0 => format!("{key} = t.{key}"),
            1 => format!("{key} = {}, n = 1", self.key(table)),
            2 => format!("({key}, n) = ({}, 2)", self.key(table)),
            _ => format!("{key} = DEFAULT"),
        };
        format!("UPDATE {name} t SET {set} WHERE {filter}")
    }

    fn update_from(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let on = self.join_condition(one, "t", other, "b");
        let filter = if self.s.chance(50) {
            self.pin(one, "t")
        } else {
            self.pin(other, "b")
        };
        format!("UPDATE {left} t SET n = 3 FROM {right} b WHERE {on} AND {filter}")
    }

    fn delete(&mut self) -> String {
        let table = self.written();
        let name = self.named(table);
        let filter = self.pin(table, "t");
        format!(
            "DELETE FROM {name} t WHERE {filter}{}",
            self.returning(table)
        )
    }

    fn delete_using(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let on = self.join_condition(one, "t", other, "b");
        let filter = if self.s.chance(50) {
            self.pin(one, "t")
        } else {
            self.pin(other, "b")
        };
        format!("DELETE FROM {left} t USING {right} b WHERE {on} AND {filter}")
    }

    fn merge(&mut self) -> String {
        let table = self.keyed();
        let other = self.partner(table);
        let (name, key, column) = (
            self.named(table),
            self.key_of(table, "t"),
            self.key_of(table, ""),
        );
        let (extra, value) = Self::extra(table);
        let new = self.key(table);
        let source = match self.s.below(3) {
            0 => format!("(VALUES ({}, 4)) AS s (k, n)", self.key(table)),
            1 => format!("(SELECT {} AS k, 4 AS n) s", self.key(table)),
            _ => format!(
                "(SELECT {} AS k, max(b.n) AS n FROM {} b WHERE {} GROUP BY 1) s",
                self.key_of(other, "b"),
                self.named(other),
                self.pin(other, "b")
            ),
        };
        let on = match self.s.below(4) {
            0 => format!("{key} = s.k"),
            1 => self.pin(table, "t"),
            _ => format!("{key} = s.k AND {}", self.pin(table, "t")),
        };
        let insert = if self.s.chance(50) {
            new
        } else {
            "s.k".to_owned()
        };
        let matched = self.s.pick(&["UPDATE SET n = s.n", "DELETE", "DO NOTHING"]);
        let unmatched = if self.s.chance(60) {
            format!(
                " WHEN NOT MATCHED THEN INSERT ({column}, n{extra}) VALUES ({insert}, s.n{value})"
            )
        } else {
            String::new()
        };
        format!("MERGE INTO {name} t USING {source} ON {on} WHEN MATCHED THEN {matched}{unmatched}")
    }

    fn writing_with(&mut self) -> String {
        let one = self.keyed();
        let other = self.partner(one);
        let (left, right) = (self.named(one), self.named(other));
        let (key, other_key) = (self.key_of(one, ""), self.key_of(other, ""));
        let filter = self.pin(one, "a");
        match self.s.below(4) {
            0 => format!(
                "WITH x AS (DELETE FROM {left} a WHERE {filter} RETURNING {key} AS k, n) SELECT k, n FROM x"
            ),
            1 => format!(
                "WITH x AS (UPDATE {left} a SET n = 1 WHERE {filter} RETURNING {key} AS k) SELECT count(*) FROM {right} b WHERE {}",
                self.pin(other, "b")
            ),
            2 => format!(
                "WITH x AS (INSERT INTO {left} ({key}, n, note) VALUES ({}) RETURNING {key} AS k) SELECT k FROM x",
                self.values(one)
            ),
            _ => format!(
                "WITH x AS (SELECT {key} AS k FROM {left} a WHERE {filter}) DELETE FROM {right} b WHERE {other_key} IN (SELECT k FROM x)"
            ),
        }
    }

    // ---- several statements of one text ----

    fn several(&mut self) -> (&'static str, String) {
        self.homely = if self.s.chance(70) { 100 } else { 50 };
        let mut parts = Vec::new();
        for _ in 0..2 + self.s.below(2) {
            let part = match self.s.below(6) {
                0 => self
                    .s
                    .pick(&[
                        "SET LOCAL search_path TO alt, public",
                        "SET search_path TO alt, public",
                        "SET standard_conforming_strings TO off",
                        "SELECT set_config('search_path', 'alt, public', true)",
                        "SAVEPOINT s",
                    ])
                    .to_owned(),
                1 | 2 => self.write().1,
                3 => format!(
                    "SELECT n, note FROM acct WHERE id = {}",
                    self.key(&TABLES[0])
                ),
                4 => {
                    let doc = TABLES
                        .iter()
                        .find(|table| table.name == "doc" && table.schema == "alt")
                        .unwrap();
                    format!("SELECT n, note FROM doc WHERE slug = {}", self.key(doc))
                }
                5 if self.s.chance(30) => {
                    format!("DECLARE c CURSOR FOR {}; FETCH ALL FROM c", self.read().1)
                }
                _ => self.read().1,
            };
            parts.push(part);
        }
        self.ordered = false;
        ("several", parts.join("; "))
    }
}
