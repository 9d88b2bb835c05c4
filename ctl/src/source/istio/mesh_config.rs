//! Istio's MeshConfig: `data.mesh` of the ConfigMap `istio` or `istio-REVISION`, a YAML text of its own, and
//! `spec.meshConfig` of an IstioOperator.

use std::sync::Arc;

use meshring_core::{
    limits::TRUSTED_HOPS_MAX,
    spiffe::check_trust_domain,
    table::model::{ForwardClientCertificate, PathNormalization},
};

use super::{connection_pool::upgrade_policy, extension_provider};
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader},
        node::{Block, Node, Value},
        resource::Metadata,
        yaml,
    },
    spec::{
        mesh_config::{DEFAULT_REVISION, MeshConfig},
        value::{InvalidValue, Namespace, ROOT_NAMESPACE},
    },
};

/// The ConfigMap of the default revision; `istio-REVISION` are the others.
const CONFIG_MAP: &str = "istio";

const DATA: Fields = Fields { honoured: &["mesh"], not_yet: &["meshNetworks"], silent: &[] };
const OPERATOR: Fields = Fields {
    honoured: &["meshConfig", "revision"],
    not_yet: &["values", "unvalidatedValues"],
    // How Istio itself is installed.
    silent: &[
        "profile",
        "hub",
        "tag",
        "namespace",
        "installPackagePath",
        "components",
        "addonComponents",
        "compatibilityVersion",
    ],
};
const MESH: Fields = Fields {
    honoured: &[
        "pathNormalization",
        "defaultConfig",
        "rootNamespace",
        "trustDomain",
        "trustDomainAliases",
        "enableAutoMtls",
        "meshMTLS",
        "extensionProviders",
        "h2UpgradePolicy",
    ],
    not_yet: &[
        "accessLogEncoding",
        "accessLogFile",
        "accessLogFormat",
        "ca",
        "caCertificates",
        "certificates",
        "compliancePolicy",
        "configSources",
        "connectTimeout",
        "defaultDestinationRuleExportTo",
        "defaultHttpRetryPolicy",
        "defaultProviders",
        "defaultServiceExportTo",
        "defaultVirtualServiceExportTo",
        "disableEnvoyListenerLog",
        "discoverySelectors",
        "dnsRefreshRate",
        "enableEnvoyAccessLogService",
        "enablePrometheusMerge",
        "enableTracing",
        "inboundClusterStatName",
        "inboundTrafficPolicy",
        "ingressClass",
        "ingressControllerMode",
        "ingressSelector",
        "ingressService",
        "localityLbSetting",
        "outboundClusterStatName",
        "outboundTrafficPolicy",
        "protocolDetectionTimeout",
        "proxyHttpPort",
        "proxyInboundListenPort",
        "proxyListenPort",
        "serviceScopeConfigs",
        "serviceSettings",
        "tcpKeepalive",
        "thriftConfig",
        "tlsDefaults",
        "verifyCertificateAtClient",
    ],
    silent: &[],
};
const NORMALIZATION: Fields = Fields { honoured: &["normalization"], not_yet: &[], silent: &[] };
const PROXY: Fields = Fields {
    honoured: &["gatewayTopology", "proxyHeaders"],
    not_yet: &[
        "availabilityZone",
        "binaryPath",
        "caCertificatesPem",
        "concurrency",
        "configPath",
        "connectionSettings",
        "controlPlaneAuthPolicy",
        "customConfigFile",
        "discoveryAddress",
        "discoveryRefreshDelay",
        "drainDuration",
        "envoyAccessLogService",
        "envoyMetricsService",
        "envoyMetricsServiceAddress",
        "extraStatTags",
        "fileFlushInterval",
        "fileFlushMinSizeKb",
        "holdApplicationUntilProxyStarts",
        "image",
        "interceptionMode",
        "meshId",
        "parentShutdownDuration",
        "privateKeyProvider",
        "proxyAdminPort",
        "proxyBootstrapTemplatePath",
        "proxyMetadata",
        "proxyStatsMatcher",
        "readinessProbe",
        "runtimeValues",
        "sds",
        "serviceCluster",
        "statNameLength",
        "statsCompression",
        "statsdUdpAddress",
        "statusPort",
        "terminationDrainDuration",
        "tracing",
        "tracingServiceName",
        "zipkinAddress",
    ],
    silent: &[],
};
const TOPOLOGY: Fields =
    Fields { honoured: &["forwardClientCertDetails", "numTrustedProxies"], not_yet: &["proxyProtocol"], silent: &[] };
