//! From a document to a resource: which API it is of, its metadata, and who reads the rest.

use std::sync::Arc;

use super::{
    decode::{Fields, Object, Path, Reader, closest, one_line},
    istio, kubernetes,
    node::{Node, Value},
};
use crate::{
    diagnostic::{Code, Position},
    spec::{
        Body, Key, Kind,
        value::{self, InvalidValue, Labels, Name, Namespace},
    },
};

/// A resource that was read, with its place in the file.
pub(crate) struct Parsed {
    pub(crate) key: Key,
    pub(crate) at: Position,
    /// The position after it.
    pub(crate) end: Position,
    /// Whether it is an item of a `List`.
    pub(crate) in_list: bool,
    pub(crate) created: Option<Arc<str>>,
    pub(crate) body: Body,
}

/// `metadata`, as far as anything depends on it.
pub(crate) struct Metadata {
    pub(crate) name: Name,
    pub(crate) namespace: Namespace,
    pub(crate) labels: Labels,
    /// `metadata.annotations["networking.istio.io/exportTo"]`.
    pub(crate) export_to: Option<(String, Position)>,
    /// `metadata.annotations["meshring.io/unix-uid"]`.
    pub(crate) unix_uid: Option<u32>,
    /// Whether `metadata.annotations["istio.io/dry-run"]` is `true`.
    pub(crate) dry_run: bool,
    pub(crate) created: Option<Arc<str>>,
}

/// What an `apiVersion` and a `kind` stand for.
enum Class {
    Honoured(Kind),
    /// Istio's or Gateway API's, and not yet honoured.
    NotHonoured,
    /// Has nothing to do with traffic.
    Foreign,
    List,
}

const ISTIO_NETWORKING: &str = "networking.istio.io";
const ISTIO_SECURITY: &str = "security.istio.io";
const DISCOVERY: &str = "discovery.k8s.io";

/// Istio's groups: versions, kinds. Only kinds of [`Kind`] are honoured.
const ISTIO: [(&str, &[&str], &[&str]); 5] = [
    (
        ISTIO_NETWORKING,
        &["v1", "v1beta1", "v1alpha3"],
        &[
            "VirtualService",
            "DestinationRule",
            "ServiceEntry",
            "WorkloadEntry",
            "Gateway",
            "Sidecar",
            "EnvoyFilter",
            "WorkloadGroup",
            "ProxyConfig",
        ],
    ),
    (ISTIO_SECURITY, &["v1", "v1beta1"], &["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"]),
    ("telemetry.istio.io", &["v1", "v1alpha1"], &["Telemetry"]),
    ("extensions.istio.io", &["v1alpha1"], &["WasmPlugin", "TrafficExtension"]),
    ("install.istio.io", &["v1alpha1"], &["IstioOperator"]),
];

/// Kinds of `v1` that are no concern of ours; anything else in `v1` is a misspelling.
const CORE: [&str; 16] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Event",
    "LimitRange",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Status",
    "Scale",
];

struct Unknown {
    code: Code,
    /// Whether the hint is about `kind` instead of `apiVersion`.
    kind: bool,
    message: String,
    hint: String,
}

/// Reads one document, or each item of a `List`.
pub(crate) fn read(r: &mut Reader<'_>, node: &Node<'_>, resources: &mut Vec<Parsed>) {
    if !node.is_null() {
        object(r, node, &Path::Root, 0, resources);
    }
}

