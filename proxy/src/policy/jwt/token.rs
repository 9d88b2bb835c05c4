//! One token (RFC 7515 compact form, RFC 7519): taken apart and verified. Everything that is not exactly so is refused,
//! with the words that Envoy uses.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use meshring_core::limits::{JWT_BYTES_MAX, JWT_CLOCK_SKEW_S, JWT_KEYS_TRIED_MAX};

use super::{
    claims::Claims,
    json::Json,
    keys::{Algorithm, KeySet},
};

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadToken {
    TooLong,
    TooMany,
    Form,
    HeaderEncoding,
    HeaderJson,
    NoAlgorithm,
    Algorithm,
    KeyId,
    Critical,
    PayloadEncoding,
    PayloadJson,
    ClaimType,
    SignatureEncoding,
    Issuer,
    NotYetValid,
    Expired,
    Audience,
    NotFetched,
    NoKeys,
    NoSuchKey,
    Signature,
}

impl BadToken {
    /// For logs and statistics.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::TooLong => "jwt.too_long",
            Self::TooMany => "jwt.too_many",
            Self::Form => "jwt.form",
            Self::HeaderEncoding => "jwt.header_encoding",
            Self::HeaderJson => "jwt.header_json",
            Self::NoAlgorithm => "jwt.no_alg",
            Self::Algorithm => "jwt.alg",
            Self::KeyId => "jwt.kid",
            Self::Critical => "jwt.crit",
            Self::PayloadEncoding => "jwt.payload_encoding",
            Self::PayloadJson => "jwt.payload_json",
            Self::ClaimType => "jwt.claim_type",
            Self::SignatureEncoding => "jwt.signature_encoding",
            Self::Issuer => "jwt.issuer",
            Self::NotYetValid => "jwt.not_yet_valid",
            Self::Expired => "jwt.expired",
            Self::Audience => "jwt.audience",
            Self::NotFetched => "jwt.jwks_missing",
            Self::NoKeys => "jwt.jwks_empty",
            Self::NoSuchKey => "jwt.no_key",
            Self::Signature => "jwt.signature",
        }
    }

    /// The response's body: as Envoy has it, where Envoy has it.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::TooLong => "Jwt is too long",
            Self::TooMany => "Too many Jwts in one request",
            Self::Form => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderEncoding => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::NoAlgorithm => "Jwt header [alg] field is required and must be a string",
            Self::Algorithm => "Jwt header [alg] is not supported",
            Self::KeyId => "Jwt header [kid] field is not a string",
            Self::Critical => "Jwt header [crit] is not supported",
            Self::PayloadEncoding => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::ClaimType => "Jwt payload has a registered claim of a wrong type",
            Self::SignatureEncoding => "Jwt signature is an invalid Base64url encoded",
            Self::Issuer => "Jwt issuer is not configured",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::NotFetched => "Jwks remote fetch is failed",
            Self::NoKeys => "Jwks doesn't have any valid keys",
            Self::NoSuchKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Signature => "Jwt verification fails",
        }
    }

    /// 401, but 403 for whom the token is not meant (as Envoy).
    pub(crate) fn status(self) -> u16 {
        if self == Self::Audience { 403 } else { 401 }
    }
}

/// What a rule demands of a token.
pub(crate) trait Demands {
    /// `issuer`; empty for any.
    fn issuer(&self) -> &str;
    /// Whether one of the token's audiences will do.
    fn takes_audience(&self, audiences: &[&str]) -> bool;
    /// `spaceDelimitedClaims`.
    fn space_delimited(&self) -> Vec<Box<str>>;
}

/// Whether the bytes of a token may lie between these instants, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before_s: Option<u64>,
    pub(crate) expires_s: Option<u64>,
}

impl Validity {
    /// Checks `nbf` and `exp` with the leeway.
    pub(crate) fn check(self, now_s: u64) -> Result<(), BadToken> {
        if self.not_before_s.is_some_and(|begin| begin > now_s.saturating_add(JWT_CLOCK_SKEW_S)) {
            return Err(BadToken::NotYetValid);
        }
        if self.expires_s.is_some_and(|end| now_s > end.saturating_add(JWT_CLOCK_SKEW_S)) {
            return Err(BadToken::Expired);
        }
        Ok(())
    }
}

/// Verifies a token against the rule's demands and its keys.
///
/// What costs least comes first; nothing of a token is believed before the signature has been verified, and until then
/// its claims only serve to refuse it.
pub(crate) fn verify(token: &[u8], keys: &KeySet, demands: &impl Demands, now_s: u64) -> Result<Claims, BadToken> {
    let parts = Parts::split(token)?;
    let header = Header::parse(parts.header)?;
    let signature = URL_SAFE_NO_PAD.decode(parts.signature).map_err(|_| BadToken::SignatureEncoding)?;
    let payload = URL_SAFE_NO_PAD.decode(parts.payload).map_err(|_| BadToken::PayloadEncoding)?;
    let payload = Json::parse_object(&payload).ok_or(BadToken::PayloadJson)?;
    let claims = Claims::new(payload, parts.payload, demands.space_delimited())?;
    if !demands.issuer().is_empty() && claims.issuer() != Some(demands.issuer()) {
        return Err(BadToken::Issuer);
    }
    claims.validity().check(now_s)?;
    if !demands.takes_audience(&claims.audiences()) {
        return Err(BadToken::Audience);
    }
    if keys.is_missing() {
        return Err(BadToken::NotFetched);
    }
    if keys.is_empty() {
        return Err(BadToken::NoKeys);
    }
    let mut refused = BadToken::NoSuchKey;
    for key in keys.candidates(header.key_id.as_deref(), header.algorithm).take(JWT_KEYS_TRIED_MAX) {
        if key.verify_sig(parts.signed, &signature).is_ok() {
            return Ok(claims);
        }
        refused = BadToken::Signature;
    }
    Err(refused)
}

/// The three parts of the compact form, and the two that are signed.
struct Parts<'t> {
    header: &'t [u8],
    payload: &'t [u8],
    signature: &'t [u8],
    signed: &'t [u8],
}

impl<'t> Parts<'t> {
    fn split(token: &'t [u8]) -> Result<Self, BadToken> {
        if token.len() > JWT_BYTES_MAX {
            return Err(BadToken::TooLong);
        }
        let mut parts = token.split(|&byte| byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadToken::Form);
        };
        // An empty signature is what `none` has.
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(BadToken::Form);
        }
        Ok(Self { header, payload, signature, signed: &token[..header.len() + 1 + payload.len()] })
    }
}

/// The protected header, as far as it is looked at. Keys that it brings along or points to (`jwk`, `jku`, `x5c`, `x5u`)
/// are not.
struct Header {
    algorithm: Algorithm,
    key_id: Option<Box<str>>,
}

impl Header {
    fn parse(part: &[u8]) -> Result<Self, BadToken> {
        let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| BadToken::HeaderEncoding)?;
        let json = Json::parse_object(&bytes).ok_or(BadToken::HeaderJson)?;
        let algorithm = json.member("alg").and_then(Json::text).ok_or(BadToken::NoAlgorithm)?;
        let algorithm = Algorithm::parse(algorithm).ok_or(BadToken::Algorithm)?;
        let key_id = match json.member("kid") {
            None => None,
            Some(value) => Some(value.text().ok_or(BadToken::KeyId)?.into()),
        };
        // RFC 7515 section 4.1.11: extensions that must be understood, and we know none.
        if json.member("crit").is_some() {
            return Err(BadToken::Critical);
        }
        Ok(Self { algorithm, key_id })
    }
}
