//! What binds a login to its TLS channel: `tls-server-end-point` of RFC 5929, a hash of the server's certificate made with
//! the hash function of the certificate's own signature. Pure; reads no more of a certificate than that one algorithm.

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

/// The type's name in SCRAM's GS2 header.
pub const TYPE: &str = "tls-server-end-point";

const SEQUENCE: u8 = 0x30;
const OBJECT: u8 = 0x06;
const HASH_OF_PSS: u8 = 0xa0;

// 1.2.840.113549.1.1: the last number says which.
const PKCS1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
// 1.2.840.10045.4
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
// 2.16.840.1.101.3.4.2
const SHA2: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
// 1.3.14.3.2.26
const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];

/// A hash function. MD5 and SHA-1 count as SHA-256 (RFC 5929, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// The hash of a certificate in DER; none when it is malformed or its signature has no one hash function, as with
/// Ed25519: nothing can be bound to it, by PostgreSQL either.
#[must_use]
pub fn of(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature }` (RFC 5280, section 4.1).
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (fields, _) = read(certificate, SEQUENCE)?;
    let (_, rest) = read(fields, SEQUENCE)?;
    let (algorithm, _) = read(rest, SEQUENCE)?;
    let (object, parameters) = read(algorithm, OBJECT)?;
    if let Some(rest) = object.strip_prefix(PKCS1) {
        return match rest {
            [4 | 5 | 11] => Some(Hash::Sha256),
            [10] => hash_of_pss(parameters),
            [12] => Some(Hash::Sha384),
            [13] => Some(Hash::Sha512),
            [14] => Some(Hash::Sha224),
            _ => None,
        };
    }
    match object.strip_prefix(ECDSA)? {
        [1] | [3, 2] => Some(Hash::Sha256),
        [3, 1] => Some(Hash::Sha224),
        [3, 3] => Some(Hash::Sha384),
        [3, 4] => Some(Hash::Sha512),
        _ => None,
    }
}

/// RSASSA-PSS names its hash function in a parameter that is SHA-1 when absent (RFC 4055, section 3.1).
fn hash_of_pss(parameters: &[u8]) -> Option<Hash> {
    let (fields, _) = read(parameters, SEQUENCE)?;
    if fields.first() != Some(&HASH_OF_PSS) {
        return Some(Hash::Sha256);
    }
    let (tagged, _) = read(fields, HASH_OF_PSS)?;
    let (algorithm, _) = read(tagged, SEQUENCE)?;
    let (object, _) = read(algorithm, OBJECT)?;
    if object == SHA1 {
        return Some(Hash::Sha256);
    }
    match object.strip_prefix(SHA2)? {
        [1] => Some(Hash::Sha256),
        [2] => Some(Hash::Sha384),
        [3] => Some(Hash::Sha512),
        [4] => Some(Hash::Sha224),
        _ => None,
    }
}

/// The contents of a DER element with this tag, and what follows it.
fn read(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, first, rest @ ..] = bytes else {
        return None;
    };
    if *found != tag {
        return None;
    }
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let count = usize::from(*first & 0x7f);
        if !(1..=4).contains(&count) {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        let length = digits
            .iter()
            .fold(0, |length, digit| length << 8 | usize::from(*digit));
        (length, rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn certificate(key: &KeyPair) -> Vec<u8> {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.self_signed(key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_certificates_signature() {
        let p256 = certificate(&KeyPair::generate().unwrap());
        assert_eq!(of(&p256), Some(Sha256::digest(&p256).to_vec()));
        let p384 = certificate(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
        assert_eq!(of(&p384), Some(Sha384::digest(&p384).to_vec()));
    }

    #[test]
    fn a_signature_without_one_hash_function_binds_nothing() {
        let ed25519 = certificate(&KeyPair::generate_for(&PKCS_ED25519).unwrap());
        assert_eq!(of(&ed25519), None);
    }

    #[test]
    fn what_an_algorithm_says_of_its_hash_is_read() {
        let hash = |algorithm: &[u8]| {
            let mut fields = vec![
                SEQUENCE,
                0,
                SEQUENCE,
                u8::try_from(algorithm.len()).unwrap(),
            ];
            fields.extend_from_slice(algorithm);
            let mut certificate = vec![SEQUENCE, u8::try_from(fields.len()).unwrap()];
            certificate.extend_from_slice(&fields);
            signature_hash(&certificate)
        };
        let rsa = |last: u8| [&[OBJECT, 9][..], PKCS1, &[last]].concat();
        assert_eq!(hash(&rsa(5)), Some(Hash::Sha256), "SHA-1 counts as SHA-256");
        assert_eq!(hash(&rsa(12)), Some(Hash::Sha384));
        assert_eq!(hash(&rsa(13)), Some(Hash::Sha512));
        assert_eq!(hash(&rsa(99)), None);
        let pss = |parameters: &[u8]| {
            let length = u8::try_from(parameters.len()).unwrap();
            [&rsa(10)[..], &[SEQUENCE, length], parameters].concat()
        };
        assert_eq!(hash(&pss(&[])), Some(Hash::Sha256));
        let sha512 = [&[HASH_OF_PSS, 13, SEQUENCE, 11, OBJECT, 9][..], SHA2, &[3]].concat();
        assert_eq!(hash(&pss(&sha512)), Some(Hash::Sha512));
    }

    proptest::proptest! {
        #[test]
        fn no_certificate_panics(bytes: Vec<u8>, cut in 0..400_usize) {
            let _hash = of(&bytes);
            let whole = certificate(&KeyPair::generate().unwrap());
            let _hash = of(&whole[..cut.min(whole.len())]);
        }
    }
}
