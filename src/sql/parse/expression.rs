//! Expressions: comparisons, constants and subqueries; anything else keeps its children.

use super::{
    ConstValue, Lower, Node, NodeList, Recurse, nodes, place, raw, sole_call, strings, walk_manual,
};
use crate::sql::tree::{
    CastType, Column, Compare, Depth, Expr, Kind, Literal, LiteralKind, Name, SettingCalls,
};

impl Lower {
    pub(super) fn expr(&mut self, node: Node<'_>) -> Expr {
        self.deeper(Expr::Other(Vec::new()), |lower| lower.expr_inside(node))
    }

    fn expr_inside(&mut self, node: Node<'_>) -> Expr {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "what has no rule keeps its children"
        )]
        match node {
            Node::None => Expr::Other(Vec::new()),
            Node::ColumnRef(column) => Expr::Column(column_of(column)),
            Node::ParamRef(parameter) => self.parameter(parameter.number),
            Node::A_Const(constant) => Expr::Literal(literal(constant)),
            Node::TypeCast(cast) => {
                let inner = Box::new(self.expr(cast.arg()));
                Expr::Cast {
                    inner,
                    to: cast.type_name().map_or_else(CastType::unknown, cast_type),
                }
            }
            Node::A_Expr(operator) => self.operator(operator),
            Node::BoolExpr(boolean) => {
                let parts = self.exprs(boolean.args());
                match boolean.boolop {
                    raw::BoolExprType::AND_EXPR => Expr::And(parts),
                    raw::BoolExprType::OR_EXPR => Expr::Or(parts),
                    _ => Expr::Other(parts),
                }
            }
            Node::RowExpr(row) => Expr::Row(self.exprs(row.args())),
            Node::A_ArrayExpr(array) => Expr::Array(self.exprs(array.elements())),
            Node::SetToDefault(_) => Expr::Default,
            Node::SubLink(link) => self.sublink(link),
            Node::FuncCall(call) => {
                self.call(call);
                Expr::Other(self.children(node))
            }
            Node::NodeList(list) => Expr::Other(self.exprs(list)),
            Node::SelectStmt(_)
            | Node::InsertStmt(_)
            | Node::UpdateStmt(_)
            | Node::DeleteStmt(_)
            | Node::MergeStmt(_) => Expr::Query(Box::new(self.kind(node))),
            Node::ResTarget(target) => self.target(target).value,
            _ => Expr::Other(self.children(node)),
        }
    }

    fn parameter(&mut self, number: i32) -> Expr {
        let number = u32::try_from(number).unwrap_or(0);
        *self.parameters.entry(number).or_default() += 1;
        Expr::Parameter(number)
    }

    /// The expressions directly below a node without a rule of its own.
    pub(super) fn children(&mut self, node: Node<'_>) -> Vec<Expr> {
        if is_leaf(node) {
            return Vec::new();
        }
        if !is_walkable(node) {
            self.read = Depth::Unknown;
            return Vec::new();
        }
        let mut below = Vec::new();
        let _: Option<()> = walk_manual(node, |child| {
            below.push(child);
            Recurse::no()
        });
        below.into_iter().map(|child| self.expr(child)).collect()
    }

    fn operator(&mut self, operator: &nodes::A_Expr) -> Expr {
        let name = operator_name(operator.name());
        let (left, right) = (operator.lexpr(), operator.rexpr());
        match operator.kind {
            raw::A_Expr_Kind::AEXPR_OP => {
                if let (Some("-"), Node::None) = (name, left) {
                    return Expr::Negate(Box::new(self.expr(right)));
                }
                let Some(op) = name.and_then(comparison) else {
                    return self.chain(operator);
                };
                Expr::Compare {
                    op,
                    left: Box::new(self.expr(left)),
                    right: Box::new(self.expr(right)),
                }
            }
            raw::A_Expr_Kind::AEXPR_OP_ANY if name == Some("=") => Expr::EqualsAny {
                left: Box::new(self.expr(left)),
                array: Box::new(self.expr(right)),
            },
            raw::A_Expr_Kind::AEXPR_IN if name == Some("=") => match right {
                Node::NodeList(list) => Expr::In {
                    left: Box::new(self.expr(left)),
                    list: self.exprs(list),
                },
                other => Expr::Other(vec![self.expr(left), self.expr(other)]),
            },
            raw::A_Expr_Kind::AEXPR_BETWEEN => match right {
                Node::NodeList(list) if list.len() == 2 => {
                    let mut bounds = self.exprs(list);
                    let high = bounds.pop().unwrap_or(Expr::Default);
                    let low = bounds.pop().unwrap_or(Expr::Default);
                    Expr::Between {
                        left: Box::new(self.expr(left)),
                        low: Box::new(low),
                        high: Box::new(high),
                    }
                }
                other => Expr::Other(vec![self.expr(left), self.expr(other)]),
            },
            _ => Expr::Other(vec![self.expr(left), self.expr(right)]),
        }
    }

    /// A chain like `a || b || c` leans to the left and is walked, not recursed into.
    fn chain(&mut self, operator: &nodes::A_Expr) -> Expr {
        let mut parts = vec![self.expr(operator.rexpr())];
        let mut spine = operator.lexpr();
        while let Node::A_Expr(left) = spine {
            let plain =
                left.kind == raw::A_Expr_Kind::AEXPR_OP && !matches!(left.lexpr(), Node::None);
            if !plain || operator_name(left.name()).and_then(comparison).is_some() {
                break;
            }
            parts.push(self.expr(left.rexpr()));
            spine = left.lexpr();
        }
        parts.push(self.expr(spine));
        Expr::Other(parts)
    }

    fn sublink(&mut self, link: &nodes::SubLink) -> Expr {
        let query = Box::new(self.kind(link.subselect()));
        let test = link.testexpr();
        let equal = link.oper_name().is_empty() || operator_name(link.oper_name()) == Some("=");
        match (link.sub_link_type, test) {
            (_, Node::None) => Expr::Query(query),
            (raw::SubLinkType::ANY_SUBLINK, test) if equal => Expr::InQuery {
                left: Box::new(self.expr(test)),
                query,
            },
            (_, test) => Expr::Other(vec![self.expr(test), Expr::Query(query)]),
        }
    }

    fn call(&mut self, call: &nodes::FuncCall) {
        let name = function_name(call);
        if name.name == "set_config" {
            let local = matches!(call.args().get(2), Some(node) if boolean_of(node) == Some(true));
            if self.settings != SettingCalls::Session {
                self.settings = if local {
                    SettingCalls::Local
                } else {
                    SettingCalls::Session
                };
            }
        }
        if !self.functions.contains(&name) {
            self.functions.push(name);
        }
    }

    /// `SELECT set_config('…', '…', …)` and nothing else; or of the one row of `pg_settings` that is the setting's own, as
    /// pgAdmin and pg_dump say it.
    pub(super) fn set_config(&self, select: &nodes::SelectStmt) -> Option<Kind> {
        if self.depth != 1 {
            return None;
        }
        let Node::FuncCall(call) = sole_target(select)? else {
            return None;
        };
        let name = function_name(call);
        let own = name
            .schema
            .as_deref()
            .is_none_or(|schema| schema == "pg_catalog");
        if !own || name.name != "set_config" || call.args().len() != 3 {
            return None;
        }
        let mut arguments = call.args().iter();
        let setting = called_at_most_once(select, arguments.next()?)?;
        let value = text_of(arguments.next()?)?;
        let local = boolean_of(arguments.next()?)?;
        Some(Kind::SetConfig {
            name: setting.to_ascii_lowercase(),
            value,
            local,
        })
    }
}

