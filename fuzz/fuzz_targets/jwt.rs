//! JSON Web Tokens and JWK sets: no bytes make the verifier panic, and nothing verifies but what its issuer has signed.
#![no_main]

use std::sync::OnceLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;

// The proxy is a program, not a library: its verifier is compiled into this one.
#[allow(dead_code, reason = "the proxy uses more of it")]
#[path = "../../proxy/src/policy/jwt/claims.rs"]
mod claims;
#[allow(dead_code, reason = "the proxy uses more of it")]
#[path = "../../proxy/src/policy/jwt/json.rs"]
mod json;
#[allow(dead_code, reason = "the proxy uses more of it")]
#[path = "../../proxy/src/policy/jwt/keys.rs"]
mod keys;
#[allow(dead_code, reason = "the proxy uses more of it")]
#[path = "../../proxy/src/policy/jwt/token.rs"]
mod token;

use keys::KeySet;
use token::{BadToken, Demands, verify};

/// When the issuer's tokens are valid.
const NOW_S: u64 = 1_700_000_000;

struct Anything;

impl Demands for Anything {
    fn issuer(&self) -> &str {
        ""
    }
    fn takes_audience(&self, _: &[&str]) -> bool {
        true
    }
    fn space_delimited(&self) -> Vec<Box<str>> {
        vec!["roles".into()]
    }
}

struct Issuer {
    pair: Ed25519KeyPair,
    keys: KeySet,
}

impl Issuer {
    /// The same at each run: a finding must be repeatable.
    fn known() -> &'static Self {
        static KNOWN: OnceLock<Issuer> = OnceLock::new();
        KNOWN.get_or_init(|| {
            let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed");
            let x = URL_SAFE_NO_PAD.encode(pair.public_key());
            let set = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}]}}"#);
            Self { keys: KeySet::parse(set.as_bytes()), pair }
        })
    }

    fn sign(&self, header: &[u8], payload: &[u8]) -> Vec<u8> {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}").into_bytes()
    }
}

// The first byte says what the rest is: a token, a set, claims or a header that the issuer signs, or a change to a good
// token.
fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let issuer = Issuer::known();
    match kind % 5 {
        0 => assert!(verify(rest, &issuer.keys, &Anything, NOW_S).is_err(), "nobody has signed it"),
        1 => {
            let keys = KeySet::parse(rest);
            let good = issuer.sign(br#"{"alg":"EdDSA"}"#, b"{}");
            let _ = verify(&good, &keys, &Anything, NOW_S);
        }
        2 => {
            let token = issuer.sign(br#"{"alg":"EdDSA"}"#, rest);
            if let Ok(claims) = verify(&token, &issuer.keys, &Anything, NOW_S) {
                look_at(&claims, rest);
            }
        }
        3 => {
            let token = issuer.sign(rest, b"{}");
            let is_good = verify(&token, &issuer.keys, &Anything, NOW_S).is_ok();
            assert!(!is_good || serde_json::from_slice::<serde_json::Value>(rest).expect("JSON")["alg"] == "EdDSA");
        }
        _ => {
            let good = issuer.sign(br#"{"alg":"EdDSA","typ":"JWT"}"#, br#"{"iss":"i","sub":"s","exp":1700000010}"#);
            assert!(verify(&good, &issuer.keys, &Anything, NOW_S).is_ok());
            let mut bad = good.clone();
            for change in rest.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bad.len();
                bad[at] = change[2];
            }
            assert!(bad == good || verify(&bad, &issuer.keys, &Anything, NOW_S).is_err(), "changed and still good");
        }
    }
});

/// Reads all that the proxy reads, with names from the input.
fn look_at(claims: &claims::Claims, names: &[u8]) {
    let mut out = Vec::new();
    let name = String::from_utf8_lossy(&names[..names.len().min(64)]).into_owned();
    for claim in ["sub", "scope", "a.b", "roles", &name] {
        claims.claim(claim.split('.'), &mut |value| assert!(value.len() <= names.len()));
        out.clear();
        if claims.write_output(claim, &mut out) {
            assert!(out.iter().all(|&byte| byte == b'\t' || (byte >= 0x20 && byte != 0x7f)), "not one field value");
        } else {
            assert!(out.is_empty());
        }
    }
    let _ = (claims.issuer(), claims.principal(), claims.audiences(), claims.payload_base64url());
    let _: Result<(), BadToken> = claims.validity().check(0);
}
