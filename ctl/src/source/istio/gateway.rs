//! Istio's Gateway.

use std::sync::Arc;

use super::tls::{Given, subject_alt_names};
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::{Metadata, labels},
    },
    spec::{
        gateway::{Gateway, Server, ServerMode},
        value::{HostPattern, InvalidValue, Labels, Namespace, Port, Protocol},
    },
};

const SPEC: Fields = Fields { honoured: &["selector", "servers"], not_yet: &[], silent: &[] };
const SERVER: Fields = Fields {
    honoured: &["port", "hosts", "tls"],
    not_yet: &["bind", "defaultEndpoint"],
    // A name for people and statistics.
    silent: &["name"],
};
const PORT: Fields = Fields { honoured: &["number", "protocol", "name"], not_yet: &[], silent: &["targetPort"] };
const TLS: Fields = Fields {
    honoured: &[
        "mode",
        "credentialName",
        "serverCertificate",
        "privateKey",
        "caCertificates",
        "subjectAltNames",
        "minProtocolVersion",
    ],
    not_yet: &[
        "httpsRedirect",
        "cipherSuites",
        "maxProtocolVersion",
        "verifyCertificateSpki",
        "verifyCertificateHash",
        "caCrl",
        "credentialNames",
        "caCertCredentialName",
        "tlsCertificates",
    ],
    silent: &[],
};

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, _: &Metadata) -> Option<Gateway> {
    let path = root.path.field("spec");
    let Some(node) = root.field("spec") else {
        r.missing(root.at, &path, "write `spec:` with `selector:` and `servers:`");
        return None;
    };
    let mut spec = r.object(node, &path)?;
    let selector = match spec.field("selector") {
        Some(node) => labels(r, node, &path.field("selector")),
        None => Labels::default(),
    };
    let servers_path = path.field("servers");
    let items = spec.list(r, "servers");
    if items.is_empty() && !r.failed {
        r.missing(spec.at, &servers_path, "write `servers:` with `port:`, `hosts:` and `tls:`");
    }
    let (mut servers, mut plain_ports) = (Vec::with_capacity(items.len()), Vec::new());
    for (index, node) in items.iter().enumerate() {
        match server(r, node, &servers_path.index(index)) {
            Some(Ends::Tls(server)) => servers.push(server),
            Some(Ends::Plain(port)) => plain_ports.push(port),
            None => {}
        }
    }
    if selector.is_empty() && !r.failed {
        let message = "is missing: which proxy is a gateway is told by its labels, so this resource has no effect";
        r.warning(Code::NO_EFFECT, spec.at, &path.field("selector"), message, "write the labels of the workload");
    }
    spec.finish(r, &SPEC);
    (!r.failed).then_some(Gateway { selector, servers, plain_ports })
}

/// What a server is to its clients.
enum Ends {
    /// TLS ends here.
    Tls(Server),
    /// A port for HTTP without TLS.
    Plain(Port),
}

