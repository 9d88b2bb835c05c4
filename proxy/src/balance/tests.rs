use std::{collections::HashMap, rc::Rc};

use meshring_core::{stats::StatsPage, table::model::BalancePolicy};

use super::*;
use crate::{
    testing::{CLUSTER, World, endpoint},
    worker::generation::{KnownClusters, Pinned},
};

struct Scene {
    pinned: Pinned,
    cluster: Rc<ClusterState>,
    endpoints: Endpoints,
    random: Random,
}

fn scene(policy: BalancePolicy, weights: &[u16]) -> Scene {
    let endpoints = weights.iter().enumerate().map(|(index, &weight)| (endpoint(1 + index as u16), weight)).collect();
    let pinned = Pinned::new(World { endpoints, policy, ..World::default() }.prepare());
    let (_, stats) = StatsPage::create(1).unwrap();
    let cluster = pinned.cluster(CLUSTER, &KnownClusters::new(stats.worker(0)), &Endpoints::default());
    Scene { pinned, cluster, endpoints: Endpoints::default(), random: Random::new(42) }
}

impl Scene {
    fn choose(&self, tried: Option<&Rc<Endpoint>>) -> Option<Rc<Endpoint>> {
        self.cluster.choose(self.pinned.table(), &self.endpoints, &self.random, 0, tried)
    }

    /// How often each port was chosen in so many tries.
    fn shares(&self, tries: usize) -> HashMap<u16, usize> {
        let mut shares = HashMap::new();
        for _ in 0..tries {
            *shares.entry(self.choose(None).unwrap().address().port()).or_default() += 1;
        }
        shares
    }
}

#[test]
fn the_generator_is_uniform_over_any_bound() {
    let random = Random::new(7);
    for bound in [1, 2, 3, 100, 1_000] {
        let mut counts = vec![0_u32; bound as usize];
        (0..bound * 1_000).for_each(|_| counts[random.below(bound) as usize] += 1);
        // 1,000 expected in each: six standard deviations.
        assert!(counts.iter().all(|&count| count.abs_diff(1_000) < 190), "{bound}: {counts:?}");
    }
}

#[test]
fn round_robin_takes_turns() {
    let scene = scene(BalancePolicy::RoundRobin, &[1, 1, 1]);
    let order: Vec<_> = (0..6).map(|_| scene.choose(None).unwrap().address().port()).collect();
    assert_eq!(order, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn weights_are_kept_by_every_policy() {
    for policy in [BalancePolicy::RoundRobin, BalancePolicy::Random] {
        let shares = scene(policy, &[1, 3]).shares(40_000);
        assert!(shares[&1].abs_diff(10_000) < 600, "{policy:?}: {shares:?}");
    }
    // The less loaded of two draws: without load the first draw stands.
    let shares = scene(BalancePolicy::LeastRequest, &[1, 3]).shares(40_000);
    assert!(shares[&1] < shares[&2], "{shares:?}");
}

#[test]
fn a_random_choice_is_even() {
    let shares = scene(BalancePolicy::Random, &[1, 1, 1, 1]).shares(40_000);
    assert!((1..=4).all(|port| shares[&port].abs_diff(10_000) < 600), "{shares:?}");
}

#[test]
fn least_request_avoids_the_loaded_endpoint() {
    let scene = scene(BalancePolicy::LeastRequest, &[1, 1]);
    let loaded = scene.endpoints.of(endpoint(1), None);
    let _load = loaded.pretend_active();
    let shares = scene.shares(1_000);
    assert_eq!(shares, HashMap::from([(2, 1_000)]), "two draws from two endpoints always see both");
}

#[test]
fn an_endpoint_that_refused_is_passed_over_while_there_are_others() {
    let two = scene(BalancePolicy::RoundRobin, &[1, 1]);
    two.endpoints.of(endpoint(1), None).pretend_refused(1);
    assert_eq!(two.shares(100), HashMap::from([(2, 100)]));
    let one = scene(BalancePolicy::RoundRobin, &[1]);
    one.endpoints.of(endpoint(1), None).pretend_refused(1);
    assert_eq!(one.shares(10), HashMap::from([(1, 10)]), "the only one is tried all the same");
}

#[test]
fn a_further_attempt_goes_elsewhere() {
    let scene = scene(BalancePolicy::Random, &[1, 1, 1]);
    let tried = scene.endpoints.of(endpoint(2), None);
    assert!((0..200).all(|_| scene.choose(Some(&tried)).unwrap().address().port() != 2));
}

#[test]
fn no_endpoint_is_no_choice() {
    assert!(scene(BalancePolicy::LeastRequest, &[]).choose(None).is_none());
}
