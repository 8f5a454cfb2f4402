//! Prepared statements that a text names, and the values that EXECUTE gives.

use super::{ConstValue, Node, NotParsed, expression::cast_type, nodes, statement};
use crate::sql::executions::{Argument, Naming};
use std::ops::Range;

/// The statements of a text, where they stand, and how they name prepared statements.
///
/// # Errors
/// [`NotParsed`] when PostgreSQL 18's grammar refuses it.
pub(in crate::sql) fn namings(text: &str) -> Result<Vec<(Range<usize>, Naming)>, NotParsed> {
    let Ok(parsed) = pg_raw_parse::parse(text) else {
        return Err(NotParsed);
    };
    Ok(parsed
        .into_inner()
        .iter()
        .map(|raw| {
            let place = statement(text, raw);
            (place.start as usize..place.end as usize, naming(raw.stmt()))
        })
        .collect())
}

fn naming(node: Node<'_>) -> Naming {
    let named = |name: Option<&str>| name.unwrap_or_default().to_owned();
    match node {
        Node::PrepareStmt(prepare) => Naming::Prepares {
            name: named(prepare.name()),
        },
        Node::ExecuteStmt(execute) => Naming::Executes {
            name: named(execute.name()),
            arguments: execute.params().iter().map(argument).collect(),
        },
        Node::DeallocateStmt(deallocate) => match deallocate.name() {
            Some(name) => Naming::Deallocates {
                name: name.to_owned(),
            },
            None => Naming::Nothing,
        },
        Node::CreateTableAsStmt(create) => naming_within(create.query()),
        Node::ExplainStmt(explain) => naming_within(explain.query()),
        _ => Naming::Nothing,
    }
}

fn naming_within(node: Node<'_>) -> Naming {
    match node {
        Node::ExecuteStmt(_) | Node::CreateTableAsStmt(_) => naming(node),
        _ => Naming::Nothing,
    }
}

/// A constant, when its text given to the parameter's type is what PostgreSQL makes of it.
fn argument(node: Node<'_>) -> Argument {
    match node {
        Node::A_Const(constant) => constant_argument(constant),
        Node::TypeCast(cast) => {
            let kept = cast.type_name().map(cast_type).and_then(|to| {
                let plain = !to.modified && !to.array;
                to.name.filter(|_| plain)
            });
            match (argument(cast.arg()), kept.as_deref()) {
                (Argument::Null, _) => Argument::Null,
                (argument @ Argument::Text(_), Some("text" | "varchar")) => argument,
                (Argument::Text(text), Some("int2" | "int4" | "int8" | "numeric"))
                    if is_integer(&text) =>
                {
                    Argument::Text(text)
                }
                (Argument::Text(text), Some("uuid")) if is_uuid(&text) => Argument::Text(text),
                _ => Argument::Computed,
            }
        }
        _ => Argument::Computed,
    }
}

fn constant_argument(constant: &nodes::A_Const) -> Argument {
    match constant.val() {
        _ if constant.isnull => Argument::Null,
        Some(ConstValue::Integer(number)) => Argument::Text(number.to_string()),
        Some(ConstValue::Float(number)) if is_integer(number) => Argument::Text(number.to_owned()),
        Some(ConstValue::String(text)) => Argument::Text(text.to_owned()),
        _ => Argument::Computed,
    }
}

/// A whole number as PostgreSQL writes it.
fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = text == "0" || !digits.starts_with('0');
    canonical && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A UUID as PostgreSQL writes it.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}
