//! The client's half of SCRAM-SHA-256, with a password or with keys that a client of ours has shown, bound to the TLS
//! channel or not.
//!
//! What must stay true: a proof made from keys is given only to a server that uses the same salt and iterations, and
//! a server that does not know the password is found out, with keys as well.

use super::{
    BINDING_TYPE, Key, MOST_ITERATIONS, ScramError, decode_key, mac, prepare, salted_password, xor,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize as _, Zeroizing};

/// What a client has shown when its proof held: enough to log in wherever the same verifier is kept, and as secret as
/// the password. Overwritten when dropped.
pub struct Keys {
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
    pub(super) client_key: Key,
    pub(super) server_key: Key,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        let same =
            self.client_key.ct_eq(&other.client_key) & self.server_key.ct_eq(&other.server_key);
        bool::from(same) && self.salt == other.salt && self.iterations == other.iterations
    }
}

impl Eq for Keys {}

impl Drop for Keys {
    fn drop(&mut self) {
        self.client_key.zeroize();
        self.server_key.zeroize();
    }
}

/// What a server is shown.
#[derive(Clone)]
pub enum Proof {
    Password(Arc<Zeroizing<String>>),
    Keys(Arc<Keys>),
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(..)")
    }
}

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Password(one), Self::Password(other)) => {
                one.as_bytes().ct_eq(other.as_bytes()).into()
            }
            (Self::Keys(one), Self::Keys(other)) => one == other,
            (Self::Password(_) | Self::Keys(_), _) => false,
        }
    }
}

impl Eq for Proof {}

impl Proof {
    /// Of a password.
    #[must_use]
    pub fn password(text: &str) -> Self {
        Self::Password(Arc::new(Zeroizing::new(text.to_owned())))
    }
}

/// Whether a login must be bound to the TLS channel that it goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChannelBinding {
    Disable,
    /// When the server offers it.
    Prefer,
    Require,
}

/// What the client says of channel binding (RFC 5802, section 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gs2 {
    /// `n`: it cannot.
    Cannot,
    /// `y`: it could, and believes that the server cannot; a server that can notices that somebody came between.
    Could,
    /// `p`: bound by this hash of the server's certificate ([`crate::auth::certificate::end_point`]).
    EndPoint(Vec<u8>),
}

impl Gs2 {
    fn header(&self) -> Vec<u8> {
        match self {
            Self::Cannot => b"n,,".to_vec(),
            Self::Could => b"y,,".to_vec(),
            Self::EndPoint(_) => format!("p={BINDING_TYPE},,").into_bytes(),
        }
    }

    /// The attribute `c`: the header, and what it is bound to.
    fn attribute(&self) -> String {
        let mut bytes = self.header();
        if let Self::EndPoint(hash) = self {
            bytes.extend_from_slice(hash);
        }
        STANDARD.encode(bytes)
    }
}

/// The client, waiting for server-first-message.
pub struct Client {
    proof: Proof,
    gs2: Gs2,
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
        Self::with(Proof::password(password), Gs2::Cannot, nonce)
    }

    /// As [`Self::begin`], with any proof and channel.
    #[must_use]
    pub fn with(proof: Proof, gs2: Gs2, nonce: [u8; 18]) -> (Self, Vec<u8>) {
        Self::with_nonce(proof, gs2, "", STANDARD.encode(nonce))
    }

    pub(super) fn with_nonce(proof: Proof, gs2: Gs2, user: &str, nonce: String) -> (Self, Vec<u8>) {
        let bare = format!("n={user},r={nonce}");
        let first = [gs2.header(), bare.clone().into_bytes()].concat();
        let client = Self {
            proof,
            gs2,
            nonce,
            bare,
        };
        (client, first)
    }

    /// Reads server-first-message; gives client-final-message.
    ///
    /// # Errors
    /// When the message is malformed, repeats our nonce alone, asks for too much work, or is of another verifier than
    /// the keys.
    pub fn handle_first(self, message: &[u8]) -> Result<(ClientFinal, Vec<u8>), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_not_text| ScramError::Malformed)?;
        if text.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let mut attributes = text.split(',');
        let mut attribute = |prefix| {
            attributes
                .next()
                .and_then(|found| found.strip_prefix(prefix))
                .ok_or(ScramError::Malformed)
        };
        let (nonce, salt, iterations) = (attribute("r=")?, attribute("s=")?, attribute("i=")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Nonce);
        }
        let salt = STANDARD
            .decode(salt)
            .map_err(|_not_base64| ScramError::Malformed)?;
        let iterations: u32 = iterations
            .parse()
            .map_err(|_not_a_number| ScramError::Malformed)?;
        let (client_key, server_key) = keys(&self.proof, &salt, iterations)?;
        let unproved = format!("c={},r={nonce}", self.gs2.attribute());
        let transcript = format!("{},{text},{unproved}", self.bare);
        let stored: Key = Sha256::digest(*client_key).into();
        let proof = xor(*client_key, mac(&stored, &[transcript.as_bytes()]));
        let signature = mac(&*server_key, &[transcript.as_bytes()]);
        Ok((
            ClientFinal { signature },
            format!("{unproved},p={}", STANDARD.encode(proof)).into_bytes(),
        ))
    }
}

/// The client's key and the server's.
fn keys(
    proof: &Proof,
    salt: &[u8],
    iterations: u32,
) -> Result<(Zeroizing<Key>, Zeroizing<Key>), ScramError> {
    let pair = match proof {
        Proof::Keys(keys) if keys.salt == salt && keys.iterations == iterations => {
            (keys.client_key, keys.server_key)
        }
        Proof::Keys(_) => return Err(ScramError::OtherVerifier),
        Proof::Password(_) if !(1..=MOST_ITERATIONS).contains(&iterations) => {
            return Err(ScramError::Iterations);
        }
        Proof::Password(password) => {
            let salted = salted_password(&prepare(password.as_bytes()), salt, iterations);
            (
                mac(&salted, &[b"Client Key"]),
                mac(&salted, &[b"Server Key"]),
            )
        }
    };
    Ok((Zeroizing::new(pair.0), Zeroizing::new(pair.1)))
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
        let signature = text
            .strip_prefix("v=")
            .and_then(|rest| rest.split(',').next())
            .ok_or(ScramError::Malformed)?;
        if bool::from(decode_key(signature)?.ct_eq(&self.signature)) {
            Ok(())
        } else {
            Err(ScramError::ServerSignature)
        }
    }
}