fn object(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>, depth: usize, resources: &mut Vec<Parsed>) {
    r.resource = None;
    r.failed = false;
    let Value::Mapping { entries: _, end } = &node.value else {
        let hint = "write an object with `apiVersion`, `kind` and `metadata`";
        return r.error(Code::NOT_A_RESOURCE, node.at, path, "is not a resource", hint);
    };
    let Some(mut root) = r.object(node, path) else { return };
    let version = root.text(r, "apiVersion");
    let kind = root.text(r, "kind");
    let (Some((version, version_at)), Some((kind, kind_at))) = (version, kind) else {
        if !r.failed {
            let missing = if version.is_none() { "apiVersion" } else { "kind" };
            let hint = if missing == "apiVersion" {
                "write for instance `apiVersion: networking.istio.io/v1`"
            } else {
                "write for instance `kind: VirtualService`"
            };
            r.error(Code::NOT_A_RESOURCE, node.at, &path.field(missing), "is missing: this is not a resource", hint);
        }
        return;
    };
    r.resource = Some(one_line(label(node, kind)));
    match classify(node, version, kind) {
        Err(unknown) => {
            let (at, field) = if unknown.kind { (kind_at, "kind") } else { (version_at, "apiVersion") };
            r.error(unknown.code, at, &path.field(field), unknown.message, &unknown.hint);
        }
        Ok(Class::NotHonoured) => {
            let message = format!("the kind {kind} is not yet honoured: the whole resource has no effect here");
            r.warning(Code::KIND_NOT_HONOURED, kind_at, &path.field("kind"), message, "");
        }
        Ok(Class::Foreign) => {
            let message = format!("{version} {kind} has nothing to do with traffic: ignored");
            r.info(Code::FOREIGN_KIND, kind_at, &path.field("kind"), message);
        }
        Ok(Class::List) => list(r, root, depth, resources),
        Ok(Class::Honoured(kind)) => {
            if let Some((metadata, body)) = resource(r, &mut root, kind) {
                const FIELDS: Fields = Fields {
                    honoured: &[
                        "apiVersion",
                        "kind",
                        "metadata",
                        "spec",
                        "status",
                        "endpoints",
                        "ports",
                        "addressType",
                        "data",
                    ],
                    not_yet: &[],
                    silent: &["status"],
                };
                root.finish(r, &FIELDS);
                if !r.failed {
                    let key = Key { kind, namespace: metadata.namespace, name: metadata.name };
                    resources.push(Parsed {
                        key,
                        at: node.at,
                        end: *end,
                        in_list: depth > 0,
                        created: metadata.created,
                        body,
                    });
                }
            }
        }
    }
}

fn list(r: &mut Reader<'_>, mut root: Object<'_, '_, '_>, depth: usize, resources: &mut Vec<Parsed>) {
    r.resource = None;
    if depth >= 4 {
        return r.error(
            Code::TOO_COMPLEX,
            root.at,
            root.path,
            "lists of lists of lists",
            "write the resources one after another",
        );
    }
    let items = root.list(r, "items");
    let path = root.path.field("items");
    let mut any = r.failed;
    for (index, item) in items.iter().enumerate() {
        object(r, item, &path.index(index), depth + 1, resources);
        any |= r.failed;
    }
    r.resource = None;
    root.field("metadata");
    root.finish(r, &Fields { honoured: &["apiVersion", "kind", "items"], not_yet: &[], silent: &["metadata"] });
    r.failed |= any;
}

/// `VirtualService default/reviews`, as far as the document says it.
fn label(node: &Node<'_>, kind: &str) -> String {
    let metadata = node.value_of("metadata");
    let text = |name: &str| metadata.and_then(|metadata| metadata.value_of(name)).and_then(Node::text);
    match (text("namespace"), text("name")) {
        (namespace, Some(name)) => {
            format!("{kind} {}/{name}", namespace.unwrap_or(crate::spec::value::DEFAULT_NAMESPACE))
        }
        (_, None) => kind.to_owned(),
    }
}

