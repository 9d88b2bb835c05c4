//! `v1` Service.

use super::ip;
use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader, shorten},
        istio::export_to,
        node::{Meaning, Node, Value},
        resource::{Metadata, labels},
    },
    spec::{
        service::{Service, ServiceKind, ServicePort, TargetPort},
        value::{ExportTo, Hostname, Labels, Namespace, Port, PortName, Protocol},
    },
};

const SPEC: Fields = Fields {
    honoured: &["type", "clusterIP", "clusterIPs", "externalName", "ports", "selector"],
    // Whoever writes loadBalancerSourceRanges means to keep others out, and nothing here does.
    not_yet: &["externalIPs", "sessionAffinityConfig", "trafficDistribution", "loadBalancerSourceRanges"],
    // The API server writes these into every Service, or into every one with a load balancer. Istio's sidecars read none
    // of them: the addresses are those of `clusterIPs`, whatever the families; and the ports of nodes are kube-proxy's,
    // before a connection is in the mesh.
    silent: &["ipFamilies", "ipFamilyPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts"],
};
const PORT: Fields = Fields {
    honoured: &["name", "port", "targetPort", "protocol", "appProtocol"],
    not_yet: &[],
    // As `healthCheckNodePort`.
    silent: &["nodePort"],
};

/// What a user asks of the load balancer in front of the cluster, or of kube-proxy behind it, with the value that asks
/// for nothing.
const IN_FRONT: [(&str, &str); 3] =
    [("externalTrafficPolicy", "Cluster"), ("loadBalancerClass", ""), ("loadBalancerIP", "")];

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, metadata: &Metadata) -> Option<Service> {
    let path = root.path.field("spec");
    let Some(node) = root.field("spec") else {
        r.missing(root.at, &path, "write `spec:` with `ports:`");
        return None;
    };
    // RFC 1035 labels, in Kubernetes; the name becomes one of a host name.
    if let Err(why) = Namespace::parse(metadata.name.as_str()) {
        let metadata_path = root.path.field("metadata");
        r.invalid(root.at, &metadata_path.field("name"), why);
    }
    let mut spec = r.object(node, &path)?;
    let mut addresses: Vec<&Node<'_>> = spec.list(r, "clusterIPs").iter().collect();
    if let Some(node) = spec.field("clusterIP")
        && addresses.is_empty()
    {
        addresses.push(node);
    }
    let headless = addresses.iter().any(|node| node.text() == Some("None"));
    let cluster_ips = addresses
        .iter()
        .filter(|node| node.text().is_none_or(|text| !text.is_empty() && text != "None"))
        .filter_map(|node| r.parsed(node, &path.field("clusterIP"), ip))
        .collect();
    let kind = kind(r, &mut spec, headless);
    let ports = ports(r, &mut spec);
    let selector = match spec.field("selector") {
        Some(node) => labels(r, node, &path.field("selector")),
        None => Labels::default(),
    };
    for (name, default) in [("sessionAffinity", "None"), ("internalTrafficPolicy", "Cluster")] {
        if let Some((text, at)) = spec.string(r, name)
            && text != default
        {
            r.not_honoured(at, &path.field(name));
        }
    }
    let unready = spec.field("publishNotReadyAddresses");
    if let Some(node) = unready
        && r.boolean(node, &path.field("publishNotReadyAddresses")) == Some(true)
    {
        r.not_honoured(node.at, &path.field("publishNotReadyAddresses"));
    }
    if matches!(kind, Some(ServiceKind::ExternalName(_))) && ports.as_ref().is_some_and(Vec::is_empty) {
        let message = "an ExternalName without ports is not yet honoured: requests for it are not routed";
        r.warning(Code::VALUE_NOT_HONOURED, spec.at, &path.field("ports"), message, "write `ports:`");
    }
    in_front(r, &mut spec);
    spec.finish(r, &SPEC);
    let export_to = match &metadata.export_to {
        Some((text, at)) => {
            let field = Path::Root.field("metadata");
            let items = text.split(',').map(|item| (item.trim(), *at));
            export_to::read(
                r,
                items,
                &field.field("annotations").field("networking.istio.io/exportTo"),
                &metadata.namespace,
            )
        }
        None => ExportTo::All,
    };
    Some(Service { kind: kind?, ports: ports?, cluster_ips, selector, export_to })
}

/// Tells once of all that is for others than a mesh: no proxy heeds it in Istio either.
fn in_front(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) {
    let path = spec.path;
    let mut found = Vec::new();
    for (name, nothing) in IN_FRONT {
        if let Some((text, at)) = spec.text(r, name)
            && text != nothing
        {
            found.push((name, at));
        }
    }
    let Some((first, at)) = found.first().copied() else { return };
    let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
    let message = format!(
        "is for load balancers in front of the cluster and for kube-proxy, and has no effect here: {}",
        names.join(", ")
    );
    r.info(Code::FIELD_NOT_HONOURED, at, &path.field(first), message);
}

