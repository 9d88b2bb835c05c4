//! Keys that sign JWT-SVIDs (SPIFFE JWT-SVID standard, sections 3 and 4). They live in this process only and are never
//! written anywhere; a token lives for minutes, so a restart of control costs a verifier one new bundle.
//!
//! A key is published some time before it signs, so that who verifies knows it in time, and stays published until the
//! last token that it has signed is dead.

use std::{
    fmt,
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header,
    jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash},
};
use meshring_core::limits::JWT_SVID_LIFE_S;
use serde::Serialize;

use super::certificate::LeafKey;

/// How long what lives.
#[derive(Debug, Clone, Copy)]
pub struct Lives {
    /// A key signs so long.
    pub key: Duration,
    /// It is published so long before.
    pub ahead: Duration,
    /// A token, with what clocks may differ.
    pub token: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        const HOUR_S: u64 = 3600;
        let token = Duration::from_secs(JWT_SVID_LIFE_S + 60);
        Self { key: Duration::from_secs(24 * HOUR_S), ahead: Duration::from_secs(HOUR_S), token }
    }
}

/// A key cannot be made, or does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key for JWT-SVIDs: {0}")]
pub struct JwtKeyError(String);

fn failed(error: impl fmt::Display) -> JwtKeyError {
    JwtKeyError(error.to_string())
}

struct Key {
    id: String,
    /// `None` once it signs no more: then nobody can.
    private: Option<EncodingKey>,
    public: DecodingKey,
    jwk: Jwk,
    signs_from: SystemTime,
    signs_until: SystemTime,
}

impl Key {
    fn new(signs_from: SystemTime, lives: Lives) -> Result<Self, JwtKeyError> {
        // The copy that this makes is wiped with it, too.
        let private = EncodingKey::from_ec_der(&LeafKey::generate().map_err(failed)?.pkcs8);
        let mut jwk = Jwk::from_encoding_key(&private, Algorithm::ES256).map_err(failed)?;
        let id = jwk.thumbprint(ThumbprintHash::SHA256).map_err(failed)?;
        jwk.common.key_id = Some(id.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Other("jwt-svid".into()));
        let public = DecodingKey::from_jwk(&jwk).map_err(failed)?;
        Ok(Self { id, private: Some(private), public, jwk, signs_from, signs_until: signs_from + lives.key })
    }
}

/// The keys of this control process, for ECDSA P-256 with SHA-256 (ES256).
pub struct JwtKeys {
    lives: Lives,
    keys: Mutex<Vec<Key>>,
}

impl fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKeys").field("lives", &self.lives).finish_non_exhaustive()
    }
}

