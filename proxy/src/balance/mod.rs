//! Choosing an endpoint. State lives per worker beside the table: the table itself never changes.

use std::{cell::Cell, cell::RefCell, net::SocketAddr, rc::Rc};

use meshring_core::{
    id::EndpointId,
    table::model::{ArchivedBalancePolicy, ArchivedCluster, ArchivedTable, Reach},
};

use crate::{
    upstream::{Endpoint, Endpoints, Security},
    worker::generation::ClusterShared,
};

/// A small fast generator (xorshift64*): load balancing needs spread, not secrecy.
#[derive(Debug)]
pub(crate) struct Random(Cell<u64>);

impl Random {
    /// Seeded per worker; 0 would be a fixed point.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Cell::new(seed | 1))
    }

    /// Sixteen bytes, for what must differ but is no secret.
    pub(crate) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for part in bytes.chunks_exact_mut(4) {
            part.copy_from_slice(&self.below(u32::MAX).to_ne_bytes());
        }
        bytes
    }

    /// Below `bound`, which is at least 1.
    #[inline]
    pub(crate) fn below(&self, bound: u32) -> u32 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        // The upper half of the product with an odd constant, scaled by multiplication: no division, bias below 2^-32.
        let value = x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((value * u64::from(bound)) >> 32) as u32
    }
}

/// A cluster as one worker uses it in one generation.
#[derive(Debug)]
pub(crate) struct ClusterState {
    pub(crate) shared: Rc<ClusterShared>,
    policy: ArchivedBalancePolicy,
    ids: Ids,
    security: Security,
    /// Filled as endpoints are first chosen: a cluster of 100,000 endpoints costs only what it uses.
    endpoints: RefCell<Vec<Option<Rc<Endpoint>>>>,
    /// Running sums of the weights where these differ.
    weight_sums: Option<Vec<u32>>,
}

#[derive(Debug)]
enum Ids {
    Range(u32),
    Selection(Vec<EndpointId>),
}

impl ClusterState {
    /// For a cluster of a table.
    pub(crate) fn new(
        table: &ArchivedTable,
        cluster: &ArchivedCluster,
        shared: Rc<ClusterShared>,
        security: Security,
    ) -> Self {
        let count = cluster.count.to_native();
        let ids = if cluster.selected {
            Ids::Selection((0..count).map(|position| table.endpoint_of(cluster, position)).collect())
        } else {
            Ids::Range(cluster.first.to_native())
        };
        let weight_sums = cluster.weighted.then(|| {
            (0..count)
                .scan(0_u32, |sum, position| {
                    let id = table.endpoint_of(cluster, position);
                    *sum = sum.saturating_add(table.weight(id));
                    Some(*sum)
                })
                .collect()
        });
        let endpoints = RefCell::new(vec![None; count as usize]);
        Self { shared, policy: cluster.policy, ids, security, endpoints, weight_sums }
    }

    /// For an address that is not the table's: nothing is known of a sidecar there.
    pub(crate) fn elsewhere(&self, known: &Endpoints, address: SocketAddr) -> Rc<Endpoint> {
        known.of(address, self.security.of(false))
    }

    /// The endpoint of an address; `None` where it has none.
    pub(crate) fn at(&self, table: &ArchivedTable, known: &Endpoints, address: SocketAddr) -> Option<Rc<Endpoint>> {
        let count = self.endpoints.borrow().len() as u32;
        let position = (0..count).find(|&position| table.address(self.id(position)) == address)?;
        Some(self.endpoint(table, known, position))
    }

    fn id(&self, position: u32) -> EndpointId {
        match &self.ids {
            Ids::Range(first) => EndpointId(first + position),
            Ids::Selection(ids) => ids[position as usize],
        }
    }

    fn endpoint(&self, table: &ArchivedTable, known: &Endpoints, position: u32) -> Rc<Endpoint> {
        let mut endpoints = self.endpoints.borrow_mut();
        let entry = &mut endpoints[position as usize];
        let make = || {
            let id = self.id(position);
            let (address, reach) = (table.address(id), table.reach(id));
            match self.security.tunnel(reach) {
                Some(origination) => known.through_tunnel(address, origination),
                None => known.of(address, self.security.of(reach != Reach::Plain)),
            }
        };
        Rc::clone(entry.get_or_insert_with(make))
    }

    /// A position by the cluster's weights from a number below their sum.
    fn by_weight(sums: &[u32], ticket: u32) -> u32 {
        sums.partition_point(|&sum| sum <= ticket) as u32
    }

    fn one(&self, random: &Random, count: u32) -> u32 {
        match &self.weight_sums {
            Some(sums) => Self::by_weight(sums, random.below(sums.last().copied().unwrap_or(1))),
            None => random.below(count),
        }
    }

    fn next_in_turn(&self, count: u32) -> u32 {
        let turn = self.shared.cursor.get();
        self.shared.cursor.set(turn.wrapping_add(1));
        match &self.weight_sums {
            // A stride by the golden ratio visits each share of the sum in proportion, without runs.
            Some(sums) => {
                let sum = u64::from(sums.last().copied().unwrap_or(1));
                let ticket = (u64::from(turn.wrapping_mul(0x9e37_79b9)) * sum) >> 32;
                Self::by_weight(sums, ticket as u32)
            }
            None => turn % count,
        }
    }

    /// Chooses by policy. Endpoints that have just refused a connection, and `tried`, are passed over where there are
    /// others. `None`: the cluster has no endpoint.
    pub(crate) fn choose(
        &self,
        table: &ArchivedTable,
        known: &Endpoints,
        random: &Random,
        now_ms: u64,
        tried: Option<&Rc<Endpoint>>,
    ) -> Option<Rc<Endpoint>> {
        let count = self.endpoints.borrow().len() as u32;
        if count == 0 {
            return None;
        }
        let usable = |endpoint: &Rc<Endpoint>| {
            !endpoint.avoided(now_ms) && tried.is_none_or(|other| !Rc::ptr_eq(other, endpoint))
        };
        let first = self.by_policy(table, known, random, count);
        if count == 1 || usable(&first) {
            return Some(first);
        }
        // From a random start, so that the neighbour of a dead endpoint does not inherit all of its load. Bounded: in
        // a large cluster that is mostly down the connect deadline decides, not a scan.
        let start = random.below(count);
        let others = (0..count.min(64)).map(|step| self.endpoint(table, known, (start + step) % count));
        others.into_iter().find(usable).or(Some(first))
    }

    fn by_policy(&self, table: &ArchivedTable, known: &Endpoints, random: &Random, count: u32) -> Rc<Endpoint> {
        match self.policy {
            ArchivedBalancePolicy::RoundRobin => self.endpoint(table, known, self.next_in_turn(count)),
            ArchivedBalancePolicy::Random => self.endpoint(table, known, self.one(random, count)),
            ArchivedBalancePolicy::LeastRequest => {
                let a = self.one(random, count);
                let mut b = self.one(random, count);
                if a == b {
                    b = (b + 1) % count;
                }
                let (a, b) = (self.endpoint(table, known, a), self.endpoint(table, known, b));
                if b.active() < a.active() { b } else { a }
            }
        }
    }
}

#[cfg(test)]
mod tests;
