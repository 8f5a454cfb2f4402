//! What X.509 certificates say, as far as authentication needs it: the hash that binds a channel to a certificate
//! (RFC 5929), and the subject's names. Pure. Reads DER without trusting it: whatever is not understood is nothing.

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use std::fmt::Write as _;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// `[0]`, constructed: the version of a certificate, the hash among RSASSA-PSS' parameters.
const EXPLICIT_0: u8 = 0xa0;

/// The hash of a certificate for `tls-server-end-point`: that of its signature, but SHA-256 in place of MD5 and SHA-1.
/// `None` for signatures that name no hash, such as Ed25519's: channel binding cannot be offered with them.
#[must_use]
pub fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    let (certificate, rest) = element(der, SEQUENCE)?;
    let (_, after) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(after, SEQUENCE)?;
    if !rest.is_empty() {
        return None;
    }
    Some(match signature_hash(algorithm)? {
        Hash::Sha224 => Sha224::digest(der).to_vec(),
        Hash::Sha256 => Sha256::digest(der).to_vec(),
        Hash::Sha384 => Sha384::digest(der).to_vec(),
        Hash::Sha512 => Sha512::digest(der).to_vec(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// The hash of an AlgorithmIdentifier of a signature.
fn signature_hash(algorithm: &[u8]) -> Option<Hash> {
    let (oid, parameters) = element(algorithm, OID)?;
    Some(match oid {
        // RSA with MD5, SHA-1; ECDSA with SHA-1.
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04"
        | b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05"
        | b"\x2a\x86\x48\xce\x3d\x04\x01"
        // RSA and ECDSA with SHA-256.
        | b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b"
        | b"\x2a\x86\x48\xce\x3d\x04\x03\x02" => Hash::Sha256,
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c" | b"\x2a\x86\x48\xce\x3d\x04\x03\x03" => {
            Hash::Sha384
        }
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d" | b"\x2a\x86\x48\xce\x3d\x04\x03\x04" => {
            Hash::Sha512
        }
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e" | b"\x2a\x86\x48\xce\x3d\x04\x03\x01" => {
            Hash::Sha224
        }
        // RSASSA-PSS.
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a" => pss_hash(parameters)?,
        _ => return None,
    })
}

/// The hash among RSASSA-PSS' parameters; SHA-1, which SHA-256 stands for, when there is none.
fn pss_hash(parameters: &[u8]) -> Option<Hash> {
    let (fields, _) = element(parameters, SEQUENCE)?;
    let Some((given, _)) = element(fields, EXPLICIT_0) else {
        return Some(Hash::Sha256);
    };
    let (algorithm, _) = element(given, SEQUENCE)?;
    let (oid, _) = element(algorithm, OID)?;
    Some(match oid {
        b"\x2b\x0e\x03\x02\x1a" | b"\x60\x86\x48\x01\x65\x03\x04\x02\x01" => Hash::Sha256,
        b"\x60\x86\x48\x01\x65\x03\x04\x02\x02" => Hash::Sha384,
        b"\x60\x86\x48\x01\x65\x03\x04\x02\x03" => Hash::Sha512,
        b"\x60\x86\x48\x01\x65\x03\x04\x02\x04" => Hash::Sha224,
        _ => return None,
    })
}

/// Whom a certificate is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The one common name; `None` when there is none, or more than one.
    pub common_name: Option<String>,
    /// The distinguished name as PostgreSQL compares it: RFC 2253, the last part first.
    pub distinguished_name: String,
}

