//! Hot path: the bucket of a key. One hash, no allocation.
//!
//! `postgres` is what hash partitioning computes: the type's extended hash function with a fixed seed, combined into
//! an empty row hash. Text is hashed by its bytes, which is right for deterministic collations and columns of type
//! text and varchar; `bpchar` is hashed without trailing blanks, which the reader of the key must have removed.
//!
//! `xxh3` is XXH3 (64 bit, seed 0) of these bytes: bigint and timestamptz 8 and date 4 bytes little-endian; text,
//! bytea and uuid their bytes; numeric one byte of sign (0 positive or zero, 1 negative, 2 NaN, 3 Infinity,
//! 4 -Infinity), then for finite numbers the weight and each base-10000 digit as 2 bytes little-endian.

use super::{
    key::{Key, KeyType},
    numeric::Numeric,
};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// The seed of hash partitioning (`HASH_PARTITION_SEED`).
const PARTITION_SEED: u64 = 0x7A5B_2236_7996_DCFD;
/// What combining a hash into an empty row hash adds (`hash_combine64`).
const COMBINE: u64 = 0x49A0_F4DD_15E5_A8E3;
/// Where the mixing of lookup3 starts, before the length is added.
const LOOKUP3_START: u32 = 0x9E37_79B9 + 3_923_095;

/// Which hash function a hash group uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashFunction {
    /// The remainder that `PARTITION BY HASH` computes, so that SQL on any shard computes the same.
    Postgres,
    /// XXH3 (64 bit, seed 0) of the key's canonical encoding.
    Xxh3,
}

/// The bucket of a key; `buckets` is a power of two.
#[must_use]
pub fn bucket(function: HashFunction, buckets: u32, key: &Key) -> u32 {
    let hash = match function {
        HashFunction::Postgres => extended_hash(key, PARTITION_SEED).wrapping_add(COMBINE),
        HashFunction::Xxh3 => canonical_hash(key),
    };
    // The low bits: `buckets` is a power of two.
    hash as u32 & buckets.saturating_sub(1)
}

/// SQL that computes the `postgres` bucket of a column (given as SQL text, quoted already) on any server from
/// version 14 on; `None` where no SQL-callable function computes it before version 18.
#[must_use]
pub fn sql_bucket_expression(column: &str, key_type: KeyType, buckets: u32) -> Option<String> {
    let seed = PARTITION_SEED.cast_signed();
    let hash = match key_type {
        KeyType::Bigint => format!("hashint8extended({column}, {seed})"),
        KeyType::Text => format!("hashtextextended({column}, {seed})"),
        KeyType::Uuid => format!("uuid_hash_extended({column}, {seed})"),
        KeyType::Numeric => format!("hash_numeric_extended({column}, {seed})"),
        KeyType::Date => {
            let days = format!(
                "CASE {column} WHEN 'infinity' THEN 2147483647 WHEN '-infinity' THEN -2147483648 \
                 ELSE {column} - date '2000-01-01' END"
            );
            format!("hashint4extended({days}, {seed})")
        }
        KeyType::Timestamptz => {
            format!("timestamp_hash_extended({column} AT TIME ZONE 'UTC', {seed})")
        }
        KeyType::Bytea => return None,
    };
    let mask = buckets.saturating_sub(1);
    let combine = COMBINE & u64::from(mask);
    Some(format!("((({hash} & {mask}) + {combine}) & {mask})"))
}

/// The type's extended hash function, as the default hash operator class has it.
fn extended_hash(key: &Key, seed: u64) -> u64 {
    match key {
        Key::Bigint(value) | Key::Timestamptz(value) => {
            let (low, high) = (*value as u32, (*value >> 32) as u32);
            // Folded so that equal values of int2, int4 and int8 hash the same.
            hash_word(low ^ if *value >= 0 { high } else { !high }, seed)
        }
        Key::Date(days) => hash_word(days.cast_unsigned(), seed),
        Key::Text(bytes) | Key::Bytea(bytes) => hash_bytes(bytes, seed),
        Key::Uuid(bytes) => hash_bytes(bytes, seed),
        Key::Numeric(Numeric::NaN | Numeric::Infinity | Numeric::NegativeInfinity) => seed,
        Key::Numeric(Numeric::Finite(number)) => {
            if number.digits().is_empty() {
                return seed.wrapping_sub(1);
            }
            // The sign takes no part; the weight does, as a signed number.
            hash_bytes(&little_endian(number.digits()), seed)
                ^ i64::from(number.weight()).cast_unsigned()
        }
    }
}

