//! What AuthorizationPolicies, RequestAuthentications and PeerAuthentications do not do though they seem to: selectors that
//! select nothing, conditions that no request can meet, authorizers that are not there or disagree.

use std::sync::Arc;

use meshring_core::table::{
    access::{AccessCondition, AccessRule, AccessValue, Attribute},
    security::MtlsMode,
};

use crate::{
    diagnostic::{Code, Diagnostic},
    spec::{
        Body, FastMap, Kind, Labels, Name, Namespace, Place, Position, Resource, World,
        authorization_policy::{self, Action, AuthorizationPolicy},
        registry::workloads,
        request_authentication,
        scope::{GATEWAY_NAME, Scope},
    },
};

/// Workloads of one namespace with the same labels: all policies are alike for them.
#[derive(Debug)]
struct Group<'w> {
    namespace: &'w Namespace,
    labels: &'w Labels,
    /// The first of them.
    name: &'w Name,
    count: usize,
}

/// Groups by namespace, in the order of the resources.
#[derive(Debug, Default)]
struct Groups<'w> {
    list: Vec<Group<'w>>,
    of_namespace: FastMap<&'w Namespace, Vec<usize>>,
}

impl<'w> Groups<'w> {
    fn new(world: &'w World) -> Self {
        let mut groups = Self::default();
        let mut known: FastMap<(&Namespace, &Labels), usize> = FastMap::default();
        for (namespace, name, labels) in workloads(world.resources()) {
            let position = *known.entry((namespace, labels)).or_insert_with(|| {
                groups.of_namespace.entry(namespace).or_default().push(groups.list.len());
                groups.list.push(Group { namespace, labels, name, count: 0 });
                groups.list.len() - 1
            });
            groups.list[position].count += 1;
        }
        groups
    }

    /// Those that a policy can be for: of its namespace, of all where it stands in the root namespace.
    fn near(&self, world: &World, namespace: &Namespace) -> impl Iterator<Item = &Group<'w>> {
        let everywhere = namespace == world.root_namespace();
        let all = if everywhere { &self.list[..] } else { &[] };
        let own = if everywhere { None } else { self.of_namespace.get(namespace) };
        all.iter().chain(own.into_iter().flatten().map(|position| &self.list[*position]))
    }

    /// Those that a policy of this namespace is for.
    fn held(&self, world: &World, own: &Namespace, scope: &Scope) -> impl Iterator<Item = &Group<'w>> {
        let holds =
            |group: &&Group<'_>| scope.holds(own, world.root_namespace(), group.namespace.as_str(), Some(group.labels));
        self.near(world, own).filter(holds)
    }
}

/// An AuthorizationPolicy that is for sidecars.
#[derive(Debug)]
struct Placed<'w> {
    resource: &'w Resource,
    policy: &'w AuthorizationPolicy,
}

impl Placed<'_> {
    fn selects(&self, world: &World, group: &Group<'_>) -> bool {
        let own = &self.resource.key.namespace;
        self.policy.selects(own, world.root_namespace(), group.namespace.as_str(), Some(group.labels))
    }

    /// At one of its rules, by its position.
    fn at_rule(&self, index: usize, code: Code, message: String) -> Diagnostic {
        let line = self.policy.rules[index].line;
        let place = Place::new(Arc::clone(&self.resource.place.file), Position::new(line, 1));
        Diagnostic::warning(code, place, message).of(&self.resource.key).at_field(format!("spec.rules[{index}]"))
    }
}

pub(super) fn analyze(world: &World, diagnostics: &mut Vec<Diagnostic>) {
    let kinds = [Kind::AuthorizationPolicy, Kind::RequestAuthentication, Kind::PeerAuthentication];
    if kinds.iter().all(|kind| world.of_kind(*kind).is_empty()) {
        return;
    }
    let groups = Groups::new(world);
    selectors(world, &groups, diagnostics);
    let placed: Vec<Placed<'_>> = authorization_policy::policies(world)
        .filter(|(_, policy)| !policy.scope.is_nobody())
        .map(|(position, policy)| Placed { resource: &world.resources()[position], policy })
        .collect();
    tokens(world, &groups, &placed, diagnostics);
    identities(world, &groups, &placed, diagnostics);
    providers(world, &groups, &placed, diagnostics);
}

