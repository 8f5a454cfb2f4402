//! SCRAM-SHA-256 (RFC 5802, RFC 7677), both sides, as PostgreSQL speaks it: the user's name inside the exchange is
//! ignored; the server binds the channel by `tls-server-end-point` (RFC 5929). Pure: nonces and salts are arguments.
//! Keys are compared in constant time.

mod client;

pub use client::{ChannelBinding, Client, ClientFinal, Gs2, Keys, Proof};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use std::{borrow::Cow, sync::Arc};
use subtle::ConstantTimeEq;

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The one type of channel binding that PostgreSQL has.
const BINDING_TYPE: &str = "tls-server-end-point";
/// What PostgreSQL uses (`SCRAM_SHA_256_DEFAULT_ITERATIONS`).
pub const ITERATIONS: u32 = 4096;
/// The most that we compute for a server, or for a verifier: such numbers are not trusted with our processor.
pub const MOST_ITERATIONS: u32 = 1_000_000;
/// Bytes of a salt that we choose (`SCRAM_DEFAULT_SALT_LEN`).
const SALT: usize = 16;

type Key = [u8; 32];

/// Why an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message")]
    Malformed,
    #[error("the client's message does not fit the mechanism that it selected")]
    BindingMechanism,
    #[error("the client asks for an unknown type of channel binding")]
    BindingType,
    /// Somebody may have taken the mechanism from our offer.
    #[error("the client believes that channel binding was not offered")]
    Downgrade,
    /// Somebody may sit in the middle.
    #[error("the client is bound to another channel")]
    Binding,
    #[error("the client repeats another channel-binding attribute than it began with")]
    BindingAttribute,
    #[error("the client uses an authorization identity")]
    AuthorizationIdentity,
    #[error("an unsupported SCRAM extension is required")]
    Extension,
    #[error("the nonce does not match")]
    Nonce,
    #[error("the proof is wrong")]
    Proof,
    #[error("the server's iteration count is out of bounds")]
    Iterations,
    #[error("the server did not prove that it knows the password")]
    ServerSignature,
    #[error("the server ended the SCRAM exchange with an error")]
    ServerError,
    /// Keys were learned with another salt or number of iterations than the server uses.
    #[error("the server keeps another verifier for this role")]
    OtherVerifier,
}

/// What a server keeps to verify a password (RFC 5803's stored form).
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// Of a password, which is normalised first.
    #[must_use]
    pub fn of(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let salted = salted_password(&prepare(password), salt, iterations);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(mac(&salted, &[b"Client Key"])).into(),
            server_key: mac(&salted, &[b"Server Key"]),
        }
    }

    /// For a name that nobody has: looks like a verifier, always the same for a name, verifies nothing.
    #[must_use]
    pub fn mock(user: &[u8], secret: &Key) -> Self {
        Self {
            iterations: ITERATIONS,
            salt: salt_for(user, secret).to_vec(),
            stored_key: mac(secret, &[b"stored", user]),
            server_key: mac(secret, &[b"server", user]),
        }
    }

    /// Reads `SCRAM-SHA-256$iterations:salt$stored key:server key`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (head, keys) = text
            .strip_prefix(MECHANISM)?
            .strip_prefix('$')?
            .split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text: &str| -> Option<Key> { STANDARD.decode(text).ok()?.try_into().ok() };
        Some(Self {
            iterations: iterations.parse().ok().filter(|count| *count > 0)?,
            salt: STANDARD.decode(salt).ok()?,
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }

    /// The form that [`Self::parse`] reads.
    #[must_use]
    pub fn text(&self) -> String {
        let [salt, stored, server] = [&self.salt[..], &self.stored_key, &self.server_key]
            .map(|bytes| STANDARD.encode(bytes));
        format!("{MECHANISM}${}:{salt}${stored}:{server}", self.iterations)
    }

    /// Whether `given` is the password. Never of a verifier that asks for too much work: a role may store any number of
    /// iterations for itself, and whoever gives a password in its name makes us compute them.
    pub(super) fn is(&self, given: &[u8]) -> bool {
        if self.iterations > MOST_ITERATIONS {
            return false;
        }
        let other = Self::of(given, &self.salt, self.iterations);
        self.server_key.ct_eq(&other.server_key).into()
    }
}

/// A salt that is always the same for a name, so that names with and without an account look alike.
#[must_use]
pub fn salt_for(user: &[u8], secret: &Key) -> [u8; SALT] {
    let mut salt = [0; SALT];
    salt.copy_from_slice(&mac(secret, &[b"salt", user])[..SALT]);
    salt
}

