//! Certificates of every kind, good and bad, from an authority that a test holds in its hand.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// `subjectAltName` (RFC 5280 section 4.2.1.6).
const SUBJECT_ALT_NAME: [u64; 4] = [2, 5, 29, 17];
/// `uniformResourceIdentifier` of GeneralName, context tag 6.
const TAG_URI: u8 = 0x86;
/// `dNSName` of GeneralName, context tag 2.
const TAG_DNS: u8 = 0x82;

/// A root that signs.
#[derive(Debug)]
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    /// The root as PEM.
    pub pem: String,
    /// The root as DER.
    pub der: Vec<u8>,
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// URIs, as bytes: also such as no URI may have.
    pub uris: Vec<Vec<u8>>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Attributes of the subject, the first one first.
    pub subject: Vec<(DnType, String)>,
    /// From now; negative: before.
    pub begins_s: i64,
    /// From now.
    pub ends_s: i64,
    /// Bytes of an extension that nobody knows, to make it large.
    pub padding: usize,
}

impl Default for Leaf {
    fn default() -> Self {
        Self { uris: Vec::new(), dns: Vec::new(), subject: Vec::new(), begins_s: -3_600, ends_s: 3_600, padding: 0 }
    }
}

/// The SPIFFE id of a service account in the trust domain that control has by default.
#[must_use]
pub fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

impl Leaf {
    /// Of a service account in the namespace `default`.
    #[must_use]
    pub fn workload(account: &str) -> Self {
        Self::uri(spiffe(account))
    }

    /// With one URI.
    #[must_use]
    pub fn uri(uri: impl Into<Vec<u8>>) -> Self {
        Self { uris: vec![uri.into()], ..Self::default() }
    }

    /// Of a server with these names.
    #[must_use]
    pub fn server(names: &[&str]) -> Self {
        Self { dns: names.iter().map(|&name| name.to_owned()).collect(), ..Self::default() }
    }
}

/// A certificate, its chain and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf first, as PEM.
    pub chain_pem: String,
    /// PKCS #8 as PEM.
    pub key_pem: String,
    /// Leaf first, as DER.
    pub chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl Issued {
    /// SHA-256 of the leaf, in hexadecimal.
    ///
    /// # Panics
    /// Never: the suite is one of TLS 1.3.
    #[must_use]
    pub fn sha256(&self) -> String {
        let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
        let hash = suite.common.hash_provider.hash(&self.chain[0]);
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// For rustls.
    #[must_use]
    pub fn certified(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = self.chain.iter().cloned().map(CertificateDer::from).collect();
        (chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone())))
    }

    /// Writes `NAME.crt` and `NAME.key`.
    #[must_use]
    pub fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        replace(&certificate, &self.chain_pem);
        replace(&key, &self.key_pem);
        (certificate, key)
    }
}

/// Writes beside a file, then over it: who watches sees either content whole.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).expect("a file");
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let word = part.iter().chain([&0; 2]).take(3).fold(0, |word, &byte| word << 8 | usize::from(byte));
        for index in 0..4 {
            let letter = ALPHABET[word >> (18 - 6 * index) & 63];
            text.push(if index <= part.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// A Secret of type `kubernetes.io/tls` in the namespace `default`.
#[must_use]
pub fn secret(name: &str, issued: &Issued, ca: Option<&Authority>) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: default}}\ntype: kubernetes.io/tls\n\
         data:\n  tls.crt: {}\n  tls.key: {}\n",
        base64(issued.chain_pem.as_bytes()),
        base64(issued.key_pem.as_bytes())
    );
    if let Some(ca) = ca {
        text += &format!("  ca.crt: {}\n", base64(ca.pem.as_bytes()));
    }
    text
}

fn length(len: usize) -> Vec<u8> {
    match u8::try_from(len) {
        Ok(short) if short < 0x80 => vec![short],
        Ok(short) => vec![0x81, short],
        Err(_) => [&[0x82][..], &u16::try_from(len).expect("a short name").to_be_bytes()].concat(),
    }
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag][..], &length(content.len()), content].concat()
}

fn from_now(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}

impl Authority {
    /// A new root of this name.
    #[must_use]
    pub fn new(name: &str) -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = from_now(-7_200).into();
        params.not_after = from_now(7 * 24 * 3_600).into();
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a root");
        Arc::new(Self { pem: root.pem(), der: root.der().to_vec(), params, key })
    }

    /// Writes `NAME.crt` and `NAME.key` of the root itself.
    #[must_use]
    pub fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        replace(&certificate, &self.pem);
        replace(&key, &self.key.serialize_pem());
        (certificate, key)
    }

    /// For rustls.
    #[must_use]
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.der.clone())).expect("a root");
        Arc::new(roots)
    }

    /// A certificate with a new key.
    #[must_use]
    pub fn issue(&self, leaf: &Leaf) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in &leaf.subject {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        params.not_before = from_now(leaf.begins_s).into();
        params.not_after = from_now(leaf.ends_s).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        if leaf.uris.iter().all(|uri| uri.iter().all(|byte| byte.is_ascii_graphic())) {
            let uri = |uri: &Vec<u8>| {
                let text = String::from_utf8(uri.clone()).expect("ASCII");
                SanType::URI(text.try_into().expect("IA5String"))
            };
            let dns = |name: &String| SanType::DnsName(name.clone().try_into().expect("IA5String"));
            params.subject_alt_names = leaf.uris.iter().map(uri).chain(leaf.dns.iter().map(dns)).collect();
        } else {
            // What no library writes.
            let uris = leaf.uris.iter().flat_map(|uri| tagged(TAG_URI, uri));
            let names: Vec<u8> =
                uris.chain(leaf.dns.iter().flat_map(|name| tagged(TAG_DNS, name.as_bytes()))).collect();
            let mut extension = CustomExtension::from_oid_content(&SUBJECT_ALT_NAME, tagged(0x30, &names));
            extension.set_criticality(true);
            params.custom_extensions.push(extension);
        }
        if leaf.padding > 0 {
            let content = tagged(0x04, &vec![0xA5; leaf.padding]);
            params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55_555, 1], content));
        }
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Issued {
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            chain: vec![certificate.der().to_vec()],
            key: key.serialize_der(),
        }
    }
}
