//! Addresses of names: asked for before compiling, since compiling must neither wait nor depend on anything but its
//! input.

use std::{collections::HashMap, net::IpAddr};

use crate::spec::Hostname;

/// Knows addresses of names.
pub trait Resolve {
    /// All addresses of a name; none where it does not resolve.
    fn addresses(&self, name: &Hostname) -> Vec<IpAddr>;
}

/// What was resolved.
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
}

/// Resolves nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDns;

impl Resolve for NoDns {
    fn addresses(&self, _: &Hostname) -> Vec<IpAddr> {
        Vec::new()
    }
}
