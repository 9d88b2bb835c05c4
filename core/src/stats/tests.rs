//! The statistics page through two mappings: the proxy's, which is writable, and control's.

use std::{sync::Arc, thread};

use super::{ClusterCounter, ClusterTcp, Counter, GrpcStatus, PeerCounter, StatsPage, TlsCounter, histogram};
use crate::{
    id::Generation,
    limits::{CLUSTER_NAME_BYTES_MAX, CLUSTER_SLOTS, LISTENER_SLOTS, PEER_SLOTS, WORKERS_MAX},
    snapshot::region::{self, BadRegion, Region},
};

fn both(workers: usize) -> (Arc<StatsPage>, StatsPage) {
    let (fd, proxy) = StatsPage::create(workers).expect("a page");
    let control = StatsPage::open(&fd).expect("a sound page");
    (proxy, control)
}

#[test]
fn control_reads_what_each_worker_counts() {
    let (proxy, control) = both(3);
    assert_eq!(control.workers(), 3);
    let workers: Vec<_> = (0..3).map(|worker| proxy.worker(worker)).collect();
    workers[0].add(Counter::Requests, 5);
    workers[2].add(Counter::Requests, 7);
    workers[1].add(Counter::Panics, 1);
    assert_eq!([0, 1, 2].map(|worker| control.counter(worker, Counter::Requests)), [5, 0, 7]);
    assert_eq!(control.total(Counter::Requests), 12);
    assert_eq!(control.total(Counter::Panics), 1);
    assert_eq!(control.total(Counter::Responses2xx), 0);
}

#[test]
fn every_counter_has_a_word_of_its_own_and_a_name_of_its_own() {
    let (proxy, control) = both(2);
    for (index, &counter) in Counter::ALL.iter().enumerate() {
        proxy.worker(1).add(counter, index as u64 + 1);
    }
    for (index, &counter) in Counter::ALL.iter().enumerate() {
        assert_eq!(control.counter(1, counter), index as u64 + 1, "{}", counter.name());
        assert_eq!(control.counter(0, counter), 0);
        assert!(counter.help().ends_with('.'), "{}", counter.help());
    }
    let names: std::collections::HashSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
    assert_eq!(names.len(), Counter::ALL.len());
    assert_eq!(control.durations().iter().sum::<u64>(), 0);
    assert_eq!(control.acknowledged(1), Generation(0));
}

#[test]
fn a_gauge_of_a_connection_that_moves_between_workers_adds_up() {
    let (proxy, control) = both(2);
    proxy.worker(0).add(Counter::ConnectionsActive, 1);
    proxy.worker(1).subtract(Counter::ConnectionsActive, 1);
    proxy.worker(1).add(Counter::ConnectionsActive, 3);
    assert_eq!(control.total(Counter::ConnectionsActive), 3);
    proxy.worker(1).subtract(Counter::ConnectionsActive, 3);
    assert_eq!(control.total(Counter::ConnectionsActive), 0);
}

#[test]
fn acknowledgements_are_per_worker() {
    let (proxy, control) = both(2);
    proxy.worker(1).acknowledge(Generation(9));
    assert_eq!([0, 1].map(|worker| control.acknowledged(worker)), [Generation(0), Generation(9)]);
}

#[test]
fn durations_land_in_the_histogram() {
    let (proxy, control) = both(2);
    for value_us in 1..=1000 {
        proxy.worker(value_us as usize % 2).duration(value_us);
    }
    proxy.worker(0).duration(u64::MAX);
    let counts = control.durations();
    assert_eq!(counts.len(), histogram::BUCKETS);
    assert_eq!(counts.iter().sum::<u64>(), 1001);
    assert_eq!(counts[histogram::BUCKETS - 1], 1, "what is too long for any bucket is in the last");
    assert!((500..=575).contains(&histogram::quantile_us(&counts, 0.5)));
}

#[test]
fn clusters_are_counted_under_their_names() {
    let (proxy, control) = both(2);
    assert!(control.clusters().is_empty());
    let first = proxy.cluster_slot("outbound|9080|v1|reviews.default.svc.cluster.local");
    let second = proxy.cluster_slot("outbound|9080|v2|reviews.default.svc.cluster.local");
    assert_eq!(proxy.cluster_slot("outbound|9080|v1|reviews.default.svc.cluster.local"), first);
    assert_ne!(first, second);
    proxy.worker(0).cluster(first, ClusterCounter::Requests, 80);
    proxy.worker(1).cluster(first, ClusterCounter::Requests, 1);
    proxy.worker(1).cluster(second, ClusterCounter::Requests, 20);
    proxy.worker(1).cluster(second, ClusterCounter::LatencySumUs, 1234);
    assert_eq!(control.clusters()[first], "outbound|9080|v1|reviews.default.svc.cluster.local");
    assert_eq!(control.clusters().len(), 2);
    assert_eq!(control.cluster_total(first, ClusterCounter::Requests), 81);
    assert_eq!(control.cluster_total(second, ClusterCounter::Requests), 20);
    assert_eq!(control.cluster_total(second, ClusterCounter::LatencySumUs), 1234);
    assert_eq!(control.cluster_total(first, ClusterCounter::LatencySumUs), 0);
}

