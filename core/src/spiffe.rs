//! SPIFFE ids (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).

use std::{fmt, str::FromStr};

/// Longest SPIFFE id that must be supported, in bytes (section 2.3); longer ones are nobody's.
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Longest trust domain, in bytes (section 2.1).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
const SCHEME: &str = "spiffe://";

/// A valid SPIFFE id: `spiffe://cluster.local/ns/default/sa/reviews`. What is parsed has a path, so that it is a
/// workload's; see [`SpiffeId::of_either`] for those without.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Box<str>,
    /// Where the path begins.
    path: usize,
}

/// A text that is no SPIFFE id, or not one of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSpiffeId {
    /// Another scheme, or none.
    #[error("it does not begin with spiffe://")]
    Scheme,
    /// Beyond [`SPIFFE_ID_BYTES_MAX`].
    #[error("longer than {SPIFFE_ID_BYTES_MAX} bytes")]
    TooLong,
    /// Empty or above 255 bytes.
    #[error("the trust domain is empty or longer than {TRUST_DOMAIN_BYTES_MAX} bytes")]
    TrustDomainLength,
    /// Upper case, a port, user information, anything else.
    #[error("the trust domain may hold lower-case letters, digits, '.', '-' and '_' only")]
    TrustDomainCharacter,
    /// That of a trust domain, where a workload's is asked for.
    #[error("it has no path: it names a trust domain, and no workload")]
    NoPath,
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

/// Whether a text is a trust domain's name.
pub fn check_trust_domain(name: &str) -> Result<(), BadSpiffeId> {
    if !(1..=TRUST_DOMAIN_BYTES_MAX).contains(&name.len()) {
        return Err(BadSpiffeId::TrustDomainLength);
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if name.bytes().all(allowed) { Ok(()) } else { Err(BadSpiffeId::TrustDomainCharacter) }
}

fn check_segment(segment: &str) -> Result<(), BadSpiffeId> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match segment {
        "" => Err(BadSpiffeId::EmptySegment),
        "." | ".." => Err(BadSpiffeId::DotSegment),
        _ if segment.bytes().all(allowed) => Ok(()),
        _ => Err(BadSpiffeId::PathCharacter),
    }
}

impl SpiffeId {
    /// Istio's form: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn workload(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, BadSpiffeId> {
        // Each for itself: a part with a slash in it would be valid as a path, and somebody else's.
        check_trust_domain(trust_domain)?;
        [namespace, service_account].into_iter().try_for_each(check_segment)?;
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The id of a trust domain itself: what a signing certificate is called.
    pub fn of_trust_domain(trust_domain: &str) -> Result<Self, BadSpiffeId> {
        check_trust_domain(trust_domain)?;
        Self::of_either(&format!("{SCHEME}{trust_domain}"))
    }

    /// The id of a workload or of a trust domain.
    pub fn of_either(text: &str) -> Result<Self, BadSpiffeId> {
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(BadSpiffeId::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(BadSpiffeId::Scheme)?;
        let (trust_domain, path) = match rest.split_once('/') {
            Some((trust_domain, path)) => (trust_domain, Some(path)),
            None => (rest, None),
        };
        check_trust_domain(trust_domain)?;
        path.iter().flat_map(|path| path.split('/')).try_for_each(check_segment)?;
        Ok(Self { text: text.into(), path: SCHEME.len() + trust_domain.len() })
    }

    /// All of it, as it stands in a certificate.
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

    /// The path with its leading slash; empty for a trust domain itself.
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
        let id = Self::of_either(text)?;
        if id.path().is_empty() { Err(BadSpiffeId::NoPath) } else { Ok(id) }
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

    use super::{BadSpiffeId as B, *};

    #[test]
    fn istios_form_is_taken_apart() {
        let id = SpiffeId::workload("cluster.local", "default", "reviews").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/default/sa/reviews");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/reviews");
        assert_eq!((id.trust_domain(), id.path()), ("cluster.local", "/ns/default/sa/reviews"));
        assert_eq!(id.namespace_and_account(), Some(("default", "reviews")));
        for other in ["spiffe://example.org/spire/agent", "spiffe://a/ns/b/sa/c/d", "spiffe://a/ns/b/c/sa/d"] {
            assert_eq!(other.parse::<SpiffeId>().unwrap().namespace_and_account(), None, "{other}");
        }
    }

    #[test]
    fn a_trust_domain_has_an_id_but_is_no_workload() {
        let id = SpiffeId::of_trust_domain("example_1.org").unwrap();
        assert_eq!(id.as_str(), "spiffe://example_1.org");
        assert_eq!((id.trust_domain(), id.path(), id.namespace_and_account()), ("example_1.org", "", None));
        assert_eq!(SpiffeId::of_either(id.as_str()), Ok(id.clone()));
        assert_eq!(id.as_str().parse::<SpiffeId>(), Err(B::NoPath));
        assert_eq!(SpiffeId::of_trust_domain("a/b"), Err(B::TrustDomainCharacter));
        assert_eq!(SpiffeId::of_trust_domain(""), Err(B::TrustDomainLength));
    }

    #[test]
    fn what_is_no_id_is_refused_with_its_reason() {
        let (long, long_domain) =
            (format!("spiffe://a/{}", "b".repeat(2048)), format!("spiffe://{}/x", "a".repeat(256)));
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
            assert_eq!(SpiffeId::of_either(text), Err(reason), "{text}");
        }
        assert_eq!(SpiffeId::workload("a", "x/sa/admin", "b"), Err(B::PathCharacter));
        assert_eq!(SpiffeId::workload("a", "x", ""), Err(B::EmptySegment));
        assert_eq!(SpiffeId::workload("a/b", "x", "y"), Err(B::TrustDomainCharacter));
    }

    proptest! {
        #[test]
        fn what_is_made_is_read_back(
            domain in "[a-z0-9._-]{1,40}",
            namespace in "[a-z0-9][a-z0-9-]{0,20}",
            account in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}",
        ) {
            let id = SpiffeId::workload(&domain, &namespace, &account).unwrap();
            let read: SpiffeId = id.to_string().parse().unwrap();
            prop_assert_eq!(read.namespace_and_account(), Some((namespace.as_str(), account.as_str())));
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
            let expected = grammar.is_match(&text) && !dots && text.len() <= SPIFFE_ID_BYTES_MAX;
            prop_assert_eq!(SpiffeId::of_either(&text).is_ok(), expected, "{}", &text);
            let has_path = text.matches('/').count() > 2;
            prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), expected && has_path, "{}", &text);
        }
    }
}
