//! `tcp[]` and `tls[]`: one rule for connections that are passed on as bytes.

use std::net::IpAddr;

use super::{route, rule_match};
use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::labels,
    },
    spec::{
        value::{Cidr, HostPattern, InvalidValue, Labels, Namespace, Port},
        virtual_service::{Host, StreamMatch, StreamRoute},
    },
};

const ROUTE: Fields = Fields { honoured: &["match", "route"], not_yet: &[], silent: &[] };
const TCP_MATCH: Fields = Fields {
    honoured: &["destinationSubnets", "port", "sourceLabels", "sourceNamespace", "gateways"],
    // Istio ignores it, too.
    not_yet: &["sourceSubnet"],
    silent: &[],
};
const TLS_MATCH: Fields = Fields {
    honoured: &["sniHosts", "destinationSubnets", "port", "sourceLabels", "sourceNamespace", "gateways"],
    not_yet: &["sourceSubnet"],
    silent: &[],
};

/// Which of the two lists a rule stands in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum List<'h> {
    /// `tcp`.
    Tcp,
    /// `tls`, with the hosts of the VirtualService, to which server names must belong.
    Tls(&'h [Host]),
}

/// All rules of a list that are for sidecars.
pub(crate) fn read_list(
    r: &mut Reader<'_>,
    items: &[Node<'_>],
    path: &Path<'_>,
    list: List<'_>,
    namespace: &Namespace,
) -> Vec<StreamRoute> {
    let rules = items.iter().enumerate();
    rules.filter_map(|(index, node)| read(r, node, &path.index(index), index as u32, list, namespace)).collect()
}

/// One rule. `None` also where all of its matches are only for gateways.
fn read(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    index: u32,
    list: List<'_>,
    namespace: &Namespace,
) -> Option<StreamRoute> {
    let mut object = r.object(node, path)?;
    let match_path = path.field("match");
    let items = object.list(r, "match");
    let mut matches = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        matches.extend(read_match(r, node, &match_path.index(index), list));
    }
    if items.is_empty() && matches!(list, List::Tls(_)) {
        r.missing(object.at, &match_path, "write `match:` with `sniHosts:`, which tls rules need");
    }
    let route = match object.field("route") {
        Some(node) => route::destinations(r, node, &path.field("route"), namespace, false),
        None => {
            r.missing(object.at, &path.field("route"), "write `route:` with at least one `destination:`");
            None
        }
    };
    object.finish(r, &ROUTE);
    let for_mesh = items.is_empty() || !matches.is_empty();
    let rule = StreamRoute { at: node.at, index, matches, route: route? };
    for_mesh.then_some(rule)
}

/// One match. `None` also where it is only for gateways.
fn read_match(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>, list: List<'_>) -> Option<StreamMatch> {
    let mut object = r.object(node, path)?;
    let mut rule = StreamMatch { at: node.at, ..StreamMatch::default() };
    if let List::Tls(hosts) = list {
        rule.sni_hosts = sni_hosts(r, &mut object, hosts);
    }
    let subnets_path = path.field("destinationSubnets");
    for (index, node) in object.list(r, "destinationSubnets").iter().enumerate() {
        rule.destination_subnets.extend(r.parsed(node, &subnets_path.index(index), subnet));
    }
    rule.port = match object.integer(r, "port") {
        Some((0, _)) | None => None,
        Some((number, at)) => r.valid(at, &path.field("port"), Port::parse(number)),
    };
    rule.source_labels = match object.field("sourceLabels") {
        Some(node) => labels(r, node, &path.field("sourceLabels")),
        None => Labels::default(),
    };
    rule.source_namespace = object.parsed(r, "sourceNamespace", |text| Namespace::parse(text));
    let for_mesh = rule_match::gateways(r, &mut object, path);
    object.finish(r, if matches!(list, List::Tls(_)) { &TLS_MATCH } else { &TCP_MATCH });
    for_mesh.then_some(rule)
}

fn sni_hosts(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, hosts: &[Host]) -> Vec<HostPattern> {
    let path = object.path.field("sniHosts");
    let items = object.list(r, "sniHosts");
    if items.is_empty() {
        r.missing(object.at, &path, "write the server names that the rule is for");
    }
    let mut names = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        let Some(name) = r.parsed(node, &path, HostPattern::full) else { continue };
        if !hosts.is_empty() && !hosts.iter().any(|host| host.host.covers(&name)) {
            let message = format!("`{name}` is none of the VirtualService's hosts");
            r.error(Code::CONFLICT, node.at, &path, message, "add it to `hosts:`, or remove it here");
        }
        names.push(name);
    }
    names
}

/// `10.0.0.0/8`, or one address.
fn subnet(text: &str) -> Result<Cidr, InvalidValue> {
    let wrong = || {
        let hint = "write for instance 10.0.0.0/8 or 10.1.2.3";
        InvalidValue::with_hint(format!("`{text}` is neither an IP address nor a range of them"), hint)
    };
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(bits_max);
    if bits > bits_max {
        return Err(wrong());
    }
    Ok(Cidr { address, bits })
}
