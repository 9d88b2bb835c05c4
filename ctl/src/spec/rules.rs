//! Which VirtualService and which DestinationRule apply, for a client of a namespace: Istio's order of precedence.

use std::sync::Arc;

use super::{
    Body, Labels, Place, Resource, VirtualService,
    destination_rule::{self, ClientTls, ConnectionPool, DestinationRule, Subset, TrafficPolicy},
    host_index::HostIndex,
    value::{ExportTo, HostPattern, LoadBalancer, Namespace},
};
use crate::diagnostic::{Code, Diagnostic};

/// A VirtualService that applies to sidecars.
#[derive(Debug, Clone)]
pub struct MeshVirtualService {
    /// What it says.
    pub body: Arc<VirtualService>,
    /// Its position among the world's resources.
    pub resource: usize,
    /// Its namespace.
    pub namespace: Namespace,
}

/// All VirtualServices that apply to sidecars.
#[derive(Debug, Default)]
pub struct VirtualServices {
    /// In order of precedence: the oldest first, then by name.
    list: Vec<MeshVirtualService>,
    hosts: HostIndex<u32>,
}

impl VirtualServices {
    /// Those that say something about what `is_about` picks: a host may have rules for HTTP in one and for connections in another.
    pub(super) fn build(resources: &[Resource], is_about: fn(&VirtualService) -> bool) -> Self {
        let mut list: Vec<MeshVirtualService> = resources
            .iter()
            .enumerate()
            .filter_map(|(index, resource)| match &resource.body {
                Body::VirtualService(body) if body.mesh && is_about(body) => Some(MeshVirtualService {
                    body: Arc::clone(body),
                    resource: index,
                    namespace: resource.key.namespace.clone(),
                }),
                _ => None,
            })
            .collect();
        list.sort_by(|a, b| precedence(&resources[a.resource]).cmp(&precedence(&resources[b.resource])));
        let mut hosts = HostIndex::default();
        for (index, service) in list.iter().enumerate() {
            for host in &service.body.hosts {
                hosts.insert(&host.host, index as u32);
            }
        }
        Self { list, hosts }
    }

    /// All of them, in order of precedence.
    pub fn list(&self) -> &[MeshVirtualService] {
        &self.list
    }

    /// The one that decides for `host`: the most specific host wins, then what is only for the client's namespace, then
    /// what is exported to it by name, then what is for all; then the oldest.
    pub(crate) fn index_for(&self, host: &HostPattern, client: Option<&Namespace>) -> Option<usize> {
        self.hosts.covering(host).find_map(|list| self.best(list, client))
    }

    /// As [`Self::index_for`], for this very host or wildcard only.
    pub(crate) fn index_of(&self, host: &HostPattern, client: Option<&Namespace>) -> Option<usize> {
        self.best(self.hosts.of(host), client)
    }

    /// All that could decide for `host`, for some client.
    pub(crate) fn covering<'i>(
        &'i self,
        host: &'i HostPattern,
    ) -> impl Iterator<Item = (usize, &'i MeshVirtualService)> {
        self.hosts.covering(host).flatten().map(|index| (*index as usize, &self.list[*index as usize]))
    }

    /// Whether a VirtualService is the first of those that name this very host.
    pub(crate) fn is_first(&self, host: &HostPattern, index: usize) -> bool {
        self.hosts.of(host).first().is_some_and(|first| *first as usize == index)
    }

    fn best(&self, list: &[u32], client: Option<&Namespace>) -> Option<usize> {
        let rank = |index: &u32| {
            let service = &self.list[*index as usize];
            match &service.body.export_to {
                ExportTo::Namespaces(only) if only.len() == 1 && *only == [service.namespace.clone()] => 0,
                ExportTo::Namespaces(_) => 1,
                _ => 2,
            }
        };
        let visible = list.iter().filter(|index| self.list[**index as usize].body.export_to.reaches(client));
        visible.min_by_key(|index| rank(index)).map(|index| *index as usize)
    }
}

