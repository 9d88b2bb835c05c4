//! References of security resources that lead nowhere: Secrets, workloads and authorizers that are not there, policies that hide
//! each other, and identities that contradict each other.

mod access;
mod identities;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::{
    Body, FastMap, FastSet, HostPattern, Kind, Namespace, Place, Resource, World,
    destination_rule::ClientTls,
    gateway::ServerMode,
    registry::workloads,
    secret::{Credential, SecretParts},
};
use crate::diagnostic::{Code, Diagnostic};

/// Policies of one namespace that are compared by the workloads that they select; more would take too long.
const POLICIES_MAX: usize = 1_000;

pub(super) fn analyze(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    destination_rules(world, diagnostics);
    gateways(world, diagnostics);
    authorizers(world, diagnostics);
    hidden_policies(world, diagnostics);
    access::analyze(world, diagnostics);
    identities::analyze(world, diagnostics);
}

fn warning(code: Code, resource: &Resource, place: Place, field: String, message: String) -> Diagnostic {
    Diagnostic::warning(code, place, message).of(&resource.key).at_field(field)
}

/// What is wrong with a Secret as a credential.
fn lacking(parts: Option<&SecretParts>, own: bool, roots: bool) -> Option<&'static str> {
    match parts {
        None => Some("is not there, or holds no certificates"),
        Some(parts) if own && (parts.certificate().is_none() || parts.key().is_none()) => {
            Some("has no certificate with its key")
        }
        Some(parts) if roots && parts.ca().is_none() => Some("has no roots (`ca.crt`), and neither has NAME-cacert"),
        Some(_) => None,
    }
}

fn destination_rules(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    for resource in world.of_kind(Kind::DestinationRule) {
        let Body::DestinationRule(rule) = &resource.body else { continue };
        let policies = std::iter::once(&rule.policy).chain(rule.subsets.iter().map(|subset| &subset.policy));
        let settings = policies.flat_map(|policy| {
            std::iter::once(policy.tls.as_ref()).chain(policy.ports.iter().map(|port| port.tls.as_ref())).flatten()
        });
        let mut told = FastSet::default();
        for ClientTls { mode, credential, .. } in settings {
            let Credential::Secret(name) = credential else { continue };
            let namespace = &resource.key.namespace;
            let mutual = *mode == super::destination_rule::ClientTlsMode::Mutual;
            let parts = world.secrets().get(&format!("{namespace}/{name}"));
            let Some(why) = lacking(parts, mutual, !mutual).filter(|_| told.insert(name)) else { continue };
            let message = format!("Secret {namespace}/{name} {why}: such connections fail");
            let field = "spec.trafficPolicy.tls.credentialName".to_owned();
            diagnostics.push(warning(Code::UNKNOWN_SECRET, resource, resource.place.clone(), field, message));
        }
    }
}

fn gateways(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    if world.gateways().is_empty() {
        return;
    }
    for resource in world.of_kind(Kind::Gateway) {
        let Body::Gateway(gateway) = &resource.body else { continue };
        if gateway.selector.is_empty() || gateway.servers.is_empty() {
            continue;
        }
        let selected: FastSet<&Namespace> = workloads(world.resources())
            .filter(|(_, _, labels)| gateway.selector.select(labels))
            .map(|(namespace, ..)| namespace)
            .collect();
        if selected.is_empty() {
            let message = format!("selects no workload: no Pod or WorkloadEntry has {}", gateway.selector);
            let field = "spec.selector".to_owned();
            diagnostics.push(warning(Code::NO_WORKLOAD, resource, resource.place.clone(), field, message));
        }
        let mut selected: Vec<_> = selected.into_iter().collect();
        selected.sort();
        for server in &gateway.servers {
            let Credential::Secret(name) = &server.credential else { continue };
            let roots = matches!(server.mode, ServerMode::Mutual | ServerMode::OptionalMutual);
            for namespace in &selected {
                let parts = world.secrets().get(&format!("{namespace}/{name}"));
                let Some(why) = lacking(parts, true, roots) else { continue };
                let message = format!("Secret {namespace}/{name} {why}: connections to port {} fail", server.port);
                let place = Place::new(Arc::clone(&resource.place.file), server.at);
                let field = "spec.servers[].tls.credentialName".to_owned();
                diagnostics.push(
                    warning(Code::UNKNOWN_SECRET, resource, place, field, message)
                        .hint("it must be in the namespace of the gateway's workload"),
                );
            }
        }
    }
}

fn authorizers(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    let Some(config) = world.mesh_config() else { return };
    let holder = world.resources().iter().find(|resource| match &resource.body {
        Body::ConfigMap(body) | Body::IstioOperator(body) => std::ptr::eq(&**body, config),
        _ => false,
    });
    let Some(resource) = holder else { return };
    for provider in &config.ext_authz {
        let client = provider.namespace.as_ref().unwrap_or_else(|| world.root_namespace());
        let host = HostPattern::Exact(provider.service.clone());
        let registry = world.registry();
        let service = registry.index_of(&host, Some(client)).map(|index| &registry.services()[index]);
        let (code, message) = match service {
            None => (Code::UNKNOWN_HOST, format!("no Service or ServiceEntry defines `{host}`")),
            Some(service) if service.port_index(provider.port.number()).is_none() => {
                (Code::UNKNOWN_PORT, format!("{} has no port {}", service.key, provider.port))
            }
            Some(_) => continue,
        };
        let message = format!("{message}: the authorizer `{}` cannot be asked", provider.name);
        let place = Place::new(Arc::clone(&resource.place.file), provider.at);
        let field = format!("extensionProviders[{}]", provider.name);
        diagnostics.push(warning(code, resource, place, field, message));
    }
}

/// PeerAuthentications with different selectors for the same workload: the oldest one counts there.
fn hidden_policies(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    let mut of_namespace: FastMap<&Namespace, Vec<&Resource>> = FastMap::default();
    for resource in world.of_kind(Kind::PeerAuthentication) {
        let Body::PeerAuthentication(policy) = &resource.body else { continue };
        if !policy.selector.is_empty() && resource.key.namespace != *world.root_namespace() {
            of_namespace.entry(&resource.key.namespace).or_default().push(resource);
        }
    }
    of_namespace.retain(|_, policies| (2..=POLICIES_MAX).contains(&policies.len()));
    if of_namespace.is_empty() {
        return;
    }
    let mut told = FastSet::default();
    for (namespace, name, labels) in workloads(world.resources()) {
        let Some(policies) = of_namespace.get(namespace) else { continue };
        let winner = world.peer_authentications().selected(namespace, labels).map(|index| &world.resources()[index]);
        let Some(winner) = winner else { continue };
        for loser in policies.iter().filter(|policy| policy.key != winner.key) {
            let (Body::PeerAuthentication(theirs), Body::PeerAuthentication(ours)) = (&winner.body, &loser.body) else {
                continue;
            };
            // The same selector has been told of already.
            if theirs.selector == ours.selector || !ours.selector.select(labels) || !told.insert(&loser.key) {
                continue;
            }
            let message = format!(
                "{} at {} selects the workload {namespace}/{name} too and wins there: this one has no effect on it",
                winner.key, winner.place
            );
            diagnostics.push(
                warning(Code::CONFLICTING_POLICIES, loser, loser.place.clone(), "spec.selector".to_owned(), message)
                    .hint("select each workload by one PeerAuthentication"),
            );
        }
    }
}
