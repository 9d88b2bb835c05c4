//! Who has spoken to whom over mutual TLS, in the Prometheus text format, under the labels that Istio has for it: `reporter`,
//! `source_principal`, `destination_principal`. SPIFFE ids come from certificates of the mesh; a proxy has room for
//! [`meshring_core::limits::PEER_SLOTS`] of them, those beyond are `other`.

use std::{collections::BTreeMap, fmt::Write as _};

use meshring_core::stats::{PeerCounter, PeerSlot};

use super::prometheus::{escape, head, labels};
use crate::control::fleet::{Fleet, Proxy};

/// As the label `class` has them.
const RESPONSES: [(&str, PeerCounter); 4] = [
    ("2xx", PeerCounter::Responses2xx),
    ("3xx", PeerCounter::Responses3xx),
    ("4xx", PeerCounter::Responses4xx),
    ("5xx", PeerCounter::Responses5xx),
];

/// A proxy with its peers.
struct Seen<'a> {
    proxy: &'a Proxy,
    /// Its own identity; empty without one.
    own: String,
    peers: Vec<(PeerSlot, String)>,
}

impl Seen<'_> {
    /// One line for each peer of which something was counted.
    fn render(&self, text: &mut String, name: &str, class: Option<&str>, counter: PeerCounter) {
        let class = class.map_or(String::new(), |class| format!(",class=\"{class}\""));
        let own = &self.own;
        for (slot, peer) in &self.peers {
            let value = self.proxy.stats.peer_total(*slot, counter);
            if value == 0 {
                continue;
            }
            let peer = &escape(peer);
            let (reporter, source, destination) = match counter {
                PeerCounter::UpstreamConnections | PeerCounter::UpstreamRequests => ("source", own, peer),
                _ => ("destination", peer, own),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "meshring_{name}{{{},reporter=\"{reporter}\",source_principal=\"{source}\",\
                 destination_principal=\"{destination}\"{class}}} {value}",
                labels(self.proxy)
            );
        }
    }
}

/// Adds the metrics of peers. `identities` are those of [`crate::control::materials::Materials::identities`]: the proxies' own.
pub fn render(text: &mut String, fleet: &Fleet, identities: &BTreeMap<(String, String, u32), String>) {
    let proxies = fleet.proxies();
    let seen = proxies.iter().map(|proxy| {
        let hello = &proxy.hello;
        let own = identities.get(&(hello.namespace.clone(), hello.workload.clone(), hello.pid));
        Seen { proxy, own: own.map(|id| escape(id)).unwrap_or_default(), peers: proxy.stats.peers() }
    });
    let seen: Vec<_> = seen.collect();
    let name = "principal_connections_total";
    head(text, name, "counter", "Connections over TLS on which the other end has proved a SPIFFE id.");
    for counter in [PeerCounter::Connections, PeerCounter::UpstreamConnections] {
        seen.iter().for_each(|seen| seen.render(text, name, None, counter));
    }
    let name = "principal_requests_total";
    head(text, name, "counter", "Requests over such connections; at their source further attempts count, too.");
    for counter in [PeerCounter::Requests, PeerCounter::UpstreamRequests] {
        seen.iter().for_each(|seen| seen.render(text, name, None, counter));
    }
    let name = "principal_responses_total";
    head(text, name, "counter", "Responses to them, at their destination.");
    for (class, counter) in RESPONSES {
        seen.iter().for_each(|seen| seen.render(text, name, Some(class), counter));
    }
}
