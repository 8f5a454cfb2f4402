//! What predicates say of the keys of the relations in their block.
//!
//! A condition that is noted is true of every row that can matter; what is not understood says nothing.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

use super::{
    Analysis, Count, both, equal,
    values::{array_cast, parameter},
};
use crate::{
    catalog::{group::Map, key::KeyType},
    plan::{
        route::{Condition, Edge},
        scope::{resolve, resolve_side},
        value::Value,
    },
    sql::tree::{Compare, Expr, Literal, LiteralKind},
};
use std::ops::Range;

impl<'a> Analysis<'a> {
    /// Notes what a predicate says of the keys of the instances in `range`.
    pub(in crate::plan) fn restrict(
        &mut self,
        predicate: &Expr,
        scope: usize,
        start: usize,
        range: &Range<usize>,
    ) {
        match predicate {
            Expr::And(parts) => {
                for part in parts {
                    self.restrict(part, scope, start, range);
                }
                return;
            }
            Expr::Compare {
                op: Compare::Equal,
                left,
                right,
            } => self.restrict_equal(left, right, scope, start, range),
            Expr::InQuery { left, query } => {
                if let Expr::Column(column) = &**left {
                    let keys = resolve(&self.scopes, scope, start, column);
                    let outputs = self.subquery(query, scope);
                    if let ([(_, Some(other))], false) = (outputs.columns.as_slice(), outputs.open)
                    {
                        for key in keys {
                            self.equate_one(key, *other, scope, range);
                        }
                    }
                }
                return;
            }
            _ => {}
        }
        for instance in range.clone() {
            if self.instances[instance].block == scope
                && let Some(condition) = self.condition(predicate, instance, scope, start)
            {
                self.instances[instance].conditions.push(condition);
            }
        }
    }

    fn restrict_equal(
        &mut self,
        left: &Expr,
        right: &Expr,
        scope: usize,
        start: usize,
        range: &Range<usize>,
    ) {
        match (left, right) {
            (Expr::Column(left), Expr::Column(right)) => {
                let left = resolve_side(&self.scopes, scope, start, left);
                let right = resolve_side(&self.scopes, scope, start, right);
                self.equate(&left, &right, scope, range);
            }
            (Expr::Row(left), Expr::Row(right)) if left.len() == right.len() => {
                for (left, right) in left.iter().zip(right) {
                    self.restrict_equal(left, right, scope, start, range);
                }
            }
            _ => {}
        }
    }

    /// What a predicate says of one instance's key; `None`: nothing.
    fn condition(
        &self,
        predicate: &Expr,
        instance: usize,
        scope: usize,
        start: usize,
    ) -> Option<Condition> {
        let is_key = |expr: &Expr| match expr {
            Expr::Column(column) => resolve(&self.scopes, scope, start, column).contains(&instance),
            _ => false,
        };
        let key_type = self.key_type(instance);
        match predicate {
            Expr::And(parts) => both(
                parts
                    .iter()
                    .filter_map(|part| self.condition(part, instance, scope, start))
                    .collect(),
            ),
            Expr::Or(parts) => {
                let parts: Option<Vec<_>> = parts
                    .iter()
                    .map(|part| self.condition(part, instance, scope, start))
                    .collect();
                parts.map(either)
            }
            Expr::Compare {
                op: Compare::Equal,
                left,
                right,
            } => {
                if let (Expr::Row(left), Expr::Row(right)) = (&**left, &**right) {
                    return self.row_condition(left, right, instance, scope, start);
                }
                let other = if is_key(left) {
                    right
                } else if is_key(right) {
                    left
                } else {
                    return None;
                };
                let value = self.value(other, key_type)?;
                if value == Value::Null && self.context.transform_null_equals {
                    return None;
                }
                Some(equal(value))
            }
            Expr::Compare { op, left, right } => {
                let (op, other) = if is_key(left) {
                    (*op, right)
                } else if is_key(right) {
                    (flipped(*op), left)
                } else {
                    return None;
                };
                self.range(instance, op, other)
            }
            Expr::In { left, list } => self.in_list(left, list, instance, scope, start),
            Expr::EqualsAny { left, array } if is_key(left) => self.any_of(array, key_type),
            Expr::Between { left, low, high } if is_key(left) => {
                let low = self.range(instance, Compare::GreaterEqual, low)?;
                let high = self.range(instance, Compare::LessEqual, high)?;
                both(vec![low, high])
            }
            _ => None,
        }
    }

