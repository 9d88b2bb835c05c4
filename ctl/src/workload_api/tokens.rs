//! JWT-SVIDs (SPIFFE JWT-SVID standard): signed by us, or had from an external SPIRE when that is where identities come
//! from.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use meshring_core::limits::{JWT_SVID_AUDIENCE_BYTES_MAX, JWT_SVID_AUDIENCES_MAX, JWT_SVID_LIFE_S};
use prost_types::{Struct, value::Kind as StructKind};
use serde::Serialize;
use serde_json::{Map, Value};
use tonic::Status;

use super::proto::ValidateJwtSvidResponse;
use crate::ca::{
    SpiffeId,
    jwt_key::{JwtKeyError, JwtKeys},
    spire::SpireSource,
};

/// Where JWT-SVIDs come from.
#[derive(Debug)]
pub enum Tokens {
    /// Signed here.
    Own {
        /// The keys.
        keys: JwtKeys,
        /// Whose identities they vouch for.
        trust_domain: String,
    },
    /// SPIRE signs and judges; what is asked of us is asked of it.
    Spire(Arc<SpireSource>),
}

/// JWK sets by the trust domain's SPIFFE id.
pub(super) type JwtBundles = HashMap<String, Vec<u8>>;

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    aud: &'a [String],
    iat: u64,
    exp: u64,
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn internal(error: JwtKeyError) -> Status {
    tracing::error!("Workload API: {error}");
    Status::unavailable(error.to_string())
}

/// Whether these can be a token's audiences.
pub(super) fn check_audience(audience: &[String]) -> Result<(), Status> {
    if audience.is_empty() {
        return Err(Status::invalid_argument("a JWT-SVID needs an audience: name who is to accept it"));
    }
    if audience.len() > JWT_SVID_AUDIENCES_MAX {
        return Err(Status::invalid_argument(format!("more than {JWT_SVID_AUDIENCES_MAX} audiences")));
    }
    if audience.iter().any(|name| name.is_empty() || name.len() > JWT_SVID_AUDIENCE_BYTES_MAX) {
        let message = format!("an audience is empty or longer than {JWT_SVID_AUDIENCE_BYTES_MAX} bytes");
        return Err(Status::invalid_argument(message));
    }
    Ok(())
}

impl Tokens {
    /// A token by which `id` proves itself to `audience`.
    pub(super) async fn mint(&self, id: &SpiffeId, audience: &[String]) -> Result<String, Status> {
        match self {
            Self::Own { keys, .. } => mint(keys, id, audience, SystemTime::now()),
            Self::Spire(spire) => {
                let mut client = spire.client()?;
                let response = client.jwt_svids(audience.to_vec(), id.to_string()).await?;
                let svid = response.svids.into_iter().find(|svid| svid.spiffe_id == id.as_str());
                svid.map(|svid| svid.svid).ok_or_else(|| Status::unavailable(format!("SPIRE gave no token for {id}")))
            }
        }
    }

    /// What verifies tokens, and when that changes without anybody's doing.
    pub(super) fn bundles(&self) -> Result<(JwtBundles, Option<Duration>), Status> {
        match self {
            Self::Own { keys, trust_domain } => {
                let now = SystemTime::now();
                let (bundle, next) = keys.bundle(now).map_err(internal)?;
                let bundles = HashMap::from([(format!("spiffe://{trust_domain}"), bundle)]);
                Ok((bundles, next.duration_since(now).ok()))
            }
            Self::Spire(spire) => Ok((spire.jwt_bundles()?, None)),
        }
    }

    /// A valid token's subject and claims; `InvalidArgument` with the reason for any other.
    pub(super) async fn validate(&self, audience: &str, token: &str) -> Result<ValidateJwtSvidResponse, Status> {
        match self {
            Self::Own { keys, trust_domain } => validate(keys, trust_domain, audience, token),
            Self::Spire(spire) => spire.client()?.validate_jwt_svid(audience.to_owned(), token.to_owned()).await,
        }
    }
}

