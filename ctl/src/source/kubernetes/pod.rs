//! `v1` Pod: its labels, addresses and named ports. The rest of a Pod is about running it, and is not looked at.

use super::ip;
use crate::{
    source::{
        decode::{Object, Reader},
        node::Node,
        resource::Metadata,
    },
    spec::{
        service::Pod,
        value::{Port, PortName},
    },
};

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, metadata: &Metadata) -> Option<Pod> {
    let mut pod = Pod {
        labels: metadata.labels.clone(),
        addresses: Vec::new(),
        ready: true,
        service_account: None,
        unix_uid: metadata.unix_uid,
        ports: Vec::new(),
    };
    let spec_path = root.path.field("spec");
    if let Some(mut spec) = root.field("spec").and_then(|node| r.object(node, &spec_path)) {
        pod.service_account = spec.text(r, "serviceAccountName").map(|(text, _)| r.share(text));
        let containers_path = spec_path.field("containers");
        for (index, node) in spec.list(r, "containers").iter().enumerate() {
            let path = containers_path.index(index);
            let Some(mut container) = r.object(node, &path) else { continue };
            for (index, node) in container.list(r, "ports").iter().enumerate() {
                let ports_path = path.field("ports");
                let path = ports_path.index(index);
                let Some(mut port) = r.object(node, &path) else { continue };
                let name = port.text(r, "name");
                let number = port.integer(r, "containerPort");
                if let (Some((name, name_at)), Some((number, at))) = (name, number) {
                    let name = PortName::parse(r.share(name));
                    let name = r.valid(name_at, &path.field("name"), name);
                    let number = r.valid(at, &path.field("containerPort"), Port::parse(number));
                    pod.ports.extend(name.zip(number));
                }
            }
        }
    }
    let status_path = root.path.field("status");
    if let Some(mut status) = root.field("status").and_then(|node| r.object(node, &status_path)) {
        for node in status.list(r, "podIPs") {
            if let Some(address) = node.value_of("ip") {
                pod.addresses.extend(r.parsed(address, &status_path.field("podIPs"), ip));
            }
        }
        if let Some(node) = status.field("podIP")
            && pod.addresses.is_empty()
            && node.text().is_some_and(|text| !text.is_empty())
        {
            pod.addresses.extend(r.parsed(node, &status_path.field("podIP"), ip));
        }
        let phase = status.text(r, "phase").map(|(text, _)| text);
        pod.ready = !matches!(phase, Some("Succeeded" | "Failed" | "Pending"));
        for node in status.list(r, "conditions") {
            if node.value_of("type").and_then(Node::text) == Some("Ready") {
                pod.ready &= node.value_of("status").and_then(Node::text) == Some("True");
            }
        }
    }
    Some(pod)
}