fn kind(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>, headless: bool) -> Option<ServiceKind> {
    let path = spec.path;
    let external = spec.text(r, "externalName");
    match spec.text(r, "type") {
        None | Some(("ClusterIP" | "NodePort" | "LoadBalancer", _)) => {
            Some(if headless { ServiceKind::Headless } else { ServiceKind::ClusterIp })
        }
        Some(("ExternalName", _)) => match external {
            Some((text, at)) => {
                r.valid(at, &path.field("externalName"), Hostname::parse(text)).map(ServiceKind::ExternalName)
            }
            None => {
                r.missing(spec.at, &path.field("externalName"), "write the DNS name that the service stands for");
                None
            }
        },
        Some((other, at)) => {
            let hint = "write ClusterIP, NodePort, LoadBalancer or ExternalName";
            r.error(Code::INVALID_VALUE, at, &path.field("type"), format!("`{other}` is not a type of Service"), hint);
            None
        }
    }
}

fn ports(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Option<Vec<ServicePort>> {
    let path = spec.path.field("ports");
    let items = spec.list(r, "ports");
    let mut ports: Vec<ServicePort> = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        let Some((port, datagrams)) = port(r, node, &path) else { continue };
        if items.len() > 1 && port.name.as_str().is_empty() {
            r.missing(node.at, &path.field("name"), "a Service with several ports must name each of them");
        } else if ports.iter().any(|other| other.name == port.name) {
            let message = format!("the port name `{}` is used twice", port.name);
            r.error(Code::INVALID_VALUE, node.at, &path.field("name"), message, "give each port a name of its own");
        }
        if datagrams {
            continue;
        }
        if ports.iter().any(|other| other.port == port.port) {
            let message = format!("port {} is listed twice", port.port);
            r.error(Code::INVALID_VALUE, node.at, &path.field("port"), message, "remove one of them");
        }
        ports.push(port);
    }
    (!r.failed).then_some(ports)
}

/// A port, and whether it is one for datagrams.
fn port(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<(ServicePort, bool)> {
    let mut object = r.object(node, path)?;
    let name = match object.text(r, "name") {
        Some((text, at)) => {
            let name = PortName::parse(r.share(text));
            r.valid(at, &path.field("name"), name)?
        }
        None => PortName::default(),
    };
    let number = match object.integer(r, "port") {
        Some((number, at)) => r.valid(at, &path.field("port"), Port::parse(number)),
        None => {
            r.missing(node.at, &path.field("port"), "write the number that clients address");
            None
        }
    };
    let target = target(r, &mut object, path);
    let datagrams = !is_tcp(r, &mut object, "write TCP here, and HTTP in `appProtocol` or as prefix of the name");
    let protocol = match object.text(r, "appProtocol") {
        Some((text, at)) => Protocol::parse(text).unwrap_or_else(|| {
            let message = format!(
                "`{}` is not a protocol that is known here: what the port speaks counts as not said",
                shorten(text)
            );
            let hint = "write http, http2, grpc, https, tls or tcp where it is one of them";
            r.warning(Code::VALUE_NOT_HONOURED, at, &path.field("appProtocol"), message, hint);
            Protocol::Unknown
        }),
        None => Protocol::from_port_name(name.as_str()),
    };
    object.finish(r, &PORT);
    if protocol == Protocol::Udp && !datagrams {
        r.info(
            Code::VALUE_NOT_HONOURED,
            node.at,
            path,
            "says that it is UDP, which is not yet honoured: nothing is routed to it",
        );
    }
    let port = number?;
    Some((ServicePort { name, port, target: target.unwrap_or(TargetPort::Number(port)), protocol }, datagrams))
}

/// Whether the `protocol` of a port is TCP. What is not is reported: UDP and SCTP as not yet honoured.
pub(super) fn is_tcp(r: &mut Reader<'_>, port: &mut Object<'_, '_, '_>, hint: &str) -> bool {
    let path = port.path.field("protocol");
    match port.text(r, "protocol") {
        None | Some(("TCP", _)) => true,
        Some(("UDP" | "SCTP", at)) => {
            let message = "UDP and SCTP are not yet honoured: the port has no effect here";
            r.info(Code::VALUE_NOT_HONOURED, at, &path, message);
            false
        }
        Some((other, at)) => {
            let message = format!("`{other}` is not a transport protocol");
            r.error(Code::INVALID_VALUE, at, &path, message, hint);
            true
        }
    }
}

fn target(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, path: &Path<'_>) -> Option<TargetPort> {
    let node = object.field("targetPort")?;
    let path = path.field("targetPort");
    if let Value::Scalar(scalar) = &node.value
        && let Meaning::String(text) = scalar.meaning()
    {
        let name = PortName::parse(r.share(text));
        return r.valid(node.at, &path, name).map(TargetPort::Name);
    }
    let number = r.integer(node, &path)?;
    // 0 is how Kubernetes' own types write "absent".
    if number == 0 {
        return None;
    }
    r.valid(node.at, &path, Port::parse(number)).map(TargetPort::Number)
}
