//! `meshring top`: rates and latencies between two looks at the proxies' statistics.

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use clap::Args;
use meshring_core::stats::histogram;
use serde::Serialize;

use super::{
    DataFormat, Done, duration,
    output::{self, count},
};
use crate::{
    api::client::Client,
    export::{ClusterStats, ProxyStats, Stats, TlsStats},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Time between two looks
    #[arg(long, default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// Print one picture and end
    #[arg(long)]
    once: bool,
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

/// What happened between two looks.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Picture {
    generation: u64,
    proxies: Vec<ProxyRates>,
    clusters: Vec<ClusterRates>,
    connections: Vec<ConnectionRates>,
    tls: Vec<TlsRates>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ProxyRates {
    proxy: String,
    pid: u32,
    /// The SPIFFE id.
    identity: Option<String>,
    requests_per_second: f64,
    errors_per_second: f64,
    p50_us: u64,
    p99_us: u64,
    connections: u64,
    tls_handshakes_per_second: f64,
    tls_refused_per_second: f64,
    access_denied_per_second: f64,
    jwt_refused_per_second: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ClusterRates {
    cluster: String,
    requests_per_second: f64,
    /// Of all requests to the same service and port, in percent.
    share: f64,
    failures_per_second: f64,
    grpc_errors_per_second: f64,
    mean_us: f64,
}

/// Of a cluster's connections that are passed on as bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct ConnectionRates {
    cluster: String,
    opened_per_second: f64,
    active: u64,
    failures_per_second: f64,
    received_bytes_per_second: f64,
    sent_bytes_per_second: f64,
}

/// Of the handshakes of a listener's clients, or with a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct TlsRates {
    proxy: String,
    pid: u32,
    /// A listener as `meshring proxies` shows it, or a cluster.
    of: String,
    handshakes_per_second: f64,
    refused_per_second: f64,
    /// All since the proxy has started: which TLS runs.
    since_start: TlsStats,
}

pub(super) async fn run(client: &Client, options: &Options) -> Done {
    let mut before: Stats = client.get("/v1/stats").await?;
    loop {
        tokio::time::sleep(options.interval).await;
        let now: Stats = client.get("/v1/stats").await?;
        let picture = between(&before, &now);
        match options.output {
            DataFormat::Json => output::json(&picture)?,
            DataFormat::Table => {
                // Clear the screen and go home: only where there is a screen.
                let clear = if !options.once && std::io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "" };
                output::print(&format!("{clear}{}", text(&picture)));
            }
        }
        if options.once {
            return Ok(());
        }
        before = now;
    }
}

fn between(before: &Stats, now: &Stats) -> Picture {
    let seconds = (now.at_ns.saturating_sub(before.at_ns)).max(1) as f64 / 1e9;
    let mut proxies = Vec::new();
    let mut clusters: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for proxy in &now.proxies {
        let old = before.proxies.iter().find(|old| (old.pid, &old.proxy) == (proxy.pid, &proxy.proxy));
        proxies.push(proxy_rates(old, proxy, seconds));
        for cluster in &proxy.clusters {
            let old = old.and_then(|old| old.clusters.iter().find(|old| old.cluster == cluster.cluster));
            let sums = clusters.entry(&cluster.cluster).or_default();
            sums[0] += cluster.requests.saturating_sub(old.map_or(0, |old| old.requests));
            sums[1] += cluster.failures.saturating_sub(old.map_or(0, |old| old.failures));
            sums[2] += cluster.latency_sum_us.saturating_sub(old.map_or(0, |old| old.latency_sum_us));
            sums[3] += cluster.grpc_errors.saturating_sub(old.map_or(0, |old| old.grpc_errors));
        }
    }
    let mut services: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (name, sums) in &clusters {
        *services.entry(service(name)).or_default() += sums[0];
    }
    let rates = clusters.iter().map(|(name, &[requests, failures, latency_us, grpc_errors])| ClusterRates {
        cluster: (*name).to_owned(),
        requests_per_second: requests as f64 / seconds,
        share: 100.0 * requests as f64 / services[&service(name)].max(1) as f64,
        failures_per_second: failures as f64 / seconds,
        grpc_errors_per_second: grpc_errors as f64 / seconds,
        mean_us: latency_us as f64 / requests.max(1) as f64,
    });
    let clusters = rates.collect();
    let (connections, tls) = (connections(before, now, seconds), tls(before, now, seconds));
    Picture { generation: now.generation.0, proxies, clusters, connections, tls }
}

