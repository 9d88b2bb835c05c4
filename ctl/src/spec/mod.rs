//! The one internal model: what the input says, in valid types, whatever format it came in.
//!
//! A [`source`](crate::source) reads text into [`Resource`]s; [`World::assemble`] puts them together and finds what
//! does not fit; [`World::analyze`] follows the references between them; the compiler turns the world into the data
//! plane's table.

mod analyze;
mod analyze_security;
pub mod authorization_policy;
pub mod destination_rule;
mod file_text;
pub mod gateway;
mod host_index;
pub mod mesh_config;
pub mod peer_authentication;
pub mod registry;
pub mod request_authentication;
pub mod rules;
pub mod scope;
pub mod secret;
pub mod service;
pub mod service_entry;
pub mod upstream_protocol;
pub mod value;
pub mod virtual_service;
mod world;

use std::{fmt, ops::Range, sync::Arc};

use serde::Serialize;
use zeroize::Zeroizing;

pub use self::{
    authorization_policy::AuthorizationPolicy,
    destination_rule::DestinationRule,
    file_text::FileText,
    gateway::Gateway,
    mesh_config::MeshConfig,
    peer_authentication::PeerAuthentication,
    registry::{Endpoint, MeshPort, MeshService, Registry},
    request_authentication::RequestAuthentication,
    secret::Secret,
    service::{EndpointSlice, Pod, Service},
    service_entry::{ServiceEntry, Workload},
    value::{HostPattern, Hostname, Labels, Name, Namespace, Port},
    virtual_service::VirtualService,
    world::World,
};
pub use crate::diagnostic::{Place, Position};

/// Maps of the model are keyed by what the operator wrote, hundreds of thousands of times; resistance to chosen keys
/// would cost a third of the time to assemble a world.
pub(crate) type FastMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
/// As [`FastMap`].
pub(crate) type FastSet<T> = std::collections::HashSet<T, foldhash::fast::RandomState>;

/// The kinds that are honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Pod.
    Pod,
    /// Istio's ServiceEntry.
    ServiceEntry,
    /// Istio's WorkloadEntry.
    WorkloadEntry,
    /// Istio's DestinationRule.
    DestinationRule,
    /// Istio's VirtualService.
    VirtualService,
    /// `v1` ConfigMap that holds Istio's MeshConfig.
    ConfigMap,
    /// Istio's IstioOperator that holds a MeshConfig.
    IstioOperator,
    /// Istio's PeerAuthentication.
    PeerAuthentication,
    /// Istio's RequestAuthentication.
    RequestAuthentication,
    /// Istio's AuthorizationPolicy.
    AuthorizationPolicy,
    /// Istio's Gateway.
    Gateway,
    /// `v1` Secret with certificates.
    Secret,
}

impl Kind {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 14] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::DestinationRule,
        Self::VirtualService,
        Self::ConfigMap,
        Self::IstioOperator,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::AuthorizationPolicy,
        Self::Gateway,
        Self::Secret,
    ];

    /// As `kind:` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::DestinationRule => "DestinationRule",
            Self::VirtualService => "VirtualService",
            Self::ConfigMap => "ConfigMap",
            Self::IstioOperator => "IstioOperator",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Gateway => "Gateway",
            Self::Secret => "Secret",
        }
    }

    /// Whether it is of `security.istio.io`: what is demanded of those who come to a workload.
    pub fn is_security(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication | Self::RequestAuthentication)
    }

    /// As kubectl users type it: kind, plural or short name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "service" | "services" | "svc" => Self::Service,
            "endpointslice" | "endpointslices" | "eps" => Self::EndpointSlice,
            "pod" | "pods" | "po" => Self::Pod,
            "serviceentry" | "serviceentries" | "se" => Self::ServiceEntry,
            "workloadentry" | "workloadentries" | "we" => Self::WorkloadEntry,
            "destinationrule" | "destinationrules" | "dr" => Self::DestinationRule,
            "virtualservice" | "virtualservices" | "vs" => Self::VirtualService,
            "configmap" | "configmaps" | "cm" => Self::ConfigMap,
            "istiooperator" | "istiooperators" | "iop" | "io" => Self::IstioOperator,
            "peerauthentication" | "peerauthentications" | "pa" => Self::PeerAuthentication,
            "requestauthentication" | "requestauthentications" | "ra" => Self::RequestAuthentication,
            "authorizationpolicy" | "authorizationpolicies" | "ap" => Self::AuthorizationPolicy,
            "gateway" | "gateways" | "gw" => Self::Gateway,
            "secret" | "secrets" => Self::Secret,
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What makes a resource that resource: kind, namespace and name. Shown as `VirtualService default/reviews`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// `metadata.namespace`, or `default`.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: Name,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// One valid resource, where it stands, and as the user wrote it.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Kind, namespace and name.
    pub key: Key,
    /// Where it begins.
    pub place: Place,
    /// `metadata.creationTimestamp`, where the document has it: RFC 3339, so text order is time order. The older one
    /// wins.
    pub created: Option<Arc<str>>,
    /// What it says.
    pub body: Body,
    /// As the user wrote it.
    pub raw: Raw,
}

