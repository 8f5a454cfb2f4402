//! Why a statement is not routed: data only; `proxy/reply.rs` words it.

/// Why a statement is not routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unroutable {
    /// A feature that is not computed over several shards.
    Unsupported { feature: &'static str },
}
impl Unroutable { pub fn several_shards() -> Self { Self::Unsupported{feature:"x"} } }
