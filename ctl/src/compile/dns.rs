//! Addresses of names: asked for before compiling, since compiling must neither wait nor depend on anything but its
//! input.

use std::{collections::HashMap, net::IpAddr};

use crate::spec::Hostname;

/// Knows addresses of names.
pub trait Resolve {
    /// All addresses of a name; none where it does not resolve.
    fn addresses(&self, name: &Hostname) -> Vec<IpAddr>;

    /// The one that is used where one at a time is (`DNS_ROUND_ROBIN`).
    fn first(&self, name: &Hostname) -> Option<IpAddr>;
}

/// What was resolved, in the order of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsTable(pub HashMap<Hostname, Vec<IpAddr>>);

impl Resolve for DnsTable {
    /// Sorted, so that an answer in another order is not another table.
    fn addresses(&self, name: &Hostname) -> Vec<IpAddr> {
        let mut addresses = self.0.get(name).cloned().unwrap_or_default();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    fn first(&self, name: &Hostname) -> Option<IpAddr> {
        self.0.get(name)?.first().copied()
    }
}

impl DnsTable {
    /// Takes over new answers. What was the first address stays it while it is in the answer: servers change the order
    /// with every question, and neither is every change of it a generation, nor are connections to be cut by it.
    pub fn extend(&mut self, answers: impl IntoIterator<Item = (Hostname, Vec<IpAddr>)>) {
        for (name, mut addresses) in answers {
            let first = self.first(&name);
            if let Some(position) = addresses.iter().position(|address| Some(*address) == first) {
                addresses.swap(0, position);
            }
            self.0.insert(name, addresses);
        }
    }
}

/// Resolves nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDns;

impl Resolve for NoDns {
    fn addresses(&self, _: &Hostname) -> Vec<IpAddr> {
        Vec::new()
    }

    fn first(&self, _: &Hostname) -> Option<IpAddr> {
        None
    }
}
