//! How connections to a cluster's endpoints are secured: what its DestinationRule says, else automatic mutual TLS inside
//! of the mesh.

use std::{collections::BTreeSet, sync::Arc};

use meshring_core::{
    limits::SERVICE_IDENTITIES_MAX,
    table::{
        model::Reach,
        security::{ClusterTls, ClusterTlsMode, MtlsMode},
    },
};

use crate::spec::{
    FastMap, World,
    destination_rule::{ClientTls, ClientTlsMode, Subset},
    registry::{Endpoint, MeshService, reach},
    rules::MergedRule,
};

pub(super) struct UpstreamTls<'w> {
    world: &'w World,
    auto: bool,
    trust_domains: Vec<&'w str>,
    /// By service, and whether of all of its endpoints or of those with a sidecar.
    identities: FastMap<(usize, bool), Arc<[String]>>,
}

impl<'w> UpstreamTls<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        Self { world, auto: world.auto_mtls(), trust_domains: world.trust_domains(), identities: FastMap::default() }
    }

    /// How an endpoint is reached, where no DestinationRule says more: by automatic mutual TLS or a tunnel if its labels say that it
    /// takes that, and no PeerAuthentication has turned mutual TLS off for its port.
    pub(super) fn reach(&self, service: &MeshService, endpoint: &Endpoint, port: u16) -> Reach {
        let wanted = reach(&endpoint.labels);
        if !(self.auto && service.internal && wanted != Reach::Plain) {
            return Reach::Plain;
        }
        let policies = self.world.peer_authentications();
        match policies.disables() && policies.mode(&service.namespace, &endpoint.labels, port) == MtlsMode::Disable {
            true => Reach::Plain,
            false => wanted,
        }
    }

    /// The settings of a cluster; `None` for plain text. `speaks`: whether any of its service's endpoints speaks mutual
    /// TLS.
    pub(super) fn of(
        &mut self,
        index: usize,
        rule: Option<&MergedRule>,
        port: u16,
        subset: Option<&Subset>,
        speaks: bool,
    ) -> Option<ClusterTls> {
        let Some((rule, tls)) = rule.and_then(|rule| Some((rule, rule.tls(port, subset)?))) else {
            return speaks.then(|| ClusterTls {
                mode: ClusterTlsMode::AutoMutual,
                sni: String::new(),
                subject_alt_names: self.identities(index, false).to_vec(),
                material: String::new(),
                insecure_skip_verify: false,
            });
        };
        let mode = match tls.mode {
            ClientTlsMode::Disable => return None,
            ClientTlsMode::Simple => ClusterTlsMode::Simple,
            ClientTlsMode::Mutual => ClusterTlsMode::Mutual,
            ClientTlsMode::IstioMutual => ClusterTlsMode::IstioMutual,
        };
        Some(ClusterTls {
            mode,
            sni: tls.sni.to_string(),
            subject_alt_names: self.subject_alt_names(index, tls),
            material: tls.credential.material(&rule.namespace),
            insecure_skip_verify: tls.insecure_skip_verify,
        })
    }

    fn subject_alt_names(&mut self, index: usize, tls: &ClientTls) -> Vec<String> {
        if !tls.subject_alt_names.is_empty() {
            return tls.subject_alt_names.iter().map(ToString::to_string).collect();
        }
        let given = !self.world.registry().services()[index].subject_alt_names.is_empty();
        match tls.mode {
            ClientTlsMode::IstioMutual => self.identities(index, true).to_vec(),
            // What the ServiceEntry says, as in Istio.
            ClientTlsMode::Simple | ClientTlsMode::Mutual if given && !tls.insecure_skip_verify => {
                self.identities(index, true).to_vec()
            }
            ClientTlsMode::Disable | ClientTlsMode::Simple | ClientTlsMode::Mutual => Vec::new(),
        }
    }

    /// Which identities the endpoints of a service may have, sorted: the SPIFFE ids of their service accounts in each
    /// trust domain, and its `subjectAltNames`. Empty for any identity of the trust domains: where there are more than
    /// [`SERVICE_IDENTITIES_MAX`] accounts, or where nothing tells the account of an endpoint and no `subjectAltNames` are
    /// given. Istio leaves such an endpoint out of the list, and connections to it fail.
    fn identities(&mut self, index: usize, all: bool) -> Arc<[String]> {
        if let Some(known) = self.identities.get(&(index, all)) {
            return Arc::clone(known);
        }
        let service = &self.world.registry().services()[index];
        let list: Arc<[String]> = self.collect(service, all).unwrap_or_default().into_iter().collect();
        self.identities.insert((index, all), Arc::clone(&list));
        list
    }

    fn collect(&self, service: &MeshService, all: bool) -> Option<BTreeSet<String>> {
        let given = &service.subject_alt_names;
        let mut accounts: BTreeSet<&str> = BTreeSet::new();
        for endpoint in service.endpoints.iter().filter(|endpoint| all || reach(&endpoint.labels) != Reach::Plain) {
            match &endpoint.service_account {
                Some(account) => {
                    accounts.insert(account);
                }
                None if given.is_empty() => return None,
                None => {}
            }
            if accounts.len() > SERVICE_IDENTITIES_MAX {
                return None;
            }
        }
        let namespace = &service.namespace;
        let mut names: BTreeSet<String> = given.iter().map(ToString::to_string).collect();
        for domain in &self.trust_domains {
            names.extend(accounts.iter().map(|account| format!("spiffe://{domain}/ns/{namespace}/sa/{account}")));
        }
        Some(names)
    }
}
