//! `discovery.k8s.io/v1` EndpointSlice.

use super::{ip, service::is_tcp};
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader, shorten},
        node::Node,
        resource::Metadata,
    },
    spec::{
        service::{EndpointSlice, SliceEndpoint, SlicePort},
        value::{Name, Namespace, Port, PortName},
    },
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ENDPOINT: Fields = Fields {
    honoured: &["addresses", "conditions", "targetRef", "hints"],
    not_yet: &[],
    // The API server's own controller writes these into every slice. Where an endpoint is matters to locality load
    // balancing only, which Istio's sidecars do where a DestinationRule asks for it; that field of the rule is reported.
    silent: &["hostname", "nodeName", "zone", "deprecatedTopology"],
};
// Istio counts `ready` alone, too, unless sessions are persistent.
const CONDITIONS: Fields = Fields { honoured: &["ready"], not_yet: &[], silent: &["serving", "terminating"] };
const TARGET: Fields = Fields {
    honoured: &["kind", "name", "namespace"],
    not_yet: &[],
    // Which revision of the object it was, not which object.
    silent: &["apiVersion", "uid", "resourceVersion", "fieldPath"],
};
const PORT: Fields = Fields {
    honoured: &["name", "port", "protocol"],
    not_yet: &[],
    // A copy of what the Service says, which is what counts, as in Istio.
    silent: &["appProtocol"],
};

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, metadata: &Metadata) -> Option<EndpointSlice> {
    let path = root.path;
    let service = match metadata.labels.value(SERVICE_NAME) {
        Some(text) => r.valid(root.at, &path.field("metadata").field("labels"), Name::parse(text)),
        None => {
            let hint = "write the label `kubernetes.io/service-name: NAME` to say which Service it belongs to";
            r.missing(root.at, &path.field("metadata").field("labels").field(SERVICE_NAME), hint);
            None
        }
    };
    match root.text(r, "addressType") {
        Some(("IPv4" | "IPv6", _)) => {}
        Some(("FQDN", at)) => {
            root.field("ports");
            root.field("endpoints");
            let message = "FQDN is not honoured, as Kubernetes itself does not: its endpoints are not used";
            r.warning(
                Code::VALUE_NOT_HONOURED,
                at,
                &path.field("addressType"),
                message,
                "use a ServiceEntry with resolution DNS",
            );
            return Some(EndpointSlice {
                service: service?,
                labels: metadata.labels.clone(),
                ports: Vec::new(),
                endpoints: Vec::new(),
            });
        }
        Some((other, at)) => {
            let message = format!("`{other}` is not an address type");
            r.error(Code::INVALID_VALUE, at, &path.field("addressType"), message, "write IPv4 or IPv6");
        }
        None => r.missing(root.at, &path.field("addressType"), "write `addressType: IPv4`"),
    }
    let ports_path = path.field("ports");
    let mut ports = Vec::new();
    for (index, node) in root.list(r, "ports").iter().enumerate() {
        ports.extend(port(r, node, &ports_path.index(index)));
    }
    let endpoints_path = path.field("endpoints");
    let items = root.list(r, "endpoints");
    let mut endpoints = Vec::with_capacity(items.len());
    let mut hinted = None;
    for (index, node) in items.iter().enumerate() {
        let hints = endpoint(r, node, &endpoints_path.index(index), &metadata.namespace, &mut endpoints);
        hinted = hinted.or(hints.map(|at| (index, at)));
    }
    // One line for the whole slice: where a Service has `trafficDistribution`, all of its endpoints have hints.
    if let Some((index, at)) = hinted {
        let message = "hints at zones are not yet honoured: all endpoints are for all clients here";
        r.info(Code::FIELD_NOT_HONOURED, at, &endpoints_path.index(index).field("hints"), message);
    }
    Some(EndpointSlice { service: service?, labels: metadata.labels.clone(), ports, endpoints })
}

fn port(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<SlicePort> {
    let mut object = r.object(node, path)?;
    let name = match object.text(r, "name") {
        Some((text, at)) => {
            let name = PortName::parse(r.share(text));
            r.valid(at, &path.field("name"), name)?
        }
        None => PortName::default(),
    };
    let number = object.integer(r, "port");
    let tcp = is_tcp(r, &mut object, "write TCP");
    object.finish(r, &PORT);
    if !tcp {
        return None;
    }
    let Some((number, at)) = number else {
        // "All ports", which is for whoever reads slices to understand: kube-proxy passes over it, too.
        let message = "a port without a number is not honoured: no traffic goes there";
        r.warning(
            Code::VALUE_NOT_HONOURED,
            node.at,
            &path.field("port"),
            message,
            "write the number that endpoints listen on",
        );
        return None;
    };
    Some(SlicePort { name, port: r.valid(at, &path.field("port"), Port::parse(number))? })
}

/// Adds the addresses of one endpoint; returns where it has hints.
fn endpoint(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    namespace: &Namespace,
    endpoints: &mut Vec<SliceEndpoint>,
) -> Option<Position> {
    let mut object = r.object(node, path)?;
    let hints = object.field("hints").map(|node| node.at);
    let mut ready = true;
    let conditions_path = path.field("conditions");
    if let Some(mut conditions) = object.field("conditions").and_then(|node| r.object(node, &conditions_path)) {
        ready = conditions.boolean(r, "ready").unwrap_or(true);
        conditions.finish(r, &CONDITIONS);
    }
    let mut pod = None;
    let target_path = path.field("targetRef");
    if let Some(mut target) = object.field("targetRef").and_then(|node| r.object(node, &target_path)) {
        let kind = target.text(r, "kind");
        let name = target.text(r, "name");
        pod = name.filter(|_| matches!(kind, Some(("Pod", _)))).map(|(name, _)| r.share(name));
        if let Some((other, at)) = target.text(r, "namespace")
            && pod.is_some()
            && other != namespace.as_str()
        {
            let message = format!(
                "a Pod of namespace {}, which is not the slice's, is not yet honoured: the endpoint has none of its labels",
                shorten(other)
            );
            r.warning(Code::VALUE_NOT_HONOURED, at, &target_path.field("namespace"), message, "");
            pod = None;
        }
        target.finish(r, &TARGET);
    }
    let addresses_path = path.field("addresses");
    let addresses = object.list(r, "addresses");
    if addresses.is_empty() {
        r.missing(node.at, &addresses_path, "write at least one IP address");
    }
    for (index, node) in addresses.iter().enumerate() {
        if let Some(address) = r.parsed(node, &addresses_path.index(index), ip) {
            endpoints.push(SliceEndpoint { address, ready, pod: pod.clone() });
        }
    }
    object.finish(r, &ENDPOINT);
    hints
}
