//! Certificates that are shown by who does not have their key, and ones that cannot be read.

use super::*;
use rustls::{
    ServerConfig,
    crypto::ring::{self, sign::any_supported_type},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// TLS with this chain and this key, whether they belong together or not.
fn shows(chain: Vec<CertificateDer<'static>>, key_pem: &[u8]) -> ServerConfig {
    shows_by(chain, key_pem, &[&TLS12, &TLS13])
}

fn shows_by(
    chain: Vec<CertificateDer<'static>>,
    key_pem: &[u8],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ServerConfig {
    let key = PrivateKeyDer::from_pem_slice(key_pem).unwrap();
    let shown = CertifiedKey::new(chain, any_supported_type(&key).unwrap());
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)))
}

fn chain(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .unwrap()
}

/// The same certificate, if it were of X.509's first version.
fn of_version_1(der: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut der = der.to_vec();
    let version = [0xa0, 3, 2, 1, 2];
    let at = der.windows(5).position(|found| found == version).unwrap();
    der[at + 4] = 0;
    CertificateDer::from(der)
}

#[tokio::test]
async fn a_copy_of_the_servers_certificate_binds_nobody_to_who_has_no_key_for_it() {
    let certificates = testing::certificates();
    let server = server_with_methods(&certificates.identity);
    let own = testing::certificates().identity;
    for version in [&TLS12, &TLS13] {
        let copy = chain(&certificates.identity.cert_pem);
        let config = shows_by(copy, &own.key_pem, &[version]);
        let middle = middle_with(server.tcp("127.0.0.1", TlsMode::Require, None), config).await;
        for binding in [
            ChannelBinding::Require,
            ChannelBinding::Prefer,
            ChannelBinding::Disable,
        ] {
            let address = Address {
                channel_binding: binding,
                ..middle.clone()
            };
            let refused = enter(&address, "scrammed", Some("secret"))
                .await
                .unwrap_err();
            assert!(matches!(refused, ConnectError::Handshake(_)), "{refused}");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_encrypts_and_binds_nothing() {
    let certificates = testing::certificates();
    let server = server_with_methods(&certificates.identity);
    let old = chain(&certificates.identity.cert_pem)
        .iter()
        .map(of_version_1)
        .collect();
    let config = shows(old, &certificates.identity.key_pem);
    let address = middle_with(server.tcp("127.0.0.1", TlsMode::Require, None), config).await;
    enter(&address, "scrammed", Some("secret")).await.unwrap();
    let required = Address {
        channel_binding: ChannelBinding::Require,
        ..address
    };
    let refused = enter(&required, "scrammed", Some("secret"))
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("channel binding is required"),
        "{refused}"
    );
}
