//! Istio's VirtualService.

use super::{
    export_to, route,
    stream_route::{self, List},
};
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader},
        resource::Metadata,
    },
    spec::{
        value::{HostPattern, InvalidValue, Namespace},
        virtual_service::{Host, HttpMatch, HttpRoute, StreamRoute, VirtualService},
    },
};

const SPEC: Fields =
    Fields { honoured: &["hosts", "gateways", "http", "tls", "tcp", "exportTo"], not_yet: &[], silent: &[] };

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, metadata: &Metadata) -> Option<VirtualService> {
    let path = root.path.field("spec");
    let Some(node) = root.field("spec") else {
        r.missing(root.at, &path, "write `spec:` with `hosts:` and `http:`");
        return None;
    };
    let mut spec = r.object(node, &path)?;
    let mesh = gateways(r, &mut spec);
    let hosts = hosts(r, &mut spec, &metadata.namespace, mesh);
    let export_to = export_to::field(r, &mut spec, &metadata.namespace);
    let http_path = path.field("http");
    let items = spec.list(r, "http");
    let mut http = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        http.extend(route::read(r, node, &http_path.index(index), index, &metadata.namespace));
    }
    let (tls_path, tcp_path) = (path.field("tls"), path.field("tcp"));
    let (tls_items, tcp_items) = (spec.list(r, "tls"), spec.list(r, "tcp"));
    let tls = stream_route::read_list(r, tls_items, &tls_path, List::Tls(&hosts), &metadata.namespace);
    let tcp = stream_route::read_list(r, tcp_items, &tcp_path, List::Tcp, &metadata.namespace);
    if items.is_empty() && tls_items.is_empty() && tcp_items.is_empty() && !r.failed {
        r.missing(spec.at, &http_path, "write `http:`, `tls:` or `tcp:` with at least one rule");
    }
    spec.finish(r, &SPEC);
    // What was wrong is missing from the rules: one with a bad match would look as if it matched everything.
    if !r.failed {
        unreachable_rules(r, &http, &http_path);
        unreachable_streams(r, &tls, &tls_path);
        unreachable_streams(r, &tcp, &tcp_path);
    }
    (!r.failed).then_some(VirtualService { hosts, mesh, export_to, http, tls, tcp })
}

/// Whether it applies to sidecars.
fn gateways(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> bool {
    let path = spec.path.field("gateways");
    let items = spec.list(r, "gateways");
    let mut mesh = items.is_empty();
    for (index, node) in items.iter().enumerate() {
        mesh |= r.string(node, &path.index(index)) == Some("mesh");
    }
    for (index, node) in items.iter().enumerate() {
        if node.text().is_some_and(|name| name != "mesh") {
            let message = if mesh {
                "gateways other than `mesh` are not yet honoured"
            } else {
                "gateways other than `mesh` are not yet honoured: the whole resource has no effect here"
            };
            r.warning(Code::VALUE_NOT_HONOURED, node.at, &path.index(index), message, "");
        }
    }
    mesh
}

fn hosts(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>, namespace: &Namespace, mesh: bool) -> Vec<Host> {
    let path = spec.path.field("hosts");
    let items = spec.list(r, "hosts");
    if items.is_empty() && !r.failed {
        let message = "is missing or empty";
        let hint =
            "write `hosts:` with the names that clients ask for (a VirtualService to delegate to is not yet honoured)";
        r.error(Code::MISSING_FIELD, spec.at, &path, message, hint);
    }
    let mut hosts: Vec<Host> = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        let Some(host) = r.parsed(node, &path, |text| virtual_host(text, namespace)) else { continue };
        if host == HostPattern::Any && mesh {
            let message = "`*` is not allowed for sidecars: it would catch every host";
            r.error(Code::INVALID_VALUE, node.at, &path, message, "write the names of services, or `*.example.com`");
        }
        if let Some(other) = hosts.iter().find(|other| other.host.covers(&host) || host.covers(&other.host)) {
            let message = format!("`{host}` overlaps with `{}` at {}", other.host, other.at);
            r.error(Code::CONFLICT, node.at, &path, message, "remove one of them");
        }
        hosts.push(Host { at: node.at, host });
    }
    hosts
}

fn virtual_host(text: &str, namespace: &Namespace) -> Result<HostPattern, InvalidValue> {
    if text.contains('/') {
        return Err(InvalidValue::with_hint(
            format!("`{text}` is not a host: it contains '/'"),
            "leave the namespace out, or write the full name",
        ));
    }
    // IPv6 has colons, which no name has.
    if let Ok(address) = text.parse::<std::net::Ipv6Addr>() {
        return Err(InvalidValue::with_hint(
            format!("{address} is an IPv6 address, which is not yet honoured as a host"),
            "write a name",
        ));
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(InvalidValue::with_hint(
            format!("`{text}` is not a host: it has a port"),
            format!("write `{host}`, and `match.port` in the rules"),
        ));
    }
    HostPattern::resolve(text, namespace)
}

/// As Istio's analysis: a rule after one that matches everything, or of which each match stands in an earlier rule, is
/// dead.
fn unreachable_rules(r: &mut Reader<'_>, http: &[HttpRoute], path: &Path<'_>) {
    let Some(last) = http.iter().find(|route| route.is_match_all()) else {
        return duplicate_matches(r, http, path);
    };
    for route in http.iter().filter(|route| route.index > last.index) {
        let message = format!("the rule is never reached: rule {} at {} matches everything", last.index, last.at);
        let hint = "move it before that rule";
        r.warning(Code::UNREACHABLE_RULE, route.at, &path.index(route.index as usize), message, hint);
    }
}

/// Likewise for connections.
fn unreachable_streams(r: &mut Reader<'_>, rules: &[StreamRoute], path: &Path<'_>) {
    let Some(last) = rules.iter().find(|rule| rule.is_match_all()) else { return };
    for rule in rules.iter().filter(|rule| rule.index > last.index) {
        let message = format!("the rule is never reached: rule {} at {} matches everything", last.index, last.at);
        let hint = "move it before that rule";
        r.warning(Code::UNREACHABLE_RULE, rule.at, &path.index(rule.index as usize), message, hint);
    }
}

fn duplicate_matches(r: &mut Reader<'_>, http: &[HttpRoute], path: &Path<'_>) {
    // Quadratic; beyond a few hundred rules nobody wrote them by hand.
    if http.len() > 512 {
        return;
    }
    // Two matches are the same that differ in nothing but name and place.
    let bare = |rule: &HttpMatch| HttpMatch { at: Position::default(), name: None, ..rule.clone() };
    let conditions: Vec<Vec<HttpMatch>> = http.iter().map(|route| route.matches.iter().map(bare).collect()).collect();
    for (index, route) in http.iter().enumerate() {
        for (candidate, wanted) in route.matches.iter().zip(&conditions[index]) {
            let Some(earlier) = conditions[..index].iter().position(|earlier| earlier.contains(wanted)) else {
                continue;
            };
            let earlier = &http[earlier];
            let message =
                format!("the match stands in rule {} at {} already and is never reached", earlier.index, earlier.at);
            let path = path.index(route.index as usize);
            r.warning(Code::UNREACHABLE_RULE, candidate.at, &path, message, "remove it");
        }
    }
}
