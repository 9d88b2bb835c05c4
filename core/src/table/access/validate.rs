//! What must be true of policies and their indexes before a proxy uses them: that every position is in bounds, that each
//! probe ends, and that no rule is left out, which would open a door in silence.

use super::{
    ArchivedAccessCondition, ArchivedAccessValue, ArchivedAuthorizationPolicy, ArchivedPolicyAction,
    ArchivedTemplatePart,
    index::{ArchivedAccessIndex, ArchivedRuleRef, INDEX_NONE},
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
    check(index.buckets.len().is_power_of_two(), || "the number of buckets is not a power of two".into())?;
    check(index.buckets.iter().any(|bucket| bucket.to_native() == 0), || "no bucket is empty".into())?;
    for bucket in index.buckets.iter() {
        check(bucket.to_native() as usize <= index.keys.len(), || "a key is out of bounds".into())?;
    }
    for key in index.keys.iter() {
        let end = u64::from(key.first.to_native()) + u64::from(key.count.to_native());
        check(end <= index.rules.len() as u64, || "the rules of a key are out of bounds".into())?;
    }
    let mut starts = Vec::with_capacity(policies.len());
    let mut total = 0;
    for policy in &policies {
        starts.push(total);
        total += policy.rules.len();
    }
    let mut filed = vec![false; total];
    let mut file = |place: &ArchivedRuleRef| -> Checked {
        let (order, rule) = (place.order.to_native() as usize, place.rule.to_native() as usize);
        let known = policies.get(order).is_some_and(|policy| rule < policy.rules.len());
        check(known, || format!("rule {rule} of policy {order} is out of bounds"))?;
        filed[starts[order] + rule] = true;
        Ok(())
    };
    index.rules.iter().chain(index.residue.iter()).try_for_each(&mut file)?;
    check(filed.iter().all(|filed| *filed), || "a rule is left out".into())
}