impl Resource {
    /// Whether both say the same, however it is written.
    pub fn means_the_same_as(&self, other: &Self) -> bool {
        self.key == other.key && self.created == other.created && self.body == other.body
    }
}

/// What a resource says. Shared, so that an unchanged document costs nothing in the next generation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Body {
    /// `v1` Service.
    Service(#[serde(serialize_with = "inner")] Arc<Service>),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(#[serde(serialize_with = "inner")] Arc<EndpointSlice>),
    /// `v1` Pod.
    Pod(#[serde(serialize_with = "inner")] Arc<Pod>),
    /// Istio's ServiceEntry.
    ServiceEntry(#[serde(serialize_with = "inner")] Arc<ServiceEntry>),
    /// Istio's WorkloadEntry.
    WorkloadEntry(#[serde(serialize_with = "inner")] Arc<Workload>),
    /// Istio's DestinationRule.
    DestinationRule(#[serde(serialize_with = "inner")] Arc<DestinationRule>),
    /// Istio's VirtualService.
    VirtualService(#[serde(serialize_with = "inner")] Arc<VirtualService>),
    /// The MeshConfig in a ConfigMap.
    ConfigMap(#[serde(serialize_with = "inner")] Arc<MeshConfig>),
    /// The MeshConfig in an IstioOperator.
    IstioOperator(#[serde(serialize_with = "inner")] Arc<MeshConfig>),
    /// Istio's PeerAuthentication.
    PeerAuthentication(#[serde(serialize_with = "inner")] Arc<PeerAuthentication>),
    /// Istio's RequestAuthentication.
    RequestAuthentication(#[serde(serialize_with = "inner")] Arc<RequestAuthentication>),
    /// Istio's AuthorizationPolicy.
    AuthorizationPolicy(#[serde(serialize_with = "inner")] Arc<AuthorizationPolicy>),
    /// Istio's Gateway.
    Gateway(#[serde(serialize_with = "inner")] Arc<Gateway>),
    /// `v1` Secret with certificates.
    Secret(#[serde(serialize_with = "inner")] Arc<Secret>),
}

fn inner<T: Serialize, S: serde::Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    T::serialize(value, serializer)
}

impl Body {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Pod(_) => Kind::Pod,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::IstioOperator(_) => Kind::IstioOperator,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::Gateway(_) => Kind::Gateway,
            Self::Secret(_) => Kind::Secret,
        }
    }
}

/// The text of one document (or of one item of a `List`) inside of the file that it came from.
#[derive(Clone)]
pub struct Raw {
    /// The whole file.
    pub file_text: FileText,
    /// The document's bytes in it, on character boundaries.
    pub range: Range<usize>,
    /// By how many columns the document is indented (an item of a YAML `List` is).
    pub indent: usize,
    /// Whether it is JSON.
    pub json: bool,
    /// Whether it must not be shown as it stands: a Secret.
    pub secret: bool,
}

impl fmt::Debug for Raw {
    /// Without the text: the file may hold Secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("range", &self.range).field("json", &self.json).finish_non_exhaustive()
    }
}

impl Raw {
    /// The slice of the file, as it stands there, secrets and all.
    fn as_str(&self) -> &str {
        self.file_text.get(self.range.clone()).unwrap_or_default()
    }

    /// The text as a document of its own: without the indentation of a `List` around it, with one line end at its end. A
    /// Secret's values are hidden.
    pub fn document(&self) -> String {
        if self.secret {
            return self.to_json().map_or_else(|_| format!("{}\n", secret::HIDDEN), |object| secret::yaml(&object));
        }
        self.text()
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(self.range.len() + 1);
        for (index, line) in self.as_str().trim_end().lines().enumerate() {
            let indent = line.bytes().take_while(|byte| *byte == b' ').count();
            text.push_str(if index == 0 { line } else { &line[indent.min(self.indent)..] });
            text.push('\n');
        }
        text
    }

    /// The document as JSON, with its fields in their order. A Secret's values are hidden.
    ///
    /// # Errors
    /// Only when `file_text` is not what the resource was read from.
    pub fn to_json(&self) -> Result<serde_json::Value, String> {
        if !self.secret {
            return crate::source::to_json(&self.text(), self.json);
        }
        let mut object = crate::source::to_json(&Zeroizing::new(self.text()), self.json)?;
        let shown = secret::redacted(&object);
        secret::wipe(&mut object);
        Ok(shown)
    }
}
