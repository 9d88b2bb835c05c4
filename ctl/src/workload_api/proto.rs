//! Messages of the SPIFFE Workload API (SPIFFE_Workload_API standard, section 5 and 6), by hand: there are eleven, and a
//! generator would need a build script. Field numbers are the standard's.

use std::{collections::HashMap, fmt};

/// Full method names. The service is in no package.
pub mod method {
    /// Stream of X.509-SVIDs.
    pub const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
    /// Stream of X.509 bundles.
    pub const FETCH_X509_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";
    /// JWT-SVIDs for an audience.
    pub const FETCH_JWT_SVID: &str = "/SpiffeWorkloadAPI/FetchJWTSVID";
    /// Stream of JWT bundles.
    pub const FETCH_JWT_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchJWTBundles";
    /// Judges a JWT-SVID.
    pub const VALIDATE_JWT_SVID: &str = "/SpiffeWorkloadAPI/ValidateJWTSVID";
}

/// Every call must carry this header (section 4.2 of the SPIFFE Workload Endpoint): a browser or an SSRF cannot send it.
pub const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Asks for X.509-SVIDs.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct X509SvidRequest {}

/// Each message replaces the one before as a whole.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509SvidResponse {
    /// The caller's identities; the first is the default.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// DER.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub crl: Vec<bytes::Bytes>,
    /// Roots of foreign trust domains: DER, one after the other, by the trust domain's SPIFFE id.
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
}

/// One identity with its key.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct X509Svid {
    /// As in the leaf.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// DER, one after the other, the leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS #8 DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Roots of the own trust domain: DER, one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// What this one is for, where there are several.
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

impl Drop for X509Svid {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.x509_svid_key);
    }
}

/// Asks for X.509 bundles.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct X509BundlesRequest {}

/// Each message replaces the one before as a whole.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509BundlesResponse {
    /// DER.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub crl: Vec<bytes::Bytes>,
    /// Roots: DER, one after the other, by the trust domain's SPIFFE id.
    #[prost(map = "string, bytes", tag = "2")]
    pub bundles: HashMap<String, Vec<u8>>,
}

/// Asks for JWT-SVIDs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct JwtSvidRequest {
    /// At least one.
    #[prost(string, repeated, tag = "1")]
    pub audience: Vec<String>,
    /// Only this identity; empty for all.
    #[prost(string, tag = "2")]
    pub spiffe_id: String,
}

/// JWT-SVIDs, the default first.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct JwtSvidResponse {
    /// At least one.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<JwtSvid>,
}

/// One identity as a token.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct JwtSvid {
    /// The subject.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// JWS in compact serialisation.
    #[prost(string, tag = "2")]
    pub svid: String,
    /// What this one is for, where there are several.
    #[prost(string, tag = "3")]
    pub hint: String,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token is a secret while it is valid.
        f.debug_struct("JwtSvid").field("spiffe_id", &self.spiffe_id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// Asks for JWT bundles.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct JwtBundlesRequest {}

/// Each message replaces the one before as a whole.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct JwtBundlesResponse {
    /// JWK sets (RFC 7517) by the trust domain's SPIFFE id.
    #[prost(map = "string, bytes", tag = "1")]
    pub bundles: HashMap<String, Vec<u8>>,
}

/// Asks whether a JWT-SVID is valid.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct ValidateJwtSvidRequest {
    /// The token must be meant for this audience.
    #[prost(string, tag = "1")]
    pub audience: String,
    /// The token.
    #[prost(string, tag = "2")]
    pub svid: String,
}

impl fmt::Debug for ValidateJwtSvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtSvidRequest").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// A valid token's content.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValidateJwtSvidResponse {
    /// The subject.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// All claims.
    #[prost(message, optional, tag = "2")]
    pub claims: Option<prost_types::Struct>,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// The bytes are written out from the standard's field numbers: a mix-up of tags would still round-trip.
    #[test]
    fn messages_have_the_standards_field_numbers() {
        let svid = X509Svid {
            spiffe_id: "i".into(),
            x509_svid: vec![1],
            x509_svid_key: vec![2],
            bundle: vec![3],
            hint: "h".into(),
        };
        let expected = [0x0a, 1, b'i', 0x12, 1, 1, 0x1a, 1, 2, 0x22, 1, 3, 0x2a, 1, b'h'];
        assert_eq!(svid.encode_to_vec(), expected);
        let response = X509SvidResponse {
            svids: vec![svid],
            crl: Vec::new(),
            federated_bundles: HashMap::from([("f".to_owned(), vec![4])]),
        };
        let bytes = response.encode_to_vec();
        assert_eq!(bytes[..2], [0x0a, 15]);
        assert_eq!(bytes[17..], [0x1a, 6, 0x0a, 1, b'f', 0x12, 1, 4]);
        let bundles = X509BundlesResponse { crl: Vec::new(), bundles: HashMap::from([("b".to_owned(), vec![5])]) };
        assert_eq!(bundles.encode_to_vec(), [0x12, 6, 0x0a, 1, b'b', 0x12, 1, 5]);
        let jwt = JwtSvidRequest { audience: vec!["a".into(), "b".into()], spiffe_id: "i".into() };
        assert_eq!(jwt.encode_to_vec(), [0x0a, 1, b'a', 0x0a, 1, b'b', 0x12, 1, b'i']);
        let jwt =
            JwtSvidResponse { svids: vec![JwtSvid { spiffe_id: "i".into(), svid: "s".into(), hint: "h".into() }] };
        assert_eq!(jwt.encode_to_vec(), [0x0a, 9, 0x0a, 1, b'i', 0x12, 1, b's', 0x1a, 1, b'h']);
        let jwt = JwtBundlesResponse { bundles: HashMap::from([("b".to_owned(), vec![5])]) };
        assert_eq!(jwt.encode_to_vec(), [0x0a, 6, 0x0a, 1, b'b', 0x12, 1, 5]);
        let validate = ValidateJwtSvidRequest { audience: "a".into(), svid: "s".into() };
        assert_eq!(validate.encode_to_vec(), [0x0a, 1, b'a', 0x12, 1, b's']);
        let valid = ValidateJwtSvidResponse { spiffe_id: "i".into(), claims: Some(prost_types::Struct::default()) };
        assert_eq!(valid.encode_to_vec(), [0x0a, 1, b'i', 0x12, 0]);
    }

    #[test]
    fn keys_and_tokens_are_never_shown() {
        let mut svid = X509Svid::default();
        svid.x509_svid_key = b"secret".to_vec();
        let message = X509SvidResponse { svids: vec![svid], ..X509SvidResponse::default() };
        let shown = format!("{message:?}");
        assert!(!shown.contains("secret") && !shown.contains("115"), "{shown}");
        let token = JwtSvidResponse { svids: vec![JwtSvid { svid: "secret".into(), ..JwtSvid::default() }] };
        assert!(!format!("{token:?}").contains("secret"));
        let validate = ValidateJwtSvidRequest { svid: "secret".into(), ..ValidateJwtSvidRequest::default() };
        assert!(!format!("{validate:?}").contains("secret"));
    }
}
