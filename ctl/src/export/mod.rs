//! Statistics for others: a JSON picture for `meshring top`, and the Prometheus text format.

pub mod bypass;
pub mod certificates;
pub mod principals;
pub mod prometheus;

use std::collections::BTreeMap;

use meshring_core::{
    id::Generation,
    limits::LISTENER_SLOTS,
    link::Hello,
    stats::{ClusterCounter, ClusterTcp, Counter, GrpcStatus, StatsPage, TlsCounter},
};
use serde::{Deserialize, Serialize};

use crate::control::fleet::{Fleet, Proxy};

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
    /// Its SPIFFE id, where it was given one.
    #[serde(default)]
    pub identity: Option<String>,
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
    /// One per listener, in the order of the command line.
    #[serde(default)]
    pub listeners: Vec<ListenerStats>,
    /// One per cluster that has had traffic.
    pub clusters: Vec<ClusterStats>,
}

/// TLS handshakes of one listener's clients, or with one cluster's endpoints, since the proxy has started. A connection has kernel
/// TLS in both directions or in neither.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStats {
    /// Those after which the kernel seals and opens the records.
    pub kernel: u64,
    /// Those after which the proxy does.
    pub userspace: u64,
    /// Of both, those that resumed an earlier session.
    pub resumed: u64,
    /// Those that failed or were refused.
    pub refused: u64,
}

impl TlsStats {
    fn of(total: impl Fn(TlsCounter) -> u64) -> Self {
        Self {
            kernel: total(TlsCounter::Kernel),
            userspace: total(TlsCounter::Userspace),
            resumed: total(TlsCounter::Resumed),
            refused: total(TlsCounter::Refused),
        }
    }

    /// Whether there was none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One listener's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStats {
    /// `inbound 127.0.0.1:15006=127.0.0.1:9080`; `others` for those beyond the statistics' last place of their own.
    pub listener: String,
    /// Handshakes of its clients.
    pub tls: TlsStats,
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
    /// Handshakes with its endpoints.
    #[serde(default)]
    pub tls: TlsStats,
}

impl Stats {
    /// Reads every page. `identities` are those of [`crate::control::materials::Materials::identities`].
    #[must_use]
    pub fn read(fleet: &Fleet, identities: &BTreeMap<(String, String, u32), String>) -> Self {
        let identity =
            |hello: &Hello| identities.get(&(hello.namespace.clone(), hello.workload.clone(), hello.pid)).cloned();
        let proxies = fleet.proxies();
        let proxies = proxies.iter().map(|proxy| ProxyStats {
            proxy: format!("{}/{}", proxy.hello.namespace, proxy.hello.workload),
            pid: proxy.hello.pid,
            identity: identity(&proxy.hello),
            requests: proxy.stats.total(Counter::Requests),
            responses_5xx: proxy.stats.total(Counter::Responses5xx),
            connections_active: proxy.stats.total(Counter::ConnectionsActive),
            tls_handshakes: sum(&proxy.stats, &[Counter::TlsHandshakes, Counter::TlsUpstream]),
            tls_refused: sum(&proxy.stats, &[Counter::TlsRefused, Counter::TlsUpstreamFailures, Counter::TlsRequired]),
            access_denied: proxy.stats.total(Counter::AccessDenied),
            jwt_refused: proxy.stats.total(Counter::JwtRefused),
            durations: proxy.stats.durations(),
            bypass: None,
            listeners: listeners(proxy),
            clusters: clusters(&proxy.stats),
        });
        Self { at_ns: meshring_core::clock::monotonic_ns(), generation: fleet.active(), proxies: proxies.collect() }
    }
}

fn sum(page: &StatsPage, counters: &[Counter]) -> u64 {
    counters.iter().map(|counter| page.total(*counter)).sum()
}

/// As the proxy has described them in its greeting, by their position there.
pub(crate) fn listeners(proxy: &Proxy) -> Vec<ListenerStats> {
    let described = &proxy.hello.listeners;
    let is_shared = described.len() > LISTENER_SLOTS;
    let names = described.iter().take(LISTENER_SLOTS).enumerate().map(|(index, listener)| match index {
        last if last == LISTENER_SLOTS - 1 && is_shared => (last, "others".to_owned()),
        index => (index, listener.clone()),
    });
    let stats = names.map(|(index, listener)| ListenerStats {
        listener,
        tls: TlsStats::of(|counter| proxy.stats.listener_tls_total(index, counter)),
    });
    stats.collect()
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
        tls: TlsStats::of(|counter| page.cluster_tls_total(slot, counter)),
    });
    stats.collect()
}
