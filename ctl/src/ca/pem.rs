//! Certificates and private keys from PEM (RFC 7468), the keys as PKCS #8 whatever form they came in.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _,
    },
};
use meshring_core::{
    limits::{MATERIAL_BYTES_MAX, MATERIAL_CERTIFICATES_MAX},
    secret::SecretBytes,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::source::istio::route::base64 as decode;

/// A text that does not hold what it should. Nothing of its content is told: it may be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPem {
    /// Not PEM, cut off, or bad base64.
    #[error("is not PEM: a section is cut off or holds something else than base64")]
    Syntax,
    /// No `BEGIN CERTIFICATE`.
    #[error("holds no certificate (BEGIN CERTIFICATE)")]
    NoCertificate,
    /// No private key in a known form.
    #[error(
        "holds no private key (BEGIN PRIVATE KEY, BEGIN EC PRIVATE KEY or BEGIN RSA PRIVATE KEY, without a passphrase)"
    )]
    NoKey,
    /// Something of another curve or kind.
    #[error(
        "holds a private key that is damaged or of a kind that is not known (ECDSA P-256, P-384, P-521, Ed25519 and RSA are)"
    )]
    UnknownKey,
    /// See the limits.
    #[error("is longer than {MATERIAL_BYTES_MAX} bytes or holds more than {MATERIAL_CERTIFICATES_MAX} certificates")]
    TooLarge,
}

/// Every certificate of a text, DER, in its order; at least one.
///
/// # Errors
/// See [`BadPem`].
pub fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, BadPem> {
    if pem.len() > MATERIAL_BYTES_MAX {
        return Err(BadPem::TooLarge);
    }
    let mut found = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|_| BadPem::Syntax)?;
        if found.len() >= MATERIAL_CERTIFICATES_MAX {
            return Err(BadPem::TooLarge);
        }
        found.push(der.to_vec());
    }
    if found.is_empty() { Err(BadPem::NoCertificate) } else { Ok(found) }
}

/// A private key and what certificates hold of it.
pub struct PrivateKey {
    /// PKCS #8 DER; wiped when dropped.
    pub pkcs8: SecretBytes,
    /// The content of `subjectPublicKey` in a certificate of this key.
    pub public: Vec<u8>,
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// The first private key of a text.
///
/// # Errors
/// See [`BadPem`].
pub fn private_key(pem: &[u8]) -> Result<PrivateKey, BadPem> {
    if pem.len() > MATERIAL_BYTES_MAX {
        return Err(BadPem::TooLarge);
    }
    let (form, der) = key_section(pem)?;
    let parsed = match form {
        Form::Pkcs8 => parse(&der),
        Form::Sec1 => ecdsa(&der),
        Form::Pkcs1 => rsa::KeyPair::from_der(&der).ok().and_then(|key| of_rsa(&key)),
    };
    parsed.ok_or(BadPem::UnknownKey)
}

/// What a section's label says about the DER in it.
#[derive(Clone, Copy)]
enum Form {
    Pkcs8,
    Sec1,
    Pkcs1,
}

const FORMS: [(&[u8], Form); 3] =
    [(b"PRIVATE KEY", Form::Pkcs8), (b"EC PRIVATE KEY", Form::Sec1), (b"RSA PRIVATE KEY", Form::Pkcs1)];

/// The first section with a private key. Not by a library's reader: that would leave the text of the key on the heap.
fn key_section(pem: &[u8]) -> Result<(Form, SecretBytes), BadPem> {
    let mut lines = pem.split(|byte| *byte == b'\n');
    let marked =
        |line: &[u8], mark: &[u8]| Some(line.trim_ascii().strip_prefix(mark)?.strip_suffix(b"-----")?.to_vec());
    while let Some(line) = lines.next() {
        let Some(label) = marked(line, b"-----BEGIN ") else { continue };
        let mut text = SecretBytes::default();
        loop {
            let line = lines.next().ok_or(BadPem::Syntax)?;
            match marked(line, b"-----END ") {
                Some(end) if end == label => break,
                Some(_) => return Err(BadPem::Syntax),
                None => text.extend_from_slice(line),
            }
        }
        if let Some((_, form)) = FORMS.iter().find(|(known, _)| *known == label) {
            let der = str::from_utf8(&text).ok().and_then(decode).ok_or(BadPem::Syntax)?;
            return Ok((*form, der.into()));
        }
    }
    Err(BadPem::NoKey)
}

fn parse(pkcs8: &[u8]) -> Option<PrivateKey> {
    if let Some(key) = ecdsa(pkcs8) {
        return Some(key);
    }
    if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8) {
        let public = key.public_key().as_ref().to_vec();
        return Some(PrivateKey { pkcs8: pkcs8.into(), public });
    }
    rsa::KeyPair::from_pkcs8(pkcs8).ok().and_then(|key| of_rsa(&key))
}

