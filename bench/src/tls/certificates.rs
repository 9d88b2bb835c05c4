//! Certificates for one comparison: a root and what it has signed, all ECDSA P-256, in PEM files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Trust domain of the SPIFFE identities.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

/// A folder with `ca.pem`, and with `NAME.pem`, `NAME.key` and `NAME-both.pem` for each of [`NAMES`].
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    dir: PathBuf,
}

/// Whose certificates there are: a server for clients outside of the mesh, and the two sidecars.
const NAMES: [Name; 3] = [Name::Server, Name::SidecarA, Name::SidecarB];

/// Whose certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// Named by the host of the requests.
    Server,
    /// The client's side.
    SidecarA,
    /// The server's side.
    SidecarB,
}

impl Name {
    const fn file(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::SidecarA => "a",
            Self::SidecarB => "b",
        }
    }

    fn subject_alt_name(self, host: &str) -> anyhow::Result<SanType> {
        Ok(match self {
            Self::Server => SanType::DnsName(host.try_into()?),
            Self::SidecarA | Self::SidecarB => {
                SanType::URI(format!("spiffe://{TRUST_DOMAIN}/ns/default/sa/{}", self.file()).try_into()?)
            }
        })
    }
}

impl Certificates {
    /// Makes keys and certificates and writes them to `dir`, which must exist. `host` is the server's name.
    pub(crate) fn make(dir: &Path, host: &str) -> anyhow::Result<Self> {
        let mut root = CertificateParams::new(Vec::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        root.distinguished_name = named("meshring-bench root");
        let root_key = KeyPair::generate()?;
        let certificates = Self { dir: dir.to_owned() };
        write(&certificates.ca(), &root.self_signed(&root_key)?.pem())?;
        let issuer = Issuer::new(root, root_key);
        for name in NAMES {
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name = named(name.file());
            params.subject_alt_names = vec![name.subject_alt_name(host)?];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let (chain, key_pem) = (params.signed_by(&key, &issuer)?.pem(), key.serialize_pem());
            let file = |suffix: &str| dir.join(format!("{}{suffix}", name.file()));
            write(&file(".pem"), &chain)?;
            write(&file(".key"), &key_pem)?;
            // HAProxy reads both from one file.
            write(&file("-both.pem"), &format!("{chain}{key_pem}"))?;
        }
        Ok(certificates)
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The root.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