/// What a client may bind its proof to, and whether it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// No TLS, or a certificate whose signature names no hash.
    NotOffered,
    /// Offered, and the client selected the mechanism without it.
    Declined,
    /// The client selected it: the hash of our certificate.
    Used(Arc<[u8]>),
}

/// The server, waiting for client-first-message.
pub struct ExpectFirst {
    verifier: Arc<Verifier>,
    nonce: String,
    binding: Binding,
}

/// The server, waiting for client-final-message.
pub struct ExpectFinal {
    verifier: Arc<Verifier>,
    /// The GS2 header that the client must repeat, and what it is bound to.
    bound: Vec<u8>,
    /// As [`ScramError`] tells when the client repeats another.
    unbound: ScramError,
    nonce: String,
    /// client-first-message-bare, comma, server-first-message.
    transcript: Vec<u8>,
}

impl ExpectFirst {
    /// `nonce`: random bytes of this exchange alone.
    #[must_use]
    pub fn new(verifier: Arc<Verifier>, nonce: [u8; 18], binding: Binding) -> Self {
        Self {
            verifier,
            nonce: STANDARD.encode(nonce),
            binding,
        }
    }

    /// Reads client-first-message; gives server-first-message.
    ///
    /// # Errors
    /// When it is malformed or asks for what is not offered.
    pub fn handle_first(self, message: &[u8]) -> Result<(Vec<u8>, ExpectFinal), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_not_text| ScramError::Malformed)?;
        let bare = after_gs2_header(text, &self.binding)?;
        let mut bound = message[..text.len() - bare.len()].to_vec();
        let mut unbound = ScramError::BindingAttribute;
        if let Binding::Used(certificate) = &self.binding {
            bound.extend_from_slice(certificate);
            unbound = ScramError::Binding;
        }
        if bare.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let mut attributes = bare.split(',');
        attributes
            .next()
            .and_then(|user| user.strip_prefix("n="))
            .ok_or(ScramError::Malformed)?;
        let theirs = attributes
            .next()
            .and_then(|nonce| nonce.strip_prefix("r="))
            .ok_or(ScramError::Malformed)?;
        if theirs.is_empty() || !theirs.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ScramError::Malformed);
        }
        let Self {
            verifier, nonce, ..
        } = self;
        let nonce = format!("{theirs}{nonce}");
        let reply = format!(
            "r={nonce},s={},i={}",
            STANDARD.encode(&verifier.salt),
            verifier.iterations
        );
        let transcript = format!("{bare},{reply}").into_bytes();
        Ok((
            reply.into_bytes(),
            ExpectFinal {
                verifier,
                bound,
                unbound,
                nonce,
                transcript,
            },
        ))
    }
}

/// What follows the GS2 header: `n` (no channel binding), `y` (the client could, and believes that we cannot), or
/// `p=` and the type of the binding.
fn after_gs2_header<'t>(text: &'t str, binding: &Binding) -> Result<&'t str, ScramError> {
    let (flag, rest) = text.split_once(',').ok_or(ScramError::Malformed)?;
    match (flag, binding) {
        ("n", Binding::NotOffered | Binding::Declined) | ("y", Binding::NotOffered) => {}
        ("y", Binding::Declined) => return Err(ScramError::Downgrade),
        ("n" | "y", Binding::Used(_)) => return Err(ScramError::BindingMechanism),
        (flag, binding) => {
            let kind = flag.strip_prefix("p=").ok_or(ScramError::Malformed)?;
            if !matches!(binding, Binding::Used(_)) {
                return Err(ScramError::BindingMechanism);
            }
            if kind != BINDING_TYPE {
                return Err(ScramError::BindingType);
            }
        }
    }
    if rest.starts_with("a=") {
        return Err(ScramError::AuthorizationIdentity);
    }
    rest.strip_prefix(',').ok_or(ScramError::Malformed)
}