#[test]
fn connections_of_bytes_are_counted_by_cluster() {
    let (fd, proxy) = StatsPage::create(2).unwrap();
    let (first, last) = (proxy.cluster_slot("a"), CLUSTER_SLOTS - 1);
    proxy.worker(0).tcp(first, ClusterTcp::Opened, 1);
    proxy.worker(1).tcp(first, ClusterTcp::Opened, 2);
    proxy.worker(1).tcp(last, ClusterTcp::ConnectFailures, 5);
    proxy.worker(0).tcp(last, ClusterTcp::SentBytes, 7);
    let control = StatsPage::open(fd).unwrap();
    assert_eq!(control.tcp_total(first, ClusterTcp::Opened), 3);
    assert_eq!(control.tcp_total(last, ClusterTcp::ConnectFailures), 5);
    assert_eq!((control.tcp_total(last, ClusterTcp::SentBytes), control.tcp_total(first, ClusterTcp::Closed)), (7, 0));
}

#[test]
fn handshakes_are_counted_by_listener_and_by_cluster() {
    let (proxy, control) = both(2);
    let cluster = proxy.cluster_slot("a");
    proxy.worker(0).listener_tls(0, TlsCounter::Kernel);
    proxy.worker(1).listener_tls(0, TlsCounter::Kernel);
    proxy.worker(1).listener_tls(1, TlsCounter::Userspace);
    proxy.worker(0).cluster_tls(cluster, TlsCounter::Refused);
    proxy.worker(1).cluster_tls(CLUSTER_SLOTS - 1, TlsCounter::Refused);
    // Beyond the last slot they share it.
    proxy.worker(1).listener_tls(LISTENER_SLOTS - 1, TlsCounter::Resumed);
    proxy.worker(1).listener_tls(LISTENER_SLOTS + 7, TlsCounter::Resumed);
    let all = [TlsCounter::Kernel, TlsCounter::Userspace, TlsCounter::Resumed, TlsCounter::Refused];
    let listener = |index| all.map(|counter| control.listener_tls_total(index, counter));
    assert_eq!([listener(0), listener(1)], [[2, 0, 0, 0], [0, 1, 0, 0]]);
    assert_eq!([listener(LISTENER_SLOTS - 1), listener(LISTENER_SLOTS)], [[0, 0, 2, 0]; 2]);
    let clusters = [cluster, CLUSTER_SLOTS - 1].map(|slot| all.map(|counter| control.cluster_tls_total(slot, counter)));
    assert_eq!(clusters, [[0, 0, 0, 1]; 2]);
}

#[test]
fn grpc_calls_are_counted_by_cluster_and_status() {
    let (proxy, control) = both(2);
    let [first, last] = [proxy.cluster_slot("a"), CLUSTER_SLOTS - 1];
    proxy.worker(0).grpc(first, GrpcStatus::new(0));
    proxy.worker(1).grpc(first, GrpcStatus::new(0));
    proxy.worker(1).grpc(last, GrpcStatus::UNKNOWN);
    let counts = |slot| GrpcStatus::all().map(|status| control.grpc_total(slot, status)).collect::<Vec<_>>();
    let (mut of_first, mut of_last) = ([0; GrpcStatus::COUNT], [0; GrpcStatus::COUNT]);
    (of_first[0], of_last[17]) = (2, 1);
    assert_eq!((counts(first), counts(last)), (of_first.to_vec(), of_last.to_vec()));
}

#[test]
fn a_grpc_status_is_one_that_grpc_defines_or_unknown() {
    for code in 0..=16_u8 {
        assert_eq!(GrpcStatus::parse(code.to_string().as_bytes()), GrpcStatus::new(code));
        assert_eq!(GrpcStatus::new(code).to_string(), code.to_string());
    }
    for value in ["", "17", "-1", "00", "1 ", "OK", "100"] {
        assert_eq!(GrpcStatus::parse(value.as_bytes()), GrpcStatus::UNKNOWN, "{value:?}");
    }
    assert_eq!((GrpcStatus::new(99), GrpcStatus::UNKNOWN.to_string()), (GrpcStatus::UNKNOWN, "unknown".into()));
}

#[test]
fn clusters_beyond_the_last_slot_share_the_slot_other() {
    let (proxy, control) = both(1);
    let slots: Vec<_> = (0..CLUSTER_SLOTS + 10).map(|i| proxy.cluster_slot(&format!("cluster-{i}"))).collect();
    assert!(slots[..CLUSTER_SLOTS - 1].iter().copied().eq(0..CLUSTER_SLOTS - 1));
    assert!(slots[CLUSTER_SLOTS - 1..].iter().all(|&slot| slot == CLUSTER_SLOTS - 1));
    let names = control.clusters();
    assert_eq!(names.len(), CLUSTER_SLOTS);
    assert_eq!((names[0].as_str(), names[CLUSTER_SLOTS - 1].as_str()), ("cluster-0", "other"));
    assert_eq!(names[CLUSTER_SLOTS - 2], format!("cluster-{}", CLUSTER_SLOTS - 2));
    // The last slot is in bounds for every counter of the last worker.
    proxy.worker(0).cluster(CLUSTER_SLOTS - 1, ClusterCounter::LatencySumUs, 1);
    assert_eq!(control.cluster_total(CLUSTER_SLOTS - 1, ClusterCounter::LatencySumUs), 1);
}