const PROXY_HEADERS: Fields = Fields {
    honoured: &["requestId"],
    not_yet: &[
        "attemptCount",
        "envoyDebugHeaders",
        "forwardedClientCert",
        "metadataExchangeHeaders",
        "preserveHttp1HeaderCase",
        "server",
        "setCurrentClientCertDetails",
        "xForwardedHost",
        "xForwardedPort",
    ],
    silent: &[],
};
const MESH_MTLS: Fields =
    Fields { honoured: &["minProtocolVersion"], not_yet: &["cipherSuites", "ecdhCurves"], silent: &[] };
const REQUEST_ID: Fields = Fields { honoured: &["disabled"], not_yet: &[], silent: &[] };

/// Whether a ConfigMap holds a MeshConfig. Many names begin with `istio-`; what has no `mesh` is something else.
pub(crate) fn is_mesh_config_map(node: &Node<'_>) -> bool {
    let metadata = |field: &str| node.value_of("metadata").and_then(|metadata| metadata.value_of(field)?.text());
    let Some(name) = metadata("name") else { return false };
    let has_mesh = node.value_of("data").is_some_and(|data| data.value_of("mesh").is_some());
    match name.strip_prefix(CONFIG_MAP) {
        Some("") => has_mesh || metadata("namespace") == Some(ROOT_NAMESPACE),
        Some(rest) => has_mesh && rest.starts_with('-'),
        None => false,
    }
}

/// Whether an IstioOperator says anything about the mesh, and not only how to install Istio.
pub(crate) fn has_mesh_config(node: &Node<'_>) -> bool {
    let config = node.value_of("spec").and_then(|spec| spec.value_of("meshConfig"));
    config.is_some_and(|config| !config.is_null())
}

/// `None` also where it has no effect, which is told then.
pub(crate) fn read_config_map(
    r: &mut Reader<'_>,
    root: &mut Object<'_, '_, '_>,
    metadata: &Metadata,
) -> Option<MeshConfig> {
    if metadata.namespace.as_str() != ROOT_NAMESPACE {
        let path = root.path.field("metadata");
        let message = format!(
            "Istio reads its MeshConfig from namespace {ROOT_NAMESPACE}, and this is in {}: it has no effect here",
            metadata.namespace
        );
        let hint = format!("write `namespace: {ROOT_NAMESPACE}`");
        r.warning(Code::NO_EFFECT, root.at, &path.field("namespace"), message, &hint);
        return None;
    }
    root.field("binaryData");
    root.field("immutable");
    let name = metadata.name.as_str();
    let revision = name.strip_prefix(CONFIG_MAP).and_then(|rest| rest.strip_prefix('-')).unwrap_or(DEFAULT_REVISION);
    let path = root.path.field("data");
    let mesh_path = path.field("mesh");
    let Some(mut data) = root.field("data").and_then(|node| r.object(node, &path)) else {
        r.missing(root.at, &path, "write `mesh: |` under it, and a MeshConfig below");
        return None;
    };
    let Some(text) = data.field("mesh") else {
        r.missing(data.at, &mesh_path, "write `mesh: |`, and a MeshConfig below");
        return None;
    };
    // What an installation of one cluster has there.
    if data.peek("meshNetworks").is_some_and(|networks| networks.text().map(str::trim) == Some("networks: {}")) {
        data.field("meshNetworks");
    }
    data.finish(r, &DATA);
    let mut config = MeshConfig::new(r.share(revision));
    if let Some(document) = document(r, text, &mesh_path)? {
        read(r, &document, &mesh_path, &mut config);
    }
    Some(config)
}

