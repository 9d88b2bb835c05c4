//! The Prometheus text format (version 0.0.4). Names and help come from `core::stats`; label values come from
//! configuration and proxies' greetings, never from requests, so the number of series is bounded.

use std::fmt::Write as _;

use meshring_core::stats::{ClusterCounter, ClusterTcp, Counter, GrpcStatus, StatsPage, histogram};

use super::{TlsStats, clusters as cluster_stats, listeners};

use crate::control::{
    fleet::{Fleet, Proxy},
    view::View,
};

/// Cluster counters: metric, value of the label `class` (or none), counter.
const CLUSTER_RESPONSES: [(&str, ClusterCounter); 4] = [
    ("2xx", ClusterCounter::Responses2xx),
    ("3xx", ClusterCounter::Responses3xx),
    ("4xx", ClusterCounter::Responses4xx),
    ("5xx", ClusterCounter::Responses5xx),
];

/// Of connections that are passed on as bytes, under the names that Istio has for them: metric, help, counter.
const CLUSTER_TCP: [(&str, &str, ClusterTcp); 5] = [
    ("cluster_tcp_connections_opened_total", "Connections of bytes opened to a cluster.", ClusterTcp::Opened),
    ("cluster_tcp_connections_closed_total", "Of them, those that have ended.", ClusterTcp::Closed),
    (
        "cluster_tcp_connect_failures_total",
        "Connections of bytes that a cluster refused, or that timed out, or whose TLS failed.",
        ClusterTcp::ConnectFailures,
    ),
    (
        "cluster_tcp_received_bytes_total",
        "Bytes from clients that were passed on over connections of bytes.",
        ClusterTcp::ReceivedBytes,
    ),
    ("cluster_tcp_sent_bytes_total", "Bytes that were passed on to clients over them.", ClusterTcp::SentBytes),
];

/// All metrics of the node.
#[must_use]
pub fn render(fleet: &Fleet, view: &View) -> String {
    let mut text = String::with_capacity(16 * 1024);
    let proxies = fleet.proxies();
    control_metrics(&mut text, fleet, view, &proxies);
    for &counter in Counter::ALL {
        worker_counter(&mut text, counter, &proxies);
    }
    durations(&mut text, &proxies);
    clusters(&mut text, &proxies);
    grpc(&mut text, &proxies);
    tcp(&mut text, &proxies);
    tls(&mut text, &proxies);
    text
}

pub(super) fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail; the same holds below.
    let _ = writeln!(text, "# HELP meshring_{name} {}", help.replace('\\', "\\\\").replace('\n', "\\n"));
    let _ = writeln!(text, "# TYPE meshring_{name} {kind}");
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    head(text, name, "gauge", help);
    let _ = writeln!(text, "meshring_{name} {value}");
}

fn control_metrics(text: &mut String, fleet: &Fleet, view: &View, proxies: &[Proxy]) {
    gauge(text, "generation_active", "Generation that control has made active.", fleet.active().0);
    gauge(
        text,
        "config_valid",
        "1 while the configuration files on disk are in effect.",
        view.problem.is_none().into(),
    );
    gauge(
        text,
        "rolled_back",
        "1 while the active generation is older than what the files say.",
        view.state.rolled_back.is_some().into(),
    );
    gauge(text, "resources", "Resources in effect.", view.world.resources().len() as u64);
    gauge(text, "proxies", "Connected proxies.", proxies.len() as u64);
    head(text, "proxy_stale", "gauge", "1 while a proxy has not answered for a generation in time.");
    for proxy in proxies {
        let _ = writeln!(text, "meshring_proxy_stale{{{}}} {}", labels(proxy), u8::from(proxy.stale.is_some()));
    }
    head(text, "worker_generation", "gauge", "Generation that a worker's new requests run on.");
    for proxy in proxies {
        for (worker, generation) in proxy.worker_generations().into_iter().enumerate() {
            let _ = writeln!(text, "meshring_worker_generation{{{},worker=\"{worker}\"}} {generation}", labels(proxy));
        }
    }
}

