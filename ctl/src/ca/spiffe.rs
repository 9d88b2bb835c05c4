//! SPIFFE ids (SPIFFE-ID standard, sections 2 and 2.1 to 2.3).

use std::{fmt, str::FromStr};

const SCHEME: &str = "spiffe://";
/// Longest id that must be supported, in bytes (SPIFFE-ID, section 2.3); longer ones are nobody's.
const ID_BYTES_MAX: usize = 2048;
/// Longest trust domain name, in bytes (SPIFFE-ID, section 2.1).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// A valid SPIFFE id: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT` for workloads of this mesh.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    /// End of the trust domain in `text`.
    path: usize,
}

/// A text that is no SPIFFE id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSpiffeId {
    /// It begins with something else.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// Above 2,048 bytes.
    #[error("longer than {ID_BYTES_MAX} bytes")]
    TooLong,
    /// Empty or above 255 bytes.
    #[error("the trust domain is empty or longer than {TRUST_DOMAIN_BYTES_MAX} bytes")]
    TrustDomainLength,
    /// Upper case, a port, user information, anything else.
    #[error("the trust domain may hold lower-case letters, digits, '.', '-' and '_' only")]
    TrustDomainCharacter,
    /// `//` or a slash at the end.
    #[error("the path has an empty segment or ends with a slash")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the path has a segment '.' or '..'")]
    DotSegment,
    /// Escapes, a query, a fragment, anything else.
    #[error("the path may hold letters, digits, '.', '-' and '_' only")]
    PathCharacter,
}

