//! `v1` Secret: types `kubernetes.io/tls` and `Opaque` with the keys that Istio looks for. Nothing that is said about one
//! repeats any of its values.

use meshring_core::limits::MATERIAL_BYTES_MAX;
use zeroize::Zeroizing;

use crate::{
    diagnostic::Code,
    source::{
        decode::{Object, Path, Reader},
        istio::route::base64,
        node::{Entry, Meaning, Node, Value},
        resource::Metadata,
    },
    spec::secret::Secret,
};

/// Keys that Istio looks for, in its order, and what they are.
const KEYS: [(&str, Part); 6] = [
    ("tls.crt", Part::Certificate),
    ("tls.key", Part::Key),
    ("ca.crt", Part::Ca),
    ("cert", Part::Certificate),
    ("key", Part::Key),
    ("cacert", Part::Ca),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Certificate,
    Key,
    Ca,
}

const TLS: &str = "kubernetes.io/tls";
const OPAQUE: &str = "Opaque";

/// Whether a Secret holds certificates. Others, such as passwords of databases, are no concern of ours.
pub(crate) fn is_credential(node: &Node<'_>) -> bool {
    match node.value_of("type").and_then(Node::text) {
        Some(TLS) => true,
        // `generic` is what `kubectl create secret generic` is called; the API has Opaque.
        None | Some("" | OPAQUE) => {
            let has = |field: &str, key| node.value_of(field).is_some_and(|data| data.value_of(key).is_some());
            // `key` alone may be the key to anything.
            let telling = KEYS.iter().filter(|(key, _)| *key != "key");
            telling.into_iter().any(|(key, _)| has("data", key) || has("stringData", key))
        }
        Some(_) => false,
    }
}

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, _: &Metadata) -> Option<Secret> {
    root.field("immutable");
    let is_tls = root.text(r, "type").is_some_and(|(text, _)| text == TLS);
    let mut secret = Secret { certificate: None, key: None, ca: None };
    // What is in both is what `stringData` says, as in Kubernetes.
    for (field, encoded) in [("stringData", false), ("data", true)] {
        let path = root.path.field(field);
        let entries = root.entries(r, field);
        for (key, part) in KEYS {
            let Some(entry) = entries.iter().find(|entry| entry.key == key) else { continue };
            let path = path.field(key);
            let Some(value) = value(r, entry, &path, encoded) else { continue };
            let known = match part {
                Part::Certificate => secret.certificate.is_some(),
                Part::Key => secret.key.is_some(),
                Part::Ca => secret.ca.is_some(),
            };
            if known || value.is_empty() {
                continue;
            }
            check(r, entry, &path, part, &value);
            match part {
                Part::Certificate => secret.certificate = Some(value),
                Part::Key => secret.key = Some(value.as_slice().into()),
                Part::Ca => secret.ca = Some(value),
            }
        }
    }
    if is_tls && !r.failed {
        for (is_there, key) in [(secret.certificate.is_some(), "tls.crt"), (secret.key.is_some(), "tls.key")] {
            // Istio takes a `NAME-cacert` of this type with roots alone.
            if !is_there && secret.ca.is_none() {
                let path = root.path.field("data");
                r.missing(
                    root.at,
                    &path.field(key),
                    "a Secret of type kubernetes.io/tls must have tls.crt and tls.key",
                );
            }
        }
    }
    (!r.failed).then_some(secret)
}

fn value(r: &mut Reader<'_>, entry: &Entry<'_>, path: &Path<'_>, encoded: bool) -> Option<Zeroizing<Vec<u8>>> {
    let at = entry.value.at;
    let text = match &entry.value.value {
        Value::Scalar(scalar) => match scalar.meaning() {
            Meaning::String(text) => Some(text),
            Meaning::Null => Some(""),
            _ => None,
        },
        _ => None,
    };
    // The reader's own words would repeat the value.
    let Some(text) = text else {
        r.error(Code::WRONG_TYPE, at, path, "must be a string", "write it in quotes");
        return None;
    };
    let value = if encoded {
        let Some(bytes) = base64(text) else {
            r.error(Code::INVALID_VALUE, at, path, "is not base64", "write PEM into `stringData` instead");
            return None;
        };
        Zeroizing::new(bytes)
    } else {
        Zeroizing::new(text.as_bytes().to_vec())
    };
    if value.len() > MATERIAL_BYTES_MAX {
        let message = format!("has {} bytes; at most {MATERIAL_BYTES_MAX} are allowed", value.len());
        r.error(Code::INVALID_VALUE, at, path, message, "");
        return None;
    }
    Some(value)
}

/// What is no PEM is told here; whether key and certificate fit is told when they are used.
fn check(r: &mut Reader<'_>, entry: &Entry<'_>, path: &Path<'_>, part: Part, value: &[u8]) {
    let has = |text: &str| memchr::memmem::find(value, text.as_bytes()).is_some();
    let (found, what) = match part {
        Part::Certificate | Part::Ca => (has("-----BEGIN CERTIFICATE-----"), "certificate"),
        Part::Key => (has("-----BEGIN ") && has("PRIVATE KEY-----"), "private key"),
    };
    if !found {
        let message = format!("holds no {what} in PEM: it has no effect");
        r.warning(Code::NO_EFFECT, entry.value.at, path, message, "write the text from `-----BEGIN` to `END ...-----`");
    }
}
