//! Join tokens: proof that a proxy of another unix user may speak for a workload. A token is 256 random bits, kept as its
//! SHA-256 only. Its first use must come before it expires and binds it to the user id that used it; from then on that user
//! alone can use it, as often as its proxies or control start anew, until it is revoked.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{constant_time, digest};
use meshring_core::{limits::JOIN_TOKENS_MAX, link::JoinToken};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    certificate::{hex, unix_s},
    store::Folder,
};

const FILE: &str = "tokens.json";
/// So that a token is recognised where it does not belong: in a log, a repository.
const PREFIX: &str = "mrjt_";

/// A token as control remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// SHA-256 of the text, hexadecimal.
    hash: String,
    namespace: String,
    service_account: String,
    /// End of the time for its first use, in seconds since 1970.
    expires_s: u64,
    /// Who has used it.
    uid: Option<u32>,
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The workload's namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// A token, for people: never the token itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// The first digits of its hash: its name.
    pub id: String,
    /// What it is good for.
    pub claim: Claim,
    /// End of the time for its first use, in seconds since 1970.
    pub expires_s: u64,
    /// The user id that it is bound to.
    pub uid: Option<u32>,
}

/// A token that is not honoured, or not made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody has made it, or it was revoked.
    #[error("the join token is unknown: it was revoked, or is of another control process")]
    Unknown,
    /// Its time was over before its first use.
    #[error(
        "the join token {id} has expired; make a new one with `meshring certs token --for {namespace}/{service_account}`"
    )]
    Expired {
        /// Which.
        id: String,
        /// What it was for.
        namespace: String,
        /// What it was for.
        service_account: String,
    },
    /// Somebody else has used it.
    #[error("the join token {id} was used by user id {owner} before, and is not good for user id {uid}")]
    Bound {
        /// Which.
        id: String,
        /// Whose it is.
        owner: u32,
        /// Who came with it.
        uid: u32,
    },
    /// See [`JOIN_TOKENS_MAX`].
    #[error("there are {JOIN_TOKENS_MAX} join tokens already: revoke some with `meshring certs token --revoke ID`")]
    TooMany,
    /// The random number generator fails.
    #[error("no random numbers")]
    Random,
    /// The file.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// All join tokens.
#[derive(Debug)]
pub struct Tokens {
    folder: Folder,
    stored: Mutex<Vec<Stored>>,
}

