//! Who may come in at the destination: how the connection is secured, what the workload there demands, and the decision of
//! the proxies' own evaluation with the rule that makes it.
//!
//! The decision comes from the snapshot. The world says only what a table does not: which workload an address belongs to,
//! and which service account it has.

pub(super) mod connection;
mod text;

use std::net::{IpAddr, Ipv4Addr};

use meshring_core::{
    http::path,
    id::OriginId,
    limits::{ACCESS_ENDPOINTS_EXPLAINED_MAX, ACCESS_RULES_EXPLAINED_MAX},
    snapshot::Snapshot,
    table::{
        ArchivedTable,
        access::{
            AccessObserver, AccessView, ArchivedAccessRule, ArchivedAttribute, ArchivedPolicyAction, Decision, Failure,
            Stage,
        },
        lookup::{RequestView as _, Viewpoint},
        model::{ArchivedCluster, ArchivedHeaderOp},
        security::MtlsMode,
    },
};
use serde::{Deserialize, Serialize};

use super::{Question, rule_place};
use crate::spec::{Body, FastMap, Kind, World, service_entry::Address};

pub use connection::Connection;

/// What one kind of destination says to the request. Destinations that say the same are one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FoundAccess {
    /// The clusters whose endpoints these are.
    pub clusters: Vec<String>,
    /// `NAMESPACE/NAME`; `NAMESPACE/*` where no Pod or WorkloadEntry has the address.
    pub workloads: Vec<String>,
    /// Ports of the endpoints, which are taken for the application's.
    pub ports: Vec<u16>,
    /// How the connection to them is secured.
    pub connection: Connection,
    /// The caller's identity as the workload sees it, without `spiffe://`; none over plain text.
    pub source: Option<String>,
    /// PeerAuthentication's mode on those ports: `PERMISSIVE`, `STRICT`, `DISABLE`.
    pub mtls_mode: String,
    /// `PeerAuthentication default/x (x.yaml:3)`, where one decides.
    pub mtls_origin: Option<String>,
    /// `allowed`, `denied`, `denied_by_default`, `ask`, `refused`: the connection itself.
    pub decision: String,
    /// The same for people.
    pub summary: String,
    /// The rule that decides, if one does.
    pub by: Option<DecidedBy>,
    /// The external authorizer that is asked, and what the other policies say when it allows.
    pub authorizer: Option<Authorizer>,
    /// Policies that select the workload, in order of evaluation.
    pub policies: Vec<FoundPolicy>,
    /// What the answer takes for granted.
    pub notes: Vec<String>,
}

/// A rule that decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedBy {
    /// `AuthorizationPolicy default/x (x.yaml:3)`.
    pub policy: String,
    /// `rules[0]`.
    pub rule: String,
    /// `x.yaml:9`.
    pub place: String,
}

/// An external authorizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorizer {
    /// Its name in `extensionProviders`.
    pub name: String,
    /// As [`FoundAccess::decision`].
    pub then: String,
    /// The rule behind that, if there is one.
    pub then_by: Option<DecidedBy>,
}

/// An AuthorizationPolicy that selects the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundPolicy {
    /// `AuthorizationPolicy default/x (x.yaml:3)`.
    pub policy: String,
    /// `ALLOW`, `DENY`, `AUDIT`, `CUSTOM`.
    pub action: String,
    /// Whether it is not enforced (annotation `istio.io/dry-run`).
    pub dry_run: bool,
    /// Its rules; without any it never matches.
    pub rules: Vec<FoundRule>,
    /// Rules behind those that are listed.
    pub more_rules: u32,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundRule {
    /// `rules[0]`.
    pub rule: String,
    /// `x.yaml:9`.
    pub place: String,
    /// Whether it matches the request.
    pub matches: bool,
    /// The part that fails: `from`, `to` or `when[N]`.
    pub failed: Option<String>,
    /// In words.
    pub reason: Option<String>,
}

