use std::time::Instant;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
        RSA_PSS_SHA384, RSA_PSS_SHA512, RsaSignatureEncoding,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use meshring_core::{
    id::Generation,
    snapshot::{Snapshot, encode},
    table::{
        TableBuilder,
        security::{InboundPolicy, JwtRule},
    },
};

use super::*;

/// Any instant: tests say what time it is.
const NOW_S: u64 = 1_700_000_000;
const ISSUER: &str = "https://issuer.example";

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// An issuer's key: the public JWK without its end brace, so that a test can add members, and how it signs.
struct Signer {
    algorithm: &'static str,
    jwk: String,
    sign: Sign,
}

impl Signer {
    fn ecdsa(algorithm: &'static str, curve: &str, how: &'static EcdsaSigningAlgorithm) -> Self {
        let pair = EcdsaKeyPair::generate(how).unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let jwk = format!(r#"{{"kty":"EC","crv":"{curve}","x":"{}","y":"{}""#, b64(x), b64(y));
        let sign = move |message: &[u8]| pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec();
        Self { algorithm, jwk, sign: Box::new(sign) }
    }

    fn es256() -> Self {
        Self::ecdsa("ES256", "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn ed25519() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let jwk = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}""#, b64(pair.public_key()));
        Self { algorithm: "EdDSA", jwk, sign: Box::new(move |message| pair.sign(message).as_ref().to_vec()) }
    }

    fn rsa(algorithm: &'static str, encoding: &'static RsaSignatureEncoding) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = pair.public_key();
        let (n, e) = (public.modulus().big_endian_without_leading_zero(), public.exponent());
        let jwk = format!(r#"{{"kty":"RSA","n":"{}","e":"{}""#, b64(n), b64(e.big_endian_without_leading_zero()));
        let sign = move |message: &[u8]| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        };
        Self { algorithm, jwk, sign: Box::new(sign) }
    }

    fn with(&self, members: &str) -> String {
        format!("{}{members}}}", self.jwk)
    }

    fn set(&self) -> String {
        format!(r#"{{"keys":[{}]}}"#, self.with(r#","kid":"k1""#))
    }

    fn raw(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(payload));
        let signature = b64((self.sign)(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    fn token(&self, payload: &str) -> String {
        self.raw(&format!(r#"{{"alg":"{}","kid":"k1","typ":"JWT"}}"#, self.algorithm), payload)
    }
}

fn good() -> String {
    format!(r#"{{"iss":"{ISSUER}","sub":"alice","aud":["a","b"],"exp":{},"scope":"read write"}}"#, NOW_S + 10)
}

struct Takes(&'static str, &'static [&'static str]);

impl Demands for Takes {
    fn issuer(&self) -> &str {
        self.0
    }
    fn takes_audience(&self, audiences: &[&str]) -> bool {
        self.1.is_empty() || self.1.iter().any(|known| audiences.contains(known))
    }
    fn space_delimited(&self) -> Vec<Box<str>> {
        Vec::new()
    }
}

fn verify(token: &str, set: &str) -> Result<Claims, BadToken> {
    token::verify(token.as_bytes(), &KeySet::parse(set.as_bytes()), &Takes(ISSUER, &[]), NOW_S)
}

fn signers() -> Vec<Signer> {
    vec![
        Signer::rsa("RS256", &RSA_PKCS1_SHA256),
        Signer::rsa("RS384", &RSA_PKCS1_SHA384),
        Signer::rsa("RS512", &RSA_PKCS1_SHA512),
        Signer::rsa("PS256", &RSA_PSS_SHA256),
        Signer::rsa("PS384", &RSA_PSS_SHA384),
        Signer::rsa("PS512", &RSA_PSS_SHA512),
        Signer::es256(),
        Signer::ecdsa("ES384", "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
        Signer::ed25519(),
    ]
}

#[test]
fn every_algorithm_verifies_its_own_tokens_and_no_others() {
    let signers = signers();
    let sets: Vec<String> = signers.iter().map(Signer::set).collect();
    for (position, signer) in signers.iter().enumerate() {
        let token = signer.token(&good());
        for (other, set) in sets.iter().enumerate() {
            assert_eq!(verify(&token, set).is_ok(), other == position, "{} by {other}", signer.algorithm);
        }
        // The right key, but the header names another algorithm: the signature does not fit, or no key does.
        for name in ["RS256", "RS384", "PS256", "ES256", "ES384", "EdDSA"] {
            if name != signer.algorithm {
                let lie = signer.raw(&format!(r#"{{"alg":"{name}","kid":"k1"}}"#), &good());
                assert!(matches!(verify(&lie, &sets[position]), Err(BadToken::Signature | BadToken::NoSuchKey)));
            }
        }
    }
}

/// RFC 7515 appendix A.2 (RS256) and A.3 (ES256), RFC 8037 appendix A.4 (Ed25519).
#[test]
fn the_vectors_of_the_rfcs_verify() {
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let es256 = format!(
        "eyJhbGciOiJFUzI1NiJ9.{payload}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    );
    let set = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    let check =
        |token: &str, now_s| token::verify(token.as_bytes(), &KeySet::parse(set.as_bytes()), &Takes("joe", &[]), now_s);
    let claims = check(&es256, 1_300_819_380).unwrap();
    assert_eq!((claims.issuer(), claims.principal()), (Some("joe"), None));
    assert_eq!(check(&es256, 1_300_819_380 + 61), Err(BadToken::Expired));
    let rs256 = format!(
        "eyJhbGciOiJSUzI1NiJ9.{payload}.\
        cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CU\
        Ar7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_d\
        O--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0ig\
        cN_IoypGlUPQGe77Rw"
    );
    let rsa = concat!(
        r#"{"keys":[{"kty":"RSA","e":"AQAB","n":""#,
        "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZ",
        "S-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2",
        "R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcD",
        r#"TW9gb54h4FRWyuXpoQ"}]}"#
    );
    let set_of_rsa = KeySet::parse(rsa.as_bytes());
    let verified = token::verify(rs256.as_bytes(), &set_of_rsa, &Takes("joe", &[]), 1_300_819_380).unwrap();
    assert_eq!(verified.issuer(), Some("joe"));
    // The same words under the other algorithm's key.
    assert!(check(&rs256, 1_300_819_380).is_err());
    // Not a JWT, but signed by Ed25519: the words of RFC 8037 are no object, so they are refused before anything else.
    let ed25519 = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(check(ed25519, 0), Err(BadToken::PayloadJson));
    let key = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let (signed, signature) = ed25519.rsplit_once('.').unwrap();
    let set = KeySet::parse(key.as_bytes());
    let key = set.candidates(None, keys::Algorithm::EdDsa).next().unwrap();
    assert!(key.verify_sig(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).is_ok());
}

#[test]
fn a_token_with_any_byte_changed_is_refused() {
    for signer in [Signer::es256(), Signer::ed25519(), Signer::rsa("PS256", &RSA_PSS_SHA256)] {
        let (token, set) = (signer.token(&good()), KeySet::parse(signer.set().as_bytes()));
        let check = |token: &[u8]| token::verify(token, &set, &Takes("", &[]), NOW_S);
        assert!(check(token.as_bytes()).is_ok());
        for at in 0..token.len() {
            for change in [1, 0x20, 0x80] {
                let mut bad = token.clone().into_bytes();
                bad[at] ^= change;
                assert!(check(&bad).is_err(), "{} at {at}", signer.algorithm);
            }
            assert!(check(&token.as_bytes()[..at]).is_err());
        }
        assert!(check(format!("{token}A").as_bytes()).is_err());
        assert!(check(format!("{token}=").as_bytes()).is_err());
        assert!(check(format!("{token}.").as_bytes()).is_err());
    }
}

#[test]
fn every_kind_of_bad_token_is_refused_with_its_reason() {
    let signer = Signer::es256();
    let set = signer.set();
    let header = |members: &str| signer.raw(&format!("{{{members}}}"), &good());
    let claims = |members: &str| signer.token(&format!("{{{members}}}"));
    let unsigned = |header: &str| format!("{}.{}.", b64(header), b64(good()));
    let nested = format!(r#"{{"iss":"{ISSUER}","a":{}{}}}"#, "[".repeat(40), "]".repeat(40));
    let cases = [
        (unsigned(r#"{"alg":"none"}"#), BadToken::Form),
        (format!("{}AAAA", unsigned(r#"{"alg":"none"}"#)), BadToken::Algorithm),
        (header(r#""alg":"nOnE""#), BadToken::Algorithm),
        (header(r#""alg":"HS256","kid":"k1""#), BadToken::Algorithm),
        (header(r#""alg":"es256","kid":"k1""#), BadToken::Algorithm),
        (header(r#""alg":"RS256","kid":"k1""#), BadToken::NoSuchKey),
        (header(r#""alg":"ES256","kid":"k2""#), BadToken::NoSuchKey),
        (header(r#""alg":"ES256","kid":7"#), BadToken::KeyId),
        (header(r#""alg":["ES256"]"#), BadToken::NoAlgorithm),
        (header(r#""kid":"k1""#), BadToken::NoAlgorithm),
        (header(r#""alg":"ES256","alg":"ES256""#), BadToken::HeaderJson),
        (header(r#""alg":"ES256","crit":["exp"]"#), BadToken::Critical),
        (header(r#""alg":"ES256","crit":[]"#), BadToken::Critical),
        (header(r#""alg":"ES256","b64":false,"crit":["b64"]"#), BadToken::Critical),
        (claims(&format!(r#""iss":"{ISSUER}","exp":{}"#, NOW_S - 61)), BadToken::Expired),
        (claims(&format!(r#""iss":"{ISSUER}","nbf":{}"#, NOW_S + 61)), BadToken::NotYetValid),
        (claims(&format!(r#""iss":"{ISSUER}","exp":"{}""#, NOW_S + 61)), BadToken::ClaimType),
        (claims(&format!(r#""iss":"{ISSUER}","exp":-1"#)), BadToken::ClaimType),
        (claims(&format!(r#""iss":"{ISSUER}","exp":null"#)), BadToken::ClaimType),
        (claims(&format!(r#""iss":"{ISSUER}","sub":1"#)), BadToken::ClaimType),
        (claims(&format!(r#""iss":"{ISSUER}","aud":["a",1]"#)), BadToken::ClaimType),
        (claims(&format!(r#""iss":["{ISSUER}"]"#)), BadToken::ClaimType),
        (claims(&format!(r#""iss":"{ISSUER}/""#)), BadToken::Issuer),
        (claims(r#""sub":"alice""#), BadToken::Issuer),
        (claims(&format!(r#""iss":"evil","iss":"{ISSUER}""#)), BadToken::PayloadJson),
        (signer.token("[]"), BadToken::PayloadJson),
        (signer.token(&nested), BadToken::PayloadJson),
        (signer.token(&format!(r#"{{"iss":"{ISSUER}","a":"{}"}}"#, "x".repeat(20_000))), BadToken::TooLong),
        // A token around a token (RFC 7519 appendix A.2): not ours to unpack.
        (signer.raw(r#"{"alg":"ES256","cty":"JWT"}"#, &signer.token(&good())), BadToken::PayloadJson),
        ("a.b.c.d.e".into(), BadToken::Form),
        ("a.b".into(), BadToken::Form),
        (String::new(), BadToken::Form),
        ("..".into(), BadToken::Form),
        ("!.b.c".into(), BadToken::HeaderEncoding),
        (format!("{}.e30=.AAAA", b64(r#"{"alg":"ES256"}"#)), BadToken::PayloadEncoding),
        (format!("{}.e30.A+/A", b64(r#"{"alg":"ES256"}"#)), BadToken::SignatureEncoding),
    ];
    for (token, bad) in cases {
        assert_eq!(verify(&token, &set), Err(bad), "{token}");
    }
    // With the leeway, to the second.
    for time in [format!(r#""exp":{}"#, NOW_S - 60), format!(r#""nbf":{}.5"#, NOW_S + 60)] {
        assert!(verify(&claims(&format!(r#""iss":"{ISSUER}",{time}"#)), &set).is_ok(), "{time}");
    }
    let audience = |takes: &'static [&'static str]| {
        let keys = KeySet::parse(set.as_bytes());
        token::verify(signer.token(&good()).as_bytes(), &keys, &Takes(ISSUER, takes), NOW_S).map(drop)
    };
    assert_eq!((audience(&["x", "b"]), audience(&["x", "A"])), (Ok(()), Err(BadToken::Audience)));
}

#[test]
fn a_public_key_is_never_a_shared_secret() {
    // The classic: sign with HMAC, take the public key's text as the secret.
    let signer = Signer::rsa("RS256", &RSA_PKCS1_SHA256);
    let secret = signer.set();
    let signed = format!("{}.{}", b64(r#"{"alg":"HS256","kid":"k1"}"#), b64(good()));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let token = format!("{signed}.{}", b64(aws_lc_rs::hmac::sign(&key, signed.as_bytes())));
    assert_eq!(verify(&token, &secret), Err(BadToken::Algorithm));
    let oct = format!(r#"{{"keys":[{{"kty":"oct","kid":"k1","alg":"HS256","k":"{}"}}]}}"#, b64(&secret));
    assert_eq!(verify(&token, &oct), Err(BadToken::Algorithm));
    assert!(KeySet::parse(oct.as_bytes()).is_empty());
}

#[test]
fn keys_that_are_not_for_verifying_or_not_sound_are_passed_over() {
    let signer = Signer::es256();
    let token = signer.token(&good());
    let with = |members: &str| format!(r#"{{"keys":[{}]}}"#, signer.with(members));
    for usable in [
        "",
        r#","use":"sig""#,
        r#","key_ops":["sign","verify"]"#,
        r#","alg":"ES256","kid":"k1","x5c":["AAAA"],"extra":{}"#,
    ] {
        assert!(verify(&token, &with(usable)).is_ok(), "{usable}");
    }
    for unusable in [
        r#","use":"enc""#,
        r#","use":7"#,
        r#","key_ops":["sign"]"#,
        r#","key_ops":"verify""#,
        r#","alg":"ES384""#,
        r#","alg":"RS256""#,
        r#","alg":null"#,
        r#","kid":1"#,
        r#","kty":"EC""#,
    ] {
        assert_eq!(verify(&token, &with(unusable)), Err(BadToken::NoKeys), "{unusable}");
    }
    let short = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"},{"kty":"RSA","n":"AQAB","e":"AQAB"},7,
        {"kty":"OKP","crv":"Ed25519","x":"AQ"},{"kty":"OKP","crv":"X25519","x":"AQ"},{"kty":"EC","crv":"P-521"},{}]}"#;
    for empty in [short, "{}", "[]", "x", r#"{"keys":{}}"#, r#"{"keys":[]}"#] {
        assert_eq!(verify(&token, empty), Err(BadToken::NoKeys), "{empty}");
    }
    assert_eq!(verify(&token, ""), Err(BadToken::NotFetched));
    // A point that is not on the curve.
    let zero = b64([1; 32]);
    let off = format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","x":"{zero}","y":"{zero}"}}]}}"#);
    assert_eq!(verify(&token, &off), Err(BadToken::NoKeys));
    // One key among others, found without a `kid`, but not behind too many.
    let others = |count: usize| {
        let list: Vec<String> = (0..count).map(|_| Signer::es256().with("")).chain([signer.with("")]).collect();
        format!(r#"{{"keys":[{}]}}"#, list.join(","))
    };
    let tried_max = meshring_core::limits::JWT_KEYS_TRIED_MAX;
    let anonymous = signer.raw(r#"{"alg":"ES256"}"#, &good());
    assert!(verify(&anonymous, &others(tried_max - 1)).is_ok());
    assert_eq!(verify(&anonymous, &others(tried_max)), Err(BadToken::Signature));
}

#[test]
fn claims_are_found_by_path() {
    let payload = format!(
        r#"{{"iss":"{ISSUER}","sub":"al/ice","azp":"app","aud":"one","scope":" read  write ","n":{{"scope":"a b","g":["x",1,"y"]}},
            "num":5,"line":"a\r\nx-admin: 1","flag":true,"big":1e30}}"#
    );
    let signer = Signer::es256();
    let claims = verify(&signer.token(&payload), &signer.set()).unwrap();
    let values = |path: &[&str]| {
        let mut list = Vec::new();
        claims.claim(path.iter().copied(), &mut |value| list.push(value));
        list
    };
    assert_eq!(claims.principal(), Some(format!("{ISSUER}/al/ice").as_str()));
    assert_eq!(claims.audiences(), ["one"]);
    assert_eq!(values(&["scope"]), ["read", "write"]);
    assert_eq!(values(&["n", "scope"]), ["a b"]);
    assert_eq!(values(&["n", "g"]), ["x", "y"]);
    for none in [&["n"][..], &["num"], &["n", "g", "x"], &["scope", "x"], &[], &["nope"]] {
        assert!(values(none).is_empty(), "{none:?}");
    }
    let output = |name: &str| {
        let mut out = Vec::new();
        claims.write_output(name, &mut out).then(|| String::from_utf8(out).unwrap())
    };
    assert_eq!(output("n.scope").as_deref(), Some("a b"));
    assert_eq!((output("num").as_deref(), output("flag").as_deref()), (Some("5"), Some("true")));
    assert_eq!(output("n.g").as_deref(), Some("WyJ4IiwxLCJ5Il0="));
    assert_eq!((output("line"), output("scope"), output("nope"), output("num.x")), (None, None, None, None));
}

struct Asked {
    method: &'static str,
    headers: Vec<(&'static str, String)>,
    query: Option<String>,
}

impl TokenView for Asked {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn authority(&self) -> &[u8] {
        b"app:80"
    }
    fn path(&self) -> &[u8] {
        b"/a\"b"
    }
    fn query(&self) -> Option<&[u8]> {
        self.query.as_deref().map(str::as_bytes)
    }
    fn header_lines<'v>(&'v self, name: &str, each: &mut dyn FnMut(&'v [u8])) {
        self.headers.iter().filter(|(known, _)| *known == name).for_each(|(_, value)| each(value.as_bytes()));
    }
}

fn get(headers: &[(&'static str, &str)]) -> Asked {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Asked { method: "GET", headers, query: None }
}

fn asked(query: &str) -> Asked {
    Asked { query: Some(query.to_owned()), ..get(&[]) }
}

fn rule(builder: &mut TableBuilder, issuer: &str, jwks: String) -> JwtRule {
    JwtRule {
        origin: builder.origin_in("RequestAuthentication default/jwt", "a.yaml", 1),
        line: 1,
        issuer: issuer.into(),
        audiences: Vec::new(),
        jwks,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward: false,
        output_payload_to_header: String::new(),
        output_claims: Vec::new(),
        space_delimited_claims: Vec::new(),
    }
}

/// A snapshot whose first inbound policy has the rules that `rules` makes.
fn snapshot(rules: impl FnOnce(&mut TableBuilder) -> Vec<JwtRule>) -> Snapshot {
    let mut builder = TableBuilder::new("cluster.local");
    let rules = rules(&mut builder);
    let jwt_rules = rules.into_iter().map(|rule| builder.jwt_rule(rule)).collect();
    let policy = builder.inbound_policy(InboundPolicy { jwt_rules, ..InboundPolicy::default() });
    builder.mesh_policy(policy);
    let bytes = encode(&builder.finish().unwrap()).unwrap().to_bytes(Generation(1));
    Snapshot::from_bytes(&bytes).unwrap()
}

fn verifier(snapshot: &Snapshot) -> Jwt {
    let table = snapshot.table();
    Jwt::new(Arc::new(KeySets::of(table, &table.inbound_policies[0])))
}

fn check<'t>(snapshot: &'t Snapshot, jwt: &Jwt, asked: &Asked) -> Outcome<'t> {
    let table = snapshot.table();
    jwt.check(table, &table.inbound_policies[0], asked, NOW_S)
}

fn outcome(snapshot: &Snapshot, asked: &Asked) -> Result<Option<String>, BadToken> {
    match check(snapshot, &verifier(snapshot), asked) {
        Outcome::NoToken => Ok(None),
        Outcome::Valid(valid) => Ok(valid.claims.principal().map(str::to_owned)),
        Outcome::Refused(refused) => Err(refused.bad),
    }
}

#[test]
fn tokens_are_found_where_the_rule_says() {
    let signer = Signer::es256();
    let token = signer.token(&good());
    let found = Ok(Some(format!("{ISSUER}/alice")));
    let default = snapshot(|builder| vec![rule(builder, ISSUER, signer.set())]);
    assert_eq!(outcome(&default, &get(&[])), Ok(None));
    for scheme in ["Bearer ", "bearer ", "BEARER  "] {
        assert_eq!(outcome(&default, &get(&[("authorization", &format!("{scheme}{token}"))])), found, "{scheme}");
    }
    for none in ["Basic YTpi", "Bearer", "Bearer ", "Bearerx", ""] {
        assert_eq!(outcome(&default, &get(&[("authorization", none)])), Ok(None), "{none}");
    }
    assert_eq!(outcome(&default, &asked(&format!("a=b&access_token={}", token.replace('.', "%2E")))), found);
    assert_eq!(outcome(&default, &asked("access_token=")), Ok(None));
    let bearer = format!("Bearer {token}");
    let bad = [("authorization", bearer.as_str()), ("authorization", "Bearer x")];
    assert_eq!(outcome(&default, &get(&bad)), Err(BadToken::Form), "a good one does not vouch for another");
    assert_eq!(outcome(&default, &get(&[("authorization", &format!("{bearer}, {bearer}"))])), Err(BadToken::Form));
    let many = asked(&vec![format!("access_token={token}"); JWT_TOKENS_MAX + 1].join("&"));
    assert_eq!(outcome(&default, &many), Err(BadToken::TooMany));
    let own = snapshot(|builder| {
        vec![JwtRule {
            from_headers: vec![("x-jwt".into(), "Token ".into())],
            from_params: vec!["t".into()],
            from_cookies: vec!["session".into()],
            ..rule(builder, ISSUER, signer.set())
        }]
    });
    assert_eq!(outcome(&own, &get(&[("authorization", "Bearer x")])), Ok(None), "no default location any more");
    assert_eq!(outcome(&own, &get(&[("x-jwt", &format!("Token {token}"))])), found);
    assert_eq!(outcome(&own, &get(&[("x-jwt", "Other x")])), Ok(None));
    assert_eq!(outcome(&own, &asked(&format!("t={token}"))), found);
    assert_eq!(outcome(&own, &get(&[("cookie", &format!("a=1; session=\"{token}\"; b"))])), found);
    assert_eq!(outcome(&own, &get(&[("cookie", "session=x.y.z")])), Err(BadToken::HeaderEncoding));
}

#[test]
fn of_several_rules_one_is_enough_and_a_bad_token_is_too_much() {
    let (one, two, foreign) = (Signer::es256(), Signer::ed25519(), Signer::es256());
    let mesh = snapshot(|builder| {
        let second = JwtRule { issuer: "two".into(), ..rule(builder, "two", two.set()) };
        vec![rule(builder, ISSUER, one.set()), second]
    });
    let bearer = |token: String| get(&[("authorization", &format!("Bearer {token}"))]);
    assert_eq!(outcome(&mesh, &bearer(two.token(r#"{"iss":"two","sub":"x"}"#))), Ok(Some("two/x".into())));
    assert_eq!(outcome(&mesh, &bearer(one.token(&good()))), Ok(Some(format!("{ISSUER}/alice"))));
    assert_eq!(outcome(&mesh, &bearer(foreign.token(&good()))), Err(BadToken::Signature));
    assert_eq!(outcome(&mesh, &bearer(two.token(r#"{"iss":"three"}"#))), Err(BadToken::Issuer));
    assert_eq!(outcome(&mesh, &get(&[])), Ok(None));
    // The keys of one issuer are no keys of the other.
    assert_eq!(outcome(&mesh, &bearer(two.raw(r#"{"alg":"EdDSA","kid":"k1"}"#, &good()))), Err(BadToken::NoSuchKey));
    let preflight = Asked { method: "OPTIONS", ..bearer("x".into()) };
    assert_eq!(outcome(&mesh, &preflight), Err(BadToken::Form));
    let mut preflight = preflight;
    preflight.headers.extend([("origin", "http://a".into()), ("access-control-request-method", "PUT".into())]);
    assert_eq!(outcome(&mesh, &preflight), Ok(None));
}

#[test]
fn a_refusal_says_why_without_breaking_its_field() {
    let mesh = snapshot(|builder| vec![rule(builder, ISSUER, String::new())]);
    let token = Signer::es256().token(&good());
    let asked = get(&[("authorization", &format!("Bearer {token}"))]);
    let Outcome::Refused(refused) = check(&mesh, &verifier(&mesh), &asked) else { panic!("accepted") };
    assert_eq!(refused.bad, BadToken::NotFetched);
    assert_eq!(refused.www_authenticate, r#"Bearer realm="http://app:80/ab", error="invalid_token""#);
    assert_eq!((BadToken::Audience.status(), BadToken::Expired.status()), (403, 401));
}

#[test]
fn a_token_for_somebody_else_is_challenged_too() {
    let signer = Signer::es256();
    let mesh =
        snapshot(|builder| vec![JwtRule { audiences: vec!["app".into()], ..rule(builder, ISSUER, signer.set()) }]);
    let token = signer.token(&format!(r#"{{"iss":"{ISSUER}","sub":"alice","aud":"elsewhere"}}"#));
    let asked = get(&[("authorization", &format!("Bearer {token}"))]);
    let Outcome::Refused(refused) = check(&mesh, &verifier(&mesh), &asked) else { panic!("accepted") };
    assert_eq!((refused.bad, refused.bad.status()), (BadToken::Audience, 403));
    assert_eq!(refused.www_authenticate, r#"Bearer realm="http://app:80/ab", error="invalid_token""#);
}

#[test]
fn what_goes_on_is_the_tokens_and_not_the_clients() {
    let signer = Signer::es256();
    let payload = format!(r#"{{"iss":"{ISSUER}","sub":"alice","bad":"a\r\nb: c","n":{{"m":"v"}}}}"#);
    let token = signer.token(&payload);
    let mesh = |forward| {
        snapshot(|builder| {
            vec![JwtRule {
                forward,
                from_headers: vec![("authorization".into(), "Bearer ".into())],
                from_params: vec!["t".into()],
                from_cookies: vec!["c".into()],
                output_payload_to_header: "x-payload".into(),
                output_claims: vec![
                    ("x-sub".into(), "sub".into()),
                    ("x-bad".into(), "bad".into()),
                    ("x-m".into(), "n.m".into()),
                ],
                ..rule(builder, ISSUER, signer.set())
            }]
        })
    };
    let written = |outcome: &Outcome<'_>, mesh: &Snapshot| {
        let table = mesh.table();
        let edits = outcome.edits(table, &table.inbound_policies[0]);
        for name in ["x-payload", "X-Sub", "x-BAD", "x-m"] {
            assert!(edits.removes(name.as_bytes()), "{name}");
        }
        let mut out = Vec::new();
        edits.append(&mut out);
        let removed = ["authorization", "Cookie", "accept"].map(|name| edits.removes(name.as_bytes()));
        (String::from_utf8(out).unwrap(), removed)
    };
    let lines = format!("x-payload: {}\r\nx-sub: alice\r\nx-m: v\r\n", b64(&payload));
    let (strict, lax) = (mesh(false), mesh(true));
    let by_header = get(&[("authorization", &format!("Bearer {token}")), ("x-sub", "mallory")]);
    let outcome = check(&strict, &verifier(&strict), &by_header);
    assert_eq!(written(&outcome, &strict), (lines.clone(), [true, false, false]));
    let outcome = check(&lax, &verifier(&lax), &by_header);
    assert_eq!(written(&outcome, &lax), (lines.clone(), [false, false, false]));
    let outcome = check(&strict, &verifier(&strict), &get(&[]));
    assert_eq!(written(&outcome, &strict), (String::new(), [false, false, false]));
    let by_cookie = get(&[("cookie", &format!("a=1; c={token}")), ("cookie", "b=2")]);
    let outcome = check(&strict, &verifier(&strict), &by_cookie);
    assert_eq!(written(&outcome, &strict), (format!("cookie: a=1; b=2\r\n{lines}"), [true, true, false]));
    let Outcome::Valid(valid) = outcome else { panic!("refused") };
    assert_eq!(valid.query_without_token(b"a=1&t=x&b=2&%74=y"), Some(b"a=1&b=2".to_vec()));
    assert_eq!(valid.query_without_token(b"a=1"), None);
}

#[test]
fn a_repeated_token_costs_a_look() {
    let signer = Signer::es256();
    let mesh = snapshot(|builder| vec![rule(builder, ISSUER, signer.set())]);
    let jwt = verifier(&mesh);
    let asked = get(&[("authorization", &format!("Bearer {}", signer.token(&good())))]);
    let first = Instant::now();
    let Outcome::Valid(once) = check(&mesh, &jwt, &asked) else { panic!("refused") };
    let first = first.elapsed();
    let begin = Instant::now();
    for _ in 0..1_000 {
        let Outcome::Valid(again) = check(&mesh, &jwt, &asked) else { panic!("refused") };
        assert!(Rc::ptr_eq(&once.claims, &again.claims), "verified a second time");
    }
    println!("first {first:?}, again {:?}", begin.elapsed() / 1_000);
    // Remembered is not forever.
    let table = mesh.table();
    let late = jwt.check(table, &table.inbound_policies[0], &asked, NOW_S + 10 + 61);
    assert!(matches!(late, Outcome::Refused(Refused { bad: BadToken::Expired, .. })));
}
