//! Everything that is not a query or a write: transaction control, settings, cursors, COPY, DDL.

use super::{
    ConstValue, Lower, Node, NodeList, expression::function_name, is_temporary, nodes, raw,
    relation,
};
use crate::sql::tree::{Copy, CopyOption, Discard, Filtered, Kind, Set, Transaction};

/// `CURSOR_OPT_HOLD` of parsenodes.h.
const CURSOR_HOLD: i32 = 0x0020;

impl Lower {
    #[expect(clippy::too_many_lines, reason = "one short arm per kind of statement")]
    pub(super) fn utility(&mut self, node: Node<'_>) -> Kind {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "DDL and maintenance are told apart by name only"
        )]
        match node {
            Node::TransactionStmt(statement) => Kind::Transaction(transaction(statement)),
            Node::ConstraintsSetStmt(_) => Kind::Transaction(Transaction::Set),
            Node::VariableSetStmt(set) => setting(set),
            Node::VariableShowStmt(_) => Kind::Show,
            Node::DiscardStmt(discard) => Kind::Discard(match discard.target {
                raw::DiscardMode::DISCARD_ALL => Discard::All,
                raw::DiscardMode::DISCARD_PLANS => Discard::Plans,
                raw::DiscardMode::DISCARD_SEQUENCES => Discard::Sequences,
                _ => Discard::Temporary,
            }),
            Node::DeallocateStmt(statement) => {
                Kind::Deallocate(statement.name().map(str::to_owned))
            }
            Node::PrepareStmt(statement) => {
                Kind::Prepare(statement.name().unwrap_or_default().to_owned())
            }
            Node::ExecuteStmt(statement) => {
                Kind::Execute(statement.name().unwrap_or_default().to_owned())
            }
            Node::FetchStmt(_) | Node::ClosePortalStmt(_) => Kind::Cursor,
            Node::ListenStmt(listen) => {
                Kind::Listen(listen.conditionname().unwrap_or_default().to_owned())
            }
            Node::UnlistenStmt(unlisten) => {
                Kind::Unlisten(unlisten.conditionname().map(str::to_owned))
            }
            Node::NotifyStmt(_) => Kind::Notify,
            Node::LoadStmt(_) => Kind::Load,
            Node::DoStmt(_) => Kind::Call("DO"),
            Node::CallStmt(call) => {
                if let Some(call) = call.funccall() {
                    self.functions.push(function_name(call));
                    drop(self.exprs(call.args()));
                }
                Kind::Call("CALL")
            }
            Node::DeclareCursorStmt(declare) => Kind::Declare {
                hold: declare.options & CURSOR_HOLD != 0,
                query: Box::new(self.kind(declare.query())),
            },
            Node::ExplainStmt(explain) => self.explain(explain),
            Node::CopyStmt(copy) => self.copy(copy),
            Node::CreateStmt(create) if create.relation().is_some_and(is_temporary) => {
                Kind::CreateTemporary
            }
            Node::CreateTableAsStmt(create) if matches!(create.query(), Node::ExecuteStmt(_)) => {
                let name = match create.query() {
                    Node::ExecuteStmt(statement) => statement.name(),
                    _ => None,
                };
                Kind::TableOfExecute {
                    name: name.unwrap_or_default().to_owned(),
                    temporary: temporary_into(create),
                }
            }
            Node::CreateTableAsStmt(create) if temporary_into(create) => {
                drop(self.kind(create.query()));
                Kind::CreateTemporary
            }
            Node::CreateSeqStmt(create) if create.sequence().is_some_and(is_temporary) => {
                Kind::CreateTemporary
            }
            Node::ViewStmt(create) if create.view().is_some_and(is_temporary) => {
                Kind::CreateTemporary
            }
            other if makes_temporary(&other) => Kind::CreateTemporary,
            other => match self.change(other) {
                Some(change) => Kind::Change(change),
                None => Kind::Utility(command(other)),
            },
        }
    }

    fn explain(&mut self, explain: &nodes::ExplainStmt) -> Kind {
        let on = |name: &str| {
            explain.options().into_iter().any(|option| {
                option
                    .defname()
                    .is_some_and(|found| found.eq_ignore_ascii_case(name))
                    && is_on(option.arg())
            })
        };
        Kind::Explain {
            analyze: on("analyze"),
            route: on("route"),
            inner: Box::new(self.kind(explain.query())),
        }
    }

    fn copy(&mut self, copy: &nodes::CopyStmt) -> Kind {
        let query = match copy.query() {
            Node::None => None,
            query => Some(Box::new(self.kind(query))),
        };
        if !matches!(copy.where_clause(), Node::None) {
            drop(self.expr(copy.where_clause()));
        }
        let columns = copy.attlist();
        let filtered = match copy.where_clause() {
            Node::None => Filtered::No,
            _ => Filtered::Yes,
        };
        Kind::Copy(Copy {
            relation: copy.relation().map(|table| relation(table).name),
            query,
            from: copy.is_from,
            server: copy.is_program || copy.filename().is_some(),
            columns: (!columns.is_empty()).then(|| names(columns)),
            options: copy.options().into_iter().map(copy_option).collect(),
            filtered,
        })
    }
}