/// The request as the workload's sidecar sees it.
struct Arriving<'q> {
    question: &'q Question,
    headers: &'q [(String, String)],
    principal: Option<String>,
    sni: Option<String>,
    peer: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl AccessView for Arriving<'_> {
    fn principal(&self) -> Option<&[u8]> {
        self.principal.as_deref().map(str::as_bytes)
    }

    fn sni(&self) -> Option<&[u8]> {
        self.sni.as_deref().map(str::as_bytes)
    }

    fn peer_ip(&self) -> IpAddr {
        self.peer
    }

    fn remote_ip(&self) -> IpAddr {
        self.peer
    }

    fn destination_ip(&self) -> IpAddr {
        self.destination
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn host(&self) -> &[u8] {
        self.question.authority()
    }

    fn method(&self) -> &[u8] {
        self.question.method()
    }

    fn path(&self) -> &[u8] {
        self.question.path()
    }

    fn header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        // Several lines are one list, as a proxy has it.
        let values: Vec<&str> =
            self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect();
        !values.is_empty() && predicate(values.join(",").as_bytes())
    }

    fn request_principal(&self) -> Option<&[u8]> {
        None
    }

    fn claim<'p>(&self, _: impl Iterator<Item = &'p str> + Clone, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

#[derive(Default)]
struct Heard(Option<(u32, u32)>);

impl AccessObserver for Heard {
    fn allowed_by(&mut self, policy: u32, rule: u32) {
        self.0 = Some((policy, rule));
    }
}

/// A request on its way to a cluster: rewritten, its headers edited.
pub(super) struct Sent<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) world: &'a World,
    /// As the upstream gets it: method, authority and normalised path.
    pub(super) question: Question,
}

/// What a cluster's endpoints say to a request.
pub(super) fn of_cluster(sent: &Sent<'_>, cluster: &ArchivedCluster, found: &mut Vec<FoundAccess>) {
    let (table, world) = (sent.snapshot.table(), sent.world);
    let Sent { question, .. } = sent;
    let service_namespace = connection::service_namespace(world, cluster, &question.namespace);
    let settings = connection::Settings::of(table, world, cluster, question);
    let at = workloads_by_address(world);
    let caller = identity(table, world, &question.namespace, &question.workload);
    let caller_ip = address_of(world, &question.namespace, &question.workload);
    let count = cluster.count.to_native();
    for position in 0..count.min(ACCESS_ENDPOINTS_EXPLAINED_MAX) {
        let endpoint = table.endpoint_of(cluster, position);
        let address = table.address(endpoint);
        let known = at.get(&address.ip()).into_iter().flatten().find(|known| known.takes(address.port()));
        let (workload, viewpoint) = match known {
            Some(Listed { namespace, name, .. }) => {
                (format!("{namespace}/{name}"), Viewpoint::resolve(table, namespace, name))
            }
            None => (format!("{service_namespace}/*"), Viewpoint::resolve(table, &service_namespace, "")),
        };
        let connection = settings.to(table.reach(endpoint));
        let arriving = Arriving {
            question,
            headers: &question.headers,
            principal: connection.is_mesh().then(|| caller.clone()),
            sni: connection.sni.clone(),
            peer: caller_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            destination: address.ip(),
            port: address.port(),
        };
        let mut access = judge(table, &viewpoint, connection, &arriving);
        if caller_ip.is_none() && looks_at_addresses(table, &viewpoint) {
            access.notes.push("the caller's address is not known: address blocks are judged for 0.0.0.0".to_owned());
        }
        merge(found, access, &cluster.name, workload, address.port());
    }
    if count > ACCESS_ENDPOINTS_EXPLAINED_MAX
        && let Some(last) = found.last_mut()
    {
        last.notes.push(format!("of {count} endpoints the first {ACCESS_ENDPOINTS_EXPLAINED_MAX} were looked at"));
    }
}

fn merge(found: &mut Vec<FoundAccess>, access: FoundAccess, cluster: &str, workload: String, port: u16) {
    // Each cluster has a server name of its own, which is no difference in itself.
    let comparable = |access: &FoundAccess| FoundAccess {
        clusters: Vec::new(),
        workloads: Vec::new(),
        ports: Vec::new(),
        connection: Connection { sni: None, ..access.connection.clone() },
        ..access.clone()
    };
    let wanted = comparable(&access);
    let at = found.iter().position(|known| comparable(known) == wanted).unwrap_or_else(|| {
        found.push(access);
        found.len() - 1
    });
    let known = &mut found[at];
    if !known.clusters.iter().any(|other| other == cluster) {
        known.clusters.push(cluster.to_owned());
    }
    if !known.workloads.contains(&workload) {
        known.workloads.push(workload);
    }
    if !known.ports.contains(&port) {
        known.ports.push(port);
    }
}