impl ExpectFinal {
    /// Reads client-final-message; gives server-final-message when the proof holds, and the keys that it has shown.
    ///
    /// # Errors
    /// [`ScramError::Proof`] when it does not; others when the message is malformed.
    pub fn handle_final(self, message: &[u8]) -> Result<(Vec<u8>, Keys), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_not_text| ScramError::Malformed)?;
        let (unproved, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut attributes = unproved.split(',');
        let binding = attributes
            .next()
            .and_then(|binding| binding.strip_prefix("c="))
            .ok_or(ScramError::Malformed)?;
        if binding != STANDARD.encode(&self.bound) {
            return Err(self.unbound);
        }
        let nonce = attributes
            .next()
            .and_then(|nonce| nonce.strip_prefix("r="))
            .ok_or(ScramError::Malformed)?;
        if nonce != self.nonce {
            return Err(ScramError::Nonce);
        }
        let proof: Key = decode_key(proof)?;
        let transcript = [&self.transcript[..], b",", unproved.as_bytes()].concat();
        let signature = mac(&self.verifier.stored_key, &[&transcript]);
        let client_key = xor(proof, signature);
        let stored: Key = Sha256::digest(client_key).into();
        if !bool::from(stored.ct_eq(&self.verifier.stored_key)) {
            return Err(ScramError::Proof);
        }
        let reply = format!(
            "v={}",
            STANDARD.encode(mac(&self.verifier.server_key, &[&transcript]))
        );
        let Verifier {
            iterations,
            salt,
            server_key,
            ..
        } = &*self.verifier;
        let keys = Keys {
            salt: salt.clone(),
            iterations: *iterations,
            client_key,
            server_key: *server_key,
        };
        Ok((reply.into_bytes(), keys))
    }
}

/// SASLprep of a password. What is no UTF-8 or cannot be normalised is used as it is, as PostgreSQL does.
fn prepare(password: &[u8]) -> Cow<'_, [u8]> {
    if password.is_ascii() {
        return Cow::Borrowed(password);
    }
    match std::str::from_utf8(password).map(stringprep::saslprep) {
        Ok(Ok(text)) if !text.is_empty() => Cow::Owned(text.into_owned().into_bytes()),
        Ok(_) | Err(_) => Cow::Borrowed(password),
    }
}

/// PBKDF2 with HMAC-SHA-256 and one block (RFC 5802's `Hi`).
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let keyed = keyed(password);
    let mut block: Key = keyed
        .clone()
        .chain_update(salt)
        .chain_update([0, 0, 0, 1])
        .finalize()
        .into_bytes()
        .into();
    let mut sum = block;
    for _ in 1..iterations {
        block = keyed
            .clone()
            .chain_update(block)
            .finalize()
            .into_bytes()
            .into();
        sum = xor(sum, block);
    }
    sum
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut keyed = keyed(key);
    for part in parts {
        keyed.update(part);
    }
    keyed.finalize().into_bytes().into()
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

fn xor(left: Key, right: Key) -> Key {
    std::array::from_fn(|at| left[at] ^ right[at])
}

