//! Istio's DestinationRule: what applies after routing, and the subsets of a service.

use std::sync::Arc;

use serde::Serialize;

use super::Position;
use super::value::{ExportTo, HostPattern, Labels, LoadBalancer, Port};

/// `networking.istio.io` DestinationRule.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// `host`, short names resolved.
    pub host: HostPattern,
    /// `trafficPolicy`.
    pub policy: TrafficPolicy,
    /// `subsets`, with names of their own.
    pub subsets: Vec<Subset>,
    /// `exportTo`.
    pub export_to: ExportTo,
    /// `workloadSelector.matchLabels`: only for clients in its namespace with these labels.
    pub workload_selector: Option<Labels>,
}

/// One of `subsets`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Where it begins.
    pub at: Position,
    /// `name`.
    pub name: Arc<str>,
    /// `labels`; none select every endpoint.
    pub labels: Labels,
    /// `trafficPolicy`: what it says wins over the rule's.
    pub policy: TrafficPolicy,
}

/// `trafficPolicy`, as far as it is honoured.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// `loadBalancer.simple`.
    pub load_balancer: Option<LoadBalancer>,
    /// `portLevelSettings`; where a port is listed, its settings replace those of the destination as a whole.
    pub ports: Vec<PortPolicy>,
}

/// One of `portLevelSettings`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortPolicy {
    /// `port.number`: the service's port.
    pub port: Port,
    /// `loadBalancer.simple`.
    pub load_balancer: Option<LoadBalancer>,
}

impl TrafficPolicy {
    /// What applies to `port`, if this policy says anything about it.
    pub fn load_balancer(&self, port: u16) -> Option<LoadBalancer> {
        match self.ports.iter().find(|policy| policy.port.number() == port) {
            Some(policy) => policy.load_balancer,
            None => self.load_balancer,
        }
    }

    /// What this policy of a subset says about `port` on top of the rule's: only what is there replaces it.
    pub fn load_balancer_over(&self, port: u16) -> Option<LoadBalancer> {
        let settings = self.ports.iter().find(|policy| policy.port.number() == port);
        settings.and_then(|settings| settings.load_balancer).or(self.load_balancer)
    }
}