fn judge(table: &ArchivedTable, viewpoint: &Viewpoint, connection: Connection, arriving: &Arriving<'_>) -> FoundAccess {
    let inbound = table.inbound_policy(viewpoint);
    let mode = inbound.map_or(MtlsMode::default(), |policy| policy.mtls_on(arriving.port));
    let mut access = FoundAccess {
        mtls_mode: mode.as_str().to_owned(),
        mtls_origin: inbound
            .and_then(|policy| policy.mtls_origin.as_ref())
            .map(|origin| table.origin(OriginId::from(origin))),
        connection,
        source: arriving.principal.clone(),
        ..FoundAccess::default()
    };
    if let Some(reason) = access.connection.refused_by(mode) {
        access.decision = "refused".to_owned();
        access.summary = reason.to_owned();
        return access;
    }
    if arriving.question.stream.is_some() || access.connection.is_tunnel() {
        access
            .notes
            .push("judged as a connection: rules about HTTP allow none, and deny whatever else they match".into());
        let mut heard = Heard::default();
        let decision = table.connection_access(viewpoint.policy, arriving, &mut heard);
        let described = describe(table, decision, heard.0);
        // An authorizer over HTTP has nothing to look at: it is not asked, and nothing passes.
        let decision = if described.0 == "ask" { "denied" } else { described.0 };
        (access.decision, access.by) = (decision.to_owned(), described.1);
        access.summary = text::summary(&access).replace("403", "reset");
        return access;
    }
    if let Some(inbound) = inbound {
        access.policies =
            inbound.authorization.iter().map(|position| policy(table, position.to_native(), arriving)).collect();
        token_notes(table, inbound, arriving, &mut access.notes);
    }
    let mut heard = Heard::default();
    let decision = table.access(viewpoint.policy, Stage::First, arriving, &mut heard);
    let described = describe(table, decision, heard.0);
    (access.decision, access.by) = (described.0.to_owned(), described.1);
    if let Decision::Ask { ext_authz, .. } = decision {
        let mut heard = Heard::default();
        let then = table.access(viewpoint.policy, Stage::AfterCustom, arriving, &mut heard);
        let (then, then_by) = describe(table, then, heard.0);
        let name = table.ext_authz[ext_authz as usize].name.to_string();
        access.authorizer = Some(Authorizer { name, then: then.to_owned(), then_by });
    }
    access.summary = text::summary(&access);
    access
}

fn describe(
    table: &ArchivedTable,
    decision: Decision,
    allowed_by: Option<(u32, u32)>,
) -> (&'static str, Option<DecidedBy>) {
    let by = |(policy, rule)| decided_by(table, policy, rule);
    match decision {
        Decision::Allowed => ("allowed", allowed_by.map(by)),
        Decision::Denied { policy, rule } => ("denied", Some(by((policy, rule)))),
        Decision::DeniedByDefault => ("denied_by_default", None),
        Decision::Ask { policy, rule, .. } => ("ask", Some(by((policy, rule)))),
    }
}

fn decided_by(table: &ArchivedTable, policy: u32, rule: u32) -> DecidedBy {
    let found = &table.authorization[policy as usize];
    let origin = table.origin(OriginId::from(&found.origin));
    let line = found.rules[rule as usize].line.to_native();
    DecidedBy { place: rule_place(&origin, line), rule: format!("rules[{rule}]"), policy: origin }
}

fn policy(table: &ArchivedTable, position: u32, arriving: &Arriving<'_>) -> FoundPolicy {
    let policy = &table.authorization[position as usize];
    let origin = table.origin(OriginId::from(&policy.origin));
    let action = match policy.action {
        ArchivedPolicyAction::Allow => "ALLOW",
        ArchivedPolicyAction::Deny => "DENY",
        ArchivedPolicyAction::Audit => "AUDIT",
        ArchivedPolicyAction::Custom(_) => "CUSTOM",
    };
    let rules = policy.rules.iter().take(ACCESS_RULES_EXPLAINED_MAX).enumerate().map(|(index, rule)| {
        let failure = rule.failure(arriving);
        FoundRule {
            rule: format!("rules[{index}]"),
            place: rule_place(&origin, rule.line.to_native()),
            matches: failure.is_none(),
            failed: failure.map(|failure| match failure {
                Failure::From => "from".to_owned(),
                Failure::To => "to".to_owned(),
                Failure::When(position) => format!("when[{position}]"),
            }),
            reason: failure.map(|failure| reason(rule, failure, arriving)),
        }
    });
    FoundPolicy {
        rules: rules.collect(),
        more_rules: policy.rules.len().saturating_sub(ACCESS_RULES_EXPLAINED_MAX) as u32,
        action: action.to_owned(),
        dry_run: policy.dry_run,
        policy: origin,
    }
}