fn decode_key(text: &str) -> Result<Key, ScramError> {
    let bytes = STANDARD
        .decode(text)
        .map_err(|_not_base64| ScramError::Malformed)?;
    bytes
        .try_into()
        .map_err(|_other_length| ScramError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677, section 3.
    const PASSWORD: &str = "pencil";
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn server() -> ExpectFirst {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Arc::new(Verifier::of(PASSWORD.as_bytes(), &salt, 4096));
        ExpectFirst {
            verifier,
            nonce: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into(),
            binding: Binding::NotOffered,
        }
    }

    fn server_with(binding: Binding) -> ExpectFirst {
        ExpectFirst {
            binding,
            ..server()
        }
    }

    fn client() -> (Client, Vec<u8>) {
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        Client::with_nonce(Proof::password(PASSWORD), Gs2::Cannot, "user", nonce)
    }

    #[test]
    fn the_exchange_of_rfc_7677_is_reproduced_by_both_sides() {
        let (client, first) = client();
        assert_eq!(first, FIRST.as_bytes());
        let (reply, server) = server().handle_first(&first).unwrap();
        assert_eq!(reply, SERVER_FIRST.as_bytes());
        let (client, last) = client.handle_first(&reply).unwrap();
        assert_eq!(last, FINAL.as_bytes());
        let (reply, _) = server.handle_final(&last).unwrap();
        assert_eq!(reply, SERVER_FINAL.as_bytes());
        assert_eq!(client.handle_final(&reply), Ok(()));
    }

    #[test]
    fn a_client_that_could_bind_a_channel_may_go_without() {
        let first = FIRST.replacen('n', "y", 1);
        let (_, server) = server().handle_first(first.as_bytes()).unwrap();
        assert_eq!(
            server.handle_final(FINAL.as_bytes()),
            Err(ScramError::BindingAttribute),
            "header must be repeated"
        );
    }

    /// A client that binds itself to this hash, and the server's answer to its proof.
    fn bound(header: &str, theirs: &[u8], ours: &[u8]) -> Result<Vec<u8>, ScramError> {
        let (client, first) = client();
        let first = String::from_utf8(first).unwrap().replacen("n,,", header, 1);
        let (reply, server) =
            server_with(Binding::Used(ours.into())).handle_first(first.as_bytes())?;
        let (_, last) = client.handle_first(&reply).unwrap();
        let last = String::from_utf8(last).unwrap();
        let attribute = STANDARD.encode([header.as_bytes(), theirs].concat());
        let (unproved, _) = last.split_once(",p=").unwrap();
        let unproved = unproved.replacen("biws", &attribute, 1);
        // As a client computes it: the proof covers what it is bound to.
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let client_key = mac(
            &salted_password(PASSWORD.as_bytes(), &salt, 4096),
            &[b"Client Key"],
        );
        let bare = &first[header.len()..];
        let transcript = format!("{bare},{},{unproved}", String::from_utf8(reply).unwrap());
        let stored: Key = Sha256::digest(client_key).into();
        let proof = STANDARD.encode(xor(client_key, mac(&stored, &[transcript.as_bytes()])));
        let last = format!("{unproved},p={proof}");
        server.handle_final(last.as_bytes()).map(|(reply, _)| reply)
    }

    #[test]
    fn a_bound_client_enters_through_our_own_certificate_only() {
        let header = "p=tls-server-end-point,,";
        bound(header, b"our hash", b"our hash").unwrap();
        for (header, theirs, expected) in [
            (header, &b"another"[..], ScramError::Binding),
            (header, b"", ScramError::Binding),
            ("p=tls-unique,,", b"our hash", ScramError::BindingType),
            ("p=,,", b"our hash", ScramError::BindingType),
            ("n,,", b"our hash", ScramError::BindingMechanism),
            ("y,,", b"our hash", ScramError::BindingMechanism),
        ] {
            assert_eq!(
                bound(header, theirs, b"our hash"),
                Err(expected),
                "{header}"
            );
        }
    }

    #[test]
    fn a_client_that_was_told_of_no_channel_binding_notices_nothing_but_we_do() {
        let first = |flag| FIRST.replacen('n', flag, 1);
        let outcome = |flag| {
            let server = server_with(Binding::Declined);
            server.handle_first(first(flag).as_bytes()).map(|_| ())
        };
        assert_eq!(outcome("y"), Err(ScramError::Downgrade));
        assert_eq!(outcome("n"), Ok(()));
        assert_eq!(
            outcome("p=tls-server-end-point"),
            Err(ScramError::BindingMechanism)
        );
    }

    #[test]
    fn client_first_messages_that_ask_for_more_are_refused() {
        for (message, expected) in [
            ("", ScramError::Malformed),
            ("x,,n=,r=a", ScramError::Malformed),
            (
                "p=tls-server-end-point,,n=,r=a",
                ScramError::BindingMechanism,
            ),
            ("n,a=other,n=,r=a", ScramError::AuthorizationIdentity),
            ("n,,m=x,n=,r=a", ScramError::Extension),
            ("n,,n=", ScramError::Malformed),
            ("n,,n=,r=", ScramError::Malformed),
            ("n,,n=,r=\u{e9}", ScramError::Malformed),
            ("n,,r=a,n=", ScramError::Malformed),
        ] {
            assert_eq!(
                server().handle_first(message.as_bytes()).map(|_| ()),
                Err(expected),
                "{message}"
            );
        }
    }

    #[test]
    fn client_final_messages_that_do_not_fit_are_refused() {
        for (message, expected) in [
            (FINAL.replace("p=dH", "p=dG"), ScramError::Proof),
            (FINAL.replace("k0,p", "k1,p"), ScramError::Nonce),
            (FINAL.replace("biws", "eSws"), ScramError::BindingAttribute),
            (FINAL.replace("VQ=", "VQ"), ScramError::Malformed),
            (FINAL.replace(",p=", ",q="), ScramError::Malformed),
            (FINAL.replace("p=dHzb", "p="), ScramError::Malformed),
        ] {
            let (_, server) = server().handle_first(FIRST.as_bytes()).unwrap();
            assert_eq!(
                server.handle_final(message.as_bytes()),
                Err(expected),
                "{message}"
            );
        }
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_found_out() {
        for (message, expected) in [
            (SERVER_FIRST.replace("rOpr", "rOpq"), ScramError::Nonce),
            (
                "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".into(),
                ScramError::Nonce,
            ),
            (
                SERVER_FIRST.replace("i=4096", "i=0"),
                ScramError::Iterations,
            ),
            (
                SERVER_FIRST.replace("i=4096", "i=4294967295"),
                ScramError::Iterations,
            ),
            (
                SERVER_FIRST.replace("i=4096", "i=-1"),
                ScramError::Malformed,
            ),
            (SERVER_FIRST.replace(",i=4096", ""), ScramError::Malformed),
            (format!("m=x,{SERVER_FIRST}"), ScramError::Extension),
        ] {
            assert_eq!(
                client().0.handle_first(message.as_bytes()).map(|_| ()),
                Err(expected),
                "{message}"
            );
        }
        for (message, expected) in [
            (
                SERVER_FINAL.replace("v=6", "v=5"),
                ScramError::ServerSignature,
            ),
            ("e=other-error".into(), ScramError::ServerError),
            ("v=".into(), ScramError::Malformed),
            ("x".into(), ScramError::Malformed),
        ] {
            let (last, _) = client().0.handle_first(SERVER_FIRST.as_bytes()).unwrap();
            assert_eq!(
                last.handle_final(message.as_bytes()),
                Err(expected),
                "{message}"
            );
        }
    }

    /// The exchange with a server that keeps this verifier.
    fn exchange(proof: Proof, verifier: Verifier) -> Result<Keys, ScramError> {
        let (client, first) = Client::with(proof, Gs2::Cannot, [3; 18]);
        let server = ExpectFirst::new(Arc::new(verifier), [4; 18], Binding::NotOffered);
        let (reply, server) = server.handle_first(&first)?;
        let (client, last) = client.handle_first(&reply)?;
        let (reply, keys) = server.handle_final(&last)?;
        client.handle_final(&reply)?;
        Ok(keys)
    }

    #[test]
    fn keys_that_a_client_has_shown_log_in_where_the_same_verifier_is_kept_and_nowhere_else() {
        let verifier = |password: &str, salt: &[u8], iterations| {
            Verifier::of(password.as_bytes(), salt, iterations)
        };
        let keys = || {
            let shown = exchange(Proof::password(PASSWORD), verifier(PASSWORD, b"salt", 4096));
            Proof::Keys(Arc::new(shown.unwrap()))
        };
        assert!(exchange(keys(), verifier(PASSWORD, b"salt", 4096)).is_ok());
        for (other, expected) in [
            (
                verifier(PASSWORD, b"pepper", 4096),
                ScramError::OtherVerifier,
            ),
            (verifier(PASSWORD, b"salt", 4097), ScramError::OtherVerifier),
            (verifier("another", b"salt", 4096), ScramError::Proof),
        ] {
            assert_eq!(exchange(keys(), other), Err(expected));
        }
        assert_eq!(format!("{:?}", keys()), "Proof(..)");
    }

    #[test]
    fn a_server_that_only_saw_the_stored_key_is_found_out_by_keys_too() {
        let verifier = Verifier::of(PASSWORD.as_bytes(), b"salt", 4096);
        let shown = exchange(Proof::password(PASSWORD), verifier.clone()).unwrap();
        let impostor = Verifier {
            server_key: [0; 32],
            ..verifier
        };
        assert_eq!(
            exchange(Proof::Keys(Arc::new(shown)), impostor),
            Err(ScramError::ServerSignature)
        );
    }

    #[test]
    fn a_stored_verifier_is_read_as_postgresql_writes_it() {
        let verifier = Verifier::of(PASSWORD.as_bytes(), b"0123456789abcdef", 4096);
        assert!(Verifier::parse(&verifier.text()) == Some(verifier));
        for text in [
            "",
            "secret",
            "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA",
            "SCRAM-SHA-256$0:AAAA$x:y",
            "SCRAM-SHA-256$",
        ] {
            assert!(Verifier::parse(text).is_none(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_message_of_a_stranger_lets_in_or_panics(
            first in "[nyp]?,?(a=)?,?(n=)?.{0,3},?(r=)?.{0,8}",
            last in "(c=biws)?,?(r=)?.{0,8}(,p=)?.{0,8}",
        ) {
            if let Ok((_, server)) = server().handle_first(first.as_bytes()) {
                proptest::prop_assert!(server.handle_final(last.as_bytes()).is_err());
            }
            let (client, _) = Client::begin(PASSWORD, [0; 18]);
            proptest::prop_assert!(client.handle_first(last.as_bytes()).is_err());
        }
    }
}
