//! The only file that names the parser crate: text in, [`tree`](super::tree) out.
//!
//! The grammar is PostgreSQL 18's. What is lowered here decides routes, so nothing may be lost: an expression that has
//! no rule of its own keeps its children, one of an unknown kind marks its statement [`Depth::Unknown`].
//! Recursion is capped by [`MAX_DEPTH`]; long chains of AND, OR and lists are flat in the grammar's own tree.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

mod change;
mod expression;
mod meanwhile;
mod namings;
mod sequence;
mod utility;

pub(in crate::sql) use namings::namings;
pub use sequence::relation_name;

use super::tree::{
    Alias, Body, Conflict, Cte, Delete, Depth, From, Insert, Into, Join, JoinKind, Kind, Literal,
    Locking, Merge, MergeAct, MergeAction, Name, Overriding, Query, Relation, Select, Statement,
    Target, Update,
};
use super::tree::{Expr, SettingCalls};
use pg_raw_parse::{
    ConstValue, Node,
    list::{CastNodeList, NodeList},
    nodes, raw,
    walk::{Recurse, walk_manual},
};

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// How deep statements may nest before they are not looked into.
pub const MAX_DEPTH: usize = 150;

/// Why a text has no tree: PostgreSQL itself must judge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotParsed;

/// The statements of a text, in order; none for an empty text.
///
/// # Errors
/// [`NotParsed`] when PostgreSQL 18's grammar refuses it, or its tree cannot be read.
pub fn parse(text: &str) -> Result<Vec<Statement>, NotParsed> {
    let Ok(parsed) = pg_raw_parse::parse(text) else {
        return Err(NotParsed);
    };
    let parsed = parsed.into_inner();
    let lowered = || parsed.iter().map(|raw| statement(text, raw)).collect();
    // The crate gives some lists a type that the grammar does not (what CREATE STATISTICS is FROM may be a subquery), and
    // panics where a node has another.
    catch_unwind(AssertUnwindSafe(lowered)).map_err(|_panic| NotParsed)
}

fn statement(text: &str, raw: &nodes::RawStmt) -> Statement {
    let start = usize::try_from(raw.stmt_location)
        .unwrap_or(0)
        .min(text.len());
    let length = usize::try_from(raw.stmt_len).unwrap_or(0);
    let end = if length == 0 {
        text.len()
    } else {
        (start + length).min(text.len())
    };
    let slice = text.get(start..end).unwrap_or(text);
    let blank = |c: char| c.is_ascii_whitespace() || c == '\u{b}';
    let start = start + (slice.len() - slice.trim_start_matches(blank).len());
    let end = end - (slice.len() - slice.trim_end_matches(blank).len());
    let mut lower = Lower::default();
    let kind = lower.kind(raw.stmt());
    Statement {
        start: u32::try_from(start).unwrap_or(u32::MAX),
        end: u32::try_from(end.max(start)).unwrap_or(u32::MAX),
        kind,
        functions: lower.functions,
        parameters: lower.parameters,
        settings: lower.settings,
        numbers: lower.numbers,
        depth: lower.read,
    }
}

/// What is gathered while a statement is lowered.
struct Lower {
    functions: Vec<Name>,
    parameters: HashMap<u32, u32>,
    settings: SettingCalls,
    numbers: Option<Name>,
    depth: usize,
    read: Depth,
}

impl Default for Lower {
    fn default() -> Self {
        Self {
            functions: Vec::new(),
            parameters: HashMap::new(),
            settings: SettingCalls::None,
            numbers: None,
            depth: 0,
            read: Depth::Whole,
        }
    }
}

impl Lower {
    /// Runs one level deeper, or gives `shallow` where that is too deep.
    fn deeper<T>(&mut self, shallow: T, work: impl FnOnce(&mut Self) -> T) -> T {
        if self.depth >= MAX_DEPTH {
            self.read = Depth::TooDeep;
            return shallow;
        }
        self.depth += 1;
        let made = work(self);
        self.depth -= 1;
        made
    }

    fn kind(&mut self, node: Node<'_>) -> Kind {
        self.deeper(Kind::Empty, |lower| lower.kind_inside(node))
    }