fn reason(rule: &ArchivedAccessRule, failure: Failure, arriving: &Arriving<'_>) -> String {
    match failure {
        Failure::From => match &arriving.principal {
            Some(principal) => format!("no source holds for the caller {principal}"),
            None => "no source holds for a caller without an identity".to_owned(),
        },
        Failure::To => format!(
            "no operation holds for {} {} of host {}",
            arriving.question.method, arriving.question.path, arriving.question.authority
        ),
        Failure::When(position) => {
            let attribute = rule.when.get(position).map(|condition| attribute(&condition.attribute));
            format!("the condition on {} does not hold", attribute.unwrap_or_default())
        }
    }
}

/// `key` of a condition, as Istio writes it.
fn attribute(attribute: &ArchivedAttribute) -> String {
    let fixed = match attribute {
        ArchivedAttribute::Principal => "source.principal",
        ArchivedAttribute::RequestPrincipal => "request.auth.principal",
        ArchivedAttribute::Namespace => "source.namespace",
        ArchivedAttribute::ServiceAccount => "source.serviceAccount",
        ArchivedAttribute::TrustDomain => "source.trustDomain",
        ArchivedAttribute::SourceIp => "source.ip",
        ArchivedAttribute::RemoteIp => "remote.ip",
        ArchivedAttribute::Host => "hosts",
        ArchivedAttribute::Port => "destination.port",
        ArchivedAttribute::Method => "methods",
        ArchivedAttribute::Path => "paths",
        ArchivedAttribute::DestinationIp => "destination.ip",
        ArchivedAttribute::Sni => "connection.sni",
        ArchivedAttribute::Audiences => "request.auth.audiences",
        ArchivedAttribute::Presenter => "request.auth.presenter",
        ArchivedAttribute::Header(name) => return format!("request.headers[{name}]"),
        ArchivedAttribute::Claim(path) => {
            let names: String = path.iter().map(|name| format!("[{name}]")).collect();
            return format!("request.auth.claims{names}");
        }
    };
    fixed.to_owned()
}

fn looks_at_addresses(table: &ArchivedTable, viewpoint: &Viewpoint) -> bool {
    let policies = table.inbound_policy(viewpoint).map(|policy| policy.authorization.as_slice()).unwrap_or_default();
    policies.iter().flat_map(|position| table.authorization[position.to_native() as usize].rules.iter()).any(|rule| {
        let terms = rule.from.iter().flat_map(|term| term.conditions.iter());
        terms
            .chain(rule.when.iter())
            .any(|condition| matches!(condition.attribute, ArchivedAttribute::SourceIp | ArchivedAttribute::RemoteIp))
    })
}

fn token_notes(
    table: &ArchivedTable,
    inbound: &meshring_core::table::security::ArchivedInboundPolicy,
    arriving: &Arriving<'_>,
    notes: &mut Vec<String>,
) {
    let is_bearer = |value: &str| value.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "));
    let sent = arriving.headers.iter().any(|(name, value)| name == "authorization" && is_bearer(value));
    let rules = &table.jwt_rules;
    let issuers: Vec<&str> =
        inbound.jwt_rules.iter().map(|position| rules[position.to_native() as usize].issuer.as_str()).collect();
    if sent && issuers.is_empty() {
        notes.push("no RequestAuthentication selects the workload: the token is not looked at".to_owned());
    } else if sent {
        notes.push(format!(
            "the token is not verified here and its claims are treated as absent; the sidecar takes tokens of {}",
            issuers.join(", ")
        ));
    }
}