fn selectors(world: &World, groups: &Groups<'_>, diagnostics: &mut Vec<Diagnostic>) {
    for resource in world.resources() {
        let own = &resource.key.namespace;
        let scope = match &resource.body {
            Body::AuthorizationPolicy(policy) => policy.scope.clone(),
            Body::RequestAuthentication(policy) => policy.scope.clone(),
            // One in the root namespace has no effect for another reason, which has been told.
            Body::PeerAuthentication(policy) if own != world.root_namespace() => {
                Scope::Selector(policy.selector.clone())
            }
            _ => continue,
        };
        let (wanted, field, is_everywhere) = match &scope {
            Scope::Selector(labels) if labels.is_empty() => continue,
            Scope::Selector(labels) => (labels.to_string(), "spec.selector", own == world.root_namespace()),
            Scope::Gateways(names) if names.is_empty() => continue,
            Scope::Gateways(names) => {
                let labels: Vec<_> = names.iter().map(|name| format!("{GATEWAY_NAME}={name}")).collect();
                (labels.join(" or "), "spec.targetRefs", false)
            }
        };
        if groups.held(world, own, &scope).next().is_some() {
            continue;
        }
        let there = if is_everywhere { String::new() } else { format!(" of namespace {own}") };
        let message = format!("selects no workload: no Pod or WorkloadEntry{there} has {wanted}");
        let diagnostic = Diagnostic::info(Code::NO_WORKLOAD, resource.place.clone(), message);
        diagnostics.push(diagnostic.of(&resource.key).at_field(field));
    }
}

/// All conditions of a rule on its source, and those under `when`.
fn conditions(rule: &AccessRule) -> impl Iterator<Item = &AccessCondition> {
    rule.from.iter().flat_map(|term| &term.conditions).chain(&rule.when)
}

fn is_of_token(condition: &AccessCondition) -> bool {
    use Attribute::{Audiences, Claim, Presenter, RequestPrincipal};
    matches!(condition.attribute, RequestPrincipal | Audiences | Presenter | Claim(_))
}

fn is_of_identity(condition: &AccessCondition) -> bool {
    use Attribute::{Namespace, Principal, ServiceAccount, TrustDomain};
    matches!(condition.attribute, Principal | Namespace | ServiceAccount | TrustDomain)
}

/// Conditions on tokens where none is ever taken.
fn tokens(world: &World, groups: &Groups<'_>, placed: &[Placed<'_>], diagnostics: &mut Vec<Diagnostic>) {
    let root = world.root_namespace();
    let takers: Vec<(&Namespace, &Scope)> = request_authentication::policies(world)
        .filter(|(_, policy)| !policy.rules.is_empty())
        .map(|(position, policy)| (&world.resources()[position].key.namespace, &policy.scope))
        .collect();
    // By namespace: with thousands of policies in as many namespaces each meets its own alone.
    let mut near: FastMap<&Namespace, Vec<&Scope>> = FastMap::default();
    for (namespace, scope) in &takers {
        near.entry(namespace).or_default().push(scope);
    }
    let takes = |namespace: &Namespace, labels: &Labels| {
        let holds = |home: &Namespace| {
            let mut scopes = near.get(home).into_iter().flatten();
            scopes.any(|scope| scope.holds(home, root, namespace.as_str(), Some(labels)))
        };
        holds(root) || holds(namespace)
    };
    for place in placed {
        let Placed { resource, policy } = place;
        let denies = match policy.action {
            Action::Allow => false,
            Action::Deny => true,
            Action::Audit | Action::Custom(..) => continue,
        };
        if !policy.rules.iter().flat_map(conditions).any(is_of_token) {
            continue;
        }
        let own = &resource.key.namespace;
        let mut selected = groups.held(world, own, &policy.scope).peekable();
        let is_met = if selected.peek().is_some() {
            selected.any(|group| takes(group.namespace, group.labels))
        } else {
            // Workloads of which nothing is known may carry any labels.
            own == root && !near.is_empty() || near.contains_key(own) || near.contains_key(root)
        };
        if is_met {
            continue;
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            let mut of_token = conditions(rule).filter(|condition| is_of_token(condition)).peekable();
            if of_token.peek().is_none() {
                continue;
            }
            let effect = match (of_token.any(|condition| !condition.values.is_empty()), denies) {
                (true, true) => "a condition on a token's values is met by no request, and nobody is denied by it",
                (true, false) => "a condition on a token's values is met by no request, and nobody is allowed by it",
                (false, true) => {
                    "a negated condition on a token is met by every request, and denies those with a token, too"
                }
                (false, false) => {
                    "a negated condition on a token is met by every request, and allows those with any token, too"
                }
            };
            let message =
                format!("no RequestAuthentication is for the workloads of this policy, so no token is read: {effect}");
            diagnostics.push(
                place
                    .at_rule(index, Code::NO_TOKEN, message)
                    .hint("add a RequestAuthentication with jwtRules that selects the same workloads"),
            );
        }
    }
}