/// `proxy="default/reviews",pid="12"`: two proxies of one workload are told apart by their process.
pub(super) fn labels(proxy: &Proxy) -> String {
    let hello = &proxy.hello;
    format!("proxy=\"{}/{}\",pid=\"{}\"", escape(&hello.namespace), escape(&hello.workload), hello.pid)
}

pub(super) fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn worker_counter(text: &mut String, counter: Counter, proxies: &[Proxy]) {
    let is_counter = counter.name().ends_with("_total");
    head(text, counter.name(), if is_counter { "counter" } else { "gauge" }, counter.help());
    for proxy in proxies {
        for worker in 0..proxy.workers() {
            let value = proxy.stats.counter(worker, counter);
            let _ = write!(text, "meshring_{}{{{},worker=\"{worker}\"}} ", counter.name(), labels(proxy));
            // A gauge wraps below zero in one worker when a connection moves to another; the sum is right.
            let _ = if is_counter { writeln!(text, "{value}") } else { writeln!(text, "{}", value.cast_signed()) };
        }
    }
}

fn durations(text: &mut String, proxies: &[Proxy]) {
    let name = "request_duration_seconds";
    head(
        text,
        name,
        "histogram",
        "Time from the end of a request's head to the end of its response; the sum is within 12.5 %.",
    );
    for proxy in proxies {
        let counts = proxy.stats.durations();
        let (mut total, mut sum_us) = (0_u64, 0.0);
        for (bucket, count) in counts.iter().enumerate() {
            total += count;
            let upper_us = histogram::upper_bound_us(bucket);
            sum_us += upper_us as f64 * *count as f64;
            // One series per power of two: 8 times finer would be 240 series per proxy.
            if bucket % 8 == 7 {
                let le = upper_us as f64 / 1e6;
                let _ = writeln!(text, "meshring_{name}_bucket{{{},le=\"{le}\"}} {total}", labels(proxy));
            }
        }
        let _ = writeln!(text, "meshring_{name}_bucket{{{},le=\"+Inf\"}} {total}", labels(proxy));
        let _ = writeln!(text, "meshring_{name}_sum{{{}}} {}", labels(proxy), sum_us / 1e6);
        let _ = writeln!(text, "meshring_{name}_count{{{}}} {total}", labels(proxy));
    }
}

fn clusters(text: &mut String, proxies: &[Proxy]) {
    let names: Vec<Vec<String>> = proxies.iter().map(|proxy| proxy.stats.clusters()).collect();
    let mut each =
        |name: &str, kind: &str, help: &str, class: Option<&str>, value: &dyn Fn(&StatsPage, usize) -> String| {
            if class.is_none_or(|class| class == CLUSTER_RESPONSES[0].0) {
                head(text, name, kind, help);
            }
            let class = class.map(|class| format!(",class=\"{class}\"")).unwrap_or_default();
            for (proxy, names) in proxies.iter().zip(&names) {
                for (slot, cluster) in names.iter().enumerate().filter(|(_, cluster)| !cluster.is_empty()) {
                    let (labels, cluster) = (labels(proxy), escape(cluster));
                    let value = value(&proxy.stats, slot);
                    let _ = writeln!(text, "meshring_{name}{{{labels},cluster=\"{cluster}\"{class}}} {value}");
                }
            }
        };
    let plain = |counter| move |page: &StatsPage, slot| page.cluster_total(slot, counter).to_string();
    each(
        "cluster_requests_total",
        "counter",
        "Requests sent to a cluster, further attempts included.",
        None,
        &plain(ClusterCounter::Requests),
    );
    for (class, counter) in CLUSTER_RESPONSES {
        each(
            "cluster_responses_total",
            "counter",
            "Responses of a cluster by class of status.",
            Some(class),
            &plain(counter),
        );
    }
    each(
        "cluster_failures_total",
        "counter",
        "Requests without any response: connect failure, reset, deadline.",
        None,
        &plain(ClusterCounter::Failures),
    );
    let gauge = |page: &StatsPage, slot| page.cluster_total(slot, ClusterCounter::Active).cast_signed().to_string();
    each("cluster_requests_active", "gauge", "Requests in flight to a cluster.", None, &gauge);
    let seconds =
        |page: &StatsPage, slot| (page.cluster_total(slot, ClusterCounter::LatencySumUs) as f64 / 1e6).to_string();
    each("cluster_latency_seconds_total", "counter", "Sum of the response times of a cluster.", None, &seconds);
}