/// From PKCS #8 or SEC 1.
fn ecdsa(der: &[u8]) -> Option<PrivateKey> {
    let curves = [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P521_SHA512_ASN1_SIGNING];
    let key = curves.into_iter().find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, der).ok())?;
    let pkcs8 = key.to_pkcs8v1().ok()?;
    Some(PrivateKey { pkcs8: pkcs8.as_ref().into(), public: key.public_key().as_ref().to_vec() })
}

fn of_rsa(key: &rsa::KeyPair) -> Option<PrivateKey> {
    let pkcs8: Pkcs8V1Der<'_> = key.as_der().ok()?;
    Some(PrivateKey { pkcs8: pkcs8.as_ref().into(), public: key.public_key().as_ref().to_vec() })
}

/// A certificate as PEM.
#[must_use]
pub fn of_certificate(der: &[u8]) -> String {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n");
    let mut text = String::with_capacity(der.len() * 3 / 2 + 64);
    text.push_str(begin);
    // 48 bytes are a line of 64 characters.
    for line in der.chunks(48) {
        text.push_str(&base64(line));
        text.push('\n');
    }
    text.push_str(end);
    text
}

/// RFC 4648 section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let sextet = (word >> (18 - 6 * position)) & 63;
            text.push(if position > chunk.len() { '=' } else { char::from(ALPHABET[sextet as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn keys_of_every_kind_are_read_and_match_their_certificates() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ECDSA_P521_SHA512,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let certificate =
                rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&pair).unwrap();
            let text = format!("{}\n{}", certificate.pem(), pair.serialize_pem());
            let read = private_key(text.as_bytes()).unwrap();
            assert_eq!(certificates(text.as_bytes()).unwrap(), [certificate.der().to_vec()]);
            assert_eq!(of_certificate(certificate.der()).replace('\r', ""), certificate.pem().replace("\r\n", "\n"));
            let facts = super::super::Facts::of(certificate.der()).unwrap();
            assert_eq!(facts.public_key, read.public, "{algorithm:?}");
            assert_eq!(format!("{read:?}"), "PrivateKey(..)");
        }
    }

    #[test]
    fn what_is_no_pem_is_refused_with_its_reason() {
        let pair = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(certificates(b"").unwrap_err(), BadPem::NoCertificate);
        assert_eq!(certificates(pair.as_bytes()).unwrap_err(), BadPem::NoCertificate);
        assert_eq!(private_key(b"nonsense").unwrap_err(), BadPem::NoKey);
        assert_eq!(private_key(&pair.as_bytes()[..100]).unwrap_err(), BadPem::Syntax);
        assert_eq!(certificates(&vec![b'a'; MATERIAL_BYTES_MAX + 1]).unwrap_err(), BadPem::TooLarge);
        let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for broken in [
            garbage.replace("END PRIVATE", "END EC PRIVATE"),
            garbage.replace("AAAA", "Proc-Type: 4,ENCRYPTED"),
            garbage.replace("AAAA", "-----BEGIN PRIVATE KEY-----"),
        ] {
            assert_eq!(private_key(broken.as_bytes()).unwrap_err(), BadPem::Syntax, "{broken}");
        }
        let encrypted = garbage.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert_eq!(private_key(encrypted.as_bytes()).unwrap_err(), BadPem::NoKey);
        private_key(format!("text before\r\n{encrypted}\r\n{}", pair.replace('\n', "\r\n")).as_bytes()).unwrap();
        assert_eq!(private_key(garbage.as_bytes()).unwrap_err(), BadPem::UnknownKey);
    }
}