/// The subject of a certificate. `None`: a name in a form that is not understood, or with a zero byte in it, so that
/// nobody is taken for somebody else.
#[must_use]
pub fn subject(der: &[u8]) -> Option<Subject> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (body, _) = element(certificate, SEQUENCE)?;
    let body = element(body, EXPLICIT_0).map_or(body, |(_, rest)| rest);
    // Serial number, signature, issuer, validity.
    let (_, body) = any(body)?;
    let (_, body) = element(body, SEQUENCE)?;
    let (_, body) = element(body, SEQUENCE)?;
    let (_, body) = element(body, SEQUENCE)?;
    let (mut names, _) = element(body, SEQUENCE)?;
    let (mut common, mut parts) = (Vec::new(), Vec::new());
    while !names.is_empty() {
        let (mut set, rest) = element(names, SET)?;
        names = rest;
        let mut values = Vec::new();
        while !set.is_empty() {
            let (pair, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (oid, value) = element(pair, OID)?;
            let text = string(value)?;
            if oid == COMMON_NAME {
                common.push(text.clone());
            }
            values.push(format!("{}={}", attribute(oid)?, escaped(&text)));
        }
        // A part has at least one value (X.501); without, the name would be written with nothing between two commas.
        if values.is_empty() {
            return None;
        }
        // OpenSSL turns the order within a part too.
        values.reverse();
        parts.push(values.join("+"));
    }
    parts.reverse();
    let common_name = match &common[..] {
        [one] => Some(one.clone()),
        _ => None,
    };
    Some(Subject {
        common_name,
        distinguished_name: parts.join(","),
    })
}

const COMMON_NAME: &[u8] = b"\x55\x04\x03";

/// OpenSSL's short name of an attribute. One that is not known here makes the whole subject unreadable.
fn attribute(oid: &[u8]) -> Option<&'static str> {
    Some(match oid {
        COMMON_NAME => "CN",
        b"\x55\x04\x04" => "SN",
        b"\x55\x04\x05" => "serialNumber",
        b"\x55\x04\x06" => "C",
        b"\x55\x04\x07" => "L",
        b"\x55\x04\x08" => "ST",
        b"\x55\x04\x09" => "street",
        b"\x55\x04\x0a" => "O",
        b"\x55\x04\x0b" => "OU",
        b"\x55\x04\x0c" => "title",
        b"\x55\x04\x0d" => "description",
        b"\x55\x04\x11" => "postalCode",
        b"\x55\x04\x29" => "name",
        b"\x55\x04\x2a" => "GN",
        b"\x55\x04\x2b" => "initials",
        b"\x55\x04\x2e" => "dnQualifier",
        b"\x55\x04\x41" => "pseudonym",
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01" => "emailAddress",
        b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01" => "UID",
        b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19" => "DC",
        _ => return None,
    })
}

/// A string of a name.
fn string(der: &[u8]) -> Option<String> {
    let (tag, content, rest) = header(der)?;
    let ascii = matches!(tag, PRINTABLE_STRING | IA5_STRING);
    if !rest.is_empty() || !(ascii || tag == UTF8_STRING) || content.contains(&0) {
        return None;
    }
    let text = std::str::from_utf8(content).ok()?;
    (!ascii || text.is_ascii()).then(|| text.to_owned())
}

