//! Istio's PeerAuthentication: which connections a workload takes.
//!
//! A policy with a selector is for the workloads that it selects in its namespace, one without for its namespace, one in
//! the root namespace for the mesh. Of several for the same the oldest counts. What the narrower one leaves open
//! (`UNSET`) comes from the wider one; where none says anything it is PERMISSIVE.

use std::sync::Arc;

use meshring_core::table::security::MtlsMode;
use serde::{Serialize, Serializer};

use super::{Body, FastMap, Labels, Namespace, Port, Resource, rules::precedence};
use crate::diagnostic::{Code, Diagnostic};

/// `security.istio.io` PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// `selector.matchLabels`; none: for the namespace, or the mesh.
    pub selector: Labels,
    /// `mtls.mode`; `None` for UNSET.
    #[serde(serialize_with = "mode")]
    pub mtls: Option<MtlsMode>,
    /// `portLevelMtls`, by the workload's port, sorted; `None` for UNSET. Only with a selector.
    pub ports: Vec<(Port, PortMode)>,
}

/// The mode of one port; `None` for UNSET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PortMode(#[serde(serialize_with = "mode")] pub Option<MtlsMode>);

fn mode<S: Serializer>(mode: &Option<MtlsMode>, serializer: S) -> Result<S::Ok, S::Error> {
    mode.map(MtlsMode::as_str).serialize(serializer)
}

/// One PeerAuthentication and its position among the world's resources.
#[derive(Debug)]
struct Policy {
    resource: usize,
    body: Arc<PeerAuthentication>,
}

/// Those of one namespace.
#[derive(Debug, Default)]
struct OfNamespace {
    /// The one without a selector.
    all: Option<Policy>,
    /// Those with a selector, in order of precedence.
    selected: Vec<Policy>,
}

/// What holds for a workload, all policies resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effective {
    /// For ports that are not listed.
    pub mode: MtlsMode,
    /// By the workload's port, sorted. Those that are as `mode` says are left out.
    pub ports: Vec<(u16, MtlsMode)>,
    /// The most specific policy that says anything, as position among the world's resources.
    pub resource: Option<usize>,
}

/// All PeerAuthentications.
#[derive(Debug, Default)]
pub struct PeerAuthentications {
    mesh: Option<Policy>,
    namespaces: FastMap<Namespace, OfNamespace>,
    /// Whether any of them says DISABLE.
    disables: bool,
}

impl PeerAuthentications {
    /// Puts them together from resources sorted by key. What has no effect is told.
    pub(super) fn build(resources: &[Resource], root: &Namespace) -> (Self, Vec<Diagnostic>) {
        let mut order: Vec<(usize, &Arc<PeerAuthentication>)> = resources
            .iter()
            .enumerate()
            .filter_map(|(index, resource)| match &resource.body {
                Body::PeerAuthentication(policy) => Some((index, policy)),
                _ => None,
            })
            .collect();
        order.sort_by(|(a, _), (b, _)| precedence(&resources[*a]).cmp(&precedence(&resources[*b])));
        let mut policies = Self::default();
        let mut diagnostics = Vec::new();
        for (index, body) in order {
            policies.add(resources, index, body, root, &mut diagnostics);
        }
        (policies, diagnostics)
    }

