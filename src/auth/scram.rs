//! SCRAM-SHA-256 (RFC 5802, RFC 7677) without channel binding, both sides, as PostgreSQL speaks it: the user's name
//! inside the exchange is ignored. Pure: nonces and salts are arguments. Keys are compared in constant time.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use std::{borrow::Cow, sync::Arc};
use subtle::ConstantTimeEq;

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// What PostgreSQL uses (`SCRAM_SHA_256_DEFAULT_ITERATIONS`).
pub const ITERATIONS: u32 = 4096;
/// The most that we compute for a server: its number is not trusted with our processor.
pub const MOST_ITERATIONS: u32 = 1_000_000;
/// Bytes of a salt that we choose (`SCRAM_DEFAULT_SALT_LEN`).
const SALT: usize = 16;

type Key = [u8; 32];

/// Why an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message")]
    Malformed,
    #[error("the client asks for channel binding, which was not offered")]
    ChannelBinding,
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
        let (head, keys) = text.strip_prefix(MECHANISM)?.strip_prefix('$')?.split_once('$')?;
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
        let [salt, stored, server] =
            [&self.salt[..], &self.stored_key, &self.server_key].map(|bytes| STANDARD.encode(bytes));
        format!("{MECHANISM}${}:{salt}${stored}:{server}", self.iterations)
    }

    /// Whether `given` is the password.
    pub(super) fn is(&self, given: &[u8]) -> bool {
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

/// The server, waiting for client-first-message.
pub struct ExpectFirst {
    verifier: Arc<Verifier>,
    nonce: String,
}

/// The server, waiting for client-final-message.
pub struct ExpectFinal {
    verifier: Arc<Verifier>,
    gs2_header: Vec<u8>,
    nonce: String,
    /// client-first-message-bare, comma, server-first-message.
    transcript: Vec<u8>,
}

impl ExpectFirst {
    /// `nonce`: random bytes of this exchange alone.
    #[must_use]
    pub fn new(verifier: Arc<Verifier>, nonce: [u8; 18]) -> Self {
        Self { verifier, nonce: STANDARD.encode(nonce) }
    }

    /// Reads client-first-message; gives server-first-message.
    ///
    /// # Errors
    /// When it is malformed or asks for what is not offered.
    pub fn handle_first(self, message: &[u8]) -> Result<(Vec<u8>, ExpectFinal), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_not_text| ScramError::Malformed)?;
        let bare = after_gs2_header(text)?;
        let gs2_header = message[..text.len() - bare.len()].to_vec();
        if bare.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let mut attributes = bare.split(',');
        attributes.next().and_then(|user| user.strip_prefix("n=")).ok_or(ScramError::Malformed)?;
        let theirs = attributes.next().and_then(|nonce| nonce.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if theirs.is_empty() || !theirs.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ScramError::Malformed);
        }
        let Self { verifier, nonce } = self;
        let nonce = format!("{theirs}{nonce}");
        let reply = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let transcript = format!("{bare},{reply}").into_bytes();
        Ok((reply.into_bytes(), ExpectFinal { verifier, gs2_header, nonce, transcript }))
    }
}

/// What follows the GS2 header: `n` (no channel binding) or `y` (the client could, we do not offer it).
fn after_gs2_header(text: &str) -> Result<&str, ScramError> {
    let rest = match text.as_bytes().first() {
        Some(b'n' | b'y') => text[1..].strip_prefix(',').ok_or(ScramError::Malformed)?,
        Some(b'p') => return Err(ScramError::ChannelBinding),
        _ => return Err(ScramError::Malformed),
    };
    if rest.starts_with("a=") {
        return Err(ScramError::AuthorizationIdentity);
    }
    rest.strip_prefix(',').ok_or(ScramError::Malformed)
}