/// Clusters that have seen connections of bytes.
fn connections(before: &Stats, now: &Stats, seconds: f64) -> Vec<ConnectionRates> {
    let mut clusters: BTreeMap<&str, ([u64; 4], u64)> = BTreeMap::new();
    for proxy in &now.proxies {
        let old = before.proxies.iter().find(|old| (old.pid, &old.proxy) == (proxy.pid, &proxy.proxy));
        for new in proxy.clusters.iter().filter(|cluster| cluster.tcp_opened + cluster.tcp_connect_failures > 0) {
            let old = old.and_then(|old| old.clusters.iter().find(|old| old.cluster == new.cluster));
            let since = |of: fn(&ClusterStats) -> u64| of(new).saturating_sub(old.map_or(0, of));
            let (sums, active) = clusters.entry(&new.cluster).or_default();
            sums[0] += since(|cluster| cluster.tcp_opened);
            sums[1] += since(|cluster| cluster.tcp_connect_failures);
            sums[2] += since(|cluster| cluster.tcp_received_bytes);
            sums[3] += since(|cluster| cluster.tcp_sent_bytes);
            *active += new.tcp_opened.saturating_sub(new.tcp_closed);
        }
    }
    let rates = clusters.into_iter().map(|(cluster, (sums, active))| {
        let [opened, failures, received, sent] = sums.map(|sum| sum as f64 / seconds);
        ConnectionRates {
            cluster: cluster.to_owned(),
            opened_per_second: opened,
            active,
            failures_per_second: failures,
            received_bytes_per_second: received,
            sent_bytes_per_second: sent,
        }
    });
    rates.collect()
}

/// Listeners and clusters that have seen handshakes.
fn tls(before: &Stats, now: &Stats, seconds: f64) -> Vec<TlsRates> {
    let named = |proxy: &ProxyStats| -> Vec<(String, TlsStats)> {
        let listeners = proxy.listeners.iter().map(|listener| (listener.listener.clone(), listener.tls));
        let clusters = proxy.clusters.iter().map(|cluster| (cluster.cluster.clone(), cluster.tls));
        listeners.chain(clusters).filter(|(_, tls)| !tls.is_empty()).collect()
    };
    let mut rates = Vec::new();
    for proxy in &now.proxies {
        let old = before.proxies.iter().find(|old| (old.pid, &old.proxy) == (proxy.pid, &proxy.proxy));
        let old = old.map(named).unwrap_or_default();
        for (of, tls) in named(proxy) {
            let old = old.iter().find(|(name, _)| *name == of).map(|(_, tls)| *tls).unwrap_or_default();
            let rate = |now: u64, old: u64| now.saturating_sub(old) as f64 / seconds;
            rates.push(TlsRates {
                proxy: proxy.proxy.clone(),
                pid: proxy.pid,
                of,
                handshakes_per_second: rate(tls.kernel + tls.userspace, old.kernel + old.userspace),
                refused_per_second: rate(tls.refused, old.refused),
                since_start: tls,
            });
        }
    }
    rates
}

/// `outbound|9080|v1|reviews.default.svc.cluster.local` without its subset.
fn service(cluster: &str) -> (&str, &str) {
    let mut parts = cluster.splitn(4, '|').skip(1);
    let (port, _subset, host) = (parts.next(), parts.next(), parts.next());
    (host.unwrap_or(cluster), port.unwrap_or_default())
}

