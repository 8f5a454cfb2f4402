//! TLS on both sides, with rustls on ring. Each version of the settings has a [`ServerTls`] of its own; the client's trust
//! follows an address's mode: `prefer` and `require` encrypt and trust anybody, `verify-full` checks chain and name.

use crate::{
    auth::certificate,
    config::settings::{ClientCertificates, Host, TlsIdentity, TlsMode},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier},
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{self, PemObject as _},
};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// The protocol's name in ALPN; since PostgreSQL 17 required where TLS begins without an SSLRequest.
pub const ALPN: &[u8] = b"postgresql";

/// What is wrong with certificates, keys or names.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("invalid PEM: {0}")]
    Pem(pem::Error),
    #[error("no certificate found")]
    NoCertificate,
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    #[error("clients' authorities: {0}")]
    Clients(#[from] VerifierBuilderError),
    #[error("the host cannot be named in a certificate")]
    Name,
}

/// TLS towards clients.
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// What channels are bound to: the hash of the certificate that is shown, when its signature names one.
    end_point: Option<Arc<[u8]>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls(..)")
    }
}

impl ServerTls {
    /// From a certificate chain and its key, and what clients' certificates are checked with.
    ///
    /// # Errors
    /// When they are not PEM, or do not belong together.
    pub fn new(
        identity: &TlsIdentity,
        clients: Option<&ClientCertificates>,
    ) -> Result<Self, TlsError> {
        let chain = certificates(&identity.cert_pem)?;
        let end_point = chain
            .first()
            .and_then(|shown| certificate::end_point(shown))
            .map(Arc::from);
        let key = PrivateKeyDer::from_pem_slice(&identity.key_pem).map_err(TlsError::Pem)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = match clients {
            Some(clients) => builder.with_client_cert_verifier(client_verifier(clients)?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            config: Arc::new(config),
            end_point,
        })
    }

    /// For one handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// What a client's proof may be bound to after a handshake.
    #[must_use]
    pub fn end_point(&self) -> Option<Arc<[u8]>> {
        self.end_point.clone()
    }
}

/// A certificate need not be shown, as in PostgreSQL; one that is shown must be valid, or the handshake fails.
fn client_verifier(
    clients: &ClientCertificates,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&clients.authority_pem)? {
        roots.add(authority)?;
    }
    let revoked = clients.revoked_pem.as_deref().unwrap_or_default();
    let revoked = CertificateRevocationListDer::pem_slice_iter(revoked)
        .collect::<Result<Vec<_>, _>>()
        .map_err(TlsError::Pem)?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated();
    if clients.revoked_pem.is_some() {
        builder = builder.with_crls(revoked);
    }
    Ok(builder.build()?)
}

/// The PEM of trusted authorities; `None`: the platform's.
type Roots = Option<Arc<Vec<u8>>>;

/// TLS towards backends. Configurations are kept, and with them what resumes sessions.
pub struct ClientTls {
    unverified: Arc<ClientConfig>,
    verified: Mutex<HashMap<Roots, Arc<ClientConfig>>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls(..)")
    }
}

impl ClientTls {
    /// Reads nothing yet: authorities are read when an address first asks for them.
    ///
    /// # Errors
    /// When the cryptography offers no version of TLS.
    pub fn new() -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAnybody(provider())))
            .with_no_client_auth();
        Ok(Self {
            unverified: finished(config),
            verified: Mutex::default(),
        })
    }

    /// The configuration for a mode.
    ///
    /// # Errors
    /// With `verify-full`, when there is no authority to trust.
    pub fn config(
        &self,
        mode: TlsMode,
        roots: Option<&Arc<Vec<u8>>>,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        match mode {
            TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
                Ok(Arc::clone(&self.unverified))
            }
            TlsMode::VerifyFull => {
                let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(config) = verified.get(&roots.cloned()) {
                    return Ok(Arc::clone(config));
                }
                let config = verifying(roots)?;
                verified.insert(roots.cloned(), Arc::clone(&config));
                Ok(config)
            }
        }
    }
}

/// The name that a server's certificate must bear.
///
/// # Errors
/// For what is no host name or address.
pub fn server_name(host: &Host) -> Result<ServerName<'static>, TlsError> {
    match host {
        Host::Tcp(name) => ServerName::try_from(name.clone()).map_err(|_invalid| TlsError::Name),
        Host::Unix(_) => Err(TlsError::Name),
    }
}

fn verifying(roots: Option<&Arc<Vec<u8>>>) -> Result<Arc<ClientConfig>, TlsError> {
    let certificates = match roots {
        Some(pem) => certificates(pem)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut store = RootCertStore::empty();
    let (added, _unusable) = store.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(TlsError::NoCertificate);
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(finished(config))
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(TlsError::Pem)?;
    if chain.is_empty() {
        Err(TlsError::NoCertificate)
    } else {
        Ok(chain)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Takes every certificate, as libpq's `prefer` and `require` do; but whoever shows one must hold its key. Else somebody in
/// the middle could show a copy of the server's own certificate, and a login that is bound to it would be his.
#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl TrustAnybody {
    /// A certificate that cannot be read is no better than none: it encrypts, and nothing is bound to it.
    fn checked(
        certificate: &CertificateDer<'_>,
        check: impl FnOnce() -> Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if is_readable(certificate) {
            check()
        } else {
            Ok(HandshakeSignatureValid::assertion())
        }
    }
}

/// Whether a certificate's key can be read, so that the signature of a handshake has been checked with it. Not so before
/// version 3 of X.509, which old tools still make.
pub(super) fn is_readable(certificate: &CertificateDer<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_ok()
}

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        Self::checked(certificate, || {
            verify_tls12_signature(message, certificate, signed, algorithms)
        })
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        Self::checked(certificate, || {
            verify_tls13_signature(message, certificate, signed, algorithms)
        })
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