pub(crate) fn read_operator(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>) -> Option<MeshConfig> {
    let path = root.path.field("spec");
    let mut spec = root.field("spec").and_then(|node| r.object(node, &path))?;
    let revision = spec.text(r, "revision").map_or(DEFAULT_REVISION, |(text, _)| text);
    let mut config = MeshConfig::new(r.share(revision));
    if let Some(node) = spec.field("meshConfig") {
        read(r, node, &path.field("meshConfig"), &mut config);
    }
    spec.finish(r, &OPERATOR);
    Some(config)
}

/// The document in a text, its positions those in the file. `Some(None)` for an empty one, `None` for one that does not
/// parse.
fn document<'n>(r: &mut Reader<'_>, node: &'n Node<'_>, path: &Path<'_>) -> Option<Option<Node<'n>>> {
    let text = r.string(node, path)?;
    let block = match &node.value {
        Value::Scalar(scalar) => scalar.block,
        _ => None,
    };
    // Quoted or folded, a line of the text is no line of the file.
    let place = |at| if block.is_some() { at } else { node.at };
    let chunk = block.unwrap_or(Block { line: 1, indent: 0 }).chunk(text);
    let mut roots = match yaml::parse(&chunk) {
        Ok(roots) => roots,
        Err(error) => {
            let message = match error.field {
                Some(field) => format!("{field}: {}", error.message),
                None => error.message,
            };
            r.error(error.code, place(error.at), path, message, &error.hint);
            return None;
        }
    };
    if let Some(second) = roots.get(1) {
        r.error(Code::CONFLICT, place(second.at), path, "is more than one document", "write one MeshConfig");
        return None;
    }
    let mut document = roots.pop().filter(|root| !root.is_null());
    if let Some(document) = document.as_mut().filter(|_| block.is_none()) {
        document.relocate(node.at);
    }
    Some(document)
}

fn read(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>, config: &mut MeshConfig) {
    let Some(mut mesh) = r.object(node, path) else { return };
    let paths = path.field("pathNormalization");
    if let Some(mut object) = mesh.field("pathNormalization").and_then(|node| r.object(node, &paths)) {
        config.path_normalization = normalization(r, &mut object);
        object.finish(r, &NORMALIZATION);
    }
    let proxy_path = path.field("defaultConfig");
    if let Some(mut proxy) = mesh.field("defaultConfig").and_then(|node| r.object(node, &proxy_path)) {
        topology(r, &mut proxy, config);
        config.request_id = request_id(r, &mut proxy);
        proxy.finish(r, &PROXY);
    }
    if let Some((namespace, at)) = mesh.text(r, "rootNamespace") {
        let namespace = Namespace::parse(r.share(namespace));
        config.root_namespace = r.valid(at, &path.field("rootNamespace"), namespace);
    }
    if let Some((text, at)) = mesh.text(r, "trustDomain") {
        config.trust_domain = trust_domain(r, text, at, &path.field("trustDomain"));
    }
    let aliases = path.field("trustDomainAliases");
    for (index, node) in mesh.list(r, "trustDomainAliases").iter().enumerate() {
        let path = aliases.index(index);
        let Some(text) = r.string(node, &path) else { continue };
        config.trust_domain_aliases.extend(trust_domain(r, text, node.at, &path));
    }
    config.auto_mtls = mesh.boolean(r, "enableAutoMtls");
    let tls_path = path.field("meshMTLS");
    if let Some(mut tls) = mesh.field("meshMTLS").and_then(|node| r.object(node, &tls_path)) {
        config.mesh_tls12 = min_protocol(r, &mut tls);
        tls.finish(r, &MESH_MTLS);
    }
    config.ext_authz = extension_provider::read(r, &mut mesh);
    if let Some((text, at)) = mesh.text(r, "h2UpgradePolicy") {
        let hint = "write UPGRADE or DO_NOT_UPGRADE";
        config.h2_upgrade = upgrade_policy(r, text, at, &path.field("h2UpgradePolicy"), hint);
    }
    mesh.finish(r, &MESH);
}

/// A SPIFFE trust domain (SPIFFE-ID section 2.1): it becomes the host of a URI, and is compared byte by byte.
fn trust_domain(r: &mut Reader<'_>, text: &str, at: Position, path: &Path<'_>) -> Option<Arc<str>> {
    let checked = check_trust_domain(text).map_err(|why| {
        InvalidValue::with_hint(format!("`{text}`: {why}"), "write for instance cluster.local, without `spiffe://`")
    });
    r.valid(at, path, checked)?;
    Some(r.share(text))
}

