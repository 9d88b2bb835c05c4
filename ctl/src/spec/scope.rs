//! Which workloads a policy of Istio's security API is for.

use std::sync::Arc;

use serde::Serialize;

use super::{Labels, Namespace};

/// Workloads that serve a Gateway of Gateway API carry this label, with its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// `selector`, or `targetRefs` in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// `selector.matchLabels`, in the policy's namespace; from the root namespace, in all. Without labels: every workload there.
    Selector(Labels),
    /// `targetRefs` of kind Gateway: the workloads that serve one of these in the policy's own namespace. What targets of other
    /// kinds are attached to, waypoints, does not exist here: none of those has any workload.
    Gateways(Vec<Arc<str>>),
}

impl Default for Scope {
    fn default() -> Self {
        Self::Selector(Labels::default())
    }
}

impl Scope {
    /// Whether it holds a workload with these labels; without labels one of which nothing is known. `own` is the policy's namespace.
    #[must_use]
    pub fn holds(&self, own: &Namespace, root: &Namespace, namespace: &str, labels: Option<&Labels>) -> bool {
        match self {
            Self::Selector(selector) => {
                (own == root || own.as_str() == namespace)
                    && (selector.is_empty() || labels.is_some_and(|labels| selector.select(labels)))
            }
            // Also from the root namespace: no reference leads to another one.
            Self::Gateways(names) => {
                let served = labels.and_then(|labels| labels.value(GATEWAY_NAME));
                own.as_str() == namespace && served.is_some_and(|served| names.iter().any(|name| **name == *served))
            }
        }
    }

    /// Whether it can hold none at all: what it is attached to has been reported as not honoured.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::Gateways(names) if names.is_empty())
    }
}