    fn kind_inside(&mut self, node: Node<'_>) -> Kind {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "every other statement is a utility"
        )]
        match node {
            Node::SelectStmt(select) => match self.set_config(select) {
                Some(set) => set,
                None => {
                    self.numbers = self.numbers.take().or_else(|| self.set_sequence(select));
                    Kind::Query(self.query(select))
                }
            },
            Node::InsertStmt(insert) => Kind::Insert(self.insert(insert)),
            Node::UpdateStmt(update) => Kind::Update(self.update(update)),
            Node::DeleteStmt(delete) => Kind::Delete(self.delete(delete)),
            Node::MergeStmt(merge) => self.merge(merge),
            Node::None => Kind::Empty,
            other => self.utility(other),
        }
    }

    fn query(&mut self, select: &nodes::SelectStmt) -> Query {
        let (ctes, recursive) = self.with(select.with_clause());
        let body = if select.op == raw::SetOperation::SETOP_NONE {
            self.body(select)
        } else {
            Body::SetOperation(self.sides(select))
        };
        let mut tail = Vec::new();
        for sort in select.sort_clause() {
            tail.push(self.expr(sort.node()));
        }
        tail.push(self.expr(select.limit_offset()));
        tail.push(self.expr(select.limit_count()));
        let locking = select.locking_clause().into_iter().map(locking).collect();
        let into = select
            .into_clause()
            .and_then(nodes::IntoClause::rel)
            .map(|table| {
                if is_temporary(table) {
                    Into::Temporary
                } else {
                    Into::Permanent
                }
            });
        Query {
            ctes,
            recursive,
            body,
            tail,
            locking,
            into,
        }
    }

    /// The operands of UNION and such; a chain of them leans to the left and is walked, not recursed into.
    fn sides(&mut self, select: &nodes::SelectStmt) -> Vec<Query> {
        let mut sides = Vec::new();
        let mut spine = select;
        loop {
            if let Some(right) = spine.rarg() {
                sides.push(self.deeper(empty_query(), |lower| lower.query(right)));
            }
            match spine.larg() {
                Some(left) if is_bare_operation(left) => spine = left,
                Some(left) => {
                    sides.push(self.deeper(empty_query(), |lower| lower.query(left)));
                    break;
                }
                None => break,
            }
        }
        sides.reverse();
        sides
    }

    fn body(&mut self, select: &nodes::SelectStmt) -> Body {
        if !select.values_lists().is_empty() {
            let rows = select.values_lists().iter().map(|row| match row {
                Node::NodeList(row) => self.exprs(row),
                other => vec![self.expr(other)],
            });
            return Body::Values(rows.collect());
        }
        let from = self.froms(select.from_clause());
        let filter = self.optional(select.where_clause());
        let targets = self.targets(select.target_list());
        let mut rest = self.exprs(select.group_clause());
        rest.push(self.expr(select.having_clause()));
        rest.extend(self.exprs(select.window_clause()));
        rest.extend(self.exprs(select.distinct_clause()));
        Body::Select(Select {
            from,
            filter,
            targets,
            rest,
        })
    }

    fn with(&mut self, with: Option<&nodes::WithClause>) -> (Vec<Cte>, bool) {
        let Some(with) = with else {
            return (Vec::new(), false);
        };
        let mut ctes = Vec::new();
        for cte in with.ctes() {
            let name = cte.ctename().unwrap_or_default().to_owned();
            let mut columns = strings(cte.aliascolnames());
            if cte.search_clause().is_some() || cte.cycle_clause().is_some() {
                columns.push(String::new());
            }
            ctes.push(Cte {
                name,
                columns,
                body: self.kind(cte.ctequery()),
            });
        }
        (ctes, with.recursive)
    }

    fn targets(&mut self, list: &CastNodeList<nodes::ResTarget>) -> Vec<Target> {
        list.into_iter().map(|target| self.target(target)).collect()
    }

    fn target(&mut self, target: &nodes::ResTarget) -> Target {
        let name = target.name().map(str::to_owned);
        let partial = !target.indirection().is_empty();
        if partial {
            let inside = self.exprs(target.indirection());
            let value = self.expr(target.val());
            return Target {
                name,
                partial,
                value: Expr::Other(vec![value, Expr::Other(inside)]),
            };
        }
        Target {
            name,
            partial,
            value: self.expr(target.val()),
        }
    }

    fn froms(&mut self, list: &NodeList) -> Vec<From> {
        list.iter().map(|item| self.item(item)).collect()
    }

    fn item(&mut self, node: Node<'_>) -> From {
        self.deeper(nothing_from(), |lower| lower.item_inside(node))
    }

    fn item_inside(&mut self, node: Node<'_>) -> From {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the grammar has no other item in FROM"
        )]
        match node {
            Node::RangeVar(table) => From::Table(relation(table)),
            Node::RangeSubselect(sub) => {
                let query = Box::new(self.kind(sub.subquery()));
                From::Subquery {
                    lateral: sub.lateral,
                    query,
                    alias: alias(sub.alias()),
                }
            }
            Node::RangeFunction(function) => {
                let arguments = self.exprs(function.functions());
                From::Function {
                    arguments,
                    alias: alias(function.alias()).or_else(|| own_name(function.functions())),
                }
            }
            Node::RangeTableFunc(table) => {
                let arguments = self.children(node);
                From::Function {
                    arguments,
                    alias: alias(table.alias()),
                }
            }
            Node::JsonTable(table) => {
                let arguments = self.children(node);
                From::Function {
                    arguments,
                    alias: alias(table.alias()),
                }
            }
            Node::RangeTableSample(sample) => {
                let left = self.item(sample.relation());
                let mut arguments = self.exprs(sample.args());
                arguments.push(self.expr(sample.repeatable()));
                let right = From::Function {
                    arguments,
                    alias: None,
                };
                From::Join(Box::new(Join {
                    kind: JoinKind::Inner,
                    left,
                    right,
                    on: None,
                    using: Vec::new(),
                    natural: false,
                    using_alias: None,
                    alias: None,
                }))
            }
            Node::JoinExpr(join) => self.join(join),
            _ => {
                self.read = Depth::Unknown;
                nothing_from()
            }
        }
    }

    fn join(&mut self, join: &nodes::JoinExpr) -> From {
        let left = self.item(join.larg());
        let right = self.item(join.rarg());
        let on = self.optional(join.quals());
        let kind = match join.jointype {
            raw::JoinType::JOIN_LEFT => JoinKind::Left,
            raw::JoinType::JOIN_RIGHT => JoinKind::Right,
            raw::JoinType::JOIN_INNER => JoinKind::Inner,
            _ => JoinKind::Full,
        };
        let using = join
            .using_clause()
            .into_iter()
            .filter_map(nodes::String::sval)
            .map(str::to_owned)
            .collect();
        From::Join(Box::new(Join {
            kind,
            left,
            right,
            on,
            using,
            natural: join.is_natural,
            using_alias: alias(join.join_using_alias()).map(|alias| alias.name),
            alias: alias(join.alias()),
        }))
    }

    fn insert(&mut self, insert: &nodes::InsertStmt) -> Insert {
        let (ctes, recursive) = self.with(insert.with_clause());
        let mut columns = Vec::new();
        for column in insert.cols() {
            if let Node::ResTarget(target) = column {
                let made = self.target(target);
                columns.push(made.name.unwrap_or_default());
            }
        }
        let source = match insert.select_stmt() {
            Node::SelectStmt(select) => Some(self.query(select)),
            _ => None,
        };
        let conflict = insert.on_conflict_clause().map(|conflict| {
            let assignments = self.targets(conflict.target_list());
            let mut filters = vec![self.expr(conflict.where_clause())];
            if let Some(infer) = conflict.infer() {
                filters.push(self.expr(infer.where_clause()));
                filters.extend(self.exprs(infer.index_elems()));
            }
            Conflict {
                assignments,
                filters,
            }
        });
        Insert {
            ctes,
            recursive,
            table: insert.relation().map_or_else(no_relation, relation),
            columns: (!insert.cols().is_empty()).then_some(columns),
            source,
            conflict,
            overriding: overriding(insert.override_),
            returning: self.returning(insert.returning_clause()),
        }
    }

    fn update(&mut self, update: &nodes::UpdateStmt) -> Update {
        let (ctes, recursive) = self.with(update.with_clause());
        Update {
            ctes,
            recursive,
            table: update.relation().map_or_else(no_relation, relation),
            assignments: self.targets(update.target_list()),
            from: self.froms(update.from_clause()),
            filter: self.optional(update.where_clause()),
            returning: self.returning(update.returning_clause()),
        }
    }

    fn delete(&mut self, delete: &nodes::DeleteStmt) -> Delete {
        let (ctes, recursive) = self.with(delete.with_clause());
        Delete {
            ctes,
            recursive,
            table: delete.relation().map_or_else(no_relation, relation),
            using: self.froms(delete.using_clause()),
            filter: self.optional(delete.where_clause()),
            returning: self.returning(delete.returning_clause()),
        }
    }

    fn merge(&mut self, merge: &nodes::MergeStmt) -> Kind {
        let (ctes, recursive) = self.with(merge.with_clause());
        let mut actions = Vec::new();
        let by_source = merge
            .merge_when_clauses()
            .into_iter()
            .any(|when| when.match_kind == raw::MergeMatchKind::MERGE_WHEN_NOT_MATCHED_BY_SOURCE);
        for when in merge.merge_when_clauses() {
            let condition = self.optional(when.condition());
            let act = match when.command_type {
                raw::CmdType::CMD_INSERT => self.merge_insert(when),
                raw::CmdType::CMD_UPDATE => MergeAct::Update(self.target_nodes(when.target_list())),
                _ => MergeAct::Other,
            };
            actions.push(MergeAction { condition, act });
        }
        Kind::Merge(Merge {
            ctes,
            recursive,
            table: merge.relation().map_or_else(no_relation, relation),
            source: self.item(merge.source_relation()),
            on: self.expr(merge.join_condition()),
            actions,
            by_source,
            returning: self.returning(merge.returning_clause()),
        })
    }

    fn merge_insert(&mut self, when: &nodes::MergeWhenClause) -> MergeAct {
        let targets = self.target_nodes(when.target_list());
        let columns = targets
            .into_iter()
            .map(|target| target.name.unwrap_or_default())
            .collect();
        MergeAct::Insert {
            columns,
            values: self.exprs(when.values()),
            overriding: overriding(when.override_),
        }
    }

    fn target_nodes(&mut self, list: &NodeList) -> Vec<Target> {
        let mut targets = Vec::new();
        for node in list {
            match node {
                Node::ResTarget(target) => targets.push(self.target(target)),
                other => targets.push(Target {
                    name: None,
                    partial: false,
                    value: self.expr(other),
                }),
            }
        }
        targets
    }

    fn returning(&mut self, returning: Option<&nodes::ReturningClause>) -> Vec<Expr> {
        returning.map_or_else(Vec::new, |returning| self.exprs(returning.exprs()))
    }

    fn exprs(&mut self, list: &NodeList) -> Vec<Expr> {
        list.iter().map(|node| self.expr(node)).collect()
    }

    fn optional(&mut self, node: Node<'_>) -> Option<Expr> {
        match node {
            Node::None => None,
            other => Some(self.expr(other)),
        }
    }
}

