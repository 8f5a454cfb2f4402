//! A statement as the analysis needs it: its query blocks, relations, predicates and functions. Pure data.
//!
//! Built by `parse.rs` alone. What has no meaning for routing keeps only its children ([`Expr::Other`]), so that no
//! relation, function or subquery is ever lost. Names are as PostgreSQL folds them.

use std::collections::HashMap;

/// One statement of a text.
#[derive(Debug)]
pub struct Statement {
    /// Bytes in the text, without surrounding blanks and semicolon.
    pub start: u32,
    pub end: u32,
    pub kind: Kind,
    /// Every function called anywhere in it.
    pub functions: Vec<Name>,
    /// How often each parameter stands in it: its number, from 1, and the count.
    pub parameters: HashMap<u32, u32>,
    pub settings: SettingCalls,
    /// The sequence that it sets, if it is a sole `SELECT setval(…)` of literals.
    pub numbers: Option<Name>,
    pub depth: Depth,
}

/// COPY of a table or a query.
#[derive(Debug)]
pub struct Copy {
    pub relation: Option<Name>,
    pub query: Option<Box<Kind>>,
    pub from: bool,
    /// A file or program on the server.
    pub server: bool,
    /// The column list, if there is one.
    pub columns: Option<Vec<String>>,
    /// Options as they stand, and whether every one of them is known.
    pub options: Vec<(String, CopyOption)>,
    pub filtered: Filtered,
}

/// Whether COPY FROM has a WHERE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    No,
    Yes,
}

/// The argument of an option of COPY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyOption {
    /// None: the option is on.
    None,
    Text(String),
    Columns(Vec<String>),
    /// `*`.
    Every,
    Unknown,
}

/// Whether `set_config` is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingCalls {
    None,
    /// For the running transaction only.
    Local,
    Session,
}

/// Whether the whole statement could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    Whole,
    /// Nested deeper than [`super::parse::MAX_DEPTH`]: some of it is missing.
    TooDeep,
    /// Holds a construct that this version does not know.
    Unknown,
}

/// A name with or without its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub schema: Option<String>,
    pub name: String,
}

#[derive(Debug)]
pub enum Kind {
    Query(Query),
    Insert(Insert),
    Update(Update),
    Delete(Delete),
    Merge(Merge),
    /// A sole `SELECT set_config(…)` of literals.
    SetConfig {
        name: String,
        value: String,
        local: bool,
    },
    Explain {
        analyze: bool,
        route: bool,
        inner: Box<Self>,
    },
    Declare {
        hold: bool,
        query: Box<Self>,
    },
    Copy(Copy),
    Transaction(Transaction),
    Set(Set),
    Show,
    Discard(Discard),
    Deallocate(Option<String>),
    Prepare(String),
    Execute(String),
    /// CREATE TABLE … AS EXECUTE.
    TableOfExecute {
        name: String,
        temporary: bool,
    },
    /// FETCH, MOVE, CLOSE.
    Cursor,
    /// The channel, folded and cut as the scanner does it.
    Listen(String),
    /// `None`: every channel.
    Unlisten(Option<String>),
    Notify,
    Load,
    /// DO and CALL: `CALL`'s arguments are in the statement's functions.
    Call(&'static str),
    /// CREATE TEMPORARY TABLE, in any spelling.
    CreateTemporary,
    Change(super::change::Change),
    /// Everything else. The word is the command's name.
    Utility(&'static str),
    Empty,
}

#[derive(Debug)]
pub enum Transaction {
    Begin,
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    TwoPhase,
    /// SET TRANSACTION, SET CONSTRAINTS.
    Set,
}

/// SET and RESET.
#[derive(Debug)]
pub enum Set {
    /// `value` `None`: DEFAULT. The text may follow `SET name TO`.
    Value {
        name: String,
        value: Option<String>,
        local: bool,
    },
    /// SET SESSION CHARACTERISTICS: names and texts as above.
    Each(Vec<(String, String)>),
    /// SET … FROM CURRENT, and what cannot be replayed.
    Opaque,
    Reset(String),
    ResetAll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    All,
    Plans,
    Sequences,
    Temporary,
}

/// A query: WITH, a body, and what stands after it.
#[derive(Debug)]
pub struct Query {
    pub ctes: Vec<Cte>,
    pub recursive: bool,
    pub body: Body,
    /// ORDER BY, LIMIT, OFFSET.
    pub tail: Vec<Expr>,
    pub locking: Vec<Locking>,
    /// SELECT … INTO.
    pub into: Option<Into>,
}

/// What SELECT INTO makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    Permanent,
    Temporary,
}

/// FOR UPDATE and such; no names: every relation of the block.
#[derive(Debug)]
pub struct Locking {
    pub of: Vec<String>,
}

#[derive(Debug)]
pub struct Cte {
    pub name: String,
    pub columns: Vec<String>,
    pub body: Kind,
}

#[derive(Debug)]
pub enum Body {
    Select(Select),
    Values(Vec<Vec<Expr>>),
    /// UNION, INTERSECT, EXCEPT: every operand.
    SetOperation(Vec<Query>),
}

#[derive(Debug, Default)]
pub struct Select {
    pub from: Vec<From>,
    pub filter: Option<Expr>,
    pub targets: Vec<Target>,
    /// GROUP BY, HAVING, WINDOW, DISTINCT ON.
    pub rest: Vec<Expr>,
}

/// An output column, or an assignment.
#[derive(Debug)]
pub struct Target {
    pub name: Option<String>,
    /// Assigns to an element or field of the column.
    pub partial: bool,
    pub value: Expr,
}

/// An item of FROM.
#[derive(Debug)]
pub enum From {
    Table(Relation),
    Subquery {
        lateral: bool,
        query: Box<Kind>,
        alias: Option<Alias>,
    },
    /// A function, XMLTABLE, JSON_TABLE, TABLESAMPLE's arguments.
    Function {
        arguments: Vec<Expr>,
        alias: Option<Alias>,
    },
    Join(Box<Join>),
}

#[derive(Debug)]
pub struct Join {
    pub kind: JoinKind,
    pub left: From,
    pub right: From,
    pub on: Option<Expr>,
    pub using: Vec<String>,
    pub natural: bool,
    /// `USING (…) AS name`: what the merged columns can be qualified by.
    pub using_alias: Option<String>,
    /// An alias hides the names inside.
    pub alias: Option<Alias>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
}

#[derive(Clone, Debug)]
pub struct Relation {
    pub name: Name,
    pub alias: Option<Alias>,
    /// Where its name stands, in bytes, or [`Literal::NOWHERE`].
    pub location: u32,
}

#[derive(Clone, Debug)]
pub struct Alias {
    pub name: String,
    /// New names of the columns; empty: the old ones.
    pub columns: Vec<String>,
}

#[derive(Debug)]
pub struct Insert {
    pub ctes: Vec<Cte>,
    pub recursive: bool,
    pub table: Relation,
    /// `None`: no column list.
    pub columns: Option<Vec<String>>,
    /// `None`: DEFAULT VALUES.
    pub source: Option<Query>,
    pub conflict: Option<Conflict>,
    pub overriding: Overriding,
    pub returning: Vec<Expr>,
}

/// What an INSERT says of identity columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overriding {
    Nothing,
    /// The values given hold.
    SystemValue,
    /// The values given are ignored.
    UserValue,
}