/// Only clusters that have seen such a connection.
fn tcp(text: &mut String, proxies: &[Proxy]) {
    for (name, help, counter) in CLUSTER_TCP {
        head(text, name, "counter", help);
        for proxy in proxies {
            for (slot, cluster) in proxy.stats.clusters().iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let total = |counter| proxy.stats.tcp_total(slot, counter);
                if total(ClusterTcp::Opened) + total(ClusterTcp::ConnectFailures) > 0 {
                    let (labels, cluster) = (labels(proxy), escape(cluster));
                    let _ = writeln!(text, "meshring_{name}{{{labels},cluster=\"{cluster}\"}} {}", total(counter));
                }
            }
        }
    }
}

/// Which TLS ran where: for all listeners, and for clusters that have seen any.
fn tls(text: &mut String, proxies: &[Proxy]) {
    let listeners = proxies.iter().map(|proxy| {
        let all = listeners(proxy).into_iter().map(|listener| (listener.listener, listener.tls));
        (labels(proxy), all.collect())
    });
    handshakes(text, "listener", "of a listener's clients", &listeners.collect::<Vec<_>>());
    let clusters = proxies.iter().map(|proxy| {
        let all = cluster_stats(&proxy.stats).into_iter().map(|cluster| (cluster.cluster, cluster.tls));
        (labels(proxy), all.filter(|(_, tls)| !tls.is_empty()).collect())
    });
    handshakes(text, "cluster", "with a cluster's endpoints", &clusters.collect::<Vec<_>>());
}

/// Of a listener or a cluster: metric, help, further label, value.
type Handshakes = (&'static str, &'static str, &'static str, fn(&TlsStats) -> u64);

const HANDSHAKES: [Handshakes; 4] = [
    ("handshakes", "by who seals and opens the records afterwards, both ways", ",records=\"kernel\"", |tls| tls.kernel),
    ("handshakes", "", ",records=\"userspace\"", |tls| tls.userspace),
    ("resumed", "that resumed an earlier session", "", |tls| tls.resumed),
    ("refused", "that failed or were refused", "", |tls| tls.refused),
];

/// By proxy (its labels) and name.
fn handshakes(text: &mut String, label: &str, whose: &str, proxies: &[(String, Vec<(String, TlsStats)>)]) {
    for (name, what, more, value) in HANDSHAKES {
        let name = format!("{label}_tls_{name}_total");
        if !what.is_empty() {
            head(text, &name, "counter", &format!("TLS handshakes {whose} {what}."));
        }
        for (labels, of) in proxies {
            for (of, tls) in of {
                let of = escape(of);
                let _ = writeln!(text, "meshring_{name}{{{labels},{label}=\"{of}\"{more}}} {}", value(tls));
            }
        }
    }
}

/// With Istio's label. Only what was seen: 18 series for each cluster that never speaks gRPC would be noise.
fn grpc(text: &mut String, proxies: &[Proxy]) {
    let name = "cluster_grpc_responses_total";
    head(text, name, "counter", "gRPC calls to a cluster by grpc-status, `unknown` where there was none.");
    for proxy in proxies {
        for (slot, cluster) in proxy.stats.clusters().iter().enumerate().filter(|(_, cluster)| !cluster.is_empty()) {
            for status in GrpcStatus::all() {
                let count = proxy.stats.grpc_total(slot, status);
                if count > 0 {
                    let (labels, cluster) = (labels(proxy), escape(cluster));
                    let _ = writeln!(
                        text,
                        "meshring_{name}{{{labels},cluster=\"{cluster}\",grpc_response_status=\"{status}\"}} {count}"
                    );
                }
            }
        }
    }
}