impl SpiffeId {
    /// The id of a workload.
    ///
    /// # Errors
    /// A part holds what an id cannot.
    pub fn workload(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, BadSpiffeId> {
        // Each for itself: a part with a slash in it would be valid as a path, and somebody else's.
        check_trust_domain(trust_domain)?;
        segment(namespace)?;
        segment(service_account)?;
        Self::parse(format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The id of a trust domain itself: what a signing certificate is called.
    ///
    /// # Errors
    /// It is no trust domain name.
    pub fn of_trust_domain(trust_domain: &str) -> Result<Self, BadSpiffeId> {
        check_trust_domain(trust_domain)?;
        Self::parse(format!("{SCHEME}{trust_domain}"))
    }

    fn parse(text: String) -> Result<Self, BadSpiffeId> {
        if text.len() > ID_BYTES_MAX {
            return Err(BadSpiffeId::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(BadSpiffeId::Scheme)?;
        let (trust_domain, path) = match rest.split_once('/') {
            Some((trust_domain, path)) => (trust_domain, Some(path)),
            None => (rest, None),
        };
        check_trust_domain(trust_domain)?;
        if let Some(path) = path {
            path.split('/').try_for_each(segment)?;
        }
        let path = SCHEME.len() + trust_domain.len();
        Ok(Self { text, path })
    }

    /// As it stands in a certificate.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// Its path with the leading slash, empty for a trust domain itself.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// Namespace and service account, where it is a workload's id in Istio's form.
    #[must_use]
    pub fn as_workload(&self) -> Option<(&str, &str)> {
        let (namespace, service_account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !service_account.contains('/')).then_some((namespace, service_account))
    }
}

/// Whether a text can be a trust domain.
fn check_trust_domain(text: &str) -> Result<(), BadSpiffeId> {
    if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX {
        return Err(BadSpiffeId::TrustDomainLength);
    }
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    if text.bytes().all(allowed) { Ok(()) } else { Err(BadSpiffeId::TrustDomainCharacter) }
}

fn segment(text: &str) -> Result<(), BadSpiffeId> {
    match text {
        "" => Err(BadSpiffeId::EmptySegment),
        "." | ".." => Err(BadSpiffeId::DotSegment),
        _ if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) => Ok(()),
        _ => Err(BadSpiffeId::PathCharacter),
    }
}

impl FromStr for SpiffeId {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, BadSpiffeId> {
        if text.len() > ID_BYTES_MAX { Err(BadSpiffeId::TooLong) } else { Self::parse(text.to_owned()) }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_read_as_the_standard_says() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("cluster.local", "/ns/default/sa/reviews"));
        assert_eq!(id.as_workload(), Some(("default", "reviews")));
        assert_eq!(id, SpiffeId::workload("cluster.local", "default", "reviews").unwrap());
        let domain: SpiffeId = "spiffe://example_1.org".parse().unwrap();
        assert_eq!((domain.trust_domain(), domain.path(), domain.as_workload()), ("example_1.org", "", None));
        assert_eq!("spiffe://a/ns/b/sa/c/d".parse::<SpiffeId>().unwrap().as_workload(), None);
    }

    #[test]
    fn what_is_none_is_refused_with_its_reason() {
        use BadSpiffeId as B;
        let (long, long_domain) = (format!("spiffe://a/{}", "b".repeat(2048)), format!("spiffe://{}", "a".repeat(256)));
        for (text, reason) in [
            ("", B::Scheme),
            ("https://a/b", B::Scheme),
            ("SPIFFE://a/b", B::Scheme),
            ("spiffe:/a", B::Scheme),
            ("spiffe://", B::TrustDomainLength),
            ("spiffe:///ns/a", B::TrustDomainLength),
            (&long_domain, B::TrustDomainLength),
            ("spiffe://Cluster.local/a", B::TrustDomainCharacter),
            ("spiffe://a:8080/b", B::TrustDomainCharacter),
            ("spiffe://user@a/b", B::TrustDomainCharacter),
            ("spiffe://a?q", B::TrustDomainCharacter),
            ("spiffe://a\0b/c", B::TrustDomainCharacter),
            ("spiffe://a/", B::EmptySegment),
            ("spiffe://a/b/", B::EmptySegment),
            ("spiffe://a//b", B::EmptySegment),
            ("spiffe://a/./b", B::DotSegment),
            ("spiffe://a/b/..", B::DotSegment),
            ("spiffe://a/b%41", B::PathCharacter),
            ("spiffe://a/b?c", B::PathCharacter),
            ("spiffe://a/b#c", B::PathCharacter),
            ("spiffe://a/b\0", B::PathCharacter),
            ("spiffe://a/ü", B::PathCharacter),
            (&long, B::TooLong),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(reason), "{text}");
        }
        assert_eq!(SpiffeId::workload("a", "x/sa/admin", "b"), Err(B::PathCharacter));
        assert_eq!(SpiffeId::workload("a", "x", ""), Err(B::EmptySegment));
        assert_eq!(SpiffeId::workload("a/b", "x", "y"), Err(B::TrustDomainCharacter));
        assert_eq!(SpiffeId::of_trust_domain("a/b"), Err(B::TrustDomainCharacter));
    }

    proptest! {
        #[test]
        fn what_is_made_is_read_back(domain in "[a-z0-9._-]{1,40}", ns in "[a-z0-9][a-z0-9-]{0,20}", sa in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}") {
            let id = SpiffeId::workload(&domain, &ns, &sa).unwrap();
            let read: SpiffeId = id.to_string().parse().unwrap();
            prop_assert_eq!(read.as_workload(), Some((ns.as_str(), sa.as_str())));
            prop_assert_eq!(read.trust_domain(), domain.as_str());
            prop_assert_eq!(read, id);
        }

        /// The grammar as a regular expression, an independent judge.
        #[test]
        fn exactly_the_grammar_is_taken(text in prop_oneof![
            "spiffe://[a-zA-Z0-9._:@-]{0,6}(/[a-zA-Z0-9._%?#-]{0,3}){0,4}",
            "(spiffe|http)://[a-z.]{0,4}/?.{0,10}",
            any::<String>(),
        ]) {
            let grammar = regex::Regex::new(r"\Aspiffe://[a-z0-9._-]{1,255}(/[a-zA-Z0-9._-]+)*\z").unwrap();
            let dots = text.split('/').skip(3).any(|segment| segment == "." || segment == "..");
            let expected = grammar.is_match(&text) && !dots && text.len() <= 2048;
            prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), expected, "{}", text);
        }
    }
}