fn classify(node: &Node<'_>, version: &str, kind: &str) -> Result<Class, Unknown> {
    let (group, number) = version.rsplit_once('/').unwrap_or(("", version));
    if let Some((_, versions, kinds)) = ISTIO.iter().find(|(name, ..)| *name == group) {
        if !versions.contains(&number) {
            return Err(unknown_version(version, group, versions));
        }
        return match (kinds.contains(&kind), Kind::parse(kind)) {
            (true, Some(honoured))
                if honoured.as_str() == kind && matches!(group, ISTIO_NETWORKING | ISTIO_SECURITY) =>
            {
                Ok(Class::Honoured(honoured))
            }
            (true, Some(Kind::IstioOperator)) if istio::mesh_config::has_mesh_config(node) => {
                Ok(Class::Honoured(Kind::IstioOperator))
            }
            // The rest of it is about how to install Istio.
            (true, Some(Kind::IstioOperator)) => Ok(Class::Foreign),
            (true, _) => Ok(Class::NotHonoured),
            (false, _) if kind.strip_suffix("List").is_some_and(|item| kinds.contains(&item)) => Ok(Class::List),
            (false, _) => Err(unknown_kind(kind, group, kinds)),
        };
    }
    match (group, number) {
        ("", "v1") if kind == "ConfigMap" && istio::mesh_config::is_mesh_config_map(node) => {
            Ok(Class::Honoured(Kind::ConfigMap))
        }
        ("", "v1") if kind == "Secret" && kubernetes::secret::is_credential(node) => Ok(Class::Honoured(Kind::Secret)),
        ("", "v1") => core(kind),
        (DISCOVERY, "v1") if kind == "EndpointSlice" => Ok(Class::Honoured(Kind::EndpointSlice)),
        (DISCOVERY, "v1") if kind == "EndpointSliceList" => Ok(Class::List),
        (DISCOVERY, "v1") => Err(unknown_kind(kind, DISCOVERY, &["EndpointSlice"])),
        (DISCOVERY, _) => Err(unknown_version(version, DISCOVERY, &["v1"])),
        ("", _) => Err(unknown_version(version, "", &["v1"])),
        _ if group.ends_with(".istio.io") || group == "istio.io" => {
            let groups = ISTIO.iter().map(|(name, ..)| *name);
            Err(Unknown {
                code: Code::UNKNOWN_VERSION,
                kind: false,
                message: format!("`{version}` is no API of Istio"),
                hint: closest(group, groups).map_or_else(
                    || "write for instance `networking.istio.io/v1`".to_owned(),
                    |group| format!("did you mean `{group}/{number}`?"),
                ),
            })
        }
        ("gateway.networking.k8s.io", _) | ("networking.k8s.io", _) => Ok(Class::NotHonoured),
        _ => match meant_group(group, kind) {
            Some(meant) => Err(Unknown {
                code: Code::UNKNOWN_VERSION,
                kind: false,
                message: format!("there is no API `{version}` with a {kind}"),
                hint: format!("did you mean `{meant}/{number}`?"),
            }),
            None => Ok(Class::Foreign),
        },
    }
}

/// The group that was misspelt: one of ours that is nearly the same, and has such a kind. Other groups have kinds of the same names.
fn meant_group(group: &str, kind: &str) -> Option<&'static str> {
    let istio = ISTIO.iter().filter(|(_, _, kinds)| kinds.contains(&kind)).map(|(name, ..)| *name);
    let groups = istio.chain((kind == "EndpointSlice").then_some(DISCOVERY));
    // A slip or two: `networking.x-k8s.io` is another one.
    groups.into_iter().find(|known| strsim::damerau_levenshtein(group, known) <= 2)
}

fn core(kind: &str) -> Result<Class, Unknown> {
    match kind {
        "Service" => Ok(Class::Honoured(Kind::Service)),
        "Pod" => Ok(Class::Honoured(Kind::Pod)),
        // Superseded by EndpointSlice; Kubernetes writes both.
        "Endpoints" => Ok(Class::NotHonoured),
        "List" | "ServiceList" | "PodList" | "SecretList" => Ok(Class::List),
        _ if CORE.contains(&kind) || kind.strip_suffix("List").is_some_and(|kind| CORE.contains(&kind)) => {
            Ok(Class::Foreign)
        }
        _ => Err(unknown_kind(kind, "v1", &[&["Service", "Pod", "List"], &CORE[..]].concat())),
    }
}

fn unknown_version(version: &str, group: &str, versions: &[&str]) -> Unknown {
    let separator = if group.is_empty() { "" } else { "/" };
    let known: Vec<_> = versions.iter().map(|version| format!("`{group}{separator}{version}`")).collect();
    Unknown {
        code: Code::UNKNOWN_VERSION,
        kind: false,
        message: format!("unknown version `{version}`"),
        hint: format!("write {}", known.join(" or ")),
    }
}

fn unknown_kind(kind: &str, group: &str, kinds: &[&str]) -> Unknown {
    let hint = match closest(kind, kinds.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        // A kind of one group is easily written with the apiVersion of another.
        None => match ISTIO.iter().find(|(_, _, kinds)| kinds.contains(&kind)) {
            Some((group, versions, _)) => format!("{kind} is of `{group}/{}`", versions[0]),
            None => format!("kinds of {group} are {}", kinds.join(", ")),
        },
    };
    Unknown { code: Code::UNKNOWN_KIND, kind: true, message: format!("{group} has no kind `{kind}`"), hint }
}