impl ExpectFinal {
    /// Reads client-final-message; gives server-final-message when the proof holds.
    ///
    /// # Errors
    /// [`ScramError::Proof`] when it does not; others when the message is malformed.
    pub fn handle_final(self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let text = std::str::from_utf8(message).map_err(|_not_text| ScramError::Malformed)?;
        let (unproved, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut attributes = unproved.split(',');
        let binding = attributes.next().and_then(|binding| binding.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        if binding != STANDARD.encode(&self.gs2_header) {
            return Err(ScramError::ChannelBinding);
        }
        let nonce = attributes.next().and_then(|nonce| nonce.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
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
        Ok(format!("v={}", STANDARD.encode(mac(&self.verifier.server_key, &[&transcript]))).into_bytes())
    }
}

/// The client, waiting for server-first-message.
pub struct Client {
    password: Vec<u8>,
    nonce: String,
    /// client-first-message-bare.
    bare: String,
}

/// The client, waiting for server-final-message.
pub struct ClientFinal {
    signature: Key,
}

impl Client {
    /// Begins with random bytes of this exchange alone; gives client-first-message.
    #[must_use]
    pub fn begin(password: &str, nonce: [u8; 18]) -> (Self, Vec<u8>) {
        Self::with_nonce(password, "", STANDARD.encode(nonce))
    }

    fn with_nonce(password: &str, user: &str, nonce: String) -> (Self, Vec<u8>) {
        let bare = format!("n={user},r={nonce}");
        let first = format!("n,,{bare}").into_bytes();
        (Self { password: prepare(password.as_bytes()).into_owned(), nonce, bare }, first)
    }

    /// Reads server-first-message; gives client-final-message.
    ///
    /// # Errors
    /// When the message is malformed, repeats our nonce alone, or asks for too much work.
    pub fn handle_first(self, message: &[u8]) -> Result<(ClientFinal, Vec<u8>), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_not_text| ScramError::Malformed)?;
        if text.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let mut attributes = text.split(',');
        let mut attribute = |prefix| {
            attributes.next().and_then(|found| found.strip_prefix(prefix)).ok_or(ScramError::Malformed)
        };
        let (nonce, salt, iterations) = (attribute("r=")?, attribute("s=")?, attribute("i=")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Nonce);
        }
        let salt = STANDARD.decode(salt).map_err(|_not_base64| ScramError::Malformed)?;
        let iterations: u32 = iterations.parse().map_err(|_not_a_number| ScramError::Malformed)?;
        if !(1..=MOST_ITERATIONS).contains(&iterations) {
            return Err(ScramError::Iterations);
        }
        let salted = salted_password(&self.password, &salt, iterations);
        let client_key = mac(&salted, &[b"Client Key"]);
        let unproved = format!("c=biws,r={nonce}");
        let transcript = format!("{},{text},{unproved}", self.bare);
        let stored: Key = Sha256::digest(client_key).into();
        let proof = xor(client_key, mac(&stored, &[transcript.as_bytes()]));
        let signature = mac(&mac(&salted, &[b"Server Key"]), &[transcript.as_bytes()]);
        Ok((ClientFinal { signature }, format!("{unproved},p={}", STANDARD.encode(proof)).into_bytes()))
    }
}

