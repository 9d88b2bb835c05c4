//! Credentials that the table names: `file:CERT:KEY:CA`, read again when a file changes, and `secret:NAMESPACE/NAME`. A bad
//! one changes nothing: the last good one stays in use, and `meshring certs` says what is wrong.

use std::{fs::File, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::SystemTime};

use meshring_core::{
    identity::{Material, TrustBundle},
    limits::MATERIAL_BYTES_MAX,
    secret::SecretBytes,
    snapshot::region::sealed,
};

use crate::{
    ca::{Facts, fingerprint, pem, unix_s},
    control::watch::Fingerprint,
    spec::secret::{SecretParts, Secrets},
};

/// A checked credential, sealed for every proxy that needs it. The key is in there and nowhere else.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) fd: OwnedFd,
    /// Of the sealed bytes: equal ones need not be sent again.
    pub(super) checksum: u64,
    /// The leaf, or nothing where there are only roots.
    pub(super) leaf: Option<Leaf>,
}

/// What people are told about a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) subject: String,
    pub(super) serial: String,
    pub(super) not_after: SystemTime,
    /// Of the first root that it is judged by where the credential holds one, else of the last certificate in the chain.
    pub(super) issuer: String,
}

/// One name and what stands behind it.
#[derive(Debug)]
pub(super) struct Credential {
    name: String,
    source: Source,
    pub(super) good: Option<Arc<Loaded>>,
    /// Why the present content is not used.
    pub(super) problem: Option<String>,
    /// How often content was refused.
    pub(super) failures: u64,
}

#[derive(Debug)]
enum Source {
    Files {
        paths: [Option<PathBuf>; 3],
        watched: Vec<PathBuf>,
        read: Option<Fingerprint>,
        seen: Option<Fingerprint>,
        again: bool,
    },
    Secret {
        key: String,
        read: Option<Option<SecretParts>>,
    },
    Unknown,
}

const PARTS: [&str; 3] = ["certificate", "key", "ca"];

impl Credential {
    pub(super) fn new(name: &str) -> Self {
        let source = if let Some(key) = name.strip_prefix("secret:") {
            Source::Secret { key: key.to_owned(), read: None }
        } else {
            let parts: Vec<&str> =
                name.strip_prefix("file:").map(|paths| paths.split(':').collect()).unwrap_or_default();
            match <[&str; 3]>::try_from(parts) {
                Ok(parts) => {
                    let paths = parts.map(|path| (!path.is_empty()).then(|| PathBuf::from(path)));
                    let watched = paths.iter().flatten().cloned().collect();
                    Source::Files { paths, watched, read: None, seen: None, again: false }
                }
                Err(_) => Source::Unknown,
            }
        };
        Self { name: name.to_owned(), source, good: None, problem: None, failures: 0 }
    }

    /// Looks whether the content has changed, and takes it up. Files are read when they are at rest for a tick: a
    /// certificate and its key are written one after the other.
    pub(super) fn look(&mut self, secrets: &Secrets, now: SystemTime) {
        let texts = match &mut self.source {
            Source::Files { paths, watched, read, seen, again } => {
                let current = Fingerprint::of(watched);
                let rested = read.is_none() || seen.is_none_or(|seen| seen == current);
                *seen = Some(current);
                if !rested || (*read == Some(current) && !*again) {
                    return;
                }
                // Once more at the next tick: two changes within a tick of the file system's clock look like one.
                *again = *read != Some(current);
                *read = Some(current);
                read_files(paths)
            }
            Source::Secret { key, read } => {
                let current = secrets.get(key);
                if read.as_ref().is_some_and(|read| read.as_ref() == current) {
                    return;
                }
                *read = Some(current.cloned());
                match current {
                    Some(parts) => Ok([parts.certificate(), parts.key(), parts.ca()]
                        .map(|part| part.map(|text| (String::new(), SecretBytes::from(text))))),
                    None => Err(format!("Secret {key} does not exist")),
                }
            }
            Source::Unknown => {
                Err("is neither file:CERTIFICATE:KEY:CA (paths without a colon) nor secret:NAMESPACE/NAME".into())
            }
        };
        match texts.and_then(|texts| load(&self.name, &texts, now)) {
            Ok(loaded) => {
                let new = self.good.as_ref().is_none_or(|good| good.checksum != loaded.checksum);
                if new || self.problem.is_some() {
                    tracing::info!("credential {}: read{}", self.name, until(&loaded));
                }
                self.problem = None;
                if new {
                    self.good = Some(Arc::new(loaded));
                }
            }
            Err(reason) if self.problem.as_ref() == Some(&reason) => {}
            Err(reason) => {
                let kept = if self.good.is_some() { "; the last good one stays in use" } else { "" };
                tracing::warn!("credential {}: {reason}{kept}", self.name);
                self.problem = Some(reason);
                self.failures += 1;
            }
        }
    }
}