fn resource(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, kind: Kind) -> Option<(Metadata, Body)> {
    let metadata = match kind {
        Kind::IstioOperator => operator_metadata(r, root)?,
        _ => metadata(r, root)?,
    };
    let body = match kind {
        Kind::VirtualService => {
            istio::virtual_service::read(r, root, &metadata).map(|x| Body::VirtualService(Arc::new(x)))
        }
        Kind::DestinationRule => {
            istio::destination_rule::read(r, root, &metadata).map(|x| Body::DestinationRule(Arc::new(x)))
        }
        Kind::ServiceEntry => istio::service_entry::read(r, root, &metadata).map(|x| Body::ServiceEntry(Arc::new(x))),
        Kind::WorkloadEntry => {
            istio::service_entry::read_workload(r, root, &metadata).map(|x| Body::WorkloadEntry(Arc::new(x)))
        }
        Kind::Service => kubernetes::service::read(r, root, &metadata).map(|x| Body::Service(Arc::new(x))),
        Kind::EndpointSlice => {
            kubernetes::endpoint_slice::read(r, root, &metadata).map(|x| Body::EndpointSlice(Arc::new(x)))
        }
        Kind::Pod => kubernetes::pod::read(r, root, &metadata).map(|x| Body::Pod(Arc::new(x))),
        Kind::ConfigMap => {
            istio::mesh_config::read_config_map(r, root, &metadata).map(|x| Body::ConfigMap(Arc::new(x)))
        }
        Kind::IstioOperator => istio::mesh_config::read_operator(r, root).map(|x| Body::IstioOperator(Arc::new(x))),
        Kind::AuthorizationPolicy => {
            istio::authorization_policy::read(r, root, &metadata).map(|x| Body::AuthorizationPolicy(Arc::new(x)))
        }
        Kind::RequestAuthentication => {
            istio::request_authentication::read(r, root, &metadata).map(|x| Body::RequestAuthentication(Arc::new(x)))
        }
        Kind::PeerAuthentication => {
            istio::peer_authentication::read(r, root, &metadata).map(|x| Body::PeerAuthentication(Arc::new(x)))
        }
        Kind::Gateway => istio::gateway::read(r, root, &metadata).map(|x| Body::Gateway(Arc::new(x))),
        Kind::Secret => kubernetes::secret::read(r, root, &metadata).map(|x| Body::Secret(Arc::new(x))),
    };
    Some((metadata, body?))
}

/// `istioctl` takes an IstioOperator without a name, as the one of what is installed.
fn operator_metadata(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>) -> Option<Metadata> {
    const NAME: &str = "installed-state";
    let given = root.peek("metadata").filter(|metadata| !metadata.is_null());
    if given.is_some_and(|metadata| metadata.value_of("name").is_some()) {
        return metadata(r, root);
    }
    let namespace = given.and_then(|metadata| metadata.value_of("namespace")?.text());
    let namespace = namespace.unwrap_or(crate::spec::value::DEFAULT_NAMESPACE).to_owned();
    root.field("metadata");
    r.resource = Some(format!("{} {namespace}/{NAME}", Kind::IstioOperator));
    let namespace = Namespace::parse(r.share(&namespace));
    Some(Metadata {
        name: Name::parse(r.share(NAME)).ok()?,
        namespace: r.valid(root.at, &root.path.field("metadata").field("namespace"), namespace)?,
        labels: Labels::default(),
        export_to: None,
        unix_uid: None,
        dry_run: false,
        created: None,
    })
}