/// A value as RFC 2253 writes it, with control characters and bytes above ASCII in hexadecimal.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let edge = at == 0 && matches!(byte, b' ' | b'#') || at == last && byte == b' ';
        match byte {
            0..0x20 | 0x7f.. => {
                // Writing to a string cannot fail.
                let _written = write!(out, "\\{byte:02X}");
            }
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            _ if edge => {
                out.push('\\');
                out.push(char::from(byte));
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

/// The content of an element with this tag, and what follows it.
fn element(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = header(der)?;
    (tag == wanted).then_some((content, rest))
}

fn any(der: &[u8]) -> Option<(&[u8], &[u8])> {
    header(der).map(|(_, content, rest)| (content, rest))
}

/// Tag, content and what follows.
fn header(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    // Tags above 30 have more bytes; none is needed here.
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            let length = bytes
                .iter()
                .fold(0, |length: usize, byte| length << 8 | usize::from(*byte));
            (length, rest)
        }
        0x80 | 0x85.. => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn made(algorithm: &'static rcgen::SignatureAlgorithm, name: DistinguishedName) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = name;
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_is_hashed_as_its_signature_hashes() {
        let of = |algorithm| made(algorithm, DistinguishedName::new());
        let der = of(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(end_point(&der), Some(Sha256::digest(&der).to_vec()));
        let der = of(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(end_point(&der), Some(Sha384::digest(&der).to_vec()));
        assert_eq!(end_point(&of(&rcgen::PKCS_ED25519)), None);
    }

    #[test]
    fn weak_and_parametrised_signatures_have_their_hash() {
        for (algorithm, expected) in [
            // RSA with MD5 and SHA-1, ECDSA with SHA-1: SHA-256 instead.
            (&b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04\x05\0"[..], Some(Hash::Sha256)),
            (b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05\x05\0", Some(Hash::Sha256)),
            (b"\x06\x07\x2a\x86\x48\xce\x3d\x04\x01", Some(Hash::Sha256)),
            (b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\0", Some(Hash::Sha512)),
            (b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e\x05\0", Some(Hash::Sha224)),
            // PSS with nothing said, and with SHA-384.
            (b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\0", Some(Hash::Sha256)),
            (
                b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x0f\xa0\x0d\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02",
                Some(Hash::Sha384),
            ),
            (b"\x06\x03\x2b\x65\x70", None),
            (b"\x06\x03\x2b\x65\x71", None),
        ] {
            assert_eq!(signature_hash(algorithm), expected, "{algorithm:?}");
        }
    }

    #[test]
    fn a_subject_is_written_as_postgresql_writes_it() {
        let mut name = DistinguishedName::new();
        name.push(DnType::CountryName, "DE");
        name.push(DnType::OrganizationName, "Smith, \"Sons\" + Co");
        name.push(DnType::OrganizationalUnitName, " #1 \u{e4} ");
        name.push(DnType::CommonName, "ann");
        let found = subject(&made(&rcgen::PKCS_ECDSA_P256_SHA256, name)).unwrap();
        assert_eq!(found.common_name.as_deref(), Some("ann"));
        assert_eq!(
            found.distinguished_name,
            r#"CN=ann,OU=\ #1 \C3\A4\ ,O=Smith\, \"Sons\" \+ Co,C=DE"#
        );
    }

    #[test]
    fn a_name_that_can_be_read_in_two_ways_is_nobodys() {
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "ann\0.example");
        assert_eq!(subject(&made(&rcgen::PKCS_ECDSA_P256_SHA256, name)), None);
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "nobody in person");
        let found = subject(&made(&rcgen::PKCS_ECDSA_P256_SHA256, name)).unwrap();
        assert_eq!(found.common_name, None);
    }

    #[test]
    fn a_part_of_a_name_without_a_value_makes_it_unreadable() {
        let der = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            [&[tag, length], content].concat()
        };
        let common_name = der(SEQUENCE, b"\x06\x03\x55\x04\x03\x0c\x01a");
        for (parts, expected) in [
            (der(SET, &common_name), Some("CN=a")),
            ([der(SET, &common_name), der(SET, b"")].concat(), None),
        ] {
            let before = b"\x02\x01\x07\x30\0\x30\0\x30\0";
            let body = [&before[..], &der(SEQUENCE, &parts)].concat();
            let certificate = der(SEQUENCE, &der(SEQUENCE, &body));
            let found = subject(&certificate).map(|subject| subject.distinguished_name);
            assert_eq!(found.as_deref(), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(cut in 0_usize..600, at in 0_usize..600, byte: u8) {
            let mut name = DistinguishedName::new();
            name.push(DnType::CommonName, "ann");
            let mut der = made(&rcgen::PKCS_ECDSA_P256_SHA256, name);
            if let Some(there) = der.get_mut(at) {
                *there = byte;
            }
            der.truncate(cut);
            drop((subject(&der), end_point(&der)));
        }
    }
}
