//! Kubernetes' Secret, as far as it holds certificates, and how other resources refer to credentials.
//!
//! What it holds is never shown: not by `Debug`, not by `meshring get`, not in a diff. It is wiped from memory when the
//! last generation that knows it is gone, and with it the text of the file that it came from.

use std::{collections::BTreeMap, fmt, sync::Arc};

use meshring_core::secret::SecretBytes;
use serde::{Serialize, Serializer};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Body, Namespace, Resource};

/// What is shown in the place of a value.
pub const HIDDEN: &str = "(hidden)";

/// End of the name of a Secret that holds the roots for another one: Istio's `NAME-cacert`.
const CA_SUFFIX: &str = "-cacert";

/// `v1` Secret of type `kubernetes.io/tls` or `Opaque`. Values as they are, without base64: PEM.
#[derive(Clone, PartialEq)]
pub struct Secret {
    /// `tls.crt`, or `cert`: the chain, the leaf first.
    pub certificate: Option<Zeroizing<Vec<u8>>>,
    /// `tls.key`, or `key`.
    pub key: Option<SecretBytes>,
    /// `ca.crt`, or `cacert`: roots.
    pub ca: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |is_there: bool| is_there.then_some(HIDDEN);
        f.debug_struct("Secret")
            .field("certificate", &shown(self.certificate.is_some()))
            .field("key", &shown(self.key.is_some()))
            .field("ca", &shown(self.ca.is_some()))
            .finish()
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parts =
            [("certificate", self.certificate.is_some()), ("key", self.key.is_some()), ("ca", self.ca.is_some())];
        serializer.collect_map(parts.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| (name, HIDDEN)))
    }
}

/// What a credential is made of: a Secret, and the one with its roots.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SecretParts {
    own: Option<Arc<Secret>>,
    roots: Option<Arc<Secret>>,
}

impl SecretParts {
    /// The chain as PEM, the leaf first.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.own.as_ref()?.certificate.as_ref().map(|pem| pem.as_slice())
    }

    /// The private key as PEM.
    pub fn key(&self) -> Option<&[u8]> {
        self.own.as_ref()?.key.as_ref().map(|pem| pem.as_slice())
    }

    /// The roots as PEM: those of `NAME-cacert` where it is there, as in Istio, else its own.
    pub fn ca(&self) -> Option<&[u8]> {
        let roots = self.roots.as_ref().and_then(|secret| secret.ca.as_ref().or(secret.certificate.as_ref()));
        roots.or_else(|| self.own.as_ref()?.ca.as_ref()).map(|pem| pem.as_slice())
    }
}

/// All Secrets with certificates, by `NAMESPACE/NAME`.
pub type Secrets = BTreeMap<String, SecretParts>;

pub(super) fn collect(resources: &[Resource]) -> Secrets {
    let mut secrets = Secrets::new();
    for resource in resources {
        let Body::Secret(secret) = &resource.body else { continue };
        let (namespace, name) = (&resource.key.namespace, resource.key.name.as_str());
        secrets.entry(format!("{namespace}/{name}")).or_default().own = Some(Arc::clone(secret));
        if let Some(of) = name.strip_suffix(CA_SUFFIX).filter(|of| !of.is_empty()) {
            secrets.entry(format!("{namespace}/{of}")).or_default().roots = Some(Arc::clone(secret));
        }
    }
    secrets
}

/// Where a resource says that certificates are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Credential {
    /// Nowhere: the workload's own identity, or the system's roots.
    #[default]
    None,
    /// Paths; empty where nothing is said.
    Files {
        /// The chain, the leaf first.
        certificate: Arc<str>,
        /// Its key.
        key: Arc<str>,
        /// Roots.
        ca: Arc<str>,
    },
    /// The name of a Secret.
    Secret(Arc<str>),
}

impl Credential {
    /// The name of the material in the data plane's table ([`meshring_core::identity`]). A Secret is in `namespace`.
    pub fn material(&self, namespace: &Namespace) -> String {
        match self {
            Self::None => meshring_core::identity::OWN.to_owned(),
            Self::Files { certificate, key, ca } => format!("file:{certificate}:{key}:{ca}"),
            Self::Secret(name) => format!("secret:{namespace}/{name}"),
        }
    }
}

/// A Secret as it may be shown: which keys it has, and nothing of what they hold. Built from what is known to be
/// harmless: annotations may repeat the whole Secret (`last-applied-configuration`).
pub(super) fn redacted(object: &serde_json::Value) -> serde_json::Value {
    let mut shown = serde_json::Map::new();
    let keep = |from: &serde_json::Value, names: &[&str], to: &mut serde_json::Map<String, serde_json::Value>| {
        for name in names {
            if let Some(value) = from.get(name) {
                to.insert((*name).to_owned(), value.clone());
            }
        }
    };
    keep(object, &["apiVersion", "kind"], &mut shown);
    if let Some(metadata) = object.get("metadata") {
        let mut known = serde_json::Map::new();
        keep(metadata, &["name", "namespace", "labels", "creationTimestamp"], &mut known);
        shown.insert("metadata".to_owned(), known.into());
    }
    keep(object, &["type", "immutable"], &mut shown);
    for field in ["data", "stringData"] {
        if let Some(serde_json::Value::Object(values)) = object.get(field) {
            let hidden = values.keys().map(|key| (key.clone(), HIDDEN.into())).collect();
            shown.insert(field.to_owned(), serde_json::Value::Object(hidden));
        }
    }
    shown.into()
}

/// Takes every text out of memory.
pub(super) fn wipe(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => text.zeroize(),
        serde_json::Value::Array(values) => values.iter_mut().for_each(wipe),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(wipe),
        _ => {}
    }
}

/// An object of objects and scalars as YAML.
pub(crate) fn yaml(object: &serde_json::Value) -> String {
    fn write(value: &serde_json::Value, indent: usize, out: &mut String) {
        let serde_json::Value::Object(fields) = value else { return };
        for (key, value) in fields {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(&scalar(&key.as_str().into()));
            out.push(':');
            match value {
                serde_json::Value::Object(inner) if !inner.is_empty() => {
                    out.push('\n');
                    write(value, indent + 2, out);
                }
                other => {
                    out.push(' ');
                    out.push_str(&scalar(other));
                    out.push('\n');
                }
            }
        }
    }
    /// Bare where it cannot be taken for anything but a string, else as JSON, which is YAML.
    fn scalar(value: &serde_json::Value) -> String {
        let bare = |text: &&str| {
            let mut bytes = text.bytes();
            text.parse::<f64>().is_err()
                && !["true", "false", "null", "yes", "no", "on", "off"].contains(&&*text.to_ascii_lowercase())
                && bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'(')
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_./()".contains(&byte))
        };
        value.as_str().filter(bare).map_or_else(|| value.to_string(), str::to_owned)
    }
    let mut text = String::new();
    write(object, 0, &mut text);
    text
}
