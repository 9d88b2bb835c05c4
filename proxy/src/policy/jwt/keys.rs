//! JWK sets (RFC 7517), made ready once per generation. A key is bound to the algorithms that it may verify: what a token
//! says about itself chooses among them and never beyond them (RFC 8725 section 3.1).

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use meshring_core::limits::{JWKS_BYTES_MAX, JWKS_KEYS_MAX};

use super::json::Json;

/// Smallest and largest RSA modulus, in bytes (RFC 7518 section 3.3; aws-lc's upper end).
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Longest RSA exponent, in bytes: everybody uses 65,537.
const RSA_EXPONENT_BYTES_MAX: usize = 4;

/// A signature algorithm (RFC 7518 section 3.1, RFC 8037). `none` and those with a shared secret are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// From `alg`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }
}

const RSA: [Algorithm; 6] =
    [Algorithm::Rs256, Algorithm::Rs384, Algorithm::Rs512, Algorithm::Ps256, Algorithm::Ps384, Algorithm::Ps512];

/// A key for one algorithm.
struct Key {
    /// `kid`.
    id: Option<Box<str>>,
    algorithm: Algorithm,
    /// Shared by all workers: verifying changes nothing in it.
    public: ParsedPublicKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// The keys of one issuer that can verify something.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
    /// Whether there was a set at all: control may not have fetched it yet.
    is_there: bool,
}

impl KeySet {
    /// Parses a JWK set. Keys of another kind or use are passed over, as RFC 7517 section 5 asks for; a text that is no
    /// set has no keys.
    pub(crate) fn parse(text: &[u8]) -> Self {
        if text.is_empty() {
            return Self::default();
        }
        let mut set = Self { keys: Vec::new(), is_there: true };
        let parsed = if text.len() <= JWKS_BYTES_MAX { Json::parse_object(text) } else { None };
        if let Some(Json::List(list)) = parsed.as_ref().and_then(|set| set.member("keys")) {
            list.iter().take(JWKS_KEYS_MAX).for_each(|jwk| set.add(jwk));
        }
        set
    }

    /// Whether no token can be verified since nothing was fetched yet.
    pub(crate) fn is_missing(&self) -> bool {
        !self.is_there
    }

    /// Whether no key is usable.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that may have signed a token with these `kid` and `alg`. A key without `kid` fits any; a token without one
    /// fits any key.
    pub(crate) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &ParsedPublicKey> {
        let fits = move |key: &&Key| {
            let same_id = match (&key.id, id) {
                (Some(known), Some(asked)) => **known == *asked,
                _ => true,
            };
            key.algorithm == algorithm && same_id
        };
        self.keys.iter().filter(fits).map(|key| &key.public)
    }

    fn add(&mut self, jwk: &Json) {
        let Some(id) = optional_text(jwk, "kid") else { return };
        if !is_for_verifying(jwk) {
            return;
        }
        // `alg` that is there but unknown, or no text: not a key for us.
        let Some(declared) = optional_text(jwk, "alg") else { return };
        let declared = match declared.map(Algorithm::parse) {
            None => None,
            Some(Some(algorithm)) => Some(algorithm),
            Some(None) => return,
        };
        let mut push = |algorithm: Algorithm, public: Option<ParsedPublicKey>| {
            self.keys.extend(public.map(|public| Key { id: id.map(Into::into), algorithm, public }));
        };
        let fits = |algorithm: Algorithm| declared.is_none_or(|declared| declared == algorithm);
        let kind = jwk.member("kty").and_then(Json::text);
        let curve = jwk.member("crv").and_then(Json::text);
        match (kind, curve) {
            (Some("RSA"), _) => {
                let Some((modulus, exponent)) = rsa(jwk) else { return };
                let components = RsaPublicKeyComponents { n: &modulus[..], e: &exponent[..] };
                for algorithm in RSA.into_iter().filter(|&algorithm| fits(algorithm)) {
                    let parameters = algorithm.rsa();
                    push(algorithm, parameters.and_then(|p| components.to_parsed_public_key(p).ok()));
                }
            }
            (Some("EC"), Some("P-256")) if fits(Algorithm::Es256) => {
                push(Algorithm::Es256, point(jwk, 32).and_then(|point| parsed(&ECDSA_P256_SHA256_FIXED, &point)));
            }
            (Some("EC"), Some("P-384")) if fits(Algorithm::Es384) => {
                push(Algorithm::Es384, point(jwk, 48).and_then(|point| parsed(&ECDSA_P384_SHA384_FIXED, &point)));
            }
            (Some("OKP"), Some("Ed25519")) if fits(Algorithm::EdDsa) => {
                let public = bytes(jwk, "x").filter(|x| x.len() == 32);
                push(Algorithm::EdDsa, public.and_then(|x| parsed(&ED25519, &x)));
            }
            _ => {}
        }
    }
}

/// Absent is `Some(None)`; there but no text is `None`.
#[expect(clippy::option_option, reason = "absent and unreadable are two things")]
fn optional_text<'j>(jwk: &'j Json, name: &str) -> Option<Option<&'j str>> {
    match jwk.member(name) {
        None => Some(None),
        Some(value) => value.text().map(Some),
    }
}

/// `use` and `key_ops` (RFC 7517 sections 4.2 and 4.3): both must allow what they speak about.
fn is_for_verifying(jwk: &Json) -> bool {
    let by_use = jwk.member("use").is_none_or(|value| value.text() == Some("sig"));
    let by_operations = match jwk.member("key_ops") {
        None => true,
        Some(Json::List(operations)) => operations.iter().any(|operation| operation.text() == Some("verify")),
        Some(_) => false,
    };
    by_use && by_operations
}

fn bytes(jwk: &Json, name: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(jwk.member(name)?.text()?).ok()
}

/// Modulus and exponent. Some producers write the sign byte of their big integers, which RFC 7518 section 2 forbids: it
/// changes nothing.
fn rsa(jwk: &Json) -> Option<(Vec<u8>, Vec<u8>)> {
    let number = |name: &str| {
        let bytes = bytes(jwk, name)?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        Some(bytes[zeros..].to_vec())
    };
    let (modulus, exponent) = (number("n")?, number("e")?);
    let sound = RSA_MODULUS_BYTES.contains(&modulus.len()) && (1..=RSA_EXPONENT_BYTES_MAX).contains(&exponent.len());
    sound.then_some((modulus, exponent))
}

/// The uncompressed point of `x` and `y`, each of the whole length (RFC 7518 section 6.2.1.2).
fn point(jwk: &Json, coordinate_bytes: usize) -> Option<Vec<u8>> {
    let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
    let sound = x.len() == coordinate_bytes && y.len() == coordinate_bytes;
    sound.then(|| [&[4][..], &x, &y].concat())
}

fn parsed(algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8]) -> Option<ParsedPublicKey> {
    ParsedPublicKey::new(algorithm, bytes).ok()
}