fn mint(keys: &JwtKeys, id: &SpiffeId, audience: &[String], now: SystemTime) -> Result<String, Status> {
    let iat = unix_s(now);
    let claims = Claims { sub: id.as_str(), aud: audience, iat, exp: iat + JWT_SVID_LIFE_S };
    keys.sign(&claims, now).map_err(internal)
}

fn validate(
    keys: &JwtKeys,
    trust_domain: &str,
    audience: &str,
    token: &str,
) -> Result<ValidateJwtSvidResponse, Status> {
    let refused = |reason: &str| Status::invalid_argument(format!("not a valid JWT-SVID: {reason}"));
    if audience.is_empty() {
        return Err(Status::invalid_argument("name the audience that the token must be for"));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| refused("not a signed JWT"))?;
    if header.alg != Algorithm::ES256 {
        return Err(refused("it is not signed with ES256"));
    }
    // JWT-SVID, section 2.3.
    if !matches!(header.typ.as_deref(), None | Some("JWT" | "JOSE")) {
        return Err(refused("its type is neither JWT nor JOSE"));
    }
    let id = header.kid.ok_or_else(|| refused("it names no key"))?;
    let key = keys.public(&id, SystemTime::now()).map_err(internal)?;
    let key = key.ok_or_else(|| refused("its key is not in the bundle of this trust domain"))?;
    let mut rules = Validation::new(Algorithm::ES256);
    // Who signs and who judges have the same clock.
    rules.leeway = 0;
    rules.set_audience(&[audience]);
    rules.set_required_spec_claims(&["aud", "exp", "sub"]);
    let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &rules).map_err(|error| {
        refused(match error.kind() {
            ErrorKind::ExpiredSignature => "it has expired",
            ErrorKind::InvalidAudience => "it is meant for another audience",
            ErrorKind::InvalidSignature => "its signature is wrong",
            ErrorKind::MissingRequiredClaim(_) => "it lacks one of aud, exp and sub",
            _ => "its claims cannot be read",
        })
    })?;
    let claims = claims.claims;
    let subject = claims.get("sub").and_then(Value::as_str).and_then(|sub| sub.parse::<SpiffeId>().ok());
    let subject = subject.filter(|id| id.trust_domain() == trust_domain);
    let subject = subject.ok_or_else(|| refused("its subject is no SPIFFE id of this trust domain"))?;
    Ok(ValidateJwtSvidResponse { spiffe_id: subject.to_string(), claims: Some(fields(claims)) })
}

fn fields(map: Map<String, Value>) -> Struct {
    Struct { fields: map.into_iter().map(|(name, value)| (name, field(value))).collect() }
}

