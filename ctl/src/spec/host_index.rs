//! Finding by host: an exact name first, then wildcards from the most to the least specific, as Istio does everywhere.

use super::{
    FastMap,
    value::{HostPattern, Hostname},
};

/// Values by the host or wildcard that they are for, each list in the order of insertion.
#[derive(Debug, Clone)]
pub(crate) struct HostIndex<T> {
    exact: FastMap<Hostname, Vec<T>>,
    suffix: FastMap<Hostname, Vec<T>>,
    any: Vec<T>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self { exact: FastMap::default(), suffix: FastMap::default(), any: Vec::new() }
    }
}

impl<T> HostIndex<T> {
    pub(crate) fn insert(&mut self, host: &HostPattern, value: T) {
        match host {
            HostPattern::Exact(host) => self.exact.entry(host.clone()).or_default().push(value),
            HostPattern::Suffix(suffix) => self.suffix.entry(suffix.clone()).or_default().push(value),
            HostPattern::Any => self.any.push(value),
        }
    }

    /// The values for this very host or wildcard.
    pub(crate) fn of(&self, host: &HostPattern) -> &[T] {
        match host {
            HostPattern::Exact(host) => self.of_name(host.as_str()),
            HostPattern::Suffix(suffix) => self.suffix.get(suffix).map_or(&[], Vec::as_slice),
            HostPattern::Any => &self.any,
        }
    }

    /// The values for this very name.
    pub(crate) fn of_name(&self, host: &str) -> &[T] {
        self.exact.get(host).map_or(&[], Vec::as_slice)
    }

    /// The lists of values for all hosts and wildcards that cover `host`, from the most to the least specific.
    pub(crate) fn covering<'i>(&'i self, host: &'i HostPattern) -> impl Iterator<Item = &'i [T]> {
        let (exact, own, name) = match host {
            HostPattern::Exact(name) => (self.of_name(name.as_str()), &[][..], Some(name.as_str())),
            HostPattern::Suffix(suffix) => (&[][..], self.of(host), Some(suffix.as_str())),
            HostPattern::Any => (&[][..], &[][..], None),
        };
        let parents = name.filter(|_| !self.suffix.is_empty()).into_iter().flat_map(move |name| {
            name.match_indices('.').map(move |(at, _)| self.suffix.get(&name[at + 1..]).map_or(&[][..], Vec::as_slice))
        });
        [exact, own].into_iter().chain(parents).chain([self.any.as_slice()]).filter(|list| !list.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Namespace;

    #[test]
    fn the_most_specific_comes_first() {
        let host = |text: &str| HostPattern::resolve(text, &Namespace::default()).unwrap();
        let mut index = HostIndex::default();
        for text in ["*", "*.com", "*.example.com", "api.example.com", "*.other.org"] {
            index.insert(&host(text), text);
        }
        let covering = |text: &str| index.covering(&host(text)).map(|list| list[0]).collect::<Vec<_>>();
        assert_eq!(covering("api.example.com"), ["api.example.com", "*.example.com", "*.com", "*"]);
        assert_eq!(covering("example.com"), ["*.com", "*"], "a wildcard is not for the name without a label before it");
        assert_eq!(covering("*.example.com"), ["*.example.com", "*.com", "*"]);
        assert_eq!(covering("*.api.example.com"), ["*.example.com", "*.com", "*"]);
    }
}