/// Whether a request without an identity can never match.
fn needs_identity(rule: &AccessRule) -> bool {
    let needs = |condition: &AccessCondition| is_of_identity(condition) && !condition.values.is_empty();
    rule.when.iter().any(needs)
        || !rule.from.is_empty() && rule.from.iter().all(|term| term.conditions.iter().any(needs))
}

/// Whether `other` denies requests without an identity wherever `rule` looks at identities.
fn denies_nobodies(other: &AccessRule, rule: &AccessRule) -> bool {
    let only_nobodies = |condition: &AccessCondition| {
        is_of_identity(condition) && condition.values.is_empty() && condition.not_values == [AccessValue::Present]
    };
    let from = other.from.iter().any(|term| term.conditions.iter().all(only_nobodies));
    let when = !other.when.is_empty() && other.when.iter().all(only_nobodies);
    (other.to.is_empty() || other.to == rule.to)
        && (from && (other.when.is_empty() || when || other.when == rule.when) || other.from.is_empty() && when)
}

/// Denials of identities at workloads that take requests without one.
fn identities(world: &World, groups: &Groups<'_>, placed: &[Placed<'_>], diagnostics: &mut Vec<Diagnostic>) {
    let root = world.root_namespace();
    let mut near: FastMap<&Namespace, Vec<&Placed<'_>>> = FastMap::default();
    for place in placed.iter().filter(|place| !place.policy.dry_run) {
        near.entry(&place.resource.key.namespace).or_default().push(place);
    }
    // Where requests without an identity pass, the rules that could deny them yet; found once for each group.
    let mut open: FastMap<(&Namespace, &Labels), Option<Vec<&AccessRule>>> = FastMap::default();
    for place in placed.iter().filter(|place| place.policy.action == Action::Deny && !place.policy.dry_run) {
        let rules: Vec<usize> = (0..place.policy.rules.len())
            .filter(|index| {
                let rule = &place.policy.rules[*index];
                conditions(rule).any(|condition| is_of_identity(condition) && !condition.values.is_empty())
            })
            .collect();
        if rules.is_empty() {
            continue;
        }
        let own = &place.resource.key.namespace;
        let mut left = rules;
        for group in groups.held(world, own, &place.policy.scope) {
            if left.is_empty() {
                break;
            }
            let effective = || world.peer_authentications().of(Some(group.namespace.as_str()), Some(group.labels));
            let open = open.entry((group.namespace, group.labels)).or_insert_with(|| {
                let effective = effective();
                let modes = effective.ports.iter().map(|(_, mode)| *mode).chain([effective.mode]);
                if modes.into_iter().all(|mode| mode == MtlsMode::Strict) {
                    return None;
                }
                let (mut allows, mut denials) = (Vec::new(), Vec::new());
                let mut is_allow_list = false;
                let local = (group.namespace != root).then(|| near.get(group.namespace)).flatten();
                let list = local.into_iter().chain(near.get(root)).flatten();
                for Placed { policy, .. } in list.filter(|other| other.selects(world, group)) {
                    is_allow_list |= policy.action == Action::Allow;
                    match policy.action {
                        Action::Allow => allows.extend(&policy.rules),
                        Action::Deny => denials.extend(policy.rules.iter().filter(|rule| denies_nobodies(rule, rule))),
                        Action::Audit | Action::Custom(..) => {}
                    }
                }
                // An allow list on which all have an identity.
                let is_closed = is_allow_list && allows.into_iter().all(needs_identity);
                (!is_closed).then_some(denials)
            });
            let Some(denials) = open else { continue };
            left.retain(|index| {
                let rule = &place.policy.rules[*index];
                if denials.iter().any(|other| denies_nobodies(other, rule)) {
                    return true;
                }
                let effective = effective();
                let ports = effective.ports.iter().map(|(port, mode)| (Some(*port), *mode));
                let mut modes = std::iter::once((None, effective.mode)).chain(ports);
                let (port, mode) = modes.find(|(_, mode)| *mode != MtlsMode::Strict).unwrap_or((None, effective.mode));
                let port = port.map(|port| format!(" at port {port}")).unwrap_or_default();
                let message = format!(
                    "requests in plain text have no identity, so this does not deny them, and {}/{} takes them{port} \
                     (PeerAuthentication {})",
                    group.namespace,
                    group.name,
                    mode.as_str()
                );
                let hint = "set its PeerAuthentication to STRICT, or deny `notPrincipals: [\"*\"]`, too";
                diagnostics.push(place.at_rule(*index, Code::NO_IDENTITY, message).hint(hint));
                false
            });
        }
    }
}

