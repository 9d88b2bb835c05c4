//! Statistics for others: a JSON picture for `meshring top`, and the Prometheus text format.

pub mod bypass;
pub mod certificates;
pub mod prometheus;

use meshring_core::{
    id::Generation,
    stats::{ClusterCounter, ClusterTcp, Counter, GrpcStatus, StatsPage},
};
use serde::{Deserialize, Serialize};

use crate::control::fleet::Fleet;

/// All proxies' counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// When they were read, in nanoseconds of the monotonic clock: rates are differences.
    pub at_ns: u64,
    /// The active generation.
    pub generation: Generation,
    /// One per connected proxy.
    pub proxies: Vec<ProxyStats>,
}

/// One proxy's counters, summed over its workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStats {
    /// `NAMESPACE/NAME`.
    pub proxy: String,
    /// Its process id.
    pub pid: u32,
    /// Requests whose head was understood.
    pub requests: u64,
    /// Responses with status 500 to 599.
    pub responses_5xx: u64,
    /// Downstream connections that are open.
    pub connections_active: u64,
    /// TLS handshakes that clients have begun, and those with upstreams.
    #[serde(default)]
    pub tls_handshakes: u64,
    /// TLS handshakes that failed on either side, and plain requests where TLS is required.
    #[serde(default)]
    pub tls_refused: u64,
    /// Requests that an AuthorizationPolicy denies.
    #[serde(default)]
    pub access_denied: u64,
    /// Requests with a token that is not valid.
    #[serde(default)]
    pub jwt_refused: u64,
    /// Request durations: counts per bucket of the core's histogram.
    pub durations: Vec<u64>,
    /// Connections and bytes by path, while it is registered for the bypass.
    #[serde(default)]
    pub bypass: Option<crate::bypass::Counters>,
    /// One per cluster that has had traffic.
    pub clusters: Vec<ClusterStats>,
}

/// One cluster's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStats {
    /// `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub cluster: String,
    /// Requests sent to it.
    pub requests: u64,
    /// Responses with status 500 to 599 and requests without any response.
    pub failures: u64,
    /// Sum of response times, in microseconds.
    pub latency_sum_us: u64,
    /// gRPC calls that ended with another status than 0, or without one.
    #[serde(default)]
    pub grpc_errors: u64,
    /// Connections to it that were passed on as bytes.
    #[serde(default)]
    pub tcp_opened: u64,
    /// Of them, those that have ended.
    #[serde(default)]
    pub tcp_closed: u64,
    /// Connections of bytes that could not be made to it.
    #[serde(default)]
    pub tcp_connect_failures: u64,
    /// Bytes of them from clients.
    #[serde(default)]
    pub tcp_received_bytes: u64,
    /// Bytes of them to clients.
    #[serde(default)]
    pub tcp_sent_bytes: u64,
}

impl Stats {
    /// Reads every page.
    #[must_use]
    pub fn read(fleet: &Fleet) -> Self {
        let proxies = fleet.proxies();
        let proxies = proxies.iter().map(|proxy| ProxyStats {
            proxy: format!("{}/{}", proxy.hello.namespace, proxy.hello.workload),
            pid: proxy.hello.pid,
            requests: proxy.stats.total(Counter::Requests),
            responses_5xx: proxy.stats.total(Counter::Responses5xx),
            connections_active: proxy.stats.total(Counter::ConnectionsActive),
            tls_handshakes: sum(&proxy.stats, &[Counter::TlsHandshakes, Counter::TlsUpstream]),
            tls_refused: sum(&proxy.stats, &[Counter::TlsRefused, Counter::TlsUpstreamFailures, Counter::TlsRequired]),
            access_denied: proxy.stats.total(Counter::AccessDenied),
            jwt_refused: proxy.stats.total(Counter::JwtRefused),
            durations: proxy.stats.durations(),
            bypass: None,
            clusters: clusters(&proxy.stats),
        });
        Self { at_ns: meshring_core::clock::monotonic_ns(), generation: fleet.active(), proxies: proxies.collect() }
    }
}

fn sum(page: &StatsPage, counters: &[Counter]) -> u64 {
    counters.iter().map(|counter| page.total(*counter)).sum()
}

fn clusters(page: &StatsPage) -> Vec<ClusterStats> {
    let names = page.clusters().into_iter().enumerate();
    let stats = names.filter(|(_, name)| !name.is_empty()).map(|(slot, cluster)| ClusterStats {
        cluster,
        requests: page.cluster_total(slot, ClusterCounter::Requests),
        failures: page.cluster_total(slot, ClusterCounter::Responses5xx)
            + page.cluster_total(slot, ClusterCounter::Failures),
        latency_sum_us: page.cluster_total(slot, ClusterCounter::LatencySumUs),
        grpc_errors: GrpcStatus::all()
            .filter(|status| status.is_error())
            .map(|status| page.grpc_total(slot, status))
            .sum(),
        tcp_opened: page.tcp_total(slot, ClusterTcp::Opened),
        tcp_closed: page.tcp_total(slot, ClusterTcp::Closed),
        tcp_connect_failures: page.tcp_total(slot, ClusterTcp::ConnectFailures),
        tcp_received_bytes: page.tcp_total(slot, ClusterTcp::ReceivedBytes),
        tcp_sent_bytes: page.tcp_total(slot, ClusterTcp::SentBytes),
    });
    stats.collect()
}
