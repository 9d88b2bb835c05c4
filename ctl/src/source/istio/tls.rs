//! What TLS settings of clients (DestinationRule) and servers (Gateway) have in common: where certificates are, and
//! whose.

use std::sync::Arc;

use crate::{
    diagnostic::{Code, Position},
    source::decode::{Object, Path, Reader},
    spec::{
        secret::Credential,
        value::{InvalidValue, Name},
    },
};

/// The field with the chain of a client.
pub(crate) const CLIENT_CERTIFICATE: &str = "clientCertificate";
/// Istio's word for the roots of the operating system.
const SYSTEM: &str = "system";
/// Istio's prefix for a Secret of Kubernetes, which is what is meant without one.
const KUBERNETES: &str = "kubernetes://";

/// Paths and the name of a Secret, as they stand in `tls`.
pub(crate) struct Given {
    pub(crate) certificate: Option<Arc<str>>,
    pub(crate) key: Option<Arc<str>>,
    pub(crate) ca: Option<Arc<str>>,
    pub(crate) secret: Option<Arc<str>>,
    /// Something is there and is wrong, which has been told.
    wrong: bool,
}

impl Given {
    /// Reads the fields; `certificate` is what the field with the chain is called. Only clients may trust whom the
    /// system trusts.
    pub(crate) fn read(r: &mut Reader<'_>, tls: &mut Object<'_, '_, '_>, certificate: &str) -> Self {
        let client = certificate == CLIENT_CERTIFICATE;
        let said = r.diagnostics.len();
        let roots = |text: &str| if client && text == SYSTEM { Ok(SYSTEM.into()) } else { path(text) };
        let mut given = Self {
            certificate: tls.parsed(r, certificate, path),
            key: tls.parsed(r, "privateKey", path),
            ca: tls.parsed(r, "caCertificates", roots),
            secret: tls.parsed(r, "credentialName", credential_name),
            wrong: false,
        };
        given.wrong = r.diagnostics.len() > said;
        if given.secret.is_some() && (given.certificate.is_some() || given.key.is_some() || given.ca.is_some()) {
            let message = "stands beside paths of files";
            r.error(Code::CONFLICT, tls.at, &tls.path.field("credentialName"), message, "keep one of them");
        }
        given
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.certificate.is_none() && self.key.is_none() && self.ca.is_none() && self.secret.is_none()
    }

    /// Tells of each file that must be there and is not: `fields` are names, and whether they are there. Nothing is
    /// missing where a Secret is named, or where what is there is wrong.
    pub(crate) fn require(
        &self,
        r: &mut Reader<'_>,
        at: Position,
        path: &Path<'_>,
        mode: &str,
        fields: &[(&str, bool)],
    ) {
        if self.secret.is_some() || self.wrong {
            return;
        }
        for (field, _) in fields.iter().filter(|(_, given)| !given) {
            r.missing(
                at,
                &path.field(field),
                &format!("{mode} needs it, or `credentialName` with the name of a Secret"),
            );
        }
    }

    /// As the model has it.
    pub(crate) fn credential(self) -> Credential {
        if let Some(secret) = self.secret {
            return Credential::Secret(secret);
        }
        let ca = self.ca.filter(|ca| &**ca != SYSTEM);
        if self.certificate.is_none() && self.key.is_none() && ca.is_none() {
            return Credential::None;
        }
        let text = |value: Option<Arc<str>>| value.unwrap_or_default();
        Credential::Files { certificate: text(self.certificate), key: text(self.key), ca: text(ca) }
    }
}

/// `subjectAltNames`, in their order.
pub(crate) fn subject_alt_names(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Vec<Arc<str>> {
    let path = object.path.field("subjectAltNames");
    let mut names = Vec::new();
    for (index, node) in object.list(r, "subjectAltNames").iter().enumerate() {
        names.extend(r.parsed(node, &path.index(index), name));
    }
    names
}

/// A DNS name, a URI or an address. It is compared with what a certificate has, as a whole.
fn name(text: &str) -> Result<Arc<str>, InvalidValue> {
    match text.bytes().find(|byte| !byte.is_ascii_graphic()) {
        _ if text.is_empty() => Err(InvalidValue::new("is empty: no certificate has such a name")),
        Some(_) => Err(InvalidValue::with_hint(
            format!("`{text}` is not a name that a certificate can have"),
            "write a DNS name, or a URI such as spiffe://cluster.local/ns/default/sa/default",
        )),
        None => Ok(text.into()),
    }
}

/// A file that control reads. Three of them with colons between make a name that the data plane knows.
fn path(text: &str) -> Result<Arc<str>, InvalidValue> {
    if !text.starts_with('/') {
        return Err(InvalidValue::with_hint(format!("`{text}` is not an absolute path"), "write the path from `/` on"));
    }
    if text.contains(':') || text.contains(char::is_control) {
        return Err(InvalidValue::new(format!(
            "`{text}` contains a colon or a control character, which is not honoured"
        )));
    }
    Ok(text.into())
}

/// The name of a Secret, in the namespace that the resource's kind says.
fn credential_name(text: &str) -> Result<Arc<str>, InvalidValue> {
    let name = text.strip_prefix(KUBERNETES).unwrap_or(text);
    if name.contains("://") || name.contains('/') {
        return Err(InvalidValue::with_hint(
            format!("`{text}` is not in a Secret of the same namespace, which is not honoured"),
            "write the name of a Secret",
        ));
    }
    Name::parse(name).map(|name| name.shared())
}