/// `None` for a server that has no effect, and for what is wrong.
fn server(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<Ends> {
    let mut object = r.object(node, path)?;
    let port = port(r, &mut object);
    let hosts = hosts(r, &mut object);
    let tls_path = path.field("tls");
    let tls_node = object.field("tls");
    object.finish(r, &SERVER);
    let (number, protocol) = port?;
    let Some(tls_node) = tls_node else {
        if protocol == Protocol::Tls {
            r.missing(node.at, &tls_path, "a server of protocol HTTPS or TLS must say which certificate it shows");
            return None;
        }
        if protocol.is_http() {
            return Some(Ends::Plain(number));
        }
        let message = "has no TLS to end: what the proxy listens on is said when it is started";
        r.info(Code::VALUE_NOT_HONOURED, node.at, path, message);
        return None;
    };
    let tls = r.object(tls_node, &tls_path)?;
    if protocol != Protocol::Tls {
        plain(r, tls, protocol);
        return protocol.is_http().then_some(Ends::Plain(number));
    }
    let (mode, credential, subject_alt_names, tls12) = settings(r, tls)?;
    Some(Ends::Tls(Server { at: node.at, port: number, hosts, mode, credential, subject_alt_names, tls12 }))
}

/// `tls` of a port without TLS: only a redirect to one with TLS may stand there.
fn plain(r: &mut Reader<'_>, mut tls: Object<'_, '_, '_>, protocol: Protocol) {
    let path = tls.path;
    let redirect = tls.field("httpsRedirect");
    let rest = tls.field("mode").is_some() | tls.field("credentialName").is_some();
    if rest || redirect.is_none() || !protocol.is_http() {
        let message = "stands on a port whose protocol is neither HTTPS nor TLS";
        r.error(Code::CONFLICT, tls.at, path, message, "write `protocol: HTTPS`, or only `httpsRedirect:`");
    } else if let Some(node) = redirect
        && r.boolean(node, &path.field("httpsRedirect")) == Some(true)
    {
        r.not_honoured(node.at, &path.field("httpsRedirect"));
    }
    tls.finish(r, &TLS);
}

fn port(r: &mut Reader<'_>, server: &mut Object<'_, '_, '_>) -> Option<(Port, Protocol)> {
    let path = server.path.field("port");
    let Some(node) = server.field("port") else {
        r.missing(server.at, &path, "write `port:` with `number:`, `name:` and `protocol:`");
        return None;
    };
    let mut object = r.object(node, &path)?;
    let number = object.integer(r, "number");
    let protocol = object.text(r, "protocol");
    let name = object.text(r, "name");
    object.finish(r, &PORT);
    if name.is_none() {
        r.missing(node.at, &path.field("name"), "write a name such as `https`");
    }
    let number = match number {
        Some((number, at)) => r.valid(at, &path.field("number"), Port::parse(number)),
        None => {
            r.missing(node.at, &path.field("number"), "write the port of the listener");
            None
        }
    };
    let protocol = match protocol {
        Some((text, at)) => {
            let protocol = Protocol::parse(text);
            if protocol.is_none() {
                let message = format!("`{text}` is not a protocol");
                r.error(
                    Code::INVALID_VALUE,
                    at,
                    &path.field("protocol"),
                    message,
                    "write HTTPS, TLS, HTTP, HTTP2 or GRPC",
                );
            }
            protocol
        }
        None => {
            r.missing(node.at, &path.field("protocol"), "write HTTPS, or HTTP for a port without TLS");
            None
        }
    };
    number.zip(protocol)
}

fn hosts(r: &mut Reader<'_>, server: &mut Object<'_, '_, '_>) -> Vec<Arc<str>> {
    let path = server.path.field("hosts");
    let items = server.list(r, "hosts");
    if items.is_empty() && !r.failed {
        r.missing(server.at, &path, "write the names that clients ask for, or '*'");
    }
    let mut hosts: Vec<Arc<str>> = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        let Some((namespace, pattern)) = r.parsed(node, &path, host) else { continue };
        if let Some(namespace) = namespace.filter(|namespace| namespace != "*") {
            let message = format!(
                "the namespace `{namespace}` is not yet honoured: rules of every namespace are found by the host"
            );
            r.warning(Code::VALUE_NOT_HONOURED, node.at, &path, message, "");
        }
        let text = pattern.to_string();
        let stored = r.share(text.strip_prefix('*').filter(|rest| !rest.is_empty()).unwrap_or(&text));
        if hosts.contains(&stored) {
            r.error(Code::CONFLICT, node.at, &path, format!("`{pattern}` is listed twice"), "remove one of them");
            continue;
        }
        hosts.push(stored);
    }
    hosts
}

