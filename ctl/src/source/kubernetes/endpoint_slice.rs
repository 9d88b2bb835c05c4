//! `discovery.k8s.io/v1` EndpointSlice.

use super::ip;
use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::Metadata,
    },
    spec::{
        service::{EndpointSlice, SliceEndpoint, SlicePort},
        value::{Name, Port, PortName},
    },
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ENDPOINT: Fields = Fields {
    honoured: &["addresses", "conditions", "targetRef"],
    not_yet: &[],
    // Where an endpoint is matters to locality load balancing only, which DestinationRule switches on; it reports that.
    silent: &["hostname", "nodeName", "zone", "hints", "deprecatedTopology"],
};
const CONDITIONS: Fields = Fields { honoured: &["ready"], not_yet: &[], silent: &["serving", "terminating"] };
const TARGET: Fields = Fields {
    honoured: &["kind", "name"],
    not_yet: &[],
    silent: &["apiVersion", "namespace", "uid", "resourceVersion", "fieldPath"],
};
const PORT: Fields = Fields { honoured: &["name", "port"], not_yet: &[], silent: &["protocol", "appProtocol"] };

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
    for (index, node) in items.iter().enumerate() {
        endpoint(r, node, &endpoints_path.index(index), &mut endpoints);
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
    object.finish(r, &PORT);
    // A slice may leave the number out, which means "all ports"; nothing routes there.
    let (number, at) = number?;
    Some(SlicePort { name, port: r.valid(at, &path.field("port"), Port::parse(number))? })
}

fn endpoint(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>, endpoints: &mut Vec<SliceEndpoint>) {
    let Some(mut object) = r.object(node, path) else { return };
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
}
