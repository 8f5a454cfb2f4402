//! Whose a cancel request is, when several proxies stand behind one address. Pure.
//!
//! A session's number says which proxy gave it: the proxy's own number in the seven bits below the sign, the session's in
//! the 24 bits below. A request that another proxy passes on has a key that is one byte longer than the keys that we give
//! out, so that it is never passed on twice, whatever the configurations of the proxies say of each other.

/// The highest number of a proxy.
pub const LAST_PROXY: u8 = 127;
/// Bits of a session's own number.
const SESSION_BITS: u32 = 24;
/// The lengths of the keys that we give out: of protocol 3.0 and 3.2.
const KEYS: [usize; 2] = [4, 32];
/// The byte at the end of a key that was passed on.
const MARK: u8 = 1;

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    /// A proxy that it was sent to first.
    Proxy,
}

/// The number of a session, made from random bits: positive, and of this proxy, when that has a number.
#[must_use]
pub fn number(proxy: Option<u8>, random: u32) -> u32 {
    match proxy {
        None => random >> 1,
        Some(proxy) => {
            let own = u32::from(proxy.min(LAST_PROXY)) << SESSION_BITS;
            own | random & ((1 << SESSION_BITS) - 1)
        }
    }
}

/// The number of the proxy that gave this number to a session, if proxies have numbers; 0: none has this one.
#[must_use]
pub fn proxy_of(number: u32) -> u8 {
    u8::try_from(number >> SESSION_BITS).unwrap_or(0)
}

/// The key as a session has it, and who sends the request.
#[must_use]
pub fn read(key: &[u8]) -> (&[u8], Sender) {
    match key.split_last() {
        Some((&MARK, own)) if KEYS.contains(&own.len()) => (own, Sender::Proxy),
        _ => (key, Sender::Client),
    }
}

/// The key as it is passed on; `None`: no session has such a key.
#[must_use]
pub fn passed_on(key: &[u8]) -> Option<Vec<u8>> {
    KEYS.contains(&key.len()).then(|| [key, &[MARK]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_its_proxy_and_is_positive() {
        for proxy in 1..=LAST_PROXY {
            for random in [0, 7, u32::MAX] {
                let number = number(Some(proxy), random);
                assert_eq!(proxy_of(number), proxy);
                assert!(i32::try_from(number).is_ok());
            }
        }
        assert_eq!(number(None, u32::MAX), 0x7fff_ffff);
        assert_eq!(proxy_of(u32::MAX), 255);
    }

    #[test]
    fn a_key_is_passed_on_once_and_comes_back_as_it_was() {
        for length in [4, 32] {
            let key = vec![MARK; length];
            assert_eq!(read(&key), (&key[..], Sender::Client));
            let once = passed_on(&key).unwrap();
            assert_eq!(read(&once), (&key[..], Sender::Proxy));
            assert_eq!(passed_on(&once), None);
        }
        for length in [0, 1, 3, 5, 31, 33, 256] {
            assert_eq!(passed_on(&vec![0; length]), None, "{length}");
            assert_eq!(read(&vec![0; length]).1, Sender::Client);
        }
    }
}