fn proxy_rates(old: Option<&ProxyStats>, new: &ProxyStats, seconds: f64) -> ProxyRates {
    let old_durations = old.map(|old| old.durations.as_slice()).unwrap_or_default();
    let durations: Vec<u64> = new
        .durations
        .iter()
        .enumerate()
        .map(|(bucket, count)| count.saturating_sub(old_durations.get(bucket).copied().unwrap_or(0)))
        .collect();
    let rate = |new: u64, old: Option<u64>| new.saturating_sub(old.unwrap_or(0)) as f64 / seconds;
    ProxyRates {
        proxy: new.proxy.clone(),
        pid: new.pid,
        identity: new.identity.clone(),
        requests_per_second: rate(new.requests, old.map(|old| old.requests)),
        errors_per_second: rate(new.responses_5xx, old.map(|old| old.responses_5xx)),
        p50_us: histogram::quantile_us(&durations, 0.5),
        p99_us: histogram::quantile_us(&durations, 0.99),
        connections: new.connections_active,
        tls_handshakes_per_second: rate(new.tls_handshakes, old.map(|old| old.tls_handshakes)),
        tls_refused_per_second: rate(new.tls_refused, old.map(|old| old.tls_refused)),
        access_denied_per_second: rate(new.access_denied, old.map(|old| old.access_denied)),
        jwt_refused_per_second: rate(new.jwt_refused, old.map(|old| old.jwt_refused)),
    }
}

fn milliseconds(us: f64) -> String {
    if us == 0.0 { "-".to_owned() } else { format!("{:.2} ms", us / 1e3) }
}