/// A CUSTOM policy, its provider, and where that is named.
type Custom<'a, 'w> = (&'a Placed<'w>, &'a Arc<str>, Position);

/// Two of them for the same workloads.
struct Conflict<'a, 'w, 'g> {
    later: Custom<'a, 'w>,
    earlier: (&'a Placed<'w>, &'a Arc<str>),
    /// The first workload.
    group: &'a Group<'g>,
    /// How many.
    count: usize,
}

/// CUSTOM policies whose provider is not there, or which disagree about it.
fn providers(world: &World, groups: &Groups<'_>, placed: &[Placed<'_>], diagnostics: &mut Vec<Diagnostic>) {
    let known = world.mesh_config().map_or(&[][..], |config| &config.ext_authz);
    let mut enforced: FastMap<&Namespace, Vec<Custom<'_, '_>>> = FastMap::default();
    let mut error = |place: &Placed<'_>, at, code, message: String, hint: &'static str| {
        let file = Arc::clone(&place.resource.place.file);
        let error = Diagnostic::error(code, Place::new(file, at), message);
        diagnostics.push(error.of(&place.resource.key).at_field("spec.provider.name").hint(hint));
    };
    for place in placed {
        let Action::Custom(name, at) = &place.policy.action else { continue };
        if known.iter().any(|provider| provider.name == *name) {
            if !place.policy.dry_run {
                enforced.entry(&place.resource.key.namespace).or_default().push((place, name, *at));
            }
            continue;
        }
        let effect = if place.policy.dry_run {
            "without the dry run everything that it selects would be denied"
        } else {
            "everything that it selects is denied"
        };
        let message = format!("MeshConfig has no extensionProvider `{name}` with envoyExtAuthzHttp: {effect}");
        let hint = "name one of extensionProviders, or add it there";
        error(place, *at, Code::UNKNOWN_PROVIDER, message, hint);
    }
    if enforced.values().map(Vec::len).sum::<usize>() < 2 {
        return;
    }
    let root = world.root_namespace();
    // Where it is not told yet: the later policy, the earlier one, and the first workload with their number.
    let mut conflicts: Vec<Conflict<'_, '_, '_>> = Vec::new();
    let mut positions: FastMap<*const Resource, usize> = FastMap::default();
    for group in &groups.list {
        let local = (group.namespace != root).then(|| enforced.get(group.namespace)).flatten();
        let mut customs = local.into_iter().chain(enforced.get(root)).flatten();
        let Some((first, provider, _)) = customs.find(|(place, ..)| place.selects(world, group)) else { continue };
        for (other, theirs, at) in customs.filter(|(place, name, _)| name != provider && place.selects(world, group)) {
            let position = *positions.entry(std::ptr::from_ref(other.resource)).or_insert_with(|| {
                let (later, earlier) = ((*other, *theirs, *at), (*first, *provider));
                conflicts.push(Conflict { later, earlier, group, count: 0 });
                conflicts.len() - 1
            });
            conflicts[position].count += group.count;
        }
    }
    for Conflict { later: (place, theirs, at), earlier: (first, provider), group, count } in conflicts {
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        let message = format!(
            "asks `{theirs}`, and {} at {} asks `{provider}` for {}/{}{more}: every request to it is denied",
            first.resource.key, first.resource.place, group.namespace, group.name
        );
        let hint = "let all CUSTOM policies of a workload name the same provider";
        error(place, at, Code::CONFLICTING_PROVIDERS, message, hint);
    }
}
