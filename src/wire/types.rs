//! Type OIDs that the proxy must know: those of shard keys and of its own replies. From `pg_type.dat`.

/// An object identifier of PostgreSQL's type catalog. Zero: not given, the server infers it.
pub type Oid = u32;

pub const BOOL: Oid = 16;
pub const BYTEA: Oid = 17;
pub const NAME: Oid = 19;
pub const INT8: Oid = 20;
pub const INT2: Oid = 21;
pub const INT4: Oid = 23;
pub const TEXT: Oid = 25;
pub const OID: Oid = 26;
pub const FLOAT4: Oid = 700;
pub const FLOAT8: Oid = 701;
pub const UNKNOWN: Oid = 705;
pub const BPCHAR: Oid = 1042;
pub const VARCHAR: Oid = 1043;
pub const DATE: Oid = 1082;
pub const TIME: Oid = 1083;
pub const TIMESTAMP: Oid = 1114;
pub const TIMESTAMPTZ: Oid = 1184;
pub const NUMERIC: Oid = 1700;
pub const UUID: Oid = 2950;
pub const BYTEA_ARRAY: Oid = 1001;
pub const INT2_ARRAY: Oid = 1005;
pub const INT4_ARRAY: Oid = 1007;
pub const TEXT_ARRAY: Oid = 1009;
pub const BPCHAR_ARRAY: Oid = 1014;
pub const VARCHAR_ARRAY: Oid = 1015;
pub const INT8_ARRAY: Oid = 1016;
pub const DATE_ARRAY: Oid = 1182;
pub const TIMESTAMPTZ_ARRAY: Oid = 1185;
pub const NUMERIC_ARRAY: Oid = 1231;
pub const UUID_ARRAY: Oid = 2951;

/// How a value is written on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Binary,
}
