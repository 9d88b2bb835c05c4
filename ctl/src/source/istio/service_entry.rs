//! Istio's ServiceEntry and WorkloadEntry.

use std::{collections::BTreeMap, net::IpAddr};

use super::{export_to, tls};
use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::{Metadata, labels},
    },
    spec::{
        service_entry::{Address, EntryPort, Location, Resolution, ServiceEntry, Workload},
        value::{HostPattern, Hostname, InvalidValue, Labels, Port, PortName, Protocol},
    },
};

const SPEC: Fields = Fields {
    honoured: &[
        "hosts",
        "addresses",
        "ports",
        "location",
        "resolution",
        "endpoints",
        "workloadSelector",
        "exportTo",
        "subjectAltNames",
    ],
    not_yet: &[],
    silent: &[],
};
const PORT: Fields = Fields { honoured: &["number", "name", "protocol", "targetPort"], not_yet: &[], silent: &[] };
const WORKLOAD: Fields = Fields {
    honoured: &["address", "ports", "labels", "weight", "serviceAccount"],
    not_yet: &["network", "locality"],
    silent: &[],
};
const SELECTOR: Fields = Fields { honoured: &["labels"], not_yet: &[], silent: &[] };

/// Largest weight of an endpoint: 32 bits, as in Istio's API.
const WEIGHT_MAX: i64 = u32::MAX as i64;

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, metadata: &Metadata) -> Option<ServiceEntry> {
    let path = root.path.field("spec");
    let Some(node) = root.field("spec") else {
        r.missing(root.at, &path, "write `spec:` with `hosts:` and `ports:`");
        return None;
    };
    let mut spec = r.object(node, &path)?;
    let resolution = resolution(r, &mut spec);
    let location = location(r, &mut spec);
    let hosts = hosts(r, &mut spec);
    let addresses = addresses(r, &mut spec);
    let ports = ports(r, &mut spec);
    let workload_selector = workload_selector(r, &mut spec);
    let endpoints_path = path.field("endpoints");
    let items = spec.list(r, "endpoints");
    let mut endpoints = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        let path = endpoints_path.index(index);
        let Some(object) = r.object(node, &path) else { continue };
        let Some(endpoint) = workload(r, object, &Labels::default()) else { continue };
        check_endpoint(r, node, &path, &endpoint, resolution, &ports);
        endpoints.push(endpoint);
    }
    let export_to = export_to::field(r, &mut spec, &metadata.namespace);
    let subject_alt_names = tls::subject_alt_names(r, &mut spec).into();
    if workload_selector.is_some() && !items.is_empty() {
        let message = "has both `workloadSelector` and `endpoints`";
        r.error(Code::CONFLICT, spec.at, &path, message, "keep one of them");
    }
    if workload_selector.is_none() && items.is_empty() && resolution == Resolution::Static {
        let message = "resolution is STATIC, but there are neither `endpoints` nor a `workloadSelector`";
        r.warning(Code::NO_EFFECT, spec.at, &path, message, "write `endpoints:` with their addresses");
    }
    if resolution == Resolution::DnsRoundRobin && items.len() > 1 {
        let message = "resolution is DNS_ROUND_ROBIN, which is for one endpoint or none";
        r.error(Code::CONFLICT, spec.at, &endpoints_path, message, "write `resolution: DNS`, or keep one of them");
    }
    let wildcard = hosts.iter().any(|host| host.exact().is_none());
    if wildcard && items.is_empty() && matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
        let message = "a wildcard cannot be resolved by DNS";
        r.error(
            Code::CONFLICT,
            spec.at,
            &path.field("resolution"),
            message,
            "write `resolution: NONE`, or `endpoints:`",
        );
    }
    spec.finish(r, &SPEC);
    let entry = ServiceEntry {
        hosts,
        addresses,
        ports,
        location,
        resolution,
        endpoints,
        workload_selector,
        export_to,
        subject_alt_names,
    };
    (!r.failed).then_some(entry)
}

/// A WorkloadEntry as a resource of its own.
pub(crate) fn read_workload(
    r: &mut Reader<'_>,
    root: &mut Object<'_, '_, '_>,
    metadata: &Metadata,
) -> Option<Workload> {
    let path = root.path.field("spec");
    let Some(node) = root.field("spec") else {
        r.missing(root.at, &path, "write `spec:` with `address:`");
        return None;
    };
    let spec = r.object(node, &path)?;
    let workload = workload(r, spec, &metadata.labels)?;
    Some(Workload { unix_uid: metadata.unix_uid, ..workload })
}

