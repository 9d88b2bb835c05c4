//! Kubernetes' Service, EndpointSlice and Pod: what they say about where a service's endpoints are.

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;

use super::value::{ExportTo, Hostname, Labels, Name, Port, PortName, Protocol};

/// `v1` Service. Its host is `NAME.NAMESPACE.svc.cluster.local`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// ClusterIP, headless or ExternalName.
    pub kind: ServiceKind,
    /// `ports`, each with its own number.
    pub ports: Vec<ServicePort>,
    /// `clusterIPs`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `selector`; Pods that it selects are endpoints where the service has no EndpointSlice.
    pub selector: Labels,
    /// The annotation `networking.istio.io/exportTo`.
    pub export_to: ExportTo,
}

/// What stands behind a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ServiceKind {
    /// `ClusterIP`, `NodePort` and `LoadBalancer`, which are the same from inside.
    ClusterIp,
    /// `clusterIP: None`.
    Headless,
    /// `ExternalName`: a DNS name.
    ExternalName(Hostname),
}

/// One of `spec.ports`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// `name`; empty where it is the only port.
    pub name: PortName,
    /// `port`: what clients address.
    pub port: Port,
    /// `targetPort`: what Pods listen on. Used where endpoints come from Pods; EndpointSlices say it themselves.
    pub target: TargetPort,
    /// From `appProtocol`, or the name.
    pub protocol: Protocol,
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetPort {
    /// A number; `port` where nothing is said.
    Number(Port),
    /// The name of a container port.
    Name(PortName),
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// The label `kubernetes.io/service-name`.
    pub service: Name,
    /// `metadata.labels`: they count as labels of each endpoint, under those of its Pod. So a slice for each version,
    /// with `version: v1`, makes subsets without any Pod in the files.
    pub labels: Labels,
    /// `ports`; all endpoints have all of them.
    pub ports: Vec<SlicePort>,
    /// One for each of `endpoints[].addresses`.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One of an EndpointSlice's `ports`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlicePort {
    /// `name`: that of the Service's port.
    pub name: PortName,
    /// `port`.
    pub port: Port,
}

/// One address of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SliceEndpoint {
    /// The address.
    pub address: IpAddr,
    /// `conditions.ready`, true where it is not said. (`serving` and `terminating` do not count, as in Istio's
    /// default.)
    pub ready: bool,
    /// `targetRef.name`, where `targetRef.kind` is `Pod`.
    pub pod: Option<Arc<str>>,
}

/// `v1` Pod: only what an endpoint takes from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.podIPs` or `status.podIP`.
    pub addresses: Vec<IpAddr>,
    /// Whether the condition `Ready` holds; true where `status.conditions` does not say.
    pub ready: bool,
    /// `spec.serviceAccountName`.
    pub service_account: Option<Arc<str>>,
    /// The annotation `meshring.io/unix-uid`: the user that the Pod's application runs as on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_uid: Option<u32>,
    /// Named container ports.
    pub ports: Vec<(PortName, Port)>,
}