    fn in_list(
        &self,
        left: &Expr,
        list: &[Expr],
        instance: usize,
        scope: usize,
        start: usize,
    ) -> Option<Condition> {
        if let Expr::Row(left) = left {
            let rows: Option<Vec<Condition>> = list
                .iter()
                .map(|row| match row {
                    Expr::Row(right) => self.row_condition(left, right, instance, scope, start),
                    _ => None,
                })
                .collect();
            return rows.map(either);
        }
        let Expr::Column(column) = left else {
            return None;
        };
        if !resolve(&self.scopes, scope, start, column).contains(&instance) {
            return None;
        }
        let key_type = self.key_type(instance);
        if !self.one_type(list, key_type) {
            return None;
        }
        let values: Option<Vec<Value>> = list
            .iter()
            .map(|value| self.value(value, key_type))
            .collect();
        Some(one_of(values?))
    }

    fn row_condition(
        &self,
        left: &[Expr],
        right: &[Expr],
        instance: usize,
        scope: usize,
        start: usize,
    ) -> Option<Condition> {
        if left.len() != right.len() {
            return None;
        }
        let key_type = self.key_type(instance);
        let is_key = |expr: &Expr| match expr {
            Expr::Column(column) => resolve(&self.scopes, scope, start, column).contains(&instance),
            _ => false,
        };
        let parts = left.iter().zip(right).filter_map(|(left, right)| {
            let value = if is_key(left) {
                self.value(right, key_type)?
            } else if is_key(right) {
                self.value(left, key_type)?
            } else {
                return None;
            };
            Some(equal(value))
        });
        both(parts.collect())
    }

    fn any_of(&self, array: &Expr, key_type: KeyType) -> Option<Condition> {
        match array {
            Expr::Array(items) if self.one_type(items, key_type) => {
                let values: Option<Vec<Value>> = items
                    .iter()
                    .map(|item| self.value(item, key_type))
                    .collect();
                Some(one_of(values?))
            }
            Expr::Cast { inner, to } => {
                let cast = array_cast(to, key_type)?;
                match &**inner {
                    Expr::Array(_) => self.any_of(inner, key_type),
                    Expr::Literal(Literal {
                        kind: LiteralKind::Null,
                        ..
                    }) => Some(Condition::Nothing),
                    Expr::Literal(literal) if literal.kind == LiteralKind::Text => {
                        Some(Condition::ElementOf(self.slot(literal, Some(cast))?))
                    }
                    Expr::Parameter(number) => {
                        self.reads(inner, *number, (key_type, Some(cast), Count::Array));
                        Some(Condition::ElementOf(parameter(*number, Some(cast))?))
                    }
                    _ => None,
                }
            }
            Expr::Literal(literal) if literal.kind == LiteralKind::Text => {
                Some(Condition::ElementOf(self.slot(literal, None)?))
            }
            Expr::Literal(Literal {
                kind: LiteralKind::Null,
                ..
            }) => Some(Condition::Nothing),
            Expr::Parameter(number) => {
                self.reads(array, *number, (key_type, None, Count::Array));
                Some(Condition::ElementOf(parameter(*number, None)?))
            }
            _ => None,
        }
    }

    /// A comparison of order pins only a range group, and text only where the group's order is the comparison's: never.
    pub(super) fn range(&self, instance: usize, op: Compare, other: &Expr) -> Option<Condition> {
        let group = self.snapshot.group(self.instances[instance].group);
        if !matches!(group.map, Map::Range(_)) || group.key_type == KeyType::Text {
            return None;
        }
        let value = self.value(other, group.key_type)?;
        let inclusive = matches!(op, Compare::LessEqual | Compare::GreaterEqual);
        let edge = Some(Edge { value, inclusive });
        Some(match op {
            Compare::Less | Compare::LessEqual => Condition::Between {
                low: None,
                high: edge,
            },
            Compare::Greater | Compare::GreaterEqual => Condition::Between {
                low: edge,
                high: None,
            },
            Compare::Equal => return None,
        })
    }
}

fn flipped(op: Compare) -> Compare {
    match op {
        Compare::Equal => Compare::Equal,
        Compare::Less => Compare::Greater,
        Compare::LessEqual => Compare::GreaterEqual,
        Compare::Greater => Compare::Less,
        Compare::GreaterEqual => Compare::LessEqual,
    }
}

fn one_of(mut values: Vec<Value>) -> Condition {
    values.retain(|value| *value != Value::Null);
    match values.len() {
        0 => Condition::Nothing,
        1 => equal(values.remove(0)),
        _ => Condition::OneOf(values),
    }
}

fn either(parts: Vec<Condition>) -> Condition {
    let mut values = Vec::new();
    let mut others = Vec::new();
    for part in parts {
        match part {
            Condition::Equal(value) => values.push(value),
            Condition::OneOf(list) => values.extend(list),
            Condition::Nothing => {}
            other => others.push(other),
        }
    }
    if others.is_empty() {
        return one_of(values);
    }
    if !values.is_empty() {
        others.push(one_of(values));
    }
    Condition::Either(others)
}
