//! The access decision for people.

use std::fmt::{self, Display, Formatter};

use super::{DecidedBy, FoundAccess, FoundPolicy};

impl Display for DecidedBy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}, at {}", self.rule, self.policy, self.place)
    }
}

fn sentence(decision: &str, by: Option<&DecidedBy>, has_policies: bool) -> String {
    match (decision, by) {
        ("allowed", Some(by)) => format!("allowed by {by}"),
        ("allowed", None) if has_policies => {
            "allowed: no DENY matches, and no ALLOW policy is enforced here".to_owned()
        }
        ("allowed", None) => "allowed: no AuthorizationPolicy selects the workload".to_owned(),
        ("denied", Some(by)) => format!("403, denied by {by}"),
        ("denied_by_default", _) => "403: there are ALLOW policies, and none of their rules matches".to_owned(),
        (other, _) => other.to_owned(),
    }
}

pub(super) fn summary(access: &FoundAccess) -> String {
    let has_policies = !access.policies.is_empty();
    match (&access.authorizer, &access.by) {
        (Some(asked), Some(by)) => format!(
            "the external authorizer {} is asked ({by}); when it allows: {}",
            asked.name,
            sentence(&asked.then, asked.then_by.as_ref(), has_policies)
        ),
        (_, by) => sentence(&access.decision, by.as_ref(), has_policies),
    }
}

impl Display for FoundAccess {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "access        at {}: {}", self.workloads.join(", "), self.summary)?;
        let origin = self.mtls_origin.as_deref().unwrap_or("no PeerAuthentication: Istio's default");
        writeln!(f, "{:<16}mTLS mode {} ({origin})", "", self.mtls_mode)?;
        writeln!(f, "{:<16}connection {}: {}", "", self.connection.secured, self.connection.because)?;
        if let Some(source) = &self.source {
            writeln!(f, "{:<16}caller {source}", "")?;
        }
        self.policies.iter().try_for_each(|policy| one(f, policy))?;
        self.notes.iter().try_for_each(|note| writeln!(f, "{:<16}note: {note}", ""))
    }
}

fn one(f: &mut Formatter<'_>, policy: &FoundPolicy) -> fmt::Result {
    let dry_run = if policy.dry_run { ", dry run" } else { "" };
    writeln!(f, "{:<16}{}{dry_run} {}", "", policy.action, policy.policy)?;
    if policy.rules.is_empty() {
        writeln!(f, "{:<18}it has no rules: it never matches", "")?;
    }
    for rule in &policy.rules {
        match (&rule.failed, &rule.reason) {
            (Some(failed), Some(reason)) => {
                writeln!(f, "{:<18}not {} at {}: {failed}: {reason}", "", rule.rule, rule.place)?;
            }
            _ => writeln!(f, "{:<18}{} at {} matches", "", rule.rule, rule.place)?,
        }
    }
    if policy.more_rules > 0 {
        writeln!(f, "{:<18}and {} more rules", "", policy.more_rules)?;
    }
    Ok(())
}