/// Whether TLS 1.2 is allowed.
fn min_protocol(r: &mut Reader<'_>, tls: &mut Object<'_, '_, '_>) -> Option<bool> {
    let (text, at) = tls.text(r, "minProtocolVersion")?;
    match text {
        "TLS_AUTO" | "TLSV1_2" => Some(true),
        "TLSV1_3" => Some(false),
        other => {
            let message = format!("`{other}` is not a version of TLS");
            let path = tls.path.field("minProtocolVersion");
            r.error(Code::INVALID_VALUE, at, &path, message, "write TLSV1_2, TLSV1_3 or TLS_AUTO (which is TLSV1_2)");
            None
        }
    }
}

fn normalization(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Option<PathNormalization> {
    let (text, at) = object.text(r, "normalization")?;
    let known = PathNormalization::ALL.into_iter().find(|level| level.as_str() == text);
    // Istio: "Apply default normalizations. Currently, this is BASE."
    let level = known.or((text == "DEFAULT").then_some(PathNormalization::Base));
    if level.is_none() {
        let message = format!("`{text}` is not a level of normalisation");
        let hint = "write DECODE_AND_MERGE_SLASHES, MERGE_SLASHES, BASE, DEFAULT (which is BASE) or NONE";
        r.error(Code::INVALID_VALUE, at, &object.path.field("normalization"), message, hint);
    }
    level
}

fn topology(r: &mut Reader<'_>, proxy: &mut Object<'_, '_, '_>, config: &mut MeshConfig) {
    let path = proxy.path.field("gatewayTopology");
    let Some(mut topology) = proxy.field("gatewayTopology").and_then(|node| r.object(node, &path)) else { return };
    config.trusted_hops = trusted_hops(r, &mut topology);
    config.gateway_client_certificate = forward_client_certificate(r, &mut topology);
    topology.finish(r, &TOPOLOGY);
}

/// `None` for `UNDEFINED`, too: the default.
fn forward_client_certificate(
    r: &mut Reader<'_>,
    topology: &mut Object<'_, '_, '_>,
) -> Option<ForwardClientCertificate> {
    let (text, at) = topology.text(r, "forwardClientCertDetails")?;
    let known = ForwardClientCertificate::ALL.into_iter().find(|how| how.as_str() == text);
    if known.is_none() && text != "UNDEFINED" {
        let message = format!("`{text}` is no way to forward client certificates");
        let hint = "write SANITIZE, FORWARD_ONLY, APPEND_FORWARD, SANITIZE_SET or ALWAYS_FORWARD_ONLY";
        r.error(Code::INVALID_VALUE, at, &topology.path.field("forwardClientCertDetails"), message, hint);
    }
    known
}

fn trusted_hops(r: &mut Reader<'_>, topology: &mut Object<'_, '_, '_>) -> Option<u8> {
    let (number, at) = topology.integer(r, "numTrustedProxies")?;
    let hops = u8::try_from(number).ok().filter(|hops| *hops <= TRUSTED_HOPS_MAX);
    if hops.is_none() {
        let message = format!("{number} is not between 0 and {TRUSTED_HOPS_MAX}");
        let hint = "write how many trusted proxies stand before the mesh";
        r.error(Code::INVALID_VALUE, at, &topology.path.field("numTrustedProxies"), message, hint);
    }
    hops
}

fn request_id(r: &mut Reader<'_>, proxy: &mut Object<'_, '_, '_>) -> Option<bool> {
    let path = proxy.path.field("proxyHeaders");
    let mut headers = proxy.field("proxyHeaders").and_then(|node| r.object(node, &path))?;
    let path = path.field("requestId");
    let node = headers.field("requestId");
    headers.finish(r, &PROXY_HEADERS);
    let mut object = node.and_then(|node| r.object(node, &path))?;
    let disabled = object.boolean(r, "disabled");
    object.finish(r, &REQUEST_ID);
    disabled.map(|disabled| !disabled)
}