fn names(list: &NodeList) -> Vec<String> {
    let name = |node: Node<'_>| node.as_str().map(str::to_owned);
    list.iter()
        .map(|node| name(node).unwrap_or_default())
        .collect()
}

fn copy_option(option: &nodes::DefElem) -> (String, CopyOption) {
    let argument = match option.arg() {
        Node::None => CopyOption::None,
        Node::A_Star(_) => CopyOption::Every,
        Node::Integer(number) => CopyOption::Text(number.ival.to_string()),
        Node::Boolean(value) => CopyOption::Text(value.boolval.to_string()),
        Node::NodeList(list) => CopyOption::Columns(names(list)),
        other => other.as_str().map_or(CopyOption::Unknown, |text| {
            CopyOption::Text(text.to_owned())
        }),
    };
    (option.defname().unwrap_or_default().to_owned(), argument)
}

fn temporary_into(create: &nodes::CreateTableAsStmt) -> bool {
    create
        .into()
        .and_then(nodes::IntoClause::rel)
        .is_some_and(is_temporary)
}

/// Whether a statement makes what is no table in the session's own schema.
fn makes_temporary(node: &Node<'_>) -> bool {
    let name = match node {
        Node::CreateStatsStmt(create) => create.defnames(),
        Node::DefineStmt(create) => create.defnames(),
        Node::CreateDomainStmt(create) => create.domainname(),
        Node::CreateEnumStmt(create) => create.type_name(),
        Node::CreateRangeStmt(create) => create.type_name(),
        Node::CompositeTypeStmt(create) => return create.typevar().is_some_and(is_temporary),
        Node::CreateFunctionStmt(create) => {
            let schema = create.funcname().get(0);
            return schema.is_some_and(|schema| schema.as_str() == Some("pg_temp"));
        }
        _ => return false,
    };
    name.get(0)
        .is_some_and(|schema| schema.sval() == Some("pg_temp"))
}

/// An option of EXPLAIN without a value, or with one that PostgreSQL's `defGetBoolean` takes for true.
fn is_on(argument: Node<'_>) -> bool {
    match argument {
        Node::None => true,
        Node::Integer(number) => number.ival != 0,
        Node::Boolean(value) => value.boolval,
        other => other.as_str().is_none_or(|text| {
            !(text.eq_ignore_ascii_case("false") || text.eq_ignore_ascii_case("off"))
        }),
    }
}

fn transaction(statement: &nodes::TransactionStmt) -> Transaction {
    let name = || statement.savepoint_name().unwrap_or_default().to_owned();
    let chain = statement.chain;
    match statement.kind {
        raw::TransactionStmtKind::TRANS_STMT_BEGIN | raw::TransactionStmtKind::TRANS_STMT_START => {
            Transaction::Begin
        }
        raw::TransactionStmtKind::TRANS_STMT_COMMIT => Transaction::Commit { chain },
        raw::TransactionStmtKind::TRANS_STMT_ROLLBACK => Transaction::Rollback { chain },
        raw::TransactionStmtKind::TRANS_STMT_SAVEPOINT => Transaction::Savepoint(name()),
        raw::TransactionStmtKind::TRANS_STMT_RELEASE => Transaction::Release(name()),
        raw::TransactionStmtKind::TRANS_STMT_ROLLBACK_TO => Transaction::RollbackTo(name()),
        _ => Transaction::TwoPhase,
    }
}