fn field(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => StructKind::NullValue(0),
        Value::Bool(value) => StructKind::BoolValue(value),
        // Protobuf's Struct knows no integers.
        Value::Number(value) => StructKind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => StructKind::StringValue(value),
        Value::Array(values) => {
            StructKind::ListValue(prost_types::ListValue { values: values.into_iter().map(field).collect() })
        }
        Value::Object(map) => StructKind::StructValue(fields(map)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tonic::Code;

    use super::*;
    use crate::ca::jwt_key::Lives;

    const DOMAIN: &str = "cluster.local";

    fn keys() -> JwtKeys {
        JwtKeys::new(Lives::default(), SystemTime::now()).unwrap()
    }

    fn id() -> SpiffeId {
        SpiffeId::workload(DOMAIN, "default", "reviews").unwrap()
    }

    fn judge(keys: &JwtKeys, audience: &str, token: &str) -> Result<ValidateJwtSvidResponse, String> {
        validate(keys, DOMAIN, audience, token).map_err(|status| {
            assert_eq!(status.code(), Code::InvalidArgument);
            status.message().to_owned()
        })
    }

    #[test]
    fn a_token_is_valid_for_each_of_its_audiences_and_no_other() {
        let keys = keys();
        let token = mint(&keys, &id(), &["a".into(), "b".into()], SystemTime::now()).unwrap();
        for audience in ["a", "b"] {
            let valid = judge(&keys, audience, &token).unwrap();
            assert_eq!(valid.spiffe_id, id().to_string());
            let claims = valid.claims.unwrap().fields;
            let names: Vec<_> = claims.keys().map(String::as_str).collect();
            assert_eq!(names, ["aud", "exp", "iat", "sub"]);
        }
        assert!(judge(&keys, "c", &token).unwrap_err().contains("another audience"));
        assert!(judge(&keys, "", &token).unwrap_err().contains("name the audience"));
    }

    #[test]
    fn bad_tokens_are_refused_with_the_reason() {
        let keys = keys();
        let now = SystemTime::now();
        let audience = ["a".to_owned()];
        let token = mint(&keys, &id(), &audience, now).unwrap();
        let expired = mint(&keys, &id(), &audience, now - Duration::from_secs(JWT_SVID_LIFE_S + 2)).unwrap();
        assert!(judge(&keys, "a", &expired).unwrap_err().contains("expired"));
        let foreign = mint(&self::keys(), &id(), &audience, now).unwrap();
        assert!(judge(&keys, "a", &foreign).unwrap_err().contains("not in the bundle"));

        let parts: Vec<&str> = token.split('.').collect();
        let other = mint(&keys, &id(), &["b".into()], now).unwrap();
        let swapped = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2]);
        assert!(judge(&keys, "b", &swapped).unwrap_err().contains("signature"));

        for (claims, reason) in [
            (json!({"sub": id().as_str(), "aud": ["a"]}), "lacks"),
            (json!({"sub": id().as_str(), "exp": 9_999_999_999_u64}), "lacks"),
            (json!({"aud": ["a"], "exp": 9_999_999_999_u64}), "lacks"),
            (json!({"sub": "me", "aud": ["a"], "exp": 9_999_999_999_u64}), "subject"),
            (json!({"sub": "spiffe://other.domain/ns/a/sa/b", "aud": ["a"], "exp": 9_999_999_999_u64}), "subject"),
            (json!({"sub": "spiffe://cluster.local", "aud": ["a"], "exp": 9_999_999_999_u64}), "subject"),
            (json!({"sub": 1, "aud": ["a"], "exp": 9_999_999_999_u64}), ""),
        ] {
            let token = keys.sign(&claims, now).unwrap();
            let said = judge(&keys, "a", &token).unwrap_err();
            assert!(said.contains(reason), "{claims}: {said}");
        }

        // The header is taken from elsewhere: no algorithm but ours, whatever key it hints at.
        let public = keys.bundle(now).unwrap().0;
        let symmetric = jsonwebtoken::EncodingKey::from_secret(&public);
        let header = jsonwebtoken::Header {
            kid: jsonwebtoken::decode_header(&token).unwrap().kid,
            ..jsonwebtoken::Header::new(Algorithm::HS256)
        };
        let confused = jsonwebtoken::encode(
            &header,
            &json!({"sub": id().as_str(), "aud": "a", "exp": 9_999_999_999_u64}),
            &symmetric,
        )
        .unwrap();
        assert!(judge(&keys, "a", &confused).unwrap_err().contains("ES256"));
        // {"alg":"none"}
        let none = format!("eyJhbGciOiJub25lIn0.{}.", parts[1]);
        assert!(judge(&keys, "a", &none).unwrap_err().contains("not a signed JWT"));
        for garbage in ["", ".", "..", "a.b.c", &parts[..2].join("."), &format!("{token}.x"), "\u{0}"] {
            judge(&keys, "a", garbage).unwrap_err();
        }
    }

    #[test]
    fn audiences_are_bounded() {
        check_audience(&["a".into()]).unwrap();
        let long = vec!["a".repeat(JWT_SVID_AUDIENCE_BYTES_MAX + 1)];
        let many = vec!["a".to_owned(); JWT_SVID_AUDIENCES_MAX + 1];
        for bad in [vec![], vec![String::new()], long, many] {
            assert_eq!(check_audience(&bad).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
