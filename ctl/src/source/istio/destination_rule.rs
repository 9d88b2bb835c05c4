//! Istio's DestinationRule.

use super::{
    connection_pool, export_to,
    tls::{CLIENT_CERTIFICATE, Given, subject_alt_names},
};
use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::{Metadata, labels},
    },
    spec::{
        destination_rule::{ClientTls, ClientTlsMode, DestinationRule, PortPolicy, Subset, TrafficPolicy},
        secret::Credential,
        value::{HostPattern, Hostname, Labels, LoadBalancer, Namespace, Port},
    },
};

const SPEC: Fields = Fields {
    honoured: &["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"],
    not_yet: &[],
    silent: &[],
};
const SUBSET: Fields = Fields { honoured: &["name", "labels", "trafficPolicy"], not_yet: &[], silent: &[] };
const POLICY: Fields = Fields {
    honoured: &["loadBalancer", "portLevelSettings", "tls", "connectionPool"],
    not_yet: &["outlierDetection", "tunnel", "proxyProtocol", "retryBudget"],
    silent: &[],
};
const PORT_POLICY: Fields = Fields {
    honoured: &["port", "loadBalancer", "tls", "connectionPool"],
    not_yet: &["outlierDetection"],
    silent: &[],
};
const TLS: Fields = Fields {
    honoured: &[
        "mode",
        "clientCertificate",
        "privateKey",
        "caCertificates",
        "credentialName",
        "subjectAltNames",
        "sni",
        "insecureSkipVerify",
    ],
    not_yet: &["caCrl"],
    silent: &[],
};
const LOAD_BALANCER: Fields = Fields {
    honoured: &["simple"],
    not_yet: &["consistentHash", "localityLbSetting", "warmupDurationSecs", "warmup"],
    silent: &[],
};
const PORT: Fields = Fields { honoured: &["number"], not_yet: &[], silent: &[] };
const SELECTOR: Fields = Fields { honoured: &["matchLabels"], not_yet: &[], silent: &[] };

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, metadata: &Metadata) -> Option<DestinationRule> {
    let path = root.path.field("spec");
    let Some(node) = root.field("spec") else {
        r.missing(root.at, &path, "write `spec:` with `host:`");
        return None;
    };
    let mut spec = r.object(node, &path)?;
    let host = match spec.text(r, "host") {
        Some((text, at)) => {
            let host = host(text, &metadata.namespace);
            r.valid(at, &path.field("host"), host)
        }
        None => {
            r.missing(spec.at, &path.field("host"), "write the name of a service");
            None
        }
    };
    let policy = policy(r, &mut spec);
    let subsets = subsets(r, &mut spec);
    let export_to = export_to::field(r, &mut spec, &metadata.namespace);
    let selector_path = path.field("workloadSelector");
    let mut workload_selector = None;
    if let Some(node) = spec.field("workloadSelector")
        && let Some(mut object) = r.object(node, &selector_path)
    {
        let found = object.field("matchLabels").map(|node| labels(r, node, &selector_path.field("matchLabels")));
        object.finish(r, &SELECTOR);
        workload_selector = found.filter(|labels| !labels.is_empty());
        if workload_selector.is_some() {
            let message = "is not yet honoured: a rule for some workloads only has no effect here";
            r.warning(Code::FIELD_NOT_HONOURED, node.at, &selector_path, message, "");
        }
    }
    spec.finish(r, &SPEC);
    Some(DestinationRule { host: host?, policy, subsets, export_to, workload_selector })
}

fn host(text: &str, namespace: &Namespace) -> Result<HostPattern, crate::spec::value::InvalidValue> {
    HostPattern::resolve(text, namespace)
}

