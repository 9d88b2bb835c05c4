//! Istio's PeerAuthentication: `security.istio.io` v1 and v1beta1.

use meshring_core::table::security::MtlsMode;

use super::scope::selector;
use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::Metadata,
    },
    spec::{
        peer_authentication::{PeerAuthentication, PortMode},
        value::{InvalidValue, Labels, Port},
    },
};

const SPEC: Fields = Fields { honoured: &["selector", "mtls", "portLevelMtls"], not_yet: &[], silent: &[] };
const MTLS: Fields = Fields { honoured: &["mode"], not_yet: &[], silent: &[] };

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, _: &Metadata) -> Option<PeerAuthentication> {
    let path = root.path.field("spec");
    // Istio takes one without `spec`: it says nothing, but hides younger ones.
    let Some(node) = root.field("spec") else {
        return Some(PeerAuthentication { selector: Labels::default(), mtls: None, ports: Vec::new() });
    };
    let mut spec = r.object(node, &path)?;
    let selector = selector(r, &mut spec);
    let mtls_path = path.field("mtls");
    let mtls = spec.field("mtls").and_then(|node| mode(r, node, &mtls_path));
    let ports_path = path.field("portLevelMtls");
    let mut ports: Vec<(Port, PortMode)> = Vec::new();
    let listed = spec.field("portLevelMtls");
    let entries = listed.map(|node| r.entries(node, &ports_path)).unwrap_or_default();
    for entry in entries {
        let path = ports_path.field(&entry.key);
        let port = r.valid(entry.at, &path, port(&entry.key));
        let of_port = if entry.value.is_null() { None } else { mode(r, &entry.value, &path) };
        let Some(port) = port else { continue };
        if ports.iter().any(|(other, _)| *other == port) {
            r.error(Code::CONFLICT, entry.at, &path, format!("port {port} is listed twice"), "remove one of them");
        }
        ports.push((port, PortMode(of_port)));
    }
    if let Some(node) = listed
        && !r.failed
    {
        if entries.is_empty() {
            let hint = "write a port and its mode such as `8080: {mode: DISABLE}`, or leave it out";
            r.error(Code::INVALID_VALUE, node.at, &ports_path, "is empty", hint);
        } else if selector.is_empty() {
            let message =
                "is for a namespace or for the mesh here, since there is no selector: ports are of a workload";
            r.error(Code::CONFLICT, node.at, &ports_path, message, "write `selector:` with `matchLabels:`");
        }
    }
    ports.sort_by_key(|(port, _)| *port);
    spec.finish(r, &SPEC);
    Some(PeerAuthentication { selector, mtls, ports })
}

fn mode(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<MtlsMode> {
    let mut object = r.object(node, path)?;
    let mode = object.text(r, "mode");
    object.finish(r, &MTLS);
    match mode? {
        ("UNSET", _) => None,
        ("STRICT", _) => Some(MtlsMode::Strict),
        ("PERMISSIVE", _) => Some(MtlsMode::Permissive),
        ("DISABLE", _) => Some(MtlsMode::Disable),
        (other, at) => {
            let message = format!("`{other}` is not a mode of mutual TLS");
            r.error(
                Code::INVALID_VALUE,
                at,
                &path.field("mode"),
                message,
                "write STRICT, PERMISSIVE, DISABLE or UNSET",
            );
            None
        }
    }
}

/// A key of a YAML mapping: a number in decimal, without anything around it.
fn port(text: &str) -> Result<Port, InvalidValue> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.map_or_else(|| Err(InvalidValue::new(format!("`{text}` is not a port: it must be 1 to 65535"))), Port::parse)
}
