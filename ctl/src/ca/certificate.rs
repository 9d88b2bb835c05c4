//! Making certificates, and reading what they say. ECDSA P-256 throughout: the smallest that every peer knows.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    digest,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use meshring_core::{limits::CERTIFICATE_BACKDATE_S, secret::SecretBytes};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroize;

use super::{IssueError, SpiffeId, Svid};

/// A certificate that is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// Not DER, or with bytes behind its end.
    #[error("is not a certificate: the DER does not parse")]
    Der,
    /// Its time is over.
    #[error("certificate {subject} has expired at {}", super::certificate::shown(*not_after))]
    Expired {
        /// Its subject.
        subject: String,
        /// When it ended.
        not_after: SystemTime,
    },
    /// Its time has not come.
    #[error("certificate {subject} is valid from {} on only", super::certificate::shown(*not_before))]
    NotYetValid {
        /// Its subject.
        subject: String,
        /// When it begins.
        not_before: SystemTime,
    },
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// For people: the subject, or the first alternative name where there is none.
    pub subject: String,
    /// The subject as DER.
    pub subject_raw: Vec<u8>,
    /// The issuer as DER.
    pub issuer_raw: Vec<u8>,
    /// Hexadecimal.
    pub serial: String,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// The content of `subjectPublicKey`.
    pub public_key: Vec<u8>,
    /// basicConstraints: the CA bit.
    pub is_ca: bool,
    /// keyUsage allows the signing of certificates; true without the extension.
    pub signs_certificates: bool,
    /// basicConstraints: how many intermediates may follow.
    pub path_length: Option<u32>,
    /// URIs among the alternative names.
    pub uris: Vec<String>,
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// It is none.
    pub fn of(der: &[u8]) -> Result<Self, BadCertificate> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| BadCertificate::Der)?;
        if !rest.is_empty() {
            return Err(BadCertificate::Der);
        }
        let names = certificate.subject_alternative_name().map_err(|_| BadCertificate::Der)?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let uris: Vec<String> = names
            .iter()
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        let subject = certificate.subject().to_string();
        let subject =
            if subject.is_empty() { names.first().map(ToString::to_string).unwrap_or_default() } else { subject };
        let constraints = certificate.basic_constraints().map_err(|_| BadCertificate::Der)?;
        let usage = certificate.key_usage().map_err(|_| BadCertificate::Der)?;
        let at = |time: x509_parser::time::ASN1Time| system_time(time.timestamp());
        Ok(Self {
            subject,
            subject_raw: certificate.subject().as_raw().to_vec(),
            issuer_raw: certificate.issuer().as_raw().to_vec(),
            serial: hex(certificate.raw_serial()),
            not_before: at(certificate.validity().not_before),
            not_after: at(certificate.validity().not_after),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            is_ca: constraints.as_ref().is_some_and(|extension| extension.value.ca),
            signs_certificates: usage.is_none_or(|extension| extension.value.key_cert_sign()),
            path_length: constraints.and_then(|extension| extension.value.path_len_constraint),
            uris,
        })
    }

    /// Whether it is valid at a time.
    ///
    /// # Errors
    /// It is not any more, or not yet.
    pub fn valid_at(&self, now: SystemTime) -> Result<(), BadCertificate> {
        if now >= self.not_after {
            return Err(BadCertificate::Expired { subject: self.subject.clone(), not_after: self.not_after });
        }
        if now < self.not_before {
            return Err(BadCertificate::NotYetValid { subject: self.subject.clone(), not_before: self.not_before });
        }
        Ok(())
    }

    /// Whether its own key has signed it, as far as names tell.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.subject_raw == self.issuer_raw
    }
}

/// Whether `issuer`'s key has signed `der`.
pub(super) fn is_signed_by(der: &[u8], issuer: &[u8]) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) = (X509Certificate::from_der(der), X509Certificate::from_der(issuer))
    else {
        return false;
    };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The first 16 digits of a certificate's SHA-256: enough to tell roots apart.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, der).as_ref()[..8])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn shown(at: SystemTime) -> String {
    let seconds = unix_s(at);
    let time = x509_parser::time::ASN1Time::from_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX));
    time.map(|time| {
        let time = time.to_datetime();
        let (date, clock) = (time.date(), time.time());
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            clock.hour(),
            clock.minute(),
            clock.second()
        )
    })
    .unwrap_or_else(|_| format!("{seconds} s after 1970"))
}

/// Seconds since 1970; 0 before.
pub(crate) fn unix_s(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn system_time(timestamp: i64) -> SystemTime {
    let distance = Duration::from_secs(timestamp.unsigned_abs());
    if timestamp < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

fn random<const N: usize>() -> Result<[u8; N], IssueError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueError::Failed("no random numbers".into()))?;
    Ok(bytes)
}

/// 127 random bits, positive and not 0 (RFC 5280 section 4.1.2.2 asks for at most 20 octets).
fn serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn failed(error: &rcgen::Error) -> IssueError {
    IssueError::Failed(error.to_string())
}

/// A signing certificate with its key, ready to sign.
pub(super) struct Signer {
    /// DER.
    pub(super) der: Vec<u8>,
    pub(super) facts: Facts,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("subject", &self.facts.subject).finish_non_exhaustive()
    }
}

