//! An explanation for people, read from top to bottom.

use std::fmt::{self, Display, Formatter};

use super::{ChosenRule, Explanation, FoundDestination, Hop, SeenPath, shown_port};

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.request)?;
        writeln!(f, "  => {}", self.summary)?;
        writeln!(f)?;
        writeln!(f, "generation    {}", self.generation)?;
        if !self.labels.is_empty() {
            writeln!(f, "caller        {}", self.labels.join(", "))?;
        }
        // A connection has no path.
        if !self.path.sent.is_empty() || self.refusal.is_some() {
            writeln!(f, "mesh          {}", self.mesh)?;
        }
        path(f, self)?;
        for (index, step) in self.resolution.iter().enumerate() {
            let title = if index == 0 { "looked for" } else { "" };
            writeln!(f, "{title:<14}{} {}", step.name, if step.found { "(found)" } else { "(not there)" })?;
        }
        for (index, name) in self.suggestions.iter().enumerate() {
            writeln!(f, "{:<14}{name}", if index == 0 { "did you mean" } else { "" })?;
        }
        if let Some(host) = &self.virtual_host {
            let scope =
                host.scope.as_ref().map(|scope| format!(", seen by namespace {scope} only")).unwrap_or_default();
            let title = if self.path.sent.is_empty() { "service" } else { "virtual host" };
            writeln!(f, "{title:<14}{}, {}{scope}", host.domain, shown_port(host.port))?;
            writeln!(f, "{:<14}from {}", "", host.origin)?;
        }
        for rule in &self.skipped {
            writeln!(f, "not           {}{} at {}", rule.rule, named(&rule.name), rule.place)?;
            for failed in &rule.alternatives {
                let (alternative, place) = (&failed.alternative, &failed.place);
                writeln!(f, "{:<16}{alternative} at {place}: wants {}, but {}", "", failed.expected, failed.actual)?;
            }
        }
        if let Some(rule) = &self.rule {
            chosen(f, rule)?;
        }
        self.destinations.iter().try_for_each(|each| destination(f, each))?;
        for (index, Hop { between, path }) in self.connections.iter().enumerate() {
            writeln!(f, "{:<14}{between}: {path}", if index == 0 { "connections" } else { "" })?;
        }
        self.access.iter().try_for_each(|access| access.fmt(f))
    }
}

/// Only what is not as the client sent it.
fn path(f: &mut Formatter<'_>, explanation: &Explanation) -> fmt::Result {
    let SeenPath { sent, normalized, matched } = &explanation.path;
    if sent != normalized {
        writeln!(f, "path          {sent} is normalised to {normalized}")?;
    }
    if normalized != matched {
        writeln!(f, "path          rules are matched on {matched}, without parameters")?;
    }
    Ok(())
}

fn named(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" ({name})") }
}

fn chosen(f: &mut Formatter<'_>, rule: &ChosenRule) -> fmt::Result {
    writeln!(f, "rule          {}{} at {}: {}", rule.rule, named(&rule.name), rule.place, rule.because)?;
    if let Some(answer) = &rule.answer {
        writeln!(f, "answer        {answer}")?;
    }
    rule.rewrite.iter().try_for_each(|rewrite| writeln!(f, "rewrite       {rewrite}"))?;
    rule.request_headers.iter().try_for_each(|edit| writeln!(f, "request       {edit}"))?;
    rule.response_headers.iter().try_for_each(|edit| writeln!(f, "response      {edit}"))?;
    if rule.timeout_ms > 0 {
        writeln!(f, "timeout       {} ms", rule.timeout_ms)?;
    }
    Ok(())
}

fn destination(f: &mut Formatter<'_>, destination: &FoundDestination) -> fmt::Result {
    let FoundDestination { percent, cluster, weight, policy, .. } = destination;
    let share = format!("{percent:.1} %");
    writeln!(f, "destination   {share:>7}  {cluster} (weight {weight}, {policy})")?;
    let mut line = |text: &str| writeln!(f, "{:<23}{text}", "");
    if let Some(problem) = &destination.problem {
        line(&format!("503: {problem}"))?;
    }
    if !destination.spoken.protocol.is_empty() {
        line(&format!("speaks {}", destination.spoken))?;
    }
    if !destination.endpoints.is_empty() {
        let more = destination.endpoint_count as usize - destination.endpoints.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        line(&format!("{}{more}", destination.endpoints.join(", ")))?;
    }
    for (what, edits) in [("request", &destination.request_headers), ("response", &destination.response_headers)] {
        edits.iter().try_for_each(|edit| line(&format!("{what}: {edit}")))?;
    }
    Ok(())
}
