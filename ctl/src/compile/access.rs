//! AuthorizationPolicies: in the table once each, and which of them are for whom.
//!
//! Where Istio's configuration is broken it denies: a CUSTOM policy whose provider is not there, and CUSTOM policies of
//! different providers for one workload, deny each request to that workload. Here a DENY policy of the same origin, with one rule
//! without conditions, says so in the table.

use meshring_core::{
    id::OriginId,
    table::{
        access::{self, AccessCondition, AccessRule, AccessValue, Attribute, PolicyAction},
        build::TableBuilder,
    },
};

use super::security::Providers;
use crate::spec::{
    Labels, Namespace, World,
    authorization_policy::{Action, AuthorizationPolicy, policies},
    value::CLUSTER_DOMAIN,
};

/// One policy in the table.
#[derive(Debug)]
struct Placed<'w> {
    policy: &'w AuthorizationPolicy,
    namespace: &'w Namespace,
    position: u32,
    /// The provider of an enforced CUSTOM policy, and the policy that denies everything in its place.
    custom: Option<(u32, u32)>,
    /// CUSTOM, DENY, ALLOW, AUDIT.
    order: u8,
}

/// All policies.
#[derive(Debug)]
pub(super) struct AccessPolicies<'w> {
    root: &'w Namespace,
    /// In order of evaluation.
    placed: Vec<Placed<'w>>,
}

impl<'w> AccessPolicies<'w> {
    /// Puts them into the table. `origin` gives the origin of a resource by its position.
    pub(super) fn new(
        world: &'w World,
        builder: &mut TableBuilder,
        providers: &Providers<'_>,
        origin: &mut dyn FnMut(&mut TableBuilder, usize) -> OriginId,
    ) -> Self {
        let domains = world.trust_domains();
        let mut placed = Vec::new();
        for (resource, policy) in policies(world) {
            let from = origin(builder, resource);
            let place = &world.resources()[resource];
            let mut add = |action, rules| {
                let dry_run = policy.dry_run;
                builder.authorization(access::AuthorizationPolicy { origin: from, action, dry_run, rules })
            };
            let everything = || vec![AccessRule { line: place.place.at.line, ..AccessRule::default() }];
            let rules = || policy.rules.iter().map(|rule| with_aliases(rule, &domains)).collect();
            let (position, custom, order) = match &policy.action {
                Action::Allow => (add(PolicyAction::Allow, rules()), None, 2),
                Action::Deny => (add(PolicyAction::Deny, rules()), None, 1),
                Action::Audit => (add(PolicyAction::Audit, rules()), None, 3),
                Action::Custom(name, _) => match providers.position(name) {
                    None => (add(PolicyAction::Deny, everything()), None, 1),
                    Some(provider) => {
                        let position = add(PolicyAction::Custom(provider), rules());
                        let custom = (!policy.dry_run).then(|| (provider, add(PolicyAction::Deny, everything())));
                        (position, custom, 0)
                    }
                },
            };
            placed.push(Placed { policy, namespace: &place.key.namespace, position, custom, order });
        }
        // Stable: within an action by namespace and name.
        placed.sort_by_key(|placed| placed.order);
        Self { root: world.root_namespace(), placed }
    }

    /// Positions of those that are for a workload with these labels in this namespace, in order of evaluation. Without
    /// labels: for workloads of which nothing is known; with an empty namespace: of namespaces of which nothing is.
    pub(super) fn of(&self, namespace: &str, labels: Option<&Labels>) -> Vec<u32> {
        let selected = || {
            self.placed.iter().filter(|placed| placed.policy.selects(placed.namespace, self.root, namespace, labels))
        };
        let mut customs = selected().filter_map(|placed| placed.custom);
        let first = customs.next();
        let conflict = first.and_then(|(provider, _)| customs.find(|(other, _)| *other != provider));
        let mut list: Vec<u32> = selected().map(|placed| placed.position).collect();
        if let Some((_, denies)) = conflict {
            // Before anybody is asked.
            list = vec![denies];
        }
        list
    }
}

/// A principal of one of the mesh's trust domains is meant in each of them; `cluster.local` stands for the mesh's own.
fn with_aliases(rule: &AccessRule, domains: &[&str]) -> AccessRule {
    let mut rule = rule.clone();
    let terms = rule.from.iter_mut().flat_map(|term| &mut term.conditions);
    for condition in terms.chain(&mut rule.when) {
        let AccessCondition { attribute, values, not_values } = condition;
        if matches!(attribute, Attribute::Principal | Attribute::TrustDomain) {
            for list in [values, not_values] {
                *list = list.iter().flat_map(|value| aliases(attribute, value, domains)).collect();
            }
        }
    }
    rule
}

fn aliases(attribute: &Attribute, value: &AccessValue, domains: &[&str]) -> Vec<AccessValue> {
    let (text, again): (&str, fn(String) -> AccessValue) = match value {
        AccessValue::Exact(text) => (text, AccessValue::Exact),
        AccessValue::Prefix(text) => (text, AccessValue::Prefix),
        _ => return vec![value.clone()],
    };
    let (domain, rest) = match (attribute, text.split_once('/')) {
        (Attribute::Principal, Some((domain, rest))) => (domain, Some(rest)),
        (Attribute::TrustDomain, None) if matches!(value, AccessValue::Exact(_)) => (text, None),
        _ => return vec![value.clone()],
    };
    if domain != CLUSTER_DOMAIN && !domains.contains(&domain) {
        return vec![value.clone()];
    }
    let in_domain = |domain: &&str| again(rest.map_or_else(|| (*domain).to_owned(), |rest| format!("{domain}/{rest}")));
    domains.iter().map(in_domain).collect()
}
