//! Figures, their bounds, and what they come to.

use std::fmt;

use serde::Serialize;

use super::site::Phase;
use super::{Drill, HostileArgs};

/// One figure of a drill.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    /// What it is about, where a drill has several attacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    name: &'static str,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
    passed: bool,
}

/// The result of a drill.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    drill: String,
    connections: usize,
    pub(super) passed: bool,
    figures: Vec<Figure>,
    #[serde(skip)]
    group: Option<String>,
}

impl Report {
    pub(super) fn new(drill: Drill, connections: usize) -> Self {
        Self { drill: format!("{drill:?}"), connections, passed: true, figures: Vec::new(), group: None }
    }

    /// The figures from now on are about this one of several attacks.
    pub(super) fn begin_group(&mut self, name: &str) {
        self.group = Some(name.to_owned());
    }

    fn push(&mut self, name: &'static str, value: f64, unit: &'static str, least: Option<f64>, most: Option<f64>) {
        // What cannot be compared is out of bounds.
        let within = |bound: Option<f64>, holds: fn(f64, f64) -> bool| bound.is_none_or(|bound| holds(value, bound));
        let passed = within(least, |value, bound| value >= bound) && within(most, |value, bound| value <= bound);
        self.passed &= passed;
        self.figures.push(Figure {
            group: self.group.clone(),
            name,
            value,
            unit,
            at_least: least,
            at_most: most,
            passed,
        });
    }

    /// A figure without a bound.
    pub(super) fn tell(&mut self, name: &'static str, value: f64, unit: &'static str) {
        self.push(name, value, unit, None, None);
    }

    pub(super) fn at_most(&mut self, name: &'static str, value: f64, unit: &'static str, most: f64) {
        self.push(name, value, unit, None, Some(most));
    }

    pub(super) fn at_least(&mut self, name: &'static str, value: f64, unit: &'static str, least: f64) {
        self.push(name, value, unit, Some(least), None);
    }

    pub(super) fn between(&mut self, name: &'static str, value: f64, unit: &'static str, least: f64, most: f64) {
        self.push(name, value, unit, Some(least), Some(most));
    }

    /// What the normal load has met meanwhile: that there was as much of it as was asked for, and that each request was answered with
    /// a 2xx and the right body.
    pub(super) fn others(&mut self, args: &HostileArgs, phases: &[&Phase]) {
        let rates = phases.iter().map(|phase| phase.requests_per_s());
        let least = rates.fold(f64::INFINITY, f64::min);
        self.at_least("others' requests a second", least, "", args.rate_least());
        let failed = phases.iter().map(|phase| phase.load.failed).sum::<u64>();
        self.at_most("others' failures", failed as f64, "requests", 0.0);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} connections: {}", self.drill, self.connections, verdict(self.passed))?;
        let mut before = None;
        for Figure { group, name, value, unit, at_least, at_most, passed } in &self.figures {
            if *group != before {
                writeln!(f, " {}", group.as_deref().unwrap_or_default())?;
                before.clone_from(group);
            }
            write!(f, "  {name}: {value:.2} {unit}")?;
            match (at_least, at_most) {
                (None, None) => writeln!(f)?,
                (Some(least), None) => writeln!(f, " (at least {least}: {})", verdict(*passed))?,
                (None, Some(most)) => writeln!(f, " (at most {most}: {})", verdict(*passed))?,
                (Some(least), Some(most)) => writeln!(f, " ({least} to {most}: {})", verdict(*passed))?,
            }
        }
        Ok(())
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_figure_out_of_bounds_fails_the_drill() {
        let mut report = Report::new(Drill::Hosts, 1);
        report.tell("told", 1e9, "s");
        report.at_most("equal", 1.0, "", 1.0);
        report.between("between", 0.0, "s", -1.0, 1.0);
        assert!(report.passed, "{report}");
        report.at_least("none", f64::NAN, "", 1.0);
        assert!(!report.passed, "{report}");
        let text = report.to_string();
        assert!(
            text.contains("none: NaN  (at least 1: FAILED)") && text.contains("Hosts, 1 connections: FAILED"),
            "{text}"
        );
    }
}
