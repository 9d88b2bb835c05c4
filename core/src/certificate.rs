//! What a leaf certificate says about its owner (RFC 5280 section 4.2.1.6, SPIFFE X.509-SVID section 2).

mod subject;

use crate::spiffe::{BadSpiffeId, SpiffeId};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// What a certificate says about its owner, read in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its names, or why they prove nothing.
    pub names: Result<Names, BadCertificate>,
    /// Its subject as text (RFC 2253, as OpenSSL and Envoy write it), in ASCII without control characters. An SVID's is empty.
    pub subject: String,
}

impl Description {
    /// Of a DER certificate.
    pub fn of(der: &[u8]) -> Result<Self, BadCertificate> {
        let certificate = read(der)?;
        Ok(Self { names: Names::read(&certificate), subject: subject::rfc2253(certificate.subject()) })
    }
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, BadCertificate> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(BadCertificate::Malformed),
    }
}

/// The names in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// URI names, as they stand.
    pub uris: Vec<String>,
    /// DNS names, as they stand.
    pub dns: Vec<String>,
    /// Whether the certificate may sign others: a workload's must not (SPIFFE X.509-SVID section 4.1).
    pub is_authority: bool,
    /// End of its validity in seconds since 1970.
    pub not_after_s: u64,
}

/// A certificate that proves no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// No DER certificate, or with extensions that cannot be read.
    #[error("the certificate is malformed")]
    Malformed,
    /// A NUL, a space, a control byte or a byte beyond ASCII.
    #[error("a name in the certificate has bytes that no name has")]
    Name,
    /// None or several: it is not clear who it is.
    #[error("the certificate has {0} URI names, where a workload's has exactly one")]
    NotOneUri(usize),
    /// Workloads sign nobody.
    #[error("the certificate is that of an authority, not of a workload")]
    Authority,
    /// Not of the form that SPIFFE asks for.
    #[error("the certificate's URI is no SPIFFE id of a workload: {0}")]
    Id(#[from] BadSpiffeId),
}

impl Names {
    /// Of a DER certificate. Strict: what is malformed anywhere proves nothing.
    pub fn of(der: &[u8]) -> Result<Self, BadCertificate> {
        Self::read(&read(der)?)
    }

    fn read(certificate: &X509Certificate<'_>) -> Result<Self, BadCertificate> {
        let malformed = |_| BadCertificate::Malformed;
        let mut names = Self {
            uris: Vec::new(),
            dns: Vec::new(),
            is_authority: certificate.basic_constraints().map_err(malformed)?.is_some_and(|basic| basic.value.ca)
                || certificate
                    .key_usage()
                    .map_err(malformed)?
                    .is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()),
            not_after_s: u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0),
        };
        let Some(alternative) = certificate.subject_alternative_name().map_err(malformed)? else { return Ok(names) };
        for name in &alternative.value.general_names {
            match name {
                GeneralName::URI(uri) => names.uris.push(sound(uri)?.to_owned()),
                GeneralName::DNSName(dns) => names.dns.push(sound(dns)?.to_owned()),
                GeneralName::Invalid(..) => return Err(BadCertificate::Malformed),
                _ => {}
            }
        }
        Ok(names)
    }

    /// The identity, if this is a workload's certificate.
    pub fn identity(&self) -> Result<SpiffeId, BadCertificate> {
        let [uri] = &self.uris[..] else { return Err(BadCertificate::NotOneUri(self.uris.len())) };
        if self.is_authority {
            return Err(BadCertificate::Authority);
        }
        Ok(uri.parse()?)
    }

    /// Whether one of them is one of these names: a URI or a DNS name as a whole.
    pub fn has_any_of(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.uris.contains(name) || self.dns.iter().any(|dns| dns.eq_ignore_ascii_case(name)))
    }
}

/// IA5String is 7 bits wide; a NUL or a control byte in a name has only ever been an attack.
fn sound(name: &str) -> Result<&str, BadCertificate> {
    if name.bytes().all(|b| b.is_ascii_graphic()) { Ok(name) } else { Err(BadCertificate::Name) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Description::of(&bytes);
        }
    }

    #[test]
    fn a_name_is_found_as_a_whole() {
        let names = Names {
            uris: vec!["spiffe://a/b".into()],
            dns: vec!["reviews.example.com".into()],
            is_authority: false,
            not_after_s: 0,
        };
        let has = |name: &str| names.has_any_of(&[name.to_owned()]);
        assert!(has("spiffe://a/b") && has("Reviews.example.com"));
        assert!(!has("spiffe://a/bc") && !has("spiffe://A/b") && !has("example.com") && !has(""));
        assert_eq!(names.identity().map(|id| id.to_string()), Ok("spiffe://a/b".to_owned()));
    }
}