fn metadata(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>) -> Option<Metadata> {
    const FIELDS: Fields = Fields {
        honoured: &["name", "namespace", "labels", "annotations", "creationTimestamp"],
        not_yet: &[],
        silent: &[
            "generateName",
            "uid",
            "resourceVersion",
            "generation",
            "managedFields",
            "ownerReferences",
            "finalizers",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ],
    };
    let path = root.path.field("metadata");
    let Some(node) = root.field("metadata") else {
        r.error(Code::NOT_A_RESOURCE, root.at, &path, "is missing", "write `metadata:` with a `name:`");
        return None;
    };
    let mut object = r.object(node, &path)?;
    let name = object.text(r, "name");
    let namespace = object.text(r, "namespace");
    let name = match name {
        Some((text, at)) => {
            let name = Name::parse(r.share(text));
            r.valid(at, &path.field("name"), name)
        }
        None => {
            r.error(Code::NOT_A_RESOURCE, object.at, &path.field("name"), "is missing", "write `name:` in `metadata:`");
            None
        }
    };
    let namespace = match namespace {
        Some((text, at)) => {
            let namespace = Namespace::parse(r.share(text));
            r.valid(at, &path.field("namespace"), namespace)
        }
        None => Namespace::parse(r.share(crate::spec::value::DEFAULT_NAMESPACE)).ok(),
    };
    let labels = match object.field("labels") {
        Some(node) => {
            let path = path.field("labels");
            for entry in r.entries(node, &path).iter().filter(|entry| entry.key == USE_WAYPOINT) {
                if entry.value.text().is_some_and(|waypoint| waypoint != "none") {
                    r.not_honoured(entry.at, &path.field(&entry.key));
                }
            }
            labels(r, node, &path)
        }
        None => Labels::default(),
    };
    let (mut export_to, mut unix_uid, mut dry_run) = (None, None, false);
    for entry in object.entries(r, "annotations") {
        let path = path.field("annotations");
        let value = r.string(&entry.value, &path.field(&entry.key));
        if entry.key == "networking.istio.io/exportTo" {
            export_to = value.map(|text| (text.to_owned(), entry.value.at));
        } else if entry.key == UNIX_UID {
            unix_uid = value.and_then(|text| r.valid(entry.value.at, &path.field(UNIX_UID), value::unix_uid(text)));
        } else if entry.key == DRY_RUN {
            dry_run = match value {
                Some("true") => true,
                Some("false") | None => false,
                Some(other) => {
                    let message = format!("`{other}` is neither true nor false");
                    r.error(Code::INVALID_VALUE, entry.value.at, &path.field(DRY_RUN), message, "write \"true\"");
                    false
                }
            };
        } else if NOT_HONOURED.contains(&&*entry.key) && !matches!(value, None | Some("" | "*" | "REDIRECT")) {
            r.not_honoured(entry.at, &path.field(&entry.key));
        }
    }
    let created = object.text(r, "creationTimestamp").map(|(text, _)| r.share(text));
    object.finish(r, &FIELDS);
    Some(Metadata { name: name?, namespace: namespace?, labels, export_to, unix_uid, dry_run, created })
}

/// An AuthorizationPolicy that is evaluated and not enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// Annotations of Istio's that change what a workload's own proxy does or sees, and with it what is guarded. Those about injection and
/// what Istio writes itself (`sidecar.istio.io/status`) ask for nothing here, nor does what is Istio's default.
const NOT_HONOURED: [&str; 10] = [
    "proxy.istio.io/config",
    "sidecar.istio.io/interceptionMode",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
];

/// The label that sends traffic through a waypoint proxy, which would judge it.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// The user that a workload runs as: what it says on a unix socket is believed to come from that workload.
const UNIX_UID: &str = "meshring.io/unix-uid";

/// A map of labels, checked as Kubernetes checks them.
pub(crate) fn labels(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Labels {
    let mut pairs = Vec::new();
    for entry in r.entries(node, path) {
        let path = path.field(&entry.key);
        if let Err(why) = label_key(&entry.key) {
            r.invalid(entry.at, &path, why);
        }
        if entry.value.is_null() {
            continue;
        }
        let Some(value) = r.string(&entry.value, &path) else { continue };
        if let Err(why) = label_value(value) {
            r.invalid(entry.value.at, &path, why);
        }
        pairs.push((r.share(&entry.key), r.share(value)));
    }
    Labels::new(pairs)
}

fn label_key(key: &str) -> Result<(), InvalidValue> {
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    if !name.is_empty() && label_value(name).is_ok() && (prefix.is_empty() || Name::parse(prefix).is_ok()) {
        return Ok(());
    }
    Err(InvalidValue::with_hint(
        format!("`{key}` is not a label key"),
        "write at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
    ))
}

fn label_value(value: &str) -> Result<(), InvalidValue> {
    let bytes = value.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    if bytes.len() <= 63 && bytes.iter().all(inner) && ends(bytes.first()) && ends(bytes.last()) {
        return Ok(());
    }
    Err(InvalidValue::with_hint(
        format!("`{value}` is not a label value"),
        "write at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
    ))
}
