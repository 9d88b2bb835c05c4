//! SPIFFE ids (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).

use std::{fmt, str::FromStr};

/// Longest SPIFFE id, in bytes (section 2.3).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Longest trust domain, in bytes (section 2.1).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
const SCHEME: &str = "spiffe://";

/// A valid SPIFFE id with a path: `spiffe://cluster.local/ns/default/sa/reviews`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Box<str>,
    /// Where the path begins.
    path: usize,
}

/// A text that is no SPIFFE id of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSpiffeId {
    /// Another scheme, or none.
    #[error("does not start with spiffe://")]
    Scheme,
    /// Empty, too long, or with characters other than `a-z0-9.-_`.
    #[error("the trust domain is not 1 to 255 characters of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    /// None, or with empty or dot segments, or with characters other than `a-zA-Z0-9.-_`.
    #[error("the path is not one or more segments of a-z, A-Z, 0-9, '.', '-' and '_'")]
    Path,
    /// Beyond [`SPIFFE_ID_BYTES_MAX`].
    #[error("longer than {SPIFFE_ID_BYTES_MAX} bytes")]
    TooLong,
}

/// Whether a text is a trust domain's name.
pub fn check_trust_domain(name: &str) -> Result<(), BadSpiffeId> {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    match (1..=TRUST_DOMAIN_BYTES_MAX).contains(&name.len()) && name.bytes().all(valid) {
        true => Ok(()),
        false => Err(BadSpiffeId::TrustDomain),
    }
}

fn check_segment(segment: &str) -> Result<(), BadSpiffeId> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(valid) {
        true => Ok(()),
        false => Err(BadSpiffeId::Path),
    }
}

impl SpiffeId {
    /// Istio's form: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn workload(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, BadSpiffeId> {
        [namespace, service_account].into_iter().try_for_each(check_segment)?;
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// All of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As AuthorizationPolicies write principals: without `spiffe://`.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// The path with its leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// Namespace and service account, where the path has Istio's form.
    #[must_use]
    pub fn namespace_and_account(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }
}

impl FromStr for SpiffeId {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, BadSpiffeId> {
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(BadSpiffeId::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(BadSpiffeId::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(BadSpiffeId::Path)?;
        check_trust_domain(trust_domain)?;
        path.split('/').try_for_each(check_segment)?;
        Ok(Self { text: text.into(), path: SCHEME.len() + trust_domain.len() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn istios_form_is_taken_apart() {
        let id = SpiffeId::workload("cluster.local", "default", "reviews").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/default/sa/reviews");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/reviews");
        assert_eq!((id.trust_domain(), id.path()), ("cluster.local", "/ns/default/sa/reviews"));
        assert_eq!(id.namespace_and_account(), Some(("default", "reviews")));
        let other: SpiffeId = "spiffe://example.org/spire/agent".parse().unwrap();
        assert_eq!(other.namespace_and_account(), None);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let long = format!("spiffe://{}/x", "a".repeat(256));
        for (text, expected) in [
            ("https://a/b", BadSpiffeId::Scheme),
            ("SPIFFE://a/b", BadSpiffeId::Scheme),
            ("spiffe://a", BadSpiffeId::Path),
            ("spiffe://a/", BadSpiffeId::Path),
            ("spiffe://a//b", BadSpiffeId::Path),
            ("spiffe://a/../b", BadSpiffeId::Path),
            ("spiffe://a/b%2f", BadSpiffeId::Path),
            ("spiffe://a/b?c", BadSpiffeId::Path),
            ("spiffe://a/b\0", BadSpiffeId::Path),
            ("spiffe:///b", BadSpiffeId::TrustDomain),
            ("spiffe://A/b", BadSpiffeId::TrustDomain),
            ("spiffe://a:80/b", BadSpiffeId::TrustDomain),
            ("spiffe://u@a/b", BadSpiffeId::TrustDomain),
            (&long, BadSpiffeId::TrustDomain),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(expected), "{text}");
        }
        assert!(SpiffeId::workload("a", "b/c", "d").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in any::<String>()) {
            let _ = text.parse::<SpiffeId>();
            let _ = format!("spiffe://{text}").parse::<SpiffeId>();
        }
    }
}