impl ClientFinal {
    /// Reads server-final-message: the server must know the password too.
    ///
    /// # Errors
    /// When it reports an error, is malformed, or is not signed with the password.
    pub fn handle_final(self, message: &[u8]) -> Result<(), ScramError> {
        if message.starts_with(b"e=") {
            return Err(ScramError::ServerError);
        }
        let text = std::str::from_utf8(message).map_err(|_not_text| ScramError::Malformed)?;
        let signature = text.strip_prefix("v=").and_then(|rest| rest.split(',').next()).ok_or(ScramError::Malformed)?;
        if bool::from(decode_key(signature)?.ct_eq(&self.signature)) { Ok(()) } else { Err(ScramError::ServerSignature) }
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
    let mut block: Key = keyed.clone().chain_update(salt).chain_update([0, 0, 0, 1]).finalize().into_bytes().into();
    let mut sum = block;
    for _ in 1..iterations {
        block = keyed.clone().chain_update(block).finalize().into_bytes().into();
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
    let bytes = STANDARD.decode(text).map_err(|_not_base64| ScramError::Malformed)?;
    bytes.try_into().map_err(|_other_length| ScramError::Malformed)
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
        ExpectFirst { verifier, nonce: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into() }
    }

    #[test]
    fn the_exchange_of_rfc_7677_is_reproduced_by_both_sides() {
        let (client, first) = Client::with_nonce(PASSWORD, "user", "rOprNGfwEbeRWgbNEkqO".into());
        assert_eq!(first, FIRST.as_bytes());
        let (reply, server) = server().handle_first(&first).unwrap();
        assert_eq!(reply, SERVER_FIRST.as_bytes());
        let (client, last) = client.handle_first(&reply).unwrap();
        assert_eq!(last, FINAL.as_bytes());
        let reply = server.handle_final(&last).unwrap();
        assert_eq!(reply, SERVER_FINAL.as_bytes());
        assert_eq!(client.handle_final(&reply), Ok(()));
    }

    #[test]
    fn a_client_that_could_bind_a_channel_may_go_without() {
        let first = FIRST.replacen('n', "y", 1);
        let (_, server) = server().handle_first(first.as_bytes()).unwrap();
        assert_eq!(server.handle_final(FINAL.as_bytes()), Err(ScramError::ChannelBinding), "header must be repeated");
    }

    #[test]
    fn client_first_messages_that_ask_for_more_are_refused() {
        for (message, expected) in [
            ("", ScramError::Malformed),
            ("x,,n=,r=a", ScramError::Malformed),
            ("p=tls-server-end-point,,n=,r=a", ScramError::ChannelBinding),
            ("n,a=other,n=,r=a", ScramError::AuthorizationIdentity),
            ("n,,m=x,n=,r=a", ScramError::Extension),
            ("n,,n=", ScramError::Malformed),
            ("n,,n=,r=", ScramError::Malformed),
            ("n,,n=,r=\u{e9}", ScramError::Malformed),
            ("n,,r=a,n=", ScramError::Malformed),
        ] {
            assert_eq!(server().handle_first(message.as_bytes()).map(|_| ()), Err(expected), "{message}");
        }
    }

    #[test]
    fn client_final_messages_that_do_not_fit_are_refused() {
        for (message, expected) in [
            (FINAL.replace("p=dH", "p=dG"), ScramError::Proof),
            (FINAL.replace("k0,p", "k1,p"), ScramError::Nonce),
            (FINAL.replace("biws", "eSws"), ScramError::ChannelBinding),
            (FINAL.replace("VQ=", "VQ"), ScramError::Malformed),
            (FINAL.replace(",p=", ",q="), ScramError::Malformed),
            (FINAL.replace("p=dHzb", "p="), ScramError::Malformed),
        ] {
            let (_, server) = server().handle_first(FIRST.as_bytes()).unwrap();
            assert_eq!(server.handle_final(message.as_bytes()), Err(expected), "{message}");
        }
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_found_out() {
        let client = || Client::with_nonce(PASSWORD, "user", "rOprNGfwEbeRWgbNEkqO".into()).0;
        for (message, expected) in [
            (SERVER_FIRST.replace("rOpr", "rOpq"), ScramError::Nonce),
            ("r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".into(), ScramError::Nonce),
            (SERVER_FIRST.replace("i=4096", "i=0"), ScramError::Iterations),
            (SERVER_FIRST.replace("i=4096", "i=4294967295"), ScramError::Iterations),
            (SERVER_FIRST.replace("i=4096", "i=-1"), ScramError::Malformed),
            (SERVER_FIRST.replace(",i=4096", ""), ScramError::Malformed),
            (format!("m=x,{SERVER_FIRST}"), ScramError::Extension),
        ] {
            assert_eq!(client().handle_first(message.as_bytes()).map(|_| ()), Err(expected), "{message}");
        }
        for (message, expected) in [
            (SERVER_FINAL.replace("v=6", "v=5"), ScramError::ServerSignature),
            ("e=other-error".into(), ScramError::ServerError),
            ("v=".into(), ScramError::Malformed),
            ("x".into(), ScramError::Malformed),
        ] {
            let (last, _) = client().handle_first(SERVER_FIRST.as_bytes()).unwrap();
            assert_eq!(last.handle_final(message.as_bytes()), Err(expected), "{message}");
        }
    }

    #[test]
    fn a_stored_verifier_is_read_as_postgresql_writes_it() {
        let verifier = Verifier::of(PASSWORD.as_bytes(), b"0123456789abcdef", 4096);
        assert!(Verifier::parse(&verifier.text()) == Some(verifier));
        for text in ["", "secret", "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "SCRAM-SHA-256$0:AAAA$x:y", "SCRAM-SHA-256$"] {
            assert!(Verifier::parse(text).is_none(), "{text}");
        }
    }
}