/// What is selected, if it is one value and nothing but FROM and WHERE stands behind it.
pub(super) fn sole_target(select: &nodes::SelectStmt) -> Option<Node<'_>> {
    let bare = select.op == raw::SetOperation::SETOP_NONE
        && select.target_list().len() == 1
        && select.with_clause().is_none()
        && select.into_clause().is_none()
        && matches!(select.limit_count(), Node::None)
        && matches!(select.limit_offset(), Node::None)
        && matches!(select.having_clause(), Node::None)
        && select.group_clause().is_empty();
    let target = select.target_list().into_iter().next()?;
    bare.then(|| target.val())
}

/// The setting that is named, if what is selected is computed for one row at most: there is no FROM, or it is
/// `pg_settings`, which shows each setting once, restricted to this one, which may be its column `name`. Where the server
/// has no such row, the command's tag says that nothing was set.
fn called_at_most_once(select: &nodes::SelectStmt, named: Node<'_>) -> Option<String> {
    let (from, condition) = (select.from_clause(), select.where_clause());
    let setting = text_of(named);
    if from.is_empty() {
        return setting.filter(|_| matches!(condition, Node::None));
    }
    let own_schema = |schema: Option<&str>| schema.is_none_or(|schema| schema == "pg_catalog");
    let of_settings = match from.get(0) {
        Some(Node::RangeVar(table)) => {
            table.relname() == Some("pg_settings")
                && own_schema(table.schemaname())
                && table.alias().is_none()
        }
        Some(Node::RangeFunction(function)) => {
            function.alias().is_none()
                && sole_call(function.functions()).is_some_and(|name| {
                    name.name == "pg_show_all_settings" && own_schema(name.schema.as_deref())
                })
        }
        _ => false,
    };
    let is_name = |node: Node<'_>| matches!(node, Node::ColumnRef(column) if column_of(column).path == ["name"]);
    let Node::A_Expr(equality) = condition else {
        return None;
    };
    let of_one = matches!(equality.kind, raw::A_Expr_Kind::AEXPR_OP)
        && operator_name(equality.name()) == Some("=")
        && is_name(equality.lexpr());
    let shown = text_of(equality.rexpr())?;
    let named_so = is_name(named) || setting.as_deref() == Some(&shown);
    (from.len() == 1 && of_settings && of_one && named_so).then_some(shown)
}

