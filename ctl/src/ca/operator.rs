//! An operator's own CA, from files. Everything that would make certificates that nobody accepts is found here, at the start.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::SystemTime,
};

use meshring_core::{limits::MATERIAL_BYTES_MAX, secret::SecretBytes};

use super::{
    BadCertificate, Facts, SpiffeId,
    certificate::{Signer, is_signed_by},
    pem::{self, BadPem},
};

/// `--ca-cert`, `--ca-key`, `--ca-chain`, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorFiles {
    /// The issuing certificate; further certificates in it count as chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates up to the root, and further roots to trust.
    pub chain: Option<PathBuf>,
}

/// A CA that cannot be used; names the file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct BadOperatorCa {
    path: PathBuf,
    reason: String,
}

/// The operator's CA, ready to issue.
#[derive(Debug)]
pub(super) struct Operator {
    pub(super) signer: Signer,
    /// From the signer to below the root; what a leaf's chain goes on with.
    pub(super) above: Vec<Vec<u8>>,
    /// Self-signed ones, the one above the signer first.
    pub(super) roots: Vec<Vec<u8>>,
}

impl OperatorFiles {
    /// Reads and checks them.
    pub(super) fn load(&self, trust_domain: &str, now: SystemTime) -> Result<Operator, BadOperatorCa> {
        let bad = |path: &Path, reason: String| BadOperatorCa { path: path.to_owned(), reason };
        let read = |path: &Path| {
            let read = File::open(path).and_then(|file| SecretBytes::read_from(file, MATERIAL_BYTES_MAX));
            read.map_err(|error| bad(path, error.to_string()))
        };
        let syntax = |path: &Path, error: BadPem| bad(path, error.to_string());
        let certificates = |path: &Path| pem::certificates(&read(path)?).map_err(|error| syntax(path, error));
        let mut pool: Vec<(&Path, Vec<u8>, Facts)> = Vec::new();
        for path in std::iter::once(self.certificate.as_path()).chain(self.chain.as_deref()) {
            for der in certificates(path)? {
                let facts = Facts::of(&der).map_err(|error| bad(path, error.to_string()))?;
                if !pool.iter().any(|(_, known, _)| *known == der) {
                    pool.push((path, der, facts));
                }
            }
        }
        for (path, _, facts) in &pool {
            check(facts, trust_domain, now).map_err(|reason| bad(path, reason))?;
        }
        let key_text = read(&self.key)?;
        let key = pem::private_key(&key_text).map_err(|error| syntax(&self.key, error))?;
        let (_, issuer, facts) = &pool[0];
        if key.public != facts.public_key {
            let reason = format!(
                "the key does not belong to the certificate {} in {}",
                facts.subject,
                self.certificate.display()
            );
            return Err(bad(&self.key, reason));
        }
        let chain_path = self.chain.as_deref().unwrap_or(&self.certificate);
        let path = path_to_root(&pool).map_err(|reason| bad(chain_path, reason))?;
        let signer = Signer::new(issuer.clone(), &key.pkcs8).map_err(|error| bad(&self.key, error.to_string()))?;
        match signer.names_itself(now) {
            Ok(true) => {}
            Ok(false) => {
                let reason =
                    "the subject has a form that cannot be repeated as an issuer (an attribute that is there twice?)";
                return Err(bad(&self.certificate, reason.into()));
            }
            Err(error) => return Err(bad(&self.key, error.to_string())),
        }
        let (root, above) = path.split_last().map_or((0, &[][..]), |(root, above)| (*root, above));
        let others = (0..pool.len()).filter(|&at| at != root && is_root(&pool[at]));
        let der = |at: usize| pool[at].1.clone();
        Ok(Operator {
            signer,
            above: above.iter().map(|&at| der(at)).collect(),
            roots: std::iter::once(root).chain(others).map(der).collect(),
        })
    }
}

fn is_root((_, der, facts): &(&Path, Vec<u8>, Facts)) -> bool {
    facts.is_self_issued() && is_signed_by(der, der)
}

fn check(facts: &Facts, trust_domain: &str, now: SystemTime) -> Result<(), String> {
    let subject = &facts.subject;
    if !facts.is_ca {
        return Err(format!("certificate {subject} is no CA (basicConstraints CA:TRUE is missing)"));
    }
    if !facts.signs_certificates {
        return Err(format!("certificate {subject} may not sign certificates (keyUsage keyCertSign is missing)"));
    }
    facts.valid_at(now).map_err(|error: BadCertificate| error.to_string())?;
    let foreign = facts.uris.iter().filter_map(|uri| SpiffeId::of_either(uri).ok());
    if let Some(id) = foreign.into_iter().find(|id| id.trust_domain() != trust_domain) {
        return Err(format!(
            "certificate {subject} is of {id}, and the trust domain here is {trust_domain} (--trust-domain)"
        ));
    }
    Ok(())
}

/// Positions from the issuing certificate (0) up to a root.
fn path_to_root(pool: &[(&Path, Vec<u8>, Facts)]) -> Result<Vec<usize>, String> {
    let mut path = vec![0];
    loop {
        let at = path[path.len() - 1];
        let (_, der, facts) = &pool[at];
        // Below the one at position n of the path stand n other CAs.
        if facts.path_length.is_some_and(|most| (most as usize) < path.len() - 1) {
            return Err(format!(
                "certificate {} does not allow so many certificates below it (pathlen)",
                facts.subject
            ));
        }
        if is_root(&pool[at]) {
            return Ok(path);
        }
        let above = (0..pool.len()).find(|&other| !path.contains(&other) && is_signed_by(der, &pool[other].1));
        match above {
            Some(other) => path.push(other),
            None => {
                return Err(format!(
                    "the certificate that has signed {} is missing: give all of them up to the root with --ca-chain",
                    facts.subject
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests;