/// A Pod or WorkloadEntry with an address.
struct Listed<'w> {
    namespace: &'w str,
    name: &'w str,
    /// The ports that it says it has; none: any.
    ports: Vec<u16>,
}

impl Listed<'_> {
    /// On one machine several workloads share an address.
    fn takes(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

fn workloads_by_address(world: &World) -> FastMap<IpAddr, Vec<Listed<'_>>> {
    let mut map: FastMap<IpAddr, Vec<Listed<'_>>> = FastMap::default();
    // A slice names the Pods behind its addresses, also where those do not tell their own.
    for resource in world.of_kind(Kind::EndpointSlice) {
        let Body::EndpointSlice(slice) = &resource.body else { continue };
        let ports: Vec<u16> = slice.ports.iter().map(|port| port.port.number()).collect();
        for endpoint in &slice.endpoints {
            let Some(name) = endpoint.pod.as_deref() else { continue };
            let listed = Listed { namespace: resource.key.namespace.as_str(), name, ports: ports.clone() };
            map.entry(endpoint.address).or_default().push(listed);
        }
    }
    for kind in [Kind::Pod, Kind::WorkloadEntry] {
        for resource in world.of_kind(kind) {
            let (namespace, name) = (resource.key.namespace.as_str(), resource.key.name.as_str());
            let (addresses, ports): (Vec<IpAddr>, Vec<u16>) = match &resource.body {
                // A Pod may listen on ports that it does not name.
                Body::Pod(pod) => (pod.addresses.clone(), Vec::new()),
                Body::WorkloadEntry(entry) => match &entry.address {
                    Address::Ip(ip) => (vec![*ip], entry.ports.values().map(|port| port.number()).collect()),
                    Address::Name(_) | Address::Unix(_) => continue,
                },
                _ => continue,
            };
            for address in addresses {
                map.entry(address).or_default().push(Listed { namespace, name, ports: ports.clone() });
            }
        }
    }
    map
}

fn address_of(world: &World, namespace: &str, name: &str) -> Option<IpAddr> {
    [Kind::Pod, Kind::WorkloadEntry].into_iter().find_map(|kind| match &world.resource(kind, namespace, name)?.body {
        Body::Pod(pod) => pod.addresses.first().copied(),
        Body::WorkloadEntry(entry) => match entry.address {
            Address::Ip(ip) => Some(ip),
            Address::Name(_) | Address::Unix(_) => None,
        },
        _ => None,
    })
}

/// The identity of a workload without `spiffe://`, as control issues it.
fn identity(table: &ArchivedTable, world: &World, namespace: &str, name: &str) -> String {
    let account = [Kind::Pod, Kind::WorkloadEntry].into_iter().find_map(|kind| {
        match &world.resource(kind, namespace, name)?.body {
            Body::Pod(pod) => pod.service_account.clone(),
            Body::WorkloadEntry(entry) => entry.service_account.clone(),
            _ => None,
        }
    });
    let domain = table.trust_domains.first().map_or(world.trust_domain(), |domain| domain.as_str());
    format!("{domain}/ns/{namespace}/sa/{}", account.as_deref().unwrap_or("default"))
}

/// Applies a rule's edits of headers to a request; `host` is the authority.
pub(super) fn edit(question: &mut Question, ops: &[ArchivedHeaderOp]) {
    for op in ops {
        let (name, value, keeps) = match op {
            ArchivedHeaderOp::Remove { name } => (name.to_ascii_lowercase(), None, false),
            ArchivedHeaderOp::Set { name, value } => (name.to_ascii_lowercase(), Some(value.to_string()), false),
            ArchivedHeaderOp::Add { name, value } => (name.to_ascii_lowercase(), Some(value.to_string()), true),
        };
        if name == "host" || name == ":authority" {
            question.authority = value.unwrap_or_else(|| question.authority.clone());
            continue;
        }
        if !keeps {
            question.headers.retain(|(known, _)| *known != name);
        }
        question.headers.extend(value.map(|value| (name, value)));
    }
}

/// The path as the workload's rules are matched on it.
pub(super) fn matched_path(normalized: &str) -> String {
    let mut scratch = Vec::new();
    String::from_utf8_lossy(path::without_parameters(normalized.as_bytes(), &mut scratch)).into_owned()
}

#[cfg(test)]
mod tests;