/// Oldest first (no timestamp is the oldest), then by `NAME.NAMESPACE`: Istio's order where several resources claim the
/// same.
pub(crate) fn precedence(resource: &Resource) -> (Option<&str>, &str, &str) {
    (resource.created.as_deref(), resource.key.name.as_str(), resource.key.namespace.as_str())
}

/// DestinationRules for one host in one namespace, merged as Istio merges them: the oldest policy that is there, and
/// all subsets.
#[derive(Debug, Clone)]
pub struct MergedRule {
    /// The host, or the wildcard.
    pub host: HostPattern,
    /// Their namespace.
    pub namespace: Namespace,
    /// Their `exportTo`, which is the same.
    pub export_to: ExportTo,
    /// The rules, in order of precedence, as positions among the world's resources.
    pub resources: Vec<usize>,
    rules: Vec<Arc<DestinationRule>>,
}

impl MergedRule {
    /// The subset of a name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.rules.iter().flat_map(|rule| &rule.subsets).find(|subset| &*subset.name == name)
    }

    /// Names of all subsets.
    pub fn subset_names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|rule| &rule.subsets).map(|subset| &*subset.name)
    }

    /// How endpoints are chosen for a port of the service and a subset.
    pub fn load_balancer(&self, port: u16, subset: Option<&Subset>) -> LoadBalancer {
        subset
            .and_then(|subset| subset.policy.load_balancer_over(port))
            .or_else(|| self.policy().and_then(|policy| policy.load_balancer(port)))
            .unwrap_or_default()
    }
}

impl MergedRule {
    /// How connections are secured for a port of the service and a subset, if any of the rules says so.
    pub fn tls<'r>(&'r self, port: u16, subset: Option<&'r Subset>) -> Option<&'r ClientTls> {
        destination_rule::tls(self.policy(), subset.map(|subset| &subset.policy), port)
    }

    /// What is spoken over connections for a port of the service and a subset, if any of the rules says so.
    pub fn connection_pool<'r>(&'r self, port: u16, subset: Option<&'r Subset>) -> Option<&'r ConnectionPool> {
        destination_rule::connection_pool(self.policy(), subset.map(|subset| &subset.policy), port)
    }

    /// The oldest policy that is there.
    fn policy(&self) -> Option<&TrafficPolicy> {
        self.rules.iter().map(|rule| &rule.policy).find(|policy| **policy != TrafficPolicy::default())
    }
}

/// All DestinationRules.
#[derive(Debug, Default)]
pub struct DestinationRules {
    root: Namespace,
    list: Vec<MergedRule>,
    hosts: HostIndex<u32>,
}

impl DestinationRules {
    /// Those of `root` apply to the whole mesh.
    pub(super) fn build(resources: &[Resource], root: &Namespace) -> (Self, Vec<Diagnostic>) {
        let mut order: Vec<(usize, &Arc<DestinationRule>)> = resources
            .iter()
            .enumerate()
            .filter_map(|(index, resource)| match &resource.body {
                // For some workloads only: not yet honoured, and said so when it was read.
                Body::DestinationRule(rule) if rule.workload_selector.is_none() => Some((index, rule)),
                _ => None,
            })
            .collect();
        order.sort_by(|(a, _), (b, _)| precedence(&resources[*a]).cmp(&precedence(&resources[*b])));
        let mut rules = Self { root: root.clone(), ..Self::default() };
        let mut diagnostics = Vec::new();
        for (index, rule) in order {
            rules.add(resources, index, rule, &mut diagnostics);
        }
        (rules, diagnostics)
    }