/// A set operation without clauses of its own.
fn is_bare_operation(select: &nodes::SelectStmt) -> bool {
    select.op != raw::SetOperation::SETOP_NONE
        && select.with_clause().is_none()
        && select.sort_clause().is_empty()
        && select.locking_clause().is_empty()
        && matches!(select.limit_count(), Node::None)
        && matches!(select.limit_offset(), Node::None)
}

fn locking(clause: &nodes::LockingClause) -> Locking {
    let of = clause.locked_rels().iter().filter_map(|node| match node {
        Node::RangeVar(table) => table.relname().map(str::to_owned),
        _ => None,
    });
    Locking { of: of.collect() }
}

fn is_temporary(table: &nodes::RangeVar) -> bool {
    table.relpersistence.cast_unsigned() == b't'
        || table.schemaname().is_some_and(|schema| schema == "pg_temp")
}

fn relation(table: &nodes::RangeVar) -> Relation {
    Relation {
        name: Name {
            schema: table.schemaname().map(str::to_owned),
            name: table.relname().unwrap_or_default().to_owned(),
        },
        alias: alias(table.alias()),
        location: place(table.location),
    }
}

fn alias(alias: Option<&nodes::Alias>) -> Option<Alias> {
    alias.map(|alias| Alias {
        name: alias.aliasname().unwrap_or_default().to_owned(),
        columns: strings(alias.colnames()),
    })
}