fn subsets(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Vec<Subset> {
    let path = spec.path.field("subsets");
    let items = spec.list(r, "subsets");
    let mut subsets: Vec<Subset> = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        let Some(mut object) = r.object(node, &path) else { continue };
        let name = object.text(r, "name");
        let labels = match object.field("labels") {
            Some(node) => labels(r, node, &path.field("labels")),
            None => Labels::default(),
        };
        let policy = policy(r, &mut object);
        object.finish(r, &SUBSET);
        let Some((name, at)) = name else {
            r.missing(node.at, &path.field("name"), "write the name by which VirtualServices refer to it");
            continue;
        };
        // Istio: a DNS label of letters in any case, since the name becomes part of a cluster's name.
        if name.is_empty()
            || name.len() > 63
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        {
            let message = format!("`{name}` is not a subset name");
            r.error(Code::INVALID_VALUE, at, &path.field("name"), message, "write at most 63 letters, digits and `-`");
        }
        if let Some(other) = subsets.iter().find(|other| &*other.name == name) {
            let message = format!("the subset `{name}` is here for the second time; the first is at {}", other.at);
            r.error(Code::CONFLICT, at, &path.field("name"), message, "remove or rename one of them");
        }
        subsets.push(Subset { at: node.at, name: r.share(name), labels, policy });
    }
    subsets
}