fn workload(r: &mut Reader<'_>, mut object: Object<'_, '_, '_>, under: &Labels) -> Option<Workload> {
    let path = object.path;
    let address = match object.text(r, "address") {
        Some((text, at)) => {
            let address = r.valid(at, &path.field("address"), address(text));
            if let Some(Address::Unix(_)) = address {
                let message = "unix sockets are not yet honoured: the endpoint gets no traffic";
                r.warning(Code::VALUE_NOT_HONOURED, at, &path.field("address"), message, "");
            }
            address
        }
        None => {
            r.missing(object.at, &path.field("address"), "write an IP address, a DNS name or `unix:///path`");
            None
        }
    };
    let ports_path = path.field("ports");
    let mut ports = BTreeMap::new();
    for entry in object.entries(r, "ports") {
        let path = ports_path.field(&entry.key);
        let name = PortName::parse(r.share(&entry.key));
        let name = r.valid(entry.at, &path, name);
        let number = r.integer(&entry.value, &path);
        let port = number.and_then(|number| r.valid(entry.value.at, &path, Port::parse(number)));
        ports.extend(name.zip(port));
    }
    if let Some(Address::Unix(_)) = address
        && !ports.is_empty()
    {
        let message = "a unix socket has no ports";
        r.error(Code::CONFLICT, object.at, &ports_path, message, "remove `ports`");
    }
    let own = match object.field("labels") {
        Some(node) => labels(r, node, &path.field("labels")),
        None => Labels::default(),
    };
    let weight = match object.integer(r, "weight") {
        None => 1,
        Some((weight, _)) if (0..=WEIGHT_MAX).contains(&weight) => weight as u32,
        Some((weight, at)) => {
            let message = format!("weight {weight} is not between 0 and {WEIGHT_MAX}");
            r.error(
                Code::INVALID_WEIGHT,
                at,
                &path.field("weight"),
                message,
                "write a share of all endpoints' weights",
            );
            1
        }
    };
    // As in protobuf, a weight of 0 cannot be told from none.
    let weight = weight.max(1);
    let service_account = object.text(r, "serviceAccount").map(|(text, _)| r.share(text));
    for name in ["network", "locality"] {
        if let Some((_, at)) = object.text(r, name) {
            r.not_honoured(at, &path.field(name));
        }
    }
    let at = object.at;
    object.finish(r, &WORKLOAD);
    Some(Workload { at, address: address?, ports, labels: under.with(&own), weight, service_account, unix_uid: None })
}

fn address(text: &str) -> Result<Address, InvalidValue> {
    if let Some(path) = text.strip_prefix("unix://") {
        let valid = path.starts_with('/') || (path.starts_with('@') && path.len() > 1);
        if !valid || path.contains('\0') || path.len() > 107 {
            return Err(InvalidValue::with_hint(
                format!("`{text}` is not the address of a unix socket"),
                "write `unix:///absolute/path` of at most 107 characters, or `unix://@name`",
            ));
        }
        return Ok(Address::Unix(path.into()));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Address::Ip(address));
    }
    let dotted_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match Hostname::parse(text) {
        Ok(name) if !dotted_number => Ok(Address::Name(name)),
        _ => Err(InvalidValue::with_hint(
            format!("`{text}` is neither an IP address nor a DNS name"),
            "write it without port; ports go into `ports`",
        )),
    }
}

/// What kind of address goes with which resolution, as Istio has it.
fn check_endpoint(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    endpoint: &Workload,
    resolution: Resolution,
    ports: &[EntryPort],
) {
    let address = path.field("address");
    match (resolution, &endpoint.address) {
        (Resolution::None, _) => {
            let message = "resolution is NONE, so there can be no endpoints";
            r.error(
                Code::CONFLICT,
                node.at,
                path,
                message,
                "write `resolution: STATIC` for addresses, or DNS for names",
            );
        }
        (Resolution::Static, Address::Name(name)) => {
            let message = format!("`{name}` is a name, but resolution is STATIC");
            r.error(Code::CONFLICT, node.at, &address, message, "write `resolution: DNS`, or an IP address");
        }
        (Resolution::Dns | Resolution::DnsRoundRobin, Address::Unix(_)) => {
            let message = "a unix socket cannot be resolved by DNS";
            r.error(Code::CONFLICT, node.at, &address, message, "write `resolution: STATIC`");
        }
        _ => {}
    }
    for name in endpoint.ports.keys() {
        if !ports.iter().any(|port| port.name == *name) {
            let message = format!("the ServiceEntry has no port `{name}`");
            let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
            let hint = format!("its ports are {}", names.join(", "));
            r.error(Code::INVALID_VALUE, node.at, &path.field("ports").field(name.as_str()), message, &hint);
        }
    }
}

