//! Constants and parameters as values of keys.
//!
//! A value is taken only if PostgreSQL would compare the same one: casts that may change it, and parameters whose type is not sure, are not.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

use super::{Analysis, Count, Keyed};
use crate::{
    catalog::key::KeyType,
    plan::{
        unroutable::{KeyProblem, Unroutable},
        value::{Sign, Value},
    },
    sql::tree::{CastType, Expr, Literal, LiteralKind},
    wire::types::{self, Oid},
};
use std::collections::{HashMap, HashSet};

impl<'a> Analysis<'a> {
    /// A constant or parameter as a key value; `None`: anything else, or a cast that may change the value.
    pub(in crate::plan) fn value(&self, expr: &Expr, key_type: KeyType) -> Option<Value> {
        match expr {
            Expr::Literal(literal) => self.literal(literal, None),
            Expr::Parameter(number) => {
                self.reads(expr, *number, (key_type, None, Count::One));
                parameter(*number, None)
            }
            Expr::Cast { inner, to } => {
                let cast = Some(cast_to(to, key_type)?);
                match &**inner {
                    Expr::Literal(literal) => self.literal(literal, cast),
                    Expr::Parameter(number) => {
                        self.reads(inner, *number, (key_type, cast, Count::One));
                        parameter(*number, cast)
                    }
                    _ => None,
                }
            }
            Expr::Negate(inner) => match self.value(inner, key_type)? {
                Value::Slot { slot, sign, cast } if is_number(inner) => {
                    let sign = if sign == Sign::Minus {
                        Sign::None
                    } else {
                        Sign::Minus
                    };
                    Some(Value::Slot { slot, sign, cast })
                }
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn reads(&self, place: &Expr, number: u32, meaning: (KeyType, Option<Oid>, Count)) {
        let mut keyed = self.keyed.borrow_mut();
        let known = keyed.entry(number).or_insert_with(|| Keyed {
            places: HashSet::new(),
            meaning,
            agreed: true,
        });
        known.agreed &= known.meaning == meaning;
        known.places.insert(std::ptr::from_ref(place).addr());
    }

    /// PostgreSQL infers an undeclared parameter's type from its first place: a parameter that stands elsewhere too may
    /// be of a type other than the key's, whose bytes we would misread.
    pub(in crate::plan) fn refuse_shared_parameters(
        &mut self,
        counts: &HashMap<u32, u32>,
        types: &[Oid],
    ) {
        let declared = |number: u32| {
            let index = usize::try_from(number).unwrap_or(0).checked_sub(1);
            let oid = index
                .and_then(|index| types.get(index))
                .copied()
                .unwrap_or(0);
            oid != 0 && oid != types::UNKNOWN
        };
        let keyed = self.keyed.take();
        let numeric = |number: &u32| {
            let index = usize::try_from(*number).unwrap_or(0).checked_sub(1);
            index.and_then(|index| types.get(index)) == Some(&types::NUMERIC)
        };
        let beside_numeric = keyed.keys().any(numeric);
        let shared = keyed.iter().filter(|(number, keyed)| {
            let elsewhere = counts
                .get(number)
                .is_none_or(|count| *count as usize > keyed.places.len());
            let mixed = beside_numeric && keyed.meaning.0 == KeyType::Bigint;
            !declared(**number) && (elsewhere || !keyed.agreed || mixed)
        });
        if let Some(number) = shared.map(|(number, _)| *number).min() {
            let (key, problem) = (format!("${number}"), KeyProblem::Ambiguous);
            self.refuse(Unroutable::KeyValue { key, problem });
        }
    }

    /// Items of a list have one type: an undeclared parameter beside a number may be numeric, whose bytes are no bigint's.
    pub(super) fn one_type(&self, items: &[Expr], key_type: KeyType) -> bool {
        let bare = |item: &Expr| matches!(item, Expr::Parameter(_));
        let fits = |item: &Expr| match item {
            Expr::Parameter(_) | Expr::Cast { .. } => true,
            Expr::Literal(literal) => literal.kind != LiteralKind::Number,
            _ => false,
        };
        key_type != KeyType::Bigint || !items.iter().any(bare) || items.iter().all(fits)
    }

    pub(super) fn literal(&self, literal: &Literal, cast: Option<Oid>) -> Option<Value> {
        match literal.kind {
            LiteralKind::Null => Some(Value::Null),
            LiteralKind::Number | LiteralKind::Text => self.slot(literal, cast),
            LiteralKind::Boolean | LiteralKind::Bits => None,
        }
    }

    /// The slot of a literal. A negative number stands at its sign, which belongs to the template.
    pub(super) fn slot(&self, literal: &Literal, cast: Option<Oid>) -> Option<Value> {
        let at = self
            .slots
            .partition_point(|slot| slot.start < literal.location);
        let found = self.slots.get(at)?;
        let sign = if found.start == literal.location {
            Sign::None
        } else {
            let between = self
                .text
                .get(literal.location as usize..found.start as usize)?;
            let (b'-', blanks) = between.split_first()? else {
                return None;
            };
            if literal.kind != LiteralKind::Number || !blanks.iter().all(u8::is_ascii_whitespace) {
                return None;
            }
            Sign::Minus
        };
        Some(Value::Slot {
            slot: u32::try_from(at).ok()?,
            sign,
            cast,
        })
    }
}

fn is_number(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(literal) => literal.kind == LiteralKind::Number,
        Expr::Cast { inner, .. } => is_number(inner),
        _ => false,
    }
}

pub(super) fn parameter(number: u32, cast: Option<Oid>) -> Option<Value> {
    Some(Value::Parameter {
        index: u16::try_from(number.checked_sub(1)?).ok()?,
        cast,
    })
}

/// The type of a cast that leaves every value of the key's type as it is.
fn cast_to(to: &CastType, key_type: KeyType) -> Option<Oid> {
    if to.modified || to.array {
        return None;
    }
    let oid = match to.name.as_deref()? {
        "int2" => types::INT2,
        "int4" => types::INT4,
        "int8" => types::INT8,
        "text" => types::TEXT,
        "varchar" => types::VARCHAR,
        "uuid" => types::UUID,
        "date" => types::DATE,
        "timestamptz" => types::TIMESTAMPTZ,
        "numeric" => types::NUMERIC,
        "bytea" => types::BYTEA,
        _ => return None,
    };
    let exact = match key_type {
        KeyType::Bigint => matches!(oid, types::INT2 | types::INT4 | types::INT8),
        KeyType::Text => matches!(oid, types::TEXT | types::VARCHAR),
        KeyType::Uuid => oid == types::UUID,
        KeyType::Date => oid == types::DATE,
        KeyType::Timestamptz => oid == types::TIMESTAMPTZ,
        KeyType::Numeric => matches!(
            oid,
            types::INT2 | types::INT4 | types::INT8 | types::NUMERIC
        ),
        KeyType::Bytea => oid == types::BYTEA,
    };
    exact.then_some(oid)
}

/// As [`cast_to`], for arrays.
pub(super) fn array_cast(to: &CastType, key_type: KeyType) -> Option<Oid> {
    let element = CastType {
        array: false,
        ..to.clone()
    };
    if !to.array {
        return None;
    }
    Some(match cast_to(&element, key_type)? {
        types::INT2 => types::INT2_ARRAY,
        types::INT4 => types::INT4_ARRAY,
        types::INT8 => types::INT8_ARRAY,
        types::TEXT => types::TEXT_ARRAY,
        types::VARCHAR => types::VARCHAR_ARRAY,
        types::UUID => types::UUID_ARRAY,
        types::DATE => types::DATE_ARRAY,
        types::TIMESTAMPTZ => types::TIMESTAMPTZ_ARRAY,
        types::NUMERIC => types::NUMERIC_ARRAY,
        _ => types::BYTEA_ARRAY,
    })
}
