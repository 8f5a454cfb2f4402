//! What a schema change does to tables whose rows are on two shards, one of which is kept up to date with the other.
//!
//! What must stay true: what is called mild leaves every row as it is, gives a column that it adds one value in all rows of
//! all servers, and refuses no row that was taken before: values that one side has had may still be on their way to the other.

use super::{Node, expression::cast_type, nodes, raw};
use crate::sql::change::{Harm, Meanwhile, Mild};
use pg_raw_parse::ConstValue;

/// Types of PostgreSQL, as the grammar calls them, whose values are read alike by every server.
const TYPES: [&str; 18] = [
    "int2", "int4", "int8", "float4", "float8", "numeric", "bool", "text", "varchar", "bpchar",
    "bytea", "uuid", "json", "jsonb", "inet", "cidr", "macaddr", "name",
];
/// The same; but text is read as the session's settings say, and `now` is a text.
const TIMES: [&str; 6] = [
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
];

/// ALTER TABLE.
pub(super) fn altered(statement: &nodes::AlterTableStmt) -> Meanwhile {
    if statement.objtype != raw::ObjectType::OBJECT_TABLE {
        return Meanwhile::Refused(Harm::Else);
    }
    let mut mild = Mild::default();
    for command in statement.cmds() {
        let done = match command {
            Node::AlterTableCmd(command) => act(command, &mut mild),
            _ => Err(Harm::Else),
        };
        if let Err(harm) = done {
            return Meanwhile::Refused(harm);
        }
    }
    Meanwhile::Done(mild)
}

fn act(command: &nodes::AlterTableCmd, mild: &mut Mild) -> Result<(), Harm> {
    use raw::AlterTableType as Act;
    let name = || command.name().unwrap_or_default().to_owned();
    match (command.subtype, command.def()) {
        (Act::AT_AddColumn, Node::ColumnDef(column)) => {
            added(column)?;
            mild.added
                .push(column.colname().unwrap_or_default().to_owned());
            Ok(())
        }
        (Act::AT_DropConstraint, _) if command.behavior != raw::DropBehavior::DROP_CASCADE => {
            mild.constraints.push(name());
            Ok(())
        }
        (Act::AT_DropNotNull, _) => {
            mild.freed.push(name());
            Ok(())
        }
        (Act::AT_SetRelOptions | Act::AT_ResetRelOptions, Node::NodeList(options)) => {
            let plain = options.iter().all(|option| match option {
                // What it does to a table's rows in the stream is PostgreSQL's own affair.
                Node::DefElem(option) => option.defname() != Some("user_catalog_table"),
                _ => false,
            });
            if plain { Ok(()) } else { Err(Harm::Else) }
        }
        (
            Act::AT_ColumnDefault
            | Act::AT_SetStatistics
            | Act::AT_SetOptions
            | Act::AT_ResetOptions,
            _,
        ) => Ok(()),
        (Act::AT_SetNotNull | Act::AT_AddConstraint | Act::AT_ValidateConstraint, _) => {
            Err(Harm::Holds)
        }
        _ => Err(Harm::Else),
    }
}

/// ADD COLUMN.
fn added(column: &nodes::ColumnDef) -> Result<(), Harm> {
    use raw::ConstrType as Of;
    let of = column.type_name().map(cast_type);
    let of = of.and_then(|of| of.name).ok_or(Harm::Type)?;
    if !TYPES.contains(&of.as_str()) && !TIMES.contains(&of.as_str()) {
        return Err(Harm::Type);
    }
    let plain = matches!(column.raw_default(), Node::None) && column.coll_clause().is_none();
    if !plain {
        return Err(Harm::Value);
    }
    let (mut never_null, mut default) = (false, None);
    for constraint in column.constraints() {
        let Node::Constraint(constraint) = constraint else {
            return Err(Harm::Holds);
        };
        match constraint.contype {
            Of::CONSTR_NULL => {}
            Of::CONSTR_NOTNULL => never_null = true,
            Of::CONSTR_DEFAULT => default = Some(constant(constraint.raw_expr(), &of)?),
            Of::CONSTR_GENERATED | Of::CONSTR_IDENTITY => return Err(Harm::Value),
            _ => return Err(Harm::Holds),
        }
    }
    if never_null && default != Some(Default::Value) {
        return Err(Harm::Holds);
    }
    Ok(())
}

/// What rows get that are there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Default {
    Null,
    Value,
}

/// A value of a type that is the same whoever reads it.
fn constant(node: Node<'_>, of: &str) -> Result<Default, Harm> {
    match node {
        Node::A_Const(constant) if constant.isnull => Ok(Default::Null),
        Node::A_Const(constant) => match constant.val() {
            Some(ConstValue::Integer(_) | ConstValue::Float(_) | ConstValue::Boolean(_)) => {
                Ok(Default::Value)
            }
            Some(ConstValue::String(_)) if TYPES.contains(&of) => Ok(Default::Value),
            _ => Err(Harm::Value),
        },
        Node::TypeCast(cast) => {
            let to = cast.type_name().map(cast_type).and_then(|to| to.name);
            match to.filter(|to| TYPES.contains(&to.as_str())) {
                Some(to) if TYPES.contains(&of) => constant(cast.arg(), &to),
                _ => Err(Harm::Value),
            }
        }
        _ => Err(Harm::Value),
    }
}

/// CREATE INDEX.
pub(super) fn indexed(index: &nodes::IndexStmt) -> Meanwhile {
    if index.unique {
        return Meanwhile::Refused(Harm::Holds);
    }
    let mut columns = index.index_params().into_iter();
    let stored = columns.all(|column| matches!(column.expr(), Node::None));
    if stored && is_about_nulls(index.where_clause()) {
        Meanwhile::Done(Mild::default())
    } else {
        Meanwhile::Refused(Harm::Index)
    }
}

/// Whether a condition looks at nothing but which columns are NULL, so that no value makes it fail.
fn is_about_nulls(condition: Node<'_>) -> bool {
    match condition {
        Node::None => true,
        Node::NullTest(test) => matches!(test.arg(), Node::ColumnRef(_)),
        Node::BoolExpr(all) => all.args().into_iter().all(is_about_nulls),
        _ => false,
    }
}

/// DROP: of indexes, about which the servers are asked first, and of statistics.
pub(super) fn dropped(drop: &nodes::DropStmt) -> Meanwhile {
    use raw::ObjectType as Of;
    let alone = drop.behavior != raw::DropBehavior::DROP_CASCADE && !drop.concurrent;
    match drop.remove_type {
        Of::OBJECT_INDEX | Of::OBJECT_STATISTIC_EXT if alone => Meanwhile::Done(Mild::default()),
        _ => Meanwhile::Refused(Harm::Else),
    }
}
