//! What must be true of policies and their indexes before a proxy uses them: that every position is in bounds, that each
//! probe ends, and that no rule is left out, skipped or ruled out wrongly, which would open a door in silence.

use std::ops::Range;

use rkyv::rend::u32_le;

use super::{
    ArchivedAccessCondition, ArchivedAccessRule, ArchivedAccessTerm, ArchivedAccessValue, ArchivedAttribute,
    ArchivedAuthorizationPolicy, ArchivedPolicyAction, ArchivedTemplatePart, PolicyAction,
    index::{ArchivedAccessIndex, ArchivedKeyTable, ArchivedRuleRef, INDEX_NONE, group},
};
use crate::table::ArchivedTable;

type Checked = Result<(), String>;

fn check(holds: bool, reason: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(reason()) }
}

/// One policy's values.
pub(in crate::table) fn policy(policy: &ArchivedAuthorizationPolicy) -> Checked {
    policy.rules.iter().try_for_each(|rule| {
        let terms = rule.from.iter().chain(rule.to.iter());
        terms.flat_map(|term| term.conditions.iter()).chain(rule.when.iter()).try_for_each(condition)
    })
}

fn condition(condition: &ArchivedAccessCondition) -> Checked {
    condition.values.iter().chain(condition.not_values.iter()).try_for_each(|value| match value {
        ArchivedAccessValue::Block { length, .. } => check(*length <= 128, || format!("a block of {length} bits")),
        ArchivedAccessValue::Template(parts) => {
            let rest = parts.iter().position(|part| matches!(part, ArchivedTemplatePart::Rest));
            let behind = rest.map_or(&[][..], |rest| &parts[rest + 1..]);
            let sound = matches!(behind, [] | [ArchivedTemplatePart::Text(_)]);
            check(sound, || "a template with more than a text behind {**}".into())
        }
        _ => Ok(()),
    })
}

/// Which inbound policy has which index: each list is the one that its policy names.
pub(in crate::table) fn assignment(table: &ArchivedTable) -> Checked {
    for (position, inbound) in table.inbound_policies.iter().enumerate() {
        let sound = match table.access_index_of.get(position).map_or(INDEX_NONE, |of| of.to_native()) {
            INDEX_NONE => inbound.authorization.is_empty(),
            index => table.access_indexes.get(index as usize).is_some_and(|index| {
                index.policies.len() == inbound.authorization.len()
                    && index.policies.iter().zip(inbound.authorization.iter()).all(|(a, b)| a == b)
            }),
        };
        check(sound, || format!("inbound policy {position} has an index that is not its own"))?;
    }
    Ok(())
}

/// One index.
pub(in crate::table) fn index(table: &ArchivedTable, index: &ArchivedAccessIndex) -> Checked {
    let policies = index.policies.iter().map(|position| table.authorization.get(position.to_native() as usize));
    let policies: Option<Vec<_>> = policies.collect();
    let policies = policies.ok_or_else(|| "a policy is out of bounds".to_owned())?;
    let allows = policies.iter().any(|policy| matches!(policy.action, ArchivedPolicyAction::Allow) && !policy.dry_run);
    check(index.allows == allows, || "an ALLOW policy is hidden".into())?;
    check(index.groups.len() == policies.len(), || "a policy has no group".into())?;
    for (order, (policy, found)) in policies.iter().zip(index.groups.iter()).enumerate() {
        let action = match policy.action {
            ArchivedPolicyAction::Allow => PolicyAction::Allow,
            ArchivedPolicyAction::Deny => PolicyAction::Deny,
            ArchivedPolicyAction::Audit => PolicyAction::Audit,
            ArchivedPolicyAction::Custom(ext_authz) => PolicyAction::Custom(ext_authz.to_native()),
        };
        let wanted = group(action, policy.dry_run, order as u32);
        check(found.to_native() == wanted, || format!("the group of policy {order} is not its own"))?;
    }
    keys(&index.filed, index.rules.len(), "rules")?;
    keys(&index.negated, index.negations.len(), "negations")?;
    check(index.residue.to_native() as usize <= index.rules.len(), || "the residue is out of bounds".into())?;
    let mut starts = Vec::with_capacity(policies.len());
    let mut total = 0;
    for policy in &policies {
        starts.push(total);
        total += policy.rules.len();
    }
    let mut filed = vec![false; total];
    let mut bodies = Vec::with_capacity(index.rules.len());
    for place in index.rules.iter() {
        let (order, rule) = (place.order.to_native() as usize, place.rule.to_native() as usize);
        let body = policies.get(order).and_then(|policy| policy.rules.get(rule));
        bodies.push(body.ok_or_else(|| format!("rule {rule} of policy {order} is out of bounds"))?);
        filed[starts[order] + rule] = true;
    }
    check(filed.iter().all(|filed| *filed), || "a rule is left out".into())?;
    // Of what is sorted some is skipped.
    let place = |rule: &ArchivedRuleRef| {
        let order = rule.order.to_native();
        (index.groups[order as usize].to_native(), order, rule.rule.to_native())
    };
    let residue = &index.rules[..index.residue.to_native() as usize];
    let lists = index.filed.keys.iter().map(|key| &index.rules[range(key.first, key.count)]);
    for list in std::iter::once(residue).chain(lists) {
        check(list.is_sorted_by_key(place), || "rules are not in order".into())?;
    }
    negations(index, &bodies)
}