impl Signer {
    /// From a certificate and its key.
    pub(super) fn new(der: Vec<u8>, pkcs8: &[u8]) -> Result<Self, IssueError> {
        let facts = Facts::of(&der).map_err(|error| IssueError::Failed(error.to_string()))?;
        let key = key_pair(pkcs8)?;
        let issuer =
            Issuer::from_ca_cert_der(&CertificateDer::from(der.as_slice()), key).map_err(|error| failed(&error))?;
        Ok(Self { der, facts, issuer })
    }

    /// A new self-signed root.
    pub(super) fn root(trust_domain: &str, now: SystemTime, life: Duration) -> Result<(Self, SecretBytes), IssueError> {
        let mut params = authority_params("root", trust_domain, 1)?;
        params.not_before = (now - Duration::from_secs(CERTIFICATE_BACKDATE_S)).into();
        params.not_after = (now + life).into();
        let (key, pkcs8) = new_key()?;
        let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
        Ok((Self::new(certificate.der().to_vec(), &pkcs8)?, pkcs8))
    }

    /// A new intermediate under this root.
    pub(super) fn intermediate(
        &self,
        trust_domain: &str,
        now: SystemTime,
        life: Duration,
    ) -> Result<(Self, SecretBytes), IssueError> {
        let mut params = authority_params("intermediate", trust_domain, 0)?;
        let (begin, end) = self.validity(now, life);
        (params.not_before, params.not_after) = (begin.into(), end.into());
        params.use_authority_key_identifier_extension = true;
        let (key, pkcs8) = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| failed(&error))?;
        Ok((Self::new(certificate.der().to_vec(), &pkcs8)?, pkcs8))
    }

    /// Within the signer's own.
    fn validity(&self, now: SystemTime, life: Duration) -> (SystemTime, SystemTime) {
        let begin = (now - Duration::from_secs(CERTIFICATE_BACKDATE_S)).max(self.facts.not_before);
        (begin, (now + life).min(self.facts.not_after))
    }

    /// A workload's certificate with a fresh key (SPIFFE X509-SVID, sections 3 to 5). `above` are the certificates that lead
    /// from this signer to its root, the signer first where it is no root.
    pub(super) fn svid(
        &self,
        id: &SpiffeId,
        now: SystemTime,
        life: Duration,
        above: &[Vec<u8>],
    ) -> Result<Svid, IssueError> {
        let mut params = CertificateParams::default();
        // The identity is the URI alone: with an empty subject the alternative name is critical (RFC 5280 section 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(|error| failed(&error))?)];
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let (begin, end) = self.validity(now, life);
        (params.not_before, params.not_after) = (begin.into(), end.into());
        let key = LeafKey::generate()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| failed(&error))?;
        let facts = Facts::of(certificate.der()).map_err(|error| IssueError::Failed(error.to_string()))?;
        let mut chain = vec![certificate.der().to_vec()];
        chain.extend_from_slice(above);
        Ok(Svid {
            id: id.clone(),
            chain,
            key: key.pkcs8,
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
        })
    }

    /// Whether certificate and key belong together.
    pub(super) fn is_whole(&self) -> bool {
        self.facts.public_key == self.issuer.key().public_key_raw()
    }

    /// Whether what it signs names it exactly: a subject in an unusual form would be written in another way.
    pub(super) fn names_itself(&self, now: SystemTime) -> Result<bool, IssueError> {
        let id = SpiffeId::of_trust_domain("probe").map_err(|error| IssueError::Failed(error.to_string()))?;
        let probe = self.svid(&id, now, Duration::from_secs(60), &[])?;
        Ok(is_signed_by(&probe.chain[0], &self.der))
    }
}

fn authority_params(what: &str, trust_domain: &str, path_length: u8) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "meshring");
    // Each has a name of its own: paths are built by names, and two roots live side by side while one is being replaced.
    name.push(DnType::CommonName, format!("meshring {what} {}", hex(&random::<4>()?)));
    params.distinguished_name = name;
    let id = SpiffeId::of_trust_domain(trust_domain).map_err(|error| IssueError::Failed(error.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(|error| failed(&error))?)];
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A signing key and its PKCS #8 form, to be stored.
fn new_key() -> Result<(KeyPair, SecretBytes), IssueError> {
    let key = LeafKey::generate()?;
    Ok((key_pair(&key.pkcs8)?, key.pkcs8))
}

/// A key that can sign, and no more: what rcgen keeps of the PKCS #8, to give it out again, is wiped at once.
fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, IssueError> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    let mut key = KeyPair::try_from(&der).map_err(|error| failed(&error))?;
    key.zeroize();
    Ok(key)
}

/// A key that signs nothing here, so rcgen gets to see its public half only and keeps no copy.
pub(super) struct LeafKey {
    pub(super) pkcs8: SecretBytes,
    public: Vec<u8>,
}

impl LeafKey {
    pub(super) fn generate() -> Result<Self, IssueError> {
        let failed = |_| IssueError::Failed("no key can be made".into());
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let pkcs8 = key.to_pkcs8v1().map_err(failed)?;
        Ok(Self { pkcs8: pkcs8.as_ref().into(), public: key.public_key().as_ref().to_vec() })
    }
}

impl PublicKeyData for LeafKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
