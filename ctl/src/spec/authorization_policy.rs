//! Istio's AuthorizationPolicy: who may do what at a workload.
//!
//! A policy with a selector is for the workloads that it selects in its namespace, one without for its namespace, and in the
//! root namespace either is for the whole mesh. All that select a workload count together.

use std::sync::Arc;

use meshring_core::table::access::AccessRule;
use serde::{Serialize, Serializer};

use super::{Body, Kind, Labels, Namespace, Position, World, scope::Scope};

/// `security.istio.io` AuthorizationPolicy. Rules are as the data plane evaluates them, but for trust domain aliases.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// `selector` or `targetRefs`.
    #[serde(flatten)]
    pub scope: Scope,
    /// `action`, with `provider`.
    pub action: Action,
    /// Annotation `istio.io/dry-run`.
    pub dry_run: bool,
    /// `rules`.
    #[serde(serialize_with = "lines")]
    pub rules: Vec<AccessRule>,
}

/// `action`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// `ALLOW`.
    Allow,
    /// `DENY`.
    Deny,
    /// `AUDIT`.
    Audit,
    /// `CUSTOM`: `provider.name` and where it stands.
    Custom(Arc<str>, #[serde(skip)] Position),
}

impl Action {
    /// As Istio writes it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom(..) => "CUSTOM",
        }
    }
}

/// Rules by their lines: what they say stands there.
fn lines<S: Serializer>(rules: &[AccessRule], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.iter().map(|rule| rule.line))
}

impl AuthorizationPolicy {
    /// Whether it is for a workload with these labels; without labels for those of which nothing is known. `own` is the
    /// policy's namespace.
    pub fn selects(&self, own: &Namespace, root: &Namespace, namespace: &str, labels: Option<&Labels>) -> bool {
        self.scope.holds(own, root, namespace, labels)
    }
}

/// All of them by namespace and name, with their positions among the world's resources.
pub(crate) fn policies(world: &World) -> impl Iterator<Item = (usize, &AuthorizationPolicy)> {
    world.resources().iter().enumerate().filter_map(|(position, resource)| match &resource.body {
        Body::AuthorizationPolicy(policy) if resource.key.kind == Kind::AuthorizationPolicy => {
            Some((position, &**policy))
        }
        _ => None,
    })
}