/// Whether what is found in a table of keys is there: so many.
fn keys(table: &ArchivedKeyTable, len: usize, what: &str) -> Checked {
    check(table.buckets.len().is_power_of_two(), || "the number of buckets is not a power of two".into())?;
    check(table.buckets.iter().any(|bucket| bucket.to_native() == 0), || "no bucket is empty".into())?;
    for bucket in table.buckets.iter() {
        check(bucket.to_native() as usize <= table.keys.len(), || "a key is out of bounds".into())?;
    }
    table.keys.iter().try_for_each(|key| {
        check(range(key.first, key.count).end <= len, || format!("the {what} of a key are out of bounds"))
    })
}

fn range(first: u32_le, count: u32_le) -> Range<usize> {
    let first = first.to_native() as usize;
    first..first + count.to_native() as usize
}

/// Whether no value rules out a rule that may see it.
fn negations(index: &ArchivedAccessIndex, bodies: &[&ArchivedAccessRule]) -> Checked {
    // So many there can be; whoever says more would make this last.
    let mut left: usize = bodies.iter().map(|rule| negated(rule).count()).sum();
    for negation in index.negations.iter() {
        let attribute = index.negated.attributes.get(negation.attribute.to_native() as usize);
        let attribute = attribute.ok_or_else(|| "the attribute of a negation is out of bounds".to_owned())?;
        let ranges = index.ruled_out.get(range(negation.first, negation.count));
        for ruled_out in ranges.ok_or_else(|| "what a negation rules out is out of bounds".to_owned())?.iter() {
            let rules = bodies.get(range(ruled_out.first, ruled_out.count));
            let rules = rules.ok_or_else(|| "a rule that is ruled out is out of bounds".to_owned())?;
            left = left.checked_sub(rules.len()).ok_or_else(|| "rules are ruled out again and again".to_owned())?;
            for rule in rules {
                let sound = negated(rule).any(|(of, value)| *of == attribute.attribute && *value == negation.value);
                check(sound, || "a rule is ruled out by what it may see".into())?;
            }
        }
    }
    Ok(())
}

/// As in [`index`](super::index): values each of which rules out the whole rule.
fn negated(rule: &ArchivedAccessRule) -> impl Iterator<Item = (&ArchivedAttribute, &ArchivedAccessValue)> {
    fn only(terms: &[ArchivedAccessTerm]) -> &[ArchivedAccessCondition] {
        if let [term] = terms { &term.conditions } else { &[] }
    }
    let conditions = only(&rule.from).iter().chain(only(&rule.to)).chain(rule.when.iter());
    conditions.flat_map(|condition| condition.not_values.iter().map(|value| (&condition.attribute, value)))
}
