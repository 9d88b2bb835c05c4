//! `selector`, `targetRef` and `targetRefs` of Istio's policies.

use std::sync::Arc;

use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::labels,
    },
    spec::{scope::Scope, value::Labels},
};

const SELECTOR: Fields = Fields { honoured: &["matchLabels"], not_yet: &[], silent: &[] };
const TARGET: Fields = Fields { honoured: &["group", "kind", "name", "namespace"], not_yet: &[], silent: &[] };

const GATEWAY_API: &str = "gateway.networking.k8s.io";
const ISTIO: &str = "networking.istio.io";

/// Of a policy's `spec`. Istio takes one of the three fields.
pub(super) fn read(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Scope {
    let given = |name: &&str| spec.peek(name).is_some_and(|node| !node.is_null());
    let given: Vec<&str> = ["selector", "targetRefs", "targetRef"].into_iter().filter(given).collect();
    if let [first, second, ..] = given[..] {
        let message = format!("has both `{first}` and `{second}`");
        r.error(Code::CONFLICT, spec.at, spec.path, message, "keep one of them");
    }
    let selector = selector(r, spec);
    let path = spec.path.field("targetRef");
    let mut gateways = Vec::new();
    let one = spec.field("targetRef").filter(|node| !node.is_null());
    if let Some(node) = one {
        gateways.extend(target(r, node, &path));
    }
    let path = spec.path.field("targetRefs");
    let list = spec.list(r, "targetRefs");
    for (index, node) in list.iter().enumerate() {
        gateways.extend(target(r, node, &path.index(index)));
    }
    if one.is_some() || !list.is_empty() { Scope::Gateways(gateways) } else { Scope::Selector(selector) }
}

/// Of a `spec`: the labels of the workloads that it is for; none for all.
pub(super) fn selector(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Labels {
    let path = spec.path.field("selector");
    let Some(mut object) = spec.field("selector").and_then(|node| r.object(node, &path)) else {
        return Labels::default();
    };
    let found = object.field("matchLabels").map(|node| labels(r, node, &path.field("matchLabels")));
    object.finish(r, &SELECTOR);
    found.unwrap_or_default()
}

/// The name of a Gateway that has workloads.
fn target(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<Arc<str>> {
    let mut object = r.object(node, path)?;
    let group = object.text(r, "group").map_or("", |(group, _)| group);
    let kind = object.text(r, "kind");
    let name = object.text(r, "name");
    if let Some((namespace, at)) = object.text(r, "namespace")
        && !namespace.is_empty()
    {
        let message = "must not be set: a policy is for what is in its own namespace";
        r.error(Code::INVALID_VALUE, at, &path.field("namespace"), message, "remove it");
    }
    let at = object.at;
    object.finish(r, &TARGET);
    let Some((kind, _)) = kind else {
        r.missing(at, &path.field("kind"), "write `kind:`, such as Gateway");
        return None;
    };
    let Some((name, _)) = name.filter(|(name, _)| !name.is_empty()) else {
        r.missing(at, &path.field("name"), "write `name:`");
        return None;
    };
    match (group, kind) {
        (GATEWAY_API, "Gateway") => Some(r.share(name)),
        (GATEWAY_API, "GatewayClass") | ("" | "core", "Service") | (ISTIO, "ServiceEntry") => {
            let message = format!(
                "not honoured: a policy for a {kind} is for waypoint proxies, of which there are none here, so it guards nothing"
            );
            let hint = "write a `selector` with the labels of the workloads that it shall guard";
            r.warning(Code::VALUE_NOT_HONOURED, at, path, message, hint);
            None
        }
        (ISTIO, "Gateway") => {
            let message =
                "not honoured: a policy is attached to a Gateway of Istio's by its workload, so it guards nothing";
            let hint = "write a `selector` with the labels that the Gateway selects";
            r.warning(Code::VALUE_NOT_HONOURED, at, path, message, hint);
            None
        }
        _ => {
            let message = format!("`{kind}` of group `{group}` is nothing that a policy can be attached to");
            let hint = "write Gateway or GatewayClass of group gateway.networking.k8s.io, Service without a group, or \
                        ServiceEntry of group networking.istio.io";
            r.error(Code::INVALID_VALUE, at, path, message, hint);
            None
        }
    }
}
