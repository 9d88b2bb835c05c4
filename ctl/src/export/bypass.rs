//! Connections and bytes by path in the Prometheus text format.

use std::fmt::Write as _;

use super::prometheus::{escape, head};
use crate::{
    bypass::Counters,
    control::bypass::{Manager, Shown, ShownProxy},
};

/// Further labels of a series, and what it counts.
type Value = (&'static str, fn(&Counters) -> u64);

/// Adds the metrics of the bypass; without one there is only the first.
pub fn render(text: &mut String, manager: &Manager) {
    let shown = manager.show(false).unwrap_or_else(|error| {
        tracing::warn!("metrics of the bypass: {error}");
        Shown::default()
    });
    head(text, "bypass_installed", "gauge", "1 while local connections of registered proxies go around TCP.");
    // Writing to a String cannot fail; the same holds below.
    let _ = writeln!(text, "meshring_bypass_installed {}", u8::from(shown.cgroup.is_some()));
    let mut each = |name: &str, help: &str, values: &[Value]| {
        head(text, name, "counter", help);
        for ShownProxy { proxy, pid, counters, .. } in &shown.proxies {
            for (label, value) in values {
                let (proxy, value) = (escape(proxy), value(counters));
                let _ = writeln!(text, "meshring_{name}{{proxy=\"{proxy}\",pid=\"{pid}\"{label}}} {value}");
            }
        }
    };
    each(
        "path_connections_total",
        "Connections of a proxy since its registration for the bypass, by path.",
        &[
            (",path=\"bypass\"", |counters| counters.connections_bypass),
            (",path=\"tcp\"", |counters| counters.connections_tcp),
        ],
    );
    each(
        "path_bytes_total",
        "Bytes of these by path; those of TCP in connections that have ended.",
        &[(",path=\"bypass\"", |counters| counters.bytes_bypass), (",path=\"tcp\"", |counters| counters.bytes_tcp)],
    );
    each(
        "bypass_switched_total",
        "Directions that went over to TCP: a slow reader, or a port that was switched off.",
        &[("", |counters| counters.switched)],
    );
    each(
        "bypass_full_total",
        "Connections that found no room in a map, and use TCP.",
        &[("", |counters| counters.full)],
    );
}
