//! The only source of randomness: the operating system's generator. Cancel keys, salts and nonces come from here.

/// Fills an array with bytes of the operating system's cryptographic generator.
///
/// # Panics
/// When the operating system has no entropy source: nothing that we hand out would be safe then.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "without entropy no key we hand out is safe"
)]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0_u8; N];
    getrandom::fill(&mut out).expect("the operating system has an entropy source");
    out
}