    fn add(
        &mut self,
        resources: &[Resource],
        index: usize,
        rule: &Arc<DestinationRule>,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        let resource = &resources[index];
        let namespace = &resource.key.namespace;
        let same = self.hosts.of(&rule.host).iter().copied().find(|other| {
            let other = &self.list[*other as usize];
            other.namespace == *namespace && other.export_to == rule.export_to
        });
        match same {
            Some(other) => {
                let merged = &mut self.list[other as usize];
                conflicts(resources, merged, resource, rule, diagnostics);
                merged.resources.push(index);
                merged.rules.push(Arc::clone(rule));
            }
            None => {
                self.hosts.insert(&rule.host, self.list.len() as u32);
                self.list.push(MergedRule {
                    host: rule.host.clone(),
                    namespace: namespace.clone(),
                    export_to: rule.export_to.clone(),
                    resources: vec![index],
                    rules: vec![Arc::clone(rule)],
                });
            }
        }
    }

    /// All of them.
    pub fn list(&self) -> &[MergedRule] {
        &self.list
    }

    /// The one that applies when a client in `client` calls a service of `service` by `host`: from the client's
    /// namespace, else from the service's, else from the root namespace; in each the most specific host.
    pub(crate) fn index_for(
        &self,
        host: &HostPattern,
        service: &Namespace,
        client: Option<&Namespace>,
    ) -> Option<usize> {
        let is_root = |namespace: &Namespace| *namespace == self.root;
        let local = client
            .filter(|client| !is_root(client))
            .and_then(|client| self.find(host, |rule| rule.namespace == *client && rule.export_to != ExportTo::Nobody));
        local
            .or_else(|| self.find(host, |rule| rule.namespace == *service && rule.export_to.reaches(client)))
            .or_else(|| self.find(host, |rule| is_root(&rule.namespace) && rule.export_to.reaches(client)))
    }

    /// The rule for a host as `index_for` finds it.
    pub fn rule_for(&self, host: &HostPattern, service: &Namespace, client: Option<&Namespace>) -> Option<&MergedRule> {
        self.index_for(host, service, client).map(|index| &self.list[index])
    }

    /// All that could apply to `host`, for some client.
    pub(crate) fn covering<'i>(&'i self, host: &'i HostPattern) -> impl Iterator<Item = &'i MergedRule> {
        self.hosts.covering(host).flatten().map(|index| &self.list[*index as usize])
    }

    fn find(&self, host: &HostPattern, applies: impl Fn(&MergedRule) -> bool) -> Option<usize> {
        let mut all = self.hosts.covering(host).flatten().map(|index| *index as usize);
        all.find(|index| applies(&self.list[*index]))
    }
}

/// What one rule says differently from those before it.
fn conflicts(
    resources: &[Resource],
    merged: &MergedRule,
    resource: &Resource,
    rule: &DestinationRule,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let first = &resources[merged.resources[0]];
    let warning = |place: Place, field: String, message: String| {
        Diagnostic::warning(Code::CONFLICTING_DESTINATION_RULES, place, message)
            .of(&resource.key)
            .at_field(field)
            .hint("merge the two DestinationRules into one")
    };
    for (index, subset) in rule.subsets.iter().enumerate() {
        if let Some(earlier) = merged.subset(&subset.name)
            && (earlier.labels != subset.labels || earlier.policy != subset.policy)
        {
            let place = Place::new(Arc::clone(&resource.place.file), subset.at);
            let message =
                format!("{} defines the subset `{}` of `{}` differently, and wins", first.key, subset.name, rule.host);
            diagnostics.push(warning(place, format!("spec.subsets[{index}]"), message));
        }
    }
    if let Some(policy) = merged.policy()
        && rule.policy != TrafficPolicy::default()
        && rule.policy != *policy
    {
        let message = format!("{} has another policy for `{}`, and wins", first.key, rule.host);
        diagnostics.push(warning(resource.place.clone(), "spec.trafficPolicy".into(), message));
    }
}

/// Whether the labels of a subset select an endpoint.
pub(crate) fn selects(subset: &Subset, labels: &Labels) -> bool {
    subset.labels.select(labels)
}