fn policy(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> TrafficPolicy {
    let path = object.path.field("trafficPolicy");
    let Some(mut policy) = object.field("trafficPolicy").and_then(|node| r.object(node, &path)) else {
        return TrafficPolicy::default();
    };
    let load_balancer = load_balancer(r, &mut policy);
    let tls = tls(r, &mut policy);
    let connection_pool = connection_pool::field(r, &mut policy);
    let ports_path = path.field("portLevelSettings");
    let mut ports: Vec<PortPolicy> = Vec::new();
    for (index, node) in policy.list(r, "portLevelSettings").iter().enumerate() {
        let Some(settings) = port_policy(r, node, &ports_path.index(index)) else { continue };
        if ports.iter().any(|other| other.port == settings.port) {
            let message = format!("port {} is listed twice", settings.port);
            r.error(Code::CONFLICT, node.at, &ports_path.index(index), message, "remove one of them");
        }
        ports.push(settings);
    }
    policy.finish(r, &POLICY);
    TrafficPolicy { load_balancer, tls, connection_pool, ports }
}

fn port_policy(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<PortPolicy> {
    let mut settings = r.object(node, path)?;
    let load_balancer = load_balancer(r, &mut settings);
    let tls = tls(r, &mut settings);
    let connection_pool = connection_pool::field(r, &mut settings);
    let port_path = path.field("port");
    let selector = settings.field("port");
    settings.finish(r, &PORT_POLICY);
    let Some(selector) = selector else {
        r.missing(node.at, &port_path, "write `port:` with `number:`");
        return None;
    };
    let mut object = r.object(selector, &port_path)?;
    let number = object.integer(r, "number");
    object.finish(r, &PORT);
    let Some((number, at)) = number else {
        r.missing(selector.at, &port_path.field("number"), "write a port of the service");
        return None;
    };
    let port = r.valid(at, &port_path.field("number"), Port::parse(number))?;
    Some(PortPolicy { port, load_balancer, tls, connection_pool })
}

fn tls(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Option<ClientTls> {
    let path = object.path.field("tls");
    let node = object.field("tls")?;
    let mut tls = r.object(node, &path)?;
    let mode = match tls.text(r, "mode") {
        // As in protobuf, the first one is the default.
        None | Some(("DISABLE", _)) => Some(ClientTlsMode::Disable),
        Some(("SIMPLE", _)) => Some(ClientTlsMode::Simple),
        Some(("MUTUAL", _)) => Some(ClientTlsMode::Mutual),
        Some(("ISTIO_MUTUAL", _)) => Some(ClientTlsMode::IstioMutual),
        Some((other, at)) => {
            let message = format!("`{other}` is not a mode of TLS");
            let hint = "write DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL";
            r.error(Code::INVALID_VALUE, at, &path.field("mode"), message, hint);
            None
        }
    };
    let given = Given::read(r, &mut tls, CLIENT_CERTIFICATE);
    let subject_alt_names = subject_alt_names(r, &mut tls);
    let sni = tls.parsed(r, "sni", Hostname::parse).map(|name| name.shared());
    let insecure_skip_verify = tls.boolean(r, "insecureSkipVerify").unwrap_or(false);
    tls.finish(r, &TLS);
    let mode = mode?;
    let credential = credential(r, node, &path, mode, given);
    if insecure_skip_verify {
        match mode {
            ClientTlsMode::Simple | ClientTlsMode::Mutual => {
                let judged = match &credential {
                    Credential::None => false,
                    Credential::Files { ca, .. } => !ca.is_empty(),
                    Credential::Secret(_) => mode == ClientTlsMode::Simple,
                };
                if judged || !subject_alt_names.is_empty() {
                    let message = "nothing is verified, and yet there are names or roots to verify by";
                    let hint = "remove insecureSkipVerify, or what it contradicts";
                    r.error(Code::CONFLICT, node.at, &path.field("insecureSkipVerify"), message, hint);
                }
            }
            ClientTlsMode::Disable | ClientTlsMode::IstioMutual => {
                let message = "is for SIMPLE and MUTUAL: it has no effect here";
                r.warning(Code::NO_EFFECT, node.at, &path.field("insecureSkipVerify"), message, "remove it");
            }
        }
    }
    let insecure_skip_verify = insecure_skip_verify && matches!(mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
    let sni = sni.unwrap_or_default();
    Some(ClientTls { mode, credential, sni, subject_alt_names, insecure_skip_verify })
}

/// What a mode makes of files and Secrets that are named.
fn credential(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    mode: ClientTlsMode,
    mut given: Given,
) -> Credential {
    match mode {
        ClientTlsMode::Mutual => {
            let own = [("clientCertificate", given.certificate.is_some()), ("privateKey", given.key.is_some())];
            given.require(r, node.at, path, "MUTUAL", &own);
        }
        ClientTlsMode::Simple => {
            // Istio takes such a rule, and shows no certificate.
            for (field, value) in [("clientCertificate", given.certificate.take()), ("privateKey", given.key.take())] {
                if value.is_some() {
                    let message = "SIMPLE shows no certificate of the client's: it has no effect";
                    r.warning(
                        Code::NO_EFFECT,
                        node.at,
                        &path.field(field),
                        message,
                        "write `mode: MUTUAL`, or remove it",
                    );
                }
            }
        }
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => {
            if !given.is_empty() {
                let message = "certificates are named for a mode that uses none of them: they have no effect";
                r.warning(Code::NO_EFFECT, node.at, path, message, "remove them, or write `mode: MUTUAL`");
            }
            return Credential::None;
        }
    }
    given.credential()
}

fn load_balancer(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Option<LoadBalancer> {
    let path = object.path.field("loadBalancer");
    let node = object.field("loadBalancer")?;
    let mut settings = r.object(node, &path)?;
    let simple = settings.text(r, "simple");
    settings.finish(r, &LOAD_BALANCER);
    let (text, at) = simple?;
    let path = path.field("simple");
    match text {
        "ROUND_ROBIN" => Some(LoadBalancer::RoundRobin),
        "RANDOM" => Some(LoadBalancer::Random),
        "LEAST_REQUEST" => Some(LoadBalancer::LeastRequest),
        "PASSTHROUGH" => Some(LoadBalancer::Passthrough),
        "UNSPECIFIED" => None,
        "LEAST_CONN" => {
            r.warning(
                Code::DEPRECATED,
                at,
                &path,
                "LEAST_CONN is deprecated",
                "write LEAST_REQUEST, which means the same",
            );
            Some(LoadBalancer::LeastRequest)
        }
        other => {
            let message = format!("`{other}` is not a load balancer");
            let hint = "write LEAST_REQUEST, ROUND_ROBIN, RANDOM or PASSTHROUGH";
            r.error(Code::INVALID_VALUE, at, &path, message, hint);
            None
        }
    }
}
