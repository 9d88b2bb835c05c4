//! What differs between two sets of resources, by resource and by line.

use std::{cmp::Ordering, fmt};

use crate::spec::{Key, Place, Resource};

/// What happens to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// It is new.
    Created,
    /// It says something else than before.
    Configured,
    /// It says what it said before.
    Unchanged,
    /// It is gone.
    Deleted,
    /// What was applied is gone; the one of the configuration files takes effect again.
    Restored,
}

impl Verb {
    /// As `apply` prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Restored => "restored",
        }
    }
}

/// One resource that changes, or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// How.
    pub verb: Verb,
    /// Which.
    pub key: Key,
    /// Where it stands now; for a deleted one, where it stood.
    pub place: Place,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb.as_str(), self.key)
    }
}

/// What changes between two sets, both sorted by key. Unchanged ones are left out.
#[must_use]
pub fn between(before: &[Resource], after: &[Resource]) -> Vec<Change> {
    let change = |verb, resource: &Resource| Change { verb, key: resource.key.clone(), place: resource.place.clone() };
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let mut changes = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.key.cmp(&b.key),
        };
        let (gone, come) = match order {
            Ordering::Less => (old.next(), None),
            Ordering::Greater => (None, new.next()),
            Ordering::Equal => (old.next(), new.next()),
        };
        match (gone, come) {
            (Some(a), Some(b)) if !a.means_the_same_as(b) => changes.push(change(Verb::Configured, b)),
            (Some(a), None) => changes.push(change(Verb::Deleted, a)),
            (None, Some(b)) => changes.push(change(Verb::Created, b)),
            _ => {}
        }
    }
}

/// A unified diff of a resource as it is live and as it would be; empty where both say the same.
#[must_use]
pub fn unified(live: Option<&Resource>, new: &Resource) -> String {
    if live.is_some_and(|live| live.means_the_same_as(new)) {
        return String::new();
    }
    let before = live.map(|live| live.raw.document()).unwrap_or_default();
    let after = new.raw.document();
    let from = live
        .map_or_else(|| format!("{} (not there yet)", new.key), |live| format!("{} (live, {})", live.key, live.place));
    let to = format!("{} ({})", new.key, new.place);
    let diff = similar::TextDiff::from_lines(&before, &after);
    diff.unified_diff().context_radius(3).header(&from, &to).to_string()
}