fn setting(set: &nodes::VariableSetStmt) -> Kind {
    let name = set.name().unwrap_or_default().to_ascii_lowercase();
    Kind::Set(match set.kind {
        raw::VariableSetKind::VAR_SET_VALUE => match values(set.args()) {
            Some(value) => Set::Value {
                name,
                value: Some(value),
                local: set.is_local,
            },
            None => Set::Opaque,
        },
        raw::VariableSetKind::VAR_SET_DEFAULT => Set::Value {
            name,
            value: None,
            local: set.is_local,
        },
        raw::VariableSetKind::VAR_SET_MULTI => return several(&name, set.args()),
        raw::VariableSetKind::VAR_RESET => Set::Reset(name),
        raw::VariableSetKind::VAR_RESET_ALL => Set::ResetAll,
        _ => Set::Opaque,
    })
}

/// SET TRANSACTION and SET SESSION CHARACTERISTICS.
fn several(name: &str, options: &NodeList) -> Kind {
    if name != "session characteristics" {
        return Kind::Transaction(Transaction::Set);
    }
    let mut all = Vec::new();
    for option in options {
        let Node::DefElem(option) = option else {
            return Kind::Set(Set::Opaque);
        };
        let (Some(name), Some(value)) = (option.defname(), value(option.arg())) else {
            return Kind::Set(Set::Opaque);
        };
        all.push((format!("default_{name}"), value));
    }
    Kind::Set(Set::Each(all))
}

/// The values of SET as SQL text that may follow `SET name TO`.
fn values(arguments: &NodeList) -> Option<String> {
    let parts: Option<Vec<String>> = arguments.iter().map(value).collect();
    Some(parts?.join(", "))
}

fn value(node: Node<'_>) -> Option<String> {
    let Node::A_Const(constant) = node else {
        return None;
    };
    match constant.val()? {
        ConstValue::Integer(number) => Some(number.to_string()),
        ConstValue::Float(number) => Some(number.to_owned()),
        ConstValue::String(text) => Some(crate::sql::statement::quoted(text)),
        _ => None,
    }
}

/// What a command is called in errors.
fn command(node: Node<'_>) -> &'static str {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is DDL")]
    match node {
        Node::CreateStmt(_) => "CREATE TABLE",
        Node::CreateTableAsStmt(_) => "CREATE TABLE AS",
        Node::IndexStmt(_) => "CREATE INDEX",
        Node::ViewStmt(_) => "CREATE VIEW",
        Node::AlterTableStmt(_) => "ALTER TABLE",
        Node::RenameStmt(_) => "RENAME",
        Node::DropStmt(_) => "DROP",
        Node::TruncateStmt(_) => "TRUNCATE",
        Node::VacuumStmt(_) => "VACUUM or ANALYZE",
        Node::ClusterStmt(_) => "CLUSTER",
        Node::ReindexStmt(_) => "REINDEX",
        Node::RefreshMatViewStmt(_) => "REFRESH MATERIALIZED VIEW",
        Node::LockStmt(_) => "LOCK TABLE",
        Node::GrantStmt(_) | Node::GrantRoleStmt(_) => "GRANT or REVOKE",
        Node::CreateSchemaStmt(_) => "CREATE SCHEMA",
        Node::CreateExtensionStmt(_) => "CREATE EXTENSION",
        Node::CreateFunctionStmt(_) => "CREATE FUNCTION",
        Node::CreateTrigStmt(_) => "CREATE TRIGGER",
        Node::CreateSeqStmt(_) => "CREATE SEQUENCE",
        Node::CreateRoleStmt(_) => "CREATE ROLE",
        Node::CommentStmt(_) => "COMMENT",
        Node::CheckPointStmt(_) => "CHECKPOINT",
        Node::AlterSystemStmt(_) => "ALTER SYSTEM",
        _ => "a schema change",
    }
}