fn text(picture: &Picture) -> String {
    let proxies = count(picture.proxies.len(), "proxy", "proxies");
    let head = [
        "PROXY",
        "PID",
        "REQ/S",
        "5XX/S",
        "P50",
        "P99",
        "CONNECTIONS",
        "TLS/S",
        "TLS REFUSED/S",
        "DENIED/S",
        "IDENTITY",
    ];
    let head = head.map(str::to_owned).to_vec();
    let rows = picture.proxies.iter().map(|proxy| {
        vec![
            proxy.proxy.clone(),
            proxy.pid.to_string(),
            format!("{:.0}", proxy.requests_per_second),
            format!("{:.0}", proxy.errors_per_second),
            milliseconds(proxy.p50_us as f64),
            milliseconds(proxy.p99_us as f64),
            proxy.connections.to_string(),
            format!("{:.1}", proxy.tls_handshakes_per_second),
            format!("{:.1}", proxy.tls_refused_per_second),
            // By a policy, or for a token: 403 and 401.
            format!("{:.0}", proxy.access_denied_per_second + proxy.jwt_refused_per_second),
            proxy.identity.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    let mut text = format!("generation {}, {proxies}\n\n", picture.generation);
    text.push_str(&output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    if !picture.clusters.is_empty() {
        let head = ["CLUSTER", "REQ/S", "SHARE", "FAILURES/S", "GRPC ERRORS/S", "MEAN"].map(str::to_owned).to_vec();
        let rows = picture.clusters.iter().map(|cluster| {
            vec![
                cluster.cluster.clone(),
                format!("{:.0}", cluster.requests_per_second),
                format!("{:.1} %", cluster.share),
                format!("{:.0}", cluster.failures_per_second),
                format!("{:.0}", cluster.grpc_errors_per_second),
                milliseconds(cluster.mean_us),
            ]
        });
        text.push('\n');
        text.push_str(&output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    if !picture.connections.is_empty() {
        let head =
            ["TCP", "OPENED/S", "ACTIVE", "FAILURES/S", "RECEIVED KB/S", "SENT KB/S"].map(str::to_owned).to_vec();
        let rows = picture.connections.iter().map(|cluster| {
            vec![
                cluster.cluster.clone(),
                format!("{:.0}", cluster.opened_per_second),
                cluster.active.to_string(),
                format!("{:.0}", cluster.failures_per_second),
                format!("{:.1}", cluster.received_bytes_per_second / 1e3),
                format!("{:.1}", cluster.sent_bytes_per_second / 1e3),
            ]
        });
        text.push('\n');
        text.push_str(&output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    if !picture.tls.is_empty() {
        let head = ["PROXY", "TLS OF", "HANDSHAKES/S", "REFUSED/S", "IN KERNEL", "IN USERSPACE", "RESUMED"];
        let rows = picture.tls.iter().map(|tls| {
            vec![
                tls.proxy.clone(),
                tls.of.clone(),
                format!("{:.1}", tls.handshakes_per_second),
                format!("{:.1}", tls.refused_per_second),
                tls.since_start.kernel.to_string(),
                tls.since_start.userspace.to_string(),
                tls.since_start.resumed.to_string(),
            ]
        });
        let head = head.map(str::to_owned).to_vec();
        text.push('\n');
        text.push_str(&output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    text
}

#[cfg(test)]
mod tests {
    use meshring_core::id::Generation;

    use super::*;
    use crate::export::ListenerStats;

    fn stats(at_ns: u64, v1: u64, v2: u64) -> Stats {
        let cluster = |subset: &str, requests| ClusterStats {
            cluster: format!("outbound|9080|{subset}|reviews.default.svc.cluster.local"),
            requests,
            failures: 0,
            latency_sum_us: requests * 100,
            grpc_errors: requests / 10,
            tcp_opened: requests / 100,
            tcp_closed: requests / 200,
            tcp_connect_failures: 0,
            tcp_received_bytes: requests,
            tcp_sent_bytes: requests * 1000,
            tls: TlsStats { kernel: 0, userspace: requests / 50, resumed: 0, refused: 0 },
        };
        let mut durations = vec![0; histogram::BUCKETS];
        durations[histogram::bucket(100)] = v1 + v2;
        let proxy = ProxyStats {
            proxy: "default/a".into(),
            pid: 1,
            identity: Some("spiffe://cluster.local/ns/default/sa/a".into()),
            requests: v1 + v2,
            responses_5xx: 0,
            connections_active: 3,
            tls_handshakes: v2 / 100,
            tls_refused: 0,
            access_denied: v2,
            jwt_refused: v1,
            durations,
            bypass: None,
            listeners: vec![ListenerStats {
                listener: "inbound 127.0.0.1:15006=127.0.0.1:9080".into(),
                tls: TlsStats { kernel: v2 / 100, userspace: 1, resumed: v2 / 200, refused: v2 / 400 },
            }],
            clusters: vec![cluster("v1", v1), cluster("v2", v2)],
        };
        Stats { at_ns, generation: Generation(2), proxies: vec![proxy] }
    }

    #[test]
    fn rates_and_shares_are_those_of_the_interval() {
        let picture = between(&stats(0, 1000, 0), &stats(2_000_000_000, 1200, 800));
        assert_eq!(picture.proxies[0].requests_per_second, 500.0);
        let shares: Vec<f64> = picture.clusters.iter().map(|cluster| cluster.share).collect();
        assert_eq!(shares, [20.0, 80.0]);
        assert_eq!((picture.clusters[1].mean_us, picture.clusters[1].grpc_errors_per_second), (100.0, 40.0));
        assert!((100..=112).contains(&picture.proxies[0].p50_us), "{}", picture.proxies[0].p50_us);
        let proxy = &picture.proxies[0];
        assert_eq!((proxy.tls_handshakes_per_second, proxy.tls_refused_per_second), (4.0, 0.0));
        assert_eq!((proxy.access_denied_per_second, proxy.jwt_refused_per_second), (400.0, 100.0));
        assert!(text(&picture).contains("80.0 %"));
        let [v1, v2] = &picture.connections[..] else { panic!("{:?}", picture.connections) };
        assert_eq!((v1.opened_per_second, v1.active), (1.0, 6));
        assert_eq!((v2.opened_per_second, v2.sent_bytes_per_second), (4.0, 400_000.0));
        assert!(text(&picture).contains("400.0"));
        let [listener, v1, v2] = &picture.tls[..] else { panic!("{:?}", picture.tls) };
        assert!(listener.of.starts_with("inbound "), "{listener:?}");
        assert_eq!((listener.handshakes_per_second, listener.refused_per_second), (4.0, 1.0));
        assert_eq!((listener.since_start.kernel, listener.since_start.userspace), (8, 1));
        assert_eq!((v1.handshakes_per_second, v2.handshakes_per_second), (2.0, 8.0));
        assert!(text(&picture).contains("IN KERNEL"));
        assert!(text(&picture).contains("spiffe://cluster.local/ns/default/sa/a"));
    }
}