/// Nodes without anything below them.
fn is_leaf(node: Node<'_>) -> bool {
    matches!(
        node,
        Node::A_Star(_)
            | Node::SQLValueFunction(_)
            | Node::CurrentOfExpr(_)
            | Node::String(_)
            | Node::Integer(_)
            | Node::Float(_)
            | Node::Boolean(_)
            | Node::BitString(_)
            | Node::TypeName(_)
            | Node::MergeSupportFunc(_)
            | Node::JsonFormat(_)
            | Node::JsonReturning(_)
    )
}

/// Nodes whose children the crate's walker knows.
fn is_walkable(node: Node<'_>) -> bool {
    matches!(
        node,
        Node::FuncCall(_)
            | Node::CollateClause(_)
            | Node::NullTest(_)
            | Node::BooleanTest(_)
            | Node::CaseExpr(_)
            | Node::CaseWhen(_)
            | Node::CoalesceExpr(_)
            | Node::MinMaxExpr(_)
            | Node::NamedArgExpr(_)
            | Node::A_Indirection(_)
            | Node::A_Indices(_)
            | Node::MultiAssignRef(_)
            | Node::SortBy(_)
            | Node::WindowDef(_)
            | Node::GroupingFunc(_)
            | Node::GroupingSet(_)
            | Node::XmlExpr(_)
            | Node::XmlSerialize(_)
            | Node::RangeTableFunc(_)
            | Node::RangeTableFuncCol(_)
            | Node::IndexElem(_)
            | Node::JsonOutput(_)
            | Node::JsonValueExpr(_)
            | Node::JsonArgument(_)
            | Node::JsonBehavior(_)
            | Node::JsonFuncExpr(_)
            | Node::JsonTable(_)
            | Node::JsonTableColumn(_)
            | Node::JsonTablePathSpec(_)
            | Node::JsonIsPredicate(_)
            | Node::JsonParseExpr(_)
            | Node::JsonScalarExpr(_)
            | Node::JsonSerializeExpr(_)
            | Node::JsonKeyValue(_)
            | Node::JsonObjectConstructor(_)
            | Node::JsonArrayConstructor(_)
            | Node::JsonArrayQueryConstructor(_)
            | Node::JsonAggConstructor(_)
            | Node::JsonObjectAgg(_)
            | Node::JsonArrayAgg(_)
    )
}

