//! Parameters as applications send them, text or binary, and answers as the bytes that arrived.

use shardway::catalog::key::{Key, KeyType};
use std::error::Error;
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type, private::BytesMut};

type Failure = Box<dyn Error + Sync + Send>;

/// A parameter, as its text; sent in binary where this is easy and wanted.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) text: Option<String>,
    pub(crate) binary: bool,
}

impl Value {
    /// The binary form of the text as the type; `None`: it has none that we can make.
    fn encoded(&self, kind: &Type) -> Option<Vec<u8>> {
        let text = self.text.as_deref().filter(|_| self.binary)?;
        Some(match *kind {
            Type::INT2 => text.parse::<i16>().ok()?.to_be_bytes().to_vec(),
            Type::INT4 => text.parse::<i32>().ok()?.to_be_bytes().to_vec(),
            Type::INT8 => text.parse::<i64>().ok()?.to_be_bytes().to_vec(),
            Type::FLOAT8 => text.parse::<f64>().ok()?.to_be_bytes().to_vec(),
            Type::TEXT | Type::VARCHAR => text.as_bytes().to_vec(),
            Type::UUID => match KeyType::Uuid.from_text(text.as_bytes()).ok()? {
                Key::Uuid(bytes) => bytes.to_vec(),
                _ => return None,
            },
            Type::DATE => match KeyType::Date.from_text(text.as_bytes()).ok()? {
                Key::Date(days) => days.to_be_bytes().to_vec(),
                _ => return None,
            },
            Type::NUMERIC => numeric(text)?,
            _ => return None,
        })
    }
}

/// Small whole numbers, and the values that are none.
fn numeric(text: &str) -> Option<Vec<u8>> {
    let sign: u16 = match text {
        "NaN" => 0xC000,
        "Infinity" => 0xD000,
        "-Infinity" => 0xF000,
        _ => {
            let number = text.parse::<i16>().ok()?;
            let digit = number.unsigned_abs();
            let sign = if number < 0 { 0x4000 } else { 0 };
            return (digit < 10_000).then(|| {
                let words: &[u16] = if digit == 0 {
                    &[0, 0, sign, 0]
                } else {
                    &[1, 0, sign, 0, digit]
                };
                words.iter().flat_map(|word| word.to_be_bytes()).collect()
            });
        }
    };
    Some(
        [0, 0, sign, 0]
            .iter()
            .flat_map(|word: &u16| word.to_be_bytes())
            .collect(),
    )
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        let Some(text) = &self.text else {
            return Ok(IsNull::Yes);
        };
        match self.encoded(kind) {
            Some(bytes) => out.extend_from_slice(&bytes),
            None => out.extend_from_slice(text.as_bytes()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        self.to_sql(kind, out)
    }

    fn encode_format(&self, kind: &Type) -> Format {
        if self.encoded(kind).is_some() {
            Format::Binary
        } else {
            Format::Text
        }
    }
}

/// What arrived.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Raw(Option<Vec<u8>>);

impl Raw {
    /// Of a numeric: clears the number of digits to show (`dscale`, the fourth word), which is no part of its value.
    pub(crate) fn forget_scale(&mut self) {
        if let Some(scale) = self.0.as_mut().and_then(|bytes| bytes.get_mut(6..8)) {
            scale.fill(0);
        }
    }
}

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Failure> {
        Ok(Self(Some(bytes.to_vec())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Failure> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