impl JwtKeys {
    /// With a first key that signs from now on.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn new(lives: Lives, now: SystemTime) -> Result<Self, JwtKeyError> {
        let first = Key::new(now, lives)?;
        Ok(Self { lives, keys: Mutex::new(vec![first]) })
    }

    /// The keys as they are to be at a moment: with a successor in time, without the dead.
    fn at(&self, now: SystemTime) -> Result<MutexGuard<'_, Vec<Key>>, JwtKeyError> {
        let mut keys = self.keys.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let last = keys.iter().map(|key| key.signs_until).max();
        match last {
            Some(until) if until > now + self.lives.ahead => {}
            // The usual change. Nothing was published ahead where the clock has jumped or the machine has slept.
            Some(until) => keys.push(Key::new(until.max(now), self.lives)?),
            None => keys.push(Key::new(now, self.lives)?),
        }
        keys.retain(|key| key.signs_until + self.lives.token > now);
        for key in keys.iter_mut().filter(|key| key.signs_until <= now) {
            key.private = None;
        }
        Ok(keys)
    }

    /// Signs claims.
    ///
    /// # Errors
    /// See [`JwtKeyError`].
    pub fn sign(&self, claims: &impl Serialize, now: SystemTime) -> Result<String, JwtKeyError> {
        let keys = self.at(now)?;
        // A clock that was set back may be before all of them.
        let usable = |key: &&Key| key.private.is_some();
        let begun = |key: &&Key| key.signs_from <= now;
        let key = keys.iter().filter(usable).rfind(begun).or_else(|| keys.iter().find(usable));
        let (key, private) = key.and_then(|key| Some((key, key.private.as_ref()?))).ok_or_else(|| failed("none"))?;
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, private).map_err(failed)
    }

    /// The public half of a key that is in the bundle.
    ///
    /// # Errors
    /// See [`JwtKeyError`].
    pub fn public(&self, id: &str, now: SystemTime) -> Result<Option<DecodingKey>, JwtKeyError> {
        Ok(self.at(now)?.iter().find(|key| key.id == id).map(|key| key.public.clone()))
    }

    /// The bundle as a JWK set (RFC 7517), and when it changes next.
    ///
    /// # Errors
    /// See [`JwtKeyError`].
    pub fn bundle(&self, now: SystemTime) -> Result<(Vec<u8>, SystemTime), JwtKeyError> {
        let keys = self.at(now)?;
        let set = JwkSet { keys: keys.iter().map(|key| key.jwk.clone()).collect() };
        let json = serde_json::to_vec(&set).map_err(failed)?;
        let leaves = keys.iter().map(|key| key.signs_until + self.lives.token);
        let successor = keys.iter().map(|key| key.signs_until).max().map(|until| until - self.lives.ahead);
        let next = leaves.chain(successor).filter(|at| *at > now).min().unwrap_or(now + self.lives.ahead);
        Ok((json, next))
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use jsonwebtoken::Validation;
    use serde_json::{Value, json};

    use super::*;

    const LIVES: Lives =
        Lives { key: Duration::from_secs(1000), ahead: Duration::from_secs(100), token: Duration::from_secs(10) };

    fn ids(keys: &JwtKeys, now: SystemTime) -> Vec<String> {
        let set: Value = serde_json::from_slice(&keys.bundle(now).unwrap().0).unwrap();
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }

    fn signer(keys: &JwtKeys, now: SystemTime) -> String {
        let token = keys.sign(&json!({"sub": "a"}), now).unwrap();
        jsonwebtoken::decode_header(token).unwrap().kid.unwrap()
    }

    #[test]
    fn the_bundle_is_what_the_standard_asks_for() {
        let now = SystemTime::now();
        let keys = JwtKeys::new(LIVES, now).unwrap();
        let set: Value = serde_json::from_slice(&keys.bundle(now).unwrap().0).unwrap();
        let key = &set["keys"][0];
        assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&json!("jwt-svid"), &json!("EC"), &json!("P-256")));
        assert!(key["kid"].as_str().unwrap().len() >= 32);
        assert!(key.get("d").is_none(), "a private key in a bundle");
    }

    #[test]
    fn a_successor_is_published_before_it_signs_and_a_predecessor_after_it_signed() {
        let begin = SystemTime::now();
        let at = |s| begin + Duration::from_secs(s);
        let keys = JwtKeys::new(LIVES, begin).unwrap();
        let first = signer(&keys, begin);
        assert_eq!(keys.bundle(begin).unwrap().1, at(900));
        assert_eq!(ids(&keys, at(899)), slice::from_ref(&first));
        let both = ids(&keys, at(900));
        assert_eq!((both.len(), &both[0]), (2, &first));
        assert_eq!(signer(&keys, at(999)), first);
        assert_eq!(keys.bundle(at(900)).unwrap().1, at(1010));
        assert_eq!(signer(&keys, at(1000)), both[1]);
        assert_eq!(ids(&keys, at(1009)), both, "tokens of the first one are still alive");
        assert!(keys.public(&first, at(1009)).unwrap().is_some());
        assert_eq!(ids(&keys, at(1010)), both[1..]);
        assert!(keys.public(&first, at(1010)).unwrap().is_none());
    }

    #[test]
    fn a_retired_key_signs_for_nobody() {
        let begin = SystemTime::now();
        let keys = JwtKeys::new(LIVES, begin).unwrap();
        let later = keys.at(begin + LIVES.key).unwrap();
        assert!(later[0].private.is_none() && later[1].private.is_some());
    }

    #[test]
    fn clocks_that_jump_leave_a_key_that_signs() {
        let begin = SystemTime::now();
        let keys = JwtKeys::new(LIVES, begin).unwrap();
        let (past, future) = (begin - Duration::from_secs(5000), begin + Duration::from_secs(500_000));
        assert_eq!(signer(&keys, past), signer(&keys, begin));
        let new = signer(&keys, future);
        assert_eq!(ids(&keys, future), [new]);
    }

    #[test]
    fn tokens_verify_by_the_published_key_and_only_by_that() {
        let now = SystemTime::now();
        let (keys, others) = (JwtKeys::new(LIVES, now).unwrap(), JwtKeys::new(LIVES, now).unwrap());
        let token = keys.sign(&json!({"sub": "a"}), now).unwrap();
        let mut rules = Validation::new(Algorithm::ES256);
        rules.required_spec_claims.clear();
        let verify = |keys: &JwtKeys| {
            let set: JwkSet = serde_json::from_slice(&keys.bundle(now).unwrap().0).unwrap();
            jsonwebtoken::decode::<Value>(&token, &DecodingKey::from_jwk(&set.keys[0]).unwrap(), &rules)
        };
        assert_eq!(verify(&keys).unwrap().claims["sub"], "a");
        verify(&others).unwrap_err();
    }
}