fn resolution(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Resolution {
    match spec.text(r, "resolution") {
        None | Some(("NONE", _)) => Resolution::None,
        Some(("STATIC", _)) => Resolution::Static,
        Some(("DNS", _)) => Resolution::Dns,
        Some(("DNS_ROUND_ROBIN", _)) => Resolution::DnsRoundRobin,
        Some((other, at)) => {
            let message = format!("`{other}` is not a resolution");
            let hint = "write NONE, STATIC, DNS or DNS_ROUND_ROBIN";
            r.error(Code::INVALID_VALUE, at, &spec.path.field("resolution"), message, hint);
            Resolution::None
        }
    }
}

fn location(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Location {
    match spec.text(r, "location") {
        None | Some(("MESH_EXTERNAL", _)) => Location::MeshExternal,
        Some(("MESH_INTERNAL", _)) => Location::MeshInternal,
        Some((other, at)) => {
            let message = format!("`{other}` is not a location");
            r.error(
                Code::INVALID_VALUE,
                at,
                &spec.path.field("location"),
                message,
                "write MESH_EXTERNAL or MESH_INTERNAL",
            );
            Location::MeshExternal
        }
    }
}

fn hosts(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Vec<HostPattern> {
    let path = spec.path.field("hosts");
    let items = spec.list(r, "hosts");
    if items.is_empty() && !r.failed {
        r.missing(spec.at, &path, "write the DNS names by which clients ask for it");
    }
    let mut hosts: Vec<HostPattern> = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        let Some(host) = r.parsed(node, &path, HostPattern::full) else { continue };
        if host == HostPattern::Any {
            let message = "`*` is not allowed as a host of a ServiceEntry";
            r.error(Code::INVALID_VALUE, node.at, &path, message, "write a name, or `*.example.com`");
        }
        if hosts.contains(&host) {
            r.error(Code::CONFLICT, node.at, &path, format!("`{host}` is listed twice"), "remove one of them");
        }
        hosts.push(host);
    }
    hosts
}

fn addresses(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Vec<IpAddr> {
    let path = spec.path.field("addresses");
    let mut addresses = Vec::new();
    for (index, node) in spec.list(r, "addresses").iter().enumerate() {
        let path = path.index(index);
        let Some(text) = r.string(node, &path) else { continue };
        match text.split_once('/') {
            None => addresses.extend(r.valid(node.at, &path, crate::source::kubernetes::ip(text))),
            Some((address, bits))
                if address.parse::<IpAddr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| bits <= 128) =>
            {
                let message = "address ranges are not yet honoured";
                r.warning(Code::VALUE_NOT_HONOURED, node.at, &path, message, "");
            }
            Some(_) => {
                let message = format!("`{text}` is neither an IP address nor a range of them");
                r.error(Code::INVALID_VALUE, node.at, &path, message, "write for instance 10.0.0.1 or 10.0.0.0/24");
            }
        }
    }
    addresses
}

fn workload_selector(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Option<Labels> {
    let path = spec.path.field("workloadSelector");
    let node = spec.field("workloadSelector")?;
    let mut object = r.object(node, &path)?;
    let found = object.field("labels").map(|node| labels(r, node, &path.field("labels"))).unwrap_or_default();
    object.finish(r, &SELECTOR);
    if found.is_empty() {
        r.missing(node.at, &path.field("labels"), "write the labels of the workloads");
    }
    Some(found)
}

fn ports(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Vec<EntryPort> {
    let path = spec.path.field("ports");
    let items = spec.list(r, "ports");
    let mut ports: Vec<EntryPort> = Vec::with_capacity(items.len());
    if items.is_empty() && !r.failed {
        r.missing(spec.at, &path, "write `ports:` with `number:`, `name:` and `protocol:`");
    }
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        let Some(port) = port(r, node, &path) else { continue };
        if ports.iter().any(|other| other.name == port.name) {
            let message = format!("the port name `{}` is used twice", port.name);
            r.error(Code::CONFLICT, node.at, &path.field("name"), message, "give each port a name of its own");
        }
        if ports.iter().any(|other| other.port == port.port) {
            let message = format!("port {} is listed twice", port.port);
            r.error(Code::CONFLICT, node.at, &path.field("number"), message, "remove one of them");
        }
        ports.push(port);
    }
    ports
}

fn port(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<EntryPort> {
    let mut object = r.object(node, path)?;
    let number = match object.integer(r, "number") {
        Some((number, at)) => r.valid(at, &path.field("number"), Port::parse(number)),
        None => {
            r.missing(node.at, &path.field("number"), "write the number that clients address");
            None
        }
    };
    let name = match object.text(r, "name") {
        Some((text, at)) => {
            let name = PortName::parse(r.share(text));
            r.valid(at, &path.field("name"), name)
        }
        None => {
            r.missing(node.at, &path.field("name"), "write a name such as `http`");
            None
        }
    };
    let written = object.text(r, "protocol");
    let protocol = match written {
        Some((text, at)) => {
            let protocol = Protocol::parse(text);
            if protocol.is_none() {
                let message = format!("`{text}` is not a protocol");
                let hint = "write HTTP, HTTP2, GRPC, HTTPS, TLS or TCP";
                r.error(Code::INVALID_VALUE, at, &path.field("protocol"), message, hint);
            }
            protocol
        }
        None => None,
    };
    let target = object
        .integer(r, "targetPort")
        .filter(|(number, _)| *number != 0)
        .and_then(|(number, at)| r.valid(at, &path.field("targetPort"), Port::parse(number)));
    object.finish(r, &PORT);
    let (port, name) = (number?, name?);
    let protocol = protocol.unwrap_or_else(|| Protocol::from_port_name(name.as_str()));
    if protocol == Protocol::Udp {
        let at = written.map_or(node.at, |(_, at)| at);
        let message = "UDP is not yet honoured: nothing is routed to the port";
        r.info(Code::VALUE_NOT_HONOURED, at, &path.field("protocol"), message);
    }
    Some(EntryPort { name, port, target: target.unwrap_or(port), protocol })
}