/// A function in FROM without an alias is called as the function.
fn own_name(functions: &NodeList) -> Option<Alias> {
    let name = sole_call(functions)?.name;
    Some(Alias {
        name,
        columns: Vec::new(),
    })
}

/// The first function of a function in FROM.
fn sole_call(functions: &NodeList) -> Option<Name> {
    let first = match functions.iter().next()? {
        Node::NodeList(parts) => parts.iter().next()?,
        other => other,
    };
    let Node::FuncCall(call) = first else {
        return None;
    };
    Some(expression::function_name(call))
}

fn strings(list: &NodeList) -> Vec<String> {
    list.iter()
        .filter_map(|node| node.as_str().map(str::to_owned))
        .collect()
}

/// What OVERRIDING says, by the parser's number.
fn overriding(kind: raw::OverridingKind::Type) -> Overriding {
    use raw::OverridingKind;
    match kind {
        OverridingKind::OVERRIDING_USER_VALUE => Overriding::UserValue,
        OverridingKind::OVERRIDING_SYSTEM_VALUE => Overriding::SystemValue,
        _ => Overriding::Nothing,
    }
}

fn no_relation() -> Relation {
    Relation {
        name: Name {
            schema: None,
            name: String::new(),
        },
        alias: None,
        location: Literal::NOWHERE,
    }
}

fn nothing_from() -> From {
    From::Function {
        arguments: Vec::new(),
        alias: None,
    }
}

fn empty_query() -> Query {
    Query {
        ctes: Vec::new(),
        recursive: false,
        body: Body::Values(Vec::new()),
        tail: Vec::new(),
        locking: Vec::new(),
        into: None,
    }
}

fn place(location: i32) -> u32 {
    u32::try_from(location).unwrap_or(Literal::NOWHERE)
}