fn until(loaded: &Loaded) -> String {
    loaded
        .leaf
        .as_ref()
        .map_or_else(String::new, |leaf| format!(", {} valid until {}", leaf.subject, crate::ca::shown(leaf.not_after)))
}

/// Name of the file (empty for a Secret) and its content, for certificate, key and roots.
type Texts = [Option<(String, SecretBytes)>; 3];

fn read_files(paths: &[Option<PathBuf>; 3]) -> Result<Texts, String> {
    let mut texts = [None, None, None];
    for (text, path) in texts.iter_mut().zip(paths) {
        let Some(path) = path else { continue };
        let failed = |reason: String| format!("{}: {reason}", path.display());
        if !path.is_absolute() {
            return Err(failed("the path must be absolute".into()));
        }
        // A pipe or a device would hold everybody up.
        let metadata = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
        if !metadata.is_file() || metadata.len() > MATERIAL_BYTES_MAX as u64 {
            return Err(failed(format!("is no file of at most {MATERIAL_BYTES_MAX} bytes")));
        }
        let content = File::open(path).and_then(|file| SecretBytes::read_from(file, MATERIAL_BYTES_MAX));
        let content = content.map_err(|error| failed(error.to_string()))?;
        *text = Some((format!("{}: ", path.display()), content));
    }
    Ok(texts)
}

/// Checks everything that a peer would, and seals it.
fn load(name: &str, texts: &Texts, now: SystemTime) -> Result<Loaded, String> {
    let told = |part: usize| {
        texts[part].as_ref().map_or(String::new(), |(place, _)| {
            if place.is_empty() { format!("{}: ", PARTS[part]) } else { place.clone() }
        })
    };
    let [certificate, key, ca] = texts;
    let chain = match certificate {
        Some((_, text)) => pem::certificates(text).map_err(|error| format!("{}{error}", told(0)))?,
        None => Vec::new(),
    };
    let leaf = match chain.first() {
        Some(der) => {
            let facts = Facts::of(der).map_err(|error| format!("{}{error}", told(0)))?;
            facts.valid_at(now).map_err(|error| format!("{}{error}", told(0)))?;
            Some(facts)
        }
        None => None,
    };
    for der in chain.iter().skip(1) {
        Facts::of(der).map_err(|error| format!("{}{error}", told(0)))?;
    }
    let pkcs8 = match (key, &leaf) {
        (Some((_, text)), Some(leaf)) => {
            let key = pem::private_key(text).map_err(|error| format!("{}{error}", told(1)))?;
            if key.public != leaf.public_key {
                return Err(format!("{}the key does not belong to the certificate {}", told(1), leaf.subject));
            }
            key.pkcs8
        }
        (None, None) => SecretBytes::default(),
        (Some(_), None) => return Err("has a key without a certificate".into()),
        (None, Some(_)) => return Err("has a certificate without a key".into()),
    };
    let roots = match ca {
        Some((_, text)) => pem::certificates(text).map_err(|error| format!("{}{error}", told(2)))?,
        None => Vec::new(),
    };
    for der in &roots {
        Facts::of(der).map_err(|error| format!("{}{error}", told(2)))?;
    }
    if chain.is_empty() && roots.is_empty() {
        return Err("holds neither a certificate nor roots".into());
    }
    let shown = leaf.map(|facts| Leaf {
        issuer: roots.first().or(chain.last()).map(|der| fingerprint(der)).unwrap_or_default(),
        subject: facts.subject,
        serial: facts.serial,
        not_after: facts.not_after,
    });
    let bundles = if roots.is_empty() { vec![] } else { vec![TrustBundle { trust_domain: String::new(), roots }] };
    let not_after_s = shown.as_ref().map_or(0, |leaf| unix_s(leaf.not_after));
    let bytes = Material { name: name.to_owned(), chain, key: pkcs8, bundles, not_after_s }.encode();
    if bytes.len() > MATERIAL_BYTES_MAX {
        return Err(format!("is longer than {MATERIAL_BYTES_MAX} bytes"));
    }
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes);
    let fd = sealed("meshring-credential", &[&bytes]).map_err(|error| format!("memfd: {error}"))?;
    Ok(Loaded { fd, checksum, leaf: shown })
}

#[cfg(test)]
mod tests;