fn column_of(column: &nodes::ColumnRef) -> Column {
    let star = column
        .fields()
        .iter()
        .any(|field| matches!(field, Node::A_Star(_)));
    Column {
        path: strings(column.fields()),
        star,
    }
}

fn literal(constant: &nodes::A_Const) -> Literal {
    let kind = match constant.val() {
        _ if constant.isnull => LiteralKind::Null,
        Some(ConstValue::Integer(_) | ConstValue::Float(_)) => LiteralKind::Number,
        Some(ConstValue::String(_)) => LiteralKind::Text,
        Some(ConstValue::Boolean(_)) => LiteralKind::Boolean,
        _ => LiteralKind::Bits,
    };
    Literal {
        kind,
        location: place(constant.location),
    }
}

pub(super) fn cast_type(name: &nodes::TypeName) -> CastType {
    let mut parts: Vec<&str> = name
        .names()
        .into_iter()
        .filter_map(nodes::String::sval)
        .collect();
    let last = parts.pop();
    let own = matches!(parts.as_slice(), [] | ["pg_catalog"]);
    CastType {
        name: last
            .filter(|_| own && !name.setof && !name.pct_type)
            .map(str::to_owned),
        modified: !name.typmods().is_empty() || name.typemod != -1,
        array: !name.array_bounds().is_empty(),
    }
}

pub(super) fn function_name(call: &nodes::FuncCall) -> Name {
    let mut parts = strings(call.funcname());
    let name = parts.pop().unwrap_or_default();
    Name {
        schema: parts.pop(),
        name,
    }
}

/// The operator's name when it is unqualified or PostgreSQL's own.
fn operator_name(parts: &NodeList) -> Option<&str> {
    match parts.len() {
        1 => parts.get(0)?.as_str(),
        2 if parts.get(0)?.as_str() == Some("pg_catalog") => parts.get(1)?.as_str(),
        _ => None,
    }
}

fn comparison(name: &str) -> Option<Compare> {
    Some(match name {
        "=" => Compare::Equal,
        "<" => Compare::Less,
        "<=" => Compare::LessEqual,
        ">" => Compare::Greater,
        ">=" => Compare::GreaterEqual,
        _ => return None,
    })
}

pub(super) fn text_of(node: Node<'_>) -> Option<String> {
    match node {
        Node::A_Const(constant) => match constant.val() {
            Some(ConstValue::String(text)) => Some(text.to_owned()),
            _ => None,
        },
        Node::TypeCast(cast) => {
            let to = cast.type_name().map(cast_type)?;
            (to.name.as_deref() == Some("text") && !to.array && !to.modified)
                .then(|| text_of(cast.arg()))?
        }
        _ => None,
    }
}

fn boolean_of(node: Node<'_>) -> Option<bool> {
    match node {
        Node::A_Const(constant) => match constant.val() {
            Some(ConstValue::Boolean(value)) => Some(value),
            Some(ConstValue::String("t" | "true" | "on" | "1")) => Some(true),
            Some(ConstValue::String("f" | "false" | "off" | "0")) => Some(false),
            _ => None,
        },
        Node::TypeCast(cast) => (cast.type_name().map(cast_type)?.name.as_deref() == Some("bool"))
            .then(|| boolean_of(cast.arg()))?,
        _ => None,
    }
}
