//! All resources together.

use std::{ops::Range, sync::Arc};

use meshring_core::table::model::{DEFAULT_TRUST_DOMAIN, Settings};

use super::{
    Kind, MeshConfig, Namespace, Registry, Resource, analyze,
    gateway::Gateways,
    mesh_config,
    peer_authentication::PeerAuthentications,
    rules::{DestinationRules, VirtualServices},
    secret::{self, Secrets},
};
use crate::diagnostic::{self, Code, Diagnostic};

/// All resources of one generation, sorted and indexed.
#[derive(Debug, Default)]
pub struct World {
    /// Sorted by key, each key once.
    resources: Vec<Resource>,
    /// Where each kind lies in `resources`, in the order of [`Kind::ALL`].
    kinds: [Range<usize>; Kind::ALL.len()],
    registry: Registry,
    peer_authentications: PeerAuthentications,
    gateways: Gateways,
    secrets: Secrets,
    root_namespace: Namespace,
    virtual_services: VirtualServices,
    stream_services: VirtualServices,
    destination_rules: DestinationRules,
    mesh_config: Option<Arc<MeshConfig>>,
}

impl World {
    /// Puts resources together. The result does not depend on their order, except that of two with the same key the
    /// first is kept; the second is an error that names both places.
    pub fn assemble(mut resources: Vec<Resource>) -> (Self, Vec<Diagnostic>) {
        resources.sort_by(|a, b| a.key.cmp(&b.key));
        let mut diagnostics = Vec::new();
        resources.dedup_by(|second, first| {
            let same = second.key == first.key;
            if same {
                // In one file the upper one is the first, whatever the order in which they were handed over.
                let swapped = first.place.file == second.place.file && second.place.at < first.place.at;
                let (upper, lower) =
                    if swapped { (&second.place, &first.place) } else { (&first.place, &second.place) };
                let message = format!("is here for the second time; the first is at {upper}");
                diagnostics.push(
                    Diagnostic::error(Code::DUPLICATE_RESOURCE, lower.clone(), message)
                        .of(&second.key)
                        .hint("remove or rename one of them"),
                );
            }
            same
        });
        let kinds = Kind::ALL.map(|kind| {
            let start = resources.partition_point(|resource| resource.key.kind < kind);
            start..resources.partition_point(|resource| resource.key.kind <= kind)
        });
        let (registry, more) = Registry::build(&resources);
        diagnostics.extend(more);
        let (mesh_config, more) = mesh_config::in_effect(&resources);
        diagnostics.extend(more);
        let root_namespace =
            mesh_config.as_ref().and_then(|config| config.root_namespace.clone()).unwrap_or_else(Namespace::root);
        let (destination_rules, more) = DestinationRules::build(&resources, &root_namespace);
        diagnostics.extend(more);
        let virtual_services = VirtualServices::build(&resources, |body| !body.http.is_empty());
        let stream_services = VirtualServices::build(&resources, |body| !body.tls.is_empty() || !body.tcp.is_empty());
        let (peer_authentications, more) = PeerAuthentications::build(&resources, &root_namespace);
        diagnostics.extend(more);
        let gateways = Gateways::build(&resources);
        let secrets = secret::collect(&resources);
        diagnostic::sort(&mut diagnostics);
        let world = Self {
            resources,
            kinds,
            registry,
            peer_authentications,
            gateways,
            secrets,
            root_namespace,
            virtual_services,
            stream_services,
            destination_rules,
            mesh_config,
        };
        (world, diagnostic::limit(diagnostics))
    }

    /// All resources, by kind, namespace and name.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Those of one kind, by namespace and name.
    pub fn of_kind(&self, kind: Kind) -> &[Resource] {
        let position = Kind::ALL.iter().position(|other| *other == kind);
        position.map_or(&[], |position| &self.resources[self.kinds[position].clone()])
    }

    /// One resource.
    pub fn resource(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Resource> {
        let list = self.of_kind(kind);
        let key =
            |resource: &Resource| (resource.key.namespace.as_str(), resource.key.name.as_str()).cmp(&(namespace, name));
        list.binary_search_by(key).ok().map(|index| &list[index])
    }

    /// Hosts with their ports and endpoints.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// VirtualServices that apply to sidecars, as far as they have rules for HTTP.
    pub fn virtual_services(&self) -> &VirtualServices {
        &self.virtual_services
    }

    /// As far as they have rules for connections: `tls`, `tcp`.
    pub fn stream_services(&self) -> &VirtualServices {
        &self.stream_services
    }

    /// DestinationRules.
    pub fn destination_rules(&self) -> &DestinationRules {
        &self.destination_rules
    }

    /// PeerAuthentications.
    pub fn peer_authentications(&self) -> &PeerAuthentications {
        &self.peer_authentications
    }

    /// Gateways that end TLS.
    pub fn gateways(&self) -> &Gateways {
        &self.gateways
    }

    /// Secrets with certificates, by `NAMESPACE/NAME`.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The MeshConfig that is in effect, if there is one.
    pub fn mesh_config(&self) -> Option<&MeshConfig> {
        self.mesh_config.as_deref()
    }

    /// What stands in it without a selector holds for the whole mesh (`MeshConfig.rootNamespace`).
    pub fn root_namespace(&self) -> &Namespace {
        &self.root_namespace
    }

    /// Whose identities workloads have (`MeshConfig.trustDomain`).
    pub fn trust_domain(&self) -> &str {
        let configured = self.mesh_config().and_then(|config| config.trust_domain.as_deref());
        configured.unwrap_or(DEFAULT_TRUST_DOMAIN)
    }

    /// The trust domain, then its aliases, each once.
    pub fn trust_domains(&self) -> Vec<&str> {
        let mut domains = vec![self.trust_domain()];
        for alias in self.mesh_config().into_iter().flat_map(|config| &config.trust_domain_aliases) {
            if !domains.contains(&&**alias) {
                domains.push(alias);
            }
        }
        domains
    }

    /// Whether sidecars use mutual TLS among themselves where nobody says anything (`MeshConfig.enableAutoMtls`, true
    /// without it).
    pub fn auto_mtls(&self) -> bool {
        self.mesh_config().and_then(|config| config.auto_mtls).unwrap_or(true)
    }

    /// Whether HTTP/1.1 ports are spoken to in HTTP/2 where no DestinationRule says anything (`MeshConfig.h2UpgradePolicy`).
    pub fn h2_upgrade(&self) -> Option<bool> {
        self.mesh_config().and_then(|config| config.h2_upgrade)
    }

    /// What holds for the whole mesh: the MeshConfig, or the defaults without one.
    pub fn settings(&self) -> Settings {
        self.mesh_config.as_ref().map(|config| config.settings()).unwrap_or_default()
    }

    /// What the references between resources tell: hosts, subsets and ports that do not exist, rules that contradict
    /// each other. All of it is accepted; requests to what does not exist are answered with 503, connections are reset.
    pub fn analyze(&self) -> Vec<Diagnostic> {
        let mut diagnostics = analyze::analyze(self);
        diagnostic::sort(&mut diagnostics);
        diagnostic::limit(diagnostics)
    }
}