fn canonical_hash(key: &Key) -> u64 {
    match key {
        Key::Bigint(value) | Key::Timestamptz(value) => xxh3_64(&value.to_le_bytes()),
        Key::Date(days) => xxh3_64(&days.to_le_bytes()),
        Key::Text(bytes) | Key::Bytea(bytes) => xxh3_64(bytes),
        Key::Uuid(bytes) => xxh3_64(bytes),
        Key::Numeric(Numeric::NaN) => xxh3_64(&[2]),
        Key::Numeric(Numeric::Infinity) => xxh3_64(&[3]),
        Key::Numeric(Numeric::NegativeInfinity) => xxh3_64(&[4]),
        Key::Numeric(Numeric::Finite(number)) => {
            let mut bytes: SmallVec<[u8; 64]> = SmallVec::new();
            bytes.push(u8::from(number.is_negative()));
            bytes.extend_from_slice(&number.weight().to_le_bytes());
            bytes.extend_from_slice(&little_endian(number.digits()));
            xxh3_64(&bytes)
        }
    }
}

/// Digits as a server on x86 or ARM stores them.
fn little_endian(digits: &[i16]) -> SmallVec<[u8; 64]> {
    digits
        .iter()
        .flat_map(|digit| digit.to_le_bytes())
        .collect()
}

/// Three words of state of Bob Jenkins's lookup3, as PostgreSQL's `hash_bytes_extended` runs it.
struct Lookup3 {
    a: u32,
    b: u32,
    c: u32,
}

impl Lookup3 {
    fn new(length: usize, seed: u64) -> Self {
        let start = LOOKUP3_START.wrapping_add(length as u32);
        let mut state = Self {
            a: start,
            b: start,
            c: start,
        };
        if seed != 0 {
            state.a = state.a.wrapping_add((seed >> 32) as u32);
            state.b = state.b.wrapping_add(seed as u32);
            state.mix();
        }
        state
    }

    fn add(&mut self, a: u32, b: u32, c: u32) {
        self.a = self.a.wrapping_add(a);
        self.b = self.b.wrapping_add(b);
        self.c = self.c.wrapping_add(c);
    }

    fn mix(&mut self) {
        let Self { a, b, c } = self;
        mix_step(a, c, b, 4);
        mix_step(b, a, c, 6);
        mix_step(c, b, a, 8);
        mix_step(a, c, b, 16);
        mix_step(b, a, c, 19);
        mix_step(c, b, a, 4);
    }

    fn finish(mut self) -> u64 {
        let Self { a, b, c } = &mut self;
        final_step(c, *b, 14);
        final_step(a, *c, 11);
        final_step(b, *a, 25);
        final_step(c, *b, 16);
        final_step(a, *c, 4);
        final_step(b, *a, 14);
        final_step(c, *b, 24);
        u64::from(*b) << 32 | u64::from(*c)
    }
}

/// `x -= y; x ^= y rotated; y += z`.
fn mix_step(x: &mut u32, y: &mut u32, z: &u32, rotation: u32) {
    *x = x.wrapping_sub(*y) ^ y.rotate_left(rotation);
    *y = y.wrapping_add(*z);
}

/// `x ^= y; x -= y rotated`.
fn final_step(x: &mut u32, y: u32, rotation: u32) {
    *x = (*x ^ y).wrapping_sub(y.rotate_left(rotation));
}

fn hash_word(word: u32, seed: u64) -> u64 {
    let mut state = Lookup3::new(size_of::<u32>(), seed);
    state.add(word, 0, 0);
    state.finish()
}

fn hash_bytes(bytes: &[u8], seed: u64) -> u64 {
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte))
    };
    let mut state = Lookup3::new(bytes.len(), seed);
    let mut chunks = bytes.chunks_exact(12);
    for chunk in &mut chunks {
        state.add(word(&chunk[..4]), word(&chunk[4..8]), word(&chunk[8..]));
        state.mix();
    }
    let rest = chunks.remainder();
    let (first, rest) = rest.split_at(rest.len().min(4));
    let (second, third) = rest.split_at(rest.len().min(4));
    // The lowest byte of the third word stands for the length.
    state.add(word(first), word(second), word(third) << 8);
    state.finish()
}