#[test]
fn a_long_name_is_cut_between_characters() {
    let (proxy, control) = both(1);
    proxy.cluster_slot(&"x".repeat(CLUSTER_NAME_BYTES_MAX + 50));
    proxy.cluster_slot(&"é".repeat(CLUSTER_NAME_BYTES_MAX));
    proxy.cluster_slot(&format!("x{}", "é".repeat(CLUSTER_NAME_BYTES_MAX)));
    proxy.cluster_slot("");
    let names = control.clusters();
    assert_eq!(names[0], "x".repeat(CLUSTER_NAME_BYTES_MAX));
    assert_eq!(names[1], "é".repeat(CLUSTER_NAME_BYTES_MAX / 2));
    assert_eq!(names[2], format!("x{}", "é".repeat((CLUSTER_NAME_BYTES_MAX - 1) / 2)));
    assert_eq!(names[3], "");
}

#[test]
fn workers_count_at_the_same_time_without_losing_one() {
    let (proxy, control) = both(4);
    let threads: Vec<_> = (0..4)
        .map(|worker| {
            let slots = proxy.worker(worker);
            thread::spawn(move || {
                for _ in 0..10_000 {
                    slots.add(Counter::Requests, 1);
                    slots.duration(17);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!(control.total(Counter::Requests), 40_000);
    assert_eq!(control.durations()[histogram::bucket(17)], 40_000);
}

#[test]
fn the_number_of_workers_is_bounded() {
    assert_eq!(both(0).1.workers(), 1);
    let (proxy, control) = both(WORKERS_MAX + 1);
    assert_eq!(control.workers(), WORKERS_MAX);
    proxy.worker(WORKERS_MAX - 1).cluster(CLUSTER_SLOTS - 1, ClusterCounter::LatencySumUs, 3);
    assert_eq!(control.cluster_total(CLUSTER_SLOTS - 1, ClusterCounter::LatencySumUs), 3);
}

#[test]
fn a_foreign_page_is_refused() {
    let (fd, page) = StatsPage::create(1).expect("a page");
    let len = usize::try_from(rustix::fs::fstat(&fd).expect("a memfd").st_size).expect("small");
    drop(page);
    let (blank, _region) = Region::create("test", len).expect("a page");
    let refused = StatsPage::open(&blank).expect_err("without magic");
    assert_eq!(refused.to_string(), "statistics page: this is no statistics page of this version");
    let (small, _region) = Region::create("test", 4096).expect("a page");
    assert!(matches!(StatsPage::open(&small), Err(BadRegion::Size { .. })));
    let sealed = region::sealed("test", &[&vec![0; len]]).expect("a memfd");
    assert!(matches!(StatsPage::open(&sealed), Err(BadRegion::NotSealed)));
}

#[test]
fn peers_are_counted_by_identity_and_beyond_the_last_slot_as_other() {
    let (proxy, control) = both(2);
    assert_eq!(control.peers(), []);
    let slots: Vec<_> = (0..PEER_SLOTS + 10).map(|i| proxy.peer_slot(&format!("spiffe://a/ns/b/sa/{i}"))).collect();
    assert_eq!(proxy.peer_slot("spiffe://a/ns/b/sa/1"), slots[1]);
    assert_ne!(slots[0], slots[1]);
    assert!(slots[PEER_SLOTS - 1..].iter().all(|&slot| slot == slots[PEER_SLOTS - 1]));
    proxy.worker(0).peer(slots[1], PeerCounter::Requests);
    proxy.worker(1).peer(slots[1], PeerCounter::Requests);
    proxy.worker(1).peer(slots[1], PeerCounter::UpstreamConnections);
    proxy.worker(1).peer(slots[PEER_SLOTS + 5], PeerCounter::UpstreamConnections);
    let seen = control.peers();
    assert_eq!(seen.len(), PEER_SLOTS);
    assert_eq!(seen[1], (slots[1], "spiffe://a/ns/b/sa/1".into()));
    let last = &seen[PEER_SLOTS - 1];
    assert_eq!(last.1, "other");
    assert_eq!(control.peer_total(slots[1], PeerCounter::Requests), 2);
    assert_eq!(control.peer_total(slots[0], PeerCounter::Requests), 0);
    assert_eq!([slots[1], last.0].map(|slot| control.peer_total(slot, PeerCounter::UpstreamConnections)), [1, 1]);
    // They are nobody else's words.
    assert_eq!(control.cluster_tls_total(CLUSTER_SLOTS - 1, TlsCounter::Refused), 0);
    assert_eq!(control.acknowledged(1).0, 0);
    // What looks the same in the page is the same.
    let (proxy, _) = both(1);
    let long = "x".repeat(CLUSTER_NAME_BYTES_MAX);
    assert_eq!(proxy.peer_slot(&format!("{long}a")), proxy.peer_slot(&format!("{long}b")));
}