    fn add(
        &mut self,
        resources: &[Resource],
        index: usize,
        body: &Arc<PeerAuthentication>,
        root: &Namespace,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        let resource = &resources[index];
        let namespace = &resource.key.namespace;
        let mut tell = |code, field: &str, message: String, hint: &'static str| {
            let diagnostic = Diagnostic::warning(code, resource.place.clone(), message);
            diagnostics.push(diagnostic.of(&resource.key).at_field(field).hint(hint));
        };
        let in_root = namespace == root;
        let policy = Policy { resource: index, body: Arc::clone(body) };
        let first = if !body.selector.is_empty() {
            if in_root {
                // Istio looks at those of the root namespace for the mesh alone.
                let message = format!("has a selector and stands in the root namespace {root}: it has no effect");
                let hint = "put it into the namespace of the workloads, or leave the selector out";
                return tell(Code::NO_EFFECT, "spec.selector", message, hint);
            }
            let list = &mut self.namespaces.entry(namespace.clone()).or_default().selected;
            list.push(policy);
            let first = list.iter().find(|other| other.body.selector == body.selector);
            first.filter(|first| first.resource != index).map(|first| first.resource)
        } else {
            let slot =
                if in_root { &mut self.mesh } else { &mut self.namespaces.entry(namespace.clone()).or_default().all };
            match slot {
                Some(first) => Some(first.resource),
                None => {
                    *slot = Some(policy);
                    None
                }
            }
        };
        let Some(first) = first.map(|first| &resources[first]) else {
            let modes = body.ports.iter().map(|(_, mode)| mode.0).chain([body.mtls]);
            self.disables |= modes.flatten().any(|mode| mode == MtlsMode::Disable);
            return;
        };
        let what = match (body.selector.is_empty(), in_root) {
            (true, true) => "the mesh".to_owned(),
            (true, false) => format!("namespace {namespace}"),
            (false, _) => format!("workloads with {}", body.selector),
        };
        let why = if precedence(first).0 == precedence(resource).0 { "its name sorts first" } else { "it is older" };
        let message =
            format!("{} at {} is for {what} too and wins, since {why}: this one has no effect", first.key, first.place);
        tell(Code::CONFLICTING_POLICIES, "spec", message, "keep one of them");
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.mesh.is_none() && self.namespaces.is_empty()
    }

    /// Whether any port of any workload could take plain text only.
    pub fn disables(&self) -> bool {
        self.disables
    }

    /// What holds for a workload with these labels; without labels for those of a namespace about which nothing more is
    /// known, and without a namespace for the mesh.
    pub fn of(&self, namespace: Option<&str>, labels: Option<&Labels>) -> Effective {
        let own = namespace.and_then(|namespace| self.namespaces.get(namespace));
        let selected = own.zip(labels).and_then(|(own, labels)| own.selected(labels));
        let wider = [self.mesh.as_ref(), own.and_then(|own| own.all.as_ref())];
        let mut effective = Effective::default();
        for policy in wider.into_iter().flatten().chain(selected) {
            if let Some(mode) = policy.body.mtls {
                effective.mode = mode;
            }
            if policy.body.mtls.is_some() || !policy.body.ports.is_empty() {
                effective.resource = Some(policy.resource);
            }
        }
        let ports = selected.into_iter().flat_map(|policy| &policy.body.ports);
        effective.ports = ports
            .filter_map(|(port, mode)| Some((port.number(), mode.0.filter(|mode| *mode != effective.mode)?)))
            .collect();
        effective
    }

    /// The one with a selector that counts for a workload, as position among the world's resources.
    pub(super) fn selected(&self, namespace: &Namespace, labels: &Labels) -> Option<usize> {
        self.namespaces.get(namespace)?.selected(labels).map(|policy| policy.resource)
    }

    /// What holds for one port of a workload. As [`Self::of`], for a million endpoints.
    pub fn mode(&self, namespace: &Namespace, labels: &Labels, port: u16) -> MtlsMode {
        let own = self.namespaces.get(namespace);
        let selected = own.and_then(|own| own.selected(labels));
        let listed = selected.and_then(|policy| policy.body.ports.iter().find(|(known, _)| known.number() == port));
        let narrow_to_wide = [selected, own.and_then(|own| own.all.as_ref()), self.mesh.as_ref()];
        listed
            .and_then(|(_, mode)| mode.0)
            .or_else(|| narrow_to_wide.into_iter().flatten().find_map(|policy| policy.body.mtls))
            .unwrap_or_default()
    }
}

impl OfNamespace {
    /// The oldest that selects a workload.
    fn selected(&self, labels: &Labels) -> Option<&Policy> {
        self.selected.iter().find(|policy| policy.body.selector.select(labels))
    }
}