/// ON CONFLICT.
#[derive(Debug)]
pub struct Conflict {
    pub assignments: Vec<Target>,
    pub filters: Vec<Expr>,
}

#[derive(Debug)]
pub struct Update {
    pub ctes: Vec<Cte>,
    pub recursive: bool,
    pub table: Relation,
    pub assignments: Vec<Target>,
    pub from: Vec<From>,
    pub filter: Option<Expr>,
    pub returning: Vec<Expr>,
}

#[derive(Debug)]
pub struct Delete {
    pub ctes: Vec<Cte>,
    pub recursive: bool,
    pub table: Relation,
    pub using: Vec<From>,
    pub filter: Option<Expr>,
    pub returning: Vec<Expr>,
}

#[derive(Debug)]
pub struct Merge {
    pub ctes: Vec<Cte>,
    pub recursive: bool,
    pub table: Relation,
    pub source: From,
    pub on: Expr,
    pub actions: Vec<MergeAction>,
    /// Whether it acts on rows of the table that no source row matches.
    pub by_source: bool,
    pub returning: Vec<Expr>,
}

/// WHEN … THEN.
#[derive(Debug)]
pub struct MergeAction {
    pub condition: Option<Expr>,
    pub act: MergeAct,
}

#[derive(Debug)]
pub enum MergeAct {
    Insert {
        columns: Vec<String>,
        values: Vec<Expr>,
        overriding: Overriding,
    },
    Update(Vec<Target>),
    Other,
}

#[derive(Debug)]
pub enum Expr {
    Column(Column),
    Literal(Literal),
    /// `$n`, from 1.
    Parameter(u32),
    Cast {
        inner: Box<Self>,
        to: CastType,
    },
    Negate(Box<Self>),
    Compare {
        op: Compare,
        left: Box<Self>,
        right: Box<Self>,
    },
    /// `left IN (…)`.
    In {
        left: Box<Self>,
        list: Vec<Self>,
    },
    /// `left = ANY (array)`.
    EqualsAny {
        left: Box<Self>,
        array: Box<Self>,
    },
    /// `left IN (query)`, `left = ANY (query)`.
    InQuery {
        left: Box<Self>,
        query: Box<Kind>,
    },
    Between {
        left: Box<Self>,
        low: Box<Self>,
        high: Box<Self>,
    },
    And(Vec<Self>),
    Or(Vec<Self>),
    Row(Vec<Self>),
    Array(Vec<Self>),
    /// EXISTS, a scalar subquery, ARRAY(…), and those of `Other`.
    Query(Box<Kind>),
    Default,
    Other(Vec<Self>),
}

/// `a`, `t.a`, `s.t.a`, `t.*`.
#[derive(Debug, PartialEq, Eq)]
pub struct Column {
    /// From the outermost qualifier to the column; without the `*`.
    pub path: Vec<String>,
    pub star: bool,
}

/// A constant in the text.
#[derive(Debug, PartialEq, Eq)]
pub struct Literal {
    pub kind: LiteralKind,
    /// Where it stands, in bytes; at the sign for a negative number; or [`Literal::NOWHERE`].
    pub location: u32,
}

impl Literal {
    pub const NOWHERE: u32 = u32::MAX;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiteralKind {
    Null,
    Boolean,
    Number,
    Text,
    Bits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// The type of a cast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CastType {
    /// The last part of its name, when it is PostgreSQL's own or unqualified.
    pub name: Option<String>,
    /// `varchar(3)`, `numeric(4,1)`.
    pub modified: bool,
    pub array: bool,
}

impl CastType {
    /// A type that is not PostgreSQL's own.
    pub(super) fn unknown() -> Self {
        Self {
            name: None,
            modified: false,
            array: false,
        }
    }
}