fn hash(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

impl Stored {
    fn id(&self) -> String {
        self.hash[..8].to_owned()
    }

    fn live(&self, now_s: u64) -> bool {
        self.uid.is_some() || now_s < self.expires_s
    }
}

impl Tokens {
    /// Reads those of earlier starts.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn open(folder: &Path) -> Result<Self, TokenError> {
        let file = |source| TokenError::File { path: folder.join(FILE), source };
        let folder = Folder::open(folder).map_err(file)?;
        let stored: Vec<Stored> = folder.load(FILE).map_err(file)?.unwrap_or_default();
        let whole = |token: &Stored| token.hash.len() == 64 && token.hash.is_ascii();
        if !stored.iter().all(whole) {
            return Err(file(io::Error::new(io::ErrorKind::InvalidData, "not what control has written")));
        }
        Ok(Self { folder, stored: Mutex::new(stored) })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stored>> {
        self.stored.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Nothing is known that is not on the disk.
    fn replace(&self, current: &mut Vec<Stored>, next: Vec<Stored>) -> Result<(), TokenError> {
        self.folder.store(FILE, &next).map_err(|source| TokenError::File { path: self.folder.join(FILE), source })?;
        *current = next;
        Ok(())
    }

    /// Makes a token; the only time that it is shown.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn make(&self, claim: Claim, ttl: Duration, now: SystemTime) -> Result<Zeroizing<String>, TokenError> {
        let mut random = Zeroizing::new([0_u8; 32]);
        aws_lc_rs::rand::fill(&mut *random).map_err(|_| TokenError::Random)?;
        let text = Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(hex(&*random))));
        let mut current = self.lock();
        let now_s = unix_s(now);
        let mut next: Vec<Stored> = current.iter().filter(|token| token.live(now_s)).cloned().collect();
        if next.len() >= JOIN_TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        next.push(Stored {
            hash: hash(&text),
            namespace: claim.namespace,
            service_account: claim.service_account,
            expires_s: now_s + ttl.as_secs(),
            uid: None,
        });
        self.replace(&mut current, next)?;
        Ok(text)
    }

    /// What a token that a process of user `uid` presents is good for; binds it to that user at the first use.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn redeem(&self, token: &JoinToken, uid: u32, now: SystemTime) -> Result<Claim, TokenError> {
        let hash = hash(token.0.trim());
        let mut current = self.lock();
        let same =
            |stored: &Stored| constant_time::verify_slices_are_equal(stored.hash.as_bytes(), hash.as_bytes()).is_ok();
        let at = current.iter().position(same).ok_or(TokenError::Unknown)?;
        let found = &current[at];
        let claim = Claim { namespace: found.namespace.clone(), service_account: found.service_account.clone() };
        match found.uid {
            Some(owner) if owner == uid => return Ok(claim),
            Some(owner) => return Err(TokenError::Bound { id: found.id(), owner, uid }),
            None if !found.live(unix_s(now)) => {
                let Claim { namespace, service_account } = claim;
                return Err(TokenError::Expired { id: found.id(), namespace, service_account });
            }
            None => {}
        }
        let mut next = current.clone();
        next[at].uid = Some(uid);
        self.replace(&mut current, next)?;
        Ok(claim)
    }

    /// Takes a token back: who holds it keeps what was issued, and gets nothing more after its next start.
    ///
    /// # Errors
    /// There is none of this id, or the file cannot be written.
    pub fn revoke(&self, id: &str) -> Result<(), TokenError> {
        let mut current = self.lock();
        let next: Vec<Stored> = current.iter().filter(|token| token.id() != id).cloned().collect();
        if next.len() == current.len() {
            return Err(TokenError::Unknown);
        }
        self.replace(&mut current, next)
    }

    /// All that are of use still.
    #[must_use]
    pub fn list(&self, now: SystemTime) -> Vec<TokenInfo> {
        let now_s = unix_s(now);
        let current = self.lock();
        let live = current.iter().filter(|token| token.live(now_s));
        live.map(|token| TokenInfo {
            id: token.id(),
            claim: Claim { namespace: token.namespace.clone(), service_account: token.service_account.clone() },
            expires_s: token.expires_s,
            uid: token.uid,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        Claim { namespace: "default".into(), service_account: "reviews".into() }
    }

    #[test]
    fn a_token_is_its_first_users_until_it_is_revoked_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let tokens = Tokens::open(dir.path()).unwrap();
        let token = JoinToken(tokens.make(claim(), Duration::from_secs(60), now).unwrap().to_string());
        assert_eq!(token.0.len(), PREFIX.len() + 64);
        let on_disk = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!on_disk.contains(&token.0[PREFIX.len()..]), "the token itself is stored");
        assert_eq!(tokens.redeem(&token, 1001, now).unwrap(), claim());
        // A file ends with a line feed.
        assert_eq!(tokens.redeem(&JoinToken(format!("{}\n", token.0)), 1001, now).unwrap(), claim());
        let error = tokens.redeem(&token, 1002, now).unwrap_err().to_string();
        assert!(error.contains("1001") && error.contains("1002"), "{error}");
        let tokens = Tokens::open(dir.path()).unwrap();
        let much_later = now + Duration::from_secs(1_000_000);
        assert_eq!(tokens.redeem(&token, 1001, much_later).unwrap(), claim());
        assert!(matches!(tokens.redeem(&token, 0, now), Err(TokenError::Bound { owner: 1001, .. })));
        let list = tokens.list(much_later);
        assert_eq!((list.len(), list[0].uid), (1, Some(1001)));
        tokens.revoke(&list[0].id).unwrap();
        assert!(matches!(tokens.redeem(&token, 1001, now), Err(TokenError::Unknown)));
        assert!(matches!(tokens.revoke(&list[0].id), Err(TokenError::Unknown)));
    }

    #[test]
    fn an_expired_or_unknown_token_is_refused_and_expired_ones_leave_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let tokens = Tokens::open(dir.path()).unwrap();
        let token = JoinToken(tokens.make(claim(), Duration::from_secs(60), now).unwrap().to_string());
        let later = now + Duration::from_secs(61);
        let error = tokens.redeem(&token, 1001, later).unwrap_err().to_string();
        assert!(error.contains("expired") && error.contains("--for default/reviews"), "{error}");
        assert!(!error.contains(&token.0), "{error}");
        assert!(matches!(tokens.redeem(&JoinToken(String::new()), 1001, now), Err(TokenError::Unknown)));
        assert_eq!(tokens.list(later).len(), 0);
        let _ = tokens.make(claim(), Duration::from_secs(60), later).unwrap();
        assert_eq!(tokens.lock().len(), 1);
    }
}