/// `[NAMESPACE/]HOST`; the namespace may be `.` or `*`.
fn host(text: &str) -> Result<(Option<String>, HostPattern), InvalidValue> {
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => {
            if !matches!(namespace, "." | "*") {
                Namespace::parse(namespace)?;
            }
            (Some(namespace.to_owned()), host)
        }
        None => (None, text),
    };
    // As Istio: a short name would have to be of some namespace.
    if host != "*" && !host.contains('.') {
        return Err(InvalidValue::with_hint(format!("`{host}` is a short name"), "write the full name, or '*'"));
    }
    Ok((namespace, HostPattern::resolve(host, &Namespace::default())?))
}

type Settings = (ServerMode, crate::spec::secret::Credential, Vec<Arc<str>>, bool);

fn settings(r: &mut Reader<'_>, mut tls: Object<'_, '_, '_>) -> Option<Settings> {
    let (at, path) = (tls.at, tls.path);
    let mode = tls.text(r, "mode").unwrap_or(("PASSTHROUGH", at));
    let given = Given::read(r, &mut tls, "serverCertificate");
    let subject_alt_names = subject_alt_names(r, &mut tls);
    let tls12 = min_protocol(r, &mut tls);
    // `false` says nothing.
    if tls.peek("httpsRedirect").is_some_and(|node| r.boolean(node, &path.field("httpsRedirect")) == Some(false)) {
        tls.field("httpsRedirect");
    }
    tls.finish(r, &TLS);
    let own = [("serverCertificate", given.certificate.is_some()), ("privateKey", given.key.is_some())];
    let mode = match mode {
        ("SIMPLE", _) => {
            given.require(r, at, path, "SIMPLE", &own);
            ServerMode::Simple
        }
        (text @ ("MUTUAL" | "OPTIONAL_MUTUAL"), _) => {
            given.require(r, at, path, text, &own);
            given.require(r, at, path, text, &[("caCertificates", given.ca.is_some())]);
            if text == "MUTUAL" { ServerMode::Mutual } else { ServerMode::OptionalMutual }
        }
        ("ISTIO_MUTUAL", mode_at) => {
            if !given.is_empty() {
                let message = "ISTIO_MUTUAL shows the workload's own identity, so no certificates may be named";
                r.error(Code::CONFLICT, mode_at, path, message, "remove them, or write `mode: MUTUAL`");
            }
            ServerMode::IstioMutual
        }
        (text @ ("PASSTHROUGH" | "AUTO_PASSTHROUGH"), mode_at) => {
            unhonoured(r, mode_at, path, text);
            return None;
        }
        (other, mode_at) => {
            let message = format!("`{other}` is not a mode of TLS");
            let hint = "write SIMPLE, MUTUAL, OPTIONAL_MUTUAL or ISTIO_MUTUAL";
            r.error(Code::INVALID_VALUE, mode_at, &path.field("mode"), message, hint);
            return None;
        }
    };
    Some((mode, given.credential(), subject_alt_names, tls12))
}

fn unhonoured(r: &mut Reader<'_>, at: Position, path: &Path<'_>, mode: &str) {
    let message = format!("{mode} is not yet honoured: this server has no effect here");
    r.warning(Code::VALUE_NOT_HONOURED, at, &path.field("mode"), message, "");
}

/// Whether TLS 1.2 is allowed. It is the oldest that there is here.
fn min_protocol(r: &mut Reader<'_>, tls: &mut Object<'_, '_, '_>) -> bool {
    let Some((text, at)) = tls.text(r, "minProtocolVersion") else { return true };
    let path = tls.path.field("minProtocolVersion");
    match text {
        "TLS_AUTO" | "TLSV1_2" => {}
        "TLSV1_3" => return false,
        "TLSV1_0" | "TLSV1_1" => {
            let message = format!("{text} is not honoured: clients need TLS 1.2");
            r.warning(Code::VALUE_NOT_HONOURED, at, &path, message, "write TLSV1_2");
        }
        other => {
            let message = format!("`{other}` is not a version of TLS");
            r.error(Code::INVALID_VALUE, at, &path, message, "write TLSV1_2 or TLSV1_3");
        }
    }
    true
}
